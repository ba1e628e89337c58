//! From the logits of a batch to the next token of every request in it. Where logits lie on an accelerator, and nobody wants
//! probabilities, it is asked for what it takes to choose; the text is the same.

use super::request::{Choice, Heard, Running};
use super::{Engine, EngineStats};
use crate::{Model, RuntimeError};
use ashlar_backend::{Ask, Batch, Survey};

/// What is here of a batch's logits.
pub(super) enum Rows {
    /// All of them.
    Whole(Vec<f32>),
    /// What was asked of each row, in order.
    Surveyed(Vec<(Ask, Survey)>),
}

impl Engine {
    /// Asks for as little of the logits as will do.
    pub(super) fn rows(&mut self, batch: &Batch) -> Result<Rows, RuntimeError> {
        if batch.outputs.is_empty() {
            return Ok(Rows::Surveyed(Vec::new()));
        }
        let asks = if self.model.surveys() { self.asks(batch) } else { None };
        if let Some(asks) = asks
            && let Some(surveys) = self.model.survey(&asks)?
        {
            return Ok(Rows::Surveyed(asks.into_iter().zip(surveys).collect()));
        }
        Ok(Rows::Whole(self.model.logits()?))
    }

    /// What to ask of every row; `None` if one of them is wanted whole.
    fn asks(&self, batch: &Batch) -> Option<Vec<Ask>> {
        let vocab = self.model.spec().vocab_size;
        let ask = |(row, output): (usize, &usize)| {
            let part = batch.sequences.iter().find(|part| part.rows.contains(output))?;
            self.slots.get(part.slot)?.ask(row, vocab)
        };
        batch.outputs.iter().enumerate().map(ask).collect()
    }

    /// Gives every request of a batch its next token.
    pub(super) fn hand_out(&mut self, batch: &Batch, rows: Rows) {
        let mut outputs = batch.outputs.iter().enumerate().peekable();
        let capacity = self.model.capacity();
        for part in &batch.sequences {
            let row = outputs.next_if(|(_, output)| part.rows.contains(output)).map(|(row, _)| row);
            let Some(running) = self.slots.get_mut(part.slot) else { continue };
            self.stats.read(running.fed(part.rows.len()));
            let Some(row) = row else { continue };
            if running.is_full() {
                self.stop(part.slot, Ok(crate::StopReason::MaxTokens));
                continue;
            }
            let chosen = choose(&mut self.model, &mut self.stats, running, row, &rows);
            match chosen.and_then(|choice| running.hear(choice, &self.stop_tokens, capacity)) {
                Ok(Heard::GoOn) => self.stats.answered(),
                Ok(Heard::Stop(reason)) => {
                    self.stats.answered();
                    self.stop(part.slot, Ok(reason));
                }
                Err(error) => self.stop(part.slot, Err(error.to_string())),
            }
        }
    }
}

fn choose(
    model: &mut Model,
    stats: &mut EngineStats,
    running: &mut Running,
    row: usize,
    rows: &Rows,
) -> Result<Choice, RuntimeError> {
    let vocab = model.spec().vocab_size;
    match rows {
        Rows::Whole(all) => running.choose(all.get(row * vocab..(row + 1) * vocab).unwrap_or_default()),
        Rows::Surveyed(surveyed) => {
            let missing = || RuntimeError::Evaluate(format!("row {row} was not surveyed"));
            let (ask, survey) = surveyed.get(row).ok_or_else(missing)?;
            let chosen = running.choose_by(vocab, (ask, survey), &mut |ids| model.some_logits(row, ids))?;
            if let Some(choice) = chosen {
                stats.rows_surveyed += 1;
                return Ok(choice);
            }
            stats.rows_fetched += 1;
            running.choose(&model.some_logits(row, 0..vocab)?)
        }
    }
}
