//! The weight layouts: the one definition that host code and shaders quote.
//!
//! A weight matrix `w[K, N]` is cut into tiles of 8 output channels; inside a
//! tile K runs in blocks of 16 bytes a channel, so that one invocation reads 16
//! bytes and a tile is one contiguous run. The order is
//! `[N/8][K/KB][8 channels][16 bytes]`, `KB` = 16 rows for bytes and 32 for
//! nibbles. N is padded to a multiple of 8 and K to a multiple of 32, with
//! zeros, in both layouts.
//!
//! ```text
//! W8Tile8x16: byte b of a block is w[16 * block + b], two's complement.
//!
//! W4Tile8x32: 32-bit word i (0..4) of a block holds rows 8i .. 8i + 7:
//!
//!   bit  31   28 27   24 23   20 19   16 15   12 11    8 7     4 3     0
//!       +-------+-------+-------+-------+-------+-------+-------+-------+
//!       | 8i+7  | 8i+3  | 8i+6  | 8i+2  | 8i+5  | 8i+1  | 8i+4  | 8i    |
//!       +-------+-------+-------+-------+-------+-------+-------+-------+
//!         byte 3          byte 2          byte 1          byte 0
//! ```
//! So `(w << 4) & 0xF0F0F0F0` are rows 8i .. 8i+3 and `w & 0xF0F0F0F0` rows
//! 8i+4 .. 8i+7, as four signed bytes of 16 times the code each.
//!
//! `F32Rows8` is a float matrix `[K][N rounded up to 8]`, padded with zeros.

use crate::schema::Layout;

/// Output channels of a tile.
pub const TILE_N: usize = 8;
/// Bytes of a block: one channel, `KB` rows.
pub const BLOCK_BYTES: usize = 16;
/// K is padded to a multiple of this.
pub const K_ALIGN: usize = 32;

/// A matrix that cannot be packed or unpacked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The layout is not one of weights.
    #[error("{0:?} is no layout of a matrix of this type")]
    Layout(Layout),
    /// The number of elements or bytes is not that of the shape.
    #[error("{k} x {n} takes {expected} elements, found {found}")]
    Length {
        /// Rows.
        k: usize,
        /// Columns.
        n: usize,
        /// What the shape asks for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// The matrix is too large to address.
    #[error("{k} x {n} is too large")]
    TooLarge {
        /// Rows.
        k: usize,
        /// Columns.
        n: usize,
    },
    /// A code that does not fit a nibble.
    #[error("code {code} at row {k}, column {n} does not fit 4 bits")]
    Code {
        /// The code.
        code: i8,
        /// Row.
        k: usize,
        /// Column.
        n: usize,
    },
}

/// Rows of a code matrix in memory.
pub fn padded_k(k: usize) -> Option<usize> {
    k.checked_next_multiple_of(K_ALIGN)
}

/// Columns of a matrix in memory.
pub fn padded_n(n: usize) -> Option<usize> {
    n.checked_next_multiple_of(TILE_N)
}

/// Bytes of a packed matrix, or none if it is no layout of weights or too large.
pub fn packed_len(layout: Layout, k: usize, n: usize) -> Option<usize> {
    match layout {
        Layout::W8Tile8x16 => padded_k(k)?.checked_mul(padded_n(n)?),
        Layout::W4Tile8x32 => (padded_k(k)? / 2).checked_mul(padded_n(n)?),
        Layout::F32Rows8 => k.checked_mul(padded_n(n)?)?.checked_mul(size_of::<f32>()),
        Layout::Unspecified | Layout::F32 | Layout::F64 | Layout::I32 | Layout::I8 | Layout::Wgsl => None,
    }
}

