//! Formats that are a scalar grid with group scales: `q8`, `i4` and the table formats are constants of [`Grouped`].

use crate::layout::{Places, stored_rows};
use crate::x16::{COLUMNS, ROWS, Width};
use crate::{Format, FormatError, Grid, Groups, Layout, Levels, Peak, PlaneLayout, Planes, Spec, Variant, outliers};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// A scalar grid with one scale, and perhaps a zero point, per row and group of columns.
pub struct Grouped {
    /// The id.
    pub id: &'static str,
    /// Legal parameters, the default first.
    pub variants: &'static [Variant],
    /// Bits of a code.
    pub width: Width,
    /// What codes stand for.
    pub levels: Levels,
    /// How round-to-nearest scales.
    pub peak: Peak,
}

impl Grouped {
    fn groups(&self, spec: &Spec) -> Groups {
        let scale = spec.scale.or(self.variants.first().and_then(|v| v.scale)).unwrap_or(crate::ScaleType::F16);
        Groups {
            width: self.width,
            group: spec.group.max(COLUMNS),
            levels: self.levels,
            peak: self.peak,
            scale,
            zero_point: spec.zero_point,
        }
    }
}

impl Format for Grouped {
    fn id(&self) -> &'static str {
        self.id
    }

    fn row_block(&self) -> usize {
        ROWS
    }

    fn variants(&self) -> &'static [Variant] {
        self.variants
    }

    fn layout(&self, spec: &Spec, order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        let shape = |what: String| FormatError::Shape { id: self.id, n, k, what };
        let grid = self.groups(spec);
        if k == 0 || !k.is_multiple_of(grid.group) {
            return Err(shape(format!("columns must be a multiple of {}", grid.group)));
        }
        crate::spec::check_outliers(self.id, spec.outlier_slots, n, k)?;
        let planes = || {
            let rows = stored_rows(order, n)?;
            let groups = k / grid.group;
            let plane = |kind, row_bytes| PlaneLayout::new(kind, rows, row_bytes, ROWS);
            let mut planes = vec![
                plane(PlaneKind::Codes, (k / COLUMNS).checked_mul(COLUMNS * grid.width.bits() / 8))?,
                plane(PlaneKind::Scales, groups.checked_mul(grid.scale.size()))?,
            ];
            if grid.zero_point {
                planes.push(plane(PlaneKind::Zeros, Some(groups))?);
            }
            if spec.outlier_slots > 0 {
                planes.push(outliers::layout(spec.outlier_slots, rows, ROWS)?);
            }
            Some(planes)
        };
        let planes = planes().ok_or_else(|| shape("the weight would exceed the address space".into()))?;
        Ok(Layout { row_block: ROWS, planes })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        let layout = spec.layout(planes.order, planes.n, planes.k)?;
        planes.check(spec, &layout, &rows, out.len())?;
        let grid = self.groups(spec);
        let reader = Reader {
            places: Places { order: planes.order, k: planes.k, groups: planes.k / grid.group },
            table: grid.table(),
            codes: planes.plane(0),
            scales: planes.plane(1),
            zeros: planes.plane(2),
            grid,
        };
        for (row, values) in rows.zip(out.chunks_exact_mut(planes.k)) {
            let local = row - planes.first_row;
            for (group, values) in values.chunks_exact_mut(grid.group).enumerate() {
                reader.group(row, local, group, values)?;
            }
            if spec.outlier_slots > 0 {
                let plane = planes.plane(layout.planes.len() - 1);
                outliers::apply(self.id, plane, spec.outlier_slots, local, row, values)?;
            }
        }
        Ok(())
    }

    fn grid(&self, spec: &Spec) -> Grid {
        Grid::Groups(self.groups(spec))
    }
}

struct Reader<'a> {
    grid: Groups,
    places: Places,
    table: [f32; 256],
    codes: &'a [u8],
    scales: &'a [u8],
    zeros: &'a [u8],
}

impl Reader<'_> {
    /// Decodes one group of row `local` of the planes.
    fn group(&self, row: usize, local: usize, group: usize, values: &mut [f32]) -> Result<(), FormatError> {
        let at = self.places.parameter(local, group);
        let scale = self.grid.scale.load(self.scales, at).unwrap_or(f32::NAN);
        if !scale.is_finite() {
            return Err(FormatError::NotFinite { row, column: group * self.grid.group, value: scale });
        }
        let zero = if self.grid.zero_point { f32::from(self.zeros.get(at).copied().unwrap_or(0)) } else { 0.0 };
        for (i, values) in values.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
            let codes = codes(self.grid.width, self.places, self.codes, local, group * self.grid.group / COLUMNS + i);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = (self.table[usize::from(code)] - zero) * scale;
            }
        }
        // No level exceeds 2^9, so that only E8M0 scales near the end of the f32 range can overflow.
        if scale.abs() >= 2f32.powi(118)
            && let Some(at) = values.iter().position(|v| !v.is_finite())
        {
            let column = group * self.grid.group + at;
            return Err(FormatError::NotFinite { row, column, value: values.get(at).copied().unwrap_or(scale) });
        }
        Ok(())
    }
}

/// The 32 codes number `panel` of a row, from either order. A short plane reads as zeros.
#[inline]
pub(crate) fn codes(width: Width, places: Places, plane: &[u8], row: usize, panel: usize) -> [u8; COLUMNS] {
    let at = places.panel(row, panel);
    match places.order {
        Order::X16 => {
            let bytes = plane.get(at * width.panel_bytes()..(at + 1) * width.panel_bytes()).unwrap_or_default();
            width.row(bytes, row % ROWS)
        }
        Order::Rows => {
            let size = width.row_bytes();
            width.unpack_rows(plane.get(at * size..(at + 1) * size).unwrap_or_default())
        }
    }
}

/// The inverse of [`codes`]. Outside the plane: no effect.
#[inline]
pub(crate) fn set_codes(
    width: Width,
    places: Places,
    plane: &mut [u8],
    row: usize,
    panel: usize,
    codes: &[u8; COLUMNS],
) {
    let at = places.panel(row, panel);
    match places.order {
        Order::X16 => {
            if let Some(bytes) = plane.get_mut(at * width.panel_bytes()..(at + 1) * width.panel_bytes()) {
                width.set_row(bytes, row % ROWS, codes);
            }
        }
        Order::Rows => {
            let size = width.row_bytes();
            if let Some(bytes) = plane.get_mut(at * size..(at + 1) * size) {
                width.pack_rows(codes, bytes);
            }
        }
    }
}
