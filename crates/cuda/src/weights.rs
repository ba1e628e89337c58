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

/// The largest zero point that lets every code less it be a signed byte.
const LARGEST_ZERO: u8 = 128;

impl Weights {
    /// A loaded weight.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none of that id.
    pub fn get(&self, id: WeightId, op: &'static str) -> Result<&Loaded, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no weight {}", id.0) };
        self.loaded.get(id.0 as usize).ok_or_else(missing)
    }

    /// A weight of n × k, n as given or any.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn matrix(&self, id: WeightId, n: Option<usize>, k: usize, op: &'static str) -> Result<&Loaded, BackendError> {
        let loaded = self.get(id, op)?;
        let w = &loaded.weight;
        if w.k == k && n.is_none_or(|n| n == w.n) {
            return Ok(loaded);
        }
        let wanted = n.map_or_else(|| "any".to_owned(), |n| n.to_string());
        Err(BackendError::Operand { op, what: format!("`{}` is {} × {}, expected {wanted} × {k}", w.name, w.n, w.k) })
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
    let dimension = |v: usize| {
        u32::try_from(v).ok().filter(|v| *v <= 1 << 30).ok_or_else(|| BackendError::Operand {
            op: "load",
            what: format!("`{}` is {} × {}: more than kernels count", weight.name, weight.n, weight.k),
        })
    };
    (descriptor.n, descriptor.k) = (dimension(weight.n)?, dimension(weight.k)?);
    for (plane, bytes) in layout.planes.iter().zip(planes) {
        let bytes = bytes.get(..plane.bytes as usize).unwrap_or_default();
        if plane.kind == PlaneKind::Zeros
            && let Some(at) = bytes.iter().position(|z| *z > LARGEST_ZERO)
        {
            let what = format!("zero point {} (number {at}) is beyond {LARGEST_ZERO}; convert it anew", bytes[at]);
            return Err(wrong(FormatError::Corrupt { id: weight.spec.id, what }));
        }
        let address = core.take(bytes.len() as u64, || format!("tensor `{}`", weight.name))?;
        core.upload(address, bytes)?;
        table::place(&mut descriptor, plane.kind, address);
    }
    if kind == Kind::FloatTable
        && let Ok(ashlar_formats::Grid::Groups(groups)) = weight.spec.grid()
    {
        descriptor.floats = core.take(64, || "a table of levels".into())?;
        core.upload(descriptor.floats, bytemuck::cast_slice(&groups.table()[..16]))?;
    }
    Ok(weights.add(weight, kind, descriptor, None))
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
        self.loaded.push(Loaded { weight, kind, slots, floats });
        self.descriptors.push(descriptor);
        WeightId((self.loaded.len() - 1) as u32)
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
