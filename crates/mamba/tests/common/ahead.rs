//! The CPU backend with a decoder as a GPU has one: tokens are chosen in a table of rows, and the host may look at a
//! choice only behind its mark. So the engine's decoding is tested without a GPU.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
type Weight = <Cpu as Backend>::Weight;
type Plan = <Cpu as Backend>::Plan;

pub struct Ahead(pub Cpu, pub Arc<Faults>);

/// What goes wrong.
#[derive(Default)]
pub struct Faults {
    /// The next read panics.
    pub defect: AtomicBool,
    /// No state can be put into a slot.
    pub full: AtomicBool,
}

impl Backend for Ahead {
    type Buffer = Buffer;
    type Weight = Weight;
    type Plan = Plan;

    fn name(&self) -> &'static str {
        "ahead"
    }

    fn alloc(&mut self, len: usize, what: &str) -> Result<Buffer> {
        self.0.alloc(len, what)
    }

    fn write(&mut self, buffer: &mut Buffer, offset: usize, values: &[f32]) -> Result<()> {
        if self.1.full.load(Ordering::Relaxed) {
            let bytes = 4 * values.len() as u64;
            return Err(Error::OutOfMemory { bytes, what: "a test".into(), free: Some(0) });
        }
        self.0.write(buffer, offset, values)
    }

    fn read(&mut self, buffer: &Buffer, offset: usize, values: &mut [f32]) -> Result<()> {
        assert!(!self.1.defect.swap(false, Ordering::Relaxed), "a defect");
        self.0.read(buffer, offset, values)
    }

    fn weight(&mut self, tensor: &Tensor, dtype: DType) -> Result<Weight> {
        self.0.weight(tensor, dtype)
    }

    fn weight_bytes(&self, weight: &Weight) -> u64 {
        self.0.weight_bytes(weight)
    }

    fn plan(&mut self, batch: &Batch) -> Result<Plan> {
        self.0.plan(batch)
    }

    fn embedding(&mut self, plan: &Plan, table: &Weight, out: ViewMut<Buffer>) -> Result<()> {
        self.0.embedding(plan, table, out)
    }

    fn linear(
        &mut self,
        x: View<Buffer>,
        weight: &Weight,
        bias: Option<&Buffer>,
        out: ViewMut<Buffer>,
    ) -> Result<()> {
        self.0.linear(x, weight, bias, out)
    }

    fn add_norm(&mut self, op: AddNorm<Buffer>) -> Result<()> {
        self.0.add_norm(op)
    }

    fn causal_conv1d(&mut self, plan: &Plan, op: CausalConv1d<Buffer>) -> Result<()> {
        self.0.causal_conv1d(plan, op)
    }

    fn selective_scan(&mut self, plan: &Plan, op: SelectiveScan<Buffer>) -> Result<()> {
        self.0.selective_scan(plan, op)
    }

    fn pool(&mut self, plan: &Plan, op: Pool<Buffer>) -> Result<()> {
        self.0.pool(plan, op)
    }

    fn gather(&mut self, x: View<Buffer>, rows: &[u32], out: ViewMut<Buffer>) -> Result<()> {
        self.0.gather(x, rows, out)
    }

    fn token_logprobs(&mut self, logits: View<Buffer>, targets: &[u32], out: &mut [f32]) -> Result<()> {
        self.0.token_logprobs(logits, targets, out)
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
    count: usize,
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

    fn clear(&mut self, _: &mut Ahead) -> Result<()> {
        self.rows.iter_mut().for_each(|row| row.points_at = None);
        self.marks.clear();
        Ok(())
    }

    fn plan(&mut self, backend: &mut Ahead, rows: usize) -> Result<Plan> {
        let mut batch = Batch::new();
        for (at, row) in self.rows[..rows].iter().enumerate() {
            batch.push(&[row.id], row.points_at.unwrap_or(self.slots + at), false);
        }
        backend.plan(&batch)
    }

    fn choose(&mut self, backend: &mut Ahead, logits: ViewMut<Buffer>, first: usize) -> Result<()> {
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

    fn replay(&mut self, _: &mut Ahead, _: usize) -> Result<bool> {
        Ok(false)
    }

    fn begin_recording(&mut self, _: &mut Ahead) -> Result<bool> {
        Ok(false)
    }

    fn end_recording(&mut self, _: &mut Ahead, _: usize) -> Result<()> {
        unreachable!("nothing is recorded")
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
