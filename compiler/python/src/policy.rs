//! `Policy`: an artifact that is ready to run.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use qail_artifact::Artifact;
use qail_runtime::{ArtifactBytes, DeviceSpec, PortInfo, RuntimeError, Session, TensorView, TensorViewMut};
use qailc::{
    cli::{Exit, Failure, of_run, of_runtime},
    elements::Elements,
};

use crate::{
    arrays::{self, Given},
    exceptions::raise,
};

/// An input or output of a policy.
#[pyclass(frozen, module = "qailc", name = "PortInfo")]
#[derive(Debug)]
pub(crate) struct Port {
    info: PortInfo,
}

#[pymethods]
impl Port {
    /// Name.
    #[getter]
    fn name(&self) -> &str {
        &self.info.name
    }

    /// Name of the elements in numpy, for example "float32".
    #[getter]
    fn dtype(&self) -> &'static str {
        arrays::dtype(self.info.storage).unwrap_or("codes")
    }

    /// Extents of one step, without the batch axis.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, arrays::extents(&self.info))
    }

    /// Smallest value of each element of the last axis, or None if it is not known.
    #[getter]
    fn lower(&self) -> Option<Vec<f64>> {
        Some(self.info.lower.clone()).filter(|bounds| !bounds.is_empty())
    }

    /// Largest value of each element of the last axis, or None if it is not known.
    #[getter]
    fn upper(&self) -> Option<Vec<f64>> {
        Some(self.info.upper.clone()).filter(|bounds| !bounds.is_empty())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("PortInfo(name={:?}, dtype={:?}, shape={})", self.name(), self.dtype(), self.shape(py)?))
    }
}

/// A compiled policy, loaded and ready to run.
///
/// `device` is "cpu", "cpu:avx2", "gpu", "vulkan:0", "metal": see `devices()`.
/// Integer precisions give the same actions, bit for bit, on every device.
/// A policy may be used by several threads; its runs then take turns. Different
/// policies run at the same time.
#[pyclass(frozen, module = "qailc")]
#[derive(Debug)]
pub(crate) struct Policy {
    session: Mutex<Session>,
    inputs: Vec<PortInfo>,
    outputs: Vec<PortInfo>,
    name: String,
    device: String,
    precision: String,
    control_rate_hz: f64,
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (path, device = "cpu"))]
    fn new(py: Python<'_>, path: PathBuf, device: &str) -> PyResult<Self> {
        py.detach(|| Self::load(&path, device)).map_err(|failure| raise(py, &failure))
    }

    /// What `run` takes.
    #[getter]
    fn inputs(&self) -> Vec<Port> {
        self.inputs.iter().map(|info| Port { info: info.clone() }).collect()
    }

    /// What `run` gives.
    #[getter]
    fn outputs(&self) -> Vec<Port> {
        self.outputs.iter().map(|info| Port { info: info.clone() }).collect()
    }

    /// Name of the model that the policy was compiled from.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// What the policy really runs on, for example "cpu:avx2".
    #[getter]
    fn device(&self) -> &str {
        &self.device
    }

    /// What was done to the policy, for example "w4a4+e8+o16".
    #[getter]
    fn precision(&self) -> &str {
        &self.precision
    }

    /// Rate of the control loop that the policy was made for, or None.
    #[getter]
    fn control_rate_hz(&self) -> Option<f64> {
        Some(self.control_rate_hz).filter(|&rate| rate > 0.0)
    }

    /// Computes one step: a dict of arrays by input name to a dict of new arrays
    /// by output name.
    ///
    /// An array is C-contiguous, of the type and shape of its input; a batch axis
    /// of extent 1 in front is accepted, and outputs then have it too. Python's
    /// lock is given back while the policy runs.
    ///
    /// Raises TypeError for arrays of another type, and InvalidInput, a
    /// ValueError, for wrong names, shapes and numbers that are not finite.
    fn run<'py>(&self, py: Python<'py>, inputs: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
        let given = self.given(inputs)?;
        let batched = given.iter().any(|given| given.batched);
        let found = py.detach(|| self.step(&given)).map_err(|failure| raise(py, &failure))?;
        let outputs = PyDict::new(py);
        for (port, elements) in self.outputs.iter().zip(&found) {
            let mut shape = arrays::extents(port).to_vec();
            if batched {
                shape.insert(0, 1);
            }
            outputs.set_item(&port.name, arrays::write(py, elements, &shape)?)?;
        }
        Ok(outputs)
    }

    /// Forgets what came before, at the start of an episode.
    ///
    /// Every policy that this version runs is without memory, so there is nothing
    /// to forget; loops that call it will be right for policies with memory too.
    fn reset(&self) {}

    fn __repr__(&self) -> String {
        format!("Policy(name={:?}, precision={:?}, device={:?})", self.name, self.precision, self.device)
    }
}

