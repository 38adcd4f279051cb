//! Act as another role for a while: with a right, within one's own privileges, and on record.
//!
//! ARCHITECTURE.md is the map.

mod api;
mod audit;
mod capture;
mod exempt;
mod grants;
mod guard;
mod hooks;
mod pg;
mod report;
mod session;
mod settings;
mod statements;
mod subscriptions;
mod switch;
mod target;
mod trail;
mod version;

pgrx::pg_module_magic!();

/// Called by the server when it loads the library; only preloading makes us part of every session.
#[pgrx::pg_guard]
extern "C-unwind" fn _PG_init() {
    if !pg::identity::preloading() {
        return pg::guc::refuse_target();
    }
    // Else an error of the server that passes through Rust code arrives with a stack trace for DETAIL.
    std::env::set_var("RUST_LIB_BACKTRACE", "0");
    settings::define();
    audit::define_settings();
    audit::init();
    audit::install(guard::WATCH);
    pg::active::install();
    pg::changes::install();
    pg::rights::register_provider();
    pg::guc::install(&session::HANDLERS);
    pg::trampoline::install(&hooks::HANDLERS);
    pg::outside::install();
    pg::own_objects::install(session::refuse_change);
    pg::access::install(session::in_force, session::raise);
    pg::trigger::install(guard::rights_changed);
    settings::close();
}
