//! Vectors of texts on their way from the device: a step's are looked at while the next one runs.

use std::sync::Arc;

use super::intake::EmbedGroup;
use super::worker::Worker;
use crate::backend::{Backend, Later};
use crate::error::{Error, Result};

/// A text whose last token a step has computed; its pooled hidden states lie in row `slot`.
pub(super) struct Pooled {
    pub group: Arc<EmbedGroup>,
    pub index: usize,
    pub tokens: usize,
    pub slot: usize,
}

/// The texts that a step has finished, and their rows, from slot `first` on.
pub(super) struct Landing {
    texts: Vec<Pooled>,
    first: usize,
    rows: Later,
}

impl<B: Backend> Worker<B> {
    /// Queues the copy of this step's finished texts. False if there are none.
    pub(super) fn send_texts(&mut self) -> Result<bool> {
        let texts = std::mem::take(&mut self.pooled_texts);
        let slots = texts.iter().map(|text| text.slot);
        let (Some(first), Some(last)) = (slots.clone().min(), slots.max()) else { return Ok(false) };
        let d_model = self.info.config.d_model;
        match self.backend.read_later(&self.pooled, first * d_model, (last + 1 - first) * d_model) {
            Ok(rows) => self.landing.push_back(Landing { texts, first, rows }),
            Err(error) => {
                self.pooled_texts = texts;
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Hands out the vectors of all steps but, where they were `sent` just now and a turn follows, of this one.
    pub(super) fn collect_texts(&mut self, sent: bool) -> Result<()> {
        let follows = !self.running.is_empty() || !self.waiting.is_empty();
        while self.landing.len() > usize::from(sent && follows) {
            let Some(Landing { texts, first, rows }) = self.landing.pop_front() else { return Ok(()) };
            let rows = match rows() {
                Ok(rows) => rows,
                Err(error) => {
                    self.pooled_texts.extend(texts);
                    return Err(error);
                }
            };
            let d_model = self.info.config.d_model;
            for Pooled { group, index, tokens, slot } in texts {
                let row = &rows[(slot - first) * d_model..][..d_model];
                match row.iter().all(|x| x.is_finite()) {
                    true => group.add(index, tokens, &group.options.vector(row.to_vec(), tokens)),
                    false => group.fail(Error::VectorNotFinite { index }),
                }
            }
        }
        Ok(())
    }

    /// Ends all that are on their way.
    pub(super) fn fail_texts(&mut self, error: impl Fn() -> Error) {
        let landing = self.landing.drain(..).flat_map(|landing| landing.texts);
        self.pooled_texts.drain(..).chain(landing).for_each(|text| text.group.fail(error()));
    }
}
