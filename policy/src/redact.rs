//! Passwords and cookies out of statement text (L7, S7).
//!
//! Text is read as the server's scanner reads it, and never refused: it may be unfinished or nonsense. What is named
//! like a secret makes the constants secret that belong to it. Strings and comments are looked into, as they may hold
//! SQL, function bodies or connection strings in turn. When in doubt, redacted.
//!
//! Text is bytes in any server encoding: in all of them the bytes of a longer character are above 127.

mod frame;
mod pairs;
mod parameters;
mod scan;
mod statement;
mod string;

pub use parameters::{redact_arguments, secret_parameters};
use scan::{scan, Kind, Token};
use std::borrow::Cow;

/// Stands for a constant.
const REDACTED: &[u8] = b"'<redacted>'";
/// Stands for what had no quotes.
const BARE: &[u8] = b"<redacted>";
/// Strings within strings are looked into this deep: function body, dynamic SQL, its argument, a connection string.
const DEEPEST: usize = 5;

/// What is named like this holds a secret. `crypt` stands for pgcrypto's functions.
#[rustfmt::skip]
const SECRETS: [&str; 14] = [
    "password", "passwd", "passphrase", "passcode", "pwd", "secret", "cookie", "token", "api_key", "apikey",
    "access_key", "private_key", "credential", "crypt",
];

/// `text` with each secret in it replaced by `<redacted>`; borrowed, after one quick look, when it can't hold any.
/// Redacting again changes nothing.
pub fn redact(text: &[u8]) -> Cow<'_, [u8]> {
    let mut result = Cow::Borrowed(text);
    if !suspicious(text) {
        return result;
    }
    // Again, for a replacement may change how its surroundings read where they made no sense.
    for _ in 0..4 {
        let edits = look(&result, 0).edits;
        if edits.is_empty() {
            return result;
        }
        result = Cow::Owned(apply(&result, &edits));
    }
    Cow::Borrowed(REDACTED)
}

/// Where the secrets are that [`redact`] would replace, in order, quotes included.
pub fn secrets(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    if !suspicious(text) {
        return Vec::new();
    }
    look(text, 0).edits.iter().map(|edit| edit.start..edit.end).collect()
}

// --------------------------------------------------------------------------------------------------- the quick look ---

/// What can't be missing where a secret is: its place in the word of the two letters that are looked for.
#[rustfmt::skip]
const SIGNS: [(&str, usize); 13] = [
    ("pass", 2), ("pwd", 1), ("secret", 2), ("crypt", 0), ("credential", 0), ("cookie", 2), ("token", 1), ("_key", 0),
    ("apikey", 2), ("setuser", 2), ("identified", 5), ("uescape", 2), ("://", 0),
];

/// For each byte the signs whose first of the two letters it is (upper half), and whose second (lower half).
const fn letters() -> [u32; 256] {
    let mut table = [0; 256];
    let mut sign = 0;
    while sign < SIGNS.len() {
        let (word, place) = (SIGNS[sign].0.as_bytes(), SIGNS[sign].1);
        let mut letter = 0;
        while letter < 2 {
            let bit = 1 << (sign + 16 - 16 * letter);
            table[word[place + letter].to_ascii_lowercase() as usize] |= bit;
            table[word[place + letter].to_ascii_uppercase() as usize] |= bit;
            letter += 1;
        }
        sign += 1;
    }
    // An escape may hide any letter.
    table[b'\\' as usize] |= 1 << 31;
    let mut any = 0;
    while any < 256 {
        table[any] |= 1 << 15;
        any += 1;
    }
    table
}
static LETTERS: [u32; 256] = letters();

/// Whether there can be a secret in it.
fn suspicious(text: &[u8]) -> bool {
    let signs = |first: u8, second: u8| LETTERS[usize::from(first)] >> 16 & LETTERS[usize::from(second)];
    let mut start = 0;
    // Eight pairs with one branch.
    while let Some(near) = text[start..].first_chunk::<9>() {
        let mut found = 0;
        for at in 0..8 {
            found |= signs(near[at], near[at + 1]);
        }
        if found != 0 && bears_sign(text, start, 8) {
            return true;
        }
        start += 8;
    }
    bears_sign(text, start, text.len() - start)
}

