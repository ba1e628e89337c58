//! From the KL of every copy to sensitivities: how windows are weighed, and how groups share what their class costs.

use super::copies::{Copies, Kind};
use super::journal::Journal;
use super::{FINE, JOINT, PROBE};
use ashlar_arch::Class;
use ashlar_convert::allocate::groups::GroupKey;
use ashlar_convert::stats::{Sensitivities, Sensitivity};
use std::collections::BTreeMap;

/// The mean KL of every copy over tokens, from sums over windows (copies × windows). A window on which the model as a
/// whole suffers much (copy `reference`) counts less by that: text that the model hardly knows shows large KL whatever is
/// changed, and would decide alone what matters. The mean of `reference` itself stays as it is.
pub fn balanced(sums: &[Vec<f64>], rows: &[usize], reference: Option<usize>) -> Vec<f64> {
    let total: f64 = rows.iter().map(|r| *r as f64).sum::<f64>().max(1.0);
    let whole: Option<&Vec<f64>> = reference.and_then(|r| sums.get(r));
    let suffers = |(kl, rows): (&f64, &usize)| (*kl > 0.0).then_some(*rows as f64);
    let felt: f64 = whole.map_or(0.0, |w| w.iter().zip(rows).filter_map(suffers).sum());
    let mean = whole.map_or(0.0, |w| w.iter().sum::<f64>() / felt.max(1.0));
    let weight = |window: usize| -> f64 {
        let own = whole.and_then(|w| Some(w.get(window)? / *rows.get(window)? as f64));
        own.filter(|own| *own > 0.0 && mean > 0.0).map_or(1.0, |own| mean / own)
    };
    let weights: Vec<f64> = (0..rows.len()).map(weight).collect();
    sums.iter().map(|s| s.iter().zip(&weights).map(|(s, w)| s * w).sum::<f64>() / total).collect()
}

/// Sensitivities from the mean KL of every copy, and the groups that have none.
///
/// Groups measured alone add up to more than their class: small errors turn choices of experts and of attention, and the
/// same choice turns only once. So a class is measured as a whole in every format, and its groups share that in
/// proportion to what each costs alone.
pub fn shared(copies: &Copies, journal: &Journal, kl: &[f64], tokens: f64) -> (Sensitivities, Vec<String>) {
    let of = |kind: &Kind| copies.find(|k| k == kind).and_then(|i| kl.get(i)).map_or(0.0, |kl| kl.max(0.0));
    let (mut all, mut unmeasured) = (Sensitivities::default(), Vec::new());
    let mut keys: Vec<GroupKey> = Vec::new();
    for copy in &copies.list {
        match &copy.kind {
            Kind::Embed(key) | Kind::Head(key) => match journal.error(&key.to_string()).filter(|e| *e > 0.0) {
                Some(error) => {
                    all.groups.insert(key.to_string(), Sensitivity { tokens, kl: of(&copy.kind), error });
                }
                None => unmeasured.push(key.to_string()),
            },
            Kind::Group(key, PROBE) => match journal.error(&name(key, PROBE)).filter(|e| *e > 0.0) {
                Some(_) => keys.push(*key),
                None => unmeasured.push(key.to_string()),
            },
            _ => {}
        }
    }
    for format in JOINT {
        // Nothing is measured alone in the finest format: what is in the next one stands for it.
        let alone = |key: &GroupKey| {
            let kind = Kind::Group(*key, format);
            of(&if copies.find(|k| *k == kind).is_some() { kind } else { Kind::Group(*key, PROBE) })
        };
        let mut classes: BTreeMap<Class, f64> = BTreeMap::new();
        for key in &keys {
            *classes.entry(key.class).or_default() += alone(key);
        }
        let whole = |class: Class| of(&Kind::Joint(Some(class).filter(|_| classes.len() > 1), format));
        let mut sum = 0.0;
        for key in &keys {
            let class = classes.get(&key.class).copied().unwrap_or(0.0);
            let kl = alone(key) * whole(key.class) / class.max(f64::MIN_POSITIVE);
            sum += kl;
            let list = match *format {
                FINE => &mut all.fine,
                PROBE => &mut all.groups,
                _ => &mut all.coarse,
            };
            if let Some(error) = journal.error(&name(key, format)).filter(|e| *e > 0.0) {
                list.insert(key.to_string(), Sensitivity { tokens, kl, error });
            }
        }
        all.joint.insert((*format).to_owned(), Sensitivity { tokens, kl: of(&Kind::Joint(None, format)), error: sum });
    }
    (all, unmeasured)
}

/// Under which name the journal has the error of a group's trial.
pub fn name(key: &GroupKey, format: &str) -> String {
    format!("joint.{format}.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_the_same_however_much_the_model_suffers_there() {
        // Two windows; everything is ten times worse in the second.
        let sums = [vec![0.0, 0.0], vec![1.0, 10.0], vec![2.0, 10.0]];
        let kl = balanced(&sums, &[10, 10], Some(2));
        assert!((kl[2] - 0.6).abs() < 1e-12, "the whole keeps its mean");
        assert!((kl[1] - (1.0 * 3.0 + 10.0 * 0.6) / 20.0).abs() < 1e-12);
        assert_eq!(balanced(&sums, &[10, 10], None)[1], 11.0 / 20.0);
        // A window without any effect changes nothing and divides by nothing.
        assert_eq!(balanced(&[vec![0.0, 2.0]], &[1, 1], Some(0)), [1.0]);
    }
}
