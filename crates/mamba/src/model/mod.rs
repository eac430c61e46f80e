//! Blocks, stacks and states: what is composed of the ops. Written once, over [`Backend`].

mod adapter;
mod block;
mod linear;
mod mixer;
pub mod state;
mod workspace;

pub use adapter::Adapters;
pub use block::{Block, Norm};
pub use linear::Linear;
pub use mixer::{Mamba1, Mixer};
pub use state::{Slots, StateEntry, StateSpec};
pub use workspace::Workspace;

use self::block::Mixed;
use crate::backend::{Backend, Batch, HeadStep, View, ViewMut};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::dtype::DType;
use crate::error::Result;

/// A Mamba language model: embedding, blocks, final norm, head.
pub struct Model<B: Backend> {
    config: Config,
    embedding: B::Weight,
    blocks: Vec<Block<B>>,
    norm_f: Norm<B>,
    /// `None`: tied to the embedding.
    lm_head: Option<Linear<B>>,
    spec: StateSpec,
}

/// What is done with the logits [n, vocab] of n rows of a decode step, the first of which is its last argument.
pub type Choose<'a, B> = &'a mut dyn FnMut(&mut B, ViewMut<<B as Backend>::Buffer>, usize) -> Result<()>;

impl<B: Backend> Model<B> {
    /// Prepares all weights of a checkpoint. Matrices are kept in `dtype`; A, D, biases, norms and the
    /// convolution are f32, as in the official implementation. `progress` gets the bytes prepared so far (in
    /// `dtype`) and may end the load with an error.
    ///
    /// # Errors
    /// What reading the tensors gives, `OUT_OF_MEMORY`, and what `progress` returns.
    pub fn load(
        backend: &mut B,
        checkpoint: &Checkpoint,
        dtype: DType,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        let mut loader = Loader { backend, checkpoint, dtype, done: 0, progress };
        let embedding = loader.matrix("backbone.embedding.weight")?;
        let blocks = (0..config.n_layer)
            .map(|layer| Block::load(&mut loader, &config, layer))
            .collect::<Result<Vec<_>>>()?;
        let norm_f = Norm::load(&mut loader, &config, "backbone.norm_f")?;
        let lm_head = match config.tie_embeddings {
            true => None,
            false => Some(Linear { weight: loader.matrix("lm_head.weight")?, bias: None }),
        };
        let entries =
            blocks.iter().enumerate().flat_map(|(layer, block)| block.mixer.state_spec(layer)).collect();
        Ok(Self { config, embedding, blocks, norm_f, lm_head, spec: StateSpec { entries } })
    }

    /// The shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What one sequence's state consists of.
    pub fn spec(&self) -> &StateSpec {
        &self.spec
    }

    /// Row length of [`Model::logits`]: the padded vocabulary.
    pub fn padded_vocab_size(&self) -> usize {
        self.config.padded_vocab_size
    }

    /// Computes `workspace.hidden` [tokens, d_model], the hidden states after the final norm, for all tokens
    /// of a packed batch; every sequence's slot goes from its initial to its last state. A single token per
    /// sequence is a decode step; there is no other path for it. Whose the rows are, `workspace.adapters` was told. Returns
    /// the batch's plan, for what else is done with the hidden states.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn forward(
        &self,
        backend: &mut B,
        batch: &Batch,
        slots: &mut Slots<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<B::Plan> {
        let plan = backend.plan(batch)?;
        let mixed = self.run(backend, &plan, batch.tokens(), slots, workspace)?;
        self.norm_f.forward(backend, batch.tokens(), mixed == Mixed::Pending, workspace)?;
        Ok(plan)
    }

