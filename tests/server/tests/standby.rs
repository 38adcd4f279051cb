//! Hot standbys (SPEC section 7): who acts as whom there, what a replayed role change ends (N1), and how the audit of a
//! standby reaches the primary, each event once (N2).

use impersonate_server_tests::raw::{error_in, rows_in, Message, RawClient};
use impersonate_server_tests::{fails_with, wait_until, within, Cluster, ServerError, SmallDisk};
use postgres::Client;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const OWNER: &str = "postgres";

// ------------------------------------------------------------------------------------------------------------ a stage ---

/// A primary with roles `imp`, `bob` and `carol`, a table `t`, and rights over bob for imp.
struct Stage {
    primary: Cluster,
    database: String,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Stage {
        let mut builder = Cluster::builder()
            .setting("cluster_name", "primary")
            .setting("max_worker_processes", "16")
            .setting("wal_receiver_status_interval", "1s")
            // A base backup of a standby asks for it.
            .setting("full_page_writes", "on");
        for (name, value) in settings {
            builder = builder.setting(name, value);
        }
        let primary = builder.start();
        let database = primary.database("nodes").name;
        primary
            .connect(OWNER, &database)
            .batch_execute(
                "CREATE ROLE imp LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE spare;
                 CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 10); GRANT SELECT, INSERT ON t TO bob;
                 GRANT \"SET USER\" (bob) TO imp;
                 CREATE ROLE shipper LOGIN;
                 GRANT EXECUTE ON FUNCTION impersonate.audit_receive, impersonate.report_node TO shipper",
            )
            .unwrap();
        Stage { primary, database }
    }

    fn standby(&self, name: &str) -> Cluster {
        self.standby_with(name, &[])
    }

    /// One that sends its events to the primary.
    fn standby_with(&self, name: &str, settings: &[(&str, &str)]) -> Cluster {
        let conninfo = self.primary.conninfo("shipper");
        let settings = [&[("impersonate.primary_conninfo", conninfo.as_str())], settings].concat();
        self.primary.standby(name, &settings)
    }

    fn raw(&self, node: &Cluster) -> RawClient {
        RawClient::connect(node, "imp", &self.database)
    }

    fn admin(&self, sql: &str) {
        if let Err(error) = self.primary.connect(OWNER, &self.database).batch_execute(sql) {
            panic!("{sql}: {error:?}");
        }
    }
}

#[track_caller]
fn ok(client: &mut RawClient, sql: &str) -> Vec<Message> {
    let answer = client.simple(sql);
    assert_eq!(error_in(&answer), None, "{sql}");
    answer
}

#[track_caller]
fn value(client: &mut RawClient, sql: &str) -> String {
    let answer = ok(client, sql);
    rows_in(&answer)[0][0].clone().unwrap_or_default()
}

#[track_caller]
fn fatal(client: &mut RawClient) -> ServerError {
    let messages = client.read_to_end();
    error_in(&messages).expect("the reason")
}

/// Rows as text, a column each.
#[track_caller]
fn look(node: &Cluster, database: &str, sql: &str) -> Vec<String> {
    let mut client = node.connect(OWNER, database);
    texts(&mut client, sql)
}

#[track_caller]
fn texts(client: &mut Client, sql: &str) -> Vec<String> {
    let answer = client.simple_query(sql);
    let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    answer
        .iter()
        .filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .collect()
}

/// Waits until a query gives these rows.
#[track_caller]
fn wait_for_rows(node: &Cluster, database: &str, sql: &str, expected: &[&str]) {
    let mut client = node.connect(OWNER, database);
    let mut seen = Vec::new();
    let came = within(Duration::from_secs(20), || {
        seen = texts(&mut client, sql);
        seen == expected
    });
    assert!(came, "{sql}\n  gives {seen:?}\n  and not {expected:?}\n{}", node.log());
}

/// The chain of the primary's rows holds, and each spool's events are there once and in order.
#[track_caller]
fn audit_holds(primary: &Cluster, database: &str) {
    let mut client = primary.connect(OWNER, database);
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    assert_eq!(
        texts(
            &mut client,
            "SELECT ok || COALESCE(detail, '') FROM impersonate.audit_verify()"
        ),
        ["true"]
    );
    let odd = texts(
        &mut client,
        "SELECT format('%s: %s rows, positions %s to %s', node, count(*), min(p), max(p))
           FROM (SELECT node, (detail->>'node_position')::bigint AS p FROM impersonate.audit
                  WHERE detail ? 'node_position') a
          GROUP BY node HAVING count(*) <> max(p) OR count(DISTINCT p) <> max(p) OR min(p) <> 1",
    );
    assert_eq!(odd, [""; 0]);
}

/// No process of a node has crashed.
#[track_caller]
fn no_crash(node: &Cluster) {
    for sign in ["was terminated by signal", "PANIC", "TRAP"] {
        assert!(!node.log().contains(sign), "{}", node.log());
    }
}

// ----------------------------------------------------------------------------------------------------------------- N1 ---

#[test]
fn n1_rights_arrive_by_replication_and_what_is_done_reaches_the_primary() {
    let stage = Stage::new();
    let north = stage.standby("north");
    let mut session = stage.raw(&north);
    assert_eq!(value(&mut session, "SELECT setuser('bob', reason => 'INC-1')"), "bob");
    assert_eq!(
        value(&mut session, "SELECT current_user || ' ' || session_user"),
        "bob imp"
    );
    assert_eq!(value(&mut session, "SELECT count(*) FROM t"), "10");
    assert_eq!(
        look(
            &north,
            &stage.database,
            "SELECT impersonator || ' ' || target FROM impersonate.active"
        ),
        ["imp bob"]
    );
    // Writing is the server's to refuse, and on record like anything else.
    assert_eq!(
        error_in(&session.simple("INSERT INTO t VALUES (1)")).unwrap().code,
        "25006"
    );
    ok(&mut session, "SELECT setuser()");
    // The other doors.
    ok(&mut session, "SET impersonate.target = 'bob'");
    assert_eq!(value(&mut session, "SELECT current_user"), "bob");
    ok(&mut session, "RESET impersonate.target");
    ok(&mut session, "BEGIN; SELECT setuser('bob', local => true)");
    ok(&mut session, "COMMIT");
    assert_eq!(value(&mut session, "SELECT current_user"), "imp");
    // What is refused on the primary is refused here.
    assert_eq!(
        error_in(&session.simple("SELECT setuser('carol')")).unwrap().code,
        "42501"
    );
    stage.admin("GRANT \"SET USER\" (carol) TO imp");
    stage.primary.wait_for(&north);
    assert_eq!(value(&mut session, "SELECT setuser('carol')"), "carol");
    // E6.
    let ended = format!("SELECT impersonate.terminate({})::text", session.pid());
    assert_eq!(look(&north, &stage.database, &ended), ["true"]);
    assert_eq!(fatal(&mut session).code, "57P01");

    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT event || COALESCE(' ' || left(statement, 40), '') FROM impersonate.audit
          WHERE node = 'north' AND detail->>'phase' IS DISTINCT FROM 'begun'
          ORDER BY event_id",
        &[
            "SETUSER SELECT setuser('bob')",
            "STATEMENT SELECT current_user || ' ' || session_us",
            "STATEMENT SELECT count(*) FROM t",
            "STATEMENT INSERT INTO t VALUES (1)",
            "RESETUSER SELECT setuser()",
            "SETUSER SET impersonate.target = 'bob'",
            "STATEMENT SELECT current_user",
            "RESETUSER RESET impersonate.target",
            "SETUSER SELECT setuser('bob')",
            "STATEMENT COMMIT",
            "RESETUSER",
            "DENIED SELECT setuser('carol')",
            "SETUSER SELECT setuser('carol')",
            "TERMINATED",
            "RESETUSER",
        ],
    );
    audit_holds(&stage.primary, &stage.database);
    assert_eq!(
        look(
            &stage.primary,
            &stage.database,
            "SELECT DISTINCT COALESCE(node, '-') FROM impersonate.audit ORDER BY 1"
        ),
        ["north", "primary"]
    );
    no_crash(&north);
    no_crash(&stage.primary);
}

