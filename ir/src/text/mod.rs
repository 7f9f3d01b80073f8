//! The text form of a graph, `.qir`: one node a line, operands by name.
//!
//! ```text
//! graph @pendulum(%obs: f32[1, 3]) -> (action = %act) {batch = 0} {
//!   meta "producer" = "pytorch"
//!   %w0   = const rand(7) : f32[3, 64]
//!   %b0   = const splat(0.5) : f32[64]
//!   %h0   = linear %obs, %w0, %b0 {act = relu} : f32[1, 64] @ "/actor/Gemm_0"
//!   ...
//! }
//! ```
//! - Names are letters, digits, `_` and `.`; other names stand in quotes:
//!   `%"mlp_1/sub:0"`. `%n:1` is the second result of a node.
//! - The result type is always written and checked on reading. What it says is
//!   not repeated in the attributes: the shape of `reshape` and `expand`, the
//!   element type of `cast`, the scheme of `quantize` and `requantize`.
//! - Attributes at their default are left out. The default of `lo` and `hi` is
//!   what the scheme can hold, that of `zero_point` is 0, that of `step` is 1.
//! - After `@` stand the nodes of the source model that a node comes from. An
//!   input comes from itself unless it says otherwise.
//! - An output is `name = %value`, or `%value` if both names are the same.
//! - Behind the `meta` lines stands what is around the graph: `state "h" = "h_next"`, then `repeat 10 "turn"` with
//!   its `carry "x" = "x_next"`, all by the names of inputs and outputs.
//! - `//` starts a comment; line ends mean no more than spaces.
//!
//! Laws: [`parse`] is the inverse of [`print()`], and printing is canonical: two
//! equal graphs have one text. The order of nodes is operands first, ties by age.
//!
//! A constant is a short list of elements in row-major order, `splat(x)`,
//! `rand(seed)` or `file("name")`, whose elements are kept outside of the text.

mod cursor;
mod error;
mod function;
mod lexer;
mod ops;
mod parse;
mod pieces;
mod print;
mod types;

pub use error::{ParseError, ParseErrorKind};
pub use parse::{parse, parse_with_weights};
pub use print::{print, print_with_weights};

/// Constants with more elements than this print as `file("name")`.
pub const MAX_INLINE_ELEMENTS: usize = 16;
/// Largest rank that the parser accepts.
pub const MAX_RANK: usize = 16;
/// Largest number of elements of one tensor that the parser accepts.
pub const MAX_ELEMENTS: u64 = 1 << 40;
/// Largest number of nodes that the parser accepts.
pub const MAX_NODES: usize = 1_000_000;
