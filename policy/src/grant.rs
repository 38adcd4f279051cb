//! What a GRANT of SET USER does to the stored rights (G1, G3, G4). The at-least criteria play no part (G4).

use crate::reach::inherited;
use crate::right::{Admin, Right, Scope};
use crate::role::RoleId;
use crate::support::{admins, left_standing};
use crate::world::World;
use std::collections::BTreeSet;

/// A GRANT, read.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GrantRequest {
    /// Who gets it.
    pub grantees: Vec<RoleId>,
    /// Over whom.
    pub scope: Scope,
    /// What they may do with it.
    pub admin: Admin,
    /// Who grants it.
    pub grantor: RoleId,
    /// The grantor is a superuser, and grants as one.
    pub as_superuser: bool,
}

/// What is to be done to `impersonate.set_user_grant`.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Change {
    /// A right to store.
    Insert(NewRight),
    /// A stored right to alter.
    Update {
        /// Which.
        id: i64,
        /// Its scope from now on, of the same kind as before.
        scope: Scope,
        /// Its admin from now on.
        admin: Admin,
        /// Whether it stands by itself from now on.
        as_superuser: bool,
    },
    /// A stored right to remove.
    Delete {
        /// Which.
        id: i64,
    },
}

/// A right that has no id yet. The fields are those of [`Right`].
#[allow(missing_docs)]
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct NewRight {
    pub grantee: RoleId,
    pub scope: Scope,
    pub admin: Admin,
    pub grantor: RoleId,
    pub as_superuser: bool,
}

/// Why a GRANT is refused.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum GrantError {
    /// Only the scope *any* carries admin (G3).
    AdminNeedsAny {
        /// The scope that was asked for.
        scope: Scope,
        /// The admin that was asked for.
        admin: Admin,
    },
    /// A scope with a list, and nobody on it.
    EmptyList {
        /// The scope that was asked for.
        scope: Scope,
    },
    /// The grantor has no admin over SET USER (G4).
    MayNotGrant {
        /// Who tried.
        grantor: RoleId,
    },
    /// The grantor's own admin hangs on the grantee's: admin cannot be granted back to where it came from.
    Circular {
        /// Who tried.
        grantor: RoleId,
        /// On whom its admin hangs.
        grantee: RoleId,
    },
}

/// Whether `role` may grant and revoke SET USER: a superuser, or a holder with admin (G4, G6).
pub fn may_grant(world: &dyn World, role: RoleId) -> bool {
    world.attributes(role).superuser
        || inherited(world, [role])
            .into_iter()
            .any(|grantee| world.rights(grantee).iter().any(|right| right.admin.grants()))
}

/// The changes that `request` makes to `existing`, which are all the rights of the database.
///
/// There is one right per grantee, kind of scope and grantor, so granting again adds to what is there (G1), and
/// granting the same again changes nothing.
///
/// # Errors
/// See [`GrantError`]. Then nothing at all is granted.
pub fn grant(world: &dyn World, existing: &[Right], request: &GrantRequest) -> Result<Vec<Change>, GrantError> {
    if request.admin != Admin::None && request.scope != Scope::Any {
        return Err(GrantError::AdminNeedsAny {
            scope: request.scope.clone(),
            admin: request.admin,
        });
    }
    if request.scope != Scope::Any && request.scope.roles().is_empty() {
        return Err(GrantError::EmptyList {
            scope: request.scope.clone(),
        });
    }
    let grantor = request.grantor;
    if !request.as_superuser && inherited(world, [grantor]).is_disjoint(&admins(existing)) {
        return Err(GrantError::MayNotGrant { grantor });
    }

    let mut changes = Vec::new();
    // With what this grant itself has changed so far: two grantees may hang on each other.
    let mut rights = existing.to_vec();
    for grantee in without_repeats(&request.grantees) {
        let new = NewRight {
            grantee,
            scope: request.scope.with_list(without_repeats(request.scope.roles())),
            admin: request.admin,
            grantor,
            as_superuser: request.as_superuser,
        };
        let place = rights.iter().position(|right| {
            right.grantee == grantee && right.grantor == grantor && right.scope.is_same_kind(&new.scope)
        });
        let stored = place.map(|place| &rights[place]);
        let result = stored.map_or_else(|| new.clone(), |old| merge(old, &new));
        if stored.is_some_and(|old| is_same(old, &result)) {
            continue;
        }
        if result.admin.grants() && !result.as_superuser && hangs_on(world, &rights, grantor, grantee) {
            return Err(GrantError::Circular { grantor, grantee });
        }
        if let Some(place) = place {
            let right = &mut rights[place];
            (right.scope, right.admin, right.as_superuser) = (result.scope.clone(), result.admin, result.as_superuser);
            changes.push(Change::Update {
                id: right.id,
                scope: result.scope,
                admin: result.admin,
                as_superuser: result.as_superuser,
            });
        } else {
            rights.push(Right {
                // Of none that is stored.
                id: i64::MIN + changes.len() as i64,
                grantee,
                scope: result.scope.clone(),
                admin: result.admin,
                grantor,
                as_superuser: result.as_superuser,
            });
            changes.push(Change::Insert(result));
        }
    }
    Ok(changes)
}

/// The stored right and what is granted on top of it.
fn merge(old: &Right, new: &NewRight) -> NewRight {
    let list = [old.scope.roles(), new.scope.roles()].concat();
    let scope = new.scope.with_list(without_repeats(&list));
    let admin = old.admin.and(new.admin);
    // It stands by itself only if a superuser gave all of it, be it in one of the two grants or in both.
    let all_in_old = old.scope.roles().len() == scope.roles().len() && old.admin == admin;
    let all_in_new = new.scope.roles().len() == scope.roles().len() && new.admin == admin;
    let as_superuser = match (old.as_superuser, new.as_superuser) {
        (true, true) => true,
        (true, false) => all_in_old,
        (false, true) => all_in_new,
        (false, false) => false,
    };
    NewRight {
        scope,
        admin,
        as_superuser,
        ..new.clone()
    }
}

fn is_same(old: &Right, new: &NewRight) -> bool {
    old.scope == new.scope && old.admin == new.admin && old.as_superuser == new.as_superuser
}

/// Whether `grantor` would be without admin if `grantee` were without rights.
fn hangs_on(world: &dyn World, existing: &[Right], grantor: RoleId, grantee: RoleId) -> bool {
    let rest: Vec<Right> = existing
        .iter()
        .filter(|right| right.grantee != grantee)
        .cloned()
        .collect();
    let left = left_standing(world, existing, &rest);
    inherited(world, [grantor]).is_disjoint(&admins(&left))
}

fn without_repeats(roles: &[RoleId]) -> Vec<RoleId> {
    let mut seen = BTreeSet::new();
    roles.iter().copied().filter(|&role| seen.insert(role)).collect()
}
