//! `log_softmax(logits)[target]` per row: `logit[target] − log Σ exp(logit)`, shifted by the row's maximum.

pub mod cpu;
pub mod reference;
