//! Utility statements that concern us, read into values.

use super::nodes::{list_pointers, tag};
use super::trampoline::{Course, Utility};
use super::version::{self, AdminClause};
use pgrx::pg_sys::{self, NodeTag, Oid};
use std::ffi::{c_char, CStr};

/// GRANT and REVOKE of roles, which is what `GRANT "SET USER"` is to the grammar.
pub struct RoleGrant {
    pub is_grant: bool,
    /// Names of roles, or of privileges of ours, each with its list.
    pub privileges: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
    pub admin: AdminClause,
    pub cascade: bool,
    statement: *mut pg_sys::GrantRoleStmt,
}

/// What a utility statement is to us.
pub enum Concern {
    RoleGrant(RoleGrant),
    /// CREATE ROLE, or ALTER ROLE ... RENAME TO: the name.
    RoleNamed(Vec<u8>),
    RoleDropped,
    DiscardAll,
    /// SET or RESET of `impersonate.target`, the client's own: the value, None to reset; whether it is LOCAL.
    TargetSet(Option<Vec<u8>>, bool),
    /// SET or RESET of `role` or `session_authorization`, the client's own; [`set_value`] reads it.
    RoleSet,
    /// A database that must be free of other connections: its name, or None for another reason to let it be.
    DatabaseFreed(Vec<u8>),
    None,
}

/// Whether statements of this kind are to be read. Neither raises nor waits.
pub fn concerns(kind: NodeTag) -> bool {
    matches!(
        kind,
        NodeTag::T_GrantRoleStmt
            | NodeTag::T_CreateRoleStmt
            | NodeTag::T_RenameStmt
            | NodeTag::T_DropRoleStmt
            | NodeTag::T_DiscardStmt
            | NodeTag::T_VariableSetStmt
            | NodeTag::T_CallStmt
            | NodeTag::T_DropdbStmt
            | NodeTag::T_CreatedbStmt
            | NodeTag::T_AlterDatabaseStmt
            | NodeTag::T_CreateSubscriptionStmt
            | NodeTag::T_AlterSubscriptionStmt
            | NodeTag::T_CreatePublicationStmt
            | NodeTag::T_AlterPublicationStmt
    ) || may_change_roles(kind)
}

/// A statement about logical replication.
pub enum Replication {
    /// The tables of a subscription may be others now.
    Subscription,
    /// This one was made or changed.
    Publication(Vec<u8>),
}

/// What a statement does to logical replication.
pub fn replication(utility: &Utility) -> Option<Replication> {
    // SAFETY: what the server runs, or has run; each node is tested for its tag.
    unsafe {
        let node = (*utility.statement).utilityStmt;
        match tag(node)? {
            NodeTag::T_CreateSubscriptionStmt | NodeTag::T_AlterSubscriptionStmt => Some(Replication::Subscription),
            NodeTag::T_CreatePublicationStmt => {
                let publication = node.cast::<pg_sys::CreatePublicationStmt>();
                Some(Replication::Publication(text((*publication).pubname)))
            }
            NodeTag::T_AlterPublicationStmt => {
                let publication = node.cast::<pg_sys::AlterPublicationStmt>();
                Some(Replication::Publication(text((*publication).pubname)))
            }
            _ => None,
        }
    }
}

fn may_change_roles(kind: NodeTag) -> bool {
    matches!(
        kind,
        NodeTag::T_GrantRoleStmt
            | NodeTag::T_CreateRoleStmt
            | NodeTag::T_AlterRoleStmt
            | NodeTag::T_DropRoleStmt
            | NodeTag::T_DropOwnedStmt
            | NodeTag::T_ReassignOwnedStmt
            | NodeTag::T_GrantStmt
            | NodeTag::T_AlterOwnerStmt
            | NodeTag::T_SecLabelStmt
            | NodeTag::T_DropStmt
    )
}

