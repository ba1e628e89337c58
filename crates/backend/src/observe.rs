//! Taps for calibration: what the matmuls of an op read, and where tokens are routed.

/// The input of one or more matmuls that share it.
#[derive(Clone, Copy, Debug)]
pub struct MatmulInput<'a> {
    /// Names of the weights; all have `k` inputs.
    pub weights: &'a [&'a str],
    /// Rows × k, row-major, before any rounding to int8.
    pub x: &'a [f32],
    /// Inputs.
    pub k: usize,
    /// The rows of `x` that these weights read; `None` for all.
    pub rows: Option<&'a [u32]>,
    /// By how much each of these rows counts in the op's output: the router's weight for the down projection of an
    /// expert. `None` for 1.
    pub gates: Option<&'a [f32]>,
}

impl<'a> MatmulInput<'a> {
    /// An input all of whose rows are read and count the same.
    #[must_use]
    pub fn whole(weights: &'a [&'a str], x: &'a [f32], k: usize) -> Self {
        Self { weights, x, k, rows: None, gates: None }
    }

    /// The rows that are read, each with its gate.
    pub fn rows(&self) -> impl Iterator<Item = (&'a [f32], f32)> + use<'a> {
        let (x, k, rows, gates) = (self.x, self.k, self.rows, self.gates);
        let count = rows.map_or(x.len() / k.max(1), <[u32]>::len);
        (0..count).map(move |i| {
            let row = rows.map_or(i, |r| r.get(i).map_or(0, |row| *row as usize));
            let gate = gates.and_then(|g| g.get(i)).copied().unwrap_or(1.0);
            (x.get(row * k..(row + 1) * k).unwrap_or_default(), gate)
        })
    }
}

/// The first `k` columns of rows of `width`, one row after the other.
#[must_use]
pub fn first_columns(x: &[f32], width: usize, k: usize) -> Vec<f32> {
    x.chunks_exact(width.max(1)).flat_map(|row| row.iter().take(k).copied()).collect()
}

/// Where the tokens of a batch went.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// Name of the router.
    pub router: &'a str,
    /// Experts of the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens × top_k, best first: expert and weight.
    pub chosen: &'a [(usize, f32)],
}

/// Watches an op run. Calls come in an order that does not depend on threads, with values that do not either.
pub trait Observer {
    /// The inputs of matmuls, before they are multiplied. Weights of experts that no token chose are not mentioned.
    fn matmul_input(&mut self, input: &MatmulInput<'_>);

    /// Whether it looks at inputs; if not, devices without taps may run all ops but those that route.
    fn wants_inputs(&self) -> bool {
        true
    }

    /// The decisions of a router.
    fn routed(&mut self, routed: &Routed<'_>);
}
