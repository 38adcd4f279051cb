//! Rows on their way into a table of the extension, many with one statement.
//!
//! A batch of rows is one parameter, an array of the table's own row type, so that the table's columns may stand in any
//! order and more of them may come. The worker does this as the bootstrap superuser: so it stores only in a table that
//! belongs to the extension and to a superuser. A table that somebody else made under the same name after the extension
//! was dropped could bring triggers.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{function_name, pg_sys, FromDatum, PgLogLevel, PgSqlErrorCode};
use std::cell::{Cell, RefCell};
use std::ffi::CStr;

/// Where rows go.
pub struct Target {
    /// Its schema has the same name.
    pub extension: &'static CStr,
    pub table: &'static CStr,
    /// Name and type of each column that is written.
    pub columns: &'static [(&'static CStr, u32)],
    /// Inserts the rows of `$1`, an array of the row type.
    pub insert: &'static CStr,
    /// Returns one row, (bigint, bytea): the newest.
    pub newest: &'static CStr,
}

/// A value for a column.
#[derive(Clone, Copy)]
pub enum Field<'a> {
    Null,
    /// `bigint` and `integer`.
    Integer(i64),
    Timestamp(i64),
    /// Microseconds.
    Interval(i64),
    Uuid([u8; 16]),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    TextArray(&'a [Option<&'a [u8]>]),
    Parsed(Parsed<'a>),
}

/// What an input function made of a text, and how its type prints it.
#[derive(Clone, Copy)]
pub struct Parsed<'a> {
    datum: pg_sys::Datum,
    pub text: &'a [u8],
}

/// A target as the worker remembers it between transactions.
pub struct Store {
    target: &'static Target,
    known: Option<Known>,
}

struct Known {
    relation: pg_sys::Oid,
    row_type: pg_sys::Oid,
    /// For each column of the target its place in the row, from 0.
    places: Vec<usize>,
    insert: pg_sys::SPIPlanPtr,
    newest: pg_sys::SPIPlanPtr,
}

/// A target, open and locked for insertion until the transaction ends.
pub struct Open<'s> {
    known: &'s Known,
    relation: pg_sys::Relation,
    /// It wasn't opened before, since the start or the last error, or it is another table than it was.
    pub is_new: bool,
}

/// The extension exists in this database. Needs a transaction.
pub fn extension_exists(name: &CStr) -> bool {
    // SAFETY: a C string; missing is allowed.
    unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) != pg_sys::InvalidOid }
}

/// Keeps the extension from being dropped until the transaction ends, and says whether it is there. DROP EXTENSION locks
/// the extension before its tables, so whoever does the same never holds a table that it waits for.
pub fn hold_extension(name: &CStr) -> bool {
    // SAFETY: in a transaction; a lock on an object that may be gone when it is got, which is looked at again.
    unsafe {
        let extension = pg_sys::get_extension_oid(name.as_ptr(), true);
        if extension == pg_sys::InvalidOid {
            return false;
        }
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, pg_sys::AccessShareLock as _);
        pg_sys::get_extension_oid(name.as_ptr(), true) == extension
    }
}

impl Store {
    pub const fn new(target: &'static Target) -> Self {
        Store { target, known: None }
    }

    /// Opens the table, inside `worker::transaction`. `None` when the extension or the table doesn't exist.
    pub fn open(&mut self) -> Option<Open<'_>> {
        let target = self.target;
        // SAFETY: in a transaction. The relation is closed by `Open` or by the transaction's abort.
        let (relation, oid, row_type) = unsafe {
            let relation = extension_relation(target.extension, target.table)?;
            (relation, (*relation).rd_id, (*(*relation).rd_rel).reltype)
        };
        let is_new = !self
            .known
            .as_ref()
            .is_some_and(|known| known.relation == oid && known.row_type == row_type);
        if is_new {
            self.forget();
            self.known = Some(Known::learn(target, oid, row_type));
        }
        self.known.as_ref().map(|known| Open {
            known,
            relation,
            is_new,
        })
    }

    /// To be called after an error: what is remembered may be out of date.
    pub fn forget(&mut self) {
        KNOWN.with_borrow_mut(Vec::clear);
        if let Some(known) = self.known.take() {
            // SAFETY: plans that SPI_keepplan kept, used by nobody else.
            unsafe {
                pg_sys::SPI_freeplan(known.insert);
                pg_sys::SPI_freeplan(known.newest);
            }
        }
    }
}

