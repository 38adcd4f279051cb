//! What is done to whole databases, and to the extension, with rows in the audit and its writer at work.

use impersonate_server_tests::{fails, fails_with, wait_until, Cluster, Database};
use postgres::Client;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const OWNER: &str = "postgres";

fn cluster() -> Cluster {
    // The writer doesn't leave by itself while a test runs.
    let cluster = Cluster::builder()
        .setting("impersonate.audit_writer_idle", "1h")
        .start();
    cluster
        .connect(OWNER, OWNER)
        .batch_execute("CREATE ROLE bob LOGIN SUPERUSER")
        .unwrap();
    cluster
}

/// A database with rows in its audit, and a writer.
fn used<'a>(cluster: &'a Cluster) -> Database<'a> {
    let database = cluster.database("d");
    database.connect(OWNER).batch_execute("CREATE TABLE t (i int)").unwrap();
    use_it(cluster, &database.name);
    database
}

fn use_it(cluster: &Cluster, name: &str) {
    let mut client = cluster.connect(OWNER, name);
    client.batch_execute("SELECT setuser('bob')").unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    drop(client);
    let mut owner = cluster.connect(OWNER, OWNER);
    wait_until("the session has gone", || {
        number(
            &mut owner,
            &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"),
        ) == 0
    });
    let writer = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer' AND datname = ";
    assert_eq!(
        number(&mut owner, &format!("{writer} '{name}'")),
        1,
        "the writer is there"
    );
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

/// Rows in the audit, which are numbered without a gap.
fn rows(client: &mut Client) -> i64 {
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let row = client
        .query_one(
            "SELECT count(*), coalesce(max(event_id), 0), coalesce(min(event_id), 1) FROM impersonate.audit",
            &[],
        )
        .unwrap();
    let (count, last, first): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((count, 1), (last, first), "event_id has gaps");
    count
}

/// The server waits five seconds for others to leave a database.
fn at_once(client: &mut Client, statement: &str) {
    let began = Instant::now();
    client
        .batch_execute(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{statement} waited for the writer"
    );
}

#[test]
fn a_database_can_be_moved_to_another_tablespace() {
    let cluster = cluster();
    let database = used(&cluster);
    let folder = cluster.host().join("space");
    fs::create_dir(&folder).unwrap();
    // The server's account makes it its own.
    let data = fs::metadata(cluster.data()).unwrap();
    std::os::unix::fs::chown(
        &folder,
        Some(std::os::unix::fs::MetadataExt::uid(&data)),
        Some(std::os::unix::fs::MetadataExt::gid(&data)),
    )
    .unwrap();
    let mut other = cluster.connect(OWNER, OWNER);
    other
        .batch_execute(&format!("CREATE TABLESPACE space LOCATION '{}'", folder.display()))
        .unwrap();
    at_once(
        &mut other,
        &format!("ALTER DATABASE {} SET TABLESPACE space", database.name),
    );
    use_it(&cluster, &database.name);
    assert_eq!(rows(&mut database.connect(OWNER)), 8);
}

#[test]
fn a_database_can_be_copied_renamed_and_dropped_again_and_again() {
    let cluster = cluster();
    let name = used(&cluster).name;
    let mut other = cluster.connect(OWNER, OWNER);
    for round in 1..=3 {
        at_once(&mut other, &format!("CREATE DATABASE copy{round} TEMPLATE {name}"));
        use_it(&cluster, &name);
        at_once(&mut other, &format!("ALTER DATABASE {name} RENAME TO moved"));
        use_it(&cluster, "moved");
        at_once(&mut other, &format!("ALTER DATABASE moved RENAME TO {name}"));
        // The copy has what its template had, and goes on by itself.
        use_it(&cluster, &format!("copy{round}"));
        let mut owner = cluster.connect(OWNER, &format!("copy{round}"));
        assert_eq!(rows(&mut owner), 4 + (round - 1) * 8 + 4);
        drop(owner);
        at_once(&mut other, &format!("DROP DATABASE copy{round}"));
    }
    assert_eq!(rows(&mut cluster.connect(OWNER, &name)), 4 + 3 * 8);
}

#[test]
fn the_extension_can_be_dropped_and_what_impersonates_stops() {
    let cluster = cluster();
    let database = used(&cluster);
    let mut inside = database.connect(OWNER);
    inside.batch_execute("SELECT setuser('bob')").unwrap();
    let mut owner = database.connect(OWNER);
    owner.batch_execute("DROP EXTENSION impersonate").unwrap();
    // What was under way may end, with its row in the server log; then nothing runs that couldn't be recorded.
    let mut last = Ok(());
    wait_until("the writer knows", || {
        last = inside.batch_execute("INSERT INTO t VALUES (2)");
        last.is_err()
    });
    let error = fails_with("55000", last);
    assert!(error.hint.is_some_and(|hint| hint.contains("CREATE EXTENSION")));
    let done = number(&mut owner, "SELECT count(*) FROM t WHERE i = 2");
    let logged = cluster.log().matches("INSERT INTO t VALUES (2)").count() as i64;
    assert!(logged >= done, "{done} rows, {logged} in the server log");
    fails(inside.batch_execute("SELECT 1"));
    owner.batch_execute("INSERT INTO t VALUES (3)").unwrap();
    owner.batch_execute("CREATE EXTENSION impersonate").unwrap();
    inside.batch_execute("INSERT INTO t VALUES (4)").unwrap();
    drop(inside);
    use_it(&cluster, &database.name);
    rows(&mut owner);
    // Dropped with rows that are not stored yet.
    let mut inside = database.connect(OWNER);
    inside.batch_execute("SELECT setuser('bob')").unwrap();
    (0..50).for_each(|_| inside.batch_execute("SELECT 1").unwrap());
    owner.batch_execute("DROP EXTENSION impersonate").unwrap();
    drop(inside);
    at_once(&mut cluster.connect(OWNER, OWNER), "SELECT 1");
}

/// Removed whatever becomes of the test.
struct Script(PathBuf);

impl Drop for Script {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn the_extension_can_be_updated_under_the_writer() {
    let script = |step: &str, text: &str| {
        let script = Script(Cluster::extensions().join(format!("impersonate--{step}.sql")));
        fs::write(&script.0, text).unwrap();
        script
    };
    let _there = script(
        "0.1.0--0.1.0test",
        "ALTER TABLE impersonate.audit ADD COLUMN more integer;\n\
         CREATE FUNCTION impersonate.added() RETURNS integer LANGUAGE sql AS 'SELECT 1';\n",
    );
    // The library begins no impersonation in another version's database, and goes on with one that it began before.
    let _back = script("0.1.0test--0.1.0", "");
    let cluster = cluster();
    let database = used(&cluster);
    let mut inside = database.connect(OWNER);
    inside.batch_execute("SELECT setuser('bob')").unwrap();
    let mut owner = database.connect(OWNER);
    owner
        .batch_execute("ALTER EXTENSION impersonate UPDATE TO '0.1.0test'")
        .unwrap();
    inside.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    drop(inside);
    owner
        .batch_execute("ALTER EXTENSION impersonate UPDATE TO '0.1.0'")
        .unwrap();
    use_it(&cluster, &database.name);
    rows(&mut owner);
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM impersonate.audit WHERE statement = 'INSERT INTO t VALUES (2)'"
        ),
        1
    );
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_database_can_be_dumped_and_restored() {
    let cluster = cluster();
    let database = used(&cluster);
    let mut inside = database.connect(OWNER);
    inside.batch_execute("SELECT setuser('bob')").unwrap();
    let dump = run(&mut cluster.command("pg_dump", OWNER, &database.name));
    inside.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    let copy = cluster.empty_database("copy");
    let restored = copy.psql(OWNER, &format!("\\set ON_ERROR_STOP on\n{dump}"));
    assert!(restored.ok, "{}", restored.stderr);
    let before = rows(&mut copy.connect(OWNER));
    use_it(&cluster, &copy.name);
    assert_eq!(rows(&mut copy.connect(OWNER)), before + 4);
    rows(&mut database.connect(OWNER));
}

#[test]
fn a_cluster_can_be_upgraded_and_keeps_its_audit() {
    let mut cluster = cluster();
    let name = used(&cluster).name;
    let (before, hashes) = {
        let mut owner = cluster.connect(OWNER, &name);
        let before = rows(&mut owner);
        (before, hashes(&mut owner))
    };
    assert_eq!(before, 4);
    cluster.upgrade();
    {
        let mut owner = cluster.connect(OWNER, &name);
        assert_eq!(self::hashes(&mut owner), hashes);
        assert_eq!(rows(&mut owner), before);
    }
    use_it(&cluster, &name);
    assert_eq!(rows(&mut cluster.connect(OWNER, &name)), before + 4);
}

fn hashes(client: &mut Client) -> Vec<Vec<u8>> {
    let rows = client
        .query("SELECT hash FROM impersonate.audit ORDER BY event_id", &[])
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What its owner may set for a database changes neither what the writer does nor what the extension consists of.
#[test]
fn l6_settings_of_a_database_do_not_reach_the_audit() {
    let cluster = cluster();
    let database = cluster.empty_database("settings");
    let mut admin = cluster.connect(OWNER, OWNER);
    for setting in [
        "quote_all_identifiers = on",
        "standard_conforming_strings = off",
        "exit_on_error = on",
    ] {
        admin
            .batch_execute(&format!("ALTER DATABASE {} SET {setting}", database.name))
            .unwrap();
    }
    let mut owner = database.connect(OWNER);
    owner
        .batch_execute("CREATE EXTENSION impersonate; CREATE TABLE t (i int)")
        .unwrap();
    owner.batch_execute("SELECT setuser('bob')").unwrap();
    owner.batch_execute("SELECT * FROM t").unwrap();
    owner.batch_execute("SELECT setuser()").unwrap();
    owner.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let row = owner
        .query_one("SELECT relation, access FROM impersonate.audit_tables", &[])
        .unwrap();
    let told: (String, Vec<String>) = (row.get(0), row.get(1));
    assert_eq!(told, ("public.t".to_owned(), vec!["select".to_owned()]));
    let tables: Vec<String> = owner
        .query_one("SELECT tables FROM impersonate.audit_impersonations", &[])
        .unwrap()
        .get(0);
    assert_eq!(tables, ["public.t"]);
    let page: String = owner.query_one("SELECT impersonate.report()", &[]).unwrap().get(0);
    assert!(page.contains("public.t") && !page.contains("(select)"), "{page}");
}
