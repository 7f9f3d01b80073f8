//! Graphs in files: the text form, and beside it what is too long for a text.
//!
//! The long constants of `graph.qir` are in `graph.qir.weights`, a safetensors
//! file with one tensor for each `file("name")` of the text. Types are those of
//! the text; codes lie there as `I8`, `U8`, `I16` and `U16`.

use std::{
    io,
    path::{Path, PathBuf},
};

use qail_ir::{ConstData, ConstError, Constant, DType, Elem, Graph, TensorType, VerifyError, text};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};

use crate::files::{self, WriteError, read_text, write_atomic};

/// Largest text that is read.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A graph that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum QirError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No text that a person or a pass has written.
    #[error("`{}` has more than {MAX_TEXT_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not a graph.
    #[error(transparent)]
    Parse(#[from] text::ParseError),
    /// A graph that contradicts itself.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The file of the weights is damaged.
    #[error("`{}` is not a safetensors file; write it again with `qailc opt -o`", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SafeTensorError,
    },
    /// A constant of the graph cannot be read.
    #[error(transparent)]
    Const(#[from] ConstError),
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes a graph, and its long constants beside it. They are written first: a
/// text never refers to what is not there.
///
/// # Errors
/// If a constant cannot be read or a file cannot be written.
pub fn write(path: &Path, graph: &Graph) -> Result<(), QirError> {
    let (text, weights) = text::print_with_weights(graph);
    if !weights.is_empty() {
        let mut tensors = Vec::with_capacity(weights.len());
        for (name, constant) in &weights {
            let bytes = constant.read_bytes(0..constant.ty.n_elements())?;
            tensors.push((name.as_str(), &constant.ty, bytes));
        }
        let path = weights_path(path);
        let failed = |source| QirError::Weights { path: path.clone(), source };
        let views = tensors
            .iter()
            .map(|(name, ty, bytes)| Ok((*name, TensorView::new(stored_type(ty.elem), ty.shape.to_vec(), bytes)?)));
        let views = views.collect::<Result<Vec<_>, SafeTensorError>>().map_err(failed)?;
        let bytes = safetensors::serialize(views, None).map_err(failed)?;
        write_atomic(&path, &bytes)?;
    }
    Ok(write_atomic(path, text.as_bytes())?)
}

/// Reads a graph, and its long constants from the file beside it, and verifies it.
///
/// # Errors
/// If a file cannot be read or does not hold a graph.
pub fn read(path: &Path) -> Result<Graph, QirError> {
    let failed = |source| QirError::Read { path: path.to_owned(), source };
    let source = read_text(path, MAX_TEXT_BYTES).map_err(failed)?;
    let source = source.ok_or_else(|| QirError::TooLarge { path: path.to_owned() })?;
    let path = weights_path(path);
    let bytes = match files::read(&path) {
        Ok(bytes) => Some(bytes),
        // Then the text may not need it; if it does, parsing says so.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(QirError::Read { path, source }),
    };
    let weights = bytes.as_deref().map(SafeTensors::deserialize).transpose();
    let weights = weights.map_err(|source| QirError::Weights { path, source })?;
    let constant = |name: &str, ty: &TensorType| constant(&weights.as_ref()?.tensor(name).ok()?, ty);
    let graph = text::parse_with_weights(&source, &constant)?;
    qail_ir::verify(&graph)?;
    Ok(graph)
}

/// Where the long constants of a text are.
pub fn weights_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".weights");
    name.into()
}

/// The constant of a tensor: of the declared type if the elements are those, or
/// of the type that they have.
fn constant(tensor: &TensorView<'_>, declared: &TensorType) -> Option<Constant> {
    let elem = if tensor.dtype() == stored_type(declared.elem) {
        declared.elem
    } else {
        let plain = [DType::Bool, DType::U8, DType::I32, DType::I64, DType::F32, DType::F64];
        plain.into_iter().map(Elem::Plain).find(|&elem| stored_type(elem) == tensor.dtype())?
    };
    let ty = TensorType { elem, shape: tensor.shape().into() };
    Some(Constant { ty, data: ConstData::Bytes(tensor.data().into()) })
}

fn stored_type(elem: Elem) -> Dtype {
    match elem {
        Elem::Plain(DType::Bool) => Dtype::BOOL,
        Elem::Plain(DType::U8) => Dtype::U8,
        Elem::Plain(DType::I32) => Dtype::I32,
        Elem::Plain(DType::I64) => Dtype::I64,
        Elem::Plain(DType::F32) => Dtype::F32,
        Elem::Plain(DType::F64) => Dtype::F64,
        Elem::Code(scheme) => match (scheme.signed, scheme.size_bytes()) {
            (true, 1) => Dtype::I8,
            (true, _) => Dtype::I16,
            (false, 1) => Dtype::U8,
            (false, _) => Dtype::U16,
        },
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::{Origin, QuantScheme};

    use super::*;

    fn graph() -> Graph {
        let mut graph = Graph::default();
        for (i, scheme) in
            [QuantScheme::signed(4), QuantScheme::unsigned(8), QuantScheme::signed(16)].iter().enumerate()
        {
            let codes: Vec<i64> = (0..20).map(|k| (k % 8) - i64::from(scheme.signed)).collect();
            let constant = Constant::ints(TensorType::code(*scheme, [4, 5]), &codes);
            let value = graph.add_const(format!("/layer {i}:0"), constant, Origin::default());
            graph.add_output(format!("o{i}"), value);
        }
        let constant = Constant::f32([17], &[0.5; 17]);
        let value = graph.add_const("w", constant, Origin::default());
        graph.add_output("w", value);
        graph
    }

    #[test]
    fn every_type_survives_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qir");
        let graph = graph();
        write(&path, &graph).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(text::print(&found), text::print(&graph));
        let elements = |graph: &Graph| -> Vec<Vec<f64>> {
            let outputs = graph.outputs.iter();
            outputs.map(|output| graph.const_of(output.value).unwrap().all().unwrap()).collect()
        };
        assert_eq!(elements(&found), elements(&graph));
    }

    #[test]
    fn damaged_weights_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qir");
        write(&path, &graph()).unwrap();
        let bytes = std::fs::read(weights_path(&path)).unwrap();
        let mut n_read = 0;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(weights_path(&path), &damaged).unwrap();
            n_read += usize::from(read(&path).is_ok());
            std::fs::write(weights_path(&path), &bytes[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at {at}");
        }
        // Bits of elements are as good as others; bits of the header are not.
        assert!(n_read < bytes.len() * 2 / 3, "{n_read} of {}", bytes.len());
        std::fs::remove_file(weights_path(&path)).unwrap();
        assert!(matches!(read(&path), Err(QirError::Parse(_))));
    }
}
