//! What a transaction, or a statement, leaves behind, and by which way (L5).
//!
//! The audit rows of a transaction that commits get there before it by the order of the WAL. Two things must be known for
//! that: whether there is anything to lose, and what doesn't go that way.

use super::nodes::{list_integers, list_oids, list_pointers, tag};
use super::{catch, outside};
use pgrx::pg_sys::{self, NodeTag};
use std::ffi::{c_int, CStr};

extern "C-unwind" {
    /// async.c: raises if the transaction has listened or notified, and does nothing else.
    fn AtPrepare_Notify();
    /// pg_inherits.c: a relation and all below it.
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// Whether the transaction, about to commit, has an id: then its commit is in the WAL.
pub fn has_transaction_id() -> bool {
    // SAFETY: reads state of this process. A child's id implies one of its own.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Whether the transaction may get an id yet: NOTIFY takes it after the callbacks that precede a commit, and so may the
/// ON COMMIT actions of temporary tables.
pub fn may_get_transaction_id() -> bool {
    // SAFETY: reads state of this process; the function called raises or not, and holds nothing.
    unsafe {
        pg_sys::MyXactFlags & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE as i32 != 0
            || catch::raises(&mut || AtPrepare_Notify())
    }
}

/// How the effects of a statement get to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Way {
    /// With the transaction's commit.
    Commit,
    /// By the WAL, but before the transaction's end.
    Wal,
    /// By none that the WAL's order governs: files, programs, other servers.
    Outside,
}

/// Of a utility statement. What it says of functions and procedures is not known: those that end transactions come to
/// PRE_COMMIT, and those that act outside by themselves are seen when they are looked up.
///
/// # Safety
/// `statement` is a utility statement's node.
pub unsafe fn of_utility(statement: *mut pg_sys::Node) -> Way {
    // SAFETY: each node is tested for its tag before it is read as that node.
    unsafe {
        match tag(statement) {
            Some(NodeTag::T_TransactionStmt) => {
                use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
                match (*statement.cast::<pg_sys::TransactionStmt>()).kind {
                    TRANS_STMT_COMMIT_PREPARED | TRANS_STMT_ROLLBACK_PREPARED => Way::Wal,
                    _ => Way::Commit,
                }
            }
            Some(NodeTag::T_VacuumStmt | NodeTag::T_ReindexStmt | NodeTag::T_ClusterStmt) => Way::Wal,
            Some(NodeTag::T_IndexStmt) if (*statement.cast::<pg_sys::IndexStmt>()).concurrent => Way::Wal,
            Some(NodeTag::T_DropStmt) if (*statement.cast::<pg_sys::DropStmt>()).concurrent => Way::Wal,
            Some(NodeTag::T_CopyStmt) => {
                let copy = &*statement.cast::<pg_sys::CopyStmt>();
                let to_file = !copy.is_from && !copy.filename.is_null();
                if copy.is_program || to_file || (copy.is_from && is_foreign(copy.relation)) {
                    Way::Outside
                } else {
                    Way::Commit
                }
            }
            Some(NodeTag::T_CallStmt) if outside::seen() => Way::Outside,
            Some(NodeTag::T_DoStmt) => {
                let arguments = (*statement.cast::<pg_sys::DoStmt>()).args;
                let untrusted = list_pointers(arguments).any(|argument| {
                    let argument = argument.cast::<pg_sys::DefElem>();
                    CStr::from_ptr((*argument).defname) == c"language"
                        && outside::names_untrusted(CStr::from_ptr(pg_sys::defGetString(argument)))
                });
                if untrusted {
                    Way::Outside
                } else {
                    Way::Commit
                }
            }
            Some(NodeTag::T_TruncateStmt) => {
                let relations = (*statement.cast::<pg_sys::TruncateStmt>()).relations;
                if list_pointers(relations).any(|relation| is_foreign(relation.cast())) {
                    Way::Outside
                } else {
                    Way::Commit
                }
            }
            Some(
                NodeTag::T_AlterSystemStmt
                | NodeTag::T_DropdbStmt
                | NodeTag::T_CreateTableSpaceStmt
                | NodeTag::T_DropTableSpaceStmt
                | NodeTag::T_CreateSubscriptionStmt
                | NodeTag::T_AlterSubscriptionStmt
                | NodeTag::T_DropSubscriptionStmt,
            ) => Way::Outside,
            _ => Way::Commit,
        }
    }
}

/// # Safety
/// Null or the name of a relation, which need not exist.
unsafe fn is_foreign(relation: *mut pg_sys::RangeVar) -> bool {
    // SAFETY: look-ups that give InvalidOid for what isn't there, without a lock: the statement looks again.
    unsafe {
        let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
        !relation.is_null() && {
            let relation = pg_sys::RangeVarGetRelidExtended(
                relation,
                pg_sys::NoLock as i32,
                missing_ok,
                None,
                std::ptr::null_mut(),
            );
            relation != pg_sys::InvalidOid && goes_abroad(relation, pg_sys::get_rel_relkind(relation) as u8)
        }
    }
}

/// Whether rows put into a relation may go to a foreign table: it is one, or one of its partitions is.
///
/// # Safety
/// In a transaction.
unsafe fn goes_abroad(relation: pg_sys::Oid, kind: u8) -> bool {
    // SAFETY: catalog look-ups, without locks on the partitions; the list is ours.
    unsafe {
        match kind {
            pg_sys::RELKIND_FOREIGN_TABLE => true,
            pg_sys::RELKIND_PARTITIONED_TABLE => {
                any_foreign_table() && {
                    let all = find_all_inheritors(relation, pg_sys::NoLock as pg_sys::LOCKMODE, std::ptr::null_mut());
                    let abroad =
                        list_oids(all).any(|part| pg_sys::get_rel_relkind(part) as u8 == pg_sys::RELKIND_FOREIGN_TABLE);
                    pg_sys::list_free(all);
                    abroad
                }
            }
            _ => false,
        }
    }
}

/// Whether the database has a foreign table at all, which few have.
unsafe fn any_foreign_table() -> bool {
    // SAFETY: the scan and the catalog are closed again; an error closes them with the transaction.
    unsafe {
        let catalog = pg_sys::table_open(
            pg_sys::ForeignTableRelationId,
            pg_sys::AccessShareLock as pg_sys::LOCKMODE,
        );
        let scan = pg_sys::systable_beginscan(
            catalog,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        let any = !pg_sys::systable_getnext(scan).is_null();
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        any
    }
}

/// Of a planned query: one that changes foreign tables does that on another server, which commits for itself.
///
/// # Safety
/// `statement` is a plan.
pub unsafe fn of_query(statement: *const pg_sys::PlannedStmt) -> Way {
    // SAFETY: result relations are places in the range table, from 1.
    unsafe {
        if (*statement).resultRelations.is_null() {
            return Way::Commit;
        }
        let results = |place: usize| {
            list_integers((*statement).resultRelations).any(|result| usize::try_from(result) == Ok(place))
        };
        // A partitioned table that is written to is locked like its partitions, but need not be among the results.
        let foreign = list_pointers((*statement).rtable).enumerate().any(|(i, entry)| {
            let entry = &*entry.cast::<pg_sys::RangeTblEntry>();
            let kind = entry.relkind as u8;
            entry.rtekind == pg_sys::RTEKind::RTE_RELATION
                && match kind {
                    pg_sys::RELKIND_FOREIGN_TABLE => results(i + 1),
                    _ => entry.rellockmode == pg_sys::RowExclusiveLock as c_int && goes_abroad(entry.relid, kind),
                }
        });
        if foreign {
            Way::Outside
        } else {
            Way::Commit
        }
    }
}
