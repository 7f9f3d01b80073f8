//! Models that are larger than memory: weights stay in their file, are quantized
//! block by block, and leave for the artifact part by part.
//!
//! What a compilation takes is asked of the kernel: the largest resident set of
//! the process (`VmHWM`), mapped pages included; where there is no such number,
//! only the artifact is checked. `QAILC_DECODER_LAYERS` asks for a decoder of the
//! shape of LLaMA-7B with so many of its 32 layers, which the slow suite makes
//! with `fixtures/scripts/make_decoder.py` (4 layers are 2.1 GB).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use half::f16;
use prost::Message;
use qail_artifact::Artifact;
use qail_passes::Precision;
use qailc::{
    frontend::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
        data_type,
    },
    pipeline::{self, BuildOptions, Graph, Observer},
};

/// Where the weights of a chain of layers lie, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// In a file beside the model, `[in, out]`.
    Beside,
    /// The same, `[out, in]` and turned by the model.
    BesideTurned,
    /// Inside of the model, as numbers that are copied when it is read.
    Inside,
}

/// Seeded weights as halves; a few in a thousand are large.
fn weights(seed: u64, k: usize, n: usize) -> impl Iterator<Item = u16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..k * n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Sign and fraction at random, exponents from 2^-8 to 2^-5, rarely 2^-3.
        let exponent = if state.is_multiple_of(500) { 12 } else { 7 + (state >> 40 & 3) };
        (state & 0x83ff) as u16 | (exponent as u16) << 10
    })
}

/// Writes `model.onnx` with products of `x` and the weights in turn, and returns
/// the number of weights.
fn write_chain(folder: &Path, widths: &[usize], stored: Stored) -> usize {
    let mut graph = GraphProto { name: "chain".to_owned(), ..GraphProto::default() };
    let mut data = BufWriter::new(File::create(folder.join("weights.bin")).unwrap());
    let (mut offset, mut x) = (0usize, "x".to_owned());
    for (i, pair) in widths.windows(2).enumerate() {
        let (k, n) = (pair[0], pair[1]);
        let dims = if stored == Stored::BesideTurned { [n as i64, k as i64] } else { [k as i64, n as i64] };
        let name = format!("w{i}");
        let mut tensor = TensorProto { name: name.clone(), dims: dims.to_vec(), ..TensorProto::default() };
        tensor.data_type = data_type::FLOAT16;
        match stored {
            Stored::Inside => {
                tensor.data_type = data_type::FLOAT;
                tensor.float_data = weights(i as u64, k, n).map(|half| f16::from_bits(half).to_f32()).collect();
            }
            Stored::Beside => {
                weights(i as u64, k, n).for_each(|half| data.write_all(&half.to_le_bytes()).unwrap());
            }
            Stored::BesideTurned => {
                let halves: Vec<u16> = weights(i as u64, k, n).collect();
                let turned = (0..n).flat_map(|column| halves.iter().skip(column).step_by(n));
                turned.for_each(|half| data.write_all(&half.to_le_bytes()).unwrap());
            }
        }
        if stored != Stored::Inside {
            tensor.data_location = 1;
            let place = [("location", "weights.bin".to_owned()), ("offset", offset.to_string())];
            let length = [("length", (2 * k * n).to_string())];
            tensor.external_data = place
                .into_iter()
                .chain(length)
                .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
                .collect();
            offset += 2 * k * n;
        }
        graph.initializer.push(tensor);
        let mut node = |op: &str, inputs: &[&str], output: &str| {
            let input = inputs.iter().map(|&name| name.to_owned()).collect();
            let op_type = op.to_owned();
            graph.node.push(NodeProto { op_type, input, output: vec![output.to_owned()], ..NodeProto::default() });
        };
        let mut w = name;
        if stored == Stored::BesideTurned {
            node("Transpose", &[&w], &format!("{w}.t"));
            w = format!("{w}.t");
        }
        node("MatMul", &[&x, &w], &format!("y{i}"));
        x = format!("y{i}");
    }
    data.flush().unwrap();
    graph.input = vec![ValueInfoProto::tensor("x", data_type::FLOAT, &[1, widths[0] as i64])];
    graph.output = vec![ValueInfoProto { name: x, r#type: None }];
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 18 }];
    let model = ModelProto { ir_version: 9, opset_import, graph: Some(graph), ..ModelProto::default() };
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
    widths.windows(2).map(|pair| pair[0] * pair[1]).sum()
}

