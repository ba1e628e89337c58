//! [`Cuda`]: the state of the backend, and the handle that ops work with.

use crate::args::Args;
use crate::buffers::Buffers;
use crate::caches::Caches;
use crate::device::{Device, KernelId, Launch, Mapped, Mark};
use crate::error::{Error, NAME};
use crate::modules::{Module, module};
use crate::ops;
use crate::pool::Pool;
use crate::replay::Replay;
use crate::rope::Ropes;
use crate::slots::Slots;
use crate::step::Step;
use crate::table::{self, Kind};
use crate::weights::{self, Weights};
use ashlar_backend::{
    ActivationMode, Arena, Backend, BackendError, Batch, BufferId, CacheId, CacheShape, ExpertSlots, Memory, Observer,
    Op, Support, Surveyor, Weight, WeightId,
};
use ashlar_formats::Spec;
use std::collections::HashMap;
use std::ops::Range;

/// What intermediate results are for; each has memory of its own, which grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Inputs rounded to int8.
    Codes,
    /// Their scales.
    Scales,
    /// x · gateᵀ
    Gate,
    /// x · upᵀ
    Up,
    /// Middle of experts.
    Middle,
    /// Products of pairs.
    Products,
    /// Router logits, or other small products.
    Logits,
    /// Experts of pairs.
    Chosen,
    /// Their weights.
    Weights,
    /// Pairs by expert.
    Order,
    /// Tiles of them.
    Tiles,
    /// Middle of experts, rounded.
    MiddleCodes,
    /// Its scales.
    MiddleScales,
    /// Greatest score and sum of weights of splits.
    Parts,
    /// Weighted values of splits.
    Sums,
    /// Scores of entries.
    Scores,
    /// Windows to pool.
    Windows,
    /// Keys, or queries of the indexer, rounded as they are stored.
    Native,
    /// Questions about logits.
    Asks,
    /// Ids they name.
    Ids,
    /// Ranks of logits.
    Ranks,
    /// Ranks after the next pass.
    OtherRanks,
    /// What is read of a survey.
    Answer,
    /// Products of pairs that came from the host.
    Given,
    /// Pairs that it asks for.
    Lists,
}

/// The device and its memory.
pub struct Core {
    device: Box<dyn Device>,
    pool: Pool,
    scratch: HashMap<Use, (u64, u64)>,
    kernels: HashMap<(&'static str, String), KernelId>,
    replay: Replay,
}

impl Core {
    fn new(mut device: Box<dyn Device>, bytes: u64) -> Result<Self, Error> {
        let base = device.reserve(bytes)?;
        let (scratch, kernels, replay) = (HashMap::new(), HashMap::new(), Replay::default());
        Ok(Self { device, pool: Pool::new(base, bytes), scratch, kernels, replay })
    }

    /// So many bytes of the pool.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn take(&mut self, bytes: u64, what: impl FnOnce() -> String) -> Result<u64, BackendError> {
        // Memory that changes hands may still be wanted by kernels that are held back.
        self.replay.in_order(&mut *self.device)?;
        let free = self.pool.free();
        self.pool.take(bytes).ok_or_else(|| BackendError::Memory {
            backend: NAME,
            what: what(),
            needed: bytes,
            free,
            remedy: "use a smaller context or chunk, a smaller format, or --device cpu".into(),
        })
    }

