//! What is stored in the audit: its head, whether it is as it was stored (L8), and how old rows leave (L9).

use crate::audit::show::{Figures, State};
use crate::audit::verify::{Column, End, Ending, Finding, Meaning, Row, Start, Verification, Wanted};
use crate::audit::{self, stored_hash, Event, Kind};
use crate::pg::audit_rows::{purging, reading, Access, Argument, Stored};
use crate::pg::guc::Refusal;
use crate::pg::{identity, utility};
use crate::{session, statements};
use pgrx::PgSqlErrorCode;
use std::ffi::CString;

/// Rows after which a verification tells how far it is.
const PROGRESS: u64 = 1_000_000;

/// Number and hash of the newest row; None when there is none.
pub fn head() -> Option<(i64, Vec<u8>)> {
    reading(|access| Source::own().newest_row(access, i64::MAX))
}

/// Rows of this server's own, or of one whose dump was restored here.
struct Source<'a> {
    origin: Option<&'a [u8]>,
}

impl Source<'_> {
    fn own() -> Self {
        Source { origin: None }
    }

    /// A query about those rows, with `$1` and `$2` for its own.
    fn query(&self, select: &str, rest: &str) -> CString {
        let table = match self.origin {
            Some(_) => "(SELECT * FROM impersonate.audit_restored WHERE origin = $3) AS audit",
            None => "impersonate.audit",
        };
        CString::new(format!("SELECT {select} FROM {table} {rest}")).unwrap_or_default()
    }

    fn arguments(&self, one: i64, two: i64) -> [Argument<'_>; 3] {
        let origin = Argument::Text(self.origin.unwrap_or_default());
        [Argument::Integer(one), Argument::Integer(two), origin]
    }

    /// The newest row up to a number, and its hash.
    fn newest_row(&self, access: &Access, to: i64) -> Option<(i64, Vec<u8>)> {
        let query = self.query("event_id, hash", "WHERE event_id <= $1 ORDER BY event_id DESC LIMIT 1");
        let found = access.query(&query, &self.arguments(to, 0));
        let row = found.first()?;
        Some((
            row.first()?.integer()?,
            row.get(1)?.bytes().unwrap_or_default().to_vec(),
        ))
    }

    /// The first row from a number on.
    fn oldest(&self, access: &Access, from: i64) -> Option<i64> {
        let query = self.query("event_id", "WHERE event_id >= $1 ORDER BY event_id LIMIT 1");
        number(access, &query, &self.arguments(from, 0))
    }

    /// Where the chain begins after the last purge: that of a dump is told by its PURGE row.
    fn start(&self, access: &Access) -> Option<Start> {
        if self.origin.is_none() {
            return purged(access);
        }
        let last = self.oldest(access, i64::MIN)?.checked_sub(1)?;
        let query = self.query(
            "event, detail",
            "WHERE event = 'PURGE' AND (detail->>'last')::bigint = $1 ORDER BY event_id DESC LIMIT 1",
        );
        let found = access.query(&query, &self.arguments(last, 0));
        let row = found.first()?;
        match meaning(row.first()?.bytes()?, row.get(1)?.bytes()) {
            Meaning::Purge { last: id, hash } => Some(Start { id, hash, purged: true }),
            _ => None,
        }
    }

    fn ending(&self, access: &Access) -> Ending {
        match (self.origin, end(access)) {
            (Some(_), _) => Ending::Unknown,
            (None, Some(end)) => Ending::Noted(end),
            (None, None) => Ending::Lost,
        }
    }
}

/// A number that a query returns.
fn number(access: &Access, query: &std::ffi::CStr, arguments: &[Argument]) -> Option<i64> {
    access.query(query, arguments).first()?.first()?.integer()
}

// ------------------------------------------------------------------------------------------------------ verification ---

/// What a verification came to: rows looked at, and the first that isn't as it was stored.
pub struct Verified {
    pub rows: u64,
    pub finding: Option<Finding>,
}

