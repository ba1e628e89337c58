//! [`Walk`]: all windows through one part of a model, whose weights are in memory only for that long.

use crate::CalibrateError;
use crate::states::{Frozen, States};
use crate::tally::Tally;
use ashlar_arch::{Leaf, ModelSpec};
use ashlar_backend::{ActivationMode, Batch, MatmulInput, Observer, SequenceRows};
use ashlar_runtime::program::{Part, Resources, build_part};
use ashlar_runtime::{Loader, RuntimeError, device};
use ashlar_simd::Isa;
use ashlar_tensor::{Report, Silent, TensorStore};

/// Rows of a batch: enough that an expert of many gets rows enough to be read once for several.
const BATCH_ROWS: usize = 2048;

/// What goes through a model, and how.
pub struct Walk<'a> {
    pub spec: &'a ModelSpec,
    pub windows: &'a [Vec<u32>],
    /// A name from [`ashlar_runtime::DEVICES`].
    pub device: &'a str,
    /// `None` for all cores.
    pub threads: Option<usize>,
    pub report: &'a dyn Report,
}

impl Walk<'_> {
    /// Tokens of all windows.
    pub fn rows(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Room for the hidden states of all tokens.
    pub fn states(&self) -> Result<States, CalibrateError> {
        States::new(self.rows(), self.spec.residual_width())
    }

    /// Threads that sum.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The instruction set that sums.
    pub fn isa() -> Result<Isa, CalibrateError> {
        let option = |e: ashlar_simd::IsaError| RuntimeError::Option {
            option: "ASHLAR_ISA",
            got: e.to_string(),
            expected: "an instruction set of this machine".into(),
        };
        Ok(Isa::detect().map_err(option)?)
    }

    /// The hidden states after `part` with the weights of `store`.
    pub fn forward(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: Option<&Frozen>,
        tally: Option<&mut Tally>,
    ) -> Result<Frozen, CalibrateError> {
        let mut after = match part {
            Part::FinalNorm => States::new(self.rows(), self.spec.hidden_size)?,
            _ => self.states()?,
        };
        self.pass(part, store, from, tally, |values| after.push(values))?;
        Ok(after.freeze())
    }

    /// Shows `tally` what the weights of `part` read.
    pub fn observe(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: Option<&Frozen>,
        tally: &mut Tally,
    ) -> Result<(), CalibrateError> {
        self.pass(part, store, from, Some(tally), |_| {})
    }

    /// Loads a part on a fresh device, runs all windows through it, and drops it.
    fn pass(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: Option<&Frozen>,
        mut tally: Option<&mut Tally>,
        mut after: impl FnMut(&[f32]),
    ) -> Result<(), CalibrateError> {
        let spec = self.spec;
        let mut backend = device(self.device, self.threads, Some(ActivationMode::F32))?;
        let table = from.map(|states| backend.load(states.weight(format!("hidden states before {}", name(part)))));
        let ctx = self.windows.iter().map(Vec::len).max().unwrap_or(1);
        let sequences = (BATCH_ROWS / ctx.max(1)).clamp(1, self.windows.len().max(1));
        let program = {
            let sizes = [sequences, ctx, sequences * ctx];
            let mut loader = Loader::new(store, &mut *backend, &Silent, sizes);
            let table = table.map_or_else(|| loader.weight(&spec.embed), |t| Ok(t?))?;
            build_part(spec, part, table, &mut loader)?
        };
        let head: &Leaf = spec.lm_head.as_ref().unwrap_or(&spec.embed);
        let mut first = 0;
        for windows in self.windows.chunks(sequences) {
            let batch = batch(windows, from.is_some().then_some(first));
            for op in &program.ops {
                backend.run(op, &batch, tally.as_deref_mut().map(|t| t as &mut dyn Observer))?;
            }
            let values = backend.read(program.out)?;
            if let (Part::FinalNorm, Some(tally)) = (part, tally.as_deref_mut()) {
                tally.matmul_input(&MatmulInput::whole(&[&head.name], &values, spec.hidden_size));
            }
            after(&values);
            first += batch.rows();
            self.report.advance(batch.rows() as u64, &name(part));
        }
        Ok(())
    }
}

/// What a part is called in messages.
pub fn name(part: Part) -> String {
    match part {
        Part::Embed => "the first layer".into(),
        Part::Layer(index) => format!("layer {index}"),
        Part::Attention(index) => format!("layer {index}, attention"),
        Part::Ffn(index) => format!("layer {index}, mlp"),
        Part::FinalNorm => "the head".into(),
    }
}

/// Whole windows, each a sequence of its own. Tokens are row numbers from `first_row` on, where that is given.
pub fn batch(windows: &[Vec<u32>], first_row: Option<usize>) -> Batch {
    let mut batch = Batch::default();
    for (slot, window) in windows.iter().enumerate() {
        let start = batch.tokens.len();
        match first_row {
            Some(first) => {
                batch.tokens.extend((0..window.len()).map(|i| (first + start + i) as u32));
                // Some models choose experts by token id.
                batch.ids.extend(window);
            }
            None => batch.tokens.extend(window),
        }
        batch.sequences.push(SequenceRows { slot, rows: start..batch.tokens.len(), position: 0 });
    }
    batch
}
