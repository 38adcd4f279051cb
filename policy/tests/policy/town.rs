//! A small world, made by hand: roles are addressed by name.

use impersonate_policy::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

#[derive(Clone, Default, Debug)]
pub struct Town {
    pub names: Vec<String>,
    pub memberships: BTreeMap<RoleId, Vec<Membership>>,
    pub attributes: BTreeMap<RoleId, Attributes>,
    pub parameters: Vec<ParameterPrivilege>,
    pub rights: Vec<Right>,
    /// Numbered from 0.
    pub items: Vec<Item>,
    /// The predefined role that can read everything.
    pub reader: Option<RoleId>,
    /// Roles of which nobody knows what they were granted.
    pub unlisted: Vec<RoleId>,
    /// What was asked, to see how much that was.
    pub asked: RefCell<Vec<RoleId>>,
}

pub const RULES: Rules = Rules {
    require_login: true,
    criteria: Criteria::Roles,
};

/// With A6.
pub const FULL: Rules = Rules {
    criteria: Criteria::Full,
    ..RULES
};

/// An object that can be owned and granted, or a policy.
#[derive(Clone, Debug)]
pub enum Item {
    /// A row for each grant, as an ACL has them.
    Object { owner: RoleId, grants: Vec<Grant> },
    /// A user mapping.
    Mapping(RoleId),
    /// A policy on a table with this owner.
    Policy { owner: RoleId, roles: Vec<Option<RoleId>> },
}

/// A login attribute set, for roles that are people.
pub const LOGIN: Attributes = Attributes {
    superuser: false,
    createrole: false,
    createdb: false,
    replication: false,
    bypassrls: false,
    login: true,
    expired: false,
};

/// Membership as it is unless said otherwise.
pub const PLAIN: [bool; 3] = [true, true, false];
pub const NOINHERIT: [bool; 3] = [false, true, false];
pub const INHERIT_ONLY: [bool; 3] = [true, false, false];
pub const ADMIN: [bool; 3] = [true, true, true];
pub const ADMIN_ONLY: [bool; 3] = [false, false, true];
pub const NOTHING: [bool; 3] = [false, false, false];

impl Town {
    pub fn new() -> Town {
        Town::default()
    }

    /// The role of that name; made, with LOGIN, when it is new.
    pub fn role(&mut self, name: &str) -> RoleId {
        let known = self.names.iter().position(|known| known == name);
        let id = known.unwrap_or_else(|| {
            self.names.push(name.to_string());
            self.names.len() - 1
        });
        let role = RoleId(u32::try_from(id).unwrap());
        self.attributes.entry(role).or_insert(LOGIN);
        role
    }

    pub fn roles(&mut self, names: &[&str]) -> Vec<RoleId> {
        names.iter().map(|name| self.role(name)).collect()
    }

    /// `GRANT role TO member` with INHERIT, SET, ADMIN as in `options`.
    pub fn member(&mut self, member: &str, role: &str, options: [bool; 3]) -> &mut Town {
        let (member, role) = (self.role(member), self.role(role));
        let [inherit, set, admin] = options;
        self.memberships.entry(member).or_default().push(Membership {
            role,
            inherit,
            set,
            admin,
        });
        self
    }

    pub fn attributes_of(&mut self, role: &str) -> &mut Attributes {
        let role = self.role(role);
        self.attributes.get_mut(&role).unwrap()
    }

    /// Stores a right that a superuser granted, and returns its id.
    pub fn right(&mut self, grantee: &str, scope: Scope, admin: Admin) -> i64 {
        let (grantee, grantor) = (self.role(grantee), self.role("postgres"));
        let id = 1 + i64::try_from(self.rights.len()).unwrap();
        self.rights.push(Right {
            id,
            grantee,
            scope,
            admin,
            grantor,
            as_superuser: true,
        });
        id
    }

    pub fn any(&mut self, grantee: &str) -> i64 {
        self.right(grantee, Scope::Any, Admin::None)
    }

