//! Scales and zero points, checked.

use qail_ir::{Constant, DType, Elem, QuantScheme, Shape};

use super::super::{OpError, builder::Tensor, cx};
use super::{super::cx::NodeCx, grid::Grid};
use crate::frontend::proto::data_type;

/// Most cells that scales may have: no weight needs more.
const MAX_CELLS: usize = 1 << 28;

/// Scales and zero points of a quantizer.
pub(super) struct Parameters {
    /// Width and sign of the codes; none for `i32`, which only biases have.
    pub(super) scheme: Option<QuantScheme>,
    /// A scale for each cell.
    pub(super) scales: Vec<f32>,
    /// A zero point for each cell, or the one of all.
    pub(super) zeros: Vec<i64>,
    /// Which elements share a scale.
    pub(super) grid: Grid,
}

/// Where the parts stand among the operands of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    pub(super) scale: usize,
    pub(super) zero_point: usize,
}

impl Parameters {
    /// Of `QuantizeLinear(x, scale, zero_point)`.
    pub(super) fn of_quantizer(cx: &NodeCx<'_>, x: Tensor) -> Result<Self, OpError> {
        let slots = Slots { scale: 1, zero_point: 2 };
        let asked = cx.int("output_dtype")?.unwrap_or(0);
        // They only speak of narrow floats and of the width of a quotient.
        cx.ignore("saturate");
        cx.ignore("precision");
        let scheme = match (cx.optional(2), asked) {
            (Some(zero_point), _) => scheme(cx, zero_point)?,
            (None, 0) => Some(QuantScheme::unsigned(8)),
            (None, asked) => Some(scheme_of_type(asked)?),
        };
        let Some(scheme) = scheme else {
            return Err(OpError::invalid("it makes codes of 32 bits"));
        };
        Self::read(cx, cx.shape(x), Some(scheme), slots, Axis::of(cx)?)
    }

    /// Of `DequantizeLinear(x, scale, zero_point)`.
    pub(super) fn of_dequantizer(cx: &NodeCx<'_>, x: Tensor) -> Result<Self, OpError> {
        // The float type of the result: all are f32 here.
        cx.ignore("output_dtype");
        let scheme = scheme(cx, x)?;
        Self::read(cx, cx.shape(x), scheme, Slots { scale: 1, zero_point: 2 }, Axis::of(cx)?)
    }

    /// Of an operand of an operator on codes: one scale, or one along `axis`.
    pub(super) fn of_operand(cx: &NodeCx<'_>, x: Tensor, slots: Slots, axis: i64) -> Result<Self, OpError> {
        let scheme = scheme(cx, x)?;
        Self::read(cx, cx.shape(x), scheme, slots, Axis { axis, block: 0 })
    }

    /// Of the result of an operator on codes, one scale for all.
    pub(super) fn of_result(cx: &NodeCx<'_>, shape: Shape, slots: Slots) -> Result<Self, OpError> {
        let scheme = match cx.optional(slots.zero_point) {
            Some(zero_point) => scheme(cx, zero_point)?,
            None => Some(QuantScheme::unsigned(8)),
        };
        Self::read(cx, shape, scheme, slots, Axis { axis: 0, block: 0 })
    }

    /// With scale 1, for operators that have none.
    pub(super) fn of_integers(cx: &NodeCx<'_>, x: Tensor, zero_point: usize) -> Result<Self, OpError> {
        let shape = cx.shape(x);
        let scheme = scheme(cx, x)?;
        let zeros = match cx.optional(zero_point) {
            Some(tensor) => known(cx, tensor, "zero point")?.all_int()?,
            None => vec![0],
        };
        let grid = Grid::new(shape.clone(), shape);
        let parameters = Self { scheme, scales: vec![1.0], zeros, grid };
        parameters.check_zeros()?;
        Ok(parameters)
    }

    fn read(
        cx: &NodeCx<'_>,
        shape: Shape,
        scheme: Option<QuantScheme>,
        slots: Slots,
        axis: Axis,
    ) -> Result<Self, OpError> {
        let scale = cx.operand(slots.scale)?;
        let constant = known(cx, scale, "scale")?;
        if !constant.ty.is_f32() {
            return Err(OpError::invalid(format!("its scale is {}, not a float", constant.ty)));
        }
        let grid = axis.grid(&shape, &constant.ty.shape)?;
        let mut scales = constant.all_f32()?;
        if axis.block > 0 {
            // A block whose largest weight is positive may count backwards, and one
            // of zeros may have scale 0, which says nothing: any scale does.
            scales
                .iter_mut()
                .filter(|scale| !scale.is_normal() && scale.is_finite())
                .for_each(|scale| *scale = f32::MIN_POSITIVE);
        }
        if let Some(scale) = scales.iter().find(|scale| !(scale.is_normal() && (**scale > 0.0 || axis.block > 0))) {
            return Err(OpError::invalid(format!("a scale is {scale}; scales are positive numbers")));
        }
        let zeros = match cx.optional(slots.zero_point) {
            None => vec![0],
            Some(zero_point) => {
                let constant = known(cx, zero_point, "zero point")?;
                let n = constant.ty.n_elements();
                if self::scheme(cx, zero_point)? != scheme {
                    return Err(OpError::invalid(format!(
                        "its zero point is {}, another type than its codes",
                        constant.ty
                    )));
                }
                if n != scales.len() {
                    return Err(OpError::invalid(format!("it has {} scales and {n} zero points", scales.len())));
                }
                constant.all_int()?
            }
        };
        let parameters = Self { scheme, scales, zeros, grid };
        parameters.check_zeros()?;
        Ok(parameters)
    }

