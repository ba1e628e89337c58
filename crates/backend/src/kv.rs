//! What caches hold and how it is rounded: the one definition that every backend stores keys and values by.
//!
//! Owns: [`KvFormat`] and its rounding, the size of pages, which positions a sliding window may forget. Refuses: where
//! pages lie, which is each backend's own.

use crate::{BackendError, EntryFormat};
use half::f16;
use std::ops::Range;

/// Positions of a page. A sequence takes memory page by page.
pub const KV_PAGE: usize = 64;

/// Positions that a layer with a sliding window keeps beyond its window, so that a sequence can be cut back a little.
pub const KV_KEPT: usize = 256;

/// Positions that are saved together ([`crate::Backend::save`]). A multiple of [`KV_PAGE`] and of the positions that pooled
/// entries are made of; no more than [`KV_KEPT`], so that a sequence that was fed in chunks of as many can be saved as it goes.
pub const KV_SAVED: usize = 256;

/// Entries of a value that share a scale in [`KvFormat::Q8`]. A key has one scale: finer ones would cost kernels a
/// multiplication per score and group, and bring less (docs/numerics.md).
pub const Q8_VALUE_GROUP: usize = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// As computed.
    #[default]
    F32,
    /// IEEE half, rounded to nearest even; beyond ±65504 the greatest half.
    F16,
    /// 8-bit codes by [`round_q8`]: one scale per key of a head, one per [`Q8_VALUE_GROUP`] entries of a value.
    Q8,
}

impl KvFormat {
    /// Every format, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8];

    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// Bytes of a code.
    #[must_use]
    pub fn code_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Scales that a head of that width has at each position: of its key, and of its value.
    #[must_use]
    pub fn scales(self, dim: usize) -> [usize; 2] {
        match self {
            Self::F32 | Self::F16 => [0, 0],
            Self::Q8 => [1, dim.div_ceil(Q8_VALUE_GROUP)],
        }
    }

    /// Replaces one head's key by what storing keeps of it.
    pub fn round_key(self, head: &mut [f32]) {
        self.round(head, head.len());
    }

    /// Replaces one head's value by what storing keeps of it.
    pub fn round_value(self, head: &mut [f32]) {
        self.round(head, Q8_VALUE_GROUP);
    }

    fn round(self, head: &mut [f32], group: usize) {
        match self {
            Self::F32 => {}
            Self::F16 => head.iter_mut().for_each(|v| *v = to_f16(*v).to_f32()),
            Self::Q8 => {
                let mut codes = vec![0; head.len()];
                for (values, codes) in head.chunks_mut(group.max(1)).zip(codes.chunks_mut(group.max(1))) {
                    let scale = round_q8(values, codes).to_f32();
                    values.iter_mut().zip(codes).for_each(|(v, code)| *v = f32::from(*code) * scale);
                }
            }
        }
    }
}

/// The nearest half, finite for every finite number.
#[must_use]
pub fn to_f16(v: f32) -> f16 {
    // `clamp` keeps NaN.
    f16::from_f32(v.clamp(-65504.0, 65504.0))
}

