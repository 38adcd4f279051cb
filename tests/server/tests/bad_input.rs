//! Bad input to setuser(), can_setuser() and explain_setuser(): a clear error or the obvious thing, and never a crash
//! (X5).

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, RawClient};
use impersonate_server_tests::{shared, Cluster};
use stage::{lasting, Protocol, Session, Stage, PROTOCOLS};

/// As a constant of SQL, as quote_literal() gives it.
fn quoted(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\'', "''").replace('\\', "\\\\"))
}

fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A role of that very name that `<imp>` may act as. Others may have made it: roles are the whole cluster's.
#[track_caller]
fn target(stage: &Stage, name: &str) {
    stage.admin(&format!(
        "CREATE ROLE {role} LOGIN; GRANT \"SET USER\" ({role}) TO <imp>",
        role = identifier(name)
    ));
}

/// The server notices a moment later that a client has left, and until then the criteria hold (E2).
#[track_caller]
fn take_the_right(stage: &Stage) {
    impersonate_server_tests::wait_until("nobody impersonates any more", || {
        stage
            .look("SELECT 1 FROM impersonate.active WHERE impersonator = '<imp>'")
            .is_empty()
    });
    stage.admin("REVOKE \"SET USER\" FROM <imp>");
}

#[track_caller]
fn drop_target(stage: &Stage, name: &str) {
    stage.admin(&format!("DROP ROLE {}", identifier(name)));
}

/// The server is the one that it was.
#[track_caller]
fn no_crash(stage: &Stage) {
    let log = stage.cluster().log();
    assert!(!log.contains("TRAP") && !log.contains("terminated by signal"), "{log}");
}

/// Refused, in both protocols, as a constant and as a parameter, with the session as it was, in and out of an
/// impersonation.
#[track_caller]
fn refused(stage: &Stage, name: &str, sqlstate: &str) {
    for actor in [None, Some("bob")] {
        let mut session = stage.session();
        if let Some(actor) = actor {
            session.become_role(actor);
        }
        let still = |session: &mut Session| match actor {
            Some(actor) => session.is(actor),
            None => session.is_itself(),
        };
        let sql = format!("SELECT setuser({})", quoted(name));
        for protocol in PROTOCOLS {
            let error = session.fails_by(protocol, sqlstate, &sql);
            assert!(!error.message.is_empty(), "{error:?}");
            still(&mut session);
        }
        let error = error_in(&session.raw.extended("SELECT setuser($1)", &[Some(name)]));
        assert_eq!(error.map(|error| error.code).as_deref(), Some(sqlstate));
        still(&mut session);
        // The audit has the refusals, with the call as it was made.
        let denied = stage.audit(session.pid(), &["DENIED"]);
        assert_eq!(denied.len(), 3);
        for row in denied {
            assert_eq!(row.statement, Some(sql.clone()));
            assert_eq!(row.sqlstate, sqlstate);
        }
    }
    no_crash(stage);
}

/// Works in both protocols, as a constant and as a parameter, and every witness has the name as it is.
#[track_caller]
fn works(stage: &Stage, name: &str) {
    let mut session = stage.session();
    let sql = format!("SELECT setuser({})", quoted(name));
    for protocol in PROTOCOLS {
        assert_eq!(session.ok_by(protocol, &sql), [[Some(name.to_owned())]]);
        session.is(name);
        session.ok("SELECT setuser()");
        session.is_itself();
    }
    let answer = session.raw.extended("SELECT setuser($1)", &[Some(name)]);
    assert_eq!(rows_in(&answer), [[Some(name.to_owned())]], "{answer:?}");
    session.is(name);
    let yes = |sql: &str| [[Some(sql.to_owned())]];
    let can = format!("SELECT impersonate.can_setuser({})", quoted(name));
    assert_eq!(session.ok(&can), yes("t"));
    let explain = format!("SELECT bool_and(ok) FROM impersonate.explain_setuser({})", quoted(name));
    assert_eq!(session.ok(&explain), yes("t"));
    let audited = stage.audit(session.pid(), &["SETUSER"]);
    assert_eq!(audited.len(), 3);
    for row in &audited {
        assert_eq!(
            (row.user.as_str(), row.statement.as_deref()),
            (name, Some(sql.as_str()))
        );
    }
    no_crash(stage);
}

#[track_caller]
fn odd_name_works(name: &str) {
    let stage = Stage::new();
    target(&stage, name);
    works(&stage, name);
    // So that another run of the same cluster may make it again.
    take_the_right(&stage);
    drop_target(&stage, name);
}

