//! Properties of the filters over many random distributions, and fixed numbers.

use super::*;

fn logits(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Xoshiro::new(seed);
    (0..len).map(|_| (random.unit() * 8.0 - 4.0) as f32).collect()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let e: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

fn draws(options: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(options.clone()).unwrap();
    (0..count).map(|_| sampler.sample(logits, &[]).unwrap()).collect()
}

// First outputs of the authors' C code for the state {1, 2, 3, 4}.
#[test]
fn xoshiro_gives_the_published_sequence() {
    let mut x = Xoshiro([1, 2, 3, 4]);
    let got: Vec<u64> = (0..5).map(|_| x.next()).collect();
    assert_eq!(got, [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205]);
}

#[test]
fn greedy_takes_the_maximum_and_the_lower_id_of_equals() {
    let mut s = Sampler::new(Sampling::default()).unwrap();
    assert_eq!(s.sample(&[0.0, 3.0, 3.0, -1.0], &[]).unwrap(), 1);
    assert_eq!(s.sample(&[f32::NEG_INFINITY, -5.0], &[]).unwrap(), 1);
}

#[test]
fn logits_that_are_not_numbers_are_an_error() {
    let mut s = Sampler::new(Sampling::default()).unwrap();
    assert!(s.sample(&[0.0, f32::NAN], &[]).is_err());
    assert!(s.sample(&[f32::NEG_INFINITY; 3], &[]).is_err());
    assert!(s.sample(&[], &[]).is_err());
}

#[test]
fn frequencies_follow_the_softmax_at_the_temperature() {
    let l = logits(1, 6);
    let want = softmax(&l, 0.7);
    let count = 20_000;
    let drawn = draws(&Sampling { temperature: 0.7, seed: 9, ..Sampling::default() }, &l, count);
    for (id, p) in want.iter().enumerate() {
        let got = drawn.iter().filter(|d| **d as usize == id).count() as f64 / count as f64;
        let sigma = (p * (1.0 - p) / count as f64).sqrt();
        assert!((got - p).abs() < 5.0 * sigma + 1e-9, "{id}: {got} {p}");
    }
}

#[test]
fn top_k_draws_only_the_k_best_and_all_of_them() {
    for seed in 0..20 {
        let l = logits(seed, 50);
        let mut order: Vec<u32> = (0..50).collect();
        order.sort_by(|a, b| l[*b as usize].total_cmp(&l[*a as usize]));
        let options = Sampling { temperature: 5.0, top_k: 3, seed, ..Sampling::default() };
        let drawn: HashSet<u32> = draws(&options, &l, 300).into_iter().collect();
        assert_eq!(drawn, order[..3].iter().copied().collect());
    }
}

#[test]
fn top_p_keeps_the_fewest_tokens_that_reach_it() {
    for seed in 0..50 {
        let l = logits(seed, 40);
        let options = Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::default() };
        let kept = distribution((0..).zip(&l).map(|(i, l)| (i, f64::from(*l))).collect(), l.len(), &options);
        let p = softmax(&l, 1.0);
        let mass = |n: usize| kept[..n].iter().map(|c| p[c.0 as usize]).sum::<f64>();
        assert!(mass(kept.len()) >= 0.6 - 1e-12 && mass(kept.len() - 1) < 0.6 + 1e-12);
        let least = kept.iter().map(|c| p[c.0 as usize]).fold(1.0, f64::min);
        let out = p.iter().enumerate().filter(|(i, _)| !kept.iter().any(|c| c.0 as usize == *i));
        assert!(out.map(|o| *o.1).fold(0.0, f64::max) <= least);
    }
}

#[test]
fn min_p_keeps_what_is_probable_enough_relative_to_the_best() {
    for seed in 0..50 {
        let l = logits(seed, 40);
        let options = Sampling { temperature: 1.0, min_p: 0.1, ..Sampling::default() };
        let kept = distribution((0..).zip(&l).map(|(i, l)| (i, f64::from(*l))).collect(), l.len(), &options);
        let p = softmax(&l, 1.0);
        let best = p.iter().copied().fold(0.0, f64::max);
        assert_eq!(kept.len(), p.iter().filter(|p| **p >= 0.1 * best).count());
    }
}

