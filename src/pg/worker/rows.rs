//! Rows on their way into a table of the extension, many at a time.
//!
//! They go straight into the partition that takes their time (`bulk.rs`). Where an INSERT would have to do more than that,
//! as with a trigger or a check that somebody added, it is an INSERT: then the rows are one parameter, an array of the
//! table's own row type. Either way the table's columns may stand in any order and more of them may come.
//!
//! The worker does this as the bootstrap superuser: so it stores only in a table that belongs to the extension and to a
//! superuser. A table that somebody else made under the same name after the extension was dropped could bring triggers.

use super::bulk::{self, Heap, Way};
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
    /// How it is partitioned, as `pg_get_partkeydef` says it: by ranges of a column of type timestamptz.
    pub partitioned: &'static CStr,
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

/// Rows of an extension by its name, as far as `snapshot` shows any; `each` says whether to go on.
unsafe fn extension_rows(name: &CStr, snapshot: pg_sys::Snapshot, mut each: impl FnMut(pg_sys::HeapTuple) -> bool) {
    // SAFETY: in a transaction; the name outlives the scan.
    unsafe {
        let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
        pg_sys::ScanKeyInit(
            &raw mut key,
            pg_sys::Anum_pg_extension_extname as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::Oid::from(pg_sys::F_NAMEEQ),
            pg_sys::Datum::from(name.as_ptr()),
        );
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let by_name = pg_sys::Oid::from(pg_sys::ExtensionNameIndexId);
        let scan = pg_sys::systable_beginscan(relation, by_name, true, snapshot, 1, &raw mut key);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() || !each(tuple) {
                break;
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}

/// Whether a transaction that isn't over creates the extension. Needs a transaction.
pub fn extension_comes(name: &CStr) -> bool {
    let mut comes = false;
    // SAFETY: zeros are a snapshot without transactions; a dirty one is looked at by nobody but the scan, which says in it
    // whose the row is that it found.
    unsafe {
        let mut dirty = std::mem::zeroed::<pg_sys::SnapshotData>();
        dirty.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
        let dirty = &raw mut dirty;
        extension_rows(name, dirty, |_| {
            comes = (*dirty).xmin != pg_sys::InvalidTransactionId;
            !comes
        });
    }
    comes
}

/// Whether it is this transaction that creates the extension, so that nobody else sees it. Needs a transaction.
pub fn extension_is_mine(name: &CStr) -> bool {
    /// HEAP_XMIN_FROZEN, and what says that xmax deletes nothing (htup_details.h).
    const FROZEN: u16 = 0x0300;
    const NOT_DELETED: u16 = 0x0800 | 0x1000 | 0x0080;
    if !extension_exists(name) {
        return false;
    }
    let mut seen = false;
    // SAFETY: the server's own snapshot that shows every version of a row; its header is read while the scan holds it.
    unsafe {
        extension_rows(name, &raw mut pg_sys::SnapshotAnyData, |tuple| {
            let header = (*tuple).t_data;
            let (xmin, xmax) = ((*header).t_choice.t_heap.t_xmin, (*header).t_choice.t_heap.t_xmax);
            let marks = (*header).t_infomask;
            let made = marks & FROZEN == FROZEN || pg_sys::TransactionIdDidCommit(xmin);
            let deleted = marks & NOT_DELETED == 0 && pg_sys::TransactionIdDidCommit(xmax);
            seen = made && !deleted;
            !seen
        });
    }
    !seen
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
        let held = pg_sys::get_extension_oid(name.as_ptr(), true) == extension;
        HELD.set(if held { extension } else { pg_sys::InvalidOid });
        held
    }
}

/// As `hold_extension`, for who opens one of its tables next: an extension that was held before isn't looked for again,
/// as nothing has a cache of them. If it has gone, so have its tables, and whoever opens others holds the one that is there.
pub fn hold_extension_again(name: &CStr) -> bool {
    let held = HELD.get();
    if held == pg_sys::InvalidOid {
        return hold_extension(name);
    }
    // SAFETY: in a transaction; a lock on an object that may be gone.
    unsafe { pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, held, 0, pg_sys::AccessShareLock as _) };
    true
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
        HELD.set(pg_sys::InvalidOid);
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
        let mut oid = pg_sys::get_relname_relid(table.as_ptr(), schema);
        // What asks for the extension has no cache. A table that belonged to it is no stranger's as long as it is that
        // one: with the extension it goes itself.
        let is_known = KNOWN.with_borrow(|known| known.contains(&oid));
        if !is_known {
            // Another extension than the one that is held may have come in its place.
            if !hold_extension(name) {
                return None;
            }
            oid = pg_sys::get_relname_relid(table.as_ptr(), schema);
        }
        if oid == pg_sys::InvalidOid {
            return None;
        }
        let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
        if !is_known && pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, oid) != HELD.get() {
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
    /// The extension as it was held last.
    static HELD: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
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
        // SAFETY: prepares constant statements; the array type is looked up for a row type that exists. The key's
        // definition is a text, or NULL where there is none.
        unsafe {
            if pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_PARTITIONED_TABLE {
                let key = pg_sys::OidFunctionCall1Coll(
                    pg_sys::Oid::from(pg_sys::F_PG_GET_PARTKEYDEF),
                    pg_sys::InvalidOid,
                    relation.into(),
                );
                if <&[u8]>::from_datum(key, false) != Some(target.partitioned.to_bytes()) {
                    refuse(target.extension, target.table, "it is partitioned in another way");
                }
            }
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

    /// Begins a batch.
    pub fn batch(self) -> Batch<'s> {
        // SAFETY: the relation is open; its descriptor stays while it is.
        let width = usize::try_from(unsafe { (*(*self.relation).rd_att).natts }).unwrap_or_default();
        let memory = memory();
        // SAFETY: a context of this process; nothing of a batch before is in use any more.
        unsafe { pg_sys::MemoryContextReset(memory) };
        Batch {
            values: RefCell::new((vec![pg_sys::Datum::from(0); width], vec![true; width])),
            rows: RefCell::new(Vec::with_capacity(bulk::AT_ONCE)),
            place: RefCell::new(Place::Unknown),
            memory,
            chunk: Cell::new((std::ptr::null_mut(), 0)),
            open: self,
        }
    }
}

