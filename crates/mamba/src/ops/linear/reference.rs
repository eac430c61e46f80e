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

/// Activations [tokens, inputs] as products with quantized weights take them: each the nearest of 8191 levels, as
/// far apart as the greatest of its group (32 of a row) says.
#[must_use]
pub fn in_levels(x: &[f32], inputs: usize) -> Vec<f64> {
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let to_levels = if largest < 1e-30 { 0.0 } else { 4095.0 / largest };
        let level = |x: &f32| f64::from((x * to_levels).round_ties_even()) * f64::from(largest / 4095.0);
        group.iter().map(level).collect::<Vec<_>>()
    };
    x.chunks(inputs).flat_map(|row| row.chunks(32).flat_map(group)).collect()
}
