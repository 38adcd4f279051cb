//! The writer: one background worker per database, that takes events out of the queue and stores them.
//!
//! # Neither lost nor doubled
//! An event leaves the queue (`advance`) after the transaction that stored it has committed. An error before the commit
//! aborts the transaction and leaves the queue as it was; the events are stored again from the same position. So an
//! event could only be doubled if the worker ended between commit and `advance`. There it can't:
//! - From the writing of the commit record to the end of `CommitTransaction` the server holds interrupts off, and an
//!   error in it is a PANIC ("cannot abort transaction, it was already committed"). From there to `advance` no function
//!   is called that could raise or look for interrupts.
//! - SIGKILL, and any crash, makes the postmaster end all and lay out shared memory anew: the queue is empty then. What
//!   became of the events in it is a question of WAL order (SPEC L5), not of this file.
//!
//! Numbers and hashes go on from what `impersonate.audit_state` says, the table's newest row, or what this process
//! stored last, whichever is newest: where they differ somebody changed them by force, and the gap that comes of it
//! shows. They are read at the start and again after every error but those that others cause (a cancel, a lock). Only
//! one writer of a database exists at a time (see `queue`), and it commits before it leaves.
//!
//! # Places
//! The table has a partition for each month. A batch ends before an event for which one is missing; the partition is made
//! in a transaction of its own, so that no lock of a batch is held while one waits for another.
//! With `impersonate.audit_destination = log` rows go to the server log instead; numbers and hashes go on. A DESTINATION
//! row is the table's last before that, and its first after: it says in the chain itself what is not in the table.
//! A line is written before its batch commits, so after an error it may come twice, with the same number.
//!
//! # Errors
//! The writer survives them: it rolls back, remembers the error in the lane for those who wait, pauses, and tries again,
//! sooner if somebody asks. Ending would leave the events without anybody who stores them, and at a shutdown nobody
//! could start another writer. A lock that somebody else holds is waited for; that doesn't count as a failure.
//! An event that the table's types refuse would block all behind it: it is stored with that part as plain text.
//!
//! # Ends
//! - Idle for `impersonate.audit_writer_idle`, nothing queued and nothing reserved.
//! - Asked to make way (`evict_writer`): all stored, and nothing reserved by others than who asked; or it fails.
//! - SIGTERM: all stored and nothing reserved. At a shutdown sessions get it at the same moment, and their last events
//!   come later. At most `LINGER`; what can't be stored by then goes to the server log, and stays in the queue.
//!   Whenever it leaves with something queued or reserved, it ends with code 1: the postmaster starts it again after
//!   five seconds, unless the server is shutting down.
//! - The extension isn't there: each event goes to the server log, as its table has gone.
//! - The database isn't there any more: the same, by a writer that is connected to none.
//! - The postmaster died: at once.

use super::chain::{self, Hash, RowHasher, Value};
use super::event::{Event, Kind, Origin, Record};
use super::keeper::{self, Keeper, Kept};
use super::line::{self, hexadecimal, Line};
use super::node;
use super::queue::{self, LaneHandle, Leave};
use super::spool::{self, Reader};
use crate::pg::identity;
use crate::pg::latch::{check_for_interrupts, nap, now};
use crate::pg::worker::nodes::{self, Known};
use crate::pg::worker::partitions;
use crate::pg::worker::rows::{self, Batch, Field, Parsed, Store, Target};
use crate::pg::worker::state::{Place, State, StateTable, StateTarget};
use crate::pg::worker::{self, Failure};
use crate::settings::{self, AuditDestination};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{function_name, pg_guard, pg_sys, PgLogLevel, PgSqlErrorCode};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A transaction takes at most so many events, and so many bytes of the queue. Larger ones aren't faster.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: u64 = 1024 * 1024;

/// Milliseconds that the writer naps while events keep coming, so that they are stored by the hundred.
const NAP: u32 = 100;

/// Milliseconds that it naps at most while it watches impersonations on a standby.
const WATCH: u32 = 50;

/// Microseconds for which a watch that fails again and again is not logged again.
const QUIET: i64 = 10_000_000;

/// The longest nap without work, in milliseconds.
const LONG_NAP: i64 = 60_000;

/// Microseconds that the writer stays after SIGTERM for sessions that still have something reserved, or for what it
/// fails to store. pg_ctl waits twice as long.
const LINGER: i64 = 30_000_000;

/// Pause after the first failure, in milliseconds, and the longest.
const PAUSE: u32 = 100;
const LONGEST_PAUSE: u32 = 5_000;

/// Microseconds after a purge, or the writer's start, after which it looks for partitions that are empty; and how long it
/// waits to look again when somebody reads them.
const TIDY_AFTER: i64 = 2_000_000;
const TIDY_AGAIN: i64 = 60_000_000;

/// Connections that failed in a row, after which the writer looks whether its database still exists.
const DOUBTS: u32 = 2;

/// The columns of `impersonate.audit` in the table's order, which is the order of the hash. `hash` is the last.
pub(super) static TARGET: Target = Target {
    extension: c"impersonate",
    table: c"audit",
    columns: &[
        (c"event_id", INT8),
        (c"event_time", TIMESTAMPTZ),
        (c"event", TEXT),
        (c"user_name", TEXT),
        (c"session_user_name", TEXT),
        (c"role_name", TEXT),
        (c"impersonation_id", UUID),
        (c"database", TEXT),
        (c"node", TEXT),
        (c"pid", INT4),
        (c"session_id", TEXT),
        (c"application_name", TEXT),
        (c"client_addr", INET),
        (c"command_tag", TEXT),
        (c"statement", TEXT),
        (c"parameters", TEXT_ARRAY),
        (c"relations", TEXT_ARRAY),
        (c"row_count", INT8),
        (c"duration", INTERVAL),
        (c"sqlstate", TEXT),
        (c"grant_id", INT8),
        (c"reason", TEXT),
        (c"detail", JSONB),
        (c"hash", BYTEA),
    ],
    partitioned: c"RANGE (event_time)",
    // What somebody adds to them gets its default.
    insert: c"INSERT INTO impersonate.audit (
        event_id, event_time, event, user_name, session_user_name, role_name, impersonation_id, database, node,
        pid, session_id, application_name, client_addr, command_tag, statement, parameters, relations,
        row_count, duration, sqlstate, grant_id, reason, detail, hash)
        SELECT
        a.event_id, a.event_time, a.event, a.user_name, a.session_user_name, a.role_name, a.impersonation_id,
        a.database, a.node, a.pid, a.session_id, a.application_name, a.client_addr, a.command_tag, a.statement,
        a.parameters, a.relations, a.row_count, a.duration, a.sqlstate, a.grant_id, a.reason, a.detail, a.hash
          FROM pg_catalog.unnest($1) AS a",
    newest: c"SELECT event_id, hash FROM impersonate.audit ORDER BY event_id DESC LIMIT 1",
};

