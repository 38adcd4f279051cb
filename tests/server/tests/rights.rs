//! Rights where one session in one database does not do: several databases, restarts, reused OIDs, dump and restore
//! (G1 to G7). What one session can show is in tests/pg_regress.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use impersonate_server_tests::{fails, fails_with, unique, wait_until, Cluster, Database};
use postgres::Client;

// ------------------------------------------------------------------------------------------------------------ helpers ---

/// One cluster for the tests that stop nothing: many databases, each of which has an audit writer for a while.
fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let builder = Cluster::builder().setting("max_worker_processes", "80");
        builder.setting("impersonate.audit_queues", "60").start()
    })
}

/// The superuser, in a database without the extension.
fn elsewhere(cluster: &Cluster) -> Client {
    cluster.connect("postgres", "postgres")
}

fn can(client: &mut Client, impersonator: &str, target: &str) -> bool {
    let sql = "SELECT impersonate.can_setuser($1, $2)";
    client.query_one(sql, &[&target, &impersonator]).unwrap().get(0)
}

/// grantee, scope, users or roles, admin: one line for each right.
fn rights(client: &mut Client) -> Vec<String> {
    let sql = "SELECT concat_ws(' ', grantee, scope, users, with_roles, admin) FROM impersonate.grants ORDER BY 1";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

fn oid(client: &mut Client, role: &str) -> u32 {
    let sql = "SELECT oid FROM pg_authid WHERE rolname = $1";
    client.query_one(sql, &[&role]).unwrap().get(0)
}

/// The stamp that a role bears.
fn stamp(client: &mut Client, role: &str) -> Option<String> {
    let sql = "SELECT label FROM pg_shseclabel WHERE provider = 'impersonate' AND objoid = $1";
    let oid = oid(client, role);
    client.query_opt(sql, &[&oid]).unwrap().map(|row| row.get(0))
}

fn run(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn dump(database: &Database) -> String {
    run(&mut database.cluster.command("pg_dump", "postgres", &database.name)).0
}

/// Restores; what psql complained of.
fn restore(database: &Database, script: &str) -> String {
    let output = database.psql("postgres", script);
    assert!(output.ok, "{}", output.stderr);
    output.stderr
}

/// The next OID that a stopped cluster gives is this one.
fn set_next_oid(cluster: &Cluster, oid: u32) {
    let data = cluster.data();
    let owner = fs::metadata(&data).unwrap();
    let mut command = cluster.command("pg_resetwal", "postgres", "postgres");
    command.arg("--next-oid").arg(oid.to_string()).arg("-D").arg(&data);
    run(command.uid(owner.uid()).gid(owner.gid()));
}

/// Makes `role` the bearer of `oid`, as no ordinary statement can.
fn give_oid(client: &mut Client, role: &str, oid: u32) {
    client
        .batch_execute(&format!(
            "SET allow_system_table_mods = on; UPDATE pg_authid SET oid = {oid} WHERE rolname = '{role}';
             RESET allow_system_table_mods"
        ))
        .unwrap();
}

// -------------------------------------------------------------------------------------------------- several databases ---

#[test]
fn a_grantee_dropped_from_another_database_leaves_no_right_to_its_namesake() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, desk) = (unique("bob"), unique("desk"));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; GRANT \"SET USER\" ({bob}) TO {desk}"
        ))
        .unwrap();
    assert!(can(&mut admin, &desk, &bob));
    elsewhere(shared()).batch_execute(&format!("DROP ROLE {desk}")).unwrap();
    assert_eq!(rights(&mut admin), [] as [&str; 0]);
    elsewhere(shared())
        .batch_execute(&format!("CREATE ROLE {desk} LOGIN"))
        .unwrap();
    assert_eq!(rights(&mut admin), [] as [&str; 0]);
    assert!(!can(&mut admin, &desk, &bob));
}

#[test]
fn a_listed_role_dropped_from_another_database_leaves_the_rest_of_the_list() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, carol, desk) = (unique("bob"), unique("carol"), unique("desk"));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {carol} LOGIN; CREATE ROLE {desk} LOGIN;
             GRANT \"SET USER\" ({bob}, {carol}) TO {desk}; GRANT \"SET USER ANY WITH ROLES\" ({bob}) TO {desk}"
        ))
        .unwrap();
    let mut other = elsewhere(shared());
    other
        .batch_execute(&format!("DROP ROLE {bob}; CREATE ROLE {bob} LOGIN"))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{carol}}} none")]);
    assert!(can(&mut admin, &desk, &carol));
    assert!(!can(&mut admin, &desk, &bob));
    // The list can still be added to and taken from.
    admin
        .batch_execute(&format!(
            "GRANT \"SET USER\" ({bob}) TO {desk}; REVOKE \"SET USER\" ({carol}) FROM {desk}"
        ))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{bob}}} none")]);
    other.batch_execute(&format!("DROP ROLE {bob}")).unwrap();
    assert_eq!(rights(&mut admin), [] as [&str; 0]);
}

#[test]
fn what_an_admin_granted_goes_when_it_is_dropped_from_another_database() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, desk, dba, boss) = (unique("bob"), unique("desk"), unique("dba"), unique("boss"));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; CREATE ROLE {dba} LOGIN; CREATE ROLE {boss} SUPERUSER;
             GRANT \"SET USER\" TO {dba} WITH ADMIN OPTION;
             SET ROLE {dba}; GRANT \"SET USER\" ({bob}) TO {desk};
             SET ROLE {boss}; GRANT \"SET USER ANY WITH ROLES\" ({bob}) TO {desk}; RESET ROLE"
        ))
        .unwrap();
    elsewhere(shared())
        .batch_execute(&format!("DROP ROLE {dba}, {boss}"))
        .unwrap();
    // What a superuser granted hangs on nobody.
    assert_eq!(rights(&mut admin), [format!("{desk} any with roles {{{bob}}} none")]);
    admin
        .batch_execute(&format!(
            "GRANT \"SET USER ANY WITH ROLES\" ({desk}) TO {desk}; REVOKE \"SET USER ANY WITH ROLES\" ({bob}) FROM {desk}"
        ))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} any with roles {{{desk}}} none")]);
}

