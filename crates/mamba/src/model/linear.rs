//! The one place that every matrix product with weights goes through (but for the tied head), so that
//! quantized weights touch nothing else.

use crate::backend::{Backend, View, ViewMut};
use crate::error::Result;

/// `out = x · weightᵀ + bias`.
pub struct Linear<B: Backend> {
    /// [out, in].
    pub weight: B::Weight,
    /// [out].
    pub bias: Option<B::Buffer>,
}

impl<B: Backend> Linear<B> {
    /// x [tokens, in] to out [tokens, out].
    ///
    /// # Errors
    /// What the backend gives.
    pub fn forward(&self, backend: &mut B, x: View<B::Buffer>, out: ViewMut<B::Buffer>) -> Result<()> {
        backend.linear(x, &self.weight, self.bias.as_ref(), out)
    }
}
