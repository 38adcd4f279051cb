//! Random sequences of statements that have to do with who a session is, run against a model of who it should be.
//!
//! The model knows nothing of how the product does it: a value is what the session has and, over it, what lasts to the
//! end of the transaction; ROLLBACK brings back a copy of everything. A disagreement is shrunk and printed with its seed.
//!
//! Statements come one by one, several to a message, and in pipelines.
//!
//! `IMPERSONATE_RANDOM_SEQUENCES=n` runs more, `IMPERSONATE_RANDOM_SEED=n` begins elsewhere.

mod stage;

use impersonate_server_tests::raw::{error_in, rows_in, Message, Transaction};
use impersonate_server_tests::{wait_until, within};
use stage::{Protocol, Session, Stage};
use std::time::Duration;

const LOGIN: &str = "imp";
const DEFAULT: &str = "4MB";

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

// --------------------------------------------------------------------------------------------------------- statements ---

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    SetUser {
        target: &'static str,
        local: bool,
        cookie: Option<&'static str>,
        no_revert: bool,
        door: Door,
    },
    EndUser {
        cookie: Option<&'static str>,
        /// For the rest of the transaction.
        local: bool,
        door: Door,
    },
    SetRole {
        role: &'static str,
        local: bool,
    },
    ResetRole,
    SetSession {
        user: &'static str,
        local: bool,
    },
    ResetSession,
    Begin,
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(usize),
    RollbackTo(usize),
    Release(usize),
    PrepareTransaction,
    Fails,
    /// SET ROLE in a block that catches what happens, and fails afterwards if so told.
    Caught {
        role: &'static str,
        fails: bool,
    },
    /// A function with this role in its SET clause; its body may SET another one, which lasts.
    Function {
        clause: &'static str,
    },
    FunctionThatSets,
    /// A procedure that sets the setting, commits, sets it again and rolls back.
    Walk,
    /// A procedure that sets the role and rolls back.
    WalkRole,
    SmuggledEnd,
    DiscardAll,
    ResetAll,
    Set {
        value: &'static str,
        local: bool,
    },
}

/// By which statement, if it has no more to say than who.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    SetUser,
    Set,
    Reset,
    SetConfig,
    Call,
}

const DOORS: [Door; 7] = [
    Door::SetUser,
    Door::SetUser,
    Door::SetUser,
    Door::Set,
    Door::Reset,
    Door::SetConfig,
    Door::Call,
];

/// What is sent in one go.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    One(Op, Protocol),
    /// Several statements in one simple message.
    Message(Vec<Op>),
    /// The same in messages of the extended protocol without a Sync in between.
    Pipeline(Vec<Op>),
}

const COOKIES: [&str; 2] = ["c1", "c2"];
const SAVEPOINTS: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 3] = ["111kB", "222kB", "333kB"];
const ROLES: [&str; 6] = ["none", "grp", "own", "bob", "imp", "carol"];
const USERS: [&str; 3] = ["bob", "carol", "imp"];

fn random_cookie(random: &mut Random) -> Option<&'static str> {
    (random.below(8) == 0).then(|| random.of(&COOKIES))
}

fn random_op(random: &mut Random) -> Op {
    let local = random.below(3) == 0;
    match random.below(40) {
        0..=6 => Op::SetUser {
            target: random.of(&USERS),
            local,
            cookie: random_cookie(random),
            no_revert: random.below(40) == 0,
            door: random.of(&DOORS),
        },
        7..=9 => Op::EndUser {
            cookie: random_cookie(random),
            local: random.below(6) == 0,
            door: random.of(&DOORS),
        },
        10..=13 => Op::SetRole {
            role: random.of(&ROLES),
            local,
        },
        14 => Op::ResetRole,
        15 => Op::SetSession {
            user: random.of(&USERS),
            local,
        },
        16 => Op::ResetSession,
        17..=19 => Op::Begin,
        20..=21 => Op::Commit {
            chain: random.below(4) == 0,
        },
        22 => Op::Rollback {
            chain: random.below(4) == 0,
        },
        23..=24 => Op::Savepoint(random.below(3)),
        25..=26 => Op::RollbackTo(random.below(3)),
        27 => Op::Release(random.below(3)),
        28 => Op::PrepareTransaction,
        29 => Op::Fails,
        30..=31 => Op::Caught {
            role: random.of(&ROLES),
            fails: random.below(2) == 0,
        },
        32 => Op::Function {
            clause: random.of(&["grp", "none", "own"]),
        },
        33 => Op::FunctionThatSets,
        34 => Op::Walk,
        35 => Op::WalkRole,
        36 => random.of(&[Op::SmuggledEnd, Op::DiscardAll, Op::ResetAll]),
        _ => Op::Set {
            value: random.of(&VALUES),
            local,
        },
    }
}

