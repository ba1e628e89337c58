//! [`verify`]: is the pack what its manifest says, and how far is it from its source?

use crate::error::ConvertError;
use crate::measure::Loss;
use crate::pool;
use crate::record::contiguous;
use crate::tile::{check_finite, read_planes, size_planes, steps};
use ashlar_arch::{ArchError, Leaf, generic, model_spec};
use ashlar_formats::{FormatError, Layout, Planes, Spec};
use ashlar_pack::{Damage, Hash, Pack, PageBuffer, TreeHash};
use ashlar_simd::Isa;
use ashlar_tensor::{Entry, Order, Plane, Report, TensorStore};
use serde::Serialize;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows are compared in portions of about so many values.
const STEP_VALUES: usize = 1 << 18;

/// A tensor of the pack beside the same tensor of the source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The tensor.
    pub name: String,
    /// The recipe's class.
    pub class: &'static str,
    /// Its format in the source.
    pub source_format: String,
    /// Its format in the pack.
    pub format: String,
    /// Whether the bits were kept, so that anything but equality is an error.
    pub must_be_exact: bool,
    /// Whether all stored bytes are equal, but for their order.
    pub exact: bool,
    /// The difference of the values.
    pub loss: Loss,
    /// Normalized mean squared error.
    pub nmse: f64,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Records whose checksum is wrong.
    pub damage: Vec<Damage>,
    /// Tensors with rows of padding that are not zero.
    pub padding: Vec<String>,
    /// Tensors that hold a NaN or an infinity, or a code that stands for one, and where the first of them is.
    pub not_finite: Vec<(String, String)>,
    /// Tensors that are kept losslessly, but whose source bytes do not have the hash of the manifest.
    pub source_hash: Vec<String>,
    /// Tensors of the pack that the source lacks or has in another shape.
    pub missing: Vec<String>,
    /// Every tensor beside the source's, in file order, where a source was given.
    pub compared: Vec<Comparison>,
    /// By class: sums over `compared`.
    pub classes: Vec<(&'static str, Loss)>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn ok(&self) -> bool {
        let exact = self.compared.iter().all(|c| c.exact || !c.must_be_exact);
        exact
            && self.damage.is_empty()
            && self.padding.is_empty()
            && self.not_finite.is_empty()
            && self.source_hash.is_empty()
            && self.missing.is_empty()
    }
}

/// Checks every checksum, that padding rows are zero, that every value is finite, and that losslessly kept tensors give back the source's bytes;
/// with `against`, compares every tensor with the source it came from.
///
/// # Errors
/// [`ConvertError`] if something cannot be read; what is found wrong is in the report.
pub fn verify(
    pack: &Pack,
    against: Option<&dyn TensorStore>,
    threads: Option<usize>,
    report: &dyn Report,
) -> Result<VerifyReport, ConvertError> {
    let threads = threads.unwrap_or_else(pool::default_threads);
    let mut found = VerifyReport { damage: pack.verify(threads, report)?, ..VerifyReport::default() };
    let isa = Isa::detect()?;
    let tensors = || pack.entries().iter().map(|e| (e.name.as_str(), e.shape.as_slice()));
    let leaves: Vec<Leaf> = match model_spec(pack.config()) {
        Ok(mut model) => {
            model.adopt(tensors());
            model.tensors().cloned().collect()
        }
        // Converted by names alone.
        Err(ArchError::UnknownArchitecture { .. }) => generic(tensors()),
        Err(e) => return Err(ConvertError::Arch(e.to_string())),
    };
    let classes: HashMap<&str, &'static str> = leaves.iter().map(|l| (l.name.as_str(), l.role.class.name())).collect();
    let mut checks = Vec::new();
    for sealed in pack.records() {
        for stored in &sealed.record.tensors {
            let Some(entry) = pack.entry(&stored.name) else { continue };
            let source = against.and_then(|s| s.entry(&stored.name)).filter(|e| e.shape == entry.shape);
            if against.is_some() && source.is_none() {
                found.missing.push(stored.name.clone());
            }
            let class = classes.get(stored.name.as_str()).copied().unwrap_or("other");
            checks.push(Check::new(
                pack,
                entry,
                against.zip(source),
                sealed.source_blake3.get(&stored.name).copied(),
                class,
            )?);
        }
    }
    let jobs: Vec<(&Check<'_>, Range<usize>)> = checks.iter().flat_map(|c| c.tiles().map(move |t| (c, t))).collect();
    report.begin("values", checks.iter().map(|c| c.entry.bytes()).sum());
    pool::for_each(threads, &jobs, Buffers::default, |buffers, (check, rows)| {
        check.tile(rows, isa, buffers)?;
        report.advance(check.stored.span_bytes(rows), &check.entry.name);
        Ok(())
    })?;
    report.end();
    for check in checks {
        check.finish(&mut found);
    }
    Ok(found)
}

/// A weight's spec and layout.
struct Form {
    spec: Spec,
    layout: Layout,
}

impl Form {
    fn new(entry: &Entry, order: Order, n: usize, k: usize) -> Result<Self, ConvertError> {
        let error = |source| ConvertError::Format { tensor: entry.name.clone(), format: entry.format.clone(), source };
        let spec: Spec = entry.format.parse().map_err(error)?;
        let layout = spec.layout(order, n, k).map_err(error)?;
        Ok(Self { spec, layout })
    }

    /// Fails unless the pack says the same of the planes: all that follows goes by the layout.
    fn check(&self, entry: &Entry) -> Result<(), ConvertError> {
        let planes: Vec<Plane> = self.layout.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect();
        if planes == entry.planes {
            return Ok(());
        }
        let what = format!(
            "{} has the planes {:?}, {:?} in `{}` needs {planes:?}; the pack is damaged or was edited: convert the model again",
            entry.file, entry.planes, entry.shape, entry.format
        );
        Err(ConvertError::Tensor { tensor: entry.name.clone(), what })
    }

    fn span_bytes(&self, rows: &Range<usize>) -> u64 {
        (0..self.layout.planes.len()).map(|p| self.layout.span(p, rows)).map(|s| s.end - s.start).sum()
    }
}

/// One tensor to be checked.
struct Check<'a> {
    pack: &'a Pack,
    entry: &'a Entry,
    class: &'static str,
    n: usize,
    k: usize,
    /// As stored; in row order; and the source.
    stored: Form,
    rows: Form,
    source: Option<(&'a dyn TensorStore, &'a Entry, Form)>,
    expected: Option<Hash>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    padding: bool,
    differs: bool,
    /// The first in row order.
    not_finite: Option<(usize, usize, f32)>,
    losses: Vec<(usize, Loss)>,
    tree: Option<TreeHash>,
}

