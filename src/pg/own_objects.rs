//! Changes to the extension's own objects, seen where the server makes them: whatever the statement was (X4).
//!
//! The object access hook tells of drops, alterations and truncations, the permissions hook of rows to be written.
//! Neither does anything but a load and a compare while nobody impersonates.

use super::nodes::{list_pointers, tag};
use super::{access, outside, own_schema, store, trampoline};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag, Oid};
use std::cell::Cell;
use std::ffi::{c_int, c_void, CStr};

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

/// Whether changes are to be refused now, and how that is said. May raise.
static REFUSE: Process<Option<fn(&str)>> = Process(Cell::new(None));

static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;
static mut PREVIOUS_PERMISSIONS: pg_sys::ExecutorCheckPerms_hook_type = None;

/// Puts the hooks before those that are there; `refuse` raises if the session may not change what it is told of.
pub fn install(refuse: fn(&str)) {
    REFUSE.0.set(Some(refuse));
    // SAFETY: single-threaded, in the postmaster.
    unsafe {
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
        PREVIOUS_PERMISSIONS = pg_sys::ExecutorCheckPerms_hook;
        pg_sys::ExecutorCheckPerms_hook = Some(permissions);
    }
}

fn refuse(what: &str) {
    if let Some(refuse) = REFUSE.0.get() {
        refuse(what);
    }
}

/// Raises if the session may not change `what` now.
pub fn refuse_if_concerned(what: &str) {
    if concerned() {
        refuse(what);
    }
}

fn concerned() -> bool {
    trampoline::watching() && !store::is_ours() && !super::identity::parallel_worker()
}

