//! The switch: S1, S2, S3, S5, S6, S10, and E1's table of active impersonations.
//!
//! After each step a session is compared with all that knows who it is: see `stage`.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, tags_in, Message, RawClient, Transaction};
use impersonate_server_tests::{fails_with, shared, wait_until, Cluster};
use stage::{lasting, Protocol, Session, Stage, PROTOCOLS};

// ------------------------------------------------------------------------------------------------ S1, S2: the calls ---

#[test]
fn s1_setuser_starts_and_ends_and_returns_the_role_in_force() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.is_itself();
    assert_eq!(session.value("SELECT setuser('<bob>')"), stage.name("bob"));
    session.is("bob");
    assert_eq!(session.value("SELECT setuser()"), stage.name("imp"));
    session.is_itself();
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob asked"]);
}

#[test]
fn s1_null_ends_as_no_argument_does() {
    let stage = Stage::new();
    let mut session = stage.session();
    for call in [
        "setuser(NULL)",
        "setuser(target => NULL)",
        "setuser(NULL::text, NULL, NULL, NULL, NULL, NULL)",
    ] {
        session.become_role("bob");
        assert_eq!(session.value(&format!("SELECT {call}")), stage.name("imp"), "{call}");
        session.is_itself();
    }
}

#[test]
fn s1_ending_what_has_not_begun_changes_nothing() {
    let stage = Stage::new();
    let mut session = stage.session();
    assert_eq!(session.value("SELECT setuser()"), stage.name("imp"));
    session.is_itself();
    session.ok("SET ROLE <grp>");
    assert_eq!(session.value("SELECT setuser()"), stage.name("grp"));
    session.is_itself_in_role("grp");
    assert!(stage.history(session.pid()).is_empty());
}

#[test]
fn s1_setuser_is_found_without_a_search_path_and_before_one() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.setuser() RETURNS text LANGUAGE sql AS 'SELECT ''mine''';
         CREATE FUNCTION <s>.setuser(text) RETURNS text LANGUAGE sql AS 'SELECT ''mine''';
         CREATE FUNCTION <s>.setuser(text, text, boolean, text, boolean, boolean) RETURNS text
             LANGUAGE sql AS 'SELECT ''mine'''",
    );
    let mut session = stage.session();
    for path in ["''", "<s>", "\"$user\", public, <s>"] {
        session.ok(&format!("SET search_path = {path}"));
        session.become_role("bob");
        session.is("bob");
        session.ok("SELECT setuser('<carol>', NULL, false, NULL, false, false)");
        session.is("carol");
        session.ok("SELECT setuser()");
        session.is_itself();
    }
}

/// A search path that names pg_catalog after another schema: the target's code can set one, and the client would take
/// the answer of a function for the end of the impersonation.
#[test]
fn s1_setuser_cannot_be_shadowed() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.setuser() RETURNS text LANGUAGE sql AS 'SELECT ''<imp>''';
         CREATE FUNCTION <s>.setuser(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
         CREATE FUNCTION <s>.f() RETURNS text LANGUAGE sql AS
             'SELECT pg_catalog.set_config(''search_path'', ''<s>, pg_catalog'', false)'",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT <s>.f()");
    for protocol in PROTOCOLS {
        for (call, role) in [("setuser('<carol>')", "carol"), ("setuser()", "imp")] {
            let answer = session.send(protocol, &format!("SELECT {call}"));
            match error_in(&answer) {
                Some(_) => session.is("bob"),
                None if role == "imp" => session.is_itself(),
                None => session.is(role),
            }
        }
    }
    session.ok("SELECT pg_catalog.setuser()");
    session.is_itself();
}

#[test]
fn s2_a_switch_over_is_flat_and_one_call_returns() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
    session.become_role("carol");
    session.is("carol");
    session.become_role("bob");
    session.is("bob");
    assert_eq!(session.value("SELECT setuser()"), stage.name("imp"));
    session.is_itself();
    assert_eq!(
        stage.history(session.pid()),
        [
            "+bob",
            "-bob switched",
            "+carol",
            "-carol switched",
            "+bob",
            "-bob asked"
        ]
    );
}

#[test]
fn s3_a_rollback_of_all_tells_of_nothing_that_lay_between() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>')");
    session.ok("SAVEPOINT a; SELECT setuser()");
    session.ok("ROLLBACK");
    session.is_itself();
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob asked"]);
    // But what was before the transaction does come back.
    session.become_role("carol");
    session.ok("BEGIN; SELECT setuser('<bob>')");
    session.ok("SAVEPOINT a; SELECT setuser()");
    session.ok("ROLLBACK");
    session.is("carol");
    assert_eq!(
        stage.history(session.pid())[2..],
        ["+carol", "-carol switched", "+bob", "-bob asked", "+carol"]
    );
}

#[test]
fn s2_a_switch_over_is_judged_as_if_made_from_the_start() {
    let stage = Stage::new();
    let mut session = stage.session_of("bob");
    session.fails("42501", "SELECT setuser('<carol>')");
    let mut session = stage.session();
    session.become_role("bob");
    session.become_role("carol");
    session.is("carol");
}

#[test]
fn s1_a_switch_to_the_same_target_is_a_new_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.become_role("bob");
    session.is("bob");
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob switched", "+bob"]);
    let ids: Vec<_> = stage
        .audit(session.pid(), &["SETUSER"])
        .into_iter()
        .map(|row| row.id)
        .collect();
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn s1_the_reason_is_in_the_table_and_in_the_audit() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>', reason => 'INC-4711')");
    session.is("bob");
    let active = stage.look(&format!(
        "SELECT reason FROM impersonate.active WHERE pid = {}",
        session.pid()
    ));
    assert_eq!(active, [[Some("INC-4711".to_owned())]]);
    let audited = stage.audit(session.pid(), &["SETUSER"]);
    assert_eq!(audited[0].reason.as_deref(), Some("INC-4711"));
}

#[test]
fn s5_oneself_is_always_allowed() {
    let stage = Stage::new();
    let mut session = stage.session_of("carol");
    session.become_role("carol");
    session.is("carol");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s5_oneself_is_allowed_from_inside_an_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.become_role("imp");
    session.is("imp");
    session.ok("SELECT setuser()");
    session.is_itself();
}

// ---------------------------------------------------------------------------------------------- S5, S6: whom, and no ---

/// S6: nothing changed, and the refusal is in the audit.
#[track_caller]
fn refused(session: &mut Session, target: &str, sqlstate: &str) -> impersonate_server_tests::ServerError {
    let before = session.says();
    let error = session.fails(sqlstate, &format!("SELECT setuser('{target}')"));
    assert_eq!(session.says(), before);
    let denied = session.stage.audit(session.pid(), &["DENIED"]);
    let last = denied.last().expect("a refusal is in the audit");
    assert_eq!(last.sqlstate, sqlstate, "{last:?}");
    assert_eq!(
        last.statement,
        Some(session.stage.sql(&format!("SELECT setuser('{target}')")))
    );
    error
}

#[test]
fn s6_without_a_right_it_is_refused_with_the_cure() {
    let stage = Stage::new();
    let mut session = stage.session_of("carol");
    let error = refused(&mut session, "<bob>", "42501");
    session.is_itself();
    assert!(error.detail.is_some(), "{error:?}");
    let hint = error.hint.expect("a hint");
    assert!(hint.contains("GRANT"), "{hint}");
    // The hint is a statement that cures.
    stage.admin(&hint);
    let error = session.send(Protocol::Simple, "SELECT setuser('<bob>')");
    if let Some(error) = error_in(&error) {
        stage.admin(&error.hint.expect("a hint"));
        session.become_role("bob");
    }
    session.is("bob");
}

#[test]
fn s6_a_refusal_inside_an_impersonation_leaves_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    refused(&mut session, "<grp>", "42501");
    session.is("bob");
    refused(&mut session, "postgres", "42501");
    session.is("bob");
}

#[test]
fn s6_a_refusal_inside_a_transaction_is_undone_as_any_error() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.ok("SAVEPOINT a");
    session.fails("42501", "SELECT setuser('postgres')");
    session.told(Some("bob"));
    session.ok("ROLLBACK TO a");
    session.is("bob");
    session.fails("42501", "SELECT setuser('postgres')");
    session.ok("ROLLBACK");
    session.is_itself();
}

#[test]
fn s6_a_later_attempt_is_judged_afresh() {
    let stage = Stage::new();
    let mut session = stage.session();
    stage.admin("REVOKE \"SET USER\" (<bob>) FROM <imp>");
    refused(&mut session, "<bob>", "42501");
    stage.admin("GRANT \"SET USER\" (<bob>) TO <imp>");
    session.become_role("bob");
    session.is("bob");
}

#[test]
fn s6_a_role_that_does_not_exist_is_refused() {
    let stage = Stage::new();
    let mut session = stage.session();
    refused(&mut session, "no such role", "42704");
    session.is_itself();
}

