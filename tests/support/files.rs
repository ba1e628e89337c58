//! Files that tests write, read and compare.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Every file below `dir`, by relative path.
pub fn listing(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
                all.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
    }
    all
}

/// Fails the test unless both folders hold the same files with the same bytes.
#[track_caller]
pub fn assert_same_files(a: &Path, b: &Path) {
    let (left, right) = (listing(a), listing(b));
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "the files differ");
    for (name, bytes) in &left {
        let other = &right[name];
        let at = bytes.iter().zip(other).position(|(x, y)| x != y);
        assert!(
            bytes.len() == other.len() && at.is_none(),
            "{name} differs: {} and {} bytes, first at {at:?}",
            bytes.len(),
            other.len()
        );
    }
}

/// An i64 tensor of a safetensors file.
pub fn tensor_i64(path: &Path, name: &str) -> Vec<i64> {
    let bytes = std::fs::read(path).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a valid file");
    let tensor = file.tensor(name).expect("the tensor");
    assert_eq!(tensor.dtype(), Dtype::I64);
    tensor.data().as_chunks().0.iter().map(|c| i64::from_le_bytes(*c)).collect()
}

/// Writes `input_ids` [1, T].
pub fn write_ids(path: &Path, ids: &[i64]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![1, ids.len()], &bytes).expect("a valid tensor");
    std::fs::write(path, safetensors::serialize([("input_ids", view)], None).expect("serializable")).expect("writable");
}

/// `logits` f32 [1, T, V] of a safetensors file, as rows.
pub fn logits(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a valid file");
    let tensor = file.tensor("logits").expect("logits");
    assert_eq!(tensor.dtype(), Dtype::F32);
    let vocab = *tensor.shape().last().expect("a shape");
    let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
    values.chunks(vocab).map(<[f32]>::to_vec).collect()
}

/// max |a − b| over (max b − min b).
#[track_caller]
pub fn max_error_of_range(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()), "shapes differ");
    let all = || a.iter().flatten().zip(b.iter().flatten());
    let (low, high) = b.iter().flatten().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    assert!(all().all(|(x, _)| x.is_finite()), "logits are not finite");
    all().map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / (high - low)
}

/// Mean over rows of KL(softmax b ‖ softmax a), in nats: what `a` loses against the reference `b`.
pub fn mean_kl(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
        row.iter().map(|v| f64::from(v - max) - sum.ln()).collect()
    };
    let rows = a.iter().zip(b).map(|(x, y)| {
        let (p, q) = (log_softmax(y), log_softmax(x));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    rows.sum::<f64>() / a.len() as f64
}
