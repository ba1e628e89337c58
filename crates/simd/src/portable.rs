//! [`Simd`] in plain Rust: the definition the other ISAs are tested against.

use crate::{Isa, Kernel, Simd};
use std::array::from_fn;

/// Any CPU. What is more than a copy is a call: unrolled into every kernel, sixteen lanes at a time, it would be half of the
/// time that kernels take to compile.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

/// The f32 of an IEEE half.
#[inline(always)]
fn f16_to_f32(h: u16) -> f32 {
    let magnitude = u32::from(h & 0x7fff) << 13;
    let sign = u32::from(h & 0x8000) << 16;
    if h & 0x7c00 == 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | magnitude);
    }
    // As an f32 the bits mean 2^-112 of the half's value, subnormals included; the product is exact.
    f32::from_bits(sign | (f32::from_bits(magnitude) * 2f32.powi(112)).to_bits())
}

impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const OFFSET: i32 = 0;
    const ROWS: usize = 2;
    type F32 = [f32; 16];
    type I32 = [i32; 16];
    type U8 = [u8; 64];

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(never)]
    fn load_f16(self, x: &[u8; 32]) -> [f32; 16] {
        from_fn(|i| f16_to_f32(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])))
    }
    #[inline(never)]
    fn load_bf16(self, x: &[u8; 32]) -> [f32; 16] {
        from_fn(|i| f32::from_bits(u32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])) << 16))
    }
    #[inline(always)]
    fn store(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }
    #[inline(never)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(never)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(never)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(never)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(never)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(never)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(never)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(never)]
    fn if_gt(self, a: [f32; 16], b: [f32; 16], yes: [f32; 16], no: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] > b[i] { yes[i] } else { no[i] })
    }
    #[inline(never)]
    fn zip(self, a: [f32; 16], b: [f32; 16]) -> ([f32; 16], [f32; 16]) {
        let lane = |i: usize| if i.is_multiple_of(2) { a[i / 2] } else { b[i / 2] };
        (from_fn(lane), from_fn(|i| lane(i + 16)))
    }
    #[inline(never)]
    fn sum(self, mut v: [f32; 16]) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(never)]
    fn greatest(self, v: [f32; 16]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    #[inline(never)]
    fn pick(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        from_fn(|i| table[(index[i] & 15) as usize])
    }
    #[inline(never)]
    fn to_i32(self, v: [f32; 16]) -> [i32; 16] {
        from_fn(|i| v[i].round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, v: [f32; 16]) -> [i32; 16] {
        from_fn(|i| v[i].to_bits().cast_signed())
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(never)]
    fn halves(self, low: i32, high: i32) -> [i32; 16] {
        from_fn(|i| if i < 8 { low } else { high })
    }
    #[inline(never)]
    fn load_u8(self, x: &[u8; 16]) -> [i32; 16] {
        x.map(i32::from)
    }
    #[inline(never)]
    fn load_i8(self, x: &[u8; 16]) -> [i32; 16] {
        from_fn(|i| i32::from(x[i].cast_signed()))
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> [i32; 16] {
        *x
    }
    #[inline(always)]
    fn store_bytes(self, v: [u8; 64], out: &mut [u8; 64]) {
        *out = v;
    }
    #[inline(always)]
    fn store_i32(self, v: [i32; 16], out: &mut [i32; 16]) {
        *out = v;
    }
    #[inline(never)]
    fn store_i8(self, v: [i32; 16], out: &mut [u8; 16]) {
        *out = v.map(|lane| lane as u8);
    }
    #[inline(never)]
    fn sum_i32(self, v: [i32; 16]) -> i32 {
        v.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(never)]
    fn to_f32(self, v: [i32; 16]) -> [f32; 16] {
        from_fn(|i| v[i] as f32)
    }
    #[inline(always)]
    fn as_f32(self, v: [i32; 16]) -> [f32; 16] {
        from_fn(|i| f32::from_bits(v[i].cast_unsigned()))
    }
    #[inline(never)]
    fn add_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(never)]
    fn and(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(never)]
    fn or(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(never)]
    fn shl(self, v: [i32; 16], n: u32) -> [i32; 16] {
        from_fn(|i| v[i].wrapping_shl(n))
    }
    #[inline(never)]
    fn shr(self, v: [i32; 16], n: u32) -> [i32; 16] {
        from_fn(|i| v[i].cast_unsigned().wrapping_shr(n).cast_signed())
    }
    #[inline(never)]
    fn sar(self, v: [i32; 16], n: u32) -> [i32; 16] {
        from_fn(|i| v[i].wrapping_shr(n))
    }
    #[inline(never)]
    fn shr_each(self, v: [i32; 16], n: [i32; 16]) -> [i32; 16] {
        from_fn(|i| v[i].cast_unsigned().wrapping_shr(n[i].cast_unsigned()).cast_signed())
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> [u8; 64] {
        *x
    }
    #[inline(never)]
    fn lanes(self, v: [u8; 64]) -> [i32; 16] {
        from_fn(|i| i32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]))
    }
    #[inline(never)]
    fn as_bytes(self, v: [i32; 16]) -> [u8; 64] {
        from_fn(|i| v[i / 4].to_le_bytes()[i % 4])
    }
    #[inline(always)]
    fn repeat(self, x: &[u8; 16]) -> [u8; 64] {
        from_fn(|i| x[i % 16])
    }
    #[inline(never)]
    fn sub_bytes(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(never)]
    fn select(self, mask: u64, yes: [u8; 64], no: [u8; 64]) -> [u8; 64] {
        from_fn(|i| if mask >> i & 1 == 1 { yes[i] } else { no[i] })
    }
    #[inline(never)]
    fn low_nibbles(self, v: [u8; 64]) -> [u8; 64] {
        v.map(|b| b & 15)
    }
    #[inline(never)]
    fn high_nibbles(self, v: [u8; 64]) -> [u8; 64] {
        v.map(|b| b >> 4)
    }
    #[inline(always)]
    fn weights(self, v: [u8; 64]) -> [u8; 64] {
        v
    }
    #[inline(never)]
    fn table(self, values: &[i8; 16]) -> [u8; 64] {
        from_fn(|i| values[i % 16].cast_unsigned())
    }
    #[inline(never)]
    fn lookup(self, table: [u8; 64], index: [u8; 64]) -> [u8; 64] {
        index.map(|i| table[usize::from(i & 15)])
    }
    #[inline(never)]
    fn dot(self, acc: [i32; 16], w: [u8; 64], x: i32) -> [i32; 16] {
        let x = x.to_le_bytes().map(u8::cast_signed);
        from_fn(|i| {
            (0..4).fold(acc[i], |sum, b| sum.wrapping_add(i32::from(w[4 * i + b].cast_signed()) * i32::from(x[b])))
        })
    }
    #[inline(always)]
    fn dot_small(self, acc: [i32; 16], w: [u8; 64], x: i32) -> [i32; 16] {
        self.dot(acc, w, x)
    }
}
