//! scripts/install.sh: what it installs was built for that server and with those features, whatever was built before it
//! in the same checkout. Compiling takes minutes, so cargo and the servers are made up here: a cargo that writes down
//! what it was asked for, under the one name that it gives to a library whatever that is built for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use impersonate_server_tests::unique;

/// Like cargo: the folder is the one of `CARGO_TARGET_DIR`, and the name is the same for all.
const CARGO: &str = r#"#!/bin/bash
set -eu
target=${CARGO_TARGET_DIR:-$MADE_UP/target}
if [ "$1" = metadata ]; then
    echo "{\"packages\":[],\"target_directory\":\"$target\",\"version\":1}"
    exit
fi
[ "$1" = build ]
folder=debug features=
while [ $# -gt 0 ]; do
    case $1 in
        --release) folder=release ;;
        --features) features=$2; shift ;;
    esac
    shift
done
mkdir -p "$target/$folder"
# Others that build at the same time have the time to meet.
echo "$features" >"$target/$folder/libimpersonate.so"
sleep 0.3
"#;

struct Checkout {
    folder: PathBuf,
}

impl Checkout {
    fn new() -> Checkout {
        let folder = std::env::temp_dir().join(format!("{}_{}", unique("install"), std::process::id()));
        let made_up = Checkout { folder };
        made_up.program("bin/cargo", CARGO);
        for major in [15, 16] {
            let home = made_up.folder.join(format!("pg{major}"));
            fs::create_dir_all(home.join("headers")).unwrap();
            fs::write(home.join("headers/postgres.h"), "").unwrap();
            made_up.program(
                &format!("pg{major}/pg_config"),
                &format!(
                    "#!/bin/sh\ncase $1 in\n--version) echo 'PostgreSQL {major}.1' ;;\n--pkglibdir) echo {0}/lib ;;\n\
                     --sharedir) echo {0}/share ;;\n--includedir-server) echo {0}/headers ;;\nesac\n",
                    home.display()
                ),
            );
        }
        made_up
    }

    fn program(&self, name: &str, text: &str) {
        let file = self.folder.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, major: u32, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/install.sh");
        let mut command = Command::new("bash");
        command
            .arg(script)
            .arg("--pg-config")
            .arg(self.folder.join(format!("pg{major}/pg_config")))
            .args(arguments)
            .env("PATH", format!("{}:/usr/bin:/bin", self.folder.join("bin").display()))
            .env("MADE_UP", &self.folder)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("DESTDIR");
        command
    }

    fn install(&self, major: u32, arguments: &[&str]) -> Output {
        self.command(major, arguments).output().unwrap()
    }

    /// What was installed into that server: the features it was built with.
    fn installed(&self, major: u32) -> String {
        let library = self.folder.join(format!("pg{major}/lib/impersonate.so"));
        fs::read_to_string(library).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[track_caller]
fn works(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// SPEC section 8: what was built for one major is never installed into another's server.
#[test]
fn what_was_built_for_another_major_is_not_installed() {
    let made_up = Checkout::new();
    works(&made_up.install(15, &["--build-only"]));
    let refused = made_up.install(16, &["--no-build"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("nothing is built for PostgreSQL 16"), "{said}");
    assert!(said.contains("make build PG_CONFIG="), "{said}");
    works(&made_up.install(16, &["--build-only"]));
    // As README says for those who copy as root: 15's library, though 16's was built last.
    works(&made_up.install(15, &["--no-build"]));
    works(&made_up.install(16, &["--no-build"]));
    assert_eq!([made_up.installed(15), made_up.installed(16)], ["pg15", "pg16"]);
}

/// A library with entries for tests is never taken for the one that is released, nor one without optimisation.
#[test]
fn what_was_built_otherwise_is_not_installed() {
    let made_up = Checkout::new();
    works(&made_up.install(15, &["--build-only", "--features", "test-entries"]));
    works(&made_up.install(15, &["--build-only", "--dev"]));
    let refused = made_up.install(15, &["--no-build"]);
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(made_up.installed(15), "");
    works(&made_up.install(15, &["--no-build", "--features", "test-entries"]));
    assert_eq!(made_up.installed(15), "pg15,test-entries");
    // In whatever order, and however they are put apart.
    works(&made_up.install(15, &["--build-only", "--features", "b,a"]));
    works(&made_up.install(15, &["--no-build", "--features", "a b"]));
    assert_eq!(made_up.installed(15), "pg15,b,a");
}

/// Two majors at once in one checkout.
#[test]
fn two_majors_at_once_do_not_meet() {
    let made_up = Checkout::new();
    let both: Vec<_> = [15, 16]
        .map(|major| made_up.command(major, &[]).spawn().unwrap())
        .into_iter()
        .collect();
    for mut one in both {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!([made_up.installed(15), made_up.installed(16)], ["pg15", "pg16"]);
}

/// The library's place is the server's, by the folders of its pg_config, and is left without a trace.
#[test]
fn what_is_installed_can_be_taken_out_again() {
    let made_up = Checkout::new();
    works(&made_up.install(15, &[]));
    let home = made_up.folder.join("pg15");
    let files = |folder: &str| fs::read_dir(home.join(folder)).unwrap().count();
    assert_eq!(files("lib"), 1);
    assert!(files("share/extension") >= 2, "the control file and the script");
    works(&made_up.install(15, &["--uninstall"]));
    assert_eq!((files("lib"), files("share/extension")), (0, 0));
}
