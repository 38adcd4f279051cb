//! A client that speaks the protocol message by message, for what no driver does: to leave a portal half read, to send
//! a batch without waiting, to call a function by its OID, or to go away without a word.
//!
//! The messages are those of <https://www.postgresql.org/docs/current/protocol-message-formats.html>. All values are
//! sent and asked for as text.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::{Cluster, ServerError};

/// A server that says nothing for so long has hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a transaction is, as `ReadyForQuery` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    None,
    Open,
    Failed,
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    AuthenticationOk,
    BackendKeyData {
        pid: i32,
        secret: Vec<u8>,
    },
    BindComplete,
    CloseComplete,
    CommandComplete(String),
    DataRow(Vec<Option<String>>),
    EmptyQueryResponse,
    ErrorResponse(Fields),
    FunctionCallResponse(Option<String>),
    NoData,
    NoticeResponse(Fields),
    ParameterDescription(Vec<u32>),
    ParameterStatus {
        name: String,
        value: String,
    },
    ParseComplete,
    PortalSuspended,
    ReadyForQuery(Transaction),
    /// The names of the columns.
    RowDescription(Vec<String>),
    /// Any other, by its type byte.
    Other(u8, Vec<u8>),
}

/// The fields of an error or a notice, by their letters: `C` is the SQLSTATE, `M` the message, `D` the detail, `H`
/// the hint, `P` the position, `W` the context, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields(pub BTreeMap<char, String>);

impl Fields {
    pub fn get(&self, field: char) -> Option<&str> {
        self.0.get(&field).map(String::as_str)
    }
}

impl From<&Fields> for ServerError {
    fn from(fields: &Fields) -> Self {
        let required = |field| fields.get(field).unwrap_or_default().to_owned();
        ServerError {
            severity: required('V'),
            code: required('C'),
            message: required('M'),
            detail: fields.get('D').map(str::to_owned),
            hint: fields.get('H').map(str::to_owned),
        }
    }
}

/// A connection that is logged in.
pub struct RawClient {
    stream: Stream,
    outgoing: Vec<u8>,
    pid: i32,
    secret: Vec<u8>,
    address: Address,
    parameters: BTreeMap<String, String>,
}

impl RawClient {
    /// Through the cluster's socket.
    #[track_caller]
    pub fn connect(cluster: &Cluster, user: &str, database: &str) -> RawClient {
        Self::connect_with(cluster, user, database, &[]).expect("the server takes the connection")
    }

    /// With more start-up parameters, such as `options`. The server's refusal comes back as it was said.
    pub fn connect_with(
        cluster: &Cluster,
        user: &str,
        database: &str,
        parameters: &[(&str, &str)],
    ) -> Result<RawClient, ServerError> {
        let socket = cluster.host().join(format!(".s.PGSQL.{}", cluster.port()));
        Self::log_in(Address::Socket(socket), user, database, parameters)
    }

    /// Through TCP, which the cluster must have been started with.
    pub fn connect_tcp(
        cluster: &Cluster,
        user: &str,
        database: &str,
        parameters: &[(&str, &str)],
    ) -> Result<RawClient, ServerError> {
        Self::log_in(Address::Port(cluster.port()), user, database, parameters)
    }

    fn log_in(
        address: Address,
        user: &str,
        database: &str,
        parameters: &[(&str, &str)],
    ) -> Result<RawClient, ServerError> {
        let stream = address.open().expect("the server listens");
        let mut client = RawClient {
            stream,
            outgoing: Vec::new(),
            pid: 0,
            secret: Vec::new(),
            address,
            parameters: BTreeMap::new(),
        };
        let mut body = Vec::new();
        body.extend(PROTOCOL_3_0.to_be_bytes());
        for (name, value) in [("user", user), ("database", database)].iter().chain(parameters) {
            put_text(&mut body, name);
            put_text(&mut body, value);
        }
        body.push(0);
        client.put_untyped(&body);
        client.flush();
        loop {
            match client.read() {
                Message::BackendKeyData { pid, secret } => (client.pid, client.secret) = (pid, secret),
                Message::ErrorResponse(fields) => return Err((&fields).into()),
                Message::ReadyForQuery(_) => return Ok(client),
                _ => {}
            }
        }
    }

    /// The backend's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The last value that the server reported of a setting, such as `is_superuser`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    // Whole exchanges -------------------------------------------------------------------------------------------------

    /// A simple query, and all that comes back.
    #[track_caller]
    pub fn simple(&mut self, sql: &str) -> Vec<Message> {
        self.query(sql);
        self.read_until_ready()
    }

    /// A statement by the extended protocol, unnamed and in one go, and all that comes back.
    #[track_caller]
    pub fn extended(&mut self, sql: &str, parameters: &[Option<&str>]) -> Vec<Message> {
        self.parse("", sql, &[]);
        self.bind("", "", parameters);
        self.describe_portal("");
        self.execute("", 0);
        self.sync();
        self.read_until_ready()
    }

