//! The loops over tiles for vectors of 64 bytes: four channels of 16 rows.
//!
//! Written once over a [`Vector`], which is AVX-512 in `avx512vnni.rs` and plain
//! arrays in the tests, so that the loops are tested on machines without it.
//!
//! The dot product multiplies unsigned by signed bytes:
//! - 8-bit weights: `x + 128` is unsigned, the weights are signed; the caller
//!   takes `128 * sum(w)` off, once, in the bias.
//! - 4-bit weights: `w + 8` is unsigned, `x` is signed; `8 * sum(x)` is taken off
//!   here, once a row.

/// A vector of 64 bytes and the few operations that the loops need.
///
/// # Safety
///
/// Every function may only be called on a processor that has the instruction
/// set of the implementation.
pub(super) unsafe trait Vector: Copy {
    /// Sixteen 32-bit sums.
    type Sums: Copy;

    /// Sums of zero.
    unsafe fn zero() -> Self::Sums;
    /// 64 bytes.
    unsafe fn load(bytes: &[u8; 64]) -> Self;
    /// 16 bytes, four times.
    unsafe fn broadcast(bytes: &[u8; 16]) -> Self;
    /// The even and the odd 32-bit words of 32 bytes, each four times.
    unsafe fn broadcast_words(bytes: &[u8; 32]) -> (Self, Self);
    /// Every byte with the given bits flipped.
    unsafe fn flip(self, bits: u8) -> Self;
    /// The low and the high nibble of every byte, unsigned.
    unsafe fn nibbles(self) -> (Self, Self);
    /// Adds to sum `i` the four products of bytes `4i .. 4i + 4`, wrapping:
    /// unsigned bytes of `unsigned` by signed bytes of `signed`.
    unsafe fn dot(sums: Self::Sums, unsigned: Self, signed: Self) -> Self::Sums;
    /// Adds groups of four sums, wrapping: one number a channel.
    unsafe fn channels(sums: Self::Sums) -> [i32; 4];
}

/// `acc[n] = sum_k (x[k] + 128) * w[k, n]`.
///
/// # Safety
///
/// As [`Vector`].
#[inline(always)]
pub(super) unsafe fn dot_w8<V: Vector>(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = bytemuck::cast_slice::<i8, u8>(x).as_chunks::<16>();
    let (rows, _) = weight.as_chunks::<128>();
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc.as_chunks_mut::<8>().0) {
        // SAFETY: the caller keeps the condition of `Vector`.
        unsafe {
            // Even and odd blocks have sums of their own: a dot product depends
            // on the one four cycles before it.
            let mut sums = [[V::zero(); 2]; 2];
            for (rows, x) in tile.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0) {
                for ((row, x), sums) in rows.iter().zip(x).zip(&mut sums) {
                    let x = V::broadcast(x).flip(0x80);
                    for (w, sum) in row.as_chunks::<64>().0.iter().zip(sums) {
                        *sum = V::dot(*sum, x, V::load(w));
                    }
                }
            }
            add_channels::<V>(acc, sums, 0);
        }
    }
}

/// `acc[n] = sum_k x[k] * w[k, n]`, 4-bit weights.
///
/// # Safety
///
/// As [`Vector`].
#[inline(always)]
pub(super) unsafe fn dot_w4<V: Vector>(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let eight_times_x = x.iter().fold(0i32, |sum, &x| sum.wrapping_add(i32::from(x))).wrapping_mul(8);
    let (x, _) = bytemuck::cast_slice::<i8, u8>(x).as_chunks::<32>();
    let (rows, _) = weight.as_chunks::<128>();
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc.as_chunks_mut::<8>().0) {
        // SAFETY: the caller keeps the condition of `Vector`.
        unsafe {
            let [mut low_sums, mut high_sums] = [[V::zero(); 2]; 2];
            for (row, x) in tile.iter().zip(x) {
                let (x_low, x_high) = V::broadcast_words(x);
                for ((w, low), high) in row.as_chunks::<64>().0.iter().zip(&mut low_sums).zip(&mut high_sums) {
                    let (w_low, w_high) = V::load(w).flip(0x88).nibbles();
                    *low = V::dot(*low, w_low, x_low);
                    *high = V::dot(*high, w_high, x_high);
                }
            }
            add_channels::<V>(acc, [low_sums, high_sums], eight_times_x);
        }
    }
}

/// Two vectors of sums are the eight channels; two pairs are added up.
#[inline(always)]
unsafe fn add_channels<V: Vector>(acc: &mut [i32; 8], [first, second]: [[V::Sums; 2]; 2], less: i32) {
    for ((acc, first), second) in acc.as_chunks_mut::<4>().0.iter_mut().zip(first).zip(second) {
        // SAFETY: the caller keeps the condition of `Vector`.
        let (first, second) = unsafe { (V::channels(first), V::channels(second)) };
        for ((acc, first), second) in acc.iter_mut().zip(first).zip(second) {
            *acc = first.wrapping_add(second).wrapping_sub(less);
        }
    }
}
