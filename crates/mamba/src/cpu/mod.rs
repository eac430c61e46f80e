//! The CPU backend: runs each operation at once, on a pool of threads of its own.

pub mod math;
pub mod memory;
pub mod simd;
pub mod threads;
mod train;

use std::convert::Infallible;
use std::marker::PhantomData;

use self::memory::Aligned;
use self::simd::Level;
use self::threads::Threads;
use crate::backend::{Backend, Batch, View, ViewMut};
use crate::checkpoint::Tensor;
use crate::config::Config;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops;

/// A CPU, or as much of it as `threads` says.
pub struct Cpu {
    threads: Threads,
    level: Level,
    deterministic: bool,
    scratch: ops::linear::cpu::Scratch,
    matmul: ops::linear::matmul::Scratch,
}

impl Cpu {
    /// Computes on `threads` threads, the caller's included, with the best instructions that the processor
    /// has.
    ///
    /// # Errors
    /// `DEVICE_UNAVAILABLE` when the operating system gives no thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_level(threads, Level::detect())
    }

    /// The same with a chosen instruction set, which the processor must have.
    ///
    /// # Errors
    /// As [`Cpu::new`]; `DEVICE_UNAVAILABLE` for an instruction set that the processor has not.
    pub fn with_level(threads: usize, level: Level) -> Result<Self> {
        if !Level::available().contains(&level) {
            return Err(crate::Error::DeviceUnavailable {
                device: level.name().into(),
                reason: "this processor does not have these instructions".into(),
            });
        }
        Ok(Self {
            threads: Threads::new(threads.max(1))?,
            level,
            deterministic: false,
            scratch: ops::linear::cpu::Scratch::default(),
            matmul: ops::linear::matmul::Scratch::default(),
        })
    }

    /// Uses only kernels whose results do not depend on the number of rows: everything but the tile unit for bf16.
    #[must_use]
    pub fn deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }
}

/// A batch whose ranges and slots were checked: kernels rely on them.
pub struct Plan(Batch);

impl Plan {
    /// # Panics
    /// If the batch is not one that [`Batch::push`] could have made, or uses a slot twice.
    fn new(batch: &Batch) -> Self {
        let Batch { ids, cu_seqlens, slots, fresh } = batch;
        assert!(cu_seqlens.first() == Some(&0) && cu_seqlens.last() == Some(&ids.len()), "{cu_seqlens:?}");
        assert!(cu_seqlens.is_sorted(), "{cu_seqlens:?}");
        assert!(slots.len() + 1 == cu_seqlens.len() && fresh.len() == slots.len(), "{batch:?}");
        let mut distinct = slots.clone();
        distinct.sort_unstable();
        assert!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "a slot is used twice: {slots:?}");
        Self(batch.clone())
    }
}

impl Backend for Cpu {
    type Buffer = Aligned<f32>;
    type Weight = ops::linear::Packed;
    type Plan = Plan;
    type LowRanks = Infallible;

