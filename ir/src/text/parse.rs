//! Text to graph.
//!
//! The text may come from anywhere: nothing recurses, lists and extents are
//! bounded, and no element of a constant is made that does not stand in the text.

use std::collections::BTreeMap;

use crate::{Carry, ConstData, Constant, Graph, Input, NodeId, Op, Origin, Repeat, State, TensorType, ValueId};

use super::{
    MAX_NODES,
    cursor::Cursor,
    error::{ParseError, ParseErrorKind},
    lexer::{Token, quote},
    ops::Attributes,
    pieces::Literal,
    types,
};

/// Reads a graph. `file("name")` constants are an error: see [`parse_with_weights`].
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    parse_with_weights(text, &|_, _| None)
}

/// Reads a graph; `weights` gives the constant behind each `file("name")`, and
/// is told the declared type.
pub fn parse_with_weights(
    text: &str,
    weights: &dyn Fn(&str, &TensorType) -> Option<Constant>,
) -> Result<Graph, ParseError> {
    let cursor = Cursor::new(text)?;
    let mut parser = Parser { cursor, graph: Graph::default(), names: BTreeMap::new(), weights };
    parser.graph()?;
    Ok(parser.graph)
}

/// Operands of one node that the graph can number.
const MAX_OPERANDS: usize = u16::MAX as usize;
/// Results of one node: more than any has.
const MAX_RESULTS: usize = 16;

struct Parser<'a, 'w> {
    cursor: Cursor<'a>,
    graph: Graph,
    names: BTreeMap<String, NodeId>,
    weights: &'w dyn Fn(&str, &TensorType) -> Option<Constant>,
}

/// An input of the header.
struct LateInput {
    name: String,
    ty: TensorType,
    origin: Origin,
    at: usize,
}

/// An output of the header: it stands before the value that it names.
struct LateOutput {
    name: String,
    value: String,
    slot: u16,
    at: usize,
}

impl Parser<'_, '_> {
    fn graph(&mut self) -> Result<(), ParseError> {
        self.cursor.keyword("graph")?;
        self.cursor.punct('@')?;
        self.graph.name = self.cursor.name()?;
        for input in self.cursor.list(('(', ')'), input)? {
            let op = Op::Input(Input { ty: input.ty });
            self.add(input.name, (input.at, input.at), op, &[], input.origin)?;
        }
        if self.cursor.token != Token::Arrow {
            return self.cursor.expected("`->`");
        }
        self.cursor.advance()?;
        let outputs = self.cursor.list(('(', ')'), output)?;
        self.cursor.punct('{')?;
        // Either the attributes of the header, or the body already.
        if self.cursor.token == Token::Word("batch") {
            self.cursor.advance()?;
            self.cursor.punct('=')?;
            self.graph.batch_axis = Some(self.cursor.parsed("an axis", |text| text.parse().ok())?);
            self.cursor.punct('}')?;
            self.cursor.punct('{')?;
        }
        while self.cursor.token == Token::Word("meta") {
            self.meta()?;
        }
        self.schedule()?;
        while !self.cursor.eat('}')? {
            self.statement()?;
        }
        if self.cursor.token != Token::End {
            return self.cursor.expected("the end of the text");
        }
        for output in outputs {
            if !self.names.contains_key(&output.value) {
                let kind = ParseErrorKind::UndefinedOutput { name: output.name, value: output.value };
                return Err(kind.at(self.cursor.text, output.at));
            }
            let value = self.value(&output.value, output.slot, output.at)?;
            self.graph.add_output(output.name, value);
        }
        Ok(())
    }

    fn meta(&mut self) -> Result<(), ParseError> {
        self.cursor.advance()?;
        let at = self.cursor.at;
        let key = self.cursor.quoted()?;
        self.cursor.punct('=')?;
        let value = self.cursor.quoted()?;
        match self.graph.metadata.insert(key.clone(), value) {
            Some(_) => Err(ParseErrorKind::Duplicate { name: quote(&key) }.at(self.cursor.text, at)),
            None => Ok(()),
        }
    }

