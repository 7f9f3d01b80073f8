// gather_bytes: out[i] = x[i . STRIDES + index[i . INDEX_STRIDES] * ALONG], codes.
//
// x, out  bytes, four a word, rows padded; bytes from COLS on become 0
// index   i32; negative ones count from the end, beyond either end is the end
//
// One invocation writes one word: four elements of a row. A workgroup writes 64.

// params: written by `gather::specialize`; the defaults keep the file valid.
const WORDS: u32 = 8u; // words of out
const LINE: u32 = 8u; // words of a row of out, or of a plane of it
const COLS: u32 = 8u; // elements of a row
const PLANES: u32 = 1u; // 2 for 16-bit codes: a row is two planes of bytes
const X_STRIDE: u32 = 32u; // elements from row to row of x
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
    let word_index = (group.y * 65535u + group.x) * 64u + lane;
    if (word_index >= WORDS) {
        return;
    }
    let line = word_index / LINE;
    let first = (word_index % LINE) * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let col = first + i;
        if (col < COLS) {
            word = word | (byte(place((line / PLANES) * COLS + col), line % PLANES) << (i * 8u));
        }
    }
    out[word_index] = word;
}
