//! `f32`, `f16`, `bf16`: plain values, one row-major plane, the same in every order.

use crate::{Format, FormatError, Layout, Options, PlaneLayout, Planes, Spec};
use ashlar_tensor::{Dtype, Order, PlaneKind};
use half::{bf16, f16};
use std::ops::Range;

/// A floating-point dtype as a format.
pub struct Float(pub Dtype);

impl Format for Float {
    fn id(&self) -> &'static str {
        match self.0 {
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
            _ => "f32",
        }
    }

    fn row_block(&self) -> usize {
        1
    }

    fn resolve(&self, options: &Options, _n: usize, _k: usize) -> Result<Spec, FormatError> {
        if *options != Options::default() {
            return Err(FormatError::Parameter { id: self.id(), what: "takes no group, zero_point or outliers".into() });
        }
        Ok(Spec::plain(self.id()))
    }

    fn layout(&self, _spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let row = (k * self.0.size()) as u64;
        let plane = PlaneLayout { kind: PlaneKind::Values, bytes: n as u64 * row, tile_bytes: row };
        Ok(Layout { row_block: 1, planes: vec![plane] })
    }

    fn decode(&self, _spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        let row = planes.k * self.0.size();
        let data = planes.data.first().copied().unwrap_or_default();
        let (start, end) = ((rows.start - planes.first_row) * row, (rows.end - planes.first_row) * row);
        let bytes =
            data.get(start..end).ok_or(FormatError::Short { id: self.id(), plane: 0, got: data.len(), expected: end })?;
        match self.0 {
            Dtype::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            Dtype::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
            _ => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
        }
        Ok(())
    }
}
