//! Partitions of the audit's table by month: made when an event needs one, and removed when they are empty.
//!
//! A table is made and then attached: that locks the parent in SHARE UPDATE EXCLUSIVE mode, in which everybody goes on
//! reading and writing, where CREATE TABLE ... PARTITION OF would wait for all of them. Each is a member of the
//! extension, and has the guard, as the parent's own trigger doesn't see what is done to a partition by its name.

use super::rows::expect;
use pgrx::{pg_sys, FromDatum};
use std::ffi::{CStr, CString};

/// Whether a partition takes the time `$1`; if not, of a new one: its bounds, in that month and between those that there
/// are, its name, and the owner of the table. Needs ISO dates, and UTC.
const LOOK: &CStr = c"
    WITH bounds AS (
        SELECT CASE WHEN text = 'DEFAULT' OR text LIKE 'FOR VALUES FROM (MINVALUE)%' THEN '-infinity'
                    ELSE pg_catalog.substring(text, $x$FROM \\('([^']+)'\\)$x$) END::pg_catalog.timestamptz AS low,
               CASE WHEN text = 'DEFAULT' OR text LIKE '%TO (MAXVALUE)' THEN 'infinity'
                    ELSE pg_catalog.substring(text, $x$TO \\('([^']+)'\\)$x$) END::pg_catalog.timestamptz AS high
          FROM pg_catalog.pg_inherits i
               JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid,
               LATERAL pg_catalog.pg_get_expr(c.relpartbound, c.oid) text
         WHERE i.inhparent = 'impersonate.audit'::pg_catalog.regclass AND NOT i.inhdetachpending
    ), month AS (
        SELECT m AS low, m + interval '1 month' AS high FROM pg_catalog.date_trunc('month', $1, 'UTC') m
    ), free AS (
        SELECT GREATEST(m.low, (SELECT pg_catalog.max(b.high) FROM bounds b WHERE b.high <= $1)) AS low,
               LEAST(m.high, (SELECT pg_catalog.min(b.low) FROM bounds b WHERE b.low > $1)) AS high
          FROM month m
    ), range AS (
        (SELECT true AS taken, low, high FROM bounds WHERE low <= $1 AND $1 < high LIMIT 1)
        UNION ALL
        SELECT false, low, high FROM free WHERE NOT EXISTS (SELECT FROM bounds WHERE low <= $1 AND $1 < high)
    )
    SELECT r.taken,
           pg_catalog.quote_literal(r.low), pg_catalog.quote_literal(r.high),
           (SELECT name FROM pg_catalog.generate_series(0, 1000) n,
                             LATERAL (SELECT pg_catalog.to_char($1 AT TIME ZONE 'UTC', '\"audit_\"FMYYYYMM')
                                             || CASE n WHEN 0 THEN '' ELSE '_' || n END) AS made(name)
             WHERE pg_catalog.to_regclass('impersonate.' || pg_catalog.quote_ident(name)) IS NULL
             ORDER BY n LIMIT 1),
           (SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) FROM pg_catalog.pg_class c
             WHERE c.oid = 'impersonate.audit'::pg_catalog.regclass)
      FROM range r";

/// Partitions without a single page, whose time is over.
const EMPTY: &CStr = c"
    SELECT i.inhparent, c.oid, pg_catalog.quote_ident(c.relname)
      FROM pg_catalog.pg_inherits i
           JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid,
           LATERAL pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid), $x$TO \\('([^']+)'\\)$x$) high
     WHERE i.inhparent = 'impersonate.audit'::pg_catalog.regclass AND NOT i.inhdetachpending
       AND c.relnamespace = 'impersonate'::pg_catalog.regnamespace
       AND high::pg_catalog.timestamptz < pg_catalog.date_trunc('month', pg_catalog.now(), 'UTC')
       AND pg_catalog.pg_relation_size(c.oid) = 0";

/// Sees to it that there is a partition for events of this time, inside `worker::transaction`. Says whether it had to be
/// made.
pub fn ensure(time: i64) -> bool {
    let missing = look(time);
    if let Some(statements) = &missing {
        statements.iter().for_each(|statement| run(statement));
        take_from_strangers();
    }
    missing.is_some()
}

/// Default privileges are for tables that somebody makes, not for parts of the audit: who may read it is said of the
/// whole alone.
const STRANGERS: &CStr = c"
    SELECT 0::pg_catalog.oid, 0::pg_catalog.oid,
           pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', c.oid::pg_catalog.regclass,
                             CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                  ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
      FROM pg_catalog.pg_inherits i
           JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid,
           LATERAL pg_catalog.aclexplode(c.relacl) a
     WHERE i.inhparent = 'impersonate.audit'::pg_catalog.regclass AND a.grantee <> c.relowner
     GROUP BY c.oid, a.grantee";

fn take_from_strangers() {
    for (_, _, statement) in rows_of(STRANGERS) {
        run(&CString::new(statement).unwrap_or_default());
    }
}

