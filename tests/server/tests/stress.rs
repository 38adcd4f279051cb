//! Many sessions that switch, others that change roles and rights at random from two databases, and one that looks on:
//! it reads the catalogs by itself, in one snapshot, and must never find an active impersonation in breach (E2 to E5).
//!
//! STRESS_SECONDS (10) says for how long, STRESS_SEED repeats a sequence of wishes (not of what came first).

use impersonate_server_tests::{fails, Cluster};
use postgres::{Client, IsolationLevel};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PEOPLE: [&str; 4] = ["p1", "p2", "p3", "p4"];
const TARGETS: [&str; 3] = ["t1", "t2", "t3"];
const GROUPS: [&str; 5] = ["g1", "g2", "g3", "g4", "g5"];

#[derive(Default)]
struct Counts {
    switches: AtomicU64,
    refused_switches: AtomicU64,
    changes: AtomicU64,
    refused_changes: AtomicU64,
    terminations: AtomicU64,
    looks: AtomicU64,
    seen: AtomicU64,
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().expect(name))
}

#[test]
fn no_impersonation_is_ever_in_breach() {
    let cluster = Cluster::start_new();
    let database = cluster.database("stress");
    let elsewhere = cluster.empty_database("elsewhere");
    let mut admin = database.connect("postgres");
    for role in PEOPLE.iter().chain(&TARGETS) {
        admin.batch_execute(&format!("CREATE ROLE {role} LOGIN")).unwrap();
    }
    for role in GROUPS {
        admin.batch_execute(&format!("CREATE ROLE {role}")).unwrap();
    }
    admin
        .batch_execute("GRANT \"SET USER\" TO p1, p2; GRANT \"SET USER\" (t1, t2) TO g1, p3; GRANT g1 TO p4")
        .unwrap();

    let seed = from_environment("STRESS_SEED", u64::from(std::process::id()) << 20 | 1);
    let time = Duration::from_secs(from_environment("STRESS_SECONDS", 10));
    println!("STRESS_SEED={seed}");
    let (over, counts) = (AtomicBool::new(false), Counts::default());
    std::thread::scope(|scope| {
        let (cluster, counts, over) = (&cluster, &counts, &over);
        let (here, there) = (database.name.as_str(), elsewhere.name.as_str());
        for number in 0..8 {
            let random = Random(seed.wrapping_add(number * 7919));
            scope.spawn(move || switch(cluster, here, PEOPLE[number as usize % 4], random, counts, over));
        }
        for number in 0..4 {
            let random = Random(seed.wrapping_add(1_000_003 + number * 7919));
            let database = if number % 2 == 0 { here } else { there };
            scope.spawn(move || change(cluster, database, number == 3, random, counts, over));
        }
        let checker = scope.spawn(move || {
            let result = std::panic::catch_unwind(|| look(cluster, here, counts, over));
            over.store(true, Relaxed);
            result
        });
        let end = Instant::now() + time;
        while Instant::now() < end && !over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Relaxed);
        if let Err(panic) = checker.join().unwrap() {
            std::panic::resume_unwind(panic);
        }
    });
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    println!(
        "{} switches, {} refused; {} changes, {} refused; {} terminations; {} looks at {} impersonations",
        count(&counts.switches),
        count(&counts.refused_switches),
        count(&counts.changes),
        count(&counts.refused_changes),
        count(&counts.terminations),
        count(&counts.looks),
        count(&counts.seen)
    );
    for counter in [
        &counts.switches,
        &counts.refused_switches,
        &counts.changes,
        &counts.refused_changes,
        &counts.seen,
    ] {
        assert!(count(counter) > 0, "a run in which nothing happened proves nothing");
    }
    assert!(!cluster.log().contains("TRAP:") && !cluster.log().contains("terminated by signal"));
}

