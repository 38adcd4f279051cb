//! What holds in every world, tried on random ones.

use crate::oracle::{self, covered, gained};
use crate::random::*;
use crate::town::*;
use impersonate_policy::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeSet;

fn verdict(town: &Town, (impersonator, target, via): (RoleId, RoleId, Option<RoleId>)) -> Verdict {
    judge(town, Impersonator(impersonator), Target(target), via, &FULL)
}

fn failing(verdict: &Verdict) -> BTreeSet<Criterion> {
    verdict
        .conditions
        .iter()
        .filter(|condition| !condition.ok)
        .map(|condition| condition.criterion)
        .collect()
}

/// Whether A2 to A6 are met.
fn at_least(verdict: &Verdict) -> bool {
    failing(verdict).iter().all(|criterion| *criterion < Criterion::A2)
}

proptest! {
    #![proptest_config(Config { cases: 2048, failure_persistence: None, ..Config::default() })]

    #[test]
    fn whoever_passes_gains_nothing(town in town(), pair in pair()) {
        if verdict(&town, pair).allowed() {
            prop_assert_eq!(gained(&town, pair.0, pair.1), BTreeSet::new());
        }
    }

    #[test]
    fn a_criterion_fails_just_when_something_would_be_gained_by_it(town in town(), pair in pair()) {
        let mut expected: BTreeSet<Criterion> = gained(&town, pair.0, pair.1).iter().map(oracle::criterion).collect();
        if !covered(&town, pair.0, pair.1, pair.2) {
            expected.insert(Criterion::A1);
        }
        let attributes = town.attributes[&pair.1];
        if pair.0 != pair.1 && (!attributes.login || attributes.expired) {
            expected.insert(Criterion::S5);
        }
        prop_assert_eq!(failing(&verdict(&town, pair)), expected);
    }

    #[test]
    fn every_criterion_has_its_rows_in_order_and_the_right_that_counts_is_one_that_covers(
        town in town(), pair in pair()
    ) {
        let verdict = verdict(&town, pair);
        let criteria: Vec<Criterion> = verdict.conditions.iter().map(|condition| condition.criterion).collect();
        prop_assert!(criteria.is_sorted());
        for criterion in Criteria::Full.judged() {
            prop_assert!(criteria.contains(&criterion));
        }
        prop_assert_eq!(verdict.covering_right().map(|right| right.id), verdict.right);
        if let Some(right) = verdict.right {
            let alone = Town { rights: town.rights.iter().filter(|r| r.id == right).cloned().collect(), ..town };
            prop_assert!(covered(&alone, pair.0, pair.1, pair.2));
        }
    }

    #[test]
    fn everyone_may_be_oneself(town in town(), role in role(), via in prop::option::of(role())) {
        prop_assert!(verdict(&town, (role, role, via)).allowed());
    }

    #[test]
    fn the_order_in_which_the_world_answers_changes_nothing(town in town(), pair in pair()) {
        let mut turned = town.clone();
        turned.rights.reverse();
        turned.parameters.reverse();
        for item in &mut turned.items {
            if let Item::Object { grants, .. } = item {
                grants.reverse();
            }
        }
        turned.memberships.values_mut().for_each(|memberships| memberships.reverse());
        prop_assert_eq!(verdict(&town, pair), verdict(&turned, pair));
    }

    /// For A2 to A6 without exception. For A1 only where the target is no member of the impersonator: what is taken
    /// from the impersonator is taken from such a target too, and with fewer roles it may come to be made of the roles
    /// of a right (G2).
    #[test]
    fn taking_something_from_the_impersonator_turns_no_no_into_yes(town in town(), pair in pair(), nth: usize) {
        if let Some(less) = take(&town, pair.0, nth) {
            let (before, after) = (verdict(&town, pair), verdict(&less, pair));
            prop_assert!(at_least(&before) || !at_least(&after));
            if !oracle::reaches(&town, pair.1, pair.0) {
                prop_assert!(before.allowed() || !after.allowed());
            }
        }
    }

    /// Not where the impersonator is a member of the target, for it is given the same then. And not for A1 where a
    /// right is *any with roles*: a target with no role is covered by none, one with a listed role is (G2).
    #[test]
    fn giving_the_target_something_turns_no_no_into_yes(town in town(), pair in pair(), thing in thing()) {
        if oracle::reaches(&town, pair.0, pair.1) {
            return Ok(());
        }
        let mut more = town.clone();
        give(&mut more, pair.1, thing);
        let (before, after) = (verdict(&town, pair), verdict(&more, pair));
        prop_assert!(at_least(&before) || !at_least(&after));
        if town.rights.iter().all(|right| !matches!(right.scope, Scope::AnyWithRoles(_))) {
            prop_assert!(before.allowed() || !after.allowed());
        }
    }

    /// The remedies are read off the same facts, so what cures is what is said to cure.
    #[test]
    fn the_remedies_together_cure_a_refusal(town in town(), pair in pair()) {
        let mut cured = town.clone();
        let verdict_before = verdict(&town, pair);
        for condition in verdict_before.conditions.iter().filter(|condition| !condition.ok) {
            match cure(&mut cured, condition) {
                true => prop_assert!(condition.render(&town).remedy.is_some()),
                false => {
                    prop_assert_eq!(condition.render(&town).remedy, None);
                    return Ok(());
                }
            }
        }
        prop_assert!(verdict(&cured, pair).allowed(), "{:?}", verdict(&cured, pair).first_failed());
    }

    #[test]
    fn granting_again_changes_nothing(start in granted(), request in grant_request()) {
        let mut town = start;
        if let Ok(changes) = grant(&town, &town.rights, &request) {
            town.apply(&changes);
            prop_assert_eq!(grant(&town, &town.rights, &request), Ok(vec![]));
        }
    }

    #[test]
    fn what_is_granted_to_somebody_new_and_revoked_leaves_things_as_they_were(
        start in granted(), request in grant_request()
    ) {
        let mut town = start.clone();
        let newcomer = RoleId(ROLES + 1);
        let request = GrantRequest { grantees: vec![newcomer], ..request };
        if let Ok(changes) = grant(&town, &town.rights, &request) {
            town.apply(&changes);
            let what = match &request.scope {
                Scope::Any => RevokeWhat::Any,
                Scope::Users(list) => RevokeWhat::Users(list.clone()),
                Scope::AnyWithRoles(list) => RevokeWhat::WithRoles(list.clone()),
            };
            let request = RevokeRequest { grantees: vec![newcomer], what, admin_option_only: false, cascade: false };
            let revoked = revoke(&town, &town.rights, &request).unwrap();
            prop_assert_eq!(revoked.not_granted, vec![]);
            town.apply(&revoked.changes);
            prop_assert_eq!(town.rights, start.rights);
        }
    }

    #[test]
    fn no_right_is_left_without_the_admin_that_it_hangs_on(
        start in granted(), requests in prop::collection::vec(revoke_request(), 1..4)
    ) {
        let mut town = start;
        prop_assert!(stand(&town));
        for request in requests {
            match revoke(&town, &town.rights, &request) {
                Ok(revoked) => town.apply(&revoked.changes),
                Err(RevokeError::Dependent { dependents }) => {
                    prop_assert!(!request.cascade && !dependents.is_empty());
                    // Just these are what CASCADE takes besides.
                    let asked = RevokeRequest { cascade: true, ..request };
                    let mut cascaded = town.clone();
                    cascaded.apply(&revoke(&town, &town.rights, &asked).unwrap().changes);
                    prop_assert!(dependents.iter().all(|d| cascaded.rights.iter().all(|right| right.id != d.id)));
                    let others = town.rights.iter().filter(|right| dependents.iter().all(|d| d.id != right.id));
                    let spared = others.filter(|right| !asked.grantees.contains(&right.grantee));
                    prop_assert!(spared.clone().all(|right| cascaded.rights.contains(right)));
                }
            }
            prop_assert!(stand(&town));
        }
    }
}

