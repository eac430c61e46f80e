//! The CPU backend with a decoder as a GPU has one: tokens are chosen in a table of rows, the host may look at a choice
//! only behind its mark, and each row finds its adapter in the table. Steps are recorded: what is recorded is not run, and
//! noted. So the engine's decoding is tested without a GPU.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mamba::backend::{Backend, Batch, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::decoder::{Choice, Decoder, Entry};
use mamba::generate::Sampler;
use mamba::ops::causal_conv1d::CausalConv1d;
use mamba::ops::norm::AddNorm;
use mamba::ops::pool::Pool;
use mamba::ops::selective_scan::SelectiveScan;
use mamba::{DType, Error, Result};

type Buffer = <Cpu as Backend>::Buffer;
type Packed = <Cpu as Backend>::Weight;
type Weight = Arc<Packed>;

pub struct Ahead {
    cpu: Cpu,
    window: Arc<Window>,
    /// What was called since recording began.
    recording: Option<Vec<&'static str>>,
}

/// What a test sees and does.
#[derive(Default)]
pub struct Window {
    /// The next read panics.
    pub defect: AtomicBool,
    /// No state can be put into a slot.
    pub full: AtomicBool,
    /// By the number of rows, and whether with adapters.
    pub recorded: Mutex<BTreeMap<(usize, bool), Recorded>>,
}

/// A recorded step.
pub struct Recorded {
    pub calls: Vec<&'static str>,
    /// How often it could have been replayed.
    pub replays: usize,
}

pub struct Plan {
    plan: <Cpu as Backend>::Plan,
    /// Of a table's rows.
    adapters: Option<Vec<Option<usize>>>,
}

impl Ahead {
    pub fn new(cpu: Cpu, window: Arc<Window>) -> Self {
        Self { cpu, window, recording: None }
    }

    /// Whether a call is run, or recorded.
    fn runs(&mut self, what: &'static str) -> bool {
        match &mut self.recording {
            Some(calls) => {
                calls.push(what);
                false
            }
            None => true,
        }
    }
}

impl Backend for Ahead {
    type Buffer = Buffer;
    type Weight = Weight;
    type Plan = Plan;
    /// Of each adapter A and B.
    type LowRanks = Vec<Option<[Weight; 2]>>;

