//! The CUDA backend: the first NVIDIA GPU, with a stream of its own for each model. Weights and activations
//! are f32, bf16 or f16; beside quantized weights (q8_0, q4_K) activations are f16. The residual stream, states, logits and
//! all sums are f32.
//!
//! Every call is queued on the stream; only [`Backend::read`] and [`Backend::token_logprobs`] wait. The same calls give
//! the same bits. How many rows a product has may change the order of its sums, as cuBLAS chooses its kernel by it, and
//! where channels are few, sequences are cut in time to fill the device; results then agree to 1e-5 (f32). With
//! [`Cuda::deterministic`] neither is so, and results are equal to the bit in any batch.

mod decoder;
mod load;
mod train;

use std::sync::{Arc, Mutex, PoisonError};

use mamba_kernels as kernels;
use mamba_kernels::readback::Readback;
use mamba_kernels::{Buffer, Device, Float, Rows, RowsMut, States, linear, low_rank, quantized};

use crate::backend::{Backend, Batch, BlockStep, HeadStep, Later, StateView, View, ViewMut};
use crate::checkpoint::Tensor;
use crate::config::{Config, NormKind};
use crate::decoder::Decoder;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exit;
use crate::ops::causal_conv1d::CausalConv1d;
use crate::ops::norm::AddNorm;
use crate::ops::pool::{Pool, PoolKind};
use crate::ops::selective_scan::SelectiveScan;

/// Of the first GPU, as the driver counts them (`CUDA_VISIBLE_DEVICES` changes the order).
const ORDINAL: usize = 0;

/// A matrix of weights [out, in] on the GPU.
#[derive(Debug)]
pub enum Weight {
    /// In the type of activations.
    Floats(linear::Weight),
    /// In blocks.
    Blocks(quantized::Weight),
}

impl Weight {
    fn floats(&self) -> Option<&linear::Weight> {
        match self {
            Self::Floats(weight) => Some(weight),
            Self::Blocks(_) => None,
        }
    }
}

/// A GPU.
pub struct Cuda {
    device: Device,
    float: Float,
    deterministic: bool,
    /// Room for values on their way, that nobody waits for now.
    readbacks: Arc<Mutex<Vec<Readback>>>,
}

impl Cuda {
    /// Opens the first GPU, to compute in `dtype`; beside quantized weights in f16.
    ///
    /// # Errors
    /// `DEVICE_UNAVAILABLE` without a driver, cuBLAS or a GPU; `OUT_OF_MEMORY`.
    pub fn new(dtype: DType) -> Result<Self> {
        let float = match dtype {
            DType::F32 => Float::F32,
            DType::BF16 => Float::BF16,
            DType::F16 | DType::Q8_0 | DType::Q4K => Float::F16,
        };
        let device = Device::new(ORDINAL).map_err(|error| convert(error, "the device's context"))?;
        exit::watch();
        Ok(Self { device, float, deterministic: false, readbacks: Arc::default() })
    }

    /// Uses only what does not depend on the number of rows or sequences: products of 64 rows at a time, scans that are
    /// never cut in time, pooling token by token, and for a decode step the kernels of whole sequences.
    #[must_use]
    pub fn deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// The device, for launches that are no part of [`Backend`].
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Weight = Weight;
    type Plan = kernels::Batch;
    type LowRanks = low_rank::LowRanks;

