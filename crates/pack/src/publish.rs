//! From `OUT.partial` to `OUT`: complete, synced, then renamed in one step.

use crate::error::PackError;
use crate::journal;
use crate::manifest::{MANIFEST_FILE, Manifest, pack_config};
use crate::partial::{self, JOURNAL, Partial, Target, aside, parent};
use crate::reader::Pack;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) const CONFIG_FILE: &str = "config.json";
const CARD_FILE: &str = "README.md";

pub(crate) fn publish(
    target: &Target,
    partial: &Partial,
    manifest: &Manifest,
    side_files: &[PathBuf],
    card: Option<&str>,
) -> Result<(), PackError> {
    let dir = &partial.dir;
    let config = serde_json::to_string_pretty(&pack_config(&manifest.config)).unwrap_or_default() + "\n";
    for source in side_files.iter().filter(|file| card.is_none() || !is_card(file)) {
        copy(source, dir)?;
    }
    if let Some(card) = card {
        write(&dir.join(CARD_FILE), card.as_bytes())?;
    }
    write(&dir.join(CONFIG_FILE), config.as_bytes())?;
    write(&dir.join(MANIFEST_FILE), manifest.to_json().as_bytes())?;
    partial.lock.sync_all().map_err(PackError::io(dir, "sync it"))?;
    // What cannot be opened replaces nothing.
    Pack::open(dir)?;
    // Looked at again: hours may have passed.
    target.check()?;
    partial::sweep(dir)?;
    rename(dir, target)?;
    let journal = target.out.join(JOURNAL);
    fs::remove_file(&journal).map_err(PackError::io(&journal, "remove it"))?;
    partial.lock.sync_all().map_err(PackError::io(&target.out, "sync it"))
}

fn is_card(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.eq_ignore_ascii_case(CARD_FILE))
}

/// Whether a file name belongs to the pack itself, and not to what is copied along.
pub(crate) fn is_own(name: &str) -> bool {
    name == CONFIG_FILE
        || name == MANIFEST_FILE
        || name == JOURNAL
        || name == "quality.json"
        || (name.starts_with("ashlar-") && name.ends_with(".safetensors"))
}

fn copy(source: &Path, dir: &Path) -> Result<(), PackError> {
    let name = source.file_name().and_then(|n| n.to_str()).filter(|n| !is_own(n));
    let Some(name) = name else {
        return Err(PackError::Exists {
            path: source.to_owned(),
            what: "cannot be copied into a pack: its name is reserved".into(),
        });
    };
    let (mut from, to) = (File::open(source).map_err(PackError::io(source, "open it"))?, dir.join(name));
    let mut file = File::create(&to).map_err(PackError::io(&to, "create it"))?;
    io::copy(&mut from, &mut file).and_then(|_| file.sync_all()).map_err(PackError::io(&to, "write to it"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
    let mut file = File::create(path).map_err(PackError::io(path, "create it"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(PackError::io(path, "write to it"))
}

/// Puts `partial` in the place of `out`. An older pack there is swapped out in the same step where the system can,
/// else moved aside first. It is marked before, so that a later run knows it for what it is if this one is killed
/// anywhere between, and locked, so that no other run takes it for its own `OUT.partial` while it is deleted.
fn rename(partial: &Path, target: &Target) -> Result<(), PackError> {
    let out = &target.out;
    if !(target.force && out.join(MANIFEST_FILE).is_file()) {
        fs::rename(partial, out).map_err(PackError::io(out, "rename the finished pack to it"))?;
        return sync_parent(out);
    }
    let _old = partial::lock(out)?;
    write(&out.join(JOURNAL), journal::replaced().as_bytes())?;
    let old = swap(partial, out)?;
    sync_parent(out)?;
    partial::delete(&old).map_err(|e| match e {
        PackError::Io { path, source, .. } => PackError::Io {
            path,
            what: "remove it, which belongs to the replaced pack; the new one is in place",
            source,
        },
        e => e,
    })
}

/// Puts `partial` at `out`; returns where the pack is that was there.
fn swap(partial: &Path, out: &Path) -> Result<PathBuf, PackError> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, partial, CWD, out, RenameFlags::EXCHANGE).is_ok() {
            return Ok(partial.to_owned());
        }
    }
    let aside = aside(partial);
    fs::rename(out, &aside).map_err(PackError::io(out, "move it aside"))?;
    if let Err(e) = fs::rename(partial, out) {
        fs::rename(&aside, out).map_err(PackError::io(&aside, "move the old pack back from it"))?;
        return Err(PackError::io(out, "rename the finished pack to it")(e));
    }
    Ok(aside)
}

/// Makes a rename to `out` last.
pub(crate) fn sync_parent(out: &Path) -> Result<(), PackError> {
    let parent = parent(out);
    File::open(parent).and_then(|d| d.sync_all()).map_err(PackError::io(parent, "sync it"))
}
