//! GRANT: what it adds, and what it refuses.

use crate::town::*;
use impersonate_policy::*;

/// `grantor` grants; "postgres" does so as a superuser.
fn request(town: &mut Town, grantor: &str, grantees: &[&str], scope: Scope, admin: Admin) -> GrantRequest {
    let grantor_role = town.role(grantor);
    GrantRequest {
        grantees: town.roles(grantees),
        scope,
        admin,
        grantor: grantor_role,
        as_superuser: grantor == "postgres",
    }
}

fn give(town: &mut Town, grantor: &str, grantee: &str, scope: Scope, admin: Admin) -> Result<Vec<Change>, GrantError> {
    let request = request(town, grantor, &[grantee], scope, admin);
    let changes = grant(town, &town.rights, &request)?;
    town.apply(&changes);
    Ok(changes)
}

fn give_any(town: &mut Town, grantor: &str, grantee: &str, admin: Admin) -> Result<Vec<Change>, GrantError> {
    give(town, grantor, grantee, Scope::Any, admin)
}

#[test]
fn a_first_grant_stores_a_right_for_each_grantee_once() {
    let mut town = Town::new();
    let list = town.roles(&["bob", "carol", "bob"]);
    let request = request(
        &mut town,
        "postgres",
        &["lead", "helpdesk", "lead"],
        Scope::Users(list),
        Admin::None,
    );
    let changes = grant(&town, &[], &request).unwrap();
    let [bob, carol] = [town.role("bob"), town.role("carol")];
    let expected = ["lead", "helpdesk"].map(|grantee| {
        Change::Insert(NewRight {
            grantee: town.role(grantee),
            scope: Scope::Users(vec![bob, carol]),
            admin: Admin::None,
            grantor: town.role("postgres"),
            as_superuser: true,
        })
    });
    assert_eq!(changes, expected);
}

#[test]
fn granting_again_adds_to_the_list_of_that_kind_and_that_grantor() {
    let mut town = Town::new();
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(|name| town.role(name));
    give_any(&mut town, "postgres", "lead", Admin::Option).unwrap();
    give(&mut town, "postgres", "x", Scope::Users(vec![carol, bob]), Admin::None).unwrap();
    give(&mut town, "postgres", "x", Scope::AnyWithRoles(vec![bob]), Admin::None).unwrap();
    give(&mut town, "lead", "x", Scope::Users(vec![bob]), Admin::None).unwrap();
    let changes = give(&mut town, "postgres", "x", Scope::Users(vec![dave, bob]), Admin::None).unwrap();
    let scope = Scope::Users(vec![carol, bob, dave]);
    assert_eq!(
        changes,
        [Change::Update {
            id: 2,
            scope,
            admin: Admin::None,
            as_superuser: true
        }]
    );
    assert_eq!(
        give(&mut town, "postgres", "x", Scope::Users(vec![dave, bob]), Admin::None).unwrap(),
        []
    );
    assert_eq!(town.rights.len(), 4);
}

#[test]
fn admin_adds_up() {
    use Admin::{None as Use, Only, Option as Both};
    for (first, second, expected) in [
        (Use, Use, Use),
        (Use, Both, Both),
        (Use, Only, Both),
        (Both, Both, Both),
        (Both, Only, Both),
        (Only, Only, Only),
    ] {
        for (first, second) in [(first, second), (second, first)] {
            let mut town = Town::new();
            give_any(&mut town, "postgres", "x", first).unwrap();
            give_any(&mut town, "postgres", "x", second).unwrap();
            assert_eq!(town.rights.len(), 1);
            assert_eq!(town.rights[0].admin, expected, "{first:?} and {second:?}");
            assert_eq!(first.and(second), expected);
        }
    }
}

#[test]
fn g3_admin_goes_with_any_alone_and_lists_are_not_empty() {
    let mut town = Town::new();
    let bob = town.role("bob");
    for admin in [Admin::Option, Admin::Only] {
        for scope in [Scope::Users(vec![bob]), Scope::AnyWithRoles(vec![bob])] {
            let refused = give(&mut town, "postgres", "x", scope.clone(), admin);
            assert_eq!(refused, Err(GrantError::AdminNeedsAny { scope, admin }));
        }
    }
    for scope in [Scope::Users(vec![]), Scope::AnyWithRoles(vec![])] {
        let refused = give(&mut town, "postgres", "x", scope.clone(), Admin::None);
        assert_eq!(refused, Err(GrantError::EmptyList { scope }));
    }
}

#[test]
fn g4_a_superuser_or_a_holder_with_admin_may_grant() {
    let mut town = Town::new();
    town.attributes_of("postgres").superuser = true;
    let bob = town.role("bob");
    for (admin, may) in [(Admin::None, false), (Admin::Option, true), (Admin::Only, true)] {
        let mut town = town.clone();
        town.right("lead", Scope::Any, admin);
        let lead = town.role("lead");
        assert_eq!(may_grant(&town, lead), may);
        assert_eq!(
            give(&mut town, "lead", "x", Scope::Users(vec![bob]), Admin::None).is_ok(),
            may
        );
    }
    let (postgres, lead) = (town.role("postgres"), town.role("lead"));
    assert!(may_grant(&town, postgres));
    assert!(!may_grant(&town, lead));
    let refused = give_any(&mut town, "lead", "x", Admin::None);
    assert_eq!(refused, Err(GrantError::MayNotGrant { grantor: lead }));
}

