//! N1: on a standby role changes come by replication, without a statement that would judge what they break. So somebody
//! looks: the audit writer of each database, which is there as long as somebody impersonates in it. It sees the
//! invalidations that are replayed with a commit, and judges every impersonation of its database again; those that it
//! has not judged yet, too, as their switch may have missed what was replayed at that moment.

use super::{about_broken, judge_all, note_for, terminated, Broken};
use crate::audit::{self, Watch};
use crate::pg::active::{self, Entry};
use crate::pg::guc::name_text;
use crate::pg::{backends, changes, identity, roles, worker};
use std::cell::RefCell;

/// Microseconds after which a connection that was told to end is told again.
const PATIENCE: i64 = 1_000_000;

/// For `audit`.
pub const WATCH: Watch = Watch {
    wanted: active::any,
    look,
};

struct Judged {
    id: [u8; 16],
    /// When it has to be judged again though nothing changes.
    expires: i64,
    told_to_end: Option<i64>,
}

thread_local! {
    static JUDGED: RefCell<Vec<Judged>> = const { RefCell::new(Vec::new()) };
}

fn look() {
    let here = identity::database();
    let entries: Vec<Entry> = active::snapshot()
        .into_iter()
        .map(|(_, entry)| entry)
        .filter(|entry| entry.database == here)
        .collect();
    JUDGED.with_borrow_mut(|judged| judged.retain(|one| entries.iter().any(|entry| entry.state.id == one.id)));
    if !entries.is_empty() {
        worker::transaction(|| judge(&entries));
    }
}

fn judge(entries: &[Entry]) {
    let now = identity::now();
    let full = entries.iter().any(|entry| entry.state.rules.full);
    let changed = changes::any(full);
    let due = JUDGED.with_borrow(|judged| {
        entries.iter().any(|entry| {
            let known = judged.iter().find(|one| one.id == entry.state.id);
            known.is_none_or(|one| one.expires < now || one.told_to_end.is_some_and(|told| now - told > PATIENCE))
        })
    });
    if !changed && !due {
        return;
    }
    let seen = changes::look();
    let broken: Vec<(Entry, Broken)> = judge_all()
        .into_iter()
        .filter(|(entry, _)| entry.database == identity::database())
        .collect();
    let next: Vec<Judged> = entries
        .iter()
        .map(|entry| Judged {
            id: entry.state.id,
            expires: if entry.state.rules.require_login {
                roles::valid_until(entry.state.target)
            } else {
                i64::MAX
            },
            told_to_end: None,
        })
        .collect();
    seen.settle();
    let failed: Vec<[u8; 16]> = broken.iter().map(|(entry, _)| entry.state.id).collect();
    active::judged(now, &failed);
    let mut judged = JUDGED.replace(next);
    for (entry, broken) in &broken {
        let told = judged
            .iter()
            .find(|one| one.id == entry.state.id)
            .and_then(|one| one.told_to_end);
        match told {
            Some(told) if now - told <= PATIENCE => (),
            Some(_) => _ = backends::terminate(entry.pid),
            None => end(entry, broken),
        }
        let told = told.filter(|told| now - told <= PATIENCE).unwrap_or(now);
        JUDGED.with_borrow_mut(|next| {
            if let Some(one) = next.iter_mut().find(|one| one.id == entry.state.id) {
                one.told_to_end = Some(told);
            }
        });
    }
    judged.clear();
}

/// Ends a connection, on record and with word to its client.
fn end(entry: &Entry, broken: &Broken) {
    let why = format!(
        "Role \"{}\" may no longer act as role \"{}\". {}",
        name_text(&entry.state.impersonator_name),
        name_text(&entry.state.target_name),
        broken.sentence
    );
    if !active::foretell(entry.pid, &entry.state.id, &note_for(&why)) {
        return;
    }
    let mut detail = about_broken(entry, broken);
    detail["cause"] = "replayed".into();
    let detail = identity::speakable(&detail.to_string()).into_owned();
    audit::push_as_writer(&terminated(entry, &detail));
    backends::terminate(entry.pid);
}
