//! What is stored in the audit, and that it stays so: L8, L9, partitions, where events go, and what auditors see.

use impersonate_server_tests::{fails_with, unique, wait_until, Cluster, Database};
use postgres::Client;

const OWNER: &str = "postgres";

/// The newest state of a row, as text.
fn text(client: &mut Client, query: &str) -> String {
    let rows = client
        .simple_query(query)
        .unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let lines = rows.iter().filter_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|column| row.get(column).unwrap_or("-").to_owned())
                .collect::<Vec<_>>()
                .join("|"),
        ),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn run(client: &mut Client, sql: &str) {
    client
        .batch_execute(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// ok, number, damage and detail.
fn verify(client: &mut Client) -> String {
    verify_with(client, "")
}

fn verify_with(client: &mut Client, arguments: &str) -> String {
    run(client, "SELECT impersonate.audit_sync()");
    text(
        client,
        &format!("SELECT ok, first_bad, damage, detail FROM impersonate.audit_verify({arguments})"),
    )
}

const OK: &str = "t|-|-|-";

/// A superuser's session, with a function that makes events of any time.
fn auditor(database: &Database) -> Client {
    let mut client = database.connect(OWNER);
    run(
        &mut client,
        "CREATE EXTENSION IF NOT EXISTS impersonate;
         CREATE OR REPLACE FUNCTION public.event(at timestamptz, count int) RETURNS void STRICT LANGUAGE c
             AS '$libdir/impersonate', 'impersonate_test_event'",
    );
    client
}

fn event(client: &mut Client, time: &str, count: i32) {
    run(
        client,
        &format!("SELECT public.event('{time}', {count}); SELECT impersonate.audit_sync()"),
    );
}

/// Statements of a superuser who gets past the guard.
fn by_force(client: &mut Client, sql: &str) {
    run(
        client,
        &format!("SET session_replication_role = replica; {sql}; SET session_replication_role = origin"),
    );
}

fn partitions(client: &mut Client) -> String {
    text(
        client,
        "SELECT string_agg(c.relname || ' ' || pg_get_expr(c.relpartbound, c.oid), '; ' ORDER BY c.relname)
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'impersonate.audit'::regclass",
    )
}

// ---------------------------------------------------------------------------------------------------------- partitions ---

#[test]
fn l9_a_partition_for_each_month_appears_by_itself_whatever_the_clock_does() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    run(&mut client, "SET timezone = 'UTC'");
    for time in [
        "2024-12-31 23:59:59.999999+00",
        "2025-01-01 00:00:00+00",
        "2024-12-01 00:00:00+00",
        "1999-06-01 00:00:00+00",
        "12024-02-29 00:00:00+00",
    ] {
        event(&mut client, time, 2);
    }
    let month = |name: &str, from: &str, to: &str| format!("{name} FOR VALUES FROM ('{from}') TO ('{to}')");
    assert_eq!(
        partitions(&mut client),
        [
            month("audit_1202402", "12024-02-01 00:00:00+00", "12024-03-01 00:00:00+00"),
            month("audit_199906", "1999-06-01 00:00:00+00", "1999-07-01 00:00:00+00"),
            month("audit_202412", "2024-12-01 00:00:00+00", "2025-01-01 00:00:00+00"),
            month("audit_202501", "2025-01-01 00:00:00+00", "2025-02-01 00:00:00+00"),
        ]
        .join("; ")
    );
    assert_eq!(
        text(
            &mut client,
            "SELECT string_agg(event_id::text, ',' ORDER BY event_id) FROM impersonate.audit"
        ),
        "1,2,3,4,5,6,7,8,9,10"
    );
    assert_eq!(verify(&mut client), OK);
}

#[test]
fn l9_a_partition_is_made_while_others_read_and_write() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    event(&mut client, "2025-01-15", 1);
    let mut reader = database.connect(OWNER);
    run(
        &mut reader,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM impersonate.audit",
    );
    event(&mut client, "2025-02-15", 1);
    // ANALYZE has the table to itself for a while.
    run(
        &mut reader,
        "COMMIT; BEGIN; LOCK TABLE impersonate.audit IN SHARE UPDATE EXCLUSIVE MODE",
    );
    run(&mut client, "SELECT public.event('2025-03-15', 1)");
    std::thread::sleep(std::time::Duration::from_millis(500));
    run(&mut reader, "COMMIT");
    assert_eq!(verify(&mut client), OK);
    assert_eq!(text(&mut client, "SELECT count(*) FROM impersonate.audit"), "3");
}

#[test]
fn l9_partitions_that_others_made_are_used_and_names_that_are_taken_are_avoided() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    run(
        &mut client,
        "SET timezone = 'UTC';
         CREATE TABLE impersonate.first_half PARTITION OF impersonate.audit
             FOR VALUES FROM ('2025-01-01') TO ('2025-06-10');
         CREATE TABLE impersonate.old PARTITION OF impersonate.audit FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
         CREATE TABLE impersonate.audit_202506 ()",
    );
    event(&mut client, "2025-03-01", 1);
    event(&mut client, "2019-03-01", 1);
    event(&mut client, "2025-06-15", 1);
    assert_eq!(
        text(
            &mut client,
            "SELECT tableoid::regclass FROM impersonate.audit ORDER BY event_id"
        ),
        "impersonate.first_half\nimpersonate.old\nimpersonate.audit_202506_1"
    );
    assert!(
        partitions(&mut client).contains("audit_202506_1 FOR VALUES FROM ('2025-06-10 00:00:00+00') TO ('2025-07-01")
    );
    assert_eq!(verify(&mut client), OK);
    // A partition that is gone is made anew, and the loss shows.
    run(
        &mut client,
        "ALTER EXTENSION impersonate DROP TABLE impersonate.audit_202506_1; DROP TABLE impersonate.audit_202506_1",
    );
    event(&mut client, "2025-06-16", 1);
    assert_eq!(verify(&mut client), "f|3|removed|row 3 was removed");
    // So is one that was only detached, whose name stays taken.
    run(
        &mut client,
        "ALTER TABLE impersonate.audit DETACH PARTITION impersonate.first_half",
    );
    event(&mut client, "2025-03-02", 1);
    assert_eq!(verify(&mut client), "f|1|removed|row 1 was removed");
}

#[test]
fn l9_events_of_many_months_in_one_batch_each_find_their_partition() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    run(
        &mut client,
        "SET timezone = 'UTC';
         CREATE TABLE impersonate.may PARTITION OF impersonate.audit
             FOR VALUES FROM ('2025-05-01') TO ('2025-06-01') PARTITION BY RANGE (event_time);
         CREATE TABLE impersonate.may_first PARTITION OF impersonate.may FOR VALUES FROM ('2025-05-01') TO ('2025-05-15');
         CREATE TABLE impersonate.may_second PARTITION OF impersonate.may FOR VALUES FROM ('2025-05-15') TO ('2025-06-01')",
    );
    // While the table is locked, events gather for one batch.
    let mut other = database.connect(OWNER);
    run(
        &mut other,
        "BEGIN; LOCK TABLE impersonate.audit IN ACCESS EXCLUSIVE MODE",
    );
    let mut expected = Vec::new();
    for (time, count, table) in [
        ("2025-01-15", 300, "audit_202501"),
        ("2025-05-15", 2, "may_second"),
        ("2025-05-14", 1, "may_first"),
        ("2025-01-31 23:59:59.999999", 1, "audit_202501"),
        ("2025-02-01", 129, "audit_202502"),
        ("2025-01-16", 128, "audit_202501"),
        ("2025-05-16", 1, "may_second"),
    ] {
        run(&mut client, &format!("SELECT public.event('{time}', {count})"));
        expected.push(format!("{count}|impersonate.{table}"));
    }
    run(&mut other, "COMMIT");
    assert_eq!(verify(&mut client), OK);
    assert_eq!(
        text(
            &mut client,
            "SELECT count(*), part FROM (
                 SELECT tableoid::regclass AS part, event_time, event_id,
                        event_id - row_number() OVER (PARTITION BY event_time ORDER BY event_id) AS run
                   FROM impersonate.audit) r
              GROUP BY part, event_time, run ORDER BY min(event_id)"
        ),
        expected.join("\n")
    );
    assert_eq!(
        text(&mut client, "SELECT count(*), max(event_id) FROM impersonate.audit"),
        "562|562"
    );
    // With a partition for all the rest no other is made.
    run(
        &mut client,
        "CREATE TABLE impersonate.rest PARTITION OF impersonate.audit DEFAULT",
    );
    event(&mut client, "2025-03-01", 3);
    event(&mut client, "2025-02-02", 1);
    assert_eq!(
        text(
            &mut client,
            "SELECT tableoid::regclass FROM impersonate.audit WHERE event_id > 562 ORDER BY event_id"
        ),
        "impersonate.rest\nimpersonate.rest\nimpersonate.rest\nimpersonate.audit_202502"
    );
    assert_eq!(verify(&mut client), OK);
}

