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