/// The statements that make what is missing, if something is.
fn look(time: i64) -> Option<Vec<CString>> {
    let mut types = [pg_sys::TIMESTAMPTZOID];
    let mut arguments = [pg_sys::Datum::from(time)];
    // SAFETY: a constant statement with one argument of its type, inside SPI; it returns a row.
    unsafe {
        let done = pg_sys::SPI_execute_with_args(
            LOOK.as_ptr(),
            1,
            types.as_mut_ptr(),
            arguments.as_mut_ptr(),
            std::ptr::null(),
            false,
            1,
        );
        expect(done, pg_sys::SPI_OK_SELECT);
        if pg_sys::SPI_processed != 1 {
            pgrx::error!("the partitions of the audit cannot be told");
        }
        let row = Row(0);
        let taken = row.get::<bool>(1).unwrap_or_default();
        let (low, high, name, owner) = (row.text(2), row.text(3), row.text(4), row.text(5));
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        (!taken).then(|| making(&low, &high, &name, &owner))
    }
}

/// The statements that make a partition. All four texts are ready for SQL; the name consists of letters and digits.
fn making(low: &[u8], high: &[u8], name: &[u8], owner: &[u8]) -> Vec<CString> {
    let parts: [&[&[u8]]; 6] = [
        &[
            b"CREATE TABLE impersonate.",
            name,
            b" (LIKE impersonate.audit INCLUDING ALL)",
        ],
        &[
            b"CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON impersonate.",
            name,
            b" FOR EACH STATEMENT EXECUTE FUNCTION impersonate.audit_guard()",
        ],
        &[
            b"COMMENT ON TABLE impersonate.",
            name,
            b" IS 'events of a month; read impersonate.audit instead'",
        ],
        &[b"ALTER TABLE impersonate.", name, b" OWNER TO ", owner],
        &[b"ALTER EXTENSION impersonate ADD TABLE impersonate.", name],
        &[
            b"ALTER TABLE impersonate.audit ATTACH PARTITION impersonate.",
            name,
            b" FOR VALUES FROM (",
            low,
            b") TO (",
            high,
            b")",
        ],
    ];
    parts
        .iter()
        .map(|parts| CString::new(parts.concat()).unwrap_or_default())
        .collect()
}

/// Removes partitions that a purge has emptied, inside `worker::transaction`, as far as that is possible without
/// waiting for anybody. Returns false when some are left.
pub fn drop_empty() -> bool {
    let found = rows_of(EMPTY);
    let mut all = true;
    for (parent, partition, name) in &found {
        // SAFETY: locks that are taken at once or not at all, on relations that were there just now.
        let locked = unsafe {
            pg_sys::ConditionalLockRelationOid(*parent, pg_sys::AccessExclusiveLock as i32)
                && pg_sys::ConditionalLockRelationOid(*partition, pg_sys::AccessExclusiveLock as i32)
        };
        if !locked {
            all = false;
            continue;
        }
        // Looked at again, now that nobody can put a row in.
        if rows_of(EMPTY).iter().any(|(_, again, _)| again == partition) {
            for begin in ["ALTER EXTENSION impersonate DROP TABLE", "DROP TABLE"] {
                let statement = [begin.as_bytes(), b" impersonate.", name].concat();
                run(&CString::new(statement).unwrap_or_default());
            }
        }
    }
    all
}

fn rows_of(statement: &CStr) -> Vec<(pg_sys::Oid, pg_sys::Oid, Vec<u8>)> {
    // SAFETY: a constant statement inside SPI, whose columns are (oid, oid, text).
    unsafe {
        let done = pg_sys::SPI_execute(statement.as_ptr(), false, 0);
        expect(done, pg_sys::SPI_OK_SELECT);
        let found = (0..pg_sys::SPI_processed as usize)
            .filter_map(|at| {
                let row = Row(at);
                Some((row.get(1)?, row.get(2)?, row.text(3)))
            })
            .collect();
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        found
    }
}

fn run(statement: &CStr) {
    // SAFETY: a statement of ours, inside SPI.
    let done = unsafe { pg_sys::SPI_execute(statement.as_ptr(), false, 0) };
    expect(done, pg_sys::SPI_OK_UTILITY);
}

/// A row of the last statement's result.
struct Row(usize);

impl Row {
    unsafe fn get<T: FromDatum>(&self, number: i32) -> Option<T> {
        // SAFETY: the caller has as many rows and columns, and T is the column's type.
        unsafe {
            let table = pg_sys::SPI_tuptable;
            let mut is_null = true;
            let datum = pg_sys::SPI_getbinval(*(*table).vals.add(self.0), (*table).tupdesc, number, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// A text, in the encoding of the database; empty for NULL.
    unsafe fn text(&self, number: i32) -> Vec<u8> {
        // SAFETY: the caller has as many rows and columns; the result is null or a C string.
        unsafe {
            let table = pg_sys::SPI_tuptable;
            let text = pg_sys::SPI_getvalue(*(*table).vals.add(self.0), (*table).tupdesc, number);
            if text.is_null() {
                Vec::new()
            } else {
                CStr::from_ptr(text).to_bytes().to_vec()
            }
        }
    }
}
