//! Activation buffers of the reference backend.

use crate::BackendError;

/// Up to `max_rows` rows of exactly `width` values.
pub struct Buffer {
    max_rows: usize,
    width: usize,
    /// The current rows.
    pub values: Vec<f32>,
}

impl Buffer {
    pub fn new(max_rows: usize, width: usize) -> Self {
        Self { max_rows, width, values: Vec::new() }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    pub fn row(&self, row: usize) -> &[f32] {
        self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }

    pub fn expect_width(&self, width: usize, op: &'static str) -> Result<(), BackendError> {
        if self.width == width {
            return Ok(());
        }
        Err(BackendError::Operand { op, what: format!("a buffer is {} wide, expected {width}", self.width) })
    }

    pub fn expect_rows(&self, rows: usize, op: &'static str) -> Result<(), BackendError> {
        if self.rows() == rows {
            return Ok(());
        }
        Err(BackendError::Operand { op, what: format!("a buffer holds {} rows, expected {rows}", self.rows()) })
    }

    pub fn store(&mut self, width: usize, values: Vec<f32>, op: &'static str) -> Result<(), BackendError> {
        self.expect_width(width, op)?;
        let rows = values.len() / self.width.max(1);
        if rows > self.max_rows {
            return Err(BackendError::Capacity {
                what: format!("rows of a buffer ({op})"),
                got: rows,
                capacity: self.max_rows,
            });
        }
        self.values = values;
        Ok(())
    }
}

/// `len` zeros, or a memory error instead of an abort.
pub fn zeros(len: usize, what: impl FnOnce() -> String) -> Result<Vec<f32>, BackendError> {
    let mut values = Vec::new();
    if values.try_reserve_exact(len).is_err() {
        return Err(BackendError::Memory {
            backend: "reference",
            what: what(),
            needed: (len as u64).saturating_mul(4),
            free: 0,
            remedy: "use --device cpu, which keeps weights as they are stored".into(),
        });
    }
    values.resize(len, 0.0);
    Ok(values)
}
