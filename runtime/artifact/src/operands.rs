//! Which tensors and sections a step touches.

use crate::schema::{Step, step};

/// Indices that a step names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// Tensors that are read, with repetitions.
    pub reads: Vec<u32>,
    /// Sections that are read.
    pub sections: Vec<u32>,
    /// The tensor that is written; none for a repeat.
    pub write: Option<u32>,
    /// True if elements of the written tensor may keep their old value.
    pub partial: bool,
}

impl Step {
    /// Tensors and sections of the operation. The steps inside a repeat are not
    /// looked at.
    pub fn operands(&self) -> Operands {
        let mut found = Operands::default();
        match &self.op {
            None => {}
            Some(step::Op::Quantize(op)) => found.set(&[op.x], &[op.factor], op.out),
            Some(step::Op::QLinear(op)) => {
                found.set(&[op.x], &[op.weight, op.bias], op.out);
                if let Some(requantize) = &op.requantize {
                    found.requantize(requantize);
                }
            }
            Some(step::Op::QGroups(op)) => {
                found.set(&[op.x], &[op.weight, op.bias], op.out);
                if let Some(requantize) = &op.requantize {
                    found.requantize(requantize);
                }
            }
            Some(step::Op::Requantize(op)) => {
                found.set(&[op.x], &[], op.out);
                found.requantize(&op.requantize);
            }
            Some(step::Op::Dequantize(op)) => found.set(&[op.x], &[op.scale], op.out),
            Some(step::Op::Linear(op)) => found.set(&[op.x], &[op.weight, op.bias], op.out),
            Some(step::Op::LinearWq(op)) => found.set(&[op.x], &[op.weight, op.scale, op.bias], op.out),
            Some(step::Op::Unary(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::Binary(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.a);
                found.operand(&op.b);
            }
            Some(step::Op::Copy(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
                found.partial = true;
            }
            Some(step::Op::Reduce(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
            }
            Some(step::Op::MatMul(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.a);
                found.operand(&op.b);
            }
            Some(step::Op::Unfold(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
            }
            Some(step::Op::Softmax(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::Normalize(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::Attention(op)) => {
                found.set(&[op.q, op.k, op.v], &[], op.out);
                if let Some(mask) = &op.mask {
                    found.operand(mask);
                }
            }
            Some(step::Op::Rope(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
                found.operand(&op.cos);
                found.operand(&op.sin);
            }
            Some(step::Op::Film(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
                found.operand(&op.scale);
                found.operand(&op.shift);
            }
            Some(step::Op::Compare(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.a);
                found.operand(&op.b);
            }
            Some(step::Op::Where(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.truth);
                found.operand(&op.a);
                found.operand(&op.b);
            }
            Some(step::Op::Gather(op)) => {
                found.set(&[], &[], op.out);
                found.operand(&op.x);
                found.operand(&op.index);
            }
            Some(step::Op::Scatter(op)) => found.set(&[op.x, op.index, op.update], &[], op.out),
            Some(step::Op::Order(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::Scan(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::Cast(op)) => found.set(&[op.x], &[], op.out),
            Some(step::Op::QAdd(op)) => {
                found.set(&[], &[op.m_a], op.out);
                found.operand(&op.a);
                found.operand(&op.b);
            }
            Some(step::Op::Lookup(op)) => {
                found.set(&[], &[op.table], op.out);
                found.operand(&op.x);
            }
            Some(step::Op::Repeat(_)) => {}
        }
        found
    }
}

impl Operands {
    fn set(&mut self, reads: &[u32], sections: &[u32], write: u32) {
        self.reads.extend_from_slice(reads);
        self.sections.extend_from_slice(sections);
        self.write = Some(write);
    }

    fn requantize(&mut self, requantize: &step::Requantize) {
        self.sections.extend([requantize.m, requantize.shift]);
        self.sections.extend(requantize.table);
    }

    fn operand(&mut self, operand: &step::Operand) {
        match operand.source {
            Some(step::Source::Tensor(tensor)) => self.reads.push(tensor),
            Some(step::Source::Section(section)) => self.sections.push(section),
            None => {}
        }
    }
}