static STATE: StateTarget = StateTarget {
    extension: c"impersonate",
    table: c"audit_state",
    read: c"SELECT ctid, event_id, hash, stored_id FROM impersonate.audit_state ORDER BY event_id DESC LIMIT 1",
};

const BYTEA: u32 = pg_sys::BYTEAOID.to_u32();
const INET: u32 = pg_sys::INETOID.to_u32();
const INT4: u32 = pg_sys::INT4OID.to_u32();
const INT8: u32 = pg_sys::INT8OID.to_u32();
const INTERVAL: u32 = pg_sys::INTERVALOID.to_u32();
const JSONB: u32 = pg_sys::JSONBOID.to_u32();
const TEXT: u32 = pg_sys::TEXTOID.to_u32();
const TEXT_ARRAY: u32 = pg_sys::TEXTARRAYOID.to_u32();
const TIMESTAMPTZ: u32 = pg_sys::TIMESTAMPTZOID.to_u32();
const UUID: u32 = pg_sys::UUIDOID.to_u32();

/// Columns but `hash`.
const HASHED: usize = 23;

/// Set in a writer's process, for its life.
static IS_WRITER: AtomicBool = AtomicBool::new(false);
static MY_LANE: AtomicUsize = AtomicUsize::new(usize::MAX);
static CONNECTED: AtomicBool = AtomicBool::new(false);

/// This process is an audit writer. Whatever watches statements must leave it alone: it would feed on itself.
pub fn is_writer() -> bool {
    IS_WRITER.load(Ordering::Relaxed)
}

/// The extension is created in this database. Needs a transaction.
pub(super) fn extension_exists() -> bool {
    rows::extension_exists(TARGET.extension)
}

/// This transaction creates it, and a writer sees it only after that. Needs a transaction.
pub(super) fn extension_is_mine() -> bool {
    rows::extension_is_mine(TARGET.extension)
}

/// Where the postmaster starts the writer's process.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn impersonate_audit_writer_main(argument: pg_sys::Datum) {
    let (lane, generation) = worker::registered(argument);
    let Some(lane) = LaneHandle::at(lane) else { return };
    IS_WRITER.store(true, Ordering::Relaxed);
    MY_LANE.store(lane.index, Ordering::Relaxed);
    // Before the claim, so that whatever happens the lane learns of this process' end. It is called after the callbacks
    // of the connection, which is only made below: nothing of this process is left in the database then.
    worker::at_exit(at_exit);
    let Some(database) = lane.claim(generation, worker::my_pid()) else {
        return;
    };
    worker::set_up_signals();
    if lane.status().failed_connections >= DOUBTS {
        worker::connect(None);
        CONNECTED.store(true, Ordering::Relaxed);
        clear_if_dropped(lane, database);
        return;
    }
    worker::connect(Some(database));
    CONNECTED.store(true, Ordering::Relaxed);
    lane.connected();
    set_settings();
    Writer::new(lane).run();
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    if let Some(lane) = LaneHandle::at(MY_LANE.load(Ordering::Relaxed)) {
        lane.writer_gone(worker::my_pid(), !CONNECTED.load(Ordering::Relaxed));
    }
}

/// What the database, a role or the configuration may have set otherwise; for whatever runs as the bootstrap superuser.
pub(super) fn set_settings() {
    // Written behind: the commit of whom the events belong to flushes them, by WAL order.
    worker::set(c"synchronous_commit", c"off");
    worker::set(c"default_transaction_read_only", c"off");
    worker::set(c"default_transaction_isolation", c"read committed");
    worker::set(c"default_transaction_deferrable", c"off");
    worker::set(c"statement_timeout", c"0");
    worker::set(c"transaction_timeout", c"0");
    worker::set(c"idle_in_transaction_session_timeout", c"0");
    // A lock is waited for again and again, but so that SIGTERM is noticed in between.
    worker::set(c"lock_timeout", c"10s");
    worker::set(c"search_path", c"pg_catalog");
    worker::set(c"row_security", c"off");
    // Triggers of those who were granted TRIGGER don't run here, as a superuser; only such as the owner made ALWAYS.
    worker::set(c"session_replication_role", c"replica");
    worker::set(c"plan_cache_mode", c"force_generic_plan");
    worker::set(c"jit", c"off");
    worker::set(c"max_parallel_workers_per_gather", c"0");
    // An error is to be told, and tried again after.
    worker::set(c"exit_on_error", c"off");
    // As the table is told by how it is partitioned, in text, and partitions by their bounds.
    worker::set(c"quote_all_identifiers", c"off");
    worker::set(c"timezone", c"UTC");
    worker::set(c"datestyle", c"ISO, YMD");
    // The newest row is found through the primary key, whatever the statistics say.
    worker::set(c"enable_seqscan", c"off");
}

/// The reader of this node's own spool.
fn own_spool() -> Option<Reader> {
    let database = worker::my_database();
    let owner = node::owner(database)?;
    Some(Reader::new(&node::folder(database), &owner))
}

