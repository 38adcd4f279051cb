//! The account that servers run as: one's own, or an unprivileged one when that is root, as which Postgres refuses
//! to run.

use std::fs;
use std::io;
use std::os::unix::fs::{chown, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// `None`: the account that the tests run as.
fn other() -> Option<(u32, u32)> {
    static OTHER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *OTHER.get_or_init(|| {
        let me = fs::metadata("/proc/self").expect("/proc is mounted").uid();
        if me != 0 {
            return None;
        }
        let accounts = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let found = ["postgres", "nobody"].iter().find_map(|name| {
            accounts.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                match fields[..] {
                    [account, _, uid, gid, ..] if account == *name => Some((uid.parse().ok()?, gid.parse().ok()?)),
                    _ => None,
                }
            })
        });
        Some(found.expect("as root, servers run as postgres or nobody, and there is neither"))
    })
}

/// Lets `command` run as that account.
pub fn run_as(command: &mut Command) {
    if let Some((uid, gid)) = other() {
        command.uid(uid).gid(gid);
    }
}

/// Gives `path` to that account.
pub fn give(path: &Path) -> io::Result<()> {
    match other() {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
