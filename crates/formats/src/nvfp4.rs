//! `nvfp4` and `nvfp4_div`: E2M1 codes with an E4M3 scale per 16 values and an f32 for all, as other programs' checkpoints
//! have them. Kept, never chosen; kernels read them through decode.
//!
//! Planes of an n × k weight (k a multiple of 32), row by row, the same in both orders:
//!   codes         u4     n × k       of 32, value j in the low nibble of byte j, value j + 16 in the high one
//!   scales        e4m3   n × k/16
//!   outer scales  f32    n           the same for all rows
//! `nvfp4`: ŵ = e2m1 · (scale · outer), as ModelOpt stores it. `nvfp4_div`: ŵ = e2m1 · (scale / outer), as compressed-tensors
//! does: 1 / outer is no f32, so that the two are not one. Page: `docs/formats/imported.md`.

use crate::x16::{COLUMNS, Width};
use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, ScaleType, Spec, Variant, e4m3};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// Columns that share a scale.
const GROUP: usize = 16;

/// What the codes stand for.
const LEVELS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Either of the two.
pub struct Nvfp4 {
    /// Whether the outer scale divides.
    pub divides: bool,
}

impl Format for Nvfp4 {
    fn id(&self) -> &'static str {
        if self.divides { "nvfp4_div" } else { "nvfp4" }
    }

    fn row_block(&self) -> usize {
        1
    }

    fn variants(&self) -> &'static [Variant] {
        &[Variant { text: "", group: GROUP, zero_point: false, scale: None }]
    }

    fn layout(&self, _spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let shape = |what: &str| FormatError::Shape { id: self.id(), n, k, what: what.into() };
        if k == 0 || !k.is_multiple_of(COLUMNS) {
            return Err(shape("columns must be a multiple of 32"));
        }
        let plane = |kind, row_bytes| PlaneLayout::new(kind, n, Some(row_bytes), 1);
        let planes = || {
            let codes = plane(PlaneKind::Codes, k / 2)?;
            Some(vec![codes, plane(PlaneKind::Scales, k / GROUP)?, plane(PlaneKind::OuterScales, 4)?])
        };
        let planes = planes().ok_or_else(|| shape("the weight would exceed the address space"))?;
        Ok(Layout { row_block: 1, planes })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        planes.check(spec, &spec.layout(planes.order, planes.n, planes.k)?, &rows, out.len())?;
        let (table, k) = (e4m3::table(), planes.k);
        for (row, values) in rows.zip(out.chunks_exact_mut(k)) {
            let local = row - planes.first_row;
            let outer = ScaleType::F32.load(planes.plane(2), local).unwrap_or(f32::NAN);
            let codes = planes.plane(0).get(local * k / 2..).unwrap_or_default().chunks_exact(COLUMNS / 2);
            let scales = planes.plane(1).get(local * k / GROUP..).unwrap_or_default().chunks_exact(COLUMNS / GROUP);
            let panels = values.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(codes.zip(scales));
            for (panel, (values, (codes, scales))) in panels.enumerate() {
                let codes = Width::Four.unpack_rows(codes);
                for (i, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                    let inner = table[usize::from(scales[i / GROUP])];
                    let scale = if self.divides { inner / outer } else { inner * outer };
                    *value = LEVELS[usize::from(code)] * scale;
                    if !value.is_finite() {
                        return Err(FormatError::NotFinite { row, column: panel * COLUMNS + i, value: *value });
                    }
                }
            }
        }
        Ok(())
    }

    fn grid(&self, _spec: &Spec) -> Grid {
        Grid::Opaque
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_times_both_scales() -> Result<(), FormatError> {
        // Codes 0 to 15 low, the same high: groups of 16 columns are alike. 0x38 is 1, 0x44 is 3.
        let codes: Vec<u8> = (0..16).map(|c| c | c << 4).collect();
        let (scales, outer) = ([0x38, 0x44], 4f32.to_le_bytes());
        for (id, factor) in [("nvfp4", 4.0), ("nvfp4_div", 0.25)] {
            let spec: Spec = id.parse()?;
            let view = Planes { order: Order::Rows, n: 1, k: 32, first_row: 0, data: &[&codes, &scales, &outer] };
            let mut out = [0.0; 32];
            spec.format()?.decode(&spec, &view, 0..1, &mut out)?;
            for (i, value) in out.iter().enumerate() {
                assert_eq!(*value, LEVELS[i % 16] * if i < 16 { factor } else { 3.0 * factor }, "{id} {i}");
            }
            let bad = Planes { data: &[&codes, &[0x38, 0x7f], &outer], ..view };
            let got = spec.format()?.decode(&spec, &bad, 0..1, &mut out);
            assert!(matches!(got, Err(FormatError::NotFinite { row: 0, column: 16, .. })), "{got:?}");
        }
        Ok(())
    }
}
