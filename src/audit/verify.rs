//! Finding out whether the rows of `impersonate.audit` are those that were stored, and what became of the first that
//! isn't (SPEC L8).
//!
//! Rows are handed in one by one, in the order of `event_id`. As long as each follows from the one before, nothing of
//! them is kept. The first that doesn't is a *suspect*: what happened to it is told from the rows behind it. A row whose
//! content was changed still has the hash that the next one was chained to; a row that was put in hasn't, and one of
//! those behind it is the row that belongs in its place.
//!
//! What is missing on purpose is told in the chain itself, so that it can't be claimed afterwards:
//! - Rows that went to the server log alone, by the DESTINATION row behind them.
//! - Rows that were purged, by a PURGE row. It is stored before the rows leave, and so comes after them.
//!
//! The end of the chain is where `impersonate.audit_state` says that it is.
//!
//! This file needs nothing of Postgres.

use super::chain::{stored, Hash, RowHasher, Value, START};

/// A column as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    Null,
    Integer(i64),
    Timestamp(i64),
    Interval {
        months: i32,
        days: i32,
        microseconds: i64,
    },
    Uuid([u8; 16]),
    Text(Vec<u8>),
    TextArray {
        dimensions: Vec<(i32, i32)>,
        elements: Vec<Option<Vec<u8>>>,
    },
}

/// A row as it was read.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: i64,
    /// In the order of the hash; the first is `event_id`.
    pub columns: Vec<Column>,
    pub hash: Option<Vec<u8>>,
    pub meaning: Meaning,
}

/// What a row says of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Nothing,
    /// Rows up to `last`, with this hash, were to be purged.
    Purge {
        last: i64,
        hash: Hash,
    },
    /// The rows behind it went to the server log alone.
    Leaving,
    /// The rows from `first` to `last`, with this hash, went to the server log alone.
    Coming {
        first: i64,
        last: i64,
        hash: Hash,
    },
}

impl Row {
    /// The hash that the row should have behind `previous`, if its number were `id`.
    fn hash_as(&self, id: i64, previous: &Hash) -> Hash {
        let mut hasher = RowHasher::new(previous);
        hasher.column(Value::Integer(id));
        for column in self.columns.iter().skip(1) {
            match column {
                Column::Null => hasher.column(Value::Null),
                Column::Integer(number) => hasher.column(Value::Integer(*number)),
                Column::Timestamp(time) => hasher.column(Value::Timestamp(*time)),
                Column::Interval {
                    months,
                    days,
                    microseconds,
                } => hasher.column(Value::Interval {
                    months: *months,
                    days: *days,
                    microseconds: *microseconds,
                }),
                Column::Uuid(uuid) => hasher.column(Value::Uuid(*uuid)),
                Column::Text(text) => hasher.column(Value::Text(text)),
                Column::TextArray { dimensions, elements } => {
                    let elements: Vec<Option<&[u8]>> = elements.iter().map(Option::as_deref).collect();
                    hasher.column(Value::AnyTextArray {
                        dimensions,
                        elements: &elements,
                    });
                }
            }
        }
        hasher.finish()
    }

    /// Whether it is the row that was stored as number `id` behind `previous`.
    fn is(&self, id: i64, previous: &Hash) -> bool {
        self.hash.as_deref() == Some(&self.hash_as(id, previous))
    }

    /// Its hash as the row behind it counts it.
    fn chained(&self) -> Hash {
        stored(self.hash.as_deref())
    }
}

/// What became of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Altered,
    Removed,
    PutIn,
    Swapped,
    /// The head that was kept elsewhere isn't in the chain.
    Head,
}

impl Damage {
    /// As in column `damage`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Damage::Altered => "altered",
            Damage::Removed => "removed",
            Damage::PutIn => "put in",
            Damage::Swapped => "swapped",
            Damage::Head => "head does not match",
        }
    }
}

/// The first row that isn't as it was stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub first_bad: Option<i64>,
    pub damage: Damage,
    pub detail: String,
}

/// Where the chain begins: behind the row of this number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub id: i64,
    pub hash: Hash,
    /// The rows up to it were purged, which a PURGE row must tell of.
    pub purged: bool,
}

impl Start {
    /// With the first row there ever was.
    pub const FIRST: Start = Start {
        id: 0,
        hash: START,
        purged: false,
    };
}

