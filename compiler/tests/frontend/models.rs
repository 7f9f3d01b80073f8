//! Small models, built with the messages that the frontend reads.

use std::collections::BTreeMap;

use prost::Message;
use qail_ir::{Graph, interp, text};
use qailc::frontend::{
    ImportError, ImportOptions, Imported, import_bytes,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
    },
};

/// A model with one input `x` and one output `y`.
pub(crate) struct Tiny {
    pub(crate) model: ModelProto,
}

impl Tiny {
    pub(crate) fn new(opset: i64, x: &[i64]) -> Self {
        let graph = GraphProto {
            name: "tiny".to_owned(),
            input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, x)],
            output: vec![ValueInfoProto { name: "y".to_owned(), r#type: None }],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
        Self { model: ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() } }
    }

    pub(crate) fn graph(&mut self) -> &mut GraphProto {
        self.model.graph.get_or_insert_default()
    }

    /// `inputs` and `outputs` are separated by spaces; `_` is left out.
    pub(crate) fn node(mut self, op: &str, inputs: &str, outputs: &str, attributes: Vec<AttributeProto>) -> Self {
        self.graph().node.push(node(op, inputs, outputs, attributes));
        self
    }

    pub(crate) fn f32(mut self, name: &str, dims: &[i64], elements: &[f32]) -> Self {
        self.graph().initializer.push(TensorProto::f32(name, dims, elements));
        self
    }

    pub(crate) fn i64(mut self, name: &str, elements: &[i64]) -> Self {
        self.graph().initializer.push(TensorProto::i64(name, [elements.len() as i64], elements));
        self
    }

    pub(crate) fn tensor(mut self, tensor: TensorProto) -> Self {
        self.graph().initializer.push(tensor);
        self
    }

    pub(crate) fn input(mut self, info: ValueInfoProto) -> Self {
        self.graph().input.push(info);
        self
    }

    pub(crate) fn output(mut self, name: &str) -> Self {
        self.graph().output.push(ValueInfoProto { name: name.to_owned(), r#type: None });
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    pub(crate) fn import(&self) -> Result<Imported, ImportError> {
        import_bytes(self.bytes(), None, &ImportOptions::default())
    }

    /// Text form of the graph.
    pub(crate) fn qir(&self) -> String {
        let imported = self.import().unwrap();
        qail_ir::verify(&imported.graph).unwrap();
        text::print(&imported.graph)
    }

    /// `y` for `x = -n/2 .., step 1`, or any other output.
    pub(crate) fn run(&self, output: &str) -> Vec<f64> {
        run(&self.import().unwrap().graph, output)
    }

    pub(crate) fn error(&self) -> String {
        self.import().unwrap_err().to_string()
    }
}

pub(crate) fn node(op: &str, inputs: &str, outputs: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    let names =
        |list: &str| list.split_whitespace().map(|name| if name == "_" { "" } else { name }.to_owned()).collect();
    NodeProto {
        op_type: op.to_owned(),
        input: names(inputs),
        output: names(outputs),
        attribute,
        ..NodeProto::default()
    }
}

/// Runs a graph on inputs that count up from `-(n / 2)`.
pub(crate) fn run(graph: &Graph, output: &str) -> Vec<f64> {
    let inputs = graph.inputs().iter().map(|&id| {
        let node = graph.node(id);
        let ty = graph.ty(id.value()).clone();
        let n = ty.n_elements() as i64;
        let count: Vec<i64> = (0..n).map(|i| i - n / 2).collect();
        let tensor = if ty.is_f32() {
            interp::Tensor::f32(ty.shape, count.iter().map(|&x| x as f32).collect())
        } else {
            interp::Tensor::ints(ty, count.iter().map(|&x| x + n / 2).collect())
        };
        (node.name.clone(), tensor)
    });
    let outputs = interp::run(graph, &inputs.collect::<BTreeMap<_, _>>()).unwrap();
    outputs[output].to_f64()
}
