//! What a utility statement would put beside the extension's own objects: things in its schema, a function of
//! `setuser()`'s name in `pg_catalog`, code that the server would load (X4).

use super::nodes::{list_pointers, tag};
use pgrx::pg_sys::{self, NodeTag, Oid};
use std::ffi::{c_char, CStr};

/// Whether statements of this kind create something. Neither raises nor waits.
pub fn concerns(kind: NodeTag) -> bool {
    matches!(
        kind,
        NodeTag::T_CreateStmt
            | NodeTag::T_CreateForeignTableStmt
            | NodeTag::T_ViewStmt
            | NodeTag::T_CreateTableAsStmt
            | NodeTag::T_CreateSeqStmt
            | NodeTag::T_CompositeTypeStmt
            | NodeTag::T_CreateFunctionStmt
            | NodeTag::T_CreateEnumStmt
            | NodeTag::T_CreateDomainStmt
            | NodeTag::T_CreateRangeStmt
            | NodeTag::T_DefineStmt
            | NodeTag::T_AlterObjectSchemaStmt
            | NodeTag::T_RenameStmt
            | NodeTag::T_AlterDefaultPrivilegesStmt
    )
}

/// What of the product a statement's new object would concern, if anything.
///
/// # Safety
/// `node` is a utility statement.
pub unsafe fn changed_by(node: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: each node is tested for its tag before it is read as that node.
    unsafe {
        match tag(node)? {
            NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt => {
                relation((*node.cast::<pg_sys::CreateStmt>()).relation)
            }
            NodeTag::T_ViewStmt => relation((*node.cast::<pg_sys::ViewStmt>()).view),
            NodeTag::T_CreateTableAsStmt => relation((*(*node.cast::<pg_sys::CreateTableAsStmt>()).into).rel),
            NodeTag::T_CreateSeqStmt => relation((*node.cast::<pg_sys::CreateSeqStmt>()).sequence),
            NodeTag::T_CompositeTypeStmt => relation((*node.cast::<pg_sys::CompositeTypeStmt>()).typevar),
            NodeTag::T_CreateEnumStmt => named((*node.cast::<pg_sys::CreateEnumStmt>()).typeName),
            NodeTag::T_CreateDomainStmt => named((*node.cast::<pg_sys::CreateDomainStmt>()).domainname),
            NodeTag::T_CreateRangeStmt => named((*node.cast::<pg_sys::CreateRangeStmt>()).typeName),
            NodeTag::T_DefineStmt => named((*node.cast::<pg_sys::DefineStmt>()).defnames),
            NodeTag::T_CreateFunctionStmt => {
                let create = &*node.cast::<pg_sys::CreateFunctionStmt>();
                loads(create.options).or_else(|| named(create.funcname))
            }
            NodeTag::T_AlterObjectSchemaStmt => {
                let alter = &*node.cast::<pg_sys::AlterObjectSchemaStmt>();
                let schema = pg_sys::get_namespace_oid(alter.newschema, true);
                let function = tag(alter.object) == Some(NodeTag::T_ObjectWithArgs);
                let name = if function {
                    last((*alter.object.cast::<pg_sys::ObjectWithArgs>()).objname)
                } else {
                    std::ptr::null()
                };
                in_schema(schema, name)
            }
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                let function = tag(rename.object) == Some(NodeTag::T_ObjectWithArgs);
                if !function || rename.newname.is_null() || CStr::from_ptr(rename.newname) != c"setuser" {
                    return None;
                }
                let (mut schema, mut name) = (std::ptr::null_mut(), std::ptr::null_mut());
                let names = (*rename.object.cast::<pg_sys::ObjectWithArgs>()).objname;
                pg_sys::DeconstructQualifiedName(names, &raw mut schema, &raw mut name);
                // Without a schema it may be any: nobody needs a function of that name.
                let elsewhere = !schema.is_null() && CStr::from_ptr(schema) != c"pg_catalog";
                (!elsewhere).then(|| SETUSER.to_owned())
            }
            NodeTag::T_AlterDefaultPrivilegesStmt => {
                let options = (*node.cast::<pg_sys::AlterDefaultPrivilegesStmt>()).options;
                list_pointers(options).find_map(|option| {
                    let option = &*option.cast::<pg_sys::DefElem>();
                    if CStr::from_ptr(option.defname) != c"schemas" {
                        return None;
                    }
                    list_pointers(option.arg.cast())
                        .any(|name| CStr::from_ptr((*name.cast::<pg_sys::String>()).sval) == c"impersonate")
                        .then(|| SCHEMA.to_owned())
                })
            }
            _ => None,
        }
    }
}

