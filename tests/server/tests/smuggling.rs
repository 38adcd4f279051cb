//! S4: a switch is a statement of its own that the client sent; every other way to call setuser() is refused with 0A000
//! and changes nothing. X1 and X3: nothing that runs under an impersonation leaves the target.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, Message, Transaction};
use stage::{Kind, Protocol, Session, Stage, KINDS, PROTOCOLS};

// ---------------------------------------------------------------------------------------- S4: what does not get through ---

/// Who sends the attack, and the call that it tries to smuggle in.
const ATTEMPTS: [(Option<&str>, &str); 3] = [
    (None, "pg_catalog.setuser('<bob>')"),
    (Some("bob"), "pg_catalog.setuser()"),
    (Some("bob"), "pg_catalog.setuser('<carol>')"),
];

/// Sends statements one by one until one fails, which must be with 0A000; then nothing has changed.
///
/// `<call>` stands for the call. `setup` is run by a superuser, anew for each attempt.
///
/// By each kind of target. A superuser passes by policies and checks of privileges, so for that one an attack may come to
/// nothing; then nothing has changed either.
#[track_caller]
fn refused(setup: &str, attack: &[&str]) {
    // Each test has its own thread, and its own roles.
    thread_local! {
        static STAGES: [Stage; 4] = KINDS.map(|kind| {
            let stage = Stage::new();
            kind.empower(&stage);
            stage
        });
    }
    STAGES.with(|stages| {
        for (kind, stage) in KINDS.into_iter().zip(stages) {
            refused_on(stage, kind, setup, attack);
        }
    });
}

#[track_caller]
fn refused_on(stage: &Stage, kind: Kind, setup: &str, attack: &[&str]) {
    // To end it is what every kind of target has a use for.
    let attempts = if kind == Kind::Plain {
        &ATTEMPTS[..]
    } else {
        &ATTEMPTS[1..2]
    };
    for &(actor, call) in attempts {
        for protocol in PROTOCOLS {
            let fill = |sql: &str| sql.replace("<call>", call);
            stage.admin("DROP SCHEMA <s> CASCADE; CREATE SCHEMA <s>; GRANT ALL ON SCHEMA <s> TO PUBLIC");
            stage.admin(&fill(setup));
            let mut session = stage.session();
            if let Some(actor) = actor {
                session.become_role(actor);
            }
            let error = attack
                .iter()
                .find_map(|sql| error_in(&session.send(protocol, &fill(sql))));
            match error {
                Some(error) => assert_eq!(
                    error.code, "0A000",
                    "{kind:?}, {protocol:?}: {actor:?}, {call}: {error:?}"
                ),
                None if kind == Kind::Superuser => {}
                None => panic!("{kind:?}, {protocol:?}: {actor:?} got {call} through: {attack:?}"),
            }
            if session.transaction() != Transaction::None {
                session.ok("ROLLBACK");
            }
            match actor {
                Some(actor) => session.is(actor),
                None => session.is_itself(),
            }
        }
    }
}

/// Everything in one statement.
#[track_caller]
fn refused_as(sql: &str) {
    refused("", &[sql]);
}

const TABLE: &str = "CREATE TABLE <s>.t (a text); INSERT INTO <s>.t VALUES ('1'); GRANT ALL ON <s>.t TO PUBLIC;";

/// A function that calls it from plpgsql, where nothing is inlined: of no argument, of one and of two texts.
const PLPGSQL: &str = "
    CREATE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM <call>; RETURN 'x'; END $$;
    CREATE FUNCTION <s>.f(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM <call>; RETURN 'x'; END $$;
    CREATE FUNCTION <s>.f(text, text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM <call>; RETURN 'x'; END $$;";

/// The same in SQL, where the call may be all that is left after inlining.
const SQL: &str = "
    CREATE FUNCTION <s>.f() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT <call> $$;
    CREATE FUNCTION <s>.f(text) RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT <call> $$;
    CREATE FUNCTION <s>.f(text, text) RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT <call> $$;";

// Functions and blocks ------------------------------------------------------------------------------------------------

#[test]
fn s4_an_inlined_sql_function() {
    refused(SQL, &["SELECT <s>.f()"]);
}

#[test]
fn s4_an_sql_function_that_is_not_inlined() {
    for how in ["SECURITY DEFINER", "SET work_mem = '1MB'", "STRICT"] {
        let setup = format!("CREATE FUNCTION <s>.f(text) RETURNS text LANGUAGE sql {how} AS $$ SELECT <call> $$");
        refused(&setup, &["SELECT <s>.f('x')"]);
    }
}

#[test]
fn s4_an_sql_function_of_several_statements() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE sql AS $$ SELECT 1; SELECT <call>; SELECT 'x' $$",
        &["SELECT <s>.f()"],
    );
}

#[test]
fn s4_an_sql_function_whose_body_is_standard_sql() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE sql RETURN <call>",
        &["SELECT <s>.f()"],
    );
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT <call>; END",
        &["SELECT <s>.f()"],
    );
}

#[test]
fn s4_an_sql_function_that_returns_a_set() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS SETOF text LANGUAGE sql AS $$ SELECT <call> $$",
        &["SELECT <s>.f()"],
    );
    refused(
        "CREATE FUNCTION <s>.f() RETURNS SETOF text LANGUAGE sql AS $$ SELECT <call> $$",
        &["SELECT * FROM <s>.f()"],
    );
}

#[test]
fn s4_an_sql_function_within_an_sql_function() {
    refused(
        &format!("{SQL} CREATE FUNCTION <s>.g() RETURNS text LANGUAGE sql AS $$ SELECT <s>.f() $$"),
        &["SELECT <s>.g()"],
    );
}

#[test]
fn s4_a_function_of_the_same_name_before_it_in_the_search_path() {
    refused(
        "CREATE FUNCTION <s>.setuser(text) RETURNS text LANGUAGE sql AS $$ SELECT <call> $$",
        &["SET search_path = <s>, pg_catalog", "SELECT setuser('<bob>')"],
    );
}

#[test]
fn s4_perform_in_plpgsql() {
    refused(PLPGSQL, &["SELECT <s>.f()"]);
}

#[test]
fn s4_execute_in_plpgsql() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $$
         BEGIN EXECUTE $x$ SELECT <call> $x$; RETURN 'x'; END $$",
        &["SELECT <s>.f()"],
    );
}

#[test]
fn s4_assignment_return_and_loop_in_plpgsql() {
    for body in [
        "DECLARE x text := <call>; BEGIN RETURN x; END",
        "DECLARE x text; BEGIN x := <call>; RETURN x; END",
        "BEGIN RETURN <call>; END",
        "BEGIN IF <call> IS NULL THEN RETURN 'x'; END IF; RETURN 'y'; END",
        "DECLARE x text; BEGIN FOR x IN SELECT <call> LOOP RETURN x; END LOOP; END",
        "DECLARE x text; BEGIN SELECT <call> INTO x; RETURN x; END",
    ] {
        let setup = format!("CREATE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $f$ {body} $f$");
        refused(&setup, &["SELECT <s>.f()"]);
    }
}