#[test]
fn part_of_a_right_whose_superuser_is_gone_can_be_revoked() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, carol, desk, boss) = (unique("bob"), unique("carol"), unique("desk"), unique("boss"));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {carol} LOGIN; CREATE ROLE {desk} LOGIN; CREATE ROLE {boss} SUPERUSER;
             SET ROLE {boss}; GRANT \"SET USER\" ({bob}, {carol}) TO {desk}; RESET ROLE; DROP ROLE {boss}"
        ))
        .unwrap();
    admin
        .batch_execute(&format!("REVOKE \"SET USER\" ({bob}) FROM {desk}"))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{carol}}} none")]);
}

#[test]
fn each_database_has_its_own_rights() {
    let (one, two) = (shared().database("rights"), shared().database("rights"));
    let (bob, desk) = (unique("bob"), unique("desk"));
    one.connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; GRANT \"SET USER\" ({bob}) TO {desk}"
        ))
        .unwrap();
    assert!(can(&mut one.connect("postgres"), &desk, &bob));
    assert!(!can(&mut two.connect("postgres"), &desk, &bob));
    fails_with(
        "42501",
        two.connect(&desk).simple_query(&format!("SELECT setuser('{bob}')")),
    );
}

#[test]
fn without_the_extension_grant_says_what_to_create() {
    let database = shared().empty_database("rights");
    let desk = unique("desk");
    let mut admin = database.connect("postgres");
    admin.batch_execute(&format!("CREATE ROLE {desk}")).unwrap();
    for statement in ["GRANT \"SET USER\" TO", "REVOKE \"SET USER\" FROM"] {
        let error = fails_with("55000", admin.batch_execute(&format!("{statement} {desk}")));
        assert_eq!(
            error.message,
            "extension \"impersonate\" is not created in this database"
        );
        assert_eq!(error.hint.as_deref(), Some("CREATE EXTENSION impersonate;"));
    }
}

#[test]
fn a_database_made_from_another_has_its_rights_until_the_roles_go() {
    let database = shared().database("rights");
    let (bob, desk, copy) = (unique("bob"), unique("desk"), unique("copy"));
    database
        .connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; GRANT \"SET USER\" ({bob}) TO {desk}"
        ))
        .unwrap();
    let sql = format!("CREATE DATABASE {copy} TEMPLATE {}", database.name);
    wait_until("nobody uses the database any more", || {
        elsewhere(shared()).batch_execute(&sql).is_ok()
    });
    let mut client = shared().connect("postgres", &copy);
    assert!(can(&mut client, &desk, &bob));
    database
        .connect("postgres")
        .batch_execute(&format!("DROP ROLE {bob}; CREATE ROLE {bob} LOGIN"))
        .unwrap();
    assert!(!can(&mut client, &desk, &bob));
}

#[test]
fn two_databases_that_first_meet_a_role_at_the_same_time_agree_on_its_stamp() {
    let (one, two) = (shared().database("rights"), shared().database("rights"));
    for outcome in ["COMMIT", "ROLLBACK"] {
        let (bob, desk) = (unique("bob"), unique("desk"));
        let mut first = one.connect("postgres");
        first
            .batch_execute(&format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN"))
            .unwrap();
        let grant = format!("GRANT \"SET USER\" ({bob}) TO {desk}");
        first.batch_execute(&format!("BEGIN; {grant}")).unwrap();
        let mut second = two.connect("postgres");
        let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        let waiting = thread::spawn(move || {
            second.batch_execute(&grant).unwrap();
            second
        });
        wait_until("the second waits for the first", || {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'";
            elsewhere(shared()).query_opt(sql, &[&pid]).unwrap().is_some()
        });
        first.batch_execute(outcome).unwrap();
        let mut second = waiting.join().unwrap();
        assert_eq!(can(&mut first, &desk, &bob), outcome == "COMMIT");
        assert!(can(&mut second, &desk, &bob));
    }
}

#[test]
fn grants_in_two_databases_do_not_block_each_other_once_roles_are_known() {
    let (one, two) = (shared().database("rights"), shared().database("rights"));
    let (bob, desk) = (unique("bob"), unique("desk"));
    let grant = format!("GRANT \"SET USER\" ({bob}) TO {desk}");
    let mut first = one.connect("postgres");
    first
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; {grant}; REVOKE \"SET USER\" FROM {desk}"
        ))
        .unwrap();
    first.batch_execute(&format!("BEGIN; {grant}")).unwrap();
    let mut second = two.connect("postgres");
    second.batch_execute("SET lock_timeout = '5s'").unwrap();
    second.batch_execute(&grant).unwrap();
    first.batch_execute("COMMIT").unwrap();
}

// ----------------------------------------------------------------------------------- without the library, and restarts ---

#[test]
fn a_role_dropped_while_the_library_is_not_loaded_takes_its_rights_along() {
    let mut cluster = Cluster::start_new();
    let name = cluster.database("rights").name;
    cluster
        .connect("postgres", &name)
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE lead LOGIN;
             GRANT \"SET USER\" (bob, carol) TO desk; GRANT \"SET USER\" (carol) TO lead",
        )
        .unwrap();
    cluster.set("shared_preload_libraries", "");
    cluster.restart();
    let mut client = cluster.connect("postgres", &name);
    client
        .batch_execute("DROP ROLE bob, lead; CREATE ROLE bob LOGIN; CREATE ROLE lead LOGIN")
        .unwrap();
    // Not loaded, GRANT is the server's own, which knows no such role.
    let error = fails_with("42704", client.batch_execute("GRANT \"SET USER\" TO desk"));
    assert!(error.message.contains("SET USER"), "{error:?}");
    let error = fails_with("55000", client.batch_execute("SELECT setuser('carol')"));
    assert!(error.hint.unwrap().contains("shared_preload_libraries"));
    drop(client);
    cluster.set("shared_preload_libraries", "impersonate");
    cluster.restart();
    let mut client = cluster.connect("postgres", &name);
    assert_eq!(rights(&mut client), ["desk users {carol} none"]);
    assert!(can(&mut client, "desk", "carol"));
    assert!(!can(&mut client, "desk", "bob"));
    assert!(!can(&mut client, "lead", "carol"));
}

