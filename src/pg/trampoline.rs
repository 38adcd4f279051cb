//! The server's hooks, entered and left.
//!
//! Each hook is a bare function without anything that has a destructor, because errors of the server pass over it by
//! `siglongjmp` and are to stay whole (see `catch.rs`). What decides sits in `Handlers` and is called through guarded
//! helpers. The previous hook, or the server's own function declared here by hand, is called directly.
//!
//! Order: we look first, so that what we refuse never starts, and the previous hook always runs after, so that another
//! extension's refusal stands.
//!
//! `WATCHING` is all that a session pays which impersonates nobody.

use super::catch::with_undo;
use super::effects::{self, Way};
use super::parameters::Parameters;
use super::relations::Relations;
use super::{access, identity, nodes, outside, portal, store};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag, ProcessUtilityContext};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void, CStr, CString};

extern "C-unwind" {
    fn standard_planner(
        parse: *mut pg_sys::Query,
        query_string: *const c_char,
        cursor_options: c_int,
        params: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query_string: *const c_char,
        read_only_tree: bool,
        context: ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

#[cfg(not(feature = "pg18"))]
mod run {
    use super::pg_sys;
    extern "C-unwind" {
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            execute_once: bool,
        );
    }
    pub static mut PREVIOUS: pg_sys::ExecutorRun_hook_type = None;
    pub unsafe fn run(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        execute_once: bool,
    ) {
        // SAFETY: called as the server called us.
        unsafe {
            match PREVIOUS {
                Some(previous) => previous(query, direction, count, execute_once),
                None => standard_ExecutorRun(query, direction, count, execute_once),
            }
        }
    }
    pub unsafe extern "C-unwind" fn hook(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        execute_once: bool,
    ) {
        // SAFETY: the hook's own arguments.
        unsafe { super::executor_run(query, count, &mut || run(query, direction, count, execute_once)) }
    }
}

#[cfg(feature = "pg18")]
mod run {
    use super::pg_sys;
    extern "C-unwind" {
        pub fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);
    }
    pub static mut PREVIOUS: pg_sys::ExecutorRun_hook_type = None;
    pub unsafe fn run(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64) {
        // SAFETY: called as the server called us.
        unsafe {
            match PREVIOUS {
                Some(previous) => previous(query, direction, count),
                None => standard_ExecutorRun(query, direction, count),
            }
        }
    }
    pub unsafe extern "C-unwind" fn hook(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
    ) {
        // SAFETY: the hook's own arguments.
        unsafe { super::executor_run(query, count, &mut || run(query, direction, count)) }
    }
}

/// A statement as it begins. `key` names it until it ends.
pub struct Begun<'a> {
    pub key: usize,
    pub is_utility: bool,
    /// How many statements it is inside of; 0 for the client's own.
    pub level: u32,
    pub text: &'a [u8],
    pub tag: &'static [u8],
    pub relations: Relations,
    pub parameters: Parameters,
    /// The statement that EXECUTE runs, and how many parameters it has.
    pub prepared: Option<(&'a [u8], usize)>,
    /// A COMMIT or PREPARE TRANSACTION: how it ended is known only when the transaction has ended.
    pub ends_transaction: bool,
    /// A ROLLBACK, or anything in a failed transaction: it must not be kept from running, or the session is stuck.
    pub must_run: bool,
}

/// How a part of a statement came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ran {
    /// As it was asked to, and there may be more.
    Suspended,
    /// Nothing of the statement is left to run, and nothing of it can fail.
    Complete,
    /// What comes now, the end or an error, comes at once.
    Other,
}

/// A utility statement before it runs.
pub struct Utility {
    pub statement: *mut pg_sys::PlannedStmt,
    pub context: ProcessUtilityContext::Type,
}

/// What a handler says of a utility statement.
#[derive(Clone, Copy)]
pub struct Course {
    /// What the previous hook is given: the statement, or a copy without what is done already.
    pub statement: *mut pg_sys::PlannedStmt,
    /// Call [`Handlers::utility_done`] when it worked.
    pub tell_when_done: bool,
}

/// When code runs before a statement begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Early {
    /// While values are read, or a query is parsed.
    Reading,
    /// While the client's query is planned.
    Planning,
}