    /// A function by its OID: the fast path.
    #[track_caller]
    pub fn call(&mut self, function: u32, arguments: &[Option<&str>]) -> Vec<Message> {
        self.function_call(function, arguments);
        self.read_until_ready()
    }

    // Single messages: put together, and sent by the next flush or read ----------------------------------------------------

    pub fn query(&mut self, sql: &str) {
        let mut body = Vec::new();
        put_text(&mut body, sql);
        self.put(b'Q', &body);
    }

    /// The types may be left out, or be 0 for the server to find out.
    pub fn parse(&mut self, statement: &str, sql: &str, types: &[u32]) {
        let mut body = Vec::new();
        put_text(&mut body, statement);
        put_text(&mut body, sql);
        put_count(&mut body, types.len());
        for oid in types {
            body.extend(oid.to_be_bytes());
        }
        self.put(b'P', &body);
    }

    pub fn bind(&mut self, portal: &str, statement: &str, parameters: &[Option<&str>]) {
        let mut body = Vec::new();
        put_text(&mut body, portal);
        put_text(&mut body, statement);
        put_count(&mut body, 0);
        put_values(&mut body, parameters);
        put_count(&mut body, 0);
        self.put(b'B', &body);
    }

    pub fn describe_portal(&mut self, portal: &str) {
        self.put_named(b'D', b'P', portal);
    }

    pub fn describe_statement(&mut self, statement: &str) {
        self.put_named(b'D', b'S', statement);
    }

    /// At most that many rows; 0 for all. `PortalSuspended` says that there are more.
    pub fn execute(&mut self, portal: &str, max_rows: i32) {
        let mut body = Vec::new();
        put_text(&mut body, portal);
        body.extend(max_rows.to_be_bytes());
        self.put(b'E', &body);
    }

    pub fn close_portal(&mut self, portal: &str) {
        self.put_named(b'C', b'P', portal);
    }

    pub fn close_statement(&mut self, statement: &str) {
        self.put_named(b'C', b'S', statement);
    }

    /// Asks for what has been answered so far, without ending the batch.
    pub fn flush_request(&mut self) {
        self.put(b'H', &[]);
    }

    pub fn sync(&mut self) {
        self.put(b'S', &[]);
    }

    pub fn function_call(&mut self, function: u32, arguments: &[Option<&str>]) {
        let mut body = Vec::new();
        body.extend(function.to_be_bytes());
        put_count(&mut body, 0);
        put_values(&mut body, arguments);
        body.extend(0_i16.to_be_bytes());
        self.put(b'F', &body);
    }

    /// Any message.
    pub fn put(&mut self, kind: u8, body: &[u8]) {
        self.outgoing.push(kind);
        self.put_untyped(body);
    }

    fn put_untyped(&mut self, body: &[u8]) {
        let length = i32::try_from(body.len() + 4).expect("a message is shorter than 2 GB");
        self.outgoing.extend(length.to_be_bytes());
        self.outgoing.extend(body);
    }

    fn put_named(&mut self, kind: u8, what: u8, name: &str) {
        let mut body = vec![what];
        put_text(&mut body, name);
        self.put(kind, &body);
    }

    /// Sends what was put together.
    #[track_caller]
    pub fn flush(&mut self) {
        self.try_flush().expect("the server takes messages");
    }

    pub fn try_flush(&mut self) -> io::Result<()> {
        let outgoing = std::mem::take(&mut self.outgoing);
        self.stream.both().write_all(&outgoing)
    }

    // What comes back -------------------------------------------------------------------------------------------------

    /// The next message.
    #[track_caller]
    pub fn read(&mut self) -> Message {
        self.try_read().expect("the server answers")
    }

    /// Everything up to and including `ReadyForQuery`.
    #[track_caller]
    pub fn read_until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.read());
            if let Some(Message::ReadyForQuery(_)) = messages.last() {
                return messages;
            }
        }
    }

    /// Everything that still comes before the server hangs up.
    pub fn read_to_end(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.try_read().ok()).collect()
    }

    /// The next message, or the error when the connection is gone or silent for too long.
    pub fn try_read(&mut self) -> io::Result<Message> {
        self.try_flush()?;
        let mut head = [0; 5];
        self.stream.both().read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.stream.both().read_exact(&mut body)?;
        let message = decode(head[0], &body);
        if let Message::ParameterStatus { name, value } = &message {
            self.parameters.insert(name.clone(), value.clone());
        }
        Ok(message)
    }

    // Leaving ---------------------------------------------------------------------------------------------------------

    /// Leaves as a client should, and waits until the server has hung up.
    pub fn terminate(mut self) {
        self.put(b'X', &[]);
        self.read_to_end();
    }

    /// Hangs up without a word. Messages not yet flushed are never sent.
    pub fn hang_up(self) {
        // A connection that is gone already is as good.
        let _ = self.stream.shut_down(Shutdown::Both);
    }

    /// Sends no more, but goes on listening: half open.
    pub fn stop_sending(&mut self) {
        self.stream.shut_down(Shutdown::Write).expect("the connection is open");
    }

    /// Asks the server, over a connection of its own, to cancel what this one is doing.
    pub fn cancel(&self) {
        let mut body = Vec::new();
        body.extend(CANCEL_REQUEST.to_be_bytes());
        body.extend(self.pid.to_be_bytes());
        body.extend(&self.secret);
        let mut message = Vec::new();
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        let mut stream = self.address.open().expect("the server listens");
        stream.both().write_all(&message).expect("the server takes messages");
        // The server hangs up when it has sent the signal.
        let _ = stream.both().read(&mut [0]);
    }
}

