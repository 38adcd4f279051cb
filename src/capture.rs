//! `impersonate.capture_set_role`: what SET ROLE and SET SESSION AUTHORIZATION mean for logins that hold SET USER rights,
//! so that tools which know nothing else impersonate with criteria and audit (D2).

use crate::pg::roles::{role_id, Catalogs};
use crate::pg::{identity, rights, version};
use crate::{session, settings, target};
use impersonate_policy::{self as policy, World};

/// Whom the client's own SET of `role` or `session_authorization` to this value means to act as, an inner None to end;
/// None where it is what it is. A value that is reset has none.
pub fn meant(value: Option<&[u8]>) -> Option<Option<&[u8]>> {
    if !settings::capture_set_role() || !identity::in_transaction() || !rights::extension_created() {
        return None;
    }
    let inside = session::in_force();
    let end = inside.is_some().then_some(None);
    let Some(name) = value.filter(|name| *name != b"none") else {
        return end;
    };
    if name.is_empty() {
        return None;
    }
    let login = identity::session_user();
    let catalogs = Catalogs::default();
    if let Some(role) = target::role_named(name) {
        if role == login {
            return end;
        }
        // A group is nobody to act as: to hold the right by it, say (G6).
        let member = inside.map_or(login, |state| state.target);
        if !catalogs.attributes(role_id(role)).login && version::may_set_role(member, role) {
            return None;
        }
    }
    let holds = policy::usable(&catalogs, role_id(login))
        .into_iter()
        .any(|grantee| !catalogs.rights(grantee).is_empty());
    holds.then_some(Some(name))
}
