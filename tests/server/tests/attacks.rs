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
    let stage = Stage::new();
    let mut s = stage.session_of("postgres");
    s.ok("ALTER ROLE <bob> SUPERUSER");
    s.become_role("bob");
    for sql in ["CREATE TABLE <s>.mine (LIKE impersonate.audit INCLUDING ALL) PARTITION BY LIST (event)",
      "ALTER TABLE <s>.mine ATTACH PARTITION impersonate.audit DEFAULT",
      "INSERT INTO <s>.mine SELECT * FROM impersonate.audit LIMIT 1",
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