/// Whether the statement can change what the criteria are judged by (E2).
pub fn changes_roles(utility: &Utility) -> bool {
    use pg_sys::ObjectType::{OBJECT_DATABASE, OBJECT_EXTENSION, OBJECT_PARAMETER_ACL, OBJECT_ROLE, OBJECT_SCHEMA};
    // SAFETY: what the server is about to run; each node is tested for its tag.
    unsafe {
        let node = (*utility.statement).utilityStmt;
        match tag(node) {
            Some(NodeTag::T_GrantStmt) => (*node.cast::<pg_sys::GrantStmt>()).objtype == OBJECT_PARAMETER_ACL,
            // Its owner is in pg_database_owner.
            Some(NodeTag::T_AlterOwnerStmt) => (*node.cast::<pg_sys::AlterOwnerStmt>()).objectType == OBJECT_DATABASE,
            // Rights without their stamps are dead.
            Some(NodeTag::T_SecLabelStmt) => (*node.cast::<pg_sys::SecLabelStmt>()).objtype == OBJECT_ROLE,
            // The rights go with the extension, and that with its schema.
            Some(NodeTag::T_DropStmt) => {
                matches!(
                    (*node.cast::<pg_sys::DropStmt>()).removeType,
                    OBJECT_EXTENSION | OBJECT_SCHEMA
                )
            }
            // They are found by its name.
            Some(NodeTag::T_RenameStmt) => (*node.cast::<pg_sys::RenameStmt>()).renameType == OBJECT_SCHEMA,
            Some(kind) => may_change_roles(kind),
            None => false,
        }
    }
}

/// Whether statements of this kind can make, grant or give away objects. Those that run others don't count.
pub fn may_change_objects(kind: NodeTag) -> bool {
    !matches!(
        kind,
        NodeTag::T_TransactionStmt
            | NodeTag::T_VariableSetStmt
            | NodeTag::T_VariableShowStmt
            | NodeTag::T_DeclareCursorStmt
            | NodeTag::T_FetchStmt
            | NodeTag::T_ClosePortalStmt
            | NodeTag::T_PrepareStmt
            | NodeTag::T_ExecuteStmt
            | NodeTag::T_DeallocateStmt
            | NodeTag::T_ExplainStmt
            | NodeTag::T_CallStmt
            | NodeTag::T_DoStmt
            | NodeTag::T_CopyStmt
            | NodeTag::T_ListenStmt
            | NodeTag::T_UnlistenStmt
            | NodeTag::T_NotifyStmt
            | NodeTag::T_LockStmt
            | NodeTag::T_VacuumStmt
            | NodeTag::T_CheckPointStmt
            | NodeTag::T_ConstraintsSetStmt
            | NodeTag::T_DiscardStmt
            | NodeTag::T_LoadStmt
    )
}

/// See [`may_change_objects`].
pub fn changes_objects(utility: &Utility) -> bool {
    // SAFETY: as above.
    unsafe { tag((*utility.statement).utilityStmt).is_some_and(may_change_objects) }
}

/// Whether the statement grants or revokes privileges on objects, which the server tells no hook of.
pub fn grants(utility: &Utility) -> bool {
    // SAFETY: as above.
    unsafe { tag((*utility.statement).utilityStmt) == Some(NodeTag::T_GrantStmt) }
}

/// Whether the statement drops roles.
pub fn drops_role(utility: &Utility) -> bool {
    // SAFETY: as above.
    unsafe { tag((*utility.statement).utilityStmt) == Some(NodeTag::T_DropRoleStmt) }
}

