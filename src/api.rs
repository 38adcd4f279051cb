//! The SQL functions: arguments in, one call, a result out.

use crate::pg::roles::Catalogs;
use crate::pg::{active, identity, portal, rights, worker};
use crate::switch::{self, refusal, Door, Request};
use crate::target;
use crate::{audit, capture, exempt, grants, guard, report, session, statements, trail, version};
use impersonate_policy as policy;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use policy::{Scope, Verdict};

/// `pg_catalog.setuser`: start, switch over, or end (S1 to S7).
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn setuser(
    target: Option<&[u8]>,
    reason: Option<&[u8]>,
    local: Option<bool>,
    cookie: Option<&[u8]>,
    no_revert: Option<bool>,
    with_settings: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Vec<u8> {
    let key = own_statement(fcinfo, "setuser()", "SELECT setuser('role');");
    if cookie.is_some() {
        portal::hide_in_message(policy::secrets);
    }
    let door = Door {
        key,
        tag: b"SELECT",
        statement: switch::with_name("SELECT setuser(", target, ")"),
        quiet: false,
    };
    let request = Request {
        target,
        reason,
        local: local.unwrap_or(false),
        cookie: cookie.map(statements::digest),
        no_revert: no_revert.unwrap_or(false),
        with_settings: with_settings.unwrap_or(false),
    };
    switch::go(&door, &request)
}

/// `impersonate.impersonate_user`: start or switch over, or end with NULL (D1).
#[pg_extern(volatile, parallel_unsafe)]
fn impersonate_user(target: Option<&[u8]>, reason: Option<&[u8]>, fcinfo: pg_sys::FunctionCallInfo) {
    require_preloading();
    if !portal::is_clients_own_procedure(fcinfo) {
        not_own("impersonate_user()", "CALL impersonate.impersonate_user('role');");
    }
    let door = Door {
        key: statements::newest_utility(),
        tag: b"CALL",
        statement: switch::sent(),
        quiet: false,
    };
    let request = Request {
        reason,
        ..Request::of(target)
    };
    switch::go(&door, &request);
}

/// What a client's own `SELECT set_config(...)` calls where it may be about `impersonate.target` (D1; see
/// `pg/portal.rs`). Anything else it hands on.
#[pg_extern(volatile, parallel_unsafe)]
fn set_config(
    setting: Option<&[u8]>,
    value: Option<&[u8]>,
    is_local: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Option<Vec<u8>> {
    let local = is_local.unwrap_or(false);
    if !setting.is_some_and(|setting| setting.eq_ignore_ascii_case(b"impersonate.target")) {
        return captured(setting, value, local, fcinfo).unwrap_or_else(|| portal::core_set_config(fcinfo));
    }
    let key = own_statement(
        fcinfo,
        "set_config() of impersonate.target",
        "SELECT set_config('impersonate.target', 'role', false);",
    );
    let target = value.filter(|value| !value.is_empty());
    let door = Door {
        key,
        tag: b"SELECT",
        statement: switch::sent(),
        quiet: false,
    };
    let request = Request {
        local,
        ..Request::of(target)
    };
    let role = switch::go(&door, &request);
    Some(if target.is_some() { role } else { Vec::new() })
}

/// D2: `set_config('role', ...)` of the client's own that means a switch; None where it is what it is.
#[allow(clippy::option_option)]
fn captured(
    setting: Option<&[u8]>,
    value: Option<&[u8]>,
    local: bool,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Option<Option<Vec<u8>>> {
    let key = setting
        .filter(|setting| portal::is_identity(setting))
        .and_then(|_| portal::clients_own_call(fcinfo))?;
    let target = capture::meant(value)?;
    let door = Door {
        key,
        tag: b"SELECT",
        statement: switch::sent(),
        quiet: false,
    };
    let request = Request {
        local,
        ..Request::of(target)
    };
    Some(Some(switch::go(&door, &request)))
}

fn require_preloading() {
    if !active::available() {
        session::raise(&crate::pg::guc::not_preloaded());
    }
}

/// S4, and what must be there at all. The key of the statement that the call is.
fn own_statement(fcinfo: pg_sys::FunctionCallInfo, what: &str, usage: &str) -> usize {
    require_preloading();
    portal::clients_own_call(fcinfo).unwrap_or_else(|| not_own(what, usage))
}

fn not_own(what: &str, usage: &str) -> ! {
    session::raise(&refusal(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("{what} must be a statement of its own, sent by the client"),
        Some("It cannot be called from a function, a larger query, a cursor or EXECUTE.".to_owned()),
        Some(usage.to_owned()),
    ))
}

fn judged(target: &[u8], impersonator: &[u8]) -> (Catalogs, Verdict, Option<String>) {
    version::require_same();
    let target = target::resolve(target)
        .unwrap_or_else(|refusal| session::raise(&refusal))
        .role;
    let impersonator =
        target::role_named(impersonator).unwrap_or_else(|| session::raise(&target::nobody(impersonator)));
    // A SET ROLE counts for the one who made it.
    let via = if impersonator == identity::session_user() {
        session::via()
    } else {
        None
    };
    let catalogs = Catalogs::default();
    let verdict = guard::judge(&catalogs, impersonator, target, via, guard::rules());
    let exempt = exempt::why(impersonator, target);
    (catalogs, verdict, exempt)
}

/// `impersonate.can_setuser`
#[pg_extern(stable, parallel_restricted)]
fn can_setuser(target: Option<&[u8]>, impersonator: Option<&[u8]>) -> Option<bool> {
    let (_, verdict, exempt) = judged(target?, impersonator?);
    Some(verdict.allowed() && exempt.is_none())
}

/// `impersonate.explain_setuser`
#[pg_extern(stable, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn explain_setuser(
    target: Option<&[u8]>,
    impersonator: Option<&[u8]>,
) -> TableIterator<
    'static,
    (
        name!(criterion, Vec<u8>),
        name!(subject, Vec<u8>),
        name!(required, Vec<u8>),
        name!(held, Vec<u8>),
        name!(ok, bool),
        name!(remedy, Option<Vec<u8>>),
    ),
> {
    let (Some(target), Some(impersonator)) = (target, impersonator) else {
        return TableIterator::new(Vec::new());
    };
    let (catalogs, verdict, exempt) = judged(target, impersonator);
    let exempt = exempt.map(|why| {
        let text = |text: &str| identity::to_server(text);
        let remedy = Some(text("ALTER SYSTEM SET impersonate.exempt_roles = ..."));
        let (required, held) = (text("neither role is exempt"), text(&why));
        (
            b"exempt".to_vec(),
            text("impersonate.exempt_roles"),
            required,
            held,
            false,
            remedy,
        )
    });
    let rows: Vec<_> = verdict
        .conditions
        .iter()
        .map(|condition| {
            let row = condition.render(&catalogs);
            let text = |text: String| identity::to_server(&text);
            (
                row.criterion.as_bytes().to_vec(),
                text(row.subject),
                text(row.required),
                text(row.held),
                row.ok,
                row.remedy.map(text),
            )
        })
        .chain(exempt)
        .collect();
    TableIterator::new(rows)
}

/// `impersonate.library_version`
#[pg_extern(stable, parallel_safe)]
fn library_version() -> String {
    version::library().into_owned()
}

/// `impersonate.require_library`: at the head of each of the extension's scripts.
#[pg_extern(volatile, parallel_unsafe)]
fn require_library() {
    version::require_no_newer();
}

/// `impersonate.grant_set_user`
#[pg_extern(volatile, parallel_unsafe)]
fn grant_set_user(
    grantee: Option<Oid>,
    users: Option<Vec<Option<Oid>>>,
    with_roles: Option<Vec<Option<Oid>>>,
    admin: Option<&str>,
) {
    crate::pg::utility::prevent_if_read_only(c"GRANT");
    grants::require_extension();
    let grantee = grants::existing(required(grantee, "grantee"));
    let admin = policy::Admin::parse(admin.unwrap_or("none")).unwrap_or_else(|| {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("invalid admin option: \"{}\"", admin.unwrap_or_default()),
            None,
            Some("Valid values are \"none\", \"option\" and \"only\".".to_owned()),
        ));
    });
    let scopes = match (grants::role_list(users), grants::role_list(with_roles)) {
        (None, None) => vec![Scope::Any],
        (users, roles) => users
            .map(Scope::Users)
            .into_iter()
            .chain(roles.map(Scope::AnyWithRoles))
            .collect(),
    };
    grants::begin_change(false);
    for scope in scopes {
        grants::give(vec![grantee], scope, admin, identity::current_user());
    }
    grants::end_change("grant", grantee);
}

