mod stage;

use stage::Stage;

#[test]
fn x1_s10_a_functions_set_clause_counts_in_a_parallel_worker_as_in_its_leader() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.who() RETURNS text LANGUAGE sql PARALLEL SAFE
             AS $$ SELECT concat_ws('/', current_user, session_user, current_setting('role')) $$;
         CREATE FUNCTION <s>.as_grp() RETURNS text LANGUAGE sql PARALLEL SAFE SET role = '<grp>' AS 'SELECT <s>.who()';
         CREATE FUNCTION <s>.as_own() RETURNS text LANGUAGE sql PARALLEL SAFE SET role = '<own>' AS 'SELECT <s>.who()';
         CREATE FUNCTION <s>.as_none() RETURNS text LANGUAGE sql PARALLEL SAFE SET role = 'none' AS 'SELECT <s>.who()';
         CREATE FUNCTION <s>.as_imp() RETURNS text LANGUAGE sql PARALLEL SAFE SET session_authorization = '<imp>'
             AS 'SELECT <s>.who()'",
    );
    let forced = if stage.look("SHOW server_version_num")[0][0].as_deref() < Some("160000") {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    let (imp, bob, grp) = (stage.name("imp"), stage.name("bob"), stage.name("grp"));
    let itself = format!("{imp}/{imp}/none");
    let (as_bob, as_grp) = (format!("{bob}/{imp}/{bob}"), format!("{grp}/{imp}/{grp}"));
    for parallel in ["off", "on"] {
        let mut session = stage.session();
        session.ok(&format!("SET {forced} = {parallel}"));
        // Outside any impersonation: as Postgres has it.
        assert_eq!(session.value("SELECT <s>.as_grp()"), as_grp, "{parallel}");
        assert_eq!(session.value("SELECT <s>.who()"), itself, "{parallel}");
        // The value of role is given or left out, which a worker is told apart.
        for before in ["RESET ROLE", "SET ROLE NONE", "SET ROLE <own>"] {
            session.ok(before);
            session.become_role("bob");
            let value =
                session.value("SELECT concat_ws(' ', <s>.who(), <s>.as_grp(), <s>.who(), <s>.as_none(), <s>.who())");
            assert_eq!(
                value,
                [&*as_bob, &as_grp, &as_bob, &as_bob, &as_bob].join(" "),
                "{parallel} {before}"
            );
            session.fails("42501", "SELECT <s>.as_own()");
            session.fails("42501", "SELECT <s>.as_imp()");
            session.ok("SET ROLE <grp>");
            let value = session.value("SELECT concat_ws(' ', <s>.who(), <s>.as_none(), <s>.who())");
            assert_eq!(value, [&*as_grp, &as_bob, &as_grp].join(" "), "{parallel} {before}");
            session.ok("RESET ROLE");
            session.is("bob");
            session.ok("SELECT setuser()");
        }
    }
}

#[test]
fn l3_a_statement_that_changes_application_name_is_on_record_in_full() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let statement = "SELECT set_config('application_name', repeat('x', 63), false), 'the text'";
    session.ok(statement);
    let rows = stage.audit(session.pid(), &["STATEMENT"]);
    assert_eq!(rows[0].statement.as_deref(), Some(statement));
}

#[test]
fn l3_a_statement_that_does_not_parse_is_on_record_right_after_a_switch_over() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.become_role("carol");
    session.fails("42703", "SELECT nosuch");
    let rows = stage.audit(session.pid(), &["STATEMENT"]);
    assert!(rows
        .iter()
        .any(|row| row.sqlstate == "42703" && row.statement.as_deref() == Some("SELECT nosuch")));
}
