//! The forward and the backward of the whole model, operation by operation.
//!
//! The forward keeps of each layer the residual stream, in_proj's and x_proj's outputs, the scan's output and its states
//! every 64 tokens. What is cheap is computed again: the norm, the convolution, dt_proj. With `recompute` only the residual
//! stream is kept and the layer runs again.

use super::activations::Activations;
use super::backend::TrainBackend;
use super::layout::{LinearIndex, NormIndex, Trained};
use super::parameters::Parameters;
use super::states::States;
use super::{Config, Layout, TrainBatch, TrainOptions, Trainer};
use crate::backend::{View, ViewMut};
use crate::error::{Error, Result};
use crate::ops::causal_conv1d::{CausalConv1d, ConvBackward};
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::linear::{Factor, MatMul};
use crate::ops::norm::{NormBackward, NormForward};
use crate::ops::selective_scan::{ScanBackward, SelectiveScan};

/// A batch whose activations are kept.
pub(super) struct Pending<B: TrainBackend> {
    plan: B::Plan,
    ids: Vec<u32>,
    pub tokens: usize,
    /// Which sequences begin from the learned initial state.
    learned: Vec<usize>,
}

/// Which part of a layer's forward runs.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    /// All of it.
    Whole,
    /// Only what is not kept and the backward needs: the norm, the convolution, dt_proj.
    Cheap,
    /// All but out_proj, whose output the backward does not need.
    Again,
}

impl<B: TrainBackend> Trainer<B> {
    /// Computes `activations.hidden` and keeps what the backward needs.
    pub(super) fn forward(&mut self, batch: &TrainBatch) -> Result<()> {
        self.pending = None;
        let fresh = |i: &usize| !batch.carried.get(*i).copied().unwrap_or(false);
        let learned = match self.layout.initial_state {
            Some(_) => (0..batch.sequences()).filter(fresh).collect(),
            None => Vec::new(),
        };
        let keeps = !batch.carried.is_empty() || self.states.buffers().is_some();
        if keeps || self.layout.initial_state.is_some() {
            self.states.reserve(&mut self.backend, batch.sequences())?;
        }
        let plan = self.plan(batch)?;
        let places = self.states.places();
        if let Some(states) = self.states.buffers() {
            if let Some(index) = self.layout.initial_state {
                let from = View::dense(&self.parameters.values[index], 1, places.elements);
                for slot in &learned {
                    self.backend.copy(from, places.slot_mut(&mut states.last, *slot), false)?;
                }
            }
            self.backend.copy(places.all(&states.last), places.all_mut(&mut states.initial), false)?;
        }
        let tokens = batch.ids.len();
        let mut layers = self.layers(tokens);
        // In f32: the residual stream that it begins is.
        let table = &layers.parameters.values[layers.layout.embedding];
        let Config { d_model, padded_vocab_size: vocab, n_layer, .. } = *layers.config;
        let residual = ViewMut::dense(&mut layers.activations.residual[0], tokens, d_model);
        layers.backend.lookup(&plan, View::dense(table, vocab, d_model), residual)?;
        for layer in 0..n_layer {
            layers.norm(Some(layer), true)?;
            layers.mixer(&plan, layer, Pass::Whole)?;
        }
        layers.norm(None, true)?;
        self.pending = Some(Pending { plan, ids: batch.ids.clone(), tokens, learned });
        Ok(())
    }

