//! What a role itself owns and was granted, for A6.
//!
//! pg_shdepend lists, role by role, the objects that a role owns or that have it in their ACL, whatever their kind. So
//! only those are read, and not what else there is in the database.

use super::identity::to_utf8;
use super::latch::check_for_interrupts;
use super::roles::{acl_items, role_id, role_oid, PARAMETER_ACL};
use super::version;
use impersonate_policy::{quote_identifier, Grant, ObjectId, ObjectName, Possession, Privileges, RoleId};
use pgrx::pg_sys::{self, Datum, Oid};
use std::collections::HashMap;
use std::ffi::{c_char, CStr};

// What the bindings lack.
const SHARED_DEPENDENCIES: Oid = Oid::from_u32(1214);
const SHARED_DEPENDENCIES_OF_ROLE: Oid = Oid::from_u32(1233);
const MEMBERSHIPS: Oid = Oid::from_u32(1261);
const DEFAULT_ACL: Oid = Oid::from_u32(826);
const POLICY: Oid = Oid::from_u32(3256);
const SUBSCRIPTION: Oid = Oid::from_u32(6100);
const LANGUAGE: Oid = Oid::from_u32(2612);
/// In dependencies a large object is one of pg_largeobject, though its owner and ACL are in pg_largeobject_metadata.
const LARGE_OBJECT: Oid = Oid::from_u32(2613);
const LARGE_OBJECT_METADATA: Oid = Oid::from_u32(2995);
/// pg_maintain, from 17 on; as is the privilege, the last in `ACL_*`.
const ROLE_PG_MAINTAIN: Oid = Oid::from_u32(6337);
const ACL_MAINTAIN: u32 = 1 << 14;

/// A row of pg_shdepend that refers to the role, and why.
#[derive(Clone, Copy)]
struct Entry {
    class: Oid,
    object: Oid,
    column: i32,
    kind: u8,
}

/// OIDs that are no further from each other are near, and so many entries are worth a scan.
const NEAR: u32 = 16;
const RUN: usize = 8;

const OWNER: u8 = b'o';
const ACL: u8 = b'a';
const IN_POLICY: u8 = b'r';

