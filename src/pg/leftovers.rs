//! What a session holds besides its settings, and what of it came up under an impersonation (S9).

use super::store::as_superuser;
use pgrx::pg_sys::{self, Oid, TimestampTz};
use pgrx::spi::Spi;
use pgrx::{ereport, PgLogLevel, PgSqlErrorCode};
use std::ffi::CStr;

fn texts(query: &str, arguments: &[pgrx::datum::DatumWithOid]) -> Vec<String> {
    let found = Spi::connect(|client| {
        client
            .select(query, None, arguments)?
            .map(|row| row.get::<String>(1))
            .collect::<Result<Vec<_>, _>>()
    });
    match found {
        Ok(found) => found.into_iter().flatten().collect(),
        Err(error) => failed(&error),
    }
}

fn run(statement: &str) {
    if let Err(error) = Spi::connect_mut(|client| client.update(statement, None, &[]).map(|_| ())) {
        failed(&error)
    }
}

fn failed(error: &pgrx::spi::Error) -> ! {
    ereport!(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("cannot look over the session: {error}")
    );
    unreachable!("an error does not return")
}

/// When the client's current statement began.
pub fn statement_start() -> TimestampTz {
    // SAFETY: reads a global.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// Names of the cursors that are open, but for the portal that runs: all, or those opened since a statement's start.
pub fn open_cursors(since: Option<TimestampTz>) -> Vec<String> {
    // SAFETY: the active portal and its name are valid.
    let active = unsafe {
        if pg_sys::ActivePortal.is_null() || (*pg_sys::ActivePortal).name.is_null() {
            String::new()
        } else {
            CStr::from_ptr((*pg_sys::ActivePortal).name)
                .to_string_lossy()
                .into_owned()
        }
    };
    let since = since.and_then(super::identity::timestamp);
    with_snapshot(|| {
        as_superuser(|| {
            texts(
                "SELECT name FROM pg_catalog.pg_cursors WHERE name <> $1 AND ($2 IS NULL OR creation_time >= $2)",
                &[active.into(), since.into()],
            )
        })
    })
}

/// Relations and types in the session's own temporary schema.
pub fn temporary_objects() -> Vec<Oid> {
    if temporary_schema().is_none() {
        return Vec::new();
    }
    let found = with_snapshot(|| {
        as_superuser(|| {
            Spi::get_one::<Vec<Oid>>(
                "SELECT pg_catalog.array_agg(oid) FROM (
                    SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()
                    UNION ALL
                    SELECT oid FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema()) o",
            )
        })
    });
    match found {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => failed(&error),
    }
}

fn temporary_schema() -> Option<Oid> {
    // SAFETY: returns a global.
    let schema = unsafe { pgrx::direct_function_call::<Oid>(pg_sys::pg_my_temp_schema, &[]) };
    schema.filter(|&schema| schema != Oid::INVALID)
}

/// Takes away what came up since: open cursors, statements of SQL's PREPARE, temporary objects but those of `before`.
///
/// They would act on the impersonator: a temporary relation goes before others of its name, a prepared statement waits
/// under a known name, a cursor's query goes on as whoever fetches. A driver's own prepared statements stay: only the
/// client can make them.
pub fn remove(since: TimestampTz, before: &[Oid]) {
    // The target's code may have made the transaction read-only; that shall not keep her in. After an error the abort
    // of the transaction puts it back.
    // SAFETY: a plain global of this backend.
    let read_only = unsafe { std::ptr::replace(&raw mut pg_sys::XactReadOnly, false) };
    remove_writing(since, before);
    // SAFETY: as above.
    unsafe { pg_sys::XactReadOnly = read_only };
}

fn remove_writing(since: TimestampTz, before: &[Oid]) {
    let cursors = open_cursors(Some(since));
    let since = super::identity::timestamp(since);
    with_snapshot(|| {
        as_superuser(|| {
            for cursor in cursors {
                run(&format!("CLOSE {}", quoted(&cursor)));
            }
            let prepared = texts(
                "SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql AND prepare_time >= $1",
                &[since.into()],
            );
            for statement in prepared {
                run(&format!("DEALLOCATE {}", quoted(&statement)));
            }
            if temporary_schema().is_none() {
                return;
            }
            let drops = texts(
                "SELECT pg_catalog.format('DROP %s IF EXISTS %I.%I CASCADE', kind, n.nspname, name)
                   FROM (SELECT oid, relname AS name, relnamespace AS schema,
                                CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'c' THEN 'TYPE'
                                             WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                             ELSE 'TABLE' END AS kind
                           FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'v', 'S', 'c', 'f', 'm')
                         UNION ALL
                         SELECT oid, typname, typnamespace, 'TYPE'
                           FROM pg_catalog.pg_type WHERE typtype IN ('d', 'e', 'r')) o
                   JOIN pg_catalog.pg_namespace n ON n.oid = o.schema
                  WHERE o.schema = pg_catalog.pg_my_temp_schema() AND NOT o.oid = ANY ($1)",
                &[before.to_vec().into()],
            );
            for drop in drops {
                run("SET LOCAL client_min_messages = error");
                run(&drop);
            }
        });
    });
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Statements need a snapshot, which a function of the executor has and the end of a transaction hasn't.
fn with_snapshot<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: pushed and popped as a pair; on error the abort of the transaction pops it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = body();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// The settings that ALTER ROLE ... SET gave a role: for every database, then for this one.
pub fn settings_of(role: Oid) -> Vec<(String, String)> {
    let settings = with_snapshot(|| {
        as_superuser(|| {
            texts(
                "SELECT c FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c
                  WHERE s.setrole = $1
                    AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
                                               WHERE datname = pg_catalog.current_database()))
                  ORDER BY s.setdatabase",
                &[role.into()],
            )
        })
    });
    let pair = |setting: String| {
        setting
            .split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    settings.into_iter().filter_map(pair).collect()
}
