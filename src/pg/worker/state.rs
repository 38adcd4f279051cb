//! The one row of a small table of the extension, which its writer rewrites with each batch.
//!
//! The writer knows where the row's newest version is, and goes straight there: under a reader's old snapshot versions
//! pile up that nobody may remove yet, and a search would read them all, each time. So the table has no index.

use super::rows::{extension_relation, refuse};
use crate::pg::version;
use pgrx::pg_sys::{self, Datum};
use pgrx::{FromDatum, IntoDatum};
use std::ffi::CStr;

/// The table: schema and extension have the same name.
pub struct StateTarget {
    pub extension: &'static CStr,
    pub table: &'static CStr,
    /// Returns (tid, bigint, bytea, bigint): where the row is, and the row.
    pub read: &'static CStr,
}

/// What the row says.
pub struct State {
    pub event_id: i64,
    pub hash: Vec<u8>,
    pub stored_id: i64,
}

/// Where the row's newest version is.
#[derive(Clone, Copy)]
pub struct Place(pg_sys::ItemPointerData);

/// The table, open and locked for writing until the transaction ends.
pub struct StateTable {
    target: &'static StateTarget,
    relation: pg_sys::Relation,
}

/// As the script makes it.
const TYPES: [pg_sys::Oid; 3] = [pg_sys::INT8OID, pg_sys::BYTEAOID, pg_sys::INT8OID];

impl StateTable {
    /// Opens the table, inside `worker::transaction`. `None` when the extension or the table doesn't exist.
    pub fn open(target: &'static StateTarget) -> Option<StateTable> {
        // SAFETY: in a transaction; closed by `write` or by the transaction's abort. The descriptor stays while it is
        // open.
        unsafe {
            let relation = extension_relation(target.extension, target.table)?;
            let descriptor = (*relation).rd_att;
            // A dropped column has no type.
            let types = (1..=(*descriptor).natts as i16).map(|number| pg_sys::get_atttype((*relation).rd_id, number));
            if !types.eq(TYPES) {
                refuse(target.extension, target.table, "its columns were changed");
            }
            Some(StateTable { target, relation })
        }
    }

    /// Looks for the row. Inside SPI.
    pub fn read(&self) -> Option<(Place, State)> {
        // SAFETY: a constant statement, whose columns have these types; the table of results is freed after copying.
        unsafe {
            let done = pg_sys::SPI_execute(self.target.read.as_ptr(), false, 1);
            if done != pg_sys::SPI_OK_SELECT as i32 {
                pgrx::error!("unexpected result of a statement of the audit writer: {done}");
            }
            if pg_sys::SPI_processed == 0 {
                return None;
            }
            let table = pg_sys::SPI_tuptable;
            let row = *(*table).vals;
            let column = |number| {
                let mut is_null = true;
                let datum = pg_sys::SPI_getbinval(row, (*table).tupdesc, number, &mut is_null);
                (datum, is_null)
            };
            let (place, _) = column(1);
            let number = |at| i64::from_datum(column(at).0, column(at).1).unwrap_or_default();
            let found = (
                Place(*place.cast_mut_ptr::<pg_sys::ItemPointerData>()),
                State {
                    event_id: number(2),
                    hash: Vec::<u8>::from_datum(column(3).0, column(3).1).unwrap_or_default(),
                    stored_id: number(4),
                },
            );
            pg_sys::SPI_freetuptable(table);
            Some(found)
        }
    }

    /// Writes the row: over the one at `place`, or as the first. Returns where it is once the transaction has
    /// committed.
    pub fn write(self, place: Option<Place>, state: &State) -> Place {
        let mut values = [
            Datum::from(state.event_id),
            state.hash.as_slice().into_datum().unwrap_or(Datum::null()),
            Datum::from(state.stored_id),
        ];
        let mut nulls = [false; 3];
        // SAFETY: values of the descriptor's types. What was committed at `place` is fetched before it is written over:
        // the server takes for granted that there is a row. What the active snapshot sees stays there meanwhile.
        unsafe {
            let tuple = pg_sys::heap_form_tuple((*self.relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            match place {
                Some(Place(mut place)) => {
                    if !is_there(self.relation, place) {
                        pgrx::error!("the row of a table of the audit was changed by force");
                    }
                    version::update_tuple(self.relation, &mut place, tuple);
                }
                None => pg_sys::simple_heap_insert(self.relation, tuple),
            }
            let place = Place((*tuple).t_self);
            pg_sys::heap_freetuple(tuple);
            self.close();
            place
        }
    }

    /// Ends what `open` began.
    pub fn close(self) {
        // SAFETY: opened by `open`; the lock stays until the transaction's end.
        unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
    }
}

/// Whether the transaction sees a row there.
unsafe fn is_there(relation: pg_sys::Relation, place: pg_sys::ItemPointerData) -> bool {
    let mut tuple = pg_sys::HeapTupleData {
        t_self: place,
        ..Default::default()
    };
    let mut buffer = 0;
    // SAFETY: the relation is open, a snapshot is active; the buffer is released when something was found.
    unsafe {
        let found = pg_sys::heap_fetch(relation, pg_sys::GetActiveSnapshot(), &mut tuple, &mut buffer, false);
        if found {
            pg_sys::ReleaseBuffer(buffer);
        }
        found
    }
}
