//! What a device has to be able to do for training, beyond running a model: parameters in flat memory, products of any
//! orientation, and the backward of each operation.

use crate::backend::{Backend, StateView, View, ViewMut};
use crate::config::NormKind;
use crate::error::Result;
use crate::ops::selective_scan::SelectiveScan;

/// Tokens from a state that the scan keeps for its backward to the next.
pub const CHUNK: usize = 64;

/// A factor of a product: the matrix of a view, or its transposed.
#[derive(Debug)]
pub struct Factor<'a, T> {
    /// The matrix.
    pub view: View<'a, T>,
    /// Take it transposed.
    pub transposed: bool,
}

impl<T> Clone for Factor<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Factor<'_, T> {}

impl<'a, T> Factor<'a, T> {
    /// The matrix itself.
    #[must_use]
    pub fn of(view: View<'a, T>) -> Self {
        Self { view, transposed: false }
    }

    /// Its transposed.
    #[must_use]
    pub fn transposed(view: View<'a, T>) -> Self {
        Self { view, transposed: true }
    }

    /// Rows as a factor.
    #[must_use]
    pub fn rows(&self) -> usize {
        if self.transposed { self.view.cols } else { self.view.rows }
    }

    /// Columns as a factor.
    #[must_use]
    pub fn cols(&self) -> usize {
        if self.transposed { self.view.rows } else { self.view.cols }
    }
}

/// `out = scale · a · b`, or added to it. Both factors are activations' type; out is that or f32. Summed in f32.
pub struct MatMul<'a, T> {
    /// [m, k].
    pub a: Factor<'a, T>,
    /// [k, n].
    pub b: Factor<'a, T>,
    /// Multiplies the product.
    pub scale: f32,
    /// Add to what is in `out`.
    pub add: bool,
    /// [m, n].
    pub out: ViewMut<'a, T>,
}

/// `sum = residual + delta`, `out = norm(sum)`; see [`crate::ops::norm`]. The sum is kept for the backward.
pub struct NormForward<'a, T> {
    /// Which norm.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// [d_model].
    pub weight: &'a T,
    /// [d_model].
    pub bias: Option<&'a T>,
    /// [tokens, d_model], f32.
    pub residual: View<'a, T>,
    /// [tokens, d_model], added first; with it comes the sum, [tokens, d_model] f32. `None`: the residual is the sum.
    pub delta: Option<(View<'a, T>, ViewMut<'a, T>)>,
    /// [tokens, d_model].
    pub out: ViewMut<'a, T>,
}

/// The gradients of [`NormForward`]. Those of the parameters are overwritten with the sums over all tokens.
pub struct NormBackward<'a, T> {
    /// As forward.
    pub kind: NormKind,
    /// As forward.
    pub eps: f32,
    /// As forward.
    pub weight: &'a T,
    /// [tokens, d_model] f32: the sum that was normalized.
    pub sum: View<'a, T>,
    /// [tokens, d_model]: gradient of out.
    pub out_grad: View<'a, T>,
    /// [tokens, d_model] f32: the gradient that comes down the residual stream is replaced by what goes on.
    pub residual_grad: ViewMut<'a, T>,
    /// Nothing comes down: what `residual_grad` holds is not read.
    pub last: bool,
    /// [tokens, d_model]: the gradient of delta, which is that of the residual.
    pub delta_grad: Option<ViewMut<'a, T>>,
    /// [d_model].
    pub weight_grad: &'a mut T,
    /// [d_model].
    pub bias_grad: Option<&'a mut T>,
}

/// The gradients of [`crate::ops::causal_conv1d::CausalConv1d`]. Those of the parameters are overwritten. States lie in
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
    /// [tokens, 2 · d_state] f32: of B, then of C.
    pub bc_grad: ViewMut<'a, T>,
    /// [d_state, d_inner].
    pub a_grad: &'a mut T,
    /// [d_inner].
    pub d_grad: &'a mut T,
    /// [d_inner].
    pub delta_bias_grad: &'a mut T,
    /// Gradient of the initial states, zero for sequences that began fresh.
    pub initial_state_grad: Option<StateView<'a, T>>,
}

/// The loss of rows of logits; see [`crate::ops::cross_entropy`].
pub struct CrossEntropy<'a, T> {
    /// [rows, vocab]; replaced by `scale` times their gradient where there is a scale.
    pub logits: ViewMut<'a, T>,
    /// [rows]; negative: ignored.
    pub targets: &'a [i32],
    /// Weight of (log Σ exp)² in a row's loss.
    pub z_loss: f32,
    /// Of the sum of the losses in what is minimised.
    pub scale: Option<f32>,
    /// [rows] f32.
    pub losses: &'a mut T,
}

