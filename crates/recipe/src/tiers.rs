//! Placements that come with the program, one per kind of machine: the files of `recipes/tiers/`. Bandwidths are those of
//! data sheets, of processors what programs usually reach; nothing was measured.

/// Names and texts, alphabetical.
const TIERS: &[(&str, &str)] = &[
    ("cpu-128gb", include_str!("../../../recipes/tiers/cpu-128gb.yaml")),
    ("cpu-128gb-nvme", include_str!("../../../recipes/tiers/cpu-128gb-nvme.yaml")),
    ("cpu-32gb", include_str!("../../../recipes/tiers/cpu-32gb.yaml")),
    ("cpu-32gb-nvme", include_str!("../../../recipes/tiers/cpu-32gb-nvme.yaml")),
    ("cpu-64gb", include_str!("../../../recipes/tiers/cpu-64gb.yaml")),
    ("cpu-64gb-nvme", include_str!("../../../recipes/tiers/cpu-64gb-nvme.yaml")),
    ("dual-48gb-256gb", include_str!("../../../recipes/tiers/dual-48gb-256gb.yaml")),
    ("dual-96gb-512gb-nvme", include_str!("../../../recipes/tiers/dual-96gb-512gb-nvme.yaml")),
    ("rtx3060-12gb-128gb-nvme", include_str!("../../../recipes/tiers/rtx3060-12gb-128gb-nvme.yaml")),
    ("rtx3060-12gb-64gb", include_str!("../../../recipes/tiers/rtx3060-12gb-64gb.yaml")),
    ("rtx3080-10gb-32gb", include_str!("../../../recipes/tiers/rtx3080-10gb-32gb.yaml")),
    ("rtx3080-10gb-64gb", include_str!("../../../recipes/tiers/rtx3080-10gb-64gb.yaml")),
    ("rtx3080-10gb-64gb-nvme", include_str!("../../../recipes/tiers/rtx3080-10gb-64gb-nvme.yaml")),
    ("rtx4060-8gb-32gb", include_str!("../../../recipes/tiers/rtx4060-8gb-32gb.yaml")),
    ("rtx4060-8gb-64gb-nvme", include_str!("../../../recipes/tiers/rtx4060-8gb-64gb-nvme.yaml")),
    ("rtx4080-16gb-64gb", include_str!("../../../recipes/tiers/rtx4080-16gb-64gb.yaml")),
    ("rtx4080-16gb-64gb-nvme", include_str!("../../../recipes/tiers/rtx4080-16gb-64gb-nvme.yaml")),
    ("rtx4080-16gb-96gb", include_str!("../../../recipes/tiers/rtx4080-16gb-96gb.yaml")),
    ("rtx4090-24gb-128gb-nvme", include_str!("../../../recipes/tiers/rtx4090-24gb-128gb-nvme.yaml")),
    ("rtx4090-24gb-64gb", include_str!("../../../recipes/tiers/rtx4090-24gb-64gb.yaml")),
    ("rtx4090-24gb-96gb", include_str!("../../../recipes/tiers/rtx4090-24gb-96gb.yaml")),
    ("rtx5090-32gb-128gb-nvme", include_str!("../../../recipes/tiers/rtx5090-32gb-128gb-nvme.yaml")),
    ("rtx5090-32gb-96gb", include_str!("../../../recipes/tiers/rtx5090-32gb-96gb.yaml")),
    ("unified-128gb", include_str!("../../../recipes/tiers/unified-128gb.yaml")),
    ("unified-192gb", include_str!("../../../recipes/tiers/unified-192gb.yaml")),
    ("unified-256gb", include_str!("../../../recipes/tiers/unified-256gb.yaml")),
];

/// The text of the placement for a kind of machine.
#[must_use]
pub fn tier(name: &str) -> Option<&'static str> {
    TIERS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The names of all kinds of machines.
pub fn tiers() -> impl Iterator<Item = &'static str> {
    TIERS.iter().map(|(name, _)| *name)
}
