//! REVOKE: what it takes, what hangs on that, and what it warns of.

use crate::town::*;
use impersonate_policy::*;

fn request(town: &mut Town, grantee: &str, what: RevokeWhat) -> RevokeRequest {
    RevokeRequest {
        grantees: town.roles(&[grantee]),
        what,
        admin_option_only: false,
        cascade: false,
    }
}

fn take(town: &mut Town, request: &RevokeRequest) -> Result<Vec<NotGranted>, RevokeError> {
    let revoked = revoke(town, &town.rights, request)?;
    town.apply(&revoked.changes);
    Ok(revoked.not_granted)
}

/// A right that hangs on its grantor's admin.
fn hanging(town: &mut Town, grantor: &str, grantee: &str, admin: Admin) -> i64 {
    let id = town.right(grantee, Scope::Any, admin);
    let grantor = town.role(grantor);
    let right = town.rights.last_mut().unwrap();
    (right.grantor, right.as_superuser) = (grantor, false);
    id
}

fn ids(town: &Town) -> Vec<i64> {
    town.rights.iter().map(|right| right.id).collect()
}

/// x holds a right of each kind, users and roles from two grantors; y holds one of its own.
fn everything() -> Town {
    let mut town = Town::new();
    town.any("x");
    town.users("x", &["a", "b"]);
    town.users("x", &["b"]);
    town.with_roles("x", &["r", "s"]);
    town.any("y");
    town
}

#[test]
fn each_form_takes_what_it_names_whoever_granted_it() {
    let mut town = everything();
    let [a, b, r, s] = ["a", "b", "r", "s"].map(|name| town.role(name));
    for (what, left) in [
        (RevokeWhat::Everything, vec![5]),
        (RevokeWhat::Any, vec![2, 3, 4, 5]),
        (RevokeWhat::AllUsers, vec![1, 4, 5]),
        (RevokeWhat::AllWithRoles, vec![1, 2, 3, 5]),
        (RevokeWhat::Users(vec![a]), vec![1, 2, 3, 4, 5]),
        (RevokeWhat::Users(vec![b]), vec![1, 2, 4, 5]),
        (RevokeWhat::Users(vec![b, a]), vec![1, 4, 5]),
        (RevokeWhat::WithRoles(vec![r]), vec![1, 2, 3, 4, 5]),
        (RevokeWhat::WithRoles(vec![r, s]), vec![1, 2, 3, 5]),
        (RevokeWhat::Users(vec![]), vec![1, 2, 3, 4, 5]),
    ] {
        let mut town = town.clone();
        let request = request(&mut town, "x", what);
        assert_eq!(take(&mut town, &request), Ok(vec![]));
        assert_eq!(ids(&town), left, "{:?}", request.what);
    }
    let request = request(&mut town, "x", RevokeWhat::Users(vec![b]));
    take(&mut town, &request).unwrap();
    assert_eq!(town.rights[1].scope, Scope::Users(vec![a]));
}

#[test]
fn admin_option_for_leaves_the_use_and_what_has_no_use_goes() {
    for (admin, left) in [
        (Admin::None, Some(Admin::None)),
        (Admin::Option, Some(Admin::None)),
        (Admin::Only, None),
    ] {
        for what in [RevokeWhat::Everything, RevokeWhat::Any] {
            let mut town = Town::new();
            town.right("x", Scope::Any, admin);
            town.users("x", &["a"]);
            let request = RevokeRequest {
                admin_option_only: true,
                ..request(&mut town, "x", what)
            };
            assert_eq!(take(&mut town, &request), Ok(vec![]));
            let any = town.rights.iter().find(|right| right.scope == Scope::Any);
            assert_eq!(any.map(|right| right.admin), left);
            assert_eq!(
                town.rights.len(),
                1 + usize::from(left.is_some()),
                "the other kinds stay"
            );
        }
    }
}

