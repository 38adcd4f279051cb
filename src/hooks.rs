//! What the hooks lead to: which part of the crate answers for what.

use crate::pg::trampoline::{self, Course, Handlers, TransactionEnd, Utility};
use crate::pg::utility::{self, Concern};
use crate::pg::{access, active, changes, identity, leftovers, own_objects, rights, role_lock, store};
use crate::{audit, capture, grants, guard, session, settings, statements, subscriptions, switch};

/// For `pg/trampoline.rs`.
pub static HANDLERS: Handlers = Handlers {
    bare_call: session::refuse_shadow,
    check: session::check,
    refuse: session::refuse_statement,
    called: statements::called,
    early: statements::early,
    refused_instead: session::refused_instead,
    begun: statements::begun,
    joined: statements::joined,
    ran: statements::ran,
    ended: |key| {
        statements::ended(key);
        session::look_again();
    },
    failed: statements::failed,
    failed_early: statements::failed_early,
    concerns: |kind| {
        utility::concerns(kind)
            || (active::any_full() && utility::may_change_objects(kind))
            || (trampoline::watching()
                && (own_objects::concerns(kind) || access::concerns(kind) || leftovers::concerns(kind)))
    },
    utility: before_utility,
    utility_done: after_utility,
    reported: statements::reported,
    last_words: session::last_words,
    before_run: statements::before_run,
    before_outside: statements::before_outside,
    before_commit: || {
        // May still change something.
        session::before_commit();
        guard::before_commit();
        statements::before_commit();
    },
    part_aborts: statements::part_aborts,
    transaction_ends: |end| {
        // The statements' rows carry the identity that they ran under, so they come first.
        statements::transaction_ends(end);
        session::transaction_ends(end);
        match end {
            TransactionEnd::Commit => role_lock::transaction_ends(true),
            TransactionEnd::Abort => role_lock::transaction_ends(false),
            _ => (),
        }
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
    // What it makes is nobody's but the extension's.
    if audit::is_writer() {
        return unchanged;
    }
    if session::in_force().is_some() {
        if let Some(what) = utility::changes_product(utility) {
            session::refuse_change(&what);
        }
        access::utility_begins(utility);
        session::note_leftovers(utility);
    }
    let changes_roles = utility::changes_roles(utility);
    let course = match utility::read(utility) {
        Concern::RoleGrant(grant) => {
            if let Some(course) = grants::statement(utility, &grant) {
                return course;
            }
            unchanged
        }
        Concern::RoleNamed(name) => {
            grants::check_role_name(&name);
            unchanged
        }
        Concern::RoleDropped => {
            // In the order in which GRANT locks: all roles, the rights, then the role.
            guard::before_change(utility::is_outermost(utility));
            if identity::in_transaction() && !identity::in_recovery() {
                store::lock_rights();
            }
            unchanged
        }
        Concern::DiscardAll => {
            if session::in_force().is_some() {
                utility::prevent_in_transaction_block(utility, c"DISCARD ALL");
                session::discard();
            }
            unchanged
        }
        Concern::RoleSet if settings::capture_set_role() => {
            let (value, local) = utility::set_value(utility);
            if let Some(target) = capture::meant(value.as_deref()) {
                switch::set_role(target, local, value.is_some());
                return utility::echoed(utility);
            }
            unchanged
        }
        Concern::RoleSet => unchanged,
        Concern::TargetSet(value, local) => {
            switch::set(value.as_deref(), local);
            return utility::echoed(utility);
        }
        Concern::DatabaseFreed(name) => {
            if let Some(database) = utility::database_named(&name) {
                audit::evict_writer(database);
            }
            unchanged
        }
        Concern::None => unchanged,
    };
    let changes_objects = active::any_full() && utility::changes_objects(utility);
    if changes_roles && !utility::drops_role(utility) {
        guard::before_change(utility::is_outermost(utility));
    } else if changes_objects {
        guard::before_objects_change(utility::is_outermost(utility));
    }
    Course {
        tell_when_done: changes_roles || changes_objects || utility::replication(utility).is_some(),
        ..course
    }
}

fn after_utility(utility: &Utility) {
    if utility::drops_role(utility) && identity::in_transaction() && rights::extension_created() {
        identity::see_own_changes();
        grants::forget_the_dead();
    }
    if let Some(statement) = utility::replication(utility) {
        subscriptions::after(&statement);
    }
    // By objects, what an ordinary statement makes matters as well (A6).
    if utility::changes_roles(utility) || (active::any_full() && (utility::grants(utility) | changes::made_object())) {
        guard::after_change(|| utility::action(utility));
    }
}
