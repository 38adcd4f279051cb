//! The queue: lanes of shared memory, each a ring of events for one database.
//!
//! # Who may touch what
//! The *directory lock* (number 0 of the area) guards which database a lane belongs to. The *lane's lock* (number
//! 1 + index) guards everything of the lane but the fields named below. Order: directory, then lane; never two lanes.
//! A database is given to a lane with both held, so holding either is enough to read `database`. Nothing is waited for
//! and nothing raised while one is held.
//!
//! All positions are bytes counted from the server's start; they never wrap, the ring does.
//! - `head`: end of the newest event. Stored with `Release` under the lane's lock, after the event's bytes. The writer
//!   loads it with `Acquire` and no lock, and then owns the bytes from `tail` to it.
//! - `tail`: end of the newest *stored* event. Written by the lane's writer alone, with `Release`, after its commit.
//!   Producers load it with `Acquire` under the lock, and then own what is before it.
//! - `armed`, `wanted`: see "Waking" below; atomics without a lock.
//!
//! # Room
//! used = head - tail; free = size - used - reserved. An event is only pushed into what was reserved before, so a push
//! always finds its room. What a backend holds it knows itself, and gives back at its end; a crash lays shared memory
//! out anew. As long as anything is reserved in a lane, its database keeps it and its writer stays, so that the events
//! of sessions that end at a shutdown find a writer.
//!
//! # Lanes
//! A lane is free when it is empty, nothing is reserved, and it has no writer. Then another database may take it.
//! Positions go on counting, so a position of the old database stays "stored" for ever.
//!
//! # Writers
//! `writer` goes Absent → Starting (a worker is registered) → Running (it claimed the lane) → Absent. Each registration
//! has a new `generation`, and a worker may only claim with the newest, so a late one can't become a second writer.
//! The writer decides to leave under the lane's lock, where it sees every event and every reservation; whoever comes
//! after that finds Absent, and starts another.
//!
//! # Waking
//! The writer arms itself, fences, looks at head and `wanted` again, and naps. Whoever pushes or wants something does
//! that, fences, and takes the arm with a swap: one of them wins, and sets the latch. Armed is either `AT_AN_EIGHTH`
//! (pushes wake it when the ring is an eighth full) or `AT_ONCE` (the writer found nothing for a while).

use super::event::{decode, record_length, Event, Record, Sink, TIME_AT};
use crate::pg::latch::{now, Condition, RemoteLatch};
use crate::pg::shmem::{Area, Lock, Ring};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{fence, AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicU8};

/// As many as `impersonate.audit_queues` can ask for. A lane's index fits into a ticket's top byte.
const MAX_LANES: usize = 64;

/// Databases that can be audited at the same time.
static QUEUES: GucSetting<i32> = GucSetting::<i32>::new(8);

/// Ring of a lane, in kilobytes. Four megabytes let 800 sessions impersonate at a time.
static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(4096);

/// Milliseconds. A writer's start costs some ten; staying costs a process and a connection.
static WRITER_IDLE: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// Milliseconds. Longer than a writer takes that works, and short enough that a session doesn't look dead.
static WAIT_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(60_000);

/// A worker that hasn't claimed its lane after so many microseconds is not waited for any more.
const START_LIMIT: i64 = 10_000_000;

/// How long, in microseconds, one who waits for much room keeps others from taking it in small pieces.
const PRESSING_FOR: i64 = 500_000;

/// A restarted writer that failed to start waits at least so many microseconds.
const RESTART_PAUSE: i64 = 100_000;

const ASLEEP_NOT: u32 = 0;
const AT_AN_EIGHTH: u32 = 1;
const AT_ONCE: u32 = 2;

const ABSENT: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;

