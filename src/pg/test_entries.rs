//! Entries for the attack tests alone: a library with them is never installed for use.

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};

#[no_mangle]
#[doc(hidden)]
pub extern "C" fn pg_finfo_impersonate_test_put_in_force() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `(role oid) RETURNS void`: puts a role in force behind the settings' back, as a bug of ours would (X2).
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn impersonate_test_put_in_force(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: declared STRICT with one argument.
    let role = unsafe { Oid::from((*(*fcinfo).args.as_ptr()).value.value() as u32) };
    super::identity::put_in_force(Some((role, super::identity::superuser(role))));
    Datum::null()
}

#[no_mangle]
#[doc(hidden)]
pub extern "C" fn pg_finfo_impersonate_test_event() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `(time timestamptz, count integer) RETURNS void`: so many events of that time, as if clocks could be turned.
///
/// # Safety
/// Called by the server.
#[no_mangle]
#[pg_guard]
pub unsafe extern "C-unwind" fn impersonate_test_event(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    use crate::audit::{self, Event, Kind};
    // SAFETY: declared STRICT with two arguments of these types.
    let (time, count) = unsafe {
        let arguments = (*fcinfo).args.as_slice(2);
        (arguments[0].value.value() as i64, arguments[1].value.value() as i32)
    };
    for _ in 0..count {
        audit::push(&Event {
            time,
            user_name: b"test",
            session_user_name: b"test",
            role_name: b"test",
            client_addr: None,
            command_tag: Some(b"SELECT"),
            statement: Some(b"SELECT abalance FROM pgbench_accounts WHERE aid = $1"),
            ..crate::statements::blank_event(Kind::Statement)
        });
    }
    Datum::null()
}
