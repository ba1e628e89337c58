//! `fp8_row`: E4M3 floats with one scale per row, f32 or bf16, as other programs' checkpoints have them. Kept, never chosen;
//! kernels read it through decode.
//!
//! Planes of an n × k weight, row by row, the same in both orders:
//!   codes   e4m3          n × k
//!   scales  f32 or bf16   n         ŵ = code · scale
//! Codes 0x7f and 0xff are NaN: an error when decoded. Page: `docs/formats/imported.md`.

use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, ScaleType, Spec, Variant, e4m3};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// The format.
pub struct Fp8Row;

const fn variant(text: &'static str, scale: ScaleType) -> Variant {
    Variant { text, group: 0, zero_point: false, scale: Some(scale) }
}

impl Format for Fp8Row {
    fn id(&self) -> &'static str {
        "fp8_row"
    }

    fn row_block(&self) -> usize {
        1
    }

    fn variants(&self) -> &'static [Variant] {
        const { &[variant("f32", ScaleType::F32), variant("bf16", ScaleType::BF16)] }
    }

    fn layout(&self, spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let shape = |what: &str| FormatError::Shape { id: self.id(), n, k, what: what.into() };
        if k == 0 || spec.outlier_slots > 0 {
            return Err(shape("it needs columns and takes no outliers"));
        }
        let planes = || {
            let scale = spec.scale.unwrap_or(ScaleType::F32).size();
            let codes = PlaneLayout::new(PlaneKind::Codes, n, Some(k), 1)?;
            Some(vec![codes, PlaneLayout::new(PlaneKind::Scales, n, Some(scale), 1)?])
        };
        let planes = planes().ok_or_else(|| shape("the weight would exceed the address space"))?;
        Ok(Layout { row_block: 1, planes })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        planes.check(spec, &spec.layout(planes.order, planes.n, planes.k)?, &rows, out.len())?;
        let (table, stored) = (e4m3::table(), spec.scale.unwrap_or(ScaleType::F32));
        for (row, values) in rows.zip(out.chunks_exact_mut(planes.k)) {
            let local = row - planes.first_row;
            let scale = stored.load(planes.plane(1), local).unwrap_or(f32::NAN);
            let codes = planes.plane(0).get(local * planes.k..).unwrap_or_default();
            for (column, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                *value = table[usize::from(*code)] * scale;
                if !value.is_finite() {
                    return Err(FormatError::NotFinite { row, column, value: *value });
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
    fn a_code_times_the_scale_of_its_row() -> Result<(), FormatError> {
        // 0x38 is 1, 0xc0 is -2, 0x01 is 2^-9.
        let codes = [0x38, 0xc0, 0x01, 0x38];
        for (text, scales) in
            [("fp8_row:f32", vec![0, 0, 0x40, 0x40, 0, 0, 0, 0x3f]), ("fp8_row:bf16", vec![0x40, 0x40, 0, 0x3f])]
        {
            let spec: Spec = text.parse()?;
            assert_eq!(spec.to_string(), text);
            let view = Planes { order: Order::X16, n: 2, k: 2, first_row: 0, data: &[&codes, &scales] };
            let mut out = [0.0; 4];
            spec.format()?.decode(&spec, &view, 0..2, &mut out)?;
            assert_eq!(out, [3.0, -6.0, 0.5 / 512.0, 0.5]);
            let mut moved = (vec![9; codes.len()], vec![9; scales.len()]);
            let rows = Planes { order: Order::Rows, ..view };
            crate::reorder(&spec, &rows, 0..2, Order::X16, &mut [&mut moved.0, &mut moved.1])?;
            assert_eq!(moved, (codes.to_vec(), scales));
        }
        assert!("fp8_row:f32+o2".parse::<Spec>()?.layout(Order::Rows, 2, 2).is_err());
        Ok(())
    }

    #[test]
    fn a_code_that_is_no_number_is_an_error() -> Result<(), FormatError> {
        let spec: Spec = "fp8_row:f32".parse()?;
        let view = Planes { order: Order::Rows, n: 1, k: 2, first_row: 0, data: &[&[0x38, 0x7f], &[0, 0, 0x80, 0x3f]] };
        let got = spec.format()?.decode(&spec, &view, 0..1, &mut [0.0; 2]);
        assert!(matches!(got, Err(FormatError::NotFinite { row: 0, column: 1, .. })), "{got:?}");
        Ok(())
    }
}
