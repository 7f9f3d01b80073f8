// compare: out[i] = 1 if f(a[A_OFFSET + i . A_STRIDES], b[B_OFFSET + i . B_STRIDES]), else 0.
//
// a, b  f32 or i32; a stride of 0 broadcasts
// out   i32, dense over SHAPE
//
// One invocation computes one element, a workgroup 64.

// params: written by `compare::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of the result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const A_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of a from index to index
const B_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of b from index to index
const A_OFFSET: i32 = 0; // first element of a
const B_OFFSET: i32 = 0; // first element of b
const FUNCTION: u32 = 1u; // 1 eq, 2 ne, 3 lt, 4 le, 5 gt, 6 ge
const INTS: u32 = 0u; // 1 for i32
// end params

@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<i32>;

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

fn holds(less: bool, equal: bool, greater: bool) -> bool {
    switch FUNCTION {
        case 1u: { return equal; }
        case 2u: { return !equal; }
        case 3u: { return less; }
        case 4u: { return less || equal; }
        case 5u: { return greater; }
        default: { return greater || equal; }
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
    var truth = false;
    if (INTS == 1u) {
        let p = bitcast<i32>(a[ia]);
        let q = bitcast<i32>(b[ib]);
        let less = p < q;
        let greater = q < p;
        truth = holds(less, p == q, greater);
    } else {
        let p = bitcast<f32>(a[ia]);
        let q = bitcast<f32>(b[ib]);
        let less = p < q;
        let greater = q < p;
        truth = holds(less, p == q, greater);
    }
    out[index] = select(0, 1, truth);
}
