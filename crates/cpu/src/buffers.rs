//! Activation buffers.

use ashlar_backend::{BackendError, BufferId};

/// Up to `max_rows` rows of `width` f32.
pub struct Buffer {
    /// Values per row.
    pub width: usize,
    /// The current rows.
    pub values: Vec<f32>,
    max_rows: usize,
    /// The most rows it ever held.
    most_rows: usize,
}

/// All buffers.
#[derive(Default)]
pub struct Buffers(Vec<Buffer>);

impl Buffers {
    /// A new buffer.
    ///
    /// # Errors
    /// [`BackendError::Memory`] if the allocator refuses.
    pub fn alloc(&mut self, max_rows: usize, width: usize) -> Result<BufferId, BackendError> {
        let values = reserve(max_rows.saturating_mul(width), || format!("a buffer of {max_rows} × {width}"))?;
        self.0.push(Buffer { width, values, max_rows, most_rows: 0 });
        Ok(BufferId((self.0.len() - 1) as u32))
    }

    /// Bytes that buffers hold or have held.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|b| 4 * (b.most_rows * b.width) as u64).sum()
    }

    /// The buffer of that id.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none.
    pub fn get(&self, id: BufferId, op: &'static str) -> Result<&Buffer, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no buffer {}", id.0) };
        self.0.get(id.0 as usize).ok_or_else(missing)
    }

    /// The rows of a buffer that must be `width` wide.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn input(&self, id: BufferId, width: usize, op: &'static str) -> Result<&[f32], BackendError> {
        let buffer = self.get(id, op)?;
        if buffer.width == width {
            return Ok(&buffer.values);
        }
        Err(BackendError::Operand { op, what: format!("a buffer is {} wide, expected {width}", buffer.width) })
    }

    /// Takes the values of an output out, as `rows` rows of `width`, to be given back with [`Buffers::put`]. What they
    /// hold is unspecified unless `keep` (then the buffer must hold that many rows already).
    ///
    /// # Errors
    /// [`BackendError::Operand`] for a wrong width or row count or an output that is also the input `x`;
    /// [`BackendError::Capacity`] for too many rows.
    pub fn take(
        &mut self,
        id: BufferId,
        [rows, width]: [usize; 2],
        keep: bool,
        x: BufferId,
        op: &'static str,
    ) -> Result<Vec<f32>, BackendError> {
        let held = self.input(id, width, op)?.len();
        if id == x {
            return Err(BackendError::Operand { op, what: "the output buffer is also the input".into() });
        }
        if keep && held != rows * width {
            let what = format!("adds {rows} rows to {}", held / width.max(1));
            return Err(BackendError::Operand { op, what });
        }
        let Some(buffer) = self.0.get_mut(id.0 as usize) else { return Ok(Vec::new()) };
        if rows > buffer.max_rows {
            let what = format!("rows of a buffer ({op})");
            return Err(BackendError::Capacity { what, got: rows, capacity: buffer.max_rows });
        }
        buffer.most_rows = buffer.most_rows.max(rows);
        buffer.values.resize(rows * width, 0.0);
        Ok(std::mem::take(&mut buffer.values))
    }

    /// Replaces the rows of a buffer.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the values are no whole rows; [`BackendError::Capacity`] for too many rows.
    pub fn write(&mut self, id: BufferId, values: &[f32]) -> Result<(), BackendError> {
        let width = self.get(id, "write")?.width;
        if !values.len().is_multiple_of(width.max(1)) {
            let what = format!("{} values are no whole rows of {width}", values.len());
            return Err(BackendError::Operand { op: "write", what });
        }
        let Some(buffer) = self.0.get_mut(id.0 as usize) else { return Ok(()) };
        let rows = values.len() / width.max(1);
        if rows > buffer.max_rows {
            let what = "rows of a buffer (write)".into();
            return Err(BackendError::Capacity { what, got: rows, capacity: buffer.max_rows });
        }
        buffer.most_rows = buffer.most_rows.max(rows);
        buffer.values.clear();
        buffer.values.extend_from_slice(values);
        Ok(())
    }

    /// Gives values back.
    pub fn put(&mut self, id: BufferId, values: Vec<f32>) {
        if let Some(buffer) = self.0.get_mut(id.0 as usize) {
            buffer.values = values;
        }
    }
}

/// An empty vector with room for `len`, or a memory error.
pub fn reserve(len: usize, what: impl FnOnce() -> String) -> Result<Vec<f32>, BackendError> {
    let mut values = Vec::new();
    match values.try_reserve_exact(len) {
        Ok(()) => Ok(values),
        Err(_) => Err(memory(len, what())),
    }
}

/// The error for `len` f32 that the allocator refused.
pub fn memory(len: usize, what: String) -> BackendError {
    BackendError::Memory {
        backend: "cpu",
        what,
        needed: (len as u64).saturating_mul(4),
        free: 0,
        remedy: "use a shorter context or a smaller batch".into(),
    }
}
