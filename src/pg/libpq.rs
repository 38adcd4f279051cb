//! A client's connection to another server, that never keeps this process from its interrupts: libpq, without blocking.
//!
//! The library is looked for when it is first needed, so that only a standby that sends events loads it: through the
//! server's own walreceiver, which brings the libpq that the server was built for, or else by its name.

use super::worker;
use pgrx::pg_sys;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

type Conn = *mut c_void;
type Result_ = *mut c_void;

/// PQconninfoOption: an array of them ends with one without a keyword.
#[repr(C)]
struct ConninfoOption {
    keyword: *const c_char,
    envvar: *const c_char,
    compiled: *const c_char,
    val: *const c_char,
    label: *const c_char,
    dispchar: *const c_char,
    dispsize: c_int,
}

/// The functions of libpq that are used, as libpq-fe.h declares them.
struct Api {
    connect_start: unsafe extern "C" fn(*const *const c_char, *const *const c_char, c_int) -> Conn,
    connect_poll: unsafe extern "C" fn(Conn) -> c_int,
    status: unsafe extern "C" fn(Conn) -> c_int,
    socket: unsafe extern "C" fn(Conn) -> c_int,
    error_message: unsafe extern "C" fn(Conn) -> *const c_char,
    finish: unsafe extern "C" fn(Conn),
    set_nonblocking: unsafe extern "C" fn(Conn, c_int) -> c_int,
    #[allow(clippy::type_complexity)]
    send_query_params: unsafe extern "C" fn(
        Conn,
        *const c_char,
        c_int,
        *const u32,
        *const *const c_char,
        *const c_int,
        *const c_int,
        c_int,
    ) -> c_int,
    flush: unsafe extern "C" fn(Conn) -> c_int,
    consume_input: unsafe extern "C" fn(Conn) -> c_int,
    is_busy: unsafe extern "C" fn(Conn) -> c_int,
    get_result: unsafe extern "C" fn(Conn) -> Result_,
    result_status: unsafe extern "C" fn(Result_) -> c_int,
    result_error_field: unsafe extern "C" fn(Result_, c_int) -> *const c_char,
    ntuples: unsafe extern "C" fn(Result_) -> c_int,
    getisnull: unsafe extern "C" fn(Result_, c_int, c_int) -> c_int,
    getvalue: unsafe extern "C" fn(Result_, c_int, c_int) -> *const c_char,
    clear: unsafe extern "C" fn(Result_),
    conninfo_parse: unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> *mut ConninfoOption,
    conninfo_free: unsafe extern "C" fn(*mut ConninfoOption),
    freemem: unsafe extern "C" fn(*mut c_void),
}

const CONNECTION_OK: c_int = 0;
const CONNECTION_BAD: c_int = 1;
const POLLING_FAILED: c_int = 0;
const POLLING_WRITING: c_int = 2;
const POLLING_OK: c_int = 3;
const COMMAND_OK: c_int = 1;
const TUPLES_OK: c_int = 2;
const DIAG_SQLSTATE: c_int = b'C' as c_int;
const DIAG_MESSAGE: c_int = b'M' as c_int;
const DIAG_DETAIL: c_int = b'D' as c_int;
const DIAG_HINT: c_int = b'H' as c_int;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// This process is asked to end.
    Ended,
    /// The connection, or what was asked, came to nothing.
    Failed { sqlstate: [u8; 5], message: String },
}

fn failed(message: impl Into<String>) -> Trouble {
    Trouble::Failed {
        sqlstate: *b"08006",
        message: message.into(),
    }
}

