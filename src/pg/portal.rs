//! Is this the client's own statement? Answered by structure, without counting depth (S4).
//!
//! A query of one bare call is marked before it is planned: in the `location` of its function node, a number that no
//! text offset, stored rule or inlined body has, and which folding and plan caching carry along. The function then asks
//! whether the plan of the active portal is that very node, and whether what it returns goes to the client.

use super::nodes::{list_pointers, tag};
use pgrx::pg_sys::{self, NodeTag};

const MARK: i32 = i32::MIN + 0x1517;

/// `set_config()` (pg_proc.dat).
pub const SET_CONFIG: pg_sys::Oid = pg_sys::Oid::from_u32(2078);

/// Marks the query if all it does is call one function with constants or parameters, and says which; else InvalidOid.
///
/// # Safety
/// `query` is what the planner was given; it may be scribbled on.
pub unsafe fn mark_bare_call(query: *mut pg_sys::Query) -> pg_sys::Oid {
    // SAFETY: the caller's promise; each node is tested for its tag before it is read as that node.
    unsafe {
        let q = &*query;
        let bare = q.commandType == pg_sys::CmdType::CMD_SELECT
            && q.querySource == pg_sys::QuerySource::QSRC_ORIGINAL
            && q.rtable.is_null()
            && q.cteList.is_null()
            && q.groupClause.is_null()
            && q.groupingSets.is_null()
            && q.havingQual.is_null()
            && q.windowClause.is_null()
            && q.distinctClause.is_null()
            && q.sortClause.is_null()
            && q.limitOffset.is_null()
            && q.limitCount.is_null()
            && q.rowMarks.is_null()
            && q.setOperations.is_null()
            && !q.hasAggs
            && !q.hasWindowFuncs
            && !q.hasTargetSRFs
            && !q.hasSubLinks
            && (q.jointree.is_null() || ((*q.jointree).fromlist.is_null() && (*q.jointree).quals.is_null()));
        if !bare || q.targetList.is_null() {
            return pg_sys::Oid::INVALID;
        }
        if (*q.targetList).length != 1 {
            return mark_set_configs(query);
        }
        let Some(entry) = list_pointers(q.targetList).next() else {
            return pg_sys::Oid::INVALID;
        };
        let expression = (*entry.cast::<pg_sys::TargetEntry>()).expr;
        if tag(expression) != Some(NodeTag::T_FuncExpr) {
            return pg_sys::Oid::INVALID;
        }
        let call = expression.cast::<pg_sys::FuncExpr>();
        let plain = (u32::from((*call).funcid) >= pg_sys::FirstNormalObjectId || (*call).funcid == SET_CONFIG)
            && (*call).funcformat == pg_sys::CoercionForm::COERCE_EXPLICIT_CALL
            && list_pointers((*call).args).all(|argument| is_plain(argument.cast()));
        if !plain {
            return pg_sys::Oid::INVALID;
        }
        (*call).location = MARK;
        (*call).funcid
    }
}

/// Marks a query of several calls if they are all set_config() with constants or parameters: what one is, they are.
unsafe fn mark_set_configs(query: *mut pg_sys::Query) -> pg_sys::Oid {
    // SAFETY: the caller's query; each node is tested for its tag.
    unsafe {
        let calls = || {
            list_pointers((*query).targetList)
                .map(|entry| (*entry.cast::<pg_sys::TargetEntry>()).expr.cast::<pg_sys::FuncExpr>())
        };
        let all = calls().all(|call| {
            tag(call) == Some(NodeTag::T_FuncExpr)
                && (*call).funcid == SET_CONFIG
                && (*call).funcformat == pg_sys::CoercionForm::COERCE_EXPLICIT_CALL
                && list_pointers((*call).args).all(|argument| is_plain(argument.cast()))
        });
        if !all {
            return pg_sys::Oid::INVALID;
        }
        for call in calls() {
            (*call).location = MARK;
        }
        SET_CONFIG
    }
}