pub(super) fn define_settings() {
    GucRegistry::define_int_guc(
        c"impersonate.audit_queues",
        c"Databases that can have audit events in the queue at the same time.",
        c"Each takes impersonate.audit_queue_size of shared memory.",
        &QUEUES,
        1,
        MAX_LANES as i32,
        GucContext::Postmaster,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"impersonate.audit_queue_size",
        c"Shared memory for the audit events of one database that are not yet stored.",
        c"When it is full, audited statements wait. No event is larger than an eighth of it.",
        &QUEUE_SIZE,
        64,
        1024 * 1024,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"impersonate.audit_writer_idle",
        c"How long an audit writer without work stays connected to its database.",
        c"It stays in any case as long as somebody is impersonating there.",
        &WRITER_IDLE,
        0,
        24 * 3600 * 1000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"impersonate.audit_wait_limit",
        c"How long a statement or a commit waits for the audit before it fails.",
        c"0 means no limit. statement_timeout does not count while a transaction commits.",
        &WAIT_LIMIT,
        0,
        24 * 3600 * 1000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
}

/// Microseconds that a writer without work stays.
pub(super) fn writer_idle() -> i64 {
    i64::from(WRITER_IDLE.get()) * 1000
}

/// Microseconds that anybody waits for the writer; `None` for no limit.
pub(super) fn wait_limit() -> Option<i64> {
    match WAIT_LIMIT.get() {
        0 => None,
        milliseconds => Some(i64::from(milliseconds) * 1000),
    }
}

/// Bytes of a lane's ring.
pub(super) fn ring_size() -> usize {
    usize::try_from(QUEUE_SIZE.get()).unwrap_or(64) * 1024
}

fn lane_count() -> usize {
    usize::try_from(QUEUES.get()).unwrap_or(1).clamp(1, MAX_LANES)
}

#[repr(C)]
struct Header {
    lanes: [Lane; MAX_LANES],
}

/// What a lane shares. "Locked" fields are read and written under the lane's lock, with `Relaxed`.
#[repr(C, align(128))]
struct Lane {
    // Locked.
    database: AtomicU32,
    writer: AtomicU32,
    generation: AtomicU32,
    writer_pid: AtomicI32,
    /// A writer that has left the lane and is about to exit; 0 when it has gone.
    leaving_pid: AtomicI32,
    /// When `writer` or `failures` last changed.
    since: AtomicI64,
    /// Failures of the writer since it last stored something.
    failures: AtomicU32,
    /// Writers that ended before they were connected, in a row.
    failed_connections: AtomicU32,
    /// The writer found no extension in its database: nothing is to begin that couldn't be recorded.
    no_extension: AtomicBool,
    last_error: LastError,
    /// Who waits for room and is preferred, and until when.
    pressing_pid: AtomicI32,
    pressing_until: AtomicI64,
    /// 0, or: the writer is asked to make way, as soon as no more than this, less one, is reserved.
    evict: AtomicU64,
    latch: RemoteLatch,

    producers: Producers,
    consumer: Consumer,
    waiters: Waiters,
}

#[repr(C, align(128))]
struct Producers {
    head: AtomicU64,
    /// Locked.
    reserved: AtomicU64,
    /// Events pushed so far, but for those that were thrown away. Locked.
    pushed: AtomicU64,
    /// The most bytes that were ever in use. Locked.
    highest: AtomicU64,
    /// Of `ASLEEP_NOT`, `AT_AN_EIGHTH` and `AT_ONCE`.
    armed: AtomicU32,
}

#[repr(C, align(128))]
struct Consumer {
    tail: AtomicU64,
    /// Events stored so far.
    stored: AtomicU64,
    /// End of the WAL of the newest commit: flushed up to here, all that is stored is on disk.
    lsn: AtomicU64,
}

#[repr(C, align(128))]
struct Waiters {
    /// The newest position that somebody waits for.
    wanted: AtomicU64,
    /// Backends that wait for room or for an event to be stored.
    waiting: AtomicU32,
    /// Somebody waits for room, and wants to be woken when some is given back.
    for_room: AtomicBool,
    /// Broadcast when `tail` moves, when room is given back to those who wait for it, and when the writer's state
    /// changes.
    changed: Condition,
    /// For those who wait for a position to be stored, by place; broadcast when `tail` moves to there or beyond, and
    /// when the writer's state changes. So a batch wakes those whose events are in it, and not who waits for the next.
    stored: [Condition; PLACES],
}

/// Bytes of the ring whose waiters share a place, and how many places there are.
const PLACE: u64 = 512;
const PLACES: usize = 64;

impl Waiters {
    fn init(&self) {
        self.changed.init();
        self.stored.iter().for_each(Condition::init);
    }

    /// `tail` has moved.
    fn advanced(&self, from: u64, to: u64) {
        places(from, to).for_each(|place| self.stored[place].broadcast());
        self.changed.broadcast();
    }

    /// The writer's state has changed.
    fn all(&self) {
        self.stored.iter().for_each(Condition::broadcast);
        self.changed.broadcast();
    }
}

/// The place of who waits for a position.
fn place(position: u64) -> usize {
    (position / PLACE % PLACES as u64) as usize
}

/// The places of those who wait for positions behind the first, up to the second.
fn places(from: u64, to: u64) -> impl Iterator<Item = usize> {
    (from / PLACE..=to / PLACE)
        .take(PLACES)
        .map(|at| (at % PLACES as u64) as usize)
}

#[repr(C)]
pub(super) struct LastError {
    /// When it came; 0 for never.
    at: AtomicI64,
    sqlstate: [AtomicU8; 5],
    length: AtomicU32,
    text: [AtomicU8; 240],
}

// Every field is an atomic, a latch or a condition.
crate::pg::shmem::shared!(Header);

static AREA: Area<Header> = Area::new(
    c"impersonate audit",
    || lane_count() * ring_size(),
    || 1 + lane_count(),
    |header| header.lanes.iter().for_each(|lane| lane.waiters.init()),
);

/// Asks for the queue's shared memory, from `_PG_init` while preloading.
pub(super) fn init() {
    AREA.register();
}

pub(super) fn available() -> bool {
    AREA.get().is_some()
}

/// The largest event that a lane takes: small enough that several fit beside it.
pub(super) fn max_event_bytes() -> usize {
    ring_size() / 8
}

/// The most that one reservation may ask for.
pub(super) fn max_reservation() -> usize {
    ring_size() / 2
}

/// One lane, as processes work with it.
#[derive(Clone, Copy)]
pub(super) struct LaneHandle {
    pub index: usize,
    lane: &'static Lane,
    ring: Ring,
    lock: Lock,
}

/// An event's place in the queue: the lane in the top byte, below it the position of the event's end. 0 is "nothing".
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub lane: LaneHandle,
    pub position: u64,
}