#[test]
fn s5_a_role_without_login_is_refused_unless_require_login_is_off() {
    let stage = Stage::new();
    stage.admin("GRANT \"SET USER\" (<grp>) TO <imp>");
    let mut session = stage.session();
    refused(&mut session, "<grp>", "42501");
    session.is_itself();
    session.fails("42501", "SET impersonate.require_login = off");
    stage.admin("ALTER ROLE <imp> SET impersonate.require_login = off");
    let mut session = stage.session();
    session.become_role("grp");
    session.is("grp");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s5_an_expired_role_is_refused() {
    let stage = Stage::new();
    let mut session = stage.session();
    stage.admin("ALTER ROLE <bob> VALID UNTIL '2001-01-01'");
    refused(&mut session, "<bob>", "42501");
    session.is_itself();
    stage.admin("ALTER ROLE <bob> VALID UNTIL '2999-01-01'");
    session.become_role("bob");
    session.ok("SELECT setuser()");
    stage.admin("ALTER ROLE <bob> VALID UNTIL 'infinity'");
    session.become_role("bob");
    session.is("bob");
}

#[test]
fn s5_a_superuser_needs_no_right_but_a_target_that_can_log_in() {
    let stage = Stage::new();
    let mut session = stage.session_of("postgres");
    session.become_role("bob");
    session.is("bob");
    refused(&mut session, "<grp>", "42501");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s10_a_superuser_that_acts_as_a_superuser_reports_one() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> SUPERUSER");
    let mut session = stage.session_of("postgres");
    session.become_role("carol");
    session.is("carol");
    session.become_role("bob");
    session.is("bob");
    session.ok("BEGIN; SELECT setuser('<carol>', local => true)");
    session.is("carol");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

// --------------------------------------------------------------------------------------- S3: rollback and savepoints ---

#[test]
fn s3_rollback_undoes_a_start() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.is("bob");
    session.ok("ROLLBACK");
    session.is_itself();
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob rollback"]);
}

#[test]
fn s3_commit_keeps_a_start() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("BEGIN; ROLLBACK");
    session.is("bob");
}

#[test]
fn s3_rollback_undoes_an_end() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let id = stage.audit(session.pid(), &["SETUSER"])[0].id.clone();
    session.ok("BEGIN; SELECT setuser()");
    session.is_itself();
    session.ok("ROLLBACK");
    session.is("bob");
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob asked", "+bob"]);
    // It is the same impersonation that came back.
    assert_eq!(stage.audit(session.pid(), &["SETUSER"])[1].id, id);
}

#[test]
fn s3_rollback_undoes_a_switch_over() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN");
    session.become_role("carol");
    session.is("carol");
    session.ok("ROLLBACK");
    session.is("bob");
    assert_eq!(
        stage.history(session.pid()),
        ["+bob", "-bob switched", "+carol", "-carol rollback", "+bob"]
    );
}

#[test]
fn s3_a_start_and_an_end_in_a_transaction_leave_nothing_whichever_way_it_ends() {
    let stage = Stage::new();
    let mut session = stage.session();
    for end in ["ROLLBACK", "COMMIT"] {
        session.ok("BEGIN");
        session.become_role("bob");
        session.is("bob");
        session.ok("SELECT setuser()");
        session.is_itself();
        session.ok(end);
        session.is_itself();
    }
}

#[test]
fn s3_an_error_undoes_a_start() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.fails("22012", "SELECT 1/0");
    session.fails("25P02", "SELECT setuser()");
    session.fails("25P02", "SELECT setuser('<carol>')");
    assert_eq!(tags_in(&session.send(Protocol::Simple, "COMMIT")), ["ROLLBACK"]);
    session.is_itself();
}

#[test]
fn s3_savepoints_at_several_depths_bring_back_who_it_was_there() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SAVEPOINT a");
    session.become_role("bob");
    session.ok("SAVEPOINT b");
    session.become_role("carol");
    session.ok("SAVEPOINT c; SELECT setuser(); SAVEPOINT d");
    session.become_role("bob");
    session.is("bob");
    session.ok("ROLLBACK TO d");
    session.is_itself();
    session.ok("ROLLBACK TO c");
    session.is("carol");
    session.ok("ROLLBACK TO b");
    session.is("bob");
    session.ok("ROLLBACK TO a");
    session.is_itself();
    session.ok("COMMIT");
    session.is_itself();
}

#[test]
fn s3_a_rollback_over_several_savepoints_at_once() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("carol");
    session.ok("BEGIN; SAVEPOINT a");
    session.become_role("bob");
    session.ok("SAVEPOINT b; SELECT setuser(); SAVEPOINT c");
    session.become_role("bob");
    session.ok("SAVEPOINT d");
    session.fails("22012", "SELECT 1/0");
    session.ok("ROLLBACK TO a");
    session.is("carol");
    session.ok("COMMIT");
    session.is("carol");
}

#[test]
fn s3_release_keeps_and_an_outer_rollback_still_undoes() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SAVEPOINT a; SAVEPOINT b");
    session.become_role("bob");
    session.ok("RELEASE b");
    session.is("bob");
    session.ok("ROLLBACK TO a");
    session.is_itself();
    session.become_role("carol");
    session.ok("RELEASE a");
    session.is("carol");
    session.ok("COMMIT");
    session.is("carol");
}

#[test]
fn s3_a_switch_before_and_after_a_savepoint() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.ok("SAVEPOINT a");
    session.become_role("carol");
    session.ok("ROLLBACK TO a");
    session.is("bob");
    session.become_role("carol");
    session.ok("ROLLBACK TO a");
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
}

#[test]
fn s3_many_switches_and_rollbacks_in_one_transaction_are_all_told() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("carol");
    session.ok("SAVEPOINT a");
    let mut expected = vec!["+carol".to_owned()];
    for _ in 0..30 {
        session.become_role("bob");
        session.ok("ROLLBACK TO a");
        expected.extend(["-carol switched", "+bob", "-bob rollback", "+carol"].map(str::to_owned));
    }
    session.is("carol");
    session.ok("ROLLBACK");
    session.is_itself();
    expected.push("-carol rollback".to_owned());
    assert_eq!(stage.history(session.pid()), expected);
}

#[test]
fn s3_rollbacks_one_after_the_other_from_great_depth_are_all_told() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    for depth in 0..20 {
        session.ok(&format!("SAVEPOINT s{depth}"));
        session.become_role(if depth % 2 == 0 { "bob" } else { "carol" });
    }
    for depth in (0..20).rev() {
        session.ok(&format!("ROLLBACK TO s{depth}"));
    }
    session.is_itself();
    session.ok("COMMIT");
    session.is_itself();
    // 20 starts, 19 switches; then 20 ends of which 19 bring one back.
    assert_eq!(stage.history(session.pid()).len(), 20 + 19 + 20 + 19);
}

#[test]
fn s3_errors_caught_in_plpgsql_leave_the_impersonation() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.seen (who text);
         GRANT ALL ON <s>.seen TO PUBLIC;
         CREATE FUNCTION <s>.caught() RETURNS text LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO <s>.seen VALUES (current_user);
             BEGIN
                 SET LOCAL ROLE <grp>;
                 INSERT INTO <s>.seen VALUES (current_user);
                 PERFORM 1/0;
             EXCEPTION WHEN division_by_zero THEN
                 INSERT INTO <s>.seen VALUES (current_user);
             END;
             BEGIN
                 PERFORM pg_catalog.setuser();
             EXCEPTION WHEN OTHERS THEN
                 INSERT INTO <s>.seen VALUES (current_user || ' ' || SQLSTATE);
             END;
             RETURN current_user;
         END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    assert_eq!(session.value("SELECT <s>.caught()"), stage.name("bob"));
    session.is("bob");
    session.ok("BEGIN; SELECT <s>.caught(); SAVEPOINT a");
    session.become_role("carol");
    session.ok("ROLLBACK TO a; SELECT <s>.caught(); COMMIT");
    session.is("bob");
    let bob = stage.name("bob");
    let seen: Vec<_> = stage.look("SELECT DISTINCT who FROM <s>.seen ORDER BY who");
    assert_eq!(seen, [[Some(bob.clone())], [Some(format!("{bob} 0A000"))]]);
}

#[test]
fn s3_the_whole_of_a_transaction_in_one_message() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>'); SAVEPOINT a; SELECT setuser(); ROLLBACK TO a; COMMIT");
    session.is("bob");
}

#[test]
fn s3_a_failing_statement_undoes_the_others_of_its_message() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.fails("22012", "SELECT setuser('<bob>'); SELECT 1/0");
    session.is_itself();
    session.become_role("bob");
    session.fails("22012", "SELECT setuser(); SELECT 1/0");
    session.is("bob");
    session.fails(
        "22012",
        "SELECT setuser('<carol>'); SELECT 1; SELECT setuser(); SELECT 1/0",
    );
    session.is("bob");
    session.fails("22012", "SELECT setuser('<carol>'); COMMIT; SELECT 1/0");
    session.is("carol");
    session.fails("22012", "SELECT setuser('<bob>'); ROLLBACK; SELECT 1/0");
    session.is("carol");
}

#[test]
fn s3_statements_of_a_message_run_as_who_it_was_when_they_came() {
    let stage = Stage::new();
    let mut session = stage.session();
    let rows = session
        .ok("SELECT current_user; SELECT setuser('<bob>'); SELECT current_user; SELECT setuser(); SELECT current_user");
    let rows: Vec<_> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(rows, ["imp", "bob", "bob", "imp", "imp"].map(|name| stage.name(name)));
}

#[test]
fn s3_a_failure_before_sync_undoes_the_pipeline() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.pipe("SELECT setuser('<bob>')");
    session.pipe("SELECT current_user");
    session.pipe("SELECT 1/0");
    session.pipe("SELECT setuser('<carol>')");
    let answer = session.sync();
    assert_eq!(error_in(&answer).unwrap().code, "22012");
    assert_eq!(rows_in(&answer), [[Some(stage.name("bob"))], [Some(stage.name("bob"))]]);
    session.is_itself();
    session.become_role("bob");
    session.pipe("SELECT setuser()");
    session.pipe("SELECT 1/0");
    assert_eq!(error_in(&session.sync()).unwrap().code, "22012");
    session.is("bob");
}

