//! Each criterion by itself: alice wants to act as bob.

use crate::town::*;
use impersonate_policy::*;

/// alice may act as bob, who has nothing.
fn alice_and_bob() -> Town {
    let mut town = Town::new();
    town.roles(&["postgres", "alice", "bob"]);
    town.users("alice", &["bob"]);
    town
}

fn facts(verdict: &Verdict, criterion: Criterion) -> Vec<(bool, Fact)> {
    let of_criterion = verdict
        .conditions
        .iter()
        .filter(|condition| condition.criterion == criterion);
    of_criterion
        .map(|condition| (condition.ok, condition.fact.clone()))
        .collect()
}

#[test]
fn a_right_and_nothing_to_require_is_enough_and_every_criterion_has_its_row() {
    let verdict = alice_and_bob().judge("alice", "bob");
    assert!(verdict.allowed());
    assert_eq!(verdict.first_failed(), None);
    let criteria: Vec<&str> = verdict
        .conditions
        .iter()
        .map(|condition| condition.criterion.as_str())
        .collect();
    assert_eq!(criteria, ["S5", "S5", "A1", "A2", "A3", "A4", "A5"]);
    assert_eq!(facts(&verdict, Criterion::A2), [(true, Fact::NothingRequired)]);
}

#[test]
fn one_may_be_oneself_without_login_or_rights() {
    let mut town = Town::new();
    town.attributes_of("alice").login = false;
    town.attributes_of("alice").expired = true;
    town.member("alice", "hr", ADMIN_ONLY);
    let verdict = town.judge("alice", "alice");
    assert!(verdict.allowed());
    assert_eq!(verdict.right, None);
    assert_eq!(verdict.conditions.len(), 5);
}

#[test]
fn a_superuser_needs_no_right_and_meets_every_criterion_but_s5() {
    let mut town = Town::new();
    town.attributes_of("alice").superuser = true;
    town.attributes_of("bob").replication = true;
    town.member("bob", "hr", ADMIN).parameter("bob", Some(true), Some(true));
    town.any("bob");
    let verdict = town.judge("alice", "bob");
    assert!(verdict.allowed());
    assert_eq!(verdict.right, None);
    town.attributes_of("bob").login = false;
    assert_eq!(town.failed(), "S5");
}

#[test]
fn membership_in_a_superuser_does_not_make_one() {
    let mut town = alice_and_bob();
    town.member("alice", "root", PLAIN);
    town.attributes_of("root").superuser = true;
    town.attributes_of("bob").createdb = true;
    assert_eq!(town.failed(), "A4");
}

#[test]
fn s5_the_target_must_be_able_to_log_in_unless_that_is_not_required() {
    for (login, expired, expected) in [
        (true, false, ""),
        (false, false, "S5"),
        (true, true, "S5"),
        (false, true, "S5"),
    ] {
        let mut town = alice_and_bob();
        town.attributes_of("bob").login = login;
        town.attributes_of("bob").expired = expired;
        assert_eq!(town.failed(), expected);
        let (alice, bob) = (town.role("alice"), town.role("bob"));
        let lax = Rules {
            require_login: false,
            ..RULES
        };
        let verdict = judge(&town, Impersonator(alice), Target(bob), None, &lax);
        assert!(verdict.allowed());
        assert!(facts(&verdict, Criterion::S5).is_empty());
    }
}

#[test]
fn a1_a_right_must_cover_the_target_with_use() {
    let mut town = Town::new();
    town.roles(&["postgres", "alice", "bob", "carol"]);
    assert_eq!(town.failed(), "A1");
    town.users("alice", &["carol"]);
    assert_eq!(town.failed(), "A1");
    town.right("alice", Scope::Any, Admin::Only);
    assert_eq!(town.failed(), "A1");
    let option = town.right("alice", Scope::Any, Admin::Option);
    assert_eq!(town.judge("alice", "bob").right, Some(option));
}

#[test]
fn a1_the_narrowest_right_lets_it_through_the_oldest_of_equals() {
    let mut town = Town::new();
    town.member("bob", "sales", PLAIN).member("alice", "sales", PLAIN);
    let any = town.any("alice");
    assert_eq!(town.judge("alice", "bob").right, Some(any));
    let with_roles = town.with_roles("alice", &["sales"]);
    assert_eq!(town.judge("alice", "bob").right, Some(with_roles));
    town.users("alice", &["carol"]);
    let users = town.users("alice", &["carol", "bob"]);
    town.users("alice", &["bob"]);
    town.rights.reverse();
    let verdict = town.judge("alice", "bob");
    assert_eq!(verdict.right, Some(users));
    assert_eq!(verdict.covering_right().map(|right| right.id), Some(users));
}

