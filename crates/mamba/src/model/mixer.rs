//! What a block mixes over time with. Mixers differ in what they remember, so each states its own
//! [`StateEntry`]s; nothing outside of this file knows more about them.

use super::block::Mixed;
use super::{Adapters, Linear, Loader, Slots, StateEntry, Workspace};
use crate::backend::{Backend, BlockStep, View, ViewMut};
use crate::config::Config;
use crate::error::Result;
use crate::ops::causal_conv1d::CausalConv1d;
use crate::ops::selective_scan::SelectiveScan;
use crate::train::Projection;

/// The mixer of one layer.
pub enum Mixer<B: Backend> {
    /// The selective state space mixer of the first paper.
    Mamba1(Mamba1<B>),
}

impl<B: Backend> Mixer<B> {
    pub(super) fn load(loader: &mut Loader<B>, config: &Config, layer: usize) -> Result<Self> {
        Mamba1::load(loader, config, layer).map(Self::Mamba1)
    }

    /// What the mixer remembers of a sequence.
    pub fn state_spec(&self, layer: usize) -> Vec<StateEntry> {
        match self {
            Self::Mamba1(mixer) => mixer.state_spec(layer),
        }
    }

    /// From `workspace.hidden`; where its output is, is returned. `state_offset` is where this layer's state begins
    /// within a slot; it is moved on to the next layer's.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        tokens: usize,
        slots: &mut Slots<B>,
        state_offset: &mut usize,
        workspace: &mut Workspace<B>,
    ) -> Result<Mixed> {
        match self {
            Self::Mamba1(mixer) => mixer.forward(backend, plan, tokens, slots, state_offset, workspace),
        }
    }
}

/// Mamba-1 (`mamba_ssm/modules/mamba_simple.py`).
pub struct Mamba1<B: Backend> {
    /// [2 · d_inner, d_model]: x, then z.
    in_proj: Linear<B>,
    /// [d_conv, d_inner].
    conv_weight: B::Buffer,
    conv_bias: Option<B::Buffer>,
    /// [dt_rank + 2 · d_state, d_inner]: dt, B, C.
    x_proj: Linear<B>,
    /// [d_inner, dt_rank]; its bias is added in the scan, in f32.
    dt_proj: Linear<B>,
    /// [d_inner].
    delta_bias: B::Buffer,
    /// [d_state, d_inner]: −exp(A_log), transposed.
    a: B::Buffer,
    /// [d_inner].
    d: B::Buffer,
    /// [d_model, d_inner].
    out_proj: Linear<B>,
    layer: usize,
    d_inner: usize,
    d_state: usize,
    d_conv: usize,
    dt_rank: usize,
}

impl<B: Backend> Mamba1<B> {
    fn load(loader: &mut Loader<B>, config: &Config, layer: usize) -> Result<Self> {
        let name = |what: &str| format!("backbone.layers.{layer}.mixer.{what}");
        let Config { d_inner, d_state, d_conv, dt_rank, .. } = *config;
        let linear = |loader: &mut Loader<B>, what: &str, bias: bool| {
            let bias = match bias {
                true => Some(loader.vector(&name(&format!("{what}.bias")), |x| x)?),
                false => None,
            };
            Ok::<_, crate::Error>(Linear { weight: loader.matrix(&name(&format!("{what}.weight")))?, bias })
        };
        Ok(Self {
            in_proj: linear(loader, "in_proj", config.bias)?,
            x_proj: linear(loader, "x_proj", false)?,
            dt_proj: linear(loader, "dt_proj", false)?,
            out_proj: linear(loader, "out_proj", config.bias)?,
            conv_weight: loader.vector(&name("conv1d.weight"), |w| transpose(&w, d_conv))?,
            conv_bias: match config.conv_bias {
                true => Some(loader.vector(&name("conv1d.bias"), |x| x)?),
                false => None,
            },
            delta_bias: loader.vector(&name("dt_proj.bias"), |x| x)?,
            a: loader.vector(&name("A_log"), |a| {
                transpose(&a.into_iter().map(|a| -a.exp()).collect::<Vec<_>>(), d_state)
            })?,
            d: loader.vector(&name("D"), |x| x)?,
            layer,
            d_inner,
            d_state,
            d_conv,
            dt_rank,
        })
    }

    fn state_spec(&self, layer: usize) -> Vec<StateEntry> {
        let entry =
            |name: &str, rows| StateEntry { name: name.into(), layer, shape: vec![rows, self.d_inner] };
        vec![entry("conv_state", self.d_conv - 1), entry("ssm_state", self.d_state)]
    }

