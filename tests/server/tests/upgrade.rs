//! From one version of the extension to the next, in place: what was installed as the older version, filled and then
//! updated has the objects of a fresh installation, and everything that it kept (SPEC G7, L8). And where the library
//! and the extension are of different versions, everybody is told what to do, and nothing crashes (X5).
//!
//! Before there is a second release the older version is one made up here: today's script, and then some of it undone.
//! One build of the library stands for others by `IMPERSONATE_TEST_VERSION` in the server's environment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use impersonate_server_tests::{fails_with, left_out, Cluster, Database, ServerError};
use postgres::Client;

const NEW: &str = env!("CARGO_PKG_VERSION");
/// The version that is made up.
const OLD: &str = "0.0.9";
const LIBRARY: &str = "IMPERSONATE_TEST_VERSION";

// --------------------------------------------------------------------------------------------------------- scripts ---

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn script(name: &str) -> String {
    fs::read_to_string(source("sql").join(name)).unwrap()
}

/// A part of today's script, from what begins it to what ends it.
fn part(begin: &str, end: &str) -> String {
    let all = script(&format!("impersonate--{NEW}.sql"));
    let from = all.find(begin).unwrap_or_else(|| panic!("there is no {begin}"));
    let to = all[from..].find(end).unwrap_or_else(|| panic!("there is no {end}")) + from + end.len();
    all[from..to].to_owned()
}

/// What the older version lacks or has otherwise: a view with its privileges and comments, a function, a constraint,
/// a column of a view, a default, an owned table's privileges.
const UNDO: &str = "
DROP VIEW impersonate.audit_denied;
DROP FUNCTION impersonate.set_grant_scope(bigint, text);
ALTER TABLE impersonate.user_mapping DROP CONSTRAINT user_mapping_role_check;
ALTER TABLE impersonate.set_user_grant ALTER admin DROP DEFAULT;
CREATE TABLE impersonate.gone (id integer);
SELECT pg_catalog.pg_extension_config_dump('impersonate.gone', '');
COMMENT ON TABLE impersonate.user_mapping IS 'as it was once';
GRANT SELECT ON impersonate.user_mapping TO PUBLIC;
";

/// The steps that undo UNDO.
fn steps() -> Vec<String> {
    vec![
        part(
            "CREATE VIEW impersonate.audit_denied",
            "REVOKE ALL ON impersonate.audit_denied FROM PUBLIC;",
        ),
        part(
            "CREATE FUNCTION impersonate.set_grant_scope",
            "REVOKE ALL ON FUNCTION impersonate.set_grant_scope(bigint, text) FROM PUBLIC;",
        ),
        "ALTER TABLE impersonate.user_mapping ADD CONSTRAINT user_mapping_role_check CHECK (role <> '');".to_owned(),
        "ALTER TABLE impersonate.set_user_grant ALTER admin SET DEFAULT 'none';".to_owned(),
        "ALTER EXTENSION impersonate DROP TABLE impersonate.gone; DROP TABLE impersonate.gone;".to_owned(),
        part("COMMENT ON TABLE impersonate.user_mapping IS", ";"),
        "REVOKE ALL ON impersonate.user_mapping FROM PUBLIC;".to_owned(),
    ]
}

const HEAD: &str = "SELECT impersonate.require_library();\n";

/// Scripts in the folder of the installation, which tests of this program share; removed whatever becomes of the test.
struct Scripts {
    files: Vec<PathBuf>,
    _alone: MutexGuard<'static, ()>,
}

impl Scripts {
    /// The older version, and the way from it to today's by `steps`.
    fn of(steps: &[String]) -> Scripts {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed leaves nothing behind that the next would mind.
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut scripts = Scripts {
            files: Vec::new(),
            _alone: alone,
        };
        scripts.add(OLD, &(script(&format!("impersonate--{NEW}.sql")) + UNDO));
        scripts.add(&format!("{OLD}--{NEW}"), &(HEAD.to_owned() + &steps.join("\n")));
        scripts
    }

