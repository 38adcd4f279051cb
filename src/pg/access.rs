//! What limits an impersonation beside the target's privileges: the target's project, and the impersonator's own
//! privileges. Looked at where the server checks privileges, so at each statement, in functions as well.

use super::guc::{name_text, Refusal, TargetState};
use super::nodes::{list_pointers, tag};
use super::{own_objects, own_schema, rights, store, trampoline, version};
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{pg_guard, FromDatum, PgSqlErrorCode};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_void, CStr};
use std::rc::Rc;

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

extern "C-unwind" {
    fn get_partition_ancestors(relation: Oid) -> *mut pg_sys::List;
}

/// From above: the impersonation in force, and how an error is raised.
#[derive(Clone, Copy)]
struct Above {
    in_force: fn() -> Option<Rc<TargetState>>,
    raise: fn(&Refusal) -> !,
}

static ABOVE: Process<Option<Above>> = Process(Cell::new(None));
/// The server's own check is being run for the impersonator; it calls the hook again.
static ASKING: Process<bool> = Process(Cell::new(false));

/// Ends with the scope, also when an error unwinds it.
struct Asking;

impl Asking {
    fn begin() -> Asking {
        ASKING.0.set(true);
        Asking
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKING.0.set(false);
    }
}

/// In the postmaster, while libraries are preloaded. Defines `impersonate.project`, which only shows.
pub fn install(in_force: fn() -> Option<Rc<TargetState>>, raise: fn(&Refusal) -> !) {
    static VALUE: Process<*mut std::ffi::c_char> = Process(Cell::new(std::ptr::null_mut()));
    ABOVE.0.set(Some(Above { in_force, raise }));
    let flags = pg_sys::GUC_NO_RESET_ALL | pg_sys::GUC_NOT_IN_SAMPLE | pg_sys::GUC_DISALLOW_IN_FILE;
    // SAFETY: single-threaded, in the postmaster.
    unsafe {
        PREVIOUS_NEEDS = pg_sys::needs_fmgr_hook;
        pg_sys::needs_fmgr_hook = Some(must_be_called);
    }
    // SAFETY: the strings are static, the variable lives as long as the process.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            c"impersonate.project".as_ptr(),
            c"The target's project, which limits what is seen; empty when nothing does.".as_ptr(),
            c"Chosen by the target with impersonate.set_project().".as_ptr(),
            VALUE.0.as_ptr(),
            c"".as_ptr(),
            pg_sys::GucContext::PGC_INTERNAL,
            flags as i32,
            None,
            None,
            Some(show_project),
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn show_project() -> *const std::ffi::c_char {
    let name = if super::identity::in_transaction() {
        limits().and_then(|state| project_of(state.target))
    } else {
        None
    };
    match name {
        // SAFETY: a copy in the current context, which SHOW reads at once.
        Some(project) => unsafe {
            let text = std::ffi::CString::new(project.name.clone()).unwrap_or_default();
            pg_sys::pstrdup(text.as_ptr())
        },
        None => c"".as_ptr(),
    }
}

/// The impersonation whose accesses are to be limited now.
fn limits() -> Option<Rc<TargetState>> {
    if ASKING.0.get() || store::is_ours() {
        return None;
    }
    if super::identity::parallel_worker() {
        return of_leader();
    }
    if !trampoline::watching() {
        return None;
    }
    (ABOVE.0.get()?.in_force)()
}

/// What this parallel worker's leader impersonates, which stays the same for the worker's life.
fn of_leader() -> Option<Rc<TargetState>> {
    thread_local! { static FOUND: RefCell<Option<Option<Rc<TargetState>>>> = const { RefCell::new(None) } }
    if super::identity::starting_parallel_worker() {
        return None;
    }
    FOUND.with_borrow_mut(|found| {
        found
            .get_or_insert_with(|| super::active::of_leader().map(Rc::new))
            .clone()
    })
}

/// Whether accesses may have to be limited here: what runs in a parallel worker is no less the target's.
pub fn concerned() -> bool {
    if super::identity::parallel_worker() {
        limits_a_worker()
    } else {
        trampoline::watching() && !store::is_ours()
    }
}

/// Takes a lock of our own, once in a worker's life; raises nothing.
fn limits_a_worker() -> bool {
    super::active::any() && of_leader().is_some()
}

fn raise(refusal: &Refusal) {
    if let Some(above) = ABOVE.0.get() {
        (above.raise)(refusal);
    }
}

// ------------------------------------------------------------------------------------------------------- projects ---

struct Project {
    name: String,
    relations: HashSet<Oid>,
    schemas: HashSet<Oid>,
    /// What was decided for a relation, until any relation changes.
    known: RefCell<HashMap<Oid, bool>>,
}

thread_local! {
    static LOADED: RefCell<Option<(Oid, Option<Rc<Project>>)>> = const { RefCell::new(None) };
    /// Told from wherever the server takes note of a change, hence no more than a flag.
    static STALE: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: Datum, _relation: Oid) {
    STALE.set(true);
}

/// The current project of a role. Projects, their members and relations tell of changes as tables do (see
/// `projects_changed` in the script).
fn project_of(target: Oid) -> Option<Rc<Project>> {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback lives as long as the process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::null()) };
    }
    let kept = LOADED.with_borrow(|loaded| {
        let (of, project) = loaded.as_ref()?;
        (*of == target && !STALE.get()).then(|| project.clone())
    });
    if let Some(project) = kept {
        return project;
    }
    // Before it is read, so that what changes meanwhile is read again.
    STALE.set(false);
    let project = load(target).map(Rc::new);
    LOADED.set(Some((target, project.clone())));
    project
}

