//! `impersonate.report()`: the rows that the page is made of. The page itself is the crate `impersonate-report`.
//!
//! They are read as the caller, by the snapshot of its query, so the report shows what the caller might read anyway.
//! Everything is counted and limited by the server: however much is on record, the page stays small.

use crate::pg::audit_rows::{reading_as_caller, Access, Argument, Stored};
use crate::pg::guc::Refusal;
use crate::pg::identity;
use crate::{audit, session, trail};
use impersonate_report::{
    self as page, Chain, Counts, Denied, Density, Failure, Impersonation, Incident, Listed, Mark, MarkKind, Pair,
    Relation, Report, Verified, BINS, LANES, MARKS,
};
use pgrx::PgSqlErrorCode;
use std::ffi::CString;

/// Impersonations that are drawn one by one. Where there are more, they are counted by parts of the period.
const DRAWN: i64 = 600;
const PAIRS: i64 = 400;
const DENIED: i64 = 50;
const RELATIONS: i64 = 100;
const FAILURES: i64 = 20;
const INCIDENTS: i64 = 50;

/// What statements of impersonations are. Of two rows for one the first is not counted.
const STATEMENT: &str =
    "event = 'STATEMENT' AND impersonation_id IS NOT NULL AND detail->>'phase' IS DISTINCT FROM 'begun'";

/// The page, for the events from `from` to before `to`; from the first event, and to now, where they are not given.
pub fn make(from: Option<i64>, to: Option<i64>) -> String {
    let made_at = identity::now();
    // An infinite time is none.
    let finite = |time: Option<i64>| time.filter(|time| ![i64::MIN, i64::MAX].contains(time));
    let (given, to) = (finite(from), finite(to).unwrap_or(made_at));
    let mut report = reading_as_caller(|access| {
        let from = given.or_else(|| first_event(access, to)).unwrap_or(to - 86_400_000_000);
        if from >= to {
            session::raise(&Refusal {
                sqlstate: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                message: "the period of a report must begin before it ends".to_owned(),
                detail: Some(format!(
                    "It is from {} to {}.",
                    audit::iso_time(from),
                    audit::iso_time(to)
                )),
                hint: None,
            });
        }
        read(&Period { access, from, to })
    });
    report.made_at = made_at;
    page::page(&report)
}

fn first_event(access: &Access, to: i64) -> Option<i64> {
    let query = c"SELECT min(event_time) FROM impersonate.audit WHERE event_time < $1";
    access
        .query(query, &[Argument::Timestamp(to)])
        .first()?
        .first()?
        .integer()
}

struct Period<'a> {
    access: &'a Access,
    from: i64,
    to: i64,
}

impl Period<'_> {
    /// Rows of a query about the events of the period. `$3` is a limit.
    fn rows(&self, select: &str, condition: &str, rest: &str, limit: i64) -> Vec<Row> {
        self.of("impersonate.audit", select, condition, rest, limit)
    }

    /// The same of the events beside something else.
    fn of(&self, tables: &str, select: &str, condition: &str, rest: &str, limit: i64) -> Vec<Row> {
        let query = format!(
            "SELECT {select} FROM {tables} WHERE event_time >= $1 AND event_time < $2 AND ({condition}) {rest} LIMIT $3"
        );
        let arguments = [
            Argument::Timestamp(self.from),
            Argument::Timestamp(self.to),
            Argument::Integer(limit),
        ];
        self.access
            .query(&CString::new(query).unwrap_or_default(), &arguments)
            .into_iter()
            .map(Row)
            .collect()
    }
}

/// A row, whose columns are taken by number.
struct Row(Vec<Stored>);

impl Row {
    fn text_or_none(&self, at: usize) -> Option<String> {
        Some(identity::to_utf8_lossy(self.0.get(at)?.bytes()?))
    }

    fn text(&self, at: usize) -> String {
        self.text_or_none(at).unwrap_or_default()
    }

    fn integer_or_none(&self, at: usize) -> Option<i64> {
        self.0.get(at)?.integer()
    }

    fn integer(&self, at: usize) -> i64 {
        self.integer_or_none(at).unwrap_or_default()
    }

    fn count(&self, at: usize) -> u64 {
        u64::try_from(self.integer(at)).unwrap_or_default()
    }

