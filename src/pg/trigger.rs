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
version_1!(pg_finfo_grant_lives_wrapper);

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
        let (column, stamps, null) = (9, row.stamps.into_datum().unwrap_or(Datum::null()), false);
        let new = pg_sys::heap_modify_tuple_by_cols(
            tuple,
            (*relation).rd_att,
            1,
            &raw const column as *mut _,
            &raw const stamps as *mut _,
            &raw const null as *mut _,
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
    let role = if row.role == Oid::INVALID { None } else { Some(rights::stamp(row.role)?) };
    row.stamps = [grantee, grantor].into_iter().chain(role).collect();
    Some(row)
}

/// `impersonate.grant_lives`: whether a row of the rights table counts.
///
/// # Safety
/// Called by the server, with a row of that table.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn grant_lives_wrapper(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: declared STRICT with one argument of the table's row type, whose descriptor the datum names.
    unsafe {
        let header = pg_sys::pg_detoast_datum((*(*fcinfo).args.as_ptr()).value.cast_mut_ptr())
            .cast::<pg_sys::HeapTupleHeaderData>();
        let (row_type, modifier) = ((*header).t_choice.t_datum.datum_typeid, (*header).t_choice.t_datum.datum_typmod);
        let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(row_type, modifier);
        let mut tuple = pg_sys::HeapTupleData {
            t_len: (*header).t_choice.t_datum.datum_len_ as u32 >> 2,
            t_data: header,
            ..Default::default()
        };
        let row = rights::row(&raw mut tuple, descriptor);
        Datum::from(row.is_some_and(|row| row.lives()))
    }
}
