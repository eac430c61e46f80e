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

/// Activations [tokens, inputs] as products with quantized weights take them: each the nearest multiple of a power of
/// two, of which the greatest of its group (32 of a row) has 2048 to 4096.
#[must_use]
pub fn as_integers(x: &[f32], inputs: usize) -> Vec<f64> {
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
        let unit = if largest < 2f64.powi(-115) { 1.0 } else { (largest.log2().floor() - 11.0).exp2() };
        group.iter().map(|x| (f64::from(*x) / unit).round_ties_even() * unit).collect::<Vec<_>>()
    };
    x.chunks(inputs).flat_map(|row| row.chunks(32).flat_map(group)).collect()
}
