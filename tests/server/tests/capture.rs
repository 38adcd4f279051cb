//! `impersonate.capture_set_role` (D2): tools that know SET ROLE alone.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in};
use stage::{Protocol, Session, Stage, PROTOCOLS};

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

// What tools really send ------------------------------------------------------------------------------------------------

/// Parsed under a name, unless it was before, then bound and executed: rows.
#[track_caller]
fn prepared(session: &mut Session, name: &str, sql: &str, types: &[u32], values: &[Option<&str>]) -> Vec<stage::Row> {
    let raw = &mut session.raw;
    if !sql.is_empty() {
        raw.parse(name, sql, types);
    }
    raw.bind("", name, values);
    raw.execute("", 0);
    raw.sync();
    let answer = raw.read_until_ready();
    assert_eq!(error_in(&answer), None, "{name}");
    rows_in(&answer)
}

/// SETUSER, RESETUSER and STATEMENT rows as `event user role tag`.
fn trail(stage: &Stage, pid: i32) -> Vec<String> {
    let rows = stage.audit(pid, &["SETUSER", "RESETUSER", "STATEMENT", "DENIED"]);
    let told = rows.into_iter().map(|row| {
        let statement = row.statement.unwrap_or_default();
        let end = row.cause.filter(|_| row.event == "RESETUSER");
        format!("{} {} {}", row.event, row.user, end.unwrap_or(statement))
    });
    told.collect()
}

/// By its driver for Java: the extended protocol, a transaction that reads alone, and a portal that is read by pieces and
/// left in the middle. The next user's connection is the same one.
#[test]
fn d2_metabase_a_role_for_each_query_on_a_connection_that_is_kept() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    let bob = stage.name("bob");
    session.ok_by(
        Protocol::Extended,
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
    );
    // The same user's next query is another impersonation.
    for target in ["bob", "carol", "carol", "bob"] {
        session.ok_by(Protocol::Extended, &format!("SET ROLE <{target}>;"));
        session.is(target);
        session.ok_by(Protocol::Extended, "BEGIN READ ONLY");
        session.raw.parse("", "SELECT g FROM generate_series(1, 10) g", &[]);
        session.raw.bind("C_1", "", &[]);
        session.raw.execute("C_1", 4);
        session.raw.sync();
        let answer = session.raw.read_until_ready();
        assert_eq!((error_in(&answer), rows_in(&answer).len()), (None, 4));
        // The pool does that with what is given back.
        session.ok_by(Protocol::Extended, "ROLLBACK");
    }
    // A user without a role of the database's.
    session.ok_by(Protocol::Extended, "SET ROLE NONE;");
    session.is_itself();
    session.ok_by(Protocol::Extended, "SET ROLE NONE;");
    session.is_itself();
    assert_eq!(
        stage.history(session.pid()),
        [
            "+bob",
            "-bob switched",
            "+carol",
            "-carol switched",
            "+carol",
            "-carol switched",
            "+bob",
            "-bob asked"
        ]
    );
    let read = format!("STATEMENT {bob} SELECT g FROM generate_series(1, 10) g");
    let trail = trail(&stage, session.pid());
    assert_eq!(trail.iter().filter(|row| **row == read).count(), 2, "{trail:#?}");
}

/// S9: what is set between two roles belongs to the first. Before the next it would have to be ended.
#[test]
fn d2_metabase_the_time_zone_that_is_set_before_the_next_role_is_the_last_ones() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    session.ok("SET TIMEZONE TO 'UTC'");
    session.ok("SET ROLE <bob>;");
    session.ok("SET TIMEZONE TO 'Asia/Tokyo'");
    session.ok("SET ROLE <carol>;");
    assert_eq!(session.value("SHOW timezone"), "UTC");
    session.ok("SET ROLE NONE");
    session.ok("SET TIMEZONE TO 'Asia/Tokyo'");
    session.ok("SET ROLE <carol>;");
    assert_eq!(session.value("SHOW timezone"), "Asia/Tokyo");
}

