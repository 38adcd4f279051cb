//! The at-least criteria by the switch itself (S5, S6, A1 to A5): the vendor's scenario cell by cell, remedies that
//! cure, and agreement of setuser() with what explains it. What one session can show is in tests/pg_regress.

use std::collections::BTreeSet;
use std::time::Instant;

use impersonate_server_tests::{fails, Cluster, Database};
use postgres::{Client, SimpleQueryMessage};

// ------------------------------------------------------------------------------------------------------------ helpers ---

/// A cluster of its own, so that roles can have plain names.
fn cluster() -> Cluster {
    Cluster::start_new()
}

fn can(admin: &mut Client, impersonator: &str, target: &str) -> bool {
    let sql = "SELECT impersonate.can_setuser($1, $2)";
    admin.query_one(sql, &[&target, &impersonator]).unwrap().get(0)
}

/// What a new connection of the impersonator comes to by setuser(): the role in force, or the refusal's SQLSTATE.
fn switch(database: &Database, impersonator: &str, target: &str) -> Result<String, String> {
    switch_in(&mut database.connect(impersonator), target)
}

fn switch_in(client: &mut Client, target: &str) -> Result<String, String> {
    let before = current(client);
    let statement = format!("SELECT setuser('{}')", target.replace('\'', "''"));
    match client.simple_query(&statement) {
        Ok(_) => {
            let now = current(client);
            client.simple_query("SELECT setuser()").unwrap();
            Ok(now)
        }
        Err(error) => {
            assert_eq!(current(client), before, "refused means nothing changed (S6)");
            Err(fails::<()>(Err(error)).code)
        }
    }
}

fn current(client: &mut Client) -> String {
    let rows = client.simple_query("SELECT current_user").unwrap();
    rows.iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap()
}

