//! Cuts a text into tokens, one at a time, in one pass.

use std::borrow::Cow;

use super::error::{ParseError, ParseErrorKind};

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A word: `linear`, `f32`, `inf`.
    Word(&'a str),
    /// Anything that begins like a number; its reader checks the rest.
    Number(&'a str),
    /// A text in quotes, without them.
    Text(String),
    /// `%name` or `%name:slot`.
    Value(Cow<'a, str>, Option<u16>),
    /// One of `( ) { } [ ] = , : ; @`.
    Punct(char),
    /// `->`.
    Arrow,
    /// The end of the text.
    End,
}

/// Position in a text.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

/// True for names that stand after `%` without quotes.
pub(super) fn is_plain_value(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_name_byte)
}

/// True for names that stand alone without quotes.
pub(super) fn is_plain_word(name: &str) -> bool {
    is_plain_value(name) && !name.starts_with(|c: char| c.is_ascii_digit() || c == '.')
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'.'
}

impl<'a> Lexer<'a> {
    /// At the start of a text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next token and the byte where it starts.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), ParseError> {
        self.skip_blanks();
        let start = self.at;
        let Some(c) = self.rest().chars().next() else { return Ok((Token::End, start)) };
        let token = match c {
            '(' | ')' | '{' | '}' | '[' | ']' | '=' | ',' | ':' | ';' | '@' => {
                self.at += 1;
                Token::Punct(c)
            }
            '"' => Token::Text(self.quoted()?),
            '%' => self.value()?,
            '-' if self.rest().starts_with("->") => {
                self.at += 2;
                Token::Arrow
            }
            '-' | '0'..='9' => Token::Number(self.number()),
            'a'..='z' | 'A'..='Z' | '_' => Token::Word(self.take_while(is_name_byte)),
            other => return Err(self.expected("a token", &other.to_string(), start)),
        };
        Ok((token, start))
    }

    /// True if a text in quotes comes next.
    pub(super) fn peeks_text(&mut self) -> bool {
        self.skip_blanks();
        self.rest().starts_with('"')
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn expected(&self, expected: &str, found: &str, at: usize) -> ParseError {
        ParseErrorKind::expected(expected, found).at(self.text, at)
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    /// Bytes that satisfy a rule; the rule accepts ASCII alone.
    fn take_while(&mut self, rule: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.bytes().position(|b| !rule(b)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or("")
    }

    /// A sign, then letters, digits and points; a sign again after `e`.
    fn number(&mut self) -> &'a str {
        let rest = self.rest();
        let mut last = b'e';
        let mut len = 0;
        for b in rest.bytes() {
            let sign = (b == b'-' || b == b'+') && matches!(last, b'e' | b'E');
            if !is_name_byte(b) && !sign {
                break;
            }
            last = b;
            len += 1;
        }
        self.at += len;
        rest.get(..len).unwrap_or("")
    }

    fn value(&mut self) -> Result<Token<'a>, ParseError> {
        let start = self.at;
        self.at += 1;
        let name = if self.rest().starts_with('"') {
            Cow::Owned(self.quoted()?)
        } else {
            Cow::Borrowed(self.take_while(is_name_byte))
        };
        if name.is_empty() {
            return Err(self.expected("a name after `%`", self.text.get(start..self.at).unwrap_or("%"), start));
        }
        let slot_follows = matches!(self.rest().as_bytes(), [b':', digit, ..] if digit.is_ascii_digit());
        if !slot_follows {
            return Ok(Token::Value(name, None));
        }
        self.at += 1;
        let digits = self.take_while(|b| b.is_ascii_digit());
        let slot = digits.parse().map_err(|_| self.expected("the number of a result", digits, start))?;
        Ok(Token::Value(name, Some(slot)))
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\n' => break,
                '\\' => {
                    let escape = chars.next().map(|(_, c)| c);
                    let c = match escape {
                        Some('n') => Some('\n'),
                        Some('r') => Some('\r'),
                        Some('t') => Some('\t'),
                        Some('0') => Some('\0'),
                        Some(c @ ('\\' | '"' | '\'')) => Some(c),
                        Some('u') => unicode(&mut chars),
                        _ => None,
                    };
                    out.push(c.ok_or_else(|| self.expected("an escape such as `\\n` or `\\u{e9}`", "\\", start + i))?);
                }
                c => out.push(c),
            }
        }
        Err(self.expected("a closing `\"` in the same line", "\"", start))
    }
}

/// `{hex}` after `\u`.
fn unicode(chars: &mut impl Iterator<Item = (usize, char)>) -> Option<char> {
    if chars.next()?.1 != '{' {
        return None;
    }
    let mut code = 0u32;
    for _ in 0..7 {
        let (_, c) = chars.next()?;
        if c == '}' {
            return char::from_u32(code);
        }
        code = code.checked_mul(16)?.checked_add(c.to_digit(16)?)?;
    }
    None
}

/// A text in quotes.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\'' => out.push('\''),
            c => out.extend(c.escape_debug()),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        let mut lexer = Lexer::new(text);
        std::iter::from_fn(|| Some(lexer.next().unwrap().0)).take_while(|token| *token != Token::End).collect()
    }

    #[test]
    fn names_numbers_and_results() {
        use Token::{Arrow, Number, Punct, Value, Word};
        assert_eq!(
            tokens("%a.b:2 -> -1.5e-3 // gone\n%\"x:0\": f32 -inf"),
            [
                Value("a.b".into(), Some(2)),
                Arrow,
                Number("-1.5e-3"),
                Value("x:0".into(), None),
                Punct(':'),
                Word("f32"),
                Number("-inf")
            ]
        );
    }

    #[test]
    fn quoting_is_undone_by_reading() {
        for text in ["", "a\"b\\c", "tab\tnul\0\u{200b}\u{301}é'", "\u{202e}rtl\n\r"] {
            assert_eq!(tokens(&quote(text)), [Token::Text(text.to_owned())]);
        }
    }

    #[test]
    fn an_open_quote_is_an_error() {
        let error = Lexer::new("\"abc\n\"").next().unwrap_err().to_string();
        assert_eq!(error, "line 1, column 1: expected a closing `\"` in the same line, found `\"`");
    }
}
