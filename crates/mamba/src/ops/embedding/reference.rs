//! The definition in f64.

/// Rows of `table` [vocab, d_model]; returns [ids, d_model].
#[must_use]
pub fn embedding(table: &[f64], ids: &[u32], d_model: usize) -> Vec<f64> {
    ids.iter().flat_map(|id| &table[*id as usize * d_model..][..d_model]).copied().collect()
}

/// The gradient by the table, [vocab, d_model]: each row the sum of `out_grad` [ids, d_model] over the tokens that
/// read it.
#[must_use]
pub fn embedding_backward(ids: &[u32], out_grad: &[f64], vocab: usize, d_model: usize) -> Vec<f64> {
    let mut grads = vec![0.0; vocab * d_model];
    for (id, grad) in ids.iter().zip(out_grad.chunks(d_model)) {
        for (sum, grad) in grads[*id as usize * d_model..].iter_mut().zip(grad) {
            *sum += grad;
        }
    }
    grads
}
