//! A text as tokens: the windows that are scored, the prompts that are continued.

use crate::{RuntimeError, Tokenizer};

/// A text cut into windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    list: Vec<Vec<u32>>,
    /// Tokens before the text in every window.
    prefix: usize,
}

/// One window.
pub(super) struct Window<'a> {
    pub tokens: &'a [u32],
    /// The first position whose token is scored.
    pub first_scored: usize,
}

impl Windows {
    /// Cuts `text` into windows of `ctx` tokens, at most `max_tokens` tokens in all.
    ///
    /// # Errors
    /// [`RuntimeError::Option`] if `ctx` leaves nothing to score; [`RuntimeError::Evaluate`] if the text is too short.
    pub fn of(tokenizer: &Tokenizer, text: &str, ctx: usize, max_tokens: Option<usize>) -> Result<Self, RuntimeError> {
        let prefix = tokenizer.prefix()?;
        let ids = tokenizer.encode(text, false)?;
        Self::cut(&prefix, &ids, ctx, max_tokens)
    }

    pub(super) fn cut(
        prefix: &[u32],
        ids: &[u32],
        ctx: usize,
        max_tokens: Option<usize>,
    ) -> Result<Self, RuntimeError> {
        let least = prefix.len().max(1) + 1;
        if ctx < least {
            let expected = format!("at least {least}");
            return Err(RuntimeError::Option { option: "--ctx", got: ctx.to_string(), expected });
        }
        let ids = ids.get(..max_tokens.unwrap_or(ids.len()).min(ids.len())).unwrap_or_default();
        let window = |part: &[u32]| [prefix, part].concat();
        let mut list: Vec<Vec<u32>> = ids.chunks_exact(ctx - prefix.len()).map(window).collect();
        if list.is_empty() && prefix.len() + ids.len() >= least {
            list.push(window(ids));
        }
        if list.is_empty() {
            return Err(RuntimeError::Evaluate(format!(
                "the text has {} tokens; there is nothing to score",
                ids.len()
            )));
        }
        Ok(Self { list, prefix: prefix.len() })
    }

    /// The tokens of every window.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.list.iter().map(Vec::as_slice)
    }

    /// Number of windows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none; never, as made by [`Windows::of`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Tokens that go through the model.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.list.iter().map(Vec::len).sum()
    }

    /// Longest window.
    #[must_use]
    pub fn ctx(&self) -> usize {
        self.list.iter().map(Vec::len).max().unwrap_or_default()
    }

    /// Windows at even distances, as many as `tokens` tokens allow; at least one.
    #[must_use]
    pub fn thinned(&self, tokens: usize) -> Self {
        let count = (tokens / self.ctx().max(1)).clamp(1, self.len().max(1));
        let list = (0..count).filter_map(|i| self.list.get(i * self.len() / count).cloned()).collect();
        Self { list, prefix: self.prefix }
    }

    /// `count` stretches of the text of at most `tokens` tokens, at even distances, each with what the tokenizer puts
    /// before every text. A short text gives shorter ones.
    #[must_use]
    pub fn prompts(&self, count: usize, tokens: usize) -> Vec<Vec<u32>> {
        let prefix = self.list.first().and_then(|w| w.get(..self.prefix)).unwrap_or_default();
        let ids: Vec<u32> = self.list.iter().filter_map(|w| w.get(self.prefix..)).flatten().copied().collect();
        let len = tokens.saturating_sub(prefix.len()).clamp(1, ids.len().max(1));
        let last = ids.len().saturating_sub(len);
        let start = |i: usize| if count > 1 { i * last / (count - 1) } else { 0 };
        (0..count).filter_map(|i| Some([prefix, ids.get(start(i)..start(i) + len)?].concat())).collect()
    }

    pub(super) fn windows(&self) -> impl Iterator<Item = Window<'_>> {
        let first_scored = self.prefix.max(1);
        self.list.iter().map(move |tokens| Window { tokens, first_scored })
    }
}

impl Window<'_> {
    /// By which token each prediction of a chunk is scored, with that token's position: the next one, where there is
    /// one to score.
    pub fn targets(&self, position: usize, len: usize) -> impl Iterator<Item = Option<(usize, u32)>> {
        let next = position + 1..position + 1 + len;
        next.map(|p| Some((p, self.tokens.get(p).copied().filter(|_| p >= self.first_scored)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_a_short_rest_is_dropped() {
        let ids: Vec<u32> = (0..10).collect();
        let w = Windows::cut(&[], &ids, 4, None).unwrap();
        assert_eq!(w.list, [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!((w.windows().next().unwrap().first_scored, w.tokens(), w.ctx()), (1, 8, 4));
        assert_eq!(Windows::cut(&[], &ids, 4, Some(7)).unwrap().len(), 1);
    }

    #[test]
    fn a_tokenizers_prefix_begins_every_window_and_its_first_text_token_is_scored() {
        let w = Windows::cut(&[99], &[0, 1, 2, 3, 4, 5], 4, None).unwrap();
        assert_eq!(w.list, [[99, 0, 1, 2], [99, 3, 4, 5]]);
        let window = w.windows().next().unwrap();
        assert_eq!(window.targets(0, 2).collect::<Vec<_>>(), [Some((1, 0)), Some((2, 1))]);
        assert_eq!(window.targets(2, 2).collect::<Vec<_>>(), [Some((3, 2)), None]);
    }

    #[test]
    fn a_short_text_is_one_window_and_none_is_an_error() {
        assert_eq!(Windows::cut(&[], &[1, 2], 256, None).unwrap().list, [[1, 2]]);
        assert!(Windows::cut(&[], &[1], 256, None).is_err());
        assert!(Windows::cut(&[], &[1, 2, 3], 1, None).is_err());
    }

    #[test]
    fn prompts_lie_at_even_distances_behind_the_prefix() {
        let w = Windows::cut(&[99], &(0..9).collect::<Vec<_>>(), 4, None).unwrap();
        assert_eq!(w.prompts(3, 4), [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]);
        assert_eq!(w.prompts(1, 2), [[99, 0]]);
        assert_eq!(Windows::cut(&[], &[7, 8], 4, None).unwrap().prompts(2, 100), [[7, 8], [7, 8]]);
    }

    #[test]
    fn thinning_keeps_whole_windows_from_everywhere() {
        let w = Windows::cut(&[], &(0..20).collect::<Vec<_>>(), 2, None).unwrap();
        assert_eq!(w.thinned(5).list, [[0, 1], [10, 11]]);
        assert_eq!(w.thinned(0).len(), 1);
        assert_eq!(w.thinned(1000), w);
    }
}
