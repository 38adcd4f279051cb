//! Reading and purging `impersonate.audit`.
//!
//! All but `reading_as_caller` runs as the bootstrap superuser (`store::as_superuser`) and sees the newest state, whatever the isolation
//! level of the transaction: a table that was truncated is empty in an old snapshot too. So locks come first, and the
//! snapshot is taken when nothing can be truncated any more. All queries of one reading see the same.

use super::store;
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{FromDatum, PgMemoryContexts};
use std::ffi::{CStr, CString};

/// A column as it is stored, by the type that it is expected to have.
pub enum Stored {
    Null,
    Integer(i64),
    Timestamp(i64),
    Interval {
        months: i32,
        days: i32,
        microseconds: i64,
    },
    Uuid([u8; 16]),
    Text(Vec<u8>),
    Bytes(Vec<u8>),
    TextArray {
        dimensions: Vec<(i32, i32)>,
        elements: Vec<Option<Vec<u8>>>,
    },
}

impl Stored {
    pub fn integer(&self) -> Option<i64> {
        match self {
            Stored::Integer(number) | Stored::Timestamp(number) => Some(*number),
            _ => None,
        }
    }

    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Stored::Bytes(bytes) | Stored::Text(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// Rows that are fetched at once.
const FETCH: i64 = 500;

/// What runs inside `reading` or `purging`.
pub struct Access(Sight);

/// What queries see.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// All of them what was the newest state at the beginning.
    Held,
    /// Each what is the newest state.
    Newest,
}

/// Runs `work` with the tables of the audit locked against whatever would take rows out of a snapshot.
pub fn reading<R>(work: impl FnOnce(&Access) -> R) -> R {
    inside(
        &[(c"enable_seqscan", c"off"), (c"enable_sort", c"off"), (c"jit", c"off")],
        |access| {
            access.run(
                c"LOCK TABLE impersonate.audit, impersonate.audit_state, impersonate.audit_purged IN ACCESS SHARE MODE",
                &[],
            );
            // SAFETY: in a transaction; an error pops it with the transaction.
            unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
            let result = work(&Access(Sight::Held));
            // SAFETY: pushed above, and what came on top of it is gone.
            unsafe { pg_sys::PopActiveSnapshot() };
            result
        },
    )
}

/// Runs `work` as the caller, with what its query sees. The search path is the function's own.
pub fn reading_as_caller<R>(work: impl FnOnce(&Access) -> R) -> R {
    // SAFETY: inside a function, so a snapshot is active; what an error leaves goes with the (sub)transaction.
    unsafe {
        pg_sys::SPI_connect();
        let result = work(&Access(Sight::Held));
        pg_sys::SPI_finish();
        result
    }
}

/// Runs `work`, of which each query sees the newest state.
pub fn newest<R>(work: impl FnOnce(&Access) -> R) -> R {
    inside(&[], work)
}

/// Runs `work`, which may take rows away. One at a time; triggers of others don't run.
pub fn purging<R>(work: impl FnOnce(&Access) -> R) -> R {
    let mut settings = vec![
        (c"enable_seqscan", c"off"),
        // What is left looks so expensive then that it would be compiled.
        (c"jit", c"off"),
        (c"session_replication_role", c"replica"),
        (c"datestyle", c"ISO, YMD"),
        (c"timezone", c"UTC"),
    ];
    // SAFETY: reads a setting that always exists.
    let lock_timeout = unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"lock_timeout".as_ptr(), false, false)) };
    if lock_timeout == c"0" {
        // Those who want to read queue up behind one who waits to empty a partition.
        settings.push((c"lock_timeout", c"10s"));
    }
    inside(&settings, |access| {
        access.run(
            c"LOCK TABLE impersonate.audit_purged IN SHARE UPDATE EXCLUSIVE MODE",
            &[],
        );
        work(access)
    })
}

