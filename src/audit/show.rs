//! What can be told of spools, on whatever node: files, shippers, and the events that wait.

use super::chain::Value;
use super::event::{decode, Record};
use super::line::Line;
use super::spool::{self, Entry, Owner, Reader};
use super::{node, spools};
use crate::pg::{identity, worker};
use std::collections::BTreeMap;
use std::path::Path;

/// A spool in the data folder.
pub struct Figures {
    pub database: u32,
    pub node: String,
    pub system: u64,
    pub spool: [u8; 16],
    pub state: State,
    pub segments: u64,
    pub bytes: u64,
    pub oldest: u64,
    pub newest: Option<u64>,
    /// What the primary has said to have. Only of one's own.
    pub confirmed: Option<u64>,
    /// When the oldest event was that the primary has not confirmed.
    pub waiting_since: Option<i64>,
    pub shipper: Option<i32>,
    pub connected: bool,
    pub answered_at: Option<i64>,
    /// When, SQLSTATE, message.
    pub error: Option<(i64, String, String)>,
}

/// Whose a spool is, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// This node's, which is sent to the primary, or taken in.
    Own,
    /// This node's, given up with events in it.
    Retired,
    /// This node's, of a database that isn't there any more.
    Dropped,
    /// Another node's, which came with a copy of its data folder, or is in a shared folder. Or it can't be told whose.
    Foreign,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Own => "own",
            State::Retired => "retired",
            State::Dropped => "dropped",
            State::Foreign => "foreign",
        }
    }
}

/// All spools in the data folder. A file whose head can't be read counts as another node's without a name.
pub fn figures() -> Vec<Figures> {
    let mut databases = spool::databases(&node::spools());
    databases.sort_unstable();
    databases.into_iter().flat_map(of_database).collect()
}

fn of_database(database: u32) -> Vec<Figures> {
    let folder = node::folder(database);
    let own = node::owner(database);
    let exists = worker::database_exists(database);
    let mut found: BTreeMap<[u8; 16], Figures> = BTreeMap::new();
    for segment in spool::all_segments(&folder).unwrap_or_default() {
        let id = segment.head.as_ref().map_or([0; 16], |head| head.spool);
        let figures = found.entry(id).or_insert_with(|| Figures {
            database,
            node: segment.head.as_ref().map_or(String::new(), |head| {
                String::from_utf8_lossy(&head.owner.node).into_owned()
            }),
            system: segment.head.as_ref().map_or(0, |head| head.owner.system),
            spool: id,
            state: match &own {
                Some(owner) if segment.is_of(owner) && !exists => State::Dropped,
                Some(owner) if segment.is_of(owner) && segment.retired.is_some() => State::Retired,
                Some(owner) if segment.is_of(owner) => State::Own,
                _ => State::Foreign,
            },
            segments: 0,
            bytes: 0,
            oldest: u64::MAX,
            newest: None,
            confirmed: segment.retired,
            waiting_since: None,
            shipper: None,
            connected: false,
            answered_at: None,
            error: None,
        });
        figures.segments += 1;
        figures.bytes += segment.bytes;
        figures.oldest = figures.oldest.min(segment.head.as_ref().map_or(0, |head| head.first));
    }
    let mut found: Vec<Figures> = found.into_values().collect();
    for figures in &mut found {
        match figures.state {
            State::Own => of_own(figures, &folder, own.as_ref()),
            State::Retired | State::Dropped => {
                match spool::ends(&folder, &figures.spool, figures.confirmed.unwrap_or(0)) {
                    Ok(ends) => {
                        figures.newest = ends.as_ref().map(|(_, newest)| *newest);
                        figures.waiting_since = ends.and_then(|(oldest, _)| time(&oldest));
                    }
                    Err(trouble) => figures.error = Some((0, sqlstate(&trouble), trouble.to_string())),
                }
            }
            State::Foreign => (),
        }
    }
    found
}

