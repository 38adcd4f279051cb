//! Random small worlds: few roles, much between them.

use crate::town::{Item, Town};
use impersonate_policy::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

pub const ROLES: u32 = 7;

pub fn role() -> impl Strategy<Value = RoleId> {
    (0..ROLES).prop_map(RoleId)
}

/// A membership of a lower role in a higher one, so that there are no rings.
pub fn membership() -> impl Strategy<Value = (RoleId, Membership)> {
    let options = (
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.3),
    );
    (role(), role(), options).prop_filter_map("a ring", |(one, other, (inherit, set, admin))| {
        let membership = Membership {
            role: one.max(other),
            inherit,
            set,
            admin,
        };
        (one != other).then(|| (one.min(other), membership))
    })
}

pub fn attributes() -> impl Strategy<Value = Attributes> {
    let rarely = || prop::bool::weighted(0.1);
    let mostly = || prop::bool::weighted(0.9);
    (rarely(), rarely(), rarely(), rarely(), rarely(), mostly(), rarely()).prop_map(
        |(superuser, createrole, createdb, replication, bypassrls, login, expired)| Attributes {
            superuser: superuser && createdb,
            createrole,
            createdb,
            replication,
            bypassrls,
            login,
            expired,
        },
    )
}

pub fn scope_and_admin() -> impl Strategy<Value = (Scope, Admin)> {
    let list = || prop::collection::vec(role(), 1..4);
    let admin = prop_oneof![Just(Admin::None), Just(Admin::Option), Just(Admin::Only)];
    prop_oneof![
        2 => admin.prop_map(|admin| (Scope::Any, admin)),
        2 => list().prop_map(|list| (Scope::Users(list), Admin::None)),
        1 => list().prop_map(|list| (Scope::AnyWithRoles(list), Admin::None)),
    ]
}

pub fn parameter() -> impl Strategy<Value = ParameterPrivilege> {
    let name = prop_oneof![Just("work_mem"), Just("log_statement")];
    let grantee = prop::option::weighted(0.9, role());
    (name, grantee, any::<(bool, bool, bool, bool)>()).prop_map(
        |(name, grantee, (set, set_grantable, alter, alter_grantable))| ParameterPrivilege {
            parameter: name.to_string(),
            grantee,
            set,
            set_grantable: set && set_grantable,
            alter_system: alter,
            alter_system_grantable: alter && alter_grantable,
        },
    )
}

/// Few privileges, so that they meet.
fn privileges() -> impl Strategy<Value = (Privileges, Privileges)> {
    (1u32..8, any::<u32>()).prop_map(|(bits, option)| {
        let privileges = Privileges::from_bits(bits);
        (privileges, privileges.and(Privileges::from_bits(option)))
    })
}

/// Owned mostly by one who is nobody of the rest.
fn owner() -> impl Strategy<Value = RoleId> {
    prop_oneof![4 => Just(RoleId(ROLES)), 1 => role()]
}

fn item() -> impl Strategy<Value = Item> {
    let grant = (prop::option::weighted(0.9, role()), privileges());
    let grant = grant.prop_map(|(grantee, (privileges, grantable))| Grant {
        grantee,
        privileges,
        grantable,
    });
    let roles = prop::collection::vec(prop::option::weighted(0.9, role()), 1..3);
    prop_oneof![
        6 => (owner(), prop::collection::vec(grant, 0..5)).prop_map(|(owner, grants)| Item::Object { owner, grants }),
        1 => (owner(), roles).prop_map(|(owner, roles)| Item::Policy { owner, roles }),
        1 => owner().prop_map(Item::Mapping),
    ]
}

prop_compose! {
    pub fn town()(
        memberships in prop::collection::vec(membership(), 0..10),
        attributes in prop::collection::vec(attributes(), ROLES as usize),
        parameters in prop::collection::vec(parameter(), 0..3),
        rights in prop::collection::vec((role(), scope_and_admin()), 0..7),
        items in prop::collection::vec(item(), 0..4),
        reader in prop::option::of(role()),
        unlisted in prop::option::weighted(0.15, role()),
    ) -> Town {
        let mut by_member: BTreeMap<RoleId, Vec<Membership>> = BTreeMap::new();
        for (member, membership) in memberships {
            by_member.entry(member).or_default().push(membership);
        }
        let rights = rights.into_iter().zip(1..).map(|((grantee, (scope, admin)), id)| {
            Right { id, grantee, scope, admin, grantor: RoleId(ROLES), as_superuser: true }
        });
        Town {
            names: (0..=ROLES).map(|id| format!("r{id}")).collect(),
            memberships: by_member,
            attributes: attributes.into_iter().zip(0..).map(|(attributes, id)| (RoleId(id), attributes)).collect(),
            parameters,
            rights: rights.collect(),
            items,
            reader,
            unlisted: Vec::from_iter(unlisted),
            ..Town::default()
        }
    }
}

/// An impersonator, a target and a role that the impersonator may be in.
pub fn pair() -> impl Strategy<Value = (RoleId, RoleId, Option<RoleId>)> {
    (role(), role(), prop::option::weighted(0.3, role()))
}

