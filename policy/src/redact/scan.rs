//! Statement text as tokens, cut as the server's scanner cuts it (src/backend/parser/scan.l). Any bytes have tokens.

use std::borrow::Cow;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A keyword or name. A quoted name is its own kind.
    Word,
    QuotedName,
    /// A string constant, or one of the parts of it that stand on lines of their own.
    Text(Quote),
    Number,
    Parameter,
    Operator,
    Dot,
    Comma,
    Semicolon,
    Open,
    Close,
    Comment,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Quote {
    Plain,
    Escape,
    Unicode,
    Dollar,
}

#[derive(Clone, Copy)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
    /// Of strings, names and comments: where what is between the quotes begins and ends.
    pub inner: (usize, usize),
}

impl Token {
    pub fn of<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        &text[self.inner.0..self.inner.1]
    }
}

pub(super) fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 128
}

pub(super) fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// How far `wanted` goes on from `at`.
pub(super) fn span(text: &[u8], at: usize, wanted: impl Fn(u8) -> bool) -> usize {
    text[at..]
        .iter()
        .position(|byte| !wanted(*byte))
        .map_or(text.len(), |length| at + length)
}

/// The end of what is in quotes from `at` on, and whether there is a closing quote, at the end's place.
pub(super) fn quoted(text: &[u8], mut at: usize, quote: u8, escapes: bool) -> (usize, bool) {
    while at < text.len() {
        if text[at] == quote {
            if text.get(at + 1) != Some(&quote) {
                return (at, true);
            }
            at += 1;
        } else if escapes && text[at] == b'\\' {
            at += 1;
        }
        at += 1;
    }
    (text.len(), false)
}

/// The end of a block comment's inside, and the comment's.
fn block_comment(text: &[u8], mut at: usize) -> (usize, usize) {
    let mut depth = 1;
    while at + 1 < text.len() {
        match &text[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return (at - 2, at);
        }
    }
    (text.len(), text.len())
}

/// The tokens, and whether a plain string has a quote after a backslash. `escapes`: plain strings have them.
pub(super) fn scan(text: &[u8], escapes: bool) -> (Vec<Token>, bool) {
    let mut tokens: Vec<Token> = Vec::with_capacity(text.len() / 5 + 1);
    let mut ambiguous = false;
    // A string goes on after a line break; its first part says how it is quoted.
    let mut going_on = None;
    let mut new_line = false;
    let mut at = 0;
    while at < text.len() {
        let start = at;
        let byte = text[at];
        let next = text.get(at + 1).copied().unwrap_or(0);
        let third = text.get(at + 2).copied().unwrap_or(0);
        if is_space(byte) {
            new_line |= matches!(byte, b'\n' | b'\r');
            at += 1;
            continue;
        }
        let simple = |kind, end| (kind, end, (start, end));
        let string = |quote, open: usize| {
            let escapes = quote == Quote::Escape || quote == Quote::Plain && escapes;
            let (inner_end, closed) = quoted(text, start + open, b'\'', escapes);
            (
                Kind::Text(quote),
                inner_end + usize::from(closed),
                (start + open, inner_end),
            )
        };
        let name = |open: usize| {
            let (inner_end, closed) = quoted(text, start + open, b'"', false);
            (
                Kind::QuotedName,
                inner_end + usize::from(closed),
                (start + open, inner_end),
            )
        };
        let (kind, end, inner) = match (byte, next) {
            (b'-', b'-') => {
                let end = span(text, at, |byte| !matches!(byte, b'\n' | b'\r'));
                (Kind::Comment, end, (at + 2, end))
            }
            (b'/', b'*') => {
                let (inner_end, end) = block_comment(text, at + 2);
                (Kind::Comment, end, (at + 2, inner_end))
            }
            (b'\'', _) => string(going_on.filter(|_| new_line).unwrap_or(Quote::Plain), 1),
            (b'e' | b'E', b'\'') => string(Quote::Escape, 2),
            (b'n' | b'N' | b'b' | b'B' | b'x' | b'X', b'\'') => string(Quote::Plain, 2),
            (b'u' | b'U', b'&') if third == b'\'' => string(Quote::Unicode, 3),
            (b'u' | b'U', b'&') if third == b'"' => name(3),
            (b'"', _) => name(1),
            (b'$', b'0'..=b'9') => simple(Kind::Parameter, span(text, at + 1, |byte| byte.is_ascii_digit())),
            (b'$', _) => {
                let tag_end = if next.is_ascii_digit() {
                    at + 1
                } else {
                    span(text, at + 1, in_word)
                };
                if text.get(tag_end) == Some(&b'$') {
                    let tag = &text[at..=tag_end];
                    let begin = tag_end + 1;
                    match text[begin..].windows(tag.len()).position(|part| part == tag) {
                        Some(length) => (
                            Kind::Text(Quote::Dollar),
                            begin + length + tag.len(),
                            (begin, begin + length),
                        ),
                        None => (Kind::Text(Quote::Dollar), text.len(), (begin, text.len())),
                    }
                } else {
                    simple(Kind::Operator, at + 1)
                }
            }
            (b'0'..=b'9', _) => simple(Kind::Number, span(text, at, |byte| in_word(byte) || byte == b'.')),
            (byte, _) if in_word(byte) => simple(Kind::Word, span(text, at, |byte| in_word(byte) || byte == b'$')),
            (b'.', _) => simple(Kind::Dot, at + 1),
            (b',', _) => simple(Kind::Comma, at + 1),
            (b';', _) => simple(Kind::Semicolon, at + 1),
            (b'(' | b'[', _) => simple(Kind::Open, at + 1),
            (b')' | b']', _) => simple(Kind::Close, at + 1),
            _ => {
                let mut end = span(text, at + 1, |byte| b"+-*/<>=~!@#%^&|`?:".contains(&byte));
                if let Some(length) = text[at..end]
                    .windows(2)
                    .skip(1)
                    .position(|two| two == b"--" || two == b"/*")
                {
                    end = at + 1 + length;
                }
                simple(Kind::Operator, end)
            }
        };
        match kind {
            Kind::Text(quote) => {
                going_on = (quote != Quote::Dollar).then_some(quote);
                new_line = false;
                ambiguous |= quote == Quote::Plain && text[inner.0..end].windows(2).any(|two| two == b"\\'");
            }
            Kind::Comment => {}
            _ => going_on = None,
        }
        tokens.push(Token {
            kind,
            start,
            end,
            inner,
        });
        at = end;
    }
    (tokens, ambiguous)
}

