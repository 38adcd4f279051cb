//! Reading impersonate.set_user_grant, and the stamps that tell a role from a later one with its OID.
//!
//! A role that a right speaks of bears a security label of ours: a random stamp. The label is a row of a shared catalog
//! that DROP ROLE deletes in whatever database it runs, loaded library or not, so a right whose stamps are not its
//! roles' any more is dead, also when a new role got the OID (G7).

use pgrx::pg_sys::{self, Oid};
use pgrx::{pg_guard, FromDatum};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_char, CStr, CString};

/// The label provider's name.
pub const PROVIDER: &CStr = c"impersonate";

const COLUMNS: usize = 9;

/// A row of the rights table: a right, or one role of a right's list.
#[derive(Clone)]
pub struct Row {
    pub id: i64,
    pub grantee: Oid,
    pub scope: String,
    /// InvalidOid for scope any.
    pub role: Oid,
    pub admin: String,
    /// InvalidOid for a superuser who is gone.
    pub grantor: Oid,
    pub as_superuser: bool,
    pub granted_at: pg_sys::TimestampTz,
    /// Of grantee, grantor and role.
    pub stamps: Vec<String>,
}

impl Row {
    fn bears(&self, role: Oid, place: usize) -> bool {
        self.stamps
            .get(place)
            .is_some_and(|stamp| stamp_of(role).as_ref() == Some(stamp))
    }

    /// Whether the grantor is the role that granted it.
    pub fn has_grantor(&self) -> bool {
        self.bears(self.grantor, 1)
    }

    /// Whether it counts: its grantee exists, the role on its list, and its grantor, unless that was a superuser, on
    /// whose admin option nothing hangs.
    pub fn lives(&self) -> bool {
        self.bears(self.grantee, 0)
            && (self.as_superuser || self.has_grantor())
            && (self.role == Oid::INVALID || self.bears(self.role, 2))
    }
}

/// A right put together from its rows.
pub struct Stored {
    /// Its first row; what is not of the list is the same in all of them.
    pub row: Row,
    pub roles: Vec<Oid>,
}

/// Puts rows together, in the order of their ids.
fn gathered(rows: Vec<Row>) -> Vec<Stored> {
    let mut rights: BTreeMap<i64, Stored> = BTreeMap::new();
    for mut row in rows {
        if !row.has_grantor() {
            row.grantor = Oid::INVALID;
        }
        let listed = (row.role != Oid::INVALID).then_some(row.role);
        rights
            .entry(row.id)
            .or_insert_with(|| Stored { row, roles: Vec::new() })
            .roles
            .extend(listed);
    }
    rights.into_values().collect()
}

/// The OID of the extension's table `name` in this database; None where the extension isn't created.
///
/// A table of that name that isn't the extension's doesn't count: anybody might have made it.
pub fn extension_table(name: &CStr) -> Option<Oid> {
    // SAFETY: catalog look-ups with missing_ok.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"impersonate".as_ptr(), true);
        if extension == Oid::INVALID {
            return None;
        }
        let schema = pg_sys::get_namespace_oid(c"impersonate".as_ptr(), true);
        if schema == Oid::INVALID {
            return None;
        }
        let table = pg_sys::get_relname_relid(name.as_ptr(), schema);
        let ours =
            table != Oid::INVALID && pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, table) == extension;
        ours.then_some(table)
    }
}

/// Whether the extension is created in this database.
pub fn extension_created() -> bool {
    extension_table(c"set_user_grant").is_some()
}

/// Reads the rights table of this database.
#[derive(Clone)]
pub struct Reader {
    table: Option<(Oid, Oid)>,
}

impl Reader {
    /// Finds the table; reading what isn't there finds nothing.
    pub fn open() -> Reader {
        Reader {
            table: extension_table(c"set_user_grant").zip(extension_table_index()),
        }
    }

    /// The live rights granted directly to `grantee`.
    pub fn of(&self, grantee: Oid) -> Vec<impersonate_policy::Right> {
        self.gather(Some(grantee)).iter().filter_map(right).collect()
    }

