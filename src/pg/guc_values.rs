//! The values of the session's settings, taken down and put back (S9), and a role's own settings (S8).

use super::version;
use pgrx::pg_sys::{self, GucContext, GucSource};
use std::collections::HashMap;
use std::ffi::{CStr, CString};

/// The settings that SET changed in this session, with their values.
pub struct Values(HashMap<CString, Option<CString>>);

/// Settings that RESET ALL would touch and that can change in a session: not `role` and its like, nor a transaction's.
unsafe fn concerns(setting: *const pg_sys::config_generic) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        (*setting).flags & pg_sys::GUC_NO_RESET_ALL as i32 == 0
            && matches!((*setting).context, GucContext::PGC_SUSET | GucContext::PGC_USERSET)
    }
}

fn value(name: &CStr) -> Option<CString> {
    // SAFETY: with missing_ok; the answer is a setting's own string or a static buffer, copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_owned())
    }
}

/// Takes down what SET has changed.
pub fn take() -> Values {
    let mut values = HashMap::new();
    for setting in version::all_settings() {
        // SAFETY: records live as long as the process.
        unsafe {
            if concerns(setting) && (*setting).source == GucSource::PGC_S_SESSION {
                let name = CStr::from_ptr((*setting).name).to_owned();
                let value = value(&name);
                values.insert(name, value);
            }
        }
    }
    Values(values)
}

/// Puts the settings back as they were taken down, as part of the transaction.
pub fn put_back(values: &Values) {
    for setting in version::all_settings() {
        // SAFETY: as above; setting a value may free the old one, so the name is copied first.
        unsafe {
            if !concerns(setting) {
                continue;
            }
            let name = CStr::from_ptr((*setting).name).to_owned();
            match values.0.get(&name) {
                None if (*setting).source == GucSource::PGC_S_SESSION => set(&name, None, GucContext::PGC_SUSET, false),
                Some(before) if value(&name) != *before => {
                    set(&name, before.as_deref(), GucContext::PGC_SUSET, false);
                }
                _ => (),
            }
        }
    }
}

/// Sets what the current user may set; the rest is passed over.
pub fn apply(settings: &[(String, String)], superuser: bool, local: bool) {
    let context = if superuser {
        GucContext::PGC_SUSET
    } else {
        GucContext::PGC_USERSET
    };
    for (name, value) in settings {
        let ours = name.to_ascii_lowercase();
        if ours.starts_with("impersonate.") || ours == "role" || ours == "session_authorization" {
            continue;
        }
        if let (Ok(name), Ok(value)) = (CString::new(name.as_str()), CString::new(value.as_str())) {
            set(&name, Some(&value), context, local);
        }
    }
}

fn set(name: &CStr, value: Option<&CStr>, context: GucContext::Type, local: bool) {
    let action = if local {
        pg_sys::GucAction::GUC_ACTION_LOCAL
    } else {
        pg_sys::GucAction::GUC_ACTION_SET
    };
    // SAFETY: what cannot be set is told at DEBUG1 and left.
    unsafe {
        let done = pg_sys::set_config_option(
            name.as_ptr(),
            value.map_or(std::ptr::null(), CStr::as_ptr),
            context,
            GucSource::PGC_S_SESSION,
            action,
            true,
            pgrx::PgLogLevel::DEBUG1 as i32,
            false,
        );
        // A value that is no longer possible: the session's default will do.
        if done <= 0 && value.is_some() && context == GucContext::PGC_SUSET {
            pg_sys::set_config_option(
                name.as_ptr(),
                std::ptr::null(),
                context,
                GucSource::PGC_S_SESSION,
                action,
                true,
                pgrx::PgLogLevel::WARNING as i32,
                false,
            );
        }
    }
}
