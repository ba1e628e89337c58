//! `--report`: one HTML page about one or several models beside their reference. It loads nothing and runs nothing.

mod axis;
mod chart;
mod heat;
mod html;

use super::anatomy::{Anatomy, Sum};
use super::show::Evaluated;
use crate::units;
use ashlar_runtime::eval::{Ablation, Quality, RoutingFigures, verdict};
use axis::{Axis, plain};
use chart::{Bar, Point, Series};
use heat::Heat;
use html::{Cell, escape, figure, page, section, table};

/// What was measured on what.
pub struct About {
    /// Name of the text's file.
    pub text: String,
    /// Name of the reference.
    pub reference: String,
    /// Tokens per window.
    pub ctx: usize,
    /// Where it ran.
    pub device: String,
}

/// Bars of an ablation at most.
const BARS: usize = 60;
/// Tensors that stand out, at most.
const WORST: usize = 20;

/// The page.
#[must_use]
pub fn render(all: &[Evaluated], about: &About) -> String {
    let names = names(all);
    let title = match names.as_slice() {
        [one] => format!("Quality of {one}"),
        _ => format!("Quality of {} models", all.len()),
    };
    let (tokens, windows) = all.first().map_or((0, 0), |e| (e.comparison.model.tokens, e.comparison.model.windows));
    let mut body = format!(
        "<h1>{}</h1>\n<p class=\"about\">beside {} · text {}: {} tokens in {windows} windows of {} · {} · ashlar {}</p>\n",
        escape(&title),
        escape(&about.reference),
        escape(&about.text),
        units::thousands(tokens as u64),
        about.ctx,
        escape(&about.device),
        env!("CARGO_PKG_VERSION")
    );
    body.push_str(&summary(all, &names));
    body.push_str(&predictions(all, &names));
    for (one, name) in all.iter().zip(&names) {
        body.push_str(&format!("<h3>{}</h3>\n", escape(name)));
        body.push_str(&anatomy(&one.facts.anatomy));
        if let Some(routing) = &one.comparison.routing {
            body.push_str(&experts(routing));
        }
        if let Some(ablation) = &one.ablation {
            body.push_str(&ablated(ablation));
        }
    }
    page(&title, &body)
}

/// The last parts of the paths; the whole paths where these are the same.
fn names(all: &[Evaluated]) -> Vec<String> {
    let short = |e: &Evaluated| e.facts.path.file_name().map(|n| n.to_string_lossy().into_owned());
    let whole = |e: &Evaluated| e.facts.path.display().to_string();
    let unique = |name: &String| all.iter().filter(|e| short(e).as_ref() == Some(name)).count() == 1;
    all.iter().map(|e| short(e).filter(unique).unwrap_or_else(|| whole(e))).collect()
}

fn summary(all: &[Evaluated], names: &[String]) -> String {
    let head = [
        "model",
        "size",
        "bits",
        "quality",
        "mean KL (95 %)",
        "99.9 % KL",
        "same top",
        "perplexity",
        "same experts",
        "gates",
    ];
    let rows: Vec<Vec<Cell>> = all.iter().zip(names).map(|(e, name)| summary_row(e, name)).collect();
    let mut text = table(&head, &rows);
    let why: Vec<Vec<Cell>> = all
        .iter()
        .zip(names)
        .flat_map(|(e, name)| {
            let because = verdict(&e.comparison, e.continuations.as_ref()).because;
            because.into_iter().map(|b| vec![Cell::Text(name.clone()), Cell::Text(b)])
        })
        .collect();
    if !why.is_empty() {
        text.push_str("<details><summary>What keeps each from a better class</summary>\n");
        text.push_str(&table(&["model", "because"], &why));
        text.push_str("</details>\n");
    }
    if all.len() > 1 {
        let bytes = |e: &Evaluated| e.facts.bytes as f64 / scale(all).1;
        let x = Axis::linear(&format!("weights, {}", scale(all).0), all.iter().map(bytes), false);
        let spread = all.iter().flat_map(|e| [e.comparison.kl.mean, e.comparison.kl.ci95[0], e.comparison.kl.ci95[1]]);
        let y = Axis::log("mean KL, nats", spread);
        let series: Vec<Series> = all
            .iter()
            .zip(names)
            .map(|(e, name)| {
                let kl = &e.comparison.kl;
                Series { name: name.clone(), points: vec![Point { x: bytes(e), y: kl.mean, range: Some(kl.ci95) }] }
            })
            .collect();
        let caption =
            "Size against KL divergence; down and to the left is better. Dashed: not beaten in both by any other.";
        text.push_str(&figure(caption, &chart::frontier(&x, &y, &series)));
    }
    let about = "KL divergence tells how far the predicted probabilities are from the reference's, in nats; 0 is identical. \
                 Same top: how often both find the same token most probable. docs/eval.md defines every figure.";
    section("Summary", about, &text)
}

