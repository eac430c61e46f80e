//! The definition in f64.

/// `x` [tokens, inputs], `weight` [outputs, inputs], `bias` [outputs]; returns [tokens, outputs].
#[must_use]
pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(inputs) {
        for (o, w) in weight.chunks(inputs).enumerate() {
            let product: f64 = row.iter().zip(w).map(|(x, w)| x * w).sum();
            out.push(product + bias.map_or(0.0, |bias| bias[o]));
        }
    }
    out
}
