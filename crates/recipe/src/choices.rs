//! What a recipe decides for each tensor of a model, and why.

use crate::recipe::Validate;
use ashlar_arch::{Leaf, nearest};
use ashlar_formats::{OutlierRule, Spec};
use ashlar_tensor::Order;
use std::fmt::Write as _;

/// The decisions for a whole model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// One per tensor, in the model's order.
    pub list: Vec<Choice>,
    /// What the user should be told: fallbacks, defaults, tensors that stay as they are though a rule wanted otherwise.
    pub notes: Vec<String>,
    /// Quality that the pack must reach.
    pub validate: Validate,
}

/// The decision for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The tensor.
    pub leaf: Leaf,
    /// Outputs; 1 for vectors.
    pub n: usize,
    /// Inputs; the length for vectors.
    pub k: usize,
    /// Its format in the source, as text.
    pub source_format: String,
    /// What becomes of it.
    pub action: Action,
    /// Share and cut-off of the outliers, where the action's spec has slots for them. A quantizer needs the cut-off.
    pub outliers: Option<OutlierRule>,
    /// The defaults and rules that spoke about it, in order, and what became of their wish.
    pub trace: Vec<String>,
    /// Where it is to be held (`vram`, `ram`, `nvme`, `cached`); `None` for automatic.
    pub tier: Option<String>,
    /// Which device computes with it (`cpu`, `cuda:0`); `None` for automatic.
    pub device: Option<String>,
    /// What a solver may do instead of `action`, smallest first; empty where the rules' word is final.
    pub candidates: Vec<Action>,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its values stay: floats are copied, quantized codes and scales are only put in the pack's order.
    Keep,
    /// It is decoded and encoded anew.
    Encode {
        /// The format.
        spec: Spec,
        /// The quantizer: `auto` or an id of `ashlar-quantize`.
        method: &'static str,
    },
}

impl Choice {
    /// Takes another action, which the trace explains by `why`.
    pub fn decide(&mut self, action: Action, why: String) {
        let slots = matches!(&action, Action::Encode { spec, .. } if spec.outlier_slots > 0);
        self.outliers = self.outliers.filter(|_| slots);
        self.action = action;
        self.trace.push(why);
    }

    /// The format in the pack, as text.
    #[must_use]
    pub fn format(&self) -> String {
        match &self.action {
            Action::Keep => self.source_format.clone(),
            Action::Encode { spec, .. } => spec.to_string(),
        }
    }
}

/// There is no such tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model has no tensor `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
pub struct NoSuchTensor {
    /// The name asked for.
    pub name: String,
    /// The most similar name.
    pub nearest: Option<String>,
}

/// Why `tensor` gets the format it gets: its role, every rule that spoke about it, the decision.
///
/// # Errors
/// [`NoSuchTensor`] with the nearest name.
pub fn explain(choices: &Choices, tensor: &str) -> Result<String, NoSuchTensor> {
    let Some(choice) = choices.list.iter().find(|c| c.leaf.name == tensor) else {
        let nearest = nearest(tensor, choices.list.iter().map(|c| c.leaf.name.as_str())).map(str::to_owned);
        return Err(NoSuchTensor { name: tensor.chars().take(200).collect(), nearest });
    };
    let role = &choice.leaf.role;
    let mut text = format!("{tensor} {:?} {}\n  class {}", choice.leaf.shape, choice.source_format, role.class);
    let mut part = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    };
    part("proj", role.proj.map(|p| p.to_string()));
    part("layer", role.layer.map(|l| l.to_string()));
    part("expert", role.expert.map(|e| e.to_string()));
    for line in &choice.trace {
        let _ = write!(text, "\n  {line}");
    }
    let _ = write!(text, "\n  = {}", verdict(choice));
    Ok(text)
}

fn verdict(choice: &Choice) -> String {
    let mut text = match &choice.action {
        Action::Keep => format!("{}, kept", choice.source_format),
        Action::Encode { spec, method } => format!("{spec}, method {method}"),
    };
    if let Action::Encode { spec, .. } = &choice.action
        && let Ok(layout) = spec.layout(Order::X16, choice.n, choice.k)
    {
        let bpw = layout.bytes() as f64 * 8.0 / (choice.n as f64 * choice.k as f64);
        let _ = write!(text, ", {} bytes, {bpw:.3} bits per weight", layout.bytes());
    }
    for (name, value) in [("tier", &choice.tier), ("device", &choice.device)] {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    text
}
