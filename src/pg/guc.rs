//! The three settings that say who a session is: `impersonate.target`, `role` and `session_authorization`.
//!
//! Their check hooks judge a new value, their assign hooks only hand it on; `session.rs` derives who is in force. The
//! assign hooks are the last word: resetting goes to them without a check (guc.c), and at the end of a transaction they
//! are called in no order that may be relied on, when no catalog can be read and no error raised.

use super::guc_values::{committed, Committed};
use super::{active, identity, version};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, GucSource, Oid};
use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr, CString};

/// A role name as catalogs hold it: at most 63 bytes and a zero.
pub type Name = [u8; 64];

/// What `impersonate.target` carries while it names somebody; copied as bytes, so plain data only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TargetState {
    pub id: [u8; 16],
    pub impersonator: Oid,
    pub target: Oid,
    pub target_superuser: bool,
    /// The role that the impersonator was in by SET ROLE when it began, or InvalidOid (G6).
    pub via: Oid,
    /// The right that let it through; 0 for none.
    pub grant_id: i64,
    pub since: pg_sys::TimestampTz,
    /// What it was judged by, and is judged by for as long as it lasts.
    pub rules: Rules,
    /// When the target expires; the end of time if it doesn't (E5).
    pub valid_until: pg_sys::TimestampTz,
    pub impersonator_name: Name,
    pub target_name: Name,
    /// SHA-256 of the cookie, if one was given (S7).
    pub cookie: Option<[u8; 32]>,
    pub no_revert: bool,
    /// Lasts to the end of the transaction.
    pub local: bool,
    /// Its statements are recorded. Settled when it begins: it cannot turn its own auditing off (X4).
    pub audited: bool,
    /// What its statements wait for (`settings::AuditWait`), settled likewise: it can become more, but not less.
    pub audit_wait: u8,
    /// So are those inside them. Settled likewise.
    pub nested: bool,
    /// The reason as far as `impersonate.active` shows it; the audit has all of it.
    pub reason: Reason,
}

impl TargetState {
    /// Of a value that the connection started with and that nobody may be acted as by, or not yet.
    pub const REFUSED: TargetState = TargetState {
        id: [0; 16],
        impersonator: Oid::INVALID,
        target: Oid::INVALID,
        target_superuser: false,
        via: Oid::INVALID,
        grant_id: 0,
        since: 0,
        rules: Rules {
            require_login: true,
            full: false,
            intersection: false,
        },
        valid_until: 0,
        impersonator_name: [0; 64],
        target_name: [0; 64],
        cookie: None,
        no_revert: false,
        local: false,
        audited: true,
        audit_wait: 0,
        nested: false,
        reason: Reason {
            length: 0,
            bytes: [0; 256],
        },
    };
}

/// The settings that bear on the criteria, as of the switch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rules {
    pub require_login: bool,
    /// Objects are compared too (A6).
    pub full: bool,
    /// What the impersonator may not do itself is refused as well (D4).
    pub intersection: bool,
}

/// The beginning of a reason.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reason {
    length: u16,
    bytes: [u8; 256],
}

impl Reason {
    /// Keeps what fits, cut between two characters.
    pub fn new(text: &[u8]) -> Reason {
        let text = identity::cut(text, 256);
        let mut bytes = [0; 256];
        bytes[..text.len()].copy_from_slice(text);
        Reason {
            length: text.len() as u16,
            bytes,
        }
    }

    /// The text, if one was given.
    pub fn text(&self) -> Option<&[u8]> {
        (self.length > 0).then(|| &self.bytes[..usize::from(self.length)])
    }
}

/// What `role` carries: core's own two fields first, then ours.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoleState {
    pub role: Oid,
    pub superuser: bool,
    /// The impersonation inside which it was set; zero outside any.
    pub impersonation: [u8; 16],
    pub name: Name,
}

/// Core's `role_auth_extra` (commands/variable.c), the same in 15 to 18.
#[repr(C)]
struct CoreRoleState {
    role: Oid,
    superuser: bool,
}

