//! [`Routes`]: a recording of routing decisions, as text: `# route_trace v1`, what the model is, bytes per layer, then one line
//! per token, layer and chosen expert.

use ashlar_arch::{Class, Ffn, ModelSpec};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::BufRead;

const HEAD: &str = "# route_trace v1";
const COLUMNS: &str = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes";
/// The column that a recording may have besides: an expert that the router named beforehand.
const NAMED: &str = ",named";
/// Bounds on what a file may claim.
const MOST_LAYERS: usize = 4096;
const MOST_EXPERTS: usize = 65_536;
/// Longest line: the head names a model.
const LINE: u64 = 4096;

/// Bytes of a layer's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerBytes {
    /// One expert.
    pub expert: u64,
    /// All that every token reads.
    pub dense: u64,
}

impl LayerBytes {
    /// Of all layers of a model whose tensors take `bytes` each, and what every token reads behind them.
    #[must_use]
    pub fn of(spec: &ModelSpec, bytes: &dyn Fn(&str) -> Option<u64>) -> (Vec<Self>, u64) {
        let (mut layers, mut head) = (vec![Self::default(); spec.layers.len()], 0);
        for leaf in spec.loaded() {
            let size = bytes(&leaf.name).unwrap_or_default();
            match leaf.role.layer.and_then(|layer| layers.get_mut(layer)) {
                Some(layer) if leaf.role.class == Class::Experts => layer.expert += size,
                Some(layer) => layer.dense += size,
                // A tied head reads the table as a weight.
                None if leaf.role.class == Class::Embed && spec.lm_head.is_some() => {}
                None => head += size,
            }
        }
        for (layer, bytes) in spec.layers.iter().zip(&mut layers) {
            if let Ffn::Moe(moe) = &layer.ffn {
                bytes.expert /= moe.experts.len().max(1) as u64;
            }
        }
        (layers, head)
    }
}

/// The experts that one token was routed to in one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerStep {
    /// Whether the token was decoded, and not part of a prompt.
    pub decode: bool,
    /// Number of the token in the recording.
    pub token: u64,
    /// The layer.
    pub layer: usize,
    /// Experts with their weights, best first.
    pub chosen: Vec<(u32, f32)>,
    /// Experts that this layer's router named for what the experts of the layer before read, if that was recorded.
    pub named: Vec<u32>,
}

