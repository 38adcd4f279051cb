\echo Use "CREATE EXTENSION impersonate" to load this file. \quit

-- Whoever owns the schema can drop what is in it, so a schema that somebody made beforehand will not do.
DO $$
DECLARE
    schema pg_catalog.pg_namespace;
    trouble pg_catalog.text;
BEGIN
    SELECT * INTO schema FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'impersonate';
    IF NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) schema.nspowner) THEN
        trouble := 'schema "impersonate" belongs to a role that is not a superuser';
    ELSIF EXISTS (SELECT FROM pg_catalog.aclexplode(schema.nspacl) a
                   WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
                     AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r
                                      WHERE r.oid OPERATOR(pg_catalog.=) a.grantee AND r.rolsuper)) THEN
        trouble := 'a role that is not a superuser may create in schema "impersonate"';
    END IF;
    IF trouble IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = trouble,
            HINT = 'DROP SCHEMA impersonate, then CREATE EXTENSION impersonate makes its own.';
    END IF;
END
$$;

CREATE FUNCTION impersonate.library_version() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'library_version_wrapper';
COMMENT ON FUNCTION impersonate.library_version() IS
    'version of the library that the server has loaded; the extension in this database must be of the same';
CREATE FUNCTION impersonate.require_library() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'require_library_wrapper';
COMMENT ON FUNCTION impersonate.require_library() IS
    'raises if the loaded library is older than the extension in this database; for the extension''s scripts';
-- A server that was not restarted still has the library of before.
SELECT impersonate.require_library();

GRANT USAGE ON SCHEMA impersonate TO PUBLIC;
COMMENT ON SCHEMA impersonate IS 'who may act as whom, who does now, and what was done';

---------------------------------------------------------------------------------------------------------------------
-- Rights
---------------------------------------------------------------------------------------------------------------------
CREATE SEQUENCE impersonate.grant_id_seq;

CREATE TABLE impersonate.set_user_grant (
    grant_id     bigint      NOT NULL DEFAULT nextval('impersonate.grant_id_seq'),
    grantee      regrole     NOT NULL,
    scope        text        NOT NULL CHECK (scope IN ('users', 'any', 'any with roles')),
    role         regrole     NOT NULL,
    admin        text        NOT NULL DEFAULT 'none' CHECK (admin IN ('none', 'option', 'only')),
    grantor      regrole     NOT NULL,
    as_superuser boolean     NOT NULL,
    granted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    stamps       text[]      NOT NULL DEFAULT '{}',
    PRIMARY KEY (grant_id, role),
    CHECK (scope = 'any' OR admin = 'none'),
    CHECK ((scope = 'any') = (role::oid = 0))
);
CREATE UNIQUE INDEX set_user_grant_grantee ON impersonate.set_user_grant (grantee, scope, role, grantor);
ALTER SEQUENCE impersonate.grant_id_seq OWNED BY impersonate.set_user_grant.grant_id;
COMMENT ON SEQUENCE impersonate.grant_id_seq IS 'numbers of rights, none of which is ever used again';
REVOKE ALL ON impersonate.set_user_grant FROM PUBLIC;

COMMENT ON TABLE impersonate.set_user_grant IS
    'SET USER rights as stored; written by GRANT and REVOKE alone. Read impersonate.grants instead';
COMMENT ON COLUMN impersonate.set_user_grant.grant_id IS 'the right; one with a list has a row for each role on it';
COMMENT ON COLUMN impersonate.set_user_grant.role IS
    'scope users: a role that may be acted as; any with roles: a role that a target may be made of; any: none';
COMMENT ON COLUMN impersonate.set_user_grant.grantor IS 'none when a superuser granted it who is gone since';
COMMENT ON COLUMN impersonate.set_user_grant.as_superuser IS
    'granted by a superuser: does not hang on the grantor''s own admin option';
COMMENT ON COLUMN impersonate.set_user_grant.stamps IS
    'identity stamps of grantee, grantor and role, in this order; a dropped role''s stamp never comes back';

CREATE FUNCTION impersonate.stamp_grant() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'stamp_grant_wrapper';
COMMENT ON FUNCTION impersonate.stamp_grant() IS
    'gives a restored right the stamps of this cluster''s roles, and leaves out one whose roles are gone';
CREATE TRIGGER stamp BEFORE INSERT ON impersonate.set_user_grant
    FOR EACH ROW EXECUTE FUNCTION impersonate.stamp_grant();

CREATE FUNCTION impersonate.rights_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'rights_changed_wrapper';
COMMENT ON FUNCTION impersonate.rights_changed() IS
    'has the impersonations that rest on rights judged again when the table is written by hand';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.set_user_grant
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.rights_changed();
ALTER TABLE impersonate.set_user_grant ENABLE ALWAYS TRIGGER changed;

SELECT pg_catalog.pg_extension_config_dump('impersonate.grant_id_seq', '');

CREATE FUNCTION impersonate.live_grants(
    OUT grant_id bigint, OUT grantee oid, OUT scope text, OUT roles oid[], OUT admin text, OUT grantor oid,
    OUT as_superuser boolean, OUT granted_at timestamptz) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'live_grants_wrapper';
COMMENT ON FUNCTION impersonate.live_grants() IS 'rights whose roles still exist; what impersonate.grants shows';

-- What pg_dump takes in place of the table's own rows: live rights alone, with names for OIDs, in stamps. A name that is
-- missing where the dump goes then costs one row and not all.
CREATE FUNCTION impersonate.dumped_grants() RETURNS SETOF impersonate.set_user_grant
    LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$
    SELECT g.grant_id, 0::pg_catalog.oid::pg_catalog.regrole, g.scope, 0::pg_catalog.oid::pg_catalog.regrole, g.admin,
           0::pg_catalog.oid::pg_catalog.regrole, g.as_superuser, g.granted_at,
           ARRAY[pg_catalog.pg_get_userbyid(g.grantee),
                 COALESCE(pg_catalog.pg_get_userbyid(g.grantor), ''),
                 COALESCE(pg_catalog.pg_get_userbyid(r.role), '')]::pg_catalog.text[]
      FROM impersonate.live_grants() g LEFT JOIN LATERAL pg_catalog.unnest(g.roles) r(role) ON true
$$;
COMMENT ON FUNCTION impersonate.dumped_grants() IS 'the rights by role name, for pg_dump';
SELECT pg_catalog.pg_extension_config_dump('impersonate.set_user_grant',
    'WHERE false UNION ALL SELECT * FROM impersonate.dumped_grants()');

-- Whose privileges the accesses under a right need, where that is not for impersonate.scope to say.
CREATE TABLE impersonate.grant_access (
    grant_id bigint NOT NULL PRIMARY KEY,
    access   text   NOT NULL CHECK (access IN ('target', 'intersection'))
);
REVOKE ALL ON impersonate.grant_access FROM PUBLIC;
COMMENT ON TABLE impersonate.grant_access IS 'what impersonate.set_grant_scope() stored; numbers of rights are never used again';
SELECT pg_catalog.pg_extension_config_dump('impersonate.grant_access', '');

