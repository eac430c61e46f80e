//! Decoding without the host: a table of rows, one a sequence, of which every step reads ids and slots and into which it
//! writes the next ids (`cuda/sampling/`, `sampling_decode`). The host puts rows in and takes them out; what was chosen
//! it reads from its own memory, behind a [`Mark`](crate::graph::Mark).

use std::collections::HashMap;
use std::sync::Arc;

use crate::batch::Batch;
use crate::buffer::{Buffer, Float, Ints, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, HostInts};
use crate::params::{
    DECODE_AHEAD, DECODE_BIAS, DECODE_HEADER, DECODE_ROW, DECODE_STOP, DECODE_WINDOW, Decode, DecodeRow,
    SAMPLE_THREADS, SURVEY_PARTS, SURVEY_THREADS,
};
use crate::sampling::{Choice, Row};

/// Rows of logits of one launch at most: what there are counters for.
const MAX_LOGIT_ROWS: usize = 256;

/// In a row that has no adapter.
const NO_ADAPTER: i32 = -1;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where the sequence's state lies.
    pub slot: usize,
    /// How its tokens are chosen. The window may be shorter than `window_size`, oldest first.
    pub row: Row<'a>,
    /// How many of the last tokens the penalties look at.
    pub window_size: usize,
    /// How many tokens may be chosen; at least 1.
    pub left: usize,
    /// Ids that end it.
    pub stop: &'a [u32],
    /// After each token it waits for [`Decoder::point`].
    pub hold: bool,
    /// Its place among the adapters of [`LowRanks`](crate::low_rank::LowRanks), where it has one.
    pub adapter: Option<usize>,
}

/// The table, what has been recorded for it, and what was chosen.
#[derive(Debug)]
pub struct Decoder {
    rows: usize,
    spare: usize,
    vocabulary: usize,
    /// cu_seqlens [rows + 1], slots [rows], fresh [rows], ids [rows], adapters [rows].
    batch: Arc<Ints>,
    table: Ints,
    counts: Buffer,
    survey: Buffer,
    chosen: HostInts,
    /// By the number of rows, and whether adapters are added.
    graphs: HashMap<(usize, bool), Graph>,
}

impl Decoder {
    /// A table of `rows` rows for `vocabulary` ids and slots 0 to `spare` - 1, all rows pointed at slot `spare`, which no
    /// sequence uses.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the vocabulary has 1 to 2²⁰ tokens and there are 1 to 65535 rows;
    /// [`Error::OutOfMemory`], [`Error::Lost`].
    pub fn new(device: &Device, rows: usize, vocabulary: usize, spare: usize) -> Result<Self> {
        Error::check("vocab_size", vocabulary, 1..=1 << 20, "1 to 1048576")?;
        Error::check("the number of rows of a decode table", rows, 1..=65535, "1 to 65535")?;
        let decoder = Self {
            rows,
            spare,
            vocabulary,
            batch: Arc::new(device.ints(5 * rows + 1)?),
            table: device.ints(rows * DECODE_ROW)?,
            counts: device.alloc(rows.min(MAX_LOGIT_ROWS) * vocabulary, Float::F32)?,
            survey: device.alloc(3 * SURVEY_PARTS * rows.min(MAX_LOGIT_ROWS), Float::F32)?,
            chosen: HostInts::new(device, 2 * spare * DECODE_AHEAD)?,
            graphs: HashMap::new(),
        };
        decoder.clear(device)?;
        Ok(decoder)
    }

    /// Whether there is room for what the row chooses by.
    #[must_use]
    pub fn takes(entry: &Entry) -> bool {
        let mut biased: Vec<u32> = entry.row.logit_bias.iter().map(|(id, _)| *id).collect();
        biased.sort_unstable();
        biased.len() <= DECODE_BIAS
            && biased.windows(2).all(|pair| pair[0] != pair[1])
            && entry.stop.len() <= DECODE_STOP
            && (!entry.row.penalizes() || entry.window_size <= DECODE_WINDOW)
            && i32::try_from(entry.left).is_ok()
    }

