//! From a name that somebody gave for a target to a role: every door comes through here.

use crate::pg::guc::Refusal;
use crate::pg::identity;
use pgrx::pg_sys::Oid;
use pgrx::PgSqlErrorCode;
use std::ffi::CString;

/// Whom a name stands for.
#[derive(Clone, Copy)]
pub struct Resolved {
    pub role: Oid,
}

/// The role that a name stands for. Reads catalogs; raises nothing for a name that is nobody's.
pub fn resolve(name: &[u8]) -> Result<Resolved, Refusal> {
    let role = role_named(name).ok_or_else(|| nobody(name))?;
    Ok(Resolved { role })
}

/// That a name is nobody's.
pub fn nobody(name: &[u8]) -> Refusal {
    Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        message: format!("role \"{}\" does not exist", shown(name)),
        detail: None,
        hint: None,
    }
}

/// The role of exactly this name.
pub fn role_named(name: &[u8]) -> Option<Oid> {
    // A longer name is no role's, though look-ups by name compare only as much as a name holds.
    (name.len() < 64)
        .then(|| CString::new(name).ok().and_then(|name| identity::role_named(&name)))
        .flatten()
}

/// Text for a message.
pub fn shown(text: &[u8]) -> String {
    // A name is no longer than 63 bytes, so this tells what there is to tell.
    const ENOUGH: usize = 256;
    let cut = identity::cut(text, ENOUGH);
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{more}", String::from_utf8_lossy(cut))
}
