//! Progress, as the libraries tell it: the terminal bar, JSON lines and silence are made of it in `cli`.

/// Receives progress. Libraries never print.
pub trait Report: Sync {
    /// A stage begins, `total` bytes (or steps) long.
    fn begin(&self, stage: &str, total: u64);
    /// `amount` more are done; `current` names the tensor or file at work.
    fn advance(&self, amount: u64, current: &str);
    /// Something the user should know: a fallback, an overflow, an ignored tensor.
    fn note(&self, text: &str);
    /// The stage is over.
    fn end(&self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Report for Silent {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _amount: u64, _current: &str) {}
    fn note(&self, _text: &str) {}
    fn end(&self) {}
}
