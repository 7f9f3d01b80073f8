// qgroups: out[row, n] = finish(sum_k x[row, g K + k] * w[n, k] + bias[n]), exact,
// where g = n / CHANNELS is the group of channel n.
//
// x     codes, one signed byte each, rows of X_STRIDE bytes. With PLANES = 2 a
//       row is two planes, hi then lo, and a code is 256 * hi + lo.
// w     signed bytes, [N][K]
// bias  i32[N]
// m, s  i32[N]: multiplier and shift of each channel (OUT > 0; else any buffer)
// table 256 stored bytes (OUT = 2; else any buffer)
// out   OUT = 0: i32, rows of OUT_STRIDE words; else bytes, rows of OUT_STRIDE
//       words, of which bytes from N on become 0
//
// One invocation computes one word of the result, one channel or four of a row; a
// workgroup 64 words. K is the window of one channel: a handful of codes.

// params: written by `QGroups::specialize`; the defaults keep the file valid.
const K: u32 = 9u; // features of a group
const N: u32 = 8u; // channels
const CHANNELS: u32 = 1u; // channels of a group
const ROWS: u32 = 1u; // rows of x
const X_STRIDE: u32 = 96u; // bytes of a row, or of a plane
const PLANES: u32 = 1u; // 2 for 16-bit codes
const OUT: u32 = 1u; // 0 accumulators, 1 codes, 2 codes through the table
const OUT_STRIDE: u32 = 8u; // words of an output row
const LO: i32 = -128; // smallest code, less the code of zero
const HI: i32 = 127; // largest code, less the code of zero
const ADD: i32 = 0; // OUT = 1: code of zero, less the storage offset; OUT = 2: code of zero, less the smallest index
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> bias: array<i32>;
@group(0) @binding(3) var<storage, read> multiplier: array<i32>;
@group(0) @binding(4) var<storage, read> shift: array<i32>;
@group(0) @binding(5) var<storage, read> table: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<u32>;

// shared: requantize
// clamp((acc * m + 2^(s-1)) >> s, LO, HI) with an arithmetic shift, exact for
// 0 <= m < 2^16 and 1 <= s <= 62: two words hold the 64-bit sum. A quotient
// beyond i32 saturates before the clamp.
fn requantize(acc: i32, m: u32, s: u32) -> i32 {
    let low_product = (bitcast<u32>(acc) & 0xffffu) * m;
    let high_product = (acc >> 16u) * bitcast<i32>(m);
    var lo = low_product + (bitcast<u32>(high_product) << 16u);
    var hi = (high_product >> 16u) + select(0, 1, lo < low_product);
    let half = s - 1u;
    if (half < 32u) {
        let before = lo;
        lo = lo + (1u << half);
        hi = hi + select(0, 1, lo < before);
    } else {
        hi = hi + (1i << (half - 32u));
    }
    var q = 0;
    var top = 0;
    if (s < 32u) {
        q = bitcast<i32>((lo >> s) | (bitcast<u32>(hi) << (32u - s)));
        top = hi >> s;
    } else {
        q = hi >> (s - 32u);
        top = hi >> 31u;
    }
    if (top != (q >> 31u)) {
        q = select(2147483647, -2147483647, hi < 0);
    }
    return clamp(q, LO, HI);
}
// end shared

// shared: code
// Stored byte of an accumulator of channel n.
fn code(acc: i32, n: u32) -> u32 {
    let q = requantize(acc, bitcast<u32>(multiplier[n]), bitcast<u32>(shift[n])) + ADD;
    if (OUT == 2u) {
        let index = bitcast<u32>(q) & 255u;
        return (table[index >> 2u] >> ((index & 3u) * 8u)) & 255u;
    }
    return bitcast<u32>(q) & 255u;
}
// end shared

// The signed byte `at & 3` of a word.
fn signed_byte(word: u32, at: u32) -> i32 {
    return bitcast<i32>(word << (24u - (at & 3u) * 8u)) >> 24u;
}

fn sum(row: u32, n: u32) -> i32 {
    let first = row * (PLANES * X_STRIDE) + (n / CHANNELS) * K;
    var acc = bias[n];
    for (var k = 0u; k < K; k++) {
        let at = first + k;
        var q = signed_byte(x[at >> 2u], at);
        if (PLANES == 2u) {
            let low = at + X_STRIDE;
            q = 256 * q + signed_byte(x[low >> 2u], low);
        }
        let of_w = n * K + k;
        acc += q * signed_byte(w[of_w >> 2u], of_w);
    }
    return acc;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= ROWS * OUT_STRIDE) {
        return;
    }
    let row = index / OUT_STRIDE;
    let place = index % OUT_STRIDE;
    if (OUT == 0u) {
        if (place < N) {
            out[index] = bitcast<u32>(sum(row, place));
        }
        return;
    }
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let n = place * 4u + i;
        if (n < N) {
            word = word | (code(sum(row, n), n) << (i * 8u));
        }
    }
    out[index] = word;
}
