//! Programs of others that tests use.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What `scripts/fetch-tools.sh` fetched, else the first of the installed ones that is there.
///
/// # Panics
/// When there is none.
pub fn fetched(name: &str, installed: &[&str]) -> PathBuf {
    // Not by way of the checkout: where that is closed to the account that servers run as, the tools are elsewhere.
    let tools = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.tools")
        .canonicalize();
    let fetched = tools.map(|tools| tools.join(name).join("run")).ok();
    fetched
        .into_iter()
        .chain(installed.iter().map(PathBuf::from))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("there is no {name}: scripts/fetch-tools.sh {name}"))
}

/// Sends a signal, such as `STOP`. Returns whether it could be sent.
pub fn signal(name: &str, pid: impl std::fmt::Display) -> bool {
    // The shell's own kill: a program of that name need not be installed.
    Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid} 2>/dev/null")])
        .status()
        .expect("sh can be run")
        .success()
}
