//! [`Stream`]: calibration and conversion in one walk over the layers. What calibrates a layer came through the layers before
//! it as they are in the pack, and its Hessians are gone before those of the next are summed.
//!
//! Every part (the attention of a layer, its feed-forward half, the head) goes the same way: all windows through the source's
//! weights, summing; its records are converted with these sums; all windows once more through what was written. Where the
//! Hessians of a layer's experts exceed the memory, experts take turns, each turn another pass.

use crate::CalibrateError;
use crate::collect::{Starved, starved};
use crate::journal::Journal;
use crate::known::{PartKnowledge, is_plain_embedding, parts};
use crate::parts::{Needed, inputs, leaves};
use crate::states::{Frozen, States};
use crate::tally::{Tally, Want, Wanted};
use crate::texts::{Input, windows};
use crate::walk::{Sink, Walk, name};
use ashlar_arch::Leaf;
use ashlar_convert::stats::{Shares, StatsFile, StatsOrigin, hash, provenance};
use ashlar_convert::{Conversion, Knowledge, Plan, Summary};
use ashlar_runtime::program::Part;
use ashlar_runtime::{Opened, Tokenizer, open};
use ashlar_tensor::Report;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to calibrate while converting.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Tokens per window.
    pub ctx: usize,
    /// Tokens in all, at most (rounded down to windows); `None` for the whole text.
    pub tokens: Option<usize>,
    /// A device, as `--device` names it.
    pub device: String,
    /// Threads; `None` for all cores. They change no bit.
    pub threads: Option<usize>,
    /// Where to leave the statistics (moments and routing, no Hessians) besides.
    pub save_stats: Option<PathBuf>,
    /// Experts that saw fewer tokens are told.
    pub min_tokens: u64,
}

/// What a stream did.
#[derive(Clone, Debug)]
pub struct StreamSummary {
    /// The conversion.
    pub conversion: Summary,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Experts of all layers.
    pub experts: usize,
    /// Those that saw too few tokens, fewest first.
    pub starved: Vec<Starved>,
    /// Parts that an earlier, interrupted run had done.
    pub resumed_parts: usize,
}

/// A model and the windows that go through it.
pub struct Stream {
    model: Opened,
    windows: Vec<Vec<u32>>,
    origin: StatsOrigin,
    options: StreamOptions,
    known: Arc<PartKnowledge>,
}

impl Stream {
    /// Opens the model at `path` and cuts the texts into windows.
    ///
    /// # Errors
    /// [`CalibrateError`] if the model or a text cannot be used.
    pub fn open(
        path: &Path,
        texts: &[Input],
        options: StreamOptions,
        report: &dyn Report,
    ) -> Result<Self, CalibrateError> {
        let model = open(path, report)?;
        let windows = windows(&Tokenizer::open(&model.dir)?, texts, options.ctx, options.tokens)?;
        let tokens = windows.iter().map(Vec::len).sum::<usize>() as u64;
        let texts = texts.iter().map(Input::text).collect();
        let origin = StatsOrigin { source: model.identity.clone(), tokens, ctx: options.ctx, texts };
        if let Some(save) = options.save_stats.as_ref().filter(|p| p.exists()) {
            // What an interrupted run of this very command has written may be written again.
            if StatsFile::open(save).map_or(true, |file| *file.origin() != origin) {
                return Err(CalibrateError::Exists { path: save.display().to_string() });
            }
        }
        let known = Arc::new(PartKnowledge::new(&model.spec, identity(&origin, &windows, &options.device)));
        Ok(Self { model, windows, origin, options, known })
    }

    /// What the plan must be made with ([`Plan::with_knowledge`]).
    #[must_use]
    pub fn knowledge(&self) -> Arc<dyn Knowledge> {
        self.known.clone()
    }

    /// Converts the model as planned to a pack at `out`. A killed run leaves `OUT.partial` and is taken up after its last
    /// finished part.
    ///
    /// # Errors
    /// [`CalibrateError`]; nothing is published then.
    pub fn convert(
        &self,
        plan: &Plan,
        out: &Path,
        options: &ashlar_convert::Options,
        report: &dyn Report,
    ) -> Result<StreamSummary, CalibrateError> {
        let conversion = Conversion::open(plan, &*self.model.store, out, options, report)?;
        match self.parts(plan, &conversion, options.memory, report) {
            Ok((resumed_parts, file)) => {
                let starved = starved(&file, self.options.min_tokens)?;
                let routing = file.arrays().iter().filter(|a| a.name.starts_with("routing."));
                let experts = routing.filter_map(|a| a.shape.get(1)).sum();
                let conversion = conversion.publish(report)?;
                Ok(StreamSummary { conversion, tokens: self.origin.tokens, experts, starved, resumed_parts })
            }
            Err(CalibrateError::Convert(e)) => Err(conversion.fail(*e).into()),
            Err(e) => Err(e),
        }
    }

