// unfold_words: out[i] = x[source(i)], or the fill, for every i of SHAPE.
//
// x, out  32-bit elements, moved as the bits they are; out dense
//
// One invocation writes one element, a workgroup 64.

// params: written by `unfold::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of out
const FILL: u32 = 0u; // bits of what stands beyond the edges
const SHAPE: array<u32, 8> = array<u32, 8>(1u, 1u, 1u, 1u, 1u, 1u, 1u, 8u); // index space
const COORDINATES: array<u32, 8> = array<u32, 8>(0u, 0u, 0u, 0u, 0u, 0u, 0u, 0u); // coordinate of each axis
const STEPS: array<i32, 8> = array<i32, 8>(0, 0, 0, 0, 0, 0, 0, 1); // positions from index to index
const EXTENTS: array<i32, 8> = array<i32, 8>(8, 1, 1, 1, 1, 1, 1, 1); // elements of each coordinate
const START: array<i32, 8> = array<i32, 8>(0, 0, 0, 0, 0, 0, 0, 0); // position of index 0
const SPREAD: array<i32, 8> = array<i32, 8>(1, 1, 1, 1, 1, 1, 1, 1); // positions from element to element
const STRIDES: array<i32, 8> = array<i32, 8>(1, 0, 0, 0, 0, 0, 0, 0); // elements of x along each coordinate
const OFFSET: i32 = 0; // first element of x
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

// shared: window
// Element of x that index `index` of SHAPE shows, or -1 for the fill.
fn source(index: u32) -> i32 {
    var rest = index;
    var position = START;
    for (var i = 0u; i < 8u; i++) {
        let axis = 7u - i;
        position[COORDINATES[axis]] += bitcast<i32>(rest % SHAPE[axis]) * STEPS[axis];
        rest = rest / SHAPE[axis];
    }
    var at = OFFSET;
    for (var c = 0u; c < 8u; c++) {
        let p = position[c];
        let element = p / SPREAD[c];
        if (p < 0 || element >= EXTENTS[c] || element * SPREAD[c] != p) {
            return -1;
        }
        at += element * STRIDES[c];
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
    let at = source(index);
    var value = FILL;
    if (at >= 0) {
        value = x[at];
    }
    out[index] = value;
}
