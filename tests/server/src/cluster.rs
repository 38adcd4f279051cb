//! A cluster that a test may do anything to.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use postgres::{Client, Config, NoTls};

use crate::wait::{wait_until, within};
use crate::{account, guard, signal, unique};

/// The role that owns every cluster, a superuser.
const OWNER: &str = "postgres";

// ------------------------------------------------------------------------------------------------- the installation ---

/// The folder of the server's programs.
fn bin_dir() -> &'static Path {
    static BIN_DIR: OnceLock<PathBuf> = OnceLock::new();
    BIN_DIR.get_or_init(|| {
        let pg_config = env::var_os("TEST_PG_CONFIG").map(PathBuf::from).unwrap_or_else(|| {
            let major = env::var("PG").unwrap_or_else(|_| "15".to_owned());
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
                "../../.tools/pg{major}/usr/lib/postgresql/{major}/bin/pg_config"
            ))
        });
        let output = Command::new(&pg_config)
            .arg("--bindir")
            .output()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}; make dev sets it up", pg_config.display()));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// A program of the server, with nothing of the caller's environment that would make it talk to another one.
fn program(name: impl AsRef<OsStr>) -> Command {
    program_of(bin_dir(), name)
}

fn program_of(bin: &Path, name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(bin.join(name.as_ref()));
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("LC_ALL", "C")
        .current_dir(guard::folder())
        .stdin(Stdio::null());
    command
}

/// A program of the server that must not run as root.
fn server_program(name: &str) -> Command {
    server_program_of(bin_dir(), name)
}

fn server_program_of(bin: &Path, name: &str) -> Command {
    let mut command = program_of(bin, name);
    command.env("HOME", guard::folder());
    account::run_as(&mut command);
    command
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}

fn initdb(programs: &Path, folder: &Path, options: &[&str]) {
    run(server_program_of(programs, "initdb")
        .arg("-D")
        .arg(folder)
        .args(["-U", OWNER])
        .args(["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"])
        .args(options));
}

/// An empty data folder, made once and copied: initdb takes longer than a server's start.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = guard::folder().join("template");
        initdb(bin_dir(), &folder, &[]);
        folder
    })
}

// -------------------------------------------------------------------------------------------------------- a cluster ---

/// Settings for a cluster to come.
#[derive(Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    keep: bool,
    tcp: bool,
    programs: Option<PathBuf>,
}

impl Builder {
    /// A line of postgresql.conf; a later one wins.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What is committed must be on disk, as in production: for tests of crashes. Otherwise nothing is ever synced.
    pub fn durable(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Also listens to a free port of 127.0.0.1, where it trusts everybody too.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Of another installation: the folder of its programs. Its data has checksums, which is the default of some
    /// versions, and two of different versions must have alike to be moved by pg_upgrade.
    pub fn programs(mut self, programs: &Path) -> Self {
        self.programs = Some(programs.to_owned());
        self
    }

    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }

    /// Without starting it.
    pub fn create(self) -> Cluster {
        let folder = guard::folder().join(unique("cluster"));
        fs::create_dir(&folder).unwrap();
        account::give(&folder).unwrap();
        // Ownership and modes included; a socket's or a pid's file is not yet there.
        match &self.programs {
            None => run(Command::new("cp").arg("-a").arg(template()).arg(folder.join("data"))),
            Some(programs) => initdb(programs, &folder.join("data"), &["--data-checksums"]),
        }

        let port = if self.tcp { free_port() } else { 5432 };
        let cluster = Cluster {
            folder,
            port,
            server: None,
            programs: self.programs.clone().unwrap_or_else(|| bin_dir().to_owned()),
            environment: Vec::new(),
        };
        cluster.set("unix_socket_directories", &cluster.folder.display().to_string());
        cluster.set("listen_addresses", if self.tcp { "127.0.0.1" } else { "" });
        cluster.set("port", &port.to_string());
        cluster.set("shared_preload_libraries", "impersonate");
        cluster.set("max_connections", "50");
        cluster.set("max_prepared_transactions", "10");
        if !self.keep {
            cluster.set("fsync", "off");
            cluster.set("full_page_writes", "off");
        }
        for (name, value) in &self.settings {
            cluster.set(name, value);
        }
        cluster
    }
}