#[test]
fn s4_caught_in_plpgsql_it_has_changed_nothing() {
    let stage = Stage::new();
    for (actor, call) in ATTEMPTS {
        let body = format!(
            "CREATE OR REPLACE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $$
             BEGIN PERFORM {call}; RETURN 'through'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$"
        );
        stage.admin(&body);
        for protocol in PROTOCOLS {
            let mut session = stage.session();
            if let Some(actor) = actor {
                session.become_role(actor);
            }
            let rows = session.ok_by(protocol, "SELECT <s>.f()");
            assert_eq!(rows, [[Some("0A000".to_owned())]]);
            match actor {
                Some(actor) => session.is(actor),
                None => session.is_itself(),
            }
        }
    }
}

#[test]
fn s4_return_query_and_refcursors_in_plpgsql() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY SELECT <call>; END $$",
        &["SELECT * FROM <s>.f()"],
    );
    refused(
        "CREATE FUNCTION <s>.f() RETURNS refcursor LANGUAGE plpgsql AS $$
         DECLARE c refcursor := 'cur'; BEGIN OPEN c FOR SELECT <call>; RETURN c; END $$",
        &["BEGIN", "SELECT <s>.f()", "FETCH ALL FROM cur"],
    );
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE c refcursor; x text; BEGIN OPEN c FOR EXECUTE $x$ SELECT <call> $x$; FETCH c INTO x; RETURN x; END $$",
        &["SELECT <s>.f()"],
    );
}

#[test]
fn s4_do_blocks() {
    refused_as("DO $$ BEGIN PERFORM <call>; END $$");
    refused_as("DO $$ BEGIN EXECUTE $x$ SELECT <call> $x$; END $$");
    refused_as("DO $$ BEGIN COMMIT; PERFORM <call>; END $$");
    refused_as("DO $$ BEGIN ROLLBACK; PERFORM <call>; END $$");
}

#[test]
fn s4_procedures() {
    for body in [
        "PERFORM <call>;",
        "COMMIT; PERFORM <call>;",
        "ROLLBACK; PERFORM <call>;",
        "COMMIT; ROLLBACK; EXECUTE $x$ SELECT <call> $x$;",
    ] {
        let setup = format!("CREATE PROCEDURE <s>.p() LANGUAGE plpgsql AS $$ BEGIN {body} END $$");
        refused(&setup, &["CALL <s>.p()"]);
    }
    refused(
        "CREATE PROCEDURE <s>.p() LANGUAGE sql AS $$ SELECT <call> $$",
        &["CALL <s>.p()"],
    );
    refused(
        "CREATE PROCEDURE <s>.p() LANGUAGE sql BEGIN ATOMIC SELECT <call>; END",
        &["CALL <s>.p()"],
    );
}

#[test]
fn s4_an_argument_of_call() {
    refused(
        "CREATE PROCEDURE <s>.p(text) LANGUAGE plpgsql AS $$ BEGIN NULL; END $$",
        &["CALL <s>.p(<call>)"],
    );
    refused(
        "CREATE PROCEDURE <s>.p(text DEFAULT <call>) LANGUAGE plpgsql AS $$ BEGIN NULL; END $$",
        &["CALL <s>.p()"],
    );
}

#[test]
fn s4_a_default_of_an_argument() {
    refused(
        "CREATE FUNCTION <s>.f(text DEFAULT <call>) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'x'; END $$",
        &["SELECT <s>.f()"],
    );
}

// What tables do by themselves ----------------------------------------------------------------------------------------

#[test]
fn s4_triggers() {
    for (kind, level) in [
        ("BEFORE INSERT", "ROW"),
        ("AFTER INSERT", "ROW"),
        ("BEFORE INSERT", "STATEMENT"),
        ("AFTER INSERT", "STATEMENT"),
    ] {
        let setup = format!(
            "{TABLE} CREATE FUNCTION <s>.tr() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM <call>; RETURN NEW; END $$;
             CREATE TRIGGER tr {kind} ON <s>.t FOR EACH {level} EXECUTE FUNCTION <s>.tr()"
        );
        refused(&setup, &["INSERT INTO <s>.t VALUES ('2')"]);
    }
}

#[test]
fn s4_the_condition_of_a_trigger() {
    refused(
        &format!(
            "{TABLE} {PLPGSQL} CREATE FUNCTION <s>.tr() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RETURN NEW; END $$;
             CREATE TRIGGER tr AFTER INSERT ON <s>.t FOR EACH ROW WHEN (<s>.f() IS NOT NULL)
                 EXECUTE FUNCTION <s>.tr()"
        ),
        &["INSERT INTO <s>.t VALUES ('2')"],
    );
}

const DEFERRED: &str = "
    CREATE FUNCTION <s>.tr() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM <call>; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER tr AFTER INSERT ON <s>.t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION <s>.tr()";

#[test]
fn s4_deferred_triggers() {
    let setup = format!("{TABLE} {DEFERRED}");
    refused(&setup, &["INSERT INTO <s>.t VALUES ('2')"]);
    refused(&setup, &["BEGIN", "INSERT INTO <s>.t VALUES ('2')", "COMMIT"]);
    refused(
        &setup,
        &[
            "BEGIN",
            "INSERT INTO <s>.t VALUES ('2')",
            "SET CONSTRAINTS ALL IMMEDIATE",
        ],
    );
    refused(
        &setup,
        &["BEGIN", "INSERT INTO <s>.t VALUES ('2')", "PREPARE TRANSACTION '<s>'"],
    );
}

#[test]
fn s4_deferred_triggers_at_the_end_of_the_clients_own_switch() {
    let stage = Stage::new();
    stage.admin(&format!(
        "{TABLE} {}",
        DEFERRED.replace("<call>", "pg_catalog.setuser('<carol>')")
    ));
    let mut session = stage.session();
    // The transaction that the switch is the last statement of.
    session.pipe("INSERT INTO <s>.t VALUES ('2')");
    session.pipe("SELECT setuser('<bob>')");
    assert_eq!(error_in(&session.sync()).unwrap().code, "0A000");
    session.is_itself();
    session.fails("0A000", "INSERT INTO <s>.t VALUES ('2'); SELECT setuser('<bob>')");
    session.is_itself();
}

#[test]
fn s4_event_triggers() {
    let stage = Stage::alone();
    for event in ["ddl_command_start", "ddl_command_end", "sql_drop"] {
        let setup = format!(
            "CREATE FUNCTION <s>.ev() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN IF session_user <> 'postgres' THEN PERFORM <call>; END IF; END $$;
             CREATE EVENT TRIGGER ev ON {event} EXECUTE FUNCTION <s>.ev()"
        );
        refused_on(&stage, Kind::Plain, &setup, &["CREATE TEMP TABLE x ()", "DROP TABLE x"]);
        stage.admin("DROP EVENT TRIGGER ev");
    }
}

#[test]
fn s4_views() {
    refused(
        "CREATE VIEW <s>.v AS SELECT <call>; GRANT SELECT ON <s>.v TO PUBLIC",
        &["SELECT * FROM <s>.v"],
    );
    refused(
        "CREATE VIEW <s>.v AS SELECT <call> AS a; GRANT SELECT ON <s>.v TO PUBLIC",
        &["SELECT a FROM <s>.v"],
    );
    refused(
        &format!("{SQL} CREATE VIEW <s>.v AS SELECT <s>.f() AS a; GRANT SELECT ON <s>.v TO PUBLIC"),
        &["SELECT a FROM <s>.v"],
    );
}

