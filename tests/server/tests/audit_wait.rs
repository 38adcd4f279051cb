//! L5: what waits for the audit, what doesn't, and how the wait ends.
//!
//! To see that something waits, another session locks the table that the writer stores in.

use impersonate_server_tests::raw::{error_in, rows_in, Message, RawClient};
use impersonate_server_tests::{fails_with, wait_until, Cluster, Database};
use postgres::Client;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const OWNER: &str = "postgres";

/// A cluster whose waits end soon, with a target that may do anything.
fn cluster() -> Cluster {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_wait_limit", "300ms")
        .start();
    cluster
        .connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE bob LOGIN SUPERUSER")
        .unwrap();
    cluster
}

fn database(cluster: &Cluster) -> Database<'_> {
    let database = cluster.database("d");
    database.connect(OWNER).batch_execute("CREATE TABLE t (i int)").unwrap();
    database
}

fn as_bob(database: &Database) -> Client {
    let mut client = database.connect(OWNER);
    client.batch_execute("SELECT setuser('bob')").unwrap();
    client
}

/// The audit can't be written until this is dropped.
fn locked(database: &Database) -> Client {
    let mut locker = database.connect(OWNER);
    locker.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    locker.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    locker
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

/// Statement, SQLSTATE and phase of what a process did, in order.
fn told(database: &Database, pid: i32) -> Vec<(String, String, Option<String>)> {
    let mut owner = database.connect(OWNER);
    owner.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let rows = owner
        .query(
            "SELECT coalesce(statement, ''), sqlstate, detail->>'phase' FROM impersonate.audit
              WHERE event = 'STATEMENT' AND pid = $1 ORDER BY event_id",
            &[&pid],
        )
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn pid(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

#[test]
fn l5_a_commit_waits_for_its_rows_and_fails_after_the_limit() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut client = as_bob(&database);
    let mut twin = as_bob(&database);
    let mut prepared = as_bob(&database);
    prepared
        .batch_execute("BEGIN; INSERT INTO t VALUES (100); PREPARE TRANSACTION 'before'")
        .unwrap();
    let mut other = database.connect(OWNER);
    let mut locker = locked(&database);
    for writes in [
        "INSERT INTO t VALUES (1)",
        "BEGIN; INSERT INTO t VALUES (2); COMMIT",
        "BEGIN; SAVEPOINT s; INSERT INTO t VALUES (3); RELEASE s; COMMIT",
        "BEGIN; SAVEPOINT s; INSERT INTO t VALUES (4); ROLLBACK TO s; COMMIT",
        "SET synchronous_commit = off; INSERT INTO t VALUES (5)",
        "NOTIFY heard",
        "SELECT pg_notify('heard', 'twice')",
        "DO $$ BEGIN INSERT INTO t VALUES (6); COMMIT; END $$",
        "BEGIN; INSERT INTO t VALUES (7); PREPARE TRANSACTION 'p'",
        "COMMIT PREPARED 'before'",
        "VACUUM t",
        "CREATE INDEX CONCURRENTLY ti ON t (i)",
        "CREATE TABLE u (i int)",
        "SELECT nextval('impersonate.grant_id_seq')",
    ] {
        let began = Instant::now();
        let error = fails_with("55P03", client.batch_execute(writes));
        assert!(error.detail.is_some() && error.hint.is_some(), "{writes}: {error:?}");
        assert!(began.elapsed() >= Duration::from_millis(300), "{writes} did not wait");
        assert!(began.elapsed() < Duration::from_secs(4), "{writes} waited too long");
        let _ = client.batch_execute("ROLLBACK; RESET synchronous_commit");
    }
    // By the protocol's other half as well, where the portal is closed only as the transaction ends.
    fails_with("55P03", twin.execute("INSERT INTO t VALUES (8)", &[]));
    // What leaves nothing behind waits for nothing, and who impersonates nobody doesn't either.
    let began = Instant::now();
    for reads in [
        "SELECT count(*) FROM t",
        "BEGIN; SELECT count(*) FROM t; COMMIT",
        "BEGIN; INSERT INTO t VALUES (9); ROLLBACK",
        "BEGIN READ ONLY; SELECT 1; COMMIT",
        "SET work_mem = '5MB'",
    ] {
        twin.batch_execute(reads)
            .unwrap_or_else(|error| panic!("{reads}: {error}"));
    }
    other.batch_execute("INSERT INTO t VALUES (1000)").unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "something waited for no reason"
    );
    locker.batch_execute("ROLLBACK").unwrap();
    assert_eq!(number(&mut other, "SELECT count(*) FROM t"), 1);
    assert_eq!(number(&mut other, "SELECT count(*) FROM pg_prepared_xacts"), 1);
    assert_eq!(
        number(&mut other, "SELECT count(*) FROM pg_class WHERE relname IN ('u', 'ti')"),
        0
    );
    client.batch_execute("COMMIT PREPARED 'before'").unwrap();
    client.batch_execute("INSERT INTO t VALUES (11)").unwrap();
    assert_eq!(number(&mut other, "SELECT count(*) FROM t"), 3);
}

#[test]
fn l5_what_acts_outside_of_its_transaction_waits_before_it_does() {
    let cluster = cluster();
    let database = database(&cluster);
    let folder = cluster.data();
    let mut client = as_bob(&database);
    client
        .batch_execute(
            "CREATE FUNCTION writes() RETURNS void LANGUAGE plpgsql AS
                 $$ BEGIN EXECUTE 'COPY (SELECT 1) TO ''' || current_setting('data_directory') || '/nested'''; END $$",
        )
        .unwrap();
    let mut locker = locked(&database);
    for acts in [
        format!("COPY (SELECT 1) TO '{}/file'", folder.display()),
        "COPY (SELECT 1) TO PROGRAM 'cat > program'".to_owned(),
        "COPY t FROM PROGRAM 'touch program; echo 1'".to_owned(),
        "SELECT writes()".to_owned(),
        "ALTER SYSTEM SET work_mem = '17MB'".to_owned(),
    ] {
        fails_with("55P03", client.batch_execute(&acts));
    }
    for file in ["file", "program", "nested"] {
        assert!(!folder.join(file).exists(), "{file} was written before its row");
    }
    let settings = fs::read_to_string(folder.join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("17MB"));
    locker.batch_execute("ROLLBACK").unwrap();
    client.batch_execute("SELECT writes()").unwrap();
    client.batch_execute("ALTER SYSTEM SET work_mem = '17MB'").unwrap();
    assert!(folder.join("nested").exists());
    let me = pid(&mut client);
    let told = told(&database, me);
    let phases = |text: &str| -> Vec<(String, Option<String>)> {
        let rows = told.iter().filter(|row| row.0.contains(text));
        rows.map(|row| (row.1.clone(), row.2.clone())).collect()
    };
    let (begun, ended) = (Some("begun".to_owned()), Some("ended".to_owned()));
    let (works, fails) = ("00000".to_owned(), "55P03".to_owned());
    for text in ["SELECT writes", "ALTER SYSTEM"] {
        assert_eq!(
            phases(text),
            [
                (works.clone(), begun.clone()),
                (fails.clone(), ended.clone()),
                (works.clone(), begun.clone()),
                (works.clone(), ended.clone())
            ],
            "{text}"
        );
    }
}

#[test]
fn l5_off_waits_for_nothing() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut client = database.connect(OWNER);
    client.batch_execute("SET impersonate.audit_wait = off").unwrap();
    client.batch_execute("SELECT setuser('bob')").unwrap();
    let mut locker = locked(&database);
    let began = Instant::now();
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    client
        .batch_execute("DO $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$")
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    locker.batch_execute("ROLLBACK").unwrap();
    let me = pid(&mut client);
    let told = told(&database, me);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.iter().all(|row| row.2.is_none()));
}

