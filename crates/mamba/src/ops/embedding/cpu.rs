//! Gathers rows out of the packed table; parallel over tokens.

use crate::cpu::memory::Aligned;
use crate::cpu::threads::Threads;
use crate::cpu::{MutMatrix, Shareable};
use crate::ops::linear::Packed;

/// `out[t] = table[ids[t]]`; the ids are below the table's rows (the engine checks them on arrival).
pub(crate) fn embedding(
    threads: &mut Threads,
    ids: &[u32],
    table: &Packed,
    out: crate::backend::ViewMut<Aligned<f32>>,
) {
    let d_model = table.inputs();
    let out = Shareable(MutMatrix::new(out, ids.len(), d_model));
    let block = ids.len().div_ceil(4 * threads.count()).max(8);
    threads.run(ids.len().div_ceil(block), &|task| {
        let out = &out;
        let from = task * block;
        for (t, id) in ids.iter().enumerate().skip(from).take(block) {
            // SAFETY: tasks have disjoint rows, in range by the check of the matrix above.
            let row = unsafe { std::slice::from_raw_parts_mut(out.0.at(t, 0), d_model) };
            table.row(*id as usize, row);
        }
    });
}