/// One prepared statement of many calls in a transaction that may only read, for one role after the other.
#[test]
fn d2_postgrest_one_prepared_statement_of_many_set_configs() {
    const UNKNOWN: u32 = 705;
    let stage = Stage::new();
    stage.admin(
        "ALTER ROLE <bob> NOLOGIN; ALTER ROLE <carol> NOLOGIN; ALTER ROLE <imp> NOINHERIT;
         ALTER ROLE <imp> SET impersonate.require_login = off;
         CREATE TABLE <s>.todo AS SELECT r AS owner FROM unnest(ARRAY['<bob>', '<carol>']) r;
         ALTER TABLE <s>.todo ENABLE ROW LEVEL SECURITY; GRANT SELECT ON <s>.todo TO <bob>, <carol>;
         CREATE POLICY own ON <s>.todo
             USING (owner = current_setting('request.jwt.claims')::json->>'role' AND owner = current_user);
         CREATE FUNCTION <s>.pre_request() RETURNS void LANGUAGE plpgsql AS
             $$ BEGIN PERFORM set_config('request.seen', current_user, true); END $$",
    );
    let mut session = captured(&stage);
    let names = ["bob", "carol", "bob"].map(|name| stage.name(name));
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
    let locals = "select set_config('search_path', $1, true), set_config($2, $3, true), set_config('role', $4, true), \
                  set_config('request.jwt.claims', $5, true), set_config('request.method', $6, true), \
                  set_config('request.path', $7, true), set_config('request.headers', $8, true), \
                  set_config('request.cookies', $9, true)";
    for (turn, name) in names.iter().enumerate() {
        let pre_request = stage.sql("select <s>.pre_request()");
        let first = |sql| if turn == 0 { sql } else { "" };
        let claims = format!("{{\"role\": \"{name}\"}}");
        let path = stage.name("s");
        prepared(&mut session, "b", first(begin), &[], &[]);
        let values = [
            &path,
            "statement_timeout",
            "7s",
            name,
            &claims,
            "GET",
            "/todo",
            "{\"a\": \"b\"}",
            "{}",
        ];
        let row = prepared(&mut session, "l", first(locals), &[UNKNOWN; 9], &values.map(Some));
        let told: Vec<_> = row[0]
            .iter()
            .map(|value| value.as_deref().unwrap_or_default())
            .collect();
        assert_eq!((told[2], told[4]), (name.as_str(), "GET"));
        prepared(&mut session, "r", first(&pre_request), &[], &[]);
        let rows = prepared(&mut session, "q", first("SELECT owner FROM todo"), &[], &[]);
        assert_eq!(rows, [[Some(name.clone())]]);
        assert_eq!(session.value("SHOW request.seen"), *name);
        assert_eq!(session.value("SHOW statement_timeout"), "7s");
        prepared(&mut session, "c", first("COMMIT"), &[], &[]);
        session.is_itself();
        assert_eq!(session.value("SHOW statement_timeout"), "0");
        assert_eq!(session.value("SELECT current_setting('request.jwt.claims', true)"), "");
    }
    let ended = ["+bob", "-bob end of transaction"];
    let history = stage.history(session.pid());
    assert_eq!((history.len(), &history[..2]), (6, &ended.map(str::to_owned)[..]));
    let told = stage.audit(session.pid(), &["SETUSER"]);
    assert_eq!(
        (told[0].statement.as_deref(), told[0].tag.as_deref()),
        (Some(locals), Some("SELECT"))
    );
    let statements = stage.audit(session.pid(), &["STATEMENT"]);
    let queries: Vec<_> = statements
        .iter()
        .filter(|row| row.statement.as_deref() == Some("SELECT owner FROM todo"))
        .map(|row| row.user.clone())
        .collect();
    assert_eq!(queries, names);
}

/// A role of the token that there is no right over: the request's transaction is over, and the next is judged afresh.
#[test]
fn d2_postgrest_a_role_that_is_refused_ends_the_request() {
    let stage = Stage::new();
    stage.admin("REVOKE \"SET USER\" (<carol>) FROM <imp>");
    let mut session = captured(&stage);
    for protocol in PROTOCOLS {
        for wrong in ["<carol>", "nobody_of_that_name", ""] {
            session.ok("BEGIN READ ONLY");
            let sqlstate = match wrong {
                "<carol>" => "42501",
                "" => "22023",
                _ => "42704",
            };
            let sql = format!(
                "select set_config('role', '{wrong}', true), set_config('request.jwt.claims', '{{\"role\": 1}}', true)"
            );
            session.fails_by(protocol, sqlstate, &sql);
            session.fails_by(protocol, "25P02", "SELECT 1");
            session.ok("ROLLBACK");
            session.is_itself();
            session.ok("BEGIN READ ONLY");
            session.ok_by(protocol, "select set_config('role', '<bob>', true)");
            session.is("bob");
            session.ok("COMMIT");
            session.is_itself();
        }
    }
    assert_eq!(stage.audit(session.pid(), &["DENIED"]).len(), 4);
}