#[allow(clippy::missing_transmute_annotations)] // The field's type says what each is.
fn load() -> Option<Api> {
    // SAFETY: the path of the server's libraries is a C string that never changes.
    let folder = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    let of_server = [folder.to_bytes(), b"/libpqwalreceiver.so"].concat();
    let libraries = [of_server, b"libpq.so.5".to_vec()];
    let library = libraries.into_iter().find_map(|name| {
        let name = CString::new(name).ok()?;
        // SAFETY: a C string; the library stays loaded. Libraries that a library needs are searched with it.
        let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        // SAFETY: a library that is loaded, and a C string.
        let usable = !library.is_null() && !unsafe { dlsym(library, c"PQconnectStartParams".as_ptr()) }.is_null();
        usable.then_some(library)
    })?;
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: as above.
            let found = unsafe { dlsym(library, $name.as_ptr()) };
            if found.is_null() {
                return None;
            }
            // SAFETY: the function of that name has had this signature since libpq.so.5 exists.
            unsafe { std::mem::transmute(found) }
        }};
    }
    Some(Api {
        connect_start: function!(c"PQconnectStartParams"),
        connect_poll: function!(c"PQconnectPoll"),
        status: function!(c"PQstatus"),
        socket: function!(c"PQsocket"),
        error_message: function!(c"PQerrorMessage"),
        finish: function!(c"PQfinish"),
        set_nonblocking: function!(c"PQsetnonblocking"),
        send_query_params: function!(c"PQsendQueryParams"),
        flush: function!(c"PQflush"),
        consume_input: function!(c"PQconsumeInput"),
        is_busy: function!(c"PQisBusy"),
        get_result: function!(c"PQgetResult"),
        result_status: function!(c"PQresultStatus"),
        result_error_field: function!(c"PQresultErrorField"),
        ntuples: function!(c"PQntuples"),
        getisnull: function!(c"PQgetisnull"),
        getvalue: function!(c"PQgetvalue"),
        clear: function!(c"PQclear"),
        conninfo_parse: function!(c"PQconninfoParse"),
        conninfo_free: function!(c"PQconninfoFree"),
        freemem: function!(c"PQfreemem"),
    })
}

fn api() -> Result<&'static Api, Trouble> {
    static API: OnceLock<Option<Api>> = OnceLock::new();
    API.get_or_init(load)
        .as_ref()
        .ok_or_else(|| failed("libpq.so.5 could not be loaded"))
}

/// A connection; closed when it is dropped.
pub struct Connection {
    api: &'static Api,
    conn: Conn,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: made by `connect`, and finished once.
        unsafe { (self.api.finish)(self.conn) };
    }
}

/// A result; cleared when it is dropped.
struct Answer {
    api: &'static Api,
    result: Result_,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: from PQgetResult, and cleared once.
        unsafe { (self.api.clear)(self.result) };
    }
}

/// A parameter of a query.
pub enum Parameter<'a> {
    Text(&'a CStr),
    Bytes(&'a [u8]),
}

/// A row of texts.
pub type Row = Vec<Option<Vec<u8>>>;

fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so a C string of libpq's.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().trim().to_owned()
}

