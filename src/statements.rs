//! Statements under an impersonation, from their beginning to their row in the audit (L3): the client's own, and with
//! `impersonate.audit_nested` those inside them.
//!
//! Space in the queue is set aside when a statement begins, which may wait or fail: then the statement doesn't run
//! (L6). So its end, however it comes, can be told without waiting: from an error's way out, from the end of a
//! transaction, from the end of the connection.
//!
//! # What waits (L5)
//! A transaction that leaves something behind waits, when it is about to commit, until its rows are stored: their commit
//! is then before its own in the WAL. A statement whose effects don't wait for a commit, or that goes on after one, has a
//! row before them, with `{"phase": "begun"}`, and with `impersonate.audit_wait = flush` every statement has that; the
//! row of its end says `{"phase": "ended"}`.

mod content;

use crate::audit::{self, Event, Kind, ListBuffer};
use crate::pg::effects::{self, Way};
use crate::pg::guc::{name_bytes, Name, TargetState};
use crate::pg::parameters::Parameters;
use crate::pg::relations::{Relations, Touched};
use crate::pg::trampoline::{self, Begun, Early, Ran, TransactionEnd};
use crate::pg::{catch, identity, rights};
use crate::settings::AuditWait;
use crate::{session, settings};
use pgrx::pg_sys::Oid;
use sha2::{Digest, Sha256};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

/// Events that may have to be told between two statements: at most two while a transaction ends, one more for a
/// statement that nothing was set aside for, and a switch that fails half-way. Each savepoint that a ROLLBACK undoes a
/// switch in adds two: an end, and the one that it brings back.
const STANDING: usize = 5;

/// Bytes set aside for each: names at their longest, and a line of text.
const STANDING_BYTES: usize = 1024;

/// Text that a standing event keeps.
const STANDING_TEXT: usize = 256;

struct Open {
    key: usize,
    ends_transaction: bool,
    tag: &'static [u8],
    text: Vec<u8>,
    detail: Option<String>,
    who: Who,
    begun_at: i64,
    rows: Option<u64>,
    /// When a part of it last ended, if it can have several: a portal that is read bit by bit.
    ran_at: Option<i64>,
    relations: Option<ListBuffer>,
    parameters: Option<ListBuffer>,
    /// Of a utility statement, for the query inside it to be added.
    touched: Vec<Touched>,
    /// 0 for the client's own.
    level: u32,
    is_utility: bool,
    /// The part of the transaction in which it began.
    subtransaction: u32,
    /// Bytes set aside; 0: a standing event is used.
    reserved: usize,
    /// It has its first row of two.
    begun_told: bool,
    /// Code that ran for it before it began: its row is this statement's, if it gets one.
    early: Option<EarlyCode>,
}

/// Code that ran before a statement began: while values were read, or a query was parsed or planned.
struct EarlyCode {
    /// When the client's message came.
    message: i64,
    when: Early,
    text: Vec<u8>,
    detail: String,
    who: Who,
    begun_at: i64,
    reserved: usize,
}

/// Names for an event, as of the statement's beginning.
enum Who {
    Impersonating(Rc<TargetState>, Name),
    Login { session_user: Name, role: Name },
}

