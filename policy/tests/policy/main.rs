//! The rules of SPEC.md, sections 2 and 3, without a server.

mod granting;
mod judging;
mod large;
mod objects;
mod oracle;
mod properties;
mod random;
mod rendering;
mod revoking;
mod scenario;
mod town;
