//! Symmetric matrices in a file: the upper triangle, row after row, each from its diagonal on.

/// Columns of the matrix whose upper triangle has so many values; `None` if no matrix has.
#[must_use]
pub fn columns(values: usize) -> Option<usize> {
    // k(k+1)/2 lies between k²/2 and (k+1)²/2.
    let k = values.checked_mul(2)?.isqrt();
    (k > 0 && upper_values(k) == values).then_some(k)
}

/// Values of the upper triangle of a k × k matrix.
#[must_use]
pub fn upper_values(k: usize) -> usize {
    if k.is_multiple_of(2) { k / 2 * (k + 1) } else { k.div_ceil(2) * k }
}

/// `factor` times the upper triangle `upper`, added to the lower triangle of the k × k matrix `lower`, row-major: as
/// quantizers want it.
pub fn spread(upper: &[f32], k: usize, factor: f64, lower: &mut [f32]) {
    /// Rows and columns turned together, so that both sides stay in the cache.
    const BLOCK: usize = 64;
    let start = |i: usize| i * k - i * i.saturating_sub(1) / 2;
    for i0 in (0..k).step_by(BLOCK) {
        for j0 in (i0..k).step_by(BLOCK) {
            for i in i0..(i0 + BLOCK).min(k) {
                for j in j0.max(i)..(j0 + BLOCK).min(k) {
                    if let (Some(value), Some(out)) = (upper.get(start(i) + j - i), lower.get_mut(j * k + i)) {
                        *out += (f64::from(*value) * factor) as f32;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_triangles_have_columns() {
        for k in [2, 3, 64, 4097] {
            assert_eq!(upper_values(k), (1..=k).sum::<usize>());
            assert_eq!(columns(upper_values(k)), Some(k));
            assert_eq!(columns(upper_values(k) + 1), None);
        }
        assert_eq!(columns(0), None);
        assert_eq!(columns(usize::MAX), None);
    }

    #[test]
    fn an_upper_triangle_fills_the_lower_one() {
        let k = 70;
        let value = |i: usize, j: usize| (i * 100 + j) as f32;
        let upper: Vec<f32> = (0..k).flat_map(|i| (i..k).map(move |j| value(i, j))).collect();
        let mut lower = vec![1.0; k * k];
        spread(&upper, k, 2.0, &mut lower);
        for i in 0..k {
            for j in 0..k {
                let want = if j <= i { 1.0 + 2.0 * value(j, i) } else { 1.0 };
                assert_eq!(lower[i * k + j], want, "{i} {j}");
            }
        }
    }
}
