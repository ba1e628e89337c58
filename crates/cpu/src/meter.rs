//! What this machine can do at best, measured with the threads and the instruction set that the kernels use: streaming
//! reads, which bound decoding, and int8 dot products or f32 multiply-adds in registers, which bound prefill.

use crate::cores;
use crate::pool::Pool;
use ashlar_simd::{Isa, Kernel, Simd};
use ashlar_tensor::AlignedBytes;
use std::hint::black_box;
use std::time::Instant;

/// Bytes that are streamed: more than any cache holds.
const STREAM: usize = 256 << 20;
/// Bytes of a task: enough that handing it out costs nothing.
const PART: usize = 1 << 20;
/// Rounds of 16 dot products per thread: some 10 ms.
const STEPS: usize = 4_000_000;

/// Measures ceilings; measure them in turn with what they are compared with, since shared machines change from one
/// minute to the next.
pub struct Meter {
    isa: Isa,
    pool: Pool,
    stream: AlignedBytes,
}

impl Meter {
    /// A meter with the threads that [`crate::Cpu::new`] would take; `None` if there is no memory for its stream.
    #[must_use]
    pub fn new(threads: Option<usize>, isa: Isa) -> Option<Self> {
        let mut stream = AlignedBytes::zeroed(STREAM)?;
        // Written, so that every page is there.
        stream.fill(1);
        Some(Self { isa, pool: Pool::new(threads.unwrap_or_else(cores::physical).max(1)), stream })
    }

    /// Bytes per second that all threads read together.
    #[must_use]
    pub fn read(&self) -> f64 {
        let parts: Vec<&[u8]> = self.stream.chunks(PART).collect();
        let begin = Instant::now();
        self.pool.run(parts.len(), &|i| {
            black_box(self.isa.run(ReadPart(parts[i])));
        });
        STREAM as f64 / begin.elapsed().as_secs_f64()
    }

    /// int8 multiply-adds per second of all threads, without any memory traffic.
    #[must_use]
    pub fn int8(&self) -> f64 {
        self.rate(64, &|| _ = black_box(self.isa.run(Dots(black_box(0x0102_0304)))))
    }

    /// bf16 multiply-adds per second of all threads, without any memory traffic.
    #[must_use]
    pub fn bf16(&self) -> f64 {
        self.rate(32, &|| _ = black_box(self.isa.run_bf16(Bf16Dots(black_box(0x3f80_3f80)))))
    }

    /// f32 multiply-adds per second of all threads, without any memory traffic.
    #[must_use]
    pub fn f32(&self) -> f64 {
        self.rate(16, &|| _ = black_box(self.isa.run(Fmas(black_box(1.000_1)))))
    }

    /// Multiply-adds per second of `chains`, [`STEPS`] times [`CHAINS`] operations of so many each, on every thread.
    fn rate(&self, each: usize, chains: &(dyn Fn() + Sync)) -> f64 {
        let threads = self.pool.threads();
        let begin = Instant::now();
        self.pool.run(threads, &|_| chains());
        (threads * STEPS * CHAINS * each) as f64 / begin.elapsed().as_secs_f64()
    }
}

struct ReadPart<'a>(&'a [u8]);

impl Kernel for ReadPart<'_> {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let mut sums = [s.splat_i32(0); 4];
        for block in self.0.as_chunks::<64>().0.chunks_exact(4) {
            for (sum, vector) in sums.iter_mut().zip(block) {
                *sum = s.add_i32(*sum, s.lanes(s.bytes(vector)));
            }
        }
        s.sum_i32(s.add_i32(s.add_i32(sums[0], sums[1]), s.add_i32(sums[2], sums[3])))
    }
}

/// Independent sums: more than a dot product takes cycles.
const CHAINS: usize = 16;

struct Dots(i32);

impl Kernel for Dots {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let w = s.weights(s.bytes(&[3; 64]));
        let mut acc = [s.splat_i32(0); CHAINS];
        for _ in 0..STEPS {
            for a in &mut acc {
                *a = s.dot(*a, w, self.0);
            }
        }
        let mut sum = 0;
        for a in acc {
            sum ^= s.sum_i32(a);
        }
        sum
    }
}

/// All lanes of all chains: what was computed must be of use.
#[inline(always)]
fn total<S: Simd>(s: S, acc: [S::F32; CHAINS]) -> f32 {
    let mut sum = 0.0;
    for a in acc {
        sum += s.sum(a);
    }
    sum
}

struct Bf16Dots(i32);

impl Kernel for Bf16Dots {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let x = s.as_bytes(s.splat_i32(self.0));
        let mut acc = [s.splat(1.0); CHAINS];
        for _ in 0..STEPS {
            for a in &mut acc {
                *a = s.dot_bf16(*a, x, x);
            }
        }
        total(s, acc)
    }
}

struct Fmas(f32);

impl Kernel for Fmas {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let x = s.splat(self.0);
        let mut acc = [x; CHAINS];
        for _ in 0..STEPS {
            for a in &mut acc {
                *a = s.fma(x, x, *a);
            }
        }
        total(s, acc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_reads_every_byte_and_a_rate_is_positive() {
        for isa in Isa::available() {
            assert_eq!(isa.run(ReadPart(&[1; 512])), 128_i32.wrapping_mul(0x0101_0101));
        }
        let meter = Meter::new(Some(1), Isa::Portable).unwrap();
        assert!(meter.read() > 0.0);
    }
}
