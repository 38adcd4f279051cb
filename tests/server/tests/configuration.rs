//! What stands in configuration files, and comes to processes and at moments that have no client to refuse it to.

use impersonate_server_tests::{fails_with, wait_until, Cluster};
use postgres::Client;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

fn value(client: &mut Client, query: &str) -> String {
    client.query_one(query, &[]).unwrap().get(0)
}

/// With the extension, and alice who may act as bob.
fn cast(cluster: &Cluster) {
    cluster
        .connect("postgres", "postgres")
        .batch_execute(
            "CREATE EXTENSION impersonate; CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN;
             GRANT \"SET USER\" (bob) TO alice",
        )
        .unwrap();
}

/// A list that can't be read says nothing of whom it was to leave alone. The server starts, and tells its log.
#[test]
fn a_list_of_exempt_roles_that_is_none_as_the_server_starts_exempts_everybody() {
    let mut cluster = Cluster::start_new();
    cast(&cluster);
    cluster.set("impersonate.exempt_roles", "nobody, \"bob");
    let before = cluster.log().len();
    cluster.restart();
    let log = cluster.log()[before..].to_owned();
    let warning = "WARNING:  invalid list of roles for setting \"impersonate.exempt_roles\"";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    for who in ["alice", "postgres"] {
        let mut client = cluster.connect(who, "postgres");
        let error = fails_with("42501", client.simple_query("SELECT setuser('bob')"));
        let detail = error.detail.unwrap_or_default();
        assert!(detail.contains("impersonate.exempt_roles"), "{detail}");
        // Oneself is always allowed (S5).
        client.simple_query(&format!("SELECT setuser('{who}')")).unwrap();
    }
    // Mended, it counts again.
    cluster.set("impersonate.exempt_roles", "nobody");
    cluster.reload();
    wait_until("the list is in force", || {
        value(
            &mut cluster.connect("postgres", "postgres"),
            "SHOW impersonate.exempt_roles",
        ) == "nobody"
    });
    cluster
        .connect("alice", "postgres")
        .simple_query("SELECT setuser('bob')")
        .unwrap();
}

/// A pattern that is none is refused when the file is read, which ends nobody's transaction.
#[test]
fn a_pattern_that_is_none_in_a_file_that_is_read_again_fails_no_transaction() {
    let cluster = Cluster::start_new();
    cast(&cluster);
    let mut plain = cluster.connect("postgres", "postgres");
    plain.batch_execute("BEGIN").unwrap();
    let mut alice = cluster.connect("alice", "postgres");
    alice.batch_execute("SELECT setuser('bob')").unwrap();
    alice.batch_execute("BEGIN").unwrap();
    cluster.set("impersonate.require_reason", "(");
    // Read in the same turn, so that it is known when it was.
    cluster.set("work_mem", "4567kB");
    cluster.reload();
    for client in [&mut plain, &mut alice] {
        wait_until("the file was read", || {
            value(client, "SELECT current_setting('work_mem')") == "4567kB"
        });
        assert_eq!(
            value(client, "SELECT current_setting('impersonate.require_reason')"),
            ""
        );
        client.batch_execute("COMMIT").unwrap();
    }
    assert!(cluster
        .log()
        .contains("setting \"impersonate.require_reason\": parentheses () not balanced"));
    // Whoever looks what is wrong with the file is told.
    let error = "SELECT error FROM pg_file_settings WHERE name = 'impersonate.require_reason'";
    value(&mut plain, error);
    // Elsewhere it is refused as it is set.
    for sql in [
        "SET impersonate.require_reason = '('",
        "ALTER ROLE bob SET impersonate.require_reason = '[z-a]'",
        "ALTER SYSTEM SET impersonate.require_reason = 'a{2,1}'",
    ] {
        fails_with("2201B", plain.batch_execute(sql));
    }
    plain
        .batch_execute("SET impersonate.require_reason = '^[A-Zäöü]+-\\d+$'")
        .unwrap();
}

/// One that is there when the server starts lets nobody pass.
#[test]
fn a_pattern_that_is_none_as_the_server_starts_lets_nobody_impersonate() {
    let mut cluster = Cluster::start_new();
    cast(&cluster);
    cluster.set("impersonate.require_reason", "(");
    cluster.restart();
    assert!(cluster
        .log()
        .contains("WARNING:  invalid regular expression in setting \"impersonate.require_reason\": parentheses"));
    let mut client = cluster.connect("alice", "postgres");
    fails_with("2201B", client.simple_query("SELECT setuser('bob', reason => '(')"));
}