#[derive(Default)]
struct Buffers {
    stored: Vec<PageBuffer>,
    rows: Vec<PageBuffer>,
    again: Vec<PageBuffer>,
    source: Vec<PageBuffer>,
    values: [Vec<f32>; 2],
}

fn slices(planes: &[PageBuffer]) -> Vec<&[u8]> {
    planes.iter().map(|p| &**p).collect()
}

impl<'a> Check<'a> {
    fn new(
        pack: &'a Pack,
        entry: &'a Entry,
        source: Option<(&'a dyn TensorStore, &'a Entry)>,
        expected: Option<Hash>,
        class: &'static str,
    ) -> Result<Self, ConvertError> {
        let (n, k) = ashlar_recipe::extents(&entry.shape);
        let (stored, rows) = (Form::new(entry, entry.order, n, k)?, Form::new(entry, Order::Rows, n, k)?);
        stored.check(entry)?;
        let source = match source {
            Some((store, e)) => Some((store, e, Form::new(e, e.order, n, k)?)),
            None => None,
        };
        let tree = expected.map(|_| TreeHash::new(rows.layout.bytes()));
        let state = Mutex::new(State { tree, ..State::default() });
        Ok(Self { pack, entry, class, n, k, stored, rows, source, expected, state })
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        // 128 is a multiple of every row block.
        let rows = (STEP_VALUES / self.k.max(1) / 128).max(1) * 128;
        // Rows without columns hold nothing, and a header may claim any number of them.
        steps(&(0..if self.k == 0 { 0 } else { self.n }), rows)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, file: &str) -> impl Fn(FormatError) -> ConvertError {
        let (file, tensor) = (file.to_owned(), self.entry.name.clone());
        move |source| ConvertError::Values { file: file.clone(), tensor: tensor.clone(), source }
    }

