//! Writing impersonate.set_user_grant.
//!
//! Whoever grants needs no privilege on the table: the statements here run as the bootstrap superuser, with a search
//! path on which nobody else's operators or functions are.

use super::rights::{self, Reader, Row};
use super::roles::role_oid;
use impersonate_policy::{Admin, Change, NewRight, Scope};
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

/// Runs a statement; how many rows it was about.
fn run(statement: &str, arguments: &[pgrx::datum::DatumWithOid]) -> usize {
    match Spi::connect_mut(|client| client.update(statement, None, arguments).map(|done| done.len())) {
        Ok(rows) => rows,
        Err(error) => {
            ereport!(
                PgLogLevel::ERROR,
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("cannot store rights: {error}")
            );
            unreachable!("an error does not return")
        }
    }
}

/// What was judged is the newest state, what is written is what the transaction's snapshot sees: they must agree.
fn run_for_some(statement: &str, arguments: &[pgrx::datum::DatumWithOid]) {
    if run(statement, arguments) == 0 {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access due to concurrent update"
        );
    }
}

fn stamp(role: Oid) -> String {
    rights::stamp(role).unwrap_or_else(|| {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("role with OID {} does not exist", u32::from(role))
        );
        unreachable!("an error does not return")
    })
}

/// InvalidOid reaches SQL as NULL, hence the COALESCEs below.
///
/// The list of a scope, with the stamps of its roles; scope any has one entry without a role.
fn entries(scope: &Scope) -> Vec<(Oid, Option<String>)> {
    match scope {
        Scope::Any => vec![(Oid::INVALID, None)],
        listed => listed
            .roles()
            .iter()
            .map(|&role| (role_oid(role), Some(stamp(role_oid(role)))))
            .collect(),
    }
}

/// Does the changes that a GRANT or REVOKE comes to.
pub fn apply(changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    let stored = Reader::open().live();
    as_superuser(|| {
        for change in changes {
            match change {
                Change::Insert(new) => insert(new),
                Change::Update {
                    id,
                    scope,
                    admin,
                    as_superuser,
                } => {
                    if let Some(right) = stored.iter().find(|right| right.row.id == *id) {
                        update(&right.row, scope, *admin, *as_superuser);
                    }
                }
                Change::Delete { id } => {
                    run_for_some(
                        "DELETE FROM impersonate.set_user_grant WHERE grant_id = $1",
                        &[(*id).into()],
                    );
                }
            }
        }
    });
    // SAFETY: makes the changes visible to what follows in this statement.
    unsafe { pg_sys::CommandCounterIncrement() };
}

fn insert(new: &NewRight) {
    let (grantee, grantor) = (role_oid(new.grantee), role_oid(new.grantor));
    // The sequence may have been set back by hand; a right that is there keeps its number to itself.
    let next = "SELECT pg_catalog.setval('impersonate.grant_id_seq', GREATEST(
                    pg_catalog.nextval('impersonate.grant_id_seq'),
                    (SELECT pg_catalog.max(grant_id) + 1 FROM impersonate.set_user_grant)))";
    let id = match Spi::get_one::<i64>(next) {
        Ok(Some(id)) => id,
        _ => return,
    };
    let (of_grantee, of_grantor) = (stamp(grantee), stamp(grantor));
    for (role, of_role) in entries(&new.scope) {
        let stamps: Vec<String> = [of_grantee.clone(), of_grantor.clone()]
            .into_iter()
            .chain(of_role)
            .collect();
        run(
            "INSERT INTO impersonate.set_user_grant
                    (grant_id, grantee, scope, role, admin, grantor, as_superuser, stamps)
             VALUES ($1, $2, $3, COALESCE($4, 0), $5, $6, $7, $8)",
            &[
                id.into(),
                grantee.into(),
                new.scope.as_str().into(),
                role.into(),
                new.admin.as_str().into(),
                grantor.into(),
                new.as_superuser.into(),
                stamps.into(),
            ],
        );
    }
}

fn update(row: &Row, scope: &Scope, admin: Admin, as_superuser: bool) {
    let entries = entries(scope);
    let listed: Vec<Oid> = entries.iter().map(|(role, _)| *role).collect();
    run(
        "DELETE FROM impersonate.set_user_grant WHERE grant_id = $1 AND NOT role::oid = ANY ($2)",
        &[row.id.into(), listed.into()],
    );
    run_for_some(
        "UPDATE impersonate.set_user_grant SET admin = $2, as_superuser = $3 WHERE grant_id = $1",
        &[row.id.into(), admin.as_str().into(), as_superuser.into()],
    );
    for (role, of_role) in entries {
        let stamps: Vec<String> = row.stamps.iter().take(2).cloned().chain(of_role).collect();
        run(
            "INSERT INTO impersonate.set_user_grant
                    (grant_id, grantee, scope, role, admin, grantor, as_superuser, granted_at, stamps)
             SELECT grant_id, grantee, scope, COALESCE($2, 0), admin, grantor, as_superuser, granted_at, $3
               FROM impersonate.set_user_grant WHERE grant_id = $1
                AND NOT EXISTS (SELECT FROM impersonate.set_user_grant WHERE grant_id = $1 AND role::oid = COALESCE($2, 0))
              LIMIT 1",
            &[row.id.into(), role.into(), stamps.into()],
        );
    }
}

/// Deletes what doesn't live, and forgets superusers who are gone, so that a role with the OID of one gets no say.
pub fn tidy() {
    let (mut dead, mut orphans) = (Vec::new(), Vec::new());
    for row in Reader::open().rows(None) {
        if !row.lives() {
            dead.push((row.id, row.role));
        } else if row.grantor != Oid::INVALID && !row.has_grantor() {
            orphans.push(row.id);
        }
    }
    if dead.is_empty() && orphans.is_empty() {
        return;
    }
    as_superuser(|| {
        for (id, role) in dead {
            run(
                "DELETE FROM impersonate.set_user_grant WHERE grant_id = $1 AND role::oid = COALESCE($2, 0)",
                &[id.into(), role.into()],
            );
        }
        run(
            "UPDATE impersonate.set_user_grant SET grantor = 0 WHERE grant_id = ANY ($1)",
            &[orphans.into()],
        );
    });
    // SAFETY: as above.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Whether a table has no page, so never had a row since it was made or truncated.
fn is_empty(table: pg_sys::Oid) -> bool {
    // SAFETY: a table of the extension's, open while its size is asked for.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        blocks == 0
    }
}

/// Takes what the statement dropped out of projects. Only in an event trigger.
pub fn forget_dropped() {
    // Where there are no projects, whoever drops something is not to notice.
    if rights::extension_table(c"project_content").is_none_or(is_empty) {
        return;
    }
    as_superuser(|| {
        run(
            "DELETE FROM impersonate.project_content c
              USING pg_catalog.pg_event_trigger_dropped_objects() d
              WHERE c.object = d.objid AND d.objsubid = 0
                AND d.classid = CASE c.kind WHEN 'schema' THEN 'pg_catalog.pg_namespace'::pg_catalog.regclass
                                            ELSE 'pg_catalog.pg_class'::pg_catalog.regclass END",
            &[],
        );
    });
}
