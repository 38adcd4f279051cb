//! `impersonate.exempt_roles`: who neither impersonates nor is impersonated, superusers included.

use crate::pg::guc::Refusal;
use crate::pg::{exempt, identity};
use crate::settings;
use crate::switch::refusal;
use pgrx::pg_sys::Oid;
use pgrx::PgSqlErrorCode;

/// Why one of the two is exempt, as a sentence. Acting as oneself is no impersonation of anybody.
pub fn why(impersonator: Oid, target: Oid) -> Option<String> {
    let list = settings::exempt_roles()?;
    if impersonator == target {
        return None;
    }
    // It was there when the server started, or it would have been refused.
    let Some(entries) = exempt::entries(&list) else {
        return Some(
            "The list in setting \"impersonate.exempt_roles\" cannot be read, so everybody is exempt.".to_owned(),
        );
    };
    [impersonator, target].into_iter().find_map(|role| {
        let entry = entries.iter().find(|entry| covers(entry, role))?;
        let name = identity::to_utf8(&identity::role_name(role).unwrap_or_default());
        let entry = identity::to_utf8(entry);
        Some(format!(
            "Role \"{name}\" is exempt by \"{entry}\" in setting \"impersonate.exempt_roles\"."
        ))
    })
}

/// [`why`], as a refusal.
pub fn refused(impersonator: Oid, target: Oid) -> Option<Refusal> {
    let why = why(impersonator, target)?;
    let name = |role| identity::to_utf8(&identity::role_name(role).unwrap_or_default());
    Some(refusal(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!(
            "role \"{}\" may not act as role \"{}\"",
            name(impersonator),
            name(target)
        ),
        Some(why),
        Some("A superuser can change impersonate.exempt_roles.".to_owned()),
    ))
}

fn covers(entry: &[u8], role: Oid) -> bool {
    match entry {
        b"owner" => exempt::extension_owner().is_some_and(|owner| exempt::is_member(role, owner)),
        b"bypassrls" => exempt::bypasses_rls(role),
        name => crate::target::role_named(name).is_some_and(|group| exempt::is_member(role, group)),
    }
}
