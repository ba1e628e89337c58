//! `k4`, `k3`, `k2`, `k2h`: a code is an index into one of two uneven grids, and the group says which.
//!
//! | id | codes | group | parameter (grid = bit 0, u = the bits above) | inner scale | outer scale |
//! |---|---|---|---|---|---|
//! | `k4`  | 4 bits     | 32 | 8 bits | 2u − 127 | f32 per row |
//! | `k3`  | 2 + 1 bits | 32 | 6 bits | u − 16   | f16 per row |
//! | `k2`  | 2 bits     | 32 | 6 bits | u − 16   | f16 per row |
//! | `k2h` | 2 bits     | 16 | 5 bits | u − 8    | f16 per 256 columns |
//!
//! The values are those of ik_llama.cpp's IQ4_KS, IQ3_KS, IQ2_KS and IQ2_K. A further pair of grids is a constant here.
//! Pages: `docs/formats/{k4,k3,k2,k2h}.md`.

use crate::two_level::{Nested, dual, variant};
use crate::x16::Width;
use crate::{Levels, ScaleType, Table};

const INDEX: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A table of the first levels of `base`, all moved by `shift`; the last level and code fill the rest.
const fn table<const N: usize>(base: [i32; N], shift: i32) -> Table {
    let (mut levels, mut codes) = ([0.0; 16], INDEX);
    let mut i = 0;
    while i < 16 {
        let from = if i < N { i } else { N - 1 };
        levels[i] = (base[from] + shift) as f32;
        codes[i] = from as u8;
        i += 1;
    }
    Table { levels, codes }
}

const SIXTEEN: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const EIGHT: [i32; 8] = [-63, -40, -23, -10, 1, 13, 28, 47];
const FOUR: [i32; 4] = [-31, -13, 1, 17];

static K4: [Table; 2] = [table(SIXTEEN, 0), table(SIXTEEN, 4)];
static K3: [Table; 2] = [table(EIGHT, 0), table(EIGHT, 4)];
static K2: [Table; 2] = [table(FOUR, 0), table(FOUR, 5)];
static K4_GRIDS: [Levels; 2] = [Levels::Table(&K4[0]), Levels::Table(&K4[1])];
static K3_GRIDS: [Levels; 2] = [Levels::Table(&K3[0]), Levels::Table(&K3[1])];
static K2_GRIDS: [Levels; 2] = [Levels::Table(&K2[0]), Levels::Table(&K2[1])];

/// Columns of an outer scale of `k2h`.
const SPAN: usize = 256;

/// `k4`.
pub static FOUR_BITS: Nested = Nested {
    id: "k4",
    variants: &[variant(32, ScaleType::F32)],
    grid: dual((Width::Four, None), 32, (None, ScaleType::F32), (8, 2, 127), &K4_GRIDS),
};

/// `k3`.
pub static THREE_BITS: Nested = Nested {
    id: "k3",
    variants: &[variant(32, ScaleType::F16)],
    grid: dual((Width::Two, Some(Width::One)), 32, (None, ScaleType::F16), (6, 1, 16), &K3_GRIDS),
};

/// `k2`.
pub static TWO_BITS: Nested = Nested {
    id: "k2",
    variants: &[variant(32, ScaleType::F16)],
    grid: dual((Width::Two, None), 32, (None, ScaleType::F16), (6, 1, 16), &K2_GRIDS),
};

/// `k2h`.
pub static TWO_BITS_HIGH: Nested = Nested {
    id: "k2h",
    variants: &[variant(16, ScaleType::F16)],
    grid: dual((Width::Two, None), 16, (Some(SPAN), ScaleType::F16), (5, 1, 8), &K2_GRIDS),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_those_of_the_pages() {
        let k2 = TWO_BITS.grid.tables();
        assert_eq!((k2[0][..4].to_vec(), k2[1][..4].to_vec()), (vec![-31., -13., 1., 17.], vec![-26., -8., 6., 22.]));
        let k3 = THREE_BITS.grid.tables();
        assert_eq!((k3[0][0], k3[0][7], k3[1][0], k3[1][7]), (-63., 47., -59., 51.));
        let k4 = FOUR_BITS.grid.tables();
        assert_eq!((k4[0][0], k4[0][15], k4[1][0], k4[1][15]), (-127., 113., -123., 117.));
        assert_eq!([k4, k3].map(|t| t[0].iter().zip(t[1]).take(8).all(|(a, b)| a + 4.0 == b)), [true; 2]);
    }

    #[test]
    fn scales_are_those_of_the_pages() {
        let read = |f: &Nested, p| f.grid.inner.read(p);
        assert_eq!((read(&FOUR_BITS, 0), read(&FOUR_BITS, 255), read(&FOUR_BITS, 129)), ((-127, 0), (127, 1), (1, 1)));
        assert_eq!((read(&TWO_BITS, 0), read(&TWO_BITS, 63), read(&THREE_BITS, 34)), ((-16, 0), (15, 1), (1, 0)));
        assert_eq!((read(&TWO_BITS_HIGH, 1), read(&TWO_BITS_HIGH, 30)), ((-8, 1), (7, 0)));
        for f in [&FOUR_BITS, &THREE_BITS, &TWO_BITS, &TWO_BITS_HIGH, &crate::q6::Q6] {
            let inner = f.grid.inner;
            for p in 0..=u8::MAX >> (8 - inner.bits()) {
                let (scale, grid) = inner.read(p);
                assert_eq!(inner.parameter(scale, grid), p, "{}", f.id);
                assert!(inner.bounds().0 <= scale && scale <= inner.bounds().1);
            }
        }
    }
}
