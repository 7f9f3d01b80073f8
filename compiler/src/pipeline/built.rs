//! The file of an artifact: it grows on disk, section by section, is read back,
//! and stays aside until somebody puts it into its place.

use std::{fs::File, io::BufWriter, path::Path};

use qail_artifact::{Artifact, Manifest, WriteError, Writer};
use qail_codegen::Plan;
use qail_runtime::ArtifactBytes;

use super::{Observer, PipelineError, Quantized};
use crate::files::{self, Aside, sha256_of_part};

/// Bytes that gather before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// An artifact and what it was made from.
#[derive(Debug)]
pub struct Built {
    /// The file, mapped.
    pub bytes: ArtifactBytes,
    /// What it says.
    pub manifest: Manifest,
    /// The model.
    pub quantized: Quantized,
    /// Where it is; nothing once it is in its place.
    aside: Option<Aside>,
}

impl Built {
    /// Puts the file into its place, whole or not at all. Done again, it copies
    /// the file.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub fn persist(&mut self, path: &Path) -> Result<(), files::WriteError> {
        match self.aside.take() {
            Some(aside) => aside.persist(path),
            None => files::write_atomic(path, &self.bytes),
        }
    }
}

/// A file whose sections are written, without a manifest.
pub(super) struct Growing {
    aside: Aside,
    writer: Writer<BufWriter<File>>,
}

impl Growing {
    /// Writes the sections of a plan.
    ///
    /// # Errors
    /// Constants that cannot be read, a file that cannot be written.
    pub(super) fn new(plan: &Plan, target: Option<&Path>, observer: &mut dyn Observer) -> Result<Self, PipelineError> {
        let aside = Aside::new(target)?;
        let file = aside.file().try_clone().map_err(WriteError::Io)?;
        let mut writer = Writer::to(BufWriter::with_capacity(BUFFER_BYTES, file))?;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let all = plan.n_bytes();
        plan.write(&mut writer, &mut |done| observer.progress("write", size(done), size(all)))?;
        Ok(Self { aside, writer })
    }

    /// Writes the manifest, in place of the one before, and maps the file. No map
    /// of it may be in use.
    ///
    /// # Errors
    /// A manifest that is too large, a file that cannot be written.
    pub(super) fn seal(&mut self, manifest: Manifest) -> Result<ArtifactBytes, PipelineError> {
        let len = self.writer.seal(manifest)?;
        self.aside.file().set_len(len).map_err(WriteError::Io)?;
        Ok(ArtifactBytes::open(self.aside.path())?)
    }

    /// The finished file, read back: one that a runtime would refuse fails here.
    ///
    /// # Errors
    /// As [`Growing::seal`], and files that their reader refuses.
    pub(super) fn finish(mut self, manifest: Manifest, quantized: Quantized) -> Result<Built, PipelineError> {
        let bytes = self.seal(manifest)?;
        // Checksums are taken past the map, whose pages would count as memory.
        let mut digest = |range| sha256_of_part(self.aside.file(), range).ok();
        let artifact = Artifact::parse_with(&bytes, &mut digest).map_err(WriteError::Refused)?;
        let manifest = artifact.manifest().clone();
        Ok(Built { bytes, manifest, quantized, aside: Some(self.aside) })
    }
}
