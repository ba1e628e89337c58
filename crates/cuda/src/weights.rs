//! Weights on the device: planes as they lie in a pack, a table of descriptors that kernels index, and vectors.

use crate::args;
use crate::cuda::Core;
use crate::table::{self, Kind};
use ashlar_backend::{ActivationMode, BackendError, Weight, WeightId};
use ashlar_formats::{FormatError, Planes, reorder};
use ashlar_tensor::{AlignedBytes, Bytes, Order, PlaneKind};

/// A loaded weight.
pub struct Loaded {
    /// As it was given: what only some ops ask for is decoded from it when they do.
    pub weight: Weight,
    /// Which kernels read it.
    pub kind: Kind,
    /// Outliers per row.
    pub slots: usize,
    /// All values as f32, once an op has asked for them.
    floats: Option<u64>,
    /// The record whose slot its planes lie in from time to time; `None` for a weight that stays.
    pub record: Option<u32>,
}

impl Loaded {
    /// Whether it is n × k, n as given or any.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if not.
    pub fn check(&self, n: Option<usize>, k: usize, op: &'static str) -> Result<(), BackendError> {
        let w = &self.weight;
        if w.k == k && n.is_none_or(|n| n == w.n) {
            return Ok(());
        }
        let wanted = n.map_or_else(|| "any".to_owned(), |n| n.to_string());
        Err(BackendError::Operand { op, what: format!("`{}` is {} × {}, expected {wanted} × {k}", w.name, w.n, w.k) })
    }
}

/// All weights.
#[derive(Default)]
pub struct Weights {
    loaded: Vec<Loaded>,
    descriptors: Vec<args::Weight>,
    /// Where the descriptors lie on the device, and how many of them are there.
    table: u64,
    room: usize,
    written: usize,
}

/// The kind of what is not there: no kernel takes it for its own.
const ABSENT: u32 = u32::MAX;

/// The largest zero point that lets every code less it be a signed byte.
const LARGEST_ZERO: u8 = 128;

impl Weights {
    /// A loaded weight.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none of that id, or it is one that comes and goes.
    pub fn get(&self, id: WeightId, op: &'static str) -> Result<&Loaded, BackendError> {
        let loaded = self.any(id, op)?;
        if loaded.record.is_none() {
            return Ok(loaded);
        }
        let what =
            format!("`{}` lies in a slot from time to time: only mixtures of experts take it", loaded.weight.name);
        Err(BackendError::Operand { op, what })
    }

    /// A weight that is loaded, or comes and goes.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none of that id.
    pub fn any(&self, id: WeightId, op: &'static str) -> Result<&Loaded, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no weight {}", id.0) };
        self.loaded.get(id.0 as usize).ok_or_else(missing)
    }

    /// A weight of n × k, n as given or any.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn matrix(&self, id: WeightId, n: Option<usize>, k: usize, op: &'static str) -> Result<&Loaded, BackendError> {
        let loaded = self.get(id, op)?;
        loaded.check(n, k, op)?;
        Ok(loaded)
    }
}

/// Loads a weight onto the device of `core`.
///
/// # Errors
/// [`BackendError::Format`] for planes that do not fit, [`BackendError::Unsupported`] for a format without a kernel,
/// [`BackendError::Memory`].
pub fn load(
    core: &mut Core,
    weights: &mut Weights,
    weight: Weight,
    mode: ActivationMode,
) -> Result<WeightId, BackendError> {
    let wrong = |source| BackendError::Format { tensor: weight.name.clone(), source };
    weight.layout()?;
    let Some((kind, mut descriptor)) = table::entry(&weight.spec) else {
        // Tables of integers, which are never multiplied: their values are looked up as floats.
        return load_as_floats(core, weights, weight);
    };
    descriptor.rounded = u32::from(kind.rounds() && mode != ActivationMode::F32);
    let order = if weight.is_float()? { Order::Rows } else { Order::X16 };
    let layout = weight.spec.layout(order, weight.n, weight.k).map_err(wrong)?;
    let moved;
    let planes: &[Bytes] = if order == weight.order || order == Order::Rows {
        &weight.planes
    } else {
        moved = to_panels(&weight)?;
        &moved
    };
    (descriptor.n, descriptor.k) = (dimension(&weight, weight.n)?, dimension(&weight, weight.k)?);
    for (plane, bytes) in layout.planes.iter().zip(planes) {
        let bytes = bytes.get(..plane.bytes as usize).unwrap_or_default();
        if plane.kind == PlaneKind::Zeros {
            check_zeros(&weight, bytes)?;
        }
        let address = core.take(bytes.len() as u64, || format!("tensor `{}`", weight.name))?;
        core.upload(address, bytes)?;
        table::place(&mut descriptor, plane.kind, address);
    }
    descriptor.floats = float_table(core, &weight, kind)?;
    Ok(weights.add(weight, kind, descriptor, None))
}

