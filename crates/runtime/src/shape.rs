//! A model of random weights in the shape that a config describes, in memory: for measuring speed without a checkpoint.

use crate::{Opened, RuntimeError};
use ashlar_arch::{Class, Leaf, ModelSpec};
use ashlar_formats::{Layout, Spec, random};
use ashlar_tensor::{AlignedBytes, Bytes, Entry, Order, Plane, StoreError, TensorStore};
use serde_json::Value;
use std::path::PathBuf;

/// Root mean square of random weights.
const SIZE: f32 = 0.02;

/// The model that `config` describes: matrices of attention, MLPs, experts and the head in `format`, all else in bf16.
///
/// # Errors
/// [`RuntimeError`] for a config of no known architecture, or a format that cannot take one of its shapes.
pub fn random_model(config: Value, format: &str) -> Result<Opened, RuntimeError> {
    let arch = |source| RuntimeError::Arch { path: "config".into(), source };
    let spec = ashlar_arch::model_spec(&config).map_err(arch)?;
    let store = RandomStore::new(&spec, format)?;
    let identity = format!("random {format}");
    Ok(Opened {
        store: Box::new(store),
        config,
        spec,
        dir: PathBuf::new().into(),
        is_pack: true,
        identity,
        placement: None,
    })
}

/// Cuts a config to its first `layers` layers: the count, and every list that has a value per layer.
///
/// # Errors
/// [`RuntimeError::Option`] if it has no such number of layers.
pub fn first_layers(config: &mut Value, layers: usize) -> Result<(), RuntimeError> {
    let has =
        config.get("num_hidden_layers").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let Some(fields) = config.as_object_mut().filter(|_| (1..=has).contains(&layers)) else {
        return Err(RuntimeError::Option {
            option: "--layers",
            got: layers.to_string(),
            expected: format!("1 to {has}"),
        });
    };
    for field in fields.values_mut() {
        // Some lists have entries for the next-token layers too.
        if let Value::Array(list) = field
            && list.len() >= has
        {
            list.truncate(layers);
        }
    }
    fields.insert("num_hidden_layers".into(), layers.into());
    if let Some(next) = fields.get_mut("num_nextn_predict_layers") {
        *next = 0.into();
    }
    Ok(())
}

/// Weights that are made up when they are asked for.
struct RandomStore {
    entries: Vec<Entry>,
}

impl RandomStore {
    fn new(spec: &ModelSpec, format: &str) -> Result<Self, RuntimeError> {
        let mut entries = spec.loaded().map(|leaf| entry(leaf, format)).collect::<Result<Vec<_>, _>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(Self { entries })
    }
}

fn entry(leaf: &Leaf, format: &str) -> Result<Entry, RuntimeError> {
    let (n, k, matrix) = match *leaf.shape.as_slice() {
        [n, k] => (n, k, true),
        _ => (1, leaf.shape.iter().product(), false),
    };
    let quantized = matches!(
        leaf.role.class,
        Class::Attn | Class::Mlp | Class::Experts | Class::SharedExpert | Class::LmHead | Class::Indexer
    );
    let (format, order) = if matrix && quantized { (format, Order::X16) } else { ("bf16", Order::Rows) };
    let refused = |source| RuntimeError::Weight {
        file: "random weights".into(),
        tensor: leaf.name.clone(),
        format: format.to_owned(),
        source: Box::new(source),
    };
    let spec: Spec = format.parse().map_err(refused)?;
    // Floats know no panels.
    let order = if spec.scale.is_some() { order } else { Order::Rows };
    let layout: Layout = spec.layout(order, n, k).map_err(refused)?;
    let planes = layout.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect();
    let (name, shape) = (leaf.name.clone(), leaf.shape.clone());
    Ok(Entry { name, shape, format: spec.to_string(), order, planes, file: "random weights".into() })
}

impl TensorStore for RandomStore {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let bytes = self.map(entry, plane)?;
        let end = offset.saturating_add(out.len() as u64);
        let range = StoreError::Range { tensor: entry.name.clone(), plane, offset, end, bytes: bytes.len() as u64 };
        out.copy_from_slice(bytes.get(offset as usize..end as usize).ok_or(range)?);
        Ok(())
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        let unknown = || StoreError::Unknown { tensor: entry.name.clone(), plane };
        let index = self.entries.iter().position(|e| e.name == entry.name).ok_or_else(unknown)?;
        let described = entry.planes.get(plane).ok_or_else(unknown)?;
        let spec: Spec = entry.format.parse().map_err(|_| unknown())?;
        let memory = || StoreError::Io {
            file: entry.file.clone(),
            tensor: entry.name.clone(),
            offset: 0,
            len: described.bytes,
            source: std::io::ErrorKind::OutOfMemory.into(),
        };
        let mut bytes = AlignedBytes::zeroed(described.bytes as usize).ok_or_else(memory)?;
        // Vectors are norms and biases: values about 1, so that activations neither fade nor grow.
        let size = if entry.shape.len() == 1 { 1.0 } else { SIZE };
        random::fill_plane(&spec, described.kind, (index * 8 + plane) as u64, size, &mut bytes);
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, OpenOptions, logits};
    use ashlar_tensor::Silent;

    fn config() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/demo-moe/config.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_shape_runs_in_any_format_and_gives_finite_logits() {
        for format in ["q8", "k3", "bf16"] {
            let opened = random_model(config(), format).unwrap();
            let options = OpenOptions { context: Some(8), ..OpenOptions::default() };
            let mut model = Model::load(opened, &options, &Silent).unwrap();
            let logits = logits(&mut model, &[1, 2, 3]).unwrap();
            assert!(logits.iter().all(|l| l.is_finite()), "{format}");
        }
    }

    #[test]
    fn a_cut_shape_has_the_layers_asked_for_and_no_more_than_there_are() {
        let mut config = config();
        let has = config["num_hidden_layers"].as_u64().unwrap();
        config["layer_types"] = vec!["full_attention"; has as usize].into();
        first_layers(&mut config, 1).unwrap();
        assert_eq!(
            (config["num_hidden_layers"].as_u64(), config["layer_types"].as_array().unwrap().len()),
            (Some(1), 1)
        );
        assert_eq!(random_model(config.clone(), "q8").unwrap().spec.layers.len(), 1);
        assert!(first_layers(&mut config, 2).unwrap_err().to_string().contains("1 to 1"));
        assert!(first_layers(&mut Value::Null, 1).is_err());
    }

    #[test]
    fn a_format_that_cannot_take_the_shape_is_an_error_that_names_the_tensor() {
        let mut config = config();
        config["hidden_size"] = 40.into();
        let error = random_model(config, "q8").err().unwrap().to_string();
        assert!(error.contains("tensor `") && error.contains("32"), "{error}");
    }
}
