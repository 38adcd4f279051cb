//! What is tried while a connection starts, whose failure must not end it: the server has nothing there to catch it.

use super::guc::Refusal;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::PgTryBuilder;
use std::panic::AssertUnwindSafe;

/// Runs `what` in a subtransaction of the one in which the server starts the connection. An error undoes it and is
/// given back.
pub fn attempt<T>(what: impl FnOnce() -> T) -> Result<T, Refusal> {
    // SAFETY: in a transaction, as plpgsql's exception blocks do it (pl_exec.c): context and owner are put back.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let mut what = Some(what);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok((what.take().expect("run once"))())))
            .catch_others(|error| Err(of_error(&error)))
            .catch_rust_panic(|error| Err(of_error(&error)))
            .execute();
        if result.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

fn of_error(error: &CaughtError) -> Refusal {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    Refusal {
        sqlstate: report.sql_error_code(),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
    }
}