#[test]
fn without_preloading_the_functions_work_or_say_why_not_and_nothing_breaks() {
    let cluster = Cluster::builder().setting("shared_preload_libraries", "").start();
    let database = cluster.database("rights");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute("CREATE ROLE bob LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE \"SET USER\"")
        .unwrap();
    match admin.batch_execute("SELECT impersonate.grant_set_user('desk', users => '{bob}')") {
        Ok(()) => assert!(can(&mut admin, "desk", "bob")),
        refused => {
            let error = fails_with("55000", refused);
            assert!(error.hint.unwrap().contains("shared_preload_libraries"));
        }
    }
    let statements = [
        "SELECT impersonate.can_setuser('bob', 'desk')",
        "SELECT * FROM impersonate.explain_setuser('bob', 'desk')",
        "SELECT * FROM impersonate.grants",
        "SELECT * FROM impersonate.active",
        "SELECT impersonate.revoke_set_user('desk')",
        "SELECT impersonate.audit_sync()",
        "SELECT setuser('bob')",
        "SELECT setuser()",
        "SHOW impersonate.target",
        "SET impersonate.target = 'bob'",
    ];
    for statement in statements {
        // Whatever comes of it, the connection lives.
        let _ = admin.batch_execute(statement);
        admin.batch_execute("SELECT 1").unwrap();
    }
    assert!(!cluster.log().contains("was terminated by signal"), "{}", cluster.log());
}

#[test]
fn rights_survive_a_restart_and_a_crash() {
    let mut cluster = Cluster::builder().durable().start();
    let name = cluster.database("rights").name;
    cluster
        .connect("postgres", &name)
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE desk LOGIN; GRANT \"SET USER\" (bob) TO desk;
             GRANT \"SET USER\" TO bob WITH ADMIN OPTION",
        )
        .unwrap();
    let mut open = cluster.connect("postgres", &name);
    open.batch_execute("BEGIN; GRANT \"SET USER\" (desk) TO desk").unwrap();
    for end in [Cluster::restart, |cluster: &mut Cluster| {
        cluster.kill();
        cluster.start();
    }] {
        end(&mut cluster);
        let mut client = cluster.connect("postgres", &name);
        assert_eq!(rights(&mut client), ["bob any option", "desk users {bob} none"]);
        // bob can grant; desk cannot, so the criteria are in the way.
        assert!(!can(&mut client, "desk", "bob"));
    }
}

#[test]
fn a_standby_refuses_grants_and_still_knows_the_rights() {
    let mut primary = Cluster::start_new();
    let name = primary.database("rights").name;
    primary
        .connect("postgres", &name)
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE dba LOGIN; GRANT \"SET USER\" (bob) TO desk;
             GRANT \"SET USER\" TO dba WITH ADMIN OPTION",
        )
        .unwrap();
    primary.stop();
    // A standby that nobody sends anything to.
    let mut standby = Cluster::builder().create();
    let (socket, data) = (standby.host().display().to_string(), standby.data());
    fs::remove_dir_all(&data).unwrap();
    run(Command::new("cp").arg("-a").arg(primary.data()).arg(&data));
    standby.set("unix_socket_directories", &socket);
    let signal = data.join("standby.signal");
    run(Command::new("cp").arg("-a").arg(data.join("PG_VERSION")).arg(&signal));
    standby.start();
    let mut client = standby.connect("postgres", &name);
    assert_eq!(
        count(
            &mut client,
            "SELECT count(*) FROM pg_settings WHERE name = 'in_hot_standby' AND setting = 'on'"
        ),
        1
    );
    for statement in [
        "GRANT \"SET USER\" (bob) TO dba",
        "REVOKE \"SET USER\" FROM desk",
        "SELECT impersonate.grant_set_user('bob')",
        "SELECT impersonate.revoke_set_user('desk')",
    ] {
        fails_with("25006", client.batch_execute(statement));
    }
    assert_eq!(rights(&mut client), ["dba any option", "desk users {bob} none"]);
    assert!(can(&mut client, "desk", "bob"));
    assert!(!standby.log().contains("was terminated by signal"), "{}", standby.log());
}

// --------------------------------------------------------------------------------------------------------- reused OIDs ---