#[test]
fn l3_what_an_administrator_adds_to_the_table_takes_effect_on_every_row() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    let count = |client: &mut Client, query: &str| text(client, &format!("SELECT count(*) FROM {query}"));
    event(&mut client, "2025-01-15", 5);
    // Indexes: of an expression, of some rows, and one that is unique only in the end.
    run(
        &mut client,
        "CREATE INDEX half ON impersonate.audit ((event_id % 2));
         CREATE INDEX later ON impersonate.audit (pid) WHERE event_id > 7;
         ALTER TABLE impersonate.audit ADD UNIQUE (event_time, event_id) DEFERRABLE INITIALLY DEFERRED",
    );
    event(&mut client, "2025-01-16", 5);
    run(
        &mut client,
        "ALTER TABLE impersonate.audit DROP CONSTRAINT audit_event_time_event_id_key",
    );
    event(&mut client, "2025-01-16", 5);
    run(&mut client, "SET enable_seqscan = off; SET enable_bitmapscan = off");
    for (query, index, rows) in [
        ("impersonate.audit WHERE event_id % 2 = 0", "expr", "7"),
        ("impersonate.audit WHERE event_id > 7 AND pid > 0", "pid", "8"),
        ("impersonate.audit WHERE event_id > 0", "pkey", "15"),
    ] {
        let plan = text(
            &mut client,
            &format!("EXPLAIN (COSTS off) SELECT count(*) FROM {query}"),
        );
        assert!(plan.contains(index), "{plan}");
        assert_eq!(count(&mut client, query), rows, "{query}");
    }
    // A trigger that fires always, which the writer's own role of a replica does not keep from firing; others do not.
    run(
        &mut client,
        "CREATE TABLE public.copy (id bigint, trigger name);
         CREATE FUNCTION public.copy() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.copy VALUES (NEW.event_id, tg_name); RETURN NULL; END';
         CREATE TRIGGER usual AFTER INSERT ON impersonate.audit FOR EACH ROW EXECUTE FUNCTION public.copy();
         CREATE TRIGGER always AFTER INSERT ON impersonate.audit FOR EACH ROW EXECUTE FUNCTION public.copy()",
    );
    event(&mut client, "2025-01-17", 5);
    assert_eq!(count(&mut client, "public.copy"), "0");
    run(
        &mut client,
        "ALTER TABLE impersonate.audit ENABLE ALWAYS TRIGGER always",
    );
    event(&mut client, "2025-01-18", 5);
    assert_eq!(
        text(
            &mut client,
            "SELECT min(id), max(id), count(*), min(trigger), max(trigger) FROM public.copy"
        ),
        "21|25|5|always|always"
    );
    run(&mut client, "DROP TRIGGER always ON impersonate.audit");
    // What refuses a row is told, and the row kept until it doesn't.
    by_force(&mut client, "DELETE FROM impersonate.audit");
    for (refuse, allow, culprit) in [
        (
            "ALTER COLUMN reason SET NOT NULL",
            "ALTER COLUMN reason DROP NOT NULL",
            "column \"reason\"",
        ),
        (
            "ADD CONSTRAINT early CHECK (event_id < 0) NOT VALID",
            "DROP CONSTRAINT early",
            "constraint \"early\"",
        ),
    ] {
        run(&mut client, &format!("ALTER TABLE impersonate.audit {refuse}"));
        run(&mut client, "SELECT public.event('2025-01-19', 2)");
        wait_until("the writer says what is in the way", || {
            text(&mut client, "SELECT last_error FROM impersonate.audit_status").contains(culprit)
        });
        run(&mut client, &format!("ALTER TABLE impersonate.audit {allow}"));
        run(&mut client, "SELECT impersonate.audit_sync()");
    }
    assert_eq!(
        count(&mut client, "impersonate.audit WHERE event_time::date = '2025-01-19'"),
        "4"
    );
}

#[test]
fn l8_a_partition_is_protected_as_the_whole() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let (bob, eve) = (unique("bob"), unique("eve"));
    let mut client = auditor(&database);
    run(
        &mut client,
        &format!("CREATE ROLE {bob} LOGIN; CREATE ROLE {eve} LOGIN"),
    );
    event(&mut client, "2025-01-15", 3);
    for statement in [
        "UPDATE impersonate.audit_202501 SET event = 'x'",
        "DELETE FROM impersonate.audit_202501",
        "INSERT INTO impersonate.audit_202501 SELECT * FROM impersonate.audit",
        "TRUNCATE impersonate.audit_202501",
        "TRUNCATE impersonate.audit",
        "DELETE FROM impersonate.audit_state",
        "UPDATE impersonate.audit_state SET event_id = 1",
        "TRUNCATE impersonate.audit_purged",
        "INSERT INTO impersonate.audit_purged VALUES (1, '', 1, now())",
    ] {
        fails_with("42501", client.batch_execute(statement));
    }
    fails_with("2BP01", client.batch_execute("DROP TABLE impersonate.audit_202501"));
    let mut other = database.connect(&eve);
    for table in ["audit", "audit_202501", "audit_state", "audit_purged"] {
        fails_with(
            "42501",
            other.batch_execute(&format!("SELECT * FROM impersonate.{table}")),
        );
    }
    for call in ["audit_verify()", "audit_head()", "audit_purge(now())"] {
        fails_with(
            "42501",
            other.batch_execute(&format!("SELECT * FROM impersonate.{call}")),
        );
    }
    // Granted on the whole, the parts can be read through it; the functions need no more than their own privilege.
    run(
        &mut client,
        &format!(
            "GRANT SELECT ON impersonate.audit TO {eve};
             GRANT EXECUTE ON FUNCTION impersonate.audit_verify, impersonate.audit_head TO {eve}"
        ),
    );
    assert_eq!(text(&mut other, "SELECT count(*) FROM impersonate.audit"), "3");
    assert_eq!(text(&mut other, "SELECT ok FROM impersonate.audit_verify()"), "t");
    assert_eq!(text(&mut other, "SELECT event_id FROM impersonate.audit_head()"), "3");
    // X4: not even a superuser, while impersonating one.
    run(
        &mut client,
        &format!("ALTER ROLE {bob} SUPERUSER; SELECT setuser('{bob}')"),
    );
    for statement in [
        "ALTER TABLE impersonate.audit_202501 DISABLE TRIGGER ALL",
        "ALTER TABLE impersonate.audit DETACH PARTITION impersonate.audit_202501",
        "CREATE TABLE public.mine PARTITION OF impersonate.audit FOR VALUES FROM ('2000-01-01') TO ('2000-02-01')",
        "SELECT impersonate.audit_purge(now())",
        "DELETE FROM impersonate.audit_202501",
        "ALTER SYSTEM SET impersonate.audit_destination = 'log'",
    ] {
        fails_with("42501", client.batch_execute(statement));
    }
}

