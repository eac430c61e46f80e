//! Learning vectors and labels of whole texts. A batch may be far larger than what fits into memory at once: its
//! vectors are computed piece by piece without keeping anything, the loss gives each vector's gradient, and each piece
//! is computed once more with its backward (gradient caching, Gao et al. 2021). The gradients are those of the whole.

use super::vectors::{Head, loss};
use super::{Example, Examples, Validation};
use crate::error::Result;
use crate::generate::philox::uniform;
use crate::train::data::permutation;
use crate::train::run::{ObjectiveConfig, PoolingConfig};
use crate::train::{StepReport, TrainBackend, TrainBatch, Trainer};

/// The head's names among the trainer's extra parameters.
pub const HEAD: [&str; 2] = ["classifier.weight", "classifier.bias"];

/// Examples, and how they are learned from.
pub struct Texts {
    objective: ObjectiveConfig,
    train: Vec<Example>,
    held_out: Vec<Example>,
    labels: usize,
    size: usize,
    validation_batches: usize,
    seed: u64,
}

impl Texts {
    /// Learns from examples in batches of `size`; `fraction` of them is held out, drawn by the seed.
    #[must_use]
    pub fn new(
        objective: ObjectiveConfig,
        examples: Examples,
        size: usize,
        fraction: f64,
        validation_batches: u64,
        seed: u64,
    ) -> Self {
        let labels = examples.labels.len();
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        // At least one is left to learn from.
        let mut left = examples.all.len();
        for (i, example) in examples.all.into_iter().enumerate() {
            if uniform(seed ^ 0x6865_6c64_006f_7574, i as u64) < fraction && left > 1 {
                held_out.push(example);
                left -= 1;
            } else {
                train.push(example);
            }
        }
        let size = size.min(train.len());
        let validation_batches = validation_batches.min(usize::MAX as u64) as usize;
        Self { objective, train, held_out, labels, size, validation_batches, seed }
    }

    /// The trainer's extra parameters.
    #[must_use]
    pub fn extra(&self, d_model: usize) -> Vec<(String, Vec<usize>)> {
        match self.labels {
            0 => Vec::new(),
            labels => vec![(HEAD[0].into(), vec![labels, d_model]), (HEAD[1].into(), vec![labels])],
        }
    }

    /// Steps of an epoch.
    #[must_use]
    pub fn per_epoch(&self) -> u64 {
        (self.train.len() / self.size) as u64
    }

