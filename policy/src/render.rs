//! Conditions in words: the rows of `impersonate.explain_setuser`, and the DETAIL and HINT of a refusal (S6).

use crate::possession::{ObjectId, Privileges};
use crate::quote::{quote_identifier, quote_literal};
use crate::right::{Admin, Right, Scope};
use crate::role::RoleId;
use crate::verdict::{Condition, Criterion, Fact};
use crate::world::World;
use std::collections::BTreeSet;

/// A condition for people to read.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Rendered {
    /// The criterion's number.
    pub criterion: &'static str,
    /// The role, attribute, parameter, privilege or object that it is about.
    pub subject: String,
    /// What the target asks for.
    pub required: String,
    /// What the impersonator has of it.
    pub held: String,
    /// Whether that is enough.
    pub ok: bool,
    /// The statement that would cure it, if it needs a cure and one statement can.
    pub remedy: Option<String>,
    /// A whole sentence, for an error's DETAIL.
    pub sentence: String,
}

impl Condition {
    /// This condition in words; `world` is asked for names alone.
    pub fn render(&self, world: &dyn World) -> Rendered {
        let words = Words { world, condition: self };
        let (subject, required, held) = words.row();
        let criterion = self.criterion.as_str();
        Rendered {
            criterion,
            subject,
            required,
            held,
            ok: self.ok,
            remedy: if self.ok { None } else { words.remedy() },
            sentence: match self.ok {
                true => format!("Criterion {criterion} is met."),
                false => format!("Criterion {criterion}: {}.", words.complaint()),
            },
        }
    }
}

/// The predefined role that the owner of a database is in, and nobody else.
const DATABASE_OWNER: &str = "pg_database_owner";

struct Words<'a> {
    world: &'a dyn World,
    condition: &'a Condition,
}

