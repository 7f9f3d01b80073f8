//! Windows of convolutions and pools: kernel, strides, dilations and padding of
//! the axes behind batch and channel.

use qail_ir::Window;

use super::{OpError, cx::NodeCx};

/// Largest kernel, stride, dilation or padding along an axis.
const MAX_STEP: i64 = 1 << 20;

/// What the attributes say of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Elements of the operand.
    pub(super) extent: usize,
    /// Elements of the kernel.
    pub(super) kernel: usize,
    /// Distance between windows.
    pub(super) stride: usize,
    /// Distance between elements of the kernel.
    pub(super) dilation: usize,
    /// Padding before the first element.
    pub(super) before: usize,
    /// Padding behind the last element.
    pub(super) behind: usize,
    /// Number of windows.
    pub(super) out: usize,
}

/// How padding is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AutoPad {
    /// As the attributes say.
    No,
    /// None.
    Valid,
    /// So that strides divide the extent; the odd one behind, or before.
    Same {
        /// The odd one behind.
        upper: bool,
    },
}

/// The attribute `auto_pad`.
pub(super) fn auto_pad(cx: &NodeCx<'_>) -> Result<AutoPad, OpError> {
    match cx.text("auto_pad")?.as_deref() {
        None | Some("NOTSET" | "") => Ok(AutoPad::No),
        Some("VALID") => Ok(AutoPad::Valid),
        Some("SAME_UPPER") => Ok(AutoPad::Same { upper: true }),
        Some("SAME_LOWER") => Ok(AutoPad::Same { upper: false }),
        Some(other) => Err(OpError::invalid(format!("its auto_pad is {}", crate::frontend::error::shown(other)))),
    }
}

/// An attribute with `n` integers of at least `least`.
pub(super) fn list(
    cx: &NodeCx<'_>,
    name: &'static str,
    n: usize,
    default: usize,
    least: i64,
) -> Result<Vec<usize>, OpError> {
    let Some(found) = cx.int_list(name)? else { return Ok(vec![default; n]) };
    if found.len() != n || found.iter().any(|&x| x < least) {
        return Err(OpError::invalid(format!("its attribute `{name}` is not {n} integers of at least {least}")));
    }
    if let Some(large) = found.iter().find(|&&x| x > MAX_STEP) {
        let reason = format!("its attribute `{name}` has {large}, more than {MAX_STEP}");
        return Err(OpError::unsupported(reason, format!("export with `{name}` of at most {MAX_STEP}")));
    }
    Ok(found.into_iter().map(|x| x as usize).collect())
}

/// Reads the attributes that convolutions and pools share, for operands with
/// these extents and kernels of this shape.
pub(super) fn read(cx: &NodeCx<'_>, extents: &[usize], kernel: &[usize], ceil: bool) -> Result<Vec<Place>, OpError> {
    let n = extents.len();
    if n == 0 || kernel.len() != n || kernel.iter().any(|&k| k == 0 || k as i64 > MAX_STEP) {
        return Err(OpError::invalid(format!("a kernel {kernel:?} for an operand with the places {extents:?}")));
    }
    let strides = list(cx, "strides", n, 1, 1)?;
    let dilations = list(cx, "dilations", n, 1, 1)?;
    let pads = list(cx, "pads", 2 * n, 0, 0)?;
    let auto = auto_pad(cx)?;
    (0..n)
        .map(|i| {
            let (extent, kernel, stride, dilation) = (extents[i], kernel[i], strides[i], dilations[i]);
            let span = dilation * (kernel - 1) + 1;
            let (before, behind) = match auto {
                AutoPad::No => (pads[i], pads[n + i]),
                AutoPad::Valid => (0, 0),
                AutoPad::Same { upper } => {
                    let reach = (extent.div_ceil(stride) - 1).saturating_mul(stride).saturating_add(span);
                    let total = reach.saturating_sub(extent);
                    let small = total / 2;
                    if upper { (small, total - small) } else { (total - small, small) }
                }
            };
            let padded = extent.saturating_add(before).saturating_add(behind);
            let room = padded
                .checked_sub(span)
                .ok_or_else(|| OpError::invalid(format!("a window over {span} elements does not fit into {padded}")))?;
            let mut out = if ceil { room.div_ceil(stride) } else { room / stride } + 1;
            // The last window begins inside of the operand or the padding before it.
            if ceil && (out - 1).saturating_mul(stride) >= extent.saturating_add(before) {
                out -= 1;
            }
            Ok(Place { extent, kernel, stride, dilation, before, behind, out })
        })
        .collect()
}

impl Place {
    /// The window of the IR.
    pub(super) fn window(&self) -> Window {
        Window {
            size: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pad: self.before as isize,
            spread: 1,
            out: self.out,
        }
    }

    /// Elements of window `o` that lie inside the operand; with `padding`, or inside the padding.
    pub(super) fn count(&self, o: usize, padding: bool) -> usize {
        self.seen(o, padding).1
    }

    /// Elements of window `o` in front of what [`Place::count`] counts, and those that it counts.
    pub(super) fn seen(&self, o: usize, padding: bool) -> (usize, usize) {
        let (start, end) = if padding {
            (0, self.extent + self.before + self.behind)
        } else {
            (self.before, self.extent + self.before)
        };
        let at = o.saturating_mul(self.stride);
        let up_to = |place: usize| place.saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        let skipped = up_to(start);
        (skipped, up_to(end).saturating_sub(skipped))
    }
}

/// Windows of a tensor `[N, C, ..]`: whole batch and channel axes, then these.
pub(super) fn windows(shape: &[usize], places: impl IntoIterator<Item = Window>) -> Vec<Window> {
    shape.iter().take(2).map(|&extent| Window::identity(extent)).chain(places).collect()
}
