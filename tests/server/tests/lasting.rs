//! At least, for as long as it lasts (E2 to E6): role changes by every statement and from every place, terminations,
//! and what bypasses statements.

mod stage;

use impersonate_server_tests::raw::{error_in, Message, RawClient};
use impersonate_server_tests::{fails, signal, unique, wait_until, within, Cluster, ServerError};
use postgres::Client;
use stage::{Session, Stage};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Runs a statement as a superuser: what it fails with.
fn change(stage: &Stage, sql: &str) -> Result<(), ServerError> {
    change_in(&mut superuser(stage, stage.database()), stage, sql)
}

fn change_in(client: &mut Client, stage: &Stage, sql: &str) -> Result<(), ServerError> {
    match client.batch_execute(&stage.sql(sql)) {
        Ok(()) => Ok(()),
        Err(error) => Err(fails::<()>(Err(error))),
    }
}

fn superuser(stage: &Stage, database: &str) -> Client {
    stage.cluster().connect("postgres", database)
}

/// The statement would break this criterion of the session's impersonation, and fails with all that must be said.
#[track_caller]
fn refused(stage: &Stage, session: &mut Session, criterion: &str, sql: &str) {
    let error = change(stage, sql).expect_err(&format!("{sql} should have failed"));
    says_it_all(stage, session, criterion, &error);
    session.is("bob");
}

#[track_caller]
fn says_it_all(stage: &Stage, session: &Session, criterion: &str, error: &ServerError) {
    assert_eq!(error.code, "55006", "{error:?}");
    let (detail, hint) = (error.detail.as_deref().unwrap(), error.hint.as_deref().unwrap());
    assert!(error.message.starts_with("cannot "), "{error:?}");
    for word in [
        &session.pid().to_string(),
        &stage.name("imp"),
        &stage.name("bob"),
        criterion,
    ] {
        assert!(detail.contains(word), "{word} is missing from {error:?}");
    }
    let way_out = format!("SELECT impersonate.terminate({})", session.pid());
    assert!(
        hint.contains(&way_out) && hint.contains("impersonate.on_violation"),
        "{error:?}"
    );
}

#[track_caller]
fn accepted(stage: &Stage, session: &mut Session, sql: &str) {
    if let Err(error) = change(stage, sql) {
        panic!("{sql}: {error:?}");
    }
    session.is("bob");
}

/// The last words of a connection that is ended.
#[track_caller]
fn fatal(raw: &mut RawClient) -> ServerError {
    let error = error_in(&raw.read_to_end()).expect("a FATAL error comes before the end");
    assert_eq!(error.severity, "FATAL", "{error:?}");
    error
}

/// Rows that tell of the impersonation of a process: event, detail.
fn rows(stage: &Stage, pid: i32, event: &str) -> Vec<serde_json::Value> {
    stage.admin("SELECT impersonate.audit_sync()");
    let rows = stage.look(&format!(
        "SELECT to_jsonb(a) FROM impersonate.audit a WHERE event = '{event}' AND impersonation_id =
            (SELECT impersonation_id FROM impersonate.audit WHERE pid = {pid} AND event = 'SETUSER'
             ORDER BY event_id DESC LIMIT 1) ORDER BY event_id"
    ));
    rows.iter()
        .map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap())
        .collect()
}

// ---------------------------------------------------------------------------------------------------------- reject (E2) ---

#[test]
fn e2_every_statement_that_breaks_a_criterion_fails() {
    let stage = Stage::alone();
    let mut session = stage.session();
    session.become_role("bob");
    let spare = unique("spare");
    stage.admin(&format!(
        "CREATE ROLE {spare}; CREATE ROLE {spare}_b; GRANT {spare}_b TO {spare}"
    ));
    for (criterion, sql) in [
        ("A2", "GRANT {} TO <bob>"),
        ("A2", "GRANT {} TO <grp>; REVOKE <grp> FROM <imp>"),
        ("A2", "ALTER GROUP {} ADD USER <bob>"),
        ("A2", "CREATE ROLE {}_new ROLE <bob>"),
        ("A3", "CREATE ROLE {}_new ROLE <imp> ADMIN <bob>"),
        ("A2", "CREATE USER {}_new ROLE <bob>"),
        ("A2", "REVOKE <grp> FROM <imp>"),
        ("A2", "REVOKE <grp> FROM <imp> CASCADE"),
        ("A2", "ALTER GROUP <grp> DROP USER <imp>"),
        ("A3", "GRANT <grp> TO <bob> WITH ADMIN OPTION"),
        ("A4", "ALTER ROLE <bob> CREATEDB"),
        ("A4", "ALTER ROLE <bob> CREATEROLE"),
        ("A4", "ALTER ROLE <bob> BYPASSRLS"),
        ("A4", "ALTER USER <bob> REPLICATION"),
        ("A4", "ALTER ROLE <bob> SUPERUSER"),
        ("A4", "GRANT SET ON PARAMETER log_statement TO <bob>"),
        (
            "A4",
            "GRANT ALTER SYSTEM ON PARAMETER log_statement TO <bob> WITH GRANT OPTION",
        ),
        ("A1", "REVOKE \"SET USER\" FROM <imp>"),
        ("A1", "REVOKE \"SET USER\" (<bob>) FROM <imp>"),
        ("A1", "SELECT impersonate.revoke_set_user('<imp>')"),
        ("A5", "GRANT \"SET USER\" TO <bob>"),
        ("A5", "GRANT \"SET USER\" ({}) TO <bob>"),
        (
            "A5",
            "SELECT impersonate.grant_set_user('<bob>', ARRAY['{}']::regrole[])",
        ),
        ("A1", "DELETE FROM impersonate.set_user_grant"),
        ("A1", "TRUNCATE impersonate.set_user_grant"),
        ("A1", "DROP EXTENSION impersonate"),
        ("A1", "DROP SCHEMA impersonate CASCADE"),
        ("S5", "ALTER ROLE <bob> NOLOGIN"),
        ("S5", "ALTER ROLE <bob> VALID UNTIL '2001-01-01'"),
        ("S5", "DROP OWNED BY <bob>; DROP ROLE <bob>"),
        ("A2", "DO $$ BEGIN GRANT {} TO <bob>; END $$"),
        ("A2", "DO $$ BEGIN EXECUTE 'GRANT {} TO <bob>'; END $$"),
        (
            "A2",
            "CREATE FUNCTION <s>.f() RETURNS void LANGUAGE sql AS 'GRANT {} TO <bob>'; SELECT <s>.f()",
        ),
        ("A2", "BEGIN; SAVEPOINT a; GRANT {} TO <bob>"),
        ("A2", "DROP OWNED BY <own>; DROP ROLE <own>; REVOKE <grp> FROM <imp>"),
    ] {
        refused(&stage, &mut session, criterion, &sql.replace("{}", &spare));
    }
    // DROP ROLE of either, when nothing else stands in the way.
    let error = change(
        &stage,
        "REASSIGN OWNED BY <imp> TO postgres; DROP OWNED BY <imp>; DROP ROLE <imp>",
    )
    .unwrap_err();
    assert_eq!(error.code, "55006", "{error:?}");
    session.is("bob");
}

