//! Surveys of logits: what a device tells of rows is what the definition says of the values it hands over.

use super::bench::Bench;
use super::{Stop, Suite};
use crate::{Ask, SURVEY_MOST, SURVEY_SPAN, Survey, survey};

/// Of sums of weights.
const SUMS: f64 = 1e-10;

pub fn cases(suite: &mut Suite<'_>) {
    // A device that hands over whole rows is not asked.
    if (suite.make)().surveyor().is_none() {
        return;
    }
    for width in [1, 31, 700, SURVEY_SPAN, 2 * SURVEY_SPAN + 5] {
        suite.case(format!("survey width={width}"), |b| random(b, width));
    }
    suite.case("survey what is no number".into(), broken);
}

/// Rows of random values, of few distinct ones, and of some that are −∞; several questions at once.
fn random(b: &mut Bench, width: usize) -> Result<(), Stop> {
    let buffer = b.buffer(4, width)?;
    for round in 0..3 {
        let mut values = b.random.normals(4 * width);
        for (i, v) in values.iter_mut().enumerate() {
            match (i / width, round) {
                (1, _) => *v = (*v * 2.0).round(),
                (2, _) if i % 3 != 0 => *v = f32::NEG_INFINITY,
                (3, 1) => *v = if *v > 0.0 { 0.0 } else { -0.0 },
                _ => {}
            }
        }
        if let Some(v) = values.get_mut(2 * width) {
            *v = 1.0;
        }
        b.write(buffer, &values)?;
        let mut asks = Vec::new();
        for (row, (count, temperature)) in
            [(0, (1, 0.0)), (1, (40, 0.8)), (3, (SURVEY_MOST, 1.3)), (2, (7, 0.0)), (0, (1, 0.1))]
        {
            let mut named: Vec<u32> = (0..(row + round) * 9).map(|_| b.random.below(width) as u32).collect();
            named.sort_unstable();
            named.dedup();
            asks.push(Ask { row, count, temperature, named });
        }
        compare(b, buffer, width, &values, &asks)?;
    }
    Ok(())
}

fn broken(b: &mut Bench) -> Result<(), Stop> {
    let width = SURVEY_SPAN + 9;
    let buffer = b.buffer(3, width)?;
    let mut values = b.random.normals(3 * width);
    if let Some(v) = values.get_mut(width - 1) {
        *v = f32::NAN;
    }
    values.iter_mut().skip(width).take(width).for_each(|v| *v = f32::NEG_INFINITY);
    b.write(buffer, &values)?;
    let ask = |row| Ask { row, count: 2, temperature: 1.0, named: vec![5, width as u32 - 1] };
    compare(b, buffer, width, &values, &[ask(0), ask(1), ask(2)])?;
    for wrong in [
        ask(3),
        Ask { named: vec![width as u32], ..ask(0) },
        Ask { count: 0, ..ask(0) },
        Ask { count: SURVEY_MOST + 1, ..ask(0) },
    ] {
        if b.surveyor()?.survey(buffer[0], std::slice::from_ref(&wrong)).is_ok() {
            return Err(Stop::Fail(format!("{wrong:?} was answered")));
        }
    }
    Ok(())
}

fn compare(
    b: &mut Bench,
    buffer: super::bench::Pair<crate::BufferId>,
    width: usize,
    values: &[f32],
    asks: &[Ask],
) -> Result<(), Stop> {
    let device = b.surveyor()?;
    let got = device.survey(buffer[0], asks)?;
    let columns = width / 3..width;
    let part = device.values(buffer[0], 1, columns.clone())?;
    if device.values(buffer[0], 1, 1..width + 1).is_ok() {
        return Err(Stop::Fail("values behind the row were handed over".into()));
    }
    let row = |row: usize| values.get(row * width..(row + 1) * width).unwrap_or_default();
    if Some(&*part) != row(1).get(columns) {
        return Err(Stop::Fail("other values than were written".into()));
    }
    if got.len() != asks.len() {
        return Err(Stop::Fail(format!("{} surveys of {}", got.len(), asks.len())));
    }
    for (ask, got) in asks.iter().zip(got) {
        let want = survey(row(ask.row), ask);
        if !same(&got, &want) {
            return Err(Stop::Fail(format!("{ask:?}: {got:?}, expected {want:?}")));
        }
    }
    Ok(())
}

fn same(got: &Survey, want: &Survey) -> bool {
    if !want.numbers {
        return !got.numbers;
    }
    let sums = got
        .spans
        .iter()
        .zip(&want.spans)
        .all(|(a, b)| a.greatest == b.greatest && (a.sum - b.sum).abs() <= SUMS * b.sum);
    got.numbers && got.best == want.best && got.named == want.named && got.spans.len() == want.spans.len() && sums
}
