//! Surveys of logits on the device: what samplers need of rows without the rows (`kernels/survey.cu`).

use crate::args::{SurveyArgs, SurveyAsk, SurveySpan};
use crate::cuda::{Cuda, Use};
use crate::modules::SURVEY;
use ashlar_backend::{Ask, BackendError, BufferId, SURVEY_MOST, SURVEY_SPAN, Span, Survey, Surveyor, ranked};
use std::ops::Range;

const OP: &str = "survey";

/// Where the parts of an answer lie, in bytes from its start: spans, logits of named ids, ranks.
struct Answer {
    spans: usize,
    named: usize,
    ranks: usize,
    bytes: usize,
}

impl Answer {
    fn new(asks: usize, spans: usize, named: usize, most: usize) -> Self {
        let named_at = asks * spans * size_of::<SurveySpan>();
        let ranks = (named_at + 4 * named).next_multiple_of(8);
        Self { spans: 0, named: named_at, ranks, bytes: ranks + 8 * asks * most }
    }
}

impl Cuda {
    /// Starts the kernels; returns the ranks' number per question and where everything lies.
    fn start_survey(&mut self, logits: u64, width: usize, asks: &[Ask]) -> Result<(usize, u64, Answer), BackendError> {
        // What came before is a stretch of its own: it is the same at every step, whatever is asked.
        self.core.begin()?;
        let spans = width.div_ceil(SURVEY_SPAN);
        // A list of one is the greatest of the spans.
        let most = asks.iter().map(|ask| ask.count).max().unwrap_or(1);
        let ids: Vec<u32> = asks.iter().flat_map(|ask| ask.named.iter().copied()).collect();
        let mut first = 0;
        let mut question = |ask: &Ask| {
            let named = ask.named.len() as u32;
            first += named;
            let (row, count) = (ask.row as u32, ask.count as u32);
            SurveyAsk { temperature: ask.temperature, row, count, first: first - named, named }
        };
        let questions: Vec<SurveyAsk> = asks.iter().map(&mut question).collect();
        let answer = Answer::new(asks.len(), spans, ids.len(), if most > 1 { most } else { 0 });
        let at = self.core.scratch(Use::Answer, answer.bytes as u64)?;
        let bytes = 8 * (asks.len() * spans * most) as u64;
        let mut from = self.core.scratch(Use::Ranks, bytes)?;
        let mut to = self.core.scratch(Use::OtherRanks, bytes)?;
        let asked = self.core.scratch(Use::Asks, (size_of::<SurveyAsk>() * asks.len()) as u64)?;
        let names = self.core.scratch(Use::Ids, 4 * ids.len().max(1) as u64)?;
        self.core.upload(asked, bytemuck::cast_slice(&questions))?;
        self.core.upload(names, bytemuck::cast_slice(&ids))?;
        let mut args = SurveyArgs {
            logits,
            asks: asked,
            ids: names,
            named: at + answer.named as u64,
            spans: at,
            from: 0,
            to: if spans == 1 { at + answer.ranks as u64 } else { from },
            width: width as u32,
            lists: spans as u32,
            most: most as u32,
            reserved: 0,
        };
        self.core.run(SURVEY, "survey_spans", [spans, asks.len(), 1], 256, &args)?;
        let mut lists = spans;
        while lists > 1 && most > 1 {
            let next = (lists * most).div_ceil(SURVEY_SPAN);
            (args.from, args.lists) = (from, lists as u32);
            args.to = if next == 1 { at + answer.ranks as u64 } else { to };
            self.core.run(SURVEY, "survey_merge", [next, asks.len(), 1], 256, &args)?;
            (from, to, lists) = (to, from, next);
        }
        Ok((most, at, answer))
    }
}

impl Surveyor for Cuda {
    fn survey(&mut self, logits: BufferId, asks: &[Ask]) -> Result<Vec<Survey>, BackendError> {
        let buffer = self.buffers.get(logits, OP)?;
        let wrong = |ask: &&Ask| {
            let beyond = ask.named.iter().any(|id| *id as usize >= buffer.width);
            ask.row >= buffer.rows || beyond || !(1..=SURVEY_MOST).contains(&ask.count)
        };
        if let Some(ask) = asks.iter().find(wrong) {
            let what = format!("{ask:?} of {} rows of {}", buffer.rows, buffer.width);
            return Err(BackendError::Operand { op: OP, what });
        }
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let (most, at, answer) = self.start_survey(buffer.address, buffer.width, asks)?;
        let count = buffer.width.div_ceil(SURVEY_SPAN);
        // Whole numbers of 8 bytes keep the parts aligned.
        let mut words = vec![0u64; answer.bytes / 8];
        self.core.download_bytes(at, bytemuck::cast_slice_mut(&mut words))?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let spans: &[SurveySpan] = bytemuck::cast_slice(&bytes[answer.spans..answer.named]);
        let named: &[f32] = bytemuck::cast_slice(&bytes[answer.named..answer.ranks]);
        let ranks: &[u64] = bytemuck::cast_slice(&bytes[answer.ranks..]);
        let mut first = 0;
        let read = |(i, ask): (usize, &Ask)| {
            let own = &spans[i * count..(i + 1) * count];
            let listed = ranks.get(i * most..i * most + ask.count).unwrap_or_default();
            first += ask.named.len();
            read(own, listed, &named[first - ask.named.len()..first])
        };
        Ok(asks.iter().enumerate().map(read).collect())
    }

    fn values(&mut self, logits: BufferId, row: usize, columns: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let buffer = self.buffers.get(logits, OP)?;
        if row >= buffer.rows || columns.start > columns.end || columns.end > buffer.width {
            let what = format!("row {row}, columns {columns:?} of {} rows of {}", buffer.rows, buffer.width);
            return Err(BackendError::Operand { op: OP, what });
        }
        let mut values = vec![0.0; columns.len()];
        self.core.download(buffer.address + 4 * (row * buffer.width + columns.start) as u64, &mut values)?;
        Ok(values)
    }
}

/// One answer; without a list it is the greatest of the spans.
fn read(spans: &[SurveySpan], listed: &[u64], named: &[f32]) -> Survey {
    let named = named.to_vec();
    if spans.iter().any(|s| s.broken != 0) || !spans.iter().any(|s| s.finite != 0) {
        return Survey { numbers: false, named, ..Survey::default() };
    }
    let greatest = spans.iter().map(|s| s.greatest).max().unwrap_or(0);
    let listed = if listed.is_empty() { std::slice::from_ref(&greatest) } else { listed };
    // No rank is 0.
    let best = listed.iter().take_while(|rank| **rank != 0).map(|rank| ranked(*rank)).collect();
    let span = |s: &SurveySpan| {
        let greatest = if s.greatest == 0 { f32::NEG_INFINITY } else { ranked(s.greatest).1 };
        Span { greatest, sum: s.sum }
    };
    Survey { numbers: true, best, named, spans: spans.iter().map(span).collect() }
}