struct Writer {
    lane: LaneHandle,
    pid: i32,
    store: Store,
    scratch: Vec<u8>,
    /// The newest event, once it is known.
    newest: Option<Newest>,
    /// `newest` is to be compared with what the tables say.
    doubtful: bool,
    /// When to look for empty partitions.
    tidy_at: Option<i64>,
    /// Events of the next transaction, at most.
    batch: usize,
    /// How carefully the next event is stored.
    care: Care,
    /// Events that are stored alone from here on, until the one that was refused must have come.
    alone_left: usize,
    failures: u32,
    worked_at: i64,
    asked_to_end_at: Option<i64>,
    /// On a standby.
    keeper: Keeper,
    /// There may be events in this node's own spool, and this is how far they were read.
    take_in: Option<Reader>,
    spools_turn: bool,
    /// Impersonations are watched: role changes come without a statement that would judge them (N1).
    watches: bool,
    /// When it was last logged that they couldn't be judged.
    watch_failed_at: i64,
    /// The last look found no extension.
    missed_extension: bool,
}

/// After an event that the table's types refuse, how to get past it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// As usual, in batches.
    Usual,
    /// Alone, to find out which it is.
    Alone,
    /// Alone, with `client_addr` and `detail` as strings in `detail`.
    AsText,
    /// Alone, without them. The event goes to the server log in full.
    Without,
}

/// What a round came to.
enum Round {
    Nothing,
    Stored,
    /// What was missing is there now.
    Again,
    /// There will be room soon.
    Waits,
    NoExtension,
}

/// The newest event of the database, wherever it went.
#[derive(Clone, Copy)]
struct Newest {
    /// The table, to tell it from one of an extension that was created again.
    relation: u32,
    id: i64,
    hash: Hash,
    /// The newest in the table.
    stored_id: i64,
    /// Where the row of `audit_state` is.
    place: Option<Place>,
}

impl Writer {
    fn new(lane: LaneHandle) -> Self {
        Writer {
            lane,
            pid: worker::my_pid(),
            store: Store::new(&TARGET),
            scratch: Vec::new(),
            newest: None,
            doubtful: true,
            tidy_at: Some(now() + TIDY_AFTER),
            batch: BATCH_EVENTS,
            care: Care::Usual,
            alone_left: 0,
            // After a writer that failed it shows that it works, also when nothing is left to store.
            failures: lane.status().failures.min(1),
            worked_at: now(),
            asked_to_end_at: None,
            keeper: Keeper::new(),
            take_in: own_spool(),
            spools_turn: false,
            watches: false,
            watch_failed_at: 0,
            missed_extension: false,
        }
    }

    fn run(&mut self) {
        let mut found_nothing = false;
        loop {
            if worker::asked_to_end() && self.asked_to_end_at.is_none() {
                self.asked_to_end_at = Some(now());
            }
            if let Err(failure) = self.watch() {
                // It comes again at once, and may fail again.
                if now() - self.watch_failed_at > QUIET {
                    self.watch_failed_at = now();
                    log(&failure, "impersonations are judged again soon");
                }
            }
            match self.round() {
                Ok(Round::Stored) => {
                    self.missed_extension = false;
                    found_nothing = false;
                    self.worked_at = now();
                    self.nap(NAP, false);
                }
                Ok(Round::Nothing) => {
                    if self.leave_if_due() {
                        return;
                    }
                    // Events that came since are seen by `arm`. After a second look in vain the first event wakes.
                    let (length, until_any) = if found_nothing {
                        (self.long_nap(), true)
                    } else {
                        (NAP, false)
                    };
                    found_nothing = true;
                    self.nap(length, until_any);
                }
                Ok(Round::Again) => (),
                Ok(Round::Waits) => nap(WATCH),
                Ok(Round::NoExtension) if self.extension_may_come() => (),
                Ok(Round::NoExtension) => {
                    self.lane.extension_exists(false);
                    log_and_clear(self.lane, "extension impersonate does not exist in its database");
                    if !matches!(self.lane.leave(self.pid, true), Leave::Stay) {
                        return;
                    }
                }
                Err(failure) => self.note(failure),
            }
        }
    }

    /// The extension isn't there for us: who creates it, in a transaction that isn't over, may have granted rights in it. It
    /// may also have come between two looks.
    fn extension_may_come(&mut self) -> bool {
        let ends = self.asked_to_end_at.is_some_and(|asked| now() - asked > LINGER);
        let comes = worker::catch(|| worker::transaction(|| rows::extension_comes(TARGET.extension)));
        let comes = !ends && comes.unwrap_or(false);
        if comes {
            self.lane.disarm();
            nap(PAUSE);
        }
        comes || !std::mem::replace(&mut self.missed_extension, !comes)
    }

    /// One transaction, if there is something to do.
    fn round(&mut self) -> Result<Round, Failure> {
        if worker::in_recovery() {
            return self.round_of_standby();
        }
        // By turns, so that nobody waits for all of a spool.
        self.spools_turn = !self.spools_turn || self.lane.is_empty();
        if self.spools_turn {
            if let Some(round) = self.take_in()? {
                return Ok(round);
            }
        }
        let recovering = self.failures > 0;
        if self.lane.is_empty() && !recovering {
            return worker::catch(|| {
                worker::reload_if_asked();
                check_for_interrupts();
                self.tidy();
                Round::Nothing
            });
        }
        worker::catch(|| {
            worker::reload_if_asked();
            check_for_interrupts();
            worker::report_activity(true);
            let stored = match worker::transaction(|| self.store_batch(&Source::Queue)) {
                Outcome::Stored(stored) => stored,
                Outcome::NoExtension => return Round::NoExtension,
                Outcome::NoPartition(time) => return make_partition(time),
            };
            // From the commit in there to here, nothing can raise or be interrupted. See the head of this file.
            self.lane
                .advance(stored.position, stored.count, Some(worker::last_commit_lsn()));
            self.newest = Some(stored.newest);
            self.doubtful = false;
            if stored.purge {
                self.tidy_at = Some(now() + TIDY_AFTER);
            }
            self.calm_down();
            self.failures = 0;
            self.lane.succeeded();
            worker::report_statistics(false);
            worker::report_activity(false);
            Round::Stored
        })
    }

