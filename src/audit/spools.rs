//! What the processes of a standby tell each other of their spools, in shared memory: a place for each database.
//!
//! The lock guards which database has which place, and the error. The rest are atomics: the *writer* of the database's
//! lane alone writes `stored`, its *shipper* alone the others, but for `look`, which the one sets and the other takes
//! back. Nothing is waited for and nothing raised while the lock is held.

use super::queue::LastError;
use crate::pg::shmem::{Area, Lock};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64};

/// Databases with a spool, at most: as many as there can be queues.
const PLACES: usize = 64;

#[repr(C)]
struct Header {
    places: [Place; PLACES],
}

#[repr(C)]
struct Place {
    database: AtomicU32,
    /// The newest position that is synced; 0 until a writer opened the spool.
    stored: AtomicU64,
    /// The writer is to look what became of its spool.
    look: AtomicBool,
    shipper_pid: AtomicI32,
    connected: AtomicBool,
    /// The newest position that the primary has said to have.
    confirmed: AtomicU64,
    /// When the primary last answered.
    answered_at: AtomicI64,
    last_error: LastError,
}

crate::pg::shmem::shared!(Header);

static AREA: Area<Header> = Area::new(c"impersonate spools", || 0, || 1, |_| ());

/// Asks for the shared memory, from `_PG_init` while preloading.
pub(super) fn init() {
    AREA.register();
}

/// The place of a database.
#[derive(Clone, Copy)]
pub(super) struct Spool {
    place: &'static Place,
    lock: Lock,
}

/// What there is to know of a shipper.
pub(super) struct Shipping {
    pub pid: i32,
    pub connected: bool,
    pub confirmed: u64,
    pub answered_at: i64,
    /// When, SQLSTATE, message.
    pub error: Option<(i64, String, String)>,
}

/// The place of a database, which gets one if it has none: one of a database that has no shipper, should none be free.
/// None when all are taken.
pub(super) fn of(database: u32) -> Option<Spool> {
    let header = AREA.get()?;
    let lock = AREA.lock(0);
    let place = lock.exclusive(|| {
        let places = &header.places;
        let is = |id: u32| places.iter().find(|place| place.database.load(Relaxed) == id);
        if let Some(known) = is(database) {
            return Some(known);
        }
        let place = is(0).or_else(|| places.iter().find(|place| place.shipper_pid.load(Relaxed) == 0))?;
        place.stored.store(0, Release);
        place.connected.store(false, Relaxed);
        place.confirmed.store(0, Relaxed);
        place.answered_at.store(0, Relaxed);
        place.last_error.clear();
        place.database.store(database, Relaxed);
        Some(place)
    })?;
    Some(Spool { place, lock })
}

/// The place of a database, if it has one.
pub(super) fn known(database: u32) -> Option<Spool> {
    let header = AREA.get()?;
    let lock = AREA.lock(0);
    let place = lock.shared(|| {
        header
            .places
            .iter()
            .find(|place| place.database.load(Relaxed) == database)
    })?;
    Some(Spool { place, lock })
}

impl Spool {
    /// What is synced up to here may be sent.
    pub fn stored(&self) -> u64 {
        self.place.stored.load(Acquire)
    }

    pub fn set_stored(&self, position: u64) {
        self.place.stored.store(position, Release);
    }

    pub fn ask_to_look(&self) {
        self.place.look.store(true, Release);
    }

    /// Whether the writer was asked to look.
    pub fn take_look(&self) -> bool {
        self.place.look.load(Relaxed) && self.place.look.swap(false, Acquire)
    }

    /// The process becomes the shipper, unless there is one that `lives`.
    pub fn claim(&self, pid: i32, lives: impl Fn(i32) -> bool) -> bool {
        let now = self.place.shipper_pid.load(Relaxed);
        if now != 0 && now != pid && lives(now) {
            return false;
        }
        self.place
            .shipper_pid
            .compare_exchange(now, pid, Relaxed, Relaxed)
            .is_ok()
    }

    pub fn give_up(&self, pid: i32) {
        self.place.connected.store(false, Relaxed);
        let _ = self.place.shipper_pid.compare_exchange(pid, 0, Relaxed, Relaxed);
    }

    pub fn set_connected(&self, connected: bool) {
        self.place.connected.store(connected, Relaxed);
    }

    pub fn set_confirmed(&self, position: u64, now: i64) {
        self.place.confirmed.store(position, Relaxed);
        self.place.answered_at.store(now, Relaxed);
    }

    pub fn failed(&self, sqlstate: [u8; 5], message: &[u8]) {
        self.lock.exclusive(|| self.place.last_error.set(sqlstate, message));
    }

    pub fn shipping(&self) -> Shipping {
        let place = self.place;
        Shipping {
            pid: place.shipper_pid.load(Relaxed),
            connected: place.connected.load(Relaxed),
            confirmed: place.confirmed.load(Relaxed),
            answered_at: place.answered_at.load(Relaxed),
            error: self.lock.shared(|| place.last_error.get()),
        }
    }
}