#[test]
fn s3_a_pipeline_that_works_is_kept_and_the_next_is_apart() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.pipe("SELECT setuser('<bob>')");
    session.pipe("SELECT current_user");
    session.raw.sync();
    session.pipe("SELECT setuser('<carol>')");
    session.pipe("SELECT 1/0");
    session.raw.sync();
    session.pipe("SELECT current_user");
    assert_eq!(
        rows_in(&session.sync()),
        [[Some(stage.name("bob"))], [Some(stage.name("bob"))]]
    );
    assert_eq!(error_in(&session.raw.read_until_ready()).unwrap().code, "22012");
    assert_eq!(rows_in(&session.raw.read_until_ready()), [[Some(stage.name("bob"))]]);
    session.is("bob");
}

// ----------------------------------------------------------------------------------------------------- S3: local => true ---

#[test]
fn s3_local_lasts_to_commit() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true)");
    session.is("bob");
    session.ok("COMMIT");
    session.is_itself();
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob end of transaction"]);
}

#[test]
fn s3_local_lasts_to_rollback() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true)");
    session.is("bob");
    session.ok("ROLLBACK");
    session.is_itself();
    assert_eq!(stage.history(session.pid()), ["+bob", "-bob rollback"]);
}

#[test]
fn s3_local_outside_a_transaction_block_is_over_with_its_statement() {
    let stage = Stage::new();
    let mut session = stage.session();
    for protocol in PROTOCOLS {
        let rows = session.ok_by(protocol, "SELECT setuser('<bob>', local => true)");
        assert_eq!(rows, [[Some(stage.name("bob"))]]);
        session.is_itself();
    }
    // The transaction is the message.
    let rows = session.ok("SELECT setuser('<bob>', local => true); SELECT current_user");
    assert_eq!(rows[1], [Some(stage.name("bob"))]);
    session.is_itself();
}

#[test]
fn s3_local_over_another_impersonation_returns_to_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    for end in ["COMMIT", "ROLLBACK"] {
        session.ok("BEGIN; SELECT setuser('<carol>', local => true)");
        session.is("carol");
        session.ok(end);
        session.is("bob");
    }
}

#[test]
fn s3_local_ended_by_hand_is_over() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true); SELECT setuser()");
    session.is_itself();
    session.ok("COMMIT");
    session.is_itself();
}

#[test]
fn s3_local_and_lasting_in_one_transaction_leave_the_lasting_one() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>'); SELECT setuser('<carol>', local => true)");
    session.is("carol");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("BEGIN; SELECT setuser('<bob>', local => true); SELECT setuser('<carol>')");
    session.is("carol");
    session.ok("COMMIT");
    session.is("carol");
}

#[test]
fn s3_local_within_savepoints() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SAVEPOINT a; SELECT setuser('<bob>', local => true); RELEASE a");
    session.is("bob");
    session.ok("SAVEPOINT b; SELECT setuser('<carol>', local => true); ROLLBACK TO b");
    session.is("bob");
    session.ok("COMMIT");
    session.is_itself();
}

#[test]
fn s3_local_ends_with_the_first_of_chained_transactions() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true); COMMIT AND CHAIN");
    session.is_itself();
    session.ok("SELECT setuser('<bob>', local => true); ROLLBACK AND CHAIN");
    session.is_itself();
    session.become_role("bob");
    session.ok("COMMIT AND CHAIN");
    session.is("bob");
    session.become_role("carol");
    session.ok("ROLLBACK AND CHAIN");
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
}

#[test]
fn s3_local_in_a_pipeline_is_over_at_sync() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.pipe("SELECT setuser('<bob>', local => true)");
    session.pipe("SELECT current_user");
    assert_eq!(
        rows_in(&session.sync()),
        [[Some(stage.name("bob"))], [Some(stage.name("bob"))]]
    );
    session.is_itself();
}

// ----------------------------------------------------------------------------------------------- S3: a COMMIT that fails ---

/// The three ways in which a switch may hang on a transaction, each undone by a COMMIT that fails. `doom` makes it.
#[track_caller]
fn undone_by_a_failing_commit(stage: &Stage, sqlstate: &str, doom: &str, end: &str) {
    let mut session = stage.session();
    let failing_commit = |session: &mut Session| {
        session.ok(doom);
        session.fails(sqlstate, end);
        assert_eq!(session.transaction(), Transaction::None);
    };
    session.ok("BEGIN ISOLATION LEVEL READ COMMITTED");
    session.become_role("bob");
    failing_commit(&mut session);
    session.is_itself();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true)");
    failing_commit(&mut session);
    session.is_itself();

    session.become_role("bob");
    session.ok("BEGIN");
    failing_commit(&mut session);
    session.is("bob");
    session.ok("BEGIN; SELECT setuser()");
    failing_commit(&mut session);
    session.is("bob");
    session.ok("BEGIN; SELECT setuser('<carol>')");
    failing_commit(&mut session);
    session.is("bob");
    session.ok("BEGIN; SELECT setuser('<carol>', local => true)");
    failing_commit(&mut session);
    session.is("bob");
    session.ok("BEGIN; SAVEPOINT a; SELECT setuser('<carol>'); RELEASE a");
    failing_commit(&mut session);
    session.is("bob");
    // The COMMIT itself is on record as failed.
    let commits: Vec<_> = stage.audit(session.pid(), &["STATEMENT"]);
    let commits: Vec<_> = commits
        .iter()
        .filter(|row| row.statement.as_deref() == Some(end))
        .collect();
    assert!(!commits.is_empty());
    for row in commits {
        assert_eq!(row.sqlstate, sqlstate, "{row:?}");
    }
}

#[test]
fn s3_a_deferred_constraint_that_fails_at_commit_undoes_the_switch() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.a (a int PRIMARY KEY);
         CREATE TABLE <s>.b (a int REFERENCES <s>.a DEFERRABLE INITIALLY DEFERRED);
         GRANT ALL ON <s>.a, <s>.b TO PUBLIC",
    );
    undone_by_a_failing_commit(&stage, "23503", "INSERT INTO <s>.b VALUES (1)", "COMMIT");
}

#[test]
fn s3_a_deferred_trigger_that_raises_at_commit_undoes_the_switch() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.t (a int); GRANT ALL ON <s>.t TO PUBLIC;
         CREATE FUNCTION <s>.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         CREATE CONSTRAINT TRIGGER no AFTER INSERT ON <s>.t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>.no()",
    );
    undone_by_a_failing_commit(&stage, "P0001", "INSERT INTO <s>.t VALUES (1)", "COMMIT");
}

#[test]
fn s3_an_on_commit_action_that_fails_undoes_the_switch() {
    let stage = Stage::new();
    let doom = "CREATE TEMP TABLE one (a int PRIMARY KEY) ON COMMIT DELETE ROWS;
                CREATE TEMP TABLE two (a int REFERENCES one)";
    let mut session = stage.session();
    let failing_commit = |session: &mut Session| {
        session.ok(doom);
        session.fails("0A000", "COMMIT");
        assert_eq!(session.transaction(), Transaction::None);
    };
    session.ok("BEGIN");
    session.become_role("bob");
    failing_commit(&mut session);
    session.is_itself();
    session.become_role("bob");
    session.ok("BEGIN; SELECT setuser()");
    failing_commit(&mut session);
    session.is("bob");
    session.ok("BEGIN; SELECT setuser('<carol>')");
    failing_commit(&mut session);
    session.is("bob");
    // S9: what a local impersonation made goes before it could fail.
    session.ok("BEGIN; SELECT setuser('<carol>', local => true)");
    session.ok(doom);
    session.ok("COMMIT");
    session.is("bob");
}

#[test]
fn s3_a_prepare_that_fails_undoes_the_switch() {
    let stage = Stage::new();
    undone_by_a_failing_commit(
        &stage,
        "0A000",
        "CREATE TEMP TABLE one (a int)",
        "PREPARE TRANSACTION 'never'",
    );
}

#[test]
fn s3_a_deferred_constraint_in_one_statement_undoes_nothing_before_it() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.a (a int PRIMARY KEY);
         CREATE TABLE <s>.b (a int REFERENCES <s>.a DEFERRABLE INITIALLY DEFERRED);
         GRANT ALL ON <s>.a, <s>.b TO PUBLIC",
    );
    let mut session = stage.session();
    session.become_role("bob");
    for protocol in PROTOCOLS {
        session.fails_by(protocol, "23503", "INSERT INTO <s>.b VALUES (1)");
        session.is("bob");
    }
    session.fails("23503", "SELECT setuser(); INSERT INTO <s>.b VALUES (1)");
    session.is("bob");
    session.pipe("SELECT setuser()");
    session.pipe("INSERT INTO <s>.b VALUES (1)");
    assert_eq!(error_in(&session.sync()).unwrap().code, "23503");
    session.is("bob");
}

#[test]
fn s3_a_serialization_failure_at_commit_undoes_the_switch() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.t (a int); GRANT ALL ON <s>.t TO PUBLIC");
    let mut session = stage.session();
    let mut other = stage.session_of("postgres");
    for (before, inside) in [(None, "<bob>"), (Some("bob"), "<carol>")] {
        if let Some(role) = before {
            session.become_role(role);
        }
        for s in [&mut session, &mut other] {
            s.ok("BEGIN ISOLATION LEVEL SERIALIZABLE");
        }
        session.ok(&format!("SELECT setuser('{inside}')"));
        session.ok("SELECT count(*) FROM <s>.t");
        other.ok("SELECT count(*) FROM <s>.t");
        session.ok("INSERT INTO <s>.t VALUES (1)");
        other.ok("INSERT INTO <s>.t VALUES (2); COMMIT");
        session.fails("40001", "COMMIT");
        match before {
            Some(role) => session.is(role),
            None => session.is_itself(),
        }
    }
}

