//! A6: alice wants to act as bob, who owns things or was granted privileges on them.

use crate::town::*;
use impersonate_policy::*;

const NONE: Privileges = Privileges::NONE;

fn alice_and_bob() -> Town {
    let mut town = Town::new();
    town.roles(&["postgres", "alice", "bob"]);
    town.users("alice", &["bob"]);
    town
}

fn a6(town: &mut Town) -> Vec<(bool, Fact)> {
    let verdict = town.judge_full("alice", "bob");
    let of_a6 = verdict.conditions.iter().filter(|row| row.criterion == Criterion::A6);
    of_a6.map(|row| (row.ok, row.fact.clone())).collect()
}

/// Subject, required, held, sentence and remedy of each row that is not met.
fn unmet(town: &mut Town) -> Vec<[String; 5]> {
    let verdict = town.judge_full("alice", "bob");
    let failed = verdict.conditions.iter().filter(|row| !row.ok);
    failed
        .map(|row| {
            let row = row.render(town);
            let remedy = row.remedy.unwrap_or_default();
            [row.subject, row.required, row.held, row.sentence, remedy]
        })
        .collect()
}

#[test]
fn a6_is_judged_only_if_the_rules_say_so_and_has_its_row_then() {
    let mut town = alice_and_bob();
    town.owns("bob");
    assert_eq!(town.failed(), "");
    assert!(town
        .judge("alice", "bob")
        .conditions
        .iter()
        .all(|row| row.criterion != Criterion::A6));
    assert_eq!(failed(&town.judge_full("alice", "bob")), "A6");
    assert_eq!(a6(&mut alice_and_bob()), [(true, Fact::NothingRequired)]);
}

#[test]
fn a6_oneself_and_superusers_pass_and_are_asked_nothing() {
    let mut town = alice_and_bob();
    town.owns("bob");
    let oneself = town.judge_full("bob", "bob");
    assert_eq!(oneself.conditions.last().unwrap().fact, Fact::Oneself);
    assert_eq!(oneself.conditions.last().unwrap().criterion, Criterion::A6);
    town.attributes_of("alice").superuser = true;
    assert_eq!(a6(&mut town), [(true, Fact::Superuser)]);
}

#[test]
fn a6_a_privilege_counts_through_any_role_that_is_held_and_through_public() {
    for (grantee, expected) in [
        ("carol", "A6"),
        ("alice", ""),
        ("", ""),
        ("postgres", "A6"),
        // Inherited; after SET ROLE; held with neither; beyond one that is only inherited from.
        ("inherits", ""),
        ("sets", ""),
        ("neither", "A6"),
        ("beyond", "A6"),
    ] {
        let mut town = alice_and_bob();
        town.member("alice", "inherits", INHERIT_ONLY)
            .member("alice", "sets", NOINHERIT)
            .member("alice", "neither", ADMIN_ONLY)
            .member("inherits", "beyond", NOINHERIT);
        town.table(&[("bob", SELECT, NONE), (grantee, SELECT, NONE)]);
        assert_eq!(failed(&town.judge_full("alice", "bob")), expected, "{grantee:?}");
    }
}

#[test]
fn a6_grant_options_must_be_held_too_and_those_who_grant_can_do() {
    let cases = [
        ((SELECT, NONE), (SELECT, NONE), ""),
        ((SELECT, NONE), (SELECT, SELECT), ""),
        ((SELECT, NONE), (NONE, SELECT), ""),
        ((SELECT, SELECT), (SELECT, NONE), "A6"),
        ((SELECT, SELECT), (SELECT, SELECT), ""),
        ((SELECT, NONE), (INSERT, INSERT), "A6"),
        ((SELECT.or(INSERT), INSERT), (SELECT.or(INSERT), SELECT), "A6"),
        ((SELECT.or(INSERT), INSERT), (SELECT.or(INSERT), INSERT), ""),
    ];
    for ((bobs, bobs_option), (alices, alices_option), expected) in cases {
        let mut town = alice_and_bob();
        town.table(&[("bob", bobs, bobs_option), ("alice", alices, alices_option)]);
        assert_eq!(failed(&town.judge_full("alice", "bob")), expected, "{:?}", town.items);
    }
}

#[test]
fn a6_privileges_are_put_together_from_several_grants_and_roles() {
    let mut town = alice_and_bob();
    town.member("alice", "sales", PLAIN);
    town.table(&[
        ("bob", SELECT, NONE),
        ("bob", INSERT, INSERT),
        ("alice", SELECT, NONE),
        ("sales", INSERT, INSERT),
    ]);
    assert_eq!(a6(&mut town), [(true, Fact::Objects { count: 1 })]);
}

