// reduce_codes: out[o] = f over i of x[OFFSET + o . STRIDES + i . INNER_STRIDES], codes.
//
// x    bytes, four a word
// out  f = 1: i32 sums of byte + ADD, dense; else bytes, rows padded with 0
//
// One invocation writes one word: one sum, or four extremes of a row.

// params: written by `reduce::specialize`; the defaults keep the file valid.
const WORDS: u32 = 8u; // words of out
const LINE: u32 = 8u; // words of a row of out
const COLS: u32 = 8u; // elements of a row
const COUNT: u32 = 8u; // elements of a result
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes that stay
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x along them
const INNER: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes that disappear
const INNER_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x along them
const OFFSET: i32 = 0; // first element of x
const FUNCTION: u32 = 1u; // 1 sum, 3 min, 4 max
const ADD: i32 = 0; // storage offset, less the code of zero
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

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

fn reduced(element: u32) -> i32 {
    var at = unravel(element);
    var base = OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        base += bitcast<i32>(at[axis]) * STRIDES[axis];
    }
    var result = 0;
    for (var i = 0u; i < COUNT; i++) {
        let p = bitcast<u32>(base + inner_offset(i));
        let value = bitcast<i32>(x[p >> 2u] << (24u - (p & 3u) * 8u)) >> 24u;
        if (FUNCTION == 1u) {
            result = result + value + ADD;
        } else if (i == 0u) {
            result = value;
        } else if (FUNCTION == 3u) {
            result = min(result, value);
        } else {
            result = max(result, value);
        }
    }
    return result;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= WORDS) {
        return;
    }
    if (FUNCTION == 1u) {
        out[index] = bitcast<u32>(reduced(index));
        return;
    }
    let row = index / LINE;
    let first = (index % LINE) * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let col = first + i;
        if (col < COLS) {
            word = word | ((bitcast<u32>(reduced(row * COLS + col)) & 255u) << (i * 8u));
        }
    }
    out[index] = word;
}
