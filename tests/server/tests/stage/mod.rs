//! Roles of their own for each test, sessions that are checked after every step, and the witnesses of who a session
//! is: what it says itself, the table of active impersonations, and the audit.
#![allow(dead_code)]

use impersonate_server_tests::raw::{error_in, rows_in, Message, RawClient, Transaction};
use impersonate_server_tests::{shared, unique, Cluster, Database, ServerError};
use postgres::Client;
use std::cell::RefCell;
use std::sync::OnceLock;

/// One value per column.
pub type Row = Vec<Option<String>>;

/// The database that all tests of a program share, unless they do what concerns a whole database.
fn shared_database() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| shared().database("stage"))
}

/// A cast of roles and a schema of their own. In SQL they are written `<imp>`, `<bob>` and so on:
///
/// - `<imp>` may log in, has SET USER over `<bob>` and `<carol>`, is a member of `<grp>` and `<own>`
/// - `<bob>` and `<carol>` may log in; `<bob>` is a member of `<grp>`
/// - `<grp>` is the only role that `<bob>` may SET ROLE to; `<own>` is only for `<imp>`
/// - `<s>` is the schema, in which everybody may create
pub struct Stage {
    cluster: &'static Cluster,
    database: String,
    names: Vec<(&'static str, String)>,
    /// A superuser's session that looks on.
    observer: RefCell<Client>,
}

impl Stage {
    /// In the database that tests share.
    #[track_caller]
    pub fn new() -> Stage {
        Stage::in_database(&shared_database().name)
    }

    /// In a database for this test alone.
    #[track_caller]
    pub fn alone() -> Stage {
        Stage::in_database(&shared().database("alone").name)
    }

    #[track_caller]
    fn in_database(database: &str) -> Stage {
        Stage::in_cluster(shared(), database)
    }

    /// In a cluster that lives as long as the process: see [`lasting`].
    #[track_caller]
    pub fn in_cluster(cluster: &'static Cluster, database: &str) -> Stage {
        let names = ["imp", "bob", "carol", "grp", "own", "s"]
            .map(|name| (name, unique(name)))
            .to_vec();
        let observer = RefCell::new(cluster.connect("postgres", database));
        let stage = Stage {
            cluster,
            database: database.to_owned(),
            names,
            observer,
        };
        stage.admin(
            "CREATE ROLE <imp> LOGIN; CREATE ROLE <bob> LOGIN; CREATE ROLE <carol> LOGIN;
             CREATE ROLE <grp>; CREATE ROLE <own>;
             GRANT <grp> TO <bob>, <imp>; GRANT <own> TO <imp>;
             GRANT \"SET USER\" (<bob>, <carol>) TO <imp>;
             CREATE SCHEMA <s>; GRANT ALL ON SCHEMA <s> TO PUBLIC",
        );
        stage
    }

    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// What a role or the schema is really called.
    #[track_caller]
    pub fn name(&self, name: &str) -> String {
        let found = self.names.iter().find(|(known, _)| *known == name);
        found.map_or_else(|| name.to_owned(), |(_, real)| real.clone())
    }

    pub fn sql(&self, text: &str) -> String {
        let names = self.names.iter();
        names.fold(text.to_owned(), |text, (name, real)| {
            text.replace(&format!("<{name}>"), real)
        })
    }

    /// Run by a superuser, in one transaction.
    #[track_caller]
    pub fn admin(&self, sql: &str) {
        let sql = self.sql(sql);
        if let Err(error) = self.observer.borrow_mut().batch_execute(&sql) {
            panic!("{sql}: {error:?}");
        }
    }