    fn name(&self) -> &'static str {
        "ahead"
    }

    fn alloc(&mut self, len: usize, what: &str) -> Result<Buffer> {
        assert!(self.recording.is_none(), "an allocation while a step is recorded");
        self.cpu.alloc(len, what)
    }

    fn write(&mut self, buffer: &mut Buffer, offset: usize, values: &[f32]) -> Result<()> {
        assert!(self.recording.is_none(), "a copy from the host while a step is recorded");
        if self.window.full.load(Ordering::Relaxed) {
            let bytes = 4 * values.len() as u64;
            return Err(Error::OutOfMemory { bytes, what: "a test".into(), free: Some(0) });
        }
        self.cpu.write(buffer, offset, values)
    }

    fn read(&mut self, buffer: &Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        assert!(self.recording.is_none(), "a copy to the host while a step is recorded");
        assert!(!self.window.defect.swap(false, Ordering::Relaxed), "a defect");
        self.cpu.read(buffer, offset, values)
    }

    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Weight> {
        self.cpu.weight(tensor, dtype).map(Arc::new)
    }

    fn weight_bytes(&self, weight: &Weight) -> u64 {
        self.cpu.weight_bytes(weight)
    }

    fn plan(&mut self, batch: &Batch) -> Result<Plan> {
        Ok(Plan { plan: self.cpu.plan(batch)?, adapters: None })
    }

    fn embedding(&mut self, plan: &Plan, table: &Weight, out: ViewMut<Buffer>) -> Result<()> {
        match self.runs("embedding") {
            true => self.cpu.embedding(&plan.plan, table, out),
            false => Ok(()),
        }
    }

    fn linear(
        &mut self,
        x: View<Buffer>,
        weight: &Weight,
        bias: Option<&Buffer>,
        out: ViewMut<Buffer>,
    ) -> Result<()> {
        match self.runs("linear") {
            true => self.cpu.linear(x, weight, bias, out),
            false => Ok(()),
        }
    }

    fn add_norm(&mut self, op: AddNorm<Buffer>) -> Result<()> {
        match self.runs("add_norm") {
            true => self.cpu.add_norm(op),
            false => Ok(()),
        }
    }

    fn causal_conv1d(&mut self, plan: &Plan, op: CausalConv1d<Buffer>) -> Result<()> {
        match self.runs("causal_conv1d") {
            true => self.cpu.causal_conv1d(&plan.plan, op),
            false => Ok(()),
        }
    }

    fn selective_scan(&mut self, plan: &Plan, op: SelectiveScan<Buffer>) -> Result<()> {
        match self.runs("selective_scan") {
            true => self.cpu.selective_scan(&plan.plan, op),
            false => Ok(()),
        }
    }

    fn low_ranks(&mut self, factors: &[Option<[&Weight; 2]>]) -> Result<Option<Self::LowRanks>> {
        Ok(Some(factors.iter().map(|factors| factors.map(|factors| factors.map(Arc::clone))).collect()))
    }

    fn add_low_rank(
        &mut self,
        plan: &Plan,
        low_ranks: &Self::LowRanks,
        x: View<Buffer>,
        out: ViewMut<Buffer>,
    ) -> Result<()> {
        let adapters = plan.adapters.as_ref().expect("a table's plan");
        assert!(adapters.len() == x.rows && x.rows == out.rows);
        if !self.runs("add_low_rank") {
            return Ok(());
        }
        for (row, adapter) in adapters.iter().enumerate() {
            let Some([a, b]) = adapter.and_then(|adapter| low_ranks[adapter].as_ref()) else { continue };
            let (mut low, mut wide) =
                (self.cpu.alloc(a.outputs(), "A x")?, self.cpu.alloc(out.cols, "B A x")?);
            let x = View { offset: x.offset + row * x.stride, rows: 1, ..x };
            self.cpu.linear(x, a, None, ViewMut::dense(&mut low, 1, a.outputs()))?;
            self.cpu.linear(
                View::dense(&low, 1, a.outputs()),
                b,
                None,
                ViewMut::dense(&mut wide, 1, out.cols),
            )?;
            let offset = out.offset + row * out.stride;
            let out = ViewMut { buffer: &mut *out.buffer, offset, rows: 1, ..out };
            self.cpu.accumulate(View::dense(&wide, 1, out.cols), out)?;
        }
        Ok(())
    }

    fn pool(&mut self, plan: &Plan, op: Pool<Buffer>) -> Result<()> {
        self.cpu.pool(&plan.plan, op)
    }

    fn accumulate(&mut self, x: View<Buffer>, out: ViewMut<Buffer>) -> Result<()> {
        assert!(self.recording.is_none(), "rows that the host has chosen, in a step that is recorded");
        self.cpu.accumulate(x, out)
    }

    fn gather(&mut self, x: View<Buffer>, rows: &[u32], out: ViewMut<Buffer>) -> Result<()> {
        self.cpu.gather(x, rows, out)
    }

    fn token_logprobs(&mut self, logits: View<Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()> {
        self.cpu.token_logprobs(logits, targets, out)
    }

    fn decoder(&mut self, rows: usize, vocab: usize, slots: usize) -> Result<Option<Box<dyn Decoder<Self>>>> {
        let table = (0..rows).map(|_| Row { id: 0, points_at: None, of: None }).collect();
        let chosen = HashMap::new();
        let marks = VecDeque::new();
        Ok(Some(Box::new(Table { rows: table, vocab, slots, chosen, queued: 0, seen: 0, marks })))
    }
}

struct Row {
    id: u32,
    /// `None`: at the spare slot.
    points_at: Option<usize>,
    of: Option<Sequence>,
}

struct Sequence {
    slot: usize,
    sampler: Sampler,
    position: u64,
    left: usize,
    stop: Vec<u32>,
    hold: bool,
    adapter: Option<usize>,
    count: usize,
}

impl Row {
    fn adapter(&self) -> Option<usize> {
        self.of.as_ref()?.adapter
    }
}

struct Table {
    rows: Vec<Row>,
    vocab: usize,
    slots: usize,
    /// By slot and place: the choice, and the number of the launch that made it.
    chosen: HashMap<(usize, usize), (Choice, usize)>,
    /// Launches.
    queued: usize,
    /// Launches that the host has waited for.
    seen: usize,
    marks: VecDeque<usize>,
}

impl Table {
    fn move_on(&mut self, at: usize, logits: &mut [f32]) {
        let row = &mut self.rows[at];
        let of = row.of.as_mut().expect("a sequence in the row");
        let sampled = of.sampler.sample(logits, of.position).ok();
        let choice = Choice {
            token: sampled.as_ref().map(|sampled| sampled.token),
            logprob: sampled.as_ref().map_or(f32::NAN, |sampled| sampled.logprob),
        };
        self.chosen.insert((of.slot, of.count % 4), (choice, self.queued));
        of.count += 1;
        of.position += 1;
        of.left -= 1;
        let ends = choice.token.is_none_or(|token| of.stop.contains(&token)) || of.left == 0;
        if let Some(token) = choice.token {
            of.sampler.observe(token);
            row.id = token;
        }
        row.points_at = (!ends && !of.hold).then_some(of.slot);
    }

