// unfold_bytes: out[i] = x[source(i)], or the fill, for every i of SHAPE, codes.
//
// x, out  bytes, four a word, rows padded; bytes from COLS on become 0
//
// One invocation writes one word: four elements of a row. A workgroup writes 64.

// params: written by `unfold::specialize`; the defaults keep the file valid.
const WORDS: u32 = 8u; // words of out
const LINE: u32 = 8u; // words of a row of out, or of a plane of it
const COLS: u32 = 8u; // elements of a row
const PLANES: u32 = 1u; // 2 for 16-bit codes: a row is two planes of bytes
const X_STRIDE: u32 = 32u; // elements from row to row of x
const FILL: array<u32, 2> = array<u32, 2>(0u, 0u); // bytes of what stands beyond the edges, one a plane
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

// shared: byte
// Byte `plane` of element `at` of x.
fn byte(at: i32, plane: u32) -> u32 {
    let element = bitcast<u32>(at);
    var place = element;
    if (PLANES == 2u) {
        place = (element / X_STRIDE) * (2u * X_STRIDE) + plane * X_STRIDE + element % X_STRIDE;
    }
    return (x[place >> 2u] >> ((place & 3u) * 8u)) & 255u;
}
// end shared

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= WORDS) {
        return;
    }
    let line = index / LINE;
    let plane = line % PLANES;
    let first = (index % LINE) * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let col = first + i;
        if (col < COLS) {
            let at = source((line / PLANES) * COLS + col);
            var value = FILL[plane];
            if (at >= 0) {
                value = byte(at, plane);
            }
            word = word | (value << (i * 8u));
        }
    }
    out[index] = word;
}
