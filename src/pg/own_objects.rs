//! Changes to the extension's own objects, seen where the server makes them: whatever the statement was (X4).
//!
//! The object access hook tells of drops, alterations and truncations, the permissions hook of rows to be written.
//! Neither does anything but a load and a compare while nobody impersonates.

use super::nodes::{list_pointers, tag};
use super::{store, trampoline};
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
        pg_sys::getExtensionOfObject(class, object) == extension
    }
}

unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    sub: c_int,
    argument: *mut c_void,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE, OAT_TRUNCATE};
    // SAFETY: called as the server called us.
    unsafe {
        // Replacing a function is told as its creation.
        if concerned() && [OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE, OAT_TRUNCATE].contains(&access) {
            object_changes(class, object);
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
        if concerned() {
            rows_change(table);
        }
        PREVIOUS_PERMISSIONS.is_none_or(|previous| previous(table, raise))
    }
}

#[cfg(not(feature = "pg15"))]
unsafe extern "C-unwind" fn permissions(table: *mut pg_sys::List, wanted: *mut pg_sys::List, raise: bool) -> bool {
    // SAFETY: called as the server called us.
    unsafe {
        if concerned() {
            rows_change(wanted);
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
            let writes = u64::from(wanted) & u64::from(WRITES) != 0;
            if writes && relation != Oid::INVALID && is_own(pg_sys::RelationRelationId, relation) {
                refuse("tables of extension impersonate");
            }
        }
    }
}

/// Whether utility statements of this kind are to be looked at while impersonating. Neither raises nor waits.
pub fn concerns(kind: NodeTag) -> bool {
    matches!(
        kind,
        NodeTag::T_LoadStmt
            | NodeTag::T_AlterSystemStmt
            | NodeTag::T_AlterRoleSetStmt
            | NodeTag::T_AlterDatabaseSetStmt
            | NodeTag::T_AlterTableStmt
            | NodeTag::T_CreateTrigStmt
            | NodeTag::T_RuleStmt
            | NodeTag::T_CreatePolicyStmt
            | NodeTag::T_IndexStmt
            | NodeTag::T_GrantStmt
            | NodeTag::T_AlterExtensionStmt
            | NodeTag::T_AlterExtensionContentsStmt
    )
}

/// What of the product a utility statement would change under an impersonation, if anything.
///
/// # Safety
/// `node` is a utility statement.
pub unsafe fn changed_by(node: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: each node is tested for its tag before it is read as that node.
    unsafe {
        match tag(node)? {
            NodeTag::T_LoadStmt => Some("the libraries that are loaded".to_owned()),
            NodeTag::T_AlterSystemStmt => setting((*node.cast::<pg_sys::AlterSystemStmt>()).setstmt),
            NodeTag::T_AlterRoleSetStmt => setting((*node.cast::<pg_sys::AlterRoleSetStmt>()).setstmt),
            NodeTag::T_AlterDatabaseSetStmt => setting((*node.cast::<pg_sys::AlterDatabaseSetStmt>()).setstmt),
            NodeTag::T_AlterTableStmt => relation((*node.cast::<pg_sys::AlterTableStmt>()).relation),
            NodeTag::T_CreateTrigStmt => relation((*node.cast::<pg_sys::CreateTrigStmt>()).relation),
            NodeTag::T_RuleStmt => relation((*node.cast::<pg_sys::RuleStmt>()).relation),
            NodeTag::T_CreatePolicyStmt => relation((*node.cast::<pg_sys::CreatePolicyStmt>()).table),
            NodeTag::T_IndexStmt => relation((*node.cast::<pg_sys::IndexStmt>()).relation),
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
                    } else if tag(object.cast::<pg_sys::Node>()) == Some(NodeTag::T_RangeVar) {
                        relation(object.cast())
                    } else {
                        None
                    }
                })
            }
            _ => None,
        }
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
        let relation =
            pg_sys::RangeVarGetRelidExtended(name, pg_sys::NoLock as i32, flags, None, std::ptr::null_mut());
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
            || name == "dynamic_library_path"
            || name == "jit_provider";
        guarded.then(|| format!("setting \"{name}\""))
    }
}
