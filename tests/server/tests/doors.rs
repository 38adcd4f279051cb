//! Every door leads to the same: D1, and what is asked at each of them.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in};
use stage::{Stage, PROTOCOLS};

/// A door by which one becomes somebody, with its command tag, and one that ends it.
struct Door {
    begin: &'static str,
    end: &'static str,
    tags: (&'static str, &'static str),
}

const DOORS: [Door; 7] = [
    Door {
        begin: "SET impersonate.target = '<bob>'",
        end: "RESET impersonate.target",
        tags: ("SET", "RESET"),
    },
    Door {
        begin: "SET SESSION \"Impersonate.TARGET\" TO <bob>",
        end: "SET impersonate.target = ''",
        tags: ("SET", "SET"),
    },
    Door {
        begin: "SET impersonate.target TO '<bob>'",
        end: "SET impersonate.target TO DEFAULT",
        tags: ("SET", "RESET"),
    },
    Door {
        begin: "SELECT set_config('impersonate.target', '<bob>', false)",
        end: "SELECT set_config('impersonate.target', '', false)",
        tags: ("SELECT", "SELECT"),
    },
    Door {
        begin: "SELECT pg_catalog.set_config('IMPERSONATE.target', '<bob>', false)",
        end: "SELECT set_config('impersonate.target', NULL, false)",
        tags: ("SELECT", "SELECT"),
    },
    Door {
        begin: "CALL impersonate.impersonate_user('<bob>')",
        end: "CALL impersonate.impersonate_user(NULL)",
        tags: ("CALL", "CALL"),
    },
    Door {
        begin: "CALL impersonate.impersonate_user(target => '<bob>', reason => NULL)",
        end: "SELECT setuser()",
        tags: ("CALL", "SELECT"),
    },
];

#[test]
fn d1_every_door_begins_and_any_ends() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        for door in DOORS {
            let mut session = stage.session();
            session.ok_by(protocol, door.begin);
            session.is("bob");
            assert_eq!(session.value("SHOW impersonate.target"), stage.name("bob"));
            session.ok_by(protocol, door.end);
            session.is_itself();
            assert_eq!(stage.history(session.pid()), ["+bob", "-bob asked"], "{}", door.begin);
            let told = stage.audit(session.pid(), &["SETUSER", "RESETUSER"]);
            assert_eq!(told[0].statement, Some(stage.sql(door.begin)));
            assert_eq!(told[0].tag.as_deref(), Some(door.tags.0));
            assert_eq!(told[1].statement, Some(stage.sql(door.end)));
            assert_eq!(told[1].tag.as_deref(), Some(door.tags.1));
            let rows = stage.audit(session.pid(), &["STATEMENT"]);
            assert!(
                !rows.iter().any(|row| row.statement == Some(stage.sql(door.end))),
                "an end is told once: {rows:#?}"
            );
        }
    }
}

#[test]
fn d1_any_door_ends_what_another_began_and_switches_over() {
    let stage = Stage::new();
    let mut session = stage.session();
    for begin in DOORS {
        for end in DOORS {
            session.ok("SELECT setuser('<carol>')");
            session.ok(begin.begin);
            session.is("bob");
            session.ok(end.end);
            session.is_itself();
        }
    }
}

#[test]
fn d1_every_door_is_judged_and_a_refusal_is_on_record() {
    let stage = Stage::new();
    stage.admin("REVOKE \"SET USER\" (<bob>) FROM <imp>");
    for protocol in PROTOCOLS {
        for door in DOORS {
            let mut session = stage.session();
            let error = session.fails_by(protocol, "42501", door.begin);
            assert!(error.detail.is_some(), "{error:?}");
            assert!(error.hint.unwrap().contains("GRANT \"SET USER\""));
            session.is_itself();
            let denied = stage.audit(session.pid(), &["DENIED"]);
            assert_eq!(denied.len(), 1, "{denied:#?}");
            assert_eq!(denied[0].statement, Some(stage.sql(door.begin)));
            assert_eq!(denied[0].tag.as_deref(), Some(door.tags.0));
            assert_eq!(denied[0].sqlstate, "42501");
            // A later attempt is judged afresh (S6).
            session.ok_by(protocol, &door.begin.replace("<bob>", "<carol>"));
            session.is("carol");
            // Judged against the login: a switch over too, and a refusal leaves what is.
            session.fails_by(protocol, "42501", door.begin);
            session.is("carol");
        }
    }
}