    /// Step `number` of the run, from 0, and the tokens that it learned from.
    ///
    /// # Errors
    /// What the trainer gives.
    pub fn step<B: TrainBackend>(
        &self,
        trainer: &mut Trainer<B>,
        number: u64,
    ) -> Result<(StepReport, usize)> {
        let (epoch, number) = (number / self.per_epoch(), (number % self.per_epoch()) as usize);
        let order =
            permutation(self.train.len(), self.seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let chosen = &order[number * self.size..(number + 1) * self.size];
        let examples: Vec<&Example> = chosen.iter().map(|i| &self.train[*i as usize]).collect();
        let d = trainer.config().d_model;
        let texts = in_order(&examples);
        let pieces = pieces(&texts, trainer.options().max_tokens, trainer.options().max_sequences);
        let (mut vectors, mut hidden) = (Vec::new(), Vec::new());
        for piece in &pieces {
            hidden = trainer.hidden(piece)?;
            vectors.extend(self.pool(piece, &hidden, d));
        }
        let head = self.head(trainer)?;
        let loss = loss(&self.objective, &examples, &vectors, d, head.as_ref());
        trainer.zero_gradients()?;
        let mut from = 0;
        for piece in &pieces {
            if pieces.len() > 1 {
                hidden = trainer.hidden(piece)?;
            }
            let n = piece.sequences();
            let grad = self.unpool(piece, &loss.vectors[from * d..(from + n) * d], d, hidden.len());
            trainer.backward_hidden(&grad)?;
            from += n;
        }
        if let Some(head) = loss.head {
            trainer.add_gradient(HEAD[0], &head.weight)?;
            trainer.add_gradient(HEAD[1], &head.bias)?;
        }
        let report = trainer.update()?;
        let tokens = texts.iter().map(|text| text.len()).sum();
        Ok((StepReport { loss: loss.value, ..report }, tokens))
    }

    /// The loss on the held-out examples, in batches as large as in training; `None` where there are none.
    ///
    /// # Errors
    /// What the trainer gives.
    pub fn validate<B: TrainBackend>(&self, trainer: &mut Trainer<B>) -> Result<Option<Validation>> {
        let d = trainer.config().d_model;
        let head = self.head(trainer)?;
        let (mut sum, mut correct, mut n) = (0.0, 0, 0);
        for examples in self.held_out.chunks(self.size).take(self.validation_batches) {
            let examples: Vec<&Example> = examples.iter().collect();
            let mut vectors = Vec::new();
            let limits = trainer.options();
            for piece in pieces(&in_order(&examples), limits.max_tokens, limits.max_sequences) {
                let hidden = trainer.hidden(&piece)?;
                vectors.extend(self.pool(&piece, &hidden, d));
            }
            let loss = loss(&self.objective, &examples, &vectors, d, head.as_ref());
            sum += loss.value * examples.len() as f64;
            correct += loss.correct;
            n += examples.len();
        }
        let accuracy = (self.labels > 0).then(|| correct as f64 / n as f64);
        Ok((n > 0).then(|| Validation { loss: sum / n as f64, accuracy }))
    }

    fn head<B: TrainBackend>(&self, trainer: &mut Trainer<B>) -> Result<Option<Head>> {
        Ok(match self.labels {
            0 => None,
            _ => Some(Head { weight: trainer.parameter(HEAD[0])?, bias: trainer.parameter(HEAD[1])? }),
        })
    }

    fn pooling(&self) -> PoolingConfig {
        match self.objective {
            ObjectiveConfig::Contrastive { pooling, .. }
            | ObjectiveConfig::Distill { pooling, .. }
            | ObjectiveConfig::Classify { pooling } => pooling,
            ObjectiveConfig::CausalLm => PoolingConfig::Mean,
        }
    }

    /// A vector for each sequence: hidden [tokens, d] to [sequences, d].
    fn pool(&self, piece: &TrainBatch, hidden: &[f32], d: usize) -> Vec<f32> {
        let mut vectors = Vec::with_capacity(piece.sequences() * d);
        for range in piece.cu_seqlens.windows(2) {
            match self.pooling() {
                PoolingConfig::Last => vectors.extend_from_slice(&hidden[(range[1] - 1) * d..range[1] * d]),
                PoolingConfig::Mean => {
                    let mut sum = vec![0.0; d];
                    for row in hidden[range[0] * d..range[1] * d].chunks_exact(d) {
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                    let n = (range[1] - range[0]) as f32;
                    vectors.extend(sum.iter().map(|sum| sum / n));
                }
            }
        }
        vectors
    }

    /// The gradient of `pool`.
    fn unpool(&self, piece: &TrainBatch, grads: &[f32], d: usize, len: usize) -> Vec<f32> {
        let mut hidden = vec![0.0; len];
        for (range, grad) in piece.cu_seqlens.windows(2).zip(grads.chunks_exact(d)) {
            match self.pooling() {
                PoolingConfig::Last => hidden[(range[1] - 1) * d..range[1] * d].copy_from_slice(grad),
                PoolingConfig::Mean => {
                    let n = (range[1] - range[0]) as f32;
                    for row in hidden[range[0] * d..range[1] * d].chunks_exact_mut(d) {
                        row.iter_mut().zip(grad).for_each(|(x, grad)| *x = grad / n);
                    }
                }
            }
        }
        hidden
    }
}

/// All first texts, then all second ones, then the others.
fn in_order<'a>(examples: &[&'a Example]) -> Vec<&'a [u32]> {
    let nth = |n: usize| examples.iter().filter_map(move |example| example.texts.get(n).map(Vec::as_slice));
    let others = examples.iter().flat_map(|example| example.texts.iter().skip(2).map(Vec::as_slice));
    nth(0).chain(nth(1)).chain(others).collect()
}