    /// One round on a standby, where events go into the spool.
    fn round_of_standby(&mut self) -> Result<Round, Failure> {
        self.take_in = own_spool();
        worker::catch(|| {
            worker::reload_if_asked();
            check_for_interrupts();
        })?;
        self.keeper.look_if_asked()?;
        if self.lane.is_empty() && self.failures == 0 {
            return Ok(Round::Nothing);
        }
        worker::report_activity(true);
        let kept = self
            .keeper
            .store(self.lane, &mut self.scratch, BATCH_EVENTS, BATCH_BYTES)?;
        let (count, position) = match kept {
            Kept::Stored(count, position) => (count, position),
            Kept::Full => return Ok(Round::Waits),
            Kept::NoExtension => return Ok(Round::NoExtension),
        };
        // From the sync in there to here, nothing can raise or be interrupted.
        self.lane.advance(position, count, None);
        self.failures = 0;
        self.lane.succeeded();
        worker::report_activity(false);
        Ok(Round::Stored)
    }

    /// After a promotion, or a start that follows one: stores the next events of this node's own spool (N2). None when
    /// there is nothing left to take in.
    fn take_in(&mut self) -> Result<Option<Round>, Failure> {
        let Some(mut reader) = self.take_in.take() else {
            return Ok(None);
        };
        self.keeper.close();
        let database = worker::my_database();
        let (folder, Some(owner)) = (node::folder(database), node::owner(database)) else {
            return Ok(None);
        };
        if !folder.exists() {
            return Ok(None);
        }
        self.keeper.warn_of_strangers(&folder, &owner);
        let known = worker::catch(|| worker::transaction(nodes::known))?;
        let Some(known) = known else { return Ok(None) };
        // What is taken in leaves below, at once.
        let retired: Vec<Known> = known.iter().filter(|known| known.retired).cloned().collect();
        keeper::tidy(&folder, &owner, &retired, 0)?;
        let found = spool::newest(&folder, &owner, keeper::retired(&known));
        let spooled = match found {
            Ok(Some((id, _))) => known.iter().find(|known| known.spool == id),
            Ok(None) => return Ok(None),
            Err(trouble) => {
                // What is there stays there, and rows go on.
                log(&keeper::failure(&trouble), "this node's own spool is left as it is");
                return Ok(None);
            }
        };
        let position = spooled.map_or(0, |known| known.position);
        let batch = match reader.entries(keeper::retired(&known), position + 1, u64::MAX, BATCH_BYTES as usize) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(None),
            Err(trouble) => {
                log(&keeper::failure(&trouble), "this node's own spool is left as it is");
                return Ok(None);
            }
        };
        if batch.entries.is_empty() {
            // All of it is stored. It is at its end: a standby that this node may be again begins another.
            worker::catch(|| {
                worker::transaction(|| nodes::retire(&batch.spool));
                worker::flush_wal(worker::last_commit_lsn());
            })?;
            let removed = spool::remove_confirmed(&folder, &owner, &batch.spool, position, 0);
            if let Err(trouble) = removed {
                log(&keeper::failure(&trouble), "they are in the table");
            }
            return Ok(None);
        }
        let hash = spooled.map_or(chain::START, |known| chain::stored(Some(&known.hash)));
        let first = &batch.entries[0];
        if first.position != position + 1 || first.hash != spool::hash(&hash, first.position, &first.event) {
            let failure = Failure {
                sqlstate: *b"XX001",
                message: format!("this node's own spool does not go on after position {position}"),
                detail: None,
            };
            log(&failure, "it is left as it is");
            return Ok(None);
        }
        self.take_in = Some(reader);
        worker::catch(|| {
            worker::report_activity(true);
            let outcome = worker::transaction(|| self.store_batch(&Source::Spool(&batch)));
            Some(match outcome {
                Outcome::Stored(stored) => {
                    self.newest = Some(stored.newest);
                    self.doubtful = false;
                    self.calm_down();
                    Round::Again
                }
                Outcome::NoExtension => Round::NoExtension,
                Outcome::NoPartition(time) => make_partition(time),
            })
        })
    }

    /// Stores the oldest events, inside a transaction.
    fn store_batch(&mut self, source: &Source) -> Outcome {
        if !rows::hold_extension_again(TARGET.extension) {
            return Outcome::NoExtension;
        }
        let Some(state) = StateTable::open(&STATE) else {
            return Outcome::NoExtension;
        };
        let Some(open) = self.store.open() else {
            state.close();
            return Outcome::NoExtension;
        };
        let relation = open.relation();
        let before = match self.newest {
            Some(newest) if !self.doubtful && !open.is_new && newest.relation == relation => newest,
            memory => newest(memory, relation, state.read(), open.newest()),
        };
        let destination = settings::audit_destination();
        let (to_table, to_log) = (
            destination != AuditDestination::log,
            destination != AuditDestination::table,
        );
        let care = self.care;
        let limit = if care == Care::Usual { self.batch } else { 1 };
        let database = worker::as_valid_text(&worker::my_database_name()).into_owned();
        let node = node::name();
        let batch = open.batch();
        let mut builder = RowBuilder {
            batch: &batch,
            database: &database,
            node: node.as_deref(),
            known: Vec::new(),
            care,
            address: None,
            newest: before,
            to_table,
            lines: to_log.then(Vec::new),
            missing: None,
            purge: false,
        };
        let in_table = before.stored_id == before.id;
        if in_table != to_table && before.id > 0 {
            builder.turn();
        }
        let read = match source {
            _ if builder.missing.is_some() => Some((0, 0)),
            Source::Queue => self
                .lane
                .read(&mut self.scratch, limit, BATCH_BYTES, |record| builder.push(record)),
            Source::Spool(batch) => batch
                .entries
                .iter()
                .take(limit)
                .try_fold(true, |taken, entry| {
                    if !taken {
                        return Some(false);
                    }
                    let mut record = super::event::decode(&entry.event)?;
                    record.origin = Some(Origin {
                        node: node.as_deref().unwrap_or_default(),
                        spool: batch.spool,
                        position: entry.position,
                        hash: entry.hash,
                    });
                    Some(builder.push(&record))
                })
                .map(|_| (0, 0)),
        };
        let Some((count, position)) = read else {
            pgrx::error!("the audit queue holds something that is not an event");
        };
        let RowBuilder {
            newest: after,
            known,
            lines,
            missing,
            purge,
            ..
        } = builder;
        batch.finish();
        if let (Some(time), true) = (missing, after.id == before.id) {
            state.close();
            return Outcome::NoPartition(time);
        }
        known
            .iter()
            .filter(|(_, added)| *added)
            .for_each(|(known, _)| nodes::record(known));
        let place = state.write(
            before.place,
            &State {
                event_id: after.id,
                hash: after.hash.to_vec(),
                stored_id: after.stored_id,
            },
        );
        lines.into_iter().flatten().for_each(log_line);
        Outcome::Stored(StoredBatch {
            count,
            position,
            newest: Newest {
                place: Some(place),
                ..after
            },
            purge,
        })
    }

    /// Removes partitions that are empty, when it is time to look for them.
    fn tidy(&mut self) {
        if self.tidy_at.is_none_or(|due| now() < due) {
            return;
        }
        self.tidy_at = Some(now() + TIDY_AGAIN);
        let done = worker::transaction(|| !rows::hold_extension(TARGET.extension) || partitions::drop_empty());
        if done {
            self.tidy_at = None;
        }
    }

    /// The type of a column refused something.
    fn take_care(&mut self) {
        match self.care {
            Care::Usual => {
                self.care = Care::Alone;
                self.alone_left = BATCH_EVENTS;
            }
            Care::Alone => self.care = Care::AsText,
            Care::AsText | Care::Without => self.care = Care::Without,
        }
    }

    /// Something was stored.
    fn calm_down(&mut self) {
        self.batch = (self.batch * 2).min(BATCH_EVENTS);
        self.alone_left = self.alone_left.saturating_sub(1);
        if self.care != Care::Alone || self.alone_left == 0 {
            self.care = Care::Usual;
        }
    }

    /// N1: on a standby, ends impersonations that a replayed role change broke; and once more after a promotion.
    fn watch(&mut self) -> Result<(), Failure> {
        let standby = worker::in_recovery();
        if standby || std::mem::replace(&mut self.watches, standby) {
            self.watches = standby;
            return worker::catch(super::watch);
        }
        Ok(())
    }

    /// Naps, unless there is something to do already.
    fn nap(&self, milliseconds: u32, until_any: bool) {
        let milliseconds = if self.watches && super::watches() {
            milliseconds.min(WATCH)
        } else {
            milliseconds
        };
        // Near the end sessions only give back what they reserved, which wakes nobody.
        let milliseconds = if self.asked_to_end_at.is_some() {
            milliseconds.min(20)
        } else {
            milliseconds
        };
        if self.lane.arm(until_any) {
            nap(milliseconds);
            self.lane.disarm();
        }
    }

    fn long_nap(&self) -> u32 {
        let left = queue::writer_idle() - (now() - self.worked_at);
        // Past the idle time something is still reserved: look now and then whether it still is.
        let left = if left > 0 { left / 1000 + 1 } else { 1000 };
        left.min(LONG_NAP) as u32
    }

    /// With nothing left to store: leaves, if it is time to. If it has to leave although somebody will still need a
    /// writer, it ends in a way that makes the postmaster start it again, unless that is shutting down.
    fn leave_if_due(&self) -> bool {
        let lingered = self.asked_to_end_at.is_some_and(|asked| now() - asked > LINGER);
        let idle = now() - self.worked_at >= queue::writer_idle();
        if !idle && self.asked_to_end_at.is_none() && !self.lane.status().evict {
            return false;
        }
        worker::report_statistics(true);
        match self.lane.leave(self.pid, lingered) {
            Leave::Stay => false,
            Leave::Done => true,
            Leave::Needed => worker::end_failed(),
        }
    }

    /// Leaves with events in the queue. They stay there, and the postmaster starts a writer again in a while; but if
    /// server or database come to their end before, the events are on record in the server log.
    fn give_up(&self, why: &str) -> ! {
        log_all(self.lane, why);
        self.lane.give_up(self.pid);
        worker::end_failed()
    }

    /// Takes note of a failure, and pauses.
    fn note(&mut self, failure: Failure) {
        // Cancelled, lock timeout, deadlock, a conflict with what is replayed: others are in the way, and the writer is fine.
        let excused = matches!(&failure.sqlstate, b"57014" | b"55P03" | b"40P01" | b"40001");
        if excused {
            // So that not even an incessant cancelling keeps it from getting on.
            self.batch = (self.batch / 4).max(1);
        } else {
            self.store.forget();
            self.keeper.close();
            if self.take_in.is_none() {
                self.take_in = own_spool();
            }
            self.doubtful = true;
            self.scratch = Vec::new();
        }
        if failure.sqlstate.starts_with(b"22") && self.care != Care::Without && !self.lane.is_empty() {
            self.take_care();
            log(&failure, "trying again with more care");
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if !excused {
            log(&failure, "events are kept");
        }
        self.lane.failed(failure.sqlstate, failure.message.as_bytes(), excused);
        let status = self.lane.status();
        if self.asked_to_end_at.is_some_and(|asked| now() - asked > LINGER) {
            self.give_up("the writer has to end and cannot store it");
        }
        if status.evict && !excused && self.failures > 2 {
            self.give_up("the writer has to make way and cannot store it");
        }
        if !excused {
            let pause = PAUSE << (self.failures - 1).min(6);
            self.pause(pause.min(if self.asked_to_end_at.is_some() {
                1000
            } else {
                LONGEST_PAUSE
            }));
        }
    }

    /// Pauses so many milliseconds; those who wait can cut it short, but not below the first pause.
    fn pause(&self, milliseconds: u32) {
        let began = now();
        let passed = || (now() - began) / 1000;
        while passed() < i64::from(PAUSE) {
            nap(PAUSE);
        }
        let mut left = milliseconds.saturating_sub(PAUSE);
        if self.watches && super::watches() {
            // Not even a disk that is full keeps it from watching.
            left = left.min(WATCH);
        }
        if left > 0 {
            nap(left);
        }
    }
}

