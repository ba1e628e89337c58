//! Charts as SVG: lines and points over two axes, bars.

use super::axis::{Axis, plain};
use super::html::escape;
use std::fmt::Write as _;

/// Colours of the style sheet.
const COLOURS: usize = 8;
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Height of a line of the legend, and of a bar.
const ROW: f64 = 20.0;

/// A place in a chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// The 95 % interval of `y`.
    pub range: Option<[f64; 2]>,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

/// Lines through points, one colour for each series, with a legend below if there are several.
#[must_use]
pub fn lines(x: &Axis, y: &Axis, series: &[Series]) -> String {
    let mut body = frame(x, y);
    for (i, s) in series.iter().enumerate() {
        let colour = i % COLOURS;
        let path: Vec<String> = s.points.iter().map(|p| format!("{:.1},{:.1}", across(x, p.x), down(y, p.y))).collect();
        let _ = write!(body, "<polyline class=\"l{colour}\" points=\"{}\"/>", path.join(" "));
        for p in &s.points {
            body.push_str(&point(x, y, p, colour, &s.name));
        }
    }
    let height = if series.len() > 1 { HEIGHT + legend(&mut body, series) } else { HEIGHT };
    svg(height, &body)
}

/// One point for each series, with its name beside it, and a line through those that no other one beats: a smaller x and
/// a smaller y are better.
#[must_use]
pub fn frontier(x: &Axis, y: &Axis, series: &[Series]) -> String {
    let mut body = frame(x, y);
    let all: Vec<&Point> = series.iter().filter_map(|s| s.points.first()).collect();
    let mut best: Vec<&Point> = all.iter().copied().filter(|p| !all.iter().any(|q| beats(q, p))).collect();
    best.sort_by(|a, b| a.x.total_cmp(&b.x));
    let path: Vec<String> = best.iter().map(|p| format!("{:.1},{:.1}", across(x, p.x), down(y, p.y))).collect();
    let _ = write!(body, "<polyline class=\"front\" points=\"{}\"/>", path.join(" "));
    for (i, s) in series.iter().enumerate() {
        let Some(p) = s.points.first() else { continue };
        body.push_str(&point(x, y, p, i % COLOURS, &s.name));
        // To the left of a point that lies far to the right, and below it, as the line comes from above.
        let (at, up, anchor) = if x.at(p.x) > 0.7 { (-9.0, -14.0, "end") } else { (9.0, 6.0, "start") };
        let _ = write!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            across(x, p.x) + at,
            down(y, p.y) - up,
            escape(&shorten(&s.name, 34))
        );
    }
    svg(HEIGHT, &body)
}

fn beats(a: &Point, b: &Point) -> bool {
    a.x <= b.x && a.y <= b.y && (a.x < b.x || a.y < b.y)
}

/// A bar with its label to the left and its value to the right.
#[derive(Clone, Debug)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub range: Option<[f64; 2]>,
    /// After the value.
    pub note: String,
}

/// Bars that lie, in the order given.
#[must_use]
pub fn bars(axis: &Axis, bars: &[Bar]) -> String {
    let (label, note) = (190.0, 170.0);
    let width = WIDTH - label - note;
    let bottom = TOP + ROW * bars.len() as f64;
    let mut body = String::new();
    for (value, text) in &axis.ticks {
        let x = label + axis.at(*value) * width;
        let _ = write!(
            body,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            escape(text)
        );
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let long = axis.at(bar.value) * width;
        let _ = write!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"f0\" x=\"{label}\" y=\"{:.1}\" width=\"{long:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
            label - 8.0,
            y + 14.0,
            escape(&shorten(&bar.label, 28)),
            y + 4.0,
            ROW - 8.0,
            escape(&bar.label),
            plain(bar.value),
        );
        let mut end = label + long;
        if let Some(range) = bar.range {
            let [low, high] = range.map(|v| label + axis.at(v) * width);
            let middle = y + ROW / 2.0;
            let _ = write!(
                body,
                "<line class=\"whisker\" stroke=\"currentColor\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>"
            );
            end = end.max(high);
        }
        let _ = write!(
            body,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{} {}</text>",
            end + 6.0,
            y + 14.0,
            plain(bar.value),
            escape(&bar.note)
        );
    }
    let _ = write!(
        body,
        "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        label + width / 2.0,
        bottom + 34.0,
        escape(&axis.label)
    );
    svg(bottom + 42.0, &body)
}