#[test]
fn l5_flush_returns_nothing_before_the_row_is_stored() {
    let cluster = cluster();
    let database = database(&cluster);
    cluster.set("impersonate.audit_wait", "flush");
    cluster.reload();
    let mut client = RawClient::connect(&cluster, OWNER, &database.name);
    client.simple("SELECT setuser('bob')");
    client.simple("PREPARE p AS SELECT 5");
    client.simple("BEGIN; DECLARE c CURSOR FOR SELECT 6");
    let mut locker = locked(&database);
    for reads in [
        "SELECT 1 FROM generate_series(1, 100000)",
        "COPY (SELECT 2) TO STDOUT",
        "SHOW work_mem",
        "EXPLAIN SELECT 3",
        "DO $$ BEGIN RAISE NOTICE 'four'; END $$",
        "EXECUTE p",
        "SELECT setuser('postgres')",
        "SELECT setuser()",
    ] {
        let answer = client.simple(reads);
        assert_eq!(
            error_in(&answer).map(|error| error.code).as_deref(),
            Some("55P03"),
            "{reads}"
        );
        let leaked = |message: &Message| {
            matches!(
                message,
                Message::DataRow(_)
                    | Message::NoticeResponse(_)
                    | Message::Other(b'd', _)
                    | Message::CommandComplete(_)
            )
        };
        assert!(!answer.iter().any(leaked), "{reads}: {answer:?}");
        client.simple("ROLLBACK");
    }
    locker.batch_execute("ROLLBACK").unwrap();
    // And what is on disk is that.
    assert_eq!(rows_in(&client.simple("SELECT 7")), [[Some("7".to_owned())]]);
    drop(client);
    let mut owner = database.connect(OWNER);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement = 'SELECT 7' AND detail->>'phase' = 'begun'
                AND row_count IS NULL AND duration IS NULL"
        ),
        1
    );
}

