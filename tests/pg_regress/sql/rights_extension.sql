-- GRANT needs the extension, and DROP EXTENSION takes every right of the database.
CREATE ROLE bob LOGIN;
CREATE ROLE helpdesk LOGIN;
GRANT "SET USER" (bob) TO helpdesk;
DROP EXTENSION impersonate;
GRANT "SET USER" (bob) TO helpdesk;
\echo :SQLSTATE
REVOKE "SET USER" FROM helpdesk;
\echo :SQLSTATE
-- Roles are as without it.
DROP ROLE helpdesk;
CREATE ROLE helpdesk LOGIN;
CREATE ROLE "SET USER";
GRANT bob TO helpdesk;
REVOKE bob FROM helpdesk;
-- Created again it begins empty; stamps that roles still bear are used again.
CREATE EXTENSION impersonate;
SELECT count(*) FROM impersonate.grants;
GRANT "SET USER" (bob) TO helpdesk;
SELECT grantee, users FROM impersonate.grants;
SELECT impersonate.can_setuser('bob', 'helpdesk');
-- A table of that name that is not the extension's is not believed.
DROP EXTENSION impersonate;
CREATE SCHEMA IF NOT EXISTS impersonate;
CREATE TABLE impersonate.set_user_grant (
    grant_id bigint, grantee regrole, scope text, roles regrole[], admin text, grantor regrole, as_superuser boolean,
    granted_at timestamptz, stamps text[]);
GRANT "SET USER" (bob) TO helpdesk;
\echo :SQLSTATE
