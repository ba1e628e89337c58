//! How many tokens of a prompt go through a model at once where experts move, from disk or to slots: every chunk moves nearly all
//! of them once, so that longer prompts take less time in larger chunks, as long as activations leave most of the room to experts.

use super::Placement;
use crate::RuntimeError;
use crate::program::{Draft, Sizes};
use ashlar_arch::ModelSpec;
use ashlar_recipe::Device;

/// Chunks that are tried, the largest first.
const LARGER: [usize; 4] = [4096, 2048, 1024, 512];
/// Of the room for experts that move on any device, larger chunks may take one part in so many.
const PART: u64 = 16;

/// Places a program with the chunk asked for, or with a larger one if it may grow and experts move.
///
/// # Errors
/// What `place` says of the chunk asked for.
pub(crate) fn grown(
    spec: &ModelSpec,
    sizes: Sizes,
    may_grow: bool,
    place: &mut dyn FnMut(&Draft) -> Result<Placement, RuntimeError>,
) -> Result<(Draft, Placement), RuntimeError> {
    let draft = Draft::new(spec, sizes);
    let placement = place(&draft)?;
    let rooms: Vec<_> = placement.moving().into_iter().filter(|(_, room)| *room > 0).collect();
    if !may_grow || rooms.is_empty() {
        return Ok((draft, placement));
    }
    let leaves_enough = |placement: &Placement| {
        let there = placement.moving();
        let kept = |(device, room): &(Device, u64)| {
            there.iter().any(|(other, left)| other == device && *left >= room - room / PART)
        };
        rooms.iter().all(kept)
    };
    for rows in LARGER {
        // No larger than a prompt can be.
        let rows = rows.min(sizes.context);
        if rows <= sizes.rows {
            break;
        }
        let draft = Draft::new(spec, Sizes { rows, ..sizes });
        match place(&draft) {
            Ok(placement) if leaves_enough(&placement) => return Ok((draft, placement)),
            _ => {}
        }
    }
    Ok((draft, placement))
}

/// The largest chunk of a model whose activations take so many bytes for `rows` tokens, where experts have `room` to move in.
#[must_use]
pub(crate) fn largest(rows: usize, context: usize, activations: u64, room: u64) -> usize {
    let more = |larger: usize| activations / rows.max(1) as u64 * larger.saturating_sub(rows) as u64;
    let fits = |larger: &usize| *larger > rows && more(*larger) <= room / PART;
    LARGER.into_iter().map(|larger| larger.min(context)).find(fits).unwrap_or(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_to_what_leaves_experts_most_of_their_room_and_a_prompt_can_fill() {
        // 1000 bytes per row.
        let of = |context, room| largest(512, context, 512_000, room);
        assert_eq!(of(32_768, 3584 * 1000 * 16), 4096);
        assert_eq!(of(32_768, 3584 * 1000 * 16 - 16), 2048);
        assert_eq!((of(3000, u64::MAX), of(512, u64::MAX), of(32_768, 1000)), (3000, 512, 512));
    }
}
