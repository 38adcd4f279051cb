//! What a background worker needs of the server: registration, its start in its own process, transactions, and
//! recovery from errors; and what others ask about processes.

pub mod bulk;
pub mod nodes;
pub mod partitions;
pub mod rows;
pub mod state;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{FromDatum, PgTryBuilder};
use std::borrow::Cow;
use std::ffi::CStr;
use std::panic::AssertUnwindSafe;

/// A kind of worker: as `pg_stat_activity` shows it in backend_type and application_name, and its function.
struct Kind {
    name: &'static CStr,
    function: &'static CStr,
}

const WRITER: Kind = Kind {
    name: c"impersonate audit writer",
    function: c"impersonate_audit_writer_main",
};

/// Sends a standby's events to the primary.
const SHIPPER: Kind = Kind {
    name: c"impersonate audit shipper",
    function: c"impersonate_audit_shipper_main",
};

/// Sees to it that spools have their shippers, and after a promotion their writers.
const LAUNCHER: Kind = Kind {
    name: c"impersonate spool launcher",
    function: c"impersonate_spool_launcher_main",
};

const LIBRARY: &CStr = c"impersonate";

/// Seconds after which the postmaster starts a worker again that ended with a failure. A worker that ended as it should
/// isn't started again.
const RESTART_SECONDS: i32 = 5;

unsafe extern "C-unwind" {
    /// The server's own: sets `ShutdownRequestPending` and the latch. Declared here because a signal handler must be
    /// the bare function, without pgrx's boundary round it.
    fn SignalHandlerForShutdownRequest(signal: std::ffi::c_int);
    /// The server's own: sets `ConfigReloadPending` and the latch.
    fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
}

unsafe extern "C" {
    /// Sets a signal's handler and raises nothing. From 18 on a macro hides its name. It returned the old handler before.
    #[cfg_attr(feature = "pg18", link_name = "pqsignal_be")]
    fn pqsignal(signal: std::ffi::c_int, handler: unsafe extern "C-unwind" fn(std::ffi::c_int));
}

const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;

fn worker(kind: &Kind, flags: u32, restart: i32, argument: u64) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | flags) as i32,
        // On a standby too.
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: restart,
        bgw_main_arg: pg_sys::Datum::from(argument),
        bgw_notify_pid: 0,
        ..Default::default()
    };
    copy(kind.name, &mut worker.bgw_name);
    copy(kind.name, &mut worker.bgw_type);
    copy(LIBRARY, &mut worker.bgw_library_name);
    copy(kind.function, &mut worker.bgw_function_name);
    worker
}

fn register_dynamic(kind: &Kind, restart: i32, argument: u64) -> bool {
    let mut worker = worker(kind, pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION, restart, argument);
    // SAFETY: the struct is complete, and copied by the callee; no handle is asked for.
    unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, std::ptr::null_mut()) }
}

/// Registers an audit writer for lane `lane`. Returns false when no worker slot is free, and during a shutdown's last
/// phase the registration comes to nothing. Raises nothing.
pub fn register(lane: usize, generation: u32) -> bool {
    register_dynamic(&WRITER, RESTART_SECONDS, (lane as u64) << 32 | u64::from(generation))
}

/// As [`register`], a shipper for a database.
pub fn register_shipper(database: u32) -> bool {
    register_dynamic(&SHIPPER, pg_sys::BGW_NEVER_RESTART, u64::from(database))
}

