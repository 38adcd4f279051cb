//! A6: whatever the target itself owns or was granted, the impersonator could do as well.
//!
//! What the target has through other roles follows from A2: the impersonator holds them too.

use crate::possession::{Grant, ObjectId, Possession, Privileges};
use crate::reach::{members_of, Reach};
use crate::role::{Impersonator, RoleId, Target};
use crate::verdict::Fact;
use crate::world::World;

/// Objects whose privileges are missing are told up to this number, and counted beyond it.
const MAX_TOLD: usize = 1000;

/// What is missing; when nothing is, one fact that says how much was looked at, or none where there was nothing.
pub(crate) fn objects(
    world: &dyn World,
    impersonator: Impersonator,
    reach: &Reach,
    bypasses_policies: bool,
    target: Target,
) -> Vec<(bool, Fact)> {
    if reach.settable.contains(&target.0) {
        return vec![(true, Fact::TargetHeld)];
    }
    let mut account = Account {
        reach,
        bypasses_policies,
        usable: reach.usable.contains(&target.0),
        seen: 0,
        unlisted: false,
        owned: 0,
        first_owned: None,
        told: Vec::new(),
        untold: 0,
    };
    world.possessions(target.0, &mut |possession| account.enter(&possession));
    if account.first_owned.is_none() && !account.unlisted && account.told.is_empty() {
        return match account.seen {
            0 => Vec::new(),
            count => vec![(true, Fact::Objects { count })],
        };
    }

    let mut found = Vec::new();
    if account.unlisted || account.first_owned.is_some() {
        let joined = world.memberships(impersonator.0);
        let unusable_member = joined.iter().any(|membership| membership.role == target.0);
        let circular = members_of(world, impersonator.0, target.0).contains(&target.0);
        let fact = match account.first_owned {
            Some(first) => Fact::Owned {
                first,
                others: account.owned - 1,
                unusable_member,
                circular,
            },
            None => Fact::Unlisted {
                unusable_member,
                circular,
            },
        };
        found.push((false, fact));
    }
    found.extend(account.told.into_iter().map(|fact| (false, fact)));
    if account.untold > 0 {
        found.push((false, Fact::MoreObjects { count: account.untold }));
    }
    found
}

struct Account<'a> {
    reach: &'a Reach,
    bypasses_policies: bool,
    /// The impersonator has the target's privileges, but cannot `SET ROLE` to it.
    usable: bool,
    seen: usize,
    unlisted: bool,
    owned: usize,
    first_owned: Option<ObjectId>,
    told: Vec<Fact>,
    untold: usize,
}

impl Account<'_> {
    fn enter(&mut self, possession: &Possession) {
        self.seen += 1;
        match *possession {
            Possession::Unlisted => self.unlisted |= !self.usable,
            Possession::Owned(_) if self.usable => {}
            Possession::Owned(object) | Possession::Personal(object) => {
                self.owned += 1;
                self.first_owned.get_or_insert(object);
            }
            Possession::Granted {
                object,
                privileges,
                grantable,
                holders,
            } => self.granted(object, privileges, grantable, holders),
            Possession::Policy { policy, roles, owner } => {
                let through_a_role = roles.iter().any(|role| self.holds(*role));
                if !(through_a_role || self.bypasses_policies || self.holds(Some(owner))) {
                    let roles = roles.iter().flatten().copied().collect();
                    self.tell(Fact::Policy { policy, roles });
                }
            }
        }
    }

    fn granted(&mut self, object: ObjectId, privileges: Privileges, grantable: Privileges, holders: &[Grant]) {
        let (mut held, mut held_grantable) = (Privileges::NONE, Privileges::NONE);
        for grant in holders.iter().filter(|grant| self.holds(grant.grantee)) {
            // Who may grant a privilege can grant it to itself.
            held = held.or(grant.privileges).or(grant.grantable);
            held_grantable = held_grantable.or(grant.grantable);
        }
        let plain = privileges.without(grantable).without(held);
        if !plain.is_empty() {
            self.tell(Fact::ObjectPrivileges {
                object,
                missing: plain,
                grantable: false,
                held: Privileges::NONE,
            });
        }
        let missing = grantable.without(held_grantable);
        if !missing.is_empty() {
            self.tell(Fact::ObjectPrivileges {
                object,
                missing,
                grantable: true,
                held: missing.and(held),
            });
        }
    }

    fn holds(&self, role: Option<RoleId>) -> bool {
        role.is_none_or(|role| self.reach.usable.contains(&role))
    }

    fn tell(&mut self, fact: Fact) {
        if self.told.len() < MAX_TOLD {
            self.told.push(fact);
        } else {
            self.untold += 1;
        }
    }
}
