//! [`Walk`]: all windows through one part of a model, whose weights are in memory only for that long.

use crate::CalibrateError;
use crate::copied::Copied;
use crate::reference::Reference;
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

/// Takes the hidden states of a batch.
pub type Sink<'a> = &'a mut dyn FnMut(&[f32]);

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

    /// Room for `times` hidden states of every token.
    pub fn states(&self, times: usize) -> Result<States, CalibrateError> {
        States::new(times * self.rows(), self.spec.residual_width())
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
            _ => self.states(1)?,
        };
        self.pass(part, store, from, None, tally, |values| after.push(values))?;
        Ok(after.freeze())
    }

    /// [`Walk::forward`], to where `after` stands; `from` may hold more rows than go through.
    pub fn forward_to(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: Option<&Frozen>,
        after: &mut States,
    ) -> Result<(), CalibrateError> {
        self.pass(part, store, from, None, None, |values| after.push(values))
    }

    /// Shows `tally` what the weights of `part` read and, where there is a sink for the hidden states, what they would
    /// read had the rows of `from` come through the source: those follow after the others. What these become goes to
    /// `reference`.
    pub fn observe(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: &Frozen,
        tally: &mut Tally,
        reference: Option<Sink<'_>>,
    ) -> Result<(), CalibrateError> {
        self.pass(part, store, Some(from), reference, Some(tally), |_| {})
    }

    /// Loads a part on a fresh device, runs all windows through it, and drops it.
    fn pass(
        &self,
        part: Part,
        store: &dyn TensorStore,
        from: Option<&Frozen>,
        mut reference: Option<Sink<'_>>,
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
            let store = Copied(store);
            let mut loader = Loader::new(&store, &mut *backend, &Silent, sizes);
            let table = table.map_or_else(|| loader.weight(&spec.embed), |t| Ok(t?))?;
            build_part(spec, part, table, &mut loader)?
        };
        let mut run = |batch: &Batch, mut observer: Option<&mut dyn Observer>| {
            for op in &program.ops {
                // A fresh borrow for every op.
                let observer = observer.as_mut().map(|o| &mut **o as &mut dyn Observer);
                backend.run(op, batch, observer)?;
            }
            let values = backend.read(program.out)?;
            if let (Part::FinalNorm, Some(observer)) = (part, observer) {
                let head: &Leaf = spec.lm_head.as_ref().unwrap_or(&spec.embed);
                observer.matmul_input(&MatmulInput::whole(&[&head.name], &values, spec.hidden_size));
            }
            Ok::<_, CalibrateError>(values)
        };
        let (mut first, all) = (0, self.rows());
        for windows in self.windows.chunks(sequences) {
            if let Some(reference) = &mut reference {
                let mut seen = tally.as_ref().map_or_else(Reference::default, |t| t.reference());
                reference(&run(&batch(windows, Some(all + first)), Some(&mut seen))?);
                if let Some(tally) = &mut tally {
                    tally.compare(seen);
                }
            }
            let batch = batch(windows, from.is_some().then_some(first));
            let values = run(&batch, tally.as_deref_mut().map(|t| t as &mut dyn Observer))?;
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