#[test]
fn s3_deferred_triggers_run_as_who_it_is_at_commit() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.t (a int); CREATE TABLE <s>.seen (who text);
         GRANT ALL ON <s>.t, <s>.seen TO PUBLIC;
         CREATE FUNCTION <s>.see() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN INSERT INTO <s>.seen VALUES (current_user); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER see AFTER INSERT ON <s>.t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>.see()",
    );
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>', local => true); INSERT INTO <s>.t VALUES (1); COMMIT");
    session.is_itself();
    session.become_role("carol");
    session.ok("INSERT INTO <s>.t VALUES (1)");
    session.is("carol");
    let seen = stage.look("SELECT who FROM <s>.seen");
    assert_eq!(seen, [[Some(stage.name("bob"))], [Some(stage.name("carol"))]]);
}

// --------------------------------------------------------------------------------------- S3: two phases, and procedures ---

#[test]
fn s3_prepare_transaction_keeps_the_switch_as_a_commit_does() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.t (a int); GRANT ALL ON <s>.t TO PUBLIC");
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>'); INSERT INTO <s>.t VALUES (1); PREPARE TRANSACTION '<s>'");
    session.is("bob");
    session.ok("COMMIT PREPARED '<s>'");
    session.is("bob");
    session.ok(
        "BEGIN; SELECT setuser('<carol>', local => true); INSERT INTO <s>.t VALUES (2);
                PREPARE TRANSACTION '<s>'",
    );
    session.is("bob");
    stage.admin("ROLLBACK PREPARED '<s>'");
    session.is("bob");
    session.ok("BEGIN; SELECT setuser(); INSERT INTO <s>.t VALUES (2); PREPARE TRANSACTION '<s>'");
    session.is_itself();
    stage.admin("ROLLBACK PREPARED '<s>'");
    session.is_itself();
}

/// A procedure that notes who runs it around COMMIT and ROLLBACK.
fn wandering_procedure(stage: &Stage) {
    stage.admin(
        "CREATE TABLE <s>.seen (n serial, who text, role text); GRANT ALL ON <s>.seen, <s>.seen_n_seq TO PUBLIC;
         CREATE PROCEDURE <s>.wander() LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO <s>.seen (who, role) VALUES (current_user, current_setting('role'));
             COMMIT;
             INSERT INTO <s>.seen (who, role) VALUES (current_user, current_setting('role'));
             COMMIT;
             ROLLBACK;
             INSERT INTO <s>.seen (who, role) VALUES (current_user, current_setting('role'));
             COMMIT;
         END $$",
    );
}

#[test]
fn s3_a_procedure_that_commits_and_rolls_back_runs_as_the_target_throughout() {
    let stage = Stage::new();
    wandering_procedure(&stage);
    let mut session = stage.session();
    session.become_role("bob");
    for protocol in PROTOCOLS {
        session.ok_by(protocol, "CALL <s>.wander()");
        session.is("bob");
    }
    session.ok("DO $$ BEGIN CALL <s>.wander(); COMMIT; CALL <s>.wander(); ROLLBACK; END $$");
    session.is("bob");
    let seen = stage.look("SELECT who, role, count(*) FROM <s>.seen GROUP BY 1, 2");
    let bob = Some(stage.name("bob"));
    assert_eq!(seen, [[bob.clone(), bob, Some("12".to_owned())]]);
    assert_eq!(stage.history(session.pid()), ["+bob"]);
}

#[test]
fn s3_a_procedure_that_fails_after_a_commit_leaves_the_impersonation() {
    let stage = Stage::new();
    stage.admin(
        "CREATE PROCEDURE <s>.fails() LANGUAGE plpgsql AS $$ BEGIN
             COMMIT; ROLLBACK; SET LOCAL ROLE <grp>; PERFORM 1/0; END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.fails("22012", "CALL <s>.fails()");
    session.is("bob");
    let call = stage
        .audit(session.pid(), &["STATEMENT"])
        .into_iter()
        .find(|row| row.tag.as_deref() == Some("CALL"));
    assert_eq!(call.expect("the CALL is recorded").sqlstate, "22012");
}

#[test]
fn s3_a_procedure_cannot_end_a_switch_that_its_transaction_block_made() {
    let stage = Stage::new();
    wandering_procedure(&stage);
    let mut session = stage.session();
    session.ok("BEGIN; SELECT setuser('<bob>')");
    session.fails("2D000", "CALL <s>.wander()");
    session.ok("ROLLBACK");
    session.is_itself();
    session.fails("2D000", "SELECT setuser('<bob>', local => true); CALL <s>.wander()");
    session.is_itself();
}

/// The transaction of a pipeline is open at its second statement, but no block: Postgres lets a procedure end it. What
/// runs then must not be the target's code as the impersonator.
#[track_caller]
fn cannot_leave_by(stage: &Stage, switch: &str, escape: &str) {
    let mut session = stage.session();
    session.pipe(switch);
    session.pipe(escape);
    let answer = session.sync();
    let seen = stage.look("SELECT DISTINCT who FROM <s>.seen");
    let imp = stage.name("imp");
    assert!(
        !seen.contains(&vec![Some(imp)]),
        "{escape} ran as the impersonator: {seen:?}, {:?}",
        error_in(&answer)
    );
    stage.history(session.pid());
}

#[test]
fn s4_a_procedure_cannot_roll_back_the_switch_of_its_pipeline_and_go_on_as_the_impersonator() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.seen (who text); GRANT ALL ON <s>.seen TO PUBLIC;
         CREATE PROCEDURE <s>.escape() LANGUAGE plpgsql AS $$
         BEGIN ROLLBACK; INSERT INTO <s>.seen VALUES (current_user); END $$",
    );
    cannot_leave_by(&stage, "SELECT setuser('<bob>')", "CALL <s>.escape()");
}

#[test]
fn s4_a_do_block_cannot_roll_back_the_switch_of_its_pipeline_and_go_on_as_the_impersonator() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.seen (who text); GRANT ALL ON <s>.seen TO PUBLIC");
    let escape = "DO $$ BEGIN ROLLBACK; INSERT INTO <s>.seen VALUES (current_user); END $$";
    cannot_leave_by(&stage, "SELECT setuser('<bob>')", escape);
}

#[test]
fn s4_a_procedure_cannot_commit_a_local_switch_of_its_pipeline_and_go_on_as_the_impersonator() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.seen (who text); GRANT ALL ON <s>.seen TO PUBLIC;
         CREATE PROCEDURE <s>.escape() LANGUAGE plpgsql AS $$
         BEGIN COMMIT; INSERT INTO <s>.seen VALUES (current_user); END $$",
    );
    cannot_leave_by(&stage, "SELECT setuser('<bob>', local => true)", "CALL <s>.escape()");
}

#[test]
fn s4_a_procedure_cannot_roll_back_the_end_of_its_pipeline_and_go_on_as_the_target() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.seen (who text); GRANT ALL ON <s>.seen TO PUBLIC;
         CREATE PROCEDURE <s>.back() LANGUAGE plpgsql AS $$
         BEGIN ROLLBACK; INSERT INTO <s>.seen VALUES (current_user); END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.pipe("SELECT setuser()");
    session.pipe("CALL <s>.back()");
    session.sync();
    let seen = stage.look("SELECT DISTINCT who FROM <s>.seen");
    assert!(
        !seen.contains(&vec![Some(stage.name("bob"))]),
        "it ran as bob, whom the client had left: {seen:?}"
    );
    stage.history(session.pid());
}

// ----------------------------------------------------------------------------------------------- the connection's end ---

/// Nobody impersonates in that process, and the audit has the end, with this cause.
#[track_caller]
fn is_over(stage: &Stage, pid: i32, cause: &str) {
    wait_until("the backend is gone", || {
        stage
            .look(&format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"))
            .is_empty()
    });
    stage.told(pid, &stage.name("imp"), None);
    assert_eq!(stage.history(pid).last(), Some(&format!("-bob {cause}")));
}

#[test]
fn e1_a_client_that_leaves_ends_its_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
    let pid = session.pid();
    session.raw.terminate();
    is_over(&stage, pid, "disconnect");
}

#[test]
fn e1_a_client_that_hangs_up_ends_its_impersonation() {
    let stage = Stage::new();
    for before in ["SELECT 1", "BEGIN", "BEGIN; SAVEPOINT a"] {
        let mut session = stage.session();
        session.ok(before);
        session.become_role("bob");
        let pid = session.pid();
        session.raw.hang_up();
        is_over(&stage, pid, "disconnect");
    }
}

#[test]
fn e1_a_client_that_hangs_up_in_a_failed_transaction_ends_its_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN");
    session.fails("22012", "SELECT 1/0");
    let pid = session.pid();
    session.raw.hang_up();
    is_over(&stage, pid, "disconnect");
}

#[test]
fn e1_a_client_that_hangs_up_after_an_undone_end_leaves_nothing() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN; SELECT setuser()");
    let pid = session.pid();
    session.raw.hang_up();
    is_over(&stage, pid, "asked");
}

#[test]
fn e1_pg_terminate_backend_ends_an_impersonation() {
    let stage = Stage::new();
    for before in ["SELECT 1", "BEGIN"] {
        let mut session = stage.session();
        session.ok(before);
        session.become_role("bob");
        let pid = session.pid();
        stage.admin(&format!("SELECT pg_terminate_backend({pid})"));
        is_over(&stage, pid, "terminated");
    }
}

#[test]
fn e1_pg_terminate_backend_in_a_running_statement_ends_an_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let pid = session.pid();
    session.raw.query("SELECT pg_sleep(60)");
    session.raw.flush();
    wait_until("it sleeps", || {
        !stage
            .look(&format!(
                "SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'"
            ))
            .is_empty()
    });
    stage.admin(&format!("SELECT pg_terminate_backend({pid})"));
    is_over(&stage, pid, "terminated");
    let sleep = stage.audit(pid, &["STATEMENT"]);
    assert_eq!(
        sleep.last().map(|row| row.sqlstate.as_str()),
        Some("57P01"),
        "{sleep:?}"
    );
}

