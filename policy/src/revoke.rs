//! What a REVOKE of SET USER does to the stored rights (G5).

use crate::grant::Change;
use crate::right::{Admin, Right, Scope};
use crate::role::RoleId;
use crate::support::{ids, left_standing};
use crate::world::World;

/// A REVOKE, read.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct RevokeRequest {
    /// From whom.
    pub grantees: Vec<RoleId>,
    /// What.
    pub what: RevokeWhat,
    /// `ADMIN OPTION FOR`
    pub admin_option_only: bool,
    /// CASCADE, as opposed to RESTRICT.
    pub cascade: bool,
}

/// Which rights a REVOKE is about. Who granted them does not matter.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum RevokeWhat {
    /// All, of every kind.
    Everything,
    /// The right over any user.
    Any,
    /// The right over these users.
    Users(Vec<RoleId>),
    /// The right over users, whoever is listed.
    AllUsers,
    /// These roles of *any with roles*.
    WithRoles(Vec<RoleId>),
    /// *Any with roles*, whatever is listed.
    AllWithRoles,
}

impl RevokeWhat {
    fn is_about(&self, scope: &Scope) -> bool {
        match self {
            RevokeWhat::Everything => true,
            RevokeWhat::Any => matches!(scope, Scope::Any),
            RevokeWhat::Users(_) | RevokeWhat::AllUsers => matches!(scope, Scope::Users(_)),
            RevokeWhat::WithRoles(_) | RevokeWhat::AllWithRoles => matches!(scope, Scope::AnyWithRoles(_)),
        }
    }

    fn list(&self) -> Option<&[RoleId]> {
        match self {
            RevokeWhat::Users(list) | RevokeWhat::WithRoles(list) => Some(list),
            _ => None,
        }
    }
}

/// What a REVOKE comes to.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Revoked {
    /// To be done to the table.
    pub changes: Vec<Change>,
    /// To be warned of.
    pub not_granted: Vec<NotGranted>,
}

/// Something to revoke that was never granted.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct NotGranted {
    /// To whom.
    pub grantee: RoleId,
    /// The roles of the REVOKE's list that no right of the grantee has; empty when it had no list.
    pub listed: Vec<RoleId>,
}

/// Why a REVOKE is refused.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum RevokeError {
    /// Without CASCADE: rights that hang on the admin that would go, by id.
    Dependent {
        /// Those rights.
        dependents: Vec<Right>,
    },
}

/// The changes that `request` makes to `existing`, which are all the rights of the database.
///
/// # Errors
/// See [`RevokeError`]. Then nothing at all is revoked.
pub fn revoke(world: &dyn World, existing: &[Right], request: &RevokeRequest) -> Result<Revoked, RevokeError> {
    let mut changes = Vec::new();
    let mut remaining = Vec::new();
    for right in existing {
        let left = if request.grantees.contains(&right.grantee) {
            strike(right, request)
        } else {
            Some(right.clone())
        };
        match &left {
            None => changes.push(Change::Delete { id: right.id }),
            Some(left) if left != right => changes.push(Change::Update {
                id: left.id,
                scope: left.scope.clone(),
                admin: left.admin,
                as_superuser: left.as_superuser,
            }),
            Some(_) => {}
        }
        remaining.extend(left);
    }

    let left = ids(&left_standing(world, existing, &remaining));
    let mut dependents: Vec<Right> = remaining
        .into_iter()
        .filter(|right| !left.contains(&right.id))
        .collect();
    dependents.sort_by_key(|right| right.id);
    if !request.cascade && !dependents.is_empty() {
        return Err(RevokeError::Dependent { dependents });
    }
    for dependent in dependents {
        // A right can lose its admin and fall all the same: one change is enough.
        changes.retain(|change| !matches!(change, Change::Update { id, .. } if *id == dependent.id));
        changes.push(Change::Delete { id: dependent.id });
    }
    Ok(Revoked {
        changes,
        not_granted: not_granted(existing, request),
    })
}

/// What is left of `right`.
fn strike(right: &Right, request: &RevokeRequest) -> Option<Right> {
    if !request.what.is_about(&right.scope) {
        return Some(right.clone());
    }
    if request.admin_option_only {
        return right.admin.uses().then(|| Right {
            admin: Admin::None,
            ..right.clone()
        });
    }
    let struck = request.what.list()?;
    let list: Vec<RoleId> = right
        .scope
        .roles()
        .iter()
        .copied()
        .filter(|role| !struck.contains(role))
        .collect();
    (!list.is_empty()).then(|| Right {
        scope: right.scope.with_list(list),
        ..right.clone()
    })
}

fn not_granted(existing: &[Right], request: &RevokeRequest) -> Vec<NotGranted> {
    let mut found: Vec<NotGranted> = Vec::new();
    for &grantee in &request.grantees {
        if found.iter().any(|earlier| earlier.grantee == grantee) {
            continue;
        }
        // Only the right over any user has an admin option to revoke (G3).
        let is_about = |scope: &Scope| match (request.admin_option_only, &request.what) {
            (true, RevokeWhat::Everything) => matches!(scope, Scope::Any),
            (_, what) => what.is_about(scope),
        };
        let granted: Vec<&Right> = existing
            .iter()
            .filter(|right| right.grantee == grantee && is_about(&right.scope))
            .collect();
        let listed: Vec<RoleId> = request
            .what
            .list()
            .unwrap_or_default()
            .iter()
            .copied()
            .filter(|role| !granted.iter().any(|right| right.scope.roles().contains(role)))
            .collect();
        if granted.is_empty() || !listed.is_empty() {
            found.push(NotGranted { grantee, listed });
        }
    }
    found
}
