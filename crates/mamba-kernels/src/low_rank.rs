//! What adapters add to products in a decode step (`cuda/low_rank/`): each row its own adapter's `B · A · x`, or nothing.

use std::sync::Arc;

use crate::batch::Batch;
use crate::buffer::{Float, Ints, Memory, Rows, RowsMut};
use crate::device::{Device, Grid, Kernel};
use crate::error::{Error, Result};
use crate::linear::Weight;
use crate::params::{LOW_RANK_DOWN, LOW_RANK_UP, LowRank, LowRankStep};

/// The low-rank matrices of several adapters beside one matrix [outputs, inputs].
#[derive(Debug)]
pub struct LowRanks {
    /// Of each adapter a [`LowRank`].
    table: Ints,
    /// What the table points to.
    _factors: Vec<Arc<Memory>>,
    adapters: usize,
    /// The greatest rank.
    ranks: usize,
    inputs: usize,
    outputs: usize,
    float: Float,
}

impl LowRanks {
    /// Of each adapter A [rank, inputs] and B [outputs, rank], the latter scaled, which stay in memory; `None`: it leaves
    /// the matrix alone.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a dimension of 2³¹ or more; [`Error::OutOfMemory`], [`Error::Lost`].
    ///
    /// # Panics
    /// If there is none at all, or shapes and types do not fit one another.
    pub fn new(device: &Device, factors: &[Option<[&Weight; 2]>]) -> Result<Self> {
        let [a, b] = factors.iter().flatten().next().expect("an adapter that adds something");
        let (inputs, outputs, float) = (a.inputs, b.outputs, a.values.float());
        let (mut words, mut kept, mut ranks) = (Vec::new(), Vec::new(), 0);
        for factors in factors {
            let mut entry = LowRank::default();
            if let Some([a, b]) = factors {
                let rank = a.outputs;
                assert!(
                    (a.inputs, b.outputs, b.inputs) == (inputs, outputs, rank) && rank > 0,
                    "A [{rank}, {}] and B [{}, {}] beside [{outputs}, {inputs}]",
                    a.inputs,
                    b.outputs,
                    b.inputs
                );
                for size in [rank, inputs, outputs] {
                    Error::check(
                        "a dimension of an adapter",
                        size,
                        0..=i32::MAX as usize,
                        "below 2147483648",
                    )?;
                }
                for weight in [a, b] {
                    assert!(
                        weight.values.float() == float
                            && weight.values.len() >= weight.outputs * weight.inputs,
                        "{weight:?}"
                    );
                    kept.push(weight.values.memory().clone());
                }
                ranks = ranks.max(rank);
                entry = LowRank {
                    a: a.values.pointer(0),
                    b: b.values.pointer(0),
                    rank: rank as i32,
                    reserved: 0,
                };
            }
            words.extend(words_of(&entry));
        }
        let mut table = device.ints(words.len())?;
        device.write_ints(&mut table, &words)?;
        Ok(Self { table, _factors: kept, adapters: factors.len(), ranks, inputs, outputs, float })
    }
}

/// Adds each row's adapter's `B · A · x` to its row of `out`, f32 or of x's type. The batch is the decode table's
/// ([`crate::decode::Decoder::batch`]): a row's adapter is the one that the table has for it when this is run.
///
/// # Errors
/// [`Error::OutOfMemory`] while the device's workspace grows; [`Error::Lost`].
///
/// # Panics
/// If the batch is no table's, a view does not lie within its buffer, or shapes and types do not fit one another.
pub fn add(device: &Device, batch: &Batch, low_ranks: &LowRanks, x: Rows, out: RowsMut) -> Result<()> {
    let LowRanks { table, adapters, ranks, inputs, outputs, float, .. } = low_ranks;
    let (rows, out_float) = (batch.sequences(), out.view().float());
    assert!((x.rows, x.cols, out.rows, out.cols) == (rows, *inputs, rows, *outputs), "{x:?} to {out:?}");
    assert!(out_float == *float || out_float == Float::F32, "{float:?} to {out_float:?}");
    let params = LowRankStep {
        table: table.pointer(0),
        adapters: batch.adapters(),
        x: x.pointer(rows, *inputs, *float),
        low: device.workspace(rows * ranks)?,
        out: out.pointer(rows, *outputs, out_float),
        x_stride: x.stride as i64,
        out_stride: out.stride as i64,
        count: *adapters as i32,
        ranks: *ranks as i32,
        inputs: *inputs as i32,
        outputs: *outputs as i32,
    };
    let grid = Grid::new([*ranks, rows, 1], LOW_RANK_DOWN as u32).behind(true);
    device.launch(Kernel::of("low_rank_down", *float), grid, &params)?;
    let up = if out_float == *float { "low_rank_up" } else { "low_rank_up_wide" };
    let grid = Grid::new([outputs.div_ceil(LOW_RANK_UP), rows, 1], LOW_RANK_UP as u32).behind(true);
    device.launch(Kernel::of(up, *float), grid, &params)
}

/// An entry of the table as integers.
fn words_of(entry: &LowRank) -> [i32; size_of::<LowRank>() / 4] {
    // SAFETY: the struct is repr(C) and all of its bytes are fields (8- and 4-byte ones without gaps), so any of them may
    // be read as an integer.
    unsafe { std::mem::transmute_copy(entry) }
}
