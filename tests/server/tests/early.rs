//! Code of the target's that runs before a statement begins, or without one: while values are read, while a query is
//! parsed or planned. Nobody does anything in another's name that way without a record (L3).

mod stage;

use impersonate_server_tests::raw::{error_in, Message};
use stage::{Session, Stage};

/// What the target alone may read, and ways to have a query run without a statement of one's own.
fn stage() -> Stage {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.secret (word text); INSERT INTO <s>.secret VALUES ('plum');
         CREATE TABLE <s>.made (word text);
         CREATE TABLE <s>.void (word text);
         CREATE RULE void AS ON INSERT TO <s>.void DO INSTEAD NOTHING;
         ALTER TABLE <s>.secret OWNER TO <bob>; ALTER TABLE <s>.made OWNER TO <bob>;
         ALTER TABLE <s>.void OWNER TO <bob>",
    );
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    session.ok(
        "CREATE FUNCTION <s>.run(query text) RETURNS boolean LANGUAGE plpgsql AS $$
         DECLARE found text;
         BEGIN
             IF query LIKE 'SELECT%' THEN EXECUTE query INTO found; ELSIF query <> '' THEN EXECUTE query; END IF;
             RAISE NOTICE 'ran %', found;
             RETURN true;
         END $$;
         CREATE FUNCTION <s>.fold(query text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN RETURN <s>.run(query); END $$;
         CREATE DOMAIN <s>.query AS text CHECK (<s>.run(VALUE));
         CREATE TYPE <s>.pair AS (query <s>.query)",
    );
    stage
}

const READS: &str = "SELECT word FROM <s>.secret";
const WRITES: &str = "INSERT INTO <s>.made VALUES ('x')";

fn ran(answer: &[Message]) -> usize {
    format!("{answer:?}").matches("ran ").count()
}

/// The ways, each with the text of its query and the function of it that the record names.
fn ways(stage: &Stage) -> Vec<(&'static str, String, String)> {
    let ways = [
        (
            "a value",
            "INSERT INTO <s>.made SELECT 'y' WHERE $1::<s>.query IS NULL",
            "<s>.run",
        ),
        (
            "planning",
            "INSERT INTO <s>.made SELECT 'y' WHERE NOT <s>.fold($x$%$x$)",
            "<s>.fold",
        ),
        ("parsing", "SELECT $x$(\"%\")$x$::<s>.pair", "<s>.run"),
    ];
    ways.map(|(way, text, function)| (way, text.to_owned(), stage.sql(function)))
        .to_vec()
}

/// Sends as much as has the code run, and no more; the text that was sent.
fn begin(session: &mut Session, way: &str, text: &str, query: &str) -> String {
    let query = session.stage.sql(query);
    let text = session.stage.sql(text).replace('%', &query);
    session.raw.parse("", &text, &[]);
    match way {
        "a value" => session.raw.bind("", "", &[Some(&query)]),
        "planning" => session.raw.bind("", "", &[]),
        _ => (),
    }
    text
}

#[test]
fn l3_code_that_runs_without_a_statement_is_on_record() {
    let stage = stage();
    for query in [READS, WRITES] {
        for (way, text, function) in ways(&stage) {
            for lead in [false, true] {
                let mut session = stage.session();
                session.ok("SELECT setuser('<bob>')");
                if lead {
                    session.pipe("SELECT 1");
                }
                let text = begin(&mut session, way, &text, query);
                let answer = session.sync();
                assert_eq!(error_in(&answer), None, "{way}");
                assert_eq!(ran(&answer), 1, "{way}");
                let mut expected = vec![format!("{text}|{function}|00000")];
                if lead {
                    expected.insert(0, "SELECT 1|-|00000".to_owned());
                }
                assert_eq!(session.trail(), expected, "{way} {query} {lead}");
            }
        }
    }
}

#[test]
fn l3_a_statement_that_begins_is_enough_of_a_record() {
    let stage = stage();
    for (way, text, function) in ways(&stage) {
        let mut session = stage.session();
        session.ok("SELECT setuser('<bob>')");
        let text = begin(&mut session, way, &text, READS);
        if way == "parsing" {
            session.raw.bind("", "", &[]);
        }
        session.raw.execute("", 0);
        let answer = session.sync();
        assert_eq!(error_in(&answer), None, "{way}");
        let mut expected = vec![format!("{text}|-|00000")];
        if way == "parsing" {
            // Nobody knew that it would come to a statement.
            expected.insert(0, format!("{text}|{function}|00000"));
        }
        assert_eq!(session.trail(), expected, "{way}");
    }
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    let text = stage.sql(&format!("SELECT <s>.fold($x${READS}$x$)"));
    assert_eq!(ran(&session.raw.simple(&text)), 1);
    assert_eq!(session.trail(), [format!("{text}|-|00000")]);
}

