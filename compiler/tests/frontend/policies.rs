//! Real policies compute what ONNX Runtime computes.

use std::{collections::BTreeMap, path::PathBuf};

use qail_ir::{interp, text};
use qailc::frontend::{ImportOptions, Imported, import};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn policy(path: &str) -> Imported {
    import(&fixtures().join("policies").join(path), &ImportOptions::default()).unwrap()
}

fn rows(golden: &serde_json::Value, key: &str) -> Vec<Vec<f32>> {
    let rows = golden[key].as_array().unwrap().iter();
    rows.map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()).collect()
}

/// Both executors sum in `f32`, in different orders, over at most 512 terms:
/// 1e-5 absolute and relative.
#[test]
fn every_policy_agrees_with_onnx_runtime() {
    let mut n_policies = 0;
    for entry in std::fs::read_dir(fixtures().join("golden")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let imported = policy(golden["model"].as_str().unwrap());
        assert!(imported.cross_checked, "{}: the second shape inference declines", path.display());
        assert_eq!(imported.graph.batch_axis, Some(0));
        qail_ir::verify(&imported.graph).unwrap();
        let interpreter = interp::Interpreter::new(&imported.graph).unwrap();
        let (input, output) = (golden["input"].as_str().unwrap(), golden["output"].as_str().unwrap());
        for (observation, expected) in rows(&golden, "observations").into_iter().zip(rows(&golden, "outputs")) {
            let observation = interp::Tensor::f32([1, observation.len()], observation);
            let found = interpreter.run(&BTreeMap::from([(input.to_owned(), observation)])).unwrap();
            let found = found[output].as_f32().unwrap();
            assert_eq!(found.len(), expected.len());
            for (x, y) in found.iter().zip(&expected) {
                assert!((x - y).abs() <= 1e-5 + 1e-5 * y.abs(), "{}: {x} is not {y}", path.display());
            }
        }
        n_policies += 1;
    }
    assert!(n_policies >= 10, "only {n_policies} policies were compared");
}

