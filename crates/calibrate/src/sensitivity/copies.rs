//! The copies of the hidden states: which there are, where they lie, how they get through a part of the model.

use super::{COARSE, JOINT, PROBE, SensitivityOptions, groups};
use crate::CalibrateError;
use crate::error::io;
use crate::walk::batch;
use ashlar_arch::{Class, ModelSpec};
use ashlar_backend::{ActivationMode, Backend, Op, Weight, WeightId};
use ashlar_convert::allocate::groups::GroupKey;
use ashlar_formats::Spec;
use ashlar_runtime::program::{Part, PartProgram, Resources, build_part};
use ashlar_runtime::{Loader, Opened, device};
use ashlar_tensor::{Bytes, Order, Report, Silent, TensorStore};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Rows of a batch.
const BATCH_ROWS: usize = 2048;

/// What a copy went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but the model.
    Clean,
    /// A trial of the embedding (and of the head, where they are one).
    Embed(GroupKey),
    /// A trial of one group in a format.
    Group(GroupKey, &'static str),
    /// A trial of the head: has no states of its own.
    Head(GroupKey),
    /// All layers in one format, or all groups of one class.
    Joint(Option<Class>, &'static str),
}

/// A copy.
#[derive(Clone, Debug)]
pub struct Copy {
    pub kind: Kind,
    /// Layers before its first states.
    pub from: usize,
}

/// All copies.
pub struct Copies {
    pub list: Vec<Copy>,
}

impl Copies {
    /// The copies that a model needs; the clean one is first.
    pub fn of(spec: &ModelSpec) -> Self {
        let mut list = vec![Copy { kind: Kind::Clean, from: 0 }];
        list.extend(GroupKey::of(&spec.embed).map(|key| Copy { kind: Kind::Embed(key), from: 0 }));
        for layer in 0..spec.layers.len() {
            for key in groups(spec, layer).into_keys() {
                list.extend([PROBE, COARSE].map(|format| Copy { kind: Kind::Group(key, format), from: layer + 1 }));
            }
        }
        for scope in scopes(spec) {
            list.extend(JOINT.iter().map(|format| Copy { kind: Kind::Joint(scope, format), from: 1 }));
        }
        let head = spec.lm_head.as_ref().and_then(GroupKey::of);
        list.extend(head.map(|key| Copy { kind: Kind::Head(key), from: usize::MAX }));
        Self { list }
    }

    /// The index of the clean copy.
    pub fn clean(&self) -> usize {
        0
    }

    /// The first copy of that kind.
    pub fn find(&self, is: impl Fn(&Kind) -> bool) -> Option<usize> {
        self.list.iter().position(|c| is(&c.kind))
    }
}

/// What all parts of a measurement share.
pub struct Run<'a> {
    pub model: &'a Opened,
    pub windows: &'a [Vec<u32>],
    pub options: &'a SensitivityOptions,
    pub dir: PathBuf,
    pub report: &'a dyn Report,
}

