//! An audit event, and its form in the queue.
//!
//! A record is a multiple of 8 bytes: a fixed head with the lengths of the texts in it, then the texts, then the lists
//! with a length before each text. Only this file knows the form. In the queue it is written and read by the same version
//! of the library, in one run of the server; on a standby it outlives that in the spool (`spool.rs`), so whoever changes
//! the form changes the spool's version.

/// Text in the encoding of the event's database, which need not be UTF-8.
pub type Text<'a> = &'a [u8];

/// What happened (SPEC L2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    SetUser = 1,
    ResetUser,
    Denied,
    Statement,
    Grant,
    Revoke,
    Violation,
    Terminated,
    /// Old rows left (L9).
    Purge,
    /// From here on events go elsewhere, or come back; the writer's own.
    Destination,
    /// A node's spool was retired (N2).
    Node,
}

impl Kind {
    /// As in column `event`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::SetUser => "SETUSER",
            Kind::ResetUser => "RESETUSER",
            Kind::Denied => "DENIED",
            Kind::Statement => "STATEMENT",
            Kind::Grant => "GRANT",
            Kind::Revoke => "REVOKE",
            Kind::Violation => "VIOLATION",
            Kind::Terminated => "TERMINATED",
            Kind::Purge => "PURGE",
            Kind::Destination => "DESTINATION",
            Kind::Node => "NODE",
        }
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [
            SetUser,
            ResetUser,
            Denied,
            Statement,
            Grant,
            Revoke,
            Violation,
            Terminated,
            Purge,
            Destination,
            Node,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// An event as it is handed to the queue. `event_id`, `database` and `hash` are the writer's.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub kind: Kind,
    /// Microseconds since 2000-01-01 (`TimestampTz`).
    pub time: i64,
    pub user_name: Text<'a>,
    pub session_user_name: Text<'a>,
    pub role_name: Text<'a>,
    pub impersonation_id: Option<[u8; 16]>,
    pub pid: i32,
    /// `MyStartTime`, in seconds since 1970: with `pid` it makes the session id, as %c in log_line_prefix.
    pub session_start: i64,
    pub application_name: Option<Text<'a>>,
    /// Text that `inet` accepts. What it doesn't accept is stored in `detail` instead.
    pub client_addr: Option<Text<'a>>,
    pub command_tag: Option<Text<'a>>,
    pub statement: Option<Text<'a>>,
    pub parameters: Option<List<'a>>,
    pub relations: Option<List<'a>>,
    pub row_count: Option<i64>,
    pub duration_us: Option<i64>,
    pub sqlstate: [u8; 5],
    pub grant_id: Option<i64>,
    pub reason: Option<Text<'a>>,
    /// JSON. What `jsonb` doesn't accept is stored as a JSON string.
    pub detail: Option<Text<'a>>,
    /// Of an event of another node.
    pub origin: Option<Origin<'a>>,
}

/// Where an event of another node stands there (N2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin<'a> {
    pub node: Text<'a>,
    pub spool: [u8; 16],
    pub position: u64,
    /// The spool's hash, of this event.
    pub hash: [u8; 32],
}

/// Bytes of an origin but the node's name.
const ORIGIN: usize = 4 + 16 + 8 + 32;

/// SQLSTATE of what worked.
pub const SUCCESSFUL: [u8; 5] = *b"00000";

/// Fixed fields, then the lengths of the texts.
const HEAD: usize = LENGTHS + 4 * TEXTS;
const LENGTHS: usize = 80;
const TEXTS: usize = 9;

/// Where a record has its time. A record begins at a multiple of 8, so the time is in one piece.
pub(super) const TIME_AT: u64 = 8;

/// A length that says NULL.
const NONE: u32 = u32::MAX;

/// Where an encoded event goes.
pub trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

