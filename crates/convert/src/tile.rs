//! One tile of one tensor: read, decode, quantize, in buffers that are used again.

use crate::error::ConvertError;
use crate::knowledge::Knowledge;
use crate::work::{Step, Work};
use ashlar_formats::{FormatError, Layout, Planes};
use ashlar_pack::PageBuffer;
use ashlar_quantize::{Factor, Stats, Target, Tile, TileError};
use ashlar_simd::Isa;
use ashlar_tensor::{Entry, Order, TensorStore};
use std::ops::Range;

/// The buffers of one thread.
#[derive(Default)]
pub(crate) struct Buffers {
    source: Vec<PageBuffer>,
    values: Vec<f32>,
    target: Vec<PageBuffer>,
    /// Of the tensor of that name.
    importance: Option<(String, Vec<f32>)>,
}

impl Buffers {
    /// Reads the importance of a tensor's columns, unless the last tile was of the same tensor.
    fn learn(&mut self, work: &Work, knowledge: Option<&dyn Knowledge>) -> Result<(), ConvertError> {
        let Some(knowledge) = knowledge.filter(|_| work.weighted) else {
            self.importance = None;
            return Ok(());
        };
        if self.importance.as_ref().is_none_or(|(name, _)| *name != work.entry.name) {
            self.importance = knowledge.importance(&work.entry.name)?.map(|i| (work.entry.name.clone(), i));
        }
        Ok(())
    }

    /// Gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The planes of the tile as the source has them.
    pub fn source(&self) -> &[PageBuffer] {
        &self.source
    }

    /// The planes of the tile as the pack has them.
    pub fn target(&self, work: &Work) -> &[PageBuffer] {
        if matches!(work.step, Step::Copy) { &self.source } else { &self.target }
    }
}

/// What may guide a tile's quantizer.
#[derive(Clone, Copy)]
pub(crate) struct Guide<'a> {
    pub knowledge: Option<&'a dyn Knowledge>,
    /// The factored Hessian of the tensor's inputs, where its quantizer needs one.
    pub factor: Option<&'a Factor>,
}

/// Reads the tile `rows` and turns it into the pack's planes, guided by what is known of the tensor's inputs. Returns
/// what quantizing lost, or `None` where bits are kept.
pub(crate) fn process(
    work: &Work,
    rows: &Range<usize>,
    store: &dyn TensorStore,
    guide: Guide<'_>,
    isa: Isa,
    buffers: &mut Buffers,
) -> Result<Option<TileError>, ConvertError> {
    buffers.learn(work, guide.knowledge)?;
    read_planes(store, &work.entry, &work.source, rows, &mut buffers.source)?;
    let Buffers { source, values, target, importance } = buffers;
    let importance = importance.as_ref().map(|(_, i)| i.as_slice());
    let stats = Stats { importance, factor: guide.factor };
    let slices: Vec<&[u8]> = source.iter().map(|p| &**p).collect();
    let planes = Planes { order: work.entry.order, n: work.n, k: work.k, first_row: rows.start, data: &slices };
    let values_error =
        |source| ConvertError::Values { file: work.entry.file.clone(), tensor: work.entry.name.clone(), source };
    if !matches!(work.step, Step::Copy) {
        size_planes(&work.target, rows, target);
    }
    if matches!(work.step, Step::Reorder) {
        let mut out: Vec<&mut [u8]> = target.iter_mut().map(|p| &mut **p).collect();
        ashlar_formats::reorder(&work.from, &planes, rows.clone(), Order::X16, &mut out).map_err(values_error)?;
    }
    let mut lost = TileError::default();
    for step in steps(rows, work.step_rows()) {
        decode(work, &planes, &step, values, isa).map_err(values_error)?;
        match work.step {
            Step::Copy | Step::Reorder => check_finite(values, work.k, step.start).map_err(values_error)?,
            Step::Encode { quantizer, sigma } => {
                let lacking = quantizer.needs_hessian() && stats.factor.is_none();
                let quantizer = if lacking { work.without_hessian()? } else { quantizer };
                let mut out = parts(&work.target, rows, &step, target);
                let tile = Tile { values, k: work.k, first_row: step.start };
                let to = Target { spec: &work.to, outlier_sigma: sigma };
                lost += quantizer.quantize(to, tile, stats, isa, &mut out).map_err(values_error)?;
            }
        }
    }
    Ok(matches!(work.step, Step::Encode { .. }).then_some(lost))
}

