//! Operations from their names and attributes.

use crate::{
    ArgReduce, Attention, Binary, BinaryFn, BinaryGrad, Cast, Compare, CompareFn, Concat, CumSum, Dequantize, Elem,
    Expand, FakeQuant, FakeQuantGrad, Film, Gather, Grad, Linear, LinearWq, Lookup, MatMul, Normalize, Op, QAdd,
    QLinear, QSum, QuantScheme, Quantize, Reduce, ReduceFn, Requantize, Reshape, Rope, Scatter, ScatterFn, Slice,
    SliceAxis, SliceGrad, Softmax, TensorType, TopK, TopKPart, Transpose, Unary, UnaryFn, Unfold, UnfoldGrad, Where,
    Window, Wrt,
};

use super::{
    error::{ParseError, ParseErrorKind},
    function, types,
};

/// What stands after the key of an attribute.
pub(super) enum Value<'a> {
    /// Nothing: `keep_dims`, `s4`.
    Flag,
    /// `axis = 1`.
    Number(&'a str),
    /// `perm = [1, 0]`.
    List(Vec<&'a str>),
    /// `act = clip(-1.0, 1.0)`.
    Call(&'a str, Vec<&'a str>),
}

/// One attribute.
pub(super) struct Attribute<'a> {
    /// Its name.
    pub(super) key: &'a str,
    /// What it says.
    pub(super) value: Value<'a>,
    /// The byte where it starts.
    pub(super) at: usize,
}

/// The attributes of one node. What an operation takes is removed, what remains
/// is an error.
pub(super) struct Attributes<'a> {
    /// The text, for the positions of errors.
    pub(super) text: &'a str,
    /// The operation.
    pub(super) op: &'a str,
    /// The byte where the operation stands.
    pub(super) at: usize,
    /// What was not taken yet.
    pub(super) list: Vec<Attribute<'a>>,
}

