//! Sections of a plan: held, or made of a constant part by part when they are
//! written, so that a model need not fit into memory.

use std::{fmt, ops::Range, sync::Arc};

use qail_artifact::{WriteError, pack, schema::Layout};
use qail_ir::Constant;
use rayon::prelude::*;

use crate::CodegenError;

/// Sections up to this size are made at once.
const HELD_BYTES: u64 = 64 << 10;
/// Elements that are read at once.
const PART: usize = 1 << 18;
/// Columns of codes that one thread packs at once: whole tiles.
const PACKED_COLUMNS: usize = 64 * pack::TILE_N;

/// Takes the bytes of a section, part by part.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), WriteError> + 'a;

/// Bytes of a section, with what the file says about them.
#[derive(Clone, Debug, PartialEq)]
pub struct SectionData {
    /// Name, unique in the plan.
    pub name: String,
    /// How the bytes are laid out.
    pub layout: Layout,
    /// The bytes.
    pub bytes: SectionBytes,
}

/// Bytes of a section.
#[derive(Clone)]
pub struct SectionBytes(Inner);

#[derive(Clone)]
enum Inner {
    Held(Vec<u8>),
    /// Bytes that a constant becomes, and how many.
    Made {
        constant: Arc<Constant>,
        form: Form,
        len: u64,
    },
}

/// What becomes of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its elements as `f32`.
    Floats,
    /// A float matrix with padded rows, [`Layout::F32Rows8`].
    FloatRows,
    /// A matrix of codes of at most 8 bits with a sign, packed.
    Codes(Layout),
}

impl From<Vec<u8>> for SectionBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Inner::Held(bytes))
    }
}