    /// Rows that a superuser sees, as text.
    #[track_caller]
    pub fn look(&self, sql: &str) -> Vec<Row> {
        let sql = self.sql(sql);
        let answer = self.observer.borrow_mut().simple_query(&sql);
        let answer = answer.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = answer.iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|column| row.get(column).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        });
        rows.collect()
    }

    /// A session of `<imp>`.
    #[track_caller]
    pub fn session(&self) -> Session<'_> {
        self.session_of("imp")
    }

    /// A session of one of the cast, or of `postgres`.
    #[track_caller]
    pub fn session_of(&self, login: &str) -> Session<'_> {
        let options = format!("-c search_path={}", self.name("s"));
        let login = self.name(login);
        let raw = RawClient::connect_with(self.cluster, &login, &self.database, &[("options", &options)]).unwrap();
        Session {
            raw,
            stage: self,
            login,
        }
    }

    /// Everything of these kinds that the audit has of a process, in order, once what is queued is stored.
    #[track_caller]
    pub fn audit(&self, pid: i32, kinds: &[&str]) -> Vec<Audited> {
        self.admin("SELECT impersonate.audit_sync()");
        let sql = "SELECT event, user_name, session_user_name, role_name, impersonation_id::text, statement, sqlstate,
                          detail->>'cause', reason, command_tag, detail::text
                     FROM impersonate.audit WHERE pid = $1 AND event = ANY ($2) ORDER BY event_id";
        let rows = self.observer.borrow_mut().query(sql, &[&pid, &kinds]).unwrap();
        let rows = rows.iter().map(|row| Audited {
            event: row.get(0),
            user: row.get(1),
            session_user: row.get(2),
            role: row.get(3),
            id: row.get(4),
            statement: row.get(5),
            sqlstate: row.get(6),
            cause: row.get(7),
            reason: row.get(8),
            tag: row.get(9),
            detail: row.get(10),
        });
        rows.collect()
    }

    /// The beginnings and ends of impersonations that the audit has of a process, as `+bob`, `-bob asked`. Fails when
    /// they don't alternate, or an end is another impersonation's than the beginning before it.
    #[track_caller]
    pub fn history(&self, pid: i32) -> Vec<String> {
        let rows = self.audit(pid, &["SETUSER", "RESETUSER"]);
        for (i, row) in rows.iter().enumerate() {
            let expected = if i % 2 == 0 { "SETUSER" } else { "RESETUSER" };
            assert_eq!(row.event, expected, "row {i} of {rows:#?}");
            if i % 2 == 1 {
                assert_eq!(
                    (&row.id, &row.user),
                    (&rows[i - 1].id, &rows[i - 1].user),
                    "row {i} of {rows:#?}"
                );
            }
        }
        let told = rows.iter().map(|row| match row.event.as_str() {
            "SETUSER" => format!("+{}", self.short(&row.user)),
            _ => format!("-{} {}", self.short(&row.user), row.cause.as_deref().unwrap_or("?")),
        });
        told.collect()
    }

    fn short(&self, real: &str) -> String {
        let found = self.names.iter().find(|(_, known)| known == real);
        found.map_or_else(|| real.to_owned(), |(name, _)| (*name).to_owned())
    }

    /// What is known of a process: its impersonation, of that target, or none.
    #[track_caller]
    pub fn told(&self, pid: i32, login: &str, target: Option<&str>) {
        let row = |target| {
            vec![
                Some(login.to_owned()),
                Some(self.name(target)),
                Some(self.database.clone()),
            ]
        };
        let expected: Vec<Row> = target.into_iter().map(row).collect();
        assert_eq!(self.active(pid), expected, "impersonate.active");
        let history = self.history(pid);
        match target {
            Some(target) => {
                let begun = format!("+{}", self.short(&self.name(target)));
                assert_eq!(history.last(), Some(&begun), "the audit: {history:?}");
            }
            None => assert!(
                history.last().is_none_or(|last| last.starts_with('-')),
                "the audit has an impersonation that goes on: {history:?}"
            ),
        }
    }

    /// Who impersonates whom in a process, by `impersonate.active`.
    #[track_caller]
    pub fn active(&self, pid: i32) -> Vec<Row> {
        self.look(&format!(
            "SELECT impersonator, target, database FROM impersonate.active WHERE pid = {pid}"
        ))
    }
}

/// A cluster that nobody stops but its tests' process's end. For settings of its own.
pub fn lasting(cluster: Cluster) -> &'static Cluster {
    Box::leak(Box::new(cluster))
}

/// What the target is. The impersonator holds the same (A2, A4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    CreateRole,
    Powerful,
    Superuser,
}

pub const KINDS: [Kind; 4] = [Kind::Plain, Kind::CreateRole, Kind::Powerful, Kind::Superuser];