#[test]
fn l5_under_an_impersonation_the_wait_can_become_more_and_not_less() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut client = as_bob(&database);
    for lower in [
        "SET impersonate.audit_wait = off",
        "SELECT set_config('impersonate.audit_wait', 'off', false)",
        "UPDATE pg_settings SET setting = 'off' WHERE name = 'impersonate.audit_wait'",
        "BEGIN; SET LOCAL impersonate.audit_wait_limit = 1",
    ] {
        fails_with("42501", client.batch_execute(lower));
        let _ = client.batch_execute("ROLLBACK");
    }
    // A setting that was settled when it began does not go back with its transaction.
    let mut settled = database.connect(OWNER);
    settled
        .batch_execute("BEGIN; SET LOCAL impersonate.audit_wait = flush")
        .unwrap();
    settled.batch_execute("SELECT setuser('bob')").unwrap();
    settled.batch_execute("COMMIT").unwrap();
    cluster.set("impersonate.audit_wait", "off");
    cluster.reload();
    let mut locker = locked(&database);
    wait_until("the file was read", || {
        client
            .query_one("SHOW impersonate.audit_wait", &[])
            .unwrap()
            .get::<_, &str>(0)
            == "off"
    });
    fails_with("55P03", client.batch_execute("INSERT INTO t VALUES (1)"));
    fails_with("55P03", settled.batch_execute("SELECT 1"));
    cluster.set("impersonate.audit_wait", "flush");
    locker.batch_execute("ROLLBACK").unwrap();
    cluster.reload();
    wait_until("the file was read", || {
        client
            .query_one("SHOW impersonate.audit_wait", &[])
            .unwrap()
            .get::<_, &str>(0)
            == "flush"
    });
    let _locker = locked(&database);
    fails_with("55P03", client.batch_execute("SELECT 1"));
    // A role without superuser can't set it at all.
    database
        .connect(OWNER)
        .batch_execute("CREATE ROLE imp LOGIN; CREATE ROLE carol LOGIN; GRANT \"SET USER\" (carol) TO imp")
        .unwrap();
    fails_with(
        "42501",
        database
            .connect("imp")
            .batch_execute("SET impersonate.audit_wait = off"),
    );
}

