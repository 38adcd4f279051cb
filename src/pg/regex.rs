//! Regular expressions, by the server's own engine and in the database's encoding.

use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::{c_char, c_int, CStr};

/// `text ~ text` (pg_proc.dat).
const TEXTREGEXEQ: u32 = 1254;

/// Whether the text matches. Raises when the pattern is none.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let datum = |bytes: &[u8]| bytes.into_datum().unwrap_or(Datum::null());
    // SAFETY: the function takes two texts and returns a boolean; bytea and text are laid out alike.
    unsafe {
        let result = pg_sys::OidFunctionCall2Coll(
            Oid::from(TEXTREGEXEQ),
            pg_sys::C_COLLATION_OID,
            datum(text),
            datum(pattern),
        );
        bool::from_datum(result, false).unwrap_or(false)
    }
}

/// Why a pattern is none, in the words of the server. Raises nothing, and needs neither transaction nor database.
pub fn error_in(pattern: &[u8]) -> Option<String> {
    /// `regex_t` (regex/regex.h), which is smaller: only looked at by the functions below.
    type Compiled = [u64; 32];
    /// Of the same file: `REG_ADVANCED`, `REG_OKAY` and `REG_CANCEL`, which says nothing of the pattern.
    const ADVANCED: c_int = 3;
    const OKAY: c_int = 0;
    const CANCEL: c_int = 21;
    extern "C-unwind" {
        fn pg_regcomp(
            compiled: *mut Compiled,
            pattern: *const pg_sys::pg_wchar,
            length: usize,
            flags: c_int,
            collation: Oid,
        ) -> c_int;
        fn pg_regerror(error: c_int, compiled: *const Compiled, words: *mut c_char, room: usize) -> usize;
        fn pg_regfree(compiled: *mut Compiled);
    }
    let mut characters: Vec<pg_sys::pg_wchar> = vec![0; pattern.len() + 1];
    let mut compiled: Compiled = [0; 32];
    let mut words = [0 as c_char; 100];
    // SAFETY: there is room for a character for each byte, and a zero. What is compiled is freed; what failed frees
    // itself. The words end with a zero.
    unsafe {
        let length =
            pg_sys::pg_mb2wchar_with_len(pattern.as_ptr().cast(), characters.as_mut_ptr(), pattern.len() as c_int);
        let length = usize::try_from(length).unwrap_or(0);
        let error = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let error = pg_regcomp(
                &raw mut compiled,
                characters.as_ptr(),
                length,
                ADVANCED,
                pg_sys::C_COLLATION_OID,
            );
            if error == OKAY {
                pg_regfree(&raw mut compiled);
            } else {
                pg_regerror(error, &raw const compiled, words.as_mut_ptr(), words.len());
            }
            error
        });
        let words = CStr::from_ptr(words.as_ptr()).to_string_lossy().into_owned();
        (error != OKAY && error != CANCEL).then_some(words)
    }
}

/// What matched of the text: the first part in parentheses, or else all that the pattern matched.
pub fn captured(pattern: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    /// `substring(text from text)`.
    const TEXTREGEXSUBSTR: u32 = 2073;
    if !matches(pattern, text) {
        return None;
    }
    let datum = |bytes: &[u8]| bytes.into_datum().unwrap_or(Datum::null());
    // SAFETY: the function takes two texts and returns a text or NULL, which the call would raise for: a part in
    // parentheses that took no part in the match.
    unsafe {
        let mut call = std::mem::zeroed::<pg_sys::FmgrInfo>();
        pg_sys::fmgr_info(Oid::from(TEXTREGEXSUBSTR), &raw mut call);
        let size =
            std::mem::size_of::<pg_sys::FunctionCallInfoBaseData>() + 2 * std::mem::size_of::<pg_sys::NullableDatum>();
        let info: pg_sys::FunctionCallInfo = pg_sys::palloc0(size).cast();
        (*info).flinfo = &raw mut call;
        (*info).fncollation = pg_sys::C_COLLATION_OID;
        (*info).nargs = 2;
        let arguments = (*info).args.as_mut_ptr();
        (*arguments).value = datum(text);
        (*arguments.add(1)).value = datum(pattern);
        let function = call.fn_addr?;
        let result = pg_sys::ffi::pg_guard_ffi_boundary(|| function(info));
        Vec::<u8>::from_datum(result, (*info).isnull)
    }
}