/// Texts in batches of at most so many tokens and texts.
fn pieces(texts: &[&[u32]], tokens: usize, sequences: usize) -> Vec<TrainBatch> {
    let mut pieces: Vec<TrainBatch> = Vec::new();
    for text in texts {
        let fits = pieces
            .last()
            .is_some_and(|piece| piece.ids.len() + text.len() <= tokens && piece.sequences() < sequences);
        if !fits {
            pieces.push(TrainBatch { cu_seqlens: vec![0], ..TrainBatch::default() });
        }
        if let Some(piece) = pieces.last_mut() {
            piece.ids.extend_from_slice(text);
            piece.cu_seqlens.push(piece.ids.len());
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::super::Target;
    use super::*;
    use crate::config::Config;
    use crate::cpu::Cpu;
    use crate::train::{Start, TrainOptions};

    fn text(key: u64, len: usize) -> Vec<u32> {
        (0..len).map(|i| (uniform(key, i as u64) * 64.0) as u32).collect()
    }

    fn pairs(n: usize) -> Examples {
        let all = (0..n as u64)
            .map(|i| Example {
                texts: vec![text(3 * i, 5 + i as usize), text(3 * i + 1, 9), text(3 * i + 2, 4)],
                target: Target::Pair,
            })
            .collect();
        Examples { all, labels: Vec::new(), hash: [0; 32] }
    }

    fn trainer(texts: &Texts, max_tokens: usize, steps: u64) -> Trainer<Cpu> {
        let config = Config::from_json(r#"{"d_model":16,"n_layer":2,"vocab_size":64}"#).unwrap();
        let mut options = TrainOptions { max_tokens, extra: texts.extra(16), ..TrainOptions::default() };
        options.schedule.lr = 1e-2;
        options.schedule.steps = steps;
        Trainer::new(Cpu::new(1).unwrap(), config, Start::Seed(1), options).unwrap()
    }

    #[test]
    fn gradients_of_pieces_are_those_of_the_whole() {
        let objective = ObjectiveConfig::Contrastive { pooling: PoolingConfig::Mean, temperature: 0.1 };
        let texts = Texts::new(objective, pairs(8), 8, 0.0, 1, 0);
        let run = |max_tokens| {
            let mut trainer = trainer(&texts, max_tokens, 1);
            let (report, tokens) = texts.step(&mut trainer, 0).unwrap();
            assert_eq!(tokens, 8 * 18 + 28);
            let grad = trainer.gradient("backbone.layers.0.mixer.in_proj.weight").unwrap();
            (report.loss, grad)
        };
        let ((whole, expected), (parts, got)) = (run(1000), run(24));
        assert!((whole - parts).abs() < 1e-6, "{whole} {parts}");
        let norm = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        let error = std::iter::zip(&expected, &got).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(norm > 1e-4 && error < 1e-5 * norm, "{error} of {norm}");
    }

    #[test]
    fn pairs_become_alike() {
        let objective = ObjectiveConfig::Contrastive { pooling: PoolingConfig::Last, temperature: 0.1 };
        let texts = Texts::new(objective, pairs(8), 8, 0.0, 1, 0);
        let mut trainer = trainer(&texts, 1000, 40);
        let losses: Vec<f64> = (0..40).map(|i| texts.step(&mut trainer, i).unwrap().0.loss).collect();
        // 16 candidates: chance is ln 16 = 2.77.
        assert!(losses[0] > 1.5 && losses[39] < 0.1, "{losses:?}");
    }

    #[test]
    fn labels_are_learned_and_held_out_ones_are_found() {
        // The label is whether an even or an odd token comes first in a text of otherwise even ones.
        let all: Vec<Example> = (0..120)
            .map(|i| {
                let mut ids: Vec<u32> = text(i, 6).iter().map(|id| id / 8 * 2).collect();
                ids[2] += (i % 2) as u32;
                Example { texts: vec![ids], target: Target::Label((i % 2) as usize) }
            })
            .collect();
        let examples = Examples { all, labels: vec!["even".into(), "odd".into()], hash: [0; 32] };
        let objective = ObjectiveConfig::Classify { pooling: PoolingConfig::Mean };
        let texts = Texts::new(objective, examples, 16, 0.2, 10, 5);
        assert!((12..36).contains(&texts.held_out.len()));
        let mut trainer = trainer(&texts, 1000, 60);
        let before = texts.validate(&mut trainer).unwrap().unwrap();
        assert!((before.loss - 2f64.ln()).abs() < 1e-6, "an empty head knows nothing: {before:?}");
        for i in 0..60 {
            texts.step(&mut trainer, i).unwrap();
        }
        let after = texts.validate(&mut trainer).unwrap().unwrap();
        assert!(after.loss < 0.2 && after.accuracy > Some(0.9), "{after:?}");
    }
}