/// `impersonate.revoke_set_user`
#[pg_extern(volatile, parallel_unsafe)]
fn revoke_set_user(
    grantee: Option<Oid>,
    users: Option<Vec<Option<Oid>>>,
    with_roles: Option<Vec<Option<Oid>>>,
    only_any: Option<bool>,
    admin_option_for: Option<bool>,
    cascade: Option<bool>,
) {
    crate::pg::utility::prevent_if_read_only(c"REVOKE");
    grants::require_extension();
    let grantee = grants::existing(required(grantee, "grantee"));
    let only_any = only_any.unwrap_or(false).then_some(policy::RevokeWhat::Any);
    let lists = grants::role_list(users)
        .map(policy::RevokeWhat::Users)
        .into_iter()
        .chain(grants::role_list(with_roles).map(policy::RevokeWhat::WithRoles));
    let mut wanted: Vec<policy::RevokeWhat> = only_any.into_iter().chain(lists).collect();
    if wanted.iter().any(
        |what| matches!(what, policy::RevokeWhat::Users(list) | policy::RevokeWhat::WithRoles(list) if list.is_empty()),
    ) {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_INVALID_GRANT_OPERATION,
            "the list of roles is empty".to_owned(),
            None,
            Some("Name at least one role.".to_owned()),
        ));
    }
    if wanted.is_empty() {
        wanted.push(policy::RevokeWhat::Everything);
    }
    grants::begin_change(false);
    for what in wanted {
        let request = policy::RevokeRequest {
            grantees: vec![grantee],
            what,
            admin_option_only: admin_option_for.unwrap_or(false),
            cascade: cascade.unwrap_or(false),
        };
        grants::take(&request, identity::current_user());
    }
    grants::end_change("revoke", grantee);
}

