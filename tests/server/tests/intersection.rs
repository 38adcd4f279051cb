//! D4: with scope intersection each access must be allowed to the impersonator as well as to the target.

mod stage;

use stage::{Session, Stage};

fn prepared(server: bool) -> Stage {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.both (a int, b text); CREATE TABLE <s>.bobs (a int, b text);
         CREATE TABLE <s>.columns (a int, b text);
         INSERT INTO <s>.both VALUES (1, 'x'); INSERT INTO <s>.bobs VALUES (1, 'x');
         CREATE TABLE <s>.parted (a int) PARTITION BY LIST (a);
         CREATE TABLE <s>.part PARTITION OF <s>.parted FOR VALUES IN (1);
         CREATE VIEW <s>.v AS SELECT * FROM <s>.bobs; CREATE VIEW <s>.w AS SELECT * FROM <s>.bobs;
         CREATE SEQUENCE <s>.seq; CREATE SEQUENCE <s>.common;
         CREATE FUNCTION <s>.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION <s>.inner() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM <s>.bobs); END';
         CREATE SCHEMA <s>_x; CREATE TABLE <s>_x.t (a int);
         GRANT USAGE ON SCHEMA <s>_x TO <bob>; GRANT ALL ON ALL TABLES IN SCHEMA <s>_x TO <bob>, <imp>;
         REVOKE EXECUTE ON FUNCTION <s>.f() FROM PUBLIC; GRANT EXECUTE ON FUNCTION <s>.f() TO <bob>;
         GRANT ALL ON ALL TABLES IN SCHEMA <s> TO <bob>; GRANT ALL ON ALL SEQUENCES IN SCHEMA <s> TO <bob>;
         GRANT ALL ON <s>.both, <s>.v, <s>.parted TO <imp>; GRANT SELECT (a) ON <s>.columns TO <imp>;
         GRANT USAGE ON <s>.common TO <imp>",
    );
    if server {
        stage.admin("ALTER ROLE <imp> SET impersonate.scope = 'intersection'");
    }
    stage
}

fn refused(session: &mut Session, sql: &str) {
    let error = session.fails("42501", sql);
    let imp = session.stage().name("imp");
    assert!(
        error.message.contains(&format!("to the impersonator \"{imp}\"")),
        "{sql}: {}",
        error.message
    );
}

fn is_intersected(session: &mut Session) {
    for sql in [
        "SELECT * FROM <s>.both",
        "INSERT INTO <s>.both VALUES (2, 'y') RETURNING a",
        "SELECT a FROM <s>.columns",
        "SELECT * FROM <s>.v",
        "SELECT * FROM <s>.parted",
        "INSERT INTO <s>.parted VALUES (1)",
        "SELECT nextval('<s>.common')",
        "COPY <s>.both TO STDOUT",
        "CREATE TEMP TABLE mine AS SELECT 1 AS a",
        "SELECT * FROM mine",
    ] {
        session.ok(sql);
    }
    for sql in [
        "SELECT * FROM <s>.bobs",
        "SELECT b FROM <s>.columns",
        "SELECT * FROM <s>.columns",
        "UPDATE <s>.columns SET a = 1",
        "SELECT * FROM <s>.w",
        "SELECT * FROM <s>.part",
        "SELECT <s>.f()",
        "SELECT <s>.inner()",
        "SELECT * FROM <s>_x.t",
        "SELECT nextval('<s>.seq')",
        "COPY <s>.bobs TO STDOUT",
        "COPY (SELECT * FROM <s>.bobs) TO STDOUT",
        "INSERT INTO <s>.both SELECT * FROM <s>.bobs",
        "WITH x AS (DELETE FROM <s>.bobs RETURNING a) SELECT * FROM x",
        "MERGE INTO <s>.both t USING <s>.bobs s ON s.a = t.a WHEN MATCHED THEN DELETE",
        "TRUNCATE <s>.bobs",
        "LOCK TABLE <s>.bobs",
        "EXPLAIN SELECT * FROM <s>.bobs",
    ] {
        refused(session, sql);
    }
}

#[test]
fn d4_with_the_setting_the_impersonator_needs_what_the_target_has() {
    let stage = prepared(true);
    let mut session = stage.session();
    session.ok("PREPARE early AS SELECT * FROM <s>.bobs");
    session.become_role("bob");
    is_intersected(&mut session);
    refused(&mut session, "EXECUTE early");
}