#[test]
fn e2_what_keeps_the_criteria_passes() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let spare = unique("spare");
    for sql in [
        "CREATE ROLE {}",
        "GRANT {} TO <imp>",
        "GRANT {} TO <bob>",
        "REVOKE {} FROM <bob>",
        "REVOKE {} FROM <imp>",
        "GRANT {} TO <imp>, <bob>",
        "REVOKE {} FROM <imp>, <bob>",
        "GRANT {} TO <grp>",
        "REVOKE {} FROM <grp>",
        "CREATE ROLE {}_b ROLE <bob>, <imp>; DROP ROLE {}_b",
        "GRANT {} TO <own>",
        "ALTER ROLE <imp> CREATEDB",
        "ALTER ROLE <bob> CREATEDB",
        "ALTER ROLE <bob> NOCREATEDB; ALTER ROLE <imp> NOCREATEDB",
        "ALTER ROLE <bob> PASSWORD 'x'",
        "ALTER ROLE <bob> SET work_mem = '8MB'",
        "GRANT SET ON PARAMETER log_statement TO <imp>",
        "GRANT SET ON PARAMETER log_statement TO <bob>",
        "REVOKE SET ON PARAMETER log_statement FROM <bob>",
        "GRANT \"SET USER\" (<bob>) TO {}",
        "GRANT \"SET USER\" ({}) TO <imp>",
        "GRANT \"SET USER\" ({}) TO <bob>",
        "REVOKE \"SET USER\" ({}) FROM <bob>",
        "REVOKE \"SET USER\" (<carol>) FROM <imp>",
        "GRANT \"SET USER\" TO <imp>; REVOKE \"SET USER\" (<bob>) FROM <imp>",
        "REVOKE <own> FROM <imp>",
        "DROP ROLE {}",
        "DROP OWNED BY <bob>",
        "REASSIGN OWNED BY <bob> TO <imp>",
    ] {
        accepted(&stage, &mut session, &sql.replace("{}", &spare));
    }
}

#[test]
fn e2_an_ended_impersonation_stands_in_nobodys_way() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    change(&stage, "REVOKE <grp> FROM <imp>").unwrap_err();
    session.ok("SELECT setuser()");
    change(&stage, "REVOKE <grp> FROM <imp>").unwrap();
    session.fails("42501", "SELECT setuser('<bob>')");
}

#[test]
fn e2_the_try_is_on_record_whatever_becomes_of_its_transaction() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    change(&stage, "BEGIN; SAVEPOINT a; REVOKE <grp> FROM <imp>").unwrap_err();
    let found = rows(&stage, session.pid(), "VIOLATION");
    assert_eq!(found.len(), 1, "{found:#?}");
    let row = &found[0];
    assert_eq!(row["session_user_name"], "postgres");
    assert_eq!(row["sqlstate"], "55006");
    assert_eq!(row["detail"]["criterion"], "A2");
    assert_eq!(row["detail"]["pid"], session.pid());
    assert_eq!(row["detail"]["target"], stage.name("bob"));
    assert_eq!(row["detail"]["impersonator"], stage.name("imp"));
    assert!(row["statement"].as_str().unwrap().contains("REVOKE"), "{row}");
}

