//! One folder per test process for all its clusters, and a shell that outlives the process just long enough to stop
//! the servers and delete the folder: statics are never dropped, and a killed process drops nothing.

use std::env;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::OnceLock;

use crate::account;

/// The end of the pipe on standard input is the end of the test process. A server is stopped by the pid in its
/// folder, and only if that process works in that folder: a pid left behind by a crash may be somebody else's, and an
/// ended process may stay in the list for a while.
const CLEAN_UP: &str = r#"
    trap '' INT TERM HUP
    cat >/dev/null
    for data in "$1"/*/data; do
        [ -f "$data/postmaster.pid" ] || continue
        read -r pid <"$data/postmaster.pid"
        while [ "$(readlink "/proc/$pid/cwd")" = "$data" ]; do
            kill -QUIT "$pid"
            sleep 0.1
        done
    done
    for small in "$1"/*/small; do
        [ ! -d "$small" ] || umount -l "$small" 2>/dev/null || sudo -n umount -l "$small" 2>/dev/null
    done
    rm -rf "$1"
"#;

struct Guard {
    folder: PathBuf,
    // Its standard input is held open and never written to.
    _shell: Child,
}

/// The folder below which this process keeps its clusters. Closed to other users: whoever reaches a socket there is
/// trusted.
pub fn folder() -> &'static Path {
    static GUARD: OnceLock<Guard> = OnceLock::new();
    &GUARD.get_or_init(start).folder
}

fn start() -> Guard {
    let mut base = env::temp_dir();
    // The path of a socket may not exceed 107 bytes.
    if base.as_os_str().as_bytes().len() > 60 {
        base = PathBuf::from("/tmp");
    }
    let base = base.canonicalize().expect("the folder for temporary files exists");
    let folder = (0..1000)
        .map(|attempt| base.join(format!("impersonate-{}-{attempt}", process::id())))
        .find(|folder| fs::create_dir(folder).is_ok())
        .expect("a folder can be made for temporary files");
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    account::give(&folder).unwrap();
    let shell = Command::new("sh")
        .args(["-c", CLEAN_UP, "clean-up"])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Not to be interrupted together with the tests.
        .process_group(0)
        .spawn()
        .expect("sh can be run");
    Guard { folder, _shell: shell }
}