/// What the statement does, to follow on "cannot".
pub fn action(utility: &Utility) -> String {
    use pg_sys::ObjectType::{OBJECT_DATABASE, OBJECT_PARAMETER_ACL, OBJECT_ROLE};
    // SAFETY: as above; lists are of the kinds that the grammar makes.
    unsafe {
        let node = (*utility.statement).utilityStmt;
        match tag(node) {
            Some(NodeTag::T_GrantRoleStmt) => {
                let statement = &*node.cast::<pg_sys::GrantRoleStmt>();
                let granted: Vec<String> = list_pointers(statement.granted_roles)
                    .map(|privilege| quoted((*privilege.cast::<pg_sys::AccessPriv>()).priv_name))
                    .collect();
                let grantees = role_names(statement.grantee_roles);
                // Ours are privileges, but not to the grammar.
                let ours = list_pointers(statement.granted_roles)
                    .any(|privilege| is_own_privilege((*privilege.cast::<pg_sys::AccessPriv>()).priv_name));
                let what = if ours {
                    "SET USER".to_owned()
                } else {
                    format!("role {}", granted.join(", "))
                };
                let grantees = grantees.join(", ");
                match statement.is_grant {
                    true => format!("grant {what} to role {grantees}"),
                    false => format!("revoke {what} from role {grantees}"),
                }
            }
            Some(NodeTag::T_CreateRoleStmt) => {
                format!("create role {}", quoted((*node.cast::<pg_sys::CreateRoleStmt>()).role))
            }
            Some(NodeTag::T_AlterRoleStmt) => {
                format!("alter role {}", role_name((*node.cast::<pg_sys::AlterRoleStmt>()).role))
            }
            Some(NodeTag::T_DropRoleStmt) => {
                let roles = role_names((*node.cast::<pg_sys::DropRoleStmt>()).roles);
                format!("drop role {}", roles.join(", "))
            }
            Some(NodeTag::T_DropOwnedStmt) => {
                let roles = role_names((*node.cast::<pg_sys::DropOwnedStmt>()).roles);
                format!("drop what is owned by role {}", roles.join(", "))
            }
            Some(NodeTag::T_ReassignOwnedStmt) => {
                let roles = role_names((*node.cast::<pg_sys::ReassignOwnedStmt>()).roles);
                format!("reassign what is owned by role {}", roles.join(", "))
            }
            Some(NodeTag::T_GrantStmt) => {
                let statement = &*node.cast::<pg_sys::GrantStmt>();
                let object = if statement.objtype == OBJECT_PARAMETER_ACL {
                    "parameters"
                } else {
                    "objects"
                };
                let roles = role_names(statement.grantees).join(", ");
                match statement.is_grant {
                    true => format!("grant privileges on {object} to role {roles}"),
                    false => format!("revoke privileges on {object} from role {roles}"),
                }
            }
            Some(NodeTag::T_AlterOwnerStmt) => {
                let statement = &*node.cast::<pg_sys::AlterOwnerStmt>();
                if statement.objectType == OBJECT_DATABASE {
                    let name = quoted((*statement.object.cast::<pg_sys::String>()).sval);
                    format!("change the owner of database {name}")
                } else {
                    "change the owner of an object".to_owned()
                }
            }
            Some(NodeTag::T_SecLabelStmt) if (*node.cast::<pg_sys::SecLabelStmt>()).objtype == OBJECT_ROLE => {
                "change the security label of a role".to_owned()
            }
            _ => {
                let name = pg_sys::GetCommandTagName(pg_sys::CreateCommandTag(node));
                format!("execute {}", CStr::from_ptr(name).to_string_lossy())
            }
        }
    }
}

unsafe fn is_own_privilege(name: *const c_char) -> bool {
    // SAFETY: a string of the parse tree.
    let name = unsafe { text(name) };
    std::str::from_utf8(&name).is_ok_and(|name| impersonate_policy::parse_privilege(name).is_some())
}

unsafe fn quoted(name: *const c_char) -> String {
    // SAFETY: a string of the parse tree.
    format!("\"{}\"", super::identity::to_utf8(&unsafe { text(name) }))
}

unsafe fn role_names(list: *mut pg_sys::List) -> Vec<String> {
    // SAFETY: the caller's list of RoleSpecs.
    unsafe { list_pointers(list).map(|role| role_name(role.cast())).collect() }
}

unsafe fn role_name(role: *mut pg_sys::RoleSpec) -> String {
    use pg_sys::RoleSpecType::{
        ROLESPEC_CSTRING, ROLESPEC_CURRENT_ROLE, ROLESPEC_CURRENT_USER, ROLESPEC_PUBLIC, ROLESPEC_SESSION_USER,
    };
    // SAFETY: a RoleSpec of the parse tree.
    unsafe {
        match (*role).roletype {
            ROLESPEC_CSTRING => quoted((*role).rolename),
            ROLESPEC_CURRENT_ROLE => "CURRENT_ROLE".to_owned(),
            ROLESPEC_CURRENT_USER => "CURRENT_USER".to_owned(),
            ROLESPEC_SESSION_USER => "SESSION_USER".to_owned(),
            ROLESPEC_PUBLIC => "PUBLIC".to_owned(),
            _ => "ALL".to_owned(),
        }
    }
}

