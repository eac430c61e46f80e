//! From logits to tokens (`cuda/sampling/`). What each option does, in which order, is defined by the mamba crate's
//! sampler (`generate/sampler.rs`), and the choice is the same; docs/kernels.md says what can make it differ.

use crate::buffer::{Buffer, Float, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{SAMPLE_THREADS, SampleRow, Sampling};

/// How one row's token is chosen. Ids beyond the vocabulary are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Divides the logits, finite; 0: the largest one.
    pub temperature: f32,
    /// Keeps so many tokens; 0: all.
    pub top_k: u32,
    /// Keeps so much probability, 0 to 1; 1: all.
    pub top_p: f32,
    /// Keeps tokens this likely in relation to the likeliest, 0 to 1.
    pub min_p: f32,
    /// Divides or multiplies the logits of tokens that occur, above 0; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted for each occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once for a token that occurs; 0 is off.
    pub presence_penalty: f32,
    /// What the penalties look at: the last tokens of the context, in any order.
    pub window: &'a [u32],
    /// Added to the logits of these ids, no id twice.
    pub logit_bias: &'a [(u32, f32)],
    /// Key of the draw.
    pub seed: u64,
    /// Index that the token will have in its sequence; with the seed it gives the draw.
    pub position: u64,
}

/// What was chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// `None`: every logit is NaN or −infinity.
    pub token: Option<u32>,
    /// Natural logarithm of its probability by the logits as given; NaN where there is none.
    pub logprob: f32,
}

/// What choosing keeps on the device from call to call.
#[derive(Debug, Default)]
pub struct Sampler {
    /// [rows, vocab]: how often a token occurs in a window, counted by the kernel and put back to zero. Zeros are the
    /// same bits as integers.
    counts: Option<Buffer>,
}

impl Sampler {
    /// Chooses a token for each of `rows` by its row of `logits` [rows, vocab] f32, in which bias and penalties are left.
    /// Waits for the result.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the vocabulary has 1 to 2²⁰ tokens; [`Error::OutOfMemory`], [`Error::Lost`].
    ///
    /// # Panics
    /// If an option is out of its range, an id is biased twice, or the view does not lie within its buffer.
    pub fn choose(&mut self, device: &Device, logits: RowsMut, rows: &[Row]) -> Result<Vec<Choice>> {
        let (count, vocabulary) = (rows.len(), logits.cols);
        Error::check("vocab_size", vocabulary, 1..=1 << 20, "1 to 1048576")?;
        let pointer = logits.pointer(count, vocabulary, Float::F32);

        // Each row's window, ids and values of its bias.
        let mut values: Vec<i32> = Vec::new();
        for row in rows {
            row.check();
            values.extend(row.penalized().iter().map(|id| *id as i32));
            values.extend(row.logit_bias.iter().map(|(id, _)| *id as i32));
            values.extend(row.logit_bias.iter().map(|(_, bias)| bias.to_bits() as i32));
        }
        let list = device.list(&values)?;

        // Parts of the workspace: tokens, log-probabilities, what the kernel changes in each row.
        let changed: usize = rows.iter().map(|row| row.penalized().len() + row.logit_bias.len()).sum();
        let results = device.workspace(2 * count + changed)?;
        let (mut at, mut changed) = (0, 2 * count);
        let mut words: Vec<i32> = Vec::with_capacity(count * size_of::<SampleRow>() / 4);
        for row in rows {
            let (window, bias) = (row.penalized().len(), row.logit_bias.len());
            words.extend(words_of(&SampleRow {
                seed: row.seed,
                position: row.position,
                window: list.pointer(at),
                bias_ids: list.pointer(at + window),
                bias: list.pointer(at + window + bias),
                changed: results + 4 * changed as u64,
                window_length: window as i32,
                bias_count: bias as i32,
                temperature: row.temperature,
                top_p: row.top_p,
                min_p: row.min_p,
                repetition_penalty: row.repetition_penalty,
                frequency_penalty: row.frequency_penalty,
                presence_penalty: row.presence_penalty,
                top_k: row.top_k,
                reserved: 0,
            }));
            at += window + 2 * bias;
            changed += window + bias;
        }
        let options = device.list(&words)?;
        let penalizes = rows.iter().any(|row| !row.penalized().is_empty());
        let params = Sampling {
            logits: pointer,
            rows: options.pointer(0),
            counts: if penalizes { self.counts(device, count * vocabulary)? } else { 0 },
            token: results,
            logprob: results + 4 * count as u64,
            stride: logits.stride as i64,
            vocab: vocabulary as i32,
            reserved: 0,
        };
        let grid = Grid::new([count, 1, 1], SAMPLE_THREADS as u32);
        device.launch(Kernel::of("sampling_choose", Float::F32), grid, &params)?;

        let mut chosen = vec![0; 2 * count];
        device.download(results, &mut chosen)?;
        let (tokens, logprobs): (&[i32], &[i32]) = chosen.split_at(count);
        let choices = tokens.iter().zip(logprobs).map(|(token, logprob)| Choice {
            token: u32::try_from(*token).ok(),
            logprob: f32::from_bits(*logprob as u32),
        });
        Ok(choices.collect())
    }

    /// So many counts, all zero.
    fn counts(&mut self, device: &Device, len: usize) -> Result<u64> {
        if self.counts.as_ref().is_none_or(|counts| counts.len() < len) {
            self.counts = None;
            self.counts = Some(device.alloc(len, Float::F32)?);
        }
        Ok(self.counts.as_ref().map_or(0, |counts| counts.pointer(0)))
    }
}

impl<'a> Row<'a> {
    /// The window, if anything in it is penalized.
    fn penalized(&self) -> &'a [u32] {
        if self.penalizes() { self.window } else { &[] }
    }

    pub(crate) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    pub(crate) fn check(&self) {
        let Self { temperature, top_p, min_p, repetition_penalty, logit_bias, .. } = self;
        let finite = [*temperature, *repetition_penalty, self.frequency_penalty, self.presence_penalty];
        assert!(
            finite.iter().chain(logit_bias.iter().map(|(_, bias)| bias)).all(|x| x.is_finite())
                && *temperature >= 0.0
                && *repetition_penalty > 0.0
                && (0.0..=1.0).contains(top_p)
                && (0.0..=1.0).contains(min_p),
            "{self:?}"
        );
        let mut ids: Vec<u32> = logit_bias.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an id is biased twice: {logit_bias:?}");
    }
}

/// A row's options as a list holds them.
fn words_of(row: &SampleRow) -> [i32; 22] {
    const { assert!(size_of::<SampleRow>() == size_of::<[i32; 22]>()) };
    let halves = |x: u64| [x as i32, (x >> 32) as i32];
    let [seed, position] = [row.seed, row.position].map(halves);
    let [window, bias_ids, bias, changed] = [row.window, row.bias_ids, row.bias, row.changed].map(halves);
    let floats = [
        row.temperature,
        row.top_p,
        row.min_p,
        row.repetition_penalty,
        row.frequency_penalty,
        row.presence_penalty,
    ];
    let mut words = [0; 22];
    let all = [seed, position, window, bias_ids, bias, changed, [row.window_length, row.bias_count]]
        .into_iter()
        .flatten()
        .chain(floats.map(|x| x.to_bits() as i32))
        .chain([row.top_k as i32, row.reserved]);
    words.iter_mut().zip(all).for_each(|(word, value)| *word = value);
    words
}
