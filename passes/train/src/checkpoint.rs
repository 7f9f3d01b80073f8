//! A training run in one file: what a build needs, and what resuming needs.
//!
//! A [safetensors] file, so PyTorch reads it as well. Tensors:
//!
//! | name | what |
//! |---|---|
//! | `qir` | the prepared graph in text form, as bytes |
//! | `graph.<constant>` | constants of that graph that its text does not hold |
//! | `best.<parameter>` | what did best on held-out rows: the result |
//! | `now.`, `m.`, `v.`, `average.<parameter>` | the state to resume from |
//!
//! All facts about the run (hashes of model and data, options, versions, the
//! step) are lines `key = value`, sorted, in one entry of the metadata: one,
//! because the format does not order its entries. The same run gives the same
//! bytes. A checksum over all tensors and facts is among them: damage is
//! noticed, not trained on.
//!
//! Files come from anywhere: sizes, names, types and the graph are checked
//! before anything is used.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _, sync::Arc};

use qail_ir::{ConstData, Constant, DType, Elem, Graph, TensorType, VerifyError, text, verify};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::View};
use sha2::{Digest, Sha256};

use crate::{
    parameters::{self, Parameter, ParameterError},
    trainer::State,
};

/// Version of the layout.
pub const FORMAT: u32 = 1;
/// The entry of the metadata.
const KEY: &str = "qailc";
/// Bytes of facts that are read at most.
const MAX_FACTS_BYTES: usize = 1 << 20;
/// Bytes of the text of a graph that are read at most.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Facts that this module owns.
const OWN: [&str; 7] = ["format", "checksum", "step", "best-step", "best-score", "initial-loss", "average"];

/// A training run as it is stored.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Facts about the run that the caller knows, by name; neither names nor
    /// values hold line ends.
    pub facts: BTreeMap<String, String>,
    /// The prepared graph.
    pub graph: Graph,
    /// Names of the parameters, in the order of the state.
    pub names: Vec<String>,
    /// Everything that changes while training.
    pub state: State,
}

