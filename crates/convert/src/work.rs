//! What has to be done to one tensor.

use crate::error::ConvertError;
use crate::knowledge::Knowledge;
use ashlar_formats::{Layout, OutlierRule, Spec};
use ashlar_pack::Content;
use ashlar_quantize::Quantizer;
use ashlar_recipe::{Action, Choice};
use ashlar_tensor::{Dtype, Entry, Order, Plane, PlaneKind};
use std::ops::Range;

/// Source bytes of a tile: large enough for few system calls, small enough for caches and for `--memory`.
const TILE_BYTES: u64 = 2 << 20;
/// Bytes of f32 values decoded at once: they are written and read again, so they had better stay in the L2 cache.
const STEP_BYTES: usize = 128 << 10;
/// Rows of a tile, at least, whose columns are rounded with feedback: the factor is read once for several row blocks.
const FEEDBACK_ROWS: usize = 128;
/// Values of vectors that such a quantizer keeps per row it works on.
const FEEDBACK_VALUES: usize = 4;

/// How a tensor gets from source to pack.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// Same format, same order.
    Copy,
    /// Same format, from row order to panels.
    Reorder,
    /// Decoded and quantized.
    Encode { quantizer: &'static dyn Quantizer, sigma: f64 },
}

/// One tensor's way from source to pack.
#[derive(Clone)]
pub(crate) struct Work {
    pub entry: Entry,
    pub n: usize,
    pub k: usize,
    pub class: &'static str,
    pub from: Spec,
    pub to: Spec,
    pub source: Layout,
    pub target: Layout,
    pub step: Step,
    /// Whether the plan's statistics know its columns.
    pub weighted: bool,
    /// The method that the recipe asks for; `None` where bits are kept.
    asked: Option<&'static str>,
    /// The inputs whose Hessian the plan's statistics have.
    inputs: Option<String>,
}

impl Work {
    pub fn new(choice: &Choice, entry: &Entry) -> Result<Self, ConvertError> {
        let (n, k) = (choice.n, choice.k);
        if n == 0 || k == 0 || entry.elements() == 0 {
            let what = format!("{} gives it the shape {:?}, which holds no values", entry.file, entry.shape);
            return Err(ConvertError::Tensor { tensor: entry.name.clone(), what });
        }
        let format = |text: &str| {
            let (tensor, format) = (entry.name.clone(), text.to_owned());
            move |source| ConvertError::Format { tensor, format, source }
        };
        let from: Spec = entry.format.parse().map_err(format(&entry.format))?;
        let source = from.layout(entry.order, n, k).map_err(format(&entry.format))?;
        let stored: Vec<Plane> = source.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect();
        if stored != entry.planes {
            let what = format!(
                "{} has the planes {:?}, {n} × {k} in `{}` needs {stored:?}",
                entry.file, entry.planes, entry.format
            );
            return Err(ConvertError::Tensor { tensor: entry.name.clone(), what });
        }
        let (to, method) = match &choice.action {
            Action::Keep => (from.clone(), None),
            Action::Encode { spec, method } => (spec.clone(), Some(*method)),
        };
        let text = to.to_string();
        let target = to.layout(Order::X16, n, k).map_err(format(&text))?;
        let step = match method {
            None if entry.order == Order::X16 || is_plain(&target) => Step::Copy,
            None => Step::Reorder,
            Some(method) => {
                let quantizer = chosen(method, &to, false)?;
                quantizer.supports(&to).map_err(format(&text))?;
                let sigma = choice.outliers.map_or(OutlierRule::DEFAULT_SIGMA, |o| o.sigma);
                Step::Encode { quantizer, sigma }
            }
        };
        let (class, entry) = (choice.leaf.role.class.name(), entry.clone());
        Ok(Self { entry, n, k, class, from, to, source, target, step, weighted: false, asked: method, inputs: None })
    }

    /// Takes note of what is known about the inputs; `auto` chooses its method by it.
    pub fn learn(&mut self, knowledge: &dyn Knowledge) -> Result<(), ConvertError> {
        let (Step::Encode { sigma, .. }, Some(asked)) = (self.step, self.asked) else { return Ok(()) };
        self.weighted = knowledge.knows(&self.entry.name);
        self.inputs = knowledge.hessian_of(&self.entry.name);
        self.step = Step::Encode { quantizer: chosen(asked, &self.to, self.inputs.is_some())?, sigma };
        Ok(())
    }

    /// Whether the converter chose the method.
    pub fn is_auto(&self) -> bool {
        self.asked == Some(AUTO)
    }