// -------------------------------------------------------------------------------------------------- single-user mode ---

/// L6: nobody could store an event there. A server is rescued all the same, what is done about rights is in its log, and
/// what may not be without a row is refused.
#[test]
fn l6_in_single_user_mode_events_are_logged_and_nothing_waits_for_them() {
    let mut cluster = Cluster::start_new();
    cast(&cluster);
    cluster.set("impersonate.audit_statements", "all");
    cluster.stop();
    let said = cluster.single_user(
        "postgres",
        &[
            "CREATE TABLE rescued AS SELECT 4711 AS a",
            "VACUUM rescued",
            "SELECT a FROM rescued",
            "GRANT \"SET USER\" (bob) TO bob",
            "SELECT setuser('bob')",
            "SET impersonate.target = 'bob'",
            "SELECT 'I am ' || current_user || current_setting('impersonate.target') AS who",
            "SELECT impersonate.audit_purge(now())",
            "DROP ROLE IF EXISTS nobody_at_all",
            "SELECT impersonate.audit_sync()",
        ],
    );
    let (out, log) = (&said.stdout, &said.stderr);
    assert!(said.ok, "{log}");
    assert!(out.contains("a = \"4711\""), "{out}{log}");
    assert!(out.contains("who = \"I am postgres\""), "{out}{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR:")).collect();
    assert_eq!(errors.len(), 3, "{log}");
    assert!(errors[0].contains("setuser() must be a statement of its own"), "{log}");
    assert!(
        errors[1..].iter().all(|error| error.contains("in single-user mode")),
        "{log}"
    );
    let logged = |event: &str, text: &str| {
        let of = format!("in single-user mode there is no audit writer: {{\"event\": \"{event}\"");
        let mut lines = log.lines();
        assert!(
            lines.any(|line| line.contains(&of) && line.contains(text)),
            "{event} {text}: {log}"
        );
    };
    logged("STATEMENT", "VACUUM rescued");
    logged("GRANT", "TO bob");

    // It goes on as if nothing had been, and the chain is whole.
    cluster.start();
    let mut admin = cluster.connect("postgres", "postgres");
    let bobs = "SELECT count(*)::text FROM impersonate.grants WHERE grantee = 'bob'";
    assert_eq!(value(&mut admin, bobs), "1");
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let whole: bool = admin
        .query_one("SELECT ok FROM impersonate.audit_verify()", &[])
        .unwrap()
        .get(0);
    assert!(whole);
}

// --------------------------------------------------------------------------------------- what else a session may have set ---

/// What a backslash is in a constant is the session's affair, and the product's own SQL has none that matter.
#[test]
fn old_string_constants_make_no_warning() {
    let cluster = Cluster::builder().setting("standard_conforming_strings", "off").start();
    cast(&cluster);
    let mut client = cluster.connect("postgres", "postgres");
    client
        .batch_execute("SELECT setuser('bob'); SELECT 1; SELECT setuser(); SELECT impersonate.audit_sync()")
        .unwrap();
    for sql in [
        "SELECT length(impersonate.report(now() - interval '1 hour', now()))",
        "SELECT count(*) FROM impersonate.audit_verify()",
        "SELECT impersonate.audit_purge(now())",
        "SELECT count(*) FROM impersonate.explain_setuser('bob', 'alice')",
        "SELECT count(*) FROM impersonate.audit_status",
    ] {
        client.batch_execute(sql).unwrap();
    }
    assert!(!cluster.log().contains("nonstandard use"), "{}", cluster.log());
}

// ------------------------------------------------------------------------------------- databases without the extension ---

/// L3: with `all`, what fails there is no more told than what works: nothing could store it.
#[test]
fn l3_where_the_extension_is_not_created_statements_that_fail_start_no_writer() {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_statements", "all")
        .start();
    let mut client = cluster.connect("postgres", "postgres");
    client.batch_execute("SELECT 1").unwrap();
    for (sqlstate, sql) in [
        ("42601", "SELEC"),
        ("22012", "SELECT 1 / 0"),
        ("22012", "DO 'BEGIN PERFORM 1 / 0; END'"),
        ("42P01", "TABLE nowhere"),
    ] {
        fails_with(sqlstate, client.batch_execute(sql));
    }
    let queues = "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer'";
    assert_eq!(value(&mut client, queues), "0");
    assert!(!cluster.log().contains("audit event not stored"), "{}", cluster.log());
    // From the statement on that creates it, they are.
    client.batch_execute("CREATE EXTENSION impersonate").unwrap();
    client.batch_execute("SELECT 2").unwrap();
    fails_with("42601", client.batch_execute("SELEC"));
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let failed = "SELECT count(*)::text FROM impersonate.audit WHERE sqlstate = '42601' AND statement = 'SELEC'";
    assert_eq!(value(&mut client, failed), "1");
}

