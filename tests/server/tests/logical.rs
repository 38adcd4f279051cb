//! Logical replication with the library on both sides: a subscriber is another system, and its audit and rights are its
//! own (N2).

use impersonate_server_tests::raw::{error_in, RawClient};
use impersonate_server_tests::{wait_until, within, Cluster};
use postgres::{Client, SimpleQueryMessage};
use std::time::Duration;

const OWNER: &str = "postgres";

/// A database with a table `t`, and somebody who may act as somebody.
struct Node {
    cluster: Cluster,
    database: String,
}

impl Node {
    fn new(settings: &[(&str, &str)]) -> Node {
        let mut builder = Cluster::builder().setting("wal_level", "logical");
        for (name, value) in settings {
            builder = builder.setting(name, value);
        }
        let cluster = builder.start();
        let database = cluster.database("node").name;
        cluster
            .connect(OWNER, &database)
            .batch_execute(
                "CREATE ROLE imp LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE dora LOGIN;
                 CREATE TABLE t (i int PRIMARY KEY, s text); GRANT ALL ON t TO bob;
                 GRANT \"SET USER\" (bob) TO imp",
            )
            .unwrap();
        Node { cluster, database }
    }

    fn client(&self) -> Client {
        self.cluster.connect(OWNER, &self.database)
    }

    #[track_caller]
    fn run(&self, sql: &str) {
        if let Err(error) = self.client().batch_execute(sql) {
            panic!("{sql}: {error:?}\n{}", self.cluster.log());
        }
    }

    #[track_caller]
    fn look(&self, sql: &str) -> Vec<String> {
        let answer = self.client().simple_query(sql);
        let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        answer
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
                _ => None,
            })
            .collect()
    }

    #[track_caller]
    fn wait_for(&self, sql: &str, expected: &[&str]) {
        let mut seen = Vec::new();
        let came = within(Duration::from_secs(20), || {
            seen = self.look(sql);
            seen == expected
        });
        assert!(
            came,
            "{sql}\n  gives {seen:?}\n  and not {expected:?}\n{}",
            self.cluster.log()
        );
    }

    /// As bob.
    #[track_caller]
    fn work(&self, statements: &[&str]) {
        let mut session = RawClient::connect(&self.cluster, "imp", &self.database);
        for sql in [&["SELECT setuser('bob')"], statements, &["SELECT setuser()"]].concat() {
            assert_eq!(error_in(&session.simple(sql)), None, "{sql}");
        }
    }

    #[track_caller]
    fn subscribe_to(&self, other: &Node) {
        let conninfo = format!("{} dbname={}", other.cluster.conninfo(OWNER), other.database);
        self.run(&format!(
            "CREATE SUBSCRIPTION sub CONNECTION '{conninfo}' PUBLICATION pub"
        ));
    }

    #[track_caller]
    fn audit_holds(&self) {
        self.run("SELECT impersonate.audit_sync()");
        let verified = self.look("SELECT ok || COALESCE(detail, '') FROM impersonate.audit_verify()");
        assert_eq!(verified, ["true"]);
        let log = self.cluster.log();
        for sign in ["was terminated by signal", "PANIC", "TRAP", "could not store events"] {
            assert!(!log.contains(sign), "{log}");
        }
    }
}

const OWN_ROWS: &str = "SELECT concat_ws(' ', event, statement) FROM impersonate.audit
                         WHERE event IN ('SETUSER', 'STATEMENT', 'RESETUSER') ORDER BY event_id";

#[test]
fn n2_what_is_applied_of_another_systems_changes_is_no_event_of_this_one() {
    let publisher = Node::new(&[]);
    let subscriber = Node::new(&[("impersonate.audit_statements", "all")]);
    publisher.run("CREATE PUBLICATION pub FOR TABLE t");
    publisher.work(&["INSERT INTO t VALUES (1, 'before')"]);
    subscriber.subscribe_to(&publisher);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["before"]);
    publisher.work(&[
        "INSERT INTO t VALUES (2, 'two'), (3, 'three')",
        "UPDATE t SET s = 'second' WHERE i = 2",
        "DELETE FROM t WHERE i = 1",
    ]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["second", "three"]);
    publisher.work(&["TRUNCATE t", "INSERT INTO t VALUES (4, 'four')"]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["four"]);
    // What is done here is.
    subscriber.run("SELECT impersonate.audit_sync()");
    let before = subscriber
        .look("SELECT count(*) FROM impersonate.audit WHERE command_tag IN ('INSERT', 'UPDATE', 'TRUNCATE TABLE')");
    assert_eq!(before, ["0"]);
    subscriber.work(&["UPDATE t SET s = 'here' WHERE i = 4"]);
    publisher.work(&["INSERT INTO t VALUES (5, 'five')"]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["here", "five"]);
    subscriber.run("SELECT impersonate.audit_sync()");
    let rows =
        subscriber.look("SELECT user_name || ' ' || statement FROM impersonate.audit WHERE command_tag = 'UPDATE'");
    assert_eq!(rows, ["bob UPDATE t SET s = 'here' WHERE i = 4"]);
    let rows = publisher.look("SELECT count(*) FROM impersonate.audit WHERE statement LIKE '%here%'");
    assert_eq!(rows, ["0"]);
    for node in [&publisher, &subscriber] {
        node.audit_holds();
    }
}