/// Where the events of a batch are.
enum Source<'a> {
    Queue,
    /// This node's own spool, from when it was a standby.
    Spool(&'a spool::Batch),
}

enum Outcome {
    Stored(StoredBatch),
    /// There is no table.
    NoExtension,
    /// For this time.
    NoPartition(i64),
}

struct StoredBatch {
    count: usize,
    position: u64,
    newest: Newest,
    /// There was a PURGE among them.
    purge: bool,
}

/// Where numbers and hashes go on: from the newest of what this process remembers, what `audit_state` says, and the
/// newest row. The first of them counts where numbers are the same.
fn newest(
    memory: Option<Newest>,
    relation: u32,
    state: Option<(Place, State)>,
    row: Option<(i64, Option<Vec<u8>>)>,
) -> Newest {
    let place = state.as_ref().map(|(place, _)| *place);
    let memory = memory.filter(|memory| memory.relation == relation);
    let state = state.map(|(_, state)| Newest {
        relation,
        id: state.event_id,
        hash: chain::stored(Some(&state.hash)),
        stored_id: state.stored_id,
        place,
    });
    let row = row.map(|(id, hash)| Newest {
        relation,
        id,
        hash: chain::stored(hash.as_deref()),
        stored_id: id,
        place,
    });
    let start = Newest {
        relation,
        id: 0,
        hash: chain::START,
        stored_id: 0,
        place,
    };
    let newest =
        [memory, state, row]
            .into_iter()
            .flatten()
            .fold(start, |newest, other| if other.id > newest.id { other } else { newest });
    Newest { place, ..newest }
}

