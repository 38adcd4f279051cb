-- Names of every kind in rights, and those that no role may have.
CREATE ROLE "Bob" LOGIN;
CREATE ROLE "o'brien" LOGIN;
CREATE ROLE "a""b" LOGIN;
CREATE ROLE "first.last" LOGIN;
CREATE ROLE "with space" LOGIN;
CREATE ROLE "bob@example.com" LOGIN;
CREATE ROLE "zoë" LOGIN;
CREATE ROLE "работник" LOGIN;
CREATE ROLE "select" LOGIN;
CREATE ROLE "{x,y}" LOGIN;
CREATE ROLE "back\slash" LOGIN;
CREATE ROLE "16384" LOGIN;
CREATE ROLE "sixty-three bytes are as long as a role's name can be, like so!" LOGIN;
CREATE ROLE helpdesk LOGIN;
GRANT "SET USER" ("Bob", "o'brien", "a""b", "first.last", "with space", "bob@example.com", "zoë", "работник", "select",
    "{x,y}", "back\slash", "16384", "sixty-three bytes are as long as a role's name can be, like so!") TO helpdesk;
SELECT unnest(users) FROM impersonate.grants;
GRANT "SET USER" (helpdesk) TO "a""b", "zoë", "o'brien", "16384";
SELECT grantee, users FROM impersonate.grants WHERE users = '{helpdesk}' ORDER BY grant_id;
SELECT rolname, impersonate.can_setuser(rolname, 'helpdesk') FROM pg_roles
 WHERE rolname <> 'helpdesk' AND rolcanlogin AND NOT rolsuper ORDER BY rolname COLLATE "C";
-- A remedy for any of them is a statement that can be typed.
REVOKE "SET USER" FROM helpdesk;
SELECT remedy FROM pg_roles, impersonate.explain_setuser(rolname, 'helpdesk')
 WHERE rolname <> 'helpdesk' AND rolcanlogin AND NOT rolsuper AND NOT ok ORDER BY rolname COLLATE "C";
-- Letter case and dots are not forgiven: those are other names.
SELECT impersonate.can_setuser('bob', 'helpdesk');
SELECT impersonate.can_setuser('"Bob"', 'helpdesk');
-- Longer than a name: cut by the parser in GRANT, as everywhere; as a string it is nobody's.
SELECT impersonate.can_setuser(repeat('x', 64), 'helpdesk');
SELECT impersonate.can_setuser(rpad('sixty-three bytes are as long as a role''s name can be, like so!', 64, '!'), 'helpdesk');
SELECT impersonate.can_setuser('', 'helpdesk');
SELECT impersonate.can_setuser(NULL, 'helpdesk');
SELECT impersonate.can_setuser('Bob', NULL);
SELECT * FROM impersonate.explain_setuser(NULL, 'helpdesk');
SELECT impersonate.can_setuser('public', 'helpdesk');
SELECT impersonate.can_setuser('none', 'helpdesk');
SELECT impersonate.can_setuser('current_user', 'helpdesk');

-- G7: no role is named like a privilege, in any letter case and however it is made.
CREATE ROLE "SET USER";
\echo :SQLSTATE
CREATE USER "set user any";
\echo :SQLSTATE
CREATE GROUP "Set User Any With Roles";
\echo :SQLSTATE
ALTER ROLE "Bob" RENAME TO "SET user";
\echo :SQLSTATE
ALTER USER "Bob" RENAME TO "SET USER ANY";
ALTER GROUP "Bob" RENAME TO "SET USER ANY WITH ROLES";
DO $$ BEGIN CREATE ROLE "SET USER"; END $$;
CREATE ROLE "SET USER any" IN ROLE helpdesk;
SELECT count(*) FROM pg_roles WHERE rolname ILIKE 'set user%';
-- These are.
CREATE ROLE "SET USERS";
CREATE ROLE set_user;
CREATE ROLE "SET  USER";
CREATE ROLE " SET USER";
GRANT set_user, "SET USERS", "SET  USER", " SET USER" TO helpdesk;
SELECT count(*) FROM pg_auth_members WHERE member = 'helpdesk'::regrole;
