//! Rows straight into a table's heap and indexes, many at a time, as COPY does it.
//!
//! An INSERT does more than that: triggers, rules, checks, defaults. Where a table has something that an INSERT would
//! have to do, it is not for this way ([`Heap::open`] says no), and the executor does it.

use crate::pg::version;
use pgrx::pg_sys;

/// Tuples that are inserted at once, at most.
pub const AT_ONCE: usize = 128;

/// A table, open and locked for insertion until the transaction ends.
pub struct Heap {
    relation: pg_sys::Relation,
    state: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    not_null: Vec<bool>,
}

impl Heap {
    /// Opens `table`, which is `parent` or a partition of it, for tuples of the parent's form. None when an INSERT would
    /// have to do more than storing them.
    ///
    /// # Safety
    /// In a transaction with a snapshot. `parent` is open, and locked such that it keeps its partitions.
    pub unsafe fn open(parent: pg_sys::Relation, table: pg_sys::Oid) -> Option<Heap> {
        // SAFETY: as promised; what was opened is closed here or by `close`, or by the transaction's abort.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
            if !is_plain(parent) || !is_plain(relation) || !same_form((*parent).rd_att, (*relation).rd_att) {
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                return None;
            }
            let state = pg_sys::CreateExecutorState();
            let outside = pg_sys::MemoryContextSwitchTo((*state).es_query_cxt);
            let result: *mut pg_sys::ResultRelInfo = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            pg_sys::InitResultRelInfo(result, relation, 0, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(result, false);
            pg_sys::MemoryContextSwitchTo(outside);
            let columns = (*(*relation).rd_att).natts;
            let heap = Heap {
                relation,
                state,
                result,
                slots: Vec::new(),
                not_null: (0..columns)
                    .map(|at| (*version::attribute((*relation).rd_att, at)).attnotnull)
                    .collect(),
            };
            if heap.checks_later() {
                heap.close();
                return None;
            }
            Some(heap)
        }
    }

    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_id }
    }

    /// A row with these NULLs would be refused.
    pub fn refuses(&self, nulls: &[bool]) -> bool {
        self.not_null
            .iter()
            .zip(nulls)
            .any(|(not_null, null)| *not_null && *null)
    }

    /// Stores tuples, at most [`AT_ONCE`], and frees them.
    ///
    /// # Safety
    /// They have the table's form, none that it refuses, and were allocated each for itself. As `open`.
    pub unsafe fn insert(&mut self, tuples: &[pg_sys::HeapTuple]) {
        // SAFETY: as promised. The slots have the table's descriptor, which stays while it is open, and own what they are
        // given, so that it isn't copied. Whatever is allocated on the way is freed with the context of a tuple, in which
        // nothing else is kept.
        unsafe {
            while self.slots.len() < tuples.len() {
                let slot =
                    pg_sys::MakeSingleTupleTableSlot((*self.relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
                self.slots.push(slot);
            }
            let slots = &mut self.slots[..tuples.len()];
            for (slot, tuple) in slots.iter().zip(tuples) {
                pg_sys::ExecStoreHeapTuple(*tuple, *slot, true);
            }
            let expression = pg_sys::MakePerTupleExprContext(self.state);
            let outside = pg_sys::MemoryContextSwitchTo((*expression).ecxt_per_tuple_memory);
            pg_sys::heap_multi_insert(
                self.relation,
                slots.as_mut_ptr(),
                tuples.len() as i32,
                pg_sys::GetCurrentCommandId(true),
                0,
                std::ptr::null_mut(),
            );
            if (*self.result).ri_NumIndices > 0 {
                for slot in slots.iter() {
                    version::insert_into_indexes(self.result, *slot, self.state);
                }
            }
            for slot in slots.iter() {
                pg_sys::ExecClearTuple(*slot);
            }
            pg_sys::MemoryContextSwitchTo(outside);
            pg_sys::MemoryContextReset((*expression).ecxt_per_tuple_memory);
        }
    }

    /// Ends what `open` began; the locks stay until the transaction's end.
    pub fn close(self) {
        // SAFETY: opened by `open`, closed once.
        unsafe {
            self.slots
                .iter()
                .for_each(|slot| pg_sys::ExecDropSingleTupleTableSlot(*slot));
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
    }

    /// It has a unique index that is checked only when the transaction ends.
    fn checks_later(&self) -> bool {
        // SAFETY: as many indexes as it says, which are open.
        unsafe {
            (0..(*self.result).ri_NumIndices as usize)
                .map(|at| &*(**(*self.result).ri_IndexRelationDescs.add(at)).rd_index)
                .any(|index| index.indisunique && !index.indimmediate)
        }
    }
}

/// An INSERT into it does nothing but storing rows: no trigger that fires in a replica's role, no rule, no check, nothing
/// generated, no default.
unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open, so what it points to stays.
    unsafe {
        let form = &*(*relation).rd_rel;
        let is_heap = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE
            || form.relkind as u8 == pg_sys::RELKIND_RELATION && form.relam == pg_sys::HEAP_TABLE_AM_OID;
        let constraints = (*(*relation).rd_att).constr.as_ref();
        is_heap
            && !form.relhasrules
            && !form.relrowsecurity
            && constraints.is_none_or(|constraints| {
                constraints.num_check == 0 && constraints.num_defval == 0 && !constraints.has_generated_stored
            })
            && (*relation).trigdesc.as_ref().is_none_or(|triggers| {
                (0..triggers.numtriggers as usize)
                    .map(|at| (*triggers.triggers.add(at)).tgenabled as u8)
                    .all(|fires| ![pg_sys::TRIGGER_FIRES_ALWAYS, pg_sys::TRIGGER_FIRES_ON_REPLICA].contains(&fires))
            })
    }
}

/// A tuple of the first form is one of the second.
unsafe fn same_form(one: pg_sys::TupleDesc, other: pg_sys::TupleDesc) -> bool {
    // SAFETY: descriptors of open relations, which have so many attributes.
    unsafe {
        (*one).natts == (*other).natts
            && (0..(*one).natts).all(|at| {
                let (one, other) = (&*version::attribute(one, at), &*version::attribute(other, at));
                one.atttypid == other.atttypid
                    && one.attisdropped == other.attisdropped
                    && one.attlen == other.attlen
                    && one.attalign == other.attalign
            })
    }
}

/// Where a row of a time goes.
pub enum Way {
    Nowhere,
    /// Into this table.
    Table(pg_sys::Oid),
    /// Into a part of a partition, which the executor finds.
    Below,
}

/// Where a row goes in a table that is partitioned by ranges of one column of type timestamptz, or isn't partitioned.
///
/// # Safety
/// The table is open, and locked such that it keeps its partitions.
pub unsafe fn way(table: pg_sys::Relation, time: i64) -> Way {
    // SAFETY: the descriptor belongs to the relation's entry. Bounds are in order, each with one datum where its kind
    // is that of a value, and there is one index more than bounds; see PartitionBoundInfoData.
    unsafe {
        if (*(*table).rd_rel).relkind as u8 != pg_sys::RELKIND_PARTITIONED_TABLE {
            return Way::Table((*table).rd_id);
        }
        let partitions = &*pg_sys::RelationGetPartitionDesc(table, true);
        let Some(bounds) = partitions.boundinfo.as_ref() else {
            return Way::Nowhere;
        };
        let below = |at: usize| match **bounds.kind.add(at) {
            pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE => true,
            pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_VALUE => {
                (**bounds.datums.add(at)).value() as i64 <= time
            }
            _ => false,
        };
        // The newest come last, and so do new rows.
        let after = (0..bounds.ndatums as usize)
            .rev()
            .find(|at| below(*at))
            .map_or(0, |at| at + 1);
        let mut partition = *bounds.indexes.add(after);
        if partition < 0 {
            partition = bounds.default_index;
        }
        match usize::try_from(partition) {
            Err(_) => Way::Nowhere,
            Ok(at) if *partitions.is_leaf.add(at) => Way::Table(*partitions.oids.add(at)),
            Ok(_) => Way::Below,
        }
    }
}
