//! Who the process is, as core's miscinit.c keeps it.

use pgrx::pg_sys::{self, Oid};
use std::ffi::CStr;

/// Asked for with each statement. They raise nothing, so they are called without a place to catch what they raise.
mod plain {
    use super::{pg_sys, Oid};
    extern "C-unwind" {
        pub fn GetSessionUserId() -> Oid;
        pub fn GetOuterUserId() -> Oid;
        pub fn IsTransactionState() -> bool;
        pub fn IsAbortedTransactionBlockState() -> bool;
        pub fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
        pub fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
        pub fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
    }
}

/// `session_user`.
pub fn session_user() -> Oid {
    // SAFETY: reads a global; asserts only that authentication is done.
    unsafe { plain::GetSessionUserId() }
}

/// The role whose privileges count right now.
pub fn current_user() -> Oid {
    // SAFETY: as above.
    unsafe { pg_sys::GetUserId() }
}

/// The role that SET ROLE (or an impersonation) put in force, outside security-definer functions.
pub fn role_in_force() -> Oid {
    // SAFETY: as above.
    unsafe { plain::GetOuterUserId() }
}

/// The role of SET ROLE, if one is in force.
pub fn set_role() -> Option<Oid> {
    // SAFETY: as above.
    let role = unsafe { pg_sys::GetCurrentRoleId() };
    (role != Oid::INVALID).then_some(role)
}

/// Whether the role of SET ROLE counts as a superuser, as SHOW is_superuser says.
pub fn role_is_superuser() -> bool {
    // SAFETY: reads a setting that always exists.
    let value = unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"is_superuser".as_ptr(), false, false)) };
    value == c"on"
}

/// Puts a role in force, or the session user with None. Reads no catalog and raises nothing, so it may be called while
/// settings are popped at the end of a transaction.
pub fn put_in_force(role: Option<(Oid, bool)>) {
    let (role, superuser) = role.unwrap_or((Oid::INVALID, false));
    // SAFETY: callers are assign hooks, where core itself calls it.
    unsafe { pg_sys::SetCurrentRoleId(role, superuser) }
}

/// Whether catalogs can be read and errors raised; false while a transaction ends.
pub fn in_transaction() -> bool {
    // SAFETY: reads transaction state.
    unsafe { plain::IsTransactionState() }
}

/// How many savepoints the current transaction is inside of.
pub fn savepoints() -> usize {
    // SAFETY: reads transaction state; 1 is the transaction itself.
    usize::try_from(unsafe { pg_sys::GetCurrentTransactionNestLevel() } - 1).unwrap_or(0)
}

/// Whether a configuration file is being read, which happens between any two messages of the client.
pub fn reading_configuration() -> bool {
    // SAFETY: a context always has a name; this one's is a static string of ProcessConfigFile (guc-file.l).
    unsafe {
        let name = (*pg_sys::CurrentMemoryContext).name;
        !name.is_null() && CStr::from_ptr(name) == c"config file processing"
    }
}

/// Whether the client began a transaction block.
pub fn in_block() -> bool {
    // SAFETY: reads transaction state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Whether each statement of the transaction sees what was committed before it.
pub fn sees_newest() -> bool {
    // SAFETY: reads a variable of the transaction.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}

/// Whether a trigger is running.
pub fn in_trigger() -> bool {
    // SAFETY: returns a variable of the server's.
    unsafe { pgrx::direct_function_call::<i32>(pg_sys::pg_trigger_depth, &[]) }.is_some_and(|depth| depth > 0)
}

/// Whether a failed transaction block waits for its ROLLBACK.
pub fn in_failed_block() -> bool {
    // SAFETY: reads transaction state.
    unsafe { plain::IsAbortedTransactionBlockState() }
}

/// Whether this process is a parallel worker taking over its leader's settings.
pub fn starting_parallel_worker() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::InitializingParallelWorker }
}

/// Whether this process is a parallel worker.
pub fn parallel_worker() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// The part of the transaction that is going on: numbers that grow, 1 for the transaction itself.
pub fn subtransaction() -> u32 {
    // SAFETY: reads transaction state.
    unsafe { plain::GetCurrentSubTransactionId() }
}

/// The name of a role, in the server's encoding; None when it is gone.
pub fn role_name(role: Oid) -> Option<Vec<u8>> {
    // SAFETY: with noerr it returns null for what it doesn't find; else a palloc'ed string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes().to_vec())
    }
}

/// The role of that exact name.
pub fn role_named(name: &CStr) -> Option<Oid> {
    // SAFETY: a look-up by name; with missing_ok it returns InvalidOid.
    let role = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (role != Oid::INVALID).then_some(role)
}