#[test]
fn s4_rules() {
    for (event, sql) in [
        ("INSERT", "INSERT INTO <s>.t VALUES ('2')"),
        ("UPDATE", "UPDATE <s>.t SET a = 'x'"),
        ("DELETE", "DELETE FROM <s>.t"),
    ] {
        for how in ["INSTEAD", "ALSO"] {
            let setup = format!("{TABLE} CREATE RULE r AS ON {event} TO <s>.t DO {how} SELECT <call>");
            refused(&setup, &[sql]);
        }
    }
    refused(
        &format!("{TABLE} CREATE RULE r AS ON INSERT TO <s>.t DO INSTEAD (SELECT 1; SELECT <call>; SELECT 2)"),
        &["INSERT INTO <s>.t VALUES ('2')"],
    );
    refused(
        &format!("{TABLE} CREATE RULE r AS ON INSERT TO <s>.t DO INSTEAD DELETE FROM <s>.t RETURNING <call>"),
        &["INSERT INTO <s>.t VALUES ('2') RETURNING a"],
    );
}

#[test]
fn s4_policies() {
    for kind in [
        "USING (<call> IS NOT NULL)",
        "USING (<s>.f() IS NOT NULL)",
        "FOR SELECT USING ((SELECT <call>) IS NOT NULL)",
    ] {
        let setup =
            format!("{TABLE} {SQL} ALTER TABLE <s>.t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON <s>.t {kind}");
        refused(&setup, &["SELECT * FROM <s>.t"]);
    }
    refused(
        &format!(
            "{TABLE} ALTER TABLE <s>.t ENABLE ROW LEVEL SECURITY;
             CREATE POLICY p ON <s>.t FOR INSERT WITH CHECK (<call> IS NOT NULL)"
        ),
        &["INSERT INTO <s>.t VALUES ('2')"],
    );
}

#[test]
fn s4_column_defaults() {
    refused(
        "CREATE TABLE <s>.d (a int, b text DEFAULT <call>); GRANT ALL ON <s>.d TO PUBLIC",
        &["INSERT INTO <s>.d VALUES (1)"],
    );
    refused(
        "CREATE TABLE <s>.d (b text DEFAULT <call>); GRANT ALL ON <s>.d TO PUBLIC",
        &["INSERT INTO <s>.d DEFAULT VALUES"],
    );
    refused(
        "",
        &[
            "CREATE TABLE <s>.d (a int)",
            "INSERT INTO <s>.d VALUES (1)",
            "ALTER TABLE <s>.d ADD b text DEFAULT <call>",
        ],
    );
    refused(
        "",
        &[
            "CREATE TABLE <s>.d (a text)",
            "INSERT INTO <s>.d VALUES (1)",
            "ALTER TABLE <s>.d ALTER a TYPE text USING <call>",
        ],
    );
}

#[test]
fn s4_generated_columns() {
    refused(
        &format!(
            "{PLPGSQL} CREATE TABLE <s>.g (a text, b text GENERATED ALWAYS AS (<s>.f(a)) STORED);
             GRANT ALL ON <s>.g TO PUBLIC"
        ),
        &["INSERT INTO <s>.g VALUES ('1')"],
    );
}

#[test]
fn s4_check_constraints() {
    refused(
        "CREATE TABLE <s>.c (a text CHECK (<call> IS NOT NULL)); GRANT ALL ON <s>.c TO PUBLIC",
        &["INSERT INTO <s>.c VALUES ('1')"],
    );
}

#[test]
fn s4_index_expressions_and_predicates() {
    for index in ["(<s>.f(a))", "(a) WHERE <s>.f(a) IS NOT NULL"] {
        let setup = format!(
            "CREATE TABLE <s>.i (a text); GRANT ALL ON <s>.i TO PUBLIC; {PLPGSQL} CREATE INDEX ON <s>.i {index}"
        );
        refused(&setup, &["INSERT INTO <s>.i VALUES ('1')"]);
    }
}

#[test]
fn s4_partition_keys() {
    refused(
        &format!(
            "{PLPGSQL} CREATE TABLE <s>.p (a text) PARTITION BY LIST (<s>.f(a));
             CREATE TABLE <s>.p1 PARTITION OF <s>.p DEFAULT; GRANT ALL ON <s>.p TO PUBLIC"
        ),
        &["INSERT INTO <s>.p VALUES ('1')"],
    );
}

#[test]
fn s4_domains() {
    let setup = "CREATE DOMAIN <s>.d AS text CHECK (<call> IS NOT NULL)";
    refused(setup, &["SELECT 'x'::<s>.d"]);
    refused(setup, &["SELECT pg_catalog.setuser('<bob>'::<s>.d)"]);
    refused(setup, &["SELECT pg_catalog.textin('x')::<s>.d"]);
    // The input of a value.
    refused(
        &format!("{setup}; CREATE TABLE <s>.t (a <s>.d); GRANT ALL ON <s>.t TO PUBLIC"),
        &["INSERT INTO <s>.t VALUES ('x')"],
    );
    refused(
        &format!("{setup}; CREATE TYPE <s>.c AS (a <s>.d)"),
        &["SELECT '(x)'::<s>.c"],
    );
    refused(
        "CREATE DOMAIN <s>.d AS text DEFAULT <call>; CREATE TABLE <s>.t (a <s>.d, b int);
             GRANT ALL ON <s>.t TO PUBLIC",
        &["INSERT INTO <s>.t (b) VALUES (1)"],
    );
}

#[test]
fn s4_casts_operators_and_aggregates() {
    for functions in [PLPGSQL, SQL] {
        refused(
            &format!(
                "CREATE TYPE <s>.ct AS (a text);
                 CREATE FUNCTION <s>.c(<s>.ct) RETURNS text LANGUAGE sql AS $$ SELECT <call> $$;
                 CREATE CAST (<s>.ct AS text) WITH FUNCTION <s>.c(<s>.ct) AS IMPLICIT; {functions}"
            ),
            &["SELECT ROW('x')::<s>.ct::text"],
        );
        refused(
            &format!("{functions} CREATE OPERATOR <s>.@@@ (FUNCTION = <s>.f, LEFTARG = text, RIGHTARG = text)"),
            &["SELECT 'a' OPERATOR(<s>.@@@) 'b'"],
        );
        refused(
            &format!("{functions} CREATE OPERATOR <s>.@@@ (FUNCTION = <s>.f, RIGHTARG = text)"),
            &["SELECT OPERATOR(<s>.@@@) 'b'::text"],
        );
        refused(
            &format!("{functions} CREATE AGGREGATE <s>.agg (text) (SFUNC = <s>.f, STYPE = text, INITCOND = 'x')"),
            &["SELECT <s>.agg('x')"],
        );
        refused(
            &format!("{functions} CREATE AGGREGATE <s>.agg (text) (SFUNC = <s>.f, STYPE = text, INITCOND = 'x')"),
            &["SELECT <s>.agg('x') OVER ()"],
        );
    }
}

