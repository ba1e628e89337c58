//! Logits of every fixture through the command line, against the golden ones. Tolerances: docs/numerics.md.

use crate::support::{FIXTURES, Test, fixture, logits, max_error_of_range, tensor_i64, write_ids};
use std::path::Path;

/// f32 arithmetic in another order than the framework that made the golden logits.
const REFERENCE_TOLERANCE: f32 = 2e-4;

/// Logits of `model` for the golden input of `name`, on `device`.
pub fn logits_of(model: &Path, name: &str, device: &str) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (input, output) = (dir.path().join("ids.safetensors"), dir.path().join("logits.safetensors"));
    write_ids(&input, &tensor_i64(&golden(name), "input_ids"));
    ashlar!["logits", model, "--device", device, "--input", input, "--output", output].expect(0);
    Ok(logits(&output))
}

/// The golden data of a fixture.
pub fn golden(name: &str) -> std::path::PathBuf {
    fixture(name).join("golden.safetensors")
}

#[test]
fn reference_logits_of_every_checkpoint_are_the_golden_ones() -> Test {
    for name in FIXTURES {
        let got = logits_of(&fixture(name), name, "reference")?;
        let error = max_error_of_range(&got, &logits(&golden(name)));
        assert!(error <= REFERENCE_TOLERANCE, "{name}: {error} of the logit range");
    }
    Ok(())
}
