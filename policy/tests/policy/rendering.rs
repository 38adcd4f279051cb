//! What people read: DETAIL, HINT and the rows of explain_setuser.

use crate::town::*;
use impersonate_policy::*;

/// The row of the condition that fails first.
fn first_failed(town: &mut Town) -> Rendered {
    let verdict = town.judge("alice", "bob");
    verdict.first_failed().expect("a refusal").render(town)
}

fn check(town: &mut Town, row: [&str; 4], sentence: &str, remedy: Option<&str>) {
    let rendered = first_failed(town);
    let criterion = sentence["Criterion ".len()..].split(':').next().unwrap();
    assert_eq!(rendered.criterion, criterion);
    assert_eq!(
        [
            rendered.criterion,
            &rendered.subject,
            &rendered.required,
            &rendered.held
        ],
        row
    );
    assert_eq!(rendered.sentence, sentence);
    assert_eq!(rendered.remedy.as_deref(), remedy);
    assert!(!rendered.ok);
}

fn alice_and_bob() -> Town {
    let mut town = Town::new();
    town.roles(&["postgres", "alice", "bob"]);
    town.users("alice", &["bob"]);
    town
}

#[test]
fn s5_names_what_keeps_the_target_from_logging_in() {
    let mut town = alice_and_bob();
    town.attributes_of("bob").expired = true;
    check(
        &mut town,
        ["S5", "bob", "valid", "expired"],
        r#"Criterion S5: role "bob" has expired."#,
        Some("ALTER ROLE bob VALID UNTIL 'infinity'"),
    );
    town.attributes_of("bob").login = false;
    check(
        &mut town,
        ["S5", "bob", "LOGIN", "NOLOGIN"],
        r#"Criterion S5: role "bob" is not permitted to log in."#,
        Some("ALTER ROLE bob LOGIN"),
    );
}