    fn name(&self) -> &'static str {
        "cuda"
    }

    /// Where channels are few it takes more sequences to fill the device with scans (docs/kernels.md).
    fn prefill_chunk(&self, config: &Config, _: DType) -> usize {
        if config.d_inner < 2048 { 32768 } else { 16384 }
    }

    fn memory(&mut self) -> Option<(u64, u64)> {
        self.device.memory().ok().map(|(free, all)| (free as u64, all as u64))
    }

    fn alloc(&mut self, len: usize, what: &str) -> Result<Buffer> {
        self.device.alloc(len, Float::F32).map_err(|error| convert(error, what))
    }

    fn activations(&mut self, len: usize) -> Result<Buffer> {
        self.device.alloc(len, self.float).map_err(|error| convert(error, "activations"))
    }

    fn write(&mut self, buffer: &mut Buffer, offset: usize, values: &[f32]) -> Result<()> {
        self.device.write(buffer, offset, values).map_err(failed)
    }

    fn read(&mut self, buffer: &Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        self.device.read(buffer, offset, values).map_err(failed)
    }

    fn read_later(&mut self, buffer: &Buffer, offset: usize, len: usize) -> Result<Later> {
        let fitting = {
            let mut spare = self.readbacks.lock().unwrap_or_else(PoisonError::into_inner);
            let at = spare.iter().position(|readback| readback.room() >= len);
            at.map(|at| spare.swap_remove(at))
        };
        let mut readback = match fitting {
            Some(readback) => readback,
            None => self.device.readback(len).map_err(|error| convert(error, "values on their way"))?,
        };
        self.device.read_back(buffer, offset, len, &mut readback).map_err(failed)?;
        let readbacks = self.readbacks.clone();
        Ok(Box::new(move || {
            let values = readback.wait(len).map_err(failed);
            readbacks.lock().unwrap_or_else(PoisonError::into_inner).push(readback);
            values
        }))
    }

    fn copy_within(&mut self, buffer: &mut Buffer, from: usize, to: usize, len: usize) -> Result<()> {
        self.device.copy_within(buffer, from, to, len).map_err(failed)
    }

    /// In the type of activations, unless `dtype` is quantized: then those are f16 ([`Cuda::new`]).
    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Weight> {
        let [outputs, inputs] = tensor.shape[..] else {
            return Err(Error::TensorShape {
                name: tensor.name.clone(),
                expected: vec![0, 0],
                actual: tensor.shape.clone(),
            });
        };
        let no_room = |error| convert(error, &tensor.name);
        let Some(format) = dtype.format() else {
            let mut values = self.device.alloc(outputs * inputs, self.float).map_err(no_room)?;
            let fill = |at, piece: &mut [u8]| load::fill(tensor, self.float, at, piece);
            self.device.fill(&mut values, fill).map_err(failed)??;
            return Ok(Weight::Floats(linear::Weight { values, outputs, inputs }));
        };
        let packed = load::format(format);
        let mut weight = quantized::Weight::new(&self.device, packed, outputs, inputs).map_err(no_room)?;
        let fill = |row, piece: &mut [u8]| load::fill_rows(tensor, format, row, piece);
        self.device.fill_rows(&mut weight, fill).map_err(failed)??;
        Ok(Weight::Blocks(weight))
    }

    fn weight_bytes(&self, weight: &Weight) -> u64 {
        (match weight {
            Weight::Floats(weight) => weight.values.len() * weight.values.float().bytes(),
            Weight::Blocks(weight) => weight.bytes(),
        }) as u64
    }

    fn plan(&mut self, batch: &Batch) -> Result<kernels::Batch> {
        let Batch { ids, cu_seqlens, slots, fresh } = batch;
        self.device.batch(ids, cu_seqlens, slots, fresh).map_err(failed)
    }

    fn embedding(&mut self, plan: &kernels::Batch, table: &Weight, out: ViewMut<Buffer>) -> Result<()> {
        let out = rows_mut(out);
        match table {
            Weight::Floats(table) => kernels::embedding::embedding(&self.device, plan, table, out),
            Weight::Blocks(table) => quantized::embedding(&self.device, plan, table, out),
        }
        .map_err(failed)
    }

    fn linear(
        &mut self,
        x: View<Buffer>,
        weight: &Weight,
        bias: Option<&Buffer>,
        out: ViewMut<Buffer>,
    ) -> Result<()> {
        let (x, out, fixed_rows) = (rows(x), rows_mut(out), self.deterministic);
        match weight {
            Weight::Floats(weight) => linear::product(
                &self.device,
                linear::Product { x, weight, bias, out, add: false, fixed_rows },
            ),
            Weight::Blocks(weight) => {
                quantized::product(&self.device, quantized::Product { x, weight, bias, out, fixed_rows })
            }
        }
        .map_err(failed)
    }

    /// The sum is made where the product is, so the norm behind it reads only that.
    fn linear_onto(&mut self, x: View<Buffer>, weight: &Weight, residual: ViewMut<Buffer>) -> Result<bool> {
        let Some(weight) = weight.floats() else { return Ok(false) };
        let (x, out, fixed_rows) = (rows(x), rows_mut(residual), self.deterministic);
        let product = linear::Product { x, weight, bias: None, out, add: true, fixed_rows };
        linear::product(&self.device, product).map_err(failed)?;
        Ok(true)
    }

    fn add_norm(&mut self, op: AddNorm<Buffer>) -> Result<()> {
        let op = kernels::norm::Forward {
            layer: op.kind == NormKind::Layer,
            eps: op.eps,
            weight: op.weight,
            bias: op.bias,
            delta: op.delta.map(rows),
            residual: rows_mut(op.residual),
            out: rows_mut(op.out),
        };
        kernels::norm::forward(&self.device, op).map_err(failed)
    }

    fn causal_conv1d(&mut self, plan: &kernels::Batch, op: CausalConv1d<Buffer>) -> Result<()> {
        let op = kernels::causal_conv1d::Forward {
            x: rows(op.x),
            weight: op.weight,
            bias: op.bias,
            d_conv: op.d_conv,
            state: op.state.map(states),
            out: rows_mut(op.out),
        };
        let step = self.is_step(plan) && op.state.is_some() && op.d_conv <= kernels::decode_step::MAX_D_CONV;
        let run = if step { kernels::decode_step::conv_step } else { kernels::causal_conv1d::forward };
        run(&self.device, plan, op).map_err(failed)
    }

    fn selective_scan(&mut self, plan: &kernels::Batch, op: SelectiveScan<Buffer>) -> Result<()> {
        let op = kernels::selective_scan::Forward {
            u: rows(op.u),
            delta: rows(op.delta),
            delta_bias: op.delta_bias,
            a: op.a,
            b: rows(op.b),
            c: rows(op.c),
            d: op.d,
            z: op.z.map(rows),
            state: op.state.map(states),
            out: rows_mut(op.out),
            boundary: None,
            whole: self.deterministic,
        };
        let step = self.is_step(plan) && op.state.is_some();
        let run = if step { kernels::decode_step::scan_step } else { kernels::selective_scan::forward };
        run(&self.device, plan, op).map_err(failed)
    }

    fn block_step(&mut self, plan: &kernels::Batch, op: BlockStep<Self>) -> Result<bool> {
        let weights = [op.in_proj, op.x_proj, op.dt_proj, op.out_proj].map(Weight::floats);
        let [Some(in_proj), Some(x_proj), Some(dt_proj), Some(out_proj)] = weights else { return Ok(false) };
        let op = kernels::block_step::BlockStep {
            norm: op.norm,
            eps: op.eps,
            in_proj,
            conv_weight: op.conv_weight,
            conv_bias: op.conv_bias,
            x_proj,
            dt_proj,
            delta_bias: op.delta_bias,
            a: op.a,
            d: op.d,
            out_proj,
            state: states(op.state),
            d_conv: op.d_conv,
            follows: op.follows,
            residual: rows_mut(op.residual),
            hidden: rows_mut(op.hidden),
            u: rows_mut(op.u),
            xz: rows_mut(op.xz),
            y: rows_mut(op.y),
        };
        if !self.is_step(plan) || !op.is_supported(&self.device) {
            return Ok(false);
        }
        kernels::block_step::run(&self.device, plan, op).map_err(failed)?;
        Ok(true)
    }

    fn head_step(&mut self, op: HeadStep<Self>) -> Result<bool> {
        let Some(weight) = op.weight.floats() else { return Ok(false) };
        let op = kernels::block_step::Head {
            residual: rows(op.residual),
            norm: op.norm,
            eps: op.eps,
            weight,
            logits: rows_mut(op.logits),
        };
        if self.deterministic || !op.is_supported(&self.device) {
            return Ok(false);
        }
        kernels::block_step::head(&self.device, op).map_err(failed)?;
        Ok(true)
    }

    /// `None` with [`Cuda::deterministic`], which has no decoder.
    fn low_ranks(&mut self, factors: &[Option<[&Weight; 2]>]) -> Result<Option<low_rank::LowRanks>> {
        if self.deterministic {
            return Ok(None);
        }
        let floats = factors.iter().map(|factors| match factors {
            Some([a, b]) => Some(Some([a.floats()?, b.floats()?])),
            None => Some(None),
        });
        let Some(factors) = floats.collect::<Option<Vec<_>>>() else {
            return Err(Error::Internal { message: "an adapter in blocks".into() });
        };
        low_rank::LowRanks::new(&self.device, &factors).map(Some).map_err(|error| convert(error, "adapters"))
    }

    fn add_low_rank(
        &mut self,
        plan: &kernels::Batch,
        low_ranks: &low_rank::LowRanks,
        x: View<Buffer>,
        out: ViewMut<Buffer>,
    ) -> Result<()> {
        low_rank::add(&self.device, plan, low_ranks, rows(x), rows_mut(out)).map_err(failed)
    }

    fn pool(&mut self, plan: &kernels::Batch, op: Pool<Buffer>) -> Result<()> {
        use kernels::pool::Kind;
        let kind = |kind: &Option<PoolKind>| match kind {
            None => Kind::None,
            Some(PoolKind::Sum) => Kind::Sum,
            Some(PoolKind::Last) => Kind::Last,
        };
        let kinds: Vec<Kind> = op.kinds.iter().map(kind).collect();
        let (hidden, out) = (rows(op.hidden), rows_mut(op.out));
        kernels::pool::pool(&self.device, plan, &kinds, hidden, out, self.deterministic).map_err(failed)
    }

    fn gather(&mut self, x: View<Buffer>, indices: &[u32], out: ViewMut<Buffer>) -> Result<()> {
        kernels::embedding::gather(&self.device, rows(x), indices, rows_mut(out)).map_err(failed)
    }

    fn token_logprobs(&mut self, logits: View<Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()> {
        kernels::logprobs::token_logprobs(&self.device, rows(logits), targets, out).map_err(failed)
    }

    /// `None` with [`Cuda::deterministic`]: what cuts sequences and fills up rows cannot be recorded.
    fn decoder(&mut self, rows: usize, vocab: usize, slots: usize) -> Result<Option<Box<dyn Decoder<Self>>>> {
        match self.deterministic {
            true => Ok(None),
            false => Ok(Some(Box::new(decoder::Table::new(self, rows, vocab, slots)?))),
        }
    }
}