/// Why a value is refused.
#[derive(Clone)]
pub struct Refusal {
    pub sqlstate: pgrx::PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

/// What `session.rs` decides about the settings.
pub struct Handlers {
    /// A value for `impersonate.target` that isn't empty: the state it stands for.
    pub target_wanted: fn(value: &CStr) -> Result<TargetState, Refusal>,
    /// The connection starts with this value, and what else it starts with is still to come. Must not raise.
    pub target_at_start: fn(value: &CStr),
    /// `impersonate.target` takes this state; [`TargetState::REFUSED`] is one that was not to be had. May raise only while
    /// [`identity::in_transaction`].
    pub target_assigned: fn(Option<&TargetState>),
    /// What SHOW impersonate.target says.
    pub target_shown: fn() -> Name,
    /// While impersonating: the impersonation, and whether its target may SET ROLE to a role.
    pub impersonation: fn() -> Option<([u8; 16], Oid)>,
    pub role_assigned: fn(&RoleState),
    pub role_shown: fn() -> Option<Name>,
    /// `session_authorization` takes a value, before core applies it. May raise only while in a transaction.
    pub session_user_changes: fn(),
    pub session_user_changed: fn(),
    /// Why a setting of the product, or another that is guarded, cannot be changed now, if it cannot (X4).
    pub setting_changes: fn(ours: bool) -> Option<Refusal>,
    pub raise: fn(&Refusal) -> !,
}

struct Hooks {
    role_check: pg_sys::GucStringCheckHook,
    role_show: pg_sys::GucShowHook,
    session_check: pg_sys::GucStringCheckHook,
    session_assign: pg_sys::GucStringAssignHook,
}

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

static HANDLERS: Process<Option<&'static Handlers>> = Process(Cell::new(None));
static CORE: Process<Option<&'static Hooks>> = Process(Cell::new(None));
/// A value of `role` is being put back. Checks of it give a warning at most, so this ends with the call.
static RESTORING: Process<bool> = Process(Cell::new(false));
/// A value that the connection starts with has been accepted, and not been taken yet.
static STARTING: Process<bool> = Process(Cell::new(false));
static TARGET_VALUE: Process<*mut c_char> = Process(Cell::new(std::ptr::null_mut()));

fn handlers() -> &'static Handlers {
    HANDLERS.0.get().expect("set before the hooks are")
}

fn core() -> &'static Hooks {
    CORE.0.get().expect("set before the hooks are")
}

/// Cuts a name as the server cuts identifiers.
pub fn name_of(bytes: &[u8]) -> Name {
    let mut name = [0; 64];
    let length = bytes.len().min(63);
    name[..length].copy_from_slice(&bytes[..length]);
    name
}

/// The bytes of a name up to its zero.
pub fn name_bytes(name: &Name) -> &[u8] {
    &name[..name.iter().position(|&b| b == 0).unwrap_or(name.len())]
}

/// Defines `impersonate.target` and wraps the other two. In the postmaster, while libraries are preloaded.
pub fn install(handlers: &'static Handlers) {
    HANDLERS.0.set(Some(handlers));
    let flags =
        pg_sys::GUC_IS_NAME | pg_sys::GUC_NO_RESET_ALL | pg_sys::GUC_NOT_WHILE_SEC_REST | pg_sys::GUC_DISALLOW_IN_FILE;
    // SAFETY: the strings are static, the variable lives as long as the process.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            c"impersonate.target".as_ptr(),
            c"The role that the session acts as; empty when it impersonates nobody.".as_ptr(),
            c"Begun and ended by setuser().".as_ptr(),
            TARGET_VALUE.0.as_ptr(),
            c"".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            flags as i32,
            Some(check_target),
            Some(assign_target),
            Some(show_target),
        );
    }
    let role = version::find_string_setting(c"role");
    let session = version::find_string_setting(c"session_authorization");
    assert!(!role.is_null() && !session.is_null(), "the server has no setting role");
    // SAFETY: the records live as long as the process; nothing has been set in the postmaster, so `extra` and
    // `reset_extra` are the boot value's, of core's size, and are replaced by one of ours.
    unsafe {
        CORE.0.set(Some(Box::leak(Box::new(Hooks {
            role_check: (*role).check_hook,
            role_show: (*role).show_hook,
            session_check: (*session).check_hook,
            session_assign: (*session).assign_hook,
        }))));
        let boot = role_state(RoleState {
            role: Oid::INVALID,
            superuser: false,
            impersonation: [0; 16],
            name: [0; 64],
        });
        assert!(!boot.is_null(), "out of memory");
        (*role).gen_.extra = boot;
        (*role).reset_extra = boot;
        (*role).check_hook = Some(check_role);
        (*role).assign_hook = Some(assign_role);
        (*role).show_hook = Some(show_role);
        (*session).check_hook = Some(check_session);
        (*session).assign_hook = Some(assign_session);
    }
}

