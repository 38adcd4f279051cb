//! The criteria once more, said as plainly as possible and without regard to cost: relations over all the roles, made
//! larger until nothing is added.

use crate::town::{item_id, Item, Town};
use impersonate_policy::*;
use std::collections::BTreeSet;

type Roles = BTreeSet<RoleId>;

/// The smallest set that has `start` and, with a member, each role of a membership that `counts`.
fn closure(town: &Town, start: &Roles, counts: impl Fn(&Membership) -> bool) -> Roles {
    let mut all = start.clone();
    loop {
        let before = all.len();
        for (member, memberships) in &town.memberships {
            if all.contains(member) {
                all.extend(
                    memberships
                        .iter()
                        .filter(|membership| counts(membership))
                        .map(|m| m.role),
                );
            }
        }
        if all.len() == before {
            return all;
        }
    }
}

pub fn inherited(town: &Town, role: RoleId) -> Roles {
    closure(town, &Roles::from([role]), |membership| membership.inherit)
}

pub fn settable(town: &Town, role: RoleId) -> Roles {
    closure(town, &Roles::from([role]), |membership| membership.set)
}

/// By inheritance from any role that can be become.
pub fn usable(town: &Town, role: RoleId) -> Roles {
    closure(town, &settable(town, role), |membership| membership.inherit)
}

/// By whatever membership.
pub fn reaches(town: &Town, member: RoleId, role: RoleId) -> bool {
    closure(town, &Roles::from([member]), |_| true).contains(&role)
}

/// Everything that acting as somebody could give, apart from A1. To be at least as much is to have a superset.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub enum Power {
    Use(RoleId),
    Administer(RoleId),
    Have(Attribute),
    SetParameter(String, ParameterAction),
    GrantParameter(String, ParameterAction),
    ActAsAnybody,
    GrantSetUser,
    ActAs(RoleId),
    ActAsThoseWith(RoleId),
    Own(ObjectId),
    /// To be the one whose name is on it.
    BeNamed(ObjectId, RoleId),
    DoTo(ObjectId, Privileges),
    Grant(ObjectId, Privileges),
    SeeRows(ObjectId),
    Unknown(RoleId),
}

/// The criterion that asks for it.
pub fn criterion(power: &Power) -> Criterion {
    match power {
        Power::Use(_) => Criterion::A2,
        Power::Administer(_) => Criterion::A3,
        Power::Have(_) | Power::SetParameter(..) | Power::GrantParameter(..) => Criterion::A4,
        Power::ActAsAnybody | Power::GrantSetUser | Power::ActAs(_) | Power::ActAsThoseWith(_) => Criterion::A5,
        _ => Criterion::A6,
    }
}

/// The powers of `role` that the criteria ask for when it is the target: its parameter privileges are its own.
fn required(town: &Town, role: RoleId) -> BTreeSet<Power> {
    let mut powers = powers(town, role, |grantee| grantee == Some(role));
    powers.extend(over_items(town, &Roles::from([role]), false, |named| *named == role));
    if town.unlisted.contains(&role) {
        powers.insert(Power::Unknown(role));
    }
    powers
}

/// What those who are `some_of` can do to items; `everywhere`: also as everybody, and by special roles.
fn over_items(town: &Town, some_of: &Roles, everywhere: bool, is_named: impl Fn(&RoleId) -> bool) -> BTreeSet<Power> {
    let counts = |grantee: &Option<RoleId>| match grantee {
        Some(grantee) => some_of.contains(grantee),
        None => everywhere,
    };
    let mut powers = BTreeSet::new();
    for (nth, item) in town.items.iter().enumerate() {
        let object = item_id(nth);
        match item {
            Item::Mapping(named) => {
                powers.extend(is_named(named).then_some(Power::BeNamed(object, *named)));
            }
            Item::Policy { owner, roles } => {
                let exempt = everywhere && some_of.contains(owner);
                powers.extend((exempt || roles.iter().any(counts)).then_some(Power::SeeRows(object)));
            }
            Item::Object { owner, grants } => {
                let owns = some_of.contains(owner);
                powers.extend(owns.then_some(Power::Own(object)));
                for bit in [1, 2, 4, 1 << 14].map(Privileges::from_bits) {
                    let granted = |of: &dyn Fn(&Grant) -> Privileges| {
                        let mut grants = grants.iter().filter(|grant| counts(&grant.grantee));
                        grants.any(|grant| !of(grant).and(bit).is_empty())
                    };
                    let reads = everywhere
                        && bit == crate::town::SELECT
                        && town.reader.is_some_and(|reader| some_of.contains(&reader));
                    let all = everywhere && owns;
                    if all || reads || granted(&|grant| grant.privileges) || granted(&|grant| grant.grantable) {
                        powers.insert(Power::DoTo(object, bit));
                    }
                    if all || granted(&|grant| grant.grantable) {
                        powers.insert(Power::Grant(object, bit));
                    }
                }
            }
        }
    }
    powers
}