/// Looks at the rows from one number to another, or all. `head` is a hash that was kept elsewhere: of row `to`, or of
/// any row. `origin` is that of rows that were restored.
pub fn verify(from: Option<i64>, to: Option<i64>, head: Option<&[u8]>, origin: Option<&[u8]>) -> Verified {
    let source = Source { origin };
    let wanted = Wanted {
        to,
        head: head.map(|head| {
            head.try_into().unwrap_or_else(|_| {
                session::raise(&crate::pg::guc::Refusal {
                    sqlstate: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    message: "head must be 32 bytes long".to_owned(),
                    detail: None,
                    hint: Some("Give the hash that impersonate.audit_head() returned.".to_owned()),
                })
            })
        }),
    };
    reading(|access| {
        let end = source.ending(access);
        let newest = source.newest_row(access, i64::MAX).map_or(0, |(id, _)| id);
        // What is before the first is taken as it is, and what is behind the last tells what became of it.
        let before = from
            .and_then(|from| from.checked_sub(1))
            .and_then(|before| source.newest_row(access, before))
            .map(|(id, _)| id);
        let last = to.and_then(|to| source.oldest(access, to));
        let start = match before {
            Some(_) => Start::FIRST,
            None => source.start(access).unwrap_or(Start::FIRST),
        };
        let mut verification = Verification::new(start, &end, newest, wanted);
        let mut trusted = before.is_none();
        access.stream(
            &select_rows(&source),
            &source.arguments(before.unwrap_or(i64::MIN), last.unwrap_or(i64::MAX)),
            |columns| {
                let Some(row) = row(columns) else { return true };
                if !trusted {
                    trusted = true;
                    verification.trust(&row);
                    return true;
                }
                let id = row.id;
                let go_on = verification.row(row);
                if verification.rows() % PROGRESS == 0 {
                    pgrx::notice!("verified {} rows, up to {id} of {newest}", verification.rows());
                }
                go_on
            },
        );
        Verified {
            rows: verification.rows(),
            finding: verification.finish(&end),
        }
    })
}

/// Where the writer noted the end.
fn end(access: &Access) -> Option<End> {
    let found = access.query(
        c"SELECT event_id, hash, stored_id FROM impersonate.audit_state ORDER BY event_id DESC LIMIT 1",
        &[],
    );
    let row = found.first()?;
    Some(End {
        id: row.first()?.integer()?,
        hash: stored_hash(row.get(1)?.bytes()),
        stored_id: row.get(2)?.integer()?,
    })
}

/// Where the chain begins after the last purge.
fn purged(access: &Access) -> Option<Start> {
    let found = access.query(
        c"SELECT last, hash FROM impersonate.audit_purged ORDER BY last DESC LIMIT 1",
        &[],
    );
    let row = found.first()?;
    Some(Start {
        id: row.first()?.integer()?,
        hash: stored_hash(row.get(1)?.bytes()),
        purged: true,
    })
}

/// All columns, in the order of the hash, which is the last.
fn select_rows(source: &Source) -> CString {
    let columns: Vec<_> = audit::columns().map(|name| name.to_string_lossy()).collect();
    source.query(
        &columns.join(", "),
        "WHERE event_id BETWEEN $1 AND $2 ORDER BY event_id, event_time",
    )
}

/// A row of `select_rows`.
fn row(mut columns: Vec<Stored>) -> Option<Row> {
    let hash = columns.pop()?.bytes().map(<[u8]>::to_vec);
    let id = columns.first()?.integer()?;
    let meaning = meaning(columns.get(2)?.bytes()?, columns.last()?.bytes());
    let columns = columns
        .into_iter()
        .map(|column| match column {
            Stored::Null => Column::Null,
            Stored::Integer(number) => Column::Integer(number),
            Stored::Timestamp(time) => Column::Timestamp(time),
            Stored::Interval {
                months,
                days,
                microseconds,
            } => Column::Interval {
                months,
                days,
                microseconds,
            },
            Stored::Uuid(uuid) => Column::Uuid(uuid),
            Stored::Text(text) | Stored::Bytes(text) => Column::Text(text),
            Stored::TextArray { dimensions, elements } => Column::TextArray { dimensions, elements },
        })
        .collect();
    Some(Row {
        id,
        columns,
        hash,
        meaning,
    })
}

/// What a row says of others, by its kind and its detail.
fn meaning(kind: &[u8], detail: Option<&[u8]>) -> Meaning {
    if kind != Kind::Purge.as_str().as_bytes() && kind != Kind::Destination.as_str().as_bytes() {
        return Meaning::Nothing;
    }
    let detail: Option<serde_json::Value> = detail.and_then(|detail| serde_json::from_slice(detail).ok());
    let Some(detail) = detail else { return Meaning::Nothing };
    let number = |name: &str| detail[name].as_i64();
    let hash = || {
        let digits = detail["hash"].as_str()?;
        let bytes: Option<Vec<u8>> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
            .collect();
        bytes?.try_into().ok()
    };
    if kind == Kind::Purge.as_str().as_bytes() {
        return match (number("last"), hash()) {
            (Some(last), Some(hash)) => Meaning::Purge { last, hash },
            _ => Meaning::Nothing,
        };
    }
    match (detail["destination"].as_str(), number("first"), number("last"), hash()) {
        (Some("log"), ..) => Meaning::Leaving,
        (_, Some(first), Some(last), Some(hash)) => Meaning::Coming { first, last, hash },
        _ => Meaning::Nothing,
    }
}

