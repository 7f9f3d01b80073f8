//! Checks every emitted shader before a file is written.
//!
//! naga parses and validates the text. It does not check everything that a
//! device with default limits demands, so this module adds: bytes of workgroup
//! memory, invocations, number of storage buffers, and contiguous bindings of
//! group 0. Barriers in uniform control flow and parenthesised shifts are by
//! construction (see `kernels`); naga would not notice them.

use naga::{
    AddressSpace, ShaderStage, StorageAccess,
    valid::{Capabilities, ValidationFlags, Validator},
};

use crate::CodegenError;

/// Largest number of storage buffers (WebGPU default).
const MAX_STORAGE_BUFFERS: usize = 8;
/// Bytes of workgroup memory (WebGPU default).
const MAX_WORKGROUP_BYTES: u32 = 16 << 10;
/// Invocations of a workgroup (WebGPU default).
const MAX_INVOCATIONS: u32 = 256;

/// What the rest of the crate asks about a module that passed.
#[derive(Debug)]
pub(crate) struct Checked {
    /// For binding `i` of group 0: true if the shader writes it.
    pub(crate) writes: Vec<bool>,
}

/// Parses and validates a shader; the error is a reason in words.
pub(crate) fn shader(name: &str, text: &str) -> Result<Checked, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|error| error.emit_to_string_with_path(text, name))?;
    Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|error| error.emit_to_string_with_path(text, name))?;
    let [entry] = &module.entry_points[..] else {
        return Err(format!("{} entry points, one is accepted", module.entry_points.len()));
    };
    if entry.stage != ShaderStage::Compute || entry.name != "main" {
        return Err("the entry point is not a compute shader named `main`".to_owned());
    }
    let invocations = entry.workgroup_size.iter().fold(1u32, |n, &size| n.saturating_mul(size));
    if invocations > MAX_INVOCATIONS {
        return Err(format!("{invocations} invocations in a workgroup, the limit is {MAX_INVOCATIONS}"));
    }
    let mut workgroup_bytes = 0u32;
    let mut bindings = Vec::new();
    for (_, global) in module.global_variables.iter() {
        match global.space {
            AddressSpace::WorkGroup => {
                let size = module.types[global.ty].inner.size(module.to_ctx());
                workgroup_bytes = workgroup_bytes.saturating_add(size);
            }
            AddressSpace::Storage { access } => {
                let Some(binding) = global.binding.filter(|binding| binding.group == 0) else {
                    return Err("a storage buffer outside of group 0".to_owned());
                };
                bindings.push((binding.binding, access.contains(StorageAccess::STORE)));
            }
            AddressSpace::Function
            | AddressSpace::Private
            | AddressSpace::Uniform
            | AddressSpace::Handle
            | AddressSpace::Immediate
            | AddressSpace::TaskPayload
            | AddressSpace::RayPayload
            | AddressSpace::IncomingRayPayload => {
                return Err(format!("a variable in address space {:?}", global.space));
            }
        }
    }
    if workgroup_bytes > MAX_WORKGROUP_BYTES {
        return Err(format!("{workgroup_bytes} bytes of workgroup memory, the limit is {MAX_WORKGROUP_BYTES}"));
    }
    if bindings.len() > MAX_STORAGE_BUFFERS {
        return Err(format!("{} storage buffers, the limit is {MAX_STORAGE_BUFFERS}", bindings.len()));
    }
    bindings.sort_unstable();
    if bindings.iter().enumerate().any(|(i, &(binding, _))| usize::try_from(binding) != Ok(i)) {
        return Err("the bindings of group 0 are not 0, 1, 2, ..".to_owned());
    }
    Ok(Checked { writes: bindings.into_iter().map(|(_, write)| write).collect() })
}

/// [`shader`], with the node that asked for it in the error.
pub(crate) fn kernel(node: &str, name: &str, text: &str) -> Result<Checked, CodegenError> {
    shader(name, text).map_err(|reason| CodegenError::InvalidShader {
        node: node.to_owned(),
        kernel: name.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        shader("test", text).unwrap_err()
    }

    #[test]
    fn a_type_error_is_found() {
        let text = "@compute @workgroup_size(1) fn main() { let a: u32 = 1i; }";
        assert!(reason(text).contains("test"), "{}", reason(text));
    }

    #[test]
    fn too_much_workgroup_memory_is_found() {
        let text = "var<workgroup> a: array<u32, 4097>; @compute @workgroup_size(1) fn main() { a[0] = 1u; }";
        assert_eq!(reason(text), "16388 bytes of workgroup memory, the limit is 16384");
    }

    #[test]
    fn too_many_invocations_are_found() {
        let text = "@compute @workgroup_size(32, 16) fn main() {}";
        assert_eq!(reason(text), "512 invocations in a workgroup, the limit is 256");
    }

    #[test]
    fn a_gap_between_bindings_is_found() {
        let text = "@group(0) @binding(1) var<storage, read_write> a: array<u32>;
            @compute @workgroup_size(1) fn main() { a[0] = 1u; }";
        assert_eq!(reason(text), "the bindings of group 0 are not 0, 1, 2, ..");
    }

    #[test]
    fn writes_are_reported() {
        let text = "@group(0) @binding(0) var<storage, read> a: array<u32>;
            @group(0) @binding(1) var<storage, read_write> b: array<u32>;
            @compute @workgroup_size(1) fn main() { b[0] = a[0]; }";
        assert_eq!(shader("test", text).unwrap().writes, [false, true]);
    }
}
