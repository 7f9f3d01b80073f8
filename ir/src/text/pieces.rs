//! The pieces of a statement: types, values, attributes, literals.
//!
//! Lists that a node needs are short, so longer ones are refused.

use std::collections::BTreeSet;

use crate::{Origin, TensorType};

use super::{
    MAX_ELEMENTS, MAX_RANK,
    cursor::Cursor,
    error::{ParseError, ParseErrorKind},
    lexer::Token,
    ops::{Attribute, Value},
    types,
};

/// Attributes of one node: more than any has.
const MAX_ATTRIBUTES: usize = 16;

/// What stands behind `const`, before the type is known.
pub(super) enum Literal<'a> {
    /// Elements, and the bytes where they stand.
    List(Vec<(&'a str, usize)>),
    /// Every element is this number.
    Splat(f64),
    /// A seed.
    Rand(u64),
    /// A name in a weights file.
    File(String),
}

impl<'a> Cursor<'a> {
    /// `f32[1, 3]`.
    pub(super) fn ty(&mut self) -> Result<TensorType, ParseError> {
        let at = self.at;
        let name = self.word("a type such as `f32[1, 3]`")?;
        let Some(elem) = types::elem(name) else {
            let expected = "an element type: bool, u8, i32, i64, f32, f64 or codes such as qs4";
            return Err(ParseErrorKind::expected(expected, name).at(self.text, at));
        };
        let mut n_elements = 1u64;
        let mut rank = 0;
        let shape = self.list(('[', ']'), |cursor| {
            rank += 1;
            if rank > MAX_RANK {
                return cursor.limit("axes", MAX_RANK as u64);
            }
            let at = cursor.at;
            let extent: u64 = cursor.parsed("an extent", |text| text.parse().ok())?;
            // An extent of 0 does not hide the others: strides are made of them.
            n_elements = n_elements.saturating_mul(extent.max(1));
            if n_elements > MAX_ELEMENTS {
                let kind = ParseErrorKind::Limit { what: "elements", limit: MAX_ELEMENTS };
                return Err(kind.at(cursor.text, at));
            }
            usize::try_from(extent).or_else(|_| cursor.limit("elements", usize::MAX as u64))
        })?;
        Ok(TensorType { elem, shape })
    }

    /// `"a", "b"`.
    pub(super) fn origin(&mut self) -> Result<Origin, ParseError> {
        let mut names = vec![self.quoted()?];
        while self.eat(',')? {
            names.push(self.quoted()?);
        }
        Ok(names.into_iter().collect())
    }

    /// `%name` where a value is defined.
    pub(super) fn definition(&mut self) -> Result<(String, usize), ParseError> {
        let at = self.at;
        if !matches!(self.token, Token::Value(_, None)) {
            return self.expected("`%name`");
        }
        match self.advance()? {
            Token::Value(name, _) => Ok((name.into_owned(), at)),
            _ => self.expected("`%name`"),
        }
    }

    /// `%name` or `%name:slot` where a value is read.
    pub(super) fn reference(&mut self) -> Result<(String, u16, usize), ParseError> {
        let at = self.at;
        if !matches!(self.token, Token::Value(..)) {
            return self.expected("a value such as `%x`");
        }
        match self.advance()? {
            Token::Value(name, slot) => Ok((name.into_owned(), slot.unwrap_or(0), at)),
            _ => self.expected("a value such as `%x`"),
        }
    }

    /// What stands behind `const`.
    pub(super) fn literal(&mut self) -> Result<Literal<'a>, ParseError> {
        if self.is('[') {
            return self.list(('[', ']'), Self::number).map(Literal::List);
        }
        let kind = match self.token {
            Token::Word(kind @ ("splat" | "rand" | "file")) => kind,
            _ => return self.expected("`[elements]`, `splat(x)`, `rand(seed)` or `file(\"name\")`"),
        };
        self.advance()?;
        self.punct('(')?;
        let literal = match kind {
            "splat" => Literal::Splat(self.parsed("a number", types::f64_of)?),
            "rand" => Literal::Rand(self.parsed("a seed below 2^64", |text| text.parse().ok())?),
            _ => Literal::File(self.quoted()?),
        };
        self.punct(')')?;
        Ok(literal)
    }

    /// `{axis = 1, keep_dims}`.
    pub(super) fn attributes(&mut self) -> Result<Vec<Attribute<'a>>, ParseError> {
        let mut seen = BTreeSet::new();
        self.list(('{', '}'), |cursor| {
            let at = cursor.at;
            let key = cursor.word("an attribute")?;
            if !seen.insert(key) {
                let kind = ParseErrorKind::Duplicate { name: format!("attribute `{key}`") };
                return Err(kind.at(cursor.text, at));
            }
            if seen.len() > MAX_ATTRIBUTES {
                return cursor.limit("attributes", MAX_ATTRIBUTES as u64);
            }
            let value = if cursor.eat('=')? { cursor.attribute_value()? } else { Value::Flag };
            Ok(Attribute { key, value, at })
        })
    }

    fn attribute_value(&mut self) -> Result<Value<'a>, ParseError> {
        if self.is('[') {
            return self.numbers(('[', ']')).map(Value::List);
        }
        match self.token {
            Token::Number(_) | Token::Word("inf" | "nan") => Ok(Value::Number(self.number()?.0)),
            Token::Word(word) => {
                self.advance()?;
                let args = if self.is('(') { self.numbers(('(', ')'))? } else { Vec::new() };
                Ok(Value::Call(word, args))
            }
            _ => self.expected("a number, a list or a function"),
        }
    }

    /// At most [`MAX_RANK`] numbers.
    fn numbers(&mut self, brackets: (char, char)) -> Result<Vec<&'a str>, ParseError> {
        let mut n = 0;
        self.list(brackets, |cursor| {
            n += 1;
            if n > MAX_RANK { cursor.limit("numbers in an attribute", MAX_RANK as u64) } else { Ok(cursor.number()?.0) }
        })
    }
}
