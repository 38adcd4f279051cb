-- G7: a dropped role takes its rights along; a renamed one keeps them.
\set rights 'SELECT grantee, scope, users, with_roles, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
\set stored 'SELECT count(*) AS stored FROM impersonate.set_user_grant;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE sales;
CREATE ROLE support;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE lead LOGIN;
CREATE ROLE dba LOGIN;

-- The grantee: nothing of it is left in the table.
GRANT "SET USER", "SET USER" (bob), "SET USER ANY WITH ROLES" (sales) TO helpdesk;
DROP ROLE helpdesk;
:rights
:stored
-- One of the same name gets none of it.
CREATE ROLE helpdesk LOGIN;
:rights
SELECT impersonate.can_setuser('bob', 'helpdesk');

-- One on a list: the others stay; with the last one the right goes.
GRANT "SET USER" (bob, carol) TO helpdesk;
GRANT "SET USER ANY WITH ROLES" (sales, support) TO lead;
DROP ROLE bob;
DROP ROLE sales;
:rights
CREATE ROLE bob LOGIN;
CREATE ROLE sales;
:rights
SELECT impersonate.can_setuser('bob', 'helpdesk'), impersonate.can_setuser('carol', 'helpdesk');
-- The shortened list can still be changed.
GRANT "SET USER" (bob) TO helpdesk;
REVOKE "SET USER" (carol) FROM helpdesk;
:rights
DROP ROLE bob;
DROP ROLE support;
:rights
:stored

-- A grantor that was a superuser: the right stays, and can be changed and revoked.
CREATE ROLE boss LOGIN SUPERUSER;
CREATE ROLE bob LOGIN;
SET ROLE boss;
GRANT "SET USER" (bob, carol) TO helpdesk;
GRANT "SET USER" TO dba WITH ADMIN OPTION;
RESET ROLE;
DROP ROLE boss;
SELECT grantee, scope, users, admin FROM impersonate.grants ORDER BY grant_id;
SELECT impersonate.can_setuser('bob', 'helpdesk');
GRANT "SET USER" (lead) TO helpdesk;
REVOKE "SET USER" (bob) FROM helpdesk;
REVOKE ADMIN OPTION FOR "SET USER" FROM dba;
SELECT grantee, scope, users, admin FROM impersonate.grants ORDER BY grant_id;
REVOKE "SET USER" FROM helpdesk, dba;
:rights

-- A grantor that had admin: its grants go with it.
GRANT "SET USER" TO dba WITH ADMIN OPTION;
SET ROLE dba;
GRANT "SET USER" (bob) TO helpdesk;
RESET ROLE;
GRANT "SET USER" (carol) TO helpdesk;
DROP ROLE dba;
:rights
:stored

-- Undone with the drop.
BEGIN;
DROP ROLE helpdesk;
:rights
ROLLBACK;
:rights
-- DROP USER, DROP GROUP, several at once, inside a function.
GRANT "SET USER" (bob) TO lead;
DROP USER lead, carol;
:rights
DO $$ BEGIN DROP GROUP helpdesk; END $$;
:stored

-- Renamed: the same role.
CREATE ROLE helpdesk LOGIN;
GRANT "SET USER" (bob) TO helpdesk;
ALTER ROLE helpdesk RENAME TO servicedesk;
ALTER ROLE bob RENAME TO robert;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE bob LOGIN;
:rights
SELECT impersonate.can_setuser('robert', 'servicedesk'), impersonate.can_setuser('bob', 'servicedesk'),
       impersonate.can_setuser('robert', 'helpdesk');

-- Somebody who may drop roles and no more does the same.
CREATE ROLE maker LOGIN CREATEROLE;
GRANT servicedesk TO maker WITH ADMIN OPTION;
SET ROLE maker;
DROP ROLE servicedesk;
RESET ROLE;
:stored
