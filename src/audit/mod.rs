//! The audit: events go from the sessions through a queue in shared memory to `impersonate.audit` (SPEC section 5).
//!
//! A session *reserves* room when a statement begins, where waiting and failing are allowed, and *pushes* events into
//! what it reserved, from wherever it is: a push neither waits nor raises. One background worker per database, the
//! *writer*, stores the events in transactions of its own. A session that must not go on before its events are stored
//! waits for the *ticket* that the push returned.
//!
//! Sessions without a database, parallel workers and the writer itself have no events: all of this does nothing there,
//! except that `reserve` without a database raises.
//!
//! In single-user mode nobody could store events: they go to the server log, so that a server can be rescued whatever is to
//! be recorded. What must be stored is refused there: [`require_writer`].

mod chain;
mod event;
mod keeper;
mod launcher;
mod line;
pub mod node;
mod queue;
pub mod receive;
mod ship;
pub mod show;
mod spool;
mod spools;
pub mod verify;
mod wait;
mod writer;

pub use chain::stored as stored_hash;
pub use event::{Event, Kind, ListBuffer, SUCCESSFUL};
pub use line::{hexadecimal, iso_time};
pub use writer::is_writer;

use crate::pg::worker;
pub use queue::Figures;
use queue::{LaneHandle, Ticket};
use std::cell::Cell;

/// Defines the settings of the queue and the node. To be called from `_PG_init`.
pub fn define_settings() {
    queue::define_settings();
    node::define_settings();
}

/// What the writer of a standby does for those above it: it is there as long as somebody impersonates.
pub struct Watch {
    /// Whether there is somebody to be watched.
    pub wanted: fn() -> bool,
    /// Looks after them, outside of a transaction. May raise.
    pub look: fn(),
}

static WATCH: std::sync::OnceLock<Watch> = std::sync::OnceLock::new();

/// To be called while libraries are preloaded.
pub fn install(watch: Watch) {
    let _ = WATCH.set(watch);
}

fn watches() -> bool {
    WATCH.get().is_some_and(|watch| (watch.wanted)())
}

fn watch() {
    if let Some(watch) = WATCH.get().filter(|watch| (watch.wanted)()) {
        (watch.look)();
    }
}

/// In the writer itself: adds an event to its own queue, or to the server log if that is full.
pub fn push_as_writer(event: &Event) {
    let pushed = queue::find(worker::my_database()).and_then(|lane| {
        let position = lane.try_push(worker::my_database(), event, event.size())?;
        Some(position)
    });
    if pushed.is_none() {
        writer::log_event(event, writer::no_room());
    }
}

/// Asks for the queue's shared memory. To be called from `_PG_init`, while preloading only and after
/// `define_settings`.
pub fn init() {
    queue::init();
    spools::init();
    worker::register_launcher();
}

/// The largest event that the queue takes. Who builds an event cuts its statement and parameters to fit.
pub fn max_event_bytes() -> usize {
    queue::max_event_bytes()
}

/// The most that one session may have set aside while it asks for more.
pub fn max_reserved_bytes() -> usize {
    queue::max_reservation()
}

/// What this session has set aside.
pub fn reserved_bytes() -> usize {
    SESSION.with(|session| session.reserved.get()) as usize
}

/// The columns of `impersonate.audit` in the order of the hash, which is the last.
pub fn columns() -> impl Iterator<Item = &'static std::ffi::CStr> {
    writer::TARGET.columns.iter().map(|(name, _)| *name)
}

/// What this session has in the queue. While `reserved` isn't 0 the lane belongs to the session's database.
struct Session {
    lane: Cell<Option<LaneHandle>>,
    reserved: Cell<u64>,
}

thread_local! {
    static SESSION: Session = const { Session { lane: Cell::new(None), reserved: Cell::new(0) } };
}

