-- A3 to A5, less, equal and more: the impersonator needs what the target has, and it does no harm to have more.
CREATE ROLE i LOGIN;
CREATE ROLE t LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE r;
CREATE ROLE s;
GRANT "SET USER" (t) TO i;
\set judge 'SELECT criterion, subject, required, held, ok, remedy FROM impersonate.explain_setuser(''t'', ''i'') WHERE criterion NOT IN (''S5'', ''A1'') AND required <> ''nothing'';'
:judge

-- A2: less, equal, more; through others, and through a role that is not inherited from.
GRANT r TO t;
:judge
CREATE ROLE g;
GRANT r TO g;
GRANT g TO i;
:judge
ALTER ROLE i NOINHERIT;
:judge
GRANT s TO i;
:judge
-- A3: admin of the role through a group counts, as it does in Postgres.
GRANT r TO t WITH ADMIN OPTION;
:judge
GRANT r TO g WITH ADMIN OPTION;
:judge
REVOKE r FROM t;
GRANT g TO t;
:judge
REVOKE g FROM t;
:judge

-- A4: attributes one by one.
ALTER ROLE t CREATEDB BYPASSRLS;
ALTER ROLE i CREATEDB CREATEROLE;
:judge
ALTER ROLE i BYPASSRLS;
:judge
ALTER ROLE t NOCREATEDB NOBYPASSRLS SUPERUSER;
:judge
ALTER ROLE i SUPERUSER;
:judge
ALTER ROLE i NOSUPERUSER;
ALTER ROLE t NOSUPERUSER;
-- Parameters: SET, with grant option, through a group, through PUBLIC; custom and oddly written ones.
GRANT SET ON PARAMETER log_statement TO t;
:judge
GRANT SET ON PARAMETER log_statement TO PUBLIC;
:judge
GRANT SET ON PARAMETER log_statement TO t WITH GRANT OPTION;
:judge
GRANT SET ON PARAMETER log_statement TO g WITH GRANT OPTION;
:judge
GRANT ALTER SYSTEM ON PARAMETER log_statement TO i WITH GRANT OPTION;
REVOKE SET ON PARAMETER log_statement FROM g;
:judge
REVOKE SET ON PARAMETER log_statement FROM t, PUBLIC;
REVOKE ALTER SYSTEM ON PARAMETER log_statement FROM i;
GRANT SET, ALTER SYSTEM ON PARAMETER "My.Param" TO t;
:judge
GRANT SET, ALTER SYSTEM ON PARAMETER "My.Param" TO i;
:judge
REVOKE ALL ON PARAMETER "My.Param" FROM t, i;

-- A5: lists.
GRANT "SET USER" (bob) TO t;
:judge
GRANT "SET USER" (bob, carol) TO i;
:judge
GRANT "SET USER" (r) TO t;
:judge
-- The impersonator itself is struck from the target's list.
REVOKE "SET USER" FROM t;
GRANT "SET USER" (i) TO t;
:judge
-- Kind by kind: users do not make up for roles.
GRANT "SET USER ANY WITH ROLES" (r) TO t;
:judge
GRANT "SET USER ANY WITH ROLES" (r, s) TO i;
:judge
-- Any.
GRANT "SET USER" TO t;
:judge
SELECT impersonate.grant_set_user('i', admin => 'only');
:judge
GRANT "SET USER" TO i;
:judge
-- The target's admin needs the impersonator's.
REVOKE "SET USER" FROM i, t;
GRANT "SET USER" TO i;
GRANT "SET USER" TO t WITH ADMIN OPTION;
:judge
GRANT "SET USER" TO i WITH ADMIN OPTION;
:judge
REVOKE "SET USER" FROM t;
SELECT impersonate.grant_set_user('t', admin => 'only');
:judge
REVOKE "SET USER" FROM i;
GRANT "SET USER" (t) TO i;
:judge
SELECT impersonate.grant_set_user('i', admin => 'only');
:judge
-- What the target holds through a group is the target's.
REVOKE "SET USER" FROM t, i;
CREATE ROLE desk;
GRANT "SET USER" (bob) TO desk;
GRANT desk TO t;
GRANT "SET USER" (t) TO i;
:judge
GRANT desk TO i;
:judge
