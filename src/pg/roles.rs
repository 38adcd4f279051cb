//! The catalogs and the rights table as the criteria want to see them.

use super::version;
use super::{identity, objects, rights};
use impersonate_policy as policy;
use pgrx::pg_sys::{self, Oid};
use pgrx::FromDatum;
use policy::RoleId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};

/// Converts between the server's and the policy's way to name a role.
pub fn role_id(role: Oid) -> RoleId {
    RoleId(role.into())
}

/// See [`role_id`].
pub fn role_oid(role: RoleId) -> Oid {
    Oid::from(role.0)
}

/// Roles, memberships and rights as of the latest committed state and this transaction's own changes.
///
/// Keeps what it was asked for, so that one judgement sees one answer.
#[derive(Default)]
pub struct Catalogs {
    memberships: RefCell<HashMap<RoleId, Vec<policy::Membership>>>,
    rights: RefCell<Option<rights::Reader>>,
    /// Those of the grantees that were asked about, or of all once that is the shorter way.
    rights_known: RefCell<HashMap<RoleId, Vec<policy::Right>>>,
    all_rights_known: Cell<bool>,
    parameters: RefCell<Option<Vec<policy::ParameterPrivilege>>>,
    /// Whose owner is in pg_database_owner: this one, if none is named.
    database: Option<Oid>,
    database_owner: Cell<Option<Oid>>,
}

struct AuthRow {
    attributes: policy::Attributes,
    inherits: bool,
}

fn auth_row(role: RoleId) -> Option<AuthRow> {
    // SAFETY: the tuple is read before it is released; both calls match.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            pg_sys::Datum::from(role_oid(role)),
        );
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_authid>(tuple);
        let mut is_null = false;
        let until = pg_sys::SysCacheGetAttr(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            tuple,
            pg_sys::Anum_pg_authid_rolvaliduntil as i16,
            &raw mut is_null,
        );
        // As of the statement, so that whoever is judged twice in it isn't judged differently.
        let expired = !is_null && (until.value() as i64) < pg_sys::GetCurrentStatementStartTimestamp();
        let row = AuthRow {
            attributes: policy::Attributes {
                superuser: form.rolsuper,
                createrole: form.rolcreaterole,
                createdb: form.rolcreatedb,
                replication: form.rolreplication,
                bypassrls: form.rolbypassrls,
                login: form.rolcanlogin,
                expired,
            },
            inherits: form.rolinherit,
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(row)
    }
}

/// When a role expires; the end of time if it doesn't, or is gone.
pub fn valid_until(role: Oid) -> pg_sys::TimestampTz {
    // SAFETY: as auth_row.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as i32, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return pg_sys::TimestampTz::MAX;
        }
        let mut is_null = false;
        let until = pg_sys::SysCacheGetAttr(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            tuple,
            pg_sys::Anum_pg_authid_rolvaliduntil as i16,
            &raw mut is_null,
        );
        pg_sys::ReleaseSysCache(tuple);
        if is_null {
            pg_sys::TimestampTz::MAX
        } else {
            until.value() as pg_sys::TimestampTz
        }
    }
}

impl Catalogs {
    fn read_all_rights(&self) {
        let mut rights: HashMap<RoleId, Vec<policy::Right>> = HashMap::new();
        for right in self.all_rights() {
            rights.entry(right.grantee).or_default().push(right);
        }
        self.rights_known.replace(rights);
        self.all_rights_known.set(true);
    }

    /// As a session of another database sees them. Its rights cannot be read from here.
    pub fn of_database(database: Oid) -> Catalogs {
        Catalogs {
            database: Some(database),
            ..Catalogs::default()
        }
    }

    fn read_memberships(&self, member: RoleId) -> Vec<policy::Membership> {
        let inherits = auth_row(member).is_some_and(|row| row.inherits);
        let mut found = Vec::new();
        // SAFETY: the list and its members are pinned until released; nothing between raises.
        unsafe {
            let list = pg_sys::SearchSysCacheList(
                pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE as i32,
                1,
                pg_sys::Datum::from(role_oid(member)),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            );
            let count = (*list).n_members as usize;
            for entry in (*list).members.as_slice(count) {
                let tuple = std::ptr::from_ref(&(**entry).tuple).cast_mut();
                let row = version::membership_row(tuple);
                let inherit = row.inherit.unwrap_or(inherits);
                found.push(policy::Membership {
                    role: role_id(row.role),
                    inherit,
                    set: row.set,
                    admin: row.admin,
                });
            }
            pg_sys::ReleaseCatCacheList(list);
        }
        // Not in the catalog: the owner of the database is in pg_database_owner (acl.c).
        if role_oid(member) == self.database_owner() {
            let role = role_id(Oid::from(pg_sys::ROLE_PG_DATABASE_OWNER));
            found.push(policy::Membership {
                role,
                inherit: true,
                set: false,
                admin: false,
            });
        }
        found
    }

    fn database_owner(&self) -> Oid {
        if let Some(owner) = self.database_owner.get() {
            return owner;
        }
        // SAFETY: as auth_row.
        let owner = unsafe {
            let tuple = pg_sys::SearchSysCache1(
                pg_sys::SysCacheIdentifier::DATABASEOID as i32,
                pg_sys::Datum::from(self.database.unwrap_or(pg_sys::MyDatabaseId)),
            );
            if tuple.is_null() {
                Oid::INVALID
            } else {
                let owner = (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple)).datdba;
                pg_sys::ReleaseSysCache(tuple);
                owner
            }
        };
        self.database_owner.set(Some(owner));
        owner
    }
}

