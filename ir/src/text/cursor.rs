//! Walks over the tokens of a text, one ahead.

use super::{
    error::{ParseError, ParseErrorKind},
    lexer::{Lexer, Token, quote},
};

/// The next token and what comes after it.
pub(super) struct Cursor<'a> {
    /// All of the text, for the positions of errors.
    pub(super) text: &'a str,
    pub(super) lexer: Lexer<'a>,
    /// The next token.
    pub(super) token: Token<'a>,
    /// The byte where it starts.
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of a text.
    pub(super) fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer::new(text);
        let (token, at) = lexer.next()?;
        Ok(Self { text, lexer, token, at })
    }

    /// Takes the next token.
    pub(super) fn advance(&mut self) -> Result<Token<'a>, ParseError> {
        let (token, at) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    /// The error that something else was expected where the next token stands.
    pub(super) fn expected<T>(&self, expected: impl Into<String>) -> Result<T, ParseError> {
        let found = match &self.token {
            Token::Word(text) | Token::Number(text) => (*text).to_owned(),
            Token::Text(text) => quote(text),
            Token::Value(name, None) => format!("%{name}"),
            Token::Value(name, Some(slot)) => format!("%{name}:{slot}"),
            Token::Punct(c) => c.to_string(),
            Token::Arrow => "->".to_owned(),
            Token::End => String::new(),
        };
        Err(ParseErrorKind::expected(expected, &found).at(self.text, self.at))
    }

    /// The error that there is too much of something.
    pub(super) fn limit<T>(&self, what: &'static str, limit: u64) -> Result<T, ParseError> {
        Err(ParseErrorKind::Limit { what, limit }.at(self.text, self.at))
    }

    /// True if a mark stands there.
    pub(super) fn is(&self, c: char) -> bool {
        self.token == Token::Punct(c)
    }

    /// Takes a mark if it stands there.
    pub(super) fn eat(&mut self, c: char) -> Result<bool, ParseError> {
        let found = self.is(c);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Takes a mark that must stand there.
    pub(super) fn punct(&mut self, c: char) -> Result<(), ParseError> {
        if self.eat(c)? { Ok(()) } else { self.expected(format!("`{c}`")) }
    }

    /// Takes a word.
    pub(super) fn word(&mut self, expected: &str) -> Result<&'a str, ParseError> {
        let Token::Word(word) = self.token else { return self.expected(expected) };
        self.advance()?;
        Ok(word)
    }

    /// Takes a word that must stand there.
    pub(super) fn keyword(&mut self, keyword: &str) -> Result<(), ParseError> {
        if self.token != Token::Word(keyword) {
            return self.expected(format!("`{keyword}`"));
        }
        self.advance()?;
        Ok(())
    }

    /// Takes a text in quotes.
    pub(super) fn quoted(&mut self) -> Result<String, ParseError> {
        if !matches!(self.token, Token::Text(_)) {
            return self.expected("a text in quotes");
        }
        match self.advance()? {
            Token::Text(text) => Ok(text),
            _ => self.expected("a text in quotes"),
        }
    }

    /// A word or a text in quotes.
    pub(super) fn name(&mut self) -> Result<String, ParseError> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word.to_owned())
            }
            Token::Text(_) => self.quoted(),
            _ => self.expected("a name"),
        }
    }

    /// A number as it stands; `inf` and `nan` are words to the lexer.
    pub(super) fn number(&mut self) -> Result<(&'a str, usize), ParseError> {
        let at = self.at;
        let text = match self.token {
            Token::Number(text) | Token::Word(text @ ("inf" | "nan")) => text,
            _ => return self.expected("a number"),
        };
        self.advance()?;
        Ok((text, at))
    }

    /// Takes a number and reads it.
    pub(super) fn parsed<T>(&mut self, expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, ParseError> {
        let (text, at) = self.number()?;
        read(text).ok_or_else(|| ParseErrorKind::expected(expected, text).at(self.text, at))
    }

    /// Items between brackets, separated by commas.
    pub(super) fn list<T>(
        &mut self,
        (open, close): (char, char),
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.punct(open)?;
        let mut items = Vec::new();
        if self.eat(close)? {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close)? {
                return Ok(items);
            }
            if !self.eat(',')? {
                return self.expected(format!("`,` or `{close}`"));
            }
        }
    }
}