    /// What is around the graph: states, then how often it runs.
    fn schedule(&mut self) -> Result<(), ParseError> {
        while self.cursor.token == Token::Word("state") {
            let (input, output) = self.handed("states", self.graph.states.len())?;
            let mut state = State { input, output, element_axis: None, limit: None };
            if self.cursor.eat('{')? {
                while !self.cursor.eat('}')? {
                    let key = self.cursor.word("`element_axis` or `limit`")?;
                    self.cursor.punct('=')?;
                    match key {
                        "element_axis" => {
                            state.element_axis = Some(self.cursor.parsed("an axis", |text| text.parse().ok())?);
                        }
                        "limit" => state.limit = Some(self.cursor.parsed("an integer", |text| text.parse().ok())?),
                        _ => return self.cursor.expected("`element_axis` or `limit`"),
                    }
                    self.cursor.eat(',')?;
                }
            }
            self.graph.states.push(state);
        }
        if self.cursor.token != Token::Word("repeat") {
            return Ok(());
        }
        self.cursor.advance()?;
        let n = self.cursor.parsed("a number of turns", |text| text.parse().ok())?;
        let turn = if matches!(self.cursor.token, Token::Text(_)) { Some(self.cursor.quoted()?) } else { None };
        let mut carries = Vec::new();
        while self.cursor.token == Token::Word("carry") {
            let (input, output) = self.handed("carries", carries.len())?;
            carries.push(Carry { input, output });
        }
        self.graph.repeat = Some(Repeat { n, turn, carries });
        Ok(())
    }

    /// `state "input" = "output"`, behind `n` of its kind.
    fn handed(&mut self, kind: &'static str, n: usize) -> Result<(String, String), ParseError> {
        if n == MAX_OPERANDS {
            return self.cursor.limit(kind, MAX_OPERANDS as u64);
        }
        self.cursor.advance()?;
        let input = self.cursor.quoted()?;
        self.cursor.punct('=')?;
        Ok((input, self.cursor.quoted()?))
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        let (name, at) = self.cursor.definition()?;
        self.cursor.punct('=')?;
        let op_at = self.cursor.at;
        let op = self.cursor.word("an operation")?;
        if op == "const" {
            return self.constant(name, at);
        }
        let mut operands = Vec::new();
        while matches!(self.cursor.token, Token::Value(..)) {
            if operands.len() == MAX_OPERANDS {
                return self.cursor.limit("operands", MAX_OPERANDS as u64);
            }
            let (operand, slot, at) = self.cursor.reference()?;
            operands.push(self.value(&operand, slot, at)?);
            if !self.cursor.eat(',')? {
                break;
            }
            if !matches!(self.cursor.token, Token::Value(..)) {
                return self.cursor.expected("an operand");
            }
        }
        let list = if self.cursor.is('{') { self.cursor.attributes()? } else { Vec::new() };
        self.cursor.punct(':')?;
        let type_at = self.cursor.at;
        let first = self.cursor.ty()?;
        let op = Attributes { text: self.cursor.text, op, at: op_at, list }.build(&first)?;
        let mut declared = vec![first];
        while self.cursor.eat(';')? {
            if declared.len() == MAX_RESULTS {
                return self.cursor.limit("results", MAX_RESULTS as u64);
            }
            declared.push(self.cursor.ty()?);
        }
        let origin = if self.cursor.eat('@')? { self.cursor.origin()? } else { Origin::default() };
        let node = self.add(name, (at, op_at), op, &operands, origin)?;
        let inferred = &self.graph.node(node).outputs;
        if *inferred != declared {
            let list = |types: &[TensorType]| types.iter().map(TensorType::to_string).collect::<Vec<_>>().join("; ");
            let kind = ParseErrorKind::Declared { declared: list(&declared), inferred: list(inferred) };
            return Err(kind.at(self.cursor.text, type_at));
        }
        Ok(())
    }

