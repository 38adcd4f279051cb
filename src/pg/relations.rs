//! Which relations a statement touches, and how (L3).
//!
//! Of a plan: whatever its range table asks privileges for. That names the tables that are read and written, views and
//! the tables under them, partitioned tables (not their partitions), system catalogs, and what an inlined function
//! reads. Of a utility statement: what it names itself. A query inside it (COPY, CREATE TABLE AS, EXPLAIN ANALYZE,
//! EXECUTE, DECLARE) is seen when it starts. Sequences read by functions are not named by either.

use super::nodes::{list_pointers, tag};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag, ObjectType, Oid};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, CStr};
use std::rc::Rc;

/// Kinds of access, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(u16);

impl Access {
    pub const NONE: Access = Access(0);
    const SELECT: Access = Access(1);
    const INSERT: Access = Access(1 << 1);
    const UPDATE: Access = Access(1 << 2);
    const DELETE: Access = Access(1 << 3);
    const TRUNCATE: Access = Access(1 << 4);
    const REFERENCES: Access = Access(1 << 5);
    const MAINTAIN: Access = Access(1 << 6);
    const LOCK: Access = Access(1 << 7);
    const CREATE: Access = Access(1 << 8);
    const ALTER: Access = Access(1 << 9);
    const DROP: Access = Access(1 << 10);
    const GRANT: Access = Access(1 << 11);

    const WORDS: [&'static str; 12] = [
        "select",
        "insert",
        "update",
        "delete",
        "truncate",
        "references",
        "maintain",
        "lock",
        "create",
        "alter",
        "drop",
        "grant",
    ];

    /// Separated by commas, in the order of SQL's privileges, then what is done to the relation itself.
    pub fn in_words(self) -> Cow<'static, str> {
        if self.0.is_power_of_two() {
            // What most statements do.
            return Cow::Borrowed(Self::WORDS[self.0.trailing_zeros() as usize]);
        }
        let words = (0..)
            .zip(Self::WORDS)
            .filter(|(bit, _)| self.0 >> bit & 1 != 0)
            .map(|(_, word)| word);
        Cow::Owned(words.collect::<Vec<_>>().join(", "))
    }

    /// What doesn't exist yet.
    pub fn creates(self) -> bool {
        self == Access::CREATE
    }

    /// Whether one must own the relation for it.
    pub fn takes_the_owner(self) -> bool {
        self.0 & (Access::ALTER.0 | Access::DROP.0) != 0
    }

    /// Whether it is VACUUM or the like.
    pub fn maintains(self) -> bool {
        self.0 & Access::MAINTAIN.0 != 0
    }

    pub fn and(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// Of the privileges that a range table entry asks for.
    fn wanted(privileges: u64) -> Access {
        let kinds = [
            (pg_sys::ACL_SELECT, Access::SELECT),
            (pg_sys::ACL_INSERT, Access::INSERT),
            (pg_sys::ACL_UPDATE, Access::UPDATE),
            (pg_sys::ACL_DELETE, Access::DELETE),
        ];
        let wanted = kinds
            .iter()
            .filter(|(privilege, _)| privileges & u64::from(*privilege) != 0);
        wanted.fold(Access::NONE, |all, (_, access)| all.and(*access))
    }
}

/// A relation by its name, schema-qualified and quoted where it must be.
pub struct Touched {
    pub name: Rc<[u8]>,
    /// InvalidOid for what isn't there.
    pub relation: Oid,
    pub access: Access,
}

/// The relations of a statement that is about to run, to be read when they are wanted.
#[derive(Clone, Copy)]
pub struct Relations(Source);

#[derive(Clone, Copy)]
enum Source {
    Plan(*const pg_sys::PlannedStmt),
    Utility(*mut pg_sys::Node),
}

impl Relations {
    /// # Safety
    /// The plan stays while this is used.
    pub unsafe fn of_plan(plan: *const pg_sys::PlannedStmt) -> Relations {
        Relations(Source::Plan(plan))
    }