    fn layers(&mut self, tokens: usize) -> Layers<'_, B> {
        let Self { backend, config, options, layout, parameters, activations, states, .. } = self;
        Layers { backend, config, options, layout, parameters, activations, states, tokens }
    }

    /// The losses of a batch's tokens; with a scale also the gradients of `scale` times their sum: by the hidden states in
    /// `activations.hidden_grad`, by the head added to its own.
    pub(super) fn losses(&mut self, batch: &TrainBatch, scale: Option<f32>) -> Result<()> {
        let Self { backend, config, options, layout, parameters, activations, .. } = self;
        let (d_model, vocab) = (config.d_model, config.padded_vocab_size);
        let head = layout.lm_head.unwrap_or(layout.embedding);
        let tokens = batch.ids.len();
        let Activations { hidden, hidden_grad, logits, losses, logits_rows, .. } = activations;
        for (piece, losses) in losses.iter_mut().enumerate() {
            let from = piece * *logits_rows;
            let rows = (*logits_rows).min(tokens.saturating_sub(from));
            if rows == 0 {
                break;
            }
            let x = View { offset: from * d_model, ..View::dense(&*hidden, rows, d_model) };
            let weight = View::dense(parameters.matrix(head), vocab, d_model);
            backend.matmul(MatMul {
                a: Factor::of(x),
                b: Factor::transposed(weight),
                scale: 1.0,
                add: false,
                out: ViewMut::dense(logits, rows, vocab),
            })?;
            backend.cross_entropy(CrossEntropy {
                logits: ViewMut::dense(logits, rows, vocab),
                targets: &batch.targets[from..from + rows],
                z_loss: if scale.is_some() { options.z_loss } else { 0.0 },
                scale,
                losses,
            })?;
            if scale.is_none() {
                continue;
            }
            let logits_grad = View::dense(&*logits, rows, vocab);
            backend.matmul(MatMul {
                a: Factor::of(logits_grad),
                b: Factor::of(weight),
                scale: 1.0,
                add: false,
                out: ViewMut { offset: from * d_model, ..ViewMut::dense(hidden_grad, rows, d_model) },
            })?;
            if parameters.is_trained(head) {
                backend.matmul(MatMul {
                    a: Factor::transposed(logits_grad),
                    b: Factor::of(x),
                    scale: 1.0,
                    add: true,
                    out: ViewMut::dense(&mut parameters.gradients[head], vocab, d_model),
                })?;
            }
        }
        Ok(())
    }

    /// The sum of the losses of the last batch. Waits for the device, so everything else is queued before.
    pub(super) fn loss_sum(&mut self, batch: &TrainBatch) -> Result<f64> {
        let Activations { losses, logits_rows, .. } = &self.activations;
        let mut sum = 0.0;
        let mut values = vec![0.0; *logits_rows];
        for (piece, losses) in losses.iter().enumerate() {
            let rows = (*logits_rows).min(batch.ids.len().saturating_sub(piece * *logits_rows));
            self.backend.read(losses, 0, &mut values[..rows])?;
            sum += values[..rows].iter().map(|loss| f64::from(*loss)).sum::<f64>();
        }
        Ok(sum)
    }

    /// The gradients of everything, from `activations.hidden_grad`; of the last states, those of the initial states of
    /// `next`, the batch that goes on from them.
    pub(super) fn backward(&mut self, next: Option<&TrainBatch>) -> Result<()> {
        let no_batch = || Error::Internal { message: "a backward without a forward".into() };
        let pending = self.pending.take().ok_or_else(no_batch)?;
        let tokens = pending.tokens;
        let places = self.states.places();
        let carried = |slot| next.is_some_and(|next| next.carried.get(slot).copied().unwrap_or(false));
        if let Some(states) = self.states.buffers() {
            for slot in 0..places.slots {
                let to = places.slot_mut(&mut states.last_grad, slot);
                match carried(slot) {
                    true => self.backend.copy(places.slot(&states.initial_grad, slot), to, false)?,
                    false => self.backend.zero_view(to)?,
                }
            }
            self.backend.copy(places.all(&states.initial), places.all_mut(&mut states.again), false)?;
        }
        let mut layers = self.layers(tokens);
        let pass = if layers.options.recompute { Pass::Again } else { Pass::Cheap };
        layers.norm_backward(None)?;
        for layer in (0..layers.config.n_layer).rev() {
            layers.norm(Some(layer), false)?;
            layers.mixer(&pending.plan, layer, pass)?;
            layers.mixer_backward(&pending.plan, layer)?;
            layers.norm_backward(Some(layer))?;
        }
        let Self { backend, config, parameters, activations, states, layout, .. } = self;
        let embedding = layout.embedding;
        if parameters.is_trained(embedding) {
            let grad = View::dense(&activations.residual_grad, tokens, config.d_model);
            let table = ViewMut::dense(
                &mut parameters.gradients[embedding],
                config.padded_vocab_size,
                config.d_model,
            );
            backend.lookup_backward(&pending.ids, grad, table)?;
        }
        if let (Some(index), Some(states)) = (layout.initial_state, states.buffers()) {
            for slot in pending.learned {
                let to = ViewMut::dense(&mut parameters.gradients[index], 1, places.elements);
                backend.copy(places.slot(&states.initial_grad, slot), to, true)?;
            }
        }
        parameters.add_batch_gradients(backend)
    }
}

