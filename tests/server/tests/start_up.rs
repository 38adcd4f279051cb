//! A connection that starts with a target: from its own options, or from ALTER ROLE (D1, D5).

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, RawClient};
use impersonate_server_tests::{fails_with, unique, wait_until};
use stage::{Protocol, Stage, PROTOCOLS};

/// A connection of `<imp>` that starts with these options.
fn connect(stage: &Stage, options: &str) -> RawClient {
    let options = stage.sql(options);
    RawClient::connect_with(
        stage.cluster(),
        &stage.name("imp"),
        stage.database(),
        &[("options", &options)],
    )
    .expect("a connection opens in any case")
}

fn value(client: &mut RawClient, protocol: Protocol, sql: &str) -> String {
    let answer = send(client, protocol, sql);
    assert!(error_in(&answer).is_none(), "{sql}: {answer:?}");
    rows_in(&answer)[0][0].clone().unwrap_or_default()
}

fn send(client: &mut RawClient, protocol: Protocol, sql: &str) -> Vec<impersonate_server_tests::raw::Message> {
    match protocol {
        Protocol::Simple => client.simple(sql),
        _ => client.extended(sql, &[]),
    }
}

#[test]
fn d1_the_role_is_in_force_before_the_first_statement_is_parsed() {
    let stage = Stage::new();
    let (bob, table) = (stage.name("bob"), unique("seen"));
    stage.admin(&format!(
        "CREATE SCHEMA {bob} AUTHORIZATION {bob};
         CREATE TABLE {bob}.{table} AS SELECT 'hers' AS whose; ALTER TABLE {bob}.{table} OWNER TO {bob};
         CREATE TABLE public.{table} AS SELECT 'everybodys' AS whose; GRANT SELECT ON public.{table} TO PUBLIC;
         CREATE TABLE <s>.rows AS SELECT r::text AS reader FROM unnest(ARRAY['{bob}', 'another']) r;
         ALTER TABLE <s>.rows ENABLE ROW LEVEL SECURITY; GRANT SELECT ON <s>.rows TO PUBLIC;
         CREATE POLICY own ON <s>.rows USING (reader = current_user)"
    ));
    for protocol in PROTOCOLS {
        let mut client = connect(&stage, "-c impersonate.target=<bob>");
        let first = format!("SELECT whose || ' ' || current_user || ' ' || session_user FROM {table}");
        let imp = stage.name("imp");
        assert_eq!(value(&mut client, protocol, &first), format!("hers {bob} {imp}"));
        let mut client = connect(&stage, "-c impersonate.target=<bob>");
        let counts = stage.sql("SELECT string_agg(reader, ',') FROM <s>.rows");
        assert_eq!(value(&mut client, protocol, &counts), bob);
        assert_eq!(value(&mut client, protocol, "SHOW impersonate.target"), bob);
        let pid = client.pid();
        stage.admin("SELECT impersonate.audit_sync()");
        let found = stage.look(&format!(
            "SELECT event, detail->>'door' FROM impersonate.audit WHERE pid = {pid} ORDER BY event_id LIMIT 1"
        ));
        assert_eq!(found[0], [Some("SETUSER".to_owned()), Some("connection".to_owned())]);
    }
}

#[test]
fn d1_what_is_not_lawful_fails_at_each_statement_until_it_is_reset() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> CREATEDB");
    for (target, sqlstate) in [
        ("<carol>", "42501"),
        ("nobody_of_that_name", "42704"),
        ("<grp>", "42501"),
    ] {
        for protocol in PROTOCOLS {
            let mut client = connect(&stage, &format!("-c impersonate.target={target}"));
            for sql in [
                "SELECT 1",
                "SELECT setuser()",
                "DISCARD ALL",
                "TABLE pg_class",
                "SET work_mem = '1MB'",
            ] {
                let answer = send(&mut client, protocol, sql);
                assert_eq!(
                    error_in(&answer).map(|error| error.code).as_deref(),
                    Some(sqlstate),
                    "{sql}"
                );
            }
            // version() by the fast path.
            let answer = client.call(89, &[]);
            assert_eq!(error_in(&answer).map(|error| error.code).as_deref(), Some(sqlstate));
            assert_eq!(
                value(&mut client, protocol, "SHOW impersonate.target"),
                stage.sql(target)
            );
            for sql in ["BEGIN", "ROLLBACK", "BEGIN", "RESET impersonate.target"] {
                assert!(error_in(&send(&mut client, protocol, sql)).is_none(), "{sql}");
            }
            assert_eq!(value(&mut client, protocol, "SELECT current_user"), stage.name("imp"));
            // What was reset comes back with a ROLLBACK, and is as unlawful as it was.
            assert!(error_in(&send(&mut client, protocol, "ROLLBACK")).is_none());
            assert!(error_in(&send(&mut client, protocol, "SELECT 1")).is_some());
            let bob = stage.sql("SET impersonate.target = '<bob>'");
            assert!(error_in(&send(&mut client, protocol, &bob)).is_none());
            assert_eq!(value(&mut client, protocol, "SELECT current_user"), stage.name("bob"));
        }
    }
}

