//! Rows from the host and back: how activations cross between devices.

use super::Suite;
use crate::{Batch, BufferId, Op};

pub fn cases(suite: &mut Suite<'_>) {
    for (rows, width) in [(1, 1), (3, 40), (5, 64), (0, 16)] {
        suite.case(format!("write {rows} × {width}, then repeat"), |b| {
            let (x, out) = (b.buffer(5, width)?, b.buffer(5, 2 * width)?);
            for rows in [5, rows] {
                let values = b.random.normals(rows * width);
                b.write(x, &values)?;
                b.compare(x, width)?;
            }
            b.run(&Batch::of(0, 0, &vec![0; rows]), |s| Op::Repeat { x: x[s], out: out[s] })?;
            b.compare(out, 2 * width)
        });
    }
    suite.case("write refuses what are no rows of the buffer".into(), |b| {
        let x = b.input(2, 4)?;
        b.refuses_values(x, "half a row", &[1.0; 6])?;
        b.refuses_values(x, "three rows of two", &[1.0; 12])?;
        b.refuses_values([BufferId(99); 2], "no buffer", &[1.0; 4])?;
        b.compare(x, 4)
    });
}
