//! The nonlinearities of gated MLPs: their one scalar definition.

use ashlar_arch::Activation;

/// What `gate` and `up` become together, in f64, rounded once.
#[must_use]
pub fn gated(gate: f32, up: f32, activation: Activation) -> f32 {
    let (g, u) = (f64::from(gate), f64::from(up));
    let clamped = |limit: f32| (g.min(f64::from(limit)), u.clamp(-f64::from(limit.abs()), f64::from(limit.abs())));
    let swish = |g: f64, alpha: f64| g / (1.0 + (-alpha * g).exp());
    let y = match activation {
        Activation::Silu => swish(g, 1.0) * u,
        Activation::ClampedSilu { limit } => {
            let (g, u) = clamped(limit);
            swish(g, 1.0) * u
        }
        Activation::ClampedSwish { limit, alpha } => {
            let (g, u) = clamped(limit);
            swish(g, f64::from(alpha)) * (u + 1.0)
        }
    };
    y as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from numpy.
    #[test]
    fn activations_clamp_the_gate_above_and_up_on_both_sides() {
        let close = |got: f32, want: f32| assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{got} {want}");
        close(gated(1.5, 2.0, Activation::Silu), 2.452_723_4);
        let silu = Activation::ClampedSilu { limit: 1.5 };
        close(gated(3.0, 2.0, silu), 1.226_361_8 * 1.5);
        close(gated(-3.0, -2.0, silu), -0.142_277_62 * -1.5);
        let swish = Activation::ClampedSwish { limit: 7.0, alpha: 1.702 };
        close(gated(9.0, -8.0, swish), -41.999_72);
        close(gated(0.5, 0.25, swish), 0.437_985_46);
    }
}
