//! GRANT and REVOKE of SET USER, from SQL's own statement and from the two functions alike (G1 to G5).

use crate::audit::{self, Event, Kind};
use crate::pg::guc::name_of;
use crate::pg::roles::{role_id, Catalogs};
use crate::pg::trampoline::{Course, Utility};
use crate::pg::utility::{self, RoleGrant};
use crate::pg::version::AdminClause;
use crate::pg::{identity, rights, store};
use crate::{guard, session, statements, version};
use impersonate_policy as policy;
use pgrx::pg_sys::Oid;
use pgrx::{ereport, PgLogLevel, PgSqlErrorCode};
use policy::{
    Admin, GrantError, GrantRequest, Privilege, RevokeError, RevokeRequest, RevokeWhat, RoleId, Scope, World,
};
use std::ffi::CString;

fn raise(sqlstate: PgSqlErrorCode, message: String, detail: Option<String>, hint: Option<String>) -> ! {
    session::raise(&crate::pg::guc::Refusal {
        sqlstate,
        message,
        detail,
        hint,
    })
}

/// A GRANT or REVOKE of roles: ours is done here, and what is left of it goes on.
pub fn statement(utility: &Utility, grant: &RoleGrant) -> Option<Course> {
    let ours: Vec<(Privilege, &Vec<Vec<u8>>)> = grant
        .privileges
        .iter()
        .filter_map(|(name, list)| Some((policy::parse_privilege(std::str::from_utf8(name).ok()?)?, list)))
        .collect();
    if ours.is_empty() {
        return None;
    }
    let verb = if grant.is_grant { c"GRANT" } else { c"REVOKE" };
    let verb_text = verb.to_string_lossy();
    utility::prevent_if_read_only(verb);
    if ours.len() < grant.privileges.len() {
        raise(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("cannot {verb_text} SET USER and roles in one statement"),
            None,
            Some(format!("Use one {verb_text} for SET USER and another for the roles.")),
        );
    }
    require_extension();
    // Before names are looked up: a role that is being dropped is then gone, or stays.
    begin_change(utility::is_outermost(utility));
    let grantees: Vec<RoleId> = grant
        .grantees()
        .into_iter()
        .map(|grantee| {
            grantee.map(role_id).unwrap_or_else(|| {
                raise(
                    PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION,
                    format!(
                        "cannot {verb_text} SET USER {} PUBLIC",
                        if grant.is_grant { "to" } else { "from" }
                    ),
                    None,
                    Some("Name the roles, or a group that they are members of.".to_owned()),
                )
            })
        })
        .collect();
    let grantor = grantor(grant.granted_by());
    for (privilege, list) in ours {
        let list: Vec<RoleId> = list.iter().map(|name| named(name)).collect();
        if grant.is_grant {
            let admin = match &grant.admin {
                AdminClause::Plain => Admin::None,
                AdminClause::Admin => Admin::Option,
                AdminClause::AdminOnly => Admin::Only,
                AdminClause::Unsupported(option) => raise(
                    PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION,
                    format!("SET USER has no option \"{option}\""),
                    None,
                    Some("Use WITH ADMIN OPTION, or WITH ADMIN TRUE, SET FALSE.".to_owned()),
                ),
            };
            let scope = privilege.granted(list).unwrap_or_else(|error| list_error(error));
            give(grantees.clone(), scope, admin, grantor);
        } else {
            let admin_option_only = match &grant.admin {
                AdminClause::Plain => false,
                AdminClause::Admin => true,
                AdminClause::AdminOnly | AdminClause::Unsupported(_) => raise(
                    PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION,
                    "only ADMIN OPTION FOR applies to SET USER".to_owned(),
                    None,
                    None,
                ),
            };
            let what = privilege.revoked(list).unwrap_or_else(|error| list_error(error));
            let request = RevokeRequest {
                grantees: grantees.clone(),
                what,
                admin_option_only,
                cascade: grant.cascade,
            };
            take(&request, grantor);
        }
    }
    guard::after_change(|| utility::action(utility));
    Some(utility::emptied(utility))
}

fn list_error(error: policy::ListError) -> ! {
    let (message, hint) = match error {
        policy::ListError::Missing(privilege) => (
            format!("privilege \"{}\" needs a list of roles", privilege.as_str()),
            format!("GRANT \"{}\" (role, ...) TO grantee;", privilege.as_str()),
        ),
        policy::ListError::Unexpected(privilege) => (
            format!("privilege \"{}\" takes no list", privilege.as_str()),
            "GRANT \"SET USER\" (role, ...) TO grantee;".to_owned(),
        ),
    };
    raise(
        PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION,
        message,
        None,
        Some(hint),
    )
}

fn named(name: &[u8]) -> RoleId {
    let role = CString::new(name).ok().and_then(|name| identity::role_named(&name));
    role.map(role_id).unwrap_or_else(|| {
        let name = String::from_utf8_lossy(name).into_owned();
        raise(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("role \"{name}\" does not exist"),
            None,
            None,
        )
    })
}