#[test]
fn d5_alter_role_counts_and_alter_database_does_not() {
    let stage = Stage::alone();
    stage.admin("ALTER ROLE <imp> SET impersonate.target = '<bob>'");
    let mut client = connect(&stage, "");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("bob")
    );
    client.simple("RESET impersonate.target");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("imp")
    );
    // The client's own word comes first.
    let mut client = connect(&stage, "-c impersonate.target=<carol>");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("carol")
    );
    stage.admin("ALTER ROLE <imp> RESET impersonate.target");
    stage.admin(&format!(
        "ALTER DATABASE {} SET impersonate.target = '<bob>'",
        stage.database()
    ));
    let mut client = connect(&stage, "");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("imp")
    );
}

#[test]
fn d5_settings_of_the_role_are_there_when_it_is_judged() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <imp> SET impersonate.require_reason = '^INC-'");
    let mut client = connect(&stage, "-c impersonate.target=<bob>");
    let error = error_in(&client.simple("SELECT 1")).expect("no reason was given");
    assert_eq!(error.code, "42501");
    let mut client = connect(&stage, "-c impersonate.target=<bob> -c impersonate.reason=INC-7");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("bob")
    );
    stage.admin("ALTER ROLE <imp> RESET ALL; ALTER ROLE <imp> SET impersonate.local_only = on");
    let mut client = connect(&stage, "-c impersonate.target=<bob>");
    assert_eq!(
        error_in(&client.simple("SELECT 1")).map(|error| error.code).as_deref(),
        Some("55000")
    );
}

#[test]
fn d1_code_gets_nobody_back_to_what_the_connection_started_with() {
    let stage = Stage::new();
    let mut client = connect(&stage, "-c impersonate.target=<bob>");
    client.simple("SET impersonate.target = ''");
    let answer = client.simple("DO $$ BEGIN RESET impersonate.target; END $$");
    assert_eq!(error_in(&answer).map(|error| error.code).as_deref(), Some("0A000"));
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("imp")
    );
    // X3: a pooler's reset query leaves none of it.
    let mut client = connect(&stage, "-c impersonate.target=<bob>");
    client.simple("DISCARD ALL");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("imp")
    );
}

#[test]
fn d1_where_the_extension_is_not_created_it_can_be_reset() {
    let stage = Stage::new();
    let without = stage.cluster().empty_database("without");
    let options = stage.sql("-c impersonate.target=<bob>");
    let mut client = RawClient::connect_with(
        stage.cluster(),
        &stage.name("imp"),
        &without.name,
        &[("options", &options)],
    )
    .unwrap();
    assert!(error_in(&client.simple("SELECT 1")).is_some());
    assert!(error_in(&client.simple("RESET impersonate.target")).is_none());
    assert!(error_in(&client.simple("SELECT 1")).is_none());
}

/// From a configuration file it is ignored with a warning, at the start and when the file is read again, by the postmaster
/// and by whoever is connected.
#[test]
fn d5_in_a_configuration_file_it_is_ignored() {
    let mut cluster = impersonate_server_tests::Cluster::start_new();
    let before = cluster.log().len();
    cluster.set("impersonate.target", "postgres");
    let mut connected = cluster.connect("postgres", "postgres");
    cluster.reload();
    let warnings = |log: String| {
        log.matches("ignoring setting \"impersonate.target\" of the server's configuration")
            .count()
    };
    wait_until("the postmaster has warned", || {
        warnings(cluster.log()[before..].to_owned()) >= 1
    });
    let mut later = cluster.connect("postgres", "postgres");
    let shown = "SELECT current_setting('impersonate.target') || current_setting('role')";
    for client in [&mut connected, &mut later] {
        let shown: String = client.query_one(shown, &[]).unwrap().get(0);
        assert_eq!(shown, "none");
    }
    let before = cluster.log().len();
    cluster.restart();
    assert_eq!(warnings(cluster.log()[before..].to_owned()), 1, "{}", cluster.log());
    let shown: String = cluster
        .connect("postgres", "postgres")
        .query_one(shown, &[])
        .unwrap()
        .get(0);
    assert_eq!(shown, "none");
}

#[test]
fn d5_replication_connections_refuse_it() {
    let stage = Stage::new();
    let refused = RawClient::connect_with(
        stage.cluster(),
        "postgres",
        stage.database(),
        &[
            ("replication", "database"),
            ("options", &stage.sql("-c impersonate.target=<bob>")),
        ],
    );
    assert!(refused.is_err());
}

