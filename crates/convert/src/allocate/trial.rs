//! Trial quantization: what a format would lose on some rows of a weight, as its activations feel it.

use crate::error::ConvertError;
use crate::pool;
use crate::tile::{check_finite, read_planes};
use ashlar_arch::Leaf;
use ashlar_formats::{FormatError, Layout, Planes, Spec};
use ashlar_pack::PageBuffer;
use ashlar_quantize::{Stats, Target, Tile};
use ashlar_simd::Isa;
use ashlar_tensor::{Entry, Order, TensorStore};
use std::ops::{AddAssign, Range};
use std::sync::{Mutex, PoisonError};

/// Rows that any format can be cut at.
const BLOCK: usize = 128;

/// What a trial lost. The importance h of the columns has a mean of 1 over them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Σ h · (w − ŵ)²
    pub error: f64,
    /// Σ h · w²
    pub energy: f64,
}

impl AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.error += other.error;
        self.energy += other.energy;
    }
}

/// A weight of a store, ready to be read.
pub struct Weight<'a> {
    store: &'a dyn TensorStore,
    entry: &'a Entry,
    spec: Spec,
    layout: Layout,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl<'a> Weight<'a> {
    /// The matrix `leaf` of `store`.
    ///
    /// # Errors
    /// [`ConvertError`] if the store has no such matrix.
    pub fn open(store: &'a dyn TensorStore, leaf: &Leaf) -> Result<Self, ConvertError> {
        let wrong = |what: &str| ConvertError::Tensor { tensor: leaf.name.clone(), what: what.into() };
        let entry = store.entry(&leaf.name).ok_or_else(|| wrong("is not in the source"))?;
        let [n, k] = *leaf.shape.as_slice() else { return Err(wrong("is no matrix")) };
        let format = |source| ConvertError::Format { tensor: leaf.name.clone(), format: entry.format.clone(), source };
        let spec: Spec = entry.format.parse().map_err(format)?;
        let layout = spec.layout(entry.order, n, k).map_err(format)?;
        Ok(Self { store, entry, spec, layout, n, k })
    }

    /// The name of the tensor.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Bytes in the source of one row, about.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.layout.bytes() / self.n.max(1) as u64
    }

    fn values_error(&self, source: FormatError) -> ConvertError {
        ConvertError::Values { file: self.entry.file.clone(), tensor: self.entry.name.clone(), source }
    }

    /// Decodes `rows`, which start at a multiple of the source's row block.
    ///
    /// # Errors
    /// [`ConvertError`] if they cannot be read or are not finite.
    pub fn read(&self, rows: &Range<usize>, isa: Isa, values: &mut Vec<f32>) -> Result<(), ConvertError> {
        let mut buffers: Vec<PageBuffer> = Vec::new();
        read_planes(self.store, self.entry, &self.layout, rows, &mut buffers)?;
        let data: Vec<&[u8]> = buffers.iter().map(|p| &**p).collect();
        let planes = Planes { order: self.entry.order, n: self.n, k: self.k, first_row: rows.start, data: &data };
        values.resize(rows.len() * self.k, 0.0);
        let format = self.spec.format().map_err(|e| self.values_error(e))?;
        isa.vectorize(|| format.decode(&self.spec, &planes, rows.clone(), values)).map_err(|e| self.values_error(e))?;
        check_finite(values, self.k, rows.start).map_err(|e| self.values_error(e))
    }

    /// Row ranges of about `rows` rows each, that every format can be cut at.
    pub fn tiles(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, size) = (self.n, rows.next_multiple_of(BLOCK));
        (0..n.div_ceil(size)).map(move |i| i * size..((i + 1) * size).min(n))
    }

    /// `count` blocks of rows at even distances, together at most all rows. They depend on the shape alone.
    pub fn sample(&self, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, block) = (self.n, self.layout.row_block.clamp(16, BLOCK).next_multiple_of(16));
        let blocks = n.div_ceil(block);
        let taken = count.clamp(1, blocks);
        (0..taken).map(move |i| {
            // The middle of the i-th of `taken` equal stretches.
            let at = (2 * i + 1) * blocks / (2 * taken) * block;
            at..(at + block).min(n)
        })
    }
}

