//! Devices, and the boundary between a session and what runs its device steps.
//!
//! A [`Session`](crate::Session) owns the [`HostMemory`] and walks over the
//! [`Plan`]: host segments are computed by `host.rs`, device segments are handed
//! to a [`DeviceExec`]. The CPU kernels and the GPU are two implementations of
//! that trait; neither knows the other.
//!
//! Rules between the session and an implementation:
//!
//! - Every arena, also a device arena, has a mirror in the host memory. Host
//!   steps only ever see the mirror. A CPU executor computes in the mirror; a
//!   GPU executor moves [`Segment::uploads`] from the mirror before its first
//!   dispatch and [`Segment::downloads`] into the mirror after its last one.
//! - The mirror always has the form of a CPU session: `Storage::I16` is one
//!   little-endian `i16` an element. A GPU executor splits such a tensor into
//!   its two planes when it uploads it, and joins them when it downloads it.
//! - Places come from [`Plan::tensors`], never from the manifest: with
//!   `keep_intermediates` every tensor has memory of its own.
//! - A device segment only holds [`Item::Step`](crate::plan::Item::Step) of device
//!   steps, and every tensor that such a step names lives in an arena whose place
//!   is `Device` (checked when the file is read). On a GPU every step of it has a
//!   dispatch (checked in [`open`]).
//! - Inputs and outputs may live in host and in device arenas; the session only
//!   touches their mirrors.

use qail_artifact::Artifact;
#[cfg(feature = "gpu")]
use qail_artifact::Place;

use crate::{
    ArtifactBytes, LoadOptions, RunError, RuntimeError,
    memory::HostMemory,
    plan::{Plan, Segment},
};

/// Where a session runs. Written `cpu`, `cpu:generic`, `cpu:avx2`,
/// `cpu:avx512vnni`, `gpu`, `vulkan`, `vulkan:0`, `metal`, `metal:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The processor, with the best instruction set it has or a given one.
    Cpu(Option<Isa>),
    /// A graphics processor.
    Gpu(GpuSpec),
}

/// Which graphics processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuSpec {
    /// Programming interface, or none for any.
    pub backend: Option<GpuBackend>,
    /// Position in the list of adapters of that interface. None takes the first
    /// hardware adapter and never a software one.
    pub index: Option<usize>,
}

/// Programming interface of a graphics processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuBackend {
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
}

/// An instruction set that the CPU kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, the reference of the others.
    Generic,
    /// AVX2: 32-byte integer vectors.
    Avx2,
    /// AVX-512 with byte dot products.
    Avx512Vnni,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Self; 3] = [Self::Generic, Self::Avx2, Self::Avx512Vnni];

    /// Name in a device name: `avx2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512vnni",
        }
    }

    /// True if this machine has it.
    pub fn is_present(self) -> bool {
        match self {
            Self::Generic => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512Vnni => false,
        }
    }

    /// The fastest one that this machine has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_present()).unwrap_or(Self::Generic)
    }
}

/// A device name that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no device; accepted are cpu, cpu:generic, cpu:avx2, cpu:avx512vnni, gpu, vulkan, vulkan:INDEX, metal, \
     metal:INDEX"
)]
pub struct DeviceNameError(pub String);

impl std::str::FromStr for DeviceSpec {
    type Err = DeviceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let error = || DeviceNameError(name.to_owned());
        let (kind, rest) = name.split_once(':').map_or((name, None), |(kind, rest)| (kind, Some(rest)));
        let index = || rest.map(|digits| digits.parse().map_err(|_| error())).transpose();
        match kind {
            "cpu" => match rest {
                None => Ok(Self::Cpu(None)),
                Some(isa) => {
                    Isa::ALL.into_iter().find(|i| i.name() == isa).map(|i| Self::Cpu(Some(i))).ok_or_else(error)
                }
            },
            "gpu" if rest.is_none() => Ok(Self::Gpu(GpuSpec { backend: None, index: None })),
            "vulkan" => Ok(Self::Gpu(GpuSpec { backend: Some(GpuBackend::Vulkan), index: index()? })),
            "metal" => Ok(Self::Gpu(GpuSpec { backend: Some(GpuBackend::Metal), index: index()? })),
            _ => Err(error()),
        }
    }
}

impl std::fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, index) = match self {
            Self::Cpu(None) => return f.write_str("cpu"),
            Self::Cpu(Some(isa)) => return write!(f, "cpu:{}", isa.name()),
            Self::Gpu(GpuSpec { backend: None, index }) => ("gpu", index),
            Self::Gpu(GpuSpec { backend: Some(GpuBackend::Vulkan), index }) => ("vulkan", index),
            Self::Gpu(GpuSpec { backend: Some(GpuBackend::Metal), index }) => ("metal", index),
        };
        match index {
            None => f.write_str(kind),
            Some(index) => write!(f, "{kind}:{index}"),
        }
    }
}

