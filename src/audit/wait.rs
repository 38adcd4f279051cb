//! Waiting for the writer: for room, for an event to be stored, for the writer to leave.
//!
//! Whoever waits also looks after the writer: starts it when there is none, gives up when it fails again and again, and
//! looks whether it waits for the waiter itself, which the server's deadlock detector can't see.

use super::queue::{self, LaneHandle, Reserve, Status};
use crate::pg::latch::{check_for_interrupts, now, Condition};
use crate::pg::trampoline;
use crate::pg::worker;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{function_name, PgLogLevel, PgSqlErrorCode};
use std::cell::Cell;

/// Failures in a row after which waiting has no point.
const FAILURES: u32 = 3;

/// Milliseconds that a waiter sleeps at most, after which it first looks whether the writer waits for it, and after which
/// it looks later.
const FIRST_LOOK: u32 = 100;
const LATER_LOOKS: u32 = 1000;

/// Microseconds after which a waiter for room keeps others from taking it in small pieces.
const PATIENCE: i64 = 500_000;

/// Microseconds to wait for room that others have reserved, while nothing changes.
const STALL_LIMIT: i64 = 10_000_000;

/// Microseconds to wait for a writer to leave.
const EVICTION_LIMIT: i64 = 10_000_000;

fn raise(code: PgSqlErrorCode, message: &'static str, detail: Option<String>, hint: &str) -> ! {
    let mut report = ErrorReport::new(code, message, function_name!()).set_hint(hint);
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an error was raised")
}

/// A wait, and what it remembers of the writer.
struct Watch {
    lane: LaneHandle,
    began: i64,
    next_look: i64,
    /// Failures of the writer before this wait began.
    failures: u32,
    asked_to_retry: bool,
}

thread_local! {
    static WAITING: Cell<Option<LaneHandle>> = const { Cell::new(None) };
}

/// At the end of a backend, which may come in the middle of a wait. Neither waits nor raises.
pub(super) fn forget_backend() {
    if let Some(lane) = WAITING.take() {
        lane.count_waiting(false);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WAITING.set(None);
        self.lane.count_waiting(false);
    }
}

impl Watch {
    fn new(lane: LaneHandle) -> Self {
        // Whoever is ended meanwhile is counted off at its exit.
        trampoline::follow_transactions();
        lane.count_waiting(true);
        WAITING.set(Some(lane));
        let began = now();
        Watch {
            lane,
            began,
            next_look: began + i64::from(FIRST_LOOK) * 1000,
            failures: lane.status().failures,
            asked_to_retry: false,
        }
    }

    /// Sees to it that there is a writer that can get on; raises when that can't be.
    fn look(&mut self) {
        let status = self.lane.status();
        self.failures = self.failures.min(status.failures);
        // However often it failed before: after a new wait began, it gets one more try.
        if status.failures >= FAILURES && status.failures > self.failures {
            raise_failing(self.lane);
        }
        if status.absent {
            if !start_writer(self.lane) {
                raise_no_worker();
            }
        } else if status.failures > 0 && !self.asked_to_retry {
            self.asked_to_retry = true;
            self.lane.poke();
        }
        if now() >= self.next_look {
            self.next_look = now() + i64::from(LATER_LOOKS) * 1000;
            look_for_deadlock(&status);
        }
        if queue::wait_limit().is_some_and(|limit| self.age() > limit) {
            raise_in_vain(&status, self.age());
        }
    }

    fn age(&self) -> i64 {
        now() - self.began
    }
}

/// Waits until `position` is stored.
pub(super) fn stored(lane: LaneHandle, position: u64) {
    let mut watch = Watch::new(lane);
    let changed = lane.changed_at(position);
    changed.prepare();
    lane.want(position);
    while !lane.is_stored(position) {
        watch.look();
        changed.sleep(FIRST_LOOK);
    }
    Condition::done();
}

