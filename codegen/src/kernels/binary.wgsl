// binary: out[i] = f(a[A_OFFSET + i . A_STRIDES], b[B_OFFSET + i . B_STRIDES]), f32 or i32.
//
// a, b  f32 or i32, as bits; a stride of 0 broadcasts
// out   likewise, dense over SHAPE
//
// One invocation computes one element, a workgroup 64.

// params: written by `Binary::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of the result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const A_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of a from index to index
const B_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of b from index to index
const A_OFFSET: i32 = 0; // first element of a
const B_OFFSET: i32 = 0; // first element of b
const FUNCTION: u32 = 1u; // 1 add, 2 sub, 3 mul, 4 div, 5 pow, 6 min, 7 max, 8 mod, 9 rem
const INTS: u32 = 0u; // 1 for i32: min and max only
// end params

@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

// shared: unravel
// Coordinates of element `index` of SHAPE, row-major.
fn unravel(index: u32) -> array<u32, 6> {
    var rest = index;
    var at: array<u32, 6>;
    for (var i = 0u; i < 6u; i++) {
        let axis = 5u - i;
        at[axis] = rest % SHAPE[axis];
        rest = rest / SHAPE[axis];
    }
    return at;
}
// end shared

// `pow` of WGSL is undefined for negative bases; squares and roots are common.
fn power(base: f32, exponent: f32) -> f32 {
    if (exponent == 2.0) {
        return base * base;
    }
    if (exponent == 0.5) {
        return sqrt(base);
    }
    let size = pow(abs(base), exponent);
    let odd = abs(exponent) % 2.0 == 1.0;
    return select(size, -size, base < 0.0 && odd);
}

fn combine(p: f32, q: f32) -> f32 {
    switch FUNCTION {
        case 2u: { return p - q; }
        case 3u: { return p * q; }
        case 4u: { return p / q; }
        case 5u: { return power(p, q); }
        case 6u: { return min(p, q); }
        case 7u: { return max(p, q); }
        case 8u: { return p - q * floor(p / q); }
        case 9u: { return p - q * trunc(p / q); }
        default: { return p + q; }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= N) {
        return;
    }
    var at = unravel(index);
    var ia = A_OFFSET;
    var ib = B_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        ia += bitcast<i32>(at[axis]) * A_STRIDES[axis];
        ib += bitcast<i32>(at[axis]) * B_STRIDES[axis];
    }
    if (INTS == 1u) {
        let p = bitcast<i32>(a[ia]);
        let q = bitcast<i32>(b[ib]);
        out[index] = bitcast<u32>(select(max(p, q), min(p, q), FUNCTION == 6u));
    } else {
        out[index] = bitcast<u32>(combine(bitcast<f32>(a[ia]), bitcast<f32>(b[ib])));
    }
}