/// Rounds values to int8 and returns the scale: max|x| / 127, rounded up to a half; codes are x · (1 / scale), half to even,
/// at most 127. `codes` is as long as `values`.
pub fn round_q8(values: &[f32], codes: &mut [i8]) -> f16 {
    let max = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if max == 0.0 {
        codes.fill(0);
        return f16::ZERO;
    }
    let exact = max / 127.0;
    let near = to_f16(exact);
    let up = near.to_f32() < exact && near < f16::MAX;
    let scale = if up { f16::from_bits(near.to_bits() + 1) } else { near };
    let inverse = 1.0 / scale.to_f32();
    for (code, v) in codes.iter_mut().zip(values) {
        *code = (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// The heads whose keys and values a layer caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHeads {
    /// Key/value heads.
    pub count: usize,
    /// Width of a key, and of a value.
    pub dim: usize,
    /// Values are the first entries of the keys and not stored.
    pub values_in_keys: bool,
    /// Keys visible to a query, itself included: what lies further back may be forgotten.
    pub window: Option<usize>,
    /// Keys are rounded by [`crate::round_key`] before they are stored: so many of their first values to E4M3.
    pub native: Option<usize>,
}

/// What the positions of a cache hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Two rows of `width` f32 per position: what [`crate::Op::Compress`] pools, until no window needs it.
    Tokens {
        /// Values per row.
        width: usize,
        /// Positions before the next one that a window may still need.
        kept: usize,
    },
    /// Pooled entries.
    Entries {
        /// Values of an entry.
        width: usize,
        /// Positions of an entry.
        ratio: usize,
        /// How they are stored.
        format: EntryFormat,
    },
    /// Keys and values for [`crate::Op::Attention`].
    Heads(KvHeads, KvFormat),
}

/// A cache to be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Sequences, each with a slot of its own.
    pub sequences: usize,
    /// Positions per slot.
    pub capacity: usize,
    /// Rows that one batch brings at most.
    pub rows: usize,
    /// What they hold.
    pub stored: Stored,
}

impl CacheShape {
    /// Bytes of all slots at full length: what a device reserves that takes memory once.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        let positions = match self.stored {
            Stored::Entries { ratio, .. } => self.capacity.saturating_mul(ratio),
            Stored::Tokens { .. } | Stored::Heads(..) => self.capacity,
        };
        self.bytes(positions, self.rows.min(positions)).saturating_mul(self.sequences as u64)
    }

    /// Values per position that an op hands over.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.stored {
            Stored::Tokens { width, .. } | Stored::Entries { width, .. } => width,
            Stored::Heads(heads, _) => heads.count.saturating_mul(heads.dim),
        }
    }

    /// Bytes of a page of [`KV_PAGE`] positions of keys and values, which are padded to a multiple of 16 per head; 0 for what
    /// is not stored in pages.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        match self.stored {
            Stored::Tokens { .. } | Stored::Entries { .. } => 0,
            Stored::Heads(heads, format) => heads.count.saturating_mul(heads.region_bytes(format)),
        }
    }

    /// Bytes that a slot takes at most while its sequence has `positions`, of which the last `rows` came in one batch. More
    /// positions never take less.
    #[must_use]
    pub fn bytes(&self, positions: usize, rows: usize) -> u64 {
        let (count, bytes) = match self.stored {
            Stored::Tokens { width, kept } => {
                (positions.min(tokens_held(kept).saturating_add(rows)), width.saturating_mul(8))
            }
            Stored::Entries { width, ratio, format } => (positions / ratio.max(1), format.bytes(width)),
            Stored::Heads(heads, _) => {
                let all = positions.div_ceil(KV_PAGE);
                // What is forgotten ends at a page and begins behind one: two pages may be kept for a position each.
                let kept = heads.window.map_or(usize::MAX, |window| {
                    rows.saturating_add(window).saturating_add(KV_KEPT + 2 * KV_PAGE - 3) / KV_PAGE
                });
                (all.min(kept), self.page_bytes())
            }
        };
        (count as u64).saturating_mul(bytes as u64)
    }

    /// Whether a sequence can only be cut back a little.
    #[must_use]
    pub fn forgets(&self) -> bool {
        matches!(self.stored, Stored::Tokens { .. } | Stored::Heads(KvHeads { window: Some(_), .. }, _))
    }
}

impl KvHeads {
    /// Width of a stored value: 0 where values are in keys, else padded to a multiple of 16.
    #[must_use]
    pub fn value_width(&self) -> usize {
        if self.values_in_keys { 0 } else { self.dim.next_multiple_of(16) }
    }

