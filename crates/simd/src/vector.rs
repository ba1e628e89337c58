//! [`Simd`]: vectors of 16 lanes, the same on every ISA, and [`Kernel`]: code that is compiled once per ISA.
//!
//! A kernel is an ordinary generic function over a token `S: Simd`. The token is the proof that the CPU has the
//! instructions (it is made only by [`Isa::run`], after detection), so kernels need no `unsafe`. Every operation is
//! defined down to its rounding and every reduction down to its order: a kernel gives the same bits on every ISA.
//!
//! Functions that take a token must be `#[inline(always)]`, up to [`Kernel::run`]; otherwise they are compiled without
//! the ISA and become slow (never wrong).

use crate::Isa;

/// Code to be compiled for every ISA.
pub trait Kernel {
    /// What it computes.
    type Output;
    /// The body; must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// 16 lanes of f32 or i32, or 64 bytes seen as 16 lanes of 4.
pub trait Simd: Copy + Send + Sync + 'static {
    /// The ISA this token stands for.
    const ISA: Isa;
    /// What [`Simd::dot`] adds per unit of x: it computes Σ (w + OFFSET) · x, because the instruction wants unsigned weights.
    const OFFSET: i32;
    /// Activation rows that integer kernels accumulate at once without spilling registers.
    const ROWS: usize;
    /// 16 × f32.
    type F32: Copy;
    /// 16 × i32.
    type I32: Copy;
    /// 64 × u8.
    type U8: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// Lane i = `x[i]`.
    fn load(self, x: &[f32; 16]) -> Self::F32;
    /// Lane i = the IEEE half at bytes 2i, 2i + 1, little-endian.
    fn load_f16(self, x: &[u8; 32]) -> Self::F32;
    /// Lane i = the bfloat16 at bytes 2i, 2i + 1, little-endian.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F32;
    /// `out[i]` = lane i.
    fn store(self, v: Self::F32, out: &mut [f32; 16]);
    /// a + b
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a − b
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a · b
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a / b
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// a if a > b, else b (b when either is NaN).
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a if a < b, else b (b when either is NaN).
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// yes if a > b, else no (no when either is NaN).
    fn if_gt(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// Lanes of a and b in turn: (a₀ b₀ a₁ b₁ … b₇, a₈ b₈ … b₁₅). Four rounds over 16 vectors, i with i + 8, transpose.
    fn zip(self, a: Self::F32, b: Self::F32) -> (Self::F32, Self::F32);
    /// Sum of the lanes: halves are added until one is left (i with i + 8, + 4, + 2, + 1).
    fn sum(self, v: Self::F32) -> f32;
    /// The greatest lane; none may be NaN.
    fn greatest(self, v: Self::F32) -> f32;
    /// `table[index & 15]` per lane, for a table of 16 entries.
    fn pick(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// Nearest integer, ties to even; for |x| < 2³¹.
    fn to_i32(self, v: Self::F32) -> Self::I32;
    /// The lanes' bits.
    fn bits(self, v: Self::F32) -> Self::I32;

    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// `low` in lanes 0 to 7, `high` in the others.
    fn halves(self, low: i32, high: i32) -> Self::I32;
    /// Lane i = `x[i]`.
    fn load_i32(self, x: &[i32; 16]) -> Self::I32;
    /// Lane i = `x[i]`, with zeros above.
    fn load_u8(self, x: &[u8; 16]) -> Self::I32;
    /// Lane i = `x[i]`, a two's-complement byte.
    fn load_i8(self, x: &[u8; 16]) -> Self::I32;
    /// `out[i]` = byte i.
    fn store_bytes(self, v: Self::U8, out: &mut [u8; 64]);
    /// `out[i]` = lane i.
    fn store_i32(self, v: Self::I32, out: &mut [i32; 16]);
    /// `out[i]` = the lowest byte of lane i, for lanes within −128…127.
    fn store_i8(self, v: Self::I32, out: &mut [u8; 16]);
    /// Sum of the lanes, wrapping.
    fn sum_i32(self, v: Self::I32) -> i32;
    /// The nearest f32 of each lane.
    fn to_f32(self, v: Self::I32) -> Self::F32;
    /// Lanes as the bits of f32.
    fn as_f32(self, v: Self::I32) -> Self::F32;
    /// a + b, wrapping.
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// a & b
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// a | b
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// v << n, 0 ≤ n < 32.
    fn shl(self, v: Self::I32, n: u32) -> Self::I32;
    /// v >> n with zeros.
    fn shr(self, v: Self::I32, n: u32) -> Self::I32;
    /// v >> n with the sign.
    fn sar(self, v: Self::I32, n: u32) -> Self::I32;
    /// Lane i = vᵢ >> nᵢ with zeros, 0 ≤ nᵢ < 32.
    fn shr_each(self, v: Self::I32, n: Self::I32) -> Self::I32;

    /// Runs `kernel` as a function of its own, compiled for this ISA: a part that is used in several places, or that makes a
    /// function too large to compile in reasonable time.
    fn apart<K: Kernel>(self, kernel: K) -> K::Output;

    /// Asks for the cache line of `x`, which will be read soon. No effect on any result.
    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        let _ = x;
    }

    /// 64 bytes.
    fn bytes(self, x: &[u8; 64]) -> Self::U8;
    /// Bytes 4i … 4i + 3 as a little-endian lane i.
    fn lanes(self, v: Self::U8) -> Self::I32;
    /// The inverse of [`Simd::lanes`].
    fn as_bytes(self, v: Self::I32) -> Self::U8;
    /// The 16 bytes four times: a table for [`Simd::lookup`].
    fn repeat(self, x: &[u8; 16]) -> Self::U8;
    /// a − b byte by byte, wrapping.
    fn sub_bytes(self, a: Self::U8, b: Self::U8) -> Self::U8;
    /// Byte i = yesᵢ where bit i of `mask` is set, else noᵢ.
    fn select(self, mask: u64, yes: Self::U8, no: Self::U8) -> Self::U8;
    /// The low 4 bits of every byte.
    fn low_nibbles(self, v: Self::U8) -> Self::U8;
    /// The high 4 bits of every byte.
    fn high_nibbles(self, v: Self::U8) -> Self::U8;
    /// Two's-complement bytes as [`Simd::dot`] wants weights.
    fn weights(self, v: Self::U8) -> Self::U8;
    /// A table of 16 signed bytes for [`Simd::lookup`], which finds them as [`Simd::dot`] wants weights.
    fn table(self, values: &[i8; 16]) -> Self::U8;
    /// The table's value for every byte of `index` (each < 16).
    fn lookup(self, table: Self::U8, index: Self::U8) -> Self::U8;
    /// acc + Σ of 4 products per lane: (w + OFFSET) · x, exactly. `w` comes from [`Simd::weights`] or [`Simd::lookup`];
    /// `x` holds 4 signed bytes (little-endian), each in −127…127, the same for all lanes.
    fn dot(self, acc: Self::I32, w: Self::U8, x: i32) -> Self::I32;
    /// acc + Σ of 4 products per lane: w · x, exactly, for unsigned w < 128 and x as in [`Simd::dot`].
    fn dot_small(self, acc: Self::I32, w: Self::U8, x: i32) -> Self::I32;

    /// acc + w · x over the two bfloat16 of each lane, the upper one first, rounded after each: products of two bfloat16 are
    /// exact. Neither may be subnormal.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F32, w: Self::U8, x: Self::U8) -> Self::F32 {
        crate::bf16::dot(self, acc, w, x)
    }
    /// Two sums per lane of `codes`, which holds four E4M3 values (no NaN): over the first two and over the last two, each as
    /// [`Simd::dot_bf16`] of them and `x[0]`, `x[1]`, which are two bfloat16 each. Which sum lies where is the ISA's own:
    /// [`Simd::sum_e4m3`] knows.
    #[inline(always)]
    fn dot_e4m3(self, acc: [Self::F32; 2], codes: Self::U8, x: [i32; 2]) -> [Self::F32; 2] {
        crate::bf16::dot_e4m3(self, acc, codes, x)
    }
    /// Both sums of every lane, added.
    #[inline(always)]
    fn sum_e4m3(self, acc: [Self::F32; 2]) -> Self::F32 {
        self.add(acc[0], acc[1])
    }
}

impl Isa {
    /// As [`Isa::run`], for a kernel that multiplies bfloat16: with the instructions for that, where this ISA's CPU has them.
    /// What it computes is the same.
    #[inline]
    pub fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512Vnni
            && let Some(token) = crate::x86::Avx512::<true>::detect()
        {
            return token.run(kernel);
        }
        self.run(kernel)
    }

    /// Runs `kernel` compiled for this ISA (portable where the CPU lacks it).
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::x86::{Avx2, Avx512, AvxVnni};
            match self {
                Self::Avx512Vnni => {
                    if let Some(token) = Avx512::<false>::detect() {
                        return token.run(kernel);
                    }
                }
                Self::AvxVnni => {
                    if let Some(token) = AvxVnni::detect() {
                        return token.run(kernel);
                    }
                }
                Self::Avx2 => {
                    if let Some(token) = Avx2::detect() {
                        return token.run(kernel);
                    }
                }
                Self::Portable | Self::NeonDotprod => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self == Self::NeonDotprod
            && let Some(token) = crate::aarch64::NeonDotprod::detect()
        {
            return token.run(kernel);
        }
        kernel.run(crate::portable::Portable)
    }
}
