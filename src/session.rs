//! Who this session is: the only place that changes it.
//!
//! The settings tell their values one by one and in no order (`pg/guc.rs`); here they are recorded, and one function,
//! [`derive`], says from the record who is in force. ROLLBACK, savepoints, SET LOCAL and a failing COMMIT then come out
//! right by themselves, because the settings machinery undoes values as it always does (S3).
//!
//! What others are told (the table of active impersonations, the audit) is compared with what is in force after each
//! derivation: [`reconcile`]. It runs while a transaction ends, when nothing may raise or wait, so the queue space for
//! what it says was set aside when the impersonation began (`statements::Standing`).

use crate::audit::{Event, Kind};
use crate::pg::active::{self, Note, Slot};
use crate::pg::guc::{self, name_bytes, name_of, name_text, Handlers, Name, Refusal, RoleState, TargetState};
use crate::pg::role_lock::{self, Switching};
use crate::pg::trampoline::{self, TransactionEnd};
use crate::pg::{access, backends, catch, changes, guc_values, identity, leftovers, portal, start_up};
use crate::switch::{self, Door};
use crate::{guard, settings, statements};
use pgrx::pg_sys::Oid;
use pgrx::PgSqlErrorCode;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// Why an impersonation ends, as the RESETUSER row's detail says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Asked,
    Switched,
    Rollback,
    EndOfTransaction,
    Discard,
    Disconnect,
    Terminated,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Cause::Asked => "asked",
            Cause::Switched => "switched",
            Cause::Rollback => "rollback",
            Cause::EndOfTransaction => "end of transaction",
            Cause::Discard => "discard",
            Cause::Disconnect => "disconnect",
            Cause::Terminated => "terminated",
        }
    }

    fn detail(self) -> String {
        format!("{{\"cause\": \"{}\"}}", self.as_str())
    }
}

/// Whom a value of `role` is judged for: the target of an impersonation, or the session user.
type JudgedFor = Option<([u8; 16], Oid)>;

struct Session {
    target: Shared<TargetState>,
    role: Cell<RoleState>,
    told: Shared<TargetState>,
    /// The state that the next value of `impersonate.target` stands for: set around our own change alone.
    wanted: Cell<Option<TargetState>>,
    changing: Cell<bool>,
    /// `role` is being put back to a value from before: it is judged as it was then, for the target of that
    /// impersonation, or for the session user.
    restoring: Cell<Option<JudgedFor>>,
    /// How the transaction, or the part of it whose settings are being popped, ended.
    ending: Cell<TransactionEnd>,
    /// What the connection started with, and why that can't be had: whether it is in force is for `refused` to say.
    refusal: RefCell<Option<(Vec<u8>, Refusal)>>,
    refused: Cell<bool>,
    /// The refusal is being raised.
    refusing: Cell<bool>,
    /// A statement that was refused when nothing could be told, and why.
    untold: RefCell<Option<(Refusal, Vec<u8>)>>,
    /// When the target of an impersonation expires, where that was read again after it began.
    expires: Cell<([u8; 16], pgrx::pg_sys::TimestampTz)>,
    /// An impersonation one of whose roles was renamed since it began, with the names of now.
    renamed: Shared<TargetState>,
    /// An impersonation that lost its session user: it doesn't come back if that user does.
    dead: Cell<[u8; 16]>,
    /// The impersonation of before this transaction, ended or switched over in it: a ROLLBACK brings it back.
    may_come_back: Cell<Option<[u8; 16]>>,
    /// The session as it was when an impersonation began, for its end (S9). More than one while a transaction may
    /// bring an earlier one back.
    before: RefCell<Vec<([u8; 16], Rc<Before>)>>,
    /// Starts and ends in this transaction.
    switches: Cell<usize>,
    /// The connection is ending: everything has been told.
    exiting: Cell<bool>,
    /// The connection starts with a target, which its setting is about to take.
    starting: Cell<bool>,
    rights_at_start: Cell<Note>,
}

/// A state that is read for each statement, and too large to be copied then.
struct Shared<T>(Cell<Option<Rc<T>>>);

impl<T> Shared<T> {
    const fn none() -> Self {
        Shared(Cell::new(None))
    }

    fn get(&self) -> Option<Rc<T>> {
        let state = self.0.take();
        self.0.set(state.clone());
        state
    }

    fn set(&self, state: Option<Rc<T>>) {
        self.0.set(state);
    }

    fn take(&self) -> Option<Rc<T>> {
        self.0.take()
    }

    fn is_some(&self) -> bool {
        let state = self.0.take();
        let is_some = state.is_some();
        self.0.set(state);
        is_some
    }
}

/// What the end of an impersonation puts back.
struct Before {
    /// A transaction was committed since it began.
    settled: Cell<bool>,
    /// For the table of active impersonations, should it come back.
    rights: Cell<Note>,
    role: Cell<Option<guc::RoleValues>>,
    settings: RefCell<guc_values::Values>,
    temporary: Vec<leftovers::Object>,
    since: pgrx::pg_sys::TimestampTz,
    /// The one that this one lies over, `local` over a lasting one: its id, its target, and what it would put back.
    under: Option<Under>,
}

#[derive(Clone)]
struct Under {
    id: [u8; 16],
    target: Oid,
    before: Rc<Before>,
}

