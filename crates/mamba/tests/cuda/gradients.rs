//! The scan's gradients through the Rust launchers: against the official float64 ones, and against reference.rs where
//! sequences are cut in time, empty, or begin fresh.

use mamba::DType;
use mamba::cuda::Cuda;
use mamba::ops::selective_scan::reference;
use mamba_kernels::selective_scan::{Backward, Forward, backward, chunks, forward};
use mamba_kernels::{Buffer, Device, Float, Rows, RowsMut, States};

use crate::common::{Rng, Truth, relative_l2, wide};

/// Arguments of a scan in f32, [token, channel]; states [sequences, d_state, d_inner], sequence `i` in slot `i`.
struct Case {
    d_inner: usize,
    d_state: usize,
    cu_seqlens: Vec<usize>,
    fresh: Vec<bool>,
    u: Vec<f32>,
    delta: Vec<f32>,
    delta_bias: Option<Vec<f32>>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Option<Vec<f32>>,
    z: Option<Vec<f32>>,
    initial: Vec<f32>,
    y_grad: Vec<f32>,
    last_grad: Vec<f32>,
}

#[derive(Default)]
struct Gradients<T> {
    u: T,
    delta: T,
    z: T,
    b: T,
    c: T,
    initial: T,
    a: T,
    d: T,
    delta_bias: T,
}

impl<T> Gradients<T> {
    fn named(&self) -> [(&'static str, &T); 9] {
        let Self { u, delta, z, b, c, initial, a, d, delta_bias } = self;
        [
            ("du", u),
            ("ddelta", delta),
            ("dz", z),
            ("dB", b),
            ("dC", c),
            ("dh0", initial),
            ("dA", a),
            ("dD", d),
            ("dbias", delta_bias),
        ]
    }
}

fn upload(device: &Device, values: &[f32]) -> Buffer {
    let mut buffer = device.alloc(values.len(), Float::F32).unwrap();
    device.write(&mut buffer, 0, values).unwrap();
    buffer
}

fn rows(buffer: &Buffer, rows: usize, cols: usize) -> Rows<'_> {
    Rows { buffer, offset: 0, rows, cols, stride: cols }
}

fn rows_mut(buffer: &mut Buffer, rows: usize, cols: usize) -> RowsMut<'_> {
    RowsMut { buffer, offset: 0, rows, cols, stride: cols }
}

impl Case {
    fn tokens(&self) -> usize {
        *self.cu_seqlens.last().unwrap()
    }

    fn state(&self) -> usize {
        self.d_state * self.d_inner
    }

