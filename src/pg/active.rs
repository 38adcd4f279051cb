//! The shared table of active impersonations: two entries per client backend, in places of its own.
//!
//! The first is the impersonation in force. The second is the one from before the transaction that a ROLLBACK would
//! bring back, or the end of a local one: it isn't active, but whoever changes roles must not break it meanwhile.
//!
//! What protects it: the lock, in exclusive mode to write, in shared mode to read and copy. A backend begins and ends
//! its own entries; another one writes only when an entry was judged, and why its backend is to end. The lock is held
//! for a copy of one entry, or of the table, and no other lock is taken while it is held. Nothing here raises once the
//! table is attached, so entries can be cleared while a transaction ends.

use super::guc::TargetState;
use super::version;
use pgrx::pg_guard;
use pgrx::pg_sys;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// One active impersonation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// 0: nobody impersonates here.
    pub pid: i32,
    pub database: pg_sys::Oid,
    pub state: TargetState,
    /// `MyStartTime` of its backend.
    pub session_start: i64,
    /// When its criteria were last judged.
    pub judged_at: pg_sys::TimestampTz,
}

/// Bytes of an [`Entry`]'s text for others.
const NOTE: usize = 1024;

/// Text or other bytes of an entry, as much as fits.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Note {
    length: u16,
    bytes: [u8; NOTE],
}

impl Note {
    pub const EMPTY: Note = Note {
        length: 0,
        bytes: [0; NOTE],
    };

    /// None when it doesn't fit.
    pub fn new(bytes: &[u8]) -> Option<Note> {
        let mut note = Note::EMPTY;
        note.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        note.length = bytes.len() as u16;
        Some(note)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).min(NOTE)]
    }
}

/// An entry with what is seldom read.
#[repr(C)]
struct Place {
    entry: Entry,
    /// What judging needs of the rights of the entry's database, for sessions of other databases.
    rights: Note,
    /// Why another session ends this one; empty unless it does.
    doom: Note,
    /// The process whose connection started with a target that it can't have yet; 0 for none. In the first place alone.
    refused: AtomicI32,
}

/// Which of a backend's two entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    InForce = 0,
    MayComeBack = 1,
}

#[repr(C)]
struct Table {
    lock: *mut pg_sys::LWLock,
    places: usize,
    /// Entries in use. Read without the lock by whoever only wants to know whether there are any.
    used: AtomicU32,
    /// Those of them that were judged by objects too (A6).
    full: AtomicU32,
    /// Connections that started with a target that they can't have yet.
    refused: AtomicU32,
    /// When a statement last changed what is judged.
    changed_at: pg_sys::TimestampTz,
    first: [Place; 0],
}

static mut TABLE: *mut Table = std::ptr::null_mut();
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

const TRANCHE: &std::ffi::CStr = c"impersonate_active";

fn places() -> usize {
    // SAFETY: set before shared memory is sized. Auxiliary processes and prepared transactions have numbers above.
    2 * unsafe { pg_sys::MaxBackends as usize }
}

fn size() -> usize {
    std::mem::size_of::<Table>() + places() * std::mem::size_of::<Place>()
}

/// Asks for the table. In the postmaster, while libraries are preloaded.
pub fn install() {
    // SAFETY: single-threaded, before any backend runs.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: in the hook made for it.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(size());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: in the hook made for it; the named tranche was requested above; entries are plain data, all zero at first.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let table: *mut Table = pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), size(), &raw mut found).cast();
        if !found {
            std::ptr::write_bytes(table.cast::<u8>(), 0, size());
            (*table).lock = &raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock;
            (*table).places = places();
        }
        TABLE = table;
    }
}

/// Whether the library was preloaded, so that the table is there.
pub fn available() -> bool {
    // SAFETY: set once, in the postmaster.
    unsafe { !TABLE.is_null() }
}

/// The place of a number. Only with the lock held, or for one's own.
unsafe fn place(number: usize) -> *mut Place {
    // SAFETY: the caller's promise that the table is there and has that many.
    unsafe { (&raw mut (*TABLE).first).cast::<Place>().add(number) }
}

