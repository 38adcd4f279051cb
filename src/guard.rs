//! At least, for as long as it lasts: the criteria of every active impersonation, whoever changes what (E2 to E6).
//!
//! A statement that can change roles takes the lock of `pg/role_lock.rs`, runs, and then everything in the table of
//! active impersonations is judged anew, with the statement's changes in sight. There is no foreseeing of what a
//! statement does. What bypasses statements is caught by the impersonating session itself (`session::check`).

mod remote;
mod watch;

pub use watch::WATCH;

use crate::audit::{self, Event, Kind};
use crate::pg::active::{self, Entry, Note};
use crate::pg::guc::{name_bytes, name_of, name_text, Refusal, Rules, TargetState};
use crate::pg::roles::{role_id, Catalogs};
use crate::pg::{backends, changes, identity, role_lock};
use crate::{exempt, session, settings, statements};
use impersonate_policy as policy;
use pgrx::pg_sys::Oid;
use pgrx::PgSqlErrorCode;
use policy::{Impersonator, Reaches, Target, Verdict, World};
use remote::Known;
use std::cell::RefCell;
use std::collections::HashMap;

/// Milliseconds to wait for connections that are in breach to be gone (E3).
const PATIENCE: i64 = 10_000;

/// Why an impersonation may not go on.
#[derive(Clone)]
pub struct Broken {
    /// The criterion's number.
    pub criterion: &'static str,
    /// The criterion, and what is missing, as a sentence.
    pub sentence: String,
}

impl Broken {
    /// For an event's detail.
    pub fn detail(&self) -> serde_json::Value {
        serde_json::json!({ "criterion": self.criterion, "missing": self.sentence })
    }
}

/// Judges with the settings that the switch was judged by.
pub fn judge(world: &dyn World, impersonator: Oid, target: Oid, via: Option<Oid>, rules: Rules) -> Verdict {
    judge_with(world, &Reaches::default(), impersonator, target, via, rules)
}

fn judge_with(
    world: &dyn World,
    reaches: &Reaches,
    impersonator: Oid,
    target: Oid,
    via: Option<Oid>,
    rules: Rules,
) -> Verdict {
    policy::judge_with(
        world,
        reaches,
        Impersonator(role_id(impersonator)),
        Target(role_id(target)),
        via.map(role_id),
        &policy::Rules {
            require_login: rules.require_login,
            criteria: if rules.full {
                policy::Criteria::Full
            } else {
                policy::Criteria::Roles
            },
        },
    )
}

/// The settings that a switch is judged by now.
pub fn rules() -> Rules {
    Rules {
        require_login: settings::require_login(),
        full: settings::criteria() == policy::Criteria::Full,
        intersection: settings::intersection(),
    }
}

/// What sessions of other databases need to judge an impersonation of this one.
pub fn for_others(catalogs: &Catalogs, impersonator: Oid, target: Oid, rules: Rules) -> Note {
    remote::note(catalogs, role_id(impersonator), role_id(target), rules.full)
}

/// Judges a state in a world: its roles must be there, and the criteria met.
fn broken(world: &dyn World, reaches: &Reaches, state: &TargetState, rules: Rules) -> Option<Broken> {
    judged(world, reaches, state, rules, &[])
}

fn judged(
    world: &dyn World,
    reaches: &Reaches,
    state: &TargetState,
    rules: Rules,
    but: &[policy::Criterion],
) -> Option<Broken> {
    for (role, name) in [
        (state.impersonator, &state.impersonator_name),
        (state.target, &state.target_name),
    ] {
        if identity::role_name(role).is_none() {
            return Some(Broken {
                criterion: "S5",
                sentence: format!("Criterion S5: role \"{}\" does not exist.", name_text(name)),
            });
        }
    }
    if let Some(why) = exempt::why(state.impersonator, state.target) {
        return Some(Broken {
            criterion: "exempt",
            sentence: why,
        });
    }
    let via = (state.via != Oid::INVALID).then_some(state.via);
    let verdict = judge_with(world, reaches, state.impersonator, state.target, via, rules);
    let mut conditions = verdict.conditions.iter();
    let failed = conditions.find(|condition| !condition.ok && !but.contains(&condition.criterion))?;
    let failed = failed.render(world);
    Some(Broken {
        criterion: failed.criterion,
        sentence: failed.sentence,
    })
}

/// As [`broken`], where rights cannot be read and are known to be as they were: what they decide is left out.
fn broken_but_for_rights(world: &dyn World, reaches: &Reaches, state: &TargetState) -> Option<Broken> {
    let rules = Rules {
        full: false,
        ..state.rules
    };
    judged(
        world,
        reaches,
        state,
        rules,
        &[policy::Criterion::A1, policy::Criterion::A5],
    )
}

