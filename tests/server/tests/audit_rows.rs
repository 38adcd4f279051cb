//! L3: what a STATEMENT row says of its statement: relations, parameters, rows, and the statements inside it; one row
//! for each, however it is sent. L7: no secret in any of it.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, tags_in, Message};
use stage::{Protocol, Row, Session, Stage};

/// What the audit has of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    statement: String,
    tag: String,
    relations: String,
    parameters: String,
    rows: String,
    sqlstate: String,
    detail: String,
}

/// The STATEMENT rows of a process, in order. Lists as arrays are written, what isn't there as `-`.
#[track_caller]
fn told(stage: &Stage, pid: i32) -> Vec<Told> {
    stage.admin("SELECT impersonate.audit_sync()");
    let rows = stage.look(&format!(
        "SELECT statement, command_tag, replace(relations::text, '<s>.', 's.'), parameters, row_count, sqlstate, detail
           FROM impersonate.audit WHERE pid = {pid} AND event = 'STATEMENT' ORDER BY event_id"
    ));
    let told = rows.into_iter().map(|row: Row| {
        let [statement, tag, relations, parameters, rows, sqlstate, detail] = row.try_into().map_err(drop).unwrap();
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        Told {
            statement: text(statement).replace(&stage.name("s"), "s"),
            tag: text(tag),
            relations: text(relations),
            parameters: text(parameters),
            rows: text(rows),
            sqlstate: text(sqlstate),
            detail: text(detail),
        }
    });
    told.collect()
}

#[track_caller]
fn last(session: &Session) -> Told {
    told(session.stage, session.pid())
        .pop()
        .expect("a statement is recorded")
}

/// A stage with tables, and a session that acts as `<bob>`.
fn stage_with_tables() -> Stage {
    let stage = Stage::new();
    stage.admin(
        "CREATE TABLE <s>.emp (id int PRIMARY KEY, name text, boss int);
         INSERT INTO <s>.emp SELECT i, 'e' || i, 1 FROM generate_series(1, 10) i;
         CREATE TABLE <s>.pay (id int, amount int);
         INSERT INTO <s>.pay SELECT i, i * 100 FROM generate_series(1, 10) i;
         CREATE VIEW <s>.v AS SELECT e.name, p.amount FROM <s>.emp e JOIN <s>.pay p USING (id);
         CREATE TABLE <s>.\"Odd name\" (x int);
         CREATE TABLE <s>.part (x int) PARTITION BY LIST (x);
         CREATE TABLE <s>.part_1 PARTITION OF <s>.part FOR VALUES IN (1);
         CREATE TABLE <s>.part_2 PARTITION OF <s>.part FOR VALUES IN (2);
         GRANT ALL ON ALL TABLES IN SCHEMA <s> TO PUBLIC",
    );
    stage
}

/// Statements that work, each with the relations that its row names.
#[track_caller]
fn touch(session: &mut Session, cases: &[(&str, &str)]) {
    for (sql, relations) in cases {
        session.ok(sql);
        let row = last(session);
        assert_eq!(row.relations, *relations, "{sql}: {row:?}");
    }
}

// --------------------------------------------------------------------------------------------------------- relations ---