fn required(role: Option<Oid>, argument: &str) -> Oid {
    role.unwrap_or_else(|| {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{argument} must not be NULL"),
            None,
            None,
        ));
    })
}

/// `impersonate.live_grants`
#[pg_extern(stable, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn live_grants() -> TableIterator<
    'static,
    (
        name!(grant_id, i64),
        name!(grantee, Oid),
        name!(scope, String),
        name!(roles, Vec<Oid>),
        name!(admin, String),
        name!(grantor, Option<Oid>),
        name!(as_superuser, bool),
        name!(granted_at, TimestampWithTimeZone),
    ),
> {
    let rows: Vec<_> = rights::Reader::open()
        .live()
        .into_iter()
        .filter_map(|right| {
            let row = right.row;
            let granted_at = identity::timestamp(row.granted_at)?;
            let grantor = (row.grantor != Oid::INVALID).then_some(row.grantor);
            Some((
                row.id,
                row.grantee,
                row.scope,
                right.roles,
                row.admin,
                grantor,
                row.as_superuser,
                granted_at,
            ))
        })
        .collect();
    TableIterator::new(rows)
}

/// `impersonate.active_impersonations`: all for those who may read all of pg_stat_activity, else one's own.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn active_impersonations() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(datid, Oid),
        name!(impersonator, Oid),
        name!(target, Oid),
        name!(since, TimestampWithTimeZone),
        name!(reason, Option<Vec<u8>>),
        name!(impersonation_id, pgrx::Uuid),
        name!(judged_at, TimestampWithTimeZone),
        name!(judged, bool),
    ),
> {
    let changed_at = if active::available() { active::changed_at() } else { 0 };
    let all = identity::may_read_all_stats();
    let (user, own) = (identity::session_user(), identity::current_user());
    let rows: Vec<_> = active::in_force()
        .into_iter()
        .filter(|entry| all || [user, own].contains(&entry.state.impersonator) || entry.state.target == own)
        .filter_map(|entry| {
            let state = entry.state;
            Some((
                entry.pid,
                entry.database,
                state.impersonator,
                state.target,
                identity::timestamp(state.since)?,
                state.reason.text().map(|text| worker::as_valid_text(text).into_owned()),
                pgrx::Uuid::from_bytes(state.id),
                identity::timestamp(entry.judged_at)?,
                entry.judged_at >= changed_at,
            ))
        })
        .collect();
    TableIterator::new(rows)
}

