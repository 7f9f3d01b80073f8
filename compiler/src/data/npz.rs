//! An archive of arrays, opened: which arrays, of which type and shape.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use flate2::Crc;

use super::{
    ArrayInfo, DataError, RowReader,
    archive::{self, ArchiveError},
    header::{self, HeaderError},
    rows::{Checked, open_bytes},
};
use crate::files::open_regular;

/// Most arrays in a folder.
const MAX_FILES: usize = 4096;

/// An npz file, a folder of `.npy` files, or one `.npy` file.
///
/// Opening reads the headers alone. Every array has been checked: its shape
/// takes exactly the bytes that are there (before inflating, for members of a
/// zip archive, and within what deflate can reach).
#[derive(Clone, Debug)]
pub struct Npz {
    path: PathBuf,
    arrays: BTreeMap<String, Array>,
}

#[derive(Clone, Debug)]
struct Array {
    info: ArrayInfo,
    place: Place,
}

/// Where the bytes of an npy array lie.
#[derive(Clone, Debug)]
struct Place {
    file: PathBuf,
    start: u64,
    stored_bytes: u64,
    size_bytes: u64,
    deflated: bool,
    crc32: Option<u32>,
}

impl Npz {
    /// Opens a file or folder and reads the header of every array in it.
    /// Members that are not arrays are left out.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Read { path: path.to_owned(), source };
        let places = if fs::metadata(path).map_err(failed)?.is_dir() {
            places_in_folder(path)?
        } else if path.extension().is_some_and(|extension| extension == "npy") {
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            BTreeMap::from([(key, place_of_file(path)?)])
        } else {
            places_in_archive(path)?
        };
        let mut arrays = BTreeMap::new();
        for (key, place) in places {
            let (_, info, _) = open_array(path, &key, &place)?;
            arrays.insert(key, Array { info, place });
        }
        Ok(Self { path: path.to_owned(), arrays })
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the arrays, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// True if there is an array of that name.
    pub fn contains(&self, key: &str) -> bool {
        self.arrays.contains_key(key)
    }

    /// Type and shape of an array.
    pub fn info(&self, key: &str) -> Result<&ArrayInfo, DataError> {
        Ok(&self.array(key)?.info)
    }

    /// Streams the rows of an array from the first one on.
    pub fn rows(&self, key: &str) -> Result<RowReader, DataError> {
        let array = self.array(key)?;
        let (bytes, info, crc) = open_array(&self.path, key, &array.place)?;
        // The file may have changed since it was opened.
        if info != array.info {
            return Err(self.damaged(key, "it changed while it was read"));
        }
        Ok(RowReader::new(self.path.clone(), key.to_owned(), info, bytes, crc, array.place.crc32))
    }

    /// Rows `rows` of an array as `f32`. A deflated member is inflated from its
    /// beginning each time: stream with [`Npz::rows`] what is read in order.
    pub fn read_f32(&self, key: &str, rows: Range<usize>) -> Result<Vec<f32>, DataError> {
        let mut out = Vec::new();
        self.rows_from(key, &rows)?.next_f32(rows.len(), &mut out)?;
        Ok(out)
    }

    /// Rows `rows` of an array as `i64`; floats are truncated.
    pub fn read_i64(&self, key: &str, rows: Range<usize>) -> Result<Vec<i64>, DataError> {
        let mut out = Vec::new();
        self.rows_from(key, &rows)?.next_i64(rows.len(), &mut out)?;
        Ok(out)
    }

    fn rows_from(&self, key: &str, rows: &Range<usize>) -> Result<RowReader, DataError> {
        let n_rows = self.info(key)?.n_rows();
        if rows.start > rows.end || rows.end > n_rows {
            let (path, key) = (self.path.clone(), key.to_owned());
            return Err(DataError::Range { path, key, n_rows, start: rows.start, end: rows.end });
        }
        let mut reader = self.rows(key)?;
        reader.skip(rows.start)?;
        Ok(reader)
    }

    fn array(&self, key: &str) -> Result<&Array, DataError> {
        self.arrays.get(key).ok_or_else(|| {
            let found: Vec<String> = self.keys().take(20).map(|key| format!("`{key}`")).collect();
            DataError::Missing { path: self.path.clone(), key: key.to_owned(), found: found.join(", ") }
        })
    }

    fn damaged(&self, key: &str, what: &str) -> DataError {
        DataError::Array { path: self.path.clone(), key: key.to_owned(), what: what.to_owned() }
    }
}

/// Opens an array behind its header and checks that its shape takes the bytes
/// that are there.
fn open_array(path: &Path, key: &str, place: &Place) -> Result<(super::rows::Bytes, ArrayInfo, Crc), DataError> {
    let failed = |source| DataError::Read { path: place.file.clone(), source };
    let (path, key) = (path.to_owned(), key.to_owned());
    let file = open_regular(&place.file).map_err(failed)?;
    let mut bytes = open_bytes(file, place.start, place.stored_bytes, place.deflated).map_err(failed)?;
    let mut crc = Crc::new();
    let (info, header_bytes) = match header::read(&mut Checked { bytes: &mut bytes, crc: &mut crc }) {
        Ok(header) => header,
        Err(HeaderError::Io(source)) if place.deflated => {
            return Err(DataError::Array { path, key, what: format!("it does not inflate ({source})") });
        }
        Err(HeaderError::Io(source)) => return Err(failed(source)),
        Err(HeaderError::Damaged(what)) => return Err(DataError::Array { path, key, what }),
        Err(HeaderError::Type(found)) => return Err(DataError::Type { path, key, found }),
        Err(HeaderError::FortranOrder) => return Err(DataError::FortranOrder { path, key }),
    };
    let expected = info.size_bytes().and_then(|size| size.checked_add(header_bytes));
    if expected != Some(place.size_bytes) {
        let there = place.size_bytes.saturating_sub(header_bytes);
        let what = format!("shape {:?} does not take the {there} bytes that are there", info.shape);
        return Err(DataError::Array { path, key, what });
    }
    Ok((bytes, info, crc))
}

fn places_in_archive(path: &Path) -> Result<BTreeMap<String, Place>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let file = open_regular(path).map_err(failed)?;
    let members = archive::members(&file).map_err(|error| match error {
        ArchiveError::Io(source) => failed(source),
        ArchiveError::Broken(what) => DataError::Archive { path: path.to_owned(), what },
    })?;
    let mut places = BTreeMap::new();
    for member in members {
        let Some(key) = member.name.strip_suffix(".npy") else { continue };
        let place = Place {
            file: path.to_owned(),
            start: member.start,
            stored_bytes: member.stored_bytes,
            size_bytes: member.size_bytes,
            deflated: member.deflated,
            crc32: Some(member.crc32),
        };
        places.insert(key.to_owned(), place);
    }
    Ok(places)
}

fn places_in_folder(path: &Path) -> Result<BTreeMap<String, Place>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let mut places = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let (Some(stem), Some("npy")) = (stem, file.extension().and_then(|extension| extension.to_str())) else {
            continue;
        };
        if places.len() == MAX_FILES {
            return Err(DataError::Archive { path: path.to_owned(), what: "it holds too many arrays".to_owned() });
        }
        places.insert(stem.to_owned(), place_of_file(&file)?);
    }
    Ok(places)
}

fn place_of_file(path: &Path) -> Result<Place, DataError> {
    let len = fs::metadata(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?.len();
    Ok(Place { file: path.to_owned(), start: 0, stored_bytes: len, size_bytes: len, deflated: false, crc32: None })
}
