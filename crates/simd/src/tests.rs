//! Every operation on every ISA gives the bits of the portable definition.

use crate::{Isa, Kernel, Simd};

/// A small generator, so that the crate needs no dependency: xorshift32.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
    fn float(&mut self) -> f32 {
        (self.next() % 20001) as f32 / 777.0 - 12.0
    }
}

struct Operands {
    a: [f32; 16],
    b: [f32; 16],
    c: [f32; 16],
    bytes: [u8; 64],
    table: [i8; 16],
    x: [i8; 4],
}

/// Every result as bits.
struct AllOps<'a>(&'a Operands);

impl Kernel for AllOps<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let o = self.0;
        let (a, b, c) = (s.load(&o.a), s.load(&o.b), s.load(&o.c));
        let half: &[u8; 32] = o.bytes.first_chunk().unwrap();
        let mut out = Vec::new();
        let mut f = |v: S::F32| {
            let mut lanes = [0.0; 16];
            s.store(v, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
        };
        for v in [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, c),
            s.max(a, b),
            s.min(a, b),
            s.if_gt(a, b, c, a),
        ] {
            f(v);
        }
        let (low, high) = s.zip(a, b);
        f(low);
        f(high);
        f(s.splat(s.sum(a)));
        f(s.splat(s.greatest(a)));
        f(s.load_f16(half));
        f(s.load_bf16(half));
        let bytes = s.bytes(&o.bytes);
        let lanes = s.lanes(bytes);
        f(s.pick(a, lanes));
        f(s.to_f32(s.to_i32(a)));
        f(s.to_f32(s.add_i32(lanes, s.bits(a))));
        for v in [s.shl(lanes, 24), s.shr(lanes, 8), s.sar(lanes, 4), s.and(lanes, s.splat_i32(0x0f0f_00ff)), s.bits(b)]
        {
            f(s.as_f32(s.shr(v, 9)));
        }
        let counts = s.and(lanes, s.splat_i32(31));
        let first: &[u8; 16] = o.bytes.first_chunk().unwrap();
        let mask = u64::from_le_bytes(*o.bytes.last_chunk().unwrap());
        for v in [
            s.or(lanes, s.bits(a)),
            s.shr_each(lanes, counts),
            s.halves(i32::from(o.x[0]) * 77_777, i32::from(o.x[1])),
            s.load_u8(first),
            s.load_i8(first),
            s.lanes(s.as_bytes(s.bits(c))),
            s.lanes(s.lookup(s.repeat(first), s.low_nibbles(bytes))),
            s.lanes(s.select(mask, bytes, s.high_nibbles(bytes))),
        ] {
            f(s.as_f32(s.shr(v, 9)));
            f(s.as_f32(s.and(v, s.splat_i32(0x1ff))));
        }
        let mut difference = [0; 64];
        s.store_bytes(s.sub_bytes(bytes, s.as_bytes(s.bits(b))), &mut difference);
        out.extend(difference.map(u32::from));
        let mut f = |v: S::F32| {
            let mut lanes = [0.0; 16];
            s.store(v, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
        };
        let mut stored = [0; 16];
        s.store_i8(s.sar(lanes, 24), &mut stored);
        f(s.to_f32(s.load_u8(&stored)));
        f(s.as_f32(s.splat_i32(s.sum_i32(lanes) & 0xffff)));
        let x = i32::from_le_bytes(o.x.map(i8::cast_unsigned));
        let start = s.splat_i32(-S::OFFSET * o.x.iter().map(|&x| i32::from(x)).sum::<i32>());
        let (low, high) = (s.low_nibbles(bytes), s.high_nibbles(bytes));
        let table = s.table(&o.table);
        for w in [s.weights(bytes), s.lookup(table, low), s.lookup(table, high)] {
            f(s.to_f32(s.dot(start, w, x)));
        }
        f(s.to_f32(s.dot_small(s.splat_i32(7), low, x)));
        f(s.to_f32(s.dot_small(s.splat_i32(7), high, x)));
        let seven_bits = s.as_bytes(s.and(lanes, s.splat_i32(0x7f7f_7f7f)));
        f(s.to_f32(s.dot_small(s.splat_i32(7), seven_bits, x)));
        out
    }
}

#[test]
fn every_isa_gives_the_bits_of_the_portable_one() {
    let available = Isa::available();
    for isa in Isa::known() {
        if !available.contains(&isa) {
            println!("SKIPPED simd {isa}: not on this CPU");
        }
    }
    let mut random = Random(0x9e37_79b9);
    for round in 0..500 {
        let mut operands = Operands {
            a: std::array::from_fn(|_| random.float()),
            b: std::array::from_fn(|_| random.float()),
            c: std::array::from_fn(|_| random.float()),
            bytes: std::array::from_fn(|_| random.next() as u8),
            table: std::array::from_fn(|_| random.next() as i8),
            x: std::array::from_fn(|_| (random.next() as i8).max(-127)),
        };
        if round % 5 == 0 {
            // The extremes that would saturate 16-bit sums.
            operands.bytes = [if round % 2 == 0 { 0x80 } else { 0x7f }; 64];
            operands.x = if round % 3 == 0 { [-127; 4] } else { [127; 4] };
        }
        // Halves that are NaN compare by bits only up to quieting: keep the exponent below 31.
        for byte in operands.bytes.iter_mut().skip(1).step_by(2).take(16) {
            *byte &= if *byte & 0x7c == 0x7c { !0x04 } else { 0xff };
        }
        let want = Isa::Portable.run(AllOps(&operands));
        for &isa in &available {
            assert_eq!(isa.run(AllOps(&operands)), want, "{isa}, round {round}");
        }
    }
}