#[test]
fn d1_nobody_of_that_name() {
    let stage = Stage::new();
    let mut session = stage.session();
    for door in DOORS {
        for name in ["nobody_of_this_name", &"x".repeat(70)] {
            session.fails("42704", &door.begin.replace("<bob>", name));
            session.is_itself();
        }
    }
}

const LOCAL: [&str; 3] = [
    "SET LOCAL impersonate.target = '<bob>'",
    "SELECT set_config('impersonate.target', '<bob>', true)",
    "SELECT setuser('<bob>', local => true)",
];

#[test]
fn s3_local_doors_last_to_the_end_of_the_transaction() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        for door in LOCAL {
            for end in ["COMMIT", "ROLLBACK"] {
                let mut session = stage.session();
                session.ok("BEGIN");
                session.ok_by(protocol, door);
                session.is("bob");
                session.ok(end);
                session.is_itself();
                // Over a lasting one.
                session.ok("SET impersonate.target = '<carol>'");
                session.ok("BEGIN");
                session.ok_by(protocol, door);
                session.is("bob");
                session.ok(end);
                session.is("carol");
                session.ok("RESET impersonate.target");
                session.is_itself();
            }
        }
    }
}

#[test]
fn s3_every_door_is_undone_as_set_is() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.d (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON <s>.d TO PUBLIC");
    for protocol in PROTOCOLS {
        for door in DOORS {
            let mut session = stage.session();
            session.ok("BEGIN");
            session.ok_by(protocol, door.begin);
            session.is("bob");
            session.ok("ROLLBACK");
            session.is_itself();

            session.ok("BEGIN; SAVEPOINT a");
            session.ok_by(protocol, door.begin);
            session.ok("ROLLBACK TO a");
            session.is_itself();
            session.ok_by(protocol, door.begin);
            session.ok("SAVEPOINT b");
            session.ok_by(protocol, door.end);
            session.is_itself();
            session.ok("ROLLBACK TO b");
            session.is("bob");
            session.ok("COMMIT");
            session.is("bob");

            session.ok("BEGIN");
            session.ok_by(protocol, door.end);
            session.is_itself();
            session.ok("INSERT INTO <s>.d VALUES (1), (1)");
            session.fails("23505", "COMMIT");
            session.is("bob");
        }
    }
}

#[test]
fn s7_no_door_goes_round_a_cookie_or_no_revert() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        for start in [
            "SELECT setuser('<carol>', cookie => 'c')",
            "SELECT setuser('<carol>', no_revert => true)",
        ] {
            let mut session = stage.session();
            session.ok(start);
            for door in DOORS {
                session.fails_by(protocol, "42501", door.begin);
                session.fails_by(protocol, "42501", door.end);
                session.is("carol");
            }
            for door in LOCAL {
                session.fails_by(protocol, "42501", door);
                session.is("carol");
            }
        }
    }
}

#[test]
fn x3_local_only_holds_at_every_door() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <imp> SET impersonate.local_only = on");
    let mut session = stage.session();
    for door in DOORS {
        session.fails("55000", door.begin);
        session.is_itself();
    }
    for door in LOCAL {
        session.ok("BEGIN");
        session.ok(door);
        session.is("bob");
        session.ok("COMMIT");
        session.is_itself();
    }
}