impl Quote {
    /// What a string holds, and whether `encode` can write it again.
    pub fn decode<'t>(self, inner: &'t [u8], escapes: bool) -> (Cow<'t, [u8]>, bool) {
        let escapes = self == Quote::Escape || self == Quote::Plain && escapes;
        if self == Quote::Dollar || !inner.iter().any(|byte| matches!(byte, b'\'' | b'\\')) {
            return (Cow::Borrowed(inner), true);
        }
        let mut text = Vec::with_capacity(inner.len());
        let mut exact = true;
        let mut rest = inner;
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'\'' => rest = rest.strip_prefix(b"'").unwrap_or(rest),
                b'\\' if escapes || self == Quote::Unicode => {
                    let (character, length) = if escapes { escape(rest) } else { unicode_escape(rest) };
                    // Others depend on the encoding.
                    exact &= escapes && matches!(character, 1..=127);
                    text.push(character);
                    rest = &rest[length..];
                    continue;
                }
                _ => {}
            }
            text.push(*byte);
        }
        (Cow::Owned(text), exact)
    }

    /// The inverse, for what `decode` called exact.
    pub fn encode(self, text: &[u8], escapes: bool) -> Vec<u8> {
        let escapes = self == Quote::Escape || self == Quote::Plain && escapes;
        let mut inner = Vec::with_capacity(text.len());
        for byte in text {
            if self != Quote::Dollar && (*byte == b'\'' || escapes && *byte == b'\\') {
                inner.push(*byte);
            }
            inner.push(*byte);
        }
        inner
    }
}

/// The character after a backslash in an E string, and the length of what stands for it. `?` for what isn't ASCII.
fn escape(rest: &[u8]) -> (u8, usize) {
    let digits = |begin: usize, most: usize, radix: u32| {
        let digits = rest[begin.min(rest.len())..].iter().take(most);
        let length = digits
            .clone()
            .take_while(|byte| char::from(**byte).is_digit(radix))
            .count();
        let code = digits.take(length).fold(0, |code: u32, byte| {
            code * radix + char::from(*byte).to_digit(radix).unwrap_or(0)
        });
        (
            u8::try_from(code).ok().filter(u8::is_ascii).unwrap_or(b'\xff'),
            begin + length,
        )
    };
    match rest.first() {
        None => (b'\\', 0),
        Some(b'b') => (0x08, 1),
        Some(b'f') => (0x0c, 1),
        Some(b'n') => (b'\n', 1),
        Some(b'r') => (b'\r', 1),
        Some(b't') => (b'\t', 1),
        Some(b'0'..=b'7') => digits(0, 3, 8),
        Some(b'x') => digits(1, 2, 16),
        Some(b'u') => digits(1, 4, 16),
        Some(b'U') => digits(1, 8, 16),
        Some(other) => (*other, 1),
    }
}

/// The same in a U& string.
fn unicode_escape(rest: &[u8]) -> (u8, usize) {
    let (begin, length) = if rest.first() == Some(&b'+') { (1, 6) } else { (0, 4) };
    match rest
        .get(begin..begin + length)
        .and_then(|code| std::str::from_utf8(code).ok())
    {
        Some(code) => match u32::from_str_radix(code, 16) {
            Ok(code) => (
                u8::try_from(code).ok().filter(u8::is_ascii).unwrap_or(b'\xff'),
                begin + length,
            ),
            Err(_) => (b'\\', 0),
        },
        None => (b'\\', 0),
    }
}