/// Carries out the cure of a failed condition; says whether there is one.
fn cure(town: &mut Town, condition: &Condition) -> bool {
    let (impersonator, target) = (condition.impersonator.0, condition.target.0);
    match condition.fact.clone() {
        Fact::Oneself | Fact::Superuser | Fact::NothingRequired => unreachable!("these do not fail"),
        Fact::Login => town.attributes.get_mut(&target).unwrap().login = true,
        Fact::Unexpired => town.attributes.get_mut(&target).unwrap().expired = false,
        Fact::Right { .. } => give(
            town,
            impersonator,
            Thing::Right(Scope::Users(vec![target]), Admin::None),
        ),
        Fact::Role { role, circular, .. } | Fact::AdminOf { role, circular, .. } => {
            assert_eq!(circular, oracle::reaches(town, role, impersonator));
            if circular {
                return false;
            }
            let admin = matches!(condition.fact, Fact::AdminOf { .. });
            give(town, impersonator, Thing::Membership(role, [false, true, admin]));
        }
        Fact::Attribute(attribute) => give(town, impersonator, Thing::Attribute(attribute)),
        Fact::Parameter {
            parameter,
            action,
            grantable,
            ..
        } => {
            let set = action == ParameterAction::Set;
            let privilege = ParameterPrivilege {
                parameter,
                grantee: None,
                set,
                set_grantable: set && grantable,
                alter_system: !set,
                alter_system_grantable: !set && grantable,
            };
            give(town, impersonator, Thing::Parameter(privilege));
        }
        Fact::Any { required, .. } => give(town, impersonator, Thing::Right(Scope::Any, required)),
        Fact::Users { missing, .. } => give(town, impersonator, Thing::Right(Scope::Users(missing), Admin::None)),
        Fact::WithRoles { missing, .. } => {
            give(
                town,
                impersonator,
                Thing::Right(Scope::AnyWithRoles(missing), Admin::None),
            );
        }
        Fact::TargetHeld | Fact::Objects { .. } | Fact::MoreObjects { .. } => unreachable!("these do not fail here"),
        Fact::Owned { circular, .. } | Fact::Unlisted { circular, .. } => {
            assert_eq!(circular, oracle::reaches(town, target, impersonator));
            if circular {
                return false;
            }
            give(town, impersonator, Thing::Membership(target, [false, true, false]));
        }
        Fact::ObjectPrivileges {
            object,
            missing,
            grantable,
            ..
        } => {
            let option = if grantable { missing } else { Privileges::NONE };
            give(
                town,
                impersonator,
                Thing::OnItem(object.object as usize, missing, option),
            );
        }
        Fact::Policy { policy, roles } => {
            let Item::Policy { roles: named, .. } = &mut town.items[policy.object as usize] else {
                panic!("a policy");
            };
            assert_eq!(named.iter().flatten().copied().collect::<Vec<_>>(), roles);
            named.push(Some(impersonator));
        }
    }
    true
}

