//! Decoding without the host: where a backend can choose tokens itself, it keeps a table of rows, one a sequence. A
//! step computes the model for all rows, chooses their next tokens and writes them back into the table, so that the next
//! step can begin before the host has seen what was chosen.
//!
//! A row points at its sequence's slot; one that has ended, or waits for the host, points at a spare slot that nobody
//! reads. The host numbers what was chosen for a sequence from 0 and looks at it behind a mark.

use crate::backend::{Backend, ViewMut};
use crate::error::Result;
use crate::generate::SamplerOptions;

/// A sequence that is to be decoded.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where its state lies.
    pub slot: usize,
    /// How its tokens are chosen (`logprobs` apart).
    pub options: &'a SamplerOptions,
    /// The last tokens of the context, oldest first, up to the options' `penalty_window`.
    pub window: &'a [u32],
    /// Index that the next token will have in its sequence.
    pub position: u64,
    /// How many tokens may be chosen, at least 1.
    pub left: usize,
    /// Ids that end it.
    pub stop: &'a [u32],
    /// After each token it points at the spare slot until [`Decoder::point`] lets it go on.
    pub hold: bool,
    /// Its place among the adapters of [`Backend::low_ranks`]; `None`: no product of its row is added to.
    pub adapter: Option<usize>,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// `None`: every logit is NaN or −infinity.
    pub token: Option<u32>,
    /// Natural logarithm of its probability by the logits as given.
    pub logprob: f32,
}

/// A table of rows. Calls that queue work come in the order in which they take effect.
pub trait Decoder<B: Backend>: Send {
    /// Slots that it needs behind those of the sequences.
    fn spare_slots(&self) -> usize;

    /// Rows of logits that it chooses from at a time.
    fn logit_rows(&self) -> usize;

    /// Whether it can choose for such a sequence; the host does, otherwise.
    fn takes(&self, entry: &Entry) -> bool;

    /// Puts a sequence into row `at`, which takes part from the first token on that `choose_for` chooses for it.
    fn enter(&mut self, backend: &mut B, at: usize, entry: &Entry) -> Result<()>;

    /// Points a row at a slot, or (`None`) at the spare one.
    fn point(&mut self, backend: &mut B, at: usize, slot: Option<usize>) -> Result<()>;

    /// Moves what is in row `from` to row `to`.
    fn relocate(&mut self, backend: &mut B, from: usize, to: usize) -> Result<()>;

    /// Points all rows at the spare slot and forgets all marks, whatever state the backend is in.
    fn clear(&mut self, backend: &mut B) -> Result<()>;

    /// The first `rows` rows as a batch of one token each: with the ids, slots and adapters of the time at which it is run.
    fn plan(&mut self, backend: &mut B, rows: usize) -> Result<B::Plan>;

    /// Chooses the next token of the rows from `first` on, one for each row of `logits` [rows, vocab], which change. Rows
    /// that point at the spare slot are left alone; one that ends, or holds, is pointed there.
    fn choose(&mut self, backend: &mut B, logits: ViewMut<B::Buffer>, first: usize) -> Result<()>;

    /// The same for the given rows of the table, wherever they point.
    fn choose_for(&mut self, backend: &mut B, logits: ViewMut<B::Buffer>, rows: &[usize]) -> Result<()>;

    /// Runs the step that was recorded for so many rows, with their adapters (`adapted`) or without; false if there is
    /// none.
    fn replay(&mut self, backend: &mut B, rows: usize, adapted: bool) -> Result<bool>;

    /// From here on launches are recorded, not run; false if this decoder records nothing.
    fn begin_recording(&mut self, backend: &mut B) -> Result<bool>;

    /// Keeps what was recorded as the step for so many rows, with their adapters or without.
    fn end_recording(&mut self, backend: &mut B, rows: usize, adapted: bool) -> Result<()>;

    /// Puts a mark behind what is queued.
    fn mark(&mut self, backend: &mut B) -> Result<()>;

    /// Waits for the oldest mark, and forgets it.
    fn wait(&mut self, backend: &mut B) -> Result<()>;

    /// The `count`-th token of the sequence in `slot` since it was entered, once the mark behind its choice was waited for.
    /// The last 4 are there.
    fn chosen(&self, slot: usize, count: usize) -> Choice;
}
