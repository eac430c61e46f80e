//! Matrix products with weights: `out = x · weightᵀ + bias`, x [tokens, in], weight [out, in].
//!
//! Weights are packed once, at load, and stay in their own type; they are widened in registers or in a cache-sized
//! panel, never as a whole.

#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod cpu;
mod float;
mod integer;
pub(crate) mod matmul;
mod packed;
pub mod reference;
mod tiles;

pub use packed::Packed;

use crate::backend::{View, ViewMut};

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
