//! Which roles a role gets to, along which memberships. Each role that is reached is asked about once.

use crate::role::{Membership, RoleId};
use crate::world::World;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a role can use, and what it administers.
#[derive(Default)]
pub(crate) struct Reach {
    /// The roles it can become by `SET ROLE`, itself included.
    pub settable: BTreeSet<RoleId>,
    /// The roles whose privileges it can use, by inheritance or after `SET ROLE`, itself included.
    pub usable: BTreeSet<RoleId>,
    /// The roles in which one of the usable ones has a membership with admin (A3). That membership need not make the
    /// role usable: admin is enough to grant oneself the rest.
    pub administered: BTreeSet<RoleId>,
}

/// What roles can use, found once for each: for judging many switches while nothing changes.
#[derive(Default)]
pub struct Reaches {
    reaches: RefCell<BTreeMap<RoleId, Rc<Reach>>>,
    inherited: RefCell<BTreeMap<Start, Rc<BTreeSet<RoleId>>>>,
}

/// A role, and one that it is in by `SET ROLE`.
type Start = (RoleId, Option<RoleId>);

impl Reaches {
    pub(crate) fn of(&self, world: &dyn World, role: RoleId) -> Rc<Reach> {
        let known = self.reaches.borrow().get(&role).cloned();
        known.unwrap_or_else(|| {
            let found = Rc::new(reach(world, [role]));
            self.reaches.borrow_mut().insert(role, found.clone());
            found
        })
    }

    /// See [`inherited`]: of a role, and of one that it is in by `SET ROLE`.
    pub(crate) fn inherited(&self, world: &dyn World, role: RoleId, via: Option<RoleId>) -> Rc<BTreeSet<RoleId>> {
        let known = self.inherited.borrow().get(&(role, via)).cloned();
        known.unwrap_or_else(|| {
            let found = Rc::new(inherited(world, [role].into_iter().chain(via)));
            self.inherited.borrow_mut().insert((role, via), found.clone());
            found
        })
    }
}

/// What whoever starts as one of `starts` can use: a chain of `SET ROLE`, then a chain of inheritance.
///
/// Not the other way round: a role that is only inherited from cannot be left by `SET ROLE`.
pub(crate) fn reach(world: &dyn World, starts: impl IntoIterator<Item = RoleId>) -> Reach {
    let mut reach = Reach::default();
    let mut inherited = Vec::new();
    follow(world, starts, &mut reach.settable, |membership| {
        if membership.admin {
            reach.administered.insert(membership.role);
        }
        if membership.inherit {
            inherited.push(membership.role);
        }
        membership.set
    });
    reach.usable.clone_from(&reach.settable);
    follow(world, inherited, &mut reach.usable, |membership| {
        if membership.admin {
            reach.administered.insert(membership.role);
        }
        membership.inherit
    });
    reach
}

/// The roles whose privileges `role` can use, by inheritance or after `SET ROLE`, itself included.
pub fn usable(world: &dyn World, role: RoleId) -> BTreeSet<RoleId> {
    reach(world, [role]).usable
}

/// The roles whose privileges `starts` have without asking, themselves included.
pub(crate) fn inherited(world: &dyn World, starts: impl IntoIterator<Item = RoleId>) -> BTreeSet<RoleId> {
    let mut reached = BTreeSet::new();
    follow(world, starts, &mut reached, |membership| membership.inherit);
    reached
}

/// Those of the roles above `start` that are members of `group`, whatever the options: `group` cannot be made a member
/// of them, for membership would be circular.
pub(crate) fn members_of(world: &dyn World, group: RoleId, start: RoleId) -> BTreeSet<RoleId> {
    let mut members: BTreeMap<RoleId, Vec<RoleId>> = BTreeMap::new();
    let mut waiting = vec![start];
    let mut seen = BTreeSet::new();
    while let Some(member) = waiting.pop() {
        if seen.insert(member) {
            for membership in world.memberships(member) {
                members.entry(membership.role).or_default().push(member);
                waiting.push(membership.role);
            }
        }
    }

    let mut found = BTreeSet::new();
    let mut waiting = vec![group];
    while let Some(role) = waiting.pop() {
        if found.insert(role) {
            waiting.extend(members.get(&role).into_iter().flatten());
        }
    }
    found
}

/// Adds to `reached` all that can be got to from `starts` along the memberships for which `goes_on` says yes.
fn follow(
    world: &dyn World,
    starts: impl IntoIterator<Item = RoleId>,
    reached: &mut BTreeSet<RoleId>,
    mut goes_on: impl FnMut(Membership) -> bool,
) {
    let mut waiting = Vec::from_iter(starts);
    while let Some(role) = waiting.pop() {
        if reached.insert(role) {
            for membership in world.memberships(role) {
                if goes_on(membership) {
                    waiting.push(membership.role);
                }
            }
        }
    }
}
