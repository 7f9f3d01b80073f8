//! The Python module `qailc`: compiles as the command line does, and runs
//! artifacts inside a Python control loop.
//!
//! Names and types as Python sees them are in `qailc.pyi`. Nothing is computed
//! here: a policy is a session of the runtime, and compiling is the command
//! `qailc compile` with keywords for flags. Python's lock is given back while
//! either works.

mod arrays;
mod compile;
mod exceptions;
mod policy;

use pyo3::{prelude::*, types::PyDict};

use policy::{Policy, Port};

/// Everything that can run artifacts here: a list of dicts with `device` (the
/// name that `Policy` takes), `kind`, `name` and `driver`.
#[pyfunction]
fn devices(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let found = py.detach(qailc::cli::devices);
    let as_dict = |device: &qailc::cli::Device| {
        let dict = PyDict::new(py);
        dict.set_item("device", &device.device)?;
        dict.set_item("kind", device.kind)?;
        dict.set_item("name", &device.name)?;
        dict.set_item("driver", &device.driver)?;
        Ok(dict)
    };
    found.iter().map(as_dict).collect()
}

/// Compiles imitation-learned policies (ONNX) to quantized artifacts and runs them.
#[pymodule(name = "qailc")]
fn python_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Without numpy the first array would bring everything down; this is an
    // `ImportError` that says what is missing.
    module.py().import("numpy")?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    exceptions::add(module)?;
    module.add_class::<Policy>()?;
    module.add_class::<Port>()?;
    module.add_function(wrap_pyfunction!(compile::compile, module)?)?;
    module.add_function(wrap_pyfunction!(devices, module)?)?;
    Ok(())
}
