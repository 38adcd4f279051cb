//! Which node this is.

use pgrx::pg_sys;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Where the server logs that `impersonate.primary_conninfo` has changed, it says the new value, which may have a password
/// in it: the message is cut before that.
///
/// # Safety
/// Null or a C string that may be written to.
pub unsafe fn hide_conninfo(message: *mut std::ffi::c_char) {
    const BEGIN: &[u8] = b"parameter \"impersonate.primary_conninfo\" changed";
    if message.is_null() {
        return;
    }
    // SAFETY: the caller's promise; what is written lies inside the string, and ends it.
    unsafe {
        if CStr::from_ptr(message).to_bytes().starts_with(BEGIN) {
            *message.add(BEGIN.len()) = 0;
        }
    }
}

/// What all nodes of a cluster share, and no other cluster has.
pub fn system_identifier() -> u64 {
    // SAFETY: reads the control file's copy in memory.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The data folder.
pub fn data_folder() -> PathBuf {
    // SAFETY: set at the server's start, and never changed.
    let folder = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    PathBuf::from(OsStr::from_bytes(folder.to_bytes()))
}

/// The setting of that name, if it is there.
pub fn setting(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: a C string; null for what is missing, else a string that is copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes().to_vec())
    }
}
