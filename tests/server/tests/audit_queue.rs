//! The audit's queue and writer: L4, L6, and what must not stand in anybody's way.

use impersonate_server_tests::{fails_with, unique, wait_until, Cluster, Database};
use postgres::Client;
use std::thread;
use std::time::{Duration, Instant};

const OWNER: &str = "postgres";

fn role(database: &Database) -> String {
    let name = unique("bob");
    database
        .connect(OWNER)
        .batch_execute(&format!("CREATE ROLE {name} LOGIN"))
        .unwrap();
    name
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

/// Rows in the audit, which are numbered without a gap.
fn rows(client: &mut Client) -> i64 {
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let row = client
        .query_one(
            "SELECT count(*), coalesce(max(event_id), 0), coalesce(min(event_id), 1) FROM impersonate.audit",
            &[],
        )
        .unwrap();
    let (count, last, first): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((count, 1), (last, first), "event_id has gaps");
    count
}

fn writers(client: &mut Client) -> Vec<i32> {
    client
        .query(
            "SELECT pid FROM pg_stat_activity
              WHERE backend_type = 'impersonate audit writer' AND datname = current_database()",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn a_transaction_that_locks_the_audit_is_told_instead_of_waiting_for_ever() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    let mut client = database.connect(OWNER);
    client.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    let began = Instant::now();
    let error = fails_with("55006", client.batch_execute(&format!("SELECT setuser('{bob}')")));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(error.hint.is_some());
    client.batch_execute("ROLLBACK").unwrap();
    client.batch_execute(&format!("SELECT setuser('{bob}')")).unwrap();
    rows(&mut database.connect(OWNER));
}

#[test]
fn waiting_for_somebody_elses_lock_can_be_cancelled_and_ends_with_it() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    let mut locker = database.connect(OWNER);
    locker.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    let mut client = database.connect(OWNER);
    client.batch_execute("SET statement_timeout = '500ms'").unwrap();
    fails_with("57014", client.batch_execute(&format!("SELECT setuser('{bob}')")));
    client.batch_execute("SET statement_timeout = 0").unwrap();
    let waiting = thread::spawn({
        let bob = bob.clone();
        move || {
            client
                .batch_execute(&format!("SELECT setuser('{bob}')"))
                .map(|()| client)
        }
    });
    thread::sleep(Duration::from_millis(500));
    assert!(!waiting.is_finished());
    locker.batch_execute("ROLLBACK").unwrap();
    let _client = waiting.join().unwrap().unwrap();
    rows(&mut locker);
}

#[test]
fn without_a_free_worker_slot_setuser_fails_with_the_remedy() {
    // The logical replication launcher takes the only one.
    let cluster = Cluster::builder().setting("max_worker_processes", "1").start();
    let database = cluster.database("d");
    let bob = role(&database);
    let error = fails_with(
        "53400",
        database
            .connect(OWNER)
            .batch_execute(&format!("SELECT setuser('{bob}')")),
    );
    assert!(error.hint.is_some_and(|hint| hint.contains("max_worker_processes")));
}

#[test]
fn a_writer_that_fails_stops_impersonation_and_loses_nothing() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    let mut owner = database.connect(OWNER);
    owner
        .batch_execute("ALTER TABLE impersonate.audit ADD CONSTRAINT no CHECK (event <> 'SETUSER')")
        .unwrap();
    for _ in 0..2 {
        let switch = format!("SELECT setuser('{bob}')");
        let error = fails_with("55000", database.connect(OWNER).batch_execute(&switch));
        assert!(
            error
                .detail
                .is_some_and(|detail| detail.contains("violates check constraint")),
            "the cause is told"
        );
    }
    // Who impersonates nobody is not touched.
    owner.batch_execute("CREATE TABLE t (i int)").unwrap();
    owner
        .batch_execute("ALTER TABLE impersonate.audit DROP CONSTRAINT no")
        .unwrap();
    database
        .connect(OWNER)
        .batch_execute(&format!("SELECT setuser('{bob}')"))
        .unwrap();
    rows(&mut owner);
    assert!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE event = 'SETUSER'"
        ) >= 2
    );
}

#[test]
fn every_statement_is_stored_once_while_the_writer_is_terminated_and_cancelled() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = database.connect(OWNER);
                    client.batch_execute(&format!("SELECT setuser('{bob}')")).unwrap();
                    (0..500).for_each(|_| client.batch_execute("SELECT 1 AS counted").unwrap());
                })
            })
            .collect();
        let mut owner = database.connect(OWNER);
        while sessions.iter().any(|session| !session.is_finished()) {
            for call in ["pg_terminate_backend", "pg_cancel_backend"] {
                owner
                    .batch_execute(&format!(
                        "SELECT {call}(pid) FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer'"
                    ))
                    .unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let mut owner = database.connect(OWNER);
    rows(&mut owner);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%AS counted'"
        ),
        2000
    );
}

