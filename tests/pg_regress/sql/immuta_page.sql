-- Immuta's page "Impersonate a User", section by section and line by line: the same job, in the words of each system.
-- A comment names the section that a part is about.
CREATE ROLE anna LOGIN;
CREATE ROLE ben LOGIN;
CREATE ROLE outsider LOGIN;
CREATE ROLE impersonation_role;
CREATE TABLE patients (owner name DEFAULT current_user, name text);
ALTER TABLE patients ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON patients USING (owner = current_user);
CREATE TABLE wards (name text);
CREATE TABLE bens_alone (name text);
GRANT SELECT ON patients, wards TO anna, ben;
GRANT SELECT ON bens_alone TO ben;
INSERT INTO patients VALUES ('anna', 'of anna'), ('ben', 'of ben');
INSERT INTO wards VALUES ('ward 9');
INSERT INTO bens_alone VALUES ('of ben alone');
INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('/^(.*)@example\.com$', '\1');
GRANT "SET USER" (ben) TO anna;
-- A connection that is asked for a user as it begins, and how it shows afterwards who is who.
\set as_ben 'dbname=' :DBNAME ' user=anna options=''-c impersonate.target=ben'''
\set as_outsider 'dbname=' :DBNAME ' user=anna options=''-c impersonate.target=outsider'''
\set who 'SELECT current_user, session_user, current_setting(''impersonate.target'') AS impersonated;'

---------------------------------------------------------------------------------------------------------------------
-- Impersonating users in projects
---------------------------------------------------------------------------------------------------------------------
SELECT impersonate.create_project('wards only');
SELECT impersonate.add_to_project('wards only', 'wards');
SELECT impersonate.add_project_member('wards only', 'ben');
-- the user enters it, and then whoever acts as the user sees that project and no more
\c - ben
SELECT impersonate.set_project('wards only');
\c - anna
SELECT name FROM patients;
SELECT setuser('ben');
SHOW impersonate.project;
SELECT name FROM wards;
SELECT name FROM patients;
SELECT name FROM bens_alone;
SELECT setuser();
SHOW impersonate.project;
SELECT name FROM patients;
-- out of it again
\c - ben
SELECT impersonate.set_project(NULL);
\c - anna
SELECT setuser('ben');
SELECT name FROM patients;

---------------------------------------------------------------------------------------------------------------------
-- Amazon Redshift Spectrum
---------------------------------------------------------------------------------------------------------------------
\c - anna
SELECT name FROM patients;
CALL impersonate.impersonate_user('ben');
SELECT name FROM patients;
SELECT name FROM bens_alone;
-- the end
CALL impersonate.impersonate_user(NULL);
SELECT name FROM patients;
SELECT name FROM bens_alone;
-- of the session that it was set in: another is the regular user's
CALL impersonate.impersonate_user('ben@example.com');
:who
\c - anna
:who
SELECT name FROM patients;
-- not everybody may be impersonated
CALL impersonate.impersonate_user('outsider');
:who

---------------------------------------------------------------------------------------------------------------------
-- Azure Synapse Analytics
---------------------------------------------------------------------------------------------------------------------
SELECT set_config('impersonate.target', 'ben', false);
SELECT name FROM patients;
-- the end, by a NULL or by nothing
SELECT set_config('impersonate.target', NULL, false);
SELECT name FROM patients;
SELECT set_config('impersonate.target', 'ben', false);
SELECT set_config('impersonate.target', '', false);
SELECT name FROM patients;
-- a new script is the user's own again
SELECT set_config('impersonate.target', 'ben', false);
:who
\c - anna
:who

---------------------------------------------------------------------------------------------------------------------
-- Databricks Spark
---------------------------------------------------------------------------------------------------------------------
-- by e-mail address
SET impersonate.target = 'ben@example.com';
SELECT name FROM patients;
SET impersonate.target = '';
SELECT name FROM patients;
-- in one message with the query; setting it again to the same user is no error
SET impersonate.target = 'ben@example.com' \; SELECT name FROM patients;
SET impersonate.target = 'ben@example.com' \; SELECT name FROM patients LIMIT 10;
:who
-- the end, for the session
SET impersonate.target TO '';
:who
SET impersonate.target = 'nobody@example.com';

