//! The shared table of active impersonations: one entry per client backend, in its own place.
//!
//! What protects it: an entry is written by its own backend alone, under the lock's exclusive mode; readers take it in
//! shared mode and copy. The lock is held for a copy of one entry, or of the table, and no other lock is taken while it
//! is held. Nothing here raises once the table is attached, so entries can be cleared while a transaction ends.

use super::guc::TargetState;
use super::version;
use pgrx::pg_guard;
use pgrx::pg_sys;

/// One active impersonation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// 0: nobody impersonates here.
    pub pid: i32,
    pub database: pg_sys::Oid,
    pub state: TargetState,
}

#[repr(C)]
struct Table {
    lock: *mut pg_sys::LWLock,
    entries: usize,
    first: [Entry; 0],
}

static mut TABLE: *mut Table = std::ptr::null_mut();
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

const TRANCHE: &std::ffi::CStr = c"impersonate_active";

fn entries() -> usize {
    // SAFETY: set before shared memory is sized. Auxiliary processes and prepared transactions have numbers above.
    unsafe { pg_sys::MaxBackends as usize }
}

fn size() -> usize {
    std::mem::size_of::<Table>() + entries() * std::mem::size_of::<Entry>()
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
            (*table).entries = entries();
        }
        TABLE = table;
    }
}

/// Whether the library was preloaded, so that the table is there.
pub fn available() -> bool {
    // SAFETY: set once, in the postmaster.
    unsafe { !TABLE.is_null() }
}

/// Sets or clears this backend's own entry.
pub fn publish(entry: Option<&Entry>) {
    if !available() {
        return;
    }
    // SAFETY: the place is this backend's; the lock is held for the copy.
    unsafe {
        let place = version::backend_slot();
        if place >= (*TABLE).entries {
            return;
        }
        let place = (&raw mut (*TABLE).first).cast::<Entry>().add(place);
        pg_sys::LWLockAcquire((*TABLE).lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        match entry {
            Some(entry) => place.write(*entry),
            None => (*place).pid = 0,
        }
        pg_sys::LWLockRelease((*TABLE).lock);
    }
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
        .find(|entry| entry.pid == leader)
        .map(|entry| entry.state)
}

/// A copy of all active entries.
pub fn snapshot() -> Vec<Entry> {
    if !available() {
        return Vec::new();
    }
    let mut found: Vec<Entry> = Vec::with_capacity(entries().min(64));
    // SAFETY: entries are plain data; the lock is held while they are copied, and pushing does not raise a server error.
    unsafe {
        pg_sys::LWLockAcquire((*TABLE).lock, pg_sys::LWLockMode::LW_SHARED);
        for i in 0..(*TABLE).entries {
            let place = (&raw const (*TABLE).first).cast::<Entry>().add(i);
            if (*place).pid != 0 {
                found.push(place.read());
            }
        }
        pg_sys::LWLockRelease((*TABLE).lock);
    }
    found
}
