//! Seeded multilayer perceptrons as finished artifacts, with the numbers they
//! were made from, for tests and benchmarks of reader and runtime.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use qail_artifact::{
    Layout, Manifest, Place, Storage, Writer, pack,
    schema::{Arena, EntryPoint, Port, Step, Tensor, step},
};

pub mod families;
pub mod mixed;
pub mod mutant;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// Uniform in `lo..=hi`.
    pub fn int(&mut self, lo: i64, hi: i64) -> i64 {
        lo + self.below((hi - lo + 1) as u64) as i64
    }

    /// Uniform in [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// What the layers of an [`Mlp`] compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    W8A8,
    /// 4-bit weights, edges 8-bit.
    W4A8,
    /// As `W4A8` with activations in -8..=7 inside.
    W4A4,
    F32,
    W8A16,
    W4A16,
}

/// One layer, as numbers.
pub struct Dense {
    pub k: usize,
    pub n: usize,
    /// Row-major `[k][n]`.
    pub codes: Vec<i8>,
    pub floats: Vec<f32>,
    pub bias: Vec<i32>,
    pub float_bias: Vec<f32>,
    pub m: Vec<i32>,
    pub shift: Vec<i32>,
    pub lo: i32,
    pub hi: i32,
    pub zero_point: i32,
    pub code_offset: i32,
    /// Stored bytes by `code + 128`.
    pub table: Option<Vec<i8>>,
    pub layout: Layout,
    /// `[ceil(k / group)][n]`.
    pub group: usize,
    pub group_scales: Vec<f32>,
}

/// A network and its file.
pub struct Mlp {
    pub rows: usize,
    pub precision: Precision,
    pub factor: Vec<f32>,
    pub layers: Vec<Dense>,
    /// Of the last accumulators.
    pub exit_scale: Vec<f64>,
    pub file: Vec<u8>,
}

/// Collects tensors, one behind the other in two arenas.
pub struct Builder {
    pub writer: Writer,
    pub manifest: Manifest,
    pub steps: Vec<Step>,
}

pub const HOST: u32 = 0;
pub const DEVICE: u32 = 1;

impl Default for Builder {
    fn default() -> Self {
        let arena = |place: Place| Arena { size: 0, place: place as i32 };
        let manifest = Manifest {
            name: "test".to_owned(),
            arenas: vec![arena(Place::Host), arena(Place::Device)],
            ..Manifest::default()
        };
        Self { writer: Writer::new(), manifest, steps: Vec::new() }
    }
}

impl Builder {
    pub fn tensor(&mut self, name: &str, storage: Storage, shape: &[usize], arena: u32) -> u32 {
        let cols = shape.last().copied().unwrap_or(1);
        let (bytes, stride) = match storage {
            Storage::I8 => (1, cols.next_multiple_of(32)),
            Storage::I16 => (2, cols.next_multiple_of(32)),
            Storage::U8 => (1, cols),
            Storage::I64 => (8, cols),
            _ => (4, cols),
        };
        let rows: usize = shape.iter().rev().skip(1).product();
        let size = (rows * stride * bytes).next_multiple_of(4) as u64;
        let place = &mut self.manifest.arenas[arena as usize];
        let offset = place.size;
        place.size += size.next_multiple_of(256);
        self.manifest.tensors.push(Tensor {
            name: name.to_owned(),
            storage: storage as i32,
            shape: shape.iter().map(|&extent| extent as u64).collect(),
            stride: stride as u64,
            arena,
            offset,
            size,
            code_offset: 0,
        });
        self.manifest.tensors.len() as u32 - 1
    }

    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> u32 {
        self.writer.add_section(name, Layout::I8, bytes).unwrap()
    }

    pub fn ints(&mut self, name: &str, numbers: &[i32]) -> u32 {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.writer.add_section(name, Layout::I32, &bytes).unwrap()
    }

    pub fn floats(&mut self, name: &str, numbers: &[f32]) -> u32 {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.writer.add_section(name, Layout::F32, &bytes).unwrap()
    }

    pub fn doubles(&mut self, name: &str, numbers: &[f64]) -> u32 {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.writer.add_section(name, Layout::F64, &bytes).unwrap()
    }

    pub fn step(&mut self, name: &str, place: Place, op: step::Op) {
        self.steps.push(Step { name: name.to_owned(), place: place as i32, dispatch: None, op: Some(op) });
    }

    pub fn finish(mut self, inputs: &[(&str, u32)], outputs: &[(&str, u32)]) -> Vec<u8> {
        self.entry(inputs, outputs);
        self.writer.finish(self.manifest).unwrap()
    }

