//! The names that SET USER goes by in GRANT and REVOKE (G1, G5, G7).

use crate::revoke::RevokeWhat;
use crate::right::Scope;
use crate::role::RoleId;

/// A privilege name of ours.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Privilege {
    /// `"SET USER"`: over the users of a list, or over any without one.
    SetUser,
    /// `"SET USER ANY"`
    SetUserAny,
    /// `"SET USER ANY WITH ROLES"`
    SetUserAnyWithRoles,
}

/// Reads a privilege name of GRANT or REVOKE, in any letter case; `None` when it is not ours.
///
/// No role may have such a name (G7).
pub fn parse_privilege(name: &str) -> Option<Privilege> {
    [
        Privilege::SetUser,
        Privilege::SetUserAny,
        Privilege::SetUserAnyWithRoles,
    ]
    .into_iter()
    .find(|privilege| privilege.as_str().eq_ignore_ascii_case(name))
}

impl Privilege {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Privilege::SetUser => "SET USER",
            Privilege::SetUserAny => "SET USER ANY",
            Privilege::SetUserAnyWithRoles => "SET USER ANY WITH ROLES",
        }
    }

    /// What a GRANT of it with `list` gives (G1).
    ///
    /// # Errors
    /// When the privilege needs a list and there is none, or the other way round.
    pub fn granted(self, list: Vec<RoleId>) -> Result<Scope, ListError> {
        match (self, list.is_empty()) {
            (Privilege::SetUser | Privilege::SetUserAny, true) => Ok(Scope::Any),
            (Privilege::SetUser, false) => Ok(Scope::Users(list)),
            (Privilege::SetUserAnyWithRoles, false) => Ok(Scope::AnyWithRoles(list)),
            (Privilege::SetUserAny, false) => Err(ListError::Unexpected(self)),
            (Privilege::SetUserAnyWithRoles, true) => Err(ListError::Missing(self)),
        }
    }

    /// What a REVOKE of it with `list` takes (G5).
    ///
    /// # Errors
    /// When the privilege has no list but one was given.
    pub fn revoked(self, list: Vec<RoleId>) -> Result<RevokeWhat, ListError> {
        match (self, list.is_empty()) {
            (Privilege::SetUser, true) => Ok(RevokeWhat::Everything),
            (Privilege::SetUser, false) => Ok(RevokeWhat::Users(list)),
            (Privilege::SetUserAny, true) => Ok(RevokeWhat::Any),
            (Privilege::SetUserAny, false) => Err(ListError::Unexpected(self)),
            (Privilege::SetUserAnyWithRoles, true) => Ok(RevokeWhat::AllWithRoles),
            (Privilege::SetUserAnyWithRoles, false) => Ok(RevokeWhat::WithRoles(list)),
        }
    }
}

/// A privilege name and a list that do not go together.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ListError {
    /// The privilege needs a list.
    Missing(Privilege),
    /// The privilege takes no list.
    Unexpected(Privilege),
}
