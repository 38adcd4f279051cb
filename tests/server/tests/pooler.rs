//! X3 with a real pooler: pgbouncer, one connection to the server, clients taking turns on it.
//!
//! pgbouncer is the one that `scripts/fetch-tools.sh pgbouncer` unpacks, else one in the PATH.

use impersonate_server_tests::{fails_with, fetched, shared, unique, Cluster, Database};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::fs;
use std::os::unix::fs::{chown, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

// ----------------------------------------------------------------------------------------------------- session mode ---

#[test]
fn x3_session_mode_the_next_client_has_the_connection_and_not_the_identity() {
    let stage = Stage::new("session", &["server_reset_query = DISCARD ALL"]);
    let mut first = stage.client();
    first.run("SELECT setuser('<bob>')");
    let was = first.who();
    assert_eq!(was.current, stage.bob);
    drop(first);
    let now = stage.client().who();
    assert_eq!(now.pid, was.pid, "the pooler gave another connection");
    stage.assert_itself(&now);
    assert_eq!(stage.ends(was.pid), ["discard"]);
}

#[test]
fn x3_session_mode_many_turns() {
    let stage = Stage::new("session", &["server_reset_query = DISCARD ALL"]);
    let leave = [
        "SELECT setuser('<bob>')",
        "SELECT setuser('<bob>', local => true)",
        "BEGIN; SELECT setuser('<bob>'); COMMIT",
        "BEGIN; SELECT setuser('<bob>'); ROLLBACK",
        // In a transaction: the pooler gives up the connection.
        "BEGIN; SELECT setuser('<bob>')",
        "BEGIN; SELECT setuser('<bob>', local => true)",
        "SELECT setuser('<bob>', with_settings => true)",
        "SELECT setuser('<bob>'); SET ROLE <grp>",
        "SELECT setuser('<bob>'); SELECT setuser(); SELECT setuser('<bob>')",
    ];
    for turn in 0..3 {
        for sql in leave {
            let mut client = stage.client();
            stage.assert_itself(&client.who());
            for statement in sql.split("; ") {
                client.run(statement);
            }
            drop(client);
            let now = stage.client().who();
            assert_eq!(now.current, stage.imp, "turn {turn}: {sql}");
            stage.assert_itself(&now);
        }
    }
}

#[test]
fn x3_session_mode_an_impersonation_that_the_pooler_cannot_end_goes_with_the_connection() {
    let stage = Stage::new("session", &["server_reset_query = DISCARD ALL"]);
    for (option, inside) in [
        (", cookie => 's3cret'", None),
        (", no_revert => true", None),
        (", cookie => 's3cret', no_revert => true", None),
        (", cookie => 's3cret'", Some("SET ROLE <grp>")),
        (", cookie => 's3cret'", Some("SET search_path = pg_catalog")),
    ] {
        let mut first = stage.client();
        first.run(&format!("SELECT setuser('<bob>'{option})"));
        if let Some(sql) = inside {
            first.run(sql);
        }
        let was = first.who();
        assert_eq!(was.target, stage.bob);
        drop(first);
        let now = stage.client().who();
        assert_ne!(
            now.pid, was.pid,
            "the pooler handed on a connection that it could not reset{option}"
        );
        stage.assert_itself(&now);
        assert_eq!(stage.ends(was.pid), ["discard"], "{option}");
    }
}

// ------------------------------------------------------------------------------------------------- transaction mode ---

#[test]
fn x3_transaction_mode_a_local_impersonation_ends_with_its_transaction() {
    let stage = Stage::new("transaction", &[]);
    for (option, end, cause) in [
        ("", "COMMIT", "end of transaction"),
        ("", "ROLLBACK", "rollback"),
        (", cookie => 's3cret'", "COMMIT", "end of transaction"),
        (", no_revert => true", "COMMIT", "end of transaction"),
        (", no_revert => true", "ROLLBACK", "rollback"),
    ] {
        let mut first = stage.client();
        let mut second = stage.client();
        first.run("BEGIN");
        first.run(&format!("SELECT setuser('<bob>', local => true{option})"));
        let was = first.who();
        assert_eq!((&was.current, &was.session), (&stage.bob, &stage.imp));
        // Both are connected to the pooler, and share one connection to the server.
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| second.who());
            thread::sleep(Duration::from_millis(50));
            assert!(
                !waiting.is_finished(),
                "the second client did not wait for the first one's transaction"
            );
            first.run(end);
            waiting.join().unwrap()
        });
        assert_eq!(waiting.pid, was.pid, "the pooler gave another connection");
        stage.assert_itself(&waiting);
        stage.assert_itself(&first.who());
        assert_eq!(
            stage.ends(was.pid).last().map(String::as_str),
            Some(cause),
            "{option} {end}"
        );
    }
}

