//! A sequence of tokens on its way through the model, and what is to be done with what comes out.

use std::sync::Arc;

use super::generation::Generation;
use super::intake::{EmbedGroup, Reply};
use super::queue::Place;
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
    /// How many tokens from its start the state is to be kept for others.
    pub checkpoint: Option<usize>,
    /// Where it stands among others.
    pub place: Place,
    pub work: Work,
}

pub(crate) enum Work {
    Generate(Box<Generation>),
    /// `tokens` of them; their state is kept at the end.
    CachePrefix {
        tokens: usize,
        reply: Reply,
    },
    Append {
        session: Loan,
        context: Context,
        tokens: usize,
        reply: Reply,
    },
    Forward {
        all: bool,
        data: Vec<f32>,
        reply: Reply,
    },
    Score {
        ids: Vec<u32>,
        logprobs: Vec<f32>,
        reply: Reply,
    },
    Embed {
        group: Arc<EmbedGroup>,
        index: usize,
    },
}
impl Sequence {
    pub fn new(ids: Vec<u32>, place: Place, work: Work) -> Self {
        Self { ids, done: 0, initial: None, begun: false, checkpoint: None, place, work }
    }

    pub fn append(ids: Vec<u32>, place: Place, session: Loan, reply: Reply) -> Self {
        let mut context = session.context();
        let tokens = ids.len();
        // All but the last are consumed now; that one waits until generation needs its logits.
        let mut consumed: Vec<u32> = context.pending.into_iter().chain(ids.iter().copied()).collect();
        context.pending = consumed.pop();
        context.remember(&ids, 0);
        // Where nothing is consumed (a restored session may have no pending token), the state stays what it is.
        let initial = if consumed.is_empty() { None } else { context.state.take() };
        Self {
            ids: consumed,
            done: 0,
            initial,
            begun: false,
            checkpoint: None,
            place,
            work: Work::Append { session, context, tokens, reply },
        }
    }

    pub fn cache_prefix(ids: Vec<u32>, place: Place, reply: Reply) -> Self {
        let tokens = ids.len();
        Self { checkpoint: Some(tokens), ..Self::new(ids, place, Work::CachePrefix { tokens, reply }) }
    }

    pub fn score(ids: Vec<u32>, place: Place, reply: Reply) -> Self {
        // The last token is only predicted.
        let consumed = ids[..ids.len() - 1].to_vec();
        Self::new(consumed, place, Work::Score { ids, logprobs: Vec::new(), reply })
    }

    pub fn generate(
        ids: Vec<u32>,
        place: Place,
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
            cached_tokens: 0,
            admitted: None,
            first_token: None,
            last_token: None,
            options,
            session,
            context,
            reply,
        };
        Self { initial, ..Self::new(ids, place, Work::Generate(Box::new(generation))) }
    }

    pub fn is_cancelled(&self) -> bool {
        match &self.work {
            Work::Generate(generation) => generation.reply.is_cancelled(),
            Work::CachePrefix { reply, .. }
            | Work::Append { reply, .. }
            | Work::Forward { reply, .. }
            | Work::Score { reply, .. } => reply.is_cancelled(),
            Work::Embed { group, .. } => group.is_cancelled(),
        }
    }

    /// Whether its consumer wants no more for now.
    pub fn is_paused(&self) -> bool {
        matches!(&self.work, Work::Generate(generation) if generation.reply.is_paused())
    }

    /// Whether its prompt is computed and its slot has the state after all tokens but the pending one.
    pub fn decodes(&self) -> bool {
        matches!(&self.work, Work::Generate(generation) if !generation.tokens.is_empty())
    }

    pub fn has_session(&self) -> bool {
        matches!(&self.work, Work::Generate(generation) if generation.session.is_some())
    }

    /// Whether it decodes and someone waits for each token.
    pub fn streams(&self) -> bool {
        matches!(&self.work, Work::Generate(generation)
            if generation.options.stream && !generation.tokens.is_empty())
    }

    pub fn left(&self) -> usize {
        self.ids.len() - self.done
    }

    /// Tokens that the next step may compute: not beyond a state that is to be kept.
    pub fn next(&self) -> usize {
        match self.checkpoint {
            Some(checkpoint) if checkpoint > self.done => checkpoint - self.done,
            _ => self.left(),
        }
    }

    /// How many of its first tokens may come from the prefix cache: it begins with a zero state, and needs nothing of
    /// them but the state after them.
    pub fn cacheable(&self) -> usize {
        // The cache's states are those of the model alone.
        let fresh = self.initial.is_none() && !self.begun && self.done == 0 && self.place.adapter.is_none();
        match self.work {
            Work::CachePrefix { .. } if fresh => self.ids.len(),
            Work::Generate(_) | Work::Append { .. } | Work::Forward { all: false, .. } if fresh => {
                self.ids.len().saturating_sub(1)
            }
            _ => 0,
        }
    }

    /// Ends it because its user wants no more. What a session has generated so far stays in it: `initial` is its
    /// state then.
    pub fn abort(mut self) {
        let initial = self.initial.take();
        if let Work::Generate(generation) = &mut self.work
            && !generation.tokens.is_empty()
            && let (Some(state), Some(session)) = (initial, generation.session.take())
        {
            generation.context.state = Some(state);
            session.store(generation.context.clone());
        }
        self.fail(Error::Aborted);
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
            Work::CachePrefix { reply, .. } | Work::Forward { reply, .. } | Work::Score { reply, .. } => {
                reply.finish(Err(error));
            }
            Work::Embed { group, .. } => group.fail(error),
        }
    }
}
