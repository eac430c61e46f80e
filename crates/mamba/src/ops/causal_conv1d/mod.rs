//! Causal depthwise convolution over time, with SiLU (`causal_conv1d` of the official implementation).
//!
//! ```text
//! out_t = SiLU(bias + Σ_k weight[k] ⊙ x_{t − (d_conv − 1) + k}),  k = 0 … d_conv − 1
//! ```
//! Inputs before the sequence's first token come from `conv_state`: the last `d_conv − 1` inputs, oldest
//! first, [d_conv − 1, d_inner]; these are the newest columns of the official window.

pub mod cpu;
pub mod reference;

use crate::backend::{StateView, View, ViewMut};

/// The arguments of [`crate::backend::Backend::causal_conv1d`].
pub struct CausalConv1d<'a, T> {
    /// [tokens, d_inner].
    pub x: View<'a, T>,
    /// [d_conv, d_inner]: the transposed of the checkpoint's [d_inner, 1, d_conv].
    pub weight: &'a T,
    /// [d_inner].
    pub bias: Option<&'a T>,
    /// Width of the window.
    pub d_conv: usize,
    /// `conv_state` [d_conv − 1, d_inner] of each slot; `None` begins at zero and forgets the last state.
    pub state: Option<StateView<'a, T>>,
    /// [tokens, d_inner].
    pub out: ViewMut<'a, T>,
}