fn dimension(weight: &Weight, v: usize) -> Result<u32, BackendError> {
    u32::try_from(v).ok().filter(|v| *v <= 1 << 30).ok_or_else(|| BackendError::Operand {
        op: "load",
        what: format!("`{}` is {} × {}: more than kernels count", weight.name, weight.n, weight.k),
    })
}

/// Whether all zero points can be subtracted from codes within a byte.
///
/// # Errors
/// [`BackendError::Format`] if not.
pub fn check_zeros(weight: &Weight, zeros: &[u8]) -> Result<(), BackendError> {
    let Some((at, zero)) = zeros.iter().enumerate().find(|(_, z)| **z > LARGEST_ZERO) else { return Ok(()) };
    let what = format!("zero point {zero} (number {at}) is beyond {LARGEST_ZERO}; convert it anew");
    let source = FormatError::Corrupt { id: weight.spec.id, what };
    Err(BackendError::Format { tensor: weight.name.clone(), source })
}

/// The levels of a table of floats, on the device; 0 for another kind.
fn float_table(core: &mut Core, weight: &Weight, kind: Kind) -> Result<u64, BackendError> {
    let Ok(ashlar_formats::Grid::Groups(groups)) = weight.spec.grid() else { return Ok(0) };
    if kind != Kind::FloatTable {
        return Ok(0);
    }
    let address = core.take(64, || "a table of levels".into())?;
    core.upload(address, bytemuck::cast_slice(&groups.table()[..16]))?;
    Ok(address)
}

fn load_as_floats(core: &mut Core, weights: &mut Weights, weight: Weight) -> Result<WeightId, BackendError> {
    if !weight.is_float()? {
        let why = "has no cuda kernel; run this layer on the cpu".to_owned();
        return Err(BackendError::Unsupported { backend: crate::error::NAME, op: "load", why });
    }
    let mut values = vec![0.0f32; weight.n.saturating_mul(weight.k)];
    weight.decode(0..weight.n, &mut values)?;
    let address = core.take(4 * values.len() as u64, || format!("tensor `{}`", weight.name))?;
    core.upload(address, bytemuck::cast_slice(&values))?;
    let descriptor = args::Weight {
        codes: address,
        n: weight.n as u32,
        k: weight.k as u32,
        kind: Kind::F32 as u32,
        unit: 1.0,
        ..bytemuck::Zeroable::zeroed()
    };
    Ok(weights.add(weight, Kind::F32, descriptor, Some(address)))
}

/// Panels from the row order of a checkpoint.
fn to_panels(weight: &Weight) -> Result<Vec<Bytes>, BackendError> {
    let wrong = |source| BackendError::Format { tensor: weight.name.clone(), source };
    let layout = weight.spec.layout(Order::X16, weight.n, weight.k).map_err(wrong)?;
    let short = || BackendError::Memory {
        backend: crate::error::NAME,
        what: format!("host memory to reorder tensor `{}`", weight.name),
        needed: layout.bytes(),
        free: 0,
        remedy: "convert the checkpoint: packs need no reordering".into(),
    };
    let sized = |bytes: u64| AlignedBytes::zeroed(usize::try_from(bytes).ok()?);
    let mut out: Vec<AlignedBytes> =
        layout.planes.iter().map(|p| sized(p.bytes)).collect::<Option<_>>().ok_or_else(short)?;
    let data: Vec<&[u8]> = weight.planes.iter().map(|p| &**p).collect();
    let from = Planes { order: weight.order, n: weight.n, k: weight.k, first_row: 0, data: &data };
    let mut slices: Vec<&mut [u8]> = out.iter_mut().map(|o| &mut **o).collect();
    reorder(&weight.spec, &from, 0..weight.n, Order::X16, &mut slices).map_err(wrong)?;
    Ok(out.into_iter().map(Bytes::from).collect())
}

