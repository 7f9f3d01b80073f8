// film: out[i] = x[X_OFFSET + i . X_STRIDES] * scale[..] + shift[..].
//
// x, scale, shift  f32; a stride of 0 broadcasts
// out              f32, dense over SHAPE
//
// One invocation computes one element, a workgroup 64. A driver may fuse the product and the sum.

// params: written by `film::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of the result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const X_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x from index to index
const SCALE_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of scale from index to index
const SHIFT_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of shift from index to index
const X_OFFSET: i32 = 0; // first element of x
const SCALE_OFFSET: i32 = 0; // first element of scale
const SHIFT_OFFSET: i32 = 0; // first element of shift
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> scale: array<f32>;
@group(0) @binding(2) var<storage, read> shift: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

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
    var ix = X_OFFSET;
    var ia = SCALE_OFFSET;
    var ib = SHIFT_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        let i = bitcast<i32>(at[axis]);
        ix += i * X_STRIDES[axis];
        ia += i * SCALE_STRIDES[axis];
        ib += i * SHIFT_STRIDES[axis];
    }
    out[index] = x[ix] * scale[ia] + shift[ib];
}
