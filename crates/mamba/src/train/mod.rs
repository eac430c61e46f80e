//! Training: an explicit forward and backward of the whole model over flat buffers of parameters, gradients and moments.
//! Written once, over [`TrainBackend`]; there is no graph of operations.
//!
//! [`Trainer::step`] is the whole of a language model's step. Other objectives take [`Trainer::hidden`], compute their
//! own loss on what it gives, hand its gradient to [`Trainer::backward_hidden`], and call [`Trainer::update`].

mod activations;
pub mod adapter;
pub mod backend;
mod carry;
pub mod data;
mod init;
mod layout;
pub mod objective;
mod parameters;
pub mod run;
mod schedule;
mod states;
mod step;

pub use backend::TrainBackend;
pub use layout::{Layout, Parameter, Projection, Trained};
pub use schedule::{Decay, Schedule};

use activations::Activations;
use parameters::Parameters;
use states::States;

use crate::backend::Batch;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::adamw::Rates;

/// Sequences to learn from, end to end, no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrainBatch {
    /// Token ids of all sequences.
    pub ids: Vec<u32>,
    /// What is to be predicted after each of them; negative: nothing. May be empty where no loss is asked for.
    pub targets: Vec<i32>,
    /// Sequence `i` is `ids[cu_seqlens[i] .. cu_seqlens[i + 1]]`; begins with 0.
    pub cu_seqlens: Vec<usize>,
    /// Whether sequence `i` goes on from the state that sequence `i` of the last batch ended with. Empty: none does, and
    /// the states that this batch ends with are not kept.
    pub carried: Vec<bool>,
}

impl TrainBatch {
    /// Rows of `length + 1` tokens each, of which the first `length` are inputs and the last `length` targets.
    #[must_use]
    pub fn rows<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for row in rows {
            let inputs = row.len().saturating_sub(1);
            batch.ids.extend(&row[..inputs]);
            batch.targets.extend(row.iter().skip(1).map(|id| *id as i32));
            batch.cu_seqlens.push(batch.ids.len());
        }
        batch
    }

    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Number of targets that count.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }
}

/// Where the first parameters come from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Drawn as the official code draws them, by this seed.
    Seed(u64),
    /// A checkpoint of the same configuration. Adapters are drawn by the seed.
    Checkpoint(&'a Checkpoint, u64),
}

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// What is trained.
    pub trained: Trained,
    /// Parameters that are no part of the model, names and shapes: always trained, zero at first.
    pub extra: Vec<(String, Vec<usize>)>,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// AdamW's β₁ and β₂.
    pub betas: [f64; 2],
    /// Added to AdamW's root.
    pub eps: f64,
    /// Decay of tensors of two or more dimensions, A_log excepted.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub clip: Option<f32>,
    /// Weight of (log Σ exp(logits))² in the loss.
    pub z_loss: f32,
    /// Keep only the residual stream of each block, and compute the rest again in the backward.
    pub recompute: bool,
    /// Tokens of a batch at most.
    pub max_tokens: usize,
    /// Sequences of a batch at most.
    pub max_sequences: usize,
    /// So many steps in a row may be skipped because their gradients were not finite.
    pub max_skipped: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            trained: Trained::All,
            extra: Vec::new(),
            schedule: Schedule { lr: 1e-3, min_lr: 1e-5, warmup: 0, steps: 1, decay: Decay::Constant },
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            clip: Some(1.0),
            z_loss: 0.0,
            recompute: false,
            max_tokens: 2048,
            max_sequences: 64,
            max_skipped: 10,
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1; a skipped one counts.
    pub step: u64,
    /// Mean loss of all targets that count, before the update; 0 after [`Trainer::update`], which knows of none.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f32,
    /// Learning rate.
    pub lr: f64,
    /// The gradients were not finite and nothing was changed.
    pub skipped: bool,
}