impl Weights {
    fn add(&mut self, weight: Weight, kind: Kind, descriptor: args::Weight, floats: Option<u64>) -> WeightId {
        let slots = weight.spec.outlier_slots;
        self.loaded.push(Loaded { weight, kind, slots, floats, record: None });
        self.descriptors.push(descriptor);
        WeightId((self.loaded.len() - 1) as u32)
    }

    /// Takes a weight without planes, whose record comes and goes.
    ///
    /// # Errors
    /// As [`load`].
    pub fn describe(
        &mut self,
        core: &mut Core,
        weight: Weight,
        record: u32,
        mode: ActivationMode,
    ) -> Result<WeightId, BackendError> {
        let float = matches!(weight.spec.grid(), Ok(ashlar_formats::Grid::Float(_)));
        let kept = if float { Order::Rows } else { Order::X16 };
        let unsupported = |why: &str| BackendError::Unsupported {
            backend: crate::error::NAME,
            op: "describe",
            why: format!("`{}` ({}) {why}", weight.name, weight.spec),
        };
        let (kind, mut descriptor) = table::entry(&weight.spec).ok_or_else(|| unsupported("has no cuda kernel"))?;
        if weight.order != kept {
            return Err(unsupported("does not lie as kernels read it; convert the checkpoint"));
        }
        descriptor.rounded = u32::from(kind.rounds() && mode != ActivationMode::F32);
        (descriptor.n, descriptor.k) = (dimension(&weight, weight.n)?, dimension(&weight, weight.k)?);
        descriptor.floats = float_table(core, &weight, kind)?;
        // Until it is in a slot.
        descriptor.kind = ABSENT;
        let id = self.add(weight, kind, descriptor, None);
        if let Some(loaded) = self.loaded.last_mut() {
            loaded.record = Some(record);
        }
        Ok(id)
    }

    /// Says where the planes of a described weight lie now, from `base` on. Kernels that were started before find what was there
    /// before.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is no such weight; what the device reports.
    pub fn lies_at(
        &mut self,
        core: &mut Core,
        id: WeightId,
        planes: &[(PlaneKind, usize)],
        base: u64,
    ) -> Result<(), BackendError> {
        const BYTES: u64 = size_of::<args::Weight>() as u64;
        let at = id.0 as usize;
        let kind = self.any(id, "fill")?.kind;
        let Some(descriptor) = self.descriptors.get_mut(at) else { return Ok(()) };
        descriptor.kind = kind as u32;
        for (kind, offset) in planes {
            table::place(descriptor, *kind, base + *offset as u64);
        }
        if at < self.written {
            core.upload_in_order(self.table + BYTES * at as u64, bytemuck::bytes_of(descriptor))?;
        }
        Ok(())
    }

    /// The address of the table of descriptors, with all of them on the device.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn table(&mut self, core: &mut Core) -> Result<u64, BackendError> {
        const BYTES: u64 = size_of::<args::Weight>() as u64;
        if self.written == self.descriptors.len() {
            return Ok(self.table);
        }
        if self.room < self.descriptors.len() {
            let room = (2 * self.descriptors.len()).max(64);
            core.give(self.table);
            self.table = core.take(BYTES * room as u64, || "descriptors of weights".into())?;
            (self.room, self.written) = (room, 0);
        }
        let new = bytemuck::cast_slice(&self.descriptors[self.written..]);
        core.upload(self.table + BYTES * self.written as u64, new)?;
        self.written = self.descriptors.len();
        Ok(self.table)
    }

    /// The address of all values of a small weight as f32: norms, biases, places. They must be `len`.
    ///
    /// # Errors
    /// [`BackendError::Operand`] for another length, [`BackendError::Format`] for values that cannot be decoded.
    pub fn vector(&mut self, core: &mut Core, id: WeightId, len: usize, op: &'static str) -> Result<u64, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no weight {}", id.0) };
        let loaded = self.loaded.get_mut(id.0 as usize).ok_or_else(missing)?;
        let w = &loaded.weight;
        if w.n.saturating_mul(w.k) != len {
            let what = format!("`{}` is {} × {}, expected a vector of {len}", w.name, w.n, w.k);
            return Err(BackendError::Operand { op, what });
        }
        if let Some(address) = loaded.floats {
            return Ok(address);
        }
        let mut values = vec![0.0f32; len];
        w.decode(0..w.n, &mut values)?;
        let address = core.take(4 * len as u64, || format!("tensor `{}` in f32", w.name))?;
        core.upload(address, bytemuck::cast_slice(&values))?;
        loaded.floats = Some(address);
        Ok(address)
    }
}
