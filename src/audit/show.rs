//! What can be told of spools, on whatever node: files, shippers, and the events that wait.

use super::chain::Value;
use super::event::{decode, Record};
use super::line::Line;
use super::node;
use super::spool::{self, Reader};
use super::spools;
use crate::pg::identity;
use std::collections::BTreeMap;

/// A spool in the data folder.
pub struct Figures {
    pub database: u32,
    pub node: String,
    pub system: u64,
    pub spool: [u8; 16],
    /// It is this node's, and not of another that a base backup was taken from.
    pub own: bool,
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

/// All spools in the data folder. A file whose head can't be read counts as another node's without a name.
pub fn figures() -> Vec<Figures> {
    let mut databases = spool::databases(&node::spools());
    databases.sort_unstable();
    databases.into_iter().flat_map(of_database).collect()
}

fn of_database(database: u32) -> Vec<Figures> {
    let folder = node::folder(database);
    let own = node::owner(database);
    let mut found: BTreeMap<[u8; 16], Figures> = BTreeMap::new();
    for segment in spool::segments(&folder).unwrap_or_default() {
        let id = segment.head.as_ref().map_or([0; 16], |head| head.spool);
        let figures = found.entry(id).or_insert_with(|| Figures {
            database,
            node: segment.head.as_ref().map_or(String::new(), |head| {
                String::from_utf8_lossy(&head.owner.node).into_owned()
            }),
            system: segment.head.as_ref().map_or(0, |head| head.owner.system),
            spool: id,
            own: own.as_ref().is_some_and(|owner| segment.is_of(owner)),
            segments: 0,
            bytes: 0,
            oldest: segment.head.as_ref().map_or(0, |head| head.first),
            newest: None,
            confirmed: None,
            waiting_since: None,
            shipper: None,
            connected: false,
            answered_at: None,
            error: None,
        });
        figures.segments += 1;
        figures.bytes += segment.bytes;
    }
    let shipping = spools::known(database).map(|place| place.shipping());
    let mut found: Vec<Figures> = found.into_values().collect();
    for figures in found.iter_mut().filter(|figures| figures.own) {
        let Some(owner) = &own else { continue };
        let others = |id: &[u8; 16]| *id != figures.spool;
        match spool::newest(&folder, owner, others) {
            Ok(newest) => figures.newest = newest.map(|(_, newest)| newest),
            Err(trouble) => figures.error = Some((0, sqlstate(&trouble), trouble.to_string())),
        }
        if let Some(shipping) = &shipping {
            figures.confirmed = (shipping.answered_at != 0).then_some(shipping.confirmed);
            figures.shipper = (shipping.pid != 0).then_some(shipping.pid);
            figures.connected = shipping.connected;
            figures.answered_at = (shipping.answered_at != 0).then_some(shipping.answered_at);
            figures.error = figures.error.take().or_else(|| shipping.error.clone());
        }
        let next = figures.confirmed.map_or(figures.oldest, |confirmed| confirmed + 1);
        let batch = Reader::new(&folder, owner).entries(others, next, u64::MAX, 1);
        let entry = batch.ok().flatten().and_then(|batch| batch.entries.into_iter().next());
        figures.waiting_since = entry.and_then(|entry| Some(decode(&entry.event)?.time));
    }
    found
}

fn sqlstate(trouble: &spool::Trouble) -> String {
    String::from_utf8_lossy(&trouble.sqlstate()).into_owned()
}

/// The events of this database in this node's own spools, from the oldest on: spool, position, and the event as a line of
/// JSON. An error is said in words.
pub fn events(database: u32) -> Result<Vec<([u8; 16], u64, String)>, String> {
    let Some(owner) = node::owner(database) else {
        return Ok(Vec::new());
    };
    let folder = node::folder(database);
    let mut ids: Vec<[u8; 16]> = spool::segments(&folder)
        .map_err(|trouble| trouble.to_string())?
        .iter()
        .filter(|segment| segment.is_of(&owner))
        .filter_map(|segment| Some(segment.head.as_ref()?.spool))
        .collect();
    ids.dedup();
    let mut found = Vec::new();
    for id in ids {
        let batch = Reader::new(&folder, &owner)
            .entries(|other| *other != id, 1, u64::MAX, usize::MAX)
            .map_err(|trouble| trouble.to_string())?;
        for entry in batch.map(|batch| batch.entries).unwrap_or_default() {
            let Some(record) = decode(&entry.event) else { continue };
            found.push((id, entry.position, in_json(&record, &entry.hash)));
        }
    }
    Ok(found)
}

fn in_json(record: &Record, hash: &[u8; 32]) -> String {
    let mut line = Line::new(&identity::to_utf8);
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