/// As older ones sent them: statement by statement, all in one message.
#[test]
fn d2_postgrest_set_local_role_among_other_settings_in_one_message() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    session.ok("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY");
    session.ok(
        "set local role '<bob>';set local \"request.jwt.claim.role\" = '<bob>';set local \"request.method\" = 'GET';",
    );
    session.is("bob");
    session.ok("COMMIT");
    session.is_itself();
    // All of a request at once.
    let rows = session.ok("BEGIN; SET LOCAL ROLE <bob>; SELECT current_user; COMMIT; SELECT current_user");
    let names = ["bob", "imp"].map(|name| vec![Some(stage.name(name))]);
    assert_eq!(rows, names);
    session.is_itself();
    // The implicit transaction of a message.
    let rows = session.ok("SET LOCAL ROLE <bob>; SELECT current_user");
    assert_eq!(rows, names[..1]);
    session.is_itself();
}

/// A batch of settings, then the role if there is one of that name, given as a string.
#[test]
fn d2_pgadmin_the_role_of_a_connection() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        let mut session = captured(&stage);
        session.ok(
            "SET DateStyle=ISO; SET client_min_messages=notice; SELECT set_config('bytea_output','hex',false) \
             FROM pg_show_all_settings() WHERE name = 'bytea_output'; SET client_encoding='UTF8';",
        );
        session.is_itself();
        let bob = session.value("SELECT rolname from pg_roles WHERE rolname = '<bob>'");
        session.ok_by(protocol, &format!("SET ROLE TO '{bob}'"));
        session.is("bob");
        session.ok_by(protocol, "SELECT version()");
        // The query tool, which leaves transactions open and ends what it doesn't like.
        session.ok_by(protocol, "BEGIN;");
        session.fails_by(protocol, "42P01", "SELECT * FROM no_such_table");
        session.ok_by(protocol, "ROLLBACK;");
        session.is("bob");
        session.ok_by(protocol, "SET SESSION AUTHORIZATION <carol>;");
        session.is("carol");
        session.ok_by(protocol, "SET SESSION AUTHORIZATION DEFAULT;");
        session.is_itself();
        assert_eq!(
            stage.history(session.pid()),
            ["+bob", "-bob switched", "+carol", "-carol asked"]
        );
    }
}

/// Its driver prepares what is sent again; transactions are the user's to end.
#[test]
fn d2_dbeaver_the_role_of_a_connection_and_prepared_statements() {
    let stage = Stage::new();
    let mut session = captured(&stage);
    let bob = stage.name("bob");
    let set = format!("SET ROLE \"{bob}\"");
    prepared(&mut session, "S_1", &set, &[], &[]);
    session.is("bob");
    let rows = prepared(&mut session, "S_2", "SELECT current_schema(),session_user", &[], &[]);
    assert_eq!(rows[0][1], Some(stage.name("imp")));
    session.ok_by(Protocol::Extended, "SHOW search_path");
    session.ok_by(Protocol::Extended, "SET search_path = <s>,public");
    session.ok_by(Protocol::Extended, "BEGIN");
    prepared(&mut session, "S_1", "", &[], &[]);
    session.is("bob");
    session.ok_by(Protocol::Extended, "ROLLBACK");
    session.is("bob");
    session.ok_by(Protocol::Extended, "RESET ROLE");
    session.is_itself();
    // Prepared by the protocol, it is the driver's own, and means what it says again.
    prepared(&mut session, "S_1", "", &[], &[]);
    session.is("bob");
    session.ok("DISCARD ALL");
    session.is_itself();
}