impl Op {
    fn sql(self) -> String {
        let role = |role: &str| {
            if role == "none" {
                "NONE".to_owned()
            } else {
                format!("<{role}>")
            }
        };
        let word = |local: bool| if local { "LOCAL " } else { "" };
        match self {
            Op::SetUser {
                target,
                local,
                cookie: None,
                no_revert: false,
                door: door @ (Door::Set | Door::Reset | Door::SetConfig | Door::Call),
            } => match door {
                Door::SetConfig => format!("SELECT set_config('impersonate.target', '<{target}>', {local})"),
                Door::Call if !local => format!("CALL impersonate.impersonate_user('<{target}>')"),
                _ => format!("SET {}impersonate.target = '<{target}>'", word(local)),
            },
            Op::SetUser {
                target,
                local,
                cookie,
                no_revert,
                door: _,
            } => format!(
                "SELECT setuser('<{target}>', local => {local}{}{})",
                cookie.map_or(String::new(), |cookie| format!(", cookie => '{cookie}'")),
                if no_revert { ", no_revert => true" } else { "" }
            ),
            Op::EndUser { cookie, local, door } => match (cookie, door) {
                (Some(cookie), _) => format!("SELECT setuser(cookie => '{cookie}', local => {local})"),
                (None, Door::SetUser) => format!("SELECT setuser(local => {local})"),
                (None, Door::SetConfig) => format!("SELECT set_config('impersonate.target', NULL, {local})"),
                (None, Door::Call) if !local => "CALL impersonate.impersonate_user(NULL)".to_owned(),
                (None, Door::Reset) if !local => "RESET impersonate.target".to_owned(),
                (None, _) => format!("SET {}impersonate.target = ''", word(local)),
            },
            Op::SetRole { role: name, local } => format!("SET {}ROLE {}", word(local), role(name)),
            Op::ResetRole => "RESET ROLE".to_owned(),
            Op::SetSession { user, local } => format!("SET {}SESSION AUTHORIZATION <{user}>", word(local)),
            Op::ResetSession => "RESET SESSION AUTHORIZATION".to_owned(),
            Op::Begin => "BEGIN".to_owned(),
            Op::Commit { chain } => if chain { "COMMIT AND CHAIN" } else { "COMMIT" }.to_owned(),
            Op::Rollback { chain } => if chain { "ROLLBACK AND CHAIN" } else { "ROLLBACK" }.to_owned(),
            Op::Savepoint(name) => format!("SAVEPOINT {}", SAVEPOINTS[name]),
            Op::RollbackTo(name) => format!("ROLLBACK TO {}", SAVEPOINTS[name]),
            Op::Release(name) => format!("RELEASE {}", SAVEPOINTS[name]),
            Op::PrepareTransaction => "PREPARE TRANSACTION '<s>'".to_owned(),
            Op::Fails => "SELECT 1 / 0".to_owned(),
            Op::Caught { role: name, fails } => format!(
                "DO $$BEGIN SET ROLE {}; {} EXCEPTION WHEN OTHERS THEN NULL; END$$",
                role(name),
                if fails { "PERFORM 1 / 0;" } else { "" }
            ),
            Op::Function { clause } => format!("SELECT <s>.as_{clause}()"),
            Op::FunctionThatSets => "SELECT <s>.sets()".to_owned(),
            Op::Walk => "CALL <s>.walk()".to_owned(),
            Op::WalkRole => "CALL <s>.walk_role()".to_owned(),
            Op::SmuggledEnd => "DO $$BEGIN PERFORM setuser(); EXCEPTION WHEN OTHERS THEN NULL; END$$".to_owned(),
            Op::DiscardAll => "DISCARD ALL".to_owned(),
            Op::ResetAll => "RESET ALL".to_owned(),
            Op::Set { value, local } => format!("SET {}work_mem = '{value}'", word(local)),
        }
    }
}

