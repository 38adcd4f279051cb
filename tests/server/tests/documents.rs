//! Tables of the documents against what there is. Their SQL is run by `src/bin/documents.rs`.

use impersonate_server_tests::Cluster;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap()
}

/// The cells of a table's rows, the first of which begins with `head`.
fn table(text: &str, head: &str) -> Vec<Vec<String>> {
    let begin = text.find(head).unwrap_or_else(|| panic!("there is no table {head}"));
    text[begin..]
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

/// What is between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = String> + '_ {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[test]
fn each_setting_is_in_the_administrators_table_with_its_default_and_who_may_set_it() {
    let cluster = Cluster::start_new();
    let mut client = cluster.connect("postgres", "postgres");
    let rows = client
        .query(
            "SELECT name, current_setting(name), context FROM pg_settings
              WHERE name LIKE 'impersonate.%' AND source = 'default'",
            &[],
        )
        .unwrap();
    let found: BTreeMap<String, (String, String)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    assert!(found.len() > 20, "{found:?}");
    let mut told = BTreeMap::new();
    for cells in table(
        &document("administrator.md"),
        "| setting | default | who sets it | meaning |",
    ) {
        let name = quoted(&cells[0]).next().unwrap();
        let default = quoted(&cells[1]).next().unwrap_or_default();
        let context = match (cells[2].as_str(), name.as_str()) {
            ("superuser", _) => "superuser",
            ("configuration file", _) => "sighup",
            ("at server start", _) => "postmaster",
            ("anybody" | "anybody with a right", _) => "user",
            ("nobody", _) => "internal",
            (other, _) => other,
        };
        told.insert(name, (default, context.to_owned()));
    }
    assert_eq!(told, found);
}

#[test]
fn each_column_of_the_audit_is_in_the_auditors_table() {
    let cluster = Cluster::start_new();
    let database = cluster.database("columns");
    let found: Vec<String> = database
        .connect("postgres")
        .query(
            "SELECT attname::text FROM pg_attribute
              WHERE attrelid = 'impersonate.audit'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let told: BTreeSet<String> = table(&document("auditor.md"), "| column | meaning |")
        .iter()
        .flat_map(|cells| quoted(&cells[0]).collect::<Vec<_>>())
        .collect();
    assert_eq!(told.into_iter().collect::<Vec<_>>(), found);
}

/// What the audit's own comment says there are, which is also what the events' source says.
#[test]
fn each_event_is_in_the_auditors_table() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/audit/event.rs")).unwrap();
    let found: BTreeSet<String> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Kind::")?.split_once(" => \""))
        .map(|(_, word)| word.trim_end_matches("\",").to_owned())
        .collect();
    assert!(found.len() > 9, "{found:?}");
    let told: BTreeSet<String> = table(&document("auditor.md"), "| event | recorded when |")
        .iter()
        .flat_map(|cells| quoted(&cells[0]).collect::<Vec<_>>())
        .collect();
    assert_eq!(told, found);
}
