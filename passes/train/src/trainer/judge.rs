//! Errors of actions on held-out rows: what decides which parameters are kept.

use std::collections::BTreeMap;

use qail_ir::{
    Graph, TensorType,
    interp::{Interpreter, Tensor},
};

use super::TrainError;
use crate::{
    batches::{Column, Rows},
    forward::Forward,
    metrics::ActionError,
};

/// Held-out rows and who judges on them.
pub(super) struct Judge {
    pub(super) student: Forward,
    pub(super) rows: Rows,
    /// Actions of the full-precision policy.
    pub(super) reference: Column,
    pub(super) action: String,
}

impl Judge {
    pub(super) fn errors(&mut self, elements: &[Vec<f32>]) -> Result<(ActionError, Option<ActionError>), TrainError> {
        self.student.set(elements)?;
        let actions = self.student.run(&self.rows.observations, &[&self.action])?;
        let actions = actions.into_iter().next().ok_or_else(|| TrainError::NoOutput { name: self.action.clone() })?;
        let mut teacher = ActionError::new();
        teacher.add(&actions.data, &self.reference.data);
        let expert = self.rows.actions.as_ref().map(|expert| {
            let mut error = ActionError::new();
            error.add(&actions.data, &expert.data);
            error
        });
        Ok((teacher, expert))
    }
}

/// The actions of the full-precision policy by the interpreter, which the
/// report of a build uses too.
pub(super) fn reference(teacher: &Graph, rows: &Rows, action: &str) -> Result<Column, TrainError> {
    let judge = Interpreter::new(teacher)?;
    let types: Vec<(String, TensorType)> =
        teacher.inputs().iter().map(|&id| (teacher.node(id).name.clone(), teacher.ty(id.value()).clone())).collect();
    let mut out = Column { name: action.to_owned(), row_len: 0, data: Vec::new() };
    for index in 0..rows.n_rows() {
        let mut inputs = BTreeMap::new();
        for (name, ty) in &types {
            let column = rows.observations.iter().find(|column| column.name == *name);
            let column = column.ok_or_else(|| TrainError::NoColumn { name: name.clone() })?;
            inputs.insert(name.clone(), tensor(ty, column.row(index)));
        }
        let outputs = judge.run(&inputs)?;
        let action = outputs.get(action).and_then(Tensor::as_f32);
        let action = action.ok_or_else(|| TrainError::NoOutput { name: out.name.clone() })?;
        out.row_len = action.len();
        out.data.extend_from_slice(action);
    }
    Ok(out)
}

/// One row as an input of a graph at batch 1.
fn tensor(ty: &TensorType, row: &[f32]) -> Tensor {
    match ty.elem {
        qail_ir::Elem::Plain(qail_ir::DType::F32) => Tensor::f32(ty.shape.clone(), row.to_vec()),
        _ => Tensor::ints(ty.clone(), row.iter().map(|&x| x as i64).collect()),
    }
}