    /// Converts every part; returns how many an earlier run had done, and the statistics.
    fn parts(
        &self,
        plan: &Plan,
        conversion: &Conversion<'_>,
        memory: u64,
        report: &dyn Report,
    ) -> Result<(usize, StatsFile), CalibrateError> {
        let spec = &self.model.spec;
        let Self { windows, options: StreamOptions { device, threads, .. }, .. } = self;
        let walk = Walk { spec, windows, device, threads: *threads, report };
        let journal = Journal::within(conversion.scratch(""), self.fingerprint());
        let parts = parts(spec);
        // What was done counts only if its records are still what they were.
        let resumed = journal.resume(walk.states(2)?)?.filter(|(done, _)| {
            let done = parts.iter().take(*done).flat_map(|p| leaves(spec, *p)).collect::<Vec<_>>();
            conversion.is_done(&done.iter().map(|l| l.name.as_str()).collect())
        });
        let resumed_parts = resumed.as_ref().map_or(0, |(done, _)| *done);
        let passes = 2 * (parts.len() - resumed_parts) + 2 * usize::from(resumed.is_none());
        report.begin("calibrating and converting", (walk.rows() * passes) as u64);
        let guided = plan.guided();
        let task = Task { stream: self, plan, conversion, walk: &walk, memory, guided };
        let mut states = match resumed {
            Some((_, states)) => states,
            None => task.embed()?,
        };
        for (index, part) in parts.iter().enumerate().skip(resumed_parts) {
            let mut after = walk.states(2)?;
            after.seek(walk.rows());
            let tally = task.quantize(*part, &states, &mut after)?;
            let (arrays, _) = tally.arrays()?;
            let last = index + 1 == parts.len();
            if !last {
                after.seek(0);
                walk.forward_to(*part, &conversion.converted(), Some(&states), &mut after)?;
                states = after.freeze();
            }
            journal.keep(index, &self.origin, &Shares::new(), &arrays, (!last).then_some(&states))?;
        }
        report.end();
        conversion.rest(memory, &Notes(report))?;
        Ok((resumed_parts, self.statistics(&journal, parts.len(), conversion)?))
    }

    /// Puts the statistics of all parts together, for the manifest and for the user.
    fn statistics(
        &self,
        journal: &Journal,
        parts: usize,
        conversion: &Conversion<'_>,
    ) -> Result<StatsFile, CalibrateError> {
        let path = conversion.scratch("statistics");
        journal.join(parts, &self.origin, &path)?;
        let file = StatsFile::open(&path)?;
        let mut said = provenance(&file, &hash(&path)?)?;
        if let Value::Object(said) = &mut said {
            said.insert(
                "collected".into(),
                "while converting, on what came through the quantized layers before".into(),
            );
        }
        self.known.set_provenance(said);
        if let Some(save) = &self.options.save_stats {
            journal.join(parts, &self.origin, save)?;
        }
        Ok(file)
    }

    fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(self.known.identity().as_bytes()).as_bytes()
    }
}

/// What tells one calibration from another.
fn identity(origin: &StatsOrigin, windows: &[Vec<u32>], device: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"one stream\0").update(origin.source.as_bytes()).update(device.as_bytes());
    for window in windows {
        hasher.update(&(window.len() as u64).to_le_bytes());
        window.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

/// One run.
struct Task<'a> {
    stream: &'a Stream,
    plan: &'a Plan,
    conversion: &'a Conversion<'a>,
    walk: &'a Walk<'a>,
    memory: u64,
    /// Tensors whose quantizer needs a Hessian.
    guided: HashSet<&'a str>,
}

