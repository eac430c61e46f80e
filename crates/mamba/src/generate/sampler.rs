//! From logits to a token.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use super::philox;
use crate::error::{Error, Result};

/// Largest `logprobs`.
const MAX_LOGPROBS: usize = 100;
/// Largest `penaltyWindow`; sessions store the window.
const MAX_PENALTY_WINDOW: usize = 65_536;

/// How the next token is chosen. The steps, in this order:
///
/// 1. `logit_bias` is added.
/// 2. For each token of the last `penalty_window` ones, which it holds n times: a positive logit is divided by
///    `repetition_penalty`, another one multiplied by it (Keskar et al. 2019, as in Hugging Face and llama.cpp);
///    then `n * frequency_penalty + presence_penalty` is subtracted (as in OpenAI's API).
/// 3. Greedy (`temperature` 0): the largest logit, of equal ones that of the lowest id. Otherwise:
/// 4. Logits are divided by `temperature`.
/// 5. `top_k`: the k largest are kept, of equal ones those of the lowest ids.
/// 6. `top_p`: of what is left, the fewest of the largest whose probabilities sum to at least `top_p`; at
///    least one.
/// 7. `min_p`: those whose probability is at least `min_p` times the largest.
/// 8. With u = [`philox::uniform`]`(seed, position)`: in order of ids, the first token at which the running
///    sum of what is kept exceeds u times its total.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps so many tokens; 0 is off.
    pub top_k: u32,
    /// Keeps so much probability, 0 to 1; 1 is off.
    pub top_p: f32,
    /// Keeps tokens this likely in relation to the likeliest, 0 to 1; 0 is off.
    pub min_p: f32,
    /// Above 1 makes repetition unlikelier; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted for each occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once for a token that occurs; 0 is off.
    pub presence_penalty: f32,
    /// How many of the context's last tokens (the prompt's included) the penalties look at.
    pub penalty_window: usize,
    /// The draws' key.
    pub seed: u64,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the likeliest tokens to return with each one (at most 100); 0 is none.
    pub logprobs: usize,
}

impl Default for SamplerOptions {
    /// Greedy, nothing else switched on, a penalty window of 256.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 256,
            seed: 0,
            logit_bias: Vec::new(),
            logprobs: 0,
        }
    }
}

impl SamplerOptions {
    /// Checks every option against its range, for a model with rows of `vocab_size` logits.
    ///
    /// # Errors
    /// `OPTION_INVALID` with the option's name in the public API.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let check = |option: &str, value: f32, fits: bool, expected: &str| {
            if fits { Ok(()) } else { Err(Error::option(option, value, expected)) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check("temperature", temperature, temperature >= 0.0 && temperature.is_finite(), "a number from 0")?;
        check("topP", top_p, (0.0..=1.0).contains(&top_p), "a number from 0 to 1")?;
        check("minP", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1")?;
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        check("repetitionPenalty", repetition_penalty, positive, "a number above 0")?;
        for (option, value) in
            [("frequencyPenalty", self.frequency_penalty), ("presencePenalty", self.presence_penalty)]
        {
            check(option, value, value.is_finite(), "a finite number")?;
        }
        if self.penalty_window > MAX_PENALTY_WINDOW {
            return Err(Error::option("penaltyWindow", self.penalty_window, "0 to 65536 tokens"));
        }
        for (id, bias) in &self.logit_bias {
            let option = format!("logitBias[{id}]");
            check(&option, *bias, bias.is_finite(), "a finite number")?;
            if *id as usize >= vocab_size {
                let last = vocab_size.saturating_sub(1);
                return Err(Error::option(&option, bias, &format!("a token id from 0 to {last} as the key")));
            }
        }
        if self.logprobs > MAX_LOGPROBS {
            return Err(Error::option("logprobs", self.logprobs, "0 to 100 tokens"));
        }
        Ok(())
    }

    fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability by the model itself: log-softmax of the logits as given,
    /// before bias, penalties, temperature and truncation.
    pub logprob: f32,
    /// The `logprobs` likeliest tokens and their log-probabilities of the same kind, likeliest first, of
    /// equal ones the lowest id first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence. What it keeps between steps is the penalty window; its draws depend
/// only on the seed and the position.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    /// The last `penalty_window` tokens, oldest first.
    window: VecDeque<u32>,
    /// How often each occurs in it.
    counts: HashMap<u32, u32>,
    // Reused from step to step:
    /// exp((logit - largest) / temperature), by id.
    weights: Vec<f32>,
    kept: Vec<u32>,
    /// Ids whose logits were changed, with the logits as given; the first entry of an id is the one.
    changed: Vec<(u32, f32)>,
}

impl Sampler {
    /// For options that [`SamplerOptions::validate`] accepts; `window` is the end of the context, oldest first
    /// (of which the last `penalty_window` tokens matter).
    #[must_use]
    pub fn new(options: SamplerOptions, window: &[u32]) -> Self {
        let mut sampler = Self {
            options,
            window: VecDeque::new(),
            counts: HashMap::new(),
            weights: Vec::new(),
            kept: Vec::new(),
            changed: Vec::new(),
        };
        for token in window {
            sampler.observe(*token);
        }
        sampler
    }