/// Opens a table of the extension, which has a schema of its own name, and locks it for insertion until the transaction
/// ends. `None` when the extension or the table doesn't exist; raises when the table isn't as the extension made it.
///
/// # Safety
/// In a transaction; the caller closes it.
pub(super) unsafe fn extension_relation(name: &CStr, table: &CStr) -> Option<pg_sys::Relation> {
    // SAFETY: catalog lookups with C strings. The relation is locked until the transaction ends.
    unsafe {
        let schema = pg_sys::get_namespace_oid(name.as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        let oid = pg_sys::get_relname_relid(table.as_ptr(), schema);
        if oid == pg_sys::InvalidOid {
            return None;
        }
        // What asks for the extension has no cache. A table that belonged to it is no stranger's as long as it is that
        // one: with the extension it goes itself.
        let is_known = KNOWN.with_borrow(|known| known.contains(&oid));
        let extension = if is_known {
            pg_sys::InvalidOid
        } else {
            pg_sys::get_extension_oid(name.as_ptr(), true)
        };
        if !is_known && extension == pg_sys::InvalidOid {
            return None;
        }
        let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
        if !is_known && pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, oid) != extension {
            refuse(name, table, "it does not belong to the extension");
        }
        let form = &*(*relation).rd_rel;
        if !pg_sys::superuser_arg(form.relowner) {
            refuse(name, table, "its owner is not a superuser");
        }
        if ![pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE].contains(&(form.relkind as u8)) {
            refuse(name, table, "it is not a table");
        }
        if !is_known {
            KNOWN.with_borrow_mut(|known| known.push(oid));
        }
        Some(relation)
    }
}

thread_local! {
    /// Tables that were found to belong to the extension since the last error.
    static KNOWN: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Raises that a table is not what the writer writes into.
pub(super) fn refuse(schema: &CStr, table: &CStr, why: &str) -> ! {
    let (schema, table) = (schema.to_string_lossy(), table.to_string_lossy());
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {schema}.{table} cannot be used: {why}"),
        function_name!(),
    )
    .report(PgLogLevel::ERROR);
    unreachable!("an error was raised")
}

impl Known {
    fn learn(target: &'static Target, relation: pg_sys::Oid, row_type: pg_sys::Oid) -> Self {
        let places = target
            .columns
            .iter()
            .map(|(name, type_oid)| {
                // SAFETY: catalog lookups of a relation that is open.
                let (number, actual) = unsafe {
                    let number = pg_sys::get_attnum(relation, name.as_ptr());
                    (number, pg_sys::get_atttype(relation, number))
                };
                match usize::try_from(number) {
                    Ok(number @ 1..) if actual.to_u32() == *type_oid => number - 1,
                    _ => refuse(
                        target.extension,
                        target.table,
                        &format!("column {} is missing or of another type", name.to_string_lossy()),
                    ),
                }
            })
            .collect();
        // SAFETY: prepares constant statements; the array type is looked up for a row type that exists.
        unsafe {
            let array_type = pg_sys::get_array_type(row_type);
            Known {
                relation,
                row_type,
                places,
                insert: prepare(target.insert, &mut [array_type]),
                newest: prepare(target.newest, &mut []),
            }
        }
    }
}

/// # Safety
/// Inside SPI. The types exist.
unsafe fn prepare(statement: &CStr, types: &mut [pg_sys::Oid]) -> pg_sys::SPIPlanPtr {
    // SAFETY: as promised; a plan that couldn't be made raised, or is null.
    unsafe {
        let plan = pg_sys::SPI_prepare(statement.as_ptr(), types.len() as i32, types.as_mut_ptr());
        if plan.is_null() {
            let result = pg_sys::SPI_result;
            pgrx::error!("could not prepare a statement of the audit writer: {result}");
        }
        pg_sys::SPI_keepplan(plan);
        plan
    }
}

impl<'s> Open<'s> {
    /// The table, to tell it from another of the same name.
    pub fn relation(&self) -> u32 {
        self.known.relation.to_u32()
    }

