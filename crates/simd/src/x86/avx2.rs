//! AVX2 (with FMA and F16C), with and without the VEX-encoded VNNI: a vector is two registers.

use crate::{Isa, Kernel, Simd};
use core::arch::x86_64::*;

/// AVX2, FMA and F16C; with `VNNI` also AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx<const VNNI: bool>(());

/// AVX2, FMA and F16C.
pub type Avx2 = Avx<false>;
/// AVX2, FMA, F16C and AVX-VNNI.
pub type AvxVnni = Avx<true>;

impl<const VNNI: bool> Avx<VNNI> {
    const THIS: Isa = if VNNI { Isa::AvxVnni } else { Isa::Avx2 };

    /// The token, if this CPU has every feature.
    #[inline]
    pub fn detect() -> Option<Self> {
        Self::THIS.present().then_some(Self(()))
    }

    /// Runs `kernel` compiled for this ISA.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn plain<K: Kernel, const VNNI: bool>(token: Avx<VNNI>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn vnni<K: Kernel, const VNNI: bool>(token: Avx<VNNI>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        if VNNI {
            // SAFETY: `self` exists, so `detect` saw every feature that `vnni` enables.
            unsafe { vnni(self, kernel) }
        } else {
            // SAFETY: `self` exists, so `detect` saw every feature that `plain` enables.
            unsafe { plain(self, kernel) }
        }
    }
}

/// An expression of intrinsics on values and references.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: the token `self` is made only by `detect`, which saw every feature these intrinsics need; pointers
        // among their operands come from references to arrays of the size they read or write.
        unsafe { $e }
    };
}

/// The expression on both halves of a vector. Not `<[_; 2]>::map`: that is no `#[inline(always)]` function, so that it
/// and the intrinsics in it would be compiled without the ISA and called.
macro_rules! halves {
    ($v:ident => $e:expr) => {{
        let [low, high] = $v;
        let low = {
            let $v = low;
            proven!($e)
        };
        let high = {
            let $v = high;
            proven!($e)
        };
        [low, high]
    }};
}

/// Sum of 8 lanes: i with i + 4, + 2, + 1.
///
/// # Safety
/// The CPU must have AVX.
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller vouches for AVX, which includes SSE.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

impl<const VNNI: bool> Simd for Avx<VNNI> {
    const ISA: Isa = Self::THIS;
    const OFFSET: i32 = if VNNI { 128 } else { 0 };
    const ROWS: usize = 4;
    type F32 = [__m256; 2];
    type I32 = [__m256i; 2];
    type U8 = [__m256i; 2];