/// What the layers of one pass share.
struct Layers<'a, B: TrainBackend> {
    backend: &'a mut B,
    config: &'a Config,
    options: &'a TrainOptions,
    layout: &'a Layout,
    parameters: &'a mut Parameters<B>,
    activations: &'a mut Activations<B>,
    states: &'a mut States<B>,
    tokens: usize,
}

impl<B: TrainBackend> Layers<'_, B> {
    fn norm_index(&self, layer: Option<usize>) -> NormIndex {
        layer.map_or(self.layout.norm_f, |layer| self.layout.layers[layer].norm)
    }

    /// The norm of a layer, or the last one, into `hidden`; `add`: what the layer before gave is added to the stream
    /// first, which is kept.
    fn norm(&mut self, layer: Option<usize>, add: bool) -> Result<()> {
        let NormIndex { weight, bias } = self.norm_index(layer);
        let (tokens, d_model) = (self.tokens, self.config.d_model);
        let at = layer.unwrap_or(self.config.n_layer);
        let Activations { residual, mixed, hidden, .. } = &mut *self.activations;
        let (before, from) = residual.split_at_mut(at);
        let (stream, delta) = match before.last() {
            Some(stream) if add => (
                stream,
                Some((View::dense(&*mixed, tokens, d_model), ViewMut::dense(&mut from[0], tokens, d_model))),
            ),
            _ => (&from[0], None),
        };
        self.backend.norm_forward(NormForward {
            kind: self.config.norm,
            eps: self.config.norm_epsilon as f32,
            weight: &self.parameters.values[weight],
            bias: bias.map(|bias| &self.parameters.values[bias]),
            residual: View::dense(stream, tokens, d_model),
            delta,
            out: ViewMut::dense(hidden, tokens, d_model),
        })
    }

    /// From `hidden_grad` to `residual_grad` and, but for the first layer, `mixed`.
    fn norm_backward(&mut self, layer: Option<usize>) -> Result<()> {
        let NormIndex { weight, bias } = self.norm_index(layer);
        let (tokens, d_model) = (self.tokens, self.config.d_model);
        let at = layer.unwrap_or(self.config.n_layer);
        let Activations { residual, mixed, hidden_grad, residual_grad, .. } = &mut *self.activations;
        let weight_at = self.parameters.batch_gradient(weight);
        let bias_at = bias.map(|bias| self.parameters.batch_gradient(bias));
        let (weight_grad, bias_grad) =
            one_and_maybe(&mut self.parameters.batch_gradients, weight_at, bias_at)?;
        self.backend.norm_backward(NormBackward {
            kind: self.config.norm,
            eps: self.config.norm_epsilon as f32,
            weight: &self.parameters.values[weight],
            sum: View::dense(&residual[at], tokens, d_model),
            out_grad: View::dense(&*hidden_grad, tokens, d_model),
            residual_grad: ViewMut::dense(residual_grad, tokens, d_model),
            last: layer.is_none(),
            delta_grad: (at > 0).then(|| ViewMut::dense(mixed, tokens, d_model)),
            weight_grad,
            bias_grad,
        })
    }

    /// `hidden` to `mixed`, or the part of it that `pass` says.
    fn mixer(&mut self, plan: &B::Plan, layer: usize, pass: Pass) -> Result<()> {
        let Config { d_model, d_inner, d_state, d_conv, dt_rank, .. } = *self.config;
        let index = self.layout.layers[layer];
        let [in_proj, x_proj, dt_proj, out_proj] = index.projections;
        let (tokens, width) = (self.tokens, dt_rank + 2 * d_state);
        let places = self.states.places();
        let lora_scale = lora_scale(self.options);
        let Self { backend, parameters, activations, states, .. } = self;
        let slot = if activations.saved.len() == 1 { 0 } else { layer };
        let Activations { saved, hidden, u, delta, mixed, low, .. } = &mut **activations;
        let saved = &mut saved[slot];
        let mut states = states
            .buffers()
            .map(|states| if pass == Pass::Whole { &mut states.last } else { &mut states.again });
        let mut linear =
            |backend: &mut B, x: View<B::Buffer>, index: LinearIndex, out: ViewMut<B::Buffer>| {
                let low = low.as_mut().map(|[low, _]| low);
                linear(backend, parameters, index, x, out, low, lora_scale)
            };

        if pass != Pass::Cheap {
            let x = View::dense(&*hidden, tokens, d_model);
            linear(backend, x, in_proj, ViewMut::dense(&mut saved.xz, tokens, 2 * d_inner))?;
        }
        let xz = View::dense(&saved.xz, tokens, 2 * d_inner);
        backend.causal_conv1d(
            plan,
            CausalConv1d {
                x: xz.columns(0, d_inner),
                weight: &parameters.values[index.conv_weight],
                bias: index.conv_bias.map(|bias| &parameters.values[bias]),
                d_conv,
                state: states.as_mut().map(|buffer| places.conv(*buffer, layer)),
                out: ViewMut::dense(u, tokens, d_inner),
            },
        )?;
        let u = View::dense(&*u, tokens, d_inner);
        if pass != Pass::Cheap {
            linear(backend, u, x_proj, ViewMut::dense(&mut saved.dt_b_c, tokens, width))?;
        }
        let dt_b_c = View::dense(&saved.dt_b_c, tokens, width);
        linear(backend, dt_b_c.columns(0, dt_rank), dt_proj, ViewMut::dense(delta, tokens, d_inner))?;
        if pass == Pass::Cheap {
            return Ok(());
        }
        let scan = SelectiveScan {
            u,
            delta: View::dense(&*delta, tokens, d_inner),
            delta_bias: Some(&parameters.values[index.delta_bias]),
            a: &parameters.a[layer],
            b: dt_b_c.columns(dt_rank, d_state),
            c: dt_b_c.columns(dt_rank + d_state, d_state),
            d: Some(&parameters.values[index.d]),
            z: Some(xz.columns(d_inner, d_inner)),
            state: states.as_mut().map(|buffer| places.ssm(*buffer, layer)),
            out: ViewMut::dense(&mut saved.y, tokens, d_inner),
        };
        backend.scan_forward(plan, scan, &mut saved.boundary)?;
        if pass == Pass::Whole {
            let y = View::dense(&saved.y, tokens, d_inner);
            linear(backend, y, out_proj, ViewMut::dense(mixed, tokens, d_model))?;
        }
        Ok(())
    }

    /// From the gradient of the mixer's output, in `mixed`, to that of its input, in `hidden_grad`.
    fn mixer_backward(&mut self, plan: &B::Plan, layer: usize) -> Result<()> {
        let Config { d_model, d_inner, d_state, d_conv, dt_rank, .. } = *self.config;
        let index = self.layout.layers[layer];
        let [in_proj, x_proj, dt_proj, out_proj] = index.projections;
        let (tokens, width) = (self.tokens, dt_rank + 2 * d_state);
        let places = self.states.places();
        let lora_scale = lora_scale(self.options);
        let Self { backend, parameters, activations, states, .. } = self;
        let slot = if activations.saved.len() == 1 { 0 } else { layer };
        let Activations {
            saved,
            hidden,
            u,
            delta,
            mixed,
            low,
            hidden_grad,
            xz_grad,
            u_grad,
            delta_grad,
            y_grad,
            dt_b_c_grad,
            bc_grad: [b_grad, c_grad],
            ..
        } = &mut **activations;
        let saved = &saved[slot];
        let mut states = states.buffers();
        let mut linear_backward = |backend: &mut B,
                                   parameters: &mut Parameters<B>,
                                   x: View<B::Buffer>,
                                   out_grad: View<B::Buffer>,
                                   index: LinearIndex,
                                   x_grad: ViewMut<B::Buffer>,
                                   add: bool| {
            linear_backward(backend, parameters, index, x, out_grad, x_grad, add, low.as_mut(), lora_scale)
        };

        let (y, out_grad) = (View::dense(&saved.y, tokens, d_inner), View::dense(&*mixed, tokens, d_model));
        let x_grad = ViewMut::dense(&mut *y_grad, tokens, d_inner);
        linear_backward(backend, parameters, y, out_grad, out_proj, x_grad, false)?;

        let xz = View::dense(&saved.xz, tokens, 2 * d_inner);
        let dt_b_c = View::dense(&saved.dt_b_c, tokens, width);
        let at = [index.a_log, index.d, index.delta_bias].map(|index| parameters.batch_gradient(index));
        let [a_grad, d_grad, delta_bias_grad] = several(&mut parameters.batch_gradients, at)?;
        let (last_grad, initial_grad) = match &mut states {
            Some(states) => (
                Some(places.ssm(&mut states.last_grad, layer)),
                Some(places.ssm(&mut states.initial_grad, layer)),
            ),
            None => (None, None),
        };
        backend.scan_backward(
            plan,
            ScanBackward {
                u: View::dense(&*u, tokens, d_inner),
                delta: View::dense(&*delta, tokens, d_inner),
                delta_bias: &parameters.values[index.delta_bias],
                a: &parameters.a[layer],
                b: dt_b_c.columns(dt_rank, d_state),
                c: dt_b_c.columns(dt_rank + d_state, d_state),
                d: &parameters.values[index.d],
                z: xz.columns(d_inner, d_inner),
                boundary: &saved.boundary,
                out_grad: View::dense(&*y_grad, tokens, d_inner),
                last_state_grad: last_grad,
                u_grad: ViewMut::dense(u_grad, tokens, d_inner),
                delta_grad: ViewMut::dense(delta_grad, tokens, d_inner),
                z_grad: ViewMut {
                    offset: d_inner,
                    cols: d_inner,
                    ..ViewMut::dense(xz_grad, tokens, 2 * d_inner)
                },
                b_grad: ViewMut::dense(b_grad, tokens, d_state),
                c_grad: ViewMut::dense(c_grad, tokens, d_state),
                a_grad,
                d_grad,
                delta_bias_grad,
                initial_state_grad: initial_grad,
            },
        )?;
        // A = −exp(A_log), so its derivative is A itself.
        backend.multiply(&parameters.a[layer], &mut parameters.batch_gradients[at[0]])?;

        for (offset, grad) in [(dt_rank, b_grad), (dt_rank + d_state, c_grad)] {
            let to = ViewMut { offset, cols: d_state, ..ViewMut::dense(dt_b_c_grad, tokens, width) };
            backend.copy(View::dense(&*grad, tokens, d_state), to, false)?;
        }
        let (dt, out_grad) = (dt_b_c.columns(0, dt_rank), View::dense(&*delta_grad, tokens, d_inner));
        let x_grad = ViewMut { cols: dt_rank, ..ViewMut::dense(dt_b_c_grad, tokens, width) };
        linear_backward(backend, parameters, dt, out_grad, dt_proj, x_grad, false)?;

        let (x, out_grad) = (View::dense(&*u, tokens, d_inner), View::dense(&*dt_b_c_grad, tokens, width));
        let x_grad = ViewMut::dense(u_grad, tokens, d_inner);
        linear_backward(backend, parameters, x, out_grad, x_proj, x_grad, true)?;

        let weight_at = parameters.batch_gradient(index.conv_weight);
        let bias_at = index.conv_bias.map(|bias| parameters.batch_gradient(bias));
        let (weight_grad, bias_grad) = one_and_maybe(&mut parameters.batch_gradients, weight_at, bias_at)?;
        let (initial, last_grad, initial_grad) = match states {
            Some(states) => (
                Some(places.conv(&mut states.initial, layer)),
                Some(places.conv(&mut states.last_grad, layer)),
                Some(places.conv(&mut states.initial_grad, layer)),
            ),
            None => (None, None, None),
        };
        backend.conv_backward(
            plan,
            ConvBackward {
                x: xz.columns(0, d_inner),
                weight: &parameters.values[index.conv_weight],
                bias: index.conv_bias.map(|bias| &parameters.values[bias]),
                d_conv,
                initial_state: initial,
                out_grad: View::dense(&*u_grad, tokens, d_inner),
                last_state_grad: last_grad,
                x_grad: ViewMut { cols: d_inner, ..ViewMut::dense(xz_grad, tokens, 2 * d_inner) },
                weight_grad,
                bias_grad,
                initial_state_grad: initial_grad,
            },
        )?;
        let (x, out_grad) =
            (View::dense(&*hidden, tokens, d_model), View::dense(&*xz_grad, tokens, 2 * d_inner));
        let x_grad = ViewMut::dense(hidden_grad, tokens, d_model);
        linear_backward(backend, parameters, x, out_grad, in_proj, x_grad, false)
    }
}

