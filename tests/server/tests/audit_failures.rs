//! L6: what becomes of impersonated statements when the writer can't get on, and of everybody else: nothing is dropped,
//! statements wait, then they fail with a hint, and who impersonates nobody is not touched.

use impersonate_server_tests::{fails, fails_with, wait_until, Cluster, Database, SmallDisk};
use postgres::Client;
use std::thread;
use std::time::{Duration, Instant};

const OWNER: &str = "postgres";

/// A database with a role that anybody may write as, and a table.
fn database(cluster: &Cluster) -> Database<'_> {
    let database = cluster.database("d");
    database
        .connect(OWNER)
        .batch_execute("CREATE TABLE t (i int) TABLESPACE pg_default")
        .unwrap();
    database
}

fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let builder = settings.iter().fold(Cluster::builder(), |builder, (name, value)| {
        builder.setting(name, value)
    });
    let cluster = builder.start();
    cluster
        .connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE bob LOGIN SUPERUSER")
        .unwrap();
    cluster
}

fn as_bob(database: &Database) -> Client {
    let mut client = database.connect(OWNER);
    client.batch_execute("SELECT setuser('bob')").unwrap();
    client
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

fn writer(client: &mut Client) -> Option<i32> {
    let rows = client.query(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer' AND datname = current_database()",
        &[],
    );
    rows.unwrap().first().map(|row| row.get(0))
}

#[test]
fn l6_a_writer_that_is_terminated_while_a_commit_waits_is_replaced() {
    let cluster = cluster(&[]);
    let database = database(&cluster);
    let mut owner = database.connect(OWNER);
    for (round, signal) in ["pg_terminate_backend", "pg_cancel_backend"]
        .iter()
        .cycle()
        .take(4)
        .enumerate()
    {
        let mut client = as_bob(&database);
        rows(&mut owner);
        let mut locker = database.connect(OWNER);
        locker.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
        let waiting = thread::spawn(move || client.batch_execute("INSERT INTO t VALUES (1)"));
        thread::sleep(Duration::from_millis(300));
        let pid = writer(&mut owner).expect("there is a writer");
        owner.batch_execute(&format!("SELECT {signal}({pid})")).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "it waits on");
        locker.batch_execute("ROLLBACK").unwrap();
        waiting.join().unwrap().unwrap();
        assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), round as i64 + 1);
        rows(&mut owner);
    }
}

#[test]
fn l6_a_writer_that_is_killed_while_commits_wait_leaves_no_effect_without_a_row() {
    let cluster = cluster(&[]);
    let database = database(&cluster);
    let clients: Vec<_> = (0..4).map(|_| as_bob(&database)).collect();
    let mut owner = database.connect(OWNER);
    rows(&mut owner);
    let mut locker = database.connect(OWNER);
    locker.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| thread::spawn(move || client.batch_execute("INSERT INTO t VALUES (1)")))
        .collect();
    thread::sleep(Duration::from_millis(300));
    cluster.kill_backend(writer(&mut owner).expect("there is a writer"));
    for one in waiting {
        assert!(one.join().unwrap().is_err());
    }
    cluster.wait_until_up();
    let mut owner = database.connect(OWNER);
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), 0);
    let before = rows(&mut owner);
    as_bob(&database).batch_execute("INSERT INTO t VALUES (2)").unwrap();
    assert!(rows(&mut owner) >= before + 2);
}

#[test]
fn l6_a_writer_that_fails_makes_commits_fail_and_loses_nothing() {
    let cluster = cluster(&[]);
    let database = database(&cluster);
    let mut owner = database.connect(OWNER);
    let mut client = as_bob(&database);
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").unwrap();
    rows(&mut owner);
    owner
        .batch_execute("ALTER TABLE impersonate.audit ADD CONSTRAINT no CHECK (statement NOT LIKE '%refused%')")
        .unwrap();
    client.batch_execute("INSERT INTO t VALUES (2) /* refused */").unwrap();
    let error = fails_with("55000", client.batch_execute("COMMIT"));
    assert!(error.detail.is_some_and(|detail| detail.contains("check constraint")));
    assert!(error.hint.is_some());
    fails_with("55000", client.batch_execute("INSERT INTO t VALUES (3)"));
    // Nor does anything else of it run, but what ends it; and others are as they were.
    owner.batch_execute("INSERT INTO t VALUES (10)").unwrap();
    fails(database.connect(OWNER).batch_execute("SELECT setuser('bob')"));
    assert_eq!(number(&mut owner, "SELECT sum(i) FROM t"), 10);
    owner
        .batch_execute("ALTER TABLE impersonate.audit DROP CONSTRAINT no")
        .unwrap();
    client.batch_execute("INSERT INTO t VALUES (4)").unwrap();
    rows(&mut owner);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%refused%'"
        ),
        1
    );
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement = 'COMMIT' AND sqlstate = '55000'"
        ),
        1
    );
}