const NO_ROLE: RoleState = RoleState {
    role: Oid::INVALID,
    superuser: false,
    impersonation: [0; 16],
    name: [0; 64],
};

thread_local! {
    static SESSION: Session = const {
        Session {
            target: Shared::none(),
            role: Cell::new(NO_ROLE),
            told: Shared::none(),
            wanted: Cell::new(None),
            changing: Cell::new(false),
            restoring: Cell::new(None),
            ending: Cell::new(TransactionEnd::Commit),
            refusal: RefCell::new(None),
            refused: Cell::new(false),
            refusing: Cell::new(false),
            untold: RefCell::new(None),
            expires: Cell::new(([0; 16], 0)),
            renamed: Shared::none(),
            dead: Cell::new([0; 16]),
            may_come_back: Cell::new(None),
            before: RefCell::new(Vec::new()),
            switches: Cell::new(0),
            exiting: Cell::new(false),
            starting: Cell::new(false),
            rights_at_start: Cell::new(Note::EMPTY),
        }
    };
}

/// For `pg/guc.rs`.
pub static HANDLERS: Handlers = Handlers {
    target_wanted,
    target_at_start,
    target_assigned,
    target_shown,
    impersonation,
    role_assigned,
    role_shown,
    session_user_changes,
    session_user_changed: derive,
    setting_changes: |ours| {
        let what = if ours {
            "settings of impersonate"
        } else {
            "settings of libraries and catalogs"
        };
        in_force().map(|state| change_refusal(&state, what))
    },
    raise,
};

fn impersonation() -> JudgedFor {
    SESSION
        .with(|session| session.restoring.get())
        .unwrap_or_else(|| in_force().map(|state| (state.id, state.target)))
}

/// The impersonation in force, if there is one.
pub fn in_force() -> Option<Rc<TargetState>> {
    SESSION.with(|session| {
        let state = session.target.get()?;
        (state.impersonator == identity::session_user() && state.id != session.dead.get()).then(|| as_named(state))
    })
}

/// The value of the setting keeps the names that were when it was set.
fn as_named(state: Rc<TargetState>) -> Rc<TargetState> {
    SESSION.with(|session| match session.renamed.get() {
        Some(renamed) if renamed.id == state.id => renamed,
        _ => state,
    })
}

/// Looks whether one of the two roles was renamed.
fn look_at_names(state: &TargetState) {
    let name = |role, known: Name| identity::role_name(role).map_or(known, |name| name_of(&name));
    let impersonator_name = name(state.impersonator, state.impersonator_name);
    let target_name = name(state.target, state.target_name);
    if (impersonator_name, target_name) != (state.impersonator_name, state.target_name) {
        let renamed = TargetState {
            impersonator_name,
            target_name,
            ..*state
        };
        SESSION.with(|session| session.renamed.set(Some(Rc::new(renamed))));
    }
}

/// The name of the role in force inside an impersonation: the target's, or that of a SET ROLE after it.
pub fn role_name_in_force(state: &TargetState) -> Name {
    let role = SESSION.with(|session| session.role.get());
    if role.impersonation == state.id && role.role != Oid::INVALID {
        role.name
    } else {
        state.target_name
    }
}

/// The role that the impersonator is in by SET ROLE, from before any impersonation (G6).
pub fn via() -> Option<Oid> {
    match in_force() {
        Some(state) => (state.via != Oid::INVALID).then_some(state.via),
        None => identity::set_role(),
    }
}

fn target_wanted(value: &CStr) -> Result<TargetState, Refusal> {
    let named = |state: &TargetState| name_bytes(&state.target_name) == value.to_bytes();
    let wanted = SESSION.with(|session| session.wanted.get()).filter(named);
    // The client's own SET has been done by now, and takes the value that there is.
    let done = || {
        let state = in_force().filter(|state| named(state))?;
        portal::client_sets_identity().then_some(*state)
    };
    wanted.or_else(done).ok_or_else(|| Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        message: "impersonate.target must be set by a statement of its own, sent by the client".to_owned(),
        detail: Some("It cannot be set by a function, a larger query or a function's SET clause.".to_owned()),
        hint: Some(format!(
            "SELECT setuser({});",
            impersonate_policy::quote_literal(&value.to_string_lossy())
        )),
    })
}

fn target_assigned(state: Option<&TargetState>) {
    SESSION.with(|session| {
        let refused = state.is_some_and(|state| state.id == [0; 16]);
        let next = state.filter(|_| !refused);
        let leaves = match in_force() {
            Some(now) => next.is_none_or(|next| next.id != now.id),
            None => refused != session.refused.get() || next.is_some(),
        };
        // A value that comes back while a transaction ends is the settings machinery's doing. Inside one, only we
        // change it: else it is a RESET, from wherever, and the target's code must not be able to (X1).
        if leaves && identity::in_transaction() && !session.changing.get() && !session.starting.get() {
            raise(&Refusal {
                sqlstate: PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                message: "impersonate.target must be reset by a statement of its own, sent by the client".to_owned(),
                detail: Some("It cannot be reset by a function, a larger query or a function's SET clause.".to_owned()),
                hint: Some("End the impersonation with SELECT setuser();".to_owned()),
            });
        }
        set_refused(refused);
        session.target.set(next.map(|state| Rc::new(*state)));
        derive();
        if refused {
            trampoline::watch(true);
        }
    });
}

