//! Group scales and zero points, `[row block][group][16]`: one vector per panel and group.

use super::super::{COLUMNS, PANEL};
use super::f32::Scaling;
use crate::loaded::Loaded;
use ashlar_formats::scale::e8m0_to_f32;
use ashlar_formats::{Groups, ScaleType};
use ashlar_simd::Simd;

/// The planes beside the codes; `ZP`: whether groups have zero points.
#[derive(Clone, Copy)]
pub struct GroupPlanes<'a, const ZP: bool> {
    scales: &'a [u8],
    zeros: &'a [[u8; PANEL]],
    kind: ScaleType,
    /// Groups along k.
    groups: usize,
    /// log2 of the panels' columns (32) per group.
    shift: u32,
}

impl<'a, const ZP: bool> GroupPlanes<'a, ZP> {
    /// The planes of a weight.
    pub fn new(weight: &'a Loaded, grid: &Groups) -> Self {
        Self {
            scales: weight.plane(1),
            zeros: if ZP { weight.plane(2).as_chunks().0 } else { &[] },
            kind: grid.scale,
            groups: weight.weight.k / grid.group,
            shift: (grid.group / COLUMNS).trailing_zeros(),
        }
    }

    /// Index of the vector for the 32 columns number `block`.
    #[inline(always)]
    fn at(&self, panel: usize, block: usize) -> usize {
        panel * self.groups + (block >> self.shift)
    }
}

impl<const ZP: bool> Scaling for GroupPlanes<'_, ZP> {
    const ZEROS: bool = ZP;

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F32 {
        let at = self.at(panel, block);
        match self.kind {
            ScaleType::F16 => s.load_f16(&self.scales.as_chunks().0[at]),
            ScaleType::BF16 => s.load_bf16(&self.scales.as_chunks().0[at]),
            ScaleType::F32 => s.as_f32(s.lanes(s.bytes(&self.scales.as_chunks().0[at]))),
            ScaleType::E8M0 => {
                let bytes: &[u8; PANEL] = &self.scales.as_chunks().0[at];
                let mut lanes = [0.0; PANEL];
                for (lane, byte) in lanes.iter_mut().zip(bytes) {
                    *lane = e8m0_to_f32(*byte);
                }
                s.load(&lanes)
            }
        }
    }

    #[inline(always)]
    fn zero<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F32 {
        let mut lanes = [0; PANEL];
        if ZP {
            for (lane, zero) in lanes.iter_mut().zip(&self.zeros[self.at(panel, block)]) {
                *lane = i32::from(*zero);
            }
        }
        s.to_f32(s.load_i32(&lanes))
    }
}
