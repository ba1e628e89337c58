//! Figures for people and for programs.

use super::facts::Facts;
use super::gates::Gate;
use super::quality;
use crate::units;
use ashlar_runtime::eval::{
    Ablation, Comparison, Continuations, Divergence, Estimate, Grouping, Perplexity, Windows, Written, verdict,
};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Everything known of one model.
pub struct Evaluated {
    pub facts: Facts,
    pub comparison: Comparison,
    pub continuations: Option<Continuations>,
    pub ablation: Option<Ablation>,
    pub gates: Vec<Gate>,
    /// Why the recipe's gates are not checked, if they are not.
    pub unchecked: Option<String>,
}

/// Stretches of positions and parts of an ablation that a terminal shows.
const LINES: usize = 20;

impl Evaluated {
    /// Whether nothing is broken and every gate holds.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.comparison.model.non_finite == 0 && self.gates.iter().all(|g| g.passed)
    }

    /// Everything that was measured, without paths.
    #[must_use]
    pub fn figures(&self) -> Value {
        let c = &self.comparison;
        let verdict = verdict(c, self.continuations.as_ref());
        quality::rounded(json!({
            "verdict": {"quality": verdict.quality.to_string(), "because": verdict.because},
            "perplexity": c.model.perplexity,
            "perplexity_ci95": c.model.ci95,
            "tokens": c.model.tokens,
            "windows": c.model.windows,
            "non_finite": c.model.non_finite,
            "reference_perplexity": c.reference.perplexity,
            "perplexity_delta": c.delta,
            "perplexity_delta_ci95": c.delta_ci95,
            "perplexity_ratio": estimate_json(&c.ratio),
            "kl": kl_json(&c.kl),
            "delta_p": {"mean": estimate_json(&c.delta_p.mean), "rms": estimate_json(&c.delta_p.rms)},
            "top1": c.top1,
            "top1_ci95": c.top1_ci95,
            "positions": c.positions.iter().map(|s| json!({
                "from": s.from, "to": s.to, "tokens": s.tokens, "kl": estimate_json(&s.kl), "top1": s.top1,
            })).collect::<Vec<_>>(),
            "router_overlap": c.routing.as_ref().map(|r| json!({
                "all": r.overlap,
                "layers": r.layers.iter().map(|l| json!({"layer": l.layer, "overlap": l.overlap})).collect::<Vec<_>>(),
            })),
            "weight_errors": self.facts.anatomy.errors_json(),
            "continuations": self.continuations.as_ref().map(continuations_json),
            "ablation": self.ablation.as_ref().map(ablation_json),
            "gates": self.gates.iter().map(Gate::json).collect::<Vec<_>>(),
            "gates_not_checked": self.unchecked,
        }))
    }

    /// The JSON of the command.
    #[must_use]
    pub fn json(&self, windows: &Windows, device: &str) -> Value {
        let mut all = self.figures();
        if let Some(object) = all.as_object_mut() {
            object.insert("source".into(), self.facts.path.display().to_string().into());
            object.insert("bytes".into(), self.facts.bytes.into());
            object.insert("bpw".into(), self.facts.bpw.into());
            object.insert("reference_is_source".into(), self.facts.is_from_reference().into());
            object.insert("ctx".into(), windows.ctx().into());
            object.insert("device".into(), device.into());
        }
        all
    }

    /// For people.
    #[must_use]
    pub fn text(&self, titled: bool) -> String {
        let mut out = String::new();
        if titled {
            let (path, size) = (self.facts.path.display(), units::bytes(self.facts.bytes));
            let _ = writeln!(out, "{path}: {size}, {:.2} bits per weight", self.facts.bpw);
        }
        out.push_str(&comparison_text(&self.comparison));
        if let Some(c) = &self.continuations {
            out.push_str(&continuations_text(c));
        }
        let verdict = verdict(&self.comparison, self.continuations.as_ref());
        let _ = writeln!(out, "quality         {}", verdict.quality);
        for why in &verdict.because {
            let _ = writeln!(out, "                {why}");
        }
        if self.facts.source_identity.is_some() && !self.facts.is_from_reference() {
            out.push_str("note            the reference is not the model that the pack was made from\n");
        }
        if let Some(worst) = self.facts.anatomy.outstanding.first() {
            let _ = writeln!(
                out,
                "weights         {} tensors lost more than 4 times the median of their like; most: {} ({:.1} times)",
                self.facts.anatomy.outstanding.len(),
                worst.tensor,
                worst.times
            );
        }
        if let Some(why) = &self.unchecked {
            let _ = writeln!(out, "note            the recipe's quality gates are not checked: {why}");
        }
        for gate in &self.gates {
            let _ = writeln!(out, "gate            {}", gate.text());
        }
        if let Some(a) = &self.ablation {
            out.push_str(&ablation_text(a));
        }
        out
    }
}

/// For people: perplexity alone.
#[must_use]
pub fn perplexity_text(p: &Perplexity) -> String {
    let mut out = format!(
        "perplexity {:.3} (95 %: {:.3} to {:.3}) over {} tokens\n",
        p.perplexity, p.ci95[0], p.ci95[1], p.tokens
    );
    out.push_str(&non_finite_text(p));
    out
}

/// For programs: perplexity alone.
#[must_use]
pub fn perplexity_json(p: &Perplexity, windows: &Windows, device: &str) -> Value {
    json!({
        "perplexity": p.perplexity,
        "perplexity_ci95": p.ci95,
        "tokens": p.tokens,
        "windows": p.windows,
        "non_finite": p.non_finite,
        "kl": null,
        "ctx": windows.ctx(),
        "device": device,
    })
}

