-- Immuta's page "Impersonate a User", row by row: the same job, in the words of each system.
\set VERBOSITY terse
CREATE ROLE anna LOGIN;
CREATE ROLE ben LOGIN;
CREATE ROLE outsider LOGIN;
CREATE ROLE impersonation_role;
CREATE TABLE patients (owner name DEFAULT current_user, name text);
ALTER TABLE patients ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON patients USING (owner = current_user);
GRANT SELECT ON patients TO anna, ben;
INSERT INTO patients VALUES ('anna', 'of anna'), ('ben', 'of ben');
INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('/^(.*)@example\.com$', '\1');
GRANT "SET USER" (ben) TO anna;

-- Redshift Spectrum: a stored procedure, and NULL to end
\c - anna
SELECT name FROM patients;
CALL impersonate.impersonate_user('ben');
SELECT name FROM patients;
CALL impersonate.impersonate_user(NULL);
SELECT name FROM patients;
-- the permission is required
CALL impersonate.impersonate_user('outsider');

-- Azure Synapse: a key and a value of the session's context
SELECT set_config('impersonate.target', 'ben', false);
SELECT name FROM patients;
SELECT set_config('impersonate.target', '', false);
SELECT name FROM patients;

-- Databricks Spark: SET, also by the e-mail address, and an empty value to end
SET impersonate.target = 'ben@example.com';
SELECT name FROM patients;
SET impersonate.target = '';
SELECT name FROM patients;

-- Snowflake: the impersonation role first, then the variable
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
RESET impersonate.target;
-- neither side may be exempt
\c - postgres
SELECT format('ALTER ROLE anna IN DATABASE %I SET impersonate.exempt_roles = ben', current_database()) \gexec
\c - anna
SET ROLE impersonation_role;
SET impersonate.target = 'ben';

-- Starburst (Trino): SHOW and RESET; a new session reverts
\c - postgres
SELECT format('ALTER ROLE anna IN DATABASE %I RESET impersonate.exempt_roles', current_database()) \gexec
\c - anna
SET ROLE impersonation_role;
SET impersonate.target = 'ben';
SHOW impersonate.target;
SELECT current_user, session_user;
RESET impersonate.target;
SHOW impersonate.target;
SET impersonate.target = 'ben';
\c - anna
SHOW impersonate.target;
SELECT current_user, session_user;

\c - postgres
SELECT impersonate.audit_sync();
SELECT event, user_name, session_user_name, command_tag, sqlstate, detail->>'external_name' AS external_name
  FROM impersonate.audit WHERE event IN ('SETUSER', 'DENIED') ORDER BY event_id;