fn grant_request() -> impl Strategy<Value = GrantRequest> {
    let grantees = prop::collection::vec(role(), 1..3);
    (grantees, scope_and_admin(), role(), prop::bool::weighted(0.2)).prop_map(
        |(grantees, (scope, admin), grantor, as_superuser)| GrantRequest {
            grantees,
            scope,
            admin,
            grantor,
            as_superuser,
        },
    )
}

fn revoke_request() -> impl Strategy<Value = RevokeRequest> {
    let list = || prop::collection::vec(role(), 1..3);
    let what = prop_oneof![
        Just(RevokeWhat::Everything),
        Just(RevokeWhat::Any),
        Just(RevokeWhat::AllUsers),
        Just(RevokeWhat::AllWithRoles),
        list().prop_map(RevokeWhat::Users),
        list().prop_map(RevokeWhat::WithRoles),
    ];
    (list(), what, any::<bool>(), any::<bool>()).prop_map(|(grantees, what, admin_option_only, cascade)| {
        RevokeRequest {
            grantees,
            what,
            admin_option_only,
            cascade,
        }
    })
}

/// A town whose rights came about by GRANTs alone; those that are refused leave nothing.
fn granted() -> impl Strategy<Value = Town> {
    (town(), prop::collection::vec(grant_request(), 0..20)).prop_map(|(mut town, requests)| {
        town.rights.clear();
        for request in requests {
            if let Ok(changes) = grant(&town, &town.rights, &request) {
                town.apply(&changes);
            }
        }
        town
    })
}

/// Whether every right was granted by a superuser, or by somebody whose admin goes back to one.
fn stand(town: &Town) -> bool {
    let mut admins: BTreeSet<RoleId> = BTreeSet::new();
    let is_founded = |right: &Right, admins: &BTreeSet<RoleId>| {
        right.as_superuser
            || oracle::inherited(town, right.grantor)
                .iter()
                .any(|role| admins.contains(role))
    };
    loop {
        let before = admins.len();
        for right in town.rights.iter().filter(|right| right.admin != Admin::None) {
            if is_founded(right, &admins) {
                admins.insert(right.grantee);
            }
        }
        if admins.len() == before {
            return town.rights.iter().all(|right| is_founded(right, &admins));
        }
    }
}

/// A property about those who pass says nothing in worlds where nobody does.
#[test]
fn the_random_worlds_have_enough_of_everything() {
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut only_one_fails, mut dependents) = (0, [0; 7], 0);
    for _ in 0..6000 {
        let town_and_pair = (town(), pair()).new_tree(&mut runner).unwrap().current();
        let (town, pair) = town_and_pair;
        let verdict = verdict(&town, pair);
        let superuser = town.attributes[&pair.0].superuser;
        allowed += usize::from(pair.0 != pair.1 && !superuser && verdict.allowed());
        if let [criterion] = Vec::from_iter(failing(&verdict))[..] {
            only_one_fails[criterion as usize] += 1;
        }
        let (town, request) = (granted(), revoke_request()).new_tree(&mut runner).unwrap().current();
        dependents += usize::from(
            revoke(
                &town,
                &town.rights,
                &RevokeRequest {
                    cascade: false,
                    ..request
                },
            )
            .is_err(),
        );
    }
    assert!(allowed > 100, "{allowed}");
    assert!(only_one_fails.iter().all(|&times| times > 10), "{only_one_fails:?}");
    assert!(dependents > 20, "{dependents}");
}
