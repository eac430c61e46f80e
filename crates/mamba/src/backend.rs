//! What a device has to be able to do. The model and the engine are written once, over this trait; they
//! never see a slice, a pointer or a kernel.
//!
//! A backend owns its buffers and weights. Operations write into buffers that they are given, from a
//! workspace that is sized once, so nothing is allocated within a step. `Cpu` runs a call at once, `Cuda` queues
//! it, so results are only there after [`Backend::read`].

use crate::checkpoint::Tensor;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::causal_conv1d::CausalConv1d;
use crate::ops::norm::AddNorm;
use crate::ops::pool::Pool;
use crate::ops::selective_scan::SelectiveScan;

/// A matrix inside a buffer: `rows` × `cols`, elements of a row next to each other, rows `stride` apart.
#[derive(Debug)]
pub struct View<'a, T> {
    /// Where it lies.
    pub buffer: &'a T,
    /// Element at which row 0 begins.
    pub offset: usize,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Number of columns (channels).
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T> View<'a, T> {
    /// The first `rows` rows of a buffer whose rows are `cols` long, without gaps.
    pub fn dense(buffer: &'a T, rows: usize, cols: usize) -> Self {
        Self { buffer, offset: 0, rows, cols, stride: cols }
    }

    /// Columns `from .. from + cols`.
    #[must_use]
    pub fn columns(self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols, "columns {from}..{} of {}", from + cols, self.cols);
        Self { offset: self.offset + from, cols, ..self }
    }
}

/// A [`View`] that is written.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    /// Where it lies.
    pub buffer: &'a mut T,
    /// Element at which row 0 begins.
    pub offset: usize,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Number of columns (channels).
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

impl<'a, T> ViewMut<'a, T> {
    /// The first `rows` rows of a buffer whose rows are `cols` long, without gaps.
    pub fn dense(buffer: &'a mut T, rows: usize, cols: usize) -> Self {
        Self { buffer, offset: 0, rows, cols, stride: cols }
    }

    /// The same, to be used again afterwards.
    pub fn again(&mut self) -> ViewMut<'_, T> {
        ViewMut {
            buffer: &mut *self.buffer,
            offset: self.offset,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }
}

/// One tensor of every slot's state, read as the initial state and overwritten with the last one.
/// Slot `s` holds it at `buffer[s * slot_stride + offset ..]`.
#[derive(Debug)]
pub struct StateView<'a, T> {
    /// The buffer of all slots.
    pub buffer: &'a mut T,
    /// Where the tensor begins within a slot.
    pub offset: usize,
    /// Elements from a slot to the next.
    pub slot_stride: usize,
}

/// A packed batch of sequences: their tokens end to end, no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences.
    pub ids: Vec<u32>,
    /// Sequence `i` is `ids[cu_seqlens[i] .. cu_seqlens[i + 1]]`; begins with 0, one longer than there are
    /// sequences. A sequence may be empty.
    pub cu_seqlens: Vec<usize>,
    /// The state slot of each sequence; no two alike.
    pub slots: Vec<usize>,
    /// Whether each sequence begins from a zero state (its slot's content is then ignored).
    pub fresh: Vec<bool>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self { cu_seqlens: vec![0], ..Self::default() }
    }

    /// Adds a sequence.
    pub fn push(&mut self, ids: &[u32], slot: usize, fresh: bool) {
        self.ids.extend_from_slice(ids);
        self.cu_seqlens.push(self.ids.len());
        self.slots.push(slot);
        self.fresh.push(fresh);
    }

    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.slots.len()
    }

    /// Number of tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Forgets all sequences, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        self.slots.clear();
        self.fresh.clear();
    }
}

/// A layer of Mamba-1 with RMSNorm in front, for one token of each of the plan's sequences. Shapes: d_inner channels E,
/// d_state N.
#[derive(Debug)]
pub struct BlockStep<'a, B: Backend> {
    /// [d_model].
    pub norm: &'a B::Buffer,
    /// Added under the root.
    pub eps: f32,
    /// [2E, d_model]: x, then z. Without a bias, as all others.
    pub in_proj: &'a B::Weight,
    /// [d_conv, E].
    pub conv_weight: &'a B::Buffer,
    /// [E].
    pub conv_bias: Option<&'a B::Buffer>,
    /// [dt_rank + 2N, E]: dt, B, C.
    pub x_proj: &'a B::Weight,
    /// [E, dt_rank].
    pub dt_proj: &'a B::Weight,
    /// [E].
    pub delta_bias: &'a B::Buffer,
    /// [N, E], negative.
    pub a: &'a B::Buffer,
    /// [E].
    pub d: &'a B::Buffer,
    /// [d_model, E].
    pub out_proj: &'a B::Weight,
    /// conv_state [d_conv - 1, E] and right behind it ssm_state [N, E].
    pub state: StateView<'a, B::Buffer>,
    /// Width of the convolution.
    pub d_conv: usize,
    /// Whether the step of another layer on the same rows lies right before; else this is the first layer.
    pub follows: bool,
    /// [sequences, d_model]: `residual += mixer(norm(residual))`.
    pub residual: ViewMut<'a, B::Buffer>,
    /// [sequences, d_model], for the backend's use.
    pub hidden: ViewMut<'a, B::Buffer>,
    /// [sequences, E], for the backend's use.
    pub u: ViewMut<'a, B::Buffer>,
    /// [sequences, 2E], for the backend's use.
    pub xz: ViewMut<'a, B::Buffer>,
    /// [sequences, E], for the backend's use.
    pub y: ViewMut<'a, B::Buffer>,
}

