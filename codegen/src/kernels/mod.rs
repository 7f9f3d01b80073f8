//! WGSL kernels: a complete shader beside the Rust struct that specializes it.
//!
//! A `.wgsl` file is valid as it stands. It opens with a block of constants
//! between `// params:` and `// end params`; [`specialize`] replaces their values
//! and nothing else. Shapes are baked in, so a kernel has no uniforms; equal
//! texts are one kernel of the plan.
//!
//! Rules that every kernel follows, because drivers and browsers differ:
//! `Limits::default()` is enough (at most 8 storage buffers, 16 KiB of workgroup
//! memory, 256 invocations) and no optional feature is used; barriers stand in
//! uniform control flow; shifts are parenthesised; `%` meets non-negative
//! numbers only; `unpack2x16float` of a constant is not used.
//!
//! Functions that several kernels need are copied, between `// shared: name`
//! and `// end shared`; a test holds the copies equal.

pub(crate) mod binary;
pub(crate) mod codes;
pub(crate) mod copy;
pub(crate) mod function;
pub(crate) mod linear_f32;
pub(crate) mod linear_wq;
pub(crate) mod matmul_f32;
pub(crate) mod order;
pub(crate) mod qgroups;
pub(crate) mod qlinear;
pub(crate) mod reduce;
pub(crate) mod requantize;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod select;
pub(crate) mod trim;
pub(crate) mod unary;
pub(crate) mod unfold;

use crate::CodegenError;

/// Invocations of a workgroup, in every kernel.
pub(crate) const LANES: u64 = 64;

/// Largest number of workgroups along one axis (WebGPU default).
pub(crate) const MAX_GROUPS: u64 = 65535;

/// Axes of an index space inside a kernel; leading axes have extent 1.
pub(crate) const RANK: usize = 6;

/// A specialized shader and how many workgroups it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shader {
    /// Name of the kernel.
    pub(crate) name: &'static str,
    /// WGSL text.
    pub(crate) text: String,
    /// Number of workgroups along x, y and z.
    pub(crate) workgroups: [u32; 3],
}

/// A number that stands behind a `const` of the params block.
pub(crate) enum Param<'a> {
    U32(u64),
    I32(i64),
    F32(f32),
    /// `array<u32, RANK>`.
    Extents(&'a [u64; RANK]),
    /// `array<i32, RANK>`.
    Strides(&'a [i64; RANK]),
    /// `array<u32, N>` for any `N`.
    U32s(Vec<u64>),
    /// `array<i32, N>` for any `N`.
    I32s(Vec<i64>),
}

impl Param<'_> {
    /// The number in WGSL, or an error if it leaves 32 bits.
    fn render(&self, node: &str, name: &'static str) -> Result<String, CodegenError> {
        let too_large = |found: String| CodegenError::Limit {
            node: node.to_owned(),
            what: "kernel parameter",
            found: format!("{name} = {found}"),
            limit: "32 bits".to_owned(),
        };
        let u32_text = |x: u64| u32::try_from(x).map(|x| format!("{x}u")).map_err(|_| too_large(x.to_string()));
        // The smallest i32 has no literal: it is out of reach of strides and codes.
        let i32_text = |x: i64| match i32::try_from(x) {
            Ok(x) if x > i32::MIN => Ok(x.to_string()),
            Ok(_) | Err(_) => Err(too_large(x.to_string())),
        };
        Ok(match self {
            Self::U32(x) => u32_text(*x)?,
            Self::I32(x) => i32_text(*x)?,
            Self::F32(x) => f32_text(*x),
            Self::Extents(xs) => {
                let parts: Result<Vec<String>, _> = xs.iter().map(|&x| u32_text(x)).collect();
                format!("array<u32, {RANK}>({})", parts?.join(", "))
            }
            Self::Strides(xs) => {
                let parts: Result<Vec<String>, _> = xs.iter().map(|&x| i32_text(x)).collect();
                format!("array<i32, {RANK}>({})", parts?.join(", "))
            }
            Self::U32s(xs) => {
                let parts: Result<Vec<String>, _> = xs.iter().map(|&x| u32_text(x)).collect();
                format!("array<u32, {}>({})", xs.len(), parts?.join(", "))
            }
            Self::I32s(xs) => {
                let parts: Result<Vec<String>, _> = xs.iter().map(|&x| i32_text(x)).collect();
                format!("array<i32, {}>({})", xs.len(), parts?.join(", "))
            }
        })
    }
}

