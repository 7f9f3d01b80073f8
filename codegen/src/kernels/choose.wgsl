// choose: out[i] = a[A_OFFSET + i . A_STRIDES] where the truth is not 0, else b[..].
//
// truth      i32; a stride of 0 broadcasts
// a, b, out  32-bit elements, moved as the bits they are; out dense over SHAPE
//
// One invocation computes one element, a workgroup 64.

// params: written by `choose::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of the result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const T_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of truth from index to index
const A_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of a from index to index
const B_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of b from index to index
const T_OFFSET: i32 = 0; // first element of truth
const A_OFFSET: i32 = 0; // first element of a
const B_OFFSET: i32 = 0; // first element of b
// end params

@group(0) @binding(0) var<storage, read> truth: array<i32>;
@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

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
    if (index >= N) {
        return;
    }
    var at = unravel(index);
    var it = T_OFFSET;
    var ia = A_OFFSET;
    var ib = B_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        it += bitcast<i32>(at[axis]) * T_STRIDES[axis];
        ia += bitcast<i32>(at[axis]) * A_STRIDES[axis];
        ib += bitcast<i32>(at[axis]) * B_STRIDES[axis];
    }
    if (truth[it] != 0) {
        out[index] = a[ia];
    } else {
        out[index] = b[ib];
    }
}
