// copy_bytes: out[OUT_OFFSET + i . OUT_STRIDES] = x[OFFSET + i . STRIDES] for every i of SHAPE.
//
// x, out  bytes, four a word
//
// One invocation moves one element, a workgroup 64. Neighbours share a word of
// the result, so bytes are set by atomics: clear, then or. No two invocations
// write the same byte.

// params: written by `Copy::specialize`; the defaults keep the file valid.
const N: u32 = 8u; // elements to move
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // index space
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x from index to index
const OUT_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of out from index to index
const OFFSET: i32 = 0; // first element of x
const OUT_OFFSET: i32 = 0; // first element of out
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<atomic<u32>>;

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
    var source = OFFSET;
    var place = OUT_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        source += bitcast<i32>(at[axis]) * STRIDES[axis];
        place += bitcast<i32>(at[axis]) * OUT_STRIDES[axis];
    }
    let s = bitcast<u32>(source);
    let p = bitcast<u32>(place);
    let byte = (x[s >> 2u] >> ((s & 3u) * 8u)) & 255u;
    let up = (p & 3u) * 8u;
    atomicAnd(&out[p >> 2u], ~(255u << up));
    atomicOr(&out[p >> 2u], byte << up);
}