const SCHEMA: &str = "schema impersonate";
const SETUSER: &str = "what is called setuser";

/// A function in C, or one that gives a name to one of the server's own: a way round LOAD. An extension's script may.
unsafe fn loads(options: *mut pg_sys::List) -> Option<String> {
    // SAFETY: options of CREATE FUNCTION are DefElems; look-ups with missing_ok.
    unsafe {
        if pg_sys::creating_extension {
            return None;
        }
        list_pointers(options).find_map(|option| {
            let option = option.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*option).defname) != c"language" || (*option).arg.is_null() {
                return None;
            }
            // Whatever it is called: pg_language.dat gives these two their OIDs.
            let language = u32::from(pg_sys::get_language_oid(pg_sys::defGetString(option), true));
            [12, 13]
                .contains(&language)
                .then(|| "the libraries that are loaded".to_owned())
        })
    }
}

/// The last of a list of names.
unsafe fn last(names: *mut pg_sys::List) -> *const c_char {
    // SAFETY: a list of strings.
    unsafe {
        list_pointers(names)
            .last()
            .map_or(std::ptr::null(), |name| (*name.cast::<pg_sys::String>()).sval)
    }
}

unsafe fn relation(name: *mut pg_sys::RangeVar) -> Option<String> {
    // SAFETY: null or a RangeVar, whose schema may be null.
    unsafe {
        if name.is_null() || (*name).relpersistence == pg_sys::RELPERSISTENCE_TEMP as c_char {
            return None;
        }
        in_schema(schema_or_current((*name).schemaname), std::ptr::null())
    }
}

unsafe fn named(names: *mut pg_sys::List) -> Option<String> {
    // SAFETY: a list of strings, one to three; more is an error that the server would raise as well.
    unsafe {
        let (mut schema, mut name) = (std::ptr::null_mut(), std::ptr::null_mut());
        pg_sys::DeconstructQualifiedName(names, &raw mut schema, &raw mut name);
        in_schema(schema_or_current(schema), name)
    }
}

/// The schema of that name, or the one in which things are created now.
///
/// # Safety
/// `name` is null or a string.
pub(super) unsafe fn schema_or_current(name: *const c_char) -> Oid {
    // SAFETY: look-ups with missing_ok; the list is of OIDs and a copy.
    unsafe {
        if !name.is_null() {
            return pg_sys::get_namespace_oid(name, true);
        }
        let path = pg_sys::fetch_search_path(false);
        if path.is_null() || (*path).length == 0 {
            Oid::INVALID
        } else {
            (*(*path).elements).oid_value
        }
    }
}

unsafe fn in_schema(schema: Oid, name: *const c_char) -> Option<String> {
    // SAFETY: a look-up with missing_ok; the name is null or a string.
    unsafe {
        if schema == Oid::INVALID {
            return None;
        }
        if schema == pg_sys::get_namespace_oid(c"impersonate".as_ptr(), true) {
            // Its own script, in CREATE or ALTER EXTENSION, is refused as that.
            return Some(SCHEMA.to_owned());
        }
        let setuser = !name.is_null() && CStr::from_ptr(name) == c"setuser";
        (setuser && schema == Oid::from(pg_sys::PG_CATALOG_NAMESPACE)).then(|| SETUSER.to_owned())
    }
}
