//! Sessions that impersonate at full speed, and the memory of the writer and of each of them: it must stay flat. Beside
//! them one does the same by SET ROLE, whose memory grows by the server's own caches alone.
//!
//! SOAK_SECONDS (12) says for how long; by hand, and with a release build, ten minutes. The curve is printed.

use impersonate_server_tests::{fails, Cluster};
use postgres::Client;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SESSIONS: usize = 6;
/// Looks at the memory, and lines of the curve.
const LOOKS: u32 = 24;
/// Growth that is allowed between the first quarter and the end, in kB: caches of the server's grow in steps.
const ALLOWED: u64 = 2048;

/// kB of memory of its own that a process has: shared memory and files apart.
fn private(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is running");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// All that a session does under an impersonation, over and over: statements of each kind, errors, portals that are
/// left, switches by several doors, savepoints and transactions that fail.
fn work(client: &mut Client, number: u64, round: u64, control: bool) {
    let table = format!("own_{number}");
    let plainly = |sql: &str| {
        sql.replace("SELECT setuser('bob', reason => 'soak')", "SET ROLE bob")
            .replace("SELECT setuser()", "DISCARD ALL")
            .replace("SET impersonate.target = 'carol'", "SET ROLE carol")
            .replace("SET LOCAL impersonate.target = 'carol'", "SET LOCAL ROLE carol")
            .replace("RESET impersonate.target", "RESET ROLE")
    };
    let ok = |client: &mut Client, sql: &str| {
        let sql = if control { plainly(sql) } else { sql.to_owned() };
        for sql in sql.split("; ") {
            client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    };
    ok(client, "SELECT setuser('bob', reason => 'soak')");
    ok(
        client,
        &format!("INSERT INTO {table} SELECT g, repeat('x', 100) FROM generate_series(1, 20) g"),
    );
    for value in 0..20_i32 {
        client
            .query("SELECT count(*) FROM emp WHERE id = $1 AND name <> $2", &[&value, &"a"])
            .unwrap();
    }
    fails::<()>(client.batch_execute("SELECT 1 / (id - id) FROM emp"));
    fails::<()>(client.batch_execute("SELEKT"));
    let mut transaction = client.transaction().unwrap();
    let portal = transaction.bind("SELECT * FROM emp", &[]).unwrap();
    transaction.query_portal(&portal, 3).unwrap();
    transaction
        .batch_execute("SAVEPOINT a; UPDATE emp SET name = name WHERE id = 1; ROLLBACK TO a")
        .unwrap();
    transaction.rollback().unwrap();
    ok(
        client,
        &format!("DO $$ BEGIN PERFORM count(*) FROM {table};END $$; TRUNCATE {table}"),
    );
    ok(
        client,
        "CREATE TEMP TABLE t (a int); PREPARE p AS SELECT 1; EXECUTE p; SELECT setuser()",
    );
    ok(
        client,
        "SET impersonate.target = 'carol'; SELECT current_user; RESET impersonate.target",
    );
    ok(
        client,
        "BEGIN; SET LOCAL impersonate.target = 'carol'; SELECT count(*) FROM emp; COMMIT",
    );
    if round.is_multiple_of(4) && !control {
        fails::<()>(client.batch_execute("SELECT setuser('postgres')"));
    }
}

#[test]
fn memory_stays_flat() {
    let seconds: u64 = std::env::var("SOAK_SECONDS").map_or(12, |value| value.parse().expect("seconds"));
    let cluster = Cluster::builder().setting("autovacuum_naptime", "5s").start();
    let database = cluster.database("soak");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE imp LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN;
             CREATE ROLE plain LOGIN; GRANT bob, carol TO plain; GRANT \"SET USER\" (bob, carol) TO imp;
             CREATE TABLE emp AS SELECT g AS id, 'name ' || g AS name FROM generate_series(1, 100) g;
             GRANT ALL ON emp TO bob, carol",
        )
        .unwrap();
    for number in 0..=SESSIONS {
        admin
            .batch_execute(&format!(
                "CREATE TABLE own_{number} (a int, b text); ALTER TABLE own_{number} OWNER TO bob"
            ))
            .unwrap();
    }
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, rounds) = (&over, &rounds);
        let (pids, told) = std::sync::mpsc::channel();
        for number in 0..=SESSIONS as u64 {
            let control = number == SESSIONS as u64;
            let mut client = database.connect(if control { "plain" } else { "imp" });
            pids.send(
                client
                    .query_one("SELECT pg_backend_pid()", &[])
                    .unwrap()
                    .get::<_, i32>(0),
            )
            .unwrap();
            scope.spawn(move || {
                // Whoever panics ends the others.
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    for round in 0.. {
                        if over.load(Relaxed) {
                            break;
                        }
                        work(&mut client, number, round, control);
                        rounds.fetch_add(1, Relaxed);
                    }
                }));
                over.store(true, Relaxed);
                result.unwrap();
            });
        }
        let sessions: Vec<i32> = told.iter().take(SESSIONS + 1).collect();
        let begun = Instant::now();
        let pause = Duration::from_millis(seconds * 1000 / u64::from(LOOKS));
        let mut curve: Vec<(u64, u64, u64)> = Vec::new();
        println!("seconds  rounds  writer kB  largest session kB  control kB");
        for _ in 0..LOOKS {
            std::thread::sleep(pause);
            if over.load(Relaxed) {
                break;
            }
            let writer: i32 = admin
                .query_one(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer'
                                                        AND datname = current_database()",
                    &[],
                )
                .unwrap()
                .get(0);
            let largest = sessions[..SESSIONS].iter().map(|pid| private(*pid)).max().unwrap_or(0);
            curve.push((private(writer), largest, private(sessions[SESSIONS])));
            let (seconds, rounds) = (begun.elapsed().as_secs(), rounds.load(Relaxed));
            println!(
                "{seconds:7}  {rounds:6}  {:9}  {largest:18}  {:10}",
                curve.last().unwrap().0,
                curve.last().unwrap().2
            );
        }
        over.store(true, Relaxed);
        assert_eq!(curve.len(), LOOKS as usize, "a session failed");
        let first = &curve[..curve.len() / 4];
        let before = (
            first.iter().map(|look| look.0).max().unwrap(),
            first.iter().map(|look| look.1).max().unwrap(),
        );
        let after = *curve.last().unwrap();
        // A short run ends before caches are warm; the limit is for ten minutes as well.
        assert!(
            after.0 <= before.0 + ALLOWED,
            "the writer grew from {} to {} kB",
            before.0,
            after.0
        );
        assert!(
            after.1 <= before.1 + ALLOWED,
            "a session grew from {} to {} kB",
            before.1,
            after.1
        );
    });
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let found = admin
        .query_one(
            "SELECT v.ok, v.rows_checked, (SELECT max(event_id) FROM impersonate.audit) FROM impersonate.audit_verify() v",
            &[],
        )
        .unwrap();
    let (ok, checked, newest): (bool, i64, i64) = (found.get(0), found.get(1), found.get(2));
    println!(
        "{} rounds, {checked} rows, chain {}",
        rounds.load(Relaxed),
        if ok { "whole" } else { "BROKEN" }
    );
    assert!(ok && checked == newest, "every event is there once");
}
