//! S9: the end of an impersonation gives back the session as it was. What of a session could act on the impersonator
//! later is put back, removed, or shown here to be harmless; SECURITY.md has the list.

mod stage;

use impersonate_server_tests::raw::error_in;
use stage::{Kind, Session, Stage, PROTOCOLS};

/// The ways in which an impersonation that was begun in the transaction at hand can be over, with what is left in force.
const ENDS: [&str; 5] = [
    "SELECT setuser()",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK TO before_it",
    "DISCARD ALL",
];

/// Runs `inside` as the target, in a transaction if the end asks for one, and ends it this way.
#[track_caller]
fn left_by(session: &mut Session, end: &str, inside: &[&str]) {
    match end {
        "COMMIT" | "ROLLBACK" => {
            session.ok("BEGIN");
            session.ok("SELECT setuser('<bob>', local => true)");
        }
        "ROLLBACK TO before_it" => {
            session.ok("BEGIN");
            session.ok("SAVEPOINT before_it");
            session.become_role("bob");
        }
        _ => session.become_role("bob"),
    }
    for statement in inside {
        session.ok(statement);
    }
    session.ok(end);
    if end.starts_with("ROLLBACK TO") {
        session.ok("COMMIT");
    }
    session.is_itself();
}

// ----------------------------------------------------------------------------------------------------------- settings ---

/// Those that the target could set itself, for as long as it lasts: the ones for this database come before the others.
#[test]
fn s8_the_targets_settings_apply_while_it_lasts() {
    let stage = Stage::new();
    let database = stage.database();
    stage.admin(&format!(
        "ALTER ROLE <bob> SET work_mem = '77MB'; ALTER ROLE <bob> IN DATABASE {database} SET statement_timeout = '55s';
         ALTER ROLE <bob> SET statement_timeout = '44s'; ALTER ROLE <bob> SET search_path = bobs, more;
         ALTER ROLE <bob> SET app.colour = 'red'; ALTER ROLE <bob> SET log_statement = 'ddl';
         ALTER ROLE <bob> SET role = '<grp>'; ALTER ROLE <bob> SET impersonate.reason = 'his'"
    ));
    let all = "SELECT concat_ws('|', current_setting('work_mem'), current_setting('statement_timeout'),
                     current_setting('search_path'), COALESCE(current_setting('app.colour', true), ''),
                     current_setting('log_statement'))";
    for end in ENDS {
        let mut session = stage.session();
        session.ok("SET work_mem = '5MB'");
        let before = session.value(all);
        match end {
            "COMMIT" => {
                session.ok("BEGIN");
                session.ok("SELECT setuser('<bob>', with_settings => true, local => true)");
            }
            "ROLLBACK" | "ROLLBACK TO before_it" => {
                session.ok("BEGIN");
                session.ok("SAVEPOINT before_it");
                session.ok("SELECT setuser('<bob>', with_settings => true)");
            }
            _ => _ = session.ok("SELECT setuser('<bob>', with_settings => true)"),
        }
        session.is("bob");
        assert_eq!(session.value(all), "77MB|55s|bobs, more|red|none", "{end}");
        assert_eq!(session.value("SHOW role"), stage.name("bob"), "{end}");
        assert_eq!(session.value("SHOW impersonate.reason"), "", "{end}");
        session.ok("SET work_mem = '9MB'");
        session.ok(end);
        if end.starts_with("ROLLBACK TO") {
            session.ok("COMMIT");
        }
        session.is_itself();
        if end != "DISCARD ALL" {
            assert_eq!(session.value(all), before, "{end}");
        }
    }
    // Without being asked, and after a switch over without them, none.
    let mut session = stage.session();
    let before = session.value(all);
    session.become_role("bob");
    assert_eq!(session.value(all), before);
    session.ok("SELECT setuser('<bob>', with_settings => true)");
    session.ok("SELECT setuser('<bob>')");
    assert_ne!(session.value("SHOW work_mem"), "77MB");
}

