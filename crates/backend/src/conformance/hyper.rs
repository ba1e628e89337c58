//! Residual streams of lanes.

use super::weights::Stored;
use super::{Stop, Suite};
use crate::{Batch, HyperLanes, Op};

pub fn cases(suite: &mut Suite<'_>) {
    suite.case("repeat m=5 n=24 times=4".into(), |b| {
        let (x, out) = (b.input(5, 24)?, b.buffer(5, 96)?);
        b.run(&Batch::of(0, 0, &[0; 5]), |s| Op::Repeat { x: x[s], out: out[s] })?;
        b.compare(out, 96)
    });
    for (m, count, n, iterations) in [(1, 4, 128, 20), (7, 4, 96, 20), (3, 2, 40, 1)] {
        suite.case(format!("hyper_mix and hyper_add m={m} lanes={count} n={n} iterations={iterations}"), |b| {
            let f32 = Stored::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
            let lanes = HyperLanes { count, norm_eps: 1e-6, eps: 1e-6, iterations };
            let rows = count * (count + 2);
            let (x, out, z) = (b.input(m, count * n)?, b.buffer(m, n)?, b.input(m, n)?);
            let coefficients = b.buffer(m, count * (count + 1))?;
            let (mix, base, scale) = (b.weight(&f32, rows, count * n)?, b.vector(rows, 0.0)?, b.vector(3, 1.0)?);
            let batch = Batch::of(0, 0, &vec![0; m]);
            b.run(&batch, |s| Op::HyperMix {
                x: x[s],
                mix: mix[s],
                base: base[s],
                scale: scale[s],
                lanes,
                coefficients: Some(coefficients[s]),
                out: out[s],
            })?;
            b.compare(out, n)?;
            b.compare(coefficients, count * (count + 1))?;
            b.run(&batch, |s| Op::HyperAdd { x: x[s], z: z[s], coefficients: coefficients[s], lanes: count })?;
            b.compare(x, count * n)?;
            let (mix, base, scale) = (b.weight(&f32, count, count * n)?, b.vector(count, 0.0)?, b.vector(1, 1.0)?);
            let op = |s: usize, lanes: HyperLanes| Op::HyperMix {
                x: x[s],
                mix: mix[s],
                base: base[s],
                scale: scale[s],
                lanes,
                coefficients: None,
                out: out[s],
            };
            b.run(&batch, |s| op(s, lanes))?;
            b.compare(out, n)?;
            b.refuses(&batch, "lanes that do not fill the rows", |s| op(s, HyperLanes { count: count + 1, ..lanes }))
        });
    }
}
