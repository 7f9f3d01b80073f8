//! The container: what surrounds sections and manifest.
//!
//! ```text
//! offset  size  what
//!      0     8  magic: 0x89 'Q' 'A' 'I' 'L' CR LF 0x1A
//!      8     4  format version, little-endian as everything
//!     12     4  length of the manifest, at most MAX_MANIFEST_BYTES
//!     16     8  offset of the manifest, a multiple of 64
//!     24     8  length of the file
//!     32    32  SHA-256 of the manifest
//!     64     .  sections in order, each at the next multiple of 64, zeros between
//!      .     .  manifest, at the next multiple of 64; nothing after it
//! ```
//! The manifest is last because section offsets are part of it. There is one way
//! to lay out given sections, so every byte is covered by a checksum or must
//! have a known value. The magic begins with a byte that is not ASCII and holds
//! both kinds of line end: a transfer in text mode damages it visibly.

use sha2::{Digest, Sha256};

use crate::{
    ArtifactError,
    schema::{CHUNK_FEATURE, GROUPS_FEATURE, REPEAT_FEATURE},
};

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"\x89QAIL\r\n\x1a";
/// Version of the container.
pub const FORMAT_VERSION: u32 = 1;
/// Version of this reader; a manifest names the oldest one that understands it.
/// 2 has the steps of convolutional and transformer policies, 3 has states and repeats.
pub const READER_VERSION: u32 = 3;
/// Features that this reader knows by name.
pub const KNOWN_FEATURES: [&str; 3] = [GROUPS_FEATURE, REPEAT_FEATURE, CHUNK_FEATURE];
/// Alignment of sections and manifest in bytes.
pub const SECTION_ALIGN: usize = 64;
/// Largest manifest. An empty message takes 2 bytes in the file and up to 250
/// decoded, so this also bounds what a hostile manifest can make us allocate.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Largest sum of all arenas.
pub const MAX_SCRATCH_BYTES: u64 = 4 << 30;
/// Size of the header in bytes.
pub(crate) const HEADER_BYTES: usize = 64;

/// The header, without magic and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the manifest.
    pub(crate) manifest_len: u32,
    /// First byte of the manifest.
    pub(crate) manifest_offset: u64,
    /// Bytes of the file.
    pub(crate) file_len: u64,
    /// Checksum of the manifest.
    pub(crate) manifest_sha256: [u8; 32],
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let parts: [&[u8]; 6] = [
            &MAGIC,
            &FORMAT_VERSION.to_le_bytes(),
            &self.manifest_len.to_le_bytes(),
            &self.manifest_offset.to_le_bytes(),
            &self.file_len.to_le_bytes(),
            &self.manifest_sha256,
        ];
        for (to, from) in out.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        out
    }

    /// Reads and checks the header against the length of the file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ArtifactError> {
        if bytes.first_chunk() != Some(&MAGIC) {
            return Err(ArtifactError::Magic);
        }
        let found = bytes.len() as u64;
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(ArtifactError::Length { found, expected: HEADER_BYTES as u64 });
        };
        let version = u32::from_le_bytes(array(header, 8));
        if version != FORMAT_VERSION {
            return Err(ArtifactError::Version { needed: version, supported: FORMAT_VERSION });
        }
        let header = Self {
            manifest_len: u32::from_le_bytes(array(header, 12)),
            manifest_offset: u64::from_le_bytes(array(header, 16)),
            file_len: u64::from_le_bytes(array(header, 24)),
            manifest_sha256: array(header, 32),
        };
        if header.file_len != found {
            return Err(ArtifactError::Length { found, expected: header.file_len });
        }
        if header.manifest_len as usize > MAX_MANIFEST_BYTES {
            let (found, limit) = (u64::from(header.manifest_len), MAX_MANIFEST_BYTES as u64);
            return Err(ArtifactError::ManifestSize { found, limit });
        }
        if header.manifest_offset.checked_add(u64::from(header.manifest_len)) != Some(header.file_len) {
            return Err(ArtifactError::invalid("header", "the manifest does not end with the file"));
        }
        Ok(header)
    }
}

/// `N` bytes from `start`; zeros where the header ends before.
fn array<const N: usize>(header: &[u8; HEADER_BYTES], start: usize) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(header.iter().skip(start)) {
        *to = *from;
    }
    out
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The next multiple of [`SECTION_ALIGN`], if there is one.
pub(crate) fn align(offset: usize) -> Option<usize> {
    offset.checked_next_multiple_of(SECTION_ALIGN)
}