/// Reserves `bytes` in the lane of this database and returns that lane. `known` is the lane used last, `held` what is
/// reserved there.
pub(super) fn reserve(known: Option<LaneHandle>, bytes: u64, held: u64) -> LaneHandle {
    let database = worker::my_database();
    let pid = worker::my_pid();
    // The usual case: lane known, writer at work, room left.
    if let Some(lane) = known.filter(|_| within_limit(bytes, held)) {
        if let Reserve::Done = lane.try_reserve(database, bytes, held, pid) {
            return lane;
        }
    }
    check_possible(bytes, held);
    let mut lane = assign(database);
    let mut watch = Watch::new(lane);
    let mut stall = Stall::new();
    loop {
        lane.changed().prepare();
        match lane.try_reserve(database, bytes, held, pid) {
            Reserve::Done => break,
            Reserve::Moved => {
                lane = assign(database);
                watch = Watch::new(lane);
                continue;
            }
            Reserve::NoWriter => {
                check_extension();
                lane.extension_exists(true);
                watch.look();
                // A writer on its way is good enough, unless the last one failed.
                if let Reserve::Done = lane.try_reserve(database, bytes, held, pid) {
                    break;
                }
                lane.want(lane.head());
            }
            Reserve::Full => {
                lane.want_room();
                lane.want(lane.head());
                if let Reserve::Done = lane.try_reserve(database, bytes, held, pid) {
                    break;
                }
                watch.look();
                if watch.age() > PATIENCE {
                    lane.press(pid);
                }
                if stall.lasts(lane) {
                    raise_reserved(lane, bytes);
                }
            }
        }
        lane.changed().sleep(FIRST_LOOK);
    }
    Condition::done();
    lane
}

/// Whether nothing has moved in a queue that is empty of events, but full of reservations.
struct Stall {
    since: i64,
    seen: (u64, u64),
}

impl Stall {
    fn new() -> Self {
        Stall {
            since: now(),
            seen: (0, 0),
        }
    }

    fn lasts(&mut self, lane: LaneHandle) -> bool {
        let seen = (lane.head(), lane.status().reserved);
        if seen != self.seen || !lane.is_empty() {
            *self = Stall { since: now(), seen };
        }
        now() - self.since > STALL_LIMIT
    }
}

/// See `evict_writer`. `mine` is what the caller has reserved in that database's lane.
pub(super) fn evict(database: u32, mine: u64) {
    let Some(lane) = queue::find(database) else { return };
    let began = now();
    lane.changed().prepare();
    loop {
        let status = lane.status();
        if status.database != database || now() - began > EVICTION_LIMIT {
            break;
        }
        if status.absent && !status.leaving {
            if lane.is_empty() || status.failures >= FAILURES {
                break;
            }
            start_writer(lane);
        }
        if !status.evict {
            lane.ask_to_leave(mine);
        }
        if status.reserved > mine {
            break;
        }
        lane.changed().sleep(FIRST_LOOK);
    }
    Condition::done();
}

/// Starts a writer if the lane lacks one. Returns false when no worker can be registered. Raises nothing.
pub(super) fn start_writer(lane: LaneHandle) -> bool {
    let Some(generation) = lane.begin_start() else {
        return true;
    };
    let started = worker::register(lane.index, generation);
    if !started {
        lane.abandon_start(generation);
    }
    started
}

fn assign(database: u32) -> LaneHandle {
    if let Some(lane) = queue::assign(database) {
        return lane;
    }
    super::writer::clear_deserted(database);
    queue::assign(database).unwrap_or_else(|| {
        raise(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "all impersonate audit queues are in use",
            Some("Each database with impersonations needs a queue of its own.".into()),
            "Raise impersonate.audit_queues and restart the server.",
        )
    })
}

/// A session may have half of the queue, so that two never wait for each other's room from the start.
fn within_limit(bytes: u64, held: u64) -> bool {
    bytes.saturating_add(held) <= queue::max_reservation() as u64
}