thread_local! {
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
    static STANDING_LEFT: Cell<usize> = const { Cell::new(0) };
    static LOGIN: Cell<Option<(u32, Name)>> = const { Cell::new(None) };
    /// SQLSTATE of the last error that was reported to the client in this transaction.
    static LAST_ERROR: Cell<i32> = const { Cell::new(0) };
    /// A FATAL error is ending the connection.
    static ENDED_BY_SERVER: Cell<bool> = const { Cell::new(false) };
    /// The error being reported belongs to a statement that has its row.
    static ERROR_TOLD: Cell<bool> = const { Cell::new(false) };
    /// The newest event of this session that a commit has to wait for.
    static OWED: Cell<u64> = const { Cell::new(0) };
    /// Its answer waits until that is on disk.
    static OWED_ON_DISK: Cell<bool> = const { Cell::new(false) };
    /// The text of the newest statement that ended well.
    static LAST_TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// When the client's message came of which it was told that it acts outside, before or without a statement.
    static OUTSIDE_TOLD: Cell<i64> = const { Cell::new(0) };
    /// When the client's message came that a switch was told of.
    static SWITCHED: Cell<i64> = const { Cell::new(0) };
    /// What was told of a function called by the protocol, and when the client's message came.
    static CALL: Cell<Option<(i64, String)>> = const { Cell::new(None) };
    /// Code that ran before a statement began, if that may still begin.
    static EARLY: RefCell<Option<EarlyCode>> = const { RefCell::new(None) };
    /// When the client's message came of which was told that code runs without a statement.
    static EARLY_TOLD: Cell<i64> = const { Cell::new(0) };
    /// This database had no extension when somebody last looked.
    static NO_TABLE: Cell<bool> = const { Cell::new(false) };
    /// A table of an extension that this transaction hasn't created, so that nobody looks again for each statement.
    static NOT_MINE: Cell<Oid> = const { Cell::new(Oid::INVALID) };
    /// A statement of this transaction has been told, or is open.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// An event of this session with nothing in it that the caller knows better.
pub fn blank_event<'a>(kind: Kind) -> Event<'a> {
    Event {
        kind,
        time: identity::now(),
        user_name: b"",
        session_user_name: b"",
        role_name: b"",
        impersonation_id: None,
        pid: identity::pid(),
        session_start: identity::session_start(),
        application_name: identity::application_name(),
        client_addr: address(),
        command_tag: None,
        statement: None,
        parameters: None,
        relations: None,
        row_count: None,
        duration_us: None,
        sqlstate: audit::SUCCESSFUL,
        grant_id: None,
        reason: None,
        detail: None,
        origin: None,
    }
}

/// More than any name takes.
const NAME_BYTES: usize = 64;

/// The client's address, found once and kept for as long as the backend lives: it doesn't change.
fn address() -> Option<&'static [u8]> {
    thread_local! { static ADDRESS: OnceCell<Option<&'static [u8]>> = const { OnceCell::new() }; }
    ADDRESS.with(|address| *address.get_or_init(|| identity::client_address().map(|text| &*text.leak())))
}

/// Whether statements are still to be told.
pub fn any_open() -> bool {
    OPEN.with(|open| open.try_borrow().is_ok_and(|open| !open.is_empty()))
}

/// Sets aside what a session needs that has an impersonation. May wait, and raises when the queue can't take it.
pub fn stand_by() {
    let wanted = STANDING + 2 * session::switches_in_savepoints();
    let missing = wanted.saturating_sub(STANDING_LEFT.get());
    if missing > 0 {
        audit::reserve(missing * STANDING_BYTES);
        STANDING_LEFT.set(wanted);
    }
}

/// Tells an event for which [`stand_by`] made room. Waits for nothing and raises nothing.
pub fn tell_standing(event: &Event) {
    let left = STANDING_LEFT.get();
    let reserved = if left > 0 && event.size() <= STANDING_BYTES {
        STANDING_LEFT.set(left - 1);
        STANDING_BYTES
    } else {
        // Finds room, or goes to the server log.
        0
    };
    owe(audit::push_reserved(event, reserved), session_waits());
}

/// What this session's events that are no statement's are waited for.
fn session_waits() -> AuditWait {
    let wait = settings::audit_wait();
    session::names_for_events().map_or(wait, |(state, _)| wait.max(AuditWait::from_settled(state.audit_wait)))
}

fn owe(ticket: u64, wait: AuditWait) {
    if wait > AuditWait::off && ticket != 0 {
        OWED.set(ticket);
        OWED_ON_DISK.set(wait == AuditWait::flush);
    }
}

/// Before the answer to a statement that has no row of its own, but another event: with `flush` that is on disk first.
/// May wait, and raises.
pub fn settle() {
    if OWED_ON_DISK.get() {
        audit::wait_flushed(OWED.get());
    }
}

fn who() -> Option<Who> {
    let all = settings::audit_statements() == settings::AuditStatements::all;
    if let Some((state, role)) = session::names_for_events() {
        return (state.audited || all).then_some(Who::Impersonating(state, role));
    }
    if !all {
        return None;
    }
    let user = identity::session_user();
    if identity::in_transaction() {
        let name = identity::role_name(user).unwrap_or_default();
        LOGIN.set(Some((user.into(), crate::pg::guc::name_of(&name))));
    }
    let (_, session_user) = LOGIN.get().filter(|(known, _)| *known == u32::from(user))?;
    let role = if identity::in_transaction() {
        identity::role_name(identity::role_in_force()).map_or(session_user, |name| crate::pg::guc::name_of(&name))
    } else {
        session_user
    };
    Some(Who::Login { session_user, role })
}

/// Nobody impersonates in a database without the extension, and its statements can't be stored. Nor can those of the
/// transaction that creates it, before that is over: its COMMIT would wait for itself.
fn has_no_table(who: &Who) -> bool {
    if matches!(who, Who::Login { .. }) && identity::in_transaction() {
        let table = rights::extension_table(c"set_user_grant");
        let creates = || effects::has_transaction_id() && audit::extension_is_mine();
        let none = table.is_none_or(|table| table != NOT_MINE.get() && creates());
        NO_TABLE.set(none);
        if let (Some(table), false) = (table, none) {
            NOT_MINE.set(table);
        }
    }
    had_no_table(who)
}

/// As [`has_no_table`] said last, where no catalog can be read.
fn had_no_table(who: &Who) -> bool {
    matches!(who, Who::Login { .. }) && NO_TABLE.get()
}

impl Who {
    /// What is waited for, which can have become more than it was when the impersonation began.
    fn waits(&self) -> AuditWait {
        let wait = settings::audit_wait();
        match self {
            Who::Impersonating(state, _) => wait.max(AuditWait::from_settled(state.audit_wait)),
            Who::Login { .. } => wait,
        }
    }

    fn nested(&self) -> bool {
        match self {
            Who::Impersonating(state, _) => state.nested,
            Who::Login { .. } => settings::audit_nested(),
        }
    }

    fn fill<'a>(&'a self, event: Event<'a>) -> Event<'a> {
        match self {
            Who::Impersonating(state, role) => Event {
                user_name: name_bytes(&state.target_name),
                session_user_name: name_bytes(&state.impersonator_name),
                role_name: name_bytes(role),
                impersonation_id: Some(state.id),
                grant_id: (state.grant_id != 0).then_some(state.grant_id),
                ..event
            },
            Who::Login { session_user, role } => Event {
                user_name: name_bytes(session_user),
                session_user_name: name_bytes(session_user),
                role_name: name_bytes(role),
                ..event
            },
        }
    }
}

impl Open {
    fn event(&self, sqlstate: [u8; 5], now: i64) -> Event<'_> {
        self.who.fill(Event {
            time: self.begun_at,
            command_tag: Some(self.tag),
            statement: Some(&self.text),
            parameters: self.parameters.as_ref().map(ListBuffer::as_list),
            relations: self.relations.as_ref().map(ListBuffer::as_list),
            row_count: self.rows.and_then(|rows| i64::try_from(rows).ok()),
            duration_us: Some(now.saturating_sub(self.begun_at)),
            sqlstate,
            detail: self.detail.as_deref().map(str::as_bytes),
            ..blank_event(Kind::Statement)
        })
    }

    fn tell(&self, sqlstate: [u8; 5]) {
        audit::release(self.early.as_ref().map_or(0, |early| early.reserved));
        let event = self.event(sqlstate, self.ran_at.unwrap_or_else(identity::now));
        let detail = self.begun_told.then(|| with_phase(self.detail.as_deref(), "ended"));
        let event = Event {
            detail: detail.as_deref().map_or(event.detail, |detail| Some(detail.as_bytes())),
            ..event
        };
        TOLD.set(true);
        if self.reserved > 0 {
            owe(audit::push_reserved(&event, self.reserved), self.who.waits());
        } else {
            tell_standing(&event);
        }
    }

    /// As it begins: what isn't known yet is left out.
    fn tell_begun(&self, reserved: usize) {
        let detail = with_phase(self.detail.as_deref(), "begun");
        let event = Event {
            row_count: None,
            duration_us: None,
            detail: Some(detail.as_bytes()),
            ..self.event(audit::SUCCESSFUL, self.begun_at)
        };
        owe(audit::push_reserved(&event, reserved), self.who.waits());
    }

    fn lacks_begun(&self) -> bool {
        !self.begun_told && !self.ends_transaction && self.who.waits() > AuditWait::off
    }
}