/// Runs `qailc` and returns the most memory that it had, in bytes, if the kernel
/// tells. It is asked while the process runs, so a last peak of some
/// milliseconds may be missed.
fn most_memory(folder: &Path, threads: usize, args: &[&str]) -> Option<u64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_qailc"))
        .args(args)
        .current_dir(folder)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = None;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        most = most.max(kib.map(|kib| 1024 * kib));
        if let Some(code) = child.try_wait().unwrap() {
            assert!(code.success(), "qailc {args:?}: {code}");
            return most;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails if a compilation took more than `limit` bytes.
fn hold(most: Option<u64>, limit: u64, what: &str) {
    match most {
        None => println!("skipped: this system does not say how much memory a process had"),
        Some(most) => {
            println!("{what}: at most {} MB", most / 1_000_000);
            assert!(most <= limit, "{what} took {most} bytes, {limit} are its bound");
        }
    }
}

#[test]
fn weights_beside_the_model_never_come_into_memory_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let widths = [2048, 4096, 11008, 4096, 4096, 2048];
    let n_weights = write_chain(folder.path(), &widths, Stored::Beside);
    let file = fs::metadata(folder.path().join("weights.bin")).unwrap().len();
    assert!(file > 240_000_000, "{file}");
    let most = most_memory(folder.path(), 2, &["compile", "model.onnx", "-b", "w4a16", "-o", "a.qail"]);
    // The file is 248 MB, a byte for each code would be 124 MB, floats 495 MB.
    hold(most, 120_000_000, &format!("{n_weights} weights of 16 bits in {file} bytes"));
    let bytes = fs::read(folder.path().join("a.qail")).unwrap();
    let artifact = Artifact::parse(&bytes).unwrap();
    assert_eq!(artifact.manifest().layers.iter().map(|layer| layer.n_weights).sum::<u64>(), n_weights as u64);
}

/// Contents of all sections of what becomes of a chain, by name.
fn sections(widths: &[usize], stored: Stored, bits: &str) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    write_chain(folder.path(), widths, stored);
    let compiled = |threads: usize| {
        most_memory(folder.path(), threads, &["compile", "model.onnx", "-b", bits, "-o", "a.qail"]);
        fs::read(folder.path().join("a.qail")).unwrap()
    };
    let bytes = compiled(2);
    if stored == Stored::Beside {
        assert!(bytes == compiled(1), "{bits}: the number of threads changes the file");
    }
    let artifact = Artifact::parse(&bytes).unwrap();
    let names = (0u32..).zip(&artifact.manifest().sections);
    names.map(|(i, section)| (section.name.clone(), artifact.section(i).unwrap().to_vec())).collect()
}

#[test]
fn weights_in_a_file_and_weights_in_memory_become_the_same_artifact() {
    // Some extents fill neither a group nor a tile.
    let widths = [300, 1111, 517, 2500, 2100, 40];
    for bits in ["w4a16", "w8a16", "f32"] {
        let inside = sections(&widths, Stored::Inside, bits);
        assert!(inside.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > 3_000_000);
        for stored in [Stored::Beside, Stored::BesideTurned] {
            let beside = sections(&widths, stored, bits);
            assert_eq!(beside.len(), inside.len());
            for ((name, a), (_, b)) in inside.iter().zip(&beside) {
                assert!(a == b, "{bits}, {stored:?}: section `{name}` differs");
            }
        }
    }
}

/// What was said about each stage: how far it came, and how much there was.
#[derive(Debug, Default)]
struct Heard(BTreeMap<String, Vec<(usize, usize)>>);

impl Observer for Heard {
    fn progress(&mut self, stage: &str, done: usize, all: usize) {
        self.0.entry(stage.to_owned()).or_default().push((done, all));
    }

    fn after_pass(&mut self, _: &str, _: &Graph) {}
}