#[test]
fn what_was_never_granted_is_warned_of() {
    let mut town = everything();
    let [x, y, a, c, r] = ["x", "y", "a", "c", "r"].map(|name| town.role(name));
    let none = |grantee| NotGranted {
        grantee,
        listed: vec![],
    };
    let listed = |grantee, listed: &[RoleId]| NotGranted {
        grantee,
        listed: listed.to_vec(),
    };
    for (grantee, what, admin_option_only, expected) in [
        ("x", RevokeWhat::Everything, false, vec![]),
        ("z", RevokeWhat::Everything, false, vec![none(RoleId(8))]),
        ("y", RevokeWhat::AllUsers, false, vec![none(y)]),
        ("y", RevokeWhat::AllWithRoles, false, vec![none(y)]),
        ("x", RevokeWhat::Users(vec![a, c]), false, vec![listed(x, &[c])]),
        ("y", RevokeWhat::Users(vec![a]), false, vec![listed(y, &[a])]),
        ("x", RevokeWhat::WithRoles(vec![a, r]), false, vec![listed(x, &[a])]),
        ("y", RevokeWhat::Everything, true, vec![]),
        ("y", RevokeWhat::AllUsers, true, vec![none(y)]),
    ] {
        let mut town = town.clone();
        let z = town.role("z");
        assert_eq!(z, RoleId(8));
        let request = RevokeRequest {
            admin_option_only,
            ..request(&mut town, grantee, what)
        };
        assert_eq!(take(&mut town, &request), Ok(expected), "{request:?}");
    }
    let mut town = Town::new();
    town.users("x", &["a"]);
    let request = RevokeRequest {
        admin_option_only: true,
        ..request(&mut town, "x", RevokeWhat::Everything)
    };
    let x = town.role("x");
    assert_eq!(
        take(&mut town, &request),
        Ok(vec![none(x)]),
        "lists have no admin option"
    );
    assert_eq!(town.rights.len(), 1);
}

#[test]
fn several_grantees_are_each_seen_to_once() {
    let mut town = everything();
    let grantees = town.roles(&["z", "x", "y", "x", "z"]);
    let request = RevokeRequest {
        grantees,
        what: RevokeWhat::Any,
        admin_option_only: false,
        cascade: false,
    };
    let z = town.role("z");
    assert_eq!(
        take(&mut town, &request),
        Ok(vec![NotGranted {
            grantee: z,
            listed: vec![]
        }])
    );
    assert_eq!(ids(&town), [2, 3, 4]);
}

/// root grants a, a grants b, b grants c; a's is the superuser's grant 1.
fn chain() -> Town {
    let mut town = Town::new();
    town.right("a", Scope::Any, Admin::Option);
    hanging(&mut town, "a", "b", Admin::Option);
    hanging(&mut town, "b", "c", Admin::None);
    town
}

#[test]
fn restrict_refuses_and_names_all_that_hangs_on_it() {
    for admin_option_only in [false, true] {
        let mut town = chain();
        let request = RevokeRequest {
            admin_option_only,
            ..request(&mut town, "a", RevokeWhat::Any)
        };
        let dependents = town.rights[1..].to_vec();
        assert_eq!(take(&mut town, &request), Err(RevokeError::Dependent { dependents }));
        assert_eq!(ids(&town), [1, 2, 3]);
    }
}

#[test]
fn cascade_takes_all_that_hangs_on_it() {
    for (admin_option_only, left) in [(false, vec![]), (true, vec![1])] {
        let mut town = chain();
        let what = RevokeWhat::Everything;
        let request = RevokeRequest {
            admin_option_only,
            cascade: true,
            ..request(&mut town, "a", what)
        };
        assert_eq!(take(&mut town, &request), Ok(vec![]));
        assert_eq!(ids(&town), left);
    }
}

#[test]
fn use_and_lists_carry_nobody_so_they_go_without_cascade() {
    let mut town = chain();
    town.users("a", &["b"]);
    for (grantee, what) in [("c", RevokeWhat::Everything), ("a", RevokeWhat::AllUsers)] {
        let request = request(&mut town, grantee, what);
        assert_eq!(take(&mut town, &request), Ok(vec![]));
    }
    assert_eq!(ids(&town), [1, 2]);
}