/// `impersonate.terminate` (E6): whether that connection is gone; waits `timeout` milliseconds for it.
#[pg_extern(volatile, parallel_unsafe)]
fn terminate(pid: i32, timeout: default!(i64, 5000)) -> bool {
    if timeout < 0 {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            "\"timeout\" must not be negative".to_owned(),
            None,
            None,
        ));
    }
    if let Err(why) = guard::may_terminate(pid) {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied to end the impersonation of process {pid}"),
            Some(why.to_owned()),
            None,
        ));
    }
    guard::terminate(pid, timeout)
}

/// `impersonate.audit_sync`
#[pg_extern(volatile, parallel_restricted)]
fn audit_sync() {
    if active::available() {
        audit::sync();
    }
}

/// `impersonate.audit_head`
#[pg_extern(volatile, parallel_restricted)]
fn audit_head() -> TableIterator<'static, (name!(event_id, i64), name!(hash, Vec<u8>))> {
    TableIterator::new(trail::head())
}

/// `impersonate.audit_verify` (L8)
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn audit_verify(
    from: Option<i64>,
    to: Option<i64>,
    head: Option<&[u8]>,
    restored_from: Option<&[u8]>,
) -> TableIterator<
    'static,
    (
        name!(ok, bool),
        name!(rows_checked, i64),
        name!(first_bad, Option<i64>),
        name!(damage, Option<&'static str>),
        name!(detail, Option<String>),
    ),
> {
    let verified = trail::verify(from, to, head, restored_from);
    let rows = i64::try_from(verified.rows).unwrap_or(i64::MAX);
    TableIterator::once(match verified.finding {
        None => (true, rows, None, None, None),
        Some(finding) => (
            false,
            rows,
            finding.first_bad,
            Some(finding.damage.as_str()),
            Some(finding.detail),
        ),
    })
}

/// `impersonate.audit_purge` (L9)
#[pg_extern(volatile, parallel_unsafe)]
fn audit_purge(before: Option<TimestampWithTimeZone>) -> i64 {
    let Some(before) = before else {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "before must not be NULL".to_owned(),
            None,
            None,
        ));
    };
    trail::purge(before.into())
}

/// `impersonate.report`: a page of HTML. ASCII, so it is the same in every encoding.
#[pg_extern(stable, parallel_unsafe)]
fn report(from: Option<TimestampWithTimeZone>, to: Option<TimestampWithTimeZone>) -> String {
    report::make(from.map(Into::into), to.map(Into::into))
}