    fn texts(&self, at: usize) -> Vec<String> {
        match self.0.get(at) {
            Some(Stored::TextArray { elements, .. }) => elements
                .iter()
                .flatten()
                .map(|text| identity::to_utf8_lossy(text))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Rows whose first column says how many there are.
fn listed<T>(rows: &[Row], make: impl Fn(&Row) -> T) -> Listed<T> {
    Listed {
        rows: rows.iter().map(make).collect(),
        total: rows.first().map_or(0, |row| row.count(0)),
    }
}

fn read(period: &Period) -> Report {
    let (counts, events) = counts(period);
    let impersonations = impersonations(period);
    let density = if impersonations.total > DRAWN as u64 {
        density(period)
    } else {
        Vec::new()
    };
    let (server_version, made_by) = surroundings(period);
    Report {
        database: identity::to_utf8_lossy(&identity::database_name()),
        server_version,
        made_by,
        made_at: 0,
        from: period.from,
        to: period.to,
        counts,
        impersonations,
        density,
        marks: marks(period),
        pairs: pairs(period),
        denied: denied(period),
        relations: relations(period),
        failures: failures(period),
        failed: incidents(period, &format!("{STATEMENT} AND sqlstate <> '00000'")),
        incidents: incidents(period, "event IN ('VIOLATION', 'TERMINATED')"),
        rights: incidents(period, "event IN ('GRANT', 'REVOKE')"),
        record: incidents(period, "event IN ('PURGE', 'DESTINATION', 'NODE')"),
        chain: chain(period, events),
    }
}

fn surroundings(period: &Period) -> (String, String) {
    let query = c"SELECT current_setting('server_version'), session_user::text
                         || CASE WHEN session_user = current_user THEN '' ELSE ' (as ' || current_user || ')' END";
    let rows = period.access.query(query, &[]);
    rows.into_iter()
        .next()
        .map(Row)
        .map_or_else(Default::default, |row| (row.text(0), row.text(1)))
}

/// The numbers, and the first and the last event's.
fn counts(period: &Period) -> (Counts, Option<(i64, i64)>) {
    let select = format!(
        "count(*), count(DISTINCT impersonation_id),
         count(DISTINCT session_user_name) FILTER (WHERE event = 'SETUSER' OR {STATEMENT}),
         count(DISTINCT user_name) FILTER (WHERE event = 'SETUSER' OR {STATEMENT}),
         count(*) FILTER (WHERE {STATEMENT}),
         count(*) FILTER (WHERE {STATEMENT} AND sqlstate <> '00000'),
         count(*) FILTER (WHERE event = 'DENIED'),
         count(*) FILTER (WHERE event = 'VIOLATION'),
         count(*) FILTER (WHERE event = 'TERMINATED'),
         count(*) FILTER (WHERE event IN ('GRANT', 'REVOKE')),
         min(event_id), max(event_id),
         count(DISTINCT session_user_name)
             FILTER (WHERE event IN ('SETUSER', 'DENIED', 'VIOLATION', 'TERMINATED') OR {STATEMENT})"
    );
    let rows = period.rows(&select, "true", "", 1);
    let Some(row) = rows.first() else {
        return Default::default();
    };
    let counts = Counts {
        events: row.count(0),
        impersonations: row.count(1),
        impersonators: row.count(2),
        people: row.count(12),
        targets: row.count(3),
        statements: row.count(4),
        failures: row.count(5),
        denied: row.count(6),
        violations: row.count(7),
        terminated: row.count(8),
        rights: row.count(9),
    };
    (counts, row.integer_or_none(10).zip(row.integer_or_none(11)))
}

/// Rows that an impersonation's own session wrote. A VIOLATION may be somebody else's.
const OF_IMPERSONATIONS: &str = "impersonation_id IS NOT NULL AND event <> 'VIOLATION'";

fn impersonations(period: &Period) -> Listed<Impersonation> {
    let select = format!(
        "count(*) OVER (), min(session_user_name), min(user_name),
         min(event_time) FILTER (WHERE event = 'SETUSER'),
         CASE WHEN (array_agg(event ORDER BY event_id DESC) FILTER (WHERE event IN ('SETUSER', 'RESETUSER')))[1]
                   = 'RESETUSER'
              THEN max(event_time) FILTER (WHERE event = 'RESETUSER') END,
         min(event_time), max(event_time),
         (array_agg(detail->>'cause' ORDER BY event_id DESC) FILTER (WHERE event = 'RESETUSER'))[1],
         (array_agg(left(reason, 500) ORDER BY event_id) FILTER (WHERE event = 'SETUSER'))[1],
         count(*) FILTER (WHERE {STATEMENT}), count(*) FILTER (WHERE {STATEMENT} AND sqlstate <> '00000'),
         (array_agg(concat_ws(', ', 'node ' || NULLIF(node, impersonate.this_node()),
                              COALESCE(host(client_addr), 'local'), NULLIF(application_name, ''))
                    ORDER BY event_id))[1],
         min(event_id)"
    );
    let rest = "GROUP BY impersonation_id ORDER BY min(event_id) DESC";
    let rows = period.rows(&select, OF_IMPERSONATIONS, rest, DRAWN);
    listed(&rows, |row| Impersonation {
        person: row.text(1),
        target: row.text(2),
        began: row.integer_or_none(3),
        ended: row.integer_or_none(4),
        seen: (row.integer(5), row.integer(6)),
        how: row.text_or_none(7),
        reason: row.text_or_none(8),
        statements: row.count(9),
        failures: row.count(10),
        origin: row.text(11),
        first_event: row.integer(12),
    })
}

/// Which part of the period an event is in, of so many.
fn part_of(parts: u32) -> String {
    format!(
        "LEAST({}, floor((extract(epoch FROM event_time) - extract(epoch FROM $1)) * {parts}
                         / (extract(epoch FROM $2) - extract(epoch FROM $1))))::bigint",
        parts - 1
    )
}

/// An event that is on the time line.
const DRAWN_EVENT: &str = "event IN ('SETUSER', 'DENIED', 'VIOLATION', 'TERMINATED')";

/// Those who have a lane there.
fn drawn_people() -> String {
    format!(
        "session_user_name IN (SELECT session_user_name FROM impersonate.audit
                                WHERE event_time >= $1 AND event_time < $2 AND {DRAWN_EVENT}
                                GROUP BY session_user_name ORDER BY count(*) DESC, session_user_name LIMIT {LANES})"
    )
}

