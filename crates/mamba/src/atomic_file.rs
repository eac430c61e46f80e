//! Files that are either written whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Writes a file so that at every moment, a crash or a full disk included, `path` holds either what it held
/// before or all of the new contents (see [`AtomicFile`]).
///
/// # Errors
/// `FILE_NOT_FOUND` (the folder), `DISK_FULL`, `IO_ERROR`; an error that `write` returns likewise.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file).map_err(|source| Error::io("write", &file.path, source))?;
    file.commit()
}

/// A file that is at its place only when [`AtomicFile::commit`] has put it there: a temporary file in the same
/// folder, fsync, rename, fsync of the folder (on Unix; Windows has no such call). Dropped before that, it is removed.
/// A symbolic link at `path` is followed; an existing file's permissions are kept.
pub struct AtomicFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins a file.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND` (the folder), `DISK_FULL`, `IO_ERROR`.
    pub fn create(path: &Path) -> Result<Self> {
        let existing = path.canonicalize();
        let path = existing.as_deref().unwrap_or(path);
        if existing.is_ok() && !path.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is there and is not a file");
            return Err(Error::io("write", path, source));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".node-mamba-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Like any new file, subject to the umask; temporary files are private otherwise.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let folder = folder_of(path);
        let file = builder.tempfile_in(folder).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                Error::FileNotFound { path: folder.to_path_buf(), expected: "a folder to write into".into() }
            }
            _ => Error::io("write", path, source),
        })?;
        Ok(Self { file: BufWriter::new(file), path: path.to_path_buf() })
    }

    /// Where it will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it at its place.
    ///
    /// # Errors
    /// `DISK_FULL`, `IO_ERROR`; what was there before is untouched.
    pub fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        let error = |source| Error::io("write", &path, source);
        let file = file.into_inner().map_err(|failed| error(failed.into_error()))?;
        #[cfg(unix)]
        if let Ok(before) = std::fs::metadata(&path) {
            file.as_file().set_permissions(before.permissions()).map_err(error)?;
        }
        file.as_file().sync_all().map_err(error)?;
        file.persist(&path).map_err(|failed| error(failed.error))?;
        sync_folder(folder_of(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes what was renamed in a folder last (on Unix; Windows has no such call).
///
/// # Errors
/// `IO_ERROR`.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::io("write", folder, source))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        write_atomically(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_failing_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, b"old").unwrap();
        for (kind, code) in [
            (io::ErrorKind::StorageFull, "DISK_FULL"),
            (io::ErrorKind::QuotaExceeded, "DISK_FULL"),
            (io::ErrorKind::Other, "IO_ERROR"),
        ] {
            let error = write_atomically(&path, |out| {
                out.write_all(&[1; 100_000])?;
                Err(kind.into())
            })
            .unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains("a.bin"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(names(folder.path()), ["a.bin"]);
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("none/a.bin"), |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), "FILE_NOT_FOUND");
        assert!(error.to_string().contains("none"), "{error}");
        // A folder in the file's place.
        fs::create_dir(folder.path().join("taken")).unwrap();
        let error = write_atomically(&folder.path().join("taken"), |_| Ok(())).unwrap_err();
        assert_eq!(error.code(), "IO_ERROR");
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_are_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let plain = folder.path().join("plain");
        fs::write(&plain, b"").unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |_| Ok(())).unwrap();
        assert_eq!(mode(&path), mode(&plain));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_atomically(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o600));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    /// A real full disk: a file system of 64 KiB. Mounting it takes root.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_other() {
        struct Mounted(tempfile::TempDir);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = std::process::Command::new("umount").arg(self.0.path()).status();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED a_full_disk_leaves_the_old_file_and_no_other: mounting a tmpfs takes root");
            return;
        }
        let disk = Mounted(folder);
        let path = disk.0.path().join("a.bin");
        write_atomically(&path, |out| out.write_all(&[1; 40_000])).unwrap();
        let error = write_atomically(&path, |out| out.write_all(&[2; 40_000])).unwrap_err();
        assert_eq!(error.code(), "DISK_FULL", "{error}");
        assert_eq!(fs::read(&path).unwrap(), [1; 40_000]);
        assert_eq!(names(disk.0.path()), ["a.bin"]);
    }
}
