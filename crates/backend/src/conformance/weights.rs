//! Random weights in every registered format, order and set of parameters.

use super::random::Random;
use crate::Weight;
use ashlar_formats::{Grid, Planes, ScaleType, Spec, outliers, reorder};
use ashlar_tensor::{AlignedBytes, Bytes, Order, PlaneKind};

/// A format in an order.
#[derive(Clone, Debug)]
pub struct Stored {
    pub spec: Spec,
    pub order: Order,
}

impl Stored {
    pub fn plain(id: &str) -> Option<Self> {
        Some(Self { spec: id.parse().ok()?, order: Order::Rows })
    }

    pub fn name(&self) -> String {
        format!("{} {:?}", self.spec, self.order)
    }

    /// Whether an n × k weight can be stored so.
    pub fn fits(&self, n: usize, k: usize) -> bool {
        self.spec.layout(self.order, n, k).is_ok()
    }

    /// The candidates that this format can take.
    pub fn shapes<const N: usize>(&self, candidates: [(usize, usize); N]) -> Vec<(usize, usize)> {
        candidates.into_iter().filter(|&(n, k)| self.fits(n, k)).collect()
    }
}

/// Every registered format with every set of parameters, the first of each also with an outlier plane; quantized ones
/// in both orders.
pub fn all() -> Vec<Stored> {
    let mut all = Vec::new();
    for id in ashlar_formats::ids() {
        let Ok(format) = ashlar_formats::format(id) else { continue };
        let mut texts: Vec<String> = format
            .variants()
            .iter()
            .map(|v| if v.text.is_empty() { id.to_owned() } else { format!("{id}:{}", v.text) })
            .collect();
        let float = format.variants().iter().all(|v| v.scale.is_none());
        if let (false, Some(first)) = (float, texts.first()) {
            texts.push(format!("{first}+o3"));
        }
        for spec in texts.iter().filter_map(|t| t.parse::<Spec>().ok()) {
            all.push(Stored { spec: spec.clone(), order: Order::Rows });
            if !float {
                all.push(Stored { spec, order: Order::X16 });
            }
        }
    }
    all
}

/// A random weight of that format; `None` if the shape does not fit.
pub fn random(stored: &Stored, n: usize, k: usize, name: &str, random: &mut Random) -> Option<Weight> {
    let rows = stored.spec.layout(Order::Rows, n, k).ok()?;
    let planes: Vec<AlignedBytes> =
        rows.planes.iter().map(|p| plane(&stored.spec, p.kind, p.bytes, n, k, random)).collect::<Option<_>>()?;
    let planes = match stored.order {
        Order::Rows => planes,
        Order::X16 => to_x16(&stored.spec, n, k, &planes)?,
    };
    let planes = planes.into_iter().map(Bytes::from).collect();
    Some(Weight { name: name.to_owned(), spec: stored.spec.clone(), order: stored.order, n, k, planes })
}

/// Plain f32 values as a weight.
pub fn floats(n: usize, k: usize, values: &[f32], name: &str) -> Option<Weight> {
    let mut bytes = AlignedBytes::zeroed(values.len() * 4)?;
    for (to, v) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *to = v.to_le_bytes();
    }
    let spec = "f32".parse().ok()?;
    Some(Weight { name: name.to_owned(), spec, order: Order::Rows, n, k, planes: vec![bytes.into()] })
}

fn to_x16(spec: &Spec, n: usize, k: usize, planes: &[AlignedBytes]) -> Option<Vec<AlignedBytes>> {
    let layout = spec.layout(Order::X16, n, k).ok()?;
    let sized = |bytes: u64| AlignedBytes::zeroed(usize::try_from(bytes).ok()?);
    let mut out: Vec<AlignedBytes> = layout.planes.iter().map(|p| sized(p.bytes)).collect::<Option<_>>()?;
    let data: Vec<&[u8]> = planes.iter().map(|p| &**p).collect();
    let from = Planes { order: Order::Rows, n, k, first_row: 0, data: &data };
    let mut slices: Vec<&mut [u8]> = out.iter_mut().map(|o| &mut **o).collect();
    reorder(spec, &from, 0..n, Order::X16, &mut slices).ok()?;
    Some(out)
}

