//! A sequence of tokens on its way through the model, and what is to be done with what comes out.

use std::sync::Arc;
use std::time::Instant;

use super::generation::Generation;
use super::intake::{EmbedGroup, Reply};
use super::request::GenerateOptions;
use super::session::{Context, Loan};
use crate::error::Error;
use crate::generate::Sampler;
use crate::text::StopMatcher;

/// Tokens to run through the model, and what to do with what comes out.
pub(crate) struct Sequence {
    /// Tokens that the state does not know yet are `ids[done..]`.
    pub ids: Vec<u32>,
    pub done: usize,
    /// The state to begin with; `None`: zero.
    pub initial: Option<Arc<[f32]>>,
    /// Whether its slot holds its state, and not that of the slot's last user.
    pub begun: bool,
    pub work: Work,
}

pub(crate) enum Work {
    Generate(Box<Generation>),
    Append { session: Loan, context: Context, tokens: usize, reply: Reply },
    Forward { all: bool, data: Vec<f32>, reply: Reply },
    Score { ids: Vec<u32>, logprobs: Vec<f32>, reply: Reply },
    Embed { group: Arc<EmbedGroup>, index: usize },
}
impl Sequence {
    pub fn new(ids: Vec<u32>, work: Work) -> Self {
        Self { ids, done: 0, initial: None, begun: false, work }
    }

    pub fn append(ids: Vec<u32>, session: Loan, reply: Reply) -> Self {
        let mut context = session.context();
        let tokens = ids.len();
        // All but the last are consumed now; that one waits until generation needs its logits.
        let mut consumed: Vec<u32> = context.pending.into_iter().chain(ids.iter().copied()).collect();
        context.pending = consumed.pop();
        context.remember(&ids, 0);
        let initial = context.state.take();
        Self {
            ids: consumed,
            done: 0,
            initial,
            begun: false,
            work: Work::Append { session, context, tokens, reply },
        }
    }

    pub fn score(ids: Vec<u32>, reply: Reply) -> Self {
        // The last token is only predicted.
        let consumed = ids[..ids.len() - 1].to_vec();
        Self::new(consumed, Work::Score { ids, logprobs: Vec::new(), reply })
    }

    pub fn generate(
        ids: Vec<u32>,
        mut options: GenerateOptions,
        stop: StopMatcher,
        session: Option<Loan>,
        reply: Reply,
    ) -> Self {
        let (ids, mut context) = match &session {
            Some(session) => {
                let context = session.context();
                (context.pending.into_iter().collect(), context)
            }
            None => {
                let mut context = Context {
                    state: None,
                    tokens: 0,
                    pending: None,
                    seed: options.sampler.seed,
                    window: Vec::new(),
                };
                context.remember(&ids, options.sampler.penalty_window);
                context.pending = ids.last().copied();
                (ids, context)
            }
        };
        if options.seed.is_none() {
            options.sampler.seed = context.seed;
        }
        context.seed = options.sampler.seed;
        let initial = context.state.take();
        let generation = Generation {
            sampler: Sampler::new(options.sampler.clone(), &context.window),
            stop,
            detokenizer: None,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            prompt_tokens: ids.len(),
            admitted: Instant::now(),
            first_token: None,
            options,
            session,
            context,
            reply,
        };
        Self { ids, done: 0, initial, begun: false, work: Work::Generate(Box::new(generation)) }
    }

    pub fn is_cancelled(&self) -> bool {
        match &self.work {
            Work::Generate(generation) => generation.reply.is_cancelled(),
            Work::Append { reply, .. } | Work::Forward { reply, .. } | Work::Score { reply, .. } => {
                reply.is_cancelled()
            }
            Work::Embed { group, .. } => group.is_cancelled(),
        }
    }

    pub fn left(&self) -> usize {
        self.ids.len() - self.done
    }

    /// Ends it without a result.
    pub fn fail(self, error: Error) {
        match self.work {
            // The session is free again before its user hears of the failure.
            Work::Generate(generation) => {
                let Generation { session, reply, .. } = *generation;
                drop(session);
                reply.finish(Err(error));
            }
            Work::Append { session, reply, .. } => {
                drop(session);
                reply.finish(Err(error));
            }
            Work::Forward { reply, .. } | Work::Score { reply, .. } => reply.finish(Err(error)),
            Work::Embed { group, .. } => group.fail(error),
        }
    }
}
