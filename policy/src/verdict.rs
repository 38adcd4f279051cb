//! The answer to "may I act as you?", with all that it rests on.

use crate::possession::{ObjectId, Privileges};
use crate::right::{Admin, Right};
use crate::role::{Attribute, Impersonator, ParameterAction, RoleId, Target};

/// Whether the impersonator may act as the target, and why.
#[must_use]
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Verdict {
    /// Who asked.
    pub impersonator: Impersonator,
    /// As whom.
    pub target: Target,
    /// All that was looked at, met or not: at least one row for each criterion, in the criteria's order.
    pub conditions: Vec<Condition>,
    /// The narrowest right that covers the target. None for superusers and oneself, who need none.
    pub right: Option<i64>,
}

impl Verdict {
    /// Whether every condition is met.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.first_failed().is_none()
    }

    /// The condition to tell the user about (S6).
    pub fn first_failed(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| !condition.ok)
    }

    /// The right behind [`Verdict::right`]: judging again from where the rights cannot be read needs its grantee.
    pub fn covering_right(&self) -> Option<&Right> {
        self.conditions.iter().find_map(|condition| match &condition.fact {
            Fact::Right { covering, .. } => covering.as_ref(),
            _ => None,
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Condition {
    /// The rule that asks for it.
    pub criterion: Criterion,
    /// Whether it is met.
    pub ok: bool,
    /// Who asked.
    pub impersonator: Impersonator,
    /// As whom.
    pub target: Target,
    /// What it is about.
    pub fact: Fact,
}

/// The rules of SPEC.md that decide on a switch, in the order in which they are judged.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Criterion {
    /// The target may log in.
    S5,
    /// A right covers the target.
    A1,
    /// The target's roles.
    A2,
    /// The target's admin over roles.
    A3,
    /// The target's attributes and parameter privileges.
    A4,
    /// The target's own SET USER rights.
    A5,
    /// What the target itself owns or was granted on objects; judged if the rules say so.
    A6,
}

impl Criterion {
    /// The at-least criteria that are always judged: all but S5 and A6.
    pub const AT_LEAST: [Criterion; 5] = [
        Criterion::A1,
        Criterion::A2,
        Criterion::A3,
        Criterion::A4,
        Criterion::A5,
    ];

    /// Its number.
    pub fn as_str(self) -> &'static str {
        match self {
            Criterion::S5 => "S5",
            Criterion::A1 => "A1",
            Criterion::A2 => "A2",
            Criterion::A3 => "A3",
            Criterion::A4 => "A4",
            Criterion::A5 => "A5",
            Criterion::A6 => "A6",
        }
    }
}

/// What a condition is about, by id: names are looked up only for those who read it.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Fact {
    /// The target is the impersonator.
    Oneself,
    /// The impersonator is a superuser.
    Superuser,
    /// The target has nothing that the criterion is about.
    NothingRequired,
    /// S5: the target has LOGIN.
    Login,
    /// S5: the target's VALID UNTIL has not passed.
    Unexpired,
    /// A1: a right with use over the target.
    Right {
        /// The narrowest that covers the target.
        covering: Option<Right>,
        /// Every right that counts for the impersonator, by id.
        counted: Vec<Right>,
    },
    /// A2: a role that the target holds.
    Role {
        /// That role.
        role: RoleId,
        /// The impersonator is a direct member, but with neither INHERIT nor SET; a bare GRANT would change nothing.
        unusable_member: bool,
        /// The role is itself a member of the impersonator: no GRANT can cure it.
        circular: bool,
    },
    /// A3: a role that the target holds with admin.
    AdminOf {
        /// That role.
        role: RoleId,
        /// The impersonator holds the role, with or without admin.
        usable: bool,
        /// The role is the impersonator or a member of it: no GRANT can cure it.
        circular: bool,
    },
    /// A4: an attribute of the target.
    Attribute(Attribute),
    /// A4: a parameter privilege granted to the target.
    Parameter {
        /// The parameter's name.
        parameter: String,
        /// The privilege.
        action: ParameterAction,
        /// The target has it with grant option.
        grantable: bool,
        /// The impersonator has it, with or without grant option.
        held: bool,
    },
    /// A5: the target holds SET USER over any user.
    Any {
        /// What the target may do with it.
        required: Admin,
        /// What the impersonator may do with its own, if it has it.
        held: Option<Admin>,
    },
    /// A5: the users over whom the target holds SET USER, less the impersonator.
    Users {
        /// All of them.
        required: Vec<RoleId>,
        /// Those over whom the impersonator does not.
        missing: Vec<RoleId>,
    },
    /// A5: the roles of the target's SET USER ANY WITH ROLES.
    WithRoles {
        /// All of them.
        required: Vec<RoleId>,
        /// Those that none of the impersonator's lists has.
        missing: Vec<RoleId>,
    },
    /// A6: the impersonator can `SET ROLE` to the target, so all that the target was given is its own too.
    TargetHeld,
    /// A6: the target owns objects or was granted privileges, and the impersonator has all that.
    Objects {
        /// How many.
        count: usize,
    },
    /// A6: the target owns something.
    Owned {
        /// The first of it.
        first: ObjectId,
        /// How many more.
        others: usize,
        /// The impersonator is a direct member of the target, but cannot `SET ROLE` to it.
        unusable_member: bool,
        /// The target is a member of the impersonator: no GRANT can cure it.
        circular: bool,
    },
    /// A6: the target is a role of the server's own, of which nobody knows what it was given.
    Unlisted {
        /// As in [`Fact::Owned`].
        unusable_member: bool,
        /// As in [`Fact::Owned`].
        circular: bool,
    },
    /// A6: privileges that the target was granted on an object.
    ObjectPrivileges {
        /// The object or column.
        object: ObjectId,
        /// Those that the impersonator lacks.
        missing: Privileges,
        /// The target has them with grant option.
        grantable: bool,
        /// Those of them that the impersonator has without grant option.
        held: Privileges,
    },
    /// A6: a policy that lets the target see rows of a table.
    Policy {
        /// The policy.
        policy: ObjectId,
        /// The roles that it is for.
        roles: Vec<RoleId>,
    },
    /// A6: more than can be told one by one.
    MoreObjects {
        /// How many more.
        count: usize,
    },
}
