//! The lock that keeps switches and role changes from passing each other unseen (E4).
//!
//! It is a heavyweight lock of the whole cluster, on "all roles": object 0 of pg_authid, which nobody else locks.
//!
//! - A switch takes it in SHARE mode, judges, enters the table of active impersonations, and releases it. So switches
//!   don't wait for each other, and nobody waits for an impersonation to end.
//! - On a standby nobody changes roles, and such a lock can't be taken: what is replayed is judged by a watcher
//!   (`guard/watch.rs`), which sees each switch in the table.
//! - A role change takes it to the end of its transaction, then judges what is in the table. While nobody impersonates
//!   ROW EXCLUSIVE mode will do: it keeps switches away, but not other role changes, of which none can break anything.
//!   Else EXCLUSIVE mode: two changes of which each is harmless may break a criterion together.

use super::{active, backends, trampoline};
use pgrx::pg_sys::{self, LOCKTAG};
use std::cell::Cell;

const SWITCH: i32 = pg_sys::ShareLock as i32;
const CHANGE: i32 = pg_sys::RowExclusiveLock as i32;
const CHANGE_ALONE: i32 = pg_sys::ExclusiveLock as i32;

fn tag() -> LOCKTAG {
    LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::AuthIdRelationId.into(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// Waits, interruptible; then the catalogs are seen as of now.
fn acquire(mode: i32) {
    // SAFETY: in a transaction; the tag is copied. Errors unwind.
    unsafe {
        pg_sys::LockAcquire(&tag(), mode, false, false);
        pg_sys::AcceptInvalidationMessages();
    }
}

/// The catalogs are seen as of now.
fn see_latest() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}

fn release(mode: i32) {
    // SAFETY: the caller acquired it in this mode, by the same resource owner.
    unsafe { pg_sys::LockRelease(&tag(), mode, false) };
}

/// A switch in the making. An error gives it back.
#[must_use]
pub struct Switching {
    locked: bool,
}

impl Switching {
    /// Waits for role changes that are under way.
    pub fn begin() -> Switching {
        let locked = !super::identity::in_recovery();
        if locked {
            acquire(SWITCH);
        } else {
            see_latest();
        }
        Switching { locked }
    }

    /// The switch is refused, or known to all.
    pub fn done(self) {
        if self.locked {
            release(SWITCH);
        }
    }
}

/// Keeps role changes away to the end of the transaction, whatever becomes of a subtransaction.
pub fn keep_roles() {
    if super::identity::in_recovery() {
        return;
    }
    // SAFETY: plain globals; the owner is put back, also when waiting fails, since an error sets it anew.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
        acquire(SWITCH);
        pg_sys::CurrentResourceOwner = owner;
    }
}

thread_local! {
    /// This transaction changes roles.
    static CHANGES: Cell<bool> = const { Cell::new(false) };
}

/// The transaction has ended. What it changed may be what a connection waits for that started with a target (D1): it
/// looks before its next statement. It has to wait for our locks, and so sees what we did.
pub fn transaction_ends(committed: bool) {
    if CHANGES.take() && committed {
        active::refused().into_iter().for_each(backends::wake);
    }
}

/// A role is about to be changed: until the transaction ends no switch is judged that doesn't see it.
pub fn begin_change() {
    CHANGES.set(true);
    trampoline::follow_transactions();
    if !active::any() {
        acquire(CHANGE);
        if !active::any() {
            return;
        }
        // A switch came in between.
        release(CHANGE);
    }
    acquire(CHANGE_ALONE);
}
