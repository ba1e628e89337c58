//! Group scales and zero points, `[row block][group][16]`: one vector per panel and group.

use super::super::{COLUMNS, PANEL};
use super::f32::Scaling;
use crate::loaded::Loaded;
use ashlar_formats::Groups;
use ashlar_formats::scale::e8m0_to_f32;
use ashlar_simd::Simd;
use std::marker::PhantomData;

/// How scales are stored, as a type: a choice inside the loop over groups would keep its registers from being used well.
pub trait ScaleKind: Copy {
    /// Bytes of 16 scales.
    const BYTES: usize;
    /// 16 scales from that many bytes.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32;
}

/// IEEE half.
#[derive(Clone, Copy)]
pub struct F16;

impl ScaleKind for F16 {
    const BYTES: usize = 2 * PANEL;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        s.load_f16(bytes)
    }
}

/// Powers of two.
#[derive(Clone, Copy)]
pub struct E8M0;

impl ScaleKind for E8M0 {
    const BYTES: usize = PANEL;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32 {
        let mut lanes = [0.0; PANEL];
        for (lane, byte) in lanes.iter_mut().zip(bytes) {
            *lane = e8m0_to_f32(*byte);
        }
        s.load(&lanes)
    }
}

/// The planes beside the codes; `ZP`: whether groups have zero points.
#[derive(Clone, Copy)]
pub struct GroupPlanes<'a, K, const ZP: bool> {
    scales: &'a [u8],
    zeros: &'a [[u8; PANEL]],
    /// Groups along k.
    groups: usize,
    /// log2 of the panels' columns (32) per group.
    shift: u32,
    kind: PhantomData<K>,
}

impl<'a, K: ScaleKind, const ZP: bool> GroupPlanes<'a, K, ZP> {
    /// The planes of a weight.
    pub fn new(weight: &'a Loaded, grid: &Groups) -> Self {
        Self {
            scales: weight.plane(1),
            zeros: if ZP { weight.plane(2).as_chunks().0 } else { &[] },
            groups: weight.weight.k / grid.group,
            shift: (grid.group / COLUMNS).trailing_zeros(),
            kind: PhantomData,
        }
    }

    /// Index of the vector for the 32 columns number `block`.
    #[inline(always)]
    fn at(&self, panel: usize, block: usize) -> usize {
        panel * self.groups + (block >> self.shift)
    }
}

impl<K: ScaleKind, const ZP: bool> Scaling for GroupPlanes<'_, K, ZP> {
    const ZEROS: bool = ZP;

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F32 {
        let at = self.at(panel, block) * K::BYTES;
        K::load(s, &self.scales[at..at + K::BYTES])
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
