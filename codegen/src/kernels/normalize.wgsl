// normalize: rows become d / sqrt(mean(d * d) + EPS), d = x less its mean, f32.
//
// x, out  f32; a row has its elements at INNER_STRIDES, rows begin at STRIDES
//
// A workgroup computes one row: 64 partial sums, added in workgroup memory.

// params: written by `normalize::specialize`; the defaults keep the file valid.
const ROWS: u32 = 8u; // rows
const COUNT: u32 = 8u; // elements of a row
const SHAPE: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes that number the rows
const STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements along them
const INNER: array<u32, 6> = array<u32, 6>(1u, 1u, 1u, 1u, 1u, 8u); // axes of a row
const INNER_STRIDES: array<i32, 6> = array<i32, 6>(0, 0, 0, 0, 0, 1); // elements along them
const EPS: f32 = 0.00001f; // added to the variance
const CENTER: u32 = 1u; // 1 to subtract the mean
// end params

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, 64>;

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

// Sum of the numbers of all lanes; every lane calls it.
fn total(own: f32, lane: u32) -> f32 {
    workgroupBarrier();
    sums[lane] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 64u; i++) {
        sum = sum + sums[i];
    }
    return sum;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * 65535u + group.x;
    // Uniform: a workgroup is one row.
    if (row >= ROWS) {
        return;
    }
    var at = unravel(row);
    var base = 0;
    for (var axis = 0u; axis < 6u; axis++) {
        base += bitcast<i32>(at[axis]) * STRIDES[axis];
    }
    var mean = 0.0;
    if (CENTER == 1u) {
        var own = 0.0;
        for (var i = lane; i < COUNT; i += 64u) {
            own = own + x[base + inner_offset(i)];
        }
        mean = total(own, lane) / f32(COUNT);
    }
    var squares = 0.0;
    for (var i = lane; i < COUNT; i += 64u) {
        let d = x[base + inner_offset(i)] - mean;
        squares = squares + d * d;
    }
    let factor = 1.0 / sqrt(total(squares, lane) / f32(COUNT) + EPS);
    for (var i = lane; i < COUNT; i += 64u) {
        let place = base + inner_offset(i);
        out[place] = (x[place] - mean) * factor;
    }
}
