//! Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing with `--quiet`.

use crate::units;
use ashlar_tensor::Report;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the amounts of a stage count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of weights.
    Bytes,
    /// Tokens of a text.
    Tokens,
    /// Rounds of a measurement.
    Rounds,
}

impl Unit {
    fn show(self, amount: u64) -> String {
        match self {
            Self::Bytes => units::bytes(amount),
            Self::Tokens => format!("{} tokens", units::count(amount)),
            Self::Rounds => format!("{amount} rounds"),
        }
    }
}

/// A [`Report`] for people who watch.
#[derive(Debug)]
pub struct Progress {
    unit: Unit,
    style: Style,
}

#[derive(Debug)]
enum Style {
    Quiet,
    Bar(Mutex<ProgressBar>),
    Lines(Mutex<Lines>),
}

impl Progress {
    /// Chooses the style: nothing if `quiet`, a bar if stderr is a terminal, else lines.
    #[must_use]
    pub fn new(quiet: bool, unit: Unit) -> Self {
        let style = if quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
            Style::Bar(Mutex::new(ProgressBar::hidden()))
        } else {
            Style::Lines(Mutex::new(Lines::default()))
        };
        Self { unit, style }
    }
}

impl Report for Progress {
    fn begin(&self, stage: &str, total: u64) {
        match &self.style {
            Style::Quiet => {}
            Style::Bar(bar) => *lock(bar) = new_bar(stage, total, self.unit),
            Style::Lines(lines) => lock(lines).begin(stage, total),
        }
    }

    fn advance(&self, amount: u64, current: &str) {
        match &self.style {
            Style::Quiet => {}
            Style::Bar(bar) => {
                let bar = lock(bar);
                bar.inc(amount);
                bar.set_message(shorten(current, 44));
            }
            Style::Lines(lines) => {
                if let Some(line) = lock(lines).advance(amount, current, self.unit, Instant::now()) {
                    crate::output::say(&line);
                }
            }
        }
    }

    fn note(&self, text: &str) {
        match &self.style {
            Style::Quiet => {}
            Style::Bar(bar) => lock(bar).suspend(|| crate::output::say(&format!("note: {text}"))),
            Style::Lines(_) => crate::output::say(&format!("note: {text}")),
        }
    }

    fn end(&self) {
        match &self.style {
            Style::Quiet => {}
            Style::Bar(bar) => lock(bar).finish_and_clear(),
            Style::Lines(lines) => {
                if let Some(line) = lock(lines).end(self.unit) {
                    crate::output::say(&line);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere leaves at worst a wrong number on the screen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_bar(stage: &str, total: u64, unit: Unit) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template = "{prefix} [{bar:24}] {done} of {all}, {speed}, {left} left  {wide_msg}";
    let style = ProgressStyle::with_template(template).map(|style| {
        style
            .progress_chars("=> ")
            .with_key("done", key(move |s| unit.show(s.pos())))
            .with_key("all", key(move |s| unit.show(s.len().unwrap_or(0))))
            .with_key("speed", key(move |s| format!("{}/s", unit.show(s.per_sec() as u64))))
            .with_key("left", key(|s| units::duration(s.eta().as_secs_f64())))
    });
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(stage.to_owned());
    bar
}

fn key(
    show: impl Fn(&ProgressState) -> String + Clone + Send + Sync + 'static,
) -> impl Fn(&ProgressState, &mut dyn std::fmt::Write) + Clone + Send + Sync + 'static {
    move |state, out| {
        // The bar's own buffer takes every string.
        let _ = out.write_str(&show(state));
    }
}

/// The end of a long name says more than its beginning.
fn shorten(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(length - width + 1)).collect()
}

/// Plain lines, at most one per [`Lines::EVERY`].
#[derive(Debug, Default)]
struct Lines {
    stage: String,
    done: u64,
    total: u64,
    started: Option<Instant>,
    printed: Option<Instant>,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(5);

    fn begin(&mut self, stage: &str, total: u64) {
        let now = Some(Instant::now());
        *self = Self { stage: stage.to_owned(), done: 0, total, started: now, printed: now };
    }

    fn advance(&mut self, amount: u64, current: &str, unit: Unit, now: Instant) -> Option<String> {
        self.done += amount;
        let waited = now.duration_since(self.printed?);
        if waited < Self::EVERY {
            return None;
        }
        self.printed = Some(now);
        let seconds = now.duration_since(self.started?).as_secs_f64().max(1e-3);
        let rate = self.done as f64 / seconds;
        let mut line = format!("{}: {} of {}", self.stage, unit.show(self.done), unit.show(self.total));
        if let Some(percent) = (self.done * 100).checked_div(self.total) {
            let _ = write!(line, " ({percent} %)");
        }
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1e-9);
        let _ = write!(line, ", {}/s, {} left", unit.show(rate as u64), units::duration(left));
        if !current.is_empty() {
            let _ = write!(line, ", {current}");
        }
        Some(line)
    }

    fn end(&mut self, unit: Unit) -> Option<String> {
        let seconds = self.started.take()?.elapsed().as_secs_f64();
        self.printed = None;
        (seconds >= 1.0).then(|| format!("{}: {} in {}", self.stage, unit.show(self.done), units::duration(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_rate_limited_and_tell_rate_time_left_and_tensor() {
        let mut lines = Lines::default();
        lines.begin("convert", 4_000_000_000);
        let start = lines.started.unwrap();
        assert_eq!(lines.advance(1_000_000_000, "a", Unit::Bytes, start + Duration::from_secs(4)), None);
        let line = lines.advance(1_000_000_000, "b.weight", Unit::Bytes, start + Duration::from_secs(10));
        assert_eq!(line.as_deref(), Some("convert: 2.00 GB of 4.00 GB (50 %), 200 MB/s, 10.0 s left, b.weight"));
        assert_eq!(lines.advance(1, "c", Unit::Bytes, start + Duration::from_secs(11)), None);
        lines.started = start.checked_sub(Duration::from_secs(20));
        assert_eq!(lines.end(Unit::Bytes).as_deref(), Some("convert: 2.00 GB in 20.0 s"));
        assert_eq!(lines.end(Unit::Bytes), None, "a stage ends once");
    }

    #[test]
    fn a_short_stage_is_not_worth_a_line() {
        let mut lines = Lines::default();
        lines.begin("load", 10);
        assert_eq!(lines.end(Unit::Bytes), None);
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(shorten("model.layers.0.mlp.experts.5.down_proj.weight", 20), "….5.down_proj.weight");
        assert_eq!(shorten("a", 20), "a");
    }
}
