//! What is fuzzed: one function per kind of input, from arbitrary bytes to a verdict. Refusing is fine; a panic, an
//! endless loop, or a value that breaks its own promises is a finding.
//!
//! `fuzz_targets/` hands these to libFuzzer; `tests/bad/mutations.rs` runs the same functions over mutated real files in
//! every `cargo test`.
#![forbid(unsafe_code)]

use ashlar_arch::ModelSpec;
use ashlar_formats::{Grid, Layout, Planes, Spec};
use ashlar_recipe::Recipe;
use ashlar_tensor::{Bytes, Entry, Order, Plane, PlaneKind, StoreError, TensorStore};
use std::path::Path;
use std::sync::LazyLock;

/// A safetensors file: length field, header, data.
pub fn safetensors_header(data: &[u8]) {
    let Some((prefix, rest)) = data.split_first_chunk::<8>() else { return };
    let Some((json, values)) = usize::try_from(u64::from_le_bytes(*prefix)).ok().and_then(|n| rest.split_at_checked(n))
    else {
        return;
    };
    let Ok(header) = ashlar_source::Header::parse("f.safetensors", json, values.len() as u64) else { return };
    let mut ranges: Vec<_> = header.tensors.iter().map(|t| (t.begin, t.end)).collect();
    ranges.sort_unstable();
    let end = ranges.iter().fold(0, |cursor, &(begin, end)| {
        assert!(begin == cursor && begin <= end, "ranges tile the data");
        end
    });
    assert_eq!(end, values.len() as u64);
    for pair in header.tensors.windows(2) {
        assert!(pair[0].name < pair[1].name, "names are sorted and unique");
    }
    for t in &header.tensors {
        let elements = t.shape.iter().product::<usize>();
        assert_eq!((elements * t.dtype.size()) as u64, t.end - t.begin);
        assert!(!t.name.is_empty() && !t.name.chars().any(char::is_control));
    }
}

/// `model.safetensors.index.json`.
pub fn safetensors_index(data: &[u8]) {
    let Ok(shards) = ashlar_source::parse_index(data, "index.json") else { return };
    for (shard, tensors) in shards {
        let path = Path::new(&shard);
        assert_eq!(path.file_name(), Some(path.as_os_str()), "a shard is a file of the same directory");
        assert!(tensors.is_sorted());
    }
}

/// `config.json`, up to the model it describes.
pub fn config(data: &[u8]) {
    let Ok(config) = ashlar_source::parse_config(data, "config.json") else { return };
    let Ok(model) = ashlar_arch::model_spec(&config) else { return };
    let _ = model.params();
    let _ = model.counts();
    let shapes: Vec<_> = model.tensors().map(|leaf| (leaf.name.as_str(), leaf.shape.as_slice())).collect();
    // A model agrees with its own list of tensors.
    ashlar_arch::check(&model, shapes.iter().copied()).expect("the model's own tensors");
}

/// A recipe, up to what it chooses for a small mixture of experts; a resolved recipe chooses the same.
pub fn recipe(data: &[u8]) {
    static MODEL: LazyLock<(ModelSpec, Shapes)> = LazyLock::new(small_model);
    let (model, store) = &*MODEL;
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = match Recipe::parse(text, "recipe.yaml") {
        Ok(recipe) => recipe,
        Err(e) => {
            assert!(e.to_string().contains("recipe.yaml"), "errors name the file: {e}");
            return;
        }
    };
    let Ok(choices) = parsed.choose(model, store, None) else { return };
    let emitted = ashlar_recipe::emit(&choices);
    let again = Recipe::parse(&emitted, "emitted.yaml").expect("what was emitted is read");
    let again = again.choose(model, store, None).expect("and fits the same model");
    assert_eq!(choices.list.len(), again.list.len());
    assert!(choices.list.iter().zip(&again.list).all(|(a, b)| ashlar_recipe::same(a, b)), "{emitted}");
}

fn small_model() -> (ModelSpec, Shapes) {
    let config = include_bytes!("../../tests/fixtures/tiny/qwen3_moe/config.json");
    let config = ashlar_source::parse_config(config, "config.json").expect("a fixture");
    let model = ashlar_arch::model_spec(&config).expect("a supported model");
    let entry = |leaf: &ashlar_arch::Leaf| Entry {
        name: leaf.name.clone(),
        shape: leaf.shape.clone(),
        format: "bf16".to_owned(),
        order: Order::Rows,
        planes: vec![Plane { kind: PlaneKind::Values, bytes: 2 * leaf.shape.iter().product::<usize>() as u64 }],
        file: "model.safetensors".to_owned(),
    };
    let mut entries: Vec<Entry> = model.tensors().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    (model, Shapes(entries))
}

/// Weights of which only the headers exist.
struct Shapes(Vec<Entry>);

impl TensorStore for Shapes {
    fn entries(&self) -> &[Entry] {
        &self.0
    }

    fn read(&self, entry: &Entry, plane: usize, _offset: u64, _out: &mut [u8]) -> Result<(), StoreError> {
        Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
    }
}

/// `ashlar.json`.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = ashlar_pack::Manifest::parse(data, Path::new("ashlar.json")) else { return };
    let again = ashlar_pack::Manifest::parse(manifest.to_json().as_bytes(), Path::new("ashlar.json"));
    assert_eq!(again.expect("what was written is read").to_json(), manifest.to_json());
}