    fn add(&mut self, version: &str, text: &str) {
        let file = Cluster::extensions().join(format!("impersonate--{version}.sql"));
        assert!(!file.exists(), "{} is there already", file.display());
        self.files.push(file.clone());
        fs::write(file, text).unwrap();
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// A server whose library takes itself for one of `version`.
fn server_of(version: &str) -> Cluster {
    let mut cluster = Cluster::builder().create();
    cluster.environment(LIBRARY, Some(version));
    cluster.start();
    cluster
}

// -------------------------------------------------------------------------------------------------- what is compared ---

/// The definitions of all objects of the extension, as pg_upgrade would have them: with privileges and comments, and
/// with the places of columns, dropped ones included, which the library reads by.
fn definitions(database: &Database) -> BTreeSet<String> {
    let output = database
        .cluster
        .command("pg_dump", "postgres", &database.name)
        .args([
            "--schema-only",
            "--binary-upgrade",
            "--schema=impersonate",
            "--extension=impersonate",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut all: BTreeSet<String> = statements(&String::from_utf8(output.stdout).unwrap())
        .into_iter()
        // OIDs and the ages of rows are each database's own.
        .filter(|statement| {
            ![
                "binary_upgrade_set_next",
                "binary_upgrade_create_empty",
                "SET relfrozenxid",
                "\\restrict",
                "\\unrestrict",
            ]
            .iter()
            .any(|own| statement.contains(own))
        })
        .collect();
    assert!(all.len() > 100, "definitions were found: {all:#?}");
    let mut client = database.connect("postgres");
    all.extend(rows(
        &mut client,
        "SELECT concat_ws(' ', 'dumped', c::regclass, w)
           FROM pg_extension, unnest(extconfig, extcondition) AS t(c, w) WHERE extname = 'impersonate'",
    ));
    // setuser() is in pg_catalog, which is never dumped.
    all.extend(rows(
        &mut client,
        "SELECT concat_ws(' ', 'member', i.type, i.identity, p.prosrc, p.probin, p.proacl::text,
                          pg_get_function_arguments(p.oid), p.provolatile, p.proparallel, p.proisstrict, p.prosecdef,
                          obj_description(p.oid, 'pg_proc'))
           FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
           CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) i
           LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          WHERE e.extname = 'impersonate' AND d.deptype = 'e'",
    ));
    all
}

/// Statements of a dump; one ends with a semicolon at the end of a line that is not inside a body.
fn statements(dump: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut now = String::new();
    for line in dump.lines() {
        if now.is_empty() && (line.is_empty() || line.starts_with("--") || line.starts_with('\\')) {
            continue;
        }
        now.push_str(line);
        now.push('\n');
        let inside = |quote| now.matches(quote).count() & 1 == 1;
        if line.ends_with(';') && !inside("$$") && !inside("$_$") {
            all.push(std::mem::take(&mut now));
        }
    }
    assert!(now.is_empty(), "a statement has no end: {now}");
    all
}

fn rows(client: &mut Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn differences(one: &BTreeSet<String>, other: &BTreeSet<String>) -> String {
    let only = |sign: &str, mine: &BTreeSet<String>, theirs: &BTreeSet<String>| -> String {
        mine.difference(theirs).map(|line| format!("{sign} {line}\n")).collect()
    };
    only("-", one, other) + &only("+", other, one)
}

// ------------------------------------------------------------------------------------------------------ what is kept ---

fn roles(cluster: &Cluster) {
    cluster
        .connect("postgres", "postgres")
        .batch_execute("CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN")
        .unwrap();
}

/// Everything that the extension keeps: rights, projects, mappings, the audit.
fn fill(database: &Database) {
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE TABLE t AS SELECT 1 AS id; GRANT SELECT ON t TO bob;
             GRANT \"SET USER\" (bob, carol) TO anna; GRANT \"SET USER\" TO carol WITH ADMIN OPTION;
             INSERT INTO impersonate.user_mapping (external_name, role) VALUES ('bob@example.com', 'bob');
             SELECT impersonate.create_project('p'); SELECT impersonate.add_to_project('p', 't');
             SELECT impersonate.add_project_member('p', 'bob')",
        )
        .unwrap();
    database
        .connect("bob")
        .batch_execute("SELECT impersonate.set_project('p')")
        .unwrap();
    act(database);
}

fn act(database: &Database) {
    let mut anna = database.connect("anna");
    anna.simple_query("SELECT setuser('bob@example.com', reason => 'test')")
        .unwrap();
    anna.simple_query("SELECT * FROM public.t").unwrap();
    fails_with("42501", anna.simple_query("SELECT * FROM impersonate.set_user_grant"));
    anna.simple_query("SELECT setuser()").unwrap();
    fails_with("42704", anna.simple_query("SELECT setuser('nobody')"));
    database
        .connect("postgres")
        .batch_execute("SELECT impersonate.audit_sync()")
        .unwrap();
}

fn kept(client: &mut Client) -> Vec<String> {
    rows(
        client,
        "SELECT t FROM (
            SELECT 1, g::text FROM impersonate.grants g
            UNION ALL SELECT 2, m::text FROM impersonate.user_mapping m
            UNION ALL SELECT 3, p::text FROM impersonate.projects p
            UNION ALL SELECT 4, a::text FROM impersonate.audit a) AS all_of_it (kind, t) ORDER BY kind, t",
    )
}

fn created_version(client: &mut Client) -> String {
    rows(
        client,
        "SELECT extversion FROM pg_extension WHERE extname = 'impersonate'",
    )
    .pop()
    .unwrap()
}

fn at_version<'a>(cluster: &'a Cluster, stem: &str, version: &str) -> Database<'a> {
    let database = cluster.empty_database(stem);
    database
        .connect("postgres")
        .batch_execute(&format!("CREATE EXTENSION impersonate VERSION '{version}'"))
        .unwrap();
    database
}

