//! A switch, whichever door it comes by: asked for, judged, made or refused (S1 to S7, D1).

use crate::audit::{self, Event, Kind};
use crate::pg::guc::{name_bytes, name_cstring, name_of, Refusal, TargetState};
use crate::pg::role_lock::Switching;
use crate::pg::roles::Catalogs;
use crate::pg::{changes, identity, portal, version as pg_version};
use crate::session::{self, Cause, Switch};
use crate::target::{self, shown};
use crate::{exempt, guard, settings, statements, version};
use impersonate_policy as policy;
use pgrx::PgSqlErrorCode;
use policy::{quote_literal, Verdict, World};

/// Bytes that a reason may have: it goes with each row of its impersonation's beginning and end.
const MAX_REASON: usize = 8192;

/// The way that a switch comes by, as the audit has it.
pub struct Door {
    /// Names the client's statement among those that are followed; 0 when it isn't.
    pub key: usize,
    /// Empty where there is no statement.
    pub tag: &'static [u8],
    /// The statement, without the cookie.
    pub statement: Vec<u8>,
    /// A refusal isn't told.
    pub quiet: bool,
}

/// What is asked for.
pub struct Request<'a> {
    /// None to end.
    pub target: Option<&'a [u8]>,
    pub reason: Option<&'a [u8]>,
    pub local: bool,
    pub cookie: Option<[u8; 32]>,
    pub no_revert: bool,
    pub with_settings: bool,
}

impl<'a> Request<'a> {
    /// By a door that has no more to say.
    pub fn of(target: Option<&'a [u8]>) -> Self {
        Request {
            target,
            reason: None,
            local: false,
            cookie: None,
            no_revert: false,
            with_settings: false,
        }
    }
}

/// Starts, switches over or ends, or raises; the role now in force.
pub fn go(door: &Door, request: &Request) -> Vec<u8> {
    let reason = given_reason(request);
    let reason = reason.as_deref();
    if let Some(reason) = reason.filter(|reason| reason.len() > MAX_REASON) {
        let refusal = refusal(
            PgSqlErrorCode::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
            "the reason is too long".to_owned(),
            Some(format!("It has {} bytes; {MAX_REASON} are possible.", reason.len())),
            None,
        );
        // Nobody of that name is the better answer, if it is so.
        if request.target.is_none_or(|name| target::resolve(name).is_ok()) {
            deny(door, request.target, &refusal, Some(reason));
        }
    }
    if let Err(refusal) = session::may_change(request.cookie.as_ref()) {
        deny(door, request.target, &refusal, reason);
    }
    if let Some(refusal) = session::deferred() {
        deny(door, request.target, &refusal, reason);
    }
    let Some(target) = request.target else {
        if request.local {
            if let Err(refusal) = session::may_end_locally() {
                deny(door, None, &refusal, reason);
            }
        }
        session::end(Cause::Asked, Some((door.tag, &door.statement)));
        statements::told_otherwise(door.key, false);
        statements::settle();
        return identity::role_name(identity::role_in_force()).unwrap_or_default();
    };
    let state = start(door, target, request, reason, false);
    statements::told_otherwise(door.key, false);
    name_bytes(&state.target_name).to_vec()
}

/// As [`go`], for what the connection starts with (D1): the state that its `impersonate.target` stands for. Only the
/// first refusal is told; of those after it each statement tells that fails for it.
pub fn at_start(target: &[u8], first: bool) -> TargetState {
    let door = Door {
        key: 0,
        tag: b"",
        statement: Vec::new(),
        quiet: !first,
    };
    let request = Request::of(Some(target));
    let reason = given_reason(&request);
    start(&door, target, &request, reason.as_deref(), true)
}

fn given_reason(request: &Request) -> Option<Vec<u8>> {
    match request.reason {
        Some(reason) => Some(reason.to_vec()),
        None if request.target.is_some() => settings::reason(),
        None => None,
    }
}