    /// So many bytes of the pool in one piece, if there are.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn take_if_free(&mut self, bytes: u64) -> Result<Option<u64>, BackendError> {
        self.replay.in_order(&mut *self.device)?;
        Ok(self.pool.take(bytes))
    }

    /// Gives bytes back to the pool; 0 is no address. Work that was started before may still use them: what comes later
    /// runs later.
    pub fn give(&mut self, address: u64) {
        if address != 0 {
            self.pool.give(address);
        }
    }

    /// Copies bytes into memory that [`Core::take`] gave.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<(), BackendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: callers write to the start of what `take` gave them, no more than they asked for.
        Ok(unsafe { self.device.upload(to, bytes) }?)
    }

    /// Copies bytes into memory that kernels started before may still read as it was.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn upload_in_order(&mut self, to: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.replay.in_order(&mut *self.device)?;
        self.upload(to, bytes)
    }

    /// Copies bytes from one allocation to another.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), BackendError> {
        self.replay.in_order(&mut *self.device)?;
        // SAFETY: callers copy between two allocations of at least so many bytes.
        Ok(unsafe { self.device.copy(to, from, bytes) }?)
    }

    /// Begins all that was started, without waiting: what follows is another stretch of work.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn begin(&mut self) -> Result<(), BackendError> {
        Ok(self.replay.finish(&mut *self.device)?)
    }

    /// Waits, and copies floats back.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn download(&mut self, from: u64, values: &mut [f32]) -> Result<(), BackendError> {
        self.download_bytes(from, bytemuck::cast_slice_mut(values))
    }

    /// Waits, and copies bytes back.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn download_bytes(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.replay.finish(&mut *self.device)?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: callers read no more than they had taken.
        Ok(unsafe { self.device.download(from, bytes) }?)
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn wait(&mut self) -> Result<(), BackendError> {
        self.replay.finish(&mut *self.device)?;
        let start = self.pool.start();
        // SAFETY: the pool begins with a live byte.
        Ok(unsafe { self.device.download(start, &mut [0]) }?)
    }

    /// Memory that kernels and the host both see.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn mapped(&mut self, bytes: usize) -> Result<Mapped, BackendError> {
        Ok(self.device.mapped(bytes)?)
    }

    /// Whether kernels still run.
    ///
    /// # Errors
    /// [`BackendError::Device`], also if one of them failed.
    pub fn busy(&mut self) -> Result<bool, BackendError> {
        Ok(self.device.busy()?)
    }

    /// Begins all that was started, and marks its end.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn mark(&mut self) -> Result<Mark, BackendError> {
        self.begin()?;
        Ok(self.device.mark()?)
    }

    /// Copies parts into allocations beside kernels that run, after a mark.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn fill(&mut self, after: Option<Mark>, parts: &[(u64, &[u8])]) -> Result<Mark, BackendError> {
        self.begin()?;
        // SAFETY: callers write inside what `take` gave them, and wait for the mark before kernels read it.
        Ok(unsafe { self.device.fill(after, parts) }?)
    }

    /// Kernels that are started from now on wait for a mark.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn wait_for(&mut self, mark: Mark) -> Result<(), BackendError> {
        self.begin()?;
        Ok(self.device.wait_for(mark)?)
    }

    /// Copies floats back that no running kernel writes, without waiting for kernels.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn read_beside(&mut self, from: u64, values: &mut [f32]) -> Result<(), BackendError> {
        // SAFETY: callers read no more than they had taken.
        Ok(unsafe { self.device.read_beside(from, bytemuck::cast_slice_mut(values)) }?)
    }

    /// Memory for intermediate results of a purpose, at least so many bytes.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn scratch(&mut self, purpose: Use, bytes: u64) -> Result<u64, BackendError> {
        if let Some(&(address, room)) = self.scratch.get(&purpose) {
            if bytes <= room {
                return Ok(address);
            }
            self.scratch.remove(&purpose);
            self.give(address);
        }
        let address = self.take(bytes, || format!("intermediate results ({purpose:?})"))?;
        self.scratch.insert(purpose, (address, bytes));
        Ok(address)
    }

    /// Starts a kernel of a module without format.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn run<A: Args>(
        &mut self,
        of: &'static str,
        name: &str,
        grid: [usize; 3],
        threads: u32,
        args: &A,
    ) -> Result<(), BackendError> {
        self.run_shared(of, name, grid, [threads, 0], args)
    }

    /// Starts a kernel with dynamic shared memory: threads, bytes.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn run_shared<A: Args>(
        &mut self,
        of: &'static str,
        name: &str,
        grid: [usize; 3],
        [threads, shared]: [u32; 2],
        args: &A,
    ) -> Result<(), BackendError> {
        let Some(of) = module(of) else {
            return Err(Error::Driver { what: format!("module {of}"), why: "there is none".into() }.into());
        };
        self.start(of, name, grid, [threads, shared], args)
    }

    /// Starts a kernel of a kind of weights: `name` is the part before the format.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    pub fn run_kind<A: Args>(
        &mut self,
        kind: Kind,
        name: &str,
        grid: [usize; 3],
        args: &A,
    ) -> Result<(), BackendError> {
        let of = kind.module();
        self.start(of, &format!("{name}_{}", of.name), grid, [256, 0], args)
    }

    fn start<A: Args>(
        &mut self,
        of: &'static Module,
        name: &str,
        grid: [usize; 3],
        [threads, shared]: [u32; 2],
        args: &A,
    ) -> Result<(), BackendError> {
        if grid.contains(&0) {
            return Ok(());
        }
        // What the hardware counts in the second and third direction.
        if grid[0] > i32::MAX as usize || grid[1] > 65535 || grid[2] > 65535 {
            let what = format!("kernel {name}: a grid of {grid:?} blocks; use a smaller chunk");
            return Err(BackendError::Operand { op: "launch", what });
        }
        let key = (of.name, name.to_owned());
        let kernel = match self.kernels.get(&key) {
            Some(kernel) => *kernel,
            None => {
                let kernel = self.device.kernel(of, name, shared)?;
                self.kernels.insert(key, kernel);
                kernel
            }
        };
        let launch = Launch { kernel, grid: grid.map(|g| g as u32), threads, shared };
        // SAFETY: the args struct is the kernel's own (a test compares sizes); ops check every operand's shape before
        // they build it from addresses of live allocations
        Ok(unsafe { self.replay.launch(&mut *self.device, launch, bytemuck::bytes_of(args)) }?)
    }
}

