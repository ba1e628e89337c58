//! Per head of q and k, in place and in one pass: RMS norm (where given), then rope: pair (i, i + d/2) is turned by the token's angle.

use crate::cpu::Cpu;
use crate::math::{load_part, rms_norm};
use crate::shards::Shards;
use ashlar_arch::Rope;
use ashlar_backend::{BackendError, Batch, BufferId, WeightId};
use ashlar_simd::{Kernel, Simd};
use std::sync::Arc;

const OP: &str = "qk_norm_rope";

pub fn run(
    cpu: &mut Cpu,
    parts: [(BufferId, Option<WeightId>); 2],
    eps: f32,
    head_dim: usize,
    rope: &Arc<Rope>,
    batch: &Batch,
) -> Result<(), BackendError> {
    let rows = batch.rows();
    let mut norms = [None, None];
    for ((id, norm), kept) in parts.into_iter().zip(&mut norms) {
        let buffer = cpu.buffers.get(id, OP)?;
        if head_dim < 2 || !head_dim.is_multiple_of(2) || !buffer.width.is_multiple_of(head_dim) {
            let what = format!("width {} is not a multiple of an even head_dim, {head_dim}", buffer.width);
            return Err(BackendError::Operand { op: OP, what });
        }
        if buffer.values.len() != rows * buffer.width {
            let what =
                format!("a buffer of width {} holds {} values for {rows} rows", buffer.width, buffer.values.len());
            return Err(BackendError::Operand { op: OP, what });
        }
        *kept = norm.map(|id| cpu.vector(id, head_dim, OP).map(<[f32]>::to_vec)).transpose()?;
    }
    let half = head_dim / 2;
    let angles = cpu.angles(rope, head_dim, batch);
    let isa = cpu.isa;
    let [q, k] = parts.map(|(id, _)| id);
    let [q_width, k_width] = [cpu.buffers.get(q, OP)?.width, cpu.buffers.get(k, OP)?.width];
    let mut queries = cpu.buffers.take(q, [rows, q_width], true, k, OP)?;
    let mut keys = match cpu.buffers.take(k, [rows, k_width], true, q, OP) {
        Ok(keys) => keys,
        Err(error) => {
            cpu.buffers.put(q, queries);
            return Err(error);
        }
    };
    let all = [(Shards::new(&mut queries), q_width), (Shards::new(&mut keys), k_width)];
    cpu.pool.run(rows, &|row| {
        let (cos, sin) = angles[row * head_dim..(row + 1) * head_dim].split_at(half);
        for ((values, width), norm) in all.iter().zip(&norms) {
            // SAFETY: every row is one index of the pool.
            let heads = unsafe { values.slice(row * width..(row + 1) * width) };
            isa.run(Turn { heads, norm: norm.as_deref(), eps, cos, sin });
        }
    });
    cpu.buffers.put(q, queries);
    cpu.buffers.put(k, keys);
    Ok(())
}

/// All heads of one row.
struct Turn<'a> {
    heads: &'a mut [f32],
    norm: Option<&'a [f32]>,
    eps: f32,
    /// head_dim / 2 each.
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(2 * half) {
            if let Some(weight) = self.norm {
                rms_norm(s, head, weight, self.eps);
            }
            let (first, second) = head.split_at_mut(half);
            let angles = self.cos.chunks(16).zip(self.sin.chunks(16));
            for ((a, b), (cos, sin)) in first.chunks_mut(16).zip(second.chunks_mut(16)).zip(angles) {
                let (x, y, cos, sin) = (load_part(s, a), load_part(s, b), load_part(s, cos), load_part(s, sin));
                let turned = [s.sub(s.mul(x, cos), s.mul(y, sin)), s.add(s.mul(y, cos), s.mul(x, sin))];
                for (out, v) in [a, b].into_iter().zip(turned) {
                    let mut lanes = [0.0; 16];
                    s.store(v, &mut lanes);
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}
