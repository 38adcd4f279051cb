//! The settings, but for `impersonate.target`, which is the session's state (see `pg/guc.rs`), and the queue's.

use impersonate_policy as policy;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::CString;

/// Whose statements get a STATEMENT row (L3).
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum AuditStatements {
    none,
    impersonated,
    all,
}

/// What becomes of a statement that breaks the criteria of an active impersonation (E2, E3).
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum OnViolation {
    reject,
    terminate,
}

// Reject: whoever changes a role learns at once who is in the way, and nobody loses work.
static ON_VIOLATION: GucSetting<OnViolation> = GucSetting::<OnViolation>::new(OnViolation::reject);
/// In what an impersonator must be at least the target (A6).
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum Criteria {
    roles,
    full,
}

// Roles: with full, nobody acts as one who has made a table, but by membership.
static CRITERIA: GucSetting<Criteria> = GucSetting::<Criteria>::new(Criteria::roles);
/// Whose privileges an impersonation's accesses need (D4).
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum Access {
    target,
    intersection,
}

// Target: the criteria already ask the impersonator to be at least the target.
static SCOPE: GucSetting<Access> = GucSetting::<Access>::new(Access::target);

/// Whether accesses must be allowed to the impersonator as well (D4).
pub fn intersection() -> bool {
    SCOPE.get() == Access::intersection
}

/// What waits for an event's way to the disk (L5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum AuditWait {
    off,
    commit,
    flush,
}

impl AuditWait {
    /// From what [`AuditWait::settled`] gave.
    pub fn from_settled(settled: u8) -> Self {
        match settled {
            0 => AuditWait::off,
            1 => AuditWait::commit,
            _ => AuditWait::flush,
        }
    }

    /// For a [`TargetState`](crate::pg::guc::TargetState), which is below this file.
    pub fn settled(self) -> u8 {
        self as u8
    }
}

/// Where events go.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub enum AuditDestination {
    table,
    log,
    both,
}

// A target that cannot log in is nobody's identity: off lets group roles be acted as (S5).
static REQUIRE_LOGIN: GucSetting<bool> = GucSetting::<bool>::new(true);
// Impersonated: what was done under another identity is what nobody else records.
static AUDIT_STATEMENTS: GucSetting<AuditStatements> =
    GucSetting::<AuditStatements>::new(AuditStatements::impersonated);
// Commit: no effect without its row, for one hand-over to the writer; flush costs a sync of the disk for each statement.
static AUDIT_WAIT: GucSetting<AuditWait> = GucSetting::<AuditWait>::new(AuditWait::commit);
// 64 kB holds what people write; what programs write is told by length and SHA-256 (L10).
static AUDIT_STATEMENT_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(64);
// On: without them a prepared statement's text says little.
static AUDIT_PARAMETERS: GucSetting<bool> = GucSetting::<bool>::new(true);
// Off: what a function does is the function's, and a loop would have a row for each turn.
static AUDIT_NESTED: GucSetting<bool> = GucSetting::<bool>::new(false);

// The table can be queried, and verified; the log is for those who ship logs to another machine.
static AUDIT_DESTINATION: GucSetting<AuditDestination> = GucSetting::<AuditDestination>::new(AuditDestination::table);

// None: a door that has an argument for it is better. It is set before, and stays until it is changed.
static REASON: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
// None: a superuser passes every criterion, and a house that wants it otherwise says who is left alone.
static EXEMPT_ROLES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
// None: who may act as whom is what rights say; a reason is what a house asks for besides.
static REQUIRE_REASON: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

// Off: SET ROLE is the server's own, and those who know it expect that.
static CAPTURE_SET_ROLE: GucSetting<bool> = GucSetting::<bool>::new(false);

// A pooler that hands a connection on in the middle of a session cannot be seen from here; whoever sets one up knows.
static LOCAL_ONLY: GucSetting<bool> = GucSetting::<bool>::new(false);

fn text(setting: &GucSetting<Option<CString>>) -> Option<Vec<u8>> {
    setting.get().map(CString::into_bytes).filter(|text| !text.is_empty())
}

/// Whether SET ROLE means setuser() for logins that hold SET USER rights (D2).
pub fn capture_set_role() -> bool {
    CAPTURE_SET_ROLE.get()
}

/// Who neither impersonates nor is impersonated, as a list.
pub fn exempt_roles() -> Option<Vec<u8>> {
    text(&EXEMPT_ROLES)
}

/// The reason for impersonations that are given none. Configuration files, and settings of roles, are of all databases,
/// whatever their encodings.
pub fn reason() -> Option<Vec<u8>> {
    text(&REASON).map(|reason| crate::pg::worker::as_valid_text(&reason).into_owned())
}

/// The regular expression that a reason must match, if one is required.
pub fn require_reason() -> Option<Vec<u8>> {
    text(&REQUIRE_REASON)
}

/// Whether an impersonation may last no longer than its transaction (X3).
pub fn local_only() -> bool {
    LOCAL_ONLY.get()
}

