//! May this impersonator act as this target? Each criterion of SPEC.md is one method here, in their order.

use crate::objects::objects;
use crate::reach::{members_of, reach, Reach, Reaches};
use crate::right::{Admin, Right, Scope};
use crate::role::{Attribute, Attributes, Impersonator, ParameterAction, ParameterPrivilege, RoleId, Target};
use crate::verdict::{Condition, Criterion, Fact, Verdict};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The settings that bear on a verdict.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Rules {
    /// `impersonate.require_login` (S5).
    pub require_login: bool,
    /// `impersonate.criteria` (A6).
    pub criteria: Criteria,
}

/// What the impersonator is compared with the target in.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Criteria {
    /// Roles, attributes and rights: A1 to A5.
    Roles,
    /// Also objects: A6.
    Full,
}

impl Criteria {
    /// The at-least criteria that it has judged.
    pub fn judged(self) -> impl Iterator<Item = Criterion> {
        let full = (self == Criteria::Full).then_some(Criterion::A6);
        Criterion::AT_LEAST.into_iter().chain(full)
    }
}

/// Judges a switch afresh: nothing is remembered from earlier ones (S6).
///
/// `via` is the role that the impersonator is in by `SET ROLE` before impersonating, if any: its rights count too, as
/// long as the impersonator can still become it (G6).
pub fn judge(
    world: &dyn World,
    impersonator: Impersonator,
    target: Target,
    via: Option<RoleId>,
    rules: &Rules,
) -> Verdict {
    judge_with(world, &Reaches::default(), impersonator, target, via, rules)
}

/// As [`judge`], one of several in worlds that agree on roles and memberships, which `reaches` remembers.
pub fn judge_with(
    world: &dyn World,
    reaches: &Reaches,
    impersonator: Impersonator,
    target: Target,
    via: Option<RoleId>,
    rules: &Rules,
) -> Verdict {
    let mut verdict = Verdict {
        impersonator,
        target,
        conditions: Vec::new(),
        right: None,
    };
    if impersonator.0 == target.0 {
        verdict.meet_all(rules.criteria, &Fact::Oneself);
        return verdict;
    }
    if rules.require_login {
        let attributes = world.attributes(target.0);
        verdict.add(Criterion::S5, attributes.login, Fact::Login);
        verdict.add(Criterion::S5, !attributes.expired, Fact::Unexpired);
    }
    let attributes = world.attributes(impersonator.0);
    if attributes.superuser {
        verdict.meet_all(rules.criteria, &Fact::Superuser);
        return verdict;
    }

    let comparison = Comparison {
        world,
        reaches,
        impersonator: Holder::new(world, reaches, impersonator.0, attributes),
        target: Holder::new(world, reaches, target.0, world.attributes(target.0)),
    };
    let (covering, counted) = comparison.rights_over_target(via);
    verdict.right = covering.as_ref().map(|right| right.id);
    verdict.add(Criterion::A1, covering.is_some(), Fact::Right { covering, counted });
    verdict.add_each(Criterion::A2, comparison.roles());
    verdict.add_each(Criterion::A3, comparison.admin_over_roles());
    verdict.add_each(Criterion::A4, comparison.attributes());
    verdict.add_each(Criterion::A4, comparison.parameters());
    verdict.add_each(Criterion::A5, comparison.set_user_rights());
    if rules.criteria == Criteria::Full {
        let holder = &comparison.impersonator;
        let bypasses_policies = holder.attributes.bypassrls;
        let found = objects(world, impersonator, &holder.reach, bypasses_policies, target);
        verdict.add_each(Criterion::A6, found);
    }
    verdict.explain_silence(rules.criteria);
    verdict
}

impl Verdict {
    fn add(&mut self, criterion: Criterion, ok: bool, fact: Fact) {
        let (impersonator, target) = (self.impersonator, self.target);
        self.conditions.push(Condition {
            criterion,
            ok,
            impersonator,
            target,
            fact,
        });
    }

    fn add_each(&mut self, criterion: Criterion, found: Vec<(bool, Fact)>) {
        for (ok, fact) in found {
            self.add(criterion, ok, fact);
        }
    }

    fn meet_all(&mut self, criteria: Criteria, fact: &Fact) {
        for criterion in criteria.judged() {
            self.add(criterion, true, fact.clone());
        }
    }

