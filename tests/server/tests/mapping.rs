//! Names from outside and roles that are left alone: impersonate.user_mapping and impersonate.exempt_roles (SPEC 6),
//! by real connections.

use impersonate_server_tests::{fails, fails_with, wait_until, Cluster, Database};
use postgres::{Client, SimpleQueryMessage};

/// alice may act as bob; postgres owns the extension.
fn stage(cluster: &Cluster) -> (Database<'_>, Client) {
    let database = cluster.database("mapping");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE service;
             GRANT \"SET USER\" (bob, carol) TO alice",
        )
        .unwrap();
    (database, admin)
}

fn value(client: &mut Client, sql: &str) -> String {
    let rows = client.simple_query(sql).unwrap();
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap_or_default()
}

fn current(client: &mut Client) -> String {
    value(client, "SELECT current_user")
}

/// Who is in force after `start`; `end` ends it.
fn acts_as(client: &mut Client, start: &str, end: &str) -> String {
    client
        .simple_query(start)
        .unwrap_or_else(|error| panic!("{start}: {error}"));
    let role = current(client);
    client.simple_query(end).unwrap();
    assert_eq!(current(client), "alice", "{end}");
    role
}

// ------------------------------------------------------------------------------------------------------- user_mapping ---

#[test]
fn an_external_name_stands_for_its_role_behind_every_door() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute("INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('bob@example.com', 'bob')")
        .unwrap();
    let mut client = database.connect("alice");
    for (start, end) in [
        ("SELECT setuser('bob@example.com')", "SELECT setuser()"),
        ("SET impersonate.target = 'bob@example.com'", "RESET impersonate.target"),
        (
            "SELECT set_config('impersonate.target', 'bob@example.com', false)",
            "SELECT set_config('impersonate.target', '', false)",
        ),
        (
            "CALL impersonate.impersonate_user('bob@example.com')",
            "CALL impersonate.impersonate_user(NULL)",
        ),
    ] {
        assert_eq!(acts_as(&mut client, start, end), "bob", "{start}");
    }
    let can = "SELECT impersonate.can_setuser('bob@example.com')";
    assert_eq!(value(&mut client, can), "t");
    let unmet = "SELECT count(*) FROM impersonate.explain_setuser('bob@example.com') WHERE NOT ok";
    assert_eq!(value(&mut client, unmet), "0");

    let mut config = cluster.config("alice", &database.name);
    config.options("-c impersonate.target=bob@example.com");
    let mut started = config.connect(postgres::NoTls).unwrap();
    assert_eq!(current(&mut started), "bob");
    assert_eq!(value(&mut started, "SHOW impersonate.target"), "bob");
}

#[test]
fn the_audit_keeps_both_names() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute(
            "INSERT INTO impersonate.user_mapping (external_name, role)
             VALUES ('bob@example.com', 'bob'), ('boss@example.com', 'postgres')",
        )
        .unwrap();
    let mut client = database.connect("alice");
    client.simple_query("SELECT setuser('bob@example.com')").unwrap();
    client.simple_query("SELECT setuser()").unwrap();
    client.simple_query("SELECT setuser('bob')").unwrap();
    client.simple_query("SELECT setuser()").unwrap();
    fails_with("42501", client.simple_query("SELECT setuser('boss@example.com')"));
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let rows = admin
        .query(
            "SELECT event, user_name, detail->>'external_name', detail->>'target'
               FROM impersonate.audit WHERE event IN ('SETUSER', 'DENIED') ORDER BY event_id",
            &[],
        )
        .unwrap();
    let rows: Vec<(String, String, Option<String>, Option<String>)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            ("SETUSER".into(), "bob".into(), some("bob@example.com"), None),
            ("SETUSER".into(), "bob".into(), None, None),
            (
                "DENIED".into(),
                "alice".into(),
                some("boss@example.com"),
                some("postgres")
            ),
        ]
    );
}