impl Op {
    /// Whether it may be one of several: what begins and ends transactions is not.
    fn groups(self) -> bool {
        matches!(
            self,
            Op::SetUser { .. }
                | Op::EndUser { .. }
                | Op::SetRole { .. }
                | Op::ResetRole
                | Op::SetSession { .. }
                | Op::ResetSession
                | Op::Fails
                | Op::Caught { .. }
                | Op::Function { .. }
                | Op::FunctionThatSets
                | Op::SmuggledEnd
                | Op::ResetAll
                | Op::Set { .. }
        )
    }
}

impl Step {
    fn ops(&self) -> &[Op] {
        match self {
            Step::One(op, _) => std::slice::from_ref(op),
            Step::Message(ops) | Step::Pipeline(ops) => ops,
        }
    }

    fn shown(&self) -> String {
        let all: Vec<_> = self.ops().iter().map(|op| op.sql()).collect();
        let how = match self {
            Step::One(_, protocol) => format!("{protocol:?}"),
            Step::Message(_) => "one message".to_owned(),
            Step::Pipeline(_) => "a pipeline".to_owned(),
        };
        format!("    {};  -- {how}", all.join("; "))
    }

    /// Sends it, and takes everything that comes back, up to the end of the connection if need be.
    fn send(&self, session: &mut Session) -> Vec<Message> {
        match self {
            Step::One(op, Protocol::Simple) => session.raw.query(&session.stage.sql(&op.sql())),
            Step::Message(ops) => {
                let all: Vec<_> = ops.iter().map(|op| session.stage.sql(&op.sql())).collect();
                session.raw.query(&all.join("; "));
            }
            Step::One(..) | Step::Pipeline(_) => {
                for op in self.ops() {
                    session.pipe(&op.sql());
                }
                session.raw.sync();
            }
        }
        let mut answer = Vec::new();
        while let Ok(message) = session.raw.try_read() {
            let ready = matches!(message, Message::ReadyForQuery(_));
            answer.push(message);
            if ready {
                break;
            }
        }
        answer
    }
}

const PROPS: &str = "
    CREATE FUNCTION <s>.as_grp() RETURNS text LANGUAGE plpgsql SET role = '<grp>' AS 'BEGIN RETURN current_user; END';
    CREATE FUNCTION <s>.as_own() RETURNS text LANGUAGE plpgsql SET role = '<own>' AS 'BEGIN RETURN current_user; END';
    CREATE FUNCTION <s>.as_none() RETURNS text LANGUAGE plpgsql SET role = 'none' AS 'BEGIN RETURN current_user; END';
    CREATE FUNCTION <s>.sets() RETURNS text LANGUAGE plpgsql SET role = 'none'
        AS 'BEGIN SET ROLE <grp>; RETURN current_user; END';
    CREATE PROCEDURE <s>.walk() LANGUAGE plpgsql
        AS 'BEGIN SET work_mem = ''444kB''; COMMIT; SET work_mem = ''555kB''; ROLLBACK; END';
    CREATE PROCEDURE <s>.walk_role() LANGUAGE plpgsql AS 'BEGIN SET ROLE <grp>; ROLLBACK; END';
    GRANT USAGE ON SCHEMA <s> TO PUBLIC";

// -------------------------------------------------------------------------------------------------------------- model ---

#[derive(Clone, Debug, PartialEq)]
struct Value<T> {
    session: T,
    local: Option<T>,
}

impl<T: Clone> Value<T> {
    fn of(value: T) -> Self {
        Value {
            session: value,
            local: None,
        }
    }

    fn now(&self) -> &T {
        self.local.as_ref().unwrap_or(&self.session)
    }

    fn set(&mut self, value: T, local: bool) {
        if local {
            self.local = Some(value);
        } else {
            *self = Value::of(value);
        }
    }
}