fn load(target: Oid) -> Option<Project> {
    let members = rights::extension_table(c"project_member")?;
    let contents = rights::extension_table(c"project_content")?;
    let mut name = None;
    // SAFETY: the columns are the script's: project, role, stamp, current.
    unsafe {
        each_row::<4>(members, &mut |values, nulls| {
            let current = bool::from_datum(values[3], nulls[3]) == Some(true);
            if current
                && Oid::from_datum(values[1], nulls[1]) == Some(target)
                && String::from_datum(values[2], nulls[2]) == rights::stamp_of(target)
            {
                name = String::from_datum(values[0], nulls[0]);
            }
        });
    }
    let name = name?;
    let (mut relations, mut schemas) = (HashSet::new(), HashSet::new());
    // SAFETY: the columns are the script's: project, kind, object, name.
    unsafe {
        each_row::<4>(contents, &mut |values, nulls| {
            if String::from_datum(values[0], nulls[0]).as_ref() != Some(&name) {
                return;
            }
            let Some(object) = Oid::from_datum(values[2], nulls[2]) else {
                return;
            };
            match String::from_datum(values[1], nulls[1]).as_deref() {
                Some("relation") => relations.insert(object),
                Some("schema") => schemas.insert(object),
                _ => false,
            };
        });
    }
    Some(Project {
        name,
        relations,
        schemas,
        known: RefCell::default(),
    })
}

/// The newest committed rows, and this transaction's own.
///
/// # Safety
/// The table is one of the extension's.
pub(super) unsafe fn each_row<const N: usize>(table: Oid, body: &mut dyn FnMut(&[Datum; N], &[bool; N])) {
    // SAFETY: as in `rights::Reader::rows`. A table of another shape is passed over.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let shape = (*relation).rd_att;
        if (*shape).natts as usize == N {
            let none = std::ptr::null_mut();
            let scan = pg_sys::systable_beginscan(relation, Oid::INVALID, false, none, 0, std::ptr::null_mut());
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let (mut values, mut nulls) = ([Datum::null(); N], [true; N]);
                pg_sys::heap_deform_tuple(tuple, shape, values.as_mut_ptr(), nulls.as_mut_ptr());
                body(&values, &nulls);
            }
            pg_sys::systable_endscan(scan);
        }
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}