/// L3: nor is what is done in the transaction that creates it, which would wait for itself.
#[test]
fn l3_a_script_that_creates_the_extension_in_one_transaction_commits_with_all() {
    for wait in ["off", "commit", "flush"] {
        let cluster = Cluster::builder()
            .setting("impersonate.audit_statements", "all")
            .setting("impersonate.audit_wait", wait)
            .start();
        cast(&cluster);
        let mut client = cluster.connect("postgres", "postgres");
        client
            .batch_execute("CREATE TABLE t (a int); SELECT impersonate.audit_sync()")
            .unwrap();
        let told = "SELECT string_agg(event || ' ' || command_tag, ', ' ORDER BY event_id)
                      FROM impersonate.audit
                     WHERE command_tag <> 'SELECT' AND detail->>'phase' IS DISTINCT FROM 'begun'";
        assert_eq!(
            value(&mut client, told),
            "GRANT GRANT, STATEMENT CREATE TABLE",
            "{wait}"
        );
        assert!(!cluster.log().contains("audit event not stored"), "{}", cluster.log());
    }
}

// --------------------------------------------------------------------------------------------- roles that are renamed ---

/// D1, L1: whoever has the old name by now is not who is impersonated.
#[test]
fn d1_a_role_that_is_renamed_meanwhile_is_told_by_its_new_name() {
    let cluster = Cluster::start_new();
    cast(&cluster);
    let mut admin = cluster.connect("postgres", "postgres");
    let mut alice = cluster.connect("alice", "postgres");
    alice.batch_execute("SELECT setuser('bob')").unwrap();
    admin
        .batch_execute(
            "ALTER ROLE bob RENAME TO robert; ALTER ROLE alice RENAME TO alicia;
             CREATE ROLE bob LOGIN; CREATE ROLE alice LOGIN",
        )
        .unwrap();
    let who = "SELECT concat_ws(' ', current_user, session_user, current_setting('impersonate.target'),
                                current_setting('role'))";
    assert_eq!(value(&mut alice, who), "robert alicia robert robert");
    // A ROLLBACK brings it back, as it is called now.
    alice.batch_execute("BEGIN; SELECT setuser()").unwrap();
    assert_eq!(value(&mut alice, who), "alicia alicia  none");
    alice.batch_execute("ROLLBACK").unwrap();
    assert_eq!(value(&mut alice, who), "robert alicia robert robert");
    // And back again.
    admin
        .batch_execute("DROP ROLE bob; ALTER ROLE robert RENAME TO bob")
        .unwrap();
    assert_eq!(value(&mut alice, who), "bob alicia bob bob");
    alice.batch_execute("SELECT setuser()").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let told =
        "SELECT string_agg(concat_ws(' ', event, user_name, session_user_name, role_name), ', ' ORDER BY event_id)
                  FROM impersonate.audit WHERE event_id > (SELECT min(event_id) FROM impersonate.audit
                                                            WHERE event = 'SETUSER')";
    assert_eq!(
        value(&mut admin, told),
        "STATEMENT robert alicia robert, STATEMENT robert alicia robert, RESETUSER robert alicia robert, \
         SETUSER robert alicia robert, STATEMENT robert alicia robert, STATEMENT bob alicia bob, RESETUSER bob alicia bob"
    );
}

