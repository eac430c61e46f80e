//! What an engine does and how fast: counted as it works, and looked at from any thread.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Seconds that are remembered one by one; percentiles are over all of them.
const SECONDS: usize = 60;
/// Seconds that rates and the batch are means over.
const RECENT: u64 = 10;

/// What an engine does and how fast. Rates are over the last 10 seconds, percentiles over the last 60, totals since the
/// model was loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests that were accepted and not answered yet.
    pub requests_in_flight: usize,
    /// Requests so far, refused ones included.
    pub requests_total: u64,
    /// How many of them were refused with `QUEUE_FULL`.
    pub requests_refused: u64,
    /// Sequences (a request has one, or one for each text to embed) that wait for a slot.
    pub waiting: usize,
    /// Sequences in slots.
    pub running: usize,
    /// Generations whose consumers do not keep up: they have no slot, and go on when asked to.
    pub resting: usize,
    /// Slots.
    pub slots: usize,
    /// Mean number of sequences in a step. Times without steps do not count.
    pub mean_batch: f64,
    /// Tokens of prompts and texts that were computed.
    pub prompt_tokens_total: u64,
    /// Tokens that were generated.
    pub generated_tokens_total: u64,
    /// Tokens of prompts and texts a second.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens a second, of all sequences together.
    pub generated_tokens_per_second: f64,
    /// Seconds from a request to the first token of its text, tokenization and waiting included.
    pub time_to_first_token: Percentiles,
    /// Seconds from a token of a text to its next one.
    pub inter_token: Percentiles,
    /// Of the prefix cache; all 0 where there is none.
    pub prefix_cache: PrefixCacheStats,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of all slots' states, those of the prefix cache on a GPU included.
    pub state_bytes: u64,
    /// Bytes of a GPU's memory that are free, and all; of the whole GPU, whoever uses it. A second old at most while the
    /// engine works.
    pub device_memory: Option<(u64, u64)>,
}

/// Of the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCacheStats {
    /// Prompts that were looked up.
    pub lookups: u64,
    /// How many of them began with something cached.
    pub hits: u64,
    /// Tokens that were not computed, for that.
    pub cached_tokens: u64,
    /// States in it.
    pub states: usize,
    /// Bytes of states and paths.
    pub bytes: u64,
}

/// How long something took, in seconds, within 3%. 0 where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// How often it was measured.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of a hundred.
    pub p99: f64,
}

/// What is counted while the engine works.
pub(crate) struct Meter {
    began: Instant,
    state: Mutex<Counts>,
}

struct Counts {
    /// What it was at the end of the last turn, and totals.
    stats: Stats,
    seconds: Vec<Second>,
}

#[derive(Clone, Default)]
struct Second {
    /// Which one, from 1 on: since the model was loaded.
    number: u64,
    steps: u64,
    sequences: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
    first_token: Histogram,
    inter_token: Histogram,
}

impl Meter {
    pub fn new(stats: Stats) -> Self {
        let seconds = vec![Second::default(); SECONDS];
        Self { began: Instant::now(), state: Mutex::new(Counts { stats, seconds }) }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn of the engine has ended, with so many tokens of prompts, and so many sequences in its step (0: it had none).
    pub(super) fn turn(&self, prompt_tokens: usize, sequences: usize) {
        let mut counts = self.counts();
        counts.stats.prompt_tokens_total += prompt_tokens as u64;
        let second = counts.second(self.began.elapsed());
        second.steps += u64::from(sequences > 0);
        second.sequences += sequences as u64;
        second.prompt_tokens += prompt_tokens as u64;
    }

    pub(super) fn queue(&self, waiting: usize, running: usize, resting: usize) {
        let stats = &mut self.counts().stats;
        (stats.waiting, stats.running, stats.resting) = (waiting, running, resting);
    }

    /// A token came: so long after the request, if it is the first, or after the one before it.
    pub(super) fn token(&self, first: bool, after: Duration) {
        let mut counts = self.counts();
        counts.stats.generated_tokens_total += 1;
        let second = counts.second(self.began.elapsed());
        second.generated_tokens += 1;
        let histogram = if first { &mut second.first_token } else { &mut second.inter_token };
        histogram.add(after);
    }

    /// A prompt was looked up in the prefix cache, which had so many of its tokens.
    pub(super) fn look_up(&self, cached_tokens: usize) {
        let cache = &mut self.counts().stats.prefix_cache;
        cache.lookups += 1;
        cache.hits += u64::from(cached_tokens > 0);
        cache.cached_tokens += cached_tokens as u64;
    }

    pub(super) fn prefix_cache(&self, states: usize, bytes: u64) {
        let cache = &mut self.counts().stats.prefix_cache;
        (cache.states, cache.bytes) = (states, bytes);
    }

    pub(super) fn device_memory(&self, memory: Option<(u64, u64)>) {
        self.counts().stats.device_memory = memory;
    }

    /// All but what the model's handle counts.
    pub(super) fn stats(&self) -> Stats {
        self.counts().stats_at(self.began.elapsed())
    }
}

impl Counts {
    fn second(&mut self, now: Duration) -> &mut Second {
        let number = now.as_secs() + 1;
        let second = &mut self.seconds[number as usize % SECONDS];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }

