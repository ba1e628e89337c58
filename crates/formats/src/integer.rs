//! `i64`: integers that belong to a model, such as a table from tokens to experts. Kept as they are: no recipe can ask for
//! them, so that they are not among [`crate::ids`].

use crate::{Format, FormatError, Grid, Layout, PlaneLayout, Planes, Spec, Variant};
use ashlar_tensor::{Dtype, Order, PlaneKind};
use std::ops::Range;

/// Little-endian, row-major, the same in every order.
pub struct Integer;

impl Format for Integer {
    fn id(&self) -> &'static str {
        "i64"
    }

    fn row_block(&self) -> usize {
        1
    }

    fn variants(&self) -> &'static [Variant] {
        &[Variant { text: "", group: 0, zero_point: false, scale: None }]
    }

    fn layout(&self, _spec: &Spec, _order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let plane = PlaneLayout::new(PlaneKind::Values, n, k.checked_mul(Dtype::I64.size()), 1);
        let too_large =
            || FormatError::Shape { id: self.id(), n, k, what: "the weight would exceed the address space".into() };
        Ok(Layout { row_block: 1, planes: vec![plane.ok_or_else(too_large)?] })
    }

    /// Values beyond 2^24 are rounded.
    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        planes.check(spec, &spec.layout(planes.order, planes.n, planes.k)?, &rows, out.len())?;
        let start = (rows.start - planes.first_row) * planes.k * Dtype::I64.size();
        let bytes = planes.plane(0).get(start..).unwrap_or_default();
        for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *o = i64::from_le_bytes(*b) as f32;
        }
        Ok(())
    }

    fn grid(&self, _spec: &Spec) -> Grid {
        Grid::Float(Dtype::I64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_but_cannot_be_asked_for() -> Result<(), FormatError> {
        let spec: Spec = "i64".parse()?;
        assert_eq!((spec.to_string().as_str(), crate::ids().any(|id| id == "i64")), ("i64", false));
        let bytes: Vec<u8> = [3i64, -1, 255, 7].into_iter().flat_map(i64::to_le_bytes).collect();
        let planes = Planes { order: Order::Rows, n: 2, k: 2, first_row: 0, data: &[&bytes] };
        let mut out = [0.0; 2];
        spec.format()?.decode(&spec, &planes, 1..2, &mut out)?;
        assert_eq!(out, [255.0, 7.0]);
        Ok(())
    }
}