#[test]
fn n1_a_replayed_role_change_ends_the_connection_also_an_idle_one() {
    let stage = Stage::new();
    let north = stage.standby("north");
    let (mut idle, mut busy, mut spared) = (stage.raw(&north), stage.raw(&north), stage.raw(&north));
    for session in [&mut idle, &mut busy] {
        ok(session, "SELECT setuser('bob')");
    }
    ok(&mut spared, "SELECT setuser('imp')");
    busy.query("SELECT pg_sleep(60)");
    busy.flush();
    // What keeps the criteria passes.
    stage.admin("GRANT spare TO imp");
    stage.primary.wait_for(&north);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        look(&north, &stage.database, "SELECT count(*)::text FROM impersonate.active"),
        ["3"]
    );
    let began = Instant::now();
    stage.admin("REVOKE spare FROM imp; GRANT spare TO bob");
    for session in [&mut idle, &mut busy] {
        let error = fatal(session);
        assert_eq!((error.code.as_str(), error.severity.as_str()), ("57P01", "FATAL"));
        let detail = error.detail.unwrap();
        assert!(
            detail.contains("may no longer act as role \"bob\"") && detail.contains("spare"),
            "{detail}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(value(&mut spared, "SELECT current_user"), "imp");
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT concat_ws(' ', event, session_user_name, user_name, sqlstate, detail->>'criterion', detail->>'cause')
           FROM impersonate.audit WHERE node = 'north' AND event IN ('TERMINATED', 'RESETUSER') ORDER BY event, event_id",
        &[
            "RESETUSER imp bob 00000 terminated",
            "RESETUSER imp bob 00000 terminated",
            "TERMINATED imp bob 57P01 A2 replayed",
            "TERMINATED imp bob 57P01 A2 replayed",
        ],
    );
    // The right itself, a role that is dropped, one that expires by itself.
    stage.admin(
        "REVOKE spare FROM bob; CREATE ROLE dora LOGIN; CREATE ROLE emil LOGIN; GRANT \"SET USER\" (dora, emil) TO imp",
    );
    for (target, change) in [
        ("bob", "REVOKE \"SET USER\" (bob) FROM imp"),
        ("dora", "DROP ROLE dora"),
        ("emil", "ALTER ROLE emil VALID UNTIL 'now'"),
    ] {
        stage.primary.wait_for(&north);
        let mut session = stage.raw(&north);
        ok(&mut session, &format!("SELECT setuser('{target}')"));
        stage.admin(change);
        assert_eq!(fatal(&mut session).code, "57P01", "{change}");
    }
    stage.admin("CREATE ROLE finn LOGIN; GRANT \"SET USER\" (finn) TO imp");
    stage.admin(&format!(
        "ALTER ROLE finn VALID UNTIL '{}'",
        in_seconds(&stage.primary, 3)
    ));
    stage.primary.wait_for(&north);
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('finn')");
    assert_eq!(fatal(&mut session).code, "57P01");
    no_crash(&north);
}

fn in_seconds(node: &Cluster, seconds: u32) -> String {
    let query = format!("SELECT (clock_timestamp() + interval '{seconds} s')::text");
    look(node, OWNER, &query).remove(0)
}

#[test]
fn n2_the_way_to_the_primary_is_nobody_elses_business() {
    let node = Cluster::start_new();
    let database = node.database("secret").name;
    node.connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE anybody LOGIN")
        .unwrap();
    node.set(
        "impersonate.primary_conninfo",
        "host=/nowhere user=shipper password=s3cr3t",
    );
    node.reload();
    wait_until("it counts", || {
        look(&node, &database, "SHOW impersonate.primary_conninfo")[0].contains("s3cr3t")
    });
    node.set("impersonate.primary_conninfo", "host='s3cr3t");
    node.reload();
    let changed = "parameter \"impersonate.primary_conninfo\" changed";
    wait_until("it counts", || node.log().matches(changed).count() == 2);
    assert!(!node.log().contains("s3cr3t"), "{}", node.log());
    let mut anybody = node.connect("anybody", &database);
    assert_eq!(
        fails_with("42501", anybody.batch_execute("SHOW impersonate.primary_conninfo")).severity,
        "ERROR"
    );
    let shown = "SELECT name FROM pg_settings WHERE setting LIKE '%s3cr3t%'";
    assert!(texts(&mut anybody, shown).is_empty());
    for sql in [
        "SELECT * FROM impersonate.audit_spool",
        "SELECT * FROM impersonate.audit_spooled()",
        "SELECT * FROM impersonate.audit_node",
        "SELECT * FROM impersonate.active_nodes",
        "SELECT impersonate.retire_node('x')",
        "SELECT impersonate.discard_spool('00000000-0000-0000-0000-000000000001')",
        "SELECT * FROM impersonate.node_metrics",
        "SELECT impersonate.audit_receive('x', '1', '00000000-0000-0000-0000-000000000001', '')",
        "SELECT impersonate.report_node('x', '1', '[]')",
    ] {
        fails_with("42501", anybody.batch_execute(sql));
    }
}

#[test]
fn n2_a_standby_without_a_name_says_what_to_do() {
    let stage = Stage::new();
    let nameless = stage.standby("");
    let mut session = stage.raw(&nameless);
    let error = error_in(&session.simple("SELECT setuser('bob')")).unwrap();
    assert_eq!(error.code, "55000");
    assert!(
        error.hint.unwrap().contains("impersonate.node_name"),
        "{}",
        error.message
    );
    assert_eq!(value(&mut session, "SELECT current_user"), "imp");
    nameless.set("impersonate.node_name", "named");
    nameless.reload();
    wait_until("the name counts", || {
        error_in(&session.simple("SELECT setuser('bob')")).is_none()
    });
}

// ----------------------------------------------------------------------------------------------------------------- N2 ---

/// The events of a spool on a standby: position, and what it is.
fn spooled(node: &Cluster, database: &str) -> Vec<String> {
    look(
        node,
        database,
        "SELECT \"position\" || ' ' || concat_ws(' ', event->>'event', event->>'statement') FROM impersonate.audit_spooled()
          ORDER BY \"position\"",
    )
}

fn segments(node: &Cluster) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let databases = fs::read_dir(node.data().join("impersonate_spool"))
        .into_iter()
        .flatten();
    for database in databases {
        for entry in fs::read_dir(database.unwrap().path()).unwrap() {
            found.push(entry.unwrap().path());
        }
    }
    found.sort();
    found
}

/// What sessions did, by the ids that they put into their statements: each has its row once.
struct Done(Vec<String>);

impl Done {
    /// A session that acts as bob and runs so many statements of its own, until one fails.
    fn work(&mut self, stage: &Stage, node: &Cluster, name: &str, count: usize) {
        let mut session = stage.raw(node);
        if error_in(&session.simple("SELECT setuser('bob')")).is_some() {
            return;
        }
        for number in 0..count {
            let statement = format!("SELECT '{name}-{number}'");
            session.query(&statement);
            if session.try_flush().is_err() {
                return;
            }
            loop {
                match session.try_read() {
                    Ok(Message::DataRow(_)) => self.0.push(statement.clone()),
                    Ok(Message::ReadyForQuery(_)) => break,
                    Ok(_) => (),
                    Err(_) => return,
                }
            }
        }
    }

    /// Every statement whose result was seen has its row in the audit, once.
    #[track_caller]
    fn is_in(&self, primary: &Cluster, database: &str) {
        let rows = look(
            primary,
            database,
            "SELECT statement FROM impersonate.audit
              WHERE event = 'STATEMENT' AND statement LIKE 'SELECT ''%-%' AND detail->>'phase' = 'begun'",
        );
        for statement in &self.0 {
            let count = rows.iter().filter(|row| *row == statement).count();
            assert_eq!(count, 1, "{statement}");
        }
        let mut unique = rows.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), rows.len(), "none is there twice");
    }
}

#[test]
fn n2_events_wait_in_the_spool_while_the_primary_is_out_of_reach() {
    let mut stage = Stage::new();
    let mut north = stage.standby("north");
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    let on_primary = "SELECT count(*)::text FROM impersonate.audit WHERE node = 'north' AND detail->>'phase' = 'begun'";
    wait_for_rows(&stage.primary, &stage.database, on_primary, &["3"]);
    stage.primary.stop();
    done.work(&stage, &north, "b", 3);
    wait_until("the end is on record", || {
        spooled(&north, &stage.database)
            .last()
            .is_some_and(|last| last.ends_with("RESETUSER"))
    });
    let events = spooled(&north, &stage.database);
    assert!(
        events.iter().any(|event| event.ends_with("STATEMENT SELECT 'b-2'")),
        "{events:?}"
    );
    let waiting =
        "SELECT (waiting_events > 0 AND waiting_since IS NOT NULL AND NOT connected AND last_error IS NOT NULL)::text
                     FROM impersonate.audit_spool WHERE own";
    wait_for_rows(&north, &stage.database, waiting, &["true"]);
    // Neither a restart nor a crash of the standby loses any.
    north.restart();
    north.kill();
    north.start();
    assert_eq!(spooled(&north, &stage.database), events);
    done.work(&stage, &north, "c", 3);
    stage.primary.start();
    wait_for_rows(&stage.primary, &stage.database, on_primary, &["9"]);
    done.is_in(&stage.primary, &stage.database);
    audit_holds(&stage.primary, &stage.database);
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT waiting_events || ' ' || connected FROM impersonate.audit_spool WHERE own",
        &["0 true"],
    );
    no_crash(&stage.primary);
}

