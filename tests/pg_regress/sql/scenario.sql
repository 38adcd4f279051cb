-- The vendor's scenario: five users, whoever may act as whom by what they hold of SET USER alone (A1, A5).
CREATE ROLE u1 LOGIN;
CREATE ROLE u2 LOGIN;
CREATE ROLE u3 LOGIN;
CREATE ROLE u4 LOGIN;
CREATE ROLE u5 LOGIN;
CREATE ROLE r1;
CREATE ROLE r2;
GRANT "SET USER" TO u1;
GRANT "SET USER" (u1, u4) TO u2;
GRANT "SET USER" (u1, u2, u4, u5) TO u3;
GRANT "SET USER ANY WITH ROLES" (r1, r2) TO u3;
GRANT "SET USER" TO u4;
GRANT "SET USER ANY WITH ROLES" (r1) TO u4;
GRANT "SET USER" (u4) TO u5;
GRANT "SET USER ANY WITH ROLES" (r1) TO u5;
SELECT grantee, scope, users, with_roles FROM impersonate.grants ORDER BY grant_id;

-- A row may act as the columns.
SELECT i AS impersonator,
       impersonate.can_setuser('u1', i) AS u1, impersonate.can_setuser('u2', i) AS u2,
       impersonate.can_setuser('u3', i) AS u3, impersonate.can_setuser('u4', i) AS u4,
       impersonate.can_setuser('u5', i) AS u5
  FROM unnest(ARRAY['u1', 'u2', 'u3', 'u4', 'u5']) i ORDER BY 1;
-- Why not: what is missing, and the statement that gives it.
SELECT i AS impersonator, t AS target, criterion, subject, required, held, remedy
  FROM unnest(ARRAY['u2', 'u3', 'u5']) i, unnest(ARRAY['u1', 'u2', 'u3', 'u4', 'u5']) t,
       impersonate.explain_setuser(t, i) WHERE NOT ok ORDER BY i, t, criterion;
-- By setuser itself: tests/server/tests/criteria.rs, cell by cell.