    /// A token has entered the context. [`sample`](Self::sample) does not do this by itself.
    pub fn observe(&mut self, token: u32) {
        self.window.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        if self.window.len() > self.options.penalty_window
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    /// The last `penalty_window` tokens of the context, oldest first, as a session stores them.
    #[must_use]
    pub fn window(&self) -> Vec<u32> {
        self.window.iter().copied().collect()
    }

    /// Chooses a token by its logits, one for each id, which are changed in place. `position` is the index
    /// that the token will have in the whole sequence. NaN counts as -infinity (never chosen).
    ///
    /// # Errors
    /// `LOGITS_NOT_FINITE` if every logit is NaN or -infinity, or there are none.
    pub fn sample(&mut self, logits: &mut [f32], position: u64) -> Result<Sampled> {
        let Some(given) = Summary::of(logits) else { return Err(Error::LogitsNotFinite { position }) };
        let top = match self.options.logprobs {
            0 => Vec::new(),
            count => self.best(logits, count).map(|id| (id, given.logprob(logits[id as usize]))).collect(),
        };
        self.adjust(logits);
        // What was changed may have risen above or fallen below the others.
        let largest = if self.changed.is_empty() { given.largest } else { largest(logits) };
        let token = if self.options.temperature == 0.0 {
            largest
        } else {
            self.weigh(logits, logits[largest]);
            let u = philox::uniform(self.options.seed, position);
            if self.truncate(logits) {
                draw(self.kept.iter().map(|id| (*id as usize, self.weights[*id as usize])), u)
            } else {
                draw(self.weights.iter().copied().enumerate(), u)
            }
            .unwrap_or(largest)
        } as u32;
        let raw = self.changed.iter().find(|(id, _)| *id == token).map(|(_, raw)| *raw);
        Ok(Sampled { token, logprob: given.logprob(raw.unwrap_or(logits[token as usize])), top })
    }

    /// The ids of the `count` largest logits (without those of -infinity), largest first.
    fn best(&mut self, logits: &[f32], count: usize) -> impl Iterator<Item = u32> {
        self.kept.clear();
        self.kept
            .extend((0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY).map(|(id, _)| id));
        keep_largest(&mut self.kept, logits, count);
        self.kept.sort_unstable_by(|a, b| larger_first(logits, *a, *b));
        self.kept.iter().copied()
    }

    /// Steps 1 and 2, in f64, so that no value can overflow to a NaN.
    fn adjust(&mut self, logits: &mut [f32]) {
        let Self { options, counts, changed, .. } = self;
        changed.clear();
        let mut change = |id: u32, by: &dyn Fn(f64) -> f64| {
            if let Some(logit) = logits.get_mut(id as usize)
                && *logit > f32::NEG_INFINITY
            {
                changed.push((id, *logit));
                *logit = by(f64::from(*logit)).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
            }
        };
        for (id, bias) in &options.logit_bias {
            change(*id, &|logit| logit + f64::from(*bias));
        }
        if options.penalizes() {
            let repetition = f64::from(options.repetition_penalty);
            let [frequency, presence] = [options.frequency_penalty, options.presence_penalty].map(f64::from);
            for (id, count) in counts {
                change(*id, &|logit| {
                    let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
                    logit - f64::from(*count) * frequency - presence
                });
            }
        }
    }

    /// Step 4: fills `weights`, of which the largest is 1.
    fn weigh(&mut self, logits: &[f32], largest: f32) {
        let temperature = self.options.temperature;
        self.weights.clear();
        self.weights.extend(logits.iter().map(|logit| exp((logit - largest) / temperature)));
    }

    /// Steps 5 to 7: leaves in `kept`, in order of ids, what they keep. False if they keep everything.
    fn truncate(&mut self, logits: &[f32]) -> bool {
        let Self { options, weights, kept, .. } = self;
        let top_k = match options.top_k as usize {
            0 => usize::MAX,
            k => k,
        };
        if top_k >= logits.len() && options.top_p >= 1.0 && options.min_p == 0.0 {
            return false;
        }
        let weight = |id: &u32| weights[*id as usize];
        kept.clear();
        if top_k < logits.len() {
            kept.extend(0..logits.len() as u32);
            keep_largest(kept, logits, top_k);
            if options.top_p < 1.0 {
                let total: f64 = kept.iter().map(|id| f64::from(weight(id))).sum();
                keep_nucleus(kept, logits, weights, total * f64::from(options.top_p));
            }
            kept.retain(|id| weight(id) >= options.min_p);
            kept.sort_unstable();
        } else if options.top_p < 1.0 {
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            // All tokens less likely than (1 - top_p) / n have less than 1 - top_p together, so the nucleus
            // does without them.
            let floor = total * (1.0 - f64::from(options.top_p)) / weights.len() as f64;
            kept.extend((0..).zip(&*weights).filter(|(_, w)| f64::from(**w) >= floor).map(|(id, _)| id));
            keep_nucleus(kept, logits, weights, total * f64::from(options.top_p));
            kept.retain(|id| weight(id) >= options.min_p);
            kept.sort_unstable();
        } else {
            kept.extend((0..).zip(&*weights).filter(|(_, w)| **w >= options.min_p).map(|(id, _)| id));
        }
        true
    }
}

/// Larger logits first, of equal ones the lowest id.
fn larger_first(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Leaves the `count` ids with the largest logits, in no order.
fn keep_largest(ids: &mut Vec<u32>, logits: &[f32], count: usize) {
    if count < ids.len() {
        ids.select_nth_unstable_by(count, |a, b| larger_first(logits, *a, *b));
        ids.truncate(count);
    }
}

/// Leaves the fewest ids, likeliest first, whose weights sum to `mass`; at least one.
fn keep_nucleus(ids: &mut Vec<u32>, logits: &[f32], weights: &[f32], mass: f64) {
    // Nuclei are small as a rule: look among the largest few before sorting more.
    let mut size = 128;
    while size < ids.len() {
        ids.select_nth_unstable_by(size, |a, b| larger_first(logits, *a, *b));
        if ids[..size].iter().map(|id| f64::from(weights[*id as usize])).sum::<f64>() >= mass {
            ids.truncate(size);
            break;
        }
        size *= 4;
    }
    ids.sort_unstable_by(|a, b| larger_first(logits, *a, *b));
    let mut sum = 0.0;
    let enough = ids.iter().position(|id| {
        sum += f64::from(weights[*id as usize]);
        sum >= mass
    });
    if let Some(last) = enough {
        ids.truncate(last + 1);
    }
}

/// Step 8. None if nothing has any weight.
fn draw(weights: impl Iterator<Item = (usize, f32)> + Clone, u: f64) -> Option<usize> {
    let total: f64 = weights.clone().map(|(_, weight)| f64::from(weight)).sum();
    let mut sum = 0.0;
    weights
        .filter(|(_, weight)| *weight > 0.0)
        .find(|(_, weight)| {
            sum += f64::from(*weight);
            sum > u * total
        })
        .map(|(id, _)| id)
}

/// The index of the largest logit, of equal ones the lowest; 0 of none.
fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

/// What one pass over the logits as given tells.
struct Summary {
    /// Index of the largest logit.
    largest: usize,
    /// The natural logarithm of the sum of exp(logit).
    log_sum_exp: f64,
}

impl Summary {
    /// Replaces NaN by -infinity and +infinity by the largest number on the way. None if all are -infinity.
    fn of(logits: &mut [f32]) -> Option<Self> {
        /// Logits that are in the first-level cache for the two looks taken at them.
        const BLOCK: usize = 1024;
        /// Sums side by side, which the compiler turns into vectors.
        const LANES: usize = 16;

        let (mut largest_block, mut max, mut total) = (0, f32::NEG_INFINITY, 0f64);
        for (i, block) in logits.chunks_mut(BLOCK).enumerate() {
            let mut maxima = [f32::NEG_INFINITY; LANES];
            for lanes in block.chunks_mut(LANES) {
                for (logit, max) in lanes.iter_mut().zip(&mut maxima) {
                    *logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
                    *max = if *logit > *max { *logit } else { *max };
                }
            }
            let block_max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
            if block_max == f32::NEG_INFINITY {
                continue;
            }
            if block_max > max {
                total *= (f64::from(max) - f64::from(block_max)).exp();
                (max, largest_block) = (block_max, i);
            }
            let mut sums = [0f32; LANES];
            for lanes in block.chunks(LANES) {
                for (logit, sum) in lanes.iter().zip(&mut sums) {
                    *sum += exp(logit - max);
                }
            }
            total += sums.into_iter().map(f64::from).sum::<f64>();
        }
        if max == f32::NEG_INFINITY {
            return None;
        }
        let start = largest_block * BLOCK;
        let largest = start + largest(&logits[start..logits.len().min(start + BLOCK)]);
        Some(Self { largest, log_sum_exp: f64::from(max) + total.ln() })
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum_exp) as f32
    }
}

/// e^x for x ≤ 0 with a relative error below 2e-7; 0 below -87 (where f32 has no full precision left). Only
/// multiplications and additions, so that it is the same to the bit on every processor and in vectors.
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; the polynomial for e^r is that of Cephes' `expf`.
#[inline]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low bits
    let shifted = x.max(-87.0) * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, of which the first times n is exact.
    let r = x.max(-87.0) - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let power_of_two = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { (p * r * r + r + 1.0) * power_of_two }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