    /// A criterion that asks for nothing still has its row: whoever reads the explanation sees that it was judged.
    fn explain_silence(&mut self, criteria: Criteria) {
        for criterion in criteria.judged() {
            if self.conditions.iter().all(|condition| condition.criterion != criterion) {
                self.add(criterion, true, Fact::NothingRequired);
            }
        }
        self.conditions.sort_by_key(|condition| condition.criterion);
    }
}

/// One of the two roles, with what it can use.
struct Holder {
    role: RoleId,
    attributes: Attributes,
    reach: Rc<Reach>,
    /// The rights granted to any role that it can use, by id.
    rights: Vec<Right>,
}

impl Holder {
    fn new(world: &dyn World, reaches: &Reaches, role: RoleId, attributes: Attributes) -> Holder {
        let reach = reaches.of(world, role);
        let mut rights = world.rights_of(&reach.usable);
        rights.sort_by_key(|right| right.id);
        Holder {
            role,
            attributes,
            reach,
            rights,
        }
    }

    /// The roles that it holds: all that it can use but itself.
    fn held(&self) -> BTreeSet<RoleId> {
        let mut held = self.reach.usable.clone();
        held.remove(&self.role);
        held
    }

    /// What its rights over any user allow together.
    fn any(&self) -> Option<Admin> {
        let any = self.rights.iter().filter(|right| right.scope == Scope::Any);
        any.map(|right| right.admin).reduce(Admin::and)
    }

    fn users(&self) -> BTreeSet<RoleId> {
        self.lists(|scope| matches!(scope, Scope::Users(_)))
    }

    fn with_roles(&self) -> BTreeSet<RoleId> {
        self.lists(|scope| matches!(scope, Scope::AnyWithRoles(_)))
    }

    fn lists(&self, of_kind: impl Fn(&Scope) -> bool) -> BTreeSet<RoleId> {
        let scopes = self.rights.iter().map(|right| &right.scope);
        scopes
            .filter(|scope| of_kind(scope))
            .flat_map(|scope| scope.roles().iter().copied())
            .collect()
    }
}

struct Comparison<'a> {
    world: &'a dyn World,
    reaches: &'a Reaches,
    impersonator: Holder,
    target: Holder,
}