// ------------------------------------------------------------------------------------------------------- verification ---

/// Twenty rows in three months, one of them with everything in it.
fn twenty(database: &Database) -> Client {
    let bob = unique("bob");
    let mut client = auditor(database);
    run(&mut client, &format!("CREATE ROLE {bob} LOGIN"));
    event(&mut client, "2025-01-15", 5);
    event(&mut client, "2025-02-15", 5);
    run(&mut client, &format!("SELECT setuser('{bob}', reason => 'INC-1')"));
    client.query("SELECT $1::text, $2::int", &[&"a", &1_i32]).unwrap();
    fails_with("22012", client.batch_execute("SELECT 1 / 0"));
    run(&mut client, "SELECT setuser()");
    run(&mut client, "SELECT impersonate.audit_sync()");
    event(&mut client, "2025-03-15", 20);
    run(&mut client, "SELECT impersonate.audit_sync()");
    client
}

#[test]
fn l8_changing_any_column_of_any_row_is_found() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    assert_eq!(verify(&mut client), OK);
    let columns = text(
        &mut client,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'impersonate.audit'::regclass AND attnum > 0",
    );
    assert_eq!(columns.lines().count(), 24);
    for id in [1, 10, 11, 12, 13, 14, 34] {
        for column in columns.lines() {
            let value = match column {
                "event_id" => "event_id + 1000000",
                "event_time" => "event_time + interval '1 microsecond'",
                "impersonation_id" => "CASE WHEN impersonation_id IS NULL THEN gen_random_uuid() END",
                "pid" => "pid + 1",
                "client_addr" => "CASE WHEN client_addr IS NULL THEN inet '::1' END",
                "parameters" | "relations" => &format!("coalesce('[2:3]={{a,b}}'::text[] || {column}, '{{}}')"),
                "row_count" | "grant_id" => &format!("coalesce({column} + 1, 0)"),
                "duration" => "coalesce(duration, '0') + interval '1 day -24 hours'",
                "detail" => "coalesce(detail, '{}') || '{\"x\": null}'",
                "hash" => "set_byte(hash, 31, get_byte(hash, 31) # 1)",
                _ => &format!("coalesce({column} || ' ', '')"),
            };
            run(&mut client, "BEGIN");
            by_force(
                &mut client,
                &format!("UPDATE impersonate.audit SET {column} = {value} WHERE event_id = {id}"),
            );
            let found = text(
                &mut client,
                "SELECT ok, first_bad, damage, detail FROM impersonate.audit_verify()",
            );
            assert!(
                found.starts_with(&format!("f|{id}|altered|row {id} was altered")),
                "{column} of {id}: {found}"
            );
            run(&mut client, "ROLLBACK");
        }
    }
    assert_eq!(verify(&mut client), OK);
}

#[test]
fn l8_removing_swapping_and_putting_in_is_found_and_named() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    let put_in = |id: i64| {
        format!(
            "INSERT INTO impersonate.audit SELECT {id}, event_time, event, user_name, session_user_name, role_name,
                 impersonation_id, database, node, pid, session_id, application_name, client_addr, command_tag, 'forged',
                 parameters, relations, row_count, duration, sqlstate, grant_id, reason, detail, hash
               FROM impersonate.audit WHERE event_id = 9"
        )
    };
    let (put_in_12, put_in_35) = (put_in(12), put_in(35));
    for (damage, found) in [
        (
            "DELETE FROM impersonate.audit WHERE event_id = 1",
            "f|1|removed|row 1 was removed",
        ),
        (
            "DELETE FROM impersonate.audit WHERE event_id BETWEEN 5 AND 7",
            "f|5|removed|rows 5 to 7 were removed",
        ),
        (
            "DELETE FROM impersonate.audit WHERE event_id = 34",
            "f|34|removed|row 34 was removed",
        ),
        (
            "DELETE FROM impersonate.audit WHERE event_id > 30",
            "f|31|removed|rows 31 to 34 were removed",
        ),
        ("DELETE FROM impersonate.audit", "f|1|removed|rows 1 to 34 were removed"),
        (
            "TRUNCATE impersonate.audit_202501",
            "f|1|removed|rows 1 to 5 were removed",
        ),
        (
            "ALTER TABLE impersonate.audit DETACH PARTITION impersonate.audit_202502",
            "f|6|removed|rows 6 to 10 were removed",
        ),
        (
            "UPDATE impersonate.audit SET event_id = CASE event_id WHEN 4 THEN 12 ELSE 4 END WHERE event_id IN (4, 12)",
            "f|4|swapped|rows 4 and 12 were swapped",
        ),
        (
            "UPDATE impersonate.audit SET event_id = 0 WHERE event_id = 33;
             UPDATE impersonate.audit SET event_id = 33 WHERE event_id = 34;
             UPDATE impersonate.audit SET event_id = 34 WHERE event_id = 0",
            "f|33|swapped|rows 33 and 34 were swapped",
        ),
        (
            put_in_12.as_str(),
            "f|12|put in|row 12 was put in: there is another of this number",
        ),
        (
            "UPDATE impersonate.audit SET event_id = event_id + 1000 WHERE event_id >= 12;
             UPDATE impersonate.audit SET event_id = event_id - 999 WHERE event_id > 1000",
            "f|12|altered|row 12 was altered: its event_id is 13 now",
        ),
        (
            put_in_35.as_str(),
            "f|35|put in|row 35 was put in: the writer stored none behind row 34",
        ),
        (
            "DELETE FROM impersonate.audit WHERE event_id <= 3;
             INSERT INTO impersonate.audit_purged (last, hash, rows, before)
                 SELECT 3, hash, 3, now() FROM impersonate.audit WHERE event_id = 3",
            "f|1|removed|rows 1 to 3 were removed",
        ),
        (
            "DELETE FROM impersonate.audit_state",
            "f|35|removed|impersonate.audit_state was emptied: rows behind the last may have been removed",
        ),
        (
            "UPDATE impersonate.audit_state SET event_id = 40, stored_id = 40",
            "f|35|removed|rows 35 to 40 were removed",
        ),
        (
            "UPDATE impersonate.audit_state SET event_id = 40",
            "f|35|removed|rows 35 to 40 were removed",
        ),
    ] {
        run(&mut client, "BEGIN");
        by_force(&mut client, damage);
        let result = text(
            &mut client,
            "SELECT ok, first_bad, damage, detail FROM impersonate.audit_verify()",
        );
        assert_eq!(result, found, "{damage}");
        run(&mut client, "ROLLBACK");
    }
    assert_eq!(verify(&mut client), OK);
}

