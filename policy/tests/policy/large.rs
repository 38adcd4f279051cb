//! The work of a verdict grows with the roles that are reached, not with the cluster.

use crate::town::*;
use impersonate_policy::*;

const CLUSTER: u32 = 20_000;
const LEVELS: u32 = 5;
const PER_LEVEL: u32 = 200;

/// bob holds 1,000 roles, five levels deep; each of a level is a member of three of the next. alice is a member of the
/// first level as well. The rest of the cluster is in groups of its own.
fn cluster(size: u32) -> Town {
    let mut town = Town::new();
    town.names = (0..size).map(|id| format!("r{id}")).collect();
    let (alice, bob) = (RoleId(0), RoleId(1));
    let at = |level: u32, nth: u32| RoleId(2 + level * PER_LEVEL + nth % PER_LEVEL);
    let plain = |role| Membership {
        role,
        inherit: true,
        set: true,
        admin: false,
    };
    let first: Vec<Membership> = (0..PER_LEVEL).map(|nth| plain(at(0, nth))).collect();
    town.memberships.insert(alice, first.clone());
    town.memberships.insert(bob, first);
    for level in 0..LEVELS - 1 {
        for nth in 0..PER_LEVEL {
            let next = (0..3).map(|step| plain(at(level + 1, nth + step))).collect();
            town.memberships.insert(at(level, nth), next);
        }
    }
    for other in 2 + LEVELS * PER_LEVEL..size - 1 {
        town.memberships.insert(RoleId(other), vec![plain(RoleId(other + 1))]);
    }
    let scope = Scope::AnyWithRoles((0..PER_LEVEL).map(|nth| at(0, nth)).collect());
    let right = Right {
        id: 1,
        grantee: alice,
        scope,
        admin: Admin::None,
        grantor: alice,
        as_superuser: true,
    };
    town.rights.push(right);
    town
}

fn judged(town: &Town) -> (Verdict, usize) {
    town.asked.borrow_mut().clear();
    let verdict = judge(town, Impersonator(RoleId(0)), Target(RoleId(1)), None, &RULES);
    (verdict, town.asked.borrow().len())
}

#[test]
fn a_verdict_asks_about_each_role_that_is_reached_a_few_times_and_about_no_other() {
    let mut town = cluster(CLUSTER);
    let held = (LEVELS * PER_LEVEL) as usize;
    let (verdict, asked) = judged(&town);
    assert!(verdict.allowed());
    assert_eq!(
        verdict
            .conditions
            .iter()
            .filter(|condition| condition.criterion == Criterion::A2)
            .count(),
        held
    );
    // Memberships and rights of either role's, the inheritance that A1 goes by, the contents of the list.
    assert!(asked <= 6 * (held + 1), "{asked} questions");
    assert!(town.asked.borrow().iter().all(|role| role.0 < 2 + LEVELS * PER_LEVEL));

    // A refusal looks for remedies too, once for A2.
    town.memberships.insert(RoleId(0), Vec::new());
    let (verdict, asked) = judged(&town);
    assert_eq!(failed(&verdict), "A2");
    assert!(asked <= 6 * (held + 1), "{asked} questions");
}

#[test]
fn a_verdict_asks_no_more_in_a_larger_cluster() {
    let (_, small) = judged(&cluster(2_000));
    let (_, large) = judged(&cluster(CLUSTER));
    assert_eq!(small, large);
}
