//! The home of `unsafe`: the server's interface, made safe to call. Nothing is decided here.

pub mod active;
pub mod backends;
pub mod catch;
pub mod changes;
pub mod guc;
pub mod guc_values;
pub mod identity;
pub mod latch;
pub mod leftovers;
pub mod nodes;
pub mod objects;
pub mod own_objects;
pub mod own_schema;
pub mod portal;
pub mod rights;
pub mod role_lock;
pub mod roles;
pub mod shmem;
pub mod store;
#[cfg(feature = "test-entries")]
pub mod test_entries;
pub mod trampoline;
pub mod trigger;
pub mod utility;
pub mod version;
pub mod worker;
