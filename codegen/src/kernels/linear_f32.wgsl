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
const P0: f32 = 1.0f; // first parameter of the function
const P1: f32 = 0.0f; // second parameter of the function
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// shared: act
// Sine of v, or with `quarter` = 1 its cosine. The quadrant is taken off in three
// parts; drivers guarantee nothing beyond a turn.
fn sine(v: f32, quarter: i32) -> f32 {
    let turns = round(v * 0.63661975);
    let r = ((v - turns * 1.5703125) - turns * 0.00048375129) - turns * 0.000000075497894;
    let s = r * r;
    let odd = r * (1.0 + s * (-0.16666667 + s * (0.0083333310 + s * (-0.00019840874 + s * 0.0000027525562))));
    let even = 1.0 + s * (-0.5 + s * (0.041666638 + s * (-0.0013888378 + s * 0.000024760495)));
    let quadrant = (i32(turns) + quarter) & 3;
    let size = select(odd, even, (quadrant & 1) == 1);
    return select(size, -size, quadrant >= 2);
}

// The error function: a series near 0, elsewhere 7.1.26 of Abramowitz and Stegun.
fn error_function(v: f32) -> f32 {
    let size = abs(v);
    let s = v * v;
    if (size < 0.5) {
        return v * (1.1283792 + s * (-0.37612638 + s * (0.11283792 + s * (-0.026866170 + s * 0.0052239776))));
    }
    let t = 1.0 / (1.0 + 0.3275911 * size);
    let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(v) * (1.0 - sum * exp(-min(s, 80.0)));
}

// ln(1 + exp(v)) without overflow.
fn softplus(v: f32) -> f32 {
    return max(v, 0.0) + log(1.0 + exp(-abs(v)));
}

fn bounded_tanh(v: f32) -> f32 {
    return tanh(clamp(v, -20.0, 20.0));
}

// Function FUNCTION of one number. Exact where the host is exact except for the
// curved ones (elu, tanh, exp, log, gelu, ..) and division, which have a
// tolerance in shaders.
fn act(v: f32) -> f32 {
    switch FUNCTION {
        case 1u: { return select(v, 0.0, v <= 0.0); }
        case 2u: { return select(P0 * v, v, v >= 0.0); }
        case 3u: { return select(P0 * (exp(min(v, 0.0)) - 1.0), v, v >= 0.0); }
        case 4u: { return bounded_tanh(v); }
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
        case 15u: { return 0.5 * v * (1.0 + error_function(v * 0.70710678)); }
        case 16u: { return 0.5 * v * (1.0 + bounded_tanh(0.79788456 * (v + 0.044715 * v * v * v))); }
        case 17u: { return v * bounded_tanh(softplus(v)); }
        case 18u: { return v / (1.0 + exp(-P0 * v)); }
        case 19u: { return clamp(P0 * v + P1, 0.0, 1.0); }
        case 20u: { return v * clamp(v / 6.0 + 0.5, 0.0, 1.0); }
        case 21u: { return select(P1 * P0 * (exp(min(v, 0.0)) - 1.0), P1 * v, v > 0.0); }
        case 22u: { return select(P0 * (exp(min(v, 0.0) / P0) - 1.0), v, v > 0.0); }
        case 23u: { return softplus(v); }
        case 24u: { return v / (1.0 + abs(v)); }
        case 25u: { return error_function(v); }
        case 26u: { return sine(v, 0); }
        case 27u: { return sine(v, 1); }
        case 28u: { return sine(v, 0) / sine(v, 1); }
        case 29u: { return asin(v); }
        case 30u: { return acos(v); }
        case 31u: { return atan(v); }
        case 32u: { return 0.5 * (exp(v) - exp(-v)); }
        case 33u: { return 0.5 * (exp(v) + exp(-v)); }
        case 34u: { return sign(v) * log(abs(v) + sqrt(v * v + 1.0)); }
        case 35u: { return log(v + sqrt(v * v - 1.0)); }
        case 36u: { return 0.5 * log((1.0 + v) / (1.0 - v)); }
        case 37u: { return floor(v); }
        case 38u: { return ceil(v); }
        case 39u: { return round(v); }
        case 40u: { return sign(v); }
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
