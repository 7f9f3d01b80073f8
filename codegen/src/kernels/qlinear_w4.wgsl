// qlinear_w4: out[row, n] = finish(sum_k x[row, k] * w[k, n] + bias[n]), exact.
//
// x     codes, one signed byte each, rows of X_STRIDE * 16 bytes. With PLANES = 2
//       a row is two planes, hi then lo, and the sum is 256 * hi + lo.
// w     layout W4Tile8x32: [N/8][K/32][8 channels][16 bytes], K and N padded with zeros.
//       Word i of a block holds k = 8i .. 8i+7: byte j is 8i+j (low nibble) and 8i+4+j (high).
// bias  i32[N]
// m, s  i32[N]: multiplier and shift of each channel (OUT > 0; else any buffer)
// table 256 stored bytes (OUT = 2; else any buffer)
// out   OUT = 0: i32, rows of OUT_STRIDE words; else bytes, rows of OUT_STRIDE words
//
// A workgroup computes 8 channels of GROUP_ROWS rows: 8 channels by 8 slices of
// K, so that 64 lanes read 1024 contiguous bytes of weights, then a reduction in
// workgroup memory. It owns two words of each output row: no atomics.
// Relies on: i32 arithmetic wraps, so a sum of planes that fits in i32 is exact.

// params: written by `QLinear::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // channels
const ROWS: u32 = 1u; // rows of x
const GROUP_ROWS: u32 = 1u; // rows of a workgroup, at most 8
const BLOCKS: u32 = 2u; // blocks of K
const X_STRIDE: u32 = 2u; // 16-byte blocks of a row, or of a plane
const PLANES: u32 = 1u; // 2 for 16-bit codes
const OUT: u32 = 1u; // 0 accumulators, 1 codes, 2 codes through the table
const OUT_STRIDE: u32 = 8u; // words of an output row
const LO: i32 = -128; // smallest code, less the code of zero
const HI: i32 = 127; // largest code, less the code of zero
const ADD: i32 = 0; // OUT = 1: code of zero, less the storage offset; OUT = 2: code of zero, less the smallest index
// end params

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> bias: array<i32>;
@group(0) @binding(3) var<storage, read> multiplier: array<i32>;
@group(0) @binding(4) var<storage, read> shift: array<i32>;
@group(0) @binding(5) var<storage, read> table: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<u32>;

var<workgroup> partial: array<i32, 64u * GROUP_ROWS>;
var<workgroup> codes: array<u32, 64>;

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

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

// Sum over one block of K; `at` is the row, or its first plane.
// Masked nibbles are signed bytes of 16 times the code: no zero point and no sign
// extension. A block sum stays below 2^19 and is a multiple of 16: the shift is exact.
fn block_sum(weights: vec4<u32>, at: u32, block: u32) -> i32 {
    let low = (weights << vec4<u32>(4u)) & vec4<u32>(0xF0F0F0F0u);
    let high = weights & vec4<u32>(0xF0F0F0F0u);
    let x0 = x[at + block * 2u];
    let x1 = x[at + block * 2u + 1u];
    let sum = dot16(vec4<u32>(low.x, high.x, low.y, high.y), x0)
        + dot16(vec4<u32>(low.z, high.z, low.w, high.w), x1);
    return sum >> 4u;
}

// shared: qlinear
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let slice = lane >> 3u;
    let first_row = (group.z * 65535u + group.y) * GROUP_ROWS;
    let tile = group.x * BLOCKS * 8u + (lane & 7u);

    var acc: array<i32, GROUP_ROWS>;
    for (var block = slice; block < BLOCKS; block += 8u) {
        let weights = w[tile + block * 8u];
        for (var r = 0u; r < GROUP_ROWS; r++) {
            let at = min(first_row + r, ROWS - 1u) * (PLANES * X_STRIDE);
            var sum = block_sum(weights, at, block);
            if (PLANES == 2u) {
                sum = 256 * sum + block_sum(weights, at + X_STRIDE, block);
            }
            acc[r] += sum;
        }
    }
    for (var r = 0u; r < GROUP_ROWS; r++) {
        partial[r * 64u + lane] = acc[r];
    }
    workgroupBarrier();
    for (var half = 4u; half > 0u; half = half >> 1u) {
        if (slice < half) {
            for (var r = 0u; r < GROUP_ROWS; r++) {
                partial[r * 64u + lane] += partial[r * 64u + lane + half * 8u];
            }
        }
        workgroupBarrier();
    }

    // One lane a channel and row.
    if (lane < 8u * GROUP_ROWS) {
        let n = group.x * 8u + (lane & 7u);
        let row = first_row + (lane >> 3u);
        let total = partial[(lane >> 3u) * 64u + (lane & 7u)] + bias[min(n, N - 1u)];
        if (OUT == 0u) {
            if (n < N && row < ROWS) {
                out[row * OUT_STRIDE + n] = bitcast<u32>(total);
            }
        } else {
            codes[lane] = select(0u, code(total, min(n, N - 1u)), n < N);
        }
    }
    workgroupBarrier();

    // One lane a word of four codes.
    if (OUT != 0u && lane < 2u * GROUP_ROWS) {
        let row = first_row + (lane >> 1u);
        if (row < ROWS) {
            let first = lane * 4u;
            out[row * OUT_STRIDE + group.x * 2u + (lane & 1u)] = codes[first] | (codes[first + 1u] << 8u)
                | (codes[first + 2u] << 16u) | (codes[first + 3u] << 24u);
        }
    }
}
// end shared
