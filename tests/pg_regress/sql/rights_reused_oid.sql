-- G7: whoever gets the OID of a dropped role, by whatever way, inherits nothing. (The server's own way, past 2^32 OIDs,
-- is in tests/server/tests/rights.rs; here a superuser forges it.)
\set rights 'SELECT grantee, scope, users, with_roles, admin FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE dba LOGIN;
CREATE ROLE x LOGIN;
GRANT "SET USER" (bob, carol) TO helpdesk;
GRANT "SET USER" TO dba WITH ADMIN OPTION;
SET ROLE dba;
GRANT "SET USER" (carol) TO x;
RESET ROLE;
SELECT 'bob'::regrole::oid AS bob, 'helpdesk'::regrole::oid AS helpdesk, 'dba'::regrole::oid AS dba \gset
-- As from another database: the rows stay behind.
SET session_replication_role = replica;
CREATE TABLE kept AS TABLE impersonate.set_user_grant;
DROP ROLE bob, helpdesk, dba;
INSERT INTO impersonate.set_user_grant SELECT k.* FROM kept k
    WHERE NOT EXISTS (SELECT FROM impersonate.set_user_grant g WHERE g.grant_id = k.grant_id);
DROP TABLE kept;
RESET session_replication_role;
SELECT count(*) FROM impersonate.set_user_grant;
:rights
-- New roles with those OIDs, one of them with the old name too.
SET allow_system_table_mods = on;
CREATE ROLE new_bob LOGIN;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE new_dba LOGIN;
UPDATE pg_authid SET oid = :bob WHERE rolname = 'new_bob';
UPDATE pg_authid SET oid = :helpdesk WHERE rolname = 'helpdesk';
UPDATE pg_authid SET oid = :dba WHERE rolname = 'new_dba';
RESET allow_system_table_mods;
:rights
SELECT impersonate.can_setuser('carol', 'helpdesk'), impersonate.can_setuser('carol', 'new_dba'),
       impersonate.can_setuser('carol', 'x');
SET ROLE new_dba;
GRANT "SET USER" (carol) TO x;
RESET ROLE;
-- Rights of their own are theirs alone: the dead rows do not come back to life under them.
GRANT "SET USER" (x) TO helpdesk;
GRANT "SET USER" (x) TO new_dba;
:rights
SELECT impersonate.can_setuser('carol', 'helpdesk'), impersonate.can_setuser('new_bob', 'helpdesk'),
       impersonate.can_setuser('carol', 'new_dba');
