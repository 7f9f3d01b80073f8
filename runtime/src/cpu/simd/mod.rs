//! Vector kernels. Each equals its reference in `generic.rs` bit for bit.
//!
//! The only `unsafe` code of the CPU side. It does two things: it calls a
//! function of an instruction set after asking the processor for it, and it
//! loads or stores vectors through references to arrays of exactly their size.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_float;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512vnni;
#[cfg(any(target_arch = "x86_64", test))]
mod wide;

#[cfg(test)]
mod tests;
