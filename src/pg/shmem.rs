//! Named areas of the server's shared memory, with their lightweight locks.
//!
//! An area is asked for while the library is preloaded, and lies at the same address in every process, as the
//! postmaster maps it before it forks. It starts as zeros, also after the crash of a backend, when the postmaster lays
//! shared memory out anew. What protects each field is said where its type is declared.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A type that can be used in shared memory: all zeros is a value of it, it may be shared between processes, and it
/// has nothing to drop.
///
/// # Safety
/// All of that is promised by who implements it. Fields are atomics, or reached through cells under a lock.
pub unsafe trait Shared: Sync {}

/// Says that a type keeps `Shared`'s promises: every field is an atomic, a latch or a condition, or an array or struct of
/// such.
macro_rules! shared {
    ($type:ty) => {
        // SAFETY: the macro's user says so, next to the type. Atomics, latches and conditions are valid as zeros, made
        // for sharing, and have no destructor.
        unsafe impl $crate::pg::shmem::Shared for $type {}
    };
}
pub(crate) use shared;

/// An area: a header of type `T`, and `tail` bytes behind it.
pub struct Area<T: Shared> {
    name: &'static CStr,
    tail: fn() -> usize,
    locks: fn() -> usize,
    init: fn(&T),
    base: AtomicPtr<T>,
    locks_base: AtomicPtr<pg_sys::LWLockPadded>,
    header: PhantomData<T>,
}

/// What the hooks need of an area, whatever its type.
trait Requested: Sync {
    fn request(&self);
    fn attach(&self);
}

/// Areas are 128 bytes aligned, so that headers can keep what different processes write on separate cache lines.
const ALIGNMENT: usize = 128;

impl<T: Shared> Area<T> {
    /// `tail` and `locks` are asked when the postmaster sizes its memory, after the settings are known; `init` gets the
    /// zeroed header, to set what zero doesn't say.
    pub const fn new(name: &'static CStr, tail: fn() -> usize, locks: fn() -> usize, init: fn(&T)) -> Self {
        Area {
            name,
            tail,
            locks,
            init,
            base: AtomicPtr::new(std::ptr::null_mut()),
            locks_base: AtomicPtr::new(std::ptr::null_mut()),
            header: PhantomData,
        }
    }

    /// Asks for the area. To be called from `_PG_init`, and only while `shared_preload_libraries` is processed.
    pub fn register(&'static self) {
        register(self);
    }

    /// The header, or `None` when the library wasn't preloaded.
    #[inline]
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: null before `attach`; after it, a zeroed, aligned T (`Shared`) that lives as long as the process.
        unsafe { self.base.load(Ordering::Relaxed).as_ref() }
    }

    /// The bytes behind the header, cut into rings of `size` bytes: number `index` of them, if there are as many.
    pub fn ring(&self, index: usize, size: usize) -> Option<Ring> {
        let base = NonNull::new(self.base.load(Ordering::Relaxed))?;
        let end = index.checked_add(1)?.checked_mul(size)?;
        if size == 0 || end > (self.tail)() {
            return None;
        }
        // SAFETY: the area is as long as the header, rounded up, and the tail, and `end` lies within the tail.
        Some(unsafe {
            Ring {
                base: base.cast::<u8>().add(Self::header_size() + end - size),
                size,
            }
        })
    }

    /// The area's lock number `index`, below what `locks` returned.
    #[inline]
    pub fn lock(&self, index: usize) -> Lock {
        // SAFETY: the tranche has as many locks as were asked for, and the callers ask for those.
        Lock(unsafe { &raw mut (*self.locks_base.load(Ordering::Relaxed).add(index)).lock })
    }

    const fn header_size() -> usize {
        std::mem::size_of::<T>().next_multiple_of(ALIGNMENT)
    }

    fn size(&self) -> usize {
        Self::header_size() + (self.tail)()
    }
}

impl<T: Shared> Requested for Area<T> {
    fn request(&self) {
        // SAFETY: called from shmem_request_hook, the one place where both are allowed.
        unsafe {
            pg_sys::RequestAddinShmemSpace(self.size() + ALIGNMENT);
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), (self.locks)() as i32);
        }
    }

    fn attach(&self) {
        let mut found = false;
        // SAFETY: called from shmem_startup_hook, in the postmaster, which is alone: no AddinShmemInitLock is needed.
        // The struct is as long as what is written.
        unsafe {
            let start = pg_sys::ShmemInitStruct(self.name.as_ptr(), self.size() + ALIGNMENT, &mut found).cast::<u8>();
            if !found {
                start.write_bytes(0, self.size() + ALIGNMENT);
            }
            let base = start.add(start.align_offset(ALIGNMENT));
            if !found {
                (self.init)(&*base.cast::<T>());
            }
            self.locks_base
                .store(pg_sys::GetNamedLWLockTranche(self.name.as_ptr()), Ordering::Relaxed);
            self.base.store(base.cast(), Ordering::Relaxed);
        }
    }
}

