//! Files of every version of the format that this reader accepts.
//!
//! `data/v1.qail` was written by the first version and must stay readable. To
//! add the file of a new version, set `QAILC_BLESS=1` once.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Mlp, Precision};
use qail_artifact::{Artifact, FORMAT_VERSION};

fn written_now() -> Vec<u8> {
    Mlp::new(&[5, 9, 8, 3], 1, Precision::W4A8, 1).file
}

#[test]
fn the_present_format_is_the_stored_one() {
    let path = format!("{}/tests/data/v{FORMAT_VERSION}.qail", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("QAILC_BLESS").is_some() {
        std::fs::write(&path, written_now()).unwrap();
    }
    // A change of the bytes is a change of the format: raise FORMAT_VERSION and
    // READER_VERSION, and keep the old file.
    assert!(std::fs::read(&path).unwrap() == written_now(), "{path} differs from what is written now");
}

#[test]
fn files_of_version_1_are_read() {
    let file = include_bytes!("data/v1.qail");
    let artifact = Artifact::parse(file).unwrap();
    assert_eq!(artifact.manifest().min_reader, 1);
    assert_eq!(artifact.manifest().entries[0].steps.len(), 6);
}