#[test]
fn e2_an_impersonated_session_cannot_break_its_own_criteria() {
    for on_violation in ["reject", "terminate"] {
        let stage = Stage::new();
        let spare = unique("spare");
        stage.admin(&format!(
            "ALTER ROLE <bob> CREATEROLE; ALTER ROLE <imp> CREATEROLE; CREATE ROLE {spare};
             GRANT {spare} TO <bob> WITH ADMIN OPTION;
             -- From 16 on, nobody but who granted a role revokes it.
             GRANT {spare} TO <imp> WITH ADMIN OPTION GRANTED BY <bob>;
             ALTER ROLE <imp> SET impersonate.on_violation = {on_violation}"
        ));
        let mut session = stage.session();
        session.become_role("bob");
        let error = session.fails("55006", &format!("REVOKE {spare} FROM <imp>"));
        assert!(error.detail.unwrap().contains("A2"));
        session.is("bob");
    }
}

#[test]
fn e2_from_a_database_with_and_without_the_extension() {
    let stage = Stage::alone();
    let mut session = stage.session();
    session.become_role("bob");
    let cluster = stage.cluster();
    let (with, without) = (cluster.database("with"), cluster.empty_database("without"));
    let spare = unique("spare");
    stage.admin(&format!("CREATE ROLE {spare}"));
    for database in [&with.name, &without.name] {
        let mut elsewhere = superuser(&stage, database);
        for (criterion, sql) in [
            ("A2", "GRANT {} TO <bob>"),
            ("A2", "REVOKE <grp> FROM <imp>"),
            ("A4", "ALTER ROLE <bob> CREATEDB"),
            ("S5", "ALTER ROLE <bob> NOLOGIN"),
        ] {
            let error = change_in(&mut elsewhere, &stage, &sql.replace("{}", &spare)).expect_err(sql);
            says_it_all(&stage, &session, criterion, &error);
        }
        for sql in [
            "GRANT {} TO <imp>",
            "GRANT {} TO <bob>",
            "REVOKE {} FROM <bob>, <imp>",
            "REVOKE <own> FROM <imp>",
        ] {
            change_in(&mut elsewhere, &stage, &sql.replace("{}", &spare)).expect(sql);
        }
        stage.admin("GRANT <own> TO <imp>");
        session.is("bob");
    }
    assert_eq!(rows(&stage, session.pid(), "VIOLATION").len(), 8);
}

/// A right that is held through a group hangs on a membership, which any database can revoke (G6).
#[test]
fn e2_a_right_through_a_group_is_seen_from_other_databases() {
    let stage = Stage::new();
    let (desk, lead) = (unique("desk"), unique("lead"));
    stage.admin(&format!(
        "REVOKE \"SET USER\" FROM <imp>; CREATE ROLE {desk}; CREATE ROLE {lead};
         GRANT \"SET USER ANY WITH ROLES\" (<grp>) TO {desk}; GRANT {desk} TO <imp>"
    ));
    let mut session = stage.session();
    session.become_role("bob");
    let without = stage.cluster().empty_database("without");
    let mut elsewhere = superuser(&stage, &without.name);
    for (criterion, sql) in [
        ("A1", "REVOKE {d} FROM <imp>"),
        ("A1", "GRANT {l} TO <imp>; GRANT {l} TO <bob>"),
    ] {
        let sql = sql.replace("{d}", &desk).replace("{l}", &lead);
        let error = change_in(&mut elsewhere, &stage, &sql).expect_err(&sql);
        says_it_all(&stage, &session, criterion, &error);
    }
    // A second way to the same right, of which the other database knows.
    stage.admin("GRANT \"SET USER\" (<bob>) TO <imp>");
    session.is("bob");
    change_in(&mut elsewhere, &stage, &format!("REVOKE {desk} FROM <imp>")).unwrap();
    session.is("bob");
}

#[test]
fn e2_rights_that_other_databases_cannot_be_told_are_not_put_at_risk_from_there() {
    let stage = Stage::new();
    let spare = unique("spare");
    // More than the table of active impersonations holds.
    stage.admin(&format!(
        "CREATE ROLE {spare};
         DO $$ DECLARE list text; BEGIN
             FOR i IN 1..300 LOOP EXECUTE format('CREATE ROLE {spare}_%s', i); END LOOP;
             SELECT string_agg(format('{spare}_%s', i), ',') INTO list FROM generate_series(1, 300) i;
             EXECUTE format('GRANT \"SET USER\" (%s) TO <imp>', list);
             EXECUTE format('GRANT \"SET USER\" (%s) TO <bob>', list);
         END $$"
    ));
    let mut session = stage.session();
    session.become_role("bob");
    let without = stage.cluster().empty_database("without");
    let mut elsewhere = superuser(&stage, &without.name);
    let error = change_in(&mut elsewhere, &stage, &format!("GRANT {spare} TO <imp>")).unwrap_err();
    says_it_all(&stage, &session, "A1", &error);
    change_in(&mut elsewhere, &stage, &format!("CREATE ROLE {spare}_x ROLE {spare}")).unwrap();
    // What is no matter of rights is judged from there as ever.
    for (criterion, sql) in [
        ("A4", "ALTER ROLE <bob> CREATEDB"),
        ("S5", "ALTER ROLE <bob> NOLOGIN"),
        ("A4", "GRANT SET ON PARAMETER log_statement TO <bob>"),
    ] {
        let error = change_in(&mut elsewhere, &stage, sql).expect_err(sql);
        says_it_all(&stage, &session, criterion, &error);
    }
    // From its own database the same is no matter.
    accepted(&stage, &mut session, &format!("GRANT {spare} TO <imp>"));
}