/// Bytes that a phase adds to an event.
const PHASE_BYTES: usize = 24;

fn with_phase(detail: Option<&str>, phase: &str) -> String {
    match detail.and_then(|detail| detail.strip_suffix('}')) {
        Some(detail) => format!("{detail}, \"phase\": \"{phase}\"}}"),
        None => format!("{{\"phase\": \"{phase}\"}}"),
    }
}

/// Cuts statement text to what a row keeps, and says what was cut (L10).
fn kept(text: &[u8], limit: usize) -> (Vec<u8>, Option<String>) {
    let text = impersonate_policy::redact(text).into_owned();
    if text.len() <= limit {
        return (text, None);
    }
    let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let detail = format!(
        "{{\"statement_length\": {}, \"statement_sha256\": \"{digest}\"}}",
        text.len()
    );
    (identity::cut(&text, limit).to_vec(), Some(detail))
}

/// Text as a row keeps it, and what its detail says of it.
pub fn kept_text(text: &[u8]) -> (Vec<u8>, serde_json::Value) {
    let (text, detail) = kept(text, statement_limit());
    let detail = detail.and_then(|detail| serde_json::from_str(&detail).ok());
    (text, detail.unwrap_or_else(|| serde_json::json!({})))
}

/// The client's message being processed, as the audit keeps it.
pub fn kept_message() -> (Option<Vec<u8>>, Option<String>) {
    let text = identity::client_message();
    if text.is_empty() {
        return (None, None);
    }
    let (text, detail) = kept(text, statement_limit());
    (Some(text), detail)
}

