//! Statements that never end well: as much as the server lets one know of them is on record, with its SQLSTATE (L3).

use impersonate_server_tests::raw::{error_in, Message, RawClient};
use impersonate_server_tests::{wait_until, Cluster, Database};
use postgres::Client;
use std::thread;
use std::time::Duration;

const OWNER: &str = "postgres";

struct Scene {
    cluster: Cluster,
    database: String,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::builder().setting("max_locks_per_transaction", "10").start();
        let database = cluster.database("d").name;
        cluster
            .connect(OWNER, &database)
            .batch_execute(
                "CREATE ROLE bob LOGIN SUPERUSER; CREATE TABLE t (i int UNIQUE DEFERRABLE INITIALLY DEFERRED);
                 INSERT INTO t VALUES (1), (2), (3)",
            )
            .unwrap();
        Scene { cluster, database }
    }

    fn owner(&self) -> Client {
        self.cluster.connect(OWNER, &self.database)
    }

    fn session(&self) -> RawClient {
        let mut client = RawClient::connect(&self.cluster, OWNER, &self.database);
        assert_eq!(error_in(&client.simple("SELECT setuser('bob')")), None);
        client
    }

    /// The SQLSTATEs that the audit has of a process' statements with this in their text, in order.
    fn told(&self, pid: i32, text: &str) -> Vec<String> {
        let mut owner = self.owner();
        owner.batch_execute("SELECT impersonate.audit_sync()").unwrap();
        let rows = owner.query(
            "SELECT sqlstate FROM impersonate.audit
              WHERE event = 'STATEMENT' AND pid = $1 AND statement LIKE '%' || $2 || '%' ORDER BY event_id",
            &[&pid, &text],
        );
        rows.unwrap().iter().map(|row| row.get(0)).collect()
    }

    fn wait_told(&self, pid: i32, text: &str, expected: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..100 {
            found = self.told(pid, text);
            if found == expected {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{text}: {found:?} instead of {expected:?}");
    }
}

fn is_gone(scene: &Scene, pid: i32) {
    let mut owner = scene.owner();
    wait_until("the backend has gone", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
        owner.query_one(query, &[&pid]).unwrap().get::<_, i64>(0) == 0
    });
}

