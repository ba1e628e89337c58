//! Scales and zero points of the 16 rows of a panel: one vector of each per group.

use super::super::{COLUMNS, PANEL};
use crate::loaded::Loaded;
use ashlar_formats::Groups;
use ashlar_simd::Simd;
use std::marker::PhantomData;

/// Scales, and perhaps zero points, of a weight.
pub trait Scaling: Copy {
    /// Whether levels are reduced by zero points.
    const ZEROS: bool;
    /// Scales of 32 columns: 1, or 2 of 16 columns each.
    const PARTS: usize = 1;
    /// Scale and zero point of part `part` of block `block` (32 columns) of a panel.
    fn at<S: Simd>(&self, s: S, panel: usize, block: usize, part: usize) -> (S::F32, S::F32);
    /// Asks for those of a block, counted from the first of the weight; beyond the last there are none.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, block: usize) {
        let _ = (s, block);
    }
}

/// How scales are stored, as a type: a choice inside the loop over groups would keep its registers from being used well.
pub trait ScaleKind: Copy {
    /// Bytes of 16 scales.
    const BYTES: usize;
    /// 16 scales from that many bytes.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32;
}

/// IEEE single.
#[derive(Clone, Copy)]
pub struct F32;

impl ScaleKind for F32 {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        s.as_f32(s.lanes(s.bytes(bytes)))
    }
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

/// Powers of two. Byte 255, which is NaN and which `convert` and `verify` refuse, reads as infinity.
#[derive(Clone, Copy)]
pub struct E8M0;

impl ScaleKind for E8M0 {
    const BYTES: usize = PANEL;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        // The byte is the exponent of an f32, but for byte 0: 2^-127 is a subnormal, which nothing else is below.
        s.max(s.as_f32(s.shl(s.load_u8(bytes), 23)), s.splat(f32::from_bits(0x0040_0000)))
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
}

impl<K: ScaleKind, const ZP: bool> Scaling for GroupPlanes<'_, K, ZP> {
    const ZEROS: bool = ZP;

    #[inline(always)]
    fn at<S: Simd>(&self, s: S, panel: usize, block: usize, _: usize) -> (S::F32, S::F32) {
        let at = panel * self.groups + (block >> self.shift);
        let scale = K::load(s, &self.scales[at * K::BYTES..(at + 1) * K::BYTES]);
        (scale, if ZP { s.to_f32(s.load_u8(&self.zeros[at])) } else { s.splat(0.0) })
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, block: usize) {
        let at = block >> self.shift;
        if let Some(scale) = self.scales.get(at * K::BYTES) {
            s.prefetch(scale);
        }
        if ZP && let Some(zeros) = self.zeros.get(at) {
            s.prefetch(zeros);
        }
    }
}