/// Tells `each` of what `role` itself was given in this database and on what databases share.
///
/// Read from the latest committed state and this transaction's own changes. What is dropped meanwhile is passed over.
pub fn possessions(role: RoleId, each: &mut dyn FnMut(Possession<'_>)) {
    // The server notes no dependencies on the roles that it comes with (IsPinnedObject in catalog.c).
    if role.0 < pg_sys::FirstUnpinnedObjectId {
        return each(Possession::Unlisted);
    }
    let mut entries = entries(role_oid(role));
    // By catalog and object, so that look-ups are near each other.
    entries.sort_unstable_by_key(|entry| (u32::from(entry.class), u32::from(entry.object), entry.column));
    let mut reader = Reader::default();
    for of_class in entries.chunk_by(|one, next| one.class == next.class) {
        let class = of_class[0].class;
        // A4's and A2's; and what a role wants for future objects is nothing until there are some.
        if [PARAMETER_ACL, MEMBERSHIPS, DEFAULT_ACL].contains(&class) {
            continue;
        }
        let Some(catalog) = Catalog::open(class) else {
            // A kind that is not known here: only who holds the role certainly has as much.
            let given = of_class
                .iter()
                .filter(|entry| [OWNER, ACL, IN_POLICY].contains(&entry.kind));
            given.for_each(|entry| each(Possession::Owned(entry.id())));
            continue;
        };
        catalog.each_row(of_class, &mut |row, of_object| {
            check_for_interrupts();
            for entry in of_object {
                reader.tell(role, &catalog, row, *entry, each);
            }
        });
        catalog.close();
    }
}

impl Entry {
    fn id(self) -> ObjectId {
        ObjectId {
            class: self.class.into(),
            object: self.object.into(),
            column: self.column,
        }
    }
}

fn entries(role: Oid) -> Vec<Entry> {
    let mut found = Vec::new();
    // SAFETY: relation and scan are closed on the way out; on error the server's own cleanup does. The columns are
    // NOT NULL and of the types that they are taken for (pg_shdepend.h).
    unsafe {
        let relation = pg_sys::table_open(SHARED_DEPENDENCIES, pg_sys::AccessShareLock as i32);
        let mut keys = std::mem::zeroed::<[pg_sys::ScanKeyData; 2]>();
        for (key, (column, value)) in keys.iter_mut().zip([(5, pg_sys::AuthIdRelationId), (6, role)]) {
            pg_sys::ScanKeyInit(
                key,
                column,
                pg_sys::BTEqualStrategyNumber as u16,
                Oid::from(pg_sys::F_OIDEQ),
                Datum::from(value),
            );
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            SHARED_DEPENDENCIES_OF_ROLE,
            true,
            std::ptr::null_mut(),
            2,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let column = |number| {
                let mut is_null = false;
                pg_sys::heap_getattr(tuple, number, (*relation).rd_att, &mut is_null).value()
            };
            let database = Oid::from(column(1) as u32);
            if database == Oid::INVALID || database == pg_sys::MyDatabaseId {
                found.push(Entry {
                    class: Oid::from(column(2) as u32),
                    object: Oid::from(column(3) as u32),
                    column: column(4) as i32,
                    kind: column(7) as u8,
                });
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// A catalog of objects, and where in it things are. Column numbers are 0 for what it hasn't.
struct Catalog {
    relation: pg_sys::Relation,
    /// The syscache by OID, if it has one.
    cache: Option<i32>,
    oid: i16,
    owner: i16,
    acl: i16,
    namespace: i16,
}

impl Catalog {
    /// Opens it; None for a catalog that the server itself has no such knowledge of.
    fn open(class: Oid) -> Option<Catalog> {
        let class = if class == LARGE_OBJECT {
            LARGE_OBJECT_METADATA
        } else {
            class
        };
        // SAFETY: the others raise for classes that the first doesn't know.
        unsafe {
            if !pg_sys::is_objectclass_supported(class) {
                return None;
            }
            let cache = pg_sys::get_object_catcache_oid(class);
            Some(Catalog {
                relation: pg_sys::table_open(class, pg_sys::AccessShareLock as i32),
                cache: (cache > 0).then_some(cache),
                oid: pg_sys::get_object_attnum_oid(class),
                owner: pg_sys::get_object_attnum_owner(class),
                acl: pg_sys::get_object_attnum_acl(class),
                namespace: pg_sys::get_object_attnum_namespace(class),
            })
        }
    }

    /// Not by being dropped: after an error the server has closed it.
    fn close(self) {
        // SAFETY: opened in open().
        unsafe { pg_sys::table_close(self.relation, pg_sys::AccessShareLock as i32) };
    }

    /// Reads the rows of the objects of `entries`, which are in their order; each with the entries that speak of it.
    ///
    /// What was made together has OIDs near each other. One scan is less work then than many look-ups, and leaves
    /// nothing in the caches.
    fn each_row(&self, entries: &[Entry], each: &mut dyn FnMut(&Row, &[Entry])) {
        // SAFETY: a look-up in a table of the server's, by the OID of an open relation.
        let index = unsafe { pg_sys::get_object_oid_index((*self.relation).rd_id) };
        let near = |one: &Entry, next: &Entry| u32::from(next.object) - u32::from(one.object) <= NEAR;
        for run in entries.chunk_by(near) {
            if index != Oid::INVALID && run.len() >= RUN {
                self.scan(index, run, each);
                continue;
            }
            for of_object in run.chunk_by(|one, next| one.object == next.object) {
                self.row(of_object[0].object, |row| each(row, of_object));
            }
        }
    }

    fn scan(&self, index: Oid, run: &[Entry], each: &mut dyn FnMut(&Row, &[Entry])) {
        let (first, last) = (run[0].object, run[run.len() - 1].object);
        // SAFETY: the scan is closed on the way out, after an error by the server; a tuple is read before the next.
        unsafe {
            let mut keys = std::mem::zeroed::<[pg_sys::ScanKeyData; 2]>();
            let bounds = [
                (pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_OIDGE, first),
                (pg_sys::BTLessEqualStrategyNumber, pg_sys::F_OIDLE, last),
            ];
            for (key, (strategy, function, bound)) in keys.iter_mut().zip(bounds) {
                let function = Oid::from(function);
                pg_sys::ScanKeyInit(key, self.oid, strategy as u16, function, Datum::from(bound));
            }
            let snapshot = std::ptr::null_mut();
            let scan = pg_sys::systable_beginscan(self.relation, index, true, snapshot, 2, keys.as_mut_ptr());
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let descriptor = (*self.relation).rd_att;
                let row = Row { tuple, descriptor };
                let object = u32::from(row.oid(self.oid));
                let start = run.partition_point(|entry| u32::from(entry.object) < object);
                let end = run.partition_point(|entry| u32::from(entry.object) <= object);
                if start < end {
                    each(&row, &run[start..end]);
                }
            }
            pg_sys::systable_endscan(scan);
        }
    }

    /// What `read` makes of the object's row; None when there is none any more.
    fn row<T>(&self, object: Oid, read: impl FnOnce(&Row) -> T) -> Option<T> {
        // SAFETY: the row is read before it is released; after an error the server does that.
        unsafe {
            let tuple = match self.cache {
                Some(cache) => pg_sys::SearchSysCache1(cache, Datum::from(object)),
                None => pg_sys::get_catalog_object_by_oid(self.relation, self.oid, object),
            };
            if tuple.is_null() {
                return None;
            }
            let descriptor = (*self.relation).rd_att;
            let result = read(&Row { tuple, descriptor });
            match self.cache {
                Some(_) => pg_sys::ReleaseSysCache(tuple),
                None => pg_sys::heap_freetuple(tuple),
            }
            Some(result)
        }
    }
}

/// A row of a catalog, valid while it is being read.
struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// None for NULL, and for a column that the catalog hasn't.
    fn datum(&self, column: i16) -> Option<Datum> {
        if column <= 0 {
            return None;
        }
        let mut is_null = false;
        // SAFETY: tuple and descriptor are of the same catalog, which has that many columns.
        let datum = unsafe { pg_sys::heap_getattr(self.tuple, column.into(), self.descriptor, &mut is_null) };
        (!is_null).then_some(datum)
    }

    /// InvalidOid for a column that the catalog hasn't.
    fn oid(&self, column: i16) -> Oid {
        self.datum(column)
            .map_or(Oid::INVALID, |datum| Oid::from(datum.value() as u32))
    }

    /// Adds what an ACL column grants. Without an ACL it is the default one, which grants nothing to the one who is
    /// looked at, or it would be no default.
    fn grants(&self, column: i16, found: &mut Vec<Grant>) {
        let Some(datum) = self.datum(column) else { return };
        // SAFETY: an aclitem[]; a detoasted copy is freed when it has been read.
        unsafe {
            let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
            let acl = pg_sys::pg_detoast_datum(stored);
            found.extend(acl_items(acl.cast::<pg_sys::ArrayType>()).into_iter().map(grant));
            if !std::ptr::eq(acl, stored) {
                pg_sys::pfree(acl.cast());
            }
        }
    }
}

fn grant(item: pg_sys::AclItem) -> Grant {
    let (privileges, grantable) = version::acl_halves(item.ai_privs);
    Grant {
        grantee: (item.ai_grantee != Oid::INVALID).then(|| role_id(item.ai_grantee)),
        privileges: Privileges::from_bits(privileges as u32),
        grantable: Privileges::from_bits(grantable as u32),
    }
}

/// What a predefined role has everywhere, never with grant option (aclchk.c).
fn everywhere(role: Oid, privileges: u32) -> Grant {
    Grant {
        grantee: Some(role_id(role)),
        privileges: Privileges::from_bits(privileges),
        grantable: Privileges::NONE,
    }
}

#[derive(Default)]
struct Reader {
    /// Of the object at hand; kept for its memory.
    holders: Vec<Grant>,
    /// The namespaces that were met: whether they are a session's own.
    temporary: HashMap<Oid, bool>,
}

impl Reader {
    fn tell(&mut self, role: RoleId, catalog: &Catalog, row: &Row, entry: Entry, each: &mut dyn FnMut(Possession<'_>)) {
        if !self.counts(catalog, row, entry) {
            return;
        }
        let object = entry.id();
        match entry.kind {
            OWNER if entry.class == pg_sys::UserMappingRelationId => each(Possession::Personal(object)),
            OWNER => each(Possession::Owned(object)),
            ACL if catalog.acl > 0 => self.granted(role, catalog, row, entry, each),
            // Privileges of a kind that is not known here.
            ACL => each(Possession::Owned(object)),
            IN_POLICY if entry.class == POLICY => self.policy(row, object, each),
            _ => {}
        }
    }

    /// Whether the object is there for others than the session that made it, and belongs to this database.
    fn counts(&mut self, catalog: &Catalog, row: &Row, entry: Entry) -> bool {
        if entry.class == SUBSCRIPTION {
            // SAFETY: reads a global.
            return row.oid(2) == unsafe { pg_sys::MyDatabaseId };
        }
        !self.is_temporary(row.oid(catalog.namespace))
    }

    /// False for InvalidOid: what is in no namespace.
    fn is_temporary(&mut self, namespace: Oid) -> bool {
        if namespace == Oid::INVALID {
            return false;
        }
        *self.temporary.entry(namespace).or_insert_with(|| {
            // SAFETY: a catalog look-up; false for a namespace that is gone.
            unsafe { pg_sys::isAnyTempNamespace(namespace) }
        })
    }

    fn granted(
        &mut self,
        role: RoleId,
        catalog: &Catalog,
        row: &Row,
        entry: Entry,
        each: &mut dyn FnMut(Possession<'_>),
    ) {
        let holders = &mut self.holders;
        holders.clear();
        if entry.column != 0 && !column_grants(entry, holders) {
            return;
        }
        let of_column = holders.len();
        row.grants(catalog.acl, holders);
        // Of a column, what was granted on it; that on its table is told with the table.
        let granted = if entry.column == 0 { holders.len() } else { of_column };
        let (mut privileges, mut grantable) = (Privileges::NONE, Privileges::NONE);
        for grant in holders[..granted].iter().filter(|grant| grant.grantee == Some(role)) {
            privileges = privileges.or(grant.privileges).or(grant.grantable);
            grantable = grantable.or(grant.grantable);
        }
        if privileges.is_empty() {
            return;
        }

        holders.push(Grant {
            grantee: Some(role_id(row.oid(catalog.owner))),
            privileges: Privileges::ALL,
            grantable: Privileges::ALL,
        });
        if entry.class == pg_sys::RelationRelationId {
            relation_holders(entry.object, row, holders);
        }
        if entry.class == pg_sys::NamespaceRelationId {
            for reader in [pg_sys::ROLE_PG_READ_ALL_DATA, pg_sys::ROLE_PG_WRITE_ALL_DATA] {
                holders.push(everywhere(Oid::from(reader), pg_sys::ACL_USAGE));
            }
        }
        each(Possession::Granted {
            object: entry.id(),
            privileges,
            grantable,
            holders,
        });
    }

    fn policy(&mut self, row: &Row, policy: ObjectId, each: &mut dyn FnMut(Possession<'_>)) {
        // oid, polname, polrelid, polcmd, polpermissive, polroles
        let permissive = row.datum(5).is_some_and(|datum| datum.value() & 0xFF != 0);
        let relation = permissive.then(|| relation_owner(row.oid(3))).flatten();
        let Some((owner, namespace)) = relation else { return };
        if !self.is_temporary(namespace) {
            each(Possession::Policy {
                policy,
                roles: &policy_roles(row),
                owner: role_id(owner),
            });
        }
    }
}

/// Those who have privileges on a relation by the server's rule rather than by an ACL (pg_class_aclmask).
fn relation_holders(relation: Oid, row: &Row, holders: &mut Vec<Grant>) {
    // SAFETY: the row is one of pg_class.
    let may_be_written = unsafe {
        let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(row.tuple);
        (*form).relkind as u8 == pg_sys::RELKIND_VIEW || !pg_sys::IsSystemClass(relation, form)
    };
    holders.push(everywhere(Oid::from(pg_sys::ROLE_PG_READ_ALL_DATA), pg_sys::ACL_SELECT));
    if may_be_written {
        let writing = pg_sys::ACL_INSERT | pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE;
        holders.push(everywhere(Oid::from(pg_sys::ROLE_PG_WRITE_ALL_DATA), writing));
    }
    holders.push(everywhere(ROLE_PG_MAINTAIN, ACL_MAINTAIN));
}

/// Adds what a column's own ACL grants; false when the column is gone.
fn column_grants(entry: Entry, holders: &mut Vec<Grant>) -> bool {
    // SAFETY: the row is read before it is released; after an error the server does that.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::ATTNUM as i32;
        let column = entry.column as i16;
        let tuple = pg_sys::SearchSysCache2(cache, Datum::from(entry.object), Datum::from(column));
        if tuple.is_null() {
            return false;
        }
        let dropped = (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_attribute>(tuple)).attisdropped;
        let mut is_null = false;
        let number = pg_sys::Anum_pg_attribute_attacl as i16;
        let acl = pg_sys::SysCacheGetAttr(cache, tuple, number, &raw mut is_null);
        if !is_null {
            let copy = pg_sys::pg_detoast_datum_copy(acl.cast_mut_ptr());
            holders.extend(acl_items(copy.cast::<pg_sys::ArrayType>()).into_iter().map(grant));
            pg_sys::pfree(copy.cast());
        }
        pg_sys::ReleaseSysCache(tuple);
        !dropped
    }
}

/// The roles of a policy; None is PUBLIC.
fn policy_roles(row: &Row) -> Vec<Option<RoleId>> {
    // SAFETY: polroles is an oid[], NOT NULL.
    let roles = unsafe { <Vec<Oid> as pgrx::FromDatum>::from_datum(row.datum(6).unwrap_or(Datum::null()), false) };
    let roles = roles.unwrap_or_default().into_iter();
    roles
        .map(|role| (role != Oid::INVALID).then(|| role_id(role)))
        .collect()
}

fn relation_owner(relation: Oid) -> Option<(Oid, Oid)> {
    // SAFETY: the row is read before it is released; nothing between raises.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, Datum::from(relation));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(tuple);
        let found = (form.relowner, form.relnamespace);
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// The object in words, and as statements have it.
pub fn object_name(object: ObjectId) -> ObjectName {
    let class = Oid::from(object.class);
    let Some((kind, identity)) = described(object) else {
        let gone = format!("object {} of catalog {}", object.object, object.class);
        return ObjectName {
            description: gone,
            ..ObjectName::default()
        };
    };
    let whole = ObjectId { column: 0, ..object };
    let of = |keyword: &str| Some(format!("{keyword} {identity}"));
    let in_statement = match class {
        pg_sys::RelationRelationId => {
            let keyword = if relation_kind(object) == pg_sys::RELKIND_SEQUENCE {
                "SEQUENCE"
            } else {
                "TABLE"
            };
            described(whole).map(|(_, identity)| format!("{keyword} {identity}"))
        }
        pg_sys::ProcedureRelationId if kind == "procedure" => of("PROCEDURE"),
        pg_sys::ProcedureRelationId => of("FUNCTION"),
        // Not by its identity: `integer` is no type's name.
        pg_sys::TypeRelationId => type_name(object).map(|name| format!("TYPE {name}")),
        pg_sys::DatabaseRelationId => of("DATABASE"),
        pg_sys::NamespaceRelationId => of("SCHEMA"),
        pg_sys::TableSpaceRelationId => of("TABLESPACE"),
        pg_sys::ForeignDataWrapperRelationId => of("FOREIGN DATA WRAPPER"),
        pg_sys::ForeignServerRelationId => of("FOREIGN SERVER"),
        LANGUAGE => of("LANGUAGE"),
        LARGE_OBJECT => of("LARGE OBJECT"),
        POLICY => policy_name(object),
        _ => None,
    };
    let column = (object.column != 0).then(|| column_name(object)).flatten();
    ObjectName {
        description: format!("{kind} {identity}"),
        in_statement,
        column,
    }
}

/// Kind and identity, in English and with all the schemas; None for what is gone or not known to the server.
fn described(object: ObjectId) -> Option<(String, String)> {
    let address = pg_sys::ObjectAddress {
        classId: Oid::from(object.class),
        objectId: Oid::from(object.object),
        objectSubId: object.column,
    };
    // SAFETY: with missing_ok the two return null, or a kind's name, for what is gone; else palloc'ed strings.
    unsafe {
        if address.classId != LARGE_OBJECT && !pg_sys::is_objectclass_supported(address.classId) {
            return None;
        }
        let identity = text(pg_sys::getObjectIdentity(&raw const address, true))?;
        let kind = text(pg_sys::getObjectTypeDescription(&raw const address, true))?;
        Some((kind, identity))
    }
}

/// # Safety
/// `string` is null or a string of the server's.
unsafe fn text(string: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!string.is_null()).then(|| to_utf8(unsafe { CStr::from_ptr(string) }.to_bytes()))
}

fn relation_kind(object: ObjectId) -> u8 {
    // SAFETY: a catalog look-up; 0 for what is gone.
    unsafe { pg_sys::get_rel_relkind(Oid::from(object.object)) as u8 }
}

fn column_name(object: ObjectId) -> Option<String> {
    // SAFETY: a catalog look-up, missing_ok.
    let name = unsafe {
        text(pg_sys::get_attname(
            Oid::from(object.object),
            object.column as i16,
            true,
        ))
    };
    name.map(|name| quote_identifier(&name))
}

fn type_name(object: ObjectId) -> Option<String> {
    let catalog = Catalog::open(pg_sys::TypeRelationId)?;
    let name = catalog.row(Oid::from(object.object), |row| {
        // SAFETY: the row is one of pg_type; a look-up of its schema's name, null when that is gone.
        unsafe {
            let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_type>(row.tuple);
            let schema = text(pg_sys::get_namespace_name((*form).typnamespace))?;
            let name = text((*form).typname.data.as_ptr())?;
            Some(format!("{}.{}", quote_identifier(&schema), quote_identifier(&name)))
        }
    });
    catalog.close();
    name.flatten()
}

/// `name ON table`
fn policy_name(object: ObjectId) -> Option<String> {
    let catalog = Catalog::open(POLICY)?;
    let read = catalog.row(Oid::from(object.object), |row| {
        // SAFETY: polname is a name, NOT NULL, of which the datum is the address.
        let name = unsafe { text(row.datum(2)?.cast_mut_ptr::<c_char>()) };
        Some((name?, row.oid(3)))
    });
    catalog.close();
    let (name, relation) = read.flatten()?;
    let relation = ObjectId {
        class: pg_sys::RelationRelationId.into(),
        object: relation.into(),
        column: 0,
    };
    let (_, table) = described(relation)?;
    Some(format!("{} ON {table}", quote_identifier(&name)))
}