#[test]
fn e2_from_scripts_of_other_extensions_and_from_procedures() {
    let cluster = Cluster::start_new();
    let database = cluster.database("scripts");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE other; GRANT \"SET USER\" (bob) TO alice",
        )
        .unwrap();
    let folder: String = admin
        .query_one("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'", &[])
        .unwrap()
        .get(0);
    let file = |end: &str| std::path::PathBuf::from(format!("{folder}/extension/impersonate_made_by_a_test{end}"));
    std::fs::write(file(".control"), "default_version = '1'\n").unwrap();
    std::fs::write(file("--1.sql"), "GRANT other TO bob;\n").unwrap();
    let mut alice = database.connect("alice");
    alice.batch_execute("SELECT setuser('bob')").unwrap();
    let refused = admin.batch_execute("CREATE EXTENSION impersonate_made_by_a_test");
    std::fs::remove_file(file(".control")).unwrap();
    std::fs::remove_file(file("--1.sql")).unwrap();
    assert_eq!(fails(refused).code, "55006");
    admin
        .batch_execute("CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN COMMIT; GRANT other TO bob; COMMIT; END'")
        .unwrap();
    let error = fails(admin.batch_execute("CALL p()"));
    assert_eq!(error.code, "55006");
    let error = fails(admin.batch_execute("DO 'BEGIN COMMIT; GRANT other TO bob; END'"));
    assert_eq!(error.code, "55006");
    admin
        .batch_execute("DO 'BEGIN GRANT other TO bob; EXCEPTION WHEN object_in_use THEN NULL; END'")
        .unwrap();
    assert!(admin
        .query("SELECT FROM pg_auth_members WHERE member = 'bob'::regrole", &[])
        .unwrap()
        .is_empty());
}

#[test]
fn e2_the_owner_of_the_database_is_in_a_role_too() {
    let stage = Stage::alone();
    let mut session = stage.session();
    session.become_role("bob");
    let error = change(&stage, &format!("ALTER DATABASE {} OWNER TO <bob>", stage.database())).unwrap_err();
    says_it_all(&stage, &session, "A2", &error);
    let mut elsewhere = superuser(&stage, "postgres");
    let error = change_in(
        &mut elsewhere,
        &stage,
        &format!("ALTER DATABASE {} OWNER TO <bob>", stage.database()),
    )
    .unwrap_err();
    says_it_all(&stage, &session, "A2", &error);
    let other = stage.cluster().empty_database("other");
    change(&stage, &format!("ALTER DATABASE {} OWNER TO <bob>", other.name)).unwrap();
    session.is("bob");
    change(&stage, &format!("ALTER DATABASE {} OWNER TO postgres", other.name)).unwrap();
}

#[test]
fn e2_a_superuser_impersonator_loses_nothing_but_superuser() {
    let stage = Stage::new();
    let (spare, boss) = (unique("spare"), unique("boss"));
    stage.admin(&format!("CREATE ROLE {spare}; CREATE ROLE {boss} LOGIN SUPERUSER"));
    let mut raw = RawClient::connect(stage.cluster(), &boss, stage.database());
    assert_eq!(error_in(&raw.simple(&stage.sql("SELECT setuser('<bob>')"))), None);
    change(&stage, &format!("GRANT {spare} TO <bob>")).unwrap();
    change(&stage, "ALTER ROLE <bob> SUPERUSER").unwrap();
    let error = change(&stage, &format!("ALTER ROLE {boss} NOSUPERUSER")).unwrap_err();
    assert_eq!(error.code, "55006", "{error:?}");
}

// ------------------------------------------------------------------------------------------------------- terminate (E3) ---

#[test]
fn e3_terminate_ends_the_connections_in_breach_and_no_others() {
    let stage = Stage::new();
    let spare = unique("spare");
    stage.admin(&format!("CREATE ROLE {spare}"));
    let (mut idle, mut busy, mut open) = (stage.session(), stage.session(), stage.session());
    let (mut other, mut plain) = (stage.session(), stage.session());
    for session in [&mut idle, &mut busy, &mut open] {
        session.become_role("bob");
    }
    other.become_role("carol");
    busy.raw.query("SELECT pg_sleep(60)");
    busy.raw.flush();
    open.ok("BEGIN; CREATE TABLE <s>.half_done ()");
    change(
        &stage,
        &format!("SET impersonate.on_violation = terminate; GRANT {spare} TO <bob>"),
    )
    .unwrap();
    assert_eq!(
        stage.look("SELECT count(*)::text FROM impersonate.active WHERE target = '<bob>'")[0][0].as_deref(),
        Some("0")
    );
    for session in [&mut idle, &mut busy, &mut open] {
        let error = fatal(&mut session.raw);
        assert_eq!(error.code, "57P01", "{error:?}");
        let detail = error.detail.expect("the reason");
        for word in ["A2", &stage.name("imp"), &stage.name("bob"), &spare] {
            assert!(detail.contains(word), "{word} is missing from {detail}");
        }
        let found = rows(&stage, session.pid(), "TERMINATED");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0]["user_name"], stage.name("bob"));
        assert_eq!(found[0]["session_user_name"], stage.name("imp"));
        assert_eq!(found[0]["pid"], session.pid());
        assert_eq!(found[0]["detail"]["criterion"], "A2");
        assert_eq!(found[0]["detail"]["by"], "postgres");
        assert_eq!(stage.history(session.pid()), ["+bob", "-bob terminated"]);
    }
    other.is("carol");
    plain.is_itself();
    assert!(stage
        .look("SELECT 1 FROM pg_class WHERE relname = 'half_done'")
        .is_empty());
}

