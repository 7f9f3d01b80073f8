//! Windows over a tensor, and the gradient of what they show.

use crate::{Unfold, UnfoldGrad, Window};

use super::{Data, Fault, Tensor, f32s, shape::strides, tensor};

/// Which element of a tensor of this shape stands at each place of the result, in index order;
/// none beyond the edges.
fn elements(unfold: &Unfold, shape: &[usize]) -> Vec<Option<usize>> {
    let windows = || unfold.windows.iter().zip(shape).zip(strides(shape));
    // One entry a window position of the axes so far, each with what the windows show there.
    let positions = |window: &Window| 0..window.out;
    let mut firsts: Vec<Vec<usize>> = vec![Vec::new()];
    for window in &unfold.windows {
        let longer = |first: &Vec<usize>| {
            let first = first.clone();
            positions(window).map(move |o| [&first[..], &[o]].concat()).collect::<Vec<_>>()
        };
        firsts = firsts.iter().flat_map(longer).collect();
    }
    let show = |first: Vec<usize>| {
        windows().zip(first).fold(vec![Some(0)], |shown, (((window, &extent), stride), o)| {
            let inner = |at: Option<usize>| {
                (0..window.size).map(move |k| Some(at? + window.element(o, k, extent)? * stride as usize))
            };
            shown.into_iter().flat_map(inner).collect()
        })
    };
    firsts.into_iter().flat_map(show).collect()
}

pub(super) fn unfold(unfold: &Unfold, operands: &[&Tensor]) -> Result<Data, Fault> {
    fn pick<T: Copy>(x: &[T], at: &[Option<usize>], fill: T) -> Vec<T> {
        at.iter().map(|at| at.and_then(|at| x.get(at).copied()).unwrap_or(fill)).collect()
    }
    let x = tensor(operands, 0)?;
    let at = elements(unfold, &x.ty.shape);
    Ok(match &x.data {
        Data::F32(x) => Data::F32(pick(x, &at, unfold.fill)),
        Data::F64(x) => Data::F64(pick(x, &at, f64::from(unfold.fill))),
        Data::Int(x) => Data::Int(pick(x, &at, unfold.fill as i64)),
    })
}

pub(super) fn unfold_grad(grad: &UnfoldGrad, operands: &[&Tensor]) -> Result<Vec<f32>, Fault> {
    let mut out = vec![0.0; grad.shape.iter().product()];
    for (at, &g) in elements(&grad.unfold, &grad.shape).into_iter().zip(f32s(operands, 0)?) {
        if let Some(out) = at.and_then(|at| out.get_mut(at)) {
            *out += g;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{error, f32, run, y};

    #[test]
    fn windows_slide_and_show_the_fill_beyond_the_edges() {
        let x = [f32("x", [1, 4], &[1.0, 2.0, 3.0, 4.0])];
        let out = y("unfold %x {out = [1, 4], size = [1, 3], pad = [0, 1], fill = 9.0} : f32[1, 4, 3]", &x);
        assert_eq!(out.as_f32().unwrap(), [9.0, 1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 3.0, 4.0, 9.0]);
        let out = y("unfold %x {out = [1, 2], size = [1, 2], stride = [1, 1], dilation = [1, 2]} : f32[1, 2, 2]", &x);
        assert_eq!(out.as_f32().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn windows_of_one_pad_crop_and_spread() {
        let x = [f32("x", [3], &[1.0, 2.0, 3.0])];
        assert_eq!(y("unfold %x {out = [5], pad = [1]} : f32[5]", &x).as_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 0.0]);
        assert_eq!(y("unfold %x {out = [2], pad = [-1]} : f32[2]", &x).as_f32().unwrap(), [2.0, 3.0]);
        let spread = y("unfold %x {out = [5], spread = [2]} : f32[5]", &x);
        assert_eq!(spread.as_f32().unwrap(), [1.0, 0.0, 2.0, 0.0, 3.0]);
    }

    #[test]
    fn two_axes_keep_the_order_of_positions_then_windows() {
        let x: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let out = y("unfold %x {out = [2, 2], size = [2, 2]} : f32[2, 2, 2, 2]", &[f32("x", [3, 3], &x)]);
        let expected = [0., 1., 3., 4., 1., 2., 4., 5., 3., 4., 6., 7., 4., 5., 7., 8.];
        assert_eq!(out.as_f32().unwrap(), expected);
    }

    #[test]
    fn codes_have_a_code_as_fill() {
        let text =
            "graph @g() -> (%y) { %q = const [1, -2] : qs4[2] %y = unfold %q {out = [3], fill = -8.0} : qs4[3] }";
        assert_eq!(run(text, &[]).unwrap().as_ints().unwrap(), [1, -2, -8]);
        let negative = text.replace("-8.0", "-9.0");
        assert!(crate::text::parse(&negative).is_err());
        assert!(error("unfold %x {out = [2], fill = nan} : f32[2]", &[f32("x", [2], &[0.0; 2])]).contains("fill"));
    }

    #[test]
    fn the_gradient_sums_over_the_places_that_show_an_element() {
        let g = [f32("g", [2, 2], &[1.0, 2.0, 4.0, 8.0])];
        let out = y("unfold_grad %g {out = [2], size = [2]} : f32[3]", &g);
        assert_eq!(out.as_f32().unwrap(), [1.0, 6.0, 8.0]);
    }
}
