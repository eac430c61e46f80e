//! Predicting the next token.

use std::sync::Arc;

use super::Validation;
use crate::error::{Error, Result};
use crate::train::data::{Batches, Layout, Order, Span, TokenBatch, TokenFile};
use crate::train::{StepReport, TrainBackend, TrainBatch, Trainer};

/// Batches of tokens, and how they are learned from.
pub struct Language {
    batches: Batches,
    held_out: Option<Batches>,
    order: Order,
    accumulate: u64,
    validation_batches: u64,
}

impl Language {
    /// Learns from `train`, looks at `held_out` (which may be empty).
    ///
    /// # Errors
    /// `DATA_EMPTY`; `OPTION_INVALID` for accumulation of carried rows.
    pub fn new(
        file: &Arc<TokenFile>,
        train: &[Span],
        held_out: &[Span],
        layout: Layout,
        accumulate: usize,
        validation_batches: u64,
    ) -> Result<Self> {
        if layout.order == Order::Carried && accumulate != 1 {
            let expected = "1 with `batch.order` `carried`, where each step goes on from the one before";
            return Err(Error::option("batch.accumulate", accumulate, expected));
        }
        let held_layout = Layout { order: held_out_order(layout.order), ..layout };
        Ok(Self {
            batches: Batches::new(Arc::clone(file), train, layout)?,
            held_out: match held_out {
                [] => None,
                spans => Some(Batches::new(Arc::clone(file), spans, held_layout)?),
            },
            order: layout.order,
            accumulate: accumulate as u64,
            validation_batches,
        })
    }

    /// Sequences of a batch at most.
    #[must_use]
    pub fn max_sequences(train: &[Span], held_out: &[Span], layout: Layout) -> usize {
        let held_layout = Layout { order: held_out_order(layout.order), ..layout };
        most_sequences(train, layout).max(most_sequences(held_out, held_layout))
    }

    /// Batches of an epoch.
    #[must_use]
    pub fn per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    /// Step `number` of the run, from 0, and the tokens that it learned from.
    ///
    /// # Errors
    /// What reading the data and [`Trainer::step`] give.
    pub fn step<B: TrainBackend>(
        &mut self,
        trainer: &mut Trainer<B>,
        number: u64,
    ) -> Result<(StepReport, usize)> {
        let numbers = number * self.accumulate..(number + 1) * self.accumulate;
        let batches = numbers.map(|number| self.batches.batch(number)).collect::<Result<Vec<_>>>()?;
        if self.order == Order::Carried {
            let before = if number > 0 { Some(self.batches.batch(number - 1)?) } else { None };
            go_on(trainer, before.as_ref(), &batches[0])?;
        }
        let tokens = batches.iter().map(|batch| batch.ids.len()).sum();
        let batches: Vec<_> = batches.into_iter().map(|batch| to_train(batch, self.order)).collect();
        Ok((trainer.step(&batches)?, tokens))
    }

    /// The loss on the held-out part; `None` where nothing is held out.
    ///
    /// # Errors
    /// What reading the data and [`Trainer::loss`] give.
    pub fn validate<B: TrainBackend>(&mut self, trainer: &mut Trainer<B>) -> Result<Option<Validation>> {
        let Some(held_out) = &mut self.held_out else { return Ok(None) };
        let carried = if self.order == Order::Carried { trainer.carried_states()? } else { Vec::new() };
        let (mut sum, mut counted) = (0.0, 0);
        for number in 0..self.validation_batches {
            let Some(batch) = held_out.in_order(number)? else { break };
            let (loss, tokens) = trainer.loss(&to_train(batch, self.order))?;
            (sum, counted) = (sum + loss, counted + tokens);
        }
        if !carried.is_empty() {
            trainer.set_carried_states(&carried)?;
        }
        Ok(Some(Validation { loss: sum / counted as f64, accuracy: None }))
    }
}

/// Held-out text is read from the beginning, or with resets; not with states that training carries.
fn held_out_order(order: Order) -> Order {
    if order == Order::Windows { Order::Windows } else { Order::Documents }
}

/// States are kept, and take room, only where rows go on.
fn to_train(batch: TokenBatch, order: Order) -> TrainBatch {
    let carried = match order {
        Order::Carried => batch.continues.iter().map(Option::is_some).collect(),
        Order::Documents | Order::Windows => Vec::new(),
    };
    TrainBatch {
        ids: batch.ids,
        targets: batch.targets.into_iter().map(|id| id as i32).collect(),
        cu_seqlens: batch.cu_seqlens,
        carried,
    }
}