/// What is lasting isn't ended for a transaction, by this door either.
#[test]
fn d2_a_lasting_role_is_not_ended_for_a_transaction() {
    let stage = Stage::new();
    let ends = [
        "SET LOCAL ROLE NONE",
        "SET LOCAL ROLE TO DEFAULT",
        "SET LOCAL ROLE <imp>",
        "SET LOCAL SESSION AUTHORIZATION DEFAULT",
        "SELECT set_config('role', 'none', true)",
        "SELECT set_config('session_authorization', '<imp>', true)",
    ];
    for protocol in PROTOCOLS {
        for end in ends {
            let mut session = captured(&stage);
            session.ok("SET ROLE <bob>; BEGIN; SAVEPOINT a");
            session.fails_by(protocol, "0A000", end);
            session.ok("ROLLBACK TO a");
            session.is("bob");
            session.ok("COMMIT");
            session.is("bob");
            session.ok("SET ROLE NONE");
            session.is_itself();
            session.ok("BEGIN; SET LOCAL ROLE <bob>");
            session.is("bob");
            session.ok_by(protocol, end);
            session.is_itself();
            session.ok("COMMIT");
            session.is_itself();
        }
    }
}

/// The right is a group's that the login doesn't inherit from: after SET ROLE to it, which is what it ever was.
#[test]
fn g6_the_right_of_a_group_without_inherit_counts_after_set_role_to_it() {
    let stage = Stage::new();
    stage.admin(
        "REVOKE \"SET USER\" (<bob>) FROM <imp>; GRANT \"SET USER\" (<bob>) TO <own>; ALTER ROLE <imp> NOINHERIT",
    );
    if stage.look("SELECT current_setting('server_version_num')::int >= 160000")[0][0].as_deref() == Some("t") {
        stage.admin("GRANT <own> TO <imp> WITH INHERIT FALSE");
    }
    for protocol in PROTOCOLS {
        for door in [
            "SET ROLE <bob>",
            "SET SESSION AUTHORIZATION <bob>",
            "SELECT set_config('role', '<bob>', false)",
        ] {
            let mut session = captured(&stage);
            session.fails_by(protocol, "42501", door);
            session.is_itself();
            session.ok_by(protocol, "SET ROLE <own>");
            session.is_itself_in_role("own");
            session.ok_by(protocol, door);
            session.is("bob");
            session.ok_by(protocol, "SET ROLE NONE");
            session.is_itself_in_role("own");
            session.ok("BEGIN");
            session.ok_by(protocol, &door.replace("SET ", "SET LOCAL ").replace("false", "true"));
            session.is("bob");
            session.ok("COMMIT");
            session.is_itself_in_role("own");
            session.ok_by(protocol, "RESET ROLE");
            session.is_itself();
            session.fails_by(protocol, "42501", door);
        }
    }
}

// The same as every door ------------------------------------------------------------------------------------------------

/// How it begins, and how it ends.
const DOORS: [(&str, &str); 9] = [
    ("SET ROLE <bob>", "SET ROLE NONE"),
    ("SET SESSION ROLE \"<bob>\"", "RESET ROLE"),
    ("set Role TO '<bob>'", "SET role TO DEFAULT"),
    ("SET SESSION AUTHORIZATION <bob>", "RESET SESSION AUTHORIZATION"),
    (
        "SET SESSION SESSION AUTHORIZATION '<bob>'",
        "SET SESSION AUTHORIZATION DEFAULT",
    ),
    ("SET session_authorization = '<bob>'", "SET SESSION AUTHORIZATION <imp>"),
    (
        "SELECT set_config('role', '<bob>', false)",
        "SELECT set_config('role', 'none', false)",
    ),
    (
        "SELECT pg_catalog.set_config('ROLE', '<bob>', NULL)",
        "SELECT set_config('role', NULL, false)",
    ),
    (
        "SELECT set_config('session_authorization', '<bob>', false)",
        "SELECT set_config('session_authorization', NULL, false)",
    ),
];

const LOCAL: [&str; 4] = [
    "SET LOCAL ROLE <bob>",
    "SET LOCAL SESSION AUTHORIZATION <bob>",
    "SELECT set_config('role', '<bob>', true)",
    "SELECT set_config('session_authorization', '<bob>', true)",
];

