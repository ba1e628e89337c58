//! Heat maps as SVG.

use super::axis::plain;
use super::html::escape;
use std::fmt::Write as _;

/// Values in rows and columns.
#[derive(Clone, Debug)]
pub struct Heat {
    /// What the columns are.
    pub across: String,
    /// What a value is, with its unit.
    pub unit: String,
    /// Label and cells of each row; `None` where there is no value.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
    /// What a cell without a value means; empty if there is none.
    pub absent: &'static str,
    /// Whether colours go by the logarithm.
    pub log: bool,
    /// The values of the first and the last colour; values beyond have these. `None`: the least and the greatest.
    pub range: Option<[f64; 2]>,
}

/// The colours of matplotlib's viridis (CC0), which keep their order in grey and for the colour-blind.
const RAMP: [[u8; 3]; 6] = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];

/// Steps of the ramp in a large map.
const LEVELS: usize = 48;
/// Cells up to which each has its own element and shows its value to those who point at it.
const DETAILED: usize = 4000;
const LABEL: f64 = 130.0;
const TOP: f64 = 6.0;

impl Heat {
    /// The map with its axes and the scale of its colours.
    #[must_use]
    pub fn svg(&self) -> String {
        let columns = self.rows.iter().map(|r| r.1.len()).max().unwrap_or(0);
        let (wide, high) = self.cell(columns);
        let bottom = TOP + high * self.rows.len() as f64;
        let range = self.range();
        let mut body = String::new();
        for (i, (label, _)) in self.rows.iter().enumerate() {
            // Thin rows: not every label has room.
            if high >= 11.0 || i % (11.0 / high).ceil() as usize == 0 {
                let y = TOP + high * (i as f64 + 0.5) + 4.0;
                let _ = write!(
                    body,
                    "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
                    LABEL - 8.0,
                    escape(label)
                );
            }
        }
        if self.rows.len() * columns <= DETAILED {
            self.detailed(&mut body, [wide, high], range);
        } else {
            self.coarse(&mut body, [wide, high], range);
        }
        let every = (30.0 / wide).ceil().max(1.0) as usize;
        for c in (0..columns).step_by(every) {
            let x = LABEL + wide * (c as f64 + 0.5);
            let _ = write!(
                body,
                "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{c}</text>",
                bottom + 15.0
            );
        }
        let _ = write!(
            body,
            "<text class=\"soft\" x=\"{LABEL}\" y=\"{:.1}\">{}</text>",
            bottom + 32.0,
            escape(&self.across)
        );
        self.legend(&mut body, bottom + 44.0, range);
        let (width, height) = ((LABEL + wide * columns as f64 + 24.0).max(460.0), bottom + 84.0);
        format!(
            "<svg role=\"img\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" xmlns=\"http://www.w3.org/2000/svg\">{body}</svg>"
        )
    }

    /// Width and height of a cell.
    fn cell(&self, columns: usize) -> (f64, f64) {
        let wide = (760.0 / columns.max(1) as f64).clamp(4.0, 46.0);
        let high = if self.rows.len() > 24 { 8.0 } else { 22.0 };
        (wide, high)
    }

    fn range(&self) -> [f64; 2] {
        self.range.unwrap_or_else(|| {
            let all = self.rows.iter().flat_map(|r| r.1.iter().flatten()).copied();
            let usable = all.filter(|v| v.is_finite() && (!self.log || *v > 0.0));
            let wider = |r: Option<[f64; 2]>, v: f64| Some(r.map_or([v, v], |[low, high]| [low.min(v), high.max(v)]));
            usable.fold(None, wider).unwrap_or([0.0, 1.0])
        })
    }