/// The rows of explain_setuser that are not met: criterion, subject, remedy.
fn unmet(admin: &mut Client, impersonator: &str, target: &str) -> Vec<(String, String, Option<String>)> {
    let sql = "SELECT criterion, subject, remedy FROM impersonate.explain_setuser($1, $2) WHERE NOT ok";
    let rows = admin.query(sql, &[&target, &impersonator]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

// ----------------------------------------------------------------------------------------------------------- scenario ---

#[test]
fn the_vendors_scenario_holds_in_each_of_its_25_cells() {
    let cluster = cluster();
    let database = cluster.database("scenario");
    database
        .connect("postgres")
        .batch_execute(
            "CREATE ROLE u1 LOGIN; CREATE ROLE u2 LOGIN; CREATE ROLE u3 LOGIN; CREATE ROLE u4 LOGIN; CREATE ROLE u5 LOGIN;
             CREATE ROLE r1; CREATE ROLE r2;
             GRANT \"SET USER\" TO u1;
             GRANT \"SET USER\" (u1, u4) TO u2;
             GRANT \"SET USER\" (u1, u2, u4, u5) TO u3; GRANT \"SET USER ANY WITH ROLES\" (r1, r2) TO u3;
             GRANT \"SET USER\" TO u4; GRANT \"SET USER ANY WITH ROLES\" (r1) TO u4;
             GRANT \"SET USER\" (u4) TO u5; GRANT \"SET USER ANY WITH ROLES\" (r1) TO u5",
        )
        .unwrap();
    let allowed = [
        ("u1", ["u1", "u2", "u3", "u4", "u5"].as_slice()),
        ("u2", &["u2"]),
        ("u3", &["u2", "u3", "u5"]),
        ("u4", &["u1", "u2", "u3", "u4", "u5"]),
        ("u5", &["u5"]),
    ];
    for (impersonator, targets) in allowed {
        for target in ["u1", "u2", "u3", "u4", "u5"] {
            let expected = match targets.contains(&target) {
                true => Ok(target.to_owned()),
                false => Err("42501".to_owned()),
            };
            let cell = format!("{impersonator} as {target}");
            assert_eq!(switch(&database, impersonator, target), expected, "{cell}");
        }
    }
    // All of a row in one session, switching over without going back: each judged as if from the start.
    for (impersonator, targets) in allowed {
        let mut client = database.connect(impersonator);
        for target in ["u1", "u2", "u3", "u4", "u5", "u4", "u3", "u2", "u1"] {
            let before = current(&mut client);
            match client.simple_query(&format!("SELECT setuser('{target}')")) {
                Ok(_) => {
                    assert!(targets.contains(&target), "{impersonator} as {target} from {before}");
                    assert_eq!(current(&mut client), target);
                }
                Err(error) => {
                    assert!(
                        !targets.contains(&target),
                        "{impersonator} as {target} from {before}: {error}"
                    );
                    assert_eq!(current(&mut client), before);
                }
            }
        }
    }
}

// ------------------------------------------------------------------------------------------- each criterion, by itself ---

/// Runs `less`, in which the switch is refused by `criterion`, then `equal` and `more`, in which it works.
fn less_equal_more(criterion: &str, common: &str, less: &str, equal: &str, more: &str) {
    let cluster = cluster();
    let database = cluster.database("criteria");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!(
            "CREATE ROLE i LOGIN; CREATE ROLE t LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE r;
             CREATE ROLE s; {common}"
        ))
        .unwrap();
    // One session all along: every attempt is judged afresh.
    let mut client = database.connect("i");
    admin.batch_execute(less).unwrap();
    let error = fails(client.simple_query("SELECT setuser('t')"));
    assert_eq!(error.code, "42501");
    assert!(
        error
            .detail
            .as_ref()
            .unwrap()
            .contains(&format!("Criterion {criterion}:")),
        "{error:?}"
    );
    assert!(!can(&mut admin, "i", "t"));
    for step in [equal, more] {
        admin.batch_execute(step).unwrap();
        assert_eq!(
            switch_in(&mut client, "t"),
            Ok("t".to_owned()),
            "{criterion} after {step}"
        );
        assert!(can(&mut admin, "i", "t"));
    }
    // And back again.
    admin.batch_execute("REVOKE \"SET USER\" FROM i CASCADE").unwrap();
    assert_eq!(switch_in(&mut client, "t"), Err("42501".to_owned()));
}

#[test]
fn a1_a_right_that_covers_the_target() {
    less_equal_more(
        "A1",
        "",
        "GRANT \"SET USER\" (bob) TO i; SELECT impersonate.grant_set_user('i', admin => 'only')",
        "GRANT \"SET USER\" (t) TO i",
        "GRANT \"SET USER\" TO i",
    );
}

#[test]
fn a1_a_right_over_the_targets_roles() {
    less_equal_more(
        "A1",
        "GRANT r, s TO t, i",
        "GRANT \"SET USER ANY WITH ROLES\" (r) TO i",
        "GRANT \"SET USER ANY WITH ROLES\" (s) TO i",
        "GRANT \"SET USER ANY WITH ROLES\" (bob) TO i",
    );
}

#[test]
fn a2_every_role_of_the_target() {
    less_equal_more(
        "A2",
        "GRANT \"SET USER\" TO i; GRANT r TO bob; GRANT bob, pg_monitor TO t",
        "GRANT bob TO i",
        "GRANT pg_monitor TO i",
        "GRANT s TO i",
    );
}

#[test]
fn a2_through_others_and_after_set_role() {
    less_equal_more(
        "A2",
        "GRANT \"SET USER\" TO i; ALTER ROLE i NOINHERIT; GRANT r TO t; GRANT r TO carol; GRANT carol TO bob",
        "GRANT s TO i",
        "GRANT bob TO i",
        "GRANT r TO i",
    );
}

#[test]
fn a3_admin_of_the_targets_roles() {
    less_equal_more(
        "A3",
        "GRANT \"SET USER\" TO i; GRANT r TO t WITH ADMIN OPTION",
        "GRANT r TO i",
        "GRANT r TO i WITH ADMIN OPTION",
        "GRANT s TO i WITH ADMIN OPTION",
    );
}

#[test]
fn a4_every_attribute_of_the_target() {
    for (attribute, other) in [
        ("CREATEROLE", "CREATEDB"),
        ("CREATEDB", "CREATEROLE"),
        ("REPLICATION", "BYPASSRLS"),
        ("BYPASSRLS", "REPLICATION"),
    ] {
        less_equal_more(
            "A4",
            &format!("GRANT \"SET USER\" TO i; ALTER ROLE t {attribute}"),
            &format!("ALTER ROLE i {other}"),
            &format!("ALTER ROLE i {attribute}"),
            "ALTER ROLE i CREATEROLE CREATEDB REPLICATION BYPASSRLS",
        );
    }
}

#[test]
fn a4_parameters_of_the_target() {
    less_equal_more(
        "A4",
        "GRANT \"SET USER\" TO i; GRANT SET ON PARAMETER log_statement TO t WITH GRANT OPTION",
        "GRANT SET ON PARAMETER log_statement TO i; GRANT ALTER SYSTEM ON PARAMETER log_statement TO i WITH GRANT OPTION",
        "GRANT SET ON PARAMETER log_statement TO i WITH GRANT OPTION",
        "GRANT SET ON PARAMETER log_duration TO i",
    );
}

#[test]
fn a5_lists_of_the_target() {
    less_equal_more(
        "A5",
        "GRANT \"SET USER\" (bob, i) TO t; GRANT \"SET USER ANY WITH ROLES\" (r) TO t; GRANT \"SET USER\" (t) TO i",
        "GRANT \"SET USER\" (r) TO i; GRANT \"SET USER ANY WITH ROLES\" (bob) TO i",
        "GRANT \"SET USER\" (bob) TO i; GRANT \"SET USER ANY WITH ROLES\" (r) TO i",
        "GRANT \"SET USER\" TO i",
    );
}

#[test]
fn a5_any_and_admin_of_the_target() {
    less_equal_more(
        "A5",
        "GRANT \"SET USER\" TO t WITH ADMIN OPTION; GRANT \"SET USER\" (t) TO i",
        "GRANT \"SET USER\" TO i",
        "GRANT \"SET USER\" TO i WITH ADMIN OPTION",
        "GRANT \"SET USER\" (bob) TO i",
    );
}

#[test]
fn a_superuser_as_target_needs_a_superuser() {
    less_equal_more(
        "A4",
        "GRANT \"SET USER\" TO i; ALTER ROLE t SUPERUSER",
        "ALTER ROLE i CREATEROLE CREATEDB REPLICATION BYPASSRLS",
        "ALTER ROLE t NOSUPERUSER",
        "GRANT s TO i",
    );
}

#[test]
fn a_superuser_passes_without_a_right_but_not_as_one_who_cannot_log_in() {
    let cluster = cluster();
    let database = cluster.database("criteria");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE bob LOGIN CREATEDB; CREATE ROLE team; CREATE ROLE expired LOGIN VALID UNTIL '2001-01-01';
             CREATE ROLE boss SUPERUSER LOGIN",
        )
        .unwrap();
    assert_eq!(switch(&database, "boss", "bob"), Ok("bob".to_owned()));
    assert_eq!(switch(&database, "boss", "postgres"), Ok("postgres".to_owned()));
    assert_eq!(switch(&database, "boss", "team"), Err("42501".to_owned()));
    assert_eq!(switch(&database, "boss", "expired"), Err("42501".to_owned()));
    assert_eq!(switch(&database, "boss", "nobody"), Err("42704".to_owned()));
    admin
        .batch_execute("ALTER SYSTEM SET impersonate.require_login = off; SELECT pg_reload_conf()")
        .unwrap_or_else(|_| {
            admin
                .batch_execute("ALTER SYSTEM SET impersonate.require_login = off")
                .unwrap();
            admin.batch_execute("SELECT pg_reload_conf()").unwrap();
        });
    impersonate_server_tests::wait_until("the setting is there", || {
        switch(&database, "boss", "team") == Ok("team".to_owned())
    });
}

