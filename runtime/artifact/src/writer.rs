//! Makes a file in memory. The same sections and manifest in the same order give
//! the same bytes.

use std::collections::BTreeMap;

use prost::Message;

use crate::{
    Artifact, WriteError,
    file::{HEADER_BYTES, Header, MAX_MANIFEST_BYTES, align, sha256},
    schema::{Layout, Manifest, Section},
};

/// Collects sections, then writes the manifest behind them.
///
/// ```
/// use qail_artifact::{Artifact, Layout, Manifest, Writer};
///
/// let mut writer = Writer::new();
/// let bias = writer.add_section("fc1.bias", Layout::I32, &7i32.to_le_bytes())?;
/// let file = writer.finish(Manifest { name: "policy".into(), ..Manifest::default() })?;
/// assert_eq!(Artifact::parse(&file)?.section(bias), Some(&[7, 0, 0, 0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Writer {
    /// The file so far; the header stays zero until the end.
    bytes: Vec<u8>,
    sections: Vec<Section>,
    /// Index of a section by its contents.
    by_content: BTreeMap<([u8; 32], i32), u32>,
    /// Index of a section by its name.
    by_name: BTreeMap<String, u32>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty file.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; HEADER_BYTES],
            sections: Vec::new(),
            by_content: BTreeMap::new(),
            by_name: BTreeMap::new(),
        }
    }

    /// Adds a section and returns its index. Bytes that were added before in the
    /// same layout are not stored again: the first name stays.
    ///
    /// # Errors
    ///
    /// If another section has the name, or if there are too many sections.
    pub fn add_section(&mut self, name: &str, layout: Layout, bytes: &[u8]) -> Result<u32, WriteError> {
        let sha256 = sha256(bytes);
        if let Some(&index) = self.by_content.get(&(sha256, layout as i32)) {
            return Ok(index);
        }
        if self.by_name.contains_key(name) {
            return Err(WriteError::DuplicateName(name.to_owned()));
        }
        let index = u32::try_from(self.sections.len()).map_err(|_| WriteError::TooManySections)?;
        self.pad();
        self.sections.push(Section {
            name: name.to_owned(),
            layout: layout as i32,
            offset: self.bytes.len() as u64,
            len: bytes.len() as u64,
            sha256: sha256.to_vec(),
        });
        self.bytes.extend_from_slice(bytes);
        self.by_content.insert((sha256, layout as i32), index);
        self.by_name.insert(name.to_owned(), index);
        Ok(index)
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first section.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Writes the manifest, whose sections are those added here, and reads the
    /// file back: a plan that a runtime would refuse fails here, at compile time.
    ///
    /// # Errors
    ///
    /// If the manifest is too large, or if the finished file is not valid.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<Vec<u8>, WriteError> {
        manifest.sections = std::mem::take(&mut self.sections);
        manifest.min_reader = manifest.min_reader.max(1);
        self.pad();
        let manifest_offset = self.bytes.len();
        let encoded = manifest.encode_to_vec();
        let manifest_len = u32::try_from(encoded.len())
            .ok()
            .filter(|_| encoded.len() <= MAX_MANIFEST_BYTES)
            .ok_or(WriteError::ManifestSize { found: encoded.len(), limit: MAX_MANIFEST_BYTES })?;
        self.bytes.extend_from_slice(&encoded);
        let header = Header {
            manifest_len,
            manifest_offset: manifest_offset as u64,
            file_len: self.bytes.len() as u64,
            manifest_sha256: sha256(&encoded),
        };
        for (to, from) in self.bytes.iter_mut().zip(header.encode()) {
            *to = from;
        }
        Artifact::parse(&self.bytes).map_err(WriteError::Refused)?;
        Ok(self.bytes)
    }

    fn pad(&mut self) {
        if let Some(len) = align(self.bytes.len()) {
            self.bytes.resize(len, 0);
        }
    }
}
