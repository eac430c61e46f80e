//! Room for the activations of one batch and their gradients, allocated once.

use super::TrainOptions;
use super::backend::TrainBackend;
use super::layout::Trained;
use crate::config::Config;
use crate::error::Result;
use crate::ops::selective_scan::CHUNK;

/// What the backward needs of a layer; with recomputation there is only one, for all layers in turn.
pub(super) struct Saved<B: TrainBackend> {
    /// [tokens, 2 · d_inner]
    pub xz: B::Buffer,
    /// [tokens, dt_rank + 2 · d_state]
    pub dt_b_c: B::Buffer,
    /// [tokens, d_inner]
    pub y: B::Buffer,
    /// [chunks, d_state, d_inner] f32: the scan's states.
    pub boundary: B::Buffer,
}

/// Everything. T: `max_tokens`.
pub(super) struct Activations<B: TrainBackend> {
    pub saved: Vec<Saved<B>>,
    /// [T, d_model] f32: what each layer's norm, and the last one, took.
    pub residual: Vec<B::Buffer>,
    /// [T, d_model]: a norm's output; after the forward the final one.
    pub hidden: B::Buffer,
    /// [T, d_inner]
    pub u: B::Buffer,
    /// [T, d_inner]
    pub delta: B::Buffer,
    /// [T, d_model]: a mixer's output, and its gradient.
    pub mixed: B::Buffer,
    /// [T, rank]: between an adapter's matrices.
    pub low: Option<[B::Buffer; 2]>,
    /// [T, d_model] f32
    pub residual_grad: B::Buffer,
    /// [T, d_model]
    pub hidden_grad: B::Buffer,
    /// [T, 2 · d_inner]
    pub xz_grad: B::Buffer,
    /// [T, d_inner]
    pub u_grad: B::Buffer,
    /// [T, d_inner]
    pub delta_grad: B::Buffer,
    /// [T, d_inner]
    pub y_grad: B::Buffer,
    /// [T, dt_rank + 2 · d_state]
    pub dt_b_c_grad: B::Buffer,
    /// [T, d_state] f32: of B and of C.
    pub bc_grad: [B::Buffer; 2],
    /// [logits_rows, vocab]: of a piece of the tokens.
    pub logits: B::Buffer,
    /// Rows of that.
    pub logits_rows: usize,
    /// Losses of each piece, f32.
    pub losses: Vec<B::Buffer>,
}

impl<B: TrainBackend> Activations<B> {
    pub fn new(backend: &mut B, config: &Config, options: &TrainOptions) -> Result<Self> {
        let Config { d_model, d_inner, d_state, dt_rank, n_layer, padded_vocab_size: vocab, .. } = *config;
        let tokens = options.max_tokens;
        let chunks = tokens / CHUNK + options.max_sequences;
        let width = dt_rank + 2 * d_state;
        let layers = if options.recompute { 1 } else { n_layer };
        let saved = (0..layers).map(|_| {
            Ok(Saved {
                xz: backend.activations(tokens * 2 * d_inner)?,
                dt_b_c: backend.activations(tokens * width)?,
                y: backend.activations(tokens * d_inner)?,
                boundary: backend.alloc(chunks * d_state * d_inner, "the scan's states")?,
            })
        });
        let saved = saved.collect::<Result<_>>()?;
        let residual = (0..=n_layer).map(|_| backend.alloc(tokens * d_model, "the residual stream"));
        let residual = residual.collect::<Result<_>>()?;
        let low = match &options.trained {
            Trained::Lora { rank, .. } => {
                Some([backend.activations(tokens * rank)?, backend.activations(tokens * rank)?])
            }
            _ => None,
        };
        let logits_rows = (backend.logits_elements() / vocab).clamp(1, tokens);
        let pieces: Vec<usize> =
            (0..tokens).step_by(logits_rows).map(|from| logits_rows.min(tokens - from)).collect();
        let losses = backend.flat(&pieces, "losses")?;
        let residual_grad = backend.alloc(tokens * d_model, "gradients of activations")?;
        let mut of_states = || backend.alloc(tokens * d_state, "gradients of activations");
        let bc_grad = [of_states()?, of_states()?];
        let mut room = |cols: usize| backend.activations(tokens * cols);
        Ok(Self {
            saved,
            residual,
            hidden: room(d_model)?,
            u: room(d_inner)?,
            delta: room(d_inner)?,
            mixed: room(d_model)?,
            low,
            residual_grad,
            hidden_grad: room(d_model)?,
            xz_grad: room(2 * d_inner)?,
            u_grad: room(d_inner)?,
            delta_grad: room(d_inner)?,
            y_grad: room(d_inner)?,
            dt_b_c_grad: room(width)?,
            bc_grad,
            logits: backend.activations(logits_rows * vocab)?,
            logits_rows,
            losses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::cpu::memory::allocated;

    /// What docs/training.md says of `recompute`.
    #[test]
    fn recomputation_keeps_one_layer() {
        let config = Config::from_json(r#"{"d_model":768,"n_layer":24,"vocab_size":50277}"#).unwrap();
        let gigabytes = |recompute| {
            let options =
                TrainOptions { recompute, max_tokens: 8 * 512, max_sequences: 8, ..TrainOptions::default() };
            let before = allocated();
            let activations = Activations::<Cpu>::new(&mut Cpu::new(1).unwrap(), &config, &options).unwrap();
            let bytes = allocated() - before;
            drop(activations);
            (bytes as f64 / 1e8).round() / 10.0
        };
        assert_eq!((gigabytes(false), gigabytes(true)), (2.6, 0.7));
    }
}