#[test]
fn l8_a_stretch_can_be_verified_and_a_head_from_elsewhere_counts() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    let head = text(
        &mut client,
        "SELECT event_id, quote_literal(hash) FROM impersonate.audit_head()",
    );
    let (id, hash) = head.split_once('|').unwrap();
    assert_eq!(id, "34");
    event(&mut client, "2025-04-15", 6);
    for arguments in [
        "1, 40".to_owned(),
        "5, 9".to_owned(),
        "40, 40".to_owned(),
        "NULL, 7".to_owned(),
        "38, NULL".to_owned(),
        format!("head => {hash}"),
        format!("NULL, {id}, {hash}"),
        format!("20, {id}, {hash}"),
    ] {
        assert_eq!(verify_with(&mut client, &arguments), OK, "{arguments}");
    }
    assert_eq!(
        verify_with(&mut client, &format!("NULL, 33, {hash}")),
        "f|33|head does not match|row 33 does not have this hash"
    );
    assert_eq!(
        verify_with(&mut client, "NULL, 45"),
        "f|41|removed|rows 41 to 45 were removed"
    );
    fails_with(
        "22023",
        client.batch_execute("SELECT impersonate.audit_verify(head => '\\x00')"),
    );
    // Damage outside the stretch is not looked at.
    run(&mut client, "BEGIN");
    by_force(&mut client, "UPDATE impersonate.audit SET pid = 0 WHERE event_id = 7");
    for (arguments, result) in [("1, 6", OK), ("8, 40", OK), ("9, NULL", OK)] {
        let found = text(
            &mut client,
            &format!("SELECT ok, first_bad, damage, detail FROM impersonate.audit_verify({arguments})"),
        );
        assert_eq!(found, result, "{arguments}");
    }
    run(&mut client, "ROLLBACK");
    // The newest rows removed, and that covered up: only the head tells.
    by_force(
        &mut client,
        "DELETE FROM impersonate.audit WHERE event_id > 33;
         UPDATE impersonate.audit_state SET (event_id, stored_id, hash) =
             (SELECT event_id, event_id, hash FROM impersonate.audit WHERE event_id = 33)",
    );
    assert_eq!(verify(&mut client), OK);
    assert_eq!(
        verify_with(&mut client, &format!("head => {hash}")),
        "f|-|head does not match|no row has this hash"
    );
    // But as the writer runs, it goes on where it was.
    event(&mut client, "2025-05-15", 1);
    assert_eq!(verify(&mut client), "f|34|removed|rows 34 to 40 were removed");
}

#[test]
fn l8_the_newest_row_is_missed_when_it_was_removed_behind_the_writers_back() {
    let mut cluster = Cluster::start_new();
    let name = cluster.database("d").name;
    {
        let mut client = auditor(&Database {
            cluster: &cluster,
            name: name.clone(),
        });
        event(&mut client, "2025-01-15", 10);
        by_force(&mut client, "DELETE FROM impersonate.audit WHERE event_id = 10");
        assert_eq!(verify(&mut client), "f|10|removed|row 10 was removed");
    }
    // No memory of it is left, but the state.
    cluster.restart();
    let mut client = cluster.connect(OWNER, &name);
    event(&mut client, "2025-01-15", 1);
    assert_eq!(verify(&mut client), "f|10|removed|row 10 was removed");
    assert_eq!(text(&mut client, "SELECT max(event_id) FROM impersonate.audit"), "11");
    // A state that was set back does not make numbers come twice.
    by_force(
        &mut client,
        "UPDATE impersonate.audit_state SET event_id = 3, stored_id = 3",
    );
    event(&mut client, "2025-01-15", 1);
    by_force(&mut client, "DELETE FROM impersonate.audit_state");
    run(&mut client, "VACUUM impersonate.audit_state");
    event(&mut client, "2025-01-15", 1);
    run(&mut client, "VACUUM FULL impersonate.audit_state");
    event(&mut client, "2025-01-15", 1);
    assert_eq!(text(&mut client, "SELECT max(event_id) FROM impersonate.audit"), "14");
    assert_eq!(
        text(&mut client, "SELECT event_id, stored_id FROM impersonate.audit_state"),
        "14|14"
    );
}

// --------------------------------------------------------------------------------------------------------------- purge ---

#[test]
fn l9_a_purge_takes_the_oldest_rows_leaves_the_chain_verifiable_and_is_on_record() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    run(&mut client, "SET timezone = 'UTC'");
    let head = text(&mut client, "SELECT quote_literal(hash) FROM impersonate.audit_head()");
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('2024-01-01')"), "0");
    // Not a whole partition.
    assert_eq!(
        text(&mut client, "SELECT impersonate.audit_purge('2025-02-01 00:00:00')"),
        "5"
    );
    assert_eq!(verify_with(&mut client, &format!("head => {head}")), OK);
    assert_eq!(text(&mut client, "SELECT min(event_id) FROM impersonate.audit"), "6");
    assert_eq!(
        text(
            &mut client,
            "SELECT event_id, session_user_name, statement, detail - 'hash', length(detail->>'hash')
               FROM impersonate.audit WHERE event = 'PURGE'"
        ),
        "35|postgres|SELECT impersonate.audit_purge('2025-02-01 00:00:00')|\
         {\"last\": 5, \"rows\": 5, \"first\": 1, \"before\": \"2025-02-01T00:00:00.000000Z\"}|64"
    );
    assert_eq!(
        text(
            &mut client,
            "SELECT last, rows, before, by FROM impersonate.audit_purged"
        ),
        "5|5|2025-02-01 00:00:00+00|postgres"
    );
    // The partition goes as soon as nobody reads it.
    wait_until("the empty partition is gone", || {
        !partitions(&mut client).contains("audit_202501 ")
    });
    assert_eq!(verify(&mut client), OK);
    // By number: a row of March is before one of this year's, and so stays behind that.
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('2025-04-01')"), "5");
    assert_eq!(verify(&mut client), OK);
    assert_eq!(text(&mut client, "SELECT min(event_id) FROM impersonate.audit"), "11");
    // Row by row.
    assert_eq!(
        text(
            &mut client,
            "SELECT impersonate.audit_purge((SELECT event_time FROM impersonate.audit WHERE event_id = 13))"
        ),
        "2"
    );
    assert_eq!(verify(&mut client), OK);
    // One that is undone leaves its row, and everything else.
    run(&mut client, "BEGIN");
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('infinity')"), "25");
    assert_eq!(
        text(&mut client, "SELECT ok FROM impersonate.audit_verify()"),
        "t",
        "inside its transaction"
    );
    run(&mut client, "ROLLBACK");
    assert_eq!(verify(&mut client), OK);
    assert_eq!(
        text(
            &mut client,
            "SELECT min(event_id), max(event_id) FROM impersonate.audit"
        ),
        "13|38"
    );
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('infinity')"), "26");
    assert_eq!(verify(&mut client), OK);
    assert_eq!(
        text(&mut client, "SELECT event_id, event FROM impersonate.audit"),
        "39|PURGE"
    );
    // A row from before can't come back.
    by_force(
        &mut client,
        "INSERT INTO impersonate.audit SELECT 38, event_time, event, user_name, session_user_name, role_name,
             impersonation_id, database, node, pid, session_id, application_name, client_addr, command_tag, 'forged',
             parameters, relations, row_count, duration, sqlstate, grant_id, reason, detail, hash FROM impersonate.audit",
    );
    assert!(verify(&mut client).starts_with("f|38|put in|row 38 was put in"));
    for statement in [
        "SELECT impersonate.audit_purge(NULL)",
        "BEGIN READ ONLY; SELECT impersonate.audit_purge(now())",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT impersonate.audit_purge(now())",
    ] {
        assert!(client.batch_execute(statement).is_err(), "{statement}");
        run(&mut client, "ROLLBACK");
    }
}

