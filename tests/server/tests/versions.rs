//! What a major version of Postgres changes for users (SPEC section 8): each test knows what holds before and after.

use impersonate_server_tests::{fails_with, shared, unique, Cluster};
use postgres::Client;

fn major(client: &mut Client) -> i32 {
    client
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .unwrap()
        .get(0)
}

fn admin_of(admin: &mut Client, grantee: &str) -> Option<String> {
    let sql = "SELECT admin FROM impersonate.grants WHERE grantee::text = $1";
    admin.query_opt(sql, &[&grantee]).unwrap().map(|row| row.get(0))
}

/// G3: what the grammar of 16 says with options of the grant, 15 says by function only.
#[test]
fn admin_only_is_granted_by_options_from_16_on() {
    let cluster = Cluster::start_new();
    let database = cluster.database("options");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute("CREATE ROLE x LOGIN; CREATE ROLE y LOGIN; CREATE ROLE bob LOGIN")
        .unwrap();
    let statement = "GRANT \"SET USER\" TO x WITH ADMIN TRUE, SET FALSE";
    if major(&mut admin) < 16 {
        fails_with("42601", admin.batch_execute(statement));
        admin
            .batch_execute("SELECT impersonate.grant_set_user('x', admin => 'only')")
            .unwrap();
    } else {
        admin.batch_execute(statement).unwrap();
        for refused in [
            "GRANT \"SET USER\" TO y WITH SET FALSE",
            "GRANT \"SET USER\" TO y WITH INHERIT FALSE",
            "GRANT \"SET USER\" TO y WITH ADMIN FALSE, SET FALSE",
        ] {
            fails_with("0LP01", admin.batch_execute(refused));
        }
        assert_eq!(admin_of(&mut admin, "y"), None, "refused means nothing changed");
    }
    assert_eq!(admin_of(&mut admin, "x").as_deref(), Some("only"));
    // May grant, may not use (G3), and what it grants is of use.
    let mut x = database.connect("x");
    fails_with("42501", x.simple_query("SELECT setuser('bob')"));
    x.batch_execute("GRANT \"SET USER\" (bob) TO y").unwrap();
    database.connect("y").simple_query("SELECT setuser('bob')").unwrap();
}

/// G5: `ADMIN OPTION FOR` leaves the use. From 16 on the grammar hands it over as an option with the value false.
#[test]
fn admin_option_for_takes_the_admin_option_alone() {
    let cluster = Cluster::start_new();
    let database = cluster.database("revoke");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE x LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" TO x WITH ADMIN OPTION;
             REVOKE ADMIN OPTION FOR \"SET USER\" FROM x",
        )
        .unwrap();
    assert_eq!(admin_of(&mut admin, "x").as_deref(), Some("none"));
    database.connect("x").simple_query("SELECT setuser('bob')").unwrap();
}

/// X1: whatever a version makes of SESSION AUTHORIZATION, it is refused while impersonating, for a superuser too.
#[test]
fn session_authorization_is_refused_while_impersonating() {
    let database = shared().database("session");
    let (anna, bob) = (unique("anna"), unique("bob"));
    database
        .connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {anna} LOGIN SUPERUSER; CREATE ROLE {bob} LOGIN SUPERUSER"
        ))
        .unwrap();
    let mut client = database.connect(&anna);
    client.simple_query(&format!("SELECT setuser('{bob}')")).unwrap();
    for statement in [
        format!("SET SESSION AUTHORIZATION {anna}"),
        format!("SET LOCAL SESSION AUTHORIZATION {bob}"),
        "SET SESSION AUTHORIZATION DEFAULT".to_owned(),
        "RESET SESSION AUTHORIZATION".to_owned(),
        format!("SELECT set_config('session_authorization', '{anna}', false)"),
    ] {
        fails_with("42501", client.simple_query(&statement));
        let row = client
            .query_one("SELECT current_user::text, session_user::text", &[])
            .unwrap();
        assert_eq!(
            (row.get(0), row.get(1)),
            (bob.clone(), anna.clone()),
            "after {statement}"
        );
    }
}