/// Ways that a transaction or a part of one ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionEnd {
    Commit,
    Abort,
    SubtransactionCommit,
    SubtransactionAbort,
}

/// What the rest of the crate does with the hooks. Those marked may raise; the others must not.
pub struct Handlers {
    /// The client's statement is to be planned, and is nothing but a call of this function. May raise.
    pub bare_call: fn(pg_sys::Oid),
    /// Before a statement of the client's is planned or run; whether it only ends transactions, or is about
    /// `impersonate.target`. May raise.
    pub check: fn(bool),
    /// Before a function that is called outside of any portal. May raise.
    pub refuse: fn(),
    /// Before a function that the protocol calls. May wait, and raises.
    pub called: fn(pg_sys::Oid),
    /// Code is about to run before a statement begins, or without one: this function, or a query of one that isn't known.
    /// May wait, and raises.
    pub early: fn(pg_sys::Oid, Early),
    /// What the client is told in place of an error with this SQLSTATE, of a statement that hasn't begun. Raises nothing.
    pub refused_instead: fn(c_int) -> Option<super::guc::Refusal>,
    /// May raise.
    pub begun: fn(&Begun),
    /// A statement is about to run, the client's own or one inside it whose effects don't wait for the commit. May raise
    /// and wait.
    pub before_run: fn(Way),
    /// A function that may act outside of the transaction may be called from here on. May raise and wait.
    pub before_outside: fn(),
    /// The query in this utility statement begins. May raise.
    pub joined: fn(key: usize, Relations, Parameters, text: &[u8]),
    pub ran: fn(key: usize, rows: u64, Ran),
    pub ended: fn(key: usize),
    pub failed: fn(key: usize, sqlstate: i32),
    /// A statement of this level failed before it began.
    pub failed_early: fn(level: u32, text: &[u8], tag: &'static [u8], sqlstate: i32),
    /// Whether a utility statement of this kind concerns us in every session.
    pub concerns: fn(NodeTag) -> bool,
    /// May raise.
    pub utility: fn(&Utility) -> Course,
    /// May raise.
    pub utility_done: fn(&Utility),
    /// An error is reported to the client.
    pub reported: fn(sqlstate: i32, level: i32, query: &[u8]),
    /// The connection is being terminated: what its client is to be told of the reason. Neither raises nor waits.
    pub last_words: fn() -> Option<Vec<u8>>,
    /// The transaction is about to commit or to be prepared. May raise.
    pub before_commit: fn(),
    /// Portals of this part of the transaction, and of those inside it, are gone.
    pub part_aborts: fn(subtransaction: u32),
    pub transaction_ends: fn(TransactionEnd),
    pub exiting: fn(),
    /// Whether every session is watched. Neither raises nor waits.
    pub always: fn() -> bool,
}

struct Process<T>(Cell<T>);
// SAFETY: a backend has one thread that runs this code.
unsafe impl<T> Sync for Process<T> {}

static HANDLERS: Process<Option<&'static Handlers>> = Process(Cell::new(None));
static WATCHING: Process<bool> = Process(Cell::new(false));
static ROLLS_BACK_ALL: Process<bool> = Process(Cell::new(false));
static DEPTH: Process<u32> = Process(Cell::new(0));
/// The client's own query is being planned.
static PLANNING: Process<bool> = Process(Cell::new(false));
/// The transaction is past the point where the client's deferred triggers run.
static COMMITTING: Process<bool> = Process(Cell::new(false));
static NESTED: Process<bool> = Process(Cell::new(false));
static PARTS: Process<Parts> = Process(Cell::new(Parts::NONE));
static EXIT_REGISTERED: Process<bool> = Process(Cell::new(false));

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
static mut PREVIOUS_START: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_EMIT_LOG: pg_sys::emit_log_hook_type = None;

/// Whether statements of this session are followed from their beginning to their end.
pub fn watch(on: bool) {
    WATCHING.0.set(on);
}

/// See [`watch`].
pub fn watching() -> bool {
    WATCHING.0.get() || (handlers().always)()
}

/// Whether statements inside the client's own are followed, too.
pub fn watch_nested(on: bool) {
    NESTED.0.set(on);
}

/// The product's own queries are nobody's.
fn follows_nested() -> bool {
    NESTED.0.get() && !store::is_ours()
}

/// The utility statement that is running, if it has queries in it that are its own rather than a function's: known by
/// their text, which is the statement's, or that of the statement that EXECUTE runs.
#[derive(Clone, Copy)]
struct Parts {
    key: usize,
    /// Where they start; 0 when there are none.
    depth: u32,
    text: *const c_char,
    prepared: *const c_char,
    /// A portal of its own runs them, with a copy of the text.
    in_portal: bool,
}

impl Parts {
    const NONE: Parts = Parts {
        key: 0,
        depth: 0,
        text: std::ptr::null(),
        prepared: std::ptr::null(),
        in_portal: false,
    };

