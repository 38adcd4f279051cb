//! The launcher: one small process on a server that is a standby, or was one and has a spool.
//!
//! It looks once a second which databases have a spool of this node's own. On a standby each gets a shipper, whoever
//! impersonates now or doesn't; after a promotion a writer, which takes the spool in. It leaves a server that is no
//! standby when there is nothing left to take in.

use super::{node, spool, spools, wait};
use crate::audit::queue;
use crate::pg::latch::{check_for_interrupts, nap, now};
use crate::pg::{backends, worker};
use pgrx::{pg_guard, pg_sys};
use std::collections::HashMap;
use std::path::Path;

/// Milliseconds between two looks.
const PAUSE: u32 = 1000;

/// Microseconds after which a worker is started again that ended, or didn't get on.
const AGAIN: i64 = 3_000_000;

/// Where the postmaster starts the launcher's process.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn impersonate_spool_launcher_main(_argument: pg_sys::Datum) {
    worker::set_up_signals();
    warn_of_deserted();
    if with_spool(&node::spools()).is_empty() && !worker::in_recovery() {
        return;
    }
    // To see which databases are there.
    worker::connect_launcher();
    let mut started: HashMap<u32, i64> = HashMap::new();
    while !worker::asked_to_end() {
        worker::reload_if_asked();
        check_for_interrupts();
        let standby = worker::in_recovery();
        let mut own = with_spool(&node::spools());
        if !own.is_empty() {
            // The spool of one that was dropped stays, for whoever wants it.
            worker::transaction(|| own.retain(|database| worker::database_exists(*database)));
        }
        if own.is_empty() && !standby {
            return;
        }
        for database in own {
            let due = started.get(&database).is_none_or(|at| now() - at > AGAIN);
            if due && !has_worker(database, standby) {
                start(database, standby);
                started.insert(database, now());
            }
        }
        nap(PAUSE);
    }
}

/// Events that were left behind when `impersonate.audit_spool_directory` was set are seen by nobody otherwise.
fn warn_of_deserted() {
    let deserted = node::deserted_spools().filter(|folder| !with_spool(folder).is_empty());
    if let Some(folder) = deserted {
        super::writer::log_line(format!(
            "impersonate audit spools of this node in \"{}\" are not sent: impersonate.audit_spool_directory is \"{}\". Stop \
             the server and move them there",
            folder.display(),
            node::spools().display()
        ));
    }
}

/// The databases that have a spool of this node's own in that folder.
fn with_spool(root: &Path) -> Vec<u32> {
    let mut databases = spool::databases(root);
    databases.retain(|database| {
        let Some(owner) = node::owner(*database) else {
            return false;
        };
        let segments = spool::segments(&spool::folder(root, *database)).unwrap_or_default();
        segments.iter().any(|segment| segment.is_of(&owner))
    });
    databases
}

fn has_worker(database: u32, standby: bool) -> bool {
    if standby {
        let shipper = spools::of(database).map_or(0, |place| place.shipping().pid);
        shipper != 0 && backends::lives(shipper)
    } else {
        queue::find(database).is_some_and(|lane| !lane.status().absent)
    }
}

fn start(database: u32, standby: bool) {
    if standby {
        if !worker::register_shipper(database) {
            if let Some(place) = spools::of(database) {
                place.failed(
                    *b"53400",
                    b"no background worker slot is free for the shipper; raise max_worker_processes",
                );
            }
        }
    } else if let Some(lane) = queue::assign(database) {
        wait::start_writer(lane);
    }
}
