//! An audit event, and its form in the queue.
//!
//! A record is a multiple of 8 bytes: a fixed head, then the texts, each behind its length, then the lists. Only this
//! file knows the form; it is written and read by the same version of the library, in one run of the server.

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
        }
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [SetUser, ResetUser, Denied, Statement, Grant, Revoke, Violation, Terminated]
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
    pub parameters: Option<&'a [Option<Text<'a>>]>,
    pub relations: Option<&'a [Text<'a>]>,
    pub row_count: Option<i64>,
    pub duration_us: Option<i64>,
    pub sqlstate: [u8; 5],
    pub grant_id: Option<i64>,
    pub reason: Option<Text<'a>>,
    /// JSON. What `jsonb` doesn't accept is stored as a JSON string.
    pub detail: Option<Text<'a>>,
}

/// SQLSTATE of what worked.
pub const SUCCESSFUL: [u8; 5] = *b"00000";

/// Room that suffices for an event without statement, parameters, relations, reason and detail, if its other texts are
/// shorter than 64 bytes, as names are in Postgres.
pub const BARE_EVENT_BYTES: usize = 640;

const HEAD: usize = 80;
const NONE: u32 = u32::MAX;

/// Where an encoded event goes: into the ring, or nowhere while its size is counted.
pub trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

struct Counter(usize);

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 = self.0.saturating_add(bytes.len());
    }
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
        let mut counter = Counter(HEAD);
        self.put_variable(&mut counter);
        counter.0.saturating_add(7) & !7
    }

    /// Writes exactly `size` bytes, where `size` is what `size()` returned.
    pub(super) fn encode(&self, size: usize, sink: &mut impl Sink) {
        let mut head = [0_u8; HEAD];
        let flags = u8::from(self.impersonation_id.is_some())
            | u8::from(self.row_count.is_some()) << 1
            | u8::from(self.duration_us.is_some()) << 2
            | u8::from(self.grant_id.is_some()) << 3;
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
        sink.put(&head);
        let mut counted = Counting { sink, count: HEAD };
        self.put_variable(&mut counted);
        let padding = size.saturating_sub(counted.count).min(7);
        sink.put(&[0; 7][..padding]);
    }

    fn put_variable(&self, sink: &mut impl Sink) {
        put_text(sink, Some(self.user_name));
        put_text(sink, Some(self.session_user_name));
        put_text(sink, Some(self.role_name));
        put_text(sink, self.application_name);
        put_text(sink, self.client_addr);
        put_text(sink, self.command_tag);
        put_text(sink, self.statement);
        put_text(sink, self.reason);
        put_text(sink, self.detail);
        match self.parameters {
            None => sink.put(&NONE.to_ne_bytes()),
            Some(list) => {
                sink.put(&(list.len() as u32).to_ne_bytes());
                list.iter().for_each(|element| put_text(sink, *element));
            }
        }
        match self.relations {
            None => sink.put(&NONE.to_ne_bytes()),
            Some(list) => {
                sink.put(&(list.len() as u32).to_ne_bytes());
                list.iter().for_each(|element| put_text(sink, Some(element)));
            }
        }
    }

    /// The event without what can be long: `BARE_EVENT_BYTES` at most.
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

struct Counting<'s, S: Sink> {
    sink: &'s mut S,
    count: usize,
}

impl<S: Sink> Sink for Counting<'_, S> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.count += bytes.len();
        self.sink.put(bytes);
    }
}

#[inline]
fn put_text(sink: &mut impl Sink, text: Option<Text>) {
    match text {
        None => sink.put(&NONE.to_ne_bytes()),
        Some(text) => {
            sink.put(&(text.len() as u32).to_ne_bytes());
            sink.put(text);
        }
    }
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
}

/// Texts of a list, some of which may be NULL.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> List<'a> {
    pub fn iter(&self) -> impl Iterator<Item = Option<Text<'a>>> + use<'a> {
        let mut reader = Reader(self.bytes);
        (0..self.count).map_while(move |_| reader.text())
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
    let optional = |bit: u8, at: usize| if flags & (1 << bit) != 0 { long(at).map(Some) } else { Some(None) };
    let mut reader = Reader(&bytes[HEAD..]);
    Some(Record {
        kind: Kind::from_byte(head[4])?,
        time: long(8)?,
        session_start: long(16)?,
        pid: i32::from_ne_bytes(head[24..28].try_into().ok()?),
        sqlstate: head[28..33].try_into().ok()?,
        impersonation_id: if flags & 1 != 0 { Some(head[40..56].try_into().ok()?) } else { None },
        row_count: optional(1, 56)?,
        duration_us: optional(2, 64)?,
        grant_id: optional(3, 72)?,
        user_name: reader.text()??,
        session_user_name: reader.text()??,
        role_name: reader.text()??,
        application_name: reader.text()?,
        client_addr: reader.text()?,
        command_tag: reader.text()?,
        statement: reader.text()?,
        reason: reader.text()?,
        detail: reader.text()?,
        parameters: reader.list()?,
        relations: reader.list()?,
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
    fn text(&mut self) -> Option<Option<Text<'a>>> {
        match self.length()? {
            NONE => Some(None),
            length => {
                let (text, rest) = self.0.split_at_checked(length as usize)?;
                self.0 = rest;
                Some(Some(text))
            }
        }
    }

    fn list(&mut self) -> Option<Option<List<'a>>> {
        match self.length()? {
            NONE => Some(None),
            count => {
                let bytes = self.0;
                for _ in 0..count {
                    self.text()?;
                }
                Some(Some(List { count: count as usize, bytes: &bytes[..bytes.len() - self.0.len()] }))
            }
        }
    }
}