    pub fn entry(&mut self, inputs: &[(&str, u32)], outputs: &[(&str, u32)]) {
        let ports = |list: &[(&str, u32)]| {
            list.iter()
                .map(|&(name, tensor)| Port { name: name.to_owned(), tensor, lower: Vec::new(), upper: Vec::new() })
                .collect()
        };
        self.manifest.entries.push(EntryPoint {
            name: "main".to_owned(),
            inputs: ports(inputs),
            outputs: ports(outputs),
            args: Vec::new(),
            steps: std::mem::take(&mut self.steps),
            states: Vec::new(),
            noise: Vec::new(),
            seed: 0,
        });
    }
}

impl Mlp {
    /// A network of the given widths, input first. Hidden layers of integer
    /// networks end in a clamp at zero, every third one in a table.
    pub fn new(dims: &[usize], rows: usize, precision: Precision, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let n_layers = dims.len() - 1;
        let layers: Vec<Dense> =
            (0..n_layers).map(|i| Dense::new(&mut rng, dims[i], dims[i + 1], precision, i, n_layers)).collect();
        let factor = (0..dims[0]).map(|i| f32::from(1u16 << (8 + i % 4))).collect();
        let exit_scale = (0..dims[n_layers]).map(|i| 1e-5 * (1.0 + i as f64)).collect();
        let mut mlp = Self { rows, precision, factor, layers, exit_scale, file: Vec::new() };
        mlp.file = mlp.build();
        mlp
    }

    /// Seeded observations.
    pub fn observations(&self, seed: u64) -> Vec<f32> {
        let mut rng = Rng(seed);
        (0..self.rows * self.layers[0].k).map(|_| 4.0 * rng.float()).collect()
    }

    fn build(&self) -> Vec<u8> {
        match self.precision {
            Precision::W8A8 | Precision::W4A8 | Precision::W4A4 => self.build_integer(),
            Precision::F32 | Precision::W8A16 | Precision::W4A16 => self.build_float(),
        }
    }

    fn build_integer(&self) -> Vec<u8> {
        let mut b = Builder::default();
        let d = self.layers[0].k;
        let obs = b.tensor("obs", Storage::F32, &[self.rows, d], HOST);
        let mut x = b.tensor("obs.q", Storage::I16, &[self.rows, d], DEVICE);
        let factor = b.floats("factor", &self.factor);
        let quantize = step::Quantize { x: obs, out: x, factor, lo: -32639, hi: 32639, zero_point: 0 };
        b.step("quantize", Place::Host, step::Op::Quantize(quantize));
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let (name, storage) = if last { ("acc".to_owned(), Storage::I32) } else { (format!("h{i}"), Storage::I8) };
            let out = b.tensor(&name, storage, &[self.rows, layer.n], DEVICE);
            b.manifest.tensors[out as usize].code_offset = if last { 0 } else { layer.code_offset };
            let packed = pack::pack_codes(layer.layout, &layer.codes, layer.k, layer.n).unwrap();
            let weight = b.writer.add_section(&format!("fc{i}.weight"), layer.layout, &packed).unwrap();
            let bias = b.ints(&format!("fc{i}.bias"), &layer.bias);
            let requantize = (!last).then(|| step::Requantize {
                m: b.ints(&format!("fc{i}.m"), &layer.m),
                shift: b.ints(&format!("fc{i}.shift"), &layer.shift),
                lo: layer.lo,
                hi: layer.hi,
                zero_point: layer.zero_point,
                table: layer.table.as_ref().map(|table| {
                    let bytes: Vec<u8> = table.iter().map(|&code| code as u8).collect();
                    b.writer.add_section(&format!("fc{i}.table"), Layout::I8, &bytes).unwrap()
                }),
                table_lo: if layer.table.is_some() { -128 } else { 0 },
            });
            let (k, n, rows) = (layer.k as u64, layer.n as u64, self.rows as u64);
            let op = step::QLinear { x, out, weight, bias, k, n, rows, requantize };
            b.step(&format!("fc{i}"), Place::Device, step::Op::QLinear(op));
            x = out;
        }
        let n = self.exit_scale.len();
        let y = b.tensor("y", Storage::F32, &[self.rows, n], HOST);
        let action = b.tensor("action", Storage::F32, &[self.rows, n], HOST);
        let scale = b.doubles("scale", &self.exit_scale);
        b.step("dequantize", Place::Host, step::Op::Dequantize(step::Dequantize { x, out: y, scale, zero_point: 0 }));
        let f = step::Function { kind: step::FunctionKind::Tanh as i32, p0: 0.0, p1: 0.0 };
        b.step("tanh", Place::Host, step::Op::Unary(step::Unary { x: y, out: action, f }));
        b.finish(&[("obs", obs)], &[("action", action)])
    }

    fn build_float(&self) -> Vec<u8> {
        let mut b = Builder::default();
        let obs = b.tensor("obs", Storage::F32, &[self.rows, self.layers[0].k], DEVICE);
        let mut x = obs;
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let name = if last { "action".to_owned() } else { format!("h{i}") };
            let out = b.tensor(&name, Storage::F32, &[self.rows, layer.n], DEVICE);
            let (k, n, rows) = (layer.k as u64, layer.n as u64, self.rows as u64);
            let bias = b.floats(&format!("fc{i}.bias"), &layer.float_bias);
            let kind = if last { step::FunctionKind::Tanh } else { step::FunctionKind::Relu };
            let act = Some(step::Function { kind: kind as i32, p0: 0.0, p1: 0.0 });
            let op = if self.precision == Precision::F32 {
                let packed = pack::pack_f32(&layer.floats, layer.k, layer.n).unwrap();
                let weight = b.writer.add_section(&format!("fc{i}.weight"), Layout::F32Rows8, &packed).unwrap();
                step::Op::Linear(step::Linear { x, out, weight, bias, k, n, rows, act })
            } else {
                let packed = pack::pack_codes(layer.layout, &layer.codes, layer.k, layer.n).unwrap();
                let weight = b.writer.add_section(&format!("fc{i}.weight"), layer.layout, &packed).unwrap();
                let scale = b.floats(&format!("fc{i}.scale"), &layer.group_scales);
                let group = layer.group as u64;
                step::Op::LinearWq(step::LinearWq { x, out, weight, scale, bias, k, n, rows, group, act })
            };
            b.step(&format!("fc{i}"), Place::Device, op);
            x = out;
        }
        b.finish(&[("obs", obs)], &[("action", x)])
    }
}

