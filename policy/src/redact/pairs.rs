//! Secrets in text that isn't SQL: libpq's connection strings and URIs, JSON, and whatever has a name and a value.

use super::scan::{in_word, is_space, quoted, span};
use super::{is_secret_name, Edit, Findings, Open, BARE, REDACTED};
use std::borrow::Cow;

/// A URI's host comes within this many bytes, so that text made of `://` doesn't take for ever.
const FARTHEST: usize = 2048;

/// The values of pairs whose name is a secret's, and the passwords of URIs.
pub(super) fn secrets(text: &[u8]) -> Findings {
    let mut found = Findings {
        edits: Vec::new(),
        open: Open::No,
    };
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(b"://") {
            at = uri(text, at + 3, &mut found);
        } else if in_word(text[at]) {
            let end = span(text, at, |byte| in_word(byte) || matches!(byte, b'-' | b'.'));
            at = if is_secret_name(&text[at..end]) {
                value(text, end, &mut found)
            } else {
                end
            };
        } else {
            at += 1;
        }
    }
    found
}

/// After `://`: `user:password@`. Passwords that should be escaped and aren't may have an @ themselves.
fn uri(text: &[u8], start: usize, found: &mut Findings) -> usize {
    let near = &text[..text.len().min(start + FARTHEST)];
    let end = span(near, start, |byte| !is_space(byte) && byte != b'\'' && byte != b'"');
    let all = &text[start..end];
    let Some(colon) = all.iter().position(|byte| *byte == b':') else {
        return start;
    };
    match all.iter().rposition(|byte| *byte == b'@') {
        Some(place) if place > colon => {
            let password = &all[colon + 1..place];
            if is_placeholder(password) {
                found.open = Open::Yes;
            } else if !password.is_empty() {
                found.redact(start + colon + 1, start + place, BARE);
            }
            start + place
        }
        _ => {
            if colon + 1 == all.len() && end == text.len() {
                found.open = Open::Yes;
            }
            start
        }
    }
}

/// After a name: `=`, `:`, `=>` or nothing, and the value. Returns where to go on.
fn value(text: &[u8], name_end: usize, found: &mut Findings) -> usize {
    let is_space_here = |byte| is_space(byte);
    let name_closed = span(text, name_end, |byte| matches!(byte, b'"' | b'\'' | b'\\'));
    let sign = span(text, name_closed, is_space_here);
    let sign_end = span(text, sign, |byte| matches!(byte, b'=' | b':' | b'>'));
    let start = span(text, sign_end, is_space_here);
    let has_sign = sign_end > sign;
    // JSON in a string of something else.
    let start = if has_sign && text[start..].starts_with(b"\\\"") {
        start + 1
    } else {
        start
    };
    match text.get(start) {
        None if has_sign => {
            found.open = Open::Yes;
            start
        }
        None => {
            // `... PASSWORD ` waits for more, the last word of a sentence does not.
            let waits = name_closed < start;
            found.open = if waits || found.open == Open::Yes {
                Open::Yes
            } else {
                Open::Perhaps
            };
            start
        }
        Some(quote @ (b'\'' | b'"')) if has_sign || name_closed == name_end => {
            let (inner_end, closed) = quoted(text, start + 1, *quote, true);
            let mut end = inner_end + usize::from(closed);
            if *quote == b'"' && name_closed == name_end {
                // To libpq a double quote is none.
                end = end.max(span(text, start, |byte| !is_space(byte)));
            }
            if !closed {
                found.open = Open::Yes;
            }
            if is_placeholder(&text[start + 1..inner_end]) && end <= inner_end + 1 {
                found.open = Open::Yes;
            } else if end > start + 2 || !closed {
                found.redact(start, end, if *quote == b'"' { b"\"<redacted>\"" } else { REDACTED });
            }
            end
        }
        Some(b'[' | b'{') if has_sign => {
            let end = bracketed(text, start);
            found.redact(start, end, BARE);
            end
        }
        Some(_) if has_sign => {
            let is_json = name_closed > name_end;
            let mut end = start;
            while end < text.len() && !is_space(text[end]) && !(is_json && matches!(text[end], b',' | b'}' | b']')) {
                end += if text[end] == b'\\' { 2 } else { 1 };
            }
            let end = end.min(text.len());
            if is_placeholder(&text[start..end]) {
                found.open = Open::Yes;
            } else if end > start {
                found.redact(start, end, BARE);
            }
            end
        }
        Some(b'%' | b'$') if is_placeholder(word_at(text, start)) => {
            found.open = Open::Yes;
            start
        }
        Some(_) => name_closed,
    }
}

/// The end of a JSON array or object, or of the text.
fn bracketed(text: &[u8], start: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in text.iter().enumerate().skip(start) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            // libpq knows no brackets.
            return span(text, at + 1, |byte| !is_space(byte) && !b",]}".contains(&byte));
        }
    }
    text.len()
}

/// Up to the next space, or far enough to know that it is no placeholder.
fn word_at(text: &[u8], start: usize) -> &[u8] {
    let near = &text[..text.len().min(start + 16)];
    &near[start..span(near, start, |byte| !is_space(byte))]
}

/// What `format()`, RAISE and EXECUTE put a value for: `%s`, `%2$L`, `%`, `$1`.
fn is_placeholder(value: &[u8]) -> bool {
    match value {
        [b'%'] => true,
        [b'%', format @ .., b's' | b'L' | b'I'] => format
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'$' | b'-' | b'*')),
        [b'$', number @ ..] => !number.is_empty() && number.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

impl Findings {
    fn redact(&mut self, start: usize, end: usize, with: &'static [u8]) {
        self.edits.push(Edit {
            start,
            end,
            with: Cow::Borrowed(with),
        });
    }
}
