-- GRANT runs as its own: operators, functions, types and tables that a grantor puts in front are not used.
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
CREATE ROLE mallory LOGIN;
GRANT "SET USER" TO mallory WITH ADMIN OPTION;
CREATE SCHEMA evil AUTHORIZATION mallory;
GRANT CREATE ON SCHEMA public TO mallory;
\c - mallory
CREATE FUNCTION evil.gotcha(oid, oid) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
CREATE FUNCTION evil.gotcha(text, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
CREATE FUNCTION evil.gotcha(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
CREATE FUNCTION evil.gotcha(regrole, oid) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN true; END $$;
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.gotcha);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.gotcha);
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.gotcha);
CREATE OPERATOR evil.= (LEFTARG = regrole, RIGHTARG = oid, FUNCTION = evil.gotcha);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN 'epoch'; END $$;
CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'evil as %', current_user; RETURN 1; END $$;
CREATE DOMAIN evil.regrole AS text;
CREATE DOMAIN evil.oid AS text;
CREATE TEMP TABLE set_user_grant (grantee oid);
CREATE TEMP TABLE pg_authid (oid oid);
SET search_path = evil, pg_temp, pg_catalog, public;
GRANT "SET USER" (bob) TO carol;
GRANT "SET USER" (mallory) TO carol;
REVOKE "SET USER" (bob) FROM carol;
SELECT pg_catalog.count(*) FROM impersonate.grants;
SELECT impersonate.grant_set_user('bob', users => '{carol}');
SELECT impersonate.can_setuser('mallory', 'carol');
-- The path is as it was afterwards, also after an error.
SHOW search_path;
GRANT "SET USER" (nobody) TO carol;
SHOW search_path;
SELECT current_user;
REVOKE "SET USER" FROM carol, bob;
SHOW search_path;
RESET search_path;

-- Other settings that a caller may have do not get in the way.
SET row_security = off;
SET default_transaction_isolation = 'serializable';
SET standard_conforming_strings = off;
SET escape_string_warning = on;
SET quote_all_identifiers = on;
SET transform_null_equals = on;
SET enable_indexscan = off;
SET DateStyle = 'SQL, DMY';
SET plan_cache_mode = force_generic_plan;
GRANT "SET USER" (bob) TO carol;
SELECT users FROM impersonate.grants WHERE grantee = 'carol';
REVOKE "SET USER" FROM carol;
