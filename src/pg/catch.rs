//! Running server code with something to undo on the way out, and leaving its error whole.
//!
//! pgrx turns an ERROR that crosses its boundary into a Rust panic and back, which loses the schema, table, constraint,
//! position and context fields. Here the error stays on the server's error stack: the frames below are plain enough for
//! `siglongjmp` to pass over (no destructors), the way out is run, and the error is thrown on.

use cee_scape::call_with_sigsetjmp;
use pgrx::pg_sys;

extern "C-unwind" {
    fn pg_re_throw() -> !;
}

/// Runs `body`; when it raises, runs `undo` with the error's SQLSTATE (as elog.h packs it) and throws the error on.
///
/// # Safety
/// `body` holds nothing that must be dropped and neither it nor `undo` panics; `undo` raises nothing.
pub unsafe fn with_undo(body: &mut dyn FnMut(), undo: &mut dyn FnMut(i32)) {
    // SAFETY: the two globals are saved and restored exactly as PG_TRY does; the frames hold no destructors.
    unsafe {
        let exception_stack = pg_sys::PG_exception_stack;
        let context_stack = pg_sys::error_context_stack;
        let raised = call_with_sigsetjmp(false, |env| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(env).cast_mut().cast();
            body();
            0
        });
        pg_sys::PG_exception_stack = exception_stack;
        pg_sys::error_context_stack = context_stack;
        if raised != 0 {
            undo(geterrcode());
            pg_re_throw();
        }
    }
}

/// Whether `body` raises. The error goes nowhere: not to the log, and not to the client.
///
/// # Safety
/// As for [`with_undo`]; and what `body` raises it raises while it holds nothing, outside of critical sections.
pub unsafe fn raises(body: &mut dyn FnMut()) -> bool {
    // SAFETY: as `with_undo`. Raising sets the counters to zero; nothing was acquired, so nothing is to be aborted.
    unsafe {
        let exception_stack = pg_sys::PG_exception_stack;
        let context_stack = pg_sys::error_context_stack;
        let memory = pg_sys::CurrentMemoryContext;
        let (held, held_queries) = (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount);
        // Nobody is to be asked for a line of context.
        pg_sys::error_context_stack = std::ptr::null_mut();
        let raised = call_with_sigsetjmp(false, |env| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(env).cast_mut().cast();
            body();
            0
        });
        pg_sys::PG_exception_stack = exception_stack;
        pg_sys::error_context_stack = context_stack;
        if raised != 0 {
            pg_sys::MemoryContextSwitchTo(memory);
            pg_sys::FlushErrorState();
            pg_sys::InterruptHoldoffCount = held;
            pg_sys::QueryCancelHoldoffCount = held_queries;
        }
        raised != 0
    }
}

extern "C-unwind" {
    fn geterrcode() -> std::ffi::c_int;
}

/// The five characters of a packed SQLSTATE (elog.h, `MAKE_SQLSTATE`).
pub fn sqlstate_text(packed: i32) -> [u8; 5] {
    std::array::from_fn(|i| ((packed >> (6 * i)) & 0x3F) as u8 + b'0')
}