impl Dense {
    fn new(rng: &mut Rng, k: usize, n: usize, precision: Precision, index: usize, n_layers: usize) -> Self {
        let edge = index == 0 || index + 1 == n_layers;
        let narrow = match precision {
            Precision::W4A8 | Precision::W4A4 => !edge,
            Precision::W4A16 => true,
            Precision::W8A8 | Precision::W8A16 | Precision::F32 => false,
        };
        let limit = if narrow { 7 } else { 127 };
        let codes: Vec<i8> = (0..k * n).map(|_| rng.int(-limit, limit) as i8).collect();
        let group = if precision == Precision::W4A16 { 32 } else { k };
        // The next layer reads 8 bits if it is the last one.
        let a4 = precision == Precision::W4A4 && index + 2 < n_layers;
        let table =
            (index % 3 == 2).then(|| (0..256).map(|i| (100.0 * ((i as f64 - 128.0) / 40.0).tanh()) as i8).collect());
        let (lo, hi) = match (a4, table.is_some(), index % 2) {
            (_, true, _) => (-128, 127),
            (true, false, _) => (0, 7),
            (false, false, 0) => (0, 127),
            (false, false, _) => (0, 255),
        };
        let code_offset = if hi == 255 { 128 } else { 0 };
        // Spread the accumulators over the codes: sums of `k` uniform products.
        let input = if index == 0 {
            1200.0
        } else if precision == Precision::W4A4 && !edge {
            4.0
        } else {
            60.0
        };
        let spread = (k as f64).sqrt() * input * limit as f64 / 1.7;
        let ms: Vec<(i32, i32)> = (0..n)
            .map(|_| {
                let factor = f64::from(hi) / (2.5 * spread) * (1.0 + 0.3 * f64::from(rng.float()));
                let exponent = factor.log2().floor() as i32;
                let m = 2 * ((factor * 2f64.powi(15 - exponent) / 2.0).floor() as i32) + 1;
                (m, 15 - exponent)
            })
            .collect();
        let w_scale = 1.0 / (k as f32).sqrt();
        Self {
            k,
            n,
            codes,
            floats: (0..k * n).map(|_| rng.float() * w_scale).collect(),
            bias: (0..n).map(|_| rng.int(-(spread as i64), spread as i64) as i32).collect(),
            float_bias: (0..n).map(|_| 0.1 * rng.float()).collect(),
            m: ms.iter().map(|&(m, _)| m).collect(),
            shift: ms.iter().map(|&(_, shift)| shift).collect(),
            lo,
            hi,
            zero_point: if table.is_some() { 3 } else { 0 },
            code_offset,
            table,
            layout: if narrow { Layout::W4Tile8x32 } else { Layout::W8Tile8x16 },
            group,
            group_scales: (0..k.div_ceil(group) * n)
                .map(|_| (0.5 + 0.4 * rng.float()) * w_scale / limit as f32)
                .collect(),
        }
    }
}