/// The text of a format, such as `nf4:g64+o13`.
pub fn format_spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(spec) = text.parse::<Spec>() else { return };
    assert_eq!(spec.to_string().parse::<Spec>().expect("own text"), spec);
    for (n, k) in [(0, 0), (1, 32), (17, 256), (1 << 20, 1 << 16), (usize::MAX, usize::MAX)] {
        for order in [Order::Rows, Order::X16] {
            let _ = spec.layout(order, n, k);
        }
    }
}

/// Planes of any bits: decoding gives numbers or an error, reordering loses nothing.
pub fn decode(data: &[u8]) {
    let Some((&[pick, n, k, slots], data)) = data.split_first_chunk::<4>() else { return };
    let Some(mut spec) = any_spec(usize::from(pick)) else { return };
    let (n, k) = (usize::from(n % 40), 32 * usize::from(k % 9));
    if slots % 2 == 1 {
        let text = format!("{spec}+o{}", slots % 32);
        spec = text.parse().unwrap_or(spec);
    }
    for order in [Order::Rows, Order::X16] {
        let Ok(layout) = spec.layout(order, n, k) else { continue };
        let mut planes = cut(data, layout.planes.iter().map(|p| p.bytes as usize));
        if order == Order::Rows {
            clear_spare_bits(&spec, &layout, &mut planes);
        }
        decode_planes(&spec, order, n, k, &planes);
        if order == Order::Rows {
            assert_eq!(there_and_back(&spec, n, k, &planes), planes, "{spec} {n} × {k}");
        }
    }
}

/// In row order, inner scales of 5 or 6 bits take a byte each whose other bits are zero by definition.
fn clear_spare_bits(spec: &Spec, layout: &Layout, planes: &mut [Vec<u8>]) {
    let Ok(Grid::TwoLevel(grid)) = spec.grid() else { return };
    let mask = u8::MAX >> (8 - grid.inner.bits());
    for (plane, bytes) in layout.planes.iter().zip(planes) {
        if plane.kind == PlaneKind::Scales {
            bytes.iter_mut().for_each(|b| *b &= mask);
        }
    }
}

fn decode_planes(spec: &Spec, order: Order, n: usize, k: usize, planes: &[Vec<u8>]) {
    let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let mut out = vec![0.0; n * k];
    let whole = Planes { order, n, k, first_row: 0, data: &slices };
    let format = spec.format().expect("a parsed spec");
    let _ = format.decode(spec, &whole, 0..n, &mut out);
    // Planes that are too short are an error.
    let short: Vec<&[u8]> = slices.iter().map(|s| &s[..s.len() / 2]).collect();
    let cut = Planes { data: &short, ..whole };
    if n * k > 0 {
        assert!(format.decode(spec, &cut, 0..n, &mut out).is_err(), "{spec} {n} × {k} from half the bytes");
    }
}

fn there_and_back(spec: &Spec, n: usize, k: usize, planes: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut current = (Order::Rows, planes.to_vec());
    for to in [Order::X16, Order::Rows] {
        let slices: Vec<&[u8]> = current.1.iter().map(Vec::as_slice).collect();
        let from = Planes { order: current.0, n, k, first_row: 0, data: &slices };
        let layout = spec.layout(to, n, k).expect("both orders take the same shapes");
        let mut out: Vec<Vec<u8>> = layout.planes.iter().map(|p| vec![0; p.bytes as usize]).collect();
        let mut outs: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        ashlar_formats::reorder(spec, &from, 0..n, to, &mut outs).expect("whole planes");
        current = (to, out);
    }
    current.1
}

/// The spec of that number among all variants of all formats.
fn any_spec(pick: usize) -> Option<Spec> {
    let all: Vec<String> = ashlar_formats::ids()
        .flat_map(|id| ashlar_formats::format(id).into_iter().flat_map(|f| f.variants()).map(move |v| (id, v.text)))
        .map(|(id, text)| if text.is_empty() { id.to_owned() } else { format!("{id}:{text}") })
        .collect();
    all.get(pick % all.len().max(1)).map(|text| text.parse().expect("the registry's own text"))
}

/// Pieces of these lengths, from `data` as often as needed.
fn cut(data: &[u8], lengths: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let mut source = data.iter().copied().chain(std::iter::once(0)).cycle();
    lengths.map(|len| source.by_ref().take(len).collect()).collect()
}

/// A GGUF file, up to the checkpoint and the tokenizer that its metadata describe.
pub fn gguf(data: &[u8]) {
    let Ok(header) = ashlar_source::GgufHeader::parse("f.gguf", data) else { return };
    let mut ranges: Vec<_> = header.tensors.iter().map(|t| (t.offset, t.offset + t.bytes)).collect();
    ranges.sort_unstable();
    let end = ranges.iter().fold(0, |cursor, &(begin, end)| {
        assert!(begin >= cursor && begin <= end, "ranges do not overlap");
        end
    });
    assert!(end <= data.len() as u64, "ranges lie inside");
    let shapes: Vec<_> = header.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert!(shapes.iter().all(|(_, shape)| shape.iter().product::<usize>() > 0));
    let file = ashlar_arch::Gguf { metadata: &header.metadata, tensors: &shapes, rope_factors: &[1.0, 8.0] };
    if let Ok(model) = ashlar_arch::gguf(file) {
        assert_eq!(model.weights.len(), shapes.len());
        let _ = ashlar_arch::model_spec(&model.config);
    }
    let _ = ashlar_arch::tokenizer(&header.metadata);
}