impl Task<'_> {
    /// The hidden states before the first layer: through the converted embedding, unless it is the head as well and has
    /// to wait for what that reads; then those through the source's.
    fn embed(&self) -> Result<Frozen, CalibrateError> {
        let (spec, source) = (self.walk.spec, &*self.stream.model.store);
        let mut states = self.walk.states(2)?;
        if is_plain_embedding(spec, &spec.embed) {
            self.convert(&HashSet::from([spec.embed.name.as_str()]), 0)?;
            self.walk.forward_to(Part::Embed, &self.conversion.converted(), None, &mut states)?;
        } else {
            self.walk.forward_to(Part::Embed, source, None, &mut states)?;
        }
        self.walk.forward_to(Part::Embed, source, None, &mut states)?;
        Ok(states.freeze())
    }

    /// Sums over what a part reads and converts it with that. Returns the sums without the Hessians; the states that came
    /// through the source go on to `reference`.
    fn quantize(&self, part: Part, states: &Frozen, reference: &mut States) -> Result<Tally, CalibrateError> {
        let (spec, known) = (self.walk.spec, &self.stream.known);
        let leaves = leaves(spec, part);
        let open = !self.conversion.is_done(&leaves.iter().map(|l| l.name.as_str()).collect());
        let needed = Needed::new(&leaves, &inputs(spec, part), |tensor| open && self.guided.contains(tensor));
        let groups = needed.groups(self.room(&needed)?);
        let (now, later) = groups.split_at(groups.len().min(1));
        let now = now.first().copied().unwrap_or_default();
        let mut wanted = needed.shared.clone();
        now.iter().for_each(|(name, _)| wanted.entry(name.clone()).or_default().own = true);
        known.begin(self.observe(part, states, wanted, Some(&mut |values| reference.push(values)))?);
        // An expert is one record: those of later groups wait, with all they have.
        let names: HashSet<&str> = later.iter().flat_map(|g| g.iter()).map(|(name, _)| name.as_str()).collect();
        let waits = |l: &Leaf| names.contains(l.name.as_str());
        let waiting: HashSet<usize> = leaves.iter().filter(|l| waits(l)).filter_map(|l| l.role.expert).collect();
        let first = leaves.iter().filter(|l| l.role.expert.is_none_or(|e| !waiting.contains(&e)));
        self.convert(&first.map(|l| l.name.as_str()).collect(), needed.bytes(now))?;
        for group in later {
            let want = Want { own: true, ..Want::default() };
            let wanted = group.iter().map(|(name, _)| (name.clone(), want)).collect();
            known.next_group(self.observe(part, states, wanted, None)?);
            self.convert(&group.iter().map(|(name, _)| name.as_str()).collect(), needed.bytes(group))?;
        }
        known.end().ok_or_else(|| CalibrateError::NotFinite { tensor: name(part) })
    }

    /// Bytes that the Hessians of single experts may take, beside all others of the part and the converter's buffers.
    fn room(&self, needed: &Needed) -> Result<u64, CalibrateError> {
        let expert = needed.experts.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let fixed = needed.shared_bytes.saturating_add(self.plan.memory.largest_tile_bytes);
        match self.memory.checked_sub(fixed) {
            Some(room) if room >= expert => Ok(room),
            _ => Err(CalibrateError::StreamMemory { given: self.memory, needed: fixed.saturating_add(expert) }),
        }
    }

    /// One pass of all windows through the source's weights.
    fn observe(
        &self,
        part: Part,
        states: &Frozen,
        wanted: Wanted,
        reference: Option<Sink<'_>>,
    ) -> Result<Tally, CalibrateError> {
        let layer = match part {
            Part::Attention(layer) | Part::Ffn(layer) | Part::Layer(layer) => layer,
            Part::Embed | Part::FinalNorm => self.walk.spec.layers.len(),
        };
        let mut tally = Tally::new(Walk::isa()?, self.walk.threads(), layer, wanted);
        self.walk.observe(part, &*self.stream.model.store, states, &mut tally, reference)?;
        tally.check()?;
        Ok(tally)
    }

    /// Converts what holds any of `tensors`, while Hessians take `taken` bytes.
    fn convert(&self, tensors: &HashSet<&str>, taken: u64) -> Result<(), CalibrateError> {
        let memory = self.memory.saturating_sub(taken);
        Ok(self.conversion.convert(tensors, memory, &Notes(self.walk.report))?)
    }
}

/// Passes on what the user should know, and leaves the progress to the walk.
struct Notes<'a>(&'a dyn Report);

impl Report for Notes<'_> {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _amount: u64, _current: &str) {}
    fn note(&self, text: &str) {
        self.0.note(text);
    }
    fn end(&self) {}
}