fn statement_limit() -> usize {
    settings::audit_statement_limit().min(audit::max_event_bytes().saturating_sub(STANDING_BYTES))
}

/// A statement begins. May wait for the queue, and raises when the writer can't run: then it doesn't begin.
pub fn begun(statement: &Begun) {
    let Some(who) = who() else { return };
    if has_no_table(&who) {
        return;
    }
    trampoline::follow_transactions();
    if statement.level == 0 {
        trampoline::watch_nested(who.nested());
    }
    let text = redacted_arguments(statement);
    let (text, detail) = kept(
        &text,
        if statement.must_run {
            STANDING_TEXT
        } else {
            // However long its lists get.
            let lists = content::relations_limit() + content::parameters_limit() + content::prepared_limit();
            statement_limit().min(audit::max_event_bytes().saturating_sub(STANDING_BYTES + lists))
        },
    );
    let mut open = Open {
        key: statement.key,
        ends_transaction: statement.ends_transaction,
        tag: statement.tag,
        text,
        detail,
        who,
        begun_at: begins_at(statement.level),
        // Present in the size that is set aside.
        rows: None,
        ran_at: None,
        relations: None,
        parameters: None,
        touched: Vec::new(),
        level: statement.level,
        is_utility: statement.is_utility,
        subtransaction: identity::subtransaction(),
        reserved: 0,
        begun_told: false,
        early: None,
    };
    open.note_level();
    if !statement.must_run {
        if let Some((prepared, _)) = statement.prepared {
            open.note(Some(&content::prepared(prepared)));
        }
        open.touches(statement.relations.read());
        if !statement.is_utility {
            open.touched = Vec::new();
        }
        open.is_given(content::parameters(statement.parameters, statement.text));
        stand_by();
        let bytes = open.needs();
        if statement.level > 0 && audit::reserved_bytes() + bytes > audit::max_reserved_bytes() / 2 {
            // Recursion without end: it is told now, as what it came to would take room for each level.
            open.note(Some("\"phase\": \"begun\""));
            let event = Event {
                duration_us: None,
                ..open.event(audit::SUCCESSFUL, open.begun_at)
            };
            TOLD.set(true);
            owe(audit::push(&event), open.who.waits());
            return;
        }
        audit::reserve(bytes);
        open.reserved = bytes;
    }
    if statement.level == 0 {
        ERROR_TOLD.set(false);
        open.early = early_of_portal();
    }
    OPEN.with_borrow_mut(|all| all.push(open));
}

/// A statement is about to run, the newest that has begun or one inside it. May wait, and raises when its first row
/// can't be stored: then it doesn't run.
pub fn before_run(way: Way) {
    let wait = OPEN.with_borrow(|all| all.iter().map(|open| open.who.waits()).max());
    match (wait, way) {
        (None | Some(AuditWait::off), _) | (Some(AuditWait::commit), Way::Commit) => (),
        (Some(AuditWait::commit), Way::Wal) => {
            tell_begun();
            audit::wait_stored(OWED.get());
        }
        (Some(AuditWait::commit), Way::Outside) | (Some(AuditWait::flush), _) => {
            tell_begun();
            audit::wait_flushed(OWED.get());
        }
    }
}

/// A function that may act outside of the transaction may be called from here on. May wait, and raises when what calls it
/// can't be on record: then it isn't called.
pub fn before_outside() {
    // Borrowed: a function of a type's, for what is being noted down.
    let Some(open) = OPEN.with(|all| all.try_borrow_mut().ok().map(|all| !all.is_empty())) else {
        return;
    };
    if open {
        before_run(Way::Outside);
    } else if who().is_some_and(|who| who.waits() > AuditWait::off) {
        // Called by the protocol, or before a statement begins.
        tell_early_code();
        let message = identity::statement_start();
        if EARLY_TOLD.get() != message && OUTSIDE_TOLD.replace(message) != message {
            tell_unknown();
            TOLD.set(true);
        }
        audit::wait_flushed(OWED.get());
    }
}

