//! Files for tests, honest or not: nothing here checks what it is told to write.

use std::fmt::Write;
use std::path::Path;

/// What tests return.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One tensor of a header, as JSON.
pub fn tensor(name: &str, dtype: &str, shape: &[u64], begin: u64, end: u64) -> String {
    format!("{name:?}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
}

/// A header of these parts.
pub fn header(parts: &[String]) -> String {
    format!("{{{}}}", parts.join(","))
}

/// A safetensors file: length, header, data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// A safetensors file of U8 tensors with these names, four bytes each: 0, 1, 2, …
pub fn bytes_file(names: &[&str]) -> Vec<u8> {
    let at = |i: usize| 4 * i as u64;
    let parts: Vec<_> = names.iter().enumerate().map(|(i, n)| tensor(n, "U8", &[4], at(i), at(i + 1))).collect();
    let data: Vec<u8> = (0..4 * names.len()).map(|i| i as u8).collect();
    file(&header(&parts), &data)
}

/// An index of (tensor, shard) pairs.
pub fn index(pairs: &[(&str, &str)]) -> String {
    let mut map = String::new();
    for (i, (tensor, shard)) in pairs.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(map, "{comma}{tensor:?}:{shard:?}");
    }
    format!("{{\"metadata\":{{\"total_size\":0}},\"weight_map\":{{{map}}}}}")
}

/// A directory of these files.
pub fn directory(files: &[(&str, &[u8])]) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes)?;
    }
    Ok(dir)
}

/// The message of the error that opening `path` gives.
pub fn refusal(path: &Path) -> Result<String> {
    match crate::Checkpoint::open(path) {
        Ok(_) => Err(format!("{} was accepted", path.display()).into()),
        Err(e) => Ok(e.to_string()),
    }
}

/// Fails unless every part occurs in `message`.
pub fn expect(message: &str, parts: &[&str]) -> Result {
    match parts.iter().find(|p| !message.contains(**p)) {
        Some(part) => Err(format!("`{part}` is not in: {message}").into()),
        None => Ok(()),
    }
}

/// A GGUF file in the making; nothing is checked.
#[derive(Clone, Default)]
pub struct GgufFile {
    pub keys: Vec<Vec<u8>>,
    /// Name, dimensions, type and data.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// Instead of the true offsets.
    pub offsets: Vec<u64>,
    /// Instead of the true counts of tensors and keys.
    pub counts: Option<(u64, u64)>,
}

/// A text of a GGUF file.
pub fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl GgufFile {
    /// A key with a value of that type, as bytes.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&gguf_text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub fn number(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn float(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &gguf_text(value))
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), kind, data.to_vec()));
        self
    }

    /// A model of one dense layer: k = 256 inputs, n rows of `down` in blocks of that type; the rest f32.
    pub fn dense(architecture: &str, kind: u32, n: u64, down: &[u8]) -> Self {
        let ones = |count: usize| 1f32.to_le_bytes().repeat(count);
        let key = |name: &str| format!("{architecture}.{name}");
        let plain = |file: Self, name: &str, dims: &[u64]| {
            file.tensor(name, dims, 0, &ones(dims.iter().product::<u64>() as usize))
        };
        let mut file = Self::default()
            .text("general.architecture", architecture)
            .number(&key("block_count"), 1)
            .number(&key("context_length"), 64)
            .number(&key("embedding_length"), n as u32)
            .number(&key("feed_forward_length"), 256)
            .number(&key("attention.head_count"), 1)
            .number(&key("attention.key_length"), 4)
            .float(&key("attention.layer_norm_rms_epsilon"), 1e-6);
        file = plain(file, "token_embd.weight", &[n, 5]);
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            file = plain(file, &format!("{name}.weight"), &[n]);
        }
        for name in ["attn_q", "attn_k", "attn_v"] {
            file = plain(file, &format!("blk.0.{name}.weight"), &[n, 4]);
        }
        file = plain(file, "blk.0.attn_output.weight", &[4, n]);
        for name in ["ffn_gate", "ffn_up"] {
            file = plain(file, &format!("blk.0.{name}.weight"), &[n, 256]);
        }
        file.tensor("blk.0.ffn_down.weight", &[256, n], kind, down)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (mut data, mut infos) = (Vec::new(), Vec::new());
        for (i, (name, dims, kind, bytes)) in self.tensors.iter().enumerate() {
            let offset = self.offsets.get(i).copied().unwrap_or(data.len() as u64);
            infos.extend(gguf_text(name));
            infos.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| infos.extend(d.to_le_bytes()));
            infos.extend(kind.to_le_bytes());
            infos.extend(offset.to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        let (tensors, keys) = self.counts.unwrap_or((self.tensors.len() as u64, self.keys.len() as u64));
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        self.keys.iter().for_each(|k| out.extend(k));
        out.extend(infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}
