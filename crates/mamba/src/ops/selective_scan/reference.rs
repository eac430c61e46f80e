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

/// 1 / (1 + e⁻ˣ), the derivative of [`softplus`].
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// x · sigmoid(x).
#[must_use]
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// The derivative of [`silu`].
#[must_use]
pub fn silu_slope(x: f64) -> f64 {
    sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))
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

/// Gradients of a loss by what [`selective_scan`] takes; shapes as in [`Inputs`]. None where there is no such input.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// [L, d_inner]
    pub u: Vec<f64>,
    /// [L, d_inner]
    pub delta: Vec<f64>,
    /// [d_inner]
    pub delta_bias: Option<Vec<f64>>,
    /// [d_state, d_inner]
    pub a: Vec<f64>,
    /// [L, d_state]
    pub b: Vec<f64>,
    /// [L, d_state]
    pub c: Vec<f64>,
    /// [d_inner]
    pub d: Option<Vec<f64>>,
    /// [L, d_inner]
    pub z: Option<Vec<f64>>,
    /// [d_state, d_inner]
    pub initial_state: Vec<f64>,
}

/// The gradients of one sequence. `initial_state` [d_state, d_inner] is what it began from; `y_grad` [L, d_inner] and
/// `last_state_grad` [d_state, d_inner] are the gradients of what [`selective_scan`] gave. Those of the parameters
/// (`a`, `d`, `delta_bias`) add up over the sequences of a batch.
///
/// With g_t the gradient by h_t from all later steps, and s_t = C_t · h_t + D ⊙ u_t:
/// ```text
/// ds_t = dy_t ⊙ SiLU(z_t)              dz_t = dy_t ⊙ s_t ⊙ SiLU'(z_t)
/// g_t  = exp(Δ_{t+1} · A) ⊙ g_{t+1} + C_t · ds_t
/// dC_t = Σ_channels ds_t ⊙ h_t         dB_t = Σ_channels g_t ⊙ Δ_t ⊙ u_t
/// dA   = Σ_t g_t ⊙ Δ_t ⊙ exp(Δ_t · A) ⊙ h_{t−1}
/// dΔ_t = Σ_states g_t ⊙ (A ⊙ exp(Δ_t · A) ⊙ h_{t−1} + B_t · u_t)
/// ```
#[must_use]
pub fn selective_scan_backward(
    inputs: Inputs,
    initial_state: &[f64],
    y_grad: &[f64],
    last_state_grad: &[f64],
) -> Gradients {
    let Inputs { u, delta, delta_bias, a, b, c, d, z, d_inner, d_state } = inputs;
    let length = u.len() / d_inner;
    let step = |at: usize, ch: usize| match delta_bias {
        Some(bias) => softplus(delta[at] + bias[ch]),
        None => delta[at],
    };

    // The state before each step.
    let mut before = Vec::new();
    let mut h = initial_state.to_vec();
    for t in 0..length {
        before.push(h.clone());
        for ch in 0..d_inner {
            let at = t * d_inner + ch;
            let step = step(at, ch);
            for n in 0..d_state {
                let state = &mut h[n * d_inner + ch];
                *state = (step * a[n * d_inner + ch]).exp() * *state + step * b[t * d_state + n] * u[at];
            }
        }
    }

    let mut grads = Gradients {
        u: vec![f64::NAN; u.len()],
        delta: vec![f64::NAN; u.len()],
        delta_bias: delta_bias.map(|_| vec![0.0; d_inner]),
        a: vec![0.0; a.len()],
        b: vec![0.0; b.len()],
        c: vec![0.0; c.len()],
        d: d.map(|_| vec![0.0; d_inner]),
        z: z.map(|_| vec![f64::NAN; u.len()]),
        initial_state: last_state_grad.to_vec(), // g, carried from the last step to the first
    };
    for t in (0..length).rev() {
        for ch in 0..d_inner {
            let at = t * d_inner + ch;
            let step = step(at, ch);
            let skip = d.map_or(0.0, |d| d[ch]);
            let sum_grad = y_grad[at] * z.map_or(1.0, |z| silu(z[at]));
            let mut sum = skip * u[at];
            let mut u_grad = skip * sum_grad;
            let mut step_grad = 0.0;
            for n in 0..d_state {
                let (state, token) = (n * d_inner + ch, t * d_state + n);
                let decay = (step * a[state]).exp();
                let decayed = decay * before[t][state];
                let h = decayed + step * b[token] * u[at];
                sum += c[token] * h;
                let g = grads.initial_state[state] + c[token] * sum_grad;
                grads.c[token] += sum_grad * h;
                grads.b[token] += g * step * u[at];
                grads.a[state] += g * step * decayed;
                step_grad += g * (a[state] * decayed + b[token] * u[at]);
                u_grad += g * step * b[token];
                grads.initial_state[state] = decay * g;
            }
            grads.u[at] = u_grad;
            grads.delta[at] = step_grad * delta_bias.map_or(1.0, |bias| sigmoid(delta[at] + bias[ch]));
            if let Some(bias) = &mut grads.delta_bias {
                bias[ch] += grads.delta[at];
            }
            if let Some(d) = &mut grads.d {
                d[ch] += sum_grad * u[at];
            }
            if let (Some(z_grad), Some(z)) = (&mut grads.z, z) {
                z_grad[at] = y_grad[at] * sum * silu_slope(z[at]);
            }
        }
    }
    grads
}
