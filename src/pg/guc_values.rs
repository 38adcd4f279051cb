//! The values of the session's settings, taken down and put back (S9), and a role's own settings (S8).

use super::guc::guarded;
use super::version;
use pgrx::pg_sys::{self, GucContext, GucSource};
use std::collections::HashMap;
use std::ffi::{c_char, CStr, CString};

/// The settings that SET or SET LOCAL changed in this session, with their values.
pub struct Values(HashMap<CString, Kept>);

/// A value as text; None for what the session began with.
type Value = Option<CString>;

/// What a COMMIT would leave, and what SET LOCAL put over it.
#[derive(PartialEq)]
struct Kept {
    session: Value,
    local: Option<Value>,
}

impl Values {
    /// The transaction is over, and with it what was SET LOCAL.
    pub fn forget_local(&mut self) {
        for kept in self.0.values_mut() {
            kept.local = None;
        }
    }
}

/// Settings that RESET ALL would touch and that can change in a session: not `role` and its like, nor a transaction's.
unsafe fn concerns(setting: *const pg_sys::config_generic) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        (*setting).flags & pg_sys::GUC_NO_RESET_ALL as i32 == 0
            && matches!((*setting).context, GucContext::PGC_SUSET | GucContext::PGC_USERSET)
    }
}

/// What a COMMIT would leave of a setting.
pub(super) enum Committed {
    /// The value that it has.
    Now,
    /// One that SET LOCAL hides, and where it came from.
    Hidden(*const pg_sys::config_var_value, GucSource::Type),
}

/// Reads it from the stack that the settings machinery keeps (guc.c, AtEOXact_GUC): one entry for each savepoint in
/// which the setting was changed.
///
/// # Safety
/// `setting` is a setting's record. The answer is valid until the setting changes.
pub(super) unsafe fn committed(setting: *const pg_sys::config_generic) -> Committed {
    use pg_sys::GucStackState::{GUC_SET, GUC_SET_LOCAL};
    // SAFETY: the caller's promise; the stack is the settings machinery's own.
    unsafe {
        let mut found = Committed::Now;
        let mut entry = (*setting).stack;
        while !entry.is_null() {
            match (*entry).state {
                GUC_SET => break,
                GUC_SET_LOCAL => {
                    found = Committed::Hidden(&raw const (*entry).masked, GucSource::PGC_S_SESSION);
                    break;
                }
                // SET LOCAL alone: what was there before it.
                _ => found = Committed::Hidden(&raw const (*entry).prior, (*entry).source),
            }
            entry = (*entry).prev;
        }
        found
    }
}

/// The text that SET would take for a value.
unsafe fn text(setting: *mut pg_sys::config_generic, value: &pg_sys::config_var_val) -> CString {
    use pg_sys::config_type::{PGC_BOOL, PGC_ENUM, PGC_INT, PGC_REAL};
    // SAFETY: the type says which of the union it is.
    unsafe {
        match (*setting).vartype {
            PGC_BOOL => if value.boolval { c"on" } else { c"off" }.to_owned(),
            PGC_INT => CString::new(value.intval.to_string()).unwrap_or_default(),
            // As short as it can be without a loss.
            PGC_REAL => CString::new(value.realval.to_string()).unwrap_or_default(),
            PGC_ENUM => CStr::from_ptr(pg_sys::config_enum_lookup_by_value(setting.cast(), value.enumval)).to_owned(),
            _ => owned(value.stringval),
        }
    }
}

unsafe fn owned(text: *const c_char) -> CString {
    if text.is_null() {
        return CString::default();
    }
    // SAFETY: a string of the settings machinery, copied at once.
    unsafe { CStr::from_ptr(text) }.to_owned()
}

/// The value that a setting has now.
unsafe fn value_now(setting: *mut pg_sys::config_generic) -> pg_sys::config_var_val {
    use pg_sys::config_type::{PGC_BOOL, PGC_ENUM, PGC_INT, PGC_REAL};
    // SAFETY: the type says which record it is; each has a variable.
    unsafe {
        match (*setting).vartype {
            PGC_BOOL => pg_sys::config_var_val {
                boolval: *(*setting.cast::<pg_sys::config_bool>()).variable,
            },
            PGC_INT => pg_sys::config_var_val {
                intval: *(*setting.cast::<pg_sys::config_int>()).variable,
            },
            PGC_REAL => pg_sys::config_var_val {
                realval: *(*setting.cast::<pg_sys::config_real>()).variable,
            },
            PGC_ENUM => pg_sys::config_var_val {
                enumval: *(*setting.cast::<pg_sys::config_enum>()).variable,
            },
            _ => pg_sys::config_var_val {
                stringval: *(*setting.cast::<pg_sys::config_string>()).variable,
            },
        }
    }
}

/// A setting as it is now; None if neither SET nor SET LOCAL has to do with it.
unsafe fn kept(setting: *mut pg_sys::config_generic) -> Option<Kept> {
    // SAFETY: the caller's promise.
    unsafe {
        if (*setting).source != GucSource::PGC_S_SESSION && (*setting).stack.is_null() {
            return None;
        }
        let value = |source, value: &_| (source == GucSource::PGC_S_SESSION).then(|| text(setting, value));
        let now = value((*setting).source, &value_now(setting));
        let kept = match committed(setting) {
            Committed::Now => Kept {
                session: now,
                local: None,
            },
            Committed::Hidden(hidden, source) => Kept {
                session: value(source, &(*hidden).val),
                local: Some(now),
            },
        };
        (kept.session.is_some() || kept.local.is_some()).then_some(kept)
    }
}

/// Takes down what SET has changed.
pub fn take() -> Values {
    let mut values = HashMap::new();
    for setting in version::all_settings() {
        // SAFETY: records live as long as the process.
        unsafe {
            if let Some(kept) = concerns(setting).then(|| kept(setting)).flatten() {
                values.insert(CStr::from_ptr((*setting).name).to_owned(), kept);
            }
        }
    }
    Values(values)
}

/// Puts the settings back as they were taken down, as part of the transaction.
pub fn put_back(values: &Values) {
    const AS_BEGUN: Kept = Kept {
        session: None,
        local: None,
    };
    for setting in version::all_settings() {
        // SAFETY: as above; setting a value may free the old one, so the name is copied first.
        unsafe {
            if !concerns(setting) {
                continue;
            }
            let now = kept(setting);
            let name = CStr::from_ptr((*setting).name);
            let before = values.0.get(name);
            if now.as_ref() == before {
                continue;
            }
            let name = name.to_owned();
            let before = before.unwrap_or(&AS_BEGUN);
            set(&name, before.session.as_deref(), GucContext::PGC_SUSET, false);
            if let Some(local) = &before.local {
                set(&name, local.as_deref(), GucContext::PGC_SUSET, true);
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
        if ours.starts_with("impersonate.") || ours == "role" || ours == "session_authorization" || guarded(&ours) {
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