/// Whose commands are no statements, and so are not on record (L3).
#[test]
fn d5_replication_connections_have_no_door() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <imp> REPLICATION; ALTER ROLE <bob> REPLICATION");
    let options = [("replication", "database")];
    let mut raw = RawClient::connect_with(stage.cluster(), &stage.name("imp"), stage.database(), &options).unwrap();
    for door in [
        "SELECT setuser('<bob>')",
        "SET impersonate.target = '<bob>'",
        "SELECT set_config('impersonate.target', '<bob>', false)",
        "CALL impersonate.impersonate_user('<bob>')",
    ] {
        let refused = error_in(&raw.simple(&stage.sql(door))).expect(door);
        assert_eq!(refused.code, "0A000", "{door}: {refused:?}");
        let user = rows_in(&raw.simple("SELECT current_user"));
        assert_eq!(user, [[Some(stage.name("imp"))]], "{door}");
    }
    assert_eq!(stage.audit(raw.pid(), &["DENIED"]).len(), 4);
    stage.admin("ALTER ROLE <imp> NOREPLICATION; ALTER ROLE <bob> NOREPLICATION");
}

/// The server's own processes, the audit's writer among them, are nobody's clients.
#[test]
fn d5_the_servers_own_workers_take_no_target() {
    let cluster = stage::lasting(impersonate_server_tests::Cluster::start_new());
    let database = cluster.database("workers");
    let stage = Stage::in_cluster(cluster, &database.name);
    stage.admin("ALTER ROLE postgres SET impersonate.target = '<bob>'");
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
    let mut superuser = cluster.connect("postgres", &database.name);
    let user: String = superuser.query_one("SELECT current_user::text", &[]).unwrap().get(0);
    assert_eq!(user, stage.name("bob"));
    fails_with(
        "42501",
        superuser.batch_execute("SELECT impersonate.audit_purge(now())"),
    );
    superuser
        .batch_execute("RESET impersonate.target; ALTER ROLE postgres RESET impersonate.target")
        .unwrap();
}

/// Whoever changes roles or rights has the connection look again, before its next statement is parsed.
#[test]
fn d1_what_becomes_lawful_is_in_force_before_the_next_statement_is_parsed() {
    let stage = Stage::new();
    let (carol, table) = (stage.name("carol"), unique("seen"));
    stage.admin(&format!(
        "CREATE SCHEMA {carol} AUTHORIZATION {carol};
         CREATE TABLE {carol}.{table} AS SELECT 'hers' AS whose; ALTER TABLE {carol}.{table} OWNER TO {carol}"
    ));
    let first = format!("SELECT whose || ' ' || current_user FROM {table}");
    for (number, protocol) in PROTOCOLS.into_iter().enumerate() {
        for (forbid, allow) in [
            ("ALTER ROLE <carol> CREATEDB", "ALTER ROLE <carol> NOCREATEDB"),
            ("GRANT pg_checkpoint TO <carol>", "REVOKE pg_checkpoint FROM <carol>"),
            ("REVOKE \"SET USER\" FROM <imp>", "GRANT \"SET USER\" TO <imp>"),
            (
                "DELETE FROM impersonate.set_user_grant WHERE grantee = '<imp>'::regrole",
                "GRANT \"SET USER\" TO <imp>",
            ),
        ] {
            stage.admin(forbid);
            let mut client = connect(&stage, "-c impersonate.target=<carol>");
            // Not even a name that only carol's search path knows comes before the reason.
            for sql in [&first, "SELEKT 1", "SELECT 1"] {
                let error =
                    error_in(&send(&mut client, protocol, sql)).unwrap_or_else(|| panic!("{sql} after {forbid}"));
                assert_eq!(error.code, "42501", "{number}: {sql}: {error:?}");
                assert!(error.message.contains("may not act as role"), "{error:?}");
            }
            stage.admin(allow);
            assert_eq!(
                value(&mut client, protocol, &first),
                format!("hers {carol}"),
                "{number}: after {allow}"
            );
            // And it is an impersonation as any other.
            client.simple("SET impersonate.target = ''");
            assert_eq!(value(&mut client, protocol, "SELECT current_user"), stage.name("imp"));
        }
    }
}