const POSITION_BITS: u32 = 56;

impl Ticket {
    pub fn of(lane: LaneHandle, position: u64) -> u64 {
        (lane.index as u64) << POSITION_BITS | position
    }

    pub fn parse(ticket: u64) -> Option<Ticket> {
        let position = ticket & ((1 << POSITION_BITS) - 1);
        if position == 0 {
            return None;
        }
        Some(Ticket {
            lane: LaneHandle::at((ticket >> POSITION_BITS) as usize)?,
            position,
        })
    }
}

/// What became of an attempt to reserve.
pub(super) enum Reserve {
    Done,
    /// The lane belongs to another database by now.
    Moved,
    /// No writer, or one that fails.
    NoWriter,
    Full,
}

/// What became of a writer's wish to leave.
pub(super) enum Leave {
    Stay,
    /// It has left, though something is reserved: somebody will need a writer.
    Needed,
    Done,
}

/// A lane's state at a glance.
pub(super) struct Status {
    pub database: u32,
    pub absent: bool,
    pub writer_pid: i32,
    pub leaving: bool,
    pub failures: u32,
    pub failed_connections: u32,
    pub reserved: u64,
    pub evict: bool,
}

/// What can be told of a lane that belongs to a database.
pub struct Figures {
    pub database: u32,
    /// `absent`, `starting` or `running`.
    pub writer: &'static str,
    pub writer_pid: i32,
    pub queued_events: u64,
    pub queued_bytes: u64,
    pub reserved_bytes: u64,
    pub highest_bytes: u64,
    pub queue_bytes: u64,
    /// Since the database has this lane.
    pub stored_events: u64,
    pub waiting: u32,
    /// Microseconds since the oldest event that isn't stored.
    pub lag: Option<i64>,
    /// In a row, up to now.
    pub failures: u32,
    /// The writer's last error: when, SQLSTATE, message.
    pub last_error: Option<(i64, String, String)>,
}

/// The lanes that belong to databases.
pub(super) fn figures() -> Vec<Figures> {
    all_lanes().filter_map(|lane| lane.figures()).collect()
}

fn directory() -> Lock {
    AREA.lock(0)
}

fn all_lanes() -> impl Iterator<Item = LaneHandle> {
    (0..lane_count()).filter_map(LaneHandle::at)
}

/// The lane of a database, if it has one.
pub(super) fn find(database: u32) -> Option<LaneHandle> {
    if !available() || database == 0 {
        return None;
    }
    directory().shared(|| all_lanes().find(|lane| lane.lane.database.load(Relaxed) == database))
}

/// The lane of a database; a free one becomes its own when it has none. `None` when all are in use.
pub(super) fn assign(database: u32) -> Option<LaneHandle> {
    if !available() || database == 0 {
        return None;
    }
    directory().exclusive(|| {
        all_lanes()
            .find(|lane| lane.lane.database.load(Relaxed) == database)
            .or_else(|| all_lanes().find(|lane| lane.take(database)))
    })
}

/// Lanes of databases other than `mine` that hold events and have no writer.
pub(super) fn deserted(mine: u32) -> Vec<LaneHandle> {
    let mut lanes = Vec::with_capacity(MAX_LANES);
    lanes.extend(all_lanes().filter(|lane| {
        let status = lane.status();
        status.absent && status.database != mine && !lane.is_empty()
    }));
    lanes
}

