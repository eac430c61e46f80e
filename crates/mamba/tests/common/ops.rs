//! Operations of any backend against their plain definitions, on random shapes. Outputs are filled with NaN beforehand.
//! Inputs are what the backend's type holds of random numbers, so that only the operation's own error is seen.

use mamba::backend::{Backend, Batch, StateView, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::config::NormKind;
use mamba::ops::causal_conv1d::{self, CausalConv1d};
use mamba::ops::norm::{self, AddNorm};
use mamba::ops::pool::{self, Pool, PoolKind};
use mamba::ops::selective_scan::{self, SelectiveScan};
use mamba::ops::{linear, logprobs};
use mamba::{DType, Result};

use super::{Rng, Truth, relative_l2, wide};

/// What an operation may be off by, relative (L2).
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The activations' type.
    pub dtype: DType,
    /// Results in f32.
    pub sum: f64,
}

impl Bounds {
    /// Everything f32.
    pub const F32: Self = Self { dtype: DType::F32, sum: 1e-6 };

    /// Results in the activations' type: a tenth more than rounding the exact ones costs.
    pub fn activation(self, exact: &[f64]) -> f64 {
        let rounded = rounded(exact, self.dtype);
        self.sum + 1.1 * relative_l2(&rounded, exact)
    }
}

/// What a type holds of these values.
pub fn rounded(exact: &[f64], dtype: DType) -> Vec<f32> {
    let round = |x: &f64| match dtype {
        DType::BF16 => half::bf16::from_f64(*x).to_f32(),
        DType::F16 => half::f16::from_f64(*x).to_f32(),
        _ => *x as f32,
    };
    exact.iter().map(round).collect()
}

/// Weights [outputs, inputs] as a type holds them.
pub fn rounded_weights(weights: &[f32], inputs: usize, dtype: DType) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mut row = row.to_vec();
        match dtype {
            DType::F32 => {}
            DType::BF16 => row.iter_mut().for_each(|w| *w = half::bf16::from_f32(*w).to_f32()),
            DType::F16 => row.iter_mut().for_each(|w| *w = half::f16::from_f32(*w).to_f32()),
            DType::Q8_0 | DType::Q4K => {
                let format = dtype.format().unwrap();
                let mut bytes = vec![0; format.row_bytes(inputs)];
                format.quantize(&row, &mut bytes);
                format.dequantize(&bytes, &mut row);
            }
        }
        row
    };
    weights.chunks(inputs).flat_map(row).collect()
}

/// An f32 buffer of these values.
pub fn buffer<B: Backend>(backend: &mut B, values: &[f32]) -> B::Buffer {
    let mut buffer = backend.alloc(values.len(), "test").unwrap();
    backend.write(&mut buffer, 0, values).unwrap();
    buffer
}

pub fn read<B: Backend>(backend: &mut B, buffer: &B::Buffer, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    backend.read(buffer, 0, &mut values).unwrap();
    values
}

/// A pack of a few sequences, lengths 0 and 1 among them, in slots in disorder.
pub fn random_batch(rng: &mut Rng) -> (Batch, usize) {
    let sequences = rng.size(1, 5);
    let slots = sequences + 2;
    let step = rng.size(0, 4) == 0;
    let mut batch = Batch::new();
    for i in 0..sequences {
        let length = if step { 1 } else { rng.pick(&[0, 1, 2, 3, 7, 31, 33, 70, 150]) };
        batch.push(&vec![0; length], slots - 1 - i, rng.size(0, 1) == 0);
    }
    (batch, slots)
}

