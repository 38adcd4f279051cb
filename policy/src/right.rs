//! A SET USER right: who got it, over whom, and whether it can be passed on (G1, G3).

use crate::role::RoleId;

/// One stored SET USER right. There is one per grantee, kind of scope and grantor.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Right {
    /// `set_user_grant.grant_id`
    pub id: i64,
    /// The role it was granted to: a login, or a group whose members hold it (G6).
    pub grantee: RoleId,
    /// Over whom.
    pub scope: Scope,
    /// Whether it may be used, granted, or both. Other than [`Admin::None`] only with [`Scope::Any`].
    pub admin: Admin,
    /// The role that granted it.
    pub grantor: RoleId,
    /// Granted by a superuser: it does not hang on the grantor's own admin.
    pub as_superuser: bool,
}

/// Over whom a right reaches (G1).
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Scope {
    /// These users.
    Users(Vec<RoleId>),
    /// Every user.
    Any,
    /// Every user made of these roles (G2).
    AnyWithRoles(Vec<RoleId>),
}

impl Scope {
    /// The word for its kind, as `set_user_grant.scope` has it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Scope::Users(_) => "users",
            Scope::Any => "any",
            Scope::AnyWithRoles(_) => "any with roles",
        }
    }

    /// The scope of a stored row; `None` when `kind` is no such word, or does not go with `roles`.
    pub fn parse(kind: &str, roles: Vec<RoleId>) -> Option<Scope> {
        match (kind, roles.is_empty()) {
            ("users", false) => Some(Scope::Users(roles)),
            ("any", true) => Some(Scope::Any),
            ("any with roles", false) => Some(Scope::AnyWithRoles(roles)),
            _ => None,
        }
    }

    /// Its list; empty for [`Scope::Any`].
    pub fn roles(&self) -> &[RoleId] {
        match self {
            Scope::Any => &[],
            Scope::Users(list) | Scope::AnyWithRoles(list) => list,
        }
    }

    /// The narrowest comes first: the right that lets a switch through should be the one that says most about it.
    pub(crate) fn breadth(&self) -> u8 {
        match self {
            Scope::Users(_) => 0,
            Scope::AnyWithRoles(_) => 1,
            Scope::Any => 2,
        }
    }

    pub(crate) fn is_same_kind(&self, other: &Scope) -> bool {
        self.breadth() == other.breadth()
    }

    /// The same kind with another list.
    pub(crate) fn with_list(&self, list: Vec<RoleId>) -> Scope {
        match self {
            Scope::Any => Scope::Any,
            Scope::Users(_) => Scope::Users(list),
            Scope::AnyWithRoles(_) => Scope::AnyWithRoles(list),
        }
    }
}

/// What the holder of a right may do with it (G3).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Admin {
    /// May use it.
    None,
    /// May use and grant it.
    Option,
    /// May grant it, may not use it.
    Only,
}

impl Admin {
    /// Whether its holder may act as somebody.
    pub fn uses(self) -> bool {
        self != Admin::Only
    }

    /// Whether its holder may grant SET USER.
    pub fn grants(self) -> bool {
        self != Admin::None
    }

    /// The word in `set_user_grant.admin`.
    pub fn as_str(self) -> &'static str {
        match self {
            Admin::None => "none",
            Admin::Option => "option",
            Admin::Only => "only",
        }
    }

    /// Reads that word, in any letter case.
    pub fn parse(word: &str) -> Option<Admin> {
        [Admin::None, Admin::Option, Admin::Only]
            .into_iter()
            .find(|admin| admin.as_str().eq_ignore_ascii_case(word))
    }

    /// What two rights allow together: `none` and `only` make `option`.
    pub fn and(self, other: Admin) -> Admin {
        match (self.uses() || other.uses(), self.grants() || other.grants()) {
            (true, true) => Admin::Option,
            (true, false) => Admin::None,
            (false, _) => Admin::Only,
        }
    }

    /// Whether it allows all that `required` does.
    pub fn covers(self, required: Admin) -> bool {
        self.and(required) == self
    }
}