    /// Rows of logits that [`Decoder::choose`] takes.
    #[must_use]
    pub fn logit_rows(&self) -> usize {
        self.rows.min(MAX_LOGIT_ROWS)
    }

    /// Points all rows at the spare slot, without adapters.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn clear(&self, device: &Device) -> Result<()> {
        let mut values: Vec<i32> = (0..=self.rows as i32).collect();
        values.resize(2 * self.rows + 1, self.spare as i32);
        values.resize(4 * self.rows + 1, 0);
        values.resize(5 * self.rows + 1, NO_ADAPTER);
        device.write_ints_at(&self.batch, 0, &values)
    }

    /// Puts a sequence into row `at`. It takes part from the first token on that [`Decoder::choose_for`] chooses for it.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If there is no such row, or no room for the entry (see [`Decoder::takes`]).
    pub fn enter(&mut self, device: &Device, at: usize, entry: &Entry) -> Result<()> {
        assert!(at < self.rows && entry.slot < self.spare, "row {at}: {entry:?}");
        assert!(Self::takes(entry) && entry.left > 0, "row {at}: {entry:?}");
        entry.row.check();
        let window_size = if entry.row.penalizes() { entry.window_size } else { 0 };
        let window = &entry.row.window[entry.row.window.len().saturating_sub(window_size)..];
        let bias = entry.row.logit_bias;
        let header = DecodeRow {
            seed: entry.row.seed,
            position: entry.row.position,
            slot: entry.slot as i32,
            left: entry.left as i32,
            hold: i32::from(entry.hold),
            count: 0,
            window_length: window.len() as i32,
            window_size: window_size as i32,
            window_next: if window_size == 0 { 0 } else { (window.len() % window_size) as i32 },
            bias_count: bias.len() as i32,
            stop_count: entry.stop.len() as i32,
            temperature: entry.row.temperature,
            top_p: entry.row.top_p,
            min_p: entry.row.min_p,
            repetition_penalty: entry.row.repetition_penalty,
            frequency_penalty: entry.row.frequency_penalty,
            presence_penalty: entry.row.presence_penalty,
            top_k: entry.row.top_k,
        };
        let mut words = words_of(&header).to_vec();
        let mut end = DECODE_HEADER;
        let mut part = |room: usize, values: &mut dyn Iterator<Item = i32>| {
            words.resize(end, 0);
            words.extend(values);
            end += room;
        };
        part(DECODE_WINDOW, &mut window.iter().map(|id| *id as i32));
        part(DECODE_BIAS, &mut bias.iter().map(|(id, _)| *id as i32));
        part(DECODE_BIAS, &mut bias.iter().map(|(_, bias)| bias.to_bits() as i32));
        part(DECODE_STOP, &mut entry.stop.iter().map(|id| *id as i32));
        device.write_ints_at(&self.table, at * DECODE_ROW, &words)?;
        let adapter = entry.adapter.map_or(NO_ADAPTER, |adapter| adapter as i32);
        device.write_ints_at(&self.batch, 4 * self.rows + 1 + at, &[adapter])
    }

    /// Points row `at` at a slot, so that it goes on, or (`None`) at the spare one.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If there is no such row.
    pub fn point(&mut self, device: &Device, at: usize, slot: Option<usize>) -> Result<()> {
        assert!(at < self.rows, "row {at} of {}", self.rows);
        device.write_ints_at(&self.batch, self.rows + 1 + at, &[slot.unwrap_or(self.spare) as i32])
    }

    /// Moves what is in row `from` to row `to`.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn relocate(&mut self, device: &Device, from: usize, to: usize) -> Result<()> {
        assert!(from < self.rows && to < self.rows, "row {from} to row {to} of {}", self.rows);
        device.copy_ints(&self.table, from * DECODE_ROW, to * DECODE_ROW, DECODE_ROW)?;
        for list in [self.rows + 1, 3 * self.rows + 1, 4 * self.rows + 1] {
            device.copy_ints(&self.batch, list + from, list + to, 1)?;
        }
        self.point(device, from, None)
    }

    /// The first `rows` rows as a batch of one token each: whatever ids, slots and adapters the table has when it is run.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn batch(&self, rows: usize) -> Batch {
        assert!(rows <= self.rows, "{rows} of {} rows", self.rows);
        Batch::in_table(&self.batch, self.rows, rows, self.spare)
    }

    /// Chooses the next token of the rows from `first` on, one for each row of `logits` [rows, vocab] f32. Rows that
    /// point at the spare slot are left alone.
    ///
    /// # Errors
    /// [`Error::Lost`].
    ///
    /// # Panics
    /// If there are not so many rows, or `logits` does not lie within its buffer.
    pub fn choose(&mut self, device: &Device, logits: RowsMut, first: usize) -> Result<()> {
        assert!(first + logits.rows <= self.rows, "rows {first} + {} of {}", logits.rows, self.rows);
        self.launch(device, logits, first, 0)
    }

    /// The same for the given rows of the table, wherever they point.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::OutOfMemory`].
    ///
    /// # Panics
    /// If there is no such row, or another number of rows of logits.
    pub fn choose_for(&mut self, device: &Device, logits: RowsMut, rows: &[usize]) -> Result<()> {
        assert!(rows.len() == logits.rows && rows.iter().all(|row| *row < self.rows), "{rows:?}");
        let which = device.list(&rows.iter().map(|row| *row as i32).collect::<Vec<_>>())?;
        self.launch(device, logits, 0, which.pointer(0))
    }

    fn launch(&mut self, device: &Device, logits: RowsMut, first: usize, which: u64) -> Result<()> {
        let rows = logits.rows;
        assert!(rows <= self.logit_rows(), "{rows} rows of logits, at most {}", self.logit_rows());
        let params = Decode {
            logits: logits.pointer(rows, self.vocabulary, Float::F32),
            table: self.table.pointer(0),
            counts: self.counts.pointer(0),
            survey: self.survey.pointer(0),
            slots: self.batch.pointer(self.rows + 1),
            ids: self.batch.pointer(3 * self.rows + 1),
            chosen: self.chosen.pointer(),
            which,
            stride: logits.stride as i64,
            first: first as i32,
            vocab: self.vocabulary as i32,
            spare: self.spare as i32,
            reserved: 0,
        };
        let grid = Grid::new([SURVEY_PARTS, rows, 1], SURVEY_THREADS as u32);
        device.launch(Kernel::of("sampling_survey", Float::F32), grid, &params)?;
        let grid = Grid::new([rows, 1, 1], SAMPLE_THREADS as u32).behind(true);
        device.launch(Kernel::of("sampling_decode", Float::F32), grid, &params)
    }

    /// Replays what was kept for so many rows, with adapters or without; false if nothing was.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn replay(&self, device: &Device, rows: usize, adapted: bool) -> Result<bool> {
        self.graphs.get(&(rows, adapted)).map_or(Ok(false), |graph| device.replay(graph).map(|()| true))
    }

    /// Keeps what was recorded for so many rows, with adapters or without.
    pub fn keep(&mut self, rows: usize, adapted: bool, graph: Graph) {
        self.graphs.insert((rows, adapted), graph);
    }

    /// The `count`-th token (from 0) that was chosen for the sequence in `slot` since it entered a row, of which the last 4
    /// are there; the host has waited for the launch that chose it.
    ///
    /// # Panics
    /// If there is no such slot.
    #[must_use]
    pub fn chosen(&self, slot: usize, count: usize) -> Choice {
        let place = 2 * (slot * DECODE_AHEAD + count % DECODE_AHEAD);
        Choice {
            token: u32::try_from(self.chosen.get(place)).ok(),
            logprob: f32::from_bits(self.chosen.get(place + 1) as u32),
        }
    }
}

/// A row's struct as integers.
fn words_of(row: &DecodeRow) -> [i32; size_of::<DecodeRow>() / 4] {
    const { assert!(size_of::<DecodeRow>() <= 4 * DECODE_HEADER) };
    // SAFETY: the struct is repr(C) and all of its bytes are fields (8- and 4-byte ones without gaps), so any of them may
    // be read as an integer.
    unsafe { std::mem::transmute_copy(row) }
}