    pub fn users(&mut self, grantee: &str, users: &[&str]) -> i64 {
        let users = self.roles(users);
        self.right(grantee, Scope::Users(users), Admin::None)
    }

    pub fn with_roles(&mut self, grantee: &str, roles: &[&str]) -> i64 {
        let roles = self.roles(roles);
        self.right(grantee, Scope::AnyWithRoles(roles), Admin::None)
    }

    /// A parameter privilege: `set`, `alter_system`, each `Some(grantable)`. PUBLIC is the empty name.
    pub fn parameter(&mut self, grantee: &str, set: Option<bool>, alter_system: Option<bool>) -> &mut Town {
        let grantee = (!grantee.is_empty()).then(|| self.role(grantee));
        self.parameters.push(ParameterPrivilege {
            parameter: "work_mem".to_string(),
            grantee,
            set: set.is_some(),
            set_grantable: set == Some(true),
            alter_system: alter_system.is_some(),
            alter_system_grantable: alter_system == Some(true),
        });
        self
    }

    /// A table that postgres owns, with what is granted on it; PUBLIC is the empty name.
    pub fn table(&mut self, grants: &[(&str, Privileges, Privileges)]) -> ObjectId {
        let owner = self.role("postgres");
        let grants = grants
            .iter()
            .map(|&(grantee, privileges, grantable)| Grant {
                grantee: (!grantee.is_empty()).then(|| self.role(grantee)),
                privileges,
                grantable,
            })
            .collect();
        self.item(Item::Object { owner, grants })
    }

    pub fn owns(&mut self, owner: &str) -> ObjectId {
        let owner = self.role(owner);
        self.item(Item::Object { owner, grants: vec![] })
    }

    pub fn policy(&mut self, owner: &str, roles: &[&str]) -> ObjectId {
        let owner = self.role(owner);
        let roles = roles
            .iter()
            .map(|role| (!role.is_empty()).then(|| self.role(role)))
            .collect();
        self.item(Item::Policy { owner, roles })
    }

    pub fn item(&mut self, item: Item) -> ObjectId {
        self.items.push(item);
        item_id(self.items.len() - 1)
    }

    /// With A6.
    pub fn judge_full(&mut self, impersonator: &str, target: &str) -> Verdict {
        let (impersonator, target) = (self.role(impersonator), self.role(target));
        judge(self, Impersonator(impersonator), Target(target), None, &FULL)
    }

    pub fn judge(&mut self, impersonator: &str, target: &str) -> Verdict {
        self.judge_via(impersonator, target, None)
    }

    pub fn judge_via(&mut self, impersonator: &str, target: &str, via: Option<&str>) -> Verdict {
        let (impersonator, target) = (self.role(impersonator), self.role(target));
        let via = via.map(|via| self.role(via));
        judge(self, Impersonator(impersonator), Target(target), via, &RULES)
    }

    /// The numbers of the criteria that `alice` fails to act as `bob`, comma-separated, each once.
    pub fn failed(&mut self) -> String {
        failed(&self.judge("alice", "bob"))
    }

    /// Carries out what a GRANT or REVOKE came to.
    pub fn apply(&mut self, changes: &[Change]) {
        let mut ids: Vec<i64> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Insert(_) => None,
                Change::Update { id, .. } | Change::Delete { id } => Some(*id),
            })
            .collect();
        ids.sort_unstable();
        assert!(
            ids.is_sorted_by(|one, next| one < next),
            "a right is changed once by a statement: {ids:?}"
        );
        for change in changes.iter().cloned() {
            match change {
                Change::Insert(NewRight {
                    grantee,
                    scope,
                    admin,
                    grantor,
                    as_superuser,
                }) => {
                    let id = 1 + self.rights.iter().map(|right| right.id).max().unwrap_or(0);
                    self.rights.push(Right {
                        id,
                        grantee,
                        scope,
                        admin,
                        grantor,
                        as_superuser,
                    });
                }
                Change::Update {
                    id,
                    scope,
                    admin,
                    as_superuser,
                } => {
                    let right = self.rights.iter_mut().find(|right| right.id == id).unwrap();
                    *right = Right {
                        scope,
                        admin,
                        as_superuser,
                        ..right.clone()
                    };
                }
                Change::Delete { id } => {
                    let before = self.rights.len();
                    self.rights.retain(|right| right.id != id);
                    assert_eq!(self.rights.len(), before - 1, "deleted once");
                }
            }
        }
    }
}