/// Where the chain ends, by what the writer noted.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub id: i64,
    pub hash: Hash,
    /// The newest row in the table.
    pub stored_id: i64,
}

/// What is known of the end.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Noted(End),
    /// The writer's note was removed.
    Lost,
    /// Rows that were brought here without the note.
    Unknown,
}

impl Ending {
    fn noted(&self) -> Option<&End> {
        match self {
            Ending::Noted(end) => Some(end),
            Ending::Lost | Ending::Unknown => None,
        }
    }
}

/// What is to be found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// No row behind this one is looked at.
    pub to: Option<i64>,
    /// The hash of row `to`, or of any row.
    pub head: Option<Hash>,
}

/// A row that isn't what the rows before it say.
struct Suspect {
    /// The number that a row is missing for, or the bad row's.
    id: i64,
    /// The hash before it.
    previous: Hash,
    /// The row in its place; none where there is a gap.
    row: Option<Row>,
    /// The number behind a gap.
    gap_to: i64,
    /// Hash of the row that was handed in last.
    last: Hash,
    /// Rows handed in since.
    rows: u64,
}

/// A verification under way.
pub struct Verification {
    start: Start,
    wanted: Wanted,
    /// By how much numbers are too small at the end.
    shift: i64,
    /// The newest row that is as it was stored, and its hash.
    id: i64,
    hash: Hash,
    /// The hash before that one.
    before: Hash,
    leaving: bool,
    purges: Vec<(i64, Hash)>,
    head_seen: bool,
    rows: u64,
    suspect: Option<Suspect>,
    finding: Option<Finding>,
}

fn rows_are(first: i64, last: i64, what: &str) -> String {
    if first == last {
        format!("row {first} was {what}")
    } else {
        format!("rows {first} to {last} were {what}")
    }
}

/// The chain can't tell these two from each other: it breaks between them.
fn altered(id: i64) -> String {
    match id {
        1 => "row 1 was altered".to_owned(),
        _ => format!("row {id} was altered, or row {} together with its hash", id - 1),
    }
}

fn removed(first: i64, last: i64) -> Finding {
    Finding {
        first_bad: Some(first),
        damage: Damage::Removed,
        detail: rows_are(first, last, "removed"),
    }
}

impl Verification {
    /// `newest` is the greatest number in the table.
    pub fn new(start: Start, end: &Ending, newest: i64, wanted: Wanted) -> Self {
        Verification {
            start,
            wanted,
            shift: end.noted().map_or(1, |end| end.stored_id.saturating_sub(newest)).max(1),
            id: start.id,
            hash: start.hash,
            before: start.hash,
            leaving: false,
            purges: Vec::new(),
            head_seen: wanted.head == Some(start.hash) && start.id > 0,
            rows: 0,
            suspect: None,
            finding: None,
        }
    }

    /// Rows that were handed in.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The row before the first one of interest: taken as it is.
    pub fn trust(&mut self, row: &Row) {
        self.accept(row);
    }

    /// The next row. Returns false when no more are needed.
    pub fn row(&mut self, row: Row) -> bool {
        self.rows += 1;
        if self.suspect.is_some() {
            self.investigate(&row);
        } else {
            self.follow(row);
        }
        self.finding.is_none()
    }

    fn follow(&mut self, row: Row) {
        let expected = self.id + 1;
        if row.id < expected {
            let detail = if row.id <= self.start.id {
                format!(
                    "row {} was put in: what is older than row {expected} was purged",
                    row.id
                )
            } else {
                format!("row {} was put in: there is another of this number", row.id)
            };
            self.found(row.id, Damage::PutIn, detail);
            return;
        }
        let gone = match row.meaning {
            Meaning::Coming { first, last, hash } if first == expected && last == row.id - 1 => Some(hash),
            _ => None,
        };
        let previous = gone.unwrap_or(self.hash);
        if (row.id == expected || gone.is_some()) && row.is(row.id, &previous) {
            self.head_seen |= self.wanted.to.is_none() && gone.is_some() && self.wanted.head == gone;
            self.accept(&row);
            return;
        }
        let in_place = row.id == expected;
        if in_place && self.id > self.start.id && row.is(self.id, &self.before) {
            let id = self.id;
            let detail = format!("row {id} was put in: the row of this number has number {expected} now");
            self.found(id, Damage::PutIn, detail);
            return;
        }
        let mut suspect = Suspect {
            id: expected,
            previous: self.hash,
            row: None,
            gap_to: row.id - 1,
            last: self.hash,
            rows: 0,
        };
        if in_place {
            suspect.last = row.chained();
            suspect.row = Some(row);
            self.suspect = Some(suspect);
        } else {
            self.suspect = Some(suspect);
            self.investigate(&row);
        }
    }