/// The role that logged in, whatever SET SESSION AUTHORIZATION said since.
pub fn authenticated_user() -> Oid {
    // SAFETY: a plain global of the server's.
    unsafe { pg_sys::GetAuthenticatedUserId() }
}

/// Whether the role is a superuser.
pub fn superuser(role: Oid) -> bool {
    // SAFETY: a catalog look-up in a transaction.
    unsafe { pg_sys::superuser_arg(role) }
}

/// This process.
pub fn pid() -> i32 {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyProcPid }
}

/// The database that this process is connected to.
pub fn database() -> Oid {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyDatabaseId }
}

/// The clock.
pub fn now() -> pg_sys::TimestampTz {
    // SAFETY: cannot raise.
    unsafe { plain::GetCurrentTimestamp() }
}

/// When the client's message came that is being processed.
pub fn statement_start() -> pg_sys::TimestampTz {
    // SAFETY: reads a global.
    unsafe { plain::GetCurrentStatementStartTimestamp() }
}

/// When this process started, in seconds since 1970: half of what log_line_prefix shows as %c.
pub fn session_start() -> i64 {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyStartTime }
}

/// `application_name`, without the trip through the settings.
pub fn application_name<'a>() -> Option<&'a [u8]> {
    // SAFETY: null or a string that the settings machinery keeps until the name changes, which no push outlives.
    unsafe {
        let name = pg_sys::application_name;
        (!name.is_null() && *name != 0).then(|| CStr::from_ptr(name).to_bytes())
    }
}

/// The client's address, as inet_client_addr() gives it; None on a Unix socket.
pub fn client_address() -> Option<Vec<u8>> {
    // SAFETY: both functions read what the connection began with; the text is palloc'ed.
    unsafe {
        let address = pgrx::direct_function_call_as_datum(pg_sys::inet_client_addr, &[])?;
        let text = pgrx::direct_function_call_as_datum(pg_sys::inet_out, &[Some(address)])?;
        Some(CStr::from_ptr(text.cast_mut_ptr()).to_bytes().to_vec())
    }
}

/// Cuts text to at most `limit` bytes, between two characters of the server's encoding.
pub fn cut(text: &[u8], limit: usize) -> &[u8] {
    if text.len() <= limit {
        return text;
    }
    // SAFETY: reads `text` only; counts characters of the database's encoding.
    let length = unsafe {
        pg_sys::pg_mbcliplen(
            text.as_ptr().cast(),
            text.len() as i32,
            i32::try_from(limit).unwrap_or(0),
        )
    };
    &text[..usize::try_from(length).unwrap_or(0).min(limit)]
}

/// Whether the server is loading `shared_preload_libraries`.
pub fn preloading() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the current user may see what others do.
pub fn may_read_all_stats() -> bool {
    // SAFETY: a catalog look-up in a transaction.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS)) }
}

/// Whether the current user may end others' connections.
pub fn may_signal() -> bool {
    // SAFETY: a catalog look-up in a transaction.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), Oid::from(pg_sys::ROLE_PG_SIGNAL_BACKEND)) }
}