#[test]
fn the_smallest_queue_serves_eight_busy_sessions_with_long_statements() {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_queue_size", "64kB")
        .start();
    let database = cluster.database("d");
    let bob = role(&database);
    let long = "x".repeat(4000);
    thread::scope(|scope| {
        for session in 0..8 {
            let (database, bob, long) = (&database, &bob, &long);
            scope.spawn(move || {
                let mut client = database.connect(OWNER);
                client.batch_execute(&format!("SELECT setuser('{bob}')")).unwrap();
                for _ in 0..200 {
                    let text = if session % 2 == 0 { long.as_str() } else { "" };
                    client.batch_execute(&format!("SELECT '{text}' AS counted")).unwrap();
                }
            });
        }
    });
    let mut owner = database.connect(OWNER);
    rows(&mut owner);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%AS counted'"
        ),
        1600
    );
}

#[test]
fn a_shutdown_stores_the_last_events_of_every_session() {
    for (idle, size) in [("10s", "1MB"), ("0", "64kB")] {
        let mut cluster = Cluster::builder()
            .setting("impersonate.audit_writer_idle", idle)
            .setting("impersonate.audit_queue_size", size)
            .start();
        let name = {
            let database = cluster.database("d");
            database.name.clone()
        };
        let bob = role(&Database {
            cluster: &cluster,
            name: name.clone(),
        });
        let sessions: Vec<_> = (0..8)
            .map(|session| {
                let mut client = cluster.connect(OWNER, &name);
                client.batch_execute(&format!("SELECT setuser('{bob}')")).unwrap();
                thread::spawn(move || {
                    // Half of them only wait for the end.
                    let mut done = 0;
                    while session % 2 == 0 && client.batch_execute("SELECT 1 AS counted").is_ok() {
                        done += 1;
                    }
                    (client, done)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        cluster.stop();
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "the writer held up the shutdown"
        );
        let done: i64 = sessions.into_iter().map(|session| session.join().unwrap().1).sum();
        cluster.start();
        let mut owner = cluster.connect(OWNER, &name);
        rows(&mut owner);
        let stored = number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%AS counted'",
        );
        assert!(
            (done..=done + 8).contains(&stored),
            "{stored} statements stored, {done} done"
        );
        assert_eq!(
            number(
                &mut owner,
                "SELECT count(*) FROM impersonate.audit WHERE event = 'RESETUSER'"
            ),
            8
        );
    }
}

#[test]
fn the_writer_leaves_when_idle_and_makes_way_for_statements_about_its_database() {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_writer_idle", "1h")
        .start();
    let database = cluster.database("d");
    let bob = role(&database);
    database
        .connect(OWNER)
        .batch_execute(&format!("SELECT setuser('{bob}')"))
        .unwrap();
    let name = &database.name;
    let mut other = cluster.connect(OWNER, OWNER);
    wait_until("the session has gone", || {
        number(
            &mut other,
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
        ) == 1
    });
    let began = Instant::now();
    other
        .batch_execute(&format!("CREATE DATABASE {name}_copy TEMPLATE {name}"))
        .unwrap();
    other
        .batch_execute(&format!("ALTER DATABASE {name} RENAME TO {name}_new"))
        .unwrap();
    other.batch_execute(&format!("DROP DATABASE {name}_new")).unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "Postgres waited for the writer"
    );
    // The copy goes on where its template was.
    let copy = format!("{name}_copy");
    cluster
        .connect(OWNER, &copy)
        .batch_execute(&format!("SELECT setuser('{bob}')"))
        .unwrap();
    let mut owner = cluster.connect(OWNER, &copy);
    wait_until("all is stored", || rows(&mut owner) == 4);
    cluster.set("impersonate.audit_writer_idle", "100ms");
    cluster.reload();
    wait_until("the writer has gone", || writers(&mut owner).is_empty());
}

#[test]
fn after_a_crash_the_audit_goes_on_without_a_gap() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    for _ in 0..3 {
        let mut client = database.connect(OWNER);
        client.batch_execute(&format!("SELECT setuser('{bob}')")).unwrap();
        let writer = writers(&mut database.connect(OWNER));
        cluster.kill_backend(writer[0]);
        cluster.wait_until_up();
        rows(&mut database.connect(OWNER));
    }
}

#[test]
fn triggers_of_others_do_not_run_with_the_writers_power() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let bob = role(&database);
    let eve = role(&database);
    let mut owner = database.connect(OWNER);
    owner
        .batch_execute(&format!(
            "GRANT TRIGGER ON impersonate.audit TO {eve}; GRANT CREATE ON SCHEMA public TO {eve};
             CREATE TABLE public.loot (who text); GRANT INSERT ON public.loot TO {eve}"
        ))
        .unwrap();
    database
        .connect(&eve)
        .batch_execute(
            "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS
                 $$BEGIN INSERT INTO public.loot VALUES (current_user); RETURN NEW; END$$;
             CREATE TRIGGER t BEFORE INSERT ON impersonate.audit FOR EACH ROW EXECUTE FUNCTION public.f()",
        )
        .unwrap();
    database
        .connect(OWNER)
        .batch_execute(&format!("SELECT setuser('{bob}')"))
        .unwrap();
    rows(&mut owner);
    assert_eq!(number(&mut owner, "SELECT count(*) FROM public.loot"), 0);
}
