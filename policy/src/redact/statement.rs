//! Secrets in SQL and PL/pgSQL: which constants belong to a name that is a secret's.
//!
//! One walk over the tokens, with what is known of each open parenthesis; time is linear in the text.

use super::frame::{Frame, State, Statement};
use super::scan::{is_space, span, Kind, Quote, Token};
use super::string::Content;
use super::{is_secret_name, look, suspicious, Edit, Findings, Open, BARE, DEEPEST, REDACTED};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;
use State::{Expression, Named, Nothing};

/// The constants that are secret, the strings that hold secrets, and the comments.
pub(super) fn secrets(text: &[u8], tokens: &[Token], escapes: bool, depth: usize) -> Findings {
    let significant: Vec<Token> = tokens
        .iter()
        .filter(|token| token.kind != Kind::Comment)
        .copied()
        .collect();
    let mut walk = Walk {
        text,
        tokens: &significant,
        depth,
        next: 0,
        name_begin: 0,
        strings: significant
            .iter()
            .map(|token| Content::of(text, token, escapes, depth))
            .collect(),
        secret: vec![false; significant.len()],
        bare: Vec::new(),
        frames: vec![Frame::default()],
        statement: Statement::default(),
        open: Open::No,
    };
    while walk.next < significant.len() {
        walk.next += 1;
        walk.step(walk.next - 1);
    }
    walk.end_of_text();
    walk.end_of_statement(significant.len());
    let mut found = Findings {
        edits: walk.bare,
        open: walk.open,
    };
    let redacted = |token: &Token, with| Edit {
        start: token.start,
        end: token.end,
        with,
    };
    for ((token, content), secret) in significant.iter().zip(walk.strings).zip(walk.secret) {
        if secret {
            found.edits.push(redacted(token, Cow::Borrowed(REDACTED)));
        } else if let Some(with) = content.and_then(|content| content.redacted) {
            found.edits.push(redacted(token, Cow::Owned(with)));
        }
    }
    for token in tokens.iter().filter(|token| token.kind == Kind::Comment) {
        let content = token.of(text);
        if suspicious(content) && (depth == DEEPEST || !look(content, depth + 1).edits.is_empty()) {
            let with: &[u8] = if text[token.start] == b'-' {
                b"--<redacted>"
            } else {
                b"/*<redacted>*/"
            };
            found.edits.push(redacted(token, Cow::Borrowed(with)));
        }
    }
    found
}

struct Walk<'t> {
    text: &'t [u8],
    tokens: &'t [Token],
    depth: usize,
    /// The token to come.
    next: usize,
    /// Where the name that the last word belongs to begins.
    name_begin: usize,
    strings: Vec<Option<Content>>,
    secret: Vec<bool>,
    /// Secrets that are written without quotes, by mistake.
    bare: Vec<Edit>,
    /// Never empty.
    frames: Vec<Frame>,
    statement: Statement,
    open: Open,
}

