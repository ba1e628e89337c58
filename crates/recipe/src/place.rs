//! From rules to one place per tensor: what a placement says of a model whose formats are decided already.

use crate::error::Problems;
use crate::hints;
use crate::recipe::{Recipe, Rule};
use crate::selector::Extent;
use crate::set::AUTO;
use crate::usage::ExpertUsage;
use crate::{Device, RecipeError, device};
use ashlar_arch::Leaf;

/// Where rules want a tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `vram`, `ram`, `nvme` or `cached`; `None` for automatic.
    pub tier: Option<&'static str>,
    /// The device that computes with it; `None` for automatic.
    pub device: Option<Device>,
    /// The last rule that said so, for messages: `rule` with its line.
    pub by: Option<String>,
}

/// Where rules want the tensors of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// One per tensor, in the order they were given.
    pub list: Vec<Place>,
    /// What the user should know.
    pub notes: Vec<String>,
}

fn places(rule: &Rule) -> bool {
    rule.set.tier.is_some() || rule.set.device.is_some()
}

impl Recipe {
    /// Whether any rule says where a tensor is to be.
    #[must_use]
    pub fn is_placement(&self) -> bool {
        self.defaults.tier.is_some() || self.defaults.device.is_some() || self.rules.iter().any(places)
    }

    /// Where the rules want `leaves`. Formats are not looked at, nor rules that are about nothing else.
    ///
    /// # Errors
    /// [`RecipeError`] for rules that match nothing, or that go by statistics which are not there.
    pub fn place(&self, leaves: &[&Leaf], usage: Option<&dyn ExpertUsage>) -> Result<Places, RecipeError> {
        let mut problems = Problems::new(&self.file);
        let tensors: Vec<(&Leaf, &str)> = leaves.iter().map(|leaf| (*leaf, "")).collect();
        let extent = Extent::of(leaves.iter().copied());
        let rules: Vec<&Rule> = self.rules.iter().filter(|rule| places(rule)).collect();
        self.check_usage(rules.iter().copied(), &tensors, usage, &mut problems);
        let mut found = Places { list: vec![self.start(); leaves.len()], notes: Vec::new() };
        let mut done = vec![false; leaves.len()];
        for rule in rules {
            let compiled = rule.selector.compile(extent, usage);
            let (mut matched, by) = (false, format!("rule `{}` (line {})", rule.id, rule.at.line));
            let all = leaves.iter().zip(&mut found.list).zip(&mut done);
            for ((_, place), done) in all.filter(|((leaf, _), _)| compiled.matches(leaf)) {
                matched = true;
                if !*done {
                    apply(rule, &by, place);
                    *done = rule.set.is_final;
                }
            }
            let unknown = usage.is_none() && rule.selector.needs_usage().is_some();
            match matched {
                true => found.notes.extend(hints::outside(rule, &compiled, extent)),
                false if rule.optional || unknown => {}
                false => {
                    problems.rule = Some(rule.id.clone());
                    let (at, message, near) = hints::matches_nothing(rule, &compiled, &tensors, extent);
                    problems.add_near(at, message, near.as_deref());
                }
            }
        }
        problems.finish(found)
    }

    /// What the defaults say.
    fn start(&self) -> Place {
        let tier = self.defaults.tier.filter(|tier| *tier != AUTO);
        let device = self.defaults.device.as_deref().and_then(device::parse);
        let by = (tier.is_some() || device.is_some()).then(|| "defaults".to_owned());
        Place { tier, device, by }
    }
}

/// Overrides what the rule names.
fn apply(rule: &Rule, by: &str, place: &mut Place) {
    if let Some(tier) = rule.set.tier {
        place.tier = Some(tier).filter(|tier| *tier != AUTO);
    }
    if let Some(name) = &rule.set.device {
        place.device = device::parse(name);
    }
    place.by = Some(by.to_owned());
}