/// The library wasn't preloaded.
pub fn not_preloaded() -> Refusal {
    Refusal {
        sqlstate: pgrx::PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        message: "impersonate must be loaded via \"shared_preload_libraries\"".to_owned(),
        detail: None,
        hint: Some("Add impersonate to shared_preload_libraries in postgresql.conf and restart the server.".to_owned()),
    }
}

/// Defines `impersonate.target` such that nothing can be set: else the server takes it for a setting of nobody's, and who
/// sets it thinks to act as the target. In a session that loaded the library by itself.
pub fn refuse_target() {
    // SAFETY: as in install().
    unsafe {
        pg_sys::DefineCustomStringVariable(
            c"impersonate.target".as_ptr(),
            c"The role that the session acts as; here it cannot be set, as the library was not preloaded.".as_ptr(),
            std::ptr::null(),
            TARGET_VALUE.0.as_ptr(),
            c"".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GUC_DISALLOW_IN_FILE as i32,
            Some(check_not_preloaded),
            None,
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_not_preloaded(
    newval: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: the hook's own arguments; a value of ours is never null.
    let empty = unsafe { CStr::from_ptr(*newval) }.is_empty();
    // ALTER ROLE ... SET, as a restored dump has it: it counts when the library is there.
    empty || source == GucSource::PGC_S_TEST || refuse(&not_preloaded())
}

/// Sets `impersonate.target`: the value goes through the check hook as any other.
pub fn set_target(value: &CStr, local: bool) {
    let action = if local {
        pg_sys::GucAction::GUC_ACTION_LOCAL
    } else {
        pg_sys::GucAction::GUC_ACTION_SET
    };
    // SAFETY: as set_config() does; raises on refusal.
    unsafe {
        pg_sys::set_config_option(
            c"impersonate.target".as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

fn refuse(refusal: &Refusal) -> bool {
    version::set_check_message(&refusal.message, refusal.detail.as_deref(), refusal.hint.as_deref());
    // SAFETY: stores a number.
    unsafe { pg_sys::GUC_check_errcode(refusal.sqlstate as i32) };
    false
}

fn role_state(state: RoleState) -> *mut c_void {
    let place = version::setting_alloc(std::mem::size_of::<RoleState>()).cast::<RoleState>();
    if !place.is_null() {
        // SAFETY: fresh, large enough, and aligned as malloc aligns.
        unsafe { place.write(state) };
    }
    place.cast()
}

#[pg_guard]
unsafe extern "C-unwind" fn check_target(
    newval: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: guc.c passes valid pointers; a value of ours is never null.
    unsafe {
        let value = CStr::from_ptr(*newval);
        // A worker only shows the name: core has put its leader's role in force.
        if identity::starting_parallel_worker() || (value.is_empty() && source < GucSource::PGC_S_INTERACTIVE) {
            return true;
        }
        if value.is_empty() {
            // Whether it may end is for the assign hook, which every route reaches.
            return true;
        }
        if source < GucSource::PGC_S_INTERACTIVE {
            return check_at_start(newval, extra, source);
        }
        // ALTER ROLE ... SET: it is judged when it is to count.
        if source == GucSource::PGC_S_TEST && (handlers().setting_changes)(true).is_none() {
            return true;
        }
        match (handlers().target_wanted)(value) {
            Ok(state) => {
                let place = version::setting_alloc(std::mem::size_of::<TargetState>()).cast::<TargetState>();
                if place.is_null() {
                    return false;
                }
                place.write(state);
                *extra = place.cast();
                true
            }
            Err(refusal) => refuse(&refusal),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_target(newval: *const c_char, extra: *mut c_void) {
    if identity::starting_parallel_worker() || identity::parallel_worker() {
        return;
    }
    // SAFETY: extra is null or what check_target wrote, and this value's own; the value is a string.
    unsafe {
        let state = extra.cast::<TargetState>().as_ref();
        if state.is_some_and(|state| state.id == [0; 16]) && STARTING.0.replace(false) {
            (handlers().target_at_start)(CStr::from_ptr(newval));
        }
        (handlers().target_assigned)(state);
    }
}

/// The value that the connection started with stands for this state from now on.
pub fn start_with(state: &TargetState) {
    let record = version::find_string_setting(c"impersonate.target");
    // SAFETY: the value is one that check_at_start wrote a state for, which is its own and also that of the value to
    // reset to.
    unsafe {
        if let Some(place) = (*record).gen_.extra.cast::<TargetState>().as_mut() {
            if place.id == [0; 16] {
                *place = *state;
            }
        }
    }
}

/// Has a value count for none.
unsafe fn empty(newval: *mut *mut c_char) -> bool {
    // SAFETY: the value is replaced by another of the settings' own memory.
    unsafe {
        let empty = version::setting_alloc(1).cast::<c_char>();
        if empty.is_null() {
            return false;
        }
        *empty = 0;
        version::setting_free((*newval).cast());
        *newval = empty;
        true
    }
}

/// D5: what counts of values that are there when the connection starts.
unsafe fn check_at_start(newval: *mut *mut c_char, extra: *mut *mut c_void, source: GucSource::Type) -> bool {
    // SAFETY: the value is replaced by another of the settings' own memory.
    unsafe {
        // The server's own processes have no client to tell, and the postmaster tells its log.
        let postmaster = !pg_sys::IsUnderPostmaster;
        if !postmaster && !version::is_client_backend() {
            return empty(newval);
        }
        let place = match source {
            _ if postmaster => Some("of the server's configuration"),
            GucSource::PGC_S_CLIENT if version::is_walsender() => {
                return refuse(&Refusal {
                    sqlstate: pgrx::PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    message: "replication connections cannot impersonate".to_owned(),
                    detail: None,
                    hint: None,
                });
            }
            GucSource::PGC_S_CLIENT => None,
            _ if version::is_walsender() => Some("for a replication connection"),
            GucSource::PGC_S_USER | GucSource::PGC_S_DATABASE_USER | GucSource::PGC_S_GLOBAL => None,
            GucSource::PGC_S_DATABASE => Some("of a database"),
            _ => Some("of the server's configuration"),
        };
        if let Some(place) = place {
            pgrx::ereport!(
                pgrx::PgLogLevel::WARNING,
                pgrx::PgSqlErrorCode::ERRCODE_WARNING,
                format!("ignoring setting \"impersonate.target\" {place}"),
                "It counts when it comes from the client or from ALTER ROLE."
            );
            return empty(newval);
        }
        let state = version::setting_alloc(std::mem::size_of::<TargetState>()).cast::<TargetState>();
        if state.is_null() {
            return false;
        }
        state.write(TargetState::REFUSED);
        *extra = state.cast();
        STARTING.0.set(true);
        true
    }
}

fn shown(name: Name) -> *const c_char {
    thread_local! { static BUFFER: Cell<Name> = const { Cell::new([0; 64]) }; }
    BUFFER.with(|buffer| {
        buffer.set(name);
        buffer.as_ptr().cast_const().cast()
    })
}

#[pg_guard]
unsafe extern "C-unwind" fn show_target() -> *const c_char {
    if identity::parallel_worker() {
        let value = TARGET_VALUE.0.get();
        return if value.is_null() { c"".as_ptr() } else { value };
    }
    shown((handlers().target_shown)())
}

#[pg_guard]
unsafe extern "C-unwind" fn check_role(
    newval: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: guc.c passes valid pointers; core's hook leaves its own state in *extra, which is taken over.
    unsafe {
        let value = CStr::from_ptr(*newval);
        let impersonation = impersonation();
        let state = if let Some((id, target)) = impersonation {
            match role_for_target(value, id, target, source) {
                Ok(Some(state)) => state,
                Ok(None) => return true,
                Err(refusal) => return refuse(&refusal),
            }
        } else if let Some(state) = restored_for_superuser(value) {
            state
        } else {
            let Some(check) = core().role_check else { return false };
            if !pg_sys::ffi::pg_guard_ffi_boundary(|| check(newval, extra, source)) {
                return false;
            }
            if (*extra).is_null() {
                return true;
            }
            let of_core = (*extra).cast::<CoreRoleState>().read();
            version::setting_free(*extra);
            *extra = std::ptr::null_mut();
            // Without a name: what the leader had, whatever that was.
            let name = if identity::starting_parallel_worker() {
                [0; 64]
            } else {
                name_of(CStr::from_ptr(*newval).to_bytes())
            };
            RoleState {
                role: of_core.role,
                superuser: of_core.superuser,
                impersonation: [0; 16],
                name,
            }
        };
        *extra = role_state(state);
        !(*extra).is_null()
    }
}

/// The impersonation that a value is judged under. In a parallel worker it is the leader's; while the worker takes over
/// the leader's values, none, for they have been judged.
fn impersonation() -> Option<([u8; 16], Oid)> {
    if identity::starting_parallel_worker() {
        None
    } else if identity::parallel_worker() {
        active::of_leader().map(|state| (state.id, state.target))
    } else {
        (handlers().impersonation)()
    }
}

/// A role that is put back, where the session user of the moment may not be the one that it was set by: only who logged
/// in as a superuser can be another, and may set any role.
fn restored_for_superuser(value: &CStr) -> Option<RoleState> {
    if !RESTORING.0.get() || !identity::in_transaction() || !identity::superuser(identity::authenticated_user()) {
        return None;
    }
    let role = identity::role_named(value).filter(|_| value != c"none")?;
    Some(RoleState {
        role,
        superuser: identity::superuser(role),
        impersonation: [0; 16],
        name: name_of(value.to_bytes()),
    })
}

/// X1: inside an impersonation, SET ROLE follows the target's memberships, whoever the session user is.
fn role_for_target(
    value: &CStr,
    id: [u8; 16],
    target: Oid,
    source: GucSource::Type,
) -> Result<Option<RoleState>, Refusal> {
    let name = name_of(value.to_bytes());
    if value == c"none" {
        return Ok(Some(RoleState {
            role: Oid::INVALID,
            superuser: false,
            impersonation: id,
            name,
        }));
    }
    let refusal = |sqlstate, message: &str| {
        let message = format!("{message} \"{}\"", value.to_string_lossy());
        Refusal {
            sqlstate,
            message,
            detail: None,
            hint: None,
        }
    };
    if !identity::in_transaction() {
        return Err(refusal(
            pgrx::PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "cannot look up role",
        ));
    }
    let testing = source == GucSource::PGC_S_TEST;
    let Some(role) = identity::role_named(value) else {
        if testing {
            pgrx::notice!("role \"{}\" does not exist", value.to_string_lossy());
            return Ok(None);
        }
        let message = format!("role \"{}\" does not exist", value.to_string_lossy());
        let sqlstate = pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
        return Err(Refusal {
            sqlstate,
            message,
            detail: None,
            hint: None,
        });
    };
    if !version::may_set_role(target, role) {
        if testing {
            pgrx::notice!("permission will be denied to set role \"{}\"", value.to_string_lossy());
            return Ok(None);
        }
        let denied = pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
        return Err(refusal(denied, "permission denied to set role"));
    }
    Ok(Some(RoleState {
        role,
        superuser: identity::superuser(role),
        impersonation: id,
        name,
    }))
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_role(_newval: *const c_char, extra: *mut c_void) {
    // A starting worker has its leader's role in force already, whatever the setting says (parallel.c).
    if identity::starting_parallel_worker() {
        return;
    }
    // SAFETY: every state of `role` was written by role_state(): install() replaced the boot value's.
    let Some(state) = (unsafe { extra.cast::<RoleState>().as_ref() }) else {
        return;
    };
    if identity::parallel_worker() {
        assign_role_in_worker(state);
    } else {
        (handlers().role_assigned)(state);
    }
}

/// In a worker only a function's SET clause changes `role`, and its end puts back the value that the worker began with.
fn assign_role_in_worker(state: &RoleState) {
    thread_local! { static LEADERS: Cell<Option<(Oid, bool)>> = const { Cell::new(None) }; }
    // Before the first change, what is in force is the leader's role.
    let leaders = LEADERS.get().unwrap_or_else(|| {
        let role = (
            identity::set_role().unwrap_or(Oid::INVALID),
            identity::role_is_superuser(),
        );
        LEADERS.set(Some(role));
        role
    });
    identity::put_in_force(Some(if state.name == [0; 64] {
        leaders
    } else if state.role == Oid::INVALID && state.impersonation != [0; 16] {
        // SET role = none inside an impersonation: the target.
        active::of_leader().map_or(leaders, |state| (state.target, state.target_superuser))
    } else {
        (state.role, state.superuser)
    }));
}

#[pg_guard]
unsafe extern "C-unwind" fn show_role() -> *const c_char {
    let Some(role) = identity::set_role() else {
        return c"none".as_ptr();
    };
    if identity::parallel_worker() {
        return shown(identity::role_name(role).map_or([0; 64], |name| name_of(&name)));
    }
    if let Some(name) = (handlers().role_shown)() {
        return shown(name);
    }
    // SAFETY: core's own hook.
    core().role_show.map_or(c"none".as_ptr(), |show| unsafe { show() })
}

#[pg_guard]
unsafe extern "C-unwind" fn check_session(
    newval: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: core's own hook with its own arguments.
    unsafe {
        if source >= GucSource::PGC_S_INTERACTIVE && source != GucSource::PGC_S_TEST && impersonation().is_some() {
            return refuse(&session_refusal());
        }
        core()
            .session_check
            .is_none_or(|check| pg_sys::ffi::pg_guard_ffi_boundary(|| check(newval, extra, source)))
    }
}

/// X1: the session user is the impersonator for as long as it impersonates.
pub fn session_refusal() -> Refusal {
    Refusal {
        sqlstate: pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message: "cannot set session authorization while impersonating".to_owned(),
        detail: None,
        hint: Some("End the impersonation first: SELECT setuser();".to_owned()),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_session(newval: *const c_char, extra: *mut c_void) {
    let worker = identity::starting_parallel_worker() || identity::parallel_worker();
    if !worker && !extra.is_null() {
        (handlers().session_user_changes)();
    }
    if let Some(assign) = core().session_assign {
        // SAFETY: core's own hook with its own arguments.
        unsafe { assign(newval, extra) };
    }
    if !worker && !extra.is_null() {
        (handlers().session_user_changed)();
    }
}

/// A name as text for messages.
pub fn name_text(name: &Name) -> String {
    String::from_utf8_lossy(name_bytes(name)).into_owned()
}

/// A name for the server.
pub fn name_cstring(name: &Name) -> CString {
    CString::new(name_bytes(name)).unwrap_or_default()
}

/// The values of `role`: what a COMMIT would leave, and that of a SET LOCAL over it.
#[derive(Clone, Copy)]
pub struct RoleValues {
    pub session: RoleState,
    pub local: Option<RoleState>,
}

impl RoleValues {
    /// Whether they come to the same.
    pub fn same(&self, other: &RoleValues) -> bool {
        let parts = |state: &RoleState| (state.role, state.impersonation);
        parts(&self.session) == parts(&other.session)
            && self.local.as_ref().map(parts) == other.local.as_ref().map(parts)
    }
}

/// Takes down `role` (S9).
pub fn take_role() -> Option<RoleValues> {
    let record = version::find_string_setting(c"role");
    // SAFETY: every state of `role` was written by role_state(), as in assign_role().
    let state = |extra: *mut c_void| unsafe { extra.cast::<RoleState>().as_ref() }.copied();
    // SAFETY: the record and its stack are the settings machinery's own.
    unsafe {
        let now = state((*record).gen_.extra)?;
        Some(match committed(record.cast_const().cast()) {
            Committed::Now => RoleValues {
                session: now,
                local: None,
            },
            Committed::Hidden(hidden, _) => RoleValues {
                session: state((*hidden).extra)?,
                local: Some(now),
            },
        })
    }
}

/// Sets `role`. What whoever it is judged for may no longer be becomes none.
pub fn set_role(state: &RoleState, local: bool) {
    let action = if local {
        pg_sys::GucAction::GUC_ACTION_LOCAL
    } else {
        pg_sys::GucAction::GUC_ACTION_SET
    };
    let set = |value: &CStr| {
        // SAFETY: as set_config() does; below ERROR it returns instead of raising.
        unsafe {
            pg_sys::set_config_option(
                c"role".as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                GucSource::PGC_S_SESSION,
                action,
                true,
                pgrx::PgLogLevel::WARNING as i32,
                false,
            )
        }
    };
    let value = if state.role == Oid::INVALID {
        c"none".to_owned()
    } else {
        name_cstring(&state.name)
    };
    RESTORING.0.set(true);
    let was_set = set(&value) > 0;
    RESTORING.0.set(false);
    if !was_set {
        set(c"none");
    }
}

/// Settings of the server's that cannot be changed while impersonating. With the first one on, our tables could be changed by
/// way of the catalogs; the others say which libraries are loaded, and from where.
pub fn guarded(name: &str) -> bool {
    [
        "allow_system_table_mods",
        "dynamic_library_path",
        "session_preload_libraries",
        "local_preload_libraries",
    ]
    .contains(&name)
}

/// Puts a check on the product's other settings, and on those. In the postmaster, when they are all defined.
pub fn guard_settings() {
    use pg_sys::config_type::{PGC_BOOL, PGC_ENUM, PGC_INT, PGC_REAL, PGC_STRING};
    for setting in version::all_settings() {
        // SAFETY: the type tells which record it is; the hooks take what that record's hook takes.
        unsafe {
            let name = CStr::from_ptr((*setting).name);
            let ours = name.to_bytes().starts_with(b"impersonate.")
                && name != c"impersonate.target"
                && name != c"impersonate.project";
            if !ours && !name.to_str().is_ok_and(guarded) {
                continue;
            }
            // A reset goes to the assign hook alone.
            match (*setting).vartype {
                PGC_BOOL if !ours => {
                    let setting = setting.cast::<pg_sys::config_bool>();
                    (*setting).check_hook = Some(check_change_of_guarded::<bool>);
                    (*setting).assign_hook = Some(assign_guarded::<bool>);
                }
                PGC_STRING if !ours => {
                    let setting = setting.cast::<pg_sys::config_string>();
                    (*setting).check_hook = Some(check_change_of_guarded::<*mut c_char>);
                    (*setting).assign_hook = Some(assign_guarded::<*const c_char>);
                }
                PGC_BOOL => {
                    let setting = setting.cast::<pg_sys::config_bool>();
                    (*setting).check_hook = Some(check_change::<bool>);
                    (*setting).assign_hook = Some(assign_change::<bool>);
                }
                PGC_INT => {
                    let setting = setting.cast::<pg_sys::config_int>();
                    (*setting).check_hook = Some(check_change::<i32>);
                    (*setting).assign_hook = Some(assign_change::<i32>);
                }
                PGC_ENUM => {
                    let setting = setting.cast::<pg_sys::config_enum>();
                    (*setting).check_hook = Some(check_change::<i32>);
                    (*setting).assign_hook = Some(assign_change::<i32>);
                }
                PGC_REAL => {
                    let setting = setting.cast::<pg_sys::config_real>();
                    (*setting).check_hook = Some(check_change::<f64>);
                    (*setting).assign_hook = Some(assign_change::<f64>);
                }
                PGC_STRING => {
                    if name == c"impersonate.exempt_roles" {
                        (*setting).flags |= pg_sys::GUC_LIST_INPUT as i32;
                    }
                    let setting = setting.cast::<pg_sys::config_string>();
                    // What the server starts with is there already.
                    if name == c"impersonate.require_reason" {
                        warn_at_start(*(*setting).variable, pattern_refused);
                    } else if name == c"impersonate.exempt_roles" {
                        warn_at_start(*(*setting).variable, list_refused);
                    }
                    (*setting).check_hook = Some(if name == c"impersonate.require_reason" {
                        check_pattern
                    } else if name == c"impersonate.exempt_roles" {
                        check_list
                    } else {
                        check_change::<*mut c_char>
                    });
                    (*setting).assign_hook = Some(if name == c"impersonate.exempt_roles" {
                        assign_exempt_roles
                    } else {
                        assign_change::<*const c_char>
                    });
                }
                _ => (),
            }
        }
    }
}

/// The server's log is told of a value that can't be read: by that nobody impersonates.
unsafe fn warn_at_start(value: *const c_char, takes: fn(&[u8]) -> Result<(), Refusal>) {
    // SAFETY: the value is null or a string.
    let value = unsafe { value.as_ref().map(|value| CStr::from_ptr(value)) };
    if let Some(Err(refusal)) = value.map(|value| takes(value.to_bytes())) {
        pgrx::ereport!(
            pgrx::PgLogLevel::WARNING,
            refusal.sqlstate,
            refusal.message,
            "Nobody can impersonate until it is mended."
        );
    }
}

/// What is in force is judged again by the new list, before the next statement.
unsafe extern "C-unwind" fn assign_exempt_roles(_new: *const c_char, _extra: *mut c_void) {
    // SAFETY: called as the server called us.
    unsafe { changes(true) }
    super::changes::setting_changed();
}

unsafe extern "C-unwind" fn assign_change<T>(_new: T, _extra: *mut c_void) {
    // SAFETY: called as the server called us.
    unsafe { changes(true) }
}

unsafe extern "C-unwind" fn assign_guarded<T>(_new: T, _extra: *mut c_void) {
    // SAFETY: called as the server called us.
    unsafe { changes(false) }
}

/// What comes without having passed the check: a reset, which is refused, or what nobody asked for now, a value that
/// comes back as a transaction ends or one of a configuration file that was read again.
#[pg_guard]
unsafe extern "C-unwind" fn changes(ours: bool) {
    if !identity::in_transaction() || identity::starting_parallel_worker() || identity::reading_configuration() {
        return;
    }
    if let Some(refusal) = HANDLERS.0.get().and_then(|handlers| (handlers.setting_changes)(ours)) {
        (handlers().raise)(&refusal);
    }
}

unsafe extern "C-unwind" fn check_change<T>(_new: *mut T, _extra: *mut *mut c_void, source: GucSource::Type) -> bool {
    // SAFETY: called as the server called us.
    unsafe { may_change(source, true) }
}

unsafe extern "C-unwind" fn check_change_of_guarded<T>(
    _new: *mut T,
    _extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: called as the server called us.
    unsafe { may_change(source, false) }
}

/// A pattern that is none is refused. Without a database, as in the postmaster, what bytes beyond ASCII mean isn't known
/// yet: it is an error when it is to be matched, then.
#[pg_guard]
unsafe extern "C-unwind" fn check_pattern(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: the hook's own arguments.
    unsafe { may_become(new, source, pattern_refused) }
}

fn pattern_refused(pattern: &[u8]) -> Result<(), Refusal> {
    let readable = pattern.is_ascii() || identity::database() != Oid::INVALID;
    match super::regex::error_in(pattern).filter(|_| readable) {
        None => Ok(()),
        Some(error) => Err(Refusal {
            sqlstate: pgrx::PgSqlErrorCode::ERRCODE_INVALID_REGULAR_EXPRESSION,
            message: format!("invalid regular expression in setting \"impersonate.require_reason\": {error}"),
            detail: None,
            hint: None,
        }),
    }
}

/// Whether a setting may change, and take this text.
///
/// # Safety
/// The arguments are those of a check hook of a string.
unsafe fn may_become(
    new: *mut *mut c_char,
    source: GucSource::Type,
    takes: impl FnOnce(&[u8]) -> Result<(), Refusal>,
) -> bool {
    // SAFETY: the caller's promise; the value is null or a string.
    unsafe {
        if !may_change(source, true) {
            return false;
        }
        match (*new)
            .as_ref()
            .map_or(Ok(()), |text| takes(CStr::from_ptr(text).to_bytes()))
        {
            Ok(()) => true,
            Err(refusal) => refuse(&refusal),
        }
    }
}

/// A list that is none is refused. Roles in it may come later.
#[pg_guard]
unsafe extern "C-unwind" fn check_list(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: the hook's own arguments.
    unsafe { may_become(new, source, list_refused) }
}

fn list_refused(list: &[u8]) -> Result<(), Refusal> {
    match super::exempt::entries(list) {
        Some(_) => Ok(()),
        None => Err(Refusal {
            sqlstate: pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            message: "invalid list of roles for setting \"impersonate.exempt_roles\"".to_owned(),
            detail: None,
            hint: Some("SET impersonate.exempt_roles = 'role, \"Role\", owner, bypassrls';".to_owned()),
        }),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn may_change(source: GucSource::Type, ours: bool) -> bool {
    if source < GucSource::PGC_S_INTERACTIVE || identity::starting_parallel_worker() {
        return true;
    }
    match HANDLERS.0.get().and_then(|handlers| (handlers.setting_changes)(ours)) {
        Some(refusal) => refuse(&refusal),
        None => true,
    }
}

/// Whether a ROLLBACK, or the end of the transaction, would change who the session is.
pub fn identity_is_transactional() -> bool {
    thread_local! {
        static RECORD: *mut pg_sys::config_string = version::find_string_setting(c"impersonate.target");
    }
    // SAFETY: null, or the setting's record, which lives as long as the process.
    RECORD.with(|&record| !record.is_null() && unsafe { !(*record).gen_.stack.is_null() })
}

/// Any other setting whose name begins with `impersonate.` is a mistake.
pub fn reserve_prefix() {
    // SAFETY: a static string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"impersonate".as_ptr()) };
}

impl Refusal {
    /// The five characters of its SQLSTATE.
    pub fn sqlstate_text(&self) -> [u8; 5] {
        super::catch::sqlstate_text(self.sqlstate as i32)
    }
}