impl Walk<'_> {
    fn step(&mut self, at: usize) {
        let kind = self.tokens[at].kind;
        if !matches!(
            kind,
            Kind::Word | Kind::QuotedName | Kind::Dot | Kind::Comma | Kind::Close
        ) {
            self.frame().more_than_names = true;
        }
        match kind {
            Kind::Word | Kind::QuotedName => self.word(at),
            Kind::Text(quote) => self.string(at, quote),
            Kind::Number => self.number(at),
            Kind::Parameter => {
                if matches!(self.frame().state, Expression { .. } | Named { at_once: true, .. }) {
                    self.open = Open::Yes;
                }
                self.operand();
            }
            Kind::Operator => self.operator(at),
            Kind::Open => self.opened(at, false),
            Kind::Close => {
                while self.frame().is_case {
                    self.closed(at);
                }
                self.closed(at);
            }
            Kind::Comma => self.comma(at),
            Kind::Semicolon => self.end_of_statement(at),
            Kind::Dot | Kind::Comment => {}
        }
    }

    fn frame(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn before(&self, at: usize) -> Option<Kind> {
        at.checked_sub(1).and_then(|at| self.kind(at))
    }

    fn is(&self, at: usize, words: &[&str]) -> bool {
        self.kind(at) == Some(Kind::Word) && {
            let word = self.tokens[at].of(self.text);
            words.iter().any(|wanted| word.eq_ignore_ascii_case(wanted.as_bytes()))
        }
    }

    fn was(&self, at: usize, words: &[&str]) -> bool {
        at > 0 && self.is(at - 1, words)
    }

    fn is_operator(&self, at: usize, wanted: &[&str]) -> bool {
        self.kind(at) == Some(Kind::Operator)
            && wanted
                .iter()
                .any(|wanted| self.tokens[at].of(self.text) == wanted.as_bytes())
    }

    /// Whether a name at this place is a secret's. One with escapes may be any.
    fn names_secret(&self, at: usize) -> bool {
        let token = &self.tokens[at];
        let has_escapes = token.kind == Kind::QuotedName && token.inner.0 - token.start == 3;
        has_escapes || is_secret_name(token.of(self.text))
    }

    /// Whether a constant in the frame's current item is secret, whatever comes before it there.
    fn in_secret_item(&mut self) -> bool {
        let everywhere = self.statement.all;
        let frame = self.frame();
        everywhere || frame.all || frame.secret_items.binary_search(&frame.number).is_ok()
    }

    fn redact_strings(&mut self, from: usize, to: usize) {
        for at in from..to {
            if matches!(self.tokens[at].kind, Kind::Text(_)) {
                self.secret[at] = true;
            }
        }
    }

    /// Something that an expression may end with.
    fn operand(&mut self) {
        let state = &mut self.frame().state;
        match state {
            Expression { complete } => *complete = true,
            Named { at_once, .. } => *at_once = false,
            Nothing => {}
        }
    }

    fn string(&mut self, at: usize, quote: Quote) {
        let state = self.frame().state;
        let goes_on = matches!(self.before(at), Some(Kind::Text(_))) && self.secret[at - 1];
        let has_own_escape = quote == Quote::Unicode && self.is(at + 1, &["uescape"]);
        self.secret[at] = goes_on
            || has_own_escape
            || self.in_secret_item()
            || matches!(state, Expression { .. } | Named { at_once: true, .. });
        self.operand();
        let Some(content) = &self.strings[at] else { return };
        let (open, is_name) = (content.open, content.is_name);
        if open == Open::Yes || open == Open::Perhaps && self.is_operator(at + 1, &["||"]) {
            self.statement.all = true;
        }
        if is_name && !self.secret[at] {
            self.statement.names_by_string = true;
            self.frame().state = Named {
                at_once: true,
                by_string: true,
            };
        }
    }

    fn number(&mut self, at: usize) {
        let state = self.frame().state;
        let is_value = self.was(at, &["to", "default"])
            || at > 0 && self.is_operator(at - 1, &["=", "=>", ":=", "<>", "!="])
            || self.before(at) == Some(Kind::Comma);
        let alone = self.frame().item == at && !self.frame().all && !self.statement.all;
        self.secret[at] = is_value && state == Expression { complete: false } || alone && self.in_secret_item();
        self.operand();
    }

    fn operator(&mut self, at: usize) {
        if self.is_operator(at, &["::"]) {
            // The type that follows is none of the expression's words.
            let is_name = |at| matches!(self.kind(at), Some(Kind::Word | Kind::QuotedName));
            let mut end = at + 1;
            while is_name(end) {
                end += 1;
                if self.kind(end) == Some(Kind::Dot) && is_name(end + 1) {
                    end += 1;
                } else {
                    break;
                }
            }
            self.next = end;
            return;
        }
        if self.is_operator(at, &["=>", ":="]) {
            // By name, not by position.
            self.frame().secret_items = Rc::default();
        }
        self.frame().compares |= self.is_operator(at, &COMPARISONS);
        let is_placeholder = self.tokens[at].of(self.text).starts_with(b"%");
        let assigns = self.is_operator(at, &["=", ":="]);
        let state = self.frame().state;
        match state {
            Expression { .. } | Named { at_once: true, .. } => {
                if is_placeholder {
                    self.open = Open::Yes;
                }
                if matches!(state, Named { .. }) && self.is_operator(at, &["="]) {
                    self.bare_value(at);
                }
                self.frame().state = Expression { complete: false };
            }
            Named { at_once: false, .. } if assigns => self.frame().state = Expression { complete: false },
            _ => {}
        }
    }

    fn opened(&mut self, at: usize, is_case: bool) {
        let after_name = matches!(self.before(at), Some(Kind::Word | Kind::QuotedName));
        let state = self.frame().state;
        let all = self.in_secret_item()
            || matches!(state, Expression { .. })
            || after_name && matches!(state, Named { at_once: true, .. });
        let is_row = self.was(at, &["values"]) || self.frame().values && self.before(at) == Some(Kind::Comma);
        let is_setuser = after_name && self.tokens[at - 1].of(self.text).eq_ignore_ascii_case(b"setuser");
        let secret_items = match &self.statement.columns {
            _ if is_setuser => Rc::from([3]),
            Some(columns) if is_row => columns.clone(),
            _ => Rc::default(),
        };
        self.frames.push(Frame {
            all,
            is_case,
            begin: at,
            item: at + 1,
            secret_items,
            ..Frame::default()
        });
    }

    fn closed(&mut self, at: usize) {
        if self.frames.len() == 1 {
            return;
        }
        let Some(frame) = self.frames.pop() else { return };
        if let Expression { .. } = self.frame().state {
            self.operand();
        } else if frame.names_secret {
            if self.frame().compares {
                // 'x' = lower(password), 'x' IN (SELECT password ...)
                let item = self.frame().item;
                self.redact_strings(item, frame.begin);
                self.frame().begin_item(at);
            }
            // lower(password) = ..., (name, password) = ...
            self.frame().state = Named {
                at_once: true,
                by_string: false,
            };
            self.frame().names_secret = true;
        }
        if !frame.more_than_names && !frame.secret_names.is_empty() {
            match self.statement.values {
                // (VALUES ...) AS t (name, password)
                Some(values) => {
                    self.redact_strings(values, at);
                    self.statement.values = None;
                }
                None if self.statement.has_columns => self.add_columns(&frame.secret_names),
                None => {}
            }
        }
    }

    fn add_columns(&mut self, more: &[usize]) {
        let known = self.statement.columns.as_deref().unwrap_or_default();
        if !more.iter().all(|number| known.binary_search(number).is_ok()) {
            let all: BTreeSet<usize> = known.iter().chain(more).copied().collect();
            self.statement.columns = Some(all.into_iter().collect());
        }
    }

    fn comma(&mut self, at: usize) {
        let next_is_string = matches!(self.kind(at + 1), Some(Kind::Text(_)));
        let sets = self.frames.len() == 1 && self.is(self.statement.begin, &["set", "alter"]);
        let frame = self.frame();
        frame.number += 1;
        frame.begin_item(at + 1);
        frame.state = match frame.state {
            Named {
                at_once: true,
                by_string: true,
            } => Expression { complete: false },
            // SET takes lists.
            Expression { .. } if sets && next_is_string => Expression { complete: false },
            _ => Nothing,
        };
    }

    fn word(&mut self, at: usize) {
        let in_chain = self.before(at) == Some(Kind::Dot);
        if !in_chain {
            self.name_begin = at;
            if self.skips_escape(at) {
                return;
            }
            if self.kind(at) == Some(Kind::Word) && (self.goes_on(at) || self.separates(at)) {
                return;
            }
        }
        match self.frame().state {
            Expression { complete: true } if !in_chain => self.frame().state = Nothing,
            Named { .. } if in_chain => {}
            _ => self.operand(),
        }
        if self.names_secret(at) {
            self.secret_name(at);
        } else if self.is(at, &["by"]) && self.was(at, &["identified"]) {
            self.frame().state = Named {
                at_once: true,
                by_string: false,
            };
        }
    }

    /// UESCAPE '!' belongs to the string or name before it.
    fn skips_escape(&mut self, at: usize) -> bool {
        let is_one = self.is(at, &["uescape"])
            && matches!(self.before(at), Some(Kind::Text(_) | Kind::QuotedName))
            && matches!(self.kind(at + 1), Some(Kind::Text(_)))
            && self.tokens[at + 1].of(self.text).len() == 1;
        self.next += usize::from(is_one);
        is_one
    }

    /// Words within an expression, and those between a name and what it is set to or compared with.
    fn goes_on(&mut self, at: usize) -> bool {
        let state = self.frame().state;
        let goes_on = match state {
            Nothing => false,
            Expression { .. } => self.is(at, &["not", "any", "all", "some", "array", "row"]),
            Named { at_once, .. } => self.is(at, &["default"]) || at_once && self.is(at, &["to"]),
        };
        let compares = state != Nothing
            && (self.is(at, &["like", "ilike", "similar", "in", "between"])
                || self.is(at, &["from"]) && self.was(at, &["distinct"])
                || self.is(at, &["and"]) && self.was_between(at));
        if goes_on || compares {
            self.frame().state = Expression { complete: false };
        }
        goes_on || compares
    }

    /// BETWEEN 'a' AND 'b'
    fn was_between(&self, at: usize) -> bool {
        at > 1 && self.is(at - 2, &["between"])
    }

    /// Words that begin a clause or an item, and what they say of what follows.
    fn separates(&mut self, at: usize) -> bool {
        if self.is(at, &["case"]) {
            self.frame().more_than_names = true;
            self.opened(at, true);
            return true;
        }
        if self.is(at, &["end"]) && self.frame().is_case {
            self.closed(at);
            return true;
        }
        self.frame().compares |= self.is(at, &["in", "like", "ilike"]);
        if self.is(at, &["role", "user", "group"]) && self.was(at, &["create", "alter"]) {
            self.statement.of_role = true;
        }
        self.statement.has_columns |= self.is(at, &["insert", "with", "table", "view"]);
        self.statement.updates |= self.is(at, &["update"]);
        let separates = self.is(at, &SEPARATORS);
        if separates {
            let columns = self.statement.columns.clone();
            let (values, select, from) = (
                self.is(at, &["values"]),
                self.is(at, &["select"]),
                self.is(at, &["from"]),
            );
            if values {
                self.statement.values.get_or_insert(at);
            }
            let frame = self.frame();
            frame.state = Nothing;
            frame.begin_item(at + 1);
            frame.values |= values;
            if select {
                frame.number = 0;
                frame.secret_items = columns.unwrap_or_default();
            } else if from {
                frame.secret_items = Rc::default();
            }
        }
        separates
    }

    fn secret_name(&mut self, at: usize) {
        let begin = self.name_begin;
        let frame = self.frame();
        let item = frame.item;
        frame.names_secret = true;
        if !frame.more_than_names && frame.secret_names.last() != Some(&frame.number) {
            frame.secret_names.push(frame.number);
        }
        if !matches!(frame.state, Expression { .. }) {
            frame.state = Named {
                at_once: true,
                by_string: false,
            };
        }
        let is_compared = begin > 0
            && (self.is_operator(
                begin - 1,
                &["=", "<>", "!=", "~", "~*", "!~", "!~*", "<", ">", "<=", ">="],
            ) || self.was(begin, &["as", "like", "ilike"]));
        if is_compared {
            // 'x' = password, 'x' AS password
            self.redact_strings(item, begin);
            self.frame().begin_item(at);
        } else if matches!(self.before(begin), Some(Kind::Text(_))) && !self.statement.of_role {
            // SELECT 'x' password
            self.secret[begin - 1] = true;
        }
        if self.was(begin, &["into"]) && begin > 1 && self.is(begin - 2, &["insert"]) {
            self.statement.all = true;
        }
        if self.statement.of_role && begin == at && self.is(at, &["password"]) {
            self.bare_password(at + 1);
        }
    }

    /// ALTER ROLE x PASSWORD y: the quotes were forgotten, and the server will say so. But the text is recorded.
    fn bare_password(&mut self, at: usize) {
        let is_bare = matches!(self.kind(at), Some(Kind::Word | Kind::QuotedName | Kind::Number));
        if is_bare && !self.is(at, &["null", "password", "to"]) {
            self.redact_bare(at, REDACTED);
        }
    }

    /// `password=x` in a string that begins like SQL. With spaces around it is a comparison of columns.
    fn bare_value(&mut self, operator: usize) {
        let at = operator + 1;
        let [before, sign, after] = match self.tokens.get(operator.wrapping_sub(1)..=at) {
            Some([before, sign, after]) => [before, sign, after],
            _ => return,
        };
        let is_tight = before.end == sign.start && sign.end == after.start;
        let is_bare = matches!(after.kind, Kind::Word | Kind::Number);
        let is_name = matches!(self.kind(at + 1), Some(Kind::Open | Kind::Dot));
        if self.depth > 0 && is_tight && is_bare && !is_name {
            self.redact_bare(at, BARE);
        }
    }

    /// To the next space or string, or the end of the item.
    fn redact_bare(&mut self, at: usize, with: &'static [u8]) {
        let token = self.tokens[at];
        let end = span(self.text, token.end, |byte| {
            !is_space(byte) && !b";,)'\"$".contains(&byte)
        });
        self.bare.push(Edit {
            start: token.start,
            end,
            with: Cow::Borrowed(with),
        });
    }

    fn end_of_text(&mut self) {
        let state = self.frame().state;
        let last = self.tokens.last();
        let unfinished = last.is_some_and(|last| matches!(last.kind, Kind::Text(_)) && last.inner.1 == last.end)
            && self.secret.last() == Some(&true);
        let waits = self.text.last().is_some_and(|byte| is_space(*byte));
        let open = match state {
            _ if unfinished || self.in_secret_item() => Open::Yes,
            Expression { complete: false } => Open::Yes,
            Named { at_once: true, .. } if waits => Open::Yes,
            Named { at_once: true, .. } => Open::Perhaps,
            _ => Open::No,
        };
        if open > self.open {
            self.open = open;
        }
    }

    fn end_of_statement(&mut self, at: usize) {
        if self.statement.updates && self.statement.names_by_string {
            // UPDATE settings SET value = 'x' WHERE name = 'smtp_password'
            for place in self.statement.begin..at {
                let is_name = self.strings[place].as_ref().is_some_and(|content| content.is_name);
                if matches!(self.tokens[place].kind, Kind::Text(_)) && !is_name {
                    self.secret[place] = true;
                }
            }
        }
        self.statement = Statement {
            begin: at + 1,
            ..Statement::default()
        };
        self.frames.clear();
        self.frames.push(Frame {
            item: at + 1,
            ..Frame::default()
        });
    }
}

/// Words that end an expression and begin another. Those of role options and the like end one by being words.
#[rustfmt::skip]
const SEPARATORS: [&str; 27] = [
    "and", "or", "where", "on", "when", "then", "else", "select", "set", "add", "having", "returning", "from",
    "values", "using", "limit", "if", "with", "union", "order", "begin", "declare", "return", "perform", "execute",
    "join", "group",
];

const COMPARISONS: [&str; 11] = ["=", "<>", "!=", "~", "~*", "!~", "!~*", "<", ">", "<=", ">="];
