//! Waiting and waking: latches, condition variables, interrupts, the clock.

use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A process' latch as others find it in shared memory.
///
/// The latches belong to the array of processes, which is never freed: setting one whose process has gone wakes its
/// successor for nothing, and does no harm.
#[repr(transparent)]
pub struct RemoteLatch(AtomicPtr<pg_sys::Latch>);

impl RemoteLatch {
    /// From now on this is my latch.
    pub fn publish_mine(&self) {
        // SAFETY: MyProc is set in every process that can run this library's code after its start.
        let latch = unsafe { &raw mut (*pg_sys::MyProc).procLatch };
        self.0.store(latch, Ordering::Release);
    }

    pub fn clear(&self) {
        self.0.store(std::ptr::null_mut(), Ordering::Release);
    }

    /// Wakes the process, if there is one. Raises nothing.
    pub fn set(&self) {
        let latch = self.0.load(Ordering::Acquire);
        if !latch.is_null() {
            // SAFETY: a latch in the shared array of processes, at the same address everywhere.
            unsafe { pg_sys::SetLatch(latch) };
        }
    }
}

/// A condition variable in shared memory.
#[repr(transparent)]
pub struct Condition(UnsafeCell<pg_sys::ConditionVariable>);

// SAFETY: the server's functions, through which alone it is used, take its spinlock.
unsafe impl Sync for Condition {}

impl Condition {
    /// Before its first use in shared memory.
    pub fn init(&self) {
        // SAFETY: nobody else can use it yet.
        unsafe { pg_sys::ConditionVariableInit(self.0.get()) };
    }

    /// Enters the queue: a broadcast from here on ends the next `sleep`. The condition is tested after this.
    pub fn prepare(&self) {
        // SAFETY: initialised when shared memory was laid out.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.0.get()) };
    }

    /// Sleeps until a broadcast, or for `milliseconds`. Interrupts are served, so this may raise; the abort that
    /// follows leaves the queue.
    pub fn sleep(&self, milliseconds: u32) {
        // SAFETY: as above; the timeout is positive.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(
                self.0.get(),
                i64::from(milliseconds.max(1)) as _,
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
    }

    /// Leaves the queue.
    pub fn done() {
        // SAFETY: does nothing when no sleep was prepared.
        unsafe { pg_sys::ConditionVariableCancelSleep() };
    }

    /// Wakes all who sleep. Raises nothing.
    pub fn broadcast(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::ConditionVariableBroadcast(self.0.get()) };
    }
}

/// Naps until my latch is set, or for `milliseconds`, and resets the latch. Ends the process when the postmaster died.
pub fn nap(milliseconds: u32) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: MyLatch is this process' own.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            i64::from(milliseconds) as _,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Serves what signals asked for; raises when that is to cancel or to end.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Microseconds since 2000-01-01, as `TimestampTz`.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