fn target_shown() -> Name {
    match refused() {
        Some((name, _)) => name_of(&name),
        None => in_force().map_or([0; 64], |state| state.target_name),
    }
}

/// D1: the connection starts with this target. Whether that is lawful is asked when all its other settings are there,
/// which say by what it is judged.
fn target_at_start(value: &CStr) {
    SESSION.with(|session| {
        session.starting.set(true);
        let refusal = Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            message: "the connection has not started yet".to_owned(),
            detail: None,
            hint: None,
        };
        session.refusal.replace(Some((value.to_bytes().to_vec(), refusal)));
    });
    trampoline::follow_transactions();
}

/// Judges what the connection started with, while it isn't in force: as the transaction ends in which the connection
/// started, and as any other ends after that. The connection opens in any case, and nothing can be done in it while the
/// switch isn't lawful.
fn try_start() {
    let first = SESSION.with(|session| session.starting.replace(false));
    let Some((name, _)) = refused() else { return };
    if let Some((refusal, statement)) = SESSION.with(|session| session.untold.take()) {
        _ = start_up::attempt(|| switch::tell_denied_statement(&name, &refusal, statement));
    }
    let tried = start_up::attempt(|| switch::at_start(&name, first));
    SESSION.with(|session| match tried {
        Ok(state) => {
            guc::start_with(&state);
            set_refused(false);
            session.target.set(Some(Rc::new(state)));
            derive();
        }
        Err(refusal) => _ = session.refusal.replace(Some((name, refusal))),
    });
}

/// A statement has ended. One that may have been refused for what the connection started with is followed by another
/// look: before the next statement is parsed, in a transaction of its own (D1).
pub fn look_again() {
    if SESSION.with(|session| session.refused.get()) {
        backends::wake_self();
    }
}

fn set_refused(refused: bool) {
    SESSION.with(|session| session.refused.set(refused));
    active::set_refused(refused);
}

/// What the connection started with and can't have, while that is so.
fn refused() -> Option<(Vec<u8>, Refusal)> {
    SESSION.with(|session| {
        if session.refused.get() {
            session.refusal.borrow().clone()
        } else {
            None
        }
    })
}

/// The client sets or resets the target: what it started with is no matter any more, unless that fails.
pub fn forget_refused() {
    if SESSION.with(|session| session.refused.get()) {
        SESSION.with(|session| session.changing.set(true));
        guc::set_target(c"", false);
        SESSION.with(|session| session.changing.set(false));
    }
}

/// D1: while what the connection started with can't be had, every statement of the client's fails with the reason.
pub fn refuse_statement() {
    if let Some((name, refusal)) = refused() {
        switch::tell_denied_statement(&name, &refusal, statements::kept_message().0.unwrap_or_default());
        SESSION.with(|session| session.refusing.set(true));
        raise(&refusal);
    }
}

/// As [`refuse_statement`], for one that fails before it gets so far: it isn't parsed as whom it was sent for. What says
/// that the server is in trouble, or the transaction block failed already, stays.
pub fn refused_instead(sqlstate: i32) -> Option<Refusal> {
    let (_, refusal) = refused()?;
    let class = catch::sqlstate_text(sqlstate);
    let stays = [b"08", b"25", b"40", b"53", b"54", b"57", b"58", b"XX"];
    if SESSION.with(|session| session.refusing.replace(false)) || stays.iter().any(|stays| class.starts_with(*stays)) {
        return None;
    }
    // Catalogs can't be read now.
    let statement = statements::kept_message().0.unwrap_or_default();
    SESSION.with(|session| session.untold.replace(Some((refusal.clone(), statement))));
    Some(refusal)
}

fn role_assigned(state: &RoleState) {
    SESSION.with(|session| session.role.set(*state));
    derive();
}

fn role_shown() -> Option<Name> {
    in_force().map(|state| role_name_in_force(&state))
}

/// X1: RESET SESSION AUTHORIZATION reaches the assign hook without a check.
fn session_user_changes() {
    if identity::in_transaction() && in_force().is_some() {
        raise(&guc::session_refusal());
    }
}

/// Another extension may put a role in force that no setting tells of, and keep the session in it: the end of an
/// impersonation would be a way out.
fn refuse_foreign_role() {
    let expected = amounts_to().map_or(identity::session_user(), |(role, _)| role);
    let found = identity::role_in_force();
    if found != expected {
        let name = |role| identity::to_utf8(&identity::role_name(role).unwrap_or_default());
        raise(&Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            message: "cannot impersonate under a role that another extension has put in force".to_owned(),
            detail: Some(format!(
                "Role \"{}\" is in force where settings say \"{}\".",
                name(found),
                name(expected)
            )),
            hint: Some("Leave it first, by that extension's way.".to_owned()),
        });
    }
}

/// What the recorded values amount to: the role to be in force, or None for the session user.
fn amounts_to() -> Option<(Oid, bool)> {
    let role = SESSION.with(|session| session.role.get());
    let role_set = role.role != Oid::INVALID;
    match in_force() {
        Some(state) if role_set && role.impersonation == state.id => Some((role.role, role.superuser)),
        Some(state) => Some((state.target, state.target_superuser)),
        None if role_set && role.impersonation == [0; 16] => Some((role.role, role.superuser)),
        None => None,
    }
}