    fn on_the_gpu(&self, device: &Device) -> Gradients<Vec<f32>> {
        let (tokens, d_inner, d_state) = (self.tokens(), self.d_inner, self.d_state);
        let slots: Vec<usize> = (0..self.fresh.len()).collect();
        let batch = device.batch(&vec![0; tokens], &self.cu_seqlens, &slots, &self.fresh).unwrap();
        let up = |values: &Vec<f32>| upload(device, values);
        let nans = |len: usize| upload(device, &vec![f32::NAN; len]);
        let (u, delta, a, b, c) = (up(&self.u), up(&self.delta), up(&self.a), up(&self.b), up(&self.c));
        let (bias, d, z) =
            (self.delta_bias.as_ref().map(up), self.d.as_ref().map(up), self.z.as_ref().map(up));
        let mut state = up(&self.initial);
        let (mut y, mut boundary) = (nans(tokens * d_inner), nans(chunks(&batch) * self.state()));
        let stride = self.state();
        forward(
            device,
            &batch,
            Forward {
                u: rows(&u, tokens, d_inner),
                delta: rows(&delta, tokens, d_inner),
                delta_bias: bias.as_ref(),
                a: &a,
                b: rows(&b, tokens, d_state),
                c: rows(&c, tokens, d_state),
                d: d.as_ref(),
                z: z.as_ref().map(|z| rows(z, tokens, d_inner)),
                state: Some(States { buffer: &mut state, offset: 0, slot_stride: stride }),
                out: rows_mut(&mut y, tokens, d_inner),
                boundary: Some(&mut boundary),
                whole: false,
            },
        )
        .unwrap();
        let (y_grad, mut last_grad) = (up(&self.y_grad), up(&self.last_grad));
        let channels = || nans(tokens * d_inner);
        let (mut du, mut ddelta, mut dz) = (channels(), channels(), z.as_ref().map(|_| channels()));
        let (mut db, mut dc) = (nans(tokens * d_state), nans(tokens * d_state));
        let (mut da, mut dinitial) = (nans(stride), nans(stride * slots.len()));
        let (mut dd, mut dbias) = (d.as_ref().map(|_| nans(d_inner)), bias.as_ref().map(|_| nans(d_inner)));
        backward(
            device,
            &batch,
            Backward {
                u: rows(&u, tokens, d_inner),
                delta: rows(&delta, tokens, d_inner),
                delta_bias: bias.as_ref(),
                a: &a,
                b: rows(&b, tokens, d_state),
                c: rows(&c, tokens, d_state),
                d: d.as_ref(),
                z: z.as_ref().map(|z| rows(z, tokens, d_inner)),
                boundary: &boundary,
                out_grad: rows(&y_grad, tokens, d_inner),
                last_state_grad: Some(States { buffer: &mut last_grad, offset: 0, slot_stride: stride }),
                u_grad: rows_mut(&mut du, tokens, d_inner),
                delta_grad: rows_mut(&mut ddelta, tokens, d_inner),
                z_grad: dz.as_mut().map(|dz| rows_mut(dz, tokens, d_inner)),
                b_grad: rows_mut(&mut db, tokens, d_state),
                c_grad: rows_mut(&mut dc, tokens, d_state),
                a_grad: &mut da,
                d_grad: dd.as_mut(),
                delta_bias_grad: dbias.as_mut(),
                initial_state_grad: Some(States { buffer: &mut dinitial, offset: 0, slot_stride: stride }),
            },
        )
        .unwrap();
        let read = |buffer: &Buffer| {
            let mut values = vec![0.0; buffer.len()];
            device.read(buffer, 0, &mut values).unwrap();
            values
        };
        let optional = |buffer: &Option<Buffer>| buffer.as_ref().map(read).unwrap_or_default();
        Gradients {
            u: read(&du),
            delta: read(&ddelta),
            z: optional(&dz),
            b: read(&db),
            c: read(&dc),
            initial: read(&dinitial),
            a: read(&da),
            d: optional(&dd),
            delta_bias: optional(&dbias),
        }
    }

    fn by_definition(&self) -> Gradients<Vec<f64>> {
        let (d_inner, d_state) = (self.d_inner, self.d_state);
        let (bias, d) = (self.delta_bias.as_ref().map(|x| wide(x)), self.d.as_ref().map(|x| wide(x)));
        let mut sums = Gradients::<Vec<f64>>::default();
        let add = |sum: &mut Vec<f64>, part: Vec<f64>| {
            sum.resize(part.len(), 0.0);
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        };
        for (s, range) in self.cu_seqlens.windows(2).enumerate() {
            let part = |x: &[f32], width: usize| wide(&x[range[0] * width..range[1] * width]);
            let state = |x: &[f32]| wide(&x[s * self.state()..(s + 1) * self.state()]);
            let z = self.z.as_ref().map(|z| part(z, d_inner));
            let inputs = reference::Inputs {
                u: &part(&self.u, d_inner),
                delta: &part(&self.delta, d_inner),
                delta_bias: bias.as_deref(),
                a: &wide(&self.a),
                b: &part(&self.b, d_state),
                c: &part(&self.c, d_state),
                d: d.as_deref(),
                z: z.as_deref(),
                d_inner,
                d_state,
            };
            let initial = if self.fresh[s] { vec![0.0; self.state()] } else { state(&self.initial) };
            let grads = reference::selective_scan_backward(
                inputs,
                &initial,
                &part(&self.y_grad, d_inner),
                &state(&self.last_grad),
            );
            sums.u.extend(grads.u);
            sums.delta.extend(grads.delta);
            sums.z.extend(grads.z.unwrap_or_default());
            sums.b.extend(grads.b);
            sums.c.extend(grads.c);
            // What begins at zero does not depend on what its slot holds.
            sums.initial.extend(if self.fresh[s] { vec![0.0; self.state()] } else { grads.initial_state });
            add(&mut sums.a, grads.a);
            add(&mut sums.d, grads.d.unwrap_or_default());
            add(&mut sums.delta_bias, grads.delta_bias.unwrap_or_default());
        }
        sums
    }
}