#[test]
fn s4_no_door_opens_from_the_inside() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.run(text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE $1; RETURN current_user; END $$;
         CREATE PROCEDURE <s>.walk(what text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; COMMIT; END $$;
         CREATE FUNCTION <s>.plain(text) RETURNS text LANGUAGE sql AS
             $$ SELECT set_config('impersonate.target', $1, false) $$;
         CREATE PROCEDURE <s>.calls(text) LANGUAGE sql AS $$ CALL impersonate.impersonate_user($1) $$",
    );
    for actor in [None, Some("carol")] {
        let mut session = stage.session();
        if let Some(actor) = actor {
            session.ok(&format!("SET impersonate.target = '<{actor}>'"));
        }
        let mut attacks = vec![
            "SELECT <s>.plain('<bob>')".to_owned(),
            "SELECT * FROM <s>.plain('<bob>')".to_owned(),
            "CALL <s>.calls('<bob>')".to_owned(),
            "CALL impersonate.impersonate_user(<s>.run('SELECT 1'))".to_owned(),
            "SELECT set_config('impersonate.target', '<bob>', false) WHERE true".to_owned(),
            "SELECT set_config('impersonate.target', '<bob>', false), 1".to_owned(),
            "SELECT set_config('impersonate.target', '<bob>', false) FROM generate_series(1, 2)".to_owned(),
            "SELECT set_config('impersonate.target', lower('<bob>'), false)".to_owned(),
            "SELECT impersonate.set_config('impersonate.target', '<bob>', false) LIMIT 1".to_owned(),
            "WITH x AS (SELECT set_config('impersonate.target', '<bob>', false)) SELECT * FROM x".to_owned(),
            "EXPLAIN ANALYZE SELECT set_config('impersonate.target', '<bob>', false)".to_owned(),
            "COPY (SELECT set_config('impersonate.target', '<bob>', false)) TO STDOUT".to_owned(),
            "UPDATE pg_settings SET setting = '<bob>' WHERE name = 'impersonate.target'".to_owned(),
        ];
        for door in DOORS.iter().map(|door| door.begin).chain(LOCAL) {
            attacks.push(format!("SELECT <s>.run($a${door}$a$)"));
            attacks.push(format!("DO $a$ BEGIN EXECUTE $b${door}$b$; END $a$"));
            attacks.push(format!("CALL <s>.walk($a${door}$a$)"));
        }
        for attack in attacks {
            for protocol in PROTOCOLS {
                session.fails_by(protocol, "0A000", &attack);
                match actor {
                    Some(actor) => session.is(actor),
                    None => session.is_itself(),
                }
            }
        }
    }
}

#[test]
fn s4_what_was_prepared_by_sql_is_no_door() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("PREPARE p AS SELECT set_config('impersonate.target', '<bob>', false)");
    session.fails("0A000", "EXECUTE p");
    session.is_itself();
    session.ok("BEGIN; DECLARE c CURSOR FOR SELECT set_config('impersonate.target', '<bob>', false)");
    session.fails("0A000", "FETCH c");
    session.ok("ROLLBACK");
    session.is_itself();
}

#[test]
fn d1_set_config_takes_parameters() {
    let stage = Stage::new();
    let mut session = stage.session();
    let bob = stage.name("bob");
    for (sql, parameters) in [
        ("SELECT set_config($1, $2, false)", vec!["impersonate.target", &bob]),
        ("SELECT set_config('impersonate.target', $1, $2)", vec![&bob, "f"]),
    ] {
        let parameters: Vec<_> = parameters.into_iter().map(Some).collect();
        let answer = session.raw.extended(sql, &parameters);
        assert_eq!(error_in(&answer), None, "{sql}");
        assert_eq!(rows_in(&answer)[0][0].as_ref(), Some(&bob));
        session.is("bob");
        session.ok("RESET impersonate.target");
        session.is_itself();
    }
    // Anything else is the server's own.
    let answer = session
        .raw
        .extended("SELECT set_config($1, $2, false)", &[Some("work_mem"), Some("2MB")]);
    assert_eq!(rows_in(&answer)[0][0].as_deref(), Some("2MB"));
    assert_eq!(session.value("SHOW work_mem"), "2MB");
    assert_eq!(
        session.value("SELECT set_config('role', '<grp>', false)"),
        stage.name("grp")
    );
    session.is_itself_in_role("grp");
}

#[test]
fn d1_whoever_may_not_call_set_config_may_not_by_our_door() {
    let stage = Stage::alone();
    stage.admin("REVOKE EXECUTE ON FUNCTION set_config(text, text, boolean) FROM PUBLIC");
    let mut session = stage.session();
    session.fails("42501", "SELECT set_config('role', '<grp>', false)");
    session.is_itself();
}

