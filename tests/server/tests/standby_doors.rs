//! Every door on a hot standby, where nothing can be written (D1, D2, N1).

use impersonate_server_tests::raw::{error_in, rows_in, RawClient};
use impersonate_server_tests::{wait_until, Cluster};

/// How it begins and how it ends. Those of `tool` mean it by `impersonate.capture_set_role`.
const DOORS: [(&str, &str, &str); 13] = [
    ("imp", "SELECT setuser('bob')", "SELECT setuser()"),
    ("imp", "SELECT setuser('bob@example.com')", "SELECT setuser(NULL)"),
    ("imp", "SET impersonate.target = 'bob'", "SET impersonate.target = ''"),
    ("imp", "SET impersonate.target TO bob", "RESET impersonate.target"),
    (
        "imp",
        "SELECT set_config('impersonate.target', 'bob', false)",
        "SELECT set_config('impersonate.target', '', false)",
    ),
    (
        "imp",
        "CALL impersonate.impersonate_user('bob')",
        "CALL impersonate.impersonate_user(NULL)",
    ),
    ("tool", "SET ROLE bob", "SET ROLE NONE"),
    ("tool", "SET ROLE \"bob\";", "RESET ROLE"),
    ("tool", "SET SESSION AUTHORIZATION bob", "RESET SESSION AUTHORIZATION"),
    (
        "tool",
        "SELECT set_config('role', 'bob', false)",
        "SELECT set_config('role', 'none', false)",
    ),
    ("imp", "SET LOCAL impersonate.target = 'bob'", ""),
    ("tool", "SET LOCAL ROLE bob", ""),
    (
        "tool",
        "SELECT set_config('search_path', 'public', true), set_config('role', 'bob', true)",
        "",
    ),
];

/// A statement in the simple or the extended protocol; rows.
#[track_caller]
fn run(client: &mut RawClient, extended: bool, sql: &str) -> Vec<Vec<Option<String>>> {
    let answer = if extended {
        client.extended(sql, &[])
    } else {
        client.simple(sql)
    };
    assert_eq!(error_in(&answer), None, "{sql}");
    rows_in(&answer)
}

#[track_caller]
fn current(client: &mut RawClient) -> String {
    run(client, false, "SELECT current_user")[0][0].clone().unwrap()
}

#[test]
fn n1_every_door_leads_there_on_a_standby() {
    let primary = Cluster::builder()
        .setting("cluster_name", "primary")
        .setting("max_worker_processes", "16")
        .setting("full_page_writes", "on")
        .start();
    let database = primary.database("doors").name;
    let mut admin = primary.connect("postgres", &database);
    admin
        .batch_execute(
            "CREATE ROLE imp LOGIN; CREATE ROLE tool LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN;
             GRANT \"SET USER\" (bob) TO imp, tool;
             ALTER ROLE tool SET impersonate.capture_set_role = on;
             INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('/^(.*)@example.com$', '\\1');
             CREATE ROLE shipper LOGIN;
             GRANT EXECUTE ON FUNCTION impersonate.audit_receive, impersonate.report_node TO shipper",
        )
        .unwrap();
    let conninfo = primary.conninfo("shipper");
    let standby = primary.standby("standby", &[("impersonate.primary_conninfo", conninfo.as_str())]);
    let mut expected = Vec::new();
    for extended in [false, true] {
        for (login, begin, end) in DOORS {
            let mut client = RawClient::connect(&standby, login, &database);
            assert_eq!(
                run(&mut client, false, "SELECT pg_is_in_recovery()")[0][0].as_deref(),
                Some("t")
            );
            let local = end.is_empty();
            if local {
                run(&mut client, false, "BEGIN");
            }
            run(&mut client, extended, begin);
            assert_eq!(current(&mut client), "bob", "{begin}");
            run(&mut client, extended, if local { "COMMIT" } else { end });
            assert_eq!(current(&mut client), login, "{end}");
            let cause = if local { "end of transaction" } else { "asked" };
            expected.push(format!("SETUSER {login}"));
            expected.push(format!("RESETUSER {login} {cause}"));
        }
        // What is lasting is not ended for a transaction, and what there is no right over is refused.
        let mut client = RawClient::connect(&standby, "tool", &database);
        run(&mut client, extended, "SET ROLE bob");
        for (wrong, sqlstate) in [("SET LOCAL ROLE NONE", "0A000"), ("SET ROLE carol", "42501")] {
            let error = error_in(&client.simple(wrong)).expect(wrong);
            assert_eq!(error.code, sqlstate, "{wrong}: {error:?}");
            assert_eq!(current(&mut client), "bob");
            expected.push("DENIED tool".to_owned());
        }
        run(&mut client, extended, "DISCARD ALL");
        assert_eq!(current(&mut client), "tool");
        let at = expected.len() - 2;
        expected.insert(at, "SETUSER tool".to_owned());
        expected.push("RESETUSER tool discard".to_owned());
    }
    // The connection's own option, and ALTER ROLE, which arrives by replication.
    let options = [("options", "-c impersonate.target=bob")];
    let mut client = RawClient::connect_with(&standby, "imp", &database, &options).unwrap();
    assert_eq!(current(&mut client), "bob");
    run(&mut client, false, "RESET impersonate.target");
    assert_eq!(current(&mut client), "imp");
    expected.extend(["SETUSER imp connection".to_owned(), "RESETUSER imp asked".to_owned()]);
    admin
        .batch_execute("ALTER ROLE imp SET impersonate.target = 'bob'")
        .unwrap();
    wait_until("the setting is there", || {
        let mut client = RawClient::connect(&standby, "imp", &database);
        let there = current(&mut client) == "bob";
        if there {
            run(&mut client, false, "SELECT setuser()");
            assert_eq!(current(&mut client), "imp");
        }
        there
    });
    expected.extend(["SETUSER imp connection".to_owned(), "RESETUSER imp asked".to_owned()]);

    let mut found = Vec::new();
    wait_until("the primary has all of it", || {
        let rows = admin
            .query(
                "SELECT concat_ws(' ', event, session_user_name, coalesce(detail->>'cause', detail->>'door'))
                   FROM impersonate.audit
                  WHERE node = 'standby' AND event IN ('SETUSER', 'RESETUSER', 'DENIED') ORDER BY event_id",
                &[],
            )
            .unwrap();
        found = rows.iter().map(|row| row.get::<_, String>(0)).collect();
        found.len() >= expected.len()
    });
    assert_eq!(found, expected);
}