#[test]
fn e1_timeouts_of_the_session_end_an_impersonation() {
    let stage = Stage::new();
    for setting in ["idle_in_transaction_session_timeout", "idle_session_timeout"] {
        let mut session = stage.session();
        session.become_role("bob");
        session.ok(&format!("SET {setting} = '50ms'"));
        let pid = session.pid();
        if setting.contains("transaction") {
            session.ok("BEGIN");
        }
        is_over(&stage, pid, "terminated");
    }
}

#[test]
fn e1_a_statement_that_is_cancelled_leaves_the_impersonation() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SET statement_timeout = '50ms'");
    session.fails("57014", "SELECT pg_sleep(60)");
    session.is("bob");
}

#[test]
fn e1_a_crash_of_the_backend_leaves_nothing_and_the_others_start_afresh() {
    let cluster = lasting(Cluster::builder().durable().start());
    let database = cluster.database("crash").name;
    let (pid, imp);
    {
        let stage = Stage::in_cluster(cluster, &database);
        let mut session = stage.session();
        session.become_role("bob");
        session.is("bob");
        // L5: what is durable of the impersonation takes the audit along.
        session.ok("CREATE TABLE <s>.durable ()");
        let mut bystander = stage.session_of("postgres");
        bystander.ok("SELECT setuser('<carol>'); SELECT 1");
        (pid, imp) = (session.pid(), stage.name("imp"));
        cluster.kill_backend(pid);
    }
    cluster.wait_until_up();
    let mut observer = cluster.connect("postgres", &database);
    let count: i64 = observer
        .query_one("SELECT count(*) FROM impersonate.active", &[])
        .unwrap()
        .get(0);
    assert_eq!(count, 0);
    drop(observer);
    let mut again = RawClient::connect(cluster, &imp, &database);
    assert_eq!(rows_in(&again.simple("SELECT current_user")), [[Some(imp)]]);
    let stage = Stage::in_cluster(cluster, &database);
    assert_eq!(stage.audit(pid, &["SETUSER"]).len(), 1);
    let mut session = stage.session();
    session.become_role("bob");
    session.is("bob");
    assert!(!cluster.log().contains("TRAP"), "{}", cluster.log());
}

// ------------------------------------------------------------------------------------- S3: a switch that cannot be recorded ---

#[test]
fn s3_a_switch_cancelled_while_it_waits_for_the_audit_changes_nothing() {
    let stage = Stage::alone();
    let mut session = stage.session();
    session.become_role("carol");
    let mut locker = stage.session_of("postgres");
    locker.ok("BEGIN; LOCK TABLE impersonate.audit");
    let blocked = stage.sql("SELECT setuser('<bob>')");
    session.raw.query(&blocked);
    session.raw.flush();
    let pid = session.pid();
    let look =
        format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active' AND wait_event IS NOT NULL");
    wait_until("it waits", || !stage.look(&look).is_empty());
    session.raw.cancel();
    let answer = session.raw.read_until_ready();
    assert_eq!(
        error_in(&answer).map(|error| error.code),
        Some("57014".to_owned()),
        "{answer:?}"
    );
    locker.ok("COMMIT");
    session.is("carol");
    session.become_role("bob");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s3_a_connection_terminated_while_its_switch_waits_for_the_audit_leaves_nothing() {
    let stage = Stage::alone();
    let mut session = stage.session();
    let mut locker = stage.session_of("postgres");
    session.become_role("carol");
    session.ok("SELECT setuser()");
    locker.ok("BEGIN; LOCK TABLE impersonate.audit");
    let blocked = stage.sql("SELECT setuser('<bob>')");
    session.raw.query(&blocked);
    session.raw.flush();
    let pid = session.pid();
    let look =
        format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active' AND wait_event IS NOT NULL");
    wait_until("it waits", || !stage.look(&look).is_empty());
    stage.admin(&format!("SELECT pg_terminate_backend({pid})"));
    wait_until("the backend is gone", || {
        stage
            .look(&format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"))
            .is_empty()
    });
    locker.ok("COMMIT");
    stage.told(pid, &stage.name("imp"), None);
}

// ------------------------------------------------------------------------------------------------------ SET ROLE around ---

#[test]
fn g6_a_role_set_before_the_impersonation_is_there_again_after_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SET ROLE <own>");
    session.is_itself_in_role("own");
    session.become_role("bob");
    session.is("bob");
    assert_eq!(session.value("SELECT setuser()"), stage.name("own"));
    session.is_itself_in_role("own");
}

#[test]
fn g6_a_right_of_a_group_counts_after_set_role_to_it() {
    let stage = Stage::new();
    stage.admin(
        "CREATE ROLE <s>_t LOGIN; CREATE ROLE <s>_ni LOGIN NOINHERIT; GRANT <own> TO <s>_ni;
         GRANT \"SET USER\" (<s>_t) TO <own>",
    );
    let mut session = stage.session_of(&stage.sql("<s>_ni"));
    session.fails("42501", "SELECT setuser('<s>_t')");
    session.ok("SET ROLE <own>");
    session.ok("SELECT setuser('<s>_t')");
    session.is(&stage.sql("<s>_t"));
    // It still counts when the impersonation is changed.
    session.ok("SELECT setuser('<s>_t')");
    session.is(&stage.sql("<s>_t"));
    session.ok("SELECT setuser()");
    session.is_itself_in_role("own");
}

#[test]
fn s2_a_role_set_inside_an_impersonation_goes_with_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SET ROLE <grp>");
    session.is_in_role("bob", "grp");
    assert_eq!(session.value("SELECT setuser()"), stage.name("imp"));
    session.is_itself();
    session.become_role("bob");
    session.is("bob");
}

#[test]
fn s2_a_role_set_inside_goes_at_a_switch_over() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SET ROLE <grp>");
    session.become_role("carol");
    session.is("carol");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn g6_a_role_set_before_is_there_again_whatever_was_set_inside() {
    for inside in [
        "SET ROLE <grp>",
        "SET ROLE NONE",
        "RESET ROLE",
        "SET LOCAL ROLE <grp>",
        "SET ROLE <bob>",
    ] {
        let stage = Stage::new();
        let mut session = stage.session();
        session.ok("SET ROLE <own>");
        session.become_role("bob");
        session.ok(inside);
        session.ok("SELECT setuser()");
        session.is_itself_in_role("own");
    }
}

#[test]
fn g6_a_role_set_before_is_there_again_after_a_local_impersonation_with_a_role() {
    for end in ["COMMIT", "ROLLBACK"] {
        let stage = Stage::new();
        let mut session = stage.session();
        session.ok("SET ROLE <own>");
        session.ok("BEGIN; SELECT setuser('<bob>', local => true); SET ROLE <grp>");
        session.is_in_role("bob", "grp");
        session.ok(end);
        session.is_itself_in_role("own");
    }
}

#[test]
fn s3_set_local_role_inside_ends_with_the_transaction_and_the_impersonation_stays() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN; SET LOCAL ROLE <grp>");
    session.is_in_role("bob", "grp");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s3_set_local_role_before_ends_with_the_transaction_and_the_impersonation_stays() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; SET LOCAL ROLE <own>; SELECT setuser('<bob>')");
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s3_savepoints_with_set_role_inside() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN; SAVEPOINT a; SET ROLE <grp>; SAVEPOINT b; RESET ROLE");
    session.is("bob");
    session.ok("ROLLBACK TO b");
    session.is_in_role("bob", "grp");
    session.ok("ROLLBACK TO a");
    session.is("bob");
    session.ok("SET ROLE <grp>; SAVEPOINT c; SELECT setuser('<carol>')");
    session.is("carol");
    session.ok("ROLLBACK TO c");
    session.is_in_role("bob", "grp");
    session.ok("SAVEPOINT d; SELECT setuser(); SET ROLE <own>");
    session.is_itself_in_role("own");
    session.ok("ROLLBACK TO d");
    session.is_in_role("bob", "grp");
    session.ok("ROLLBACK");
    session.is("bob");
}

#[test]
fn s3_rollback_brings_back_a_role_set_before() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SET ROLE <own>");
    session.ok("BEGIN; SELECT setuser('<bob>'); SET ROLE <grp>");
    session.is_in_role("bob", "grp");
    session.ok("ROLLBACK");
    session.is_itself_in_role("own");
}

// ---------------------------------------------------------------------------------------- SET SESSION AUTHORIZATION around ---

/// A superuser's session that says it is somebody else's.
fn authorized<'a>(stage: &'a Stage, set: &str) -> Session<'a> {
    let mut session = stage.session_of("postgres");
    session.ok(set);
    session.logged_in_as("imp");
    session
}

#[test]
fn s1_a_session_user_set_by_a_superuser_is_the_impersonator() {
    let stage = Stage::new();
    let mut session = authorized(&stage, "SET SESSION AUTHORIZATION <imp>");
    session.is_itself();
    session.fails("42501", "SELECT setuser('postgres')");
    session.become_role("bob");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
    session.logged_in_as("postgres");
    session.ok("RESET SESSION AUTHORIZATION");
    session.is_itself();
}

#[test]
fn s3_an_impersonation_ends_when_its_session_user_was_local_to_the_transaction() {
    for end in ["COMMIT", "ROLLBACK"] {
        for call in ["setuser('<bob>')", "setuser('<bob>', local => true)"] {
            let stage = Stage::new();
            let mut session = authorized(&stage, "BEGIN; SET LOCAL SESSION AUTHORIZATION <imp>");
            session.ok(&format!("SELECT {call}"));
            session.is("bob");
            session.ok(end);
            session.logged_in_as("postgres");
            session.is_itself();
            // Nor does it come back with that session user.
            session.ok("SET SESSION AUTHORIZATION <imp>");
            session.logged_in_as("imp");
            session.is_itself();
            session.become_role("carol");
            session.is("carol");
        }
    }
}

