-- G7: the rights table is the superuser's; everybody reads the view; stamps are nobody's to give.
CREATE ROLE bob LOGIN;
CREATE ROLE dba LOGIN;
CREATE ROLE maker LOGIN CREATEROLE;
GRANT bob TO maker WITH ADMIN OPTION;
GRANT "SET USER" TO dba WITH ADMIN OPTION;
GRANT "SET USER" (bob) TO maker;

\c - dba
SELECT * FROM impersonate.set_user_grant;
\echo :SQLSTATE
INSERT INTO impersonate.set_user_grant (grantee, scope, grantor, as_superuser) VALUES ('dba', 'any', 'dba', true);
\echo :SQLSTATE
UPDATE impersonate.set_user_grant SET as_superuser = true;
DELETE FROM impersonate.set_user_grant;
TRUNCATE impersonate.set_user_grant;
BEGIN;
LOCK TABLE impersonate.set_user_grant IN ACCESS SHARE MODE;
ROLLBACK;
\copy impersonate.set_user_grant FROM '/dev/null'
ALTER TABLE impersonate.set_user_grant DISABLE TRIGGER stamp;
SELECT setval('impersonate.grant_id_seq', 1);
SELECT nextval('impersonate.grant_id_seq');
CREATE TRIGGER mine BEFORE INSERT ON impersonate.set_user_grant FOR EACH ROW EXECUTE FUNCTION impersonate.stamp_grant();
CREATE TABLE impersonate.mine ();
CREATE RULE mine AS ON INSERT TO impersonate.set_user_grant DO INSTEAD NOTHING;
DROP FUNCTION impersonate.stamp_grant() CASCADE;
ALTER VIEW impersonate.grants OWNER TO dba;
\c - bob
SELECT grantee, scope, users, admin FROM impersonate.grants ORDER BY grant_id;
INSERT INTO impersonate.grants (grantee) VALUES ('bob');

-- Labels: refused by whatever route.
\c - maker
SECURITY LABEL FOR impersonate ON ROLE bob IS 'mine';
\echo :SQLSTATE
SECURITY LABEL ON ROLE bob IS 'mine';
\echo :SQLSTATE
SECURITY LABEL FOR impersonate ON ROLE bob IS NULL;
\echo :SQLSTATE
CREATE TEMP TABLE t ();
SECURITY LABEL FOR impersonate ON TABLE t IS 'mine';
\echo :SQLSTATE
\c - bob
SECURITY LABEL FOR impersonate ON ROLE bob IS 'mine';
\echo :SQLSTATE
\c - postgres
SECURITY LABEL FOR impersonate ON SCHEMA public IS 'no';
\echo :SQLSTATE
SELECT impersonate.can_setuser('bob', 'maker');
-- The trigger functions on tables of one's own, and called as they should not be.
\c - maker
SELECT impersonate.stamp_grant();
SELECT impersonate.audit_guard();
CREATE TEMP TABLE t (grant_id bigint, grantee regrole);
CREATE TRIGGER t1 BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION impersonate.stamp_grant();
INSERT INTO t VALUES (1, 'bob');
\echo :SQLSTATE
DROP TRIGGER t1 ON t;
CREATE TRIGGER t2 AFTER UPDATE OR INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION impersonate.stamp_grant();
INSERT INTO t VALUES (1, 'bob');
UPDATE t SET grant_id = 2;
DROP TRIGGER t2 ON t;
CREATE TRIGGER t2 AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION impersonate.rights_changed();
INSERT INTO t VALUES (1, 'bob');
DROP TRIGGER t2 ON t;
CREATE TRIGGER t3 BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION impersonate.audit_guard();
INSERT INTO t VALUES (1, 'bob');
\echo :SQLSTATE
SELECT count(*) FROM t;