// -------------------------------------------------------------------------------------------------- names of nobody ---

#[test]
fn an_empty_name_is_nobodys() {
    refused(&Stage::new(), "", "42704");
}

#[test]
fn blanks_are_nobodys_name() {
    for name in [" ", "\t", "\n", "   "] {
        refused(&Stage::new(), name, "42704");
    }
}

#[test]
fn a_name_of_nobody_is_refused() {
    refused(&Stage::new(), "no such role", "42704");
}

#[test]
fn reserved_words_are_nobodys_names() {
    for name in ["public", "none", "NONE", "PUBLIC", "default"] {
        refused(&Stage::new(), name, "42704");
    }
}

#[test]
fn sql_words_are_names_and_not_what_they_stand_for() {
    for name in ["current_user", "session_user", "user", "current_role"] {
        refused(&Stage::new(), name, "42704");
    }
}

#[test]
fn a_role_may_be_called_as_an_sql_word_is() {
    for name in ["current_date", "select", "SET USER?"] {
        odd_name_works(name);
    }
}

#[test]
fn a_name_is_taken_as_it_is_and_not_as_sql() {
    let stage = Stage::new();
    let bob = stage.name("bob");
    for name in [
        format!("\"{bob}\""),
        format!(" {bob}"),
        format!("{bob} "),
        bob.to_uppercase(),
        format!("{bob};"),
        format!("{bob}, carol"),
        format!("{bob}'--"),
        format!("pg_catalog.{bob}"),
    ] {
        refused(&stage, &name, "42704");
    }
}

#[test]
fn an_oid_is_no_name() {
    let stage = Stage::new();
    let oid = stage.look("SELECT '<bob>'::regrole::oid")[0][0].clone().unwrap();
    refused(&stage, &oid, "42704");
}

#[test]
fn a_name_that_is_too_long_is_nobodys() {
    let stage = Stage::new();
    let longest = "l".repeat(63);
    target(&stage, &longest);
    works(&stage, &longest);
    // Names that core would cut to that one.
    for name in [format!("{longest}l"), format!("{longest}x"), "l".repeat(1000)] {
        refused(&stage, &name, "42704");
    }
    take_the_right(&stage);
    drop_target(&stage, &longest);
}

#[test]
fn a_name_of_megabytes_is_nobodys() {
    let stage = Stage::new();
    let mut session = stage.session();
    for length in [8_192, 70_000, 2 << 20] {
        let name = "n".repeat(length);
        for protocol in PROTOCOLS {
            session.fails_by(protocol, "42704", &format!("SELECT setuser('{name}')"));
            session.is_itself();
        }
        session.fails("42704", &format!("SELECT impersonate.can_setuser('{name}')"));
        session.fails("42704", &format!("SELECT * FROM impersonate.explain_setuser('{name}')"));
    }
    session.become_role("bob");
    session.fails("42704", &format!("SELECT setuser('{}')", "n".repeat(2 << 20)));
    session.is("bob");
    no_crash(&stage);
}

#[test]
fn a_name_that_was_cut_in_a_character_is_nobodys() {
    let stage = Stage::new();
    // 64 bytes, of which 63 end within a character.
    let name = format!("{}é", "e".repeat(62));
    assert_eq!(name.len(), 64);
    refused(&stage, &name, "42704");
    let whole = format!("{}é", "e".repeat(61));
    target(&stage, &whole);
    works(&stage, &whole);
    take_the_right(&stage);
    drop_target(&stage, &whole);
}

// -------------------------------------------------------------------------------------------------------- odd names ---

#[test]
fn names_with_quotes() {
    for name in ["o'hara", "say \"hi\"", "'", "\"", "''", "back\\slash", "$$", "$1"] {
        odd_name_works(name);
    }
}

#[test]
fn names_with_dots_spaces_and_at_signs() {
    for name in [
        "a.b.c",
        "two words",
        " leading",
        "trailing ",
        "ann@example.org",
        "a,b",
        "a=b",
        "a;b",
        "--",
        "/*",
        "(x)",
    ] {
        odd_name_works(name);
    }
}

#[test]
fn names_in_upper_case() {
    let stage = Stage::new();
    for name in ["UPPER", "Upper", "upper"] {
        target(&stage, name);
    }
    for name in ["UPPER", "Upper", "upper"] {
        works(&stage, name);
    }
    take_the_right(&stage);
    for name in ["UPPER", "Upper", "upper"] {
        drop_target(&stage, name);
    }
}

