//! Files: results are written aside first, then renamed, so that nobody ever
//! sees or is left with half a file; inputs are told apart by their SHA-256.

use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// A file that could not be written; whatever stood there before still stands.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// A file without a name of its own yet. It disappears unless it is
/// [put into its place](Aside::persist).
#[derive(Debug)]
pub struct Aside(tempfile::NamedTempFile);

impl Aside {
    /// An empty file in the folder of `target`, which can be renamed to it; in
    /// the folder of temporary files without one.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn new(target: Option<&Path>) -> Result<Self, WriteError> {
        let folder = target.map_or_else(std::env::temp_dir, |target| folder_of(target).to_owned());
        let file = tempfile::NamedTempFile::new_in(&folder);
        file.map(Self).map_err(|source| WriteError { path: target.map_or(folder, Path::to_owned), source })
    }

    /// The open file.
    pub fn file(&self) -> &std::fs::File {
        self.0.as_file()
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts the file where it belongs, in place of what stood there. A file from
    /// another file system is copied beside it first.
    ///
    /// # Errors
    /// A place that cannot be written; the file is lost then.
    pub fn persist(self, path: &Path) -> Result<(), WriteError> {
        let failed = |source| WriteError { path: path.to_owned(), source };
        let here = if self.0.path().parent() == Some(folder_of(path)) {
            self
        } else {
            let beside = Self::new(Some(path))?;
            std::fs::copy(self.0.path(), beside.0.path()).map_err(failed)?;
            beside
        };
        let finish = || -> std::io::Result<()> {
            here.file().sync_all()?;
            // A temporary file is private; what the user asked for is an ordinary one.
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                here.file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
            }
            here.0.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        finish().map_err(failed)
    }
}

/// Writes a whole file, or nothing.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let aside = Aside::new(Some(path))?;
    aside.file().write_all(bytes).map_err(|source| WriteError { path: path.to_owned(), source })?;
    aside.persist(path)
}

/// Tries whether [`write_atomic`] could write a file there, and leaves nothing.
pub fn check_writable(path: &Path) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    tempfile::NamedTempFile::new_in(folder_of(path)).map(|_| ()).map_err(failed)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// SHA-256 of a file, or of the files of a folder in the order of their names,
/// in hexadecimal.
///
/// For a file it is what `sha256sum` prints, so that a user can find the file
/// again. It has its own pass over the file: those who read arrays take them in
/// their own order, and only as far as they need them.
pub fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
    }
    let mut hash = Sha256::new();
    for file in files.iter().filter(|file| file.is_file()) {
        hash_all(&mut hash, &mut std::fs::File::open(file)?)?;
    }
    Ok(hex(&hash.finalize()))
}

/// Hashes all that can be read, block by block.
fn hash_all(hash: &mut Sha256, reader: &mut impl Read) -> std::io::Result<()> {
    let mut block = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut block)?;
        if n == 0 {
            return Ok(());
        }
        hash.update(block.get(..n).unwrap_or_default());
    }
}

/// SHA-256 of part of an open file, whose position it moves.
pub fn sha256_of_part(mut file: &std::fs::File, range: std::ops::Range<usize>) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    file.seek(SeekFrom::Start(range.start as u64))?;
    hash_all(&mut hash, &mut file.take(range.len() as u64))?;
    Ok(hash.finalize().into())
}

/// Bytes in hexadecimal, small letters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unwritable_place_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let error = write_atomic(&folder.path().join("missing/a.bin"), b"three").unwrap_err();
        assert!(error.to_string().starts_with("cannot write"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_from_elsewhere_is_put_into_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let aside = Aside::new(None).unwrap();
        aside.file().write_all(b"far").unwrap();
        let (far, range) = (aside.path().to_owned(), 1..3);
        let expected: [u8; 32] = Sha256::digest(b"ar").into();
        assert_eq!(sha256_of_part(aside.file(), range).unwrap(), expected);
        aside.persist(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"far");
        assert!(!far.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 1);
    }

    #[test]
    fn a_folder_is_hashed_in_the_order_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("b", "c"), ("a", "ab")] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        // The test vector of FIPS 180-4 for "abc".
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of(folder.path()).unwrap(), expected);
        std::fs::write(folder.path().join("a"), "abc").unwrap();
        assert_eq!(sha256_of(&folder.path().join("a")).unwrap(), expected);
    }
}