#[test]
fn l3_another_statement_is_no_record_of_it() {
    let stage = stage();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    // The same text, with other values.
    let text = stage.sql("INSERT INTO <s>.made SELECT 'y' WHERE $1::<s>.query IS NULL");
    session.raw.parse("s", &text, &[]);
    session.raw.bind("one", "s", &[Some(&stage.sql(READS))]);
    session.raw.bind("two", "s", &[Some("")]);
    session.raw.execute("two", 0);
    let answer = session.sync();
    assert_eq!((error_in(&answer), ran(&answer)), (None, 2));
    let run = stage.sql("<s>.run");
    assert_eq!(
        session.trail(),
        [format!("{text}|{run}|00000"), format!("{text}|-|00000")]
    );
    // A query that a rule makes nothing of, and one behind it.
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    let text = stage.sql(&format!(
        "INSERT INTO <s>.void SELECT ($x$(\"{READS}\")$x$::<s>.pair).query; SELECT 2"
    ));
    let answer = session.raw.simple(&text);
    assert_eq!((error_in(&answer), ran(&answer)), (None, 1));
    assert_eq!(
        session.trail(),
        [format!("{text}|{run}|00000"), "SELECT 2|-|00000".to_owned()]
    );
    // The end of the impersonation.
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    let text = stage.sql("SELECT setuser($1::<s>.query)");
    session.raw.parse("", &text, &[]);
    session.raw.bind("", "", &[Some(&stage.sql(READS))]);
    session.raw.execute("", 0);
    let answer = session.sync();
    assert_eq!(ran(&answer), 1, "{answer:?}");
    assert_eq!(session.trail()[0], format!("{text}|{run}|00000"));
}

#[test]
fn l3_code_before_a_failure_is_on_record() {
    let stage = stage();
    for (way, text, _) in ways(&stage) {
        // In the message itself, and in the next.
        for query in ["SELECT 1/0", READS] {
            let mut session = stage.session();
            session.ok("SELECT setuser('<bob>')");
            begin(&mut session, way, &text, query);
            session.pipe("nonsense");
            let answer = session.sync();
            assert!(error_in(&answer).is_some(), "{way}");
            let rows = session.trail();
            let code = if query == READS { "00000" } else { "22012" };
            assert!(rows[0].ends_with(code), "{way}: {rows:?}");
            assert_eq!(rows.len(), if query == READS { 2 } else { 1 }, "{way}: {rows:?}");
        }
        // Neither Sync nor anything else.
        let mut session = stage.session();
        session.ok("SELECT setuser('<bob>')");
        let pid = session.pid();
        begin(&mut session, way, &text, READS);
        session.raw.flush_request();
        session.raw.flush();
        while ran(&[session.raw.read()]) == 0 {}
        session.raw.terminate();
        impersonate_server_tests::wait_until("the connection's end", || {
            stage
                .look(&format!("SELECT FROM pg_stat_activity WHERE pid = {pid}"))
                .is_empty()
        });
        assert_eq!(stage.audit(pid, &["STATEMENT"]).len(), 1, "{way}");
    }
}

#[test]
fn l3_what_ends_with_the_transaction_needs_no_row_of_its_own() {
    let stage = stage();
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    session.ok("CREATE FUNCTION <s>.look() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM <s>.run('SELECT word FROM <s>.secret'); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER look AFTER INSERT ON <s>.made DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION <s>.look();
         CREATE TEMP TABLE brief (word text) ON COMMIT DELETE ROWS;
         CREATE INDEX ON brief (<s>.fold(word))");
    let before = session.trail().len();
    session.ok("INSERT INTO <s>.made VALUES ('x')");
    session.pipe("INSERT INTO <s>.made VALUES ('x')");
    assert_eq!(error_in(&session.sync()), None);
    session.ok("BEGIN; INSERT INTO <s>.made VALUES ('x'); COMMIT");
    let rows = session.trail();
    assert_eq!(rows.len() - before, 5, "{rows:#?}");
}

#[test]
fn l3_what_the_planner_asks_for_an_estimate_is_on_record() {
    let stage = stage();
    stage.admin(
        "CREATE TABLE <s>.many AS SELECT n FROM generate_series(1, 1000) n; ALTER TABLE <s>.many OWNER TO <bob>",
    );
    let mut session = stage.session();
    session.ok("SELECT setuser('<bob>')");
    session.ok(
        "CREATE FUNCTION <s>.less(integer, integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
         DECLARE found text;
         BEGIN SELECT word INTO found FROM <s>.secret; RAISE NOTICE 'ran %', found; RETURN true; END $$;
         CREATE OPERATOR <s>.<<< (FUNCTION = <s>.less, LEFTARG = integer, RIGHTARG = integer, RESTRICT = scalarltsel);
         ANALYZE <s>.many",
    );
    let before = session.trail().len();
    let text = stage.sql("DELETE FROM <s>.many WHERE n OPERATOR(<s>.<<<) 5");
    session.raw.parse("", &text, &[]);
    session.raw.bind("", "", &[]);
    let answer = session.sync();
    assert_eq!(error_in(&answer), None);
    assert!(ran(&answer) > 0, "{answer:?}");
    let rows = session.trail();
    assert_eq!(rows[before..], [format!("{text}|-|00000")]);
}