/// 17 has event triggers that run at login. With the target given on the connection they run as the target (X1).
#[test]
fn login_event_triggers_run_as_the_target() {
    let cluster = Cluster::start_new();
    let database = cluster.database("login");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" (bob) TO anna;
             CREATE TABLE logins (who name, by name); GRANT INSERT ON logins TO PUBLIC;
             CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
                 $$BEGIN INSERT INTO public.logins VALUES (current_user, session_user); END$$",
        )
        .unwrap();
    let trigger = "CREATE EVENT TRIGGER noted ON login EXECUTE FUNCTION note()";
    if major(&mut admin) < 17 {
        fails_with("42601", admin.batch_execute(trigger));
        return;
    }
    admin.batch_execute(trigger).unwrap();
    admin.batch_execute("ALTER EVENT TRIGGER noted ENABLE ALWAYS").unwrap();
    let mut config = cluster.config("anna", &database.name);
    let mut client = config
        .options("-c impersonate.target=bob")
        .connect(postgres::NoTls)
        .unwrap();
    let who: String = client.query_one("SELECT current_user::text", &[]).unwrap().get(0);
    assert_eq!(who, "bob");
    let seen: Vec<(String, String)> = admin
        .query("SELECT who::text, by::text FROM logins", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(seen, [("bob".to_owned(), "anna".to_owned())]);
}

fn text(client: &mut Client, sql: &str) -> Vec<String> {
    client
        .simple_query(sql)
        .unwrap()
        .iter()
        .filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|column| row.get(column).unwrap_or("NULL"))
                    .collect::<Vec<_>>()
                    .join("|"),
            ),
            _ => None,
        })
        .collect()
}

/// anna may act as bob.
fn anna_and_bob(cluster: &Cluster, stem: &str) -> (String, Client) {
    let name = cluster.database(stem).name;
    let mut admin = cluster.connect("postgres", &name);
    admin
        .batch_execute(
            "CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" (bob) TO anna;
             CREATE TABLE t (id int PRIMARY KEY, what text); CREATE INDEX i ON t (what);
             CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t",
        )
        .unwrap();
    (name, admin)
}

/// What MAINTAIN is for.
const MAINTENANCE: [&str; 6] = [
    "VACUUM t",
    "ANALYZE t",
    "REINDEX TABLE t",
    "REINDEX INDEX i",
    "CLUSTER t USING t_pkey",
    "REFRESH MATERIALIZED VIEW m",
];

/// A6: 17 has the privilege MAINTAIN, and pg_maintain, which holds it on everything.
#[test]
fn maintain_is_a_privilege_like_others_from_17_on() {
    let cluster = Cluster::start_new();
    let (name, mut admin) = anna_and_bob(&cluster, "maintain");
    if major(&mut admin) < 17 {
        fails_with("42601", admin.batch_execute("GRANT MAINTAIN ON t TO bob"));
        fails_with("42704", admin.batch_execute("GRANT pg_maintain TO anna"));
        return;
    }
    admin
        .batch_execute(
            "GRANT MAINTAIN ON t, m TO bob; ALTER ROLE anna SET impersonate.criteria = 'full';
             SET impersonate.criteria = 'full'",
        )
        .unwrap();
    let mut anna = cluster.connect("anna", &name);
    let refused = fails_with("42501", anna.simple_query("SELECT setuser('bob')"));
    let detail = refused.detail.unwrap();
    assert!(
        detail.contains("A6") && detail.contains("privilege MAINTAIN on"),
        "{detail}"
    );
    assert!(refused.hint.unwrap().contains("GRANT MAINTAIN ON"));
    for (enough, and_back) in [
        ("GRANT MAINTAIN ON t, m TO anna", "REVOKE MAINTAIN ON t, m FROM anna"),
        ("GRANT pg_maintain TO anna", "REVOKE pg_maintain FROM anna"),
        (
            "ALTER TABLE t OWNER TO anna; ALTER MATERIALIZED VIEW m OWNER TO anna",
            "",
        ),
    ] {
        admin.batch_execute(enough).unwrap();
        anna.simple_query("SELECT setuser('bob')").unwrap();
        // E2: it lasts.
        if !and_back.is_empty() {
            fails_with("55006", admin.batch_execute(and_back));
        }
        anna.simple_query("SELECT setuser()").unwrap();
        admin.batch_execute(and_back).unwrap();
        if !and_back.is_empty() {
            fails_with("42501", anna.simple_query("SELECT setuser('bob')"));
        }
    }
}