fn make_partition(time: i64) -> Round {
    let made = worker::transaction(|| rows::hold_extension(TARGET.extension).then(|| partitions::ensure(time)));
    match made {
        None => return Round::NoExtension,
        Some(true) => (),
        // Somebody else made it just now, or is about to take it away.
        Some(false) => nap(PAUSE),
    }
    Round::Again
}

/// A column's value in two forms: for the hash, and for the table.
#[derive(Clone, Copy)]
struct Column<'a> {
    value: Value<'a>,
    field: Field<'a>,
}

impl<'a> Column<'a> {
    const NULL: Self = Column {
        value: Value::Null,
        field: Field::Null,
    };

    fn integer(number: Option<i64>) -> Self {
        number.map_or(Self::NULL, |number| Column {
            value: Value::Integer(number),
            field: Field::Integer(number),
        })
    }

    fn time(time: i64) -> Self {
        Column {
            value: Value::Timestamp(time),
            field: Field::Timestamp(time),
        }
    }

    fn duration(microseconds: Option<i64>) -> Self {
        microseconds.map_or(Self::NULL, |microseconds| Column {
            value: Value::Interval {
                months: 0,
                days: 0,
                microseconds,
            },
            field: Field::Interval(microseconds),
        })
    }

    fn uuid(uuid: Option<[u8; 16]>) -> Self {
        uuid.map_or(Self::NULL, |uuid| Column {
            value: Value::Uuid(uuid),
            field: Field::Uuid(uuid),
        })
    }

    fn text(text: Option<&'a [u8]>) -> Self {
        text.map_or(Self::NULL, |text| Column {
            value: Value::Text(text),
            field: Field::Text(text),
        })
    }

    fn array(list: Option<&'a [Option<&'a [u8]>]>) -> Self {
        list.map_or(Self::NULL, |list| Column {
            value: Value::TextArray(list),
            field: Field::TextArray(list),
        })
    }

    fn parsed(parsed: Option<Parsed<'a>>) -> Self {
        parsed.map_or(Self::NULL, |parsed| Column {
            value: Value::Text(parsed.text),
            field: Field::Parsed(parsed),
        })
    }
}

/// Makes rows of records.
struct RowBuilder<'b> {
    batch: &'b Batch<'b>,
    database: &'b [u8],
    /// This node's name.
    node: Option<&'b [u8]>,
    /// What is there of other nodes' spools, and whether this batch adds to it.
    known: Vec<(Known, bool)>,
    care: Care,
    /// The last client address, as it was and parsed: the next is likely the same.
    address: Option<(Vec<u8>, Parsed<'b>)>,
    newest: Newest,
    to_table: bool,
    /// For the server log, if rows go there.
    lines: Option<Vec<String>>,
    /// The time of an event for which there is no partition. No other is taken after it.
    missing: Option<i64>,
    purge: bool,
}

impl<'b> RowBuilder<'b> {
    /// Adds a row; but none for what another node sent before. Returns false, and does nothing, when there is no place
    /// for it.
    fn push(&mut self, record: &Record) -> bool {
        if self.to_table && !self.has_place(record.time) {
            return false;
        }
        if record.origin.is_none_or(|origin| self.is_next(&origin)) {
            self.purge |= record.kind == Kind::Purge;
            self.put(record, self.to_table);
        }
        true
    }

    fn has_place(&mut self, time: i64) -> bool {
        let takes = self.batch.takes(time);
        if !takes {
            self.missing = Some(time);
        }
        takes
    }

    /// N2: whether an event of another node is the next of its spool, and then it counts as being there. What isn't was
    /// stored already, or its sender is told that it was not.
    fn is_next(&mut self, origin: &Origin) -> bool {
        if self.known.is_empty() {
            self.known = nodes::known()
                .unwrap_or_default()
                .into_iter()
                .map(|known| (known, false))
                .collect();
        }
        let of_node = |(known, _): &&mut (Known, bool)| known.node == origin.node && !known.retired;
        if let Some((known, added)) = self.known.iter_mut().find(|(known, _)| known.spool == origin.spool) {
            let next = !known.retired && known.node == origin.node && known.position + 1 == origin.position;
            if next {
                (known.position, known.hash, *added) = (origin.position, origin.hash.to_vec(), true);
            }
            return next;
        }
        let first = origin.position == 1 && self.known.iter_mut().find(of_node).is_none();
        if first {
            let known = Known {
                spool: origin.spool,
                node: origin.node.to_vec(),
                position: 1,
                hash: origin.hash.to_vec(),
                retired: false,
            };
            self.known.push((known, true));
        }
        first
    }