#[test]
fn everyone_may_be_themselves_whatever_they_are() {
    let cluster = cluster();
    let database = cluster.database("criteria");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE plain LOGIN; CREATE ROLE rich LOGIN CREATEROLE BYPASSRLS; GRANT \"SET USER\" TO rich",
        )
        .unwrap();
    for role in ["plain", "rich", "postgres"] {
        assert_eq!(switch(&database, role, role), Ok(role.to_owned()));
        assert!(can(&mut admin, role, role));
    }
}

// ------------------------------------------------------------------------------------------------------------ remedies ---

/// Runs every remedy there is until the switch works, and no more than this often.
const BOUND: usize = 25;

fn cure_by_explanation(admin: &mut Client, impersonator: &str, target: &str) {
    for _ in 0..BOUND {
        if can(admin, impersonator, target) {
            assert_eq!(unmet(admin, impersonator, target), []);
            return;
        }
        let missing = unmet(admin, impersonator, target);
        assert!(!missing.is_empty(), "refused without a reason");
        for (criterion, subject, remedy) in missing {
            let remedy = remedy.unwrap_or_else(|| panic!("{criterion} {subject}: no remedy for {target}"));
            admin
                .batch_execute(&remedy)
                .unwrap_or_else(|error| panic!("{remedy}: {error:?}"));
            // The remedy cures its own row.
            let after = unmet(admin, impersonator, target);
            assert!(
                !after.iter().any(|row| row.2.as_deref() == Some(&remedy)),
                "{remedy} changed nothing"
            );
        }
    }
    panic!(
        "{impersonator} as {target}: not cured in {BOUND} rounds: {:?}",
        unmet(admin, impersonator, target)
    );
}

