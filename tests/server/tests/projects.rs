//! D3: while somebody is impersonated who has a current project, only that project can be read or written.

mod stage;

use impersonate_server_tests::shared;
use stage::{Session, Stage, PROTOCOLS};

/// `<s>.inside`, `<s>.parted` (with two partitions), `<s>.v` over `<s>.outside`, and a table with a serial column are in
/// project `<s>`, which `<bob>` has chosen; `<s>.outside` and others aren't. He may use all of them.
fn prepared() -> Stage {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.inside (a int PRIMARY KEY, b text); INSERT INTO <s>.inside VALUES (1, 'in');
         CREATE TABLE <s>.outside (a int PRIMARY KEY, b text); INSERT INTO <s>.outside VALUES (1, 'out');
         CREATE TABLE <s>.parted (a int) PARTITION BY RANGE (a);
         CREATE TABLE <s>.part1 PARTITION OF <s>.parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE <s>.part2 PARTITION OF <s>.parted FOR VALUES FROM (10) TO (20);
         CREATE TABLE <s>.heir () INHERITS (<s>.inside);
         CREATE TABLE <s>.numbered (n serial, b text);
         CREATE TABLE <s>.refers (a int REFERENCES <s>.outside);
         CREATE SEQUENCE <s>.loose;
         CREATE VIEW <s>.v AS SELECT * FROM <s>.outside; CREATE VIEW <s>.w AS SELECT * FROM <s>.outside;
         CREATE FUNCTION <s>.f() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM <s>.outside); END';
         CREATE FUNCTION <s>.theirs() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM <s>.outside';
         GRANT ALL ON ALL TABLES IN SCHEMA <s> TO <bob>; GRANT ALL ON ALL SEQUENCES IN SCHEMA <s> TO <bob>;
         SELECT impersonate.create_project('<s>');
         SELECT impersonate.add_to_project('<s>', '<s>.inside', '<s>.parted', '<s>.v', '<s>.numbered', '<s>.refers');
         SELECT impersonate.add_project_member('<s>', '<bob>')",
    );
    let mut bob = stage.session_of("bob");
    bob.ok("SELECT impersonate.set_project('<s>')");
    stage
}

fn refused(session: &mut Session, sql: &str) {
    let error = session.fails("42501", sql);
    assert!(
        error
            .message
            .contains(&format!("is not in project \"{}\"", session.stage().name("s"))),
        "{sql}: {}",
        error.message
    );
}

#[test]
fn d3_only_the_project_can_be_used_by_whatever_statement() {
    let stage = prepared();
    let mut session = stage.session();
    assert_eq!(session.value("SHOW impersonate.project"), "");
    session.become_role("bob");
    assert_eq!(session.value("SHOW impersonate.project"), stage.name("s"));
    for sql in [
        "SELECT * FROM <s>.inside",
        "INSERT INTO <s>.inside VALUES (2, 'x')",
        "UPDATE <s>.inside SET b = 'y' WHERE a = 2",
        "DELETE FROM <s>.inside WHERE a = 2",
        "SELECT * FROM <s>.parted",
        "SELECT * FROM <s>.part1",
        "INSERT INTO <s>.parted VALUES (5), (15)",
        "COPY <s>.inside TO STDOUT",
        "EXPLAIN SELECT * FROM <s>.inside",
        "INSERT INTO <s>.numbered (b) VALUES ('x')",
        "SELECT nextval('<s>.numbered_n_seq')",
        // What a view reads inside, what a function of somebody else's does, and foreign keys.
        "SELECT * FROM <s>.v",
        "SELECT <s>.theirs()",
        "INSERT INTO <s>.refers VALUES (1)",
        "SELECT count(*) FROM pg_class",
        "SELECT count(*) FROM information_schema.tables",
        "SELECT count(*) FROM impersonate.active",
        "CREATE TEMP TABLE mine AS SELECT * FROM <s>.inside",
        "SELECT * FROM mine",
        "DROP TABLE mine",
        "TRUNCATE <s>.parted",
    ] {
        session.ok(sql);
    }
    for sql in [
        "SELECT * FROM <s>.outside",
        "SELECT 1 FROM <s>.outside",
        "SELECT * FROM <s>.w",
        "SELECT * FROM <s>.heir",
        "SELECT <s>.f()",
        "SELECT * FROM <s>.inside WHERE EXISTS (SELECT FROM <s>.outside)",
        "WITH o AS (SELECT * FROM <s>.outside) SELECT * FROM o",
        "WITH o AS MATERIALIZED (DELETE FROM <s>.outside RETURNING *) SELECT * FROM o",
        "INSERT INTO <s>.inside SELECT a + 100, b FROM <s>.outside",
        "INSERT INTO <s>.outside VALUES (9) ON CONFLICT DO NOTHING",
        "UPDATE <s>.outside SET b = 'z' RETURNING b",
        "DELETE FROM <s>.outside",
        "MERGE INTO <s>.outside o USING <s>.inside i ON o.a = i.a WHEN MATCHED THEN DELETE",
        "MERGE INTO <s>.inside i USING <s>.outside o ON o.a = i.a WHEN MATCHED THEN DELETE",
        "SELECT * FROM <s>.outside TABLESAMPLE system (100)",
        "SELECT * FROM <s>.outside FOR UPDATE",
        "COPY <s>.outside TO STDOUT",
        "COPY (SELECT * FROM <s>.outside) TO STDOUT",
        "EXPLAIN SELECT * FROM <s>.outside",
        "TRUNCATE <s>.outside CASCADE",
        "LOCK TABLE <s>.outside IN ACCESS SHARE MODE",
        "SELECT nextval('<s>.loose')",
        "SELECT setval('<s>.loose', 1)",
        "SELECT currval('<s>.loose')",
        "SELECT * FROM <s>.loose",
        "CREATE TABLE <s>.copied AS SELECT * FROM <s>.outside",
        "DO $$ BEGIN PERFORM * FROM <s>.outside; END $$",
        "SELECT query_to_xml('SELECT * FROM <s>.outside', true, true, '')",
    ] {
        session.ok("BEGIN");
        refused(&mut session, sql);
        session.ok("ROLLBACK");
    }
    session.ok("SELECT setuser()");
    assert_eq!(session.value("SHOW impersonate.project"), "");
}

