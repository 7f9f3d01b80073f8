//! Steps and codes of weights.

/// How much the rows of a weight matter: the mean square of each input feature.
/// An error of a weight is seen through its input, so the search for a step
/// weighs errors with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowImportance(pub(crate) Option<Vec<f64>>);

impl RowImportance {
    fn of(&self, row: usize) -> f64 {
        self.0.as_ref().and_then(|all| all.get(row)).copied().unwrap_or(1.0)
    }
}

/// Channels whose step is smaller than this part of the largest one get the
/// larger step: their weights are invisible beside the others, and factors of
/// requantization stay in range for channels that died in training.
const SMALLEST_PART: f64 = 1.0 / (1u64 << 24) as f64;

/// Largest code of a bias: far from overflow, finer than any weight step needs.
const BIAS_CODE_MAX: f64 = (1u64 << 28) as f64;

/// Code of the bias of a channel without weights.
const BIAS_ALONE_CODE: f64 = (1u64 << 20) as f64;

/// The code of a weight: `clamp(rne(w / step), lo, hi)`, in `f64`.
#[inline]
pub fn weight_code(w: f64, step: f32, lo: i32, hi: i32) -> i32 {
    super::code(w, f64::from(step), 0, lo, hi)
}

/// One step for each column of `w[K, N]` with codes `-hi..=hi`.
///
/// 8 bits take the largest magnitude; fewer search the step with the least
/// square error, weighed by `importance`, one number a feature: a channel sees the features of its
/// group. `s_in` is the step of the input and
/// `bias` the bias: a channel that is nothing but bias still gets a step that
/// can write it.
pub(crate) fn channel_steps_weighed(
    w: &[f64],
    n: usize,
    hi: i32,
    importance: &RowImportance,
    groups: usize,
    bias: Option<(&[f64], f64)>,
) -> Vec<f32> {
    // The first feature that a channel sees.
    let (k, channels_per_group) = (w.len() / n.max(1), (n / groups.max(1)).max(1));
    let first = |channel: usize| channel / channels_per_group * k;
    let columns: Vec<Vec<f64>> =
        (0..n).map(|column| w.iter().skip(column).step_by(n.max(1)).copied().collect()).collect();
    let of_column = |(channel, column): (usize, &Vec<f64>)| column_step(column, first(channel), hi, importance);
    let found: Vec<f64> = columns.iter().enumerate().map(of_column).collect();
    steps_of_channels(&found, bias)
}

/// The steps of channels, or of a group of rows of them, from what was
/// [found](column_step) for each.
pub(super) fn steps_of_channels(found: &[f64], bias: Option<(&[f64], f64)>) -> Vec<f32> {
    let largest = found.iter().fold(0.0f64, |a, &b| a.max(b));
    let of_channel = |(channel, &step): (usize, &f64)| {
        let bias = bias.and_then(|(b, s_in)| Some(b.get(channel)?.abs() / s_in)).unwrap_or(0.0);
        let step = match step {
            // Nothing but bias: fine steps for it. Nothing at all: any step.
            0.0 if bias > 0.0 => bias / BIAS_ALONE_CODE,
            0.0 if largest > 0.0 => largest,
            0.0 => 1.0,
            step => step.max(largest * SMALLEST_PART),
        };
        step.max(bias / BIAS_CODE_MAX).max(f64::from(f32::MIN_POSITIVE)) as f32
    };
    found.iter().enumerate().map(of_channel).collect()
}

/// One step for each column of `w[K, N]`: see the module of `calibrate` for how.
pub fn channel_steps(w: &[f64], n: usize, hi: i32) -> Vec<f32> {
    channel_steps_weighed(w, n, hi, &RowImportance::default(), 1, None)
}

/// One step for each group of `group` rows and each column of `w[K, N]`, as
/// `[ceil(K / group), N]`.
pub fn group_steps(w: &[f64], n: usize, group: usize, hi: i32) -> Vec<f32> {
    let rows_a_group = group.max(1).saturating_mul(n.max(1));
    w.chunks(rows_a_group).flat_map(|rows| channel_steps(rows, n, hi)).collect()
}

/// The step of one column, 0 if all its weights are zero.
fn column_step(column: &[f64], first_row: usize, hi: i32, importance: &RowImportance) -> f64 {
    let largest = column.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let widest = largest / f64::from(hi);
    if hi > 63 || largest == 0.0 {
        return widest;
    }
    let error = |step: f64| -> f64 {
        let of_row = |(row, &w): (usize, &f64)| {
            let rounded = (w / step).round_ties_even().clamp(-f64::from(hi), f64::from(hi)) * step;
            importance.of(first_row + row) * (rounded - w) * (rounded - w)
        };
        column.iter().enumerate().map(of_row).sum()
    };
    let mut best = (widest, error(widest));
    for percent in (30..100).rev() {
        let step = widest * f64::from(percent) / 100.0;
        let of_step = error(step);
        if of_step < best.1 {
            best = (step, of_step);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_hold_the_largest_weight() {
        let w = [0.5, -2.0, 0.25, 1.0];
        let steps = channel_steps(&w, 2, 127);
        assert_eq!(steps, [(0.5 / 127.0) as f32, (2.0 / 127.0) as f32]);
        assert_eq!(weight_code(-2.0, steps[1], -127, 127), -127);
    }

    #[test]
    fn dead_channels_get_a_usable_step() {
        let w = [1.0, 0.0, 1e-30, 0.5, 0.0, -1e-35];
        let steps = channel_steps(&w, 3, 127);
        assert_eq!(steps[1], steps[0]);
        assert!(f64::from(steps[2]) >= f64::from(steps[0]) / (1u64 << 24) as f64 * 0.999);
        assert_eq!(channel_steps(&[0.0, 0.0], 1, 7), [1.0]);
    }

    #[test]
    fn a_bias_without_weights_fits_its_code() {
        let steps = channel_steps_weighed(&[0.0], 1, 127, &RowImportance::default(), 1, Some((&[1e12], 1e-3)));
        assert!(1e12 / (1e-3 * f64::from(steps[0])) < f64::from(i32::MAX));
    }

    #[test]
    fn the_search_weighs_rows() {
        // One outlier that nobody reads.
        let w = [10.0, 0.5, 0.4, -0.3, 0.2, 0.6, -0.7];
        let flat = channel_steps_weighed(&w, 1, 7, &RowImportance::default(), 1, None);
        let mut rows = vec![1.0; 7];
        rows[0] = 1e-6;
        let weighed = channel_steps_weighed(&w, 1, 7, &RowImportance(Some(rows)), 1, None);
        assert!(weighed[0] < flat[0]);
    }

    #[test]
    fn groups_have_their_own_steps() {
        let w: Vec<f64> = (0..8).map(|k| if k < 4 { 1.0 } else { 0.1 }).collect();
        let steps = group_steps(&w, 1, 4, 7);
        assert_eq!(steps.len(), 2);
        assert!(steps[1] < 0.2 * steps[0]);
    }
}