#[test]
fn n2_a_publication_of_all_tables_holds_no_audit_up_and_brings_none() {
    let (publisher, subscriber) = (Node::new(&[]), Node::new(&[]));
    publisher.run("CREATE PUBLICATION pub FOR ALL TABLES");
    // Whatever the extension writes goes on: rights, projects, mappings, rows, a purge.
    publisher.run(
        "GRANT \"SET USER\" (dora) TO imp; REVOKE \"SET USER\" (dora) FROM imp; GRANT \"SET USER\" TO dora WITH ADMIN OPTION;
         REVOKE ADMIN OPTION FOR \"SET USER\" FROM dora",
    );
    publisher.work(&["INSERT INTO t VALUES (1, 'one')"]);
    publisher.run("SELECT impersonate.audit_purge('2020-01-01'); DROP ROLE dora");
    subscriber.subscribe_to(&publisher);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["one"]);
    publisher.work(&["INSERT INTO t VALUES (2, 'two')"]);
    subscriber.work(&["SELECT 'mine'"]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["one", "two"]);
    subscriber.run("SELECT impersonate.audit_sync()");
    assert_eq!(
        subscriber.look(OWN_ROWS),
        [
            "SETUSER SELECT setuser('bob')",
            "STATEMENT SELECT 'mine'",
            "RESETUSER SELECT setuser()"
        ]
    );
    assert_eq!(subscriber.look("SELECT count(*) FROM impersonate.grants"), ["1"]);
    for node in [&publisher, &subscriber] {
        node.audit_holds();
    }
    // Asked again, they are left out again; and also by their parent's name.
    let own = "SELECT count(*) FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid
                WHERE c.relnamespace = 'impersonate'::regnamespace";
    assert_eq!(subscriber.look("SELECT count(*) FROM pg_subscription_rel"), ["1"]);
    let said = subscriber.cluster.psql(
        OWNER,
        &subscriber.database,
        "ALTER SUBSCRIPTION sub REFRESH PUBLICATION",
    );
    assert!(
        said.ok && said.stderr.contains("the subscription leaves out"),
        "{said:?}"
    );
    assert_eq!(subscriber.look(own), ["0"]);
    publisher.run("ALTER PUBLICATION pub SET (publish_via_partition_root = true)");
    publisher.work(&["INSERT INTO t VALUES (3, 'three')"]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["one", "two", "three"]);
    subscriber.run("ALTER SUBSCRIPTION sub REFRESH PUBLICATION");
    assert_eq!(subscriber.look(own), ["0"]);
    // A month that only the publisher has.
    publisher.run("ALTER TABLE t ADD COLUMN o int");
    subscriber.run("ALTER TABLE t ADD COLUMN o int");
    let partition =
        subscriber.look("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'impersonate.audit'::regclass");
    assert_eq!(partition.len(), 1);
    subscriber.run(&format!("ALTER TABLE {} RENAME TO another_month", partition[0]));
    publisher.work(&["INSERT INTO t VALUES (4, 'four')"]);
    subscriber.wait_for("SELECT s FROM t ORDER BY i", &["one", "two", "three", "four"]);
    for node in [&publisher, &subscriber] {
        node.audit_holds();
    }
    wait_until("the subscription has no errors", || {
        subscriber.look("SELECT (count(*) = 1)::text FROM pg_stat_subscription WHERE pid IS NOT NULL AND relid IS NULL")
            == ["true"]
    });
}

#[test]
fn n2_a_publication_of_all_tables_warns_of_what_each_month_brings() {
    let node = Node::new(&[]);
    let said = |sql: &str| node.cluster.psql(OWNER, &node.database, sql).stderr;
    let warned = said("CREATE PUBLICATION a FOR ALL TABLES");
    assert!(
        warned.contains("publishes the partitions of impersonate.audit"),
        "{warned}"
    );
    assert!(warned.contains("publish_via_partition_root = true"), "{warned}");
    assert_eq!(
        said("CREATE PUBLICATION b FOR ALL TABLES WITH (publish_via_partition_root = true)"),
        ""
    );
    assert_eq!(said("CREATE PUBLICATION c FOR TABLE t"), "");
    assert_eq!(said("ALTER PUBLICATION a SET (publish_via_partition_root = true)"), "");
    assert_ne!(said("ALTER PUBLICATION a SET (publish_via_partition_root = false)"), "");
    node.run("DROP PUBLICATION a, b, c; DROP EXTENSION impersonate CASCADE");
    assert_eq!(said("CREATE PUBLICATION a FOR ALL TABLES"), "");
}