#[test]
fn d2_every_door_begins_and_any_ends() {
    let stage = Stage::new();
    let others = [
        ("SELECT setuser('<bob>')", "SELECT setuser()"),
        ("SET impersonate.target = '<bob>'", "RESET impersonate.target"),
    ];
    for protocol in PROTOCOLS {
        let mut session = captured(&stage);
        for (begin, end) in DOORS {
            for (other_begin, other_end) in others.into_iter().chain(DOORS) {
                session.ok_by(protocol, begin);
                session.is("bob");
                session.ok_by(protocol, other_end);
                session.is_itself();
                session.ok_by(protocol, other_begin);
                session.ok_by(protocol, end);
                session.is_itself();
            }
            let told = stage.audit(session.pid(), &["SETUSER", "RESETUSER"]);
            let last = &told[told.len() - 1];
            assert_eq!(last.statement, Some(stage.sql(end)), "{last:#?}");
            assert_eq!(last.cause.as_deref(), Some("asked"));
        }
    }
}

#[test]
fn s3_every_door_is_undone_as_set_is() {
    let stage = Stage::new();
    stage.admin("CREATE TABLE <s>.d (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON <s>.d TO PUBLIC");
    for protocol in PROTOCOLS {
        let mut session = captured(&stage);
        for (begin, end) in DOORS {
            session.ok("BEGIN; SAVEPOINT a");
            session.ok_by(protocol, begin);
            session.is("bob");
            session.ok("ROLLBACK TO a");
            session.is_itself();
            session.ok_by(protocol, begin);
            session.ok("ROLLBACK");
            session.is_itself();
            session.ok("BEGIN");
            session.ok_by(protocol, begin);
            session.ok("SAVEPOINT b");
            session.ok_by(protocol, end);
            session.is_itself();
            session.ok("ROLLBACK TO b");
            session.is("bob");
            session.ok("COMMIT");
            session.is("bob");
            session.ok("BEGIN");
            session.ok_by(protocol, end);
            session.is_itself();
            session.ok("INSERT INTO <s>.d VALUES (1), (1)");
            session.fails("23505", "COMMIT");
            session.is("bob");
            session.ok_by(protocol, end);
            session.is_itself();
        }
        for begin in LOCAL {
            for end in [
                "COMMIT",
                "ROLLBACK",
                "COMMIT AND CHAIN",
                "INSERT INTO <s>.d VALUES (1), (1)",
            ] {
                session.ok("BEGIN; SAVEPOINT a");
                session.ok_by(protocol, begin);
                session.is("bob");
                session.ok("ROLLBACK TO a");
                session.is_itself();
                session.ok_by(protocol, begin);
                session.ok("RELEASE a");
                session.is("bob");
                session.ok(end);
                if end.starts_with("INSERT") {
                    session.fails("23505", "COMMIT");
                }
                session.is_itself();
                session.ok("ROLLBACK");
                session.is_itself();
            }
        }
    }
}

#[test]
fn d2_no_door_goes_round_what_setuser_asks_for() {
    let stage = Stage::new();
    let begins = || DOORS.iter().map(|door| door.0).chain(LOCAL);
    for (setting, sqlstate) in [
        ("impersonate.require_reason = '^INC'", "42501"),
        ("impersonate.local_only = on", "55000"),
        ("impersonate.exempt_roles = '<bob>'", "42501"),
    ] {
        stage.admin(&format!("ALTER ROLE <imp> SET {setting}"));
        for protocol in PROTOCOLS {
            let mut session = captured(&stage);
            let mut refused = 0;
            for begin in begins() {
                // What ends with its transaction is what it asks for.
                if setting.contains("local_only") && LOCAL.contains(&begin) {
                    continue;
                }
                session.ok("BEGIN");
                session.fails_by(protocol, sqlstate, begin);
                session.ok("ROLLBACK");
                session.is_itself();
                refused += 1;
            }
            let denied = stage.audit(session.pid(), &["DENIED"]);
            assert_eq!(denied.len(), refused);
            assert!(denied
                .iter()
                .all(|row| ["SET", "SELECT"].contains(&row.tag.as_deref().unwrap())));
        }
        stage.admin("ALTER ROLE <imp> RESET ALL");
    }
    for start in [
        "SELECT setuser('<carol>', cookie => 'c')",
        "SELECT setuser('<carol>', no_revert => true)",
    ] {
        for protocol in PROTOCOLS {
            let mut session = captured(&stage);
            session.ok(start);
            for door in begins().chain(DOORS.iter().map(|door| door.1)) {
                session.fails_by(protocol, "42501", door);
                session.is("carol");
            }
        }
    }
}