#[test]
fn s4_a_setting_clause_of_a_function_that_calls() {
    refused(
        "CREATE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET role = '<grp>' AS $$
         BEGIN RETURN <call>; EXCEPTION WHEN insufficient_privilege THEN RAISE 'x' USING ERRCODE = '0A000'; END $$;
         ALTER FUNCTION <s>.f() SECURITY INVOKER",
        &["SELECT <s>.f()"],
    );
}

// Bigger queries ------------------------------------------------------------------------------------------------------

#[test]
fn s4_from_values_and_subqueries() {
    for sql in [
        "SELECT * FROM <call>",
        "SELECT x FROM <call> AS x",
        "SELECT * FROM ROWS FROM (<call>)",
        "SELECT * FROM <call> WITH ORDINALITY",
        "VALUES (<call>)",
        "VALUES (<call>), (<call>)",
        "SELECT (SELECT <call>)",
        "SELECT * FROM (SELECT <call>) s",
        "SELECT * FROM (SELECT <call> OFFSET 0) s",
        "SELECT * FROM (VALUES (1)) v, LATERAL (SELECT <call>) l",
        "SELECT * FROM (VALUES (1)) v, LATERAL <call> l",
        "SELECT ARRAY(SELECT <call>)",
        "SELECT 1 WHERE 'x' IN (SELECT <call>)",
    ] {
        refused_as(sql);
    }
}

#[test]
fn s4_common_table_expressions() {
    for sql in [
        "WITH w AS (SELECT <call>) SELECT * FROM w",
        "WITH w AS MATERIALIZED (SELECT <call>) SELECT * FROM w",
        "WITH w AS (SELECT 1) SELECT <call>",
        "WITH RECURSIVE w AS (SELECT <call> UNION ALL SELECT 'x' FROM w WHERE false) SELECT * FROM w",
    ] {
        refused_as(sql);
    }
}

#[test]
fn s4_clauses() {
    for sql in [
        "SELECT 1 WHERE <call> IS NOT NULL",
        "SELECT <call> WHERE true",
        "SELECT <call> WHERE 1 = 1",
        "SELECT <call> LIMIT 1",
        "SELECT <call> OFFSET 0",
        "SELECT 1 LIMIT length(<call>)",
        "SELECT 1 OFFSET length(<call>)",
        "SELECT 1 ORDER BY <call>",
        "SELECT <call> ORDER BY 1",
        "SELECT DISTINCT <call>",
        "SELECT <call> GROUP BY 1",
        "SELECT 1 HAVING <call> IS NOT NULL",
        "SELECT <call> FROM generate_series(1, 1)",
        "SELECT <call> FROM (VALUES (1)) v",
        "SELECT count(*) FILTER (WHERE <call> IS NOT NULL)",
        "SELECT max(<call>)",
        "SELECT count(*) OVER (ORDER BY <call>)",
        "SELECT <call> UNION SELECT 'x'",
        "SELECT <call> UNION ALL SELECT 'x'",
        "SELECT 'x' UNION ALL SELECT <call>",
        "SELECT <call> EXCEPT SELECT 'x'",
        "SELECT <call>, generate_series(1, 1)",
    ] {
        refused_as(sql);
    }
}

#[test]
fn s4_expressions() {
    for sql in [
        "SELECT <call>, 1",
        "SELECT 1, <call>",
        "SELECT <call>, <call>",
        "SELECT <call> || ''",
        "SELECT length(<call>)",
        "SELECT <call> IS NULL",
        "SELECT CASE WHEN true THEN <call> END",
        "SELECT CASE <call> WHEN 'x' THEN 1 END",
        "SELECT COALESCE(<call>, 'x')",
        "SELECT COALESCE(NULL, <call>)",
        "SELECT NULLIF(<call>, 'x')",
        "SELECT GREATEST(<call>)",
        "SELECT ARRAY[<call>]",
        "SELECT ROW(<call>)",
        "SELECT (ROW(<call>)).*",
        "SELECT <call>::varchar(3)",
        "SELECT <call> COLLATE \"C\"",
        "SELECT (ARRAY[<call>])[1]",
        "SELECT true OR <call> IS NULL, <call>",
        "SELECT XMLELEMENT(NAME x, <call>)",
    ] {
        refused_as(sql);
    }
}

#[test]
fn s4_arguments_that_are_no_constants() {
    for argument in [
        "(SELECT '<bob>')",
        "(SELECT '<bob>'::text)",
        "<s>.v()",
        "<s>.stable()",
        "<s>.immutable()",
        "'<bob>' || ''",
        "lower('<bob>')",
        "upper('<bob>')::text",
        "current_user",
        "current_user::text",
        "session_user::text",
        "current_setting('role')",
        "CASE WHEN true THEN '<bob>' END",
        "COALESCE('<bob>', 'x')",
        "ROW('<bob>')::<s>.ct",
        "('x', '<bob>')::<s>.ct",
        "(ARRAY['<bob>'])[1]",
        "'<bob>'::<s>.d",
        "concat('<bob>')",
        "pg_catalog.setuser('<bob>')",
        "target => (SELECT '<bob>')",
        "'<bob>', reason => (SELECT 'x')",
        "'<bob>', reason => <s>.v()",
        "'<bob>', local => random() > 2",
        "'<bob>', local => <s>.v() = ''",
        "'<bob>', NULL, false, <s>.v()",
    ] {
        let stage = Stage::new();
        let setup = "
            CREATE FUNCTION <s>.v() RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN '<bob>'; END $$;
            CREATE FUNCTION <s>.stable() RETURNS text LANGUAGE sql STABLE AS $$ SELECT '<bob>'::text $$;
            CREATE FUNCTION <s>.immutable() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '<bob>'::text $$;
            CREATE DOMAIN <s>.d AS text;
            CREATE TYPE <s>.ct AS (a text, b text);
            CREATE FUNCTION <s>.c(<s>.ct) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '<bob>'::text $$;
            CREATE CAST (<s>.ct AS text) WITH FUNCTION <s>.c(<s>.ct) AS IMPLICIT";
        stage.admin(setup);
        for protocol in PROTOCOLS {
            let mut session = stage.session();
            let answer = session.send(protocol, &format!("SELECT setuser({argument})"));
            let error = error_in(&answer).unwrap_or_else(|| panic!("{protocol:?}: setuser({argument}) worked"));
            // A row of one column can't be that type.
            assert!(
                ["0A000", "42846"].contains(&error.code.as_str()),
                "setuser({argument}): {error:?}"
            );
            session.is_itself();
        }
    }
}