/// E5: judges this session's own impersonation again; what others need to know of its rights, or what is amiss.
pub fn judge_own(state: &TargetState) -> Result<Note, Broken> {
    let catalogs = Catalogs::default();
    match broken(&catalogs, &Reaches::default(), state, state.rules) {
        Some(broken) => Err(broken),
        None => Ok(for_others(&catalogs, state.impersonator, state.target, state.rules)),
    }
}

/// Judges entries, each question asked once.
struct Judge {
    here: (Catalogs, Reaches),
    elsewhere: HashMap<Oid, (Catalogs, Reaches)>,
    #[allow(clippy::type_complexity)]
    answers: HashMap<(Oid, Oid, Oid, (bool, bool), Oid, Vec<u8>), Option<Broken>>,
}

impl Judge {
    fn broken(&mut self, entry: &Entry) -> Option<Broken> {
        let state = &entry.state;
        let local = entry.database == identity::database();
        let rights = if local {
            Note::EMPTY
        } else {
            active::rights_of(entry.pid, &state.id)?
        };
        let question = (
            state.impersonator,
            state.target,
            state.via,
            (state.rules.require_login, state.rules.full),
            entry.database,
            rights.bytes().to_vec(),
        );
        if let Some(answer) = self.answers.get(&question) {
            return answer.clone();
        }
        let answer = if local {
            broken(&self.here.0, &self.here.1, state, state.rules)
        } else {
            let (catalogs, reaches) = self
                .elsewhere
                .entry(entry.database)
                .or_insert_with(|| (Catalogs::of_database(entry.database), Reaches::default()));
            match remote::read(catalogs, rights.bytes()) {
                Known::Rights(world) => broken(
                    &world,
                    reaches,
                    state,
                    Rules {
                        full: false,
                        ..state.rules
                    },
                )
                .or_else(|| {
                    let lost = world.lost(role_id(state.impersonator))?;
                    Some(Broken {
                        criterion: "A6",
                        sentence: format!(
                            "Criterion A6: what \"{}\" could do to objects by role \"{}\" cannot be told from here.",
                            name_text(&state.impersonator_name),
                            catalogs.name(lost)
                        ),
                    })
                }),
                Known::Reach(reach)
                    if reach == remote::reach(catalogs, role_id(state.impersonator), role_id(state.target)) =>
                {
                    // Its rights are what they were; what else counts is the cluster's.
                    broken_but_for_rights(catalogs, reaches, state)
                }
                Known::Reach(_) => Some(Broken {
                    criterion: "A1",
                    sentence: "Criterion A1: the SET USER rights of its database cannot be read from here.".to_owned(),
                }),
            }
        };
        self.answers.insert(question, answer.clone());
        answer
    }
}

/// A statement is about to change what criteria are judged by. Waits for switches in the making. `outermost` is a
/// statement of the client's own; one inside another must not take for old what the outer one broke.
pub fn before_change(outermost: bool) {
    if !active::available() || !identity::in_transaction() || identity::in_recovery() {
        return;
    }
    role_lock::begin_change();
    note_broken(outermost);
}

/// A statement that can change objects is about to run: as [`before_change`], but nobody waits. A switch at the same
/// moment that misses its changes is judged again before its next statement.
pub fn before_objects_change(outermost: bool) {
    if identity::in_transaction() && !identity::in_recovery() {
        note_broken(outermost);
    }
}

fn note_broken(outermost: bool) {
    let transaction = identity::transaction_start();
    if active::any() && (outermost || BROKEN_BEFORE.with_borrow(|(of, _)| *of != transaction)) {
        let broken = judge_all().into_iter().map(|(entry, _)| entry.state.id).collect();
        BROKEN_BEFORE.set((transaction, broken));
    }
}

thread_local! {
    /// Impersonations that were in breach before this statement changed any role, by what bypasses statements: the next
    /// statement of theirs ends them (E5), and nobody else's fails for it. With the beginning of the transaction.
    static BROKEN_BEFORE: RefCell<(i64, Vec<[u8; 16]>)> = const { RefCell::new((0, Vec::new())) };
}

/// The impersonations that are in breach.
fn judge_all() -> Vec<(Entry, Broken)> {
    let mut judge = Judge {
        here: (Catalogs::default(), Reaches::default()),
        elsewhere: HashMap::new(),
        answers: HashMap::new(),
    };
    let mut found: Vec<(Entry, Broken)> = Vec::new();
    for (_, entry) in active::snapshot() {
        if let Some(broken) = judge.broken(&entry) {
            if found.iter().all(|(other, _)| other.state.id != entry.state.id) {
                found.push((entry, broken));
            }
        }
    }
    found
}