#[test]
fn l5_a_waiting_commit_can_be_cancelled_and_terminated_and_leaves_no_effect() {
    let cluster = Cluster::start_new();
    cluster
        .connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE bob LOGIN SUPERUSER")
        .unwrap();
    let database = database(&cluster);
    let mut owner = database.connect(OWNER);
    for (call, sqlstate) in [("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")] {
        let mut client = as_bob(&database);
        let me = pid(&mut client);
        let mut locker = locked(&database);
        let waiting = thread::spawn(move || client.batch_execute("BEGIN; INSERT INTO t VALUES (1); COMMIT"));
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        owner.batch_execute(&format!("SELECT {call}({me})")).unwrap();
        let error = waiting.join().unwrap().unwrap_err();
        // The driver may find the connection closed before it reads why.
        assert!(
            error.is_closed() || error.code().is_some_and(|code| code.code() == sqlstate),
            "{error:?}"
        );
        locker.batch_execute("ROLLBACK").unwrap();
        assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), 0);
        wait_until("its end is told", || {
            told(&database, me).last().is_some_and(|row| row.0 != "BEGIN")
        });
        let all = told(&database, me);
        let commit = all.iter().find(|row| row.0 == "COMMIT").unwrap();
        assert_eq!(commit.1, sqlstate, "{all:?}");
    }
}

#[test]
fn l5_who_holds_the_lock_itself_is_told_at_commit() {
    let cluster = Cluster::start_new();
    cluster
        .connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE bob LOGIN SUPERUSER")
        .unwrap();
    let database = database(&cluster);
    let mut client = as_bob(&database);
    for (transaction, end) in [
        (
            "BEGIN; LOCK TABLE impersonate.audit; INSERT INTO t VALUES (1)",
            "COMMIT",
        ),
        (
            "BEGIN; LOCK TABLE impersonate.audit; INSERT INTO t VALUES (1)",
            "PREPARE TRANSACTION 'p'",
        ),
    ] {
        client.batch_execute(transaction).unwrap();
        let began = Instant::now();
        let error = fails_with("55006", client.batch_execute(end));
        assert!(error.hint.is_some() && began.elapsed() < Duration::from_secs(3));
        let _ = client.batch_execute("ROLLBACK");
    }
    // Through others: the writer waits for one who waits for the committer.
    let mut between = database.connect(OWNER);
    client.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").unwrap();
    between.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    between.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    let blocked = thread::spawn(move || between.batch_execute("SELECT pg_advisory_xact_lock(1); COMMIT"));
    thread::sleep(Duration::from_millis(200));
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    fails_with("55006", client.batch_execute("COMMIT"));
    blocked.join().unwrap().unwrap();
    client.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(number(&mut database.connect(OWNER), "SELECT sum(i) FROM t"), 2);
}