    /// Width of a stored key: 8-bit codes are padded to a multiple of 4, which kernels multiply at once.
    #[must_use]
    pub fn key_width(&self, format: KvFormat) -> usize {
        if format == KvFormat::Q8 { self.dim.next_multiple_of(4) } else { self.dim }
    }

    /// Bytes of one head in a page.
    #[must_use]
    pub fn region_bytes(&self, format: KvFormat) -> usize {
        let codes = self.key_width(format).saturating_add(self.value_width()).saturating_mul(format.code_bytes());
        let [key, value] = format.scales(self.dim);
        let scales = key + if self.values_in_keys { 0 } else { value };
        codes.saturating_add(2 * scales).saturating_mul(KV_PAGE)
    }
}

/// How many of the first positions a layer may forget once its sequence has held `positions`.
#[must_use]
pub fn forgotten(positions: usize, window: usize) -> usize {
    (positions + 1).saturating_sub(window.saturating_add(KV_KEPT)) / KV_PAGE * KV_PAGE
}

/// Positions whose rows [`Stored::Tokens`] holds between two batches, at most.
#[must_use]
pub fn tokens_held(kept: usize) -> usize {
    kept.saturating_add(KV_KEPT + KV_PAGE)
}

/// Whether a sequence that once held `reached` positions can go on at `position` though layers with windows forget.
#[must_use]
pub fn can_go_on(reached: usize, position: usize) -> bool {
    position == 0 || position.saturating_add(KV_KEPT) >= reached
}

/// What a slot holds, and what may be stored next: the bookkeeping of every cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Positions held.
    pub positions: usize,
    /// The most that it held since it was empty.
    pub reached: usize,
}

impl Held {
    /// Cuts the slot back to `position` and adds `rows`.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if that would leave a gap, or if a window has forgotten what is needed.
    pub fn advance(&mut self, slot: usize, position: usize, rows: usize, windowed: bool) -> Result<(), BackendError> {
        let wrong = |what: String| Err(BackendError::Operand { op: "cache", what });
        if position > self.positions {
            return wrong(format!("slot {slot} holds {} positions, the batch starts at {position}", self.positions));
        }
        if windowed && !can_go_on(self.reached, position) {
            let reached = self.reached;
            return wrong(format!("slot {slot} went on to {reached} and has forgotten what is before {position}"));
        }
        let reached = if position == 0 { 0 } else { self.reached };
        self.positions = position + rows;
        self.reached = reached.max(self.positions);
        Ok(())
    }

    /// What a slot holds that got its first `positions` from [`crate::Backend::restore`]. It cannot be cut back further: what
    /// windows need before that may never have been saved.
    #[must_use]
    pub fn restored(positions: usize) -> Self {
        Self { positions, reached: positions.saturating_add(KV_KEPT) }
    }

    /// Whether the positions of `range` can be saved; then whether caches with windows still hold all that is needed to go on
    /// at its end.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the range is no multiple of [`KV_SAVED`], or not held.
    pub fn saves(&self, range: &Range<usize>) -> Result<bool, BackendError> {
        if whole(range) && range.end <= self.positions {
            return Ok(can_go_on(self.reached, range.end));
        }
        Err(not_saved(range, self.positions))
    }

    /// Whether the positions of `range` can be restored.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the range is no multiple of [`KV_SAVED`], or would leave a gap.
    pub fn restores(&self, range: &Range<usize>) -> Result<(), BackendError> {
        if whole(range) && range.start <= self.positions { Ok(()) } else { Err(not_saved(range, self.positions)) }
    }
}

fn whole(range: &Range<usize>) -> bool {
    range.start < range.end && range.start.is_multiple_of(KV_SAVED) && range.end.is_multiple_of(KV_SAVED)
}