/// As [`cure_by_explanation`], by the HINT of each refusal, as a person would.
fn cure_by_hints(database: &Database, impersonator: &str, target: &str) {
    let mut admin = database.connect("postgres");
    let mut client = database.connect(impersonator);
    for _ in 0..BOUND * 3 {
        let statement = format!("SELECT setuser('{}')", target.replace('\'', "''"));
        match client.simple_query(&statement) {
            Ok(_) => {
                assert_eq!(current(&mut client), target);
                return;
            }
            Err(error) => {
                let error = fails::<()>(Err(error));
                let hint = error.hint.clone().unwrap_or_else(|| panic!("no hint: {error:?}"));
                admin
                    .batch_execute(&hint)
                    .unwrap_or_else(|failed| panic!("{error:?}: {failed:?}"));
            }
        }
    }
    panic!("{impersonator} as {target}: not cured");
}

/// The database's owner holds pg_database_owner, which no GRANT can give: see the test of that.
fn not_owned_by_a_target(database: &Database) {
    let sql = format!(
        "CREATE ROLE owner_of_it; ALTER DATABASE {} OWNER TO owner_of_it",
        database.name
    );
    database.connect("postgres").batch_execute(&sql).unwrap();
}

const TARGETS: &str = "
    CREATE ROLE plain LOGIN;
    CREATE ROLE \"Odd \"\"Name\"\" o'f\" LOGIN;
    CREATE ROLE cannot_log_in;
    CREATE ROLE expired LOGIN VALID UNTIL '2001-01-01';
    CREATE ROLE a; CREATE ROLE b IN ROLE a; CREATE ROLE \"C c\" IN ROLE b; CREATE ROLE d; CREATE ROLE z;
    CREATE ROLE nested LOGIN IN ROLE \"C c\", d, pg_monitor;
    CREATE ROLE admins LOGIN;
    GRANT a, d TO admins WITH ADMIN OPTION; GRANT z TO \"C c\" WITH ADMIN OPTION; GRANT \"C c\" TO admins;
    CREATE ROLE attributes LOGIN CREATEROLE CREATEDB REPLICATION BYPASSRLS;
    CREATE ROLE superuser LOGIN SUPERUSER;
    CREATE ROLE parameters LOGIN;
    GRANT SET ON PARAMETER log_statement TO parameters WITH GRANT OPTION;
    GRANT SET, ALTER SYSTEM ON PARAMETER work_mem TO parameters;
    GRANT SET ON PARAMETER my.own TO parameters;
    GRANT SET ON PARAMETER \"my.order\" TO parameters;
    CREATE ROLE any_user LOGIN; GRANT \"SET USER\" TO any_user;
    CREATE ROLE any_with_admin LOGIN; GRANT \"SET USER\" TO any_with_admin WITH ADMIN OPTION;
    CREATE ROLE admin_only LOGIN; SELECT impersonate.grant_set_user('admin_only', admin => 'only');
    CREATE ROLE lists LOGIN;
    GRANT \"SET USER\" (plain, \"Odd \"\"Name\"\" o'f\", cannot_log_in) TO lists;
    GRANT \"SET USER ANY WITH ROLES\" (a, \"C c\") TO lists;
    CREATE ROLE through_group LOGIN IN ROLE z; GRANT \"SET USER\" (plain) TO z;
    GRANT \"SET USER ANY WITH ROLES\" (b) TO z;
    CREATE ROLE everything LOGIN CREATEROLE CREATEDB REPLICATION BYPASSRLS IN ROLE nested, admins, parameters, lists,
        any_with_admin;";