/// Raises where the extension isn't created, or not as this library knows it: there is nowhere to keep a right.
pub fn require_extension() {
    if !rights::extension_created() {
        raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "extension \"impersonate\" is not created in this database".to_owned(),
            None,
            Some("CREATE EXTENSION impersonate;".to_owned()),
        );
    }
    version::require_same();
}

/// Who grants: the current user, or another if a superuser says so, as for roles.
fn grantor(granted_by: Option<Oid>) -> Oid {
    let current = identity::current_user();
    match granted_by {
        Some(other) if other != current => {
            if !identity::superuser(current) {
                raise(
                    PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                    "must be superuser to set grantor".to_owned(),
                    None,
                    None,
                );
            }
            other
        }
        _ => current,
    }
}

/// X4: the target's code shall not move rights about, unless the target could do anything anyway.
fn refuse_while_impersonating() {
    if let Some(state) = session::in_force().filter(|state| !state.target_superuser) {
        session::raise(&session::change_refusal(&state, "SET USER rights"));
    }
}

/// Rights are about to change: whoever else changes them waits, and switches do.
pub fn begin_change(outermost: bool) {
    guard::before_change(outermost);
    store::lock_rights();
}

/// They have: raises if that broke the criteria of an active impersonation (E2).
pub fn end_change(verb: &str, grantee: RoleId) {
    guard::after_change(|| {
        let preposition = if verb == "grant" { "to" } else { "from" };
        let name = Catalogs::default().name(grantee);
        format!("{verb} SET USER {preposition} role \"{name}\"")
    });
}

/// Grants, for `GRANT` and `impersonate.grant_set_user` alike.
pub fn give(grantees: Vec<RoleId>, scope: Scope, admin: Admin, grantor: Oid) {
    refuse_while_impersonating();
    let catalogs = Catalogs::default();
    store::lock_rights();
    store::tidy();
    let existing = catalogs.all_rights();
    let request = GrantRequest {
        grantees,
        scope,
        admin,
        grantor: role_id(grantor),
        as_superuser: identity::superuser(grantor),
    };
    let changes =
        policy::grant(&catalogs, &existing, &request).unwrap_or_else(|error| grant_error(&catalogs, &error, &request));
    store::apply(&changes);
    for &grantee in &request.grantees {
        record(
            Kind::Grant,
            &catalogs,
            grantee,
            &scope_json(&catalogs, &request.scope, request.admin),
        );
    }
}

/// Revokes, for `REVOKE` and `impersonate.revoke_set_user` alike.
pub fn take(request: &RevokeRequest, revoker: Oid) {
    refuse_while_impersonating();
    let catalogs = Catalogs::default();
    store::lock_rights();
    store::tidy();
    let existing = catalogs.all_rights();
    if !policy::may_grant(&catalogs, role_id(revoker)) {
        let error = GrantError::MayNotGrant {
            grantor: role_id(revoker),
        };
        refuse_grantor(&catalogs, Kind::Revoke, request.grantees.first().copied(), &error);
    }
    let revoked = policy::revoke(&catalogs, &existing, request).unwrap_or_else(|error| match error {
        RevokeError::Dependent { dependents } => {
            let lines: Vec<String> = dependents
                .iter()
                .map(|right| {
                    format!(
                        "role \"{}\" holds a SET USER right granted by \"{}\"",
                        catalogs.name(right.grantee),
                        catalogs.name(right.grantor)
                    )
                })
                .collect();
            raise(
                PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                "dependent privileges exist".to_owned(),
                Some(lines.join("\n")),
                Some("Use CASCADE to revoke them too.".to_owned()),
            )
        }
    });
    for missing in &revoked.not_granted {
        let grantee = catalogs.name(missing.grantee);
        let listed: Vec<String> = missing
            .listed
            .iter()
            .map(|&role| format!("\"{}\"", catalogs.name(role)))
            .collect();
        let over = if listed.is_empty() {
            String::new()
        } else {
            format!(" over {}", listed.join(", "))
        };
        ereport!(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_WARNING_PRIVILEGE_NOT_REVOKED,
            format!("role \"{grantee}\" has not been granted SET USER{over}")
        );
    }
    store::apply(&revoked.changes);
    for &grantee in &request.grantees {
        record(Kind::Revoke, &catalogs, grantee, &what_json(&catalogs, request));
    }
}

fn grant_error(catalogs: &Catalogs, error: &GrantError, request: &GrantRequest) -> ! {
    let invalid = PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION;
    match error {
        GrantError::AdminNeedsAny { .. } => raise(
            invalid,
            "only SET USER over any role carries the admin option".to_owned(),
            None,
            Some("GRANT \"SET USER\" TO grantee WITH ADMIN OPTION;".to_owned()),
        ),
        GrantError::EmptyList { .. } => raise(
            invalid,
            "the list of roles is empty".to_owned(),
            None,
            Some("Name at least one role.".to_owned()),
        ),
        GrantError::MayNotGrant { .. } => {
            refuse_grantor(catalogs, Kind::Grant, request.grantees.first().copied(), error)
        }
        GrantError::Circular { grantor, grantee } => raise(
            invalid,
            "admin option over SET USER cannot be granted back to the role that it hangs on".to_owned(),
            Some(format!(
                "The admin option of \"{}\" hangs on that of \"{}\".",
                catalogs.name(*grantor),
                catalogs.name(*grantee)
            )),
            None,
        ),
    }
}