/// What cannot be changed while impersonating is passed over.
#[test]
fn s8_a_superusers_settings_of_libraries_are_passed_over() {
    let stage = Stage::new();
    Kind::Superuser.empower(&stage);
    stage.admin(
        "ALTER ROLE <bob> SET dynamic_library_path = '/tmp'; ALTER ROLE <bob> SET \"Allow_System_Table_Mods\" = on;
         ALTER ROLE <bob> SET log_statement = 'ddl'",
    );
    let mut session = stage.session();
    let before = session.value("SHOW dynamic_library_path");
    session.ok("SELECT setuser('<bob>', with_settings => true)");
    assert_eq!(session.value("SHOW log_statement"), "ddl");
    assert_eq!(session.value("SHOW dynamic_library_path"), before);
    assert_eq!(session.value("SHOW allow_system_table_mods"), "off");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s9_a_setting_that_was_local_before_is_local_again() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        // Kinds of settings: a number with a unit, an enum, a switch, a real number, text, and one that nobody defined.
        for (name, session_value, local_value, inside_value) in [
            ("work_mem", "'1MB'", "'2MB'", "'3MB'"),
            ("bytea_output", "escape", "hex", "escape"),
            ("enable_seqscan", "off", "on", "off"),
            ("seq_page_cost", "1.2345678901", "2.3456789012", "3.5"),
            ("search_path", "a, b", "c, d", "e"),
            ("app.user_name", "one", "two", "three"),
        ] {
            for known in [true, false] {
                let mut session = stage.session();
                if known {
                    session.ok(&format!("SET {name} = {session_value}"));
                }
                let before = session.ok(&format!("SELECT current_setting('{name}', true)"));
                session.ok_by(protocol, "BEGIN");
                session.ok_by(protocol, &format!("SET LOCAL {name} = {local_value}"));
                let local = session.value(&format!("SHOW {name}"));
                session.ok_by(protocol, "SELECT setuser('<bob>')");
                session.ok_by(protocol, &format!("SET {name} = {inside_value}"));
                session.ok_by(protocol, "SELECT setuser()");
                assert_eq!(session.value(&format!("SHOW {name}")), local, "{protocol:?} {name}");
                session.ok_by(protocol, "COMMIT");
                let after = session.ok(&format!("SELECT current_setting('{name}', true)"));
                // A custom one that never had a value has an empty one, as after any SET LOCAL.
                if name == "app.user_name" && !known {
                    assert_eq!(after[0][0].as_deref().unwrap_or_default(), "");
                } else {
                    assert_eq!(after, before, "{protocol:?} {name}");
                }
                session.is_itself();
            }
        }
    }
}

/// What SET LOCAL hides is not always in the entry on top: there may be one for each savepoint.
#[test]
fn s9_a_setting_that_was_local_in_a_savepoint_is_local_again() {
    let stage = Stage::new();
    for (setting, read, value) in [
        ("work_mem", "SHOW work_mem", ["'1MB'", "'2MB'", "'3MB'", "'5MB'"]),
        ("role", "SHOW role", ["<own>", "<grp>", "<own>", "<grp>"]),
    ] {
        let mut session = stage.session();
        session.ok(&format!("SET {setting} = {}", value[0]));
        let before = session.value(read);
        session.ok("BEGIN");
        session.ok(&format!("SET LOCAL {setting} = {}", value[1]));
        session.ok("SAVEPOINT a");
        session.ok("SAVEPOINT b");
        session.ok(&format!("SET LOCAL {setting} = {}", value[2]));
        let local = session.value(read);
        session.become_role("bob");
        session.ok(&format!("SET {setting} = {}", value[3]));
        session.ok("SELECT setuser()");
        assert_eq!(session.value(read), local, "{setting}");
        session.ok("RELEASE b");
        session.ok("RELEASE a");
        assert_eq!(session.value(read), local, "{setting}");
        session.ok("COMMIT");
        assert_eq!(session.value(read), before, "{setting}");
    }
}