#[test]
fn a_role_that_gets_a_dropped_ones_oid_inherits_nothing() {
    let mut cluster = Cluster::start_new();
    let name = cluster.database("rights").name;
    let mut client = cluster.connect("postgres", &name);
    client
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE dba LOGIN;
             CREATE ROLE x LOGIN; GRANT \"SET USER\" (bob, carol) TO desk;
             GRANT \"SET USER\" TO dba WITH ADMIN OPTION; SET ROLE dba; GRANT \"SET USER\" (carol) TO x; RESET ROLE;
             GRANT \"SET USER ANY WITH ROLES\" (bob) TO x",
        )
        .unwrap();
    let oids: Vec<(&str, u32)> = ["bob", "desk", "dba"].map(|role| (role, oid(&mut client, role))).into();
    // The writer's transactions are over then, and hold back no VACUUM.
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    // From another database, so that the rows stay.
    let mut admin = elsewhere(&cluster);
    admin.batch_execute("DROP ROLE bob, desk, dba").unwrap();
    // An OID is given again only when the last trace of its old bearer is gone.
    admin.batch_execute("VACUUM pg_authid").unwrap();
    drop(admin);
    assert!(count(&mut client, "SELECT count(*) FROM impersonate.set_user_grant") > 0);
    drop(client);
    // New roles with those OIDs: one of the old name as well, two of other names.
    for ((_, oid), name) in oids.iter().zip(["new_bob", "desk", "new_dba"]) {
        cluster.stop();
        set_next_oid(&cluster, *oid);
        cluster.start();
        let mut admin = elsewhere(&cluster);
        admin.batch_execute(&format!("CREATE ROLE {name} LOGIN")).unwrap();
        assert_eq!(
            self::oid(&mut admin, name),
            *oid,
            "the server was to give {name} that OID"
        );
    }
    let mut client = cluster.connect("postgres", &name);
    assert_eq!(rights(&mut client), [] as [&str; 0]);
    for (impersonator, target) in [
        ("desk", "carol"),
        ("desk", "new_bob"),
        ("new_dba", "carol"),
        ("x", "carol"),
        ("x", "new_bob"),
    ] {
        assert!(!can(&mut client, impersonator, target), "{impersonator} as {target}");
    }
    let refused = cluster
        .connect("new_dba", &name)
        .batch_execute("GRANT \"SET USER\" (carol) TO x");
    fails_with("42501", refused);
    // Nor do the dead rows get in the way of new rights, or come back with them.
    client
        .batch_execute(
            "GRANT \"SET USER\" (carol) TO new_bob; GRANT \"SET USER\" (x) TO desk;
             GRANT \"SET USER\" TO new_dba WITH ADMIN OPTION; SET ROLE new_dba; GRANT \"SET USER\" (new_bob) TO x;
             RESET ROLE",
        )
        .unwrap();
    assert_eq!(
        rights(&mut client),
        [
            "desk users {x} none",
            "new_bob users {carol} none",
            "new_dba any option",
            "x users {new_bob} none",
        ]
    );
    assert!(!can(&mut client, "desk", "carol"));
    assert!(!can(&mut client, "x", "carol"));
}

#[test]
fn a_role_with_the_oid_of_a_superuser_that_granted_gets_no_say_in_it() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, carol, desk, boss, eve) = (
        unique("bob"),
        unique("carol"),
        unique("desk"),
        unique("boss"),
        unique("eve"),
    );
    admin
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {carol} LOGIN; CREATE ROLE {desk} LOGIN; CREATE ROLE {boss} SUPERUSER;
             SET ROLE {boss}; GRANT \"SET USER\" ({bob}) TO {desk}; RESET ROLE"
        ))
        .unwrap();
    let reused = oid(&mut admin, &boss);
    admin
        .batch_execute(&format!("DROP ROLE {boss}; CREATE ROLE {eve} LOGIN"))
        .unwrap();
    give_oid(&mut admin, &eve, reused);
    assert!(can(&mut admin, &desk, &bob));
    // The view must not say that eve granted it.
    let sql = format!("SELECT count(*) FROM impersonate.grants WHERE grantor = '{eve}'");
    assert_eq!(count(&mut admin, &sql), 0);
    // What eve grants is another right; when eve loses admin, that one goes and the superuser's stays.
    admin
        .batch_execute(&format!(
            "GRANT \"SET USER\" TO {eve} WITH ADMIN OPTION; SET ROLE {eve}; GRANT \"SET USER\" ({carol}) TO {desk};
             RESET ROLE; REVOKE \"SET USER\" FROM {eve} CASCADE"
        ))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{bob}}} none")]);
}

// ---------------------------------------------------------------------------------------------------- dump and restore ---

/// A database with a right of each kind.
fn source(cluster: &Cluster) -> Database<'_> {
    let database = cluster.database("source");
    database
        .connect("postgres")
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE \"O'Brien\" LOGIN; CREATE ROLE sales; CREATE ROLE eve LOGIN;
             CREATE ROLE boss LOGIN SUPERUSER; CREATE ROLE desk LOGIN; CREATE ROLE dba LOGIN; CREATE ROLE \"a,b \"\"c\" LOGIN;
             GRANT \"SET USER\" TO dba WITH ADMIN OPTION;
             SET ROLE dba; GRANT \"SET USER\" (bob, \"O'Brien\", \"a,b \"\"c\") TO desk;
             SET ROLE boss; GRANT \"SET USER ANY WITH ROLES\" (sales) TO \"a,b \"\"c\"; RESET ROLE;
             SELECT impersonate.grant_set_user('eve', admin => 'only')",
        )
        .unwrap();
    database
}

/// The roles of [`source`] in another order, hence with other OIDs.
const ROLES_ELSEWHERE: &str = "CREATE ROLE somebody_else; CREATE ROLE \"a,b \"\"c\" LOGIN; CREATE ROLE dba LOGIN;
    CREATE ROLE desk LOGIN; CREATE ROLE boss LOGIN SUPERUSER; CREATE ROLE eve LOGIN; CREATE ROLE sales;
    CREATE ROLE \"O'Brien\" LOGIN; CREATE ROLE bob LOGIN";