/// L3: a function is about to be called by the protocol, which is told as it begins. May wait, and raises when that can't
/// be stored: then it isn't called.
pub fn called(function: Oid) {
    let message = identity::statement_start();
    // Those that it calls itself are no calls of the client's.
    let told = CALL.take();
    let inside = told.as_ref().is_some_and(|(of, _)| *of == message);
    CALL.set(told);
    if inside {
        return;
    }
    let Some(who) = who() else { return };
    if has_no_table(&who) {
        return;
    }
    trampoline::follow_transactions();
    let name = identity::to_utf8(&identity::function_name(function));
    let detail = serde_json::json!({"cause": "outside of a statement", "function": name}).to_string();
    let detail = identity::speakable(&detail).into_owned();
    let event = who.fill(Event {
        detail: Some(detail.as_bytes()),
        ..blank_event(Kind::Statement)
    });
    stand_by();
    let size = event.size();
    audit::reserve(size);
    owe(audit::push_reserved(&event, size), who.waits());
    TOLD.set(true);
    ERROR_TOLD.set(false);
    OUTSIDE_TOLD.set(message);
    CALL.set(Some((message, detail)));
    settle();
}

/// Code is about to run before a statement begins. If it does, the statement's row is enough; else there is one by
/// itself, without delay where each statement is waited for. May wait, and raises.
pub fn early(function: Oid, when: Early) {
    let message = identity::statement_start();
    let noted = EARLY.with_borrow_mut(|early| {
        let early = early.as_mut().filter(|early| early.message == message);
        early.map(|early| early.when = early.when.min(when)).is_some()
    });
    // That row has the whole message.
    if noted || EARLY_TOLD.get() == message || OUTSIDE_TOLD.get() == message {
        return;
    }
    tell_early_code();
    let Some(who) = who() else { return };
    if has_no_table(&who) {
        return;
    }
    trampoline::follow_transactions();
    let (text, cut) = kept_message();
    let mut pairs = "\"cause\": \"outside of a statement\"".to_owned();
    if function != Oid::INVALID {
        let name = serde_json::Value::from(identity::to_utf8(&identity::function_name(function)));
        pairs = identity::speakable(&format!("{pairs}, \"function\": {name}")).into_owned();
    }
    let waits = who.waits();
    let mut early = EarlyCode {
        message,
        when,
        text: text.unwrap_or_default(),
        detail: content::with(cut, Some(&pairs)).unwrap_or_default(),
        who,
        begun_at: identity::now(),
        reserved: 0,
    };
    stand_by();
    let bytes = early.event().size() + NAME_BYTES;
    audit::reserve(bytes);
    early.reserved = bytes;
    EARLY.set(Some(early));
    if waits == AuditWait::flush {
        tell_early_code();
        settle();
    }
}

impl EarlyCode {
    fn event(&self) -> Event<'_> {
        self.who.fill(Event {
            time: self.begun_at,
            statement: (!self.text.is_empty()).then_some(&self.text),
            detail: Some(self.detail.as_bytes()),
            ..blank_event(Kind::Statement)
        })
    }

    /// Waits for nothing and raises nothing.
    fn tell(&self) {
        TOLD.set(true);
        EARLY_TOLD.set(self.message);
        owe(audit::push_reserved(&self.event(), self.reserved), self.who.waits());
    }
}

/// No statement came of what was noted. Waits for nothing and raises nothing.
fn tell_early_code() {
    if let Some(early) = EARLY.take() {
        early.tell();
    }
}

/// What was noted for the portal whose statement begins now: while the Bind or the simple query was processed that made
/// it. But a simple query may be parsed and come to nothing, with another behind it.
fn early_of_portal() -> Option<EarlyCode> {
    let early = EARLY.take()?;
    let its_own = crate::pg::portal::made_by()
        .is_some_and(|(message, bound)| early.message == message && (bound || early.when == Early::Planning));
    if its_own {
        return Some(early);
    }
    early.tell();
    None
}

/// The message has failed, and that is being told.
fn early_failed() {
    let early = EARLY.take();
    match early {
        Some(early) if early.message == identity::statement_start() => audit::release(early.reserved),
        Some(early) => early.tell(),
        None => (),
    }
}

