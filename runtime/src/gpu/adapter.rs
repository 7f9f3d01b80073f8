//! Which graphics processors this machine has, and which one a name means.

use crate::{DeviceSpec, GpuBackend, GpuSpec, RuntimeError};

/// A graphics processor, as `qailc devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The device name that selects it: `vulkan:0`.
    pub device: DeviceSpec,
    /// Name that the driver gives.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// True if it is a processor in disguise: chosen only by its index.
    pub is_software: bool,
}

/// Every adapter of every interface that this build knows, in the order of the
/// indices. Empty without a driver.
pub fn adapters() -> Vec<AdapterInfo> {
    all(None).into_iter().map(|(_, info)| info).collect()
}

/// The adapter that a name means.
///
/// # Errors
///
/// [`RuntimeError::NoDevice`], which lists what there is.
pub(super) fn select(spec: GpuSpec) -> Result<wgpu::Adapter, RuntimeError> {
    let (mut adapters, infos): (Vec<_>, Vec<_>) = all(spec.backend).into_iter().unzip();
    match choose(spec, &infos) {
        Ok(index) => Ok(adapters.swap_remove(index)),
        Err(reason) => Err(RuntimeError::NoDevice { device: DeviceSpec::Gpu(spec).to_string(), reason }),
    }
}

/// Which of the adapters of `spec.backend` a name means, or why none.
fn choose(spec: GpuSpec, found: &[AdapterInfo]) -> Result<usize, String> {
    let chosen = match spec.index {
        // A number always comes with its interface, so it counts the right list.
        Some(index) => (index < found.len()).then_some(index),
        None => found.iter().position(|info| !info.is_software),
    };
    if let Some(index) = chosen {
        return Ok(index);
    }
    if found.is_empty() {
        return Err("no driver offers an adapter".to_owned());
    }
    let list: Vec<String> =
        found.iter().map(|info| format!("{} ({}, {})", info.device, info.name, info.kind)).collect();
    let list = list.join(", ");
    Err(match spec.index {
        Some(_) => format!("there are only {list}"),
        None => format!("only software adapters, which must be named by number: {list}"),
    })
}

/// Every adapter with its description, of one interface or all.
fn all(backend: Option<GpuBackend>) -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let mut result = Vec::new();
    for kind in [GpuBackend::Vulkan, GpuBackend::Metal] {
        if backend.is_some_and(|backend| backend != kind) {
            continue;
        }
        let backends = match kind {
            GpuBackend::Vulkan => wgpu::Backends::VULKAN,
            GpuBackend::Metal => wgpu::Backends::METAL,
        };
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        let instance = wgpu::Instance::new(descriptor);
        let found = pollster::block_on(instance.enumerate_adapters(backends));
        for (index, adapter) in found.into_iter().enumerate() {
            let device = DeviceSpec::Gpu(GpuSpec { backend: Some(kind), index: Some(index) });
            let info = describe(device, &adapter.get_info());
            result.push((adapter, info));
        }
    }
    result
}

/// True if the adapter is a processor in disguise.
pub(super) fn is_software(info: &wgpu::AdapterInfo) -> bool {
    // Some software drivers call themselves something else.
    info.device_type == wgpu::DeviceType::Cpu
        || ["llvmpipe", "swiftshader"].iter().any(|name| info.name.to_lowercase().contains(name))
}

fn describe(device: DeviceSpec, info: &wgpu::AdapterInfo) -> AdapterInfo {
    let is_software = is_software(info);
    let kind = match info.device_type {
        _ if is_software => "software",
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu | wgpu::DeviceType::Other => "other",
    };
    let driver = format!("{} {}", info.driver, info.driver_info).trim().to_owned();
    AdapterInfo { device, name: info.name.clone(), driver, kind, is_software }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(index: Option<usize>) -> GpuSpec {
        GpuSpec { backend: Some(GpuBackend::Vulkan), index }
    }

    fn adapter(index: usize, name: &str, is_software: bool) -> AdapterInfo {
        let kind = if is_software { "software" } else { "discrete" };
        let device = DeviceSpec::Gpu(spec(Some(index)));
        AdapterInfo { device, name: name.to_owned(), driver: String::new(), kind, is_software }
    }

    #[test]
    fn a_software_adapter_is_never_chosen_silently() {
        let found = [adapter(0, "llvmpipe", true)];
        assert_eq!(
            choose(spec(None), &found).unwrap_err(),
            "only software adapters, which must be named by number: vulkan:0 (llvmpipe, software)"
        );
        assert_eq!(choose(spec(Some(0)), &found), Ok(0));
        assert_eq!(choose(spec(None), &[adapter(0, "llvmpipe", true), adapter(1, "Orin", false)]), Ok(1));
    }

    #[test]
    fn a_number_beyond_the_list_says_what_there_is() {
        assert_eq!(choose(spec(None), &[]).unwrap_err(), "no driver offers an adapter");
        let found = [adapter(0, "Orin", false)];
        assert_eq!(choose(spec(Some(1)), &found).unwrap_err(), "there are only vulkan:0 (Orin, discrete)");
    }

    #[test]
    fn what_this_machine_has_is_chosen_by_the_same_rule() {
        match select(GpuSpec { backend: None, index: None }) {
            Ok(adapter) => assert!(!describe(DeviceSpec::Cpu(None), &adapter.get_info()).is_software),
            Err(error) => assert!(matches!(error, RuntimeError::NoDevice { .. }), "{error}"),
        }
    }
}
