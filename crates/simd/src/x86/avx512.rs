//! AVX-512 with VNNI, with and without BF16: a vector is one register.

use crate::{Isa, Kernel, Simd, bf16};
use core::arch::x86_64::*;

/// AVX-512 F, BW, DQ, VL, VNNI and VBMI; with `BF16` also its bfloat16 dot product.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The token, if this CPU has every feature.
    #[inline]
    pub fn detect() -> Option<Self> {
        (Isa::Avx512Vnni.present() && (!BF16 || Isa::Avx512Vnni.multiplies_bf16())).then_some(Self(()))
    }

    /// Runs `kernel` compiled for this ISA.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
        fn plain<K: Kernel, const BF16: bool>(token: Avx512<BF16>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
        fn bf16<K: Kernel, const BF16: bool>(token: Avx512<BF16>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        if BF16 {
            // SAFETY: `self` exists, so `detect` saw every feature that `bf16` enables.
            unsafe { bf16(self, kernel) }
        } else {
            // SAFETY: `self` exists, so `detect` saw every feature that `plain` enables.
            unsafe { plain(self, kernel) }
        }
    }
}

/// The upper and the lower byte of the bfloat16 that is an E4M3 code without its sign.
const E4M3: [[u8; 128]; 2] = {
    let mut tables = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let (exponent, mantissa) = (code >> 3, code & 7);
        // m · 2^-9 below the least normal number, which is 2^-6: as 1.x · 2^(log2 m - 9).
        let bits = if exponent > 0 {
            ((exponent + 120) << 7) | (mantissa << 4)
        } else if mantissa > 0 {
            let log = (mantissa as u32).ilog2() as usize;
            ((118 + log) << 7) | ((mantissa << (7 - log)) & 0x7f)
        } else {
            0
        };
        tables[0][code] = (bits >> 8) as u8;
        tables[1][code] = bits as u8;
        code += 1;
    }
    tables
};

/// An expression of intrinsics on values and references.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: the token `self` is made only by `detect`, which saw every feature these intrinsics need; pointers
        // among their operands come from references to arrays of the size they read or write.
        unsafe { $e }
    };
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const ISA: Isa = Isa::Avx512Vnni;
    const OFFSET: i32 = 128;
    const ROWS: usize = 8;
    type F32 = __m512;
    type I32 = __m512i;
    type U8 = __m512i;

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_set1_epi32(x.to_bits().cast_signed())))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        proven!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> __m512 {
        proven!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; 16]) {
        proven!(_mm512_storeu_ps(out.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn if_gt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_mov_ps(no, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), yes))
    }
    #[inline(always)]
    fn zip(self, a: __m512, b: __m512) -> (__m512, __m512) {
        proven!({
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        })
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::sum8(eight)
        })
    }
    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn pick(self, table: __m512, index: __m512i) -> __m512 {
        proven!(_mm512_permutexvar_ps(index, table))
    }
    #[inline(always)]
    fn to_i32(self, v: __m512) -> __m512i {
        proven!(_mm512_cvtps_epi32(v))
    }
    #[inline(always)]
    fn bits(self, v: __m512) -> __m512i {
        proven!(_mm512_castps_si512(v))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn halves(self, low: i32, high: i32) -> __m512i {
        proven!(_mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> __m512i {
        proven!(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> __m512i {
        proven!(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> __m512i {
        proven!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, out: &mut [u8; 64]) {
        proven!(_mm512_storeu_si512(out.as_mut_ptr().cast(), v));
    }
    #[inline(always)]
    fn store_i32(self, v: __m512i, out: &mut [i32; 16]) {
        proven!(_mm512_storeu_si512(out.as_mut_ptr().cast(), v));
    }
    #[inline(always)]
    fn store_i8(self, v: __m512i, out: &mut [u8; 16]) {
        proven!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)));
    }
    #[inline(always)]
    fn sum_i32(self, v: __m512i) -> i32 {
        proven!(_mm512_reduce_add_epi32(v))
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn as_f32(self, v: __m512i) -> __m512 {
        proven!(_mm512_castsi512_ps(v))
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl(self, v: __m512i, n: u32) -> __m512i {
        proven!(_mm512_sll_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn shr(self, v: __m512i, n: u32) -> __m512i {
        proven!(_mm512_srl_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn sar(self, v: __m512i, n: u32) -> __m512i {
        proven!(_mm512_sra_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn shr_each(self, v: __m512i, n: __m512i) -> __m512i {
        proven!(_mm512_srlv_epi32(v, n))
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()));
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> __m512i {
        proven!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn lanes(self, v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    fn as_bytes(self, v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    fn repeat(self, x: &[u8; 16]) -> __m512i {
        proven!(_mm512_broadcast_i32x4(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn sub_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_sub_epi8(a, b))
    }
    #[inline(always)]
    fn select(self, mask: u64, yes: __m512i, no: __m512i) -> __m512i {
        proven!(_mm512_mask_blend_epi8(mask, no, yes))
    }
    #[inline(always)]
    fn low_nibbles(self, v: __m512i) -> __m512i {
        proven!(_mm512_and_si512(v, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, v: __m512i) -> __m512i {
        proven!(_mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn weights(self, v: __m512i) -> __m512i {
        proven!(_mm512_xor_si512(v, _mm512_set1_epi8(-128)))
    }
    #[inline(always)]
    fn table(self, values: &[i8; 16]) -> __m512i {
        self.weights(proven!(_mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()))))
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, index: __m512i) -> __m512i {
        proven!(_mm512_shuffle_epi8(table, index))
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        proven!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn dot_small(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, x: __m512i) -> __m512 {
        if !BF16 {
            return bf16::dot(self, acc, w, x);
        }
        // SAFETY: vectors of 64 bytes, any bits; the intrinsic: as `proven`, and `BF16` tokens vouch for it.
        proven!(_mm512_dpbf16_ps(
            acc,
            std::mem::transmute::<__m512i, __m512bh>(w),
            std::mem::transmute::<__m512i, __m512bh>(x)
        ))
    }
    #[inline(always)]
    fn dot_e4m3(self, acc: [__m512; 2], codes: __m512i, x: [i32; 2]) -> [__m512; 2] {
        if !BF16 {
            return bf16::dot_e4m3(self, acc, codes, x);
        }
        let look = |table: &[u8; 128]| {
            let halves = table.as_chunks::<64>().0;
            proven!(_mm512_permutex2var_epi8(self.bytes(&halves[0]), codes, self.bytes(&halves[1])))
        };
        let sign = proven!(_mm512_and_si512(codes, _mm512_set1_epi8(-128)));
        let (upper, lower) = (self.or(look(&E4M3[0]), sign), look(&E4M3[1]));
        // Of every four lanes, the first two and the last two: each lane gives two, so that sums of a lane lie side by side.
        let w = proven!([_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]);
        let x = i64::from(x[0].cast_unsigned()) | i64::from(x[1]) << 32;
        let x = proven!(_mm512_set1_epi64(x));
        [self.dot_bf16(acc[0], w[0], x), self.dot_bf16(acc[1], w[1], x)]
    }
    #[inline(always)]
    fn sum_e4m3(self, acc: [__m512; 2]) -> __m512 {
        if !BF16 {
            return self.add(acc[0], acc[1]);
        }
        let first = proven!(_mm512_shuffle_ps::<0b10_00_10_00>(acc[0], acc[1]));
        let second = proven!(_mm512_shuffle_ps::<0b11_01_11_01>(acc[0], acc[1]));
        self.add(first, second)
    }
}
