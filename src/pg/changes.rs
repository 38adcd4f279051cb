//! Word that something changed on which an impersonation rests: from this session or any other, by whatever path (E5).
//!
//! The server sends invalidations for its catalog caches; those for roles, memberships, parameter privileges and
//! databases (whose owners are in `pg_database_owner`) mark the process. The rights table is no catalog: its trigger
//! sends one for the table (`pg/trigger.rs`).

use super::{active, rights, trampoline};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid, SysCacheIdentifier};
use std::cell::Cell;
use std::ffi::c_int;

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

/// Changes so far of what only A6 asks about, and only in part: objects of this database.
static OBJECTS: Process<u64> = Process(Cell::new(0));
/// This session made or altered an object, while somebody was judged by objects.
static MADE: Process<bool> = Process(Cell::new(false));
/// Changes so far of what every criterion asks about.
static CHANGED: Process<u64> = Process(Cell::new(0));
/// Both counts, as of when what is in force was judged.
static SEEN: Process<Seen> = Process(Cell::new(Seen { changed: 0, objects: 0 }));
/// The rights table of this database, once it is known; its changes count.
static RIGHTS: Process<Oid> = Process(Cell::new(Oid::INVALID));

/// The changes that came before something was read; see [`look`].
#[derive(Clone, Copy)]
#[must_use]
pub struct Seen {
    changed: u64,
    objects: u64,
}

fn count(changes: &Process<u64>) {
    changes.0.set(changes.0.get().wrapping_add(1));
}

/// Asks for invalidations. In the postmaster, while libraries are preloaded.
pub fn install() {
    // SAFETY: single-threaded; the callbacks live as long as the process and its children.
    unsafe {
        for cache in [
            SysCacheIdentifier::AUTHOID,
            SysCacheIdentifier::AUTHMEMMEMROLE,
            SysCacheIdentifier::PARAMETERACLOID,
            SysCacheIdentifier::DATABASEOID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as c_int, Some(catalog_changed), Datum::null());
        }
        for cache in [
            SysCacheIdentifier::PROCOID,
            SysCacheIdentifier::NAMESPACEOID,
            SysCacheIdentifier::TYPEOID,
            SysCacheIdentifier::FOREIGNSERVEROID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as c_int, Some(object_changed), Datum::null());
        }
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::null());
    }
}

/// A setting that a criterion goes by has another value. For an assign hook: raises nothing.
pub fn setting_changed() {
    count(&CHANGED);
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(_arg: Datum, _cache: c_int, _hash: u32) {
    count(&CHANGED);
}

#[pg_guard]
unsafe extern "C-unwind" fn object_changed(_arg: Datum, _cache: c_int, _hash: u32) {
    count(&OBJECTS);
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: Datum, relation: Oid) {
    count(&OBJECTS);
    if relation == Oid::INVALID || relation == RIGHTS.0.get() {
        count(&CHANGED);
    }
}

/// Whether anything changed since what is in force was judged. Takes in what other sessions sent. In a transaction.
pub fn any(objects_too: bool) -> bool {
    // SAFETY: in a transaction, where the server itself does it at each lock.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    let seen = SEEN.0.get();
    CHANGED.0.get() != seen.changed || (objects_too && OBJECTS.0.get() != seen.objects)
}

/// This session makes or alters an object. What comes of it is judged at the end of the statement or, at the latest,
/// of the transaction.
pub fn make_object() {
    if active::any_full() {
        MADE.0.set(true);
        trampoline::follow_transactions();
    }
}

/// Whether this session made or altered an object since this was last asked.
pub fn made_object() -> bool {
    MADE.0.replace(false)
}

/// To be called before something is judged, and [`Seen::settle`] when that is in force: a judgement that is cut short,
/// by a timeout say, has seen nothing.
pub fn look() -> Seen {
    RIGHTS
        .0
        .set(rights::extension_table(c"set_user_grant").unwrap_or(Oid::INVALID));
    Seen {
        changed: CHANGED.0.get(),
        objects: OBJECTS.0.get(),
    }
}

impl Seen {
    /// What was judged since [`look`] is in force.
    pub fn settle(self) {
        SEEN.0.set(self);
    }
}
