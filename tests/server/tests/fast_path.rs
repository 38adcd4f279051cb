//! Functions that the client calls by the protocol, as large objects of libpq and JDBC are: on record as statements are
//! (L3), and nobody's way around what is asked before a statement.

mod stage;

use impersonate_server_tests::raw::{error_in, Message};
use stage::{Protocol, Stage};

const LO_CREATE: u32 = 715;

/// The one function that `<s>` has of a name.
fn function(stage: &Stage, name: &str) -> u32 {
    let rows = stage.look(&format!("SELECT '<s>.{name}'::regproc::oid"));
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

#[test]
fn l3_each_call_by_the_protocol_has_a_row() {
    let stage = Stage::new();
    each_call_has_a_row(&stage);
    // Where the server doesn't say what it does.
    stage.admin("ALTER ROLE <imp> SET track_activities = off");
    each_call_has_a_row(&stage);
}

fn each_call_has_a_row(stage: &Stage) {
    let call = "-|pg_catalog.lo_create|00000".to_owned();
    let mut session = stage.session();
    // Of nobody's there is none.
    assert_eq!(error_in(&session.raw.call(LO_CREATE, &[Some("0")])), None);
    session.ok("SELECT setuser('<bob>')");
    assert_eq!(error_in(&session.raw.call(LO_CREATE, &[Some("0")])), None);
    assert_eq!(session.trail().join(" "), call);
    // In a block.
    session.ok("BEGIN");
    for _ in 0..2 {
        assert_eq!(error_in(&session.raw.call(LO_CREATE, &[Some("0")])), None);
    }
    session.ok("COMMIT");
    assert_eq!(session.trail()[1..], ["BEGIN|-|00000", &call, &call, "COMMIT|-|00000"]);
    // Behind a statement that has its row, without a Sync in between.
    session.pipe("SELECT 'before'");
    session.raw.function_call(LO_CREATE, &[Some("0")]);
    assert_eq!(error_in(&session.raw.read_until_ready()), None);
    assert_eq!(session.trail()[5..], ["SELECT 'before'|-|00000", &call]);
    // Behind the switch itself.
    session.ok("SELECT setuser()");
    session.pipe("SELECT setuser('<bob>')");
    session.raw.function_call(LO_CREATE, &[Some("0")]);
    assert_eq!(error_in(&session.raw.read_until_ready()), None);
    assert_eq!(session.trail()[7..].join(" "), call);
    // Undone, and on record.
    session.ok("BEGIN");
    session.raw.call(LO_CREATE, &[Some("0")]);
    session.ok("ROLLBACK");
    assert_eq!(session.trail()[8..], ["BEGIN|-|00000", &call, "ROLLBACK|-|00000"]);
}

#[test]
fn l3_a_call_that_fails_has_its_sqlstate() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.fails(int) RETURNS int LANGUAGE sql AS 'SELECT 1 / $1';
         CREATE TABLE <s>.d (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON <s>.d TO PUBLIC;
         CREATE FUNCTION <s>.later() RETURNS void LANGUAGE sql AS 'INSERT INTO <s>.d VALUES (1), (1)';
         CREATE FUNCTION <s>.secret() RETURNS int LANGUAGE sql AS 'SELECT 1';
         REVOKE EXECUTE ON FUNCTION <s>.secret() FROM PUBLIC",
    );
    let (fails, later, secret) = (
        function(&stage, "fails"),
        function(&stage, "later"),
        function(&stage, "secret"),
    );
    let name = |text: &str| stage.sql(&format!("<s>.{text}"));
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    session.ok("SELECT 'a statement before'");
    let code = |answer: &[Message]| error_in(answer).map(|error| error.code);
    assert_eq!(code(&session.raw.call(fails, &[Some("0")])).as_deref(), Some("22012"));
    assert_eq!(
        session.trail()[1..],
        [
            format!("-|{}|00000", name("fails")),
            format!("-|{}|22012", name("fails"))
        ]
    );
    // When its transaction is committed.
    assert_eq!(code(&session.raw.call(later, &[])).as_deref(), Some("23505"));
    assert_eq!(
        session.trail()[3..],
        [
            format!("-|{}|00000", name("later")),
            format!("-|{}|23505", name("later"))
        ]
    );
    // What comes after it is not its failure.
    session.ok("BEGIN");
    assert_eq!(code(&session.raw.call(fails, &[Some("1")])), None);
    session.fails("42601", "SELEKT");
    session.ok("ROLLBACK");
    assert_eq!(
        session.trail()[5..],
        [
            "BEGIN|-|00000".to_owned(),
            format!("-|{}|00000", name("fails")),
            "SELEKT|-|42601".to_owned(),
            "ROLLBACK|-|00000".to_owned()
        ]
    );
    // One that bob may not call.
    assert_eq!(code(&session.raw.call(secret, &[])).as_deref(), Some("42501"));
    assert!(session.trail()[9..].iter().all(|row| row.ends_with("42501")));
    assert_eq!(session.trail().len(), 10);
    session.is("bob");
}