/// Whether statements must be followed: somebody is impersonated, was while one of them began, or a value of the
/// setting that counts for nobody is to be cleared.
pub fn must_watch() -> bool {
    let followed = |session: &Session| session.told.is_some() || session.target.is_some() || session.refused.get();
    statements::any_open() || SESSION.with(followed)
}

/// A value that outlived its session user is cleared, so that parallel workers don't show it.
fn clear_dead_value() {
    SESSION.with(|session| {
        if session.target.is_some() && in_force().is_none() && identity::in_transaction() {
            session.changing.set(true);
            guc::set_target(c"", false);
            session.changing.set(false);
        }
    });
}

/// X2: ends the connection if the role in force isn't the one that the session's own state amounts to. Before that, D1's
/// refusal of all but the `exempt` statements.
pub fn check(exempt: bool) {
    if !exempt {
        refuse_statement();
    }
    let Some(state) = in_force() else {
        return clear_dead_value();
    };
    take_down_late(&state);
    let Some((expected, _)) = amounts_to() else { return };
    let found = identity::role_in_force();
    if found == expected {
        return stand_up_to(&state);
    }
    let detail = serde_json::json!({
        "expected": u32::from(expected),
        "found": u32::from(found),
    })
    .to_string();
    statements::tell_standing(&Event {
        sqlstate: *b"42501",
        ..event(Kind::Violation, &state, Some(detail.as_bytes()))
    });
    pgrx::ereport!(
        pgrx::PgLogLevel::FATAL,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "the role in force is not the one that is impersonated",
        format!(
            "Role {} is in force instead of role {}.",
            u32::from(found),
            u32::from(expected)
        )
    );
}

/// When the target expires, the end of time if that doesn't matter.
fn end_of(target: Oid, rules: guc::Rules) -> pgrx::pg_sys::TimestampTz {
    if rules.require_login {
        crate::pg::roles::valid_until(target)
    } else {
        pgrx::pg_sys::TimestampTz::MAX
    }
}

/// As [`end_of`], as it was when this impersonation was last judged.
fn expires(state: &TargetState) -> pgrx::pg_sys::TimestampTz {
    let (id, read_again) = SESSION.with(|session| session.expires.get());
    if id == state.id {
        read_again
    } else {
        state.valid_until
    }
}

/// One that began with the connection has seen nothing of the session yet when its first statement comes: other settings
/// of the role and the database are taken after it.
fn take_down_late(state: &TargetState) {
    if !identity::in_transaction() || before(state).is_some() {
        return;
    }
    let before = Before {
        settled: Cell::new(true),
        rights: Cell::new(SESSION.with(|session| session.rights_at_start.get())),
        since: state.since,
        under: None,
        role: Cell::new(guc::take_role()),
        settings: RefCell::new(guc_values::take()),
        temporary: Vec::new(),
    };
    SESSION.with(|session| session.before.borrow_mut().push((state.id, Rc::new(before))));
}

/// E5: whatever changed under the impersonation, by whatever path, it is judged again before the next statement.
fn stand_up_to(state: &TargetState) {
    if !identity::in_transaction() {
        return;
    }
    let expired = expires(state) < leftovers::statement_start();
    if !changes::any(state.rules.full) && !expired {
        return;
    }
    let seen = changes::look();
    match guard::judge_own(state) {
        Ok(rights) => {
            seen.settle();
            look_at_names(state);
            SESSION.with(|session| session.expires.set((state.id, end_of(state.target, state.rules))));
            if let Some(before) = before(state) {
                before.rights.set(rights);
            }
            active::judged_own(&state.id, identity::now(), &rights);
        }
        Err(broken) => {
            let detail = broken.detail().to_string();
            let detail = identity::speakable(&detail);
            statements::tell_standing(&Event {
                sqlstate: *b"57P01",
                ..event(Kind::Terminated, state, Some(detail.as_bytes()))
            });
            raise_at(
                &Refusal {
                    sqlstate: PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
                    message: format!(
                        "terminating connection because role \"{}\" may no longer act as role \"{}\"",
                        name_text(&state.impersonator_name),
                        name_text(&state.target_name)
                    ),
                    detail: Some(broken.sentence),
                    hint: None,
                },
                pgrx::PgLogLevel::FATAL,
            );
        }
    }
}

/// Puts in force what the recorded values amount to.
fn derive() {
    SESSION.with(|session| {
        if let Some(state) = session.target.get() {
            let aborting = matches!(
                session.ending.get(),
                TransactionEnd::Abort | TransactionEnd::SubtransactionAbort
            );
            if state.impersonator != identity::session_user() && (identity::in_transaction() || !aborting) {
                session.dead.set(state.id);
            }
        }
        identity::put_in_force(amounts_to());
        if !session.changing.get() {
            reconcile();
        }
    });
}

