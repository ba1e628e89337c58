//! Activation buffers: up to so many rows of f32 on the device, and how many they hold.

use crate::cuda::Core;
use ashlar_backend::{BackendError, BufferId};

/// One buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where it lies.
    pub address: u64,
    /// Values per row.
    pub width: usize,
    /// Rows it holds.
    pub rows: usize,
    max_rows: usize,
    /// How often it was written.
    pub version: u64,
}

/// All buffers.
#[derive(Default)]
pub struct Buffers(Vec<Buffer>);

impl Buffers {
    /// A new, empty one.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    pub fn alloc(&mut self, core: &mut Core, max_rows: usize, width: usize) -> Result<BufferId, BackendError> {
        let bytes = (max_rows as u64).saturating_mul(width as u64).saturating_mul(4);
        let address = core.take(bytes, || format!("a buffer of {max_rows} × {width}"))?;
        self.0.push(Buffer { address, width, rows: 0, max_rows, version: 0 });
        Ok(BufferId((self.0.len() - 1) as u32))
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|b| 4 * (b.max_rows * b.width) as u64).sum()
    }

    /// The buffer of that id.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is none.
    pub fn get(&self, id: BufferId, op: &'static str) -> Result<Buffer, BackendError> {
        let missing = || BackendError::Operand { op, what: format!("no buffer {}", id.0) };
        self.0.get(id.0 as usize).copied().ok_or_else(missing)
    }

    /// A buffer that must be `width` wide and, where given, hold `rows`.
    ///
    /// # Errors
    /// [`BackendError::Operand`].
    pub fn input(
        &self,
        id: BufferId,
        width: usize,
        rows: Option<usize>,
        op: &'static str,
    ) -> Result<Buffer, BackendError> {
        let buffer = self.get(id, op)?;
        let wrong = |what: String| Err(BackendError::Operand { op, what });
        if buffer.width != width {
            return wrong(format!("a buffer is {} wide, expected {width}", buffer.width));
        }
        match rows {
            Some(rows) if rows != buffer.rows => wrong(format!("a buffer holds {} rows, expected {rows}", buffer.rows)),
            _ => Ok(buffer),
        }
    }

    /// Whether a buffer can become `rows` rows of `width`, other than the input `x`.
    ///
    /// # Errors
    /// [`BackendError::Operand`], [`BackendError::Capacity`].
    pub fn output(
        &self,
        id: BufferId,
        [rows, width]: [usize; 2],
        x: Option<BufferId>,
        op: &'static str,
    ) -> Result<Buffer, BackendError> {
        let buffer = self.input(id, width, None, op)?;
        if x == Some(id) {
            return Err(BackendError::Operand { op, what: "the output buffer is also the input".into() });
        }
        if rows > buffer.max_rows {
            let (what, capacity) = (format!("rows of a buffer ({op})"), buffer.max_rows);
            return Err(BackendError::Capacity { what, got: rows, capacity });
        }
        Ok(buffer)
    }

    /// Notes that a buffer now holds other values, `rows` of them; returns its version.
    pub fn wrote(&mut self, id: BufferId, rows: usize) -> u64 {
        match self.0.get_mut(id.0 as usize) {
            Some(buffer) => {
                buffer.rows = rows;
                buffer.version += 1;
                buffer.version
            }
            None => 0,
        }
    }
}
