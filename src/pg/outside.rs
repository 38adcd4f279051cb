//! Functions that act outside of the transaction that calls them, or may (L5): written in an untrusted language, of a
//! library that writes files or has connections of its own, or the server's own that do such things.
//!
//! They are noticed where the server looks a function up in order to call it. That may be long before the call, and need
//! not lead to one; and what has been looked up can be called again without a look-up, at most until the transaction
//! ends. So what was seen once holds for the rest of the transaction.
//!
//! The server's own functions are looked up without asking anybody, but whether they may be executed is asked each time.

use super::trampoline;
use super::version::EMIT_MESSAGE;
use super::{identity, store};
use pgrx::pg_sys::{self, Oid};
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, CStr};

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

/// The start of the newest transaction in which such a function was seen.
static SEEN: Process<i64> = Process(Cell::new(0));
/// Changes when what is remembered of functions may be out of date.
static GENERATION: Process<u32> = Process(Cell::new(0));

static mut PREVIOUS: pg_sys::needs_fmgr_hook_type = None;

/// Libraries, by the names of their files.
const LIBRARIES: &[&str] = &[
    "adminpack",
    "dblink",
    "http",
    "oracle_fdw",
    "pg_background",
    "pg_surgery",
];

/// The server's own: files, other processes, the WAL, replication slots, sequences that are set. What only reads is none
/// of them, nor is nextval(): it leaves a gap.
const FUNCTIONS: &[u32] = &[
    pg_sys::F_LO_EXPORT,
    // What others see at once, and no ROLLBACK undoes.
    pg_sys::F_SETVAL_REGCLASS_INT8,
    pg_sys::F_SETVAL_REGCLASS_INT8_BOOL,
    pg_sys::F_PG_RELOAD_CONF,
    pg_sys::F_PG_ROTATE_LOGFILE,
    pg_sys::F_PG_TERMINATE_BACKEND,
    pg_sys::F_PG_CANCEL_BACKEND,
    pg_sys::F_PG_PROMOTE,
    pg_sys::F_PG_SWITCH_WAL,
    pg_sys::F_PG_CREATE_RESTORE_POINT,
    pg_sys::F_PG_BACKUP_START,
    pg_sys::F_PG_BACKUP_STOP,
    pg_sys::F_PG_CREATE_PHYSICAL_REPLICATION_SLOT,
    pg_sys::F_PG_CREATE_LOGICAL_REPLICATION_SLOT,
    pg_sys::F_PG_COPY_PHYSICAL_REPLICATION_SLOT_NAME_NAME_BOOL,
    pg_sys::F_PG_COPY_PHYSICAL_REPLICATION_SLOT_NAME_NAME,
    pg_sys::F_PG_COPY_LOGICAL_REPLICATION_SLOT_NAME_NAME_BOOL_NAME,
    pg_sys::F_PG_COPY_LOGICAL_REPLICATION_SLOT_NAME_NAME_BOOL,
    pg_sys::F_PG_COPY_LOGICAL_REPLICATION_SLOT_NAME_NAME,
    pg_sys::F_PG_DROP_REPLICATION_SLOT,
    pg_sys::F_PG_REPLICATION_SLOT_ADVANCE,
    pg_sys::F_PG_LOGICAL_SLOT_GET_CHANGES,
    pg_sys::F_PG_LOGICAL_SLOT_GET_BINARY_CHANGES,
    pg_sys::F_PG_REPLICATION_ORIGIN_ADVANCE,
    EMIT_MESSAGE[0],
    EMIT_MESSAGE[1],
];

/// Puts the hook before one that is there. In the postmaster.
pub fn install() {
    // SAFETY: single-threaded; the callbacks stay for good.
    unsafe {
        PREVIOUS = pg_sys::needs_fmgr_hook;
        pg_sys::needs_fmgr_hook = Some(looked_up);
    }
}

