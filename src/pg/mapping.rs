//! Reading impersonate.user_mapping. A plain scan: a connection that starts with a target can't run queries yet.

use super::rights::extension_table;
use pgrx::pg_sys::{self, Datum};
use pgrx::FromDatum;

/// A rule: a name from outside, or a regular expression for such names, and the role that it stands for.
pub struct Rule {
    pub external_name: Vec<u8>,
    pub role: Vec<u8>,
    pub position: i64,
}

const COLUMNS: usize = 3;

/// The rules of this database, in their order.
pub fn rules() -> Vec<Rule> {
    let Some(table) = extension_table(c"user_mapping") else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    // SAFETY: relation and scan are closed on the way out; on error the server's own cleanup does. A null snapshot is a
    // fresh one for a table that is no catalog (genam.c). The table is the extension's own.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::INVALID,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        if (*(*relation).rd_att).natts as usize == COLUMNS {
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let mut values = [Datum::null(); COLUMNS];
                let mut nulls = [true; COLUMNS];
                pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
                let text = |column: usize| Vec::<u8>::from_datum(values[column], nulls[column]);
                if let (Some(external_name), Some(role), Some(position)) =
                    (text(0), text(1), i64::from_datum(values[2], nulls[2]))
                {
                    rules.push(Rule {
                        external_name,
                        role,
                        position,
                    });
                }
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    // Of two at one position always the same is the first.
    rules.sort_by(|a, b| (a.position, &a.external_name).cmp(&(b.position, &b.external_name)));
    rules
}
