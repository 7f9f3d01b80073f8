//! `Policy`: an artifact that is ready to run.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use qail_artifact::Artifact;
use qail_runtime::{
    ArtifactBytes, ChunkPolicy, Controller, DeviceSpec, PortInfo, RuntimeError, Session, Storage, TensorView,
    TensorViewMut,
};
use qailc::{
    cli::{Exit, Failure, of_control, of_run, of_runtime},
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
    runner: Mutex<Runner>,
    action: Option<PortInfo>,
    chunk: Option<ChunkPolicy>,
    inputs: Vec<PortInfo>,
    outputs: Vec<PortInfo>,
    name: String,
    device: String,
    precision: String,
    control_rate_hz: f64,
}

/// A session, and if it is known what the action is, what gives it out.
#[derive(Debug)]
enum Runner {
    Outputs(Session),
    Actions(Controller),
}

impl Runner {
    fn session(&mut self) -> &mut Session {
        match self {
            Self::Outputs(session) => session,
            Self::Actions(controller) => controller.session_mut(),
        }
    }
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

    /// Name of the output that `act` gives, or None if it is not known.
    #[getter]
    fn action(&self) -> Option<&str> {
        self.action.as_ref().map(|port| port.name.as_str())
    }

    /// How `act` gives out the actions of a chunk: a dict with `length`, `execute`
    /// and `ensemble`, or None if the policy computes one action a step.
    #[getter]
    fn chunk<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(chunk) = self.chunk else { return Ok(None) };
        let dict = PyDict::new(py);
        dict.set_item("length", chunk.length)?;
        dict.set_item("execute", chunk.execute)?;
        dict.set_item("ensemble", chunk.ensemble)?;
        Ok(Some(dict))
    }

    /// Gives the action of this step, one behind the other of an episode: an
    /// array of the shape of one action.
    ///
    /// A policy of chunks computes when its queue is empty, or in every step when
    /// ensembling, and else gives out the next row of the last chunk; other
    /// policies compute in every step. After an exception the step has not
    /// happened, and what is in the queue stays.
    ///
    /// Takes what `run` takes and raises what it raises, and UsageError if it is
    /// not known which output is the action.
    fn act<'py>(&self, py: Python<'py>, inputs: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
        let given = self.given(inputs)?;
        let action = py.detach(|| self.action_of(&given)).map_err(|failure| raise(py, &failure))?;
        let mut shape = match (&self.action, self.chunk) {
            (Some(port), None) => arrays::extents(port).to_vec(),
            _ => vec![action.len()],
        };
        if given.iter().any(|given| given.batched) {
            shape.insert(0, 1);
        }
        arrays::write(py, &Elements::F32(action), &shape)
    }

    /// Computes one step: a dict of arrays by input name to a dict of new arrays
    /// by output name; chunks of actions are given whole, and the queue of `act`
    /// is left alone.
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

    /// Forgets what came before, at the start of an episode: the states of
    /// recurrent policies, and actions of chunks that `act` has not given out.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let reset = || match &mut *self.runner() {
            Runner::Actions(controller) => controller.reset(),
            Runner::Outputs(session) => session.reset(),
        };
        py.detach(reset).map_err(|error| raise(py, &of_run("cannot reset the policy", &error)))
    }

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
        // An action is made of floats.
        let action = session.action().and_then(|index| outputs.get(index)).cloned();
        let action = action.filter(|port| port.storage == Storage::F32);
        let chunk = session.chunk();
        let runner = match &action {
            Some(_) => Runner::Actions(Controller::new(session).map_err(|error| of_control(&context, &error))?),
            None => Runner::Outputs(session),
        };
        let runner = Mutex::new(runner);
        Ok(Self { runner, action, chunk, inputs, outputs, name, device, precision, control_rate_hz })
    }

    /// Whatever happened in a session, it stays usable. It is only ever locked
    /// without Python's lock, so the two cannot wait for each other.
    fn runner(&self) -> MutexGuard<'_, Runner> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The action of this step.
    fn action_of(&self, given: &[Given]) -> Result<Vec<f32>, Failure> {
        let inputs: Vec<TensorView<'_>> = given.iter().map(|given| given.elements.view()).collect();
        let mut runner = self.runner();
        let Runner::Actions(controller) = &mut *runner else {
            let known: Vec<String> = self.outputs.iter().map(|port| format!("`{}`", port.name)).collect();
            let message = format!("it is not known which output is the action; the outputs are {}", known.join(", "));
            return Err(Failure::plain(Exit::Usage, message).help("compile with action_output=NAME, or use run"));
        };
        let mut action = vec![0.0; controller.action_len()];
        controller.act(&inputs, &mut action).map_err(|error| of_control("cannot run the policy", &error))?;
        Ok(action)
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

    /// Runs the session.
    fn step(&self, given: &[Given]) -> Result<Vec<Elements>, Failure> {
        let mut found: Vec<Elements> = self.outputs.iter().filter_map(Elements::zeros).collect();
        let inputs: Vec<TensorView<'_>> = given.iter().map(|given| given.elements.view()).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = found.iter_mut().map(Elements::view_mut).collect();
        let ran = self.runner().session().run(&inputs, &mut outputs);
        ran.map_err(|error| of_run("cannot run the policy", &error))?;
        Ok(found)
    }
}