/// Reads the tile `rows` of every plane.
pub(crate) fn read_planes(
    store: &dyn TensorStore,
    entry: &Entry,
    layout: &Layout,
    rows: &Range<usize>,
    out: &mut Vec<PageBuffer>,
) -> Result<(), ConvertError> {
    size_planes(layout, rows, out);
    for (plane, out) in out.iter_mut().enumerate() {
        store.read(entry, plane, layout.span(plane, rows).start, out)?;
    }
    Ok(())
}

/// Makes `planes` as many and as large as the tile `rows` needs.
pub(crate) fn size_planes(layout: &Layout, rows: &Range<usize>, planes: &mut Vec<PageBuffer>) {
    planes.resize_with(layout.planes.len(), PageBuffer::default);
    for (plane, buffer) in planes.iter_mut().enumerate() {
        let span = layout.span(plane, rows);
        buffer.resize((span.end - span.start) as usize);
    }
}

/// The slices of `planes`, which hold the tile `rows`, that belong to `step`.
fn parts<'a>(
    layout: &Layout,
    rows: &Range<usize>,
    step: &Range<usize>,
    planes: &'a mut [PageBuffer],
) -> Vec<&'a mut [u8]> {
    let part = |(plane, buffer): (usize, &'a mut PageBuffer)| {
        let (all, part) = (layout.span(plane, rows), layout.span(plane, step));
        buffer.get_mut((part.start - all.start) as usize..(part.end - all.start) as usize).unwrap_or_default()
    };
    planes.iter_mut().enumerate().map(part).collect()
}

/// `rows` in portions of `size`.
pub(crate) fn steps(rows: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = rows.end;
    rows.clone().step_by(size.max(1)).map(move |start| start..(start + size).min(end))
}

fn decode(
    work: &Work,
    planes: &Planes<'_>,
    rows: &Range<usize>,
    values: &mut Vec<f32>,
    isa: Isa,
) -> Result<(), FormatError> {
    values.resize(rows.len() * work.k, 0.0);
    let format = work.from.format()?;
    isa.vectorize(|| format.decode(&work.from, planes, rows.clone(), values))
}

/// Names the first value that is not.
pub(crate) fn check_finite(values: &[f32], k: usize, first_row: usize) -> Result<(), FormatError> {
    // The sum of x · 0 is 0 or NaN: one pass without branches; the culprit is looked for only when there is one.
    if values.iter().map(|v| v * 0.0).sum::<f32>() == 0.0 {
        return Ok(());
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => {
            let value = values.get(at).copied().unwrap_or(f32::NAN);
            Err(FormatError::NotFinite { row: first_row + at / k.max(1), column: at % k.max(1), value })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_rows() {
        assert_eq!(steps(&(16..50), 16).collect::<Vec<_>>(), [16..32, 32..48, 48..50]);
        assert_eq!(steps(&(0..0), 16).count(), 0);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        assert_eq!(check_finite(&[0.0, -1e38, 1e-40], 3, 5), Ok(()));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            match check_finite(&[1.0, 2.0, 3.0, 4.0, bad, f32::NAN], 3, 5) {
                Err(FormatError::NotFinite { row: 6, column: 1, value }) => assert_eq!(value.to_bits(), bad.to_bits()),
                other => panic!("{other:?}"),
            }
        }
    }
}