#[test]
fn x3_transaction_mode_a_failed_transaction_leaves_nothing() {
    let stage = Stage::new("transaction", &[]);
    let mut first = stage.client();
    first.run("BEGIN");
    first.run("SELECT setuser('<bob>', local => true)");
    let was = first.who();
    first.fails("22012", "SELECT 1/0");
    first.run("COMMIT");
    let now = stage.client().who();
    assert_eq!(now.pid, was.pid, "the pooler gave another connection");
    stage.assert_itself(&now);
}

/// The server cannot know that its client is a pooler: without `impersonate.local_only` a lasting impersonation lasts,
/// and with it whoever comes next would be in it.
#[test]
fn x3_transaction_mode_a_lasting_impersonation_is_refused_to_roles_that_are_local_only() {
    let stage = Stage::new("transaction", &[]);
    stage.admin("ALTER ROLE <imp> SET impersonate.local_only = on");
    let mut first = stage.client();
    let mut second = stage.client();
    let lasting = [
        "",
        ", cookie => 's3cret'",
        ", no_revert => true",
        ", local => false",
        ", with_settings => true",
    ];
    for option in lasting {
        let sql = format!("SELECT setuser('<bob>'{option})");
        let error = first.fails("55000", &sql);
        assert!(error.hint.is_some_and(|hint| hint.contains("local => true")), "{sql}");
        stage.assert_itself(&first.who());
        stage.assert_itself(&second.who());
        // In a block it would come into force for good at COMMIT.
        first.run("BEGIN");
        first.fails("55000", &sql);
        first.run("ROLLBACK");
        stage.assert_itself(&second.who());
    }
    // Nor does one that lasts take over from one that does not.
    first.run("BEGIN");
    first.run("SELECT setuser('<bob>', local => true)");
    assert_eq!(first.who().current, stage.bob);
    first.fails("55000", "SELECT setuser('<bob>')");
    first.run("COMMIT");
    stage.assert_itself(&second.who());
    let denied = stage.look(
        "SELECT count(*) FROM impersonate.audit
          WHERE event = 'DENIED' AND sqlstate = '55000' AND session_user_name = '<imp>'",
    );
    assert_eq!(denied, (2 * lasting.len() + 1).to_string());

    first.run("BEGIN");
    first.run("SELECT setuser('<bob>', local => true)");
    assert_eq!(first.who().current, stage.bob);
    first.run("COMMIT");
    stage.assert_itself(&second.who());
}

#[test]
fn x3_transaction_mode_a_client_cannot_turn_local_only_off_for_the_others() {
    let stage = Stage::new("transaction", &[]);
    stage.admin("ALTER ROLE <imp> SET impersonate.local_only = on");
    let mut first = stage.client();
    for sql in [
        "SET impersonate.local_only = off",
        "SET LOCAL impersonate.local_only = off",
        "SELECT set_config('impersonate.local_only', 'off', false)",
        "ALTER ROLE <imp> SET impersonate.local_only = off",
    ] {
        first.fails("42501", sql);
    }
    // Not refused to anybody, and leaves what the role has.
    for sql in ["RESET impersonate.local_only", "RESET ALL", "DISCARD ALL"] {
        // RESET of a setting that only superusers may set is refused as well.
        let _ = first.client.simple_query(sql);
        first.fails("55000", "SELECT setuser('<bob>')");
    }
    stage.assert_itself(&stage.client().who());
}

