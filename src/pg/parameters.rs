//! The values of a statement's parameters, as text (L3).
//!
//! Only the server's own output functions are called. A value of a type that somebody else's code prints is shown as
//! its type in angle brackets: that code may raise, and whatever it does would be done in the name of the audit. So is
//! a value whose text would be too long to be made for the sake of its beginning.

use pgrx::pg_sys::{self, Oid};
use std::cell::RefCell;
use std::ffi::CStr;

/// Values larger than that, of types that aren't text, are not printed.
const LARGEST: usize = 8192;

/// The external parameters of a statement that is about to run, to be read when they are wanted.
#[derive(Clone, Copy)]
pub struct Parameters(pg_sys::ParamListInfo);

impl Parameters {
    /// # Safety
    /// Null, or a list that stays while this is used.
    pub unsafe fn of(list: pg_sys::ParamListInfo) -> Parameters {
        // SAFETY: the caller's promise. Lists that are computed on demand are the variables of a function, most of
        // which the statement doesn't use.
        let usable = unsafe { !list.is_null() && (*list).paramFetch.is_none() && (*list).numParams > 0 };
        Parameters(if usable { list } else { std::ptr::null_mut() })
    }

    pub fn count(self) -> usize {
        if self.0.is_null() {
            return 0;
        }
        // SAFETY: the promise made when this was made.
        usize::try_from(unsafe { (*self.0).numParams }).unwrap_or(0)
    }

    /// Calls `take` with the number of each, from 0, and its text: a beginning that is longer than `limit` bytes when the
    /// text is. Looks into catalogs, and stops when `take` says so.
    pub fn read(self, limit: usize, take: &mut dyn FnMut(usize, Option<&[u8]>) -> bool) {
        for place in 0..self.count() {
            // SAFETY: the list has that many parameters. One without a type was never given.
            let goes_on = unsafe {
                let parameter = &*(*self.0).params.as_ptr().add(place);
                if parameter.isnull || parameter.ptype == Oid::INVALID {
                    take(place, None)
                } else {
                    match printer(parameter.ptype) {
                        Printer::Text => take_text(parameter.value, limit, &mut |text| take(place, Some(text))),
                        Printer::Function { function, variable } => {
                            if variable && pg_sys::toast_raw_datum_size(parameter.value) > LARGEST {
                                take(place, Some(&in_brackets(parameter.ptype)))
                            } else {
                                let text = pg_sys::OidOutputFunctionCall(function, parameter.value);
                                let goes_on = take(place, Some(CStr::from_ptr(text).to_bytes()));
                                pg_sys::pfree(text.cast());
                                goes_on
                            }
                        }
                        Printer::None => take(place, Some(&in_brackets(parameter.ptype))),
                    }
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

fn in_brackets(kind: Oid) -> Vec<u8> {
    // SAFETY: gives a palloc'ed string for whatever OID.
    let name = unsafe { CStr::from_ptr(pg_sys::format_type_be(kind)) };
    [b"<", name.to_bytes(), b">"].concat()
}

/// The beginning of a value that is text already, without making a copy of all of it.
unsafe fn take_text(value: pg_sys::Datum, limit: usize, take: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    // SAFETY: a varlena of the types that `printer` calls text; the slice is palloc'ed.
    unsafe {
        let wanted = i32::try_from(limit + 1).unwrap_or(i32::MAX);
        let slice = pg_sys::pg_detoast_datum_slice(value.cast_mut_ptr(), 0, wanted);
        let text = std::slice::from_raw_parts(
            pgrx::varlena::vardata_any(slice).cast::<u8>(),
            pgrx::varlena::varsize_any_exhdr(slice),
        );
        let goes_on = take(text);
        pg_sys::pfree(slice.cast());
        goes_on
    }
}

#[derive(Clone, Copy)]
enum Printer {
    /// The value is its text.
    Text,
    Function {
        function: Oid,
        variable: bool,
    },
    None,
}

/// How values of a type are printed. What is the server's own stays as it is.
fn printer(kind: Oid) -> Printer {
    // A few types make up most parameters.
    thread_local! { static OWN: RefCell<[Option<(Oid, Printer)>; 32]> = const { RefCell::new([None; 32]) }; }
    let place = kind.to_u32() as usize % 32;
    match OWN.with_borrow(|known| known[place]) {
        Some((known, printer)) if known == kind => return printer,
        _ => {}
    }
    let found = find_printer(kind);
    if is_own(kind) {
        OWN.with_borrow_mut(|known| known[place] = Some((kind, found)));
    }
    found
}

fn is_own(object: Oid) -> bool {
    object.to_u32() < pg_sys::FirstNormalObjectId
}

fn find_printer(kind: Oid) -> Printer {
    const TEXTS: [Oid; 5] = [
        pg_sys::TEXTOID,
        pg_sys::VARCHAROID,
        pg_sys::BPCHAROID,
        pg_sys::JSONOID,
        pg_sys::XMLOID,
    ];
    // SAFETY: look-ups for a type that a parameter has, in a transaction.
    unsafe {
        // A domain prints as what it is made of.
        let base = pg_sys::getBaseType(kind);
        if TEXTS.contains(&base) {
            return Printer::Text;
        }
        if !prints_safely(base) {
            return Printer::None;
        }
        let (mut function, mut variable) = (Oid::INVALID, false);
        pg_sys::getTypeOutputInfo(base, &raw mut function, &raw mut variable);
        Printer::Function { function, variable }
    }
}

/// Whether printing calls nothing but the server's own functions. Rows print their columns, and arrays their elements.
unsafe fn prints_safely(base: Oid) -> bool {
    // SAFETY: as above.
    unsafe {
        let is_enum = pg_sys::get_typtype(base) as u8 == pg_sys::TYPTYPE_ENUM;
        let element = pg_sys::get_element_type(base);
        if element != Oid::INVALID {
            return prints_safely(pg_sys::getBaseType(element));
        }
        let plain = [pg_sys::TYPTYPE_BASE, pg_sys::TYPTYPE_RANGE, pg_sys::TYPTYPE_MULTIRANGE]
            .contains(&(pg_sys::get_typtype(base) as u8));
        is_enum || (is_own(base) && plain)
    }
}