/// Tells others what changed under them: that an impersonation ended, or that a ROLLBACK brought one back.
///
/// Waits for nothing and raises nothing.
fn reconcile() {
    let now = in_force();
    SESSION.with(|session| {
        let told = session.told.get();
        if session.exiting.get() || told.as_ref().map(|state| state.id) == now.as_ref().map(|state| state.id) {
            return;
        }
        // On the way to what was before the transaction, the values of its savepoints come by.
        let passes = |state: &TargetState| before(state).is_none_or(|before| !before.settled.get());
        let all_ends = match session.ending.get() {
            TransactionEnd::Abort => !identity::in_transaction(),
            TransactionEnd::SubtransactionAbort => trampoline::rolls_back_all(),
            _ => false,
        };
        if all_ends && now.as_deref().is_some_and(passes) {
            return;
        }
        let cause = if matches!(
            session.ending.get(),
            TransactionEnd::Abort | TransactionEnd::SubtransactionAbort
        ) {
            Cause::Rollback
        } else {
            Cause::EndOfTransaction
        };
        if let Some(state) = told.map(as_named) {
            tell_end(&state, cause, None);
        }
        if let Some(state) = &now {
            tell_return(state, cause);
        }
        // What was prepared under one that a ROLLBACK ended is no part of the transaction.
        leftovers::drop_statements(|id| !goes_on(now.as_deref(), id));
        session.told.set(now);
        trampoline::watch(must_watch());
    });
}

/// Whether an impersonation is in force, or lies under the one that is.
fn goes_on(now: Option<&TargetState>, id: &[u8; 16]) -> bool {
    let Some(state) = now else { return false };
    state.id == *id || before(state).is_some_and(|before| before.under.as_ref().is_some_and(|under| under.id == *id))
}

fn publish(slot: Slot, state: &TargetState, judged_at: pgrx::pg_sys::TimestampTz, rights: &Note) {
    let entry = active::Entry {
        pid: identity::pid(),
        database: identity::database(),
        state: *state,
        session_start: identity::session_start(),
        judged_at,
    };
    active::publish(slot, Some((&entry, rights)));
}

/// An impersonation is about to be ended or switched over in a transaction that may yet bring it back: until then
/// nobody may break its criteria either.
fn keep_for_rollback(state: &TargetState) {
    let Some(before) = before(state) else { return };
    if !before.settled.get() {
        // A ROLLBACK TO SAVEPOINT may bring this one back, and there is no place in the table for any number of them.
        return role_lock::keep_roles();
    }
    publish(Slot::MayComeBack, state, identity::now(), &before.rights.get());
    SESSION.with(|session| session.may_come_back.set(Some(state.id)));
}

fn nothing_comes_back() {
    if SESSION.with(|session| session.may_come_back.take()).is_some() {
        active::publish(Slot::MayComeBack, None);
    }
}

fn event<'a>(kind: Kind, state: &'a TargetState, detail: Option<&'a [u8]>) -> Event<'a> {
    Event {
        kind,
        user_name: name_bytes(&state.target_name),
        session_user_name: name_bytes(&state.impersonator_name),
        role_name: name_bytes(&state.target_name),
        impersonation_id: Some(state.id),
        grant_id: (state.grant_id != 0).then_some(state.grant_id),
        reason: state.reason.text(),
        detail,
        ..statements::blank_event(kind)
    }
}

/// Text that goes with an end.
const END_TEXT: usize = 256;

fn tell_end(state: &TargetState, cause: Cause, statement: Option<(&[u8], &[u8])>) {
    let detail = cause.detail();
    active::publish(Slot::InForce, None);
    let end = event(Kind::ResetUser, state, Some(detail.as_bytes()));
    statements::tell_standing(&Event {
        // Its room is that of any standing event.
        statement: statement.map(|(_, text)| identity::cut(text, END_TEXT)),
        command_tag: statement.map(|(tag, _)| tag),
        ..end
    });
}

fn tell_return(state: &TargetState, cause: Cause) {
    let detail = cause.detail();
    let rights = before(state).map_or(Note::EMPTY, |before| before.rights.get());
    publish(Slot::InForce, state, identity::now(), &rights);
    if SESSION.with(|session| session.may_come_back.get()) == Some(state.id) {
        nothing_comes_back();
    }
    statements::tell_standing(&event(Kind::SetUser, state, Some(detail.as_bytes())));
}

/// A judged switch, ready to be made.
pub struct Switch<'a> {
    /// Keeps roles from changing between the judgement and the table of active impersonations.
    pub switching: Switching,
    /// Changes from before it was judged.
    pub seen: changes::Seen,
    /// What sessions of other databases need to judge it again.
    pub rights: Note,
    pub rules: guc::Rules,
    pub impersonator: Oid,
    pub target: Oid,
    pub grant_id: Option<i64>,
    pub reason: Option<&'a [u8]>,
    pub local: bool,
    pub cookie: Option<[u8; 32]>,
    pub no_revert: bool,
    /// Applies the target's own settings (S8).
    pub with_settings: bool,
    pub door: &'a Door,
    /// The connection starts: the setting takes the value by itself.
    pub at_start: bool,
    /// The name that the target was given by, where that is no role's.
    pub external_name: Option<String>,
}

/// What there is to know of a switch that isn't ordinary.
fn notes(switch: &Switch) -> Option<String> {
    let mut notes = serde_json::Map::new();
    if switch.rules.full {
        notes.insert("criteria".to_owned(), "full".into());
    }
    if let Some(name) = &switch.external_name {
        notes.insert("external_name".to_owned(), name.as_str().into());
    }
    if switch.at_start {
        notes.insert("door".to_owned(), "connection".into());
    }
    let text = serde_json::Value::Object(notes).to_string();
    (text != "{}").then(|| identity::speakable(&text).into_owned())
}

