//! Constants in files beside the model.
//!
//! A location is a relative path below the model's folder, and the file there
//! is a regular file with one name: no `..`, no absolute path, no symbolic
//! link on the way, no second hard link. Each of these was once a way to make
//! a model carry away a file of the machine that loads it (CVE-2024-27318,
//! 2025-51480, 2026-27489, 2026-34446). What was checked is what is opened:
//! the identity of the open file is compared with that of the checked path.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

use super::{
    error::shown,
    load,
    proto::{AttributeProto, GraphProto, TensorProto},
    region::Region,
};

/// Value of `TensorProto::data_location` for constants in other files.
pub(super) const EXTERNAL: i32 = 1;

/// A constant in another file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("initializer `{tensor}`, location `{location}`: {reason}")]
pub struct ExternalError {
    /// The constant.
    pub tensor: String,
    /// The location as the model writes it.
    pub location: String,
    /// What is wrong.
    pub reason: ExternalReason,
}

/// What is wrong with the location of a constant.
#[derive(Debug, thiserror::Error)]
pub enum ExternalReason {
    /// The model was given as bytes, or a location is missing.
    #[error("the model has no folder to look in")]
    NoFolder,
    /// No location is given.
    #[error("no location is given")]
    NoLocation,
    /// The path starts at a root, a drive or a home.
    #[error("absolute paths are refused")]
    Absolute,
    /// The path leaves the folder.
    #[error("paths with `..` are refused")]
    Parent,
    /// Part of the path is a symbolic link.
    #[error("symbolic links are refused")]
    SymbolicLink,
    /// The file has another name.
    #[error("files with several hard links are refused")]
    HardLink,
    /// A folder, a device, a pipe.
    #[error("not a regular file")]
    NotAFile,
    /// The file changed between check and use.
    #[error("the file changed while it was opened")]
    Changed,
    /// A number that is none.
    #[error("`{key}` is `{value}`, not a number")]
    NotANumber {
        /// `offset` or `length`.
        key: &'static str,
        /// What is written there.
        value: String,
    },
    /// The range leaves the file.
    #[error("bytes {offset}..{end} are asked for, the file has {size}")]
    Range {
        /// First byte.
        offset: u64,
        /// One past the last byte; saturates.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// The file cannot be read.
    #[error("{0}")]
    Io(io::Error),
}

/// The files beside a model, each opened once.
#[derive(Debug)]
pub(super) struct Folder {
    base: Option<PathBuf>,
    files: BTreeMap<String, Region>,
}

impl Folder {
    /// Files below `base`; without one every location is refused.
    pub(super) fn new(base: Option<&Path>) -> Self {
        Self { base: base.map(Path::to_owned), files: BTreeMap::new() }
    }

    /// The bytes of a constant whose `data_location` is [`EXTERNAL`].
    pub(super) fn resolve(&mut self, tensor: &TensorProto) -> Result<Region, ExternalError> {
        let value =
            |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
        let location = value("location").unwrap_or_default();
        self.range(location, value("offset"), value("length")).map_err(|reason| ExternalError {
            tensor: shown(&tensor.name),
            location: shown(location),
            reason,
        })
    }

    /// Every file used so far, by location.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &Region)> {
        self.files.iter().map(|(location, file)| (location.as_str(), file))
    }

    fn range(&mut self, location: &str, offset: Option<&str>, length: Option<&str>) -> Result<Region, ExternalReason> {
        let file = self.file(location)?;
        let size = file.len();
        let offset = number("offset", offset)?.unwrap_or(0);
        let length = number("length", length)?.unwrap_or(size.saturating_sub(offset));
        let end = offset.saturating_add(length);
        file.part(offset, end).ok_or(ExternalReason::Range { offset, end, size })
    }

    fn file(&mut self, location: &str) -> Result<Region, ExternalReason> {
        if let Some(file) = self.files.get(location) {
            return Ok(file.clone());
        }
        let base = self.base.as_deref().ok_or(ExternalReason::NoFolder)?;
        let file = Region::whole(open(base, location)?).map_err(ExternalReason::Io)?;
        self.files.insert(location.to_owned(), file.clone());
        Ok(file)
    }
}

/// The files beside a model that it refers to, in no way checked. None of a file
/// that is no model: reading it says why.
pub fn external_files(model: &Path) -> Vec<PathBuf> {
    let decoded = load::read(model).and_then(load::decode);
    let mut locations = Vec::new();
    if let Some(graph) = decoded.ok().and_then(|model| model.graph) {
        locations_in(&graph, &mut locations);
    }
    locations.sort();
    locations.dedup();
    locations.into_iter().map(|location| model.with_file_name(location)).collect()
}

/// Nesting is bounded: it was when the file was scanned.
fn locations_in(graph: &GraphProto, found: &mut Vec<String>) {
    let attributes: Vec<&AttributeProto> = graph.node.iter().flat_map(|node| &node.attribute).collect();
    let of_nodes = attributes.iter().flat_map(|attribute| attribute.t.as_deref().into_iter().chain(&attribute.tensors));
    for tensor in graph.initializer.iter().chain(of_nodes) {
        let location = tensor.external_data.iter().find(|entry| entry.key == "location");
        found.extend(location.map(|entry| entry.value.clone()));
    }
    for graph in attributes.iter().flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs)) {
        locations_in(graph, found);
    }
}

fn number(key: &'static str, text: Option<&str>) -> Result<Option<u64>, ExternalReason> {
    text.map(|text| text.parse().map_err(|_| ExternalReason::NotANumber { key, value: shown(text) })).transpose()
}

fn open(base: &Path, location: &str) -> Result<File, ExternalReason> {
    if location.is_empty() {
        return Err(ExternalReason::NoLocation);
    }
    // A path written on Windows must not mean something else here.
    if location.contains('\\') || location.contains(':') || location.starts_with('~') {
        return Err(ExternalReason::Absolute);
    }
    let mut path = base.to_owned();
    let mut found = None;
    for component in Path::new(location).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => continue,
            Component::ParentDir => return Err(ExternalReason::Parent),
            Component::RootDir | Component::Prefix(_) => return Err(ExternalReason::Absolute),
        }
        let metadata = fs::symlink_metadata(&path).map_err(ExternalReason::Io)?;
        if metadata.file_type().is_symlink() {
            return Err(ExternalReason::SymbolicLink);
        }
        found = Some(metadata);
    }
    // The type is checked before the file is opened: opening a pipe can block.
    let checked = found.filter(fs::Metadata::is_file).ok_or(ExternalReason::NotAFile)?;
    let file = File::open(&path).map_err(ExternalReason::Io)?;
    same_single_file(&checked, &file.metadata().map_err(ExternalReason::Io)?)?;
    Ok(file)
}

#[cfg(unix)]
fn same_single_file(checked: &fs::Metadata, opened: &fs::Metadata) -> Result<(), ExternalReason> {
    use std::os::unix::fs::MetadataExt;
    if (checked.dev(), checked.ino()) != (opened.dev(), opened.ino()) {
        return Err(ExternalReason::Changed);
    }
    if opened.nlink() > 1 {
        return Err(ExternalReason::HardLink);
    }
    Ok(())
}

// The standard library tells neither identity nor link count elsewhere.
#[cfg(not(unix))]
fn same_single_file(checked: &fs::Metadata, opened: &fs::Metadata) -> Result<(), ExternalReason> {
    if checked.len() != opened.len() { Err(ExternalReason::Changed) } else { Ok(()) }
}