#[test]
fn the_portable_dot_is_the_sum_of_products() {
    struct Dot;
    impl Kernel for Dot {
        type Output = [i32; 16];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [i32; 16] {
            let bytes = std::array::from_fn(|i| (i as u8).wrapping_mul(5));
            let mut out = [0; 16];
            s.store_i32(
                s.dot(s.splat_i32(1), s.weights(s.bytes(&bytes)), i32::from_le_bytes([1, 2, 253, 4])),
                &mut out,
            );
            out
        }
    }
    let got = Isa::Portable.run(Dot);
    // Lane 6: bytes 24..28 times 5 = 120, 125, 130 (−126), 135 (−121).
    assert_eq!(got[6], 1 + 120 + 2 * 125 - 3 * -126 + 4 * -121);
}

struct Transpose<'a>(&'a [[f32; 16]; 16]);

impl Kernel for Transpose<'_> {
    type Output = [[f32; 16]; 16];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut rows = self.0.map(|r| s.load(&r));
        for _ in 0..4 {
            let old = rows;
            for i in 0..8 {
                (rows[2 * i], rows[2 * i + 1]) = s.zip(old[i], old[i + 8]);
            }
        }
        rows.map(|r| {
            let mut out = [0.0; 16];
            s.store(r, &mut out);
            out
        })
    }
}

#[test]
fn four_rounds_of_zip_transpose() {
    let rows: [[f32; 16]; 16] = std::array::from_fn(|r| std::array::from_fn(|c| (100 * r + c) as f32));
    let want: [[f32; 16]; 16] = std::array::from_fn(|r| std::array::from_fn(|c| (100 * c + r) as f32));
    for isa in Isa::available() {
        assert_eq!(isa.run(Transpose(&rows)), want, "{isa}");
    }
}

/// Dot products of bf16: of pairs, and of E4M3 codes.
struct Bf16Dots<'a> {
    codes: &'a [[u8; 64]],
    w: &'a [[u8; 64]],
    x: &'a [[u8; 64]],
}

impl Kernel for Bf16Dots<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let (mut pairs, mut e4m3) = (s.splat(0.5), [s.splat(0.0); 2]);
        for ((codes, w), x) in self.codes.iter().zip(self.w).zip(self.x) {
            pairs = s.dot_bf16(pairs, s.bytes(w), s.bytes(x));
            let x = [0, 4].map(|i| i32::from_le_bytes([x[i], x[i + 1], x[i + 2], x[i + 3]]));
            e4m3 = s.dot_e4m3(e4m3, s.bytes(codes), x);
        }
        let mut out = [[0.0f32; 16]; 2];
        s.store(pairs, &mut out[0]);
        s.store(s.sum_e4m3(e4m3), &mut out[1]);
        out.as_flattened().iter().map(|v| v.to_bits()).collect()
    }
}

#[test]
fn bf16_products_have_the_same_bits_with_and_without_instructions_for_them() {
    let mut random = Random(9);
    // bf16 of moderate size, and every E4M3 code but NaN.
    let mut bf16 = || (random.next() & 0x807f | (118 + random.next() % 14) << 7) as u16;
    let mut vectors = || -> Vec<[u8; 64]> {
        (0..40).map(|_| std::array::from_fn::<u16, 32, _>(|_| bf16())).map(|v| bytes_of(&v)).collect()
    };
    let (w, x) = (vectors(), vectors());
    let code = |i: usize| if i & 0x7f == 0x7f { 0 } else { i as u8 };
    let codes: Vec<[u8; 64]> = (0..40).map(|n| std::array::from_fn(|i| code((n * 64 + i * 37) & 0xff))).collect();
    let run = |isa: Isa| isa.run_bf16(Bf16Dots { codes: &codes, w: &w, x: &x });
    let want = run(Isa::Portable);
    for isa in Isa::available() {
        assert_eq!(run(isa), want, "{isa}");
    }
    // Against f64: 40 products of each pair.
    let f = |v: &[u8; 64], i: usize| {
        f64::from(f32::from_bits(u32::from(u16::from_le_bytes([v[2 * i], v[2 * i + 1]])) << 16))
    };
    let exact: f64 = 0.5 + w.iter().zip(&x).map(|(w, x)| f(w, 6) * f(x, 6) + f(w, 7) * f(x, 7)).sum::<f64>();
    assert!((f64::from(f32::from_bits(want[3])) - exact).abs() < 1e-4 * exact.abs().max(1.0));
    if !Isa::available().iter().any(|isa| isa.multiplies_bf16()) {
        println!("SKIPPED bf16 instructions: not on this CPU");
    }
}

fn bytes_of(values: &[u16; 32]) -> [u8; 64] {
    std::array::from_fn(|i| values[i / 2].to_le_bytes()[i % 2])
}