/// A lightweight lock in shared memory. It holds off interrupts while it is held, and an error releases it.
#[derive(Clone, Copy)]
pub struct Lock(*mut pg_sys::LWLock);

impl Lock {
    /// Runs `work` with the lock held exclusively. `work` must not raise, panic or wait.
    ///
    /// There is no guard that releases in `Drop`: after a Postgres error interrupts are no longer held off, so that a
    /// release during unwinding would count them below zero; the transaction's abort releases the lock then.
    #[inline]
    pub fn exclusive<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the pointer comes from the tranche of an attached area.
        unsafe { pg_sys::LWLockAcquire(self.0, pg_sys::LWLockMode::LW_EXCLUSIVE) };
        let result = work();
        // SAFETY: acquired above.
        unsafe { pg_sys::LWLockRelease(self.0) };
        result
    }

    /// As `exclusive`, together with others that only read.
    #[inline]
    pub fn shared<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the pointer comes from the tranche of an attached area.
        unsafe { pg_sys::LWLockAcquire(self.0, pg_sys::LWLockMode::LW_SHARED) };
        let result = work();
        // SAFETY: acquired above.
        unsafe { pg_sys::LWLockRelease(self.0) };
        result
    }
}

/// A ring of bytes at a fixed place in shared memory, addressed by positions that only grow.
///
/// Copying is all it does. Who may write which positions, and when they may be read, is the business of its owner.
#[derive(Clone, Copy)]
pub struct Ring {
    base: NonNull<u8>,
    size: usize,
}

impl Ring {
    pub fn size(&self) -> usize {
        self.size
    }

    /// Copies `bytes` to `position`, in two parts when they pass the end. No more than the ring's size is copied.
    ///
    /// The owner must have these positions to itself: nobody reads or writes them meanwhile.
    #[inline]
    pub fn write(&self, position: u64, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.size)];
        let offset = (position % self.size as u64) as usize;
        let first = bytes.len().min(self.size - offset);
        // SAFETY: offset + first <= size, and the rest, at most `size - first` bytes, starts over at the base. Nobody
        // else uses these positions, as the owner promised.
        unsafe {
            let base = self.base.as_ptr();
            base.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), first);
            base.copy_from_nonoverlapping(bytes.as_ptr().add(first), bytes.len() - first);
        }
    }

    /// The bytes from `position` on, in two parts of which the second is empty unless they pass the end.
    ///
    /// The owner must see to it that nobody writes these positions as long as the slices are used.
    #[inline]
    pub fn read(&self, position: u64, length: usize) -> (&'static [u8], &'static [u8]) {
        let length = length.min(self.size);
        let offset = (position % self.size as u64) as usize;
        let first = length.min(self.size - offset);
        // SAFETY: as in `write`; shared memory lives as long as the process.
        unsafe {
            let base = self.base.as_ptr();
            (
                std::slice::from_raw_parts(base.add(offset), first),
                std::slice::from_raw_parts(base, length - first),
            )
        }
    }
}

/// More than there are areas in this library.
const MAX_AREAS: usize = 8;

struct Registered {
    areas: [std::cell::Cell<Option<&'static dyn Requested>>; MAX_AREAS],
    count: AtomicUsize,
}

// SAFETY: written from `_PG_init` in the postmaster, which has one thread, and only read afterwards.
unsafe impl Sync for Registered {}

static REGISTERED: Registered = Registered {
    areas: [const { std::cell::Cell::new(None) }; MAX_AREAS],
    count: AtomicUsize::new(0),
};

static mut PREVIOUS_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;

fn register(area: &'static dyn Requested) {
    let count = REGISTERED.count.fetch_add(1, Ordering::Relaxed);
    REGISTERED.areas[count].set(Some(area));
    if count == 0 {
        // SAFETY: hooks are set in `_PG_init`, in the postmaster's only thread.
        unsafe {
            PREVIOUS_REQUEST_HOOK = pg_sys::shmem_request_hook;
            pg_sys::shmem_request_hook = Some(on_request);
            PREVIOUS_STARTUP_HOOK = pg_sys::shmem_startup_hook;
            pg_sys::shmem_startup_hook = Some(on_startup);
        }
    }
}

fn each_area(work: impl Fn(&'static dyn Requested)) {
    let count = REGISTERED.count.load(Ordering::Relaxed);
    REGISTERED.areas[..count]
        .iter()
        .filter_map(|area| area.get())
        .for_each(work);
}

#[pg_guard]
#[allow(ffi_unwind_calls)] // Inside pgrx's boundary, which is there for just that.
unsafe extern "C-unwind" fn on_request() {
    // SAFETY: set once, before the hook is first called; another library's hook is called as the server would.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST_HOOK {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
    }
    each_area(|area| area.request());
}

#[pg_guard]
#[allow(ffi_unwind_calls)] // Inside pgrx's boundary, which is there for just that.
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: as above.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP_HOOK {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
    }
    each_area(|area| area.attach());
}
