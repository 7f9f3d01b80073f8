//! Arrays in and out: what fits an input, and outputs as arrays.
//!
//! Elements are copied under Python's lock: the caller may change an array while
//! the policy runs without it. Nothing is converted; an array of another type
//! would be a copy that the caller does not see, or a rounding.

use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::{exceptions::PyTypeError, prelude::*};
use qail_runtime::{PortInfo, Storage};
use qailc::{
    cli::{Exit, Failure},
    elements::Elements,
};

use crate::exceptions::raise;

/// One input, taken over.
pub(crate) struct Given {
    /// The numbers.
    pub(crate) elements: Elements,
    /// True if the array had a batch axis in front, of extent 1.
    pub(crate) batched: bool,
}

/// Extents of one step: a leading axis of extent 1 is the batch.
pub(crate) fn extents(port: &PortInfo) -> &[usize] {
    port.shape.strip_prefix(&[1]).unwrap_or(&port.shape)
}

/// Name of the elements in numpy; none for codes, which are not handed over.
pub(crate) fn dtype(storage: Storage) -> Option<&'static str> {
    match storage {
        Storage::F32 => Some("float32"),
        Storage::I32 => Some("int32"),
        Storage::U8 => Some("uint8"),
        Storage::I64 => Some("int64"),
        Storage::Unspecified | Storage::I8 | Storage::I16 => None,
    }
}

/// Takes an array over.
///
/// # Errors
/// `TypeError` and `ValueError` that name the input.
pub(crate) fn read(port: &PortInfo, value: &Bound<'_, PyAny>) -> PyResult<Given> {
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        let found = value.get_type().name()?;
        return Err(wrong_type(port, &format!("`{found}`")));
    };
    let elements = match port.storage {
        Storage::F32 => typed(port, array).map(Elements::F32),
        Storage::I32 => typed(port, array).map(Elements::I32),
        Storage::U8 => typed(port, array).map(Elements::U8),
        Storage::I64 => typed(port, array).map(Elements::I64),
        Storage::Unspecified | Storage::I8 | Storage::I16 => Err(wrong_type(port, "codes")),
    }?;
    let (shape, expected) = (array.shape(), extents(port));
    let batched = shape != expected;
    if batched && shape.strip_prefix(&[1]) != Some(expected) {
        let message = format!("input `{}` has the shape {}, found {}", port.name, tuple(expected), tuple(shape));
        return Err(raise(value.py(), &Failure::plain(Exit::InvalidInput, message)));
    }
    Ok(Given { elements, batched })
}

fn typed<T: Element + Copy>(port: &PortInfo, array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<T>> {
    let Ok(typed) = array.cast::<PyArrayDyn<T>>() else {
        let descr = array.dtype();
        let order = if descr.byteorder() == b'>' { " of the other byte order" } else { "" };
        return Err(wrong_type(port, &format!("an array of {descr}{order}")));
    };
    if !typed.is_c_contiguous() || !typed.is_aligned() {
        let message = format!("the array for input `{}` is not contiguous in memory", port.name);
        let failure = Failure::plain(Exit::InvalidInput, message).help("pass numpy.ascontiguousarray(..) of it");
        return Err(raise(array.py(), &failure));
    }
    Ok(typed.try_readonly()?.as_slice()?.to_vec())
}

fn wrong_type(port: &PortInfo, found: &str) -> PyErr {
    let dtype = dtype(port.storage).unwrap_or("codes");
    PyTypeError::new_err(format!("input `{}` takes a numpy array of {dtype}, found {found}", port.name))
}

/// An output as an array of this shape.
///
/// # Errors
/// If Python has no memory left.
pub(crate) fn write<'py>(py: Python<'py>, elements: &Elements, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    match elements {
        Elements::F32(x) => Ok(PyArray1::from_slice(py, x).reshape(shape)?.into_any()),
        Elements::I32(x) => Ok(PyArray1::from_slice(py, x).reshape(shape)?.into_any()),
        Elements::U8(x) => Ok(PyArray1::from_slice(py, x).reshape(shape)?.into_any()),
        Elements::I64(x) => Ok(PyArray1::from_slice(py, x).reshape(shape)?.into_any()),
    }
}

/// Extents as Python prints them.
fn tuple(shape: &[usize]) -> String {
    match shape {
        [only] => format!("({only},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
