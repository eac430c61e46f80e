//! The definition, step by step in f64. Read this to understand what Mamba computes.

/// Inputs of [`selective_scan`]; dense, row-major. Names and shapes as in the [module](super).
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// [L, d_inner]
    pub u: &'a [f64],
    /// [L, d_inner]
    pub delta: &'a [f64],
    /// [d_inner]
    pub delta_bias: Option<&'a [f64]>,
    /// [d_state, d_inner]
    pub a: &'a [f64],
    /// [L, d_state]
    pub b: &'a [f64],
    /// [L, d_state]
    pub c: &'a [f64],
    /// [d_inner]
    pub d: Option<&'a [f64]>,
    /// [L, d_inner]
    pub z: Option<&'a [f64]>,
    /// Channels.
    pub d_inner: usize,
    /// States per channel.
    pub d_state: usize,
}

/// log(1 + eˣ) without overflow.
#[must_use]
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// x · sigmoid(x).
#[must_use]
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// One sequence. `h` [d_state, d_inner] is the initial state on entry and the last one on return.
/// Returns y [L, d_inner].
#[must_use]
pub fn selective_scan(inputs: Inputs, h: &mut [f64]) -> Vec<f64> {
    let Inputs { u, delta, delta_bias, a, b, c, d, z, d_inner, d_state } = inputs;
    let length = u.len() / d_inner;
    let mut y = vec![f64::NAN; u.len()];
    for t in 0..length {
        for ch in 0..d_inner {
            let at = t * d_inner + ch;
            let step = match delta_bias {
                Some(bias) => softplus(delta[at] + bias[ch]),
                None => delta[at],
            };
            let mut sum = 0.0;
            for n in 0..d_state {
                let decay = (step * a[n * d_inner + ch]).exp(); // the zero-order hold of A
                let state = &mut h[n * d_inner + ch];
                *state = decay * *state + step * b[t * d_state + n] * u[at];
                sum += c[t * d_state + n] * *state;
            }
            if let Some(d) = d {
                sum += d[ch] * u[at];
            }
            y[at] = match z {
                Some(z) => sum * silu(z[at]),
                None => sum,
            };
        }
    }
    y
}
