//! What a batch tells kernels: tokens, positions and slots of its rows, on the device.

use crate::cuda::Core;
use ashlar_backend::{BackendError, Batch};

/// A list of numbers on the device.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    address: u64,
    room: usize,
}

impl List {
    fn write(&mut self, core: &mut Core, values: &[u32]) -> Result<(), BackendError> {
        if values.len() > self.room {
            core.give(self.address);
            let room = values.len().next_power_of_two().max(64);
            self.address = core.take(4 * room as u64, || "a batch's positions".into())?;
            self.room = room;
        }
        core.upload_in_order(self.address, bytemuck::cast_slice(values))
    }
}

/// Rows of attention that share keys, and where they are listed.
struct Tiling {
    /// Query heads per key head, rows of a tile, whether a tile ends with its token.
    key: (usize, usize, bool),
    list: List,
    count: usize,
    /// The ends of the sequences it was made for.
    ends: Vec<usize>,
}

/// The batch that kernels work on.
#[derive(Default)]
pub struct Step {
    batch: Option<Batch>,
    tokens: List,
    ids: List,
    positions: List,
    slots: List,
    outputs: List,
    tilings: Vec<Tiling>,
}

impl Step {
    /// Brings a batch to the device, unless it is there.
    ///
    /// # Errors
    /// [`BackendError::Memory`], [`BackendError::Operand`] for positions beyond 32 bits.
    pub fn set(&mut self, core: &mut Core, batch: &Batch) -> Result<(), BackendError> {
        if self.batch.as_ref() == Some(batch) {
            return Ok(());
        }
        self.batch = None;
        let number = |v: usize| {
            let wrong = || BackendError::Operand { op: "batch", what: format!("position or slot {v}") };
            u32::try_from(v).ok().filter(|v| *v < u32::MAX / 2).ok_or_else(wrong)
        };
        let positions = batch.positions().into_iter().map(number).collect::<Result<Vec<_>, _>>()?;
        let slots = batch.sequences.iter().flat_map(|s| s.rows.clone().map(|_| number(s.slot)));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        let outputs = batch.outputs.iter().map(|row| number(*row)).collect::<Result<Vec<_>, _>>()?;
        self.tokens.write(core, &batch.tokens)?;
        self.ids.write(core, batch.ids())?;
        self.positions.write(core, &positions)?;
        self.slots.write(core, &slots)?;
        self.outputs.write(core, &outputs)?;
        self.batch = Some(batch.clone());
        Ok(())
    }

    /// Rows of the table to embed.
    pub fn tokens(&self) -> u64 {
        self.tokens.address
    }

    /// Token ids.
    pub fn ids(&self) -> u64 {
        self.ids.address
    }

    /// The position of every row.
    pub fn positions(&self) -> u64 {
        self.positions.address
    }

    /// The slot of every row.
    pub fn slots(&self) -> u64 {
        self.slots.address
    }

    /// Rows whose logits are wanted.
    pub fn outputs(&self) -> u64 {
        self.outputs.address
    }

    /// Tiles of (token · group + head) rows: (first, count) of each, at most `rows` of one sequence, and of one token if
    /// `single`. Returns their address and number.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn tiles(
        &mut self,
        core: &mut Core,
        batch: &Batch,
        [group, rows]: [usize; 2],
        single: bool,
    ) -> Result<(u64, usize), BackendError> {
        let ends: Vec<usize> = batch.sequences.iter().map(|s| s.rows.end).collect();
        let key = (group, rows, single);
        let at = match self.tilings.iter().position(|t| t.key == key) {
            Some(at) if self.tilings[at].ends == ends => {
                return Ok((self.tilings[at].list.address, self.tilings[at].count));
            }
            Some(at) => at,
            None => {
                self.tilings.push(Tiling { key, list: List::default(), count: 0, ends: Vec::new() });
                self.tilings.len() - 1
            }
        };
        let mut tiles = Vec::new();
        for sequence in &batch.sequences {
            let parts =
                if single { sequence.rows.clone().map(|r| r..r + 1).collect() } else { vec![sequence.rows.clone()] };
            for part in parts {
                let (mut first, end) = (part.start * group, part.end * group);
                while first < end {
                    let count = rows.min(end - first);
                    tiles.extend([first as u32, count as u32]);
                    first += count;
                }
            }
        }
        let tiling = &mut self.tilings[at];
        tiling.list.write(core, &tiles)?;
        (tiling.count, tiling.ends) = (tiles.len() / 2, ends);
        Ok((tiling.list.address, tiling.count))
    }
}