    fn check_zeros(&self) -> Result<(), OpError> {
        let (lo, hi) = self.scheme.map_or((0, 0), |scheme| (i64::from(scheme.lo()), i64::from(scheme.hi())));
        match self.zeros.iter().find(|zero| !(lo..=hi).contains(zero)) {
            None => Ok(()),
            Some(zero) => Err(OpError::invalid(format!("a zero point is {zero}, outside of {lo}..={hi}"))),
        }
    }

    /// Scale and zero point, if all elements share them.
    pub(super) fn single(&self) -> Option<(f32, i64)> {
        match (&self.scales[..], &self.zeros[..]) {
            (&[scale], &[zero]) => Some((scale, zero)),
            _ => None,
        }
    }
}

/// Width and sign of the codes of a tensor: what the model says, not what the
/// graph has. None for `i32`.
pub(super) fn scheme(cx: &NodeCx<'_>, tensor: Tensor) -> Result<Option<QuantScheme>, OpError> {
    if let Some(codes) = cx.builder.codes(tensor) {
        return Ok(Some(codes.scheme));
    }
    match cx.ty(tensor).elem {
        Elem::Code(scheme) => Ok(Some(scheme)),
        Elem::Plain(DType::U8) => Ok(Some(QuantScheme::unsigned(8))),
        Elem::Plain(DType::I32) => Ok(None),
        _ => Err(OpError::invalid(format!("it takes {} for codes", cx.ty(tensor)))),
    }
}

fn scheme_of_type(asked: i64) -> Result<QuantScheme, OpError> {
    let elem_type = i32::try_from(asked).unwrap_or(0);
    Ok(match elem_type {
        data_type::UINT8 => QuantScheme::unsigned(8),
        data_type::INT8 => QuantScheme::signed(8),
        data_type::UINT16 => QuantScheme::unsigned(16),
        data_type::INT16 => QuantScheme::signed(16),
        data_type::UINT4 => QuantScheme::unsigned(4),
        data_type::INT4 => QuantScheme::signed(4),
        data_type::UINT2 => QuantScheme::unsigned(2),
        data_type::INT2 => QuantScheme::signed(2),
        other => {
            let reason = format!("codes of type {} are not supported", data_type::name(other));
            return Err(OpError::unsupported(reason, "quantize to int8, uint8, int4 or uint4"));
        }
    })
}

/// The elements of a tensor that must be known.
pub(super) fn known<'c>(cx: &'c NodeCx<'_>, tensor: Tensor, what: &str) -> Result<&'c Constant, OpError> {
    cx.constant(tensor).ok_or_else(|| {
        OpError::unsupported(
            format!("its {what} is computed at run time"),
            "quantize statically: scales are then found once, from recorded observations",
        )
    })
}

/// Along which axis scales lie, and how many elements share one.
#[derive(Clone, Copy, Debug)]
struct Axis {
    axis: i64,
    block: i64,
}

impl Axis {
    fn of(cx: &NodeCx<'_>) -> Result<Self, OpError> {
        Ok(Self { axis: cx.int("axis")?.unwrap_or(1), block: cx.int("block_size")?.unwrap_or(0) })
    }

    /// The cells of scales of shape `scales` over a tensor of shape `shape`.
    fn grid(self, shape: &[usize], scales: &[usize]) -> Result<Grid, OpError> {
        let one = scales.iter().all(|&extent| extent == 1);
        if self.block == 0 && one {
            return Ok(Grid::new(shape.to_vec(), shape.to_vec()));
        }
        let axis = cx::axis(self.axis, shape.len())?;
        let extent = shape.get(axis).copied().unwrap_or(1);
        let block = usize::try_from(self.block)
            .map_err(|_| OpError::invalid(format!("blocks of {} of {extent} elements", self.block)))?;
        let mut cell = vec![1; shape.len()];
        let expected = if block == 0 {
            cell = shape.to_vec();
            cell.iter_mut().skip(axis).take(1).for_each(|cell| *cell = 1);
            vec![extent]
        } else {
            let mut expected = shape.to_vec();
            expected.iter_mut().skip(axis).take(1).for_each(|n| *n = extent.div_ceil(block));
            cell.iter_mut().skip(axis).take(1).for_each(|cell| *cell = block);
            expected
        };
        if scales != expected || expected.iter().product::<usize>() > MAX_CELLS {
            return Err(OpError::invalid(format!("its scales have shape {scales:?}, not {expected:?}")));
        }
        Ok(Grid::new(shape.to_vec(), cell))
    }
}
