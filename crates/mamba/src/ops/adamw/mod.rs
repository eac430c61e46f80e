//! The optimizer's step: Adam with decoupled weight decay (Loshchilov and Hutter 2019; `torch.optim.AdamW`).
//!
//! ```text
//! p ← p · (1 − lr · weight_decay)
//! m ← β₁ · m + (1 − β₁) · g            v ← β₂ · v + (1 − β₂) · g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)
//! ```

pub(crate) mod cpu;
pub mod reference;

/// What a step goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate of this step.
    pub lr: f64,
    /// Of the first moments.
    pub beta1: f64,
    /// Of the second moments.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Of decayed tensors.
    pub weight_decay: f64,
    /// t: the number of this step, from 1.
    pub step: u64,
}

/// What is the same for all elements, in f32 as the kernels take it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// lr / (1 − β₁ᵗ)
    pub step_size: f32,
    /// 1 / √(1 − β₂ᵗ)
    pub root_scale: f32,
    /// 1 − lr · weight_decay
    pub keep: f32,
}

impl Rates {
    pub(crate) fn factors(&self) -> Factors {
        let Self { lr, beta1, beta2, weight_decay, step, .. } = *self;
        let t = step.min(1 << 30) as i32;
        Factors {
            step_size: (lr / (1.0 - beta1.powi(t))) as f32,
            root_scale: (1.0 / (1.0 - beta2.powi(t)).sqrt()) as f32,
            keep: (1.0 - lr * weight_decay) as f32,
        }
    }
}

/// One step of AdamW on tensors that lie end to end, as [`crate::train::TrainBackend::flat`] made them.
pub struct AdamW<'a, T> {
    /// f32.
    pub params: &'a mut [T],
    /// Copies in the activations' type of the first parameters; none where that is f32.
    pub copies: &'a mut [T],
    /// f32.
    pub grads: &'a [T],
    /// First moments.
    pub m: &'a mut [T],
    /// Second moments.
    pub v: &'a mut [T],
    /// One f32: the norm of all gradients. Where it is not finite nothing is changed.
    pub norm: &'a T,
    /// The norm that gradients are scaled down to; infinite: never.
    pub clip: f32,
    /// How many tensors, from the first on, are decayed.
    pub decayed: usize,
    /// The rates.
    pub rates: Rates,
}