#[test]
fn x3_transaction_mode_a_reset_after_every_transaction_ends_a_lasting_impersonation() {
    let stage = Stage::new(
        "transaction",
        &["server_reset_query = DISCARD ALL", "server_reset_query_always = 1"],
    );
    let mut first = stage.client();
    let mut second = stage.client();
    first.run("SELECT setuser('<bob>')");
    stage.assert_itself(&second.who());
    stage.assert_itself(&first.who());
}

// ------------------------------------------------------------------------------------------------------- the pooler ---

/// pgbouncer in front of the shared cluster. Goes with this value, or with the process, however that ends.
struct Pooler {
    folder: PathBuf,
    // Its standard input is held open and never written to.
    shell: Child,
}

impl Pooler {
    fn start(cluster: &Cluster, mode: &str, user: &str, settings: &[&str]) -> Pooler {
        let folder = cluster.host().join(unique("pooler"));
        fs::create_dir(&folder).unwrap();
        let config = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\n\
             unix_socket_dir = {here}\nauth_type = trust\nauth_file = {here}/users\nlogfile = {here}/log\n\
             pool_mode = {mode}\ndefault_pool_size = 1\nquery_wait_timeout = 20\n{more}\n",
            host = cluster.host().display(),
            port = cluster.port(),
            here = folder.display(),
            more = settings.join("\n"),
        );
        fs::write(folder.join("ini"), config).unwrap();
        fs::write(folder.join("users"), format!("\"{user}\" \"\"\n")).unwrap();

        let mut command = Command::new("sh");
        command
            .args(["-c", r#""$0" -q "$1/ini" >"$1/out" 2>&1 & cat; kill -INT $!; wait"#])
            .arg(program())
            .arg(&folder)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // As whom the server runs: like the server, it refuses to be root.
        let (us, server) = (
            fs::metadata("/proc/self").unwrap(),
            fs::metadata(cluster.data()).unwrap(),
        );
        if us.uid() != server.uid() {
            chown(&folder, Some(server.uid()), Some(server.gid())).unwrap();
            command.uid(server.uid()).gid(server.gid());
        }
        let shell = command.spawn().expect("sh can be run");
        Pooler { folder, shell }
    }

    fn connect(&self, user: &str, database: &str) -> Client {
        let mut config = Config::new();
        config.host_path(&self.folder).port(PORT).user(user).dbname(database);
        // Its socket is there before it listens to it.
        let mut answer = config.connect(NoTls);
        impersonate_server_tests::within(Duration::from_secs(10), || {
            let refused = answer.as_ref().err().is_some_and(|error| error.as_db_error().is_none());
            if refused {
                answer = config.connect(NoTls);
            }
            !refused
        });
        answer.unwrap_or_else(|error| panic!("{error}: {}", self.said()))
    }

    fn said(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        format!("{}\n{}", read("out"), read("log"))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // A test that fails here would hide the one that failed before.
        let _ = self.shell.wait();
    }
}

/// Names the socket; nothing listens to TCP.
const PORT: u16 = 6432;

fn program() -> PathBuf {
    fetched("pgbouncer", &["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"])
}

// -------------------------------------------------------------------------------------------------------- the stage ---

/// `<imp>` may act as `<bob>`, who is a member of `<grp>`; all clients of the pooler log in as `<imp>`.
struct Stage {
    database: &'static Database<'static>,
    imp: String,
    bob: String,
    grp: String,
    pooler: Pooler,
}

impl Stage {
    fn new(mode: &str, settings: &[&str]) -> Stage {
        // One for all: each database with an audit takes one of the server's worker processes.
        static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
        let database = DATABASE.get_or_init(|| shared().database("pooled"));
        let [imp, bob, grp] = ["imp", "bob", "grp"].map(unique);
        let pooler = Pooler::start(shared(), mode, &imp, settings);
        let stage = Stage {
            database,
            imp,
            bob,
            grp,
            pooler,
        };
        stage.admin(
            "CREATE ROLE <imp> LOGIN; CREATE ROLE <bob> LOGIN; CREATE ROLE <grp>; GRANT <grp> TO <imp>, <bob>;
             GRANT \"SET USER\" (<bob>) TO <imp>; ALTER ROLE <bob> SET search_path = pg_catalog",
        );
        stage
    }