/// What a switch needs before it is judged: no cursors, and room in the queue. May wait, and raises.
pub fn make_ready(local: bool, reason: Option<&[u8]>, door: &Door) -> usize {
    // There are none as the connection starts, and queries cannot run yet.
    if door.tag().is_some() {
        refuse_open_cursors(local);
    }
    crate::audit::require_writer();
    refuse_foreign_role();
    trampoline::follow_transactions();
    switches();
    statements::stand_by();
    let space = Event {
        statement: door.statement(),
        command_tag: door.tag(),
        reason,
        user_name: &LONGEST_NAME,
        session_user_name: &LONGEST_NAME,
        role_name: &LONGEST_NAME,
        impersonation_id: Some([0; 16]),
        grant_id: Some(0),
        // At its longest: a name of 256 bytes, escaped, and the other notes.
        detail: Some(&[b' '; 2048]),
        ..statements::blank_event(Kind::SetUser)
    }
    .size();
    crate::audit::reserve(space);
    space
}

const LONGEST_NAME: [u8; 64] = [b'n'; 64];

/// Starts an impersonation, or switches over, with the room of [`make_ready`]. On record before it is in force; raises
/// when it can't be.
pub fn start(switch: Switch, space: usize) -> TargetState {
    let impersonator_name = identity::role_name(switch.impersonator).unwrap_or_default();
    let target_name = identity::role_name(switch.target).unwrap_or_default();
    let rules = guc::Rules {
        intersection: switch.rules.intersection || switch.grant_id.is_some_and(access::right_is_intersected),
        ..switch.rules
    };
    let state = TargetState {
        id: crate::pg::rights::random_uuid(),
        impersonator: switch.impersonator,
        target: switch.target,
        target_superuser: identity::superuser(switch.target),
        via: via().unwrap_or(Oid::INVALID),
        grant_id: switch.grant_id.unwrap_or(0),
        since: leftovers::statement_start(),
        rules,
        valid_until: end_of(switch.target, switch.rules),
        impersonator_name: name_of(&impersonator_name),
        target_name: name_of(&target_name),
        cookie: switch.cookie,
        no_revert: switch.no_revert,
        local: switch.local,
        audited: settings::audit_statements() != settings::AuditStatements::none,
        audit_wait: settings::audit_wait().settled(),
        nested: settings::audit_nested(),
        reason: guc::Reason::new(switch.reason.unwrap_or_default()),
    };
    let value = CString::new(target_name).unwrap_or_default();
    let detail = notes(&switch);
    let recorded = Event {
        statement: switch.door.statement(),
        command_tag: switch.door.tag(),
        reason: switch.reason,
        ..event(Kind::SetUser, &state, detail.as_deref().map(str::as_bytes))
    };
    SESSION.with(|session| {
        if let Some(old) = session.told.get().map(as_named) {
            keep_for_rollback(&old);
            tell_end(&old, Cause::Switched, None);
        }
        let sequence = crate::audit::push_reserved(&recorded, space);
        statements::switched();
        // From here a failure is undone by the transaction: told, not in force, hence a RESETUSER when it aborts.
        session.told.set(Some(Rc::new(state)));
        session.changing.set(true);
        publish(Slot::InForce, &state, identity::now(), &switch.rights);
        switch.seen.settle();
        switch.switching.done();
        trampoline::watch(true);
        crate::audit::wait_stored(sequence);
        if settings::audit_wait() == settings::AuditWait::flush {
            crate::audit::wait_flushed(sequence);
        }
        let under = match in_force() {
            // It takes the old one's place.
            Some(old) if old.local && switch.local => {
                put_back(&old);
                before(&old).and_then(|before| before.under.clone())
            }
            Some(old) if switch.local => before(&old).map(|before| Under {
                id: old.id,
                target: old.target,
                before,
            }),
            Some(old) => {
                put_all_back(&old);
                None
            }
            None => None,
        };
        if switch.at_start {
            session.rights_at_start.set(switch.rights);
            session.changing.set(false);
            return;
        }
        leftovers::close_large_objects();
        let before = Before {
            settled: Cell::new(false),
            rights: Cell::new(switch.rights),
            since: state.since,
            under,
            role: Cell::new(guc::take_role()),
            settings: RefCell::new(guc_values::take()),
            temporary: leftovers::temporary_objects(),
        };
        session.before.borrow_mut().push((state.id, Rc::new(before)));
        session.wanted.set(Some(state));
        guc::set_target(&value, switch.local);
        session.wanted.set(None);
        session.changing.set(false);
    });
    if switch.with_settings {
        guc_values::apply(
            &leftovers::settings_of(state.target),
            state.target_superuser,
            switch.local,
        );
    }
    state
}

fn switches() {
    SESSION.with(|session| session.switches.set(session.switches.get() + 1));
}

/// How many switches of this transaction a ROLLBACK may have to undo one by one, savepoint by savepoint.
pub fn switches_in_savepoints() -> usize {
    SESSION.with(|session| session.switches.get().min(identity::savepoints()))
}

/// Ends the impersonation in force, if there is one.
pub fn end(cause: Cause, statement: Option<(&[u8], &[u8])>) {
    let Some(state) = in_force() else { return };
    switches();
    SESSION.with(|session| {
        statements::stand_by();
        keep_for_rollback(&state);
        let before = before(&state).map(lowest);
        // May fail; the settings cannot, and some of them ask who sets them.
        if let Some(before) = &before {
            leftovers::remove(before.since, &before.temporary, |_| true);
        }
        session.changing.set(true);
        guc::set_target(c"", false);
        if let Some(before) = &before {
            put_settings_back(before);
        }
        session.changing.set(false);
        session.told.set(None);
        tell_end(&state, cause, statement);
        trampoline::watch(must_watch());
    });
}

