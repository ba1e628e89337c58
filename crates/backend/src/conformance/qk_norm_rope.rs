//! Norms and rotations of heads, with every kind of frequency scaling, at positions of several sequences.

use super::Suite;
use crate::{Batch, Op, SequenceRows};
use ashlar_arch::{Rope, RopeScaling};
use std::sync::Arc;

fn scalings() -> [(&'static str, RopeScaling); 4] {
    [
        ("plain", RopeScaling::Plain),
        ("linear", RopeScaling::Linear { factor: 4.0 }),
        (
            "llama3",
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 64.0,
            },
        ),
        (
            "yarn",
            RopeScaling::Yarn {
                factor: 32.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_max_position: 4096.0,
                truncate: false,
                attention_factor: 1.25,
            },
        ),
    ]
}

pub fn cases(suite: &mut Suite<'_>) {
    for (name, scaling) in scalings() {
        for (norm, head_dim, heads) in [(false, 16, [4, 2]), (true, 64, [3, 1]), (true, 128, [2, 2])] {
            let rope = Arc::new(Rope { theta: 10_000.0, scaling: scaling.clone() });
            suite.case(format!("qk_norm_rope {name} norm={norm} head_dim={head_dim}"), |b| {
                let (rows, widths) = (7, heads.map(|h| h * head_dim));
                let (q, k) = (b.input(rows, widths[0])?, b.input(rows, widths[1])?);
                let weights = if norm { Some([b.vector(head_dim, 1.0)?, b.vector(head_dim, 1.0)?]) } else { None };
                let mut batch = Batch::of(0, 3, &[0; 7]);
                batch.sequences = vec![
                    SequenceRows { slot: 1, rows: 0..2, position: 0 },
                    SequenceRows { slot: 0, rows: 2..7, position: 1000 },
                ];
                b.run(&batch, |s| Op::QkNormRope {
                    q: q[s],
                    k: k[s],
                    q_norm: weights.map(|w| w[0][s]),
                    k_norm: weights.map(|w| w[1][s]),
                    eps: 1e-6,
                    head_dim,
                    rope: Arc::clone(&rope),
                })?;
                b.compare(q, widths[0])?;
                b.compare(k, widths[1])
            });
        }
    }
}