#[test]
fn l5_statements_that_go_on_after_a_commit_have_a_row_before_it() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut client = as_bob(&database);
    let me = pid(&mut client);
    client
        .batch_execute(
            "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..3 LOOP
                 INSERT INTO t VALUES (i); COMMIT; END LOOP; PERFORM 1/0; END $$",
        )
        .unwrap();
    fails_with("22012", client.batch_execute("CALL p()"));
    client.batch_execute("CREATE INDEX CONCURRENTLY ti ON t (i)").unwrap();
    client.batch_execute("REINDEX TABLE CONCURRENTLY t").unwrap();
    client.batch_execute("DROP INDEX CONCURRENTLY ti").unwrap();
    client.batch_execute("CLUSTER").unwrap();
    client.batch_execute("VACUUM (FULL) t").unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (4); PREPARE TRANSACTION 'one'")
        .unwrap();
    client.batch_execute("COMMIT PREPARED 'one'").unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (5); PREPARE TRANSACTION 'two'")
        .unwrap();
    client.batch_execute("ROLLBACK PREPARED 'two'").unwrap();
    // One that only might, but doesn't, has one row.
    client
        .batch_execute("DO $$ BEGIN INSERT INTO t VALUES (6); END $$")
        .unwrap();
    let all = told(&database, me);
    for (text, sqlstate) in [
        ("CALL p()", "22012"),
        ("CREATE INDEX", "00000"),
        ("REINDEX", "00000"),
        ("DROP INDEX", "00000"),
        ("CLUSTER", "00000"),
        ("VACUUM", "00000"),
        ("COMMIT PREPARED", "00000"),
        ("ROLLBACK PREPARED", "00000"),
    ] {
        let rows: Vec<_> = all.iter().filter(|row| row.0.starts_with(text)).collect();
        let phases: Vec<_> = rows.iter().map(|row| (row.1.as_str(), row.2.as_deref())).collect();
        assert_eq!(phases, [("00000", Some("begun")), (sqlstate, Some("ended"))], "{text}");
    }
    assert_eq!(all.iter().filter(|row| row.0.starts_with("DO")).count(), 1);
}

#[test]
fn l5_what_a_function_called_by_the_protocol_does_is_on_record() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut owner = database.connect(OWNER);
    owner
        .batch_execute("CREATE FUNCTION leaves() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (77)'")
        .unwrap();
    let function: u32 = owner.query_one("SELECT 'leaves'::regproc::oid", &[]).unwrap().get(0);
    let mut client = RawClient::connect(&cluster, OWNER, &database.name);
    client.simple("SELECT setuser('bob')");
    let answer = client.call(function, &[]);
    assert_eq!(error_in(&answer), None);
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), 1);
    let told = told(&database, client.pid());
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn l5_a_foreign_server_is_not_written_before_the_row_is_on_disk() {
    let cluster = cluster();
    let database = database(&cluster);
    let mut client = database.connect(OWNER);
    client
        .batch_execute(&format!(
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw
                 OPTIONS (host '{}', port '{}', dbname '{}');
             CREATE USER MAPPING FOR PUBLIC SERVER self OPTIONS (user 'postgres', password_required 'false');
             CREATE FOREIGN TABLE ft (i int) SERVER self OPTIONS (table_name 't');
             CREATE FUNCTION remote() RETURNS void LANGUAGE sql AS 'INSERT INTO ft VALUES (2)';
             CREATE TABLE parted (i int) PARTITION BY LIST (i);
             CREATE TABLE here PARTITION OF parted FOR VALUES IN (7);
             CREATE TABLE sub PARTITION OF parted DEFAULT PARTITION BY LIST (i);
             CREATE FOREIGN TABLE there PARTITION OF sub FOR VALUES IN (8) SERVER self OPTIONS (table_name 't')",
            cluster.host().display(),
            cluster.port(),
            database.name
        ))
        .unwrap();
    client.batch_execute("SELECT setuser('bob')").unwrap();
    let mut other = database.connect(OWNER);
    let mut locker = locked(&database);
    for writes in [
        "INSERT INTO ft VALUES (1)",
        "SELECT remote()",
        "DELETE FROM ft",
        "TRUNCATE ft",
        "INSERT INTO parted VALUES (8)",
        "INSERT INTO sub SELECT 8",
        "WITH w AS (INSERT INTO parted VALUES (8) RETURNING i) SELECT * FROM w",
        "UPDATE parted SET i = 8 WHERE i = 7",
        "COPY parted FROM PROGRAM 'echo 8'",
    ] {
        fails_with("55P03", client.batch_execute(writes));
    }
    client.batch_execute("SELECT 1").unwrap();
    locker.batch_execute("ROLLBACK").unwrap();
    assert_eq!(number(&mut other, "SELECT count(*) FROM t"), 0);
    client.batch_execute("SELECT remote()").unwrap();
    assert_eq!(number(&mut other, "SELECT count(*) FROM t"), 1);
}

