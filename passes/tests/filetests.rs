//! Runs every `filetests/<pass>/*.qir`: the graph behind the pass is a snapshot,
//! and its results are held to the pass's exactness.
//!
//! Comments at the top of a case steer it:
//! - `// options: bits=w4a4` gives the pass options,
//! - `// before: a, b` runs other passes first, without a look at them.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, error::Error, fmt::Write as _, fs, path::Path};

use qail_ir::{
    DType, Elem, Graph,
    interp::{Data, Tensor, run},
    text,
};
use qail_passes::{Exactness, Pass, PassContext, PassManager, registry};
use support::{Rng, bounds};

#[test]
fn filetests() {
    insta::glob!("filetests/**/*.qir", |path| {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(case(path));
        });
    });
}

/// Seeds of the inputs that results are compared on.
const SEEDS: std::ops::Range<u64> = 1..6;

fn case(path: &Path) -> String {
    let source = fs::read_to_string(path).unwrap();
    let name = path.parent().and_then(Path::file_name).unwrap().to_str().unwrap();
    let options = header(&source, "options").unwrap_or_default();
    let pass = registry::parse(&format!("{name}({options})")).unwrap().remove(0);
    let exactness = pass.exactness();
    let mut graph = text::parse(&source).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let samples: Vec<BTreeMap<String, Tensor>> = (0..64).map(|seed| inputs(&graph, 1000 + seed)).collect();
    let mut cx = if header(&source, "data").as_deref() == Some("none") {
        PassContext::new()
    } else {
        PassContext::with_samples(&samples)
    };
    if let Some(before) = header(&source, "before") {
        PassManager::new(registry::parse(&before).unwrap()).run(&mut graph, &mut cx).unwrap();
        cx.notes.clear();
        cx.lowering = None;
    }
    let before = graph.clone();
    let mut out = String::new();
    match PassManager::new(vec![pass]).run(&mut graph, &mut cx) {
        Ok(_) => out.push_str(&text::print(&graph)),
        Err(error) => {
            let mut error: Option<&dyn Error> = Some(&error);
            while let Some(cause) = error {
                writeln!(out, "error: {cause}").unwrap();
                error = cause.source();
            }
            return out;
        }
    }
    for note in &cx.notes {
        writeln!(out, "// {:?} at `{}`: {}", note.kind, note.node, note.text).unwrap();
    }
    twice_is_once(registry::parse(&format!("{name}({options})")).unwrap().remove(0), &graph);
    compare(&before, &graph, exactness, &mut out);
    out
}

/// The value of `// key: value`.
fn header(source: &str, key: &str) -> Option<String> {
    let prefix = format!("// {key}: ");
    source.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

/// Seeded inputs: floats around zero, bytes and truth values over their range.
fn inputs(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = Rng(seed);
    let mut inputs = BTreeMap::new();
    for &id in graph.inputs().iter().filter(|&&id| !graph.is_turn(&graph.node(id).name)) {
        let ty = graph.ty(id.value()).clone();
        let n = ty.n_elements();
        let tensor = match ty.elem {
            Elem::Plain(DType::F32) => Tensor::f32(ty.shape, (0..n).map(|_| rng.normal() as f32).collect()),
            Elem::Plain(DType::Bool) => Tensor::ints(ty, (0..n).map(|_| (rng.next_u64() % 2) as i64).collect()),
            _ => Tensor::ints(ty, (0..n).map(|_| (rng.next_u64() % 100) as i64).collect()),
        };
        inputs.insert(graph.node(id).name.clone(), tensor);
    }
    inputs
}

/// A rewriting pass does nothing the second time.
fn twice_is_once(pass: Box<dyn Pass>, graph: &Graph) {
    let mut again = graph.clone();
    let name = pass.name();
    PassManager::new(vec![pass]).run(&mut again, &mut PassContext::new()).unwrap();
    assert_eq!(text::print(&again), text::print(graph), "{name} changed its own result");
}

/// Part of the largest result that rounding may change where no bound is derived.
const TOLERANCE: f64 = 3e-6;

fn compare(before: &Graph, after: &Graph, exactness: Exactness, out: &mut String) {
    let derived = bounds::covers(before) && bounds::covers(after);
    let (mut largest, mut range) = (0.0f64, 0.0f64);
    for seed in SEEDS {
        let inputs = inputs(before, seed);
        let old = run(before, &inputs).unwrap();
        let new =
            if has_same_inputs(before, after) { run(after, &inputs).unwrap() } else { one_of_many(after, &inputs) };
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>(), "names of outputs");
        let bounds = match exactness {
            Exactness::Rounding if derived => {
                Some((bounds::output_errors(before, &inputs), bounds::output_errors(after, &inputs)))
            }
            Exactness::Exact | Exactness::Lossy | Exactness::Rounding => None,
        };
        for (name, old) in &old {
            let new = &new[name];
            assert_eq!(old.ty, new.ty, "type of output `{name}`");
            let (old, new) = (numbers(old), numbers(new));
            for (i, (a, b)) in old.iter().zip(&new).enumerate() {
                let difference = if *a == *b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
                range = range.max(a.abs());
                if difference == 0.0 {
                    continue;
                }
                largest = largest.max(difference);
                match &bounds {
                    None if exactness == Exactness::Exact => {
                        assert!(difference == 0.0, "output `{name}`: {a} became {b}")
                    }
                    None => assert!(b.is_finite(), "output `{name}`: {a} became {b}"),
                    Some((of_old, of_new)) => {
                        let bound = of_old[name][i] + of_new[name][i];
                        assert!(difference <= bound, "output `{name}`: {a} became {b}, bound {bound:e}");
                    }
                }
            }
        }
    }
    if exactness == Exactness::Rounding && !derived {
        assert!(largest <= TOLERANCE * range, "results of {range:e} changed by {largest:e}");
    }
    if exactness == Exactness::Lossy {
        writeln!(out, "// largest difference {largest:.1e}, largest result {range:.1e}").unwrap();
    }
}

fn has_same_inputs(before: &Graph, after: &Graph) -> bool {
    let types = |graph: &Graph| graph.inputs().iter().map(|id| graph.ty(id.value()).clone()).collect::<Vec<_>>();
    types(before) == types(after)
}

/// The results of one sample, the last of a batch in which every sample is
/// another one. The batch axis is the first.
fn one_of_many(graph: &Graph, sample: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut n = 0;
    let many = sample.iter().map(|(name, one)| {
        let input = graph.inputs().iter().find(|id| graph.node(**id).name == *name).unwrap();
        let ty = graph.ty(input.value()).clone();
        n = ty.shape[0];
        let own = one.as_f32().expect("batches of floats are tested");
        let others = (0..ty.n_elements() - own.len()).map(|i| i as f32 / 7.0 - 1.0);
        (name.clone(), Tensor::f32(ty.shape, others.chain(own.iter().copied()).collect()))
    });
    let results = run(graph, &many.collect()).unwrap();
    let last = |(name, all): (String, Tensor)| {
        let mut shape = all.ty.shape.clone();
        assert_eq!(shape[0], n, "samples in output `{name}`");
        shape[0] = 1;
        let elements = all.as_f32().unwrap();
        (name, Tensor::f32(shape, elements[elements.len() - elements.len() / n..].to_vec()))
    };
    results.into_iter().map(last).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match &tensor.data {
        Data::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
        Data::F64(x) => x.clone(),
        Data::Int(x) => x.iter().map(|&x| x as f64).collect(),
    }
}
