//! Every difference between the supported major versions that this crate meets, as a function each.

use pgrx::pg_sys;
use std::ffi::{c_char, c_void, CStr};

/// The record of a string setting, or null. `name` is one of core's or our own, so it is there.
pub fn find_string_setting(name: &CStr) -> *mut pg_sys::config_string {
    #[cfg(feature = "pg15")]
    // SAFETY: get_guc_variables returns the array of GetNumConfigOptions() records, fixed while we look.
    unsafe {
        let all = pg_sys::get_guc_variables();
        for i in 0..num_settings() {
            let record = *all.add(i);
            if CStr::from_ptr((*record).name) == name && (*record).vartype == pg_sys::config_type::PGC_STRING {
                return record.cast();
            }
        }
        std::ptr::null_mut()
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: with skip_errors set, find_option returns null for what it doesn't know.
    unsafe {
        let record = pg_sys::find_option(name.as_ptr(), false, true, pgrx::PgLogLevel::ERROR as i32);
        if record.is_null() || (*record).vartype != pg_sys::config_type::PGC_STRING {
            std::ptr::null_mut()
        } else {
            record.cast()
        }
    }
}

/// The records of all settings.
pub fn all_settings() -> Vec<*mut pg_sys::config_generic> {
    #[cfg(feature = "pg15")]
    // SAFETY: an array of that many records.
    unsafe {
        std::slice::from_raw_parts(pg_sys::get_guc_variables(), num_settings()).to_vec()
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: a palloc'ed array of as many records as it says.
    unsafe {
        let mut count = 0;
        let all = pg_sys::get_guc_variables(&raw mut count);
        std::slice::from_raw_parts(all, count as usize).to_vec()
    }
}

#[cfg(feature = "pg15")]
fn num_settings() -> usize {
    extern "C" {
        fn GetNumConfigOptions() -> std::ffi::c_int;
    }
    // SAFETY: reads a counter; cannot raise.
    unsafe { GetNumConfigOptions() as usize }
}

/// Memory that the settings machinery will free: malloc before 16, its own context since. Null when there is none.
pub fn setting_alloc(size: usize) -> *mut c_void {
    #[cfg(feature = "pg15")]
    {
        extern "C" {
            fn malloc(size: usize) -> *mut c_void;
        }
        // SAFETY: plain malloc.
        unsafe { malloc(size) }
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: below ERROR it returns null instead of raising.
    unsafe {
        pg_sys::guc_malloc(pgrx::PgLogLevel::LOG as i32, size)
    }
}

/// Frees what [`setting_alloc`] or a check hook of core's gave.
///
/// # Safety
/// `pointer` comes from there and nothing else refers to it.
pub unsafe fn setting_free(pointer: *mut c_void) {
    #[cfg(feature = "pg15")]
    {
        extern "C" {
            fn free(pointer: *mut c_void);
        }
        // SAFETY: the caller's promise.
        unsafe { free(pointer) }
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::guc_free(pointer)
    }
}

/// Whether `member` may SET ROLE to `role` (16 and later: the SET option of each step counts).
pub fn may_set_role(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: catalog look-up in a transaction; errors unwind.
    unsafe {
        pg_sys::is_member_of_role(member, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    unsafe {
        pg_sys::member_can_set_role(member, role)
    }
}

/// A row of pg_auth_members: who is granted, and how.
pub struct MembershipRow {
    pub role: pg_sys::Oid,
    pub admin: bool,
    /// None before 16, where inheriting is the member's attribute.
    pub inherit: Option<bool>,
    /// Always before 16.
    pub set: bool,
}

/// Reads a row; the bindings have no struct for it.
///
/// # Safety
/// `tuple` is one of the AUTHMEMMEMROLE cache.
pub unsafe fn membership_row(tuple: pg_sys::HeapTuple) -> MembershipRow {
    let column = |number: i16| {
        let mut is_null = false;
        // SAFETY: the caller's promise; all columns are NOT NULL.
        unsafe {
            pg_sys::SysCacheGetAttr(
                pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE as i32,
                tuple,
                number,
                &raw mut is_null,
            )
        }
    };
    let flag = |number| column(number).value() & 0xFF != 0;
    let role = |number| pg_sys::Oid::from(column(number).value() as u32);
    if cfg!(feature = "pg15") {
        MembershipRow {
            role: role(1),
            admin: flag(4),
            inherit: None,
            set: true,
        }
    } else {
        MembershipRow {
            role: role(2),
            admin: flag(5),
            inherit: Some(flag(6)),
            set: flag(7),
        }
    }
}

/// Privileges, as many bits as they have in this version.
// Since 16 they have 64.
#[allow(clippy::useless_conversion)]
pub fn acl_bits(mode: pg_sys::AclMode) -> u64 {
    u64::from(mode)
}

/// The low half of an ACL item's bits are privileges, the high half the right to grant them.
pub fn acl_halves(bits: pg_sys::AclMode) -> (u64, u64) {
    let bits = acl_bits(bits);
    if cfg!(feature = "pg15") {
        (bits & 0xFFFF, bits >> 16)
    } else {
        (bits & 0xFFFF_FFFF, bits >> 32)
    }
}

/// The admin option that a GRANT or REVOKE of roles asks for, as the grammar of this version hands it over.
#[cfg_attr(feature = "pg15", allow(dead_code))]
pub enum AdminClause {
    /// Nothing said.
    Plain,
    /// `WITH ADMIN OPTION`, `WITH ADMIN TRUE`; with REVOKE: `ADMIN OPTION FOR`.
    Admin,
    /// `WITH ADMIN TRUE, SET FALSE`.
    AdminOnly,
    /// An option that SET USER has no use for.
    Unsupported(String),
}

/// What `statement` says of the admin option.
///
/// # Safety
/// `statement` is a GrantRoleStmt as the grammar made it.
pub unsafe fn admin_clause(statement: *mut pg_sys::GrantRoleStmt) -> AdminClause {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        if (*statement).admin_opt {
            AdminClause::Admin
        } else {
            AdminClause::Plain
        }
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: opt is a list of DefElem whose arguments the grammar made booleans or strings.
    unsafe {
        let (mut admin, mut set) = (None, None);
        for element in super::nodes::list_pointers((*statement).opt) {
            let element: *mut pg_sys::DefElem = element.cast();
            let name = CStr::from_ptr((*element).defname).to_string_lossy().into_owned();
            match name.as_str() {
                // `ADMIN OPTION FOR` comes as "admin" with the value false: what is left after it.
                "admin" if !(*statement).is_grant => return AdminClause::Admin,
                "admin" => admin = Some((*element).arg.is_null() || pg_sys::defGetBoolean(element)),
                "set" if (*statement).is_grant => set = Some(pg_sys::defGetBoolean(element)),
                other => return AdminClause::Unsupported(other.to_owned()),
            }
        }
        match (admin.unwrap_or(false), set.unwrap_or(true)) {
            (false, true) => AdminClause::Plain,
            (false, false) => AdminClause::Unsupported("set".to_owned()),
            (true, true) => AdminClause::Admin,
            (true, false) => AdminClause::AdminOnly,
        }
    }
}

/// Writes `tuple` over the one at `place`.
///
/// # Safety
/// The relation is open and locked for writing, has no index, and the newest version of a row is at `place`.
pub unsafe fn update_tuple(relation: pg_sys::Relation, place: *mut pg_sys::ItemPointerData, tuple: pg_sys::HeapTuple) {
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::simple_heap_update(relation, place, tuple);
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: the caller's promise.
    unsafe {
        let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
        pg_sys::simple_heap_update(relation, place, tuple, &raw mut indexes);
    }
}

/// Adds a row that was stored to its table's indexes.
///
/// # Safety
/// The slot holds the row and says where it is; the indexes are open.
pub unsafe fn insert_into_indexes(
    table: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    state: *mut pg_sys::EState,
) {
    let none = std::ptr::null_mut();
    #[cfg(feature = "pg15")]
    // SAFETY: the caller's promise; nothing is to be checked later, so there is nothing in the result.
    unsafe {
        pg_sys::ExecInsertIndexTuples(table, slot, state, false, false, none, std::ptr::null_mut());
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    unsafe {
        pg_sys::ExecInsertIndexTuples(table, slot, state, false, false, none, std::ptr::null_mut(), false);
    }
}

/// A column of a table, from 0.
///
/// # Safety
/// The descriptor has it.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, at: i32) -> *const pg_sys::FormData_pg_attribute {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: the caller's promise.
    unsafe {
        (*descriptor).attrs.as_ptr().add(at as usize)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::TupleDescAttr(descriptor, at)
    }
}

/// This backend's place among the server's processes: 0 to MaxBackends - 1 for client backends. None in a process without
/// one: the postmaster and the logger read configuration files too.
pub fn backend_slot() -> Option<usize> {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: null or this process's own.
    unsafe {
        pg_sys::MyProc.as_ref().map(|own| own.pgprocno as usize)
    }
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: a plain global; negative for none.
    unsafe {
        usize::try_from(pg_sys::MyProcNumber).ok()
    }
}

/// The error text of a check hook: what call_check_hook reports.
pub fn set_check_message(message: &str, detail: Option<&str>, hint: Option<&str>) {
    fn copy(text: &str) -> *mut c_char {
        let text = std::ffi::CString::new(text.replace('\0', "")).unwrap_or_default();
        // SAFETY: pstrdup copies into the current context, which outlives the report.
        unsafe { pg_sys::pstrdup(text.as_ptr()) }
    }
    // SAFETY: plain globals that guc.c reads after the hook returned false.
    unsafe {
        pg_sys::GUC_check_errmsg_string = copy(message);
        if let Some(detail) = detail {
            pg_sys::GUC_check_errdetail_string = copy(detail);
        }
        if let Some(hint) = hint {
            pg_sys::GUC_check_errhint_string = copy(hint);
        }
    }
}

/// Whether this process serves a replication connection.
pub fn is_walsender() -> bool {
    extern "C" {
        static am_walsender: bool;
    }
    // SAFETY: a global of the server's.
    unsafe { am_walsender }
}

/// pg_logical_emit_message(), whose name in C tells its arguments.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const EMIT_MESSAGE: [u32; 2] = [
    pg_sys::F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_TEXT,
    pg_sys::F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_BYTEA,
];
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub const EMIT_MESSAGE: [u32; 2] = [
    pg_sys::F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_TEXT_BOOL,
    pg_sys::F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_BYTEA_BOOL,
];

/// Whether this process serves a client's connection, and not the server itself or an extension.
pub fn is_client_backend() -> bool {
    // SAFETY: a global of the server's.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND || is_walsender() }
}

/// What is wanted of a relation, as the permissions hook is given it.
pub struct Wanted {
    pub relation: pg_sys::Oid,
    pub wanted: u64,
    /// InvalidOid for the current user.
    pub as_user: pg_sys::Oid,
    entry: *mut c_void,
}

impl Wanted {
    /// None for what is no relation.
    ///
    /// # Safety
    /// `entry` is of the hook's list: a range table entry before 16, a permission info since.
    pub unsafe fn read(entry: *mut c_void) -> Option<Wanted> {
        // SAFETY: the caller's promise.
        let (relation, wanted, as_user) = unsafe {
            #[cfg(feature = "pg15")]
            let of = &*entry.cast::<pg_sys::RangeTblEntry>();
            #[cfg(feature = "pg15")]
            let is_relation = of.rtekind == pg_sys::RTEKind::RTE_RELATION;
            #[cfg(not(feature = "pg15"))]
            let of = &*entry.cast::<pg_sys::RTEPermissionInfo>();
            #[cfg(not(feature = "pg15"))]
            let is_relation = true;
            if !is_relation || of.relid == pg_sys::Oid::INVALID {
                return None;
            }
            (of.relid, acl_bits(of.requiredPerms), of.checkAsUser)
        };
        Some(Wanted {
            relation,
            wanted,
            as_user,
            entry,
        })
    }

    /// The server's own check of this entry, for another role.
    ///
    /// # Safety
    /// `table` is the range table that the entry is of.
    #[cfg_attr(feature = "pg15", allow(unused_variables))]
    pub unsafe fn allowed_to(&self, table: *mut pg_sys::List, role: pg_sys::Oid) -> bool {
        #[cfg(feature = "pg15")]
        // SAFETY: a shallow copy, of which only the role is changed.
        unsafe {
            let mut copy = std::ptr::read(self.entry.cast::<pg_sys::RangeTblEntry>());
            copy.checkAsUser = role;
            let list = pg_sys::lappend(std::ptr::null_mut(), (&raw mut copy).cast());
            pg_sys::ExecCheckRTPerms(list, false)
        }
        #[cfg(not(feature = "pg15"))]
        // SAFETY: as above. Without a range table the check has nothing to compare the infos with.
        unsafe {
            let mut copy = std::ptr::read(self.entry.cast::<pg_sys::RTEPermissionInfo>());
            copy.checkAsUser = role;
            let list = pg_sys::lappend(std::ptr::null_mut(), (&raw mut copy).cast());
            pg_sys::ExecCheckPermissions(table, list, false)
        }
    }
}

/// Whether a role may call a function.
#[allow(clippy::useless_conversion)]
pub fn may_execute(function: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: a catalog look-up in a transaction.
    let result = unsafe { pg_sys::pg_proc_aclcheck(function, role, pg_sys::ACL_EXECUTE) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let result =
        unsafe { pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function, role, pg_sys::ACL_EXECUTE.into()) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Whether a role may look into a schema.
#[allow(clippy::useless_conversion)]
pub fn may_use_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: a catalog look-up in a transaction.
    let result = unsafe { pg_sys::pg_namespace_aclcheck(schema, role, pg_sys::ACL_USAGE) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let result =
        unsafe { pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, schema, role, pg_sys::ACL_USAGE.into()) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// The privilege that VACUUM and its like ask for; none before 17, where they ask for the owner.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const ACL_MAINTAIN: u32 = 0;
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub const ACL_MAINTAIN: u32 = pg_sys::ACL_MAINTAIN;

/// Whether a relation is a role's own.
pub fn owns_relation(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: a catalog look-up in a transaction.
    unsafe {
        pg_sys::pg_class_ownercheck(relation, role)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    unsafe {
        pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role)
    }
}
