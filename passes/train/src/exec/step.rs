//! What an executor does, one step after another.

use qail_ir::{BinaryFn, Node, ReduceFn, Rope, TensorType, UnaryFn, Wrt};
use qail_passes::quant::{CodeInfo, region::ActivationQuantizer};

use super::{
    lanes::Beside,
    memory::Item,
    moves::{Picks, Sums},
    rows::Rows,
    spread::Spread,
};

/// A matrix inside an item.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) item: Item,
    /// Distance of two rows.
    pub(super) rows: usize,
    /// Distance of two columns.
    pub(super) columns: usize,
}

/// A layer on codes.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) name: String,
    /// Its place in [`State::layers`](super::run::State).
    pub(super) index: usize,
    /// The quantizer whose codes it reads.
    pub(super) input: usize,
    /// The quantizer of its weights.
    pub(super) weights: usize,
    pub(super) x: Item,
    pub(super) w: Item,
    pub(super) steps: Item,
    pub(super) bias: Item,
    /// Accumulators without bias.
    pub(super) acc: Item,
    /// Sums may leave the 24 bits of an `f32`: input, weights and sums in `f64`.
    pub(super) wide: Option<[Item; 2]>,
    pub(super) m: usize,
    /// Features of a group.
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) groups: usize,
}

/// A sum of codes in front of a quantizer.
#[derive(Clone, Debug)]
pub(super) struct SumOfCodes {
    pub(super) name: String,
    /// How the codes read.
    pub(super) quantizer: usize,
    pub(super) codes: Item,
    pub(super) rows: Rows,
    /// Codes in a sum, and what the sum is divided by.
    pub(super) n: usize,
    pub(super) divisor: usize,
}

/// The first operand of an addition in front of a quantizer.
#[derive(Clone, Copy, Debug)]
pub(super) enum AddendStep {
    /// Accumulators of a layer.
    Layer { layer: usize, acc: Item, wide: bool },
    /// Codes.
    Codes { quantizer: usize, codes: Item },
}

/// An addition in front of a quantizer.
#[derive(Clone, Debug)]
pub(super) struct AddCodes {
    pub(super) name: String,
    pub(super) a: AddendStep,
    pub(super) quantizer_b: usize,
    pub(super) codes_b: Item,
    /// Of both operands, and of the channels of `a`.
    pub(super) spread: Spread,
}

/// Where a quantizer gets its codes.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// From the accumulators of a layer: its place and theirs.
    Layer { layer: usize, acc: Item, wide: bool },
    /// From other codes: of this quantizer, in this place.
    Codes { quantizer: usize, codes: Item },
    /// From a sum of codes.
    Sum(Box<SumOfCodes>),
    /// From the sum of two values.
    Add(Box<AddCodes>),
    /// From floats.
    Floats(Item),
}

/// A quantizer of an activation.
#[derive(Clone, Debug)]
pub(super) struct Quantizer {
    pub(super) name: String,
    /// Its place in [`State::quantizers`](super::run::State).
    pub(super) index: usize,
    pub(super) quantizer: ActivationQuantizer,
    pub(super) source: Source,
    pub(super) step: Item,
    pub(super) codes: Item,
}

/// Weights that become codes.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    pub(super) name: String,
    /// Its place in [`State::weights`](super::run::State).
    pub(super) index: usize,
    pub(super) w: Item,
    pub(super) steps: Item,
    pub(super) codes: Item,
    pub(super) lo: i32,
    pub(super) hi: i32,
}