// -------------------------------------------------------------------------------------------------------------- purge ---

/// What is to leave.
struct Leaving {
    first: i64,
    last: i64,
    hash: Vec<u8>,
}

/// Removes the oldest rows, up to the first that is not before this time (in microseconds since 2000-01-01). Returns how
/// many events that were.
///
/// The PURGE row is stored first: without it nothing may leave, and if the transaction comes to nothing it tells of an
/// attempt. Then partitions that are wholly before that time are emptied at once, which needs them to itself, and of
/// the others rows are deleted. The writer drops empty partitions later, when it disturbs nobody.
pub fn purge(before: i64) -> i64 {
    session::refuse_change("the audit");
    utility::prevent_if_read_only(c"impersonate.audit_purge()");
    audit::require_writer();
    // What is told to be leaving is the newest state; an older snapshot would leave some of it behind.
    if !identity::sees_newest() {
        session::raise(&crate::pg::guc::Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE,
            message: "impersonate.audit_purge() must run in a transaction that is READ COMMITTED".to_owned(),
            detail: None,
            hint: None,
        });
    }
    let Some(leaving) = purging(|access| leaving(access, before)) else {
        return 0;
    };
    record(before, &leaving);
    purging(|access| remove(access, before, &leaving));
    leaving.last - leaving.first + 1
}

fn leaving(access: &Access, before: i64) -> Option<Leaving> {
    let first = number(access, c"SELECT min(event_id) FROM impersonate.audit", &[])?;
    // By number, as clocks may have been set back.
    let kept = number(
        access,
        c"SELECT min(event_id) FROM impersonate.audit WHERE event_time >= $1",
        &[Argument::Timestamp(before)],
    );
    let (last, hash) = Source::own().newest_row(access, kept.map_or(i64::MAX, |kept| kept - 1))?;
    Some(Leaving { first, last, hash })
}

fn record(before: i64, leaving: &Leaving) {
    let (statement, mut detail) = statements::kept_text(identity::client_message());
    detail["before"] = audit::iso_time(before).into();
    detail["first"] = leaving.first.into();
    detail["last"] = leaving.last.into();
    detail["rows"] = (leaving.last - leaving.first + 1).into();
    detail["hash"] = audit::hexadecimal(&leaving.hash).into();
    let detail = detail.to_string();
    let session_user = identity::role_name(identity::session_user()).unwrap_or_default();
    let role = identity::role_name(identity::role_in_force()).unwrap_or_default();
    audit::wait_stored(audit::push(&Event {
        user_name: &session_user,
        session_user_name: &session_user,
        role_name: &role,
        command_tag: Some(b"SELECT"),
        statement: Some(&statement),
        detail: Some(detail.as_bytes()),
        ..statements::blank_event(Kind::Purge)
    }));
}

fn remove(access: &Access, before: i64, leaving: &Leaving) {
    let last = Argument::Integer(leaving.last);
    // The writer puts rows into this month's; it must not wait for this transaction's end.
    let whole = access.query(
        c"SELECT pg_catalog.quote_ident(c.relname)
            FROM pg_catalog.pg_inherits i
                 JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid,
                 LATERAL pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid),
                                              $x$TO \\('([^']+)'\\)$x$) high
           WHERE i.inhparent = 'impersonate.audit'::pg_catalog.regclass AND c.relkind = 'r'
             AND c.relnamespace = 'impersonate'::pg_catalog.regnamespace
             AND high::pg_catalog.timestamptz
                 <= LEAST($1, pg_catalog.date_trunc('month', pg_catalog.clock_timestamp(), 'UTC'))
           ORDER BY c.relname",
        &[Argument::Timestamp(before)],
    );
    for partition in &whole {
        let Some(name) = partition.first().and_then(Stored::bytes) else {
            continue;
        };
        access.run_on("LOCK TABLE impersonate.", name, " IN ACCESS EXCLUSIVE MODE");
        let query = [&b"SELECT max(event_id) FROM impersonate."[..], name].concat();
        let newest = number(access, &CString::new(query).unwrap_or_default(), &[]);
        if newest.is_some_and(|newest| newest <= leaving.last) {
            access.run_on("TRUNCATE impersonate.", name, "");
        }
    }
    access.run(c"DELETE FROM impersonate.audit WHERE event_id <= $1", &[last]);
    access.run(
        c"INSERT INTO impersonate.audit_purged (last, hash, rows, before) VALUES ($1, $2, $3, $4)",
        &[
            last,
            Argument::Bytes(&leaving.hash),
            Argument::Integer(leaving.last - leaving.first + 1),
            Argument::Timestamp(before),
        ],
    );
}

