//! The decode table of mamba-kernels, and what is recorded for it.

use std::collections::VecDeque;

use mamba_kernels as kernels;
use mamba_kernels::graph::Mark;
use mamba_kernels::{Buffer, decode, sampling};

use super::{Cuda, convert, failed, rows_mut};
use crate::backend::ViewMut;
use crate::decoder::{Choice, Decoder, Entry};
use crate::error::Result;

pub(super) struct Table {
    table: decode::Decoder,
    /// Set, oldest first.
    marks: VecDeque<Mark>,
    spare: Vec<Mark>,
    recording: bool,
}

impl Table {
    pub fn new(backend: &Cuda, rows: usize, vocab: usize, slots: usize) -> Result<Self> {
        let table = decode::Decoder::new(&backend.device, rows, vocab, slots)
            .map_err(|error| convert(error, "the decode table"))?;
        Ok(Self { table, marks: VecDeque::new(), spare: Vec::new(), recording: false })
    }
}

impl Decoder<Cuda> for Table {
    fn spare_slots(&self) -> usize {
        1
    }

    fn logit_rows(&self) -> usize {
        self.table.logit_rows()
    }

    fn takes(&self, entry: &Entry) -> bool {
        decode::Decoder::takes(&translate(entry))
    }

    fn enter(&mut self, backend: &mut Cuda, at: usize, entry: &Entry) -> Result<()> {
        self.table.enter(&backend.device, at, &translate(entry)).map_err(failed)
    }

    fn point(&mut self, backend: &mut Cuda, at: usize, slot: Option<usize>) -> Result<()> {
        self.table.point(&backend.device, at, slot).map_err(failed)
    }

    fn relocate(&mut self, backend: &mut Cuda, from: usize, to: usize) -> Result<()> {
        self.table.relocate(&backend.device, from, to).map_err(failed)
    }

    fn clear(&mut self, backend: &mut Cuda) -> Result<()> {
        self.spare.extend(self.marks.drain(..));
        if std::mem::take(&mut self.recording) {
            // Whatever came of it is dropped.
            let _ = backend.device.end_recording();
        }
        self.table.clear(&backend.device).map_err(failed)
    }

    fn plan(&mut self, _: &mut Cuda, rows: usize) -> Result<kernels::Batch> {
        Ok(self.table.batch(rows))
    }

    fn choose(&mut self, backend: &mut Cuda, logits: ViewMut<Buffer>, first: usize) -> Result<()> {
        self.table.choose(&backend.device, rows_mut(logits), first).map_err(failed)
    }

    fn choose_for(&mut self, backend: &mut Cuda, logits: ViewMut<Buffer>, rows: &[usize]) -> Result<()> {
        self.table.choose_for(&backend.device, rows_mut(logits), rows).map_err(failed)
    }

    fn replay(&mut self, backend: &mut Cuda, rows: usize, adapted: bool) -> Result<bool> {
        self.table.replay(&backend.device, rows, adapted).map_err(failed)
    }

    fn begin_recording(&mut self, backend: &mut Cuda) -> Result<bool> {
        backend.device.begin_recording().map_err(failed)?;
        self.recording = true;
        Ok(true)
    }

    fn end_recording(&mut self, backend: &mut Cuda, rows: usize, adapted: bool) -> Result<()> {
        self.recording = false;
        let graph = backend.device.end_recording().map_err(failed)?;
        self.table.keep(rows, adapted, graph);
        Ok(())
    }

    fn mark(&mut self, backend: &mut Cuda) -> Result<()> {
        let mark = match self.spare.pop() {
            Some(mark) => mark,
            None => backend.device.mark().map_err(failed)?,
        };
        let set = backend.device.set_mark(&mark).map_err(failed);
        self.marks.push_back(mark);
        set
    }

    fn wait(&mut self, _: &mut Cuda) -> Result<()> {
        let Some(mark) = self.marks.pop_front() else { return Ok(()) };
        let waited = mark.wait().map_err(failed);
        self.spare.push(mark);
        waited
    }

    fn chosen(&self, slot: usize, count: usize) -> Choice {
        let sampling::Choice { token, logprob } = self.table.chosen(slot, count);
        Choice { token, logprob }
    }
}

fn translate<'a>(entry: &Entry<'a>) -> decode::Entry<'a> {
    let Entry { slot, options, window, position, left, stop, hold, adapter } = *entry;
    decode::Entry {
        slot,
        row: sampling::Row {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            window,
            logit_bias: &options.logit_bias,
            seed: options.seed,
            position,
        },
        window_size: options.penalty_window,
        left,
        stop,
        hold,
        adapter,
    }
}