    fn logits(&self, backend: &mut Ahead, logits: &ViewMut<Buffer>) -> Vec<f32> {
        let mut values = vec![0.0; logits.rows * self.vocab];
        backend.read(logits.buffer, logits.offset, &mut values).unwrap();
        values
    }
}

impl Decoder<Ahead> for Table {
    /// One for each row, as the CPU takes no two alike.
    fn spare_slots(&self) -> usize {
        self.rows.len()
    }

    fn logit_rows(&self) -> usize {
        3.min(self.rows.len())
    }

    fn takes(&self, entry: &Entry) -> bool {
        entry.options.logit_bias.len() < 4
    }

    fn enter(&mut self, _: &mut Ahead, at: usize, entry: &Entry) -> Result<()> {
        assert!(entry.slot < self.slots && self.rows[at].points_at.is_none());
        self.rows[at].of = Some(Sequence {
            slot: entry.slot,
            sampler: Sampler::new(entry.options.clone(), entry.window),
            position: entry.position,
            left: entry.left,
            stop: entry.stop.to_vec(),
            hold: entry.hold,
            adapter: entry.adapter,
            count: 0,
        });
        Ok(())
    }

    fn point(&mut self, _: &mut Ahead, at: usize, slot: Option<usize>) -> Result<()> {
        self.rows[at].points_at = slot;
        Ok(())
    }

    fn relocate(&mut self, _: &mut Ahead, from: usize, to: usize) -> Result<()> {
        self.rows.swap(from, to);
        self.rows[from] = Row { id: 0, points_at: None, of: None };
        Ok(())
    }

    fn clear(&mut self, backend: &mut Ahead) -> Result<()> {
        backend.recording = None;
        self.rows.iter_mut().for_each(|row| row.points_at = None);
        self.marks.clear();
        Ok(())
    }

    fn plan(&mut self, backend: &mut Ahead, rows: usize) -> Result<Plan> {
        let mut batch = Batch::new();
        for (at, row) in self.rows[..rows].iter().enumerate() {
            batch.push(&[row.id], row.points_at.unwrap_or(self.slots + at), false);
        }
        let adapters = Some(self.rows[..rows].iter().map(Row::adapter).collect());
        Ok(Plan { adapters, ..backend.plan(&batch)? })
    }

    fn choose(&mut self, backend: &mut Ahead, logits: ViewMut<Buffer>, first: usize) -> Result<()> {
        if !backend.runs("choose") {
            return Ok(());
        }
        self.queued += 1;
        let mut values = self.logits(backend, &logits);
        for (at, logits) in (first..).zip(values.chunks_exact_mut(self.vocab)) {
            if self.rows[at].points_at.is_some() {
                self.move_on(at, logits);
            }
        }
        Ok(())
    }

    fn choose_for(&mut self, backend: &mut Ahead, logits: ViewMut<Buffer>, rows: &[usize]) -> Result<()> {
        assert!(rows.len() == logits.rows && rows.len() <= self.logit_rows());
        self.queued += 1;
        let mut values = self.logits(backend, &logits);
        for (at, logits) in rows.iter().zip(values.chunks_exact_mut(self.vocab)) {
            self.move_on(*at, logits);
        }
        Ok(())
    }

    /// What was recorded cannot be run, so the step is run, and recorded, again.
    fn replay(&mut self, backend: &mut Ahead, rows: usize, adapted: bool) -> Result<bool> {
        let mut decoding = self.rows.iter().filter(|row| row.points_at.is_some());
        assert!(adapted || decoding.all(|row| row.adapter().is_none()), "a row goes without its adapter");
        if let Some(step) = backend.window.recorded.lock().unwrap().get_mut(&(rows, adapted)) {
            step.replays += 1;
        }
        Ok(false)
    }

    fn begin_recording(&mut self, backend: &mut Ahead) -> Result<bool> {
        backend.recording = Some(Vec::new());
        Ok(true)
    }

    fn end_recording(&mut self, backend: &mut Ahead, rows: usize, adapted: bool) -> Result<()> {
        let calls = backend.recording.take().expect("a recording");
        let mut recorded = backend.window.recorded.lock().unwrap();
        let step =
            recorded.entry((rows, adapted)).or_insert_with(|| Recorded { calls: calls.clone(), replays: 0 });
        assert_eq!(step.calls, calls, "another step than the one that would be replayed");
        Ok(())
    }

    fn mark(&mut self, _: &mut Ahead) -> Result<()> {
        self.marks.push_back(self.queued);
        Ok(())
    }

    fn wait(&mut self, _: &mut Ahead) -> Result<()> {
        self.seen = self.marks.pop_front().expect("a mark");
        Ok(())
    }

    fn chosen(&self, slot: usize, count: usize) -> Choice {
        let (choice, launch) = self.chosen[&(slot, count % 4)];
        assert!(launch <= self.seen, "launch {launch} was looked at after {} were waited for", self.seen);
        choice
    }
}