    /// 0 to 1 along the ramp.
    fn place(&self, value: f64, [low, high]: [f64; 2]) -> f64 {
        let f = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let place = (f(value) - f(low)) / (f(high) - f(low));
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.5 }
    }

    fn detailed(&self, body: &mut String, [wide, high]: [f64; 2], range: [f64; 2]) {
        for (r, (label, cells)) in self.rows.iter().enumerate() {
            for (c, value) in cells.iter().enumerate() {
                let (x, y) = (LABEL + wide * c as f64, TOP + high * r as f64);
                let at = format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"", wide - 0.8, high - 0.8);
                let Some(value) = value.filter(|v| v.is_finite()) else {
                    let _ = write!(body, "<rect class=\"none\" {at}/>");
                    continue;
                };
                let (colour, ink) = colour(self.place(value, range));
                let _ = write!(
                    body,
                    "<rect fill=\"{colour}\" {at}><title>{}, {} {c}: {}</title></rect>",
                    escape(label),
                    escape(&self.across),
                    plain(value)
                );
                let text = plain(value);
                if wide >= 6.6 * text.len() as f64 + 4.0 && high >= 16.0 {
                    let _ = write!(
                        body,
                        "<text style=\"fill:{ink};font-size:11px;pointer-events:none\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                        x + wide / 2.0,
                        y + high / 2.0 + 4.0,
                    );
                }
            }
        }
    }

    /// One path for each colour: a map of 60 × 256 cells stays below 300 kB.
    fn coarse(&self, body: &mut String, [wide, high]: [f64; 2], range: [f64; 2]) {
        let mut paths = vec![String::new(); LEVELS];
        let mut none = String::new();
        for (r, (_, cells)) in self.rows.iter().enumerate() {
            for (c, value) in cells.iter().enumerate() {
                let level =
                    value.filter(|v| v.is_finite()).map(|v| (self.place(v, range) * (LEVELS - 1) as f64).round());
                let path = level.and_then(|l| paths.get_mut(l as usize)).unwrap_or(&mut none);
                let _ = write!(
                    path,
                    "M{:.1} {:.1}h{wide:.1}v{high}h-{wide:.1}z",
                    LABEL + wide * c as f64,
                    TOP + high * r as f64
                );
            }
        }
        for (level, path) in paths.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
            let (colour, _) = colour(level as f64 / (LEVELS - 1) as f64);
            let _ = write!(body, "<path fill=\"{colour}\" d=\"{path}\"/>");
        }
        if !none.is_empty() {
            let _ = write!(body, "<path class=\"none\" d=\"{none}\"/>");
        }
    }

    fn legend(&self, body: &mut String, y: f64, [low, high]: [f64; 2]) {
        let (steps, wide) = (RAMP.len() * 4, 8.0);
        for i in 0..steps {
            let (colour, _) = colour(i as f64 / (steps - 1) as f64);
            let _ = write!(
                body,
                "<rect fill=\"{colour}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"12\"/>",
                LABEL + wide * i as f64,
                wide + 0.3
            );
        }
        let middle = if self.log { (low * high).sqrt() } else { (low + high) / 2.0 };
        for (share, value) in [(0.0, low), (0.5, middle), (1.0, high)] {
            let x = LABEL + wide * steps as f64 * share;
            let _ = write!(
                body,
                "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y + 26.0,
                plain(value)
            );
        }
        let end = LABEL + wide * steps as f64 + 10.0;
        let _ = write!(body, "<text class=\"soft\" x=\"{end}\" y=\"{:.1}\">{}</text>", y + 10.0, escape(&self.unit));
        if !self.absent.is_empty() {
            let _ = write!(
                body,
                "<rect class=\"none\" x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\"/><text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                end + 40.0,
                y + 16.0,
                end + 58.0,
                y + 26.0,
                escape(self.absent)
            );
        }
    }
}

/// The colour at a place of the ramp, and the ink that can be read on it.
fn colour(place: f64) -> (String, &'static str) {
    let at = place.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let (i, share) = (at.floor() as usize, at.fract());
    let [a, b] = [i, i + 1].map(|i| RAMP.get(i).or(RAMP.last()).copied().unwrap_or_default().map(f64::from));
    let [r, g, b] = [0, 1, 2].map(|c: usize| {
        let part = |from: [f64; 3]| from.get(c).copied().unwrap_or_default();
        part(a) + (part(b) - part(a)) * share
    });
    let ink = if 0.3 * r + 0.59 * g + 0.11 * b > 130.0 { "#101010" } else { "#ffffff" };
    (format!("#{:02x}{:02x}{:02x}", r.round() as u8, g.round() as u8, b.round() as u8), ink)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heat(rows: usize, columns: usize) -> Heat {
        let row = |r: usize| (format!("row {r}"), (0..columns).map(|c| (c > 0).then_some((r + c) as f64)).collect());
        Heat {
            across: "layer".into(),
            unit: "bits".into(),
            rows: (0..rows).map(row).collect(),
            absent: "kept",
            log: false,
            range: None,
        }
    }

    #[test]
    fn small_maps_show_values_and_large_ones_stay_small() {
        let small = heat(3, 4).svg();
        assert_eq!(small.matches("<title>").count(), 9);
        assert_eq!(small.matches("class=\"none\"").count(), 3 + 1, "and one in the legend");
        assert!(small.contains("row 2, layer 3: 5<"), "{small}");
        let large = heat(60, 256).svg();
        assert!(large.len() < 400_000 && !large.contains("<title>"), "{}", large.len());
    }

    #[test]
    fn the_ends_of_the_ramp_are_its_colours_and_ink_can_be_read() {
        assert_eq!(colour(0.0), ("#440154".into(), "#ffffff"));
        assert_eq!(colour(1.0), ("#fde725".into(), "#101010"));
        assert_eq!(colour(f64::NAN).1, colour(0.0).1);
    }

    #[test]
    fn logarithmic_places_go_by_ratio_and_constant_maps_have_a_colour() {
        let mut h = heat(1, 2);
        h.log = true;
        assert!((h.place(0.1, [0.01, 1.0]) - 0.5).abs() < 1e-12);
        assert_eq!(h.place(3.0, [3.0, 3.0]), 0.5);
        assert_eq!(h.place(0.0, [0.01, 1.0]), 0.0);
    }

    #[test]
    fn labels_are_escaped() {
        let mut h = heat(1, 2);
        h.rows[0].0 = "<script>".into();
        (h.unit, h.across) = ("<b>".into(), "<i>".into());
        let out = h.svg();
        assert!(!out.contains("<script") && !out.contains("<b>") && !out.contains("<i>"), "{out}");
    }
}
