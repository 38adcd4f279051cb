//! The scenario of the vendor's manual: five users, A2 and A3 assumed met, every one as every other.

use crate::town::{failed, Town};
use impersonate_policy::{Admin, Scope};

fn five_users() -> Town {
    let mut town = Town::new();
    town.any("U1");
    town.users("U2", &["U1", "U4"]);
    town.users("U3", &["U1", "U2", "U4", "U5"]);
    town.with_roles("U3", &["R1", "R2"]);
    town.any("U4");
    town.with_roles("U4", &["R1"]);
    town.users("U5", &["U4"]);
    town.with_roles("U5", &["R1"]);
    town
}

/// Rows are impersonators, columns are targets; a cell is what fails.
const CELLS: [[&str; 5]; 5] = [
    ["", "", "", "", ""],
    ["A5", "", "A1,A5", "A5", "A1,A5"],
    ["A5", "", "", "A5", ""],
    ["", "", "", "", ""],
    ["A1,A5", "A1,A5", "A1,A5", "A5", ""],
];

#[test]
fn the_five_users_of_the_manual_may_act_as_each_other_as_it_says() {
    let mut town = five_users();
    for (row, cells) in CELLS.iter().enumerate() {
        for (column, expected) in cells.iter().enumerate() {
            let (impersonator, target) = (format!("U{}", row + 1), format!("U{}", column + 1));
            let verdict = town.judge(&impersonator, &target);
            assert_eq!(failed(&verdict), *expected, "{impersonator} as {target}");
            assert_eq!(verdict.allowed(), expected.is_empty());
        }
    }
}

#[test]
fn the_scenario_does_not_depend_on_the_order_or_grantor_of_the_grants() {
    let mut town = five_users();
    town.rights.reverse();
    // The same list in two rights of two grantors.
    let (u2, lead) = (town.role("U2"), town.role("lead"));
    let [u1, u4] = [town.role("U1"), town.role("U4")];
    let whole = town.rights.iter().position(|right| right.grantee == u2).unwrap();
    town.rights[whole].scope = Scope::Users(vec![u1]);
    town.right("U2", Scope::Users(vec![u4]), Admin::None);
    town.rights.last_mut().unwrap().grantor = lead;
    for (row, cells) in CELLS.iter().enumerate() {
        for (column, expected) in cells.iter().enumerate() {
            let verdict = town.judge(&format!("U{}", row + 1), &format!("U{}", column + 1));
            assert_eq!(failed(&verdict), *expected);
        }
    }
}
