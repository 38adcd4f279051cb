//! What strings hold: SQL again, a connection string, a name.

use super::scan::{Kind, Token};
use super::{apply, is_secret_name, look, suspicious, Open, DEEPEST, REDACTED};

/// What a string holds that bears a sign of a secret.
pub(super) struct Content {
    /// How the string is to be written, if secrets were found in it.
    pub redacted: Option<Vec<u8>>,
    /// Whether what comes after it in a concatenation, or as an argument of format(), belongs to a secret.
    pub open: Open,
    /// It is the name of a secret and nothing else.
    pub is_name: bool,
}

impl Content {
    /// None for what isn't a string, or bears no sign of a secret.
    pub fn of(text: &[u8], token: &Token, escapes: bool, depth: usize) -> Option<Content> {
        let Kind::Text(quote) = token.kind else { return None };
        let (content, exact) = quote.decode(token.of(text), escapes);
        if !suspicious(&content) && !suspicious(token.of(text)) {
            return None;
        }
        let whole = || Some(REDACTED.to_vec());
        if depth == DEEPEST {
            return Some(Content {
                redacted: whole(),
                open: Open::No,
                is_name: false,
            });
        }
        let found = look(&content, depth + 1);
        let redacted = match found.edits.as_slice() {
            [] => None,
            _ if !exact => whole(),
            edits => {
                let before = &text[token.start..token.inner.0];
                let after = &text[token.inner.1..token.end];
                Some([before, &quote.encode(&apply(&content, edits), escapes), after].concat())
            }
        };
        let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let is_name = content.iter().all(in_name) && is_secret_name(&content);
        Some(Content {
            redacted,
            open: found.open,
            is_name,
        })
    }
}
