// linear_w8: out[row, n] = act(sum_g scale[g, n] * (sum over k in g of x[row, k] * q[k, n]) + bias[n]).
//
// x     f32, rows of K
// w     layout W8Tile8x16: [N/8][K/16][8 channels][16 bytes], K and N padded with zeros
// scale f32[GROUPS][N]
// bias  f32[N]
// out   f32, rows of N
//
// A workgroup computes 8 channels of a row. Each turn, 8 channels by 8 lanes sum
// one group of k each, in order; then one lane a channel scales and adds the 8
// sums in order. So the order of every sum is that of the host, with no fused step.
// Relies on: GROUP is a multiple of 4, or there is one group.

// params: written by `LinearWq::specialize`; the defaults keep the file valid.
const K: u32 = 32u; // terms of a sum
const N: u32 = 8u; // channels
const ROWS: u32 = 1u; // rows of x
const BLOCKS: u32 = 2u; // blocks of K in w
const GROUP: u32 = 32u; // rows of w that share a scale
const GROUPS: u32 = 1u; // scales of a channel
const FUNCTION: u32 = 0u; // function of the result, 0 for none
const P0: f32 = 0.0f; // first parameter of the function
const P1: f32 = 0.0f; // second parameter of the function
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, 64>;

// shared: act
// Function FUNCTION of one number. Exact where the host is exact except for the
// curved ones (elu, tanh, sigmoid, silu, exp, log) and division, which have a
// tolerance in shaders.
fn act(v: f32) -> f32 {
    switch FUNCTION {
        case 1u: { return select(v, 0.0, v <= 0.0); }
        case 2u: { return select(P0 * v, v, v >= 0.0); }
        case 3u: { return select(P0 * (exp(min(v, 0.0)) - 1.0), v, v >= 0.0); }
        case 4u: { return tanh(clamp(v, -20.0, 20.0)); }
        case 5u: { return 1.0 / (1.0 + exp(-v)); }
        case 6u: { return v / (1.0 + exp(-v)); }
        case 7u: {
            let bounded = select(v, P0, v < P0);
            return select(bounded, P1, bounded > P1);
        }
        case 8u: { return abs(v); }
        case 9u: { return -v; }
        case 10u: { return exp(v); }
        case 11u: { return log(v); }
        case 12u: { return sqrt(v); }
        case 13u: { return 1.0 / v; }
        default: { return v; }
    }
}
// end shared

// Code i of a word: byte i.
fn decode(word: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(word << (24u - i * 8u)) >> 24u);
}

// Sum over group g of channel c of a tile, k in order.
fn group_sum(tile: u32, c: u32, g: u32, at: u32) -> f32 {
    let end = min((g + 1u) * GROUP, K);
    var sum = 0.0;
    for (var k = g * GROUP; k < end; k += 4u) {
        let word = w[((tile * BLOCKS + k / 16u) * 8u + c) * 4u + (k % 16u) / 4u];
        for (var i = 0u; i < 4u; i++) {
            if (k + i < end) {
                let product = x[at + k + i] * decode(word, i);
                sum = sum + product;
            }
        }
    }
    return sum;
}

// shared: linear_wq
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.z * 65535u + group.y;
    let c = lane & 7u;
    let at = min(row, ROWS - 1u) * K;
    let n = group.x * 8u + c;
    var total = 0.0;
    for (var g0 = 0u; g0 < GROUPS; g0 += 8u) {
        let g = g0 + (lane >> 3u);
        sums[lane] = 0.0;
        if (g < GROUPS) {
            sums[lane] = group_sum(group.x, c, g, at);
        }
        workgroupBarrier();
        if (lane < 8u && n < N) {
            for (var i = 0u; i < 8u; i++) {
                if (g0 + i < GROUPS) {
                    let scaled = sums[i * 8u + c] * scale[(g0 + i) * N + n];
                    total = total + scaled;
                }
            }
        }
        workgroupBarrier();
    }
    if (lane < 8u && n < N && row < ROWS) {
        out[row * N + n] = act(total + bias[n]);
    }
}
// end shared