#[test]
fn s9_the_end_by_any_door_restores_the_session() {
    let stage = Stage::new();
    for door in DOORS {
        let mut session = stage.session();
        session.ok("SET work_mem = '3MB'");
        session.ok(door.begin);
        session.ok("SET work_mem = '9MB'; SET search_path = pg_temp; CREATE TEMP TABLE trap (a int)");
        session.ok(door.end);
        assert_eq!(session.value("SHOW work_mem"), "3MB");
        assert_eq!(session.value("SHOW search_path"), stage.name("s"));
        session.fails("42P01", "SELECT * FROM pg_temp.trap");
    }
}

#[test]
fn x3_discard_all_ends_and_reset_all_leaves_it() {
    let stage = Stage::new();
    for door in DOORS {
        let mut session = stage.session();
        session.ok(door.begin);
        session.ok("RESET ALL; SET search_path = <s>");
        session.is("bob");
        session.ok("DISCARD ALL");
        session.is_itself();
    }
}

#[test]
fn g6_a_right_of_a_group_without_inherit_works_after_set_role_at_every_door() {
    let stage = Stage::new();
    stage.admin(
        "REVOKE \"SET USER\" (<bob>) FROM <imp>; GRANT \"SET USER\" (<bob>) TO <own>; ALTER ROLE <imp> NOINHERIT",
    );
    if stage.look("SELECT current_setting('server_version_num')::int >= 160000")[0][0].as_deref() == Some("t") {
        stage.admin("GRANT <own> TO <imp> WITH INHERIT FALSE");
    }
    let asked = [("SELECT setuser('<bob>')", "SELECT setuser()")];
    for protocol in PROTOCOLS {
        for (begin, end) in DOORS.iter().map(|door| (door.begin, door.end)).chain(asked) {
            let mut session = stage.session();
            session.fails_by(protocol, "42501", begin);
            session.is_itself();
            session.ok_by(protocol, "SET ROLE <own>");
            session.ok_by(protocol, begin);
            session.is("bob");
            session.ok_by(protocol, end);
            session.is_itself_in_role("own");
            session.ok_by(protocol, "RESET ROLE");
            session.fails_by(protocol, "42501", begin);
            session.is_itself();
        }
        for begin in LOCAL {
            let mut session = stage.session();
            session.ok("BEGIN; SAVEPOINT a");
            session.fails_by(protocol, "42501", begin);
            session.ok("ROLLBACK TO a; SET LOCAL ROLE <own>");
            session.ok_by(protocol, begin);
            session.is("bob");
            session.ok("COMMIT");
            session.is_itself();
        }
    }
}

#[test]
fn the_reason_of_a_door_without_one_is_a_setting() {
    let stage = Stage::new();
    for door in DOORS {
        let mut session = stage.session();
        session.ok("SET impersonate.reason = 'INC-1 it''s'");
        session.ok(door.begin);
        let told = stage.audit(session.pid(), &["SETUSER"]);
        assert_eq!(told[0].reason.as_deref(), Some("INC-1 it's"));
        session.fails("42501", "SET impersonate.reason = 'other'");
        session.ok(door.end);
    }
    let mut session = stage.session();
    session.ok("SET impersonate.reason = 'setting'");
    session.ok("CALL impersonate.impersonate_user('<bob>', 'given')");
    session.ok("SELECT setuser('<carol>', reason => 'too')");
    let reasons: Vec<_> = stage
        .audit(session.pid(), &["SETUSER"])
        .into_iter()
        .map(|row| row.reason)
        .collect();
    assert_eq!(reasons, [Some("given".to_owned()), Some("too".to_owned())]);
}

#[test]
fn a_required_reason_is_required_at_every_door() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <imp> SET impersonate.require_reason = '^INC-[0-9]+$'");
    let doors = DOORS
        .iter()
        .map(|door| door.begin)
        .chain(LOCAL)
        .chain(["SELECT setuser('<bob>')"]);
    for door in doors {
        let mut session = stage.session();
        let error = session.fails("42501", door);
        assert!(error.hint.unwrap().contains("impersonate.reason"));
        assert_eq!(stage.audit(session.pid(), &["DENIED"]).len(), 1);
        session.ok("SET impersonate.reason = 'because'");
        session.fails("42501", door);
        session.is_itself();
        session.ok("SET impersonate.reason = 'INC-12'");
        session.ok("BEGIN");
        session.ok(door);
        session.is("bob");
        session.ok("ROLLBACK");
        session.fails("42501", "SET impersonate.require_reason = ''");
        // What gives a reason of its own.
        session.ok("RESET impersonate.reason");
        session.ok("SELECT setuser('<bob>', reason => 'INC-1')");
        session.ok("SELECT setuser()");
        session.is_itself();
    }
}