    /// What quantizes where a Hessian that was promised is missing: `auto` without one.
    pub fn without_hessian(&self) -> Result<&'static dyn Quantizer, ConvertError> {
        chosen(AUTO, &self.to, false)
    }

    fn needs_factor(&self) -> bool {
        matches!(self.step, Step::Encode { quantizer, .. } if quantizer.needs_hessian())
    }

    /// The inputs whose factored Hessian its quantizer needs; `None` if it needs none, or there is none.
    pub fn factored(&self) -> Option<&str> {
        self.inputs.as_deref().filter(|_| self.needs_factor())
    }

    /// Whether its quantizer cannot work.
    pub fn lacks_hessian(&self) -> bool {
        self.needs_factor() && self.inputs.is_none()
    }

    /// How the pack stores it.
    pub fn content(&self) -> Result<Content, ConvertError> {
        if !is_plain(&self.target) {
            return Ok(Content::Planes(
                self.target.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect(),
            ));
        }
        // Plain formats are called as their dtype.
        let dtype = Dtype::from_name(&self.to.to_string().to_uppercase());
        dtype.map(Content::Plain).ok_or_else(|| ConvertError::Tensor {
            tensor: self.entry.name.clone(),
            what: format!("`{}` stores plain values but is no dtype", self.to),
        })
    }

    /// What the method is called, where one is at work.
    pub fn method(&self) -> Option<&'static str> {
        match self.step {
            Step::Encode { quantizer, .. } => Some(quantizer.id()),
            _ => None,
        }
    }

    /// Whether the source's bytes arrive unchanged but in another order.
    pub fn is_reordered(&self) -> bool {
        matches!(self.step, Step::Reorder)
    }

    /// Whether a pack's panels arrive as they are.
    pub fn is_copied_panels(&self) -> bool {
        matches!(self.step, Step::Copy) && self.entry.order == Order::X16
    }

    /// Rows that source and target can both be cut at.
    fn row_block(&self) -> usize {
        let (a, b) = (self.source.row_block.max(1), self.target.row_block.max(1));
        let gcd = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        a / gcd(a, b) * b
    }

    /// The ranges of rows that are read and written at once. They depend on the plan alone, never on threads or
    /// memory, because errors are summed over them.
    pub fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, block) = (self.n, self.row_block());
        let row_bytes = (self.source.bytes() / n.max(1) as u64).max(1);
        let least = if self.needs_factor() { FEEDBACK_ROWS } else { 1 };
        let rows = (((TILE_BYTES / row_bytes) as usize).max(least) / block).max(1) * block;
        (0..n.div_ceil(rows)).map(move |i| i * rows..((i + 1) * rows).min(n))
    }

    /// Rows decoded at once: with feedback a whole tile.
    pub fn step_rows(&self) -> usize {
        let block = self.row_block();
        if self.needs_factor() {
            return self.n.next_multiple_of(block);
        }
        (STEP_BYTES / (self.k * 4).max(1) / block).max(1) * block
    }

    /// Bytes that the tile `rows` of `layout` takes.
    fn tile_bytes(layout: &Layout, rows: &Range<usize>) -> u64 {
        (0..layout.planes.len()).map(|p| layout.span(p, rows)).map(|s| s.end - s.start).sum()
    }

    /// Source bytes of a tile.
    pub fn source_bytes(&self, rows: &Range<usize>) -> u64 {
        Self::tile_bytes(&self.source, rows)
    }

    /// Bytes of all buffers that a tile needs: source, f32, target, importance; the factored Hessian is shared, and not
    /// among them.
    pub fn memory(&self, rows: &Range<usize>) -> u64 {
        let values = (self.step_rows().min(rows.len()) * self.k * 4) as u64;
        // Moments as read, in f64, and as handed to the quantizer.
        let importance = if self.weighted { 20 * self.k as u64 } else { 0 };
        let feedback = if self.needs_factor() { FEEDBACK_ROWS * FEEDBACK_VALUES * 4 * self.k } else { 0 };
        self.source_bytes(rows) + values + importance + feedback as u64 + Self::tile_bytes(&self.target, rows)
    }
}

/// The recipe's word for a method that the converter chooses.
const AUTO: &str = "auto";

/// The quantizer of a recipe's method.
fn chosen(method: &str, to: &Spec, hessian: bool) -> Result<&'static dyn Quantizer, ConvertError> {
    let method = if method == AUTO { ashlar_quantize::auto_with(to, hessian) } else { method };
    Ok(ashlar_quantize::quantizer(method)?)
}

fn is_plain(layout: &Layout) -> bool {
    layout.planes.len() == 1 && layout.planes.iter().all(|p| p.kind == PlaneKind::Values)
}