impl Cuda {
    fn is_step(&self, plan: &kernels::Batch) -> bool {
        !self.deterministic && plan.is_step()
    }
}

fn rows(view: View<Buffer>) -> Rows {
    let View { buffer, offset, rows, cols, stride } = view;
    Rows { buffer, offset, rows, cols, stride }
}

fn rows_mut(view: ViewMut<Buffer>) -> RowsMut {
    let ViewMut { buffer, offset, rows, cols, stride } = view;
    RowsMut { buffer, offset, rows, cols, stride }
}

fn states(view: StateView<Buffer>) -> States {
    let StateView { buffer, offset, slot_stride } = view;
    States { buffer, offset, slot_stride }
}

fn failed(error: kernels::Error) -> Error {
    convert(error, "work on the device")
}

/// `what` is what memory was for.
fn convert(error: kernels::Error, what: &str) -> Error {
    let device = || "cuda".to_owned();
    match error {
        kernels::Error::Unavailable(reason) => Error::DeviceUnavailable { device: device(), reason },
        kernels::Error::OutOfMemory { bytes, free } => {
            Error::OutOfMemory { bytes, what: what.into(), free: Some(free) }
        }
        kernels::Error::Unsupported { what, value, expected } => Error::ConfigInvalid {
            field: what.into(),
            value: value.to_string(),
            expected: format!("{expected} on device `cuda`"),
        },
        kernels::Error::TokenOutOfRange { id, position, rows } => {
            Error::TokenOutOfRange { id: id.into(), position, vocab_size: rows }
        }
        kernels::Error::Lost(reason) => Error::DeviceLost { device: device(), reason },
        kernels::Error::Refused(message) => Error::Internal { message },
    }
}