    /// What the target's `newest` returns: the number, and the bytes if they aren't NULL.
    pub fn newest(&self) -> Option<(i64, Option<Vec<u8>>)> {
        // SAFETY: a kept plan without parameters, inside SPI; its result is a row of (bigint, bytea), or none.
        unsafe {
            let done = pg_sys::SPI_execute_plan(self.known.newest, std::ptr::null_mut(), std::ptr::null(), false, 1);
            expect(done, pg_sys::SPI_OK_SELECT);
            if pg_sys::SPI_processed == 0 {
                return None;
            }
            let table = pg_sys::SPI_tuptable;
            let row = *(*table).vals;
            let (mut no_number, mut no_bytes) = (true, true);
            let number = pg_sys::SPI_getbinval(row, (*table).tupdesc, 1, &mut no_number);
            let bytes = pg_sys::SPI_getbinval(row, (*table).tupdesc, 2, &mut no_bytes);
            let result = (
                i64::from_datum(number, no_number).unwrap_or_default(),
                <&[u8]>::from_datum(bytes, no_bytes).map(<[u8]>::to_vec),
            );
            pg_sys::SPI_freetuptable(table);
            Some(result)
        }
    }

    /// Begins a batch. Its memory is freed when the transaction ends.
    pub fn batch(self, rows: usize) -> Batch<'s> {
        // SAFETY: the relation is open; its descriptor stays while it is.
        let width = usize::try_from(unsafe { (*(*self.relation).rd_att).natts }).unwrap_or_default();
        Batch {
            values: RefCell::new((vec![pg_sys::Datum::from(0); width], vec![true; width])),
            rows: RefCell::new(Vec::with_capacity(rows)),
            chunk: Cell::new((std::ptr::null_mut(), 0)),
            open: self,
        }
    }

    /// Ends what `Store::open` began, without a batch.
    pub fn close(self) {
        // SAFETY: opened by `Store::open`; the lock stays until the transaction's end.
        unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
    }
}

pub(super) fn expect(done: i32, expected: u32) {
    if done != expected as i32 {
        pgrx::error!("unexpected result of a statement of the audit writer: {done}");
    }
}

/// Rows that are being gathered.
pub struct Batch<'s> {
    open: Open<'s>,
    values: RefCell<(Vec<pg_sys::Datum>, Vec<bool>)>,
    rows: RefCell<Vec<pg_sys::Datum>>,
    /// Where the next value goes, and how much room there is.
    chunk: Cell<(*mut u8, usize)>,
}

/// Values are put into chunks of at least so many bytes.
const CHUNK: usize = 64 * 1024;