impl Project {
    fn has(&self, relation: Oid) -> bool {
        if relation.to_u32() < pg_sys::FirstNormalObjectId {
            return true;
        }
        if let Some(known) = self.known.borrow().get(&relation) {
            return *known;
        }
        // SAFETY: look-ups that give InvalidOid or null for what isn't there.
        let has = unsafe { self.decide(relation, 0) };
        self.known.borrow_mut().insert(relation, has);
        has
    }

    unsafe fn decide(&self, relation: Oid, depth: u8) -> bool {
        if relation == Oid::INVALID || depth > 4 {
            return false;
        }
        if relation.to_u32() < pg_sys::FirstNormalObjectId || self.relations.contains(&relation) {
            return true;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let schema = pg_sys::get_rel_namespace(relation);
            if self.schemas.contains(&schema)
                || pg_sys::isTempNamespace(schema)
                || pg_sys::isTempToastNamespace(schema)
                || own_objects::is_own(pg_sys::RelationRelationId, relation)
            {
                return true;
            }
            let kind = pg_sys::get_rel_relkind(relation) as u8;
            if matches!(kind, pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX) {
                return self.decide(pg_sys::IndexGetRelation(relation, true), depth + 1);
            }
            if schema == Oid::from(pg_sys::PG_TOAST_NAMESPACE) {
                return toasted(relation).is_some_and(|table| self.decide(table, depth + 1));
            }
            match kind {
                pg_sys::RELKIND_SEQUENCE => {
                    let (mut table, mut column) = (Oid::INVALID, 0);
                    let kinds = [
                        pg_sys::DependencyType::DEPENDENCY_AUTO,
                        pg_sys::DependencyType::DEPENDENCY_INTERNAL,
                    ];
                    kinds.iter().any(|kind| {
                        pg_sys::sequenceIsOwned(relation, *kind as std::ffi::c_char, &raw mut table, &raw mut column)
                            && self.decide(table, depth + 1)
                    })
                }
                _ if pg_sys::get_rel_relispartition(relation) => {
                    let ancestors = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(relation));
                    let count = if ancestors.is_null() { 0 } else { (*ancestors).length };
                    (0..count).any(|i| {
                        let ancestor = (*(*ancestors).elements.add(i as usize)).oid_value;
                        self.relations.contains(&ancestor)
                            || self.schemas.contains(&pg_sys::get_rel_namespace(ancestor))
                    })
                }
                _ => false,
            }
        }
    }
}

/// The table whose large values are kept in this one, which bears its number.
unsafe fn toasted(relation: Oid) -> Option<Oid> {
    // SAFETY: null or a string.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return None;
        }
        let number = CStr::from_ptr(name).to_str().ok()?.strip_prefix("pg_toast_")?;
        number.parse::<u32>().ok().map(Oid::from)
    }
}

/// Whether what `user` reads is the target's own business: that of the target, of a role in force, or of a role that the
/// target could make its views and functions belong to. Others' views and security-definer functions are theirs.
unsafe fn is_targets(state: &TargetState, user: Oid) -> bool {
    // SAFETY: a catalog look-up.
    user == state.target
        || user == super::identity::role_in_force()
        || unsafe { pg_sys::is_member_of_role_nosuper(state.target, user) }
}

/// Whose privileges count now; None in checks of foreign keys, which are the table's.
fn acting() -> Option<Oid> {
    let (mut user, mut context) = (Oid::INVALID, 0);
    // SAFETY: reads two globals.
    unsafe { pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context) };
    (context & pg_sys::SECURITY_NOFORCE_RLS as c_int == 0).then_some(user)
}

fn qualified(relation: Oid) -> String {
    // SAFETY: null or palloc'ed strings.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return relation.to_u32().to_string();
        }
        let schema = pg_sys::get_namespace_name_or_temp(pg_sys::get_rel_namespace(relation));
        let schema = if schema.is_null() {
            c"".as_ptr()
        } else {
            schema.cast_const()
        };
        let full = pg_sys::quote_qualified_identifier(schema, name);
        super::identity::to_utf8(CStr::from_ptr(full).to_bytes()).to_string()
    }
}