/// What is not heard of, such as a reload, shows at the second statement; and what happens in a transaction block after it.
#[test]
fn d1_it_is_looked_at_again_after_a_refused_statement() {
    let stage = Stage::alone();
    stage.admin("ALTER SYSTEM SET impersonate.exempt_roles = '<carol>'");
    stage.admin("SELECT pg_reload_conf()");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut client = connect(&stage, "-c impersonate.target=<carol>");
    assert!(error_in(&client.simple("SELECT 1")).is_some());
    stage.admin("ALTER SYSTEM RESET impersonate.exempt_roles");
    stage.admin("SELECT pg_reload_conf()");
    std::thread::sleep(std::time::Duration::from_millis(300));
    client.simple("SELECT 1");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("carol")
    );

    client.simple("SELECT setuser()");
    stage.admin("ALTER ROLE <carol> CREATEDB");
    let mut client = connect(&stage, "-c impersonate.target=<carol>");
    client.simple("BEGIN");
    assert!(error_in(&client.simple("SELECT 1")).is_some());
    stage.admin("ALTER ROLE <carol> NOCREATEDB");
    // The block failed, whatever has become lawful.
    let error = error_in(&client.simple("SELECT 1")).expect("a failed block");
    assert_eq!(error.code, "25P02");
    client.simple("ROLLBACK");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("carol")
    );
}

#[test]
fn s6_each_statement_that_is_refused_leaves_a_row() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> CREATEDB");
    for protocol in PROTOCOLS {
        let mut client = connect(&stage, "-c impersonate.target=<carol>");
        let pid = client.pid();
        for sql in [
            "SELECT 1 AS one",
            "TABLE there_is_no_such_table",
            "CREATE ROLE somebody PASSWORD 'secret'",
            "SELEKT",
        ] {
            send(&mut client, protocol, sql);
        }
        // A message of its own comes after what the idle connection does.
        send(&mut client, protocol, "SHOW impersonate.target");
        stage.admin("SELECT impersonate.audit_sync()");
        let rows = stage.look(&format!(
            "SELECT event, statement, sqlstate, detail->>'target', detail->>'door' FROM impersonate.audit
              WHERE pid = {pid} ORDER BY event_id"
        ));
        let text = |words: &str| Some(words.to_owned());
        let denied = |statement: Option<String>| {
            vec![
                text("DENIED"),
                statement,
                text("42501"),
                Some(stage.name("carol")),
                text("connection"),
            ]
        };
        assert_eq!(
            rows,
            [
                denied(None),
                denied(text("SELECT 1 AS one")),
                denied(text("TABLE there_is_no_such_table")),
                denied(text("CREATE ROLE somebody PASSWORD '<redacted>'")),
                denied(text("SELEKT")),
            ]
        );
    }
}

/// G6: a group's right that the login doesn't inherit counts if the connection starts in the group.
#[test]
fn g6_the_right_of_a_group_without_inherit_counts_for_a_connection_that_starts_in_it() {
    let stage = Stage::new();
    stage.admin(
        "REVOKE \"SET USER\" (<bob>) FROM <imp>; GRANT \"SET USER\" (<bob>) TO <own>; ALTER ROLE <imp> NOINHERIT",
    );
    if stage.look("SELECT current_setting('server_version_num')::int >= 160000")[0][0].as_deref() == Some("t") {
        stage.admin("GRANT <own> TO <imp> WITH INHERIT FALSE");
    }
    for protocol in PROTOCOLS {
        let mut client = connect(&stage, "-c impersonate.target=<bob>");
        let error = error_in(&send(&mut client, protocol, "SELECT 1")).expect("before SET ROLE there is no right");
        assert_eq!(error.code, "42501");
        assert!(error.hint.is_some());
        // The impersonation role, then the target, without a new connection.
        assert!(error_in(&send(&mut client, protocol, "RESET impersonate.target")).is_none());
        let set = stage.sql("SET ROLE <own>");
        assert!(error_in(&send(&mut client, protocol, &set)).is_none());
        let target = stage.sql("SET impersonate.target = '<bob>'");
        assert!(error_in(&send(&mut client, protocol, &target)).is_none());
        assert_eq!(value(&mut client, protocol, "SELECT current_user"), stage.name("bob"));

        for options in [
            "-c role=<own> -c impersonate.target=<bob>",
            "-c impersonate.target=<bob> -c role=<own>",
        ] {
            let mut client = connect(&stage, options);
            assert_eq!(
                value(&mut client, protocol, "SELECT current_user"),
                stage.name("bob"),
                "{options}"
            );
            assert_eq!(value(&mut client, protocol, "SHOW role"), stage.name("bob"));
            // Its end leads back to the group, and what that is a member of is no way out before.
            let out = error_in(&send(&mut client, protocol, &set)).map(|error| error.code);
            assert_eq!(out.as_deref(), Some("42501"));
            assert!(error_in(&send(&mut client, protocol, "SELECT setuser()")).is_none());
            assert_eq!(value(&mut client, protocol, "SELECT current_user"), stage.name("own"));
        }
    }
    // Both from ALTER ROLE.
    stage.admin("ALTER ROLE <imp> SET role = '<own>'; ALTER ROLE <imp> SET impersonate.target = '<bob>'");
    let mut client = connect(&stage, "");
    assert_eq!(
        value(&mut client, Protocol::Simple, "SELECT current_user"),
        stage.name("bob")
    );
}