/// What a busy session came to: statements that worked, and SQLSTATEs of those that didn't.
fn busy(mut client: Client, name: &str, statements: usize, writes: bool) -> (i64, Vec<String>) {
    let (mut worked, mut failed) = (0, Vec::new());
    for number in 0..statements {
        let padding = "x".repeat(number % 3 * 700);
        let text = if writes {
            format!("INSERT INTO t VALUES ({number}) /* {padding} */ /* {name} counted */")
        } else {
            format!("SELECT {number} /* {padding} */ /* {name} counted */")
        };
        match client.batch_execute(&text) {
            Ok(()) => worked += 1,
            error => {
                failed.push(fails(error).code);
                // It was refused, or undone.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
    (worked, failed)
}

#[test]
fn l6_eight_busy_sessions_at_the_smallest_queue_wait_and_lose_nothing() {
    for (wait, writes) in [("commit", true), ("flush", false), ("flush", true), ("off", true)] {
        let cluster = cluster(&[
            ("impersonate.audit_queue_size", "64kB"),
            ("impersonate.audit_wait", wait),
        ]);
        let database = database(&cluster);
        let worked: i64 = thread::scope(|scope| {
            let sessions: Vec<_> = (0..8)
                .map(|session| {
                    let client = as_bob(&database);
                    scope.spawn(move || busy(client, &format!("s{session}"), 60, writes))
                })
                .collect();
            let outcomes = sessions.into_iter().map(|session| session.join().unwrap());
            outcomes
                .map(|(worked, failed)| {
                    assert!(failed.is_empty(), "{wait}: {failed:?}");
                    worked
                })
                .sum()
        });
        let mut owner = database.connect(OWNER);
        rows(&mut owner);
        assert_eq!(worked, 480);
        assert_eq!(
            number(
                &mut owner,
                "SELECT count(*) FROM impersonate.audit
                  WHERE statement LIKE '%counted%' AND detail->>'phase' IS DISTINCT FROM 'begun'"
            ),
            480,
            "{wait}"
        );
    }
}

#[test]
fn l6_a_locked_table_fills_the_queue_and_then_statements_fail_with_a_hint() {
    let cluster = cluster(&[
        ("impersonate.audit_queue_size", "64kB"),
        ("impersonate.audit_wait_limit", "1s"),
    ]);
    let database = database(&cluster);
    let clients: Vec<_> = (0..8).map(|_| as_bob(&database)).collect();
    let mut owner = database.connect(OWNER);
    rows(&mut owner);
    let mut locker = database.connect(OWNER);
    locker.batch_execute("BEGIN; LOCK TABLE impersonate.audit").unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let sessions: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(session, client)| scope.spawn(move || busy(client, &format!("s{session}"), 20, false)))
            .collect();
        // Who impersonates nobody is not touched.
        thread::sleep(Duration::from_secs(2));
        let began = Instant::now();
        for _ in 0..20 {
            owner
                .batch_execute("INSERT INTO t VALUES (1); SELECT count(*) FROM t")
                .unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(2));
        sessions.into_iter().map(|session| session.join().unwrap()).collect()
    });
    locker.batch_execute("ROLLBACK").unwrap();
    let failed: Vec<_> = outcomes.iter().flat_map(|(_, failed)| failed).collect();
    assert!(!failed.is_empty(), "64 kB can't hold that");
    assert!(failed.iter().all(|code| *code == "55P03"), "{failed:?}");
    rows(&mut owner);
    let worked: i64 = outcomes.iter().map(|(worked, _)| worked).sum();
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%counted%' AND sqlstate = '00000'"
        ),
        worked
    );
}

