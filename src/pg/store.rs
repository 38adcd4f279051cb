//! Writing impersonate.set_user_grant.
//!
//! Whoever grants needs no privilege on the table: the statements here run as the bootstrap superuser, with a search
//! path on which nobody else's operators or functions are.

use super::rights::{self, Reader};
use super::roles::role_oid;
use impersonate_policy::{Change, RoleId, Scope};
use pgrx::pg_sys::{self, Oid};
use pgrx::spi::Spi;
use pgrx::{ereport, PgLogLevel, PgSqlErrorCode};
use std::cell::Cell;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether what runs now is a statement of ours.
pub fn is_ours() -> bool {
    OURS.get()
}

/// Ends with the scope, also when an error unwinds it.
struct Ours(bool);

impl Drop for Ours {
    fn drop(&mut self) {
        OURS.set(self.0);
    }
}

/// Runs `body` as the bootstrap superuser. An error restores the user with the transaction (xact.c).
pub fn as_superuser<T>(body: impl FnOnce() -> T) -> T {
    let _ours = Ours(OURS.replace(true));
    // SAFETY: user and settings are put back on the way out, or by the abort of the (sub)transaction.
    unsafe {
        let (mut user, mut context) = (Oid::INVALID, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let level = pg_sys::NewGUCNestLevel();
        for (name, value) in [(c"search_path", c"pg_catalog, pg_temp"), (c"row_security", c"off")] {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
        pg_sys::SetUserIdAndSecContext(
            Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
            context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
        );
        let result = body();
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::AtEOXact_GUC(true, level);
        result
    }
}

/// Keeps others from changing rights until the transaction ends; reading goes on.
pub fn lock_rights() {
    if let Some(table) = rights::extension_table(c"set_user_grant") {
        // SAFETY: a lock on a table that is there; released with the transaction.
        unsafe { pg_sys::LockRelationOid(table, pg_sys::ShareRowExclusiveLock as i32) };
    }
}

fn run(statement: &str, arguments: &[pgrx::datum::DatumWithOid]) {
    let done = Spi::connect_mut(|client| client.update(statement, None, arguments).map(|_| ()));
    if let Err(error) = done {
        ereport!(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("cannot store rights: {error}"));
    }
}

fn oids(roles: &[RoleId]) -> Vec<Oid> {
    roles.iter().map(|&role| role_oid(role)).collect()
}

fn stamps(grantee: Oid, grantor: Oid, roles: &[Oid]) -> Vec<String> {
    [grantee, grantor]
        .iter()
        .chain(roles)
        .map(|&role| {
            rights::stamp(role).unwrap_or_else(|| {
                ereport!(
                    PgLogLevel::ERROR,
                    PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                    format!("role with OID {} does not exist", u32::from(role))
                );
                unreachable!("an error does not return")
            })
        })
        .collect()
}

/// Does the changes that a GRANT or REVOKE comes to.
pub fn apply(changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    let stored = Reader::open().live_rows();
    as_superuser(|| {
        for change in changes {
            match change {
                Change::Insert(new) => {
                    let (grantee, grantor) = (role_oid(new.grantee), role_oid(new.grantor));
                    let roles = oids(new.scope.roles());
                    // What is left of a dead right of the same roles' OIDs would be in the way.
                    run(
                        "DELETE FROM impersonate.set_user_grant WHERE grantee::oid = $1 AND scope = $2 AND grantor::oid = $3",
                        &[grantee.into(), new.scope.as_str().into(), grantor.into()],
                    );
                    run(
                        "INSERT INTO impersonate.set_user_grant (grantee, scope, roles, admin, grantor, as_superuser, stamps)
                         VALUES ($1, $2, $3::oid[]::regrole[], $4, $5, $6, $7)",
                        &[
                            grantee.into(),
                            new.scope.as_str().into(),
                            roles.clone().into(),
                            new.admin.as_str().into(),
                            grantor.into(),
                            new.as_superuser.into(),
                            stamps(grantee, grantor, &roles).into(),
                        ],
                    );
                }
                Change::Update { id, scope, admin, as_superuser } => {
                    let Some(row) = stored.iter().find(|row| row.id == *id) else { continue };
                    let roles = oids(match scope {
                        Scope::Any => &[],
                        listed => listed.roles(),
                    });
                    run(
                        "UPDATE impersonate.set_user_grant
                            SET roles = $2::oid[]::regrole[], admin = $3, as_superuser = $4, stamps = $5
                          WHERE grant_id = $1",
                        &[
                            (*id).into(),
                            roles.clone().into(),
                            admin.as_str().into(),
                            (*as_superuser).into(),
                            stamps(row.grantee, row.grantor, &roles).into(),
                        ],
                    );
                }
                Change::Delete { id } => {
                    run("DELETE FROM impersonate.set_user_grant WHERE grant_id = $1", &[(*id).into()]);
                }
            }
        }
    });
    // SAFETY: makes the changes visible to what follows in this statement.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Deletes rows of which nothing lives, in this database.
pub fn delete_dead() {
    let dead: Vec<i64> = Reader::open()
        .rows(None)
        .into_iter()
        .filter_map(|row| {
            let id = row.id;
            row.live().is_none().then_some(id)
        })
        .collect();
    if !dead.is_empty() {
        as_superuser(|| run("DELETE FROM impersonate.set_user_grant WHERE grant_id = ANY ($1)", &[dead.into()]));
    }
}