/// N2: nothing of a node's spools is taken any more, and it may begin another. On record first. Whether there was one.
pub fn retire_node(node: &[u8]) -> bool {
    session::refuse_change("the audit");
    utility::prevent_if_read_only(c"impersonate.retire_node()");
    tell_of_node(|detail| detail["retired"] = identity::to_utf8(node).into());
    let retired = purging(|access| {
        access.run(
            c"DELETE FROM impersonate.node_report WHERE node = $1",
            &[Argument::Text(node)],
        );
        access.run(
            c"UPDATE impersonate.audit_node SET retired_at = pg_catalog.clock_timestamp()
               WHERE node = $1 AND retired_at IS NULL",
            &[Argument::Text(node)],
        )
    });
    retired > 0
}

/// N2: the events of this database in this node's own spool, or those of the one that is asked for; see `show::events`.
pub fn spooled(wanted: Option<[u8; 16]>) -> Result<Vec<([u8; 16], u64, String)>, String> {
    let is_wanted = |spool: &Figures| match wanted {
        Some(id) => spool.spool == id,
        None => spool.state == State::Own && spool.database == u32::from(identity::database()),
    };
    let spools: Vec<Figures> = audit::show::figures().into_iter().filter(is_wanted).collect();
    spools.iter().for_each(refuse_others);
    audit::show::events(&spools)
}

/// L8: who was granted a function was granted it in one database. What is another's is for superusers alone.
fn refuse_others(spool: &Figures) {
    let ours = spool.database == u32::from(identity::database()) && matches!(spool.state, State::Own | State::Retired);
    if !ours && !identity::superuser(identity::current_user()) {
        session::raise(&Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            message: format!(
                "permission denied for audit spool {}",
                pgrx::Uuid::from_bytes(spool.spool)
            ),
            detail: Some("It is of another database, or another node.".to_owned()),
            hint: Some("Ask a superuser of this server.".to_owned()),
        });
    }
}

/// N2: removes a spool that nobody takes in any more, on record first. Its oldest and newest position that was not sent, as
/// far as is known; None when there is none, or it can't be read.
pub fn discard_spool(id: [u8; 16], shown: &str) -> Option<(u64, u64)> {
    session::refuse_change("the audit");
    let refuse = |code, message: String, detail: Option<String>, hint: Option<String>| -> ! {
        session::raise(&Refusal {
            sqlstate: code,
            message,
            detail,
            hint,
        })
    };
    let all = audit::show::figures();
    let Some(spool) = all.iter().find(|spool| spool.spool == id && id != [0; 16]) else {
        refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("audit spool {shown} does not exist on this server"),
            None,
            Some("impersonate.audit_spool shows those that do.".to_owned()),
        );
    };
    refuse_others(spool);
    if spool.state == State::Own {
        refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("audit spool {shown} is in use"),
            Some("Its events are sent to the primary, or taken in after a promotion.".to_owned()),
            Some(format!(
                "If they cannot be: SELECT impersonate.retire_node('{}') on the primary.",
                spool.node.replace('\'', "''")
            )),
        );
    }
    if spool.state == State::Foreign && audit::node::shares_spools() {
        refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("audit spool {shown} may be in use"),
            Some(format!(
                "It is in impersonate.audit_spool_directory, where node \"{}\" may keep it.",
                spool.node
            )),
            Some("If there is no such node any more, remove the files by hand.".to_owned()),
        );
    }
    let ends = audit::show::ends(spool);
    tell_of_node(|detail| {
        detail["discarded"] = shown.into();
        detail["of"] = spool.node.clone().into();
        detail["state"] = spool.state.as_str().into();
        detail["first"] = ends.map(|(first, _)| first).into();
        detail["last"] = ends.map(|(_, last)| last).into();
    });
    if let Err(why) = audit::show::remove(spool) {
        refuse(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("audit spool {shown} could not be removed"),
            Some(why),
            None,
        );
    }
    ends
}

/// A NODE event of this session, which is stored when this returns.
fn tell_of_node(add: impl FnOnce(&mut serde_json::Value)) {
    let (statement, mut detail) = statements::kept_text(identity::client_message());
    add(&mut detail);
    let detail = identity::speakable(&detail.to_string()).into_owned();
    let session_user = identity::role_name(identity::session_user()).unwrap_or_default();
    let role = identity::role_name(identity::role_in_force()).unwrap_or_default();
    audit::require_writer();
    audit::wait_stored(audit::push(&Event {
        user_name: &session_user,
        session_user_name: &session_user,
        role_name: &role,
        command_tag: Some(b"SELECT"),
        statement: Some(&statement),
        detail: Some(detail.as_bytes()),
        ..statements::blank_event(Kind::Node)
    }));
}