fn refuse_outside(project: &Project, relation: Oid, state: &TargetState) {
    let name = qualified(relation);
    let cure = format!(
        "A superuser can add it: SELECT impersonate.add_to_project({}, {});",
        impersonate_policy::quote_literal(&project.name),
        impersonate_policy::quote_literal(&name)
    );
    refuse_name(project, &name, cure, state);
}

fn refuse_name(project: &Project, name: &str, cure: String, state: &TargetState) {
    raise(&Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message: format!("relation \"{name}\" is not in project \"{}\"", project.name),
        detail: Some(format!(
            "While role \"{}\" is impersonated, only its current project can be used.",
            name_text(&state.target_name)
        )),
        hint: Some(cure),
    });
}

/// What a statement takes that names a relation without a privilege that the executor would check.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Takes {
    /// To be its owner.
    Owner,
    /// MAINTAIN, or before 17 to be its owner.
    Maintain,
    /// One of these privileges.
    OneOf(u32),
    /// Some privilege, whichever.
    Any,
}

/// A relation that a statement names.
pub type Named = (Oid, Takes);

/// A statement names these relations without a privilege that the executor would check.
pub fn relations_named(relations: &dyn Fn() -> Vec<Named>) {
    let Some(state) = limits() else { return };
    let project = project_of(state.target);
    if project.is_none() && !state.rules.intersection {
        return;
    }
    let Some(user) = acting() else { return };
    // SAFETY: a catalog look-up.
    if !unsafe { is_targets(&state, user) } {
        return;
    }
    for (relation, takes) in relations() {
        if relation == Oid::INVALID {
            continue;
        }
        if let Some(project) = project.as_ref().filter(|project| !project.has(relation)) {
            refuse_outside(project, relation, &state);
        }
        if state.rules.intersection {
            refuse_named(&state, relation, takes);
        }
    }
}

