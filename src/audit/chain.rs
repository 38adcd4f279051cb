//! The hash that chains the rows of `impersonate.audit` (SPEC L8).
//!
//! hash(row) = SHA-256(hash of the row before || `FORM` || each column but `hash`, in the table's order). The hash
//! before the first row is 32 zero bytes; a row whose stored hash isn't 32 bytes long counts as that too.
//!
//! Each column is a tag byte that tells its type and whether it is NULL, and then its value: integers and times as
//! 8 bytes, big end first; text behind its length in 8 bytes, in the encoding of the database; an array with its
//! dimensions and lower bounds. So two different rows never have the same form. It is computed from what is stored:
//! `jsonb` and `inet` count as the text that Postgres prints for them.
//!
//! This file needs nothing of Postgres.

use sha2::{Digest, Sha256};

pub type Hash = [u8; 32];

/// The hash before the first row.
pub const START: Hash = [0; 32];

/// Changes when the form changes, so that no row of one form passes for a row of another.
const FORM: &[u8; 8] = b"audit/1\0";

/// A column's value as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    /// Microseconds since 2000-01-01.
    Timestamp(i64),
    Interval {
        months: i32,
        days: i32,
        microseconds: i64,
    },
    Uuid([u8; 16]),
    Text(&'a [u8]),
    /// Of one dimension, counting from 1; or without elements. The writer stores no other.
    TextArray(&'a [Option<&'a [u8]>]),
    /// As somebody else may have stored it: (length, lower bound) of each dimension.
    AnyTextArray {
        dimensions: &'a [(i32, i32)],
        elements: &'a [Option<&'a [u8]>],
    },
}

/// Hashes one row, column by column: its form as a whole, which is faster than many small pieces.
pub struct RowHasher(Vec<u8>);

impl RowHasher {
    pub fn new(previous: &Hash) -> Self {
        let mut form = Vec::with_capacity(1024);
        form.extend_from_slice(previous);
        form.extend_from_slice(FORM);
        RowHasher(form)
    }

    pub fn column(&mut self, value: Value) {
        match value {
            Value::Null => self.tag(0),
            Value::Integer(number) => self.numbers(1, &[number]),
            Value::Timestamp(time) => self.numbers(2, &[time]),
            Value::Interval {
                months,
                days,
                microseconds,
            } => {
                self.numbers(3, &[i64::from(months), i64::from(days), microseconds]);
            }
            Value::Uuid(uuid) => {
                self.tag(4);
                self.0.extend_from_slice(&uuid);
            }
            Value::Text(text) => self.text(text),
            Value::TextArray([]) => self.array(&[], &[]),
            Value::TextArray(elements) => self.array(&[(elements.len() as i32, 1)], elements),
            Value::AnyTextArray { dimensions, elements } => self.array(dimensions, elements),
        }
    }

    pub fn finish(self) -> Hash {
        Sha256::digest(&self.0).into()
    }

    fn tag(&mut self, tag: u8) {
        self.0.push(tag);
    }

    fn number(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn numbers(&mut self, tag: u8, numbers: &[i64]) {
        self.tag(tag);
        numbers.iter().for_each(|number| self.number(*number));
    }

    fn text(&mut self, text: &[u8]) {
        self.numbers(5, &[text.len() as i64]);
        self.0.extend_from_slice(text);
    }

    fn array(&mut self, dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) {
        self.numbers(6, &[dimensions.len() as i64]);
        for (length, lower_bound) in dimensions {
            self.number(i64::from(*length));
            self.number(i64::from(*lower_bound));
        }
        for element in elements {
            match element {
                None => self.tag(0),
                Some(text) => self.text(text),
            }
        }
    }
}

/// What a stored hash counts as for the row behind it.
pub fn stored(hash: Option<&[u8]>) -> Hash {
    hash.and_then(|hash| hash.try_into().ok()).unwrap_or(START)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_hash(previous: &Hash, columns: &[Value]) -> Hash {
        let mut hasher = RowHasher::new(previous);
        columns.iter().for_each(|value| hasher.column(*value));
        hasher.finish()
    }

    #[test]
    fn null_and_empty_differ() {
        let hash = |value| row_hash(&START, &[value]);
        assert_ne!(hash(Value::Null), hash(Value::Text(b"")));
        assert_ne!(hash(Value::Null), hash(Value::TextArray(&[])));
        assert_ne!(hash(Value::TextArray(&[])), hash(Value::TextArray(&[None])));
        assert_ne!(hash(Value::TextArray(&[None])), hash(Value::TextArray(&[Some(b"")])));
        assert_ne!(hash(Value::Integer(1)), hash(Value::Timestamp(1)));
    }

    #[test]
    fn text_does_not_flow_into_the_next_column() {
        let hash = |a, b| row_hash(&START, &[Value::Text(a), Value::Text(b)]);
        assert_ne!(hash(b"ab", b"c"), hash(b"a", b"bc"));
        assert_ne!(hash(b"", b"abc"), hash(b"abc", b""));
    }

    #[test]
    fn the_row_before_matters() {
        assert_ne!(
            row_hash(&START, &[Value::Integer(1)]),
            row_hash(&[1; 32], &[Value::Integer(1)])
        );
        assert_eq!(stored(None), START);
        assert_eq!(stored(Some(b"short")), START);
        assert_eq!(stored(Some(&[7; 32])), [7; 32]);
    }
}
