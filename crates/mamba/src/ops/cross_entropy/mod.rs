//! The loss of next-token prediction, per row of logits and target: `log Σ exp(logit) − logit[target]`, that is
//! minus [`token_logprob`](super::logprobs). Rows of target −1 are ignored: their loss and gradient are 0.

pub mod reference;
