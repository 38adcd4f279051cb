//! The shipper: on a standby, one process for each database with a spool, which sends its events to the primary (N2).
//!
//! It asks the primary what it has of this spool, sends what comes next, and is told again what is there. What was sent
//! and not stored is sent again, and what was stored already is passed over there: so it may be killed at any moment.
//! A segment is removed when this standby's own, replayed copy of `impersonate.audit_node` has its last event: then the
//! rows are here as well, and no promotion can lose them.

use super::keeper::{self, failure, retired};
use super::node;
use super::spool::{self, Owner, Reader};
use super::spools::{self, Spool};
use crate::pg::latch::{check_for_interrupts, nap, now};
use crate::pg::libpq::{Connection, Parameter, Trouble};
use crate::pg::worker::nodes;
use crate::pg::worker::rows::one_text;
use crate::pg::worker::{self, Failure};
use crate::pg::{backends, identity};
use pgrx::{pg_guard, pg_sys};
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of events that are sent at once.
const BATCH: usize = 512 * 1024;

/// Segments that stay though their events have come back: the one that is written to, and one more, as of a primary that
/// is lost the end may be lost too, and this copy of it when it is rewound.
const KEEP: usize = 2;

/// Milliseconds between two looks at the spool.
const NAP: u32 = 100;

/// Milliseconds after which a connection that is being made is given up, and an answer that doesn't come. The primary
/// waits for its own writer, as long as its `impersonate.audit_wait_limit` says.
const CONNECT_LIMIT: u32 = 10_000;
const ANSWER_LIMIT: u32 = 120_000;

/// Milliseconds of pause after a failure: the first, and the longest.
const PAUSE: u32 = 200;
const LONGEST_PAUSE: u32 = 5_000;

/// Microseconds between two looks at who impersonates here.
const LOOK_EVERY: i64 = 500_000;

/// Microseconds between two reports of who impersonates here, while nothing changes.
const REPORT_EVERY: i64 = 10_000_000;

static MY_DATABASE: AtomicU32 = AtomicU32::new(0);

/// Where the postmaster starts the shipper's process.
#[pg_guard]
#[no_mangle]
pub extern "C-unwind" fn impersonate_audit_shipper_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    worker::at_exit(at_exit);
    worker::set_up_signals();
    worker::connect_shipper(database);
    super::writer::set_settings();
    MY_DATABASE.store(database, Ordering::Relaxed);
    let Some(place) = spools::of(database) else { return };
    if place.claim(worker::my_pid(), backends::lives) {
        Shipper::new(database, place).run();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    let database = MY_DATABASE.load(Ordering::Relaxed);
    if let Some(place) = Some(database).filter(|database| *database != 0).and_then(spools::of) {
        place.give_up(worker::my_pid());
    }
}

struct Shipper {
    database: u32,
    place: Spool,
    folder: PathBuf,
    connection: Option<Connection>,
    /// What it was made with.
    conninfo: CString,
    /// Whose spool is read, and how far.
    reader: Option<(Owner, Reader)>,
    /// What the primary said to have, since this connection was made.
    confirmed: Option<([u8; 16], u64)>,
    failures: u32,
    /// The newest report of who impersonates here.
    reported: Option<(i64, Vec<u8>)>,
    looked_at: i64,
    said: String,
}

enum Step {
    Sent,
    Nothing,
}

impl Shipper {
    fn new(database: u32, place: Spool) -> Self {
        Shipper {
            database,
            place,
            folder: node::folder(database),
            connection: None,
            conninfo: CString::default(),
            reader: None,
            confirmed: None,
            failures: 0,
            reported: None,
            looked_at: 0,
            said: String::new(),
        }
    }

    fn run(&mut self) {
        while !worker::asked_to_end() && worker::in_recovery() {
            match self.step() {
                Ok(Step::Sent) => self.failures = 0,
                Ok(Step::Nothing) => {
                    self.failures = 0;
                    nap(NAP);
                }
                Err(failure) => self.note(&failure),
            }
        }
    }

