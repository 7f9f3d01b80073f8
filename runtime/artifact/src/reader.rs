//! Reads a file in place.

use std::ops::Range;

use prost::Message;

use crate::{
    ArtifactError,
    file::{HEADER_BYTES, Header, KNOWN_FEATURES, READER_VERSION, align, sha256},
    schema::{Layout, Manifest},
    validate,
};

/// A checked file. Sections stay where they are.
#[derive(Debug)]
pub struct Artifact<'a> {
    bytes: &'a [u8],
    manifest: Manifest,
    ranges: Vec<Range<usize>>,
}

impl<'a> Artifact<'a> {
    /// Checks a file completely: versions, checksums, and that no step can leave
    /// its tensors and sections or make an accumulator wrap.
    ///
    /// # Errors
    ///
    /// [`ArtifactError`], which names the damaged or contradictory part.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ArtifactError> {
        Self::parse_with(bytes, &mut |range| bytes.get(range).map(sha256))
    }

    /// As [`Artifact::parse`], for a mapped file that is larger than memory:
    /// `digest` gives the SHA-256 of some bytes of it, and can read them without
    /// making them part of this process; nothing if they cannot be read.
    ///
    /// # Errors
    ///
    /// As [`Artifact::parse`].
    pub fn parse_with(
        bytes: &'a [u8],
        digest: &mut dyn FnMut(Range<usize>) -> Option<[u8; 32]>,
    ) -> Result<Self, ArtifactError> {
        let header = Header::decode(bytes)?;
        // The header has checked that both lie in the file.
        let manifest_offset = usize::try_from(header.manifest_offset)
            .map_err(|_| ArtifactError::invalid("header", "the manifest lies beyond the address space"))?;
        let encoded = bytes.get(manifest_offset..).unwrap_or_default();
        if sha256(encoded) != header.manifest_sha256 {
            return Err(ArtifactError::Checksum("the manifest".to_owned()));
        }
        let manifest = Manifest::decode(encoded)?;
        if manifest.min_reader > READER_VERSION {
            return Err(ArtifactError::Version { needed: manifest.min_reader, supported: READER_VERSION });
        }
        check_features(&manifest, &KNOWN_FEATURES)?;
        let ranges = section_ranges(bytes, &manifest, manifest_offset, digest)?;
        let artifact = Self { bytes, manifest, ranges };
        validate::check(&artifact)?;
        Ok(artifact)
    }

    /// What the file says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of a section.
    pub fn section(&self, index: u32) -> Option<&'a [u8]> {
        self.bytes.get(self.section_range(index)?)
    }

    /// Where a section lies in the file.
    pub fn section_range(&self, index: u32) -> Option<Range<usize>> {
        self.ranges.get(index as usize).cloned()
    }

    /// The text of a kernel section.
    pub fn wgsl(&self, index: u32) -> Option<&'a str> {
        let section = self.manifest.sections.get(index as usize)?;
        (section.layout() == Layout::Wgsl).then(|| std::str::from_utf8(self.section(index)?).ok())?
    }
}

/// Refuses what a reader that knows these features cannot do justice to.
fn check_features(manifest: &Manifest, known: &[&str]) -> Result<(), ArtifactError> {
    let unknown = manifest.required_features.iter().filter(|feature| !known.contains(&feature.as_str()));
    let unknown: Vec<String> = unknown.cloned().collect();
    if unknown.is_empty() { Ok(()) } else { Err(ArtifactError::Features(unknown)) }
}

/// Checks that the sections fill the file between header and manifest in the one
/// way there is, and that their contents are those that were written.
fn section_ranges(
    bytes: &[u8],
    manifest: &Manifest,
    manifest_offset: usize,
    digest: &mut dyn FnMut(Range<usize>) -> Option<[u8; 32]>,
) -> Result<Vec<Range<usize>>, ArtifactError> {
    let mut ranges = Vec::with_capacity(manifest.sections.len());
    let mut names = std::collections::BTreeSet::new();
    let mut end = HEADER_BYTES;
    for section in &manifest.sections {
        let item = || format!("section `{}`", section.name);
        if !names.insert(section.name.as_str()) {
            return Err(ArtifactError::invalid(item(), "the name appears twice"));
        }
        let start = padded_end(bytes, end, manifest_offset)?;
        if section.offset != start as u64 {
            return Err(ArtifactError::invalid(item(), format!("starts at {}, expected {start}", section.offset)));
        }
        end = usize::try_from(section.len)
            .ok()
            .and_then(|len| start.checked_add(len))
            .filter(|&end| end <= manifest_offset)
            .ok_or_else(|| ArtifactError::invalid(item(), format!("{} bytes do not fit", section.len)))?;
        if digest(start..end).is_none_or(|sha256| section.sha256 != sha256) {
            return Err(ArtifactError::Checksum(item()));
        }
        ranges.push(start..end);
    }
    if padded_end(bytes, end, manifest_offset)? != manifest_offset {
        return Err(ArtifactError::invalid("header", "the manifest does not follow the last section"));
    }
    Ok(ranges)
}

/// The aligned offset after `end`, if only zeros lie between.
fn padded_end(bytes: &[u8], end: usize, limit: usize) -> Result<usize, ArtifactError> {
    let start = align(end).filter(|&start| start <= limit);
    let padding = start.and_then(|start| bytes.get(end..start));
    match (start, padding) {
        (Some(start), Some(padding)) if padding.iter().all(|&byte| byte == 0) => Ok(start),
        _ => Err(ArtifactError::invalid(
            "padding",
            format!("the bytes after {end} are not zeros up to a multiple of 64"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::CHUNK_FEATURE;

    #[test]
    fn readers_from_before_chunks_refuse_them_instead_of_giving_out_whole_chunks() {
        let manifest = Manifest { required_features: vec![CHUNK_FEATURE.to_owned()], ..Manifest::default() };
        let error = check_features(&manifest, &["repeat"]).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("the file needs features that this reader does not have: chunk"));
        assert!(check_features(&manifest, &KNOWN_FEATURES).is_ok());
    }
}
