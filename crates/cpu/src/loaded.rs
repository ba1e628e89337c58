//! A weight on this backend: its planes as they lie, and the kernels that read them.

use crate::gemv::levels::Levels;
use crate::gemv::table::{self, Entry};
use crate::gemv::{Expand, Multiply, PANEL, Scheme, any};
use crate::inputs::Form;
use ashlar_backend::{ActivationMode, BackendError, Streamed, Weight};
use ashlar_formats::{FormatError, Layout, Spec};
use ashlar_simd::Isa;
use ashlar_tensor::{Bytes, Order};

/// A loaded weight.
pub struct Loaded {
    /// As it was given; its planes are shared, not copied.
    pub weight: Weight,
    /// Where the planes lie; they are known to be long enough.
    pub layout: Layout,
    /// The values, if it is a vector (n = 1): a norm or a bias.
    pub vector: Vec<f32>,
    /// What its codes stand for, if they are indices or integers.
    pub levels: Option<Levels>,
    /// Where its planes come from, if it is not in memory; they are then missing in `weight`.
    pub streamed: Option<Streamed>,
    entry: Option<&'static Entry>,
    mode: ActivationMode,
}

/// How this backend rounds the inputs of weights of `spec` when asked for `mode`.
pub fn activations(spec: &Spec, mode: ActivationMode) -> ActivationMode {
    let entry = table::entry(spec, Order::X16);
    match mode.of(spec) {
        ActivationMode::Int8 if entry.is_some_and(|e| e.rounded.is_some()) => ActivationMode::Int8,
        ActivationMode::Bf16 if entry.is_some_and(|e| e.bf16.is_some()) => ActivationMode::Bf16,
        _ => ActivationMode::F32,
    }
}

impl Loaded {
    /// Checks the planes and chooses the kernels.
    ///
    /// # Errors
    /// [`BackendError::Format`] if the planes do not fit the shape; for vectors, if they cannot be decoded.
    pub fn new(weight: Weight, mode: ActivationMode) -> Result<Self, BackendError> {
        let layout = weight.layout()?;
        let mut vector = Vec::new();
        if weight.n == 1 {
            vector = vec![0.0; weight.k];
            weight.decode(0..1, &mut vector)?;
        }
        Ok(Self { vector, ..Self::of(weight, layout, mode) })
    }

    fn of(weight: Weight, layout: Layout, mode: ActivationMode) -> Self {
        let entry = table::entry(&weight.spec, weight.order);
        let mode = activations(&weight.spec, mode);
        let levels = weight.spec.grid().ok().and_then(|grid| Levels::of(&grid));
        Self { weight, layout, vector: Vec::new(), levels, streamed: None, entry, mode }
    }

    /// A matrix whose planes come when it is used.
    ///
    /// # Errors
    /// [`BackendError::Format`] if its planes cannot be those of its shape.
    pub fn streamed(streamed: Streamed, mode: ActivationMode) -> Result<Self, BackendError> {
        let weight = &streamed.weight;
        let format = |source| BackendError::Format { tensor: weight.name.clone(), source };
        let layout = weight.spec.layout(weight.order, weight.n, weight.k).map_err(format)?;
        for (plane, described) in layout.planes.iter().enumerate() {
            let got = streamed.planes.get(plane).map_or(0, ExactSizeIterator::len);
            let expected = described.bytes as usize;
            if got < expected {
                return Err(format(FormatError::Short { id: weight.spec.id, plane, got, expected }));
            }
        }
        let weight = weight.clone();
        Ok(Self { streamed: Some(streamed), ..Self::of(weight, layout, mode) })
    }

    /// The matrix, now that its record is there.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if it is none that comes from a record, or the record is too short.
    pub fn arrived(&self, record: &Bytes) -> Result<Self, BackendError> {
        let what = || format!("`{}` comes from no record", self.weight.name);
        let streamed = self.streamed.as_ref().ok_or_else(|| BackendError::Operand { op: "moe", what: what() })?;
        let weight = streamed.in_record(record)?;
        let (layout, levels, entry, mode) = (self.layout.clone(), self.levels, self.entry, self.mode);
        Ok(Self { weight, layout, vector: Vec::new(), levels, streamed: None, entry, mode })
    }

    /// Itself, if it is n × k, both as given or any.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn is(&self, n: Option<usize>, k: usize, op: &'static str) -> Result<&Self, BackendError> {
        let w = &self.weight;
        if w.k == k && n.is_none_or(|n| n == w.n) {
            return Ok(self);
        }
        let wanted = n.map_or_else(|| "any".to_owned(), |n| n.to_string());
        Err(BackendError::Operand { op, what: format!("`{}` is {} × {}, expected {wanted} × {k}", w.name, w.n, w.k) })
    }

    /// The bytes of a plane.
    pub fn plane(&self, index: usize) -> &[u8] {
        let len = self.layout.planes.get(index).map_or(0, |p| p.bytes as usize);
        self.weight.planes.get(index).and_then(|p| p.get(..len)).unwrap_or_default()
    }

    /// Panels of 16 outputs.
    pub fn panels(&self) -> usize {
        self.weight.n.div_ceil(PANEL)
    }

    /// Stored bytes of a panel: what reading it costs.
    pub fn panel_bytes(&self) -> usize {
        (self.layout.bytes() as usize / self.panels().max(1)).max(1)
    }

    /// The form of inputs that this weight is multiplied with.
    pub fn form(&self) -> Form {
        match (self.mode, self.entry) {
            (ActivationMode::F32, _) => Form::F32,
            (ActivationMode::Int8, Some(entry)) => entry.rounded.map_or(Form::F32, |(form, _)| form),
            (ActivationMode::Int8, None) => Form::Rounded,
            (ActivationMode::Bf16, Some(_)) => Form::Bf16,
            (ActivationMode::Bf16, None) => Form::Bf16Values,
        }
    }

    /// Whether it reads rounded inputs as f32 values.
    pub fn reads_rounded_values(&self) -> bool {
        self.form() == Form::Rounded || (self.form() == Form::Int8 && self.weight.spec.outlier_slots > 0)
    }

    /// How so many rows of inputs in that form walk over it.
    pub fn scheme(&self, isa: Isa, form: Form, rows: usize) -> Scheme {
        let tiled = |entry: &Entry| form == Form::Int8 && rows >= (entry.tiled_from)(isa);
        if self.entry.is_some_and(tiled) { Scheme::Tiled } else { Scheme::Direct }
    }

    /// The kernel for inputs of that form.
    pub fn kernel(&self, form: Form) -> Multiply {
        match (self.entry, form) {
            (None, _) => any::multiply,
            (Some(entry), Form::F32) => entry.exact,
            (Some(entry), Form::Bf16) => entry.bf16.unwrap_or(entry.exact),
            (Some(entry), _) => entry.rounded.map_or(entry.exact, |(_, kernel)| kernel),
        }
    }

    /// What writes its panels down as f32; `None` for plain floats, weights that no kernel reads as they lie, and outliers.
    pub fn expand(&self) -> Option<Expand> {
        self.entry.and_then(|entry| entry.expand).filter(|_| self.weight.spec.outlier_slots == 0)
    }

    /// The kernel family's name; `None` if rows are decoded.
    pub fn family(&self) -> Option<&'static str> {
        self.entry.map(|entry| entry.name)
    }

    /// Whether the kernel decodes whole rows, outliers included.
    pub fn decodes_outliers(&self) -> bool {
        self.entry.is_none()
    }
}
