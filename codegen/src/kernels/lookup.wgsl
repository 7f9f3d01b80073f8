// lookup: out[i] = table[x[i]], codes by code.
//
// x      bytes
// table  256 stored bytes, the first for the stored byte -128
// out    bytes, four a word, rows padded; bytes from COLS on become 0
//
// One invocation writes one word: four elements of a row.

// params: written by `codes::lookup`; the defaults keep the file valid.
const WORDS: u32 = 8u; // words of out
const LINE: u32 = 8u; // words of a row of out
const COLS: u32 = 8u; // elements of a row
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of x from index to index
const OFFSET: i32 = 0; // first element of x
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
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

fn code(element: u32) -> u32 {
    var at = unravel(element);
    var ix = OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        ix += bitcast<i32>(at[axis]) * STRIDES[axis];
    }
    let byte = (x[ix >> 2u] >> ((bitcast<u32>(ix) & 3u) * 8u)) & 255u;
    // The stored byte -128 is 128 of the unsigned byte.
    let index = byte ^ 128u;
    return (table[index >> 2u] >> ((index & 3u) * 8u)) & 255u;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * 65535u + group.x) * 64u + lane;
    if (index >= WORDS) {
        return;
    }
    let row = index / LINE;
    let first = (index % LINE) * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let col = first + i;
        if (col < COLS) {
            word = word | (code(row * COLS + col) << (i * 8u));
        }
    }
    out[index] = word;
}