/// What a run has to keep to go on with the same bits: all in f32, in the order of [`Trainer::layout`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Updates done: AdamW's t.
    pub updates: u64,
    /// Steps skipped since the last update.
    pub skipped: u64,
    /// Values of every trained parameter.
    pub parameters: Vec<Vec<f32>>,
    /// First moments of every trained parameter.
    pub first_moments: Vec<Vec<f32>>,
    /// Second moments.
    pub second_moments: Vec<Vec<f32>>,
    /// States that the next batch's carried sequences go on from, `[sequence][element]`; empty where none was kept.
    pub states: Vec<Vec<f32>>,
}

/// A model in training.
pub struct Trainer<B: TrainBackend> {
    backend: B,
    config: Config,
    options: TrainOptions,
    layout: Layout,
    parameters: Parameters<B>,
    activations: Activations<B>,
    states: States<B>,
    /// The batch whose activations are there, for its backward.
    pending: Option<step::Pending<B>>,
    step: u64,
    updates: u64,
    skipped: u64,
}

impl<B: TrainBackend> Trainer<B> {
    /// A trainer; all memory of a step is allocated here.
    ///
    /// # Errors
    /// `OPTION_INVALID`, `OUT_OF_MEMORY`, what reading a checkpoint gives; `CONFIG_INVALID` for a checkpoint of another
    /// shape.
    pub fn new(mut backend: B, config: Config, start: Start, options: TrainOptions) -> Result<Self> {
        check(&options)?;
        let states = States::new(&config);
        let layout = Layout::new(&config, &options.trained, &options.extra, states.elements())?;
        let parameters = Parameters::new(&mut backend, &layout)?;
        let activations = Activations::new(&mut backend, &config, &options)?;
        let mut trainer = Self {
            backend,
            config,
            options,
            layout,
            parameters,
            activations,
            states,
            pending: None,
            step: 0,
            updates: 0,
            skipped: 0,
        };
        let (checkpoint, seed) = match start {
            Start::Seed(seed) => (None, seed),
            Start::Checkpoint(checkpoint, seed) => (Some(checkpoint), seed),
        };
        for index in 0..trainer.layout.parameters().len() {
            let parameter = &trainer.layout.parameters()[index];
            let extra = trainer.options.extra.iter().any(|(name, _)| *name == parameter.name);
            let values = match checkpoint.and_then(|checkpoint| checkpoint.tensor(&parameter.name).ok()) {
                Some(tensor) if tensor.shape == parameter.shape => tensor.to_vec()?,
                Some(tensor) => {
                    return Err(Error::TensorShape {
                        name: parameter.name.clone(),
                        expected: parameter.shape.clone(),
                        actual: tensor.shape.clone(),
                    });
                }
                None if extra || parameter.name == "initial_state" => vec![0.0; parameter.elements()],
                None => init::values(&trainer.config, parameter, seed),
            };
            let stored = parameter.to_stored(&values);
            trainer.parameters.write(&mut trainer.backend, index, &stored)?;
        }
        trainer.parameters.prepare(&mut trainer.backend, &trainer.layout)?;
        Ok(trainer)
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How it is trained.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The parameters: names, shapes, which are trained.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The device.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Steps done, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Bytes of device memory in use, where that is known.
    pub fn memory_in_use(&self) -> Option<u64> {
        self.backend.memory_in_use()
    }

    /// Computes a batch as large as the options allow, of no meaning, and forgets it: what a device allocates while it
    /// computes (a GPU's kernels have room of their own) is there from then on. `carried`: sequences will go on from batch
    /// to batch, so that there must be room for the states of them all, too.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, what the backend gives.
    pub fn warm_up(&mut self, carried: bool) -> Result<()> {
        let tokens = self.options.max_tokens;
        let sequences = self.options.max_sequences.min(tokens);
        let batch = TrainBatch {
            ids: vec![0; tokens],
            targets: vec![0; tokens],
            cu_seqlens: (0..=sequences).map(|i| i * tokens / sequences).collect(),
            carried: if carried { vec![false; sequences] } else { Vec::new() },
        };
        self.forward(&batch)?;
        self.losses(&batch, Some(1.0 / tokens as f32))?;
        self.backward(None)?;
        self.states = States::new(&self.config);
        self.zero_gradients()
    }

    /// One step on the targets of all batches together (gradient accumulation: each batch is computed by itself): their
    /// mean loss, its gradients, and an update of the parameters. Carried sequences go on from the batch before, through
    /// which no gradient flows; where a skipped step has left a state that is not finite, from the one before it.
    ///
    /// # Errors
    /// `TOKEN_OUT_OF_RANGE`, `OPTION_INVALID` for a batch larger than the options say, `EMPTY_PROMPT` without a target,
    /// `TRAINING_DIVERGED`, what the backend gives.
    pub fn step(&mut self, batches: &[TrainBatch]) -> Result<StepReport> {
        let counted = self.check_batches(batches)?;
        self.parameters.zero_gradients(&mut self.backend)?;
        let mut loss = 0.0;
        for batch in batches {
            self.forward(batch)?;
            self.losses(batch, Some(1.0 / counted as f32))?;
            self.backward(None)?;
            loss += self.loss_sum(batch)?;
        }
        let report = self.update()?;
        if let (true, Some(last)) = (report.skipped, batches.last()) {
            self.mend_states(last)?;
        }
        Ok(StepReport { loss: loss / counted as f64, ..report })
    }

    /// One step on sequences that come in several batches, one after the other, with the gradient flowing through the
    /// states from each batch to the one before: the same as one batch of the whole sequences, in the memory of one piece
    /// (each piece but the last is computed twice).
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_through(&mut self, pieces: &[TrainBatch]) -> Result<StepReport> {
        let counted = self.check_batches(pieces)?;
        self.parameters.zero_gradients(&mut self.backend)?;
        let slots = pieces.iter().map(TrainBatch::sequences).max().unwrap_or(0);
        self.states.reserve(&mut self.backend, slots)?;
        // The states that each piece begins with.
        let mut before = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            before.push(self.states.read(&mut self.backend)?);
            if i + 1 < pieces.len() {
                self.forward(piece)?;
            }
        }
        let mut loss = 0.0;
        let mut last = None;
        for (i, piece) in pieces.iter().enumerate().rev() {
            self.states.write(&mut self.backend, &before[i])?;
            self.forward(piece)?;
            if last.is_none() {
                last = Some(self.states.read(&mut self.backend)?);
            }
            self.losses(piece, Some(1.0 / counted as f32))?;
            self.backward(pieces.get(i + 1))?;
            loss += self.loss_sum(piece)?;
        }
        self.states.write(&mut self.backend, &last.unwrap_or_default())?;
        let report = self.update()?;
        // What was computed last is the first piece.
        if let (true, Some(first)) = (report.skipped, pieces.first()) {
            self.mend_states(first)?;
        }
        Ok(StepReport { loss: loss / counted as f64, ..report })
    }

