//! Arenas and tensors: places, sizes, strides.

use crate::{
    ArtifactError,
    file::MAX_SCRATCH_BYTES,
    schema::{Manifest, Place, Storage, Tensor},
};

/// Alignment of tensors and arenas in bytes.
const ALIGN: u64 = 256;
/// Most axes of a tensor.
const MAX_RANK: usize = 8;

/// A checked tensor in the integers of this machine.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) storage: Storage,
    /// All axes but the last.
    pub(super) rows: usize,
    /// The last axis, 1 for a scalar.
    pub(super) cols: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// `rows * cols`.
    pub(super) elements: usize,
    pub(super) code_offset: i32,
    pub(super) place: Place,
    arena: u32,
    start: u64,
    end: u64,
}

impl TensorInfo {
    /// True if the two share bytes.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.arena == other.arena && self.start < other.end && other.start < self.end
    }

    /// Elements with padding: what strides of copies range over.
    pub(super) fn stored(&self) -> usize {
        self.rows.saturating_mul(self.stride)
    }
}

/// Checks arenas and tensors.
pub(super) fn check(manifest: &Manifest) -> Result<Vec<TensorInfo>, ArtifactError> {
    let mut total = 0u64;
    for (index, arena) in manifest.arenas.iter().enumerate() {
        let item = || format!("arena {index}");
        if Place::try_from(arena.place).is_err() || !arena.size.is_multiple_of(ALIGN) {
            return Err(ArtifactError::invalid(item(), "has an unknown place or a size that is no multiple of 256"));
        }
        total = total.checked_add(arena.size).filter(|&total| total <= MAX_SCRATCH_BYTES).ok_or_else(|| {
            ArtifactError::invalid(item(), format!("more than {MAX_SCRATCH_BYTES} bytes of scratch memory"))
        })?;
    }
    manifest.tensors.iter().map(|tensor| check_tensor(manifest, tensor)).collect()
}

fn check_tensor(manifest: &Manifest, tensor: &Tensor) -> Result<TensorInfo, ArtifactError> {
    let error = |problem: &str| ArtifactError::invalid(format!("tensor `{}`", tensor.name), problem);
    let storage = Storage::try_from(tensor.storage).map_err(|_| error("has an unknown storage"))?;
    let (element_bytes, is_code) = match storage {
        Storage::Unspecified => return Err(error("has no storage")),
        Storage::F32 | Storage::I32 => (4, false),
        Storage::I8 => (1, true),
        Storage::I16 => (2, true),
        Storage::U8 => (1, false),
        Storage::I64 => (8, false),
    };
    if tensor.shape.len() > MAX_RANK || tensor.shape.contains(&0) {
        return Err(error("has more than 8 axes or an empty one"));
    }
    let (cols, outer) = tensor.shape.split_last().map_or((1, &[][..]), |(&cols, outer)| (cols, outer));
    let rows = outer.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent));
    let used = rows.and_then(|rows| rows.checked_mul(tensor.stride)?.checked_mul(element_bytes));
    let (Some(rows), Some(used)) = (rows, used) else { return Err(error("is too large")) };
    let stride_ok =
        if is_code { tensor.stride >= cols && tensor.stride.is_multiple_of(32) } else { tensor.stride == cols };
    if !stride_ok {
        return Err(error("codes need a stride that is a multiple of 32, other numbers one that is the last axis"));
    }
    if tensor.size < used || !tensor.size.is_multiple_of(4) || !tensor.offset.is_multiple_of(ALIGN) {
        return Err(error("has a size or an offset that does not fit its shape"));
    }
    let offset_ok = tensor.code_offset == 0 || (tensor.code_offset == 128 && storage == Storage::I8);
    if !offset_ok {
        return Err(error("has a code offset that is neither 0 nor, for bytes, 128"));
    }
    let arena =
        manifest.arenas.get(tensor.arena as usize).ok_or_else(|| error("lives in an arena that does not exist"))?;
    let end = tensor.offset.checked_add(tensor.size).filter(|&end| end <= arena.size);
    let end = end.ok_or_else(|| error("leaves its arena"))?;
    let narrow = |value: u64| usize::try_from(value).map_err(|_| error("is too large"));
    let (rows, cols) = (narrow(rows)?, narrow(cols)?);
    Ok(TensorInfo {
        name: tensor.name.clone(),
        storage,
        rows,
        cols,
        stride: narrow(tensor.stride)?,
        elements: rows.checked_mul(cols).ok_or_else(|| error("is too large"))?,
        code_offset: tensor.code_offset,
        place: arena.place(),
        arena: tensor.arena,
        start: tensor.offset,
        end,
    })
}
