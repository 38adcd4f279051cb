//! The trigger functions, which want the trigger's own data.

use super::rights::{self, Row};
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{ereport, pg_guard, IntoDatum, PgLogLevel, PgSqlErrorCode};
use std::cell::Cell;

macro_rules! version_1 {
    ($name:ident) => {
        #[no_mangle]
        #[doc(hidden)]
        pub extern "C" fn $name() -> &'static pg_sys::Pg_finfo_record {
            const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }
    };
}

version_1!(pg_finfo_stamp_grant_wrapper);
version_1!(pg_finfo_audit_guard_wrapper);
version_1!(pg_finfo_rights_changed_wrapper);
version_1!(pg_finfo_projects_changed_wrapper);
version_1!(pg_finfo_project_dropped_wrapper);

unsafe fn trigger_data(fcinfo: pg_sys::FunctionCallInfo) -> *mut pg_sys::TriggerData {
    // SAFETY: the caller's own fcinfo; a trigger call carries its data as context.
    unsafe {
        let context = (*fcinfo).context;
        if super::nodes::tag(context) != Some(pg_sys::NodeTag::T_TriggerData) {
            ereport!(
                PgLogLevel::ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "must be called as a trigger"
            );
        }
        context.cast()
    }
}

/// `impersonate.audit_guard`: nobody but the writer changes the audit (L8).
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn audit_guard_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the caller's promise.
    unsafe { trigger_data(fcinfo) };
    if !crate::audit::is_writer() {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "impersonate.audit is written by the audit writer alone"
        );
    }
    Datum::null()
}

/// What is done when rights were changed by hand. May raise.
static CHANGED: Process<Option<fn()>> = Process(Cell::new(None));

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

/// To be called while libraries are preloaded.
pub fn install(rights_changed: fn()) {
    CHANGED.0.set(Some(rights_changed));
}

/// `impersonate.rights_changed`: other sessions learn of it, and active impersonations are judged again (E2, E5).
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn rights_changed_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the caller's promise; the trigger's relation is open.
    unsafe {
        let relation = (*trigger_data(fcinfo)).tg_relation;
        if Some((*relation).rd_id) != rights::extension_table(c"set_user_grant") {
            ereport!(
                PgLogLevel::ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "must be called for impersonate.set_user_grant"
            );
        }
        pg_sys::CacheInvalidateRelcache(relation);
    }
    // Our own statements are judged as a whole.
    if let (Some(changed), false) = (CHANGED.0.get(), super::store::is_ours()) {
        changed();
    }
    Datum::null()
}

/// `impersonate.stamp_grant`: a restored right gets this cluster's stamps; one whose roles are gone is left out (G7).
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn stamp_grant_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: a BEFORE INSERT row trigger on the rights table, which the extension's script makes; checked again here.
    unsafe {
        let data = trigger_data(fcinfo);
        let row_insert = (*data).tg_event & (pg_sys::TRIGGER_EVENT_OPMASK | pg_sys::TRIGGER_EVENT_ROW)
            == pg_sys::TRIGGER_EVENT_INSERT | pg_sys::TRIGGER_EVENT_ROW;
        let relation = (*data).tg_relation;
        if !row_insert || Some((*relation).rd_id) != rights::extension_table(c"set_user_grant") {
            ereport!(
                PgLogLevel::ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "must be called for an INSERT into impersonate.set_user_grant"
            );
        }
        let tuple = (*data).tg_trigtuple;
        let Some(row) = rights::row(tuple, (*relation).rd_att) else {
            return Datum::from(tuple);
        };
        let Some(row) = by_name(row).and_then(stamped) else {
            return Datum::null();
        };
        let columns = [2, 4, 6, 9];
        let values = [
            Datum::from(row.grantee),
            Datum::from(row.role),
            Datum::from(row.grantor),
            row.stamps.into_datum().unwrap_or(Datum::null()),
        ];
        let nulls = [false; 4];
        let new = pg_sys::heap_modify_tuple_by_cols(
            tuple,
            (*relation).rd_att,
            4,
            columns.as_ptr().cast_mut(),
            values.as_ptr().cast_mut(),
            nulls.as_ptr().cast_mut(),
        );
        Datum::from(new)
    }
}

/// A row of a dump has names in place of OIDs; one whose roles aren't all here is left out, with a warning.
fn by_name(mut row: Row) -> Option<Row> {
    if row.grantee != Oid::INVALID {
        return Some(row);
    }
    let find = |place: usize| {
        let name = row.stamps.get(place).map_or("", String::as_str);
        let role = std::ffi::CString::new(name)
            .ok()
            .and_then(|name| super::identity::role_named(&name));
        if role.is_none() && !name.is_empty() {
            ereport!(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("role \"{name}\" does not exist, a SET USER right that names it is left out")
            );
        }
        role
    };
    row.grantee = find(0)?;
    row.grantor = if row.as_superuser {
        let name = row.stamps.get(1).map_or("", String::as_str);
        let role = std::ffi::CString::new(name)
            .ok()
            .and_then(|name| super::identity::role_named(&name));
        role.unwrap_or(Oid::INVALID)
    } else {
        find(1)?
    };
    if row.scope != "any" {
        row.role = find(2)?;
    }
    Some(row)
}

/// The row with the stamps of the roles that exist; None when nothing of it would live.
fn stamped(mut row: Row) -> Option<Row> {
    // The stamp of a role that is gone; no role bears it.
    const GONE: &str = "";
    let grantee = rights::stamp(row.grantee)?;
    let grantor = match (row.grantor != Oid::INVALID)
        .then(|| rights::stamp(row.grantor))
        .flatten()
    {
        Some(stamp) => stamp,
        None if row.as_superuser => GONE.to_owned(),
        None => return None,
    };
    let role = if row.role == Oid::INVALID {
        None
    } else {
        Some(rights::stamp(row.role)?)
    };
    row.stamps = [grantee, grantor].into_iter().chain(role).collect();
    Some(row)
}

/// `impersonate.projects_changed`: sessions that a project limits read it again.
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn projects_changed_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the caller's promise; the trigger's relation is open.
    unsafe {
        let data = trigger_data(fcinfo);
        pg_sys::CacheInvalidateRelcache((*data).tg_relation);
    }
    Datum::null()
}

/// `impersonate.project_dropped`: what is dropped leaves its projects, so that a later relation with its OID isn't in
/// them. Whoever drops needs no privilege on the table, and may be impersonated.
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn project_dropped_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the caller's promise.
    let context = unsafe { (*fcinfo).context };
    // SAFETY: null or a node.
    if unsafe { super::nodes::tag(context) } != Some(pg_sys::NodeTag::T_EventTriggerData) {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            "must be called as an event trigger"
        );
    }
    super::store::forget_dropped();
    Datum::null()
}