/// Inputs that were rounded last: which buffer, at which version.
pub type Rounded = Option<(BufferId, u64)>;

/// The part of a pool that weights, caches and buffers are planned for. The rest is for intermediate results and lists.
pub fn budget_of(pool: u64) -> u64 {
    pool - (pool / 16).clamp(pool.min(64 << 20) / 2, 2 << 30)
}

/// The pool whose budget is at least so large.
pub fn pool_for(budget: u64) -> u64 {
    budget.saturating_add((budget / 8).clamp(64 << 20, 2 << 30))
}

/// The CUDA backend. See the crate's description.
pub struct Cuda {
    mode: ActivationMode,
    pub(crate) arena: Arena,
    pub(crate) core: Core,
    pub(crate) weights: Weights,
    pub(crate) buffers: Buffers,
    pub(crate) caches: Caches,
    pub(crate) ropes: Ropes,
    pub(crate) step: Step,
    pub(crate) rounded: Rounded,
    /// Where they lie: codes and scales.
    pub(crate) rounded_at: (u64, u64),
    pub(crate) layers: ops::moe::Layers,
    pub(crate) slots: Slots,
}

impl Cuda {
    /// A backend on a device, with a pool of `bytes`; inputs of quantized weights are rounded as `mode` says.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(device: Box<dyn Device>, bytes: u64, mode: ActivationMode) -> Result<Self, Error> {
        Ok(Self {
            mode,
            arena: Arena::new(NAME, budget_of(bytes)),
            core: Core::new(device, bytes)?,
            weights: Weights::default(),
            buffers: Buffers::default(),
            caches: Caches::default(),
            ropes: Ropes::default(),
            step: Step::default(),
            rounded: None,
            rounded_at: (0, 0),
            layers: ops::moe::Layers::default(),
            slots: Slots::default(),
        })
    }

    /// How inputs of quantized weights are rounded.
    pub(crate) fn mode(&self) -> ActivationMode {
        self.mode
    }

    /// Whether weights of that kind meet inputs rounded to int8.
    pub(crate) fn rounds(&self, kind: Kind) -> bool {
        kind.rounds() && self.mode != ActivationMode::F32
    }

    /// Runs an op now.
    pub(crate) fn execute(&mut self, op: &Op, batch: &Batch) -> Result<(), BackendError> {
        self.step.set(&mut self.core, batch)?;
        ops::run(self, op, batch)
    }
}

