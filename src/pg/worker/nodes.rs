//! What the primary has of the spools of its standbys: `impersonate.audit_node`, which the writer alone writes, in the
//! transaction that stores the rows.

use super::rows::{expect, extension_relation};
use pgrx::pg_sys::{self, Datum};
use pgrx::{FromDatum, IntoDatum};
use std::ffi::CStr;

/// A spool that the table knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub spool: [u8; 16],
    pub node: Vec<u8>,
    /// Up to here its events are in the audit.
    pub position: u64,
    /// The spool's hash, of that event.
    pub hash: Vec<u8>,
    /// Nothing of it is taken any more.
    pub retired: bool,
}

const READ: &CStr = c"
    SELECT spool_id, node, position, hash, retired_at IS NOT NULL FROM impersonate.audit_node";

const RECORD: &CStr = c"
    INSERT INTO impersonate.audit_node AS n (spool_id, node, position, hash) VALUES ($1, $2, $3, $4)
    ON CONFLICT (spool_id) DO UPDATE
       SET position = excluded.position, hash = excluded.hash, received_at = pg_catalog.clock_timestamp()";

const RETIRE: &CStr = c"
    UPDATE impersonate.audit_node SET retired_at = pg_catalog.clock_timestamp() WHERE spool_id = $1";

/// All of them, inside SPI. None when there is no such table.
pub fn known() -> Option<Vec<Known>> {
    if !exists() {
        return None;
    }
    // SAFETY: a constant statement, whose columns have these types; values are copied before the results are freed.
    unsafe {
        let done = pg_sys::SPI_execute(READ.as_ptr(), true, 0);
        expect(done, pg_sys::SPI_OK_SELECT);
        let table = pg_sys::SPI_tuptable;
        let found = (0..pg_sys::SPI_processed as usize).filter_map(|at| {
            let row = *(*table).vals.add(at);
            let column = |number| {
                let mut is_null = true;
                let datum = pg_sys::SPI_getbinval(row, (*table).tupdesc, number, &mut is_null);
                (datum, is_null)
            };
            let bytes = |number| Vec::<u8>::from_datum(column(number).0, column(number).1);
            let (spool, no_spool) = column(1);
            Some(Known {
                spool: if no_spool {
                    None
                } else {
                    Some(*spool.cast_mut_ptr::<[u8; 16]>())
                }?,
                node: bytes(2)?,
                position: u64::try_from(i64::from_datum(column(3).0, column(3).1)?).ok()?,
                hash: bytes(4)?,
                retired: bool::from_datum(column(5).0, column(5).1)?,
            })
        });
        let found = found.collect();
        pg_sys::SPI_freetuptable(table);
        Some(found)
    }
}

/// Whether the table is there, and is the extension's.
fn exists() -> bool {
    // SAFETY: in a transaction; closed at once, the lock stays until its end.
    unsafe {
        match extension_relation(c"impersonate", c"audit_node") {
            Some(relation) => {
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                true
            }
            None => false,
        }
    }
}

/// Notes that events up to `position` are stored. In the writer, inside SPI.
pub fn record(node: &Known) {
    let position = i64::try_from(node.position).unwrap_or(i64::MAX);
    let mut types = [pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::INT8OID, pg_sys::BYTEAOID];
    let mut id = node.spool;
    let mut values = [
        Datum::from(id.as_mut_ptr()),
        // The two have the same form.
        node.node.as_slice().into_datum().unwrap_or(Datum::null()),
        Datum::from(position),
        node.hash.as_slice().into_datum().unwrap_or(Datum::null()),
    ];
    // SAFETY: a constant statement with as many arguments, of these types, which live until it is done.
    unsafe {
        let done = pg_sys::SPI_execute_with_args(
            RECORD.as_ptr(),
            4,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            std::ptr::null(),
            false,
            0,
        );
        expect(done, pg_sys::SPI_OK_INSERT);
    }
}

/// Notes that a spool is at its end. In the writer, inside SPI.
pub fn retire(spool: &[u8; 16]) {
    let mut id = *spool;
    let (mut types, mut values) = ([pg_sys::UUIDOID], [Datum::from(id.as_mut_ptr())]);
    // SAFETY: as above.
    unsafe {
        let done = pg_sys::SPI_execute_with_args(
            RETIRE.as_ptr(),
            1,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            std::ptr::null(),
            false,
            0,
        );
        expect(done, pg_sys::SPI_OK_UPDATE);
    }
}