    /// Adds a row of the writer's own, which goes to the table in any case: from here on rows go elsewhere, or come back.
    fn turn(&mut self) {
        let Newest {
            id, stored_id, hash, ..
        } = self.newest;
        let detail = if self.to_table {
            let (first, hash) = (stored_id + 1, hexadecimal(&hash));
            let to = match self.lines {
                Some(_) => "both",
                None => "table",
            };
            format!("{{\"destination\": \"{to}\", \"first\": {first}, \"last\": {id}, \"hash\": \"{hash}\"}}")
        } else {
            "{\"destination\": \"log\"}".to_owned()
        };
        let user = identity::role_name(identity::current_user()).unwrap_or_default();
        let event = Event {
            kind: Kind::Destination,
            time: now(),
            user_name: &user,
            session_user_name: &user,
            role_name: &user,
            impersonation_id: None,
            pid: worker::my_pid(),
            session_start: identity::session_start(),
            application_name: identity::application_name(),
            client_addr: None,
            command_tag: None,
            statement: None,
            parameters: None,
            relations: None,
            row_count: None,
            duration_us: None,
            sqlstate: super::event::SUCCESSFUL,
            grant_id: None,
            reason: None,
            detail: Some(detail.as_bytes()),
            origin: None,
        };
        let mut bytes = Vec::new();
        event.encode(event.size(), &mut bytes);
        if let Some(record) = super::event::decode(&bytes) {
            if self.has_place(record.time) {
                self.put(&record, true);
            }
        }
    }

    fn put(&mut self, record: &Record, to_table: bool) {
        let id = self.newest.id + 1;
        let session_id = SessionId::of(record);
        let (client_addr, detail) = self.parsed(record);
        let parameters: Option<Vec<_>> = record.parameters.map(|list| list.iter().collect());
        let relations: Option<Vec<_>> = record.relations.map(|list| list.iter().collect());
        // Roles are of all databases, whatever their encodings, and so are sessions that tell of this one's impersonations.
        let statement = record.statement.map(worker::as_valid_text);
        let reason = record.reason.map(worker::as_valid_text);
        let names = [record.user_name, record.session_user_name, record.role_name].map(worker::as_valid_text);
        let [user_name, session_user_name, role_name] = &names;
        let columns: [Column; HASHED] = [
            Column::integer(Some(id)),
            Column::time(record.time),
            Column::text(Some(record.kind.as_str().as_bytes())),
            Column::text(Some(user_name)),
            Column::text(Some(session_user_name)),
            Column::text(Some(role_name)),
            Column::uuid(record.impersonation_id),
            Column::text(Some(self.database)),
            Column::text(record.origin.map(|origin| origin.node).or(self.node)),
            Column::integer(Some(i64::from(record.pid))),
            Column::text(Some(session_id.as_bytes())),
            Column::text(record.application_name),
            Column::parsed(client_addr),
            Column::text(record.command_tag),
            Column::text(statement.as_deref()),
            Column::array(parameters.as_deref()),
            Column::array(relations.as_deref()),
            Column::integer(record.row_count),
            Column::duration(record.duration_us),
            Column::text(Some(&record.sqlstate)),
            Column::integer(record.grant_id),
            Column::text(reason.as_deref()),
            Column::parsed(detail),
        ];
        let mut hasher = RowHasher::new(&self.newest.hash);
        columns.iter().for_each(|column| hasher.column(column.value));
        let hash = hasher.finish();
        if to_table {
            let mut fields = [Field::Null; HASHED + 1];
            fields
                .iter_mut()
                .zip(&columns)
                .for_each(|(field, column)| *field = column.field);
            fields[HASHED] = Field::Bytes(&hash);
            self.batch.push(record.time, &fields);
            self.newest.stored_id = id;
        }
        if let Some(lines) = &mut self.lines {
            let decode: line::Decode = match self.care {
                Care::Usual | Care::Alone => &identity::to_utf8,
                Care::AsText | Care::Without => &line::bytewise,
            };
            let mut line = Line::new(decode);
            for ((name, _), column) in TARGET.columns.iter().zip(&columns) {
                line.column(&name.to_string_lossy(), &column.value, *name == c"detail");
            }
            lines.push(format!("impersonate: {}", line.finish(&hash)));
        }
        self.newest.id = id;
        self.newest.hash = hash;
    }

    /// `client_addr` and `detail`, whose types may refuse the text.
    fn parsed(&mut self, record: &Record) -> (Option<Parsed<'b>>, Option<Parsed<'b>>) {
        let batch = self.batch;
        let place = record.origin.map(|origin| place_in_spool(&origin));
        match self.care {
            Care::Usual | Care::Alone => {
                let detail = match &place {
                    Some(place) => Some(with_members(record.detail, place)),
                    None => record.detail.map(<[u8]>::to_vec),
                };
                (
                    record.client_addr.map(|text| self.address(text)),
                    detail.map(|text| batch.parse(pg_sys::JSONBOID, &text)),
                )
            }
            Care::AsText => {
                let mut json = b"{".to_vec();
                put_json(&mut json, "client_addr", record.client_addr, false);
                put_json(&mut json, "detail", record.detail, false);
                json.push(b'}');
                if let Some(place) = &place {
                    json = with_members(Some(&json), place);
                }
                (None, Some(batch.parse(pg_sys::JSONBOID, &json)))
            }
            Care::Without => {
                log_record(
                    record,
                    "client_addr or detail is not what it should be; the rest is stored",
                );
                (None, None)
            }
        }
    }

    fn address(&mut self, text: &[u8]) -> Parsed<'b> {
        match &self.address {
            Some((known, parsed)) if known == text => *parsed,
            _ => {
                let parsed = self.batch.parse(pg_sys::INETOID, text);
                self.address = Some((text.to_vec(), parsed));
                parsed
            }
        }
    }
}

/// What the detail of another node's event says of its place there, as members of a JSON object.
fn place_in_spool(origin: &Origin) -> String {
    format!(
        "\"node_position\": {}, \"node_hash\": \"{}\"",
        origin.position,
        hexadecimal(&origin.hash)
    )
}

/// A JSON object with more members.
fn with_members(object: Option<&[u8]>, members: &str) -> Vec<u8> {
    let inside = object
        .and_then(|object| object.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}"))
        .map(<[u8]>::trim_ascii)
        .filter(|inside| !inside.is_empty());
    let separator: &[u8] = if inside.is_some() { b", " } else { b"" };
    [
        &b"{"[..],
        inside.unwrap_or_default(),
        separator,
        members.as_bytes(),
        b"}",
    ]
    .concat()
}

