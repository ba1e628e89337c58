//! `f32`, `f16`, `bf16`: plain values, one row-major plane, the same in every order.

use crate::scale::f16_to_f32;
use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, Spec, Variant};
use ashlar_tensor::{Dtype, Order, PlaneKind};
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

    fn variants(&self) -> &'static [Variant] {
        &[Variant { text: "", group: 0, zero_point: false, scale: None }]
    }

    fn layout(&self, _spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let plane = PlaneLayout::new(PlaneKind::Values, n, k.checked_mul(self.0.size()), 1);
        let too_large =
            || FormatError::Shape { id: self.id(), n, k, what: "the weight would exceed the address space".into() };
        Ok(Layout { row_block: 1, planes: vec![plane.ok_or_else(too_large)?] })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        planes.check(spec, &spec.layout(planes.order, planes.n, planes.k)?, &rows, out.len())?;
        let start = (rows.start - planes.first_row) * planes.k * self.0.size();
        let bytes = planes.plane(0).get(start..).unwrap_or_default();
        match self.0 {
            Dtype::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16_to_f32(u16::from_le_bytes(*b));
                }
            }
            Dtype::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
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

    fn grid(&self, _spec: &Spec) -> Grid {
        Grid::Float(self.0)
    }
}