/// Options that name one host.
type Host = Vec<(&'static CStr, CString)>;

/// The hosts that a connection string names, each by the options that are to count instead of the string's.
fn hosts(api: &Api, conninfo: &CStr) -> Result<Vec<Host>, Trouble> {
    const PARTS: [&CStr; 3] = [c"host", c"hostaddr", c"port"];
    let mut message: *mut c_char = null_mut();
    let mut lists: [Vec<CString>; 3] = Default::default();
    // SAFETY: a C string; what comes back is an array that ends with an option without a keyword, whose values are C strings
    // or null, or a message. Both are freed.
    unsafe {
        let options = (api.conninfo_parse)(conninfo.as_ptr(), &mut message);
        if !message.is_null() {
            (api.freemem)(message.cast());
        }
        if options.is_null() {
            // Its message quotes what it stumbles over, which may be the password.
            return Err(failed("impersonate.primary_conninfo is not a valid connection string"));
        }
        let mut option = options;
        while !(*option).keyword.is_null() {
            let part = PARTS.iter().position(|part| CStr::from_ptr((*option).keyword) == *part);
            if let Some(part) = part.filter(|_| !(*option).val.is_null()) {
                let list = CStr::from_ptr((*option).val).to_bytes().split(|byte| *byte == b',');
                lists[part] = list.filter_map(|one| CString::new(one).ok()).collect();
            }
            option = option.add(1);
        }
        (api.conninfo_free)(options);
    }
    let count = lists[0].len().max(lists[1].len());
    if count < 2 || lists.iter().any(|list| list.len() > 1 && list.len() != count) {
        // One, or what libpq has something to say about.
        return Ok(vec![Vec::new()]);
    }
    let of = |at: usize| {
        let parts = PARTS.iter().zip(&lists);
        parts.filter_map(move |(part, list)| Some((*part, list.get(at.min(list.len().checked_sub(1)?))?.clone())))
    };
    Ok((0..count).map(|at| of(at).collect()).collect())
}

impl Connection {
    /// Connects with a connection string, and what is given beside it. Where it names several hosts they are tried in turn,
    /// each for at most so many milliseconds: libpq has no limit of its own here, and would wait for a silent one. What
    /// fails never says what is in the string but host, port, user and database.
    pub fn connect(conninfo: &CStr, more: &[(&CStr, &CStr)], milliseconds: u32) -> Result<Connection, Trouble> {
        let api = api()?;
        let mut failures = Vec::new();
        for host in hosts(api, conninfo)? {
            let host = host.iter().map(|(name, value)| (*name, value.as_c_str()));
            let options: Vec<_> = more.iter().copied().chain(host).collect();
            match Connection::connect_one(api, conninfo, &options, milliseconds) {
                Err(Trouble::Failed { message, .. }) if !failures.contains(&message) => failures.push(message),
                Err(Trouble::Failed { .. }) => (),
                done => return done,
            }
        }
        Err(failed(failures.join("; ")))
    }

    fn connect_one(
        api: &'static Api,
        conninfo: &CStr,
        more: &[(&CStr, &CStr)],
        milliseconds: u32,
    ) -> Result<Connection, Trouble> {
        let pairs = [(c"dbname", conninfo)].into_iter().chain(more.iter().copied());
        let (names, values): (Vec<_>, Vec<_>) = pairs
            .map(|(name, value)| (name.as_ptr(), value.as_ptr()))
            .chain([(null(), null())])
            .unzip();
        // SAFETY: two arrays of C strings that end with null; the first dbname is taken for a connection string, over which
        // what comes later counts.
        let conn = unsafe { (api.connect_start)(names.as_ptr(), values.as_ptr(), 1) };
        if conn.is_null() {
            return Err(failed("out of memory"));
        }
        let mut connection = Connection { api, conn };
        let until = super::latch::now() + i64::from(milliseconds) * 1000;
        let mut state = POLLING_WRITING;
        loop {
            // SAFETY: a connection that is being made.
            if unsafe { (api.status)(conn) } == CONNECTION_BAD {
                return Err(connection.trouble());
            }
            connection.wait(state != POLLING_WRITING, state == POLLING_WRITING, until)?;
            // SAFETY: as above.
            state = unsafe { (api.connect_poll)(conn) };
            match state {
                POLLING_OK => break,
                POLLING_FAILED => return Err(connection.trouble()),
                _ => (),
            }
        }
        // SAFETY: connected.
        unsafe { (api.set_nonblocking)(conn, 1) };
        connection
            .is_alive()
            .then_some(())
            .ok_or_else(|| connection.trouble())?;
        Ok(connection)
    }

    pub fn is_alive(&mut self) -> bool {
        // SAFETY: not finished.
        unsafe { (self.api.status)(self.conn) == CONNECTION_OK }
    }

    fn trouble(&mut self) -> Trouble {
        // SAFETY: not finished; the message lives until the next call.
        failed(copied(unsafe { (self.api.error_message)(self.conn) }))
    }

    /// Waits for the socket. Interrupts are served.
    fn wait(&mut self, read: bool, write: bool, until: i64) -> Result<(), Trouble> {
        loop {
            if worker::asked_to_end() {
                return Err(Trouble::Ended);
            }
            let left = (until - super::latch::now()) / 1000;
            if left <= 0 {
                return Err(failed("the primary did not answer in time"));
            }
            let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
            if read {
                events |= pg_sys::WL_SOCKET_READABLE;
            }
            if write {
                events |= pg_sys::WL_SOCKET_WRITEABLE;
            }
            // SAFETY: this process' own latch, and a socket that libpq has open.
            let happened = unsafe {
                let happened = pg_sys::WaitLatchOrSocket(
                    pg_sys::MyLatch,
                    events as i32,
                    (self.api.socket)(self.conn),
                    left as _,
                    pg_sys::PG_WAIT_EXTENSION,
                );
                if happened as u32 & pg_sys::WL_LATCH_SET != 0 {
                    pg_sys::ResetLatch(pg_sys::MyLatch);
                }
                happened as u32
            };
            super::latch::check_for_interrupts();
            if happened & (pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE) != 0 {
                return Ok(());
            }
        }
    }

    /// Runs one statement, in at most so many milliseconds.
    pub fn query(&mut self, sql: &CStr, parameters: &[Parameter], milliseconds: u32) -> Result<Vec<Row>, Trouble> {
        let until = super::latch::now() + i64::from(milliseconds) * 1000;
        let mut values = Vec::new();
        let mut lengths = Vec::new();
        let mut formats = Vec::new();
        for parameter in parameters {
            match parameter {
                Parameter::Text(text) => {
                    values.push(text.as_ptr());
                    lengths.push(0);
                    formats.push(0);
                }
                Parameter::Bytes(bytes) => {
                    values.push(bytes.as_ptr().cast());
                    lengths.push(bytes.len() as c_int);
                    formats.push(1);
                }
            }
        }
        // SAFETY: as many values, lengths and formats as are said; libpq copies them.
        let sent = unsafe {
            (self.api.send_query_params)(
                self.conn,
                sql.as_ptr(),
                parameters.len() as c_int,
                null(),
                values.as_ptr(),
                lengths.as_ptr(),
                formats.as_ptr(),
                0,
            )
        };
        if sent != 1 {
            return Err(self.trouble());
        }
        loop {
            // SAFETY: connected.
            match unsafe { (self.api.flush)(self.conn) } {
                0 => break,
                1 => self.wait(true, true, until)?,
                _ => return Err(self.trouble()),
            }
            // SAFETY: as above. Lest both sides wait for the other to read.
            if unsafe { (self.api.consume_input)(self.conn) } != 1 {
                return Err(self.trouble());
            }
        }
        let mut outcome = Ok(Vec::new());
        loop {
            // SAFETY: as above.
            while unsafe { (self.api.is_busy)(self.conn) } != 0 {
                self.wait(true, false, until)?;
                // SAFETY: as above.
                if unsafe { (self.api.consume_input)(self.conn) } != 1 {
                    return Err(self.trouble());
                }
            }
            // SAFETY: not busy, so this doesn't block; null when all has come.
            let result = unsafe { (self.api.get_result)(self.conn) };
            if result.is_null() {
                break;
            }
            let answer = Answer { api: self.api, result };
            outcome = outcome.and_then(|_| answer.rows());
        }
        if !self.is_alive() && outcome.is_ok() {
            return Err(self.trouble());
        }
        outcome
    }
}

impl Answer {
    fn rows(&self) -> Result<Vec<Row>, Trouble> {
        // SAFETY: a result; values are inside its bounds, and copied.
        unsafe {
            match (self.api.result_status)(self.result) {
                COMMAND_OK => Ok(Vec::new()),
                TUPLES_OK => Ok((0..(self.api.ntuples)(self.result))
                    .map(|row| {
                        // The statements here return one column.
                        vec![((self.api.getisnull)(self.result, row, 0) == 0).then(|| {
                            CStr::from_ptr((self.api.getvalue)(self.result, row, 0))
                                .to_bytes()
                                .to_vec()
                        })]
                    })
                    .collect()),
                _ => {
                    let field = |field| copied((self.api.result_error_field)(self.result, field));
                    let sqlstate = field(DIAG_SQLSTATE);
                    let mut message = format!("the primary says: {}", field(DIAG_MESSAGE));
                    for more in [field(DIAG_DETAIL), field(DIAG_HINT)] {
                        if !more.is_empty() {
                            message.push_str(" - ");
                            message.push_str(&more);
                        }
                    }
                    Err(Trouble::Failed {
                        sqlstate: sqlstate.as_bytes().try_into().unwrap_or(*b"08006"),
                        message,
                    })
                }
            }
        }
    }
}