/// Where a code lies: byte index and, for nibbles, how far to shift it down.
/// `k` and `n` are those of the code, `n_rows` the K of the matrix.
fn position(layout: Layout, n_rows: usize, k: usize, n: usize) -> Option<(usize, u32)> {
    let (rows_per_block, byte, shift) = match layout {
        Layout::W8Tile8x16 => (16, k % 16, 0),
        Layout::W4Tile8x32 => {
            let (word, lane) = (k % 32 / 8, k % 8);
            (32, 4 * word + lane % 4, if lane < 4 { 0 } else { 4 })
        }
        Layout::Unspecified
        | Layout::F32
        | Layout::F64
        | Layout::I32
        | Layout::I8
        | Layout::Wgsl
        | Layout::F32Rows8 => return None,
    };
    let blocks = padded_k(n_rows)? / rows_per_block;
    let block = (n / TILE_N).checked_mul(blocks)?.checked_add(k / rows_per_block)?;
    let start = block.checked_mul(TILE_N)?.checked_add(n % TILE_N)?.checked_mul(BLOCK_BYTES)?;
    Some((start.checked_add(byte)?, shift))
}

/// One code of a packed matrix of `n_rows` rows, or none outside of it.
pub fn code_at(layout: Layout, packed: &[u8], n_rows: usize, k: usize, n: usize) -> Option<i8> {
    let (byte, shift) = position(layout, n_rows, k, n)?;
    let byte = *packed.get(byte)?;
    Some(match layout {
        // Move the nibble to the top, then shift it down with its sign.
        Layout::W4Tile8x32 => ((byte << (4 - shift)) as i8) >> 4,
        _ => byte as i8,
    })
}

/// Packs row-major codes `[K][N]`.
///
/// # Errors
///
/// If the layout is not one of codes, the length is not `k * n`, or a code does
/// not fit.
pub fn pack_codes(layout: Layout, codes: &[i8], k: usize, n: usize) -> Result<Vec<u8>, PackError> {
    let mut out = vec![0; code_bytes(layout, k, n)?];
    check_length(k, n, k.checked_mul(n), codes.len())?;
    pack_rows(layout, codes, 0, [k, n], &mut out)?;
    Ok(out)
}

/// Packs whole rows of a matrix, row-major codes from row `first_row` on, into
/// what [`pack_codes`] gives for all `k` rows: `out` holds zeros there. Since a
/// tile is one run, packed columns can be put behind each other, 8 at a time.
///
/// # Errors
///
/// As [`pack_codes`], and rows beyond the last one.
pub fn pack_rows(
    layout: Layout,
    codes: &[i8],
    first_row: usize,
    [k, n]: [usize; 2],
    out: &mut [u8],
) -> Result<(), PackError> {
    let expected = code_bytes(layout, k, n)?;
    check_length(k, n, Some(expected), out.len())?;
    let end = first_row.checked_add(codes.len() / n.max(1));
    if !codes.len().is_multiple_of(n.max(1)) || end.is_none_or(|end| end > k) {
        return Err(PackError::Length {
            k,
            n,
            expected: k.saturating_sub(first_row).saturating_mul(n),
            found: codes.len(),
        });
    }
    let nibbles = layout == Layout::W4Tile8x32;
    let tile_bytes = packed_len(layout, k, TILE_N).ok_or(PackError::TooLarge { k, n })?;
    for (row, values) in (first_row..).zip(codes.chunks_exact(n.max(1))) {
        // A column is a block further in its tile, and a tile is a run.
        let (first, shift) = position(layout, k, row, 0).ok_or(PackError::TooLarge { k, n })?;
        for (tile, values) in values.chunks(TILE_N).enumerate() {
            let tile_start = first + tile * tile_bytes;
            for (col, &code) in values.iter().enumerate() {
                if nibbles && !(-8..8).contains(&code) {
                    return Err(PackError::Code { code, k: row, n: tile * TILE_N + col });
                }
                let bits = if nibbles { (code as u8 & 0x0F) << shift } else { code as u8 };
                if let Some(byte) = out.get_mut(tile_start + col * BLOCK_BYTES) {
                    *byte |= bits;
                }
            }
        }
    }
    Ok(())
}