/// Runs `body` with the table locked; it must not raise.
fn locked<R>(mode: pg_sys::LWLockMode::Type, body: impl FnOnce() -> R) -> R {
    // SAFETY: the table is there, as the callers have looked; the lock is released before anything can raise.
    unsafe {
        pg_sys::LWLockAcquire((*TABLE).lock, mode);
        let result = body();
        pg_sys::LWLockRelease((*TABLE).lock);
        result
    }
}

/// Sets or clears one of this backend's own entries. `rights` is for sessions of other databases.
pub fn publish(slot: Slot, entry: Option<(&Entry, &Note)>) {
    if !available() {
        return;
    }
    let Some(own) = version::backend_slot() else { return };
    // SAFETY: the place is this backend's; the lock is held for the copy.
    unsafe {
        let number = 2 * own + slot as usize;
        if number >= (*TABLE).places {
            return;
        }
        locked(pg_sys::LWLockMode::LW_EXCLUSIVE, || {
            let place = &mut *place(number);
            let was = place.entry.pid != 0;
            let was_full = was && place.entry.state.rules.full;
            let is_full = entry.is_some_and(|(entry, _)| entry.state.rules.full);
            match entry {
                Some((entry, rights)) => {
                    place.entry = *entry;
                    place.rights = *rights;
                    place.doom.length = 0;
                }
                None => place.entry.pid = 0,
            }
            match (was, entry.is_some()) {
                (false, true) => _ = (*TABLE).used.fetch_add(1, Ordering::Release),
                (true, false) => _ = (*TABLE).used.fetch_sub(1, Ordering::Release),
                _ => (),
            }
            match (was_full, is_full) {
                (false, true) => _ = (*TABLE).full.fetch_add(1, Ordering::Release),
                (true, false) => _ = (*TABLE).full.fetch_sub(1, Ordering::Release),
                _ => (),
            }
        });
    }
}

/// This connection started with a target that it can't have, or no longer does. Takes no lock and raises nothing.
pub fn set_refused(refused: bool) {
    if !available() {
        return;
    }
    let Some(own) = version::backend_slot() else { return };
    // SAFETY: the place is this backend's; only atomics of it are touched.
    unsafe {
        let number = 2 * own;
        if number >= (*TABLE).places {
            return;
        }
        let pid = if refused { super::identity::pid() } else { 0 };
        let was = (*place(number)).refused.swap(pid, Ordering::AcqRel);
        match (was != 0, refused) {
            (false, true) => _ = (*TABLE).refused.fetch_add(1, Ordering::Release),
            (true, false) => _ = (*TABLE).refused.fetch_sub(1, Ordering::Release),
            _ => (),
        }
    }
}

/// Connections that started with a target that they can't have yet.
pub fn refused() -> Vec<i32> {
    // SAFETY: atomics in shared memory.
    unsafe {
        if !available() || (*TABLE).refused.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let pids = (0..(*TABLE).places).map(|number| (*place(number)).refused.load(Ordering::Acquire));
        pids.filter(|pid| *pid != 0).collect()
    }
}

/// Whether there is any entry at all. Takes no lock; whoever needs to be sure holds the lock that switches take.
pub fn any() -> bool {
    // SAFETY: an atomic in shared memory.
    available() && unsafe { (*TABLE).used.load(Ordering::Acquire) } != 0
}

/// Whether there is an entry that was judged by objects too. As [`any`].
pub fn any_full() -> bool {
    // SAFETY: as above.
    available() && unsafe { (*TABLE).full.load(Ordering::Acquire) } != 0
}

/// What the entry of an impersonation has for sessions of other databases.
pub fn rights_of(pid: i32, id: &[u8; 16]) -> Option<Note> {
    find(pid, id, |place| place.rights)
}

/// Why this backend is ended by another, if it is.
pub fn doom(id: &[u8; 16]) -> Option<Note> {
    find(super::identity::pid(), id, |place| place.doom).filter(|doom| doom.length != 0)
}

