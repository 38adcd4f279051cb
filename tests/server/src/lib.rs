//! What tests of impersonate need that need a real server: clusters that they may stop and kill, clients of several
//! kinds, and errors with all their parts.
//!
//! The server is the one of `TEST_PG_CONFIG`, else the private one that `make setup` makes; `make dev` installs the
//! extension there. Servers run as an account without privileges, also when the tests run as root, and none outlives
//! the test process, however that ends.
//!
//! ```no_run
//! use impersonate_server_tests::{fails, shared, unique};
//!
//! let database = shared().database("hr");
//! let bob = unique("bob");
//! let mut admin = database.connect("postgres");
//! admin.batch_execute(&format!("CREATE ROLE {bob} LOGIN")).unwrap();
//! let error = fails(database.connect(&bob).batch_execute("CREATE ROLE eve"));
//! assert_eq!(error.code, "42501");
//! ```

mod account;
mod browser;
mod cluster;
mod disk;
mod guard;
mod programs;
pub mod raw;
mod wait;

pub use browser::Browser;
pub use cluster::{shared, Builder, Cluster, Database, Output};
pub use disk::SmallDisk;
pub use programs::{fetched, left_out, signal};
pub use wait::{wait_until, within};

use std::sync::atomic::{AtomicU32, Ordering};

/// A name that no other test of this process has been given. Roles are shared by all databases of a cluster, and
/// tests run side by side.
pub fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{stem}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An error as the server reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl From<&postgres::error::DbError> for ServerError {
    fn from(error: &postgres::error::DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// The error that the server gave.
///
/// # Panics
/// When there was none, or when it is not the server's (a lost connection, say).
#[track_caller]
pub fn fails<T>(result: Result<T, postgres::Error>) -> ServerError {
    match result {
        Ok(_) => panic!("the statement should have failed and did not"),
        Err(error) => match error.as_db_error() {
            Some(error) => error.into(),
            None => panic!("the statement should have failed with a server's error, and failed with: {error}"),
        },
    }
}

/// The error that the server gave, which has this SQLSTATE.
///
/// # Panics
/// When there was none, or another.
#[track_caller]
pub fn fails_with<T>(sqlstate: &str, result: Result<T, postgres::Error>) -> ServerError {
    let error = fails(result);
    assert_eq!(error.code, sqlstate, "another error than expected: {error:?}");
    error
}