    /// Whether the table is so small that reading all of it costs less than looking up some grantees one by one.
    pub fn is_small(&self) -> bool {
        const BLOCKS: u32 = 8;
        let Some((table, _)) = self.table else { return true };
        // SAFETY: relation is closed on the way out; on error the server's own cleanup does.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
            let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
            blocks <= BLOCKS
        }
    }

    /// All live rights.
    pub fn live(&self) -> Vec<Stored> {
        self.gather(None)
    }

    fn gather(&self, grantee: Option<Oid>) -> Vec<Stored> {
        gathered(self.rows(grantee).into_iter().filter(Row::lives).collect())
    }

    /// All rows, or those of one grantee: the latest committed ones and this transaction's own.
    pub fn rows(&self, grantee: Option<Oid>) -> Vec<Row> {
        let Some((table, index)) = self.table else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        // SAFETY: relation and scan are closed on the way out; on error the server's own cleanup does. A null snapshot
        // is a fresh one for a table that is no catalog (genam.c).
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
            let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
            if let Some(grantee) = grantee {
                pg_sys::ScanKeyInit(
                    &raw mut key,
                    2,
                    pg_sys::BTEqualStrategyNumber as u16,
                    Oid::from(pg_sys::F_OIDEQ),
                    pg_sys::Datum::from(grantee),
                );
            }
            let keys = i32::from(grantee.is_some());
            let scan = pg_sys::systable_beginscan(
                relation,
                index,
                grantee.is_some(),
                std::ptr::null_mut(),
                keys,
                &raw mut key,
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                rows.extend(row(tuple, (*relation).rd_att));
            }
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        }
        rows
    }
}

fn extension_table_index() -> Option<Oid> {
    // SAFETY: catalog look-ups with missing_ok.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"impersonate".as_ptr(), true);
        let index = pg_sys::get_relname_relid(c"set_user_grant_grantee".as_ptr(), schema);
        (index != Oid::INVALID).then_some(index)
    }
}

pub(super) unsafe fn row(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Option<Row> {
    let mut values = [pg_sys::Datum::null(); COLUMNS];
    let mut nulls = [true; COLUMNS];
    // SAFETY: the table has these columns: it is the extension's own, whose definition only its scripts change.
    unsafe {
        if (*descriptor).natts as usize != COLUMNS {
            return None;
        }
        pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        Some(Row {
            id: i64::from_datum(values[0], nulls[0])?,
            grantee: Oid::from_datum(values[1], nulls[1])?,
            scope: String::from_datum(values[2], nulls[2])?,
            role: Oid::from_datum(values[3], nulls[3])?,
            admin: String::from_datum(values[4], nulls[4])?,
            grantor: Oid::from_datum(values[5], nulls[5])?,
            as_superuser: bool::from_datum(values[6], nulls[6])?,
            granted_at: i64::from_datum(values[7], nulls[7])?,
            stamps: Vec::<String>::from_datum(values[8], nulls[8])?,
        })
    }
}

/// A right as the policy's value.
pub fn right(stored: &Stored) -> Option<impersonate_policy::Right> {
    use super::roles::role_id;
    let (row, roles) = (&stored.row, stored.roles.iter().map(|&role| role_id(role)).collect());
    Some(impersonate_policy::Right {
        id: row.id,
        grantee: role_id(row.grantee),
        scope: impersonate_policy::Scope::parse(&row.scope, roles)?,
        admin: impersonate_policy::Admin::parse(&row.admin)?,
        grantor: role_id(row.grantor),
        as_superuser: row.as_superuser,
    })
}

fn address(role: Oid) -> pg_sys::ObjectAddress {
    pg_sys::ObjectAddress {
        classId: pg_sys::AuthIdRelationId,
        objectId: role,
        objectSubId: 0,
    }
}

/// The stamp that a role bears, if it bears one.
pub fn stamp_of(role: Oid) -> Option<String> {
    if role == Oid::INVALID {
        return None;
    }
    let address = address(role);
    // SAFETY: reads a shared catalog; the answer is palloc'ed.
    unsafe {
        let label = pg_sys::GetSecurityLabel(&raw const address, PROVIDER.as_ptr());
        (!label.is_null()).then(|| CStr::from_ptr(label).to_string_lossy().into_owned())
    }
}

/// The stamp of a role, given to it now if it has none. None when the role doesn't exist.
pub fn stamp(role: Oid) -> Option<String> {
    // Keeps the role from being dropped, and others from stamping it, until this transaction ends.
    // SAFETY: raises when the role is gone meanwhile.
    unsafe {
        super::identity::role_name(role)?;
        if let Some(stamp) = stamp_of(role) {
            pg_sys::shdepLockAndCheckObject(pg_sys::AuthIdRelationId, role);
            return Some(stamp);
        }
        pg_sys::LockSharedObject(
            pg_sys::AuthIdRelationId,
            role,
            0,
            pg_sys::ShareUpdateExclusiveLock as i32,
        );
        pg_sys::shdepLockAndCheckObject(pg_sys::AuthIdRelationId, role);
        if let Some(stamp) = stamp_of(role) {
            return Some(stamp);
        }
        let stamp: String = random_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = CString::new(stamp.as_str()).unwrap_or_default();
        let address = address(role);
        pg_sys::SetSecurityLabel(&raw const address, PROVIDER.as_ptr(), text.as_ptr());
        pg_sys::CommandCounterIncrement();
        Some(stamp)
    }
}

/// Sixteen bytes from the server's strong generator.
pub fn random_bytes() -> [u8; 16] {
    let mut bytes = [0u8; 16];
    // SAFETY: fills the buffer it is given.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        pgrx::ereport!(
            pgrx::PgLogLevel::ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            "could not generate random values"
        );
    }
    bytes
}

