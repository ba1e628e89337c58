//! The time of one token: what every token reads, then in every layer with experts the longest of what the card, the processor
//! and the disk do with those it uses, and what handing over costs.
//!
//! Which experts are where is chance: of k uses, each is in a slot with probability h, and of those that are not, each in memory with
//! probability r. The longest of several is longer on average than the longest of their averages, so the average is taken
//! over all cases.

use super::Layout;

/// What a model does and how fast everything is, for one end of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Bytes per second of the card, of the processor reading keys and values, and of the disk.
    pub card: f64,
    pub keys: f64,
    pub disk: f64,
    /// Seconds of the processor for all weights that every token reads, and for all experts of one token.
    pub host_dense: f64,
    pub host_routed: f64,
    /// Seconds per layer with experts that card and processor share.
    pub handshake: f64,
    /// Seconds per layer, whatever it is.
    pub layer: f64,
    /// Hits of slots, and of slots and memory together.
    pub hits: [f64; 2],
    /// Share of the context that is filled.
    pub filled: f64,
    /// Whether the disk is read while other experts are computed.
    pub beside: bool,
}

/// What a token meets in a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Token {
    /// Bytes of routed experts.
    pub routed: f64,
    /// Bytes of keys and values of a full context.
    pub context: f64,
    /// Layers, those with experts, and experts per token in these.
    pub layers: usize,
    pub moe_layers: usize,
    pub top_k: usize,
}

/// Seconds of a token, by what they are spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    pub card: f64,
    pub host: f64,
    pub experts: f64,
    pub context: f64,
    pub handshakes: f64,
    pub layers: f64,
    /// Of experts, what card, processor and disk would each take alone.
    pub parts: [f64; 3],
}

impl Seconds {
    pub fn total(&self) -> f64 {
        self.card + self.host + self.experts + self.context + self.handshakes + self.layers
    }

    /// What takes longest.
    pub fn bottleneck(&self) -> &'static str {
        const EXPERTS: [&str; 3] =
            ["experts on the card", "reading experts in memory", "reading experts from the disk"];
        let longest = self.parts.iter().zip(EXPERTS).max_by(|a, b| a.0.total_cmp(b.0)).map_or("", |(_, what)| what);
        let parts = [
            (self.card, "weights that every token uses, on the card"),
            (self.host, "reading weights that every token uses"),
            (self.experts, longest),
            (self.context, "reading keys and values"),
            (self.handshakes, "handing layers from the card to the processor and back"),
            (self.layers, "handing out work"),
        ];
        parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("", |(_, what)| what)
    }
}

/// Times one token.
pub fn seconds(token: &Token, layout: &Layout, pace: &Pace) -> Seconds {
    let dense = layout.dense[0] + layout.dense[1];
    let on_host = if dense > 0.0 { layout.dense[1] / dense } else { 0.0 };
    let fixed = if layout.experts > 0.0 { layout.fixed / layout.experts } else { 0.0 };
    let moe_layers = token.moe_layers as f64;
    let one = Uses::of(token, pace);
    let shared = moe_layers * (1.0 - fixed);
    let (average, parts, any_host) = one.average(pace);
    let keys = pace.filled * token.context;
    Seconds {
        card: layout.dense[0] / pace.card,
        host: on_host * pace.host_dense,
        experts: shared * average + fixed * token.routed / pace.card,
        context: keys * layout.context / pace.card + keys * (1.0 - layout.context) / pace.keys,
        handshakes: if layout.has_card() { shared * any_host * pace.handshake } else { 0.0 },
        layers: token.layers as f64 * pace.layer,
        parts: [parts[0] * shared + fixed * token.routed / pace.card, parts[1] * shared, parts[2] * shared],
    }
}

/// Seconds of one expert, by who computes or reads it, and how many a layer uses.
struct Uses {
    count: usize,
    card: f64,
    host: f64,
    disk: f64,
}

impl Uses {
    fn of(token: &Token, pace: &Pace) -> Self {
        let uses = (token.moe_layers * token.top_k).max(1) as f64;
        let bytes = token.routed / uses;
        Self { count: token.top_k, card: bytes / pace.card, host: pace.host_routed / uses, disk: bytes / pace.disk }
    }