    /// # Safety
    /// The utility statement stays while this is used.
    pub unsafe fn of_utility(statement: *mut pg_sys::Node) -> Relations {
        Relations(Source::Utility(statement))
    }

    /// In no order, and one may come more than once. Looks into catalogs.
    pub fn read(self) -> Vec<Touched> {
        let mut found = Vec::new();
        // SAFETY: the promise made when this was made.
        unsafe {
            match self.0 {
                Source::Plan(plan) => of_plan(plan, &mut found),
                Source::Utility(statement) => of_utility(statement, &mut found),
            }
        }
        found
    }
}

unsafe fn of_plan(plan: *const pg_sys::PlannedStmt, found: &mut Vec<Touched>) {
    // SAFETY: entries of a range table, or permission infos, are what their lists hold.
    unsafe {
        #[cfg(feature = "pg15")]
        let wanted = list_pointers((*plan).rtable).map(|entry| {
            let entry = &*entry.cast::<pg_sys::RangeTblEntry>();
            (entry.relid, super::version::acl_bits(entry.requiredPerms))
        });
        #[cfg(not(feature = "pg15"))]
        let wanted = list_pointers((*plan).permInfos).map(|entry| {
            let entry = &*entry.cast::<pg_sys::RTEPermissionInfo>();
            (entry.relid, super::version::acl_bits(entry.requiredPerms))
        });
        for (relation, privileges) in wanted {
            let access = Access::wanted(privileges);
            if relation == Oid::INVALID || access == Access::NONE {
                continue;
            }
            if let Some(name) = name_of(relation) {
                found.push(Touched { name, relation, access });
            }
        }
    }
}