fn find<R>(pid: i32, id: &[u8; 16], read: impl FnOnce(&Place) -> R) -> Option<R> {
    if !available() {
        return None;
    }
    // SAFETY: the lock is held while the place is read.
    locked(pg_sys::LWLockMode::LW_SHARED, || unsafe {
        (0..(*TABLE).places)
            .map(|number| &*place(number))
            .find(|place| place.entry.pid == pid && place.entry.state.id == *id)
            .map(read)
    })
}

/// Leaves word for the backend of an impersonation why it is about to be ended. False when it is gone.
pub fn foretell(pid: i32, id: &[u8; 16], doom: &Note) -> bool {
    // SAFETY: the lock is held while the place is written.
    available()
        && locked(pg_sys::LWLockMode::LW_EXCLUSIVE, || unsafe {
            let found = (0..(*TABLE).places)
                .map(|number| &mut *place(number))
                .find(|place| place.entry.pid == pid && place.entry.state.id == *id);
            found.map(|place| place.doom = *doom).is_some()
        })
}

/// Notes that all entries were judged after a change, at `now`, but for those that `failed` names.
pub fn judged(now: pg_sys::TimestampTz, failed: &[[u8; 16]]) {
    // SAFETY: the lock is held while the places are written.
    locked(pg_sys::LWLockMode::LW_EXCLUSIVE, || unsafe {
        (*TABLE).changed_at = now;
        for number in 0..(*TABLE).places {
            let entry = &mut (*place(number)).entry;
            if entry.pid != 0 && !failed.contains(&entry.state.id) {
                entry.judged_at = now;
            }
        }
    });
}

/// Notes that this backend's impersonation was judged again, with what others now need to know of its rights.
pub fn judged_own(id: &[u8; 16], now: pg_sys::TimestampTz, rights: &Note) {
    let pid = super::identity::pid();
    let Some(own) = version::backend_slot() else { return };
    // SAFETY: the lock is held while the place is written.
    locked(pg_sys::LWLockMode::LW_EXCLUSIVE, || unsafe {
        for number in 2 * own..(2 * own + 2).min((*TABLE).places) {
            let place = &mut *place(number);
            if place.entry.pid == pid && place.entry.state.id == *id {
                place.entry.judged_at = now;
                place.rights = *rights;
            }
        }
    });
}

/// When a statement last changed what is judged; 0 for never since the server's start.
pub fn changed_at() -> pg_sys::TimestampTz {
    // SAFETY: the lock is held while it is read.
    locked(pg_sys::LWLockMode::LW_SHARED, || unsafe { (*TABLE).changed_at })
}

/// In a parallel worker: what its leader impersonates, if it does. The leader waits, so its entry stays as it is.
pub fn of_leader() -> Option<TargetState> {
    // SAFETY: a worker has joined its leader's lock group before any of our code runs in it.
    let leader = unsafe {
        let leader = (*pg_sys::MyProc).lockGroupLeader;
        if leader.is_null() {
            return None;
        }
        (*leader).pid
    };
    snapshot()
        .into_iter()
        .find(|(slot, entry)| *slot == Slot::InForce && entry.pid == leader)
        .map(|(_, entry)| entry.state)
}

/// A copy of the entries in force.
pub fn in_force() -> Vec<Entry> {
    let all = snapshot().into_iter();
    all.filter(|(slot, _)| *slot == Slot::InForce)
        .map(|(_, entry)| entry)
        .collect()
}

/// A copy of all entries.
pub fn snapshot() -> Vec<(Slot, Entry)> {
    if !any() {
        return Vec::new();
    }
    // Room is made before the lock is taken.
    // SAFETY: as above.
    let mut found = Vec::with_capacity(unsafe { (*TABLE).places });
    // SAFETY: entries are plain data; the lock is held while they are copied.
    locked(pg_sys::LWLockMode::LW_SHARED, || unsafe {
        for number in 0..(*TABLE).places {
            let place = &*place(number);
            if place.entry.pid != 0 {
                let slot = if number % 2 == 0 {
                    Slot::InForce
                } else {
                    Slot::MayComeBack
                };
                found.push((slot, place.entry));
            }
        }
    });
    found
}