/// Everything of the rights that is to be the same after a restore.
fn whole(client: &mut Client) -> Vec<String> {
    let sql = "SELECT g::text FROM impersonate.grants g ORDER BY grant_id";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn rights_come_back_by_name_in_a_cluster_where_roles_have_other_oids() {
    let from = Cluster::start_new();
    let database = source(&from);
    let mut before = database.connect("postgres");
    let script = dump(&database);

    let to = Cluster::start_new();
    elsewhere(&to).batch_execute(ROLES_ELSEWHERE).unwrap();
    let restored = to.empty_database("restored");
    assert_eq!(restore(&restored, &script), "");
    let mut after = restored.connect("postgres");
    for role in ["bob", "desk", "dba", "eve"] {
        assert_ne!(
            oid(&mut before, role),
            oid(&mut after, role),
            "{role}: the test wants other OIDs"
        );
        assert!(stamp(&mut after, role).is_some());
        assert_ne!(stamp(&mut before, role), stamp(&mut after, role));
    }
    assert_eq!(whole(&mut before), whole(&mut after));
    for target in ["bob", "O'Brien", "a,b \"c"] {
        assert!(can(&mut before, "desk", target) == can(&mut after, "desk", target));
    }
    assert!(can(&mut after, "desk", "bob"));
    assert!(can(&mut after, "dba", "bob"));
    assert!(!can(&mut after, "eve", "bob"));
    // Used for real.
    let mut desk = restored.connect("desk");
    let row = desk.query_one("SELECT setuser('bob')", &[]).unwrap();
    assert_eq!(row.get::<_, String>(0), "bob");
    // Over before the right goes, and not when the server gets to know of the client's end.
    desk.simple_query("SELECT setuser()").unwrap();
    // Who granted what still holds, so CASCADE does what it would have done.
    fails_with("2BP01", after.batch_execute("REVOKE \"SET USER\" FROM dba"));
    after.batch_execute("REVOKE \"SET USER\" FROM dba CASCADE").unwrap();
    assert!(!can(&mut after, "desk", "bob"));
    // Ids go on after the highest, so that an id in the audit means one right for ever.
    let highest = count(&mut before, "SELECT max(grant_id) FROM impersonate.set_user_grant");
    after.batch_execute("GRANT \"SET USER\" (bob) TO desk").unwrap();
    let new = count(
        &mut after,
        "SELECT grant_id FROM impersonate.grants WHERE grantee = 'desk'",
    );
    assert!(new > highest, "{new} after {highest}");
}

#[test]
fn rights_come_back_from_an_archive_restored_by_several_jobs() {
    let cluster = Cluster::start_new();
    let database = source(&cluster);
    let archive = cluster.host().join("archive");
    let mut command = cluster.command("pg_dump", "postgres", &database.name);
    run(command.args(["-Fc", "-f"]).arg(&archive));
    let restored = cluster.empty_database("restored");
    let mut command = cluster.command("pg_restore", "postgres", &restored.name);
    run(command
        .args(["-j", "2", "--exit-on-error", "-d", &restored.name])
        .arg(&archive));
    assert_eq!(
        whole(&mut database.connect("postgres")),
        whole(&mut restored.connect("postgres"))
    );
}

#[test]
fn a_whole_cluster_comes_back_from_pg_dumpall() {
    let from = Cluster::start_new();
    let database = source(&from);
    // A role that nobody needs any more must not come back as a right.
    elsewhere(&from).batch_execute("DROP ROLE sales").unwrap();
    let mut before = database.connect("postgres");
    let script = run(&mut from.command("pg_dumpall", "postgres", "postgres")).0;
    let to = Cluster::start_new();
    elsewhere(&to).batch_execute("CREATE ROLE somebody_else").unwrap();
    let output = to.psql("postgres", "postgres", &script);
    let complaints: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.contains("ERROR") && !line.contains("role \"postgres\" already exists"))
        .collect();
    assert_eq!(complaints, [] as [&str; 0]);
    let mut after = to.connect("postgres", &database.name);
    assert_eq!(whole(&mut before), whole(&mut after));
    assert!(can(&mut after, "desk", "bob"));
    assert_ne!(oid(&mut before, "bob"), oid(&mut after, "bob"));
}

#[test]
fn a_role_that_is_missing_at_the_restore_costs_its_own_rights_only() {
    let from = Cluster::start_new();
    let database = source(&from);
    let script = dump(&database);
    let to = Cluster::start_new();
    elsewhere(&to)
        .batch_execute(&ROLES_ELSEWHERE.replace("CREATE ROLE eve LOGIN;", ""))
        .unwrap();
    let restored = to.empty_database("restored");
    let complaints = restore(&restored, &script);
    assert!(complaints.contains("role \"eve\" does not exist"), "{complaints}");
    let mut after = restored.connect("postgres");
    assert!(can(&mut after, "desk", "bob"), "{:?}\n{complaints}", rights(&mut after));
}

#[test]
fn what_a_dropped_role_held_is_not_restored_to_whoever_has_its_oid_there() {
    let from = Cluster::start_new();
    let database = from.database("source");
    let mut client = database.connect("postgres");
    client
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE gone LOGIN; CREATE ROLE desk LOGIN;
             CREATE ROLE lost LOGIN; GRANT \"SET USER\" (bob) TO gone; GRANT \"SET USER\" (bob, lost) TO desk",
        )
        .unwrap();
    let (gone, lost) = (oid(&mut client, "gone"), oid(&mut client, "lost"));
    // From another database, so that the rows stay.
    elsewhere(&from).batch_execute("DROP ROLE gone, lost").unwrap();
    assert_eq!(rights(&mut client), ["desk users {bob} none"]);
    let script = dump(&database);

    let to = Cluster::start_new();
    let mut admin = elsewhere(&to);
    admin
        .batch_execute(
            "CREATE ROLE desk LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; CREATE ROLE mallory LOGIN;
             CREATE ROLE trent LOGIN",
        )
        .unwrap();
    give_oid(&mut admin, "mallory", gone);
    give_oid(&mut admin, "trent", lost);
    let restored = to.empty_database("restored");
    restore(&restored, &script);
    let mut after = restored.connect("postgres");
    assert_eq!(rights(&mut after), ["desk users {bob} none"]);
    assert!(!can(&mut after, "mallory", "bob"), "by its OID");
    assert!(!can(&mut after, "desk", "trent"), "by its OID, on a list");
}

