//! What a STATEMENT row says of what its statement touches and is given (L3): lists that fit the queue (L10), without
//! secrets (L7).

use crate::audit::{self, ListBuffer};
use crate::pg::identity;
use crate::pg::parameters::Parameters;
use crate::pg::relations::Touched;
use crate::settings;
use impersonate_policy::{redact, secret_parameters};

/// Bytes that the row keeps of a parameter's value.
const VALUE: usize = 1024;

/// Bytes for the list of relations, for that of parameters, and for the text of the statement that EXECUTE runs. What
/// an event has left is for its own text.
pub fn relations_limit() -> usize {
    (audit::max_event_bytes() / 16).min(16 * 1024)
}

pub fn parameters_limit() -> usize {
    (audit::max_event_bytes() / 4).min(64 * 1024)
}

pub fn prepared_limit() -> usize {
    (audit::max_event_bytes() / 16).min(16 * 1024)
}

/// A list, and what detail says of it when it isn't whole: pairs of a JSON object.
pub struct Kept {
    pub list: Option<ListBuffer>,
    pub note: Option<String>,
}

impl Kept {
    pub const NOTHING: Kept = Kept { list: None, note: None };
}

/// `schema.name (select, update)`: sorted by name, each once. None when nothing is touched.
pub fn relations(touched: &mut Vec<Touched>) -> Kept {
    touched.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    touched.dedup_by(|next, kept| {
        let same = next.name == kept.name;
        if same {
            kept.access = kept.access.and(next.access);
        }
        same
    });
    if touched.is_empty() {
        return Kept::NOTHING;
    }
    let limit = relations_limit();
    let mut list = ListBuffer::default();
    for relation in touched.iter() {
        let kinds = relation.access.in_words();
        if list.size() + relation.name.len() + kinds.len() > limit {
            list.push(Some(b"..."));
            let note = format!("\"relations_count\": {}", touched.len());
            return Kept {
                list: Some(list),
                note: Some(note),
            };
        }
        list.push_parts(&[&relation.name, b" (", kinds.as_bytes(), b")"]);
    }
    Kept {
        list: Some(list),
        note: None,
    }
}

/// The values that the statement of this text is given.
pub fn parameters(parameters: Parameters, text: &[u8]) -> Kept {
    let count = parameters.count();
    if count == 0 || !settings::audit_parameters() {
        return Kept::NOTHING;
    }
    let secret = secret_parameters(text, count);
    let mut list = ListBuffer::default();
    let mut cut = Vec::new();
    let mut whole = true;
    parameters.read(VALUE, &mut |place, value| {
        let kept = value.map(|value| {
            if secret[place] {
                return b"<redacted>".into();
            }
            if value.len() > VALUE {
                cut.push((place + 1).to_string());
            }
            redact(identity::cut(value, VALUE))
        });
        let kept = kept.as_deref().map(|value| identity::cut(value, VALUE));
        whole = list.size() + kept.map_or(0, <[u8]>::len) <= parameters_limit();
        if whole {
            list.push(kept);
        }
        whole
    });
    let mut notes = Vec::new();
    if !cut.is_empty() {
        // As many numbers as anybody reads.
        cut.truncate(16);
        notes.push(format!("\"parameters_cut\": [{}]", cut.join(", ")));
    }
    if !whole {
        notes.push(format!("\"parameters_count\": {count}"));
    }
    Kept {
        list: Some(list),
        note: (!notes.is_empty()).then(|| notes.join(", ")),
    }
}

/// For detail: the text of the statement that EXECUTE runs.
pub fn prepared(text: &[u8]) -> String {
    let text = redact(text);
    // Escaped it may take six times as much.
    let kept = identity::cut(&text, prepared_limit() / 6);
    let value = serde_json::Value::from(identity::to_utf8(kept)).to_string();
    format!("\"prepared\": {}", identity::speakable(&value))
}

/// `detail` with these pairs added.
pub fn with(detail: Option<String>, pairs: Option<&str>) -> Option<String> {
    match (detail, pairs) {
        (detail, None) => detail,
        (None, Some(pairs)) => Some(format!("{{{pairs}}}")),
        (Some(detail), Some(pairs)) => Some(match detail.strip_suffix('}') {
            Some("{") | None => format!("{{{pairs}}}"),
            Some(detail) => format!("{detail}, {pairs}}}"),
        }),
    }
}