#[test]
fn a_role_of_that_name_wins_and_of_the_rules_the_first_that_matches() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute(
            r"INSERT INTO impersonate.user_mapping (external_name, role, position) VALUES
                ('bob', 'carol', 1),
                ('/^(.*)@example\.com$', '\1', 20),
                ('/@example\.com$', 'carol', 30),
                ('special@example.com', 'carol', 10),
                ('/^x-(\w+)-x$', '\1', 40)",
        )
        .unwrap();
    let mut client = database.connect("alice");
    for (name, role) in [
        ("bob", "bob"),
        ("bob@example.com", "bob"),
        ("special@example.com", "carol"),
        ("x-bob-x", "bob"),
    ] {
        let start = format!("SELECT setuser('{name}')");
        assert_eq!(acts_as(&mut client, &start, "SELECT setuser()"), role, "{name}");
    }
    // What stands for nobody, and names that try the parser and the engine.
    for name in [
        "bob@example.org",
        "bob@example.com.evil",
        "",
        "/",
        r"\1",
        "\u{e9}@example.org",
        &"x".repeat(100_000),
    ] {
        let error = fails(client.query("SELECT setuser($1)", &[&name]));
        assert_eq!(error.code, "42704", "{}", &name[..name.len().min(40)]);
        assert_eq!(current(&mut client), "alice");
    }
}

/// As a role that was dropped must not become somebody else by a rule further down.
#[test]
fn the_first_rule_that_matches_decides_also_where_its_role_does_not_exist() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute(
            r"INSERT INTO impersonate.user_mapping (external_name, role, position) VALUES
                ('boss@example.com', 'boss', 1),
                ('/^(.*)@example\.com$', '\1', 2),
                ('/@example\.com$', 'carol', 3)",
        )
        .unwrap();
    let mut client = database.connect("alice");
    let doors = |name: &str| {
        [
            format!("SELECT setuser('{name}')"),
            format!("SET impersonate.target = '{name}'"),
            format!("CALL impersonate.impersonate_user('{name}')"),
            format!("SELECT set_config('impersonate.target', '{name}', true)"),
        ]
    };
    let long = format!("{}@example.com", "x".repeat(70));
    for (name, role, position) in [
        ("boss@example.com", "boss", 1),
        ("nobody@example.com", "nobody", 2),
        ("@example.com", "", 2),
        (&long, &long[..70], 2),
    ] {
        for door in doors(name) {
            let error = fails_with("42704", client.simple_query(&door));
            assert_eq!(error.message, format!("role \"{role}\" does not exist"), "{door}");
            let detail = error.detail.unwrap_or_default();
            let expected =
                format!("\"{name}\" stands for it by the rule at position {position} of impersonate.user_mapping.");
            assert_eq!(detail, expected, "{door}");
            // What is in other rules is not for everybody.
            assert!(!detail.contains("carol"));
            assert_eq!(current(&mut client), "alice");
        }
        let can = format!("SELECT impersonate.can_setuser('{name}')");
        fails_with("42704", client.simple_query(&can));
    }
    // At the start of a connection as well.
    let mut config = cluster.config("alice", &database.name);
    config.options("-c impersonate.target=boss@example.com");
    let mut started = config.connect(postgres::NoTls).unwrap();
    let error = fails_with("42704", started.simple_query("SELECT 1"));
    assert!(error.detail.unwrap().contains("position 1"));
    started.simple_query("RESET impersonate.target").unwrap();
    // The role is made, and lost again.
    admin
        .batch_execute("CREATE ROLE boss LOGIN; GRANT \"SET USER\" (boss) TO alice")
        .unwrap();
    let start = "SELECT setuser('boss@example.com')";
    assert_eq!(acts_as(&mut client, start, "SELECT setuser()"), "boss");
    admin.batch_execute("DROP ROLE boss").unwrap();
    fails_with("42704", client.simple_query(start));
    assert_eq!(current(&mut client), "alice");
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let denied =
        "SELECT detail->>'message' FROM impersonate.audit WHERE event = 'DENIED' ORDER BY event_id DESC LIMIT 1";
    assert_eq!(value(&mut admin, denied), "role \"boss\" does not exist");
}

