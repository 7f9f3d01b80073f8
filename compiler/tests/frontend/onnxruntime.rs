//! Where the standard leaves room, or one of its revisions corrects another: what ONNX Runtime
//! computes. The numbers are those of onnxruntime 1.32.0.

use qailc::frontend::proto::AttributeProto;

use crate::models::Tiny;

fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto::string(name, text)
}

/// Which of `n` elements in a row the nearest ones are.
fn nearest(opset: i64, op: &str, n: i64, scale: f32, attributes: Vec<AttributeProto>) -> Vec<f64> {
    let inputs = if opset < 11 { "x scales" } else { "x _ scales" };
    let tiny = Tiny::new(opset, &[1, 1, 1, n]).f32("scales", &[4], &[1.0, 1.0, 1.0, scale]);
    let found = tiny.node(op, inputs, "y", attributes).run("y");
    found.into_iter().map(|x| x + (n / 2) as f64).collect()
}

#[test]
fn extents_and_places_of_a_fractional_scale_are_rounded_as_f32() {
    let mode = |coordinates: &str, rounding: &str| {
        vec![text("coordinate_transformation_mode", coordinates), text("nearest_mode", rounding)]
    };
    // 20 * 0.7 is just below 14 in wider numbers, and 20 * 1.4 below 28.
    assert_eq!(nearest(13, "Resize", 20, 0.6, vec![]).len(), 12);
    assert_eq!(nearest(13, "Resize", 20, 0.7, vec![]).len(), 14);
    let doubled = [0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 7, 8, 9, 10, 10, 11, 12, 12, 13, 14, 15, 15, 16, 17, 17, 18, 19];
    assert_eq!(nearest(9, "Upsample", 20, 1.4, vec![]), doubled.map(f64::from));
    let floor = nearest(13, "Resize", 10, 0.7, mode("asymmetric", "floor"));
    assert_eq!(floor, [0.0, 1.0, 2.0, 4.0, 5.0, 7.0, 8.0]);
    assert_eq!(nearest(13, "Resize", 10, 0.3, mode("asymmetric", "ceil")), [0.0, 4.0, 7.0]);
}

#[test]
fn what_f32_makes_of_a_tie_is_one() {
    let half =
        |rounding: &str| vec![text("coordinate_transformation_mode", "half_pixel"), text("nearest_mode", rounding)];
    // 4.5 / 0.3 - 0.5 is 14.499999.
    assert_eq!(nearest(13, "Resize", 20, 0.3, half("round_prefer_ceil")), [1.0, 5.0, 8.0, 11.0, 15.0, 18.0]);
    // 19.5 / 1.3 - 0.5 is 14.500001.
    assert_eq!(nearest(13, "Resize", 20, 1.3, half("round_prefer_floor"))[19], 14.0);
}

#[test]
fn the_first_resize_rounds_up_where_it_leaves_elements_out() {
    assert_eq!(nearest(10, "Resize", 10, 0.7, vec![]), [0.0, 2.0, 3.0, 5.0, 6.0, 8.0, 9.0]);
    assert_eq!(nearest(10, "Resize", 5, 1.4, vec![]), [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0]);
}

#[test]
fn corners_stay_corners_when_a_scaled_extent_is_not_whole() {
    let corners = vec![text("mode", "linear"), text("coordinate_transformation_mode", "align_corners")];
    assert_eq!(nearest(13, "Resize", 6, 0.6, corners), [0.0, 2.5, 5.0]);
}

#[test]
fn nothing_moves_if_no_extent_changes() {
    assert_eq!(nearest(13, "Resize", 5, 1.1, vec![text("nearest_mode", "ceil")]), [0.0, 1.0, 2.0, 3.0, 4.0]);
}