/// The unit of sizes that suits the largest.
fn scale(all: &[Evaluated]) -> (&'static str, f64) {
    if all.iter().any(|e| e.facts.bytes >= 1_000_000_000) { ("GB", 1e9) } else { ("MB", 1e6) }
}

fn summary_row(e: &Evaluated, name: &str) -> Vec<Cell> {
    let c = &e.comparison;
    let quality = verdict(c, e.continuations.as_ref()).quality;
    let kind = match quality {
        Quality::Transparent | Quality::Excellent | Quality::Good => "fine",
        Quality::Usable | Quality::LastResort => "fair",
        Quality::Poor | Quality::Reject => "bad",
    };
    let missed: Vec<&str> = e.gates.iter().filter(|g| !g.passed).map(|g| g.key).collect();
    let gates = match (e.gates.len(), missed.as_slice()) {
        (0, _) => Cell::Text(if e.unchecked.is_some() { "not checked" } else { "none" }.to_owned()),
        (_, []) => Cell::Badge("fine", "passed".to_owned()),
        _ => Cell::Badge("bad", format!("missed {}", missed.join(", "))),
    };
    let [low, high] = c.kl.ci95;
    vec![
        Cell::Text(name.to_owned()),
        Cell::Number(units::bytes(e.facts.bytes)),
        Cell::Number(format!("{:.2}", e.facts.bpw)),
        Cell::Badge(kind, quality.to_string()),
        Cell::Number(format!("{} ({}–{})", plain(c.kl.mean), plain(low), plain(high))),
        Cell::Number(plain(c.kl.p999)),
        Cell::Number(format!("{:.2} %", 100.0 * c.top1)),
        Cell::Number(format!("{:.3} ({:+.2} %)", c.model.perplexity, 100.0 * (c.ratio.value - 1.0))),
        Cell::Number(c.routing.as_ref().map_or_else(|| "–".to_owned(), |r| format!("{:.2} %", 100.0 * r.overlap))),
        gates,
    ]
}

fn predictions(all: &[Evaluated], names: &[String]) -> String {
    let mut body = figure("How KL is distributed: the value that so many tokens stay below", &quantiles(all, names));
    if all.iter().any(|e| e.comparison.positions.len() > 1) {
        body.push_str(&figure(
            "Mean KL by position in the window, with 95 % intervals; a rise to the right is drift in longer contexts",
            &positions(all, names),
        ));
    }
    if all.iter().any(|e| e.comparison.routing.is_some()) {
        body.push_str(&figure("Choices of experts shared with the reference, by layer", &overlap(all, names)));
    }
    let written: Vec<Vec<Cell>> = all.iter().zip(names).filter_map(|(e, name)| continuations_row(e, name)).collect();
    if !written.is_empty() {
        let head = ["greedy continuations", "same as the reference for", "identical", "repeated 4-grams", "loops"];
        body.push_str(&table(&head, &written));
    }
    section("Predictions", "Where the models' predictions part from the reference's.", &body)
}