    fn tile(&self, rows: &Range<usize>, isa: Isa, b: &mut Buffers) -> Result<(), ConvertError> {
        read_planes(self.pack, self.entry, &self.stored.layout, rows, &mut b.stored)?;
        let error = self.error(&self.entry.file);
        if self.entry.order == Order::X16 {
            // Back to rows and forth again: what differs afterwards are bytes that stand for no value.
            size_planes(&self.rows.layout, rows, &mut b.rows);
            size_planes(&self.stored.layout, rows, &mut b.again);
            self.reorder(&self.stored.spec, rows, (Order::X16, &b.stored), (Order::Rows, &mut b.rows))
                .map_err(&error)?;
            self.reorder(&self.stored.spec, rows, (Order::Rows, &b.rows), (Order::X16, &mut b.again))
                .map_err(&error)?;
            if b.again != b.stored {
                self.state().padding = true;
            }
        } else {
            size_planes(&self.rows.layout, rows, &mut b.rows);
            b.rows.iter_mut().zip(&b.stored).for_each(|(to, from)| to.copy_from_slice(from));
        }
        if self.expected.is_some() {
            let starts = contiguous(&self.rows.layout);
            let pieces = crate::record::pieces(self.rows.layout.bytes(), &starts, &self.rows.layout, rows, &b.rows);
            if let Some(tree) = &mut self.state().tree {
                pieces.into_iter().for_each(|p| tree.add(p));
            }
        }
        let finite = match self.decode(&self.stored, self.entry.order, rows, isa, &b.stored, &mut b.values[0]) {
            Err(FormatError::NotFinite { row, column, value }) => {
                let first = &mut self.state().not_finite;
                if first.is_none_or(|(r, ..)| row < r) {
                    *first = Some((row, column, value));
                }
                false
            }
            other => other.map(|()| true).map_err(&error)?,
        };
        self.compare(rows, finite, isa, b)
    }

    /// The values of `rows`, which are finite.
    fn decode(
        &self,
        form: &Form,
        order: Order,
        rows: &Range<usize>,
        isa: Isa,
        planes: &[PageBuffer],
        values: &mut Vec<f32>,
    ) -> Result<(), FormatError> {
        let data = slices(planes);
        let planes = Planes { order, n: self.n, k: self.k, first_row: rows.start, data: &data };
        values.resize(rows.len() * self.k, 0.0);
        let format = form.spec.format()?;
        isa.vectorize(|| format.decode(&form.spec, &planes, rows.clone(), values))?;
        check_finite(values, self.k, rows.start)
    }

    fn reorder(
        &self,
        spec: &Spec,
        rows: &Range<usize>,
        (from, planes): (Order, &[PageBuffer]),
        (to, out): (Order, &mut [PageBuffer]),
    ) -> Result<(), FormatError> {
        let data = slices(planes);
        let planes = Planes { order: from, n: self.n, k: self.k, first_row: rows.start, data: &data };
        let mut out: Vec<&mut [u8]> = out.iter_mut().map(|p| &mut **p).collect();
        ashlar_formats::reorder(spec, &planes, rows.clone(), to, &mut out)
    }

    fn compare(&self, rows: &Range<usize>, finite: bool, isa: Isa, b: &mut Buffers) -> Result<(), ConvertError> {
        let Some((store, entry, form)) = &self.source else { return Ok(()) };
        read_planes(*store, entry, &form.layout, rows, &mut b.source)?;
        let same = if entry.order == self.entry.order { b.source == b.stored } else { b.source == b.rows };
        let same = same && entry.format == self.entry.format;
        let [ours, theirs] = &mut b.values;
        self.decode(form, entry.order, rows, isa, &b.source, theirs).map_err(self.error(&entry.file))?;
        // What is not finite has no distance; it is reported for itself.
        let theirs: &[f32] = if finite { theirs } else { &[] };
        let mut loss = Loss::default();
        for (ours, theirs) in ours.iter().zip(theirs) {
            let difference = f64::from(*ours) - f64::from(*theirs);
            loss.squared_error += difference * difference;
            loss.squared_norm += f64::from(*theirs) * f64::from(*theirs);
            loss.max_abs = loss.max_abs.max(difference.abs());
        }
        let mut state = self.state();
        state.differs |= !same;
        state.losses.push((rows.start, loss));
        Ok(())
    }

    fn finish(self, found: &mut VerifyReport) {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let name = || self.entry.name.clone();
        if state.padding {
            found.padding.push(name());
        }
        if let Some((row, column, value)) = state.not_finite {
            let source = FormatError::NotFinite { row, column, value };
            found.not_finite.push((name(), source.to_string()));
        }
        if self.expected.is_some_and(|hash| state.tree.as_ref().and_then(TreeHash::finish) != Some(hash)) {
            found.source_hash.push(name());
        }
        let Some((_, source, _)) = &self.source else { return };
        state.losses.sort_by_key(|(row, _)| *row);
        let mut loss = Loss::default();
        state.losses.iter().for_each(|(_, l)| loss.add(*l));
        match found.classes.iter_mut().find(|(class, _)| *class == self.class) {
            Some((_, sum)) => sum.add(loss),
            None => found.classes.push((self.class, loss)),
        }
        let kept = self.expected.is_some() || self.entry.order == Order::Rows;
        found.compared.push(Comparison {
            name: name(),
            class: self.class,
            source_format: source.format.clone(),
            format: self.entry.format.clone(),
            must_be_exact: kept && source.format == self.entry.format,
            exact: !state.differs,
            loss,
            nmse: loss.nmse(),
        });
    }
}
