-- impersonate.explain_setuser: each criterion with what is asked, what is held, and the cure.
CREATE ROLE plain LOGIN;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE sales;
CREATE ROLE audit_team;
CREATE ROLE rich LOGIN CREATEROLE CREATEDB REPLICATION BYPASSRLS IN ROLE sales;
GRANT audit_team TO rich WITH ADMIN OPTION;
GRANT pg_read_all_data TO rich;
GRANT SET ON PARAMETER log_statement TO rich WITH GRANT OPTION;
GRANT ALTER SYSTEM ON PARAMETER work_mem TO rich;
GRANT "SET USER" TO rich WITH ADMIN OPTION;
GRANT "SET USER" (plain, helpdesk) TO rich;
GRANT "SET USER ANY WITH ROLES" (sales) TO rich;

-- One who has nothing.
SELECT * FROM impersonate.explain_setuser('rich', 'helpdesk');
-- Every criterion has a row, also where the target has nothing.
SELECT * FROM impersonate.explain_setuser('plain', 'helpdesk');
-- Oneself; a superuser.
SELECT * FROM impersonate.explain_setuser('rich', 'rich');
SELECT * FROM impersonate.explain_setuser('rich', 'postgres');
-- (The database's owner is in pg_database_owner, which nobody can be granted: tests/server/tests/criteria.rs.)
SELECT * FROM impersonate.explain_setuser('postgres', 'rich') WHERE subject <> 'pg_database_owner';
-- S5: LOGIN, and VALID UNTIL; also for a superuser.
CREATE ROLE expired LOGIN VALID UNTIL '2001-01-01';
CREATE ROLE valid LOGIN VALID UNTIL 'infinity';
SELECT * FROM impersonate.explain_setuser('sales', 'postgres') WHERE criterion = 'S5';
SELECT * FROM impersonate.explain_setuser('expired', 'postgres') WHERE criterion = 'S5';
SELECT * FROM impersonate.explain_setuser('valid', 'postgres') WHERE criterion = 'S5';
SET impersonate.require_login = off;
SELECT * FROM impersonate.explain_setuser('sales', 'postgres') WHERE criterion = 'S5';
SELECT impersonate.can_setuser('sales'), impersonate.can_setuser('expired');
RESET impersonate.require_login;
-- The default is session_user, whatever the role is.
SET ROLE helpdesk;
SELECT impersonate.can_setuser('rich');
SELECT impersonate.can_setuser('rich', current_user);
RESET ROLE;

-- Given all of it, row by row, helpdesk may.
SELECT remedy || ';' FROM impersonate.explain_setuser('rich', 'helpdesk') WHERE NOT ok
\gexec
SELECT impersonate.can_setuser('rich', 'helpdesk');
SELECT criterion, subject, required, held FROM impersonate.explain_setuser('rich', 'helpdesk');
