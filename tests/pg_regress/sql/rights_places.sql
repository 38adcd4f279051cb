-- GRANT "SET USER" wherever GRANT can stand: blocks, functions, prepared; undone with what is undone.
\set rights 'SELECT grantee, scope, users, admin, grantor FROM impersonate.grants ORDER BY grant_id;'
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE x LOGIN;
CREATE ROLE dba LOGIN;
GRANT "SET USER" TO dba WITH ADMIN OPTION;

-- ROLLBACK and savepoints.
BEGIN;
GRANT "SET USER" (bob) TO x;
SAVEPOINT s;
GRANT "SET USER" (carol) TO x;
SELECT users FROM impersonate.grants WHERE grantee = 'x';
SELECT impersonate.can_setuser('carol', 'x');
ROLLBACK TO s;
SELECT users FROM impersonate.grants WHERE grantee = 'x';
SELECT impersonate.can_setuser('carol', 'x');
REVOKE "SET USER" FROM x;
SELECT users FROM impersonate.grants WHERE grantee = 'x';
ROLLBACK TO s;
COMMIT;
:rights
BEGIN;
REVOKE "SET USER" FROM x, dba;
ROLLBACK;
:rights
-- A role that is made, gets rights and is undone.
BEGIN;
CREATE ROLE fleeting LOGIN;
GRANT "SET USER" (bob) TO fleeting;
GRANT "SET USER" (fleeting) TO x;
SELECT impersonate.can_setuser('bob', 'fleeting'), impersonate.can_setuser('fleeting', 'x');
ROLLBACK;
:rights

-- A read-only transaction.
BEGIN READ ONLY;
GRANT "SET USER" (carol) TO x;
\echo :SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
REVOKE "SET USER" FROM x;
\echo :SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT impersonate.grant_set_user('x');
\echo :SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT impersonate.revoke_set_user('x');
\echo :SQLSTATE
ROLLBACK;
:rights

-- DO, with an error caught around it.
DO $$
BEGIN
    GRANT "SET USER" (carol) TO x;
    BEGIN
        GRANT "SET USER" TO x;
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    BEGIN
        GRANT "SET USER" (nobody) TO x;
    EXCEPTION WHEN undefined_object THEN RAISE NOTICE 'caught: %', SQLERRM;
    END;
END $$;
:rights
-- A function has its owner's admin if it is SECURITY DEFINER, its caller's otherwise.
CREATE FUNCTION definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'GRANT "SET USER" (dba) TO x';
CREATE FUNCTION invoker() RETURNS void LANGUAGE plpgsql AS 'BEGIN REVOKE "SET USER" (dba) FROM x; END';
ALTER FUNCTION definer() OWNER TO dba;
SET ROLE bob;
SELECT definer();
SELECT invoker();
\echo :SQLSTATE
RESET ROLE;
SELECT users, grantor FROM impersonate.grants WHERE grantee = 'x' ORDER BY grant_id;
SELECT invoker();
DO $$ BEGIN EXECUTE format('REVOKE "SET USER" (%I) FROM %I', 'carol', 'x'); END $$;
SELECT users, grantor FROM impersonate.grants WHERE grantee = 'x' ORDER BY grant_id;
-- A procedure that commits in between.
CREATE PROCEDURE gives() LANGUAGE plpgsql AS $$
BEGIN
    GRANT "SET USER" (carol) TO x;
    COMMIT;
    GRANT "SET USER" (x) TO carol;
    ROLLBACK;
END $$;
CALL gives();
:rights
-- Several statements in one message, and a failed one that takes the others along.
GRANT "SET USER" (bob) TO carol\; GRANT "SET USER" (nobody) TO carol;
SELECT count(*) FROM impersonate.grants WHERE grantee = 'carol';
-- A function's plan, used again.
CREATE FUNCTION again() RETURNS void LANGUAGE plpgsql AS 'BEGIN GRANT "SET USER" (bob, x) TO carol; END';
SELECT again();
REVOKE "SET USER" FROM carol;
SELECT again();
SELECT again();
SELECT users FROM impersonate.grants WHERE grantee = 'carol';
