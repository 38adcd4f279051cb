//! Reading parse and plan trees.

use pgrx::pg_sys;
use std::ffi::c_void;

/// The pointers of a list; none for the null list.
///
/// # Safety
/// `list` is null or a valid list of pointers that stays while the answer is used.
pub unsafe fn list_pointers(list: *mut pg_sys::List) -> impl Iterator<Item = *mut c_void> {
    // SAFETY: the caller's promise.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: elements[0..length] are initialised.
    (0..length).map(move |i| unsafe { (*(*list).elements.add(i as usize)).ptr_value })
}

/// The integers of a list; none for the null list.
///
/// # Safety
/// `list` is null or a valid list of integers that stays while the answer is used.
pub unsafe fn list_integers(list: *mut pg_sys::List) -> impl Iterator<Item = i32> {
    // SAFETY: the caller's promise.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: elements[0..length] are initialised.
    (0..length).map(move |i| unsafe { (*(*list).elements.add(i as usize)).int_value })
}

/// The oids of a list; none for the null list.
///
/// # Safety
/// `list` is null or a valid list of oids that stays while the answer is used.
pub unsafe fn list_oids(list: *mut pg_sys::List) -> impl Iterator<Item = pg_sys::Oid> {
    // SAFETY: the caller's promise.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: elements[0..length] are initialised.
    (0..length).map(move |i| unsafe { (*(*list).elements.add(i as usize)).oid_value })
}

/// The tag of a node, or None for null.
///
/// # Safety
/// `node` is null or points at a node.
pub unsafe fn tag<T>(node: *const T) -> Option<pg_sys::NodeTag> {
    if node.is_null() {
        return None;
    }
    // SAFETY: every node begins with its tag.
    Some(unsafe { (*node.cast::<pg_sys::Node>()).type_ })
}
