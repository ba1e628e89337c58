//! The undamaged checkpoint converts: what the other files see is the damage.

use super::victim::Victim;

#[test]
fn the_undamaged_checkpoint_converts_from_one_file_and_from_shards() {
    Victim::new().accepted();
    Victim::sharded().accepted();
}