/// What acts outside of its transaction, though nothing of the statement says so: a language that may do anything, a
/// library with connections of its own, a function that writes files.
const OUTSIDE: &str = "
    SELECT lo_from_bytea(4711, 'x');
    CREATE EXTENSION dblink;
    CREATE LANGUAGE plany HANDLER plpgsql_call_handler INLINE plpgsql_inline_handler VALIDATOR plpgsql_validator;
    CREATE FUNCTION file(name text) RETURNS text LANGUAGE sql
        AS $$ SELECT current_setting('data_directory') || '/' || name $$;
    CREATE FUNCTION any_act(name text) RETURNS int LANGUAGE plany
        AS $$ BEGIN RETURN lo_export(4711, file(name)); END $$;
    CREATE FUNCTION folded(name text) RETURNS int IMMUTABLE LANGUAGE plany
        AS $$ BEGIN RETURN lo_export(4711, file(name)); END $$;
    CREATE FUNCTION inside(name text) RETURNS int LANGUAGE plpgsql
        AS $$ DECLARE r int; BEGIN r := lo_export(4711, file(name)); RETURN r; END $$;
    CREATE FUNCTION alias(oid, text) RETURNS int STRICT LANGUAGE internal AS 'be_lo_export';
    CREATE PROCEDURE calls(name text) LANGUAGE plany AS $$ BEGIN PERFORM any_act(name); END $$;
    CREATE FUNCTION fires() RETURNS trigger LANGUAGE plany
        AS $$ BEGIN PERFORM lo_export(4711, file('trigger')); RETURN NEW; END $$;
    CREATE TABLE hit (i int);
    CREATE TRIGGER fires BEFORE INSERT ON hit FOR EACH ROW EXECUTE FUNCTION fires();
    CREATE TABLE late (i int);
    CREATE FUNCTION fires_late() RETURNS trigger LANGUAGE plany
        AS $$ BEGIN PERFORM lo_export(4711, file('late')); RETURN NEW; END $$;
    CREATE CONSTRAINT TRIGGER fires_late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION fires_late()";