/// Installs `version`, fills it, changes the library and updates; what differs from a fresh installation of today's.
fn updated_from(version: &str) -> String {
    let mut cluster = server_of(version);
    roles(&cluster);
    let name = {
        let database = at_version(&cluster, "old", version);
        fill(&database);
        database.name
    };
    cluster.stop();
    cluster.environment(LIBRARY, None);
    cluster.start();
    let database = Database {
        cluster: &cluster,
        name,
    };
    let mut admin = database.connect("postgres");
    let before = kept(&mut admin);
    assert!(before.len() > 10, "{before:#?}");
    admin.batch_execute("ALTER EXTENSION impersonate UPDATE").unwrap();
    assert_eq!(created_version(&mut admin), NEW);
    assert_eq!(kept(&mut admin), before, "nothing is lost or changed");
    act(&database);
    let verified = rows(
        &mut admin,
        "SELECT concat(ok, rows_checked, detail) FROM impersonate.audit_verify()",
    );
    let stored = rows(&mut admin, "SELECT concat('t', count(*)) FROM impersonate.audit");
    assert_eq!(verified, stored, "the chain goes on");

    let fresh = cluster.database("fresh");
    fill(&fresh);
    differences(&definitions(&database), &definitions(&fresh))
}

#[test]
fn an_update_keeps_everything_and_gives_what_a_fresh_installation_has() {
    let _scripts = Scripts::of(&steps());
    let differences = updated_from(OLD);
    assert!(differences.is_empty(), "updated -, fresh +\n{differences}");
}

/// The comparison above would see whatever a script forgets.
#[test]
fn an_update_script_that_forgets_a_step_is_found_out() {
    let all = steps();
    let without: Vec<(usize, String)> = (0..all.len())
        .map(|forgotten| {
            let mut steps = all.clone();
            steps.remove(forgotten);
            let _scripts = Scripts::of(&steps);
            let cluster = Cluster::start_new();
            roles(&cluster);
            let database = at_version(&cluster, "old", OLD);
            let mut admin = database.connect("postgres");
            admin.batch_execute("ALTER EXTENSION impersonate UPDATE").unwrap();
            let fresh = cluster.database("fresh");
            (forgotten, differences(&definitions(&database), &definitions(&fresh)))
        })
        .collect();
    for (forgotten, differences) in without {
        assert!(!differences.is_empty(), "nobody noticed without {}", all[forgotten]);
    }
}

// --------------------------------------------------------------------------------------------------- released scripts ---

/// `impersonate--1.0.sql` is the version 1.0's; others are steps between two.
fn script_names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(source("sql"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("impersonate--"))
        .collect();
    names.sort();
    names
}

fn versions() -> Vec<String> {
    script_names()
        .iter()
        .filter_map(|name| name.strip_prefix("impersonate--")?.strip_suffix(".sql"))
        .filter(|version| !version.contains("--"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_released_version_can_be_updated_to_this_one() {
    assert!(versions().contains(&NEW.to_owned()), "{:?}", script_names());
    let control = fs::read_to_string(source("impersonate.control")).unwrap();
    assert!(control.contains(&format!("default_version = '{NEW}'")), "{control}");
    let meta: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(source("META.json")).unwrap()).expect("META.json is JSON");
    assert_eq!(meta["version"], NEW);
    assert_eq!(meta["provides"]["impersonate"]["version"], NEW);
    assert!(source(meta["provides"]["impersonate"]["file"].as_str().unwrap()).is_file());
    for version in versions().iter().filter(|version| *version != NEW) {
        let differences = updated_from(version);
        assert!(
            differences.is_empty(),
            "from {version}: updated -, fresh +\n{differences}"
        );
    }
}

#[test]
fn each_script_asks_for_its_library() {
    for name in script_names() {
        assert!(
            script(&name).contains("SELECT impersonate.require_library();"),
            "{name}"
        );
    }
}

/// The scripts that are not what a list of sha256sum's says.
fn changed(list: &str) -> Vec<String> {
    let cluster = Cluster::start_new();
    let mut client = cluster.connect("postgres", "postgres");
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (sum, name) = line.split_once("  ").expect("a line of sha256sum");
            let bytes = fs::read(source("sql").join(name)).unwrap_or_default();
            let row = client.query_one("SELECT encode(sha256($1), 'hex')", &[&bytes]).unwrap();
            (row.get::<_, String>(0) != sum).then(|| name.to_owned())
        })
        .collect()
}