const TARGET_NAMES: [&str; 16] = [
    "plain",
    "Odd \"Name\" o'f",
    "cannot_log_in",
    "expired",
    "nested",
    "admins",
    "attributes",
    "superuser",
    "parameters",
    "any_user",
    "any_with_admin",
    "admin_only",
    "lists",
    "through_group",
    "everything",
    "postgres",
];

#[test]
fn the_remedies_of_an_explanation_cure_what_they_are_for() {
    let cluster = cluster();
    let database = cluster.database("cures");
    let mut admin = database.connect("postgres");
    admin.batch_execute(TARGETS).unwrap();
    not_owned_by_a_target(&database);
    for (n, target) in TARGET_NAMES.iter().enumerate() {
        let desk = format!("Desk {n}");
        for options in ["LOGIN", "LOGIN NOINHERIT"] {
            admin
                .batch_execute(&format!("CREATE ROLE \"{desk}\" {options}"))
                .unwrap();
            cure_by_explanation(&mut admin, &desk, target);
            assert_eq!(switch(&database, &desk, target), Ok((*target).to_owned()));
            admin
                .batch_execute(&format!("DROP OWNED BY \"{desk}\"; DROP ROLE \"{desk}\""))
                .unwrap();
        }
    }
}

#[test]
fn the_hints_of_refusals_cure_one_after_the_other() {
    let cluster = cluster();
    let database = cluster.database("cures");
    let mut admin = database.connect("postgres");
    admin.batch_execute(TARGETS).unwrap();
    not_owned_by_a_target(&database);
    for (n, target) in TARGET_NAMES.iter().enumerate() {
        let desk = format!("desk_{n}");
        admin.batch_execute(&format!("CREATE ROLE {desk} LOGIN")).unwrap();
        cure_by_hints(&database, &desk, target);
    }
}