#[test]
fn s3_a_dead_impersonation_does_not_show_in_parallel_workers() {
    let stage = Stage::new();
    parallel_witness(&stage);
    let mut session = authorized(
        &stage,
        "BEGIN; SET LOCAL SESSION AUTHORIZATION <imp>; SELECT setuser('<bob>'); COMMIT",
    );
    session.logged_in_as("postgres");
    session.is_itself();
    force_parallel(&mut session);
    assert_eq!(in_worker(&mut session), session.expected(None, None));
}

#[test]
fn s3_a_rollback_over_a_changed_session_user_brings_the_impersonation_back() {
    let stage = Stage::new();
    let mut session = authorized(&stage, "SET SESSION AUTHORIZATION <imp>");
    session.become_role("bob");
    session.ok("BEGIN; SELECT setuser(); SET SESSION AUTHORIZATION <carol>");
    session.logged_in_as("carol");
    session.is_itself();
    session.ok("ROLLBACK");
    session.logged_in_as("imp");
    session.is("bob");
    session.ok("BEGIN; SAVEPOINT a; SELECT setuser(); RESET SESSION AUTHORIZATION; ROLLBACK TO a");
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
}

#[test]
fn a_role_and_a_session_user_without_impersonation_are_as_postgres_has_them() {
    let stage = Stage::new();
    let mut session = stage.session_of("postgres");
    session.ok("SET ROLE <own>");
    session.is_itself_in_role("own");
    // SET SESSION AUTHORIZATION sets the role to none.
    session.ok("SET SESSION AUTHORIZATION <imp>");
    session.logged_in_as("imp");
    session.is_itself();
    session.ok("SET ROLE <grp>");
    session.is_itself_in_role("grp");
    session.ok("BEGIN; SET LOCAL ROLE <own>");
    session.is_itself_in_role("own");
    session.ok("ROLLBACK");
    session.is_itself_in_role("grp");
    session.ok("BEGIN; SET SESSION AUTHORIZATION <carol>");
    session.logged_in_as("carol");
    session.is_itself();
    session.ok("ROLLBACK");
    session.logged_in_as("imp");
    session.is_itself_in_role("grp");
    session.ok("RESET ROLE");
    session.is_itself();
}

// ------------------------------------------------------------------------------------------------ S10: parallel workers ---

/// A function that a worker may run, and that says whether one did.
fn parallel_witness(stage: &Stage) {
    stage.admin(
        "CREATE FUNCTION <s>.witness(int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE STABLE AS $$
         BEGIN
             RETURN concat_ws(' ', pg_backend_pid(), current_user, session_user, current_setting('role'),
                              coalesce(nullif(current_setting('impersonate.target'), ''), '-'),
                              current_setting('is_superuser'));
         END $$;
         CREATE TABLE <s>.many AS SELECT g AS a FROM generate_series(1, 100) g;
         ALTER TABLE <s>.many SET (parallel_workers = 2);
         GRANT SELECT ON <s>.many TO PUBLIC; ANALYZE <s>.many",
    );
}

fn force_parallel(session: &mut Session) {
    let version: i32 = session.value("SHOW server_version_num").parse().unwrap();
    let name = if version < 160_000 {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    session.ok(&format!(
        "SET {name} = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET parallel_leader_participation = off"
    ));
}

/// What a worker says of itself, in the order of `Session::says`.
#[track_caller]
fn in_worker(session: &mut Session) -> Vec<String> {
    let leader = session.pid().to_string();
    let said = session.column("SELECT DISTINCT <s>.witness(a) FROM <s>.many");
    let said: Vec<Vec<String>> = said
        .iter()
        .map(|row| row.split(' ').map(str::to_owned).collect())
        .collect();
    let workers: Vec<_> = said.iter().filter(|said| said[0] != leader).collect();
    assert!(!workers.is_empty(), "no worker ran it: {said:?}");
    for worker in &workers {
        assert_eq!(worker[1..], workers[0][1..]);
    }
    let mut said = workers[0][1..].to_vec();
    if said[3] == "-" {
        said[3].clear();
    }
    said
}

#[test]
fn s10_parallel_workers_run_as_the_target() {
    let stage = Stage::new();
    parallel_witness(&stage);
    let mut session = stage.session();
    force_parallel(&mut session);
    assert_eq!(in_worker(&mut session), session.expected(None, None));
    session.become_role("bob");
    assert_eq!(in_worker(&mut session), session.expected(Some("bob"), None));
    session.is("bob");
    session.ok("SET ROLE <grp>");
    assert_eq!(in_worker(&mut session), session.expected(Some("bob"), Some("grp")));
    session.is_in_role("bob", "grp");
    session.ok("BEGIN; SELECT setuser('<carol>', local => true)");
    assert_eq!(in_worker(&mut session), session.expected(Some("carol"), None));
    session.ok("COMMIT");
    assert_eq!(in_worker(&mut session), session.expected(Some("bob"), Some("grp")));
    session.ok("SELECT setuser()");
    assert_eq!(in_worker(&mut session), session.expected(None, None));
    session.is_itself();
    session.ok("SET ROLE <own>; SELECT setuser('<bob>')");
    assert_eq!(in_worker(&mut session), session.expected(Some("bob"), None));
    session.ok("SELECT setuser()");
    assert_eq!(in_worker(&mut session), session.expected(None, Some("own")));
    assert!(!stage.cluster().log().contains("TRAP"));
}

#[test]
fn s10_parallel_workers_of_a_superusers_impersonation() {
    let stage = Stage::new();
    parallel_witness(&stage);
    stage.admin("ALTER ROLE <carol> SUPERUSER");
    let mut session = stage.session_of("postgres");
    force_parallel(&mut session);
    for target in ["bob", "carol"] {
        session.become_role(target);
        assert_eq!(in_worker(&mut session), session.expected(Some(target), None));
        session.is(target);
    }
}

#[test]
fn s10_parallel_workers_start_after_a_role_of_an_ended_impersonation_was_dropped() {
    let stage = Stage::new();
    parallel_witness(&stage);
    stage.admin("CREATE ROLE <s>_gone; GRANT <s>_gone TO <bob>, <imp>");
    let mut session = stage.session();
    force_parallel(&mut session);
    session.ok("SELECT setuser('<bob>'); SET ROLE <s>_gone; SELECT setuser()");
    session.is_itself();
    stage.admin("DROP ROLE <s>_gone");
    assert_eq!(in_worker(&mut session), session.expected(None, None));
    session.is_itself();
}

#[test]
fn s10_parallel_workers_write_no_audit_rows_of_their_own() {
    let stage = Stage::new();
    parallel_witness(&stage);
    let mut session = stage.session();
    session.become_role("bob");
    force_parallel(&mut session);
    in_worker(&mut session);
    let pid = session.pid();
    stage.audit(pid, &[]);
    let others = stage.look(&stage.sql(&format!(
        "SELECT pid FROM impersonate.audit WHERE session_user_name = '<imp>' AND pid <> {pid}"
    )));
    assert!(others.is_empty(), "{others:?}");
}

// --------------------------------------------------------------------------------- S10: everything else that is cached ---

/// Runs a script twice, once with `become`/`return` as setuser() and once as SET ROLE, and compares all that came back.
#[track_caller]
fn as_after_set_role(setup: &str, script: &[&str]) {
    let mut answers = Vec::new();
    for by_role in [false, true] {
        let stage = Stage::new();
        stage.admin("GRANT <bob>, <carol> TO <imp>");
        stage.admin(setup);
        let mut session = stage.session();
        let mut answer = Vec::new();
        for step in script {
            let sql = match (*step, by_role) {
                ("bob" | "carol", false) => format!("SELECT setuser('<{step}>')"),
                ("bob" | "carol", true) => format!("SET ROLE <{step}>"),
                ("return", false) => "SELECT setuser()".to_owned(),
                ("return", true) => "RESET ROLE".to_owned(),
                (sql, _) => sql.to_owned(),
            };
            let got = session.send(Protocol::Extended, &sql);
            let change = sql != *step;
            let rows: Vec<Vec<Option<String>>> = if change { Vec::new() } else { rows_in(&got) };
            // Names differ between the two stages.
            let rows = format!("{rows:?}");
            let rows = ["imp", "bob", "carol", "grp", "own", "s"]
                .iter()
                .fold(rows, |rows, name| rows.replace(&stage.name(name), &format!("<{name}>")));
            answer.push((*step, rows, error_in(&got).map(|error| error.code)));
        }
        answers.push(answer);
    }
    assert_eq!(answers[0], answers[1], "setuser() on the left, SET ROLE on the right");
}

const POLICIES: &str = "CREATE TABLE <s>.t (owner text, a int);
     INSERT INTO <s>.t VALUES ('<imp>', 1), ('<bob>', 2), ('<carol>', 3), ('<own>', 4);
     GRANT ALL ON <s>.t TO PUBLIC; ALTER TABLE <s>.t ENABLE ROW LEVEL SECURITY;
     CREATE POLICY own ON <s>.t USING (owner = current_user);
     CREATE POLICY special ON <s>.t TO <bob> USING (owner = '<own>')";

#[test]
fn s10_row_level_security_follows_as_after_set_role() {
    as_after_set_role(
        POLICIES,
        &[
            "SELECT a FROM <s>.t ORDER BY a",
            "bob",
            "SELECT a FROM <s>.t ORDER BY a",
            "INSERT INTO <s>.t VALUES ('<imp>', 5)",
            "INSERT INTO <s>.t VALUES ('<bob>', 5)",
            "carol",
            "SELECT a FROM <s>.t ORDER BY a",
            "UPDATE <s>.t SET a = a + 10 RETURNING a",
            "return",
            "SELECT a FROM <s>.t ORDER BY a",
        ],
    );
}

#[test]
fn s10_row_level_security_shows_the_targets_rows() {
    let stage = Stage::new();
    stage.admin(POLICIES);
    let mut session = stage.session();
    let query = "SELECT a FROM <s>.t ORDER BY a";
    assert_eq!(session.column(query), ["1"]);
    session.become_role("bob");
    assert_eq!(session.column(query), ["2", "4"]);
    session.ok("BEGIN; SELECT setuser('<carol>')");
    assert_eq!(session.column(query), ["3"]);
    session.ok("ROLLBACK");
    assert_eq!(session.column(query), ["2", "4"]);
    session.ok("SELECT setuser()");
    assert_eq!(session.column(query), ["1"]);
}

#[test]
fn s10_prepared_statements_are_planned_again_as_after_set_role() {
    as_after_set_role(
        POLICIES,
        &[
            "PREPARE q AS SELECT a FROM <s>.t ORDER BY a",
            "PREPARE me AS SELECT current_user",
            "SET plan_cache_mode = force_generic_plan",
            "EXECUTE q",
            "EXECUTE me",
            "bob",
            "EXECUTE q",
            "EXECUTE me",
            "EXECUTE q",
            "carol",
            "EXECUTE q",
            "return",
            "EXECUTE q",
            "EXECUTE me",
        ],
    );
}

#[test]
fn s10_prepared_statements_of_the_protocol_are_planned_again() {
    let stage = Stage::new();
    stage.admin(POLICIES);
    let mut session = stage.session();
    let sql = stage.sql("SELECT a FROM <s>.t ORDER BY a");
    session.raw.parse("q", &sql, &[]);
    session.sync();
    let run = |session: &mut Session| -> Vec<String> {
        session.raw.bind("", "q", &[]);
        session.raw.execute("", 0);
        rows_in(&session.sync())
            .into_iter()
            .map(|row| row[0].clone().unwrap())
            .collect()
    };
    for _ in 0..7 {
        assert_eq!(run(&mut session), ["1"]);
    }
    session.become_role("bob");
    for _ in 0..7 {
        assert_eq!(run(&mut session), ["2", "4"]);
    }
    session.become_role("carol");
    assert_eq!(run(&mut session), ["3"]);
    session.ok("SELECT setuser()");
    assert_eq!(run(&mut session), ["1"]);
}

#[test]
fn s10_cursors_inside_follow_as_after_set_role() {
    as_after_set_role(
        POLICIES,
        &[
            "bob",
            "BEGIN",
            "DECLARE c CURSOR FOR SELECT a, owner, current_user FROM <s>.t ORDER BY a",
            "FETCH 1 FROM c",
            "SET ROLE <grp>",
            "FETCH ALL FROM c",
            "DECLARE d CURSOR FOR SELECT a, owner, current_user FROM <s>.t ORDER BY a",
            "FETCH 1 FROM d",
            "ROLLBACK",
            "DECLARE h CURSOR WITH HOLD FOR SELECT a, owner, current_user FROM <s>.t ORDER BY a",
            "FETCH ALL FROM h",
            "return",
        ],
    );
}

#[test]
fn s9_no_cursor_goes_from_the_impersonator_to_the_target() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN; DECLARE c CURSOR FOR SELECT current_user");
    let error = session.fails("55006", "SELECT setuser('<bob>')");
    assert_eq!(error.hint.as_deref(), Some("CLOSE ALL;"));
    session.ok("ROLLBACK");
    session.is_itself();
    session.ok("DECLARE h CURSOR WITH HOLD FOR SELECT current_user");
    session.fails("55006", "SELECT setuser('<bob>')");
    session.is_itself();
    session.ok("CLOSE ALL");
    session.become_role("bob");
    session.is("bob");
}