fn lora_scale(options: &TrainOptions) -> f32 {
    match &options.trained {
        Trained::Lora { rank, alpha, .. } => alpha / *rank as f32,
        _ => 0.0,
    }
}

/// `out = x · Wᵀ + bias + scale · (x · Aᵀ) · Bᵀ`. `low` is room for x · Aᵀ.
fn linear<B: TrainBackend>(
    backend: &mut B,
    parameters: &Parameters<B>,
    index: LinearIndex,
    x: View<B::Buffer>,
    mut out: ViewMut<B::Buffer>,
    low: Option<&mut B::Buffer>,
    scale: f32,
) -> Result<()> {
    let (rows, cols) = (out.rows, out.cols);
    let weight = View::dense(parameters.matrix(index.weight), cols, x.cols);
    let (a, b) = (Factor::of(x), Factor::transposed(weight));
    backend.matmul(MatMul { a, b, scale: 1.0, add: false, out: out.again() })?;
    if let (Some((lora_a, lora_b)), Some(low)) = (index.lora, low) {
        let rank = parameters.len(lora_a) / x.cols;
        lora_low(backend, parameters, lora_a, x, low, rank)?;
        let weight = View::dense(parameters.matrix(lora_b), cols, rank);
        let (a, b) = (Factor::of(View::dense(&*low, rows, rank)), Factor::transposed(weight));
        backend.matmul(MatMul { a, b, scale, add: true, out: out.again() })?;
    }
    match index.bias {
        Some(bias) => backend.add_bias(&parameters.values[bias], out),
        None => Ok(()),
    }
}

