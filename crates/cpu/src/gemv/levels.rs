//! What the codes of a grid stand for, worked out once per weight rather than whenever a kernel starts.

use ashlar_formats::{Grid, Groups, Levels as FormatLevels, TwoLevel};

/// The levels of a grid, as far as kernels need them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// The level of every code of a table of 16.
    pub values: [f32; 16],
    /// The level of every code as an integer times `unit`; codes that do not exist are 0.
    pub integers: [i8; 64],
    /// A power of two; 0 if there are no integers.
    pub unit: f32,
    /// How far the second grid lies above the first one.
    pub moved: f32,
}

impl Levels {
    /// Of a grid; `None` if it has neither 16 levels nor integer ones.
    pub fn of(grid: &Grid) -> Option<Self> {
        match grid {
            Grid::Groups(groups) => Self::of_groups(groups),
            Grid::TwoLevel(grid) => Self::of_two_level(grid),
            _ => None,
        }
    }

    fn of_groups(groups: &Groups) -> Option<Self> {
        let FormatLevels::Table(_) = groups.levels else { return None };
        let values: [f32; 16] = groups.table().first_chunk().copied()?;
        let mut all = [0.0; 64];
        all[..16].copy_from_slice(&values);
        let (integers, unit) = [1.0, 0.5].into_iter().find_map(|unit| Some((integers(&all, unit)?, unit))).unzip();
        let (integers, unit) = (integers.unwrap_or([0; 64]), unit.unwrap_or(0.0));
        Some(Self { values, integers, unit, moved: 0.0 })
    }

    fn of_two_level(grid: &TwoLevel) -> Option<Self> {
        let [first, second] = grid.tables();
        let moved = second[0] - first[0];
        let codes = 1 << grid.code_bits();
        let constant = first.iter().zip(second).take(codes).all(|(a, b)| a + moved == b);
        let integers = integers(&first, 1.0).filter(|_| constant)?;
        Some(Self { values: first.first_chunk().copied()?, integers, unit: 1.0, moved })
    }

    /// The first N integers.
    pub fn first<const N: usize>(&self) -> [i8; N] {
        self.integers.first_chunk().copied().unwrap_or([0; N])
    }

    /// Whether the integers of all codes lie in this range.
    pub fn within(&self, range: std::ops::RangeInclusive<i8>) -> bool {
        self.unit != 0.0 && self.integers.iter().all(|i| range.contains(i))
    }
}

fn integers(levels: &[f32; 64], unit: f32) -> Option<[i8; 64]> {
    let whole = levels.iter().all(|l| (l / unit).fract() == 0.0 && (l / unit).abs() <= 127.0);
    whole.then(|| levels.map(|l| (l / unit) as i8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_formats::Spec;

    fn levels(id: &str) -> Option<Levels> {
        Levels::of(&id.parse::<Spec>().unwrap().grid().unwrap())
    }

    #[test]
    fn tables_of_integers_have_a_unit_and_others_have_none() {
        let mxfp4 = levels("mxfp4").unwrap();
        assert_eq!((mxfp4.unit, mxfp4.integers[7], mxfp4.values[7]), (0.5, 12, 6.0));
        assert_eq!((levels("iq4nl").unwrap().unit, levels("nf4").unwrap().unit), (1.0, 0.0));
        assert_eq!(levels("q8"), None);
    }

    #[test]
    fn second_grids_lie_a_constant_above_the_first() {
        let moved = ["k4", "k3", "k2", "k2h", "q6"].map(|id| levels(id).unwrap().moved);
        assert_eq!(moved, [4.0, 4.0, 5.0, 5.0, 0.0]);
        assert!(levels("k2").unwrap().within(-31..=17) && !levels("k3").unwrap().within(-31..=17));
    }
}
