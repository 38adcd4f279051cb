//! The version of the extension that this database has, as CREATE or ALTER EXTENSION noted it.

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::FromDatum;

/// pg_extension_name_index, and the columns extname and extversion (pg_extension.h; the same in all versions).
const BY_NAME: u32 = 3081;
const NAME: i16 = 2;
const VERSION: i32 = 6;

/// None where the extension isn't created.
pub fn created() -> Option<String> {
    // SAFETY: a look-up in a transaction, by the name that the key's function compares; relation and scan are closed on
    // the way out, on error by the server's own cleanup. The tuple is read before the scan goes.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
        pg_sys::ScanKeyInit(
            &raw mut key,
            NAME,
            pg_sys::BTEqualStrategyNumber as u16,
            Oid::from(pg_sys::F_NAMEEQ),
            Datum::from(c"impersonate".as_ptr()),
        );
        let none = std::ptr::null_mut();
        let scan = pg_sys::systable_beginscan(relation, Oid::from(BY_NAME), true, none, 1, &raw mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let version = if tuple.is_null() {
            None
        } else {
            let mut is_null = false;
            let value = pg_sys::heap_getattr(tuple, VERSION, (*relation).rd_att, &mut is_null);
            Vec::<u8>::from_datum(value, is_null).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        version
    }
}
