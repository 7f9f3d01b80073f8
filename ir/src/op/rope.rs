//! Operations that turn or scale a value by others that broadcast to it: always in `f32`.

use crate::{Op, TensorType, TypeError};

use super::infer::broadcast;

/// See [`Op::Rope`]. Rotary position embedding of rows `x[.., D]`, `D` even, by `cos` and `sin` that
/// broadcast to them: `y = x * cos + r * sin`, where `r` holds the other element of every pair, the
/// first of the two with a minus. Two products and a sum, each rounded to `f32`.
///
/// Pairs are `(i, i + D / 2)` as in LLaMA, or with `interleaved` `(2 i, 2 i + 1)` as in GPT-J.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rope {
    /// Pairs are neighbours.
    pub interleaved: bool,
}

/// See [`Op::Film`]. Feature-wise modulation: `x * scale + shift`, both of which broadcast to `x`.
/// A product and a sum, each rounded to `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Film;

impl Rope {
    /// Which element of a row of `width` is turned to place `i`, and whether its sign changes.
    pub fn partner(&self, i: usize, width: usize) -> (usize, bool) {
        let half = width / 2;
        match self.interleaved {
            true => (i ^ 1, i.is_multiple_of(2)),
            false if i < half => (i + half, true),
            false => (i - half, false),
        }
    }
}

impl Op {
    pub(super) fn infer_rope(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let expected = "x[.., D] of f32 with an even D, and cos and sin that broadcast to it";
        match operands {
            [x, ..] if x.shape.last().is_some_and(|width| width.is_multiple_of(2)) => {
                self.infer_modulated(operands, expected)
            }
            _ => Err(TypeError::new(self.name(), expected, operands)),
        }
    }

    pub(super) fn infer_film(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        self.infer_modulated(operands, "x of f32, and a scale and a shift that broadcast to it")
    }

    /// The type of the first operand, to which two others broadcast.
    fn infer_modulated(&self, operands: &[&TensorType], expected: &'static str) -> Result<TensorType, TypeError> {
        match operands {
            [x, a, b]
                if operands.iter().all(|operand| operand.is_f32())
                    && [a, b].iter().all(|by| broadcast(&by.shape, &x.shape).as_ref() == Some(&x.shape)) =>
            {
                Ok((*x).clone())
            }
            _ => Err(TypeError::new(self.name(), expected, operands)),
        }
    }
}