/// The transaction is about to commit or to be prepared. May wait, and raises when its rows can't be stored: then it
/// aborts.
pub fn before_commit() {
    tell_early_code();
    let beyond = OPEN.with_borrow(|all| all.iter().any(Open::lacks_begun));
    if !beyond && audit::is_stored(OWED.get()) && TOLD.get() {
        return;
    }
    if !effects::has_transaction_id() && !effects::may_get_transaction_id() {
        return;
    }
    tell_begun();
    if !TOLD.get() && trampoline::depth() == 0 && SWITCHED.get() != identity::statement_start() {
        tell_unknown();
    }
    audit::wait_stored(OWED.get());
}

/// A switch has its own row. What it leaves behind for the transaction, such as temporary objects taken down, is no
/// unknown statement's.
pub fn switched() {
    SWITCHED.set(identity::statement_start());
}

/// Tells of statements that go on beyond what is to come, those that haven't been. May wait, and raises.
fn tell_begun() {
    let sizes: Vec<usize> = OPEN.with_borrow(|all| {
        let lacking = all.iter().filter(|open| open.lacks_begun());
        lacking.map(|open| open.needs()).collect()
    });
    if sizes.is_empty() {
        return;
    }
    audit::reserve(sizes.iter().sum());
    OPEN.with_borrow_mut(|all| {
        for (open, size) in all.iter_mut().filter(|open| open.lacks_begun()).zip(sizes) {
            open.tell_begun(size);
            open.begun_told = true;
            TOLD.set(true);
        }
    });
}

/// The transaction leaves something behind, and no statement was told: a function called by the protocol, or one that
/// ran while a statement was planned that never began. May wait, and raises.
fn tell_unknown() {
    let Some(who @ Who::Impersonating(..)) = who() else {
        return;
    };
    if who.waits() == AuditWait::off {
        return;
    }
    let (text, detail) = kept_message();
    let event = Event {
        statement: text.as_deref(),
        detail: Some(
            detail
                .as_deref()
                .map_or(&br#"{"cause": "outside of a statement"}"#[..], str::as_bytes),
        ),
        ..blank_event(Kind::Statement)
    };
    let event = who.fill(event);
    let size = event.size();
    audit::reserve(size);
    owe(audit::push_reserved(&event, size), who.waits());
}

/// The client's message came when the server noted that: without another look at the clock, unless it has several
/// statements in it.
fn begins_at(level: u32) -> i64 {
    thread_local! { static LAST: Cell<i64> = const { Cell::new(0) }; }
    let message = identity::statement_start();
    if level == 0 && LAST.replace(message) != message {
        message
    } else {
        identity::now()
    }
}

/// L7: what stands for a secret of the prepared statement is one in EXECUTE.
fn redacted_arguments<'a>(statement: &Begun<'a>) -> std::borrow::Cow<'a, [u8]> {
    match statement.prepared {
        Some((prepared, count)) => impersonate_policy::redact_arguments(
            statement.text,
            &impersonate_policy::secret_parameters(prepared, count),
        ),
        None => statement.text.into(),
    }
}

impl Open {
    fn note(&mut self, pairs: Option<&str>) {
        self.detail = content::with(self.detail.take(), pairs);
    }

    fn note_level(&mut self) {
        if self.level > 0 {
            let pairs = format!("\"nested\": true, \"depth\": {}", self.level);
            self.note(Some(&pairs));
        }
    }

    fn touches(&mut self, relations: Vec<Touched>) {
        self.touched.extend(relations);
        let kept = content::relations(&mut self.touched);
        self.relations = kept.list;
        self.note(kept.note.as_deref());
    }

    fn is_given(&mut self, kept: content::Kept) {
        if kept.list.is_some() {
            self.parameters = kept.list;
            self.note(kept.note.as_deref());
        }
    }

    /// Bytes that its row will take. The statement may change application_name, which the row has as it is in the end.
    fn needs(&self) -> usize {
        self.event(audit::SUCCESSFUL, self.begun_at).size() + NAME_BYTES + PHASE_BYTES
    }
}

