// matmul_f32: out[batch, m, n] = sum_k a[batch, m, k] * b[batch, k, n], f32.
//
// a    f32, matrices of M rows of K; STRIDES of the batch axes, 0 broadcasts
// b    f32, matrices of K rows of N; likewise
// out  f32, dense
//
// One invocation computes one result: the sum runs over k in order from zero,
// product and sum rounded separately. A workgroup computes 64 results.

// params: written by `MatMulF32::specialize`; the defaults keep the file valid.
const TOTAL: u32 = 64u; // results
const M: u32 = 8u; // rows of a result matrix
const N: u32 = 8u; // columns
const K: u32 = 8u; // terms of a sum
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 1u); // batch axes
const A_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of a along them
const B_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of b along them
const A_OFFSET: i32 = 0; // first element of a
const B_OFFSET: i32 = 0; // first element of b
// end params

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= TOTAL) {
        return;
    }
    let n = index % N;
    let m = (index / N) % M;
    var at = unravel(index / (N * M));
    var ia = A_OFFSET + bitcast<i32>(m * K);
    var ib = B_OFFSET + bitcast<i32>(n);
    for (var axis = 0u; axis < 6u; axis++) {
        ia += bitcast<i32>(at[axis]) * A_STRIDES[axis];
        ib += bitcast<i32>(at[axis]) * B_STRIDES[axis];
    }
    var sum = 0.0;
    for (var k = 0u; k < K; k++) {
        let product = a[ia + bitcast<i32>(k)] * b[ib + bitcast<i32>(k * N)];
        sum = sum + product;
    }
    out[index] = sum;
}