/// SET and SET LOCAL of one transaction, in both orders, and the way back by a savepoint.
#[test]
fn s9_what_a_commit_would_have_left_is_what_it_leaves() {
    let stage = Stage::new();
    for (script, local, after) in [
        (
            &["SET work_mem = '1MB'", "SET LOCAL work_mem = '2MB'"][..],
            "2MB",
            "1MB",
        ),
        (&["SET LOCAL work_mem = '2MB'", "SET work_mem = '1MB'"], "1MB", "1MB"),
        (
            &["SET LOCAL work_mem = '2MB'", "SET LOCAL work_mem TO DEFAULT"],
            "4MB",
            "4MB",
        ),
        (&["SET work_mem = '1MB'", "SET LOCAL work_mem TO DEFAULT"], "4MB", "1MB"),
        (
            &[
                "SET work_mem = '1MB'",
                "SAVEPOINT a",
                "SET LOCAL work_mem = '2MB'",
                "RELEASE a",
            ],
            "2MB",
            "1MB",
        ),
        (
            &[
                "SET LOCAL work_mem = '2MB'",
                "SAVEPOINT a",
                "SET work_mem = '1MB'",
                "SAVEPOINT b",
                "SET LOCAL work_mem = '3MB'",
            ],
            "3MB",
            "1MB",
        ),
    ] {
        for inside in [
            "SET work_mem = '9MB'",
            "SET LOCAL work_mem = '9MB'",
            "RESET work_mem",
            "RESET ALL",
            "SELECT 1",
        ] {
            let mut session = stage.session();
            session.ok("BEGIN");
            for statement in script {
                session.ok(statement);
            }
            session.become_role("bob");
            session.ok(inside);
            session.ok("SELECT setuser()");
            assert_eq!(session.value("SHOW work_mem"), local, "{script:?} {inside}");
            session.ok("COMMIT");
            assert_eq!(session.value("SHOW work_mem"), after, "{script:?} {inside}");
        }
    }
}

#[test]
fn s9_a_setting_local_to_the_transaction_that_began_it_is_gone_after_that() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SET work_mem = '1MB'");
    session.ok("BEGIN");
    session.ok("SET LOCAL work_mem = '2MB'");
    session.become_role("bob");
    session.ok("COMMIT");
    session.ok("SET work_mem = '3MB'");
    session.ok("SELECT setuser()");
    assert_eq!(session.value("SHOW work_mem"), "1MB");
}

#[test]
fn s9_custom_settings_and_search_paths_made_inside_are_gone() {
    let stage = Stage::new();
    for end in ENDS {
        let mut session = stage.session();
        let search_path = session.value("SHOW search_path");
        left_by(
            &mut session,
            end,
            &[
                "SELECT set_config('app.user_name', 'root', false)",
                "SET search_path = pg_temp, pg_catalog",
                "SET session_replication_role TO DEFAULT",
            ][..2],
        );
        let left = session.ok("SELECT current_setting('app.user_name', true)");
        assert_eq!(left[0][0].as_deref().unwrap_or_default(), "", "{end}");
        assert_eq!(session.value("SHOW search_path"), search_path, "{end}");
    }
}

// --------------------------------------------------------------------------------------------------------------- role ---

#[test]
fn s9_a_local_one_over_a_lasting_one_gives_back_the_targets_role() {
    let stage = Stage::new();
    stage.admin("GRANT <grp> TO <carol>");
    for protocol in PROTOCOLS {
        for inside in [
            "SET ROLE <grp>",
            "SET LOCAL ROLE <grp>",
            "SET ROLE NONE",
            "RESET ROLE",
            "SELECT 1",
        ] {
            let mut session = stage.session();
            session.ok("SET ROLE <own>");
            session.become_role("bob");
            session.ok_by(protocol, "SET ROLE <grp>");
            session.is_in_role("bob", "grp");
            session.ok_by(protocol, "BEGIN");
            session.ok_by(protocol, "SELECT setuser('<carol>', local => true)");
            session.ok_by(protocol, inside);
            session.ok_by(protocol, "COMMIT");
            session.is_in_role("bob", "grp");
            session.ok_by(protocol, "SELECT setuser()");
            session.is_itself_in_role("own");
        }
    }
}