#[test]
fn l6_a_full_disk_makes_impersonated_statements_fail_until_there_is_room() {
    let cluster = cluster(&[]);
    let database = database(&cluster);
    let mut client = as_bob(&database);
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    drop(client);
    let name = database.name.clone();
    let mut other = cluster.connect(OWNER, OWNER);
    let disk = SmallDisk::new(&cluster, 32);
    other
        .batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display()))
        .unwrap();
    // With the writer running, which makes way.
    wait_until("the session has gone", || {
        number(
            &mut other,
            &format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"
            ),
        ) == 0
    });
    other
        .batch_execute(&format!("ALTER DATABASE {name} SET TABLESPACE small"))
        .unwrap();
    let mut owner = database.connect(OWNER);
    let mut client = as_bob(&database);
    // Its own table is not on that disk.
    client.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    disk.fill();
    let error = (0..10_000)
        .find_map(|number| {
            let text = format!("INSERT INTO t VALUES (3) /* {number} {} */", "x".repeat(5000));
            client.batch_execute(&text).err()
        })
        .expect("the disk gets full");
    let error = error.as_db_error().expect("the server says so").clone();
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("53100")),
        "{error:?}"
    );
    assert!(error.hint().is_some());
    let written = number(&mut owner, "SELECT count(*) FROM t");
    fails_with("55000", client.batch_execute("INSERT INTO t VALUES (4)"));
    fails_with("55000", client.batch_execute("SELECT 1"));
    // Others write where there is room.
    owner.batch_execute("INSERT INTO t VALUES (5)").unwrap();
    other.batch_execute("CREATE TABLE elsewhere (i int)").unwrap();
    disk.empty();
    client.batch_execute("INSERT INTO t VALUES (6)").unwrap();
    rows(&mut owner);
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t"), written + 2);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement LIKE 'INSERT INTO t VALUES (3)%' AND sqlstate = '00000'"
        ),
        // The last one's row is there, though it was undone.
        number(&mut owner, "SELECT count(*) FROM t WHERE i = 3") + 1
    );
    // The disk goes away with its mount, so the database must not be there any more.
    drop((client, owner));
    drop(cluster);
}

#[test]
fn l6_without_a_free_worker_slot_rights_can_be_granted_and_nobody_impersonated() {
    // One for the logical replication launcher, one for a writer.
    let cluster = cluster(&[("max_worker_processes", "2"), ("impersonate.audit_writer_idle", "1s")]);
    let (one, two) = (database(&cluster), database(&cluster));
    let mut holder = as_bob(&one);
    let mut owner = two.connect(OWNER);
    owner
        .batch_execute("CREATE ROLE imp LOGIN; CREATE ROLE carol LOGIN")
        .unwrap();
    owner.batch_execute("GRANT \"SET USER\" (carol) TO imp").unwrap();
    // A restart, which more slots need, would lose it.
    let logged =
        "audit event not stored, no background worker slot is free, so it waits in the queue: {\"event\": \"GRANT\"";
    assert_eq!(cluster.log().matches(logged).count(), 1, "{}", cluster.log());
    let error = fails_with("53400", two.connect(OWNER).batch_execute("SELECT setuser('bob')"));
    assert!(error.hint.is_some_and(|hint| hint.contains("max_worker_processes")));
    owner.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    // In the first database it goes on.
    holder.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    holder.batch_execute("SELECT setuser()").unwrap();
    wait_until("the other writer has gone", || {
        writer(&mut one.connect(OWNER)).is_none()
    });
    as_bob(&two).batch_execute("INSERT INTO t VALUES (2)").unwrap();
    rows(&mut owner);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE event = 'GRANT'"
        ),
        1
    );
}