    fn accept(&mut self, row: &Row) {
        self.id = row.id;
        self.before = self.hash;
        self.hash = row.chained();
        self.leaving = row.meaning == Meaning::Leaving;
        if let Meaning::Purge { last, hash } = row.meaning {
            self.purges.push((last, hash));
        }
        let wanted = self.wanted.to.is_none_or(|to| to == row.id);
        self.head_seen |= wanted && self.wanted.head == Some(self.hash);
    }

    /// What a row behind the suspect tells of it.
    fn investigate(&mut self, row: &Row) {
        let Some(suspect) = &mut self.suspect else { return };
        suspect.rows += 1;
        let (id, previous, last) = (suspect.id, suspect.previous, suspect.last);
        suspect.last = row.chained();
        let Some(bad) = &suspect.row else {
            if row.is(id, &previous) {
                let detail = format!("row {id} was altered: its event_id is {} now", row.id);
                self.found(id, Damage::Altered, detail);
            }
            return;
        };
        // The one that belongs there.
        if row.is(id, &previous) {
            let other = row.id;
            let before_other = if other == id + 1 { row.chained() } else { last };
            let (damage, detail) = if other == id {
                (
                    Damage::PutIn,
                    format!("row {id} was put in: there is another of this number"),
                )
            } else if bad.is(other, &before_other) {
                (Damage::Swapped, format!("rows {id} and {other} were swapped"))
            } else {
                (
                    Damage::PutIn,
                    format!("row {id} was put in: the row of this number has number {other} now"),
                )
            };
            self.found(id, damage, detail);
        } else if suspect.rows == 1 && row.id == id + 1 {
            let stored = bad.chained();
            if row.is(row.id, &stored) {
                self.found(id, Damage::Altered, altered(id));
            } else if row.is(row.id, &bad.hash_as(id, &previous)) {
                self.found(id, Damage::Altered, format!("row {id} was altered: its hash was"));
            } else {
                let shifts = [1, self.shift];
                let shift = shifts
                    .into_iter()
                    .find(|shift| row.is(row.id.saturating_add(*shift), &stored));
                if let Some(shift) = shift {
                    let rows = rows_are(id, id + shift - 1, "removed");
                    let detail = format!("{rows}, and those behind renumbered");
                    self.found(id, Damage::Removed, detail);
                }
            }
        }
    }

    fn found(&mut self, first_bad: i64, damage: Damage, detail: String) {
        self.finding.get_or_insert(Finding {
            first_bad: Some(first_bad),
            damage,
            detail,
        });
    }

    /// After the last row.
    pub fn finish(mut self, end: &Ending) -> Option<Finding> {
        if self.finding.is_some() {
            return self.finding.take();
        }
        if let Some(suspect) = self.suspect.take() {
            return Some(left_over(&suspect, end.noted()));
        }
        if let Some(to) = self.wanted.to.filter(|to| self.id < *to) {
            // Not in the table, as it seems; but it may never have been.
            if let Some(finding) = self.beyond(end) {
                return Some(finding);
            }
            if end.noted().is_none_or(|end| end.id < to) {
                return Some(removed(self.id + 1, to));
            }
        } else if self.wanted.to.is_none() {
            if let Some(finding) = self.beyond(end).or_else(|| self.unfounded()) {
                return Some(finding);
            }
        }
        if self.wanted.head.is_some() && !self.head_seen {
            return Some(Finding {
                first_bad: self.wanted.to,
                damage: Damage::Head,
                detail: match self.wanted.to {
                    Some(to) => format!("row {to} does not have this hash"),
                    None => "no row has this hash".to_owned(),
                },
            });
        }
        None
    }