#[test]
fn a1_membership_in_the_target_gives_no_right() {
    let mut town = Town::new();
    town.member("alice", "bob", ADMIN);
    assert_eq!(town.failed(), "A1");
}

#[test]
fn g2_with_roles_covers_targets_made_of_the_listed_roles_and_what_those_contain() {
    // What bob holds, what is listed, whether bob is covered. sales contains crm; contacts is contained by inheritance.
    let cases: [(&[&str], &[&str], bool); 9] = [
        (&[], &["sales"], false),
        (&["sales"], &["sales"], true),
        (&["sales"], &["sales", "support"], true),
        (&["sales", "support"], &["sales"], false),
        (&["sales", "support"], &["sales", "support"], true),
        (&["crm"], &["sales"], false),
        (&["crm", "sales"], &["sales"], true),
        (&["support"], &["sales"], false),
        (&["sales"], &["crm"], false),
    ];
    for (held, listed, covered) in cases {
        let mut town = Town::new();
        town.member("sales", "crm", PLAIN)
            .member("crm", "contacts", INHERIT_ONLY)
            .member("alice", "support", PLAIN);
        town.member("alice", "sales", PLAIN);
        for role in held {
            town.member("bob", role, PLAIN);
        }
        town.with_roles("alice", listed);
        assert_eq!(town.failed(), if covered { "" } else { "A1" }, "{held:?} in {listed:?}");
    }
}

#[test]
fn g2_each_right_is_judged_alone() {
    let mut town = Town::new();
    town.member("bob", "sales", PLAIN).member("bob", "support", PLAIN);
    town.member("alice", "sales", PLAIN).member("alice", "support", PLAIN);
    town.with_roles("alice", &["sales"]);
    town.with_roles("alice", &["support"]);
    assert_eq!(town.failed(), "A1");
}

#[test]
fn g6_a_group_gives_its_right_by_inheritance_or_after_set_role_and_not_otherwise() {
    for (options, by_itself, after_set_role) in [
        (PLAIN, true, true),
        (INHERIT_ONLY, true, true),
        (NOINHERIT, false, true),
        // Nobody gets into a role with SET FALSE; being told that alice is in it must not help.
        (ADMIN_ONLY, false, false),
        (NOTHING, false, false),
    ] {
        let mut town = Town::new();
        town.member("alice", "helpdesk", options);
        town.users("helpdesk", &["bob"]);
        assert_eq!(town.failed(), if by_itself { "" } else { "A1" }, "{options:?}");
        let verdict = town.judge_via("alice", "bob", Some("helpdesk"));
        assert_eq!(failed(&verdict), if after_set_role { "" } else { "A1" }, "{options:?}");
    }
}

#[test]
fn g6_after_set_role_the_role_s_own_groups_count_by_inheritance() {
    let mut town = Town::new();
    town.member("alice", "duty", NOINHERIT)
        .member("duty", "helpdesk", PLAIN)
        .member("duty", "other", NOINHERIT);
    let right = town.users("helpdesk", &["bob"]);
    town.users("other", &["carol"]);
    assert_eq!(town.judge_via("alice", "bob", Some("duty")).right, Some(right));
    assert_eq!(failed(&town.judge_via("alice", "carol", Some("duty"))), "A1");
}

#[test]
fn a2_membership_options_decide_whether_a_role_is_held() {
    // bob's membership in hr, alice's membership in hr, what fails.
    for (target, impersonator, expected) in [
        (PLAIN, None, "A2"),
        (PLAIN, Some(PLAIN), ""),
        (PLAIN, Some(NOINHERIT), ""),
        (PLAIN, Some(INHERIT_ONLY), ""),
        (PLAIN, Some(NOTHING), "A2"),
        (PLAIN, Some(ADMIN_ONLY), "A2"),
        (NOINHERIT, None, "A2"),
        (INHERIT_ONLY, None, "A2"),
        (NOTHING, None, ""),
        (ADMIN_ONLY, None, "A3"),
        (ADMIN_ONLY, Some(PLAIN), "A3"),
        (ADMIN_ONLY, Some(ADMIN_ONLY), ""),
        (ADMIN_ONLY, Some(ADMIN), ""),
        (ADMIN, Some(PLAIN), "A3"),
        (ADMIN, Some(ADMIN_ONLY), "A2"),
        (ADMIN, Some(ADMIN), ""),
        (ADMIN, None, "A2,A3"),
    ] {
        let mut town = alice_and_bob();
        town.member("bob", "hr", target);
        if let Some(options) = impersonator {
            town.member("alice", "hr", options);
        }
        assert_eq!(town.failed(), expected, "bob {target:?}, alice {impersonator:?}");
    }
}