#[test]
fn l5_functions_that_act_outside_of_the_transaction_wait_before_they_do() {
    let cluster = cluster();
    let database = database(&cluster);
    let folder = cluster.data();
    let mut owner = database.connect(OWNER);
    owner.batch_execute(OUTSIDE).unwrap();
    let connection = format!(
        "host={} port={} user={OWNER} dbname={}",
        cluster.host().display(),
        cluster.port(),
        database.name
    );
    let function: u32 = owner.query_one("SELECT 'any_act'::regproc::oid", &[]).unwrap().get(0);
    let mut client = as_bob(&database);
    let mut raw = RawClient::connect(&cluster, OWNER, &database.name);
    raw.simple("SELECT setuser('bob')");
    let mut acts = vec![
        format!("SELECT dblink_exec('{connection}', 'INSERT INTO t VALUES (1)')"),
        format!("SELECT * FROM dblink('{connection}', 'INSERT INTO t VALUES (1) RETURNING i') AS d (i int)"),
        "SELECT lo_export(4711, file('export'))".to_owned(),
        "SELECT any_act('any')".to_owned(),
        "SELECT count(*) FROM (SELECT any_act('any') OFFSET 0) AS s".to_owned(),
        "SELECT folded('folded')".to_owned(),
        "SELECT inside('inside')".to_owned(),
        "SELECT alias(4711, file('alias'))".to_owned(),
        "CALL calls('called')".to_owned(),
        "DO LANGUAGE plany $$ BEGIN PERFORM any_act('done'); END $$".to_owned(),
        "INSERT INTO hit VALUES (1)".to_owned(),
        "BEGIN; INSERT INTO late VALUES (1); COMMIT".to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
        "SELECT pg_create_physical_replication_slot('slot', true)".to_owned(),
        "SELECT pg_logical_emit_message(false, 'a', 'b')".to_owned(),
        "SELECT setval('numbers', 1000)".to_owned(),
        "DO $$ BEGIN PERFORM setval('numbers', 1000, false); END $$".to_owned(),
    ];
    owner.batch_execute("CREATE SEQUENCE numbers").unwrap();
    let mut locker = locked(&database);
    for act in &acts {
        let error = client.batch_execute(act);
        assert_eq!(
            error
                .as_ref()
                .err()
                .and_then(|error| error.code())
                .map(|code| code.code()),
            Some("55P03"),
            "{act}: {error:?}"
        );
        let _ = client.batch_execute("ROLLBACK");
    }
    let refused = raw.call(function, &[Some("protocol")]);
    assert_eq!(error_in(&refused).map(|error| error.code).as_deref(), Some("55P03"));
    // What is looked up without acting outside waits for nothing.
    client
        .batch_execute("SELECT file('none'); DO $$ BEGIN PERFORM 1; END $$")
        .unwrap();
    locker.batch_execute("ROLLBACK").unwrap();
    let files = [
        "export", "any", "folded", "inside", "alias", "called", "done", "trigger", "late", "protocol",
    ];
    for file in files {
        assert!(!folder.join(file).exists(), "{file} was written before its row");
    }
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), 0);
    assert_eq!(number(&mut owner, "SELECT count(*) FROM pg_replication_slots"), 0);
    assert_eq!(number(&mut owner, "SELECT last_value FROM numbers"), 1);

    acts.truncate(12);
    for act in &acts {
        client
            .batch_execute(act)
            .unwrap_or_else(|error| panic!("{act}: {error}"));
    }
    assert_eq!(error_in(&raw.call(function, &[Some("protocol")])), None);
    for file in files {
        assert!(folder.join(file).exists(), "{file}");
    }
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), 2);
    let me = pid(&mut client);
    let told = told(&database, me);
    for act in acts
        .iter()
        .filter(|act| !act.starts_with("BEGIN") && !act.contains("folded"))
    {
        let rows: Vec<_> = told
            .iter()
            .filter(|row| row.0 == *act || act.contains("dblink") && row.0.contains("dblink"))
            .collect();
        assert!(
            rows.iter().any(|row| row.2.as_deref() == Some("begun")),
            "{act}: {rows:?}"
        );
        assert!(
            rows.iter()
                .any(|row| row.1 == "00000" && row.2.as_deref() == Some("ended")),
            "{act}: {rows:?}"
        );
    }
}

#[test]
fn l5_a_function_that_was_looked_up_before_waits_as_well() {
    let cluster = cluster();
    let database = database(&cluster);
    let folder = cluster.data();
    database.connect(OWNER).batch_execute(OUTSIDE).unwrap();
    let mut client = database.connect(OWNER);
    // An expression of plpgsql's is looked up once in a transaction: here before the session impersonates anybody.
    client
        .batch_execute("BEGIN; SELECT inside('before'); SELECT setuser('bob')")
        .unwrap();
    let mut locker = locked(&database);
    fails_with("55P03", client.batch_execute("SELECT inside('after')"));
    client.batch_execute("ROLLBACK").unwrap();
    assert!(folder.join("before").exists());
    assert!(!folder.join("after").exists(), "written before its row");
    locker.batch_execute("ROLLBACK").unwrap();
    // In the next transaction nothing of that is left.
    client.batch_execute("SELECT setuser('bob')").unwrap();
    let mut locker = locked(&database);
    client.batch_execute("BEGIN; SELECT 1; COMMIT; SELECT 2").unwrap();
    locker.batch_execute("ROLLBACK").unwrap();
    // A function that becomes another is judged anew.
    client
        .batch_execute(
            "CREATE OR REPLACE FUNCTION file(name text) RETURNS text LANGUAGE plany AS $$ BEGIN RETURN name; END $$",
        )
        .unwrap();
    let mut locker = locked(&database);
    fails_with("55P03", client.batch_execute("SELECT file('any')"));
    locker.batch_execute("ROLLBACK").unwrap();
}