#[test]
fn l3_errors_of_every_stage_are_on_record_once() {
    let scene = Scene::new();
    let mut client = scene.session();
    let pid = client.pid();
    // (by the simple protocol, by the extended one, what fails it)
    for (at, (statement, sqlstate)) in [
        ("SELEC", "42601"),
        ("SELECT nothing_like_it", "42703"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT 1/0", "22012"),
        ("SELECT 1/(i-i) FROM t", "22012"),
        ("SELECT 'x'::int", "22P02"),
        ("INSERT INTO t VALUES (1)", "23505"),
        ("COPY nowhere FROM STDIN", "42P01"),
        ("CREATE TABLE t (i int)", "42P07"),
        ("EXECUTE nothing", "26000"),
        ("VACUUM nowhere", "42P01"),
        ("SET work_mem = 'much'", "22023"),
        ("FETCH nothing", "34000"),
        ("ROLLBACK TO nothing", "25P01"),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'XX123'; END $$", "XX123"),
        ("SELECT repeat('x', 1100000000)", "54000"),
        (
            "SELECT pg_advisory_xact_lock(g) FROM generate_series(1, 100000) AS g",
            "53200",
        ),
        ("SELECT pg_sleep(5)", "57014"),
    ]
    .into_iter()
    .enumerate()
    {
        for extended in [false, true] {
            let text = format!("{statement} /* {at} {extended} */");
            let limit = if sqlstate == "57014" { 50 } else { 0 };
            client.simple(&format!("SET statement_timeout = {limit}"));
            let answer = if extended {
                client.extended(&text, &[])
            } else {
                client.simple(&text)
            };
            assert_eq!(
                error_in(&answer).map(|error| error.code).as_deref(),
                Some(sqlstate),
                "{text}"
            );
            let marked = format!("/* {at} {extended} */");
            let told = scene.told(pid, &marked);
            assert_eq!(told.last().map(String::as_str), Some(sqlstate), "{text}: {told:?}");
            // A row that was undone as its transaction failed says first that it worked.
            let failures = told.iter().filter(|told| *told == sqlstate).count();
            assert_eq!(failures, 1, "{text}: {told:?}");
        }
    }
}

#[test]
fn l3_what_a_failed_transaction_refuses_is_on_record() {
    let scene = Scene::new();
    let mut client = scene.session();
    client.simple("BEGIN");
    client.simple("SELECT 1/0 /* first */");
    client.simple("SELECT 1 /* second */");
    client.extended("SELECT 1 /* third */", &[]);
    client.simple("COMMIT /* fourth */");
    let pid = client.pid();
    assert_eq!(scene.told(pid, "first"), ["22012"]);
    assert_eq!(scene.told(pid, "second"), ["25P02"]);
    assert_eq!(scene.told(pid, "third"), ["25P02"]);
    assert_eq!(scene.told(pid, "fourth").len(), 1);
}

/// What is said to the client is on record: a COMMIT that ends what has failed commits nothing.
#[test]
fn l1_a_commit_of_what_has_failed_is_a_rollback() {
    let scene = Scene::new();
    let mut client = scene.session();
    for (sql, said, level) in [
        ("COMMIT", "COMMIT", "sound"),
        ("COMMIT", "ROLLBACK", "failed"),
        ("END", "ROLLBACK", "failed"),
        ("COMMIT AND CHAIN", "ROLLBACK", "failed"),
        ("PREPARE TRANSACTION 'p'", "ROLLBACK", "failed"),
        ("PREPARE TRANSACTION 'p'", "ROLLBACK", "none"),
        ("ROLLBACK", "ROLLBACK", "failed"),
        ("COMMIT", "COMMIT", "none"),
    ] {
        for protocol in ["simple", "extended"] {
            client.simple("ROLLBACK");
            if level != "none" {
                client.simple("BEGIN; INSERT INTO t VALUES (4)");
            }
            if level == "failed" {
                client.simple("SELECT 1/0");
            }
            let sql = format!("{sql} /* {protocol} */");
            let answer = if protocol == "simple" {
                client.simple(&sql)
            } else {
                client.extended(&sql, &[])
            };
            let complete = answer
                .iter()
                .any(|message| *message == Message::CommandComplete(said.to_owned()));
            assert!(complete, "{sql}, {level}: {answer:?}");
            client.simple("ROLLBACK; DELETE FROM t WHERE i = 4");
            let mut owner = scene.owner();
            owner.batch_execute("SELECT impersonate.audit_sync()").unwrap();
            let query = "SELECT command_tag, sqlstate FROM impersonate.audit
                          WHERE event = 'STATEMENT' AND pid = $1 AND statement = $2 ORDER BY event_id DESC LIMIT 1";
            let row = owner.query_one(query, &[&client.pid(), &sql]).unwrap();
            let found: (String, String) = (row.get(0), row.get(1));
            assert_eq!(found, (said.to_owned(), "00000".to_owned()), "{sql}, {level}");
        }
    }
}

#[test]
fn l3_parameters_that_are_refused_leave_a_row() {
    let scene = Scene::new();
    let mut client = scene.session();
    let answer = client.extended("SELECT $1::int /* bound */", &[Some("x")]);
    assert_eq!(error_in(&answer).unwrap().code, "22P02");
    assert_eq!(scene.told(client.pid(), "bound"), ["22P02"]);
}

#[test]
fn l3_out_of_memory_is_on_record() {
    let scene = Scene::new();
    let mut client = scene.session();
    let pid = client.pid();
    // What it has, and a little more. By the server's account, which may.
    let limit = format!("prlimit --pid {pid} --as=$(( ($(cut -d'' '' -f1 /proc/{pid}/statm) * 4096) + 20000000 ))");
    let limited = client.simple(&format!("COPY (SELECT) TO PROGRAM '{limit}'"));
    assert_eq!(error_in(&limited), None, "prlimit is part of util-linux");
    let answer = client
        .simple("SELECT length(array_agg(repeat(g::text, 100))::text) FROM generate_series(1, 1000000) g /* much */");
    assert_eq!(error_in(&answer).unwrap().code, "53200");
    assert_eq!(scene.told(pid, "much"), ["53200"]);
    assert_eq!(error_in(&client.simple("SELECT 1 /* afterwards */")), None);
    assert_eq!(scene.told(pid, "afterwards"), ["00000"]);
}

#[test]
fn l3_cancelled_and_terminated_statements_are_on_record() {
    let scene = Scene::new();
    let mut owner = scene.owner();
    for (call, sqlstate, text) in [
        ("pg_cancel_backend", "57014", "SELECT pg_sleep(60)"),
        ("pg_terminate_backend", "57P01", "SELECT pg_sleep(60)"),
        ("pg_cancel_backend", "57014", "DO $$ BEGIN PERFORM pg_sleep(60); END $$"),
        ("pg_terminate_backend", "57P01", "COPY (SELECT pg_sleep(60)) TO STDOUT"),
        ("pg_cancel_backend", "57014", "COPY t FROM STDIN"),
        ("pg_terminate_backend", "57P01", "COPY t FROM STDIN"),
    ] {
        let mut client = scene.session();
        let pid = client.pid();
        client.query(text);
        client.flush();
        thread::sleep(Duration::from_millis(200));
        owner.batch_execute(&format!("SELECT {call}({pid})")).unwrap();
        if text.contains("FROM STDIN") && call == "pg_cancel_backend" {
            // Waiting for the client it isn't interrupted: its next message is what it needs.
            client.put(b'd', b"7\n");
            client.flush();
        }
        let codes: Vec<String> = std::iter::from_fn(|| client.try_read().ok())
            .take_while(|message| !matches!(message, Message::ReadyForQuery(_)))
            .filter_map(|message| error_in(&[message]).map(|error| error.code))
            .collect();
        assert_eq!(codes, [sqlstate], "{call}, {text}");
        scene.wait_told(pid, text, &[sqlstate]);
    }
}

#[test]
fn l3_timeouts_are_on_record() {
    let scene = Scene::new();
    let mut locker = scene.owner();
    locker.batch_execute("BEGIN; LOCK TABLE t").unwrap();
    let mut client = scene.session();
    client.simple("SET lock_timeout = 50");
    assert_eq!(
        error_in(&client.simple("SELECT FROM t /* locked */")).unwrap().code,
        "55P03"
    );
    assert_eq!(scene.told(client.pid(), "locked"), ["55P03"]);
    // One that stands open while the connection is ended: its portal was read in part.
    let mut client = scene.session();
    let pid = client.pid();
    client.simple("SET idle_in_transaction_session_timeout = 100");
    client.simple("BEGIN");
    client.parse("", "SELECT generate_series(1, 100) /* in part */", &[]);
    client.bind("", "", &[]);
    client.execute("", 5);
    client.sync();
    client.read_until_ready();
    is_gone(&scene, pid);
    scene.wait_told(pid, "in part", &["25P03"]);
}

#[test]
fn l3_a_client_that_leaves_in_the_middle_is_on_record() {
    let scene = Scene::new();
    // In the middle of its result: the server notices as it sends.
    let mut client = scene.session();
    let pid = client.pid();
    client.query("SELECT repeat('x', 1000) FROM generate_series(1, 10000000) /* cut off */");
    client.flush();
    client.read();
    client.hang_up();
    is_gone(&scene, pid);
    scene.wait_told(pid, "cut off", &["08006"]);
    // In the middle of what it sends.
    let mut client = scene.session();
    let pid = client.pid();
    client.query("COPY t FROM STDIN /* never done */");
    client.put(b'd', b"8\n");
    client.flush();
    client.read();
    client.hang_up();
    is_gone(&scene, pid);
    scene.wait_told(pid, "never done", &["08006"]);
    // With a portal that was read in part, in a transaction that never ended.
    let mut client = scene.session();
    let pid = client.pid();
    client.simple("BEGIN");
    client.parse("", "SELECT generate_series(1, 100) /* left open */", &[]);
    client.bind("", "", &[]);
    client.execute("", 5);
    client.sync();
    client.read_until_ready();
    client.hang_up();
    is_gone(&scene, pid);
    let told = scene.told(pid, "left open");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_ne!(told[0], "", "{told:?}");
}

#[test]
fn l3_a_copy_that_its_client_gives_up_is_on_record() {
    let scene = Scene::new();
    let mut client = scene.session();
    client.query("COPY t FROM STDIN /* given up */");
    client.put(b'f', b"no more\0");
    assert_eq!(error_in(&client.read_until_ready()).unwrap().code, "57014");
    client.query("COPY t FROM STDIN /* nonsense */");
    client.put(b'd', b"nonsense\n");
    client.put(b'c', b"");
    assert_eq!(error_in(&client.read_until_ready()).unwrap().code, "22P02");
    client.query("COPY t FROM STDIN /* fine */");
    client.put(b'd', b"21\n22\n");
    client.put(b'c', b"");
    assert_eq!(error_in(&client.read_until_ready()), None);
    let pid = client.pid();
    assert_eq!(scene.told(pid, "given up"), ["57014"]);
    assert_eq!(scene.told(pid, "nonsense"), ["22P02"]);
    assert_eq!(scene.told(pid, "fine"), ["00000"]);
}

#[test]
fn l3_what_fails_as_the_transaction_commits_is_on_record() {
    let scene = Scene::new();
    let mut client = scene.session();
    let pid = client.pid();
    client.simple("BEGIN; INSERT INTO t VALUES (1) /* undone */");
    assert_eq!(error_in(&client.simple("COMMIT /* refused */")).unwrap().code, "23505");
    assert_eq!(scene.told(pid, "undone"), ["00000"]);
    assert_eq!(scene.told(pid, "refused"), ["23505"]);
    client.simple("BEGIN; INSERT INTO t VALUES (1)");
    assert_eq!(
        error_in(&client.simple("PREPARE TRANSACTION 'p' /* unprepared */"))
            .unwrap()
            .code,
        "23505"
    );
    assert_eq!(scene.told(pid, "unprepared"), ["23505"]);
}

#[test]
fn l3_a_crash_of_the_backend_leaves_what_was_begun() {
    let scene = Scene::new();
    scene.cluster.set("impersonate.audit_wait", "flush");
    scene.cluster.reload();
    thread::sleep(Duration::from_millis(200));
    let mut client = scene.session();
    let pid = client.pid();
    client.query("SELECT pg_sleep(60) /* crashed */");
    client.flush();
    thread::sleep(Duration::from_millis(300));
    scene.cluster.kill_backend(pid);
    scene.cluster.wait_until_up();
    assert_eq!(scene.told(pid, "crashed"), ["00000"]);
    let database = Database {
        cluster: &scene.cluster,
        name: scene.database.clone(),
    };
    let row = database
        .connect(OWNER)
        .query_one(
            "SELECT detail->>'phase' FROM impersonate.audit WHERE statement LIKE '%crashed%'",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "begun");
}