#[test]
fn s4_what_writes() {
    for sql in [
        "INSERT INTO <s>.t SELECT <call>",
        "INSERT INTO <s>.t VALUES (<call>)",
        "INSERT INTO <s>.t VALUES ('2') RETURNING <call>",
        "UPDATE <s>.t SET a = <call>",
        "UPDATE <s>.t SET a = 'x' RETURNING <call>",
        "UPDATE <s>.t SET a = 'x' WHERE <call> IS NOT NULL",
        "DELETE FROM <s>.t RETURNING <call>",
        "DELETE FROM <s>.t WHERE <call> IS NOT NULL",
        "MERGE INTO <s>.t USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT VALUES (<call>)",
        "MERGE INTO <s>.t USING (SELECT 1) s ON true WHEN MATCHED AND <call> IS NOT NULL THEN DELETE",
        "MERGE INTO <s>.t USING (SELECT <call>) s ON true WHEN MATCHED THEN DO NOTHING",
        "WITH w AS (INSERT INTO <s>.t VALUES (<call>) RETURNING a) SELECT * FROM w",
        "CREATE TABLE <s>.new AS SELECT <call>",
        "CREATE TEMP TABLE new AS SELECT <call>",
        "CREATE MATERIALIZED VIEW <s>.new AS SELECT <call>",
        "SELECT <call> INTO <s>.new",
        "COPY (SELECT <call>) TO STDOUT",
        "EXPLAIN ANALYZE SELECT <call>",
        "EXPLAIN (ANALYZE, FORMAT json) SELECT <call>",
    ] {
        refused(TABLE, &[sql]);
    }
}

// Cursors and prepared statements ---------------------------------------------------------------------------------------

#[test]
fn s4_cursors() {
    refused("", &["BEGIN", "DECLARE c CURSOR FOR SELECT <call>", "FETCH c"]);
    refused(
        "",
        &["BEGIN", "DECLARE c SCROLL CURSOR FOR SELECT <call>", "FETCH ALL FROM c"],
    );
    refused("", &["BEGIN", "DECLARE c BINARY CURSOR FOR SELECT <call>", "MOVE c"]);
    refused("", &["BEGIN", "DECLARE c CURSOR WITH HOLD FOR SELECT <call>", "COMMIT"]);
    refused("", &["DECLARE c CURSOR WITH HOLD FOR SELECT <call>"]);
}

#[test]
fn s4_prepared_statements_of_sql() {
    refused("", &["PREPARE p AS SELECT <call>", "EXECUTE p"]);
    refused(
        "",
        &["PREPARE p(text) AS SELECT pg_catalog.setuser($1)", "EXECUTE p('<bob>')"],
    );
    refused("", &["PREPARE p(text) AS SELECT $1", "EXECUTE p(<call>)"]);
    refused("", &["PREPARE p AS SELECT <call>", "CREATE TABLE <s>.new AS EXECUTE p"]);
    refused("", &["PREPARE p AS SELECT <call>", "EXPLAIN ANALYZE EXECUTE p"]);
    refused(
        "",
        &[
            "SET plan_cache_mode = force_generic_plan",
            "PREPARE p AS SELECT <call>",
            "EXECUTE p",
        ],
    );
}

/// SQL's EXECUTE of a statement that the protocol prepared: what is executed is not what the client sent last, but its
/// own all the same. It is refused as the rule says.
#[test]
fn s4_sql_execute_of_a_statement_that_the_protocol_prepared() {
    let stage = Stage::new();
    let mut session = stage.session();
    let sql = stage.sql("SELECT setuser('<bob>')");
    session.raw.parse("p", &sql, &[]);
    session.sync();
    session.fails("0A000", "EXECUTE p");
    session.is_itself();
    session.fails("0A000", "DO $$ BEGIN EXECUTE 'EXECUTE p'; END $$");
    session.is_itself();
}

/// A portal that SQL opened in a transaction, executed by the protocol: its query was not the client's message.
#[track_caller]
fn refused_through_portal(stage: &Stage, actor: Option<&str>, open: &str, portal: &str) {
    for describe in [false, true] {
        let mut session = stage.session();
        if let Some(actor) = actor {
            session.become_role(actor);
        }
        session.ok("BEGIN");
        session.ok(open);
        if describe {
            session.raw.describe_portal(portal);
        }
        session.raw.execute(portal, 0);
        let answer = session.sync();
        let error = error_in(&answer).map(|error| error.code);
        assert_eq!(
            error.as_deref(),
            Some("0A000"),
            "{open} got through as {actor:?}: {answer:?}"
        );
        session.ok("ROLLBACK");
        match actor {
            Some(actor) => session.is(actor),
            None => session.is_itself(),
        }
    }
}

#[test]
fn s4_a_declared_cursor_executed_by_the_protocol() {
    let stage = Stage::new();
    for (actor, call) in ATTEMPTS {
        for how in ["", "NO SCROLL", "SCROLL", "BINARY"] {
            refused_through_portal(&stage, actor, &format!("DECLARE c {how} CURSOR FOR SELECT {call}"), "c");
        }
    }
}

#[test]
fn s4_a_functions_refcursor_executed_by_the_protocol() {
    let stage = Stage::new();
    for (actor, call) in ATTEMPTS {
        for open in [
            format!("OPEN c FOR SELECT {call};"),
            format!("OPEN c FOR EXECUTE $x$ SELECT {call} $x$;"),
        ] {
            stage.admin(&format!(
                "CREATE OR REPLACE FUNCTION <s>.f() RETURNS refcursor LANGUAGE plpgsql AS $$
                 DECLARE c refcursor := 'theirs'; BEGIN {open} RETURN c; END $$"
            ));
            refused_through_portal(&stage, actor, "SELECT <s>.f()", "theirs");
        }
    }
}

/// SQL's PREPARE and the protocol's share their names: code could leave a switch under the name that a driver uses next.
#[test]
fn s4_a_statement_that_code_prepared_executed_by_the_protocol() {
    let stage = Stage::new();
    for (actor, call) in ATTEMPTS {
        for replaced in [false, true] {
            stage.admin(&format!(
                "CREATE OR REPLACE FUNCTION <s>.f() RETURNS text LANGUAGE plpgsql AS $$
                 BEGIN
                     IF {replaced} THEN DEALLOCATE \"S_1\"; END IF;
                     EXECUTE $x$ PREPARE \"S_1\" AS SELECT {call} $x$;
                     RETURN 'x';
                 END $$"
            ));
            let mut session = stage.session();
            if let Some(actor) = actor {
                session.become_role(actor);
            }
            if replaced {
                session.raw.parse("S_1", "SELECT 'mine'", &[]);
                session.sync();
            }
            session.ok("SELECT <s>.f()");
            session.raw.bind("", "S_1", &[]);
            session.raw.execute("", 0);
            let answer = session.sync();
            let error = error_in(&answer).map(|error| error.code);
            assert_eq!(
                error.as_deref(),
                Some("0A000"),
                "{actor:?}, {call}, {replaced}: {answer:?}"
            );
            match actor {
                Some(actor) => session.is(actor),
                None => session.is_itself(),
            }
        }
    }
}

