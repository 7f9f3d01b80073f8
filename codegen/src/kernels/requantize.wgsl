// requantize: out[row, n] = code(acc[row, n]), accumulators to stored codes.
//
// acc   i32, rows of N words
// m, s  i32[N]: multiplier and shift of each channel
// table 256 stored bytes (OUT = 2; else any buffer)
// out   bytes, rows of OUT_STRIDE words; bytes from N on become 0
//
// One invocation computes one word of the result, four channels of a row; a
// workgroup 64 words.

// params: written by `Requantize::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // channels
const ROWS: u32 = 1u; // rows of acc
const OUT: u32 = 1u; // 1 codes, 2 codes through the table
const OUT_STRIDE: u32 = 8u; // words of an output row
const LO: i32 = -128; // smallest code, less the code of zero
const HI: i32 = 127; // largest code, less the code of zero
const ADD: i32 = 0; // OUT = 1: code of zero, less the storage offset; OUT = 2: code of zero, less the smallest index
// end params

@group(0) @binding(0) var<storage, read> acc: array<i32>;
@group(0) @binding(1) var<storage, read> multiplier: array<i32>;
@group(0) @binding(2) var<storage, read> shift: array<i32>;
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= ROWS * OUT_STRIDE) {
        return;
    }
    let row = index / OUT_STRIDE;
    let first = (index % OUT_STRIDE) * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let n = first + i;
        if (n < N) {
            word = word | (code(acc[row * N + n], n) << (i * 8u));
        }
    }
    out[index] = word;
}
