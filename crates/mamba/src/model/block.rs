//! A residual block: `residual ← residual + mixer(norm(residual))`.

use super::mixer::Mixer;
use super::{Loader, Slots, Workspace};
use crate::backend::{Backend, View, ViewMut};
use crate::config::{Config, NormKind};
use crate::error::Result;
use crate::ops::norm::AddNorm;

/// RMSNorm or LayerNorm, fused with the addition of the last mixer's output to the residual.
pub struct Norm<B: Backend> {
    kind: NormKind,
    eps: f32,
    weight: B::Buffer,
    bias: Option<B::Buffer>,
}

impl<B: Backend> Norm<B> {
    pub(super) fn load(loader: &mut Loader<B>, config: &Config, name: &str) -> Result<Self> {
        let bias = match config.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(loader.vector(&format!("{name}.bias"), |x| x)?),
        };
        let weight = loader.vector(&format!("{name}.weight"), |x| x)?;
        Ok(Self { kind: config.norm, eps: config.norm_epsilon as f32, weight, bias })
    }

    /// The weight and epsilon of a plain RMSNorm.
    pub(super) fn as_rms(&self) -> Option<(&B::Buffer, f32)> {
        (self.kind == NormKind::Rms).then_some((&self.weight, self.eps))
    }

    /// `residual += mixed` where there is one, then `hidden = norm(residual)`.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        tokens: usize,
        add_mixed: bool,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        let Workspace { residual, mixed, hidden, d_model, .. } = workspace;
        backend.add_norm(AddNorm {
            kind: self.kind,
            eps: self.eps,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            delta: add_mixed.then(|| View::dense(&*mixed, tokens, *d_model)),
            residual: ViewMut::dense(residual, tokens, *d_model),
            out: ViewMut::dense(hidden, tokens, *d_model),
        })
    }
}

/// One layer.
pub struct Block<B: Backend> {
    /// Before the mixer.
    pub norm: Norm<B>,
    /// What mixes over time.
    pub mixer: Mixer<B>,
}

impl<B: Backend> Block<B> {
    pub(super) fn load(loader: &mut Loader<B>, config: &Config, layer: usize) -> Result<Self> {
        Ok(Self {
            norm: Norm::load(loader, config, &format!("backbone.layers.{layer}.norm"))?,
            mixer: Mixer::load(loader, config, layer)?,
        })
    }

    /// `mixed` is what the block in front left to add to the residual; this one's is left likewise.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        backend: &mut B,
        plan: &B::Plan,
        tokens: usize,
        mixed: Mixed,
        slots: &mut Slots<B>,
        state_offset: &mut usize,
        workspace: &mut Workspace<B>,
    ) -> Result<Mixed> {
        if let (Mixed::None | Mixed::Stepped, Some((norm, eps))) = (mixed, self.norm.as_rms()) {
            let follows = mixed == Mixed::Stepped;
            let Mixer::Mamba1(mixer) = &self.mixer;
            if mixer.step(backend, plan, tokens, norm, eps, follows, slots, state_offset, workspace)? {
                return Ok(Mixed::Stepped);
            }
        }
        self.norm.forward(backend, tokens, mixed == Mixed::Pending, workspace)?;
        self.mixer.forward(backend, plan, tokens, slots, state_offset, workspace)
    }
}

/// Where the last block's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixed {
    /// There was no block.
    None,
    /// In `workspace.mixed`; the next norm adds it to the residual.
    Pending,
    /// In the residual.
    Added,
    /// In the residual, by a whole block's step, behind which another one may follow.
    Stepped,
}