#[test]
fn a2_a_chain_may_inherit_after_set_role_but_not_set_role_after_inheriting() {
    // alice's chain to hr over dept, what fails.
    for (first, second, expected) in [
        (PLAIN, PLAIN, ""),
        (NOINHERIT, NOINHERIT, ""),
        (NOINHERIT, INHERIT_ONLY, ""),
        (INHERIT_ONLY, INHERIT_ONLY, ""),
        (INHERIT_ONLY, PLAIN, ""),
        (INHERIT_ONLY, NOINHERIT, "A2"),
        (PLAIN, NOTHING, "A2"),
        (NOTHING, PLAIN, "A2"),
    ] {
        let mut town = alice_and_bob();
        town.member("bob", "hr", PLAIN)
            .member("alice", "dept", first)
            .member("dept", "hr", second);
        assert_eq!(town.failed(), expected, "{first:?} then {second:?}");
        // The same chain for the target asks for hr just when it leads there.
        let mut town = alice_and_bob();
        town.member("bob", "dept", first).member("dept", "hr", second);
        let asks_for_hr = facts(&town.judge("alice", "bob"), Criterion::A2)
            .iter()
            .any(|(_, fact)| matches!(fact, Fact::Role { role, .. } if *role == town.role("hr")));
        assert_eq!(asks_for_hr, expected.is_empty(), "{first:?} then {second:?}");
    }
}

#[test]
fn a2_a_role_reached_by_inheritance_first_and_by_set_role_too_can_be_left_by_set_role() {
    // Two ways to dept, in either order; only the one by SET ROLE leads on to hr.
    for ways in [[INHERIT_ONLY, NOINHERIT], [NOINHERIT, INHERIT_ONLY]] {
        let mut town = alice_and_bob();
        town.member("bob", "hr", PLAIN).member("dept", "hr", NOINHERIT);
        for options in ways {
            town.member("alice", "dept", options);
        }
        assert_eq!(town.failed(), "");
    }
}

#[test]
fn a2_a_target_that_is_a_member_of_the_impersonator_asks_for_no_more_than_the_impersonator_has() {
    let mut town = alice_and_bob();
    town.member("bob", "alice", PLAIN).member("alice", "hr", PLAIN);
    assert_eq!(town.failed(), "");
}

#[test]
fn memberships_in_a_ring_do_not_loop() {
    let mut town = alice_and_bob();
    town.member("bob", "a", PLAIN)
        .member("a", "b", PLAIN)
        .member("b", "bob", PLAIN)
        .member("alice", "a", INHERIT_ONLY);
    assert_eq!(town.failed(), "");
}

#[test]
fn a3_admin_counts_wherever_in_the_target_s_roles_it_is() {
    let mut town = alice_and_bob();
    town.member("bob", "dept", INHERIT_ONLY)
        .member("dept", "hr", ADMIN_ONLY);
    town.member("alice", "dept", NOTHING);
    assert_eq!(town.failed(), "A2,A3");
    town.member("alice", "dept", NOINHERIT);
    assert_eq!(town.failed(), "");
}

#[test]
fn a3_admin_over_the_impersonator_counts_and_no_grant_cures_it() {
    let mut town = alice_and_bob();
    town.member("bob", "alice", ADMIN_ONLY);
    assert_eq!(town.failed(), "A3");
    let verdict = town.judge("alice", "bob");
    assert_eq!(verdict.first_failed().unwrap().render(&town).remedy, None);
}

#[test]
fn a4_every_attribute_of_the_target_is_asked_for_and_none_is_inherited() {
    let set: [fn(&mut Attributes); 5] = [
        |a| a.superuser = true,
        |a| a.createrole = true,
        |a| a.createdb = true,
        |a| a.replication = true,
        |a| a.bypassrls = true,
    ];
    for (nth, set) in set.into_iter().enumerate() {
        let mut town = alice_and_bob();
        town.member("alice", "group", PLAIN).member("bob", "group", PLAIN);
        set(town.attributes_of("group"));
        assert_eq!(town.failed(), "");
        set(town.attributes_of("bob"));
        let verdict = town.judge("alice", "bob");
        assert_eq!(failed(&verdict), "A4");
        assert_eq!(
            facts(&verdict, Criterion::A4),
            [(false, Fact::Attribute(Attribute::ALL[nth]))]
        );
        set(town.attributes_of("alice"));
        assert_eq!(town.failed(), "");
    }
}