    /// Takes note of a failure, and pauses.
    fn note(&mut self, failure: &Failure) {
        self.connection = None;
        self.confirmed = None;
        self.reader = None;
        self.reported = None;
        if worker::asked_to_end() {
            return;
        }
        self.place.set_connected(false);
        self.place.failed(failure.sqlstate, failure.message.as_bytes());
        // Once, as long as it stays the same.
        if self.said != failure.message {
            self.said = failure.message.clone();
            super::writer::log_line(format!(
                "impersonate audit shipper could not send events, they are kept: {}, SQLSTATE {}",
                failure.message,
                String::from_utf8_lossy(&failure.sqlstate)
            ));
        }
        let pause = PAUSE << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        nap(pause.min(LONGEST_PAUSE));
    }

    fn step(&mut self) -> Result<Step, Failure> {
        worker::catch(|| {
            worker::reload_if_asked();
            check_for_interrupts();
        })?;
        let Some(owner) = node::owner(self.database) else {
            return Ok(Step::Nothing);
        };
        let Some(known) = worker::catch(|| worker::transaction(nodes::known))? else {
            return Ok(Step::Nothing);
        };
        keeper::tidy(&self.folder, &owner, &known, KEEP)?;
        let Some(conninfo) = node::primary_conninfo() else {
            return Err(Failure {
                sqlstate: *b"55000",
                message: "impersonate.primary_conninfo is not set".to_owned(),
                detail: None,
            });
        };
        if self.reader.as_ref().is_none_or(|(of, _)| *of != owner) {
            self.reader = Some((owner.clone(), Reader::new(&self.folder, &owner)));
            self.confirmed = None;
        }
        let found = spool::newest_id(&self.folder, &owner, retired(&known)).map_err(|trouble| failure(&trouble))?;
        let Some(id) = found else { return Ok(Step::Nothing) };
        self.connect(&conninfo)?;
        let confirmed = match self.confirmed {
            Some((of, position)) if of == id => position,
            _ => self.send(&owner, &id, b"")?,
        };
        // What no writer of this run has opened is as it was left.
        let until = match self.place.stored() {
            0 => u64::MAX,
            stored => stored,
        };
        let Some((_, reader)) = &mut self.reader else {
            return Ok(Step::Nothing);
        };
        let batch = reader
            .entries(retired(&known), confirmed + 1, until, BATCH)
            .map_err(|trouble| failure(&trouble))?;
        let Some(batch) = batch.filter(|batch| batch.spool == id) else {
            return Ok(Step::Nothing);
        };
        if batch.entries.is_empty() {
            let newest = spool::newest(&self.folder, &owner, retired(&known)).map_err(|trouble| failure(&trouble))?;
            if newest.is_some_and(|(_, newest)| newest < confirmed) {
                return Err(gone_astray(format!(
                    "the primary has position {confirmed} of this spool, which ends before it"
                )));
            }
            self.report(&owner)?;
            return Ok(Step::Nothing);
        }
        if batch.entries[0].position != confirmed + 1 {
            return Err(gone_astray(format!(
                "the primary has position {confirmed} of this spool, which begins with {}",
                batch.oldest
            )));
        }
        let now_there = self.send(&owner, &id, &spool::pack(&batch.entries))?;
        if now_there <= confirmed {
            return Err(gone_astray(
                "the primary did not take the events that it was sent".to_owned(),
            ));
        }
        self.report(&owner)?;
        Ok(Step::Sent)
    }

    fn connect(&mut self, conninfo: &CString) -> Result<(), Failure> {
        if self.connection.is_some() && self.conninfo == *conninfo {
            return Ok(());
        }
        self.connection = None;
        self.confirmed = None;
        self.place.set_connected(false);
        let name = worker::catch(|| worker::transaction(worker::my_database_name))?;
        let name = CString::new(name).unwrap_or_default();
        let more = [
            (c"dbname", name.as_c_str()),
            (c"client_encoding", worker::my_encoding()),
            (c"fallback_application_name", c"impersonate audit shipper"),
        ];
        let connection = worker::catch(|| Connection::connect(conninfo, &more, CONNECT_LIMIT))?;
        self.connection = Some(connection.map_err(|trouble| self.trouble(trouble))?);
        self.conninfo.clone_from(conninfo);
        self.place.set_connected(true);
        Ok(())
    }