#[test]
fn a_rule_that_is_none_is_refused_as_it_is_written() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    let mut insert = |name: &str, role: &str| {
        admin.execute(
            "INSERT INTO impersonate.user_mapping (external_name, role) VALUES ($1, $2)",
            &[&name, &role],
        )
    };
    fails_with("2201B", insert("/(", "bob"));
    fails_with("2201B", insert("/[[:nonsense:]]", "bob"));
    fails_with("23514", insert("", "bob"));
    fails_with("23514", insert("a@example.com", ""));
    insert("a@example.com", "nobody_yet").unwrap();
    fails_with("23505", insert("a@example.com", "bob"));
    let mut client = database.connect("alice");
    fails_with("42704", client.simple_query("SELECT setuser('a@example.com')"));
}

#[test]
fn nobody_but_a_superuser_reads_or_writes_it_and_not_while_impersonating() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    let insert = "INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('a@example.com', 'bob')";
    let mut client = database.connect("alice");
    fails_with("42501", client.batch_execute(insert));
    fails_with("42501", client.simple_query("SELECT * FROM impersonate.user_mapping"));
    // Also one who was granted it, and a superuser who acts as another.
    admin
        .batch_execute(
            "GRANT INSERT ON impersonate.user_mapping TO bob;
             GRANT USAGE ON SEQUENCE impersonate.user_mapping_position_seq TO bob",
        )
        .unwrap();
    client.simple_query("SELECT setuser('bob')").unwrap();
    fails_with("42501", client.batch_execute(insert));
    client.simple_query("SELECT setuser()").unwrap();
    database.connect("bob").batch_execute(insert).unwrap();
    admin.batch_execute("CREATE ROLE root LOGIN SUPERUSER").unwrap();
    admin.simple_query("SELECT setuser('root')").unwrap();
    fails_with("42501", admin.batch_execute("DELETE FROM impersonate.user_mapping"));
}

#[test]
fn a_dump_takes_the_rules_and_their_order_along() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute(
            r"INSERT INTO impersonate.user_mapping (external_name, role)
              VALUES ('bob@example.com', 'bob'), ('/^(.*)@example\.com$', '\1')",
        )
        .unwrap();
    let dump = cluster.command("pg_dump", "postgres", &database.name).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let restored = cluster.empty_database("restored");
    let output = restored.psql("postgres", &String::from_utf8(dump.stdout).unwrap());
    assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    let all = "SELECT string_agg(external_name || '=' || role, ' ' ORDER BY position) FROM impersonate.user_mapping";
    let mut there = restored.connect("postgres");
    assert_eq!(value(&mut there, all), r"bob@example.com=bob /^(.*)@example\.com$=\1");
    // The sequence goes on where it was: the newest rule is the last.
    there
        .batch_execute("INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('c@example.com', 'carol')")
        .unwrap();
    let last = "SELECT external_name FROM impersonate.user_mapping ORDER BY position DESC LIMIT 1";
    assert_eq!(value(&mut there, last), "c@example.com");
}

// ------------------------------------------------------------------------------------------------------- exempt_roles ---

/// A new connection of `who` is refused `target`, with a DETAIL that names `role` and `entry`.
fn exempt(database: &Database, who: &str, target: &str, role: &str, entry: &str) {
    let mut client = database.connect(who);
    let error = fails_with("42501", client.simple_query(&format!("SELECT setuser('{target}')")));
    let detail = error.detail.unwrap_or_default();
    assert!(
        detail.contains(&format!("\"{role}\""))
            && detail.contains(entry)
            && detail.contains("impersonate.exempt_roles"),
        "{who} as {target}: {detail}"
    );
    assert_eq!(current(&mut client), who);
    let mut admin = database.connect("postgres");
    let can = format!("SELECT impersonate.can_setuser('{target}', '{who}')");
    assert_eq!(value(&mut admin, &can), "f");
    let why = format!("SELECT criterion FROM impersonate.explain_setuser('{target}', '{who}') WHERE NOT ok");
    assert_eq!(value(&mut admin, &why), "exempt");
}

