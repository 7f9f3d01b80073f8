//! Types of the inputs: element types and extents, names of extents bound.
//!
//! A policy steps one observation at a time, so an extent that is called like
//! a batch is 1 unless the user says otherwise. Any other name must be bound.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::TensorType;

use super::{
    error::{ImportError, shown},
    findings::Findings,
    proto::{Dim, GraphProto, TensorTypeProto, TypeValue, ValueInfoProto, data_type},
    tensor,
};

/// Most elements of a value that is computed: 1 GiB of `f32`.
pub(super) const MAX_VALUE_ELEMENTS: usize = 1 << 28;

/// Extents given by the user, and those that were used.
#[derive(Debug)]
pub(super) struct Dims<'a> {
    given: &'a BTreeMap<String, usize>,
    /// Every name that was bound, and its extent.
    pub(super) bound: BTreeMap<String, usize>,
}

impl<'a> Dims<'a> {
    /// Fails if the user names a dimension that no input has.
    pub(super) fn new(graph: &GraphProto, given: &'a BTreeMap<String, usize>) -> Result<Self, ImportError> {
        let known: BTreeSet<&str> = graph.input.iter().flat_map(names).collect();
        match given.keys().find(|name| !known.contains(name.as_str())) {
            Some(name) => Err(ImportError::UnknownDim {
                name: name.clone(),
                known: known.into_iter().filter(|name| !name.is_empty()).map(shown).collect(),
            }),
            None => Ok(Self { given, bound: BTreeMap::new() }),
        }
    }

    /// Type of an input, or nothing if something was found.
    pub(super) fn input_type(&mut self, info: &ValueInfoProto, findings: &mut Findings) -> Option<TensorType> {
        let name = shown(&info.name);
        let place = format!("input `{name}`");
        let Some(value) = info.r#type.as_ref().and_then(|ty| ty.value.as_ref()) else {
            findings.problem(place, "has no type");
            return None;
        };
        let TypeValue::Tensor(ty) = value else {
            findings.blocker("input", &name, format!("it is {}", kind(value)), "export a model that takes tensors");
            return None;
        };
        let Some((dtype, converted)) = tensor::dtype(ty.elem_type) else {
            let reason = format!("its element type is {}", data_type::name(ty.elem_type));
            findings.blocker("input", &name, reason, "export with inputs of type float32, uint8, int32, int64 or bool");
            return None;
        };
        if converted {
            findings.note(format!("input `{name}` is {} in the model and f32 here", data_type::name(ty.elem_type)));
        }
        let shape = self.shape(&name, ty, findings)?;
        let ty = TensorType::plain(dtype, shape);
        if ty.n_elements() > MAX_VALUE_ELEMENTS {
            findings.problem(place, format!("{ty} has more than {MAX_VALUE_ELEMENTS} elements"));
            return None;
        }
        Some(ty)
    }

    fn shape(&mut self, name: &str, ty: &TensorTypeProto, findings: &mut Findings) -> Option<Vec<usize>> {
        let Some(shape) = &ty.shape else {
            findings.blocker("input", name, "it has no shape", "export with fixed input shapes");
            return None;
        };
        if shape.dim.len() > tensor::MAX_RANK {
            findings.problem(format!("input `{name}`"), format!("its rank is {}", shape.dim.len()));
            return None;
        }
        let extents: Vec<Option<usize>> = shape
            .dim
            .iter()
            .enumerate()
            .map(|(axis, dim)| match &dim.value {
                Some(Dim::Value(extent)) => match usize::try_from(*extent) {
                    Ok(extent) if extent > 0 => Some(extent),
                    _ => {
                        findings.problem(format!("input `{name}`"), format!("axis {axis} has extent {extent}"));
                        None
                    }
                },
                Some(Dim::Param(param)) => self.bind(name, axis, param, findings),
                None => self.bind(name, axis, "", findings),
            })
            .collect();
        extents.into_iter().collect()
    }

    fn bind(&mut self, input: &str, axis: usize, param: &str, findings: &mut Findings) -> Option<usize> {
        if let Some(&extent) = self.given.get(param) {
            if extent == 0 {
                let remedy = format!("pass --dim {param}=VALUE with a value of at least 1");
                findings.blocker("input", input, format!("dimension `{param}` is bound to 0"), remedy);
                return None;
            }
            self.bound.insert(param.to_owned(), extent);
            return Some(extent);
        }
        if is_batch(param, axis) {
            let shown_name = if param.is_empty() { "without a name".to_owned() } else { format!("`{}`", shown(param)) };
            findings.note(format!("dimension {shown_name} of input `{input}` is a batch, taken as 1"));
            self.bound.insert(param.to_owned(), 1);
            return Some(1);
        }
        let (reason, remedy) = if param.is_empty() {
            (format!("the extent of axis {axis} is not known"), "export with fixed input shapes".to_owned())
        } else {
            let param = shown(param);
            (format!("dimension `{param}` of axis {axis} is not bound"), format!("pass --dim {param}=VALUE"))
        };
        findings.blocker("input", input, reason, remedy);
        None
    }
}

/// True if the extent is most likely a batch: by its name, or as a leading axis
/// without one.
fn is_batch(param: &str, axis: usize) -> bool {
    let name = param.to_ascii_lowercase();
    let unnamed = name.is_empty() || name == "?" || name.starts_with("unk__");
    name == "n" || name == "b" || name.contains("batch") || (unnamed && axis == 0)
}

fn names(info: &ValueInfoProto) -> impl Iterator<Item = &str> {
    let shape = match info.r#type.as_ref().and_then(|ty| ty.value.as_ref()) {
        Some(TypeValue::Tensor(ty)) => ty.shape.as_ref(),
        _ => None,
    };
    shape.into_iter().flat_map(|shape| &shape.dim).filter_map(|dim| match &dim.value {
        Some(Dim::Param(name)) => Some(name.as_str()),
        Some(Dim::Value(_)) | None => None,
    })
}

fn kind(value: &TypeValue) -> &'static str {
    match value {
        TypeValue::Tensor(_) => "a tensor",
        TypeValue::Sequence(_) => "a sequence",
        TypeValue::Map(_) => "a map",
        TypeValue::Opaque(_) => "an opaque value",
        TypeValue::Sparse(_) => "a sparse tensor",
        TypeValue::Optional(_) => "an optional value",
    }
}