/// # Producers
impl LaneHandle {
    #[inline]
    pub fn at(index: usize) -> Option<LaneHandle> {
        let header = AREA.get()?;
        if index >= lane_count() {
            return None;
        }
        Some(LaneHandle {
            index,
            lane: header.lanes.get(index)?,
            ring: AREA.ring(index, ring_size())?,
            lock: AREA.lock(1 + index),
        })
    }

    /// With the directory lock held: makes a free lane the lane of `database`.
    fn take(&self, database: u32) -> bool {
        self.lock.exclusive(|| {
            let lane = self.lane;
            let free = lane.database.load(Relaxed) == 0
                || (lane.writer.load(Relaxed) == ABSENT && self.reserved() == 0 && self.is_empty());
            if free {
                lane.database.store(database, Relaxed);
                lane.failures.store(0, Relaxed);
                lane.failed_connections.store(0, Relaxed);
                lane.no_extension.store(false, Relaxed);
                lane.pressing_pid.store(0, Relaxed);
                lane.evict.store(0, Relaxed);
                lane.last_error.clear();
                lane.producers.pushed.store(0, Relaxed);
                lane.producers.highest.store(0, Relaxed);
                lane.consumer.stored.store(0, Relaxed);
                lane.generation
                    .store(lane.generation.load(Relaxed).wrapping_add(1), Relaxed);
            }
            free
        })
    }

    /// Sets `bytes` aside. `held` is what the caller has reserved here already.
    pub fn try_reserve(&self, database: u32, bytes: u64, held: u64, pid: i32) -> Reserve {
        self.lock.exclusive(|| {
            let lane = self.lane;
            if lane.database.load(Relaxed) != database {
                return Reserve::Moved;
            }
            if !self.writer_serves() {
                return Reserve::NoWriter;
            }
            let pressing = lane.pressing_pid.load(Relaxed);
            // Whoever holds something goes first: the one who presses may wait for just that to be given back.
            let yields = pressing != 0 && pressing != pid && held == 0 && now() < lane.pressing_until.load(Relaxed);
            if yields || self.free() < bytes {
                return Reserve::Full;
            }
            if pressing == pid {
                lane.pressing_pid.store(0, Relaxed);
            }
            lane.producers
                .reserved
                .store(self.reserved().saturating_add(bytes), Relaxed);
            Reserve::Done
        })
    }

    /// As `try_reserve` and `push`, for whoever can't wait: needs no serving writer.
    pub fn try_push(&self, database: u32, event: &Event, size: usize) -> Option<u64> {
        self.lock.exclusive(|| {
            if self.lane.database.load(Relaxed) != database || self.free() < size as u64 {
                return None;
            }
            Some(self.append(event, size))
        })
    }

    /// From now on, and for half a second, nobody else takes room here. For those who wait long for much.
    pub fn press(&self, pid: i32) {
        self.lock.exclusive(|| {
            let pressing = self.lane.pressing_pid.load(Relaxed);
            let now = now();
            if pressing == 0 || pressing == pid || self.lane.pressing_until.load(Relaxed) < now {
                self.lane.pressing_pid.store(pid, Relaxed);
                self.lane.pressing_until.store(now + PRESSING_FOR, Relaxed);
            }
        });
    }

    /// Pushes into what was reserved, and gives `give_back` bytes of reservation back. `size` is at most `give_back`.
    pub fn push(&self, event: &Event, size: usize, give_back: u64) -> u64 {
        let position = self.lock.exclusive(|| {
            let position = self.append(event, size);
            self.lane
                .producers
                .reserved
                .store(self.reserved().saturating_sub(give_back), Relaxed);
            position
        });
        if give_back > size as u64 {
            self.tell_of_room();
        }
        position
    }

    pub fn release(&self, bytes: u64) {
        self.lock.exclusive(|| {
            self.lane
                .producers
                .reserved
                .store(self.reserved().saturating_sub(bytes), Relaxed);
        });
        self.tell_of_room();
    }

    fn tell_of_room(&self) {
        if self.lane.waiters.for_room.load(Relaxed) && self.lane.waiters.for_room.swap(false, AcqRel) {
            self.lane.waiters.changed.broadcast();
        }
    }

    /// With the lane's lock held, and `size` bytes free.
    fn append(&self, event: &Event, size: usize) -> u64 {
        let head = self.head();
        event.encode(
            size,
            &mut RingSink {
                ring: self.ring,
                position: head,
                left: size,
            },
        );
        let head = head.wrapping_add(size as u64);
        let pushed = &self.lane.producers.pushed;
        pushed.store(pushed.load(Relaxed).wrapping_add(1), Relaxed);
        let used = head.wrapping_sub(self.tail());
        if used > self.lane.producers.highest.load(Relaxed) {
            self.lane.producers.highest.store(used, Relaxed);
        }
        self.lane.producers.head.store(head, Release);
        head
    }

