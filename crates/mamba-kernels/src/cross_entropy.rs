//! The loss of next-token prediction over a large vocabulary, and its gradient in place of the logits
//! (`cuda/cross_entropy/`). Rows are independent: whoever has the logits in pieces calls for each piece.

use crate::buffer::{Buffer, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::params::{self, CrossEntropy};

/// `loss[i] = log Σ exp(logits[i]) − logits[i][targets[i]]`, 0 for a negative target; logits [rows, vocab], one target a
/// row, loss [rows] f32. NaN or +infinity among a row's logits makes its loss NaN.
///
/// # Errors
/// [`Error::Unsupported`] unless the vocabulary has 1 to 2³⁰ tokens; [`Error::OutOfMemory`], [`Error::Lost`].
///
/// # Panics
/// If a target is no column, a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn forward(device: &Device, logits: Rows, targets: &[i32], loss: &mut Buffer) -> Result<()> {
    launch(device, logits, targets, None, 0.0, loss)
}

/// The same losses, and `logits ← scale · (softmax(logits) − one at the target)`, the gradient by the logits of `scale`
/// times the sum of the losses (`scale` = 1 / rows for their mean), rounded to their type; 0 for a negative target. To each
/// loss `z_loss` times the square of log Σ exp(logits[i]) is added.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn forward_backward(
    device: &Device,
    logits: RowsMut,
    targets: &[i32],
    scale: f32,
    z_loss: f32,
    loss: &mut Buffer,
) -> Result<()> {
    launch(device, logits.view(), targets, Some(scale), z_loss, loss)
}

/// The logits are written where there is a scale.
fn launch(
    device: &Device,
    logits: Rows,
    targets: &[i32],
    scale: Option<f32>,
    z_loss: f32,
    loss: &mut Buffer,
) -> Result<()> {
    let (rows, vocabulary, float) = (targets.len(), logits.cols, logits.float());
    Error::check("vocab_size", vocabulary, 1..=1 << 30, "1 to 1073741824")?;
    assert!(
        targets.iter().all(|target| (*target as i64) < vocabulary as i64),
        "a target beyond {vocabulary}"
    );
    let list = device.list(targets)?;
    let params = CrossEntropy {
        logits: logits.pointer(rows, vocabulary, float),
        targets: list.pointer(0),
        loss: loss.f32s(rows, "losses"),
        stride: logits.stride as i64,
        vocab: vocabulary as i32,
        gradient: i32::from(scale.is_some()),
        scale: scale.unwrap_or(0.0),
        z_loss,
    };
    let grid = Grid::new([rows, 1, 1], params::cross_entropy_threads(float.bytes()) as u32);
    device.launch(Kernel::of("cross_entropy_loss", float), grid, &params)
}