// ---------------------------------------------------------------------------------------------------- picking answers ---

/// The first error among messages.
pub fn error_in(messages: &[Message]) -> Option<ServerError> {
    messages.iter().find_map(|message| match message {
        Message::ErrorResponse(fields) => Some(fields.into()),
        _ => None,
    })
}

/// The rows among messages.
pub fn rows_in(messages: &[Message]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|message| match message {
            Message::DataRow(values) => Some(values.clone()),
            _ => None,
        })
        .collect()
}

/// The command tags among messages.
pub fn tags_in(messages: &[Message]) -> Vec<&str> {
    messages
        .iter()
        .filter_map(|message| match message {
            Message::CommandComplete(tag) => Some(tag.as_str()),
            _ => None,
        })
        .collect()
}

// --------------------------------------------------------------------------------------------------------- the stream ---

enum Address {
    Socket(std::path::PathBuf),
    Port(u16),
}

impl Address {
    fn open(&self) -> io::Result<Stream> {
        Ok(match self {
            Address::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
            Address::Port(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl Stream {
    fn both(&mut self) -> &mut dyn ReadWrite {
        match self {
            Stream::Unix(stream) => stream,
            Stream::Tcp(stream) => stream,
        }
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(how),
            Stream::Tcp(stream) => stream.shutdown(how),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- encoding ---

const PROTOCOL_3_0: u32 = 3 << 16;
const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;

fn put_text(body: &mut Vec<u8>, text: &str) {
    assert!(!text.contains('\0'), "the protocol ends texts with a zero byte");
    body.extend(text.as_bytes());
    body.push(0);
}

fn put_count(body: &mut Vec<u8>, count: usize) {
    body.extend(u16::try_from(count).expect("at most 65535 of anything").to_be_bytes());
}

fn put_values(body: &mut Vec<u8>, values: &[Option<&str>]) {
    put_count(body, values.len());
    for value in values {
        match value {
            Some(text) => {
                body.extend((text.len() as u32).to_be_bytes());
                body.extend(text.as_bytes());
            }
            None => body.extend((-1_i32).to_be_bytes()),
        }
    }
}

/// The body of a message, read from the front. Panics where the server breaks its own protocol.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes.to_vec()
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().expect("two bytes"))
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn text(&mut self) -> String {
        let length = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .expect("a text ends with a zero byte");
        let text = String::from_utf8_lossy(&self.bytes(length)).into_owned();
        self.bytes(1);
        text
    }

    fn value(&mut self) -> Option<String> {
        let length = usize::try_from(self.i32()).ok()?;
        Some(String::from_utf8_lossy(&self.bytes(length)).into_owned())
    }

    fn fields(&mut self) -> Fields {
        let mut fields = BTreeMap::new();
        loop {
            match self.bytes(1)[0] {
                0 => return Fields(fields),
                field => fields.insert(char::from(field), self.text()),
            };
        }
    }
}

fn decode(kind: u8, bytes: &[u8]) -> Message {
    let mut body = Body(bytes);
    match kind {
        b'R' if bytes == [0, 0, 0, 0] => Message::AuthenticationOk,
        b'K' => Message::BackendKeyData {
            pid: body.i32(),
            secret: body.0.to_vec(),
        },
        b'2' => Message::BindComplete,
        b'3' => Message::CloseComplete,
        b'C' => Message::CommandComplete(body.text()),
        b'D' => Message::DataRow((0..body.u16()).map(|_| body.value()).collect()),
        b'I' => Message::EmptyQueryResponse,
        b'E' => Message::ErrorResponse(body.fields()),
        b'V' => Message::FunctionCallResponse(body.value()),
        b'n' => Message::NoData,
        b'N' => Message::NoticeResponse(body.fields()),
        b't' => Message::ParameterDescription((0..body.u16()).map(|_| body.i32() as u32).collect()),
        b'S' => Message::ParameterStatus {
            name: body.text(),
            value: body.text(),
        },
        b'1' => Message::ParseComplete,
        b's' => Message::PortalSuspended,
        b'Z' => Message::ReadyForQuery(match bytes {
            b"I" => Transaction::None,
            b"T" => Transaction::Open,
            _ => Transaction::Failed,
        }),
        b'T' => Message::RowDescription(
            (0..body.u16())
                .map(|_| {
                    let name = body.text();
                    // Table, column, type, its size and modifier, format.
                    body.bytes(18);
                    name
                })
                .collect(),
        ),
        _ => Message::Other(kind, bytes.to_vec()),
    }
}
