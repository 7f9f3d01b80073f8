//! 16-bit codes as a GPU stores them: two planes of signed bytes a row.
//!
//! `hi = (q + 128) >> 8`, `lo = q - 256 * hi`, so that both are balanced and
//! `256 * sum(hi * w) + sum(lo * w)` is the sum over `q * w`. Exact for
//! `-32768 <= q <= 32639`; a larger code has no plane and becomes 32639.

/// Splits rows of `stride` little-endian `i16` into rows of two planes.
pub(super) fn split(mirror: &[u8], stride: usize, planes: &mut Vec<u8>) {
    planes.clear();
    planes.reserve(mirror.len());
    for row in mirror.chunks_exact(stride.saturating_mul(2).max(1)) {
        let codes = || row.as_chunks::<2>().0.iter().map(|&code| i32::from(i16::from_le_bytes(code)).min(32639));
        planes.extend(codes().map(|q| ((q + 128) >> 8) as u8));
        planes.extend(codes().map(|q| q as u8));
    }
}

/// Joins rows of two planes into rows of `stride` little-endian `i16`.
pub(super) fn join(planes: &[u8], stride: usize, mirror: &mut [u8]) {
    let row_bytes = stride.saturating_mul(2).max(1);
    for (row, out) in planes.chunks_exact(row_bytes).zip(mirror.chunks_exact_mut(row_bytes)) {
        let (hi, lo) = row.split_at(stride);
        for ((hi, lo), out) in hi.iter().zip(lo).zip(out.as_chunks_mut::<2>().0) {
            let q = 256 * i32::from(*hi as i8) + i32::from(*lo as i8);
            *out = (q as i16).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives() {
        let codes: Vec<i16> = (-32768..=32639).collect();
        let mirror: Vec<u8> = codes.iter().flat_map(|q| q.to_le_bytes()).collect();
        let stride = codes.len() / 4;
        let (mut planes, mut back) = (Vec::new(), vec![0; mirror.len()]);
        split(&mirror, stride, &mut planes);
        join(&planes, stride, &mut back);
        assert_eq!(back, mirror);
    }

    #[test]
    fn planes_are_those_of_the_schema() {
        let mut planes = Vec::new();
        split(&[300i16.to_le_bytes(), (-200i16).to_le_bytes()].concat(), 2, &mut planes);
        assert_eq!(planes.iter().map(|&byte| byte as i8).collect::<Vec<_>>(), [1, -1, 44, 56]);
    }
}