/// D4 and L1: who holds MAINTAIN maintains, the impersonator must hold it too, and the record says so.
#[test]
fn maintenance_by_privilege_is_intersected_and_recorded_from_17_on() {
    let cluster = Cluster::start_new();
    let (name, mut admin) = anna_and_bob(&cluster, "maintenance");
    let by_privilege = major(&mut admin) >= 17;
    // Before 17 the owner maintains.
    admin
        .batch_execute(if by_privilege {
            "GRANT MAINTAIN ON t, m TO bob"
        } else {
            "ALTER TABLE t OWNER TO bob; ALTER MATERIALIZED VIEW m OWNER TO bob"
        })
        .unwrap();
    admin
        .batch_execute("ALTER ROLE anna SET impersonate.scope = 'intersection'")
        .unwrap();
    let mut anna = cluster.connect("anna", &name);
    anna.simple_query("SELECT setuser('bob')").unwrap();
    for statement in MAINTENANCE {
        let refused = fails_with("42501", anna.simple_query(statement));
        let lacking = if by_privilege {
            "privilege MAINTAIN"
        } else {
            "to own relation"
        };
        let detail = refused.detail.unwrap();
        assert!(detail.contains(lacking), "{statement}: {detail}");
    }
    admin
        .batch_execute(if by_privilege {
            "GRANT MAINTAIN ON t, m TO anna"
        } else {
            "GRANT bob TO anna"
        })
        .unwrap();
    for statement in MAINTENANCE {
        anna.simple_query(statement).unwrap();
    }
    if by_privilege {
        anna.simple_query("BEGIN; LOCK TABLE t; ROLLBACK").unwrap();
        fails_with("42501", anna.simple_query("SELECT * FROM t"));
        fails_with("42501", anna.simple_query("ALTER TABLE t ADD x int"));
    }
    anna.simple_query("SELECT setuser()").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let recorded = text(
        &mut admin,
        "SELECT DISTINCT command_tag, relations FROM impersonate.audit
          WHERE session_user_name = 'anna' AND sqlstate = '00000' AND relations::text LIKE '%maintain%' ORDER BY 1, 2",
    );
    let mut expected = vec![
        r#"ANALYZE|{"public.t (maintain)"}"#,
        r#"CLUSTER|{"public.t (maintain)"}"#,
        r#"REFRESH MATERIALIZED VIEW|{"public.m (maintain)","public.t (select)"}"#,
        r#"REINDEX|{"public.i (maintain)"}"#,
        r#"REINDEX|{"public.t (maintain)"}"#,
        r#"VACUUM|{"public.t (maintain)"}"#,
    ];
    expected.sort_unstable();
    let mut recorded = recorded;
    recorded.sort();
    assert_eq!(recorded, expected);
}

/// L1: 17 has MERGE with RETURNING, WHEN NOT MATCHED BY SOURCE and merge_action().
#[test]
fn merge_is_recorded_with_what_it_touches_and_returns() {
    let cluster = Cluster::start_new();
    let (name, mut admin) = anna_and_bob(&cluster, "merge");
    admin
        .batch_execute("CREATE TABLE s AS SELECT 1 AS id; INSERT INTO t VALUES (7, 'x'); GRANT ALL ON t TO bob; GRANT SELECT ON s TO bob")
        .unwrap();
    let mut anna = cluster.connect("anna", &name);
    anna.simple_query("SELECT setuser('bob')").unwrap();
    let merge = "MERGE INTO t USING s ON t.id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new')";
    let returning = "MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN UPDATE SET what = 'old'
                     WHEN NOT MATCHED BY SOURCE THEN DELETE RETURNING merge_action(), t.id";
    anna.simple_query(merge).unwrap();
    let newer = major(&mut admin) >= 17;
    if newer {
        let mut rows = text(&mut anna, returning);
        rows.sort();
        assert_eq!(rows, ["DELETE|7", "UPDATE|1"]);
        let in_query = format!("WITH m AS ({returning}) SELECT count(*) FROM m");
        assert_eq!(text(&mut anna, &in_query), ["1"]);
    } else {
        fails_with("42601", anna.simple_query(returning));
    }
    anna.simple_query("SELECT setuser()").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let recorded = text(
        &mut admin,
        "SELECT command_tag, row_count, sqlstate, relations FROM impersonate.audit
          WHERE event = 'STATEMENT' AND statement ~ 'MERGE' ORDER BY event_id",
    );
    assert_eq!(
        recorded[0],
        r#"MERGE|1|00000|{"public.s (select)","public.t (select, insert)"}"#
    );
    if newer {
        let touched = r#"{"public.s (select)","public.t (select, update, delete)"}"#;
        assert_eq!(recorded[1], format!("MERGE|2|00000|{touched}"));
        assert_eq!(recorded[2], format!("SELECT|1|00000|{touched}"));
    } else {
        assert!(recorded[1].contains("|42601|"), "{recorded:?}");
    }
}

