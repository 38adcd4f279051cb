//! An event as one line of JSON, for the server log (`impersonate.audit_destination`).
//!
//! The members are the columns of `impersonate.audit` under their names, without those that are NULL; the hash is the
//! row's, in hexadecimal digits. The line is ASCII in every encoding.
//!
//! This file needs nothing of Postgres.

use super::chain::{Hash, Value};
use std::borrow::Cow;
use std::fmt::Write;

/// The text of a column, as Unicode.
pub type Decode<'a> = &'a dyn Fn(&[u8]) -> String;

/// For text of which nobody knows what it is: ASCII counts as that, each other byte as the character of its number.
pub fn bytewise(text: &[u8]) -> String {
    text.iter().map(|byte| char::from(*byte)).collect()
}

/// A line that is being written.
pub struct Line<'a> {
    json: String,
    decode: Decode<'a>,
}

impl<'a> Line<'a> {
    pub fn new(decode: Decode<'a>) -> Self {
        Line {
            json: String::from("{"),
            decode,
        }
    }

    /// Adds a column. `is_json` says of a text that it is JSON already.
    pub fn column(&mut self, name: &str, value: &Value, is_json: bool) {
        if *value == Value::Null {
            return;
        }
        self.name(name);
        match *value {
            Value::Null => (),
            Value::Integer(number) => self.number(number),
            Value::Timestamp(time) => {
                let time = iso_time(time);
                self.string(&time);
            }
            Value::Interval { microseconds, .. } => {
                // Seconds, exactly. The writer stores no others.
                let (sign, amount) = (if microseconds < 0 { "-" } else { "" }, microseconds.unsigned_abs());
                let _ = write!(self.json, "{sign}{}.{:06}", amount / 1_000_000, amount % 1_000_000);
            }
            Value::Uuid(uuid) => {
                let mut text = hexadecimal(&uuid);
                [20, 16, 12, 8].into_iter().for_each(|at| text.insert(at, '-'));
                self.string(&text);
            }
            Value::Text(text) if is_json => {
                let text = (self.decode)(text);
                self.json_text(&text);
            }
            Value::Text(text) => {
                let text = (self.decode)(text);
                self.string(&text);
            }
            Value::TextArray(elements) | Value::AnyTextArray { elements, .. } => {
                self.json.push('[');
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 {
                        self.json.push_str(", ");
                    }
                    match element {
                        Some(text) => {
                            let text = (self.decode)(text);
                            self.string(&text);
                        }
                        None => self.json.push_str("null"),
                    }
                }
                self.json.push(']');
            }
        }
    }

    pub fn finish(mut self, hash: &Hash) -> String {
        self.name("hash");
        self.string(&hexadecimal(hash));
        self.json.push('}');
        self.json
    }

    fn name(&mut self, name: &str) {
        if self.json.len() > 1 {
            self.json.push_str(", ");
        }
        let _ = write!(self.json, "\"{name}\": ");
    }

    fn number(&mut self, number: i64) {
        let _ = write!(self.json, "{number}");
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    self.json.push('\\');
                    self.json.push(character);
                }
                ' '..='~' => self.json.push(character),
                _ => self.escaped(character),
            }
        }
        self.json.push('"');
    }

    /// Text that is JSON: outside of ASCII there is nothing but the content of strings.
    fn json_text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                ' '..='~' => self.json.push(character),
                _ => self.escaped(character),
            }
        }
    }

    fn escaped(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.json, "\\u{unit:04x}");
        }
    }
}

/// Two digits for each byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Microseconds since 2000-01-01 as ISO 8601 has them, in UTC.
pub fn iso_time(time: i64) -> Cow<'static, str> {
    const DAY: i64 = 86_400_000_000;
    match time {
        i64::MIN => return "-infinity".into(),
        i64::MAX => return "infinity".into(),
        _ => (),
    }
    let (year, month, day) = date(time.div_euclid(DAY));
    let time = time.rem_euclid(DAY);
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:06}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
    .into()
}

/// Year, month and day of a number of days since 2000-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    // Years are counted from March, so that the odd day is a year's last; 400 of them have 146097 days.
    const ERA: i64 = 146_097;
    let days = days - 60;
    let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let january = i64::from(month >= 10);
    (2000 + era * 400 + year + january, month + 3 - 12 * january, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: Value, is_json: bool) -> String {
        let decode = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let mut line = Line::new(&decode);
        line.column("x", &value, is_json);
        let line = line.finish(&[0xAB; 32]);
        let hash = format!("\"hash\": \"{}\"}}", "ab".repeat(32));
        line.strip_suffix(&hash).unwrap().to_owned()
    }

    #[test]
    fn values_are_json_and_ascii() {
        assert_eq!(shown(Value::Null, false), "{");
        assert_eq!(shown(Value::Integer(-7), false), "{\"x\": -7, ");
        assert_eq!(
            shown(Value::Text("a\"b\\\n\u{7f}é😀".as_bytes()), false),
            "{\"x\": \"a\\\"b\\\\\\u000a\\u007f\\u00e9\\ud83d\\ude00\", "
        );
        assert_eq!(
            shown(Value::Text("{\"k\": \"é\\n\"}".as_bytes()), true),
            "{\"x\": {\"k\": \"\\u00e9\\n\"}, "
        );
        assert_eq!(
            shown(Value::TextArray(&[Some(b"a"), None, Some(b"")]), false),
            "{\"x\": [\"a\", null, \"\"], "
        );
        assert_eq!(shown(Value::TextArray(&[]), false), "{\"x\": [], ");
        let interval = |microseconds| Value::Interval {
            months: 0,
            days: 0,
            microseconds,
        };
        assert_eq!(shown(interval(-1_500_000), false), "{\"x\": -1.500000, ");
        assert_eq!(shown(interval(42), false), "{\"x\": 0.000042, ");
        assert_eq!(
            shown(Value::Uuid(std::array::from_fn(|at| at as u8)), false),
            "{\"x\": \"00010203-0405-0607-0809-0a0b0c0d0e0f\", "
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let day = 86_400_000_000;
        assert_eq!(iso_time(0), "2000-01-01T00:00:00.000000Z");
        assert_eq!(iso_time(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(iso_time(59 * day), "2000-02-29T00:00:00.000000Z");
        assert_eq!(iso_time(60 * day), "2000-03-01T00:00:00.000000Z");
        assert_eq!(iso_time(9_555 * day + 3_661_000_001), "2026-02-28T01:01:01.000001Z");
        assert_eq!(iso_time(9_556 * day), "2026-03-01T00:00:00.000000Z");
        assert_eq!(iso_time(36_524 * day), "2099-12-31T00:00:00.000000Z");
        assert_eq!(iso_time(i64::MAX), "infinity");
    }
}