/// For the server log.
impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Event<'_> {
    /// Bytes that the event takes in the queue, head and alignment included.
    pub fn size(&self) -> usize {
        let texts: usize = self.texts().iter().flatten().map(|text| text.len()).sum();
        let lists: usize = [self.parameters, self.relations]
            .iter()
            .flatten()
            .map(|list| list.bytes.len())
            .sum();
        let origin = self.origin.map_or(0, |origin| ORIGIN + origin.node.len());
        (HEAD + texts + 4 + 4 + lists + origin).next_multiple_of(8)
    }

    /// Those that have their length in the head, in this order.
    fn texts(&self) -> [Option<Text<'_>>; TEXTS] {
        [
            Some(self.user_name),
            Some(self.session_user_name),
            Some(self.role_name),
            self.application_name,
            self.client_addr,
            self.command_tag,
            self.statement,
            self.reason,
            self.detail,
        ]
    }

    /// Writes no more than `size` bytes, where `size` is what `size()` returned.
    pub(super) fn encode(&self, size: usize, sink: &mut impl Sink) {
        let mut head = [0_u8; HEAD];
        let flags = u8::from(self.impersonation_id.is_some())
            | u8::from(self.row_count.is_some()) << 1
            | u8::from(self.duration_us.is_some()) << 2
            | u8::from(self.grant_id.is_some()) << 3
            | u8::from(self.origin.is_some()) << 4;
        head[0..4].copy_from_slice(&(size as u32).to_ne_bytes());
        head[4] = self.kind as u8;
        head[5] = flags;
        head[8..16].copy_from_slice(&self.time.to_ne_bytes());
        head[16..24].copy_from_slice(&self.session_start.to_ne_bytes());
        head[24..28].copy_from_slice(&self.pid.to_ne_bytes());
        head[28..33].copy_from_slice(&self.sqlstate);
        head[40..56].copy_from_slice(&self.impersonation_id.unwrap_or_default());
        head[56..64].copy_from_slice(&self.row_count.unwrap_or_default().to_ne_bytes());
        head[64..72].copy_from_slice(&self.duration_us.unwrap_or_default().to_ne_bytes());
        head[72..80].copy_from_slice(&self.grant_id.unwrap_or_default().to_ne_bytes());
        let texts = self.texts();
        for (length, text) in head[LENGTHS..].chunks_exact_mut(4).zip(&texts) {
            length.copy_from_slice(&text.map_or(NONE, |text| text.len() as u32).to_ne_bytes());
        }
        sink.put(&head);
        texts.iter().flatten().for_each(|text| sink.put(text));
        put_list(sink, self.parameters);
        put_list(sink, self.relations);
        if let Some(origin) = &self.origin {
            sink.put(&(origin.node.len() as u32).to_ne_bytes());
            sink.put(origin.node);
            sink.put(&origin.spool);
            sink.put(&origin.position.to_ne_bytes());
            sink.put(&origin.hash);
        }
    }

    /// The event without what can be long: at most 640 bytes if its other texts are shorter than 64, as names are.
    pub(super) fn bare(&self) -> Self {
        Event {
            statement: None,
            parameters: None,
            relations: None,
            reason: None,
            detail: Some(br#"{"cut": "the event did not fit into the queue"}"#),
            ..*self
        }
    }
}

fn put_list(sink: &mut impl Sink, list: Option<List>) {
    let Some(list) = list else {
        return sink.put(&NONE.to_ne_bytes());
    };
    sink.put(&(list.count as u32).to_ne_bytes());
    sink.put(list.bytes);
}

/// An event as the writer finds it in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub kind: Kind,
    pub time: i64,
    pub user_name: Text<'a>,
    pub session_user_name: Text<'a>,
    pub role_name: Text<'a>,
    pub impersonation_id: Option<[u8; 16]>,
    pub pid: i32,
    pub session_start: i64,
    pub application_name: Option<Text<'a>>,
    pub client_addr: Option<Text<'a>>,
    pub command_tag: Option<Text<'a>>,
    pub statement: Option<Text<'a>>,
    pub parameters: Option<List<'a>>,
    pub relations: Option<List<'a>>,
    pub row_count: Option<i64>,
    pub duration_us: Option<i64>,
    pub sqlstate: [u8; 5],
    pub grant_id: Option<i64>,
    pub reason: Option<Text<'a>>,
    pub detail: Option<Text<'a>>,
    pub origin: Option<Origin<'a>>,
}

impl<'a> Record<'a> {
    /// The event again, as one of that origin.
    pub(super) fn event_of(&self, origin: Origin<'a>) -> Event<'a> {
        Event {
            kind: self.kind,
            time: self.time,
            user_name: self.user_name,
            session_user_name: self.session_user_name,
            role_name: self.role_name,
            impersonation_id: self.impersonation_id,
            pid: self.pid,
            session_start: self.session_start,
            application_name: self.application_name,
            client_addr: self.client_addr,
            command_tag: self.command_tag,
            statement: self.statement,
            parameters: self.parameters,
            relations: self.relations,
            row_count: self.row_count,
            duration_us: self.duration_us,
            sqlstate: self.sqlstate,
            grant_id: self.grant_id,
            reason: self.reason,
            detail: self.detail,
            origin: Some(origin),
        }
    }

    /// Whether an event could have happened then, and come to that: else there is no partition for it, or no text.
    pub(super) fn is_possible(&self) -> bool {
        // The years 1900 to 9999: whatever a clock may be set to.
        const BEGIN: i64 = -3_155_673_600_000_000;
        const END: i64 = 252_455_616_000_000_000;
        (BEGIN..END).contains(&self.time) && self.sqlstate.iter().all(u8::is_ascii_alphanumeric)
    }

    /// Every text of it but names of roles, which may be in another encoding.
    pub(super) fn checked_texts(&self) -> impl Iterator<Item = Text<'a>> + use<'a> {
        let texts = [
            self.application_name,
            self.client_addr,
            self.command_tag,
            self.statement,
            self.reason,
            self.detail,
        ];
        let lists = [self.parameters, self.relations];
        let listed = lists.into_iter().flatten().flat_map(|list| list.iter());
        texts.into_iter().chain(listed).flatten()
    }
}

/// Texts of a list, some of which may be NULL, in the form that they have in the queue.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    count: usize,
    bytes: &'a [u8],
}

