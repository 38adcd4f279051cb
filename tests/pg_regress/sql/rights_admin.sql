-- G3: admin is none, option or only; just the right over any user carries it.
\set rights 'SELECT grantee, scope, users, with_roles, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE sales;
CREATE ROLE use_only LOGIN;
CREATE ROLE use_and_grant LOGIN;
CREATE ROLE grants_only LOGIN;
GRANT "SET USER" TO use_only;
GRANT "SET USER" TO use_and_grant WITH ADMIN OPTION;
SELECT impersonate.grant_set_user('grants_only', admin => 'only');
:rights

-- none may use, option may do both, only just grant.
SELECT r AS role, impersonate.can_setuser('bob', r) AS may_use
  FROM unnest(ARRAY['use_only', 'use_and_grant', 'grants_only']) r;
CREATE ROLE target LOGIN;
SET ROLE use_only;
GRANT "SET USER" (bob) TO target;
SET ROLE use_and_grant;
GRANT "SET USER" (bob) TO target;
SET ROLE grants_only;
GRANT "SET USER" (bob) TO target;
RESET ROLE;
SELECT grantor, users FROM impersonate.grants WHERE grantee = 'target' ORDER BY grant_id;

-- What one may grant, one may grant in any scope and with admin.
SET ROLE grants_only;
GRANT "SET USER" TO target WITH ADMIN OPTION;
RESET ROLE;
SELECT scope, admin, grantor FROM impersonate.grants WHERE grantee = 'target' AND scope = 'any';

-- Granting again adds: none and option, none and only, only and none make option.
GRANT "SET USER" TO use_only WITH ADMIN OPTION;
GRANT "SET USER" TO use_and_grant;
GRANT "SET USER" TO grants_only;
SELECT grantee, admin FROM impersonate.grants WHERE grantee IN ('use_only', 'use_and_grant', 'grants_only') ORDER BY 1;
CREATE ROLE other;
GRANT "SET USER" TO other;
SELECT impersonate.grant_set_user('other', admin => 'only');
SELECT grantee, admin FROM impersonate.grants WHERE grantee = 'other';

-- Lists carry no admin.
GRANT "SET USER" (bob) TO other WITH ADMIN OPTION;
\echo :SQLSTATE
GRANT "SET USER ANY WITH ROLES" (sales) TO other WITH ADMIN OPTION;
\echo :SQLSTATE
SELECT impersonate.grant_set_user('other', with_roles => '{sales}', admin => 'only');
\echo :SQLSTATE
