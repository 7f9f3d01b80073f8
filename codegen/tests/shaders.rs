//! Every kernel goes through every back end of naga: what a driver is given is
//! known to exist before a file is written. Structure only; `gpu.rs` runs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod common;

use std::process::Command;

use common::{graph, plan};
use naga::{
    back,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use qail_artifact::Layout;

/// A graph that takes every kernel.
const ALL: &str = "graph @all(%obs: f32[5, 6]) -> (%y, %z) {
    %w = const rand(1) : f32[6, 6]
    %b = const rand(2) : f32[6]
    %h0 = linear %obs, %w, %b {act = silu} : f32[5, 6]
    %w4 = const rand(3) : qs4[6, 6]
    %w8 = const rand(4) : qs8[6, 6]
    %sc = const splat(0.5) : f32[1, 6]
    %h1 = linear_wq %h0, %w4, %sc, %b {group = 6, act = tanh} : f32[5, 6]
    %h2 = linear_wq %h1, %w8, %sc, %b {group = 6} : f32[5, 6]
    %u = elu %h2 {alpha = 1.0} : f32[5, 6]
    %v = mul %u, %b : f32[5, 6]
    %t = transpose %v {perm = [1, 0]} : f32[6, 5]
    %mm = matmul %v, %t : f32[5, 5]
    %red = reduce_max %mm {axes = [1], keep_dims} : f32[5, 1]
    %d = sub %mm, %red : f32[5, 5]
    %m2 = matmul %d, %v : f32[5, 6]
    %r = const splat(16.0) : f32[]
    %q = quantize %m2, %r : qs8[5, 6]
    %bi = const splat(3) : i32[6]
    %a0 = qlinear %q, %w8, %bi : i32[5, 6]
    %m = const splat(40001) : i32[6]
    %s = const splat(20) : i32[6]
    %p = requantize %a0, %m, %s : qs8[5, 6]
    %tab = const rand(2) : qs8[256]
    %l = lookup %p, %tab : qs8[5, 6]
    %c = concat %p, %l {axis = 1} : qs8[5, 12]
    %wc = const rand(6) : qs4[12, 6]
    %a1 = qlinear %c, %wc, %bi : i32[5, 6]
    %q1 = requantize %a1, %m, %s : qs8[5, 6]
    %a2 = qlinear %q1, %w4, %bi : i32[5, 6]
    %e = const splat(0.1) : f64[1]
    %y = dequantize %a2, %e : f32[5, 6]
    %z = dequantize %a0, %e : f32[5, 6]
}";

/// A graph that takes the kernels of convolutional and transformer policies.
const FAMILIES: &str = "graph @families(%x: f32[2, 4, 6], %i: i64[3]) -> (%y, %z) {
    %w = const rand(1) : f32[6, 6]
    %b = const rand(2) : f32[6]
    %h = linear %x, %w, %b : f32[2, 4, 6]
    %u = unfold %h {out = [2, 4, 6], size = [1, 1, 3], pad = [0, 0, 1]} : f32[2, 4, 6, 3]
    %p = reduce_sum %u {axes = [3]} : f32[2, 4, 6]
    %n = normalize %p {axes = [2], eps = 1e-5, center} : f32[2, 4, 6]
    %s = softmax %n {axis = 1} : f32[2, 4, 6]
    %q4 = reshape %s : f32[1, 2, 4, 6]
    %a = attention %q4, %q4, %q4 {scale = 0.5} : f32[1, 2, 4, 6]
    %a3 = reshape %a : f32[2, 4, 6]
    %t = lt %a3, %n : bool[2, 4, 6]
    %c = where %t, %a3, %n : f32[2, 4, 6]
    %g = gather %c, %i {axis = 1} : f32[2, 3, 6]
    %top = top_k %g {axis = 1, k = 3, largest} : f32[2, 3, 6]
    %cum = cum_sum %top {axis = 2} : f32[2, 3, 6]
    %rows = const [1, 0] : i32[2]
    %put = scatter %cum, %rows, %g {f = max} : f32[2, 3, 6]
    %z = linear %put, %w, %b : f32[2, 3, 6]
    %r = const splat(16.0) : f32[]
    %q = quantize %z, %r : qs8[2, 3, 6]
    %qi = gather %q, %i {axis = 2} : qs8[2, 3, 3]
    %m = const [40001] : i32[1]
    %k = const [16] : i32[1]
    %qa = qadd %qi, %qi, %m, %m, %k : qs8[2, 3, 3]
    %qu = unfold %qa {out = [2, 2, 3], size = [1, 2, 1]} : qs8[2, 2, 3, 2]
    %qm = reduce_max %qu {axes = [3]} : qs8[2, 2, 3]
    %tab = const rand(2) : qs4[256]
    %ql = lookup %qm, %tab : qs4[2, 2, 3]
    %qs = qsum %ql {axes = [1]} : i32[2, 3]
    %e = const splat(0.1) : f64[1]
    %y = dequantize %qs, %e : f32[2, 3]
}";