/// The row-major codes `[K][N]` of a packed matrix: the inverse of [`pack_codes`].
///
/// # Errors
///
/// If the layout is not one of codes or the length is not that of the shape.
pub fn unpack_codes(layout: Layout, packed: &[u8], k: usize, n: usize) -> Result<Vec<i8>, PackError> {
    check_length(k, n, Some(code_bytes(layout, k, n)?), packed.len())?;
    let mut out = Vec::with_capacity(k.saturating_mul(n));
    for row in 0..k {
        out.extend((0..n).filter_map(|col| code_at(layout, packed, k, row, col)));
    }
    Ok(out)
}

/// Packs a row-major float matrix `[K][N]` as [`Layout::F32Rows8`].
///
/// # Errors
///
/// If the length is not `k * n`.
pub fn pack_f32(values: &[f32], k: usize, n: usize) -> Result<Vec<u8>, PackError> {
    let len = packed_len(Layout::F32Rows8, k, n).ok_or(PackError::TooLarge { k, n })?;
    check_length(k, n, k.checked_mul(n), values.len())?;
    let n_padding = padded_n(n).map_or(0, |padded| padded - n);
    let mut out = Vec::with_capacity(len);
    for row in values.chunks_exact(n.max(1)) {
        out.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(std::iter::repeat_n(0u8, 4 * n_padding));
    }
    out.resize(len, 0);
    Ok(out)
}

/// The row-major float matrix of [`Layout::F32Rows8`]: the inverse of [`pack_f32`].
///
/// # Errors
///
/// If the length is not that of the shape.
pub fn unpack_f32(packed: &[u8], k: usize, n: usize) -> Result<Vec<f32>, PackError> {
    check_length(k, n, packed_len(Layout::F32Rows8, k, n), packed.len())?;
    let row_bytes = padded_n(n).unwrap_or(n).saturating_mul(4).max(1);
    let number = |b: &[u8]| b.first_chunk().map(|&b| f32::from_le_bytes(b));
    Ok(packed.chunks_exact(row_bytes).flat_map(|row| row.chunks_exact(4).take(n).filter_map(number)).collect())
}

fn code_bytes(layout: Layout, k: usize, n: usize) -> Result<usize, PackError> {
    if !matches!(layout, Layout::W8Tile8x16 | Layout::W4Tile8x32) {
        return Err(PackError::Layout(layout));
    }
    packed_len(layout, k, n).ok_or(PackError::TooLarge { k, n })
}

