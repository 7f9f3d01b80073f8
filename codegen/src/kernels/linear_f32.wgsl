// linear_f32: out[row, n] = act(sum_k x[row, k] * w[k, n] + bias[n]).
//
// x     f32, rows of K
// w     layout F32Rows8: f32[K][N_STRIDE], N_STRIDE = N rounded up to 8
// bias  f32[N]
// out   f32, rows of N
//
// One invocation computes one output: the sum runs over k in order from zero,
// product and sum rounded separately, so that a driver that does not contract
// them gives the bits of the host. A workgroup computes 64 channels of a row.

// params: written by `LinearF32::specialize`; the defaults keep the file valid.
const K: u32 = 8u; // terms of a sum
const N: u32 = 8u; // channels
const N_STRIDE: u32 = 8u; // elements of a row of w
const ROWS: u32 = 1u; // rows of x
const FUNCTION: u32 = 0u; // function of the result, 0 for none
const P0: f32 = 0.0f; // first parameter of the function
const P1: f32 = 0.0f; // second parameter of the function
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.z * 65535u + group.y;
    let n = group.x * 64u + lane;
    if (row >= ROWS || n >= N) {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < K; k++) {
        let product = x[row * K + k] * w[k * N_STRIDE + n];
        sum = sum + product;
    }
    out[row * N + n] = act(sum + bias[n]);
}
