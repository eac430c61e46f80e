//! The selective scan, the heart of Mamba (paper, algorithm 2; `selective_scan_ref` of the official
//! implementation), fused with Δ's softplus and bias, the skip D and the gate.
//!
//! Symbols, for one sequence of length L:
//! - `u` [L, d_inner]: input (after the convolution)
//! - `delta` [L, d_inner]: step size before softplus; Δ = softplus(delta + delta_bias)
//! - `A` [d_state, d_inner]: negative, the transposed of the checkpoint's −exp(A_log)
//! - `B`, `C` [L, d_state]: input and output projections, chosen by the input ("selective")
//! - `D` [d_inner]: skip; `z` [L, d_inner]: gate
//! - `h` [d_state, d_inner]: state
//!
//! ```text
//! h_t = exp(Δ_t · A) ⊙ h_{t−1} + Δ_t · B_t · u_t
//! y_t = (C_t · h_t + D ⊙ u_t) ⊙ SiLU(z_t)
//! ```

pub mod cpu;
pub(crate) mod cpu_backward;
pub mod reference;

use crate::backend::{StateView, View, ViewMut};

/// The arguments of [`crate::backend::Backend::selective_scan`].
pub struct SelectiveScan<'a, T> {
    /// [tokens, d_inner].
    pub u: View<'a, T>,
    /// [tokens, d_inner], before bias and softplus.
    pub delta: View<'a, T>,
    /// [d_inner]; with it comes the softplus. `None`: delta is used as it is.
    pub delta_bias: Option<&'a T>,
    /// [d_state, d_inner], negative.
    pub a: &'a T,
    /// [tokens, d_state].
    pub b: View<'a, T>,
    /// [tokens, d_state].
    pub c: View<'a, T>,
    /// [d_inner].
    pub d: Option<&'a T>,
    /// [tokens, d_inner].
    pub z: Option<View<'a, T>>,
    /// `ssm_state` [d_state, d_inner] of each slot; `None` begins at zero and forgets the last state.
    pub state: Option<StateView<'a, T>>,
    /// y [tokens, d_inner].
    pub out: ViewMut<'a, T>,
}

/// Tokens from a state that the scan keeps for its backward to the next.
pub const CHUNK: usize = 64;

/// The gradients of [`SelectiveScan`]. Those of the parameters are overwritten. States lie in slots, both in the same
/// way.
pub struct ScanBackward<'a, T> {
    /// [tokens, d_inner].
    pub u: View<'a, T>,
    /// [tokens, d_inner], before bias and softplus.
    pub delta: View<'a, T>,
    /// [d_inner].
    pub delta_bias: &'a T,
    /// [d_state, d_inner].
    pub a: &'a T,
    /// [tokens, d_state].
    pub b: View<'a, T>,
    /// [tokens, d_state].
    pub c: View<'a, T>,
    /// [d_inner].
    pub d: &'a T,
    /// [tokens, d_inner].
    pub z: View<'a, T>,
    /// The states that forward kept.
    pub boundary: &'a T,
    /// [tokens, d_inner]: gradient of y.
    pub out_grad: View<'a, T>,
    /// Gradient of the last states; not written. `None`: zero.
    pub last_state_grad: Option<StateView<'a, T>>,
    /// [tokens, d_inner].
    pub u_grad: ViewMut<'a, T>,
    /// [tokens, d_inner].
    pub delta_grad: ViewMut<'a, T>,
    /// [tokens, d_inner].
    pub z_grad: ViewMut<'a, T>,
    /// [tokens, d_state] f32.
    pub b_grad: ViewMut<'a, T>,
    /// [tokens, d_state] f32.
    pub c_grad: ViewMut<'a, T>,
    /// [d_state, d_inner].
    pub a_grad: &'a mut T,
    /// [d_inner].
    pub d_grad: &'a mut T,
    /// [d_inner].
    pub delta_bias_grad: &'a mut T,
    /// Gradient of the initial states, zero for sequences that began fresh.
    pub initial_state_grad: Option<StateView<'a, T>>,
}