fn plane(spec: &Spec, kind: PlaneKind, bytes: u64, n: usize, k: usize, random: &mut Random) -> Option<AlignedBytes> {
    let mut out = AlignedBytes::zeroed(usize::try_from(bytes).ok()?)?;
    match kind {
        // Values spread about zero; dividing keeps outputs near 1.
        PlaneKind::Values => fill_floats(spec.id, k, &mut out, random),
        PlaneKind::Codes => {
            for b in out.iter_mut() {
                *b = random.bits() as u8;
                // 0x7f and 0xff stand for NaN in e4m3.
                *b ^= if *b & 0x7f == 0x7f { 8 } else { 0 };
            }
        }
        PlaneKind::HighCodes => out.iter_mut().for_each(|b| *b = random.bits() as u8),
        PlaneKind::Scales => match spec.grid().ok()? {
            // Small integers, every one legal.
            Grid::TwoLevel(grid) => out.iter_mut().for_each(|b| *b = random.bits() as u8 >> (8 - grid.inner.bits())),
            _ => fill_scales(spec.scale?, 1.0, &mut out, random),
        },
        // Inner scales reach 8 to 128.
        PlaneKind::OuterScales => fill_scales(spec.scale?, 1.0 / 64.0, &mut out, random),
        PlaneKind::Zeros => out.iter_mut().for_each(|b| *b = random.below(16) as u8),
        PlaneKind::Outliers => {
            for row in 0..n {
                let columns = (0..spec.outlier_slots)
                    .map(|s| s * k / spec.outlier_slots + random.below(k / 4))
                    .collect::<Vec<_>>();
                // The last slot of some rows stays unused.
                let used = spec.outlier_slots - random.below(2);
                let pairs: Vec<(u16, f32)> =
                    columns.iter().take(used).map(|&c| (c.min(k - 1) as u16, random.normal())).collect();
                outliers::store(&mut out, spec.outlier_slots, row, pairs.into_iter());
            }
        }
    }
    Some(out)
}

fn fill_floats(id: &str, k: usize, out: &mut [u8], random: &mut Random) {
    let norm = (k as f32).sqrt().recip();
    if id == "f32" {
        out.as_chunks_mut::<4>().0.iter_mut().for_each(|o| *o = (random.normal() * norm).to_le_bytes());
        return;
    }
    // For f16 (5 exponent bits) and bf16 (8) alike: bit patterns of small finite numbers of both signs.
    for o in out.as_chunks_mut::<2>().0 {
        let value = random.normal() * norm;
        let bits = if id == "bf16" { (value.to_bits() >> 16) as u16 } else { half_bits(value) };
        *o = bits.to_le_bytes();
    }
}

/// f16 bits of a number of moderate size, truncated.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    let sign = (bits >> 16) as u16 & 0x8000;
    if exponent <= 0 { sign } else { sign | ((exponent.min(30) as u16) << 10) | ((bits >> 13) & 0x3ff) as u16 }
}

/// About 0.02 · size.
fn fill_scales(scale: ScaleType, size: f32, out: &mut [u8], random: &mut Random) {
    match scale {
        ScaleType::E8M0 => out.iter_mut().for_each(|b| *b = 118 + random.below(6) as u8),
        ScaleType::F32 => {
            let two = |r: &mut Random| (size * (0.01 + 0.02 * r.unit())).to_le_bytes();
            out.as_chunks_mut::<4>().0.iter_mut().for_each(|o| *o = two(random));
        }
        ScaleType::BF16 => {
            let bits = |r: &mut Random| (((size * (0.01 + 0.02 * r.unit())).to_bits() >> 16) as u16).to_le_bytes();
            out.as_chunks_mut::<2>().0.iter_mut().for_each(|o| *o = bits(random));
        }
        ScaleType::F16 => {
            out.as_chunks_mut::<2>()
                .0
                .iter_mut()
                .for_each(|o| *o = half_bits(size * (0.01 + 0.02 * random.unit())).to_le_bytes());
        }
    }
}