---------------------------------------------------------------------------------------------------------------------
-- Snowflake
---------------------------------------------------------------------------------------------------------------------
-- Impersonate a Snowflake user: the impersonation role first, without which there is no right, then the variable
\c - postgres
REVOKE "SET USER" (ben) FROM anna;
GRANT "SET USER" (ben) TO impersonation_role;
ALTER ROLE anna NOINHERIT;
GRANT impersonation_role TO anna;
\c - anna
SET impersonate.target = 'ben';
SET ROLE impersonation_role;
SET impersonate.target = 'ben';
SELECT name FROM patients;
SELECT name FROM bens_alone;
:who
-- a new worksheet reverts
\c - anna
:who

-- Requirement: neither of the two is the one who registered the connection, here the extension's owner
\c - postgres
CREATE ROLE registrar LOGIN SUPERUSER;
SELECT format('ALTER DATABASE %I SET impersonate.exempt_roles = %L', current_database(), 'owner, payroll') \gexec
CREATE ROLE payroll;
\c - postgres
SET impersonate.target = 'ben';
\c - registrar
SET impersonate.target = 'postgres';
SET impersonate.target = 'ben';
:who
RESET impersonate.target;
-- or exempt from policies
GRANT payroll TO ben;
\c - anna
SET ROLE impersonation_role;
SET impersonate.target = 'ben';
\c - registrar
SET impersonate.target = 'ben';
REVOKE payroll FROM ben;
GRANT payroll TO anna;
\c - anna
SET ROLE impersonation_role;
SET impersonate.target = 'ben';
\c - postgres
REVOKE payroll FROM anna;
SELECT format('ALTER DATABASE %I RESET impersonate.exempt_roles', current_database()) \gexec

-- Scope of impersonation: only what the impersonator could see as well
SELECT format('ALTER DATABASE %I SET impersonate.scope = intersection', current_database()) \gexec
\c - anna
SET ROLE impersonation_role;
SET impersonate.target = 'ben';
SELECT name FROM patients;
SELECT name FROM wards;
SELECT name FROM bens_alone;
RESET impersonate.target;
\c - postgres
SELECT format('ALTER DATABASE %I RESET impersonate.scope', current_database()) \gexec

---------------------------------------------------------------------------------------------------------------------
-- Starburst (Trino)
---------------------------------------------------------------------------------------------------------------------
GRANT "SET USER" (ben) TO anna;
-- the user to impersonate is a property of the connection
\c :as_ben
SELECT name FROM patients;
-- who it is
SHOW impersonate.target;
:who
-- the end
RESET impersonate.target;
SHOW impersonate.target;
:who
SELECT name FROM patients;
-- set in the session, and another session
SET impersonate.target = 'ben';
SHOW impersonate.target;
\set as_anna 'dbname=' :DBNAME ' user=anna options=''-c impersonate.target='''
\c :as_anna
:who
-- permission is not checked before a query is run: the connection opens, and can do nothing until the end of it
\c :as_outsider
SHOW impersonate.target;
SELECT name FROM patients;
:who
RESET impersonate.target;
:who
SELECT name FROM patients;

---------------------------------------------------------------------------------------------------------------------
-- On record: all of it under both names
---------------------------------------------------------------------------------------------------------------------
-- psql goes on with a connection's options
\c :as_anna
\c - postgres
-- the sessions before are really over
DO $$ BEGIN
    WHILE EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                     AND datname = current_database()) LOOP
        PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
    END LOOP;
END $$;
SELECT impersonate.audit_sync();
SELECT event, user_name, session_user_name, command_tag, sqlstate,
       coalesce(detail->>'external_name', detail->>'door', detail->>'cause') AS note
  FROM impersonate.audit WHERE event IN ('SETUSER', 'RESETUSER', 'DENIED')
 ORDER BY min(event_id) OVER (PARTITION BY coalesce(impersonation_id::text, event_id::text)), event_id;
SELECT statement, user_name, session_user_name, sqlstate, count(*)
  FROM impersonate.audit WHERE event = 'STATEMENT' AND statement LIKE '%bens_alone%' GROUP BY 1, 2, 3, 4 ORDER BY 1, 4;