    /// Sends events, and returns up to where the primary has them.
    fn send(&mut self, owner: &Owner, id: &[u8; 16], events: &[u8]) -> Result<u64, Failure> {
        let node = CString::new(owner.node.clone()).unwrap_or_default();
        let system = CString::new(owner.system.to_string()).unwrap_or_default();
        let parameters = [
            Parameter::Text(&node),
            Parameter::Text(&system),
            Parameter::Bytes(id),
            Parameter::Bytes(events),
        ];
        let answer = self.ask(
            c"SELECT impersonate.audit_receive($1::text, $2::text, $3::uuid, $4::bytea)",
            &parameters,
        )?;
        let position = answer
            .and_then(|text| String::from_utf8(text).ok()?.parse().ok())
            .ok_or_else(|| gone_astray("the primary's answer is not a position".to_owned()))?;
        self.confirmed = Some((*id, position));
        self.place.set_confirmed(position, now());
        self.said.clear();
        Ok(position)
    }

    fn ask(&mut self, sql: &std::ffi::CStr, parameters: &[Parameter]) -> Result<Option<Vec<u8>>, Failure> {
        let Some(connection) = &mut self.connection else {
            return Ok(None);
        };
        let rows = worker::catch(|| connection.query(sql, parameters, ANSWER_LIMIT))?;
        let mut rows = rows.map_err(|trouble| self.trouble(trouble))?;
        Ok(rows.pop().and_then(|mut row| row.pop().flatten()))
    }

    fn trouble(&mut self, trouble: Trouble) -> Failure {
        self.connection = None;
        match trouble {
            Trouble::Ended => Failure {
                sqlstate: *b"57P01",
                message: "the shipper is asked to end".to_owned(),
                detail: None,
            },
            Trouble::Failed { sqlstate, message } => Failure {
                sqlstate,
                message,
                detail: None,
            },
        }
    }

    /// Tells the primary who impersonates here, when that changed and now and then.
    fn report(&mut self, owner: &Owner) -> Result<(), Failure> {
        if self.reported.is_some() && now() - self.looked_at < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at = now();
        // What it reads is the extension's own as long as that is there.
        let active = worker::catch(|| worker::transaction(|| nodes::known().and_then(|_| one_text(ACTIVE))))?;
        let Some(mut active) = active else { return Ok(()) };
        if !worker::is_valid_text(&active) {
            // The name of a role that was made in another encoding.
            active
                .iter_mut()
                .filter(|byte| !byte.is_ascii())
                .for_each(|byte| *byte = b'?');
        }
        let due = match &self.reported {
            Some((at, said)) => *said != active || (now() - at > REPORT_EVERY && active != b"[]"),
            None => true,
        };
        if !due {
            return Ok(());
        }
        let node = CString::new(owner.node.clone()).unwrap_or_default();
        let system = CString::new(owner.system.to_string()).unwrap_or_default();
        let text = CString::new(active.clone()).unwrap_or_default();
        let parameters = [Parameter::Text(&node), Parameter::Text(&system), Parameter::Text(&text)];
        self.ask(
            c"SELECT impersonate.report_node($1::text, $2::text, $3::jsonb)",
            &parameters,
        )?;
        self.reported = Some((now(), active));
        Ok(())
    }
}

/// Impersonations of this database, as JSON.
const ACTIVE: &std::ffi::CStr = c"
    SELECT COALESCE(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(a) ORDER BY a.since, a.pid), '[]')::pg_catalog.text
      FROM (SELECT pid, database, impersonator, target, since, reason, impersonation_id FROM impersonate.active
             WHERE database = pg_catalog.current_database()) a";

fn gone_astray(message: String) -> Failure {
    Failure {
        sqlstate: *b"XX001",
        message: identity::speakable(&message).into_owned(),
        detail: None,
    }
}
