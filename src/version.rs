//! Whether the loaded library and the extension's objects in this database are of the same version: they are
//! installed by different hands at different times, the one by a restart, the others by ALTER EXTENSION.
//!
//! A switch, and GRANT and REVOKE of SET USER, need both to be the same. What ends an impersonation never asks.

use crate::pg::own_version;
use crate::session;
use crate::switch::refusal;
use pgrx::PgSqlErrorCode;
use std::borrow::Cow;
use std::cmp::Ordering;

/// The version of this library; the control file's `default_version` is the same.
pub fn library() -> Cow<'static, str> {
    // So that one build can stand for an older and a newer one.
    #[cfg(feature = "test-entries")]
    if let Ok(version) = std::env::var("IMPERSONATE_TEST_VERSION") {
        return version.into();
    }
    env!("CARGO_PKG_VERSION").into()
}

/// Raises unless this database's extension is of the library's version. Where there is none there is nothing to
/// disagree with.
pub fn require_same() {
    let library = library();
    if let Some(created) = own_version::created().filter(|created| *created != library) {
        disagree(&created, &library);
    }
}

/// Raises if this database's extension is of a newer version than the library: for the extension's scripts, which
/// may not make what only a newer library can serve. An older one is what each step but the last of an update has.
pub fn require_no_newer() {
    let library = library();
    if let Some(created) = own_version::created().filter(|created| compare(created, &library).is_gt()) {
        disagree(&created, &library);
    }
}

fn disagree(created: &str, library: &str) -> ! {
    let hint = if compare(created, library).is_gt() {
        format!("Install version {created} of the library, unless it is there, and restart the server.")
    } else {
        "ALTER EXTENSION impersonate UPDATE;".to_owned()
    };
    session::raise(&refusal(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "extension \"impersonate\" and its library are of different versions".to_owned(),
        Some(format!(
            "The extension in this database is of version {created}, the library that the server has loaded of \
             {library}."
        )),
        Some(hint),
    ))
}

/// By their numbers: 0.10 is newer than 0.9, and 0.1.0beta no newer than 0.1.0.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split('.')
            .map(|part| {
                let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
                part[..end].parse().unwrap_or(0)
            })
            .collect()
    };
    let (mut one, mut other) = (numbers(one), numbers(other));
    let length = one.len().max(other.len());
    one.resize(length, 0);
    other.resize(length, 0);
    one.cmp(&other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        for (older, newer) in [
            ("0.1.0", "0.1.1"),
            ("0.9", "0.10"),
            ("0.1", "0.1.1"),
            ("9.9.9", "10"),
            ("", "1"),
            ("x", "1.y"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        }
        for (one, other) in [
            ("0.1", "0.1.0"),
            ("0.1.0beta", "0.1.0"),
            ("", ""),
            ("99999999999999999999", "0"),
        ] {
            assert_eq!(compare(one, other), Ordering::Equal, "{one} {other}");
        }
    }
}