#[test]
fn e3_only_a_superuser_sets_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.fails("42501", "SET impersonate.on_violation = terminate");
    stage.admin("SET impersonate.on_violation = terminate; RESET impersonate.on_violation");
    assert_eq!(
        change(&stage, "SET impersonate.on_violation = perhaps")
            .unwrap_err()
            .code,
        "22023"
    );
}

#[test]
fn e3_a_statement_that_fails_afterwards_has_still_ended_them() {
    let stage = Stage::new();
    let spare = unique("spare");
    stage.admin(&format!("CREATE ROLE {spare}"));
    let mut session = stage.session();
    session.become_role("bob");
    change(
        &stage,
        &format!("SET impersonate.on_violation = terminate; BEGIN; GRANT {spare} TO <bob>; ROLLBACK"),
    )
    .unwrap();
    fatal(&mut session.raw);
    // Undone: the next one may.
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
}

/// A connection that cannot be ended keeps the change from taking effect.
#[test]
fn e3_the_wait_is_bounded() {
    let stage = Stage::new();
    let spare = unique("spare");
    stage.admin(&format!("CREATE ROLE {spare}"));
    let mut session = stage.session();
    session.become_role("bob");
    assert!(signal("STOP", session.pid()));
    let begun = Instant::now();
    let result = change(
        &stage,
        &format!("SET impersonate.on_violation = terminate; GRANT {spare} TO <bob>"),
    );
    assert!(signal("CONT", session.pid()));
    let error = result.unwrap_err();
    assert_eq!(error.code, "55006", "{error:?}");
    assert!(begun.elapsed() > Duration::from_secs(5) && begun.elapsed() < Duration::from_secs(30));
    assert!(error.message.contains(&session.pid().to_string()), "{error:?}");
    assert!(stage
        .look("SELECT 1 FROM pg_auth_members WHERE member = '<bob>'::regrole AND roleid <> '<grp>'::regrole")
        .is_empty());
    fatal(&mut session.raw);
}

// ----------------------------------------------------------------------------------------------- bypassing statements (E5) ---

/// For tests that bring impersonations into breach by what bypasses statements. One at a time, and where no other test
/// changes roles: a breach that comes about while a statement runs passes for that statement's.
fn breached() -> (Stage, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    static PLACE: OnceLock<(&'static Cluster, String)> = OnceLock::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (cluster, database) = PLACE.get_or_init(|| {
        let cluster = stage::lasting(Cluster::start_new());
        (cluster, cluster.database("breached").name.clone())
    });
    (Stage::in_cluster(cluster, database), alone)
}

/// The next statement ends the connection, with the reason.
#[track_caller]
fn ends_at_next(stage: &Stage, session: &mut Session, criterion: &str) {
    let answer = {
        session.raw.query("SELECT current_user");
        session.raw.flush();
        session.raw.read_to_end()
    };
    let error = error_in(&answer).expect("an error");
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P01"),
        "{error:?}"
    );
    assert!(
        error.detail.as_deref().unwrap_or_default().contains(criterion),
        "{error:?}"
    );
    assert!(
        !answer.iter().any(|message| matches!(message, Message::DataRow(_))),
        "it ran"
    );
    let found = rows(stage, session.pid(), "TERMINATED");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["detail"]["criterion"], criterion);
    assert_eq!(stage.history(session.pid()).last().unwrap(), "-bob terminated");
}

#[test]
fn e5_a_catalog_edited_by_hand_is_caught_before_the_next_statement() {
    for (criterion, sql) in [
        ("A4", "UPDATE pg_authid SET rolcreatedb = true WHERE rolname = '<bob>'"),
        ("S5", "UPDATE pg_authid SET rolcanlogin = false WHERE rolname = '<bob>'"),
        ("A2", "DELETE FROM pg_auth_members WHERE member = '<imp>'::regrole"),
        (
            "A2",
            "UPDATE pg_auth_members SET member = '<bob>'::regrole WHERE roleid = '<own>'::regrole AND member = '<imp>'::regrole",
        ),
        ("S5", "DELETE FROM pg_authid WHERE rolname = '<bob>'"),
        ("A1", "SET session_replication_role = replica; DELETE FROM impersonate.set_user_grant WHERE grantee = '<imp>'::regrole"),
        ("A1", "DELETE FROM pg_shseclabel WHERE objoid = '<imp>'::regrole; UPDATE pg_authid SET rolconnlimit = 7 WHERE rolname = '<imp>'"),
    ] {
        for block in ["", "BEGIN"] {
            let (stage, _alone) = breached();
            let mut session = stage.session();
            session.become_role("bob");
            if !block.is_empty() {
                session.ok(block);
            }
            match change(&stage, sql) {
                Ok(()) => ends_at_next(&stage, &mut session, criterion),
                // The rights table is guarded even so.
                Err(error) => assert!(sql.contains("set_user_grant") && error.code == "55006", "{sql}: {error:?}"),
            }
        }
    }
}

