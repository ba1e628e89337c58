//! Norms of the first and rotations of the last values of heads.

use super::Suite;
use crate::{Batch, HeadNorm, HeadRope, Op, SequenceRows};
use ashlar_arch::{Rope, RopeScaling};
use std::sync::Arc;

pub fn cases(suite: &mut Suite<'_>) {
    let rope = Arc::new(Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } });
    for (head_dim, heads, norm, turned, inverse) in [
        (48, 4, None, 16, false),
        (144, 1, Some((128, true)), 16, false),
        (96, 3, Some((96, false)), 34, true),
        (32, 2, Some((32, true)), 0, false),
    ] {
        let name = format!("head_norm_rope head_dim={head_dim} norm={norm:?} rope={turned} inverse={inverse}");
        suite.case(name, |b| {
            let (rows, width) = (7, heads * head_dim);
            let x = b.input(rows, width)?;
            let weight = match norm {
                Some((width, true)) => Some(b.vector(width, 1.0)?),
                _ => None,
            };
            let mut batch = Batch::of(0, 0, &[0; 7]);
            batch.sequences = vec![
                SequenceRows { slot: 1, rows: 0..2, position: 0 },
                SequenceRows { slot: 0, rows: 2..7, position: 1000 },
            ];
            b.run(&batch, |s| Op::HeadNormRope {
                x: x[s],
                head_dim,
                norm: norm.map(|(width, _)| HeadNorm { weight: weight.map(|w| w[s]), width, eps: 1e-6 }),
                rope: (turned > 0).then(|| HeadRope { rope: Arc::clone(&rope), width: turned, inverse }),
            })?;
            b.compare(x, width)?;
            b.refuses(&batch, "heads that do not fill the rows", |s| Op::HeadNormRope {
                x: x[s],
                head_dim: width - 1,
                norm: None,
                rope: None,
            })
        });
    }
}