#[test]
fn progress_counts_weights_up_to_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let n_weights = write_chain(folder.path(), &[512, 3000, 600, 512], Stored::Beside);
    let options = BuildOptions { ..BuildOptions::new(Precision::W4A16) };
    let mut heard = Heard::default();
    let target = folder.path().join("a.qail");
    let mut built = pipeline::compile_beside(&target, &folder.path().join("model.onnx"), &options, &mut heard).unwrap();
    let of_stage = |stage: &str| heard.0.get(stage).unwrap_or_else(|| panic!("nothing about {stage}")).as_slice();
    for (stage, all) in [("read", 2 * n_weights), ("quantize-weights", n_weights)] {
        assert_eq!(of_stage(stage).last(), Some(&(all, all)), "{stage}");
    }
    for said in ["read", "quantize-weights", "write"].map(of_stage) {
        assert!(said.len() > 3 && said.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 == pair[1].1));
        assert!(said.last().is_some_and(|(done, all)| done == all));
    }
    // The file is aside until it is asked for, and nothing else is left then.
    assert!(!target.exists());
    built.persist(&target).unwrap();
    assert!(fs::read(&target).unwrap() == built.bytes[..]);
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.qail", "model.onnx", "weights.bin"]);
}

/// Writes a decoder of the shape of LLaMA into the folder; its shape are the flags
/// of the script. None without a Python that can.
fn write_decoder(folder: &Path, shape: &[&str]) -> Option<()> {
    let python = std::env::var_os("QAILC_PYTHON")?;
    let script = qail_fixtures::root().join("scripts/make_decoder.py");
    let made = Command::new(python).arg(script).arg(folder).args(shape).stdout(Stdio::null()).status();
    assert!(made.unwrap().success());
    Some(())
}

/// Runs one step of `a.qail` and asserts that it gives logits.
fn run_one_step(folder: &Path) {
    let run = ["run", "a.qail", "--input", "inputs.npz", "--rows", "1", "-o", "out.npz"];
    most_memory(folder, 2, &run);
    let outputs = qailc::data::Npz::open(&folder.join("out.npz")).unwrap();
    assert_eq!(outputs.info("logits").unwrap().n_rows(), 1);
}

#[test]
fn only_the_ends_of_a_decoder_keep_more_bits() {
    // Caches, masks, rotary positions and skip connections reach every layer, and
    // make none of them the first or the last.
    let folder = tempfile::tempdir().unwrap();
    let shape = ["--layers", "3", "--width", "64", "--ff", "176", "--heads", "4", "--kv-heads", "2"];
    let shape = [&shape[..], &["--past", "8", "--vocab", "320"]].concat();
    if write_decoder(folder.path(), &shape).is_none() {
        println!("SKIPPED: QAILC_PYTHON is not set");
        return;
    }
    most_memory(folder.path(), 2, &["compile", "decoder.onnx", "-b", "w4a16", "-o", "a.qail"]);
    let bytes = fs::read(folder.path().join("a.qail")).unwrap();
    let artifact = Artifact::parse(&bytes).unwrap();
    let products: Vec<_> = artifact.manifest().layers.iter().filter(|layer| layer.n_weights > 0).collect();
    let of_bits =
        |bits| products.iter().filter(move |layer| layer.weight_bits == bits).map(|layer| layer.name.as_str());
    assert_eq!(of_bits(8).collect::<Vec<_>>(), ["/layers.0.q", "/layers.0.k", "/layers.0.v", "/logits"]);
    assert_eq!((of_bits(4).count(), products.len()), (3 * 7 - 3, 3 * 7 + 1));
    run_one_step(folder.path());
}

#[test]
fn a_decoder_of_billions_of_weights_compiles_in_bounded_memory() {
    let Some(n_layers) = std::env::var("QAILC_DECODER_LAYERS").ok().and_then(|n| n.parse::<u64>().ok()) else {
        println!("skipped: QAILC_DECODER_LAYERS does not say how many layers the decoder has");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write_decoder(folder.path(), &["--layers", &n_layers.to_string()]).expect("QAILC_PYTHON makes the decoder");
    let most = most_memory(folder.path(), 2, &["compile", "decoder.onnx", "-b", "w4a16", "-o", "a.qail"]);
    // Scales of 4-bit weights stay in memory, 4 bytes for each 32: at most 25 MB a
    // layer. A layer itself is 405 MB of halves, and 202 MB of codes.
    hold(most, 200_000_000 + 25_000_000 * n_layers, &format!("a decoder of {n_layers} layers"));
    run_one_step(folder.path());
}
