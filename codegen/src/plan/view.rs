//! A tensor as seen through windows, transposes and reshapes, before anything is
//! copied: what becomes one [`step::Unfold`].
//!
//! An axis of the view is a list of index axes, outermost first. Each of them
//! moves along one coordinate of the tensor. So windows add axes to a
//! coordinate, a transpose orders the axes of the view, and a reshape joins and
//! splits index axes.

use qail_artifact::schema::{Place, step};
use qail_ir::Unfold;

/// Most axes and coordinates of a step.
const MAX_AXES: usize = 8;

/// One index axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    extent: u64,
    coordinate: usize,
    step: i64,
}

/// One coordinate of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Coordinate {
    extent: u64,
    stride: i64,
    start: i64,
    spread: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct View {
    source: Option<step::Source>,
    offset: u64,
    axes: Vec<Vec<Axis>>,
    coordinates: Vec<Coordinate>,
    /// It shows windows already: there is one fill.
    has_windows: bool,
    /// What stands beyond the edges.
    pub(crate) fill: f32,
    /// Who copies it.
    pub(crate) place: Place,
}

impl View {
    /// A tensor of shape `shape` as it is.
    pub(crate) fn of(x: &step::Operand, shape: &[u64], place: Place) -> Self {
        let coordinate = |(&extent, &stride)| Coordinate { extent, stride, start: 0, spread: 1 };
        let axis = |(coordinate, &extent)| vec![Axis { extent, coordinate, step: 1 }];
        Self {
            source: x.source,
            offset: x.offset,
            axes: shape.iter().enumerate().map(axis).collect(),
            coordinates: shape.iter().zip(&x.strides).map(coordinate).collect(),
            has_windows: false,
            fill: 0.0,
            place,
        }
    }

    /// What is read.
    pub(crate) fn operand(&self) -> step::Operand {
        step::Operand { source: self.source, strides: Vec::new(), offset: self.offset }
    }

    /// What windows over the view show. None if it is more than a transpose.
    pub(crate) fn unfolded(mut self, unfold: &Unfold) -> Option<Self> {
        if self.has_windows {
            return None;
        }
        let mut sizes = Vec::new();
        let mut axes = Vec::new();
        for (axis, window) in self.axes.iter().zip(&unfold.windows) {
            let &[Axis { extent, coordinate, step: 1 }] = &axis[..] else { return None };
            let at = self.coordinates.get_mut(coordinate)?;
            if at.extent != extent {
                return None;
            }
            at.start = i64::try_from(window.pad).ok()?.checked_neg()?;
            at.spread = window.spread as u64;
            let step = i64::try_from(window.stride).ok()?;
            axes.push(vec![Axis { extent: window.out as u64, coordinate, step }]);
            if window.size > 1 {
                let step = i64::try_from(window.dilation).ok()?;
                sizes.push(vec![Axis { extent: window.size as u64, coordinate, step }]);
            }
        }
        axes.extend(sizes);
        self.axes = axes;
        self.fill = unfold.fill;
        self.has_windows = true;
        Some(self)
    }

    /// The view with its axes in another order.
    pub(crate) fn transposed(mut self, perm: &[usize]) -> Option<Self> {
        let axes: Option<Vec<_>> = perm.iter().map(|&axis| self.axes.get(axis).cloned()).collect();
        self.axes = axes?;
        Some(self)
    }

    /// The same elements in another shape, where index axes divide.
    pub(crate) fn reshaped(mut self, shape: &[u64]) -> Option<Self> {
        let mut rest: Vec<Axis> = self.axes.concat().into_iter().filter(|axis| axis.extent != 1).collect();
        let mut axes = Vec::with_capacity(shape.len());
        // From the inside: every new axis takes index axes until it is full.
        for &extent in shape.iter().rev() {
            let mut wanted = extent;
            let mut taken = Vec::new();
            while wanted > 1 {
                let axis = rest.pop()?;
                if wanted.is_multiple_of(axis.extent) {
                    wanted /= axis.extent;
                    taken.push(axis);
                } else if axis.extent.is_multiple_of(wanted) {
                    // Split: the inner part belongs here, the outer one to the next axis.
                    let step = axis.step.checked_mul(i64::try_from(wanted).ok()?)?;
                    rest.push(Axis { extent: axis.extent / wanted, step, ..axis });
                    taken.push(Axis { extent: wanted, ..axis });
                    wanted = 1;
                } else {
                    return None;
                }
            }
            taken.reverse();
            axes.push(taken);
        }
        axes.reverse();
        self.axes = axes;
        rest.is_empty().then_some(self)
    }