    /// The whole block at once, if the batch is one token a sequence, no adapter adds to its products, and the backend can.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn step(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        sequences: usize,
        norm: &B::Buffer,
        eps: f32,
        follows: bool,
        slots: &mut Slots<B>,
        state_offset: &mut usize,
        workspace: &mut Workspace<B>,
    ) -> Result<bool> {
        let adapted = workspace.adapters.as_ref().is_some_and(Adapters::is_active);
        if adapted || self.in_proj.bias.is_some() || self.out_proj.bias.is_some() {
            return Ok(false);
        }
        let Self { d_inner, d_state, d_conv, .. } = *self;
        let Workspace { residual, hidden, xz, u, y, d_model, .. } = workspace;
        let step = BlockStep {
            norm,
            eps,
            in_proj: &self.in_proj.weight,
            conv_weight: &self.conv_weight,
            conv_bias: self.conv_bias.as_ref(),
            x_proj: &self.x_proj.weight,
            dt_proj: &self.dt_proj.weight,
            delta_bias: &self.delta_bias,
            a: &self.a,
            d: &self.d,
            out_proj: &self.out_proj.weight,
            state: slots.view(*state_offset),
            d_conv,
            follows,
            residual: ViewMut::dense(residual, sequences, *d_model),
            hidden: ViewMut::dense(hidden, sequences, *d_model),
            u: ViewMut::dense(u, sequences, d_inner),
            xz: ViewMut::dense(xz, sequences, 2 * d_inner),
            y: ViewMut::dense(y, sequences, d_inner),
        };
        let done = backend.block_step(plan, step)?;
        if done {
            *state_offset += (d_conv - 1 + d_state) * d_inner;
        }
        Ok(done)
    }

    fn forward(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        tokens: usize,
        slots: &mut Slots<B>,
        state_offset: &mut usize,
        workspace: &mut Workspace<B>,
    ) -> Result<Mixed> {
        let Self { d_inner, d_state, d_conv, dt_rank, .. } = *self;
        let Workspace { residual, hidden, xz, u, dt_b_c, delta, y, mixed, adapters, d_model, .. } = workspace;
        let alone = self.out_proj.bias.is_none() && !adapters.as_ref().is_some_and(Adapters::is_active);
        let mut adapt =
            |backend: &mut B, projection, x: View<B::Buffer>, out: ViewMut<B::Buffer>| match adapters {
                Some(adapters) => adapters.add(backend, plan, self.layer, projection, x, out),
                None => Ok(()),
            };

        let hidden = View::dense(&*hidden, tokens, *d_model);
        self.in_proj.forward(backend, hidden, ViewMut::dense(xz, tokens, 2 * d_inner))?;
        adapt(backend, Projection::In, hidden, ViewMut::dense(xz, tokens, 2 * d_inner))?;
        let xz = View::dense(&*xz, tokens, 2 * d_inner);

        let conv = CausalConv1d {
            x: xz.columns(0, d_inner),
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            d_conv,
            state: Some(slots.view(*state_offset)),
            out: ViewMut::dense(u, tokens, d_inner),
        };
        backend.causal_conv1d(plan, conv)?;
        *state_offset += (d_conv - 1) * d_inner;
        let u = View::dense(&*u, tokens, d_inner);

        let width = dt_rank + 2 * d_state;
        self.x_proj.forward(backend, u, ViewMut::dense(dt_b_c, tokens, width))?;
        adapt(backend, Projection::X, u, ViewMut::dense(dt_b_c, tokens, width))?;
        let dt_b_c = View::dense(&*dt_b_c, tokens, width);
        let dt = dt_b_c.columns(0, dt_rank);
        self.dt_proj.forward(backend, dt, ViewMut::dense(delta, tokens, d_inner))?;
        adapt(backend, Projection::Dt, dt, ViewMut::dense(delta, tokens, d_inner))?;

        let scan = SelectiveScan {
            u,
            delta: View::dense(&*delta, tokens, d_inner),
            delta_bias: Some(&self.delta_bias),
            a: &self.a,
            b: dt_b_c.columns(dt_rank, d_state),
            c: dt_b_c.columns(dt_rank + d_state, d_state),
            d: Some(&self.d),
            z: Some(xz.columns(d_inner, d_inner)),
            state: Some(slots.view(*state_offset)),
            out: ViewMut::dense(y, tokens, d_inner),
        };
        backend.selective_scan(plan, scan)?;
        *state_offset += d_state * d_inner;

        let y = View::dense(&*y, tokens, d_inner);
        let residual = ViewMut::dense(residual, tokens, *d_model);
        if alone && backend.linear_onto(y, &self.out_proj.weight, residual)? {
            return Ok(Mixed::Added);
        }
        self.out_proj.forward(backend, y, ViewMut::dense(mixed, tokens, *d_model))?;
        adapt(backend, Projection::Out, y, ViewMut::dense(mixed, tokens, *d_model))?;
        Ok(Mixed::Pending)
    }
}

/// [rows, cols] to [cols, rows].
fn transpose(x: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| x.iter().skip(c).step_by(cols).copied()).collect()
}