/// The client's calls of set_config() are to be ones of our own function of that name, which hands on whatever isn't
/// about who the session is. Nothing is changed where the name of the setting is another's, or the extension isn't there.
///
/// # Safety
/// `query` was marked by [`mark_bare_call`], which said [`SET_CONFIG`].
pub unsafe fn take_set_config(query: *mut pg_sys::Query) {
    // SAFETY: the caller's promise.
    unsafe {
        let calls = || {
            list_pointers((*query).targetList)
                .map(|entry| (*entry.cast::<pg_sys::TargetEntry>()).expr.cast::<pg_sys::FuncExpr>())
        };
        if !calls().any(|call| may_name_identity(call)) {
            return;
        }
        let Some(own) = super::own_objects::own_function(c"set_config") else {
            return;
        };
        for call in calls().filter(|&call| may_name_identity(call)) {
            (*call).funcid = own;
        }
    }
}

/// Whether the first argument names, or may turn out to name, a setting that says who the session is.
unsafe fn may_name_identity(call: *mut pg_sys::FuncExpr) -> bool {
    // SAFETY: a call with plain arguments, of which a constant is a text or null.
    unsafe {
        let Some(first) = list_pointers((*call).args).next() else {
            return false;
        };
        if tag(first.cast::<pg_sys::Node>()) != Some(NodeTag::T_Const) {
            return true;
        }
        let name = &*first.cast::<pg_sys::Const>();
        if name.constisnull {
            return false;
        }
        let name = std::ffi::CStr::from_ptr(pg_sys::text_to_cstring(name.constvalue.cast_mut_ptr())).to_bytes();
        is_identity(name)
    }
}

/// The active portal's statement as the client sent it.
pub fn clients_text<'a>() -> &'a [u8] {
    // SAFETY: the portal, its statements and its text are valid while it is active.
    unsafe {
        let portal = pg_sys::ActivePortal;
        if portal.is_null() {
            return b"";
        }
        let Some(statement) = list_pointers((*portal).stmts).next() else {
            return b"";
        };
        let statement = statement.cast::<pg_sys::PlannedStmt>();
        super::trampoline::statement_text((*portal).sourceText, (*statement).stmt_location, (*statement).stmt_len)
    }
}

/// When the client's message came that made the active portal, and whether that was a Bind; None when there is none.
pub fn made_by() -> Option<(pg_sys::TimestampTz, bool)> {
    // SAFETY: the active portal is valid.
    let portal = unsafe { pg_sys::ActivePortal.as_ref() }?;
    Some((portal.creation_time, !portal.cplan.is_null()))
}

/// Whether a setting's name, which may be null, is that of `impersonate.target`.
///
/// # Safety
/// `name` is null or a string.
pub unsafe fn is_target(name: *const std::ffi::c_char) -> bool {
    // SAFETY: null or a string.
    !name.is_null()
        && unsafe { std::ffi::CStr::from_ptr(name) }
            .to_bytes()
            .eq_ignore_ascii_case(b"impersonate.target")
}