#[test]
fn a1_names_the_grant_over_the_target() {
    let mut town = Town::new();
    let sentence = r#"Criterion A1: "alice" holds no SET USER right over "bob"."#;
    let remedy = Some(r#"GRANT "SET USER" (bob) TO alice"#);
    check(
        &mut town,
        ["A1", "SET USER", "users (bob)", "nothing"],
        sentence,
        remedy,
    );
    town.users("alice", &["carol", "Dave"]);
    town.with_roles("alice", &["sales"]);
    let held = r#"users (carol, "Dave"); any with roles (sales)"#;
    check(&mut town, ["A1", "SET USER", "users (bob)", held], sentence, remedy);
    town.rights.clear();
    town.right("alice", Scope::Any, Admin::Only);
    let sentence = r#"Criterion A1: "alice" may grant SET USER, but holds no right to use it over "bob"."#;
    check(
        &mut town,
        ["A1", "SET USER", "users (bob)", "any with admin only"],
        sentence,
        remedy,
    );
}

#[test]
fn a2_names_the_role() {
    let mut town = alice_and_bob();
    town.member("bob", "hr", PLAIN);
    check(
        &mut town,
        ["A2", "hr", "role", "nothing"],
        r#"Criterion A2: "alice" does not hold role "hr", which "bob" holds."#,
        Some("GRANT hr TO alice"),
    );
    town.member("alice", "hr", ADMIN_ONLY);
    check(
        &mut town,
        ["A2", "hr", "role", "role without INHERIT and SET"],
        r#"Criterion A2: "alice" holds role "hr" without INHERIT and SET, while "bob" can use it."#,
        Some("GRANT hr TO alice WITH SET TRUE"),
    );
}

#[test]
fn a2_offers_no_grant_that_would_be_circular() {
    let mut town = alice_and_bob();
    town.member("bob", "hr", PLAIN)
        .member("hr", "staff", PLAIN)
        .member("staff", "alice", NOTHING);
    assert_eq!(town.failed(), "A2");
    assert_eq!(first_failed(&mut town).remedy, None);
}

#[test]
fn a3_names_the_role_and_the_admin_option() {
    let mut town = alice_and_bob();
    town.member("bob", "hr", ADMIN).member("alice", "hr", PLAIN);
    check(
        &mut town,
        ["A3", "hr", "role with admin option", "role"],
        r#"Criterion A3: "alice" does not hold role "hr" with admin option, which "bob" does."#,
        Some("GRANT hr TO alice WITH ADMIN OPTION"),
    );
}

#[test]
fn a4_names_the_attribute() {
    let mut town = alice_and_bob();
    town.attributes_of("bob").createrole = true;
    check(
        &mut town,
        ["A4", "CREATEROLE", "CREATEROLE", "NOCREATEROLE"],
        r#"Criterion A4: "alice" does not have attribute CREATEROLE, which "bob" has."#,
        Some("ALTER ROLE alice CREATEROLE"),
    );
}

#[test]
fn a4_names_the_parameter_and_the_grant_option() {
    let mut town = alice_and_bob();
    town.parameter("bob", Some(false), None);
    check(
        &mut town,
        ["A4", "work_mem", "SET", "nothing"],
        r#"Criterion A4: "alice" does not have SET on parameter "work_mem", which "bob" has."#,
        Some("GRANT SET ON PARAMETER work_mem TO alice"),
    );
    let mut town = alice_and_bob();
    town.parameter("bob", None, Some(true))
        .parameter("alice", None, Some(false));
    town.parameters
        .iter_mut()
        .for_each(|privilege| privilege.parameter = "my.user".to_string());
    check(
        &mut town,
        ["A4", "my.user", "ALTER SYSTEM WITH GRANT OPTION", "ALTER SYSTEM"],
        r#"Criterion A4: "alice" does not have ALTER SYSTEM on parameter "my.user" with grant option, which "bob" has."#,
        Some(r#"GRANT ALTER SYSTEM ON PARAMETER my."user" TO alice WITH GRANT OPTION"#),
    );
}

#[test]
fn a5_asks_for_just_the_missing_part_of_any() {
    use Admin::{None as Use, Only, Option as Both};
    for (required, held, words, remedy) in [
        (Use, None, ["any", "nothing"], r#"GRANT "SET USER" TO alice"#),
        (
            Use,
            Some(Only),
            ["any", "any with admin only"],
            r#"GRANT "SET USER" TO alice"#,
        ),
        (
            Both,
            None,
            ["any with admin option", "nothing"],
            r#"GRANT "SET USER" TO alice WITH ADMIN OPTION"#,
        ),
        (
            Both,
            Some(Use),
            ["any with admin option", "any"],
            r#"GRANT "SET USER" TO alice WITH ADMIN OPTION"#,
        ),
        (
            Both,
            Some(Only),
            ["any with admin option", "any with admin only"],
            r#"GRANT "SET USER" TO alice"#,
        ),
        (
            Only,
            Some(Use),
            ["any with admin only", "any"],
            r#"GRANT "SET USER" TO alice WITH ADMIN OPTION"#,
        ),
        (
            Only,
            None,
            ["any with admin only", "nothing"],
            "SELECT impersonate.grant_set_user('alice', admin => 'only')",
        ),
    ] {
        let mut town = alice_and_bob();
        town.right("bob", Scope::Any, required);
        if let Some(held) = held {
            town.right("alice", Scope::Any, held);
        }
        let rendered = first_failed(&mut town);
        assert_eq!(
            [&*rendered.subject, &rendered.required, &rendered.held],
            ["SET USER ANY", words[0], words[1]]
        );
        assert_eq!(rendered.remedy.as_deref(), Some(remedy));
    }
    let mut town = alice_and_bob();
    town.any("bob");
    let sentence = r#"Criterion A5: "alice" does not hold SET USER over any user, which "bob" does."#;
    assert_eq!(first_failed(&mut town).sentence, sentence);
}

#[test]
fn a5_names_the_missing_entries_of_a_list() {
    let mut town = alice_and_bob();
    town.users("bob", &["bob", "carol", "Dave"]);
    check(
        &mut town,
        ["A5", "SET USER", r#"bob, carol, "Dave""#, "bob"],
        r#"Criterion A5: "alice" does not hold SET USER over "carol", "Dave", which "bob" does."#,
        Some(r#"GRANT "SET USER" (carol, "Dave") TO alice"#),
    );
    let mut town = alice_and_bob();
    town.with_roles("bob", &["sales"]);
    check(
        &mut town,
        ["A5", "SET USER ANY WITH ROLES", "sales", "nothing"],
        r#"Criterion A5: "alice" does not hold SET USER ANY WITH ROLES over "sales", which "bob" does."#,
        Some(r#"GRANT "SET USER ANY WITH ROLES" (sales) TO alice"#),
    );
}

#[test]
fn names_are_quoted_in_statements_and_left_as_they_are_elsewhere() {
    let mut town = Town::new();
    let verdict = town.judge("o'Brien", "bob\"; DROP ROLE x --");
    let rendered = verdict.first_failed().unwrap().render(&town);
    assert_eq!(
        rendered.remedy.as_deref(),
        Some(r#"GRANT "SET USER" ("bob""; DROP ROLE x --") TO "o'Brien""#)
    );
    assert_eq!(
        rendered.sentence,
        r#"Criterion A1: "o'Brien" holds no SET USER right over "bob"; DROP ROLE x --"."#
    );
    let (brien, bob) = (town.role("o'Brien"), town.role("bob"));
    town.right("bob", Scope::Any, Admin::Only);
    town.right("o'Brien", Scope::Users(vec![bob]), Admin::None);
    let verdict = judge(&town, Impersonator(brien), Target(bob), None, &RULES);
    assert_eq!(
        verdict.first_failed().unwrap().render(&town).remedy.as_deref(),
        Some(r#"SELECT impersonate.grant_set_user('"o''Brien"', admin => 'only')"#)
    );
}

#[test]
fn what_is_met_has_a_row_without_remedy() {
    let mut town = alice_and_bob();
    town.member("bob", "hr", ADMIN)
        .member("alice", "hr", ADMIN)
        .parameter("bob", Some(true), None);
    town.parameter("", Some(true), None);
    town.attributes_of("bob").createdb = true;
    town.attributes_of("alice").createdb = true;
    town.users("bob", &["bob"]);
    let rows: Vec<[String; 4]> = town
        .judge("alice", "bob")
        .conditions
        .iter()
        .map(|condition| {
            let rendered = condition.render(&town);
            assert!(rendered.ok && rendered.remedy.is_none());
            assert_eq!(rendered.sentence, format!("Criterion {} is met.", rendered.criterion));
            [
                rendered.criterion.to_string(),
                rendered.subject,
                rendered.required,
                rendered.held,
            ]
        })
        .collect();
    let expected = [
        ["S5", "bob", "LOGIN", "LOGIN"],
        ["S5", "bob", "valid", "valid"],
        ["A1", "SET USER", "users (bob)", "users (bob)"],
        ["A2", "hr", "role", "role"],
        ["A3", "hr", "role with admin option", "role with admin option"],
        ["A4", "CREATEDB", "CREATEDB", "CREATEDB"],
        ["A4", "work_mem", "SET WITH GRANT OPTION", "SET WITH GRANT OPTION"],
        ["A5", "SET USER", "bob", "bob"],
    ];
    assert_eq!(rows, expected);
}

#[test]
fn whom_nothing_is_asked_of_has_rows_too() {
    let mut town = alice_and_bob();
    town.attributes_of("postgres").superuser = true;
    for (impersonator, target, held) in [("alice", "alice", "is the target"), ("postgres", "bob", "superuser")] {
        let verdict = town.judge(impersonator, target);
        let a2 = verdict
            .conditions
            .iter()
            .find(|condition| condition.criterion == Criterion::A2)
            .unwrap();
        let rendered = a2.render(&town);
        assert_eq!(
            [&*rendered.subject, &rendered.required, &rendered.held],
            [impersonator, "roles", held]
        );
    }
    let verdict = town.judge("alice", "bob");
    let rendered = verdict.conditions.last().unwrap().render(&town);
    assert_eq!(
        [&*rendered.subject, &rendered.required, &rendered.held],
        ["bob", "nothing", "not needed"]
    );
}