/// What others broke by hand is theirs to answer for.
#[test]
fn e5_an_impersonation_that_is_in_breach_already_stands_in_nobodys_way() {
    let (stage, _alone) = breached();
    let (mut session, mut other) = (stage.session(), stage.session());
    session.become_role("bob");
    other.become_role("carol");
    change(
        &stage,
        "UPDATE pg_authid SET rolcreatedb = true WHERE rolname = '<bob>'",
    )
    .unwrap();
    let spare = unique("spare");
    change(
        &stage,
        &format!("CREATE ROLE {spare}; GRANT {spare} TO <own>; BEGIN; DROP ROLE {spare}; COMMIT"),
    )
    .unwrap();
    // But not the others.
    change(&stage, "ALTER ROLE <carol> CREATEROLE").unwrap_err();
    ends_at_next(&stage, &mut session, "A4");
    other.is("carol");
}

#[test]
fn e5_an_expiring_target_is_caught_before_the_next_statement() {
    let (stage, _alone) = breached();
    stage.admin("DO $$ BEGIN EXECUTE format('ALTER ROLE <bob> VALID UNTIL %L', clock_timestamp() + '2 s'); END $$");
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
    std::thread::sleep(Duration::from_millis(2100));
    ends_at_next(&stage, &mut session, "S5");
}

#[test]
fn e5_an_end_that_the_target_is_given_meanwhile_counts() {
    let (stage, _alone) = breached();
    let mut session = stage.session();
    session.become_role("bob");
    stage.admin("DO $$ BEGIN EXECUTE format('ALTER ROLE <bob> VALID UNTIL %L', clock_timestamp() + '2 s'); END $$");
    session.is("bob");
    std::thread::sleep(Duration::from_millis(2100));
    ends_at_next(&stage, &mut session, "S5");
}

/// Judging takes time, and whoever impersonates says how much a statement may take.
#[test]
fn e5_a_judgement_that_is_cut_short_is_made_up_for() {
    let (stage, _alone) = breached();
    for statement in ["SELECT 1", "SELECT setuser('<carol>')"] {
        let mut session = stage.session();
        session.become_role("bob");
        session.ok("SET statement_timeout = '300 ms'");
        let mut keeper = superuser(&stage, stage.database());
        keeper
            .batch_execute("BEGIN; LOCK TABLE impersonate.set_user_grant IN ACCESS EXCLUSIVE MODE")
            .unwrap();
        change(
            &stage,
            "UPDATE pg_authid SET rolcreatedb = true WHERE rolname = '<bob>'",
        )
        .unwrap();
        session.fails("57014", statement);
        keeper.batch_execute("ROLLBACK").unwrap();
        ends_at_next(&stage, &mut session, "A4");
        change(
            &stage,
            "UPDATE pg_authid SET rolcreatedb = false WHERE rolname = '<bob>'",
        )
        .unwrap();
    }
}

#[test]
fn e5_what_keeps_the_criteria_is_judged_and_goes_on() {
    let (stage, _alone) = breached();
    let mut session = stage.session();
    session.become_role("bob");
    let judged = |stage: &Stage| stage.look("SELECT judged_at::text FROM impersonate.active WHERE target = '<bob>'");
    let before = judged(&stage);
    change(&stage, "UPDATE pg_authid SET rolconnlimit = 7 WHERE rolname = '<bob>'").unwrap();
    session.is("bob");
    assert_ne!(judged(&stage), before);
}

#[test]
fn e5_a_failed_block_can_be_left() {
    let (stage, _alone) = breached();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN");
    session.fails("22012", "SELECT 1/0");
    change(
        &stage,
        "UPDATE pg_authid SET rolcreatedb = true WHERE rolname = '<bob>'",
    )
    .unwrap();
    session.ok("ROLLBACK");
    ends_at_next(&stage, &mut session, "A4");
}

// ------------------------------------------------------------------------------------------------------- administrators ---

#[test]
fn e6_terminate_is_for_superusers_and_pg_signal_backend() {
    let stage = Stage::new();
    let (guard, nobody) = (unique("guard"), unique("nobody"));
    stage.admin(&format!(
        "CREATE ROLE {guard} LOGIN; CREATE ROLE {nobody} LOGIN; GRANT pg_signal_backend TO {guard};
         GRANT USAGE ON SCHEMA impersonate TO {guard}, {nobody}"
    ));
    let mut session = stage.session();
    session.become_role("bob");
    let call = format!("SELECT impersonate.terminate({})", session.pid());
    let mut other = stage.cluster().connect(&nobody, stage.database());
    assert_eq!(fails(other.simple_query(&call)).code, "42501");
    assert_eq!(session.fails("42501", &call).code, "42501");
    session.is("bob");
    let mut guard_session = stage.cluster().connect(&guard, stage.database());
    let ended: bool = guard_session.query_one(&call, &[]).unwrap().get(0);
    assert!(ended);
    let error = fatal(&mut session.raw);
    assert!(error.detail.unwrap().contains(&guard));
    let found = rows(&stage, session.pid(), "TERMINATED");
    assert_eq!(found[0]["detail"]["by"], guard);
    // A superuser's connection is for superusers; one that doesn't impersonate is none of ours.
    let mut boss = RawClient::connect(stage.cluster(), "postgres", stage.database());
    assert_eq!(error_in(&boss.simple(&stage.sql("SELECT setuser('<carol>')"))), None);
    let call = format!("SELECT impersonate.terminate({})", boss.pid());
    assert_eq!(fails(guard_session.simple_query(&call)).code, "42501");
    assert_eq!(error_in(&boss.simple("SELECT setuser()")), None);
    let ended: bool = guard_session.query_one(&call, &[]).unwrap().get(0);
    assert!(!ended);
    assert_eq!(error_in(&boss.simple("SELECT 1")), None);
    // Who logged in as a superuser is one here, whoever the session's user is now.
    for sql in ["SET SESSION AUTHORIZATION <imp>", "SELECT setuser('<bob>')"] {
        assert_eq!(error_in(&boss.simple(&stage.sql(sql))), None);
    }
    assert_eq!(fails(guard_session.simple_query(&call)).code, "42501");
    for sql in ["SELECT setuser()", "RESET SESSION AUTHORIZATION", "SELECT 1"] {
        assert_eq!(error_in(&boss.simple(sql)), None);
    }
    let none: Option<bool> = guard_session
        .query_one("SELECT impersonate.terminate(NULL)", &[])
        .unwrap()
        .get(0);
    assert_eq!(none, None);
    assert_eq!(
        fails(guard_session.simple_query("SELECT impersonate.terminate(1, -1)")).code,
        "22003"
    );
}