CREATE FUNCTION impersonate.set_grant_scope(grant_id bigint, access text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF access IS NULL OR access NOT IN ('target', 'intersection') THEN
        RAISE EXCEPTION 'invalid scope: "%"', COALESCE(access, '') USING
            ERRCODE = 'invalid_parameter_value', HINT = 'Valid values are "target" and "intersection".';
    END IF;
    PERFORM FROM impersonate.live_grants() g WHERE g.grant_id = set_grant_scope.grant_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'right % does not exist', COALESCE(grant_id::text, 'NULL') USING ERRCODE = 'undefined_object';
    END IF;
    DELETE FROM impersonate.grant_access a WHERE a.grant_id = set_grant_scope.grant_id;
    INSERT INTO impersonate.grant_access VALUES (set_grant_scope.grant_id, set_grant_scope.access);
END
$$;
COMMENT ON FUNCTION impersonate.set_grant_scope(bigint, text) IS
    'intersection: impersonations by this right need the impersonator''s own privileges as well; target: as the server is set';
REVOKE ALL ON FUNCTION impersonate.set_grant_scope(bigint, text) FROM PUBLIC;

CREATE VIEW impersonate.grants AS
    SELECT g.grant_id,
           pg_catalog.pg_get_userbyid(g.grantee) AS grantee,
           g.scope,
           CASE WHEN g.scope = 'users' THEN n.names END AS users,
           CASE WHEN g.scope = 'any with roles' THEN n.names END AS with_roles,
           g.admin,
           pg_catalog.pg_get_userbyid(g.grantor) AS grantor,
           g.granted_at,
           COALESCE((SELECT a.access FROM impersonate.grant_access a WHERE a.grant_id = g.grant_id), 'target') AS access
      FROM impersonate.live_grants() g,
           LATERAL (SELECT pg_catalog.array_agg(pg_catalog.pg_get_userbyid(r.oid) ORDER BY r.n) AS names
                      FROM ROWS FROM (pg_catalog.unnest(g.roles)) WITH ORDINALITY AS r(oid, n)) n;
COMMENT ON VIEW impersonate.grants IS 'who may act as whom, in what scope, with what admin, granted by whom, when';
COMMENT ON COLUMN impersonate.grants.grant_id IS 'the right, as in column grant_id of impersonate.audit';
COMMENT ON COLUMN impersonate.grants.grantee IS 'who may act as others; a group stands for its members';
COMMENT ON COLUMN impersonate.grants.scope IS 'users, any, or any with roles';
COMMENT ON COLUMN impersonate.grants.users IS 'scope users: who may be acted as';
COMMENT ON COLUMN impersonate.grants.with_roles IS 'scope any with roles: what a target may be made of';
COMMENT ON COLUMN impersonate.grants.admin IS 'none: may use it; option: may use it and grant it; only: may grant it and not use it';
COMMENT ON COLUMN impersonate.grants.grantor IS 'none when a superuser granted it who is gone since';
COMMENT ON COLUMN impersonate.grants.access IS 'target, or intersection: see impersonate.set_grant_scope()';
GRANT SELECT ON impersonate.grants TO PUBLIC;

CREATE FUNCTION impersonate.grant_set_user(
    grantee regrole, users regrole[] DEFAULT NULL, with_roles regrole[] DEFAULT NULL, admin text DEFAULT 'none')
    RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'grant_set_user_wrapper';
COMMENT ON FUNCTION impersonate.grant_set_user(regrole, regrole[], regrole[], text) IS
    'what GRANT "SET USER" does: any role, or just users, or roles made of with_roles; admin none, option or only';

CREATE FUNCTION impersonate.revoke_set_user(
    grantee regrole, users regrole[] DEFAULT NULL, with_roles regrole[] DEFAULT NULL,
    only_any boolean DEFAULT false, admin_option_for boolean DEFAULT false, cascade boolean DEFAULT false)
    RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'revoke_set_user_wrapper';
COMMENT ON FUNCTION impersonate.revoke_set_user(regrole, regrole[], regrole[], boolean, boolean, boolean) IS
    'what REVOKE "SET USER" does: every right of grantee, or just the listed users, roles, or the any scope';

---------------------------------------------------------------------------------------------------------------------
-- Names from outside
---------------------------------------------------------------------------------------------------------------------
CREATE SEQUENCE impersonate.user_mapping_position_seq;

CREATE TABLE impersonate.user_mapping (
    external_name text   NOT NULL PRIMARY KEY
        CHECK (external_name <> '')
        -- A pattern that is none is an error here, and not at somebody's switch.
        CHECK (NOT starts_with(external_name, '/') OR ('' ~ substr(external_name, 2)) IS NOT NULL),
    role          text   NOT NULL CHECK (role <> ''),
    position      bigint NOT NULL DEFAULT nextval('impersonate.user_mapping_position_seq')
);
ALTER SEQUENCE impersonate.user_mapping_position_seq OWNED BY impersonate.user_mapping.position;
COMMENT ON SEQUENCE impersonate.user_mapping_position_seq IS 'the order in which names are looked through';
REVOKE ALL ON impersonate.user_mapping FROM PUBLIC;
COMMENT ON TABLE impersonate.user_mapping IS
    'names that are no roles, such as e-mail addresses, and the roles that they stand for as a target';
COMMENT ON COLUMN impersonate.user_mapping.external_name IS
    $$the name, or a regular expression after a slash: '/^(.*)@example\.com$'$$;
COMMENT ON COLUMN impersonate.user_mapping.role IS $$the role; in it \1 is what the expression has in parentheses$$;
COMMENT ON COLUMN impersonate.user_mapping.position IS 'the first that fits, in this order, counts';
SELECT pg_catalog.pg_extension_config_dump('impersonate.user_mapping', '');
SELECT pg_catalog.pg_extension_config_dump('impersonate.user_mapping_position_seq', '');

---------------------------------------------------------------------------------------------------------------------
-- The switch
---------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION pg_catalog.setuser(
    target text DEFAULT NULL, reason text DEFAULT NULL, local boolean DEFAULT false, cookie text DEFAULT NULL,
    no_revert boolean DEFAULT false, with_settings boolean DEFAULT false)
    RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'setuser_wrapper';
COMMENT ON FUNCTION pg_catalog.setuser(text, text, boolean, text, boolean, boolean) IS
    'act as target until setuser(), or until the end of the transaction with local; returns the role now in force';

CREATE PROCEDURE impersonate.impersonate_user(target text, reason text DEFAULT NULL)
    LANGUAGE c AS 'MODULE_PATHNAME', 'impersonate_user_wrapper';
COMMENT ON PROCEDURE impersonate.impersonate_user(text, text) IS 'act as target, or end with NULL: setuser() as a CALL';

CREATE FUNCTION impersonate.set_config(setting text, value text, is_local boolean)
    RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_config_wrapper';
COMMENT ON FUNCTION impersonate.set_config(text, text, boolean) IS
    'what a client''s SELECT set_config(''impersonate.target'', ...) calls in place of pg_catalog.set_config()';

CREATE FUNCTION impersonate.explain_setuser(
    target text, impersonator text DEFAULT session_user,
    OUT criterion text, OUT subject text, OUT required text, OUT held text, OUT ok boolean, OUT remedy text)
    RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'explain_setuser_wrapper';
COMMENT ON FUNCTION impersonate.explain_setuser(text, text) IS
    'each condition for impersonator to act as target, whether it holds, and the statement that would cure it';

CREATE FUNCTION impersonate.can_setuser(target text, impersonator text DEFAULT session_user)
    RETURNS boolean LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'can_setuser_wrapper';
COMMENT ON FUNCTION impersonate.can_setuser(text, text) IS 'whether setuser(target) would succeed for impersonator';

---------------------------------------------------------------------------------------------------------------------
-- Who is impersonating now
---------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION impersonate.active_impersonations(
    OUT pid integer, OUT datid oid, OUT impersonator oid, OUT target oid, OUT since timestamptz, OUT reason text,
    OUT impersonation_id uuid, OUT judged_at timestamptz, OUT judged boolean) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'active_impersonations_wrapper';
COMMENT ON FUNCTION impersonate.active_impersonations() IS
    'the impersonations of the cluster that the caller may see: all with pg_read_all_stats, else its own';

CREATE VIEW impersonate.active AS
    SELECT a.pid,
           d.datname AS database,
           pg_catalog.pg_get_userbyid(a.impersonator) AS impersonator,
           pg_catalog.pg_get_userbyid(a.target) AS target,
           a.since,
           a.reason,
           a.impersonation_id,
           s.query_start AS last_statement_start,
           a.judged_at,
           a.judged,
           pg_catalog.format('SELECT impersonate.terminate(%s);', a.pid) AS how_to_end
      FROM impersonate.active_impersonations() a
      LEFT JOIN pg_catalog.pg_database d ON d.oid = a.datid
      LEFT JOIN LATERAL pg_catalog.pg_stat_get_activity(a.pid) s ON true;
COMMENT ON VIEW impersonate.active IS 'every active impersonation of the cluster';
COMMENT ON COLUMN impersonate.active.pid IS 'the process of the connection, as in pg_stat_activity';
COMMENT ON COLUMN impersonate.active.impersonator IS 'who logged in';
COMMENT ON COLUMN impersonate.active.target IS 'the role that is acted as';
COMMENT ON COLUMN impersonate.active.reason IS 'as given, the first 256 bytes';
COMMENT ON COLUMN impersonate.active.impersonation_id IS 'the same in all rows of impersonate.audit that belong to it';
COMMENT ON COLUMN impersonate.active.last_statement_start IS 'as query_start in pg_stat_activity';
COMMENT ON COLUMN impersonate.active.judged_at IS 'when its criteria were last judged';
COMMENT ON COLUMN impersonate.active.judged IS 'judged since the last statement that changed roles or rights';
COMMENT ON COLUMN impersonate.active.how_to_end IS 'for superusers and members of pg_signal_backend';
GRANT SELECT ON impersonate.active TO PUBLIC;

CREATE FUNCTION impersonate.terminate(pid integer, timeout bigint DEFAULT 5000) RETURNS boolean
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'terminate_wrapper';
COMMENT ON FUNCTION impersonate.terminate(integer, bigint) IS
    'ends the connection of an impersonation, on record; whether it was gone within timeout milliseconds';

---------------------------------------------------------------------------------------------------------------------
-- Audit
---------------------------------------------------------------------------------------------------------------------
-- By time, so that old rows leave at once and indexes stay small. The writer makes the partitions, a month each, named
-- audit_YYYYMM, and members of the extension. There is no default partition: making one beside it would have to wait
-- for everybody who reads. The key leads with event_id, and thereby is the index on it.
CREATE TABLE impersonate.audit (
    event_id          bigint      NOT NULL,
    event_time        timestamptz NOT NULL,
    event             text        NOT NULL,
    user_name         text        NOT NULL,
    session_user_name text        NOT NULL,
    role_name         text        NOT NULL,
    impersonation_id  uuid,
    database          text        NOT NULL,
    node              text,
    pid               integer     NOT NULL,
    session_id        text        NOT NULL,
    application_name  text,
    client_addr       inet,
    command_tag       text,
    statement         text,
    parameters        text[],
    relations         text[],
    row_count         bigint,
    duration          interval,
    sqlstate          text        NOT NULL,
    grant_id          bigint,
    reason            text,
    detail            jsonb,
    hash              bytea,
    PRIMARY KEY (event_id, event_time)
) PARTITION BY RANGE (event_time);
REVOKE ALL ON impersonate.audit FROM PUBLIC;
COMMENT ON TABLE impersonate.audit IS 'one row per event; written by the audit writer alone, whatever became of the transaction';
COMMENT ON COLUMN impersonate.audit.event IS
    'SETUSER, RESETUSER, DENIED, STATEMENT, GRANT, REVOKE, VIOLATION, TERMINATED, PURGE or DESTINATION';
COMMENT ON COLUMN impersonate.audit.event_time IS 'when it happened; of a statement, when it began';
COMMENT ON COLUMN impersonate.audit.impersonation_id IS 'the same in all rows of one impersonation';
COMMENT ON COLUMN impersonate.audit.statement IS 'its text, without passwords and cookies';
COMMENT ON COLUMN impersonate.audit.parameters IS 'the values that the statement was given, as text';
COMMENT ON COLUMN impersonate.audit.relations IS 'what the statement touched, and how: {"hr.emp (select, update)"}';
COMMENT ON COLUMN impersonate.audit.sqlstate IS '00000 when it worked';
COMMENT ON COLUMN impersonate.audit.reason IS 'as given by the impersonator';
COMMENT ON COLUMN impersonate.audit.detail IS 'what else there is to know: how an impersonation ended, what was missing, ...';
COMMENT ON COLUMN impersonate.audit.event_id IS 'strictly increasing, without gaps';
COMMENT ON COLUMN impersonate.audit.user_name IS 'the impersonated role while impersonating, else the login';
COMMENT ON COLUMN impersonate.audit.session_user_name IS 'the impersonator: the role that logged in';
COMMENT ON COLUMN impersonate.audit.role_name IS 'the role in force, which differs from user_name after a SET ROLE';
COMMENT ON COLUMN impersonate.audit.node IS 'the server that it happened on: impersonate.node_name, or cluster_name';
COMMENT ON COLUMN impersonate.audit.session_id IS 'as %c in log_line_prefix';
COMMENT ON COLUMN impersonate.audit.grant_id IS 'the SET USER right that let the switch through; none for superusers and oneself';
COMMENT ON COLUMN impersonate.audit.hash IS
    'SHA-256 over the hash of the row before and this row; impersonate.audit_verify() compares';

CREATE TABLE impersonate.audit_state (
    event_id  bigint NOT NULL,
    hash      bytea  NOT NULL,
    stored_id bigint NOT NULL
);
REVOKE ALL ON impersonate.audit_state FROM PUBLIC;
COMMENT ON TABLE impersonate.audit_state IS
    'one row, written by the audit writer with each batch: the newest event, so that it is missed if it is removed';
COMMENT ON COLUMN impersonate.audit_state.event_id IS 'the newest event''s number';
COMMENT ON COLUMN impersonate.audit_state.stored_id IS
    'the newest event in impersonate.audit; those after it went to the server log alone';

CREATE TABLE impersonate.audit_purged (
    last   bigint      NOT NULL,
    hash   bytea       NOT NULL,
    rows   bigint      NOT NULL,
    before timestamptz NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    by     text        NOT NULL DEFAULT session_user
);
REVOKE ALL ON impersonate.audit_purged FROM PUBLIC;
COMMENT ON TABLE impersonate.audit_purged IS
    'what impersonate.audit_purge() took away; the chain begins after the newest. Each has its PURGE event as well';
COMMENT ON COLUMN impersonate.audit_purged.last IS 'event_id of the newest row that left';
COMMENT ON COLUMN impersonate.audit_purged.hash IS 'that row''s hash';

CREATE TABLE impersonate.audit_node (
    spool_id    uuid        NOT NULL PRIMARY KEY,
    node        text        NOT NULL,
    position    bigint      NOT NULL,
    hash        bytea       NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    retired_at  timestamptz
);
REVOKE ALL ON impersonate.audit_node FROM PUBLIC;
COMMENT ON TABLE impersonate.audit_node IS
    'spools of standbys, and how much of each is in impersonate.audit; written by the audit writer with the rows';
COMMENT ON COLUMN impersonate.audit_node.position IS 'of the newest event of the spool that is stored';
COMMENT ON COLUMN impersonate.audit_node.hash IS 'the spool''s own hash, of that event';
COMMENT ON COLUMN impersonate.audit_node.retired_at IS 'nothing of it is taken any more: see impersonate.retire_node()';

CREATE FUNCTION impersonate.audit_guard() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'audit_guard_wrapper';
COMMENT ON FUNCTION impersonate.audit_guard() IS 'refuses whatever is not the audit writer';
-- A statement's triggers are those of the table that it names, so each partition has the same.
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.audit
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.audit_state
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.audit_node
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.audit_purged
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard();

-- A dump takes the audit along, but what is restored is another server's: it must not pass for this one's.
CREATE TABLE impersonate.audit_restored (
    origin      text        NOT NULL,
    dumped_at   timestamptz NOT NULL,
    LIKE impersonate.audit
);
CREATE INDEX audit_restored_origin ON impersonate.audit_restored (origin, event_id, event_time);
REVOKE ALL ON impersonate.audit_restored FROM PUBLIC;
COMMENT ON TABLE impersonate.audit_restored IS
    'rows of impersonate.audit that a dump brought here; TRUNCATE it when they are not needed any more';
COMMENT ON COLUMN impersonate.audit_restored.origin IS
    'where they were written: the server''s system identifier and the database; see impersonate.audit_verify()';
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON impersonate.audit_restored
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard();
SELECT pg_catalog.pg_extension_config_dump('impersonate.audit_restored',
    $$WHERE true UNION ALL
      SELECT (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c) || '/' || pg_catalog.current_database(),
             pg_catalog.now(), event_id, event_time, event, user_name, session_user_name, role_name, impersonation_id,
             database, node, pid, session_id, application_name, client_addr, command_tag, statement, parameters, relations,
             row_count, duration, sqlstate, grant_id, reason, detail, hash
        FROM impersonate.audit$$);

CREATE FUNCTION impersonate.audit_sync() RETURNS void
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'audit_sync_wrapper';
COMMENT ON FUNCTION impersonate.audit_sync() IS
    'returns when every event of this database that was queued before the call is stored in impersonate.audit';

CREATE FUNCTION impersonate.audit_head(OUT event_id bigint, OUT hash bytea) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'audit_head_wrapper';
COMMENT ON FUNCTION impersonate.audit_head() IS
    'number and hash of the newest event, to be kept where nobody here can reach it: see impersonate.audit_verify()';
REVOKE ALL ON FUNCTION impersonate.audit_head() FROM PUBLIC;

CREATE FUNCTION impersonate.audit_verify(
    "from" bigint DEFAULT NULL, "to" bigint DEFAULT NULL, head bytea DEFAULT NULL, restored_from text DEFAULT NULL,
    OUT ok boolean, OUT rows_checked bigint, OUT first_bad bigint, OUT damage text, OUT detail text) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_verify_wrapper';
COMMENT ON FUNCTION impersonate.audit_verify(bigint, bigint, bytea, text) IS
    'whether the rows of impersonate.audit are those that were stored: names the first that is not, and what became of it';
REVOKE ALL ON FUNCTION impersonate.audit_verify(bigint, bigint, bytea, text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Standbys
---------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION impersonate.audit_receive(node text, system_identifier text, spool_id uuid, events bytea)
    RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_receive_wrapper';
COMMENT ON FUNCTION impersonate.audit_receive(text, text, uuid, bytea) IS
    'takes a standby''s audit events over, once and in order; returns the position up to which they are stored';
REVOKE ALL ON FUNCTION impersonate.audit_receive(text, text, uuid, bytea) FROM PUBLIC;

CREATE FUNCTION impersonate.may_send(node text, system_identifier text)
    RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'may_send_wrapper';
COMMENT ON FUNCTION impersonate.may_send(text, text) IS 'raises unless that is another node of this cluster';
REVOKE ALL ON FUNCTION impersonate.may_send(text, text) FROM PUBLIC;

CREATE FUNCTION impersonate.retire_node(node text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'retire_node_wrapper';
COMMENT ON FUNCTION impersonate.retire_node(text) IS
    'takes nothing more of the audit spool that a standby of this name has sent of, so that it may begin another';
REVOKE ALL ON FUNCTION impersonate.retire_node(text) FROM PUBLIC;

CREATE FUNCTION impersonate.this_node() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'this_node_wrapper';
COMMENT ON FUNCTION impersonate.this_node() IS 'the name of this server in the audit: impersonate.node_name, or cluster_name';

CREATE FUNCTION impersonate.audit_spools(
    OUT datid oid, OUT node text, OUT system_identifier text, OUT spool_id uuid, OUT state text, OUT segments bigint,
    OUT bytes bigint, OUT oldest_position bigint, OUT newest_position bigint, OUT confirmed_position bigint,
    OUT waiting_since timestamptz, OUT shipper_pid integer, OUT connected boolean, OUT answered_at timestamptz,
    OUT last_error_at timestamptz, OUT last_error_sqlstate text, OUT last_error text) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 4 AS 'MODULE_PATHNAME', 'audit_spools_wrapper';
COMMENT ON FUNCTION impersonate.audit_spools() IS 'what impersonate.audit_spool shows';
REVOKE ALL ON FUNCTION impersonate.audit_spools() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION impersonate.audit_spools() TO pg_read_all_stats;

CREATE VIEW impersonate.audit_spool AS
    SELECT d.datname AS database, s.node, s.state = 'own' AS own, s.state,
           s.newest_position - COALESCE(s.confirmed_position, s.oldest_position - 1) AS waiting_events,
           s.waiting_since, s.segments, s.bytes, s.oldest_position, s.newest_position, s.confirmed_position,
           s.shipper_pid, s.connected, s.answered_at, s.last_error_at, s.last_error_sqlstate, s.last_error,
           s.spool_id, s.system_identifier
      FROM impersonate.audit_spools() s
      LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid;
COMMENT ON VIEW impersonate.audit_spool IS
    'audit events that this server keeps, as a standby, until the primary has them: a line for each spool';
COMMENT ON COLUMN impersonate.audit_spool.own IS 'its events are sent to the primary; the others are left alone';
COMMENT ON COLUMN impersonate.audit_spool.state IS
    'own; retired (impersonate.retire_node()); dropped (with its database); foreign (another node''s). See impersonate.discard_spool()';
COMMENT ON COLUMN impersonate.audit_spool.waiting_events IS
    'events that the primary has not confirmed; of a spool that is not sent any more, those that are left';
COMMENT ON COLUMN impersonate.audit_spool.waiting_since IS 'time of the oldest of them';
COMMENT ON COLUMN impersonate.audit_spool.segments IS
    'files; one leaves when its last event has come back in the replayed copy of impersonate.audit_node';
REVOKE ALL ON impersonate.audit_spool FROM PUBLIC;
GRANT SELECT ON impersonate.audit_spool TO pg_read_all_stats;

CREATE FUNCTION impersonate.audit_spooled(
    spool uuid DEFAULT NULL, OUT spool_id uuid, OUT "position" bigint, OUT event jsonb) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'audit_spooled_wrapper';
COMMENT ON FUNCTION impersonate.audit_spooled(uuid) IS
    'the audit events of this database that are in this server''s own spool, sent or not; or those of a spool that is left alone';
REVOKE ALL ON FUNCTION impersonate.audit_spooled(uuid) FROM PUBLIC;

CREATE FUNCTION impersonate.discard_spool(spool_id uuid) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'discard_spool_wrapper';
COMMENT ON FUNCTION impersonate.discard_spool(uuid) IS
    'removes a retired, dropped or foreign audit spool from this server''s disk; returns how many of its events were not sent';
REVOKE ALL ON FUNCTION impersonate.discard_spool(uuid) FROM PUBLIC;

CREATE TABLE impersonate.node_report (
    node        text        NOT NULL PRIMARY KEY,
    reported_at timestamptz NOT NULL,
    active      jsonb       NOT NULL
);
REVOKE ALL ON impersonate.node_report FROM PUBLIC;
COMMENT ON TABLE impersonate.node_report IS 'who impersonates on standbys, as they last said. Read impersonate.active_nodes instead';

CREATE FUNCTION impersonate.report_node(node text, system_identifier text, active jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM impersonate.may_send(node, system_identifier);
    -- What cannot be read is an error here, and not for everybody who looks.
    IF jsonb_typeof(report_node.active) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'active impersonations must be an array' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM a.* FROM jsonb_to_recordset(report_node.active) a(database text, pid integer, impersonator text, target text,
        since timestamptz, reason text, impersonation_id uuid);
    INSERT INTO impersonate.node_report AS r VALUES (report_node.node, clock_timestamp(), report_node.active)
        ON CONFLICT ON CONSTRAINT node_report_pkey
        DO UPDATE SET reported_at = excluded.reported_at, active = excluded.active;
END
$$;
COMMENT ON FUNCTION impersonate.report_node(text, text, jsonb) IS 'a standby says who impersonates on it';
REVOKE ALL ON FUNCTION impersonate.report_node(text, text, jsonb) FROM PUBLIC;

CREATE VIEW impersonate.active_nodes AS
    SELECT r.node, a.database, a.pid, a.impersonator, a.target, a.since, a.reason, a.impersonation_id, r.reported_at
      FROM impersonate.node_report r,
           LATERAL jsonb_to_recordset(r.active) a(database text, pid integer, impersonator text, target text,
               since timestamptz, reason text, impersonation_id uuid)
     WHERE r.node IS DISTINCT FROM impersonate.this_node()
    UNION ALL
    SELECT impersonate.this_node(), a.database, a.pid, a.impersonator, a.target, a.since, a.reason,
           a.impersonation_id, clock_timestamp()
      FROM impersonate.active a
     WHERE a.database = current_database();
COMMENT ON VIEW impersonate.active_nodes IS
    'who impersonates in this database, on this server and, as they last said, on its standbys';
COMMENT ON COLUMN impersonate.active_nodes.reported_at IS 'for a standby, when it last said so: every ten seconds, or at a change';
REVOKE ALL ON impersonate.active_nodes FROM PUBLIC;
GRANT SELECT ON impersonate.active_nodes TO pg_read_all_stats;

CREATE FUNCTION impersonate.audit_purge(before timestamptz) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_purge_wrapper';
COMMENT ON FUNCTION impersonate.audit_purge(timestamptz) IS
    'removes the oldest rows of impersonate.audit, up to the first that is not before this time; returns how many';
REVOKE ALL ON FUNCTION impersonate.audit_purge(timestamptz) FROM PUBLIC;

-- With the caller's own privileges: whoever may read the audit may make a report of it.
CREATE FUNCTION impersonate.report("from" timestamptz DEFAULT NULL, "to" timestamptz DEFAULT NULL) RETURNS text
    LANGUAGE c STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'report_wrapper';
COMMENT ON FUNCTION impersonate.report(timestamptz, timestamptz) IS
    'the audit of a period as a page of HTML; from its first event, and to now, unless given';

---------------------------------------------------------------------------------------------------------------------
-- The audit's own health
---------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION impersonate.audit_queues(
    OUT datid oid, OUT writer text, OUT writer_pid integer, OUT queued_events bigint, OUT queued_bytes bigint,
    OUT reserved_bytes bigint, OUT highest_bytes bigint, OUT queue_bytes bigint, OUT stored_events bigint,
    OUT waiting_backends integer, OUT lag interval, OUT failures integer, OUT last_error_at timestamptz,
    OUT last_error_sqlstate text, OUT last_error text) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 8 AS 'MODULE_PATHNAME', 'audit_queues_wrapper';
COMMENT ON FUNCTION impersonate.audit_queues() IS 'the audit''s queues in shared memory; what impersonate.audit_status shows';
REVOKE ALL ON FUNCTION impersonate.audit_queues() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION impersonate.audit_queues() TO pg_read_all_stats;

CREATE VIEW impersonate.audit_status AS
    SELECT d.datname AS database,
           q.queued_events,
           q.stored_events,
           q.waiting_backends,
           q.queued_bytes,
           q.reserved_bytes,
           q.queue_bytes,
           q.highest_bytes,
           round(q.highest_bytes::numeric / q.queue_bytes, 3) AS highest_fill,
           q.writer,
           q.writer_pid,
           q.lag,
           q.failures,
           q.last_error_at,
           q.last_error_sqlstate,
           q.last_error
      FROM impersonate.audit_queues() q
      LEFT JOIN pg_catalog.pg_database d ON d.oid = q.datid;
COMMENT ON VIEW impersonate.audit_status IS
    'each database that has had audit events since the server''s start: what waits to be stored, and how its writer does';
COMMENT ON COLUMN impersonate.audit_status.queued_events IS 'events that are not stored yet';
COMMENT ON COLUMN impersonate.audit_status.stored_events IS 'events stored since the database has its queue';
COMMENT ON COLUMN impersonate.audit_status.waiting_backends IS 'backends that wait for room or for an event to be stored';
COMMENT ON COLUMN impersonate.audit_status.reserved_bytes IS 'room for events to come of statements under way';
COMMENT ON COLUMN impersonate.audit_status.highest_fill IS 'the largest share of the queue that was ever in use';
COMMENT ON COLUMN impersonate.audit_status.writer IS 'absent (when there is nothing to do), starting or running';
COMMENT ON COLUMN impersonate.audit_status.lag IS 'age of the oldest event that is not stored';
COMMENT ON COLUMN impersonate.audit_status.failures IS 'failures of the writer since it last stored something';
REVOKE ALL ON impersonate.audit_status FROM PUBLIC;
GRANT SELECT ON impersonate.audit_status TO pg_read_all_stats;

CREATE VIEW impersonate.audit_metrics AS
    SELECT COALESCE(s.database, p.database, '') AS datname,
           COALESCE(s.queued_events, 0)::float8 AS queued_events,
           COALESCE(s.stored_events, 0)::float8 AS stored_events_total,
           COALESCE(s.waiting_backends, 0)::float8 AS waiting_backends,
           COALESCE(s.queued_bytes, 0)::float8 AS queued_bytes,
           COALESCE(s.reserved_bytes, 0)::float8 AS reserved_bytes,
           COALESCE(s.queue_bytes, 0)::float8 AS queue_size_bytes,
           COALESCE(s.highest_bytes, 0)::float8 AS queue_highest_bytes,
           CASE s.writer WHEN 'running' THEN 1 ELSE 0 END::float8 AS writer_up,
           COALESCE(extract(epoch FROM s.lag), 0)::float8 AS lag_seconds,
           COALESCE(s.failures, 0)::float8 AS writer_failures,
           COALESCE(extract(epoch FROM s.last_error_at), 0)::float8 AS last_error_timestamp_seconds,
           COALESCE(p.bytes, 0)::float8 AS spool_bytes,
           COALESCE(pg_size_bytes(current_setting('impersonate.audit_spool_limit', true)), 0)::float8 AS spool_limit_bytes,
           COALESCE(p.waiting_events, 0)::float8 AS spool_waiting_events,
           COALESCE(extract(epoch FROM clock_timestamp() - p.waiting_since), 0)::float8 AS spool_waiting_seconds,
           COALESCE(p.left_alone_bytes, 0)::float8 AS spool_left_alone_bytes,
           CASE WHEN p.connected THEN 1 ELSE 0 END::float8 AS shipper_up,
           COALESCE(extract(epoch FROM p.answered_at), 0)::float8 AS shipper_answered_timestamp_seconds,
           COALESCE(extract(epoch FROM p.last_error_at), 0)::float8 AS shipper_last_error_timestamp_seconds
      FROM impersonate.audit_status s
           FULL JOIN (SELECT a.database, sum(a.bytes) FILTER (WHERE a.own) AS bytes,
                             sum(a.bytes) FILTER (WHERE NOT a.own) AS left_alone_bytes,
                             sum(a.waiting_events) FILTER (WHERE a.own) AS waiting_events,
                             min(a.waiting_since) FILTER (WHERE a.own) AS waiting_since, bool_or(a.connected) AS connected,
                             max(a.answered_at) AS answered_at, max(a.last_error_at) AS last_error_at
                        FROM impersonate.audit_spool a GROUP BY a.database) p
                  ON COALESCE(p.database, '') = COALESCE(s.database, '');
COMMENT ON VIEW impersonate.audit_metrics IS
    'audit_status and audit_spool for SQL exporters of Prometheus: datname is the label, each other column a number in base units';
COMMENT ON COLUMN impersonate.audit_metrics.spool_waiting_events IS 'on a standby: events that the primary has not confirmed';
COMMENT ON COLUMN impersonate.audit_metrics.spool_waiting_seconds IS 'age of the oldest of them';
COMMENT ON COLUMN impersonate.audit_metrics.spool_left_alone_bytes IS 'of retired, dropped and foreign spools';
REVOKE ALL ON impersonate.audit_metrics FROM PUBLIC;
GRANT SELECT ON impersonate.audit_metrics TO pg_read_all_stats;

CREATE VIEW impersonate.node_metrics AS
    SELECT current_database() AS datname,
           COALESCE(a.node, r.node) AS node,
           COALESCE(a.events, 0)::float8 AS received_events_total,
           COALESCE(extract(epoch FROM a.received_at), 0)::float8 AS received_timestamp_seconds,
           COALESCE(extract(epoch FROM r.reported_at), 0)::float8 AS reported_timestamp_seconds,
           COALESCE(jsonb_array_length(r.active), 0)::float8 AS active_impersonations
      FROM (SELECT n.node, sum(n.position) AS events, max(n.received_at) AS received_at
              FROM impersonate.audit_node n GROUP BY n.node) a
           FULL JOIN impersonate.node_report r ON r.node = a.node;
COMMENT ON VIEW impersonate.node_metrics IS
    'what this database''s standbys have sent and reported, for SQL exporters of Prometheus: datname and node are labels';
REVOKE ALL ON impersonate.node_metrics FROM PUBLIC;
GRANT SELECT ON impersonate.node_metrics TO pg_read_all_stats;
REVOKE ALL ON impersonate.audit_metrics FROM PUBLIC;
GRANT SELECT ON impersonate.audit_metrics TO pg_read_all_stats;

---------------------------------------------------------------------------------------------------------------------
-- What auditors ask. Each is granted by itself: GRANT SELECT ON impersonate.audit_impersonations TO auditor.
---------------------------------------------------------------------------------------------------------------------
CREATE VIEW impersonate.audit_impersonations AS
    SELECT i.impersonation_id, i.impersonator, i.target, i.began,
           CASE WHEN i.last_turn = 'RESETUSER' THEN i.last_turn_at END AS ended,
           CASE WHEN i.last_turn = 'RESETUSER' THEN i.last_cause END AS how_it_ended,
           i.reason, i.statements, i.failures, i.denied,
           COALESCE(t.tables, '{}') AS tables,
           i.database, i.pid, i.session_id, i.client_addr, i.application_name, i.grant_id, i.first_event, i.last_event
      FROM (SELECT a.impersonation_id,
                   min(a.session_user_name) AS impersonator,
                   min(a.user_name) AS target,
                   min(a.event_time) AS began,
                   (array_agg(a.event ORDER BY a.event_id DESC)
                        FILTER (WHERE a.event IN ('SETUSER', 'RESETUSER')))[1] AS last_turn,
                   max(a.event_time) FILTER (WHERE a.event = 'RESETUSER') AS last_turn_at,
                   (array_agg(a.detail->>'cause' ORDER BY a.event_id DESC)
                        FILTER (WHERE a.event IN ('SETUSER', 'RESETUSER')))[1] AS last_cause,
                   (array_agg(a.reason ORDER BY a.event_id) FILTER (WHERE a.event = 'SETUSER'))[1] AS reason,
                   count(*) FILTER (WHERE a.event = 'STATEMENT' AND a.detail->>'phase' IS DISTINCT FROM 'begun') AS statements,
                   count(*) FILTER (WHERE a.event = 'STATEMENT' AND a.sqlstate <> '00000') AS failures,
                   count(*) FILTER (WHERE a.event IN ('DENIED', 'VIOLATION')) AS denied,
                   min(a.database) AS database,
                   min(a.pid) AS pid,
                   min(a.session_id) AS session_id,
                   (array_agg(a.client_addr ORDER BY a.event_id) FILTER (WHERE a.event = 'SETUSER'))[1] AS client_addr,
                   (array_agg(a.application_name ORDER BY a.event_id)
                        FILTER (WHERE a.event = 'SETUSER'))[1] AS application_name,
                   max(a.grant_id) AS grant_id,
                   min(a.event_id) AS first_event,
                   max(a.event_id) AS last_event
              FROM impersonate.audit a
             WHERE a.impersonation_id IS NOT NULL
             GROUP BY a.impersonation_id) i
      LEFT JOIN (SELECT a.impersonation_id,
                        array_agg(DISTINCT regexp_replace(r.relation, ' [(][a-z, ]*[)]$', '')) AS tables
                   FROM impersonate.audit a, unnest(a.relations) r(relation)
                  WHERE a.impersonation_id IS NOT NULL
                  GROUP BY a.impersonation_id) t ON t.impersonation_id = i.impersonation_id;
COMMENT ON VIEW impersonate.audit_impersonations IS
    'a line for each impersonation: who, whom, from when to when, how it ended, and what was done';
COMMENT ON COLUMN impersonate.audit_impersonations.impersonator IS 'who logged in';
COMMENT ON COLUMN impersonate.audit_impersonations.target IS 'as whom it was done';
COMMENT ON COLUMN impersonate.audit_impersonations.how_it_ended IS
    'asked, switched, rollback, end of transaction, discard, disconnect or terminated';
COMMENT ON COLUMN impersonate.audit_impersonations.denied IS 'switches that were refused meanwhile, and violations';
COMMENT ON COLUMN impersonate.audit_impersonations.ended IS 'none while it lasts, or when a crash ended it';
COMMENT ON COLUMN impersonate.audit_impersonations.statements IS 'statements on record, failures included; not the first of the two rows that some have';
COMMENT ON COLUMN impersonate.audit_impersonations.tables IS 'relations that its statements touched';
REVOKE ALL ON impersonate.audit_impersonations FROM PUBLIC;

CREATE VIEW impersonate.audit_tables AS
    SELECT regexp_replace(r.relation, ' [(][a-z, ]*[)]$', '') AS relation,
           string_to_array(substring(r.relation, ' [(]([a-z, ]*)[)]$'), ', ') AS access,
           a.event_id, a.event_time,
           a.session_user_name AS person,
           a.user_name AS acted_as,
           a.role_name, a.command_tag, a.statement, a.row_count, a.sqlstate, a.reason, a.impersonation_id, a.database,
           a.client_addr, a.application_name
      FROM impersonate.audit a, unnest(a.relations) r(relation)
     WHERE a.detail->>'phase' IS DISTINCT FROM 'begun';
COMMENT ON VIEW impersonate.audit_tables IS
    'what happened to a table, and who really did it: a line for each relation that a recorded statement touched';
COMMENT ON COLUMN impersonate.audit_tables.relation IS
    'schema.name, quoted as quote_ident() does: WHERE relation = ''public.emp''';
COMMENT ON COLUMN impersonate.audit_tables.access IS 'select, insert, update, delete and others';
COMMENT ON COLUMN impersonate.audit_tables.person IS 'who logged in';
COMMENT ON COLUMN impersonate.audit_tables.acted_as IS 'as whom it was done';
REVOKE ALL ON impersonate.audit_tables FROM PUBLIC;

CREATE VIEW impersonate.audit_denied AS
    SELECT a.session_user_name AS person,
           a.detail->>'target' AS target,
           a.command_tag,
           count(*) AS attempts,
           min(a.event_time) AS first_attempt,
           max(a.event_time) AS last_attempt,
           (array_agg(a.sqlstate ORDER BY a.event_id DESC))[1] AS last_sqlstate,
           (array_agg(a.detail->>'message' ORDER BY a.event_id DESC))[1] AS last_message,
           (array_agg(a.detail->>'detail' ORDER BY a.event_id DESC))[1] AS last_detail,
           array_agg(DISTINCT a.client_addr) FILTER (WHERE a.client_addr IS NOT NULL) AS client_addrs
      FROM impersonate.audit a
     WHERE a.event = 'DENIED'
     GROUP BY a.session_user_name, a.detail->>'target', a.command_tag;
COMMENT ON VIEW impersonate.audit_denied IS 'what was refused, by person and by the role that was wanted';
COMMENT ON COLUMN impersonate.audit_denied.person IS 'who logged in';
COMMENT ON COLUMN impersonate.audit_denied.target IS 'the role that was wanted; none for what was no switch';
REVOKE ALL ON impersonate.audit_denied FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Projects: what can be seen of a target
---------------------------------------------------------------------------------------------------------------------
CREATE TABLE impersonate.project_list (
    name       text        NOT NULL PRIMARY KEY CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE impersonate.project_content (
    project text NOT NULL REFERENCES impersonate.project_list ON DELETE CASCADE,
    kind    text NOT NULL CHECK (kind IN ('relation', 'schema')),
    object  oid  NOT NULL,
    name    text,
    UNIQUE (project, kind, object)
);
CREATE TABLE impersonate.project_member (
    project text    NOT NULL REFERENCES impersonate.project_list ON DELETE CASCADE,
    role    oid     NOT NULL,
    stamp   text    NOT NULL,
    current boolean NOT NULL DEFAULT false,
    UNIQUE (project, role)
);
CREATE UNIQUE INDEX project_member_current ON impersonate.project_member (role) WHERE current;
REVOKE ALL ON impersonate.project_list, impersonate.project_content, impersonate.project_member FROM PUBLIC;
COMMENT ON TABLE impersonate.project_list IS 'projects as stored. Read impersonate.projects instead';
COMMENT ON TABLE impersonate.project_content IS 'what is in projects: relations, and schemas with all that is in them';
COMMENT ON COLUMN impersonate.project_content.name IS 'in a dump alone, where object is 0';
COMMENT ON TABLE impersonate.project_member IS 'who may choose a project, and whose current project it is';
COMMENT ON COLUMN impersonate.project_member.stamp IS
    'the role''s identity stamp, which a later role with its OID does not bear; in a dump its name, where role is 0';

CREATE FUNCTION impersonate.projects_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'projects_changed_wrapper';
COMMENT ON FUNCTION impersonate.projects_changed() IS 'has sessions that a project limits read it again';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.project_content
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.projects_changed();
ALTER TABLE impersonate.project_content ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.project_member
    FOR EACH STATEMENT EXECUTE FUNCTION impersonate.projects_changed();
ALTER TABLE impersonate.project_member ENABLE ALWAYS TRIGGER changed;

CREATE FUNCTION impersonate.project_dropped() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'project_dropped_wrapper';
COMMENT ON FUNCTION impersonate.project_dropped() IS 'takes relations and schemas that are dropped out of projects';
CREATE EVENT TRIGGER impersonate_project_dropped ON sql_drop EXECUTE FUNCTION impersonate.project_dropped();
COMMENT ON EVENT TRIGGER impersonate_project_dropped IS 'takes relations and schemas that are dropped out of projects';

CREATE FUNCTION impersonate.stamp_role(role oid) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'stamp_role_wrapper';
COMMENT ON FUNCTION impersonate.stamp_role(oid) IS 'the identity stamp of a role, given to it if it has none';
REVOKE ALL ON FUNCTION impersonate.stamp_role(oid) FROM PUBLIC;

-- A dump has names in place of OIDs. What is not where it is restored is left out.
CREATE FUNCTION impersonate.project_restored() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_TABLE_NAME = 'project_content' THEN
        IF NEW.object = 0 THEN
            NEW.object := CASE NEW.kind WHEN 'schema' THEN to_regnamespace(NEW.name)::oid ELSE to_regclass(NEW.name)::oid END;
            IF NEW.object IS NULL THEN
                RAISE WARNING '% % does not exist, project "%" is restored without it', NEW.kind, NEW.name, NEW.project;
                RETURN NULL;
            END IF;
            NEW.name := NULL;
        END IF;
    ELSIF NEW.role = 0 THEN
        NEW.role := (SELECT r.oid FROM pg_roles r WHERE r.rolname = NEW.stamp);
        IF NEW.role IS NULL THEN
            RAISE WARNING 'role "%" does not exist, project "%" is restored without it', NEW.stamp, NEW.project;
            RETURN NULL;
        END IF;
        NEW.stamp := impersonate.stamp_role(NEW.role);
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION impersonate.project_restored() IS 'finds what a dump names';
CREATE TRIGGER restored BEFORE INSERT ON impersonate.project_content
    FOR EACH ROW EXECUTE FUNCTION impersonate.project_restored();
CREATE TRIGGER restored BEFORE INSERT ON impersonate.project_member
    FOR EACH ROW EXECUTE FUNCTION impersonate.project_restored();

CREATE FUNCTION impersonate.dumped_project_content() RETURNS SETOF impersonate.project_content
    LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT c.project, c.kind, 0::pg_catalog.oid,
           CASE c.kind WHEN 'schema' THEN c.object::pg_catalog.regnamespace::text
                       ELSE c.object::pg_catalog.regclass::text END
      FROM impersonate.project_content c
$$;
COMMENT ON FUNCTION impersonate.dumped_project_content() IS 'what is in projects by name, for pg_dump';
CREATE FUNCTION impersonate.dumped_project_members() RETURNS SETOF impersonate.project_member
    LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT m.project, 0::pg_catalog.oid, r.rolname::pg_catalog.text, m.current
      FROM impersonate.project_member m
      JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) m.role
      JOIN pg_catalog.pg_shseclabel l ON l.objoid OPERATOR(pg_catalog.=) r.oid
           AND l.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass
           AND l.provider OPERATOR(pg_catalog.=) 'impersonate' AND l.label OPERATOR(pg_catalog.=) m.stamp
$$;
COMMENT ON FUNCTION impersonate.dumped_project_members() IS 'members of projects by name, for pg_dump';
SELECT pg_catalog.pg_extension_config_dump('impersonate.project_list', '');
SELECT pg_catalog.pg_extension_config_dump('impersonate.project_content',
    'WHERE false UNION ALL SELECT * FROM impersonate.dumped_project_content()');
SELECT pg_catalog.pg_extension_config_dump('impersonate.project_member',
    'WHERE false UNION ALL SELECT * FROM impersonate.dumped_project_members()');

CREATE FUNCTION impersonate.create_project(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION 'a project needs a name' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO impersonate.project_list VALUES (create_project.name);
EXCEPTION WHEN unique_violation THEN
    RAISE EXCEPTION 'project "%" already exists', name USING ERRCODE = 'duplicate_object';
END
$$;
COMMENT ON FUNCTION impersonate.create_project(text) IS 'makes a project: relations, and the roles that may choose it';

CREATE FUNCTION impersonate.existing_project(name text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM impersonate.project_list p WHERE p.name = existing_project.name FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'project "%" does not exist', COALESCE(name, '') USING
            ERRCODE = 'undefined_object', HINT = 'SELECT name FROM impersonate.projects; shows those that do.';
    END IF;
    RETURN name;
END
$$;
COMMENT ON FUNCTION impersonate.existing_project(text) IS 'raises for a project that does not exist';

CREATE FUNCTION impersonate.drop_project(name text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT impersonate.existing_project($1);
    DELETE FROM impersonate.project_list p WHERE p.name = $1
$$;
COMMENT ON FUNCTION impersonate.drop_project(text) IS 'drops a project; nobody is limited by it any more';

CREATE FUNCTION impersonate.add_to_project(project text, VARIADIC relations regclass[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    added oid;
BEGIN
    PERFORM impersonate.existing_project(project);
    FOREACH added IN ARRAY relations LOOP
        PERFORM FROM pg_class c WHERE c.oid = added AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't';
        IF NOT FOUND THEN
            RAISE EXCEPTION '"%" cannot be in a project', COALESCE(added::regclass::text, 'NULL') USING
                ERRCODE = 'wrong_object_type',
                DETAIL = 'A project has tables, views, materialized views, foreign tables and sequences that last.';
        END IF;
        INSERT INTO impersonate.project_content VALUES (add_to_project.project, 'relation', added) ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;
COMMENT ON FUNCTION impersonate.add_to_project(text, regclass[]) IS
    'adds relations; a partitioned table brings its partitions, a table the sequences of its columns';

CREATE FUNCTION impersonate.remove_from_project(project text, VARIADIC relations regclass[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT impersonate.existing_project($1);
    DELETE FROM impersonate.project_content c
     WHERE c.project = $1 AND c.kind = 'relation' AND c.object = ANY ($2::oid[])
$$;
COMMENT ON FUNCTION impersonate.remove_from_project(text, regclass[]) IS 'takes relations out of a project';

CREATE FUNCTION impersonate.add_schema_to_project(project text, schema regnamespace) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM impersonate.existing_project(project);
    PERFORM FROM pg_namespace n WHERE n.oid = schema;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'schema "%" does not exist', COALESCE(schema::text, 'NULL') USING ERRCODE = 'invalid_schema_name';
    END IF;
    INSERT INTO impersonate.project_content VALUES (add_schema_to_project.project, 'schema', schema) ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION impersonate.add_schema_to_project(text, regnamespace) IS
    'adds all relations of a schema, those to come as well';

CREATE FUNCTION impersonate.remove_schema_from_project(project text, schema regnamespace) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT impersonate.existing_project($1);
    DELETE FROM impersonate.project_content c
     WHERE c.project = $1 AND c.kind = 'schema' AND c.object = $2::oid
$$;
COMMENT ON FUNCTION impersonate.remove_schema_from_project(text, regnamespace) IS 'takes a schema out of a project';

CREATE FUNCTION impersonate.add_project_member(project text, member regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mark text := impersonate.stamp_role(member);
BEGIN
    PERFORM impersonate.existing_project(project);
    IF mark IS NULL THEN
        RAISE EXCEPTION 'role "%" does not exist', COALESCE(member::text, 'NULL') USING ERRCODE = 'undefined_object';
    END IF;
    -- Of a role that had this OID.
    DELETE FROM impersonate.project_member m WHERE m.role = member AND m.stamp <> mark;
    INSERT INTO impersonate.project_member VALUES (add_project_member.project, member, mark) ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION impersonate.add_project_member(text, regrole) IS 'lets a role choose the project with set_project()';

CREATE FUNCTION impersonate.remove_project_member(project text, member regrole) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT impersonate.existing_project($1);
    DELETE FROM impersonate.project_member m WHERE m.project = $1 AND m.role = $2::oid
$$;
COMMENT ON FUNCTION impersonate.remove_project_member(text, regrole) IS
    'takes a member out of a project, and the limit from it';

CREATE FUNCTION impersonate.set_project(project text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- By its name as it is: a cast to regrole would fold its letters.
    self CONSTANT oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = session_user);
    mark CONSTANT text := impersonate.stamp_role(self);
BEGIN
    UPDATE impersonate.project_member m SET current = false WHERE m.role = self AND m.current;
    IF project IS NULL OR project = '' THEN
        RETURN;
    END IF;
    PERFORM impersonate.existing_project(project);
    UPDATE impersonate.project_member m SET current = true
     WHERE m.project = set_project.project AND m.role = self AND m.stamp = mark;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role "%" is not a member of project "%"', session_user, project USING
            ERRCODE = 'insufficient_privilege',
            HINT = format('SELECT impersonate.add_project_member(%L, %L);', project, quote_ident(session_user));
    END IF;
END
$$;
COMMENT ON FUNCTION impersonate.set_project(text) IS
    'the project that limits what those see who act as the session user; none with NULL or an empty name';

REVOKE ALL ON FUNCTION impersonate.create_project(text), impersonate.drop_project(text), impersonate.existing_project(text),
    impersonate.add_to_project(text, regclass[]), impersonate.remove_from_project(text, regclass[]),
    impersonate.add_schema_to_project(text, regnamespace), impersonate.remove_schema_from_project(text, regnamespace),
    impersonate.add_project_member(text, regrole), impersonate.remove_project_member(text, regrole)
    FROM PUBLIC;

CREATE VIEW impersonate.projects AS
    WITH member AS (
        SELECT m.project, pg_catalog.pg_get_userbyid(m.role) AS name, m.current
          FROM impersonate.project_member m
          JOIN pg_catalog.pg_shseclabel l ON l.objoid = m.role AND l.provider = 'impersonate' AND l.label = m.stamp
               AND l.classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass)
    SELECT p.name,
           (SELECT pg_catalog.array_agg(c.object::pg_catalog.regclass::text ORDER BY 1)
              FROM impersonate.project_content c WHERE c.project = p.name AND c.kind = 'relation') AS relations,
           (SELECT pg_catalog.array_agg(c.object::pg_catalog.regnamespace::text ORDER BY 1)
              FROM impersonate.project_content c WHERE c.project = p.name AND c.kind = 'schema') AS schemas,
           (SELECT pg_catalog.array_agg(m.name ORDER BY m.name) FROM member m WHERE m.project = p.name) AS members,
           (SELECT pg_catalog.array_agg(m.name ORDER BY m.name) FROM member m WHERE m.project = p.name AND m.current)
               AS current_for,
           p.created_at
      FROM impersonate.project_list p;
COMMENT ON VIEW impersonate.projects IS 'projects: what is in them, who may choose them, whose current project they are';
COMMENT ON COLUMN impersonate.projects.schemas IS 'schemas whose relations are all in the project';
COMMENT ON COLUMN impersonate.projects.current_for IS 'members who chose it: whoever acts as one of them sees no more than this';
GRANT SELECT ON impersonate.projects TO PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Help
---------------------------------------------------------------------------------------------------------------------
-- What each means is said once: by the object's comment, or by the setting. A new one needs a line here.
CREATE FUNCTION impersonate.help(OUT name text, OUT kind text, OUT meaning text, OUT example text) RETURNS SETOF record
    LANGUAGE sql STABLE ROWS 70 SET search_path = pg_catalog, pg_temp AS $help$
    WITH line(place, name, kind, example) AS (
        SELECT row_number() OVER (), v.* FROM (VALUES
        ('"SET USER"', 'privilege', $$GRANT "SET USER" (bob) TO anna$$),
        ('"SET USER ANY"', 'privilege', $$GRANT "SET USER ANY" TO dba WITH ADMIN OPTION$$),
        ('"SET USER ANY WITH ROLES"', 'privilege', $$GRANT "SET USER ANY WITH ROLES" (staff) TO lead$$),
        ('impersonate.grant_set_user', 'function', $$SELECT impersonate.grant_set_user('anna', users => '{bob}')$$),
        ('impersonate.revoke_set_user', 'function', $$SELECT impersonate.revoke_set_user('anna', users => '{bob}')$$),
        ('impersonate.set_grant_scope', 'function',
         $$SELECT impersonate.set_grant_scope(grant_id, 'intersection') FROM impersonate.grants WHERE grantee = 'anna'$$),
        ('impersonate.grants', 'view', $$SELECT * FROM impersonate.grants$$),
        ('impersonate.can_setuser', 'function', $$SELECT impersonate.can_setuser('bob')$$),
        ('impersonate.explain_setuser', 'function', $$SELECT * FROM impersonate.explain_setuser('bob', 'anna')$$),
        ('setuser', 'function', $$SELECT setuser('bob', reason => 'INC-4711')$$),
        ('impersonate.impersonate_user', 'procedure', $$CALL impersonate.impersonate_user('bob')$$),
        ('impersonate.active', 'view', $$SELECT pid, impersonator, target, since FROM impersonate.active$$),
        ('impersonate.terminate', 'function',
         $$SELECT impersonate.terminate(pid) FROM impersonate.active WHERE target = 'bob'$$),
        ('impersonate.user_mapping', 'table',
         $$INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('bob@example.com', 'bob')$$),
        ('impersonate.projects', 'view', $$SELECT name, relations, members FROM impersonate.projects$$),
        ('impersonate.create_project', 'function', $$SELECT impersonate.create_project('fraud')$$),
        ('impersonate.add_to_project', 'function', $$SELECT impersonate.add_to_project('fraud', 'public.customer')$$),
        ('impersonate.add_schema_to_project', 'function',
         $$SELECT impersonate.add_schema_to_project('fraud', 'public')$$),
        ('impersonate.add_project_member', 'function', $$SELECT impersonate.add_project_member('fraud', 'bob')$$),
        ('impersonate.set_project', 'function', $$SELECT impersonate.set_project(NULL)$$),
        ('impersonate.remove_from_project', 'function',
         $$SELECT impersonate.remove_from_project('fraud', 'public.customer')$$),
        ('impersonate.remove_schema_from_project', 'function',
         $$SELECT impersonate.remove_schema_from_project('fraud', 'public')$$),
        ('impersonate.remove_project_member', 'function', $$SELECT impersonate.remove_project_member('fraud', 'bob')$$),
        ('impersonate.drop_project', 'function', $$SELECT impersonate.drop_project('fraud')$$),
        ('impersonate.audit', 'table',
         $$SELECT event_time, event, session_user_name, user_name, statement FROM impersonate.audit ORDER BY event_id$$),
        ('impersonate.audit_sync', 'function', $$SELECT impersonate.audit_sync()$$),
        ('impersonate.audit_impersonations', 'view',
         $$SELECT * FROM impersonate.audit_impersonations WHERE began > now() - interval '1 day'$$),
        ('impersonate.audit_tables', 'view',
         $$SELECT * FROM impersonate.audit_tables WHERE relation = 'public.customer'$$),
        ('impersonate.audit_denied', 'view', $$SELECT * FROM impersonate.audit_denied ORDER BY last_attempt DESC$$),
        ('impersonate.report', 'function', $$SELECT impersonate.report(now() - interval '30 days', now())$$),
        ('impersonate.audit_verify', 'function', $$SELECT * FROM impersonate.audit_verify()$$),
        ('impersonate.audit_head', 'function', $$SELECT * FROM impersonate.audit_head()$$),
        ('impersonate.audit_purge', 'function', $$SELECT impersonate.audit_purge(now() - interval '2 years')$$),
        ('impersonate.audit_purged', 'table', $$SELECT * FROM impersonate.audit_purged ORDER BY last$$),
        ('impersonate.audit_restored', 'table', $$SELECT DISTINCT origin, dumped_at FROM impersonate.audit_restored$$),
        ('impersonate.audit_status', 'view', $$SELECT * FROM impersonate.audit_status$$),
        ('impersonate.audit_metrics', 'view', $$SELECT * FROM impersonate.audit_metrics$$),
        ('impersonate.node_metrics', 'view', $$SELECT * FROM impersonate.node_metrics$$),
        ('impersonate.audit_spool', 'view', $$SELECT * FROM impersonate.audit_spool$$),
        ('impersonate.audit_spooled', 'function', $$SELECT * FROM impersonate.audit_spooled()$$),
        ('impersonate.audit_node', 'table', $$SELECT node, position, received_at FROM impersonate.audit_node$$),
        ('impersonate.active_nodes', 'view', $$SELECT node, impersonator, target, since FROM impersonate.active_nodes$$),
        ('impersonate.this_node', 'function', $$SELECT impersonate.this_node()$$),
        ('impersonate.retire_node', 'function', $$SELECT impersonate.retire_node('north')$$),
        ('impersonate.discard_spool', 'function',
         $$SELECT impersonate.discard_spool(spool_id) FROM impersonate.audit_spool WHERE state = 'retired'$$),
        ('impersonate.audit_receive', 'function',
         $$GRANT EXECUTE ON FUNCTION impersonate.audit_receive, impersonate.report_node TO anna$$),
        ('impersonate.report_node', 'function',
         $$GRANT EXECUTE ON FUNCTION impersonate.report_node, impersonate.audit_receive TO anna$$),
        ('impersonate.library_version', 'function', $$SELECT impersonate.library_version()$$),
        ('impersonate.help', 'function', $$SELECT name, meaning FROM impersonate.help() WHERE kind = 'setting'$$),
        ('impersonate.target', 'setting', $$SET impersonate.target = 'bob'$$),
        ('impersonate.reason', 'setting', $$SET impersonate.reason = 'INC-4711'$$),
        ('impersonate.require_reason', 'setting', $$ALTER SYSTEM SET impersonate.require_reason = '^INC-[0-9]+$'$$),
        ('impersonate.require_login', 'setting', $$ALTER ROLE anna SET impersonate.require_login = off$$),
        ('impersonate.on_violation', 'setting', $$SET impersonate.on_violation = terminate$$),
        ('impersonate.criteria', 'setting', $$ALTER ROLE anna SET impersonate.criteria = full$$),
        ('impersonate.capture_set_role', 'setting', $$ALTER ROLE anna SET impersonate.capture_set_role = on$$),
        ('impersonate.exempt_roles', 'setting', $$ALTER SYSTEM SET impersonate.exempt_roles = 'owner, payroll'$$),
        ('impersonate.scope', 'setting', $$ALTER ROLE anna SET impersonate.scope = intersection$$),
        ('impersonate.project', 'setting', $$SHOW impersonate.project$$),
        ('impersonate.local_only', 'setting', $$ALTER ROLE anna SET impersonate.local_only = on$$),
        ('impersonate.audit_statements', 'setting', $$ALTER ROLE anna SET impersonate.audit_statements = 'all'$$),
        ('impersonate.audit_wait', 'setting', $$ALTER ROLE anna SET impersonate.audit_wait = flush$$),
        ('impersonate.audit_wait_limit', 'setting', $$ALTER ROLE anna SET impersonate.audit_wait_limit = '10s'$$),
        ('impersonate.audit_nested', 'setting', $$ALTER ROLE anna SET impersonate.audit_nested = on$$),
        ('impersonate.audit_parameters', 'setting', $$ALTER ROLE anna SET impersonate.audit_parameters = off$$),
        ('impersonate.audit_statement_limit', 'setting',
         $$ALTER ROLE anna SET impersonate.audit_statement_limit = '16kB'$$),
        ('impersonate.audit_destination', 'setting', $$ALTER SYSTEM SET impersonate.audit_destination = 'both'$$),
        ('impersonate.audit_queue_size', 'setting', $$ALTER SYSTEM SET impersonate.audit_queue_size = '16MB'$$),
        ('impersonate.audit_queues', 'setting', $$ALTER SYSTEM SET impersonate.audit_queues = 32$$),
        ('impersonate.audit_writer_idle', 'setting', $$ALTER SYSTEM SET impersonate.audit_writer_idle = '1min'$$),
        ('impersonate.node_name', 'setting', $$ALTER SYSTEM SET impersonate.node_name = 'north'$$),
        ('impersonate.primary_conninfo', 'setting',
         $$ALTER SYSTEM SET impersonate.primary_conninfo = 'host=primary.example.com user=shipper'$$),
        ('impersonate.audit_spool_limit', 'setting', $$ALTER SYSTEM SET impersonate.audit_spool_limit = '4GB'$$),
        ('impersonate.audit_spool_directory', 'setting',
         $$ALTER SYSTEM SET impersonate.audit_spool_directory = '/var/lib/postgresql/spools'$$)
        ) v),
    member(name, meaning) AS (
        SELECT CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || COALESCE(p.proname, c.relname),
               COALESCE(obj_description(p.oid, 'pg_proc'), obj_description(c.oid, 'pg_class'))
          FROM pg_depend d
               LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
               LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
               JOIN pg_namespace n ON n.oid = COALESCE(p.pronamespace, c.relnamespace)
         WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
           AND d.refobjid = (SELECT e.oid FROM pg_extension e WHERE e.extname = 'impersonate'))
    SELECT line.name, line.kind,
           CASE line.kind
               WHEN 'privilege' THEN CASE line.name
                   WHEN '"SET USER"' THEN 'the right to act as the listed users; without a list, as any user'
                   WHEN '"SET USER ANY"' THEN 'the right to act as any user; with admin option, to grant it on'
                   ELSE 'the right to act as any user that is made of the listed roles' END
               WHEN 'setting' THEN COALESCE(rtrim(s.short_desc, '.'), 'known while impersonate is in shared_preload_libraries')
               ELSE member.meaning END,
           line.example || ';'
      FROM line
           LEFT JOIN member ON member.name = line.name AND line.kind <> 'setting'
           LEFT JOIN pg_settings s ON s.name = line.name AND line.kind = 'setting'
     ORDER BY line.place
$help$;
COMMENT ON FUNCTION impersonate.help() IS 'what there is: each function, view, table and setting, what it means, and an example';

---------------------------------------------------------------------------------------------------------------------
-- Default privileges of whoever creates the extension are for what they make themselves. Nobody gets anything of this
-- but what is meant for them.
---------------------------------------------------------------------------------------------------------------------
DO $$
DECLARE
    statement pg_catalog.text;
BEGIN
    FOR statement IN
        SELECT pg_catalog.format('REVOKE ALL ON %s %s FROM %s CASCADE', m.kind, m.name,
                                 CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                      ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
          FROM (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
                       c.oid::pg_catalog.regclass::text AS name, c.relowner AS owner, c.relacl AS acl,
                       CASE WHEN c.relname IN ('grants', 'active', 'projects') THEN 0
                            WHEN c.relname IN ('audit_spool', 'active_nodes', 'audit_status', 'audit_metrics',
                                               'node_metrics') THEN 'pg_read_all_stats'::regrole::oid END AS meant_for,
                       'SELECT' AS meant
                  FROM pg_catalog.pg_class c
                 WHERE c.relnamespace = 'impersonate'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
                UNION ALL
                SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                       p.oid::pg_catalog.regprocedure::text, p.proowner, p.proacl,
                       CASE WHEN p.proname IN ('audit_spools', 'audit_queues') THEN 'pg_read_all_stats'::regrole::oid
                            ELSE 0 END,
                       'EXECUTE'
                  FROM pg_catalog.pg_proc p
                 WHERE p.pronamespace = 'impersonate'::regnamespace) m,
               LATERAL pg_catalog.aclexplode(m.acl) a
         WHERE a.grantee <> m.owner AND (a.grantee IS DISTINCT FROM m.meant_for OR a.privilege_type <> m.meant
                                         OR a.is_grantable)
         GROUP BY 1
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
-- What was taken with the rest of it.
GRANT SELECT ON impersonate.grants, impersonate.active, impersonate.projects TO PUBLIC;
GRANT SELECT ON impersonate.audit_spool, impersonate.active_nodes, impersonate.audit_status, impersonate.audit_metrics,
    impersonate.node_metrics TO pg_read_all_stats;
GRANT EXECUTE ON FUNCTION impersonate.audit_spools, impersonate.audit_queues TO pg_read_all_stats;