/// How many impersonations began in each part of the period, for the people with the most.
fn density(period: &Period) -> Vec<Density> {
    let select = format!("session_user_name, {}, count(DISTINCT impersonation_id)", part_of(BINS));
    let condition = format!("event = 'SETUSER' AND {}", drawn_people());
    let limit = i64::from(BINS) * LANES as i64;
    period
        .rows(&select, &condition, "GROUP BY 1, 2 ORDER BY 1, 2", limit)
        .iter()
        .map(|row| Density {
            person: row.text(0),
            bin: u32::try_from(row.integer(1)).unwrap_or_default().min(BINS - 1),
            count: row.count(2),
        })
        .collect()
}

fn marks(period: &Period) -> Vec<Mark> {
    let condition = format!("event IN ('DENIED', 'VIOLATION', 'TERMINATED') AND {}", drawn_people());
    let rest = format!("GROUP BY session_user_name, event, {} ORDER BY 1, 2", part_of(MARKS));
    let limit = i64::from(MARKS) * 3 * LANES as i64;
    period
        .rows(
            "session_user_name, min(event_time), event, count(*)",
            &condition,
            &rest,
            limit,
        )
        .iter()
        .map(|row| Mark {
            person: row.text(0),
            at: row.integer(1),
            kind: match row.text(2).as_str() {
                "VIOLATION" => MarkKind::Violation,
                "TERMINATED" => MarkKind::Terminated,
                _ => MarkKind::Denied,
            },
            count: row.count(3),
        })
        .collect()
}

fn pairs(period: &Period) -> Listed<Pair> {
    let rows = period.rows(
        "count(*) OVER (), session_user_name, user_name, count(DISTINCT impersonation_id)",
        OF_IMPERSONATIONS,
        "GROUP BY session_user_name, user_name ORDER BY 4 DESC, 2, 3",
        PAIRS,
    );
    listed(&rows, |row| Pair {
        person: row.text(1),
        target: row.text(2),
        impersonations: row.count(3),
    })
}

fn denied(period: &Period) -> Listed<Denied> {
    let rows = period.rows(
        "count(*) OVER (), session_user_name, detail->>'target', count(*), max(event_time),
         (array_agg(left(concat_ws('. ', detail->>'message', detail->>'detail'), 500) ORDER BY event_id DESC))[1]",
        "event = 'DENIED'",
        "GROUP BY session_user_name, detail->>'target' ORDER BY 4 DESC, 2, 3",
        DENIED,
    );
    listed(&rows, |row| Denied {
        person: row.text(1),
        target: row.text_or_none(2),
        attempts: row.count(3),
        last: row.integer(4),
        why: row.text(5),
    })
}

