//! The audit survives (L5): sessions that write and sessions that read, all of them impersonating; the server is killed
//! at a moment that nobody chose; and what it knows after its recovery is compared with what was done and what was seen.
//!
//! `CRASH_ROUNDS=n` runs more than five rounds, `CRASH_SEED=n` repeats the choices of a run (its timing it can't).

use impersonate_server_tests::raw::{Message, RawClient, Transaction};
use impersonate_server_tests::Cluster;
use postgres::Client;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const OWNER: &str = "postgres";
const WRITERS: usize = 4;
const READERS: usize = 4;

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// Said whatever the test's output is done with.
fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "crash: {words}");
}

/// Each statement that is told apart has a number of its own, in brackets, in its text.
struct Numbers(AtomicI32);

impl Numbers {
    fn next(&self) -> i32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Sends a message's statements and takes in what comes; `None` when the connection is gone.
fn ask(client: &mut RawClient, sql: &str, extended: bool) -> Option<Vec<Message>> {
    if extended {
        client.parse("", sql, &[]);
        client.bind("", "", &[]);
        client.execute("", 0);
        client.sync();
    } else {
        client.query(sql);
    }
    let mut messages = Vec::new();
    loop {
        let message = client.try_read().ok()?;
        let ready = matches!(message, Message::ReadyForQuery(_));
        messages.push(message);
        if ready {
            return Some(messages);
        }
    }
}

/// Writes in every way there is, until the server goes.
fn write(mut client: RawClient, numbers: &Numbers, folder: &str, mut random: Random) {
    let insert = |number: i32| format!("INSERT INTO effect VALUES ({number})");
    loop {
        let extended = random.below(2) == 0;
        let one = numbers.next();
        let script: Vec<String> = match random.below(12) {
            0..=2 => vec![insert(one)],
            3 => {
                let mut all = vec!["BEGIN".to_owned()];
                all.extend((0..=random.below(5)).map(|_| insert(numbers.next())));
                all.push("COMMIT".into());
                all
            }
            4 => vec![
                "BEGIN".into(),
                insert(one),
                "SAVEPOINT s".into(),
                insert(numbers.next()),
                "ROLLBACK TO s".into(),
                insert(numbers.next()),
                "RELEASE s".into(),
                "COMMIT".into(),
            ],
            5 => vec!["BEGIN".into(), insert(one), "ROLLBACK".into()],
            6 => vec![format!(
                "DO $$ BEGIN INSERT INTO effect VALUES ({one}); COMMIT; PERFORM pg_sleep(0.001);
                     INSERT INTO effect VALUES ({one}) ON CONFLICT DO NOTHING; END $$"
            )],
            7 => vec![
                "BEGIN".into(),
                insert(one),
                format!("PREPARE TRANSACTION 'p{one}'"),
                format!("COMMIT PREPARED 'p{one}'"),
            ],
            8 => vec![
                "SET synchronous_commit = off".into(),
                insert(one),
                "RESET synchronous_commit".into(),
            ],
            9 => vec![format!(
                "WITH w AS (INSERT INTO effect VALUES ({one}) RETURNING i) SELECT i FROM w"
            )],
            10 => vec![format!("COPY (SELECT 1 AS x WHERE 1 < ({one})) TO '{folder}/{one}'")],
            _ => vec![
                "BEGIN ISOLATION LEVEL SERIALIZABLE".into(),
                insert(one),
                format!("UPDATE counter SET i = ({})", numbers.next()),
                "COMMIT".into(),
            ],
        };
        let whole = !extended && random.below(3) == 0 && script.iter().all(|sql| !sql.contains("PREPARE"));
        let script = if whole { vec![script.join("; ")] } else { script };
        for sql in script {
            let Some(messages) = ask(&mut client, &sql, extended) else {
                return;
            };
            if let Some(Message::ReadyForQuery(Transaction::Failed)) = messages.last() {
                // Serializable transactions may.
                if ask(&mut client, "ROLLBACK", false).is_none() {
                    return;
                }
                break;
            }
        }
    }
}

/// Reads in every way there is, until the server goes; returns the numbers whose results came, or a part of them.
fn read(mut client: RawClient, numbers: &Numbers, mut random: Random) -> BTreeSet<i32> {
    let mut seen = BTreeSet::new();
    loop {
        let one = numbers.next();
        let text = match random.below(6) {
            0 | 1 => format!("SELECT ({one})"),
            2 => format!("SELECT ({one}) FROM generate_series(1, 5000)"),
            3 => format!("COPY (SELECT ({one})) TO STDOUT"),
            4 => format!("DO $$ BEGIN RAISE NOTICE 'got ({one})'; PERFORM pg_sleep(0.001); END $$"),
            _ => format!("INSERT INTO effect VALUES ({one}) RETURNING i"),
        };
        client.parse("", &text, &[]);
        client.bind("", "", &[]);
        // A part at a time now and then.
        client.execute("", [0, 0, 3][random.below(3)]);
        client.sync();
        loop {
            match client.try_read() {
                Err(_) => return seen,
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(Message::DataRow(_) | Message::CommandComplete(_)) => {
                    seen.insert(one);
                }
                Ok(Message::NoticeResponse(notice))
                    if notice.get('M').is_some_and(|words| words.starts_with("got")) =>
                {
                    seen.insert(one);
                }
                Ok(Message::Other(b'd', _)) => {
                    seen.insert(one);
                }
                Ok(_) => (),
            }
        }
    }
}

fn numbers_of(client: &mut Client, query: &str) -> BTreeSet<i32> {
    client.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

/// Numbers in the text of recorded statements.
const TOLD: &str = r"SELECT DISTINCT (regexp_matches(statement, '\((\d+)\)', 'g'))[1]::int
                     FROM impersonate.audit WHERE event = 'STATEMENT'";

/// Rows that are there twice: each statement has a number, and at most two phases.
const TWICE: &str = r"SELECT count(*) FROM (SELECT FROM impersonate.audit
                          WHERE event = 'STATEMENT' AND statement ~ '\(\d+\)' AND statement !~ 'PREPARE'
                          GROUP BY statement, pid, detail->>'phase' HAVING count(*) > 1) AS twice";

fn check_chain(client: &mut Client) {
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let row = client
        .query_one("SELECT ok, damage, detail FROM impersonate.audit_verify()", &[])
        .unwrap();
    let (ok, damage, detail): (bool, Option<String>, Option<String>) = (row.get(0), row.get(1), row.get(2));
    assert!(ok, "{damage:?} {detail:?}");
    // What it rests on, counted otherwise.
    let gaps = "SELECT count(*) - coalesce(max(event_id) - min(event_id) + 1, 0) FROM impersonate.audit";
    assert_eq!(count(client, gaps), 0, "event_id has gaps");
}

/// Everything that the tests of this file have to do with one cluster.
struct Scene {
    cluster: Cluster,
    database: String,
    numbers: Numbers,
    folder: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::builder().setting("max_prepared_transactions", "50").start();
        let database = cluster.database("d").name.clone();
        // The server's account writes there, and this one reads.
        let folder = cluster.host().join("files");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let mut owner = cluster.connect(OWNER, &database);
        owner
            .batch_execute(
                "CREATE ROLE bob LOGIN SUPERUSER; CREATE ROLE reader LOGIN SUPERUSER;
                 ALTER ROLE reader SET impersonate.audit_wait = 'flush';
                 CREATE TABLE effect (i int PRIMARY KEY); CREATE TABLE counter (i int); INSERT INTO counter VALUES (0)",
            )
            .unwrap();
        Scene {
            cluster,
            database,
            numbers: Numbers(AtomicI32::new(1000)),
            folder,
        }
    }