/// Registers the launcher. While libraries are preloaded.
pub fn register_launcher() {
    let connection = pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION;
    let mut worker = worker(&LAUNCHER, connection, RESTART_SECONDS, 0);
    // SAFETY: in the postmaster; the struct is complete, and copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// What was registered: (lane, generation).
pub fn registered(argument: pg_sys::Datum) -> (usize, u32) {
    let argument = argument.value() as u64;
    ((argument >> 32) as usize, argument as u32)
}

fn copy(from: &CStr, to: &mut [std::ffi::c_char]) {
    // The rest, and so the terminator, is zero already.
    let room = to.len() - 1;
    to[..room]
        .iter_mut()
        .zip(from.to_bytes())
        .for_each(|(to, from)| *to = *from as std::ffi::c_char);
}

/// Ends this process such that the postmaster starts the worker again.
#[allow(unreachable_code)] // The bindings of 18 don't know that proc_exit never returns.
pub fn end_failed() -> ! {
    // SAFETY: ends the process, outside a transaction.
    unsafe { pg_sys::proc_exit(1) };
    std::process::abort()
}

/// Runs `callback` when this process ends, after its transaction was aborted and while it can still take locks.
pub fn at_exit(callback: unsafe extern "C-unwind" fn(i32, pg_sys::Datum)) {
    // SAFETY: the callback is a function of this library, which is never unloaded.
    unsafe { pg_sys::on_shmem_exit(Some(callback), pg_sys::Datum::from(0)) };
}

/// Signals as the writer wants them: SIGTERM only asks, SIGHUP too, SIGINT cancels what it does.
pub fn set_up_signals() {
    // SAFETY: both handlers are the server's own; background workers start with signals blocked for just this.
    unsafe {
        pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
        pqsignal(SIGHUP, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Connects a writer to a database as the bootstrap superuser, also where connections aren't allowed, or to none but the
/// shared catalogs. FATAL if that can't be.
pub fn connect(database: Option<u32>) {
    connect_as(&WRITER, database);
}

/// As [`connect`], a shipper.
pub fn connect_shipper(database: u32) {
    connect_as(&SHIPPER, Some(database));
}

/// As [`connect`], the launcher, to no database.
pub fn connect_launcher() {
    connect_as(&LAUNCHER, None);
}

fn connect_as(kind: &Kind, database: Option<u32>) {
    let database = database.map_or(pg_sys::InvalidOid, pg_sys::Oid::from);
    // SAFETY: called once, in a background worker that registered for it. No role: as the server's own launchers do,
    // it is the bootstrap superuser then, even if that can't log in.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            database,
            pg_sys::InvalidOid,
            pg_sys::BGWORKER_BYPASS_ALLOWCONN,
        );
        pg_sys::SetConfigOption(
            c"application_name".as_ptr(),
            kind.name.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Sets a setting for this process, whatever the database and the configuration say. One that this version doesn't have
/// is left out.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: C strings; a missing setting is allowed for the first call, and so known to exist for the second.
    unsafe {
        if !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// SIGTERM has come.
pub fn asked_to_end() -> bool {
    // SAFETY: reads a flag that a signal handler sets.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

/// Reads the configuration again if SIGHUP has come.
pub fn reload_if_asked() {
    // SAFETY: as the server's own loops do, outside a transaction.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Runs `work` in a transaction with SPI. An error leaves the transaction open: `recover` ends it.
pub fn transaction<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: outside a transaction, in a connected worker; in the order of the server's example `worker_spi`.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::SPI_connect();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = work();
    // SAFETY: as above.
    unsafe {
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
    result
}

/// An error as the writer remembers it.
pub struct Failure {
    pub sqlstate: [u8; 5],
    pub message: String,
    pub detail: Option<String>,
}

/// Runs `work`; if it raises or panics, aborts the transaction and returns what it was.
pub fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Failure> {
    PgTryBuilder::new(AssertUnwindSafe(|| Ok(work())))
        .catch_others(|caught| {
            let report = match &caught {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
                CaughtError::RustPanic { ereport, .. } => ereport,
            };
            Err(Failure {
                sqlstate: sqlstate(report.sql_error_code() as i32),
                message: report.message().to_owned(),
                detail: report.detail().map(str::to_owned),
            })
        })
        .execute()
        .inspect_err(|_| recover())
}

/// `unpack_sql_state` of the server.
fn sqlstate(code: i32) -> [u8; 5] {
    std::array::from_fn(|at| ((code >> (6 * at)) & 0x3F) as u8 + b'0')
}

/// Ends a failed transaction, as the server's own processes do after an error.
fn recover() {
    // SAFETY: outside of SPI calls, in a process that runs no other code. Locks that were held outside a transaction
    // are released as well.
    unsafe {
        pg_sys::error_context_stack = std::ptr::null_mut();
        pg_sys::AbortCurrentTransaction();
        pg_sys::LWLockReleaseAll();
        pg_sys::ConditionVariableCancelSleep();
        pg_sys::QueryCancelPending = 0;
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
    }
}

/// Tells the cumulative statistics what was done, so that autovacuum knows of the table's growth.
pub fn report_statistics(now: bool) {
    // SAFETY: outside a transaction.
    unsafe { pg_sys::pgstat_report_stat(now) };
}

/// Shows in `pg_stat_activity` whether the worker is at work.
pub fn report_activity(active: bool) {
    let state = if active {
        pg_sys::BackendState::STATE_RUNNING
    } else {
        pg_sys::BackendState::STATE_IDLE
    };
    // SAFETY: the command is a constant.
    unsafe { pg_sys::pgstat_report_activity(state, c"storing audit events".as_ptr()) };
}

/// End of the WAL of this process' last commit.
pub fn last_commit_lsn() -> u64 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::XactLastCommitEnd }
}

/// Returns when the WAL is on disk up to `lsn`.
pub fn flush_wal(lsn: u64) {
    // SAFETY: outside of recovery; a position that was inserted.
    unsafe { pg_sys::XLogFlush(lsn) };
}

/// The database of this process, or 0.
pub fn my_database() -> u32 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The encoding of this process' database, as clients name it.
pub fn my_encoding() -> &'static CStr {
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) }
}

/// Whether text is valid in the encoding of this process' database.
pub fn is_valid_text(text: &[u8]) -> bool {
    // SAFETY: looks at so many bytes, and raises nothing.
    unsafe {
        pg_sys::pg_verify_mbstr(
            pg_sys::GetDatabaseEncoding(),
            text.as_ptr().cast(),
            text.len() as i32,
            true,
        )
    }
}

/// Text that may not be valid in this database's encoding, as names of roles that were given in another: each byte of it
/// that isn't plain ASCII is written as `\xE2`, then.
pub fn as_valid_text(text: &[u8]) -> Cow<'_, [u8]> {
    if (text.is_ascii() && !text.contains(&0)) || is_valid_text(text) {
        return text.into();
    }
    let escaped = text.iter().flat_map(|byte| match byte {
        b' '..=b'~' => vec![*byte],
        _ => format!("\\x{byte:02X}").into_bytes(),
    });
    escaped.collect()
}

/// Keeps others from receiving for the same node until the transaction ends. `table` is the extension's own, and nobody
/// else locks a part of it as an object.
pub fn lock_node(table: u32, node: u16) {
    // SAFETY: in a transaction, not in recovery; waits, interruptible.
    unsafe {
        pg_sys::LockDatabaseObject(
            pg_sys::RelationRelationId,
            pg_sys::Oid::from(table),
            node,
            pg_sys::ExclusiveLock as i32,
        );
    }
}

/// The name of this process' database. Needs a transaction.
pub fn my_database_name() -> Vec<u8> {
    // SAFETY: a catalog lookup; the result is null or a C string, which is copied.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() {
            Vec::new()
        } else {
            CStr::from_ptr(name).to_bytes().to_vec()
        }
    }
}