impl Comparison<'_> {
    /// A1: the narrowest right that covers the target, and every right that counts.
    ///
    /// A right granted to a group counts through INHERIT or after `SET ROLE` to it, not because the impersonator could
    /// `SET ROLE` (G6).
    fn rights_over_target(&self, via: Option<RoleId>) -> (Option<Right>, Vec<Right>) {
        let via = via.filter(|role| self.impersonator.reach.settable.contains(role));
        let grantees = self.reaches.inherited(self.world, self.impersonator.role, via);
        let counted: Vec<Right> = self
            .impersonator
            .rights
            .iter()
            .filter(|right| grantees.contains(&right.grantee))
            .cloned()
            .collect();

        let mut narrowest_first: Vec<&Right> = counted.iter().filter(|right| right.admin.uses()).collect();
        // A stable sort: of equals, the one with the lowest id stays first.
        narrowest_first.sort_by_key(|right| right.scope.breadth());
        let covering = narrowest_first
            .into_iter()
            .find(|right| self.covers_target(&right.scope))
            .cloned();
        (covering, counted)
    }

    fn covers_target(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Any => true,
            Scope::Users(users) => users.contains(&self.target.role),
            // G2: one listed role at least, and nothing but listed roles and what those contain.
            Scope::AnyWithRoles(roles) => {
                let held = self.target.held();
                roles.iter().any(|role| held.contains(role))
                    && held.is_subset(&reach(self.world, roles.iter().copied()).usable)
            }
        }
    }

    /// A2: every role that the target holds.
    fn roles(&self) -> Vec<(bool, Fact)> {
        let held = self.target.held();
        let usable = &self.impersonator.reach.usable;
        let obstacles = self.obstacles(held.is_subset(usable));
        held.into_iter()
            .map(|role| {
                let ok = usable.contains(&role);
                let unusable_member = !ok && obstacles.joined.contains(&role);
                let circular = !ok && obstacles.members.contains(&role);
                (
                    ok,
                    Fact::Role {
                        role,
                        unusable_member,
                        circular,
                    },
                )
            })
            .collect()
    }

    /// A3: every role that the target holds with admin.
    fn admin_over_roles(&self) -> Vec<(bool, Fact)> {
        let required = &self.target.reach.administered;
        let administered = &self.impersonator.reach.administered;
        let obstacles = self.obstacles(required.is_subset(administered));
        required
            .iter()
            .map(|&role| {
                let ok = administered.contains(&role);
                let usable = self.impersonator.reach.usable.contains(&role);
                let circular = !ok && obstacles.members.contains(&role);
                (ok, Fact::AdminOf { role, usable, circular })
            })
            .collect()
    }

    /// Needed for remedies alone, so not looked for when all is well.
    fn obstacles(&self, all_ok: bool) -> Obstacles {
        if all_ok {
            return Obstacles::default();
        }
        let memberships = self.world.memberships(self.impersonator.role);
        Obstacles {
            joined: memberships.iter().map(|membership| membership.role).collect(),
            members: members_of(self.world, self.impersonator.role, self.target.role),
        }
    }

    /// A4: every attribute of the target.
    fn attributes(&self) -> Vec<(bool, Fact)> {
        Attribute::ALL
            .into_iter()
            .filter(|&attribute| self.target.attributes.has(attribute))
            .map(|attribute| (self.impersonator.attributes.has(attribute), Fact::Attribute(attribute)))
            .collect()
    }

    /// A4: every parameter privilege granted to the target itself. Those of the roles that it holds follow from A2.
    fn parameters(&self) -> Vec<(bool, Fact)> {
        let privileges = self.world.parameter_privileges();
        let required = combine(&privileges, |grantee| grantee == Some(self.target.role));
        let held = combine(&privileges, |grantee| {
            grantee.is_none_or(|role| self.impersonator.reach.usable.contains(&role))
        });
        required
            .into_iter()
            .map(|((parameter, action), grantable)| {
                let held = held.get(&(parameter, action)).copied();
                let ok = held.is_some_and(|held_grantable| held_grantable || !grantable);
                let (parameter, held) = (parameter.to_string(), held.is_some());
                (
                    ok,
                    Fact::Parameter {
                        parameter,
                        action,
                        grantable,
                        held,
                    },
                )
            })
            .collect()
    }

    /// A5: the target's own SET USER rights.
    fn set_user_rights(&self) -> Vec<(bool, Fact)> {
        let held = self.impersonator.any();
        let any_covers_lists = held.is_some_and(Admin::uses);
        let missing_from = |required: &BTreeSet<RoleId>, held: &BTreeSet<RoleId>| match any_covers_lists {
            true => Vec::new(),
            false => required.difference(held).copied().collect(),
        };

        let mut found = Vec::new();
        if let Some(required) = self.target.any() {
            let ok = held.is_some_and(|held| held.covers(required));
            found.push((ok, Fact::Any { required, held }));
        }
        let mut users = self.target.users();
        users.remove(&self.impersonator.role);
        if !users.is_empty() {
            let missing = missing_from(&users, &self.impersonator.users());
            found.push((
                missing.is_empty(),
                Fact::Users {
                    required: Vec::from_iter(users),
                    missing,
                },
            ));
        }
        let roles = self.target.with_roles();
        if !roles.is_empty() {
            let missing = missing_from(&roles, &self.impersonator.with_roles());
            found.push((
                missing.is_empty(),
                Fact::WithRoles {
                    required: Vec::from_iter(roles),
                    missing,
                },
            ));
        }
        found
    }
}

/// What stands between the impersonator and a role, so that a bare GRANT would not do.
#[derive(Default)]
struct Obstacles {
    /// The impersonator is a direct member; where it cannot use the role, with neither INHERIT nor SET.
    joined: BTreeSet<RoleId>,
    /// The role is a member of the impersonator.
    members: BTreeSet<RoleId>,
}

/// The parameter privileges of the grantees that count, each with whether one of them has it with grant option.
fn combine(
    privileges: &[ParameterPrivilege],
    counts: impl Fn(Option<RoleId>) -> bool,
) -> BTreeMap<(&str, ParameterAction), bool> {
    let mut combined = BTreeMap::new();
    for privilege in privileges.iter().filter(|privilege| counts(privilege.grantee)) {
        for (action, has, grantable) in [
            (ParameterAction::Set, privilege.set, privilege.set_grantable),
            (
                ParameterAction::AlterSystem,
                privilege.alter_system,
                privilege.alter_system_grantable,
            ),
        ] {
            if has {
                *combined.entry((privilege.parameter.as_str(), action)).or_default() |= grantable;
            }
        }
    }
    combined
}