impl Backend for Cuda {
    fn describe(&self) -> String {
        // No kernel rounds to bf16: weights that would meet such inputs meet f32.
        let activations = if self.mode == ActivationMode::F32 { "f32" } else { "int8" };
        format!("{}, {activations} activations", self.core.device.describe())
    }

    fn support(&self, spec: &Spec) -> Support {
        match table::entry(spec) {
            Some(_) => Support::Native,
            None if spec.grid().is_ok_and(|g| matches!(g, ashlar_formats::Grid::Float(_))) => {
                Support::ViaDecode(format!("{spec} is held as f32"))
            }
            None => Support::Unsupported(format!("{spec} has no cuda kernel")),
        }
    }

    fn activations(&self, spec: &Spec) -> ActivationMode {
        match table::entry(spec) {
            Some((kind, _)) if self.rounds(kind) => ActivationMode::Int8,
            _ => ActivationMode::F32,
        }
    }

    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
        self.arena.weight(&weight)?;
        weights::load(&mut self.core, &mut self.weights, weight, self.mode)
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
        self.arena.buffer(rows, width)?;
        self.buffers.alloc(&mut self.core, rows, width)
    }

    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
        self.arena.cache(shape)?;
        self.caches.alloc(&mut self.core, shape)
    }

    fn truncate(&mut self, slot: usize, positions: usize) {
        self.caches.truncate(&mut self.core, slot, positions);
    }

    fn saved_as(&self) -> Option<String> {
        // Another generation of devices adds in another order on its tensor cores.
        Some(format!("cuda 1, {}, {:?}", self.core.device.generation(), self.mode))
    }

    fn save(
        &mut self,
        cache: CacheId,
        slot: usize,
        range: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        self.caches.save(&mut self.core, cache, slot, &range, out)
    }

    fn restore(&mut self, cache: CacheId, slot: usize, range: Range<usize>, bytes: &[u8]) -> Result<(), BackendError> {
        self.caches.restore(&mut self.core, cache, slot, &range, bytes)
    }

    fn memory(&self) -> Memory {
        Memory { activations: self.buffers.bytes(), caches: self.caches.bytes() }
    }

    fn arena(&self) -> Option<&Arena> {
        Some(&self.arena)
    }

    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        if observer.is_some() {
            let why = "the device has no taps; calibrate with --device cpu".to_owned();
            return Err(BackendError::Unsupported { backend: NAME, op: op.name(), why });
        }
        batch.check()?;
        self.execute(op, batch)
    }

    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        let buffer = self.buffers.get(buffer, "read")?;
        let mut values = vec![0.0; buffer.rows * buffer.width];
        self.core.download(buffer.address, &mut values)?;
        Ok(values)
    }

    fn slots(&mut self) -> Option<&mut dyn ExpertSlots> {
        Some(self)
    }

    fn surveyor(&mut self) -> Option<&mut dyn Surveyor> {
        Some(self)
    }

    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
        let width = self.buffers.get(buffer, "write")?.width;
        if width == 0 || !values.len().is_multiple_of(width) {
            let what = format!("{} values are no rows of {width}", values.len());
            return Err(BackendError::Operand { op: "write", what });
        }
        let rows = values.len() / width;
        let to = self.buffers.output(buffer, [rows, width], None, "write")?;
        self.core.upload_in_order(to.address, bytemuck::cast_slice(values))?;
        self.buffers.wrote(buffer, rows);
        Ok(())
    }
}