#[test]
fn s9_no_cursor_goes_from_the_target_to_the_impersonator() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("DECLARE h CURSOR WITH HOLD FOR SELECT current_user");
    session.become_role("carol");
    session.is("carol");
    session.fails("34000", "FETCH h");
    session.ok("BEGIN; DECLARE c CURSOR FOR SELECT current_user; SELECT setuser()");
    session.is_itself();
    session.fails("34000", "FETCH c");
    session.ok("ROLLBACK");
    session.is("carol");
}

#[test]
fn s10_temporary_tables_inside_follow_as_after_set_role() {
    as_after_set_role(
        "SELECT 1",
        &[
            "CREATE TEMP TABLE mine AS SELECT 1 AS a",
            "bob",
            "SELECT a FROM mine",
            "CREATE TEMP TABLE his AS SELECT 2 AS a",
            "SELECT a FROM his",
            "DROP TABLE mine",
            "SET ROLE <grp>",
            "SELECT a FROM his",
            "return",
            "SELECT a FROM mine",
        ],
    );
}

#[test]
fn s9_the_targets_temporary_tables_go_with_it_and_come_back_with_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("CREATE TEMP TABLE mine AS SELECT 1 AS a");
    session.become_role("bob");
    session.ok("CREATE TEMP TABLE his AS SELECT 2 AS a");
    session.ok("BEGIN; SELECT setuser()");
    session.ok("SAVEPOINT a");
    session.fails("42P01", "SELECT a FROM his");
    session.ok("ROLLBACK");
    session.is("bob");
    assert_eq!(session.value("SELECT a FROM his"), "2");
    session.become_role("carol");
    session.fails("42P01", "SELECT a FROM his");
    session.ok("SELECT setuser()");
    assert_eq!(session.value("SELECT a FROM mine"), "1");
    session.fails("42P01", "SELECT a FROM his");
}

#[test]
fn s10_privileges_and_ownership_follow_as_after_set_role() {
    as_after_set_role(
        "CREATE TABLE <s>.hers (a int); ALTER TABLE <s>.hers OWNER TO <carol>;
         CREATE FUNCTION <s>.who() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text'",
        &[
            "SELECT * FROM <s>.hers",
            "bob",
            "SELECT * FROM <s>.hers",
            "SELECT <s>.who()",
            "CREATE TABLE <s>.his (a int)",
            "CREATE ROLE <s>_no",
            "carol",
            "SELECT * FROM <s>.hers",
            "SELECT * FROM <s>.his",
            "ALTER TABLE <s>.hers ADD b int",
            "return",
            "SELECT tableowner FROM pg_tables WHERE schemaname = '<s>' ORDER BY tablename",
            "SELECT has_table_privilege('<s>.hers', 'SELECT')",
        ],
    );
}

#[test]
fn s10_show_and_current_setting_agree() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let bob = stage.name("bob");
    assert_eq!(session.value("SHOW role"), bob);
    assert_eq!(session.value("SHOW impersonate.target"), bob);
    assert_eq!(
        session.value("SELECT setting FROM pg_settings WHERE name = 'impersonate.target'"),
        bob
    );
    assert_eq!(session.value("SHOW session_authorization"), stage.name("imp"));
    session.ok("SELECT setuser()");
    assert_eq!(session.value("SHOW role"), "none");
    assert_eq!(session.value("SHOW impersonate.target"), "");
}

// ----------------------------------------------------------------------------------------------- E1: who sees what ---

#[test]
fn e1_two_sessions_may_act_as_the_same_target() {
    let stage = Stage::new();
    let (mut one, mut two) = (stage.session(), stage.session_of("postgres"));
    one.become_role("bob");
    two.become_role("bob");
    one.is("bob");
    two.is("bob");
    one.ok("SELECT setuser()");
    one.is_itself();
    two.is("bob");
}

#[test]
fn e1_an_ordinary_user_sees_its_own_impersonations_alone() {
    let stage = Stage::new();
    let count = |session: &mut Session| -> i32 {
        session
            .value("SELECT count(*) FROM impersonate.active")
            .parse()
            .unwrap()
    };
    let (mut one, mut two) = (stage.session(), stage.session_of("postgres"));
    let mut carol = stage.session_of("carol");
    one.become_role("bob");
    two.ok("SELECT setuser('<bob>')");
    assert_eq!(count(&mut carol), 0);
    // As bob one sees who acts as bob.
    assert_eq!(count(&mut one), 2);
    one.ok("SELECT setuser()");
    assert_eq!(count(&mut one), 0);
    let mut bob = stage.session_of("bob");
    assert_eq!(count(&mut bob), 1);
    stage.admin("GRANT pg_read_all_stats TO <carol>");
    assert!(count(&mut carol) >= 1);
    // A2: as it stands the impersonator would gain by acting as her.
    stage.admin("REVOKE pg_read_all_stats FROM <carol>");
    // Another session of the impersonator sees the first one's.
    one.become_role("carol");
    let mut again = stage.session();
    let seen = again.ok("SELECT pid, target FROM impersonate.active");
    assert_eq!(seen, [[Some(one.pid().to_string()), Some(stage.name("carol"))]]);
}

#[test]
fn e1_impersonations_are_known_in_every_database() {
    let stage = Stage::new();
    let elsewhere = shared().database("elsewhere");
    let mut session = stage.session();
    session.become_role("bob");
    let mut other = elsewhere.connect("postgres");
    let row = other
        .query_one(
            "SELECT database::text, impersonator::text, target::text, since <= now(), impersonation_id IS NOT NULL
                    FROM impersonate.active WHERE pid = $1",
            &[&session.pid()],
        )
        .unwrap();
    assert_eq!(row.get::<_, String>(0), stage.database());
    assert_eq!(row.get::<_, String>(1), stage.name("imp"));
    assert_eq!(row.get::<_, String>(2), stage.name("bob"));
    assert!(row.get::<_, bool>(3) && row.get::<_, bool>(4));
}

// ------------------------------------------------------------------------------------------------------ not preloaded ---

