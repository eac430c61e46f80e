//! Which parameters a model has, in what order they lie in the trainer's flat buffers, and how.
//!
//! The order is by what is done with them: trained matrices (decayed, and with 16-bit activations copied into that
//! type), other trained tensors that are decayed, trained ones that are not; then the same of what is frozen. So every
//! pass over "all that is decayed" or "all gradients" is over one range.

use std::collections::HashMap;

use crate::config::{Config, NormKind};
use crate::error::{Error, Result};

/// What is trained.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// Every parameter.
    All,
    /// Low-rank adapters alone: `W + alpha / rank · B · A` for each target matrix.
    Lora {
        /// Inner dimension of A and B.
        rank: usize,
        /// Scale, divided by the rank.
        alpha: f32,
        /// `in_proj`, `x_proj`, `dt_proj`, `out_proj`: one or more of them.
        targets: Vec<Projection>,
    },
    /// The state that every fresh sequence begins from, alone.
    State,
    /// Nothing of the model: only what `extra` adds (a head on frozen features).
    Extra,
}

/// A block's matrices, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// [2 · d_inner, d_model]
    In,
    /// [dt_rank + 2 · d_state, d_inner]
    X,
    /// [d_inner, dt_rank]
    Dt,
    /// [d_model, d_inner]
    Out,
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::In, Self::X, Self::Dt, Self::Out];

    /// `in_proj`, `x_proj`, `dt_proj`, `out_proj`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in_proj",
            Self::X => "x_proj",
            Self::Dt => "dt_proj",
            Self::Out => "out_proj",
        }
    }

    /// [outputs, inputs] of the matrix.
    #[must_use]
    pub fn shape(self, config: &Config) -> [usize; 2] {
        let Config { d_model, d_inner, d_state, dt_rank, .. } = *config;
        match self {
            Self::In => [2 * d_inner, d_model],
            Self::X => [dt_rank + 2 * d_state, d_inner],
            Self::Dt => [d_inner, dt_rank],
            Self::Out => [d_model, d_inner],
        }
    }
}

/// A tensor of parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The official name; adapters' are `<matrix without .weight>.lora_A.weight` [rank, in] and `….lora_B.weight`
    /// [out, rank], a learned initial state is `initial_state` [elements of the model's whole state].
    pub name: String,
    /// The official shape, outermost first.
    pub shape: Vec<usize>,
    /// Whether it has a gradient.
    pub trained: bool,
    /// Whether weight decay applies: two or more dimensions, and not A_log.
    pub decayed: bool,
    /// Whether it is multiplied with, so that 16-bit training keeps a copy in that type.
    pub(super) matrix: bool,
    /// Kept with its last dimension outermost, as the kernels read it.
    pub(super) transposed: bool,
}

impl Parameter {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// From the official order of elements to that of the buffers.
    pub(super) fn to_stored(&self, values: &[f32]) -> Vec<f32> {
        let cols = self.shape.last().copied().unwrap_or(1);
        if self.transposed { transpose(values, cols) } else { values.to_vec() }
    }

    /// Back.
    pub(super) fn to_official(&self, values: &[f32]) -> Vec<f32> {
        let cols = self.shape.last().copied().unwrap_or(1);
        if self.transposed { transpose(values, self.elements() / cols) } else { values.to_vec() }
    }
}

/// [rows, cols] to [cols, rows].
fn transpose(x: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| x.iter().skip(c).step_by(cols).copied()).collect()
}

/// Where a norm's parameters are.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormIndex {
    pub weight: usize,
    pub bias: Option<usize>,
}

/// Where a matrix and what belongs to it are.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinearIndex {
    pub weight: usize,
    /// Added to the product; the bias of dt_proj is not: the scan adds it.
    pub bias: Option<usize>,
    /// A and B.
    pub lora: Option<(usize, usize)>,
}

/// Where a layer's parameters are.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerIndex {
    pub norm: NormIndex,
    pub projections: [LinearIndex; 4],
    pub conv_weight: usize,
    pub conv_bias: Option<usize>,
    pub delta_bias: usize,
    pub a_log: usize,
    pub d: usize,
}

/// All parameters in the order of the flat buffers.
#[derive(Clone, Debug)]
pub struct Layout {
    parameters: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    pub(super) layers: Vec<LayerIndex>,
    pub(super) embedding: usize,
    pub(super) norm_f: NormIndex,
    /// `None`: tied.
    pub(super) lm_head: Option<usize>,
    /// The learned initial state.
    pub(super) initial_state: Option<usize>,
    /// How many are trained: they come first.
    pub(super) trained: usize,
    /// How many of these are decayed: they come first.
    pub(super) decayed: usize,
}