#[test]
fn s4_the_fast_path() {
    let stage = Stage::new();
    let oid = stage.look("SELECT 'pg_catalog.setuser(text,text,boolean,text,boolean,boolean)'::regprocedure::oid")[0]
        [0]
    .clone()
    .unwrap()
    .parse()
    .unwrap();
    let mut session = stage.session();
    let bob = stage.name("bob");
    let call = |session: &mut Session, target: Option<&str>| {
        let f = Some("false");
        error_in(&session.raw.call(oid, &[target, None, f, None, f, f])).map(|error| error.code)
    };
    assert_eq!(call(&mut session, Some(&bob)).as_deref(), Some("0A000"));
    session.is_itself();
    session.become_role("bob");
    for target in [None, Some(stage.name("carol"))] {
        assert_eq!(call(&mut session, target.as_deref()).as_deref(), Some("0A000"));
        session.is("bob");
    }
    session.ok("BEGIN; SELECT 1");
    assert_eq!(call(&mut session, None).as_deref(), Some("0A000"));
    session.ok("ROLLBACK");
    session.is("bob");
}

#[test]
fn s4_a_statement_of_a_message_that_is_not_bare() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.fails("0A000", "SELECT 1; SELECT setuser('<bob>'), 1; SELECT 2");
    session.is_itself();
    session.fails("0A000", "SELECT setuser('<bob>'); SELECT setuser('<carol>') LIMIT 1");
    session.is_itself();
}

// ----------------------------------------------------------------------------------------------------- S4: what must work ---

#[track_caller]
fn works_by(session: &mut Session, protocol: Protocol, sql: &str) {
    let rows = session.ok_by(protocol, sql);
    assert_eq!(rows, [[Some(session.stage.name("bob"))]], "{protocol:?}: {sql}");
    session.is("bob");
    session.ok("SELECT setuser()");
    session.is_itself();
}

#[test]
fn s4_every_plain_spelling_of_the_statement_works() {
    let stage = Stage::new();
    let mut session = stage.session();
    for sql in [
        "SELECT setuser('<bob>')",
        "SELECT setuser('<bob>');",
        "  select SetUser ( '<bob>' ) ;  ",
        "SELECT \"setuser\"('<bob>')",
        "SELECT pg_catalog.setuser('<bob>')",
        "SELECT setuser('<bob>') AS x",
        "SELECT setuser('<bob>') x",
        "SELECT (setuser('<bob>'))",
        "(SELECT setuser('<bob>'))",
        "SELECT ALL setuser('<bob>')",
        "/* before */ SELECT /* within */ setuser(/* and */ '<bob>') -- after",
        "-- a line before\nSELECT setuser('<bob>')\n;\n",
        "SELECT setuser($$<bob>$$)",
        "SELECT setuser(E'<bob>')",
        "SELECT setuser('<bob>'::text)",
        "SELECT setuser('<bob>'::varchar)",
        "SELECT setuser('<bob>'::varchar(60))",
        "SELECT setuser('<bob>'::name)",
        "SELECT setuser(CAST('<bob>' AS text))",
        "SELECT setuser(text '<bob>')",
        "SELECT setuser('<bob>', NULL)",
        "SELECT setuser('<bob>', 'a reason')",
        "SELECT setuser('<bob>', 'a reason', false, NULL, false, false)",
        "SELECT setuser('<bob>', NULL, NULL, NULL, NULL, NULL)",
        "SELECT setuser(target => '<bob>')",
        "SELECT setuser(target := '<bob>')",
        "SELECT setuser(reason => 'a reason', target => '<bob>')",
        "SELECT setuser(local => false, with_settings => false, target => '<bob>', reason => NULL)",
        "SELECT setuser('<bob>', local => 'off')",
        "SELECT setuser('<bob>', no_revert => false, local => false)",
    ] {
        for protocol in PROTOCOLS {
            works_by(&mut session, protocol, sql);
        }
    }
}

const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const NAME: u32 = 19;
const UNKNOWN: u32 = 705;

#[test]
fn s4_parameters_of_every_driver_work() {
    let stage = Stage::new();
    let mut session = stage.session();
    let bob = stage.name("bob");
    for (sql, types) in [
        ("SELECT setuser($1)", &[][..]),
        ("SELECT setuser($1)", &[0]),
        ("SELECT setuser($1)", &[TEXT]),
        ("SELECT setuser($1)", &[VARCHAR]),
        ("SELECT setuser($1)", &[NAME]),
        ("SELECT setuser($1)", &[UNKNOWN]),
        ("SELECT setuser($1::text)", &[]),
        ("SELECT setuser($1::text)", &[VARCHAR]),
        ("SELECT setuser($1::varchar)", &[]),
        ("SELECT setuser($1::varchar)", &[TEXT]),
        ("SELECT setuser($1::varchar(60))", &[]),
        ("SELECT setuser($1::name)", &[]),
        ("SELECT setuser(target => $1)", &[]),
        ("SELECT setuser(reason => NULL, target => $1)", &[VARCHAR]),
    ] {
        // A cached plan too.
        for _ in 0..3 {
            session.raw.parse("", sql, types);
            session.raw.bind("", "", &[Some(&bob)]);
            session.raw.describe_portal("");
            session.raw.execute("", 0);
            let answer = session.sync();
            assert_eq!(rows_in(&answer), [[Some(bob.clone())]], "{sql}, {types:?}: {answer:?}");
            session.is("bob");
            session.ok("SELECT setuser()");
        }
    }
    let sql = "SELECT setuser($1, reason => $2, local => $3)";
    session.raw.parse("", sql, &[]);
    session.raw.bind("", "", &[Some(&bob), Some("why"), Some("f")]);
    session.raw.execute("", 0);
    assert_eq!(rows_in(&session.sync()), [[Some(bob.clone())]]);
    session.is("bob");
    // NULL as a parameter ends.
    session.raw.parse("", "SELECT setuser($1)", &[]);
    session.raw.bind("", "", &[None]);
    session.raw.execute("", 0);
    assert_eq!(rows_in(&session.sync()), [[Some(stage.name("imp"))]]);
    session.is_itself();
}

#[test]
fn s4_named_statements_and_portals_of_the_protocol_work() {
    let stage = Stage::new();
    let mut session = stage.session();
    let (imp, bob, carol) = (stage.name("imp"), stage.name("bob"), stage.name("carol"));
    session.raw.parse("switch", "SELECT setuser($1)", &[]);
    session.raw.describe_statement("switch");
    session.sync();
    // More often than a custom plan is made.
    for round in 0..8 {
        for (target, role) in [(Some(&bob), "bob"), (Some(&carol), "carol"), (None, "imp")] {
            let portal = if round % 2 == 0 { "" } else { "named" };
            session.raw.bind(portal, "switch", &[target.map(String::as_str)]);
            session.raw.describe_portal(portal);
            session.raw.execute(portal, 0);
            let answer = session.sync();
            assert_eq!(rows_in(&answer), [[Some(target.unwrap_or(&imp).clone())]], "{answer:?}");
            if target.is_some() {
                session.is(role);
            } else {
                session.is_itself();
            }
        }
    }
    session.ok("SET plan_cache_mode = force_generic_plan");
    session.raw.bind("", "switch", &[Some(&bob)]);
    session.raw.execute("", 0);
    session.sync();
    session.is("bob");
}

