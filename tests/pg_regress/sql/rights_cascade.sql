-- G5: grants of someone who loses admin: RESTRICT refuses, CASCADE takes them along.
\set rights 'SELECT grantee, scope, users, with_roles, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE a LOGIN;
CREATE ROLE b LOGIN;
CREATE ROLE c LOGIN;
CREATE ROLE d LOGIN;
-- A chain: postgres, a, b, c; and d from each end.
GRANT "SET USER" TO a WITH ADMIN OPTION;
SET ROLE a;
GRANT "SET USER" TO b WITH ADMIN OPTION;
SET ROLE b;
GRANT "SET USER" TO c WITH ADMIN OPTION;
SET ROLE c;
GRANT "SET USER" (bob) TO d;
RESET ROLE;
GRANT "SET USER" (c) TO d;
:rights
REVOKE "SET USER" FROM a;
\echo :SQLSTATE
REVOKE "SET USER" FROM a RESTRICT;
REVOKE ADMIN OPTION FOR "SET USER" FROM b;
\echo :SQLSTATE
SELECT impersonate.revoke_set_user('b', admin_option_for => true);
\echo :SQLSTATE
-- From the end of the chain nothing hangs on; a list is not what others hang on.
REVOKE "SET USER" (c) FROM d;
:rights
-- Admin of b goes: what b granted goes, and what those granted; b's own use stays.
REVOKE ADMIN OPTION FOR "SET USER" FROM b CASCADE;
:rights

-- A second leg to stand on: what a superuser granted as well does not fall, nor what hangs on that.
SET ROLE a;
GRANT "SET USER" TO b WITH ADMIN OPTION;
RESET ROLE;
GRANT "SET USER" TO b WITH ADMIN OPTION;
SET ROLE b;
GRANT "SET USER" TO c;
RESET ROLE;
SELECT grantee, admin, grantor FROM impersonate.grants ORDER BY grant_id;
REVOKE "SET USER" FROM a;
REVOKE "SET USER" FROM a CASCADE;
SELECT grantee, admin, grantor FROM impersonate.grants ORDER BY grant_id;

-- In a circle nobody holds anybody up: admin cannot go back to where it came from.
REVOKE "SET USER" FROM b, c CASCADE;
GRANT "SET USER" TO a WITH ADMIN OPTION;
SET ROLE a;
GRANT "SET USER" TO b WITH ADMIN OPTION;
SET ROLE b;
GRANT "SET USER" TO c WITH ADMIN OPTION;
SET ROLE c;
GRANT "SET USER" TO a WITH ADMIN OPTION;
\echo :SQLSTATE
GRANT "SET USER" TO c WITH ADMIN OPTION;
\echo :SQLSTATE
-- Without admin it may.
GRANT "SET USER" TO a;
RESET ROLE;
SELECT grantee, admin, grantor FROM impersonate.grants ORDER BY grant_id;
-- So with the root the whole chain goes.
SELECT impersonate.revoke_set_user('a', cascade => true);
SELECT grantee, admin, grantor FROM impersonate.grants ORDER BY grant_id;