/// Sets `bytes` aside for events to come, and sees to it that there is a writer.
///
/// Waits, interruptible, while the queue is full. Raises when the library isn't preloaded (55000), the extension isn't
/// created in this database (55000), on a standby without a name (55000), when all queues are taken or no worker can be started
/// (53400), when the writer can't store events (55000), and when the writer waits for a lock of the caller's own
/// transaction (55006).
pub fn reserve(bytes: usize) {
    if writer::is_writer() || worker::in_parallel_worker() || worker::is_alone() {
        return;
    }
    SESSION.with(|session| {
        let bytes = bytes as u64;
        let lane = wait::reserve(session.lane.get(), bytes, session.reserved.get());
        session.lane.set(Some(lane));
        session.reserved.set(session.reserved.get() + bytes);
    });
}

/// Gives back what was reserved and isn't needed. Neither waits nor raises.
pub fn release(bytes: usize) {
    SESSION.with(|session| {
        let bytes = session.reserved.get().min(bytes as u64);
        if let Some(lane) = session.lane.get().filter(|_| bytes != 0) {
            session.reserved.set(session.reserved.get() - bytes);
            lane.release(bytes);
        }
    });
}

/// Pushes an event into `reservation` bytes that were reserved before, and gives back what it doesn't need. Returns a
/// ticket for `wait_stored`. Neither waits nor raises.
///
/// An event that is larger than its reservation is stored without its statement, lists, reason and detail; if even that
/// finds no room it goes to the server log. It returns 0 then.
pub fn push_reserved(event: &Event, reservation: usize) -> u64 {
    if writer::is_writer() || worker::in_parallel_worker() {
        return 0;
    }
    if worker::is_alone() {
        return push_or_log(event);
    }
    SESSION.with(|session| {
        let held = session.reserved.get();
        let reservation = held.min(reservation as u64);
        let Some(lane) = session.lane.get().filter(|_| reservation != 0) else {
            return push_or_log(event);
        };
        let fits = |size: usize| size as u64 <= reservation;
        let bare = event.bare();
        let (event, size) = match event.size() {
            size if fits(size) => (event, size),
            _ => (&bare, bare.size()),
        };
        if !fits(size) {
            release(reservation as usize);
            return push_or_log(event);
        }
        let position = lane.push(event, size, reservation);
        session.reserved.set(held - reservation);
        after_push(lane, position)
    })
}

/// Pushes an event of a session that need not be impersonating: if there is room it goes into the queue, with a warning,
/// and also into the server log, if no writer can be started for it now. Otherwise waits and raises as `reserve` does.
pub fn push(event: &Event) -> u64 {
    if let Some(ticket) = try_push(event) {
        if Ticket::parse(ticket).is_some_and(|Ticket { lane, .. }| lane.lacks_writer()) {
            wait::warn_no_worker();
            // The queue doesn't outlive the server, whose restart may be what it takes.
            writer::log_event(event, "no background worker slot is free, so it waits in the queue");
        }
        return ticket;
    }
    let size = event.size();
    reserve(size);
    push_reserved(event, size)
}

/// Pushes an event if there is room right now; neither waits nor raises.
pub fn try_push(event: &Event) -> Option<u64> {
    if writer::is_writer() || worker::in_parallel_worker() {
        return None;
    }
    if worker::is_alone() {
        writer::log_event(event, writer::ALONE);
        return Some(0);
    }
    let database = worker::my_database();
    let size = event.size();
    if size > max_event_bytes() {
        return None;
    }
    let lane = SESSION
        .with(|session| session.lane.get())
        .or_else(|| queue::assign(database))?;
    let (lane, position) = match lane.try_push(database, event, size) {
        Some(position) => (lane, position),
        None => {
            let lane = queue::assign(database)?;
            (lane, lane.try_push(database, event, size)?)
        }
    };
    SESSION.with(|session| session.lane.set(Some(lane)));
    Some(after_push(lane, position))
}