/// E2: rights and audit are found by it.
#[test]
fn e2_the_schema_of_the_extension_is_not_renamed_from_under_an_impersonation() {
    let cluster = Cluster::start_new();
    cast(&cluster);
    let mut admin = cluster.connect("postgres", "postgres");
    admin.batch_execute("CREATE SCHEMA other").unwrap();
    let mut alice = cluster.connect("alice", "postgres");
    alice.batch_execute("SELECT setuser('bob')").unwrap();
    let error = fails_with(
        "55006",
        admin.batch_execute("ALTER SCHEMA impersonate RENAME TO elsewhere"),
    );
    assert!(error.detail.unwrap_or_default().contains("Criterion A1"));
    admin.batch_execute("ALTER SCHEMA other RENAME TO another").unwrap();
    assert_eq!(value(&mut alice, "SELECT current_user::text"), "bob");
    // Without one it is the superuser's own affair: nobody impersonates as long as it is so.
    alice.batch_execute("SELECT setuser()").unwrap();
    admin
        .batch_execute("ALTER SCHEMA impersonate RENAME TO elsewhere")
        .unwrap();
    fails_with("42501", alice.batch_execute("SELECT setuser('bob')"));
    admin
        .batch_execute("ALTER SCHEMA elsewhere RENAME TO impersonate")
        .unwrap();
    alice.batch_execute("SELECT setuser('bob')").unwrap();
}

// ----------------------------------------------------------------------------------------- databases of other encodings ---

/// L1, E1: what comes from a database of another encoding, or from a file, makes no row and no view that a client can't
/// read, or a dump that can't be restored.
#[test]
fn l1_text_of_another_encoding_is_readable() {
    let cluster = Cluster::start_new();
    cast(&cluster);
    let mut admin = cluster.connect("postgres", "postgres");
    admin
        .batch_execute("CREATE DATABASE latin ENCODING latin1 LOCALE 'C' TEMPLATE template0")
        .unwrap();
    let mut latin = cluster.connect("postgres", "latin");
    latin
        .batch_execute(
            "CREATE EXTENSION impersonate; GRANT \"SET USER\" (bob) TO alice;
             ALTER ROLE alice SET impersonate.reason = 'Prüfung'",
        )
        .unwrap();
    // By a setting of the role, there and here.
    let mut there = cluster.connect("alice", "latin");
    there.batch_execute("SELECT setuser('bob')").unwrap();
    let mut here = cluster.connect("alice", "postgres");
    here.batch_execute("SELECT setuser('bob')").unwrap();
    let active = "SELECT string_agg(database || ': ' || reason, ', ' ORDER BY database) FROM impersonate.active";
    assert_eq!(value(&mut admin, active), "latin: Pr\\xFCfung, postgres: Pr\\xFCfung");
    // By a statement of a session there about an impersonation here.
    there.batch_execute("SELECT setuser()").unwrap();
    fails_with("55006", latin.batch_execute("ALTER ROLE bob NOLOGIN; -- für immer"));
    here.batch_execute("SELECT setuser()").unwrap();
    // And by a file.
    admin
        .batch_execute("ALTER ROLE alice RESET impersonate.reason")
        .unwrap();
    cluster.set("impersonate.reason", "\\374ber");
    cluster.reload();
    wait_until("the file was read", || {
        here = cluster.connect("alice", "postgres");
        let length = "SELECT length(current_setting('impersonate.reason'))::text";
        value(&mut here, length) != "0"
    });
    here.batch_execute("SELECT setuser('bob'); SELECT setuser()").unwrap();
    let text = "SELECT string_agg(concat_ws(' ', event, statement, reason), ', ' ORDER BY event_id)
                  FROM impersonate.audit WHERE event IN ('SETUSER', 'VIOLATION')";
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    assert_eq!(
        value(&mut admin, text),
        "SETUSER SELECT setuser('bob') Pr\\xFCfung, VIOLATION ALTER ROLE bob NOLOGIN; -- f\\xFCr immer, \
         SETUSER SELECT setuser('bob') \\xFCber"
    );
    latin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    assert_eq!(value(&mut latin, text), "SETUSER SELECT setuser('bob') Prüfung");
    // By the name of a database.
    latin
        .batch_execute("CREATE DATABASE \"dü\" ENCODING utf8 LOCALE 'C' TEMPLATE template0")
        .unwrap();
    let mut psql = cluster.command("psql", "postgres", "postgres");
    psql.env("PGDATABASE", OsStr::from_bytes(b"d\xFC"))
        .args(["-X", "-A", "-t", "-q"]);
    for sql in [
        "CREATE EXTENSION impersonate",
        "GRANT \"SET USER\" (bob) TO alice",
        "SELECT impersonate.audit_sync()",
        "SELECT database FROM impersonate.audit",
    ] {
        psql.args(["-c", sql]);
    }
    let said = psql.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "d\\xFC", "{said:?}");
    for client in [&mut admin, &mut latin] {
        let whole: bool = client
            .query_one("SELECT ok FROM impersonate.audit_verify()", &[])
            .unwrap()
            .get(0);
        assert!(whole);
    }
}
