//! Options of passes in text: `insert-fake-quant(bits=w4a4, edge-bits=4)`.

use std::{collections::BTreeMap, str::FromStr};

use crate::PassError;

/// Options of one pass, by name. Whoever builds the pass takes them out one by
/// one and calls [`PassOptions::finish`], which refuses those that are left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    pass: String,
    values: BTreeMap<String, String>,
}

impl PassOptions {
    /// No options for `pass`.
    pub fn none(pass: impl Into<String>) -> Self {
        Self { pass: pass.into(), values: BTreeMap::new() }
    }

    /// Name of the pass.
    pub fn pass(&self) -> &str {
        &self.pass
    }

    /// Adds an option.
    pub fn set(&mut self, option: impl Into<String>, value: impl Into<String>) {
        self.values.insert(option.into(), value.into());
    }

    /// Reads a list such as `a, b(x=1, y=2), c`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, PassError> {
        split_outside_parentheses(text).map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, PassError> {
        let text = text.trim();
        let (name, rest) = match text.split_once('(') {
            Some((name, rest)) => (name.trim(), rest.trim_end()),
            None => return Ok(Self::none(text)),
        };
        let bad = |option: &str| PassError::Options {
            pass: name.to_owned(),
            option: option.to_owned(),
            reason: "expected `pass(option=value, ..)`".to_owned(),
        };
        let inside = rest.strip_suffix(')').ok_or_else(|| bad(rest))?;
        let mut options = Self::none(name);
        for pair in inside.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (option, value) = pair.split_once('=').ok_or_else(|| bad(pair))?;
            options.set(option.trim(), value.trim());
        }
        Ok(options)
    }

    /// Takes an option out, or its default if it is not given.
    pub fn take<T: FromStr>(&mut self, option: &str, default: T, accepted: &str) -> Result<T, PassError> {
        match self.values.remove(option) {
            None => Ok(default),
            Some(value) => {
                value.parse().map_err(|_| self.error(option, format!("expected {accepted}, found `{value}`")))
            }
        }
    }

    /// Refuses options that nobody took.
    pub fn finish(&self) -> Result<(), PassError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(option) => Err(self.error(option, "the pass has no such option".to_owned())),
        }
    }

    /// An error about one option.
    pub fn error(&self, option: &str, reason: String) -> PassError {
        PassError::Options { pass: self.pass.clone(), option: option.to_owned(), reason }
    }
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    let parts = text.split(move |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_names_and_options() {
        let list = PassOptions::parse_list("a, b(x=1, y = two),c").unwrap();
        assert_eq!(list.iter().map(PassOptions::pass).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(list[1].clone().take("x", 0, "a number").unwrap(), 1);
        assert_eq!(list[1].clone().take("y", String::new(), "text").unwrap(), "two");
    }

    #[test]
    fn bad_options_are_named() {
        let mut options = PassOptions::parse_list("b(x=one)").unwrap().remove(0);
        assert_eq!(options.finish().unwrap_err().to_string(), "option `x` of pass `b`: the pass has no such option");
        assert_eq!(
            options.take("x", 0u8, "a number of bits").unwrap_err().to_string(),
            "option `x` of pass `b`: expected a number of bits, found `one`"
        );
        assert!(PassOptions::parse_list("b(x=1").is_err());
    }
}
