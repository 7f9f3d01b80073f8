//! Windows that slide over a tensor: what convolution, pooling and padding read.

use crate::{DType, Elem, Op, TensorType, TypeError};

/// See [`Op::Unfold`].
///
/// The result has the axes of `x`, each with extent [`Window::out`], followed by one axis of
/// extent [`Window::size`] for every axis whose window is larger than 1, in their order.
/// Along an axis, element `(o, k)` of the result is element `p / spread` of `x`, where
/// `p = o * stride + k * dilation - pad`; it is [`Unfold::fill`] where `p` is negative, not a
/// multiple of `spread`, or behind the last element.
///
/// So a convolution is `unfold`, `transpose`, `reshape`, `linear`; pooling is `unfold` and a
/// reduction; padding and cropping are windows of size 1; a transposed convolution has
/// `spread > 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfold {
    /// One entry an axis.
    pub windows: Vec<Window>,
    /// What stands beyond the edges: a finite number or an infinity; for integers and codes one of them.
    pub fill: f32,
}

/// The window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Elements that it shows at once; at least 1.
    pub size: usize,
    /// Distance between neighbouring windows; at least 1.
    pub stride: usize,
    /// Distance between the elements of a window; at least 1.
    pub dilation: usize,
    /// How far the first window begins before the first element; negative to begin behind it.
    pub pad: isize,
    /// Distance to which the elements are spread first; at least 1.
    pub spread: usize,
    /// Number of windows; at least 1.
    pub out: usize,
}

impl Window {
    /// One element after the other.
    pub fn identity(extent: usize) -> Self {
        Self { size: 1, stride: 1, dilation: 1, pad: 0, spread: 1, out: extent }
    }

    /// The element of an axis of `extent` elements that window `o` shows at `k`.
    pub fn element(&self, o: usize, k: usize, extent: usize) -> Option<usize> {
        let ahead = o.checked_mul(self.stride)?.checked_add(k.checked_mul(self.dilation)?)?;
        let at = ahead.checked_add_signed(self.pad.checked_neg()?)?;
        let spread = self.spread.max(1);
        if at % spread != 0 {
            return None;
        }
        Some(at / spread).filter(|&at| at < extent)
    }

    fn is_sound(&self) -> bool {
        self.size > 0 && self.stride > 0 && self.dilation > 0 && self.spread > 0 && self.out > 0
    }
}

/// See [`Grad::Unfold`](crate::Grad::Unfold).
#[derive(Clone, Debug, PartialEq)]
pub struct UnfoldGrad {
    /// What was read.
    pub unfold: Unfold,
    /// Shape of what it was read from.
    pub shape: Vec<usize>,
}

impl Unfold {
    /// Type of the result.
    pub(super) fn infer(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new("unfold", "one tensor with a sound window an axis", operands);
        let [x] = operands else { return Err(error()) };
        let fill_fits = match range(x.elem) {
            None => !self.fill.is_nan(),
            Some((lo, hi)) => self.fill.fract() == 0.0 && (lo..=hi).contains(&f64::from(self.fill)),
        };
        if self.windows.len() != x.shape.len() || !self.windows.iter().all(Window::is_sound) || !fill_fits {
            return Err(error());
        }
        let mut shape: Vec<usize> = self.windows.iter().map(|window| window.out).collect();
        shape.extend(self.windows.iter().map(|window| window.size).filter(|&size| size > 1));
        Ok(TensorType { elem: x.elem, shape })
    }
}

/// Smallest and largest element of a type that holds whole numbers.
fn range(elem: Elem) -> Option<(f64, f64)> {
    match elem {
        Elem::Plain(DType::F32 | DType::F64) => None,
        Elem::Plain(DType::Bool) => Some((0.0, 1.0)),
        Elem::Plain(DType::U8) => Some((0.0, 255.0)),
        Elem::Plain(DType::I32) => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
        Elem::Plain(DType::I64) => Some((i64::MIN as f64, i64::MAX as f64)),
        Elem::Code(scheme) => Some((f64::from(scheme.lo()), f64::from(scheme.hi()))),
    }
}

impl UnfoldGrad {
    /// Type of the result.
    pub(super) fn infer(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let x = TensorType::f32(self.shape.clone());
        match operands {
            [g] if Op::Unfold(self.unfold.clone()).infer(&[&x])? == [(*g).clone()] => Ok(x),
            _ => Err(TypeError::new("unfold_grad", "g of f32, in the shape of the windows", operands)),
        }
    }
}
