//! Log-probabilities of given tokens (`cuda/logprobs/`).

use crate::buffer::{Float, Rows};
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::params::TokenLogprobs;

/// `log_softmax(logits[i])[targets[i]]`, computed without overflow and read back; logits [n, vocab] f32.
///
/// # Errors
/// [`crate::Error::Lost`], [`crate::Error::OutOfMemory`].
///
/// # Panics
/// If a target is no column, or the view does not lie within its buffer.
pub fn token_logprobs(device: &Device, logits: Rows, targets: &[u32], out: &mut [f32]) -> Result<()> {
    let (count, vocabulary) = (targets.len(), logits.cols);
    assert_eq!(out.len(), count, "log-probabilities");
    assert!(targets.iter().all(|target| (*target as usize) < vocabulary), "a target beyond {vocabulary}");
    let list = device.list(&targets.iter().map(|target| *target as i32).collect::<Vec<_>>())?;
    let results = device.workspace(count)?;
    let params = TokenLogprobs {
        logits: logits.pointer(count, vocabulary, Float::F32),
        targets: list.pointer(0),
        out: results,
        logits_stride: logits.stride as i64,
        vocabulary: vocabulary as i32,
        ..TokenLogprobs::default()
    };
    device.launch(Kernel::plain("token_logprobs"), Grid::new([count, 1, 1], 512), &params)?;
    device.download(results, out)
}