#[test]
fn what_the_owner_of_the_database_holds_has_a_remedy_that_works() {
    let cluster = cluster();
    let database = cluster.database("cures");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!(
            "CREATE ROLE owner LOGIN; CREATE ROLE member LOGIN IN ROLE owner; ALTER DATABASE {} OWNER TO owner",
            database.name
        ))
        .unwrap();
    for target in ["owner", "member"] {
        let desk = format!("desk_of_{target}");
        admin.batch_execute(&format!("CREATE ROLE {desk} LOGIN")).unwrap();
        // pg_database_owner is held by the owner alone, and nobody can be made a member of it.
        let missing = unmet(&mut admin, &desk, target);
        assert!(missing.iter().any(|row| row.1 == "pg_database_owner"), "{missing:?}");
        cure_by_explanation(&mut admin, &desk, target);
        assert_eq!(switch(&database, &desk, target), Ok(target.to_owned()));
    }
}

#[test]
fn what_no_grant_can_cure_has_no_remedy() {
    let cluster = cluster();
    let database = cluster.database("cures");
    let mut admin = database.connect("postgres");
    // r is a member of the impersonator: the impersonator cannot be made one of r.
    admin
        .batch_execute(
            "CREATE ROLE desk LOGIN; CREATE ROLE r; CREATE ROLE s; CREATE ROLE t LOGIN; GRANT desk TO r; GRANT r TO s;
             GRANT r TO t WITH ADMIN OPTION; GRANT s TO t; GRANT desk TO t WITH ADMIN OPTION",
        )
        .unwrap();
    for _ in 0..3 {
        for (_, _, remedy) in unmet(&mut admin, "desk", "t") {
            if let Some(remedy) = remedy {
                admin
                    .batch_execute(&remedy)
                    .unwrap_or_else(|error| panic!("{remedy}: {error:?}"));
            }
        }
    }
    let left: Vec<_> = unmet(&mut admin, "desk", "t")
        .into_iter()
        .map(|(_, _, remedy)| remedy)
        .collect();
    assert!(!left.is_empty() && left.iter().all(Option::is_none), "{left:?}");
    let error = fails(database.connect("desk").simple_query("SELECT setuser('t')"));
    assert_eq!((error.code.as_str(), error.hint), ("42501", None));
}

// ----------------------------------------------------------------------------------------------------------- agreement ---

/// A small generator of numbers, the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

