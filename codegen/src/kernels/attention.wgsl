// attention: out[row] = softmax(q[row] . k * SCALE + mask) . v, f32.
//
// q     f32[batch, HEADS, QUERIES, DEPTH]
// k     f32[batch, GROUPS, KEYS, DEPTH]
// v     f32[batch, GROUPS, KEYS, WIDTH]
// mask  f32, M_STRIDES over [batch, head, query, key] (MASK = 1; else any buffer)
// out   f32[batch, HEADS, QUERIES, WIDTH]
//
// A workgroup computes one query: the scores lie in workgroup memory.

// params: written by `attention::specialize`; the defaults keep the file valid.
const ROWS: u32 = 8u; // queries of all heads and batches
const HEADS: u32 = 2u; // heads
const GROUPS: u32 = 1u; // groups of heads that share keys
const QUERIES: u32 = 2u; // queries of a head
const KEYS: u32 = 8u; // keys, at most 3968
const DEPTH: u32 = 8u; // elements of a query
const WIDTH: u32 = 8u; // elements of a value
const SCALE: f32 = 1.0f; // factor of the scores
const MASK: u32 = 0u; // 1 with a mask
const M_STRIDES: array<i32, 4> = array<i32, 4>(0, 0, 0, 1); // elements of the mask along its axes
const M_OFFSET: i32 = 0; // first element of the mask
// end params

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> mask: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

var<workgroup> scores: array<f32, KEYS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * 65535u + group.x;
    // Uniform: a workgroup is one query.
    if (row >= ROWS) {
        return;
    }
    let head = row / QUERIES;
    let of_group = (head / HEADS) * GROUPS + (head % HEADS) / (HEADS / GROUPS);
    let m_row = M_OFFSET + bitcast<i32>(head / HEADS) * M_STRIDES[0] + bitcast<i32>(head % HEADS) * M_STRIDES[1]
        + bitcast<i32>(row % QUERIES) * M_STRIDES[2];
    for (var j = lane; j < KEYS; j += 64u) {
        let key = (of_group * KEYS + j) * DEPTH;
        var sum = 0.0;
        for (var e = 0u; e < DEPTH; e++) {
            let product = q[row * DEPTH + e] * k[key + e];
            sum = sum + product;
        }
        var score = sum * SCALE;
        if (MASK == 1u) {
            score = score + mask[m_row + bitcast<i32>(j) * M_STRIDES[3]];
        }
        scores[j] = score;
    }
    workgroupBarrier();
    var largest = scores[0];
    for (var j = 1u; j < KEYS; j++) {
        largest = max(largest, scores[j]);
    }
    workgroupBarrier();
    for (var j = lane; j < KEYS; j += 64u) {
        scores[j] = exp(scores[j] - largest);
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var j = 0u; j < KEYS; j++) {
        sum = sum + scores[j];
    }
    for (var n = lane; n < WIDTH; n += 64u) {
        var result = 0.0;
        for (var j = 0u; j < KEYS; j++) {
            let product = (scores[j] / sum) * v[(of_group * KEYS + j) * WIDTH + n];
            result = result + product;
        }
        out[row * WIDTH + n] = result;
    }
}