impl Run<'_> {
    /// The states of a copy after `layers` layers.
    pub fn states(&self, copy: usize, layers: usize) -> PathBuf {
        self.dir.join(format!("{copy:05}.{layers}"))
    }

    /// Tokens of every copy.
    pub fn rows(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Rows that go through a layer or the head, in all.
    pub fn total(&self, copies: &Copies, done: usize) -> u64 {
        let layers = self.model.spec.layers.len();
        let passes: usize =
            copies.list.iter().map(|c| 2 + layers.saturating_sub(c.from.saturating_sub(1).max(done))).sum();
        (passes * self.rows()) as u64
    }

    /// Removes the states after `layers` layers.
    pub fn remove_generation(&self, copies: &Copies, layers: usize) -> Result<(), CalibrateError> {
        for copy in 0..copies.list.len() {
            let path = self.states(copy, layers);
            if path.exists() {
                fs::remove_file(&path).map_err(io(&path, "remove"))?;
            }
        }
        Ok(())
    }

    /// A fresh device that computes with full precision.
    pub fn device(&self) -> Result<Box<dyn Backend>, CalibrateError> {
        Ok(device(&self.options.device, self.options.threads, Some(ActivationMode::F32))?)
    }

    /// The file of a copy as a weight whose rows a program embeds.
    pub fn table(&self, path: &Path) -> Result<Weight, CalibrateError> {
        let file = File::open(path).map_err(io(path, "open"))?;
        let bytes = Bytes::map_file(&file).map_err(io(path, "map"))?;
        let name = path.display().to_string();
        let (n, k) = (self.rows(), self.model.spec.residual_width());
        Ok(Weight { name, spec: Spec::plain("f32"), order: Order::Rows, n, k, planes: vec![bytes] })
    }

    /// Runs the tokens through the embedding of `store`.
    pub fn embed(&self, store: &dyn TensorStore, to: &Path) -> Result<(), CalibrateError> {
        let mut backend = self.device()?;
        let spec = &self.model.spec;
        let program = {
            let mut loader = Loader::new(store, &mut *backend, &Silent, self.sizes());
            let table = loader.weight(&spec.embed)?;
            build_part(spec, Part::Embed, table, &mut loader)?
        };
        self.windows_through(&mut *backend, &program, None, to, "the embedding")
    }

    /// Runs pairs of files, states before and after, through a layer with the weights of `store`.
    pub fn layer(
        &self,
        index: usize,
        store: &dyn TensorStore,
        pairs: &[(PathBuf, PathBuf)],
    ) -> Result<(), CalibrateError> {
        let Some((first, _)) = pairs.first() else { return Ok(()) };
        let mut backend = self.device()?;
        let spec = &self.model.spec;
        let table = backend.load(self.table(first)?)?;
        let mut program = {
            let mut loader = Loader::new(store, &mut *backend, &Silent, self.sizes());
            build_part(spec, Part::Layer(index), table, &mut loader)?
        };
        for (from, to) in pairs {
            let table = backend.load(self.table(from)?)?;
            read_from(&mut program.ops, table);
            self.windows_through(&mut *backend, &program, Some(()), to, &format!("layer {index}"))?;
        }
        Ok(())
    }

    /// Sequences, positions of each, rows of a batch.
    fn sizes(&self) -> [usize; 3] {
        let ctx = self.windows.iter().map(Vec::len).max().unwrap_or(1);
        let sequences = (BATCH_ROWS / ctx).clamp(1, self.windows.len().max(1));
        [sequences, ctx, sequences * ctx]
    }

    /// All windows through a program; its result goes to a file.
    fn windows_through(
        &self,
        backend: &mut dyn Backend,
        program: &PartProgram,
        by_row: Option<()>,
        to: &Path,
        what: &str,
    ) -> Result<(), CalibrateError> {
        let mut out = BufWriter::new(File::create(to).map_err(io(to, "create"))?);
        let [sequences, ..] = self.sizes();
        let mut first = 0;
        for windows in self.windows.chunks(sequences) {
            let batch = batch(windows, by_row.map(|()| first));
            for op in &program.ops {
                backend.run(op, &batch, None)?;
            }
            for value in backend.read(program.out)? {
                out.write_all(&value.to_le_bytes()).map_err(io(to, "write"))?;
            }
            first += batch.rows();
            self.report.advance(batch.rows() as u64, what);
        }
        out.flush().map_err(io(to, "write"))
    }
}

/// What is quantized together: everything, and each class alone where there are several.
pub fn scopes(spec: &ModelSpec) -> Vec<Option<Class>> {
    let mut classes: Vec<Class> = Vec::new();
    for layer in 0..spec.layers.len() {
        classes.extend(groups(spec, layer).into_keys().map(|key| key.class));
    }
    classes.sort_unstable();
    classes.dedup();
    let each = classes.iter().map(|class| Some(*class)).filter(|_| classes.len() > 1);
    std::iter::once(None).chain(each).collect()
}

/// Lets a program start from another table.
pub fn read_from(ops: &mut [Op], states: WeightId) {
    if let Some(Op::Embed { table, .. }) = ops.first_mut() {
        *table = states;
    }
}