#[test]
fn l9_a_purge_gets_along_with_writers_readers_and_another_purge() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    for month in 1..=6 {
        event(&mut client, &format!("2025-{month:02}-15"), 500);
    }
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = database.connect(OWNER);
                    for _ in 0..200 {
                        run(&mut client, "SELECT public.event(now(), 10)");
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = database.connect(OWNER);
                    for _ in 0..20 {
                        let found = text(
                            &mut client,
                            "SELECT ok, first_bad, damage, detail FROM impersonate.audit_verify()",
                        );
                        assert_eq!(found, OK);
                    }
                })
            })
            .collect();
        let purgers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = database.connect(OWNER);
                    for month in 2..=7 {
                        text(
                            &mut client,
                            &format!("SELECT impersonate.audit_purge('2025-{month:02}-01')"),
                        );
                    }
                    text(&mut client, "SELECT impersonate.audit_purge('infinity')");
                })
            })
            .collect();
        [writers, readers, purgers]
            .into_iter()
            .flatten()
            .for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(verify(&mut client), OK);
}

#[test]
fn l9_a_reader_makes_a_purge_fail_rather_than_the_writer_wait() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    event(&mut client, "2025-01-15", 5);
    event(&mut client, "2025-02-15", 5);
    let mut reader = database.connect(OWNER);
    run(&mut reader, "BEGIN; SELECT count(*) FROM impersonate.audit");
    run(&mut client, "SET lock_timeout = '300ms'");
    fails_with(
        "55P03",
        client.batch_execute("SELECT impersonate.audit_purge('2025-02-01')"),
    );
    // Neither that nor a reader of an emptied partition stands in the writer's way.
    event(&mut client, "2025-03-15", 5);
    run(&mut reader, "COMMIT");
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('2025-02-01')"), "5");
    run(&mut reader, "BEGIN; SELECT count(*) FROM impersonate.audit");
    std::thread::sleep(std::time::Duration::from_secs(4));
    event(&mut client, "2025-04-15", 5);
    assert!(partitions(&mut client).contains("audit_202501 "));
    run(&mut reader, "COMMIT");
    assert_eq!(verify(&mut client), OK);
}

// --------------------------------------------------------------------------------------------------------- destination ---

/// The lines of JSON in the server log.
fn lines(cluster: &Cluster) -> Vec<String> {
    cluster
        .log()
        .lines()
        .filter_map(|line| Some(line.split_once("LOG:  impersonate: ")?.1.to_owned()))
        .collect()
}

#[test]
fn the_log_has_the_same_fields_and_the_same_hash_as_the_table() {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_destination", "both")
        .setting("listen_addresses", "127.0.0.1")
        .tcp()
        .start();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    run(
        &mut client,
        "SET application_name = 'a\"b\\c é 😀';
         SET impersonate.audit_statements = 'all'; SELECT E'\\n\\t é'; SELECT impersonate.audit_sync()",
    );
    run(&mut client, "SET impersonate.audit_statements = 'none'");
    assert_eq!(verify(&mut client), OK);
    run(&mut client, "CREATE TEMP TABLE line (line jsonb)");
    let lines = lines(&cluster);
    assert!(lines.iter().all(|line| line.is_ascii()));
    for line in &lines {
        client
            .execute("INSERT INTO line VALUES ($1::text::jsonb)", &[line])
            .unwrap_or_else(|error| panic!("{line}: {error:?}"));
    }
    assert_eq!(
        text(
            &mut client,
            "SELECT count(*) = (SELECT count(*) FROM impersonate.audit) FROM line"
        ),
        "t"
    );
    // Column by column.
    assert_eq!(
        text(
            &mut client,
            "SELECT a.event_id, c.key, c.value, l.line->c.key
               FROM impersonate.audit a
                    JOIN line l ON (l.line->>'event_id')::bigint = a.event_id,
                    LATERAL jsonb_each(jsonb_strip_nulls(to_jsonb(a))) c
              WHERE CASE c.key WHEN 'hash' THEN '\\x' || (l.line->>'hash') IS DISTINCT FROM a.hash::text
                               WHEN 'event_time' THEN (l.line->>'event_time')::timestamptz IS DISTINCT FROM a.event_time
                               WHEN 'duration' THEN make_interval(secs => (l.line->>'duration')::float)
                                                    IS DISTINCT FROM a.duration
                               WHEN 'detail' THEN l.line->'detail' IS DISTINCT FROM a.detail
                               ELSE l.line->c.key IS DISTINCT FROM c.value END
                 OR (SELECT count(*) FROM jsonb_object_keys(l.line))
                    <> (SELECT count(*) FROM jsonb_object_keys(jsonb_strip_nulls(to_jsonb(a))))"
        ),
        ""
    );
}

#[test]
fn numbers_and_hashes_go_on_from_table_to_log_and_back() {
    let mut cluster = Cluster::start_new();
    let name = cluster.database("d").name;
    let mut client = auditor(&Database {
        cluster: &cluster,
        name: name.clone(),
    });
    let go_to = |cluster: &Cluster, destination: &str| {
        cluster.set("impersonate.audit_destination", destination);
        cluster.reload();
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    event(&mut client, "2025-01-15", 3);
    go_to(&cluster, "log");
    event(&mut client, "2025-01-15", 3);
    // Row 4 says that the rest is elsewhere.
    let rows = "SELECT string_agg(event_id || ' ' || event || coalesce(' ' || (detail - 'hash')::text, ''), ', '
                    ORDER BY event_id) FROM impersonate.audit WHERE event_id > 3";
    assert_eq!(text(&mut client, rows), "4 DESTINATION {\"destination\": \"log\"}");
    assert_eq!(
        text(&mut client, "SELECT event_id, stored_id FROM impersonate.audit_state"),
        "7|4"
    );
    assert_eq!(verify(&mut client), OK);
    assert_eq!(lines(&cluster).len(), 4);
    // That the end is there is bound to it.
    run(&mut client, "BEGIN");
    by_force(
        &mut client,
        "DELETE FROM impersonate.audit WHERE event_id = 4; UPDATE impersonate.audit_state SET stored_id = 3",
    );
    assert_eq!(
        text(&mut client, "SELECT first_bad, damage FROM impersonate.audit_verify()"),
        "4|removed"
    );
    run(&mut client, "ROLLBACK");
    drop(client);
    cluster.restart();
    let mut client = cluster.connect(OWNER, &name);
    event(&mut client, "2025-01-15", 2);
    go_to(&cluster, "both");
    event(&mut client, "2025-01-15", 2);
    assert_eq!(
        text(&mut client, rows),
        "4 DESTINATION {\"destination\": \"log\"}, \
         10 DESTINATION {\"last\": 9, \"first\": 5, \"destination\": \"both\"}, 11 STATEMENT, 12 STATEMENT"
    );
    assert_eq!(verify(&mut client), OK);
    go_to(&cluster, "table");
    event(&mut client, "2025-01-15", 2);
    assert_eq!(verify(&mut client), OK);
    // The chain is whole over both.
    let from_log: Vec<i64> = lines(&cluster)
        .iter()
        .map(|line| {
            let number = line.split_once("\"event_id\": ").unwrap().1;
            number.split_once(',').unwrap().0.parse().unwrap()
        })
        .collect();
    assert_eq!(from_log, (4..=12).collect::<Vec<_>>());
    // Nothing else may be missing, whatever says that it was logged.
    run(&mut client, "BEGIN");
    by_force(&mut client, "DELETE FROM impersonate.audit WHERE event_id = 3");
    assert_eq!(
        text(
            &mut client,
            "SELECT first_bad, damage, detail FROM impersonate.audit_verify()"
        ),
        "3|removed|row 3 was removed"
    );
    run(&mut client, "ROLLBACK");
    // Purging across the stretch.
    assert_eq!(text(&mut client, "SELECT impersonate.audit_purge('infinity')"), "14");
    assert_eq!(verify(&mut client), OK);
}