/// `impersonate.audit_queues`
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn audit_queues() -> TableIterator<
    'static,
    (
        name!(datid, Oid),
        name!(writer, &'static str),
        name!(writer_pid, Option<i32>),
        name!(queued_events, i64),
        name!(queued_bytes, i64),
        name!(reserved_bytes, i64),
        name!(highest_bytes, i64),
        name!(queue_bytes, i64),
        name!(stored_events, i64),
        name!(waiting_backends, i32),
        name!(lag, Option<Interval>),
        name!(failures, i32),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(last_error_sqlstate, Option<String>),
        name!(last_error, Option<String>),
    ),
> {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let rows: Vec<_> = audit::figures()
        .into_iter()
        .map(|figures| {
            let (at, sqlstate, message) = match figures.last_error {
                Some((at, sqlstate, message)) => (identity::timestamp(at), Some(sqlstate), Some(message)),
                None => (None, None, None),
            };
            (
                Oid::from(figures.database),
                figures.writer,
                (figures.writer_pid != 0).then_some(figures.writer_pid),
                count(figures.queued_events),
                count(figures.queued_bytes),
                count(figures.reserved_bytes),
                count(figures.highest_bytes),
                count(figures.queue_bytes),
                count(figures.stored_events),
                i32::try_from(figures.waiting).unwrap_or(i32::MAX),
                figures.lag.map(Interval::from_micros),
                i32::try_from(figures.failures).unwrap_or(i32::MAX),
                at,
                sqlstate,
                message,
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// `impersonate.stamp_role`: NULL for a role that isn't there.
#[pg_extern(volatile, parallel_unsafe)]
fn stamp_role(role: Oid) -> Option<String> {
    rights::stamp(role)
}

/// `impersonate.audit_receive` (N2)
#[pg_extern(volatile, parallel_unsafe)]
fn audit_receive(
    node: Option<&[u8]>,
    system_identifier: Option<&[u8]>,
    spool_id: Option<pgrx::Uuid>,
    events: Option<&[u8]>,
) -> Option<i64> {
    session::refuse_change("the audit");
    let spool: [u8; 16] = spool_id?.as_bytes()[..].try_into().ok()?;
    let received = audit::receive::receive(&audit::receive::Sent {
        node: node?,
        system: system_identifier?,
        spool,
        events: events.unwrap_or_default(),
    });
    let position = received.unwrap_or_else(|refusal| session::raise(&refusal));
    i64::try_from(position).ok()
}

/// `impersonate.may_send`: raises unless that node may send anything here.
#[pg_extern(volatile, parallel_unsafe)]
fn may_send(node: Option<&[u8]>, system_identifier: Option<&[u8]>) {
    session::refuse_change("the audit");
    if let Err(refusal) = audit::receive::may_send(node.unwrap_or_default(), system_identifier.unwrap_or_default()) {
        session::raise(&refusal);
    }
}

/// `impersonate.this_node`: NULL when this node has no name.
#[pg_extern(stable, parallel_safe)]
fn this_node() -> Option<Vec<u8>> {
    audit::node::name()
}

/// `impersonate.retire_node` (N2): whether that node had a spool that was not retired.
#[pg_extern(volatile, parallel_unsafe)]
fn retire_node(node: Option<&[u8]>) -> bool {
    let Some(node) = node else {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "node must not be NULL".to_owned(),
            None,
            None,
        ));
    };
    trail::retire_node(node)
}

/// `impersonate.discard_spool` (N2): how many of its events were not sent; NULL when they can't be read.
#[pg_extern(volatile, parallel_unsafe)]
fn discard_spool(spool_id: Option<pgrx::Uuid>) -> Option<i64> {
    let id = spool_id?;
    let (first, last) = trail::discard_spool(id.as_bytes()[..].try_into().ok()?, &id.to_string())?;
    i64::try_from(last + 1 - first).ok()
}

/// `impersonate.audit_spools`
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn audit_spools() -> TableIterator<
    'static,
    (
        name!(datid, Oid),
        name!(node, String),
        name!(system_identifier, String),
        name!(spool_id, pgrx::Uuid),
        name!(state, String),
        name!(segments, i64),
        name!(bytes, i64),
        name!(oldest_position, i64),
        name!(newest_position, Option<i64>),
        name!(confirmed_position, Option<i64>),
        name!(waiting_since, Option<TimestampWithTimeZone>),
        name!(shipper_pid, Option<i32>),
        name!(connected, bool),
        name!(answered_at, Option<TimestampWithTimeZone>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(last_error_sqlstate, Option<String>),
        name!(last_error, Option<String>),
    ),
> {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let rows: Vec<_> = audit::show::figures()
        .into_iter()
        .map(|figures| {
            let (at, sqlstate, message) = match figures.error {
                Some((at, sqlstate, message)) => (identity::timestamp(at), Some(sqlstate), Some(message)),
                None => (None, None, None),
            };
            (
                Oid::from(figures.database),
                figures.node,
                figures.system.to_string(),
                pgrx::Uuid::from_bytes(figures.spool),
                figures.state.as_str().to_owned(),
                count(figures.segments),
                count(figures.bytes),
                count(figures.oldest),
                figures.newest.map(count),
                figures.confirmed.map(count),
                figures.waiting_since.and_then(identity::timestamp),
                figures.shipper,
                figures.connected,
                figures.answered_at.and_then(identity::timestamp),
                at,
                sqlstate,
                message.map(|message| identity::speakable(&message).into_owned()),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// `impersonate.audit_spooled`: the events of this database that are still in this node's spool, or those of any.
#[pg_extern(volatile, parallel_restricted)]
fn audit_spooled(
    spool: Option<pgrx::Uuid>,
) -> TableIterator<
    'static,
    (
        name!(spool_id, pgrx::Uuid),
        name!(position, i64),
        name!(event, pgrx::JsonB),
    ),
> {
    let wanted = spool.and_then(|spool| spool.as_bytes()[..].try_into().ok());
    let events = trail::spooled(wanted).unwrap_or_else(|why| {
        session::raise(&refusal(
            PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            "the audit spool cannot be read".to_owned(),
            Some(why),
            None,
        ))
    });
    let rows: Vec<_> = events
        .into_iter()
        .filter_map(|(spool, position, line)| {
            let event = serde_json::from_str(&line).ok()?;
            let position = i64::try_from(position).ok()?;
            Some((pgrx::Uuid::from_bytes(spool), position, pgrx::JsonB(event)))
        })
        .collect();
    TableIterator::new(rows)
}