#[test]
fn s4_a_suspended_portal_switches_once() {
    let stage = Stage::new();
    let mut session = stage.session();
    let sql = stage.sql("SELECT setuser('<bob>')");
    session.ok("BEGIN");
    session.raw.parse("", &sql, &[]);
    session.raw.bind("named", "", &[]);
    session.raw.execute("named", 1);
    let answer = session.sync();
    assert_eq!(rows_in(&answer), [[Some(stage.name("bob"))]]);
    session.is("bob");
    session.raw.execute("named", 1);
    session.raw.execute("named", 0);
    session.sync();
    session.is("bob");
    session.ok("COMMIT");
    session.is("bob");
    assert_eq!(stage.history(session.pid()), ["+bob"]);
    // Outside a transaction, with a limit of rows as JDBC sends it.
    session.raw.parse("", "SELECT setuser()", &[]);
    session.raw.bind("", "", &[]);
    session.raw.execute("", 1);
    assert!(session.sync().contains(&Message::ReadyForQuery(Transaction::None)));
    session.is_itself();
}

#[test]
fn s4_a_switch_between_the_rows_of_another_portal_is_refused_or_leaves_it_as_it_was() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("BEGIN");
    session
        .raw
        .parse("", "SELECT current_user || generate_series(1, 3)", &[]);
    session.raw.bind("half", "", &[]);
    session.raw.execute("half", 1);
    session.sync();
    // S9: an open portal is an open cursor.
    session.fails("55006", "SELECT setuser('<bob>')");
    session.ok("ROLLBACK");
    session.is_itself();
}

// --------------------------------------------------------------------------------------------------- X1: SET ROLE within ---

#[test]
fn x1_set_role_follows_the_targets_memberships() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    for protocol in PROTOCOLS {
        session.ok_by(protocol, "SET ROLE <grp>");
        session.is_in_role("bob", "grp");
        // The impersonator's own, and the impersonator.
        for role in ["<own>", "<imp>", "<carol>", "postgres"] {
            session.fails_by(protocol, "42501", &format!("SET ROLE {role}"));
            session.is_in_role("bob", "grp");
        }
        session.ok_by(protocol, "RESET ROLE");
        session.is("bob");
    }
}

#[test]
fn x1_every_way_back_of_the_role_leads_to_the_target() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.run(text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE $1; RETURN current_user; END $$;
         CREATE FUNCTION <s>.none() RETURNS text LANGUAGE sql SET role = 'none' AS 'SELECT current_user::text';
         CREATE FUNCTION <s>.reset() RETURNS text LANGUAGE sql AS 'RESET ROLE; SELECT current_user::text'",
    );
    for before in ["SET ROLE <own>", "SELECT 1"] {
        let mut session = stage.session();
        session.ok(before);
        session.become_role("bob");
        for reset in [
            "RESET ROLE",
            "SET ROLE NONE",
            "set role none",
            "SET role = 'none'",
            "SET \"role\" TO 'none'",
            "SET \"ROLE\" TO 'none'",
            "SET role TO DEFAULT",
            "SET LOCAL role TO DEFAULT",
            "SET SESSION ROLE NONE",
            "RESET ALL",
            "SELECT set_config('role', 'none', false)",
            "SELECT set_config('role', NULL, false)",
            "SELECT set_config('ROLE', 'none', true)",
            "SELECT <s>.run('RESET ROLE')",
            "SELECT <s>.run('SET ROLE NONE')",
            "SELECT <s>.run('SET LOCAL ROLE NONE')",
            "SELECT <s>.reset()",
            "DO $$ BEGIN RESET ROLE; END $$",
            "DO $$ BEGIN COMMIT; RESET ROLE; END $$",
            "PREPARE p AS SELECT set_config('role', 'none', false); EXECUTE p; DEALLOCATE p",
        ] {
            session.ok("SET ROLE <grp>");
            session.is_in_role("bob", "grp");
            session.ok(reset);
            if reset == "RESET ALL" || reset.contains("LOCAL") || reset.contains("true)") {
                // RESET ALL leaves the role; the local ones are over with their statement.
                session.is_in_role("bob", "grp");
                session.ok("RESET ROLE");
            }
            session.is("bob");
        }
        assert_eq!(session.value("SELECT <s>.none()"), stage.name("bob"));
        session.is("bob");
    }
}

#[test]
fn x1_no_route_sets_a_role_that_the_target_could_not() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.run(text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE $1; RETURN current_user; END $$;
         CREATE FUNCTION <s>.clause() RETURNS text LANGUAGE sql SET role = '<own>' AS 'SELECT current_user::text';
         CREATE FUNCTION <s>.clause_imp() RETURNS text LANGUAGE sql SET role = '<imp>' AS 'SELECT current_user::text'",
    );
    let mut session = stage.session();
    session.ok("SET ROLE <own>");
    session.become_role("bob");
    for sql in [
        "SET ROLE <own>",
        "SET LOCAL ROLE <own>",
        "SET \"Role\" = '<own>'",
        "SET role TO '<own>'",
        "SELECT set_config('role', '<own>', false)",
        "SELECT set_config('RoLe', '<own>', true)",
        "SELECT <s>.run('SET ROLE <own>')",
        "SELECT <s>.run('SET LOCAL ROLE <imp>')",
        "SELECT <s>.clause()",
        "SELECT <s>.clause_imp()",
        "DO $$ BEGIN SET ROLE <imp>; END $$",
        "DO $$ BEGIN COMMIT; SET ROLE <imp>; END $$",
        "DO $$ BEGIN ROLLBACK; PERFORM set_config('role', '<own>', false); END $$",
    ] {
        for protocol in PROTOCOLS {
            session.fails_by(protocol, "42501", sql);
            session.is("bob");
        }
    }
    // No setting that pg_settings would show: nothing happens.
    session.ok("UPDATE pg_settings SET setting = '<own>' WHERE name = 'role'");
    session.is("bob");
    session.fails("42704", "SET ROLE \"no such role\"");
    session.is("bob");
}

#[test]
fn x1_a_functions_set_clause_is_the_targets_and_over_at_its_end() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.clause() RETURNS text LANGUAGE plpgsql SET role = '<grp>' AS
             $$ BEGIN RETURN current_user; END $$;
         CREATE FUNCTION <s>.fails() RETURNS text LANGUAGE plpgsql SET role = '<grp>' AS
             $$ BEGIN PERFORM 1/0; RETURN current_user; END $$",
    );
    let mut session = stage.session();
    session.become_role("bob");
    assert_eq!(session.value("SELECT <s>.clause()"), stage.name("grp"));
    session.is("bob");
    session.fails("22012", "SELECT <s>.fails()");
    session.is("bob");
    session.ok("DO $$ BEGIN PERFORM <s>.fails(); EXCEPTION WHEN OTHERS THEN NULL; END $$");
    session.is("bob");
}

#[test]
fn x1_a_role_set_inside_a_function_that_fails_is_undone() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.fails("22012", "DO $$ BEGIN SET ROLE <grp>; PERFORM 1/0; END $$");
    session.is("bob");
    session.ok("DO $$ BEGIN BEGIN SET ROLE <grp>; PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END; END $$");
    session.is("bob");
    session.ok("DO $$ BEGIN SET ROLE <grp>; END $$");
    session.is_in_role("bob", "grp");
}