impl<'a> Attributes<'a> {
    fn take(&mut self, key: &str) -> Option<Attribute<'a>> {
        let i = self.list.iter().position(|attribute| attribute.key == key)?;
        Some(self.list.remove(i))
    }

    fn expected(&self, expected: impl Into<String>, found: &str, at: usize) -> ParseError {
        ParseErrorKind::expected(expected, found).at(self.text, at)
    }

    fn missing(&self, key: &'static str, or: &'static str) -> ParseError {
        ParseErrorKind::MissingAttribute { op: self.op.to_owned(), key, or }.at(self.text, self.at)
    }

    fn number<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ParseError> {
        let Some(attribute) = self.take(key) else { return Ok(None) };
        let found = match attribute.value {
            Value::Number(found) => found,
            Value::Flag | Value::List(_) | Value::Call(..) => attribute.key,
        };
        match read(found) {
            Some(number) => Ok(Some(number)),
            None => Err(self.expected(format!("a number for `{key}` in its range"), found, attribute.at)),
        }
    }

    /// An attribute that must stand there.
    fn required<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, ParseError> {
        self.number(key, read)?.ok_or_else(|| self.missing(key, ""))
    }

    fn list<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<Vec<T>>, ParseError> {
        let Some(attribute) = self.take(key) else { return Ok(None) };
        let Value::List(items) = attribute.value else {
            return Err(self.expected(format!("a list for `{key}`"), attribute.key, attribute.at));
        };
        let number = |item: &&str| read(item).ok_or_else(|| self.expected("a number in its range", item, attribute.at));
        items.iter().map(number).collect::<Result<Vec<T>, ParseError>>().map(Some)
    }

    fn required_list<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ParseError> {
        self.list(key, read)?.ok_or_else(|| self.missing(key, ""))
    }

    fn act(&mut self) -> Result<Option<UnaryFn>, ParseError> {
        self.unary_fn("act")
    }

    fn groups(&mut self) -> Result<usize, ParseError> {
        Ok(self.number("groups", |found| parse(found).filter(|&groups: &usize| groups > 0))?.unwrap_or(1))
    }

    fn unary_fn(&mut self, key: &str) -> Result<Option<UnaryFn>, ParseError> {
        let Some(attribute) = self.take(key) else { return Ok(None) };
        let at = attribute.at;
        let Value::Call(name, args) = attribute.value else {
            return Err(self.expected(format!("a function such as `{key} = relu`"), attribute.key, at));
        };
        let mut args = args.into_iter();
        let param = |key| match args.next() {
            Some(arg) => parameter(arg).ok_or_else(|| self.expected(format!("a number for `{key}`"), arg, at)),
            None => Err(self.expected(format!("`{name}` with a number for `{key}`"), name, at)),
        };
        let f = function::by_name(name, param)?.ok_or_else(|| self.expected("a function of one number", name, at))?;
        match args.next() {
            Some(extra) => Err(self.expected("`)`", extra, at)),
            None => Ok(Some(f)),
        }
    }

    fn range(&mut self, scheme: QuantScheme) -> Result<(i32, i32), ParseError> {
        let lo = self.number("lo", parse)?.unwrap_or_else(|| scheme.lo());
        let hi = self.number("hi", parse)?.unwrap_or_else(|| scheme.hi());
        Ok((lo, hi))
    }

    /// The one attribute without a key, such as `s4`.
    fn scheme(&mut self) -> Result<QuantScheme, ParseError> {
        let is_scheme = |attribute: &Attribute| matches!(attribute.value, Value::Flag);
        match self.list.iter().position(is_scheme) {
            Some(i) => {
                let attribute = self.list.remove(i);
                types::scheme(attribute.key)
                    .ok_or_else(|| self.expected("a scheme such as `s4` or `u8`", attribute.key, attribute.at))
            }
            None => Err(self.missing("s4", " or another scheme")),
        }
    }

    /// The scheme of the codes that the node declares.
    fn declared_scheme(&self, declared: &TensorType) -> Result<QuantScheme, ParseError> {
        declared.scheme().ok_or_else(|| {
            self.expected(format!("codes, such as qs8, as result of `{}`", self.op), &declared.to_string(), self.at)
        })
    }

    /// The operation. `declared` is its first result.
    pub(super) fn build(mut self, declared: &TensorType) -> Result<Op, ParseError> {
        let op = match self.op {
            "matmul" => Op::MatMul(MatMul),
            "linear" => Op::Linear(Linear { act: self.act()?, groups: self.groups()? }),
            "reshape" => Op::Reshape(Reshape { shape: declared.shape.clone() }),
            "transpose" => Op::Transpose(Transpose { perm: self.required_list("perm", parse)? }),
            "slice" => Op::Slice(self.slice()?),
            "concat" => Op::Concat(Concat { axis: self.required("axis", parse)? }),
            "expand" => Op::Expand(Expand { shape: declared.shape.clone() }),
            "cast" => match declared.elem {
                Elem::Plain(to) => Op::Cast(Cast { to }),
                Elem::Code(_) => return Err(self.expected("a plain type", &declared.to_string(), self.at)),
            },
            "fake_quant" => Op::FakeQuant(self.quantizer()?),
            "quantize" => {
                let scheme = self.declared_scheme(declared)?;
                let (lo, hi) = self.range(scheme)?;
                let zero_point = self.number("zero_point", parse)?.unwrap_or(0);
                Op::Quantize(Quantize { scheme, lo, hi, zero_point })
            }
            "qlinear" => Op::QLinear(QLinear { groups: self.groups()? }),
            "requantize" => {
                let scheme = self.declared_scheme(declared)?;
                let (lo, hi) = self.range(scheme)?;
                let zero_point = self.number("zero_point", parse)?.unwrap_or(0);
                Op::Requantize(Requantize { scheme, lo, hi, zero_point })
            }
            "lookup" => Op::Lookup(Lookup),
            "where" => Op::Where(Where),
            "gather" => Op::Gather(Gather { axis: self.required("axis", parse)? }),
            "scatter" => Op::Scatter(Scatter { f: self.one_of("f", &ScatterFn::ALL, ScatterFn::name)? }),
            "arg_reduce" => {
                let axis = self.required("axis", parse)?;
                let (largest, keep_dims) = (self.flag("largest")?, self.flag("keep_dims")?);
                Op::ArgReduce(ArgReduce { largest, axis, keep_dims, last: self.flag("last")? })
            }
            "top_k" => {
                let (axis, k) = (self.required("axis", parse)?, self.required("k", parse)?);
                let largest = self.flag("largest")?;
                let part = if self.flag("indices")? { TopKPart::Indices } else { TopKPart::Values };
                Op::TopK(TopK { axis, k, largest, part })
            }
            "cum_sum" => {
                let axis = self.required("axis", parse)?;
                let exclusive = self.flag("exclusive")?;
                Op::CumSum(CumSum { axis, exclusive, reverse: self.flag("reverse")? })
            }
            "unfold" => Op::Unfold(self.windows()?),
            "unfold_grad" => {
                let shape = declared.shape.clone();
                Op::Grad(Grad::Unfold(UnfoldGrad { unfold: self.windows()?, shape }))
            }
            "softmax" => {
                let axis = self.required("axis", parse)?;
                Op::Softmax(Softmax { axis, log: self.flag("log")? })
            }
            "normalize" => {
                let (axes, eps) = (self.required_list("axes", parse)?, self.required("eps", parameter)?);
                Op::Normalize(Normalize { axes, eps, center: self.flag("center")? })
            }
            "attention" => Op::Attention(Attention { scale: self.required("scale", parameter)? }),
            "rope" => Op::Rope(Rope { interleaved: self.flag("interleaved")? }),
            "film" => Op::Film(Film),
            "qadd" => {
                let scheme = self.declared_scheme(declared)?;
                let (lo, hi) = self.range(scheme)?;
                let zero_a = self.number("zero_a", parse)?.unwrap_or(0);
                let zero_b = self.number("zero_b", parse)?.unwrap_or(0);
                let zero_point = self.number("zero_point", parse)?.unwrap_or(0);
                Op::QAdd(QAdd { scheme, lo, hi, zero_a, zero_b, zero_point })
            }
            "qsum" => {
                let axes = self.required_list("axes", parse)?;
                let keep_dims = self.flag("keep_dims")?;
                Op::QSum(QSum { axes, keep_dims, zero_point: self.number("zero_point", parse)?.unwrap_or(0) })
            }
            "dequantize" => Op::Dequantize(Dequantize { zero_point: self.number("zero_point", parse)?.unwrap_or(0) }),
            "linear_wq" => {
                let group = self.required("group", parse)?;
                Op::LinearWq(LinearWq { group, act: self.act()? })
            }
            "unary_grad" => {
                let f = self.unary_fn("f")?.ok_or_else(|| self.missing("f", ""))?;
                Op::Grad(Grad::Unary(Unary { f }))
            }
            "binary_grad" => {
                let f = self.one_of("f", &BinaryFn::ALL, BinaryFn::name)?;
                Op::Grad(Grad::Binary(BinaryGrad { f, wrt: self.wrt()? }))
            }
            "reduce_grad" => {
                let f = self.one_of("f", &ReduceFn::ALL, ReduceFn::name)?;
                Op::Grad(Grad::Reduce(self.reduce(f)?))
            }
            "slice_grad" => {
                let shape = declared.shape.clone();
                Op::Grad(Grad::Slice(SliceGrad { slice: self.slice()?, shape }))
            }
            "fake_quant_grad" => {
                let fake = self.quantizer()?;
                Op::Grad(Grad::FakeQuant(FakeQuantGrad { fake, wrt: self.wrt()? }))
            }
            name => self.function(name)?,
        };
        match self.list.first() {
            Some(extra) => {
                let kind = ParseErrorKind::UnknownAttribute { op: self.op.to_owned(), key: extra.key.to_owned() };
                Err(kind.at(self.text, extra.at))
            }
            None => Ok(op),
        }
    }

    fn quantizer(&mut self) -> Result<FakeQuant, ParseError> {
        let scheme = self.scheme()?;
        let (lo, hi) = self.range(scheme)?;
        let (axis, group) = (self.number("axis", parse)?, self.number("group", parse)?);
        Ok(FakeQuant { scheme, lo, hi, axis, group })
    }

    fn wrt(&mut self) -> Result<Wrt, ParseError> {
        self.required("wrt", |text| [Wrt::First, Wrt::Second].into_iter().find(|wrt| wrt.slot().to_string() == text))
    }

    /// A function by its name.
    fn one_of<T: Copy>(&mut self, key: &'static str, all: &[T], name: fn(T) -> &'static str) -> Result<T, ParseError> {
        let attribute = self.take(key).ok_or_else(|| self.missing(key, ""))?;
        let found = match &attribute.value {
            Value::Call(found, args) if args.is_empty() => *found,
            Value::Call(..) | Value::Flag | Value::Number(_) | Value::List(_) => attribute.key,
        };
        let f = all.iter().copied().find(|&f| name(f) == found);
        f.ok_or_else(|| self.expected("the name of a function", found, attribute.at))
    }

    fn reduce(&mut self, f: ReduceFn) -> Result<Reduce, ParseError> {
        let axes = self.required_list("axes", parse)?;
        Ok(Reduce { f, axes, keep_dims: self.flag("keep_dims")? })
    }

    fn windows(&mut self) -> Result<Unfold, ParseError> {
        let out: Vec<usize> = self.required_list("out", parse)?;
        let pad: Vec<isize> = self.list("pad", parse)?.unwrap_or_else(|| vec![0; out.len()]);
        let mut ones = |key| Ok(self.list(key, parse)?.unwrap_or_else(|| vec![1usize; out.len()]));
        let (size, stride, dilation, spread) = (ones("size")?, ones("stride")?, ones("dilation")?, ones("spread")?);
        if [&size, &stride, &dilation, &spread].iter().any(|list| list.len() != out.len()) || pad.len() != out.len() {
            return Err(self.expected("lists of equal length", self.op, self.at));
        }
        let numbers = size.into_iter().zip(stride).zip(dilation).zip(spread).zip(pad).zip(out);
        let windows = numbers.map(|(((((size, stride), dilation), spread), pad), out)| Window {
            size,
            stride,
            dilation,
            pad,
            spread,
            out,
        });
        let windows = windows.collect();
        Ok(Unfold { windows, fill: self.number("fill", parameter)?.unwrap_or(0.0) })
    }

    fn slice(&mut self) -> Result<Slice, ParseError> {
        let start: Vec<usize> = self.required_list("start", parse)?;
        let len: Vec<usize> = self.required_list("len", parse)?;
        let step: Vec<isize> = self.list("step", parse)?.unwrap_or_else(|| vec![1; len.len()]);
        if start.len() != len.len() || step.len() != len.len() {
            return Err(self.expected("lists of equal length", self.op, self.at));
        }
        let axes = start.into_iter().zip(len).zip(step);
        Ok(Slice { axes: axes.map(|((start, len), step)| SliceAxis { start, len, step }).collect() })
    }

    /// Operations that carry the name of their function.
    fn function(&mut self, name: &'a str) -> Result<Op, ParseError> {
        if let Some(f) = BinaryFn::ALL.into_iter().find(|f| f.name() == name) {
            return Ok(Op::Binary(Binary { f }));
        }
        if let Some(f) = CompareFn::ALL.into_iter().find(|f| f.name() == name) {
            return Ok(Op::Compare(Compare { f }));
        }
        if let Some(f) = ReduceFn::ALL.into_iter().find(|f| f.name() == name) {
            return Ok(Op::Reduce(self.reduce(f)?));
        }
        match function::by_name(name, |key| self.required(key, parameter))? {
            Some(f) => Ok(Op::Unary(Unary { f })),
            None => Err(self.expected("an operation", name, self.at)),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, ParseError> {
        match self.take(key) {
            None => Ok(false),
            Some(Attribute { value: Value::Flag, .. }) => Ok(true),
            Some(attribute) => Err(self.expected(format!("`{key}` without a value"), attribute.key, attribute.at)),
        }
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Parameters of functions may be infinite, but not NaN: a graph with NaN in an
/// attribute would not equal itself.
fn parameter(text: &str) -> Option<f32> {
    types::f32_of(text).filter(|x| !x.is_nan())
}