/// E2: from 16 on, who creates a role by CREATEROLE holds it, with ADMIN OPTION and more by createrole_self_grant. So
/// a target that is acted as cannot create what its impersonator would not hold; on 15 it can.
#[test]
fn a_role_that_its_creator_holds_keeps_the_criteria() {
    let cluster = Cluster::start_new();
    let (name, mut admin) = anna_and_bob(&cluster, "createrole");
    admin
        .batch_execute("ALTER ROLE bob CREATEROLE; ALTER ROLE anna CREATEROLE; GRANT SET ON PARAMETER createrole_self_grant TO anna, bob")
        .or_else(|_| admin.batch_execute("ALTER ROLE bob CREATEROLE; ALTER ROLE anna CREATEROLE"))
        .unwrap();
    let granted = major(&mut admin) >= 16;
    let mut anna = cluster.connect("anna", &name);
    let mut bob = cluster.connect("bob", &name);
    anna.simple_query("SELECT setuser('bob')").unwrap();
    for (number, client) in [&mut anna, &mut bob].into_iter().enumerate() {
        let create = format!("CREATE ROLE made{number}");
        if !granted {
            client.simple_query(&create).unwrap();
            continue;
        }
        // With the membership and without what createrole_self_grant adds to it.
        for more in ["", "set", "inherit", "set, inherit"] {
            client
                .simple_query(&format!("SET createrole_self_grant = '{more}'"))
                .unwrap();
            let refused = fails_with("55006", client.simple_query(&create));
            assert!(refused.detail.unwrap().contains("Criterion A"), "{more}");
        }
    }
    anna.simple_query("SELECT setuser()").unwrap();
    bob.simple_query("CREATE ROLE afterwards").unwrap();
    let holds = "SELECT pg_has_role('bob', 'afterwards', 'MEMBER WITH ADMIN OPTION')";
    assert_eq!(text(&mut admin, holds), [if granted { "t" } else { "f" }]);
    if granted {
        // A2 and A3: and now it counts, to use and to grant on. Each hint cures what it is given for.
        for expected in [
            "GRANT afterwards TO anna;",
            "GRANT afterwards TO anna WITH ADMIN OPTION;",
        ] {
            let refused = fails_with("42501", anna.simple_query("SELECT setuser('bob')"));
            let hint = refused.hint.unwrap();
            assert_eq!(hint, expected);
            admin.batch_execute(&hint).unwrap();
        }
    }
    anna.simple_query("SELECT setuser('bob')").unwrap();
    if granted {
        // The next one is one more that anna does not hold.
        fails_with("55006", anna.simple_query("CREATE ROLE made2"));
    }
}

/// L2 and S9: transaction_timeout, which 17 has, ends the connection, and the record says who ended it.
#[test]
fn a_transaction_that_lasts_too_long_ends_the_impersonation_from_17_on() {
    let cluster = Cluster::start_new();
    let (name, mut admin) = anna_and_bob(&cluster, "timeout");
    let mut anna = cluster.connect("anna", &name);
    anna.simple_query("SELECT setuser('bob')").unwrap();
    if major(&mut admin) < 17 {
        fails_with("42704", anna.simple_query("SET transaction_timeout = '100ms'"));
        return;
    }
    anna.simple_query("SET transaction_timeout = '100ms'").unwrap();
    assert!(anna.simple_query("BEGIN; SELECT pg_sleep(30)").is_err());
    assert!(anna.simple_query("SELECT 1").is_err(), "the connection is gone");
    let end = "SELECT user_name, session_user_name, detail->>'cause' FROM impersonate.audit WHERE event = 'RESETUSER'";
    impersonate_server_tests::wait_until("the end is on record", || {
        admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
        !text(&mut admin, end).is_empty()
    });
    assert_eq!(text(&mut admin, end), ["bob|anna|terminated"]);
    let slept = "SELECT sqlstate FROM impersonate.audit WHERE event = 'STATEMENT' AND statement ~ 'pg_sleep'";
    assert_eq!(text(&mut admin, slept).last().map(String::as_str), Some("25P04"));
}
