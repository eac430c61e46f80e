//! Causal depthwise convolution over time, with SiLU (`causal_conv1d` of the official implementation).
//!
//! ```text
//! out_t = SiLU(bias + Σ_k weight[k] ⊙ x_{t − (d_conv − 1) + k}),  k = 0 … d_conv − 1
//! ```
//! Inputs before the sequence's first token come from `conv_state`: the last `d_conv − 1` inputs, oldest
//! first, [d_conv − 1, d_inner]; these are the newest columns of the official window.

pub mod cpu;
pub(crate) mod cpu_backward;
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

/// The gradients of [`CausalConv1d`]. Those of the parameters are overwritten. States lie in
/// slots, all three in the same way.
pub struct ConvBackward<'a, T> {
    /// [tokens, d_inner].
    pub x: View<'a, T>,
    /// [d_conv, d_inner].
    pub weight: &'a T,
    /// [d_inner].
    pub bias: Option<&'a T>,
    /// Width of the window.
    pub d_conv: usize,
    /// The windows that forward began with; not written. `None`: zero.
    pub initial_state: Option<StateView<'a, T>>,
    /// [tokens, d_inner]: gradient of out.
    pub out_grad: View<'a, T>,
    /// Gradient of the last windows; not written. `None`: zero.
    pub last_state_grad: Option<StateView<'a, T>>,
    /// [tokens, d_inner].
    pub x_grad: ViewMut<'a, T>,
    /// [d_conv, d_inner].
    pub weight_grad: &'a mut T,
    /// [d_inner].
    pub bias_grad: Option<&'a mut T>,
    /// Gradient of the initial windows, zero for sequences that began fresh.
    pub initial_state_grad: Option<StateView<'a, T>>,
}
