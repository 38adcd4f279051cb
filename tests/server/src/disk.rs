//! A disk that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{account, Cluster};

/// A file system of its own, in memory, that the server may write to. Goes with this value.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounting takes root, or leave to make a name space of one's own for the tests: `unshare -rm` doesn't do, as
    /// the server must not be root.
    ///
    /// # Panics
    /// When it can't be mounted.
    #[track_caller]
    pub fn new(cluster: &Cluster, megabytes: usize) -> SmallDisk {
        let folder = cluster.host().join("small");
        fs::create_dir(&folder).unwrap();
        let mount = |command: &str| {
            let script = format!(
                "{command} -t tmpfs -o size={megabytes}m,mode=0777 impersonate-small '{}'",
                folder.display()
            );
            let done = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh can be run");
            done.status.success()
        };
        assert!(
            mount("mount") || mount("sudo -n mount"),
            "a small file system for the test of a full disk cannot be mounted: run the tests as root, or allow sudo mount"
        );
        let disk = SmallDisk { folder };
        fs::create_dir(disk.path()).unwrap();
        account::give(&disk.path()).unwrap();
        disk
    }

    /// For a tablespace.
    pub fn path(&self) -> PathBuf {
        self.folder.join("space")
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Takes back what `fill` took.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

/// Also while the server still has files open there.
fn unmount(folder: &Path) {
    let script = format!(
        "umount -l '{0}' 2>/dev/null || sudo -n umount -l '{0}'",
        folder.display()
    );
    let _ = Command::new("sh").args(["-c", &script]).status();
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}