    unsafe fn of(node: *mut pg_sys::Node, text: *const c_char, key: usize, depth: u32) -> Parts {
        // SAFETY: tested for its tag.
        unsafe {
            let has_parts = match nodes::tag(node) {
                Some(
                    NodeTag::T_ExplainStmt
                    | NodeTag::T_CreateTableAsStmt
                    | NodeTag::T_RefreshMatViewStmt
                    | NodeTag::T_ExecuteStmt
                    | NodeTag::T_DeclareCursorStmt,
                ) => true,
                Some(NodeTag::T_CopyStmt) => !(*node.cast::<pg_sys::CopyStmt>()).query.is_null(),
                _ => false,
            };
            if !has_parts {
                return Parts::NONE;
            }
            let executed = executed_by(node);
            let in_portal = matches!(
                nodes::tag(node),
                Some(NodeTag::T_ExecuteStmt | NodeTag::T_DeclareCursorStmt | NodeTag::T_CreateTableAsStmt)
            );
            let prepared = if executed.is_null() {
                std::ptr::null()
            } else {
                (*executed).query_string
            };
            Parts {
                key,
                depth,
                text,
                prepared,
                in_portal,
            }
        }
    }

    /// Whether a query of this text would be one of them.
    fn have(&self, text: *const c_char) -> bool {
        self.depth > 0
            && self.depth == DEPTH.0.get()
            && !text.is_null()
            && (std::ptr::eq(text, self.text) || std::ptr::eq(text, self.prepared))
    }

    /// Whether a query that starts is one of them.
    unsafe fn include(&self, query: *const pg_sys::QueryDesc) -> bool {
        // SAFETY: the query is about to start; the rest only compares.
        unsafe {
            self.have((*query).sourceText)
                || (self.in_portal
                    && self.depth > 0
                    && self.depth == DEPTH.0.get()
                    && portal::is_portals_statement((*query).plannedstmt))
        }
    }
}

/// Whether a ROLLBACK of the whole transaction is under way.
pub fn rolls_back_all() -> bool {
    ROLLS_BACK_ALL.0.get()
}

/// How many followed statements are running inside one another.
pub fn depth() -> u32 {
    DEPTH.0.get()
}

fn handlers() -> &'static Handlers {
    HANDLERS.0.get().expect("set before the hooks are")
}

/// Puts our hooks before those that are there. In the postmaster, while libraries are preloaded.
pub fn install(handlers: &'static Handlers) {
    HANDLERS.0.set(Some(handlers));
    // SAFETY: single-threaded, before any backend runs.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner);
        PREVIOUS_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
        run::PREVIOUS = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(run::hook);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(executor_end);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_EMIT_LOG = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(emit_log);
    }
}