    /// Whether the chain ends where the writer noted it.
    fn beyond(&self, end: &Ending) -> Option<Finding> {
        let end = match end {
            Ending::Noted(end) => end,
            Ending::Unknown => return None,
            Ending::Lost => {
                return (self.id > 0).then(|| Finding {
                    first_bad: Some(self.id + 1),
                    damage: Damage::Removed,
                    detail: "impersonate.audit_state was emptied: rows behind the last may have been removed"
                        .to_owned(),
                })
            }
        };
        if end.stored_id > self.id {
            return Some(removed(self.id + 1, end.stored_id));
        }
        if end.stored_id < self.id {
            let first = end.stored_id + 1;
            return Some(Finding {
                first_bad: Some(first),
                damage: Damage::PutIn,
                detail: format!(
                    "{}: the writer stored none behind them",
                    rows_are(first, self.id, "put in")
                ),
            });
        }
        if end.id == end.stored_id && end.hash != self.hash {
            return Some(Finding {
                first_bad: Some(self.id),
                damage: Damage::Altered,
                detail: format!("row {} was altered: the writer stored another hash", self.id),
            });
        }
        (end.id > end.stored_id && !self.leaving).then(|| removed(self.id + 1, end.id))
    }

    /// Whether rows are missing at the beginning that no PURGE tells of.
    fn unfounded(&self) -> Option<Finding> {
        let start = (self.start.id, self.start.hash);
        (self.start.purged && !self.purges.contains(&start)).then(|| Finding {
            detail: format!("{}: no PURGE row tells of it", rows_are(1, self.start.id, "removed")),
            ..removed(1, self.start.id)
        })
    }
}