/// As before a statement: what changed under the impersonation shows.
#[test]
fn e5_a_call_by_the_protocol_is_no_way_around_a_breach() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    stage.admin("UPDATE pg_authid SET rolcreatedb = true WHERE rolname = '<bob>'");
    let answer = {
        session.raw.function_call(LO_CREATE, &[Some("0")]);
        session.raw.flush();
        session.raw.read_to_end()
    };
    let error = error_in(&answer).expect("the connection is ended");
    assert_eq!(error.code, "57P01", "{error:?}");
    let ended = stage.audit(session.pid(), &["TERMINATED", "STATEMENT"]);
    assert_eq!(ended.len(), 1, "{ended:#?}");
    assert_eq!(ended[0].event, "TERMINATED");
}

/// L7, D1: neither what is a statement's own, nor code inside of statements, is taken for a call by the protocol.
#[test]
fn l3_functions_of_statements_are_no_calls_by_the_protocol() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.folded() RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE FUNCTION <s>.inner() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN <s>.folded(); END';
         CREATE TABLE <s>.late (a int); GRANT ALL ON <s>.late TO PUBLIC;
         CREATE FUNCTION <s>.fire() RETURNS trigger LANGUAGE plpgsql AS
             'DECLARE x int; BEGIN x := <s>.inner() + <s>.folded(); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON <s>.late DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>.fire()",
    );
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    for sql in [
        "SELECT <s>.folded()",
        "SELECT <s>.inner()",
        "INSERT INTO <s>.late VALUES (1)",
        "DO 'BEGIN PERFORM <s>.inner(); END'",
    ] {
        session.ok(sql);
        session.ok_by(stage::Protocol::Extended, sql);
        // Committed by the Sync, when the trigger fires.
        session.pipe(sql);
        session.sync();
    }
    let told = session.trail();
    assert_eq!(told.len(), 12, "{told:#?}");
    assert!(told.iter().all(|row| row.contains("|-|00000")), "{told:#?}");
}

/// A switch in whose transaction temporary objects are put aside has its SETUSER row and no other; what is planned behind
/// it, and never run, has its own.
#[test]
fn l3_a_switch_is_no_unknown_statement() {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.kept (a int); GRANT ALL ON <s>.kept TO PUBLIC;
         CREATE FUNCTION <s>.writes() RETURNS int LANGUAGE plpgsql AS
             'BEGIN INSERT INTO <s>.kept VALUES (1); RETURN 1; END';
         CREATE FUNCTION <s>.folded() RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN <s>.writes(); END'",
    );
    for (begin, end) in [
        ("SELECT setuser('<bob>')", "SELECT setuser()"),
        ("SET impersonate.target = '<bob>'", "RESET impersonate.target"),
    ] {
        for protocol in [Protocol::Simple, Protocol::Extended] {
            let mut session = stage.session();
            session.ok("CREATE TEMP TABLE hers (a int)");
            session.ok_by(protocol, begin);
            assert_eq!(session.trail(), [""; 0], "{begin} {protocol:?}");
            session.ok_by(protocol, end);
            assert_eq!(session.trail(), [""; 0], "{end} {protocol:?}");
        }
        let mut session = stage.session();
        session.ok("CREATE TEMP TABLE hers (a int)");
        session.pipe(begin);
        session.raw.parse("", &stage.sql("SELECT <s>.folded()"), &[]);
        session.raw.bind("", "", &[]);
        assert_eq!(error_in(&session.sync()), None);
        assert_eq!(session.trail().len(), 1, "{begin}");
    }
    let written = stage.look("SELECT count(*) FROM <s>.kept");
    assert_eq!(written, [[Some("2".to_owned())]]);
}
