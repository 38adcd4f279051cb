-- G1: three scopes, given by GRANT; names of privileges compare case-insensitively; granting again adds.
\set rights 'SELECT grantee, scope, users, with_roles, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN;
CREATE ROLE sales;
CREATE ROLE support;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE lead LOGIN;
CREATE ROLE dba LOGIN;

-- Any user, said in two ways and any letter case.
GRANT "SET USER" TO dba;
GRANT "set user any" TO lead;
:rights
REVOKE "Set User Any" FROM dba, lead;
:rights

-- These users; the same twice on a list, and a grantee twice, count once.
GRANT "SET USER" (bob, carol, bob) TO helpdesk, lead, helpdesk;
:rights

-- Again adds to what is there, and the same again changes nothing: the id stays.
SELECT grant_id AS before FROM impersonate.grants WHERE grantee = 'helpdesk' \gset
GRANT "Set User" (dave, bob) TO helpdesk;
GRANT "SET USER" (bob) TO helpdesk;
SELECT grant_id = :before AS same_right, users FROM impersonate.grants WHERE grantee = 'helpdesk';

-- Scopes live side by side, also when one statement gives several.
GRANT "SET USER ANY WITH ROLES" (sales, support, sales), "SET USER ANY", "SET USER" (carol), "SET USER" (dave) TO dba;
SELECT scope, users, with_roles FROM impersonate.grants WHERE grantee = 'dba' ORDER BY scope;

-- One and the same right from two grantors is two rights.
GRANT "SET USER" TO lead WITH ADMIN OPTION;
SET ROLE lead;
GRANT "SET USER" (bob) TO helpdesk;
RESET ROLE;
SELECT users, grantor FROM impersonate.grants WHERE grantee = 'helpdesk' ORDER BY grant_id;

-- A list where none belongs, and none where one does.
GRANT "SET USER ANY" (bob) TO helpdesk;
\echo :SQLSTATE
GRANT "SET USER ANY WITH ROLES" TO helpdesk;
\echo :SQLSTATE
-- One statement is one: what came before the mistake is not granted either.
GRANT "SET USER" TO helpdesk, nobody;
\echo :SQLSTATE
GRANT "SET USER" TO helpdesk;
GRANT "SET USER ANY WITH ROLES" (sales), "SET USER" (nobody) TO helpdesk;
\echo :SQLSTATE
SELECT scope FROM impersonate.grants WHERE grantee = 'helpdesk' AND with_roles IS NOT NULL;

-- The command tag is the server's own.
\set QUIET off
GRANT "SET USER" (bob) TO helpdesk;
REVOKE "SET USER" FROM helpdesk;
\set QUIET on