/// One who switches, in transactions of all kinds.
fn switch(cluster: &Cluster, database: &str, login: &str, mut random: Random, counts: &Counts, over: &AtomicBool) {
    let mut client = cluster.connect(login, database);
    while !over.load(Relaxed) {
        let target = random.of(&TARGETS);
        let other = random.of(&TARGETS);
        let switch = format!("SELECT setuser('{target}')");
        let steps: Vec<String> = match random.below(7) {
            0 | 1 => vec![switch, "SELECT current_user".into(), "SELECT setuser()".into()],
            2 => vec!["BEGIN".into(), switch, "SELECT 1".into(), "ROLLBACK".into()],
            3 => vec![
                "BEGIN".into(),
                format!("SELECT setuser('{target}', local => true)"),
                "SELECT 1".into(),
                "COMMIT".into(),
            ],
            4 => vec![
                switch,
                "BEGIN".into(),
                "SELECT setuser()".into(),
                "SELECT 1".into(),
                "ROLLBACK".into(),
            ],
            5 => vec![
                "BEGIN".into(),
                switch,
                "SAVEPOINT a".into(),
                format!("SELECT setuser('{other}')"),
                "ROLLBACK TO a".into(),
                "COMMIT".into(),
            ],
            _ => vec![
                switch,
                "BEGIN".into(),
                format!("SELECT setuser('{other}', local => true)"),
                "COMMIT".into(),
            ],
        };
        for step in steps {
            let made = step.contains("setuser('");
            match client.simple_query(&step) {
                Ok(_) if made => _ = counts.switches.fetch_add(1, Relaxed),
                Ok(_) => (),
                Err(error) if error.is_closed() || error.as_db_error().is_none_or(|e| e.severity() == "FATAL") => {
                    counts.terminations.fetch_add(1, Relaxed);
                    client = cluster.connect(login, database);
                    break;
                }
                Err(error) => {
                    let error = fails::<()>(Err(error));
                    assert!(
                        ["42501", "25P02", "40P01"].contains(&error.code.as_str()),
                        "{step}: {error:?}"
                    );
                    if error.code == "42501" {
                        counts.refused_switches.fetch_add(1, Relaxed);
                    }
                    if client.simple_query("ROLLBACK").is_err() {
                        counts.terminations.fetch_add(1, Relaxed);
                        client = cluster.connect(login, database);
                    }
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(random.below(4) as u64));
        }
    }
}

/// One who changes roles. Grants to people and takes from targets more often than the other way round, so that there
/// are lawful switches.
fn change(cluster: &Cluster, database: &str, ends: bool, mut random: Random, counts: &Counts, over: &AtomicBool) {
    let mut client = cluster.connect("postgres", database);
    if ends {
        client
            .batch_execute("SET impersonate.on_violation = terminate")
            .unwrap();
    }
    let has_rights = client
        .query_opt("SELECT FROM pg_extension WHERE extname = 'impersonate'", &[])
        .unwrap()
        .is_some();
    while !over.load(Relaxed) {
        let (person, target, group) = (random.of(&PEOPLE), random.of(&TARGETS), random.of(&GROUPS));
        let statement = match random.below(if has_rights { 14 } else { 11 }) {
            0..=2 => format!("GRANT {group} TO {person}"),
            3 => format!("GRANT {group} TO {target}"),
            4 => format!("REVOKE {group} FROM {person}"),
            5 | 6 => format!("REVOKE {group} FROM {target}"),
            7 => {
                let (a, b) = (random.below(5), random.below(5));
                let (a, b) = (a.min(b), a.max(b));
                let verb = ["GRANT", "REVOKE"][random.below(2)];
                let word = if verb == "GRANT" { "TO" } else { "FROM" };
                if a == b {
                    continue;
                }
                format!("{verb} {} {word} {}", GROUPS[a], GROUPS[b])
            }
            8 => format!("GRANT {group} TO {target} WITH ADMIN OPTION"),
            9 => format!("ALTER ROLE {person} {}CREATEDB", ["", "", "NO"][random.below(3)]),
            10 => format!("ALTER ROLE {target} {}CREATEDB", ["", "NO", "NO"][random.below(3)]),
            11 => format!("GRANT \"SET USER\" ({target}) TO {}", [person, group][random.below(2)]),
            12 => format!(
                "REVOKE \"SET USER\" ({target}) FROM {}",
                [person, group][random.below(2)]
            ),
            _ => format!("GRANT \"SET USER\" ({target}) TO {person}"),
        };
        let block = random.below(4) == 0;
        let steps: &[&str] = if block {
            &["BEGIN", &statement, ["COMMIT", "ROLLBACK"][random.below(2)]]
        } else {
            &[&statement]
        };
        for step in steps {
            match client.batch_execute(step) {
                Ok(()) => (),
                Err(error) => {
                    let error = fails::<()>(Err(error));
                    let known = match error.code.as_str() {
                        "55006" | "40P01" | "40001" | "0LP01" => true,
                        // The server's own, of two that change or make one membership while nobody impersonates.
                        "XX000" => error.message.contains("concurrently"),
                        "23505" => error.message.contains("pg_auth_members"),
                        _ => false,
                    };
                    assert!(known, "{step}: {error:?}");
                    counts
                        .refused_changes
                        .fetch_add(u64::from(error.code == "55006"), Relaxed);
                    client.batch_execute("ROLLBACK").unwrap();
                    break;
                }
            }
            if **step == statement {
                counts.changes.fetch_add(1, Relaxed);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------- looking on ---

/// Roles and rights as one snapshot has them.
struct Picture {
    /// member → (role, admin, inherit, set)
    memberships: BTreeMap<String, Vec<(String, bool, bool, bool)>>,
    createdb: BTreeSet<String>,
    /// grantee → users; None: any
    rights: BTreeMap<String, Vec<Option<String>>>,
}

impl Picture {
    fn take(client: &mut Client) -> (Vec<(String, String, String)>, Picture, Vec<String>) {
        let active = "SELECT impersonation_id::text, impersonator, target FROM impersonate.active";
        let mut transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()
            .unwrap();
        // The table first: whoever is in it before and after the snapshot was in it at the snapshot.
        let before = transaction.query(active, &[]).unwrap();
        // The snapshot was taken with the first statement; a later one tells the same of the catalogs.
        transaction.rollback().unwrap();
        let mut transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()
            .unwrap();
        let version: i32 = transaction
            .query_one("SELECT current_setting('server_version_num')::int", &[])
            .unwrap()
            .get(0);
        let options = if version >= 160_000 {
            "bool_or(m.inherit_option), bool_or(m.set_option)"
        } else {
            "bool_or(u.rolinherit), true"
        };
        let mut memberships: BTreeMap<String, Vec<_>> = BTreeMap::new();
        let sql = format!(
            "SELECT u.rolname::text, r.rolname::text, bool_or(m.admin_option), {options}
               FROM pg_auth_members m JOIN pg_authid u ON u.oid = m.member JOIN pg_authid r ON r.oid = m.roleid
              GROUP BY 1, 2"
        );
        for row in transaction.query(&sql, &[]).unwrap() {
            let of: &mut Vec<_> = memberships.entry(row.get(0)).or_default();
            of.push((row.get(1), row.get(2), row.get(3), row.get(4)));
        }
        let createdb = transaction
            .query("SELECT rolname::text FROM pg_authid WHERE rolcreatedb", &[])
            .unwrap();
        let mut rights: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        let sql = "SELECT g.rolname::text, u.rolname::text FROM impersonate.set_user_grant s
                     JOIN pg_authid g ON g.oid = s.grantee LEFT JOIN pg_authid u ON u.oid = s.role";
        for row in transaction.query(sql, &[]).unwrap() {
            rights.entry(row.get(0)).or_default().push(row.get(1));
        }
        transaction.commit().unwrap();
        let after = client.query(active, &[]).unwrap();
        (
            before.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
            Picture {
                memberships,
                createdb: createdb.iter().map(|row| row.get(0)).collect(),
                rights,
            },
            after.iter().map(|row| row.get(0)).collect(),
        )
    }

    fn reached(
        &self,
        start: BTreeSet<String>,
        along: impl Fn(&(String, bool, bool, bool)) -> bool,
    ) -> BTreeSet<String> {
        let mut reached = start;
        loop {
            let more: Vec<String> = reached
                .iter()
                .flat_map(|role| self.memberships.get(role).into_iter().flatten())
                .filter(|membership| along(membership))
                .map(|membership| membership.0.clone())
                .filter(|role| !reached.contains(role))
                .collect();
            if more.is_empty() {
                return reached;
            }
            reached.extend(more);
        }
    }

    fn usable(&self, role: &str) -> BTreeSet<String> {
        let settable = self.reached(BTreeSet::from([role.to_owned()]), |membership| membership.3);
        self.reached(settable, |membership| membership.2)
    }

    fn administered(&self, role: &str) -> BTreeSet<String> {
        let usable = self.usable(role);
        let all = usable
            .iter()
            .flat_map(|role| self.memberships.get(role).into_iter().flatten());
        all.filter(|membership| membership.1)
            .map(|membership| membership.0.clone())
            .collect()
    }

    fn listed(&self, roles: &BTreeSet<String>) -> BTreeSet<Option<String>> {
        roles
            .iter()
            .flat_map(|role| self.rights.get(role).into_iter().flatten().cloned())
            .collect()
    }

    /// What is amiss, if anything.
    fn breach(&self, impersonator: &str, target: &str) -> Option<String> {
        let inherited = self.reached(BTreeSet::from([impersonator.to_owned()]), |membership| membership.2);
        let own = self.listed(&inherited);
        if !own.contains(&None) && !own.contains(&Some(target.to_owned())) {
            return Some("A1".to_owned());
        }
        let mut required = self.usable(target);
        required.remove(target);
        if let Some(role) = required.difference(&self.usable(impersonator)).next() {
            return Some(format!("A2 {role}"));
        }
        if let Some(role) = self
            .administered(target)
            .difference(&self.administered(impersonator))
            .next()
        {
            return Some(format!("A3 {role}"));
        }
        if self.createdb.contains(target) && !self.createdb.contains(impersonator) {
            return Some("A4 CREATEDB".to_owned());
        }
        let own = self.listed(&self.usable(impersonator));
        let mut theirs = self.listed(&self.usable(target));
        theirs.remove(&Some(impersonator.to_owned()));
        if !own.contains(&None) && theirs.difference(&own).next().is_some() {
            return Some("A5".to_owned());
        }
        None
    }
}

fn look(cluster: &Cluster, database: &str, counts: &Counts, over: &AtomicBool) {
    let mut client = cluster.connect("postgres", database);
    while !over.load(Relaxed) {
        let (before, picture, after) = Picture::take(&mut client);
        counts.looks.fetch_add(1, Relaxed);
        for (id, impersonator, target) in before.into_iter().filter(|(id, _, _)| after.contains(id)) {
            counts.seen.fetch_add(1, Relaxed);
            if let Some(breach) = picture.breach(&impersonator, &target) {
                panic!("{impersonator} acts as {target} against {breach} (impersonation {id})");
            }
        }
    }
}
