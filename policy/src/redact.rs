//! Passwords and cookies out of statement text (L7, S7).
//!
//! Text is read as the server's scanner reads it, and never refused: it may be unfinished or nonsense. What is named
//! like a secret makes the constants that belong to it secret. Strings are looked into, as they may hold SQL, function
//! bodies or connection strings in turn. When in doubt, redacted.
//!
//! Text is bytes in any server encoding: in all of them the bytes of a longer character are above 127.

use std::borrow::Cow;

/// Stands for a constant.
const REDACTED: &[u8] = b"'<redacted>'";
/// Stands for what had no quotes.
const BARE: &[u8] = b"<redacted>";

/// What is named like this holds a secret. `crypt` stands for pgcrypto's functions.
const SECRETS: [&[u8]; 14] = [
    b"password", b"passwd", b"passphrase", b"passcode", b"pwd", b"secret", b"cookie", b"token", b"api_key", b"apikey",
    b"access_key", b"private_key", b"credential", b"crypt",
];

/// `text` with each secret in it replaced by `<redacted>`; borrowed, after one quick look, when it can't hold any.
/// Redacting again changes nothing.
pub fn redact(text: &[u8]) -> Cow<'_, [u8]> {
    let mut result = Cow::Borrowed(text);
    if !suspicious(text) {
        return result;
    }
    // Once more, as a replacement may change how what is around it reads, if it made no sense before.
    for _ in 0..4 {
        let edits = find(&result, 0).edits;
        if edits.is_empty() {
            return result;
        }
        result = Cow::Owned(apply(&result, &edits));
    }
    Cow::Borrowed(REDACTED)
}
