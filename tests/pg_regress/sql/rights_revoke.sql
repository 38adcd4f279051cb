-- G5: REVOKE with a list takes what is listed, without one everything.
\set rights 'SELECT grantee, scope, users, with_roles, admin FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN;
CREATE ROLE sales;
CREATE ROLE support;
CREATE ROLE x LOGIN;
CREATE ROLE y LOGIN;
GRANT "SET USER", "SET USER" (bob, carol, dave), "SET USER ANY WITH ROLES" (sales, support) TO x, y;

REVOKE "SET USER" (bob, bob) FROM x;
REVOKE "set user any with roles" (sales) FROM x, x;
:rights
-- The last of a list takes the right along.
REVOKE "SET USER" (carol, dave) FROM x;
REVOKE "SET USER ANY WITH ROLES" FROM x;
:rights
-- Any alone; the lists stay.
REVOKE "SET USER ANY" FROM y;
:rights
-- Everything.
REVOKE "SET USER" FROM x, y;
:rights

-- Whoever granted it: a revoke takes the right from the grantee, not one grantor's share of it.
CREATE ROLE dba LOGIN;
GRANT "SET USER" TO dba WITH ADMIN OPTION;
GRANT "SET USER" (bob) TO x;
SET ROLE dba;
GRANT "SET USER" (bob, carol) TO x;
REVOKE "SET USER" (bob) FROM x;
RESET ROLE;
:rights

-- ADMIN OPTION FOR: on option it leaves the use, on only it takes all, on none it does nothing.
REVOKE "SET USER" FROM x;
CREATE ROLE z LOGIN;
GRANT "SET USER" TO x WITH ADMIN OPTION;
SELECT impersonate.grant_set_user('y', admin => 'only');
GRANT "SET USER" TO z;
REVOKE ADMIN OPTION FOR "SET USER" FROM x, y, z;
:rights
REVOKE ADMIN OPTION FOR "SET USER ANY" FROM x;
REVOKE ADMIN OPTION FOR "SET USER" FROM dba CASCADE;
:rights

-- What was never granted warns, with the class that core uses, and is no error.
REVOKE "SET USER" FROM y;
REVOKE "SET USER ANY" FROM y, bob;
REVOKE "SET USER" (bob, carol) FROM y;
GRANT "SET USER" (bob) TO y;
REVOKE "SET USER" (bob, carol) FROM y;
REVOKE "SET USER ANY WITH ROLES" FROM y;
REVOKE ADMIN OPTION FOR "SET USER" FROM y;
\set VERBOSITY sqlstate
REVOKE "SET USER" FROM y;
\set VERBOSITY default
:rights
-- Mistakes.
REVOKE "SET USER ANY" (bob) FROM y;
\echo :SQLSTATE
REVOKE "SET USER" (nobody) FROM y;
\echo :SQLSTATE
REVOKE "SET USER" FROM nobody;
\echo :SQLSTATE