#[test]
fn l6_dropping_a_database_by_force_ends_its_sessions_and_its_writer() {
    let cluster = cluster(&[]);
    let mut other = cluster.connect(OWNER, OWNER);
    for _ in 0..3 {
        let name = database(&cluster).name;
        let sessions: Vec<_> = (0..4)
            .map(|session| {
                let mut client = cluster.connect(OWNER, &name);
                client.batch_execute("SELECT setuser('bob')").unwrap();
                thread::spawn(move || {
                    let text = ["INSERT INTO t VALUES (1)", "SELECT pg_sleep(10)"][session % 2];
                    while client.batch_execute(text).is_ok() {}
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        other
            .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
            .unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        sessions.into_iter().for_each(|session| session.join().unwrap());
    }
    let database = database(&cluster);
    as_bob(&database).batch_execute("INSERT INTO t VALUES (1)").unwrap();
    rows(&mut database.connect(OWNER));
    assert!(!cluster.log().contains("PANIC"));
}

#[test]
fn l6_more_databases_than_queues() {
    let cluster = cluster(&[("impersonate.audit_queues", "1")]);
    let (one, two) = (database(&cluster), database(&cluster));
    let mut first = as_bob(&one);
    let error = fails_with("53400", two.connect(OWNER).batch_execute("SELECT setuser('bob')"));
    assert!(error.hint.is_some_and(|hint| hint.contains("audit_queues")));
    first.batch_execute("SELECT setuser()").unwrap();
    cluster.set("impersonate.audit_writer_idle", "0");
    cluster.reload();
    wait_until("the queue is free", || {
        two.connect(OWNER).batch_execute("SELECT setuser('bob')").is_ok()
    });
}

/// CRC-32C, bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    })
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A statement's event of that time and outcome, as a standby would send it: the first of its spool.
fn sent(admin: &mut Client, time: i64, sqlstate: &[u8; 5]) -> Vec<u8> {
    let texts: [&[u8]; 9] = [b"bob", b"imp", b"bob", b"", b"::1", b"SELECT", b"SELECT 1", b"", b"{}"];
    let mut event = vec![0; 80];
    event[4] = 3;
    event[8..16].copy_from_slice(&time.to_le_bytes());
    event[28..33].copy_from_slice(sqlstate);
    texts
        .iter()
        .for_each(|text| event.extend((text.len() as u32).to_le_bytes()));
    texts.iter().for_each(|text| event.extend(*text));
    event.extend([0xff; 8]);
    let mut event = padded(event);
    let length = event.len() as u32;
    event[..4].copy_from_slice(&length.to_le_bytes());
    let hashed = [&[0; 32][..], b"spool/1\0", &1_u64.to_be_bytes(), &event].concat();
    let hash: Vec<u8> = admin.query_one("SELECT sha256($1)", &[&hashed]).unwrap().get(0);
    let record = [&1_u64.to_le_bytes()[..], &[0; 8], &hash, &event].concat();
    let head = [length.to_le_bytes(), checksum(&record).to_le_bytes()].concat();
    [vec![1, 0, 0, 0, 0, 0, 0, 0], padded([head, record].concat())].concat()
}

/// For whose time there can be no partition, none could be stored behind it.
#[test]
fn l6_what_a_node_sends_cannot_stop_the_writer() {
    const SECOND: i64 = 1_000_000;
    let cluster = cluster(&[("impersonate.node_name", "primary")]);
    let database = database(&cluster);
    let mut admin = database.connect(OWNER);
    let mut receive = |node: &str, time: i64, sqlstate: &[u8; 5]| {
        let events = sent(&mut admin, time, sqlstate);
        admin.query_one(
            "SELECT impersonate.audit_receive($1, (SELECT system_identifier::text FROM pg_control_system()),
                                              gen_random_uuid(), $2)",
            &[&node, &events],
        )
    };
    for time in [
        i64::MIN,
        i64::MAX,
        1 - i64::MAX,
        i64::MAX - 1,
        8000 * 31_557_600 * SECOND,
        -200 * 31_557_600 * SECOND,
    ] {
        fails_with("22P03", receive("north", time, b"00000"));
    }
    for sqlstate in [b"\0\0\0\0\0", b"4250\xff", b"0000'"] {
        fails_with("22P03", receive("north", 0, sqlstate));
    }
    for (node, year) in [("a", -99), ("b", 0), ("c", 20), ("d", 7999)] {
        let done = receive(node, year * 31_557_600 * SECOND, b"42P01").unwrap();
        assert_eq!(done.get::<_, i64>(0), 1, "{year}");
    }
    assert_eq!(rows(&mut admin), 4);
    as_bob(&database).batch_execute("SELECT 1").unwrap();
    assert!(rows(&mut admin) >= 6);
    let report: i32 = admin
        .query_one("SELECT length(impersonate.report())", &[])
        .unwrap()
        .get(0);
    assert!(report > 0);
}

#[test]
fn n2_what_a_node_reports_can_be_read_by_others() {
    let cluster = cluster(&[("impersonate.node_name", "primary")]);
    let database = database(&cluster);
    let mut admin = database.connect(OWNER);
    let mut report = |active: Option<&str>| {
        admin.query_one(
            "SELECT impersonate.report_node('north', (SELECT system_identifier::text FROM pg_control_system()),
                                            $1::text::jsonb)",
            &[&active],
        )
    };
    for active in [None, Some("5"), Some("{}"), Some("null")] {
        fails_with("22023", report(active));
    }
    fails_with("22P02", report(Some(r#"[{"pid": "x"}]"#)));
    fails_with("22007", report(Some(r#"[{"since": "x"}]"#)));
    fails_with("22023", report(Some("[5]")));
    report(Some(r#"[{"pid": 5, "target": "bob"}]"#)).unwrap();
    let seen = "SELECT count(*) FROM impersonate.active_nodes WHERE node = 'north' AND pid = 5";
    assert_eq!(number(&mut admin, seen), 1);
    assert_eq!(number(&mut admin, "SELECT count(*) FROM impersonate.node_metrics"), 1);
}