    fn name(&self) -> &'static str {
        "cpu"
    }

    /// With fewer, weights are read more often; with more, a thread's activations leave its caches (docs/cpu.md).
    fn prefill_chunk(&self, _: &Config, dtype: DType) -> usize {
        // The tile unit takes less time for the products, so reading the weights would be more of it.
        let least = match (self.level, dtype) {
            (Level::Amx, DType::Q8_0 | DType::Q4K) => 512,
            (Level::Amx, DType::BF16) => 256,
            _ => 128,
        };
        (64 * self.threads.count()).clamp(least, 512)
    }

    fn in_parallel(&mut self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        self.threads.run(tasks, job);
    }

    fn alloc(&mut self, len: usize, what: &str) -> Result<Self::Buffer> {
        Aligned::zeros(len, what)
    }

    fn write(&mut self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()> {
        buffer[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn in_host(buffer: &mut Self::Buffer) -> Option<&mut [f32]> {
        Some(buffer)
    }

    fn read(&mut self, buffer: &Self::Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        values.copy_from_slice(&buffer[offset..offset + values.len()]);
        Ok(())
    }

    fn copy_within(&mut self, buffer: &mut Self::Buffer, from: usize, to: usize, len: usize) -> Result<()> {
        buffer.copy_within(from..from + len, to);
        Ok(())
    }

    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Self::Weight> {
        ops::linear::Packed::new(tensor, dtype, &mut self.threads)
    }

    fn weight_bytes(&self, weight: &Self::Weight) -> u64 {
        weight.bytes()
    }

    fn plan(&mut self, batch: &Batch) -> Result<Plan> {
        Ok(Plan::new(batch))
    }

    fn embedding(&mut self, plan: &Plan, table: &Self::Weight, out: ViewMut<Self::Buffer>) -> Result<()> {
        ops::embedding::cpu::embedding(&mut self.threads, &plan.0.ids, table, out);
        Ok(())
    }

    fn linear(
        &mut self,
        x: View<Self::Buffer>,
        weight: &Self::Weight,
        bias: Option<&Self::Buffer>,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()> {
        let Self { threads, level, deterministic, scratch, .. } = self;
        let means =
            ops::linear::cpu::Means { threads, level: *level, deterministic: *deterministic, scratch };
        ops::linear::cpu::linear(means, x, weight, bias.map(|bias| &**bias), out)
    }

    fn add_norm(&mut self, op: ops::norm::AddNorm<Self::Buffer>) -> Result<()> {
        ops::norm::cpu::add_norm(&mut self.threads, self.level, op);
        Ok(())
    }

    fn causal_conv1d(
        &mut self,
        plan: &Plan,
        op: ops::causal_conv1d::CausalConv1d<Self::Buffer>,
    ) -> Result<()> {
        ops::causal_conv1d::cpu::causal_conv1d(&mut self.threads, self.level, &plan.0, op);
        Ok(())
    }

    fn selective_scan(
        &mut self,
        plan: &Plan,
        op: ops::selective_scan::SelectiveScan<Self::Buffer>,
    ) -> Result<()> {
        ops::selective_scan::cpu::selective_scan(&mut self.threads, self.level, &plan.0, op, None)
    }

    fn pool(&mut self, plan: &Plan, op: ops::pool::Pool<Self::Buffer>) -> Result<()> {
        ops::pool::cpu::pool(&mut self.threads, &plan.0, op);
        Ok(())
    }

    fn accumulate(&mut self, x: View<Self::Buffer>, out: ViewMut<Self::Buffer>) -> Result<()> {
        for i in 0..x.rows {
            let (from, to) = (x.offset + i * x.stride, out.offset + i * out.stride);
            let row = &x.buffer[from..from + x.cols];
            out.buffer[to..to + x.cols].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }

    fn gather(&mut self, x: View<Self::Buffer>, rows: &[u32], out: ViewMut<Self::Buffer>) -> Result<()> {
        for (i, row) in rows.iter().enumerate() {
            let from = x.offset + *row as usize * x.stride;
            let to = out.offset + i * out.stride;
            out.buffer[to..to + x.cols].copy_from_slice(&x.buffer[from..from + x.cols]);
        }
        Ok(())
    }

    fn token_logprobs(&mut self, logits: View<Self::Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()> {
        ops::logprobs::cpu::token_logprobs(&mut self.threads, self.level, logits, targets, out);
        Ok(())
    }
}

/// Calls `task(sequence, from, to)` for channel ranges of all sequences, on all threads. Ranges are cut on
/// multiples of a cache line, so that tasks share none; a range is at least 64 channels of work.
pub(crate) fn channel_tasks(
    threads: &mut Threads,
    batch: &Batch,
    channels: usize,
    task: &(dyn Fn(usize, usize, usize) + Sync),
) {
    let sequences = batch.sequences();
    if sequences == 0 {
        return;
    }
    let wanted = if threads.count() == 1 { 1 } else { (4 * threads.count()).div_ceil(sequences) };
    let range = channels.div_ceil(wanted).next_multiple_of(16).max(64);
    let ranges = channels.div_ceil(range);
    threads.run(sequences * ranges, &|i| {
        let from = i % ranges * range;
        task(i / ranges, from, channels.min(from + range));
    });
}

/// A slice that tasks write in parallel, each its own part.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: `slice` and `as_ptr` leave it to their callers that parts do not overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// # Safety
    /// No other task may use the same elements at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from + len <= self.len);
        // SAFETY: in range; the caller sees to it that nothing overlaps.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// Row and column pointers into a view, for kernels. The constructor checks that all `rows` × `cols` lie
/// within the buffer; whoever uses it keeps the borrow alive.
#[derive(Clone, Copy)]
pub(crate) struct ConstMatrix {
    start: *const f32,
    stride: usize,
}

impl ConstMatrix {
    pub(crate) fn new(view: &View<Aligned<f32>>, rows: usize, cols: usize) -> Self {
        check(view.buffer.len(), view.offset, view.stride, rows, cols);
        Self { start: view.buffer[view.offset.min(view.buffer.len())..].as_ptr(), stride: view.stride }
    }

    /// # Safety
    /// `row` and `col` are within the checked range.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, col: usize) -> *const f32 {
        // SAFETY: the caller's condition.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

/// [`ConstMatrix`] for writing.
#[derive(Clone, Copy)]
pub(crate) struct MutMatrix {
    start: *mut f32,
    stride: usize,
}

impl MutMatrix {
    pub(crate) fn new(view: ViewMut<Aligned<f32>>, rows: usize, cols: usize) -> Self {
        check(view.buffer.len(), view.offset, view.stride, rows, cols);
        let end = view.buffer.len();
        Self { start: view.buffer[view.offset.min(end)..].as_mut_ptr(), stride: view.stride }
    }

    /// Elements from a row to the next.
    pub(crate) fn stride(self) -> usize {
        self.stride
    }

    /// # Safety
    /// `row` and `col` are within the checked range.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: the caller's condition.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

fn check(len: usize, offset: usize, stride: usize, rows: usize, cols: usize) {
    assert!(
        rows == 0 || (cols <= stride || rows == 1) && offset + (rows - 1) * stride + cols <= len,
        "{rows} rows of {cols} (stride {stride}, offset {offset}) in a buffer of {len}"
    );
}

/// Lets tasks on several threads copy pointers whose disjoint use their kernels see to.
pub(crate) struct Shareable<T>(pub(crate) T);

// SAFETY: only wrapped around kernel descriptions, whose tasks write disjoint parts.
unsafe impl<T> Sync for Shareable<T> {}