impl Catalogs {
    /// Every live right of this database.
    pub fn all_rights(&self) -> Vec<policy::Right> {
        rights::Reader::open().live().iter().filter_map(rights::right).collect()
    }
}

impl policy::World for Catalogs {
    fn memberships(&self, member: RoleId) -> Vec<policy::Membership> {
        if let Some(known) = self.memberships.borrow().get(&member) {
            return known.clone();
        }
        let found = self.read_memberships(member);
        self.memberships.borrow_mut().insert(member, found.clone());
        found
    }

    fn attributes(&self, role: RoleId) -> policy::Attributes {
        auth_row(role).map(|row| row.attributes).unwrap_or_default()
    }

    fn parameter_privileges(&self) -> Vec<policy::ParameterPrivilege> {
        self.parameters
            .borrow_mut()
            .get_or_insert_with(parameter_privileges)
            .clone()
    }

    fn rights_of(&self, grantees: &BTreeSet<RoleId>) -> Vec<policy::Right> {
        if self.all_rights_known.get() {
            let known = self.rights_known.borrow();
            let held = known.iter().filter(|(grantee, _)| grantees.contains(grantee));
            return held.flat_map(|(_, rights)| rights.iter().cloned()).collect();
        }
        grantees.iter().flat_map(|&grantee| self.rights(grantee)).collect()
    }

    fn rights(&self, grantee: RoleId) -> Vec<policy::Right> {
        const SOME: usize = 16;
        let known = self.rights_known.borrow().get(&grantee).cloned();
        if known.is_some() || self.all_rights_known.get() {
            return known.unwrap_or_default();
        }
        if self.rights_known.borrow().len() == SOME && rights::Reader::open().is_small() {
            self.read_all_rights();
            return self.rights(grantee);
        }
        let reader = self
            .rights
            .borrow_mut()
            .get_or_insert_with(rights::Reader::open)
            .clone();
        let found = reader.of(role_oid(grantee));
        self.rights_known.borrow_mut().insert(grantee, found.clone());
        found
    }

    fn name(&self, role: RoleId) -> String {
        identity::role_name(role_oid(role)).map_or_else(|| role.0.to_string(), |name| identity::to_utf8(&name))
    }

    fn possessions(&self, role: RoleId, each: &mut dyn FnMut(policy::Possession<'_>)) {
        objects::possessions(role, each);
    }

    fn object(&self, object: policy::ObjectId) -> policy::ObjectName {
        objects::object_name(object)
    }
}

/// pg_parameter_acl, whose OID the bindings lack.
pub(super) const PARAMETER_ACL: Oid = Oid::from_u32(6243);

/// Privileges on settings: pg_parameter_acl, which has a row only for settings that somebody was granted.
fn parameter_privileges() -> Vec<policy::ParameterPrivilege> {
    let mut found = Vec::new();
    // SAFETY: relation and scan are closed on the way out; on error the server's own cleanup does.
    unsafe {
        let relation = pg_sys::table_open(PARAMETER_ACL, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            Oid::INVALID,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let mut is_null = false;
            let name = pg_sys::heap_getattr(tuple, 2, (*relation).rd_att, &mut is_null);
            let parameter = String::from_datum(name, is_null).unwrap_or_default();
            let acl = pg_sys::heap_getattr(tuple, 3, (*relation).rd_att, &mut is_null);
            if is_null {
                continue;
            }
            let acl = pg_sys::pg_detoast_datum_copy(acl.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let items = acl_items(acl);
            for item in items {
                let (held, grantable) = version::acl_halves(item.ai_privs);
                let (set, system) = (u64::from(pg_sys::ACL_SET), u64::from(pg_sys::ACL_ALTER_SYSTEM));
                found.push(policy::ParameterPrivilege {
                    parameter: parameter.clone(),
                    grantee: (item.ai_grantee != Oid::INVALID).then(|| role_id(item.ai_grantee)),
                    set: held & set != 0,
                    set_grantable: grantable & set != 0,
                    alter_system: held & system != 0,
                    alter_system_grantable: grantable & system != 0,
                });
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// The items of a detoasted aclitem[] (acl.h: one dimension, no nulls).
pub(super) unsafe fn acl_items(acl: *mut pg_sys::ArrayType) -> Vec<pg_sys::AclItem> {
    // SAFETY: the caller's promise; ACL arrays have no null bitmap, so the data follow the header.
    unsafe {
        if (*acl).ndim != 1 {
            return Vec::new();
        }
        let dimension = acl
            .cast::<u8>()
            .add(std::mem::size_of::<pg_sys::ArrayType>())
            .cast::<i32>();
        let count = *dimension as usize;
        let header = (std::mem::size_of::<pg_sys::ArrayType>() + 8).next_multiple_of(8);
        let items = acl.cast::<u8>().add(header).cast::<pg_sys::AclItem>();
        (0..count).map(|i| items.add(i).read_unaligned()).collect()
    }
}
