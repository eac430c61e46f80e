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

/// Gradients of a loss by what [`linear`] takes; shapes as there.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// [tokens, inputs]
    pub x: Vec<f64>,
    /// [outputs, inputs]
    pub weight: Vec<f64>,
    /// [outputs]
    pub bias: Vec<f64>,
}

/// `out_grad` [tokens, outputs] is the gradient of [`linear`]'s output.
#[must_use]
pub fn linear_backward(x: &[f64], weight: &[f64], out_grad: &[f64], inputs: usize) -> Gradients {
    let outputs = weight.len() / inputs;
    let mut grads =
        Gradients { x: vec![0.0; x.len()], weight: vec![0.0; weight.len()], bias: vec![0.0; outputs] };
    for (t, grad) in out_grad.chunks(outputs).enumerate() {
        for (o, grad) in grad.iter().enumerate() {
            grads.bias[o] += grad;
            for i in 0..inputs {
                grads.x[t * inputs + i] += grad * weight[o * inputs + i];
                grads.weight[o * inputs + i] += grad * x[t * inputs + i];
            }
        }
    }
    grads
}

/// Activations [tokens, inputs] as products with quantized weights take them: each the nearest multiple of a 127th of the
/// greatest of its group (32 of a row).
#[must_use]
pub fn as_integers(x: &[f32], inputs: usize) -> Vec<f64> {
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (unit, to_integers) =
            if largest < 2e-35 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
        group
            .iter()
            .map(|x| f64::from((x * to_integers).round_ties_even()) * f64::from(unit))
            .collect::<Vec<_>>()
    };
    x.chunks(inputs).flat_map(|row| row.chunks(32).flat_map(group)).collect()
}
