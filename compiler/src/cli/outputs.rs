//! What a command writes is none of the files that it reads.
//!
//! Asked before any work is done, and of files, not of names: a link, another
//! spelling of the path and a file in a folder of recordings are found as well.

use std::path::{Path, PathBuf};

use super::{Exit, Failure};
use crate::{files, frontend, qir};

/// Files that a command reads, each with what it is.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    files: Vec<(&'static str, PathBuf)>,
    /// Files that may refer to constants in others.
    models: Vec<PathBuf>,
}

impl Inputs {
    /// Another file, or a folder of arrays, if there is one.
    pub(super) fn and<'a>(mut self, what: &'static str, files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        self.files.extend(files.into_iter().map(|path| (what, path.clone())));
        self
    }

    /// A model, and what lies beside it: constants in other files.
    pub(super) fn and_models<'a>(self, what: &'static str, models: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let mut inputs = self.and(what, models);
        let fresh: Vec<PathBuf> =
            inputs.files.iter().filter(|(other, _)| *other == what).map(|(_, path)| path.clone()).collect();
        inputs.models.extend(fresh);
        inputs
    }

    /// What the file at `output` is to the command.
    fn role(&self, output: &Path) -> Option<&'static str> {
        // What is not there cannot be read, and most outputs are not.
        if !output.exists() {
            return None;
        }
        let is_same = |path: &Path| {
            let arrays = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut arrays = arrays.filter(|file| file.extension().is_some_and(|extension| extension == "npy"));
            files::is_same_file(path, output) || arrays.any(|file| files::is_same_file(&file, output))
        };
        let file = self.files.iter().find(|(_, path)| is_same(path)).map(|(what, _)| *what);
        file.or_else(|| {
            let mut beside = self.models.iter().flat_map(|model| {
                let is_text = model.extension().is_some_and(|extension| extension == "qir");
                if is_text { vec![qir::weights_path(model)] } else { frontend::external_files(model) }
            });
            beside.any(|path| files::is_same_file(&path, output)).then_some("constants of the model")
        })
    }
}

/// Refuses outputs that would take the place of an input or of each other, and
/// those that cannot be written. Each comes with the flag that names it.
pub(super) fn check(outputs: &[(&str, &Path)], inputs: &Inputs) -> Result<(), Failure> {
    for (index, (flag, output)) in outputs.iter().enumerate() {
        let shown = output.display();
        if let Some(what) = inputs.role(output) {
            let message = format!("`{shown}` is an input of this command ({what}); choose another {flag}");
            return Err(Failure::plain(Exit::Usage, message));
        }
        let mut earlier = outputs.iter().take(index);
        if let Some((other, _)) = earlier.find(|(_, path)| files::is_same_place(path, output)) {
            let message = format!("`{shown}` is what {other} writes as well; choose another {flag}");
            return Err(Failure::plain(Exit::Usage, message));
        }
        files::check_writable(output)
            .map_err(|error| Failure::new(Exit::InvalidInput, format!("cannot write `{shown}`"), &error))?;
    }
    Ok(())
}
