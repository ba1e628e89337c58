//! What goes into the next batch: pure arithmetic.

use super::EngineOptions;
use ashlar_backend::{Batch, SequenceRows};

/// What a running request wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Its slot.
    pub slot: usize,
    /// Since when it runs: the smaller, the earlier.
    pub age: u64,
    /// Positions its slot holds.
    pub position: usize,
    /// Tokens to be fed. One that is answering has exactly one.
    pub tokens: Vec<u32>,
}

/// One token of each request that is answering, then prompts in the order of their age. `None` if nobody wants anything.
pub fn plan(demands: &[Demand], options: EngineOptions) -> Option<Batch> {
    let (mut answering, mut prompts): (Vec<_>, Vec<_>) = demands.iter().partition(|d| d.tokens.len() == 1);
    answering.sort_by_key(|d| d.age);
    prompts.sort_by_key(|d| d.age);
    let limit = if answering.is_empty() { options.chunk } else { options.shared_chunk };
    let mut batch = Batch::default();
    for demand in answering.into_iter().take(options.chunk) {
        push(&mut batch, demand, 1);
    }
    let mut left = limit.min(options.chunk - batch.rows().min(options.chunk));
    for demand in prompts {
        let rows = demand.tokens.len().min(left);
        if rows == 0 {
            break;
        }
        push(&mut batch, demand, rows);
        left -= rows;
    }
    (batch.rows() > 0).then_some(batch)
}

fn push(batch: &mut Batch, demand: &Demand, count: usize) {
    let first = batch.rows();
    batch.tokens.extend(demand.tokens.iter().take(count));
    let rows = first..first + count;
    if count == demand.tokens.len() {
        batch.outputs.push(rows.end - 1);
    }
    batch.sequences.push(SequenceRows { slot: demand.slot, rows, position: demand.position });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(slot: usize, tokens: usize) -> Demand {
        Demand { slot, age: slot as u64, position: 10 * slot, tokens: vec![slot as u32; tokens] }
    }

    const OPTIONS: EngineOptions = EngineOptions { queue: 0, chunk: 8, shared_chunk: 3 };

    fn rows(demands: &[Demand]) -> Vec<(usize, usize)> {
        plan(demands, OPTIONS).map_or(Vec::new(), |b| {
            assert!(b.check().is_ok());
            b.sequences.iter().map(|s| (s.slot, s.rows.len())).collect()
        })
    }

    #[test]
    fn a_prompt_alone_takes_the_whole_chunk_and_beside_answers_its_share() {
        assert_eq!(rows(&[demand(0, 20)]), [(0, 8)]);
        assert_eq!(rows(&[demand(0, 20), demand(1, 1), demand(2, 1)]), [(1, 1), (2, 1), (0, 3)]);
        assert_eq!(rows(&[]), []);
    }

    #[test]
    fn prompts_are_taken_by_age_and_short_ones_together() {
        assert_eq!(rows(&[demand(2, 5), demand(1, 4)]), [(1, 4), (2, 4)]);
        let batch = plan(&[demand(2, 5), demand(1, 4)], OPTIONS).unwrap();
        // Only the first prompt is complete: only its last row has logits to be read.
        assert_eq!(batch.outputs, [3]);
        assert_eq!(batch.sequences[1].position, 20);
    }

    #[test]
    fn more_answers_than_a_chunk_holds_come_in_turns_of_age() {
        let many: Vec<Demand> = (0..10).map(|slot| demand(slot, 1)).collect();
        assert_eq!(rows(&many).len(), 8);
    }
}
