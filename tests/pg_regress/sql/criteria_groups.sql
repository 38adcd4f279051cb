-- G6: a right granted to a group is its members', by INHERIT or after SET ROLE; nobody else's.
CREATE ROLE bob LOGIN;
CREATE ROLE desk;
CREATE ROLE inherits LOGIN IN ROLE desk;
CREATE ROLE must_set LOGIN NOINHERIT IN ROLE desk;
CREATE ROLE below LOGIN IN ROLE inherits;
CREATE ROLE below_bare LOGIN IN ROLE must_set;
CREATE ROLE of_bob LOGIN IN ROLE bob;
CREATE ROLE outsider LOGIN;
GRANT "SET USER" (bob) TO desk;
SELECT r AS role, impersonate.can_setuser('bob', r)
  FROM unnest(ARRAY['inherits', 'must_set', 'below', 'below_bare', 'of_bob', 'outsider']) r;
-- Membership in the target gives nothing by itself.
SELECT criterion, ok, held, remedy FROM impersonate.explain_setuser('bob', 'of_bob') WHERE criterion = 'A1';
\c - inherits
SELECT setuser('bob');
SELECT setuser();
-- By SET ROLE to the group; back to the one who logged in.
\c - must_set
SELECT setuser('bob');
\echo :SQLSTATE
SET ROLE desk;
SELECT impersonate.can_setuser('bob');
SELECT setuser('bob');
SELECT current_user, session_user;
SELECT setuser();
RESET ROLE;
SELECT setuser('bob');
-- A SET ROLE counts for the one who made it and for nobody else.
SET ROLE desk;
SELECT impersonate.can_setuser('bob', 'must_set'), impersonate.can_setuser('bob', 'below_bare');
-- Through two steps: the role in between must hand it on.
\c - below_bare
SET ROLE must_set;
SELECT impersonate.can_setuser('bob');
SET ROLE desk;
SELECT impersonate.can_setuser('bob');
-- A superuser needs no right; the target's LOGIN still counts.
\c - postgres
SELECT impersonate.can_setuser('bob'), impersonate.can_setuser('desk');
-- No longer a member, no longer a right.
REVOKE desk FROM inherits;
SELECT impersonate.can_setuser('bob', 'inherits'), impersonate.can_setuser('bob', 'below');
