//! Makes a file, in memory or as it grows on disk. The same sections and manifest
//! in the same order give the same bytes.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Seek, SeekFrom, Write},
};

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    Artifact, WriteError,
    file::{HEADER_BYTES, Header, MAX_MANIFEST_BYTES, SECTION_ALIGN, sha256},
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
pub struct Writer<W = Cursor<Vec<u8>>> {
    /// The file so far; the header stays zero until the end.
    out: W,
    /// Bytes so far, without manifest.
    len: u64,
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
    /// An empty file in memory.
    pub fn new() -> Self {
        let mut out = Cursor::new(vec![0; HEADER_BYTES]);
        out.set_position(HEADER_BYTES as u64);
        Self::with(out)
    }

    /// Writes the manifest, whose sections are those added here, and reads the
    /// file back: a plan that a runtime would refuse fails here, at compile time.
    ///
    /// # Errors
    ///
    /// If the manifest is too large, or if the finished file is not valid.
    pub fn finish(mut self, manifest: Manifest) -> Result<Vec<u8>, WriteError> {
        self.seal(manifest)?;
        let file = self.out.into_inner();
        Artifact::parse(&file).map_err(WriteError::Refused)?;
        Ok(file)
    }
}

impl<W: Write + Seek> Writer<W> {
    /// An empty file that grows in `out`, which is empty and belongs to this
    /// writer alone.
    ///
    /// # Errors
    ///
    /// If `out` cannot be written.
    pub fn to(mut out: W) -> Result<Self, WriteError> {
        out.write_all(&[0; HEADER_BYTES])?;
        Ok(Self::with(out))
    }

    /// Adds a section and returns its index. Bytes that were added before in the
    /// same layout are not stored again: the first name stays.
    ///
    /// # Errors
    ///
    /// If another section has the name, if there are too many sections, or if the
    /// file cannot be written.
    pub fn add_section(&mut self, name: &str, layout: Layout, bytes: &[u8]) -> Result<u32, WriteError> {
        if let Some(&index) = self.by_content.get(&(sha256(bytes), layout as i32)) {
            return Ok(index);
        }
        self.add_parts::<WriteError>(name, layout, |sink| sink(bytes))
    }

    /// Adds a section that nobody has to hold in memory: `parts` hands its bytes
    /// on, part by part. It is stored even if another one has the same contents.
    ///
    /// # Errors
    ///
    /// As [`Writer::add_section`], and what `parts` fails with; the file is of no
    /// use then.
    pub fn add_parts<E: From<WriteError>>(
        &mut self,
        name: &str,
        layout: Layout,
        parts: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), WriteError>) -> Result<(), E>,
    ) -> Result<u32, E> {
        if self.by_name.contains_key(name) {
            return Err(WriteError::DuplicateName(name.to_owned()).into());
        }
        let index = u32::try_from(self.sections.len()).map_err(|_| WriteError::TooManySections)?;
        self.pad().map_err(WriteError::Io)?;
        let (offset, mut hash) = (self.len, Sha256::new());
        parts(&mut |part| {
            hash.update(part);
            self.out.write_all(part)?;
            self.len += part.len() as u64;
            Ok(())
        })?;
        let sha256: [u8; 32] = hash.finalize().into();
        self.sections.push(Section {
            name: name.to_owned(),
            layout: layout as i32,
            offset,
            len: self.len - offset,
            sha256: sha256.to_vec(),
        });
        self.by_content.entry((sha256, layout as i32)).or_insert(index);
        self.by_name.insert(name.to_owned(), index);
        Ok(index)
    }

    /// Writes the manifest, whose sections are those added here, and the header;
    /// returns the length of the file. What lies behind it in `out` is not part
    /// of the file. May be done again with another manifest. Nothing is read
    /// back: that is for whoever holds the file.
    ///
    /// # Errors
    ///
    /// If the manifest is too large or the file cannot be written.
    pub fn seal(&mut self, mut manifest: Manifest) -> Result<u64, WriteError> {
        manifest.sections.clone_from(&self.sections);
        manifest.min_reader = manifest.min_reader.max(1);
        self.pad()?;
        let encoded = manifest.encode_to_vec();
        let manifest_len = u32::try_from(encoded.len())
            .ok()
            .filter(|_| encoded.len() <= MAX_MANIFEST_BYTES)
            .ok_or(WriteError::ManifestSize { found: encoded.len(), limit: MAX_MANIFEST_BYTES })?;
        let file_len = self.len + u64::from(manifest_len);
        let manifest_sha256 = sha256(&encoded);
        let header = Header { manifest_len, manifest_offset: self.len, file_len, manifest_sha256 };
        self.out.write_all(&encoded)?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header.encode())?;
        self.out.seek(SeekFrom::Start(self.len))?;
        self.out.flush()?;
        Ok(file_len)
    }

    /// What the file grows in.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    fn pad(&mut self) -> io::Result<()> {
        let n = self.len.next_multiple_of(SECTION_ALIGN as u64) - self.len;
        let zeros = [0; SECTION_ALIGN];
        self.out.write_all(zeros.get(..n as usize).unwrap_or_default())?;
        self.len += n;
        Ok(())
    }
}

impl<W> Writer<W> {
    /// A writer behind whose header `out` stands.
    fn with(out: W) -> Self {
        Self {
            out,
            len: HEADER_BYTES as u64,
            sections: Vec::new(),
            by_content: BTreeMap::new(),
            by_name: BTreeMap::new(),
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True before the first section.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_is_the_file_in_memory() {
        let manifest = |name: &str| Manifest { name: name.to_owned(), ..Manifest::default() };
        let mut held = Writer::new();
        let mut grown = Writer::to(Cursor::new(Vec::new())).unwrap();
        for (name, bytes) in [("a", &[1, 2, 3, 4][..]), ("b", &[5; 200]), ("c", &[])] {
            held.add_section(name, Layout::I8, bytes).unwrap();
            let parts = |sink: &mut dyn FnMut(&[u8]) -> Result<(), WriteError>| bytes.chunks(3).try_for_each(sink);
            grown.add_parts::<WriteError>(name, Layout::I8, parts).unwrap();
        }
        // Sealed twice: the file is that of the second, shorter manifest.
        grown.seal(manifest("a longer name")).unwrap();
        let len = grown.seal(manifest("policy")).unwrap();
        let grown = &grown.get_ref().get_ref()[..len as usize];
        assert_eq!(grown, held.finish(manifest("policy")).unwrap());
        assert_eq!(Artifact::parse(grown).unwrap().section(0), Some(&[1, 2, 3, 4][..]));
    }
}
