// scan: running sums of rows of N, f32, in order.
//
// x    f32[rows / INNER, N, INNER]
// out  as x
//
// One invocation sums up one row.

// params: written by `order::scan`; the defaults keep the file valid.
const ROWS: u32 = 8u; // rows
const N: u32 = 4u; // elements of a row
const INNER: u32 = 2u; // elements from one of a row to the next
const EXCLUSIVE: u32 = 0u; // 1 if an element is not part of its sum
const REVERSE: u32 = 0u; // 1 from the end
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * 65535u + group.x) * 64u + lane;
    if (row >= ROWS) {
        return;
    }
    let first = (row / INNER) * N * INNER + row % INNER;
    var sum = 0.0;
    for (var i = 0u; i < N; i++) {
        let at = first + INNER * select(i, N - 1u - i, REVERSE == 1u);
        let next = sum + x[at];
        out[at] = select(next, sum, EXCLUSIVE == 1u);
        sum = next;
    }
}
