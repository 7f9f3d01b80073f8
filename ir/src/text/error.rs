//! What can be wrong with a text, and where.

use crate::{ConstError, TensorType, TypeError};

/// A text that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    /// Number of the character in its line, from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
pub enum ParseErrorKind {
    /// Something else was expected.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What the grammar wants.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A name without a definition above.
    #[error("`%{name}` is not defined above")]
    Undefined {
        /// The name.
        name: String,
    },
    /// An output without a definition.
    #[error("output `{name}` is `%{value}`, which no line defines")]
    UndefinedOutput {
        /// The output.
        name: String,
        /// The value.
        value: String,
    },
    /// A result that the node does not have.
    #[error("`%{name}` has {n_results} result(s), so `:{slot}` does not exist")]
    NoSuchResult {
        /// The node.
        name: String,
        /// How many results it has.
        n_results: usize,
        /// Which one was asked for.
        slot: u16,
    },
    /// A name that is defined twice.
    #[error("{name} is defined twice")]
    Duplicate {
        /// The name, with its sigil or quotes.
        name: String,
    },
    /// An attribute that the operation cannot do without.
    #[error("`{op}` needs attribute `{key}`{or}")]
    MissingAttribute {
        /// The operation.
        op: String,
        /// The attribute.
        key: &'static str,
        /// What would do as well.
        or: &'static str,
    },
    /// An attribute that the operation does not have.
    #[error("`{op}` has no attribute `{key}`")]
    UnknownAttribute {
        /// The operation.
        op: String,
        /// The attribute.
        key: String,
    },
    /// Operands do not fit.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The written type is not the inferred one.
    #[error("declared {declared}, inferred {inferred}")]
    Declared {
        /// Type in the text.
        declared: String,
        /// Type from the operands.
        inferred: String,
    },
    /// A list of elements that is not as long as its type says.
    #[error("a constant of type {ty} has {expected} elements, found {found}")]
    ElementCount {
        /// Declared type.
        ty: TensorType,
        /// What the type says.
        expected: usize,
        /// Length of the list.
        found: usize,
    },
    /// More than the parser accepts.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
    /// The elements of a `file(..)` constant were not given.
    #[error("the elements of constant `{name}`, {ty}, were not given")]
    NoWeights {
        /// Name in the text.
        name: String,
        /// Declared type.
        ty: TensorType,
    },
    /// The elements of a `file(..)` constant have another type.
    #[error("the elements of constant `{name}` are {found}, declared {declared}")]
    WeightsType {
        /// Name in the text.
        name: String,
        /// Type of what was given.
        found: TensorType,
        /// Declared type.
        declared: TensorType,
    },
    /// The elements of a constant cannot be made.
    #[error(transparent)]
    Const(#[from] ConstError),
}

impl ParseErrorKind {
    /// Something else was expected. What stands there may be long: it is cut.
    pub(super) fn expected(expected: impl Into<String>, found: &str) -> Self {
        let mut short: String = found.chars().take(40).collect();
        if short.len() < found.len() {
            short.push_str("...");
        }
        let found = if found.is_empty() { "the end of the text".to_owned() } else { format!("`{short}`") };
        Self::Expected { expected: expected.into(), found }
    }

    /// At byte `at` of `text`.
    pub(super) fn at(self, text: &str, at: usize) -> ParseError {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
        ParseError { line: before.matches('\n').count() + 1, column, kind: self }
    }
}