#[test]
fn a4_parameter_privileges_of_the_target_are_asked_for_kind_by_kind_and_with_grant_option() {
    let (no, plain, grantable) = (None, Some(false), Some(true));
    for (target, impersonator, expected) in [
        ((plain, no), (no, no), "A4"),
        ((plain, no), (plain, no), ""),
        ((plain, no), (grantable, no), ""),
        ((grantable, no), (plain, no), "A4"),
        ((grantable, no), (grantable, no), ""),
        ((no, plain), (grantable, no), "A4"),
        ((no, plain), (no, plain), ""),
        ((no, grantable), (no, plain), "A4"),
        ((no, grantable), (no, grantable), ""),
        ((plain, plain), (plain, no), "A4"),
        ((no, no), (no, no), ""),
    ] {
        // alice's comes from herself, from a group after SET ROLE, and from PUBLIC.
        for grantee in ["alice", "tuners", ""] {
            let mut town = alice_and_bob();
            town.member("alice", "tuners", NOINHERIT);
            town.parameter("bob", target.0, target.1)
                .parameter(grantee, impersonator.0, impersonator.1);
            assert_eq!(town.failed(), expected, "{target:?}, {grantee} {impersonator:?}");
        }
    }
}

#[test]
fn a4_another_parameter_or_another_role_s_privilege_does_not_help() {
    let mut town = alice_and_bob();
    town.parameter("bob", Some(false), None)
        .parameter("alice", Some(true), Some(true))
        .parameter("carol", Some(true), None);
    town.parameters[1].parameter = "log_statement".to_string();
    assert_eq!(town.failed(), "A4");
}

#[test]
fn a4_the_grant_option_and_the_use_may_come_from_different_grants() {
    let mut town = alice_and_bob();
    town.member("alice", "tuners", PLAIN);
    town.parameter("bob", Some(true), Some(false));
    town.parameter("alice", Some(false), Some(false))
        .parameter("tuners", Some(true), None);
    assert_eq!(town.failed(), "");
}

#[test]
fn a5_admin_over_set_user_asks_for_admin_and_use_for_use() {
    use Admin::{None as Use, Only, Option as Both};
    for (target, impersonator, expected) in [
        (Use, Some(Use), ""),
        (Use, Some(Both), ""),
        (Use, Some(Only), "A5"),
        (Use, None, "A5"),
        (Both, Some(Use), "A5"),
        (Both, Some(Both), ""),
        (Both, Some(Only), "A5"),
        (Only, Some(Only), ""),
        (Only, Some(Both), ""),
        (Only, Some(Use), "A5"),
        (Only, None, "A5"),
    ] {
        let mut town = alice_and_bob();
        town.right("bob", Scope::Any, target);
        if let Some(admin) = impersonator {
            town.right("alice", Scope::Any, admin);
        }
        assert_eq!(town.failed(), expected, "{target:?}, {impersonator:?}");
    }
}

#[test]
fn a5_use_and_admin_may_come_from_different_rights() {
    let mut town = alice_and_bob();
    town.member("alice", "deputies", NOINHERIT);
    town.right("bob", Scope::Any, Admin::Option);
    town.right("alice", Scope::Any, Admin::None);
    assert_eq!(town.failed(), "A5");
    town.right("deputies", Scope::Any, Admin::Only);
    assert_eq!(town.failed(), "");
}

#[test]
fn a5_lists_are_compared_per_kind_and_as_unions() {
    let mut town = alice_and_bob();
    town.users("bob", &["carol", "dave"]);
    assert_eq!(town.failed(), "A5");
    town.users("alice", &["dave"]);
    assert_eq!(town.failed(), "A5");
    town.with_roles("alice", &["carol"]);
    assert_eq!(town.failed(), "A5", "a list of the other kind");
    town.users("alice", &["carol"]);
    assert_eq!(town.failed(), "");
    town.with_roles("bob", &["sales"]);
    assert_eq!(town.failed(), "A5");
    town.users("alice", &["sales"]);
    assert_eq!(town.failed(), "A5", "a list of the other kind");
    town.with_roles("alice", &["sales", "support"]);
    assert_eq!(town.failed(), "");
}

#[test]
fn a5_the_impersonator_is_struck_from_the_users_of_the_target_alone() {
    let mut town = alice_and_bob();
    town.users("bob", &["alice"]);
    assert_eq!(town.failed(), "");
    town.with_roles("bob", &["alice"]);
    assert_eq!(town.failed(), "A5");
}

#[test]
fn a5_any_covers_lists_with_use_only() {
    for (admin, expected) in [(Admin::None, ""), (Admin::Option, ""), (Admin::Only, "A5")] {
        let mut town = alice_and_bob();
        town.users("bob", &["carol"]);
        town.with_roles("bob", &["sales"]);
        town.right("alice", Scope::Any, admin);
        assert_eq!(town.failed(), expected);
    }
}

#[test]
fn a5_rights_of_roles_that_can_be_used_count_on_both_sides() {
    let mut town = alice_and_bob();
    town.member("bob", "helpdesk", NOINHERIT);
    town.users("helpdesk", &["carol"]);
    assert_eq!(town.failed(), "A2,A5");
    town.member("alice", "helpdesk", NOINHERIT);
    assert_eq!(town.failed(), "");
}
