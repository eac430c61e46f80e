//! Training: data, the step, runs.

pub mod data;
