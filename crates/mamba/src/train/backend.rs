//! What a device has to be able to do for training, beyond running a model: parameters in flat memory, products of any
//! orientation, and the backward of each operation.

use crate::backend::{Backend, View, ViewMut};
use crate::error::Result;
use crate::ops::adamw::AdamW;
use crate::ops::causal_conv1d::ConvBackward;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::linear::MatMul;
use crate::ops::norm::{NormBackward, NormForward};
use crate::ops::selective_scan::{ScanBackward, SelectiveScan};

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

    /// A parameter's copy as `adamw` makes it: in the activations' type, rounded up or down by chance, an element always by
    /// the same; both buffers are of flat groups, at the same place.
    fn round(&mut self, values: &Self::Buffer, copy: &mut Self::Buffer) -> Result<()>;

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

    /// The scan, keeping the state before every [`crate::ops::selective_scan::CHUNK`]th token of each sequence, [chunks, d_state, d_inner].
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