/// The role that the target had set as SET LOCAL is over with the transaction; the one under it is not.
#[test]
fn s9_a_local_one_over_a_role_that_was_local_gives_back_the_one_under_it() {
    let stage = Stage::new();
    stage.admin("GRANT <grp> TO <carol>; CREATE ROLE <s>_two; GRANT <s>_two TO <bob>, <imp>, <carol>");
    let two = stage.sql("<s>_two");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SET ROLE <s>_two");
    session.ok("BEGIN");
    session.ok("SET LOCAL ROLE <grp>");
    session.ok("SELECT setuser('<carol>', local => true)");
    session.ok("SET ROLE <grp>");
    // The second takes the first one's place.
    session.ok("SELECT setuser('<carol>', local => true)");
    session.ok("SET ROLE <s>_two");
    session.ok("COMMIT");
    session.is_in_role("bob", &two);
    session.ok("RESET ROLE");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s9_a_role_that_is_gone_meanwhile_does_not_come_back() {
    let stage = Stage::new();
    stage.admin("GRANT <grp> TO <carol>; CREATE ROLE <s>_gone");
    for end in ["REVOKE <s>_gone FROM <bob>", "DROP ROLE <s>_gone"] {
        stage.admin("GRANT <s>_gone TO <bob>, <imp>");
        let mut session = stage.session();
        session.become_role("bob");
        session.ok("SET ROLE <s>_gone");
        session.ok("BEGIN");
        session.ok("SELECT setuser('<carol>', local => true)");
        session.ok("SET ROLE <grp>");
        stage.admin(end);
        session.ok("COMMIT");
        session.is("bob");
    }
}

// ------------------------------------------------------------------------------------------------ prepared statements ---

#[test]
fn s9_a_rollback_leaves_no_planted_statement() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.plant() RETURNS void LANGUAGE plpgsql
             AS $$ BEGIN PREPARE by_code AS SELECT 'theirs'; END $$",
    );
    for end in ENDS {
        let mut session = stage.session();
        session.ok("PREPARE mine AS SELECT 'mine'");
        left_by(
            &mut session,
            end,
            &[
                "PREPARE by_hand AS SELECT 'theirs'",
                "SELECT <s>.plant()",
                "EXECUTE by_hand",
            ],
        );
        let expected: &[&str] = if end == "DISCARD ALL" { &[] } else { &["mine"] };
        assert_eq!(
            session.column("SELECT name FROM pg_prepared_statements"),
            expected,
            "{end}"
        );
        session.ok("PREPARE by_code AS SELECT 'hers'");
        assert_eq!(session.value("EXECUTE by_code"), "hers");
    }
}

/// One that was there already under that name is not theirs, also when both are of one message.
#[test]
fn s9_her_own_statements_stay_whatever_the_target_prepares() {
    let stage = Stage::new();
    for end in ["ROLLBACK", "COMMIT"] {
        let mut session = stage.session();
        session.ok("PREPARE mine AS SELECT 'mine'");
        session.ok("BEGIN; PREPARE late AS SELECT 'mine'; SELECT setuser('<bob>', local => true)");
        session.ok("SAVEPOINT a");
        session.fails("42P05", "PREPARE mine AS SELECT 'theirs'");
        session.ok("ROLLBACK TO a");
        session.ok("DO $$ BEGIN PREPARE late AS SELECT 'theirs'; EXCEPTION WHEN OTHERS THEN NULL; END $$");
        session.ok(end);
        session.is_itself();
        assert_eq!(session.value("EXECUTE mine"), "mine", "{end}");
        assert_eq!(session.value("EXECUTE late"), "mine", "{end}");
    }
}

/// Her own statement under whose name the target's code put another is gone rather than changed.
#[test]
fn s9_a_statement_put_in_the_place_of_hers_is_gone() {
    let stage = Stage::new();
    for end in ENDS {
        let mut session = stage.session();
        session.ok("PREPARE mine AS SELECT 'mine'");
        left_by(
            &mut session,
            end,
            &["DO $$ BEGIN DEALLOCATE mine; PREPARE mine AS SELECT 'theirs'; END $$"],
        );
        session.fails("26000", "EXECUTE mine");
    }
}

/// A local one that is rolled back takes its own along, and not those of the lasting one that it lay over.
#[test]
fn s9_a_rollback_of_a_local_one_leaves_the_statements_of_the_lasting_one() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("PREPARE of_bob AS SELECT 'bob'");
    session.ok("BEGIN");
    session.ok("SELECT setuser('<carol>', local => true)");
    session.ok("PREPARE of_carol AS SELECT 'carol'");
    session.ok("ROLLBACK");
    session.is("bob");
    assert_eq!(session.column("SELECT name FROM pg_prepared_statements"), ["of_bob"]);
    session.ok("SELECT setuser()");
    assert_eq!(session.column("SELECT name FROM pg_prepared_statements"), [""; 0]);
}

#[test]
fn s9_a_rollback_of_both_leaves_no_statement_of_either() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session.become_role("bob");
    session.ok("PREPARE of_bob AS SELECT 'bob'");
    session.ok("SELECT setuser('<carol>', local => true)");
    session.ok("PREPARE of_carol AS SELECT 'carol'");
    session.ok("ROLLBACK");
    session.is_itself();
    assert_eq!(session.column("SELECT name FROM pg_prepared_statements"), [""; 0]);
}