impl SectionBytes {
    /// The bytes that a constant becomes for node `node`. Small ones are made
    /// now, large ones when they are written.
    pub(crate) fn of(constant: &Arc<Constant>, form: Form, node: &str) -> Result<Self, CodegenError> {
        let matrix = || match constant.ty.shape[..] {
            [k, n] => Ok((k, n)),
            _ => Err(CodegenError::internal("a packed constant is a matrix")),
        };
        let len = match form {
            Form::Floats => constant.ty.n_elements().checked_mul(4),
            Form::FloatRows => matrix().map(|(k, n)| pack::packed_len(Layout::F32Rows8, k, n))?,
            Form::Codes(layout) => matrix().map(|(k, n)| pack::packed_len(layout, k, n))?,
        };
        let len = len.ok_or_else(|| CodegenError::Pack {
            node: node.to_owned(),
            reason: format!("a constant of type {} is too large", constant.ty),
        })? as u64;
        let made = Self(Inner::Made { constant: constant.clone(), form, len });
        if len > HELD_BYTES {
            return Ok(made);
        }
        Ok(Self(Inner::Held(made.to_vec(node)?)))
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Inner::Held(bytes) => bytes.len() as u64,
            Inner::Made { len, .. } => *len,
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes of section `name` at once.
    ///
    /// # Errors
    ///
    /// As [`SectionBytes::write`].
    pub fn to_vec(&self, name: &str) -> Result<Vec<u8>, CodegenError> {
        let mut all = Vec::new();
        self.write(name, &mut |part| {
            all.extend_from_slice(part);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands the bytes of section `name` on, in order. They are the same every
    /// time, for any number of threads.
    ///
    /// # Errors
    ///
    /// A constant that cannot be read or packed, and what `sink` fails with.
    pub fn write(&self, name: &str, sink: &mut Sink<'_>) -> Result<(), CodegenError> {
        let unread = |source| CodegenError::Const { node: name.to_owned(), source };
        match &self.0 {
            Inner::Held(bytes) => Ok(sink(bytes)?),
            Inner::Made { constant, form: Form::Floats, .. } => {
                let n = constant.ty.n_elements();
                for start in (0..n).step_by(PART) {
                    let range = start..start.saturating_add(PART).min(n);
                    if constant.ty.is_f32() {
                        sink(&constant.read_bytes(range).map_err(unread)?)?;
                    } else {
                        sink(&super::builder::f32_bytes(&constant.read_f32(range).map_err(unread)?))?;
                    }
                }
                Ok(())
            }
            Inner::Made { constant, form: Form::FloatRows, .. } => {
                let &[k, n] = &constant.ty.shape[..] else { return Ok(()) };
                let rows_at_once = (PART / n.max(1)).max(1);
                for start in (0..k).step_by(rows_at_once) {
                    let rows = start..start.saturating_add(rows_at_once).min(k);
                    let elements = constant.read_block_f32(rows.clone(), 0..n).map_err(unread)?;
                    let packed = pack::pack_f32(&elements, rows.len(), n);
                    sink(&packed.map_err(|error| unpacked(name, &error))?)?;
                }
                Ok(())
            }
            Inner::Made { constant, form: Form::Codes(layout), .. } => {
                let &[_, n] = &constant.ty.shape[..] else { return Ok(()) };
                let columns: Vec<Range<usize>> =
                    (0..n).step_by(PACKED_COLUMNS).map(|at| at..at.saturating_add(PACKED_COLUMNS).min(n)).collect();
                for columns in columns.chunks(2 * rayon::current_num_threads()) {
                    let packed: Vec<Vec<u8>> = columns
                        .par_iter()
                        .map(|columns| pack_columns(constant, *layout, columns.clone(), name))
                        .collect::<Result<_, _>>()?;
                    packed.iter().try_for_each(|packed| sink(packed))?;
                }
                Ok(())
            }
        }
    }
}

fn unpacked(node: &str, error: &pack::PackError) -> CodegenError {
    CodegenError::Pack { node: node.to_owned(), reason: error.to_string() }
}

/// Some columns of a matrix of codes, packed: one run of the whole.
fn pack_columns(
    constant: &Constant,
    layout: Layout,
    columns: Range<usize>,
    name: &str,
) -> Result<Vec<u8>, CodegenError> {
    let &[k, _] = &constant.ty.shape[..] else { return Ok(Vec::new()) };
    let n = columns.len();
    let len = pack::packed_len(layout, k, n).ok_or_else(|| unpacked(name, &pack::PackError::TooLarge { k, n }))?;
    let mut out = vec![0; len];
    let rows_at_once = (PART / n.max(1)).max(1);
    for start in (0..k).step_by(rows_at_once) {
        let rows = start..start.saturating_add(rows_at_once).min(k);
        let codes = constant
            .read_block_bytes(rows, columns.clone())
            .map_err(|source| CodegenError::Const { node: name.to_owned(), source })?;
        let codes: Vec<i8> = codes.into_iter().map(|code| code as i8).collect();
        pack::pack_rows(layout, &codes, start, [k, n], &mut out).map_err(|error| unpacked(name, &error))?;
    }
    Ok(out)
}

impl PartialEq for SectionBytes {
    /// True only if both are the same bytes. Bytes that are held and bytes that
    /// are made later are not compared: they count as different.
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Inner::Held(a), Inner::Held(b)) => a == b,
            (
                Inner::Made { constant: a, form: of_a, len: len_a },
                Inner::Made { constant: b, form: of_b, len: len_b },
            ) => {
                let same_form = of_a == of_b && len_a == len_b;
                same_form && (*of_a == Form::Floats || a.ty.shape == b.ty.shape) && a.has_elements_of(b)
            }
            (Inner::Held(_), Inner::Made { .. }) | (Inner::Made { .. }, Inner::Held(_)) => false,
        }
    }
}

impl fmt::Debug for SectionBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Held(bytes) => bytes.fmt(f),
            Inner::Made { constant, form, len } => write!(f, "{len} bytes, {form:?} of {}", constant.ty),
        }
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::{ConstData, QuantScheme, TensorType};

    use super::*;

    fn rand(ty: TensorType) -> Arc<Constant> {
        Arc::new(Constant { ty, data: ConstData::Rand(5) })
    }

    #[test]
    fn what_is_made_later_is_what_packing_all_at_once_gives() {
        for (bits, layout, k, n) in
            [(4, Layout::W4Tile8x32, 300, 1030), (8, Layout::W8Tile8x16, 77, 1500), (4, Layout::W4Tile8x32, 40, 3)]
        {
            let w = rand(TensorType::code(QuantScheme::signed(bits), [k, n]));
            let made = SectionBytes::of(&w, Form::Codes(layout), "w").unwrap();
            let codes: Vec<i8> = w.all_int().unwrap().into_iter().map(|code| code as i8).collect();
            let expected = pack::pack_codes(layout, &codes, k, n).unwrap();
            assert_eq!(made.len(), expected.len() as u64);
            assert!(made.to_vec("w").unwrap() == expected, "{k} x {n} in {bits} bits");
            assert_eq!(matches!(made.0, Inner::Held(_)), k == 40);
        }
        let w = rand(TensorType::f32([700, 999]));
        let elements = w.all_f32().unwrap();
        let floats = SectionBytes::of(&w, Form::Floats, "w").unwrap();
        assert!(floats.to_vec("w").unwrap() == super::super::builder::f32_bytes(&elements));
        let rows = SectionBytes::of(&w, Form::FloatRows, "w").unwrap();
        assert!(rows.to_vec("w").unwrap() == pack::pack_f32(&elements, 700, 999).unwrap());
        assert_eq!(rows.len(), 700 * 1000 * 4);
    }

    #[test]
    fn equal_constants_make_equal_bytes_and_others_do_not() {
        let of = |seed| {
            let ty = TensorType::f32([200, 200]);
            let constant = Constant { ty, data: ConstData::Rand(seed) };
            SectionBytes::of(&Arc::new(constant), Form::Floats, "w").unwrap()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), SectionBytes::from(of(1).to_vec("w").unwrap()));
    }
}