/// Whether a target must be able to log in (S5).
pub fn require_login() -> bool {
    REQUIRE_LOGIN.get()
}

/// What becomes of a statement that breaks the criteria of an active impersonation.
pub fn on_violation() -> OnViolation {
    ON_VIOLATION.get()
}

/// Whether objects are compared too (A6).
pub fn criteria() -> policy::Criteria {
    match CRITERIA.get() {
        Criteria::roles => policy::Criteria::Roles,
        Criteria::full => policy::Criteria::Full,
    }
}

/// Whose statements are recorded.
pub fn audit_statements() -> AuditStatements {
    AUDIT_STATEMENTS.get()
}

/// What waits for an event's way to the disk. On a standby nothing becomes durable that a commit could bring, so it is
/// the answer that waits (N2).
pub fn audit_wait() -> AuditWait {
    match AUDIT_WAIT.get() {
        AuditWait::commit if crate::pg::identity::in_recovery() => AuditWait::flush,
        wait => wait,
    }
}

/// Whether rows have the values of parameters.
pub fn audit_parameters() -> bool {
    AUDIT_PARAMETERS.get()
}

/// Whether statements inside others have rows of their own.
pub fn audit_nested() -> bool {
    AUDIT_NESTED.get()
}

/// Where the writer puts events.
pub fn audit_destination() -> AuditDestination {
    AUDIT_DESTINATION.get()
}

/// Bytes of statement text that a row keeps.
pub fn audit_statement_limit() -> usize {
    usize::try_from(AUDIT_STATEMENT_LIMIT.get()).unwrap_or(64) * 1024
}

/// Defines them. In the postmaster, while libraries are preloaded.
pub fn define() {
    GucRegistry::define_bool_guc(
        c"impersonate.require_login",
        c"Only a role with LOGIN that has not expired can be impersonated.",
        c"",
        &REQUIRE_LOGIN,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.criteria",
        c"In what an impersonator must be at least the target.",
        c"roles (roles, attributes and rights), or full (also what the target itself owns or was granted on objects).",
        &CRITERIA,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"impersonate.capture_set_role",
        c"SET ROLE and SET SESSION AUTHORIZATION mean setuser() for logins that hold SET USER rights.",
        c"For tools that know nothing else. Roles that cannot log in, and that the login may SET ROLE to, are left as they are.",
        &CAPTURE_SET_ROLE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"impersonate.exempt_roles",
        c"Roles that can neither impersonate nor be impersonated, with their members, superusers included.",
        c"A list of names; owner stands for the extension's owner, bypassrls for whoever has that attribute.",
        &EXEMPT_ROLES,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"impersonate.reason",
        c"The reason for impersonations that are begun without one.",
        c"As the argument of setuser(), for the doors that have none.",
        &REASON,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"impersonate.require_reason",
        c"A regular expression that the reason of an impersonation must match; empty: none is required.",
        c"Anywhere in it: ^ and $ tie it to the ends.",
        &REQUIRE_REASON,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.scope",
        c"Whose privileges each access of an impersonation needs.",
        c"target (the target's), or intersection (also the impersonator's). Settled when an impersonation begins.",
        &SCOPE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"impersonate.local_only",
        c"Impersonations must end with their transaction.",
        c"For roles whose connections a pooler hands on between transactions: only setuser(..., local => true) works.",
        &LOCAL_ONLY,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.on_violation",
        c"What becomes of a role change that breaks the criteria of an active impersonation.",
        c"reject: it fails. terminate: the connections that would be in breach are ended before it takes effect.",
        &ON_VIOLATION,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.audit_statements",
        c"Whose top-level statements are recorded in impersonate.audit.",
        c"none, impersonated (those run under an impersonation), or all.",
        &AUDIT_STATEMENTS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.audit_wait",
        c"What waits until the rows of an impersonated session are in the audit.",
        c"off (nothing), commit (no effect becomes durable before its rows), or flush (also nothing is returned before).",
        &AUDIT_WAIT,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"impersonate.audit_parameters",
        c"Rows of statements have the values of their parameters.",
        c"Values that stand where a password would be redacted are redacted, too.",
        &AUDIT_PARAMETERS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"impersonate.audit_nested",
        c"Statements inside functions, triggers, DO and the like have rows of their own.",
        c"Settled for an impersonation when it begins.",
        &AUDIT_NESTED,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"impersonate.audit_destination",
        c"Where audit events are stored.",
        c"table (impersonate.audit), log (a line of JSON for each in the server log), or both.",
        &AUDIT_DESTINATION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"impersonate.audit_statement_limit",
        c"Statement text beyond this length is cut; its length and SHA-256 stay in detail.",
        c"",
        &AUDIT_STATEMENT_LIMIT,
        1,
        1024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
}

/// When all are defined: none can be changed from under an impersonation (X4), and any other name that begins with
/// `impersonate.` is a mistake.
pub fn close() {
    crate::pg::guc::guard_settings();
    crate::pg::guc::reserve_prefix();
}
