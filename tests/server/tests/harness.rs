//! The harness itself: that it starts, stops and kills what it says, and speaks the protocol. No rule of impersonate's
//! is tested here, and none of its SQL is needed; the library is only preloaded.

use impersonate_server_tests::raw::{error_in, rows_in, tags_in, Message, RawClient, Transaction};
use impersonate_server_tests::{fails, fails_with, shared, unique, wait_until, Cluster};

fn count(cluster: &Cluster) -> i64 {
    cluster
        .connect("postgres", "postgres")
        .query_one("SELECT count(*) FROM kept", &[])
        .unwrap()
        .get(0)
}

fn cluster_with_a_row() -> Cluster {
    let cluster = Cluster::builder().durable().start();
    let mut client = cluster.connect("postgres", "postgres");
    client.batch_execute("CREATE TABLE kept AS SELECT 1").unwrap();
    cluster
}

#[test]
fn a_cluster_preloads_the_library() {
    let row = shared()
        .connect("postgres", "postgres")
        .query_one("SHOW shared_preload_libraries", &[])
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "impersonate");
}

#[test]
fn clusters_live_side_by_side_with_settings_of_their_own() {
    let one = Cluster::builder().setting("work_mem", "1MB").start();
    let two = Cluster::builder().setting("work_mem", "2MB").start();
    for (cluster, expected) in [(&one, "1MB"), (&two, "2MB")] {
        let row = cluster
            .connect("postgres", "postgres")
            .query_one("SHOW work_mem", &[])
            .unwrap();
        assert_eq!(row.get::<_, String>(0), expected);
    }
}

#[test]
fn a_dropped_cluster_leaves_nothing() {
    let cluster = Cluster::start_new();
    let folder = cluster.data();
    let pid = cluster
        .connect("postgres", "postgres")
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap();
    drop(cluster);
    assert!(!folder.exists());
    wait_until("the backend is gone", || {
        !std::path::Path::new(&format!("/proc/{}", pid.get::<_, i32>(0))).exists()
    });
}

#[test]
fn data_survive_a_restart() {
    let mut cluster = cluster_with_a_row();
    cluster.restart();
    assert_eq!(count(&cluster), 1);
}

#[test]
fn data_survive_an_immediate_stop() {
    let mut cluster = cluster_with_a_row();
    cluster.stop_immediately();
    cluster.start();
    assert_eq!(count(&cluster), 1);
}

#[test]
fn data_survive_the_kill_of_all_processes() {
    let mut cluster = cluster_with_a_row();
    let _open = cluster.connect("postgres", "postgres");
    cluster.kill();
    cluster.start();
    assert_eq!(count(&cluster), 1);
}

#[test]
fn data_survive_the_kill_of_the_postmaster() {
    let mut cluster = cluster_with_a_row();
    let _open = cluster.connect("postgres", "postgres");
    cluster.kill_postmaster();
    cluster.start();
    assert_eq!(count(&cluster), 1);
}

#[test]
fn the_kill_of_a_backend_ends_every_connection() {
    let cluster = cluster_with_a_row();
    let mut victim = cluster.connect("postgres", "postgres");
    let mut other = cluster.connect("postgres", "postgres");
    let pid = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    cluster.kill_backend(pid);
    wait_until("the other connection is gone", || {
        other.simple_query("SELECT 1").is_err()
    });
    cluster.wait_until_up();
    assert_eq!(count(&cluster), 1);
}

#[test]
fn a_server_that_refuses_to_start_says_why() {
    let mut cluster = Cluster::builder()
        .setting("shared_preload_libraries", "no_such_library")
        .create();
    assert!(!cluster.try_start());
    assert!(cluster.log().contains("no_such_library"), "{}", cluster.log());
}

#[test]
fn reload_takes_new_settings() {
    let cluster = Cluster::start_new();
    cluster.set("work_mem", "3MB");
    cluster.reload();
    wait_until("the setting is there", || {
        let row = cluster
            .connect("postgres", "postgres")
            .query_one("SHOW work_mem", &[])
            .unwrap();
        row.get::<_, String>(0) == "3MB"
    });
}

#[test]
fn an_error_comes_with_all_its_parts() {
    let mut client = shared().connect("postgres", "postgres");
    let error = fails(
        client
            .batch_execute("DO $$ BEGIN RAISE 'no' USING ERRCODE = '42501', DETAIL = 'because', HINT = 'ask' ; END $$"),
    );
    assert_eq!(error.severity, "ERROR");
    assert_eq!(error.code, "42501");
    assert_eq!(error.message, "no");
    assert_eq!(error.detail.as_deref(), Some("because"));
    assert_eq!(error.hint.as_deref(), Some("ask"));
    fails_with("22012", client.batch_execute("SELECT 1/0"));
}

#[test]
fn psql_runs_a_script_to_its_end() {
    let database = shared().empty_database("psql");
    let output = database.psql("postgres", "SELECT 1;\nSELECT 1/0;\n\\echo :SQLSTATE\nSELECT 2;");
    assert!(output.ok);
    assert_eq!(output.stdout, "1\n22012\n2\n");
    assert!(output.stderr.contains("division by zero"));
}

#[test]
fn client_programs_reach_the_cluster() {
    let database = shared().empty_database("dumped");
    database
        .connect("postgres")
        .batch_execute("CREATE TABLE kept ()")
        .unwrap();
    let output = shared()
        .command("pg_dump", "postgres", &database.name)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("CREATE TABLE public.kept"));
}

#[test]
fn names_are_given_once() {
    assert_ne!(unique("bob"), unique("bob"));
}

// ------------------------------------------------------------------------------------------------------- the protocol ---