fn continuations_row(e: &Evaluated, name: &str) -> Option<Vec<Cell>> {
    let c = e.continuations.as_ref()?;
    let both = |a: f64, b: f64| format!("{:.1} % (reference {:.1} %)", 100.0 * a, 100.0 * b);
    Some(vec![
        Cell::Text(format!("{name}, {} prompts", c.prompts)),
        Cell::Number(format!("{} of {} tokens (median)", plain(c.first_difference), c.tokens)),
        Cell::Number(format!("{:.0} %", 100.0 * c.identical)),
        Cell::Number(both(c.model.repeated, c.reference.repeated)),
        Cell::Number(both(c.model.looping, c.reference.looping)),
    ])
}

fn quantiles(all: &[Evaluated], names: &[String]) -> String {
    let x = Axis::named("share of tokens below", &["50 %", "90 %", "99 %", "99.9 %", "all"].map(String::from));
    let values = |e: &Evaluated| {
        let kl = &e.comparison.kl;
        [kl.median, kl.p90, kl.p99, kl.p999, kl.max]
    };
    let y = Axis::log("KL, nats", all.iter().flat_map(values));
    let series = all.iter().zip(names).map(|(e, name)| {
        let points = values(e).into_iter().enumerate().map(|(i, y)| Point { x: i as f64, y, range: None });
        Series { name: name.clone(), points: points.collect() }
    });
    chart::lines(&x, &y, &series.collect::<Vec<_>>())
}

fn positions(all: &[Evaluated], names: &[String]) -> String {
    let longest = all.iter().max_by_key(|e| e.comparison.positions.len());
    let stretches = longest.map(|e| e.comparison.positions.as_slice()).unwrap_or_default();
    let ticks: Vec<String> = stretches.iter().map(|s| format!("{}–{}", s.from, s.to - 1)).collect();
    let x = Axis::named("position in the window, tokens", &ticks);
    let spread =
        all.iter().flat_map(|e| &e.comparison.positions).flat_map(|s| [s.kl.value, s.kl.ci95[0], s.kl.ci95[1]]);
    let y = Axis::log("mean KL, nats", spread);
    let series = all.iter().zip(names).map(|(e, name)| {
        let point = |(i, s): (usize, &ashlar_runtime::eval::Stretch)| Point {
            x: i as f64,
            y: s.kl.value,
            range: Some(s.kl.ci95),
        };
        Series { name: name.clone(), points: e.comparison.positions.iter().enumerate().map(point).collect() }
    });
    chart::lines(&x, &y, &series.collect::<Vec<_>>())
}

fn overlap(all: &[Evaluated], names: &[String]) -> String {
    let layers = |e: &Evaluated| e.comparison.routing.as_ref().map(|r| r.layers.clone()).unwrap_or_default();
    let values: Vec<_> = all.iter().flat_map(layers).collect();
    let x = Axis::linear("layer", values.iter().map(|l| l.layer as f64), false);
    let y = Axis::linear("shared, %", values.iter().map(|l| 100.0 * l.overlap).chain([100.0]), false);
    let series = all.iter().zip(names).map(|(e, name)| {
        let points = layers(e).iter().map(|l| Point { x: l.layer as f64, y: 100.0 * l.overlap, range: None }).collect();
        Series { name: name.clone(), points }
    });
    chart::lines(&x, &y, &series.collect::<Vec<_>>())
}