/// Raises for what no waiting can mend.
fn check_possible(bytes: u64, held: u64) {
    if !queue::available() {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "impersonate has no audit queue",
            Some("The library was not loaded when the server started.".into()),
            "Add impersonate to shared_preload_libraries and restart the server.",
        );
    }
    if worker::my_database() == 0 {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot audit without a database",
            None,
            "Connect to a database.",
        );
    }
    if super::node::lacks_name() {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this standby has no name to keep audit events under",
            Some("Settings \"impersonate.node_name\" and \"cluster_name\" are empty.".into()),
            "Set impersonate.node_name to a name that no other node has, and reload the configuration.",
        );
    }
    if !within_limit(bytes, held) {
        raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "audit events are too large for the queue",
            Some(format!(
                "A session needs {} bytes, and half of the queue is {} bytes.",
                bytes.saturating_add(held),
                queue::max_reservation()
            )),
            "Raise impersonate.audit_queue_size and restart the server.",
        );
    }
}

fn check_extension() {
    if worker::in_transaction() && !super::writer::extension_exists() {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "extension impersonate is not created in this database",
            Some("There is no table to store audit events in.".into()),
            "Use CREATE EXTENSION impersonate.",
        );
    }
}

const NO_WORKER: (&str, &str, &str) = (
    "could not start impersonate audit writer",
    "No background worker slot is free.",
    "Raise max_worker_processes and restart the server.",
);

/// In single-user mode.
pub(super) fn raise_alone() -> ! {
    raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "impersonate cannot store audit events in single-user mode",
        None,
        "Start the server as usual.",
    )
}

fn raise_no_worker() -> ! {
    let (message, detail, hint) = NO_WORKER;
    raise(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        message,
        Some(detail.into()),
        hint,
    )
}

/// For whoever can go on without: the event is in the queue.
pub(super) fn warn_no_worker() {
    let (message, detail, hint) = NO_WORKER;
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        message,
        function_name!(),
    )
    .set_detail(format!(
        "{detail} The audit event waits in the queue, and is in the server log."
    ))
    .set_hint(hint)
    .report(PgLogLevel::WARNING);
}

/// Nothing is broken, but somebody or something keeps the writer from getting on.
fn raise_in_vain(status: &Status, age: i64) -> ! {
    let blockers = match status.writer_pid {
        0 => Vec::new(),
        writer => worker::blocking_pids(writer),
    };
    let seconds = age / 1_000_000;
    let (detail, hint) = match blockers.first() {
        Some(pid) => (
            format!(
                "The writer, process {}, waits for a lock that process {pid} holds.",
                status.writer_pid
            ),
            "See pg_locks for who holds a lock on impersonate.audit, and end that transaction.",
        ),
        None => (
            format!("The writer is process {}.", status.writer_pid),
            "The server log tells more; impersonate.audit_wait_limit says how long to wait.",
        ),
    };
    raise(
        PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
        "impersonate audit writer did not store events in time",
        Some(format!("They were waited for {seconds} seconds. {detail}")),
        hint,
    )
}

fn raise_failing(lane: LaneHandle) -> ! {
    let (sqlstate, message) = lane.last_error();
    raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "impersonate audit writer cannot store events",
        Some(format!("Its last error: {message} (SQLSTATE {sqlstate}).")),
        "Mend the cause; events are kept and stored as soon as that is possible. The server log tells more.",
    )
}

fn raise_reserved(lane: LaneHandle, bytes: u64) -> ! {
    raise(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        "impersonate audit queue has no room",
        Some(format!(
            "{bytes} bytes are needed; {} of {} are reserved by other sessions.",
            lane.status().reserved,
            queue::ring_size()
        )),
        "Raise impersonate.audit_queue_size and restart the server.",
    )
}

/// Raises if the writer waits, directly or through others, for a lock of this session, or for its COMMIT.
fn look_for_deadlock(status: &Status) {
    if status.writer_pid != 0 && worker::waits_for_me(status.writer_pid) {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            "impersonate audit writer waits for a lock that this transaction holds",
            Some("The transaction would wait for the writer, and the writer for the transaction.".into()),
            "Do not lock impersonate.audit while impersonating.",
        );
    }
    if worker::in_transaction() && super::writer::extension_is_mine() {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            "impersonate audit writer cannot store events before the extension is there",
            Some(
                "This transaction creates it, and would wait for the writer, and the writer for the transaction."
                    .into(),
            ),
            "COMMIT first.",
        );
    }
    check_for_interrupts();
}
