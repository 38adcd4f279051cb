//! `impersonate.capture_set_role` (D2): tools that know SET ROLE alone.

mod stage;

use stage::{Session, Stage};

/// The settings are in force from the next session on.
fn captured(stage: &Stage) -> Session<'_> {
    stage.admin("ALTER ROLE <imp> SET impersonate.capture_set_role = on");
    stage.session()
}

fn events(stage: &Stage, pid: i32) -> Vec<String> {
    stage.admin("SELECT impersonate.audit_sync()");
    let rows = stage.look(&format!(
        "SELECT event || ' ' || user_name || ' ' || coalesce(command_tag, '-') || ' ' || coalesce(statement, '-')
           FROM impersonate.audit WHERE pid = {pid} AND event <> 'STATEMENT' ORDER BY event_id"
    ));
    rows.into_iter().filter_map(|row| row[0].clone()).collect()
}

#[test]
fn d2_set_role_is_setuser_for_logins_with_rights() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    // As Metabase does before each query, and after.
    session.ok("SET ROLE \"<bob>\"");
    session.is("bob");
    session.ok("SET ROLE \"<carol>\"");
    session.is("carol");
    session.ok("SET ROLE NONE");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    session.ok("SET ROLE <bob>");
    session.ok("RESET ROLE");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    let (bob, carol) = (stage.name("bob"), stage.name("carol"));
    assert_eq!(
        events(&stage, session.pid()),
        [
            format!("SETUSER {bob} SET SET ROLE \"{bob}\""),
            format!("RESETUSER {bob} - -"),
            format!("SETUSER {carol} SET SET ROLE \"{carol}\""),
            format!("RESETUSER {carol} SET SET ROLE NONE"),
            format!("SETUSER {bob} SET SET ROLE {bob}"),
            format!("RESETUSER {bob} RESET RESET ROLE"),
        ]
    );
}

#[test]
fn d2_session_authorization_too_and_in_a_transaction() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    // As pgAdmin and DBeaver do.
    session.ok("SET SESSION AUTHORIZATION <bob>");
    session.is("bob");
    session.ok("RESET SESSION AUTHORIZATION");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    session.ok("BEGIN");
    session.ok("SET LOCAL ROLE <bob>");
    session.is("bob");
    session.ok("COMMIT");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    session.ok("BEGIN");
    session.ok("SET ROLE <bob>");
    session.ok("ROLLBACK");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    // As PostgREST does.
    session.ok("BEGIN");
    session.ok("SELECT set_config('role', '<bob>', true), set_config('request.jwt.claims', '{}', true)");
    session.is("bob");
    assert_eq!(session.value("SELECT current_setting('request.jwt.claims')"), "{}");
    session.ok("COMMIT");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
}

#[test]
fn d2_the_criteria_count_and_groups_are_left_as_they_are() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> CREATEDB");
    let mut session = captured(&stage);
    let error = session.fails("42501", "SET ROLE <carol>");
    assert!(error.detail.unwrap_or_default().contains("Criterion A4"));
    session.fails("42704", "SET ROLE nobody_of_that_name");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    // A group that one is a member of.
    session.ok("SET ROLE <own>");
    assert_eq!(session.value("SELECT current_user"), stage.name("own"));
    session.ok("RESET ROLE");
    session.ok("SET ROLE <bob>");
    session.ok("SET ROLE <grp>");
    assert_eq!(session.value("SELECT current_user"), stage.name("grp"));
    session.ok("RESET ROLE");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
}

#[test]
fn d2_code_captures_nothing() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    session.fails("42501", "DO $$ BEGIN SET ROLE <bob>; END $$");
    session.fails(
        "42501",
        "DO $$ BEGIN PERFORM set_config('role', '<bob>', false); END $$",
    );
    session.ok("SET ROLE <bob>");
    session.ok("DO $$ BEGIN RESET ROLE; SET ROLE NONE; END $$");
    session.is("bob");
    session.fails("42501", "DO $$ BEGIN SET ROLE <carol>; END $$");
    session.is("bob");
}

#[test]
fn d2_others_and_off_are_as_ever() {
    let stage = Stage::new();
    stage.admin("GRANT <bob> TO <imp>");
    let mut session = stage.session();
    session.ok("SET ROLE <bob>");
    assert_eq!(session.value("SHOW impersonate.target"), "");
    session.ok("RESET ROLE");
    stage.admin("REVOKE \"SET USER\" FROM <imp>");
    let mut session = captured(&stage);
    session.ok("SET ROLE <bob>");
    assert_eq!(session.value("SHOW impersonate.target"), "");
}

/// PostgREST's roles cannot log in, and its own is usually a member of them.
#[test]
fn d2_roles_without_login_and_without_membership_are_acted_as() {
    let stage = Stage::new();
    stage.admin(
        "ALTER ROLE <carol> NOLOGIN; ALTER ROLE <imp> NOINHERIT; ALTER ROLE <imp> SET impersonate.require_login = off",
    );
    let mut session = captured(&stage);
    session.ok("BEGIN");
    session.ok("SELECT set_config('role', '<carol>', true), set_config('request.jwt.claims', '{}', true)");
    session.is("carol");
    session.ok("COMMIT");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    let (carol, pid) = (stage.name("carol"), session.pid());
    stage.admin("SELECT impersonate.audit_sync()");
    let ended = stage.look(&format!(
        "SELECT user_name, detail->>'cause' FROM impersonate.audit WHERE pid = {pid} AND event = 'RESETUSER'"
    ));
    assert_eq!(ended, [[Some(carol), Some("end of transaction".to_owned())]]);
}