/// A file that is no checkpoint, or not a sound one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not the container, or cut short.
    #[error("it is not a sound safetensors file; was it copied completely?")]
    Container(#[source] SafeTensorError),
    /// Another program's file.
    #[error("it is a safetensors file, but not a checkpoint of qailc")]
    Foreign,
    /// Written by a later version.
    #[error("it has format {found}; this version of qailc reads format {FORMAT}: use the version that wrote it")]
    Format {
        /// Its format.
        found: String,
    },
    /// The checksum is wrong.
    #[error("its checksum is wrong: it was damaged after it was written")]
    Checksum,
    /// A fact is missing or no number.
    #[error("its fact `{name}` is missing or unsound")]
    Fact {
        /// Name of the fact.
        name: String,
    },
    /// A tensor is missing, or of another type or size.
    #[error("its tensor `{name}` is missing or unsound: {what}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The text of the graph does not parse.
    #[error("its graph does not parse")]
    Parse(#[source] text::ParseError),
    /// The graph is not well-formed.
    #[error("its graph is not well-formed")]
    Verify(#[source] VerifyError),
    /// The parameters are not those of the graph.
    #[error("its parameters are not those of its graph")]
    Parameter(#[source] ParameterError),
    /// A name or value with a line end.
    #[error("fact `{name}` cannot be stored: it has a line end or the name is taken")]
    Unstorable {
        /// Name of the fact.
        name: String,
    },
    /// A constant cannot be read.
    #[error("constant `{name}` cannot be read")]
    Const {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: qail_ir::ConstError,
    },
}

/// True if a file begins like a safetensors file; no ONNX file does.
pub fn looks_like(first_bytes: &[u8]) -> bool {
    let Some((len, rest)) = first_bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*len) < 1 << 32
}

impl Checkpoint {
    /// The bytes of the file.
    ///
    /// # Errors
    /// Facts with line ends, and constants that cannot be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let (text, weights) = text::print_with_weights(&self.graph);
        let mut tensors: BTreeMap<String, Stored<'_>> = BTreeMap::new();
        tensors.insert("qir".to_owned(), Stored::bytes(text.as_bytes()));
        for (name, constant) in &weights {
            tensors.insert(format!("graph.{name}"), Stored::constant(name, constant)?);
        }
        let State { step, now, m, v, average, best, best_step, best_score, initial_loss } = &self.state;
        let sets =
            [("now", Some(now)), ("m", Some(m)), ("v", Some(v)), ("average", average.as_ref()), ("best", Some(best))];
        for (kind, elements) in sets {
            for (name, elements) in self.names.iter().zip(elements.into_iter().flatten()) {
                tensors.insert(format!("{kind}.{name}"), Stored::f32(elements));
            }
        }
        let mut facts = self.facts.clone();
        for (name, value) in [
            ("format", FORMAT.to_string()),
            ("step", step.to_string()),
            ("best-step", best_step.to_string()),
            ("best-score", exact(*best_score)),
            ("initial-loss", exact(*initial_loss)),
            ("average", average.is_some().to_string()),
        ] {
            if facts.insert(name.to_owned(), value).is_some() {
                return Err(CheckpointError::Unstorable { name: name.to_owned() });
            }
        }
        let order = self.names.iter().enumerate();
        facts.extend(order.map(|(index, name)| (format!("parameter:{index:06}"), name.clone())));
        let facts_text = lines(&facts)?;
        let checksum = checksum(&facts_text, tensors.iter().map(|(name, stored)| (name.as_str(), &*stored.data)));
        let facts_text = format!("{facts_text}checksum = {checksum}\n");
        let metadata = std::collections::HashMap::from([(KEY.to_owned(), facts_text)]);
        safetensors::serialize(tensors, Some(metadata)).map_err(CheckpointError::Container)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Everything that is not as [`Checkpoint::to_bytes`] writes it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(CheckpointError::Container)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(CheckpointError::Container)?;
        let all = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let all = all.filter(|text| text.len() <= MAX_FACTS_BYTES).ok_or(CheckpointError::Foreign)?;
        let mut facts = parse_lines(all).ok_or(CheckpointError::Foreign)?;
        match facts.get("format") {
            Some(format) if *format == FORMAT.to_string() => {}
            Some(format) => return Err(CheckpointError::Format { found: format.chars().take(20).collect() }),
            None => return Err(CheckpointError::Foreign),
        }
        let expected = facts.remove("checksum");
        let views: BTreeMap<String, safetensors::tensor::TensorView<'_>> = tensors.tensors().into_iter().collect();
        let found = checksum(&lines(&facts)?, views.iter().map(|(name, view)| (name.as_str(), view.data())));
        if expected != Some(found) {
            return Err(CheckpointError::Checksum);
        }
        let names: Vec<String> =
            facts.iter().filter(|(key, _)| key.starts_with("parameter:")).map(|(_, name)| name.clone()).collect();
        let graph = read_graph(&tensors)?;
        let set = |kind: &str| -> Result<Vec<Vec<f32>>, CheckpointError> {
            names.iter().map(|name| read_f32(&tensors, &format!("{kind}.{name}"))).collect()
        };
        let number = |name: &str| facts.get(name).and_then(|value| value.parse().ok());
        let float = |name: &str| facts.get(name).and_then(|value| value.parse::<f64>().ok());
        let unsound = |name: &str| CheckpointError::Fact { name: name.to_owned() };
        let average = match facts.get("average").map(String::as_str) {
            Some("true") => Some(set("average")?),
            Some("false") => None,
            _ => return Err(unsound("average")),
        };
        let state = State {
            step: number("step").ok_or_else(|| unsound("step"))?,
            now: set("now")?,
            m: set("m")?,
            v: set("v")?,
            average,
            best: set("best")?,
            best_step: number("best-step").ok_or_else(|| unsound("best-step"))?,
            best_score: float("best-score").ok_or_else(|| unsound("best-score"))?,
            initial_loss: float("initial-loss").ok_or_else(|| unsound("initial-loss"))?,
        };
        facts.retain(|name, _| !OWN.contains(&name.as_str()) && !name.starts_with("parameter:"));
        let checkpoint = Self { facts, graph, names, state };
        // Names and sizes fit the graph, for every part of the state.
        checkpoint.trained()?;
        Ok(checkpoint)
    }

    /// The graph with the best parameters in it.
    ///
    /// # Errors
    /// Parameters that the graph does not have.
    pub fn trained(&self) -> Result<Graph, CheckpointError> {
        let mut graph = self.graph.clone();
        let by_name: BTreeMap<&str, Arc<Constant>> = graph
            .nodes()
            .filter_map(|id| Some((graph.node(id).name.as_str(), Arc::clone(graph.const_of(id.value())?))))
            .collect();
        let parameter = |(name, best): (&String, &Vec<f32>)| {
            let found = by_name.get(name.as_str()).filter(|c| c.ty.elem == Elem::Plain(DType::F32));
            let shape = found.map(|constant| constant.ty.shape.clone()).unwrap_or_default();
            let n: usize = shape.iter().product();
            if found.is_none() || n != best.len() {
                let what = format!("the graph has no constant of {} numbers", best.len());
                return Err(CheckpointError::Tensor { name: format!("best.{name}"), what });
            }
            let role = parameters::Role::Weight;
            Ok(Parameter {
                name: name.clone(),
                role,
                shape,
                elements: Vec::new(),
                unit: Vec::new(),
                gradient_scale: 1.0,
            })
        };
        let parameters: Vec<Parameter> =
            self.names.iter().zip(&self.state.best).map(parameter).collect::<Result<_, _>>()?;
        drop(by_name);
        parameters::set(&mut graph, &parameters, &self.state.best).map_err(CheckpointError::Parameter)?;
        Ok(graph)
    }
}

/// A float as text that reads back to the same bits, NaN apart.
fn exact(x: f64) -> String {
    format!("{x:?}")
}

fn lines(facts: &BTreeMap<String, String>) -> Result<String, CheckpointError> {
    let mut text = String::new();
    for (name, value) in facts {
        if name.contains(['\n', '\r']) || name.contains(" = ") || value.contains(['\n', '\r']) {
            return Err(CheckpointError::Unstorable { name: name.clone() });
        }
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{name} = {value}");
    }
    Ok(text)
}

fn parse_lines(text: &str) -> Option<BTreeMap<String, String>> {
    let mut facts = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(" = ")?;
        if facts.insert(name.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(facts)
}

/// SHA-256 over the facts and every tensor, in the order of names.
fn checksum<'a>(facts: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(facts.as_bytes());
    for (name, bytes) in tensors {
        part(name.as_bytes());
        part(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tensor on its way into the file.
struct Stored<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Stored<'a> {
    fn bytes(data: &'a [u8]) -> Self {
        Self { dtype: Dtype::U8, shape: vec![data.len()], data: Cow::Borrowed(data) }
    }

    fn f32(elements: &[f32]) -> Self {
        let data: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: vec![elements.len()], data: Cow::Owned(data) }
    }

    fn constant(name: &str, constant: &Constant) -> Result<Self, CheckpointError> {
        let all = 0..constant.ty.n_elements();
        let data =
            constant.read_bytes(all).map_err(|source| CheckpointError::Const { name: name.to_owned(), source })?;
        Ok(Self { dtype: dtype(constant.ty.elem), shape: constant.ty.shape.clone(), data: Cow::Owned(data) })
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

fn dtype(elem: Elem) -> Dtype {
    match elem {
        Elem::Plain(DType::F32) => Dtype::F32,
        Elem::Plain(DType::F64) => Dtype::F64,
        Elem::Plain(DType::I32) => Dtype::I32,
        Elem::Plain(DType::I64) => Dtype::I64,
        Elem::Plain(DType::U8) => Dtype::U8,
        Elem::Plain(DType::Bool) => Dtype::BOOL,
        Elem::Code(scheme) => match (scheme.size_bytes(), scheme.signed) {
            (1, true) => Dtype::I8,
            (1, false) => Dtype::U8,
            (_, true) => Dtype::I16,
            (_, false) => Dtype::U16,
        },
    }
}

fn read_graph(tensors: &SafeTensors<'_>) -> Result<Graph, CheckpointError> {
    let unsound = |what: &str| CheckpointError::Tensor { name: "qir".to_owned(), what: what.to_owned() };
    let view = tensors.tensor("qir").map_err(|_| unsound("there is none"))?;
    if view.dtype() != Dtype::U8 || view.data().len() > MAX_TEXT_BYTES {
        return Err(unsound("it is no text"));
    }
    let source = std::str::from_utf8(view.data()).map_err(|_| unsound("it is no text"))?;
    let weights = |name: &str, ty: &TensorType| {
        let view = tensors.tensor(&format!("graph.{name}")).ok()?;
        let fits = view.dtype() == dtype(ty.elem) && view.shape() == ty.shape;
        fits.then(|| Constant { ty: ty.clone(), data: ConstData::Bytes(view.data().into()) })
    };
    let graph = text::parse_with_weights(source, &weights).map_err(CheckpointError::Parse)?;
    verify(&graph).map_err(CheckpointError::Verify)?;
    Ok(graph)
}

fn read_f32(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, CheckpointError> {
    let unsound = |what: &str| CheckpointError::Tensor { name: name.to_owned(), what: what.to_owned() };
    let view = tensors.tensor(name).map_err(|_| unsound("there is none"))?;
    if view.dtype() != Dtype::F32 {
        return Err(unsound("its elements are not f32"));
    }
    let elements: Vec<f32> =
        view.data().chunks_exact(4).map(|b| <[u8; 4]>::try_from(b).map_or(f32::NAN, f32::from_le_bytes)).collect();
    match elements.iter().all(|x| x.is_finite()) {
        true => Ok(elements),
        false => Err(unsound("it has NaN or infinite numbers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::tests::{POLICY, sample};

    fn checkpoint() -> Checkpoint {
        let graph = text::parse(POLICY).unwrap();
        let found = parameters::parameters(&graph, &[sample()]).unwrap();
        let now: Vec<Vec<f32>> = found.iter().map(|p| p.elements.clone()).collect();
        let half =
            |x: &Vec<Vec<f32>>| -> Vec<Vec<f32>> { x.iter().map(|x| x.iter().map(|x| x / 2.0).collect()).collect() };
        Checkpoint {
            facts: BTreeMap::from([("model".to_owned(), "abc".to_owned()), ("b".to_owned(), "x = y".to_owned())]),
            graph,
            names: found.iter().map(|p| p.name.clone()).collect(),
            state: State {
                step: 7,
                m: half(&now),
                v: now.clone(),
                average: None,
                best: half(&now),
                best_step: 5,
                best_score: 0.1 + 0.2,
                initial_loss: 1.0 / 3.0,
                now,
            },
        }
    }

    #[test]
    fn bytes_read_back_and_are_always_the_same() {
        let original = checkpoint();
        let bytes = original.to_bytes().unwrap();
        assert_eq!(original.to_bytes().unwrap(), bytes);
        let read = Checkpoint::from_bytes(&bytes).unwrap();
        assert_eq!(read.state, original.state);
        assert_eq!(read.facts, original.facts);
        assert_eq!(read.names, original.names);
        assert_eq!(text::print(&read.graph), text::print(&original.graph));
        assert_eq!(read.to_bytes().unwrap(), bytes);
        assert!(looks_like(&bytes));
    }

    #[test]
    fn the_best_parameters_are_the_result() {
        let graph = checkpoint().trained().unwrap();
        let w1 = graph.nodes().find(|&id| graph.node(id).name == "w1").unwrap();
        assert_eq!(graph.const_of(w1.value()).unwrap().all_f32().unwrap(), [0.5, -1.0]);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let bytes = checkpoint().to_bytes().unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Checkpoint::from_bytes(&damaged).is_err(), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(Checkpoint::from_bytes(&bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn parameters_of_another_size_are_refused() {
        for damage in [
            |c: &mut Checkpoint| c.state.best[0].push(0.0),
            |c: &mut Checkpoint| c.names[0] = "nobody".to_owned(),
            |c: &mut Checkpoint| c.names[0] = "h".to_owned(),
            |c: &mut Checkpoint| c.state.best[1][0] = f32::NAN,
        ] {
            let mut checkpoint = checkpoint();
            damage(&mut checkpoint);
            assert!(Checkpoint::from_bytes(&checkpoint.to_bytes().unwrap()).is_err());
        }
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        let foreign = safetensors::serialize([("x", Stored::bytes(b"abc"))], None).unwrap();
        assert_eq!(
            Checkpoint::from_bytes(&foreign).unwrap_err().to_string(),
            "it is a safetensors file, but not a checkpoint of qailc"
        );
        let later = std::collections::HashMap::from([(KEY.to_owned(), "format = 9\n".to_owned())]);
        let later = safetensors::serialize([("x", Stored::bytes(b"abc"))], Some(later)).unwrap();
        assert!(Checkpoint::from_bytes(&later).unwrap_err().to_string().contains("format 9"));
        assert!(!looks_like(b"\x08\x08\x12\x07pytorch"));
    }

    #[test]
    fn a_fact_with_a_line_end_is_refused() {
        let mut checkpoint = checkpoint();
        checkpoint.facts.insert("name".to_owned(), "two\nlines".to_owned());
        assert!(checkpoint.to_bytes().is_err());
    }
}
