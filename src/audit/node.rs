//! Which node of its cluster this server is, and how it reaches the primary (N2).

use super::spool::{self, Owner};
use crate::pg::{node, worker};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

// None: cluster_name, which those who have several nodes often set anyway.
static NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

// None: nothing is sent; events wait in the spool.
static PRIMARY_CONNINFO: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

// None: in the data folder, where a base backup takes them along, and pg_rewind takes them away.
static SPOOL_DIRECTORY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// In megabytes, for each database. A million statements of ordinary length.
static SPOOL_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(1024);

pub(super) fn define_settings() {
    GucRegistry::define_string_guc(
        c"impersonate.node_name",
        c"The name of this node in the audit; empty: cluster_name.",
        c"A standby on which somebody impersonates needs one that no other node has.",
        &NAME,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"impersonate.primary_conninfo",
        c"How a standby reaches the primary to hand over its audit events.",
        c"A connection string without a database. Keep a password out of it: name a passfile.",
        &PRIMARY_CONNINFO,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"impersonate.audit_spool_directory",
        c"The folder of a standby's audit spools; empty: impersonate_spool in the data folder.",
        c"Elsewhere, pg_rewind and a new base backup leave it alone.",
        &SPOOL_DIRECTORY,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"impersonate.audit_spool_limit",
        c"Disk space on a standby for the audit events of one database that the primary has not confirmed.",
        c"When it is used up, impersonated statements wait, and then fail.",
        &SPOOL_LIMIT,
        1,
        1024 * 1024,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
}

/// The name of this node; None when it has none.
pub fn name() -> Option<Vec<u8>> {
    let own = NAME.get().map(CString::into_bytes).filter(|name| !name.is_empty());
    let mut name = own.or_else(|| node::setting(c"cluster_name").filter(|name| !name.is_empty()))?;
    name.truncate(spool::NODE_BYTES);
    // As the server does with cluster_name: it must mean the same in every encoding.
    for byte in &mut name {
        if !(0x20..0x7F).contains(byte) {
            *byte = b'?';
        }
    }
    Some(name)
}

/// Whose the spool of a database on this node is; None without a name.
pub(super) fn owner(database: u32) -> Option<Owner> {
    Some(Owner {
        system: node::system_identifier(),
        node: name()?,
        database,
    })
}

/// The folder of all spools.
pub(super) fn spools() -> PathBuf {
    let folder = spool_directory().map_or_else(
        || spool::FOLDER.into(),
        |folder| OsString::from_vec(folder.into_bytes()),
    );
    node::data_folder().join(folder)
}

fn spool_directory() -> Option<CString> {
    SPOOL_DIRECTORY.get().filter(|folder| !folder.is_empty())
}

/// The folder in which spools would be by themselves, if they are to be elsewhere.
pub(super) fn deserted_spools() -> Option<PathBuf> {
    let folder = node::data_folder().join(spool::FOLDER);
    (spool_directory().is_some() && folder != spools()).then_some(folder)
}

/// Whether other nodes may have their spools where this one has its own.
pub fn shares_spools() -> bool {
    spool_directory().is_some()
}

/// The folder of a database's spool.
pub(super) fn folder(database: u32) -> PathBuf {
    spool::folder(&spools(), database)
}

/// Bytes that a database's spool may take.
pub(super) fn spool_limit() -> u64 {
    u64::try_from(SPOOL_LIMIT.get()).unwrap_or(1) * 1024 * 1024
}

/// How to reach the primary; None when that isn't set.
pub(super) fn primary_conninfo() -> Option<CString> {
    PRIMARY_CONNINFO.get().filter(|conninfo| !conninfo.is_empty())
}

/// Whether events can't be kept here: on a standby without a name.
pub(super) fn lacks_name() -> bool {
    worker::in_recovery() && name().is_none()
}