#[test]
fn d4_for_one_right() {
    let stage = prepared(false);
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT * FROM <s>.bobs");
    session.ok("SELECT setuser()");
    stage.admin(
        "SELECT impersonate.set_grant_scope(grant_id, 'intersection') FROM impersonate.grants WHERE grantee = '<imp>'",
    );
    let shown = stage.look("SELECT access FROM impersonate.grants WHERE grantee = '<imp>'");
    assert_eq!(shown, [[Some("intersection".to_owned())]]);
    session.become_role("bob");
    is_intersected(&mut session);
    // Settled when it begins.
    stage.admin(
        "SELECT impersonate.set_grant_scope(grant_id, 'target') FROM impersonate.grants WHERE grantee = '<imp>'",
    );
    refused(&mut session, "SELECT * FROM <s>.bobs");
    session.ok("SELECT setuser()");
    session.become_role("bob");
    session.ok("SELECT * FROM <s>.bobs");
}

#[test]
fn d4_what_takes_an_owner_takes_the_impersonator_to_be_one() {
    let stage = prepared(true);
    stage.admin("ALTER TABLE <s>.both OWNER TO <bob>");
    let mut session = stage.session();
    session.become_role("bob");
    refused(&mut session, "ALTER TABLE <s>.both ADD c int");
    refused(&mut session, "CREATE INDEX ON <s>.both (a)");
    refused(&mut session, "DROP TABLE <s>.both");
}

#[test]
fn d4_nobody_but_a_superuser_turns_it_off() {
    let stage = prepared(true);
    let mut session = stage.session();
    session.fails("42501", "SET impersonate.scope = 'target'");
    session.become_role("bob");
    session.fails("42501", "SET impersonate.scope = 'target'");
    session.fails("42501", "SELECT impersonate.set_grant_scope(1, 'target')");
    session.fails("55P02", "SET impersonate.project = 'x'");
}

#[test]
fn d4_what_runs_in_a_parallel_worker_is_limited_too() {
    let stage = prepared(true);
    stage.admin(
        "CREATE FUNCTION <s>.spy(int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
           'BEGIN RETURN (SELECT b FROM <s>.bobs WHERE a = $1); END';
         CREATE FUNCTION <s>.inlined(int) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS
           'SELECT b FROM <s>.bobs WHERE a = $1';
         CREATE FUNCTION <s>.calls(int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS 'BEGIN RETURN <s>.f(); END';
         ALTER FUNCTION <s>.f() PARALLEL SAFE",
    );
    let mut session = stage.session();
    session.become_role("bob");
    for setting in [
        "SET parallel_setup_cost = 0",
        "SET parallel_tuple_cost = 0",
        "SET min_parallel_table_scan_size = 0",
        "SET parallel_leader_participation = off",
    ] {
        session.ok(setting);
    }
    let plan = session
        .column("EXPLAIN SELECT count(<s>.spy(a)) FROM <s>.both")
        .join("\n");
    assert!(plan.contains("Gather"), "{plan}");
    for function in ["spy", "inlined", "calls"] {
        refused(&mut session, &format!("SELECT count(<s>.{function}(a)) FROM <s>.both"));
    }
    session.ok("SELECT count(*) FROM <s>.both");
}

#[test]
fn d4_locking_and_truncating_take_the_privilege_and_not_just_any() {
    let stage = prepared(true);
    stage.admin("GRANT SELECT ON <s>.bobs TO <imp>");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT * FROM <s>.bobs");
    refused(&mut session, "TRUNCATE <s>.bobs");
    session.ok("BEGIN");
    session.ok("LOCK TABLE <s>.bobs IN ACCESS SHARE MODE");
    refused(&mut session, "LOCK TABLE <s>.bobs IN ROW EXCLUSIVE MODE");
    session.ok("ROLLBACK");
    refused(&mut session, "DO $$ BEGIN LOCK TABLE <s>.bobs; END $$");
    stage.admin("GRANT TRUNCATE ON <s>.bobs TO <imp>");
    session.ok("TRUNCATE <s>.bobs");
    session.ok("BEGIN");
    session.ok("LOCK TABLE <s>.bobs");
    session.ok("ROLLBACK");
}