/// `low = x · Aᵀ`.
fn lora_low<B: TrainBackend>(
    backend: &mut B,
    parameters: &Parameters<B>,
    lora_a: usize,
    x: View<B::Buffer>,
    low: &mut B::Buffer,
    rank: usize,
) -> Result<()> {
    let weight = View::dense(parameters.matrix(lora_a), rank, x.cols);
    let (a, b) = (Factor::of(x), Factor::transposed(weight));
    backend.matmul(MatMul { a, b, scale: 1.0, add: false, out: ViewMut::dense(low, x.rows, rank) })
}

/// The gradients of [`linear`]: of x into `x_grad`, added to it where `add` says so; those of the parameters added to
/// theirs. `low` is room for x · Aᵀ and its gradient.
#[allow(clippy::too_many_arguments)]
fn linear_backward<B: TrainBackend>(
    backend: &mut B,
    parameters: &mut Parameters<B>,
    index: LinearIndex,
    x: View<B::Buffer>,
    out_grad: View<B::Buffer>,
    mut x_grad: ViewMut<B::Buffer>,
    add: bool,
    low: Option<&mut [B::Buffer; 2]>,
    scale: f32,
) -> Result<()> {
    let (outputs, inputs, rows) = (out_grad.cols, x.cols, x.rows);
    let weight = View::dense(parameters.matrix(index.weight), outputs, inputs);
    let (a, b) = (Factor::of(out_grad), Factor::of(weight));
    backend.matmul(MatMul { a, b, scale: 1.0, add, out: x_grad.again() })?;
    if parameters.is_trained(index.weight) {
        let out = ViewMut::dense(&mut parameters.gradients[index.weight], outputs, inputs);
        let (a, b) = (Factor::transposed(out_grad), Factor::of(x));
        backend.matmul(MatMul { a, b, scale: 1.0, add: true, out })?;
    }
    if let Some(bias) = index.bias.filter(|bias| parameters.is_trained(*bias)) {
        let at = parameters.batch_gradient(bias);
        backend.sum_rows(out_grad, &mut parameters.batch_gradients[at])?;
    }
    let (Some((lora_a, lora_b)), Some([low, low_grad])) = (index.lora, low) else { return Ok(()) };
    let rank = parameters.len(lora_a) / inputs;
    lora_low(backend, parameters, lora_a, x, low, rank)?;
    let low = View::dense(&*low, rows, rank);
    let out = ViewMut::dense(&mut parameters.gradients[lora_b], outputs, rank);
    backend.matmul(MatMul { a: Factor::transposed(out_grad), b: Factor::of(low), scale, add: true, out })?;
    let weight = View::dense(parameters.matrix(lora_b), outputs, rank);
    let out = ViewMut::dense(low_grad, rows, rank);
    backend.matmul(MatMul { a: Factor::of(out_grad), b: Factor::of(weight), scale, add: false, out })?;
    let low_grad = View::dense(&*low_grad, rows, rank);
    let out = ViewMut::dense(&mut parameters.gradients[lora_a], rank, inputs);
    backend.matmul(MatMul {
        a: Factor::transposed(low_grad),
        b: Factor::of(x),
        scale: 1.0,
        add: true,
        out,
    })?;
    let weight = View::dense(parameters.matrix(lora_a), rank, inputs);
    let (a, b) = (Factor::of(low_grad), Factor::of(weight));
    backend.matmul(MatMul { a, b, scale: 1.0, add: true, out: x_grad })
}

/// Different elements of a group, to write.
fn several<T, const N: usize>(group: &mut [T], at: [usize; N]) -> Result<[&mut T; N]> {
    group
        .get_disjoint_mut(at)
        .map_err(|error| Error::Internal { message: format!("parameters {at:?}: {error}") })
}

fn one_and_maybe<T>(group: &mut [T], one: usize, maybe: Option<usize>) -> Result<(&mut T, Option<&mut T>)> {
    match maybe {
        Some(maybe) => several(group, [one, maybe]).map(|[one, maybe]| (one, Some(maybe))),
        None => several(group, [one]).map(|[one]| (one, None)),
    }
}