/// What the server tells of objects as it comes to them.
///
/// # Safety
/// Called as the object access hook is.
pub unsafe fn object(access: pg_sys::ObjectAccessType::Type, class: Oid, object: Oid, argument: *mut c_void) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_FUNCTION_EXECUTE, OAT_NAMESPACE_SEARCH, OAT_TRUNCATE};
    // SAFETY: the argument is what each kind of access has (objectaccess.h).
    unsafe {
        if access == OAT_TRUNCATE {
            named_one(object, Takes::OneOf(pg_sys::ACL_TRUNCATE));
        } else if access == OAT_DROP && class == pg_sys::RelationRelationId {
            let drop = argument.cast::<pg_sys::ObjectAccessDrop>();
            if drop.is_null() || (*drop).dropflags & pg_sys::PERFORM_DELETION_INTERNAL as c_int == 0 {
                named_one(object, Takes::Owner);
            }
        } else if access == OAT_FUNCTION_EXECUTE {
            function_runs(object);
        } else if access == OAT_NAMESPACE_SEARCH && !argument.is_null() {
            let search = argument.cast::<pg_sys::ObjectAccessNamespaceSearch>();
            if !schema_searched(object, (*search).ereport_on_violation) {
                (*search).result = false;
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn named_one(relation: Oid, takes: Takes) {
    relations_named(&|| vec![(relation, takes)]);
}

/// Sequences that a plan names as constants, which is what nextval() and its like are given: no hook sees these at work.
///
/// # Safety
/// The plan is about to run.
#[pg_guard]
pub unsafe extern "C-unwind" fn plan_begins(plan: *const pg_sys::PlannedStmt) {
    // SAFETY: a list of OIDs.
    relations_named(&|| unsafe {
        let list = (*plan).relationOids;
        let count = if list.is_null() { 0 } else { (*list).length };
        (0..count)
            .map(|i| (*(*list).elements.add(i as usize)).oid_value)
            .filter(|relation| pg_sys::get_rel_relkind(*relation) as u8 == pg_sys::RELKIND_SEQUENCE)
            .map(|relation| (relation, Takes::Any))
            .collect()
    });
}

/// The relations of a range table whose privileges are about to be checked.
///
/// # Safety
/// The lists are those of the permissions hook.
#[pg_guard]
pub unsafe extern "C-unwind" fn rows_wanted(table: *mut pg_sys::List, entries: *mut pg_sys::List) {
    let Some(state) = limits() else { return };
    let project = project_of(state.target);
    if project.is_none() && !state.rules.intersection {
        return;
    }
    let Some(user) = acting() else { return };
    let mut own = Vec::new();
    // SAFETY: the lists hold what they do in this version.
    unsafe {
        for entry in list_pointers(entries) {
            let Some(entry) = version::Wanted::read(entry) else {
                continue;
            };
            let as_user = if entry.as_user == Oid::INVALID {
                user
            } else {
                entry.as_user
            };
            if entry.wanted == 0 || !is_targets(&state, as_user) {
                continue;
            }
            if let Some(project) = project.as_ref().filter(|project| !project.has(entry.relation)) {
                refuse_outside(project, entry.relation, &state);
            }
            // Temporary objects of the session are its own, whoever it is.
            if !pg_sys::isTempNamespace(pg_sys::get_rel_namespace(entry.relation)) {
                own.push(entry);
            }
        }
        if state.rules.intersection {
            for entry in own {
                let asking = Asking::begin();
                let allowed = entry.allowed_to(table, state.impersonator);
                drop(asking);
                if !allowed {
                    lacks(&state, "privileges on relation", &qualified(entry.relation));
                }
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------- intersection ---

fn lacks(state: &TargetState, what: &str, name: &str) {
    let impersonator = name_text(&state.impersonator_name);
    raise(&Refusal {
        sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        message: format!("permission denied for \"{name}\" to the impersonator \"{impersonator}\""),
        detail: Some(format!(
            "With scope intersection, role \"{impersonator}\" needs {what} \"{name}\" as well as role \"{}\".",
            name_text(&state.target_name)
        )),
        hint: Some(format!("GRANT the privilege to \"{impersonator}\" as well.")),
    });
}

/// A statement about a relation itself asks for its owner, a sequence's function for some privilege on it.
// AclMode is wider since 16.
#[allow(clippy::useless_conversion)]
fn refuse_named(state: &TargetState, relation: Oid, takes: Takes) {
    // SAFETY: catalog look-ups.
    let lacked = unsafe {
        if relation.to_u32() < pg_sys::FirstNormalObjectId
            || pg_sys::isTempNamespace(pg_sys::get_rel_namespace(relation))
        {
            return;
        }
        let any = match (takes, pg_sys::get_rel_relkind(relation) as u8) {
            (Takes::OneOf(privileges), _) => privileges,
            (Takes::Maintain, _) => version::ACL_MAINTAIN,
            (_, pg_sys::RELKIND_SEQUENCE) => pg_sys::ACL_USAGE | pg_sys::ACL_UPDATE | pg_sys::ACL_SELECT,
            (Takes::Any, pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX) => return,
            _ => {
                pg_sys::ACL_TRUNCATE
                    | pg_sys::ACL_REFERENCES
                    | pg_sys::ACL_INSERT
                    | pg_sys::ACL_UPDATE
                    | pg_sys::ACL_DELETE
                    | pg_sys::ACL_SELECT
                    | version::ACL_MAINTAIN
            }
        };
        if matches!(takes, Takes::Owner | Takes::Maintain) && version::owns_relation(relation, state.impersonator) {
            false
        } else if takes == Takes::Owner {
            true
        } else {
            // An index has no privileges of its own.
            let table = pg_sys::IndexGetRelation(relation, true);
            let relation = if table == Oid::INVALID { relation } else { table };
            let how = pg_sys::AclMaskHow::ACLMASK_ANY;
            // Privileges have 64 bits from 16 on.
            #[allow(clippy::useless_conversion)]
            let any = any.into();
            pg_sys::pg_class_aclmask(relation, state.impersonator, any, how) == 0
        }
    };
    if lacked {
        let what = match takes {
            Takes::Maintain if version::ACL_MAINTAIN != 0 => "privilege MAINTAIN on relation",
            Takes::Maintain | Takes::Owner => "to own relation",
            Takes::OneOf(_) | Takes::Any => "privileges on relation",
        };
        lacks(state, what, &qualified(relation));
    }
}

fn intersected() -> Option<Rc<TargetState>> {
    let state = limits().filter(|state| state.rules.intersection)?;
    let user = acting()?;
    // SAFETY: a catalog look-up.
    unsafe { is_targets(&state, user) }.then_some(state)
}

static mut PREVIOUS_NEEDS: pg_sys::needs_fmgr_hook_type = None;

/// Whether the planner must leave a call of a function alone: no hook sees one whose body took its place.
unsafe extern "C-unwind" fn must_be_called(function: Oid) -> bool {
    // SAFETY: called as the server called us.
    unsafe { (concerned() && limits_by_intersection()) || PREVIOUS_NEEDS.is_some_and(|previous| previous(function)) }
}

#[pg_guard]
unsafe extern "C-unwind" fn limits_by_intersection() -> bool {
    limits().is_some_and(|state| state.rules.intersection)
}

#[pg_guard]
unsafe extern "C-unwind" fn function_runs(function: Oid) {
    let Some(state) = intersected() else { return };
    if !version::may_execute(function, state.impersonator) {
        // SAFETY: null or a palloc'ed string.
        let name = unsafe {
            let name = pg_sys::get_func_name(function);
            if name.is_null() {
                String::new()
            } else {
                super::identity::to_utf8(CStr::from_ptr(name).to_bytes()).to_string()
            }
        };
        lacks(&state, "EXECUTE on function", &name);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_searched(schema: Oid, raises: bool) -> bool {
    let Some(state) = intersected() else { return true };
    // SAFETY: a catalog look-up.
    let allowed = unsafe { pg_sys::isTempNamespace(schema) } || version::may_use_schema(schema, state.impersonator);
    if !allowed && raises {
        // SAFETY: null or a palloc'ed string.
        let name = unsafe {
            let name = pg_sys::get_namespace_name(schema);
            if name.is_null() {
                String::new()
            } else {
                super::identity::to_utf8(CStr::from_ptr(name).to_bytes()).to_string()
            }
        };
        lacks(&state, "USAGE on schema", &name);
    }
    allowed
}

/// Whether a right limits its impersonations to what the impersonator may do as well.
pub fn right_is_intersected(grant: i64) -> bool {
    let Some(table) = rights::extension_table(c"grant_access") else {
        return false;
    };
    let mut found = false;
    // SAFETY: the columns are the script's: grant_id, access.
    unsafe {
        each_row::<2>(table, &mut |values, nulls| {
            found |= i64::from_datum(values[0], nulls[0]) == Some(grant)
                && String::from_datum(values[1], nulls[1]).as_deref() == Some("intersection");
        });
    }
    found
}

/// Whether utility statements of this kind name relations that are to be looked at. Neither raises nor waits.
pub fn concerns(kind: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag::*;
    matches!(
        kind,
        T_CopyStmt
            | T_TruncateStmt
            | T_LockStmt
            | T_CreateStmt
            | T_CreateForeignTableStmt
            | T_AlterSeqStmt
            | T_AlterTableStmt
            | T_RenameStmt
            | T_AlterObjectSchemaStmt
            | T_IndexStmt
            | T_CreateTrigStmt
            | T_RuleStmt
            | T_CreatePolicyStmt
            | T_AlterPolicyStmt
            | T_CreateStatsStmt
            | T_DropStmt
            | T_CommentStmt
            | T_SecLabelStmt
            | T_GrantStmt
            | T_VacuumStmt
            | T_ClusterStmt
            | T_ReindexStmt
            | T_RefreshMatViewStmt
            | T_CreateTableAsStmt
            | T_ExplainStmt
    )
}

/// A relation that a statement would make and fill; what is made empty can't be written before it is in the project.
unsafe fn filled(statement: *mut pg_sys::Node) -> Option<*const pg_sys::RangeVar> {
    // SAFETY: the caller's statement; each node is tested for its tag.
    unsafe {
        match tag(statement)? {
            pg_sys::NodeTag::T_CreateTableAsStmt => {
                let into = &*(*statement.cast::<pg_sys::CreateTableAsStmt>()).into;
                let temporary = (*into.rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP;
                (!into.skipData && !temporary).then_some(into.rel.cast_const())
            }
            pg_sys::NodeTag::T_ExplainStmt => {
                let query = (*statement.cast::<pg_sys::ExplainStmt>()).query;
                if tag(query)? != pg_sys::NodeTag::T_Query {
                    return None;
                }
                filled((*query.cast::<pg_sys::Query>()).utilityStmt)
            }
            _ => None,
        }
    }
}

/// Refuses to write to a new relation outside of the target's project.
unsafe fn fills(relation: *const pg_sys::RangeVar) {
    let Some(state) = limits() else { return };
    let Some(project) = project_of(state.target) else {
        return;
    };
    let Some(user) = acting() else { return };
    // SAFETY: the caller's node; catalog look-ups. A schema that isn't there is the server's to tell of.
    unsafe {
        let schema = own_schema::schema_or_current((*relation).schemaname);
        if !is_targets(&state, user)
            || schema == Oid::INVALID
            || pg_sys::isTempNamespace(schema)
            || project.schemas.contains(&schema)
        {
            return;
        }
        let schema_name = pg_sys::get_namespace_name(schema);
        if schema_name.is_null() {
            return;
        }
        let text =
            |name: *const std::ffi::c_char| super::identity::to_utf8(CStr::from_ptr(name).to_bytes()).to_string();
        let cure = format!(
            "A superuser can add the schema: SELECT impersonate.add_schema_to_project({}, {});",
            impersonate_policy::quote_literal(&project.name),
            impersonate_policy::quote_literal(&text(pg_sys::quote_identifier(schema_name)))
        );
        let name = text(pg_sys::quote_qualified_identifier(schema_name, (*relation).relname));
        refuse_name(&project, &name, cure, &state);
    }
}

/// What a utility statement names.
pub fn utility_begins(utility: &trampoline::Utility) {
    // SAFETY: the statement stays while this runs.
    unsafe {
        if let Some(relation) = filled((*utility.statement).utilityStmt) {
            fills(relation);
        }
    }
    // SAFETY: the statement stays while this runs.
    relations_named(&|| unsafe {
        let statement = (*utility.statement).utilityStmt;
        let otherwise = locks(statement);
        super::relations::Relations::of_utility(statement)
            .read()
            .iter()
            .filter(|touched| !touched.access.creates())
            .map(|touched| {
                let takes = if touched.access.takes_the_owner() {
                    Takes::Owner
                } else if touched.access.maintains() {
                    Takes::Maintain
                } else {
                    otherwise
                };
                (touched.relation, takes)
            })
            .collect()
    });
}

/// What LOCK asks for in its mode (lockcmds.c); any privilege for other statements.
unsafe fn locks(statement: *mut pg_sys::Node) -> Takes {
    // SAFETY: the caller's statement, tested for its tag.
    let mode = unsafe {
        if tag(statement) != Some(pg_sys::NodeTag::T_LockStmt) {
            return Takes::Any;
        }
        (*statement.cast::<pg_sys::LockStmt>()).mode
    };
    let mut privileges = pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE | pg_sys::ACL_TRUNCATE | version::ACL_MAINTAIN;
    if mode <= pg_sys::RowExclusiveLock as c_int {
        privileges |= pg_sys::ACL_INSERT;
    }
    if mode <= pg_sys::AccessShareLock as c_int {
        privileges |= pg_sys::ACL_SELECT;
    }
    Takes::OneOf(privileges)
}