#[test]
fn a6_the_owner_of_the_object_can_do_everything_with_it() {
    let mut town = alice_and_bob();
    town.member("alice", "dba", NOINHERIT);
    let owner = town.role("dba");
    let bob = town.role("bob");
    let all = Privileges::from_bits(0x7FFF);
    town.item(Item::Object {
        owner,
        grants: vec![Grant {
            grantee: Some(bob),
            privileges: all,
            grantable: all,
        }],
    });
    assert_eq!(a6(&mut town), [(true, Fact::Objects { count: 1 })]);
}

#[test]
fn a6_a_role_that_may_read_everything_counts_without_grant_option() {
    let mut town = alice_and_bob();
    town.reader = Some(town.clone().role("reads"));
    town.role("reads");
    town.table(&[("bob", SELECT, NONE)]);
    assert_eq!(failed(&town.judge_full("alice", "bob")), "A6");
    town.member("alice", "reads", PLAIN);
    assert_eq!(failed(&town.judge_full("alice", "bob")), "");
    town.table(&[("bob", SELECT, SELECT)]);
    town.table(&[("bob", INSERT, NONE)]);
    assert_eq!(
        unmet(&mut town).iter().map(|row| row[4].as_str()).collect::<Vec<_>>(),
        [
            "GRANT SELECT ON TABLE public.t1 TO alice WITH GRANT OPTION",
            "GRANT INSERT ON TABLE public.t2 TO alice"
        ]
    );
}

#[test]
fn a6_only_who_holds_the_target_holds_what_it_owns() {
    for (options, expected) in [
        (PLAIN, ""),
        (NOINHERIT, ""),
        (INHERIT_ONLY, ""),
        (ADMIN_ONLY, "A6"),
        (NOTHING, "A6"),
    ] {
        let mut town = alice_and_bob();
        town.owns("bob");
        town.table(&[("bob", SELECT, SELECT)]);
        town.policy("postgres", &["bob"]);
        assert_eq!(failed(&town.judge_full("alice", "bob")), "A6");
        town.member("alice", "bob", options);
        assert_eq!(failed(&town.judge_full("alice", "bob")), expected, "{options:?}");
    }
}

#[test]
fn a6_a_target_that_can_be_become_is_not_looked_at_any_further() {
    let mut town = alice_and_bob();
    town.owns("bob");
    town.member("alice", "bob", PLAIN);
    assert_eq!(a6(&mut town), [(true, Fact::TargetHeld)]);
}

#[test]
fn a6_a_user_mapping_needs_set_role_for_it_goes_by_the_name() {
    for (options, expected) in [(PLAIN, ""), (NOINHERIT, ""), (INHERIT_ONLY, "A6"), (NOTHING, "A6")] {
        let mut town = alice_and_bob();
        let bob = town.role("bob");
        town.item(Item::Mapping(bob));
        town.member("alice", "bob", options);
        assert_eq!(failed(&town.judge_full("alice", "bob")), expected, "{options:?}");
        if !expected.is_empty() {
            assert_eq!(
                unmet(&mut town)[0],
                [
                    "user mapping 0",
                    "ownership",
                    "nothing",
                    r#"Criterion A6: "alice" does not hold role "bob", which owns user mapping 0."#,
                    "GRANT bob TO alice WITH SET TRUE"
                ]
            );
        }
    }
}

#[test]
fn a6_of_a_policy_one_must_be_or_be_exempt() {
    let mut town = alice_and_bob();
    town.policy("postgres", &["bob", "carol"]);
    assert_eq!(
        unmet(&mut town),
        [[
            "policy p0 on public.t",
            "policy for it",
            "nothing",
            r#"Criterion A6: "alice" is not one of the roles of policy p0 on public.t, which "bob" is."#,
            "ALTER POLICY p0 ON public.t TO bob, carol, alice"
        ]]
    );
    for (owner, roles, role) in [
        ("postgres", ["bob", "carol"], "carol"),
        ("dba", ["bob", "carol"], "dba"),
        ("postgres", ["bob", ""], "sales"),
    ] {
        let mut town = alice_and_bob();
        town.policy(owner, &roles);
        town.member("alice", role, NOINHERIT);
        assert_eq!(a6(&mut town), [(true, Fact::Objects { count: 1 })]);
    }
    town.attributes_of("alice").bypassrls = true;
    assert_eq!(a6(&mut town), [(true, Fact::Objects { count: 1 })]);
}