/// A statement that is being executed when an error ends the impersonation that it was prepared in.
#[test]
fn s9_a_planted_statement_that_fails_goes_without_harm() {
    let stage = Stage::new();
    let mut session = stage.session();
    for _ in 0..8 {
        session.ok("BEGIN");
        session.become_role("bob");
        session.ok("PREPARE p(int) AS SELECT 1 / $1");
        for _ in 0..6 {
            session.ok("EXECUTE p(1)");
        }
        session.fails("22012", "EXECUTE p(0)");
        session.ok("ROLLBACK");
        session.fails("26000", "EXECUTE p(1)");
        // By the protocol, under the name that SQL gave.
        session.ok("BEGIN");
        session.become_role("bob");
        session.ok("PREPARE q AS SELECT 1 / (random() * 0)::int");
        session.raw.bind("", "q", &[]);
        session.raw.execute("", 0);
        assert_eq!(error_in(&session.sync()).unwrap().code, "22012");
        session.ok("ROLLBACK");
        session.is_itself();
        session.fails("26000", "EXECUTE q");
    }
}

/// What the client itself prepared by the protocol, a driver keeps count of. It stays, and is the session's: it runs
/// with the privileges and names of whoever executes it.
#[test]
fn s9_statements_of_the_protocol_stay_and_run_as_whoever_executes_them() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.theirs AS SELECT 1; GRANT SELECT ON <s>.theirs TO <bob>");
    for end in ENDS {
        let mut session = stage.session();
        match end {
            "COMMIT" | "ROLLBACK" => session.ok("BEGIN; SELECT setuser('<bob>', local => true)"),
            "ROLLBACK TO before_it" => session.ok("BEGIN; SAVEPOINT before_it; SELECT setuser('<bob>')"),
            _ => session.ok("SELECT setuser('<bob>')"),
        };
        session.raw.parse("who", "SELECT current_user::text", &[]);
        session.raw.parse("table", "TABLE theirs", &[]);
        for name in ["who", "table"] {
            session.raw.bind("", name, &[]);
            session.raw.execute("", 0);
        }
        assert_eq!(error_in(&session.sync()), None);
        session.ok(end);
        if end.starts_with("ROLLBACK TO") {
            session.ok("COMMIT");
        }
        let mut run = |name: &str| {
            session.raw.bind("", name, &[]);
            session.raw.execute("", 0);
            session.sync()
        };
        let error = |answer: &[_]| error_in(answer).map(|error| error.code);
        if end == "DISCARD ALL" {
            assert_eq!(error(&run("who")).as_deref(), Some("26000"));
        } else {
            let rows = impersonate_server_tests::raw::rows_in(&run("who"));
            assert_eq!(rows, [[Some(stage.name("imp"))]], "{end}");
            assert_eq!(error(&run("table")).as_deref(), Some("42501"), "{end}");
        }
        session.is_itself();
    }
}

// ------------------------------------------------------------------------------------------------- temporary objects ---