fn start(door: &Door, target: &[u8], request: &Request, reason: Option<&[u8]>, at_start: bool) -> TargetState {
    // Raised, and not on record: the record's form is the other version's as well.
    version::require_same();
    // Its commands are no statements: what they do, up to a copy of everything, would not be on record.
    if pg_version::is_walsender() {
        let refusal = refusal(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "replication connections cannot impersonate".to_owned(),
            Some("Commands of the replication protocol would not be in the audit.".to_owned()),
            Some("Connect without replication=database.".to_owned()),
        );
        deny(door, Some(target), &refusal, reason);
    }
    let shown_target = shown(target);
    if settings::local_only() && !request.local {
        let refusal = refusal(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "an impersonation must end with its transaction here".to_owned(),
            Some("Setting \"impersonate.local_only\" is on, because others may get this connection next.".to_owned()),
            Some(format!(
                "BEGIN; SELECT setuser({}, local => true);",
                quote_literal(&shown_target)
            )),
        );
        deny(door, Some(target), &refusal, reason);
    }
    if let Err(nobody) = target::resolve(target) {
        deny(door, Some(target), &nobody, reason);
    }
    if let Some(pattern) = settings::require_reason() {
        if !reason.is_some_and(|reason| crate::pg::regex::matches(&pattern, reason)) {
            deny(door, Some(target), &lacks_reason(&pattern, reason), reason);
        }
    }
    let space = session::make_ready(request.local, reason, door);
    let switching = Switching::begin();
    let seen = changes::look();
    let (role, external) = match target::resolve(target) {
        Ok(resolved) => (resolved.role, resolved.external),
        Err(nobody) => {
            switching.done();
            audit::release(space);
            deny(door, Some(target), &nobody, reason)
        }
    };
    let catalogs = Catalogs::default();
    let (impersonator, rules) = (identity::session_user(), guard::rules());
    if let Some(refusal) = exempt::refused(impersonator, role) {
        switching.done();
        audit::release(space);
        deny(door, Some(target), &refusal, reason);
    }
    let verdict = guard::judge(&catalogs, impersonator, role, session::via(), rules);
    if let Some(refusal) = refused(&catalogs, &verdict) {
        switching.done();
        audit::release(space);
        deny(door, Some(target), &refusal, reason);
    }
    let switch = Switch {
        switching,
        seen,
        rights: guard::for_others(&catalogs, impersonator, role, rules),
        rules,
        impersonator,
        target: role,
        grant_id: verdict.right,
        reason,
        local: request.local,
        cookie: request.cookie,
        no_revert: request.no_revert,
        with_settings: request.with_settings,
        door,
        at_start,
        // D1: the audit keeps both names.
        external_name: external.then(|| shown(target)),
    };
    session::start(switch, space)
}

fn lacks_reason(pattern: &[u8], reason: Option<&[u8]>) -> Refusal {
    let pattern = identity::to_utf8(pattern);
    refusal(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "a reason is required to act as another role".to_owned(),
        Some(match reason {
            Some(reason) => format!(
                "The reason \"{}\" does not match setting \"impersonate.require_reason\", which is \"{pattern}\".",
                shown(reason)
            ),
            None => format!("Setting \"impersonate.require_reason\" is \"{pattern}\", and no reason was given."),
        }),
        Some("SET impersonate.reason = '...'; before, or SELECT setuser('role', reason => '...');".to_owned()),
    )
}

/// A refusal of these parts.
pub fn refusal(sqlstate: PgSqlErrorCode, message: String, detail: Option<String>, hint: Option<String>) -> Refusal {
    Refusal {
        sqlstate,
        message,
        detail,
        hint,
    }
}

/// A string constant.
pub fn quoted(text: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + 3);
    let backslash = text.contains(&b'\\');
    quoted.extend_from_slice(if backslash { b"E'" } else { b"'" });
    for &byte in text {
        if byte == b'\'' || byte == b'\\' {
            quoted.push(byte);
        }
        quoted.push(byte);
    }
    quoted.push(b'\'');
    quoted
}

/// A statement that has a name in it, if there is one.
pub fn with_name(before: &str, name: Option<&[u8]>, after: &str) -> Vec<u8> {
    let name = name.map(quoted).unwrap_or_default();
    [before.as_bytes(), &name, after.as_bytes()].concat()
}