    #[inline(never)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        [proven!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [__m256; 2] {
        proven!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())])
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> [__m256; 2] {
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x[16..].as_ptr().cast()))
        ])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> [__m256; 2] {
        proven!({
            let a = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let b = _mm256_cvtepu16_epi32(_mm_loadu_si128(x[16..].as_ptr().cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b))]
        })
    }
    #[inline(always)]
    fn store(self, v: [__m256; 2], out: &mut [f32; 16]) {
        proven!({
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
        });
    }
    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn if_gt(self, a: [__m256; 2], b: [__m256; 2], yes: [__m256; 2], no: [__m256; 2]) -> [__m256; 2] {
        proven!([
            _mm256_blendv_ps(no[0], yes[0], _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(no[1], yes[1], _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]))
        ])
    }
    #[inline(always)]
    fn zip(self, a: [__m256; 2], b: [__m256; 2]) -> ([__m256; 2], [__m256; 2]) {
        proven!({
            let (even, odd) = (_mm256_unpacklo_ps(a[0], b[0]), _mm256_unpackhi_ps(a[0], b[0]));
            let low = [_mm256_permute2f128_ps::<0x20>(even, odd), _mm256_permute2f128_ps::<0x31>(even, odd)];
            let (even, odd) = (_mm256_unpacklo_ps(a[1], b[1]), _mm256_unpackhi_ps(a[1], b[1]));
            (low, [_mm256_permute2f128_ps::<0x20>(even, odd), _mm256_permute2f128_ps::<0x31>(even, odd)])
        })
    }
    #[inline(always)]
    fn sum(self, v: [__m256; 2]) -> f32 {
        proven!(sum8(_mm256_add_ps(v[0], v[1])))
    }
    #[inline(always)]
    fn greatest(self, v: [__m256; 2]) -> f32 {
        proven!({
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn pick(self, table: [__m256; 2], index: [__m256i; 2]) -> [__m256; 2] {
        halves!(index => {
            let low = _mm256_permutevar8x32_ps(table[0], index);
            let high = _mm256_permutevar8x32_ps(table[1], index);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        })
    }
    #[inline(always)]
    fn to_i32(self, v: [__m256; 2]) -> [__m256i; 2] {
        halves!(v => _mm256_cvtps_epi32(v))
    }
    #[inline(always)]
    fn bits(self, v: [__m256; 2]) -> [__m256i; 2] {
        halves!(v => _mm256_castps_si256(v))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [__m256i; 2] {
        [proven!(_mm256_set1_epi32(x)); 2]
    }
    #[inline(always)]
    fn halves(self, low: i32, high: i32) -> [__m256i; 2] {
        proven!([_mm256_set1_epi32(low), _mm256_set1_epi32(high)])
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> [__m256i; 2] {
        proven!({
            let all = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(all, all))]
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> [__m256i; 2] {
        proven!({
            let all = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all))]
        })
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> [__m256i; 2] {
        proven!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[8..].as_ptr().cast())])
    }
    #[inline(always)]
    fn store_bytes(self, v: [__m256i; 2], out: &mut [u8; 64]) {
        proven!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out[32..].as_mut_ptr().cast(), v[1]);
        });
    }
    #[inline(always)]
    fn store_i32(self, v: [__m256i; 2], out: &mut [i32; 16]) {
        proven!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out[8..].as_mut_ptr().cast(), v[1]);
        });
    }
    #[inline(always)]
    fn store_i8(self, v: [__m256i; 2], out: &mut [u8; 16]) {
        proven!({
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
        });
    }
    #[inline(always)]
    fn sum_i32(self, v: [__m256i; 2]) -> i32 {
        proven!({
            let eight = _mm256_add_epi32(v[0], v[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        })
    }
    #[inline(always)]
    fn to_f32(self, v: [__m256i; 2]) -> [__m256; 2] {
        halves!(v => _mm256_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn as_f32(self, v: [__m256i; 2]) -> [__m256; 2] {
        halves!(v => _mm256_castsi256_ps(v))
    }
    #[inline(always)]
    fn add_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn and(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn shl(self, v: [__m256i; 2], n: u32) -> [__m256i; 2] {
        halves!(v => _mm256_sll_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn shr(self, v: [__m256i; 2], n: u32) -> [__m256i; 2] {
        halves!(v => _mm256_srl_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn sar(self, v: [__m256i; 2], n: u32) -> [__m256i; 2] {
        halves!(v => _mm256_sra_epi32(v, _mm_cvtsi32_si128(n.cast_signed())))
    }
    #[inline(always)]
    fn shr_each(self, v: [__m256i; 2], n: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_srlv_epi32(v[0], n[0]), _mm256_srlv_epi32(v[1], n[1])])
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()));
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> [__m256i; 2] {
        proven!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[32..].as_ptr().cast())])
    }
    #[inline(always)]
    fn lanes(self, v: [__m256i; 2]) -> [__m256i; 2] {
        v
    }
    #[inline(always)]
    fn as_bytes(self, v: [__m256i; 2]) -> [__m256i; 2] {
        v
    }
    #[inline(always)]
    fn repeat(self, x: &[u8; 16]) -> [__m256i; 2] {
        [proven!(_mm256_broadcastsi128_si256(_mm_loadu_si128(x.as_ptr().cast()))); 2]
    }
    #[inline(always)]
    fn sub_bytes(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_sub_epi8(a[0], b[0]), _mm256_sub_epi8(a[1], b[1])])
    }
    #[inline(always)]
    fn select(self, mask: u64, yes: [__m256i; 2], no: [__m256i; 2]) -> [__m256i; 2] {
        let [mut low, mut high] = no;
        // A loop, not a closure, for the reason given at `halves`.
        for (no, yes, mask) in [(&mut low, yes[0], mask as i32), (&mut high, yes[1], (mask >> 32) as i32)] {
            *no = proven!({
                // Every byte gets the mask byte that holds its bit, then only its bit.
                let from = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
                let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
                let own = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(mask), from), bit);
                _mm256_blendv_epi8(*no, yes, _mm256_cmpeq_epi8(own, bit))
            });
        }
        [low, high]
    }
    #[inline(always)]
    fn low_nibbles(self, v: [__m256i; 2]) -> [__m256i; 2] {
        halves!(v => _mm256_and_si256(v, _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, v: [__m256i; 2]) -> [__m256i; 2] {
        halves!(v => _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn weights(self, v: [__m256i; 2]) -> [__m256i; 2] {
        if VNNI { halves!(v => _mm256_xor_si256(v, _mm256_set1_epi8(-128))) } else { v }
    }
    #[inline(always)]
    fn table(self, values: &[i8; 16]) -> [__m256i; 2] {
        let table = proven!(_mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())));
        self.weights([table; 2])
    }
    #[inline(always)]
    fn lookup(self, table: [__m256i; 2], index: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_shuffle_epi8(table[0], index[0]), _mm256_shuffle_epi8(table[1], index[1])])
    }
    #[inline(always)]
    fn dot(self, acc: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        if VNNI {
            return self.dot_small(acc, w, x);
        }
        let [mut low, mut high] = acc;
        // A loop, not a closure, for the reason given at `halves`.
        for (acc, w) in [(&mut low, w[0]), (&mut high, w[1])] {
            // |w| · (x with w's sign): a pair is at most 2 · 128 · 127, which fits the i16 sums that would saturate.
            *acc = proven!({
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(x), w));
                _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            });
        }
        [low, high]
    }
    #[inline(always)]
    fn dot_small(self, acc: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        if VNNI {
            return proven!([
                _mm256_dpbusd_avx_epi32(acc[0], w[0], _mm256_set1_epi32(x)),
                _mm256_dpbusd_avx_epi32(acc[1], w[1], _mm256_set1_epi32(x))
            ]);
        }
        let [mut low, mut high] = acc;
        for (acc, w) in [(&mut low, w[0]), (&mut high, w[1])] {
            *acc = proven!({
                let pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(x));
                _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            });
        }
        [low, high]
    }
}
