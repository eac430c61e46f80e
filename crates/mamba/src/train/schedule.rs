//! The learning rate over a run.

/// How the rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// It does not.
    Constant,
    /// In a straight line to `min_lr`.
    Linear,
    /// By half a cosine to `min_lr`.
    Cosine,
}

/// The rate of step k (from 0) of `steps`: `min(1, (k + 1) / warmup) · decay(k / steps)`. The decay runs over the whole
/// run, as in the recipe of the reference model, not from the end of the warm-up on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The greatest rate.
    pub lr: f64,
    /// What it falls to.
    pub min_lr: f64,
    /// Steps until the full rate.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let done = (step as f64 / self.steps.max(1) as f64).min(1.0);
        let falls = match self.decay {
            Decay::Constant => return warm * self.lr,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        warm * (self.min_lr + (self.lr - self.min_lr) * falls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_the_corners() {
        let schedule = |decay| Schedule { lr: 1.0, min_lr: 0.1, warmup: 10, steps: 100, decay };
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let lr = |step| schedule(decay).lr(step);
            assert!((lr(0) - 0.1).abs() < 1e-12, "a tenth of the warm-up");
            assert!((lr(1000) - if decay == Decay::Constant { 1.0 } else { 0.1 }).abs() < 1e-12);
        }
        assert!((schedule(Decay::Linear).lr(50) - 0.55).abs() < 1e-12);
        assert!((schedule(Decay::Cosine).lr(50) - 0.55).abs() < 1e-12);
        assert!((schedule(Decay::Cosine).lr(25) - (0.1 + 0.9 * 0.5 * (1.0 + 0.5f64.sqrt()))).abs() < 1e-12);
        // As train_official.py computes it.
        let (lr, step, steps) = (3e-3, 700, 5803);
        let official = lr
            * (0.5 * (1.0 + (std::f64::consts::PI * 700.0 / 5803.0).cos()) * (1.0 - 1e-5 / lr) + 1e-5 / lr);
        let ours = Schedule { lr, min_lr: 1e-5, warmup: 200, steps, decay: Decay::Cosine };
        assert!((ours.lr(step) - official).abs() < 1e-12);
    }
}
