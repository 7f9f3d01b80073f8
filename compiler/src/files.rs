//! Files: results are written aside first, then renamed, so that nobody ever
//! sees or is left with half a file; inputs are told apart by their SHA-256.
//!
//! Only regular files are read and replaced. A pipe or a device has no end, to
//! open a pipe can wait forever, and what is renamed over a device takes its place.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};

/// Links in a row that are followed, as many as Linux does.
const MAX_LINKS: usize = 40;

/// A file that could not be written; whatever stood there before still stands.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// A file without a name of its own yet. It disappears unless it is
/// [put into its place](Aside::persist).
#[derive(Debug)]
pub struct Aside(tempfile::NamedTempFile, Listed);

/// Every file that is aside, for [`abandon`].
static ASIDE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn aside() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // A list is whole also if a thread panicked that held it.
    ASIDE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of the list, as long as the file is aside.
#[derive(Debug)]
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        aside().remove(&self.0);
    }
}

/// Removes every file that is aside, then ends the process as `end` does. No new
/// file appears meanwhile.
pub fn abandon(end: impl FnOnce()) {
    let mut aside = aside();
    for path in std::mem::take(&mut *aside) {
        // What cannot be removed stays; there is nobody left to tell.
        let _ = std::fs::remove_file(path);
    }
    end();
}

impl Aside {
    /// An empty file in the folder of `target`, which can be renamed to it; in
    /// the folder of temporary files without one.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn new(target: Option<&Path>) -> Result<Self, WriteError> {
        let make = || {
            let folder = match target {
                Some(target) => folder_of(&place_of(target)?).to_owned(),
                None => std::env::temp_dir(),
            };
            let mut aside = aside();
            let file = tempfile::NamedTempFile::new_in(folder)?;
            aside.insert(file.path().to_owned());
            Ok::<_, io::Error>(file)
        };
        let listed = |file: tempfile::NamedTempFile| {
            let listed = Listed(file.path().to_owned());
            Self(file, listed)
        };
        let named = || target.map_or_else(std::env::temp_dir, Path::to_owned);
        make().map(listed).map_err(|source| WriteError { path: named(), source })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.0.as_file()
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.1.0
    }

    /// Puts the file where it belongs, in place of the file that stood there or
    /// that a link there leads to. A file from another file system is copied beside
    /// it first.
    ///
    /// # Errors
    /// A place that cannot be written; the file is lost then.
    pub fn persist(self, path: &Path) -> Result<(), WriteError> {
        let failed = |source| WriteError { path: path.to_owned(), source };
        let place = place_of(path).map_err(failed)?;
        let here = if self.path().parent() == Some(folder_of(&place)) {
            self
        } else {
            let beside = Self::new(Some(path))?;
            std::fs::copy(self.path(), beside.path()).map_err(failed)?;
            beside
        };
        let finish = || -> io::Result<()> {
            here.file().sync_all()?;
            // A temporary file is private; what the user asked for is an ordinary one.
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                here.file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
            }
            here.0.persist(&place).map_err(|error| error.error)?;
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
    let check = || {
        if !std::fs::metadata(folder_of(&place_of(path)?))?.is_dir() {
            return Err(io::Error::from(ErrorKind::NotADirectory));
        }
        Ok(())
    };
    check().map_err(|source| WriteError { path: path.to_owned(), source })?;
    Aside::new(Some(path)).map(|_| ())
}

/// Where a file of this name is written: links are followed, so that they stay
/// and what they lead to is replaced.
///
/// # Errors
/// Anything but a regular file that stands there already.
fn place_of(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() => place = folder_of(&place).join(std::fs::read_link(&place)?),
            Ok(found) if found.is_file() => return Ok(place),
            Ok(found) if found.is_dir() => return Err(ErrorKind::IsADirectory.into()),
            Ok(_) => {
                let why = "what stands there is not a regular file; choose another name";
                return Err(io::Error::new(ErrorKind::InvalidInput, why));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(place),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "too many symbolic links in a row"))
}

/// Opens a regular file, to read it.
///
/// # Errors
/// Files that are not there, and folders, pipes and devices.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Asked before the file is opened: opening a pipe can block.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// All of a regular file.
///
/// # Errors
/// As [`open_regular`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// All of a regular file, or nothing if it has more than `limit` bytes.
///
/// # Errors
/// As [`open_regular`].
fn read_limited(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    // What the system says about the size need not be true, of `/proc` for example.
    open_regular(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit))
}

/// A text, or nothing if it has more than `limit` bytes.
///
/// # Errors
/// As [`open_regular`], and bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<Option<String>> {
    let text = read_limited(path, limit)?.map(String::from_utf8).transpose();
    text.map_err(|_| io::Error::new(ErrorKind::InvalidData, "the text is not valid UTF-8"))
}

/// True if two names lead to one file, over links of any kind.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    let identity = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
    };
    // The standard library tells no identity elsewhere.
    #[cfg(not(unix))]
    let identity = |path: &Path| std::fs::canonicalize(path);
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// True if two names lead to one file once it is written.
pub fn is_same_place(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        let place = place_of(path)?;
        Ok::<_, io::Error>((std::fs::canonicalize(folder_of(&place))?, place.file_name().map(ToOwned::to_owned)))
    };
    is_same_file(one, other) || matches!((place(one), place(other)), (Ok(one), Ok(other)) if one == other)
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
pub fn sha256_of(path: &Path) -> io::Result<String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort();
    }
    let mut hash = Sha256::new();
    for file in files.iter().filter(|file| file.is_file()) {
        hash_all(&mut hash, &mut File::open(file)?)?;
    }
    Ok(hex(&hash.finalize()))
}

/// Hashes all that can be read, block by block.
fn hash_all(hash: &mut Sha256, reader: &mut impl Read) -> io::Result<()> {
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
pub fn sha256_of_part(mut file: &File, range: std::ops::Range<usize>) -> std::io::Result<[u8; 32]> {
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

    #[cfg(unix)]
    #[test]
    fn links_stay_and_only_regular_files_are_read_and_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("b", at("a")).unwrap();
        symlink("c", at("b")).unwrap();
        for bytes in [b"one", b"two"] {
            write_atomic(&at("a"), bytes).unwrap();
            assert_eq!(std::fs::read(at("c")).unwrap(), bytes);
        }
        assert!(at("a").is_symlink() && at("b").is_symlink());
        std::fs::hard_link(at("c"), at("d")).unwrap();
        assert!(is_same_file(&at("a"), &at("d")) && !is_same_file(&at("a"), &at("none")));
        let dotted = folder.path().join("./none");
        assert!(is_same_place(&at("none"), &dotted) && !is_same_place(&at("none"), &at("other")));
        symlink("loop", at("loop")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        for (name, why) in [("loop", "too many"), ("pipe", "not a regular file"), (".", "directory")] {
            let error = check_writable(&at(name)).unwrap_err().source.to_string();
            assert!(error.contains(why), "{name}: {error}");
            assert!(write_atomic(&at(name), b"x").is_err() && open_regular(&at(name)).is_err(), "{name}");
        }
        assert_eq!(read_text(&at("c"), 3).unwrap().as_deref(), Some("two"));
        assert_eq!(read_text(&at("c"), 2).unwrap(), None);
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