/// The statement is done: raises, or ends connections, if it broke the criteria of an active impersonation. `action`
/// says what it did, as in `cannot ...`.
pub fn after_change(action: impl Fn() -> String) {
    if !active::any() || !identity::in_transaction() {
        return;
    }
    identity::see_own_changes();
    let now = identity::now();
    let (transaction, all) = (identity::transaction_start(), judge_all());
    let failed: Vec<[u8; 16]> = all.iter().map(|(entry, _)| entry.state.id).collect();
    let found: Vec<(Entry, Broken)> = BROKEN_BEFORE.with_borrow(|(of, before)| {
        let new = |entry: &Entry| *of != transaction || !before.contains(&entry.state.id);
        all.into_iter().filter(|(entry, _)| new(entry)).collect()
    });
    if found.is_empty() {
        active::judged(now, &failed);
        return;
    }
    let own = found.iter().any(|(entry, _)| entry.pid == identity::pid());
    if settings::on_violation() == settings::OnViolation::reject || own {
        reject(&found, &action());
    }
    end(&found, &action());
    active::judged(now, &failed);
}

/// The transaction is about to commit: objects that came about without a utility statement, such as large ones.
pub fn before_commit() {
    if changes::made_object() && active::any_full() {
        after_change(|| "make an object".to_owned());
    }
}

/// The rights table was written by hand.
pub fn rights_changed() {
    // Too late to ask who was in breach before: the change is done.
    if identity::in_transaction() && !identity::in_recovery() {
        role_lock::begin_change();
    }
    after_change(|| "change impersonate.set_user_grant".to_owned());
}

/// The role and its session user that this session acts under, for events.
struct Actor {
    user: Vec<u8>,
    session_user: Vec<u8>,
    role: Vec<u8>,
}

impl Actor {
    fn here() -> Actor {
        let session_user = identity::role_name(identity::session_user()).unwrap_or_default();
        let told = session::names_for_events();
        let user = told.map_or(name_of(&session_user), |(state, _)| state.target_name);
        Actor {
            user: name_bytes(&user).to_vec(),
            session_user,
            role: identity::role_name(identity::current_user()).unwrap_or_default(),
        }
    }
}

fn about(entry: &Entry, broken: &Broken, action: &str) -> serde_json::Value {
    let mut detail = about_broken(entry, broken);
    detail["action"] = action.into();
    detail
}

fn about_broken(entry: &Entry, broken: &Broken) -> serde_json::Value {
    let mut detail = broken.detail();
    detail["pid"] = entry.pid.into();
    detail["impersonator"] = name_text(&entry.state.impersonator_name).into();
    detail["target"] = name_text(&entry.state.target_name).into();
    detail
}

/// E2: the statement fails; that it was tried stays on record, where the impersonation is.
fn reject(found: &[(Entry, Broken)], action: &str) -> ! {
    let actor = Actor::here();
    let (statement, _) = statements::kept_message();
    for (entry, broken) in found {
        let mut detail = about(entry, broken, action);
        detail["database"] = identity::to_utf8(&identity::database_name()).into();
        let detail = identity::speakable(&detail.to_string()).into_owned();
        audit::push_to(
            entry.database,
            &Event {
                user_name: &actor.user,
                session_user_name: &actor.session_user,
                role_name: &actor.role,
                impersonation_id: Some(entry.state.id),
                statement: statement.as_deref(),
                sqlstate: *b"55006",
                detail: Some(detail.as_bytes()),
                ..statements::blank_event(Kind::Violation)
            },
        );
    }
    let (entry, broken) = &found[0];
    let more = match found.len() - 1 {
        0 => String::new(),
        1 => " One more impersonation would be in breach.".to_owned(),
        more => format!(" {more} more impersonations would be in breach."),
    };
    session::raise(&Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
        message: format!(
            "cannot {action} while role \"{}\" acts as role \"{}\"",
            name_text(&entry.state.impersonator_name),
            name_text(&entry.state.target_name)
        ),
        detail: Some(format!(
            "Process {} of database \"{}\": role \"{}\" acts as role \"{}\". {}{more}",
            entry.pid,
            identity::to_utf8(&identity::name_of_database(entry.database)),
            name_text(&entry.state.impersonator_name),
            name_text(&entry.state.target_name),
            broken.sentence
        )),
        hint: Some(format!(
            "End that impersonation, or SELECT impersonate.terminate({});, or SET impersonate.on_violation = terminate;",
            entry.pid
        )),
    })
}