/// Makes the states that a batch goes on from ready. A sequence goes on from the state of the one in its own place of the
/// batch before; where the row's last sequence was in another, the states change places.
fn go_on<B: TrainBackend>(
    trainer: &mut Trainer<B>,
    before: Option<&TokenBatch>,
    next: &TokenBatch,
) -> Result<()> {
    trainer.keep_states(next.continues.len())?;
    let Some(before) = before else { return Ok(()) };
    let from: Vec<Option<usize>> = next
        .continues
        .iter()
        .map(|row| row.and_then(|row| before.ends.iter().position(|end| *end == Some(row))))
        .collect();
    if from.iter().enumerate().all(|(i, from)| from.is_none_or(|from| from == i)) {
        return Ok(());
    }
    let states = trainer.carried_states()?;
    let missing = || Error::Internal { message: "a carried state is missing".into() };
    let arranged = from
        .iter()
        .map(|from| match from {
            Some(from) => states.get(*from).cloned().ok_or_else(missing),
            // Not read.
            None => states.first().cloned().ok_or_else(missing),
        })
        .collect::<Result<Vec<_>>>()?;
    trainer.set_carried_states(&arranged)
}

/// As many documents as the shortest ones that fill a batch, and what is cut.
fn most_sequences(spans: &[Span], Layout { rows, length, order, .. }: Layout) -> usize {
    if order == Order::Windows {
        return rows;
    }
    let mut lengths: Vec<u64> = spans.iter().map(|span| span.len).filter(|len| *len > 1).collect();
    lengths.sort_unstable();
    let mut left = (rows * length) as u64;
    let documents = lengths.iter().take_while(|len| {
        let fits = left > 0;
        left = left.saturating_sub(**len - 1);
        fits
    });
    // One more for each row's beginning or cut.
    documents.count() + 2 * rows + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::cpu::Cpu;
    use crate::train::data::{TokenWriter, split};
    use crate::train::{Start, TrainOptions};

    fn config() -> Config {
        Config::from_json(r#"{"d_model":16,"n_layer":2,"vocab_size":64}"#).unwrap()
    }

    /// Documents whose next token follows from the one before.
    fn file(lengths: &[usize]) -> (tempfile::TempDir, Arc<TokenFile>) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(&folder.path().join("t"), 64).unwrap();
        for (d, len) in lengths.iter().enumerate() {
            let ids: Vec<u32> = (0..*len).map(|t| ((7 * d + 3 * t) % 64) as u32).collect();
            writer.extend(&ids).unwrap();
            writer.end_document();
        }
        let file = Arc::new(writer.finish().unwrap());
        (folder, file)
    }

    fn trainer(tokens: usize) -> Trainer<Cpu> {
        let options = TrainOptions {
            max_tokens: tokens,
            max_sequences: 64,
            weight_decay: 0.0,
            ..TrainOptions::default()
        };
        Trainer::new(Cpu::new(1).unwrap(), config(), Start::Seed(1), options).unwrap()
    }

    /// A row that is carried over batches predicts as one whole row does, resets included.
    #[test]
    fn carried_rows_predict_as_whole_ones() {
        let (_folder, file) = file(&[50, 3, 29, 70, 11]);
        let (spans, _) = split(&file, 0.0, 0);
        let layout = |length| Layout { rows: 2, length, order: Order::Carried, seed: 3 };
        let language = |length| Language::new(&file, &spans, &[], layout(length), 1, 1).unwrap();
        let (mut whole, mut parts) = (language(72), language(12));
        assert_eq!((whole.batches.per_epoch(), parts.batches.per_epoch()), (1, 6));
        let all = to_train(whole.batches.batch(0).unwrap(), whole.order);
        let (expected, counted) = trainer(144).loss(&all).unwrap();
        let mut trainer = trainer(24);
        let (mut sum, mut tokens) = (0.0, 0);
        for number in 0..6 {
            let batch = parts.batches.batch(number).unwrap();
            let before = if number > 0 { Some(parts.batches.batch(number - 1).unwrap()) } else { None };
            go_on(&mut trainer, before.as_ref(), &batch).unwrap();
            let (loss, n) = trainer.loss(&to_train(batch, parts.order)).unwrap();
            (sum, tokens) = (sum + loss, tokens + n);
        }
        assert_eq!(tokens, counted);
        assert!((sum - expected).abs() < 1e-5 * expected, "{sum} and {expected}");
    }

    #[test]
    fn validation_does_not_disturb_carried_states() {
        let (_folder, file) = file(&[50, 40, 60, 33, 45, 20]);
        let (spans, held) = split(&file, 0.2, 0);
        let run = |validate: bool| {
            let layout = Layout { rows: 2, length: 10, order: Order::Carried, seed: 3 };
            let mut language = Language::new(&file, &spans, &held, layout, 1, 2).unwrap();
            let mut trainer = trainer(20);
            (0..8)
                .map(|number| {
                    if validate {
                        assert!(language.validate(&mut trainer).unwrap().unwrap().loss > 0.0);
                    }
                    language.step(&mut trainer, number).unwrap().0.loss
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false));
    }
}