/// Columns of a wider matrix, as the model hands them over: offset, row stride.
pub struct Strided<B: Backend> {
    buffer: B::Buffer,
    /// What the buffer holds.
    values: Vec<f32>,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<B: Backend> Strided<B> {
    /// Of activations; `map`ped.
    pub fn new(
        backend: &mut B,
        rng: &mut Rng,
        (rows, cols): (usize, usize),
        scale: f32,
        map: impl Fn(f32) -> f32,
    ) -> Self {
        let buffer = |backend: &mut B, len| backend.activations(len).unwrap();
        Self::with(backend, rng, (rows, cols), scale, map, buffer)
    }

    fn with(
        backend: &mut B,
        rng: &mut Rng,
        (rows, cols): (usize, usize),
        scale: f32,
        map: impl Fn(f32) -> f32,
        alloc: impl Fn(&mut B, usize) -> B::Buffer,
    ) -> Self {
        // Half of them aligned as vector loads want them.
        let gap = |rng: &mut Rng| if rng.size(0, 1) == 0 { rng.size(0, 9) } else { 8 * rng.size(0, 2) };
        let (before, after) = (gap(rng), gap(rng));
        let stride = before + cols + after;
        let values: Vec<f32> = rng.floats(rows * stride, scale).into_iter().map(map).collect();
        let mut buffer = alloc(backend, values.len());
        backend.write(&mut buffer, 0, &values).unwrap();
        let mut strided = Self { buffer, values, offset: before, rows, cols, stride };
        strided.fetch(backend);
        strided
    }

    pub fn random(backend: &mut B, rng: &mut Rng, rows: usize, cols: usize, scale: f32) -> Self {
        Self::new(backend, rng, (rows, cols), scale, |x| x)
    }

    /// Of f32.
    pub fn f32(backend: &mut B, rng: &mut Rng, rows: usize, cols: usize, scale: f32) -> Self {
        let alloc = |backend: &mut B, len| backend.alloc(len, "test").unwrap();
        Self::with(backend, rng, (rows, cols), scale, |x| x, alloc)
    }

    pub fn unwritten(backend: &mut B, rng: &mut Rng, rows: usize, cols: usize) -> Self {
        Self::new(backend, rng, (rows, cols), 1.0, |_| f32::NAN)
    }

    /// Of f32.
    pub fn unwritten_f32(backend: &mut B, rng: &mut Rng, rows: usize, cols: usize) -> Self {
        let alloc = |backend: &mut B, len| backend.alloc(len, "test").unwrap();
        Self::with(backend, rng, (rows, cols), 1.0, |_| f32::NAN, alloc)
    }

    /// Writes all rows; what lies between them becomes NaN.
    pub fn put(&mut self, backend: &mut B, rows: &[f32]) {
        self.values.fill(f32::NAN);
        for (to, row) in self.values.chunks_mut(self.stride.max(1)).zip(rows.chunks(self.cols)) {
            to[self.offset..self.offset + self.cols].copy_from_slice(row);
        }
        backend.write(&mut self.buffer, 0, &self.values).unwrap();
        self.fetch(backend);
    }

    pub fn view(&self) -> View<'_, B::Buffer> {
        let Self { rows, cols, offset, stride, ref buffer, .. } = *self;
        View { buffer, offset, rows, cols, stride }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, B::Buffer> {
        let Self { rows, cols, offset, stride, ref mut buffer, .. } = *self;
        ViewMut { buffer, offset, rows, cols, stride }
    }

    /// Reads back what was written.
    pub fn fetch(&mut self, backend: &mut B) {
        backend.read(&self.buffer, 0, &mut self.values).unwrap();
    }

    /// Rows `from .. to`, dense.
    pub fn rows(&self, from: usize, to: usize) -> Vec<f32> {
        (from..to)
            .flat_map(|r| self.values[r * self.stride + self.offset..][..self.cols].iter().copied())
            .collect()
    }

    pub fn all(&self) -> Vec<f32> {
        self.rows(0, self.rows)
    }

    /// What lies between the columns must still be as it was.
    pub fn gaps_are_nan(&self) -> bool {
        (0..self.values.len()).all(|i| {
            let col = i % self.stride;
            (self.offset..self.offset + self.cols).contains(&col) || self.values[i].is_nan()
        })
    }
}

/// Where the slots' tensors lie: offset and stride, half of them aligned.
pub fn slot_layout(rng: &mut Rng, elements: usize) -> (usize, usize) {
    let offset = if rng.size(0, 1) == 0 { rng.size(0, 5) } else { 4 };
    let stride = offset + elements + 3;
    (offset, if rng.size(0, 1) == 0 { stride } else { stride.next_multiple_of(4) })
}

pub fn linear_matches<B: Backend>(backend: &mut B, rng: &mut Rng, bounds: Bounds) {
    for round in 0..60 {
        let rows = rng.pick(&[0, 1, 2, 3, 5, 8, 12, 13, 17, 31, 64, 100]);
        let inputs = rng.pick(&[1, 3, 16, 48, 255, 256, 257, 300, 777]);
        let outputs = rng.pick(&[1, 5, 31, 32, 33, 80, 130]);
        let weights = rounded(&wide(&rng.floats(outputs * inputs, 0.5)), bounds.dtype);
        let tensor = Tensor::from_memory("w", vec![outputs, inputs], weights.clone());
        let weight = backend.weight(&tensor, bounds.dtype).unwrap();
        let bias = (rng.size(0, 1) == 0).then(|| rng.floats(outputs, 1.0));
        let bias_buffer = bias.as_ref().map(|bias| buffer(backend, bias));
        let x = Strided::random(backend, rng, rows, inputs, 1.0);
        // Activations, or f32 as logits are.
        let wide_out = round % 2 == 0;
        let mut out = match wide_out {
            true => Strided::unwritten_f32(backend, rng, rows, outputs),
            false => Strided::unwritten(backend, rng, rows, outputs),
        };
        backend.linear(x.view(), &weight, bias_buffer.as_ref(), out.view_mut()).unwrap();
        out.fetch(backend);
        // Where the result is an activation, a backend may round the bias to its type before.
        let bias = bias.map(|bias| match wide_out {
            true => wide(&bias),
            false => wide(&rounded(&wide(&bias), bounds.dtype)),
        });
        let exact = linear::reference::linear(&wide(&x.all()), &wide(&weights), bias.as_deref(), inputs);
        let error = relative_l2(&out.all(), &exact);
        let bound = if wide_out { bounds.sum } else { bounds.activation(&exact) };
        assert!(error < bound, "{rows} x {inputs} x {outputs}: {error}");
        assert!(out.gaps_are_nan());
    }
}

pub fn causal_conv1d_matches<B: Backend>(backend: &mut B, rng: &mut Rng, bounds: Bounds) {
    for _ in 0..60 {
        let (batch, slots) = random_batch(rng);
        let d_inner = rng.pick(&[1, 7, 16, 40, 129, 1024]);
        let d_conv = rng.pick(&[1, 2, 3, 4, 4, 7, 16]);
        let x = Strided::random(backend, rng, batch.tokens(), d_inner, 2.0);
        let weight = rng.floats(d_conv * d_inner, 1.0);
        let weight_buffer = buffer(backend, &weight);
        let bias = (rng.size(0, 1) == 0).then(|| rng.floats(d_inner, 1.0));
        let bias_buffer = bias.as_ref().map(|bias| buffer(backend, bias));
        let elements = (d_conv - 1) * d_inner;
        let (offset, stride) = slot_layout(rng, elements);
        let before = rng.floats(slots * stride, 2.0);
        let mut state = buffer(backend, &before);
        let mut out = Strided::unwritten(backend, rng, batch.tokens(), d_inner);
        let op = CausalConv1d {
            x: x.view(),
            weight: &weight_buffer,
            bias: bias_buffer.as_ref(),
            d_conv,
            state: Some(StateView { buffer: &mut state, offset, slot_stride: stride }),
            out: out.view_mut(),
        };
        let plan = backend.plan(&batch).unwrap();
        backend.causal_conv1d(&plan, op).unwrap();
        out.fetch(backend);

        let mut expected_state = wide(&before);
        for s in 0..batch.sequences() {
            let at = batch.slots[s] * stride + offset;
            let mut window = match batch.fresh[s] {
                true => vec![0.0; elements],
                false => wide(&before[at..at + elements]),
            };
            let (from, to) = (batch.cu_seqlens[s], batch.cu_seqlens[s + 1]);
            let expected = causal_conv1d::reference::causal_conv1d(
                &wide(&x.rows(from, to)),
                &wide(&weight),
                bias.as_ref().map(|bias| wide(bias)).as_deref(),
                &mut window,
                d_inner,
            );
            let error = relative_l2(&out.rows(from, to), &expected);
            assert!(
                error < bounds.activation(&expected),
                "{error}: d_conv {d_conv}, d_inner {d_inner}, {batch:?}"
            );
            expected_state[at..at + elements].copy_from_slice(&window);
        }
        // Windows are copies of inputs: exact, and nothing else in any slot has changed.
        assert_eq!(wide(&read(backend, &state, before.len())), expected_state);
        assert!(out.gaps_are_nan());
    }
}

pub fn selective_scan_matches<B: Backend>(backend: &mut B, rng: &mut Rng, bounds: Bounds) {
    for round in 0..60 {
        let (batch, slots) = random_batch(rng);
        let tokens = batch.tokens();
        let d_inner = rng.pick(&[1, 7, 16, 40, 129, 192]);
        let d_state = rng.pick(&[1, 3, 8, 16, 16, 16, 17, 64, 256]);
        let full = round % 4 != 0;
        let u = Strided::random(backend, rng, tokens, d_inner, 2.0);
        // Without softplus a step size is positive as it is.
        let positive = |x: f32| if full { x } else { x.abs() * 0.1 };
        let delta = Strided::new(backend, rng, (tokens, d_inner), 2.0, positive);
        let b = Strided::random(backend, rng, tokens, d_state, 1.0);
        let c = Strided::random(backend, rng, tokens, d_state, 1.0);
        let z = full.then(|| Strided::random(backend, rng, tokens, d_inner, 2.0));
        let a: Vec<f32> = rng.floats(d_state * d_inner, 4.0).iter().map(|a| -a.abs()).collect();
        let a_buffer = buffer(backend, &a);
        let bias = full.then(|| rng.floats(d_inner, 3.0));
        let bias_buffer = bias.as_ref().map(|bias| buffer(backend, bias));
        let d = full.then(|| rng.floats(d_inner, 1.0));
        let d_buffer = d.as_ref().map(|d| buffer(backend, d));
        let elements = d_state * d_inner;
        let (offset, stride) = slot_layout(rng, elements);
        let before = rng.floats(slots * stride, 2.0);
        let mut state = buffer(backend, &before);
        let mut out = Strided::unwritten(backend, rng, tokens, d_inner);
        let op = SelectiveScan {
            u: u.view(),
            delta: delta.view(),
            delta_bias: bias_buffer.as_ref(),
            a: &a_buffer,
            b: b.view(),
            c: c.view(),
            d: d_buffer.as_ref(),
            z: z.as_ref().map(Strided::view),
            state: Some(StateView { buffer: &mut state, offset, slot_stride: stride }),
            out: out.view_mut(),
        };
        let plan = backend.plan(&batch).unwrap();
        backend.selective_scan(&plan, op).unwrap();
        out.fetch(backend);
        let state = read(backend, &state, before.len());

        let (bias, d) = (bias.map(|x| wide(&x)), d.map(|x| wide(&x)));
        let mut used = vec![false; slots * stride];
        for s in 0..batch.sequences() {
            let (from, to) = (batch.cu_seqlens[s], batch.cu_seqlens[s + 1]);
            let at = batch.slots[s] * stride + offset;
            let mut h = match batch.fresh[s] {
                true => vec![0.0; elements],
                false => wide(&before[at..at + elements]),
            };
            let (u, delta) = (wide(&u.rows(from, to)), wide(&delta.rows(from, to)));
            let (b, c) = (wide(&b.rows(from, to)), wide(&c.rows(from, to)));
            let z = z.as_ref().map(|z| wide(&z.rows(from, to)));
            let inputs = selective_scan::reference::Inputs {
                u: &u,
                delta: &delta,
                delta_bias: bias.as_deref(),
                a: &wide(&a),
                b: &b,
                c: &c,
                d: d.as_deref(),
                z: z.as_deref(),
                d_inner,
                d_state,
            };
            let y = selective_scan::reference::selective_scan(inputs, &mut h);
            let shape = format!("d_state {d_state}, d_inner {d_inner}, length {}", to - from);
            let error = relative_l2(&out.rows(from, to), &y);
            assert!(error < bounds.activation(&y), "y: {error}, {shape}");
            let error = relative_l2(&state[at..at + elements], &h);
            assert!(error < bounds.sum, "state: {error}, {shape}");
            used[at..at + elements].fill(true);
        }
        assert!((0..used.len()).all(|i| used[i] || state[i] == before[i]), "another slot was touched");
        assert!(out.gaps_are_nan());
    }
}

pub fn selective_scan_without_a_state_begins_at_zero<B: Backend>(backend: &mut B, rng: &mut Rng) {
    let (batch, slots) = random_batch(rng);
    let (tokens, d_inner, d_state) = (batch.tokens(), 24, 16);
    let inputs: Vec<_> = (0..2).map(|_| Strided::random(backend, rng, tokens, d_inner, 1.0)).collect();
    let bc: Vec<_> = (0..2).map(|_| Strided::random(backend, rng, tokens, d_state, 1.0)).collect();
    let a = buffer(backend, &vec![-1.0; d_state * d_inner]);
    let run = |backend: &mut B, state: Option<&mut B::Buffer>, batch: &Batch| {
        let mut out = Strided::unwritten(backend, &mut Rng(1), tokens, d_inner);
        let op = SelectiveScan {
            u: inputs[0].view(),
            delta: inputs[1].view(),
            delta_bias: None,
            a: &a,
            b: bc[0].view(),
            c: bc[1].view(),
            d: None,
            z: None,
            state: state.map(|buffer| StateView { buffer, offset: 0, slot_stride: d_state * d_inner }),
            out: out.view_mut(),
        };
        let plan = backend.plan(batch).unwrap();
        backend.selective_scan(&plan, op).unwrap();
        out.fetch(backend);
        out.all()
    };
    let fresh = Batch { fresh: vec![true; batch.sequences()], ..batch.clone() };
    let mut nans = buffer(backend, &vec![f32::NAN; slots * d_state * d_inner]);
    assert_eq!(run(backend, None, &batch), run(backend, Some(&mut nans), &fresh));
}

pub fn add_norm_matches<B: Backend>(backend: &mut B, rng: &mut Rng, bounds: Bounds) {
    for _ in 0..60 {
        let rows = rng.pick(&[0, 1, 2, 9, 40]);
        let d_model = rng.pick(&[1, 5, 16, 33, 256, 2048]);
        let kind = rng.pick(&[NormKind::Rms, NormKind::Layer]);
        let weight = rng.floats(d_model, 1.0);
        let weight_buffer = buffer(backend, &weight);
        let bias = (rng.size(0, 1) == 0).then(|| rng.floats(d_model, 1.0));
        let bias_buffer = bias.as_ref().map(|bias| buffer(backend, bias));
        let delta = (rng.size(0, 1) == 0).then(|| Strided::random(backend, rng, rows, d_model, 1.0));
        let mut residual = Strided::f32(backend, rng, rows, d_model, 3.0);
        let mut sums = wide(&residual.all());
        if let Some(delta) = &delta {
            sums.iter_mut().zip(delta.all()).for_each(|(sum, x)| *sum += f64::from(x));
        }
        let mut out = Strided::unwritten(backend, rng, rows, d_model);
        let op = AddNorm {
            kind,
            eps: 1e-5,
            weight: &weight_buffer,
            bias: bias_buffer.as_ref(),
            delta: delta.as_ref().map(Strided::view),
            residual: residual.view_mut(),
            out: out.view_mut(),
        };
        backend.add_norm(op).unwrap();
        residual.fetch(backend);
        out.fetch(backend);
        assert!(relative_l2(&residual.all(), &sums) < 1e-7);
        let bias = bias.map(|bias| wide(&bias));
        let expected: Vec<f64> = sums
            .chunks(d_model)
            .flat_map(|x| norm::reference::norm(kind, x, &wide(&weight), bias.as_deref(), 1e-5))
            .collect();
        // LayerNorm of one or few channels cancels; what is left is rounding.
        let error = relative_l2(&out.all(), &expected);
        let bound = bounds.activation(&expected).max(if d_model < 8 { 1e-4 } else { 0.0 });
        assert!(error < bound, "{kind:?} of {d_model}: {error}");
        assert!(out.gaps_are_nan());
    }
}

pub fn pool_matches<B: Backend>(backend: &mut B, rng: &mut Rng) {
    for _ in 0..40 {
        let (batch, slots) = random_batch(rng);
        let d_model = rng.pick(&[1, 16, 50, 256]);
        let hidden = Strided::random(backend, rng, batch.tokens(), d_model, 1.0);
        let before = rng.floats(slots * d_model, 1.0);
        let mut out = buffer(backend, &before);
        let kinds: Vec<_> = (0..batch.sequences())
            .map(|_| rng.pick(&[None, Some(PoolKind::Sum), Some(PoolKind::Last)]))
            .collect();
        let view = ViewMut::dense(&mut out, slots, d_model);
        let plan = backend.plan(&batch).unwrap();
        backend.pool(&plan, Pool { kinds: &kinds, hidden: hidden.view(), out: view }).unwrap();
        let mut expected = wide(&before);
        for s in 0..batch.sequences() {
            let row = &mut expected[batch.slots[s] * d_model..][..d_model];
            let hidden = wide(&hidden.rows(batch.cu_seqlens[s], batch.cu_seqlens[s + 1]));
            if let Some(kind) = kinds[s] {
                pool::reference::pool(kind, &hidden, batch.fresh[s], row);
            }
        }
        assert!(relative_l2(&read(backend, &out, before.len()), &expected) < 1e-6);
    }
}

pub fn token_logprobs_match<B: Backend>(backend: &mut B, rng: &mut Rng) {
    for vocab in [1, 2, 15, 16, 100, 8192] {
        let logits = Strided::f32(backend, rng, 9, vocab, 30.0);
        let targets: Vec<u32> = (0..9).map(|_| rng.size(0, vocab - 1) as u32).collect();
        let mut out = [f32::NAN; 9];
        backend.token_logprobs(logits.view(), &targets, &mut out).unwrap();
        for row in 0..9 {
            let exact =
                logprobs::reference::token_logprob(&wide(&logits.rows(row, row + 1)), targets[row] as usize);
            assert!((f64::from(out[row]) - exact).abs() < 1e-5, "{vocab}: {} for {exact}", out[row]);
        }
    }
}

pub fn embedding_and_gather_copy_rows<B: Backend>(backend: &mut B, rng: &mut Rng, dtype: DType) {
    for d_model in [33, 256] {
        let vocab = 70;
        let table = rounded(&wide(&rng.floats(vocab * d_model, 1.0)), dtype);
        let tensor = Tensor::from_memory("e", vec![vocab, d_model], table.clone());
        let weight = backend.weight(&tensor, dtype).unwrap();
        let mut batch = Batch::new();
        let ids: Vec<u32> = (0..50).map(|_| rng.size(0, vocab - 1) as u32).chain([0, 69]).collect();
        batch.push(&ids, 0, true);
        let mut out = buffer(backend, &vec![f32::NAN; 52 * d_model]);
        let plan = backend.plan(&batch).unwrap();
        backend.embedding(&plan, &weight, ViewMut::dense(&mut out, 52, d_model)).unwrap();
        let out = read(backend, &out, 52 * d_model);
        for (t, id) in ids.iter().enumerate() {
            assert_eq!(out[t * d_model..][..d_model], table[*id as usize * d_model..][..d_model]);
        }
        let x = Strided::random(backend, rng, 52, d_model, 1.0);
        let mut picked = Strided::unwritten(backend, rng, 3, d_model);
        backend.gather(x.view(), &[51, 0, 51], picked.view_mut()).unwrap();
        picked.fetch(backend);
        for (i, row) in [51, 0, 51].into_iter().enumerate() {
            assert_eq!(picked.rows(i, i + 1), x.rows(row, row + 1));
        }
        assert!(picked.gaps_are_nan());
    }
}

/// Relative errors of y and of the last state against the official implementation's float64 scan.
pub fn official_scan<B: Backend>(backend: &mut B, truth: &Truth) -> Result<(f64, f64)> {
    let [_, dim, _] = truth.shape("u")[..] else { panic!("u") };
    let d_state = truth.shape("A")[1];
    let full = truth.has("z");
    let cu_seqlens = truth.cu_seqlens();
    let sequences = cu_seqlens.len() - 1;
    let mut batch = Batch::new();
    for range in cu_seqlens.windows(2) {
        batch.push(&vec![0; range[1] - range[0]], batch.sequences(), !truth.has("h0"));
    }
    let total = batch.tokens();
    let initial = match truth.has("h0") {
        true => truth.states("h0"),
        false => vec![0.0; sequences * d_state * dim],
    };
    let mut activations = |values: &[f32]| {
        let mut buffer = backend.activations(values.len()).unwrap();
        backend.write(&mut buffer, 0, values).unwrap();
        buffer
    };
    let [u, delta, b, c] = ["u", "delta", "B", "C"].map(|name| activations(&truth.tokens(name)));
    let z = full.then(|| activations(&truth.tokens("z")));
    let mut out = activations(&vec![f32::NAN; total * dim]);
    let mut state = buffer(backend, &initial);
    let a = buffer(backend, &truth.states("A"));
    let [bias, d] = ["bias", "D"].map(|name| full.then(|| buffer(backend, &truth.floats(name))));
    let op = SelectiveScan {
        u: View::dense(&u, total, dim),
        delta: View::dense(&delta, total, dim),
        delta_bias: bias.as_ref(),
        a: &a,
        b: View::dense(&b, total, d_state),
        c: View::dense(&c, total, d_state),
        d: d.as_ref(),
        z: z.as_ref().map(|z| View::dense(z, total, dim)),
        state: Some(StateView { buffer: &mut state, offset: 0, slot_stride: d_state * dim }),
        out: ViewMut::dense(&mut out, total, dim),
    };
    let plan = backend.plan(&batch)?;
    backend.selective_scan(&plan, op)?;
    let (out, state) = (read(backend, &out, total * dim), read(backend, &state, initial.len()));
    Ok((
        relative_l2(&out, &wide(&truth.tokens("y"))),
        relative_l2(&state, &wide(&truth.states("last_state"))),
    ))
}

/// The scan's cases of which there are official results.
pub const OFFICIAL_SCANS: [&str; 10] =
    ["len1", "len7", "len130", "len513", "len2049", "state8", "state64", "plain", "initial_state", "packed"];