#[test]
fn n2_whoever_is_killed_while_events_are_sent_none_is_lost_and_none_is_there_twice() {
    let rounds = std::env::var("STANDBY_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let mut stage = Stage::new();
    let north = stage.standby("north");
    let south = stage.standby("south");
    let mut done = Done(Vec::new());
    for round in 0..rounds {
        for node in [&north, &south] {
            done.work(&stage, node, &format!("r{round}x"), 10);
        }
        let mut more = Done(Vec::new());
        std::thread::scope(|scope| {
            let (stage, north, south) = (&stage, &north, &south);
            let worker = scope.spawn(move || {
                let mut done = Done(Vec::new());
                done.work(stage, north, &format!("r{round}y"), 60);
                done.work(stage, south, &format!("r{round}z"), 60);
                done
            });
            for node in [north, south] {
                std::thread::sleep(Duration::from_millis(37 * (round as u64 % 7)));
                let shippers =
                    "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'impersonate audit shipper'";
                // By its own means, and on the primary the backend that serves it.
                for pid in look(node, &stage.database, shippers) {
                    look(node, OWNER, &format!("SELECT pg_terminate_backend({pid})::text"));
                }
                look(
                    &stage.primary,
                    OWNER,
                    "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE usename = 'shipper'",
                );
            }
            more = worker.join().unwrap();
        });
        done.0.append(&mut more.0);
        match round % 3 {
            1 => {
                stage.primary.kill();
                stage.primary.start();
            }
            2 => {
                // In the middle of whatever it does: the whole standby recovers.
                let shippers =
                    "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'impersonate audit shipper'";
                // One that was asked to end above may have done so.
                for pid in look(&north, &stage.database, shippers) {
                    north.try_kill_backend(pid.parse().unwrap());
                }
                north.wait_until_up();
            }
            _ => (),
        }
    }
    assert!(done.0.len() > 20 * rounds);
    for node in [&north, &south] {
        wait_for_rows(
            node,
            &stage.database,
            "SELECT waiting_events::text FROM impersonate.audit_spool WHERE own",
            &["0"],
        );
    }
    // The same statement was run on two nodes.
    let mut client = stage.primary.connect(OWNER, &stage.database);
    for node in ["north", "south"] {
        let own = |statement: &&String| match node {
            "north" => !statement.contains('z'),
            _ => !statement.contains('y'),
        };
        let rows = texts(
            &mut client,
            &format!(
                "SELECT statement FROM impersonate.audit
                  WHERE node = '{node}' AND event = 'STATEMENT' AND detail->>'phase' = 'begun'"
            ),
        );
        for statement in done.0.iter().filter(own) {
            assert_eq!(
                rows.iter().filter(|row| *row == statement).count(),
                1,
                "{node}: {statement}"
            );
        }
    }
    audit_holds(&stage.primary, &stage.database);
    no_crash(&south);
    assert!(!north.log().contains("PANIC"), "{}", north.log());
}

#[test]
fn n2_a_promotion_under_load_loses_nothing_and_doubles_nothing() {
    let mut stage = Stage::new();
    let north = stage.standby("north");
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 20);
    // What of it has reached the primary, and come back, is left to chance; the rest is there alone.
    std::thread::scope(|scope| {
        let (stage, north) = (&mut stage, &north);
        let (database, name) = (stage.database.clone(), OWNER);
        let workers: Vec<_> = (0..3)
            .map(|number| {
                let database = database.clone();
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    let mut session = RawClient::connect(north, "imp", &database);
                    ok(&mut session, "SELECT setuser('bob')");
                    for at in 0..150 {
                        let statement = format!("SELECT 'p{number}-{at}'");
                        ok(&mut session, &statement);
                        seen.push(statement);
                    }
                    seen
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        stage.primary.kill();
        std::thread::sleep(Duration::from_millis(200));
        let mut client = north.connect(name, name);
        let promoted: bool = client.query_one("SELECT pg_promote()", &[]).unwrap().get(0);
        assert!(promoted);
        for worker in workers {
            done.0.append(&mut worker.join().unwrap());
        }
    });
    assert!(done.0.len() >= 470);
    // The new primary goes on with the table, and its own spool is taken in and gone.
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT count(*)::text FROM impersonate.audit_spool",
        &["0"],
    );
    assert!(segments(&north).is_empty(), "{:?}", segments(&north));
    done.is_in(&north, &stage.database);
    audit_holds(&north, &stage.database);
    // The name may be that of a standby again.
    assert_eq!(
        look(
            &north,
            &stage.database,
            "SELECT (retired_at IS NOT NULL)::text FROM impersonate.audit_node"
        ),
        ["true"]
    );
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    ok(&mut session, "INSERT INTO t VALUES (11)");
    no_crash(&north);
}

#[test]
fn n2_a_full_spool_makes_statements_fail_and_loses_nothing() {
    let stage = Stage::new();
    // Nowhere to send to.
    let north = stage.standby_with(
        "north",
        &[
            ("impersonate.audit_spool_limit", "1MB"),
            ("impersonate.audit_queue_size", "64kB"),
            ("impersonate.primary_conninfo", "host=/nowhere user=shipper"),
        ],
    );
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    let long = "x".repeat(3000);
    let mut seen = 0;
    let error = loop {
        match error_in(&session.simple(&format!("SELECT {seen}, '{long}'"))) {
            None => seen += 1,
            Some(error) => break error,
        }
        assert!(seen < 1000, "the limit doesn't count");
    };
    assert_eq!(error.code, "55000");
    assert!(error.detail.unwrap().contains("impersonate.audit_spool_limit"));
    assert!(seen > 50, "{seen}");
    // Those who impersonate nobody are not touched.
    let mut plain = stage.raw(&north);
    assert_eq!(value(&mut plain, "SELECT current_user"), "imp");
    assert!(error_in(&plain.simple("SELECT setuser('bob')")).is_some());
    // As soon as it can be sent, they go on.
    north.set("impersonate.primary_conninfo", &stage.primary.conninfo("shipper"));
    north.set("impersonate.audit_spool_limit", "4MB");
    north.reload();
    wait_until("statements run again", || {
        error_in(&session.simple("SELECT 'again'")).is_none()
    });
    drop((session, plain));
    let begun = "SELECT count(DISTINCT split_part(split_part(statement, ' ', 2), ',', 1))::text FROM impersonate.audit
                  WHERE node = 'north' AND statement LIKE 'SELECT %xxx%' AND sqlstate = '00000'";
    // The one that failed began, or didn't.
    wait_until("all are on the primary", || {
        let count: usize = look(&stage.primary, &stage.database, begun)[0].parse().unwrap();
        count == seen || count == seen + 1
    });
    audit_holds(&stage.primary, &stage.database);
    no_crash(&north);
}

#[test]
fn n2_what_does_not_follow_is_refused_with_what_to_do() {
    let stage = Stage::new();
    let mut north = stage.standby("north");
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    let arrived = "SELECT max(position)::text FROM impersonate.audit_node WHERE node = 'north'";
    wait_for_rows(&stage.primary, &stage.database, arrived, &["8"]);
    let system = look(
        &stage.primary,
        OWNER,
        "SELECT system_identifier::text FROM pg_control_system()",
    )
    .remove(0);
    let records = fs::read(&segments(&north)[0]).unwrap()[512..].to_vec();
    let mut shipper = stage.primary.connect("shipper", &stage.database);
    let mut receive = |node: &str, system: &str, spool: u8, records: &[u8]| {
        let packed: String = [&[1, 0, 0, 0, 0, 0, 0, 0], records]
            .concat()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let spool = format!("{spool:02}").repeat(16);
        let answer = shipper.simple_query(&format!(
            "SELECT impersonate.audit_receive('{node}', '{system}', '{spool}', '\\x{packed}')"
        ));
        answer.map(|rows| {
            rows.iter().find_map(|row| match row {
                postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
        })
    };
    let first = 56 + u32::from_le_bytes(records[..4].try_into().unwrap()) as usize;
    let first = first.next_multiple_of(8);
    fails_with("55000", receive("x", "1", 1, &[]));
    fails_with("55000", receive("primary", &system, 1, &[]));
    fails_with("22023", receive("", &system, 1, &[]));
    let error = fails_with("55000", receive("north", &system, 1, &[]));
    assert!(
        error.hint.unwrap().contains("impersonate.retire_node"),
        "{}",
        error.message
    );
    let mut broken = records.clone();
    broken[first / 2] ^= 1;
    fails_with("22P03", receive("x", &system, 2, &broken));
    fails_with("22P03", receive("x", &system, 2, &records[..first - 9]));
    // A gap at the beginning, then what is whole, twice, then a gap behind it.
    fails_with("55000", receive("x", &system, 2, &records[first..]));
    assert_eq!(
        receive("x", &system, 2, &records[..first]).unwrap().as_deref(),
        Some("1")
    );
    assert_eq!(receive("x", &system, 2, &records).unwrap().as_deref(), Some("8"));
    assert_eq!(receive("x", &system, 2, &records).unwrap().as_deref(), Some("8"));
    assert_eq!(receive("x", &system, 2, &[]).unwrap().as_deref(), Some("8"));
    // Whole records of another spool don't follow.
    let south = stage.standby("south");
    done.work(&stage, &south, "b", 5);
    wait_until("south's are on disk", || segments(&south).len() == 1);
    let others = fs::read(&segments(&south)[0]).unwrap()[512..].to_vec();
    let error = fails_with("55000", receive("x", &system, 2, &others));
    assert!(error.message.contains("not those that it had"), "{error:?}");
    let packed: String = [1, 0, 0, 0, 0, 0, 0, 0]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut reader = south.connect(OWNER, &stage.database);
    let call = format!(
        "SELECT impersonate.audit_receive('y', '{system}', '{}', '\\x{packed}')",
        "03".repeat(16)
    );
    fails_with("25006", reader.batch_execute(&call));

    // A standby that is made anew under its name begins another spool.
    north.stop();
    drop(north);
    let north = stage.standby("north");
    done.work(&stage, &north, "c", 3);
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT (last_error LIKE '%another audit spool%retire_node%')::text FROM impersonate.audit_spool WHERE own",
        &["true"],
    );
    assert_eq!(
        look(
            &stage.primary,
            &stage.database,
            "SELECT impersonate.retire_node('north')::text"
        ),
        ["true"]
    );
    assert_eq!(
        look(
            &stage.primary,
            &stage.database,
            "SELECT impersonate.retire_node('north')::text"
        ),
        ["false"]
    );
    let both = "SELECT position || ' ' || (retired_at IS NOT NULL) FROM impersonate.audit_node WHERE node = 'north' ORDER BY 1";
    wait_for_rows(&stage.primary, &stage.database, both, &["8 false", "8 true"]);
    let on_record = "SELECT detail->>'retired' FROM impersonate.audit WHERE event = 'NODE'";
    assert_eq!(look(&stage.primary, &stage.database, on_record), ["north", "north"]);
    assert_eq!(
        look(
            &stage.primary,
            &stage.database,
            "SELECT ok::text FROM impersonate.audit_verify()"
        ),
        ["true"]
    );
    no_crash(&stage.primary);
    no_crash(&north);
}

#[test]
fn n2_a_standby_of_a_standby_sends_to_the_primary_and_leaves_the_others_spool_alone() {
    let stage = Stage::new();
    let mut north = stage.standby_with(
        "north",
        &[("impersonate.primary_conninfo", "host=/nowhere user=shipper")],
    );
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    // With north's spool in it, not sent yet.
    let conninfo = stage.primary.conninfo("shipper");
    let below = north.standby("below", &[("impersonate.primary_conninfo", &conninfo)]);
    done.work(&stage, &below, "b", 3);
    let arrived =
        "SELECT node || ' ' || count(*) FROM impersonate.audit WHERE node <> 'primary' GROUP BY node ORDER BY 1";
    wait_for_rows(&stage.primary, &stage.database, arrived, &["below 8"]);
    wait_for_rows(
        &below,
        &stage.database,
        "SELECT concat_ws(' ', node, own, newest_position, connected) FROM impersonate.audit_spool ORDER BY node",
        &["below t 8 t", "north f f"],
    );
    assert_eq!(
        below.log().matches("is that of node \"north\"").count(),
        1,
        "{}",
        below.log()
    );
    // The rows come back, and can be verified there.
    stage.primary.wait_for(&below);
    assert_eq!(
        look(
            &below,
            &stage.database,
            "SELECT (ok AND rows_checked > 8)::text FROM impersonate.audit_verify()"
        ),
        ["true"]
    );
    // A role change reaches it through the one above.
    let mut session = stage.raw(&below);
    ok(&mut session, "SELECT setuser('bob')");
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT concat_ws(' ', node, impersonator, target) FROM impersonate.active_nodes",
        &["below imp bob"],
    );
    stage.admin("REVOKE \"SET USER\" FROM imp");
    assert_eq!(fatal(&mut session).code, "57P01");
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT node FROM impersonate.active_nodes",
        &[],
    );
    // Promoted, it still leaves it alone; north's own events come from north, once it has a way.
    north.set("impersonate.primary_conninfo", &conninfo);
    north.restart();
    wait_for_rows(&stage.primary, &stage.database, arrived, &["below 11", "north 8"]);
    audit_holds(&stage.primary, &stage.database);
    below.promote();
    wait_for_rows(
        &below,
        &stage.database,
        "SELECT concat_ws(' ', node, own) FROM impersonate.audit_spool ORDER BY node",
        &["north f"],
    );
    audit_holds(&below, &stage.database);
    let discard =
        "SELECT impersonate.discard_spool(spool_id)::text FROM impersonate.audit_spool WHERE state = 'foreign'";
    // As much of it as was on disk when the copy was made.
    let there = "SELECT count(*)::text FROM impersonate.audit_spool s, impersonate.audit_spooled(s.spool_id)
                  WHERE s.state = 'foreign'";
    let there = look(&below, &stage.database, there);
    assert_ne!(there, ["0"]);
    assert_eq!(look(&below, &stage.database, discard), there);
    assert!(segments(&below).is_empty());
    no_crash(&below);
}