/// All of them.
fn held(town: &Town, role: RoleId) -> BTreeSet<Power> {
    let usable = usable(town, role);
    let settable = settable(town, role);
    let mut powers = powers(town, role, |grantee| {
        grantee.is_none_or(|grantee| usable.contains(&grantee))
    });
    powers.extend(over_items(town, &usable, true, |named| settable.contains(named)));
    if town.attributes[&role].bypassrls {
        powers.extend((0..town.items.len()).map(item_id).map(Power::SeeRows));
    }
    powers.extend(usable.into_iter().map(Power::Unknown));
    powers
}

fn powers(town: &Town, role: RoleId, parameters_of: impl Fn(Option<RoleId>) -> bool) -> BTreeSet<Power> {
    let usable = usable(town, role);
    let mut powers: BTreeSet<Power> = usable.iter().copied().map(Power::Use).collect();
    for member in &usable {
        for membership in town
            .memberships
            .get(member)
            .into_iter()
            .flatten()
            .filter(|membership| membership.admin)
        {
            powers.insert(Power::Administer(membership.role));
        }
    }
    let attributes = town.attributes[&role];
    for (has, attribute) in [
        (attributes.superuser, Attribute::Superuser),
        (attributes.createrole, Attribute::CreateRole),
        (attributes.createdb, Attribute::CreateDb),
        (attributes.replication, Attribute::Replication),
        (attributes.bypassrls, Attribute::BypassRls),
    ] {
        if has {
            powers.insert(Power::Have(attribute));
        }
    }
    for privilege in town
        .parameters
        .iter()
        .filter(|privilege| parameters_of(privilege.grantee))
    {
        let name = &privilege.parameter;
        let set = ParameterAction::Set;
        let alter = ParameterAction::AlterSystem;
        powers.extend(privilege.set.then(|| Power::SetParameter(name.clone(), set)));
        powers.extend(
            privilege
                .set_grantable
                .then(|| Power::GrantParameter(name.clone(), set)),
        );
        powers.extend(privilege.alter_system.then(|| Power::SetParameter(name.clone(), alter)));
        powers.extend(
            privilege
                .alter_system_grantable
                .then(|| Power::GrantParameter(name.clone(), alter)),
        );
    }
    for right in town.rights.iter().filter(|right| usable.contains(&right.grantee)) {
        if right.admin != Admin::None {
            powers.insert(Power::GrantSetUser);
        }
        match &right.scope {
            Scope::Any if right.admin == Admin::Only => {}
            Scope::Any => {
                powers.insert(Power::ActAsAnybody);
            }
            Scope::Users(list) => powers.extend(list.iter().copied().map(Power::ActAs)),
            Scope::AnyWithRoles(list) => powers.extend(list.iter().copied().map(Power::ActAsThoseWith)),
        }
    }
    powers
}

/// What the impersonator would gain by acting as the target (A2 to A5).
pub fn gained(town: &Town, impersonator: RoleId, target: RoleId) -> BTreeSet<Power> {
    if impersonator == target || town.attributes[&impersonator].superuser {
        return BTreeSet::new();
    }
    let held = held(town, impersonator);
    let mut gained = required(town, target);
    gained.retain(|power| !held.contains(power));
    // To be the target is the point, and to act as oneself is nothing (A5).
    gained.remove(&Power::Use(target));
    gained.remove(&Power::ActAs(impersonator));
    if held.contains(&Power::ActAsAnybody) {
        gained.retain(|power| !matches!(power, Power::ActAs(_) | Power::ActAsThoseWith(_)));
    }
    gained
}

/// Whether a right covers the target (A1).
pub fn covered(town: &Town, impersonator: RoleId, target: RoleId, via: Option<RoleId>) -> bool {
    if impersonator == target || town.attributes[&impersonator].superuser {
        return true;
    }
    let mut grantees = inherited(town, impersonator);
    if let Some(via) = via.filter(|via| settable(town, impersonator).contains(via)) {
        grantees.extend(inherited(town, via));
    }
    let mut held = usable(town, target);
    held.remove(&target);
    town.rights.iter().any(|right| {
        grantees.contains(&right.grantee)
            && right.admin != Admin::Only
            && match &right.scope {
                Scope::Any => true,
                Scope::Users(users) => users.contains(&target),
                Scope::AnyWithRoles(roles) => {
                    let is_listed = |role: &RoleId| roles.contains(role);
                    let is_contained = |role: &RoleId| roles.iter().any(|listed| usable(town, *listed).contains(role));
                    held.iter().any(is_listed) && held.iter().all(is_contained)
                }
            }
    })
}