/// Something that a role can have.
#[derive(Clone, Debug)]
pub enum Thing {
    Membership(RoleId, [bool; 3]),
    Attribute(Attribute),
    Parameter(ParameterPrivilege),
    Right(Scope, Admin),
    /// On an object or in a policy, by number, as far as there are so many.
    OnItem(usize, Privileges, Privileges),
}

pub fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        2 => (role(), any::<[bool; 3]>()).prop_map(|(role, options)| Thing::Membership(role, options)),
        1 => prop::sample::select(Attribute::ALL.to_vec()).prop_map(Thing::Attribute),
        1 => parameter().prop_map(Thing::Parameter),
        2 => scope_and_admin().prop_map(|(scope, admin)| Thing::Right(scope, admin)),
        2 => (0..4usize, privileges()).prop_map(|(nth, (privileges, grantable))| {
            Thing::OnItem(nth, privileges, grantable)
        }),
    ]
}

pub fn set_attribute(attributes: &mut Attributes, attribute: Attribute, value: bool) {
    match attribute {
        Attribute::Superuser => attributes.superuser = value,
        Attribute::CreateRole => attributes.createrole = value,
        Attribute::CreateDb => attributes.createdb = value,
        Attribute::Replication => attributes.replication = value,
        Attribute::BypassRls => attributes.bypassrls = value,
    }
}

pub fn give(town: &mut Town, role: RoleId, thing: Thing) {
    match thing {
        Thing::Membership(group, [inherit, set, admin]) => {
            town.memberships.entry(role).or_default().push(Membership {
                role: group,
                inherit,
                set,
                admin,
            });
        }
        Thing::Attribute(attribute) => set_attribute(town.attributes.get_mut(&role).unwrap(), attribute, true),
        Thing::Parameter(privilege) => town.parameters.push(ParameterPrivilege {
            grantee: Some(role),
            ..privilege
        }),
        Thing::Right(scope, admin) => {
            let id = 1 + town.rights.iter().map(|right| right.id).max().unwrap_or(0);
            let grantor = RoleId(ROLES);
            town.rights.push(Right {
                id,
                grantee: role,
                scope,
                admin,
                grantor,
                as_superuser: true,
            });
        }
        Thing::OnItem(nth, privileges, grantable) => match town.items.get_mut(nth) {
            Some(Item::Object { grants, .. }) => grants.push(Grant {
                grantee: Some(role),
                privileges,
                grantable,
            }),
            Some(Item::Policy { roles, .. }) => roles.push(Some(role)),
            Some(Item::Mapping(_)) | None => {}
        },
    }
}

/// Takes one of the things that `role` has by itself, or part of one: the `nth` of all the ways to do so, if any.
pub fn take(town: &Town, role: RoleId, nth: usize) -> Option<Town> {
    let mut ways: Vec<Town> = Vec::new();
    for at in 0..town.memberships.get(&role).map_or(0, Vec::len) {
        let mut less = town.clone();
        less.memberships.get_mut(&role).unwrap().remove(at);
        ways.push(less);
        let options: [fn(&mut Membership); 3] = [|m| m.inherit = false, |m| m.set = false, |m| m.admin = false];
        for option in options {
            let mut less = town.clone();
            option(&mut less.memberships.get_mut(&role).unwrap()[at]);
            ways.push(less);
        }
    }
    for attribute in Attribute::ALL {
        let mut less = town.clone();
        set_attribute(less.attributes.get_mut(&role).unwrap(), attribute, false);
        ways.push(less);
    }
    for at in (0..town.parameters.len()).filter(|&at| town.parameters[at].grantee == Some(role)) {
        let mut less = town.clone();
        less.parameters.remove(at);
        ways.push(less);
    }
    for at in (0..town.rights.len()).filter(|&at| town.rights[at].grantee == role) {
        let mut less = town.clone();
        less.rights.remove(at);
        ways.push(less);
        for entry in 0..town.rights[at].scope.roles().len().saturating_sub(1) {
            let mut less = town.clone();
            match &mut less.rights[at].scope {
                Scope::Any => {}
                Scope::Users(list) | Scope::AnyWithRoles(list) => drop(list.remove(entry)),
            }
            ways.push(less);
        }
    }
    for at in 0..town.items.len() {
        let mut less = town.clone();
        let changed = match &mut less.items[at] {
            Item::Object { owner, .. } | Item::Policy { owner, .. } if *owner == role => {
                *owner = RoleId(ROLES);
                true
            }
            Item::Object { grants, .. } => {
                let before = grants.len();
                grants.retain(|grant| grant.grantee != Some(role));
                grants.len() != before
            }
            Item::Policy { roles, .. } => {
                let before = roles.len();
                roles.retain(|other| *other != Some(role));
                roles.len() != before
            }
            Item::Mapping(_) => false,
        };
        if changed {
            ways.push(less);
        }
    }
    let nth = nth % ways.len().max(1);
    ways.into_iter().nth(nth)
}
