//! Steps that read through windows: what convolution, pooling and padding see.

use super::step::Operand;

/// Element number `l` of `out`, row-major over its logical shape, is the one of
/// `x` that index `l` of `shape` (row-major) shows.
///
/// Every axis of the index space moves along one coordinate of `x` in steps; the
/// position along coordinate `c` is `start[c] + sum(i[axis] * steps[axis])` over
/// the axes of `c`. It shows element `position / spread[c]` of that coordinate,
/// `x.strides[c]` elements from the next; or the fill where the position is
/// negative, no multiple of the spread, or the element not below `extents[c]`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unfold {
    /// What is read; one stride a coordinate.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// Of the same storage, written completely.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Index space, at most 8 axes; as many indices as `out` has elements.
    #[prost(uint64, repeated, tag = "3")]
    pub shape: Vec<u64>,
    /// The coordinate of each axis.
    #[prost(uint32, repeated, tag = "4")]
    pub coordinates: Vec<u32>,
    /// Positions from index to index, one an axis.
    #[prost(sint64, repeated, tag = "5")]
    pub steps: Vec<i64>,
    /// Elements of each coordinate, at most 8 coordinates.
    #[prost(uint64, repeated, tag = "6")]
    pub extents: Vec<u64>,
    /// Position of index 0, one a coordinate.
    #[prost(sint64, repeated, tag = "7")]
    pub start: Vec<i64>,
    /// Positions from element to element, one a coordinate; at least 1.
    #[prost(uint64, repeated, tag = "8")]
    pub spread: Vec<u64>,
    /// What stands beyond the edges, for `f32`.
    #[prost(float, tag = "9")]
    pub fill: f32,
    /// What stands beyond the edges, for integers; for codes the stored one.
    #[prost(sint32, tag = "10")]
    pub fill_stored: i32,
}