unsafe fn of_utility(node: *mut pg_sys::Node, found: &mut Vec<Touched>) {
    let mut all = Found(found);
    // SAFETY: each node is tested for its tag before it is read as that node; what their fields hold is the grammar's.
    unsafe {
        match tag(node) {
            Some(NodeTag::T_CopyStmt) => {
                let copy = &*node.cast::<pg_sys::CopyStmt>();
                let access = if copy.is_from { Access::INSERT } else { Access::SELECT };
                all.range(copy.relation, access);
            }
            Some(NodeTag::T_TruncateStmt) => {
                all.ranges((*node.cast::<pg_sys::TruncateStmt>()).relations, Access::TRUNCATE);
            }
            Some(NodeTag::T_LockStmt) => all.ranges((*node.cast::<pg_sys::LockStmt>()).relations, Access::LOCK),
            Some(NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt) => {
                let create = &*node.cast::<pg_sys::CreateStmt>();
                all.created(create.relation);
                all.ranges(create.inhRelations, Access::ALTER);
                for element in list_pointers(create.tableElts).chain(list_pointers(create.constraints)) {
                    all.referred(element.cast());
                }
            }
            Some(NodeTag::T_CreateTableAsStmt) => {
                let into = (*node.cast::<pg_sys::CreateTableAsStmt>()).into;
                all.created((*into).rel);
            }
            Some(NodeTag::T_ViewStmt) => all.created((*node.cast::<pg_sys::ViewStmt>()).view),
            Some(NodeTag::T_CreateSeqStmt) => all.created((*node.cast::<pg_sys::CreateSeqStmt>()).sequence),
            Some(NodeTag::T_AlterSeqStmt) => {
                all.range((*node.cast::<pg_sys::AlterSeqStmt>()).sequence, Access::ALTER);
            }
            Some(NodeTag::T_AlterTableStmt) => {
                let alter = &*node.cast::<pg_sys::AlterTableStmt>();
                all.range(alter.relation, Access::ALTER);
                for command in list_pointers(alter.cmds) {
                    let def = (*command.cast::<pg_sys::AlterTableCmd>()).def;
                    match tag(def) {
                        Some(NodeTag::T_PartitionCmd) => {
                            all.range((*def.cast::<pg_sys::PartitionCmd>()).name, Access::ALTER);
                        }
                        Some(NodeTag::T_RangeVar) => all.range(def.cast(), Access::ALTER),
                        _ => all.referred(def),
                    }
                }
            }
            Some(NodeTag::T_RenameStmt) => {
                all.range((*node.cast::<pg_sys::RenameStmt>()).relation, Access::ALTER);
            }
            Some(NodeTag::T_AlterObjectSchemaStmt) => {
                all.range((*node.cast::<pg_sys::AlterObjectSchemaStmt>()).relation, Access::ALTER);
            }
            Some(NodeTag::T_IndexStmt) => all.range((*node.cast::<pg_sys::IndexStmt>()).relation, Access::ALTER),
            Some(NodeTag::T_CreateTrigStmt) => {
                let trigger = &*node.cast::<pg_sys::CreateTrigStmt>();
                all.range(trigger.relation, Access::ALTER);
                all.range(trigger.constrrel, Access::REFERENCES);
            }
            Some(NodeTag::T_RuleStmt) => all.range((*node.cast::<pg_sys::RuleStmt>()).relation, Access::ALTER),
            Some(NodeTag::T_CreatePolicyStmt) => {
                all.range((*node.cast::<pg_sys::CreatePolicyStmt>()).table, Access::ALTER);
            }
            Some(NodeTag::T_AlterPolicyStmt) => {
                all.range((*node.cast::<pg_sys::AlterPolicyStmt>()).table, Access::ALTER);
            }
            Some(NodeTag::T_CreateStatsStmt) => {
                all.ranges((*node.cast::<pg_sys::CreateStatsStmt>()).relations, Access::ALTER);
            }
            Some(NodeTag::T_DropStmt) => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                let access = if is_relation(drop.removeType) {
                    Access::DROP
                } else {
                    Access::ALTER
                };
                for name in list_pointers(drop.objects) {
                    all.object(drop.removeType, name.cast(), access);
                }
            }
            Some(NodeTag::T_CommentStmt) => {
                let comment = &*node.cast::<pg_sys::CommentStmt>();
                all.object(comment.objtype, comment.object, Access::ALTER);
            }
            Some(NodeTag::T_SecLabelStmt) => {
                let label = &*node.cast::<pg_sys::SecLabelStmt>();
                all.object(label.objtype, label.object, Access::ALTER);
            }
            Some(NodeTag::T_GrantStmt) => {
                all.ranges((*node.cast::<pg_sys::GrantStmt>()).objects, Access::GRANT);
            }
            Some(NodeTag::T_VacuumStmt) => {
                for relation in list_pointers((*node.cast::<pg_sys::VacuumStmt>()).rels) {
                    all.range((*relation.cast::<pg_sys::VacuumRelation>()).relation, Access::MAINTAIN);
                }
            }
            Some(NodeTag::T_ClusterStmt) => {
                all.range((*node.cast::<pg_sys::ClusterStmt>()).relation, Access::MAINTAIN);
            }
            Some(NodeTag::T_ReindexStmt) => {
                all.range((*node.cast::<pg_sys::ReindexStmt>()).relation, Access::MAINTAIN);
            }
            Some(NodeTag::T_RefreshMatViewStmt) => {
                all.range((*node.cast::<pg_sys::RefreshMatViewStmt>()).relation, Access::MAINTAIN);
            }
            Some(NodeTag::T_FetchStmt) => {
                // Rows that the cursor's query gives.
                let portal = pg_sys::GetPortalByName((*node.cast::<pg_sys::FetchStmt>()).portalname);
                if !portal.is_null() {
                    for plan in list_pointers((*portal).stmts) {
                        if tag(plan.cast::<pg_sys::Node>()) == Some(NodeTag::T_PlannedStmt) {
                            of_plan(plan.cast(), all.0);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_relation(kind: ObjectType::Type) -> bool {
    matches!(
        kind,
        ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_FOREIGN_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_INDEX
    )
}

struct Found<'a>(&'a mut Vec<Touched>);

impl Found<'_> {
    fn push(&mut self, (name, relation): (Rc<[u8]>, Oid), access: Access) {
        self.0.push(Touched { name, relation, access });
    }

    /// # Safety
    /// `names` is null or a list; what of it is no RangeVar is passed over.
    unsafe fn ranges(&mut self, names: *mut pg_sys::List, access: Access) {
        // SAFETY: tested for their tags. The elements of other GRANTs are nodes, too.
        unsafe {
            for name in list_pointers(names) {
                if tag(name.cast::<pg_sys::Node>()) == Some(NodeTag::T_RangeVar) {
                    self.range(name.cast(), access);
                }
            }
        }
    }

    /// # Safety
    /// Null, or the name of a relation, which need not exist.
    unsafe fn range(&mut self, name: *const pg_sys::RangeVar, access: Access) {
        // SAFETY: the caller's promise.
        unsafe {
            if !name.is_null() && !(*name).relname.is_null() {
                self.push(existing((*name).schemaname, (*name).relname), access);
            }
        }
    }

    /// As [`Found::range`], for what comes into being: where there is no schema it is the first of the search path, and
    /// not where something of that name is already.
    unsafe fn created(&mut self, name: *const pg_sys::RangeVar) {
        // SAFETY: the caller's promise; the search path is a list of OIDs, copied.
        unsafe {
            if name.is_null() || (*name).relname.is_null() {
                return;
            }
            let schema = if !(*name).schemaname.is_null() {
                (*name).schemaname.cast_const()
            } else if (*name).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP {
                c"pg_temp".as_ptr()
            } else {
                let path = pg_sys::fetch_search_path(false);
                if path.is_null() || (*path).length == 0 {
                    std::ptr::null()
                } else {
                    pg_sys::get_namespace_name_or_temp((*(*path).elements).oid_value)
                }
            };
            self.push((spelled(schema, (*name).relname), Oid::INVALID), Access::CREATE);
        }
    }

    /// The table of a foreign key, by itself or on a column.
    unsafe fn referred(&mut self, element: *mut pg_sys::Node) {
        // SAFETY: each node is tested for its tag.
        unsafe {
            match tag(element) {
                Some(NodeTag::T_Constraint) => {
                    self.range((*element.cast::<pg_sys::Constraint>()).pktable, Access::REFERENCES);
                }
                Some(NodeTag::T_ColumnDef) => {
                    for constraint in list_pointers((*element.cast::<pg_sys::ColumnDef>()).constraints) {
                        self.referred(constraint.cast());
                    }
                }
                _ => {}
            }
        }
    }

    /// An object whose name is a list of strings: a relation, or something that belongs to one and is named after it.
    unsafe fn object(&mut self, kind: ObjectType::Type, name: *mut pg_sys::Node, access: Access) {
        let last_is_own = matches!(
            kind,
            ObjectType::OBJECT_COLUMN
                | ObjectType::OBJECT_TABCONSTRAINT
                | ObjectType::OBJECT_TRIGGER
                | ObjectType::OBJECT_RULE
                | ObjectType::OBJECT_POLICY
        );
        // SAFETY: tested for the tags that the grammar gives.
        unsafe {
            if !(is_relation(kind) || last_is_own) || tag(name) != Some(NodeTag::T_List) {
                return;
            }
            let mut parts: Vec<*const c_char> = list_pointers(name.cast())
                .filter(|part| tag(part.cast::<pg_sys::Node>()) == Some(NodeTag::T_String))
                .map(|part| (*part.cast::<pg_sys::String>()).sval.cast_const())
                .collect();
            if last_is_own {
                parts.pop();
            }
            let Some(relation) = parts.pop() else { return };
            let schema = parts.pop().unwrap_or(std::ptr::null());
            self.push(existing(schema, relation), access);
        }
    }
}

/// A relation found as the statement will find it; as it is spelled when there is none. Raises nothing: that is left to
/// the statement.
unsafe fn existing(schema: *const c_char, name: *const c_char) -> (Rc<[u8]>, Oid) {
    // SAFETY: look-ups that give InvalidOid for what isn't there. Privileges on the schema don't matter here.
    unsafe {
        let relation = if schema.is_null() {
            pg_sys::RelnameGetRelid(name)
        } else if CStr::from_ptr(schema) == c"pg_temp" {
            // The search path has it first, if anywhere.
            return (spelled(schema, name), Oid::INVALID);
        } else {
            let schema = pg_sys::get_namespace_oid(schema, true);
            if schema == Oid::INVALID {
                Oid::INVALID
            } else {
                pg_sys::get_relname_relid(name, schema)
            }
        };
        if relation == Oid::INVALID {
            return (spelled(schema, name), Oid::INVALID);
        }
        let name = name_of(relation).unwrap_or_else(|| spelled(schema, name));
        (name, relation)
    }
}

unsafe fn spelled(schema: *const c_char, name: *const c_char) -> Rc<[u8]> {
    let mut text = Vec::new();
    // SAFETY: strings; a schema may be null.
    unsafe {
        if !schema.is_null() {
            put_quoted(&mut text, schema);
            text.push(b'.');
        }
        put_quoted(&mut text, name);
    }
    text.into()
}

/// As quote_ident() does it, whatever the session has set.
unsafe fn put_quoted(text: &mut Vec<u8>, name: *const c_char) {
    // SAFETY: a string; the setting is put back, as nothing raises in between but want of memory.
    unsafe {
        let setting = pg_sys::quote_all_identifiers;
        pg_sys::quote_all_identifiers = false;
        let quoted = pg_sys::quote_identifier(name);
        pg_sys::quote_all_identifiers = setting;
        text.extend_from_slice(CStr::from_ptr(quoted).to_bytes());
    }
}

// ---------------------------------------------------------------------------------------------------- names, kept ---

/// So many names are kept, each in a place that its OID gives.
const PLACES: usize = 256;

type Kept = Option<(Oid, Rc<[u8]>)>;

thread_local! {
    static NAMES: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
    /// Something was renamed since: told from wherever the server takes note of that, hence no more than a flag.
    static STALE: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// None when there is no such relation.
fn name_of(relation: Oid) -> Option<Rc<[u8]>> {
    if !REGISTERED.replace(true) {
        // SAFETY: the callbacks live as long as the process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
            let schemas = pg_sys::SysCacheIdentifier::NAMESPACEOID as c_int;
            pg_sys::CacheRegisterSyscacheCallback(schemas, Some(schema_changed), pg_sys::Datum::null());
        }
    }
    if STALE.replace(false) {
        NAMES.with_borrow_mut(Vec::clear);
    }
    let place = relation.to_u32() as usize % PLACES;
    let known = NAMES.with_borrow(|names| match names.get(place) {
        Some(Some((known, name))) if *known == relation => Some(name.clone()),
        _ => None,
    });
    if known.is_some() {
        return known;
    }
    // SAFETY: look-ups that give null for what isn't there.
    let name = unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return None;
        }
        spelled(
            pg_sys::get_namespace_name_or_temp(pg_sys::get_rel_namespace(relation)),
            name,
        )
    };
    NAMES.with_borrow_mut(|names| {
        names.resize(PLACES, None);
        names[place] = Some((relation, name.clone()));
    });
    Some(name)
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, _relation: Oid) {
    STALE.set(true);
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: pg_sys::Datum, _cache: c_int, _hash: u32) {
    STALE.set(true);
}