/// G4, with a DENIED row that outlives the failed statement.
fn refuse_grantor(catalogs: &Catalogs, kind: Kind, grantee: Option<RoleId>, error: &GrantError) -> ! {
    let GrantError::MayNotGrant { grantor } = error else {
        unreachable!("the caller's error")
    };
    let name = catalogs.name(*grantor);
    if crate::pg::active::available() {
        let detail = serde_json::json!({
            "statement": kind.as_str(),
            "grantee": grantee.map(|role| catalogs.name(role)),
        })
        .to_string();
        push(&Event {
            sqlstate: *b"42501",
            command_tag: Some(kind.as_str().as_bytes()),
            ..event(Kind::Denied, &detail)
        });
    }
    raise(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("permission denied to {} SET USER", kind.as_str().to_lowercase()),
        Some(format!(
            "Role \"{name}\" is neither a superuser nor holds the admin option over SET USER."
        )),
        Some(format!(
            "GRANT \"SET USER\" TO {} WITH ADMIN OPTION;",
            policy::quote_identifier(&name)
        )),
    )
}

fn scope_json(catalogs: &Catalogs, scope: &Scope, admin: Admin) -> serde_json::Value {
    let roles: Vec<String> = scope.roles().iter().map(|&role| catalogs.name(role)).collect();
    serde_json::json!({ "scope": scope.as_str(), "roles": roles, "admin": admin.as_str() })
}

fn what_json(catalogs: &Catalogs, request: &RevokeRequest) -> serde_json::Value {
    let (scope, roles): (&str, &[RoleId]) = match &request.what {
        RevokeWhat::Everything => ("everything", &[]),
        RevokeWhat::Any => ("any", &[]),
        RevokeWhat::Users(list) => ("users", list),
        RevokeWhat::AllUsers => ("users", &[]),
        RevokeWhat::WithRoles(list) => ("any with roles", list),
        RevokeWhat::AllWithRoles => ("any with roles", &[]),
    };
    let roles: Vec<String> = roles.iter().map(|&role| catalogs.name(role)).collect();
    serde_json::json!({
        "scope": scope,
        "roles": roles,
        "admin_option_only": request.admin_option_only,
        "cascade": request.cascade,
    })
}

fn record(kind: Kind, catalogs: &Catalogs, grantee: RoleId, what: &serde_json::Value) {
    if !crate::pg::active::available() {
        return;
    }
    let mut detail = what.clone();
    detail["grantee"] = catalogs.name(grantee).into();
    let detail = detail.to_string();
    push(&event(kind, &detail));
}

fn event(kind: Kind, detail: &str) -> Event<'_> {
    Event {
        command_tag: Some(kind.as_str().as_bytes()),
        detail: Some(detail.as_bytes()),
        ..statements::blank_event(kind)
    }
}

/// Fills in who did it and queues the event.
fn push(event: &Event) {
    let session_user = identity::role_name(identity::session_user()).unwrap_or_default();
    let role = identity::role_name(identity::current_user()).unwrap_or_default();
    let told = session::names_for_events();
    let target = told
        .as_ref()
        .map(|(state, _)| state.target_name)
        .unwrap_or(name_of(&session_user));
    let (statement, _) = statements::kept_message();
    audit::push(&Event {
        statement: statement.as_deref(),
        user_name: crate::pg::guc::name_bytes(&target),
        session_user_name: &session_user,
        role_name: &role,
        impersonation_id: told.map(|(state, _)| state.id),
        ..*event
    });
}

/// G7: takes away what is left of rights whose roles are gone.
pub fn forget_the_dead() {
    store::tidy();
}

/// G7: a role named like a privilege would make GRANT ambiguous.
pub fn check_role_name(name: &[u8]) {
    if let Some(privilege) = std::str::from_utf8(name).ok().and_then(policy::parse_privilege) {
        raise(
            PgSqlErrorCode::ERRCODE_RESERVED_NAME,
            format!("role name \"{}\" is reserved", String::from_utf8_lossy(name)),
            Some(format!(
                "\"{}\" is a privilege of extension impersonate.",
                privilege.as_str()
            )),
            None,
        );
    }
}

/// The OIDs that a regrole[] argument gives.
pub fn role_list(roles: Option<Vec<Option<Oid>>>) -> Option<Vec<RoleId>> {
    roles.map(|roles| {
        roles
            .into_iter()
            .map(|role| {
                let role = role.unwrap_or_else(|| {
                    raise(
                        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                        "a list of roles must not contain NULL".to_owned(),
                        None,
                        None,
                    )
                });
                existing(role)
            })
            .collect()
    })
}

/// A regrole argument may be any number.
pub fn existing(role: Oid) -> RoleId {
    if identity::role_name(role).is_none() {
        let message = format!("role with OID {} does not exist", u32::from(role));
        raise(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, message, None, None);
    }
    role_id(role)
}