pub(super) fn expect(done: i32, expected: u32) {
    if done != expected as i32 {
        pgrx::error!("unexpected result of a statement of the audit writer: {done}");
    }
}

/// The context in which rows are made. It keeps its first block, so that a batch finds memory that is in place.
fn memory() -> pg_sys::MemoryContext {
    thread_local! {
        static MEMORY: Cell<pg_sys::MemoryContext> = const { Cell::new(std::ptr::null_mut()) };
    }
    const BLOCK: usize = 128 * 1024;
    MEMORY.with(|memory| {
        if memory.get().is_null() {
            // SAFETY: made once, for the life of the process.
            memory.set(unsafe {
                pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopMemoryContext,
                    c"impersonate rows".as_ptr(),
                    BLOCK,
                    BLOCK,
                    8 * 1024 * 1024,
                )
            });
        }
        memory.get()
    })
}

/// Where the rows that are being gathered go.
enum Place {
    Unknown,
    Table(Heap),
    /// An INSERT finds it.
    Executor,
}

/// Rows that are being gathered.
pub struct Batch<'s> {
    open: Open<'s>,
    values: RefCell<(Vec<pg_sys::Datum>, Vec<bool>)>,
    /// Not stored yet, all for the same place.
    rows: RefCell<Vec<pg_sys::HeapTuple>>,
    place: RefCell<Place>,
    memory: pg_sys::MemoryContext,
    /// Where the next value goes, and how much room there is.
    chunk: Cell<(*mut u8, usize)>,
}

/// Values are put into chunks of at least so many bytes.
const CHUNK: usize = 8 * 1024;