#[test]
fn e1_active_tells_what_an_incident_needs() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT 1");
    let row = &stage.look(&format!(
        "SELECT last_statement_start > since - interval '1 s', judged, judged_at >= since, how_to_end
           FROM impersonate.active WHERE pid = {}",
        session.pid()
    ))[0];
    let end = format!("SELECT impersonate.terminate({});", session.pid());
    assert_eq!(row, &[Some("t".into()), Some("t".into()), Some("t".into()), Some(end)]);
}

// ------------------------------------------------------------------------------------------------------ two databases (E4) ---

/// A switch and a role change at once, in two databases: in both orders, committed and undone.
#[test]
fn e4_across_databases_one_sees_the_other() {
    let stage = Stage::new();
    let elsewhere = stage.cluster().empty_database("elsewhere");
    let spare = unique("spare");
    stage.admin(&format!("CREATE ROLE {spare}"));
    for (sql, undo) in [
        (format!("GRANT {spare} TO <bob>"), format!("REVOKE {spare} FROM <bob>")),
        ("REVOKE <grp> FROM <imp>".to_owned(), "GRANT <grp> TO <imp>".to_owned()),
        (
            "ALTER ROLE <bob> CREATEROLE".to_owned(),
            "ALTER ROLE <bob> NOCREATEROLE".to_owned(),
        ),
        (
            "ALTER ROLE <bob> NOLOGIN".to_owned(),
            "ALTER ROLE <bob> LOGIN".to_owned(),
        ),
    ] {
        for end in ["COMMIT", "ROLLBACK"] {
            // The change first: the switch waits for it.
            let mut changer = superuser(&stage, &elsewhere.name);
            change_in(&mut changer, &stage, &format!("BEGIN; {sql}")).unwrap();
            let mut session = stage.session();
            session.raw.query(&stage.sql("SELECT setuser('<bob>')"));
            session.raw.flush();
            let waiting = format!(
                "SELECT 1 FROM pg_stat_activity WHERE pid = {} AND wait_event_type = 'Lock'",
                session.pid()
            );
            wait_until("the switch waits", || !stage.look(&waiting).is_empty());
            change_in(&mut changer, &stage, end).unwrap();
            let refused = error_in(&session.raw.read_until_ready());
            assert_eq!(
                refused.map(|error| error.code),
                (end == "COMMIT").then(|| "42501".to_owned()),
                "{sql}; {end}"
            );
            if end == "COMMIT" {
                change(&stage, &undo).unwrap();
                session.ok("SELECT setuser('<bob>')");
            }
            // The switch first, in a transaction of its own or a longer one: the change fails at once.
            assert!(change_in(&mut changer, &stage, &sql).is_err());
            session.ok("SELECT setuser()");
            session.ok("BEGIN; SELECT setuser('<bob>')");
            assert!(change_in(&mut changer, &stage, &sql).is_err());
            session.ok(end);
            assert_eq!(change_in(&mut changer, &stage, &sql).is_err(), end == "COMMIT");
            if end == "ROLLBACK" {
                change(&stage, &undo).unwrap();
            }
        }
    }
}

/// Nobody waits for an impersonation to end, and switches don't wait for each other.
#[test]
fn e4_an_impersonation_keeps_nobody_waiting() {
    let stage = Stage::new();
    let (mut one, mut two) = (stage.session(), stage.session());
    one.ok("BEGIN; SELECT setuser('<bob>', local => true)");
    two.ok("BEGIN; SELECT setuser('<bob>')");
    change(
        &stage,
        "SET lock_timeout = '1 s'; GRANT <carol> TO <imp>; REVOKE <carol> FROM <imp>",
    )
    .unwrap();
    one.is("bob");
    two.is("bob");
    assert!(within(Duration::from_secs(1), || {
        stage
            .look("SELECT 1 FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_authid'::regclass AND objid = 0 AND database = 0")
            .is_empty()
    }));
}

// -------------------------------------------------------------------------------------------------------- objects (A6) ---