/// A port that nobody has now. Another process may take it before the server does; the server's start fails then.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
        .port()
}

/// What a program printed, and whether it was content.
#[derive(Debug)]
pub struct Output {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

/// A running or stopped server with its data. Ends, and is deleted, with this value.
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    server: Option<Child>,
    programs: PathBuf,
    environment: Vec<(String, String)>,
}

impl Cluster {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// With impersonate preloaded and no other settings.
    pub fn start_new() -> Cluster {
        Cluster::builder().start()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder of the socket, as a host's name for clients.
    pub fn host(&self) -> &Path {
        &self.folder
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything the server has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read(self.folder.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Adds a line to postgresql.conf, for the next start or [`Cluster::reload`].
    pub fn set(&self, name: &str, value: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .unwrap();
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }

    /// What the server finds in its environment from its next start on; None takes it out again.
    pub fn environment(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment
            .extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    // Starting and stopping -------------------------------------------------------------------------------------------

    /// Starts it and waits until it takes connections.
    ///
    /// # Panics
    /// When it does not come up, with its log.
    #[track_caller]
    pub fn start(&mut self) {
        if !self.try_start() {
            panic!("the server did not start:\n{}", self.log());
        }
    }

    /// Whether it started: some settings must make it refuse.
    pub fn try_start(&mut self) -> bool {
        assert!(self.server.is_none(), "the server is running already");
        // Written by the server, of which root's file would be closed.
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut command = server_program_of(&self.programs, "postgres");
        command
            .arg("-D")
            .arg(self.data())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Ctrl-C is for the tests; the guard stops the server.
        command.process_group(0);
        let mut server = command.spawn().expect("the server's program can be run");
        let pid = server.id().to_string();
        let mut alive = true;
        let mut ready = false;
        // The eighth line of postmaster.pid is what pg_ctl goes by.
        wait_until("the server is up", || {
            alive = server.try_wait().unwrap().is_none();
            let status = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let mut lines = status.lines();
            ready = lines.next() == Some(pid.as_str())
                && lines
                    .nth(6)
                    .is_some_and(|line| ["ready", "standby"].contains(&line.trim()));
            ready || !alive
        });
        if alive {
            self.server = Some(server);
        }
        ready && alive
    }

    /// Lets no one in any more, ends every connection, and checkpoints.
    pub fn stop(&mut self) {
        self.end("INT");
    }

    /// Ends at once, without a checkpoint, as after a crash of the server.
    pub fn stop_immediately(&mut self) {
        self.end("QUIT");
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Moves all databases to a new cluster of the same version by `pg_upgrade`, which takes this one's place. Stopped
    /// before and started after.
    pub fn upgrade(&mut self) {
        self.stop();
        let (old, new) = (self.folder.join("old"), self.folder.join("new"));
        fs::rename(self.data(), &old).unwrap();
        run(Command::new("cp").arg("-a").arg(template()).arg(&new));
        fs::copy(old.join("postgresql.conf"), new.join("postgresql.conf")).unwrap();
        run(server_program("pg_upgrade")
            .current_dir(&self.folder)
            .arg("-b")
            .arg(bin_dir())
            .arg("-B")
            .arg(bin_dir())
            .arg("-d")
            .arg(&old)
            .arg("-D")
            .arg(&new)
            .args(["-U", OWNER]));
        fs::rename(new, self.data()).unwrap();
        fs::remove_dir_all(old).unwrap();
        self.start();
    }

    /// The folder of the programs of the installation that is tested.
    pub fn programs() -> PathBuf {
        bin_dir().to_owned()
    }

    /// The folder of extensions' control files and scripts, of the installation that all clusters share.
    pub fn extensions() -> PathBuf {
        let output = Command::new(bin_dir().join("pg_config")).arg("--sharedir").output();
        let output = output.expect("pg_config can be run").stdout;
        Path::new(String::from_utf8(output).unwrap().trim_end()).join("extension")
    }

    /// Kills every process of the server at once, with no chance to do anything: what a power cut leaves of it, but
    /// for what the system had not written yet.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("the server is running");
        let postmaster = server.id();
        // Stopped first, lest it notice that its children go, or start new ones.
        signal("STOP", postmaster);
        let children = children(postmaster);
        signal("KILL", postmaster);
        for child in &children {
            signal("KILL", *child);
        }
        server.wait().unwrap();
        wait_until("the server's processes are gone", || {
            children.iter().all(|child| !is_running(*child))
        });
    }

    /// Kills the postmaster alone; its children notice and go by themselves.
    pub fn kill_postmaster(&mut self) {
        let mut server = self.server.take().expect("the server is running");
        let children = children(server.id());
        signal("KILL", server.id());
        server.wait().unwrap();
        wait_until("the server's processes are gone", || {
            children.iter().all(|child| !is_running(*child))
        });
    }

    /// Kills one process of the server, a backend say. The server then ends all connections, recovers, and goes on.
    pub fn kill_backend(&self, pid: i32) {
        assert!(self.try_kill_backend(pid), "{pid} is no process of this server");
    }

    /// As `kill_backend`, for one that may have ended meanwhile. Returns whether it was there.
    pub fn try_kill_backend(&self, pid: i32) -> bool {
        let pid = u32::try_from(pid).expect("a pid is positive");
        let server = self.server.as_ref().expect("the server is running").id();
        let there = children(server).contains(&pid);
        if there {
            signal("KILL", pid);
            wait_until("the backend is gone", || !is_running(pid));
        }
        there
    }

    /// Waits until the server takes connections again, after a crash of a backend.
    #[track_caller]
    pub fn wait_until_up(&self) {
        wait_until("the server takes connections", || {
            self.try_connect(OWNER, OWNER).is_ok()
        });
    }

    /// Moves another cluster's databases here; both are stopped, and this one is as `create` made it.
    ///
    /// # Errors
    /// When pg_upgrade fails, with what it said.
    pub fn pg_upgrade_from(&self, old: &Cluster) -> Result<(), String> {
        assert!(self.server.is_none() && old.server.is_none(), "both are stopped");
        let output = server_program_of(&self.programs, "pg_upgrade")
            .arg("-b")
            .arg(&old.programs)
            .arg("-B")
            .arg(&self.programs)
            .arg("-d")
            .arg(old.data())
            .arg("-D")
            .arg(self.data())
            .arg("-s")
            .arg(&self.folder)
            .args(["-U", OWNER, "-p", "5432", "-P", "5433"])
            .current_dir(&self.folder)
            .output()
            .expect("pg_upgrade can be run");
        if output.status.success() {
            return Ok(());
        }
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        Err(format!("{said}\n{errors}\n{}", self.upgrade_logs()))
    }

    /// The ends of the logs that a failed pg_upgrade leaves.
    fn upgrade_logs(&self) -> String {
        let script = "find pg_upgrade_output.d -name '*.log' -exec tail -n 20 {} +";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(self.data())
            .output()
            .expect("sh can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Rereads the settings.
    pub fn reload(&self) {
        let mut client = self.connect(OWNER, OWNER);
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    }

    fn end(&mut self, signal_name: &str) {
        let mut server = self.server.take().expect("the server is running");
        signal(signal_name, server.id());
        if !within(Duration::from_secs(30), || server.try_wait().unwrap().is_some()) {
            signal("QUIT", server.id());
            server.wait().unwrap();
            panic!("the server did not stop:\n{}", self.log());
        }
    }

    // Clients ---------------------------------------------------------------------------------------------------------

    /// How a client reaches it, to add `.options(...)`, `.application_name(...)` or notice handlers to.
    pub fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.folder)
            .port(self.port)
            .user(user)
            .dbname(database);
        config.connect_timeout(Duration::from_secs(10));
        config
    }

    pub fn try_connect(&self, user: &str, database: &str) -> Result<Client, postgres::Error> {
        self.config(user, database).connect(NoTls)
    }

    #[track_caller]
    pub fn connect(&self, user: &str, database: &str) -> Client {
        self.try_connect(user, database).unwrap_or_else(|error| {
            panic!("{user} cannot connect to {database}: {error:?}\n{}", self.log());
        })
    }

    /// A client program of the server, such as `pg_dump`, pointed at this cluster.
    pub fn command(&self, name: &str, user: &str, database: &str) -> Command {
        let mut command = program(name);
        command.env("PGHOST", &self.folder).env("PGPORT", self.port.to_string());
        command.env("PGUSER", user).env("PGDATABASE", database);
        command
    }

    /// Runs a script by psql, to the end whatever fails. Rows come unaligned, without headers.
    pub fn psql(&self, user: &str, database: &str, script: &str) -> Output {
        let file = self.folder.join(unique("script"));
        fs::write(&file, script).unwrap();
        let mut command = self.command("psql", user, database);
        command.args(["-X", "-q", "-A", "-t"]).stdin(File::open(&file).unwrap());
        let output = command.output().expect("psql can be run");
        fs::remove_file(&file).unwrap();
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs statements, one a line, in single-user mode, in which the server takes what is standard input for its only
    /// client. Stopped before and after.
    pub fn single_user(&self, database: &str, statements: &[&str]) -> Output {
        assert!(self.server.is_none(), "the server is running");
        let file = self.folder.join(unique("script"));
        fs::write(&file, statements.join("\n") + "\n").unwrap();
        let mut command = server_program_of(&self.programs, "postgres");
        command.arg("--single").arg("-D").arg(self.data()).arg(database);
        let output = command.stdin(File::open(&file).unwrap()).output().unwrap();
        fs::remove_file(&file).unwrap();
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    // Nodes -----------------------------------------------------------------------------------------------------------

    /// A hot standby of this node, by a base backup and a replication slot, with this `cluster_name` and these settings
    /// on top of this node's. Running, and caught up with what was there.
    #[track_caller]
    pub fn standby(&self, name: &str, settings: &[(&str, &str)]) -> Cluster {
        let mut standby = self.standby_created(name, settings);
        standby.start();
        standby
    }

    /// As [`Cluster::standby`], not started yet.
    #[track_caller]
    pub fn standby_created(&self, name: &str, settings: &[(&str, &str)]) -> Cluster {
        let folder = guard::folder().join(unique("cluster"));
        fs::create_dir(&folder).unwrap();
        account::give(&folder).unwrap();
        run(server_program("pg_basebackup")
            .arg("-h")
            .arg(&self.folder)
            .args([
                "-p",
                &self.port.to_string(),
                "-U",
                OWNER,
                "-c",
                "fast",
                "-R",
                "-X",
                "stream",
            ])
            .args(["-C", "-S", &unique("slot"), "--no-sync"])
            .arg("-D")
            .arg(folder.join("data")));
        let standby = Cluster {
            folder,
            port: 5432,
            server: None,
            programs: self.programs.clone(),
            environment: self.environment.clone(),
        };
        standby.set("unix_socket_directories", &standby.folder.display().to_string());
        standby.set("listen_addresses", "");
        standby.set("port", "5432");
        standby.set("cluster_name", name);
        for (name, value) in settings {
            standby.set(name, value);
        }
        standby
    }

    /// A connection string for this node, without a database.
    pub fn conninfo(&self, user: &str) -> String {
        format!("host={} port={} user={user}", self.folder.display(), self.port)
    }

    /// Makes a standby follow another node, without a slot, from its next start or reload on.
    pub fn follow(&self, other: &Cluster) {
        self.set_last("primary_conninfo", &other.conninfo(OWNER));
        self.set_last("primary_slot_name", "");
    }

    /// Makes this node, which is stopped, a standby of another that runs, by `pg_rewind`. It brings the other's settings
    /// along, so this node's own are put back.
    #[track_caller]
    pub fn rewind(&self, source: &Cluster) {
        assert!(self.server.is_none(), "it is stopped");
        // What it has of its own history is found by the timeline in the control file.
        source.connect(OWNER, OWNER).batch_execute("CHECKPOINT").unwrap();
        let settings = fs::read(self.data().join("postgresql.conf")).unwrap();
        let output = server_program("pg_rewind")
            .arg("-D")
            .arg(self.data())
            .arg(format!("--source-server={} dbname={OWNER}", source.conninfo(OWNER)))
            .arg("--no-sync")
            .output()
            .expect("pg_rewind can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("Done!"), "{said}");
        fs::write(self.data().join("postgresql.conf"), settings).unwrap();
        fs::write(self.data().join("standby.signal"), "").unwrap();
        self.follow(source);
    }

    /// As [`Cluster::set`], and over what a base backup wrote to postgresql.auto.conf.
    fn set_last(&self, name: &str, value: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.auto.conf"))
            .unwrap();
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }

    /// Makes a standby the primary, and waits until it is.
    #[track_caller]
    pub fn promote(&self) {
        let mut client = self.connect(OWNER, OWNER);
        let done: bool = client.query_one("SELECT pg_promote()", &[]).unwrap().get(0);
        assert!(done, "{}", self.log());
    }

    /// Waits until a standby has replayed what this node has committed so far.
    #[track_caller]
    pub fn wait_for(&self, standby: &Cluster) {
        let mut here = self.connect(OWNER, OWNER);
        // The writer commits without a sync.
        let end: String = here
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
            .unwrap()
            .get(0);
        here.batch_execute("SELECT txid_current()").unwrap();
        let mut there = standby.connect(OWNER, OWNER);
        wait_until("the standby has caught up", || {
            let query = format!("SELECT COALESCE(pg_last_wal_replay_lsn() >= '{end}'::pg_lsn, true)");
            there.query_one(&query, &[]).unwrap().get(0)
        });
    }

    /// A new database with the extension in it, and a name that begins like that.
    #[track_caller]
    pub fn database(&self, stem: &str) -> Database<'_> {
        let database = self.empty_database(stem);
        database
            .connect(OWNER)
            .batch_execute("CREATE EXTENSION impersonate")
            .unwrap();
        database
    }

    /// A new database without the extension.
    #[track_caller]
    pub fn empty_database(&self, stem: &str) -> Database<'_> {
        let name = unique(stem);
        // template1 must not be in use, and some test may have connected to it.
        self.connect(OWNER, OWNER)
            .batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE template0"))
            .unwrap();
        Database { cluster: self, name }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal("QUIT", server.id());
            // A test that fails here would hide the one that failed before.
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A database of a cluster. It stays until the cluster goes.
pub struct Database<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl Database<'_> {
    #[track_caller]
    pub fn connect(&self, user: &str) -> Client {
        self.cluster.connect(user, &self.name)
    }

    pub fn psql(&self, user: &str, script: &str) -> Output {
        self.cluster.psql(user, &self.name, script)
    }
}

/// One cluster for all tests of a program that only need some server: databases and roles of their own keep them
/// apart. It cannot be stopped.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start_new)
}

// --------------------------------------------------------------------------------------------------------- processes ---

/// A zombie has ended: some child of the server that nobody has collected yet.
fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

fn children(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// State and parent of a process. They follow its name, which is in parentheses and may contain anything.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