/// The extension's own function of two texts and a boolean, where it is created.
pub fn own_function(name: &CStr) -> Option<Oid> {
    // SAFETY: copies of strings; a look-up that gives InvalidOid for what isn't there.
    unsafe {
        let mut path = std::ptr::null_mut();
        for part in [c"impersonate", name] {
            path = pg_sys::lappend(path, pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        let arguments = [pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::BOOLOID];
        let function = pg_sys::LookupFuncName(path, 3, arguments.as_ptr(), true);
        (function != Oid::INVALID && is_own(pg_sys::ProcedureRelationId, function)).then_some(function)
    }
}

/// Whether an object is the extension, its schema, or one of its members.
pub fn is_own(class: Oid, object: Oid) -> bool {
    // SAFETY: catalog look-ups with missing_ok.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"impersonate".as_ptr(), true);
        if extension == Oid::INVALID {
            return false;
        }
        if class == pg_sys::ExtensionRelationId {
            return object == extension;
        }
        if class == pg_sys::NamespaceRelationId {
            return object == pg_sys::get_namespace_oid(c"impersonate".as_ptr(), true);
        }
        if pg_sys::getExtensionOfObject(class, object) == extension {
            return true;
        }
        // An index is no member of its own; what it indexes is. Asked for the index of a table, the server's cache would
        // keep for good that there is none.
        class == pg_sys::RelationRelationId
            && matches!(
                pg_sys::get_rel_relkind(object) as u8,
                pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX
            )
            && pg_sys::getExtensionOfObject(class, pg_sys::IndexGetRelation(object, true)) == extension
    }
}

unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    sub: c_int,
    argument: *mut c_void,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_FUNCTION_EXECUTE, OAT_POST_ALTER, OAT_POST_CREATE, OAT_TRUNCATE};
    // SAFETY: called as the server called us.
    unsafe {
        if access == OAT_FUNCTION_EXECUTE {
            if pg_sys::ActivePortal.is_null() {
                super::trampoline::called(object);
            }
            outside::executes(object);
        }
        // Replacing a function is told as its creation.
        if concerned() && [OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE, OAT_TRUNCATE].contains(&access) {
            object_changes(class, object);
        }
        if access::concerned() {
            access::object(access, class, object, argument);
        }
        if access == OAT_POST_CREATE || access == OAT_POST_ALTER {
            super::changes::make_object();
        }
        if let Some(previous) = PREVIOUS_ACCESS {
            previous(access, class, object, sub, argument);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn object_changes(class: Oid, object: Oid) {
    if is_own(class, object) {
        refuse("objects of extension impersonate");
    }
}

#[cfg(feature = "pg15")]
unsafe extern "C-unwind" fn permissions(table: *mut pg_sys::List, raise: bool) -> bool {
    // SAFETY: called as the server called us.
    unsafe {
        if access::concerned() {
            if !super::identity::parallel_worker() {
                rows_change(table);
            }
            access::rows_wanted(table, table);
        }
        PREVIOUS_PERMISSIONS.is_none_or(|previous| previous(table, raise))
    }
}

#[cfg(not(feature = "pg15"))]
unsafe extern "C-unwind" fn permissions(table: *mut pg_sys::List, wanted: *mut pg_sys::List, raise: bool) -> bool {
    // SAFETY: called as the server called us.
    unsafe {
        if access::concerned() {
            if !super::identity::parallel_worker() {
                rows_change(wanted);
            }
            access::rows_wanted(table, wanted);
        }
        PREVIOUS_PERMISSIONS.is_none_or(|previous| previous(table, wanted, raise))
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rows_change(list: *mut pg_sys::List) {
    const WRITES: u32 = pg_sys::ACL_INSERT | pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE;
    // SAFETY: range table entries before 16, permission infos since; both name a relation and what is wanted of it.
    unsafe {
        for entry in list_pointers(list) {
            #[cfg(feature = "pg15")]
            let (relation, wanted) = {
                let entry = &*entry.cast::<pg_sys::RangeTblEntry>();
                (entry.relid, entry.requiredPerms)
            };
            #[cfg(not(feature = "pg15"))]
            let (relation, wanted) = {
                let entry = &*entry.cast::<pg_sys::RTEPermissionInfo>();
                (entry.relid, entry.requiredPerms)
            };
            let writes = super::version::acl_bits(wanted) & u64::from(WRITES) != 0;
            if !writes || relation == Oid::INVALID {
                continue;
            }
            if is_own(pg_sys::RelationRelationId, relation) {
                refuse("tables of extension impersonate");
            }
            // Rows there are what triggers, functions and dependencies of the product consist of.
            if pg_sys::IsCatalogRelationOid(relation) {
                refuse("system catalogs by hand");
            }
        }
    }
}

/// Whether utility statements of this kind are to be looked at while impersonating. Neither raises nor waits.
pub fn concerns(kind: NodeTag) -> bool {
    own_schema::concerns(kind)
        || matches!(
            kind,
            NodeTag::T_LoadStmt
                | NodeTag::T_AlterSystemStmt
                | NodeTag::T_AlterRoleSetStmt
                | NodeTag::T_AlterDatabaseSetStmt
                | NodeTag::T_AlterTableStmt
                | NodeTag::T_CreateStmt
                | NodeTag::T_DropStmt
                | NodeTag::T_RenameStmt
                | NodeTag::T_CreateTrigStmt
                | NodeTag::T_RuleStmt
                | NodeTag::T_CreatePolicyStmt
                | NodeTag::T_IndexStmt
                | NodeTag::T_GrantStmt
                | NodeTag::T_AlterExtensionStmt
                | NodeTag::T_AlterExtensionContentsStmt
                | NodeTag::T_CreateStatsStmt
                | NodeTag::T_CreatePublicationStmt
                | NodeTag::T_AlterPublicationStmt
                | NodeTag::T_CommentStmt
                | NodeTag::T_SecLabelStmt
                | NodeTag::T_AlterObjectDependsStmt
        )
}

/// What of the product a utility statement would change under an impersonation, if anything.
///
/// # Safety
/// `node` is a utility statement.
pub unsafe fn changed_by(node: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: each node is tested for its tag before it is read as that node.
    unsafe {
        if let Some(what) = own_schema::changed_by(node) {
            return Some(what);
        }
        match tag(node)? {
            NodeTag::T_LoadStmt => Some("the libraries that are loaded".to_owned()),
            NodeTag::T_AlterSystemStmt => setting((*node.cast::<pg_sys::AlterSystemStmt>()).setstmt),
            NodeTag::T_AlterRoleSetStmt => setting((*node.cast::<pg_sys::AlterRoleSetStmt>()).setstmt),
            NodeTag::T_AlterDatabaseSetStmt => setting((*node.cast::<pg_sys::AlterDatabaseSetStmt>()).setstmt),
            NodeTag::T_AlterTableStmt => {
                let alter = &*node.cast::<pg_sys::AlterTableStmt>();
                relation(alter.relation)
                    .or_else(|| list_pointers(alter.cmds).find_map(|command| joined_by(command.cast())))
            }
            NodeTag::T_CreateStmt => {
                let create = &*node.cast::<pg_sys::CreateStmt>();
                list_pointers(create.inhRelations)
                    .find_map(|parent| relation(parent.cast()))
                    .or_else(|| list_pointers(create.tableElts).find_map(|element| refers(element.cast())))
            }
            NodeTag::T_RenameStmt => relation((*node.cast::<pg_sys::RenameStmt>()).relation),
            NodeTag::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                let of_table = [
                    pg_sys::ObjectType::OBJECT_TRIGGER,
                    pg_sys::ObjectType::OBJECT_RULE,
                    pg_sys::ObjectType::OBJECT_POLICY,
                ];
                if !of_table.contains(&drop.removeType) {
                    return None;
                }
                list_pointers(drop.objects).find_map(|name| table_of(name.cast()))
            }
            NodeTag::T_CreateTrigStmt => relation((*node.cast::<pg_sys::CreateTrigStmt>()).relation),
            NodeTag::T_RuleStmt => relation((*node.cast::<pg_sys::RuleStmt>()).relation),
            NodeTag::T_CreatePolicyStmt => relation((*node.cast::<pg_sys::CreatePolicyStmt>()).table),
            NodeTag::T_IndexStmt => relation((*node.cast::<pg_sys::IndexStmt>()).relation),
            NodeTag::T_CreateStatsStmt => list_pointers((*node.cast::<pg_sys::CreateStatsStmt>()).relations)
                .filter(|name| tag(name.cast::<pg_sys::Node>()) == Some(NodeTag::T_RangeVar))
                .find_map(|name| relation(name.cast())),
            NodeTag::T_CreatePublicationStmt => published((*node.cast::<pg_sys::CreatePublicationStmt>()).pubobjects),
            NodeTag::T_AlterPublicationStmt => published((*node.cast::<pg_sys::AlterPublicationStmt>()).pubobjects),
            NodeTag::T_CommentStmt => {
                let comment = &*node.cast::<pg_sys::CommentStmt>();
                object(comment.objtype, comment.object)
            }
            NodeTag::T_SecLabelStmt => {
                let label = &*node.cast::<pg_sys::SecLabelStmt>();
                object(label.objtype, label.object)
            }
            NodeTag::T_AlterObjectDependsStmt => {
                let alter = &*node.cast::<pg_sys::AlterObjectDependsStmt>();
                if alter.relation.is_null() {
                    object(alter.objectType, alter.object)
                } else {
                    relation(alter.relation)
                }
            }
            NodeTag::T_AlterExtensionStmt => extension((*node.cast::<pg_sys::AlterExtensionStmt>()).extname),
            NodeTag::T_AlterExtensionContentsStmt => {
                extension((*node.cast::<pg_sys::AlterExtensionContentsStmt>()).extname)
            }
            NodeTag::T_GrantStmt => {
                let grant = &*node.cast::<pg_sys::GrantStmt>();
                let names_schema = grant.targtype == pg_sys::GrantTargetType::ACL_TARGET_ALL_IN_SCHEMA
                    || grant.objtype == pg_sys::ObjectType::OBJECT_SCHEMA;
                list_pointers(grant.objects).find_map(|object| {
                    if names_schema {
                        let name = CStr::from_ptr((*object.cast::<pg_sys::String>()).sval);
                        (name == c"impersonate").then(|| "privileges on schema impersonate".to_owned())
                    } else {
                        match tag(object.cast::<pg_sys::Node>())? {
                            NodeTag::T_RangeVar => relation(object.cast()),
                            NodeTag::T_ObjectWithArgs => function(object.cast(), grant.objtype),
                            _ => None,
                        }
                    }
                })
            }
            _ => None,
        }
    }
}

/// Any object by the name that a statement gives it, or the relation that it is a part of.
unsafe fn object(kind: pg_sys::ObjectType::Type, name: *mut pg_sys::Node) -> Option<String> {
    let mut table = std::ptr::null_mut();
    // SAFETY: as the statement itself looks it up. The relation that it opened is closed, its lock kept.
    unsafe {
        let found = pg_sys::get_object_address(kind, name, &raw mut table, pg_sys::AccessShareLock as i32, true);
        let mut own = found.objectId != Oid::INVALID && is_own(found.classId, found.objectId);
        if !table.is_null() {
            own |= is_own(pg_sys::RelationRelationId, (*table).rd_id);
            pg_sys::relation_close(table, pg_sys::NoLock as i32);
        }
        own.then(|| "objects of extension impersonate".to_owned())
    }
}

/// What a publication would send: changes to a published table can fail for want of a key.
unsafe fn published(objects: *mut pg_sys::List) -> Option<String> {
    use pg_sys::PublicationObjSpecType::{PUBLICATIONOBJ_TABLE, PUBLICATIONOBJ_TABLES_IN_SCHEMA};
    // SAFETY: specifications whose kind says what they name.
    unsafe {
        list_pointers(objects).find_map(|object| {
            let object = &*object.cast::<pg_sys::PublicationObjSpec>();
            match object.pubobjtype {
                PUBLICATIONOBJ_TABLE if !object.pubtable.is_null() => relation((*object.pubtable).relation),
                PUBLICATIONOBJ_TABLES_IN_SCHEMA if !object.name.is_null() => {
                    (CStr::from_ptr(object.name) == c"impersonate").then(|| "schema impersonate".to_owned())
                }
                _ => None,
            }
        })
    }
}

/// A function's own privileges.
unsafe fn function(name: *mut pg_sys::ObjectWithArgs, kind: pg_sys::ObjectType::Type) -> Option<String> {
    // SAFETY: a look-up, missing_ok.
    unsafe {
        let function = pg_sys::LookupFuncWithArgs(kind, name, true);
        (function != Oid::INVALID && is_own(pg_sys::ProcedureRelationId, function))
            .then(|| "privileges on functions of extension impersonate".to_owned())
    }
}

/// Another table is joined to one of ours: as its child, its parent, or by a foreign key.
unsafe fn joined_by(command: *mut pg_sys::AlterTableCmd) -> Option<String> {
    use pg_sys::AlterTableType::{
        AT_AddConstraint, AT_AddInherit, AT_AttachPartition, AT_DetachPartition, AT_DropInherit,
    };
    // SAFETY: what `def` is depends on the kind of command (parsenodes.h); its tag is tested.
    unsafe {
        let (kind, def) = ((*command).subtype, (*command).def);
        if [AT_AttachPartition, AT_DetachPartition].contains(&kind) && tag(def) == Some(NodeTag::T_PartitionCmd) {
            return relation((*def.cast::<pg_sys::PartitionCmd>()).name);
        }
        if [AT_AddInherit, AT_DropInherit].contains(&kind) && tag(def) == Some(NodeTag::T_RangeVar) {
            return relation(def.cast());
        }
        if kind == AT_AddConstraint {
            refers(def)
        } else {
            None
        }
    }
}

/// A foreign key to one of our tables, by itself or on a column.
unsafe fn refers(element: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: each node is tested for its tag.
    unsafe {
        match tag(element)? {
            NodeTag::T_Constraint => relation((*element.cast::<pg_sys::Constraint>()).pktable),
            NodeTag::T_ColumnDef => list_pointers((*element.cast::<pg_sys::ColumnDef>()).constraints)
                .find_map(|constraint| refers(constraint.cast())),
            _ => None,
        }
    }
}

/// The table of a trigger, rule or policy, whose name is the last of the list.
unsafe fn table_of(names: *mut pg_sys::List) -> Option<String> {
    // SAFETY: a list of strings; the copy is cut by one.
    unsafe {
        if tag(names.cast::<pg_sys::Node>()) != Some(NodeTag::T_List) || (*names).length < 2 {
            return None;
        }
        let table = pg_sys::list_truncate(pg_sys::list_copy(names), (*names).length - 1);
        relation(pg_sys::makeRangeVarFromNameList(table))
    }
}

unsafe fn extension(name: *const std::ffi::c_char) -> Option<String> {
    // SAFETY: a string of the parse tree.
    (unsafe { CStr::from_ptr(name) } == c"impersonate").then(|| "extension impersonate".to_owned())
}

unsafe fn relation(name: *mut pg_sys::RangeVar) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: a look-up without a lock, missing_ok.
    unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let relation = pg_sys::RangeVarGetRelidExtended(name, pg_sys::NoLock as i32, flags, None, std::ptr::null_mut());
        (relation != Oid::INVALID && is_own(pg_sys::RelationRelationId, relation))
            .then(|| "tables of extension impersonate".to_owned())
    }
}

unsafe fn setting(statement: *mut pg_sys::VariableSetStmt) -> Option<String> {
    // SAFETY: the caller's node; RESET ALL has no name.
    unsafe {
        if (*statement).name.is_null() {
            return Some("all settings at once".to_owned());
        }
        let name = CStr::from_ptr((*statement).name).to_string_lossy().to_ascii_lowercase();
        let guarded = name.starts_with("impersonate.")
            || name.ends_with("_preload_libraries")
            || ["dynamic_library_path", "jit_provider", "allow_system_table_mods"].contains(&name.as_str());
        guarded.then(|| format!("setting \"{name}\""))
    }
}