/// One step of AdamW ([`crate::ops::adamw`]) on tensors that lie end to end, as [`TrainBackend::flat`] made them.
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
    pub rates: crate::ops::adamw::Rates,
}

/// A device that trains. Buffers that `alloc` and `flat` (f32) give are f32, those of `activations` and `flat_copies` in
/// the type of activations.
pub trait TrainBackend: Backend {
    /// Whether activations are f32, so that parameters need no copies.
    fn is_f32(&self) -> bool;

    /// Logits that are in memory at a time.
    fn logits_elements(&self) -> usize;

    /// f32 buffers of these lengths, zero, end to end in one piece of memory (with gaps, to whole cache lines).
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn flat(&mut self, lens: &[usize], what: &str) -> Result<Vec<Self::Buffer>>;

    /// The same in the activations' type.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn flat_copies(&mut self, lens: &[usize], what: &str) -> Result<Vec<Self::Buffer>>;

    /// Fills a flat group with zeros.
    fn zero(&mut self, flat: &mut [Self::Buffer]) -> Result<()>;

    /// `to += from` over flat groups of the same lengths.
    fn add(&mut self, to: &mut [Self::Buffer], from: &[Self::Buffer]) -> Result<()>;

    /// `to ← from`, or `to += from`, converted to `to`'s type. Both have the same shape.
    fn copy(&mut self, from: View<Self::Buffer>, to: ViewMut<Self::Buffer>, add: bool) -> Result<()>;

    /// Fills a view with zeros.
    fn zero_view(&mut self, to: ViewMut<Self::Buffer>) -> Result<()>;

    /// `a = −exp(a_log)`, element by element.
    fn negative_exp(&mut self, a_log: &Self::Buffer, a: &mut Self::Buffer) -> Result<()>;

    /// `out ← x · y`, element by element, f32.
    fn multiply(&mut self, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// See [`MatMul`].
    fn matmul(&mut self, op: MatMul<Self::Buffer>) -> Result<()>;

    /// Adds a bias to each row; x [rows, n], bias [n] f32.
    fn add_bias(&mut self, bias: &Self::Buffer, x: ViewMut<Self::Buffer>) -> Result<()>;

    /// The bias's gradient: `out ← Σ_rows x`, out [n] f32, overwritten.
    fn sum_rows(&mut self, x: View<Self::Buffer>, out: &mut Self::Buffer) -> Result<()>;

    /// `out[t] = table[ids[t]]` for the plan's tokens; table [vocab, d_model], out f32.
    fn lookup(
        &mut self,
        plan: &Self::Plan,
        table: View<Self::Buffer>,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()>;

    /// `table_grad[ids[t]] += out_grad[t]`, a row's tokens in their order; both f32.
    fn lookup_backward(
        &mut self,
        ids: &[u32],
        out_grad: View<Self::Buffer>,
        table_grad: ViewMut<Self::Buffer>,
    ) -> Result<()>;

    /// See [`NormForward`].
    fn norm_forward(&mut self, op: NormForward<Self::Buffer>) -> Result<()>;

    /// See [`NormBackward`].
    fn norm_backward(&mut self, op: NormBackward<Self::Buffer>) -> Result<()>;

    /// See [`ConvBackward`].
    fn conv_backward(&mut self, plan: &Self::Plan, op: ConvBackward<Self::Buffer>) -> Result<()>;

    /// The scan, keeping the state before every [`CHUNK`]th token of each sequence, [chunks, d_state, d_inner].
    fn scan_forward(
        &mut self,
        plan: &Self::Plan,
        op: SelectiveScan<Self::Buffer>,
        boundary: &mut Self::Buffer,
    ) -> Result<()>;

    /// See [`ScanBackward`].
    fn scan_backward(&mut self, plan: &Self::Plan, op: ScanBackward<Self::Buffer>) -> Result<()>;

    /// See [`CrossEntropy`].
    fn cross_entropy(&mut self, op: CrossEntropy<Self::Buffer>) -> Result<()>;

    /// The Euclidean norm of a flat group into one f32.
    fn norm_of(&mut self, grads: &[Self::Buffer], norm: &mut Self::Buffer) -> Result<()>;

    /// See [`AdamW`].
    fn adamw(&mut self, op: AdamW<Self::Buffer>) -> Result<()>;

    /// Bytes that the trainer's device has in use, all of it; `None` where that is unknown.
    fn memory_in_use(&self) -> Option<u64>;
}
