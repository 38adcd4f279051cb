//! What is known at a token of a statement: of the statement, and of each parenthesis that is open.

use std::rc::Rc;

/// What the words so far say of a constant to come.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum State {
    #[default]
    Nothing,
    /// A secret was named. `at_once`: nothing has come since.
    Named { at_once: bool, by_string: bool },
    /// An expression that a secret is set to or compared with. `complete`: the next word would be beyond it.
    Expression { complete: bool },
}

/// A parenthesis, bracket or CASE; or the statement itself.
#[derive(Default)]
pub(super) struct Frame {
    pub state: State,
    /// Every constant in it is secret.
    pub all: bool,
    pub is_case: bool,
    /// Its own token.
    pub begin: usize,
    /// Where the current item of the list begins, and how many came before.
    pub item: usize,
    pub number: usize,
    /// Something is compared in the item.
    pub compares: bool,
    /// The items that are secret, by number: of setuser(), of a row to be inserted.
    pub secret_items: Rc<[usize]>,
    /// VALUES has come.
    pub values: bool,
    /// As long as it holds nothing but names: those that are a secret's, by number.
    pub more_than_names: bool,
    pub secret_names: Vec<usize>,
    pub names_secret: bool,
}

impl Frame {
    pub fn begin_item(&mut self, at: usize) {
        self.item = at;
        self.compares = false;
    }
}

#[derive(Default)]
pub(super) struct Statement {
    pub begin: usize,
    /// Every constant from here on is secret.
    pub all: bool,
    /// CREATE or ALTER of a role.
    pub of_role: bool,
    pub has_columns: bool,
    pub updates: bool,
    /// A secret's name was given as a string, as in a table of settings.
    pub names_by_string: bool,
    pub columns: Option<Rc<[usize]>>,
    pub values: Option<usize>,
}
