//! Damaged files: truncated, flipped, and flipped with the checksums put right.

use prost::Message;
use qail_artifact::Manifest;
use sha2::{Digest, Sha256};

use super::Rng;

/// One to four changed bytes in a range.
pub fn damage(bytes: &mut [u8], rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len().max(1) as u64) as usize;
        let Some(byte) = bytes.get_mut(at) else { return };
        *byte = match rng.below(4) {
            0 => *byte ^ (1 << rng.below(8)),
            1 => rng.bits() as u8,
            2 => byte.wrapping_add(1),
            _ => [0x00, 0x7F, 0x80, 0xFF][rng.below(4) as usize],
        };
    }
}

/// Where the manifest of a valid file begins.
fn manifest_offset(file: &[u8]) -> usize {
    u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize
}

/// Puts a manifest behind the sections of a file, with a right header.
pub fn with_manifest(file: &[u8], encoded: &[u8]) -> Vec<u8> {
    let mut out = file[..manifest_offset(file)].to_vec();
    out.extend_from_slice(encoded);
    let len = out.len() as u64;
    out[12..16].copy_from_slice(&(encoded.len() as u32).to_le_bytes());
    out[24..32].copy_from_slice(&len.to_le_bytes());
    out[32..64].copy_from_slice(&Sha256::digest(encoded));
    out
}

/// The manifest of a valid file.
pub fn manifest(file: &[u8]) -> Manifest {
    Manifest::decode(&file[manifest_offset(file)..]).unwrap()
}

/// A file whose manifest was changed by `change`, checksums right.
pub fn edited(file: &[u8], change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut manifest = manifest(file);
    change(&mut manifest);
    with_manifest(file, &manifest.encode_to_vec())
}

/// Damages the encoded manifest, or a section, and puts the checksums right.
pub fn consistent(file: &[u8], rng: &mut Rng) -> Vec<u8> {
    let offset = manifest_offset(file);
    if rng.below(4) > 0 {
        let mut encoded = file[offset..].to_vec();
        damage(&mut encoded, rng);
        return with_manifest(file, &encoded);
    }
    let mut file = file.to_vec();
    let mut manifest = manifest(&file);
    let n_sections = manifest.sections.len() as u64;
    let section = &mut manifest.sections[rng.below(n_sections) as usize];
    let range = section.offset as usize..(section.offset + section.len) as usize;
    damage(&mut file[range.clone()], rng);
    section.sha256 = Sha256::digest(&file[range]).to_vec();
    with_manifest(&file, &manifest.encode_to_vec())
}