    /// After a push, without the lock: wakes the writer if this push is what it waits for.
    pub fn wake_after_push(&self) {
        fence(SeqCst);
        match self.lane.producers.armed.load(Relaxed) {
            AT_ONCE => self.wake(),
            AT_AN_EIGHTH if self.used() >= self.ring.size() as u64 / 8 => self.wake(),
            _ => (),
        }
    }

    /// Wakes the writer if it naps.
    pub fn wake(&self) {
        if self.lane.producers.armed.swap(ASLEEP_NOT, AcqRel) != ASLEEP_NOT {
            self.lane.latch.set();
        }
    }

    /// Asks for everything up to `position`, and wakes the writer for it.
    pub fn want(&self, position: u64) {
        self.lane.waiters.wanted.fetch_max(position, Relaxed);
        fence(SeqCst);
        self.wake();
    }

    /// Asks to be woken when room is given back.
    pub fn want_room(&self) {
        self.lane.waiters.for_room.store(true, Relaxed);
        fence(SeqCst);
    }

    /// Makes the writer try again at once when it pauses after a failure.
    pub fn poke(&self) {
        self.lane.latch.set();
    }

    pub fn changed(&self) -> &'static Condition {
        &self.lane.waiters.changed
    }

    /// Broadcast when `position` is stored, among others.
    pub fn changed_at(&self, position: u64) -> &'static Condition {
        &self.lane.waiters.stored[place(position)]
    }

    pub fn is_stored(&self, position: u64) -> bool {
        self.tail() >= position
    }

    /// End of the WAL of the newest commit that stored events. Read after `is_stored`, it covers what that was about.
    pub fn lsn(&self) -> u64 {
        self.lane.consumer.lsn.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.head() == self.tail()
    }

    pub fn head(&self) -> u64 {
        self.lane.producers.head.load(Acquire)
    }

    pub fn tail(&self) -> u64 {
        self.lane.consumer.tail.load(Acquire)
    }

    fn used(&self) -> u64 {
        // Tail first: it only grows towards head.
        let tail = self.tail();
        self.head().saturating_sub(tail)
    }

    fn reserved(&self) -> u64 {
        self.lane.producers.reserved.load(Relaxed)
    }

    fn free(&self) -> u64 {
        (self.ring.size() as u64)
            .saturating_sub(self.used())
            .saturating_sub(self.reserved())
    }

    /// With the lane's lock held: will what is pushed now be stored, as far as one can tell?
    fn writer_serves(&self) -> bool {
        let lane = self.lane;
        lane.failures.load(Relaxed) == 0
            && !lane.no_extension.load(Relaxed)
            && match lane.writer.load(Relaxed) {
                RUNNING => true,
                STARTING => now() - lane.since.load(Relaxed) < START_LIMIT,
                _ => false,
            }
    }

    /// Whether the extension is there, as the writer finds or a session sees.
    pub fn extension_exists(&self, exists: bool) {
        self.lock.exclusive(|| self.lane.no_extension.store(!exists, Relaxed));
    }

    /// Without the lock, as a hint.
    pub fn lacks_writer(&self) -> bool {
        self.lane.writer.load(Relaxed) == ABSENT
    }

    pub fn status(&self) -> Status {
        self.lock.shared(|| {
            let lane = self.lane;
            let writer = lane.writer.load(Relaxed);
            let since = lane.since.load(Relaxed);
            Status {
                database: lane.database.load(Relaxed),
                absent: writer == ABSENT || (writer == STARTING && now() - since >= START_LIMIT),
                writer_pid: lane.writer_pid.load(Relaxed),
                leaving: lane.leaving_pid.load(Relaxed) != 0,
                failures: lane.failures.load(Relaxed),
                failed_connections: lane.failed_connections.load(Relaxed),
                reserved: self.reserved(),
                evict: lane.evict.load(Relaxed) != 0,
            }
        })
    }

    /// A backend begins to wait here, or ceases to.
    pub fn count_waiting(&self, begins: bool) {
        if begins {
            self.lane.waiters.waiting.fetch_add(1, Relaxed);
        } else {
            self.lane.waiters.waiting.fetch_sub(1, Relaxed);
        }
    }

    fn figures(&self) -> Option<Figures> {
        // Nobody pushes meanwhile, so the bytes at the tail stay as they are, even if it moves on.
        let (mut figures, oldest, error_at) = self.lock.shared(|| {
            let lane = self.lane;
            let tail = self.tail();
            let oldest = (tail < self.head()).then(|| {
                let mut bytes = [0; 8];
                let (first, second) = self.ring.read(tail + TIME_AT, 8);
                bytes
                    .iter_mut()
                    .zip(first.iter().chain(second))
                    .for_each(|(to, from)| *to = *from);
                i64::from_ne_bytes(bytes)
            });
            let figures = Figures {
                database: lane.database.load(Relaxed),
                writer: match lane.writer.load(Relaxed) {
                    RUNNING => "running",
                    STARTING => "starting",
                    _ => "absent",
                },
                writer_pid: lane.writer_pid.load(Relaxed),
                queued_events: lane
                    .producers
                    .pushed
                    .load(Relaxed)
                    .saturating_sub(lane.consumer.stored.load(Relaxed)),
                queued_bytes: self.used(),
                reserved_bytes: self.reserved(),
                highest_bytes: lane.producers.highest.load(Relaxed),
                queue_bytes: self.ring.size() as u64,
                stored_events: lane.consumer.stored.load(Relaxed),
                waiting: lane.waiters.waiting.load(Relaxed),
                lag: None,
                failures: lane.failures.load(Relaxed),
                last_error: None,
            };
            (figures, oldest, lane.last_error.at.load(Relaxed))
        });
        figures.lag = oldest.map(|time| now().saturating_sub(time).max(0));
        if error_at != 0 {
            let (sqlstate, message) = self.last_error();
            figures.last_error = Some((error_at, sqlstate, message));
        }
        (figures.database != 0).then_some(figures)
    }

    /// SQLSTATE and message of the writer's last failure.
    pub fn last_error(&self) -> (String, String) {
        self.lock.shared(|| {
            let error = &self.lane.last_error;
            let length = (error.length.load(Relaxed) as usize).min(error.text.len());
            let text: Vec<u8> = error.text[..length].iter().map(|byte| byte.load(Relaxed)).collect();
            let sqlstate: Vec<u8> = error.sqlstate.iter().map(|byte| byte.load(Relaxed)).collect();
            (
                String::from_utf8_lossy(&sqlstate).into_owned(),
                String::from_utf8_lossy(&text).into_owned(),
            )
        })
    }
}

