//! Formats whose group scales are small integers times an outer scale: `k4`, `k3`, `k2`, `k2h` and `q6` are constants of
//! [`Nested`].
//!
//! Planes of an n × k weight (k a multiple of 32), before panel order:
//!   codes        the low bits     n × k
//!   high codes   the bits above   n × k          only 3 and 6 bits have them
//!   scales       5, 6 or 8 bits   n × k/group    inner scale and grid, see [`crate::parameters`]
//!   outer        f16 or f32       n × spans      one per row, or per 256 columns, of which the last may be fewer
//! ŵ = grid[code] · (outer · inner): the product of the scales is rounded to f32 first.

use crate::grouped::codes;
use crate::layout::{Places, stored_rows};
use crate::x16::{COLUMNS, ROWS, Width};
use crate::{
    Format, FormatError, Grid, Inner, Layout, Levels, PlaneLayout, Planes, ScaleType, Spec, TwoLevel, Variant,
    outliers, parameters,
};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// A format with inner and outer scales.
pub struct Nested {
    /// The id.
    pub id: &'static str,
    /// Its only parameters.
    pub variants: &'static [Variant],
    /// Everything else.
    pub grid: TwoLevel,
}

/// What a two-level format is made of; its variant follows.
pub(crate) const fn variant(group: usize, outer: ScaleType) -> Variant {
    Variant { text: "", group, zero_point: false, scale: Some(outer) }
}

/// Two grids over codes in `low` and perhaps `high` bits.
pub(crate) const fn dual(
    (low, high): (Width, Option<Width>),
    group: usize,
    (span, outer): (Option<usize>, ScaleType),
    (bits, step, zero): (usize, i32, i32),
    grids: &'static [Levels],
) -> TwoLevel {
    TwoLevel { low, high, group, span, outer, inner: Inner::Dual { bits, step, zero }, grids }
}

impl Format for Nested {
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
        let shape = |what: &str| FormatError::Shape { id: self.id, n, k, what: what.into() };
        if k == 0 || !k.is_multiple_of(COLUMNS) {
            return Err(shape("columns must be a multiple of 32"));
        }
        crate::spec::check_outliers(self.id, spec.outlier_slots, n, k)?;
        let grid = &self.grid;
        let planes = || {
            let rows = stored_rows(order, n)?;
            let plane = |kind, row_bytes| PlaneLayout::new(kind, rows, row_bytes, ROWS);
            let codes = |width: Width| (k / COLUMNS).checked_mul(width.row_bytes());
            let mut planes = vec![plane(PlaneKind::Codes, codes(grid.low))?];
            if let Some(high) = grid.high {
                planes.push(plane(PlaneKind::HighCodes, codes(high))?);
            }
            planes.push(match order {
                Order::Rows => plane(PlaneKind::Scales, Some(k / grid.group))?,
                Order::X16 => {
                    let block = (k / grid.group).checked_mul(parameters::block_bytes(grid.inner.bits()));
                    PlaneLayout::new(PlaneKind::Scales, rows / ROWS, block, 1)?
                }
            });
            planes.push(plane(PlaneKind::OuterScales, grid.spans(k).checked_mul(grid.outer.size()))?);
            if spec.outlier_slots > 0 {
                planes.push(outliers::layout(spec.outlier_slots, rows, ROWS)?);
            }
            Some(planes)
        };
        let planes = planes().ok_or_else(|| shape("the weight would exceed the address space"))?;
        Ok(Layout { row_block: ROWS, planes })
    }

    fn decode(&self, spec: &Spec, planes: &Planes<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), FormatError> {
        let layout = spec.layout(planes.order, planes.n, planes.k)?;
        planes.check(spec, &layout, &rows, out.len())?;
        let grid = &self.grid;
        let plane = |kind| layout.planes.iter().position(|p| p.kind == kind).map_or(&[][..], |i| planes.plane(i));
        let places = |groups| Places { order: planes.order, k: planes.k, groups };
        let reader = Reader {
            grid,
            tables: grid.tables(),
            limit: f32::MAX / grid.reach(),
            groups: places(planes.k / grid.group),
            spans: places(grid.spans(planes.k)),
            low: plane(PlaneKind::Codes),
            high: plane(PlaneKind::HighCodes),
            inner: plane(PlaneKind::Scales),
            outer: plane(PlaneKind::OuterScales),
        };
        for (row, values) in rows.zip(out.chunks_exact_mut(planes.k)) {
            let local = row - planes.first_row;
            for (panel, values) in values.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
                reader.panel(row, local, panel, values)?;
            }
            if spec.outlier_slots > 0 {
                outliers::apply(self.id, plane(PlaneKind::Outliers), spec.outlier_slots, local, row, values)?;
            }
        }
        Ok(())
    }

    fn grid(&self, _spec: &Spec) -> Grid {
        Grid::TwoLevel(self.grid)
    }
}

struct Reader<'a> {
    grid: &'a TwoLevel,
    tables: [[f32; 64]; 2],
    /// The largest scale that makes no level infinite.
    limit: f32,
    groups: Places,
    spans: Places,
    low: &'a [u8],
    high: &'a [u8],
    inner: &'a [u8],
    outer: &'a [u8],
}

impl Reader<'_> {
    /// Decodes 32 columns of row `local` of the planes.
    fn panel(&self, row: usize, local: usize, panel: usize, values: &mut [f32; COLUMNS]) -> Result<(), FormatError> {
        let grid = self.grid;
        let mut codes = codes(grid.low, self.groups, self.low, local, panel);
        if let Some(high) = grid.high {
            let above = crate::grouped::codes(high, self.groups, self.high, local, panel);
            codes.iter_mut().zip(above).for_each(|(code, above)| *code |= above << grid.low.bits());
        }
        let per_panel = COLUMNS / grid.group;
        for (i, (values, codes)) in values.chunks_mut(grid.group).zip(codes.chunks(grid.group)).enumerate() {
            let group = panel * per_panel + i;
            let column = group * grid.group;
            let span = grid.span.map_or(0, |span| column / span);
            let outer = grid.outer.load(self.outer, self.spans.parameter(local, span)).unwrap_or(f32::NAN);
            let parameter = parameters::get(grid.inner.bits(), self.groups, self.inner, local, group);
            let (inner, which) = grid.inner.read(parameter);
            let scale = outer * inner as f32;
            if scale.is_nan() || scale.abs() > self.limit {
                return Err(FormatError::NotFinite { row, column, value: outer });
            }
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = self.tables[which][usize::from(code & 63)] * scale;
            }
        }
        Ok(())
    }
}
