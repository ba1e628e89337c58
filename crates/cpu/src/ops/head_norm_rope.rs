//! Per head, in place: RMS norm of the first values, then rope of the last ones, pairs (2i, 2i + 1).

use crate::cpu::Cpu;
use crate::math::rms_norm;
use crate::shards::Shards;
use ashlar_backend::{BackendError, Batch, BufferId, HeadNorm, HeadRope};
use ashlar_simd::{Kernel, Simd};

const OP: &str = "head_norm_rope";

pub fn run(
    cpu: &mut Cpu,
    x: BufferId,
    head_dim: usize,
    norm: Option<HeadNorm>,
    rope: Option<&HeadRope>,
    batch: &Batch,
) -> Result<(), BackendError> {
    let buffer = cpu.buffers.get(x, OP)?;
    let (width, held, rows) = (buffer.width, buffer.values.len(), batch.rows());
    let (normed, turned) = (norm.map_or(0, |n| n.width), rope.map_or(0, |r| r.width));
    let fits = normed.max(turned) <= head_dim && turned.is_multiple_of(2);
    if head_dim == 0 || !width.is_multiple_of(head_dim) || !fits || held != rows * width {
        let what = format!(
            "{held} values in {rows} rows of {width}, heads of {head_dim}, norm over {normed}, rope over {turned}"
        );
        return Err(BackendError::Operand { op: OP, what });
    }
    let norm = match norm {
        Some(HeadNorm { weight: Some(id), eps, .. }) => Some((cpu.vector(id, normed, OP)?.to_vec(), eps)),
        Some(HeadNorm { weight: None, eps, .. }) => Some((vec![1.0; normed], eps)),
        None => None,
    };
    let angles = rope.map(|r| cpu.angles(&r.rope, turned, batch));
    let angles = angles.as_ref().map_or(&[][..], |a| a.as_slice());
    let direction = if rope.is_some_and(|r| r.inverse) { -1.0 } else { 1.0 };
    let isa = cpu.isa;
    let mut values = cpu.buffers.take(x, [rows, width], true, BufferId(u32::MAX), OP)?;
    let all = Shards::new(&mut values);
    cpu.pool.run(rows, &|row| {
        // SAFETY: every row is one index of the pool.
        let heads = unsafe { all.slice(row * width..(row + 1) * width) };
        let (cos, sin) = angles[row * turned..(row + 1) * turned].split_at(turned / 2);
        let norm = norm.as_ref().map(|(weight, eps)| (weight.as_slice(), *eps));
        isa.run(Turn { heads, head_dim, norm, cos, sin, direction });
    });
    cpu.buffers.put(x, values);
    Ok(())
}

/// All heads of one row.
struct Turn<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    /// Weight and epsilon.
    norm: Option<(&'a [f32], f32)>,
    cos: &'a [f32],
    sin: &'a [f32],
    /// −1 turns back.
    direction: f32,
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            if let Some((weight, eps)) = self.norm {
                rms_norm(s, &mut head[..weight.len()], weight, eps);
            }
            let tail = &mut head[self.head_dim - 2 * self.cos.len()..];
            for ([a, b], (cos, sin)) in tail.as_chunks_mut::<2>().0.iter_mut().zip(self.cos.iter().zip(self.sin)) {
                let sin = self.direction * sin;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