#[test]
fn what_a_dropped_role_held_is_not_dumped_under_the_name_of_the_next_with_its_oid() {
    let cluster = Cluster::start_new();
    let database = cluster.database("source");
    let mut client = database.connect("postgres");
    client
        .batch_execute(
            "CREATE ROLE bob LOGIN; CREATE ROLE gone LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE lost LOGIN;
             GRANT \"SET USER\" (bob) TO gone; GRANT \"SET USER\" (bob, lost) TO desk",
        )
        .unwrap();
    let (gone, lost) = (oid(&mut client, "gone"), oid(&mut client, "lost"));
    let mut admin = elsewhere(&cluster);
    admin
        .batch_execute("DROP ROLE gone, lost; CREATE ROLE mallory LOGIN; CREATE ROLE trent LOGIN")
        .unwrap();
    give_oid(&mut admin, "mallory", gone);
    give_oid(&mut admin, "trent", lost);
    assert_eq!(rights(&mut client), ["desk users {bob} none"]);
    let restored = cluster.empty_database("restored");
    restore(&restored, &dump(&database));
    let mut after = restored.connect("postgres");
    assert_eq!(rights(&mut after), ["desk users {bob} none"]);
    assert!(!can(&mut after, "mallory", "bob"));
    assert!(!can(&mut after, "desk", "trent"));
}

#[test]
fn a_restore_of_data_alone_with_triggers_off_gives_no_right_to_the_wrong_role() {
    let from = Cluster::start_new();
    let database = source(&from);
    let mut command = from.command("pg_dump", "postgres", &database.name);
    let script = run(command.args(["--data-only", "--disable-triggers"])).0;
    let to = Cluster::start_new();
    elsewhere(&to).batch_execute(ROLES_ELSEWHERE).unwrap();
    let restored = to.database("restored");
    restore(&restored, &script);
    let mut after = restored.connect("postgres");
    // Stamps of another cluster: all of it is dead, or all of it was stamped anew.
    let found = rights(&mut after);
    assert!(
        found.is_empty() || found == rights(&mut database.connect("postgres")),
        "{found:?}"
    );
}

#[test]
fn a_role_who_may_dump_sees_the_rights_and_no_more() {
    let database = shared().database("rights");
    let dumper = unique("dumper");
    database
        .connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {dumper} LOGIN; GRANT pg_read_all_data TO {dumper}"
        ))
        .unwrap();
    run(&mut shared().command("pg_dump", &dumper, &database.name));
    fails_with(
        "42501",
        database
            .connect(&dumper)
            .batch_execute("DELETE FROM impersonate.set_user_grant"),
    );
}

// --------------------------------------------------------------------------------------------------------- the extension ---

#[test]
fn dropped_and_created_again_the_extension_knows_no_old_rights() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let (bob, desk) = (unique("bob"), unique("desk"));
    let grant = format!("GRANT \"SET USER\" ({bob}) TO {desk}");
    admin
        .batch_execute(&format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; {grant}"))
        .unwrap();
    let before = stamp(&mut admin, &bob);
    admin
        .batch_execute("DROP EXTENSION impersonate; CREATE EXTENSION impersonate")
        .unwrap();
    assert_eq!(rights(&mut admin), [] as [&str; 0]);
    assert!(!can(&mut admin, &desk, &bob));
    admin.batch_execute(&grant).unwrap();
    assert!(can(&mut admin, &desk, &bob));
    assert_eq!(stamp(&mut admin, &bob), before);
}

#[test]
fn a_session_that_used_the_extension_survives_its_drop_by_another() {
    let database = shared().database("rights");
    let (bob, desk) = (unique("bob"), unique("desk"));
    let mut one = database.connect("postgres");
    one.batch_execute(&format!(
        "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; GRANT \"SET USER\" ({bob}) TO {desk}"
    ))
    .unwrap();
    let mut helpdesk = database.connect(&desk);
    helpdesk.simple_query(&format!("SELECT setuser('{bob}')")).unwrap();
    helpdesk.simple_query("SELECT setuser()").unwrap();
    let mut two = database.connect("postgres");
    two.batch_execute("DROP EXTENSION impersonate").unwrap();
    fails_with(
        "55000",
        one.batch_execute(&format!("GRANT \"SET USER\" ({bob}) TO {desk}")),
    );
    fails_with("42883", helpdesk.simple_query(&format!("SELECT setuser('{bob}')")));
    two.batch_execute("CREATE EXTENSION impersonate").unwrap();
    fails_with("42501", helpdesk.simple_query(&format!("SELECT setuser('{bob}')")));
    one.batch_execute(&format!("GRANT \"SET USER\" ({bob}) TO {desk}"))
        .unwrap();
    helpdesk.simple_query(&format!("SELECT setuser('{bob}')")).unwrap();
}

#[test]
fn an_ordinary_role_cannot_create_the_extension() {
    let database = shared().empty_database("rights");
    let owner = unique("owner");
    elsewhere(shared())
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; ALTER DATABASE {} OWNER TO {owner}",
            database.name
        ))
        .unwrap();
    let error = fails_with(
        "42501",
        database.connect(&owner).batch_execute("CREATE EXTENSION impersonate"),
    );
    assert!(error.message.contains("permission denied"), "{error:?}");
}

// -------------------------------------------------------------------------------------------------- names and encodings ---

