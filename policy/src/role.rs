//! Roles as the catalogs know them.

/// A role's OID in `pg_authid`.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct RoleId(pub u32);

/// The role that logged in, `session_user`: rights and criteria are judged against it alone.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct Impersonator(pub RoleId);

/// The role to be acted as.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct Target(pub RoleId);

/// One direct membership of a role: a row of `pg_auth_members`.
///
/// A member can have several in the same role, from different grantors; each counts with its own options.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Membership {
    /// The role that the member was made a member of.
    pub role: RoleId,
    /// The member has the role's privileges without asking. Before 16 this is the member's `rolinherit`.
    pub inherit: bool,
    /// The member can `SET ROLE` to it. Before 16 always true.
    pub set: bool,
    /// The member can grant the role.
    pub admin: bool,
}

/// What `pg_authid` says of a role itself. None of it is inherited.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct Attributes {
    /// `rolsuper`
    pub superuser: bool,
    /// `rolcreaterole`
    pub createrole: bool,
    /// `rolcreatedb`
    pub createdb: bool,
    /// `rolreplication`
    pub replication: bool,
    /// `rolbypassrls`
    pub bypassrls: bool,
    /// `rolcanlogin`
    pub login: bool,
    /// `rolvaliduntil` has passed.
    pub expired: bool,
}

impl Attributes {
    /// Whether the role itself has `attribute`. Being a superuser does not count for the others.
    pub fn has(&self, attribute: Attribute) -> bool {
        match attribute {
            Attribute::Superuser => self.superuser,
            Attribute::CreateRole => self.createrole,
            Attribute::CreateDb => self.createdb,
            Attribute::Replication => self.replication,
            Attribute::BypassRls => self.bypassrls,
        }
    }
}

/// The attributes that count as system privileges (A4).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Attribute {
    /// SUPERUSER
    Superuser,
    /// CREATEROLE
    CreateRole,
    /// CREATEDB
    CreateDb,
    /// REPLICATION
    Replication,
    /// BYPASSRLS
    BypassRls,
}

impl Attribute {
    /// All of them, in the order in which they are judged.
    pub const ALL: [Attribute; 5] = [
        Attribute::Superuser,
        Attribute::CreateRole,
        Attribute::CreateDb,
        Attribute::Replication,
        Attribute::BypassRls,
    ];

    /// The word of `ALTER ROLE` that gives it.
    pub fn keyword(self) -> &'static str {
        match self {
            Attribute::Superuser => "SUPERUSER",
            Attribute::CreateRole => "CREATEROLE",
            Attribute::CreateDb => "CREATEDB",
            Attribute::Replication => "REPLICATION",
            Attribute::BypassRls => "BYPASSRLS",
        }
    }
}

/// What one grantee may do to one parameter: an item of `pg_parameter_acl.paracl`.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ParameterPrivilege {
    /// The parameter's name as `pg_parameter_acl` has it: lower case.
    pub parameter: String,
    /// `None` is PUBLIC.
    pub grantee: Option<RoleId>,
    /// May SET it.
    pub set: bool,
    /// May grant SET on it.
    pub set_grantable: bool,
    /// May ALTER SYSTEM it.
    pub alter_system: bool,
    /// May grant ALTER SYSTEM on it.
    pub alter_system_grantable: bool,
}

/// The two privileges that a parameter knows.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum ParameterAction {
    /// SET
    Set,
    /// ALTER SYSTEM
    AlterSystem,
}

impl ParameterAction {
    /// The words of GRANT.
    pub fn keyword(self) -> &'static str {
        match self {
            ParameterAction::Set => "SET",
            ParameterAction::AlterSystem => "ALTER SYSTEM",
        }
    }
}