/// E3: the connections in breach go first; then the statement takes effect.
fn end(found: &[(Entry, Broken)], action: &str) {
    for (entry, broken) in found {
        doom(
            entry,
            &format!(
                "Role \"{}\" may no longer act as role \"{}\". {}",
                name_text(&entry.state.impersonator_name),
                name_text(&entry.state.target_name),
                broken.sentence
            ),
            about(entry, broken, action),
        );
    }
    if let Some((entry, _)) = wait_for(found.iter().map(|(entry, broken)| (entry, broken)), PATIENCE) {
        session::raise(&Refusal {
            sqlstate: PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            message: format!("cannot {action}: process {} did not end in time", entry.pid),
            detail: Some(format!(
                "It was told to, because role \"{}\" could no longer act as role \"{}\", and {} seconds have passed.",
                name_text(&entry.state.impersonator_name),
                name_text(&entry.state.target_name),
                PATIENCE / 1000
            )),
            hint: Some("Try again.".to_owned()),
        });
    }
}

/// Why a connection is ended, for its client.
fn note_for(why: &str) -> Note {
    Note::new(identity::cut(why.as_bytes(), 1000)).unwrap_or(Note::EMPTY)
}

/// Ends the connection of an impersonation, on record and with word to its client. False when it was gone already.
fn doom(entry: &Entry, why: &str, mut detail: serde_json::Value) -> bool {
    if !active::foretell(entry.pid, &entry.state.id, &note_for(why)) {
        return false;
    }
    let by = Actor::here();
    detail["by"] = identity::to_utf8(&by.session_user).into();
    detail["by_pid"] = identity::pid().into();
    let detail = identity::speakable(&detail.to_string()).into_owned();
    audit::push_to(entry.database, &terminated(entry, &detail));
    backends::terminate(entry.pid)
}

/// That another session's impersonation is ended.
fn terminated<'a>(entry: &'a Entry, detail: &'a str) -> Event<'a> {
    let state = &entry.state;
    Event {
        user_name: name_bytes(&state.target_name),
        session_user_name: name_bytes(&state.impersonator_name),
        role_name: name_bytes(&state.target_name),
        impersonation_id: Some(state.id),
        pid: entry.pid,
        session_start: entry.session_start,
        application_name: None,
        client_addr: None,
        grant_id: (state.grant_id != 0).then_some(state.grant_id),
        reason: state.reason.text(),
        sqlstate: *b"57P01",
        detail: Some(detail.as_bytes()),
        ..statements::blank_event(Kind::Terminated)
    }
}

/// Waits until these connections are gone; the first that isn't after `milliseconds`.
fn wait_for<'a, T>(entries: impl Iterator<Item = (&'a Entry, T)>, milliseconds: i64) -> Option<(&'a Entry, T)> {
    let until = identity::now() + milliseconds * 1000;
    for (entry, rest) in entries {
        while backends::lives(entry.pid) && active::rights_of(entry.pid, &entry.state.id).is_some() {
            if identity::now() > until {
                return Some((entry, rest));
            }
            backends::wait(10);
        }
    }
    None
}

/// E6: `impersonate.terminate`. False when that session doesn't impersonate, or doesn't end in `milliseconds`.
pub fn terminate(pid: i32, milliseconds: i64) -> bool {
    let Some(entry) = active::in_force().into_iter().find(|entry| entry.pid == pid) else {
        pgrx::ereport!(
            pgrx::PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("process {pid} does not impersonate anybody"),
            "SELECT pid FROM impersonate.active shows those that do."
        );
        return false;
    };
    let by = Actor::here();
    let why = format!(
        "Role \"{}\" ended the impersonation of role \"{}\" by role \"{}\".",
        identity::to_utf8(&by.session_user),
        name_text(&entry.state.target_name),
        name_text(&entry.state.impersonator_name)
    );
    doom(&entry, &why, serde_json::json!({ "cause": "impersonate.terminate" }))
        && (milliseconds == 0 || wait_for([(&entry, ())].into_iter(), milliseconds).is_none())
}

/// Whether the session may end this one: superusers and pg_signal_backend, a superuser's only superusers.
pub fn may_terminate(pid: i32) -> Result<(), &'static str> {
    let current = identity::current_user();
    if identity::superuser(current) {
        return Ok(());
    }
    if !identity::may_signal() {
        return Err("Only superusers and members of role \"pg_signal_backend\" may end another's impersonation.");
    }
    let superusers = active::in_force().iter().any(|entry| {
        // As the server does, by the login: who is a plain role since then is still that superuser.
        entry.pid == pid
            && (identity::superuser(entry.state.impersonator) || backends::login(pid).is_some_and(identity::superuser))
    });
    if superusers {
        return Err("Only a superuser may end a superuser's connection.");
    }
    Ok(())
}