#[test]
fn names_work_in_databases_of_other_encodings() {
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let cluster = Cluster::start_new();
        elsewhere(&cluster)
            .batch_execute(&format!(
                "CREATE DATABASE other ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            ))
            .unwrap();
        let database = Database {
            cluster: &cluster,
            name: "other".to_owned(),
        };
        let mut admin = database.connect("postgres");
        // It works there, or it says at once that it does not.
        if let Err(refused) = admin.batch_execute("CREATE EXTENSION impersonate") {
            let error = fails_with::<()>("0A000", Err(refused));
            assert!(error.message.contains(encoding), "{error:?}");
            continue;
        }
        // A letter that LATIN1, EUC_JP and UTF-8 have, in the database's encoding as the server converts it.
        let name = if encoding == "EUC_JP" { "あ" } else { "zoë" };
        admin
            .batch_execute(&format!(
                "CREATE ROLE \"{name}\" LOGIN; CREATE ROLE desk LOGIN; CREATE ROLE bob LOGIN IN ROLE \"{name}\""
            ))
            .unwrap();
        assert!(!can(&mut admin, "desk", name), "{encoding}");
        let remedy: String = admin
            .query_one(
                "SELECT remedy FROM impersonate.explain_setuser($1, 'desk') WHERE criterion = 'A1'",
                &[&name],
            )
            .unwrap()
            .get(0);
        assert_eq!(remedy, format!("GRANT \"SET USER\" (\"{name}\") TO desk"), "{encoding}");
        let error = fails_with("42501", {
            let mut desk = database.connect("desk");
            desk.simple_query(&format!("SELECT setuser('{name}')"))
        });
        assert!(!error.message.is_empty(), "{encoding}: {error:?}");
        admin.batch_execute(&remedy).unwrap();
        assert_eq!(
            rights(&mut admin),
            [format!("desk users {{{name}}} none")],
            "{encoding}"
        );
        let mut desk = database.connect("desk");
        desk.simple_query(&format!("SELECT setuser('{name}')")).unwrap();
        let row = desk.query_one("SELECT current_user::text", &[]).unwrap();
        assert_eq!(row.get::<_, String>(0), name, "{encoding}");
        desk.simple_query("SELECT setuser()").unwrap();
        // The words of an error pass through Rust as UTF-8, so there a name may look odd; the refusal is the same.
        admin.batch_execute("GRANT \"SET USER\" (bob) TO desk").unwrap();
        fails_with("42501", desk.simple_query("SELECT setuser('bob')"));
        assert!(!cluster.log().contains("was terminated by signal"), "{}", cluster.log());
    }
}

#[test]
fn a_name_that_is_no_valid_text_is_refused_and_breaks_nothing() {
    let cluster = Cluster::start_new();
    elsewhere(&cluster)
        .batch_execute("CREATE DATABASE other ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        .unwrap();
    let script = "CREATE EXTENSION impersonate;
        DO $$ BEGIN EXECUTE 'CREATE ROLE \"bad' || chr(233) || '\" LOGIN'; END $$;
        CREATE ROLE desk LOGIN;
        DO $$ BEGIN EXECUTE 'GRANT \"SET USER\" (\"bad' || chr(233) || '\") TO desk'; END $$;
        SELECT count(*) FROM impersonate.grants;
        SELECT impersonate.can_setuser('bad' || chr(233), 'desk');
        SELECT count(*) FROM impersonate.explain_setuser('bad' || chr(233), 'desk');
        DO $$ BEGIN EXECUTE 'CREATE ROLE \"SET USER' || chr(233) || '\"'; END $$;
        SELECT 'alive';";
    let output = cluster.psql("postgres", "other", script);
    assert!(output.stdout.contains("alive"), "{output:?}\n{}", cluster.log());
    assert!(!cluster.log().contains("was terminated by signal"), "{}", cluster.log());
}

#[test]
fn errors_carry_nothing_of_our_own_insides() {
    let database = shared().database("rights");
    let desk = unique("desk");
    let mut admin = database.connect("postgres");
    admin.batch_execute(&format!("CREATE ROLE {desk}")).unwrap();
    for statement in [
        format!("GRANT \"SET USER\" TO {desk}, nobody_of_that_name"),
        format!("BEGIN READ ONLY; GRANT \"SET USER\" TO {desk}"),
        format!("GRANT \"SET USER\" TO {desk} GRANTED BY nobody_of_that_name"),
    ] {
        let error = fails(admin.batch_execute(&statement));
        assert_eq!(error.detail, None, "{statement}");
        let _ = admin.batch_execute("ROLLBACK");
    }
}

// ------------------------------------------------------------------------------------------------------------ attack ---

/// A thousand grants and revokes by four sessions at once, over the same roles.
#[test]
fn many_sessions_that_grant_and_revoke_at_once_leave_no_duplicates() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let roles: Vec<String> = (0..4).map(|_| unique("r")).collect();
    for role in &roles {
        admin.batch_execute(&format!("CREATE ROLE {role} LOGIN")).unwrap();
    }
    thread::scope(|scope| {
        for seed in 0..4_usize {
            let (database, roles) = (&database, &roles);
            scope.spawn(move || {
                let mut client = database.connect("postgres");
                for step in 0..60_usize {
                    let pick = |shift: usize| &roles[(seed * 7 + step * 5 + shift * 3) % 4];
                    let statement = match (seed + step) % 4 {
                        0 => format!("GRANT \"SET USER\" ({}, {}) TO {}", pick(1), pick(2), pick(3)),
                        1 => format!("REVOKE \"SET USER\" ({}) FROM {}", pick(1), pick(3)),
                        2 => format!("GRANT \"SET USER\" TO {} WITH ADMIN OPTION", pick(2)),
                        _ => format!("REVOKE \"SET USER ANY\" FROM {}", pick(2)),
                    };
                    client.batch_execute(&statement).unwrap();
                }
            });
        }
    });
    let sql = "SELECT count(*) FROM (SELECT FROM impersonate.set_user_grant GROUP BY grantee, scope, grantor
               HAVING count(DISTINCT grant_id) > 1) d";
    assert_eq!(count(&mut admin, sql), 0);
    let sql = "SELECT count(*) FROM impersonate.grants g WHERE (SELECT count(DISTINCT u) FROM unnest(users) u) <>
               cardinality(users)";
    assert_eq!(count(&mut admin, sql), 0);
    assert_eq!(
        count(
            &mut admin,
            "SELECT count(DISTINCT grant_id) FROM impersonate.set_user_grant"
        ),
        count(&mut admin, "SELECT count(*) FROM impersonate.grants")
    );
}