/// A role set, and the impersonation that it was set in.
type Role = (Option<&'static str>, Option<u32>);

#[derive(Clone, Debug, PartialEq)]
struct Impersonation {
    id: u32,
    target: &'static str,
    impersonator: &'static str,
    local: bool,
    cookie: Option<&'static str>,
    no_revert: bool,
    role: Value<Role>,
    setting: Value<&'static str>,
    setting_known: bool,
}

#[derive(Clone, Debug)]
struct State {
    session: Value<&'static str>,
    role: Value<Role>,
    target: Value<Option<Impersonation>>,
    setting: Value<&'static str>,
    setting_known: bool,
}

#[derive(Clone)]
struct Model {
    superuser: bool,
    state: State,
    /// The copy that ROLLBACK brings back, while a transaction block is open.
    block: Option<State>,
    savepoints: Vec<(usize, State)>,
    failed: bool,
    next: u32,
    /// DISCARD ALL could not end the impersonation, so it ended the connection.
    gone: bool,
}

fn is_member(member: &str, role: &str) -> bool {
    member == role || (member == "imp" && (role == "grp" || role == "own")) || (member == "bob" && role == "grp")
}

impl State {
    fn acting(&self) -> Option<&Impersonation> {
        self.target
            .now()
            .as_ref()
            .filter(|acting| acting.impersonator == *self.session.now())
    }

    fn set_role(&mut self, role: Option<&'static str>, local: bool) {
        let inside = self.acting().map(|acting| acting.id);
        self.role.set((role, inside), local);
    }

    /// What the end of the impersonation in force gives back.
    fn give_back(&mut self) {
        if let Some(acting) = self.acting().cloned() {
            self.role = acting.role;
            self.setting = acting.setting;
            self.setting_known = acting.setting_known;
        }
    }

    /// The same, with those that lie under a local one.
    fn give_all_back(&mut self) {
        self.give_back();
        if self.target.local.take().is_some() {
            self.give_back();
        }
    }

    fn commit(&mut self) {
        if self.acting().is_some_and(|acting| acting.local) {
            self.give_back();
        }
        (
            self.session.local,
            self.role.local,
            self.target.local,
            self.setting.local,
        ) = (None, None, None, None);
        if let Some(acting) = &mut self.target.session {
            (acting.role.local, acting.setting.local) = (None, None);
        }
        if self.target.session.is_some() && self.acting().is_none() {
            // It lost its session user and doesn't come back; what is left of its settings is nobody's promise.
            self.target = Value::of(None);
            self.setting_known = false;
        }
    }
}

impl Model {
    fn new(superuser: bool) -> Model {
        let state = State {
            session: Value::of(LOGIN),
            role: Value::of((None, None)),
            target: Value::of(None),
            setting: Value::of(DEFAULT),
            setting_known: true,
        };
        Model {
            superuser,
            state,
            block: None,
            savepoints: Vec::new(),
            failed: false,
            next: 1,
            gone: false,
        }
    }

    fn is_superuser(&self, role: &str) -> bool {
        self.superuser && role == LOGIN
    }

    fn may_set_role(&self, role: &str) -> bool {
        let who = self
            .state
            .acting()
            .map_or(*self.state.session.now(), |acting| acting.target);
        role == "none" || is_member(who, role) || self.is_superuser(who)
    }

    fn may_set_user(&self, target: &str) -> bool {
        let who = *self.state.session.now();
        who == target || who == LOGIN
    }

    /// current_user, session_user, role, impersonate.target.
    fn witness(&self) -> [&'static str; 4] {
        let session = *self.state.session.now();
        let role = *self.state.role.now();
        match self.state.acting() {
            Some(acting) => {
                let now = if role.1 == Some(acting.id) {
                    role.0.unwrap_or(acting.target)
                } else {
                    acting.target
                };
                [now, session, now, acting.target]
            }
            None => {
                let set = role.0.filter(|_| role.1.is_none());
                [set.unwrap_or(session), session, set.unwrap_or("none"), ""]
            }
        }
    }

    /// Whether the impersonation in force can be ended or changed by a call with this cookie.
    fn may_change(&self, cookie: Option<&str>) -> bool {
        self.state
            .acting()
            .is_none_or(|acting| !acting.no_revert && (acting.cookie.is_none() || acting.cookie == cookie))
    }

    /// Whether all of a step works. Outside a block its statements are one transaction.
    fn step(&mut self, step: &Step) -> bool {
        let ops = match step {
            Step::One(op, _) => return !self.apply(*op),
            Step::Message(ops) | Step::Pipeline(ops) => ops,
        };
        let before = self.state.clone();
        let implicit = self.block.is_none();
        for op in ops {
            if self.failed || !self.run(*op, !implicit) {
                if implicit {
                    self.state = before;
                } else {
                    self.failed = true;
                }
                return false;
            }
        }
        if implicit {
            self.state.commit();
        }
        true
    }

    fn end_block(&mut self, commits: bool, chain: bool) {
        let block = self.block.take();
        match block {
            Some(before) if !commits || self.failed => self.state = before,
            _ => self.state.commit(),
        }
        self.savepoints.clear();
        self.failed = false;
        if chain {
            self.block = Some(self.state.clone());
        }
    }

    /// Whether the statement fails. A statement outside a block is a transaction of its own.
    fn apply(&mut self, op: Op) -> bool {
        let before = self.state.clone();
        let in_block = self.block.is_some();
        if self.failed
            && !matches!(
                op,
                Op::Commit { .. } | Op::Rollback { .. } | Op::RollbackTo(_) | Op::PrepareTransaction
            )
        {
            return true;
        }
        let worked = self.run(op, in_block);
        if !worked {
            if self.block.is_some() {
                self.failed = true;
            } else {
                self.state = before;
            }
        } else if self.block.is_none() {
            self.state.commit();
        }
        !worked
    }

    fn run(&mut self, op: Op, in_block: bool) -> bool {
        match op {
            Op::SetUser {
                target,
                local,
                cookie,
                no_revert,
                door: _,
            } => {
                if !self.may_change(cookie) || !self.may_set_user(target) {
                    return false;
                }
                if !local {
                    self.state.give_all_back();
                } else if self.state.target.local.is_some() {
                    // It takes the place of the one before.
                    self.state.give_back();
                }
                let impersonation = Impersonation {
                    id: self.next,
                    target,
                    impersonator: self.state.session.now(),
                    local,
                    cookie,
                    no_revert,
                    role: self.state.role.clone(),
                    setting: self.state.setting.clone(),
                    setting_known: self.state.setting_known,
                };
                self.next += 1;
                self.state.target.set(Some(impersonation), local);
            }
            Op::EndUser { cookie, local, door: _ } => {
                // What lasts beyond the transaction is not ended for its rest.
                let lasting = self.state.target.session.is_some() && self.state.acting().is_some();
                if !self.may_change(cookie) || (local && lasting) {
                    return false;
                }
                if self.state.acting().is_some() {
                    self.state.give_all_back();
                    self.state.target.set(None, false);
                }
            }
            Op::SetRole { role, local } => {
                if !self.may_set_role(role) {
                    return false;
                }
                self.state.set_role((role != "none").then_some(role), local);
            }
            Op::ResetRole => self.state.set_role(None, false),
            Op::SetSession { user, local } => {
                if self.state.acting().is_some() || (user != LOGIN && !self.superuser) {
                    return false;
                }
                self.state.session.set(user, local);
                // As of the SQL standard, and of 15.9.
                self.state.role.set((None, None), local);
            }
            Op::ResetSession => {
                if self.state.acting().is_some() {
                    return false;
                }
                self.state.session.set(LOGIN, false);
                self.state.role.set((None, None), false);
            }
            Op::Begin => {
                if !in_block {
                    self.block = Some(self.state.clone());
                }
            }
            Op::Commit { chain } | Op::Rollback { chain } => {
                if chain && !in_block {
                    return false;
                }
                self.end_block(matches!(op, Op::Commit { .. }), chain);
            }
            Op::Savepoint(name) => {
                if !in_block {
                    return false;
                }
                self.savepoints.push((name, self.state.clone()));
            }
            Op::RollbackTo(name) | Op::Release(name) => {
                let Some(place) = self.savepoints.iter().rposition(|(known, _)| *known == name) else {
                    return false;
                };
                if matches!(op, Op::RollbackTo(_)) {
                    self.state = self.savepoints[place].1.clone();
                    self.failed = false;
                    self.savepoints.truncate(place + 1);
                } else {
                    self.savepoints.truncate(place);
                }
            }
            Op::PrepareTransaction => self.end_block(true, false),
            Op::Fails => return false,
            Op::Caught { role, fails } => {
                if !fails && self.may_set_role(role) {
                    self.state.set_role((role != "none").then_some(role), false);
                }
            }
            Op::Function { clause } => return self.may_set_role(clause),
            Op::FunctionThatSets => {
                if !self.may_set_role("grp") {
                    return false;
                }
                self.state.set_role(Some("grp"), false);
            }
            Op::Walk => {
                if in_block {
                    return false;
                }
                self.state.setting.set("444kB", false);
                self.state.setting_known = true;
            }
            Op::WalkRole => return !in_block && self.may_set_role("grp"),
            Op::SmuggledEnd => {}
            Op::DiscardAll => {
                if in_block {
                    return false;
                }
                if !self.may_change(None) {
                    self.gone = true;
                    return false;
                }
                *self = Model {
                    next: self.next,
                    ..Model::new(self.superuser)
                };
            }
            Op::ResetAll => {
                self.state.setting.set(DEFAULT, false);
                self.state.setting_known = true;
            }
            Op::Set { value, local } => {
                self.state.setting.set(value, local);
                self.state.setting_known |= !local;
            }
        }
        true
    }
}

// ------------------------------------------------------------------------------------------------------------ running ---

/// Where the session and the model part, if they do; else whether the session is of further use.
fn disagreement(session: &mut Session, superuser: bool, sequence: &[Step]) -> Result<bool, String> {
    let stage = session.stage;
    let mut model = Model::new(superuser);
    for (at, step) in sequence.iter().enumerate() {
        let answer = step.send(session);
        let error = error_in(&answer);
        let was_failed = model.failed;
        let works = model.step(step);
        if step.ops() == [Op::PrepareTransaction] && !was_failed && error.is_none() {
            let prepared = stage.look("SELECT 1 FROM pg_prepared_xacts WHERE gid = '<s>'");
            if !prepared.is_empty() {
                stage.admin("ROLLBACK PREPARED '<s>'");
            }
        }
        if works != error.is_none() {
            return Err(format!("step {at}, {step:?}: should work: {works}, and gave {error:?}"));
        }
        if model.gone != !matches!(answer.last(), Some(Message::ReadyForQuery(_))) {
            return Err(format!(
                "step {at}, {step:?}: the connection should end: {}",
                model.gone
            ));
        }
        if model.gone {
            if !within(Duration::from_secs(5), || stage.active(session.pid()).is_empty()) {
                return Err("the impersonation is there without its connection".to_owned());
            }
            return Ok(false);
        }
        if model.failed {
            continue;
        }
        let answer = session.send(
            Protocol::Simple,
            "SELECT current_user, session_user, current_setting('role'), current_setting('impersonate.target'),
                    current_setting('work_mem')",
        );
        let rows = rows_in(&answer);
        let Some(row) = rows.first() else {
            return Err(format!("step {at}, {step:?}: then {answer:?}"));
        };
        let says: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
        let expected = model.witness().map(|name| stage.name(name));
        if says[..4] != expected {
            return Err(format!("step {at}, {step:?}: is {says:?} and should be {expected:?}"));
        }
        if model.state.setting_known && says[4] != *model.state.setting.now() {
            return Err(format!(
                "step {at}, {step:?}: work_mem is {} and not {}",
                says[4],
                model.state.setting.now()
            ));
        }
    }
    if !model.failed {
        let expected = model.state.acting().map(|acting| stage.name(acting.target));
        let active: Vec<_> = stage
            .active(session.pid())
            .into_iter()
            .map(|row| row[1].clone())
            .collect();
        if active != expected.iter().map(|name| Some(name.clone())).collect::<Vec<_>>() {
            return Err(format!("impersonate.active has {active:?} and not {expected:?}"));
        }
    }
    if session.transaction() != Transaction::None {
        session.ok("ROLLBACK");
        model.end_block(false, false);
    }
    Ok(model.may_change(None))
}

fn random_step(random: &mut Random) -> Step {
    let op = random_op(random);
    if !op.groups() || random.below(4) > 0 {
        return Step::One(op, random.of(&[Protocol::Simple, Protocol::Extended]));
    }
    let mut ops = vec![op];
    while random.below(3) > 0 && ops.len() < 5 {
        ops.extend(Some(random_op(random)).filter(|op| op.groups()));
    }
    if random.below(2) == 0 {
        Step::Message(ops)
    } else {
        Step::Pipeline(ops)
    }
}

/// Most steps that would fail are drawn again: after one, a block only waits for its end.
fn random_sequence(random: &mut Random, superuser: bool) -> Vec<Step> {
    let mut model = Model::new(superuser);
    let length = 4 + random.below(16);
    let mut sequence = Vec::with_capacity(length);
    while sequence.len() < length && !model.gone {
        let step = random_step(random);
        let mut next = model.clone();
        if !next.step(&step) && random.below(8) > 0 {
            continue;
        }
        model = next;
        sequence.push(step);
    }
    sequence
}

/// Every sequence with one step, or one statement of a step, less.
fn shorter(sequence: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for at in (0..sequence.len()).rev() {
        let mut without = sequence.to_vec();
        without.remove(at);
        all.push(without);
        let ops = sequence[at].ops();
        for op in (0..ops.len()).filter(|_| ops.len() > 1) {
            let mut fewer = ops.to_vec();
            fewer.remove(op);
            let mut without = sequence.to_vec();
            without[at] = match sequence[at] {
                Step::Pipeline(_) => Step::Pipeline(fewer),
                _ => Step::Message(fewer),
            };
            all.push(without);
        }
    }
    all
}

fn shortest(stage: &Stage, superuser: bool, sequence: &[Step]) -> (Vec<Step>, String) {
    let run = |sequence: &[Step]| disagreement(&mut stage.session(), superuser, sequence).err();
    let mut sequence = sequence.to_vec();
    let mut said = run(&sequence).unwrap_or_else(|| "only in a session that was used before".to_owned());
    while let Some((next, what)) = shorter(&sequence)
        .into_iter()
        .find_map(|shorter| run(&shorter).map(|what| (shorter, what)))
    {
        (sequence, said) = (next, what);
    }
    (sequence, said)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn run_sequences(superuser: bool, first_seed: u64) {
    let stage = Stage::new();
    stage.admin(PROPS);
    if superuser {
        stage.admin("ALTER ROLE <imp> SUPERUSER");
    }
    let mut session = stage.session();
    let mut impersonations = 0;
    let count = number("IMPERSONATE_RANDOM_SEQUENCES", 3000) / 4;
    for seed in first_seed..first_seed + count {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        random.below(2);
        let sequence = random_sequence(&mut random, superuser);
        match disagreement(&mut session, superuser, &sequence) {
            Ok(true) => {
                session.ok("DISCARD ALL");
            }
            Ok(false) => {
                let pid = session.pid();
                session.raw.terminate();
                wait_until("it is over", || stage.active(pid).is_empty());
                impersonations += over(&stage, pid);
                session = stage.session();
            }
            Err(_) => {
                let (sequence, said) = shortest(&stage, superuser, &sequence);
                let lines: Vec<String> = sequence.iter().map(Step::shown).collect();
                panic!("seed {seed}, superuser {superuser}: {said}\n{}", lines.join("\n"));
            }
        }
    }
    session.is_itself();
    impersonations += over(&stage, session.pid());
    println!("{count} sequences, {impersonations} impersonations");
}

/// Beginnings and ends alternate, each end of the impersonation that began before it. How many there were.
fn over(stage: &Stage, pid: i32) -> usize {
    let history = stage.history(pid);
    assert_eq!(history.len() % 2, 0, "an impersonation has no end");
    history.len() / 2
}

#[test]
fn random_sequences_of_a_plain_impersonator_1() {
    run_sequences(false, number("IMPERSONATE_RANDOM_SEED", 1));
}

#[test]
fn random_sequences_of_a_plain_impersonator_2() {
    run_sequences(false, number("IMPERSONATE_RANDOM_SEED", 1) + 1_000_000);
}

#[test]
fn random_sequences_of_a_superuser_1() {
    run_sequences(true, number("IMPERSONATE_RANDOM_SEED", 1) + 2_000_000);
}

#[test]
fn random_sequences_of_a_superuser_2() {
    run_sequences(true, number("IMPERSONATE_RANDOM_SEED", 1) + 3_000_000);
}