/// Gradients of a quantizer.
#[derive(Clone, Debug)]
pub(super) struct QuantizerGrad {
    pub(super) x: Item,
    pub(super) steps: Item,
    pub(super) g: Item,
    /// One step a column, not one for all.
    pub(super) columns: bool,
    /// Smallest and largest code without the zero point.
    pub(super) range: [f32; 2],
    pub(super) by_x: Option<Item>,
    pub(super) by_steps: Option<Item>,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Weights(Weights),
    Quantizer(Quantizer),
    /// `out = codes * step`.
    Scale {
        codes: Item,
        step: Item,
        out: Item,
    },
    /// `out[i, j] = codes[i, j] * steps[j]`.
    ScaleColumns {
        codes: Item,
        steps: Item,
        out: Item,
    },
    Layer(Layer),
    /// What floats read of a layer on codes.
    Leave {
        layer: usize,
        acc: Item,
        wide: bool,
        act: Option<UnaryFn>,
        out: Item,
    },
    /// A layer in floats.
    Linear {
        name: String,
        x: Item,
        w: Item,
        b: Item,
        act: Option<UnaryFn>,
        out: Item,
        /// Rows, channels, features of a group.
        dims: [usize; 3],
        groups: usize,
    },
    /// Products of matrices, at these offsets into the operands.
    MatMul {
        name: String,
        a: Window,
        b: Window,
        out: Item,
        dims: [usize; 3],
        offsets: Vec<[usize; 2]>,
    },
    Unary {
        f: UnaryFn,
        x: Item,
        out: Item,
    },
    /// A costly function of codes of at most 8 bits.
    UnaryOfCodes {
        f: UnaryFn,
        quantizer: usize,
        codes: Item,
        out: Item,
    },
    Binary {
        f: BinaryFn,
        beside: Beside,
        flipped: bool,
        a: Item,
        b: Item,
        out: Item,
    },
    /// Sums of rows, `x[outer, inner]`, times `factor`.
    SumRows {
        x: Item,
        out: Item,
        inner: usize,
        factor: f64,
    },
    /// Sums of columns, `x[outer, inner]`, times `factor`.
    SumColumns {
        x: Item,
        out: Item,
        factor: f64,
    },
    /// The operand, again and again.
    Repeat {
        x: Item,
        out: Item,
    },
    /// `out = f'(x) * g`.
    UnaryGrad {
        f: UnaryFn,
        x: Item,
        g: Item,
        out: Item,
    },
    /// The same, of codes of at most 8 bits.
    UnaryGradOfCodes {
        f: UnaryFn,
        quantizer: usize,
        codes: Item,
        g: Item,
        out: Item,
    },
    /// Gradients of a quantizer, by what it reads and by its steps.
    QuantizerGrad(QuantizerGrad),
    /// Elements in other places; `fill` where there is none.
    Pick {
        x: Item,
        out: Item,
        picks: Picks,
        fill: f32,
    },
    /// The same of codes; with a place for how they read and the real number of the fill, if there is one.
    PickCodes {
        from: usize,
        to: Option<(usize, f32)>,
        x: Item,
        out: Item,
        picks: Picks,
    },
    /// Sums over elements in other places.
    Sums {
        x: Item,
        out: Item,
        sums: Sums,
    },
    /// Whole numbers as floats.
    Floats {
        x: Item,
        out: Item,
    },
    /// Parts side by side, each with the elements of its rows; of codes, with the places of how they read.
    Join {
        parts: Vec<(Item, usize)>,
        out: Item,
        codes: Option<(Vec<usize>, usize)>,
    },
    /// `x[lead, extent, row]` by a computed index; `dims` are extent and row.
    Gather {
        x: Item,
        index: Item,
        out: Item,
        dims: [usize; 2],
    },
    /// Rows added or written by a computed index.
    Scatter {
        x: Item,
        index: Item,
        update: Item,
        out: Item,
        row: usize,
        sums: bool,
    },
    /// One number of each row.
    Reduce {
        f: ReduceFn,
        rows: Rows,
        x: Item,
        out: Item,
    },
    /// Gradient of the smallest or largest number of each row.
    ExtremeGrad {
        largest: bool,
        rows: Rows,
        x: Item,
        g: Item,
        out: Item,
    },
    Softmax {
        log: bool,
        rows: Rows,
        x: Item,
        out: Item,
    },
    Normalize {
        eps: f32,
        center: bool,
        rows: Rows,
        x: Item,
        out: Item,
    },
    /// A function of two tensors that broadcast in any way.
    Spread {
        f: BinaryFn,
        spread: Spread,
        a: Item,
        b: Item,
        out: Item,
    },
    /// Its partial derivative times `g`: operands are `a`, `b`, `g`.
    SpreadGrad {
        f: BinaryFn,
        wrt: Wrt,
        spread: Spread,
        operands: [Item; 3],
        out: Item,
    },
    /// One or the other: operands are truth values and two tensors.
    Choose {
        spread: Spread,
        operands: [Item; 3],
        out: Item,
    },
    /// Pairs of rows of `width` turned: operands are the rows, cosines, sines.
    Rope {
        op: Rope,
        width: usize,
        spread: Spread,
        operands: [Item; 3],
        out: Item,
    },
    /// A product and a sum: operands are a tensor, a scale, a shift.
    Film {
        spread: Spread,
        operands: [Item; 3],
        out: Item,
    },
    /// Any operation, by the interpreter.
    Interpret {
        node: Box<Node>,
        operands: Vec<(Item, TensorType)>,
        out: Item,
    },
}

/// What an index of a code without its zero point needs to start at 0.
pub(super) fn table_offset(info: &CodeInfo) -> i32 {
    info.zero_point - info.scheme.lo()
}