fn raw() -> RawClient {
    RawClient::connect(shared(), "postgres", "postgres")
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn a_simple_query_answers_each_of_its_statements() {
    let mut client = raw();
    let answer = client.simple("SELECT 1 AS one, NULL; SELECT 'two'");
    assert_eq!(rows_in(&answer), [vec![text("1"), None], vec![text("two")]]);
    assert_eq!(tags_in(&answer), ["SELECT 1", "SELECT 1"]);
    assert_eq!(
        answer[0],
        Message::RowDescription(vec!["one".to_owned(), "?column?".to_owned()])
    );
    assert_eq!(answer.last(), Some(&Message::ReadyForQuery(Transaction::None)));
    client.terminate();
}

#[test]
fn an_error_leaves_the_transaction_failed() {
    let mut client = raw();
    client.simple("BEGIN");
    let answer = client.simple("SELECT 1/0");
    assert_eq!(error_in(&answer).unwrap().code, "22012");
    assert_eq!(answer.last(), Some(&Message::ReadyForQuery(Transaction::Failed)));
}

#[test]
fn an_extended_query_takes_parameters() {
    let answer = raw().extended("SELECT $1::int + 1, $2::text", &[Some("41"), None]);
    assert_eq!(rows_in(&answer), [vec![text("42"), None]]);
}

#[test]
fn a_portal_can_be_left_and_taken_up_again() {
    let mut client = raw();
    client.simple("BEGIN");
    client.parse("", "SELECT generate_series(1, 3)", &[]);
    client.bind("half", "", &[]);
    client.execute("half", 2);
    client.sync();
    let answer = client.read_until_ready();
    assert_eq!(rows_in(&answer), [vec![text("1")], vec![text("2")]]);
    assert!(answer.contains(&Message::PortalSuspended));
    assert_eq!(client.simple("SELECT 'between'").len(), 4);
    client.execute("half", 0);
    client.sync();
    assert_eq!(rows_in(&client.read_until_ready()), [vec![text("3")]]);
}

#[test]
fn an_error_in_a_pipeline_skips_to_the_next_sync() {
    let mut client = raw();
    for sql in ["SELECT 1", "SELECT 1/0", "SELECT 3"] {
        client.parse("", sql, &[]);
        client.bind("", "", &[]);
        client.execute("", 0);
    }
    client.sync();
    client.parse("", "SELECT 4", &[]);
    client.bind("", "", &[]);
    client.execute("", 0);
    client.sync();
    let answer = client.read_until_ready();
    assert_eq!(rows_in(&answer), [vec![text("1")]]);
    assert_eq!(error_in(&answer).unwrap().code, "22012");
    assert_eq!(rows_in(&client.read_until_ready()), [vec![text("4")]]);
}

#[test]
fn a_function_can_be_called_by_its_oid() {
    let mut client = raw();
    let oid = rows_in(&client.simple("SELECT 'pg_catalog.reverse(text)'::regprocedure::oid"));
    let oid = oid[0][0].as_ref().unwrap().parse().unwrap();
    let answer = client.call(oid, &[Some("shout")]);
    assert!(
        answer.contains(&Message::FunctionCallResponse(text("tuohs"))),
        "{answer:?}"
    );
}

#[test]
fn reported_settings_are_followed() {
    let mut client = raw();
    assert_eq!(client.parameter("is_superuser"), Some("on"));
    client.simple("SET application_name = 'me'");
    assert_eq!(client.parameter("application_name"), Some("me"));
}

#[test]
fn options_come_with_the_connection() {
    let mut client =
        RawClient::connect_with(shared(), "postgres", "postgres", &[("options", "-c work_mem=5MB")]).unwrap();
    assert_eq!(rows_in(&client.simple("SHOW work_mem")), [vec![text("5MB")]]);
}

#[test]
fn a_refused_login_gives_the_error() {
    let refused = RawClient::connect_with(shared(), "no such role", "postgres", &[])
        .err()
        .unwrap();
    assert_eq!((refused.severity.as_str(), refused.code.as_str()), ("FATAL", "28000"));
}

#[test]
fn a_statement_can_be_cancelled() {
    let mut client = raw();
    client.query("SELECT pg_sleep(60)");
    client.flush();
    wait_until("it sleeps", || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'";
        let mut other = shared().connect("postgres", "postgres");
        other.query_opt(sql, &[&client.pid()]).unwrap().is_some()
    });
    client.cancel();
    assert_eq!(error_in(&client.read_until_ready()).unwrap().code, "57014");
}

fn backend_is_gone(pid: i32) {
    wait_until("the backend is gone", || {
        let mut other = shared().connect("postgres", "postgres");
        other
            .query_opt("SELECT 1 FROM pg_stat_activity WHERE pid = $1", &[&pid])
            .unwrap()
            .is_none()
    });
}

#[test]
fn a_client_can_hang_up_without_a_word() {
    let client = raw();
    let pid = client.pid();
    client.hang_up();
    backend_is_gone(pid);
}

#[test]
fn a_client_that_sends_no_more_still_hears() {
    let mut client = raw();
    let pid = client.pid();
    client.query("SELECT 'heard'");
    client.flush();
    client.stop_sending();
    assert_eq!(rows_in(&client.read_to_end()), [vec![text("heard")]]);
    backend_is_gone(pid);
}

#[test]
fn tcp_is_there_when_asked_for() {
    let cluster = Cluster::builder().tcp().start();
    let mut client = RawClient::connect_tcp(&cluster, "postgres", "postgres", &[]).unwrap();
    assert_eq!(
        rows_in(&client.simple("SELECT host(inet_client_addr())")),
        [vec![text("127.0.0.1")]]
    );
}