/// # Starting and ending writers
impl LaneHandle {
    /// Announces that the caller registers a worker now, and returns the generation to register it with; `None` when
    /// there is a writer, or one is on its way, or the last one failed just now.
    pub fn begin_start(&self) -> Option<u32> {
        self.lock.exclusive(|| {
            let lane = self.lane;
            let age = now() - lane.since.load(Relaxed);
            let due = match lane.writer.load(Relaxed) {
                ABSENT => lane.failures.load(Relaxed) == 0 || !(0..RESTART_PAUSE).contains(&age),
                STARTING => !(0..START_LIMIT).contains(&age),
                _ => false,
            };
            if !due || lane.database.load(Relaxed) == 0 {
                return None;
            }
            let generation = lane.generation.load(Relaxed).wrapping_add(1);
            lane.generation.store(generation, Relaxed);
            lane.writer.store(STARTING, Relaxed);
            lane.since.store(now(), Relaxed);
            Some(generation)
        })
    }

    /// The worker couldn't be registered.
    pub fn abandon_start(&self, generation: u32) {
        self.lock.exclusive(|| {
            let lane = self.lane;
            if lane.writer.load(Relaxed) == STARTING && lane.generation.load(Relaxed) == generation {
                lane.writer.store(ABSENT, Relaxed);
            }
        });
    }

    /// Asks the writer to store what there is and leave. `mine` is what the caller has reserved here; what others have
    /// is waited for.
    pub fn ask_to_leave(&self, mine: u64) {
        self.lock
            .exclusive(|| self.lane.evict.store(mine.saturating_add(1), Relaxed));
        self.lane.latch.set();
    }

    /// The worker registered with `generation` becomes the lane's writer. Returns the database to connect to; `None` if
    /// it isn't needed: there is another, or the postmaster started it again after a failure and nothing is left to do.
    pub fn claim(&self, generation: u32, pid: i32) -> Option<u32> {
        self.lock.exclusive(|| {
            let lane = self.lane;
            let database = lane.database.load(Relaxed);
            let needed = match lane.writer.load(Relaxed) {
                STARTING => true,
                ABSENT => !self.is_empty() || self.reserved() != 0,
                _ => false,
            };
            if database == 0 || !needed || lane.generation.load(Relaxed) != generation {
                return None;
            }
            lane.writer.store(RUNNING, Relaxed);
            lane.writer_pid.store(pid, Relaxed);
            lane.since.store(now(), Relaxed);
            lane.latch.publish_mine();
            Some(database)
        })
    }

    /// A session takes the writer's place in a lane of a database that is gone.
    pub fn claim_deserted(&self, database: u32, pid: i32) -> bool {
        self.lock.exclusive(|| {
            let lane = self.lane;
            let may = lane.database.load(Relaxed) == database && lane.writer.load(Relaxed) == ABSENT;
            if may {
                lane.writer.store(RUNNING, Relaxed);
                lane.writer_pid.store(pid, Relaxed);
            }
            may
        })
    }