fn not_saved(range: &Range<usize>, held: usize) -> BackendError {
    let what =
        format!("positions {range:?} of a slot that holds {held}: expected whole blocks of {KV_SAVED} up to there");
    BackendError::Operand { op: "cache", what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_saturate_and_ties_go_to_even() {
        let mut x = [1e9, -1e9, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 0.1];
        KvFormat::F16.round_key(&mut x);
        assert_eq!(&x[..4], &[65504.0, -65504.0, 1.0, 1.0 + 2.0 / 1024.0]);
        assert!((x[4] - 0.1).abs() < 5e-5);
    }

    #[test]
    fn q8_errs_by_half_a_step_of_the_head_or_of_the_group() {
        let exact: Vec<f32> = (0..96).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i / 32) as f32)).collect();
        let steps = |part: &[f32]| part.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0 * 0.5005;
        let (mut key, mut value) = (exact.clone(), exact.clone());
        KvFormat::Q8.round_key(&mut key);
        KvFormat::Q8.round_value(&mut value);
        assert!(key.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= steps(&exact)));
        for (value, exact) in value.chunks(32).zip(exact.chunks(32)) {
            assert!(value.iter().zip(exact).all(|(a, b)| (a - b).abs() <= steps(exact)));
        }
        let mut codes = [0; 3];
        assert_eq!((round_q8(&[127.0, -127.0, 2.5], &mut codes).to_f32(), codes), (1.0, [127, -127, 2]));
        assert_eq!((round_q8(&[1e-30, 0.0, -1e-30], &mut codes).to_bits(), codes), (1, [0, 0, 0]));
        assert_eq!((round_q8(&[1e30, -1e30, 0.0], &mut codes), codes), (f16::MAX, [127, -127, 0]));
        assert_eq!(round_q8(&[0.0; 3], &mut codes), f16::ZERO);
    }

    #[test]
    fn a_page_holds_keys_padded_values_and_scales() {
        let heads = KvHeads { count: 2, dim: 24, values_in_keys: false, window: None, native: None };
        let shape = |stored| CacheShape { sequences: 1, capacity: 1000, rows: 100, stored };
        assert_eq!(shape(Stored::Heads(heads, KvFormat::F16)).page_bytes(), 2 * 64 * (24 + 32) * 2);
        assert_eq!(shape(Stored::Heads(heads, KvFormat::Q8)).page_bytes(), 2 * 64 * (24 + 32 + 2 + 2));
        assert_eq!(shape(Stored::Heads(heads, KvFormat::F32)).bytes(65, 1), 2 * 2 * 64 * (24 + 32) * 4);
    }

    #[test]
    fn a_window_bounds_what_is_kept_and_how_far_back_one_can_go() {
        let heads = KvHeads { count: 1, dim: 16, values_in_keys: false, window: Some(100), native: None };
        let shape = CacheShape { sequences: 1, capacity: 9000, rows: 100, stored: Stored::Heads(heads, KvFormat::F32) };
        let page = shape.page_bytes() as u64;
        assert!(shape.bytes(8000, 1) <= (100 + 256 + 128) / 64 * page);
        assert_eq!(shape.bytes(200, 1), 4 * page);
        // Whoever goes back as far as is allowed finds its whole window.
        for reached in 300..1500 {
            let back = reached - KV_KEPT;
            let gone = forgotten(reached, 100);
            assert!(can_go_on(reached, back) && (gone == 0 || gone + 99 <= back), "{reached}");
            assert!(!can_go_on(reached, back - 1) || back == 1);
        }
    }

    #[test]
    fn a_slot_refuses_gaps_and_what_it_forgot() {
        let mut held = Held::default();
        assert!(held.advance(0, 1, 1, false).is_err());
        held.advance(0, 0, 1000, true).unwrap();
        assert!(held.advance(0, 700, 1, true).unwrap_err().to_string().contains("forgotten"));
        held.advance(0, 800, 1, true).unwrap();
        assert_eq!(held, Held { positions: 801, reached: 1000 });
        held.advance(0, 0, 3, true).unwrap();
        assert_eq!(held, Held { positions: 3, reached: 3 });
    }
}
