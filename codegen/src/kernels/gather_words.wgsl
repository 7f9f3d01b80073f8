// gather_words: out[i] = x[i . STRIDES + index[i . INDEX_STRIDES] * ALONG].
//
// x, out  32-bit elements, moved as the bits they are; out dense over SHAPE
// index   i32; negative ones count from the end, beyond either end is the end
//
// One invocation writes one element, a workgroup 64.

// params: written by `gather::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements of out
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x from index to index
const INDEX_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of index from index to index
const OFFSET: i32 = 0; // first element of x
const INDEX_OFFSET: i32 = 0; // first element of index
const EXTENT: i32 = 8; // places
const ALONG: i32 = 1; // elements of x from place to place
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> index: array<i32>;
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

// shared: place
// Element of x that element `element` of the result is.
fn place(element: u32) -> i32 {
    var at = unravel(element);
    var source = OFFSET;
    var from_index = INDEX_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        source += bitcast<i32>(at[axis]) * STRIDES[axis];
        from_index += bitcast<i32>(at[axis]) * INDEX_STRIDES[axis];
    }
    var i = index[from_index];
    if (i < 0) {
        i += EXTENT;
    }
    return source + clamp(i, 0, EXTENT - 1) * ALONG;
}
// end shared

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let element = (group.y * 65535u + group.x) * 64u + lane;
    if (element < N) {
        out[element] = x[place(element)];
    }
}