fn check_length(k: usize, n: usize, expected: Option<usize>, found: usize) -> Result<(), PackError> {
    match expected {
        None => Err(PackError::TooLarge { k, n }),
        Some(expected) if expected != found => Err(PackError::Length { k, n, expected, found }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(lo: i8, hi: i8) -> impl Strategy<Value = (usize, usize, Vec<i8>)> {
        (1usize..80, 1usize..20)
            .prop_flat_map(move |(k, n)| (Just(k), Just(n), proptest::collection::vec(lo..=hi, k * n)))
    }

    proptest! {
        #[test]
        fn bytes_survive_packing((k, n, codes) in matrix(-128, 127)) {
            let packed = pack_codes(Layout::W8Tile8x16, &codes, k, n).unwrap();
            prop_assert_eq!(packed.len(), k.next_multiple_of(32) * n.next_multiple_of(8));
            prop_assert_eq!(unpack_codes(Layout::W8Tile8x16, &packed, k, n).unwrap(), codes);
        }

        #[test]
        fn nibbles_survive_packing((k, n, codes) in matrix(-8, 7)) {
            let packed = pack_codes(Layout::W4Tile8x32, &codes, k, n).unwrap();
            prop_assert_eq!(packed.len(), k.next_multiple_of(32) * n.next_multiple_of(8) / 2);
            prop_assert_eq!(unpack_codes(Layout::W4Tile8x32, &packed, k, n).unwrap(), codes);
        }

        #[test]
        fn parts_are_packed_into_the_whole((k, n, codes) in matrix(-8, 7), row in 0usize..80, tile in 0usize..3) {
            for layout in [Layout::W4Tile8x32, Layout::W8Tile8x16] {
                let (row, left) = (row.min(k), (tile * TILE_N).min(n / TILE_N * TILE_N));
                let mut parts = Vec::new();
                for (from, to) in [(0, left), (left, n)].into_iter().filter(|(from, to)| from < to) {
                    let columns: Vec<i8> = codes.chunks(n).flat_map(|row| row[from..to].to_vec()).collect();
                    let mut out = vec![0; packed_len(layout, k, to - from).unwrap()];
                    let (upper, lower) = columns.split_at(row * (to - from));
                    pack_rows(layout, lower, row, [k, to - from], &mut out).unwrap();
                    pack_rows(layout, upper, 0, [k, to - from], &mut out).unwrap();
                    parts.extend(out);
                }
                prop_assert_eq!(parts, pack_codes(layout, &codes, k, n).unwrap());
            }
        }

        #[test]
        fn padding_is_zero((k, n, codes) in matrix(-8, 7)) {
            for layout in [Layout::W4Tile8x32, Layout::W8Tile8x16] {
                let packed = pack_codes(layout, &codes, k, n).unwrap();
                for row in 0..k.next_multiple_of(32) {
                    for col in 0..n.next_multiple_of(8) {
                        let code = code_at(layout, &packed, k, row, col).unwrap();
                        let expected = if row < k && col < n { codes[row * n + col] } else { 0 };
                        prop_assert_eq!(code, expected);
                    }
                }
            }
        }

        #[test]
        fn floats_survive_packing((k, n) in (1usize..20, 1usize..20)) {
            let values: Vec<f32> = (0..k * n).map(|i| i as f32 - 3.5).collect();
            let packed = pack_f32(&values, k, n).unwrap();
            prop_assert_eq!(unpack_f32(&packed, k, n).unwrap(), values);
        }
    }

    #[test]
    fn words_hold_the_rows_of_the_diagram() {
        // Row k of channel 0 has code k % 8, so nibble positions show rows.
        let codes: Vec<i8> = (0..32).map(|k| k % 8).collect();
        let packed = pack_codes(Layout::W4Tile8x32, &codes, 32, 1).unwrap();
        for word in packed[..16].chunks_exact(4) {
            assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), 0x7362_5140);
        }
    }

    #[test]
    fn masks_give_sixteen_times_the_code() {
        let codes: Vec<i8> = (0..32).map(|k| (k * 5 % 16) as i8 - 8).collect();
        let packed = pack_codes(Layout::W4Tile8x32, &codes, 32, 1).unwrap();
        for (i, word) in packed[..16].chunks_exact(4).enumerate() {
            let w = u32::from_le_bytes(word.try_into().unwrap());
            let low = ((w << 4) & 0xF0F0_F0F0).to_le_bytes();
            let high = (w & 0xF0F0_F0F0).to_le_bytes();
            for j in 0..4 {
                assert_eq!(low[j] as i8, 16 * codes[8 * i + j]);
                assert_eq!(high[j] as i8, 16 * codes[8 * i + 4 + j]);
            }
        }
    }

    #[test]
    fn codes_beyond_a_nibble_are_refused() {
        let error = pack_codes(Layout::W4Tile8x32, &[0, 8], 1, 2).unwrap_err();
        assert_eq!(error, PackError::Code { code: 8, k: 0, n: 1 });
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(pack_codes(Layout::W8Tile8x16, &[0; 5], 2, 3).is_err());
        assert!(unpack_codes(Layout::W8Tile8x16, &[0; 5], 2, 3).is_err());
        assert!(pack_rows(Layout::W8Tile8x16, &[0; 6], 1, [2, 3], &mut [0; 256]).is_err());
        assert!(pack_rows(Layout::W8Tile8x16, &[0; 3], 1, [2, 3], &mut [0; 255]).is_err());
        assert!(pack_codes(Layout::I8, &[0; 6], 2, 3).is_err());
        assert_eq!(packed_len(Layout::W8Tile8x16, usize::MAX, 8), None);
    }
}