#[cold]
fn bears_sign(text: &[u8], start: usize, length: usize) -> bool {
    (start..start + length).any(|at| {
        let signs =
            LETTERS[usize::from(text[at])] >> 16 & text.get(at + 1).map_or(0, |byte| LETTERS[usize::from(*byte)]);
        signs >> 15 != 0
            || signs != 0
                && SIGNS.iter().enumerate().any(|(sign, (word, place))| {
                    signs >> sign & 1 != 0
                        && at
                            .checked_sub(*place)
                            .is_some_and(|start| starts_with(&text[start..], word))
                })
    })
}

fn starts_with(text: &[u8], word: &str) -> bool {
    text.get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

fn is_secret_name(name: &[u8]) -> bool {
    !name.eq_ignore_ascii_case(b"password_encryption")
        && (SECRETS
            .iter()
            .any(|word| name.windows(word.len()).any(|part| starts_with(part, word)))
            || name
                .split(|byte| !byte.is_ascii_alphanumeric())
                .any(|part| part.eq_ignore_ascii_case(b"pass")))
}

// ------------------------------------------------------------------------------------------------------- what to do ---

#[derive(Clone, PartialEq)]
struct Edit {
    start: usize,
    end: usize,
    with: Cow<'static, [u8]>,
}

/// Whether what follows a string, such as a concatenation's next part, belongs to a secret that begins in it.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Open {
    No,
    /// It ends in a word that may be just a word.
    Perhaps,
    Yes,
}

struct Findings {
    edits: Vec<Edit>,
    open: Open,
}

/// Looks through a statement (depth 0), or through what a string or comment holds.
fn look(text: &[u8], depth: usize) -> Findings {
    let (tokens, ambiguous) = scan(text, false);
    let is_code = is_code(text, &tokens);
    let mut found = statement::secrets(text, &tokens, false, depth);
    if ambiguous {
        // Without standard_conforming_strings it means something else, and the setting is unknown.
        found.add(statement::secrets(text, &scan(text, true).0, true, depth));
    }
    if !is_code {
        found.add(pairs::secrets(text));
    }
    found.edits.sort_by_key(|edit| (edit.start, edit.end));
    found.edits.dedup_by(|next, edit| {
        let overlap = next.start < edit.end;
        if overlap && next != edit {
            edit.end = edit.end.max(next.end);
            edit.with = Cow::Borrowed(REDACTED);
        }
        overlap
    });
    found.edits.retain(|edit| text[edit.start..edit.end] != *edit.with);
    found
}

impl Findings {
    fn add(&mut self, more: Findings) {
        self.edits.extend(more.edits);
        if more.open > self.open {
            self.open = more.open;
        }
    }
}

fn apply(text: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len() + edits.len() * 4);
    let mut done = 0;
    for edit in edits {
        result.extend_from_slice(&text[done..edit.start]);
        // Quotes that touch would be a doubled quote.
        if edit.with.starts_with(b"'") && result.ends_with(b"'") {
            result.push(b' ');
        }
        result.extend_from_slice(&edit.with);
        if edit.with.ends_with(b"'") && text[edit.end..].starts_with(b"'") {
            result.push(b' ');
        }
        done = edit.end;
    }
    result.extend_from_slice(&text[done..]);
    result
}

/// Whether it begins like SQL or PL/pgSQL. If not, `password=x` is a pair in it and not a comparison.
fn is_code(text: &[u8], tokens: &[Token]) -> bool {
    #[rustfmt::skip]
    const BEGINNINGS: [&str; 58] = [
        "abort", "alter", "analyze", "begin", "call", "case", "checkpoint", "close", "cluster", "comment", "commit",
        "copy", "create", "deallocate", "declare", "delete", "discard", "do", "drop", "end", "execute", "exit",
        "explain", "fetch", "for", "get", "grant", "if", "import", "insert", "listen", "load", "lock", "loop", "merge",
        "move", "notify", "null", "open", "perform", "prepare", "raise", "reassign", "refresh", "reindex", "release",
        "reset", "return", "revoke", "rollback", "savepoint", "select", "set", "show", "truncate", "update", "values",
        "with",
    ];
    let mut tokens = tokens
        .iter()
        .filter(|token| !matches!(token.kind, Kind::Comment | Kind::Open));
    let is_beginning = tokens.next().is_some_and(|token| {
        token.kind == Kind::Word
            && BEGINNINGS
                .iter()
                .any(|word| token.of(text).eq_ignore_ascii_case(word.as_bytes()))
    });
    is_beginning
        && tokens
            .next()
            .is_none_or(|token| !matches!(text[token.start], b'=' | b':'))
}
