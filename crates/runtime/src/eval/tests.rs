//! Windows and summaries; whole evaluations are in `tests/golden`.

use super::*;

#[test]
fn windows_do_not_overlap_and_a_short_rest_is_dropped() {
    let ids: Vec<u32> = (0..10).collect();
    let w = Windows::cut(&[], &ids, 4, None).unwrap();
    assert_eq!(w.list, [[0, 1, 2, 3], [4, 5, 6, 7]]);
    assert_eq!((w.first_scored(), w.tokens(), w.ctx()), (1, 8, 4));
    assert_eq!(Windows::cut(&[], &ids, 4, Some(7)).unwrap().len(), 1);
}

#[test]
fn a_tokenizers_prefix_begins_every_window_and_its_first_text_token_is_scored() {
    let w = Windows::cut(&[99], &[0, 1, 2, 3, 4, 5], 4, None).unwrap();
    assert_eq!(w.list, [[99, 0, 1, 2], [99, 3, 4, 5]]);
    assert_eq!(w.first_scored(), 1);
    let window = Window { tokens: &w.list[0], first_scored: w.first_scored() };
    assert_eq!(targets(&window, 0, 2).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(targets(&window, 2, 2).collect::<Vec<_>>(), [Some(2), None]);
}

#[test]
fn a_short_text_is_one_window_and_none_is_an_error() {
    assert_eq!(Windows::cut(&[], &[1, 2], 256, None).unwrap().list, [[1, 2]]);
    assert!(Windows::cut(&[], &[1], 256, None).is_err());
    assert!(Windows::cut(&[], &[1, 2, 3], 1, None).is_err());
}

#[test]
fn quantiles_are_numpys() {
    let v = [1.0, 2.0, 4.0, 8.0];
    for (q, want) in [(0.0, 1.0), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
        assert!((quantile(&v, q) - want).abs() < 1e-12);
    }
}

#[test]
fn the_bootstrap_is_about_two_standard_errors_wide_and_repeats() {
    let mut random = Xoshiro::new(1);
    let windows: Vec<Vec<Score>> = (0..400)
        .map(|_| {
            let center = random.unit();
            (0..10).map(|_| Score { kl: center, nll: center, ..Score::default() }).collect()
        })
        .collect();
    let c = comparison(&windows);
    // Uniform on 0..1 by window: standard error of the mean 0.2887 / sqrt(400).
    let width = c.kl.ci95[1] - c.kl.ci95[0];
    assert!((width / (2.0 * 1.96 * 0.2887 / 20.0) - 1.0).abs() < 0.1, "{width}");
    assert!(c.kl.ci95[0] < c.kl.mean && c.kl.mean < c.kl.ci95[1]);
    assert!(c.delta_ci95[0] < c.delta && c.delta < c.delta_ci95[1]);
    assert_eq!(c, comparison(&windows));
}
