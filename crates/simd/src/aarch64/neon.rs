//! NEON with the dot-product extension: a vector is four registers.
#![allow(unused_unsafe, reason = "NEON is part of most aarch64 targets, whose intrinsics on values are then safe")]

use crate::{Isa, Kernel, Simd};
use core::arch::aarch64::*;
use core::arch::asm;

/// NEON and the dot-product extension.
#[derive(Clone, Copy, Debug)]
pub struct NeonDotprod(());

impl NeonDotprod {
    /// The token, if this CPU has both.
    #[inline]
    pub fn detect() -> Option<Self> {
        Isa::NeonDotprod.present().then_some(Self(()))
    }

    /// Runs `kernel` compiled for this ISA.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn inner<K: Kernel>(token: NeonDotprod, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists, so `detect` saw every feature that `inner` enables.
        unsafe { inner(self, kernel) }
    }

    /// acc + Σ of 4 products of signed bytes per lane.
    #[inline(always)]
    fn sdot(self, mut acc: int32x4_t, w: uint8x16_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: the token exists, so the CPU has the instruction, which only works on these registers.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
                acc = inout(vreg) acc,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }
}

/// An expression of intrinsics on values and references.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: the token `self` is made only by `detect`, which saw NEON; pointers among the operands come from
        // references to arrays of the size they read or write.
        unsafe { $e }
    };
}

/// The expression on every quarter of vectors. Not a closure: that would be compiled without the ISA and called.
macro_rules! quarters {
    ($($v:ident),+ => $e:expr) => {
        quarters!(@ [0 1 2 3] ($($v),+) $e)
    };
    (@ [$($i:tt)*] $vs:tt $e:expr) => {
        [$(quarters!(% $i $vs $e)),*]
    };
    (% $i:tt ($($v:ident),+) $e:expr) => {{
        $(let $v = $v[$i];)+
        proven!($e)
    }};
}

/// f32 lanes of IEEE halves in the low 16 bits of lanes.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn halves_to_f32(h: uint32x4_t) -> float32x4_t {
    // SAFETY: the caller vouches for NEON.
    unsafe {
        let magnitude = vshlq_n_u32::<13>(vandq_u32(h, vdupq_n_u32(0x7fff)));
        let sign = vshlq_n_u32::<16>(vandq_u32(h, vdupq_n_u32(0x8000)));
        let exponent = vdupq_n_u32(0x7c00);
        let special = vceqq_u32(vandq_u32(h, exponent), exponent);
        // As an f32 the bits mean 2^-112 of the half's value, subnormals included; the product is exact.
        let scaled = vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits((127 + 112) << 23)));
        let infinite = vorrq_u32(magnitude, vdupq_n_u32(0x7f80_0000));
        vreinterpretq_f32_u32(vorrq_u32(vbslq_u32(special, infinite, vreinterpretq_u32_f32(scaled)), sign))
    }
}