    /// The writer leaves, if it may: with all stored, and nothing reserved but by who asked it to leave; or whatever is
    /// reserved, if `regardless`. If not `Stay` is returned, the lane isn't its own any more.
    pub fn leave(&self, pid: i32, regardless: bool) -> Leave {
        let outcome = self.lock.exclusive(|| {
            let reserved = self.reserved();
            let others = reserved > self.lane.evict.load(Relaxed).saturating_sub(1);
            if !self.is_empty() || (others && !regardless) {
                return Leave::Stay;
            }
            self.vacate(pid);
            if others {
                Leave::Needed
            } else {
                Leave::Done
            }
        });
        if !matches!(outcome, Leave::Stay) {
            self.lane.waiters.all();
        }
        outcome
    }

    /// The writer leaves with events in the queue, as it can't store them and is wanted to go.
    pub fn give_up(&self, pid: i32) {
        self.lock.exclusive(|| self.vacate(pid));
        self.lane.waiters.all();
    }

    fn vacate(&self, pid: i32) {
        let lane = self.lane;
        lane.writer.store(ABSENT, Relaxed);
        lane.writer_pid.store(0, Relaxed);
        lane.leaving_pid.store(pid, Relaxed);
        lane.since.store(now(), Relaxed);
        lane.evict.store(0, Relaxed);
        lane.latch.clear();
    }

    /// As the last thing that a writer's process does: whatever it was, it isn't any more. `unconnected` if it never
    /// got to its database.
    pub fn writer_gone(&self, pid: i32, unconnected: bool) {
        self.lock.exclusive(|| {
            let lane = self.lane;
            if lane.writer_pid.load(Relaxed) == pid {
                self.vacate(pid);
                lane.failures
                    .store(lane.failures.load(Relaxed).saturating_add(1), Relaxed);
                if unconnected {
                    lane.failed_connections
                        .store(lane.failed_connections.load(Relaxed).saturating_add(1), Relaxed);
                    lane.last_error
                        .set(*b"08006", b"the writer could not connect; the server log says why");
                }
            }
            if lane.leaving_pid.load(Relaxed) == pid {
                lane.leaving_pid.store(0, Relaxed);
            }
        });
        self.lane.waiters.all();
    }
}

/// # The writer's side
impl LaneHandle {
    /// The writer is connected.
    pub fn connected(&self) {
        self.lock.exclusive(|| self.lane.failed_connections.store(0, Relaxed));
    }

    /// The writer works.
    pub fn succeeded(&self) {
        if self.lane.failures.load(Relaxed) != 0 {
            self.lock.exclusive(|| self.lane.failures.store(0, Relaxed));
            self.lane.waiters.all();
        }
    }

    /// The writer failed. Unless it is `excused` it counts.
    pub fn failed(&self, sqlstate: [u8; 5], message: &[u8], excused: bool) {
        self.lock.exclusive(|| {
            let lane = self.lane;
            lane.last_error.set(sqlstate, message);
            lane.since.store(now(), Relaxed);
            if !excused {
                lane.failures
                    .store(lane.failures.load(Relaxed).saturating_add(1), Relaxed);
            }
        });
        self.lane.waiters.all();
    }

    /// Hands the oldest events to `each`, at most `max_events` and no further than `max_bytes`, but at least one if
    /// there is one; it ends before the one that `each` doesn't take. Returns the number of those that were taken and the
    /// position behind them; `None` if the ring's content makes no sense.
    pub fn read(
        &self,
        scratch: &mut Vec<u8>,
        max_events: usize,
        max_bytes: u64,
        mut each: impl FnMut(&Record) -> bool,
    ) -> Option<(usize, u64)> {
        self.read_bytes(scratch, max_events, max_bytes, |bytes| Some(each(&decode(bytes)?)))
    }

    /// As `read`, with events as they are in the ring; `each` returns `None` for what makes no sense.
    pub fn read_bytes(
        &self,
        scratch: &mut Vec<u8>,
        max_events: usize,
        max_bytes: u64,
        mut each: impl FnMut(&[u8]) -> Option<bool>,
    ) -> Option<(usize, u64)> {
        let tail = self.tail();
        let head = self.head();
        let mut position = tail;
        let mut count = 0;
        while position < head && count < max_events && position - tail < max_bytes {
            let left = (head - position).min(self.ring.size() as u64) as usize;
            // A record begins at a multiple of 8, and so does the ring's end.
            let length = record_length(*self.ring.read(position, 8).0.first_chunk()?);
            if length < 8 || length % 8 != 0 || length > left {
                return None;
            }
            let (first, second) = self.ring.read(position, length);
            let taken = if second.is_empty() {
                each(first)?
            } else {
                scratch.clear();
                scratch.extend_from_slice(first);
                scratch.extend_from_slice(second);
                each(scratch)?
            };
            if !taken {
                break;
            }
            position += length as u64;
            count += 1;
        }
        Some((count, position))
    }

