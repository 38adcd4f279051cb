//! Programs of others that tests use, and what to say where a test can't be made.

use std::io::Write;
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

/// For a test that finds that it can't try its subject here, and returns: tells whoever runs the tests, who counts it
/// as left out.
pub fn left_out(why: &str) {
    let test = std::thread::current();
    let line = format!("\nleft out: {}: {why}\n", test.name().unwrap_or("a test"));
    // Not by a macro, whose output is kept back when the test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
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