fn compare(what: &str, actual: &Gradients<Vec<f32>>, expected: &Gradients<Vec<f64>>) -> f64 {
    let mut worst = 0.0f64;
    for ((name, actual), (_, expected)) in actual.named().into_iter().zip(expected.named()) {
        let error = relative_l2(actual, expected);
        assert!(error < 2e-6, "{what}: {name} {error:.2e}");
        worst = worst.max(error);
    }
    worst
}

#[test]
fn official() {
    let cuda = Cuda::new(DType::F32).unwrap();
    for name in ["len1", "len7", "state8", "plain", "initial_state", "packed"] {
        let truth = Truth::scan(name);
        let [.., d_inner, d_state] = truth.shape("A")[..] else { panic!("A") };
        let full = truth.has("z");
        let cu_seqlens = truth.cu_seqlens();
        let sequences = cu_seqlens.len() - 1;
        let states = |tensor: &str| match truth.has(tensor) {
            true => truth.states(tensor),
            false => vec![0.0; sequences * d_state * d_inner],
        };
        let case = Case {
            d_inner,
            d_state,
            fresh: vec![false; sequences],
            u: truth.tokens("u"),
            delta: truth.tokens("delta"),
            delta_bias: full.then(|| truth.floats("bias")),
            a: truth.states("A"),
            b: truth.tokens("B"),
            c: truth.tokens("C"),
            d: full.then(|| truth.floats("D")),
            z: full.then(|| truth.tokens("z")),
            initial: states("h0"),
            y_grad: truth.tokens("dy"),
            last_grad: states("dlast_state"),
            cu_seqlens,
        };
        let actual = case.on_the_gpu(cuda.device());
        let optional = |there: bool, values: &dyn Fn() -> Vec<f32>| {
            if there { wide(&values()) } else { Vec::new() }
        };
        let expected = Gradients {
            u: wide(&truth.tokens("du")),
            delta: wide(&truth.tokens("ddelta")),
            z: optional(full, &|| truth.tokens("dz")),
            b: wide(&truth.tokens("dB")),
            c: wide(&truth.tokens("dC")),
            // Where the file has none, the definition's, which gradients.rs holds against it.
            initial: match truth.has("dh0") {
                true => wide(&truth.states("dh0")),
                false => case.by_definition().initial,
            },
            a: wide(&truth.states("dA")),
            d: optional(full, &|| truth.floats("dD")),
            delta_bias: optional(full, &|| truth.floats("dbias")),
        };
        println!("{name}: worst relative error {:.2e}", compare(name, &actual, &expected));
    }
}

#[test]
fn of_random_packs() {
    let cuda = Cuda::new(DType::F32).unwrap();
    let rng = &mut Rng(23);
    // Cut in time (few channels, long), whole, other numbers of states and channels.
    for (d_inner, d_state, lengths) in [
        (64, 16, &[1500, 0, 130, 1][..]),
        (64, 16, &[5000][..]),
        (72, 16, &[1, 64, 65, 0, 200][..]),
        (64, 5, &[70, 0, 3][..]),
        (7, 16, &[130, 1][..]),
        (33, 200, &[66][..]),
    ] {
        let mut cu_seqlens = vec![0];
        for length in lengths {
            cu_seqlens.push(cu_seqlens.last().unwrap() + length);
        }
        let (tokens, state) = (*cu_seqlens.last().unwrap(), d_inner * d_state);
        let case = Case {
            d_inner,
            d_state,
            fresh: (0..lengths.len()).map(|s| s % 2 == 1).collect(),
            u: rng.floats(tokens * d_inner, 1.0),
            delta: rng.floats(tokens * d_inner, 1.0),
            delta_bias: Some(rng.floats(d_inner, 1.0)),
            a: rng.floats(state, 1.0).iter().map(|a| -a.abs() - 0.05).collect(),
            b: rng.floats(tokens * d_state, 1.0),
            c: rng.floats(tokens * d_state, 1.0),
            d: Some(rng.floats(d_inner, 1.0)),
            z: Some(rng.floats(tokens * d_inner, 1.0)),
            initial: rng.floats(lengths.len() * state, 1.0),
            y_grad: rng.floats(tokens * d_inner, 1.0),
            last_grad: rng.floats(lengths.len() * state, 1.0),
            cu_seqlens,
        };
        let what = format!("{d_inner} channels, {d_state} states, lengths {lengths:?}");
        let worst = compare(&what, &case.on_the_gpu(cuda.device()), &case.by_definition());
        println!("{what}: worst relative error {worst:.2e}");
    }
}