    /// What is before `position` is stored: `count` events, committed at `lsn`. Their bytes are free from here on.
    pub fn advance(&self, position: u64, count: usize, lsn: Option<u64>) {
        let consumer = &self.lane.consumer;
        if let Some(lsn) = lsn {
            consumer.lsn.store(lsn, Relaxed);
        }
        consumer
            .stored
            .store(consumer.stored.load(Relaxed).wrapping_add(count as u64), Relaxed);
        let before = consumer.tail.swap(position, Release);
        self.lane.waiters.advanced(before, position);
    }

    /// As `advance`, with `count` events that were not stored.
    pub fn discard(&self, position: u64, count: usize) {
        self.lock.exclusive(|| {
            let pushed = &self.lane.producers.pushed;
            pushed.store(pushed.load(Relaxed).saturating_sub(count as u64), Relaxed);
        });
        self.advance(position, 0, None);
    }

    /// Arms, and says whether the writer may nap: nobody waits for anything, and less than an eighth is used; or, with
    /// `until_any`, nothing.
    pub fn arm(&self, until_any: bool) -> bool {
        let (arm, limit) = if until_any {
            (AT_ONCE, 1)
        } else {
            (AT_AN_EIGHTH, self.ring.size() as u64 / 8)
        };
        self.lane.producers.armed.store(arm, Relaxed);
        fence(SeqCst);
        let may_nap = self.used() < limit && !self.is_wanted();
        if !may_nap {
            self.disarm();
        }
        may_nap
    }

    pub fn disarm(&self) {
        self.lane.producers.armed.store(ASLEEP_NOT, Relaxed);
    }

    /// Somebody waits for something that isn't stored.
    pub fn is_wanted(&self) -> bool {
        self.lane.waiters.wanted.load(Relaxed).min(self.head()) > self.tail()
    }
}

struct RingSink {
    ring: Ring,
    position: u64,
    left: usize,
}

impl Sink for RingSink {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        // `left` can't run out, as the size was counted by the same code; if it did, nothing of others is overwritten.
        let bytes = &bytes[..bytes.len().min(self.left)];
        self.ring.write(self.position, bytes);
        self.position = self.position.wrapping_add(bytes.len() as u64);
        self.left -= bytes.len();
    }
}

impl LastError {
    /// When, SQLSTATE and text; None if there was none.
    pub(super) fn get(&self) -> Option<(i64, String, String)> {
        let length = (self.length.load(Relaxed) as usize).min(self.text.len());
        let text: Vec<u8> = self.text[..length].iter().map(|byte| byte.load(Relaxed)).collect();
        let sqlstate: Vec<u8> = self.sqlstate.iter().map(|byte| byte.load(Relaxed)).collect();
        let at = self.at.load(Relaxed);
        (at != 0).then(|| {
            (
                at,
                String::from_utf8_lossy(&sqlstate).into_owned(),
                String::from_utf8_lossy(&text).into_owned(),
            )
        })
    }

    pub(super) fn clear(&self) {
        self.at.store(0, Relaxed);
    }

    pub(super) fn set(&self, sqlstate: [u8; 5], text: &[u8]) {
        self.at.store(now(), Relaxed);
        self.sqlstate
            .iter()
            .zip(sqlstate)
            .for_each(|(to, from)| to.store(from, Relaxed));
        self.text
            .iter()
            .zip(text)
            .for_each(|(to, from)| to.store(*from, Relaxed));
        self.length.store(text.len().min(self.text.len()) as u32, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_what_is_stored_is_woken() {
        let ring = PLACE * PLACES as u64;
        for from in [0, 8, PLACE - 8, PLACE, 3 * ring - 8, 3 * ring, u64::MAX - 4 * ring] {
            for length in [8, PLACE - 8, PLACE, PLACE + 8, ring - 8, ring, ring + 8, 3 * ring] {
                let woken: Vec<usize> = places(from, from + length).collect();
                assert!(woken.len() <= PLACES);
                for position in (from + 8..=from + length).step_by(8) {
                    assert!(woken.contains(&place(position)), "{from} {length} {position}");
                }
            }
        }
        // And not all the others.
        assert_eq!(places(PLACE, PLACE + 8).collect::<Vec<_>>(), [1]);
    }
}
