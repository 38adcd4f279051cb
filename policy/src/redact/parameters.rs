//! Parameters of a statement: which of them its text makes secrets, by the same rules as constants in their places.

use super::scan::{scan, Kind, Token};
use super::{apply, redact, suspicious, Edit, REDACTED};
use std::borrow::Cow;

/// Whether each of the first `count` parameters stands where a constant would be redacted: `$1` is the first.
pub fn secret_parameters(text: &[u8], count: usize) -> Vec<bool> {
    let mut secret = vec![false; count];
    if count == 0 || !suspicious(text) {
        return secret;
    }
    let (tokens, _) = scan(text, false);
    let number = |token: &Token| {
        std::str::from_utf8(&text[token.start + 1..token.end])
            .ok()?
            .parse()
            .ok()
    };
    let marked: Vec<(&Token, usize)> = tokens
        .iter()
        .filter(|token| token.kind == Kind::Parameter)
        .filter_map(|token| Some((token, number(token)?)))
        .collect();
    // With a constant in its place, and a word in that which no text has by chance.
    let edits: Vec<Edit> = marked
        .iter()
        .map(|(token, number)| Edit {
            start: token.start,
            end: token.end,
            with: Cow::Owned(format!("'{}'", mark(*number)).into_bytes()),
        })
        .collect();
    let before = apply(text, &edits);
    let after = redact(&before);
    for (_, number) in marked {
        if let Some(secret) = number.checked_sub(1).and_then(|place| secret.get_mut(place)) {
            let mark = mark(number);
            *secret = *secret || occurrences(&after, mark.as_bytes()) < occurrences(&before, mark.as_bytes());
        }
    }
    secret
}

fn mark(number: usize) -> String {
    format!("<parameter {number}>")
}

fn occurrences(text: &[u8], word: &[u8]) -> usize {
    let first = |byte: &u8| *byte == word[0];
    let mut found = 0;
    let mut rest = text;
    while let Some(at) = rest.iter().position(first) {
        found += usize::from(rest[at..].starts_with(word));
        rest = &rest[at + 1..];
    }
    found
}

/// The text of `EXECUTE p(...)`, or of a statement that ends in that, without the arguments for parameters that are
/// `secret` to the prepared statement.
pub fn redact_arguments<'t>(text: &'t [u8], secret: &[bool]) -> Cow<'t, [u8]> {
    if !secret.contains(&true) {
        return Cow::Borrowed(text);
    }
    let (tokens, ambiguous) = scan(text, false);
    let tokens: Vec<Token> = tokens.into_iter().filter(|token| token.kind != Kind::Comment).collect();
    // EXECUTE is no reserved word: a table may have that name.
    let is_call = |tokens: &[Token]| {
        tokens[0].kind == Kind::Word
            && tokens[0].of(text).eq_ignore_ascii_case(b"execute")
            && matches!(tokens[1].kind, Kind::Word | Kind::QuotedName)
            && tokens[2].kind == Kind::Open
    };
    let Some(execute) = tokens.windows(3).position(is_call) else {
        return Cow::Borrowed(text);
    };
    let open = execute + 2;
    let mut edits: Vec<Edit> = Vec::new();
    let (mut depth, mut item, mut begin) = (0, 0, tokens[open].end);
    for token in &tokens[open..] {
        let ends_item = depth == 1 && matches!(token.kind, Kind::Comma | Kind::Close);
        if ends_item {
            // Where quotes and backslashes may mean two things, items can't be told apart.
            if ambiguous || secret.get(item).copied().unwrap_or(false) {
                let inside = &text[begin..token.start];
                let blank = inside.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                edits.push(Edit {
                    start: begin + blank,
                    end: token.start,
                    with: Cow::Borrowed(REDACTED),
                });
            }
            item += 1;
            begin = token.end;
        }
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Cow::Owned(apply(text, &edits));
        }
    }
    // It doesn't end: not a statement that the server could have taken apart.
    let start = tokens[open].end;
    Cow::Owned([&text[..start], REDACTED].concat())
}