#[test]
fn a_policy_is_a_chain_of_linears() {
    insta::assert_snapshot!(text::print(&policy("hopper/hopper_expert.onnx").graph), @r#"
    graph @main_graph(%obs: f32[1, 11]) -> (%action) {batch = 0} {
      %0.mean = const [1.3379663, 0.052820113, -0.43696845, -0.034095846, 0.22214535, 2.389235, -0.08510181, 0.013413237, -0.2379165, -0.03634949, -0.3045698] : f32[11] @ "0.mean"
      %sub = sub %obs, %0.mean : f32[1, 11] @ "node_sub"
      %0.std = const [0.18957454, 0.049526673, 0.23689888, 0.11784922, 0.62564737, 0.7589478, 1.5027928, 0.9579285, 1.8641065, 1.6203954, 5.8058963] : f32[11] @ "0.std"
      %div = div %sub, %0.std : f32[1, 11] @ "node_div"
      %1.weight = const file("1.weight") : f32[11, 64] @ "1.weight"
      %1.bias = const file("1.bias") : f32[64] @ "1.bias"
      %linear = linear %div, %1.weight, %1.bias : f32[1, 64] @ "node_linear"
      %tanh = tanh %linear : f32[1, 64] @ "node_tanh"
      %3.weight = const file("3.weight") : f32[64, 64] @ "3.weight"
      %3.bias = const file("3.bias") : f32[64] @ "3.bias"
      %linear_1 = linear %tanh, %3.weight, %3.bias : f32[1, 64] @ "node_linear_1"
      %tanh_1 = tanh %linear_1 : f32[1, 64] @ "node_tanh_1"
      %5.weight = const file("5.weight") : f32[64, 3] @ "5.weight"
      %5.bias = const [0.68920165, 0.46903816, -0.15534991] : f32[3] @ "5.bias"
      %linear_2 = linear %tanh_1, %5.weight, %5.bias : f32[1, 3] @ "node_linear_2"
      %action = clip %linear_2 {min = -1.0, max = 1.0} : f32[1, 3] @ "node_Clip_7"
    }
    "#);
}

#[test]
fn a_swish_policy_keeps_what_it_computes() {
    insta::assert_snapshot!(text::print(&policy("legged/playground_go1.onnx").graph), @r#"
    graph @tf2onnx(%obs: f32[1, 48]) -> (%continuous_actions) {batch = 0} {
      %"mlp_1/sub/ReadVariableOp:0" = const file("mlp_1/sub/ReadVariableOp:0") : f32[48] @ "mlp_1/sub/ReadVariableOp:0"
      %"mlp_1/sub:0" = sub %obs, %"mlp_1/sub/ReadVariableOp:0" : f32[1, 48] @ "mlp_1/sub"
      %"ConstantFolding/mlp_1/truediv_recip:0" = const file("ConstantFolding/mlp_1/truediv_recip:0") : f32[48] @ "ConstantFolding/mlp_1/truediv_recip:0"
      %"mlp_1/truediv:0" = mul %"mlp_1/sub:0", %"ConstantFolding/mlp_1/truediv_recip:0" : f32[1, 48] @ "mlp_1/truediv"
      %"mlp_1/MLP_0_1/hidden_0_1/Cast/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_0_1/Cast/ReadVariableOp:0") : f32[48, 512] @ "mlp_1/MLP_0_1/hidden_0_1/Cast/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_0_1/BiasAdd/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_0_1/BiasAdd/ReadVariableOp:0") : f32[512] @ "mlp_1/MLP_0_1/hidden_0_1/BiasAdd/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_0_1/MatMul_Gemm__6:0" = linear %"mlp_1/truediv:0", %"mlp_1/MLP_0_1/hidden_0_1/Cast/ReadVariableOp:0", %"mlp_1/MLP_0_1/hidden_0_1/BiasAdd/ReadVariableOp:0" : f32[1, 512] @ "mlp_1/MLP_0_1/hidden_0_1/MatMul_Gemm__6"
      %"mlp_1/MLP_0_1/hidden_0_1/Sigmoid:0" = sigmoid %"mlp_1/MLP_0_1/hidden_0_1/MatMul_Gemm__6:0" : f32[1, 512] @ "mlp_1/MLP_0_1/hidden_0_1/Sigmoid"
      %"mlp_1/MLP_0_1/hidden_0_1/mul_1:0" = mul %"mlp_1/MLP_0_1/hidden_0_1/MatMul_Gemm__6:0", %"mlp_1/MLP_0_1/hidden_0_1/Sigmoid:0" : f32[1, 512] @ "mlp_1/MLP_0_1/hidden_0_1/mul_1"
      %"mlp_1/MLP_0_1/hidden_1_1/Cast/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_1_1/Cast/ReadVariableOp:0") : f32[512, 256] @ "mlp_1/MLP_0_1/hidden_1_1/Cast/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_1_1/BiasAdd/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_1_1/BiasAdd/ReadVariableOp:0") : f32[256] @ "mlp_1/MLP_0_1/hidden_1_1/BiasAdd/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_1_1/MatMul_Gemm__7:0" = linear %"mlp_1/MLP_0_1/hidden_0_1/mul_1:0", %"mlp_1/MLP_0_1/hidden_1_1/Cast/ReadVariableOp:0", %"mlp_1/MLP_0_1/hidden_1_1/BiasAdd/ReadVariableOp:0" : f32[1, 256] @ "mlp_1/MLP_0_1/hidden_1_1/MatMul_Gemm__7"
      %"mlp_1/MLP_0_1/hidden_1_1/Sigmoid:0" = sigmoid %"mlp_1/MLP_0_1/hidden_1_1/MatMul_Gemm__7:0" : f32[1, 256] @ "mlp_1/MLP_0_1/hidden_1_1/Sigmoid"
      %"mlp_1/MLP_0_1/hidden_1_1/mul_1:0" = mul %"mlp_1/MLP_0_1/hidden_1_1/MatMul_Gemm__7:0", %"mlp_1/MLP_0_1/hidden_1_1/Sigmoid:0" : f32[1, 256] @ "mlp_1/MLP_0_1/hidden_1_1/mul_1"
      %"mlp_1/MLP_0_1/hidden_2_1/Cast/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_2_1/Cast/ReadVariableOp:0") : f32[256, 128] @ "mlp_1/MLP_0_1/hidden_2_1/Cast/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_2_1/BiasAdd/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_2_1/BiasAdd/ReadVariableOp:0") : f32[128] @ "mlp_1/MLP_0_1/hidden_2_1/BiasAdd/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_2_1/MatMul_Gemm__8:0" = linear %"mlp_1/MLP_0_1/hidden_1_1/mul_1:0", %"mlp_1/MLP_0_1/hidden_2_1/Cast/ReadVariableOp:0", %"mlp_1/MLP_0_1/hidden_2_1/BiasAdd/ReadVariableOp:0" : f32[1, 128] @ "mlp_1/MLP_0_1/hidden_2_1/MatMul_Gemm__8"
      %"mlp_1/MLP_0_1/hidden_2_1/Sigmoid:0" = sigmoid %"mlp_1/MLP_0_1/hidden_2_1/MatMul_Gemm__8:0" : f32[1, 128] @ "mlp_1/MLP_0_1/hidden_2_1/Sigmoid"
      %"mlp_1/MLP_0_1/hidden_2_1/mul_1:0" = mul %"mlp_1/MLP_0_1/hidden_2_1/MatMul_Gemm__8:0", %"mlp_1/MLP_0_1/hidden_2_1/Sigmoid:0" : f32[1, 128] @ "mlp_1/MLP_0_1/hidden_2_1/mul_1"
      %"mlp_1/MLP_0_1/hidden_3_1/Cast/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_3_1/Cast/ReadVariableOp:0") : f32[128, 24] @ "mlp_1/MLP_0_1/hidden_3_1/Cast/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_3_1/BiasAdd/ReadVariableOp:0" = const file("mlp_1/MLP_0_1/hidden_3_1/BiasAdd/ReadVariableOp:0") : f32[24] @ "mlp_1/MLP_0_1/hidden_3_1/BiasAdd/ReadVariableOp:0"
      %"mlp_1/MLP_0_1/hidden_3_1/MatMul_Gemm__9:0" = linear %"mlp_1/MLP_0_1/hidden_2_1/mul_1:0", %"mlp_1/MLP_0_1/hidden_3_1/Cast/ReadVariableOp:0", %"mlp_1/MLP_0_1/hidden_3_1/BiasAdd/ReadVariableOp:0" : f32[1, 24] @ "mlp_1/MLP_0_1/hidden_3_1/MatMul_Gemm__9"
      %"mlp_1/split:0" = slice %"mlp_1/MLP_0_1/hidden_3_1/MatMul_Gemm__9:0" {start = [0, 0], len = [1, 12]} : f32[1, 12] @ "mlp_1/split"
      %continuous_actions = tanh %"mlp_1/split:0" : f32[1, 12] @ "mlp_1/Tanh"
    }
    "#);
}

