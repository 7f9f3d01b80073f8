// order: the first K elements, sorted, of rows of N, or their indices.
//
// x    f32 (FLOATS = 1) or i32 as their bits, [rows / INNER, N, INNER]
// out  as x, or i32 (INDICES = 1), [rows / INNER, K, INNER]
//
// One invocation sorts one row: one element after the other, the first of those
// behind the last one taken. NaN comes first; zeros are equal.

// params: written by `order::order`; the defaults keep the file valid.
const ROWS: u32 = 8u; // rows
const N: u32 = 4u; // elements of a row
const INNER: u32 = 2u; // elements from one of a row to the next
const K: u32 = 2u; // how many
const FLOATS: u32 = 1u; // 1 for f32
const LARGEST: u32 = 0u; // 1 for the largest first
const LAST: u32 = 0u; // 1 for the last one of equal elements first
const INDICES: u32 = 0u; // 1 for indices
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

// Integers in the order of the elements.
fn key(bits: u32) -> i32 {
    var rank = bitcast<i32>(bits);
    if (FLOATS == 1u) {
        let size = bitcast<i32>(bits & 0x7fffffffu);
        if (size > 0x7f800000) {
            return -2147483647 - 1;
        }
        rank = select(size, 0 - size, (bits >> 31u) == 1u);
    }
    return select(rank, ~rank, LARGEST == 1u);
}

// True if element i of key p comes before element j of key q.
fn precedes(p: i32, i: u32, q: i32, j: u32) -> bool {
    if (p != q) {
        return p < q;
    }
    if (LAST == 1u) {
        return j < i;
    }
    return i < j;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * 65535u + group.x) * 64u + lane;
    if (row >= ROWS) {
        return;
    }
    let block = row / INNER;
    let first = block * N * INNER + row % INNER;
    let first_out = block * K * INNER + row % INNER;
    var taken_key = 0;
    var taken = 0u;
    for (var place = 0u; place < K; place++) {
        var found = false;
        var best_key = 0;
        var best = 0u;
        for (var i = 0u; i < N; i++) {
            let k = key(x[first + i * INNER]);
            let behind = place == 0u || precedes(taken_key, taken, k, i);
            if (behind && (!found || precedes(k, i, best_key, best))) {
                found = true;
                best_key = k;
                best = i;
            }
        }
        out[first_out + place * INNER] = select(x[first + best * INNER], best, INDICES == 1u);
        taken_key = best_key;
        taken = best;
    }
}
