//! Reads ONNX models into graphs.
//!
//! A model passes through these steps, and everything that is wrong with it is
//! reported at once:
//!
//! 1. [`load`](self) maps the file, scans the wire format and decodes it,
//! 2. `validate` checks names, cycles and constants, and prunes what the
//!    outputs do not need,
//! 3. `import` turns nodes into operations and folds constants,
//! 4. `tract` infers the shapes a second time.
//!
//! Models are not trusted: no file makes this module panic, read outside of the
//! model's folder, or take memory out of proportion.

mod dims;
pub mod error;
pub mod external;
mod findings;
mod import;
mod load;
pub mod proto;
mod region;
mod scan;
mod tensor;
mod tract;
mod validate;

use std::{collections::BTreeMap, path::Path};

use prost::bytes::Bytes;
use qail_ir::Graph;
use sha2::{Digest, Sha256};

use crate::files::hex;

use self::{
    error::shown,
    external::Folder,
    findings::Findings,
    proto::{Dim, GraphProto, ModelProto, TypeValue, ValueInfoProto},
    validate::Checked,
};
pub use self::{
    error::{Blocker, ErrorKind, ImportError, Problem},
    external::{ExternalError, ExternalReason, external_files},
};

/// How to read a model.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Extents of named dimensions. One that is called like a batch is 1 unless
    /// it is given here.
    pub dims: BTreeMap<String, usize>,
    /// Names of the tensors to hand back, in order; all outputs of the model if
    /// none. What they do not need is dropped.
    pub outputs: Option<Vec<String>>,
}

/// A model that was read.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The graph, in `f32`.
    pub graph: Graph,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
    /// SHA-256 of the model and of the files it refers to, in hexadecimal.
    pub sha256: String,
    /// Version of the standard operators.
    pub opset: i64,
    /// Tool that wrote the model, and its version; may be empty.
    pub producer: String,
    /// Extents bound to names.
    pub dims: BTreeMap<String, usize>,
    /// Bytes of the model and of the files it refers to.
    pub size_bytes: u64,
    /// True if a second, independent shape inference agrees on every output.
    pub cross_checked: bool,
}

/// Takes the bytes of files beside the model that were hashed, and those in all.
pub type Progress<'a> = dyn FnMut(u64, u64) + 'a;

/// Bytes of a file that are read at once to be hashed.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Reads the model at `path`; constants in other files lie below its folder.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, ImportError> {
    import_with(path, options, &mut |_, _| {})
}

/// As [`import`], and says how far it is: files beside a model can be large.
pub fn import_with(path: &Path, options: &ImportOptions, progress: &mut Progress<'_>) -> Result<Imported, ImportError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    read(load::read(path)?, Some(folder), options, progress)
}

/// Reads a model from memory; constants in other files lie below `base_dir`,
/// and are refused without one.
pub fn import_bytes(
    bytes: impl Into<Bytes>,
    base_dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Imported, ImportError> {
    read(bytes.into(), base_dir, options, &mut |_, _| {})
}

fn read(
    bytes: Bytes,
    base_dir: Option<&Path>,
    options: &ImportOptions,
    progress: &mut Progress<'_>,
) -> Result<Imported, ImportError> {
    let model = load::decode(bytes.clone())?;
    let mut folder = Folder::new(base_dir);
    let mut findings = Findings::default();
    let checked = validate::check(&model, &mut folder, options, &mut findings)?;
    let size_bytes = folder
        .files()
        .fold(bytes.len(), |n, (_, file)| n.saturating_add(usize::try_from(file.len()).unwrap_or(usize::MAX)));
    let graph = import::build(&checked, size_bytes, &mut findings);
    findings.stop_if_any()?;
    let mut graph = graph.ok_or_else(|| ImportError::Internal("a node failed without a reason".to_owned()))?;
    graph.batch_axis = batch_axis(&graph);
    graph.metadata = model.metadata_props.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    compare_declared(&graph, checked.graph, &mut findings);
    let cross_checked = cross_check(&graph, &model, &checked, &mut findings);
    let sha256 = sha256(&bytes, &folder, progress)?;
    let producer = format!("{} {}", shown(&model.producer_name), shown(&model.producer_version)).trim().to_owned();
    Ok(Imported {
        graph,
        sha256,
        opset: checked.opset,
        producer,
        dims: checked.dims,
        size_bytes: size_bytes as u64,
        cross_checked,
        notes: findings.notes,
    })
}

/// Standard operators that are imported, sorted. Others are refused.
pub fn operators() -> impl Iterator<Item = &'static str> {
    import::operators()
}

