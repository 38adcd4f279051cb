-- G3: everything that GRANT and REVOKE can say, the two functions can say too.
\set rights 'SELECT grantee, scope, users, with_roles, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE sales;
CREATE ROLE dba LOGIN;
CREATE ROLE helpdesk LOGIN;

SELECT impersonate.grant_set_user('dba');
SELECT impersonate.grant_set_user('helpdesk', users => '{bob,carol,bob}');
SELECT impersonate.grant_set_user('helpdesk', with_roles => '{sales}');
:rights
-- Both lists at once are two rights.
SELECT impersonate.grant_set_user('dba', ARRAY['bob']::regrole[], ARRAY['sales']::regrole[]);
-- Admin, in any letter case.
SELECT impersonate.grant_set_user('dba', admin => 'Option');
:rights
SELECT impersonate.revoke_set_user('dba', admin_option_for => true);
SELECT impersonate.revoke_set_user('helpdesk', users => '{bob}');
SELECT impersonate.revoke_set_user('helpdesk', with_roles => '{sales}');
SELECT impersonate.revoke_set_user('dba', only_any => true);
:rights
SELECT impersonate.revoke_set_user('dba');
SELECT impersonate.revoke_set_user('dba');
:rights

-- Bad input is a clear error.
SELECT impersonate.grant_set_user(NULL);
\echo :SQLSTATE
SELECT impersonate.grant_set_user('nobody');
\echo :SQLSTATE
SELECT impersonate.grant_set_user(0::regrole);
\echo :SQLSTATE
SELECT impersonate.grant_set_user('-');
\echo :SQLSTATE
SELECT impersonate.grant_set_user(4294967295::oid::regrole);
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', users => '{}');
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', with_roles => '{}');
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', users => ARRAY['bob', NULL]::regrole[]);
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', users => '{0}');
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', admin => 'both');
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', admin => '');
\echo :SQLSTATE
SELECT impersonate.grant_set_user('dba', users => '{bob}', admin => 'option');
\echo :SQLSTATE
SELECT impersonate.revoke_set_user(NULL);
\echo :SQLSTATE
SELECT impersonate.revoke_set_user('helpdesk', users => '{NULL}');
\echo :SQLSTATE
-- An empty list is a mistake here as well, not "nothing" and not "everything".
SELECT impersonate.revoke_set_user('helpdesk', users => '{}');
\echo :SQLSTATE
-- Odd shapes of arrays.
SELECT impersonate.grant_set_user('dba', users => ARRAY[['bob','carol'],['bob','sales']]::regrole[]);
SELECT impersonate.grant_set_user('dba', users => '[5:6]={bob,carol}'::regrole[]);
-- NULL for what is optional is as if left out.
SELECT impersonate.grant_set_user('carol', NULL, NULL, NULL);
:rights

-- Who may call them is who may grant: EXECUTE alone gives nothing.
SET ROLE bob;
SELECT impersonate.grant_set_user('bob');
\echo :SQLSTATE
SELECT impersonate.revoke_set_user('carol');
\echo :SQLSTATE
RESET ROLE;