#[test]
fn x1_a_superuser_target_may_set_any_role_and_the_impersonator_no_more() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> SUPERUSER");
    let mut session = stage.session_of("postgres");
    session.become_role("carol");
    session.ok("SET ROLE <own>");
    session.is_in_role("carol", "own");
    session.ok("SET ROLE postgres");
    session.is_in_role("carol", "postgres");
    session.become_role("bob");
    session.fails("42501", "SET ROLE <own>");
    session.is("bob");
}

#[test]
fn x1_a_membership_given_up_meanwhile_no_longer_counts() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    stage.admin("REVOKE <grp> FROM <bob>");
    session.fails("42501", "SET ROLE <grp>");
    session.is("bob");
}

// -------------------------------------------------------------------------------------- X1: the session's authorization ---

#[test]
fn x1_session_authorization_cannot_be_set_or_reset() {
    let stage = Stage::new();
    stage.admin("ALTER ROLE <carol> SUPERUSER");
    for (login, target) in [("imp", "bob"), ("postgres", "bob"), ("postgres", "carol")] {
        let mut session = stage.session_of(login);
        session.become_role(target);
        for sql in [
            "SET SESSION AUTHORIZATION <bob>",
            "SET SESSION AUTHORIZATION <imp>",
            "SET SESSION AUTHORIZATION postgres",
            "SET LOCAL SESSION AUTHORIZATION <bob>",
            "SET SESSION AUTHORIZATION DEFAULT",
            "RESET SESSION AUTHORIZATION",
            "SET session_authorization = '<bob>'",
            "SET \"SESSION_authorization\" TO DEFAULT",
            "RESET session_authorization",
            "SELECT set_config('session_authorization', '<bob>', false)",
            "SELECT set_config('session_authorization', NULL, false)",
            "SELECT set_config('Session_Authorization', '<imp>', true)",
            "DO $$ BEGIN RESET SESSION AUTHORIZATION; END $$",
            "DO $$ BEGIN COMMIT; RESET SESSION AUTHORIZATION; END $$",
            "DO $$ BEGIN SET SESSION AUTHORIZATION DEFAULT; END $$",
        ] {
            for protocol in PROTOCOLS {
                session.fails_by(protocol, "42501", sql);
                session.is(target);
            }
        }
        session.ok("BEGIN; SAVEPOINT a");
        session.fails("42501", "RESET SESSION AUTHORIZATION");
        session.ok("ROLLBACK TO a");
        session.is(target);
        session.ok("COMMIT");
        session.ok("DO $$ BEGIN RESET SESSION AUTHORIZATION; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$");
        session.is(target);
        session.ok("SELECT setuser()");
        session.is_itself();
        session.ok("RESET SESSION AUTHORIZATION");
        session.is_itself();
    }
}

#[test]
fn x1_the_targets_setting_cannot_be_changed_by_code() {
    let stage = Stage::new();
    stage.admin(
        "CREATE FUNCTION <s>.run(text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE $1; RETURN current_user; END $$;
         CREATE FUNCTION <s>.clause() RETURNS text LANGUAGE plpgsql SET impersonate.target = '' AS
             $$ BEGIN RETURN current_user; END $$",
    );
    for (actor, values) in [(None, &["<bob>"][..]), (Some("bob"), &["", "<carol>", "<imp>"])] {
        let mut session = stage.session();
        if let Some(actor) = actor {
            session.become_role(actor);
        }
        let mut attacks = Vec::new();
        for value in values {
            attacks.extend([
                format!("SELECT <s>.run($$SET impersonate.target = '{value}'$$)"),
                format!("SELECT <s>.run($$SET LOCAL impersonate.target = '{value}'$$)"),
                format!("SELECT <s>.run($$SET \"IMPERSONATE.Target\" = '{value}'$$)"),
                format!("SELECT <s>.run($$SELECT set_config('impersonate.target', '{value}', false)$$)"),
                format!("SELECT <s>.run($$SELECT set_config('impersonate.target', '{value}', true)$$)"),
                format!("DO $$ BEGIN PERFORM set_config('impersonate.target', '{value}', false); END $$"),
                format!("DO $$ BEGIN COMMIT; PERFORM set_config('impersonate.target', '{value}', false); END $$"),
                format!("UPDATE pg_settings SET setting = '{value}' WHERE name = 'impersonate.target'"),
            ]);
        }
        if actor.is_some() {
            attacks.extend(
                [
                    "SELECT <s>.run('RESET impersonate.target')",
                    "SELECT <s>.run('SET impersonate.target TO DEFAULT')",
                    "SELECT <s>.run('SELECT set_config(''impersonate.target'', NULL, false)')",
                    "SELECT <s>.clause()",
                    "DO $$ BEGIN RESET impersonate.target; END $$",
                ]
                .map(str::to_owned),
            );
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

// ----------------------------------------------------------------------------------------------------------- X3: DISCARD ---

#[test]
fn x3_discard_all_ends_an_impersonation() {
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        for role in ["SELECT 1", "SET ROLE <grp>"] {
            let mut session = stage.session();
            session.become_role("bob");
            session.ok(role);
            session.ok_by(protocol, "DISCARD ALL");
            session.is_itself();
            assert_eq!(stage.history(session.pid()), ["+bob", "-bob discard"]);
            session.become_role("bob");
            session.is("bob");
        }
    }
}

#[test]
fn x3_discard_all_in_a_transaction_fails_and_leaves_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("BEGIN");
    session.fails("25001", "DISCARD ALL");
    session.ok("ROLLBACK");
    session.is("bob");
    session.fails("25001", "SELECT 1; DISCARD ALL");
    session.is("bob");
    session.fails("25001", "DISCARD ALL; SELECT 1");
    session.is("bob");
    session.pipe("SELECT 1");
    session.pipe("DISCARD ALL");
    assert_eq!(error_in(&session.sync()).unwrap().code, "25001");
    session.is("bob");
}

#[test]
fn x3_code_cannot_discard() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    for sql in [
        "DO $$ BEGIN DISCARD ALL; END $$",
        "DO $$ BEGIN EXECUTE 'DISCARD ALL'; END $$",
        "DO $$ BEGIN COMMIT; DISCARD ALL; END $$",
    ] {
        let answer = session.send(Protocol::Simple, sql);
        assert!(error_in(&answer).is_some(), "{sql} worked");
        session.is("bob");
    }
}

#[test]
fn x3_the_other_discards_and_reset_all_leave_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.become_role("bob");
    session.ok("SET ROLE <grp>");
    for sql in [
        "DISCARD PLANS",
        "DISCARD SEQUENCES",
        "DISCARD TEMP",
        "RESET ALL",
        "DEALLOCATE ALL",
        "CLOSE ALL",
        "UNLISTEN *",
    ] {
        session.ok(sql);
        session.is_in_role("bob", "grp");
    }
    // What a pooler sends that does not know DISCARD ALL.
    session.ok("RESET ROLE; RESET ALL");
    session.is("bob");
}

#[test]
fn x3_discard_all_without_an_impersonation_is_as_postgres_has_it() {
    let stage = Stage::new();
    let mut session = stage.session();
    session.ok("SET ROLE <own>");
    session.ok("DISCARD ALL");
    session.is_itself();
    session.ok("DISCARD ALL");
    session.is_itself();
}