fn of_own(figures: &mut Figures, folder: &Path, owner: Option<&Owner>) {
    let Some(owner) = owner else { return };
    let others = |id: &[u8; 16]| *id != figures.spool;
    let place = spools::known(figures.database);
    figures.newest = place.map(|place| place.stored()).filter(|stored| *stored != 0);
    if figures.newest.is_none() {
        match spool::newest(folder, owner, others) {
            Ok(newest) => figures.newest = newest.map(|(_, newest)| newest),
            Err(trouble) => figures.error = Some((0, sqlstate(&trouble), trouble.to_string())),
        }
    }
    if let Some(shipping) = place.map(|place| place.shipping()) {
        figures.confirmed = (shipping.answered_at != 0).then_some(shipping.confirmed);
        figures.shipper = (shipping.pid != 0).then_some(shipping.pid);
        figures.connected = shipping.connected;
        figures.answered_at = (shipping.answered_at != 0).then_some(shipping.answered_at);
        figures.error = figures.error.take().or_else(|| shipping.error.clone());
    }
    let next = figures.confirmed.map_or(figures.oldest, |confirmed| confirmed + 1);
    if figures.newest.is_some_and(|newest| newest < next) {
        return;
    }
    let batch = Reader::new(folder, owner).entries(others, next, next, 1);
    let batch = batch.ok().flatten();
    figures.waiting_since = batch.and_then(|batch| batch.entries.first().and_then(time));
}

fn time(entry: &Entry) -> Option<i64> {
    Some(decode(&entry.event)?.time)
}

fn sqlstate(trouble: &spool::Trouble) -> String {
    String::from_utf8_lossy(&trouble.sqlstate()).into_owned()
}

/// The events in these spools, from the oldest on: spool, position, and the event as a line of JSON. An error is said in
/// words.
pub fn events(spools: &[Figures]) -> Result<Vec<([u8; 16], u64, String)>, String> {
    let mut found = Vec::new();
    for Figures { database, spool, .. } in spools {
        let entries = spool::entries(&node::folder(*database), spool).map_err(|trouble| trouble.to_string())?;
        for entry in entries {
            let Some(record) = decode(&entry.event) else { continue };
            found.push((*spool, entry.position, in_json(&record, &entry.hash)));
        }
    }
    Ok(found)
}

/// The positions of the oldest and the newest event of a spool that were not sent, as far as is known; None when it has
/// none, or they can't be read.
pub fn ends(figures: &Figures) -> Option<(u64, u64)> {
    let folder = node::folder(figures.database);
    let ends = spool::ends(&folder, &figures.spool, figures.confirmed.unwrap_or(0));
    ends.ok().flatten().map(|(oldest, newest)| (oldest.position, newest))
}

/// Removes a spool, and says it in the server log. An error is said in words.
pub fn remove(figures: &Figures) -> Result<(), String> {
    let folder = node::folder(figures.database);
    spool::remove(&folder, &figures.spool).map_err(|trouble| trouble.to_string())?;
    super::writer::log_line(format!(
        "impersonate audit spool {} of node \"{}\" was discarded",
        pgrx::Uuid::from_bytes(figures.spool),
        figures.node
    ));
    Ok(())
}

fn in_json(record: &Record, hash: &[u8; 32]) -> String {
    let mut line = Line::new(&identity::to_utf8_lossy);
    line.column("event_time", &Value::Timestamp(record.time), false);
    line.column("event", &Value::Text(record.kind.as_str().as_bytes()), false);
    line.column("user_name", &Value::Text(record.user_name), false);
    line.column("session_user_name", &Value::Text(record.session_user_name), false);
    line.column("role_name", &Value::Text(record.role_name), false);
    line.column(
        "impersonation_id",
        &record.impersonation_id.map_or(Value::Null, Value::Uuid),
        false,
    );
    line.column("pid", &Value::Integer(i64::from(record.pid)), false);
    for (name, text) in [
        ("application_name", record.application_name),
        ("client_addr", record.client_addr),
        ("command_tag", record.command_tag),
        ("statement", record.statement),
    ] {
        line.column(name, &text.map_or(Value::Null, Value::Text), false);
    }
    for (name, list) in [("parameters", record.parameters), ("relations", record.relations)] {
        let list: Option<Vec<_>> = list.map(|list| list.iter().collect());
        line.column(name, &list.as_deref().map_or(Value::Null, Value::TextArray), false);
    }
    line.column(
        "row_count",
        &record.row_count.map_or(Value::Null, Value::Integer),
        false,
    );
    let duration = record.duration_us.map_or(Value::Null, |microseconds| Value::Interval {
        months: 0,
        days: 0,
        microseconds,
    });
    line.column("duration", &duration, false);
    line.column("sqlstate", &Value::Text(&record.sqlstate), false);
    line.column("grant_id", &record.grant_id.map_or(Value::Null, Value::Integer), false);
    line.column("reason", &record.reason.map_or(Value::Null, Value::Text), false);
    // What is no JSON is stored as a string, and shown as one.
    let detail = record.detail.unwrap_or_default();
    let is_json = serde_json::from_slice::<serde_json::Value>(detail).is_ok();
    line.column("detail", &record.detail.map_or(Value::Null, Value::Text), is_json);
    line.finish(hash)
}