#[test]
fn l3_queries_name_the_relations_that_they_touch_and_how() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    touch(
        &mut session,
        &[
            ("SELECT 1", "-"),
            ("SELECT * FROM emp", r#"{"s.emp (select)"}"#),
            (
                "SELECT count(*) FROM emp a, emp b WHERE a.id = b.id",
                r#"{"s.emp (select)"}"#,
            ),
            ("SELECT 1 FROM emp WHERE false", r#"{"s.emp (select)"}"#),
            (
                "SELECT * FROM pay WHERE id IN (SELECT boss FROM emp)",
                r#"{"s.emp (select)","s.pay (select)"}"#,
            ),
            ("WITH w AS (SELECT * FROM emp) SELECT * FROM w", r#"{"s.emp (select)"}"#),
            (
                "SELECT * FROM v",
                r#"{"s.emp (select)","s.pay (select)","s.v (select)"}"#,
            ),
            ("SELECT * FROM emp FOR UPDATE", r#"{"s.emp (select, update)"}"#),
            ("INSERT INTO pay VALUES (11, 1)", r#"{"s.pay (insert)"}"#),
            (
                "INSERT INTO pay SELECT id, 0 FROM emp WHERE id < 0",
                r#"{"s.emp (select)","s.pay (insert)"}"#,
            ),
            (
                "INSERT INTO emp VALUES (1) ON CONFLICT (id) DO UPDATE SET name = 'x'",
                r#"{"s.emp (select, insert, update)"}"#,
            ),
            ("UPDATE pay SET amount = 1", r#"{"s.pay (update)"}"#),
            (
                "UPDATE pay SET amount = 1 WHERE id = 1",
                r#"{"s.pay (select, update)"}"#,
            ),
            (
                "UPDATE pay SET amount = 1 FROM emp WHERE emp.id = pay.id",
                r#"{"s.emp (select)","s.pay (select, update)"}"#,
            ),
            ("DELETE FROM pay WHERE id = 11", r#"{"s.pay (select, delete)"}"#),
            (
                "WITH d AS (DELETE FROM pay WHERE id = 99 RETURNING id) INSERT INTO emp SELECT id FROM d",
                r#"{"s.emp (insert)","s.pay (select, delete)"}"#,
            ),
            (r#"SELECT * FROM "Odd name""#, r#"{"s.\"Odd name\" (select)"}"#),
            ("SELECT * FROM part", r#"{"s.part (select)"}"#),
            ("INSERT INTO part VALUES (1)", r#"{"s.part (insert)"}"#),
            (
                "SELECT relname FROM pg_class LIMIT 1",
                r#"{"pg_catalog.pg_class (select)"}"#,
            ),
            ("CREATE TEMP TABLE t (x int)", r#"{"pg_temp.t (create)"}"#),
            ("SELECT * FROM t", r#"{"pg_temp.t (select)"}"#),
        ],
    );
    // Names are those of now.
    stage.admin("ALTER TABLE <s>.emp RENAME TO staff");
    touch(&mut session, &[("SELECT * FROM staff", r#"{"s.staff (select)"}"#)]);
    session.ok("SET quote_all_identifiers = on");
    stage.admin("ALTER TABLE <s>.staff RENAME TO crew");
    touch(&mut session, &[("SELECT * FROM crew", r#"{"s.crew (select)"}"#)]);
}

#[test]
fn l3_utility_statements_name_the_relations_that_they_touch_and_how() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    touch(
        &mut session,
        &[
            ("COPY emp TO STDOUT", r#"{"s.emp (select)"}"#),
            (
                "COPY (SELECT * FROM v) TO STDOUT",
                r#"{"s.emp (select)","s.pay (select)","s.v (select)"}"#,
            ),
            (
                "COPY (DELETE FROM pay WHERE id = 99 RETURNING id) TO STDOUT",
                r#"{"s.pay (select, delete)"}"#,
            ),
            (
                "CREATE TABLE made AS SELECT * FROM emp",
                r#"{"s.emp (select)","s.made (create)"}"#,
            ),
            (
                "SELECT * INTO made_2 FROM emp",
                r#"{"s.emp (select)","s.made_2 (create)"}"#,
            ),
            (
                "CREATE TABLE made_3 AS SELECT * FROM emp WITH NO DATA",
                r#"{"s.made_3 (create)"}"#,
            ),
            ("EXPLAIN SELECT * FROM emp", "-"),
            ("EXPLAIN ANALYZE SELECT * FROM emp", r#"{"s.emp (select)"}"#),
            ("EXPLAIN (ANALYZE) UPDATE made SET name = 'x'", r#"{"s.made (update)"}"#),
            ("PREPARE p AS SELECT * FROM emp WHERE id = $1", "-"),
            ("EXECUTE p(1)", r#"{"s.emp (select)"}"#),
            ("EXPLAIN ANALYZE EXECUTE p(1)", r#"{"s.emp (select)"}"#),
            (
                "CREATE TABLE made_4 AS EXECUTE p(1)",
                r#"{"s.emp (select)","s.made_4 (create)"}"#,
            ),
            (
                "TRUNCATE made, made_2",
                r#"{"s.made (truncate)","s.made_2 (truncate)"}"#,
            ),
            ("BEGIN", "-"),
            ("LOCK TABLE emp IN ACCESS SHARE MODE", r#"{"s.emp (lock)"}"#),
            ("DECLARE c CURSOR FOR SELECT * FROM emp", r#"{"s.emp (select)"}"#),
            ("FETCH 2 FROM c", r#"{"s.emp (select)"}"#),
            ("MOVE 2 FROM c", r#"{"s.emp (select)"}"#),
            ("CLOSE c", "-"),
            ("COMMIT", "-"),
            ("CREATE TABLE own (id int PRIMARY KEY)", r#"{"s.own (create)"}"#),
            (
                "CREATE TABLE child (id int REFERENCES own) INHERITS (made)",
                r#"{"s.child (create)","s.made (alter)","s.own (references)"}"#,
            ),
            ("CREATE TEMP TABLE own_2 (LIKE own)", r#"{"pg_temp.own_2 (create)"}"#),
            ("CREATE VIEW w AS SELECT * FROM emp", r#"{"s.w (create)"}"#),
            (
                "CREATE MATERIALIZED VIEW m AS SELECT * FROM emp",
                r#"{"s.emp (select)","s.m (create)"}"#,
            ),
            ("REFRESH MATERIALIZED VIEW m", r#"{"s.emp (select)","s.m (maintain)"}"#),
            ("CREATE INDEX ON own (id)", r#"{"s.own (alter)"}"#),
            ("ALTER TABLE own ADD COLUMN note text", r#"{"s.own (alter)"}"#),
            ("ALTER TABLE own RENAME note TO n", r#"{"s.own (alter)"}"#),
            ("COMMENT ON COLUMN own.n IS 'x'", r#"{"s.own (alter)"}"#),
            ("COMMENT ON TABLE own IS 'x'", r#"{"s.own (alter)"}"#),
            ("GRANT SELECT ON own TO PUBLIC", r#"{"s.own (grant)"}"#),
            ("CREATE SEQUENCE q", r#"{"s.q (create)"}"#),
            ("ALTER SEQUENCE q RESTART", r#"{"s.q (alter)"}"#),
            ("VACUUM own", r#"{"s.own (maintain)"}"#),
            ("ANALYZE own, m", r#"{"s.m (maintain)","s.own (maintain)"}"#),
            ("REINDEX TABLE own", r#"{"s.own (maintain)"}"#),
            ("DROP TABLE IF EXISTS nowhere.nothing", r#"{"nowhere.nothing (drop)"}"#),
            ("DROP VIEW w", r#"{"s.w (drop)"}"#),
            (
                "DROP TABLE child, own_2",
                r#"{"pg_temp.own_2 (drop)","s.child (drop)"}"#,
            ),
            ("DROP MATERIALIZED VIEW m", r#"{"s.m (drop)"}"#),
        ],
    );
    // What fails is on record with what it would have touched.
    session.fails("42P01", "TRUNCATE nothing");
    assert_eq!(last(&session).relations, r#"{"nothing (truncate)"}"#);
    session.fails("42501", "DROP TABLE emp");
    assert_eq!(last(&session).relations, r#"{"s.emp (drop)"}"#);
    session.ok("BEGIN");
    session.fails("42501", "LOCK TABLE pg_catalog.pg_authid");
    session.ok("ROLLBACK");
    let rows = told(&stage, session.pid());
    assert_eq!(rows[rows.len() - 2].relations, r#"{"pg_catalog.pg_authid (lock)"}"#);
    stage.admin("REVOKE ALL ON <s>.pay FROM PUBLIC");
    session.fails("42501", "SELECT * FROM pay");
    assert_eq!(last(&session).relations, r#"{"s.pay (select)"}"#);
}

#[test]
fn l10_a_list_of_relations_that_is_too_long_is_cut_and_counted() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok(
        "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('CREATE TABLE %I (x int)', 'a table with a long name ' || i); END LOOP; END $$",
    );
    let froms: Vec<String> = (1..=400).map(|i| format!("\"a table with a long name {i}\"")).collect();
    session.ok(&format!("TRUNCATE {}", froms.join(", ")));
    assert_eq!(last(&session).sqlstate, "00000");
    let rows = stage.look(&format!(
        "SELECT relations[cardinality(relations)], detail->>'relations_count', cardinality(relations) < 400
           FROM impersonate.audit WHERE pid = {} AND command_tag = 'TRUNCATE TABLE'",
        session.pid()
    ));
    let expected = ["...", "400", "t"].map(|value| Some(value.to_owned()));
    assert_eq!(rows, [expected.to_vec()]);
}

// -------------------------------------------------------------------------------------------------------- parameters ---

#[track_caller]
fn extended(session: &mut Session, sql: &str, parameters: &[Option<&str>]) -> Vec<Message> {
    let sql = session.stage.sql(sql);
    session.raw.extended(&sql, parameters)
}

#[test]
fn l3_parameters_are_recorded_as_text() {
    let stage = stage_with_tables();
    stage.admin(
        "CREATE TYPE <s>.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN <s>.short AS varchar(5);
         CREATE TYPE <s>.pair AS (a int, b text); GRANT USAGE ON TYPE <s>.mood, <s>.short, <s>.pair TO PUBLIC",
    );
    let mut session = stage.session();
    session.become_role("bob");
    let cases: &[(&str, &[Option<&str>], &str)] = &[
        ("SELECT $1::int, $2::text", &[Some(" 7"), None], "{7,NULL}"),
        ("SELECT $1::text", &[Some("")], r#"{""}"#),
        ("SELECT $1::text", &[Some("NULL")], r#"{"NULL"}"#),
        ("SELECT $1::text", &[Some("it's \"x\" é")], r#"{"it's \"x\" é"}"#),
        (
            "SELECT $1::int[], $2::timestamptz, $3::jsonb",
            &[Some("{1,2}"), Some("2020-01-01 00:00 UTC"), Some("{\"a\":1}")],
            r#"{"{1,2}","2020-01-01 00:00:00+00","{\"a\": 1}"}"#,
        ),
        (
            "SELECT $1::bytea, $2::numrange, $3::regclass",
            &[Some("\\x00ff"), Some("[1,2)"), Some("emp")],
            r#"{"\\x00ff","[1,2)",emp}"#,
        ),
        (
            "SELECT $1::mood, $2::short, $3::mood[]",
            &[Some("ok"), Some("abc"), Some("{sad}")],
            r#"{ok,abc,"{sad}"}"#,
        ),
        ("SELECT $1::pair", &[Some("(1,x)")], "{<pair>}"),
        (
            "UPDATE emp SET name = $1 WHERE id = $2",
            &[Some("x"), Some("3")],
            "{x,3}",
        ),
    ];
    session.ok("SET timezone = 'UTC'");
    for (sql, parameters, expected) in cases {
        assert_eq!(error_in(&extended(&mut session, sql, parameters)), None, "{sql}");
        assert_eq!(last(&session).parameters, *expected, "{sql}");
    }
    // A failed one too, if it began.
    let failing = "SELECT 1 / (id - $1::int) FROM emp";
    assert!(error_in(&extended(&mut session, failing, &[Some("1")])).is_some());
    assert_eq!(
        (last(&session).parameters, last(&session).sqlstate),
        ("{1}".to_owned(), "22012".to_owned())
    );
    // A named statement, twice.
    session.raw.parse("s1", "SELECT $1::int + 1", &[]);
    for value in ["1", "2"] {
        session.raw.bind("", "s1", &[Some(value)]);
        session.raw.execute("", 0);
        session.raw.sync();
        assert_eq!(rows_in(&session.raw.read_until_ready()).len(), 1);
        assert_eq!(last(&session).parameters, format!("{{{value}}}"));
    }
}

#[test]
fn l3_long_values_are_cut() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    let long = "é".repeat(100_000);
    assert_eq!(
        error_in(&extended(
            &mut session,
            "SELECT length($1::text), $2::int",
            &[Some(&long), Some("1")]
        )),
        None
    );
    let row = last(&session);
    assert_eq!(row.parameters, format!("{{{},1}}", "é".repeat(512)));
    assert!(row.detail.contains(r#""parameters_cut": [1]"#), "{}", row.detail);
    // Printing would take as much memory again.
    let bytes = format!("\\x{}", "00".repeat(200_000));
    assert_eq!(
        error_in(&extended(&mut session, "SELECT length($1::bytea)", &[Some(&bytes)])),
        None
    );
    assert_eq!(last(&session).parameters, "{<bytea>}");
    // More of them than a row takes.
    let many: Vec<String> = (1..=1000).map(|i| format!("${i}::text")).collect();
    let value = "x".repeat(1000);
    let values = vec![Some(value.as_str()); 1000];
    let sql = format!("SELECT length(concat({}))", many[..99].join(", "));
    assert_eq!(error_in(&extended(&mut session, &sql, &values[..99])), None);
    let row = last(&session);
    assert!(row.detail.contains(r#""parameters_count": 99"#), "{}", row.detail);
    assert_eq!(row.sqlstate, "00000");
}

#[test]
fn l3_execute_has_its_parameters_and_what_was_prepared() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT 'before'; PREPARE p(int, text) AS SELECT * FROM emp WHERE id = $1 OR name = $2; SELECT 'after'");
    session.ok("EXECUTE p(1 + 2, NULL)");
    let row = last(&session);
    assert_eq!(row.statement, "EXECUTE p(1 + 2, NULL)");
    assert_eq!(
        (row.tag.as_str(), row.parameters.as_str(), row.rows.as_str()),
        ("EXECUTE", "{3,NULL}", "1")
    );
    assert_eq!(row.relations, r#"{"s.emp (select)"}"#);
    assert_eq!(
        row.detail,
        r#"{"prepared": "PREPARE p(int, text) AS SELECT * FROM emp WHERE id = $1 OR name = $2"}"#
    );
    // The protocol's own statements can be executed by SQL, and the other way round.
    session
        .raw
        .parse("wire", &stage.sql("SELECT name FROM <s>.emp WHERE id = $1"), &[]);
    session.raw.sync();
    session.raw.read_until_ready();
    session.ok("EXECUTE wire(4)");
    assert_eq!(last(&session).parameters, "{4}");
    session.raw.bind("", "p", &[Some("5"), None]);
    session.raw.execute("", 0);
    session.raw.sync();
    assert_eq!(error_in(&session.raw.read_until_ready()), None);
    let row = last(&session);
    assert_eq!((row.tag.as_str(), row.parameters.as_str()), ("SELECT", "{5,NULL}"));
    session.fails("26000", "EXECUTE nothing(1)");
    assert_eq!(last(&session).sqlstate, "26000");
}

#[test]
fn l3_a_superuser_can_leave_parameters_out() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <imp> SET impersonate.audit_parameters = off");
    let mut session = stage.session();
    session.become_role("bob");
    assert_eq!(error_in(&extended(&mut session, "SELECT $1::text", &[Some("x")])), None);
    assert_eq!(last(&session).parameters, "-");
    session.fails("42501", "SET impersonate.audit_parameters = on");
}

// ----------------------------------------------------------------------------------------------------- rows, portals ---

/// Statements that go on after a commit have a row before it as well (L5).
fn without_begun(rows: Vec<Told>) -> Vec<Told> {
    rows.into_iter()
        .filter(|row| !row.detail.contains("\"phase\": \"begun\""))
        .collect()
}

fn of<'a>(rows: &'a [Told], statement: &str) -> Vec<&'a Told> {
    rows.iter().filter(|row| row.statement == statement).collect()
}

#[test]
fn l3_utility_statements_have_the_rows_of_their_completion() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    let cases = [
        ("SELECT * FROM emp LIMIT 3", "3"),
        ("UPDATE emp SET boss = 2 WHERE id < 5", "4"),
        ("CREATE TABLE made AS SELECT * FROM emp", "10"),
        ("CREATE MATERIALIZED VIEW m AS SELECT * FROM emp", "10"),
        ("REFRESH MATERIALIZED VIEW m", "10"),
        ("COPY emp TO STDOUT", "10"),
        ("COPY (SELECT 1 FROM emp LIMIT 2) TO STDOUT", "2"),
        ("BEGIN", "-"),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT * FROM emp", "-"),
        ("FETCH 3 FROM c", "3"),
        ("MOVE FORWARD 2 FROM c", "2"),
        ("FETCH BACKWARD ALL FROM c", "4"),
        ("COMMIT", "-"),
        ("FETCH ALL FROM c", "10"),
        ("CLOSE c", "-"),
        ("VACUUM made", "-"),
        ("SHOW work_mem", "-"),
        ("TRUNCATE made", "-"),
        ("DO $$ BEGIN PERFORM * FROM emp; END $$", "-"),
    ];
    for protocol in [Protocol::Simple, Protocol::Extended] {
        for (sql, rows) in &cases {
            session.ok_by(protocol, sql);
            let row = last(&session);
            assert_eq!(
                (row.statement.as_str(), row.rows.as_str()),
                (*sql, *rows),
                "{protocol:?} {row:?}"
            );
            assert_eq!(row.sqlstate, "00000");
        }
        session.ok("DROP MATERIALIZED VIEW m; DROP TABLE made");
    }
    // COPY in.
    session.raw.query(&stage.sql("COPY <s>.pay FROM STDIN"));
    session.raw.put(b'd', b"21\t1\n22\t2\n23\t3\n");
    session.raw.put(b'c', b"");
    assert_eq!(tags_in(&session.raw.read_until_ready()), ["COPY 3"]);
    let row = last(&session);
    assert_eq!(
        (row.rows.as_str(), row.relations.as_str()),
        ("3", r#"{"s.pay (insert)"}"#)
    );
    session.raw.query(&stage.sql("COPY <s>.pay FROM STDIN"));
    session.raw.put(b'd', b"21\t1\n");
    session.raw.put(b'f', b"no more\0");
    assert!(error_in(&session.raw.read_until_ready()).is_some());
    let row = last(&session);
    assert_eq!((row.rows.as_str(), row.sqlstate.as_str()), ("-", "57014"));
}

#[test]
fn l3_a_suspended_portal_is_one_statement_with_all_its_rows() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    let sql = stage.sql("SELECT id FROM <s>.emp");
    let shown = "SELECT id FROM s.emp";
    // Read to the end, bit by bit, and once more than there is.
    session.ok("BEGIN");
    session.raw.parse("", &sql, &[]);
    session.raw.bind("c1", "", &[]);
    for _ in 0..5 {
        session.raw.execute("c1", 3);
    }
    session.raw.sync();
    assert_eq!(rows_in(&session.raw.read_until_ready()).len(), 10);
    // On record while the transaction goes on, and the portal is open.
    let rows = told(&stage, session.pid());
    assert_eq!(
        of(&rows, shown).iter().map(|row| row.rows.as_str()).collect::<Vec<_>>(),
        ["10"]
    );
    session.ok("COMMIT");
    assert_eq!(of(&told(&stage, session.pid()), shown).len(), 1);

    // Left half-way: closed, at the end of the transaction, by ROLLBACK, by ROLLBACK TO, by another's error.
    for (way, count) in [
        ("close", 2),
        ("commit", 3),
        ("rollback", 4),
        ("savepoint", 5),
        ("error", 6),
        ("rebind", 7),
    ] {
        session.ok("BEGIN");
        if way == "savepoint" {
            session.ok("SAVEPOINT a");
        }
        let portal = if way == "rebind" { "" } else { "c2" };
        session.raw.parse("", &sql, &[]);
        session.raw.bind(portal, "", &[]);
        session.raw.execute(portal, 2);
        session.raw.execute(portal, 2);
        session.raw.sync();
        assert_eq!(rows_in(&session.raw.read_until_ready()).len(), 4, "{way}");
        assert_eq!(of(&told(&stage, session.pid()), shown).len(), count - 1, "{way}");
        match way {
            "close" => {
                session.raw.close_portal("c2");
                session.raw.sync();
                session.raw.read_until_ready();
                assert_eq!(of(&told(&stage, session.pid()), shown).len(), count, "{way}");
                session.ok("COMMIT");
            }
            "commit" => drop(session.ok("COMMIT")),
            "rollback" => drop(session.ok("ROLLBACK")),
            "savepoint" => {
                session.ok("ROLLBACK TO a");
                assert_eq!(of(&told(&stage, session.pid()), shown).len(), count, "{way}");
                session.ok("COMMIT");
            }
            "error" => {
                session.fails("22012", "SELECT 1/0");
                session.ok("ROLLBACK");
            }
            _ => {
                session.raw.parse("", "SELECT 'next'", &[]);
                session.raw.bind("", "", &[]);
                session.raw.execute("", 0);
                session.raw.sync();
                session.raw.read_until_ready();
                session.ok("COMMIT");
                let rows = told(&stage, session.pid());
                let texts: Vec<_> = rows.iter().rev().take(3).map(|row| row.statement.as_str()).collect();
                assert_eq!(texts, ["COMMIT", "SELECT 'next'", shown]);
            }
        }
        let rows = told(&stage, session.pid());
        let rows = of(&rows, shown);
        assert_eq!(rows.len(), count, "{way}");
        let row = rows.last().unwrap();
        assert_eq!((row.rows.as_str(), row.sqlstate.as_str()), ("4", "00000"), "{way}");
    }
    // One that fails in the second part.
    session.ok("BEGIN");
    session
        .raw
        .parse("", "SELECT 6 / (3 - i) FROM generate_series(1, 5) i", &[]);
    session.raw.bind("c3", "", &[]);
    session.raw.execute("c3", 2);
    session.raw.execute("c3", 2);
    session.raw.sync();
    assert_eq!(error_in(&session.raw.read_until_ready()).unwrap().code, "22012");
    let row = last(&session);
    assert_eq!((row.rows.as_str(), row.sqlstate.as_str()), ("2", "22012"));
    session.ok("ROLLBACK");
}

#[test]
fn l3_the_time_of_a_portal_ends_with_its_last_rows() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN");
    session.raw.parse("", &stage.sql("SELECT id FROM <s>.emp"), &[]);
    session.raw.bind("c", "", &[]);
    session.raw.execute("c", 2);
    session.raw.sync();
    session.raw.read_until_ready();
    std::thread::sleep(std::time::Duration::from_millis(500));
    session.ok("COMMIT");
    let _ = last(&session);
    let rows = stage.look(&format!(
        "SELECT duration < '400ms' FROM impersonate.audit WHERE pid = {} AND statement LIKE 'SELECT id%'",
        session.pid()
    ));
    assert_eq!(rows, [[Some("t".to_owned())]]);
}

#[test]
fn l3_pipelines_and_strings_of_statements_have_a_row_for_each() {
    let stage = stage_with_tables();
    let mut session = stage.session();
    session.become_role("bob");
    session.pipe("INSERT INTO pay VALUES (31, 1)");
    session.pipe("SELECT * FROM pay WHERE id = 31");
    session.pipe("SELECT 1/0");
    session.pipe("SELECT 'never'");
    session.sync();
    session.ok("SELECT 1; UPDATE emp SET boss = 1; SELECT * FROM emp");
    session.fails("22012", "SELECT 2; SELECT 1/0; SELECT 3");
    let rows = told(&stage, session.pid());
    let told: Vec<(&str, &str, &str)> = rows
        .iter()
        .map(|row| (row.statement.as_str(), row.rows.as_str(), row.sqlstate.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("INSERT INTO pay VALUES (31, 1)", "1", "00000"),
            ("SELECT * FROM pay WHERE id = 31", "1", "00000"),
            ("SELECT 1/0", "-", "22012"),
            ("SELECT 1", "1", "00000"),
            ("UPDATE emp SET boss = 1", "10", "00000"),
            ("SELECT * FROM emp", "10", "00000"),
            ("SELECT 2", "1", "00000"),
            ("SELECT 1/0", "-", "22012"),
        ]
    );
}

#[test]
fn l3_procedures_that_end_transactions_are_one_statement() {
    let stage = stage_with_tables();
    stage.admin(
        "CREATE PROCEDURE <s>.p(fail boolean) LANGUAGE plpgsql AS $$
         BEGIN
             FOR i IN 1..3 LOOP
                 INSERT INTO pay VALUES (40 + i, 0);
                 IF i = 2 THEN ROLLBACK; ELSE COMMIT; END IF;
             END LOOP;
             IF fail THEN RAISE 'no' USING ERRCODE = 'P1234'; END IF;
         END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    for protocol in [Protocol::Simple, Protocol::Extended] {
        session.ok_by(protocol, "CALL p(false)");
        session.fails_by(protocol, "P1234", "CALL p(true)");
    }
    session.ok("SELECT count(*) FROM pay WHERE id > 40");
    let rows = without_begun(told(&stage, session.pid()));
    let told: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row.statement.as_str(), row.sqlstate.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("CALL p(false)", "00000"),
            ("CALL p(true)", "P1234"),
            ("CALL p(false)", "00000"),
            ("CALL p(true)", "P1234"),
            ("SELECT count(*) FROM pay WHERE id > 40", "00000"),
        ]
    );
}

// ------------------------------------------------------------------------------------------------------------ nested ---

fn stage_with_nested() -> Stage {
    let stage = stage_with_tables();
    stage.admin(
        "ALTER ROLE <imp> SET impersonate.audit_nested = on;
         CREATE FUNCTION <s>.f() RETURNS bigint LANGUAGE plpgsql AS $$
         BEGIN
             UPDATE pay SET amount = 5 WHERE id < 4;
             RETURN (SELECT count(*) FROM emp);
         END $$;
         CREATE FUNCTION <s>.g() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT f() FROM emp WHERE id = 1); END $$;
         CREATE FUNCTION <s>.caught() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE r record;
         BEGIN
             FOR r IN SELECT id FROM emp LOOP
                 PERFORM 1 / (2 - r.id) FROM emp WHERE id = r.id;
             END LOOP;
             RETURN 'fine';
         EXCEPTION WHEN division_by_zero THEN RETURN 'caught';
         END $$",
    );
    stage
}

/// Statement, depth (0 for the client's own), rows, SQLSTATE.
fn levels(rows: &[Told]) -> Vec<(String, i64, String, String)> {
    rows.iter()
        .map(|row| {
            let depth = row.detail.split("\"depth\": ").nth(1).map_or(0, |rest| {
                rest.split(|c: char| !c.is_ascii_digit())
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            });
            assert_eq!(depth > 0, row.detail.contains("\"nested\": true"), "{row:?}");
            (row.statement.clone(), depth, row.rows.clone(), row.sqlstate.clone())
        })
        .collect()
}

#[track_caller]
fn are(rows: &[Told], expected: &[(&str, i64, &str, &str)]) {
    let found = levels(rows);
    let found: Vec<_> = found
        .iter()
        .map(|(text, depth, count, state)| (text.as_str(), *depth, count.as_str(), state.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn l3_nested_statements_have_rows_before_the_one_they_are_in() {
    let stage = stage_with_nested();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT g()");
    let rows = told(&stage, session.pid());
    are(
        &rows,
        &[
            ("UPDATE pay SET amount = 5 WHERE id < 4", 2, "3", "00000"),
            ("(SELECT count(*) FROM emp)", 2, "1", "00000"),
            ("(SELECT f() FROM emp WHERE id = 1)", 1, "1", "00000"),
            ("SELECT g()", 0, "1", "00000"),
        ],
    );
    assert_eq!(rows[0].relations, r#"{"s.pay (select, update)"}"#);
    assert_eq!(rows[1].relations, r#"{"s.emp (select)"}"#);
}

#[test]
fn l3_nested_statements_are_not_hidden_in_parallel_workers() {
    let stage = stage_with_nested();
    stage.admin(
        "CREATE FUNCTION <s>.reads(int) RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS
           $$ BEGIN RETURN (SELECT count(*) FROM pay WHERE id = $1); END $$",
    );
    let settings = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
                    SET parallel_leader_participation = off; SET enable_indexscan = off; SET enable_bitmapscan = off;
                    SET search_path = <s>";
    let query = "SELECT max(reads(id)) FROM emp WHERE abs(id) = 1";
    stage.admin(settings);
    let plan = stage.look(&format!("EXPLAIN {query}"));
    assert!(format!("{plan:?}").contains("Gather"), "{plan:?}");
    stage.admin("RESET ALL");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok(settings);
    let before = told(&stage, session.pid()).len();
    session.ok(query);
    let rows = told(&stage, session.pid());
    are(
        &rows[before..],
        &[
            ("(SELECT count(*) FROM pay WHERE id = $1)", 1, "1", "00000"),
            (query, 0, "1", "00000"),
        ],
    );
}

#[test]
fn l3_nested_statements_are_left_out_unless_asked_for() {
    let stage = stage_with_nested();
    stage.admin("ALTER ROLE <imp> RESET impersonate.audit_nested");
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT g()");
    are(&told(&stage, session.pid()), &[("SELECT g()", 0, "1", "00000")]);
    session.fails("42501", "SET impersonate.audit_nested = on");
}

#[test]
fn l3_nested_statements_that_fail_are_on_record_caught_or_not() {
    let stage = stage_with_nested();
    let mut session = stage.session();
    session.become_role("bob");
    assert_eq!(session.value("SELECT caught()"), "caught");
    // The error of what comes next is its own.
    session.fails("42601", "SELEC");
    session.fails("22012", "DO $$ BEGIN PERFORM 1 / (id - 1) FROM emp; END $$");
    let rows = told(&stage, session.pid());
    let perform = "SELECT 1 / (2 - r.id) FROM emp WHERE id = r.id";
    are(
        &rows,
        &[
            (perform, 1, "1", "00000"),
            (perform, 1, "-", "22012"),
            ("SELECT id FROM emp", 1, "10", "00000"),
            ("SELECT caught()", 0, "1", "00000"),
            ("SELEC", 0, "-", "42601"),
            ("SELECT 1 / (id - 1) FROM emp", 1, "-", "22012"),
            ("DO $$ BEGIN PERFORM 1 / (id - 1) FROM emp; END $$", 0, "-", "22012"),
        ],
    );
}

#[test]
fn l3_triggers_do_and_dynamic_sql_are_nested() {
    let stage = stage_with_nested();
    stage.admin(
        "CREATE TABLE <s>.log (x int); GRANT ALL ON <s>.log TO PUBLIC;
         CREATE FUNCTION <s>.t() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NEW; END $$;
         CREATE TRIGGER t AFTER INSERT ON <s>.pay FOR EACH ROW EXECUTE FUNCTION <s>.t();
         CREATE TABLE <s>.dep (id int REFERENCES <s>.emp); GRANT ALL ON <s>.dep TO PUBLIC",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("INSERT INTO pay VALUES (51, 0), (52, 0)");
    session.ok("DO $$ BEGIN EXECUTE 'CREATE TABLE made (x int)'; EXECUTE 'INSERT INTO made SELECT id FROM emp WHERE id < $1' USING 4; END $$");
    session.ok("INSERT INTO dep VALUES (1)");
    let rows = told(&stage, session.pid());
    let key = rows
        .iter()
        .position(|row| row.statement.contains("FOR KEY SHARE"))
        .expect("the foreign key's query");
    assert_eq!(rows[key].relations, r#"{"s.emp (select, update)"}"#);
    assert_eq!(rows[key].parameters, "{1}");
    let mut others = rows.clone();
    others.remove(key);
    are(
        &others,
        &[
            ("INSERT INTO log VALUES (NEW.id)", 1, "1", "00000"),
            ("INSERT INTO log VALUES (NEW.id)", 1, "1", "00000"),
            ("INSERT INTO pay VALUES (51, 0), (52, 0)", 0, "2", "00000"),
            ("CREATE TABLE made (x int)", 1, "-", "00000"),
            ("INSERT INTO made SELECT id FROM emp WHERE id < $1", 1, "3", "00000"),
            (rows[5].statement.clone().as_str(), 0, "-", "00000"),
            ("INSERT INTO dep VALUES (1)", 0, "1", "00000"),
        ],
    );
    assert_eq!(rows[4].parameters, "{4}");
    assert_eq!(rows[3].relations, r#"{"s.made (create)"}"#);
}

#[test]
fn l3_statements_in_utility_statements_are_not_told_twice() {
    let stage = stage_with_nested();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("PREPARE p AS SELECT * FROM emp");
    for sql in [
        "EXECUTE p",
        "COPY (SELECT * FROM emp) TO STDOUT",
        "EXPLAIN ANALYZE SELECT * FROM emp",
        "CREATE TABLE made AS SELECT * FROM emp",
        "CREATE SCHEMA AUTHORIZATION CURRENT_USER CREATE TABLE x (y int)",
    ] {
        let before = told(&stage, session.pid()).len();
        let answer = session.send(Protocol::Simple, sql);
        // The last may not be allowed.
        let _ = error_in(&answer);
        let rows = told(&stage, session.pid());
        assert_eq!(rows.len(), before + 1, "{sql}: {rows:?}");
    }
    session.ok("BEGIN; DECLARE c CURSOR FOR SELECT * FROM emp; FETCH 1 FROM c; COMMIT");
    let rows = told(&stage, session.pid());
    assert!(levels(&rows).iter().all(|(_, depth, _, _)| *depth == 0), "{rows:?}");
}

/// What an event trigger reads is not what the statement reads.
#[test]
fn l3_queries_of_event_triggers_are_nested_and_not_the_statements_own() {
    let stage = Stage::alone();
    stage.admin(
        "CREATE TABLE <s>.emp (id int); CREATE TABLE <s>.seen (x text); GRANT ALL ON ALL TABLES IN SCHEMA <s> TO PUBLIC;
         ALTER ROLE <imp> SET impersonate.audit_nested = on;
         CREATE FUNCTION <s>.e() RETURNS event_trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO <s>.seen VALUES (tg_tag); END $$;
         CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION <s>.e()",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("CREATE TABLE made AS SELECT * FROM emp");
    let rows = told(&stage, session.pid());
    are(
        &rows,
        &[
            ("INSERT INTO s.seen VALUES (tg_tag)", 1, "1", "00000"),
            ("CREATE TABLE made AS SELECT * FROM emp", 0, "0", "00000"),
        ],
    );
    assert_eq!(rows[1].relations, r#"{"s.emp (select)","s.made (create)"}"#);
}

/// L6: recursion deeper than the queue has room for still runs, and each level is on record.
#[test]
fn l6_deep_recursion_is_on_record_and_fails_nothing() {
    let stage = stage_with_nested();
    stage.admin(&format!(
        "CREATE FUNCTION <s>.deep(n int) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN
             IF n = 0 THEN RETURN 0; END IF;
             -- So long that levels take some room.
             RETURN (SELECT deep(n - 1) FROM emp WHERE id = 1 AND name <> '{}');
         END $$",
        "x".repeat(8000)
    ));
    let mut session = stage.session();
    session.become_role("bob");
    assert_eq!(session.value("SELECT deep(200)"), "0");
    let rows = told(&stage, session.pid());
    assert_eq!(rows.len(), 201);
    let begun = rows
        .iter()
        .filter(|row| row.detail.contains("\"phase\": \"begun\""))
        .count();
    assert!(begun > 0, "the deepest have no room for their end");
    session.is("bob");
}

#[test]
fn l3_cursors_of_functions_that_an_exception_takes_along_are_told() {
    let stage = stage_with_nested();
    stage.admin(
        "CREATE FUNCTION <s>.open_cursor() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE c CURSOR FOR SELECT id FROM emp; x int;
         BEGIN
             OPEN c; FETCH c INTO x; FETCH c INTO x;
             RAISE 'out';
         EXCEPTION WHEN raise_exception THEN RETURN 'caught';
         END $$;
         CREATE PROCEDURE <s>.ends() LANGUAGE plpgsql AS $$
         DECLARE c CURSOR FOR SELECT id FROM emp; x int;
         BEGIN
             OPEN c; FETCH c INTO x; ROLLBACK; UPDATE pay SET amount = 1 WHERE id = 1; COMMIT;
         END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SELECT open_cursor()");
    session.ok("CALL ends()");
    let rows = without_begun(told(&stage, session.pid()));
    are(
        &rows,
        &[
            ("SELECT id FROM emp", 1, "2", "00000"),
            ("SELECT open_cursor()", 0, "1", "00000"),
            ("SELECT id FROM emp", 1, "1", "00000"),
            ("UPDATE pay SET amount = 1 WHERE id = 1", 1, "1", "00000"),
            ("CALL ends()", 0, "-", "00000"),
        ],
    );
}

// --------------------------------------------------------------------------------------------------------- L7, secrets ---

/// Nothing that the audit has of these processes holds the word.
#[track_caller]
fn hidden(stage: &Stage, pid: i32) {
    stage.admin("SELECT impersonate.audit_sync()");
    let found = stage.look(&format!(
        "SELECT event, statement, parameters, detail FROM impersonate.audit a WHERE pid = {pid} AND a::text ~* 'S3cr3t'"
    ));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn l7_secrets_are_in_no_row() {
    let stage = stage_with_nested();
    stage.admin(
        "ALTER ROLE <bob> CREATEROLE; ALTER ROLE <imp> CREATEROLE;
         CREATE TABLE <s>.users (name text, password text, note text); GRANT ALL ON <s>.users TO PUBLIC;
         CREATE FUNCTION <s>.connect(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
         CREATE FUNCTION <s>.sets(p text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             EXECUTE 'UPDATE users SET password = $1' USING p;
             EXECUTE format('ALTER ROLE %I PASSWORD %L', current_user, p);
             UPDATE users SET password = 'S3cr3t-constant';
         END $$",
    );
    let mut session = stage.session();
    session.raw.extended(
        &stage.sql("SELECT setuser($1, cookie => $2)"),
        &[Some(&stage.name("bob")), Some("S3cr3t")],
    );
    session.raw.extended(
        &stage.sql("SELECT setuser($1, cookie => $2)"),
        &[Some(&stage.name("carol")), Some("S3cr3t no")],
    );
    let user = format!("made_by_{}", stage.name("bob"));
    for sql in [
        &format!("CREATE ROLE {user} PASSWORD 'S3cr3t'"),
        &format!("ALTER ROLE {user} PASSWORD 'S3cr3t'"),
        &format!("DO $$ BEGIN ALTER ROLE {user} PASSWORD 'S3cr3t'; END $$"),
        "PREPARE up(text) AS UPDATE users SET password = $1 WHERE name = 'x'",
        "EXECUTE up('S3cr3t')",
        "EXPLAIN ANALYZE EXECUTE up('S3cr3t')",
        "PREPARE ins AS INSERT INTO users (name, password) VALUES ($1, $2)",
        "EXECUTE ins('bob', 'S3cr3t')",
        "PREPARE con AS SELECT connect('host=x password=S3cr3t')",
        "EXECUTE con",
        "PREPARE con2 AS SELECT connect($1)",
        "EXECUTE con2('host=x password=S3cr3t')",
        "EXECUTE con2('postgres://u:S3cr3t@h/db')",
        "SELECT sets('x')",
        "SELECT setuser('x', cookie => 'S3cr3t'), 1",
    ] {
        session.send(Protocol::Simple, sql);
    }
    for (sql, parameters) in [
        ("SELECT connect($1)", vec![Some("host=x password=S3cr3t dbname=y")]),
        ("SELECT connect($1)", vec![Some("postgresql://bob:S3cr3t@db.example/x")]),
        (
            "INSERT INTO users (name, password, note) VALUES ($1, $2, $3)",
            vec![Some("n"), Some("S3cr3t"), Some("shown")],
        ),
        (
            "UPDATE users SET password = $1 WHERE name = $2",
            vec![Some("S3cr3t"), Some("shown")],
        ),
        ("SELECT set_config('app.api_key', $1, false)", vec![Some("S3cr3t")]),
        ("SELECT $1::jsonb", vec![Some(r#"{"user": "x", "password": "S3cr3t"}"#)]),
        ("SELECT setuser($1, cookie => $2), 1", vec![Some("x"), Some("S3cr3t")]),
        (
            "SELECT setuser($1, NULL, false, $2)",
            vec![Some("nobody at all"), Some("S3cr3t")],
        ),
        ("EXECUTE up($1)", vec![Some("S3cr3t")]),
    ] {
        extended(&mut session, sql, &parameters);
    }
    let pid = session.pid();
    hidden(&stage, pid);
    // What is no secret is there.
    let rows = told(&stage, pid);
    assert!(
        rows.iter().any(|row| row.parameters == "{n,<redacted>,shown}"),
        "{rows:#?}"
    );
    assert!(
        rows.iter().any(|row| row.parameters == "{<redacted>,shown}"),
        "{rows:#?}"
    );
    assert!(
        rows.iter()
            .any(|row| row.statement == "EXECUTE ins('bob', '<redacted>')"),
        "{rows:#?}"
    );
    assert!(
        rows.iter()
            .any(|row| row.parameters == r#"{"host=x password=<redacted> dbname=y"}"#),
        "{rows:#?}"
    );
}