    fn constant(&mut self, name: String, at: usize) -> Result<(), ParseError> {
        let literal_at = self.cursor.at;
        let literal = self.cursor.literal()?;
        self.cursor.punct(':')?;
        let ty = self.cursor.ty()?;
        let origin = if self.cursor.eat('@')? { self.cursor.origin()? } else { Origin::default() };
        let error = |kind: ParseErrorKind, at: usize| kind.at(self.cursor.text, at);
        let constant = match literal {
            Literal::Splat(value) => Constant { ty, data: ConstData::Splat(value) },
            Literal::Rand(seed) => Constant { ty, data: ConstData::Rand(seed) },
            Literal::List(elements) => {
                let expected = ty.n_elements();
                if elements.len() != expected {
                    let kind = ParseErrorKind::ElementCount { ty, expected, found: elements.len() };
                    return Err(error(kind, literal_at));
                }
                let texts: Vec<&str> = elements.iter().map(|(text, _)| *text).collect();
                types::constant(&ty, &texts)
                    .map_err(|(i, kind)| error(kind, elements.get(i).map_or(literal_at, |(_, at)| *at)))?
            }
            Literal::File(file) => match (self.weights)(&file, &ty) {
                Some(constant) if constant.ty == ty => constant,
                Some(constant) => {
                    let kind = ParseErrorKind::WeightsType { name: file, found: constant.ty, declared: ty };
                    return Err(error(kind, literal_at));
                }
                None => return Err(error(ParseErrorKind::NoWeights { name: file, ty }, literal_at)),
            },
        };
        self.claim(&name, at)?;
        let value = self.graph.add_const(name.clone(), constant, origin);
        self.names.insert(name, value.node);
        Ok(())
    }

    fn value(&self, name: &str, slot: u16, at: usize) -> Result<ValueId, ParseError> {
        let Some(&node) = self.names.get(name) else {
            return Err(ParseErrorKind::Undefined { name: name.to_owned() }.at(self.cursor.text, at));
        };
        let n_results = self.graph.node(node).outputs.len();
        if usize::from(slot) >= n_results {
            return Err(
                ParseErrorKind::NoSuchResult { name: name.to_owned(), n_results, slot }.at(self.cursor.text, at)
            );
        }
        Ok(ValueId { node, slot })
    }

    fn claim(&self, name: &str, at: usize) -> Result<(), ParseError> {
        if self.names.contains_key(name) {
            return Err(ParseErrorKind::Duplicate { name: format!("`%{name}`") }.at(self.cursor.text, at));
        }
        if self.names.len() == MAX_NODES {
            return Err(ParseErrorKind::Limit { what: "nodes", limit: MAX_NODES as u64 }.at(self.cursor.text, at));
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: String,
        (at, op_at): (usize, usize),
        op: Op,
        operands: &[ValueId],
        origin: Origin,
    ) -> Result<NodeId, ParseError> {
        self.claim(&name, at)?;
        let text = self.cursor.text;
        let added = self.graph.add(name.clone(), op, operands, origin);
        let node = added.map_err(|error| ParseErrorKind::from(error).at(text, op_at))?;
        self.names.insert(name, node);
        Ok(node)
    }
}

/// `%obs: f32[1, 3] @ "a", "b"`.
fn input(cursor: &mut Cursor<'_>) -> Result<LateInput, ParseError> {
    let (name, at) = cursor.definition()?;
    cursor.punct(':')?;
    let ty = cursor.ty()?;
    let origin = if !cursor.eat('@')? {
        Origin::new(name.as_str())
    } else if cursor.token == Token::Word("none") {
        cursor.advance()?;
        Origin::default()
    } else {
        let mut names = vec![cursor.quoted()?];
        // A comma ends this input unless a text in quotes follows it.
        while cursor.is(',') && cursor.lexer.peeks_text() {
            cursor.advance()?;
            names.push(cursor.quoted()?);
        }
        names.into_iter().collect()
    };
    Ok(LateInput { name, ty, origin, at })
}

/// `action = %act` or `%act`.
fn output(cursor: &mut Cursor<'_>) -> Result<LateOutput, ParseError> {
    let name = if matches!(cursor.token, Token::Value(..)) {
        None
    } else {
        let name = cursor.name()?;
        cursor.punct('=')?;
        Some(name)
    };
    let (value, slot, at) = cursor.reference()?;
    Ok(LateOutput { name: name.unwrap_or_else(|| value.clone()), value, slot, at })
}