/// A literal. WGSL has none for infinities: they become the largest finite
/// numbers, which clip every finite number alike.
fn f32_text(x: f32) -> String {
    let finite = if x.is_nan() { 0.0 } else { x.clamp(f32::MIN, f32::MAX) };
    format!("{finite:?}f")
}

/// Replaces the constants of the params block of `source` and leaves out lines of
/// comment, which a file need not carry. Every parameter must stand in the block,
/// and every constant of the block must be given.
pub(crate) fn specialize(
    node: &str,
    source: &str,
    params: &[(&'static str, Param<'_>)],
) -> Result<String, CodegenError> {
    let mut text = String::with_capacity(source.len() + 64);
    let mut inside = false;
    let mut n_replaced = 0;
    for line in source.lines() {
        if line.starts_with("// params:") {
            inside = true;
        } else if line.starts_with("// end params") {
            inside = false;
        } else if line.trim_start().starts_with("//") || line.is_empty() {
            continue;
        }
        match line.strip_prefix("const ").filter(|_| inside).and_then(|rest| rest.split_once(": ")) {
            None => text.push_str(line),
            Some((name, rest)) => {
                let found = params.iter().find(|(param, _)| *param == name);
                let (Some((param, value)), Some((ty, _))) = (found, rest.split_once(" = ")) else {
                    return Err(CodegenError::Internal {
                        invariant: format!("constant `{name}` of a kernel has a value"),
                    });
                };
                let value = value.render(node, param)?;
                text.push_str(&format!("const {name}: {ty} = {value};"));
                n_replaced += 1;
            }
        }
        text.push('\n');
    }
    if n_replaced != params.len() {
        return Err(CodegenError::Internal {
            invariant: format!("a kernel takes {n_replaced} parameters, {} are given", params.len()),
        });
    }
    Ok(match params.iter().find(|(name, _)| *name == "FUNCTION") {
        Some((_, Param::U32(function))) => trim::trimmed(&text, *function),
        _ => text,
    })
}

/// Workgroups for `n` rows along y, the rest along z: a shader computes
/// `row = z * 65535 + y` and checks it.
pub(crate) fn fold(node: &str, n: u64) -> Result<[u32; 2], CodegenError> {
    let over = || CodegenError::Limit {
        node: node.to_owned(),
        what: "workgroups",
        found: n.to_string(),
        limit: (MAX_GROUPS * MAX_GROUPS).to_string(),
    };
    let second = n.div_ceil(MAX_GROUPS).max(1);
    if second > MAX_GROUPS {
        return Err(over());
    }
    let first = n.clamp(1, MAX_GROUPS);
    Ok([u32::try_from(first).map_err(|_| over())?, u32::try_from(second).map_err(|_| over())?])
}

/// Workgroups of a kernel with one invocation an element:
/// `index = (y * 65535 + x) * 64 + lane`.
pub(crate) fn grid(node: &str, n_elements: u64) -> Result<[u32; 3], CodegenError> {
    let [x, y] = fold(node, n_elements.div_ceil(LANES))?;
    Ok([x, y, 1])
}

/// First element of an operand.
pub(crate) fn offset(elements: u64) -> Param<'static> {
    Param::I32(i64::try_from(elements).unwrap_or(i64::MAX))
}

/// An index space that does not fold into [`RANK`] axes.
pub(crate) fn too_many_axes(node: &str, op: &'static str, shape: &[u64]) -> CodegenError {
    let reason = format!("shape {shape:?} with these strides takes more than {RANK} axes");
    CodegenError::Unsupported { node: node.to_owned(), op, reason }
}