#[test]
fn shape_arithmetic_disappears() {
    insta::assert_snapshot!(text::print(&policy("berkeley/bhl_policy_video.onnx").graph), @r#"
    graph @torch_jit(%"onnx::Gemm_0": f32[1, 45]) -> (%53) {batch = 0} {
      %estimator.0.weight = const file("estimator.0.weight") : f32[45, 256] @ "estimator.0.weight"
      %estimator.0.bias = const file("estimator.0.bias") : f32[256] @ "estimator.0.bias"
      %"/estimator/estimator.0/Gemm_output_0" = linear %"onnx::Gemm_0", %estimator.0.weight, %estimator.0.bias : f32[1, 256] @ "/estimator/estimator.0/Gemm"
      %"/estimator/estimator.1/Elu_output_0" = elu %"/estimator/estimator.0/Gemm_output_0" {alpha = 1.0} : f32[1, 256] @ "/estimator/estimator.1/Elu"
      %estimator.2.weight = const file("estimator.2.weight") : f32[256, 256] @ "estimator.2.weight"
      %estimator.2.bias = const file("estimator.2.bias") : f32[256] @ "estimator.2.bias"
      %"/estimator/estimator.2/Gemm_output_0" = linear %"/estimator/estimator.1/Elu_output_0", %estimator.2.weight, %estimator.2.bias : f32[1, 256] @ "/estimator/estimator.2/Gemm"
      %"/estimator/estimator.1_1/Elu_output_0" = elu %"/estimator/estimator.2/Gemm_output_0" {alpha = 1.0} : f32[1, 256] @ "/estimator/estimator.1_1/Elu"
      %estimator.4.weight = const file("estimator.4.weight") : f32[256, 35] @ "estimator.4.weight"
      %estimator.4.bias = const file("estimator.4.bias") : f32[35] @ "estimator.4.bias"
      %"/estimator/estimator.4/Gemm_output_0" = linear %"/estimator/estimator.1_1/Elu_output_0", %estimator.4.weight, %estimator.4.bias : f32[1, 35] @ "/estimator/estimator.4/Gemm"
      %"/Slice_output_0" = slice %"/estimator/estimator.4/Gemm_output_0" {start = [0, 0], len = [1, 3]} : f32[1, 3] @ "/Slice"
      %"/Slice_1_output_0" = slice %"/estimator/estimator.4/Gemm_output_0" {start = [0, 3], len = [1, 32]} : f32[1, 32] @ "/Slice_1"
      %"/Abs_output_0" = abs %"/Slice_1_output_0" : f32[1, 32] @ "/Abs"
      %"/Constant_8_output_0" = const [2.0] : f32[] @ "/Constant_8"
      %"/Pow_output_0" = pow %"/Abs_output_0", %"/Constant_8_output_0" : f32[1, 32] @ "/Pow"
      %"/ReduceSum_output_0" = reduce_sum %"/Pow_output_0" {axes = [1], keep_dims} : f32[1, 1] @ "/ReduceSum"
      %"/Constant_10_output_0" = const [0.5] : f32[] @ "/Constant_10"
      %"/Pow_1_output_0" = pow %"/ReduceSum_output_0", %"/Constant_10_output_0" : f32[1, 1] @ "/Pow_1"
      %"/Clip_output_0" = clip %"/Pow_1_output_0" {min = 1e-12, max = inf} : f32[1, 1] @ "/Clip"
      %"/Expand_output_0" = expand %"/Clip_output_0" : f32[1, 32] @ "/Expand"
      %"/Div_output_0" = div %"/Slice_1_output_0", %"/Expand_output_0" : f32[1, 32] @ "/Div"
      %"/Concat_output_0" = concat %"onnx::Gemm_0", %"/Slice_output_0", %"/Div_output_0" {axis = 1} : f32[1, 80] @ "/Concat"
      %actor.0.weight = const file("actor.0.weight") : f32[80, 256] @ "actor.0.weight"
      %actor.0.bias = const file("actor.0.bias") : f32[256] @ "actor.0.bias"
      %"/actor/actor.0/Gemm_output_0" = linear %"/Concat_output_0", %actor.0.weight, %actor.0.bias : f32[1, 256] @ "/actor/actor.0/Gemm"
      %"/actor/actor.1/Elu_output_0" = elu %"/actor/actor.0/Gemm_output_0" {alpha = 1.0} : f32[1, 256] @ "/actor/actor.1/Elu"
      %actor.2.weight = const file("actor.2.weight") : f32[256, 256] @ "actor.2.weight"
      %actor.2.bias = const file("actor.2.bias") : f32[256] @ "actor.2.bias"
      %"/actor/actor.2/Gemm_output_0" = linear %"/actor/actor.1/Elu_output_0", %actor.2.weight, %actor.2.bias : f32[1, 256] @ "/actor/actor.2/Gemm"
      %"/actor/actor.1_1/Elu_output_0" = elu %"/actor/actor.2/Gemm_output_0" {alpha = 1.0} : f32[1, 256] @ "/actor/actor.1_1/Elu"
      %actor.4.weight = const file("actor.4.weight") : f32[256, 256] @ "actor.4.weight"
      %actor.4.bias = const file("actor.4.bias") : f32[256] @ "actor.4.bias"
      %"/actor/actor.4/Gemm_output_0" = linear %"/actor/actor.1_1/Elu_output_0", %actor.4.weight, %actor.4.bias : f32[1, 256] @ "/actor/actor.4/Gemm"
      %"/actor/actor.1_2/Elu_output_0" = elu %"/actor/actor.4/Gemm_output_0" {alpha = 1.0} : f32[1, 256] @ "/actor/actor.1_2/Elu"
      %actor.6.weight = const file("actor.6.weight") : f32[256, 12] @ "actor.6.weight"
      %actor.6.bias = const [0.06727826, 0.03345266, 0.075940885, 0.3304689, -0.2340423, 0.019733913, -0.034151483, -0.059044033, -0.008025673, 0.28195918, -0.30611852, 0.00017491993] : f32[12] @ "actor.6.bias"
      %53 = linear %"/actor/actor.1_2/Elu_output_0", %actor.6.weight, %actor.6.bias : f32[1, 12] @ "/actor/actor.6/Gemm"
    }
    "#);
}

#[test]
fn provenance_is_that_of_the_file() {
    let imported = policy("hopper/hopper_expert.onnx");
    insta::assert_snapshot!(
        format!("{} opset {} by {}, {} bytes", imported.sha256, imported.opset, imported.producer, imported.size_bytes),
        @"56229e78fbaea35ad83c6156787067d40959b3137549d5a5da1ecf712f0d0157 opset 20 by pytorch 2.15.0+cu132, 21933 bytes"
    );
    assert_eq!(imported.notes, [""; 0]);
}