/// As %c in log_line_prefix.
struct SessionId {
    text: [u8; 32],
    length: usize,
}

impl SessionId {
    fn of(record: &Record) -> Self {
        let mut id = SessionId {
            text: [0; 32],
            length: 0,
        };
        // Sixteen and eight digits at most, so it fits.
        let _ = write!(id, "{:x}.{:x}", record.session_start, record.pid);
        id
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl std::fmt::Write for SessionId {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self
            .text
            .get_mut(self.length..self.length + text.len())
            .ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// Lanes of databases that were dropped with events in the queue: the events go to the server log, and the lanes are
/// free again. For whoever finds all lanes taken.
pub(super) fn clear_deserted(mine: u32) {
    if !worker::in_transaction() {
        return;
    }
    for lane in queue::deserted(mine) {
        let database = lane.status().database;
        if !worker::database_exists(database) && lane.claim_deserted(database, worker::my_pid()) {
            log_and_clear(lane, DROPPED);
            lane.leave(worker::my_pid(), true);
        }
    }
}

const DROPPED: &str = "their database does not exist any more";

/// In a writer that couldn't connect: if that is because the database is gone, so is the table.
fn clear_if_dropped(lane: LaneHandle, database: u32) {
    if worker::transaction(|| worker::database_exists(database)) {
        lane.connected();
        worker::end_failed();
    }
    log_and_clear(lane, DROPPED);
    lane.leave(worker::my_pid(), true);
}

/// Events that no table can take any more: into the server log, and out of the queue.
fn log_and_clear(lane: LaneHandle, why: &str) {
    if let Some((count, position)) = log_all(lane, why) {
        lane.discard(position, count);
    }
}

/// Writes what is queued to the server log. Returns the number of events and the position behind them.
fn log_all(lane: LaneHandle, why: &str) -> Option<(usize, u64)> {
    let read = lane.read(&mut Vec::new(), usize::MAX, u64::MAX, |record| {
        log_record(record, why);
        true
    });
    if read.is_none() {
        log_line("impersonate audit queue holds something that is not an event".to_owned());
    }
    read
}

pub(super) const ALONE: &str = "in single-user mode there is no audit writer";

/// Why an event goes to the server log that the queue didn't take.
pub(super) fn no_room() -> &'static str {
    if worker::is_alone() {
        ALONE
    } else {
        "the queue has no room"
    }
}

/// An event that can't be stored: into the server log. Raises nothing.
pub(super) fn log_event(event: &Event, why: &str) {
    let mut bytes = Vec::new();
    event.encode(event.size(), &mut bytes);
    if let Some(record) = super::event::decode(&bytes) {
        log_record(&record, why);
    }
}

/// One line of JSON, in ASCII whatever the encoding: other bytes are written as \u00xx each.
fn log_record(record: &Record, why: &str) {
    let mut json = format!("{{\"event\": \"{}\"", record.kind.as_str()).into_bytes();
    let number = |json: &mut Vec<u8>, name, number: Option<i64>| {
        put_json(
            json,
            name,
            number
                .map(|number| number.to_string())
                .as_ref()
                .map(|text| text.as_bytes()),
            true,
        );
    };
    let list = |list: Option<super::event::List>| {
        list.map(|list| {
            let elements: Vec<Vec<u8>> = list
                .iter()
                .map(|element| element.map_or(b"NULL".to_vec(), |text| text.to_vec()))
                .collect();
            elements.join(&b", "[..])
        })
    };
    let uuid = record
        .impersonation_id
        .map(|id| id.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")));
    number(&mut json, "event_time", Some(record.time));
    put_json(&mut json, "user_name", Some(record.user_name), true);
    put_json(&mut json, "session_user_name", Some(record.session_user_name), true);
    put_json(&mut json, "role_name", Some(record.role_name), true);
    put_json(
        &mut json,
        "impersonation_id",
        uuid.as_ref().map(|text| text.as_bytes()),
        true,
    );
    put_json(&mut json, "session_id", Some(SessionId::of(record).as_bytes()), true);
    put_json(&mut json, "application_name", record.application_name, true);
    put_json(&mut json, "client_addr", record.client_addr, true);
    put_json(&mut json, "command_tag", record.command_tag, true);
    put_json(&mut json, "statement", record.statement, true);
    put_json(&mut json, "parameters", list(record.parameters).as_deref(), true);
    put_json(&mut json, "relations", list(record.relations).as_deref(), true);
    number(&mut json, "row_count", record.row_count);
    number(&mut json, "duration", record.duration_us);
    put_json(&mut json, "sqlstate", Some(&record.sqlstate), true);
    number(&mut json, "grant_id", record.grant_id);
    put_json(&mut json, "reason", record.reason, true);
    put_json(&mut json, "detail", record.detail, true);
    json.push(b'}');
    log_line(format!(
        "impersonate audit event not stored, {why}: {}",
        String::from_utf8_lossy(&json)
    ));
}

/// Adds a member with a string for its value, unless that is NULL.
fn put_json(json: &mut Vec<u8>, name: &str, text: Option<&[u8]>, ascii: bool) {
    let Some(text) = text else { return };
    if json.len() > 1 {
        json.extend_from_slice(b", ");
    }
    json.extend_from_slice(format!("\"{name}\": \"").as_bytes());
    for byte in text {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7E => json.push(*byte),
            0x80.. if !ascii => json.push(*byte),
            _ => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    json.push(b'"');
}

fn log(failure: &Failure, what_now: &str) {
    let sqlstate = String::from_utf8_lossy(&failure.sqlstate).into_owned();
    let detail = failure
        .detail
        .as_ref()
        .map_or(String::new(), |detail| format!(" ({detail})"));
    let message = &failure.message;
    log_line(format!(
        "impersonate audit writer could not store events, {what_now}: {message}{detail}, SQLSTATE {sqlstate}"
    ));
}

/// For the server log alone: events are nobody else's business.
pub(super) fn log_line(message: String) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, function_name!()).report(PgLogLevel::LOG_SERVER_ONLY);
}
