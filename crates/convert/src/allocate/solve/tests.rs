use super::*;

/// A repeatable sequence of numbers in 0..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Items like those of a model: formats of 2.2 to 8.5 bits, errors that fall by 3 to 5 per bit, with noise.
fn problem(seed: u64, count: usize) -> Vec<Vec<Candidate>> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let item = |random: &mut Random| {
        let weights = 1e4 * (1.0 + 300.0 * random.next().powi(3));
        let alpha = 10f64.powf(2.0 * random.next() - 3.0);
        let bits = [2.1875, 2.375, 3.1875, 4.25, 6.5625, 8.5];
        let cost = |b: f64, noise: f64| alpha * (0.5 + noise) * 0.28f64.powf(b - 2.0);
        bits.map(|b| Candidate { bytes: (weights * b / 8.0) as u64, cost: cost(b, random.next()) }).to_vec()
    };
    (0..count).map(|_| item(&mut random)).collect()
}

fn totals(items: &[Vec<Candidate>], answer: &[usize]) -> (u64, f64) {
    let chosen = items.iter().zip(answer).map(|(item, i)| item[*i]);
    chosen.fold((0, 0.0), |(bytes, cost), c| (bytes + c.bytes, cost + c.cost))
}

/// The best of all mixes, by trying each.
fn exhaustive(items: &[Vec<Candidate>], budget: u64) -> Option<f64> {
    let Some((first, rest)) = items.split_first() else { return Some(0.0) };
    let fits = first.iter().filter(|c| c.bytes <= budget);
    fits.filter_map(|c| Some(c.cost + exhaustive(rest, budget - c.bytes)?)).min_by(f64::total_cmp)
}

/// What no mix can beat: the Lagrangian bound, the hull steps taken in part.
fn bound(items: &[Vec<Candidate>], budget: u64) -> f64 {
    let lambda_cost = |lambda: f64| -> f64 {
        let best =
            |item: &Vec<Candidate>| item.iter().map(|c| c.cost + lambda * c.bytes as f64).fold(f64::MAX, f64::min);
        items.iter().map(best).sum::<f64>() - lambda * budget as f64
    };
    // Concave in λ: golden-section search over magnitudes.
    (0..4000).map(|i| lambda_cost(10f64.powf(-14.0 + f64::from(i) * 0.003))).fold(f64::MIN, f64::max)
}

#[test]
fn small_problems_are_solved_almost_perfectly() {
    let mut worst: f64 = 1.0;
    for seed in 0..60 {
        let items = problem(seed, 5);
        let (least, most) = extremes(&items);
        for share in [0.02, 0.1, 0.3, 0.6, 0.9] {
            let budget = least + ((most - least) as f64 * share) as u64;
            let (bytes, cost) = totals(&items, &solve(&items, budget).unwrap());
            let best = exhaustive(&items, budget).unwrap();
            assert!(bytes <= budget && cost >= best * (1.0 - 1e-12));
            worst = worst.max(cost / best);
        }
    }
    assert!(worst < 1.25, "{worst}");
}

#[test]
fn budgets_are_met_from_below_and_no_single_step_fits_any_more() {
    for seed in 0..40 {
        let items = problem(seed, 60);
        let (least, most) = extremes(&items);
        for i in 0..25 {
            let budget = least + (most - least) * i / 24;
            let answer = solve(&items, budget).unwrap();
            let (bytes, _) = totals(&items, &answer);
            assert!(bytes <= budget);
            for (item, chosen) in items.iter().zip(&answer) {
                let now = item[*chosen];
                let better = item.iter().find(|c| c.cost < now.cost && c.bytes <= now.bytes + (budget - bytes));
                assert!(better.is_none(), "seed {seed}, {budget}: {now:?} could be {better:?}");
            }
        }
    }
}

#[test]
fn more_bytes_never_cost_more_and_no_mix_beats_the_bound() {
    for seed in 0..20 {
        let items = problem(seed, 60);
        let (least, most) = extremes(&items);
        let largest = |item: &Vec<Candidate>| item.last().unwrap().bytes - item[0].bytes;
        let step = items.iter().map(largest).max().unwrap();
        let mut before = f64::MAX;
        // Budgets further apart than the largest step: then even the bound of the larger is beaten by no smaller one.
        for budget in (least..most).step_by(usize::try_from(step).unwrap()) {
            let (_, cost) = totals(&items, &solve(&items, budget).unwrap());
            assert!(cost <= before, "{budget}: {before} to {cost}");
            assert!(cost >= bound(&items, budget) * (1.0 - 1e-9));
            before = cost;
        }
    }
}

#[test]
fn the_answer_is_close_to_the_bound_for_many_items() {
    for seed in 0..10 {
        let items = problem(seed, 200);
        let (least, most) = extremes(&items);
        let budget = least + (most - least) / 5;
        let (bytes, cost) = totals(&items, &solve(&items, budget).unwrap());
        assert!(bytes as f64 > 0.9999 * budget as f64);
        assert!(cost < 1.003 * bound(&items, budget), "{}", cost / bound(&items, budget));
    }
}

#[test]
fn the_same_problem_gets_the_same_answer_in_any_order_of_candidates() {
    let items = problem(7, 80);
    let (least, most) = extremes(&items);
    let budget = least + (most - least) / 3;
    let answer = solve(&items, budget).unwrap();
    assert_eq!(solve(&items, budget).unwrap(), answer);
    let reversed: Vec<Vec<Candidate>> = items.iter().map(|i| i.iter().rev().copied().collect()).collect();
    let again: Vec<usize> =
        solve(&reversed, budget).unwrap().iter().zip(&items).map(|(i, c)| c.len() - 1 - i).collect();
    assert_eq!(again, answer);
}

#[test]
fn too_little_is_refused_and_the_least_is_accepted() {
    let items = problem(3, 20);
    let (least, most) = extremes(&items);
    assert_eq!(solve(&items, least - 1), None);
    assert_eq!(totals(&items, &solve(&items, least).unwrap()).0, least);
    assert_eq!(totals(&items, &solve(&items, u64::MAX).unwrap()).0, most);
    assert_eq!(solve(&[], 0), Some(Vec::new()));
    assert_eq!(solve(&[Vec::new()], 0), Some(vec![0]));
}

#[test]
fn larger_and_worse_candidates_are_never_taken() {
    let c = |bytes, cost| Candidate { bytes, cost };
    let items = vec![vec![c(10, 1.0), c(20, 2.0), c(30, 0.5), c(30, 0.4), c(5, 3.0)]];
    assert_eq!(solve(&items, 29), Some(vec![0]));
    assert_eq!(solve(&items, 30), Some(vec![3]));
    assert_eq!(solve(&items, 9), Some(vec![4]));
}
