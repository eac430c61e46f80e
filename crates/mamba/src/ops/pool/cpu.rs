//! Pooling: a handful of additions a token, so plain code on one thread a sequence.

use super::{Pool, PoolKind};
use crate::backend::Batch;
use crate::cpu::memory::Aligned;
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable};

/// See [`Pool`].
pub(crate) fn pool(threads: &mut Threads, batch: &Batch, op: Pool<Aligned<f32>>) {
    let d_model = op.hidden.cols;
    assert!(batch.slots.iter().all(|slot| *slot < op.out.rows), "a slot beyond the {} rows", op.out.rows);
    let rows = op.out.rows;
    let hidden = Shareable(ConstMatrix::new(&op.hidden, batch.tokens(), d_model));
    let out = Shareable(MutMatrix::new(op.out, rows, d_model));
    threads.run(batch.sequences(), &|sequence| {
        let (hidden, out) = (&hidden, &out);
        let (begin, end) = (batch.cu_seqlens[sequence], batch.cu_seqlens[sequence + 1]);
        let Some(kind) = op.kinds[sequence].filter(|_| begin < end) else { return };
        // SAFETY: slots differ between sequences, so each task has its own row; rows are in range by the
        // checks above.
        let (row, token) = unsafe {
            let row = std::slice::from_raw_parts_mut(out.0.at(batch.slots[sequence], 0), d_model);
            (row, |t| std::slice::from_raw_parts(hidden.0.at(t, 0), d_model))
        };
        match kind {
            PoolKind::Sum => {
                if batch.fresh[sequence] {
                    row.fill(0.0);
                }
                for t in begin..end {
                    row.iter_mut().zip(token(t)).for_each(|(sum, value)| *sum += value);
                }
            }
            PoolKind::Last => row.copy_from_slice(token(end - 1)),
        }
    });
}