#[test]
fn a_required_reason_is_a_regular_expression() {
    let stage = Stage::new();
    let mut session = stage.session_of("postgres");
    for bad in ["(", "[", "a{2,1}", "*", "\\"] {
        session.fails("2201B", &format!("SET impersonate.require_reason = '{bad}'"));
        assert_eq!(session.value("SHOW impersonate.require_reason"), "");
    }
    session.ok("SET impersonate.require_reason = 'é+'");
    session.ok("RESET impersonate.require_reason");
}

#[test]
fn d1_whoever_may_not_call_set_config_may_not_by_a_parameter_either() {
    let stage = Stage::alone();
    stage.admin("REVOKE EXECUTE ON FUNCTION set_config(text, text, boolean) FROM PUBLIC");
    let mut session = stage.session();
    let answer = session
        .raw
        .extended("SELECT set_config($1, $2, false)", &[Some("work_mem"), Some("2MB")]);
    assert_eq!(error_in(&answer).unwrap().code, "42501");
}

#[test]
fn d1_several_calls_of_set_config_in_one_select() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        let mut session = stage.session();
        session.ok("BEGIN");
        session.ok_by(
            protocol,
            "SELECT set_config('search_path', '<s>', true), set_config('impersonate.target', '<bob>', true),
                    set_config('request.jwt.claims', '{}', true)",
        );
        session.is("bob");
        assert_eq!(session.value("SHOW request.jwt.claims"), "{}");
        session.ok("COMMIT");
        session.is_itself();
        assert_eq!(session.value("SELECT current_setting('request.jwt.claims', true)"), "");
        for mixed in [
            "SELECT set_config('impersonate.target', '<bob>', false), set_config('a.b', <s>.f(), false)",
            "SELECT set_config('impersonate.target', '<bob>', false), pg_backend_pid()",
        ] {
            stage.admin("CREATE OR REPLACE FUNCTION <s>.f() RETURNS text LANGUAGE sql AS 'SELECT ''x'''");
            session.fails_by(protocol, "0A000", mixed);
            session.is_itself();
        }
    }
}

/// To be oneself for the rest of a transaction alone is not offered: what is lasting would come back, and what it left in
/// the session with it. Refused, so that nobody goes on as the impersonator who thinks that it is over after COMMIT.
#[test]
fn s3_a_lasting_impersonation_is_not_ended_for_a_transaction() {
    let stage = Stage::new();
    let ends = [
        "SET LOCAL impersonate.target = ''",
        "SET LOCAL impersonate.target TO DEFAULT",
        "SELECT set_config('impersonate.target', '', true)",
        "SELECT set_config('impersonate.target', NULL, true)",
        "SELECT setuser(NULL, local => true)",
        "SELECT setuser(local => true)",
    ];
    for protocol in PROTOCOLS {
        for end in ends {
            let mut session = stage.session();
            session.ok("SET impersonate.target = '<bob>'");
            // Outside of a transaction block it would be for nothing.
            let error = session.fails_by(protocol, "0A000", end);
            assert_eq!(error.hint.as_deref(), Some("SELECT setuser();"));
            session.is("bob");
            session.ok("BEGIN; SAVEPOINT a");
            session.fails_by(protocol, "0A000", end);
            session.ok("ROLLBACK TO a");
            session.is("bob");
            session.ok("COMMIT");
            session.is("bob");
            // One for the transaction over it: no less.
            session.ok("BEGIN; SET LOCAL impersonate.target = '<carol>'; SAVEPOINT a");
            session.fails_by(protocol, "0A000", end);
            session.ok("ROLLBACK TO a");
            session.is("carol");
            session.ok("COMMIT");
            session.is("bob");
            assert_eq!(stage.audit(session.pid(), &["DENIED"]).len(), 3);
            // What began in the transaction as lasting is lasting.
            session.ok("RESET impersonate.target");
            session.ok("BEGIN; SET impersonate.target = '<carol>'; SAVEPOINT a");
            session.fails_by(protocol, "0A000", end);
            session.ok("ROLLBACK");
            session.is_itself();

            // One that ends with the transaction can end before, and nothing comes back.
            session.ok("BEGIN; SET LOCAL impersonate.target = '<carol>'");
            session.is("carol");
            session.ok_by(protocol, end);
            session.is_itself();
            session.ok("COMMIT");
            session.is_itself();
            // Undone as the rest is.
            session.ok("BEGIN; SET LOCAL impersonate.target = '<carol>'; SAVEPOINT a");
            session.ok_by(protocol, end);
            session.is_itself();
            session.ok("ROLLBACK TO a");
            session.is("carol");
            session.ok("COMMIT");
            session.is_itself();
            // Nobody is impersonated: nothing to end.
            session.ok_by(protocol, end);
            session.is_itself();
        }
    }
}