    /// The average over all cases, the averages of card, processor and disk alone, and how often the processor computes any.
    fn average(&self, pace: &Pace) -> (f64, [f64; 3], f64) {
        let [slots, held] = pace.hits;
        let outside = 1.0 - slots;
        // Of those outside slots, the disk's.
        let disk = if outside > 1e-12 { ((1.0 - held) / outside).clamp(0.0, 1.0) } else { 0.0 };
        let (mut sum, mut parts, mut any) = (0.0, [0.0; 3], 0.0);
        for misses in 0..=self.count {
            let chance = binomial(self.count, misses, outside);
            for read in 0..=misses {
                let chance = chance * binomial(misses, read, disk);
                let card = (self.count - misses) as f64 * self.card;
                let seconds = self.one(card, misses, read, pace.beside);
                sum += chance * seconds;
                parts[0] += chance * card;
                parts[1] += chance * misses as f64 * self.host;
                parts[2] += chance * read as f64 * self.disk;
            }
            any += if misses > 0 { chance } else { 0.0 };
        }
        (sum, parts, any)
    }

    /// With so many that the processor computes, of which so many are read first.
    fn one(&self, card: f64, misses: usize, read: usize, beside: bool) -> f64 {
        let (host, disk) = (misses as f64 * self.host, read as f64 * self.disk);
        let last = if read > 0 { self.host } else { 0.0 };
        // What came last is computed after it came.
        let processor = if beside { (host - last).max(disk) + last } else { host + disk };
        card.max(processor)
    }
}

/// The chance of `k` of `n`, each with probability `p`.
fn binomial(n: usize, k: usize, p: f64) -> f64 {
    let choose = (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64);
    choose * p.powi(k as i32) * (1.0 - p).powi((n - k) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_add_up_and_are_those_of_coins() {
        let of = |p: f64| (0..=8).map(|k| binomial(8, k, p)).sum::<f64>();
        assert!([0.0, 0.3, 1.0].into_iter().all(|p| (of(p) - 1.0).abs() < 1e-12));
        assert_eq!((binomial(2, 1, 0.5), binomial(3, 0, 0.0), binomial(0, 0, 0.7)), (0.5, 1.0, 1.0));
    }

    #[test]
    fn a_layer_takes_the_longest_of_its_parts_on_average_over_all_cases() {
        let token = Token { routed: 2.0, context: 0.0, layers: 1, moe_layers: 1, top_k: 2 };
        let layout = Layout { slots: 1.0, memory: 8.0, experts: 8.0, ..Layout::default() };
        let pace = Pace { card: 10.0, keys: 1.0, disk: 1.0, host_routed: 2.0, hits: [0.5, 1.0], ..Pace::default() };
        // Both in slots 0.2, one 1.0, none 2.0: with chances of a quarter, a half, a quarter.
        let found = seconds(&token, &layout, &pace);
        assert!((found.total() - (0.25 * 0.2 + 0.5 * 1.0 + 0.25 * 2.0)).abs() < 1e-12, "{found:?}");
        // The processor takes part in three of four.
        let shaken = seconds(&token, &layout, &Pace { handshake: 4.0, ..pace });
        assert!((shaken.total() - found.total() - 3.0).abs() < 1e-12, "{shaken:?}");
        // No slots, half of memory: of two uses from the disk both take 2 s, and one is computed after that.
        let processor = Pace { hits: [0.0, 0.5], host_routed: 0.2, ..pace };
        let host = Layout { slots: 0.0, memory: 4.0, ..layout };
        let (serial, beside) =
            (seconds(&token, &host, &processor), seconds(&token, &host, &Pace { beside: true, ..processor }));
        assert!((serial.total() - (0.2 + 0.5 * 1.0 + 0.25 * 2.0)).abs() < 1e-12, "{serial:?}");
        assert!((beside.total() - (0.25 * 0.2 + 0.5 * 1.1 + 0.25 * 2.1)).abs() < 1e-12, "{beside:?}");
        assert_eq!(serial.bottleneck(), "reading experts from the disk");
    }

    #[test]
    fn layers_that_cards_hold_whole_need_no_handshake() {
        let token = Token { routed: 10.0, context: 5.0, layers: 2, moe_layers: 2, top_k: 5 };
        let layout = Layout { dense: [20.0, 0.0], context: 1.0, fixed: 100.0, experts: 100.0, ..Layout::default() };
        let pace =
            Pace { card: 10.0, keys: 1.0, disk: 1.0, handshake: 9.0, filled: 1.0, hits: [0.0, 1.0], ..Pace::default() };
        let found = seconds(&token, &layout, &pace);
        assert_eq!((found.total(), found.handshakes), (2.0 + 1.0 + 0.5, 0.0));
    }
}
