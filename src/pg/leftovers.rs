//! What a session holds besides its settings, and what of it came up under an impersonation (S9).

use super::nodes::tag;
use super::store::as_superuser;
use super::trampoline::Utility;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, NodeTag, Oid, TimestampTz};
use pgrx::spi::{OwnedPreparedStatement, Spi};
use pgrx::{ereport, PgLogLevel, PgSqlErrorCode};
use std::cell::RefCell;
use std::ffi::{CStr, CString};

/// An object by its catalog and its OID.
pub type Object = (Oid, Oid);

/// What came up under an impersonation, by its id and a name.
type Noted = Vec<([u8; 16], CString)>;

thread_local! {
    /// Statements of SQL's PREPARE. They are no part of a transaction.
    static STATEMENTS: RefCell<Noted> = const { RefCell::new(Vec::new()) };
    /// Channels of LISTEN.
    static CHANNELS: RefCell<Noted> = const { RefCell::new(Vec::new()) };
}

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

/// A table with deferred triggers to come whose code would run as whoever is in force when their time comes: of functions
/// that somebody wrote, or of expressions of an exclusion constraint. Foreign keys are the table's owner's to check. From 18
/// on each runs as the role under which it was queued.
#[cfg(not(feature = "pg18"))]
pub fn deferred_code() -> Option<String> {
    // SAFETY: reads the transaction's state. Without a number it has written nothing.
    if unsafe { pg_sys::GetTopTransactionIdIfAny() } == pg_sys::InvalidTransactionId {
        return None;
    }
    let tables = with_snapshot(|| {
        as_superuser(|| {
            texts(
                "SELECT DISTINCT t.tgrelid::text
                   FROM pg_catalog.pg_trigger t LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = t.tgconstrindid
                  WHERE t.tgdeferrable AND (t.tgfoid >= 16384 OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)",
                &[],
            )
        })
    });
    tables.iter().find_map(|table| {
        let table = Oid::from(table.parse::<u32>().ok()?);
        // SAFETY: looks through the queue of the transaction; the name is null or a string.
        unsafe {
            if !pg_sys::AfterTriggerPendingOnRel(table) {
                return None;
            }
            let name = pg_sys::get_rel_name(table);
            let text = |name| super::identity::to_utf8(CStr::from_ptr(name).to_bytes()).to_string();
            Some(if name.is_null() { String::new() } else { text(name) })
        }
    })
}

#[cfg(feature = "pg18")]
pub fn deferred_code() -> Option<String> {
    None
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
    let found = with_snapshot(|| as_superuser(all_cursors)).unwrap_or_else(|error| failed(&error));
    found
        .into_iter()
        .filter(|(name, opened)| *name != active && since.is_none_or(|since| *opened >= since))
        .map(|(name, _)| name)
        .collect()
}

/// Each cursor's name and when it was opened. Asked at both ends of every impersonation, so it is planned once.
fn all_cursors() -> Result<Vec<(String, TimestampTz)>, pgrx::spi::Error> {
    thread_local! {
        static QUERY: RefCell<Option<OwnedPreparedStatement>> = const { RefCell::new(None) };
    }
    Spi::connect(|client| {
        QUERY.with_borrow_mut(|query| {
            if query.is_none() {
                let text = "SELECT name, creation_time FROM pg_catalog.pg_cursor()";
                *query = Some(client.prepare(text, &[])?.keep());
            }
            let row = |row: pgrx::spi::SpiHeapTupleData| {
                let opened = row.get::<TimestampWithTimeZone>(2)?;
                Ok((row.get(1)?.unwrap_or_default(), opened.map_or(0, TimestampTz::from)))
            };
            match query.as_ref() {
                Some(query) => client.select(query, None, &[])?.map(row).collect(),
                None => Ok(Vec::new()),
            }
        })
    })
}

/// What is in the session's own temporary schema.
pub fn temporary_objects() -> Vec<Object> {
    if temporary_schema().is_none() {
        return Vec::new();
    }
    // Everything that is in a schema depends on it, but for what is a part of another object.
    let rows = |classes: &str| {
        let query = format!(
            "SELECT pg_catalog.array_agg({classes} ORDER BY classid, objid) FROM pg_catalog.pg_depend
              WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
                AND refobjid = pg_catalog.pg_my_temp_schema() AND objsubid = 0"
        );
        match Spi::get_one::<Vec<Oid>>(&query) {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => failed(&error),
        }
    };
    let (classes, objects) = with_snapshot(|| as_superuser(|| (rows("classid"), rows("objid"))));
    classes.into_iter().zip(objects).collect()
}

fn temporary_schema() -> Option<Oid> {
    // SAFETY: returns a global.
    let schema = unsafe { pgrx::direct_function_call::<Oid>(pg_sys::pg_my_temp_schema, &[]) };
    schema.filter(|&schema| schema != Oid::INVALID)
}

/// Whether statements of this kind leave something that has to be taken down.
pub fn concerns(kind: NodeTag) -> bool {
    matches!(kind, NodeTag::T_PrepareStmt | NodeTag::T_ListenStmt)
}

