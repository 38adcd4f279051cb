//! SECURITY.md names the tests that show what it says. They are there.

use std::fs;
use std::path::{Path, PathBuf};

/// What stands between backquotes in a document.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_test_that_is_named_there_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = text_of(&root.join("SECURITY.md"));
    let mut named = 0;
    for name in quoted(&document) {
        let file: Option<(PathBuf, &str)> = if let Some(test) = name.strip_suffix(".sql") {
            Some((root.join("tests/pg_regress/sql").join(&name), test))
        } else if let Some(test) = name.strip_suffix(".spec") {
            Some((root.join("tests/isolation/specs").join(&name), test))
        } else {
            name.strip_prefix("policy::")
                .unwrap_or(&name)
                .split_once("::")
                .map(|(file, test)| {
                    let folder = if name.starts_with("policy::") {
                        "policy/tests/policy"
                    } else {
                        "tests/server/tests"
                    };
                    (root.join(folder).join(format!("{file}.rs")), test)
                })
        };
        let Some((path, test)) = file.filter(|(_, test)| !test.is_empty()) else {
            continue;
        };
        named += 1;
        let text = text_of(&path);
        if path.extension().is_some_and(|extension| extension != "rs") {
            continue;
        }
        // A function, or an entry of a list of attacks. A star stands for the rest of a name.
        let beginning = test.trim_end_matches('*');
        assert!(!beginning.contains('*'), "{name}: a star stands at the end");
        let is_there = text.lines().any(|line| {
            let line = line.trim_start();
            let line = line.strip_prefix("fn ").unwrap_or(line);
            line.strip_prefix(beginning)
                .is_some_and(|rest| beginning != test || rest.starts_with(['(', ' ']))
        });
        assert!(is_there, "{} has no {test}", path.display());
    }
    assert!(named > 100, "only {named} are named");
}
