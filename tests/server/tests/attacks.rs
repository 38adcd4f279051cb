mod stage;
use impersonate_server_tests::raw::{error_in, rows_in};
use stage::Stage;

#[test]
fn planted_driver_statement() {
    let stage = Stage::new();
    let mut s = stage.session();
    s.become_role("bob");
    s.ok("CREATE FUNCTION <s>.evil() RETURNS int LANGUAGE plpgsql AS $$BEGIN
        BEGIN EXECUTE 'DEALLOCATE \"S_1\"'; EXCEPTION WHEN OTHERS THEN NULL; END;
        EXECUTE 'PREPARE \"S_1\" AS SELECT setuser()'; RETURN 1; END$$");
    s.raw.parse("S_1", "SELECT 1", &[]);
    println!("{:?}", s.sync());
    s.ok("SELECT evil()");
    s.raw.bind("", "S_1", &[]);
    s.raw.execute("", 0);
    let m = s.sync();
    println!("{m:?}");
    println!("{:?}", s.says());
    assert!(error_in(&m).is_some());
    s.is("bob");
}

#[test]
fn swapped_portal() {
    let stage = Stage::new();
    let mut s = stage.session();
    s.become_role("bob");
    s.ok("CREATE FUNCTION <s>.evil() RETURNS int LANGUAGE plpgsql AS $$DECLARE c refcursor := 'C_1'; BEGIN
        EXECUTE 'CLOSE \"C_1\"';
        OPEN c FOR SELECT setuser(); RETURN 1; END$$");
    s.ok("BEGIN");
    s.raw.parse("", "SELECT generate_series(1,10)", &[]);
    s.raw.bind("C_1", "", &[]);
    s.raw.execute("C_1", 1);
    s.raw.flush_request();
    println!("{:?}", s.sync());
    s.ok("SELECT evil()");
    s.raw.execute("C_1", 1);
    let m = s.sync();
    println!("{m:?} {:?}", rows_in(&m));
    println!("{:?}", s.says());
    assert!(error_in(&m).is_some());
}

#[test]
fn attach_partition() {
    let stage = Stage::alone();
    let mut s = stage.session_of("postgres");
    s.ok("ALTER ROLE <bob> SUPERUSER");
    s.become_role("bob");
    for sql in ["CREATE TABLE <s>.mine (LIKE impersonate.audit) PARTITION BY LIST (event)",
      "ALTER TABLE <s>.mine ATTACH PARTITION impersonate.audit DEFAULT",
      "INSERT INTO <s>.mine SELECT (max(event_id)+1000000) , now(), 'FORGED','a','b','c',null,'d',1,'e' FROM impersonate.audit",
      "DELETE FROM <s>.mine",
      "CREATE TABLE <s>.child () INHERITS (impersonate.audit)",
      "DROP TRIGGER guard ON impersonate.audit",
      "ALTER TRIGGER guard ON impersonate.audit RENAME TO x",
      "DROP INDEX impersonate.set_user_grant_grantee",
      "SELECT setval('impersonate.grant_id_seq', 999)",
      "REVOKE EXECUTE ON FUNCTION pg_catalog.setuser FROM PUBLIC",
      "COMMENT ON TABLE impersonate.audit IS 'x'",
      "ALTER INDEX impersonate.audit_pkey RENAME TO y",
      "CREATE TABLE <s>.fk (e bigint REFERENCES impersonate.audit)",
      ] {
        let m = s.send(stage::Protocol::Simple, sql);
        println!("{sql}: {:?}", error_in(&m).map(|e| e.message));
    }
}

#[test]
fn planted_before_rollback() {
    let stage = Stage::new();
    let mut s = stage.session();
    s.ok("BEGIN");
    s.ok("SELECT setuser('<bob>', local => true)");
    s.ok("PREPARE known AS SELECT 1");
    s.ok("ROLLBACK");
    println!("{:?}", s.column("SELECT name FROM pg_prepared_statements"));
    s.ok("SET work_mem = '1MB'");
    s.ok("BEGIN");
    s.ok("SET LOCAL work_mem = '2MB'");
    s.ok("SELECT setuser('<bob>')");
    s.ok("SET work_mem = '3MB'");
    s.ok("SELECT setuser()");
    println!("{:?}", s.column("SHOW work_mem"));
    s.ok("COMMIT");
    println!("{:?}", s.column("SHOW work_mem"));
}

fn probe(s: &mut stage::Session, sqls: &[&str]) {
    for sql in sqls {
        let m = s.send(stage::Protocol::Simple, sql);
        let short: String = sql.chars().take(110).collect();
        println!("  {short}: {:?} {:?}", error_in(&m).map(|e| e.code + " " + &e.message), rows_in(&m));
    }
    println!("  -> {:?}", s.says());
}

#[test]
fn probe_role() {
    let stage = Stage::new();
    let mut s = stage.session();
    println!("P4");
    probe(&mut s, &["SET ROLE <grp>", "SELECT setuser('<bob>')", "SET ROLE <grp>", "SELECT setuser()"]);
    println!("P4b none");
    probe(&mut s, &["SET ROLE <grp>", "SELECT setuser('<bob>')", "RESET ROLE", "SELECT setuser()"]);
}

#[test]
fn probe_temp() {
    let stage = Stage::new();
    let mut s = stage.session();
    println!("P7 on commit drop");
    probe(&mut s, &["BEGIN", "SELECT setuser('<bob>', local => true)", "CREATE TEMP TABLE t(a int) ON COMMIT DROP", "CREATE TEMP TABLE t2(a int) ON COMMIT DELETE ROWS",
        "DECLARE h CURSOR WITH HOLD FOR SELECT 1", "COMMIT", "SELECT name FROM pg_cursors", "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()"]);
    println!("P7 pending events");
    probe(&mut s, &["BEGIN", "SELECT setuser('<bob>')", "CREATE TEMP TABLE t3(a int primary key deferrable initially deferred)", "INSERT INTO t3 VALUES (1),(2)", "UPDATE t3 SET a = a + 1", "SELECT setuser()", "ROLLBACK"]);
    println!("P7 read only");
    probe(&mut s, &["SELECT setuser('<bob>')", "CREATE TEMP TABLE t4(a int)", "SET default_transaction_read_only = on", "SELECT setuser()", "SET default_transaction_read_only = off", "SELECT setuser()"]);
    println!("P7 read only local");
    probe(&mut s, &["BEGIN", "SELECT setuser('<bob>', local => true)", "CREATE TEMP TABLE t5(a int)", "SET TRANSACTION READ ONLY", "COMMIT"]);
    println!("P7 search_path type shadow");
    probe(&mut s, &["SELECT setuser('<bob>')", "CREATE TYPE pg_temp.text AS ENUM ('a')", "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE TEMP TABLE pg_class(a int)", "SELECT setuser()", "SELECT typname FROM pg_type WHERE typnamespace = pg_my_temp_schema()", "SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = pg_my_temp_schema()"]);
}

#[test]
fn probe_deep() {
    let stage = Stage::new();
    let mut s = stage.session();
    println!("P13");
    s.become_role("bob");
    probe(&mut s, &["CREATE FUNCTION <s>.deep(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN <s>.deep(n+1); END'", "SELECT <s>.deep(1)",
      "CREATE FUNCTION <s>.deep2(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN SET ROLE NONE; RETURN <s>.deep2(n+1); EXCEPTION WHEN division_by_zero THEN RETURN 1; END'", "SELECT <s>.deep2(1)"]);
    s.ok("BEGIN");
    let t = std::time::Instant::now();
    let all: String = (0..10000).map(|i| format!("SAVEPOINT a{i}; SELECT setuser('<carol>');")).collect();
    let m = s.send(stage::Protocol::Simple, &all);
    println!("  10000 savepoints {:?} {:?}", error_in(&m), t.elapsed());
    println!("  -> {:?}", s.says());
    s.ok("ROLLBACK TO a5000"); println!("  -> {:?} {:?}", s.says(), t.elapsed());
    s.ok("ROLLBACK");
    println!("  -> {:?} {:?}", s.says(), t.elapsed());
    println!("  told {:?}", stage.audit(s.pid(), &["SETUSER","RESETUSER"]).len());
    stage.history(s.pid());
}

#[test]
fn probe_x4() {
    let stage = Stage::alone();
    for (superuser, who) in [(false, "plain"), (true, "super")] {
        println!("X4 {who}");
        if superuser { stage.admin("ALTER ROLE <bob> SUPERUSER; ALTER ROLE <imp> SUPERUSER"); }
        let mut s = stage.session();
        s.become_role("bob");
        probe(&mut s, &["COPY impersonate.audit FROM STDIN", "TRUNCATE impersonate.audit", "MERGE INTO impersonate.audit a USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
          "INSERT INTO impersonate.set_user_grant DEFAULT VALUES ON CONFLICT DO NOTHING", "WITH x AS (DELETE FROM impersonate.audit RETURNING 1) SELECT 1",
          "ALTER TABLE impersonate.audit DISABLE TRIGGER ALL", "SET session_replication_role = replica", "DELETE FROM impersonate.audit", "SELECT * FROM impersonate.audit FOR UPDATE",
          "DROP OWNED BY <bob>", "REASSIGN OWNED BY postgres TO <bob>", "DROP SCHEMA impersonate CASCADE", "DROP EXTENSION impersonate CASCADE", "ALTER EXTENSION impersonate UPDATE",
          "CREATE RULE r AS ON INSERT TO impersonate.audit DO INSTEAD NOTHING", "CREATE OR REPLACE FUNCTION impersonate.audit_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
          "CREATE OR REPLACE VIEW impersonate.grants AS SELECT 1", "ALTER VIEW impersonate.active RENAME TO x", "ALTER SCHEMA impersonate RENAME TO i2", "ALTER SCHEMA impersonate OWNER TO <bob>",
          "CREATE TABLE impersonate.x (a int)", "CREATE FUNCTION impersonate.setuser() RETURNS int LANGUAGE sql AS 'SELECT 1'", "ALTER FUNCTION impersonate.audit_sync() SET work_mem = 1", "ALTER FUNCTION pg_catalog.setuser OWNER TO <bob>",
          "GRANT ALL ON ALL TABLES IN SCHEMA impersonate TO <bob>", "GRANT ALL ON SEQUENCE impersonate.grant_id_seq TO <bob>", "GRANT ALL ON FUNCTION impersonate.audit_sync TO <bob>", "GRANT SELECT ON impersonate.audit TO PUBLIC",
          "SET allow_system_table_mods = on", "DELETE FROM pg_trigger WHERE tgname = 'guard'", "UPDATE pg_proc SET prosrc = 'x' WHERE proname = 'audit_guard'",
          "LOAD 'plpgsql'", "CREATE FUNCTION <s>.l() RETURNS int LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler'", "ALTER SYSTEM SET impersonate.audit_statements = 'none'", "ALTER SYSTEM RESET ALL", "ALTER SYSTEM SET shared_preload_libraries = ''",
          "SET impersonate.audit_statements = 'none'", "SELECT set_config('ImPersonate.Audit_statements', 'none', false)", "RESET impersonate.audit_statements", "ALTER ROLE <imp> SET impersonate.audit_statements = 'none'", "ALTER DATABASE postgres SET \"IMPERSONATE.audit_statements\" = 'none'",
          "GRANT \"SET USER\" TO <bob>", "REVOKE \"SET USER\" FROM <imp>", "SELECT impersonate.grant_set_user('<bob>')", "SELECT impersonate.audit_sync()",
          "CREATE POLICY p ON impersonate.audit", "CREATE INDEX ON impersonate.audit(event)", "CREATE STATISTICS st ON event, pid FROM impersonate.audit", "CREATE PUBLICATION pp FOR TABLE impersonate.audit", "COPY impersonate.audit TO PROGRAM 'cat'",
          "ALTER TABLE <s>.nope INHERIT impersonate.audit", "SECURITY LABEL ON TABLE impersonate.audit IS 'x'", "CREATE EVENT TRIGGER et ON ddl_command_start EXECUTE FUNCTION impersonate.audit_guard()",
          "SELECT setuser('<bob>', cookie => 'S3CRET-COOKIE'), 1", "SELECT setuser('<bob>', cookie => 'S3CRET-COOKIE'", "CREATE TRIGGER t BEFORE INSERT ON impersonate.set_user_grant EXECUTE FUNCTION impersonate.audit_guard()", "SELECT setuser(cookie => 'wrong')"]);
        println!("cookie rows {:?}", stage.look("SELECT event, statement FROM impersonate.audit WHERE audit::text LIKE '%S3CRET%'"));
    }
}