/// Versions of the standard operators that are understood.
pub fn opsets() -> std::ops::RangeInclusive<i64> {
    validate::OPSETS
}

/// The leading axis, if every input and output has one of the same extent, and
/// one of them is more than a list. States do not count: their elements may lie
/// along another axis.
pub(crate) fn batch_axis(graph: &Graph) -> Option<usize> {
    let inputs = graph.inputs().iter().map(|&node| (graph.node(node).name.as_str(), node.value()));
    let inputs = inputs.filter(|(name, _)| graph.state_of_input(name).is_none());
    let outputs = graph.outputs.iter().map(|output| (output.name.as_str(), output.value));
    let outputs = outputs.filter(|(name, _)| graph.state_of_output(name).is_none());
    let shapes: Vec<&[usize]> = inputs.chain(outputs).map(|(_, value)| graph.ty(value).shape.as_slice()).collect();
    let first = *shapes.first()?.first()?;
    // A list as long as the batch is one number a sample: a timestep.
    let fits = |shape: &&[usize]| shape.first() == Some(&first) && (shape.len() > 1 || first == 1);
    (shapes.iter().any(|shape| shape.len() > 1) && shapes.iter().all(fits)).then_some(0)
}

/// Notes where the model declares another shape for an output: exporters do
/// that, and a reader of the file may rely on it.
fn compare_declared(graph: &Graph, declared: &GraphProto, findings: &mut Findings) {
    let declared: BTreeMap<&str, &ValueInfoProto> =
        declared.output.iter().map(|info| (info.name.as_str(), info)).collect();
    for output in &graph.outputs {
        let info = declared.get(output.name.as_str());
        let Some(TypeValue::Tensor(ty)) = info.and_then(|info| info.r#type.as_ref()?.value.as_ref()) else { continue };
        let Some(shape) = &ty.shape else { continue };
        let found = &graph.ty(output.value).shape;
        let fits = shape.dim.len() == found.len()
            && shape.dim.iter().zip(found).all(|(dim, &extent)| match &dim.value {
                Some(Dim::Value(value)) => usize::try_from(*value) == Ok(extent),
                Some(Dim::Param(_)) | None => true,
            });
        if !fits {
            findings.note(format!("output `{}` is declared with another shape than {found:?}", shown(&output.name)));
        }
    }
}

fn cross_check(graph: &Graph, model: &ModelProto, checked: &Checked<'_>, findings: &mut Findings) -> bool {
    let large = |id| graph.node(id).outputs.iter().any(|ty| ty.n_elements() > tract::MAX_COMPUTED_ELEMENTS);
    let computed = |&id: &qail_ir::NodeId| !matches!(graph.node(id).op, qail_ir::Op::Const(_));
    if graph.topo().into_iter().filter(computed).any(large) {
        return false;
    }
    let shapes = tract::output_shapes(model, checked);
    let mut agrees = true;
    for (output, shape) in graph.outputs.iter().zip(shapes) {
        let ours = &graph.ty(output.value).shape;
        agrees &= shape.as_ref() == Some(ours);
        if let Some(theirs) = shape.filter(|theirs| theirs != ours) {
            let name = shown(&output.name);
            findings.note(format!("output `{name}` has shape {ours:?}; tract infers {theirs:?}"));
        }
    }
    agrees
}

/// Hashes the model and the files beside it, block by block.
fn sha256(model: &Bytes, folder: &Folder, progress: &mut Progress<'_>) -> Result<String, ImportError> {
    let mut hash = Sha256::new();
    hash.update(model);
    let all = folder.files().fold(0u64, |all, (_, file)| all.saturating_add(file.len()));
    let mut done = 0u64;
    let mut block = vec![0; HASHED_AT_ONCE];
    for (location, file) in folder.files() {
        hash.update(location.as_bytes());
        hash.update(file.len().to_le_bytes());
        let mut start = 0;
        while start < file.len() {
            let n = usize::try_from(file.len() - start).map_or(HASHED_AT_ONCE, |n| n.min(HASHED_AT_ONCE));
            let block = block.get_mut(..n).unwrap_or_default();
            file.read(start, block).map_err(|source| ImportError::Io { path: location.into(), source })?;
            hash.update(&*block);
            start += n as u64;
            done = done.saturating_add(n as u64);
            progress(done, all);
        }
    }
    Ok(hex(&hash.finalize()))
}