    /// The embedding and all blocks, for a plan of so many tokens.
    fn run(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        tokens: usize,
        slots: &mut Slots<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<Mixed> {
        assert!(
            tokens <= workspace.max_tokens(),
            "{tokens} tokens in a workspace of {}",
            workspace.max_tokens()
        );
        let d_model = self.config.d_model;
        backend.embedding(plan, &self.embedding, ViewMut::dense(&mut workspace.residual, tokens, d_model))?;
        let (mut mixed, mut state_offset) = (Mixed::None, 0);
        for block in &self.blocks {
            mixed = block.forward(backend, plan, tokens, mixed, slots, &mut state_offset, workspace)?;
        }
        Ok(mixed)
    }

    /// A step of one token for each of the `rows` sequences of a decoder's plan, with the adapters that its table has for
    /// them (`adapted`) or without: `choose` gets the logits [n, vocab] of n of them at a time, and the first one's row.
    ///
    /// # Errors
    /// What the backend and `choose` give.
    #[allow(clippy::too_many_arguments)]
    pub fn decode(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        rows: usize,
        adapted: bool,
        slots: &mut Slots<B>,
        workspace: &mut Workspace<B>,
        choose: Choose<B>,
    ) -> Result<()> {
        if let Some(adapters) = &mut workspace.adapters {
            adapters.assign_by_table(adapted);
        }
        let mixed = self.run(backend, plan, rows, slots, workspace)?;
        let (d_model, vocab) = (self.config.d_model, self.padded_vocab_size());
        if let (Mixed::Stepped, Some((norm, eps))) = (mixed, self.norm_f.as_rms())
            && rows <= workspace.max_rows()
        {
            let weight = self.lm_head.as_ref().map_or(&self.embedding, |head| &head.weight);
            let residual = View::dense(&workspace.residual, rows, d_model);
            let logits = ViewMut::dense(&mut workspace.logits, rows, vocab);
            if backend.head_step(HeadStep { residual, norm, eps, weight, logits })? {
                return choose(backend, ViewMut::dense(&mut workspace.logits, rows, vocab), 0);
            }
        }
        self.norm_f.forward(backend, rows, mixed == Mixed::Pending, workspace)?;
        for first in (0..rows).step_by(workspace.max_rows()) {
            let n = workspace.max_rows().min(rows - first);
            let mut hidden = View::dense(&workspace.hidden, n, d_model);
            hidden.offset = first * d_model;
            self.head(backend, hidden, ViewMut::dense(&mut workspace.logits, n, vocab))?;
            choose(backend, ViewMut::dense(&mut workspace.logits, n, vocab), first)?;
        }
        Ok(())
    }

    /// Hidden states [n, d_model] to logits [n, vocab].
    fn head(&self, backend: &mut B, hidden: View<B::Buffer>, logits: ViewMut<B::Buffer>) -> Result<()> {
        match &self.lm_head {
            Some(head) => head.forward(backend, hidden, logits),
            None => backend.linear(hidden, &self.embedding, None, logits),
        }
    }

    /// Computes `workspace.logits` [rows.len(), vocab] for the given rows of `workspace.hidden`.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn logits(&self, backend: &mut B, rows: &[u32], workspace: &mut Workspace<B>) -> Result<()> {
        let (n, d_model) = (rows.len(), self.config.d_model);
        assert!(n <= workspace.max_rows(), "{n} rows of logits in a workspace of {}", workspace.max_rows());
        let hidden = View::dense(&workspace.hidden, workspace.max_tokens(), d_model);
        backend.gather(hidden, rows, ViewMut::dense(&mut workspace.selected, n, d_model))?;
        let selected = View::dense(&workspace.selected, n, d_model);
        self.head(backend, selected, ViewMut::dense(&mut workspace.logits, n, self.padded_vocab_size()))
    }
}

/// Turns tensors of a checkpoint into what a backend computes with.
pub(crate) struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    checkpoint: &'a Checkpoint,
    dtype: DType,
    done: u64,
    progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl<B: Backend> Loader<'_, B> {
    /// A matrix [out, in], in the loader's dtype.
    pub(crate) fn matrix(&mut self, name: &str) -> Result<B::Weight> {
        let tensor = self.checkpoint.tensor(name)?;
        let inputs = tensor.shape.last().copied().unwrap_or_default();
        let weight = self.backend.weight(tensor, self.dtype.of_width(inputs))?;
        self.done += self.backend.weight_bytes(&weight);
        (self.progress)(self.done)?;
        Ok(weight)
    }

    /// A small tensor in f32, its elements changed by `map`.
    pub(crate) fn vector(&mut self, name: &str, map: impl FnOnce(Vec<f32>) -> Vec<f32>) -> Result<B::Buffer> {
        let tensor = self.checkpoint.tensor(name)?;
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.read_f32(0, &mut values)?;
        let values = map(values);
        let mut buffer = self.backend.alloc(values.len(), name)?;
        self.backend.write(&mut buffer, 0, &values)?;
        self.done += 4 * values.len() as u64;
        (self.progress)(self.done)?;
        Ok(buffer)
    }
}