/// What an executor is made from. Everything is borrowed for the time of the
/// load only: an executor copies (or uploads) what it keeps.
pub(crate) struct DeviceContext<'a> {
    /// The checked file: sections by index, kernels, dispatches.
    pub(crate) artifact: &'a Artifact<'a>,
    /// The bytes behind it, for executors that read weights in place.
    pub(crate) bytes: &'a ArtifactBytes,
    /// What will run and where its values live.
    pub(crate) plan: &'a Plan,
    /// What the caller chose.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "choices about shaders"))]
    pub(crate) options: &'a LoadOptions,
}

/// Runs the device steps of one session.
///
/// Made by `cpu::CpuExec::new` or, with feature `gpu`, by
/// `gpu::open(&GpuSpec, &DeviceContext) -> Result<Box<dyn DeviceExec>, RuntimeError>`,
/// which uploads the weights, compiles the kernels that the device segments of
/// the plan use and makes every buffer and bind group.
pub(crate) trait DeviceExec: Send {
    /// What the steps really run on, for reports: `cpu:avx2`, or the backend
    /// and name of the adapter.
    fn name(&self) -> &str;

    /// Runs one device segment of the plan given at load and returns when its
    /// results are in `memory`:
    ///
    /// 1. upload `segment.uploads` from the mirror,
    /// 2. run the items `segment.items` of `plan.order` in order,
    /// 3. download `segment.downloads` into the mirror and wait.
    ///
    /// On a GPU that is one encoder, one submit and one wait.
    ///
    /// # Errors
    ///
    /// [`RunError::Device`] if the device is lost or refuses. The session stays
    /// usable if the device is; an executor must not panic.
    fn run_segment(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), RunError>;

    /// Brings the contents of the mirror of a tensor to the device, between
    /// runs: a state that was set. A CPU executor has nothing to do.
    ///
    /// # Errors
    ///
    /// [`RunError::Device`] if the device is lost or refuses.
    fn store(&mut self, plan: &Plan, tensor: usize, memory: &HostMemory) -> Result<(), RunError>;

    /// Brings the present contents of a tensor into the mirror, after a run.
    /// Called for states, and with `keep_intermediates` for tensors that a device
    /// segment wrote and did not download. A CPU executor has nothing to do.
    ///
    /// # Errors
    ///
    /// [`RunError::Device`] if the device is lost or refuses.
    fn fetch(&mut self, plan: &Plan, tensor: usize, memory: &mut HostMemory) -> Result<(), RunError>;
}

/// Makes the executor that a device name asks for.
pub(crate) fn open(spec: DeviceSpec, cx: &DeviceContext<'_>) -> Result<Box<dyn DeviceExec>, RuntimeError> {
    match spec {
        DeviceSpec::Cpu(isa) => {
            let isa = isa.unwrap_or_else(Isa::best);
            if !isa.is_present() {
                return Err(RuntimeError::NoDevice {
                    device: spec.to_string(),
                    reason: format!(
                        "this machine has no {}; its best instruction set is {}",
                        isa.name(),
                        Isa::best().name()
                    ),
                });
            }
            Ok(Box::new(crate::cpu::CpuExec::new(isa, cx)?))
        }
        #[cfg(feature = "gpu")]
        DeviceSpec::Gpu(gpu) => {
            let device_steps = cx.plan.steps.iter().filter(|step| step.place() == Place::Device);
            if let Some(step) = device_steps.into_iter().find(|step| step.dispatch.is_none()) {
                return Err(RuntimeError::Step {
                    step: step.name.clone(),
                    device: spec.to_string(),
                    reason: "the artifact has no kernel for it".to_owned(),
                });
            }
            crate::gpu::open(&gpu, cx)
        }
        #[cfg(not(feature = "gpu"))]
        DeviceSpec::Gpu(_) => Err(RuntimeError::NoDevice {
            device: spec.to_string(),
            reason: "this program was built without feature `gpu`".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_read_back() {
        for name in
            ["cpu", "cpu:generic", "cpu:avx2", "cpu:avx512vnni", "gpu", "vulkan", "vulkan:0", "metal", "metal:3"]
        {
            assert_eq!(name.parse::<DeviceSpec>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "cuda", "cpu:sse9", "gpu:0", "vulkan:x", "vulkan:-1"] {
            assert_eq!(name.parse::<DeviceSpec>(), Err(DeviceNameError(name.to_owned())));
        }
    }
}
