//! On the primary: events that a standby sends (`ship.rs`) go into the queue, as this server's own do (N2).
//!
//! The writer stores them, in order and each once: it compares their positions with `impersonate.audit_node`, which it
//! writes in the same transaction. Here it is seen to that what comes next is what that spool had next, and those who
//! send are told what is wrong otherwise. One at a time sends for a node, and what an earlier one left in the queue is
//! stored before the next is looked at.

use super::event::{decode, Origin};
use super::{node, queue, spool};
use crate::pg::audit_rows::{self, Argument, Stored};
use crate::pg::guc::Refusal;
use crate::pg::{identity, node as server, rights, worker};
use pgrx::PgSqlErrorCode;

/// What a standby sends.
pub struct Sent<'a> {
    pub node: &'a [u8],
    pub system: &'a [u8],
    pub spool: [u8; 16],
    /// As `spool::pack` makes it; empty to ask what is there.
    pub events: &'a [u8],
}

fn refusal(sqlstate: PgSqlErrorCode, message: &str, detail: String, hint: &str) -> Refusal {
    Refusal {
        sqlstate,
        message: message.to_owned(),
        detail: Some(detail),
        hint: (!hint.is_empty()).then(|| hint.to_owned()),
    }
}

const STATE: PgSqlErrorCode = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;

/// Whether a node of that name and system may send anything here.
pub fn may_send(sender: &[u8], system: &[u8]) -> Result<(), Refusal> {
    let shown = identity::to_utf8(sender);
    if worker::in_recovery() {
        return Err(refusal(
            PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            "a standby cannot receive audit events",
            "This server is in recovery.".to_owned(),
            "impersonate.primary_conninfo of every standby must lead to the primary.",
        ));
    }
    if !queue::available() {
        return Err(refusal(
            STATE,
            "impersonate must be loaded via \"shared_preload_libraries\"",
            "There is no audit queue.".to_owned(),
            "Add impersonate to shared_preload_libraries in postgresql.conf and restart the server.",
        ));
    }
    let own = server::system_identifier().to_string();
    if system != own.as_bytes() {
        return Err(refusal(
            STATE,
            "audit events of another system cannot be received",
            format!(
                "The sender's system identifier is {}, this server's is {own}.",
                identity::to_utf8(system)
            ),
            "impersonate.primary_conninfo must lead to the primary of the same cluster.",
        ));
    }
    if sender.is_empty() || sender.len() > spool::NODE_BYTES {
        return Err(refusal(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "invalid name of a node",
            format!("\"{shown}\" is empty or too long."),
            "",
        ));
    }
    if node::name().is_some_and(|own| own == sender) {
        return Err(refusal(
            STATE,
            "a node has the primary's own name",
            format!("The sender is called \"{shown}\", as this server is."),
            "Each node needs an impersonate.node_name of its own.",
        ));
    }
    Ok(())
}

/// What the audit has of a spool.
struct There {
    position: u64,
    hash: Vec<u8>,
}