/// What arrived from each node: its statements that are told of once they begin.
const ARRIVED: &str = "SELECT node || ' ' || count(*) FROM impersonate.audit
                        WHERE detail->>'phase' = 'begun' AND statement LIKE 'SELECT ''%-%' GROUP BY node ORDER BY 1";

/// Nowhere to send to.
const NOWHERE: (&str, &str) = ("impersonate.primary_conninfo", "host=/nowhere user=shipper");

fn leads_to(node: &Cluster, conninfo: &str) {
    node.set("impersonate.primary_conninfo", conninfo);
    node.reload();
}

/// Files by their names, without their folders.
fn contents(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut contents(&path));
        } else {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn n2_pg_rewind_takes_no_event_from_a_spool_outside_of_the_data_folder() {
    let mut stage = Stage::with(&[("wal_log_hints", "on"), ("wal_keep_size", "256MB")]);
    let north = stage.standby("north");
    let conninfo = stage.primary.conninfo("shipper");
    let mut south = stage.primary.standby_created("south", &[]);
    let spools = south.host().join("spools");
    south.set("impersonate.audit_spool_directory", spools.to_str().unwrap());
    south.set("impersonate.primary_conninfo", &conninfo);
    south.start();
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "na", 5);
    done.work(&stage, &south, "sa", 5);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 5", "south 5"]);
    stage.primary.wait_for(&north);
    assert!(!south.data().join("impersonate_spool").exists());
    assert_eq!(contents(&spools).len(), 1);

    // North becomes a primary of its own, with a spool that was not sent; the others go on without it.
    leads_to(&north, NOWHERE.1);
    done.work(&stage, &north, "nb", 5);
    north.promote();
    done.work(&stage, &south, "sb", 5);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 5", "south 10"]);
    // These are lost with the primary that they were made on.
    Done(Vec::new()).work(&stage, &stage.primary, "lost", 5);
    stage.primary.wait_for(&south);
    leads_to(&south, NOWHERE.1);
    done.work(&stage, &south, "sc", 5);
    wait_for_rows(
        &south,
        &stage.database,
        "SELECT (waiting_events >= 5)::text FROM impersonate.audit_spool WHERE own",
        &["true"],
    );

    // Both are ahead of north. The primary was not stopped in order.
    south.stop();
    stage.primary.kill();
    let before = contents(&spools);
    for node in [&stage.primary, &south] {
        node.rewind(&north);
        node.set("impersonate.primary_conninfo", &north.conninfo("shipper"));
    }
    assert!(contents(&spools) == before, "the spool is as it was");
    stage.primary.start();
    south.start();
    done.work(&stage, &south, "sd", 5);
    done.work(&stage, &stage.primary, "pd", 5);
    wait_for_rows(&north, &stage.database, ARRIVED, &["north 10", "primary 5", "south 20"]);
    done.is_in(&north, &stage.database);
    audit_holds(&north, &stage.database);
    for node in [&north, &south, &stage.primary] {
        no_crash(node);
    }
}