/// A session of `<imp>` as `<bob>`, with objects compared too.
fn judged_in_full(stage: &Stage) -> Session<'_> {
    stage.admin("ALTER ROLE <imp> SET impersonate.criteria = full");
    let mut session = stage.session();
    session.become_role("bob");
    session
}

#[test]
fn e2_with_full_every_statement_that_gives_the_target_more_to_objects_fails() {
    let stage = Stage::alone();
    stage.admin(
        "CREATE TABLE <s>.t (a int, b int); CREATE SEQUENCE <s>.q; CREATE FUNCTION <s>.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
         REVOKE ALL ON FUNCTION <s>.f() FROM PUBLIC; SELECT lo_create(4711);
         GRANT SELECT ON <s>.t TO <imp>; GRANT SELECT ON <s>.t TO <bob>; GRANT INSERT ON <s>.t TO <grp>;
         GRANT INSERT (a) ON <s>.t TO <bob>",
    );
    let mut session = judged_in_full(&stage);
    for sql in [
        "GRANT UPDATE ON <s>.t TO <bob>",
        "GRANT UPDATE (b) ON <s>.t TO <bob>",
        "GRANT SELECT ON <s>.t TO <bob> WITH GRANT OPTION",
        "REVOKE SELECT ON <s>.t FROM <imp>",
        "GRANT USAGE ON SEQUENCE <s>.q TO <bob>",
        "GRANT EXECUTE ON FUNCTION <s>.f() TO <bob>",
        "GRANT SELECT ON LARGE OBJECT 4711 TO <bob>",
        "ALTER TABLE <s>.t OWNER TO <bob>",
        "CREATE SCHEMA AUTHORIZATION <bob>",
        "GRANT CREATE ON DATABASE {} TO <bob>",
        "ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO <bob>; CREATE TABLE <s>.u ()",
        "SET ROLE <bob>; CREATE TABLE <s>.v ()",
        "SET ROLE <bob>; SELECT lo_create(4712)",
        "DO $$ BEGIN EXECUTE 'GRANT UPDATE ON <s>.t TO <bob>'; END $$",
        // By what the impersonator could do it no more, in whatever way it is taken.
        "REVOKE INSERT ON <s>.t FROM <grp>",
    ] {
        let sql = sql.replace("{}", stage.database());
        let error = change(&stage, &sql).expect_err(&sql);
        says_it_all(&stage, &session, "A6", &error);
        session.is("bob");
    }
    for sql in [
        "GRANT UPDATE ON <s>.t TO <imp>; GRANT UPDATE ON <s>.t TO <bob>",
        "GRANT UPDATE ON <s>.t TO <carol>",
        "GRANT UPDATE ON <s>.t TO PUBLIC",
        "CREATE TABLE <s>.w ()",
        "DROP TABLE <s>.w",
    ] {
        accepted(&stage, &mut session, sql);
    }
    // Its own temporary tables are nobody's.
    session.ok("CREATE TEMPORARY TABLE mine (a int)");
    session.is("bob");
    let error = session.fails("55006", "CREATE TABLE <s>.of_bob ()");
    assert!(error.detail.unwrap().contains("A6"));
    session.is("bob");
}

#[test]
fn e2_with_full_another_database_may_not_take_what_might_matter() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.t (); GRANT SELECT ON <s>.t TO <own>, <bob>");
    let mut session = judged_in_full(&stage);
    let without = stage.cluster().empty_database("without");
    let mut elsewhere = superuser(&stage, &without.name);
    let error = change_in(&mut elsewhere, &stage, "REVOKE <own> FROM <imp>").unwrap_err();
    says_it_all(&stage, &session, "A6", &error);
    change_in(
        &mut elsewhere,
        &stage,
        "CREATE TABLE public.mine (); GRANT SELECT ON mine TO <bob>",
    )
    .unwrap();
    change_in(&mut elsewhere, &stage, "GRANT <carol> TO <imp>").unwrap();
    session.is("bob");
    assert_eq!(change(&stage, "REVOKE <own> FROM <imp>").unwrap_err().code, "55006");
    change(&stage, "REVOKE SELECT ON <s>.t FROM <bob>; REVOKE <own> FROM <imp>").unwrap();
    session.is("bob");
}

#[test]
fn e5_with_full_objects_changed_by_hand_end_it_and_block_nobody() {
    let (stage, _alone) = breached();
    stage.admin("CREATE TABLE <s>.t (); GRANT SELECT ON <s>.t TO <imp>; GRANT SELECT ON <s>.t TO <bob>");
    let mut session = judged_in_full(&stage);
    change(&stage, "UPDATE pg_class SET relacl = NULL WHERE relname = 't'").unwrap();
    change(
        &stage,
        "CREATE TABLE <s>.other (); GRANT SELECT ON <s>.other TO <carol>",
    )
    .unwrap();
    session.is("bob");
    change(
        &stage,
        "UPDATE pg_class SET relacl = ARRAY['postgres=arwdDxt/postgres', '<bob>=r/postgres']::aclitem[] WHERE relname = 't'",
    )
    .unwrap();
    change(
        &stage,
        "CREATE TABLE <s>.another (); GRANT SELECT ON <s>.another TO <carol>",
    )
    .unwrap();
    ends_at_next(&stage, &mut session, "A6");
}
