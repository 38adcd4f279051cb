-- G4, G6: who may grant: superusers, and holders of admin, of their own or through a group.
\set rights 'SELECT grantee, scope, users, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE x LOGIN;
CREATE ROLE admins;
CREATE ROLE inherits LOGIN IN ROLE admins;
CREATE ROLE must_set LOGIN NOINHERIT IN ROLE admins;
CREATE ROLE through LOGIN NOINHERIT IN ROLE inherits;
CREATE ROLE outsider LOGIN CREATEROLE CREATEDB;
CREATE ROLE boss LOGIN SUPERUSER;

SET ROLE boss;
GRANT "SET USER" TO admins WITH ADMIN OPTION;
RESET ROLE;
-- CREATEROLE is not it.
SET ROLE outsider;
GRANT "SET USER" (bob) TO x;
\echo :SQLSTATE
REVOKE "SET USER" FROM admins;
\echo :SQLSTATE
-- Nor is it enough over oneself or to oneself.
GRANT "SET USER" (outsider) TO outsider;
RESET ROLE;

\c - inherits
GRANT "SET USER" (bob) TO x;
\c - must_set
GRANT "SET USER" (bob) TO x;
\echo :SQLSTATE
SET ROLE admins;
GRANT "SET USER" (bob) TO x;
\c - through
GRANT "SET USER" (bob) TO x;
\echo :SQLSTATE
SET ROLE inherits;
GRANT "SET USER" (x) TO bob;
\c - postgres
:rights

-- The criteria are not checked when granting: a superuser as target, an expired one, one who cannot log in.
SET ROLE admins;
GRANT "SET USER" (boss, admins) TO x;
RESET ROLE;

-- GRANTED BY: oneself may always be said; somebody else by a superuser alone, and only somebody who could.
SET ROLE admins;
GRANT "SET USER" (bob) TO outsider GRANTED BY admins;
GRANT "SET USER" (bob) TO outsider GRANTED BY CURRENT_USER;
GRANT "SET USER" (bob) TO outsider GRANTED BY boss;
\echo :SQLSTATE
GRANT "SET USER" (bob) TO outsider GRANTED BY SESSION_USER;
\echo :SQLSTATE
RESET ROLE;
GRANT "SET USER" (x) TO outsider GRANTED BY inherits;
GRANT "SET USER" (x) TO outsider GRANTED BY boss;
GRANT "SET USER" (x) TO outsider GRANTED BY bob;
\echo :SQLSTATE
GRANT "SET USER" (x) TO outsider GRANTED BY nobody;
\echo :SQLSTATE
GRANT "SET USER" (x) TO outsider GRANTED BY PUBLIC;
\echo :SQLSTATE
SELECT grantee, users, grantor FROM impersonate.grants WHERE grantee = 'outsider' ORDER BY grant_id;

-- A member that leaves the group can grant no more; what it granted stays until somebody revokes it.
REVOKE admins FROM inherits;
\c - inherits
GRANT "SET USER" (bob) TO x;
\echo :SQLSTATE
\c - postgres
SELECT grantee, users, grantor FROM impersonate.grants WHERE grantor = 'inherits' ORDER BY grant_id;