/// A recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// What the model is called, without spaces.
    pub model: String,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Layers; those without experts have 0 bytes per expert.
    pub layers: Vec<LayerBytes>,
    /// In the order in which they happened.
    pub steps: Vec<LayerStep>,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoutesError {
    /// The file.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A line of it.
    #[error("line {line}: {what}")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// Numbers of tokens by turn, phase and step, in the order in which they are first named.
#[derive(Default)]
struct Seen(HashMap<[u64; 3], u64>);

impl Routes {
    /// Reads a recording.
    ///
    /// # Errors
    /// [`RoutesError`] for a line that is none, or an expert or layer that the head does not announce.
    pub fn read(mut from: impl BufRead) -> Result<Self, RoutesError> {
        let mut routes = Self::default();
        let (mut text, mut line, mut seen) = (String::new(), 0, Seen::default());
        loop {
            text.clear();
            if std::io::Read::take(&mut from, LINE).read_line(&mut text)? == 0 {
                break;
            }
            line += 1;
            let content = text.trim_end();
            let read = match content.strip_prefix('#') {
                _ if line == 1 && content != HEAD => Err(format!("expected `{HEAD}`; this is no recording of routes")),
                Some(words) => routes.head(words),
                None if content.is_empty() || content.strip_suffix(NAMED).unwrap_or(content) == COLUMNS => Ok(()),
                None => routes.row(content, &mut seen),
            };
            read.map_err(|what| RoutesError::Line { line, what })?;
        }
        match routes.steps.is_empty() {
            true => Err(RoutesError::Line { line, what: "the recording has no decisions".into() }),
            false => Ok(routes),
        }
    }

    fn head(&mut self, words: &str) -> Result<(), String> {
        let value = |key: &str| words.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str, most: usize| {
            let text = value(key).ok_or_else(|| format!("`{key}=` is missing"))?;
            let found = text.parse::<usize>().ok().filter(|n| *n <= most);
            found.ok_or_else(|| {
                format!("`{key}={}` is no number up to {most}", text.chars().take(40).collect::<String>())
            })
        };
        if value("n_layer").is_some() {
            self.model = value("model").unwrap_or_default().to_owned();
            self.layers = vec![LayerBytes::default(); number("n_layer", MOST_LAYERS)?];
            self.experts = number("n_expert", MOST_EXPERTS)?;
            self.top_k = number("n_expert_used", self.experts)?;
        } else if value("layer").is_some() {
            let index = number("layer", MOST_LAYERS)?;
            let bytes = [number("expert_bytes", usize::MAX)? as u64, number("dense_bytes", usize::MAX)? as u64];
            let layer = self.layers.get_mut(index).ok_or_else(|| format!("layer {index} is beyond n_layer"))?;
            *layer = LayerBytes { expert: bytes[0], dense: bytes[1] };
        }
        Ok(())
    }

    fn row(&mut self, text: &str, seen: &mut Seen) -> Result<(), String> {
        let mut columns = text.split(',');
        let mut next = |name: &str| columns.next().ok_or_else(|| format!("column {name} is missing"));
        let number = |name: &str, text: &str| text.parse::<u64>().map_err(|_| format!("column {name} is no number"));
        let mut whole = |name: &str| next(name).and_then(|text| number(name, text));
        let [turn, phase, step, layer, _slot, expert] =
            [whole("turn")?, whole("phase")?, whole("step")?, whole("layer")?, whole("slot")?, whole("expert")?];
        let weight = next("weight")?.parse::<f32>().map_err(|_| "column weight is no number".to_owned())?;
        let named = columns.nth(2).filter(|text| !text.is_empty()).map(|text| number("named", text)).transpose()?;
        let layer = usize::try_from(layer).ok().filter(|l| *l < self.layers.len());
        let layer = layer.ok_or_else(|| format!("a layer beyond n_layer={}", self.layers.len()))?;
        let known = |expert: u64| {
            let found = u32::try_from(expert).ok().filter(|e| (*e as usize) < self.experts);
            found.ok_or_else(|| format!("an expert beyond n_expert={}", self.experts))
        };
        let (expert, named) = (known(expert)?, named.map(known).transpose()?);
        // Prompts are recorded layer by layer: a token comes again in every layer.
        let count = seen.0.len() as u64;
        let token = *seen.0.entry([turn, phase, step]).or_insert(count);
        match self.steps.last_mut() {
            Some(step) if step.token == token && step.layer == layer => {
                step.chosen.push((expert, weight));
                step.named.extend(named);
            }
            _ => self.steps.push(LayerStep {
                decode: phase != 0,
                token,
                layer,
                chosen: vec![(expert, weight)],
                named: named.into_iter().collect(),
            }),
        }
        Ok(())
    }

    /// The recording as text, with nothing resident.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{HEAD}\n# model={} n_layer={} n_expert={} n_expert_used={}\n",
            self.model,
            self.layers.len(),
            self.experts,
            self.top_k
        );
        for (i, LayerBytes { expert, dense }) in self.layers.iter().enumerate() {
            let _ = writeln!(text, "# layer={i} expert_bytes={expert} dense_bytes={dense}");
        }
        let with_named = self.steps.iter().any(|step| !step.named.is_empty());
        text.push_str(COLUMNS);
        text.push_str(if with_named { NAMED } else { "" });
        text.push('\n');
        for LayerStep { decode, token, layer, chosen, named } in &self.steps {
            let bytes = self.layers.get(*layer).map_or(0, |l| l.expert);
            for (slot, (expert, weight)) in chosen.iter().enumerate() {
                let _ = write!(text, "0,{},{token},{layer},{slot},{expert},{weight},0,{bytes}", u8::from(*decode));
                let name = named.get(slot).map(u32::to_string).unwrap_or_default();
                let _ = if with_named { writeln!(text, ",{name}") } else { writeln!(text) };
            }
        }
        text
    }

    /// Experts of all layers that have any.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.layers.iter().filter(|l| l.expert > 0).count() * self.experts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# route_trace v1
# model=m n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=10 dense_bytes=5
# layer=1 expert_bytes=20 dense_bytes=6
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,3,0.5,0,10
0,0,0,0,1,1,0.25,0,10
0,0,0,1,0,2,1,0,20
0,0,0,1,1,0,0.5,0,20
0,1,1,0,0,3,0.5,0,10
0,1,1,0,1,2,0.5,0,10
";

    #[test]
    fn a_recording_is_read_and_written_alike() {
        let routes = Routes::read(TEXT.as_bytes()).unwrap();
        assert_eq!((routes.experts, routes.top_k, routes.slots()), (4, 2, 8));
        assert_eq!(routes.layers[1], LayerBytes { expert: 20, dense: 6 });
        let steps: Vec<_> = routes.steps.iter().map(|s| (s.decode, s.token, s.layer, s.chosen.len())).collect();
        assert_eq!(steps, [(false, 0, 0, 2), (false, 0, 1, 2), (true, 1, 0, 2)]);
        assert_eq!(routes.text(), TEXT);
        // The same with what routers named beforehand, where they did.
        let mut named = routes.clone();
        named.steps[1].named = vec![2, 1];
        let text = named.text();
        assert!(text.contains("expert_bytes,named\n") && text.contains("0,0,0,1,1,0,0.5,0,20,1\n"), "{text}");
        assert_eq!(Routes::read(text.as_bytes()).unwrap(), named);
    }

    #[test]
    fn what_is_no_recording_is_told_with_its_line() {
        for (text, part) in [
            ("turn,phase\n", "line 1: expected `# route_trace v1`"),
            ("# route_trace v1\n# n_layer=99999999 n_expert=1 n_expert_used=1\n", "line 2: `n_layer=99999999`"),
            ("# route_trace v1\n0,0,0,0,0,0,1,0,0\n", "line 2: a layer beyond n_layer=0"),
            (
                "# route_trace v1\n# n_layer=1 n_expert=2 n_expert_used=1\n0,0,0,0,0,2,1,0,0\n",
                "line 3: an expert beyond",
            ),
            ("# route_trace v1\n# n_layer=1 n_expert=2 n_expert_used=1\n0,0,0,0\n", "column slot is missing"),
            ("# route_trace v1\n", "no decisions"),
        ] {
            let said = Routes::read(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }
}