/// Quantizes rows (`values`, rows × k) on their own and weighs what is lost. Returns the planes as well.
///
/// # Errors
/// [`FormatError`] if method and format do not go together, or as [`ashlar_quantize::Quantizer::quantize`].
pub fn quantize(
    values: &[f32],
    k: usize,
    spec: &Spec,
    method: &str,
    importance: Option<&[f32]>,
    isa: Isa,
) -> Result<(Vec<Vec<u8>>, Loss), FormatError> {
    let rows = values.len() / k.max(1);
    let layout = spec.layout(Order::X16, rows, k)?;
    let mut planes: Vec<Vec<u8>> = layout.planes.iter().map(|p| vec![0; p.bytes as usize]).collect();
    let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    let unknown = |e: ashlar_quantize::UnknownMethod| FormatError::Parameter { id: spec.id, what: e.to_string() };
    let quantizer = ashlar_quantize::quantizer(method).map_err(unknown)?;
    let stats = Stats { importance, ..Stats::default() };
    quantizer.quantize(Target::new(spec), Tile { values, k, first_row: 0 }, stats, isa, &mut out)?;
    let mut decoded = vec![0.0; values.len()];
    let data: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let stored = Planes { order: Order::X16, n: rows, k, first_row: 0, data: &data };
    let format = spec.format()?;
    isa.vectorize(|| format.decode(spec, &stored, 0..rows, &mut decoded))?;
    let loss = isa.vectorize(|| weigh(values, &decoded, k, importance));
    Ok((planes, loss))
}

#[inline(always)]
fn weigh(values: &[f32], decoded: &[f32], k: usize, importance: Option<&[f32]>) -> Loss {
    let ones = vec![1.0; if importance.is_none() { k } else { 0 }];
    let h = importance.unwrap_or(&ones);
    let mut loss = Loss::default();
    for (w, q) in values.chunks_exact(k.max(1)).zip(decoded.chunks_exact(k.max(1))) {
        for ((w, q), h) in w.iter().zip(q).zip(h) {
            let (w, d, h) = (f64::from(*w), f64::from(*w - *q), f64::from(*h));
            loss.error += h * d * d;
            loss.energy += h * w * w;
        }
    }
    loss
}

/// A whole weight in a trial format.
#[derive(Debug)]
pub struct Quantized {
    /// Its planes in x16 order.
    pub planes: Vec<Vec<u8>>,
    /// What was lost.
    pub loss: Loss,
}

/// One tile: the weight it is of, its rows.
type Job = (usize, Range<usize>);
/// What became of a job, by its number.
type Done = Vec<Option<(Vec<Vec<u8>>, Loss)>>;

/// The importance of a weight's columns, by its name; `None` where nothing is known.
pub type ImportanceOf<'a> = dyn Fn(&str) -> Result<Option<Vec<f32>>, ConvertError> + Sync + 'a;

/// Quantizes whole weights on `threads` threads; `importance` is asked once per weight. The result does not depend on
/// threads.
///
/// # Errors
/// [`ConvertError`] of the first tile that failed.
pub fn quantize_whole(
    weights: &[Weight<'_>],
    spec: &Spec,
    method: &str,
    importance: &ImportanceOf<'_>,
    isa: Isa,
    threads: Option<usize>,
) -> Result<Vec<Quantized>, ConvertError> {
    let columns = weights.iter().map(|w| importance(w.name())).collect::<Result<Vec<_>, _>>()?;
    let tile_rows = |w: &Weight<'_>| ((1 << 20) / w.k.max(1)).max(1);
    let jobs: Vec<(usize, Job)> = weights
        .iter()
        .enumerate()
        .flat_map(|(i, w)| w.tiles(tile_rows(w)).map(move |rows| (i, rows)))
        .enumerate()
        .collect();
    let done: Mutex<Done> = Mutex::new(jobs.iter().map(|_| None).collect());
    let threads = threads.unwrap_or_else(pool::default_threads);
    pool::for_each(threads, &jobs, Vec::new, |values, (number, (i, rows))| {
        let Some(weight) = weights.get(*i) else { return Ok(()) };
        weight.read(rows, isa, values)?;
        let importance = columns.get(*i).and_then(Option::as_deref);
        let result = quantize(values, weight.k, spec, method, importance, isa).map_err(|e| weight.values_error(e))?;
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = done.get_mut(*number) {
            *slot = Some(result);
        }
        Ok(())
    })?;
    let mut whole: Vec<Quantized> =
        weights.iter().map(|_| Quantized { planes: Vec::new(), loss: Loss::default() }).collect();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    for ((_, (i, _)), (planes, loss)) in jobs.iter().zip(done.into_iter().flatten()) {
        let Some(weight) = whole.get_mut(*i) else { continue };
        weight.loss += loss;
        weight.planes.resize(planes.len().max(weight.planes.len()), Vec::new());
        // Tiles of a plane lie one after the other.
        weight.planes.iter_mut().zip(planes).for_each(|(whole, tile)| whole.extend(tile));
    }
    Ok(whole)
}