/// What is read of the project is not written anywhere else.
#[test]
fn d3_a_new_relation_is_filled_only_in_a_schema_of_the_project() {
    let stage = prepared();
    stage.admin(
        "GRANT CREATE ON SCHEMA <s> TO <bob>; CREATE SCHEMA <s>_in AUTHORIZATION <bob>;
         SELECT impersonate.add_schema_to_project('<s>', '<s>_in')",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("PREPARE p AS SELECT * FROM <s>.inside");
    for sql in [
        "CREATE TABLE <s>.copied AS SELECT * FROM <s>.inside",
        "CREATE TABLE <s>.copied AS TABLE <s>.inside WITH DATA",
        "CREATE TABLE IF NOT EXISTS <s>.copied AS VALUES (1)",
        "CREATE UNLOGGED TABLE <s>.copied AS SELECT 1 AS a",
        "CREATE TABLE <s>.copied AS EXECUTE p",
        "SELECT * INTO <s>.copied FROM <s>.inside",
        "CREATE MATERIALIZED VIEW <s>.copied AS SELECT * FROM <s>.inside",
        "EXPLAIN (ANALYZE) CREATE TABLE <s>.copied AS SELECT * FROM <s>.inside",
        "DO $$ BEGIN CREATE TABLE <s>.copied AS SELECT * FROM <s>.inside; END $$",
        "SET search_path = <s>; CREATE TABLE copied AS SELECT 1 AS a",
    ] {
        refused(&mut session, sql);
    }
    for sql in [
        "CREATE TABLE <s>_in.copied AS SELECT * FROM <s>.inside",
        "SELECT * INTO <s>_in.other FROM <s>.inside",
        "CREATE MATERIALIZED VIEW <s>_in.view AS SELECT * FROM <s>.inside",
        "SET search_path = <s>_in, <s>; CREATE TABLE another AS SELECT 1 AS a",
        "CREATE TEMP TABLE copied AS SELECT * FROM <s>.inside",
        "CREATE TABLE pg_temp.one_more AS SELECT * FROM <s>.inside",
        "EXPLAIN (ANALYZE) CREATE TEMP TABLE explained AS SELECT * FROM <s>.inside",
        "SELECT * FROM <s>_in.copied, <s>_in.other, <s>_in.view, another, pg_temp.copied, one_more",
        "CREATE TABLE <s>.empty AS SELECT * FROM <s>.inside WITH NO DATA",
        "SET search_path = <s>_nowhere",
    ] {
        session.ok(sql);
    }
    session.fails("3F000", "CREATE TABLE copied AS SELECT 1 AS a");
    session.fails("3F000", "CREATE TABLE <s>_nowhere.copied AS SELECT 1 AS a");
    refused(&mut session, "SELECT * FROM <s>.empty");
}

#[test]
fn d3_what_the_target_makes_is_the_targets_own() {
    let stage = prepared();
    stage.admin("ALTER TABLE <s>.outside OWNER TO <bob>; GRANT SELECT ON <s>.outside TO <grp>");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("CREATE TEMP VIEW leak AS SELECT * FROM <s>.outside");
    refused(&mut session, "SELECT * FROM leak");
    session.ok(
        "CREATE FUNCTION <s>.leak() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM <s>.outside'",
    );
    refused(&mut session, "SELECT <s>.leak()");
    session.ok("SET ROLE <grp>");
    refused(&mut session, "SELECT * FROM <s>.outside");
    session.ok("RESET ROLE");
    for sql in [
        "CREATE INDEX ON <s>.outside (b)",
        "ALTER TABLE <s>.outside ADD c int",
        "ALTER TABLE <s>.outside RENAME TO renamed",
        "ANALYZE <s>.outside",
        "VACUUM <s>.outside",
        "COMMENT ON TABLE <s>.outside IS 'x'",
        "DROP TABLE <s>.outside CASCADE",
        "GRANT SELECT ON <s>.outside TO PUBLIC",
        "CREATE TABLE <s>.child () INHERITS (<s>.outside)",
    ] {
        refused(&mut session, sql);
    }
}

#[test]
fn d3_changes_count_at_the_next_statement() {
    let stage = prepared();
    let mut session = stage.session();
    session.ok("PREPARE early AS SELECT b FROM <s>.outside");
    session.become_role("bob");
    refused(&mut session, "EXECUTE early");
    session.ok("BEGIN ISOLATION LEVEL REPEATABLE READ");
    session.ok("SELECT * FROM <s>.inside");
    stage.admin("SELECT impersonate.add_to_project('<s>', '<s>.outside')");
    assert_eq!(session.value("EXECUTE early"), "out");
    stage.admin("SELECT impersonate.remove_from_project('<s>', '<s>.outside')");
    refused(&mut session, "EXECUTE early");
    session.ok("ROLLBACK");
    stage.admin("SELECT impersonate.add_schema_to_project('<s>', '<s>'); CREATE TABLE <s>.later AS SELECT 5 AS x");
    stage.admin("GRANT SELECT ON <s>.later TO <bob>");
    assert_eq!(session.value("SELECT x FROM <s>.later"), "5");
    stage.admin("SELECT impersonate.remove_schema_from_project('<s>', '<s>')");
    refused(&mut session, "SELECT x FROM <s>.later");
    stage.admin("SELECT impersonate.drop_project('<s>')");
    assert_eq!(session.value("SHOW impersonate.project"), "");
    session.ok("SELECT x FROM <s>.later");
}

#[test]
fn d3_superusers_manage_members_choose_and_nobody_does_while_impersonating() {
    let stage = prepared();
    let mut bob = stage.session_of("bob");
    bob.fails("42501", "SELECT impersonate.create_project('x')");
    bob.fails("42501", "SELECT impersonate.add_to_project('<s>', '<s>.outside')");
    bob.fails("42704", "SELECT impersonate.set_project('nowhere')");
    let mut carol = stage.session_of("carol");
    carol.fails("42501", "SELECT impersonate.set_project('<s>')");
    // Whoever isn't impersonated isn't limited.
    bob.ok("SELECT * FROM <s>.outside");
    let mut session = stage.session();
    session.become_role("bob");
    session.fails("42501", "SELECT impersonate.set_project(NULL)");
    session.fails("42501", "DELETE FROM impersonate.project_member");
    refused(&mut session, "SELECT * FROM <s>.outside");
    bob.ok("SELECT impersonate.set_project('')");
    session.ok("SELECT * FROM <s>.outside");
    bob.ok("SELECT impersonate.set_project('<s>')");
    refused(&mut session, "SELECT * FROM <s>.outside");
    let members = stage.look("SELECT members::text, current_for::text FROM impersonate.projects WHERE name = '<s>'");
    let bob = Some(format!("{{{}}}", stage.name("bob")));
    assert_eq!(members, [[bob.clone(), bob]]);
}

#[test]
fn d3_a_role_of_nearly_the_same_name_chooses_for_itself_alone() {
    let stage = prepared();
    let capital = stage.name("bob").to_uppercase();
    stage.admin(&format!("CREATE ROLE \"{capital}\" LOGIN"));
    let mut session = stage.session();
    session.become_role("bob");
    let mut other = stage.session_of(&capital);
    other.ok("SELECT impersonate.set_project(NULL)");
    refused(&mut session, "SELECT * FROM <s>.outside");
    other.fails("42501", "SELECT impersonate.set_project('<s>')");
    stage.admin(&format!(
        "SELECT impersonate.add_project_member('<s>', '\"{capital}\"')"
    ));
    other.ok("SELECT impersonate.set_project('<s>')");
    let chose = stage.look("SELECT current_for::text FROM impersonate.projects WHERE name = '<s>'");
    assert_eq!(chose, [[Some(format!("{{{capital},{}}}", stage.name("bob")))]]);
    stage.admin(&format!("DROP ROLE \"{capital}\""));
}

#[test]
fn d3_a_superuser_as_target_is_limited_too() {
    let stage = prepared();
    stage.admin("ALTER ROLE <imp> SUPERUSER; ALTER ROLE <bob> SUPERUSER");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT * FROM <s>.inside");
    refused(&mut session, "SELECT * FROM <s>.outside");
    refused(&mut session, "TRUNCATE <s>.outside CASCADE");
}

#[test]
fn d3_what_is_dropped_leaves_the_project_while_impersonating_too() {
    let stage = prepared();
    stage.admin("ALTER TABLE <s>.numbered OWNER TO <bob>");
    let entries = "SELECT count(*)::text FROM impersonate.project_content WHERE project = '<s>'";
    assert_eq!(stage.look(entries), [[Some("5".to_owned())]]);
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("DROP TABLE <s>.numbered");
    assert_eq!(stage.look(entries), [[Some("4".to_owned())]]);
    // A role with the OID of a member that is gone bears another stamp.
    stage.admin("UPDATE impersonate.project_member SET stamp = repeat('0', 32) WHERE project = '<s>'");
    session.ok("SELECT * FROM <s>.outside");
}

#[test]
fn d3_dump_and_restore_keep_projects() {
    let database = shared().database("projects");
    let mut admin = database.connect("postgres");
    let sql = "CREATE SCHEMA other; CREATE TABLE other.\"T\" (a int); CREATE TABLE t (a int);
               SELECT impersonate.create_project('p'); SELECT impersonate.add_to_project('p', 't');
               SELECT impersonate.add_schema_to_project('p', 'other');
               SELECT impersonate.add_to_project('p', 'other.\"T\"');
               SELECT impersonate.add_project_member('p', 'postgres'); SELECT impersonate.set_project('p')";
    admin.batch_execute(sql).unwrap();
    let output = shared()
        .command("pg_dump", "postgres", &database.name)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let script = String::from_utf8(output.stdout).unwrap();
    let restored = shared().empty_database("restored");
    let done = restored.psql("postgres", &script);
    assert!(done.ok, "{}", done.stderr);
    let look = "SELECT concat_ws(' ', name, relations[1] || ',' || relations[2], schemas, members, current_for)
                  FROM impersonate.projects";
    let mut there = restored.connect("postgres");
    there.batch_execute("SET search_path = ''").unwrap();
    let row: String = there.query_one(look, &[]).unwrap().get(0);
    assert_eq!(row, "p other.\"T\",public.t {other} {postgres} {postgres}");
}

#[test]
fn d3_every_kind_of_relation_is_in_a_project_or_not_by_either_protocol() {
    let stage = prepared();
    stage.admin(
        "CREATE FOREIGN DATA WRAPPER <s>_w; CREATE SERVER <s>_srv FOREIGN DATA WRAPPER <s>_w;
         CREATE FOREIGN TABLE <s>.abroad (a int) SERVER <s>_srv; CREATE FOREIGN TABLE <s>.far (a int) SERVER <s>_srv;
         CREATE MATERIALIZED VIEW <s>.kept AS SELECT * FROM <s>.outside;
         CREATE MATERIALIZED VIEW <s>.hidden AS SELECT * FROM <s>.inside;
         CREATE TABLE <s>.policed (a int, b text); INSERT INTO <s>.policed VALUES (1, '<bob>'), (2, '<imp>');
         ALTER TABLE <s>.policed ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON <s>.policed USING (b = current_user);
         CREATE POLICY by_others ON <s>.policed USING (a IN (SELECT a FROM <s>.outside));
         CREATE TABLE <s>.clean (a int, b text); INSERT INTO <s>.clean VALUES (1, '<bob>'), (2, '<imp>');
         ALTER TABLE <s>.clean ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON <s>.clean USING (b = current_user);
         CREATE SCHEMA <s>_all; CREATE TABLE <s>_all.t AS SELECT 1 AS a; GRANT USAGE ON SCHEMA <s>_all TO <bob>;
         GRANT ALL ON ALL TABLES IN SCHEMA <s>, <s>_all TO <bob>;
         ALTER FOREIGN TABLE <s>.abroad OWNER TO <bob>; ALTER FOREIGN TABLE <s>.far OWNER TO <bob>;
         ALTER MATERIALIZED VIEW <s>.hidden OWNER TO <bob>;
         SELECT impersonate.add_to_project('<s>', '<s>.abroad', '<s>.kept', '<s>.policed', '<s>.clean');
         SELECT impersonate.add_schema_to_project('<s>', '<s>_all')",
    );
    // What comes to a schema later is in it as well.
    stage.admin("CREATE TABLE <s>_all.later AS SELECT 2 AS a; GRANT SELECT ON <s>_all.later TO <bob>");
    let mut session = stage.session();
    session.become_role("bob");
    for protocol in PROTOCOLS {
        session.ok_by(protocol, "SELECT * FROM <s>.kept");
        session.ok_by(protocol, "SELECT * FROM <s>_all.t, <s>_all.later");
        assert_eq!(session.ok_by(protocol, "SELECT * FROM <s>.clean").len(), 1);
        session.ok_by(protocol, "GRANT SELECT ON <s>.abroad TO <grp>");
        for sql in [
            "SELECT * FROM <s>.hidden",
            "GRANT SELECT ON <s>.far TO <grp>",
            "REFRESH MATERIALIZED VIEW <s>.hidden",
            // A policy is a part of the statement that it belongs to.
            "SELECT * FROM <s>.policed",
            "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM <s>.outside",
        ] {
            let error = session.fails_by(protocol, "42501", sql);
            assert!(error.message.contains("is not in project"), "{sql}: {}", error.message);
        }
    }
}

/// A plan that was made, and a cursor that was opened, when the relation was in the project.
#[test]
fn d3_plans_and_cursors_from_before_do_not_get_around_it() {
    let stage = prepared();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("PREPARE p AS SELECT * FROM <s>.inside");
    for _ in 0..6 {
        session.ok("EXECUTE p");
    }
    session.ok("BEGIN");
    session.ok("DECLARE c CURSOR FOR SELECT * FROM <s>.inside");
    stage.admin("SELECT impersonate.remove_from_project('<s>', '<s>.inside')");
    refused(&mut session, "EXECUTE p");
    session.ok("ROLLBACK");
    refused(&mut session, "EXPLAIN EXECUTE p");
    // One that is open has its rows, as after a REVOKE; no other can be opened.
    refused(&mut session, "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM <s>.inside");
}

/// What each session needs to have all that can run in a worker run in one.
pub const ALWAYS_PARALLEL: [&str; 5] = [
    "SET parallel_setup_cost = 0",
    "SET parallel_tuple_cost = 0",
    "SET min_parallel_table_scan_size = 0",
    "SET max_parallel_workers_per_gather = 2",
    "SET parallel_leader_participation = off",
];

#[test]
fn d3_what_runs_in_a_parallel_worker_is_limited_too() {
    let stage = prepared();
    stage.admin(
        "CREATE FUNCTION <s>.spy(int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
           'BEGIN RETURN (SELECT b FROM <s>.outside WHERE a = $1); END';
         CREATE FUNCTION <s>.inlined(int) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS
           'SELECT b FROM <s>.outside WHERE a = $1';
         CREATE FUNCTION <s>.fine(int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
           'BEGIN RETURN (SELECT b FROM <s>.inside WHERE a = $1); END'",
    );
    let mut session = stage.session();
    session.become_role("bob");
    for setting in ALWAYS_PARALLEL {
        session.ok(setting);
    }
    let plan = session
        .column("EXPLAIN SELECT count(<s>.spy(a)) FROM <s>.inside")
        .join("\n");
    assert!(plan.contains("Gather"), "{plan}");
    refused(&mut session, "SELECT count(<s>.spy(a)) FROM <s>.inside");
    refused(&mut session, "SELECT count(<s>.inlined(a)) FROM <s>.inside");
    session.ok("SELECT count(<s>.fine(a)) FROM <s>.inside");
    session.ok("SELECT setuser()");
    for setting in ALWAYS_PARALLEL {
        session.ok(setting);
    }
    stage.admin("GRANT ALL ON ALL TABLES IN SCHEMA <s> TO <imp>");
    session.ok("SELECT count(<s>.spy(a)) FROM <s>.inside");
}