unsafe fn text(string: *const c_char) -> Vec<u8> {
    if string.is_null() {
        return Vec::new();
    }
    // SAFETY: a string of the parse tree.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}

/// Reads the statement.
pub fn read(utility: &Utility) -> Concern {
    // SAFETY: the statement is what the server is about to run; each node is tested for its tag.
    unsafe {
        let node = (*utility.statement).utilityStmt;
        match tag(node) {
            Some(NodeTag::T_GrantRoleStmt) => Concern::RoleGrant(role_grant(node.cast())),
            Some(NodeTag::T_CreateRoleStmt) => Concern::RoleNamed(text((*node.cast::<pg_sys::CreateRoleStmt>()).role)),
            Some(NodeTag::T_RenameStmt) => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                match rename.renameType {
                    pg_sys::ObjectType::OBJECT_ROLE => Concern::RoleNamed(text(rename.newname)),
                    pg_sys::ObjectType::OBJECT_DATABASE => Concern::DatabaseFreed(text(rename.subname)),
                    _ => Concern::None,
                }
            }
            Some(NodeTag::T_DropRoleStmt) => Concern::RoleDropped,
            Some(NodeTag::T_DiscardStmt) => match (*node.cast::<pg_sys::DiscardStmt>()).target {
                pg_sys::DiscardMode::DISCARD_ALL => Concern::DiscardAll,
                _ => Concern::None,
            },
            Some(NodeTag::T_VariableSetStmt) => target_set(utility, node.cast()),
            Some(NodeTag::T_CallStmt) => {
                super::portal::mark_call(node.cast(), utility.statement);
                Concern::None
            }
            Some(NodeTag::T_DropdbStmt) => Concern::DatabaseFreed(text((*node.cast::<pg_sys::DropdbStmt>()).dbname)),
            Some(NodeTag::T_CreatedbStmt) => Concern::DatabaseFreed(
                named_option((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template")
                    .unwrap_or_else(|| b"template1".to_vec()),
            ),
            Some(NodeTag::T_AlterDatabaseStmt) => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                match named_option(alter.options, c"tablespace") {
                    Some(_) => Concern::DatabaseFreed(text(alter.dbname)),
                    None => Concern::None,
                }
            }
            Some(NodeTag::T_SecLabelStmt) => {
                super::rights::label_begins(!(*node.cast::<pg_sys::SecLabelStmt>()).provider.is_null());
                Concern::None
            }
            _ => Concern::None,
        }
    }
}

/// Whether a statement can be run by whoever can't have the target that the connection started with: transaction
/// control, and SET, RESET and SHOW of the setting.
///
/// # Safety
/// `node` is a utility statement.
pub unsafe fn is_exempt(node: *mut pg_sys::Node) -> bool {
    // SAFETY: each node is tested for its tag.
    unsafe {
        let name = match tag(node) {
            Some(NodeTag::T_TransactionStmt) => return true,
            Some(NodeTag::T_VariableSetStmt) => (*node.cast::<pg_sys::VariableSetStmt>()).name,
            Some(NodeTag::T_VariableShowStmt) => (*node.cast::<pg_sys::VariableShowStmt>()).name,
            _ => return false,
        };
        super::portal::is_target(name)
    }
}

unsafe fn target_set(utility: &Utility, statement: *mut pg_sys::VariableSetStmt) -> Concern {
    use pg_sys::VariableSetKind::{VAR_RESET, VAR_SET_DEFAULT, VAR_SET_VALUE};
    // SAFETY: the statement is what the server is about to run.
    unsafe {
        if !matches!((*statement).kind, VAR_SET_VALUE | VAR_RESET | VAR_SET_DEFAULT)
            || !is_top_level(utility)
            || !super::portal::client_sets_identity()
            || !super::portal::is_clients_own_utility(utility.statement)
        {
            return Concern::None;
        }
        if super::portal::is_target((*statement).name) {
            let (value, local) = set_value(utility);
            Concern::TargetSet(value, local)
        } else {
            Concern::RoleSet
        }
    }
}

/// What a SET sets, None for a RESET, and whether it is LOCAL. Values that are none raise, as they do in the server.
pub fn set_value(utility: &Utility) -> (Option<Vec<u8>>, bool) {
    // SAFETY: tested for its tag.
    unsafe {
        let node = (*utility.statement).utilityStmt;
        if tag(node) != Some(NodeTag::T_VariableSetStmt) {
            return (None, false);
        }
        let statement = node.cast::<pg_sys::VariableSetStmt>();
        let mut value = std::ptr::null_mut();
        if (*statement).kind == pg_sys::VariableSetKind::VAR_SET_VALUE {
            value = pg_sys::ExtractSetVariableArgs(statement);
        }
        ((!value.is_null()).then(|| text(value)), (*statement).is_local)
    }
}

/// The statement for the hooks after us and the server, when it has been done: the setting takes the value it has.
pub fn echoed(utility: &Utility) -> Course {
    // SAFETY: a deep copy of a SET.
    unsafe {
        let copy: *mut pg_sys::PlannedStmt = pg_sys::copyObjectImpl(utility.statement.cast()).cast();
        let set: *mut pg_sys::VariableSetStmt = (*copy).utilityStmt.cast();
        (*set).kind = pg_sys::VariableSetKind::VAR_SET_CURRENT;
        (*set).args = std::ptr::null_mut();
        (*set).name = pg_sys::pstrdup(c"impersonate.target".as_ptr());
        Course {
            statement: copy,
            tell_when_done: false,
        }
    }
}

unsafe fn named_option(options: *mut pg_sys::List, name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: options of these statements are DefElems.
    unsafe {
        list_pointers(options).find_map(|element| {
            let element = element.cast::<pg_sys::DefElem>();
            (CStr::from_ptr((*element).defname) == name && !(*element).arg.is_null())
                .then(|| text(pg_sys::defGetString(element)))
        })
    }
}

unsafe fn role_grant(statement: *mut pg_sys::GrantRoleStmt) -> RoleGrant {
    // SAFETY: the grammar fills granted_roles with AccessPrivs whose cols are strings.
    unsafe {
        let privileges = list_pointers((*statement).granted_roles)
            .map(|privilege| {
                let privilege = &*privilege.cast::<pg_sys::AccessPriv>();
                let list = list_pointers(privilege.cols).map(|name| {
                    text(
                        name.cast::<pg_sys::String>()
                            .as_ref()
                            .map_or(std::ptr::null(), |s| s.sval),
                    )
                });
                (text(privilege.priv_name), list.collect())
            })
            .collect();
        RoleGrant {
            is_grant: (*statement).is_grant,
            privileges,
            admin: version::admin_clause(statement),
            cascade: (*statement).behavior == pg_sys::DropBehavior::DROP_CASCADE,
            statement,
        }
    }
}

impl RoleGrant {
    /// The grantees; None in place of PUBLIC. Raises for a role that doesn't exist.
    pub fn grantees(&self) -> Vec<Option<Oid>> {
        // SAFETY: grantee_roles are RoleSpecs.
        unsafe {
            list_pointers((*self.statement).grantee_roles)
                .map(|role| {
                    let role = role.cast::<pg_sys::RoleSpec>();
                    ((*role).roletype != pg_sys::RoleSpecType::ROLESPEC_PUBLIC)
                        .then(|| pg_sys::get_rolespec_oid(role, false))
                })
                .collect()
        }
    }

    /// The role of GRANTED BY.
    pub fn granted_by(&self) -> Option<Oid> {
        // SAFETY: null or a RoleSpec.
        unsafe {
            let grantor = (*self.statement).grantor;
            (!grantor.is_null()).then(|| pg_sys::get_rolespec_oid(grantor, false))
        }
    }
}

/// The statement with nothing left to grant, for the hooks after us: they may refuse it, and the server does nothing.
pub fn emptied(utility: &Utility) -> Course {
    // SAFETY: a deep copy, of which the list of roles is taken off.
    unsafe {
        let copy: *mut pg_sys::PlannedStmt = pg_sys::copyObjectImpl(utility.statement.cast()).cast();
        let grant: *mut pg_sys::GrantRoleStmt = (*copy).utilityStmt.cast();
        (*grant).granted_roles = std::ptr::null_mut();
        Course {
            statement: copy,
            tell_when_done: false,
        }
    }
}

/// What of the product the statement would change, if anything (X4).
pub fn changes_product(utility: &Utility) -> Option<String> {
    // SAFETY: what the server is about to run.
    unsafe { super::own_objects::changed_by((*utility.statement).utilityStmt) }
}

/// Whether the statement is the client's own.
pub fn is_top_level(utility: &Utility) -> bool {
    utility.context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL
}

/// Whether the statement is the client's own, be it one of several in its message.
pub fn is_outermost(utility: &Utility) -> bool {
    // SAFETY: compares pointers of the active portal's statements.
    unsafe { super::portal::is_portals_statement(utility.statement) }
}

/// Raises inside a transaction block, as the server does for `statement`.
pub fn prevent_in_transaction_block(utility: &Utility, statement: &CStr) {
    // SAFETY: raises or returns.
    unsafe { pg_sys::PreventInTransactionBlock(is_top_level(utility), statement.as_ptr()) }
}

/// Raises in a read-only transaction and on a standby.
pub fn prevent_if_read_only(statement: &CStr) {
    // SAFETY: raise or return.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(statement.as_ptr());
        pg_sys::PreventCommandDuringRecovery(statement.as_ptr());
    }
}

/// The OID of a database; None when there is none of that name.
pub fn database_named(name: &[u8]) -> Option<Oid> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: with missing_ok it returns InvalidOid.
    let database = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (database != Oid::INVALID).then_some(database)
}