/// When the transaction began: no two of a session begin at the same time.
pub fn transaction_start() -> i64 {
    // SAFETY: reads transaction state.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// What the statement changed is seen by what this session reads from here on.
pub fn see_own_changes() {
    // SAFETY: in a transaction, between the parts of a statement.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// The name of this session's database.
pub fn database_name() -> Vec<u8> {
    name_of_database(database())
}

/// The name of a database; empty when it is gone.
pub fn name_of_database(database: Oid) -> Vec<u8> {
    // SAFETY: null when it isn't found; else a palloc'ed string.
    unsafe {
        let name = pg_sys::get_database_name(database);
        if name.is_null() {
            Vec::new()
        } else {
            CStr::from_ptr(name).to_bytes().to_vec()
        }
    }
}

/// A timestamp for SQL.
pub fn timestamp(time: pg_sys::TimestampTz) -> Option<pgrx::datum::TimestampWithTimeZone> {
    // SAFETY: a TimestampTz is its datum.
    unsafe { pgrx::FromDatum::from_datum(pg_sys::Datum::from(time), false) }
}

/// The text of the client's message that is being processed; empty when there is none.
pub fn client_message<'a>() -> &'a [u8] {
    // SAFETY: null, or a string that lives until the next message.
    unsafe {
        let text = pg_sys::debug_query_string;
        if text.is_null() {
            b""
        } else {
            CStr::from_ptr(text).to_bytes().trim_ascii()
        }
    }
}

/// Whether the client's message being processed is the protocol's call of a function, if no portal is active. Where
/// the server doesn't keep track of what it does, what comes without text is taken for one.
pub fn calls_function() -> bool {
    use pg_sys::BackendState::{STATE_DISABLED, STATE_FASTPATH, STATE_UNDEFINED};
    // SAFETY: the process' own entry, or null.
    let state = unsafe { pg_sys::MyBEEntry.as_ref() }.map_or(STATE_UNDEFINED, |entry| entry.st_state);
    super::version::is_client_backend()
        && (state == STATE_FASTPATH || (state == STATE_DISABLED && client_message().is_empty()))
}

/// A function's name with its schema's, as SQL has it.
pub fn function_name(function: Oid) -> Vec<u8> {
    // SAFETY: look-ups that give null for what isn't there; palloc'ed strings.
    unsafe {
        let (name, schema) = (
            pg_sys::get_func_name(function),
            pg_sys::get_namespace_name(pg_sys::get_func_namespace(function)),
        );
        if name.is_null() || schema.is_null() {
            return Vec::new();
        }
        CStr::from_ptr(pg_sys::quote_qualified_identifier(schema, name))
            .to_bytes()
            .to_vec()
    }
}

/// Text of the server's encoding as Rust wants it.
pub fn to_utf8(text: &[u8]) -> String {
    // SAFETY: converts `text.len()` bytes; returns its argument where there is nothing to convert, else a palloc'ed string.
    let converted = unsafe {
        let converted =
            pg_sys::pg_server_to_any(text.as_ptr().cast(), text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted.is_null() || std::ptr::eq(converted.cast_const().cast(), text.as_ptr()) {
            None
        } else {
            Some(CStr::from_ptr(converted).to_bytes())
        }
    };
    String::from_utf8_lossy(converted.unwrap_or(text)).into_owned()
}

/// As `to_utf8`, and raises nothing: what means nothing in the server's encoding is replaced.
pub fn to_utf8_lossy(text: &[u8]) -> String {
    // SAFETY: reads a global.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    let as_it_is = [pg_sys::pg_enc::PG_UTF8 as i32, pg_sys::pg_enc::PG_SQL_ASCII as i32].contains(&encoding);
    if as_it_is || text.is_ascii() {
        return String::from_utf8_lossy(text).into_owned();
    }
    let utf8 = pg_sys::pg_enc::PG_UTF8 as i32;
    // SAFETY: a catalog look-up in a transaction.
    let conversion = unsafe { pg_sys::FindDefaultConversionProc(encoding, utf8) };
    if conversion == Oid::INVALID {
        return String::from_utf8_lossy(text).into_owned();
    }
    let mut result = String::new();
    let mut rest = text.to_vec();
    while !rest.is_empty() {
        // A byte grows to four at most (MAX_CONVERSION_GROWTH), and a zero ends it.
        let mut converted = vec![0_u8; rest.len() * 4 + 1];
        // SAFETY: both buffers are as long as is said; without errors it returns how far it got.
        let taken = unsafe {
            pg_sys::pg_do_encoding_conversion_buf(
                conversion,
                encoding,
                utf8,
                rest.as_mut_ptr(),
                rest.len() as i32,
                converted.as_mut_ptr(),
                converted.len() as i32,
                true,
            )
        };
        let end = converted.iter().position(|byte| *byte == 0).unwrap_or(converted.len());
        result.push_str(&String::from_utf8_lossy(&converted[..end]));
        let taken = usize::try_from(taken).unwrap_or_default().min(rest.len());
        if taken == rest.len() {
            break;
        }
        result.push(char::REPLACEMENT_CHARACTER);
        rest.drain(..=taken);
    }
    result
}

/// The way back; raises for what the server's encoding has no character for.
pub fn to_server(text: &str) -> Vec<u8> {
    // SAFETY: as above.
    unsafe {
        let converted =
            pg_sys::pg_any_to_server(text.as_ptr().cast(), text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted.is_null() || std::ptr::eq(converted.cast_const().cast(), text.as_ptr()) {
            text.as_bytes().to_vec()
        } else {
            CStr::from_ptr(converted).to_bytes().to_vec()
        }
    }
}

/// Whether this server is a standby.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Words for an error: they pass through Rust as UTF-8, so elsewhere what isn't ASCII is left out.
pub fn speakable(words: &str) -> std::borrow::Cow<'_, str> {
    // SAFETY: reads a global.
    let utf8 = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32;
    if utf8 || words.is_ascii() {
        words.into()
    } else {
        words
            .chars()
            .map(|c| if c.is_ascii() { c } else { '?' })
            .collect::<String>()
            .into()
    }
}
