//! What the policy needs to be told.

use crate::possession::{ObjectId, ObjectName, Possession};
use crate::right::Right;
use crate::role::{Attributes, Membership, ParameterPrivilege, RoleId};
use std::collections::BTreeSet;

/// Roles and rights as they are at the moment of judging.
///
/// It is asked about the roles that are reached, never about all of the cluster, so an implementation can read lazily.
/// It may cache, as long as all the answers that go into one verdict are of one moment.
pub trait World {
    /// The direct memberships of `member`, in any order.
    fn memberships(&self, member: RoleId) -> Vec<Membership>;

    /// What `role` itself has.
    fn attributes(&self, role: RoleId) -> Attributes;

    /// Every grant on a parameter in the cluster; they are few.
    fn parameter_privileges(&self) -> Vec<ParameterPrivilege>;

    /// The rights granted to `grantee` itself, in this database.
    fn rights(&self, grantee: RoleId) -> Vec<Right>;

    /// The rights granted to any of these roles, in any order. For worlds that have fewer rights than a role can use
    /// roles.
    fn rights_of(&self, grantees: &BTreeSet<RoleId>) -> Vec<Right> {
        grantees.iter().flat_map(|&grantee| self.rights(grantee)).collect()
    }

    /// The role's name, not quoted.
    fn name(&self, role: RoleId) -> String;

    /// Tells `each` of everything that `role` itself owns or was granted in this database, and of the objects that
    /// databases share. Not of what it has through other roles; not of parameters, SET USER or memberships.
    fn possessions(&self, role: RoleId, each: &mut dyn FnMut(Possession<'_>));

    /// The object in words.
    fn object(&self, object: ObjectId) -> ObjectName;
}