// -------------------------------------------------------------------------------------------------- status and views ---

#[test]
fn the_status_tells_what_waits_and_what_failed() {
    let cluster = Cluster::builder()
        .setting("impersonate.audit_queue_size", "1MB")
        .start();
    let database = cluster.database("d");
    let monitor = unique("monitor");
    let mut client = auditor(&database);
    run(
        &mut client,
        &format!("CREATE ROLE {monitor} LOGIN; GRANT pg_monitor TO {monitor}; CREATE ROLE {monitor}_not LOGIN"),
    );
    event(&mut client, "2025-01-15", 10);
    let mut monitor_client = database.connect(&monitor);
    let status = |client: &mut Client, columns: &str| {
        text(
            client,
            &format!("SELECT {columns} FROM impersonate.audit_status WHERE database = current_database()"),
        )
    };
    assert_eq!(
        status(
            &mut monitor_client,
            "queued_events, queued_bytes, stored_events, waiting_backends, writer, lag, failures, last_error,
             queue_bytes, highest_bytes BETWEEN 1000 AND 10000, highest_fill BETWEEN 0.001 AND 0.01,
             writer_pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'impersonate audit writer')"
        ),
        "0|0|10|0|running|-|0|-|1048576|t|t|t"
    );
    let mut locker = database.connect(OWNER);
    run(&mut locker, "BEGIN; LOCK TABLE impersonate.audit");
    run(&mut client, "SELECT public.event(now() - interval '1 hour', 5)");
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let mut client = database.connect(OWNER);
            std::thread::spawn(move || run(&mut client, "SELECT impersonate.audit_sync()"))
        })
        .collect();
    wait_until("three wait", || {
        status(
            &mut monitor_client,
            "queued_events, waiting_backends, lag >= '1 hour' AND lag < '61 min', queued_bytes > 0",
        ) == "5|3|t|t"
    });
    // One that is ended in the middle of it waits no more.
    let mut ended = database.connect(OWNER);
    let pid = text(&mut ended, "SELECT pg_backend_pid()");
    let ended = std::thread::spawn(move || ended.batch_execute("SELECT impersonate.audit_sync()").is_err());
    wait_until("four wait", || status(&mut monitor_client, "waiting_backends") == "4");
    run(&mut locker, &format!("SELECT pg_terminate_backend({pid})"));
    assert!(ended.join().unwrap());
    wait_until("three wait", || status(&mut monitor_client, "waiting_backends") == "3");
    run(&mut locker, "ROLLBACK");
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
    wait_until("nobody waits", || {
        status(
            &mut monitor_client,
            "queued_events, waiting_backends, stored_events, lag",
        ) == "0|0|15|-"
    });
    // A failure, and its end.
    run(
        &mut client,
        "ALTER TABLE impersonate.audit ADD CONSTRAINT no CHECK (pid = 0) NOT VALID",
    );
    run(&mut client, "SELECT public.event(now(), 1)");
    wait_until("it failed", || {
        status(
            &mut monitor_client,
            "failures > 0, last_error_sqlstate, last_error_at > now() - interval '1 min',
             last_error LIKE '%violates check constraint%', queued_events",
        ) == "t|23514|t|t|1"
    });
    assert_eq!(
        text(
            &mut monitor_client,
            "SELECT queued_events, stored_events_total, writer_up, lag_seconds > 0, writer_failures > 0,
                    last_error_timestamp_seconds > 1e9, queue_size_bytes
               FROM impersonate.audit_metrics WHERE datname = current_database()"
        ),
        "1|15|1|t|t|t|1048576"
    );
    run(&mut client, "ALTER TABLE impersonate.audit DROP CONSTRAINT no");
    run(&mut client, "SELECT impersonate.audit_sync()");
    // Who waits is told before the failures are forgotten.
    wait_until("it works again", || {
        status(&mut monitor_client, "failures, queued_events, stored_events") == "0|0|16"
    });
    // Nobody else is told; and it tells of databases, not of what is in the audit.
    let mut other = database.connect(&format!("{monitor}_not"));
    for view in ["audit_status", "audit_metrics"] {
        fails_with(
            "42501",
            other.batch_execute(&format!("SELECT * FROM impersonate.{view}")),
        );
    }
    fails_with("42501", monitor_client.batch_execute("SELECT * FROM impersonate.audit"));
}

#[test]
fn views_answer_what_auditors_ask() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let (anna, bob, carol, auditor_role) = (unique("anna"), unique("bob"), unique("carol"), unique("auditor"));
    let mut admin = auditor(&database);
    run(
        &mut admin,
        &format!(
            "CREATE ROLE {anna} LOGIN; CREATE ROLE {bob} LOGIN; CREATE ROLE {carol} LOGIN; CREATE ROLE {auditor_role} LOGIN;
             CREATE TABLE emp (i int); GRANT ALL ON emp TO {anna}, {bob};
             GRANT \"SET USER\" ({bob}) TO {anna};
             GRANT SELECT ON impersonate.audit_impersonations, impersonate.audit_denied, impersonate.audit_tables
                 TO {auditor_role}"
        ),
    );
    let mut client = database.connect(&anna);
    run(&mut client, &format!("SELECT setuser('{bob}', reason => 'INC-7')"));
    run(&mut client, "INSERT INTO emp VALUES (1)");
    fails_with("22012", client.batch_execute("SELECT 1 / 0"));
    run(&mut client, "SELECT setuser()");
    for _ in 0..3 {
        fails_with("42501", client.batch_execute(&format!("SELECT setuser('{carol}')")));
    }
    run(&mut client, &format!("SELECT setuser('{bob}')"));
    run(&mut client, "SELECT 1");
    run(&mut admin, "SELECT impersonate.audit_sync()");
    let mut auditor = database.connect(&auditor_role);
    assert_eq!(
        text(
            &mut auditor,
            "SELECT impersonator, target, began <= ended, how_it_ended, reason, statements, failures, denied,
                    database = current_database(), grant_id IS NOT NULL
               FROM impersonate.audit_impersonations ORDER BY first_event"
        ),
        format!("{anna}|{bob}|t|asked|INC-7|2|1|0|t|t\n{anna}|{bob}|-|-|-|1|0|0|t|t")
    );
    assert_eq!(
        text(
            &mut auditor,
            "SELECT person, target, attempts, first_attempt < last_attempt, last_sqlstate, last_message
               FROM impersonate.audit_denied"
        ),
        format!("{anna}|{carol}|3|t|42501|role \"{anna}\" may not act as role \"{carol}\"")
    );
    fails_with("42501", auditor.batch_execute("SELECT * FROM impersonate.audit"));
    for view in ["audit_impersonations", "audit_denied", "audit_tables"] {
        fails_with(
            "42501",
            client.batch_execute(&format!("SELECT * FROM impersonate.{view}")),
        );
    }
    // However names are written.
    by_force(
        &mut admin,
        "UPDATE impersonate.audit SET relations = ARRAY['public.emp (select, insert)', 'public.\"my (odd) table\" (lock)',
             'public.plain'] WHERE statement LIKE 'INSERT%'",
    );
    assert_eq!(
        text(
            &mut auditor,
            "SELECT relation, access, person, acted_as, command_tag, statement, row_count
               FROM impersonate.audit_tables WHERE relation LIKE 'public.%' ORDER BY relation COLLATE \"C\""
        ),
        [
            ("public.\"my (odd) table\"", "{lock}"),
            ("public.emp", "{select,insert}"),
            ("public.plain", "-"),
        ]
        .map(|(name, access)| format!("{name}|{access}|{anna}|{bob}|INSERT|INSERT INTO emp VALUES (1)|1"))
        .join("\n")
    );
    assert_eq!(
        text(
            &mut auditor,
            "SELECT tables::text FROM impersonate.audit_impersonations ORDER BY first_event LIMIT 1"
        ),
        "{\"public.\\\"my (odd) table\\\"\",public.emp,public.plain}"
    );
}