impl World for Town {
    fn memberships(&self, member: RoleId) -> Vec<Membership> {
        self.asked.borrow_mut().push(member);
        self.memberships.get(&member).cloned().unwrap_or_default()
    }

    fn attributes(&self, role: RoleId) -> Attributes {
        self.attributes.get(&role).copied().unwrap_or(LOGIN)
    }

    fn parameter_privileges(&self) -> Vec<ParameterPrivilege> {
        self.parameters.clone()
    }

    fn rights(&self, grantee: RoleId) -> Vec<Right> {
        self.asked.borrow_mut().push(grantee);
        self.rights
            .iter()
            .filter(|right| right.grantee == grantee)
            .cloned()
            .collect()
    }

    fn name(&self, role: RoleId) -> String {
        self.names[role.0 as usize].clone()
    }

    fn possessions(&self, role: RoleId, each: &mut dyn FnMut(Possession<'_>)) {
        if self.unlisted.contains(&role) {
            return each(Possession::Unlisted);
        }
        for (nth, item) in self.items.iter().enumerate() {
            let object = item_id(nth);
            match item {
                Item::Object { owner, .. } if *owner == role => each(Possession::Owned(object)),
                Item::Mapping(owner) if *owner == role => each(Possession::Personal(object)),
                Item::Mapping(_) => {}
                Item::Policy { owner, roles } if roles.contains(&Some(role)) => each(Possession::Policy {
                    policy: object,
                    roles,
                    owner: *owner,
                }),
                Item::Policy { .. } => {}
                Item::Object { owner, grants } => {
                    let (mut privileges, mut grantable) = (Privileges::NONE, Privileges::NONE);
                    for grant in grants.iter().filter(|grant| grant.grantee == Some(role)) {
                        privileges = privileges.or(grant.privileges);
                        grantable = grantable.or(grant.grantable);
                    }
                    if !privileges.is_empty() {
                        let mut holders = grants.clone();
                        holders.push(Grant {
                            grantee: Some(*owner),
                            privileges: Privileges::ALL,
                            grantable: Privileges::ALL,
                        });
                        holders.extend(self.reader.map(|reader| Grant {
                            grantee: Some(reader),
                            privileges: SELECT,
                            grantable: Privileges::NONE,
                        }));
                        each(Possession::Granted {
                            object,
                            privileges,
                            grantable,
                            holders: &holders,
                        });
                    }
                }
            }
        }
    }

    fn object(&self, object: ObjectId) -> ObjectName {
        let nth = object.object;
        let column = (object.column != 0).then(|| format!("c{}", object.column));
        let (description, in_statement) = match &self.items[nth as usize] {
            Item::Object { .. } => (format!("table public.t{nth}"), Some(format!("TABLE public.t{nth}"))),
            Item::Mapping(_) => (format!("user mapping {nth}"), None),
            Item::Policy { .. } => (
                format!("policy p{nth} on public.t"),
                Some(format!("p{nth} ON public.t")),
            ),
        };
        ObjectName {
            description,
            in_statement,
            column,
        }
    }
}

pub const SELECT: Privileges = Privileges::from_bits(1 << 1);
pub const INSERT: Privileges = Privileges::from_bits(1);

pub fn item_id(nth: usize) -> ObjectId {
    ObjectId {
        class: 1259,
        object: u32::try_from(nth).unwrap(),
        column: 0,
    }
}

pub fn failed(verdict: &Verdict) -> String {
    let mut failed: Vec<&str> = verdict
        .conditions
        .iter()
        .filter(|condition| !condition.ok)
        .map(|condition| condition.criterion.as_str())
        .collect();
    failed.dedup();
    failed.join(",")
}