/// Bits and errors of a model's projections.
fn anatomy(anatomy: &Anatomy) -> String {
    let map = |unit: &str, absent, log, value: fn(&Sum) -> Option<f64>| {
        let rows = anatomy.parts.iter().filter(|p| p.layers.iter().any(|s| s.parameters > 0));
        let rows = rows.map(|p| (p.label.clone(), p.layers.iter().map(value).collect()));
        Heat { across: "layer".into(), unit: unit.into(), rows: rows.collect(), absent, log, range: None }
    };
    let bits = map("bits per weight", "", false, Sum::bits);
    let errors = map("relative squared error", "kept bit for bit", true, Sum::error);
    let mut body = figure("Bits per weight, by projection and layer", &bits.svg());
    let measured = anatomy.parts.iter().any(|p| p.total().error().is_some());
    if measured {
        let caption = "What quantizing lost, Σ(w−ŵ)²/Σw², as the conversion stored it";
        body.push_str(&figure(caption, &errors.svg()));
    }
    let rows: Vec<Vec<Cell>> = anatomy.parts.iter().map(|p| part_row(&p.label, &p.total())).collect();
    body.push_str(&table(&["part", "weights", "bytes", "bits per weight", "relative squared error"], &rows));
    if !anatomy.outstanding.is_empty() {
        let rows: Vec<Vec<Cell>> = anatomy
            .outstanding
            .iter()
            .take(WORST)
            .map(|o| vec![Cell::Text(o.tensor.clone()), Cell::Number(plain(o.error)), Cell::Number(plain(o.times))])
            .collect();
        let count = anatomy.outstanding.len();
        body.push_str(&format!(
            "<p>{count} tensors lost more than 4 times the median of their class and format:</p>\n"
        ));
        body.push_str(&table(&["tensor", "relative squared error", "times the median"], &rows));
    }
    section("Bits and errors", "Where the bits went, and what was lost there. Norms are left out.", &body)
}

fn part_row(label: &str, total: &Sum) -> Vec<Cell> {
    vec![
        Cell::Text(label.to_owned()),
        Cell::Number(units::count(total.parameters)),
        Cell::Number(units::bytes(total.bytes)),
        Cell::Number(format!("{:.2}", total.bits().unwrap_or_default())),
        Cell::Number(total.error().map_or_else(|| "kept".to_owned(), plain)),
    ]
}

/// How often each expert was used, beside an even share.
fn experts(routing: &RoutingFigures) -> String {
    let row = |usage: &[u64]| {
        let even = usage.iter().sum::<u64>() as f64 / usage.len().max(1) as f64;
        usage.iter().map(|n| (*n > 0).then(|| *n as f64 / even)).collect()
    };
    let rows = routing.layers.iter().map(|l| (format!("layer {}", l.layer), row(&l.usage)));
    let heat = Heat {
        across: "expert".into(),
        unit: "times an even share (logarithmic)".into(),
        rows: rows.collect(),
        absent: "never chosen",
        log: true,
        range: Some([0.125, 8.0]),
    };
    let never: usize = routing.layers.iter().map(|l| l.usage.iter().filter(|n| **n == 0).count()).sum();
    let all: usize = routing.layers.iter().map(|l| l.usage.len()).sum();
    let caption = format!("Tokens sent to each expert on this text; {never} of {all} experts were never chosen");
    section("Experts", "Which experts this text uses. Another text may use others.", &figure(&caption, &heat.svg()))
}

fn ablated(ablation: &Ablation) -> String {
    let shown: Vec<_> = ablation.parts.iter().take(BARS).collect();
    let spread = shown.iter().flat_map(|p| [p.kl.value, p.kl.ci95[1]]);
    let axis = Axis::linear("mean KL to the reference, nats", spread, true);
    let bars: Vec<Bar> = shown
        .iter()
        .map(|p| Bar {
            label: p.label(),
            value: p.kl.value,
            range: Some(p.kl.ci95),
            note: format!("saves {}", units::bytes(p.reference_bytes.saturating_sub(p.bytes))),
        })
        .collect();
    let rest = ablation.parts.len() - shown.len() + ablation.left_out;
    let mut caption = format!("{} tokens for each part, with 95 % intervals", units::thousands(ablation.tokens as u64));
    if rest > 0 {
        caption.push_str(&format!("; {rest} cheaper or smaller parts are not shown"));
    }
    let about = "The reference with only this part taken from the pack: where more bits would help most.";
    section("What costs most", about, &figure(&caption, &chart::bars(&axis, &bars)))
}