#[test]
fn released_scripts_never_change() {
    let released = fs::read_to_string(source("tests/upgrade/released")).unwrap();
    assert_eq!(changed(&released), Vec::<String>::new());
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let current = format!("impersonate--{NEW}.sql");
    assert_eq!(
        changed(&format!("# a list\n{empty}  {current}\n{empty}  gone.sql\n")),
        [current]
    );
}

// ------------------------------------------------------------------------------------- two versions that don't agree ---

/// What each door and each statement about rights says.
fn doors(database: &Database, expected: impl Fn(&ServerError)) {
    let mut anna = database.connect("anna");
    for statement in [
        "SELECT setuser('bob')",
        "SELECT setuser('anna')",
        "SELECT setuser('nobody')",
        "SET impersonate.target = 'bob'",
        "SELECT set_config('impersonate.target', 'bob', false)",
        "CALL impersonate.impersonate_user('bob')",
        "SELECT * FROM impersonate.explain_setuser('bob')",
        "SELECT impersonate.can_setuser('bob')",
    ] {
        expected(&fails_with("55000", anna.simple_query(statement)));
    }
    let mut config = database.cluster.config("anna", &database.name);
    let mut early = config
        .options("-c impersonate.target=bob")
        .connect(postgres::NoTls)
        .unwrap();
    expected(&fails_with("55000", early.simple_query("SELECT 1")));
    let mut admin = database.connect("postgres");
    for statement in [
        "GRANT \"SET USER\" (bob) TO carol",
        "REVOKE \"SET USER\" FROM anna",
        "SELECT impersonate.grant_set_user('carol')",
        "SELECT impersonate.revoke_set_user('anna')",
    ] {
        expected(&fails_with("55000", admin.simple_query(statement)));
    }
    // Nobody else is disturbed, and there is always a way to end.
    let mut bystander = database.connect("bob");
    for statement in [
        "SELECT count(*) FROM pg_class",
        "SELECT setuser()",
        "RESET ROLE",
        "DISCARD ALL",
    ] {
        bystander.simple_query(statement).unwrap();
    }
    admin
        .batch_execute("CREATE ROLE dora LOGIN; GRANT bob TO dora; DROP ROLE dora")
        .unwrap();
}

fn said(created: &str, library: &str) -> String {
    format!(
        "The extension in this database is of version {created}, the library that the server has loaded of {library}."
    )
}

fn detail(error: &ServerError) -> (&str, &str) {
    (
        error.detail.as_deref().unwrap_or_default(),
        error.hint.as_deref().unwrap_or_default(),
    )
}

#[test]
fn a_newer_library_asks_for_the_update() {
    let _scripts = Scripts::of(&steps());
    let mut cluster = server_of(OLD);
    roles(&cluster);
    let database = at_version(&cluster, "old", OLD).name;
    fill(&Database {
        cluster: &cluster,
        name: database.clone(),
    });
    cluster.stop();
    cluster.environment(LIBRARY, None);
    cluster.start();
    let database = Database {
        cluster: &cluster,
        name: database,
    };
    doors(&database, |error| {
        assert_eq!(
            error.message,
            "extension \"impersonate\" and its library are of different versions"
        );
        assert_eq!(
            detail(error),
            (said(OLD, NEW).as_str(), "ALTER EXTENSION impersonate UPDATE;")
        );
    });
    let mut admin = database.connect("postgres");
    assert_eq!(rows(&mut admin, "SELECT impersonate.library_version()"), [NEW]);
    // What the hint says, as it says it.
    admin.batch_execute("ALTER EXTENSION impersonate UPDATE;").unwrap();
    act(&database);
    // A database is judged by its own extension: another one, of the older version, changes nothing here.
    at_version(&cluster, "other", OLD);
    act(&database);
}

