//! Where records are read from: files past the page cache, or anything else in tests.

use ashlar_pack::DirectFile;
use std::io;
use std::path::PathBuf;

/// Files with numbers.
pub trait Disk: Send + Sync {
    /// Reads from `offset` of a file; fewer bytes than `out` has only at its end. Offset, length and address are multiples of
    /// [`ashlar_pack::PAGE`].
    ///
    /// # Errors
    /// What the operating system reports.
    fn read(&self, file: usize, offset: u64, out: &mut [u8]) -> io::Result<usize>;

    /// What messages call a file.
    fn name(&self, file: usize) -> String;
}

/// Files of a file system.
pub struct Files(Vec<(PathBuf, DirectFile)>);

impl Files {
    /// Opens them.
    ///
    /// # Errors
    /// The first that cannot be opened, with its name.
    pub fn open(paths: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let one = |path: &PathBuf| match DirectFile::open(path) {
            Ok(file) => Ok((path.clone(), file)),
            Err(error) => Err((path.clone(), error)),
        };
        Ok(Self(paths.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// The first file that is read through the page cache, because its file system has no other reads.
    #[must_use]
    pub fn buffered(&self) -> Option<String> {
        self.0.iter().find(|(_, file)| !file.is_direct()).map(|(path, _)| path.display().to_string())
    }
}

impl Disk for Files {
    fn read(&self, file: usize, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let (_, file) = self.0.get(file).ok_or(io::ErrorKind::NotFound)?;
        file.read(offset, out)
    }

    fn name(&self, file: usize) -> String {
        self.0.get(file).map_or_else(|| "?".into(), |(path, _)| path.display().to_string())
    }
}