/// The query starts that a utility statement has in it: its relations, and the parameters that EXECUTE gives it, are
/// that statement's. May wait, and raises.
pub fn joined(key: usize, relations: Relations, parameters: Parameters, text: &[u8]) {
    let is_it = |open: &Open| open.key == key && open.reserved > 0;
    let lacks_parameters = OPEN.with_borrow(|all| Some(all.iter().rfind(|open| is_it(open))?.parameters.is_none()));
    let Some(lacks_parameters) = lacks_parameters else {
        return;
    };
    // Nothing is borrowed while catalogs are read: the connection may end there, and tells what is open.
    let touched = relations.read();
    let given = if lacks_parameters {
        content::parameters(parameters, text)
    } else {
        // Several queries, by a rule, say the same.
        content::Kept::NOTHING
    };
    let more = OPEN.with_borrow_mut(|all| {
        let open = all.iter_mut().rfind(|open| is_it(open))?;
        let noted = open.detail.clone();
        open.touches(touched);
        open.is_given(given);
        let more = open.needs().saturating_sub(open.reserved);
        // Until that is set aside it has to do with what there is.
        (more > 0).then(|| {
            (
                more,
                open.relations.take(),
                open.parameters.take(),
                std::mem::replace(&mut open.detail, noted),
            )
        })
    });
    let Some((more, relations, parameters, detail)) = more else {
        return;
    };
    audit::reserve(more);
    OPEN.with_borrow_mut(|all| match all.iter_mut().rfind(|open| open.key == key) {
        Some(open) => {
            (open.relations, open.parameters, open.detail) = (relations, parameters, detail);
            open.reserved += more;
        }
        None => audit::release(more),
    });
}

/// A part of a statement ran and gave or touched this many rows.
pub fn ran(key: usize, rows: u64, course: Ran) {
    OPEN.with_borrow_mut(|all| {
        if let Some(open) = all.iter_mut().rfind(|open| open.key == key) {
            open.rows = Some(open.rows.unwrap_or(0) + rows);
            open.ran_at = (course == Ran::Suspended).then(identity::now);
        }
    });
    if course == Ran::Complete {
        ended(key);
    }
}

fn take(key: usize) -> Option<Open> {
    let taken = OPEN.with_borrow_mut(|all| {
        let place = all.iter().rposition(|open| open.key == key)?;
        Some(all.remove(place))
    });
    if !session::must_watch() {
        trampoline::watch(false);
    }
    taken
}

/// A statement ended well. A COMMIT has not yet: its outcome is the transaction's.
pub fn ended(key: usize) {
    let waits = OPEN.with_borrow(|all| {
        all.iter()
            .rfind(|open| open.key == key)
            .is_some_and(|open| open.ends_transaction)
    });
    if waits {
        return;
    }
    if let Some(open) = take(key) {
        open.tell(audit::SUCCESSFUL);
        if open.level == 0 {
            LAST_TEXT.set(open.text);
        }
    }
}

/// A statement failed.
pub fn failed(key: usize, sqlstate: i32) {
    if let Some(mut open) = take(key) {
        open.ran_at = None;
        open.tell(catch::sqlstate_text(sqlstate));
        // One that is nested may be caught by what it is in.
        if open.level == 0 {
            ERROR_TOLD.set(true);
        }
    }
}

/// The client's own utility statement that is running; 0 when it isn't followed.
pub fn newest_utility() -> usize {
    OPEN.with_borrow(|all| {
        let newest = all.iter().rfind(|open| open.level == 0 && open.is_utility);
        newest.map_or(0, |open| open.key)
    })
}

/// The statement being run is told in another way: as SETUSER, RESETUSER or DENIED.
///
/// With `failed` the error that comes next is its own. Without, there is none, and the next is another statement's.
pub fn told_otherwise(key: usize, failed: bool) {
    if let Some(mut open) = take(key) {
        if let Some(early) = open.early.take() {
            early.tell();
        }
        audit::release(open.reserved);
        ERROR_TOLD.set(failed);
        TOLD.set(true);
    }
}

/// An error is on its way to the client. One that no open statement has told is of a statement that never began:
/// it didn't parse, or its transaction could not be committed. A FATAL one ends the connection, which tells what is open.
pub fn reported(sqlstate: i32, level: i32, query: &[u8]) {
    LAST_ERROR.set(sqlstate);
    let ends = level >= pgrx::PgLogLevel::FATAL as i32;
    if ends {
        ENDED_BY_SERVER.set(true);
    }
    let waits = OPEN.with_borrow(|all| all.iter().any(|open| open.ends_transaction || ends));
    if ERROR_TOLD.replace(false) || waits || (ends && query.is_empty()) {
        return;
    }
    let call = CALL
        .take()
        .filter(|(message, _)| query.is_empty() && *message == identity::statement_start());
    if let Some((_, detail)) = call {
        tell_early_with(0, query, b"", sqlstate, Some(detail));
    } else if query.is_empty() && TOLD.get() && !identity::in_block() {
        // The protocol's Sync commits, and has no text.
        let last = LAST_TEXT.take();
        tell_early(0, &last, b"", sqlstate);
    } else {
        tell_early(0, query, b"", sqlstate);
    }
}

/// A statement failed while it was planned: it never began, but its text and tag are known.
pub fn failed_early(level: u32, text: &[u8], tag: &'static [u8], sqlstate: i32) {
    tell_early(level, text, tag, sqlstate);
    if level == 0 {
        ERROR_TOLD.set(true);
    }
}