#[test]
fn n2_what_pg_rewind_brings_of_another_nodes_spool_is_left_alone_and_ones_own_can_be_put_back() {
    let mut stage = Stage::with(&[("wal_log_hints", "on"), ("wal_keep_size", "256MB")]);
    let north = stage.standby("north");
    let mut south = stage.standby("south");
    // The one to be rewound onto: a standby below north, with a spool of its own.
    let west = north.standby("west", &[NOWHERE]);
    let mut done = Done(Vec::new());
    done.work(&stage, &south, "sa", 5);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["south 5"]);
    stage.primary.wait_for(&north);
    north.promote();
    stage.admin("INSERT INTO t VALUES (100)");
    stage.primary.wait_for(&south);
    leads_to(&south, NOWHERE.1);
    done.work(&stage, &south, "sb", 5);
    done.work(&stage, &west, "wa", 5);
    // Its control file has the new timeline after a restartpoint.
    north.connect(OWNER, OWNER).batch_execute("CHECKPOINT").unwrap();
    north.wait_for(&west);
    south.stop();
    stage.primary.stop();

    let (spool, aside) = (south.data().join("impersonate_spool"), south.host().join("aside"));
    let own = contents(&spool);
    fs::rename(&spool, &aside).unwrap();
    south.rewind(&west);
    let brought = contents(&spool);
    assert!(!brought.is_empty() && brought != own);
    south.set("impersonate.primary_conninfo", &north.conninfo("shipper"));
    south.follow(&north);
    south.start();
    wait_for_rows(
        &south,
        &stage.database,
        "SELECT concat_ws(' ', node, own, shipper_pid) FROM impersonate.audit_spool",
        &["west f"],
    );
    // It says what its spool must go on with, and begins none: the primary has some of one that isn't here.
    let mut session = stage.raw(&south);
    ok(&mut session, "SELECT setuser('imp')");
    drop(session);
    wait_for_rows(
        &south,
        &stage.database,
        "SELECT (last_error LIKE '%another audit spool of this node%')::text FROM impersonate.audit_spool WHERE own",
        &["true"],
    );
    assert!(contents(&spool).iter().any(|file| brought.contains(file)));
    south.stop();
    fs::remove_dir_all(&spool).unwrap();
    fs::rename(&aside, &spool).unwrap();
    south.start();
    done.work(&stage, &south, "sc", 5);
    leads_to(&west, &north.conninfo("shipper"));
    wait_for_rows(&north, &stage.database, ARRIVED, &["south 15", "west 5"]);
    done.is_in(&north, &stage.database);
    audit_holds(&north, &stage.database);
    for node in [&north, &south, &west] {
        no_crash(node);
    }
}

#[test]
fn n2_events_of_databases_in_other_encodings_arrive_as_the_primary_has_its_own() {
    let stage = Stage::new();
    // By bytes that EUC_JP doesn't have.
    stage.admin("CREATE ROLE \"i\u{20ac}\" LOGIN; CREATE ROLE helper; GRANT helper TO imp, \"i\u{20ac}\"");
    let databases = [
        ("LATIN1", "b\u{f8}b", "Gr\u{fc}\u{df}e"),
        ("EUC_JP", "\u{30dc}\u{30d6}", "\u{76e3}\u{67fb}\u{306e}\u{8a18}\u{9332}"),
        ("SQL_ASCII", "b\u{f6}b", "\u{76e3}\u{67fb} \u{20ac}"),
        ("UTF8", "b\u{e5}b", "\u{76e3}\u{67fb} \u{20ac} \u{1f980}"),
    ];
    let mut admin = stage.primary.connect(OWNER, OWNER);
    let mut said = Vec::new();
    for (encoding, target, word) in databases {
        let database = format!("in_{}", encoding.to_lowercase());
        admin
            .batch_execute(&format!(
                "CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            ))
            .unwrap();
        // No conversion there: what is sent is what is stored.
        let client_encoding = if encoding == "SQL_ASCII" { encoding } else { "UTF8" };
        let set = format!("SET client_encoding = '{client_encoding}'");
        let mut owner = RawClient::connect(&stage.primary, OWNER, &database);
        for sql in [
            set.clone(),
            "CREATE EXTENSION impersonate".to_owned(),
            format!("CREATE ROLE \"{target}\" LOGIN; GRANT \"SET USER\" TO helper"),
            "GRANT EXECUTE ON FUNCTION impersonate.audit_receive, impersonate.report_node TO shipper".to_owned(),
        ] {
            ok(&mut owner, &sql);
        }
        said.push((encoding, database, set, target, word));
    }
    let north = stage.standby("north");
    for (encoding, database, set, target, word) in &said {
        for node in [&stage.primary, &north] {
            for login in ["imp", "i\u{20ac}"] {
                let mut session = RawClient::connect(node, login, database);
                ok(&mut session, set);
                ok(&mut session, &format!("SELECT setuser('{target}', reason => '{word}')"));
                ok(&mut session, &format!("SELECT '{word}' AS \"{word}\""));
                assert!(error_in(&session.simple(&format!("SELECT {word}"))).is_some());
                // setuser() would return a name that cannot be sent.
                ok(&mut session, "RESET impersonate.target");
            }
        }
        wait_for_rows(
            &stage.primary,
            database,
            "SELECT count(*)::text FROM impersonate.audit WHERE node = 'north' AND event = 'RESETUSER'",
            &["2"],
        );
        let rows = |node: &str| {
            let bytes = |column: &str| format!("encode(textsend({column}), 'hex')");
            let columns = ["user_name", "session_user_name", "role_name", "statement", "reason"]
                .map(bytes)
                .join(", ");
            // Two rows of a statement on the standby.
            let sql = format!(
                "SELECT DISTINCT concat_ws(' ', event, sqlstate, {columns}) FROM impersonate.audit
                  WHERE node = '{node}' AND event <> 'GRANT' AND detail->>'phase' IS DISTINCT FROM 'begun' ORDER BY 1"
            );
            let mut client = RawClient::connect(&stage.primary, OWNER, database);
            let answer = ok(&mut client, &sql);
            rows_in(&answer)
        };
        let own = rows("primary");
        assert_eq!(own.len(), 8, "{own:?}");
        assert_eq!(rows("north"), own, "{database}");
        // Whoever reads it can: the rows, who is active, and what is in the spool.
        let mut logins = texts(
            &mut stage.primary.connect(OWNER, database),
            "SELECT DISTINCT session_user_name FROM impersonate.audit WHERE event = 'SETUSER'",
        );
        let other = match *encoding {
            "EUC_JP" => "i\\xE2\\x82\\xAC",
            "LATIN1" => "i\u{e2}\u{82}\u{ac}",
            _ => "i\u{20ac}",
        };
        logins.retain(|login| login != "imp");
        assert_eq!(logins, [other], "{encoding}");
        let mut session = RawClient::connect(&north, "i\u{20ac}", database);
        ok(&mut session, set);
        ok(&mut session, &format!("SELECT setuser('{target}')"));
        let reported = "SELECT node || ' ' || (pid > 0) FROM impersonate.active_nodes";
        wait_for_rows(&stage.primary, database, reported, &["north true"]);
        let shown = "SELECT (count(*) > 8)::text FROM impersonate.audit_spooled()";
        assert_eq!(look(&north, database, shown), ["true"]);
        let trouble =
            "SELECT COALESCE(last_error, '') FROM impersonate.audit_spool WHERE database = current_database()";
        assert_eq!(look(&north, database, trouble), [""]);
        drop(session);
        audit_holds(&stage.primary, database);
        stage.primary.wait_for(&north);
        audit_holds_per_spool(&north, database);
    }
    no_crash(&north);
    no_crash(&stage.primary);
}

#[test]
fn n2_a_host_that_is_silent_does_not_keep_events_from_the_next() {
    let stage = Stage::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let conninfo = format!(
        "host=127.0.0.1,{},/nowhere port={port},{},1 user=shipper target_session_attrs=read-write",
        stage.primary.host().display(),
        stage.primary.port()
    );
    let north = stage.standby_with("north", &[("impersonate.primary_conninfo", &conninfo)]);
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 3"]);
    // A standby among them is passed over.
    let south = stage.standby("south");
    let conninfo = format!(
        "host={},{} port={},{} user=shipper target_session_attrs=read-write",
        south.host().display(),
        stage.primary.host().display(),
        south.port(),
        stage.primary.port()
    );
    leads_to(&north, &conninfo);
    done.work(&stage, &north, "b", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 6"]);
    // When none is any good, it is told of each.
    leads_to(&north, "host=/nowhere,/elsewhere user=shipper");
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT (last_error LIKE '%/nowhere/%; %/elsewhere/%')::text FROM impersonate.audit_spool",
        &["true"],
    );
}

#[test]
fn n2_a_node_goes_on_when_its_damaged_spool_is_retired() {
    let stage = Stage::new();
    let mut north = stage.standby("north");
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 3"]);
    leads_to(&north, NOWHERE.1);
    Done(Vec::new()).work(&stage, &north, "lost", 3);
    north.stop();
    let file = segments(&north).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    bytes[512 + 70] ^= 1;
    fs::write(&file, &bytes).unwrap();
    north.start();
    let mut session = stage.raw(&north);
    assert_eq!(
        error_in(&session.simple("SELECT setuser('bob')")).unwrap().code,
        "55000"
    );
    stage.admin("SELECT impersonate.retire_node('north')");
    wait_until("it goes on", || {
        error_in(&session.simple("SELECT setuser('bob')")).is_none()
    });
    ok(&mut session, "SELECT 'b-0'");
    drop(session);
    leads_to(&north, &stage.primary.conninfo("shipper"));
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 4"]);
    // What is left of it is as it was, and that it can't be read is shown.
    let left = "SELECT (waiting_events IS NULL AND last_error LIKE '%is damaged%')::text FROM impersonate.audit_spool
                 WHERE state = 'retired'";
    assert_eq!(look(&north, &stage.database, left), ["true"]);
    assert!(contents(&north.data().join("impersonate_spool"))
        .iter()
        .any(|(_, kept)| *kept == bytes));
    let discard = "SELECT COALESCE(impersonate.discard_spool(spool_id)::text, 'unknown') FROM impersonate.audit_spool WHERE NOT own";
    assert_eq!(look(&north, &stage.database, discard), ["unknown"]);
    assert_eq!(segments(&north).len(), 1);
    audit_holds_per_spool(&stage.primary, &stage.database);
    no_crash(&north);
}

#[test]
fn n2_what_hours_without_a_primary_leave_is_sent_and_its_files_go() {
    let mut stage = Stage::new();
    // Files of 4 MB.
    let mut north = stage.standby_with("north", &[("impersonate.audit_spool_limit", "32MB")]);
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 3"]);
    stage.primary.stop();
    let long = "x".repeat(50_000);
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    for number in 0..160 {
        ok(&mut session, &format!("SELECT {number} /* {long} */"));
    }
    drop(session);
    let before = segments(&north).len();
    assert!(before >= 3, "{before} files");
    north.restart();
    assert_eq!(segments(&north).len(), before);
    stage.primary.start();
    let waiting = "SELECT waiting_events::text FROM impersonate.audit_spool WHERE own AND connected";
    assert!(within(Duration::from_secs(90), || look(
        &north,
        &stage.database,
        waiting
    ) == ["0"]));
    let arrived = "SELECT count(DISTINCT split_part(statement, ' ', 2))::text FROM impersonate.audit
                    WHERE node = 'north' AND length(statement) > 50000 AND sqlstate = '00000'";
    assert_eq!(look(&stage.primary, &stage.database, arrived), ["160"]);
    audit_holds(&stage.primary, &stage.database);
    wait_until("the files go", || segments(&north).len() == 2);
    // And it goes on.
    done.work(&stage, &north, "b", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 6"]);
    done.is_in(&stage.primary, &stage.database);
    no_crash(&north);
}

#[test]
fn n2_when_a_spool_is_retired_under_load_each_statement_is_on_the_primary_or_in_what_is_left() {
    let stage = Stage::new();
    let north = stage.standby("north");
    let mut done = Done(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|number| {
                let (stage, north) = (&stage, &north);
                scope.spawn(move || {
                    let mut done = Done(Vec::new());
                    for round in 0..8 {
                        done.work(stage, north, &format!("w{number}r{round}"), 100);
                    }
                    done.0
                })
            })
            .collect();
        for round in 0..4 {
            std::thread::sleep(Duration::from_millis(600 + 150 * round));
            stage.admin("SELECT impersonate.retire_node('north')");
            if round % 2 == 1 {
                let shippers =
                    "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE backend_type LIKE 'impersonate audit %'";
                look(&north, &stage.database, shippers);
            }
        }
        workers
            .into_iter()
            .for_each(|worker| done.0.append(&mut worker.join().unwrap()));
    });
    assert!(done.0.len() > 1000, "{}", done.0.len());
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT COALESCE(sum(waiting_events), 0)::text FROM impersonate.audit_spool WHERE own",
        &["0"],
    );
    let begun = "event = 'STATEMENT' AND detail->>'phase' = 'begun' AND node = 'north'";
    let mut rows = look(
        &stage.primary,
        &stage.database,
        &format!("SELECT statement FROM impersonate.audit WHERE {begun}"),
    );
    let arrived = rows.len();
    let left = "SELECT e.event->>'statement' FROM impersonate.audit_spool s, impersonate.audit_spooled(s.spool_id) e
                 WHERE s.state = 'retired' AND e.\"position\" > s.confirmed_position
                   AND e.event->>'event' = 'STATEMENT' AND e.event->'detail'->>'phase' = 'begun'";
    rows.append(&mut look(&north, &stage.database, left));
    assert!(arrived > 100, "{arrived}");
    rows.sort();
    let count = rows.len();
    rows.dedup();
    assert_eq!(count, rows.len(), "none is there twice");
    // A statement whose result nobody saw may have begun.
    let missing: Vec<_> = done.0.iter().filter(|one| rows.binary_search(one).is_err()).collect();
    assert!(missing.is_empty(), "{missing:?} of {}", done.0.len());
    audit_holds_per_spool(&stage.primary, &stage.database);
    no_crash(&north);
}