/// Code means by it what it ever meant, which for no member of bob is nothing.
#[test]
fn s4_no_door_opens_from_the_inside() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.run(text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE $1; RETURN current_user; END $$;
         CREATE FUNCTION <s>.plain(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('role', $1, false) $$;
         CREATE PROCEDURE <s>.walk(what text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; COMMIT; END $$",
    );
    for actor in [None, Some("carol")] {
        let mut session = captured(&stage);
        if let Some(actor) = actor {
            session.ok(&format!("SET ROLE <{actor}>"));
        }
        let mut attacks: Vec<String> = [
            "SELECT <s>.plain('<bob>')",
            "SELECT set_config('role', '<bob>', false), 1",
            "SELECT set_config('role', lower('<bob>'), false)",
            "SELECT set_config('role', '<bob>', false) WHERE true",
            "WITH x AS (SELECT set_config('role', '<bob>', false)) SELECT * FROM x",
            "EXECUTE p",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET role = '<bob>' AS 'SELECT 1'",
        ]
        .map(str::to_owned)
        .into();
        for door in DOORS.iter().map(|door| door.0).chain(LOCAL) {
            attacks.push(format!("SELECT <s>.run($a${door}$a$)"));
            attacks.push(format!("DO $a$ BEGIN EXECUTE $b${door}$b$; END $a$"));
            attacks.push(format!("CALL <s>.walk($a${door}$a$)"));
        }
        session.ok("PREPARE p AS SELECT set_config('role', '<bob>', false)");
        for attack in attacks {
            for protocol in PROTOCOLS {
                session.fails_by(protocol, "42501", &attack);
                match actor {
                    Some(actor) => session.is(actor),
                    None => session.is_itself(),
                }
            }
        }
        // What code ends is what it was in itself, and not the impersonation.
        for (_, end) in DOORS {
            if end.contains("AUTHORIZATION") || end.contains("session_authorization") {
                continue;
            }
            session.ok(&format!("DO $a$ BEGIN EXECUTE $b${end}$b$; END $a$"));
            match actor {
                Some(actor) => session.is(actor),
                None => session.is_itself(),
            }
        }
    }
}

#[test]
fn d2_odd_names_of_roles() {
    let stage = Stage::new();
    let odd = [
        format!("{} ' \"\" é", stage.name("bob")),
        format!("{}.Default", stage.name("bob")),
    ];
    for name in odd {
        let (ident, literal) = (
            format!("\"{name}\""),
            format!("'{}'", name.replace('\'', "''").replace("\"\"", "\"")),
        );
        stage.admin(&format!(
            "CREATE ROLE {ident} LOGIN; GRANT \"SET USER\" ({ident}) TO <imp>"
        ));
        let mut session = captured(&stage);
        for protocol in PROTOCOLS {
            for begin in [
                format!("SET ROLE {ident}"),
                format!("SET ROLE TO {literal}"),
                format!("SET SESSION AUTHORIZATION {ident}"),
                format!("SELECT set_config('role', {literal}, false)"),
            ] {
                session.ok_by(protocol, &begin);
                assert_eq!(
                    session.value("SELECT current_user"),
                    name.replace("\"\"", "\""),
                    "{begin}"
                );
                session.ok_by(protocol, "SET ROLE NONE");
                session.is_itself();
            }
        }
    }
}

/// PostgREST looks for settings of its roles among its memberships. From 16 on a membership can be one that SET ROLE
/// doesn't follow, and then it is no way around.
#[test]
fn d2_a_membership_without_set_is_kept_and_no_way_around() {
    let stage = Stage::new();
    if stage.look("SELECT current_setting('server_version_num')::int >= 160000")[0][0].as_deref() != Some("t") {
        return;
    }
    stage.admin(
        "ALTER ROLE <carol> NOLOGIN; ALTER ROLE <imp> NOINHERIT; ALTER ROLE <imp> SET impersonate.require_login = off;
         GRANT <carol> TO <imp> WITH INHERIT FALSE, SET FALSE",
    );
    let mut session = captured(&stage);
    for protocol in PROTOCOLS {
        session.ok("BEGIN");
        session.ok_by(protocol, "SET LOCAL ROLE <carol>");
        session.is("carol");
        session.ok("COMMIT");
        session.is_itself();
        session.fails_by(protocol, "42501", "DO $$ BEGIN SET ROLE <carol>; END $$");
    }
}
