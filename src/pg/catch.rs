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

extern "C-unwind" {
    fn geterrcode() -> std::ffi::c_int;
}

/// The five characters of a packed SQLSTATE (elog.h, `MAKE_SQLSTATE`).
pub fn sqlstate_text(packed: i32) -> [u8; 5] {
    std::array::from_fn(|i| ((packed >> (6 * i)) & 0x3F) as u8 + b'0')
}