/// Of every kind that a temporary schema can hold. Nothing is left, nor is anything of hers gone.
#[test]
fn s9_temporary_objects_of_every_kind_go() {
    let stage = Stage::new();
    const KINDS: [&str; 16] = [
        "CREATE TEMP TABLE x_table (a serial PRIMARY KEY, b text DEFAULT 'x')",
        "CREATE INDEX ON x_table (b)",
        "CREATE TEMP VIEW x_view AS SELECT * FROM x_table",
        "CREATE TEMP SEQUENCE x_sequence",
        "CREATE TYPE pg_temp.x_enum AS ENUM ('a')",
        "CREATE TYPE pg_temp.x_composite AS (a int)",
        "CREATE DOMAIN pg_temp.x_domain AS text",
        "CREATE TYPE pg_temp.x_range AS RANGE (subtype = int)",
        "CREATE FUNCTION pg_temp.x_function(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE PROCEDURE pg_temp.x_procedure() LANGUAGE sql AS 'SELECT 1'",
        "CREATE AGGREGATE pg_temp.x_aggregate(int) (sfunc = int4pl, stype = int)",
        "CREATE OPERATOR pg_temp.=== (function = int4eq, leftarg = int, rightarg = int)",
        "CREATE COLLATION pg_temp.x_collation FROM \"C\"",
        "CREATE TEXT SEARCH CONFIGURATION pg_temp.x_search (copy = pg_catalog.english)",
        "CREATE STATISTICS pg_temp.x_statistics ON a, b FROM x_table",
        "CREATE TEMP TABLE x_partitioned (a int) PARTITION BY LIST (a)",
    ];
    let count = "SELECT count(*) FROM pg_depend
                  WHERE refclassid = 'pg_namespace'::regclass AND refobjid = pg_my_temp_schema()";
    for end in ENDS {
        let mut session = stage.session();
        session.ok("CREATE TEMP TABLE mine (a int); CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql RETURN 1");
        let before = session.value(count);
        left_by(&mut session, end, &KINDS);
        let expected = if end == "DISCARD ALL" { "0" } else { &before };
        assert_eq!(session.value(count), expected, "{end}");
        if end != "DISCARD ALL" {
            session.ok("TABLE mine");
            session.ok("SELECT pg_temp.mine()");
        }
    }
}

/// DROP TABLE would run event triggers, and as a superuser.
#[test]
fn s9_removing_what_was_left_runs_nobodys_code() {
    let stage = Stage::alone();
    stage.admin(
        "CREATE TABLE <s>.ran (what text); GRANT ALL ON <s>.ran TO PUBLIC;
         CREATE FUNCTION <s>.ev() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO <s>.ran VALUES (tg_event || ' as ' || current_user); END $$;
         CREATE EVENT TRIGGER ev ON sql_drop EXECUTE FUNCTION <s>.ev();
         CREATE EVENT TRIGGER ev2 ON ddl_command_end WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION <s>.ev()",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("CREATE TEMP TABLE theirs (a int)");
    session.ok("SELECT setuser()");
    session.fails("42P01", "TABLE theirs");
    assert!(stage.look("TABLE <s>.ran").is_empty());
}

// ------------------------------------------------------------------------------------------------------ large objects ---

/// An open large object is read with the rights of whoever opened it.
#[test]
fn s9_no_large_object_stays_open_over_a_switch() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SELECT lo_from_bytea(0, 'hers')");
    session.ok("BEGIN");
    let object = session.value("SELECT lo_from_bytea(0, 'hers')");
    assert_eq!(session.value(&format!("SELECT lo_open({object}, 262144)")), "0");
    session.become_role("bob");
    session.fails("42704", "SELECT loread(0, 100)");
    session.ok("ROLLBACK");

    session.ok("BEGIN");
    session.become_role("bob");
    let object = session.value("SELECT lo_from_bytea(0, 'theirs')");
    assert_eq!(session.value(&format!("SELECT lo_open({object}, 262144)")), "0");
    assert_eq!(session.value("SELECT loread(0, 100)"), "\\x746865697273");
    session.ok("SELECT setuser()");
    session.fails("42704", "SELECT loread(0, 100)");
    session.ok("ROLLBACK");
    session.is_itself();
}

// ------------------------------------------------------------------------------------------- LISTEN and advisory locks ---

#[test]
fn s9_what_the_target_listens_to_she_does_not() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.plant() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN by_code; LISTEN hers; END $$",
    );
    for end in ENDS {
        let mut session = stage.session();
        session.ok("LISTEN hers");
        left_by(&mut session, end, &["LISTEN by_hand", "SELECT <s>.plant()"]);
        let expected: &[&str] = if end == "DISCARD ALL" { &[] } else { &["hers"] };
        assert_eq!(session.column("SELECT pg_listening_channels()"), expected, "{end}");
    }
    // In transactions of their own, so that it has taken effect when it ends.
    let mut session = stage.session();
    session.ok("LISTEN hers");
    session.become_role("bob");
    session.ok("SELECT <s>.plant()");
    session.ok("BEGIN");
    session.ok("LISTEN by_hand");
    session.ok("SELECT setuser()");
    session.ok("COMMIT");
    assert_eq!(session.column("SELECT pg_listening_channels()"), ["hers"]);
}