/// Takes events over. Returns the newest position that is stored. Waits for that, and raises.
pub fn receive(sent: &Sent) -> Result<u64, Refusal> {
    may_send(sent.node, sent.system)?;
    let Some(table) = rights::extension_table(c"audit_node") else {
        return Err(refusal(
            STATE,
            "extension impersonate is not created in this database",
            "There is no table to store audit events in.".to_owned(),
            "Use CREATE EXTENSION impersonate.",
        ));
    };
    let invalid = |why: &str| {
        refusal(
            PgSqlErrorCode::ERRCODE_INVALID_BINARY_REPRESENTATION,
            "invalid audit events",
            format!(
                "What node \"{}\" sent cannot be read: {why}.",
                identity::to_utf8(sent.node)
            ),
            "All nodes need the same version of impersonate.",
        )
    };
    let entries = spool::unpack(sent.events).map_err(invalid)?;
    let node = sent
        .node
        .iter()
        .fold(0_u16, |sum, byte| sum.rotate_left(3) ^ u16::from(*byte));
    worker::lock_node(table.into(), node);
    super::sync();
    let there = there(sent)?;
    let name = identity::to_utf8(sent.node);
    if let Some(first) = entries.first().filter(|first| first.position > there.position + 1) {
        return Err(refusal(
            STATE,
            "audit events are missing",
            format!(
                "Node \"{name}\" sent position {}, and what is here ends with {}.",
                first.position, there.position
            ),
            "",
        ));
    }
    let (mut next, mut hash) = (there.position + 1, super::chain::stored(Some(&there.hash)));
    let mut ticket = 0;
    for entry in &entries {
        let diverged = |at: u64| {
            refusal(
                STATE,
                "a node's audit events are not those that it had",
                format!("Position {at} of node \"{name}\" does not follow from what is here."),
                "Has another server the same impersonate.node_name? See \"Standbys\" in docs/administrator.md.",
            )
        };
        if entry.position + 1 == next && entry.hash != hash {
            return Err(diverged(entry.position));
        }
        if entry.position < next {
            continue;
        }
        let record = decode(&entry.event).filter(|record| record.origin.is_none());
        let record = record.ok_or_else(|| invalid("a record is no event"))?;
        if entry.position != next || entry.hash != spool::hash(&hash, next, &entry.event) {
            return Err(diverged(entry.position));
        }
        if !record.is_possible() {
            return Err(invalid("an event has an impossible time or SQLSTATE"));
        }
        if record.checked_texts().any(|text| !worker::is_valid_text(text)) {
            return Err(invalid("a text is not valid in this database's encoding"));
        }
        let event = record.event_of(Origin {
            node: sent.node,
            spool: sent.spool,
            position: entry.position,
            hash: entry.hash,
        });
        let size = event.size();
        super::reserve(size);
        ticket = super::push_reserved(&event, size);
        (next, hash) = (next + 1, entry.hash);
    }
    super::wait_stored(ticket);
    if entries.is_empty() {
        return Ok(there.position);
    }
    Ok(self::there(sent)?.position)
}

/// What the audit has of the spool. An error when it may not be continued, or begun.
fn there(sent: &Sent) -> Result<There, Refusal> {
    let rows = audit_rows::newest(|access| {
        access.query(
            c"SELECT position, hash, node, retired_at, spool_id FROM impersonate.audit_node
               WHERE spool_id = $1 OR (node = $2 AND retired_at IS NULL)
               ORDER BY spool_id = $1 DESC LIMIT 1",
            &[Argument::Uuid(&sent.spool), Argument::Text(sent.node)],
        )
    });
    let name = identity::to_utf8(sent.node);
    let nothing = There {
        position: 0,
        hash: Vec::new(),
    };
    let Some(row) = rows.first() else { return Ok(nothing) };
    let (Some(Stored::Integer(position)), Some(hash), Some(node)) = (
        row.first(),
        row.get(1).and_then(Stored::bytes),
        row.get(2).and_then(Stored::bytes),
    ) else {
        return Ok(nothing);
    };
    let retired = !matches!(row.get(3), Some(Stored::Null));
    let same = matches!(row.get(4), Some(Stored::Uuid(id)) if *id == sent.spool);
    if !same {
        return Err(refusal(
            STATE,
            "another audit spool of this node is known",
            format!("Node \"{name}\" has sent {position} events of another spool, and may have more."),
            "If that one is lost, or its node was made anew: SELECT impersonate.retire_node('...') on the primary. \
             If there are two nodes of that name, give one another impersonate.node_name.",
        ));
    }
    if retired || node != sent.node {
        return Err(refusal(
            STATE,
            "this audit spool was retired",
            format!(
                "It is that of node \"{}\", up to position {position}.",
                identity::to_utf8(node)
            ),
            "",
        ));
    }
    Ok(There {
        position: u64::try_from(*position).unwrap_or(0),
        hash: hash.to_vec(),
    })
}