#[test]
fn an_older_library_asks_for_a_restart() {
    let _scripts = Scripts::of(&steps());
    let mut cluster = server_of(OLD);
    roles(&cluster);
    let restart = |error: &ServerError| {
        assert_eq!(
            detail(error),
            (
                said(NEW, OLD).as_str(),
                format!("Install version {NEW} of the library, unless it is there, and restart the server.").as_str()
            )
        );
    };
    let name = {
        let database = at_version(&cluster, "old", OLD);
        fill(&database);
        let mut admin = database.connect("postgres");
        // The new files are there and the server was not restarted: neither an update nor a new creation goes through.
        restart(&fails_with(
            "55000",
            admin.batch_execute("ALTER EXTENSION impersonate UPDATE"),
        ));
        assert_eq!(created_version(&mut admin), OLD);
        act(&database);
        let fresh = cluster.empty_database("fresh");
        restart(&fails_with(
            "55000",
            fresh.connect("postgres").batch_execute("CREATE EXTENSION impersonate"),
        ));
        database.name
    };
    cluster.stop();
    cluster.environment(LIBRARY, None);
    cluster.start();
    let database = Database {
        cluster: &cluster,
        name,
    };
    database
        .connect("postgres")
        .batch_execute("ALTER EXTENSION impersonate UPDATE")
        .unwrap();
    act(&database);
    let name = database.name;
    // The older library came back, by a downgrade of its package, say.
    cluster.stop();
    cluster.environment(LIBRARY, Some(OLD));
    cluster.start();
    doors(
        &Database {
            cluster: &cluster,
            name,
        },
        restart,
    );
}

// --------------------------------------------------------------------------------- from an older server (pg_upgrade) ---

/// Whether pg_upgrade can move a table from these programs to those that are tested. It need not, from a newer minor
/// release to one of before: minor releases come out for all majors together, but not to each machine.
fn upgrades_without_us(programs: &Path) -> bool {
    let mut old = Cluster::builder()
        .programs(programs)
        .setting("shared_preload_libraries", "")
        .start();
    old.connect("postgres", "postgres")
        .batch_execute("CREATE TABLE moved AS SELECT 1 AS a")
        .unwrap();
    old.stop();
    let new = Cluster::builder()
        .programs(&Cluster::programs())
        .setting("shared_preload_libraries", "")
        .create();
    new.pg_upgrade_from(&old).is_ok()
}

/// pg_upgrade from an older major takes the extension along as it is: rights, projects, mappings and the audit, whose
/// chain goes on. The older server's programs are in the folder of `IMPERSONATE_OLDER`, with the same version of the
/// extension installed.
#[test]
#[ignore = "takes two servers: scripts/check-majors.sh gives it the older one"]
fn pg_upgrade_from_an_older_server_keeps_everything() {
    let programs = PathBuf::from(std::env::var_os("IMPERSONATE_OLDER").expect("IMPERSONATE_OLDER is set"));
    let mut old = Cluster::builder().programs(&programs).start();
    roles(&old);
    let database = old.database("moved");
    fill(&database);
    let name = database.name.clone();
    let mut admin = database.connect("postgres");
    let number = "SELECT current_setting('server_version_num')::int / 10000";
    let older: i32 = admin.query_one(number, &[]).unwrap().get(0);
    let before = kept(&mut admin);
    assert!(before.len() > 10, "{before:#?}");
    drop(admin);
    drop(database);
    old.stop();

    let this = Cluster::programs();
    let mut new = Cluster::builder().programs(&this).create();
    if let Err(said) = new.pg_upgrade_from(&old) {
        assert!(!upgrades_without_us(&programs), "{said}");
        left_out("pg_upgrade fails between these two minor releases without the extension, too");
        return;
    }
    new.start();
    let database = Database { cluster: &new, name };
    let mut admin = database.connect("postgres");
    let newer: i32 = admin.query_one(number, &[]).unwrap().get(0);
    assert!(newer > older, "from {older} to {newer}");
    assert_eq!(kept(&mut admin), before);
    // The rights are the same roles' rights, and what is done now is chained to what was done before.
    act(&database);
    let mut anna = database.connect("anna");
    anna.simple_query("SELECT setuser('bob')").unwrap();
    let seen = "SELECT concat(impersonator, target, last_statement_start > since - interval '1 minute')
                  FROM impersonate.active";
    assert_eq!(rows(&mut admin, seen), ["annabobt"]);
    anna.simple_query("SELECT setuser()").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    assert!(kept(&mut admin).len() > before.len());
    let verified = rows(
        &mut admin,
        "SELECT concat(ok, rows_checked, detail) FROM impersonate.audit_verify()",
    );
    let stored = rows(&mut admin, "SELECT concat('t', count(*)) FROM impersonate.audit");
    assert_eq!(verified, stored);
}
