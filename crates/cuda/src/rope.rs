//! Frequencies of rotations on the device, and the angles of the present batch.

use crate::args::AnglesArgs;
use crate::cuda::Core;
use crate::modules::ROWS;
use crate::step::Step;
use ashlar_arch::Rope;
use ashlar_backend::{BackendError, Batch, RopeTable};
use std::sync::Arc;

/// One rope for one width.
pub struct Turns {
    rope: Arc<Rope>,
    width: usize,
    /// f64, radians per position of every pair.
    pub frequencies: u64,
    /// What cosines and sines are multiplied with.
    pub multiplier: f64,
    angles: u64,
    room: usize,
    /// The positions that the angles are of.
    positions: Vec<usize>,
}

/// All of them.
#[derive(Default)]
pub struct Ropes(Vec<Turns>);

impl Ropes {
    /// Frequencies of a rope, brought to the device once.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn turns(&mut self, core: &mut Core, rope: &Arc<Rope>, width: usize) -> Result<&mut Turns, BackendError> {
        let at = match self.0.iter().position(|t| t.rope == *rope && t.width == width) {
            Some(at) => at,
            None => {
                let table = RopeTable::new(rope, width);
                let frequencies = core.take(8 * table.pairs().max(1) as u64, || "frequencies".into())?;
                core.upload(frequencies, bytemuck::cast_slice(table.frequencies()))?;
                // The cosine at position 0 is the multiplier.
                let (mut cos, mut sin) = (vec![1.0; table.pairs()], vec![0.0; table.pairs()]);
                table.fill(0, &mut cos, &mut sin);
                let multiplier = multiplier(rope, cos.first().copied().unwrap_or(1.0));
                let rope = Arc::clone(rope);
                self.0.push(Turns { rope, width, frequencies, multiplier, angles: 0, room: 0, positions: Vec::new() });
                self.0.len() - 1
            }
        };
        Ok(&mut self.0[at])
    }

    /// Cosines, then sines, of the turned `width` for every row of the batch.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn angles(
        &mut self,
        core: &mut Core,
        step: &Step,
        rope: &Arc<Rope>,
        width: usize,
        batch: &Batch,
    ) -> Result<u64, BackendError> {
        let turns = self.turns(core, rope, width)?;
        let positions = batch.positions();
        if turns.positions == positions && turns.room > 0 {
            return Ok(turns.angles);
        }
        if positions.len() > turns.room {
            core.give(turns.angles);
            let room = positions.len().next_power_of_two();
            turns.angles = core.take(4 * (room * width).max(1) as u64, || "angles of rotations".into())?;
            turns.room = room;
        }
        let args = AnglesArgs {
            frequencies: turns.frequencies,
            positions: step.positions(),
            out: turns.angles,
            multiplier: turns.multiplier,
            pairs: (width / 2) as u32,
            reserved: 0,
        };
        core.run(ROWS, "angles", [positions.len(), 1, 1], 256, &args)?;
        turns.positions = positions;
        Ok(turns.angles)
    }
}

/// The multiplier in f64: that of the rope where it has one, which `rounded` is the f32 of.
fn multiplier(rope: &Rope, rounded: f32) -> f64 {
    match rope.scaling {
        ashlar_arch::RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => f64::from(rounded),
    }
}