/// An advisory lock is a number that is taken, whoever took it: it runs nothing, and the target could hold it in a
/// connection of its own for as long as it likes. It goes with the connection or with DISCARD ALL, and she can let go of it.
#[test]
fn s9_session_level_advisory_locks_stay_and_she_can_release_them() {
    let stage = Stage::new();
    let mut session = stage.session();
    let held = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = {}",
        session.pid()
    );
    for end in ENDS {
        session.ok("SELECT pg_advisory_lock(1)");
        left_by(
            &mut session,
            end,
            &["SELECT pg_advisory_lock(2)", "SELECT pg_advisory_xact_lock(3)"],
        );
        let expected = if end == "DISCARD ALL" { "0" } else { "2" };
        assert_eq!(stage.look(&held)[0][0].as_deref(), Some(expected), "{end}");
        session.ok("SELECT pg_advisory_unlock_all()");
        assert_eq!(stage.look(&held)[0][0].as_deref(), Some("0"), "{end}");
    }
}

// ---------------------------------------------------------------------------------------------------------- sequences ---

/// What currval() and lastval() remember is the last number drawn in the session, by whatever code: as with any function
/// that she calls. Reading it takes privileges on the sequence all the same.
#[test]
fn s9_what_sequences_remember_takes_privileges_to_read() {
    let stage = Stage::new();
    stage.admin("CREATE SEQUENCE <s>.theirs START 77; GRANT ALL ON SEQUENCE <s>.theirs TO <bob>");
    for end in ENDS {
        let mut session = stage.session();
        left_by(&mut session, end, &["SELECT nextval('<s>.theirs')"]);
        session.fails("42501", "SELECT currval('<s>.theirs')");
        let state = if end == "DISCARD ALL" { "55000" } else { "42501" };
        session.fails(state, "SELECT lastval()");
    }
}

// --------------------------------------------------------------------------------------------------------------- plans ---

/// Plans that functions keep are made anew for another role and search path.
#[test]
fn s9_plans_made_inside_do_not_serve_her() {
    let stage = Stage::new();
    stage.admin(
        "CREATE SCHEMA <s>_theirs; GRANT ALL ON SCHEMA <s>_theirs TO PUBLIC;
         CREATE TABLE <s>.t AS SELECT 'hers' AS a; CREATE TABLE <s>_theirs.t AS SELECT 'theirs' AS a;
         GRANT SELECT ON <s>.t, <s>_theirs.t TO PUBLIC;
         ALTER TABLE <s>.t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON <s>.t USING (current_user = '<imp>');
         CREATE FUNCTION <s>.read() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT a FROM t); END $$",
    );
    for end in ENDS {
        let mut session = stage.session();
        left_by(
            &mut session,
            end,
            &["SELECT <s>.read()", "SET search_path = <s>_theirs", "SELECT <s>.read()"],
        );
        session.ok("SET search_path = <s>");
        assert_eq!(session.value("SELECT <s>.read()"), "hers", "{end}");
    }
}

// ---------------------------------------------------------------------------------------------------- deferred triggers ---

