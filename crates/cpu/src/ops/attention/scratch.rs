//! Blocks laid out for the kernel from what is stored otherwise.

use crate::kv::{Block, Element, F32};
use ashlar_backend::KV_PAGE;
use ashlar_simd::Simd;

/// Room for one block in f32.
pub struct Scratch {
    keys: Vec<[[f32; 16]; 4]>,
    values: Vec<[f32; 16]>,
    vectors: usize,
}

impl Scratch {
    /// For keys of `dim` (0 if they are read as stored) and values of that many vectors.
    pub fn new(dim: usize, vectors: usize) -> Self {
        Self { keys: vec![[[0.0; 16]; 4]; dim], values: vec![[0.0; 16]; KV_PAGE * vectors], vectors }
    }

    /// The values of a block that are the first entries of its keys, scales left out.
    #[inline(always)]
    pub fn values_of_keys<S: Simd, E: Element>(&mut self, s: S, keys: &[[E::Keys; 4]]) {
        for v in 0..self.vectors {
            let entries = &keys[(16 * v / E::KEY_ENTRIES).min(keys.len())..];
            for part in 0..4 {
                let mut square = [s.splat(0.0); 16];
                for (to, from) in square.chunks_mut(E::KEY_ENTRIES).zip(entries) {
                    for (i, to) in to.iter_mut().enumerate() {
                        *to = E::load_key(s, &from[part], i);
                    }
                }
                let square = transpose(s, square);
                for (i, lanes) in square.into_iter().enumerate() {
                    s.store(lanes, &mut self.values[(16 * part + i) * self.vectors + v]);
                }
            }
        }
    }

    /// Up to 64 rows as keys, and as values their first entries.
    #[inline(always)]
    pub fn gather<S: Simd>(&mut self, s: S, rows: &[&[f32]]) {
        for (part, rows) in rows.chunks(16).enumerate() {
            for (d, column) in self.keys.chunks_mut(16).enumerate() {
                let mut square = [s.splat(0.0); 16];
                for (to, row) in square.iter_mut().zip(rows) {
                    *to = crate::math::load_part(s, &row[16 * d..(16 * d + 16).min(row.len())]);
                }
                let turned = transpose(s, square);
                for (to, v) in column.iter_mut().zip(turned) {
                    s.store(v, &mut to[part]);
                }
                if d < self.vectors {
                    for (i, lanes) in square.into_iter().enumerate() {
                        s.store(lanes, &mut self.values[(16 * part + i) * self.vectors + d]);
                    }
                }
            }
        }
    }

    /// What was gathered.
    pub fn block(&self) -> Block<'_, F32, F32> {
        Block { keys: &self.keys, values: &self.values, key_scales: &[], value_scales: &[], value_group: self.vectors }
    }

    /// The block whose values were laid out; its values have the scales of its keys.
    pub fn with<'a, E: Element>(&'a self, stored: &Block<'a, E, E>) -> Block<'a, E, F32> {
        let (keys, scales) = (stored.keys, stored.key_scales);
        Block { keys, values: &self.values, key_scales: scales, value_scales: scales, value_group: self.vectors }
    }
}

/// Lane j of vector i becomes lane i of vector j.
#[inline(always)]
fn transpose<S: Simd>(s: S, mut v: [S::F32; 16]) -> [S::F32; 16] {
    for _ in 0..4 {
        let old = v;
        for i in 0..8 {
            let (low, high) = s.zip(old[i], old[i + 8]);
            v[2 * i] = low;
            v[2 * i + 1] = high;
        }
    }
    v
}
