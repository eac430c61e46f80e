//! Adapters beside the model's matrices: which rows of a step each belongs to, and what it adds there.
//!
//! Where the host says whose a step's rows are, an adapter's rows share its products. A decoder's steps are recorded, and
//! replayed with other adapters in their rows: there each row looks its adapter up.

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
    /// For each layer and [`Projection`] all adapters' matrices, where one has any and the backend has a decoder.
    tables: Vec<[Option<B::LowRanks>; 4]>,
    /// Of the step that runs: rows `from .. from + rows` are this adapter's.
    groups: Vec<Group>,
    /// Whether its rows' adapters are those in the decoder's table instead.
    by_table: bool,
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
    /// Prepares adapters for steps of at most `max_tokens` tokens. Their matrices are as they were trained where the
    /// processor computes, in the type of activations on a GPU.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, what the backend gives.
    pub fn load(backend: &mut B, config: &Config, adapters: &[Adapter], max_tokens: usize) -> Result<Self> {
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
                                prepared[i] =
                                    Some((backend.weight(&a, DType::F32)?, backend.weight(&b, DType::F32)?));
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
            tables: tables(backend, config.n_layer, &loaded)?,
            loaded,
            low: backend.activations(tokens * widest_rank)?,
            wide: backend.activations(tokens * widest.unwrap_or(0))?,
            groups: Vec::new(),
            by_table: false,
        })
    }

    /// The state that a fresh sequence with this adapter begins from; `None`: zero.
    pub fn initial_state(&self, adapter: usize) -> Option<&[f32]> {
        self.loaded.get(adapter)?.initial_state.as_deref()
    }

    /// Whether it adds to products: a learned state does not.
    pub fn has_matrices(&self, adapter: usize) -> bool {
        self.loaded.get(adapter).is_some_and(|adapter| !adapter.layers.is_empty())
    }

    /// Says whose the rows of the next step are: for each sequence, in order, its rows and its adapter.
    pub fn assign(&mut self, sequences: impl Iterator<Item = (usize, Option<usize>)>) {
        self.groups.clear();
        self.by_table = false;
        let mut from = 0;
        for (rows, adapter) in sequences {
            if let Some(adapter) = adapter.filter(|adapter| self.has_matrices(*adapter)) {
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

    /// Says that whose the rows of the next step are is in the decoder's table, or if not `adapted`, that they are nobody's.
    pub(super) fn assign_by_table(&mut self, adapted: bool) {
        self.groups.clear();
        self.by_table = adapted;
    }

    /// Whether any row of the step may be an adapter's.
    pub(super) fn is_active(&self) -> bool {
        self.by_table || !self.groups.is_empty()
    }

    /// Adds `scale · B · A · x` of each adapter to its rows of `out`, the product of a layer's matrix with x.
    pub(super) fn add(
        &mut self,
        backend: &mut B,
        plan: &B::Plan,
        layer: usize,
        projection: Projection,
        x: View<B::Buffer>,
        out: ViewMut<B::Buffer>,
    ) -> Result<()> {
        if self.by_table {
            return match &self.tables[layer][projection as usize] {
                Some(low_ranks) => backend.add_low_rank(plan, low_ranks, x, out),
                None => Ok(()),
            };
        }
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

/// See [`Adapters::tables`].
fn tables<B: Backend>(
    backend: &mut B,
    layers: usize,
    loaded: &[Loaded<B>],
) -> Result<Vec<[Option<B::LowRanks>; 4]>> {
    let of_layer = |layer: usize| {
        let mut tables = [const { None }; 4];
        for (i, table) in tables.iter_mut().enumerate() {
            let factors = loaded.iter().map(|adapter| {
                let (a, b) = adapter.layers.get(layer)?[i].as_ref()?;
                Some([a, b])
            });
            let factors: Vec<_> = factors.collect();
            if factors.iter().any(Option::is_some) {
                *table = backend.low_ranks(&factors)?;
            }
        }
        Ok(tables)
    };
    (0..layers).map(of_layer).collect()
}
