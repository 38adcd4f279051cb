//! The audit of a period as one page of HTML, for people who have to look at it.
//!
//! The crate knows nothing of a server: it is given rows, already counted and limited, and answers with text. The text
//! is ASCII, so that it is the same in every encoding that it may pass through. It loads nothing and runs nothing: its
//! content security policy allows the style sheet in it by its hash, and forbids all else. Whatever comes from the
//! audit passes through `text.rs`, which leaves no character in it that a browser would take for anything but a
//! character.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod page;
mod style;
mod text;
mod time;
mod timeline;

pub use page::page;
pub use timeline::{BINS, LANES, MARKS};

/// Microseconds since 2000-01-01 00:00 UTC, as the server keeps them.
pub type Time = i64;

/// Some of the rows that there are.
#[derive(Clone, Debug, Default)]
pub struct Listed<T> {
    /// Those that are shown.
    pub rows: Vec<T>,
    /// How many there are; no less than are shown.
    pub total: u64,
}

impl<T> Listed<T> {
    /// How many are not shown.
    pub fn more(&self) -> u64 {
        self.total.saturating_sub(self.rows.len() as u64)
    }
}

/// What the page is about.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The database whose audit it is.
    pub database: String,
    /// The server's version, `15.18`.
    pub server_version: String,
    /// Who asked for it: the login, and the role in force if that is another.
    pub made_by: String,
    /// When.
    pub made_at: Time,
    /// The period, from its first moment to the one behind its last.
    pub from: Time,
    /// See `from`.
    pub to: Time,
    /// What there is in the period, in numbers.
    pub counts: Counts,
    /// Impersonations, the newest first.
    pub impersonations: Listed<Impersonation>,
    /// Where impersonations are too many to be drawn one by one: how many began in each part of the period.
    pub density: Vec<Density>,
    /// What else is marked on the time line.
    pub marks: Vec<Mark>,
    /// Who became whom, the most frequent first.
    pub pairs: Listed<Pair>,
    /// What was refused, by person and wanted role.
    pub denied: Listed<Denied>,
    /// What was touched.
    pub relations: Listed<Relation>,
    /// How statements failed.
    pub failures: Listed<Failure>,
    /// The newest of the statements that failed.
    pub failed: Listed<Incident>,
    /// Violations of the criteria, and connections that were ended.
    pub incidents: Listed<Incident>,
    /// SET USER rights that were given and taken.
    pub rights: Listed<Incident>,
    /// What became of the record itself.
    pub record: Listed<Incident>,
    /// Whether the record is as it was stored.
    pub chain: Chain,
}

/// Numbers of a period. Statements are those of impersonations.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub events: u64,
    pub impersonations: u64,
    pub impersonators: u64,
    /// Who is on the time line: these, and who tried.
    pub people: u64,
    pub targets: u64,
    pub statements: u64,
    pub failures: u64,
    pub denied: u64,
    pub violations: u64,
    pub terminated: u64,
    pub rights: u64,
}

/// An impersonation, as far as it is in the period.
#[derive(Clone, Debug, Default)]
pub struct Impersonation {
    /// Who logged in.
    pub person: String,
    /// As whom it was done.
    pub target: String,
    /// None when it began before the period.
    pub began: Option<Time>,
    /// None when its end is not in the period.
    pub ended: Option<Time>,
    /// The first and the last that is known of it.
    pub seen: (Time, Time),
    /// How it ended, in the audit's word.
    pub how: Option<String>,
    /// As given.
    pub reason: Option<String>,
    /// Statements, and those of them that failed.
    pub statements: u64,
    /// See `statements`.
    pub failures: u64,
    /// Where from: address and program.
    pub origin: String,
    /// Its first event's number.
    pub first_event: i64,
}

/// Impersonations that began in a part of the period.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Density {
    pub person: String,
    /// From 0 to [`BINS`] - 1.
    pub bin: u32,
    pub count: u64,
}

/// Something that has a moment and no length, or several of a kind that are near each other.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Mark {
    pub person: String,
    /// The first of them.
    pub at: Time,
    pub kind: MarkKind,
    pub count: u64,
}

/// What a mark stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MarkKind {
    Denied,
    Violation,
    Terminated,
}

/// A person and a role that it acted as.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Pair {
    pub person: String,
    pub target: String,
    pub impersonations: u64,
}

/// Attempts of a person at a role.
#[derive(Clone, Debug, Default)]
pub struct Denied {
    /// Who logged in.
    pub person: String,
    /// None for what was no switch, but a GRANT or REVOKE of SET USER.
    pub target: Option<String>,
    /// How often.
    pub attempts: u64,
    /// The newest of them.
    pub last: Time,
    /// What was said the last time.
    pub why: String,
}

/// What statements did to a table, view or other relation.
#[derive(Clone, Debug, Default)]
pub struct Relation {
    /// `schema.name`
    pub name: String,
    /// Statements that read, inserted, updated, deleted, and did something else.
    pub accesses: [u64; 5],
    /// Some of those who did it.
    pub people: Vec<String>,
    /// How many they are.
    pub people_total: u64,
    /// The newest access.
    pub last: Time,
}

/// Statements that failed with one SQLSTATE.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Failure {
    pub sqlstate: String,
    pub count: u64,
    pub people: u64,
}

/// An event by itself.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Incident {
    pub event_id: i64,
    pub at: Time,
    /// The audit's word for it.
    pub event: String,
    pub person: String,
    /// As whom; None for whoever acted as itself.
    pub acted_as: Option<String>,
    pub sqlstate: String,
    pub statement: Option<String>,
    pub why: Option<String>,
}

/// Whether the record is as it was stored.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The period's first and last event.
    pub events: Option<(i64, i64)>,
    /// The last event's hash, in hexadecimal digits: a copy of it elsewhere proves the record up to it.
    pub hash: Option<String>,
    /// What a verification came to.
    pub verified: Verified,
}

/// What a verification came to.
#[derive(Clone, Debug, Default)]
pub enum Verified {
    /// Whoever asked may read the record and may not verify it.
    #[default]
    NotAllowed,
    /// Nothing is wrong with this many rows.
    Intact {
        /// Rows that were looked at.
        rows: u64,
    },
    /// Something is.
    Broken {
        /// The number of the first row that is not as it was stored.
        first_bad: Option<i64>,
        /// What became of it, in a word.
        damage: String,
        /// In more words.
        detail: String,
    },
}
