-- impersonate.criteria = full (A6): what the target itself owns or was granted on objects, the impersonator must be
-- able to do as well.
CREATE ROLE full_target LOGIN;
CREATE ROLE "Full Impersonator" LOGIN;
CREATE ROLE full_owner;
GRANT "SET USER" (full_target) TO "Full Impersonator";
CREATE SCHEMA full_hr;
CREATE TABLE full_hr.salaries (name text, amount int);
CREATE VIEW full_hr.names AS SELECT name FROM full_hr.salaries;
CREATE SEQUENCE full_hr.number;
CREATE FUNCTION full_hr.raise(text, int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE full_hr.pay(int) LANGUAGE sql AS '';
CREATE TYPE full_hr."Grade" AS ENUM ('a');
CREATE FOREIGN DATA WRAPPER full_wrapper;
CREATE SERVER full_server FOREIGN DATA WRAPPER full_wrapper;
SELECT lo_create(471147);
REVOKE ALL ON FUNCTION full_hr.raise FROM PUBLIC;
REVOKE ALL ON PROCEDURE full_hr.pay FROM PUBLIC;
REVOKE ALL ON TYPE full_hr."Grade" FROM PUBLIC;
GRANT USAGE ON SCHEMA full_hr TO full_target;
GRANT SELECT, INSERT ON full_hr.salaries TO full_target;
GRANT UPDATE (amount), REFERENCES (name) ON full_hr.salaries TO full_target WITH GRANT OPTION;
GRANT SELECT ON full_hr.names TO full_target WITH GRANT OPTION;
GRANT SELECT ON full_hr.names TO "Full Impersonator";
GRANT USAGE ON SEQUENCE full_hr.number TO full_target;
GRANT EXECUTE ON FUNCTION full_hr.raise TO full_target;
GRANT EXECUTE ON PROCEDURE full_hr.pay TO full_target;
GRANT USAGE ON TYPE full_hr."Grade" TO full_target;
GRANT USAGE ON FOREIGN DATA WRAPPER full_wrapper TO full_target;
GRANT USAGE ON FOREIGN SERVER full_server TO full_target;
GRANT SELECT ON LARGE OBJECT 471147 TO full_target;
CREATE POLICY "own rows" ON full_hr.salaries TO full_target;

-- The default doesn't look at objects.
SHOW impersonate.criteria;
SELECT impersonate.can_setuser('full_target', 'Full Impersonator');
SET impersonate.criteria = full;
SELECT impersonate.can_setuser('full_target', 'Full Impersonator');
SELECT * FROM impersonate.explain_setuser('full_target', 'Full Impersonator') WHERE criterion IN ('A5', 'A6');

-- Given all of it, row by row, the impersonator may.
SELECT remedy || ';' FROM impersonate.explain_setuser('full_target', 'Full Impersonator') WHERE NOT ok
\gexec
SELECT * FROM impersonate.explain_setuser('full_target', 'Full Impersonator') WHERE criterion = 'A6';

-- What somebody owns comes with nothing but the role itself.
CREATE TABLE full_hr.one ();
CREATE TABLE full_hr.two ();
ALTER TABLE full_hr.one OWNER TO full_target;
ALTER TABLE full_hr.two OWNER TO full_target;
CREATE USER MAPPING FOR full_target SERVER full_server;
SELECT * FROM impersonate.explain_setuser('full_target', 'Full Impersonator') WHERE criterion = 'A6';
GRANT full_target TO "Full Impersonator";
SELECT * FROM impersonate.explain_setuser('full_target', 'Full Impersonator') WHERE criterion = 'A6';
REVOKE full_target FROM "Full Impersonator";

-- Nobody at all; oneself; a superuser; a predefined role, whose objects the server doesn't list.
SET impersonate.require_login = off;
SELECT * FROM impersonate.explain_setuser('full_owner', 'Full Impersonator') WHERE criterion = 'A6';
SELECT * FROM impersonate.explain_setuser('full_target', 'full_target') WHERE criterion = 'A6';
SELECT * FROM impersonate.explain_setuser('full_target', 'postgres') WHERE criterion = 'A6';
SELECT * FROM impersonate.explain_setuser('pg_monitor', 'Full Impersonator') WHERE criterion = 'A6';

-- The refusal itself, with the exact GRANT.
RESET impersonate.require_login;
SET SESSION AUTHORIZATION "Full Impersonator";
SELECT setuser('full_target');
\echo :SQLSTATE
RESET SESSION AUTHORIZATION;
REASSIGN OWNED BY full_target TO full_owner;
DROP USER MAPPING FOR full_target SERVER full_server;
REVOKE SELECT ON full_hr.names FROM "Full Impersonator";
SET SESSION AUTHORIZATION "Full Impersonator";
SELECT setuser('full_target');
\echo :SQLSTATE
RESET SESSION AUTHORIZATION;
