//! Exceptions: one class for each exit code of the command line.
//!
//! All of them are `qailc.Error`. Those about what the caller gave are
//! `ValueError` as well. Attributes say more than the message: `exit_code`,
//! `causes`, `help` and `blockers`.

use pyo3::{
    exceptions::{PyException, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple, PyType},
};
use qailc::cli::{Exit, Failure};

/// One class below `Error`: exit code, name, whether it is a `ValueError`, documentation.
const CLASSES: [(Exit, &str, bool, &str); 6] = [
    (Exit::Usage, "UsageError", true, "Options that make no sense."),
    (Exit::Unsupported, "UnsupportedModel", false, "The model is well-formed and qailc does not support it."),
    (Exit::InvalidInput, "InvalidInput", true, "A file or array is damaged, missing or does not fit the model."),
    (Exit::AccuracyGate, "AccuracyError", false, "Training did not come to a usable policy."),
    (Exit::NoDevice, "NoDevice", false, "There is no such device here."),
    (Exit::Artifact, "ArtifactError", false, "The artifact is damaged or of another version."),
];

/// The classes, made when the module is loaded.
struct Classes {
    error: Py<PyType>,
    /// In the order of [`CLASSES`].
    below: Vec<Py<PyType>>,
}

static MADE: PyOnceLock<Classes> = PyOnceLock::new();

/// Adds the classes to the module.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = classes(py)?;
    module.add("Error", classes.error.bind(py))?;
    CLASSES.iter().zip(&classes.below).try_for_each(|((_, name, ..), class)| module.add(*name, class.bind(py)))
}

/// The exception for a failure of the command line.
pub(crate) fn raise(py: Python<'_>, failure: &Failure) -> PyErr {
    exception(py, failure).unwrap_or_else(|error| error)
}

fn exception(py: Python<'_>, failure: &Failure) -> PyResult<PyErr> {
    let classes = classes(py)?;
    let below = CLASSES.iter().zip(&classes.below).find(|((exit, ..), _)| *exit == failure.exit);
    let class = below.map_or(&classes.error, |(_, class)| class).bind(py);
    let text = failure.render();
    let value = class.call1((text.trim_start_matches("error: ").trim_end(),))?;
    value.setattr("exit_code", failure.exit as u8)?;
    value.setattr("causes", &failure.causes)?;
    value.setattr("help", &failure.help)?;
    let blocker = |blocker: &qailc::frontend::Blocker| {
        let dict = PyDict::new(py);
        dict.set_item("node", &blocker.node)?;
        dict.set_item("op", &blocker.op)?;
        dict.set_item("reason", &blocker.reason)?;
        dict.set_item("remedy", &blocker.remedy)?;
        Ok(dict)
    };
    value.setattr("blockers", failure.blockers.iter().map(blocker).collect::<PyResult<Vec<_>>>()?)?;
    Ok(PyErr::from_value(value))
}

fn classes(py: Python<'_>) -> PyResult<&Classes> {
    MADE.get_or_try_init(py, || {
        let exception = py.get_type::<PyException>();
        let error = class(py, "Error", &[&exception], "Whatever qailc could not do.")?;
        let below = CLASSES.iter().map(|(_, name, is_value_error, documentation)| {
            let value_error = py.get_type::<PyValueError>();
            let bases: &[&Bound<'_, PyType>] = if *is_value_error { &[&error, &value_error] } else { &[&error] };
            class(py, name, bases, documentation).map(Bound::unbind)
        });
        Ok(Classes { below: below.collect::<PyResult<_>>()?, error: error.unbind() })
    })
}

/// A class of several bases, which the macros of pyo3 have no form for.
fn class<'py>(
    py: Python<'py>,
    name: &str,
    bases: &[&Bound<'py, PyType>],
    documentation: &str,
) -> PyResult<Bound<'py, PyType>> {
    let content = PyDict::new(py);
    content.set_item("__module__", "qailc")?;
    content.set_item("__doc__", documentation)?;
    content.set_item("exit_code", Exit::Internal as u8)?;
    let made = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, content))?;
    Ok(made.cast_into::<PyType>()?)
}
