// softmax: rows of COUNT elements that lie INNER apart become their softmax, f32.
//
// x, out  f32, dense [rows / INNER, COUNT, INNER]
//
// One invocation computes one row, in index order; a workgroup 64 rows.

// params: written by `softmax::specialize`; the defaults keep the file valid.
const ROWS: u32 = 8u; // rows
const COUNT: u32 = 8u; // elements of a row
const INNER: u32 = 1u; // elements from one to the next
const LOG: u32 = 0u; // 1 for the logarithm
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * 65535u + group.x) * 64u + lane;
    if (row >= ROWS) {
        return;
    }
    let first = (row / INNER) * (COUNT * INNER) + row % INNER;
    var largest = x[first];
    for (var i = 1u; i < COUNT; i++) {
        largest = max(largest, x[first + i * INNER]);
    }
    var sum = 0.0;
    for (var i = 0u; i < COUNT; i++) {
        sum = sum + exp(x[first + i * INNER] - largest);
    }
    for (var i = 0u; i < COUNT; i++) {
        let d = x[first + i * INNER] - largest;
        if (LOG == 1u) {
            out[first + i * INNER] = d - log(sum);
        } else {
            out[first + i * INNER] = exp(d) / sum;
        }
    }
}