/// Before 18 a deferred trigger runs as whoever is in force when its time comes. What the target's tables run then is the
/// target's code.
#[test]
fn s9_no_deferred_code_of_the_targets_runs_as_her() {
    let stage = Stage::new();
    stage.admin("CREATE SCHEMA <s>_his AUTHORIZATION <bob>; GRANT USAGE ON SCHEMA <s>_his TO PUBLIC");
    let mut bob = stage.session_of("bob");
    for sql in [
        "CREATE TABLE <s>_his.log (who text); GRANT ALL ON <s>_his.log TO PUBLIC",
        "CREATE TABLE <s>_his.triggers (a int); GRANT ALL ON <s>_his.triggers TO PUBLIC",
        "CREATE FUNCTION <s>_his.trap() RETURNS trigger LANGUAGE plpgsql
             AS $$BEGIN INSERT INTO <s>_his.log VALUES (current_user); RETURN NULL; END$$",
        "CREATE CONSTRAINT TRIGGER trap AFTER INSERT ON <s>_his.triggers DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>_his.trap()",
        "CREATE TABLE <s>_his.parted (a int) PARTITION BY LIST (a); GRANT ALL ON <s>_his.parted TO PUBLIC",
        "CREATE CONSTRAINT TRIGGER trap AFTER INSERT ON <s>_his.parted DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>_his.trap()",
        "CREATE TABLE <s>_his.part PARTITION OF <s>_his.parted DEFAULT",
        // It is asked of each row, when it is written and when its time comes.
        "CREATE FUNCTION <s>_his.note() RETURNS void LANGUAGE plpgsql
             AS $$BEGIN INSERT INTO <s>_his.log VALUES (current_user); END$$",
        "CREATE FUNCTION <s>_his.counted(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql
             AS $$BEGIN PERFORM <s>_his.note(); RETURN a; END$$",
        "CREATE TABLE <s>_his.excluded (a int,
             EXCLUDE USING btree (<s>_his.counted(a) WITH =) DEFERRABLE INITIALLY DEFERRED)",
        "GRANT ALL ON <s>_his.excluded TO PUBLIC",
        "CREATE TABLE <s>_his.partly (a int,
             EXCLUDE USING btree (a WITH =) WHERE (<s>_his.counted(a) = a) DEFERRABLE INITIALLY DEFERRED)",
        "GRANT ALL ON <s>_his.partly TO PUBLIC",
        // These run nobody's code, or their table's owner's.
        "CREATE TABLE <s>_his.named (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE <s>_his.refers (a int REFERENCES <s>_his.triggers_key DEFERRABLE INITIALLY DEFERRED)",
        "GRANT ALL ON <s>_his.named, <s>_his.refers TO PUBLIC",
    ] {
        if sql.contains("triggers_key") {
            bob.ok("CREATE TABLE <s>_his.triggers_key (a int PRIMARY KEY)");
        }
        bob.ok(sql);
    }
    let old = stage.look("SELECT current_setting('server_version_num')::int < 180000")[0][0].as_deref() == Some("t");
    for table in ["triggers", "parted", "excluded", "partly"] {
        // A constraint's code is queued for what was in doubt, and is in force again.
        let write = |session: &mut Session| {
            session.ok(&format!("INSERT INTO <s>_his.{table} VALUES (1), (1)"));
            session.ok(&format!(
                "DELETE FROM <s>_his.{table} t WHERE ctid = (SELECT min(ctid) FROM <s>_his.{table})"
            ));
        };
        for end in [
            "SELECT setuser()",
            "RESET impersonate.target",
            "SET impersonate.target = ''",
            "SELECT set_config('impersonate.target', '', false)",
            "CALL impersonate.impersonate_user(NULL)",
            "SELECT setuser('<imp>')",
            "SELECT setuser('<imp>', local => true)",
        ] {
            let mut session = stage.session();
            session.ok("BEGIN");
            session.become_role("bob");
            write(&mut session);
            if old {
                let error = session.fails("55006", end);
                assert!(error
                    .hint
                    .as_deref()
                    .is_some_and(|hint| hint.contains("SET CONSTRAINTS ALL IMMEDIATE")));
                session.ok("ROLLBACK");
            } else {
                session.ok(end);
                session.ok("COMMIT");
                stage.admin(&format!("TRUNCATE <s>_his.{table}"));
            }
            // As the hint says.
            let mut session = stage.session();
            session.ok("BEGIN");
            session.become_role("bob");
            write(&mut session);
            session.ok("SET CONSTRAINTS ALL IMMEDIATE");
            session.ok(end);
            session.ok("ROLLBACK");
        }
        // The end of the transaction is an end, too; a savepoint that is gone took them along.
        for end in ["COMMIT", "ROLLBACK TO a; SELECT setuser(); COMMIT"] {
            let mut session = stage.session();
            session.ok("BEGIN");
            session.ok("SELECT setuser('<bob>', local => true)");
            session.ok("SAVEPOINT a");
            write(&mut session);
            for sql in end.split("; ") {
                session.ok(sql);
            }
            session.is_itself();
        }
        stage.admin(&format!("TRUNCATE <s>_his.{table}"));
    }
    for table in ["named", "refers"] {
        let mut session = stage.session();
        stage.admin("INSERT INTO <s>_his.triggers_key VALUES (7) ON CONFLICT DO NOTHING");
        session.ok("BEGIN");
        session.become_role("bob");
        session.ok(&format!("INSERT INTO <s>_his.{table} VALUES (7)"));
        session.ok("SELECT setuser()");
        session.ok("COMMIT");
        session.is_itself();
    }
    let who = stage.look("SELECT DISTINCT who FROM <s>_his.log");
    assert_eq!(who, [[Some(stage.name("bob"))]]);
}
