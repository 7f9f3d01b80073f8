//! The arrows between the crates, and the licences of what we build on.
//!
//! Each row of the tables is an invariant of `ARCHITECTURE.md`; what is absent
//! matters more than what is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crate, and the crates of this workspace it may depend on.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("qail-ir", &[]),
    ("qail-passes", &["qail-ir"]),
    ("qail-train", &["qail-ir", "qail-passes"]),
    ("qail-artifact", &[]),
    ("qail-codegen", &["qail-ir", "qail-artifact"]),
    ("qail-runtime", &["qail-artifact"]),
    ("qail-fixtures", &[]),
    ("qailc", &["qail-ir", "qail-passes", "qail-train", "qail-artifact", "qail-codegen", "qail-runtime"]),
    ("qailc-python", &["qailc", "qail-artifact", "qail-runtime"]),
];

/// External crate, and the only crates of this workspace that may know it.
const KNOWN_ONLY_BY: &[(&str, &[&str])] = &[
    ("petgraph", &["qail-ir"]),
    ("prost", &["qail-artifact", "qailc"]),
    ("naga", &["qail-codegen"]),
    ("wgpu", &["qail-runtime"]),
    ("tract-onnx", &["qailc"]),
    ("gemm", &["qail-train"]),
    ("serde", &["qailc"]),
    ("serde_json", &["qailc"]),
    ("clap", &["qailc"]),
    ("pyo3", &["qailc-python"]),
    ("numpy", &["qailc-python"]),
];

/// Licences that everything we build on offers.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Zlib",
    "0BSD",
    "Unlicense",
    "CC0-1.0",
    "Unicode-3.0",
];

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).exec().unwrap()
}

/// What each crate of the workspace builds with, tests left out.
fn dependencies(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let of = |package: &cargo_metadata::Package| {
        let used = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        used.map(|d| d.name.clone()).collect::<BTreeSet<String>>()
    };
    metadata.workspace_packages().iter().map(|package| (package.name.to_string(), of(package))).collect()
}

#[test]
fn dependencies_run_downhill() {
    let actual = dependencies(&metadata());
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    for (krate, used) in &actual {
        let allowed = allowed.get(krate.as_str()).unwrap_or_else(|| panic!("`{krate}` is not in the table"));
        for dependency in used.iter().filter(|name| actual.contains_key(*name)) {
            assert!(allowed.contains(&dependency.as_str()), "`{krate}` must not know `{dependency}`");
        }
    }
}

#[test]
fn each_library_is_known_where_it_belongs() {
    let actual = dependencies(&metadata());
    for (library, knowers) in KNOWN_ONLY_BY {
        for (krate, used) in &actual {
            assert!(
                !used.contains(*library) || knowers.contains(&krate.as_str()),
                "`{krate}` must not know `{library}`"
            );
        }
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    for line in lines.take_while(|line| !line.starts_with('[')) {
        let ours = line.starts_with("qail") || line.trim().is_empty();
        assert!(ours || line.contains(" # "), "no reason given: {line}");
    }
}

#[test]
fn every_licence_is_permissive() {
    for package in metadata().packages {
        let Some(licence) = &package.license else { panic!("`{}` names no licence", package.name) };
        // `A OR B` offers a choice; `A AND B` asks for both.
        let offered = licence.replace('/', " OR ").replace(['(', ')'], "");
        let accepted =
            offered.split(" OR ").any(|choice| choice.split(" AND ").all(|licence| LICENCES.contains(&licence.trim())));
        assert!(accepted, "`{}` is under {licence}", package.name);
    }
}