// ------------------------------------------------------------------------------------------------- dumps and upgrades ---

fn dump_and_restore(from: (&Cluster, &str), to: (&Cluster, &str)) {
    let dump = from.0.command("pg_dump", OWNER, from.1).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let restored = to.0.psql(OWNER, to.1, &String::from_utf8(dump.stdout).unwrap());
    assert!(restored.ok && restored.stderr.is_empty(), "{}", restored.stderr);
}

#[test]
fn l8_a_dump_takes_the_audit_along_and_what_is_restored_stays_apart_and_can_be_verified() {
    let (cluster, other) = (Cluster::start_new(), Cluster::start_new());
    let database = cluster.database("d");
    let mut client = twenty(&database);
    run(&mut client, "SELECT impersonate.audit_purge('2025-02-01')");
    let head = text(&mut client, "SELECT quote_literal(hash) FROM impersonate.audit_head()");
    assert_eq!(verify(&mut client), OK);
    run(&mut other.connect(OWNER, OWNER), "CREATE DATABASE d TEMPLATE template0");
    dump_and_restore((&cluster, &database.name), (&other, "d"));
    let mut there = other.connect(OWNER, "d");
    let origin = text(
        &mut there,
        "SELECT DISTINCT quote_literal(origin) FROM impersonate.audit_restored",
    );
    assert!(origin.ends_with(&format!("/{}'", database.name)), "{origin}");
    assert_eq!(
        text(
            &mut there,
            "SELECT count(*), min(event_id), max(event_id) FROM impersonate.audit_restored"
        ),
        "30|6|35"
    );
    assert_eq!(text(&mut there, "SELECT count(*) FROM impersonate.audit"), "0");
    let restored = format!("restored_from => {origin}");
    assert_eq!(verify_with(&mut there, &restored), OK);
    assert_eq!(verify_with(&mut there, &format!("{restored}, head => {head}")), OK);
    // It is as it was: the server's own audit has its own chain.
    event(&mut there, "2025-01-15", 2);
    assert_eq!(verify(&mut there), OK);
    assert_eq!(text(&mut there, "SELECT event_id FROM impersonate.audit_head()"), "2");
    fails_with("42501", there.batch_execute("DELETE FROM impersonate.audit_restored"));
    by_force(
        &mut there,
        "UPDATE impersonate.audit_restored SET pid = 0 WHERE event_id = 9",
    );
    assert!(verify_with(&mut there, &restored).starts_with("f|9|altered"));
    by_force(&mut there, "DELETE FROM impersonate.audit_restored WHERE event_id = 6");
    assert_eq!(
        verify_with(&mut there, &restored),
        "f|1|removed|rows 1 to 6 were removed"
    );
    // Both go on to the next server.
    run(&mut other.connect(OWNER, OWNER), "CREATE DATABASE e TEMPLATE template0");
    dump_and_restore((&other, "d"), (&other, "e"));
    let mut there = other.connect(OWNER, "e");
    assert_eq!(
        text(
            &mut there,
            "SELECT count(*) FROM impersonate.audit_restored GROUP BY origin ORDER BY 1"
        ),
        "2\n29"
    );
}

#[test]
fn l8_the_extension_and_the_database_go_with_rows_in_partitions_and_start_afresh() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = twenty(&database);
    for _ in 0..2 {
        run(&mut client, "DROP EXTENSION impersonate; CREATE EXTENSION impersonate");
        assert_eq!(
            text(
                &mut client,
                "SELECT count(*) FROM pg_class WHERE relname LIKE 'audit_20%'"
            ),
            "0"
        );
        event(&mut client, "2025-01-15", 2);
        assert_eq!(verify(&mut client), OK);
        assert_eq!(text(&mut client, "SELECT event_id FROM impersonate.audit_head()"), "2");
    }
    let name = &database.name;
    let mut other = cluster.connect(OWNER, OWNER);
    drop(client);
    wait_until("the session is gone", || {
        text(
            &mut other,
            &format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend'"
            ),
        ) == "0"
    });
    // A copy goes on where its template was.
    run(&mut other, &format!("CREATE DATABASE {name}_copy TEMPLATE {name}"));
    run(&mut other, &format!("DROP DATABASE {name}"));
    let mut copy = cluster.connect(OWNER, &format!("{name}_copy"));
    event(&mut copy, "2025-01-15", 2);
    assert_eq!(verify(&mut copy), OK);
    assert_eq!(text(&mut copy, "SELECT event_id FROM impersonate.audit_head()"), "4");
}

#[test]
fn l6_a_writer_that_the_extension_was_taken_from_serves_the_one_that_is_created_again() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let (bob, helpdesk) = (unique("bob"), unique("helpdesk"));
    let mut client = auditor(&database);
    run(
        &mut client,
        &format!("CREATE ROLE {bob}; CREATE ROLE {helpdesk}; SET statement_timeout = '20s'"),
    );
    let grant = format!("GRANT \"SET USER\" ({bob}) TO {helpdesk}");
    for _ in 0..5 {
        // Between the event and its partition there may be no extension any more.
        run(&mut client, &grant);
        run(&mut client, "DROP EXTENSION impersonate");
        fails_with("55000", client.batch_execute(&grant));
        run(&mut client, "CREATE EXTENSION impersonate");
        run(&mut client, &grant);
        assert_eq!(verify(&mut client), OK);
    }
    // Whatever the writer is about, the two never wait for each other: it would be a deadlock of the client's.
    for pause in 0..30 {
        run(&mut client, "DROP EXTENSION impersonate; CREATE EXTENSION impersonate");
        run(&mut client, "SELECT public.event('2025-01-15', 20)");
        std::thread::sleep(std::time::Duration::from_millis(pause * 5));
    }
    assert_eq!(
        text(
            &mut client,
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ),
        "0"
    );
}

/// Also when it remembers another one: it would hold one table of the new one and wait for the next, the other way round
/// than DROP EXTENSION.
#[test]
fn l6_a_writer_holds_the_extension_before_its_tables_also_when_that_is_another_one() {
    let cluster = Cluster::start_new();
    let database = cluster.database("d");
    let mut client = auditor(&database);
    for _ in 0..3 {
        event(&mut client, "2025-01-15", 1);
        run(&mut client, "DROP EXTENSION impersonate; CREATE EXTENSION impersonate");
        let mut locker = database.connect(OWNER);
        run(
            &mut locker,
            "BEGIN; LOCK TABLE impersonate.audit IN ACCESS EXCLUSIVE MODE",
        );
        run(&mut client, "SELECT public.event('2025-01-15', 1)");
        let holds = "SELECT bool_or(l.classid = 'pg_extension'::regclass AND e.oid IS NOT NULL AND l.granted)
                       FROM pg_locks l LEFT JOIN pg_extension e ON l.objid = e.oid AND e.extname = 'impersonate'
                      WHERE l.pid = (SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'impersonate.audit'::regclass)";
        wait_until("the writer waits for the table", || text(&mut client, holds) != "-");
        assert_eq!(text(&mut client, holds), "t");
        run(&mut locker, "ROLLBACK");
        assert_eq!(verify(&mut client), OK);
    }
}