/// A suspect that no row behind it explains.
fn left_over(suspect: &Suspect, end: Option<&End>) -> Finding {
    let id = suspect.id;
    let Some(bad) = &suspect.row else {
        return match end {
            Some(end) if end.stored_id < id => Finding {
                first_bad: Some(suspect.gap_to + 1),
                damage: Damage::PutIn,
                detail: format!(
                    "row {} was put in: the writer stored none behind row {}",
                    suspect.gap_to + 1,
                    end.stored_id
                ),
            },
            // What is behind the gap may have been put in as well.
            Some(end) => removed(id, suspect.gap_to.min(end.stored_id)),
            None => removed(id, suspect.gap_to),
        };
    };
    if suspect.rows == 0 && end.is_some_and(|end| end.stored_id < id) {
        return Finding {
            first_bad: Some(id),
            damage: Damage::PutIn,
            detail: format!("row {id} was put in: the writer stored none behind row {}", id - 1),
        };
    }
    let own = Some(bad.hash_as(id, &suspect.previous));
    let its_hash = suspect.rows == 0 && end.map(|end| end.hash) == own;
    Finding {
        first_bad: Some(id),
        damage: Damage::Altered,
        detail: if its_hash {
            format!("row {id} was altered: its hash was")
        } else if suspect.rows == 0 {
            altered(id)
        } else {
            format!("row {id} was altered, and the one behind it as well")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, text: &str, previous: &Hash) -> Row {
        let mut row = Row {
            id,
            columns: vec![
                Column::Integer(id),
                Column::Text(text.as_bytes().to_vec()),
                Column::Null,
                Column::TextArray {
                    dimensions: vec![(1, 1)],
                    elements: vec![None],
                },
            ],
            hash: None,
            meaning: Meaning::Nothing,
        };
        row.hash = Some(row.hash_as(id, previous).to_vec());
        row
    }

    /// Ten rows, and what the writer noted.
    fn chain() -> (Vec<Row>, End) {
        let mut previous = START;
        let rows: Vec<Row> = (1..=10)
            .map(|id| {
                let row = row(id, &format!("text {id}"), &previous);
                previous = row.chained();
                row
            })
            .collect();
        let end = End {
            id: 10,
            hash: previous,
            stored_id: 10,
        };
        (rows, end)
    }

    fn verify_from(start: Start, mut rows: Vec<Row>, end: Option<End>, wanted: Wanted) -> Option<Finding> {
        rows.sort_by_key(|row| row.id);
        let newest = rows.last().map_or(0, |row| row.id);
        let end = end.map_or(Ending::Lost, Ending::Noted);
        let mut verification = Verification::new(start, &end, newest, wanted);
        for row in rows {
            if !verification.row(row) {
                break;
            }
        }
        verification.finish(&end)
    }

    fn verify(rows: Vec<Row>, end: End) -> String {
        let finding = verify_from(Start::FIRST, rows, Some(end), Wanted::default());
        finding.map_or_else(
            || "ok".to_owned(),
            |finding| {
                format!(
                    "{} {}: {}",
                    finding.first_bad.unwrap_or(0),
                    finding.damage.as_str(),
                    finding.detail
                )
            },
        )
    }

    fn at(id: i64) -> usize {
        id as usize - 1
    }

    fn renumber(row: &mut Row, id: i64) {
        row.id = id;
        row.columns[0] = Column::Integer(id);
    }

    #[test]
    fn an_untouched_chain_is_found_so() {
        let (rows, end) = chain();
        assert_eq!(verify(rows, end), "ok");
        assert!(verify_from(Start::FIRST, Vec::new(), None, Wanted::default()).is_none());
    }

    #[test]
    fn an_altered_row_is_named_wherever_it_is() {
        for id in 1..=10 {
            let (mut rows, end) = chain();
            rows[at(id)].columns[1] = Column::Text(b"other".to_vec());
            assert_eq!(verify(rows, end), format!("{id} altered: {}", altered(id)));
            let (mut rows, end) = chain();
            rows[at(id)].hash = Some(vec![7; 32]);
            assert_eq!(
                verify(rows, end),
                format!("{id} altered: row {id} was altered: its hash was")
            );
            for short in [None, Some(vec![7; 31])] {
                let (mut rows, end) = chain();
                rows[at(id)].hash = short;
                assert!(verify(rows, end).starts_with(&format!("{id} altered: row {id} was altered")));
            }
        }
    }

    #[test]
    fn an_array_of_another_shape_is_another_array() {
        let (mut rows, end) = chain();
        let Column::TextArray { dimensions, .. } = &mut rows[4].columns[3] else {
            panic!("not an array");
        };
        *dimensions = vec![(1, 2)];
        assert_eq!(verify(rows, end), format!("5 altered: {}", altered(5)));
    }

    #[test]
    fn removed_rows_are_named_wherever_they_were() {
        for (first, last) in [(1, 1), (1, 4), (5, 5), (5, 7), (10, 10), (8, 10), (1, 10)] {
            let (mut rows, end) = chain();
            rows.retain(|row| !(first..=last).contains(&row.id));
            assert_eq!(
                verify(rows, end),
                format!("{first} removed: {}", rows_are(first, last, "removed"))
            );
        }
    }

    #[test]
    fn rows_that_close_the_gap_do_not_hide_it() {
        for (first, last) in [(1, 1), (5, 5), (5, 7), (2, 4)] {
            let (mut rows, end) = chain();
            rows.retain(|row| !(first..=last).contains(&row.id));
            for row in &mut rows {
                let id = row.id;
                if id > last {
                    renumber(row, id - (last - first + 1));
                }
            }
            let found = verify(rows, end);
            assert!(found.starts_with(&format!("{first} removed: row")), "{found}");
        }
    }

    #[test]
    fn swapped_rows_are_both_named() {
        for (one, other) in [(1, 2), (1, 10), (4, 5), (4, 9), (9, 10), (3, 5)] {
            let (mut rows, end) = chain();
            renumber(&mut rows[at(one)], other);
            renumber(&mut rows[at(other)], one);
            assert_eq!(
                verify(rows, end),
                format!("{one} swapped: rows {one} and {other} were swapped")
            );
        }
    }

    #[test]
    fn a_row_that_was_put_in_is_named() {
        let (mut rows, end) = chain();
        let last = rows[9].chained();
        rows.push(row(11, "forged with care", &last));
        assert!(verify(rows, end).starts_with("11 put in: row 11 was put in"));

        // Far behind the last, and with rows removed before it.
        for removed in 0..3 {
            let (mut rows, end) = chain();
            rows.truncate(10 - removed);
            rows.push(row(5000, "forged", &[1; 32]));
            let said = match removed {
                0 => "5000 put in: row 5000 was put in: the writer stored none behind row 10",
                1 => "10 removed: row 10 was removed",
                _ => "9 removed: rows 9 to 10 were removed",
            };
            assert_eq!(verify(rows, end), said);
        }

        for first in [true, false] {
            let (mut rows, end) = chain();
            rows.insert(if first { 4 } else { 5 }, row(5, "forged", &[1; 32]));
            assert_eq!(
                verify(rows, end),
                "5 put in: row 5 was put in: there is another of this number"
            );
        }

        let (mut rows, end) = chain();
        for row in &mut rows[4..] {
            let id = row.id;
            renumber(row, id + 1);
        }
        let before = rows[3].chained();
        rows.push(row(5, "forged", &before));
        assert!(verify(rows, end).starts_with("5 put in: row 5 was put in"));
    }

    #[test]
    fn a_row_that_was_given_another_number_is_named() {
        let (mut rows, end) = chain();
        renumber(&mut rows[4], 100);
        assert_eq!(
            verify(rows, end),
            "5 altered: row 5 was altered: its event_id is 100 now"
        );
    }

    #[test]
    fn what_a_purge_left_begins_where_its_row_says() {
        let (rows, end) = chain();
        let start = Start {
            id: 4,
            hash: rows[3].chained(),
            purged: true,
        };
        let mut rest = rows[4..].to_vec();
        let found = verify_from(start, rest.clone(), Some(end), Wanted::default()).unwrap();
        assert_eq!((found.first_bad, found.damage), (Some(1), Damage::Removed));
        rest[5].meaning = Meaning::Purge {
            last: 4,
            hash: start.hash,
        };
        assert_eq!(verify_from(start, rest.clone(), Some(end), Wanted::default()), None);
        // A purge that came to nothing.
        let mut all = rows.clone();
        all[9].meaning = rest[5].meaning.clone();
        assert_eq!(verify(all, end), "ok");
        // One that began later than it says.
        let found = verify_from(start, rest[1..].to_vec(), Some(end), Wanted::default()).unwrap();
        assert_eq!(found, removed(5, 5));
        // One that was not all.
        let found = verify_from(start, rows[3..].to_vec(), Some(end), Wanted::default()).unwrap();
        assert_eq!((found.first_bad, found.damage), (Some(4), Damage::PutIn));
    }

    #[test]
    fn rows_that_went_to_the_log_are_not_missed_if_the_chain_says_so() {
        let (rows, end) = chain();
        let gone = Meaning::Coming {
            first: 5,
            last: 7,
            hash: rows[6].chained(),
        };
        let rest = |meaning: Meaning, skip: std::ops::Range<usize>| {
            let mut rest = rows.clone();
            rest[7].meaning = meaning;
            rest.drain(skip);
            rest
        };
        assert_eq!(verify(rest(gone.clone(), 4..7), end), "ok");
        assert!(verify(rest(Meaning::Nothing, 4..7), end).starts_with("5 removed"));
        assert!(verify(rest(gone.clone(), 3..7), end).starts_with("4 removed"));
        // The same, at the end.
        let end = End { stored_id: 8, ..end };
        assert!(verify(rows[..8].to_vec(), end).starts_with("9 removed"));
        let mut rest = rows[..8].to_vec();
        rest[7].meaning = Meaning::Leaving;
        assert_eq!(verify(rest, end), "ok");
    }

    #[test]
    fn a_head_from_elsewhere_shows_what_the_state_hides() {
        let (rows, end) = chain();
        let head = rows[9].chained();
        let wanted = |to, head| Wanted { to, head: Some(head) };
        assert_eq!(
            verify_from(Start::FIRST, rows.clone(), Some(end), wanted(None, head)),
            None
        );
        assert_eq!(
            verify_from(Start::FIRST, rows.clone(), Some(end), wanted(Some(10), head)),
            None
        );
        // The last row was removed, and that covered up.
        let short = rows[..9].to_vec();
        let lying = End {
            id: 9,
            hash: short[8].chained(),
            stored_id: 9,
        };
        assert_eq!(verify(short.clone(), lying), "ok");
        let found = verify_from(Start::FIRST, short.clone(), Some(lying), wanted(None, head)).unwrap();
        assert_eq!((found.first_bad, found.damage), (None, Damage::Head));
        let found = verify_from(Start::FIRST, short, Some(lying), wanted(Some(10), head)).unwrap();
        assert_eq!(found, removed(10, 10));
        // Everything was written anew.
        let found = verify_from(Start::FIRST, rows, Some(end), wanted(Some(10), [1; 32])).unwrap();
        assert_eq!((found.first_bad, found.damage), (Some(10), Damage::Head));
    }

    #[test]
    fn the_newest_rows_are_missed_without_a_state_too() {
        let (rows, _) = chain();
        let found = verify_from(Start::FIRST, rows, None, Wanted::default()).unwrap();
        assert_eq!((found.first_bad, found.damage), (Some(11), Damage::Removed));
    }
}
