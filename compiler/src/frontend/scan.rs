//! A look at the wire format before anything is decoded.
//!
//! Two bytes of a protobuf can become a struct of hundreds of bytes, so a small
//! hostile file could take all memory. This pass walks the fields that the
//! decoder will keep, adds up what they will take, and refuses a file that
//! would grow out of proportion. It allocates nothing but its short stack.

use std::mem::size_of;

use super::{
    error::ImportError,
    proto::{
        AttributeProto, Dimension, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        SparseTensorProto, StringStringEntryProto, TensorProto, ValueInfoProto,
    },
};

/// Deepest nesting of messages; the decoder has a limit of its own, too.
const MAX_DEPTH: usize = 64;

/// Bytes that decoding may take beyond [`GROWTH`] times the size of the file.
const SLACK_BYTES: usize = 64 << 20;

/// Decoded bytes for a byte of the file.
const GROWTH: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
    Entry,
    Opset,
    Function,
    Sparse,
}

/// What a field of a message is to the decoder.
enum Field {
    Message(Kind),
    /// An element of a list that takes this many bytes besides its content.
    Element(usize),
    /// Packed integers, each of at least one byte.
    Ints,
    Other,
}

fn field(kind: Kind, number: u64) -> Field {
    use Field::{Element, Ints, Message, Other};
    match (kind, number) {
        (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Message(Kind::Graph),
        (Kind::Model, 8) => Message(Kind::Opset),
        (Kind::Model, 14) | (Kind::Tensor, 13) => Message(Kind::Entry),
        (Kind::Model, 25) => Message(Kind::Function),
        (Kind::Graph, 1) => Message(Kind::Node),
        (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::Sparse, 1) => Message(Kind::Tensor),
        (Kind::Graph, 11..=13) => Message(Kind::ValueInfo),
        (Kind::Graph, 15) | (Kind::Attribute, 22) => Message(Kind::Sparse),
        (Kind::Node, 5) => Message(Kind::Attribute),
        (Kind::ValueInfo, 2) => Message(Kind::Type),
        (Kind::Type, 1) => Message(Kind::TensorType),
        (Kind::TensorType, 2) => Message(Kind::Shape),
        (Kind::Shape, 1) => Message(Kind::Dimension),
        (Kind::Node, 1 | 2) => Element(size_of::<String>()),
        (Kind::Attribute, 9) | (Kind::Tensor, 6) => Element(4 * size_of::<usize>()),
        (Kind::Attribute, 8) | (Kind::Tensor, 1 | 5 | 7 | 11) => Ints,
        _ => Other,
    }
}

fn size(kind: Kind) -> usize {
    match kind {
        Kind::Model => size_of::<ModelProto>(),
        Kind::Graph => size_of::<GraphProto>(),
        Kind::Node => size_of::<NodeProto>(),
        Kind::Attribute => size_of::<AttributeProto>(),
        Kind::Tensor => size_of::<TensorProto>(),
        Kind::ValueInfo => size_of::<ValueInfoProto>(),
        // Part of their parents.
        Kind::Type | Kind::TensorType | Kind::Shape => 0,
        Kind::Dimension => size_of::<Dimension>(),
        Kind::Entry => size_of::<StringStringEntryProto>(),
        Kind::Opset => size_of::<OperatorSetIdProto>(),
        Kind::Function => size_of::<FunctionProto>(),
        Kind::Sparse => size_of::<SparseTensorProto>(),
    }
}

/// Checks that `bytes` is a well-formed protobuf of bounded depth whose decoded
/// form is not out of proportion.
pub(super) fn scan(bytes: &[u8]) -> Result<(), ImportError> {
    scan_within(bytes, bytes.len().saturating_mul(GROWTH).saturating_add(SLACK_BYTES))
}

fn scan_within(bytes: &[u8], limit_bytes: usize) -> Result<(), ImportError> {
    let mut stack = vec![(Kind::Model, bytes.len())];
    let mut at = 0usize;
    let mut decoded_bytes = 0usize;
    while let Some(&(kind, end)) = stack.last() {
        if at == end {
            stack.pop();
            continue;
        }
        let start = at;
        let error = |reason| ImportError::Malformed { offset: start, reason };
        let tag = varint(bytes, &mut at, end).ok_or_else(|| error("a field is cut short"))?;
        let mut cost = 0;
        match tag & 7 {
            0 => {
                varint(bytes, &mut at, end).ok_or_else(|| error("a number is cut short"))?;
                // An unpacked list of integers.
                cost = 8;
            }
            1 => at = at.checked_add(8).ok_or_else(|| error("a number is cut short"))?,
            5 => at = at.checked_add(4).ok_or_else(|| error("a number is cut short"))?,
            2 => {
                let len = varint(bytes, &mut at, end).and_then(|len| usize::try_from(len).ok());
                let stop = len.and_then(|len| at.checked_add(len)).filter(|&stop| stop <= end);
                let stop = stop.ok_or_else(|| error("a field is longer than the message around it"))?;
                match field(kind, tag >> 3) {
                    Field::Message(child) => {
                        cost = size(child);
                        stack.push((child, stop));
                        if stack.len() > MAX_DEPTH {
                            return Err(error("messages are nested too deeply"));
                        }
                    }
                    Field::Element(bytes) => {
                        cost = bytes;
                        at = stop;
                    }
                    Field::Ints => {
                        cost = (stop - at).saturating_mul(8);
                        at = stop;
                    }
                    Field::Other => at = stop,
                }
            }
            _ => return Err(error("an unknown kind of field")),
        }
        if at > end {
            return Err(error("a number is cut short"));
        }
        decoded_bytes = decoded_bytes.saturating_add(cost);
        if decoded_bytes > limit_bytes {
            return Err(error("the model would take far more memory than its file"));
        }
    }
    Ok(())
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at..end)?.first()?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn model(n_nodes: usize) -> Vec<u8> {
        let graph = GraphProto { node: vec![NodeProto::default(); n_nodes], ..GraphProto::default() };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn empty_nodes_count_as_what_they_become() {
        let bytes = model(1000);
        assert!(bytes.len() < 2100);
        let error = scan_within(&bytes, 100 * size_of::<NodeProto>()).unwrap_err();
        assert!(error.to_string().contains("far more memory"), "{error}");
        scan(&bytes).unwrap();
    }

    #[test]
    fn a_field_longer_than_its_message_is_refused() {
        let mut bytes = model(3);
        bytes.truncate(bytes.len() - 1);
        assert!(matches!(scan(&bytes), Err(ImportError::Malformed { .. })));
    }

    #[test]
    fn graphs_inside_graphs_end_somewhere() {
        let mut graph = GraphProto::default();
        for _ in 0..40 {
            let attribute = AttributeProto { g: Some(Box::new(graph)), ..AttributeProto::default() };
            let node = NodeProto { attribute: vec![attribute], ..NodeProto::default() };
            graph = GraphProto { node: vec![node], ..GraphProto::default() };
        }
        let bytes = ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
        assert!(scan(&bytes).unwrap_err().to_string().contains("nested too deeply"));
    }
}