impl Layout {
    /// `extra`: names and shapes of parameters that are no part of the model (a classification head); always trained.
    /// `state_elements`: those of one sequence's whole state.
    ///
    /// # Errors
    /// `OPTION_INVALID` for an adapter of rank 0 or without targets, or a name that is there twice.
    pub(super) fn new(
        config: &Config,
        trained: &Trained,
        extra: &[(String, Vec<usize>)],
        state_elements: usize,
    ) -> Result<Self> {
        let all = *trained == Trained::All;
        let mut parameters: Vec<Parameter> = config
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let a_log = name.ends_with(".A_log");
                let conv = name.ends_with(".conv1d.weight");
                let decayed = shape.len() >= 2 && !a_log;
                let (matrix, transposed) = (decayed && !conv, a_log || conv);
                Parameter { name, shape, trained: all, decayed, matrix, transposed }
            })
            .collect();
        let mut add = |name: String, shape: Vec<usize>, matrix| {
            let decayed = shape.len() >= 2;
            parameters.push(Parameter { name, shape, trained: true, decayed, matrix, transposed: false });
        };
        match trained {
            Trained::All | Trained::Extra => {}
            Trained::Lora { rank, targets, .. } => {
                if *rank == 0 {
                    return Err(Error::option("adapter.rank", rank, "at least 1"));
                }
                if targets.is_empty() {
                    let expected = "one or more of `in_proj`, `x_proj`, `dt_proj`, `out_proj`";
                    return Err(Error::option("adapter.targets", "[]", expected));
                }
                for layer in 0..config.n_layer {
                    for target in targets {
                        let name = format!("backbone.layers.{layer}.mixer.{}", target.name());
                        let [outputs, inputs] = target.shape(config);
                        add(format!("{name}.lora_A.weight"), vec![*rank, inputs], true);
                        add(format!("{name}.lora_B.weight"), vec![outputs, *rank], true);
                    }
                }
            }
            Trained::State => add("initial_state".into(), vec![state_elements], false),
        }
        for (name, shape) in extra {
            add(name.clone(), shape.clone(), false);
        }
        // Stable: within a group, the order of the model.
        parameters.sort_by_key(|p| (!p.trained, !p.matrix, !p.decayed));
        let mut by_name = HashMap::new();
        for (index, parameter) in parameters.iter().enumerate() {
            if by_name.insert(parameter.name.clone(), index).is_some() {
                return Err(Error::option("extra", format!("`{}`", parameter.name), "a name of its own"));
            }
        }
        let trained = parameters.iter().filter(|p| p.trained).count();
        let decayed = parameters.iter().filter(|p| p.trained && p.decayed).count();
        let find = |name: &str| by_name.get(name).copied();
        let at = |name: &str| {
            find(name).ok_or_else(|| Error::Internal { message: format!("no parameter `{name}`") })
        };
        let norm = |name: &str| {
            let bias = match config.norm {
                NormKind::Rms => None,
                NormKind::Layer => Some(at(&format!("{name}.bias"))?),
            };
            Ok::<_, Error>(NormIndex { weight: at(&format!("{name}.weight"))?, bias })
        };
        let mut layers = Vec::new();
        for layer in 0..config.n_layer {
            let mixer = |what: &str| format!("backbone.layers.{layer}.mixer.{what}");
            let mut projections = [LinearIndex { weight: 0, bias: None, lora: None }; 4];
            for (index, which) in projections.iter_mut().zip(Projection::ALL) {
                let name = mixer(which.name());
                index.weight = at(&format!("{name}.weight"))?;
                index.bias = match which {
                    Projection::In | Projection::Out => find(&format!("{name}.bias")),
                    Projection::X | Projection::Dt => None,
                };
                index.lora =
                    find(&format!("{name}.lora_A.weight")).zip(find(&format!("{name}.lora_B.weight")));
            }
            layers.push(LayerIndex {
                norm: norm(&format!("backbone.layers.{layer}.norm"))?,
                projections,
                conv_weight: at(&mixer("conv1d.weight"))?,
                conv_bias: find(&mixer("conv1d.bias")),
                delta_bias: at(&mixer("dt_proj.bias"))?,
                a_log: at(&mixer("A_log"))?,
                d: at(&mixer("D"))?,
            });
        }
        Ok(Self {
            layers,
            embedding: at("backbone.embedding.weight")?,
            norm_f: norm("backbone.norm_f")?,
            lm_head: find("lm_head.weight"),
            initial_state: find("initial_state"),
            trained,
            decayed,
            by_name,
            parameters,
        })
    }

    /// All parameters, trained ones first.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Where a parameter is among [`Layout::parameters`].
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Numbers of elements, of all parameters.
    pub(super) fn lens(&self) -> Vec<usize> {
        self.parameters.iter().map(Parameter::elements).collect()
    }

    /// The parameters of which 16-bit training keeps a copy.
    pub(super) fn is_matrix(&self, index: usize) -> bool {
        self.parameters[index].matrix
    }
}