#[test]
fn g6_a_group_s_admin_serves_members_by_inheritance_only() {
    for (options, may) in [
        (PLAIN, true),
        (INHERIT_ONLY, true),
        (NOINHERIT, false),
        (ADMIN_ONLY, false),
    ] {
        let mut town = Town::new();
        town.member("lead", "admins", options);
        town.right("admins", Scope::Any, Admin::Only);
        let lead = town.role("lead");
        assert_eq!(may_grant(&town, lead), may);
        assert_eq!(give_any(&mut town, "lead", "x", Admin::None).is_ok(), may);
    }
}

#[test]
fn admin_is_not_granted_back_to_where_it_came_from() {
    let mut town = Town::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| town.role(name));
    give_any(&mut town, "postgres", "a", Admin::Option).unwrap();
    give_any(&mut town, "a", "b", Admin::Option).unwrap();
    give_any(&mut town, "b", "c", Admin::Only).unwrap();
    for grantor in ["b", "c"] {
        let refused = give_any(&mut town, grantor, "a", Admin::Option);
        assert_eq!(
            refused,
            Err(GrantError::Circular {
                grantor: town.role(grantor),
                grantee: a
            })
        );
    }
    assert_eq!(
        give_any(&mut town, "c", "b", Admin::Only),
        Err(GrantError::Circular { grantor: c, grantee: b })
    );
    assert_eq!(
        give_any(&mut town, "b", "b", Admin::Only),
        Err(GrantError::Circular { grantor: b, grantee: b })
    );
    // Use alone hangs nothing on anybody.
    give_any(&mut town, "c", "a", Admin::None).unwrap();
    give(&mut town, "c", "a", Scope::Users(vec![b]), Admin::None).unwrap();
    // With admin from elsewhere too, c no longer depends on a.
    give_any(&mut town, "postgres", "c", Admin::Option).unwrap();
    give_any(&mut town, "c", "a", Admin::Option).unwrap();
}

#[test]
fn a_ring_through_a_group_is_seen() {
    let mut town = Town::new();
    town.member("member", "admins", PLAIN);
    give_any(&mut town, "postgres", "root", Admin::Option).unwrap();
    give_any(&mut town, "root", "admins", Admin::Option).unwrap();
    let (member, root, admins) = (town.role("member"), town.role("root"), town.role("admins"));
    for (grantee, role) in [("root", root), ("admins", admins)] {
        let refused = give_any(&mut town, "member", grantee, Admin::Option);
        assert_eq!(
            refused,
            Err(GrantError::Circular {
                grantor: member,
                grantee: role
            })
        );
    }
}

#[test]
fn of_several_grantees_one_refusal_refuses_all() {
    let mut town = Town::new();
    give_any(&mut town, "postgres", "a", Admin::Option).unwrap();
    give_any(&mut town, "a", "b", Admin::Option).unwrap();
    let request = request(&mut town, "b", &["x", "a"], Scope::Any, Admin::Option);
    assert!(grant(&town, &town.rights, &request).is_err());
}

#[test]
fn a_right_stands_by_itself_only_if_a_superuser_gave_all_of_it() {
    use Admin::{None as Use, Option as Both};
    // What was granted and whether as a superuser, twice by the same role; whether the result stands by itself.
    for (first, second, expected) in [
        ((Use, true), (Use, true), true),
        ((Use, true), (Both, true), true),
        ((Both, true), (Use, false), true),
        ((Use, true), (Both, false), false),
        ((Use, false), (Both, true), true),
        ((Both, false), (Use, true), false),
        ((Both, false), (Both, true), true),
        ((Both, false), (Both, false), false),
    ] {
        let mut town = Town::new();
        town.right("lead", Scope::Any, Admin::Option);
        for (admin, as_superuser) in [first, second] {
            let mut request = request(&mut town, "lead", &["x"], Scope::Any, admin);
            request.as_superuser = as_superuser;
            let changes = grant(&town, &town.rights, &request).unwrap();
            town.apply(&changes);
        }
        assert_eq!(town.rights[1].as_superuser, expected, "{first:?} then {second:?}");
    }
    // A list of which each half has its own grantor's standing.
    let mut town = Town::new();
    town.right("lead", Scope::Any, Admin::Option);
    let list = town.roles(&["a", "b", "c"]);
    for (list, as_superuser, expected) in [
        (&list[..1], true, true),
        (&list[1..2], false, false),
        (&list[2..], true, false),
        (&list[..], true, true),
    ] {
        let mut request = request(&mut town, "lead", &["x"], Scope::Users(list.to_vec()), Admin::None);
        request.as_superuser = as_superuser;
        let changes = grant(&town, &town.rights, &request).unwrap();
        town.apply(&changes);
        assert_eq!(town.rights[1].as_superuser, expected);
    }
}