/// Tells of a statement for which nothing was set aside.
fn tell_early(level: u32, text: &[u8], tag: &'static [u8], sqlstate: i32) {
    tell_early_with(level, text, tag, sqlstate, None);
}

fn tell_early_with(level: u32, text: &[u8], tag: &'static [u8], sqlstate: i32, detail: Option<String>) {
    let Some(who) = who() else { return };
    if had_no_table(&who) {
        return;
    }
    let (kept_text, cut) = kept(text, statement_limit());
    let detail = detail.or(cut);
    let begun_at = identity::now();
    let mut whole = Open {
        key: 0,
        ends_transaction: false,
        tag,
        text: kept_text,
        detail,
        who,
        begun_at,
        rows: None,
        ran_at: None,
        relations: None,
        parameters: None,
        touched: Vec::new(),
        level,
        is_utility: false,
        subtransaction: 0,
        reserved: 0,
        begun_told: false,
        early: None,
    };
    if level == 0 {
        early_failed();
    }
    whole.note_level();
    let event = Event {
        command_tag: (!tag.is_empty()).then_some(tag),
        statement: (!text.is_empty()).then_some(&whole.text),
        ..whole.event(catch::sqlstate_text(sqlstate), begun_at)
    };
    TOLD.set(true);
    if let Some(ticket) = audit::try_push(&event) {
        owe(ticket, whole.who.waits());
    } else {
        let (text, cut) = kept(text, STANDING_TEXT);
        tell_standing(&Event {
            statement: event.statement.map(|_| &text[..]),
            detail: cut.as_deref().map(str::as_bytes).or(event.detail),
            ..event
        });
    }
}

/// A part of the transaction is undone: portals that were opened in it are gone, without an end of their own.
pub fn part_aborts(subtransaction: u32) {
    // What failed has been told. These were open and did not.
    tell_those(|open| open.subtransaction >= subtransaction, |_| audit::SUCCESSFUL);
}

/// The transaction, or a part of it, ended: what waited for it is told, and what it took along.
pub fn transaction_ends(end: TransactionEnd) {
    match end {
        TransactionEnd::SubtransactionCommit | TransactionEnd::SubtransactionAbort => return,
        // A procedure that ends transactions while it runs is not over, but the queries that it had open are.
        _ if trampoline::depth() > 0 => return tell_those(|open| !open.is_utility, |_| audit::SUCCESSFUL),
        _ => tell_early_code(),
    }
    match end {
        TransactionEnd::Commit => tell_all(audit::SUCCESSFUL),
        TransactionEnd::Abort => {
            let error = match LAST_ERROR.replace(0) {
                0 => *b"40000",
                error => catch::sqlstate_text(error),
            };
            // A portal that gave rows and was left did not fail.
            let gave = |open: &Open| open.rows.is_some() && !open.ends_transaction;
            tell_those(|_| true, |open| if gave(open) { audit::SUCCESSFUL } else { error });
        }
        _ => (),
    }
    TOLD.set(false);
    if end == TransactionEnd::Commit {
        let kept = if session::in_force().is_some() { STANDING } else { 0 };
        let left = STANDING_LEFT.get();
        STANDING_LEFT.set(left.min(kept));
        audit::release(left.saturating_sub(kept) * STANDING_BYTES);
    }
    LAST_ERROR.set(0);
}

fn tell_all(sqlstate: [u8; 5]) {
    tell_those(|_| true, |_| sqlstate);
}

fn tell_those(which: impl Fn(&Open) -> bool, sqlstate: impl Fn(&Open) -> [u8; 5]) {
    let mut told = OPEN.with_borrow_mut(|all| {
        let (told, left): (Vec<_>, Vec<_>) = std::mem::take(all).into_iter().partition(which);
        *all = left;
        told
    });
    // Those that are inside come first.
    told.sort_by_key(|open| std::cmp::Reverse(open.level));
    for open in &told {
        open.tell(sqlstate(open));
    }
    if !session::must_watch() {
        trampoline::watch(false);
    }
}

/// The connection ends: statements that it cut off are told.
pub fn connection_ends() {
    tell_early_code();
    let error = LAST_ERROR.get();
    tell_all(if error == 0 {
        *b"08006"
    } else {
        catch::sqlstate_text(error)
    });
}

/// Whether the connection ends by a FATAL error: an administrator's command, a time-out, our own check.
pub fn terminated() -> bool {
    ENDED_BY_SERVER.get()
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