    fn session(&self, user: &str) -> RawClient {
        let mut client = RawClient::connect(&self.cluster, user, &self.database);
        let answer = client.simple("SELECT setuser('bob')");
        assert!(
            answer.contains(&Message::DataRow(vec![Some("bob".into())])),
            "{answer:?}"
        );
        client
    }

    fn owner(&self) -> Client {
        self.cluster.connect(OWNER, &self.database)
    }
}

#[test]
fn l5_every_effect_and_every_result_that_a_crash_leaves_has_its_row() {
    let rounds: u32 = env::var("CRASH_ROUNDS").map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    let seed: u64 = env::var("CRASH_SEED").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1,
        |seed| seed.parse().expect("a number"),
    );
    say(&format!("CRASH_SEED={seed}"));
    let mut random = Random(seed);
    let mut scene = Scene::new();
    let folder = scene.folder.display().to_string();
    let mut results = BTreeSet::new();
    let (mut lost_effects, mut lost_results) = (0, 0);
    for round in 1..=rounds {
        let how = random.below(3);
        let delay = Duration::from_micros(20_000 + random.below(700_000) as u64);
        let seeds: Vec<u64> = (0..WRITERS + READERS)
            .map(|_| random.below(1 << 30) as u64 * 2 + 1)
            .collect();
        let sessions: Vec<RawClient> = (0..WRITERS + READERS)
            .map(|at| scene.session(if at < WRITERS { OWNER } else { "reader" }))
            .collect();
        let writer = {
            let mut owner = scene.owner();
            let query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer'";
            owner.query_one(query, &[]).unwrap().get::<_, i32>(0)
        };
        let (numbers, cluster) = (&scene.numbers, &mut scene.cluster);
        let seen: Vec<BTreeSet<i32>> = thread::scope(|scope| {
            let running: Vec<_> = sessions
                .into_iter()
                .zip(seeds)
                .enumerate()
                .map(|(at, (client, seed))| {
                    let folder = &folder;
                    scope.spawn(move || {
                        if at < WRITERS {
                            write(client, numbers, folder, Random(seed));
                            BTreeSet::new()
                        } else {
                            read(client, numbers, Random(seed))
                        }
                    })
                })
                .collect();
            thread::sleep(delay);
            match how {
                0 => cluster.kill(),
                1 => cluster.stop_immediately(),
                _ => cluster.kill_backend(writer),
            }
            running.into_iter().map(|session| session.join().unwrap()).collect()
        });
        if how < 2 {
            cluster.start();
        } else {
            cluster.wait_until_up();
        }
        results.extend(seen.into_iter().flatten());
        let mut owner = scene.owner();
        for prepared in owner.query("SELECT gid FROM pg_prepared_xacts", &[]).unwrap() {
            owner
                .batch_execute(&format!("COMMIT PREPARED '{}'", prepared.get::<_, &str>(0)))
                .unwrap();
        }
        let mut effects = numbers_of(
            &mut owner,
            "SELECT i FROM effect UNION SELECT i FROM counter WHERE i > 0",
        );
        let files = fs::read_dir(&scene.folder).unwrap();
        effects.extend(files.map(|file| file.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap()));
        let told = numbers_of(&mut owner, TOLD);
        let without_row: Vec<_> = effects.difference(&told).collect();
        let unheard: Vec<_> = results.difference(&told).collect();
        (lost_effects, lost_results) = (without_row.len(), unheard.len());
        let words = ["kill -9 of all", "immediate stop", "kill -9 of the writer"][how];
        say(&format!(
            "round {round}, {words} after {} ms: {} effects, {} results, rows lost: {lost_effects} and {lost_results}",
            delay.as_millis(),
            effects.len(),
            results.len(),
        ));
        assert!(without_row.is_empty(), "effects without a row: {without_row:?}");
        assert!(unheard.is_empty(), "results without a row: {unheard:?}");
        assert_eq!(count(&mut owner, TWICE), 0, "rows that are there twice");
        check_chain(&mut owner);
    }
    say(&format!("{rounds} rounds, rows lost: {}", lost_effects + lost_results));
}

/// The test above could not tell if it looked at nothing: without waiting, a crash takes rows along.
#[test]
fn l5_without_waiting_a_crash_loses_rows_and_never_doubles_any() {
    let mut scene = Scene::new();
    let mut owner = scene.owner();
    owner
        .batch_execute("ALTER SYSTEM SET impersonate.audit_wait = 'off'")
        .unwrap();
    scene.cluster.reload();
    drop(owner);
    for round in 1..=20 {
        let mut client = scene.session(OWNER);
        let first = scene.numbers.next();
        let _ = ask(&mut client, &format!("INSERT INTO effect VALUES ({first})"), false);
        scene.cluster.kill();
        scene.cluster.start();
        let mut owner = scene.owner();
        check_chain(&mut owner);
        let lost = numbers_of(&mut owner, "SELECT i FROM effect")
            .difference(&numbers_of(&mut owner, TOLD))
            .count();
        if lost > 0 {
            say(&format!("without waiting, {lost} rows lost after {round} rounds"));
            return;
        }
    }
    panic!("no row was lost in twenty crashes without waiting");
}
