//! What a role was given on objects, as A6 wants to see it.

use crate::role::RoleId;
use std::fmt;

/// An object, or a column of one, by the OIDs that the server's dependency catalogs have.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct ObjectId {
    /// The catalog that it is in.
    pub class: u32,
    /// Its row there.
    pub object: u32,
    /// The column's number; 0 for the object as a whole.
    pub column: i32,
}

/// An object in words.
#[derive(Clone, Eq, PartialEq, Default, Debug)]
pub struct ObjectName {
    /// Its kind and name for people: `table public.salaries`.
    pub description: String,
    /// What the statement about it calls it: after ON in GRANT (`TABLE public.salaries`), after ALTER POLICY
    /// (`own_rows ON public.salaries`). None where no such statement exists.
    pub in_statement: Option<String>,
    /// The column, as an identifier.
    pub column: Option<String>,
}

/// A set of privileges on an object.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default, Debug)]
pub struct Privileges(u32);

impl Privileges {
    /// No privilege.
    pub const NONE: Privileges = Privileges(0);
    /// Every privilege that there is: what an owner has.
    pub const ALL: Privileges = Privileges(u32::MAX);

    /// One bit for each privilege, where the server has it (`ACL_*` of its `acl.h` and `parsenodes.h`).
    pub const fn from_bits(bits: u32) -> Privileges {
        Privileges(bits)
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Privileges) -> Privileges {
        Privileges(self.0 & other.0)
    }

    /// Those that are in either.
    #[must_use]
    pub fn or(self, other: Privileges) -> Privileges {
        Privileges(self.0 | other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: Privileges) -> Privileges {
        Privileges(self.0 & !other.0)
    }

    /// Whether there is none in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The words of GRANT; None for a privilege of a server that is newer than this crate.
    pub fn keywords(self) -> Vec<Option<&'static str>> {
        let mut keywords = Vec::new();
        let mut rest = self;
        for (bit, keyword) in KEYWORDS {
            if !self.and(Privileges(bit)).is_empty() {
                keywords.push(Some(keyword));
                rest = rest.without(Privileges(bit));
            }
        }
        if !rest.is_empty() {
            keywords.push(None);
        }
        keywords
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, keyword) in self.keywords().into_iter().enumerate() {
            let separator = if nth == 0 { "" } else { ", " };
            write!(formatter, "{separator}{}", keyword.unwrap_or("other privileges"))?;
        }
        Ok(())
    }
}

/// In the order of the manual.
const KEYWORDS: [(u32, &str); 15] = [
    (1 << 1, "SELECT"),
    (1, "INSERT"),
    (1 << 2, "UPDATE"),
    (1 << 3, "DELETE"),
    (1 << 4, "TRUNCATE"),
    (1 << 5, "REFERENCES"),
    (1 << 6, "TRIGGER"),
    (1 << 9, "CREATE"),
    (1 << 11, "CONNECT"),
    (1 << 10, "TEMPORARY"),
    (1 << 7, "EXECUTE"),
    (1 << 8, "USAGE"),
    (1 << 12, "SET"),
    (1 << 13, "ALTER SYSTEM"),
    (1 << 14, "MAINTAIN"),
];

/// What one grantee may do with an object.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Grant {
    /// `None` is PUBLIC.
    pub grantee: Option<RoleId>,
    /// All that it may do.
    pub privileges: Privileges,
    /// What it may grant.
    pub grantable: Privileges,
}

/// One thing that a role itself was given.
#[derive(Clone, Debug)]
pub enum Possession<'a> {
    /// It owns the object: no list of privileges comes up to that, for an owner can alter and drop.
    Owned(ObjectId),
    /// Something that belongs to its name, so that only who can `SET ROLE` to it gets at it: a user mapping.
    Personal(ObjectId),
    /// It was granted privileges on the object, or on the column.
    Granted {
        /// The object or column.
        object: ObjectId,
        /// What it was granted itself.
        privileges: Privileges,
        /// Which of that with grant option.
        grantable: Privileges,
        /// Whoever has privileges on it, with all the ways there are: the owner, PUBLIC, those who have them on the
        /// column's table, predefined roles to which the server gives them everywhere.
        holders: &'a [Grant],
    },
    /// A permissive policy of row-level security lets it see rows.
    Policy {
        /// The policy.
        policy: ObjectId,
        /// The roles that it is for; `None` is PUBLIC.
        roles: &'a [Option<RoleId>],
        /// The owner of the table, to whom policies don't apply.
        owner: RoleId,
    },
    /// What the role was given is not on the server's lists: it is one of those that are there from the start.
    Unlisted,
}
