// unary: out[i] = act(x[i]), f32.
//
// x, out  f32, N dense elements
//
// One invocation computes one element, a workgroup 64.

// params: written by `Unary::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements
const FUNCTION: u32 = 0u; // function of the result, 0 for none
const P0: f32 = 0.0f; // first parameter of the function
const P1: f32 = 0.0f; // second parameter of the function
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

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
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index < N) {
        out[index] = act(x[index]);
    }
}
