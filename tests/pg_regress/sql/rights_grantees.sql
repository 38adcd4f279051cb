-- To whom: the words that GRANT knows for roles, groups, oneself; and what SET USER is not for.
\set rights 'SELECT grantee, scope, users, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE sales;
CREATE ROLE dba LOGIN;
CREATE ROLE team;
CREATE ROLE member LOGIN IN ROLE team;

-- PUBLIC is nobody who could answer for it.
GRANT "SET USER" TO PUBLIC;
\echo :SQLSTATE
GRANT "SET USER" (bob) TO bob, PUBLIC;
\echo :SQLSTATE
REVOKE "SET USER" FROM PUBLIC;
\echo :SQLSTATE
GRANT "SET USER" (public) TO bob;
\echo :SQLSTATE
GRANT "SET USER" ("none") TO bob;
\echo :SQLSTATE
GRANT "SET USER" ("current_user") TO bob;
\echo :SQLSTATE
GRANT "SET USER" TO "none";
\echo :SQLSTATE
GRANT "SET USER" TO "";
\echo :SQLSTATE
GRANT "SET USER" ("") TO bob;
\echo :SQLSTATE
:rights

-- Those that stand for a role mean that role.
GRANT "SET USER" TO dba WITH ADMIN OPTION;
SET ROLE dba;
GRANT "SET USER" (bob) TO CURRENT_USER;
GRANT "SET USER" (bob) TO SESSION_USER;
GRANT "SET USER" (sales) TO CURRENT_ROLE;
RESET ROLE;
:rights
REVOKE "SET USER" FROM SESSION_USER;
REVOKE "SET USER" FROM dba CASCADE;

-- A right over oneself, to a group over its own member, to a member over its group: stored, as said.
GRANT "SET USER" (bob) TO bob;
GRANT "SET USER" (member) TO team;
GRANT "SET USER" (team) TO member;
:rights
-- None of them gives what the criteria do not: the member may not act as the group, which cannot log in.
SELECT impersonate.can_setuser('bob', 'bob'), impersonate.can_setuser('member', 'member'),
       impersonate.can_setuser('team', 'member');
-- The group as impersonator: team is held by its member, and a role is a role's own.
SELECT criterion, subject, ok, remedy FROM impersonate.explain_setuser('member', 'team') WHERE criterion <> 'S5';

-- SET USER and roles in one statement.
GRANT "SET USER", sales TO bob;
\echo :SQLSTATE
GRANT sales, "SET USER" (bob) TO bob;
\echo :SQLSTATE
REVOKE sales, "SET USER" FROM bob;
\echo :SQLSTATE
SELECT pg_has_role('bob', 'sales', 'MEMBER');
-- GRANT of roles alone is left as it was, lists included.
GRANT sales TO bob;
SELECT pg_has_role('bob', 'sales', 'MEMBER');
REVOKE sales FROM bob;
GRANT sales (x) TO bob;
\echo :SQLSTATE
GRANT "SET USERS" TO bob;
\echo :SQLSTATE
