//! What the hooks lead to: which part of the crate answers for what.

use crate::pg::trampoline::{self, Course, Handlers, Utility};
use crate::pg::utility::{self, Concern};
use crate::pg::{identity, own_objects, rights, store};
use crate::{audit, grants, session, settings, statements};

/// For `pg/trampoline.rs`.
pub static HANDLERS: Handlers = Handlers {
    bare_call: session::refuse_shadow,
    check: session::check,
    begun: statements::begun,
    rows: statements::rows,
    ended: statements::ended,
    failed: statements::failed,
    failed_early: statements::failed_early,
    concerns: |kind| utility::concerns(kind) || (trampoline::watching() && own_objects::concerns(kind)),
    utility: before_utility,
    utility_done: after_utility,
    reported: statements::reported,
    before_commit: session::before_commit,
    transaction_ends: |end| {
        // The statements' rows carry the identity that they ran under, so they come first.
        statements::transaction_ends(end);
        session::transaction_ends(end);
    },
    exiting: || {
        statements::connection_ends();
        session::connection_ends(statements::terminated());
        audit::forget_backend();
    },
    always: || settings::audit_statements() == settings::AuditStatements::all,
};

fn before_utility(utility: &Utility) -> Course {
    let unchanged = Course {
        statement: utility.statement,
        tell_when_done: false,
    };
    if session::in_force().is_some() {
        if let Some(what) = utility::changes_product(utility) {
            session::refuse_change(&what);
        }
    }
    match utility::read(utility) {
        Concern::RoleGrant(grant) => grants::statement(utility, &grant).unwrap_or(unchanged),
        Concern::RoleNamed(name) => {
            grants::check_role_name(&name);
            unchanged
        }
        Concern::RoleDropped => {
            // In the order in which GRANT locks: the rights, then the role.
            if identity::in_transaction() && !identity::in_recovery() {
                store::lock_rights();
            }
            Course {
                tell_when_done: true,
                ..unchanged
            }
        }
        Concern::DiscardAll => {
            if session::in_force().is_some() {
                utility::prevent_in_transaction_block(utility, c"DISCARD ALL");
                session::discard();
            }
            unchanged
        }
        Concern::DatabaseFreed(name) => {
            if let Some(database) = utility::database_named(&name) {
                audit::evict_writer(database);
            }
            unchanged
        }
        Concern::None => unchanged,
    }
}

fn after_utility(_utility: &Utility) {
    if identity::in_transaction() && rights::extension_created() {
        grants::forget_the_dead();
    }
}