    fn sql(&self, text: &str) -> String {
        text.replace("<imp>", &self.imp)
            .replace("<bob>", &self.bob)
            .replace("<grp>", &self.grp)
    }

    #[track_caller]
    fn admin(&self, sql: &str) {
        self.database.connect("postgres").batch_execute(&self.sql(sql)).unwrap();
    }

    /// The one value that a superuser sees, when all of the audit is stored.
    #[track_caller]
    fn look(&self, sql: &str) -> String {
        let mut client = self.database.connect("postgres");
        client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
        values(&client.simple_query(&self.sql(sql)).unwrap())[0]
            .clone()
            .unwrap()
    }

    /// Why the impersonations of a process ended.
    #[track_caller]
    fn ends(&self, pid: i32) -> Vec<String> {
        let sql = format!(
            "SELECT coalesce(string_agg(detail->>'cause', ';' ORDER BY event_id), '')
               FROM impersonate.audit WHERE event = 'RESETUSER' AND pid = {pid}"
        );
        self.look(&sql).split(';').map(str::to_owned).collect()
    }

    #[track_caller]
    fn client(&self) -> Pooled<'_> {
        Pooled {
            client: self.pooler.connect(&self.imp, &self.database.name),
            stage: self,
        }
    }

    /// By what the session says, and by the table of active impersonations.
    #[track_caller]
    fn assert_itself(&self, who: &Who) {
        let expected = Who {
            pid: who.pid,
            current: self.imp.clone(),
            session: self.imp.clone(),
            role: "none".to_owned(),
            target: String::new(),
        };
        assert_eq!(*who, expected);
        let active = self.look(&format!(
            "SELECT count(*) FROM impersonate.active WHERE pid = {}",
            who.pid
        ));
        assert_eq!(active, "0");
    }
}

/// A client of the pooler. Only simple queries: this pooler knows no prepared statements between transactions.
struct Pooled<'a> {
    client: Client,
    stage: &'a Stage,
}

#[derive(Debug, PartialEq, Eq)]
struct Who {
    pid: i32,
    current: String,
    session: String,
    role: String,
    target: String,
}

impl Pooled<'_> {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        let sql = self.stage.sql(sql);
        self.client
            .simple_query(&sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:?}\n{}", self.stage.pooler.said()));
    }

    #[track_caller]
    fn fails(&mut self, sqlstate: &str, sql: &str) -> impersonate_server_tests::ServerError {
        fails_with(sqlstate, self.client.simple_query(&self.stage.sql(sql)))
    }

    #[track_caller]
    fn who(&mut self) -> Who {
        let sql = "SELECT pg_backend_pid(), current_user, session_user, current_setting('role'),
                          current_setting('impersonate.target')";
        let answer = self.client.simple_query(sql);
        let answer = answer.unwrap_or_else(|error| panic!("{error:?}\n{}", self.stage.pooler.said()));
        let mut values = values(&answer)
            .into_iter()
            .map(|value| value.expect("none of them is NULL"));
        let pid = values.next().unwrap().parse().unwrap();
        let [current, session, role, target] = [(); 4].map(|()| values.next().unwrap());
        Who {
            pid,
            current,
            session,
            role,
            target,
        }
    }
}

/// Of the first row.
fn values(answer: &[SimpleQueryMessage]) -> Vec<Option<String>> {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.expect("the answer has a row");
    (0..row.len())
        .map(|column| row.get(column).map(str::to_owned))
        .collect()
}
