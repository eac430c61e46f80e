//! Batches from a token file. A batch is a function of the seed and its number, so the number is all of a run's
//! position in its data.

use std::sync::Arc;

use super::split::permutation;
use super::{Span, TokenFile};
use crate::error::{Error, Result};
use crate::generate::philox::uniform;

/// In what order tokens are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Rows of equal length from places drawn at random, across the ends of documents: each begins from a zero state,
    /// none is short. How the models of the paper were trained.
    Windows,
    /// All documents once an epoch, in an order drawn anew for each, packed end to end; the state is reset at every
    /// document, and where one is longer than a row.
    Documents,
    /// As `Documents`, but each row goes on where it ended in the batch before, with the state that it had there:
    /// truncated backpropagation through documents of any length. The state is reset at documents' beginnings only.
    Carried,
}

/// The shape of batches.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row: the longest stretch that gradients go through.
    pub length: usize,
    /// In what order.
    pub order: Order,
    /// Draws places and orders.
    pub seed: u64,
}

/// A packed batch: sequences end to end, each token with the one that follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// What the model reads.
    pub ids: Vec<u32>,
    /// What it is to predict, as many.
    pub targets: Vec<u32>,
    /// Sequence `i` is `cu_seqlens[i] .. cu_seqlens[i + 1]`; begins with 0.
    pub cu_seqlens: Vec<usize>,
    /// For each sequence the row whose state of the batch before it goes on from; `None`: zero.
    pub continues: Vec<Option<usize>>,
    /// For each sequence the row that it is the end of; `None`: its state is dropped.
    pub ends: Vec<Option<usize>>,
}

impl TokenBatch {
    fn push(&mut self, tokens: &[u32], continues: Option<usize>) {
        let n = tokens.len() - 1;
        self.ids.extend_from_slice(&tokens[..n]);
        self.targets.extend_from_slice(&tokens[1..]);
        self.cu_seqlens.push(self.ids.len());
        self.continues.push(continues);
        self.ends.push(None);
    }
}

/// Batches from parts of a token file, without end: an epoch follows the other.
pub struct Batches {
    file: Arc<TokenFile>,
    /// Of at least two tokens each: one that is read, one that follows.
    spans: Vec<Span>,
    layout: Layout,
    /// Sum of all spans' tokens.
    tokens: u64,
    /// The epoch, and where in it each span begins, in the epoch's order.
    epoch: Option<(u64, Vec<(u64, u32)>)>,
}

impl Batches {
    /// Batches from `spans` of a file.
    ///
    /// # Errors
    /// `DATA_EMPTY` where there is not one token to predict, or, with windows, fewer than a row and one.
    pub fn new(file: Arc<TokenFile>, spans: &[Span], layout: Layout) -> Result<Self> {
        let windows = layout.order == Order::Windows;
        let spans: Vec<Span> = spans.iter().filter(|span| windows || span.len > 1).copied().collect();
        let tokens = spans.iter().map(|span| span.len).sum();
        let pairs = tokens - if windows { 0 } else { spans.len() as u64 };
        // Every row has at least one token to predict.
        let needed = if windows { layout.length as u64 + 1 } else { layout.rows as u64 };
        if pairs < needed {
            return Err(Error::DataEmpty {
                origin: format!("{} ({tokens} tokens to train on)", file.path().display()),
                expected: match windows {
                    true => format!("at least {needed}, a window and the token that follows"),
                    false => format!("documents with {needed} tokens that follow another, one for each row"),
                },
            });
        }
        Ok(Self { file, spans, layout, tokens, epoch: None })
    }