fn relations(period: &Period) -> Listed<Relation> {
    let rows = period.of(
        "impersonate.audit, unnest(relations) r(named),
          LATERAL (SELECT regexp_replace(named, ' [(][a-z, ]*[)]$', '') AS name,
                          string_to_array(substring(named, ' [(]([a-z, ]*)[)]$'), ', ') AS access) t",
        "count(*) OVER (), t.name, count(*) FILTER (WHERE 'select' = ANY (t.access)),
         count(*) FILTER (WHERE 'insert' = ANY (t.access)), count(*) FILTER (WHERE 'update' = ANY (t.access)),
         count(*) FILTER (WHERE 'delete' = ANY (t.access)),
         count(*) FILTER (WHERE NOT t.access <@ '{select,insert,update,delete}'),
         (array_agg(DISTINCT session_user_name))[1:4], count(DISTINCT session_user_name), max(event_time)",
        STATEMENT,
        // Catalogs come last: every client looks into them.
        "GROUP BY t.name
          ORDER BY t.name ~ '^(pg_catalog|information_schema|pg_toast|impersonate)[.]', count(*) DESC, t.name",
        RELATIONS,
    );
    listed(&rows, |row| Relation {
        name: row.text(1),
        accesses: [2, 3, 4, 5, 6].map(|at| row.count(at)),
        people: row.texts(7),
        people_total: row.count(8),
        last: row.integer(9),
    })
}

fn failures(period: &Period) -> Listed<Failure> {
    let rows = period.rows(
        "count(*) OVER (), sqlstate, count(*), count(DISTINCT session_user_name)",
        &format!("{STATEMENT} AND sqlstate <> '00000'"),
        "GROUP BY sqlstate ORDER BY 3 DESC, 2",
        FAILURES,
    );
    listed(&rows, |row| Failure {
        sqlstate: row.text(1),
        count: row.count(2),
        people: row.count(3),
    })
}

/// Events by themselves, the newest first.
fn incidents(period: &Period, condition: &str) -> Listed<Incident> {
    let rows = period.rows(
        "count(*) OVER (), event_id, event_time, event, session_user_name, NULLIF(user_name, session_user_name),
         sqlstate, left(statement, 500),
         left(CASE WHEN jsonb_typeof(detail) = 'object'
                   THEN (SELECT string_agg(key || ': ' || value, ', ') FROM jsonb_each_text(detail))
                   ELSE detail #>> '{}' END, 500)",
        condition,
        "ORDER BY event_id DESC",
        INCIDENTS,
    );
    listed(&rows, |row| Incident {
        event_id: row.integer(1),
        at: row.integer(2),
        event: row.text(3),
        person: row.text(4),
        acted_as: row.text_or_none(5),
        sqlstate: row.text(6),
        statement: row.text_or_none(7),
        why: row.text_or_none(8),
    })
}

/// Whether the events of the period are as they were stored. The rows before and behind them are looked at too: they
/// tell whether something is missing at the ends, or all of it.
fn chain(period: &Period, events: Option<(i64, i64)>) -> Chain {
    let one = |query: &std::ffi::CStr, arguments: &[Argument]| {
        period.access.query(query, arguments).into_iter().next().map(Row)
    };
    let (before, behind) = match events {
        Some((first, last)) => (
            one(
                c"SELECT max(event_id) FROM impersonate.audit WHERE event_id < $1",
                &[Argument::Integer(first)],
            ),
            one(
                c"SELECT min(event_id) FROM impersonate.audit WHERE event_id > $1",
                &[Argument::Integer(last)],
            ),
        ),
        None => (
            one(
                c"SELECT max(event_id) FROM impersonate.audit WHERE event_time < $1",
                &[Argument::Timestamp(period.from)],
            ),
            one(
                c"SELECT min(event_id) FROM impersonate.audit WHERE event_time >= $1",
                &[Argument::Timestamp(period.to)],
            ),
        ),
    };
    let id = |row: Option<Row>| row.and_then(|row| row.integer_or_none(0));
    let (before, behind) = (id(before), id(behind));
    let hash = events.and_then(|(_, last)| {
        let query = c"SELECT encode(hash, 'hex') FROM impersonate.audit WHERE event_id = $1 LIMIT 1";
        one(query, &[Argument::Integer(last)])?.text_or_none(0)
    });
    let allowed = one(
        c"SELECT has_function_privilege('impersonate.audit_verify(bigint, bigint, bytea, text)', 'EXECUTE')",
        &[],
    );
    let verified = if allowed.is_some_and(|row| row.integer(0) != 0) {
        verified(before, behind)
    } else {
        Verified::NotAllowed
    };
    Chain { events, hash, verified }
}

fn verified(before: Option<i64>, behind: Option<i64>) -> Verified {
    let verified = trail::verify(before, behind, None, None);
    match verified.finding {
        None => Verified::Intact { rows: verified.rows },
        Some(finding) => Verified::Broken {
            first_bad: finding.first_bad,
            damage: finding.damage.as_str().to_owned(),
            detail: finding.detail,
        },
    }
}
