//! BLAKE3 of a record whose parts become known in any order.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB. A [`Piece`] hashes the whole subtrees inside one part and keeps the
//! ragged edges; [`TreeHash`] joins pieces into the ordinary BLAKE3 hash of all bytes. So the checksum depends neither
//! on how the work was cut nor on the order, nothing is read twice, and `b3sum` can check it.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};
use std::collections::HashMap;

const CHUNK: u64 = 1024;

/// A node of the tree: the bytes `start..start + len`.
type Node = (u64, u64);

/// The hash of one part of a message.
#[derive(Debug)]
pub struct Piece {
    nodes: Vec<(Node, ChainingValue)>,
    edges: Vec<(Node, u64, Vec<u8>)>,
}

impl Piece {
    /// The piece of a message of `total` bytes that starts at `offset`; bytes beyond `total` are ignored.
    #[must_use]
    pub fn new(total: u64, offset: u64, bytes: &[u8]) -> Self {
        let mut piece = Self { nodes: Vec::new(), edges: Vec::new() };
        piece.cover((0, total), true, offset, bytes);
        piece
    }

    fn cover(&mut self, node: Node, root: bool, offset: u64, bytes: &[u8]) {
        let (start, len) = node;
        let (from, to) = (start.max(offset), (start + len).min(offset.saturating_add(bytes.len() as u64)));
        if from >= to {
            return;
        }
        let Some(part) = bytes.get((from - offset) as usize..(to - offset) as usize) else { return };
        if !root && part.len() as u64 == len {
            self.nodes.push((node, subtree(start, part)));
        } else if len <= CHUNK {
            self.edges.push((node, from - start, part.to_vec()));
        } else {
            let left = left_subtree_len(len);
            self.cover((start, left), false, offset, bytes);
            self.cover((start + left, len - left), false, offset, bytes);
        }
    }
}

fn subtree(start: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(start).update(bytes);
    hasher.finalize_non_root()
}

/// A chunk that several pieces share.
#[derive(Debug)]
struct Edge {
    bytes: Vec<u8>,
    filled: u64,
}

/// Joins the pieces of one message.
#[derive(Debug)]
pub struct TreeHash {
    total: u64,
    nodes: HashMap<Node, ChainingValue>,
    edges: HashMap<Node, Edge>,
}

impl TreeHash {
    /// For a message of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { total, nodes: HashMap::new(), edges: HashMap::new() }
    }

    /// Adds a piece made with the same `total`. Pieces must not overlap.
    pub fn add(&mut self, piece: Piece) {
        self.nodes.extend(piece.nodes);
        for (node, at, part) in piece.edges {
            let (start, len) = node;
            let edge = self.edges.entry(node).or_insert_with(|| Edge { bytes: vec![0; len as usize], filled: 0 });
            if let Some(slot) = edge.bytes.get_mut(at as usize..at as usize + part.len()) {
                slot.copy_from_slice(&part);
                edge.filled += part.len() as u64;
            }
            if edge.filled == len && len < self.total {
                self.nodes.insert(node, subtree(start, &edge.bytes));
                self.edges.remove(&node);
            }
        }
    }

    /// The BLAKE3 hash of the message, or `None` while bytes are missing.
    #[must_use]
    pub fn finish(&self) -> Option<Hash> {
        if self.total == 0 {
            return Some(blake3::hash(b""));
        }
        if self.total <= CHUNK {
            let edge = self.edges.get(&(0, self.total))?;
            return (edge.filled == self.total).then(|| blake3::hash(&edge.bytes));
        }
        let left = left_subtree_len(self.total);
        let (l, r) = (self.value((0, left))?, self.value((left, self.total - left))?);
        Some(merge_subtrees_root(&l, &r, Mode::Hash))
    }

    fn value(&self, node: Node) -> Option<ChainingValue> {
        if let Some(value) = self.nodes.get(&node) {
            return Some(*value);
        }
        let (start, len) = node;
        if len <= CHUNK {
            return None;
        }
        let left = left_subtree_len(len);
        let (l, r) = (self.value((start, left))?, self.value((start + left, len - left))?);
        Some(merge_subtrees_non_root(&l, &r, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn one_piece_is_the_plain_hash() {
        for len in [0, 1, 63, 1023, 1024, 1025, 2048, 4096, 5000, 65536, 100_000] {
            let m = message(len);
            let mut tree = TreeHash::new(len as u64);
            tree.add(Piece::new(len as u64, 0, &m));
            assert_eq!(tree.finish(), Some(blake3::hash(&m)), "{len} bytes");
        }
    }

    #[test]
    fn a_missing_byte_is_noticed() {
        let m = message(10_000);
        let mut tree = TreeHash::new(10_000);
        tree.add(Piece::new(10_000, 0, &m[..5000]));
        tree.add(Piece::new(10_000, 5001, &m[5001..]));
        assert_eq!(tree.finish(), None);
        tree.add(Piece::new(10_000, 5000, &m[5000..5001]));
        assert_eq!(tree.finish(), Some(blake3::hash(&m)));
    }

    proptest! {
        #[test]
        fn any_cut_in_any_order_gives_the_plain_hash(
            len in 0usize..20_000, cuts in prop::collection::vec(0usize..20_000, 0..12), seed in any::<u64>(),
        ) {
            let m = message(len);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
            parts.sort_by_key(|p| (p.0 as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut tree = TreeHash::new(len as u64);
            for (a, b) in parts {
                tree.add(Piece::new(len as u64, a as u64, &m[a..b]));
            }
            prop_assert_eq!(tree.finish(), Some(blake3::hash(&m)));
        }
    }
}
