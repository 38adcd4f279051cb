-- X4: under an impersonation rights are not moved about, by whatever route, unless the target is a superuser.
CREATE ROLE bob LOGIN;
CREATE ROLE admin LOGIN;
CREATE ROLE boss LOGIN SUPERUSER;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE chief LOGIN SUPERUSER;
GRANT "SET USER" TO admin, helpdesk WITH ADMIN OPTION;
CREATE FUNCTION definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'GRANT "SET USER" (bob) TO helpdesk';
\c - helpdesk
SELECT setuser('admin');
GRANT "SET USER" (bob) TO admin;
\echo :SQLSTATE
REVOKE "SET USER" FROM helpdesk;
\echo :SQLSTATE
SELECT impersonate.grant_set_user('bob');
\echo :SQLSTATE
SELECT impersonate.revoke_set_user('helpdesk');
\echo :SQLSTATE
DO $$ BEGIN GRANT "SET USER" (bob) TO admin; END $$;
SELECT definer();
\echo :SQLSTATE
SELECT current_user, session_user;
SELECT setuser();
GRANT "SET USER" (helpdesk) TO bob;
\c - chief
SELECT setuser('admin');
GRANT "SET USER" (bob) TO admin;
SELECT setuser('boss');
GRANT "SET USER" (boss) TO bob;
SELECT setuser();
SELECT grantee, scope, users, admin, grantor FROM impersonate.grants ORDER BY grant_id;
