//! [`Ema`]: how much an expert has been used lately. The same for recordings that are replayed and for running models.

/// Uses of experts, each counting half after so many tokens.
#[derive(Clone, Debug)]
pub struct Ema {
    half_life: f64,
    /// The base-2 logarithm of what uses add up to, seen from token 0: it need not be touched as time goes by.
    value: Vec<f64>,
}

impl Ema {
    /// Nothing was used of `experts`.
    #[must_use]
    pub fn new(experts: usize, half_life: f64) -> Self {
        Self { half_life, value: vec![f64::NEG_INFINITY; experts] }
    }

    /// The score of an expert that `uses` of the `tokens` up to and including number `last` use, spread evenly.
    pub fn touch(&mut self, expert: u32, last: u64, uses: usize, tokens: usize) -> f64 {
        let Some(value) = self.value.get_mut(expert as usize) else { return f64::NEG_INFINITY };
        let at = last as f64 / self.half_life;
        // What a use counts on average by the last of these tokens.
        let decay = (-1.0 / self.half_life).exp2();
        let mean = if tokens > 1 { (1.0 - decay.powf(tokens as f64)) / ((1.0 - decay) * tokens as f64) } else { 1.0 };
        let added = if uses == 1 && tokens <= 1 { at } else { at + (uses as f64 * mean).log2() };
        // log2(2^value + 2^added), the greater one outside.
        let (high, low) = (value.max(added), value.min(added));
        *value = high + (low - high).exp2().ln_1p() * std::f64::consts::LOG2_E;
        *value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_counts_half_after_its_half_life_and_a_batch_as_its_tokens_one_by_one() {
        let mut ema = Ema::new(3, 16.0);
        ema.touch(0, 0, 1, 1);
        let score = ema.touch(0, 16, 1, 1) - 1.0;
        assert!((score.exp2() - 1.5).abs() < 1e-12, "{score}");
        // Every one of 40 tokens.
        (1..=40).for_each(|token| {
            ema.touch(1, token, 1, 1);
        });
        let (alone, batch) = (ema.touch(1, 41, 1, 1), {
            ema.touch(2, 40, 40, 40);
            ema.touch(2, 41, 1, 1)
        });
        assert!((alone - batch).abs() < 1e-9, "{alone} {batch}");
    }
}