impl Words<'_> {
    /// Subject, required, held.
    fn row(&self) -> (String, String, String) {
        let ok = self.condition.ok;
        let (impersonator, target) = (self.condition.impersonator.0, self.condition.target.0);
        let row = |subject: &str, required: &str, held: &str| (subject.into(), required.into(), held.into());
        match &self.condition.fact {
            Fact::Oneself => row(&self.world.name(target), self.what_is_judged(), "is the target"),
            Fact::Superuser => row(&self.world.name(impersonator), self.what_is_judged(), "superuser"),
            Fact::NothingRequired => row(&self.world.name(target), "nothing", "not needed"),
            Fact::Login => row(&self.world.name(target), "LOGIN", if ok { "LOGIN" } else { "NOLOGIN" }),
            Fact::Unexpired => row(&self.world.name(target), "valid", if ok { "valid" } else { "expired" }),
            Fact::Right { covering, counted } => {
                let held = match covering {
                    Some(right) => self.right(right),
                    None => or_nothing(counted.iter().map(|right| self.right(right)).collect(), "; "),
                };
                ("SET USER".into(), format!("users ({})", self.identifier(target)), held)
            }
            Fact::Role {
                role, unusable_member, ..
            } => {
                let held = match (ok, unusable_member) {
                    (true, _) => "role",
                    (false, true) => "role without INHERIT and SET",
                    (false, false) => "nothing",
                };
                row(&self.world.name(*role), "role", held)
            }
            Fact::AdminOf { role, usable, .. } => {
                let held = match (ok, usable) {
                    (true, _) => "role with admin option",
                    (false, true) => "role",
                    (false, false) => "nothing",
                };
                row(&self.world.name(*role), "role with admin option", held)
            }
            Fact::Attribute(attribute) => {
                let keyword = attribute.keyword();
                let held = if ok {
                    keyword.to_string()
                } else {
                    format!("NO{keyword}")
                };
                (keyword.into(), keyword.into(), held)
            }
            Fact::Parameter {
                parameter,
                action,
                grantable,
                held,
            } => {
                let required = format!("{}{}", action.keyword(), with_grant_option(*grantable));
                let held = match (ok, held) {
                    (true, _) => required.clone(),
                    (false, true) => action.keyword().to_string(),
                    (false, false) => "nothing".to_string(),
                };
                (parameter.clone(), required, held)
            }
            Fact::Any { required, held } => {
                let held = held.map_or("nothing".into(), |held| any(held).to_string());
                ("SET USER ANY".into(), any(*required).into(), held)
            }
            Fact::Users { required, missing } => self.lists("SET USER", required, missing),
            Fact::WithRoles { required, missing } => self.lists("SET USER ANY WITH ROLES", required, missing),
            Fact::TargetHeld => row(&self.world.name(target), self.what_is_judged(), "role"),
            Fact::Objects { count } => row(&self.world.name(target), &of_objects(*count), "as much"),
            Fact::Owned { first, others, .. } => row(&self.objects(*first, *others), "ownership", "nothing"),
            Fact::Unlisted { .. } => row(&self.world.name(target), "role", "nothing"),
            Fact::ObjectPrivileges {
                object,
                missing,
                grantable,
                held,
            } => {
                let required = format!("{missing}{}", with_grant_option(*grantable));
                let held = match held.is_empty() {
                    true => "nothing".to_string(),
                    false => held.to_string(),
                };
                (self.world.object(*object).description, required, held)
            }
            Fact::Policy { policy, .. } => row(&self.world.object(*policy).description, "policy for it", "nothing"),
            Fact::MoreObjects { count } => row(&self.world.name(target), &of_objects(*count), "not as much"),
        }
    }

    fn objects(&self, first: ObjectId, others: usize) -> String {
        let first = self.world.object(first).description;
        match others {
            0 => first,
            1 => format!("{first} and 1 more object"),
            _ => format!("{first} and {others} more objects"),
        }
    }

    fn lists(&self, subject: &str, required: &[RoleId], missing: &[RoleId]) -> (String, String, String) {
        let held = required.iter().filter(|role| !missing.contains(role));
        let held = or_nothing(held.map(|&role| self.identifier(role)).collect(), ", ");
        (subject.into(), self.identifiers(required), held)
    }

    /// For those of whom nothing in particular is asked.
    fn what_is_judged(&self) -> &'static str {
        match self.condition.criterion {
            Criterion::S5 => "LOGIN",
            Criterion::A1 => "SET USER",
            Criterion::A2 => "roles",
            Criterion::A3 => "roles with admin option",
            Criterion::A4 => "attributes and parameter privileges",
            Criterion::A5 => "SET USER rights",
            Criterion::A6 => "objects and privileges on them",
        }
    }

    /// What is amiss, without the full stop.
    fn complaint(&self) -> String {
        let impersonator = self.quoted(self.condition.impersonator.0);
        let target = self.quoted(self.condition.target.0);
        match &self.condition.fact {
            Fact::Oneself | Fact::Superuser | Fact::NothingRequired => format!("{impersonator} may act as {target}"),
            Fact::Login => format!("role {target} is not permitted to log in"),
            Fact::Unexpired => format!("role {target} has expired"),
            Fact::Right { counted, .. } if counted.iter().any(|right| right.admin == Admin::Only) => {
                format!("{impersonator} may grant SET USER, but holds no right to use it over {target}")
            }
            Fact::Right { .. } => format!("{impersonator} holds no SET USER right over {target}"),
            Fact::Role {
                role,
                unusable_member: true,
                ..
            } => {
                let role = self.quoted(*role);
                format!("{impersonator} holds role {role} without INHERIT and SET, while {target} can use it")
            }
            Fact::Role { role, .. } => {
                format!(
                    "{impersonator} does not hold role {}, which {target} holds",
                    self.quoted(*role)
                )
            }
            Fact::AdminOf { role, .. } => {
                let role = self.quoted(*role);
                format!("{impersonator} does not hold role {role} with admin option, which {target} does")
            }
            Fact::Attribute(attribute) => {
                format!(
                    "{impersonator} does not have attribute {}, which {target} has",
                    attribute.keyword()
                )
            }
            Fact::Parameter {
                parameter,
                action,
                grantable,
                ..
            } => {
                let (action, option) = (action.keyword(), if *grantable { " with grant option" } else { "" });
                format!(
                    "{impersonator} does not have {action} on parameter \"{parameter}\"{option}, which {target} has"
                )
            }
            Fact::Any { required, .. } => {
                let option = match required {
                    Admin::None => "",
                    Admin::Option => " with admin option",
                    Admin::Only => " to grant it",
                };
                format!("{impersonator} does not hold SET USER over any user{option}, which {target} does")
            }
            Fact::Users { missing, .. } => {
                format!(
                    "{impersonator} does not hold SET USER over {}, which {target} does",
                    self.quoted_list(missing)
                )
            }
            Fact::WithRoles { missing, .. } => {
                let missing = self.quoted_list(missing);
                format!("{impersonator} does not hold SET USER ANY WITH ROLES over {missing}, which {target} does")
            }
            Fact::TargetHeld | Fact::Objects { .. } => format!("{impersonator} may act as {target}"),
            Fact::Owned { first, others, .. } => {
                let objects = self.objects(*first, *others);
                format!("{impersonator} does not hold role {target}, which owns {objects}")
            }
            Fact::Unlisted { .. } => {
                format!("{impersonator} does not hold role {target}, and what that was granted is not listed")
            }
            Fact::ObjectPrivileges {
                object,
                missing,
                grantable,
                ..
            } => {
                let description = self.world.object(*object).description;
                let option = if *grantable { " with grant option" } else { "" };
                let word = if missing.keywords().len() > 1 {
                    "privileges"
                } else {
                    "privilege"
                };
                format!("{impersonator} does not have {word} {missing} on {description}{option}, which {target} has")
            }
            Fact::Policy { policy, .. } => {
                let description = self.world.object(*policy).description;
                format!("{impersonator} is not one of the roles of {description}, which {target} is")
            }
            Fact::MoreObjects { count } => {
                format!("{impersonator} lacks {}, which {target} has", of_objects(*count))
            }
        }
    }

    /// The one of the target's roles, itself included, that is a direct member of `role`.
    fn member_of(&self, role: RoleId) -> Option<RoleId> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![self.condition.target.0]);
        while let Some(member) = open.pop() {
            if !seen.insert(member) {
                continue;
            }
            let memberships = self.world.memberships(member);
            if memberships.iter().any(|membership| membership.role == role) {
                return Some(member);
            }
            open.extend(memberships.iter().map(|membership| membership.role));
        }
        None
    }

    /// The statement that gives just what is missing.
    fn remedy(&self) -> Option<String> {
        let impersonator = self.identifier(self.condition.impersonator.0);
        let target = self.identifier(self.condition.target.0);
        Some(match &self.condition.fact {
            Fact::Oneself | Fact::Superuser | Fact::NothingRequired => return None,
            Fact::Login => format!("ALTER ROLE {target} LOGIN"),
            Fact::Unexpired => format!("ALTER ROLE {target} VALID UNTIL 'infinity'"),
            Fact::Right { .. } => format!("GRANT \"SET USER\" ({target}) TO {impersonator}"),
            Fact::TargetHeld | Fact::Objects { .. } | Fact::MoreObjects { .. } => return None,
            Fact::Role { circular: true, .. }
            | Fact::AdminOf { circular: true, .. }
            | Fact::Owned { circular: true, .. }
            | Fact::Unlisted { circular: true, .. } => return None,
            // Nobody can be made a member of it: it is the owner of the database that is in it.
            Fact::Role { role, .. } if self.world.name(*role) == DATABASE_OWNER => {
                let owner = self.member_of(*role)?;
                format!("GRANT {} TO {impersonator}", self.identifier(owner))
            }
            Fact::Role {
                role, unusable_member, ..
            } => {
                let option = if *unusable_member { " WITH SET TRUE" } else { "" };
                format!("GRANT {} TO {impersonator}{option}", self.identifier(*role))
            }
            Fact::AdminOf { role, .. } => {
                format!("GRANT {} TO {impersonator} WITH ADMIN OPTION", self.identifier(*role))
            }
            Fact::Attribute(attribute) => format!("ALTER ROLE {impersonator} {}", attribute.keyword()),
            Fact::Parameter {
                parameter,
                action,
                grantable,
                ..
            } => {
                // Each part of a dotted name is an identifier of its own.
                let parameter = parameter.split('.').map(quote_identifier).collect::<Vec<_>>().join(".");
                let (action, option) = (action.keyword(), with_grant_option(*grantable));
                format!("GRANT {action} ON PARAMETER {parameter} TO {impersonator}{option}")
            }
            Fact::Any {
                required: Admin::None, ..
            } => format!("GRANT \"SET USER\" TO {impersonator}"),
            Fact::Any {
                required: Admin::Only,
                held: None,
            } => {
                // GRANT can say it from 16 on only.
                format!(
                    "SELECT impersonate.grant_set_user({}, admin => 'only')",
                    quote_literal(&impersonator)
                )
            }
            Fact::Any { held, .. } if held.is_some_and(Admin::grants) => {
                format!("GRANT \"SET USER\" TO {impersonator}")
            }
            Fact::Any { .. } => format!("GRANT \"SET USER\" TO {impersonator} WITH ADMIN OPTION"),
            Fact::Users { missing, .. } => {
                format!("GRANT \"SET USER\" ({}) TO {impersonator}", self.identifiers(missing))
            }
            Fact::WithRoles { missing, .. } => {
                format!(
                    "GRANT \"SET USER ANY WITH ROLES\" ({}) TO {impersonator}",
                    self.identifiers(missing)
                )
            }
            Fact::Owned { unusable_member, .. } | Fact::Unlisted { unusable_member, .. } => {
                let option = if *unusable_member { " WITH SET TRUE" } else { "" };
                format!("GRANT {target} TO {impersonator}{option}")
            }
            Fact::ObjectPrivileges {
                object,
                missing,
                grantable,
                ..
            } => {
                let option = with_grant_option(*grantable);
                let (privileges, on) = self.granting(*object, *missing)?;
                format!("GRANT {privileges} ON {on} TO {impersonator}{option}")
            }
            // ALTER POLICY has no way to add one.
            Fact::Policy { policy, roles } => {
                let on = self.world.object(*policy).in_statement?;
                format!("ALTER POLICY {on} TO {}, {impersonator}", self.identifiers(roles))
            }
        })
    }

    /// The privileges and the object, as GRANT has them.
    fn granting(&self, object: ObjectId, privileges: Privileges) -> Option<(String, String)> {
        let name = self.world.object(object);
        let keywords: Option<Vec<&str>> = privileges.keywords().into_iter().collect();
        let privileges: Vec<String> = keywords?
            .into_iter()
            .map(|keyword| match &name.column {
                Some(column) => format!("{keyword} ({column})"),
                None => keyword.to_string(),
            })
            .collect();
        Some((privileges.join(", "), name.in_statement?))
    }

    fn right(&self, right: &Right) -> String {
        match &right.scope {
            Scope::Any => any(right.admin).to_string(),
            Scope::Users(list) | Scope::AnyWithRoles(list) => {
                format!("{} ({})", right.scope.as_str(), self.identifiers(list))
            }
        }
    }

    fn identifier(&self, role: RoleId) -> String {
        quote_identifier(&self.world.name(role))
    }

    fn identifiers(&self, roles: &[RoleId]) -> String {
        roles
            .iter()
            .map(|&role| self.identifier(role))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// As Postgres' messages have names: in double quotes, whatever is in them.
    fn quoted(&self, role: RoleId) -> String {
        format!("\"{}\"", self.world.name(role))
    }

    fn quoted_list(&self, roles: &[RoleId]) -> String {
        roles
            .iter()
            .map(|&role| self.quoted(role))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn any(admin: Admin) -> &'static str {
    match admin {
        Admin::None => "any",
        Admin::Option => "any with admin option",
        Admin::Only => "any with admin only",
    }
}

fn of_objects(count: usize) -> String {
    match count {
        1 => "1 object or privileges on it".to_string(),
        _ => format!("{count} objects or privileges on them"),
    }
}

fn with_grant_option(grantable: bool) -> &'static str {
    if grantable {
        " WITH GRANT OPTION"
    } else {
        ""
    }
}

fn or_nothing(parts: Vec<String>, separator: &str) -> String {
    if parts.is_empty() {
        "nothing".to_string()
    } else {
        parts.join(separator)
    }
}
