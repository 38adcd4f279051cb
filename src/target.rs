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
    let Some((named, position)) = mapped(name) else {
        return Err(nobody(name));
    };
    match role_named(&named) {
        Some(role) => Ok(Resolved { role, external: true }),
        // By another rule it would be somebody whom nobody meant.
        None => Err(Refusal {
            detail: Some(format!(
                "\"{}\" stands for it by the rule at position {position} of impersonate.user_mapping.",
                shown(name)
            )),
            ..nobody(&named)
        }),
    }
}

/// What the first rule that matches makes of a name, and its position: the first decides.
fn mapped(name: &[u8]) -> Option<(Vec<u8>, i64)> {
    if name.is_empty() || name.contains(&0) {
        return None;
    }
    mapping::rules().into_iter().find_map(|rule| {
        let role = match rule.external_name.strip_prefix(b"/") {
            Some(pattern) => with_capture(&rule.role, &regex::captured(pattern, name)?),
            None if rule.external_name == name => rule.role,
            None => return None,
        };
        Some((role, rule.position))
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