impl Kind {
    pub fn empower(self, stage: &Stage) {
        match self {
            Kind::Plain => {}
            Kind::CreateRole => stage.admin("ALTER ROLE <imp> CREATEROLE; ALTER ROLE <bob> CREATEROLE"),
            Kind::Powerful => stage.admin(
                "GRANT pg_read_all_data, pg_write_all_data, pg_signal_backend, pg_monitor, pg_read_server_files,
                       pg_write_server_files, pg_execute_server_program, pg_checkpoint TO <imp>, <bob>",
            ),
            Kind::Superuser => stage.admin("ALTER ROLE <imp> SUPERUSER; ALTER ROLE <bob> SUPERUSER"),
        }
    }
}

/// A row of the audit.
#[derive(Debug, Clone)]
pub struct Audited {
    pub event: String,
    pub user: String,
    pub session_user: String,
    pub role: String,
    pub id: Option<String>,
    pub statement: Option<String>,
    pub sqlstate: String,
    pub cause: Option<String>,
    pub reason: Option<String>,
    pub tag: Option<String>,
    pub detail: Option<String>,
}

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Simple,
    Extended,
}

pub const PROTOCOLS: [Protocol; 2] = [Protocol::Simple, Protocol::Extended];

/// What a session says of itself.
const WITNESS: &str =
    "SELECT current_user, session_user, current_setting('role'), current_setting('impersonate.target'), \
                       current_setting('is_superuser')";

/// A client whose identity is watched.
pub struct Session<'a> {
    pub raw: RawClient,
    pub stage: &'a Stage,
    login: String,
}