#[test]
fn n2_a_spool_that_is_left_behind_is_told_of_and_sent_once_it_is_moved() {
    let stage = Stage::new();
    let mut north = stage.standby_with("north", &[NOWHERE]);
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    let spools = north.host().join("spools");
    north.set("impersonate.audit_spool_directory", spools.to_str().unwrap());
    north.set("impersonate.primary_conninfo", &stage.primary.conninfo("shipper"));
    north.restart();
    wait_until("it is told of", || north.log().contains("of this node in"));
    north.stop();
    fs::rename(north.data().join("impersonate_spool"), &spools).unwrap();
    let said = north.log().len();
    north.start();
    done.work(&stage, &north, "b", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 6"]);
    done.is_in(&stage.primary, &stage.database);
    audit_holds(&stage.primary, &stage.database);
    assert!(!north.log()[said..].contains("of this node in"), "{}", north.log());
}

#[test]
fn n2_nodes_that_share_a_folder_of_spools_leave_each_others_alone() {
    let mut stage = Stage::new();
    let spools = stage.primary.host().join("spools");
    let settings = [("impersonate.audit_spool_directory", spools.to_str().unwrap()), NOWHERE];
    let [north, south] = ["north", "south"].map(|name| stage.primary.standby(name, &settings));
    let mut done = Done(Vec::new());
    std::thread::scope(|scope| {
        let workers = [("a", &north), ("b", &south)].map(|(name, node)| {
            let stage = &stage;
            scope.spawn(move || {
                let mut done = Done(Vec::new());
                done.work(stage, node, name, 20);
                done.0
            })
        });
        workers
            .into_iter()
            .for_each(|worker| done.0.append(&mut worker.join().unwrap()));
    });
    assert_eq!(done.0.len(), 40);
    for (node, shown) in [
        (&north, ["north own", "south foreign"]),
        (&south, ["north foreign", "south own"]),
    ] {
        let states = "SELECT node || ' ' || state FROM impersonate.audit_spool ORDER BY node";
        assert_eq!(look(node, &stage.database, states), shown);
        let discard = "SELECT impersonate.discard_spool(spool_id) FROM impersonate.audit_spool WHERE NOT own";
        fails_with("55006", node.connect(OWNER, &stage.database).batch_execute(discard));
    }
    leads_to(&south, &stage.primary.conninfo("shipper"));
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["south 20"]);
    stage.primary.wait_for(&north);
    stage.primary.stop();
    done.work(&stage, &south, "c", 5);
    north.promote();
    south.follow(&north);
    leads_to(&south, &north.conninfo("shipper"));
    wait_for_rows(&north, &stage.database, ARRIVED, &["north 20", "south 25"]);
    done.is_in(&north, &stage.database);
    audit_holds(&north, &stage.database);
    let left = "SELECT node || ' ' || state FROM impersonate.audit_spool";
    wait_for_rows(&north, &stage.database, left, &["south foreign"]);
    wait_for_rows(&south, &stage.database, left, &["south own"]);
    no_crash(&north);
    no_crash(&south);
}

