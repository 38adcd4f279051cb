//! Regular expressions, by the server's own engine and in the database's encoding.

use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys::{self, Datum, Oid};

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