/// S6: the first criterion that isn't met, and the statement that would cure it.
fn refused(catalogs: &Catalogs, verdict: &Verdict) -> Option<Refusal> {
    let failed = verdict.first_failed()?.render(catalogs);
    Some(refusal(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!(
            "role \"{}\" may not act as role \"{}\"",
            catalogs.name(verdict.impersonator.0),
            catalogs.name(verdict.target.0)
        ),
        Some(failed.sentence),
        failed.remedy.map(|remedy| format!("{remedy};")),
    ))
}

/// A statement, as the audit keeps it, failed for what its connection started with.
pub fn tell_denied_statement(target: &[u8], refusal: &Refusal, statement: Vec<u8>) {
    let door = Door {
        key: 0,
        tag: b"",
        statement,
        quiet: false,
    };
    tell_denied(&door, Some(target), refusal, settings::reason().as_deref());
}

/// S6: a refusal leaves a DENIED row and nothing else.
fn deny(door: &Door, target: Option<&[u8]>, refusal: &Refusal, reason: Option<&[u8]>) -> ! {
    if !door.quiet {
        tell_denied(door, target, refusal, reason);
    }
    session::raise(refusal);
}

fn tell_denied(door: &Door, target: Option<&[u8]>, refusal: &Refusal, reason: Option<&[u8]>) {
    let (statement, mut detail) = statements::kept_text(&door.statement);
    detail["target"] = target.map(shown).into();
    if let Some(resolved) = target
        .and_then(|target| target::resolve(target).ok())
        .filter(|found| found.external)
    {
        let role = identity::role_name(resolved.role).unwrap_or_default();
        detail["external_name"] = detail["target"].take();
        detail["target"] = identity::to_utf8(&role).into();
    }
    detail["message"] = refusal.message.as_str().into();
    detail["detail"] = refusal.detail.as_deref().into();
    if door.tag.is_empty() {
        detail["door"] = "connection".into();
    }
    let detail = identity::speakable(&detail.to_string()).into_owned();
    let session_user = identity::role_name(identity::session_user()).unwrap_or_default();
    let role = identity::role_name(identity::role_in_force()).unwrap_or_default();
    let told = session::names_for_events();
    let user = told
        .as_ref()
        .map_or(name_of(&session_user), |(state, _)| state.target_name);
    let user = name_cstring(&user);
    statements::told_otherwise(door.key, true);
    audit::push(&Event {
        user_name: user.to_bytes(),
        session_user_name: &session_user,
        role_name: &role,
        impersonation_id: told.map(|(state, _)| state.id),
        command_tag: door.tag(),
        statement: (!door.statement.is_empty()).then_some(&statement[..]),
        sqlstate: refusal.sqlstate_text(),
        reason: reason.map(|reason| identity::cut(reason, MAX_REASON)),
        detail: Some(detail.as_bytes()),
        ..statements::blank_event(Kind::Denied)
    });
}

impl Door {
    /// The command tag, if there is a statement.
    pub fn tag(&self) -> Option<&'static [u8]> {
        (!self.tag.is_empty()).then_some(self.tag)
    }

    /// The statement, if there is one.
    pub fn statement(&self) -> Option<&[u8]> {
        self.tag().map(|_| &self.statement[..])
    }
}

/// The client's statement as it was sent, without secrets.
pub fn sent() -> Vec<u8> {
    statements::kept_text(portal::clients_text()).0
}

/// A SET or RESET of `role` or `session_authorization` that means a switch (D2).
pub fn set_role(target: Option<&[u8]>, local: bool, sets: bool) {
    let door = Door {
        key: statements::newest_utility(),
        tag: if sets { b"SET" } else { b"RESET" },
        statement: sent(),
        quiet: false,
    };
    let request = Request {
        local,
        ..Request::of(target)
    };
    go(&door, &request);
}

/// SET, SET LOCAL and RESET of `impersonate.target`, as the client's own statement (D1).
pub fn set(value: Option<&[u8]>, local: bool) {
    let target = value.filter(|value| !value.is_empty());
    let tag: &[u8] = if value.is_some() { b"SET" } else { b"RESET" };
    let door = Door {
        key: statements::newest_utility(),
        tag,
        statement: sent(),
        quiet: false,
    };
    let request = Request {
        local,
        ..Request::of(target)
    };
    session::forget_refused();
    go(&door, &request);
}
