//! Weights that stay on disk until an op needs them: [`Records`] says where their bytes come from, [`Streamed`] is such a
//! weight. Only experts are streamed, since an op uses a few of them.
//!
//! Owns: the seam between an op, which knows what it uses, and whoever reads, which knows what memory there is. Refuses: files,
//! threads and what to keep, which are the runtime's.

use crate::{BackendError, Weight};
use ashlar_tensor::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// A record in memory: its number and its bytes. While someone holds the bytes, the memory is not used for anything else.
pub type Arrived = (u32, Bytes);

/// Records, each the weights of one expert, of which only some are in memory.
pub trait Records: Send + Sync {
    /// An op over `rows` tokens uses these records: numbers, ascending, and the tokens that use each. Returns windows, ranges of
    /// `used` that cover it in order: no more than one window and the next are in memory at once. Reading begins.
    fn begin(&self, used: &[(u32, usize)], rows: usize) -> Vec<Range<usize>>;

    /// Records of that window that are there and were not handed out since [`Records::begin`]; waits for one if there is none. Empty when
    /// all were handed out. Windows are taken in order, and a window's records are dropped before those of the next but one
    /// are taken.
    ///
    /// # Errors
    /// [`BackendError::Device`] if a record cannot be read.
    fn take(&self, window: usize) -> Result<Vec<Arrived>, BackendError>;
}

/// A weight of an expert that lies in a record.
#[derive(Clone)]
pub struct Streamed {
    /// What it is; without planes.
    pub weight: Weight,
    /// Where its record comes from.
    pub records: Arc<dyn Records>,
    /// The record.
    pub record: u32,
    /// Where its planes lie there.
    pub planes: Vec<Range<usize>>,
}

impl Streamed {
    /// The weight, with planes in the record's bytes.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if the record is too short.
    pub fn in_record(&self, record: &Bytes) -> Result<Weight, BackendError> {
        let plane = |range: &Range<usize>| record.slice(range.start, range.len());
        let planes: Option<Vec<Bytes>> = self.planes.iter().map(plane).collect();
        let what = || format!("`{}` lies beyond the {} bytes of its record", self.weight.name, record.len());
        let planes = planes.ok_or_else(|| BackendError::Operand { op: "moe", what: what() })?;
        Ok(Weight { planes, ..self.weight.clone() })
    }
}