    fn stats_at(&self, now: Duration) -> Stats {
        let number = now.as_secs() + 1;
        let last = |count: u64| {
            self.seconds
                .iter()
                .filter(move |of| of.number > 0 && of.number + count > number && of.number <= number)
        };
        // The current second has only begun.
        let elapsed = now.as_secs_f64().min(RECENT as f64 - 1.0 + f64::from(now.subsec_nanos()) / 1e9);
        let sum = |count: fn(&Second) -> u64| last(RECENT).map(count).sum::<u64>() as f64;
        let rate = |count| if elapsed > 0.0 { sum(count) / elapsed } else { 0.0 };
        let percentiles = |of: fn(&Second) -> &Histogram| {
            let mut all = Histogram::default();
            last(SECONDS as u64).for_each(|second| all.merge(of(second)));
            all.percentiles()
        };
        Stats {
            mean_batch: sum(|second| second.sequences) / sum(|second| second.steps).max(1.0),
            prompt_tokens_per_second: rate(|second| second.prompt_tokens),
            generated_tokens_per_second: rate(|second| second.generated_tokens),
            time_to_first_token: percentiles(|second| &second.first_token),
            inter_token: percentiles(|second| &second.inter_token),
            ..self.stats.clone()
        }
    }
}

/// Parts of a power of two that durations are told apart by: a part is 1/16 of what it begins with, or less, so its middle
/// is within 3% of everything in it.
const PARTS: u32 = 16;

/// Durations, counted by their first bits; those below 16 µs to the microsecond.
#[derive(Clone, Default)]
struct Histogram(Vec<u32>);

impl Histogram {
    fn add(&mut self, took: Duration) {
        let bucket = Self::bucket(took.as_micros().min(1 << 40) as u64);
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    fn bucket(micros: u64) -> usize {
        let shift = (micros | u64::from(PARTS)).ilog2() - PARTS.ilog2();
        ((u64::from(shift * PARTS)) + (micros >> shift)) as usize
    }

    /// The middle of a bucket, in microseconds.
    fn middle(bucket: usize) -> f64 {
        let parts = PARTS as usize;
        let shift = (bucket / parts).saturating_sub(1);
        let width = (1u64 << shift) as f64;
        (bucket - shift * parts) as f64 * width + (width - 1.0) / 2.0
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
    }

    fn percentiles(&self) -> Percentiles {
        let count: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        let at = |part: f64| {
            let mut left = (part * count as f64).ceil() as u64;
            let found = self.0.iter().position(|count| {
                let here = u64::from(*count);
                let found = here > 0 && left <= here;
                left = left.saturating_sub(here);
                found
            });
            found.map_or(0.0, |bucket| Self::middle(bucket) / 1e6)
        };
        Percentiles { count, p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_percent() {
        let mut histogram = Histogram::default();
        for micros in 1..=100_000u64 {
            histogram.add(Duration::from_micros(micros));
        }
        let Percentiles { count, p50, p90, p99 } = histogram.percentiles();
        assert_eq!(count, 100_000);
        for (actual, expected) in [(p50, 0.05), (p90, 0.09), (p99, 0.099)] {
            assert!((actual / expected - 1.0f64).abs() < 0.03, "{actual} {expected}");
        }
        for exact in [0, 1, 15, 16, 17, 1000, 123_456_789] {
            let mut one = Histogram::default();
            one.add(Duration::from_micros(exact));
            let p99 = one.percentiles().p99 * 1e6;
            assert!((p99 - exact as f64).abs() <= 0.03 * exact as f64, "{exact}: {p99}");
        }
        assert_eq!(Histogram::default().percentiles(), Percentiles::default());
    }

    #[test]
    fn rates_are_of_the_last_ten_seconds_and_percentiles_of_sixty() {
        let mut counts = Counts { stats: Stats::default(), seconds: vec![Second::default(); SECONDS] };
        for second in 0..120 {
            let of = counts.second(Duration::from_secs(second));
            of.generated_tokens += if second < 100 { 1000 } else { 50 };
            of.steps += 10;
            of.sequences += if second < 100 { 20 } else { 40 };
            of.inter_token.add(Duration::from_millis(if second < 60 { 1 } else { 7 }));
        }
        let stats = counts.stats_at(Duration::from_millis(119_999));
        assert!((stats.generated_tokens_per_second - 50.0).abs() < 0.1, "{stats:?}");
        assert_eq!(stats.mean_batch, 4.0);
        assert_eq!(stats.inter_token.count, 60);
        assert!((stats.inter_token.p50 - 0.007).abs() < 0.03 * 0.007);
        let later = counts.stats_at(Duration::from_secs(500));
        assert_eq!((later.generated_tokens_per_second, later.mean_batch), (0.0, 0.0));
        assert_eq!(later.inter_token, Percentiles::default());
        // A model that was just loaded.
        let mut counts = Counts { stats: Stats::default(), seconds: vec![Second::default(); SECONDS] };
        counts.second(Duration::ZERO).prompt_tokens += 100;
        assert_eq!(counts.stats_at(Duration::from_millis(500)).prompt_tokens_per_second, 200.0);
    }
}
