//! Row order to x16 and back, losslessly: only the places of bytes change.

use crate::grouped::{codes, set_codes};
use crate::layout::Places;
use crate::x16::{COLUMNS, Width};
use crate::{FormatError, Grid, Planes, Spec, parameters};
use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// Rewrites the tiles of `rows` in order `to`. `out` holds one slice per plane of `spec.layout(to, n, k)`, each exactly
/// the bytes of `rows` ([`crate::Layout::span`]); rows beyond n become zero bytes. `rows` starts at a tile border and
/// ends at one or at n.
///
/// # Errors
/// [`FormatError`] if the shape does not fit the format, or a slice is too short, or `rows` are not whole tiles.
pub fn reorder(
    spec: &Spec,
    from: &Planes<'_>,
    rows: Range<usize>,
    to: Order,
    out: &mut [&mut [u8]],
) -> Result<(), FormatError> {
    let (n, k) = (from.n, from.k);
    let source = spec.layout(from.order, n, k)?;
    from.check(spec, &source, &rows, rows.len().saturating_mul(k))?;
    let target = spec.layout(to, n, k)?;
    let lengths: Vec<usize> = out.iter().map(|o| o.len()).collect();
    target.check(spec.id, n, &rows, &lengths)?;
    if rows.end != n && !rows.end.is_multiple_of(target.row_block) {
        let what = format!("rows {rows:?} of {n} do not end at a multiple of {}", target.row_block);
        return Err(FormatError::Rows { id: spec.id, what });
    }
    let grid = spec.grid()?;
    let groups = match grid {
        Grid::Groups(g) => k / g.group,
        Grid::TwoLevel(g) => k / g.group,
        _ => 0,
    };
    let [old, new] = [from.order, to].map(|order| Places { order, k, groups });
    let skip = rows.start - from.first_row;
    for (index, (plane, out)) in source.planes.iter().zip(out.iter_mut()).enumerate() {
        let data = from.plane(index);
        out.fill(0);
        match (plane.kind, grid) {
            (PlaneKind::Codes, Grid::Groups(g)) => move_codes(g.width, old, new, data, skip, rows.len(), out),
            (PlaneKind::Codes, Grid::TwoLevel(g)) => move_codes(g.low, old, new, data, skip, rows.len(), out),
            (PlaneKind::HighCodes, Grid::TwoLevel(g)) => {
                move_codes(g.high.unwrap_or(Width::One), old, new, data, skip, rows.len(), out);
            }
            (PlaneKind::Scales, Grid::TwoLevel(g)) => {
                for (row, group) in (0..rows.len()).flat_map(|row| (0..groups).map(move |group| (row, group))) {
                    let parameter = parameters::get(g.inner.bits(), old, data, skip + row, group);
                    parameters::set(g.inner.bits(), new, out, row, group, parameter);
                }
            }
            (PlaneKind::OuterScales, Grid::TwoLevel(g)) => {
                let spans = |places| Places { groups: g.spans(k), ..places };
                move_parameters(g.outer.size(), spans(old), spans(new), data, skip, rows.len(), out);
            }
            (PlaneKind::Codes, Grid::Blocks(_)) => move_codes(Width::Eight, old, new, data, skip, rows.len(), out),
            (PlaneKind::Scales | PlaneKind::Zeros, Grid::Groups(g)) => {
                let size = if plane.kind == PlaneKind::Scales { g.scale.size() } else { 1 };
                move_parameters(size, old, new, data, skip, rows.len(), out);
            }
            // Values, opaque blocks, block scales and outliers lie alike in both orders, but for the padding.
            _ => {
                let whole = from.first_row..rows.end;
                let start = (source.span(index, &rows).start - source.span(index, &whole).start) as usize;
                let have = data.get(start..).unwrap_or_default();
                let rows_alike = match plane.kind {
                    PlaneKind::Outliers => rows.len() * spec.outlier_slots * crate::outliers::SLOT_BYTES,
                    _ => out.len(),
                };
                let len = rows_alike.min(have.len()).min(out.len());
                if let (Some(out), Some(have)) = (out.get_mut(..len), have.get(..len)) {
                    out.copy_from_slice(have);
                }
            }
        }
    }
    Ok(())
}

fn move_codes(width: Width, old: Places, new: Places, data: &[u8], skip: usize, rows: usize, out: &mut [u8]) {
    for row in 0..rows {
        for panel in 0..old.k / COLUMNS {
            let moved = codes(width, old, data, skip + row, panel);
            set_codes(width, new, out, row, panel, &moved);
        }
    }
}

fn move_parameters(size: usize, old: Places, new: Places, data: &[u8], skip: usize, rows: usize, out: &mut [u8]) {
    for row in 0..rows {
        for group in 0..old.groups {
            let (from, to) = (old.parameter(skip + row, group) * size, new.parameter(row, group) * size);
            if let (Some(from), Some(to)) = (data.get(from..from + size), out.get_mut(to..to + size)) {
                to.copy_from_slice(from);
            }
        }
    }
}