fn validated(text: &str, capabilities: Capabilities) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).unwrap();
    (module, info)
}

#[test]
fn every_kernel_is_translated_by_every_back_end() {
    let plans = [plan(&graph(ALL)), plan(&graph(FAMILIES))];
    let mut kernels: Vec<&str> = Vec::new();
    let all = plans.iter().flat_map(|plan| plan.manifest.kernels.iter().map(move |kernel| (plan, kernel)));
    for (plan, kernel) in all {
        let section = &plan.sections[kernel.section as usize];
        assert_eq!(section.layout, Layout::Wgsl);
        let text = String::from_utf8(section.bytes.to_vec(&section.name).unwrap()).unwrap();
        kernels.push(kernel.name.split('.').next().unwrap());
        let (module, info) = validated(&text, Capabilities::empty());

        // SPIR-V with every capability, and as an old driver would get it.
        for capabilities in [None, Some([back::spv::Capability::Shader].into_iter().collect())] {
            let options = back::spv::Options { lang_version: (1, 3), capabilities, ..back::spv::Options::default() };
            let words = back::spv::write_vec(&module, &info, &options, None)
                .unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
            assert!(words.len() > 100);
        }

        let mut resources = back::msl::EntryPointResources::default();
        for (_, global) in module.global_variables.iter() {
            if let Some(binding) = global.binding {
                let target = back::msl::BindTarget {
                    buffer: Some(binding.binding as u8),
                    mutable: true,
                    ..back::msl::BindTarget::default()
                };
                resources.resources.insert(binding, target);
            }
        }
        resources.sizes_buffer = Some(24);
        let options = back::msl::Options {
            lang_version: (2, 4),
            per_entry_point_map: [("main".to_owned(), resources)].into_iter().collect(),
            fake_missing_bindings: false,
            ..back::msl::Options::default()
        };
        let (metal, _) = back::msl::write_string(&module, &info, &options, &back::msl::PipelineOptions::default())
            .unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        assert!(metal.contains("kernel void"));

        let mut hlsl = String::new();
        let options = back::hlsl::Options { fake_missing_bindings: true, ..back::hlsl::Options::default() };
        back::hlsl::Writer::new(&mut hlsl, &options, &back::hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        assert!(hlsl.contains("numthreads(64, 1, 1)"));
    }
    kernels.sort_unstable();
    kernels.dedup();
    insta::assert_snapshot!(kernels.join(" "), @"attention binary choose compare copy_bytes copy_words gather_bytes gather_words linear_f32 linear_w4 linear_w8 lookup matmul_f32 normalize order qadd qlinear_w4 qlinear_w8 reduce reduce_codes requantize scan scatter softmax unary unfold_bytes unfold_words");
}

#[test]
fn shapes_and_steps_are_baked_into_the_params_block() {
    let plan = plan(&graph(ALL));
    let mut out = String::new();
    for kernel in &plan.manifest.kernels {
        let text = String::from_utf8(plan.sections[kernel.section as usize].bytes.to_vec("").unwrap()).unwrap();
        let (_, params) = text.split_once("// params:").unwrap();
        let (params, _) = params.split_once("// end params").unwrap();
        let params: Vec<&str> = params.lines().skip(1).map(|line| line.trim_start_matches("const ")).collect();
        out.push_str(&format!("{}\n  {}\n", kernel.name, params.join("\n  ")));
    }
    insta::assert_snapshot!(out);
}

#[test]
fn a_second_compiler_accepts_every_kernel() {
    // naga accepts WGSL that browsers refuse: barriers in non-uniform control
    // flow, shifts without parentheses. Tint is what they use.
    if Command::new("tint").arg("--help").output().is_err() {
        eprintln!("SKIPPED: no `tint` on this machine");
        return;
    }
    let folder = std::env::temp_dir().join(format!("qail-codegen-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let plan = plan(&graph(ALL));
    for kernel in &plan.manifest.kernels {
        let path = folder.join(format!("{}.wgsl", kernel.name));
        std::fs::write(&path, plan.sections[kernel.section as usize].bytes.to_vec("").unwrap()).unwrap();
        let output = Command::new("tint").args(["--format", "wgsl"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {}", kernel.name, String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
