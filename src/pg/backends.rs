//! Other backends: ending them, waking them, and waiting until they are gone.

use super::latch;
use pgrx::pg_sys;

/// Asks a backend to end, as pg_terminate_backend does. False when there is none of that number.
pub fn terminate(pid: i32) -> bool {
    extern "C" {
        fn kill(pid: std::ffi::c_int, signal: std::ffi::c_int) -> std::ffi::c_int;
    }
    const SIGTERM: std::ffi::c_int = 15;
    // SAFETY: only a process of this server is sent a signal, one that it handles.
    lives(pid) && unsafe { kill(pid, SIGTERM) } == 0
}

/// Whether a process of this server has that number.
pub fn lives(pid: i32) -> bool {
    // SAFETY: reads shared memory under its lock.
    unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// The role that a backend's client logged in as, whatever the session is now. None when there is no such backend.
pub fn login(pid: i32) -> Option<pg_sys::Oid> {
    // SAFETY: reads shared memory under its lock; a backend's login doesn't change.
    unsafe { pg_sys::BackendPidGetProc(pid).as_ref().map(|process| process.roleId) }
}

/// Has an idle backend run a transaction of its own, as one does that is to catch up with what others changed. One that
/// is inside a transaction block doesn't. Raises nothing.
pub fn wake(pid: i32) {
    const ANY_SLOT: i32 = -1;
    // SAFETY: reads shared memory; a process that isn't there is no error.
    unsafe { pg_sys::SendProcSignal(pid, pg_sys::ProcSignalReason::PROCSIG_CATCHUP_INTERRUPT, ANY_SLOT) };
}

/// As [`wake`], for this backend: once it is idle.
pub fn wake_self() {
    // SAFETY: sets a flag and a latch, as the signal's handler does.
    unsafe { pg_sys::HandleCatchupInterrupt() };
}

/// Waits for `milliseconds`, interruptible.
pub fn wait(milliseconds: u32) {
    latch::check_for_interrupts();
    latch::nap(milliseconds);
    latch::check_for_interrupts();
}
