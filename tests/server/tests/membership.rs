//! Membership options (Postgres 16 and later): A2 and A3 with INHERIT, SET and ADMIN in every combination on both sides,
//! through chains of groups. What the criteria answer is compared with what Postgres lets each role do: both log in
//! and try, so that the expectation is the server's and not a second copy of our own logic.

use std::collections::BTreeMap;
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
    try_with(&mut client, &["NONE", group, "r"], "r")
}

/// The same for any role, of which there is a table `only_ROLE`; `NONE` is the login itself, or whoever it acts as.
fn try_with(client: &mut Client, ways: &[&str], wanted: &str) -> Can {
    client.batch_execute("BEGIN").unwrap();
    let (mut use_it, mut grant_it) = (false, false);
    for role in ways {
        client.batch_execute("SAVEPOINT role").unwrap();
        if client.batch_execute(&format!("SET ROLE {role}")).is_ok() {
            use_it |= attempt(client, &format!("SELECT * FROM only_{wanted}"));
            grant_it |= attempt(client, &format!("GRANT {wanted} TO somebody"));
        }
        client.batch_execute("ROLLBACK TO SAVEPOINT role").unwrap();
    }
    client.batch_execute("ROLLBACK").unwrap();
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

/// What a role can do with several others, by name.
type Powers = BTreeMap<&'static str, Can>;

/// A2 and A3 as Postgres has them: what the target can use and grant, the impersonator can.
fn at_least(mine: &Powers, theirs: &Powers) -> bool {
    theirs.iter().all(|(role, theirs)| {
        let mine = mine[role];
        (!theirs.use_it || mine.use_it) && (!theirs.grant_it || mine.grant_it)
    })
}

/// Where r is held by a group, both sides share the group: g. So its membership counts as well.
fn shared_group(prefix: &str, chains: &[Chain]) -> String {
    let mut script = String::new();
    for (number, chain) in chains.iter().enumerate() {
        writeln!(script, "CREATE ROLE {prefix}{number} LOGIN;").unwrap();
        for (role, options) in ["r", "g"].iter().zip(chain) {
            // Bit 3: the role is granted at all.
            if options & OPTIONS != 0 {
                writeln!(script, "GRANT {role} TO {prefix}{number} {};", clause(*options)).unwrap();
            }
        }
    }
    script
}

/// A2 and A3 by the switch itself: whoever can do what the target can may become it, nobody else may, and then it can
/// do just what the target can do when it logs in (X1).
#[test]
fn setuser_agrees_with_what_postgres_lets_both_roles_do() {
    let cluster = Cluster::start_new();
    let database = cluster.database("switching");
    let mut admin = database.connect("postgres");
    if major(&mut admin) < 16 {
        // As above.
        admin.batch_execute("CREATE ROLE r; CREATE ROLE x").unwrap();
        assert!(admin.batch_execute("GRANT r TO x WITH SET FALSE").is_err());
        return;
    }
    // r directly, or not at all, beside g, which gives it in one of three ways.
    let with_r = [
        0,
        OPTIONS,
        OPTIONS | 1,
        OPTIONS | 2,
        OPTIONS | 4,
        OPTIONS | 5,
        OPTIONS | 6,
        OPTIONS | 7,
    ];
    let with_g = [0, OPTIONS, OPTIONS | 1, OPTIONS | 2, OPTIONS | 4, OPTIONS | 7];
    let chains: Vec<Chain> = with_r
        .iter()
        .flat_map(|r| with_g.iter().map(|g| vec![*r, *g]))
        .collect();
    let (mut allowed, mut refused) = (0, 0);
    for of_group in [1, 2, 6] {
        admin
            .batch_execute(&format!(
                "CREATE ROLE r; CREATE ROLE g; CREATE ROLE somebody; GRANT r TO g {};
                 CREATE TABLE only_r (); GRANT SELECT ON only_r TO r; CREATE TABLE only_g (); GRANT SELECT ON only_g TO g;
                 {} {} GRANT \"SET USER\" TO {}",
                clause(of_group),
                shared_group("i", &chains),
                shared_group("t", &chains),
                (0..chains.len()).map(|n| format!("i{n}")).collect::<Vec<_>>().join(", ")
            ))
            .unwrap();
        let powers = |client: &mut Client| -> Powers {
            ["r", "g"]
                .into_iter()
                .map(|role| (role, try_with(client, &["NONE", "g", "r"], role)))
                .collect()
        };
        let of = |prefix: &str| -> Vec<Powers> {
            (0..chains.len())
                .map(|n| powers(&mut database.connect(&format!("{prefix}{n}"))))
                .collect()
        };
        let (impersonators, targets) = (of("i"), of("t"));
        assert_eq!(impersonators, targets, "the same grants give the same");
        for (i, mine) in impersonators.iter().enumerate() {
            let mut client = database.connect(&format!("i{i}"));
            for (t, theirs) in targets.iter().enumerate() {
                let switched = client.simple_query(&format!("SELECT setuser('t{t}')")).is_ok();
                assert_eq!(
                    switched,
                    at_least(mine, theirs),
                    "{:?} {mine:?} as {:?} {theirs:?}, g {of_group}",
                    chains[i],
                    chains[t]
                );
                if !switched {
                    refused += 1;
                    continue;
                }
                allowed += 1;
                // Not for each: there are thousands, and what is in force does not depend on who came by.
                if (i + t) % 7 == 0 {
                    assert_eq!(&powers(&mut client), theirs, "i{i} as t{t} is t{t}");
                }
                client.simple_query("SELECT setuser()").unwrap();
            }
        }
        let gone = |prefix: &str| {
            (0..chains.len())
                .map(|n| format!("{prefix}{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        admin
            .batch_execute(&format!(
                "DROP TABLE only_r, only_g; DROP ROLE {}, {}; DROP ROLE r, g, somebody",
                gone("i"),
                gone("t")
            ))
            .unwrap();
    }
    assert!(allowed > 500 && refused > 500, "{allowed} allowed, {refused} refused");
}

/// E2 with membership options: taking one from the impersonator, or giving one to the target, passes just when the
/// criteria hold with what is left, by the same oracle.
#[test]
fn options_that_change_under_an_impersonation_are_judged_by_what_is_left() {
    let cluster = Cluster::start_new();
    let database = cluster.database("lasting");
    let mut admin = database.connect("postgres");
    if major(&mut admin) < 16 {
        admin
            .batch_execute("CREATE ROLE r; CREATE ROLE x; GRANT r TO x")
            .unwrap();
        assert!(admin.batch_execute("REVOKE INHERIT OPTION FOR r FROM x").is_err());
        return;
    }
    let chains: Vec<Chain> = (0..OPTIONS).map(|options| vec![options]).collect();
    admin
        .batch_execute(&format!(
            "CREATE ROLE r; CREATE ROLE somebody; CREATE TABLE only_r (); GRANT SELECT ON only_r TO r;
             {} {} GRANT \"SET USER\" TO {}",
            logins("i", &chains),
            logins("t", &chains),
            (0..chains.len())
                .map(|n| format!("i{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        ))
        .unwrap();
    let can: Vec<Can> = (0..chains.len())
        .map(|n| try_it(&database, &format!("i{n}"), &format!("ig{n}")))
        .collect();
    let holds = |i: usize, t: usize| (!can[t].use_it || can[i].use_it) && (!can[t].grant_it || can[i].grant_it);
    let (mut passed, mut refused) = (0, 0);
    let mut judge = |admin: &mut Client, statement: &str, expected: bool| {
        admin.batch_execute("BEGIN").unwrap();
        let result = admin.batch_execute(statement);
        admin.batch_execute("ROLLBACK").unwrap();
        match (result, expected) {
            (Ok(()), true) => passed += 1,
            (Err(error), false) => {
                assert_eq!(
                    error.code().map(|code| code.code()),
                    Some("55006"),
                    "{statement}: {error:?}"
                );
                refused += 1;
            }
            (result, expected) => panic!("{statement}: {result:?}, expected {expected}"),
        }
    };
    for i in 0..chains.len() {
        let mut client = database.connect(&format!("i{i}"));
        for t in 0..chains.len() {
            if !holds(i, t) {
                continue;
            }
            client.simple_query(&format!("SELECT setuser('t{t}')")).unwrap();
            for (bit, option) in [(1, "INHERIT"), (2, "SET"), (4, "ADMIN")] {
                let (less, more) = (i & !bit, t | bit);
                judge(
                    &mut admin,
                    &format!("REVOKE {option} OPTION FOR r FROM i{i}"),
                    holds(less, t),
                );
                judge(
                    &mut admin,
                    &format!("GRANT r TO i{i} WITH {option} FALSE"),
                    holds(less, t),
                );
                judge(
                    &mut admin,
                    &format!("GRANT r TO t{t} WITH {option} TRUE"),
                    holds(i, more),
                );
                judge(&mut admin, &format!("GRANT r TO i{i} WITH {option} TRUE"), true);
                judge(&mut admin, &format!("REVOKE {option} OPTION FOR r FROM t{t}"), true);
            }
            // None of it happened.
            let row = client.query_one("SELECT current_user::text", &[]).unwrap();
            assert_eq!(row.get::<_, String>(0), format!("t{t}"));
            client.simple_query("SELECT setuser()").unwrap();
        }
    }
    assert!(passed > 100 && refused > 20, "{passed} passed, {refused} refused");
}

fn major(client: &mut Client) -> i32 {
    client
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .unwrap()
        .get(0)
}
