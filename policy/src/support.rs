//! Which rights stand on what: a right hangs on its grantor's admin, unless a superuser granted it (G5).

use crate::reach::inherited;
use crate::right::Right;
use crate::role::RoleId;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};

/// What is left of `remaining` when all that hung on a right of `existing` that is no longer among them has gone too.
pub(crate) fn left_standing(world: &dyn World, existing: &[Right], remaining: &[Right]) -> Vec<Right> {
    let support = Support::new(world, existing);
    let stood = ids(&support.stand_on_roots(existing));
    let stand = ids(&support.stand_on_roots(remaining));
    let fell = |right: &Right| stood.contains(&right.id) && !stand.contains(&right.id);
    let left = remaining.iter().filter(|right| !fell(right)).cloned().collect();
    support.cascade(left)
}

/// The roles to which admin over SET USER was granted.
pub(crate) fn admins(rights: &[Right]) -> BTreeSet<RoleId> {
    rights
        .iter()
        .filter(|right| right.admin.grants())
        .map(|right| right.grantee)
        .collect()
}

struct Support {
    /// Each grantor with the roles that it inherits from, itself included (G6).
    holders: BTreeMap<RoleId, BTreeSet<RoleId>>,
    /// The rights that hang on nothing. Besides those granted by a superuser, those whose grantor had lost its admin
    /// before, by leaving a group say: an unrelated REVOKE shall not trip over them.
    roots: BTreeSet<i64>,
}

impl Support {
    fn new(world: &dyn World, existing: &[Right]) -> Support {
        let grantors: BTreeSet<RoleId> = existing.iter().map(|right| right.grantor).collect();
        let holders = grantors
            .into_iter()
            .map(|grantor| (grantor, inherited(world, [grantor])))
            .collect();
        let mut support = Support {
            holders,
            roots: BTreeSet::new(),
        };
        let admins = admins(existing);
        support.roots = existing
            .iter()
            .filter(|right| right.as_superuser || !support.hangs_on(right, &admins))
            .map(|right| right.id)
            .collect();
        support
    }

    /// Roots, and what was granted, step by step, by those whose admin stands on one.
    ///
    /// Built from the roots up, so rights that hang on each other in a ring do not hold each other up.
    fn stand_on_roots(&self, rights: &[Right]) -> Vec<Right> {
        let (mut standing, mut open): (Vec<Right>, Vec<Right>) =
            rights.iter().cloned().partition(|right| self.roots.contains(&right.id));
        loop {
            let admins = admins(&standing);
            let (more, rest): (Vec<Right>, Vec<Right>) =
                open.into_iter().partition(|right| self.hangs_on(right, &admins));
            if more.is_empty() {
                return standing;
            }
            standing.extend(more);
            open = rest;
        }
    }

    /// What is left when, step by step, the grants of those without admin go.
    ///
    /// Not the same as standing on roots: a ring that had lost its root before, by the drop of a role say, stays until
    /// one of its own rights goes.
    fn cascade(&self, mut left: Vec<Right>) -> Vec<Right> {
        loop {
            let admins = admins(&left);
            let before = left.len();
            left.retain(|right| self.roots.contains(&right.id) || self.hangs_on(right, &admins));
            if left.len() == before {
                return left;
            }
        }
    }

    fn hangs_on(&self, right: &Right, admins: &BTreeSet<RoleId>) -> bool {
        self.holders
            .get(&right.grantor)
            .is_some_and(|holders| !holders.is_disjoint(admins))
    }
}

pub(crate) fn ids(rights: &[Right]) -> BTreeSet<i64> {
    rights.iter().map(|right| right.id).collect()
}