    /// Tokens to predict in an epoch.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        match self.layout.order {
            Order::Windows => self.tokens - 1,
            _ => self.tokens - self.spans.len() as u64,
        }
    }

    /// Batches of an epoch: what fills no whole batch at its end is left out (it comes in another epoch).
    #[must_use]
    pub fn per_epoch(&self) -> u64 {
        let Layout { rows, length, order, .. } = self.layout;
        match order {
            Order::Carried => (self.pairs() / rows as u64 / length as u64).max(1),
            _ => (self.pairs() / (rows * length) as u64).max(1),
        }
    }

    /// Batch `number` of the run, counted from 0.
    ///
    /// # Errors
    /// What reading the file gives.
    pub fn batch(&mut self, number: u64) -> Result<TokenBatch> {
        let Layout { rows, length, order, seed } = self.layout;
        let mut batch = TokenBatch { cu_seqlens: vec![0], ..TokenBatch::default() };
        if order == Order::Windows {
            let mut tokens = vec![0; length + 1];
            for row in 0..rows as u64 {
                let places = self.tokens - length as u64;
                let draw = uniform(seed, number * rows as u64 + row);
                self.read_across((draw * places as f64) as u64, &mut tokens)?;
                batch.push(&tokens, None);
            }
            return Ok(batch);
        }
        let (epoch, number) = (number / self.per_epoch(), number % self.per_epoch());
        self.enter(epoch);
        if order == Order::Documents {
            let size = (rows * length) as u64;
            let (from, to) = (number * size, ((number + 1) * size).min(self.pairs()));
            self.pieces(from, to, Some(length as u64), &mut |tokens, _| batch.push(tokens, None))?;
            return Ok(batch);
        }
        let row_pairs = self.pairs() / rows as u64;
        for row in 0..rows {
            let from = row as u64 * row_pairs + number * length as u64;
            let to = (from + length as u64).min((row as u64 + 1) * row_pairs);
            let mut first = number > 0;
            self.pieces(from, to, None, &mut |tokens, inside| {
                batch.push(tokens, (first && inside).then_some(row));
                first = false;
            })?;
            if let Some(end) = batch.ends.last_mut() {
                *end = Some(row);
            }
        }
        Ok(batch)
    }

    /// The same, for looking at data rather than learning from them: windows follow one another from the beginning, and
    /// the second epoch is `None`.
    ///
    /// # Errors
    /// What reading the file gives.
    pub fn in_order(&mut self, number: u64) -> Result<Option<TokenBatch>> {
        let Layout { rows, length, order, .. } = self.layout;
        if order != Order::Windows {
            return if number < self.per_epoch() { self.batch(number).map(Some) } else { Ok(None) };
        }
        let mut batch = TokenBatch { cu_seqlens: vec![0], ..TokenBatch::default() };
        let mut tokens = vec![0; length + 1];
        for row in 0..rows as u64 {
            let from = (number * rows as u64 + row) * length as u64;
            if from + length as u64 >= self.tokens {
                break;
            }
            self.read_across(from, &mut tokens)?;
            batch.push(&tokens, None);
        }
        Ok((!batch.ids.is_empty()).then_some(batch))
    }

    /// Reads tokens of the spans as if they lay end to end.
    fn read_across(&self, mut from: u64, mut out: &mut [u32]) -> Result<()> {
        for span in &self.spans {
            if from >= span.len {
                from -= span.len;
                continue;
            }
            let here = out.len().min((span.len - from) as usize);
            let (now, rest) = out.split_at_mut(here);
            self.file.read(span.start + from, now)?;
            if rest.is_empty() {
                break;
            }
            (out, from) = (rest, 0);
        }
        Ok(())
    }

    /// Lays the spans out in the order of an epoch.
    fn enter(&mut self, epoch: u64) {
        if self.epoch.as_ref().is_some_and(|(current, _)| *current == epoch) {
            return;
        }
        let mut at = 0;
        let order = permutation(
            self.spans.len(),
            self.layout.seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        );
        let starts = order.into_iter().map(|i| {
            let start = at;
            at += self.spans[i as usize].len - 1;
            (start, i)
        });
        self.epoch = Some((epoch, starts.collect()));
    }

    /// Hands out pairs `from .. to` of the epoch, a document at a time, cut where `longest` says: the tokens (one more
    /// than pairs), and whether the document began before them.
    fn pieces(
        &self,
        mut from: u64,
        to: u64,
        longest: Option<u64>,
        take: &mut dyn FnMut(&[u32], bool),
    ) -> Result<()> {
        let Some((_, starts)) = &self.epoch else { return Ok(()) };
        let mut at = starts.partition_point(|(start, _)| *start <= from) - 1;
        let mut tokens = Vec::new();
        while from < to {
            let (start, i) = starts[at];
            let span = self.spans[i as usize];
            let inside = from - start;
            let mut n = (span.len - 1 - inside).min(to - from);
            if let Some(longest) = longest {
                n = n.min(longest - inside % longest);
            }
            tokens.resize(n as usize + 1, 0);
            self.file.read(span.start + inside, &mut tokens)?;
            take(&tokens, inside > 0);
            from += n;
            if inside + n == span.len - 1 {
                at += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::TokenWriter;
    use super::*;

    /// Documents of these lengths; token t of document d is 100 · d + t.
    fn batches(lengths: &[usize], rows: usize, length: usize, order: Order) -> (tempfile::TempDir, Batches) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(&folder.path().join("t"), 10_000).unwrap();
        for (d, len) in lengths.iter().enumerate() {
            let ids: Vec<u32> = (0..*len as u32).map(|t| 100 * d as u32 + t).collect();
            writer.extend(&ids).unwrap();
            writer.end_document();
        }
        let file = Arc::new(writer.finish().unwrap());
        let (spans, _) = super::super::split(&file, 0.0, 0);
        let batches = Batches::new(file, &spans, Layout { rows, length, order, seed: 5 }).unwrap();
        (folder, batches)
    }

    /// Every (id, target) of some batches, with whether its sequence begins there.
    fn pairs(batches: &mut Batches, numbers: std::ops::Range<u64>) -> Vec<(u32, u32)> {
        numbers
            .flat_map(|number| {
                let batch = batches.batch(number).unwrap();
                std::iter::zip(batch.ids, batch.targets).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn windows_are_rows_of_the_stream() {
        let (_folder, mut batches) = batches(&[7, 30, 3, 60], 3, 16, Order::Windows);
        let stream: Vec<u32> = [(0, 7), (1, 30), (2, 3), (3, 60)]
            .iter()
            .flat_map(|(d, len)| (0..*len).map(move |t| 100 * d + t))
            .collect();
        let mut places = std::collections::BTreeSet::new();
        for number in 0..200 {
            let batch = batches.batch(number).unwrap();
            assert_eq!(batch.cu_seqlens, [0, 16, 32, 48]);
            assert_eq!(batch.continues, [None; 3]);
            for row in 0..3 {
                let ids = &batch.ids[16 * row..16 * (row + 1)];
                let j = stream.iter().position(|id| *id == ids[0]).unwrap();
                assert_eq!(ids, &stream[j..j + 16]);
                assert_eq!(batch.targets[16 * row..16 * (row + 1)], stream[j + 1..j + 17]);
                places.insert(j);
            }
        }
        // All of the 84 places are drawn.
        assert_eq!(places, (0..84).collect());
        // Looked at in order: 6 whole windows.
        let firsts = |batch: TokenBatch| -> Vec<u32> {
            batch.cu_seqlens.iter().map_while(|at| batch.ids.get(*at)).copied().collect()
        };
        assert_eq!(firsts(batches.in_order(0).unwrap().unwrap()), [stream[0], stream[16], stream[32]]);
        assert_eq!(firsts(batches.in_order(1).unwrap().unwrap()), [stream[48], stream[64], stream[80]]);
        assert_eq!(batches.in_order(2).unwrap(), None);
    }

    #[test]
    fn an_epoch_of_documents_holds_every_pair_once() {
        let lengths = [7, 30, 2, 60, 1, 5];
        let (_folder, mut batches) = batches(&lengths, 2, 11, Order::Documents);
        assert_eq!((batches.pairs(), batches.per_epoch()), (6 + 29 + 1 + 59 + 4, 4));
        let mut first = pairs(&mut batches, 0..4);
        assert_eq!(first.len(), 88);
        assert!(first.iter().all(|(id, target)| *target == id + 1));
        let second = pairs(&mut batches, 4..8);
        assert_ne!(first, second);
        assert_eq!(pairs(&mut batches, 0..4), first);
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 88);
        for number in 0..8 {
            let batch = batches.batch(number).unwrap();
            for sequence in batch.cu_seqlens.windows(2) {
                let ids = &batch.ids[sequence[0]..sequence[1]];
                assert!((1..=11).contains(&ids.len()));
                // One document, cut at multiples of the row's length.
                assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
                assert!(ids[0] % 100 % 11 == 0 || sequence[0] == 0);
            }
        }
    }

    #[test]
    fn carried_rows_go_on_where_they_ended() {
        let (_folder, mut batches) = batches(&[50, 3, 90, 41, 17], 3, 8, Order::Carried);
        assert_eq!((batches.pairs(), batches.per_epoch()), (196, 8));
        for epoch in 0..2 {
            let mut rows: [Vec<(u32, u32, bool)>; 3] = Default::default();
            for number in 0..8 {
                let batch = batches.batch(8 * epoch + number).unwrap();
                let mut row = 0;
                for (i, sequence) in batch.cu_seqlens.windows(2).enumerate() {
                    if number == 0 {
                        assert_eq!(batch.continues[i], None);
                    } else if let Some(from) = batch.continues[i] {
                        assert_eq!(from, row);
                    }
                    for t in sequence[0]..sequence[1] {
                        let fresh = t == sequence[0] && batch.continues[i].is_none();
                        rows[row].push((batch.ids[t], batch.targets[t], fresh));
                    }
                    if let Some(ends) = batch.ends[i] {
                        assert_eq!(ends, row);
                        row += 1;
                    }
                }
                assert_eq!(row, 3);
            }
            let mut seen = std::collections::BTreeSet::new();
            for row in rows {
                assert_eq!(row.len(), 64);
                assert!(row[0].2);
                for pair in row.windows(2) {
                    // The state is reset exactly where another document begins.
                    assert_eq!(pair[1].2, pair[1].0 != pair[0].0 + 1);
                    assert!(!pair[1].2 || pair[1].0 % 100 == 0);
                }
                assert!(row.iter().all(|(id, target, _)| *target == id + 1 && seen.insert(*id)));
            }
        }
    }

    #[test]
    fn too_little_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(&folder.path().join("t"), 10).unwrap();
        writer.extend(&[1]).unwrap();
        let file = Arc::new(writer.finish().unwrap());
        let spans = [Span { start: 0, len: 1 }];
        for order in [Order::Windows, Order::Documents, Order::Carried] {
            let layout = Layout { rows: 1, length: 4, order, seed: 0 };
            let error = Batches::new(Arc::clone(&file), &spans, layout).err().unwrap();
            assert_eq!(error.code(), "DATA_EMPTY");
        }
    }
}