#[test]
fn setuser_does_what_can_setuser_says_and_explain_setuser_explains() {
    let cluster = cluster();
    let database = cluster.database("agreement");
    let mut admin = database.connect("postgres");
    let logins: Vec<String> = (0..6).map(|n| format!("u{n}")).collect();
    let groups: Vec<String> = (0..4).map(|n| format!("g{n}")).collect();
    for role in &logins {
        admin.batch_execute(&format!("CREATE ROLE {role} LOGIN")).unwrap();
    }
    for role in &groups {
        admin.batch_execute(&format!("CREATE ROLE {role}")).unwrap();
    }
    let mut clients: Vec<Client> = logins.iter().map(|role| database.connect(role)).collect();
    let (mut allowed, mut refused) = (0, 0);
    for seed in 0..8 {
        let mut dice = Dice(seed);
        // Some changes on top of what is there.
        for _ in 0..14 {
            let (login, other, group) = (&logins[dice.roll(6)], &logins[dice.roll(6)], &groups[dice.roll(4)]);
            let statement = match dice.roll(13) {
                0 | 1 => format!("GRANT {group} TO {login}"),
                2 => format!("REVOKE {group} FROM {login}"),
                3 => format!("GRANT {group} TO {login} WITH ADMIN OPTION"),
                4 => format!("GRANT g{} TO g{}", dice.roll(2), 2 + dice.roll(2)),
                5 => format!(
                    "ALTER ROLE {login} {}",
                    ["CREATEDB", "NOCREATEDB", "CREATEROLE", "NOCREATEROLE"][dice.roll(4)]
                ),
                6 => format!("ALTER ROLE {login} {}", ["INHERIT", "NOINHERIT"][dice.roll(2)]),
                7 => format!("GRANT \"SET USER\" TO {login}"),
                8 => format!("GRANT \"SET USER\" ({other}) TO {login}"),
                9 => format!("GRANT \"SET USER ANY WITH ROLES\" ({group}) TO {login}"),
                10 => format!("REVOKE \"SET USER\" FROM {login} CASCADE"),
                11 => format!("GRANT \"SET USER\" ({other}) TO {group}"),
                _ => format!("GRANT \"SET USER\" TO {group} WITH ADMIN OPTION"),
            };
            admin
                .batch_execute(&statement)
                .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        for (impersonator, client) in logins.iter().zip(&mut clients) {
            for target in &logins {
                let promised = can(&mut admin, impersonator, target);
                let explained = unmet(&mut admin, impersonator, target).is_empty();
                let done = switch_in(client, target);
                let cell = format!("seed {seed}: {impersonator} as {target}");
                assert_eq!(promised, explained, "{cell}");
                assert_eq!(done.is_ok(), promised, "{cell}: {done:?}");
                if impersonator != target {
                    *if promised { &mut allowed } else { &mut refused } += 1;
                }
                if promised {
                    at_least(&mut admin, impersonator, target, &cell);
                }
            }
        }
    }
    println!("{allowed} allowed, {refused} refused");
    assert!(
        allowed > 10 && refused > 10,
        "the dice are loaded: {allowed} allowed, {refused} refused"
    );
}

/// Whoever passes gains no role, admin or attribute, by the server's own functions.
fn at_least(admin: &mut Client, impersonator: &str, target: &str, cell: &str) {
    for privilege in ["MEMBER", "MEMBER WITH ADMIN OPTION"] {
        let mut held = |role: &str| -> BTreeSet<String> {
            let sql = "SELECT rolname::text FROM pg_roles WHERE rolname <> $1 AND pg_has_role($1, oid, $2)";
            let rows = admin.query(sql, &[&role, &privilege]).unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        };
        let (mut of_target, of_impersonator) = (held(target), held(impersonator));
        of_target.remove(impersonator);
        assert!(
            of_target.is_subset(&of_impersonator),
            "{cell}: {privilege}: {of_target:?} of {of_impersonator:?}"
        );
    }
    let sql = "SELECT count(*) FROM pg_roles i, pg_roles t WHERE i.rolname = $1 AND t.rolname = $2
               AND (t.rolcreatedb > i.rolcreatedb OR t.rolcreaterole > i.rolcreaterole OR t.rolsuper > i.rolsuper)";
    let gained: i64 = admin.query_one(sql, &[&impersonator, &target]).unwrap().get(0);
    assert_eq!(gained, 0, "{cell}");
}

#[test]
fn a_change_in_another_session_counts_at_the_next_switch() {
    let cluster = cluster();
    let database = cluster.database("fresh");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute("CREATE ROLE desk LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE r; GRANT \"SET USER\" (bob) TO desk")
        .unwrap();
    let mut client = database.connect("desk");
    let allowed = |client: &mut Client| switch_in(client, "bob").is_ok();
    assert!(allowed(&mut client));
    for (breaks, mends) in [
        ("GRANT r TO bob", "GRANT r TO desk"),
        ("ALTER ROLE bob CREATEDB", "ALTER ROLE bob NOCREATEDB"),
        ("ALTER ROLE bob NOLOGIN", "ALTER ROLE bob LOGIN"),
        (
            "ALTER ROLE bob VALID UNTIL '2001-01-01'",
            "ALTER ROLE bob VALID UNTIL 'infinity'",
        ),
        ("REVOKE \"SET USER\" FROM desk", "GRANT \"SET USER\" (bob) TO desk"),
        ("GRANT \"SET USER\" (r) TO bob", "REVOKE \"SET USER\" FROM bob"),
        (
            "GRANT SET ON PARAMETER log_statement TO bob",
            "REVOKE SET ON PARAMETER log_statement FROM bob",
        ),
    ] {
        admin.batch_execute(breaks).unwrap();
        assert!(!allowed(&mut client), "{breaks}");
        admin.batch_execute(mends).unwrap();
        assert!(allowed(&mut client), "{mends}");
    }
    // Also in a transaction whose snapshot is older than the change.
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        .unwrap();
    admin.batch_execute("REVOKE \"SET USER\" FROM desk").unwrap();
    fails(client.simple_query("SELECT setuser('bob')"));
    client.batch_execute("ROLLBACK").unwrap();
    // What another has not committed yet is waited for (E4).
    let mut other = database.connect("postgres");
    other.batch_execute("BEGIN; GRANT \"SET USER\" (bob) TO desk").unwrap();
    client.batch_execute("SET lock_timeout = '200 ms'").unwrap();
    assert_eq!(switch_in(&mut client, "bob"), Err("55P03".to_owned()));
    client.batch_execute("RESET lock_timeout").unwrap();
    other.batch_execute("ROLLBACK").unwrap();
    assert!(!allowed(&mut client));
    other
        .batch_execute("BEGIN; GRANT \"SET USER\" (bob) TO desk; COMMIT")
        .unwrap();
    assert!(allowed(&mut client));
}

// ---------------------------------------------------------------------------------------------------------------- cost ---

/// Prints how long a switch takes; asserts only that it works. With a library without optimisation and a server with
/// assertions the numbers are not what users see.
#[test]
fn the_cost_of_a_switch_among_20000_roles() {
    // CREATE ROLE keeps a lock on each from 18 on.
    let cluster = Cluster::builder().setting("max_locks_per_transaction", "1000").start();
    let database = cluster.database("cost");
    let mut admin = database.connect("postgres");
    // 20,000 roles; the target holds 1,000: five levels of 200, each role of a level in two of the next.
    admin
        .batch_execute(
            "DO $$ BEGIN
                 FOR n IN 1..19000 LOOP EXECUTE format('CREATE ROLE other_%s', n); END LOOP;
                 FOR level IN 1..5 LOOP
                     FOR n IN 0..199 LOOP
                         EXECUTE format('CREATE ROLE level_%s_%s', level, n);
                     END LOOP;
                 END LOOP;
             END $$;
             CREATE ROLE target LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE small LOGIN;
             DO $$ BEGIN
                 FOR n IN 0..199 LOOP
                     EXECUTE format('GRANT level_1_%s TO target, desk', n);
                     FOR level IN 1..4 LOOP
                         EXECUTE format('GRANT level_%s_%s, level_%s_%s TO level_%s_%s',
                                        level + 1, n, level + 1, (n + 1) % 200, level, n);
                     END LOOP;
                 END LOOP;
             END $$;
             GRANT \"SET USER\" (target, small) TO desk; GRANT \"SET USER\" (small) TO level_5_7",
        )
        .unwrap();
    admin.batch_execute("VACUUM ANALYZE").unwrap();
    let held: i64 = admin
        .query_one(
            "SELECT count(*) FROM pg_roles WHERE rolname <> 'target' AND pg_has_role('target', oid, 'MEMBER')",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(held, 1000);
    let mut client = database.connect("desk");
    for target in ["small", "target"] {
        for (what, statement) in [
            ("setuser", format!("SELECT setuser('{target}')")),
            ("can_setuser", format!("SELECT impersonate.can_setuser('{target}')")),
            (
                "explain_setuser",
                format!("SELECT count(*) FROM impersonate.explain_setuser('{target}')"),
            ),
        ] {
            let mut times = Vec::new();
            for _ in 0..6 {
                let begun = Instant::now();
                client.simple_query(&statement).unwrap();
                times.push(begun.elapsed().as_secs_f64() * 1e3);
                client.simple_query("SELECT setuser()").unwrap();
            }
            println!(
                "{what}('{target}'): first {:.1} ms, then {:.1?} ms",
                times[0],
                &times[1..]
            );
        }
    }
}
