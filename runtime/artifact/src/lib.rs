//! The `.qail` file: schema, packing, reader and writer.
//!
//! - [`schema`] is the manifest: what a file says.
//! - [`pack`] is the one definition of the weight layouts.
//! - [`Writer`] makes a file, [`Artifact`] reads one. Reading checks everything
//!   once: after [`Artifact::parse`] no step can leave its tensors or sections,
//!   and no accumulator can wrap.

mod error;
mod file;
mod operands;
pub mod pack;
mod reader;
pub mod schema;
mod validate;
mod writer;

pub use error::{ArtifactError, WriteError};
pub use file::{
    FORMAT_VERSION, KNOWN_FEATURES, MAGIC, MAX_MANIFEST_BYTES, MAX_SCRATCH_BYTES, READER_VERSION, SECTION_ALIGN,
};
pub use operands::Operands;
pub use reader::Artifact;
pub use schema::{Layout, Manifest, Place, Storage};
pub use validate::MAX_TURNS;
pub use writer::Writer;