fn svg(height: f64, body: &str) -> String {
    format!(
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {WIDTH} {height:.0}\" xmlns=\"http://www.w3.org/2000/svg\">{body}</svg>"
    )
}

fn across(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)
}

fn down(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)
}

fn frame(x: &Axis, y: &Axis) -> String {
    let mut out = String::new();
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, text) in &y.ticks {
        let at = down(y, *value);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 7.0,
            at + 4.0,
            escape(text)
        );
    }
    for (value, text) in &x.ticks {
        let at = across(x, *value);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
             <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 18.0,
            escape(text)
        );
    }
    let middle = (TOP + bottom) / 2.0;
    let _ = write!(
        out,
        "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/>\
         <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"soft\" transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        right - LEFT,
        bottom - TOP,
        (LEFT + right) / 2.0,
        HEIGHT - 8.0,
        escape(&x.label),
        escape(&y.label)
    );
    out
}

/// A dot, its interval, and its value for those who point at it.
fn point(x: &Axis, y: &Axis, p: &Point, colour: usize, name: &str) -> String {
    let (cx, cy) = (across(x, p.x), down(y, p.y));
    let mut out = String::new();
    if let Some([low, high]) = p.range {
        let _ = write!(
            out,
            "<line class=\"whisker l{colour}\" x1=\"{cx:.1}\" x2=\"{cx:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            down(y, low),
            down(y, high)
        );
    }
    let _ = write!(
        out,
        "<circle class=\"f{colour}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\"><title>{}: {}</title></circle>",
        escape(name),
        plain(p.y)
    );
    out
}

/// One line for each series below the chart; returns how high that is.
fn legend(out: &mut String, series: &[Series]) -> f64 {
    for (i, s) in series.iter().enumerate() {
        let (y, colour) = (HEIGHT + 12.0 + ROW * i as f64, i % COLOURS);
        let _ = write!(
            out,
            "<circle class=\"f{colour}\" cx=\"{}\" cy=\"{:.1}\" r=\"5\"/><text x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT + 6.0,
            y - 4.0,
            LEFT + 18.0,
            y,
            escape(&shorten(&s.name, 90))
        );
    }
    ROW * series.len() as f64 + 4.0
}

/// At most `most` characters.
fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        let points = points.iter().map(|&(x, y)| Point { x, y, range: Some([y * 0.9, y * 1.1]) }).collect();
        Series { name: name.into(), points }
    }

    #[test]
    fn every_series_has_its_line_its_dots_and_a_legend() {
        let all = [series("one", &[(1.0, 2.0), (2.0, 3.0)]), series("two", &[(1.0, 4.0)])];
        let out = lines(&Axis::linear("x", [1.0, 2.0], false), &Axis::linear("y", [2.0, 4.0], true), &all);
        assert_eq!((out.matches("<polyline").count(), out.matches("<circle").count()), (2, 3 + 2));
        assert!(out.contains(">one<") && out.contains(">two<"));
    }

    #[test]
    fn the_frontier_runs_through_what_is_not_beaten() {
        let all = [series("a", &[(1.0, 3.0)]), series("b", &[(2.0, 1.0)]), series("worse", &[(2.5, 2.0)])];
        let out = frontier(&Axis::linear("x", [1.0, 3.0], false), &Axis::linear("y", [1.0, 3.0], false), &all);
        let path = out.split("class=\"front\" points=\"").nth(1).and_then(|s| s.split('"').next()).unwrap();
        assert_eq!(path.split(' ').count(), 2, "{path}");
    }

    #[test]
    fn names_are_escaped_everywhere() {
        let evil = "</svg><script>";
        let all = [series(evil, &[(1.0, 1.0)]), series(evil, &[(2.0, 2.0)])];
        let axis = || Axis::linear(evil, [1.0, 2.0], true);
        let bar = Bar { label: evil.into(), value: 1.0, range: None, note: evil.into() };
        for out in [lines(&axis(), &axis(), &all), frontier(&axis(), &axis(), &all), bars(&axis(), &[bar])] {
            assert!(!out.contains("<script") && out.matches("</svg>").count() == 1, "{out}");
        }
    }

    #[test]
    fn figures_that_are_no_numbers_make_no_broken_coordinates() {
        let all = [series("a", &[(f64::NAN, f64::INFINITY), (1.0, f64::NAN)])];
        let out = lines(&Axis::log("x", [f64::NAN]), &Axis::log("y", [0.0]), &all);
        assert!(!out.contains("NaN\"") && !out.contains("inf\"") && !out.contains("NaN,"), "{out}");
    }
}