#[test]
fn a6_what_nobody_lists_must_be_held_as_a_whole() {
    let mut town = alice_and_bob();
    town.unlisted.push(town.clone().role("bob"));
    let sentence = r#"Criterion A6: "alice" does not hold role "bob", and what that was granted is not listed."#;
    assert_eq!(
        unmet(&mut town),
        [["bob", "role", "nothing", sentence, "GRANT bob TO alice"]]
    );
    town.member("alice", "bob", INHERIT_ONLY);
    assert_eq!(failed(&town.judge_full("alice", "bob")), "");
}

#[test]
fn a6_there_is_a_row_for_each_object_and_one_for_all_that_is_owned() {
    let mut town = alice_and_bob();
    town.table(&[("bob", SELECT.or(INSERT), INSERT), ("alice", INSERT, NONE)]);
    town.owns("bob");
    assert_eq!(
        unmet(&mut town),
        [
            [
                "table public.t1",
                "ownership",
                "nothing",
                r#"Criterion A6: "alice" does not hold role "bob", which owns table public.t1."#,
                "GRANT bob TO alice"
            ],
            [
                "table public.t0",
                "SELECT",
                "nothing",
                r#"Criterion A6: "alice" does not have privilege SELECT on table public.t0, which "bob" has."#,
                "GRANT SELECT ON TABLE public.t0 TO alice"
            ],
            [
                "table public.t0",
                "INSERT WITH GRANT OPTION",
                "INSERT",
                r#"Criterion A6: "alice" does not have privilege INSERT on table public.t0 with grant option, which "bob" has."#,
                "GRANT INSERT ON TABLE public.t0 TO alice WITH GRANT OPTION"
            ],
        ]
    );
    town.owns("bob");
    assert_eq!(unmet(&mut town)[0][0], "table public.t1 and 1 more object");
    town.owns("bob");
    assert_eq!(unmet(&mut town)[0][0], "table public.t1 and 2 more objects");
}

#[test]
fn a6_ownership_has_no_remedy_where_the_target_is_a_member_of_the_impersonator() {
    let mut town = alice_and_bob();
    town.owns("bob");
    town.member("bob", "alice", PLAIN);
    assert_eq!(unmet(&mut town)[0][4], "");
}

#[test]
fn a6_privileges_unknown_here_are_compared_and_have_no_remedy() {
    let mut town = alice_and_bob();
    let future = Privileges::from_bits(1 << 30);
    town.table(&[("bob", future, NONE)]);
    let row = &unmet(&mut town)[0];
    assert_eq!((row[1].as_str(), row[4].as_str()), ("other privileges", ""));
    town.table(&[("alice", future, NONE)]);
    assert_eq!(unmet(&mut town).len(), 1, "on another table");
}

#[test]
fn a6_the_first_thousand_are_told_and_the_rest_counted() {
    let mut town = alice_and_bob();
    for _ in 0..1500 {
        town.table(&[("bob", SELECT, NONE)]);
    }
    let rows = unmet(&mut town);
    assert_eq!(rows.len(), 1001);
    assert_eq!(
        rows[1000][..3],
        ["bob", "500 objects or privileges on them", "not as much"]
    );
    town.table(&[("", SELECT, NONE)]);
    town.reader = Some(town.clone().role("reads"));
    town.member("alice", "reads", PLAIN);
    assert_eq!(a6(&mut town), [(true, Fact::Objects { count: 1500 })]);
}

#[test]
fn a6_column_privileges_are_granted_by_column() {
    let mut town = alice_and_bob();
    town.table(&[]);
    let condition = Condition {
        criterion: Criterion::A6,
        ok: false,
        impersonator: Impersonator(town.role("alice")),
        target: Target(town.role("bob")),
        fact: Fact::ObjectPrivileges {
            object: ObjectId {
                column: 2,
                ..item_id(0)
            },
            missing: SELECT.or(INSERT),
            grantable: false,
            held: NONE,
        },
    };
    assert_eq!(
        condition.render(&town).remedy.unwrap(),
        "GRANT SELECT (c2), INSERT (c2) ON TABLE public.t0 TO alice"
    );
}

#[test]
fn every_privilege_has_its_word() {
    let all = Privileges::from_bits(0x7FFF);
    assert_eq!(
        all.to_string(),
        "SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER, CREATE, CONNECT, TEMPORARY, EXECUTE, USAGE, \
         SET, ALTER SYSTEM, MAINTAIN"
    );
}