#[test]
fn n2_what_was_not_sent_of_a_spool_stays_until_somebody_discards_it() {
    let stage = Stage::new();
    let north = stage.standby("north");
    let other = stage.primary.database("other").name;
    stage
        .primary
        .connect(OWNER, &other)
        .batch_execute("GRANT \"SET USER\" (bob) TO imp")
        .unwrap();
    stage.primary.wait_for(&north);
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 3"]);
    leads_to(&north, NOWHERE.1);
    let mut lost = Done(Vec::new());
    lost.work(&stage, &north, "lost", 3);
    let mut there = RawClient::connect(&north, "imp", &other);
    ok(&mut there, "SELECT setuser('bob')");
    drop(there);
    let own = "SELECT concat_ws(' ', state, waiting_events) FROM impersonate.audit_spool ORDER BY 1";
    wait_for_rows(&north, &stage.database, own, &["own 2", "own 8"]);

    // N2: what is to be watched of it.
    let metrics = "SELECT concat_ws(' ', spool_bytes > 512, spool_waiting_events, spool_waiting_seconds BETWEEN 0 AND 100,
                           spool_limit_bytes, shipper_up, shipper_last_error_timestamp_seconds > 0, spool_left_alone_bytes)
                     FROM impersonate.audit_metrics WHERE datname = current_database()";
    wait_for_rows(&north, &stage.database, metrics, &["t 8 t 1073741824 0 t 0"]);
    let of_node = "SELECT concat_ws(' ', datname = current_database(), node, received_events_total,
                          received_timestamp_seconds > 0, reported_timestamp_seconds > 0, active_impersonations)
                     FROM impersonate.node_metrics";
    assert_eq!(look(&stage.primary, &stage.database, of_node), ["t north 8 t t 0"]);
    for (node, database) in [(&stage.primary, &stage.database), (&north, &stage.database)] {
        let monitor = "SET ROLE pg_monitor; SELECT count(*) FROM impersonate.audit_metrics, impersonate.node_metrics";
        node.connect(OWNER, database).batch_execute(monitor).unwrap();
    }

    // What is in use can't be discarded, and what isn't there neither.
    let id = |state: &str| {
        let sql = format!(
            "SELECT spool_id::text FROM impersonate.audit_spool WHERE state = '{state}' ORDER BY newest_position"
        );
        look(&north, &stage.database, &sql)
    };
    let discard = |id: &str| {
        let mut client = north.connect(OWNER, &stage.database);
        client
            .query_one(&format!("SELECT impersonate.discard_spool('{id}')"), &[])
            .map(|row| row.get::<_, Option<i64>>(0))
    };
    let in_use = id("own").remove(1);
    let error = fails_with("55006", discard(&in_use));
    assert!(error.hint.unwrap().contains("retire_node('north')"));
    fails_with("42704", discard("00000000-0000-0000-0000-000000000000"));

    // Given up on the primary, and its database dropped.
    stage.admin("SELECT impersonate.retire_node('north')");
    stage
        .primary
        .connect(OWNER, OWNER)
        .batch_execute(&format!("DROP DATABASE {other} WITH (FORCE)"))
        .unwrap();
    let left = "SELECT concat_ws(' ', COALESCE(database, 'gone'), state, own, waiting_events)
                  FROM impersonate.audit_spool ORDER BY state";
    let retired = format!("{} retired f 8", stage.database);
    wait_for_rows(&north, &stage.database, left, &["gone dropped f 2", &retired]);
    assert_eq!(
        north.log().matches("from position 9 on are not on the primary").count(),
        1,
        "{}",
        north.log()
    );
    assert_eq!(segments(&north).len(), 2);
    // They can be read: also that of the other database.
    let statements = format!(
        "SELECT event->>'statement' FROM impersonate.audit_spooled('{in_use}')
          WHERE event->>'event' = 'STATEMENT' AND event->'detail'->>'phase' = 'begun' AND \"position\" > 8"
    );
    assert_eq!(look(&north, &stage.database, &statements), lost.0);
    let dropped = id("dropped").remove(0);
    let statements = format!("SELECT event->>'event' FROM impersonate.audit_spooled('{dropped}')");
    assert_eq!(look(&north, &stage.database, &statements), ["SETUSER", "RESETUSER"]);
    // L8: what is granted in one database shows and removes nothing of another, but to a superuser.
    stage
        .primary
        .connect(OWNER, &stage.database)
        .batch_execute(
            "CREATE ROLE auditor LOGIN;
             GRANT EXECUTE ON FUNCTION impersonate.audit_spooled, impersonate.discard_spool TO auditor",
        )
        .unwrap();
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT has_function_privilege(to_regrole('auditor'), 'impersonate.discard_spool(uuid)', 'EXECUTE')::text
          WHERE to_regrole('auditor') IS NOT NULL",
        &["true"],
    );
    let mut auditor = north.connect("auditor", &stage.database);
    let seen = auditor.query(&format!("SELECT impersonate.audit_spooled('{in_use}')"), &[]);
    assert!(!seen.unwrap().is_empty());
    for function in ["audit_spooled", "discard_spool"] {
        let call = format!("SELECT impersonate.{function}('{dropped}')");
        fails_with("42501", auditor.batch_execute(&call));
    }

    // Another spool is begun and sent; the old ones stay, over a restart too.
    let conninfo = stage.primary.conninfo("shipper");
    leads_to(&north, &conninfo);
    done.work(&stage, &north, "b", 3);
    wait_for_rows(&stage.primary, &stage.database, ARRIVED, &["north 6"]);
    let mut north = north;
    north.restart();
    assert_eq!(look(&north, &stage.database, left)[0], "gone dropped f 2");
    assert_eq!(look(&north, &stage.database, left).len(), 3);
    let discard = |id: &str| {
        let mut client = north.connect(OWNER, &stage.database);
        let row = client.query_one(&format!("SELECT impersonate.discard_spool('{id}')"), &[]);
        row.unwrap().get::<_, Option<i64>>(0)
    };
    assert_eq!(discard(&in_use), Some(8));
    assert_eq!(discard(&dropped), Some(2));
    assert_eq!(look(&north, &stage.database, left).len(), 1);
    assert_eq!(segments(&north).len(), 1);
    assert_eq!(north.log().matches("was discarded").count(), 2);
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT concat_ws(' ', node, detail->>'state', detail->>'of', detail->>'first', detail->>'last')
           FROM impersonate.audit WHERE event = 'NODE' AND detail ? 'discarded' ORDER BY event_id",
        &["north retired north 9 16", "north dropped north 1 2"],
    );
    done.is_in(&stage.primary, &stage.database);
    audit_holds_per_spool(&stage.primary, &stage.database);
    no_crash(&north);
}

/// As [`audit_holds`], where a node has had several spools.
#[track_caller]
fn audit_holds_per_spool(primary: &Cluster, database: &str) {
    let verified = "SELECT ok || COALESCE(detail, '') FROM impersonate.audit_verify()";
    assert_eq!(look(primary, database, verified), ["true"]);
    let twice =
        "SELECT detail->>'node_hash' FROM impersonate.audit WHERE detail ? 'node_hash' GROUP BY 1 HAVING count(*) > 1";
    assert_eq!(look(primary, database, twice), [""; 0]);
}

#[test]
fn n2_a_low_limit_is_room_enough_as_long_as_the_primary_takes_events() {
    let stage = Stage::new();
    let north = stage.standby_with("north", &[("impersonate.audit_spool_limit", "1MB")]);
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    let long = "x".repeat(20_000);
    for number in 0..200 {
        ok(&mut session, &format!("SELECT {number}, '{long}'"));
    }
    drop(session);
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT count(*)::text FROM impersonate.audit WHERE node = 'north' AND event = 'RESETUSER'",
        &["1"],
    );
    audit_holds(&stage.primary, &stage.database);
    let used = "SELECT (bytes <= 1024 * 1024 AND newest_position > 400)::text FROM impersonate.audit_spool";
    assert_eq!(look(&north, &stage.database, used), ["true"]);
}

#[test]
fn n2_a_damaged_spool_is_an_error_and_nothing_is_cut() {
    let stage = Stage::new();
    let mut north = stage.standby_with(
        "north",
        &[("impersonate.primary_conninfo", "host=/nowhere user=shipper")],
    );
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "a", 3);
    north.stop();
    let file = segments(&north).remove(0);
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[512 + 70] ^= 1;
    fs::write(&file, &damaged).unwrap();
    north.start();
    let mut session = stage.raw(&north);
    let error = error_in(&session.simple("SELECT setuser('bob')")).unwrap();
    assert_eq!(error.code, "55000");
    assert!(error.detail.unwrap().contains("is damaged"), "{}", error.message);
    assert_eq!(value(&mut session, "SELECT current_user"), "imp");
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT (last_error LIKE '%is damaged%')::text FROM impersonate.audit_spool",
        &["true"],
    );
    fails_with(
        "XX001",
        north
            .connect(OWNER, &stage.database)
            .batch_execute("SELECT * FROM impersonate.audit_spooled()"),
    );
    assert_eq!(fs::read(&file).unwrap(), damaged);
    assert_eq!(segments(&north).len(), 1);
    // What isn't acknowledged by anything later is a torn tail.
    fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    wait_until("the spool can be used", || {
        error_in(&session.simple("SELECT setuser('bob')")).is_none()
    });
    let positions: Vec<usize> = spooled(&north, &stage.database)
        .iter()
        .map(|event| event.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(positions, (1..=positions.len()).collect::<Vec<_>>());
    no_crash(&north);
}

