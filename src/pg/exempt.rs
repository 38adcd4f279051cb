//! What `impersonate.exempt_roles` is about: lists of names, and who belongs to a role.

use pgrx::pg_sys::{self, Oid};
use std::ffi::{c_char, CStr, CString};

/// The names of a list, as the server reads lists of names; None when it is none.
pub fn entries(list: &[u8]) -> Option<Vec<Vec<u8>>> {
    extern "C-unwind" {
        fn SplitIdentifierString(raw: *mut c_char, separator: c_char, names: *mut *mut pg_sys::List) -> bool;
    }
    let list = CString::new(list).ok()?;
    // SAFETY: the function scribbles on its argument, a copy; the names are parts of that.
    unsafe {
        let copy = pg_sys::pstrdup(list.as_ptr());
        let mut names: *mut pg_sys::List = std::ptr::null_mut();
        let fine = pg_sys::ffi::pg_guard_ffi_boundary(|| SplitIdentifierString(copy, b',' as c_char, &raw mut names));
        fine.then(|| {
            super::nodes::list_pointers(names)
                .map(|name| CStr::from_ptr(name.cast()).to_bytes().to_vec())
                .collect()
        })
    }
}

/// Whether a role is another or a member of it, superusers only where they are one.
pub fn is_member(role: Oid, group: Oid) -> bool {
    // SAFETY: catalog look-ups in a transaction.
    unsafe { pg_sys::is_member_of_role_nosuper(role, group) }
}

/// Whether a role has the attribute.
pub fn bypasses_rls(role: Oid) -> bool {
    // SAFETY: the tuple is released before its answer is used.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as i32, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return false;
        }
        let bypasses = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>()).rolbypassrls;
        pg_sys::ReleaseSysCache(tuple);
        bypasses
    }
}

/// Who owns the extension here, where it is created: whoever owns its schema's table of rights.
pub fn extension_owner() -> Option<Oid> {
    let table = super::rights::extension_table(c"set_user_grant")?;
    // SAFETY: as above.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, pg_sys::Datum::from(table));
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}
