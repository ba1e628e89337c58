//! What is read next, asked for from memory while something else is computed.

use ashlar_simd::Simd;

/// The values of a block, to be asked for while its keys are read, and the keys of the next block, to be asked for while
/// its values are: then memory is as busy in one phase as in the other.
pub struct Ahead<'a> {
    values: &'a [[u8; 64]],
    next: &'a [[u8; 64]],
    /// What this phase asks for.
    lines: &'a [[u8; 64]],
    /// Steps of a loop that go by between askings, and how many are left of them.
    every: usize,
    wait: usize,
}

/// Lines that are asked for at once: a fixed number needs no loop.
const LINES: usize = 4;

impl<'a> Ahead<'a> {
    /// Nothing where nothing is known.
    pub fn new(values: &'a [u8], next: &'a [u8]) -> Self {
        Self { values: values.as_chunks().0, next: next.as_chunks().0, lines: &[], every: 0, wait: 0 }
    }

    /// Keys are read from now on.
    pub fn keys(&mut self) {
        self.lines = std::mem::take(&mut self.values);
    }

    /// Values are read from now on.
    pub fn values(&mut self) {
        self.lines = std::mem::take(&mut self.next);
    }

    /// What is to be asked for in this phase is so within that many steps, but for a few lines.
    pub fn within(&mut self, steps: usize) {
        self.every = (LINES * steps / self.lines.len().max(1)).saturating_sub(1);
        self.wait = 0;
    }

    /// One step.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, s: S) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        self.wait = self.every;
        let Some((now, rest)) = self.lines.split_first_chunk::<LINES>() else { return };
        for line in now {
            s.prefetch(line);
        }
        self.lines = rest;
    }
}