/// As a script in one transaction does it. The writer sees no extension before the COMMIT.
#[test]
fn l2_a_right_that_is_granted_in_the_transaction_that_creates_the_extension_is_on_record() {
    let cluster = Cluster::start_new();
    let database = cluster.empty_database("d");
    let (bob, helpdesk) = (unique("bob"), unique("helpdesk"));
    let mut client = database.connect(OWNER);
    run(&mut client, &format!("CREATE ROLE {bob}; CREATE ROLE {helpdesk}"));
    let grant = format!("GRANT \"SET USER\" ({bob}) TO {helpdesk}");
    let logged = |cluster: &Cluster| {
        let log = cluster.log();
        log.matches("audit event not stored, extension impersonate does not exist in its database")
            .count()
    };
    for pause in [0.0, 0.05, 1.5] {
        let create = format!("CREATE EXTENSION impersonate; {grant}; SELECT pg_sleep({pause})");
        run(&mut client, &format!("BEGIN; {create}; COMMIT"));
        run(&mut client, "SELECT impersonate.audit_sync()");
        assert_eq!(
            text(&mut client, "SELECT string_agg(event, ',') FROM impersonate.audit"),
            "GRANT"
        );
        assert_eq!(verify(&mut client), OK);
        run(&mut client, "DROP EXTENSION impersonate");
        assert_eq!(logged(&cluster), 0, "{}", cluster.log());
    }
    // Whoever waits for it in that transaction would wait for itself.
    run(&mut client, &format!("BEGIN; CREATE EXTENSION impersonate; {grant}"));
    let begun = std::time::Instant::now();
    fails_with("55006", client.batch_execute("SELECT impersonate.audit_sync()"));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    run(&mut client, "ROLLBACK");
    wait_until("it is in the log", || logged(&cluster) == 1);
    // What is undone was no right, and waits for nothing.
    run(
        &mut client,
        &format!("BEGIN; CREATE EXTENSION impersonate; {grant}; SELECT pg_sleep(0.5); ROLLBACK"),
    );
    wait_until("it is in the log", || logged(&cluster) == 2);
    run(&mut client, "CREATE EXTENSION impersonate");
    run(&mut client, &grant);
    assert_eq!(verify(&mut client), OK);
    assert_eq!(text(&mut client, "SELECT count(*) FROM impersonate.audit"), "1");
}

#[test]
fn l8_pg_upgrade_takes_the_audit_and_its_partitions_along() {
    let mut old = Cluster::start_new();
    let name = old.database("d").name;
    {
        let mut client = twenty(&Database {
            cluster: &old,
            name: name.clone(),
        });
        run(&mut client, "SELECT impersonate.audit_purge('2025-02-01')");
        assert_eq!(verify(&mut client), OK);
    }
    old.stop();
    let mut new = Cluster::builder().create();
    new.pg_upgrade_from(&old).unwrap_or_else(|said| panic!("{said}"));
    new.start();
    let mut client = new.connect(OWNER, &name);
    assert_eq!(verify(&mut client), OK);
    event(&mut client, "2025-02-15", 2);
    event(&mut client, "2025-06-15", 2);
    assert_eq!(verify(&mut client), OK);
    assert_eq!(
        text(
            &mut client,
            "SELECT min(event_id), max(event_id) FROM impersonate.audit"
        ),
        "6|39"
    );
    fails_with("2BP01", client.batch_execute("DROP TABLE impersonate.audit_202502"));
    fails_with("42501", client.batch_execute("DELETE FROM impersonate.audit_202502"));
    run(&mut client, "DROP EXTENSION impersonate CASCADE");
}

/// Whoever makes tables readable for all by default doesn't mean the audit.
#[test]
fn l8_default_privileges_give_nobody_a_part_of_the_audit() {
    let cluster = Cluster::start_new();
    let database = cluster.empty_database("defaults");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE reader; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
             CREATE EXTENSION impersonate; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reader",
        )
        .unwrap();
    run(&mut admin, "GRANT \"SET USER\" TO reader");
    run(&mut admin, "SELECT impersonate.audit_sync()");
    let rows = admin
        .query(
            "SELECT c.relname FROM pg_class c WHERE relnamespace = 'impersonate'::regnamespace AND relname LIKE 'audit%'
                AND relkind IN ('r', 'p') AND has_table_privilege('reader', c.oid, 'SELECT, INSERT, UPDATE, DELETE')",
            &[],
        )
        .unwrap();
    let readable: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(readable, Vec::<String>::new());
    let partitions: i64 = admin
        .query_one(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'impersonate.audit'::regclass",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(partitions, 1);
}

/// Nor does whoever makes everything theirs mean the rights, or what is made of them.
#[test]
fn g7_default_privileges_give_nobody_a_part_of_the_extension() {
    let cluster = Cluster::start_new();
    let privileges = |database: &str, defaults: &str| -> Vec<String> {
        let database = cluster.empty_database(database);
        let mut admin = database.connect("postgres");
        admin.batch_execute(defaults).unwrap();
        admin.batch_execute("CREATE EXTENSION impersonate").unwrap();
        let rows = admin
            .query(
                "SELECT format('%s: %s may %s%s', m.name, COALESCE(NULLIF(a.grantee, 0)::regrole::text, 'everybody'),
                               a.privilege_type, CASE WHEN a.is_grantable THEN ' and grant it' END)
                   FROM (SELECT oid::regclass::text, COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))
                           FROM pg_class WHERE relnamespace = 'impersonate'::regnamespace AND relkind <> 'i'
                         UNION ALL
                         SELECT oid::regprocedure::text, COALESCE(proacl, acldefault('f', proowner))
                           FROM pg_proc WHERE pronamespace = 'impersonate'::regnamespace) m(name, acl),
                        aclexplode(m.acl) a ORDER BY 1",
                &[],
            )
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let plain = privileges("plain", "CREATE ROLE app");
    assert!(
        plain
            .iter()
            .any(|line| line == "impersonate.grants: everybody may SELECT"),
        "{plain:#?}"
    );
    let mut defaults = String::new();
    for who in [
        "app WITH GRANT OPTION",
        "PUBLIC",
        "pg_read_all_stats WITH GRANT OPTION",
        "pg_monitor",
    ] {
        for what in ["TABLES", "SEQUENCES", "FUNCTIONS"] {
            defaults += &format!("ALTER DEFAULT PRIVILEGES GRANT ALL ON {what} TO {who};");
        }
    }
    let generous = privileges("generous", &defaults);
    assert_eq!(generous, plain);
}

/// Whatever else somebody keeps in the table's rows, it doesn't keep the writer from storing them.
#[test]
fn l6_a_column_that_somebody_adds_gets_its_default() {
    let cluster = Cluster::start_new();
    let database = cluster.database("added");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE bob LOGIN; SELECT setuser('bob'); SELECT 1; SELECT setuser(); SELECT impersonate.audit_sync();
             ALTER TABLE impersonate.audit ADD stored_at timestamptz DEFAULT clock_timestamp(),
                 ADD kept_for integer NOT NULL DEFAULT 7, ADD number bigserial",
        )
        .unwrap_or_else(|error| panic!("{error:?}"));
    admin
        .batch_execute("SELECT setuser('bob'); SELECT 2; SELECT setuser()")
        .unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let rows = admin
        .query_one(
            "SELECT count(*), count(stored_at), sum(kept_for), count(number) FROM impersonate.audit
              WHERE event_id > (SELECT min(event_id) FROM impersonate.audit WHERE event = 'RESETUSER')",
            &[],
        )
        .unwrap();
    let counts: Vec<i64> = (0..4).map(|column| rows.get(column)).collect();
    assert_eq!(counts, [3, 3, 21, 3]);
    let ok: bool = admin
        .query_one("SELECT ok FROM impersonate.audit_verify()", &[])
        .unwrap()
        .get(0);
    assert!(ok);
}
