// reduce: out[o] = f over i of x[OFFSET + o . STRIDES + i . INNER_STRIDES], f32.
//
// x    f32
// out  f32, dense over SHAPE
//
// One invocation computes one result, reading INNER in index order; a workgroup
// computes 64. Sums start from zero, so they are those of the host.

// params: written by `Reduce::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // results
const COUNT: u32 = 8u; // elements of a result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes that stay
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x along them
const INNER: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes that disappear
const INNER_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x along them
const OFFSET: i32 = 0; // first element of x
const FUNCTION: u32 = 1u; // 1 sum, 2 mean, 3 min, 4 max, 5 product
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

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

// shared: inner_offset
fn inner_offset(index: u32) -> i32 {
    var rest = index;
    var offset = 0;
    for (var i = 0u; i < 6u; i++) {
        let axis = 5u - i;
        offset += bitcast<i32>(rest % INNER[axis]) * INNER_STRIDES[axis];
        rest = rest / INNER[axis];
    }
    return offset;
}
// end shared

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= N) {
        return;
    }
    var at = unravel(index);
    var base = OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        base += bitcast<i32>(at[axis]) * STRIDES[axis];
    }
    var result = 0.0;
    for (var i = 0u; i < COUNT; i++) {
        let value = x[base + inner_offset(i)];
        if (FUNCTION <= 2u) {
            result = result + value;
        } else if (i == 0u) {
            result = value;
        } else if (FUNCTION == 3u) {
            result = min(result, value);
        } else if (FUNCTION == 5u) {
            result = result * value;
        } else {
            result = max(result, value);
        }
    }
    if (FUNCTION == 2u) {
        result = result / f32(COUNT);
    }
    out[index] = result;
}
