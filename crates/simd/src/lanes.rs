//! Sixteen f32 lanes as a value, on every ISA: for encoders, whose lanes are the 16 rows of a panel.
//!
//! [`Isa::run`] runs a [`Task`] with the vectors of an ISA. Loops over `[f32; 16]` alone do not do: compilers vectorise
//! the wrong one of two nested loops. Every operation is one IEEE operation per lane, none fused, so that results are
//! the same bits on every ISA. Where an ISA has no vectors here, [`Portable`] runs.

use crate::Isa;

/// Work that is compiled once per ISA. `run`, and what it calls, should be `#[inline(always)]`.
pub trait Task {
    /// What the work returns.
    type Output;
    /// Does the work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors of 16 f32. A value of the type is the proof that the CPU has the instructions.
pub trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// From memory.
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// To memory.
    fn store(self, x: Self::F, out: &mut [f32; 16]);
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b, rounded before anything is added to it
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// a > b ? a : b
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// |x|
    fn abs(self, x: Self::F) -> Self::F;
    /// a > b ? yes : no
    fn if_gt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
}

impl Isa {
    /// Runs `task` with the vectors of this ISA; results do not depend on it.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = x86::Avx512::of(self) {
                return self.vectorize(
                    #[inline(always)]
                    || task.run(token),
                );
            }
            if let Some(token) = x86::Avx2::of(self) {
                return self.vectorize(
                    #[inline(always)]
                    || task.run(token),
                );
            }
        }
        task.run(Portable)
    }
}

/// Plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    let mut out = [0.0; 16];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

impl Simd for Portable {
    type F = [f32; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 16], out: &mut [f32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, x: [f32; 16]) -> [f32; 16] {
        each(|i| x[i].abs())
    }
    #[inline(always)]
    fn if_gt(self, a: [f32; 16], b: [f32; 16], yes: [f32; 16], no: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] > b[i] { yes[i] } else { no[i] })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use crate::Isa;
    use std::arch::x86_64::*;

    /// AVX-512 F, one register.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    impl Avx512 {
        pub fn of(isa: Isa) -> Option<Self> {
            (isa == Isa::Avx512Vnni && is_x86_feature_detected!("avx512f")).then_some(Self(()))
        }
    }

    /// AVX2, two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        pub fn of(isa: Isa) -> Option<Self> {
            (isa >= Isa::Avx2 && is_x86_feature_detected!("avx2")).then_some(Self(()))
        }
    }

    impl Simd for Avx512 {
        type F = __m512;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: an `Avx512` is only made where the CPU has AVX-512 F.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32; 16]) -> __m512 {
            // SAFETY: as in `splat`; an unaligned load of the 16 values of `x`.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, x: __m512, out: &mut [f32; 16]) {
            // SAFETY: as in `splat`; an unaligned store to the 16 values of `out`.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn abs(self, x: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_abs_ps(x) }
        }
        #[inline(always)]
        fn if_gt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            // SAFETY: as in `splat`.
            unsafe { _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), yes) }
        }
    }

    #[inline(always)]
    fn both(a: [__m256; 2], b: [__m256; 2], f: impl Fn(__m256, __m256) -> __m256) -> [__m256; 2] {
        [f(a[0], b[0]), f(a[1], b[1])]
    }

    impl Simd for Avx2 {
        type F = [__m256; 2];

        #[inline(always)]
        fn splat(self, x: f32) -> [__m256; 2] {
            // SAFETY: an `Avx2` is only made where the CPU has AVX2.
            let x = unsafe { _mm256_set1_ps(x) };
            [x, x]
        }
        #[inline(always)]
        fn load(self, x: &[f32; 16]) -> [__m256; 2] {
            // SAFETY: as in `splat`; unaligned loads of the two halves of `x`.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, x: [__m256; 2], out: &mut [f32; 16]) {
            let start = out.as_mut_ptr();
            // SAFETY: as in `splat`; an unaligned store to the first half of `out`.
            unsafe { _mm256_storeu_ps(start, x[0]) };
            // SAFETY: as in `splat`; an unaligned store to the second half of `out`.
            unsafe { _mm256_storeu_ps(start.add(8), x[1]) };
        }
        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_add_ps(a, b) },
            )
        }
        #[inline(always)]
        fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_sub_ps(a, b) },
            )
        }
        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_mul_ps(a, b) },
            )
        }
        #[inline(always)]
        fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_div_ps(a, b) },
            )
        }
        #[inline(always)]
        fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_min_ps(a, b) },
            )
        }
        #[inline(always)]
        fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_max_ps(a, b) },
            )
        }
        #[inline(always)]
        fn abs(self, x: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            both(
                self.splat(-0.0),
                x,
                #[inline(always)]
                |sign, x| unsafe { _mm256_andnot_ps(sign, x) },
            )
        }
        #[inline(always)]
        fn if_gt(self, a: [__m256; 2], b: [__m256; 2], yes: [__m256; 2], no: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: as in `splat`.
            let gt = both(
                a,
                b,
                #[inline(always)]
                |a, b| unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(a, b) },
            );
            // SAFETY: as in `splat`.
            unsafe { [_mm256_blendv_ps(no[0], yes[0], gt[0]), _mm256_blendv_ps(no[1], yes[1], gt[1])] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct AllOperations<'a>(&'a [f32; 16], &'a [f32; 16]);

    impl Task for AllOperations<'_> {
        type Output = Vec<[u32; 16]>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<[u32; 16]> {
            let (a, b) = (s.load(self.0), s.load(self.1));
            let results = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.min(a, b),
                s.max(a, b),
                s.abs(a),
                s.if_gt(a, b, s.splat(1.0), s.splat(2.0)),
                s.sub(s.mul(a, b), s.mul(a, b)),
            ];
            let stored = results.map(|r| {
                let mut out = [0.0; 16];
                s.store(r, &mut out);
                out.map(f32::to_bits)
            });
            stored.to_vec()
        }
    }

    #[test]
    fn every_operation_gives_the_same_bits_on_every_isa() {
        let a: [f32; 16] =
            std::array::from_fn(|i| [0.1, -0.0, 3.5, -7.25, 1e-40, 1e38, -2.0, 0.0][i % 8] * (i / 8 + 1) as f32);
        let b: [f32; 16] =
            std::array::from_fn(|i| [0.3, 0.0, 3.5, 9.0, -1e-41, 1e37, -2.5, -0.0, 5.0, f32::INFINITY][i % 10]);
        // NaN results differ in sign between ISAs and are no part of the promise.
        let clean = |results: Vec<[u32; 16]>| -> Vec<[u32; 16]> {
            let one = |bits: u32| if f32::from_bits(bits).is_nan() { u32::MAX } else { bits };
            results.into_iter().map(|v| v.map(one)).collect()
        };
        let want = clean(AllOperations(&a, &b).run(Portable));
        for isa in Isa::available() {
            assert_eq!(clean(isa.run(AllOperations(&a, &b))), want, "{isa}");
        }
    }
}