/// What `set_config()` of the server does with the same arguments.
pub fn core_set_config(fcinfo: pg_sys::FunctionCallInfo) -> Option<Vec<u8>> {
    extern "C-unwind" {
        fn set_config_by_name(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
    }
    // SAFETY: our function has the same arguments, and the same result: a text.
    unsafe {
        // The server asked whether ours may be called, and not for the one that the client named.
        let may = pgrx::direct_function_call::<bool>(
            pg_sys::has_function_privilege_id,
            &[
                Some(pg_sys::Datum::from(SET_CONFIG)),
                pgrx::IntoDatum::into_datum("EXECUTE"),
            ],
        );
        if may != Some(true) {
            pgrx::ereport!(
                pgrx::PgLogLevel::ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                "permission denied for function set_config"
            );
        }
        let value = pg_sys::ffi::pg_guard_ffi_boundary(|| set_config_by_name(fcinfo));
        pgrx::FromDatum::from_datum(value, (*fcinfo).isnull)
    }
}

/// Whether a utility statement is the client's own, and all that its portal runs.
///
/// # Safety
/// `statement` may be any pointer; it is only compared.
pub unsafe fn is_clients_own_utility(statement: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: the active portal is valid.
    unsafe {
        let portal = pg_sys::ActivePortal;
        !portal.is_null()
            && made_by_protocol(portal)
            && (*portal).status == pg_sys::PortalStatus::PORTAL_ACTIVE
            && list_pointers((*portal).stmts).count() == 1
            && is_portals_statement(statement)
    }
}

/// The utility statement that the client's own portal runs, or null.
unsafe fn clients_utility() -> *mut pg_sys::Node {
    // SAFETY: the active portal is valid; a portal's statements are plans.
    unsafe {
        let portal = pg_sys::ActivePortal;
        if portal.is_null() {
            return std::ptr::null_mut();
        }
        match list_pointers((*portal).stmts).next() {
            Some(statement) if is_clients_own_utility(statement.cast_const().cast()) => {
                (*statement.cast::<pg_sys::PlannedStmt>()).utilityStmt
            }
            _ => std::ptr::null_mut(),
        }
    }
}

/// Whether the client's own statement is a SET or RESET of `impersonate.target`, or of `role` or `session_authorization`,
/// which may mean it. No code of anybody's runs inside it.
pub fn client_sets_identity() -> bool {
    // SAFETY: tested for its tag; the name is null or a string.
    unsafe {
        let node = clients_utility();
        if tag(node) != Some(NodeTag::T_VariableSetStmt) {
            return false;
        }
        let name = (*node.cast::<pg_sys::VariableSetStmt>()).name;
        !name.is_null() && is_identity(std::ffi::CStr::from_ptr(name).to_bytes())
    }
}

/// Whether a setting says who the session is.
pub fn is_identity(name: &[u8]) -> bool {
    [&b"impersonate.target"[..], b"role", b"session_authorization"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// The client's own CALL of this function, with constants or parameters, is about to run: what it calls shall know it.
///
/// # Safety
/// `call` is of the statement that the server is about to run.
pub unsafe fn mark_call(call: *mut pg_sys::CallStmt, statement: *const pg_sys::PlannedStmt) {
    // SAFETY: a number is written that nobody reads in a call.
    unsafe {
        let function = (*call).funcexpr;
        if !function.is_null()
            && is_clients_own_utility(statement)
            && list_pointers((*function).args).all(|argument| is_plain(argument.cast()))
        {
            (*function).location = MARK;
        }
    }
}

/// Whether a procedure being called is all that the client's own CALL consists of.
pub fn is_clients_own_procedure(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: SQL functions hand on their own fcinfo; each node is tested for its tag.
    unsafe {
        if fcinfo.is_null() || (*fcinfo).flinfo.is_null() {
            return false;
        }
        let call = (*(*fcinfo).flinfo).fn_expr;
        let node = clients_utility();
        if tag(call) != Some(NodeTag::T_FuncExpr) || tag(node) != Some(NodeTag::T_CallStmt) {
            return false;
        }
        let own = (*node.cast::<pg_sys::CallStmt>()).funcexpr;
        !own.is_null()
            && (*call.cast::<pg_sys::FuncExpr>()).location == MARK
            && (*own).location == MARK
            && (*own).funcid == (*call.cast::<pg_sys::FuncExpr>()).funcid
    }
}

/// Whether a function has setuser()'s name and isn't it: found first by a search path that names pg_catalog later, it
/// would give the answer that a switch gives (S1). A catalog look-up.
pub fn shadows_setuser(function: pg_sys::Oid) -> bool {
    // SAFETY: look-ups that give null and InvalidOid for what isn't there; the name is palloc'ed.
    unsafe {
        let name = pg_sys::get_func_name(function);
        !name.is_null()
            && std::ffi::CStr::from_ptr(name) == c"setuser"
            && !(pg_sys::get_func_namespace(function) == pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE)
                && super::own_objects::is_own(pg_sys::ProcedureRelationId, function))
    }
}

/// Constants and the client's parameters, as they are or cast by the server's own functions.
unsafe fn is_plain(node: *mut pg_sys::Node) -> bool {
    // SAFETY: each node is tested for its tag before it is read as that node.
    unsafe {
        match tag(node) {
            Some(NodeTag::T_Const) => true,
            Some(NodeTag::T_Param) => (*node.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_EXTERN,
            Some(NodeTag::T_NamedArgExpr) => is_plain((*node.cast::<pg_sys::NamedArgExpr>()).arg.cast()),
            Some(NodeTag::T_RelabelType) => is_plain((*node.cast::<pg_sys::RelabelType>()).arg.cast()),
            Some(NodeTag::T_FuncExpr) => {
                let cast = &*node.cast::<pg_sys::FuncExpr>();
                u32::from(cast.funcid) < pg_sys::FirstGenbkiObjectId
                    && matches!(
                        cast.funcformat,
                        pg_sys::CoercionForm::COERCE_EXPLICIT_CAST | pg_sys::CoercionForm::COERCE_IMPLICIT_CAST
                    )
                    && list_pointers(cast.args).all(|argument| is_plain(argument.cast()))
            }
            _ => false,
        }
    }
}

/// Whether the call being evaluated is all that the client's statement consists of.
///
/// # Safety
/// `fcinfo` is the call's own.
pub unsafe fn is_clients_own_call(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: the portal, its statements and its query are valid while it is active.
    unsafe {
        let portal = pg_sys::ActivePortal;
        if portal.is_null() || fcinfo.is_null() || (*fcinfo).flinfo.is_null() {
            return false;
        }
        let call = (*(*fcinfo).flinfo).fn_expr;
        if tag(call) != Some(NodeTag::T_FuncExpr) || (*call.cast::<pg_sys::FuncExpr>()).location != MARK {
            return false;
        }
        if !made_by_protocol(portal)
            || (*portal).strategy != pg_sys::PortalStrategy::PORTAL_ONE_SELECT
            || (*portal).status != pg_sys::PortalStatus::PORTAL_ACTIVE
            || (*portal).stmts.is_null()
            || (*(*portal).stmts).length != 1
            || (*portal).queryDesc.is_null()
            || !goes_to_client((*(*portal).queryDesc).dest)
        {
            return false;
        }
        let Some(statement) = list_pointers((*portal).stmts).next() else {
            return false;
        };
        if tag(statement.cast::<pg_sys::Node>()) != Some(NodeTag::T_PlannedStmt) {
            return false;
        }
        let plan = (*statement.cast::<pg_sys::PlannedStmt>()).planTree;
        if tag(plan) != Some(NodeTag::T_Result) {
            return false;
        }
        // One call, or nothing but marked ones.
        let targets = || list_pointers((*plan).targetlist).map(|entry| (*entry.cast::<pg_sys::TargetEntry>()).expr);
        targets().all(|target| {
            tag(target) == Some(NodeTag::T_FuncExpr) && (*target.cast::<pg_sys::FuncExpr>()).location == MARK
        }) && targets().any(|target| target.cast::<pg_sys::Node>() == call)
    }
}

/// Whether the portal is of the client's simple query or of its Bind message, rather than a cursor that the protocol
/// executes by its name.
///
/// A simple query's portal has no name, and nobody but the protocol can make one of that name. Bind always takes its
/// plan from the cache and always says NO SCROLL; DECLARE and PL/pgSQL say FAST_PLAN as well (gram.y, pl_gram.y), and
/// cursors of other languages have names that SPI gives (portalmem.c, GetNewPortal).
unsafe fn made_by_protocol(portal: pg_sys::Portal) -> bool {
    // SAFETY: a portal's name is never null.
    unsafe {
        let name = std::ffi::CStr::from_ptr((*portal).name).to_bytes();
        // SQL's PREPARE and the protocol's Parse share their names, and code can leave a statement under the name that
        // a driver uses next.
        if !(*portal).prepStmtName.is_null() {
            let prepared = pg_sys::FetchPreparedStatement((*portal).prepStmtName, false);
            if prepared.is_null() || (*prepared).from_sql {
                return false;
            }
        }
        name.is_empty()
            || ((*portal).cursorOptions == pg_sys::CURSOR_OPT_NO_SCROLL as i32
                && !(*portal).cplan.is_null()
                && !name.starts_with(b"<unnamed portal "))
    }
}

/// Whether the plan is a bare call of setuser(), which has events of its own.
///
/// # Safety
/// `statement` is a plan.
pub unsafe fn is_switch(statement: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: each node is tested for its tag; the look-ups give null and InvalidOid for what isn't there.
    unsafe {
        let plan = (*statement).planTree;
        if tag(plan) != Some(NodeTag::T_Result) {
            return false;
        }
        let Some(entry) = list_pointers((*plan).targetlist).next() else {
            return false;
        };
        let call = (*entry.cast::<pg_sys::TargetEntry>()).expr;
        if tag(call) != Some(NodeTag::T_FuncExpr) || (*call.cast::<pg_sys::FuncExpr>()).location != MARK {
            return false;
        }
        let function = (*call.cast::<pg_sys::FuncExpr>()).funcid;
        let name = pg_sys::get_func_name(function);
        !name.is_null()
            && [c"setuser", c"set_config"].contains(&std::ffi::CStr::from_ptr(name))
            && [
                pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE),
                pg_sys::get_namespace_oid(c"impersonate".as_ptr(), true),
            ]
            .contains(&pg_sys::get_func_namespace(function))
    }
}

unsafe fn goes_to_client(dest: *mut pg_sys::DestReceiver) -> bool {
    use pg_sys::CommandDest;
    // SAFETY: the receiver of a running query is valid.
    !dest.is_null()
        && [
            CommandDest::DestRemote,
            CommandDest::DestRemoteExecute,
            CommandDest::DestRemoteSimple,
        ]
        .contains(unsafe { &(*dest).mydest })
}

/// Whether `statement` is one of those that the active portal runs, rather than something that one of them calls.
///
/// # Safety
/// `statement` may be any pointer; it is only compared.
pub unsafe fn is_portals_statement(statement: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: as above.
    unsafe {
        let portal = pg_sys::ActivePortal;
        !portal.is_null() && list_pointers((*portal).stmts).any(|own| own.cast_const().cast() == statement)
    }
}

/// Whether the query is all that the active portal runs, and gives rows alone: then nothing comes after its last one.
///
/// # Safety
/// `query` may be any pointer; it is only compared.
pub unsafe fn only_reads(query: *const pg_sys::QueryDesc) -> bool {
    // SAFETY: the active portal is valid.
    unsafe {
        let portal = pg_sys::ActivePortal;
        !portal.is_null()
            && (*portal).strategy == pg_sys::PortalStrategy::PORTAL_ONE_SELECT
            && std::ptr::eq((*portal).queryDesc, query)
    }
}

/// [`is_clients_own_call`], answered with the key that the executor's hooks know the statement by.
pub fn clients_own_call(fcinfo: pg_sys::FunctionCallInfo) -> Option<usize> {
    // SAFETY: SQL functions hand on their own fcinfo; the active portal has a query if the first test says so.
    unsafe { is_clients_own_call(fcinfo).then(|| (*pg_sys::ActivePortal).queryDesc as usize) }
}

/// Makes parts of the client's message unreadable, for whoever may look at it from now on: current_query(),
/// pg_stat_activity, pg_prepared_statements, what the server logs at the end of a statement. `parts` says which, of a
/// text; what is between quotes is overwritten, so that everything keeps its place.
///
/// Only for a call that [`clients_own_call`] knows: the text is then the protocol's own copy of the message, or that of
/// the statement that its Parse made. Nobody reads it but to show it, as the server keeps what it has parsed.
pub fn hide_in_message(parts: fn(&[u8]) -> Vec<std::ops::Range<usize>>) {
    // SAFETY: zero-terminated texts of this process, in memory that the server has allocated for them; bytes are
    // overwritten in their places by others that are not zero. The report copies the text.
    unsafe {
        let portal = pg_sys::ActivePortal;
        let (mut source, mut prepared) = (std::ptr::null(), std::ptr::null());
        if !portal.is_null() {
            source = (*portal).sourceText;
            if !(*portal).prepStmtName.is_null() {
                let statement = pg_sys::FetchPreparedStatement((*portal).prepStmtName, false);
                if !statement.is_null() {
                    prepared = (*(*statement).plansource).query_string;
                }
            }
        }
        let texts = [source, prepared, pg_sys::debug_query_string];
        for text in texts {
            if text.is_null() {
                continue;
            }
            let length = std::ffi::CStr::from_ptr(text).to_bytes().len();
            let bytes = std::slice::from_raw_parts_mut(text.cast_mut().cast::<u8>(), length);
            for part in parts(bytes) {
                let part = &mut bytes[part];
                match part {
                    [b'\'', inside @ .., b'\''] => inside.fill(b'*'),
                    all => all.fill(b'*'),
                }
            }
        }
        if !pg_sys::debug_query_string.is_null() {
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, pg_sys::debug_query_string);
        }
    }
}