/// The final RMSNorm and the head, right behind the last layer's [`BlockStep`] on the same rows.
#[derive(Debug)]
pub struct HeadStep<'a, B: Backend> {
    /// [n, d_model].
    pub residual: View<'a, B::Buffer>,
    /// [d_model].
    pub norm: &'a B::Buffer,
    /// Added under the root.
    pub eps: f32,
    /// [vocab, d_model].
    pub weight: &'a B::Weight,
    /// [n, vocab].
    pub logits: ViewMut<'a, B::Buffer>,
}

/// Waits for values that are on their way, and gives them.
pub type Later = Box<dyn FnOnce() -> Result<Vec<f32>> + Send>;

/// A device. One engine thread owns it; no method is called by two threads at once.
pub trait Backend: Sized + Send + 'static {
    /// Device memory for activations, states and vectors of parameters.
    type Buffer: Send;
    /// A matrix of weights in the layout and type that this backend computes with.
    type Weight: Send;
    /// A [`Batch`] as this backend wants it (uploaded, split into work).
    type Plan;
    /// What several adapters add to one matrix in steps of a [`Decoder`]; where there is none,
    /// [`Infallible`](std::convert::Infallible).
    type LowRanks: Send;

    /// `cpu`, `cuda`, …
    fn name(&self) -> &'static str;

    /// Tokens that a step of such a model computes at most where nobody says: as many as fill the device.
    fn prefill_chunk(&self, _config: &Config, _dtype: DType) -> usize {
        512
    }

    /// Bytes of its own memory that are free, and all; `None` where it computes in the host's. Where it has its own, states
    /// that are needed again are kept there.
    fn memory(&mut self) -> Option<(u64, u64)> {
        None
    }

    /// Calls `job(0) … job(tasks − 1)`, each once, on the host: on all of the backend's threads where it has some.
    fn in_parallel(&mut self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(job);
    }

    /// A buffer of `len` zeros, f32: the residual stream, states, logits, vectors of parameters.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn alloc(&mut self, len: usize, what: &str) -> Result<Self::Buffer>;

    /// A buffer of `len` zeros for activations, in the type that this backend keeps them in.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn activations(&mut self, len: usize) -> Result<Self::Buffer> {
        self.alloc(len, "activations")
    }

    /// Copies into a buffer, from element `offset` on; rounded to its type.
    fn write(&mut self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()>;

    /// A buffer's elements, where they lie in the host's memory as f32 and all work is done at once.
    fn in_host(_buffer: &mut Self::Buffer) -> Option<&mut [f32]> {
        None
    }

    /// Copies out of a buffer, from element `offset` on, once all work queued before is done.
    fn read(&mut self, buffer: &Self::Buffer, offset: usize, values: &mut [f32]) -> Result<()>;

    /// Queues the copy of `len` elements out of an f32 buffer, from element `offset` on. What is queued later does not
    /// change them.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, `DEVICE_LOST`.
    fn read_later(&mut self, buffer: &Self::Buffer, offset: usize, len: usize) -> Result<Later> {
        let mut values = vec![0.0; len];
        self.read(buffer, offset, &mut values)?;
        Ok(Box::new(|| Ok(values)))
    }

    /// Copies `len` elements of a buffer from element `from` on to element `to` on. The ranges do not overlap.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, `DEVICE_LOST`.
    fn copy_within(&mut self, buffer: &mut Self::Buffer, from: usize, to: usize, len: usize) -> Result<()> {
        let mut values = vec![0.0; len];
        self.read(buffer, from, &mut values)?;
        self.write(buffer, to, &values)
    }

    /// Makes a matrix of weights `[out, in]` (row-major in the checkpoint), kept in `dtype`.
    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Self::Weight>;

    /// Bytes that a weight occupies.
    fn weight_bytes(&self, weight: &Self::Weight) -> u64;

    /// Prepares a batch.
    fn plan(&mut self, batch: &Batch) -> Result<Self::Plan>;

    /// `out[t] = table[ids[t]]`: rows of the embedding [vocab, d_model] for the plan's tokens.
    fn embedding(
        &mut self,
        plan: &Self::Plan,
        table: &Self::Weight,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()>;

    /// `out = x · weightᵀ + bias`: x [tokens, in], weight [out, in], bias [out]. f32 accumulation.
    fn linear(
        &mut self,
        x: View<Self::Buffer>,
        weight: &Self::Weight,
        bias: Option<&Self::Buffer>,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()>;

    /// `residual += x · weightᵀ`: x [tokens, in], weight [out, in], residual [tokens, out] f32. False, with nothing done,
    /// where that is no better than [`Backend::linear`] and an addition with the next norm.
    ///
    /// # Errors
    /// As [`Backend::linear`].
    fn linear_onto(
        &mut self,
        _x: View<Self::Buffer>,
        _weight: &Self::Weight,
        _residual: ViewMut<Self::Buffer>,
    ) -> Result<bool> {
        Ok(false)
    }

    /// See [`crate::ops::norm`].
    fn add_norm(&mut self, op: AddNorm<Self::Buffer>) -> Result<()>;

    /// See [`crate::ops::causal_conv1d`].
    fn causal_conv1d(&mut self, plan: &Self::Plan, op: CausalConv1d<Self::Buffer>) -> Result<()>;

    /// See [`crate::ops::selective_scan`].
    fn selective_scan(&mut self, plan: &Self::Plan, op: SelectiveScan<Self::Buffer>) -> Result<()>;

    /// A whole layer's decode step at once. False, and nothing done, where this backend has nothing better than the
    /// operations one by one.
    fn block_step(&mut self, plan: &Self::Plan, op: BlockStep<Self>) -> Result<bool> {
        let _ = (plan, op);
        Ok(false)
    }

    /// The final norm and the head of a decode step at once. False, and nothing done, as in [`Backend::block_step`].
    fn head_step(&mut self, op: HeadStep<Self>) -> Result<bool> {
        let _ = op;
        Ok(false)
    }

    /// Prepares what adapters add to one matrix [out, in]: of each A [rank, in] and B [out, rank], the latter scaled, or
    /// `None` where it adds nothing; at least one of them does. `None` where this backend has no [`Decoder`].
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn low_ranks(&mut self, factors: &[Option<[&Self::Weight; 2]>]) -> Result<Option<Self::LowRanks>> {
        let _ = factors;
        Ok(None)
    }

    /// `out[r] += B · (A · x[r])` with the adapter that the decoder's table has for row r when this is run; rows without
    /// one stay as they are. The plan is a [`Decoder`]'s, out's type f32 or that of activations.
    fn add_low_rank(
        &mut self,
        plan: &Self::Plan,
        low_ranks: &Self::LowRanks,
        x: View<Self::Buffer>,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()> {
        let _ = (plan, low_ranks, x, out);
        Err(Error::Internal { message: "no decoder".into() })
    }

    /// See [`crate::ops::pool`].
    fn pool(&mut self, plan: &Self::Plan, op: Pool<Self::Buffer>) -> Result<()>;

    /// `out += x`, of the same shape. By way of the host where a backend does not say otherwise.
    fn accumulate(&mut self, x: View<Self::Buffer>, out: ViewMut<Self::Buffer>) -> Result<()> {
        let (mut row, mut sum) = (vec![0.0; x.cols], vec![0.0; x.cols]);
        for i in 0..x.rows {
            self.read(x.buffer, x.offset + i * x.stride, &mut row)?;
            self.read(out.buffer, out.offset + i * out.stride, &mut sum)?;
            sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
            self.write(out.buffer, out.offset + i * out.stride, &sum)?;
        }
        Ok(())
    }

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, x: View<Self::Buffer>, rows: &[u32], out: ViewMut<Self::Buffer>) -> Result<()>;

    /// `out[i] = log_softmax(logits[i])[targets[i]]`, computed without overflow; logits [n, vocab].
    fn token_logprobs(&mut self, logits: View<Self::Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()>;

    /// A table of `rows` rows for sequences in slots 0 to `slots` - 1, where this backend chooses tokens itself; `None`
    /// where the host does.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    fn decoder(&mut self, rows: usize, vocab: usize, slots: usize) -> Result<Option<Box<dyn Decoder<Self>>>> {
        let _ = (rows, vocab, slots);
        Ok(None)
    }
}