fn non_finite_text(p: &Perplexity) -> String {
    if p.non_finite == 0 {
        return String::new();
    }
    format!("BROKEN          {} predictions are left out: their logits are not finite numbers\n", p.non_finite)
}

/// For people: a comparison.
#[must_use]
pub fn comparison_text(c: &Comparison) -> String {
    let percent = |e: &Estimate| {
        let [low, high] = e.ci95.map(|v| 100.0 * v);
        format!("{:+.3} % (95 %: {low:+.3} to {high:+.3})", 100.0 * e.value)
    };
    let mut out = format!(
        "perplexity      {:.3}, reference {:.3}: {:+.3} (95 %: {:+.3} to {:+.3}) over {} tokens\n\
         KL divergence   mean {:.5} nats (95 %: {:.5} to {:.5}); half below {:.5}, 90 % below {:.4}, 99 % below {:.4}, \
         99.9 % below {:.4}\n\
         right token's p {}, RMS {:.2} %\n\
         same top token  {:.2} % (95 %: {:.2} to {:.2})\n",
        c.model.perplexity,
        c.reference.perplexity,
        c.delta,
        c.delta_ci95[0],
        c.delta_ci95[1],
        c.model.tokens,
        c.kl.mean,
        c.kl.ci95[0],
        c.kl.ci95[1],
        c.kl.median,
        c.kl.p90,
        c.kl.p99,
        c.kl.p999,
        percent(&c.delta_p.mean),
        100.0 * c.delta_p.rms.value,
        100.0 * c.top1,
        100.0 * c.top1_ci95[0],
        100.0 * c.top1_ci95[1],
    );
    if let Some(r) = &c.routing {
        let _ = write!(out, "same experts    {:.2} %", 100.0 * r.overlap);
        if let Some(worst) = r.layers.iter().min_by(|a, b| a.overlap.total_cmp(&b.overlap)) {
            let _ = write!(out, " (least in layer {}: {:.2} %)", worst.layer, 100.0 * worst.overlap);
        }
        out.push('\n');
    }
    let stretches: Vec<String> =
        c.positions.iter().take(LINES).map(|s| format!("{}-{}: {:.5}", s.from, s.to - 1, s.kl.value)).collect();
    if stretches.len() > 1 {
        let _ = writeln!(out, "KL by position  {}", stretches.join(", "));
    }
    out.push_str(&non_finite_text(&c.model));
    out
}

fn continuations_text(c: &Continuations) -> String {
    let written = |w: &Written| format!("{:.1} % ({:.0} % loop)", 100.0 * w.repeated, 100.0 * w.looping);
    format!(
        "continuations   of {} prompts: {} of {} tokens as the reference (median), {:.0} % identical; repeated 4-grams {}, \
         reference {}\n",
        c.prompts,
        c.first_difference,
        c.tokens,
        100.0 * c.identical,
        written(&c.model),
        written(&c.reference),
    )
}

fn ablation_text(a: &Ablation) -> String {
    let mut table =
        crate::table::Table::new(&["only this from the pack", ">mean KL", ">95 %", ">same top", ">bytes", ">saved"]);
    for p in a.parts.iter().take(LINES) {
        table.row([
            p.label(),
            format!("{:.6}", p.kl.value),
            format!("{:.6} to {:.6}", p.kl.ci95[0], p.kl.ci95[1]),
            format!("{:.2} %", 100.0 * p.top1),
            units::bytes(p.bytes),
            units::bytes(p.reference_bytes.saturating_sub(p.bytes)),
        ]);
    }
    let mut out = format!("\nwhat costs most, over {} tokens:\n\n{}", a.tokens, table.render());
    let hidden = a.parts.len().saturating_sub(LINES);
    if hidden > 0 {
        let _ = writeln!(out, "  … and {hidden} more (--json and --report show all)");
    }
    if a.left_out > 0 {
        let _ = writeln!(out, "  {} smaller parts were not measured (--ablation-parts)", a.left_out);
    }
    out
}

fn estimate_json(e: &Estimate) -> Value {
    json!({"value": e.value, "ci95": e.ci95})
}

fn kl_json(kl: &Divergence) -> Value {
    json!({
        "mean": kl.mean, "ci95": kl.ci95, "median": kl.median, "p90": kl.p90, "p99": kl.p99, "p999": kl.p999,
        "max": kl.max,
    })
}

fn continuations_json(c: &Continuations) -> Value {
    let written = |w: &Written| json!({"repeated_4grams": w.repeated, "looping": w.looping});
    json!({
        "prompts": c.prompts, "prompt_tokens": c.prompt_tokens, "tokens": c.tokens,
        "first_difference": c.first_difference, "identical": c.identical,
        "model": written(&c.model), "reference": written(&c.reference),
    })
}

fn ablation_json(a: &Ablation) -> Value {
    let grouping = match a.grouping {
        Grouping::Class => "class",
        Grouping::Layer => "layer",
        Grouping::LayerClass => "layer-class",
    };
    let parts = a.parts.iter().map(|p| {
        json!({
            "part": p.label(), "class": p.class, "layer": p.layer, "kl": estimate_json(&p.kl), "top1": p.top1,
            "tensors": p.tensors, "parameters": p.parameters, "bytes": p.bytes, "reference_bytes": p.reference_bytes,
        })
    });
    json!({"by": grouping, "tokens": a.tokens, "left_out": a.left_out, "parts": parts.collect::<Vec<_>>()})
}