/// A random UUID (RFC 9562, version 4).
pub fn random_uuid() -> [u8; 16] {
    let mut bytes = random_bytes();
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    bytes
}

thread_local! {
    /// Whether the SECURITY LABEL that runs names its provider.
    static LABEL_IS_FOR_US: Cell<bool> = const { Cell::new(false) };
}

/// Registers the label provider. By hand a label can only be given by a superuser, and only to a role that has none:
/// pg_dumpall's output does.
pub fn register_provider() {
    // SAFETY: both live as long as the process.
    unsafe { pg_sys::register_label_provider(PROVIDER.as_ptr(), Some(relabel)) };
}

/// A SECURITY LABEL is about to run, which names its provider or doesn't: then it comes here as well, if there is no
/// other, and must not replace a stamp.
pub fn label_begins(names_provider: bool) {
    LABEL_IS_FOR_US.set(names_provider);
}

#[pg_guard]
unsafe extern "C-unwind" fn relabel(object: *const pg_sys::ObjectAddress, label: *const c_char) {
    super::own_objects::refuse_if_concerned("stamps of roles");
    if !LABEL_IS_FOR_US.get() {
        // What the server says when there is no provider, which is what there is for the one who asks.
        pgrx::ereport!(
            pgrx::PgLogLevel::ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "no security label providers have been loaded"
        );
    }
    // SAFETY: the server passes a valid address, and null or a string.
    let (on_role, role, label) = unsafe {
        let text = (!label.is_null()).then(|| CStr::from_ptr(label).to_string_lossy());
        ((*object).classId == pg_sys::AuthIdRelationId, (*object).objectId, text)
    };
    let is_stamp = |label: &str| label.len() == 32 && label.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = on_role
        && label.is_some_and(|label| is_stamp(&label) && stamp_of(role).is_none_or(|known| *known == *label))
        && super::identity::superuser(super::identity::current_user());
    if !fits {
        pgrx::ereport!(
            pgrx::PgLogLevel::ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "labels of impersonate are given by impersonate alone",
            "They tell a role from a later one with the same OID; only a restore by a superuser sets them, and changes none."
        );
    }
}
