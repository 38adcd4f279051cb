//! From a name that somebody gave for a target to a role: every door comes through here.

use crate::pg::guc::Refusal;
use crate::pg::{identity, mapping, regex};
use pgrx::pg_sys::Oid;
use pgrx::PgSqlErrorCode;
use std::ffi::CString;

/// Whom a name stands for.
#[derive(Clone, Copy)]
pub struct Resolved {
    pub role: Oid,
    /// The name is no role's, and stands for one by impersonate.user_mapping.
    pub external: bool,
}

/// The role that a name stands for. Reads catalogs; raises nothing for a name that is nobody's.
pub fn resolve(name: &[u8]) -> Result<Resolved, Refusal> {
    if let Some(role) = role_named(name) {
        return Ok(Resolved { role, external: false });
    }
    let role = mapped(name).ok_or_else(|| nobody(name))?;
    Ok(Resolved { role, external: true })
}

/// The role of the first rule that fits. A rule whose role doesn't exist fits nobody.
fn mapped(name: &[u8]) -> Option<Oid> {
    if name.is_empty() || name.contains(&0) {
        return None;
    }
    mapping::rules().iter().find_map(|rule| {
        let Some(pattern) = rule.external_name.strip_prefix(b"/") else {
            return (rule.external_name == name).then(|| role_named(&rule.role)).flatten();
        };
        let captured = regex::captured(pattern, name)?;
        role_named(&with_capture(&rule.role, &captured))
    })
}

/// `\1` is what the parentheses of the pattern matched.
fn with_capture(role: &[u8], captured: &[u8]) -> Vec<u8> {
    match role.windows(2).position(|pair| pair == b"\\1") {
        Some(place) => [&role[..place], captured, &role[place + 2..]].concat(),
        None => role.to_vec(),
    }
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