impl Simd for NeonDotprod {
    const ISA: Isa = Isa::NeonDotprod;
    const OFFSET: i32 = 0;
    const ROWS: usize = 2;
    type F32 = [float32x4_t; 4];
    type I32 = [int32x4_t; 4];
    type U8 = [uint8x16_t; 4];

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [float32x4_t; 4] {
        [proven!(vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [float32x4_t; 4] {
        let x = [&x[..4], &x[4..8], &x[8..12], &x[12..]];
        quarters!(x => vld1q_f32(x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> [float32x4_t; 4] {
        let x = [&x[..8], &x[8..16], &x[16..24], &x[24..]];
        quarters!(x => halves_to_f32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(x.as_ptr())))))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> [float32x4_t; 4] {
        let x = [&x[..8], &x[8..16], &x[16..24], &x[24..]];
        quarters!(x => vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(x.as_ptr())))))
    }
    #[inline(always)]
    fn store(self, v: [float32x4_t; 4], out: &mut [f32; 16]) {
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            proven!(vst1q_f32(out.as_mut_ptr(), v));
        }
    }
    #[inline(always)]
    fn add(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b, c => vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(a, b => vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn if_gt(
        self,
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        yes: [float32x4_t; 4],
        no: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        quarters!(a, b, yes, no => vbslq_f32(vcgtq_f32(a, b), yes, no))
    }
    #[inline(always)]
    fn zip(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> ([float32x4_t; 4], [float32x4_t; 4]) {
        let low = quarters!(a, b => vzip1q_f32(a, b));
        let high = quarters!(a, b => vzip2q_f32(a, b));
        ([low[0], high[0], low[1], high[1]], [low[2], high[2], low[3], high[3]])
    }
    #[inline(always)]
    fn sum(self, v: [float32x4_t; 4]) -> f32 {
        proven!({
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        })
    }
    #[inline(always)]
    fn greatest(self, v: [float32x4_t; 4]) -> f32 {
        proven!(vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[2]), vmaxq_f32(v[1], v[3]))))
    }
    #[inline(always)]
    fn pick(self, table: [float32x4_t; 4], index: [int32x4_t; 4]) -> [float32x4_t; 4] {
        let table = quarters!(table => vreinterpretq_u8_f32(table));
        let [a, b, c, d] = table;
        // Bytes 4i … 4i + 3 of the table of 64 bytes.
        quarters!(index => {
            let entry = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(15));
            let bytes = vaddq_u32(vmulq_n_u32(entry, 0x0404_0404), vdupq_n_u32(0x0302_0100));
            vreinterpretq_f32_u8(vqtbl4q_u8(uint8x16x4_t(a, b, c, d), vreinterpretq_u8_u32(bytes)))
        })
    }
    #[inline(always)]
    fn to_i32(self, v: [float32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(v => vcvtnq_s32_f32(v))
    }
    #[inline(always)]
    fn bits(self, v: [float32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(v => vreinterpretq_s32_f32(v))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [int32x4_t; 4] {
        [proven!(vdupq_n_s32(x)); 4]
    }
    #[inline(always)]
    fn halves(self, low: i32, high: i32) -> [int32x4_t; 4] {
        let x = [low, low, high, high];
        quarters!(x => vdupq_n_s32(x))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> [int32x4_t; 4] {
        proven!({
            let all = vld1q_u8(x.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(all)), vmovl_u8(vget_high_u8(all)));
            let words = [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)];
            quarters!(words => vreinterpretq_s32_u32(vmovl_u16(words)))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> [int32x4_t; 4] {
        proven!({
            let all = vld1q_s8(x.as_ptr().cast());
            let (low, high) = (vmovl_s8(vget_low_s8(all)), vmovl_s8(vget_high_s8(all)));
            let words = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            quarters!(words => vmovl_s16(words))
        })
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> [int32x4_t; 4] {
        let x = [&x[..4], &x[4..8], &x[8..12], &x[12..]];
        quarters!(x => vld1q_s32(x.as_ptr()))
    }
    #[inline(always)]
    fn store_bytes(self, v: [uint8x16_t; 4], out: &mut [u8; 64]) {
        for (out, v) in out.as_chunks_mut::<16>().0.iter_mut().zip(v) {
            proven!(vst1q_u8(out.as_mut_ptr(), v));
        }
    }
    #[inline(always)]
    fn store_i32(self, v: [int32x4_t; 4], out: &mut [i32; 16]) {
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            proven!(vst1q_s32(out.as_mut_ptr(), v));
        }
    }
    #[inline(always)]
    fn store_i8(self, v: [int32x4_t; 4], out: &mut [u8; 16]) {
        proven!({
            let low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
            let high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
            vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high))));
        });
    }
    #[inline(always)]
    fn sum_i32(self, v: [int32x4_t; 4]) -> i32 {
        proven!(vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))))
    }
    #[inline(always)]
    fn to_f32(self, v: [int32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(v => vcvtq_f32_s32(v))
    }
    #[inline(always)]
    fn as_f32(self, v: [int32x4_t; 4]) -> [float32x4_t; 4] {
        quarters!(v => vreinterpretq_f32_s32(v))
    }
    #[inline(always)]
    fn add_i32(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(a, b => vaddq_s32(a, b))
    }
    #[inline(always)]
    fn and(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(a, b => vandq_s32(a, b))
    }
    #[inline(always)]
    fn or(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(a, b => vorrq_s32(a, b))
    }
    #[inline(always)]
    fn shl(self, v: [int32x4_t; 4], n: u32) -> [int32x4_t; 4] {
        quarters!(v => vshlq_s32(v, vdupq_n_s32(n.cast_signed())))
    }
    #[inline(always)]
    fn shr(self, v: [int32x4_t; 4], n: u32) -> [int32x4_t; 4] {
        quarters!(v => {
            vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-n.cast_signed())))
        })
    }
    #[inline(always)]
    fn sar(self, v: [int32x4_t; 4], n: u32) -> [int32x4_t; 4] {
        quarters!(v => vshlq_s32(v, vdupq_n_s32(-n.cast_signed())))
    }
    #[inline(always)]
    fn shr_each(self, v: [int32x4_t; 4], n: [int32x4_t; 4]) -> [int32x4_t; 4] {
        quarters!(v, n => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vnegq_s32(n))))
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        // SAFETY: a hint; it reads no memory that a program could see.
        unsafe { asm!("prfm pldl1keep, [{x}]", x = in(reg) x, options(readonly, nostack, preserves_flags)) };
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> [uint8x16_t; 4] {
        let x = [&x[..16], &x[16..32], &x[32..48], &x[48..]];
        quarters!(x => vld1q_u8(x.as_ptr()))
    }
    #[inline(always)]
    fn lanes(self, v: [uint8x16_t; 4]) -> [int32x4_t; 4] {
        quarters!(v => vreinterpretq_s32_u8(v))
    }
    #[inline(always)]
    fn as_bytes(self, v: [int32x4_t; 4]) -> [uint8x16_t; 4] {
        quarters!(v => vreinterpretq_u8_s32(v))
    }
    #[inline(always)]
    fn repeat(self, x: &[u8; 16]) -> [uint8x16_t; 4] {
        [proven!(vld1q_u8(x.as_ptr())); 4]
    }
    #[inline(always)]
    fn sub_bytes(self, a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(a, b => vsubq_u8(a, b))
    }
    #[inline(always)]
    fn select(self, mask: u64, yes: [uint8x16_t; 4], no: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        const BIT: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        let bytes = mask.to_le_bytes();
        let pairs = [[bytes[0], bytes[1]], [bytes[2], bytes[3]], [bytes[4], bytes[5]], [bytes[6], bytes[7]]];
        // Every byte gets the mask byte that holds its bit, then only its bit.
        quarters!(pairs, yes, no => {
            let own = vcombine_u8(vdup_n_u8(pairs[0]), vdup_n_u8(pairs[1]));
            vbslq_u8(vtstq_u8(own, vld1q_u8(BIT.as_ptr())), yes, no)
        })
    }
    #[inline(always)]
    fn low_nibbles(self, v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(v => vandq_u8(v, vdupq_n_u8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(v => vshrq_n_u8::<4>(v))
    }
    #[inline(always)]
    fn weights(self, v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        v
    }
    #[inline(always)]
    fn table(self, values: &[i8; 16]) -> [uint8x16_t; 4] {
        [proven!(vreinterpretq_u8_s8(vld1q_s8(values.as_ptr()))); 4]
    }
    #[inline(always)]
    fn lookup(self, table: [uint8x16_t; 4], index: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        quarters!(table, index => vqtbl1q_u8(table, index))
    }
    #[inline(always)]
    fn dot(self, acc: [int32x4_t; 4], w: [uint8x16_t; 4], x: i32) -> [int32x4_t; 4] {
        let x = proven!(vdupq_n_s32(x));
        [self.sdot(acc[0], w[0], x), self.sdot(acc[1], w[1], x), self.sdot(acc[2], w[2], x), self.sdot(acc[3], w[3], x)]
    }
    #[inline(always)]
    fn dot_small(self, acc: [int32x4_t; 4], w: [uint8x16_t; 4], x: i32) -> [int32x4_t; 4] {
        self.dot(acc, w, x)
    }
}