/// A lasting end over one that is local over a lasting one ends both, whichever way the transaction ends well.
#[test]
fn s3_a_lasting_end_ends_what_lies_under_a_local_one_too() {
    let stage = Stage::new();
    for door in DOORS {
        let mut session = stage.session();
        session.ok("SET impersonate.target = '<carol>'");
        session.ok("BEGIN; SET LOCAL impersonate.target = '<bob>'");
        session.is("bob");
        session.ok(door.end);
        session.is_itself();
        session.ok("COMMIT");
        session.is_itself();
        session.ok("SET impersonate.target = '<carol>'");
        session.ok("BEGIN; SET LOCAL impersonate.target = '<bob>'");
        session.ok(door.end);
        session.is_itself();
        session.ok("ROLLBACK");
        session.is("carol");
    }
}

#[test]
fn s4_no_setting_of_a_function_opens_or_closes_a_door() {
    let stage = Stage::new();
    let mut session = stage.session();
    // Not even as they are made.
    for clause in ["= '<bob>'", "TO <bob>"] {
        session.fails(
            "0A000",
            &format!(
                "CREATE FUNCTION <s>.no() RETURNS text LANGUAGE sql SET impersonate.target {clause} AS 'SELECT 1::text'"
            ),
        );
    }
    session.ok("CREATE FUNCTION <s>.ends() RETURNS text LANGUAGE sql SET impersonate.target = '' AS 'SELECT current_user::text'");
    session.ok("CREATE PROCEDURE <s>.ends_too() LANGUAGE plpgsql SET impersonate.target = '' AS $$ BEGIN RAISE NOTICE 'x'; END $$");
    session.ok("CREATE FUNCTION <s>.alters() RETURNS text LANGUAGE sql AS 'SELECT current_user::text'");
    // Judged when it is to count, as of ALTER ROLE.
    session.ok("ALTER FUNCTION <s>.alters() SET impersonate.target = '<bob>'");
    session.fails("0A000", "SELECT <s>.alters()");
    session.is_itself();
    session.ok("ALTER FUNCTION <s>.alters() SET impersonate.target TO ''");
    session.is_itself();
    session.ok("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA <s> TO PUBLIC");
    for begin in DOORS.iter().map(|door| door.begin).chain(LOCAL) {
        session.ok("BEGIN");
        session.ok(begin);
        for attack in [
            "SELECT <s>.ends()",
            "SELECT <s>.alters()",
            "CALL <s>.ends_too()",
            "DO $$ BEGIN RESET impersonate.target; END $$",
            "DO $$ BEGIN SET impersonate.target TO DEFAULT; END $$",
            "DO $$ BEGIN SET LOCAL impersonate.target = ''; END $$",
            "DO $$ BEGIN PERFORM set_config('impersonate.target', NULL, false); END $$",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET impersonate.target FROM CURRENT AS 'SELECT 1'",
        ] {
            for protocol in PROTOCOLS {
                session.ok("SAVEPOINT a");
                session.fails_by(protocol, "0A000", attack);
                session.ok("ROLLBACK TO a");
                session.is("bob");
            }
        }
        // What resets everything leaves it, from wherever.
        session.ok("DO $$ BEGIN RESET ALL; END $$");
        session.is("bob");
        session.ok("SET search_path = <s>");
        session.ok("ROLLBACK");
        session.is_itself();
    }
}