#[test]
fn a_right_that_stood_by_itself_does_not_come_to_hang_on_its_own_grantee() {
    let mut town = Town::new();
    let (root, former) = (town.role("root"), town.role("former"));
    // former was a superuser when it made root an admin; now its own admin hangs on root.
    let right = Right {
        id: 1,
        grantee: root,
        scope: Scope::Any,
        admin: Admin::Only,
        grantor: former,
        as_superuser: true,
    };
    town.rights.push(right);
    give_any(&mut town, "root", "former", Admin::Option).unwrap();
    let refused = give_any(&mut town, "former", "root", Admin::None);
    assert_eq!(
        refused,
        Err(GrantError::Circular {
            grantor: former,
            grantee: root
        })
    );
}

#[test]
fn a_ring_within_one_grant_is_seen() {
    let mut town = Town::new();
    let (former, group, helper, pool) = (
        town.role("former"),
        town.role("group"),
        town.role("helper"),
        town.role("pool"),
    );
    // former was a superuser when it made the group and helper admins. Its own admin is that of the group, and that of
    // the pool, which helper made one.
    town.member("former", "group", PLAIN);
    town.member("former", "pool", PLAIN);
    for (id, grantee) in [(1, group), (2, helper)] {
        town.rights.push(Right {
            id,
            grantee,
            scope: Scope::Any,
            admin: Admin::Only,
            grantor: former,
            as_superuser: true,
        });
    }
    give_any(&mut town, "helper", "pool", Admin::Option).unwrap();
    assert!(may_grant(&town, pool));
    // Each by itself still has the other to stand on; both together have nothing.
    for one in ["group", "helper"] {
        assert!(give_any(&mut town.clone(), "former", one, Admin::None).is_ok());
    }
    let both = request(&mut town, "former", &["group", "helper"], Scope::Any, Admin::None);
    assert_eq!(
        grant(&town, &town.rights, &both),
        Err(GrantError::Circular {
            grantor: former,
            grantee: helper
        })
    );
}

#[test]
fn privilege_names_are_read_in_any_case_and_not_otherwise_bent() {
    for (name, expected) in [
        ("SET USER", Some(Privilege::SetUser)),
        ("set user", Some(Privilege::SetUser)),
        ("Set User Any", Some(Privilege::SetUserAny)),
        ("SET USER ANY WITH ROLES", Some(Privilege::SetUserAnyWithRoles)),
        ("set user any with roles", Some(Privilege::SetUserAnyWithRoles)),
        ("SET  USER", None),
        ("SET USER ", None),
        (" SET USER", None),
        ("SET\tUSER", None),
        ("SETUSER", None),
        ("SET USER ANY WITH", None),
        ("ſet user", None),
        ("", None),
    ] {
        assert_eq!(parse_privilege(name), expected, "{name:?}");
    }
}

#[test]
fn a_privilege_and_its_list_say_what_is_granted_and_what_is_revoked() {
    use Privilege::*;
    let list = vec![RoleId(1), RoleId(2)];
    for (privilege, list, granted, revoked) in [
        (SetUser, vec![], Ok(Scope::Any), Ok(RevokeWhat::Everything)),
        (
            SetUser,
            list.clone(),
            Ok(Scope::Users(list.clone())),
            Ok(RevokeWhat::Users(list.clone())),
        ),
        (SetUserAny, vec![], Ok(Scope::Any), Ok(RevokeWhat::Any)),
        (
            SetUserAny,
            list.clone(),
            Err(ListError::Unexpected(SetUserAny)),
            Err(ListError::Unexpected(SetUserAny)),
        ),
        (
            SetUserAnyWithRoles,
            vec![],
            Err(ListError::Missing(SetUserAnyWithRoles)),
            Ok(RevokeWhat::AllWithRoles),
        ),
        (
            SetUserAnyWithRoles,
            list.clone(),
            Ok(Scope::AnyWithRoles(list.clone())),
            Ok(RevokeWhat::WithRoles(list.clone())),
        ),
    ] {
        assert_eq!(privilege.granted(list.clone()), granted);
        assert_eq!(privilege.revoked(list), revoked);
    }
}

#[test]
fn stored_words_are_read_back() {
    for admin in [Admin::None, Admin::Option, Admin::Only] {
        assert_eq!(Admin::parse(admin.as_str()), Some(admin));
    }
    assert_eq!(Admin::parse("ONLY"), Some(Admin::Only));
    assert_eq!(Admin::parse("all"), None);
    for scope in [
        Scope::Any,
        Scope::Users(vec![RoleId(1)]),
        Scope::AnyWithRoles(vec![RoleId(1)]),
    ] {
        assert_eq!(Scope::parse(scope.as_str(), scope.roles().to_vec()), Some(scope));
    }
    for (kind, list) in [
        ("any", vec![RoleId(1)]),
        ("users", vec![]),
        ("any with roles", vec![]),
        ("all", vec![]),
    ] {
        assert_eq!(Scope::parse(kind, list), None);
    }
}
