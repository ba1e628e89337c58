//! Writing: results to stdout (where a closed pipe is no error of ours), files as a whole or not at all.

use anyhow::Context;
use std::io::Write;
use std::path::Path;

/// Writes `text` to stdout.
///
/// # Errors
/// What the operating system reports; a broken pipe ends the command quietly (see `exit`).
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON object and a newline to stdout.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Says something on stderr that is neither an error nor progress.
#[expect(clippy::print_stderr, reason = "for people who watch, not for scripts")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Replaces `path` by `bytes`: readers see the old file or the new one, also after a crash.
///
/// # Errors
/// What the operating system reports, naming the file.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let partial = dir.join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| {
        // The leftover is worthless; failing to remove it would hide the real error.
        let _ = std::fs::remove_file(&partial);
        anyhow::Error::new(error).context(format!("cannot write {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one")?;
        write_atomic(&path, b"two")?;
        assert_eq!(std::fs::read(&path)?, b"two");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomic(Path::new("/nonexistent-folder/a.json"), b"x").unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent-folder/a.json"));
    }
}