impl Batch<'_> {
    /// Adds a row; `fields` stand in the order of the target's columns.
    pub fn push(&self, fields: &[Field]) {
        let (values, nulls) = &mut *self.values.borrow_mut();
        nulls.fill(true);
        for (field, place) in fields.iter().zip(&self.open.known.places) {
            if let Some(datum) = self.datum(field) {
                values[*place] = datum;
                nulls[*place] = false;
            }
        }
        // SAFETY: as many values as the descriptor has columns, each of its column's type, as `learn` has seen to. The
        // tuple's data is a composite datum: it says its type itself, and contains nothing that is stored outside.
        let row = unsafe {
            let descriptor = (*self.open.relation).rd_att;
            let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::Datum::from((*tuple).t_data)
        };
        self.rows.borrow_mut().push(row);
    }

    /// Stores the rows.
    pub fn insert(self) {
        let mut rows = self.rows.into_inner();
        if !rows.is_empty() {
            // SAFETY: composite datums of the row type; the plan takes one array of it.
            unsafe {
                let array = pg_sys::construct_array(
                    rows.as_mut_ptr(),
                    rows.len() as i32,
                    self.open.known.row_type,
                    -1,
                    false,
                    pg_sys::TYPALIGN_DOUBLE as _,
                );
                let mut parameter = pg_sys::Datum::from(array);
                let done = pg_sys::SPI_execute_plan(self.open.known.insert, &mut parameter, std::ptr::null(), false, 0);
                expect(done, pg_sys::SPI_OK_INSERT);
                let stored = pg_sys::SPI_processed;
                if stored != rows.len() as u64 {
                    pgrx::error!("{stored} of {} audit events were stored", rows.len());
                }
            }
        }
        self.open.close();
    }

    /// Ends the batch without storing anything.
    pub fn abandon(self) {
        self.open.close();
    }

    /// Runs a type's input function, and its output function on the result. Raises when the text isn't acceptable.
    pub fn parse<'b>(&'b self, type_oid: pg_sys::Oid, text: &[u8]) -> Parsed<'b> {
        // SAFETY: the input and output functions of a built-in type, on a terminated copy of the text. What they
        // return is allocated in the transaction's memory, which outlives the batch.
        unsafe {
            let (mut input, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
            pg_sys::getTypeInputInfo(type_oid, &mut input, &mut parameter);
            let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena);
            let copy = pg_sys::pnstrdup(text.as_ptr().cast(), text.len());
            let datum = pg_sys::OidInputFunctionCall(input, copy, parameter, -1);
            let printed = pg_sys::OidOutputFunctionCall(output, datum);
            Parsed {
                datum,
                text: CStr::from_ptr(printed).to_bytes(),
            }
        }
    }

    fn datum(&self, field: &Field) -> Option<pg_sys::Datum> {
        Some(match *field {
            Field::Null => return None,
            Field::Integer(number) | Field::Timestamp(number) => pg_sys::Datum::from(number),
            Field::Parsed(parsed) => parsed.datum,
            Field::Text(bytes) | Field::Bytes(bytes) => self.varlena(bytes),
            Field::Uuid(bytes) => pg_sys::Datum::from(self.room(16, |room| room.copy_from_slice(&bytes))),
            Field::Interval(microseconds) => pg_sys::Datum::from(self.room(16, |room| {
                // struct Interval: time, and then day and month, which stay 0.
                room[..8].copy_from_slice(&microseconds.to_ne_bytes());
                room[8..].fill(0);
            })),
            Field::TextArray(elements) => {
                let mut values: Vec<pg_sys::Datum> = elements
                    .iter()
                    .map(|element| element.map_or(pg_sys::Datum::from(0), |text| self.varlena(text)))
                    .collect();
                let mut nulls: Vec<bool> = elements.iter().map(Option::is_none).collect();
                let mut length = [elements.len() as i32];
                let mut lower_bound = [1];
                let dimensions = i32::from(!elements.is_empty());
                // SAFETY: as many text datums and null flags as the one dimension says.
                let array = unsafe {
                    pg_sys::construct_md_array(
                        values.as_mut_ptr(),
                        nulls.as_mut_ptr(),
                        dimensions,
                        length.as_mut_ptr(),
                        lower_bound.as_mut_ptr(),
                        pg_sys::TEXTOID,
                        -1,
                        false,
                        pg_sys::TYPALIGN_INT as _,
                    )
                };
                pg_sys::Datum::from(array)
            }
        })
    }

    /// `text` and `bytea` have the same form: a length word, and the bytes.
    fn varlena(&self, bytes: &[u8]) -> pg_sys::Datum {
        let size = bytes.len() + pg_sys::VARHDRSZ;
        let pointer = self.room(size, |room| room[pg_sys::VARHDRSZ..].copy_from_slice(bytes));
        // SAFETY: the room is aligned, and as long as the length says; events are far smaller than a gigabyte.
        unsafe { pgrx::varlena::set_varsize_4b(pointer.cast(), size as i32) };
        pg_sys::Datum::from(pointer)
    }

    /// Memory of the transaction, 8 byte aligned, that `fill` has filled.
    fn room(&self, size: usize, fill: impl FnOnce(&mut [u8])) -> *mut u8 {
        let (mut start, mut left) = self.chunk.get();
        let step = size.next_multiple_of(8);
        if step > left {
            left = step.max(CHUNK);
            // SAFETY: palloc returns `left` bytes, or raises.
            start = unsafe { pg_sys::palloc0(left) }.cast();
        }
        // SAFETY: `step` bytes from `start` on were allocated, zeroed, and are given to nobody else.
        unsafe {
            self.chunk.set((start.add(step), left - step));
            fill(std::slice::from_raw_parts_mut(start, size));
        }
        start
    }
}

/// The one text that a query of ours returns. Inside SPI.
pub fn one_text(query: &CStr) -> Option<Vec<u8>> {
    // SAFETY: a constant statement with one column of type text, which is copied.
    unsafe {
        let done = pg_sys::SPI_execute(query.as_ptr(), true, 1);
        expect(done, pg_sys::SPI_OK_SELECT);
        if pg_sys::SPI_processed == 0 {
            return None;
        }
        let table = pg_sys::SPI_tuptable;
        let mut is_null = true;
        let datum = pg_sys::SPI_getbinval(*(*table).vals, (*table).tupdesc, 1, &mut is_null);
        // `text` and `bytea` have the same form.
        let text = Vec::<u8>::from_datum(datum, is_null);
        pg_sys::SPI_freetuptable(table);
        text
    }
}