#[test]
fn names_in_multibyte_letters() {
    for name in ["józef", "Ωmega", "王小明", "🦀", "e\u{301}"] {
        odd_name_works(name);
    }
    // 63 bytes of them.
    odd_name_works(&"語".repeat(21));
}

#[test]
fn names_with_control_characters() {
    for name in ["a\nb", "a\tb", "\u{1}", "\u{7f}"] {
        odd_name_works(name);
    }
}

#[test]
fn names_that_end_in_a_number_or_are_one() {
    for name in ["0", "10", "-1", "1e5"] {
        odd_name_works(name);
    }
}

// --------------------------------------------------------------------------------------------------- other arguments ---

#[test]
fn null_for_each_argument_is_its_default() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>', NULL, NULL, NULL, NULL, NULL)");
    session.is("bob");
    session.ok("SELECT setuser(NULL, NULL, NULL, NULL, NULL, NULL)");
    session.is_itself();
    session.ok("SELECT setuser(NULL, 'a reason', true, 'a cookie', true, true)");
    session.is_itself();
    // Every combination in the protocol's own way.
    let bob = stage.name("bob");
    for bits in 0..32 {
        let value = |bit: u32, value| if bits & (1 << bit) == 0 { None } else { Some(value) };
        let values = [
            Some(bob.as_str()),
            value(0, "r"),
            value(1, "f"),
            None,
            value(2, "f"),
            value(3, "f"),
        ];
        let answer = session.raw.extended("SELECT setuser($1, $2, $3, $4, $5, $6)", &values);
        assert_eq!(error_in(&answer), None);
        session.ok("SELECT setuser()");
    }
    session.is_itself();
}

#[test]
fn null_for_the_other_functions_is_null_or_nothing() {
    let stage = Stage::new();
    let mut session = stage.session();
    for arguments in ["NULL", "NULL, NULL", "'<bob>', NULL", "NULL, '<imp>'"] {
        assert_eq!(
            session.value(&format!("SELECT impersonate.can_setuser({arguments})")),
            "NULL"
        );
        assert!(session
            .ok(&format!("SELECT * FROM impersonate.explain_setuser({arguments})"))
            .is_empty());
    }
}

#[test]
fn the_other_functions_refuse_names_of_nobody() {
    let stage = Stage::new();
    let mut session = stage.session();
    for name in [
        "",
        " ",
        "public",
        "none",
        "current_user",
        "no such role",
        &"x".repeat(64),
        "\"",
        "'",
    ] {
        let name = quoted(name);
        for arguments in [name.clone(), format!("'<bob>', {name}"), format!("{name}, {name}")] {
            for protocol in PROTOCOLS {
                let error = session.fails_by(
                    protocol,
                    "42704",
                    &format!("SELECT impersonate.can_setuser({arguments})"),
                );
                assert!(error.message.contains("does not exist"), "{error:?}");
                let explain = format!("SELECT * FROM impersonate.explain_setuser({arguments})");
                session.fails_by(protocol, "42704", &explain);
            }
        }
    }
    session.is_itself();
    no_crash(&stage);
}

#[test]
fn the_other_functions_may_be_called_from_anywhere() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let sql = "SELECT count(*) > 0 FROM pg_roles r,
                      LATERAL impersonate.explain_setuser(r.rolname::text, '<imp>') e WHERE r.rolname = '<carol>'";
    assert_eq!(session.value(sql), "t");
    session
        .ok("SELECT impersonate.can_setuser(rolname::text, '<imp>') FROM pg_roles WHERE rolname IN ('<bob>', '<own>')");
    session.ok("DO $$ BEGIN PERFORM impersonate.can_setuser('<bob>'); END $$");
    session.is("bob");
}