#[test]
fn roles_dropped_while_others_grant_leave_nothing_behind() {
    let database = shared().database("rights");
    let mut admin = database.connect("postgres");
    let desk = unique("desk");
    admin.batch_execute(&format!("CREATE ROLE {desk} LOGIN")).unwrap();
    for _ in 0..15 {
        let bob = unique("bob");
        admin.batch_execute(&format!("CREATE ROLE {bob} LOGIN")).unwrap();
        let grant = format!("GRANT \"SET USER\" ({bob}) TO {desk}");
        let outcomes: Vec<Option<String>> = thread::scope(|scope| {
            let statements = [grant.clone(), format!("DROP ROLE {bob}"), grant];
            let sessions: Vec<_> = statements
                .into_iter()
                .map(|statement| {
                    let database = &database;
                    scope.spawn(move || {
                        let mut client = database.connect("postgres");
                        client
                            .batch_execute(&statement)
                            .err()
                            .map(|error| fails::<()>(Err(error)).code)
                    })
                })
                .collect();
            sessions.into_iter().map(|session| session.join().unwrap()).collect()
        });
        // Granted before, or the role was gone; the drop works either way.
        for (place, code) in outcomes.iter().enumerate() {
            let fine = match code.as_deref() {
                None => true,
                Some("42704") => place != 1,
                Some(_) => false,
            };
            assert!(fine, "{outcomes:?}");
        }
        assert_eq!(count(&mut admin, "SELECT count(*) FROM impersonate.set_user_grant"), 0);
    }
}

#[test]
fn a_grant_that_is_cancelled_or_whose_session_ends_leaves_nothing() {
    let database = shared().database("rights");
    let (bob, desk) = (unique("bob"), unique("desk"));
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN"))
        .unwrap();
    let grant = format!("GRANT \"SET USER\" ({bob}) TO {desk}");
    // Waits for the table, and is cancelled.
    let mut holder = database.connect("postgres");
    holder.batch_execute(&format!("BEGIN; {grant}")).unwrap();
    let mut waiter = database.connect("postgres");
    waiter.batch_execute("SET statement_timeout = '200ms'").unwrap();
    fails_with("57014", waiter.batch_execute(&grant));
    waiter.batch_execute("SET lock_timeout = '100ms'").unwrap();
    fails_with("55P03", waiter.batch_execute(&grant));
    assert_eq!(count(&mut waiter, "SELECT count(*) FROM impersonate.grants"), 0);
    // The holder's connection goes.
    drop(holder);
    wait_until("the lock is free", || waiter.batch_execute("SELECT 1").is_ok());
    waiter
        .batch_execute(&format!("RESET statement_timeout; RESET lock_timeout; {grant}"))
        .unwrap();
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{bob}}} none")]);
}

#[test]
fn a_prepared_transaction_keeps_what_it_granted() {
    let database = shared().database("rights");
    let (bob, desk, gid) = (unique("bob"), unique("desk"), unique("gid"));
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN"))
        .unwrap();
    admin
        .batch_execute(&format!(
            "BEGIN; GRANT \"SET USER\" ({bob}) TO {desk}; PREPARE TRANSACTION '{gid}'"
        ))
        .unwrap();
    assert!(!can(&mut admin, &desk, &bob));
    admin.batch_execute(&format!("COMMIT PREPARED '{gid}'")).unwrap();
    assert!(can(&mut admin, &desk, &bob));
}

#[test]
fn grants_come_by_the_extended_protocol_and_in_pipelines_too() {
    use impersonate_server_tests::raw::{error_in, tags_in, RawClient};
    let database = shared().database("rights");
    let (bob, desk) = (unique("bob"), unique("desk"));
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN"))
        .unwrap();
    let mut client = RawClient::connect(shared(), "postgres", &database.name);
    let answer = client.extended(&format!("GRANT \"SET USER\" ({bob}) TO {desk}"), &[]);
    assert_eq!(tags_in(&answer), ["GRANT ROLE"], "{answer:?}");
    // One prepared statement, run again and again.
    client.parse("g", &format!("GRANT \"set user\" ({desk}) TO {desk}"), &[]);
    client.parse("r", &format!("REVOKE \"set user\" FROM {desk}"), &[]);
    for statement in ["g", "g", "r", "g"] {
        client.bind("", statement, &[]);
        client.execute("", 0);
    }
    client.sync();
    let answer = client.read_until_ready();
    assert_eq!(error_in(&answer), None);
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{desk}}} none")]);
    // A later failure in the same pipeline takes the grant along.
    for sql in [format!("GRANT \"SET USER\" ({bob}) TO {desk}"), "SELECT 1/0".to_owned()] {
        client.parse("", &sql, &[]);
        client.bind("", "", &[]);
        client.execute("", 0);
    }
    client.sync();
    assert_eq!(error_in(&client.read_until_ready()).unwrap().code, "22012");
    assert_eq!(rights(&mut admin), [format!("{desk} users {{{desk}}} none")]);
}

#[test]
fn a_database_whose_rights_are_all_dead_can_be_dumped_and_restored() {
    let database = shared().database("rights");
    let (bob, desk) = (unique("bob"), unique("desk"));
    database
        .connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {bob} LOGIN; CREATE ROLE {desk} LOGIN; GRANT \"SET USER\" ({bob}) TO {desk}"
        ))
        .unwrap();
    elsewhere(shared())
        .batch_execute(&format!("DROP ROLE {bob}, {desk}"))
        .unwrap();
    let restored = shared().empty_database("restored");
    restore(&restored, &dump(&database));
    assert_eq!(rights(&mut restored.connect("postgres")), [] as [&str; 0]);
}