#[test]
fn not_preloaded_setuser_says_what_to_do() {
    let cluster = Cluster::builder().setting("shared_preload_libraries", "").start();
    let database = cluster.database("bare");
    let mut client = database.connect("postgres");
    let error = fails_with("55000", client.batch_execute("SELECT setuser('postgres')"));
    assert!(error.hint.unwrap().contains("shared_preload_libraries"));
    let count: i64 = client
        .query_one("SELECT count(*) FROM impersonate.active", &[])
        .unwrap()
        .get(0);
    assert_eq!(count, 0);
    client.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    // Loaded by a function's call, it changes nothing of the server.
    client
        .batch_execute("SET ROLE pg_monitor; RESET ROLE; BEGIN; SET LOCAL ROLE pg_monitor; ROLLBACK")
        .unwrap();
    assert_eq!(client.query_one("SHOW role", &[]).unwrap().get::<_, String>(0), "none");
}

/// D1: nobody thinks to act as somebody else where the library is but loaded, by each session or by a call.
#[test]
fn d1_not_preloaded_no_door_seems_to_open() {
    let cluster = Cluster::builder()
        .setting("shared_preload_libraries", "")
        .setting("session_preload_libraries", "impersonate")
        .start();
    let database = cluster.database("bare");
    let mut client = database.connect("postgres");
    let refused = |client: &mut postgres::Client| {
        for door in [
            "SELECT setuser('postgres')",
            "SET impersonate.target = 'postgres'",
            "SET LOCAL impersonate.target = 'postgres'",
            "SELECT set_config('impersonate.target', 'postgres', false)",
            "CALL impersonate.impersonate_user('postgres')",
        ] {
            let error = fails_with("55000", client.batch_execute(door));
            assert!(error.hint.unwrap().contains("shared_preload_libraries"), "{door}");
        }
        let target: String = client.query_one("SHOW impersonate.target", &[]).unwrap().get(0);
        assert_eq!(target, "");
    };
    refused(&mut client);
    client
        .batch_execute("RESET impersonate.target; SET impersonate.target = ''")
        .unwrap();
    // A dump can be restored.
    client
        .batch_execute("CREATE ROLE not_yet LOGIN; ALTER ROLE not_yet SET impersonate.target = 'postgres'")
        .unwrap();
    let mut later = database.connect("not_yet");
    let target: String = later.query_one("SHOW impersonate.target", &[]).unwrap().get(0);
    assert_eq!(target, "");
    // With no library at all, what was set before it came by a call is taken back.
    cluster.set("session_preload_libraries", "");
    cluster.reload();
    wait_until("new sessions load nothing", || {
        client = database.connect("postgres");
        let libraries = "SHOW session_preload_libraries";
        client.query_one(libraries, &[]).unwrap().get::<_, String>(0).is_empty()
    });
    client.batch_execute("SET impersonate.target = 'postgres'").unwrap();
    fails_with("55000", client.batch_execute("SELECT setuser('postgres')"));
    refused(&mut client);
}

// ---------------------------------------------------------------------------------------------- all of it, at random ---

/// A small generator of its own: the same walk at each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// S3, S10, X1: a random walk of switches, roles, savepoints, errors and ends of transactions. Beside each switch the
/// session sets an ordinary setting, which Postgres undoes as it undoes settings: that is what must be in force.
fn random_walk(seed: u64, steps: usize) {
    let stage = Stage::new();
    let mut session = stage.session();
    let mut dice = Dice(seed);
    let mut walk: Vec<String> = Vec::new();
    session.ok("SET my.target = ''; SET my.number = '0'; SET my.role = '0:none'");
    let mut number = 0;
    let mut in_block = false;
    let mut savepoints = 0_u64;
    for _ in 0..steps {
        let local = dice.roll(3) == 0;
        let scope = if local { "LOCAL" } else { "SESSION" };
        number += 1;
        let sql = match dice.roll(14) {
            0..=2 if !in_block && dice.roll(2) == 0 => continue,
            0..=2 => {
                let target = if dice.roll(2) == 0 { "<bob>" } else { "<carol>" };
                format!(
                    "SELECT setuser('{target}', local => {local}); SET {scope} my.target = '{target}';
                     SET {scope} my.number = '{number}'"
                )
            }
            3 => format!("SELECT setuser(); SET my.target = ''; SET my.number = '-{number}'"),
            4 | 5 => {
                // <own> only outside, <grp> inside and outside; carol may neither.
                let who = session.value("SHOW my.target");
                let role = if who.is_empty() { "<own>" } else { "<grp>" };
                if who == stage.name("carol") {
                    continue;
                }
                let tag = if who.is_empty() {
                    "0".to_owned()
                } else {
                    session.value("SHOW my.number")
                };
                format!("SET {scope} ROLE {role}; SET {scope} my.role = '{tag}:{role}'")
            }
            6 => {
                let reset = if dice.roll(2) == 0 {
                    "RESET ROLE"
                } else {
                    "SET ROLE NONE"
                };
                let who = session.value("SHOW my.target");
                let tag = if who.is_empty() {
                    "0".to_owned()
                } else {
                    session.value("SHOW my.number")
                };
                format!("{reset}; SET my.role = '{tag}:none'")
            }
            7 | 8 if in_block => {
                savepoints += 1;
                format!("SAVEPOINT s{savepoints}")
            }
            9 if in_block && savepoints > 0 => {
                let to = savepoints - dice.roll(savepoints.min(3));
                savepoints = to;
                format!("ROLLBACK TO s{to}")
            }
            10 if in_block && savepoints > 0 => {
                savepoints -= 1;
                format!("RELEASE s{}", savepoints + 1)
            }
            11 if in_block => {
                in_block = false;
                savepoints = 0;
                ["COMMIT", "ROLLBACK"][dice.roll(2) as usize].to_owned()
            }
            12 if in_block && savepoints > 0 => {
                session.fails("22012", "SELECT 1/0");
                format!("ROLLBACK TO s{savepoints}")
            }
            13 if !in_block => {
                in_block = true;
                "BEGIN".to_owned()
            }
            _ => continue,
        };
        walk.push(sql.clone());
        session.ok(&sql);
        let target = session.value("SHOW my.target");
        let number = session.value("SHOW my.number");
        let role = session.value("SHOW my.role");
        let (tag, role) = role.split_once(':').unwrap();
        let target = (!target.is_empty()).then_some(target);
        // A role set inside another impersonation, or outside while inside one, doesn't count.
        let counts = match target {
            Some(_) => tag == number,
            None => tag == "0",
        };
        let role = (role != "none" && counts).then(|| role.to_owned());
        let expected = session.expected(target.as_deref(), role.as_deref());
        let tail = &walk[walk.len().saturating_sub(25)..];
        let says = session.says();
        assert_eq!(says, expected, "after {tail:#?}");
        if dice.roll(5) == 0 {
            session.told(target.as_deref());
        }
    }
    session.ok("ROLLBACK");
    session.ok("SELECT setuser()");
    session.told(None);
}

#[test]
fn s3_a_random_walk_never_disagrees_1() {
    random_walk(0x9E37_79B9_7F4A_7C15, 400);
}

#[test]
fn s3_a_random_walk_never_disagrees_2() {
    random_walk(0xD1B5_4A32_D192_ED03, 400);
}

/// The protocol's portals are cursors, too, read in part or not at all.
#[test]
fn s9_no_portal_of_the_protocol_goes_from_one_to_the_other() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.his AS SELECT generate_series(1, 9) AS a; GRANT SELECT ON <s>.his TO <bob>;
         CREATE TABLE <s>.hers AS SELECT generate_series(1, 9) AS a; GRANT SELECT ON <s>.hers TO <imp>",
    );
    let code = |answer: &[Message]| error_in(answer).map(|error| error.code).unwrap_or_default();
    for in_block in [true, false] {
        for read in [0, 1] {
            let open = |client: &mut RawClient, sql: &str| {
                client.parse("", &stage.sql(sql), &[]);
                client.bind("p", "", &[]);
                if read > 0 {
                    client.execute("p", read);
                }
                if in_block {
                    // A Sync in a block leaves portals open.
                    client.sync();
                    client.flush();
                    let answer = client.read_until_ready();
                    assert!(error_in(&answer).is_none(), "{sql}: {answer:?}");
                }
            };
            let switch = |client: &mut RawClient, sql: &str| {
                client.parse("", &stage.sql(sql), &[]);
                client.bind("", "", &[]);
                client.execute("", 0);
                client.execute("p", 0);
                client.sync();
                client.flush();
                client.read_until_ready()
            };
            for (begin, end) in [
                ("SELECT setuser('<bob>')", "SELECT setuser()"),
                ("SELECT setuser('<bob>')", "RESET impersonate.target"),
                ("SELECT setuser('<bob>')", "SELECT setuser('<carol>')"),
                ("SELECT setuser('<bob>')", "SELECT setuser('<carol>', local => true)"),
            ] {
                let mut client = RawClient::connect(stage.cluster(), &stage.name("imp"), stage.database());
                client.simple(&stage.sql(begin));
                if in_block {
                    client.simple("BEGIN");
                }
                open(&mut client, "SELECT a, current_user FROM <s>.his");
                let answer = switch(&mut client, end);
                let expected = if end.contains("local") { "55006" } else { "34000" };
                assert_eq!(code(&answer), expected, "{end}, {read}, {in_block}: {answer:?}");
            }
            let mut client = RawClient::connect(stage.cluster(), &stage.name("imp"), stage.database());
            if in_block {
                client.simple("BEGIN");
            }
            open(&mut client, "SELECT a, current_user FROM <s>.hers");
            let answer = switch(&mut client, "SELECT setuser('<bob>')");
            assert_eq!(code(&answer), "55006", "{read}, {in_block}: {answer:?}");
        }
    }
}