impl Batch<'_> {
    /// There is a place for rows of this time.
    pub fn takes(&self, time: i64) -> bool {
        // SAFETY: the table is open, locked for insertion.
        !matches!(unsafe { bulk::way(self.open.relation, time) }, Way::Nowhere)
    }

    /// Adds a row of this time, which the batch takes; `fields` stand in the order of the target's columns. Stores rows,
    /// when there are enough of them.
    pub fn push(&self, time: i64, fields: &[Field]) {
        self.turn_to(time);
        let (values, nulls) = &mut *self.values.borrow_mut();
        nulls.fill(true);
        for (field, place) in fields.iter().zip(&self.open.known.places) {
            nulls[*place] = matches!(field, Field::Null);
        }
        // So that what refuses it says it in its own words.
        if matches!(&*self.place.borrow(), Place::Table(heap) if heap.refuses(nulls)) {
            self.turn(Place::Executor);
        }
        for (field, place) in fields.iter().zip(&self.open.known.places) {
            values[*place] = self.datum(field);
        }
        // SAFETY: as many values as the descriptor has columns, each of its column's type, as `learn` has seen to.
        let row = self.inside(|| unsafe {
            pg_sys::heap_form_tuple((*self.open.relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr())
        });
        self.rows.borrow_mut().push(row);
        if self.rows.borrow().len() == bulk::AT_ONCE {
            self.store();
        }
    }

    /// Stores what is left, and ends the batch.
    pub fn finish(self) {
        self.turn(Place::Unknown);
        // SAFETY: opened by `Store::open`; the lock stays until the transaction's end.
        unsafe { pg_sys::table_close(self.open.relation, pg_sys::NoLock as i32) };
    }

    /// Looks where rows of this time go.
    fn turn_to(&self, time: i64) {
        let parent = self.open.relation;
        // SAFETY: the table is open, locked for insertion, in a transaction with a snapshot.
        let place = unsafe {
            match (bulk::way(parent, time), &*self.place.borrow()) {
                (Way::Table(table), Place::Table(heap)) if heap.oid() == table => return,
                (_, Place::Executor) => return,
                (Way::Table(table), _) => Heap::open(parent, table).map_or(Place::Executor, Place::Table),
                _ => Place::Executor,
            }
        };
        self.turn(place);
    }

    fn turn(&self, place: Place) {
        self.store();
        if let Place::Table(heap) = self.place.replace(place) {
            heap.close();
        }
    }

    /// Stores the rows that were gathered.
    fn store(&self) {
        let mut rows = self.rows.borrow_mut();
        if rows.is_empty() {
            return;
        }
        match &mut *self.place.borrow_mut() {
            // SAFETY: tuples of the table's form without NULLs that it refuses.
            Place::Table(heap) => unsafe { heap.insert(&rows) },
            _ => self.insert(&rows),
        }
        rows.clear();
        self.chunk.set((std::ptr::null_mut(), 0));
        // SAFETY: neither rows nor values are used any more.
        unsafe { pg_sys::MemoryContextReset(self.memory) };
    }

    /// Stores rows with a statement.
    fn insert(&self, rows: &[pg_sys::HeapTuple]) {
        // SAFETY: a tuple's data is a composite datum: it says its type itself, and contains nothing that is stored
        // outside. The plan takes one array of the row type.
        unsafe {
            let mut rows: Vec<pg_sys::Datum> = rows.iter().map(|row| pg_sys::Datum::from((**row).t_data)).collect();
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

    /// Allocates in the memory of rows.
    fn inside<R>(&self, allocate: impl FnOnce() -> R) -> R {
        // SAFETY: a context that lives; after an error the transaction's abort sets another.
        unsafe {
            let outside = pg_sys::MemoryContextSwitchTo(self.memory);
            let result = allocate();
            pg_sys::MemoryContextSwitchTo(outside);
            result
        }
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

    fn datum(&self, field: &Field) -> pg_sys::Datum {
        match *field {
            Field::Null => pg_sys::Datum::null(),
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
                    .map(|element| element.map_or(pg_sys::Datum::null(), |text| self.varlena(text)))
                    .collect();
                let mut nulls: Vec<bool> = elements.iter().map(Option::is_none).collect();
                let mut length = [elements.len() as i32];
                let mut lower_bound = [1];
                let dimensions = i32::from(!elements.is_empty());
                // SAFETY: as many text datums and null flags as the one dimension says.
                let array = self.inside(|| unsafe {
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
                });
                pg_sys::Datum::from(array)
            }
        }
    }

    /// `text` and `bytea` have the same form: a length word, and the bytes.
    fn varlena(&self, bytes: &[u8]) -> pg_sys::Datum {
        let size = bytes.len() + pg_sys::VARHDRSZ;
        let pointer = self.room(size, |room| room[pg_sys::VARHDRSZ..].copy_from_slice(bytes));
        // SAFETY: the room is aligned, and as long as the length says; events are far smaller than a gigabyte.
        unsafe { pgrx::varlena::set_varsize_4b(pointer.cast(), size as i32) };
        pg_sys::Datum::from(pointer)
    }

    /// Memory of the rows, 8 byte aligned, that `fill` has filled.
    fn room(&self, size: usize, fill: impl FnOnce(&mut [u8])) -> *mut u8 {
        let (mut start, mut left) = self.chunk.get();
        let step = size.next_multiple_of(8);
        if step > left {
            left = step.max(CHUNK);
            // SAFETY: palloc0 returns `left` bytes, or raises.
            start = self.inside(|| unsafe { pg_sys::palloc0(left) }).cast();
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
