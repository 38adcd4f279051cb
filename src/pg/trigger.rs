//! The trigger functions, which want the trigger's own data.

use super::rights::{self, Row};
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{ereport, pg_guard, IntoDatum, PgLogLevel, PgSqlErrorCode};

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
        let Some(row) = rights::row(tuple, (*relation).rd_att) else { return Datum::from(tuple) };
        let Some(row) = stamped(row) else { return Datum::null() };
        let columns = [4, 9];
        let values = [regroles(row.roles), row.stamps.into_datum().unwrap_or(Datum::null())];
        let nulls = [false, false];
        let new = pg_sys::heap_modify_tuple_by_cols(
            tuple,
            (*relation).rd_att,
            2,
            columns.as_ptr().cast_mut(),
            values.as_ptr().cast_mut(),
            nulls.as_ptr().cast_mut(),
        );
        Datum::from(new)
    }
}

/// The row with the stamps of the roles that exist; None when nothing of it would live.
fn stamped(mut row: Row) -> Option<Row> {
    // The stamp of a role that is gone; no role bears it.
    const GONE: &str = "";
    let grantee = rights::stamp(row.grantee)?;
    let grantor = match rights::stamp(row.grantor) {
        Some(stamp) => stamp,
        None if row.as_superuser => GONE.to_owned(),
        None => return None,
    };
    let (roles, stamps): (Vec<Oid>, Vec<String>) =
        row.roles.iter().filter_map(|&role| Some((role, rights::stamp(role)?))).unzip();
    if row.scope != "any" && roles.is_empty() {
        return None;
    }
    row.roles = roles;
    row.stamps = [grantee, grantor].into_iter().chain(stamps).collect();
    Some(row)
}

/// A regrole[]: its elements print as names, which is what pg_dump needs.
unsafe fn regroles(roles: Vec<Oid>) -> Datum {
    let datum = if roles.is_empty() {
        // SAFETY: allocates.
        Datum::from(unsafe { pg_sys::construct_empty_array(pg_sys::REGROLEOID) })
    } else {
        roles.into_datum().unwrap_or(Datum::null())
    };
    // SAFETY: a fresh array; regrole is oid by another name.
    unsafe { (*datum.cast_mut_ptr::<pg_sys::ArrayType>()).elemtype = pg_sys::REGROLEOID };
    datum
}
