//! Who may act as whom, as values: the rights (G1 to G7), the at-least criteria (S5, A1 to A6) and what GRANT and
//! REVOKE do to the rights.
//!
//! The crate knows nothing of a server. It asks a [`World`] for roles and rights, and answers with values that carry
//! their reasons: a [`Verdict`] with each [`Condition`] it rests on, or the [`Change`]s that a statement means.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod grant;
mod judge;
mod objects;
mod possession;
mod privilege;
mod quote;
mod reach;
mod redact;
mod render;
mod revoke;
mod right;
mod role;
mod support;
mod verdict;
mod world;

pub use grant::{grant, may_grant, Change, GrantError, GrantRequest, NewRight};
pub use judge::{judge, judge_with, Criteria, Rules};
pub use possession::{Grant, ObjectId, ObjectName, Possession, Privileges};
pub use privilege::{parse_privilege, ListError, Privilege};
pub use quote::{quote_identifier, quote_literal};
pub use reach::{usable, Reaches};
pub use redact::{redact, redact_arguments, secret_parameters, secrets};
pub use render::Rendered;
pub use revoke::{revoke, NotGranted, RevokeError, RevokeRequest, RevokeWhat, Revoked};
pub use right::{Admin, Right, Scope};
pub use role::{Attribute, Attributes, Impersonator, Membership, ParameterAction, ParameterPrivilege, RoleId, Target};
pub use verdict::{Condition, Criterion, Fact, Verdict};
pub use world::World;