#[test]
fn n2_neither_a_dropped_database_nor_a_primary_that_is_silent_holds_a_standby_up() {
    let stage = Stage::new();
    let mut north = stage.standby("north");
    // In another database somebody impersonates, and a writer and a shipper are connected.
    let other = stage.primary.database("other").name;
    stage
        .primary
        .connect(OWNER, &other)
        .batch_execute(
            "GRANT \"SET USER\" (bob) TO imp; GRANT EXECUTE ON FUNCTION impersonate.audit_receive TO shipper",
        )
        .unwrap();
    stage.primary.wait_for(&north);
    let mut there = RawClient::connect(&north, "imp", &other);
    ok(&mut there, "SELECT setuser('bob')");
    let mut here = stage.raw(&north);
    ok(&mut here, "SELECT setuser('bob')");
    let workers = format!(
        "SELECT count(DISTINCT backend_type)::text FROM pg_stat_activity
          WHERE datname = '{other}' AND backend_type LIKE 'impersonate audit %'"
    );
    wait_for_rows(&north, OWNER, &workers, &["2"]);
    // Without the other function it can't report, and says so.
    wait_for_rows(
        &north,
        &stage.database,
        &format!(
            "SELECT (last_error LIKE '%report_node%')::text FROM impersonate.audit_spool WHERE database = '{other}'"
        ),
        &["true"],
    );
    look(
        &stage.primary,
        OWNER,
        &format!("SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = '{other}'"),
    );
    stage
        .primary
        .connect(OWNER, OWNER)
        .batch_execute(&format!("DROP DATABASE {other} WITH (FORCE)"))
        .unwrap();
    let began = Instant::now();
    stage.primary.wait_for(&north);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!fatal(&mut there).message.is_empty());
    assert_eq!(value(&mut here, "SELECT current_user"), "bob");
    let shown = "SELECT COALESCE(database, 'gone') || ' ' || state FROM impersonate.audit_spool ORDER BY state";
    let own = format!("{} own", stage.database);
    assert_eq!(look(&north, &stage.database, shown), ["gone dropped", &own]);

    // Under another name it begins another spool.
    north.set("impersonate.node_name", "north-2");
    north.reload();
    wait_until("events come under the new name", || {
        ok(&mut here, "SELECT 'renamed'");
        let there = "SELECT (count(*) > 0)::text FROM impersonate.audit WHERE node = 'north-2'";
        look(&stage.primary, &stage.database, there) == ["true"]
    });
    audit_holds(&stage.primary, &stage.database);

    // A primary that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    north.set(
        "impersonate.primary_conninfo",
        &format!("host=127.0.0.1 port={port} user=shipper"),
    );
    north.reload();
    look(
        &stage.primary,
        OWNER,
        "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE usename = 'shipper'",
    );
    let (_connection, _) = silent.accept().unwrap();
    let began = Instant::now();
    north.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    no_crash(&north);
}

#[test]
fn n2_a_full_disk_makes_statements_fail_and_loses_nothing() {
    let stage = Stage::new();
    let conninfo = stage.primary.conninfo("shipper");
    let mut north = stage.primary.standby_created(
        "north",
        &[
            ("impersonate.audit_queue_size", "64kB"),
            ("impersonate.primary_conninfo", &conninfo),
        ],
    );
    let disk = SmallDisk::new(&north, 4);
    std::os::unix::fs::symlink(disk.path(), north.data().join("impersonate_spool")).unwrap();
    north.start();
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    disk.fill();
    let long = "x".repeat(3000);
    let mut seen = 0;
    let error = loop {
        match error_in(&session.simple(&format!("SELECT {seen}, '{long}'"))) {
            None => seen += 1,
            Some(error) => break error,
        }
        assert!(seen < 100, "the disk doesn't count");
    };
    assert_eq!(error.code, "55000");
    assert!(error.detail.unwrap().contains("could not write"), "{}", error.message);
    // A crash in this state leaves what was acknowledged.
    disk.empty();
    wait_until("statements run again", || {
        error_in(&session.simple("SELECT 'again'")).is_none()
    });
    ok(&mut session, &format!("SELECT {seen}, '{long}'"));
    drop(session);
    wait_for_rows(
        &stage.primary,
        &stage.database,
        "SELECT count(*)::text FROM impersonate.audit WHERE node = 'north' AND event = 'RESETUSER'",
        &["1"],
    );
    let begun = "SELECT count(DISTINCT split_part(split_part(statement, ' ', 2), ',', 1))::text FROM impersonate.audit
                  WHERE node = 'north' AND statement LIKE 'SELECT %xxx%' AND sqlstate = '00000'";
    assert_eq!(look(&stage.primary, &stage.database, begun), [(seen + 1).to_string()]);
    audit_holds(&stage.primary, &stage.database);
    no_crash(&north);
}

#[test]
fn x4_a_superuser_target_cannot_change_the_spool_or_the_way_of_events() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE bob SUPERUSER; ALTER ROLE imp SUPERUSER");
    let north = stage.standby("north");
    let mut session = stage.raw(&north);
    ok(&mut session, "SELECT setuser('bob')");
    for sql in [
        "ALTER SYSTEM SET impersonate.node_name = 'x'",
        "ALTER SYSTEM SET impersonate.primary_conninfo = ''",
        "ALTER SYSTEM SET impersonate.audit_spool_limit = 1",
        "ALTER SYSTEM RESET ALL",
        "SELECT impersonate.retire_node('north')",
        "SELECT impersonate.discard_spool('00000000-0000-0000-0000-000000000001')",
        "SELECT impersonate.audit_receive('x', '1', '00000000-0000-0000-0000-000000000001', '')",
        "SELECT impersonate.report_node('x', '1', '[]')",
    ] {
        assert_eq!(error_in(&session.simple(sql)).expect(sql).code, "42501", "{sql}");
    }
    let mut session = stage.raw(&stage.primary);
    ok(&mut session, "SELECT setuser('bob')");
    for sql in [
        "SELECT impersonate.retire_node('north')",
        "SELECT impersonate.discard_spool('00000000-0000-0000-0000-000000000001')",
        "SELECT impersonate.audit_receive('x', '1', '00000000-0000-0000-0000-000000000001', '')",
        "SELECT impersonate.report_node('x', '1', '[]')",
        "DELETE FROM impersonate.audit_node",
        "UPDATE impersonate.audit_node SET position = 1",
        "TRUNCATE impersonate.node_report",
    ] {
        assert_eq!(error_in(&session.simple(sql)).expect(sql).code, "42501", "{sql}");
    }
}

#[test]
fn n2_after_a_failover_all_nodes_go_on_with_the_new_primary() {
    let mut stage = Stage::new();
    let north = stage.standby("north");
    let south = stage.standby("south");
    let mut done = Done(Vec::new());
    done.work(&stage, &north, "na", 5);
    done.work(&stage, &south, "sa", 5);
    let arrived = "SELECT count(*)::text FROM impersonate.audit WHERE statement LIKE 'SELECT ''_a-%' AND detail->>'phase' = 'begun'";
    wait_for_rows(&stage.primary, &stage.database, arrived, &["10"]);
    // Both have all that it wrote.
    stage.primary.stop();
    done.work(&stage, &south, "sb", 5);
    done.work(&stage, &north, "nb", 5);
    north.promote();
    south.follow(&north);
    south.set("impersonate.primary_conninfo", &north.conninfo("shipper"));
    south.reload();
    // The old primary comes back as a standby, and begins a spool of its own.
    fs::write(stage.primary.data().join("standby.signal"), "").unwrap();
    stage
        .primary
        .set("impersonate.primary_conninfo", &north.conninfo("shipper"));
    stage.primary.follow(&north);
    stage.primary.start();
    done.work(&stage, &stage.primary, "old", 5);
    done.work(&stage, &south, "sc", 5);
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT node || ' ' || count(*) FROM impersonate.audit WHERE detail->>'phase' = 'begun' GROUP BY node ORDER BY 1",
        &["north 10", "primary 5", "south 15"],
    );
    done.is_in(&north, &stage.database);
    audit_holds(&north, &stage.database);
    // What is done on the new primary ends impersonations on the others.
    let mut sessions = [stage.raw(&south), stage.raw(&stage.primary)];
    for session in &mut sessions {
        ok(session, "SELECT setuser('bob')");
    }
    north
        .connect(OWNER, &stage.database)
        .batch_execute("SET impersonate.on_violation = reject; GRANT spare TO bob")
        .unwrap();
    for session in &mut sessions {
        assert_eq!(fatal(session).code, "57P01");
    }
    no_crash(&north);
    no_crash(&south);
}

#[test]
fn n2_a_standby_that_is_killed_under_load_has_all_that_it_acknowledged() {
    let stage = Stage::new();
    let mut north = stage.standby("north");
    let mut done = Done(Vec::new());
    for round in 0..3 {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|number| {
                    let node = north.config("imp", &stage.database);
                    let name = format!("k{round}w{number}");
                    scope.spawn(move || {
                        let mut seen = Vec::new();
                        let Ok(mut session) = node.connect(postgres::NoTls) else {
                            return seen;
                        };
                        if session.batch_execute("SELECT setuser('bob')").is_err() {
                            return seen;
                        }
                        for at in 0.. {
                            let statement = format!("SELECT '{name}-{at}'");
                            if session.simple_query(&statement).is_err() {
                                break;
                            }
                            seen.push(statement);
                        }
                        seen
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(700 + 100 * round));
            north.kill();
            for worker in workers {
                done.0.append(&mut worker.join().unwrap());
            }
        });
        north.start();
    }
    assert!(done.0.len() > 30, "{}", done.0.len());
    wait_for_rows(
        &north,
        &stage.database,
        "SELECT waiting_events::text FROM impersonate.audit_spool WHERE own",
        &["0"],
    );
    done.is_in(&stage.primary, &stage.database);
    audit_holds(&stage.primary, &stage.database);
    no_crash(&stage.primary);
}
