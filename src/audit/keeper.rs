//! The writer's work on a standby, where nothing can be inserted: events go into the spool (N2).
//!
//! An event leaves the queue after it was synced, and from the sync to that no function is called that could raise: so
//! it is neither lost nor doubled, as with the table.

use super::node;
use super::queue::LaneHandle;
use super::spool::{self, Owner, Spool, Trouble};
use super::spools;
use crate::pg::latch::now;
use crate::pg::rights::random_uuid;
use crate::pg::worker::nodes::{self, Known};
use crate::pg::worker::{self, Failure};
use std::path::Path;

/// Microseconds after which the writer looks again whether its spool was retired, or its node has another name.
const LOOK_AGAIN: i64 = 2_000_000;

/// Microseconds for which a full spool is no failure, after it became full or the primary took events.
const PATIENCE: i64 = 5_000_000;

/// The spool of the writer's database.
pub(super) struct Keeper {
    spool: Option<Spool>,
    looked_at: i64,
    warned: bool,
    full: Full,
}

/// Since when there is no room, or since when the primary has this much.
#[derive(Default)]
struct Full {
    since: Option<i64>,
    confirmed: u64,
}

impl Full {
    fn hopeful(&mut self) -> bool {
        let place = spools::known(worker::my_database());
        let confirmed = place.map_or(0, |place| place.shipping().confirmed);
        if self.since.is_none() || confirmed > self.confirmed {
            *self = Full {
                since: Some(now()),
                confirmed,
            };
        }
        self.since.is_some_and(|since| now() - since < PATIENCE)
    }
}

/// What became of events.
pub(super) enum Kept {
    /// So many, up to this position of the queue.
    Stored(usize, u64),
    /// There is no room, but there may be soon.
    Full,
    NoExtension,
}

pub(super) fn failure(trouble: &Trouble) -> Failure {
    Failure {
        sqlstate: trouble.sqlstate(),
        message: trouble.to_string(),
        detail: None,
    }
}

/// The spools that are retired.
pub(super) fn retired(known: &[Known]) -> impl Fn(&[u8; 16]) -> bool + '_ {
    |id| known.iter().any(|known| known.retired && known.spool == *id)
}

/// Removes what has come back of this node's own spools, but for the `keep` newest segments; and puts aside what is left of
/// those that are retired. If one may be open in a writer, that is asked to.
pub(super) fn tidy(folder: &Path, owner: &Owner, known: &[Known], keep: usize) -> Result<(), Failure> {
    let segments = spool::segments(folder).map_err(|trouble| failure(&trouble))?;
    let is_here = |known: &&Known| {
        let of_it = |segment: &spool::Segment| segment.head.as_ref().is_some_and(|head| head.spool == known.spool);
        known.node == owner.node && segments.iter().any(of_it)
    };
    for known in known.iter().filter(is_here) {
        let lane = super::queue::find(owner.database).filter(|lane| !lane.status().absent && !super::is_writer());
        if let Some(lane) = lane.filter(|_| known.retired) {
            if let Some(place) = spools::of(owner.database) {
                place.ask_to_look();
                lane.wake();
            }
        } else if known.retired {
            let first = spool::put_aside(folder, owner, &known.spool, known.position);
            if let Some(first) = first.map_err(|trouble| failure(&trouble))? {
                super::writer::log_line(format!(
                    "impersonate audit spool {} of node \"{}\" is retired; its events from position {first} on are not on the \
                     primary and stay in \"{}\"",
                    pgrx::Uuid::from_bytes(known.spool),
                    String::from_utf8_lossy(&owner.node),
                    folder.display()
                ));
            }
        } else {
            spool::remove_confirmed(folder, owner, &known.spool, known.position, keep)
                .map_err(|trouble| failure(&trouble))?;
        }
    }
    Ok(())
}

impl Keeper {
    pub const fn new() -> Self {
        Keeper {
            spool: None,
            looked_at: 0,
            warned: false,
            full: Full {
                since: None,
                confirmed: 0,
            },
        }
    }

    /// Whatever was open isn't any more.
    pub fn close(&mut self) {
        self.spool = None;
    }

