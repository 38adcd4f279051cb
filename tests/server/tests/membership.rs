//! Membership options (Postgres 16 and later): A2 and A3 with INHERIT, SET and ADMIN in every combination on both sides,
//! through chains of groups. What the criteria answer is compared with what Postgres lets each role do: both log in
//! and try, so that the expectation is the server's and not a second copy of our own logic.

use std::fmt::Write;

use impersonate_server_tests::{Cluster, Database};
use postgres::Client;

/// The options of one grant, as three letters' worth of bits: INHERIT, SET, ADMIN.
const OPTIONS: u32 = 8;

fn clause(options: u32) -> String {
    let on = |bit: u32| if options & bit != 0 { "TRUE" } else { "FALSE" };
    format!("WITH INHERIT {}, SET {}, ADMIN {}", on(1), on(2), on(4))
}

/// How a role holds the privilege: the option of each step from the login to it. Empty: not at all.
type Chain = Vec<u32>;

fn chains() -> Vec<Chain> {
    let mut all = vec![vec![]];
    for first in 0..OPTIONS {
        all.push(vec![first]);
        for second in 0..OPTIONS {
            all.push(vec![first, second]);
        }
    }
    all
}

/// What Postgres lets a login do with role `r`, found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Can {
    /// Reads what only r may read, as it is or after SET ROLE to anything that it may SET ROLE to.
    use_it: bool,
    /// Grants r to somebody, as it is or after such a SET ROLE.
    grant_it: bool,
}

fn attempt(client: &mut Client, statement: &str) -> bool {
    client.batch_execute("SAVEPOINT attempt").unwrap();
    let ok = client.batch_execute(statement).is_ok();
    // What was granted is not to help the next attempt.
    client.batch_execute("ROLLBACK TO SAVEPOINT attempt").unwrap();
    ok
}

fn try_it(database: &Database, login: &str, group: &str) -> Can {
    let mut client = database.connect(login);
    client.batch_execute("BEGIN").unwrap();
    let (mut use_it, mut grant_it) = (false, false);
    for role in ["NONE", group, "r"] {
        client.batch_execute("SAVEPOINT role").unwrap();
        if client.batch_execute(&format!("SET ROLE {role}")).is_ok() {
            use_it |= attempt(&mut client, "SELECT * FROM only_r");
            grant_it |= attempt(&mut client, "GRANT r TO somebody");
        }
        client.batch_execute("ROLLBACK TO SAVEPOINT role").unwrap();
    }
    Can { use_it, grant_it }
}

/// Every chain as a login `PREFIXn`, with a group of its own for the chains of two steps.
fn logins(prefix: &str, chains: &[Chain]) -> String {
    let mut script = String::new();
    for (number, chain) in chains.iter().enumerate() {
        let (login, group) = (format!("{prefix}{number}"), format!("{prefix}g{number}"));
        writeln!(script, "CREATE ROLE {login} LOGIN; CREATE ROLE {group};").unwrap();
        match chain[..] {
            [] => {}
            [one] => writeln!(script, "GRANT r TO {login} {};", clause(one)).unwrap(),
            [one, two] => writeln!(
                script,
                "GRANT {group} TO {login} {}; GRANT r TO {group} {};",
                clause(one),
                clause(two)
            )
            .unwrap(),
            _ => unreachable!("chains have up to two steps"),
        }
    }
    script
}

#[test]
fn a2_and_a3_agree_with_what_postgres_lets_both_roles_do() {
    let cluster = Cluster::start_new();
    let database = cluster.database("membership");
    let mut admin = database.connect("postgres");
    if major(&mut admin) < 16 {
        // The grammar has no such options: that, and no silence, is what holds before 16.
        admin.batch_execute("CREATE ROLE r; CREATE ROLE x").unwrap();
        assert!(admin.batch_execute("GRANT r TO x WITH INHERIT FALSE").is_err());
        return;
    }
    let chains = chains();
    admin
        .batch_execute(&format!(
            "CREATE ROLE r; CREATE ROLE somebody; CREATE TABLE only_r (); GRANT SELECT ON only_r TO r;
             {} {} GRANT \"SET USER\" TO {};",
            logins("i", &chains),
            logins("t", &chains),
            (0..chains.len())
                .map(|n| format!("i{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        ))
        .unwrap();
    let can = |prefix: &str| -> Vec<Can> {
        (0..chains.len())
            .map(|n| try_it(&database, &format!("{prefix}{n}"), &format!("{prefix}g{n}")))
            .collect()
    };
    let (impersonators, targets) = (can("i"), can("t"));
    assert_eq!(impersonators, targets, "the same grants give the same");
    // The table is none if all of it is one kind.
    for wanted in [(false, false), (true, false), (true, true), (false, true)] {
        assert!(
            targets.iter().any(|can| (can.use_it, can.grant_it) == wanted),
            "no chain lets its login {wanted:?}"
        );
    }

    // In the criteria's words: A2 about r and A3 about r, cell by cell.
    let rows = admin
        .query(
            "SELECT i, t, bool_and(ok) FILTER (WHERE criterion = 'A2'), bool_and(ok) FILTER (WHERE criterion = 'A3')
             FROM generate_series(0, $1 - 1) i, generate_series(0, $1 - 1) t,
                 impersonate.explain_setuser('t' || t, 'i' || i)
             WHERE subject = 'r'
             GROUP BY i, t ORDER BY i, t",
            &[&(chains.len() as i32)],
        )
        .unwrap();
    let mut wrong = String::new();
    let mut seen = std::collections::BTreeMap::new();
    for row in &rows {
        let (i, t): (i32, i32) = (row.get(0), row.get(1));
        seen.insert(
            (i as usize, t as usize),
            (row.get::<_, Option<bool>>(2), row.get::<_, Option<bool>>(3)),
        );
    }
    for (i, mine) in impersonators.iter().enumerate() {
        for (t, theirs) in targets.iter().enumerate() {
            let (a2, a3) = seen.get(&(i, t)).copied().unwrap_or((None, None));
            // What isn't asked for is met.
            let said = (a2.unwrap_or(true), a3.unwrap_or(true));
            let holds = (!theirs.use_it || mine.use_it, !theirs.grant_it || mine.grant_it);
            if said != holds {
                writeln!(
                    wrong,
                    "{:?} {mine:?} as {:?} {theirs:?}: said {said:?}, Postgres {holds:?}",
                    chains[i], chains[t]
                )
                .unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cells differ:\n{}",
        wrong.lines().count(),
        impersonators.len() * targets.len(),
        wrong.lines().take(40).collect::<Vec<_>>().join("\n")
    );
}

fn major(client: &mut Client) -> i32 {
    client
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .unwrap()
        .get(0)
}
