// rope: for every pair (u, v) of x, with its cosines and sines,
//   out[u] = x[u] * cos[u] - x[v] * sin[u]
//   out[v] = x[v] * cos[v] + x[u] * sin[v]
// where u = OFFSET + i . STRIDES and v = u + SECOND in each buffer.
//
// x, cosines, sines  f32; a stride of 0 broadcasts
// out                f32, dense over rows; pairs are (i, i + D / 2) of a row of D, or neighbours
//
// One invocation computes the two elements of one pair, a workgroup 64 pairs. Every element of out
// belongs to one pair. A driver may fuse a product and the sum behind it.

// params: written by `rope::specialize`; the defaults keep the file valid.
const N: u32 = 4u; // pairs
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 4u); // extents of the pairs
const X_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x from index to index
const COS_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of cosines from index to index
const SIN_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of sines from index to index
const OUT_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of out from index to index
const X_OFFSET: i32 = 0; // first element of x
const COS_OFFSET: i32 = 0; // first element of cosines
const SIN_OFFSET: i32 = 0; // first element of sines
const X_SECOND: i32 = 4; // from the first element of a pair of x to the second
const COS_SECOND: i32 = 4; // likewise, of cosines
const SIN_SECOND: i32 = 4; // likewise, of sines
const OUT_SECOND: i32 = 4; // likewise, of out
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
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
    var ic = COS_OFFSET;
    var is = SIN_OFFSET;
    var io = 0;
    for (var axis = 0u; axis < 6u; axis++) {
        let i = bitcast<i32>(at[axis]);
        ix += i * X_STRIDES[axis];
        ic += i * COS_STRIDES[axis];
        is += i * SIN_STRIDES[axis];
        io += i * OUT_STRIDES[axis];
    }
    let u = x[ix];
    let v = x[ix + X_SECOND];
    out[io] = u * cosines[ic] + -v * sines[is];
    out[io + OUT_SECOND] = v * cosines[ic + COS_SECOND] + u * sines[is + SIN_SECOND];
}
