//! `fp8`: E4M3 floats with one scale per 128 × 128 block, f32 (also bf16 or e8m0, for checkpoints that have them so).
//!
//! Planes of an n × k weight (k a multiple of 32), before panel order:
//!   codes   e4m3   n × k
//!   scales  f32    ⌈n/128⌉ × ⌈k/128⌉, the same in both orders   ŵ = code · scale
//! The last blocks may be ragged. Codes 0x7f and 0xff are NaN: an error when decoded.
//!
//! Bound: |w − ŵ| ≤ max(|w|/16, scale/1024) for |w| ≤ 448 · scale. Lossless from DeepSeek-V3-style checkpoints
//! (`weight_scale_inv`). Page: `docs/formats/fp8.md`.

use crate::grouped::codes;
use crate::layout::{Places, stored_rows};
use crate::x16::{COLUMNS, Width};
use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, ScaleType, Spec, Variant, e4m3, outliers};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// Rows and columns of a block.
pub const BLOCK: usize = 128;

/// The format.
pub struct Fp8;

const fn variant(text: &'static str, scale: ScaleType) -> Variant {
    Variant { text, group: BLOCK, zero_point: false, scale: Some(scale) }
}

const VARIANTS: &[Variant] = &[
    variant("128x128,f32", ScaleType::F32),
    variant("128x128,e8m0", ScaleType::E8M0),
    variant("128x128,bf16", ScaleType::BF16),
];

impl Format for Fp8 {
    fn id(&self) -> &'static str {
        "fp8"
    }

    fn row_block(&self) -> usize {
        BLOCK
    }

    fn variants(&self) -> &'static [Variant] {
        VARIANTS
    }

    fn layout(&self, spec: &Spec, order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let shape = |what: &str| FormatError::Shape { id: self.id(), n, k, what: what.into() };
        if k == 0 || !k.is_multiple_of(COLUMNS) {
            return Err(shape("columns must be a multiple of 32"));
        }
        crate::spec::check_outliers(self.id(), spec.outlier_slots, n, k)?;
        let scale = spec.scale.unwrap_or(ScaleType::F32);
        let planes = || {
            let rows = stored_rows(order, n)?;
            let mut planes = vec![
                PlaneLayout::new(PlaneKind::Codes, rows, Some(k), BLOCK)?,
                PlaneLayout::new(PlaneKind::Scales, n.div_ceil(BLOCK), k.div_ceil(BLOCK).checked_mul(scale.size()), 1)?,
            ];
            if spec.outlier_slots > 0 {
                planes.push(outliers::layout(spec.outlier_slots, rows, BLOCK)?);
            }
            Some(planes)
        };
        let planes = planes().ok_or_else(|| shape("the weight would exceed the address space"))?;
        Ok(Layout { row_block: BLOCK, planes })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        let layout = spec.layout(planes.order, planes.n, planes.k)?;
        planes.check(spec, &layout, &rows, out.len())?;
        let k = planes.k;
        let places = Places { order: planes.order, k, groups: 0 };
        let (table, scale_type) = (e4m3::table(), spec.scale.unwrap_or(ScaleType::F32));
        for (row, values) in rows.zip(out.chunks_exact_mut(k)) {
            let local = row - planes.first_row;
            for (panel, values) in values.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
                let column = panel * COLUMNS;
                let index = local / BLOCK * k.div_ceil(BLOCK) + column / BLOCK;
                let scale = scale_type.load(planes.plane(1), index).unwrap_or(f32::NAN);
                let codes = codes(Width::Eight, places, planes.plane(0), local, panel);
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = table[usize::from(code)] * scale;
                }
                if let Some(j) = values.iter().position(|v| !v.is_finite()) {
                    return Err(FormatError::NotFinite { row, column: column + j, value: values[j] });
                }
            }
            if spec.outlier_slots > 0 {
                outliers::apply(self.id(), planes.plane(2), spec.outlier_slots, local, row, values)?;
            }
        }
        Ok(())
    }

    fn grid(&self, spec: &Spec) -> Grid {
        Grid::Blocks(spec.scale.unwrap_or(ScaleType::F32))
    }
}