#[test]
fn the_repetition_penalty_sees_the_window_and_both_signs() {
    let options = Sampling { repetition_penalty: 2.0, repetition_window: 2, ..Sampling::default() };
    let mut s = Sampler::new(options).unwrap();
    assert_eq!(s.sample(&[3.0, 2.0, 0.0], &[0]).unwrap(), 1, "3 / 2 < 2");
    assert_eq!(s.sample(&[-1.0, -1.5, -9.0], &[0, 2]).unwrap(), 1, "-1 · 2 < -1.5");
    assert_eq!(s.sample(&[3.0, 2.0, 0.0], &[0, 2, 2]).unwrap(), 0, "token 0 is out of the window");
    assert_eq!(s.sample(&[3.0, 2.0, 0.0], &[0, 0]).unwrap(), 1, "a token is penalised once, however often it occurs");
    assert_eq!(s.sample(&[3.0, 2.0], &[7]).unwrap(), 0, "a token beyond the logits");
}

#[test]
fn the_seed_decides_everything() {
    let l = logits(3, 200);
    let options = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
    assert_eq!(draws(&options(5), &l, 100), draws(&options(5), &l, 100));
    assert_ne!(draws(&options(5), &l, 100), draws(&options(6), &l, 100));
}

#[test]
fn options_out_of_range_are_named() {
    let wrong = [
        ("--temperature", Sampling { temperature: -1.0, ..Sampling::default() }),
        ("--temperature", Sampling { temperature: f64::NAN, ..Sampling::default() }),
        ("--top-p", Sampling { top_p: 0.0, ..Sampling::default() }),
        ("--min-p", Sampling { min_p: 1.5, ..Sampling::default() }),
        ("--repetition-penalty", Sampling { repetition_penalty: 0.0, ..Sampling::default() }),
    ];
    for (name, options) in wrong {
        assert!(Sampler::new(options).unwrap_err().to_string().starts_with(name));
    }
}

/// The token of the row's survey, or `None` where it does not tell.
fn surveyed(sampler: &mut Sampler, row: &[f32], seen: &[u32]) -> Option<u32> {
    let ask = sampler.ask(0, row.len(), seen)?;
    let survey = ashlar_backend::survey(row, &ask);
    sampler.choose(row.len(), &ask, &survey, &mut |ids| Ok(row[ids].to_vec())).unwrap()
}

#[test]
fn a_survey_gives_the_token_of_the_whole_row_or_none() {
    let mut random = Xoshiro::new(3);
    let (mut told, mut asked) = (0, 0);
    for round in 0..600u64 {
        let len = [3, 40, 700, 5000, 9000][round as usize % 5];
        let mut row = logits(round, len);
        // Peaked, with ties, with impossible tokens, with zeros of both signs.
        match round % 7 {
            0 | 1 => row.iter_mut().for_each(|l| *l *= 4.0),
            2 => row.iter_mut().for_each(|l| *l = (*l * 2.0).round()),
            3 => row.iter_mut().step_by(3).for_each(|l| *l = f32::NEG_INFINITY),
            4 => row.iter_mut().for_each(|l| *l = if *l > 0.0 { 0.0 } else { -0.0 }),
            _ => {}
        }
        row[len / 2] = 1.0;
        let pick = |random: &mut Xoshiro, of: &[f64]| of[(random.next() % of.len() as u64) as usize];
        let options = Sampling {
            temperature: pick(&mut random, &[0.0, 0.5, 1.0, 1.7]),
            top_k: pick(&mut random, &[0.0, 0.0, 1.0, 20.0, 256.0, 1000.0]) as usize,
            top_p: pick(&mut random, &[1.0, 1.0, 0.3, 0.9, 0.99]),
            min_p: pick(&mut random, &[0.0, 0.0, 0.05, 0.5]),
            repetition_penalty: pick(&mut random, &[1.0, 1.3, 0.7]),
            repetition_window: 30,
            seed: round,
        };
        let mut seen: Vec<u32> = (0..50).map(|_| (random.next() % len as u64) as u32).collect();
        seen.push(len as u32 + 7);
        let mut whole = Sampler::new(options.clone()).unwrap();
        let mut by_survey = whole.clone();
        for _ in 0..4 {
            let want = whole.sample(&row, &seen).unwrap();
            asked += 1;
            match surveyed(&mut by_survey, &row, &seen) {
                Some(got) => {
                    assert_eq!(got, want, "{options:?}, {len} logits, round {round}");
                    told += 1;
                }
                // It is as it was: the row gives what it would have given.
                None => assert_eq!(by_survey.sample(&row, &seen).unwrap(), want),
            }
            seen.push(want);
        }
    }
    assert!(told * 10 > asked * 7, "{told} of {asked}");
}

#[test]
fn a_survey_of_what_is_no_number_is_an_error() {
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    for row in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2]] {
        let ask = sampler.ask(0, 2, &[]).unwrap();
        assert!(sampler.choose(2, &ask, &ashlar_backend::survey(&row, &ask), &mut |_| Ok(Vec::new())).is_err());
    }
}
