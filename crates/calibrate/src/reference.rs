//! [`Reference`]: what the matmuls of one batch read in a run of the source, to be compared with what they read behind
//! quantized layers.

use crate::hessian::Columns;
use ashlar_backend::{MatmulInput, Observer, Routed};
use std::collections::HashMap;

/// The inputs of one batch, by the first weight that reads them.
#[derive(Debug, Default)]
pub struct Reference {
    inputs: HashMap<String, Recorded>,
    /// The tokens of the expert that was seen last.
    tokens: Vec<u32>,
}

#[derive(Debug)]
struct Recorded {
    x: Vec<f32>,
    gates: Option<Vec<f32>>,
    /// The token of each row, ascending, for the second half of an expert.
    tokens: Option<Vec<u32>>,
}

impl Reference {
    /// What the rows of `input`, gathered in `columns`, lack of what the same tokens were here. An expert's rows are those of
    /// `tokens`, and tokens that were not routed to it here lack nothing. `None` if the input is not known.
    pub fn lack(
        &self,
        first: &str,
        input: &MatmulInput<'_>,
        columns: &Columns,
        tokens: &[u32],
        threads: usize,
    ) -> Option<Columns> {
        let recorded = self.inputs.get(first)?;
        let theirs = MatmulInput { gates: recorded.gates.as_deref(), ..MatmulInput::whole(&[], &recorded.x, input.k) };
        let theirs = Columns::gather(&theirs, threads);
        Some(match &recorded.tokens {
            None => columns.lack(&theirs, Some, threads),
            Some(known) => columns.lack(&theirs, |row| known.binary_search(tokens.get(row)?).ok(), threads),
        })
    }
}

impl Observer for Reference {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        let Some(first) = input.weights.first() else { return };
        if let Some(tokens) = input.rows {
            // The first half of an expert reads rows of what its router reads, which is compared as a whole.
            self.tokens = tokens.to_vec();
            return;
        }
        let tokens = input.gates.map(|_| self.tokens.clone());
        let recorded = Recorded { x: input.x.to_vec(), gates: input.gates.map(<[f32]>::to_vec), tokens };
        self.inputs.insert((*first).to_owned(), recorded);
    }

    fn routed(&mut self, _routed: &Routed<'_>) {}
}