    /// Whether it looks again what became of its spool, and does so.
    pub fn look_if_asked(&mut self) -> Result<(), Failure> {
        let asked = spools::known(worker::my_database()).is_some_and(|place| place.take_look());
        if asked {
            self.looked_at = 0;
            self.look_if_due()?;
        }
        Ok(())
    }

    /// Looks again if it is time to. Whether the extension is there.
    fn look_if_due(&mut self) -> Result<bool, Failure> {
        if self.spool.is_none() || now() - self.looked_at > LOOK_AGAIN {
            let known = worker::catch(|| worker::transaction(nodes::known))?;
            let Some(known) = known else {
                return Ok(false);
            };
            self.look(&known)?;
        }
        Ok(true)
    }

    /// Stores the oldest events of the queue.
    pub fn store(
        &mut self,
        lane: LaneHandle,
        scratch: &mut Vec<u8>,
        max_events: usize,
        max_bytes: u64,
    ) -> Result<Kept, Failure> {
        if !self.look_if_due()? {
            return Ok(Kept::NoExtension);
        }
        let limit = node::spool_limit();
        let mut events = Vec::new();
        // No more at once than fits beside what stays in the spool in any case.
        let read = lane.read_bytes(scratch, max_events, max_bytes.min(limit / 8), |bytes| {
            super::event::decode(bytes)?;
            events.push(bytes.to_vec());
            Some(true)
        });
        let (count, position) = read.ok_or_else(|| Failure {
            sqlstate: *b"XX000",
            message: "the audit queue holds something that is not an event".to_owned(),
            detail: None,
        })?;
        if let Some(spool) = &mut self.spool {
            match spool.append(&events, limit) {
                Err(Trouble::Full { .. }) if self.full.hopeful() => return Ok(Kept::Full),
                done => done.map_err(|trouble| failure(&trouble))?,
            }
            self.full = Full::default();
            if let Some(place) = spools::of(worker::my_database()) {
                place.set_stored(spool.last());
            }
        }
        Ok(Kept::Stored(count, position))
    }

    /// Opens the spool, unless it is open and not retired.
    fn look(&mut self, known: &[Known]) -> Result<(), Failure> {
        self.looked_at = now();
        let retired = retired(known);
        let database = worker::my_database();
        let open = |spool: &Spool| !retired(&spool.id()) && node::owner(database).as_ref() == Some(spool.owner());
        if self.spool.as_ref().is_some_and(open) {
            return Ok(());
        }
        self.spool = None;
        let owner = node::owner(database).ok_or_else(|| Failure {
            sqlstate: *b"55000",
            message: "this standby has no name to keep audit events under".to_owned(),
            detail: None,
        })?;
        let folder = node::folder(database);
        let given_up: Vec<Known> = known.iter().filter(|known| known.retired).cloned().collect();
        tidy(&folder, &owner, &given_up, 0)?;
        self.warn_of_strangers(&folder, &owner);
        let spool = Spool::open(&folder, &owner, random_uuid(), &retired).map_err(|trouble| failure(&trouble))?;
        let recorded = known.iter().find(|known| known.spool == spool.id());
        if let Some(recorded) = recorded.filter(|recorded| recorded.position > spool.last()) {
            // Numbers that were given already would be taken for events that the primary has.
            return Err(Failure {
                sqlstate: *b"XX001",
                message: format!(
                    "the audit spool ends with position {}, and the primary has {}",
                    spool.last(),
                    recorded.position
                ),
                detail: None,
            });
        }
        if let Some(place) = spools::of(database) {
            place.set_stored(spool.last());
        }
        self.spool = Some(spool);
        Ok(())
    }

    /// Spools that came with a base backup: they are let alone, and once a writer's life it is said so.
    pub fn warn_of_strangers(&mut self, folder: &Path, owner: &Owner) {
        if std::mem::replace(&mut self.warned, true) {
            return;
        }
        for segment in spool::segments(folder).unwrap_or_default() {
            if let Some(head) = segment.head.filter(|head| head.owner != *owner) {
                super::writer::log_line(format!(
                    "impersonate audit spool \"{}\" is that of node \"{}\" of system {}, not this node's; it is left alone",
                    segment.path.display(),
                    String::from_utf8_lossy(&head.owner.node),
                    head.owner.system
                ));
            }
        }
    }
}
