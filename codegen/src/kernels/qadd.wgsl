// qadd: out[i] = clamp(((a * m_a + b * M_B + 2^(SHIFT-1)) >> SHIFT) + z, LO, HI), codes.
//
// a    bytes, or i32 (WIDE = 1), less ZERO_A; b bytes, less ZERO_B
// m_a  i32[1] or i32[COLS] (M_COLS = 1)
// out  bytes, four a word, rows padded; bytes from COLS on become 0
//
// One invocation writes one word: four elements of a row. Two words hold the
// 64-bit sum: exact.

// params: written by `qadd::specialize`; the defaults keep the file valid.
const WORDS: u32 = 8u; // words of out
const LINE: u32 = 8u; // words of a row of out
const COLS: u32 = 8u; // elements of a row
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // extents of the result
const A_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of a from index to index
const B_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements of b from index to index
const A_OFFSET: i32 = 0; // first element of a
const B_OFFSET: i32 = 0; // first element of b
const WIDE: u32 = 0u; // 1 if a holds i32
const M_COLS: u32 = 0u; // 1 if every column has a multiplier
const M_B: u32 = 1u; // multiplier of b
const SHIFT: u32 = 1u; // 1 to 62
const ZERO_A: i32 = 0; // code of zero of a, less its storage offset
const ZERO_B: i32 = 0; // code of zero of b, less its storage offset
const LO: i32 = -128; // smallest code, less the code of zero
const HI: i32 = 127; // largest code, less the code of zero
const ADD: i32 = 0; // code of zero, less the storage offset
// end params

@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read> multiplier: array<i32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

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

// x * y in 64 bits, low word first.
fn multiply(x: u32, y: u32) -> vec2<u32> {
    let low = (x & 0xffffu) * (y & 0xffffu);
    let middle_a = (x >> 16u) * (y & 0xffffu);
    let middle_b = (x & 0xffffu) * (y >> 16u);
    let middle = (low >> 16u) + (middle_a & 0xffffu) + (middle_b & 0xffffu);
    let high = (x >> 16u) * (y >> 16u) + (middle_a >> 16u) + (middle_b >> 16u) + (middle >> 16u);
    return vec2<u32>((low & 0xffffu) | (middle << 16u), high);
}

fn add(p: vec2<u32>, q: vec2<u32>) -> vec2<u32> {
    let low = p.x + q.x;
    return vec2<u32>(low, p.y + q.y + select(0u, 1u, low < p.x));
}

// x * m for a positive m: two's complement.
fn signed_product(x: i32, m: u32) -> vec2<u32> {
    let size = multiply(bitcast<u32>(select(x, 0 - x, x < 0)), m);
    if (x < 0) {
        return add(vec2<u32>(~size.x, ~size.y), vec2<u32>(1u, 0u));
    }
    return size;
}

fn code(element: u32, col: u32) -> u32 {
    var at = unravel(element);
    var ia = A_OFFSET;
    var ib = B_OFFSET;
    for (var axis = 0u; axis < 6u; axis++) {
        ia += bitcast<i32>(at[axis]) * A_STRIDES[axis];
        ib += bitcast<i32>(at[axis]) * B_STRIDES[axis];
    }
    let m = bitcast<u32>(multiplier[select(0u, col, M_COLS == 1u)]);
    // (p - ZERO_A) * m = p * m - ZERO_A * m, so that no difference leaves 32 bits.
    var p = 0;
    if (WIDE == 1u) {
        p = bitcast<i32>(a[ia]);
    } else {
        p = bitcast<i32>(a[ia >> 2u] << (24u - (bitcast<u32>(ia) & 3u) * 8u)) >> 24u;
    }
    let q = bitcast<i32>(b[ib >> 2u] << (24u - (bitcast<u32>(ib) & 3u) * 8u)) >> 24u;
    var sum = add(signed_product(p, m), signed_product(0 - ZERO_A, m));
    sum = add(sum, signed_product(q - ZERO_B, M_B));
    var s = SHIFT;
    var half = vec2<u32>(0u, 0u);
    if (s <= 32u) {
        half.x = 1u << ((s - 1u) & 31u);
    } else {
        half.y = 1u << ((s - 33u) & 31u);
    }
    sum = add(sum, half);
    let hi = bitcast<i32>(sum.y);
    var result = 0;
    var top = 0;
    if (s < 32u) {
        result = bitcast<i32>((sum.x >> (s & 31u)) | (sum.y << ((32u - s) & 31u)));
        top = hi >> (s & 31u);
    } else {
        result = hi >> ((s - 32u) & 31u);
        top = hi >> 31u;
    }
    // A quotient beyond i32 saturates before the clamp.
    if (top != (result >> 31u)) {
        result = select(2147483647, -2147483647, hi < 0);
    }
    return bitcast<u32>(clamp(result, LO, HI) + ADD) & 255u;
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
            word = word | (code(row * COLS + col, col) << (i * 8u));
        }
    }
    out[index] = word;
}