    /// The sum of the losses of a batch's targets (without z-loss), and their number. Nothing is learned; carried
    /// sequences go on as in [`Trainer::step`].
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn loss(&mut self, batch: &TrainBatch) -> Result<(f64, usize)> {
        let counted = self.check_batches(std::slice::from_ref(batch))?;
        self.forward(batch)?;
        self.pending = None;
        self.losses(batch, None)?;
        Ok((self.loss_sum(batch)?, counted))
    }

    /// The hidden states after the final norm, [tokens, d_model], of a batch; targets are not looked at. Its activations
    /// are kept for [`Trainer::backward_hidden`].
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn hidden(&mut self, batch: &TrainBatch) -> Result<Vec<f32>> {
        self.check_batch(batch)?;
        self.forward(batch)?;
        let mut hidden = vec![0.0; batch.ids.len() * self.config.d_model];
        self.backend.read(&self.activations.hidden, 0, &mut hidden)?;
        Ok(hidden)
    }

    /// Forgets all gradients: what [`Trainer::backward_hidden`] adds to.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.parameters.zero_gradients(&mut self.backend)
    }

    /// Adds the gradients of a loss whose gradient by [`Trainer::hidden`]'s last result is `hidden_grad`
    /// [tokens, d_model].
    ///
    /// # Errors
    /// `INTERNAL` unless `hidden` was called just before; what the backend gives.
    pub fn backward_hidden(&mut self, hidden_grad: &[f32]) -> Result<()> {
        let expected = self.pending.as_ref().map(|pending| pending.tokens * self.config.d_model);
        if expected != Some(hidden_grad.len()) {
            let message = format!("a gradient of {} for hidden states of {expected:?}", hidden_grad.len());
            return Err(Error::Internal { message });
        }
        self.backend.write(&mut self.activations.hidden_grad, 0, hidden_grad)?;
        self.backward(None)
    }

    /// Updates the parameters by the gradients that are there.
    ///
    /// # Errors
    /// `TRAINING_DIVERGED` when more steps in a row than the options allow had gradients that were not finite; what the
    /// backend gives.
    pub fn update(&mut self) -> Result<StepReport> {
        let Self { backend, options, layout, parameters, .. } = self;
        let lr = options.schedule.lr(self.step);
        let rates = Rates {
            lr,
            beta1: options.betas[0],
            beta2: options.betas[1],
            eps: options.eps,
            weight_decay: options.weight_decay,
            step: self.updates + 1,
        };
        let grad_norm = parameters.update(backend, layout, options.clip.unwrap_or(f32::INFINITY), rates)?;
        self.step += 1;
        let skipped = !grad_norm.is_finite();
        if skipped {
            self.skipped += 1;
            if self.skipped > options.max_skipped {
                return Err(Error::TrainingDiverged { step: self.step, skipped: self.skipped, grad_norm });
            }
        } else {
            self.skipped = 0;
            self.updates += 1;
            parameters.prepare(backend, layout)?;
        }
        Ok(StepReport { step: self.step, loss: 0.0, grad_norm, lr, skipped })
    }

    /// The values of a parameter, in the official order.
    ///
    /// # Errors
    /// `TENSOR_MISSING`; what the backend gives.
    pub fn parameter(&mut self, name: &str) -> Result<Vec<f32>> {
        let index = self.index(name)?;
        let values = self.parameters.read(&mut self.backend, index)?;
        Ok(self.layout.parameters()[index].to_official(&values))
    }

    /// Sets the values of a parameter.
    ///
    /// # Errors
    /// `TENSOR_MISSING`, `TENSOR_SHAPE` for another number of values; what the backend gives.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let index = self.index(name)?;
        let stored = self.stored(index, values)?;
        self.parameters.write(&mut self.backend, index, &stored)?;
        self.parameters.prepare(&mut self.backend, &self.layout)
    }

    /// The gradient of a trained parameter, in the official order: of the last step (before clipping), or as far as it has
    /// been added up.
    ///
    /// # Errors
    /// As [`Trainer::parameter`]; `TENSOR_MISSING` also for one that is not trained.
    pub fn gradient(&mut self, name: &str) -> Result<Vec<f32>> {
        let index = self.trained_index(name)?;
        let values = self.parameters.read_gradient(&mut self.backend, index)?;
        Ok(self.layout.parameters()[index].to_official(&values))
    }

    /// Adds to the gradient of a trained parameter: of `extra` ones, whose gradient the caller computes.
    ///
    /// # Errors
    /// As [`Trainer::gradient`] and [`Trainer::set_parameter`].
    pub fn add_gradient(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let index = self.trained_index(name)?;
        let mut sum = self.stored(index, values)?;
        let before = self.parameters.read_gradient(&mut self.backend, index)?;
        sum.iter_mut().zip(before).for_each(|(sum, x)| *sum += x);
        self.parameters.write_gradient(&mut self.backend, index, &sum)
    }

    /// The model's parameters as a checkpoint in memory, to be saved or loaded: without adapters, learned states and extra
    /// parameters, which [`Trainer::parameter`] gives.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut tensors = Vec::new();
        for (name, shape) in self.config.tensors() {
            let values = self.parameter(&name)?;
            tensors.push(Tensor::from_memory(&name, shape, values));
        }
        Checkpoint::from_memory(self.config.clone(), tensors)
    }

    /// Everything that [`Trainer::restore`] needs to go on with the same bits.
    ///
    /// # Errors
    /// What the backend gives.
    pub fn state(&mut self) -> Result<TrainState> {
        let mut state = TrainState {
            step: self.step,
            updates: self.updates,
            skipped: self.skipped,
            states: self.states.read(&mut self.backend)?,
            ..TrainState::default()
        };
        for index in 0..self.layout.trained {
            state.parameters.push(self.parameters.read(&mut self.backend, index)?);
            let [m, v] = self.parameters.read_moments(&mut self.backend, index)?;
            state.first_moments.push(m);
            state.second_moments.push(v);
        }
        Ok(state)
    }

    /// Goes on from where [`Trainer::state`] was taken, of a trainer with the same configuration and options.
    ///
    /// # Errors
    /// `TENSOR_SHAPE` for the state of another one; what the backend gives.
    pub fn restore(&mut self, state: &TrainState) -> Result<()> {
        let lens = |group: &[Vec<f32>]| group.iter().map(Vec::len).collect::<Vec<_>>();
        let expected = self.layout.lens()[..self.layout.trained].to_vec();
        for (name, group) in [
            ("the parameters", &state.parameters),
            ("the first moments", &state.first_moments),
            ("the second moments", &state.second_moments),
        ] {
            if lens(group) != expected {
                return Err(Error::TensorShape { name: name.into(), expected, actual: lens(group) });
            }
        }
        let wrong = state.states.iter().find(|state| state.len() != self.states.elements());
        if let Some(wrong) = wrong {
            return Err(Error::TensorShape {
                name: "a sequence's state".into(),
                expected: vec![self.states.elements()],
                actual: vec![wrong.len()],
            });
        }
        for index in 0..self.layout.trained {
            self.parameters.write(&mut self.backend, index, &state.parameters[index])?;
            let moments = [&state.first_moments[index][..], &state.second_moments[index]];
            self.parameters.write_moments(&mut self.backend, index, moments)?;
        }
        self.states.reserve(&mut self.backend, state.states.len())?;
        self.states.write(&mut self.backend, &state.states)?;
        (self.step, self.updates, self.skipped) = (state.step, state.updates, state.skipped);
        self.pending = None;
        self.parameters.prepare(&mut self.backend, &self.layout)
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.layout.find(name).ok_or_else(|| Error::TensorMissing {
            name: name.into(),
            expected: Vec::new(),
            path: "the trainer".into(),
        })
    }

    fn trained_index(&self, name: &str) -> Result<usize> {
        self.index(name).ok().filter(|index| *index < self.layout.trained).ok_or_else(|| {
            Error::TensorMissing {
                name: name.into(),
                expected: Vec::new(),
                path: "the trained parameters".into(),
            }
        })
    }

    fn stored(&self, index: usize, values: &[f32]) -> Result<Vec<f32>> {
        let parameter = &self.layout.parameters()[index];
        if values.len() != parameter.elements() {
            let (name, expected) = (parameter.name.clone(), parameter.shape.clone());
            return Err(Error::TensorShape { name, expected, actual: vec![values.len()] });
        }
        Ok(parameter.to_stored(values))
    }

    /// Checks batches with targets; returns how many count.
    fn check_batches(&self, batches: &[TrainBatch]) -> Result<usize> {
        for batch in batches {
            self.check_batch(batch)?;
            if batch.targets.len() != batch.ids.len() {
                let expected = format!("one for each of the {} tokens", batch.ids.len());
                return Err(Error::option("targets", format!("{} of them", batch.targets.len()), &expected));
            }
            let vocab_size = self.config.padded_vocab_size;
            let beyond = |target: &i32| *target >= 0 && *target as usize >= vocab_size;
            if let Some(position) = batch.targets.iter().position(beyond) {
                let id = i64::from(batch.targets[position]);
                return Err(Error::TokenOutOfRange { id, position, vocab_size });
            }
        }
        let counted = batches.iter().map(TrainBatch::counted).sum();
        if counted == 0 {
            return Err(Error::EmptyPrompt { what: "no token to predict in the batch".into() });
        }
        Ok(counted)
    }

    fn check_batch(&self, batch: &TrainBatch) -> Result<()> {
        let TrainBatch { ids, cu_seqlens, carried, .. } = batch;
        if cu_seqlens.first() != Some(&0) || cu_seqlens.last() != Some(&ids.len()) || !cu_seqlens.is_sorted()
        {
            let expected = format!("ascending from 0 to the number of tokens, {}", ids.len());
            return Err(Error::option("cu_seqlens", format!("{cu_seqlens:?}"), &expected));
        }
        if !carried.is_empty() && carried.len() != batch.sequences() {
            let expected = format!("one for each of the {} sequences", batch.sequences());
            return Err(Error::option("carried", format!("{} of them", carried.len()), &expected));
        }
        let TrainOptions { max_tokens, max_sequences, .. } = self.options;
        if ids.len() > max_tokens {
            return Err(Error::option(
                "batch",
                format!("{} tokens", ids.len()),
                &format!("at most {max_tokens}"),
            ));
        }
        if batch.sequences() > max_sequences {
            let value = format!("{} sequences", batch.sequences());
            return Err(Error::option("batch", value, &format!("at most {max_sequences}")));
        }
        let vocab_size = self.config.padded_vocab_size;
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id: i64::from(ids[position]), position, vocab_size });
        }
        Ok(())
    }

    /// The batch as the backend takes it: sequence `i` in slot `i`.
    fn plan(&mut self, batch: &TrainBatch) -> Result<B::Plan> {
        let mut packed = Batch::new();
        for (i, range) in batch.cu_seqlens.windows(2).enumerate() {
            let carried = batch.carried.get(i).copied().unwrap_or(false);
            let fresh = !carried && self.layout.initial_state.is_none();
            packed.push(&batch.ids[range[0]..range[1]], i, fresh);
        }
        self.backend.plan(&packed)
    }
}

fn check(options: &TrainOptions) -> Result<()> {
    let Schedule { lr, min_lr, .. } = options.schedule;
    for (name, value) in [("lr", lr), ("min_lr", min_lr), ("weight_decay", options.weight_decay)] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(Error::option(name, value, "a number of at least 0"));
        }
    }
    for beta in options.betas {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::option("betas", beta, "numbers from 0 to below 1"));
        }
    }
    if !(options.eps.is_finite() && options.eps > 0.0) {
        return Err(Error::option("eps", options.eps, "a number above 0"));
    }
    if let Some(clip) = options.clip.filter(|clip| !(clip.is_finite() && *clip > 0.0)) {
        return Err(Error::option("clip", clip, "a number above 0"));
    }
    if !(options.z_loss.is_finite() && options.z_loss >= 0.0) {
        return Err(Error::option("z_loss", options.z_loss, "a number of at least 0"));
    }
    if options.max_tokens == 0 || options.max_sequences == 0 {
        return Err(Error::option("max_tokens", options.max_tokens, "at least 1, as max_sequences"));
    }
    Ok(())
}
