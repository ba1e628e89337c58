//! What a stored key or value is made of.

use ashlar_backend::{round_q8, to_f16};
use ashlar_simd::Simd;
use bytemuck::Pod;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// The codes of one format.
pub trait Element {
    /// One code.
    type Code: Pod;
    /// 16 of them.
    type Vector: Pod + Sync;
    /// 16 keys: as many neighbouring entries of each, key by key, as kernels multiply at once.
    type Keys: Pod + Sync;
    /// These entries.
    const KEY_ENTRIES: usize = 1;
    /// A code to begin with.
    const ZERO: Self::Code;
    /// Their values, without scale.
    fn load<S: Simd>(s: S, codes: &Self::Vector) -> S::F32;
    /// The values, without scale, of entry `i` of 16 keys.
    fn load_key<S: Simd>(s: S, keys: &Self::Keys, i: usize) -> S::F32;
    /// The codes of values that share a scale (as many), and the scale.
    fn encode(values: &[f32], codes: &mut [Self::Code]) -> f16;
}

/// As computed.
pub struct F32;

impl Element for F32 {
    type Code = f32;
    type Vector = [f32; 16];
    type Keys = [f32; 16];
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn load<S: Simd>(s: S, codes: &[f32; 16]) -> S::F32 {
        s.load(codes)
    }
    #[inline(always)]
    fn load_key<S: Simd>(s: S, keys: &[f32; 16], _: usize) -> S::F32 {
        s.load(keys)
    }
    fn encode(values: &[f32], codes: &mut [f32]) -> f16 {
        codes.copy_from_slice(values);
        f16::ONE
    }
}

/// IEEE halves.
pub struct F16;

impl Element for F16 {
    type Code = u16;
    type Vector = [u8; 32];
    type Keys = [u8; 32];
    const ZERO: u16 = 0;
    #[inline(always)]
    fn load<S: Simd>(s: S, codes: &[u8; 32]) -> S::F32 {
        s.load_f16(codes)
    }
    #[inline(always)]
    fn load_key<S: Simd>(s: S, keys: &[u8; 32], _: usize) -> S::F32 {
        s.load_f16(keys)
    }
    fn encode(values: &[f32], codes: &mut [u16]) -> f16 {
        let codes: &mut [f16] = bytemuck::cast_slice_mut(codes);
        if values.iter().all(|v| v.abs() < 65504.0) {
            codes.convert_from_f32_slice(values);
        } else {
            codes.iter_mut().zip(values).for_each(|(code, v)| *code = to_f16(*v));
        }
        f16::ONE
    }
}

/// 8-bit codes with scales.
pub struct Q8;

impl Element for Q8 {
    type Code = i8;
    type Vector = [u8; 16];
    type Keys = [u8; 64];
    const KEY_ENTRIES: usize = 4;
    const ZERO: i8 = 0;
    #[inline(always)]
    fn load<S: Simd>(s: S, codes: &[u8; 16]) -> S::F32 {
        s.to_f32(s.load_i8(codes))
    }
    #[inline(always)]
    fn load_key<S: Simd>(s: S, keys: &[u8; 64], i: usize) -> S::F32 {
        let lanes = s.lanes(s.bytes(keys));
        s.to_f32(s.sar(s.shl(lanes, 24 - 8 * i as u32), 24))
    }
    fn encode(values: &[f32], codes: &mut [i8]) -> f16 {
        round_q8(values, codes)
    }
}