/// Pushes an event into the queue of another database, if there is room right now; else it goes to the server log.
/// Neither waits nor raises.
pub fn push_to(database: pgrx::pg_sys::Oid, event: &Event) {
    let database = database.to_u32();
    if database == worker::my_database() {
        push_reserved(event, 0);
        return;
    }
    let size = event.size();
    let pushed = queue::assign(if worker::is_alone() { 0 } else { database })
        .filter(|_| size <= max_event_bytes())
        .and_then(|lane| Some((lane, lane.try_push(database, event, size)?)));
    match pushed {
        Some((lane, position)) => _ = after_push(lane, position),
        None => writer::log_event(event, writer::no_room()),
    }
}

/// Raises 55000 in single-user mode: what follows is not to be without its row.
pub fn require_writer() {
    if worker::is_alone() {
        wait::raise_alone();
    }
}

/// Returns when the event of this ticket, and all before it in its database, are stored; at once for ticket 0.
///
/// Waits, interruptible. Raises 55000 when the writer can't store events, 55006 when it waits for a lock that the
/// caller's own transaction holds, 53400 when no worker can be started.
pub fn wait_stored(ticket: u64) {
    if let Some(Ticket { lane, position }) = Ticket::parse(ticket) {
        if !lane.is_stored(position) && !writer::is_writer() {
            wait::stored(lane, position);
        }
    }
}

/// As `wait_stored`, and returns when they are on disk.
pub fn wait_flushed(ticket: u64) {
    wait_stored(ticket);
    // What a standby has stored is on disk.
    let flush = |_: &Ticket| !writer::is_writer() && !worker::in_recovery();
    if let Some(Ticket { lane, .. }) = Ticket::parse(ticket).filter(flush) {
        worker::flush_wal(lane.lsn());
    }
}

/// Whether it is this transaction that creates the extension. Needs a transaction.
pub fn extension_is_mine() -> bool {
    writer::extension_is_mine()
}

/// Whether the event of this ticket is stored. Neither waits nor raises.
pub fn is_stored(ticket: u64) -> bool {
    Ticket::parse(ticket).is_none_or(|Ticket { lane, position }| lane.is_stored(position))
}

/// Returns when all that was pushed in this database before the call is stored. Raises as `wait_stored` does.
pub fn sync() {
    if let Some(lane) = queue::find(worker::my_database()) {
        wait_stored(Ticket::of(lane, lane.head()));
    }
}

/// What can be told of the queues, of each database that has one.
pub fn figures() -> Vec<Figures> {
    if queue::available() {
        queue::figures()
    } else {
        Vec::new()
    }
}

/// Makes the writer of a database store what there is and leave it, so that nobody is connected: for DROP DATABASE,
/// CREATE DATABASE ... TEMPLATE, RENAME and SET TABLESPACE, to be called before the statement runs.
///
/// Waits for that, interruptible, at most ten seconds; but not when other sessions of that database have something
/// reserved. Those are connected to it, so the statement itself waits for them or refuses; the writer leaves as soon as
/// they do. Nobody starts it again but sessions of that database.
pub fn evict_writer(database: pgrx::pg_sys::Oid) {
    let database = database.to_u32();
    let mine = if database == worker::my_database() {
        SESSION.with(|session| session.reserved.get())
    } else {
        0
    };
    wait::evict(database, mine);
}

/// Gives back all that this session has reserved, and starts a writer for what it pushed if none could be before. For
/// `before_shmem_exit`; neither waits nor raises.
pub fn forget_backend() {
    wait::forget_backend();
    release(usize::MAX);
    if let Some(lane) = SESSION.with(|session| session.lane.get()) {
        if lane.lacks_writer() && !lane.is_empty() {
            wait::start_writer(lane);
        }
    }
}

fn push_or_log(event: &Event) -> u64 {
    try_push(event).unwrap_or_else(|| {
        writer::log_event(event, writer::no_room());
        0
    })
}

/// The writer learns of the event; if there is none, one is started if that can be.
fn after_push(lane: LaneHandle, position: u64) -> u64 {
    lane.wake_after_push();
    if lane.lacks_writer() {
        wait::start_writer(lane);
    }
    Ticket::of(lane, position)
}