fn inside<R>(settings: &[(&CStr, &CStr)], work: impl FnOnce(&Access) -> R) -> R {
    store::as_superuser(|| {
        // SAFETY: the settings go back with those of `as_superuser`, or with the transaction; so do SPI's things after an
        // error.
        unsafe {
            for (name, value) in settings {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            pg_sys::SPI_connect();
            let result = work(&Access(Sight::Newest));
            pg_sys::SPI_finish();
            result
        }
    })
}

impl Access {
    /// Runs a statement that returns nothing of interest; how many rows it was about.
    pub fn run(&self, statement: &CStr, arguments: &[Argument]) -> u64 {
        self.execute(statement, arguments, false)
    }

    /// The rows of a query.
    pub fn query(&self, statement: &CStr, arguments: &[Argument]) -> Vec<Vec<Stored>> {
        self.execute(statement, arguments, true);
        taken()
    }

    /// Hands the rows of a query to `each`, until that returns false.
    pub fn stream(&self, statement: &CStr, arguments: &[Argument], mut each: impl FnMut(Vec<Stored>) -> bool) {
        let (mut types, mut values, nulls) = parts(arguments);
        let mut memory = PgMemoryContexts::new("impersonate audit rows");
        // SAFETY: inside SPI, a statement of ours with as many arguments; the portal copies what it needs. Rows are
        // copied out before the memory that they were taken apart in is reset.
        unsafe {
            let plan = pg_sys::SPI_prepare(statement.as_ptr(), types.len() as i32, types.as_mut_ptr());
            if plan.is_null() {
                let result = pg_sys::SPI_result;
                pgrx::error!("could not read the audit: {result}");
            }
            let portal = pg_sys::SPI_cursor_open(std::ptr::null(), plan, values.as_mut_ptr(), nulls.as_ptr(), true);
            loop {
                pg_sys::SPI_cursor_fetch(portal, true, FETCH as _);
                let count = pg_sys::SPI_processed as usize;
                let mut go_on = count > 0;
                for at in 0..count {
                    let row = memory.switch_to(|_| row(at));
                    memory.reset();
                    if !each(row) {
                        go_on = false;
                        break;
                    }
                }
                pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
                if !go_on {
                    break;
                }
                super::latch::check_for_interrupts();
            }
            pg_sys::SPI_cursor_close(portal);
            pg_sys::SPI_freeplan(plan);
        }
    }

    fn execute(&self, statement: &CStr, arguments: &[Argument], is_query: bool) -> u64 {
        let (mut types, mut values, nulls) = parts(arguments);
        // SAFETY: inside SPI, a statement of ours with as many arguments. A read-only statement uses the snapshot that is
        // active.
        unsafe {
            let fresh = is_query && self.0 == Sight::Newest;
            if fresh {
                pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
            }
            let done = pg_sys::SPI_execute_with_args(
                statement.as_ptr(),
                types.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_ptr(),
                is_query,
                0,
            );
            if fresh {
                pg_sys::PopActiveSnapshot();
            }
            if done < 0 {
                pgrx::error!("unexpected result of a statement about the audit: {done}");
            }
            pg_sys::SPI_processed
        }
    }

    /// Runs a statement about a table whose name, fit for SQL, is put behind `begin`.
    pub fn run_on(&self, begin: &str, name: &[u8], end: &str) {
        let statement = [begin.as_bytes(), name, end.as_bytes()].concat();
        self.run(&CString::new(statement).unwrap_or_default(), &[]);
    }
}

/// An argument of a statement.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    Integer(i64),
    Timestamp(i64),
    Bytes(&'a [u8]),
    Text(&'a [u8]),
    Uuid(&'a [u8; 16]),
}

/// `text` and `bytea` have the same form.
fn varlena(bytes: &[u8]) -> Datum {
    pgrx::IntoDatum::into_datum(bytes).unwrap_or(Datum::null())
}

fn parts(arguments: &[Argument]) -> (Vec<Oid>, Vec<Datum>, Vec<std::ffi::c_char>) {
    let typed = arguments.iter().map(|argument| match argument {
        Argument::Integer(number) => (pg_sys::INT8OID, Datum::from(*number)),
        Argument::Timestamp(time) => (pg_sys::TIMESTAMPTZOID, Datum::from(*time)),
        Argument::Bytes(bytes) => (pg_sys::BYTEAOID, varlena(bytes)),
        Argument::Text(bytes) => (pg_sys::TEXTOID, varlena(bytes)),
        // Of 16 bytes, by reference.
        Argument::Uuid(id) => (pg_sys::UUIDOID, Datum::from(id.as_ptr())),
    });
    let (types, values): (Vec<Oid>, Vec<Datum>) = typed.unzip();
    let nulls = vec![b' ' as std::ffi::c_char; types.len()];
    (types, values, nulls)
}

/// The rows of the last statement.
fn taken() -> Vec<Vec<Stored>> {
    // SAFETY: after a statement inside SPI; null when it returned no rows.
    unsafe {
        if pg_sys::SPI_tuptable.is_null() {
            return Vec::new();
        }
        let rows = (0..pg_sys::SPI_processed as usize).map(|at| row(at)).collect();
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        rows
    }
}

/// # Safety
/// The last statement's result has row `at`.
unsafe fn row(at: usize) -> Vec<Stored> {
    // SAFETY: the caller's promise; columns are counted from 1.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        let (tuple, descriptor) = (*(*table).vals.add(at), (*table).tupdesc);
        (1..=(*descriptor).natts)
            .map(|number| {
                let mut is_null = true;
                let datum = pg_sys::SPI_getbinval(tuple, descriptor, number, &mut is_null);
                if is_null {
                    Stored::Null
                } else {
                    stored(datum, pg_sys::SPI_gettypeid(descriptor, number))
                }
            })
            .collect()
    }
}

/// # Safety
/// The datum is of that type.
unsafe fn stored(datum: Datum, type_oid: Oid) -> Stored {
    // SAFETY: each is read as its type is laid out.
    unsafe {
        match type_oid {
            pg_sys::INT8OID => Stored::Integer(datum.value() as i64),
            pg_sys::INT4OID => Stored::Integer(i64::from(datum.value() as i32)),
            pg_sys::BOOLOID => Stored::Integer(i64::from(datum.value() as u8)),
            pg_sys::TIMESTAMPTZOID => Stored::Timestamp(datum.value() as i64),
            pg_sys::INTERVALOID => {
                let interval = &*datum.cast_mut_ptr::<pg_sys::Interval>();
                Stored::Interval {
                    months: interval.month,
                    days: interval.day,
                    microseconds: interval.time,
                }
            }
            pg_sys::UUIDOID => Stored::Uuid(*datum.cast_mut_ptr::<[u8; 16]>()),
            pg_sys::TEXTOID => Stored::Text(bytes(datum)),
            pg_sys::BYTEAOID => Stored::Bytes(bytes(datum)),
            pg_sys::TEXTARRAYOID => text_array(datum),
            // Counts as it is printed.
            _ => {
                let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
                pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena);
                let printed = pg_sys::OidOutputFunctionCall(output, datum);
                Stored::Text(CStr::from_ptr(printed).to_bytes().to_vec())
            }
        }
    }
}

/// # Safety
/// A datum of `text` or `bytea`.
unsafe fn bytes(datum: Datum) -> Vec<u8> {
    // SAFETY: the caller's promise; both have the same form.
    unsafe { Vec::<u8>::from_datum(datum, false) }.unwrap_or_default()
}

/// # Safety
/// A datum of `text[]`.
unsafe fn text_array(datum: Datum) -> Stored {
    // SAFETY: array.h: behind the head are the lengths of the dimensions, then their lower bounds. The server takes the
    // elements apart.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let count = usize::try_from((*array).ndim).unwrap_or_default();
        let numbers = array.add(1).cast::<i32>();
        let dimensions = (0..count)
            .map(|at| (*numbers.add(at), *numbers.add(count + at)))
            .collect();
        let (mut values, mut nulls, mut length) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            pg_sys::TEXTOID,
            -1,
            false,
            pg_sys::TYPALIGN_INT as _,
            &mut values,
            &mut nulls,
            &mut length,
        );
        let elements = (0..length as usize)
            .map(|at| (!*nulls.add(at)).then(|| bytes(*values.add(at))))
            .collect();
        Stored::TextArray { dimensions, elements }
    }
}