/// A list that grows.
#[derive(Clone, Debug, Default)]
pub struct ListBuffer {
    count: usize,
    bytes: Vec<u8>,
}

impl ListBuffer {
    pub fn push(&mut self, text: Option<Text>) {
        match text {
            Some(text) => self.push_parts(&[text]),
            None => {
                self.bytes.extend_from_slice(&NONE.to_ne_bytes());
                self.count += 1;
            }
        }
    }

    /// Adds the text that is made of these parts.
    pub fn push_parts(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.reserve(4 + length);
        self.bytes.extend_from_slice(&(length as u32).to_ne_bytes());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.count += 1;
    }

    pub fn as_list(&self) -> List<'_> {
        List {
            count: self.count,
            bytes: &self.bytes,
        }
    }

    /// Bytes that the list takes in an event.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> List<'a> {
    pub fn iter(&self) -> impl Iterator<Item = Option<Text<'a>>> + use<'a> {
        let mut reader = Reader(self.bytes);
        (0..self.count).map_while(move |_| reader.element())
    }
}

/// The length of the record whose first bytes these are.
pub(super) fn record_length(first: [u8; 8]) -> usize {
    u32::from_ne_bytes([first[0], first[1], first[2], first[3]]) as usize
}

/// Reads back what `Event::encode` wrote; `None` if these bytes are no record.
pub(super) fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let flags = head[5];
    let long = |at: usize| Some(i64::from_ne_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let optional = |bit: u8, at: usize| {
        if flags & (1 << bit) != 0 {
            long(at).map(Some)
        } else {
            Some(None)
        }
    };
    let mut reader = Reader(&bytes[HEAD..]);
    let mut texts = [None; TEXTS];
    for (text, length) in texts.iter_mut().zip(head[LENGTHS..].chunks_exact(4)) {
        *text = reader.text(u32::from_ne_bytes(length.try_into().ok()?))?;
    }
    let [user_name, session_user_name, role_name, application_name, client_addr, command_tag, statement, reason, detail] =
        texts;
    Some(Record {
        kind: Kind::from_byte(head[4])?,
        time: long(8)?,
        session_start: long(16)?,
        pid: i32::from_ne_bytes(head[24..28].try_into().ok()?),
        sqlstate: head[28..33].try_into().ok()?,
        impersonation_id: if flags & 1 != 0 {
            Some(head[40..56].try_into().ok()?)
        } else {
            None
        },
        row_count: optional(1, 56)?,
        duration_us: optional(2, 64)?,
        grant_id: optional(3, 72)?,
        user_name: user_name?,
        session_user_name: session_user_name?,
        role_name: role_name?,
        application_name,
        client_addr,
        command_tag,
        statement,
        reason,
        detail,
        parameters: reader.list()?,
        relations: reader.list()?,
        origin: if flags & (1 << 4) != 0 {
            Some(reader.origin()?)
        } else {
            None
        },
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn length(&mut self) -> Option<u32> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*length))
    }

    /// `None` past the end; `Some(None)` for NULL.
    fn text(&mut self, length: u32) -> Option<Option<Text<'a>>> {
        if length == NONE {
            return Some(None);
        }
        let (text, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(Some(text))
    }

    /// As `text`, with the length in front.
    fn element(&mut self) -> Option<Option<Text<'a>>> {
        let length = self.length()?;
        self.text(length)
    }

    fn origin(&mut self) -> Option<Origin<'a>> {
        let node = self.element()??;
        let (spool, rest) = self.0.split_first_chunk::<16>()?;
        let (position, rest) = rest.split_first_chunk::<8>()?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        self.0 = rest;
        Some(Origin {
            node,
            spool: *spool,
            position: u64::from_ne_bytes(*position),
            hash: *hash,
        })
    }

    fn list(&mut self) -> Option<Option<List<'a>>> {
        match self.length()? {
            NONE => Some(None),
            count => {
                let bytes = self.0;
                for _ in 0..count {
                    self.element()?;
                }
                Some(Some(List {
                    count: count as usize,
                    bytes: &bytes[..bytes.len() - self.0.len()],
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[Option<Text>]) -> ListBuffer {
        let mut list = ListBuffer::default();
        texts.iter().for_each(|text| list.push(*text));
        list
    }

    fn event<'a>(parameters: Option<List<'a>>, relations: Option<List<'a>>) -> Event<'a> {
        Event {
            kind: Kind::Denied,
            time: -1,
            user_name: b"bob",
            session_user_name: b"",
            role_name: b"caf\xe9",
            impersonation_id: Some([3; 16]),
            pid: 42,
            session_start: 7,
            application_name: None,
            client_addr: Some(b"::1"),
            command_tag: Some(b""),
            statement: Some(b"SELECT 1"),
            parameters,
            relations,
            row_count: Some(0),
            duration_us: None,
            sqlstate: *b"42501",
            grant_id: Some(i64::MIN),
            reason: None,
            detail: Some(b"{}"),
            origin: None,
        }
    }

    fn encoded(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        event.encode(event.size(), &mut bytes);
        assert!(bytes.len() <= event.size() && event.size() - bytes.len() < 8 && event.size() % 8 == 0);
        bytes
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let parameters: [Option<Text>; 3] = [Some(b"a"), None, Some(b"")];
        let relations: [Option<Text>; 2] = [Some(b"public.t"), Some(b"")];
        let (list_1, list_2) = (list(&parameters), list(&relations));
        let event = event(Some(list_1.as_list()), Some(list_2.as_list()));
        let bytes = encoded(&event);
        assert_eq!(record_length(*bytes.first_chunk().unwrap()), event.size());
        let record = decode(&bytes).unwrap();
        assert_eq!(record.kind, event.kind);
        assert_eq!((record.time, record.pid, record.session_start), (-1, 42, 7));
        assert_eq!(
            (record.user_name, record.session_user_name, record.role_name),
            (&b"bob"[..], &b""[..], &b"caf\xe9"[..])
        );
        assert_eq!(
            (record.application_name, record.client_addr, record.command_tag),
            (None, Some(&b"::1"[..]), Some(&b""[..]))
        );
        assert_eq!(
            (record.statement, record.reason, record.detail),
            (event.statement, None, event.detail)
        );
        assert_eq!(
            (record.row_count, record.duration_us, record.grant_id),
            (Some(0), None, Some(i64::MIN))
        );
        assert_eq!((record.impersonation_id, record.sqlstate), (Some([3; 16]), *b"42501"));
        assert!(record.parameters.unwrap().iter().eq(parameters));
        assert!(record.relations.unwrap().iter().eq(relations));
    }

    #[test]
    fn an_origin_goes_along() {
        let origin = Origin {
            node: b"north",
            spool: [7; 16],
            position: u64::MAX,
            hash: [9; 32],
        };
        let parameters: [Option<Text>; 1] = [Some(b"a")];
        let list = list(&parameters);
        let bytes = encoded(&event(Some(list.as_list()), None));
        let record = decode(&bytes).unwrap();
        assert_eq!(record.origin, None);
        let bytes = encoded(&record.event_of(origin));
        let record = decode(&bytes).unwrap();
        assert_eq!(record.origin, Some(origin));
        assert!(record.parameters.unwrap().iter().eq(parameters));
        assert_eq!(record.checked_texts().count(), 5);
    }

    #[test]
    fn a_missing_list_is_not_an_empty_one() {
        let bytes = encoded(&event(None, Some(ListBuffer::default().as_list())));
        let record = decode(&bytes).unwrap();
        assert!(record.parameters.is_none());
        assert_eq!(record.relations.unwrap().iter().count(), 0);
    }

    #[test]
    fn no_damage_makes_decoding_panic() {
        let parameters: [Option<Text>; 2] = [Some(b"abc"), None];
        let bytes = encoded(&event(Some(list(&parameters).as_list()), None));
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length]).map(|record| record.parameters.map(|list| list.iter().count()));
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = decode(&damaged).map(|record| record.parameters.map(|list| list.iter().count()));
            }
        }
    }

    #[test]
    fn a_bare_event_is_small() {
        let name = [b'n'; 63];
        let long = Event {
            user_name: &name,
            session_user_name: &name,
            role_name: &name,
            application_name: Some(&name),
            client_addr: Some(&name),
            command_tag: Some(&name),
            ..event(None, None)
        };
        assert!(long.bare().size() <= 640, "{}", long.bare().size());
    }
}