#[test]
fn who_has_admin_from_elsewhere_keeps_what_it_granted() {
    let mut town = chain();
    town.right("b", Scope::Any, Admin::Only);
    let request = RevokeRequest {
        cascade: true,
        ..request(&mut town, "a", RevokeWhat::Any)
    };
    take(&mut town, &request).unwrap();
    assert_eq!(ids(&town), [3, 4], "b's own grant stands on 4 now");
}

#[test]
fn what_a_superuser_granted_hangs_on_nothing() {
    let mut town = chain();
    town.rights[1].as_superuser = true;
    let request = request(&mut town, "a", RevokeWhat::Any);
    assert_eq!(take(&mut town, &request), Ok(vec![]));
    assert_eq!(ids(&town), [2, 3]);
}

#[test]
fn what_members_granted_on_the_strength_of_their_group_hangs_on_the_group_s_right() {
    for options in [PLAIN, INHERIT_ONLY] {
        let mut town = Town::new();
        town.member("member", "admins", options);
        town.right("admins", Scope::Any, Admin::Only);
        let granted = hanging(&mut town, "member", "x", Admin::None);
        let request = request(&mut town, "admins", RevokeWhat::Everything);
        assert!(take(&mut town, &request).is_err());
        // With admin through a second group, nothing is lost.
        town.member("member", "others", options);
        town.right("others", Scope::Any, Admin::Option);
        assert!(take(&mut town, &request).is_ok());
        assert!(ids(&town).contains(&granted));
    }
}

#[test]
fn what_had_lost_its_ground_before_is_left_alone_but_its_own_dependents_go_with_it() {
    let mut town = Town::new();
    // leaver granted when it was in a group with admin, and is no longer.
    hanging(&mut town, "leaver", "a", Admin::Option);
    hanging(&mut town, "a", "b", Admin::None);
    town.any("y");
    let of_y = request(&mut town, "y", RevokeWhat::Everything);
    assert_eq!(take(&mut town, &of_y), Ok(vec![]));
    assert_eq!(ids(&town), [1, 2]);
    let of_a = RevokeRequest {
        cascade: true,
        ..request(&mut town, "a", RevokeWhat::Everything)
    };
    assert_eq!(take(&mut town, &of_a), Ok(vec![]));
    assert_eq!(ids(&town), []);
}

#[test]
fn rights_that_hang_on_each_other_do_not_hold_each_other_up() {
    let mut town = Town::new();
    town.right("a", Scope::Any, Admin::Option);
    hanging(&mut town, "a", "b", Admin::Option);
    // A second admin for b made it possible to grant back; it went long ago.
    hanging(&mut town, "b", "a", Admin::Option);
    let mut request = request(&mut town, "a", RevokeWhat::Any);
    request.cascade = true;
    let first = town.rights[0].clone();
    // Without the first right: its grantor was dropped.
    let rest = town.rights[1..].to_vec();
    let both = [3, 2].map(|id| Change::Delete { id });
    assert_eq!(revoke(&town, &rest, &request).unwrap().changes, both);
    let unrelated = RevokeRequest {
        grantees: vec![RoleId(99)],
        ..request.clone()
    };
    assert_eq!(revoke(&town, &rest, &unrelated).unwrap().changes, []);
    town.rights = vec![first, rest[0].clone(), rest[1].clone()];
    take(&mut town, &request).unwrap();
    assert_eq!(ids(&town), []);
}

#[test]
fn a_right_that_loses_its_admin_and_falls_is_deleted_once() {
    let mut town = chain();
    town.rights[2].admin = Admin::Option;
    let grantees = town.roles(&["a", "c"]);
    let what = RevokeWhat::Everything;
    let request = RevokeRequest {
        grantees,
        what,
        admin_option_only: true,
        cascade: true,
    };
    take(&mut town, &request).unwrap();
    assert_eq!(ids(&town), [1]);
}
