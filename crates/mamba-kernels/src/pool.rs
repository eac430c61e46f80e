//! Pooling of hidden states over each sequence of a batch (`cuda/pool/`).

use crate::batch::Batch;
use crate::buffer::{Float, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::Result;
use crate::params::{self, Pool};

/// What becomes of a sequence's row of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    None,
    /// The sum over the tokens, added to what is there unless the sequence begins fresh.
    Sum,
    /// The last token's.
    Last,
}

/// Pools `hidden` [tokens, d_model] into `out` [slots, d_model] f32, each sequence into its slot's row, as `kinds` (one
/// a sequence) says. Empty sequences leave their row as it is.
///
/// # Errors
/// [`crate::Error::Lost`], [`crate::Error::OutOfMemory`].
///
/// # Panics
/// If a slot has no row, a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn pool(device: &Device, batch: &Batch, kinds: &[Kind], hidden: Rows, out: RowsMut) -> Result<()> {
    let (sequences, channels, float) = (batch.sequences(), hidden.cols, hidden.float());
    assert_eq!(kinds.len(), sequences, "kinds of pooling");
    let kinds = device.list(&kinds.iter().map(|kind| *kind as i32).collect::<Vec<_>>())?;
    let params = Pool {
        hidden: hidden.pointer(batch.tokens(), channels, float),
        out: out.pointer(if sequences == 0 { 0 } else { batch.last_slot + 1 }, channels, Float::F32),
        cu_seqlens: batch.cu_seqlens(),
        slots: batch.slots(),
        fresh: batch.fresh(),
        kinds: kinds.pointer(0),
        hidden_stride: hidden.stride as i64,
        out_stride: out.stride as i64,
        channels: channels as i32,
        ..Pool::default()
    };
    let columns = channels.div_ceil(params::pool_channels(float.bytes()));
    device.launch(Kernel::of("pool", float), Grid::new([columns, sequences, 1], 256), &params)
}
