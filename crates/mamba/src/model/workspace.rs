//! Room for the activations of one step, allocated once.

use super::Adapters;
use crate::backend::Backend;
use crate::config::Config;
use crate::error::Result;

/// Activations of at most `max_tokens` tokens and logits of at most `max_rows` of them.
pub struct Workspace<B: Backend> {
    /// [tokens, d_model], f32 on every backend.
    pub(super) residual: B::Buffer,
    /// [tokens, d_model]: the norm's output; after [`super::Model::forward`] the final one.
    pub hidden: B::Buffer,
    /// [tokens, 2 · d_inner].
    pub(super) xz: B::Buffer,
    /// [tokens, d_inner].
    pub(super) u: B::Buffer,
    /// [tokens, dt_rank + 2 · d_state].
    pub(super) dt_b_c: B::Buffer,
    /// [tokens, d_inner].
    pub(super) delta: B::Buffer,
    /// [tokens, d_inner].
    pub(super) y: B::Buffer,
    /// [tokens, d_model]: the mixer's output.
    pub(super) mixed: B::Buffer,
    /// [rows, d_model].
    pub(super) selected: B::Buffer,
    /// [rows, vocab], f32 on every backend.
    pub logits: B::Buffer,
    /// Adapters, where the model was loaded with any.
    pub adapters: Option<Adapters<B>>,
    pub(super) d_model: usize,
    max_tokens: usize,
    max_rows: usize,
}

impl<B: Backend> Workspace<B> {
    /// Allocates it.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub fn new(backend: &mut B, config: &Config, max_tokens: usize, max_rows: usize) -> Result<Self> {
        let Config { d_model, d_inner, d_state, dt_rank, .. } = *config;
        let residual = backend.alloc(max_tokens * d_model, "activations")?;
        let mut tokens = |cols: usize| backend.activations(max_tokens * cols);
        Ok(Self {
            residual,
            hidden: tokens(d_model)?,
            xz: tokens(2 * d_inner)?,
            u: tokens(d_inner)?,
            dt_b_c: tokens(dt_rank + 2 * d_state)?,
            delta: tokens(d_inner)?,
            y: tokens(d_inner)?,
            mixed: tokens(d_model)?,
            selected: backend.activations(max_rows * d_model)?,
            logits: backend.alloc(max_rows * config.padded_vocab_size, "logits")?,
            adapters: None,
            d_model,
            max_tokens,
            max_rows,
        })
    }

    /// Tokens that fit.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Rows of logits that fit.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }
}