#[test]
fn s4_prepare_and_execute_are_no_door_and_what_a_driver_prepares_is() {
    let stage = Stage::new();
    let bob = stage.name("bob");
    let mut session = stage.session();
    session.ok("PREPARE begin_it(text) AS SELECT set_config('impersonate.target', $1, false)");
    session.ok("PREPARE end_it AS SELECT set_config('impersonate.target', '', false)");
    session.ok("PREPARE end_too AS SELECT setuser()");
    session.fails("0A000", "EXECUTE begin_it('<bob>')");
    // By the protocol, what SQL prepared is the client's own statement as much as what the protocol did.
    let named = |session: &mut stage::Session, name: &str, values: &[Option<&str>]| {
        session.raw.bind("", name, values);
        session.raw.execute("", 0);
        session.raw.sync();
        error_in(&session.raw.read_until_ready()).map(|error| error.code)
    };
    for _ in 0..7 {
        session
            .raw
            .parse("p", "SELECT set_config('impersonate.target', $1, false)", &[]);
        session.raw.parse("q", "SELECT set_config($1, $2, $3)", &[]);
        assert_eq!(named(&mut session, "p", &[Some(&bob)]), None);
        session.is("bob");
        for end in ["EXECUTE end_it", "EXECUTE end_too"] {
            let error = error_in(&session.raw.simple(end)).expect("EXECUTE is no door");
            // Prepared under no impersonation, or not there any more: never an end.
            assert!(["0A000", "26000"].contains(&error.code.as_str()), "{error:?}");
            session.is("bob");
        }
        assert_eq!(named(&mut session, "p", &[None]), None);
        session.is_itself();
        assert_eq!(
            named(&mut session, "q", &[Some("impersonate.target"), Some(&bob), Some("f")]),
            None
        );
        session.is("bob");
        assert_eq!(
            named(&mut session, "q", &[Some("Impersonate.Target"), Some(""), Some("f")]),
            None
        );
        session.is_itself();
        // The same statement with another setting.
        assert_eq!(
            named(&mut session, "q", &[Some("work_mem"), Some("3MB"), Some("f")]),
            None
        );
        assert_eq!(session.value("SHOW work_mem"), "3MB");
        // A switch that may be for the transaction or not, by a parameter.
        session.ok("BEGIN");
        assert_eq!(
            named(&mut session, "q", &[Some("impersonate.target"), Some(&bob), Some("t")]),
            None
        );
        session.is("bob");
        session.ok("COMMIT");
        session.is_itself();
        assert_eq!(
            named(&mut session, "q", &[None, Some(&bob), None]),
            Some("22004".into())
        );
        session.is_itself();
        session.raw.close_statement("p");
        session.raw.close_statement("q");
        session.raw.sync();
        session.raw.read_until_ready();
    }
}

/// To the same target again it is another impersonation, by every door: what was begun last is in force, and on record.
#[test]
fn d1_the_same_target_again_is_a_new_impersonation() {
    let stage = Stage::new();
    let in_force = |session: &stage::Session| {
        let active = stage.look(&format!(
            "SELECT impersonation_id::text FROM impersonate.active WHERE pid = {}",
            session.pid()
        ));
        active[0][0].clone()
    };
    for protocol in PROTOCOLS {
        for first in DOORS {
            for again in DOORS.iter().map(|door| door.begin).chain(LOCAL) {
                let local = LOCAL.contains(&again);
                let mut session = stage.session();
                session.ok_by(protocol, first.begin);
                let lasting = in_force(&session);
                session.ok("BEGIN");
                session.ok_by(protocol, again);
                session.is("bob");
                let newer = in_force(&session);
                assert_ne!(lasting, newer, "{again}");
                session.ok("COMMIT");
                session.is("bob");
                assert_eq!(
                    in_force(&session),
                    if local { lasting.clone() } else { newer },
                    "{again}"
                );
                session.ok_by(protocol, first.end);
                session.is_itself();
                let history = stage.history(session.pid());
                let expected: &[&str] = if local {
                    &[
                        "+bob",
                        "-bob switched",
                        "+bob",
                        "-bob end of transaction",
                        "+bob",
                        "-bob asked",
                    ]
                } else {
                    &["+bob", "-bob switched", "+bob", "-bob asked"]
                };
                assert_eq!(history, expected, "{} {again}", first.begin);
            }
        }
    }
}
