// scatter: a copy of x whose row index[m] is combined with row m of update, in order.
//
// x       f32, or i32 (INTS = 1), as their bits: [EXTENT, ROW]
// index   i32[M]; negative ones count from the end, rows beyond either end are left out
// update  as x, [M, ROW]
// out     as x
//
// One invocation computes one element.

// params: written by `order::scatter`; the defaults keep the file valid.
const N: u32 = 8u; // elements of x
const EXTENT: i32 = 2; // rows of x
const ROW: u32 = 4u; // elements of a row
const M: u32 = 2u; // rows of the update
const FUNCTION: u32 = 1u; // 1 replace, 2 add, 3 mul, 4 min, 5 max
const INTS: u32 = 0u; // 1 for i32: replace, min and max only
// end params

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> index: array<i32>;
@group(0) @binding(2) var<storage, read> update: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

fn combined(old: u32, given: u32) -> u32 {
    if (FUNCTION == 1u) {
        return given;
    }
    if (INTS == 1u) {
        let p = bitcast<i32>(old);
        let q = bitcast<i32>(given);
        return bitcast<u32>(select(max(p, q), min(p, q), FUNCTION == 4u));
    }
    let p = bitcast<f32>(old);
    let q = bitcast<f32>(given);
    switch FUNCTION {
        case 2u: { return bitcast<u32>(p + q); }
        case 3u: { return bitcast<u32>(p * q); }
        case 4u: { return bitcast<u32>(min(p, q)); }
        default: { return bitcast<u32>(max(p, q)); }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * 65535u + group.x) * 64u + lane;
    if (i >= N) {
        return;
    }
    let row = bitcast<i32>(i / ROW);
    var element = x[i];
    for (var m = 0u; m < M; m++) {
        var at = index[m];
        if (at < 0) {
            at = at + EXTENT;
        }
        if (at == row) {
            element = combined(element, update[m * ROW + i % ROW]);
        }
    }
    out[i] = element;
}
