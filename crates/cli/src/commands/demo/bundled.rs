//! What `demo` needs, inside the binary: the checkpoint of `tests/fixtures/demo-moe` and a text it was not trained on.

use anyhow::Context;
use std::path::Path;

macro_rules! bundled {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../../../tests/fixtures/demo-moe/", $name)))),*]
    };
}

/// The files of the checkpoint.
const CHECKPOINT: &[(&str, &[u8])] = bundled![
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Public-domain prose (assets/README.md).
pub const TEXT: &str = include_str!("../../../assets/demo.txt");

/// Writes the checkpoint to a new folder.
///
/// # Errors
/// What the operating system reports, naming the file.
pub fn write_checkpoint(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, bytes) in CHECKPOINT {
        let path = dir.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
