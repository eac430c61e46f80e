//! The CPU backend with a window and with faults: every step's tokens are noted, steps can be held up, slowed down, or
//! made to fail.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mamba::backend::{Backend, Batch, View, ViewMut};
use mamba::checkpoint::{Checkpoint, Tensor};
use mamba::config::Config;
use mamba::cpu::memory::Aligned;
use mamba::cpu::{Cpu, Plan};
use mamba::engine::{Cancel, LoadOptions};
use mamba::ops::causal_conv1d::CausalConv1d;
use mamba::ops::linear::Packed;
use mamba::ops::norm::AddNorm;
use mamba::ops::pool::Pool;
use mamba::ops::selective_scan::SelectiveScan;
use mamba::{DType, Error, Mamba, Result};

/// Its embedding is NaN: whoever reads it has no finite logits from then on.
pub const POISON: u32 = 71;

/// The tokens of each sequence of a step.
pub type Step = Vec<Vec<u32>>;

/// What a test sees and does.
#[derive(Default)]
pub struct Window {
    pub steps: Mutex<Vec<Step>>,
    /// A step waits while somebody holds this.
    gate: Mutex<()>,
    /// How long each token of a step takes.
    pub slowness: Mutex<Duration>,
    /// The error of the next step, if it is to fail.
    pub fault: Mutex<Option<Error>>,
    /// Whether a state can be put into a slot.
    pub full: Mutex<bool>,
}

impl Window {
    /// Nothing is computed until this is dropped.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Returns when the engine has begun so many steps.
    pub fn wait_for(&self, steps: usize) {
        while self.steps.lock().unwrap().len() < steps {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }
}

pub struct Watched {
    cpu: Cpu,
    window: Arc<Window>,
    vocab: usize,
    own_memory: bool,
}

/// A small model of random weights, and the window on it.
pub fn watched(options: &LoadOptions) -> (Mamba, Arc<Window>) {
    watched_with(options, false)
}

/// The same on what says that it has memory of its own.
pub fn watched_with(options: &LoadOptions, own_memory: bool) -> (Mamba, Arc<Window>) {
    let config = Config::from_json(r#"{"d_model": 16, "n_layer": 2, "vocab_size": 72}"#).unwrap();
    let window = Arc::new(Window::default());
    let backend = Watched { cpu: Cpu::new(1).unwrap(), window: window.clone(), vocab: 72, own_memory };
    let checkpoint = Checkpoint::random(config, 7);
    let model =
        Mamba::with_backend(backend, 1, &checkpoint, None, options, &Cancel::default(), &mut |_| {}).unwrap();
    (model, window)
}

/// The plan, and the ids in it.
pub struct WatchedPlan(Plan, Vec<u32>);

impl Backend for Watched {
    type Buffer = Aligned<f32>;
    type Weight = Packed;
    type Plan = WatchedPlan;
    type LowRanks = Infallible;

    fn name(&self) -> &'static str {
        "watched"
    }

    fn memory(&mut self) -> Option<(u64, u64)> {
        self.own_memory.then_some((1 << 20, 1 << 30))
    }

    fn alloc(&mut self, len: usize, what: &str) -> Result<Self::Buffer> {
        self.cpu.alloc(len, what)
    }

    fn write(&mut self, buffer: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()> {
        if *self.window.full.lock().unwrap() {
            return Err(Error::OutOfMemory {
                bytes: 4 * values.len() as u64,
                what: "a test".into(),
                free: Some(0),
            });
        }
        self.cpu.write(buffer, offset, values)
    }

    fn read(&mut self, buffer: &Self::Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        self.cpu.read(buffer, offset, values)
    }

    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Packed> {
        self.cpu.weight(tensor, dtype)
    }

    fn weight_bytes(&self, weight: &Packed) -> u64 {
        self.cpu.weight_bytes(weight)
    }

    fn plan(&mut self, batch: &Batch) -> Result<WatchedPlan> {
        let step = batch.cu_seqlens.windows(2).map(|ends| batch.ids[ends[0]..ends[1]].to_vec()).collect();
        self.window.steps.lock().unwrap().push(step);
        drop(self.window.hold());
        let slowness = *self.window.slowness.lock().unwrap();
        if !slowness.is_zero() {
            std::thread::sleep(slowness * batch.tokens() as u32);
        }
        match self.window.fault.lock().unwrap().take() {
            Some(error) => Err(error),
            None => Ok(WatchedPlan(self.cpu.plan(batch)?, batch.ids.clone())),
        }
    }

    fn embedding(&mut self, plan: &WatchedPlan, table: &Packed, out: ViewMut<Self::Buffer>) -> Result<()> {
        let ViewMut { buffer, offset, rows, cols, stride } = out;
        self.cpu.embedding(&plan.0, table, ViewMut { buffer: &mut *buffer, offset, rows, cols, stride })?;
        for (row, id) in plan.1.iter().enumerate() {
            if *id == POISON {
                buffer[offset + row * stride..][..cols].fill(f32::NAN);
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        x: View<Self::Buffer>,
        weight: &Packed,
        bias: Option<&Self::Buffer>,
        out: ViewMut<Self::Buffer>,
    ) -> Result<()> {
        let ViewMut { buffer, offset, rows, cols, stride } = out;
        self.cpu.linear(x, weight, bias, ViewMut { buffer: &mut *buffer, offset, rows, cols, stride })?;
        // Nobody chooses the poison.
        if cols == self.vocab {
            (0..rows).for_each(|row| buffer[offset + row * stride + POISON as usize] = f32::NEG_INFINITY);
        }
        Ok(())
    }

    fn add_norm(&mut self, op: AddNorm<Self::Buffer>) -> Result<()> {
        self.cpu.add_norm(op)
    }

    fn causal_conv1d(&mut self, plan: &WatchedPlan, op: CausalConv1d<Self::Buffer>) -> Result<()> {
        self.cpu.causal_conv1d(&plan.0, op)
    }

    fn selective_scan(&mut self, plan: &WatchedPlan, op: SelectiveScan<Self::Buffer>) -> Result<()> {
        self.cpu.selective_scan(&plan.0, op)
    }

    fn pool(&mut self, plan: &WatchedPlan, op: Pool<Self::Buffer>) -> Result<()> {
        self.cpu.pool(&plan.0, op)
    }

    fn gather(&mut self, x: View<Self::Buffer>, rows: &[u32], out: ViewMut<Self::Buffer>) -> Result<()> {
        self.cpu.gather(x, rows, out)
    }

    fn token_logprobs(&mut self, logits: View<Self::Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()> {
        self.cpu.token_logprobs(logits, targets, out)
    }
}