/// What the impersonation at the bottom puts back.
fn lowest(mut before: Rc<Before>) -> Rc<Before> {
    while let Some(under) = &before.under {
        before = under.before.clone();
    }
    before
}

/// As [`put_back`], with the one that lies under it.
fn put_all_back(state: &TargetState) {
    if let Some(before) = before(state).map(lowest) {
        leftovers::remove(before.since, &before.temporary, |_| true);
        put_settings_back(&before);
    }
}

fn before(state: &TargetState) -> Option<Rc<Before>> {
    SESSION.with(|session| {
        session
            .before
            .borrow()
            .iter()
            .rev()
            .find(|(id, _)| *id == state.id)
            .map(|(_, before)| before.clone())
    })
}

/// S9: nothing that came up under the impersonation is left to act on the impersonator.
fn put_back(state: &TargetState) {
    if let Some(before) = before(state) {
        leftovers::remove(state.since, &before.temporary, |id| *id == state.id);
        put_settings_back(&before);
    }
}

fn put_settings_back(before: &Before) {
    // A role set inside counts for nobody outside.
    if let (Some(then), Some(now)) = (before.role.get(), guc::take_role()) {
        if !then.same(&now) {
            put_role_back(&then.session, false, before.under.as_ref());
            if let Some(local) = &then.local {
                put_role_back(local, true, before.under.as_ref());
            }
        }
    }
    guc_values::put_back(&before.settings.borrow());
}

fn put_role_back(state: &RoleState, local: bool, under: Option<&Under>) {
    let under = under.filter(|under| under.id == state.impersonation);
    SESSION.with(|session| {
        session.restoring.set(Some(under.map(|under| (under.id, under.target))));
        if under.is_some() || state.impersonation == [0; 16] {
            guc::set_role(state, local);
        } else {
            // Of an impersonation that is over: it counts for nobody.
            guc::set_role(&NO_ROLE, local);
        }
        session.restoring.set(None);
    });
}

/// Takes down what a statement leaves in the session outside of any transaction.
pub fn note_leftovers(utility: &trampoline::Utility) {
    if let Some(state) = in_force() {
        leftovers::note(utility, state.id);
    }
}

/// A cursor gives what its opener could read to whoever fetches, and its query goes on as whoever that is.
fn refuse_open_cursors(local: bool) {
    // Those that came up under an impersonation go with it.
    let cursors = if in_force().is_some() && !local {
        Vec::new()
    } else {
        leftovers::open_cursors(None)
    };
    if let Some(cursor) = cursors.first() {
        raise(&Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            message: "cannot impersonate while cursors are open".to_owned(),
            detail: Some(format!("Cursor \"{cursor}\" would be open to the target.")),
            hint: Some("CLOSE ALL;".to_owned()),
        });
    }
}

/// Why the impersonation in force can't end yet, if it is so: the target's code would run as somebody else (S9).
pub fn deferred() -> Option<Refusal> {
    let state = in_force()?;
    let table = leftovers::deferred_code()?;
    Some(Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
        message: format!(
            "cannot end the impersonation of \"{}\" before its deferred triggers have run",
            name_text(&state.target_name)
        ),
        detail: Some(format!(
            "Those of table \"{table}\" would run as whoever is in force when the transaction ends."
        )),
        hint: Some("SET CONSTRAINTS ALL IMMEDIATE; runs them. Or end the transaction first.".to_owned()),
    })
}

/// The transaction is about to commit: what ends with it leaves nothing behind (S9).
pub fn before_commit() {
    try_start();
    if let Some(state) = in_force().filter(|state| state.local) {
        put_back(&state);
    }
}

/// Whether the impersonation in force may be changed by a call that brings this cookie (S7).
pub fn may_change(cookie: Option<&[u8; 32]>) -> Result<(), Refusal> {
    let Some(state) = in_force() else { return Ok(()) };
    let refusal = |message: &str, hint: &str| Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message: message.to_owned(),
        detail: Some(format!(
            "Role \"{}\" impersonates \"{}\".",
            name_text(&state.impersonator_name),
            name_text(&state.target_name)
        )),
        hint: Some(hint.to_owned()),
    };
    if state.no_revert {
        return Err(refusal(
            "this impersonation lasts until the connection ends",
            "It was started with no_revert. Close the connection to end it.",
        ));
    }
    match &state.cookie {
        Some(required) if cookie != Some(required) => Err(refusal(
            "this impersonation can be changed only with its cookie",
            "Give the cookie that it was started with, or close the connection.",
        )),
        _ => Ok(()),
    }
}