impl Policy {
    fn load(path: &Path, device: &str) -> Result<Self, Failure> {
        let context = format!("cannot load `{}`", path.display());
        let device: DeviceSpec = device.parse().map_err(|error| Failure::new(Exit::Usage, context.clone(), &error))?;
        let failed = |error: RuntimeError| of_runtime(&context, &error);
        let bytes = ArtifactBytes::open(path).map_err(failed)?;
        let artifact = Artifact::parse(bytes.as_slice()).map_err(|error| failed(error.into()))?;
        let manifest = artifact.manifest();
        let (name, precision) = (manifest.name.clone(), manifest.precision.clone());
        let control_rate_hz = manifest.control_rate_hz;
        let session = Session::load(bytes.clone(), device).map_err(failed)?;
        let (inputs, outputs) = (session.inputs().to_vec(), session.outputs().to_vec());
        if let Some(port) = inputs.iter().chain(&outputs).find(|port| arrays::dtype(port.storage).is_none()) {
            let message = format!("`{}` holds codes, and only plain numbers are handed over", port.name);
            return Err(Failure::plain(Exit::Unsupported, message));
        }
        let device = session.device_name().to_owned();
        Ok(Self { session: Mutex::new(session), inputs, outputs, name, device, precision, control_rate_hz })
    }

    /// The inputs, in the order of the session.
    fn given(&self, inputs: &Bound<'_, PyDict>) -> PyResult<Vec<Given>> {
        let mut given = Vec::with_capacity(self.inputs.len());
        for port in &self.inputs {
            match inputs.get_item(&port.name)? {
                Some(value) => given.push(arrays::read(port, &value)?),
                None => return Err(self.wrong_names(inputs, &format!("`{}` is missing", port.name))),
            }
        }
        if inputs.len() > given.len() {
            let known = |key: &Bound<'_, PyAny>| {
                key.extract::<String>().is_ok_and(|key| self.inputs.iter().any(|port| port.name == key))
            };
            let unknown = inputs.keys().iter().find(|key| !known(key));
            let unknown = unknown.map_or_else(String::new, |key| key.to_string());
            return Err(self.wrong_names(inputs, &format!("`{unknown}` is none of them")));
        }
        Ok(given)
    }

    fn wrong_names(&self, inputs: &Bound<'_, PyDict>, what: &str) -> PyErr {
        let known: Vec<String> = self.inputs.iter().map(|port| format!("`{}`", port.name)).collect();
        let message = format!("the inputs of the policy are {}; {what}", known.join(", "));
        raise(inputs.py(), &Failure::plain(Exit::InvalidInput, message))
    }

    /// Runs the session. The session is only ever locked without Python's lock,
    /// so the two cannot wait for each other.
    fn step(&self, given: &[Given]) -> Result<Vec<Elements>, Failure> {
        let mut found: Vec<Elements> = self.outputs.iter().filter_map(Elements::zeros).collect();
        let inputs: Vec<TensorView<'_>> = given.iter().map(|given| given.elements.view()).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = found.iter_mut().map(Elements::view_mut).collect();
        // A session stays usable whatever happens in it.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let ran = session.run(&inputs, &mut outputs);
        drop(session);
        ran.map_err(|error| of_run("cannot run the policy", &error))?;
        Ok(found)
    }
}