/// Workgroups along x, checked.
pub(crate) fn along_x(node: &str, n: u64) -> Result<u32, CodegenError> {
    match u32::try_from(n) {
        Ok(x) if n <= MAX_GROUPS => Ok(x),
        Ok(_) | Err(_) => Err(CodegenError::Limit {
            node: node.to_owned(),
            what: "workgroups along x",
            found: n.to_string(),
            limit: MAX_GROUPS.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    pub(crate) const SOURCES: [(&str, &str); 30] = [
        ("binary", binary::SOURCE),
        ("attention", rows::ATTENTION),
        ("choose", select::CHOOSE),
        ("compare", select::COMPARE),
        ("copy_bytes", copy::BYTES),
        ("copy_words", copy::WORDS),
        ("film", rope::FILM),
        ("gather_bytes", select::BYTES),
        ("gather_words", select::WORDS),
        ("linear_f32", linear_f32::SOURCE),
        ("linear_w4", linear_wq::W4),
        ("linear_w8", linear_wq::W8),
        ("lookup", codes::LOOKUP),
        ("matmul_f32", matmul_f32::SOURCE),
        ("normalize", rows::NORMALIZE),
        ("order", order::ORDER),
        ("qadd", codes::QADD),
        ("qgroups", qgroups::SOURCE),
        ("qlinear_w4", qlinear::W4),
        ("qlinear_w8", qlinear::W8),
        ("reduce", reduce::SOURCE),
        ("reduce_codes", codes::REDUCE),
        ("requantize", requantize::SOURCE),
        ("rope", rope::ROPE),
        ("scan", order::SCAN),
        ("scatter", order::SCATTER),
        ("softmax", rows::SOFTMAX),
        ("unary", unary::SOURCE),
        ("unfold_bytes", unfold::BYTES),
        ("unfold_words", unfold::WORDS),
    ];

    #[test]
    fn every_file_is_valid_as_it_stands() {
        for (name, source) in SOURCES {
            crate::validate::shader(name, source).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
    }

    #[test]
    fn no_file_is_forgotten() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let wgsl = files.filter(|path| path.extension().is_some_and(|extension| extension == "wgsl"));
        let mut found: Vec<String> =
            wgsl.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        found.sort();
        let mut listed: Vec<&str> = SOURCES.iter().map(|&(name, _)| name).collect();
        listed.sort();
        assert_eq!(found, listed);
    }

    #[test]
    fn copies_of_a_shared_function_are_equal() {
        let mut seen: BTreeMap<String, (&str, String)> = BTreeMap::new();
        for (file, source) in SOURCES {
            for part in source.split("// shared: ").skip(1) {
                let (body, _) = part.split_once("// end shared").expect("a shared part ends");
                let (name, body) = body.split_once('\n').expect("a name line");
                let (first, kept) = seen.entry(name.to_owned()).or_insert((file, body.to_owned()));
                assert_eq!(kept, body, "`{name}` differs between {first} and {file}");
            }
        }
        assert!(seen.contains_key("requantize") && seen.contains_key("act"));
    }

    #[test]
    fn a_parameter_that_the_file_does_not_have_is_an_error() {
        let source = "// params:\nconst N: u32 = 1u; // channels\n// end params\n";
        let text = specialize("n", source, &[("N", Param::U32(7))]).unwrap();
        assert_eq!(text, "// params:\nconst N: u32 = 7u;\n// end params\n");
        assert!(specialize("n", source, &[]).is_err());
        assert!(specialize("n", source, &[("N", Param::U32(7)), ("M", Param::U32(7))]).is_err());
        assert!(specialize("n", source, &[("N", Param::U32(1 << 32))]).is_err());
    }

    #[test]
    fn rows_fold_into_two_axes() {
        assert_eq!(fold("n", 5).unwrap(), [5, 1]);
        assert_eq!(fold("n", 65536).unwrap(), [65535, 2]);
        assert!(fold("n", 65535 * 65535 + 1).is_err());
    }

    #[test]
    fn literals_are_finite() {
        assert_eq!(f32_text(f32::INFINITY), "3.4028235e38f");
        assert_eq!(f32_text(-0.5), "-0.5f");
        assert_eq!(f32_text(1e-7), "1e-7f");
    }
}
