//! Adapters beside the model's matrices: which rows of a step each belongs to, and what it adds there.

use crate::backend::{Backend, View, ViewMut};
use crate::checkpoint::Tensor;
use crate::config::Config;
use crate::dtype::DType;
use crate::error::Result;
use crate::train::Projection;
use crate::train::adapter::{Adapter, AdapterKind, LowRank};

/// The adapters that a model was loaded with.
pub struct Adapters<B: Backend> {
    loaded: Vec<Loaded<B>>,
    /// [tokens, rank]: between A and B.
    low: B::Buffer,
    /// [tokens, outputs]: what is added.
    wide: B::Buffer,
    /// Of the step that runs: rows `from .. from + rows` are this adapter's.
    groups: Vec<Group>,
}

/// A [rank, in] and B [out, rank], the latter scaled.
type Factors<B> = (<B as Backend>::Weight, <B as Backend>::Weight);

struct Loaded<B: Backend> {
    rank: usize,
    /// For each layer and [`Projection`].
    layers: Vec<[Option<Factors<B>>; 4]>,
    /// What every text begins from.
    initial_state: Option<Vec<f32>>,
}

#[derive(Clone, Copy)]
struct Group {
    from: usize,
    rows: usize,
    adapter: usize,
}

impl<B: Backend> Adapters<B> {
    /// Prepares adapters for steps of at most `max_tokens` tokens, their matrices in `dtype`.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, what the backend gives.
    pub fn load(
        backend: &mut B,
        config: &Config,
        adapters: &[Adapter],
        dtype: DType,
        max_tokens: usize,
    ) -> Result<Self> {
        let (mut loaded, mut widest_rank) = (Vec::new(), 0);
        for adapter in adapters {
            loaded.push(match &adapter.kind {
                AdapterKind::State(state) => {
                    Loaded { rank: 0, layers: Vec::new(), initial_state: Some(state.clone()) }
                }
                AdapterKind::Lora { rank, scale, layers } => {
                    widest_rank = widest_rank.max(*rank);
                    let layers = layers.iter().map(|layer| -> Result<_> {
                        let mut prepared = [const { None }; 4];
                        for (i, low_rank) in layer.iter().enumerate() {
                            if let Some(LowRank { a, b }) = low_rank {
                                let [outputs, inputs] = Projection::ALL[i].shape(config);
                                let scaled = b.iter().map(|x| x * scale).collect();
                                let a = Tensor::from_memory("lora_A", vec![*rank, inputs], a.clone());
                                let b = Tensor::from_memory("lora_B", vec![outputs, *rank], scaled);
                                prepared[i] = Some((backend.weight(&a, dtype)?, backend.weight(&b, dtype)?));
                            }
                        }
                        Ok(prepared)
                    });
                    Loaded { rank: *rank, layers: layers.collect::<Result<_>>()?, initial_state: None }
                }
            });
        }
        let widest = Projection::ALL.map(|projection| projection.shape(config)[0]).into_iter().max();
        let tokens = if widest_rank > 0 { max_tokens } else { 0 };
        Ok(Self {
            loaded,
            low: backend.activations(tokens * widest_rank)?,
            wide: backend.activations(tokens * widest.unwrap_or(0))?,
            groups: Vec::new(),
        })
    }

    /// The state that a fresh sequence with this adapter begins from; `None`: zero.
    pub fn initial_state(&self, adapter: usize) -> Option<&[f32]> {
        self.loaded.get(adapter)?.initial_state.as_deref()
    }

    /// Says whose the rows of the next step are: for each sequence, in order, its rows and its adapter.
    pub fn assign(&mut self, sequences: impl Iterator<Item = (usize, Option<usize>)>) {
        self.groups.clear();
        let mut from = 0;
        for (rows, adapter) in sequences {
            if let Some(adapter) = adapter {
                match self.groups.last_mut() {
                    Some(group) if group.adapter == adapter && group.from + group.rows == from => {
                        group.rows += rows;
                    }
                    _ => self.groups.push(Group { from, rows, adapter }),
                }
            }
            from += rows;
        }
    }

    /// Whether any row of the step is an adapter's.
    pub fn is_active(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Adds `scale · B · A · x` of each adapter to its rows of `out`, the product of a layer's matrix with x.
    pub(super) fn add(
        &mut self,
        backend: &mut B,
        layer: usize,
        projection: Projection,
        x: View<B::Buffer>,
        out: ViewMut<B::Buffer>,
    ) -> Result<()> {
        for Group { from, rows, adapter } in self.groups.iter().copied() {
            let Loaded { rank, layers, .. } = &self.loaded[adapter];
            let Some(Some((a, b))) = layers.get(layer).map(|layer| &layer[projection as usize]) else {
                continue;
            };
            let x = View { offset: x.offset + from * x.stride, rows, ..x };
            backend.linear(x, a, None, ViewMut::dense(&mut self.low, rows, *rank))?;
            let low = View::dense(&self.low, rows, *rank);
            backend.linear(low, b, None, ViewMut::dense(&mut self.wide, rows, out.cols))?;
            backend.accumulate(
                View::dense(&self.wide, rows, out.cols),
                ViewMut {
                    buffer: &mut *out.buffer,
                    offset: out.offset + from * out.stride,
                    rows,
                    cols: out.cols,
                    stride: out.stride,
                },
            )?;
        }
        Ok(())
    }
}