/// Has this backend tell how its transactions end, and when it exits. Called when it first has something to lose.
pub fn follow_transactions() {
    if EXIT_REGISTERED.0.replace(true) {
        return;
    }
    // SAFETY: the callbacks live as long as the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_callback), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_callback), std::ptr::null_mut());
        pg_sys::before_shmem_exit(Some(exit_callback), pg_sys::Datum::null());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_callback(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
    };
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            (handlers().before_commit)();
            COMMITTING.0.set(true);
        }
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => {
            COMMITTING.0.set(false);
            (handlers().transaction_ends)(TransactionEnd::Commit);
        }
        XACT_EVENT_ABORT => {
            COMMITTING.0.set(false);
            ROLLS_BACK_ALL.0.set(false);
            (handlers().transaction_ends)(TransactionEnd::Abort);
        }
        _ => (),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_callback(
    event: pg_sys::SubXactEvent::Type,
    own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB};
    match event {
        SUBXACT_EVENT_COMMIT_SUB => (handlers().transaction_ends)(TransactionEnd::SubtransactionCommit),
        SUBXACT_EVENT_ABORT_SUB => {
            (handlers().part_aborts)(own);
            (handlers().transaction_ends)(TransactionEnd::SubtransactionAbort);
        }
        _ => (),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exit_callback(_code: c_int, _arg: pg_sys::Datum) {
    (handlers().exiting)();
}

unsafe extern "C-unwind" fn planner(
    parse: *mut pg_sys::Query,
    query_string: *const c_char,
    cursor_options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: called as the server called us; marking raises nothing.
    unsafe {
        let called = portal::mark_bare_call(parse);
        if called != pg_sys::Oid::INVALID && std::ptr::eq(query_string, pg_sys::debug_query_string) {
            bare_call(called, parse);
        }
        if !watching() {
            return plan(parse, query_string, cursor_options, params);
        }
        // A worker has no place in the queue: what is inside of functions would run there unseen.
        let cursor_options = if follows_nested() {
            cursor_options & !(pg_sys::CURSOR_OPT_PARALLEL_OK as c_int)
        } else {
            cursor_options
        };
        // Folding runs functions, whose queries are not the client's.
        let outer = DEPTH.0.get();
        if outer == 0 {
            check_identity();
        }
        let outer_planning = PLANNING.0.replace(outer == 0);
        let mut planned = std::ptr::null_mut();
        DEPTH.0.set(outer + 1);
        with_undo(
            &mut || planned = plan(parse, query_string, cursor_options, params),
            &mut |code| {
                DEPTH.0.set(outer);
                PLANNING.0.set(outer_planning);
                // The client's message, and not what a trigger runs while a transaction ends.
                if outer == 0 && std::ptr::eq(query_string, pg_sys::debug_query_string) {
                    planning_failed(0, parse, query_string, code);
                } else if follows_nested() && !PARTS.0.get().have(query_string) {
                    planning_failed(outer.max(1), parse, query_string, code);
                }
            },
        );
        DEPTH.0.set(outer);
        PLANNING.0.set(outer_planning);
        planned
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn bare_call(function: pg_sys::Oid, query: *mut pg_sys::Query) {
    if function == portal::SET_CONFIG {
        // SAFETY: the query has just been marked.
        unsafe { portal::take_set_config(query) }
    } else {
        (handlers().bare_call)(function);
    }
}

/// A function is about to be called outside of any portal: by the protocol, by the planner, or to read a value.
///
/// # Safety
/// Called where errors of the server may pass.
pub unsafe fn called(function: pg_sys::Oid) {
    if watching() && !super::store::is_ours() {
        // SAFETY: the caller's promise.
        unsafe { function_called(function) }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn function_called(function: pg_sys::Oid) {
    if DEPTH.0.get() == 0 && identity::calls_function() {
        (handlers().check)(false);
        return (handlers().called)(function);
    }
    (handlers().refuse)();
    // What the server has of its own does nothing to be told of, as long as it isn't volatile.
    // SAFETY: a function that was looked up for its privileges.
    let tells = || unsafe {
        function.to_u32() >= pg_sys::FirstNormalObjectId
            || pg_sys::func_volatile(function) as u8 == pg_sys::PROVOLATILE_VOLATILE
    };
    if is_early() && tells() {
        early(function);
    }
}

/// Whether what is about to run isn't part of a statement that has begun: a value's input function, or a function that
/// the planner folds or asks for an estimate, may be anybody's code. Triggers that run as the transaction ends belong to
/// statements from before.
fn is_early() -> bool {
    let (depth, planning) = (DEPTH.0.get(), PLANNING.0.get());
    // SAFETY: reads variables of the server's.
    let no_portal = unsafe { pg_sys::ActivePortal.is_null() };
    no_portal
        && (depth == 0 || (planning && depth == 1))
        && !COMMITTING.0.get()
        && !store::is_ours()
        && super::version::is_client_backend()
        && !identity::in_trigger()
}

fn early(function: pg_sys::Oid) {
    let when = if PLANNING.0.get() {
        Early::Planning
    } else {
        Early::Reading
    };
    (handlers().early)(function, when);
}

/// A query or utility statement is about to run that is inside of none.
#[pg_guard]
unsafe extern "C-unwind" fn runs_early() {
    if is_early() {
        early(pg_sys::Oid::INVALID);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_identity() {
    (handlers().check)(false);
}

#[pg_guard]
unsafe extern "C-unwind" fn planning_failed(
    level: u32,
    parse: *mut pg_sys::Query,
    query_string: *const c_char,
    sqlstate: c_int,
) {
    // SAFETY: the query and its text are valid for the call.
    unsafe {
        let text = statement_text(query_string, (*parse).stmt_location, (*parse).stmt_len);
        (handlers().failed_early)(level, text, command_tag(parse.cast()), sqlstate);
    }
}

unsafe fn plan(
    parse: *mut pg_sys::Query,
    query_string: *const c_char,
    cursor_options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: called as the server called us.
    unsafe {
        match PREVIOUS_PLANNER {
            Some(previous) => previous(parse, query_string, cursor_options, params),
            None => standard_planner(parse, query_string, cursor_options, params),
        }
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: called as the server called us; the frames hold no destructors.
    unsafe {
        let start = || {
            if access::concerned() {
                access::plan_begins((*query).plannedstmt);
            }
            match PREVIOUS_START {
                Some(previous) => previous(query, flags),
                None => standard_ExecutorStart(query, flags),
            }
        };
        if !watching() {
            return start();
        }
        let way = match effects::of_query((*query).plannedstmt) {
            Way::Commit if outside::seen() && !portal::is_switch((*query).plannedstmt) => Way::Outside,
            way => way,
        };
        let runs = flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0;
        let acts = way != Way::Commit && runs;
        let depth = DEPTH.0.get();
        let outermost = depth == 0 && portal::is_portals_statement((*query).plannedstmt);
        if outermost {
            query_begins(query, 0);
        } else {
            runs_early();
            let parts = PARTS.0.get();
            let is_part = parts.include(query);
            if is_part && runs {
                part_begins(parts.key, query);
            }
            if is_part || !follows_nested() {
                if acts {
                    before_run(way);
                }
                return start();
            }
            query_begins(query, depth.max(1));
        }
        let mut start = || {
            if acts || (outermost && !portal::is_switch((*query).plannedstmt)) {
                before_run(way);
            }
            start();
        };
        with_undo(&mut start, &mut |code| statement_failed(query as usize, code));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn query_begins(query: *mut pg_sys::QueryDesc, level: u32) {
    // SAFETY: the query and its text are valid for the call.
    unsafe {
        if level == 0 {
            (handlers().check)(false);
        }
        let statement = (*query).plannedstmt;
        let text = statement_text((*query).sourceText, (*statement).stmt_location, (*statement).stmt_len);
        let tag = command_tag(statement.cast());
        (handlers().begun)(&Begun {
            key: query as usize,
            is_utility: false,
            level,
            text,
            tag,
            relations: Relations::of_plan(statement),
            parameters: Parameters::of((*query).params),
            prepared: None,
            ends_transaction: false,
            must_run: false,
        });
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_run(way: Way) {
    (handlers().before_run)(way);
}

/// See [`Handlers::before_outside`].
///
/// # Safety
/// Where the server may raise.
#[pg_guard]
pub unsafe extern "C-unwind" fn before_outside() {
    (handlers().before_outside)();
}

#[pg_guard]
unsafe extern "C-unwind" fn part_begins(key: usize, query: *mut pg_sys::QueryDesc) {
    // SAFETY: as query_begins.
    unsafe {
        let statement = (*query).plannedstmt;
        let text = statement_text((*query).sourceText, (*statement).stmt_location, (*statement).stmt_len);
        (handlers().joined)(
            key,
            Relations::of_plan(statement),
            Parameters::of((*query).params),
            text,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn statement_failed(key: usize, sqlstate: c_int) {
    (handlers().failed)(key, sqlstate);
}

unsafe fn executor_run(query: *mut pg_sys::QueryDesc, count: u64, run: &mut dyn FnMut()) {
    // SAFETY: as executor_start.
    unsafe {
        if !watching() {
            return run();
        }
        nested(query, run);
        if (DEPTH.0.get() == 0 || NESTED.0.get()) && !(*query).estate.is_null() {
            let rows = (*(*query).estate).es_processed;
            let course = if count > 0 && rows >= count {
                Ran::Suspended
            } else if DEPTH.0.get() == 0 && portal::only_reads(query) {
                Ran::Complete
            } else {
                Ran::Other
            };
            query_ran(query as usize, rows, course);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn query_ran(key: usize, rows: u64, course: Ran) {
    (handlers().ran)(key, rows, course);
}

/// Runs a part of `query` one level deeper; what fails is told, if its beginning was.
unsafe fn nested(query: *mut pg_sys::QueryDesc, run: &mut dyn FnMut()) {
    let outer = DEPTH.0.get();
    DEPTH.0.set(outer + 1);
    // SAFETY: as executor_start.
    unsafe {
        with_undo(run, &mut |code| {
            DEPTH.0.set(outer);
            statement_failed(query as usize, code);
        });
    }
    DEPTH.0.set(outer);
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as executor_start.
    unsafe {
        let mut finish = || match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => standard_ExecutorFinish(query),
        };
        if watching() {
            nested(query, &mut finish);
        } else {
            finish();
        }
    }
}

unsafe extern "C-unwind" fn executor_end(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as executor_start.
    unsafe {
        // A portal can go while another statement runs.
        if watching() {
            query_ended(query as usize);
        }
        match PREVIOUS_END {
            Some(previous) => previous(query),
            None => standard_ExecutorEnd(query),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn query_ended(key: usize) {
    (handlers().ended)(key);
}

unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query_string: *const c_char,
    read_only_tree: bool,
    context: ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: as executor_start. `concerns` neither raises nor keeps anything.
    unsafe {
        let kind = (*(*statement).utilityStmt).type_;
        if kind == NodeTag::T_TransactionStmt {
            let node = (*statement).utilityStmt.cast::<pg_sys::TransactionStmt>();
            ROLLS_BACK_ALL
                .0
                .set((*node).kind == pg_sys::TransactionStmtKind::TRANS_STMT_ROLLBACK);
        }
        let watched = watching();
        let depth = DEPTH.0.get();
        let top = watched && depth == 0 && context == ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL;
        // A part of another statement is told with that.
        let nested =
            watched && !top && follows_nested() && context != ProcessUtilityContext::PROCESS_UTILITY_SUBCOMMAND;
        let told = top || nested;
        if watched && !top {
            runs_early();
        }
        let mut course = Course {
            statement,
            tell_when_done: false,
        };
        // Nothing else is at that place while the statement runs.
        let key = std::ptr::from_ref(&course) as usize;
        if told {
            let level = if top { 0 } else { depth.max(1) };
            utility_begins(statement, query_string, params, key, level);
        }
        let utility = Utility { statement, context };
        if (handlers().concerns)(kind) {
            if told {
                with_undo(&mut || utility_before(&utility, &mut course), &mut |code| {
                    statement_failed(key, code)
                });
            } else {
                utility_before(&utility, &mut course);
            }
        }
        // A procedure that could COMMIT or ROLLBACK half-way would go on as somebody else.
        let context = if matches!(kind, NodeTag::T_CallStmt | NodeTag::T_DoStmt)
            && context == ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL
            && super::guc::identity_is_transactional()
        {
            ProcessUtilityContext::PROCESS_UTILITY_QUERY
        } else {
            context
        };
        let run = || match PREVIOUS_UTILITY {
            Some(previous) => {
                previous(
                    course.statement,
                    query_string,
                    read_only_tree,
                    context,
                    params,
                    environment,
                    dest,
                    completion,
                );
            }
            None => standard_ProcessUtility(
                course.statement,
                query_string,
                read_only_tree,
                context,
                params,
                environment,
                dest,
                completion,
            ),
        };
        let way = if watched {
            effects::of_utility((*statement).utilityStmt)
        } else {
            Way::Commit
        };
        let ends_here = kind == NodeTag::T_TransactionStmt && way == Way::Commit;
        let mut run = || {
            if way != Way::Commit || (top && !ends_here) {
                before_run(way);
            }
            run();
        };
        if watched {
            let outer_parts = PARTS.0.get();
            if told {
                PARTS
                    .0
                    .set(Parts::of((*statement).utilityStmt, query_string, key, depth + 1));
            }
            DEPTH.0.set(depth + 1);
            with_undo(&mut run, &mut |code| {
                DEPTH.0.set(depth);
                PARTS.0.set(outer_parts);
                if told {
                    statement_failed(key, code);
                }
            });
            DEPTH.0.set(depth);
            PARTS.0.set(outer_parts);
        } else {
            run();
        }
        if course.tell_when_done {
            utility_after(&utility);
        }
        if told {
            if counts_rows(completion) {
                query_ran(key, (*completion).nprocessed, Ran::Other);
            }
            query_ended(key);
        }
    }
}

/// Whether a utility statement says how many rows it gave or touched.
unsafe fn counts_rows(completion: *const pg_sys::QueryCompletion) -> bool {
    use pg_sys::CommandTag::{CMDTAG_REFRESH_MATERIALIZED_VIEW, CMDTAG_UNKNOWN};
    // SAFETY: null or what the statement filled. REFRESH counts, and does not show it.
    unsafe {
        !completion.is_null()
            && (*completion).commandTag != CMDTAG_UNKNOWN
            && ((*completion).commandTag == CMDTAG_REFRESH_MATERIALIZED_VIEW
                || pg_sys::command_tag_display_rowcount((*completion).commandTag))
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn utility_begins(
    statement: *mut pg_sys::PlannedStmt,
    query_string: *const c_char,
    params: pg_sys::ParamListInfo,
    key: usize,
    level: u32,
) {
    // SAFETY: the statement and its text are valid for the call.
    unsafe {
        if level == 0 {
            (handlers().check)(super::utility::is_exempt((*statement).utilityStmt));
        }
        let text = statement_text(query_string, (*statement).stmt_location, (*statement).stmt_len);
        let mut tag = command_tag((*statement).utilityStmt);
        let failed_block = identity::in_failed_block();
        let (mut ends_transaction, mut rolls_back) = (false, false);
        if nodes::tag((*statement).utilityStmt) == Some(NodeTag::T_TransactionStmt) {
            use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT, TRANS_STMT_PREPARE, TRANS_STMT_ROLLBACK};
            let kind = (*(*statement).utilityStmt.cast::<pg_sys::TransactionStmt>()).kind;
            ends_transaction = !failed_block && matches!(kind, TRANS_STMT_COMMIT | TRANS_STMT_PREPARE);
            // It ends what has failed, or prepares nothing; the client is told so too.
            let nothing = kind == TRANS_STMT_PREPARE && !identity::in_block();
            if nothing || (failed_block && matches!(kind, TRANS_STMT_COMMIT | TRANS_STMT_PREPARE)) {
                tag = c"ROLLBACK".to_bytes();
            }
            // One to a savepoint may wait: if it fails, a ROLLBACK is still to come.
            rolls_back = kind == TRANS_STMT_ROLLBACK;
        }
        let must_run = failed_block || rolls_back;
        (handlers().begun)(&Begun {
            key,
            is_utility: true,
            level,
            text,
            tag,
            relations: Relations::of_utility((*statement).utilityStmt),
            parameters: Parameters::of(params),
            prepared: prepared_by((*statement).utilityStmt),
            ends_transaction,
            must_run,
        });
    }
}

/// The text of the statement that EXECUTE runs, and how many parameters it has.
unsafe fn prepared_by<'a>(node: *mut pg_sys::Node) -> Option<(&'a [u8], usize)> {
    // SAFETY: the source stays while another statement begins.
    unsafe {
        let source = executed_by(node).as_ref()?;
        let (mut location, mut length) = (0, 0);
        if !source.raw_parse_tree.is_null() {
            location = (*source.raw_parse_tree).stmt_location;
            length = (*source.raw_parse_tree).stmt_len;
        }
        let text = statement_text(source.query_string, location, length);
        Some((text, usize::try_from(source.num_params).unwrap_or(0)))
    }
}

/// The source of the statement that EXECUTE runs, by itself or in EXPLAIN or CREATE TABLE AS. Null for others, and when
/// there is none of that name.
unsafe fn executed_by(node: *mut pg_sys::Node) -> *mut pg_sys::CachedPlanSource {
    // SAFETY: each node is tested for its tag.
    unsafe {
        match nodes::tag(node) {
            Some(NodeTag::T_ExecuteStmt) => {
                let prepared = pg_sys::FetchPreparedStatement((*node.cast::<pg_sys::ExecuteStmt>()).name, false);
                if prepared.is_null() {
                    std::ptr::null_mut()
                } else {
                    (*prepared).plansource
                }
            }
            Some(NodeTag::T_ExplainStmt) => executed_by(utility_in((*node.cast::<pg_sys::ExplainStmt>()).query)),
            Some(NodeTag::T_CreateTableAsStmt) => {
                executed_by(utility_in((*node.cast::<pg_sys::CreateTableAsStmt>()).query))
            }
            _ => std::ptr::null_mut(),
        }
    }
}

/// The utility statement that an analysed query wraps, or null.
unsafe fn utility_in(query: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: tested for its tag.
    unsafe {
        match nodes::tag(query) {
            Some(NodeTag::T_Query) => (*query.cast::<pg_sys::Query>()).utilityStmt,
            _ => query,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn utility_before(utility: &Utility, course: &mut Course) {
    *course = (handlers().utility)(utility);
}

#[pg_guard]
unsafe extern "C-unwind" fn utility_after(utility: &Utility) {
    (handlers().utility_done)(utility);
}

unsafe extern "C-unwind" fn emit_log(error: *mut pg_sys::ErrorData) {
    // SAFETY: as executor_start; the error data are valid for the call.
    unsafe {
        if (*error).elevel == pgrx::PgLogLevel::LOG as i32 {
            super::node::hide_conninfo((*error).message);
        }
        if watching() && (*error).elevel >= pgrx::PgLogLevel::ERROR as i32 {
            if (*error).elevel == pgrx::PgLogLevel::ERROR as i32 && DEPTH.0.get() == 0 {
                refused_instead(error);
            }
            error_reported((*error).sqlerrcode, (*error).elevel);
            if (*error).elevel == pgrx::PgLogLevel::FATAL as i32 && (*error).detail.is_null() {
                explain_end(error);
            }
        }
        if let Some(previous) = PREVIOUS_EMIT_LOG {
            previous(error);
        }
    }
}

/// A statement that is refused in any case, and fails before anybody could refuse it, fails with the reason (D1).
#[pg_guard]
unsafe extern "C-unwind" fn refused_instead(error: *mut pg_sys::ErrorData) {
    // SAFETY: the error's own data; what is put in is in its own memory, which frees it (elog.c).
    unsafe {
        let Some(refusal) = (handlers().refused_instead)((*error).sqlerrcode) else {
            return;
        };
        let memory = (*error).assoc_context;
        let copy = |words: Option<&str>| {
            let words = words.and_then(|words| CString::new(identity::speakable(words).as_ref()).ok());
            words.map_or(std::ptr::null_mut(), |words| {
                pg_sys::MemoryContextStrdup(memory, words.as_ptr())
            })
        };
        (*error).sqlerrcode = refusal.sqlstate as c_int;
        (*error).message = copy(Some(&refusal.message));
        (*error).detail = copy(refusal.detail.as_deref());
        (*error).hint = copy(refusal.hint.as_deref());
        (*error).context = std::ptr::null_mut();
        (*error).cursorpos = 0;
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn explain_end(error: *mut pg_sys::ErrorData) {
    if let Some(words) = (handlers().last_words)().and_then(|words| CString::new(words).ok()) {
        // SAFETY: a copy in the error's own memory, which frees it (elog.c).
        unsafe { (*error).detail = pg_sys::MemoryContextStrdup((*error).assoc_context, words.as_ptr()) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn error_reported(sqlstate: c_int, level: c_int) {
    let query = identity::client_message();
    (handlers().reported)(sqlstate, level, query);
}

/// The part of a query string that is this statement (as queryjumble.c cleans it).
pub(super) unsafe fn statement_text<'a>(source: *const c_char, location: c_int, length: c_int) -> &'a [u8] {
    if source.is_null() {
        return b"";
    }
    // SAFETY: the caller's text, with the offsets that the parser noted for it.
    let all = unsafe { CStr::from_ptr(source) }.to_bytes();
    let from = usize::try_from(location).unwrap_or(0).min(all.len());
    let part = match usize::try_from(length) {
        Ok(length) if length > 0 => &all[from..(from + length).min(all.len())],
        _ => &all[from..],
    };
    part.trim_ascii()
}

unsafe fn command_tag(node: *mut pg_sys::Node) -> &'static [u8] {
    // SAFETY: names of tags are static strings.
    unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(pg_sys::CreateCommandTag(node))).to_bytes() }
}