/// This process' id.
pub fn my_pid() -> i32 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::MyProcPid }
}

pub fn in_parallel_worker() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// Whether this is a server of one process, without a postmaster that could start others.
pub fn is_alone() -> bool {
    // SAFETY: a variable of this process, which isn't the postmaster.
    unsafe { !pg_sys::IsUnderPostmaster }
}

pub fn in_recovery() -> bool {
    // SAFETY: reads shared state.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// A transaction is open, and not failed.
pub fn in_transaction() -> bool {
    // SAFETY: reads state of this process.
    unsafe { pg_sys::IsTransactionState() }
}

/// Whether a database exists. Needs a transaction.
pub fn database_exists(database: u32) -> bool {
    let id = pg_sys::SysCacheIdentifier::DATABASEOID as i32;
    let none = pg_sys::Datum::from(0);
    // SAFETY: a cache lookup by one key, of a shared catalog.
    unsafe { pg_sys::SearchSysCacheExists(id, pg_sys::Datum::from(database), none, none, none) }
}

/// Whether `pid` waits for a heavyweight lock that this process holds, or for one of somebody who does.
/// `pg_blocking_pids` says who waits for whom; its answer for a member of a parallel group is the leader.
pub fn waits_for_me(pid: i32) -> bool {
    /// A chain longer than this is somebody else's trouble.
    const LIMIT: usize = 100;
    let me = my_pid();
    let mut seen = vec![pid];
    let mut next = 0;
    while next < seen.len() && seen.len() < LIMIT {
        for blocker in blocking_pids(seen[next]) {
            if blocker == me {
                return true;
            }
            if blocker != 0 && !seen.contains(&blocker) {
                seen.push(blocker);
            }
        }
        next += 1;
    }
    false
}

/// Who holds, or waits before it for, a heavyweight lock that `pid` waits for.
pub fn blocking_pids(pid: i32) -> Vec<i32> {
    // SAFETY: pg_blocking_pids(integer) returns an array of integers without NULLs, which is copied.
    unsafe {
        let array = pg_sys::OidFunctionCall1Coll(
            pg_sys::Oid::from(pg_sys::F_PG_BLOCKING_PIDS),
            pg_sys::InvalidOid,
            pg_sys::Datum::from(pid),
        );
        Vec::<i32>::from_datum(array, false).unwrap_or_default()
    }
}