/// Whether a function that acts outside was seen in the transaction that is running.
pub fn seen() -> bool {
    // SAFETY: reads state of this process.
    SEEN.0.get() != 0 && SEEN.0.get() == unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// The server asks for each function that is not its own whether calls of it are to be told. They are not, but now it is
/// known that one may come.
unsafe extern "C-unwind" fn looked_up(function: Oid) -> bool {
    // SAFETY: called as the server called us, in the middle of a look-up of its own in the same catalogs.
    unsafe {
        if function.to_u32() >= pg_sys::FirstNormalObjectId && verdict(function) {
            note();
        }
        PREVIOUS.is_some_and(|previous| previous(function))
    }
}

/// A function's caller was found to have the right to. May wait, and raises.
///
/// # Safety
/// As the server calls its object access hook.
pub unsafe fn executes(function: Oid) {
    if function.to_u32() < pg_sys::FirstNormalObjectId && FUNCTIONS.contains(&function.to_u32()) {
        // SAFETY: the caller's promise.
        unsafe { note() };
    }
}

unsafe fn note() {
    // SAFETY: reads state of this process.
    unsafe {
        SEEN.0.set(pg_sys::GetCurrentTransactionStartTimestamp());
        // Where interrupts are held off nobody may wait; what comes next does.
        if trampoline::watching()
            && pg_sys::InterruptHoldoffCount == 0
            && pg_sys::CritSectionCount == 0
            && !store::is_ours()
            && !identity::parallel_worker()
            && identity::in_transaction()
        {
            trampoline::before_outside();
        }
    }
}

/// pg_language.dat: languages that every database has, and the column that says whether one is trusted.
const INTERNAL: u32 = 12;
const C: u32 = 13;
const SQL: u32 = 14;
const TRUSTED: pg_sys::AttrNumber = 5;

/// So many functions are remembered.
const REMEMBERED: usize = 256;

/// Function and verdict, each in the place that the function's number gives it.
type Verdicts = Box<[(u32, bool); REMEMBERED]>;

thread_local! {
    static VERDICTS: RefCell<Option<Verdicts>> = const { RefCell::new(None) };
    static VALID_FOR: Cell<u32> = const { Cell::new(0) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn catalog_changed(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    GENERATION.0.set(GENERATION.0.get().wrapping_add(1));
}

/// Whether a function that is not the server's own acts outside. Remembers what the catalogs say.
unsafe fn verdict(function: Oid) -> bool {
    let (number, generation) = (function.to_u32(), GENERATION.0.get());
    let place = number as usize % REMEMBERED;
    let known = VERDICTS.with_borrow_mut(|verdicts| {
        let verdicts = match verdicts {
            Some(verdicts) => verdicts,
            None => {
                for cache in [pg_sys::SysCacheIdentifier::PROCOID, pg_sys::SysCacheIdentifier::LANGOID] {
                    // SAFETY: once in a process, which has few callbacks.
                    unsafe {
                        pg_sys::CacheRegisterSyscacheCallback(
                            cache as c_int,
                            Some(catalog_changed),
                            pg_sys::Datum::null(),
                        );
                    }
                }
                verdicts.insert(Box::new([(0, false); REMEMBERED]))
            }
        };
        if VALID_FOR.replace(generation) != generation {
            verdicts.fill((0, false));
        }
        let (whose, verdict) = verdicts[place];
        (whose == number).then_some(verdict)
    });
    if let Some(verdict) = known {
        return verdict;
    }
    // Nothing is borrowed: it may raise.
    // SAFETY: as promised by the caller.
    let verdict = unsafe { judge(function) };
    if GENERATION.0.get() == generation {
        VERDICTS.with_borrow_mut(|verdicts| {
            if let Some(verdicts) = verdicts {
                verdicts[place] = (number, verdict);
            }
        });
    }
    verdict
}

unsafe fn judge(function: Oid) -> bool {
    // SAFETY: reads a row of pg_proc while it is pinned; the columns are text, copied before that ends.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as c_int, function.into());
        if tuple.is_null() {
            return false;
        }
        let language = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>()).prolang;
        let column = |number: u32| {
            let mut is_null = true;
            let datum = pg_sys::SysCacheGetAttr(
                pg_sys::SysCacheIdentifier::PROCOID as c_int,
                tuple,
                number as pg_sys::AttrNumber,
                &mut is_null,
            );
            (!is_null).then(|| pg_sys::text_to_cstring(datum.cast_mut_ptr()))
        };
        let verdict = match language.to_u32() {
            SQL => false,
            // The server's own under another name.
            INTERNAL => column(pg_sys::Anum_pg_proc_prosrc)
                .is_some_and(|name| FUNCTIONS.contains(&pg_sys::fmgr_internal_function(name).to_u32())),
            C => column(pg_sys::Anum_pg_proc_probin).is_some_and(|path| is_listed(CStr::from_ptr(path).to_bytes())),
            _ => is_untrusted(language),
        };
        pg_sys::ReleaseSysCache(tuple);
        verdict
    }
}

/// Whether a library is one of those that act outside: by the last part of its path, without what follows a dot.
fn is_listed(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let name = name.split(|byte| *byte == b'.').next().unwrap_or(name);
    LIBRARIES.iter().any(|library| library.as_bytes() == name)
}

/// # Safety
/// In a transaction.
unsafe fn is_untrusted(language: Oid) -> bool {
    // SAFETY: reads a row of pg_language while it is pinned.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::LANGOID as c_int, language.into());
        if tuple.is_null() {
            return false;
        }
        let mut is_null = true;
        let cache = pg_sys::SysCacheIdentifier::LANGOID as c_int;
        let trusted = pg_sys::SysCacheGetAttr(cache, tuple, TRUSTED, &mut is_null).value() != 0;
        pg_sys::ReleaseSysCache(tuple);
        !trusted
    }
}

/// Whether DO runs code in an untrusted language. One that doesn't exist is not: the statement will say so.
///
/// # Safety
/// In a transaction.
pub unsafe fn names_untrusted(language: &CStr) -> bool {
    // SAFETY: a catalog look-up with missing_ok.
    unsafe {
        let language = pg_sys::get_language_oid(language.as_ptr(), true);
        language != Oid::INVALID && is_untrusted(language)
    }
}

#[cfg(test)]
mod tests {
    use super::is_listed;

    #[test]
    fn l5_a_library_is_known_by_its_file() {
        for path in ["$libdir/dblink", "dblink", "/usr/lib/dblink.so", "a.b/dblink.so.1"] {
            assert!(is_listed(path.as_bytes()), "{path}");
        }
        for path in ["$libdir/pg_trgm", "dblink/pg_trgm", "dblink2", "", "/"] {
            assert!(!is_listed(path.as_bytes()), "{path}");
        }
    }
}
