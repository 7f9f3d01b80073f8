//! Files: results are written aside first, then renamed, so that nobody ever
//! sees or is left with half a file; inputs are told apart by their SHA-256.

use std::{
    io::{Read, Write},
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

/// Writes a whole file, or nothing.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        // A temporary file is private; what the user asked for is an ordinary one.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| WriteError { path: path.to_owned(), source })
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
    let mut block = vec![0; 1 << 16];
    for file in files.iter().filter(|file| file.is_file()) {
        let mut reader = std::fs::File::open(file)?;
        loop {
            let n = reader.read(&mut block)?;
            if n == 0 {
                break;
            }
            hash.update(block.get(..n).unwrap_or_default());
        }
    }
    Ok(hex(&hash.finalize()))
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