/// Whether what is in force can be ended by what is for this transaction alone: if that is all it lasts for. A lasting one
/// would come back, with all that it made in the session, to a client that may not expect it, or not come back to one
/// that does and would go on with the impersonator's privileges.
pub fn may_end_locally() -> Result<(), Refusal> {
    let Some(state) = in_force() else { return Ok(()) };
    let lasting = if state.local {
        before(&state).and_then(|before| before.under.as_ref().map(|under| under.target))
    } else {
        Some(state.target)
    };
    let Some(lasting) = lasting else { return Ok(()) };
    Err(Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        message: "an impersonation cannot be ended for the rest of a transaction".to_owned(),
        detail: Some(format!(
            "Role \"{}\" impersonates \"{}\" beyond this transaction.",
            name_text(&state.impersonator_name),
            identity::to_utf8(&identity::role_name(lasting).unwrap_or_default())
        )),
        hint: Some("SELECT setuser();".to_owned()),
    })
}

/// The transaction, or a part of it, ends: its settings are popped after this.
pub fn transaction_ends(end: TransactionEnd) {
    SESSION.with(|session| {
        session.ending.set(end);
        if matches!(end, TransactionEnd::Commit | TransactionEnd::Abort) {
            session.switches.set(0);
        }
        if end == TransactionEnd::Commit {
            let told = session.told.get();
            if told.as_ref().is_none_or(|state| !state.local) {
                nothing_comes_back();
            }
            if let Ok(mut before) = session.before.try_borrow_mut() {
                // Under one that ends with the transaction there may be another that goes on.
                for (_, kept) in before.iter() {
                    kept.settled.set(true);
                    // A SET LOCAL of this transaction is over.
                    kept.role
                        .set(kept.role.get().map(|role| guc::RoleValues { local: None, ..role }));
                    if let Ok(mut settings) = kept.settings.try_borrow_mut() {
                        settings.forget_local();
                    }
                }
                let goes_on = |id: &[u8; 16]| told.as_ref().is_some_and(|state| (state.id == *id) != state.local);
                before.retain(|(id, _)| goes_on(id));
                leftovers::forget(|id| !goes_on(id));
            }
        }
        let aborted = matches!(end, TransactionEnd::Abort | TransactionEnd::SubtransactionAbort);
        session.restoring.set(None);
        if end == TransactionEnd::Abort {
            look_again();
        }
        if aborted && session.changing.replace(false) {
            // A switch that failed half-way: told, but never in force.
            session.wanted.set(None);
            reconcile();
        }
    });
}

/// The connection ends (X3: nothing of the identity is left).
pub fn connection_ends(terminated: bool) {
    SESSION.with(|session| {
        session.exiting.set(true);
        active::set_refused(false);
        nothing_comes_back();
        if let Some(told) = session.told.take().map(as_named) {
            tell_end(
                &told,
                if terminated {
                    Cause::Terminated
                } else {
                    Cause::Disconnect
                },
                None,
            );
        }
    });
}

/// Why another session ends this one, for its client (E3).
pub fn last_words() -> Option<Vec<u8>> {
    let told = SESSION.with(|session| session.told.get())?;
    Some(active::doom(&told.id)?.bytes().to_vec())
}

/// The impersonator's name for events, without a catalog while impersonating.
pub fn names_for_events() -> Option<(Rc<TargetState>, Name)> {
    let told = as_named(SESSION.with(|session| session.told.get())?);
    let role = role_name_in_force(&told);
    Some((told, role))
}

/// X3: DISCARD ALL ends an impersonation, with its connection if it has a cookie or no_revert: poolers do not go by the
/// errors that their reset query gets, and would hand the connection on.
pub fn discard() {
    if let Err(refusal) = may_change(None) {
        SESSION.with(|session| {
            session.exiting.set(true);
            if let Some(told) = session.told.take().map(as_named) {
                tell_end(&told, Cause::Discard, None);
            }
        });
        raise_at(&refusal, pgrx::PgLogLevel::FATAL);
    }
    end(Cause::Discard, None);
}

/// S1: what looks like a switch is one.
pub fn refuse_shadow(function: Oid) {
    if crate::pg::portal::shadows_setuser(function) {
        raise(&Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            message: "a function in the search path hides pg_catalog.setuser()".to_owned(),
            detail: None,
            hint: Some("Use SELECT pg_catalog.setuser(...), or RESET search_path first.".to_owned()),
        });
    }
}

/// Raises a refusal as an error.
pub fn raise(refusal: &Refusal) -> ! {
    raise_at(refusal, pgrx::PgLogLevel::ERROR)
}

fn raise_at(refusal: &Refusal, level: pgrx::PgLogLevel) -> ! {
    let words = |words: &str| identity::speakable(words).into_owned();
    let mut report = pgrx::pg_sys::panic::ErrorReport::new(refusal.sqlstate, words(&refusal.message), "");
    if let Some(detail) = &refusal.detail {
        report = report.set_detail(words(detail));
    }
    if let Some(hint) = &refusal.hint {
        report = report.set_hint(words(hint));
    }
    report.report(level);
    unreachable!("an error does not return")
}

/// X4: nobody changes the product, its settings or its objects from under an impersonation, whatever the target is.
pub fn refuse_change(what: &str) {
    if let Some(state) = in_force() {
        raise(&change_refusal(&state, what));
    }
}

/// See [`refuse_change`].
pub fn change_refusal(state: &TargetState, what: &str) -> Refusal {
    Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message: format!("cannot change {what} while impersonating"),
        detail: Some(format!(
            "Role \"{}\" acts as \"{}\".",
            name_text(&state.impersonator_name),
            name_text(&state.target_name)
        )),
        hint: Some("End the impersonation first: SELECT setuser();".to_owned()),
    }
}
