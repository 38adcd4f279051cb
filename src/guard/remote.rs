//! Judging an impersonation from another database, whose rights table cannot be read there (SPEC section 9).
//!
//! Roles and memberships are the cluster's, rights are a database's. So the table of active impersonations carries the
//! rights that the impersonator and the target had when they were last judged: what counts of them may change with a
//! membership, from anywhere; the rights themselves change in their own database, where everything is judged with the
//! table at hand. Rights of a group that the target newly holds are not among them, and needn't be: the impersonator
//! must hold that group too (A2), and with it the same rights.
//!
//! Objects are a database's too. With A6 the note has also what the impersonator could use: while it loses none of it, what
//! it could do to objects it still can.
//!
//! Where they don't fit, a digest of what both roles can use stands in: any change to that can't be judged.

use crate::pg::active::Note;
use impersonate_policy as policy;
use policy::{Admin, Attributes, Membership, ParameterPrivilege, Right, RoleId, Scope, World};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const RIGHTS: u8 = 1;
const REACH: u8 = 2;

/// What a note of another database says.
pub enum Known<'a> {
    Rights(Elsewhere<'a>),
    /// A digest of what both roles could use.
    Reach([u8; 32]),
}

/// Another database's world, as far as it is known here.
pub struct Elsewhere<'a> {
    catalogs: &'a dyn World,
    /// Where objects are compared too: what the impersonator could use when it was judged.
    used: Vec<RoleId>,
    rights: Vec<Right>,
}

/// Writes a note.
pub fn note(world: &dyn World, impersonator: RoleId, target: RoleId, full: bool) -> Note {
    let mut bytes = vec![RIGHTS];
    let used: Vec<RoleId> = if full {
        policy::usable(world, impersonator).into_iter().collect()
    } else {
        Vec::new()
    };
    bytes.extend((used.len() as u32).to_le_bytes());
    bytes.extend(used.iter().flat_map(|role| role.0.to_le_bytes()));
    let users = relevant_users(world, target);
    let own = policy::usable(world, impersonator);
    let others = policy::usable(world, target);
    for &grantee in own.union(&others) {
        for mut right in world.rights(grantee) {
            // Of the impersonator's lists only what is asked for counts.
            if let (Scope::Users(list), false) = (&right.scope, others.contains(&grantee)) {
                let list: Vec<RoleId> = list.iter().copied().filter(|role| users.contains(role)).collect();
                if list.is_empty() {
                    continue;
                }
                right.scope = Scope::Users(list);
            }
            encode(&right, &mut bytes);
        }
    }
    Note::new(&bytes)
        .or_else(|| {
            let mut bytes = vec![REACH];
            bytes.extend(reach(world, impersonator, target));
            Note::new(&bytes)
        })
        .unwrap_or(Note::EMPTY)
}

/// The target, and whom it may act as itself (A1, A5).
fn relevant_users(world: &dyn World, target: RoleId) -> BTreeSet<RoleId> {
    let grantees = policy::usable(world, target);
    let rights = grantees.into_iter().flat_map(|grantee| world.rights(grantee));
    let listed = rights.flat_map(|right| match right.scope {
        Scope::Users(list) => list,
        _ => Vec::new(),
    });
    listed.chain([target]).collect()
}

/// A digest of what both roles can use.
pub fn reach(world: &dyn World, impersonator: RoleId, target: RoleId) -> [u8; 32] {
    let mut digest = Sha256::new();
    for role in [impersonator, target] {
        digest.update([0xFF; 4]);
        for used in policy::usable(world, role) {
            digest.update(used.0.to_be_bytes());
            for membership in world.memberships(used) {
                digest.update(membership.role.0.to_be_bytes());
                digest.update([
                    u8::from(membership.inherit),
                    u8::from(membership.set),
                    u8::from(membership.admin),
                ]);
            }
        }
    }
    digest.finalize().into()
}

fn encode(right: &Right, bytes: &mut Vec<u8>) {
    bytes.extend(right.id.to_le_bytes());
    bytes.extend(right.grantee.0.to_le_bytes());
    bytes.push(match right.scope {
        Scope::Users(_) => 0,
        Scope::Any => 1,
        Scope::AnyWithRoles(_) => 2,
    });
    bytes.push(match right.admin {
        Admin::None => 0,
        Admin::Option => 1,
        Admin::Only => 2,
    });
    let list = right.scope.roles();
    bytes.extend((list.len() as u32).to_le_bytes());
    for role in list {
        bytes.extend(role.0.to_le_bytes());
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

fn decode(bytes: &mut &[u8]) -> Option<Right> {
    let (id, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    let grantee = RoleId(number(bytes)?);
    let (&[scope, admin], rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    let count = number(bytes)?;
    let list = (0..count)
        .map(|_| number(bytes).map(RoleId))
        .collect::<Option<Vec<RoleId>>>()?;
    Some(Right {
        id: i64::from_le_bytes(*id),
        grantee,
        scope: match scope {
            0 => Scope::Users(list),
            1 => Scope::Any,
            _ => Scope::AnyWithRoles(list),
        },
        admin: match admin {
            0 => Admin::None,
            1 => Admin::Option,
            _ => Admin::Only,
        },
        // Of no account when judging.
        grantor: grantee,
        as_superuser: false,
    })
}

/// Reads a note.
pub fn read<'a>(catalogs: &'a dyn World, note: &[u8]) -> Known<'a> {
    if let Some((&REACH, digest)) = note.split_first() {
        return Known::Reach(digest.try_into().unwrap_or([0; 32]));
    }
    let mut bytes = note.get(1..).unwrap_or_default();
    let count = number(&mut bytes).unwrap_or(0);
    let used = (0..count).map_while(|_| number(&mut bytes).map(RoleId)).collect();
    let mut rights = Vec::new();
    while let Some(right) = decode(&mut bytes) {
        rights.push(right);
    }
    Known::Rights(Elsewhere { catalogs, used, rights })
}

impl Elsewhere<'_> {
    /// A role that the impersonator could use and can't any more, where that may matter (A6). A superuser needs none.
    pub fn lost(&self, impersonator: RoleId) -> Option<RoleId> {
        if self.attributes(impersonator).superuser {
            return None;
        }
        let now = policy::usable(self, impersonator);
        self.used.iter().find(|role| !now.contains(role)).copied()
    }
}

impl World for Elsewhere<'_> {
    fn memberships(&self, member: RoleId) -> Vec<Membership> {
        self.catalogs.memberships(member)
    }

    fn attributes(&self, role: RoleId) -> Attributes {
        self.catalogs.attributes(role)
    }

    fn parameter_privileges(&self) -> Vec<ParameterPrivilege> {
        self.catalogs.parameter_privileges()
    }

    fn rights(&self, grantee: RoleId) -> Vec<Right> {
        let own = self.rights.iter().filter(|right| right.grantee == grantee);
        own.cloned().collect()
    }

    /// Of the other database's objects nothing is known here.
    fn possessions(&self, _: RoleId, _: &mut dyn FnMut(policy::Possession)) {}

    fn object(&self, object: policy::ObjectId) -> policy::ObjectName {
        self.catalogs.object(object)
    }

    fn name(&self, role: RoleId) -> String {
        self.catalogs.name(role)
    }
}