#[test]
fn a_long_reason_is_kept_whole_in_the_audit_and_cut_in_the_table() {
    let stage = Stage::new();
    let mut session = stage.session();
    // In letters of two bytes each.
    for length in [127, 128, 129, 4_096] {
        let reason = "é".repeat(length);
        session.ok(&format!("SELECT setuser('<bob>', reason => '{reason}')"));
        session.is("bob");
        let shown = stage.look(&format!(
            "SELECT reason FROM impersonate.active WHERE pid = {}",
            session.pid()
        ));
        let shown = shown[0][0].clone().unwrap();
        assert!(
            reason.starts_with(&shown) && shown.len() >= 250.min(reason.len()),
            "{shown}"
        );
        let audited = stage.audit(session.pid(), &["SETUSER"]);
        let audited = audited.last().unwrap().reason.clone().unwrap();
        assert_eq!(audited.len(), reason.len(), "of {length} letters");
    }
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn a_reason_that_is_too_long_is_refused_and_on_record() {
    let stage = Stage::new();
    let mut session = stage.session();
    for length in [8_193, 100_000, 5 << 20] {
        let reason = "r".repeat(length);
        for actor in [None, Some("carol")] {
            if let Some(actor) = actor {
                session.become_role(actor);
            }
            session.fails("22001", &format!("SELECT setuser('<bob>', reason => '{reason}')"));
            session.fails(
                "42704",
                &format!("SELECT setuser('no such role', reason => '{reason}')"),
            );
            match actor {
                Some(actor) => session.is(actor),
                None => session.is_itself(),
            }
            session.ok("SELECT setuser()");
        }
    }
    let denied: Vec<_> = stage.audit(session.pid(), &["DENIED"]);
    assert_eq!(denied.len(), 12);
    assert!(denied
        .iter()
        .all(|row| row.reason.as_ref().is_some_and(|reason| reason.starts_with("rrr"))));
    no_crash(&stage);
}

#[test]
fn an_empty_reason_is_none_or_empty() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>', reason => '')");
    session.is("bob");
}

#[test]
fn too_many_arguments_and_unknown_names_do_not_match() {
    let stage = Stage::new();
    let mut session = stage.session();
    for call in [
        "setuser('<bob>', 'r', false, NULL, false, false, 1)",
        "setuser(role => '<bob>')",
        "setuser('<bob>', target => '<bob>')",
        "setuser(1)",
        "setuser('<bob>', local => 1)",
        "setuser(VARIADIC ARRAY['<bob>'])",
    ] {
        let answer = session.send(Protocol::Simple, &format!("SELECT {call}"));
        let error = error_in(&answer).unwrap_or_else(|| panic!("{call} worked"));
        assert!(error.code.starts_with("42"), "{call}: {error:?}");
        session.is_itself();
    }
}

// ------------------------------------------------------------------------------------------------ rights that are odd ---

#[test]
fn a_right_over_oneself_and_a_list_with_doubles_do_the_obvious_thing() {
    let stage = Stage::new();
    stage.admin("GRANT \"SET USER\" (<carol>, <carol>, <imp>) TO <imp>");
    let mut session = stage.session();
    session.become_role("imp");
    session.is("imp");
    session.become_role("carol");
    session.is("carol");
}

#[test]
fn a_right_from_a_group_to_its_own_member_does_the_obvious_thing() {
    let stage = Stage::new();
    stage.admin("GRANT \"SET USER\" (<bob>) TO <grp>; GRANT <grp> TO <carol>");
    let mut session = stage.session_of("carol");
    session.become_role("bob");
    session.is("bob");
    // Bob is a member of the group too, and may be himself.
    let mut session = stage.session_of("bob");
    session.become_role("bob");
    session.is("bob");
}

// -------------------------------------------------------------------------------------------------- odd circumstances ---

#[test]
fn a_read_only_transaction_may_switch() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN READ ONLY");
    session.become_role("bob");
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
    session.ok("SET default_transaction_read_only = on");
    session.become_role("carol");
    session.is("carol");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn every_isolation_level_may_switch() {
    let stage = Stage::new();
    for level in [
        "READ COMMITTED",
        "REPEATABLE READ",
        "SERIALIZABLE",
        "SERIALIZABLE READ ONLY DEFERRABLE",
    ] {
        let mut session = stage.session();
        session.ok(&format!("BEGIN ISOLATION LEVEL {level}"));
        session.become_role("bob");
        session.is("bob");
        session.ok("SELECT setuser()");
        session.is_itself();
        session.ok("SELECT setuser('<carol>', local => true)");
        session.is("carol");
        session.ok("COMMIT");
        session.is_itself();
    }
}

#[test]
fn a_target_dropped_or_renamed_meanwhile_is_no_crash() {
    let stage = Stage::new();
    stage.admin("CREATE ROLE <s>_x LOGIN; GRANT \"SET USER\" (<s>_x) TO <imp>");
    let mut session = stage.session();
    session.ok("SELECT setuser('<s>_x')");
    let renamed = error_in(&session.send(Protocol::Simple, "SELECT 1"));
    assert_eq!(renamed, None);
    // Whether it may is another rule's; here it must only not crash, and the way out stays open.
    let mut admin = stage.session_of("postgres");
    for sql in ["ALTER ROLE <s>_x RENAME TO <s>_y", "DROP ROLE <s>_y", "DROP ROLE <s>_x"] {
        admin.send(Protocol::Simple, sql);
        session.send(Protocol::Simple, "SELECT current_user");
        session.send(Protocol::Simple, "SHOW role");
        session.send(Protocol::Simple, "SELECT * FROM impersonate.active");
        stage.look("SELECT * FROM impersonate.active");
    }
    session.ok("SELECT setuser()");
    assert_eq!(session.value("SELECT current_user"), stage.name("imp"));
    no_crash(&stage);
}

