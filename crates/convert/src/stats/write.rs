//! Writing: one safetensors file, as a whole or not at all, the same bytes for the same content.

use super::{ORIGIN_KEY, SHARES_KEY, Shares, StatsError, StatsOrigin, VERSION, VERSION_KEY};
use ashlar_tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A named array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Such as `moments.model.layers.0.mlp.down_proj.weight`.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Data,
}

/// Values of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Moments and Hessians.
    F32(Vec<f32>),
    /// Routing.
    F64(Vec<f64>),
    /// Counts.
    I64(Vec<i64>),
}

impl Data {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            Self::I64(_) => Dtype::I64,
        }
    }

    /// Little-endian.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// Writes a statistics file.
///
/// # Errors
/// [`StatsError::Io`]; an existing file is then as it was.
pub fn write(path: &Path, origin: &StatsOrigin, arrays: &[Array]) -> Result<(), StatsError> {
    write_sharing(path, origin, &Shares::new(), arrays)
}

/// [`write()`] with Hessians that several weights share.
///
/// # Errors
/// As [`write()`].
pub fn write_sharing(path: &Path, origin: &StatsOrigin, shares: &Shares, arrays: &[Array]) -> Result<(), StatsError> {
    let heads = arrays.iter().map(|a| Head { name: a.name.clone(), dtype: a.data.dtype(), shape: a.shape.clone() });
    let by_name: HashMap<&str, &Array> = arrays.iter().map(|a| (a.name.as_str(), a)).collect();
    let bytes = |name: &str| Ok(by_name.get(name).map(|a| a.data.to_bytes()).unwrap_or_default());
    stream(path, origin, shares, heads.collect(), bytes)
}

/// Refuses a file of about `bytes` bytes at `path` if the disk has no room for it.
///
/// # Errors
/// [`StatsError::DiskFull`] with both sizes.
pub fn check_room(path: &Path, bytes: u64) -> Result<(), StatsError> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = || path.display().to_string();
    let free = ashlar_pack::free_bytes(dir).map_err(|source| StatsError::Io {
        path: name(),
        action: "ask for the free space of its disk",
        source,
    })?;
    if bytes > free { Err(StatsError::DiskFull { path: name(), needed: bytes, free }) } else { Ok(()) }
}

/// What the header says of an array.
pub(super) struct Head {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Writes a file whose arrays are made one at a time.
pub(super) fn stream(
    path: &Path,
    origin: &StatsOrigin,
    shares: &Shares,
    mut heads: Vec<Head>,
    mut data: impl FnMut(&str) -> Result<Vec<u8>, StatsError>,
) -> Result<(), StatsError> {
    // Wide types first keeps every array aligned to its type.
    heads.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name)));
    let header = header(origin, shares, &heads);
    let io = |action| {
        let path = path.display().to_string();
        move |source| StatsError::Io { path, action, source }
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let mut file = BufWriter::new(File::create(&partial).map_err(io("create"))?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io("write"))?;
    file.write_all(&header).map_err(io("write"))?;
    for head in &heads {
        file.write_all(&data(&head.name)?).map_err(io("write"))?;
    }
    let file = file.into_inner().map_err(|e| io("write")(e.into_error()))?;
    file.sync_all().map_err(io("write"))?;
    std::fs::rename(&partial, path).map_err(io("put in place"))
}

fn header(origin: &StatsOrigin, shares: &Shares, heads: &[Head]) -> Vec<u8> {
    let mut map = Map::new();
    let origin = json!(origin).to_string();
    let mut metadata = json!({ VERSION_KEY: VERSION, ORIGIN_KEY: origin });
    if let (false, Value::Object(metadata)) = (shares.is_empty(), &mut metadata) {
        metadata.insert(SHARES_KEY.into(), json!(shares).to_string().into());
    }
    map.insert("__metadata__".into(), metadata);
    let mut at = 0;
    for head in heads {
        let end = at + head.shape.iter().product::<usize>() * head.dtype.size();
        let info = json!({ "dtype": head.dtype.name(), "shape": head.shape, "data_offsets": [at, end] });
        map.insert(head.name.clone(), info);
        at = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}