    /// The step that writes the view into `out`; `fill_stored` is the fill for
    /// integers. None if it takes too many axes.
    pub(crate) fn step(self, out: u32, fill_stored: i32) -> Option<step::Unfold> {
        let mut axes: Vec<Axis> = Vec::new();
        for axis in self.axes.concat().into_iter().filter(|axis| axis.extent != 1) {
            match axes.last_mut() {
                Some(outer)
                    if outer.coordinate == axis.coordinate
                        && Some(outer.step)
                            == i64::try_from(axis.extent).ok().and_then(|n| axis.step.checked_mul(n)) =>
                {
                    *outer = Axis { extent: outer.extent.checked_mul(axis.extent)?, ..axis };
                }
                _ => axes.push(axis),
            }
        }
        // A coordinate that nothing moves along is part of the offset.
        let mut offset = i64::try_from(self.offset).ok()?;
        let mut kept: Vec<usize> = Vec::new();
        for (i, coordinate) in self.coordinates.iter().enumerate() {
            let spread = i64::try_from(coordinate.spread).ok()?.max(1);
            let element = coordinate.start / spread;
            let shown = coordinate.start >= 0
                && coordinate.start % spread == 0
                && u64::try_from(element).is_ok_and(|element| element < coordinate.extent);
            if shown && axes.iter().all(|axis| axis.coordinate != i) {
                offset = offset.checked_add(element.checked_mul(coordinate.stride)?)?;
            } else {
                kept.push(i);
            }
        }
        if axes.len() > MAX_AXES || kept.len() > MAX_AXES {
            return None;
        }
        let mut op = step::Unfold {
            x: step::Operand { source: self.source, strides: Vec::new(), offset: u64::try_from(offset).ok()? },
            out,
            fill: self.fill,
            fill_stored,
            ..step::Unfold::default()
        };
        for axis in &axes {
            op.shape.push(axis.extent);
            op.coordinates.push(u32::try_from(kept.iter().position(|&i| i == axis.coordinate)?).ok()?);
            op.steps.push(axis.step);
        }
        for coordinate in kept.iter().filter_map(|&i| self.coordinates.get(i)) {
            op.x.strides.push(coordinate.stride);
            op.extents.push(coordinate.extent);
            op.start.push(coordinate.start);
            op.spread.push(coordinate.spread);
        }
        Some(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qail_ir::Window;

    fn image() -> View {
        let x = step::Operand { source: Some(step::Source::Tensor(0)), strides: vec![75, 25, 5, 1], offset: 0 };
        View::of(&x, &[1, 3, 5, 5], Place::Device)
    }

    fn three(out: usize) -> Window {
        Window { size: 3, pad: 1, out, ..Window::identity(5) }
    }

    #[test]
    fn a_convolution_is_one_step() {
        let windows = vec![Window::identity(1), Window::identity(3), three(5), three(5)];
        let unfold = Unfold { windows, fill: 2.0 };
        let view = image().unfolded(&unfold).unwrap();
        let view = view.transposed(&[0, 2, 3, 1, 4, 5]).unwrap().reshaped(&[25, 27]).unwrap();
        let op = view.step(1, 0).unwrap();
        assert_eq!(op.shape, [5, 5, 3, 3, 3]);
        assert_eq!(op.coordinates, [1, 2, 0, 1, 2]);
        assert_eq!(op.steps, [1; 5]);
        assert_eq!((op.extents, op.start, op.x.strides), (vec![3, 5, 5], vec![0, -1, -1], vec![25, 5, 1]));
    }

    #[test]
    fn axes_split_and_join_where_they_divide() {
        let view = image().transposed(&[0, 2, 3, 1]).unwrap();
        let split = view.clone().reshaped(&[5, 15]).unwrap().reshaped(&[25, 3]).unwrap();
        assert_eq!(split.step(1, 0).unwrap().shape, [5, 5, 3]);
        assert!(view.clone().reshaped(&[3, 25]).is_none());
        // Joined again, axes of one coordinate are one.
        let x = step::Operand { source: None, strides: vec![1], offset: 0 };
        let split = View::of(&x, &[12], Place::Host).reshaped(&[3, 4]).unwrap();
        assert_eq!(split.clone().step(0, 0).unwrap().shape, [12]);
        assert_eq!(split.transposed(&[1, 0]).unwrap().step(0, 0).unwrap().steps, [1, 4]);
    }
}
