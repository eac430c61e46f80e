//! The definition in f64.

use super::Rates;

/// One tensor: `p`, `m` and `v` are changed; `g` is its gradient, already clipped.
pub fn adamw(p: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f64], decayed: bool, rates: &Rates) {
    let Rates { lr, beta1, beta2, eps, weight_decay, step } = *rates;
    let (first, second) = (1.0 - beta1.powf(step as f64), 1.0 - beta2.powf(step as f64));
    for i in 0..p.len() {
        if decayed {
            p[i] *= 1.0 - lr * weight_decay;
        }
        m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
        v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
        p[i] -= lr / first * m[i] / ((v[i] / second).sqrt() + eps);
    }
}