/// Takes down what a statement that is about to run under an impersonation will leave. What is there already is not its
/// doing.
pub fn note(utility: &Utility, impersonation: [u8; 16]) {
    // SAFETY: the statement is what the server is about to run; names of parse trees are strings, copied at once.
    let (is_channel, name) = unsafe {
        let node = (*utility.statement).utilityStmt;
        match tag(node) {
            Some(NodeTag::T_PrepareStmt) => {
                let name = (*node.cast::<pg_sys::PrepareStmt>()).name;
                if name.is_null() || !pg_sys::FetchPreparedStatement(name, false).is_null() {
                    return;
                }
                (false, CStr::from_ptr(name).to_owned())
            }
            Some(NodeTag::T_ListenStmt) => {
                let name = (*node.cast::<pg_sys::ListenStmt>()).conditionname;
                (true, CStr::from_ptr(name).to_owned())
            }
            _ => return,
        }
    };
    if is_channel && listens(&name) {
        return;
    }
    let list = if is_channel { &CHANNELS } else { &STATEMENTS };
    list.with_borrow_mut(|noted| {
        noted.retain(|(_, known)| *known != name);
        noted.push((impersonation, name));
    });
}

fn listens(channel: &CStr) -> bool {
    // Bytes, as the server's encoding need not be UTF-8.
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_listening_channels() c
                                 WHERE pg_catalog.convert_to(c, pg_catalog.getdatabaseencoding()) = $1)";
    let found = with_snapshot(|| as_superuser(|| Spi::get_one_with_args::<bool>(query, &[channel.to_bytes().into()])));
    match found {
        Ok(found) => found == Some(true),
        Err(error) => failed(&error),
    }
}

/// Removes the prepared statements that were noted under these impersonations. A statement that the protocol has made
/// since under such a name is the client's own.
///
/// Raises nothing, so it may be called while a transaction ends: it looks up and deletes an entry of a hash table, and
/// lets go of a plan. Whoever runs that plan holds it too.
pub fn drop_statements(of: impl Fn(&[u8; 16]) -> bool) {
    let taken: Vec<CString> = STATEMENTS.with(|noted| {
        let Ok(mut noted) = noted.try_borrow_mut() else {
            return Vec::new();
        };
        let (gone, kept) = std::mem::take(&mut *noted).into_iter().partition(|(id, _)| of(id));
        *noted = kept;
        Noted::into_iter(gone).map(|(_, name)| name).collect()
    });
    for name in taken {
        // SAFETY: without showError neither raises for a name that isn't there.
        unsafe {
            let statement = pg_sys::FetchPreparedStatement(name.as_ptr(), false);
            if !statement.is_null() && (*statement).from_sql {
                pg_sys::DropPreparedStatement(name.as_ptr(), false);
            }
        }
    }
}

/// Forgets what was noted under impersonations that are over. Raises nothing.
pub fn forget(over: impl Fn(&[u8; 16]) -> bool) {
    for list in [&STATEMENTS, &CHANNELS] {
        list.with(|noted| {
            if let Ok(mut noted) = noted.try_borrow_mut() {
                noted.retain(|(id, _)| !over(id));
            }
        });
    }
}

/// Closes all large objects: one is read with the rights of whoever opened it.
pub fn close_large_objects() {
    extern "C-unwind" {
        fn AtEOXact_LargeObject(is_commit: bool);
    }
    // SAFETY: what the end of the transaction does; with none open it does nothing.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| AtEOXact_LargeObject(true)) }
}

/// Takes away what came up since: open cursors and large objects, statements of SQL's PREPARE and channels of LISTEN that
/// were noted under these impersonations, temporary objects but those of `before`.
///
/// They would act on the impersonator: a temporary relation goes before others of its name, a prepared statement waits
/// under a known name, a cursor's query goes on as whoever fetches. A driver's own prepared statements stay: only the
/// client can make them.
pub fn remove(since: TimestampTz, before: &[Object], of: impl Fn(&[u8; 16]) -> bool) {
    let cursors = open_cursors(Some(since));
    // LISTEN is undone with the transaction, so its channels stay noted until that is over.
    let channels: Vec<CString> = CHANNELS.with_borrow(|noted| {
        let ended = noted.iter().filter(|(id, _)| of(id));
        ended.map(|(_, name)| name.clone()).collect()
    });
    close_large_objects();
    drop_statements(of);
    for channel in channels {
        unlisten(&channel);
    }
    if !cursors.is_empty() {
        with_snapshot(|| {
            as_superuser(|| {
                for cursor in cursors {
                    run(&format!("CLOSE {}", quoted(&cursor)));
                }
            });
        });
    }
    let objects = temporary_objects();
    let mut since = objects.iter().filter(|object| !before.contains(object)).peekable();
    if since.peek().is_some() {
        with_snapshot(|| drop_objects(since));
    }
}

fn unlisten(channel: &CStr) {
    extern "C-unwind" {
        fn Async_Unlisten(channel: *const std::ffi::c_char);
    }
    // SAFETY: what UNLISTEN does; one that nobody listens to does nothing.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) }
}

/// As the end of a session drops its temporary objects (namespace.c, RemoveTempRelations): without statements, so that
/// no event trigger runs, and whether or not the transaction may write.
fn drop_objects<'a>(objects: impl Iterator<Item = &'a Object>) {
    let flags =
        pg_sys::PERFORM_DELETION_INTERNAL | pg_sys::PERFORM_DELETION_QUIETLY | pg_sys::PERFORM_DELETION_SKIP_EXTENSIONS;
    // SAFETY: the list and what is on it live in this call; it raises if an object is in use.
    unsafe {
        let addresses = pg_sys::new_object_addresses();
        for &(class, object) in objects {
            let address = pg_sys::ObjectAddress {
                classId: class,
                objectId: object,
                objectSubId: 0,
            };
            pg_sys::add_exact_object_address(&raw const address, addresses);
        }
        pg_sys::performMultipleDeletions(addresses, pg_sys::DropBehavior::DROP_CASCADE, flags as i32);
        pg_sys::free_object_addresses(addresses);
        pg_sys::CommandCounterIncrement();
    }
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