#[test]
fn without_the_extension_in_the_database_there_is_nothing_to_call() {
    let empty = shared().empty_database("empty");
    let mut client = RawClient::connect(shared(), "postgres", &empty.name);
    let error = error_in(&client.simple("SELECT setuser('postgres')")).unwrap();
    assert_eq!(error.code, "42883");
    assert_eq!(error_in(&client.simple("SET ROLE pg_monitor; RESET ROLE")), None);
}

#[test]
fn dropping_the_extension_under_an_impersonation_is_no_crash() {
    let stage = Stage::alone();
    let mut session = stage.session();
    session.become_role("bob");
    let mut admin = stage.session_of("postgres");
    admin.send(Protocol::Simple, "DROP EXTENSION impersonate");
    for sql in [
        "SELECT 1",
        "SELECT setuser()",
        "DISCARD ALL",
        "SELECT current_user",
        "BEGIN",
        "ROLLBACK",
    ] {
        session.send(Protocol::Simple, sql);
    }
    no_crash(&stage);
}

#[test]
fn a_standby_gives_a_clear_answer() {
    // One that replays nothing is enough: what counts is that it is in recovery.
    let mut cluster = Cluster::builder().start();
    let database = cluster.database("standby").name;
    cluster
        .connect("postgres", &database)
        .batch_execute("CREATE ROLE t LOGIN; CREATE ROLE i LOGIN; GRANT \"SET USER\" (t) TO i")
        .unwrap();
    cluster.stop();
    std::fs::write(cluster.data().join("standby.signal"), "").unwrap();
    cluster.start();
    let cluster = lasting(cluster);
    let mut client = RawClient::connect(cluster, "i", &database);
    let error = error_in(&client.simple("SELECT setuser('t')"));
    match error {
        // Standbys are another rule's (N1).
        Some(error) => assert!(["25006", "55000"].contains(&error.code.as_str()), "{error:?}"),
        None => assert_eq!(rows_in(&client.simple("SELECT current_user")), [[Some("t".to_owned())]]),
    }
    let mut client = RawClient::connect(cluster, "postgres", &database);
    let error = error_in(&client.simple("GRANT \"SET USER\" TO i")).unwrap();
    assert_eq!(error.code, "25006", "{error:?}");
    let error = error_in(&client.simple("SELECT impersonate.grant_set_user('i')")).unwrap();
    assert_eq!(error.code, "25006", "{error:?}");
    assert_eq!(
        rows_in(&client.simple("SELECT impersonate.can_setuser('t', 'i')")),
        [[Some("t".to_owned())]]
    );
    assert!(!cluster.log().contains("TRAP"), "{}", cluster.log());
}

#[test]
fn a_database_in_another_encoding_keeps_odd_names() {
    let cluster = lasting(Cluster::start_new());
    cluster
        .connect("postgres", "postgres")
        .batch_execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
        .unwrap();
    cluster
        .connect("postgres", "latin")
        .batch_execute("CREATE EXTENSION impersonate")
        .unwrap();
    let stage = Stage::in_cluster(cluster, "latin");
    // Seen from here, the name is bytes of UTF-8 where the server has Latin-1.
    target(&stage, "józef");
    let mut session = stage.session();
    session.ok("SET client_encoding = 'UTF8'");
    session.ok("SELECT setuser('józef')");
    assert_eq!(session.value("SELECT current_user"), "józef");
    assert_eq!(session.value("SHOW impersonate.target"), "józef");
    assert_eq!(session.value("SHOW role"), "józef");
    let reason = "é".repeat(300);
    session.ok(&format!("SELECT setuser('<bob>', reason => '{reason}')"));
    session.fails("42704", "SELECT setuser('Jürgen')");
    session.is("bob");
    let audited =
        stage.look("SELECT user_name FROM impersonate.audit WHERE event = 'SETUSER' ORDER BY event_id LIMIT 1");
    assert_eq!(audited, [[Some("józef".to_owned())]]);
    no_crash(&stage);
}