/// Sets it for whoever connects from here on.
fn set(cluster: &Cluster, list: &str) {
    cluster.set("impersonate.exempt_roles", list);
    cluster.reload();
    wait_until("the list is in force", || {
        value(
            &mut cluster.connect("postgres", "postgres"),
            "SHOW impersonate.exempt_roles",
        ) == list
    });
}

#[test]
fn an_exempt_role_neither_impersonates_nor_is_impersonated_members_and_superusers_included() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    admin
        .batch_execute("GRANT service TO carol; GRANT service TO alice")
        .unwrap();
    let able = |who: &str, target: &str| {
        let mut client = database.connect(who);
        client.simple_query(&format!("SELECT setuser('{target}')")).unwrap();
        assert_eq!(current(&mut client), target);
    };
    able("alice", "bob");
    able("alice", "carol");
    set(&cluster, "alice");
    exempt(&database, "alice", "bob", "alice", "alice");
    set(&cluster, "Bob, nobody_of_that_name");
    exempt(&database, "alice", "bob", "bob", "bob");
    exempt(&database, "postgres", "bob", "bob", "bob");
    able("alice", "carol");
    set(&cluster, "service");
    exempt(&database, "alice", "carol", "alice", "service");
    exempt(&database, "postgres", "carol", "carol", "service");
    set(&cluster, "owner");
    exempt(&database, "postgres", "bob", "postgres", "owner");
    able("alice", "bob");
    admin.batch_execute("ALTER ROLE carol BYPASSRLS").unwrap();
    set(&cluster, "bypassrls");
    exempt(&database, "postgres", "bob", "postgres", "bypassrls");
    able("alice", "bob");
    set(&cluster, "");
    able("alice", "bob");
}

#[test]
fn a_list_that_is_none_is_refused_and_only_superusers_write_it() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    for wrong in ["a,", ",", "a b", "\"a"] {
        let sql = format!("SET impersonate.exempt_roles = '{wrong}'");
        fails_with("22023", admin.batch_execute(&sql));
    }
    admin
        .batch_execute("SET impersonate.exempt_roles = 'no_such_role'")
        .unwrap();
    let mut client = database.connect("alice");
    fails_with("42501", client.batch_execute("SET impersonate.exempt_roles = ''"));
    client.simple_query("SELECT setuser('bob')").unwrap();
    fails_with("42501", client.batch_execute("RESET impersonate.exempt_roles"));
}

#[test]
fn whoever_becomes_exempt_while_impersonated_is_in_the_way_of_the_change() {
    let cluster = Cluster::start_new();
    let (database, mut admin) = stage(&cluster);
    set(&cluster, "service");
    let mut client = database.connect("alice");
    client.simple_query("SELECT setuser('bob')").unwrap();
    let mut admin_now = database.connect("postgres");
    let error = fails(admin_now.batch_execute("GRANT service TO bob"));
    assert_eq!(error.code, "55006", "{error:?}");
    assert!(error.detail.unwrap().contains("exempt"));
    assert_eq!(current(&mut client), "bob");
    client.simple_query("SELECT setuser()").unwrap();
    admin.batch_execute("GRANT service TO bob").unwrap();
    fails_with("42501", client.simple_query("SELECT setuser('bob')"));
}

#[test]
fn a_new_list_is_held_against_those_who_impersonate_already() {
    let cluster = Cluster::start_new();
    let (database, _admin) = stage(&cluster);
    let mut concerned = database.connect("alice");
    concerned.simple_query("SELECT setuser('bob')").unwrap();
    let mut other = database.connect("alice");
    other.simple_query("SELECT setuser('carol')").unwrap();
    set(&cluster, "bob");
    // The server tells its sessions one after the other.
    let mut ended = None;
    wait_until("the impersonation is ended", || {
        ended = concerned.simple_query("SELECT 1").err();
        ended.is_some()
    });
    // The client may see its connection closed before it sees why.
    if let Some(error) = ended.unwrap().as_db_error() {
        assert_eq!(error.code().code(), "57P01", "{error:?}");
    }
    concerned.simple_query("SELECT 1").unwrap_err();
    assert_eq!(current(&mut other), "carol");
}
