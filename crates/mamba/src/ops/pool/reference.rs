//! The definition in f64.

use super::PoolKind;

/// One sequence: `hidden` [L, d_model] into `row` [d_model].
pub fn pool(kind: PoolKind, hidden: &[f64], fresh: bool, row: &mut [f64]) {
    let d_model = row.len();
    if hidden.is_empty() {
        return;
    }
    match kind {
        PoolKind::Sum => {
            if fresh {
                row.fill(0.0);
            }
            for token in hidden.chunks(d_model) {
                row.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
            }
        }
        PoolKind::Last => row.copy_from_slice(&hidden[hidden.len() - d_model..]),
    }
}
