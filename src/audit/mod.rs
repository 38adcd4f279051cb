//! stub
mod event;
pub use event::{Event, Kind, SUCCESSFUL};
use pgrx::pg_sys::Oid;
pub fn define_settings() {}
pub fn init() {}
pub fn max_event_bytes() -> usize { 131072 }
pub fn reserve(_bytes: usize) {}
pub fn release(_bytes: usize) {}
pub fn push_reserved(_e: &Event, _r: usize) -> u64 { 0 }
pub fn push(_e: &Event) -> u64 { 0 }
pub fn try_push(_e: &Event) -> Option<u64> { None }
pub fn wait_stored(_s: u64) {}
pub fn sync() {}
pub fn forget_backend() {}
pub fn is_writer() -> bool { false }
pub fn evict_writer(_d: Oid) {}