impl Session<'_> {
    pub fn pid(&self) -> i32 {
        self.raw.pid()
    }

    /// From here on the session user is expected to be this one.
    pub fn logged_in_as(&mut self, login: &str) {
        self.login = self.stage.name(login);
    }

    pub fn stage(&self) -> &Stage {
        self.stage
    }

    /// `statement|function|sqlstate` of each STATEMENT row of this session, which has been bob alone.
    #[track_caller]
    pub fn trail(&self) -> Vec<String> {
        let rows = self.stage.audit(self.pid(), &["STATEMENT"]);
        let told = rows.iter().map(|row| {
            let detail = row.detail.as_deref().unwrap_or("");
            let function = detail
                .split("\"function\": \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            assert_eq!(row.user, self.stage.name("bob"), "{row:?}");
            format!(
                "{}|{}|{}",
                row.statement.as_deref().unwrap_or("-"),
                function.unwrap_or("-"),
                row.sqlstate
            )
        });
        told.collect()
    }

    /// Statements by the simple protocol, all of which work. Returns their rows.
    #[track_caller]
    pub fn ok(&mut self, sql: &str) -> Vec<Row> {
        self.ok_by(Protocol::Simple, sql)
    }

    #[track_caller]
    pub fn ok_by(&mut self, protocol: Protocol, sql: &str) -> Vec<Row> {
        let answer = self.send(protocol, sql);
        assert_eq!(error_in(&answer), None, "{protocol:?}: {}", self.stage.sql(sql));
        rows_in(&answer)
    }

    /// The only value of a query.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.ok(sql);
        assert_eq!(
            (rows.len(), rows[0].len()),
            (1, 1),
            "{sql} should give one value, not {rows:?}"
        );
        rows[0][0].clone().unwrap_or_else(|| "NULL".to_owned())
    }

    /// The first column.
    #[track_caller]
    pub fn column(&mut self, sql: &str) -> Vec<String> {
        self.ok(sql)
            .into_iter()
            .map(|row| row[0].clone().unwrap_or_else(|| "NULL".to_owned()))
            .collect()
    }

    /// Sends and returns everything that comes back, errors too.
    #[track_caller]
    pub fn send(&mut self, protocol: Protocol, sql: &str) -> Vec<Message> {
        let sql = self.stage.sql(sql);
        match protocol {
            Protocol::Simple => self.raw.simple(&sql),
            Protocol::Extended => self.raw.extended(&sql, &[]),
        }
    }

    /// A statement that fails with this SQLSTATE.
    #[track_caller]
    pub fn fails(&mut self, sqlstate: &str, sql: &str) -> ServerError {
        self.fails_by(Protocol::Simple, sqlstate, sql)
    }

    #[track_caller]
    pub fn fails_by(&mut self, protocol: Protocol, sqlstate: &str, sql: &str) -> ServerError {
        let answer = self.send(protocol, sql);
        let sql = self.stage.sql(sql);
        let Some(error) = error_in(&answer) else {
            panic!("{protocol:?}: {sql} should have failed with {sqlstate}: {answer:?}")
        };
        assert_eq!(error.code, sqlstate, "{protocol:?}: {sql}: {error:?}");
        error
    }

    /// `SELECT setuser(...)` with this target, which works and returns it.
    #[track_caller]
    pub fn become_role(&mut self, target: &str) {
        let role = self.value(&format!("SELECT setuser('<{target}>')"));
        assert_eq!(role, self.stage.name(target), "what setuser() returned");
    }

    /// A part of a pipeline: parsed, bound and executed without a Sync.
    pub fn pipe(&mut self, sql: &str) {
        let sql = self.stage.sql(sql);
        self.raw.parse("", &sql, &[]);
        self.raw.bind("", "", &[]);
        self.raw.execute("", 0);
    }

    /// The end of a pipeline, and all that came back.
    #[track_caller]
    pub fn sync(&mut self) -> Vec<Message> {
        self.raw.sync();
        self.raw.read_until_ready()
    }

    // The witnesses ---------------------------------------------------------------------------------------------------

    /// Impersonates nobody and is in no role but its login's.
    #[track_caller]
    pub fn is_itself(&mut self) {
        self.witnesses(None, None);
    }

    /// Impersonates nobody; the role is that of a SET ROLE.
    #[track_caller]
    pub fn is_itself_in_role(&mut self, role: &str) {
        self.witnesses(None, Some(role));
    }

    /// Acts as this target.
    #[track_caller]
    pub fn is(&mut self, target: &str) {
        self.witnesses(Some(target), None);
    }

    /// Acts as this target, in a role that the target set.
    #[track_caller]
    pub fn is_in_role(&mut self, target: &str, role: &str) {
        self.witnesses(Some(target), Some(role));
    }

    /// What the session says of itself, in the order of [`WITNESS`].
    #[track_caller]
    pub fn says(&mut self) -> Vec<String> {
        let rows = self.ok(WITNESS);
        rows[0]
            .iter()
            .map(|value| value.clone().unwrap_or_else(|| "NULL".to_owned()))
            .collect()
    }

    /// What the session should say of itself.
    pub fn expected(&self, target: Option<&str>, role: Option<&str>) -> Vec<String> {
        let stage = self.stage;
        let target = target.map(|name| stage.name(name));
        let role = role.map(|name| stage.name(name)).or_else(|| target.clone());
        let current = role.clone().unwrap_or_else(|| self.login.clone());
        let superuser = stage.look(&format!(
            "SELECT CASE WHEN rolsuper THEN 'on' ELSE 'off' END FROM pg_roles WHERE rolname = '{}'",
            current.replace('\'', "''")
        ));
        vec![
            current,
            self.login.clone(),
            role.unwrap_or_else(|| "none".to_owned()),
            target.unwrap_or_default(),
            superuser[0][0].clone().unwrap(),
        ]
    }

    #[track_caller]
    fn witnesses(&mut self, target: Option<&str>, role: Option<&str>) {
        let says = self.says();
        let expected = self.expected(target, role);
        assert_eq!(
            says, expected,
            "current_user, session_user, role, impersonate.target, is_superuser"
        );
        assert_eq!(
            self.raw.parameter("is_superuser"),
            Some(expected[4].as_str()),
            "is_superuser as reported"
        );
        self.told(target);
        let Some(target) = target else { return };
        let statements = self.stage.audit(self.pid(), &["STATEMENT"]);
        let last = statements
            .last()
            .expect("statements under an impersonation are recorded");
        assert_eq!(last.statement.as_deref(), Some(WITNESS), "{last:?}");
        let audited = [&last.user, &last.session_user, &last.role].map(String::as_str);
        assert_eq!(
            audited,
            [&self.stage.name(target), &self.login, &expected[0]].map(String::as_str),
            "{last:?}"
        );
    }

    /// What others know: `impersonate.active`, and the last rows of the audit. For when the session can't be asked.
    #[track_caller]
    pub fn told(&self, target: Option<&str>) {
        self.stage.told(self.pid(), &self.login, target);
    }

    /// The session's transaction, as the last `ReadyForQuery` told it.
    #[track_caller]
    pub fn transaction(&mut self) -> Transaction {
        self.raw.sync();
        match self.raw.read_until_ready().last() {
            Some(Message::ReadyForQuery(state)) => *state,
            _ => unreachable!(),
        }
    }
}