#[test]
fn n2_a_database_without_the_extension_can_keep_the_rows_of_another_server() {
    let (publisher, archive) = (Node::new(&[]), Node::new(&[]));
    archive.run("DROP EXTENSION impersonate CASCADE; CREATE SCHEMA IF NOT EXISTS impersonate");
    archive.run(
        "CREATE TABLE impersonate.audit (
             event_id bigint, event_time timestamptz, event text, user_name text, session_user_name text, role_name text,
             impersonation_id uuid, database text, node text, pid integer, session_id text, application_name text,
             client_addr inet, command_tag text, statement text, parameters text[], relations text[], row_count bigint,
             duration interval, sqlstate text, grant_id bigint, reason text, detail jsonb, hash bytea)",
    );
    publisher.work(&["INSERT INTO t VALUES (1, 'one')"]);
    publisher.run("CREATE PUBLICATION pub FOR TABLE impersonate.audit WITH (publish_via_partition_root = true, publish = 'insert')");
    archive.subscribe_to(&publisher);
    publisher.work(&["INSERT INTO t VALUES (2, 'two')"]);
    publisher.run("SELECT impersonate.audit_sync()");
    let rows = "SELECT event_id || ' ' || encode(hash, 'hex') FROM impersonate.audit ORDER BY event_id";
    let all = publisher.look(rows);
    assert_eq!(all.len(), 7, "{all:?}");
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    archive.wait_for(rows, &all);
    // A purge there takes nothing away here.
    publisher.run("SELECT impersonate.audit_purge(now())");
    publisher.work(&["SELECT 1"]);
    publisher.run("SELECT impersonate.audit_sync()");
    let newest = publisher.look("SELECT max(event_id)::text FROM impersonate.audit");
    archive.wait_for("SELECT max(event_id)::text FROM impersonate.audit", &[&newest[0]]);
    archive.wait_for(
        "SELECT (count(*) = max(event_id) AND min(event_id) = 1)::text FROM impersonate.audit",
        &["true"],
    );
    publisher.audit_holds();
}

#[test]
fn d5_whoever_applies_changes_acts_as_nobody_else() {
    let (publisher, subscriber) = (Node::new(&[]), Node::new(&[]));
    publisher.run("CREATE PUBLICATION pub FOR TABLE t");
    subscriber.run(
        "CREATE ROLE owner LOGIN SUPERUSER; CREATE TABLE seen (who text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.seen VALUES (session_user || ' ' || current_user || ' ' || current_setting('impersonate.target'));
                   RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
         ALTER TABLE t ENABLE ALWAYS TRIGGER note; GRANT INSERT ON seen TO bob",
    );
    subscriber.subscribe_to(&publisher);
    subscriber.run("ALTER SUBSCRIPTION sub OWNER TO owner; ALTER ROLE owner SET impersonate.target = 'bob'");
    subscriber.run("ALTER SUBSCRIPTION sub DISABLE");
    subscriber.wait_for(
        "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL",
        &["0"],
    );
    subscriber.run("ALTER SUBSCRIPTION sub ENABLE");
    publisher.work(&["INSERT INTO t VALUES (1, 'one')"]);
    subscriber.wait_for("SELECT s FROM t", &["one"]);
    // From 16 on rows are written as the table's owner.
    let seen = subscriber.look("SELECT who FROM seen");
    assert!(["owner owner ", "owner postgres "].contains(&&*seen[0]), "{seen:?}");
    // Those who connect as the owner do.
    let mut session = RawClient::connect(&subscriber.cluster, "owner", &subscriber.database);
    assert_eq!(error_in(&session.simple("INSERT INTO t VALUES (2, 'two')")), None);
    drop(session);
    subscriber.wait_for(
        "SELECT count(*) FROM impersonate.audit WHERE event = 'RESETUSER' AND session_user_name = 'owner'",
        &["1"],
    );
    let also = [vec!["owner bob bob".to_owned()], seen].concat();
    assert_eq!(subscriber.look("SELECT who FROM seen ORDER BY who"), also);
    for node in [&publisher, &subscriber] {
        node.audit_holds();
    }
}
