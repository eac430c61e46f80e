//! A text in the making: takes token after token, says when it ends.

use std::time::Instant;

use super::ModelInfo;
use super::intake::Reply;
use super::request::{Event, FinishReason, GenerateOptions, Output, TokenEvent, Usage};
use super::session::{Context, Loan};
use super::stats::Meter;
use crate::backend::Backend;
use crate::error::Result;
use crate::generate::{Sampled, Sampler};
use crate::model::Slots;
use crate::text::{Detokenizer, StopMatcher};

/// A text in the making.
pub(crate) struct Generation {
    pub options: GenerateOptions,
    pub session: Option<Loan>,
    /// Of the session, or of the one-shot prompt (whose state is dropped in the end).
    pub context: Context,
    pub sampler: Sampler,
    pub stop: StopMatcher,
    pub detokenizer: Option<Detokenizer>,
    pub text: String,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    /// When it first got a slot.
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub reply: Reply,
}

impl Generation {
    /// Takes the next token in; `Some` when it is the last.
    pub fn take(
        &mut self,
        sampled: Sampled,
        info: &ModelInfo,
        meter: &Meter,
    ) -> Result<Option<FinishReason>> {
        let Sampled { token, logprob, top } = sampled;
        let now = Instant::now();
        let before = self.last_token.replace(now).unwrap_or(self.reply.since());
        meter.token(self.first_token.is_none(), now - before);
        self.first_token.get_or_insert(now);
        self.sampler.observe(token);
        self.context.remember(&[token], self.options.sampler.penalty_window);
        self.context.pending = Some(token);
        self.tokens.push(token);
        self.logprobs.push(logprob);
        let eos = !self.options.ignore_eos && info.eos_token_ids.contains(&token);
        let mut finish = (eos || self.options.stop_tokens.contains(&token)).then_some(FinishReason::Stop);
        let mut text = String::new();
        if finish.is_none()
            && let Some(detokenizer) = &mut self.detokenizer
        {
            let step = self.stop.push(&detokenizer.push(token)?);
            text = step.emit;
            finish = step.matched.map(|_| FinishReason::Stop);
        }
        if finish.is_none() && self.tokens.len() >= self.options.max_tokens {
            finish = Some(FinishReason::Length);
        }
        // At the end, what was held back is text after all, unless it holds a stop string.
        if finish.is_some() {
            let mut rest = String::new();
            if let (Some(detokenizer), None) = (&mut self.detokenizer, &self.session) {
                rest = detokenizer.flush()?;
            }
            // An incomplete character never becomes text.
            let steps =
                [self.stop.push(rest.trim_end_matches(char::REPLACEMENT_CHARACTER)), self.stop.flush()];
            for step in steps {
                text.push_str(&step.emit);
                if step.matched.is_some() {
                    finish = Some(FinishReason::Stop);
                    break;
                }
            }
        }
        self.text.push_str(&text);
        if self.options.stream {
            self.reply.send(Event::Token(TokenEvent { text, token, logprob, top }));
        }
        Ok(finish)
    }

    /// Stores what was generated in the session, if there is one.
    pub fn keep<B: Backend>(&mut self, backend: &mut B, slots: &Slots<B>, slot: usize) -> Result<()> {
        if let Some(session) = self.session.take() {
            self.context.state = Some(slots.read(backend, slot)?.into());
            session.store(self.context.clone());
        }
        Ok(())
    }

    pub fn finish(self, finish_reason: FinishReason) {
        let first = self.first_token.unwrap_or_else(Instant::now);
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.tokens.len(),
            prefill_seconds: self.admitted.map_or(0.0, |admitted| (first - admitted).as_secs_f64()),
            decode_seconds: first.elapsed().as_secs_f64(),
        };
        let Self { text, tokens, logprobs, .. } = self;
        self.reply.finish(Ok(Output::Generated { text, tokens, logprobs, finish_reason, usage }));
    }
}
