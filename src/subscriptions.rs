//! Logical replication: the extension's own tables tell of one server, and no other's rows get into them.
//!
//! Whoever applies changes runs no statement and asks nobody: another system's rows would stand in this one's audit, and
//! its rights would count here. So a subscription leaves these tables out, also where it is to all of a publication's
//! tables; what comes for them is passed over, as for any table that a subscription doesn't know.

use crate::pg::audit_rows::{newest, Argument};
use crate::pg::utility::Replication;
use crate::pg::{identity, rights};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{function_name, PgLogLevel, PgSqlErrorCode};

/// After a statement about a publication or a subscription.
pub fn after(statement: &Replication) {
    if !identity::in_transaction() || identity::in_recovery() || !rights::extension_created() {
        return;
    }
    identity::see_own_changes();
    match statement {
        Replication::Subscription => leave_out(),
        Replication::Publication(name) => warn(name),
    }
}

/// As superuser: a catalog's rows are nobody else's to remove.
fn leave_out() {
    let left_out = newest(|access| {
        access.run(
            c"DELETE FROM pg_catalog.pg_subscription_rel r USING pg_catalog.pg_depend d, pg_catalog.pg_extension e
               WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = r.srrelid AND d.deptype = 'e'
                 AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
                 AND e.extname = 'impersonate'",
            &[],
        )
    });
    if left_out > 0 {
        tell(
            PgLogLevel::NOTICE,
            format!("the subscription leaves out {left_out} tables of extension impersonate"),
            "What they hold tells of one server alone: its audit, its rights.",
            "To keep another server's audit here, subscribe in a database without the extension.",
        );
    }
}

/// The audit has a new partition each month, on which a subscriber that doesn't have it would stop.
fn warn(name: &[u8]) {
    let by_partition = newest(|access| {
        access.query(
            c"SELECT oid::pg_catalog.int8 FROM pg_catalog.pg_publication
               WHERE pubname::pg_catalog.text = $1 AND puballtables AND NOT pubviaroot",
            &[Argument::Text(name)],
        )
    });
    if !by_partition.is_empty() {
        tell(
            PgLogLevel::WARNING,
            format!(
                "publication \"{}\" publishes the partitions of impersonate.audit",
                identity::to_utf8(name)
            ),
            "Each month brings another, and a subscriber that has no such table stops there.",
            "Use ALTER PUBLICATION ... SET (publish_via_partition_root = true).",
        );
    }
}

fn tell(level: PgLogLevel, message: String, detail: &str, hint: &str) {
    let code = match level {
        PgLogLevel::NOTICE => PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        _ => PgSqlErrorCode::ERRCODE_WARNING,
    };
    ErrorReport::new(code, identity::speakable(&message).into_owned(), function_name!())
        .set_detail(detail)
        .set_hint(hint)
        .report(level);
}
