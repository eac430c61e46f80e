//! The model and the scan against the official implementation's numbers (`tests/reference/README.md`).

mod common;

use common::{Truth, buffer, here, nans, relative_l2, wide};
use mamba::DType;
use mamba::backend::{Backend, Batch, StateView, View, ViewMut};
use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::cpu::Cpu;
use mamba::cpu::simd::Level;
use mamba::model::{Model, Slots, Workspace};
use mamba::ops::selective_scan::{SelectiveScan, reference};

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&here("../../models/mamba-novels-7m"), &OpenOptions::default()).unwrap()
}

/// A model with what it needs to run.
struct Runner {
    cpu: Cpu,
    model: Model<Cpu>,
    slots: Slots<Cpu>,
    workspace: Workspace<Cpu>,
}

impl Runner {
    fn new(dtype: DType, threads: usize, level: Level) -> Self {
        let mut cpu = Cpu::with_level(threads, level).unwrap();
        let model = Model::load(&mut cpu, &checkpoint(), dtype, &mut |_| Ok(())).unwrap();
        let slots = Slots::new(&mut cpu, model.spec(), 8).unwrap();
        let workspace = Workspace::new(&mut cpu, model.config(), 1024, 1024).unwrap();
        Self { cpu, model, slots, workspace }
    }

    fn f32() -> Self {
        Self::new(DType::F32, 2, Level::detect())
    }

    /// Runs one packed batch; returns its hidden states.
    fn step(&mut self, batch: &Batch) -> Vec<f32> {
        self.model.forward(&mut self.cpu, batch, &mut self.slots, &mut self.workspace).unwrap();
        let mut hidden = vec![0.0; batch.tokens() * self.model.config().d_model];
        self.cpu.read(&self.workspace.hidden, 0, &mut hidden).unwrap();
        hidden
    }

    /// One sequence in slot 0; returns hidden states and logits of all its tokens.
    fn run(&mut self, ids: &[u32], fresh: bool) -> (Vec<f32>, Vec<f32>) {
        let mut batch = Batch::new();
        batch.push(ids, 0, fresh);
        let hidden = self.step(&batch);
        (hidden, self.logits(&(0..ids.len() as u32).collect::<Vec<_>>()))
    }

    fn logits(&mut self, rows: &[u32]) -> Vec<f32> {
        self.model.logits(&mut self.cpu, rows, &mut self.workspace).unwrap();
        let mut logits = vec![0.0; rows.len() * self.model.padded_vocab_size()];
        self.cpu.read(&self.workspace.logits, 0, &mut logits).unwrap();
        logits
    }

    /// Negative log-likelihood of each token of the eight validation windows.
    fn validation(&mut self, truth: &Truth) -> Vec<f32> {
        let ids = truth.ids("val.ids");
        let mut nll = Vec::new();
        for window in 0..8 {
            let ids = &ids[window * 1024..window * 1024 + 1025];
            self.run(&ids[..1024], true);
            let logits = View::dense(&self.workspace.logits, 1024, self.model.padded_vocab_size());
            let mut logprobs = vec![f32::NAN; 1024];
            self.cpu.token_logprobs(logits, &ids[1..], &mut logprobs).unwrap();
            nll.extend(logprobs.iter().map(|x| -x));
        }
        nll
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    best as u32
}

#[test]
fn logits_and_hidden_states() {
    let truth = Truth::novels();
    for level in Level::available() {
        let mut runner = Runner::new(DType::F32, 2, level);
        for prompt in 0..3 {
            let (hidden, logits) = runner.run(&truth.ids(&format!("prompt{prompt}.ids")), true);
            let last = &logits[logits.len() - runner.model.padded_vocab_size()..];
            let mut errors =
                vec![relative_l2(last, &wide(&truth.floats(&format!("prompt{prompt}.logits_last"))))];
            if truth.has(&format!("prompt{prompt}.logits")) {
                errors.push(relative_l2(&logits, &wide(&truth.floats(&format!("prompt{prompt}.logits")))));
                errors.push(relative_l2(&hidden, &wide(&truth.floats(&format!("prompt{prompt}.hidden")))));
            }
            let worst = errors.iter().copied().fold(0.0, f64::max);
            println!(
                "{}, prompt {prompt}: worst relative error of logits and hidden states {worst:.2e}",
                level.name()
            );
            assert!(errors.iter().all(|error| *error < 1e-5), "{errors:?}");
        }
    }
}

#[test]
fn states_of_every_layer() {
    let truth = Truth::novels();
    let mut runner = Runner::f32();
    runner.run(&truth.ids("prompt1.ids"), true);
    let state = runner.slots.read(&mut runner.cpu, 0).unwrap();
    let mut offset = 0;
    let mut worst = 0.0f64;
    for entry in runner.model.spec().entries.clone() {
        let official = truth.floats(&format!("prompt1.{}.{}", entry.name, entry.layer));
        let [rows, d_inner] = entry.shape[..] else { panic!("{:?}", entry.shape) };
        let columns = official.len() / d_inner;
        let ours = &state[offset..offset + entry.elements()];
        offset += entry.elements();
        // Official states are [d_inner, columns]; of the window ours are the newest columns.
        let expected: Vec<f64> = (columns - rows..columns)
            .flat_map(|c| (0..d_inner).map(move |ch| (ch, c)))
            .map(|(ch, c)| f64::from(official[ch * columns + c]))
            .collect();
        let error = relative_l2(ours, &expected);
        worst = worst.max(error);
        assert!(error < 1e-5, "{} of layer {}: {error}", entry.name, entry.layer);
    }
    println!("worst relative error of a layer's state: {worst:.2e}");
    assert_eq!(offset, state.len());
}

#[test]
fn greedy_continuations() {
    let truth = Truth::novels();
    let mut runner = Runner::f32();
    for prompt in 0..3 {
        let expected = truth.ids(&format!("prompt{prompt}.greedy"));
        let (_, logits) = runner.run(&truth.ids(&format!("prompt{prompt}.ids")), true);
        let vocab = runner.model.padded_vocab_size();
        let mut generated = vec![argmax(&logits[logits.len() - vocab..])];
        while generated.len() < 64 {
            let (_, logits) = runner.run(&generated[generated.len() - 1..], false);
            generated.push(argmax(&logits));
        }
        assert_eq!(generated, expected, "prompt {prompt}");
    }
}

#[test]
fn validation_loss_in_every_dtype() {
    let truth = Truth::novels();
    let expected = truth.floats("val.nll");
    for dtype in DType::ALL {
        let nll = Runner::new(dtype, 2, Level::detect()).validation(&truth);
        let worst = nll.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (ours, official) = (mean(&nll), mean(&expected));
        println!("{}: mean nll {ours:.7}, official {official:.7}, worst token {worst:.2e}", dtype.name());
        match dtype {
            DType::F32 => assert!((ours - official).abs() < 2e-5 && worst < 1e-3),
            // The checkpoint's matrices are bf16, so bf16 weights lose nothing; f16 rounds them.
            DType::BF16 => assert!((ours / official - 1.0).abs() < 0.002 && worst < 1e-3),
            DType::F16 => assert!((ours / official - 1.0).abs() < 0.002),
            DType::Q8_0 => assert!((ours / official - 1.0).abs() < 0.001),
            DType::Q4K => assert!((ours / official - 1.0).abs() < 0.025),
        }
    }
}

#[test]
fn chunked_and_stepped_equal_whole_to_the_bit() {
    let truth = Truth::novels();
    let ids = truth.ids("prompt2.ids");
    let mut runner = Runner::f32();
    let (whole, _) = runner.run(&ids, true);
    let state = runner.slots.read(&mut runner.cpu, 0).unwrap();
    for chunk in [1, 7, 64, 100] {
        let mut hidden = Vec::new();
        for (i, ids) in ids.chunks(chunk).enumerate() {
            hidden.extend(runner.run(ids, i == 0).0);
        }
        assert_eq!(hidden, whole, "in chunks of {chunk}");
        assert_eq!(runner.slots.read(&mut runner.cpu, 0).unwrap(), state, "in chunks of {chunk}");
    }
}

#[test]
fn packed_equals_one_by_one_to_the_bit_on_any_number_of_threads() {
    let truth = Truth::novels();
    let texts: Vec<Vec<u32>> = [(0, 3), (10, 0), (20, 1), (30, 150), (200, 40)]
        .iter()
        .map(|(from, len)| truth.ids("val.ids")[*from..from + len].to_vec())
        .collect();
    let mut alone = Vec::new();
    let mut states = Vec::new();
    let mut runner = Runner::new(DType::F32, 1, Level::detect());
    for ids in &texts {
        alone.extend(runner.run(ids, true).0);
        states.push(runner.slots.read(&mut runner.cpu, 0).unwrap());
    }
    for threads in [1, 2, 5] {
        let mut runner = Runner::new(DType::F32, threads, Level::detect());
        let mut batch = Batch::new();
        for (i, ids) in texts.iter().enumerate() {
            batch.push(ids, 7 - i, true);
        }
        assert_eq!(runner.step(&batch), alone, "{threads} threads");
        for (i, state) in states.iter().enumerate() {
            assert_eq!(&runner.slots.read(&mut runner.cpu, 7 - i).unwrap(), state, "{threads} threads");
        }
    }
}

#[test]
fn selective_scan() {
    for level in Level::available() {
        let mut worst = 0.0f64;
        for name in [
            "len1",
            "len7",
            "len130",
            "len513",
            "len2049",
            "state8",
            "state64",
            "plain",
            "initial_state",
            "packed",
        ] {
            let truth = Truth::scan(name);
            let (y, state) = scan(&truth, level);
            worst = worst.max(y).max(state);
            assert!(y < 1e-6 && state < 1e-6, "{name} on {level:?}: y {y:.2e}, last_state {state:.2e}");
        }
        println!("{}: worst relative error {worst:.2e}", level.name());
    }
}

/// Relative errors of y and of the last state; also holds reference.rs itself against the file.
fn scan(truth: &Truth, level: Level) -> (f64, f64) {
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
    let (u, delta) = (truth.tokens("u"), truth.tokens("delta"));
    let (b, c) = (truth.tokens("B"), truth.tokens("C"));
    let z = full.then(|| truth.tokens("z"));
    let (bias, d) = (full.then(|| truth.floats("bias")), full.then(|| truth.floats("D")));
    let a = truth.states("A");
    let initial = match truth.has("h0") {
        true => truth.states("h0"),
        false => vec![0.0; sequences * d_state * dim],
    };
    let expected_y = wide(&truth.tokens("y"));
    let expected_state = wide(&truth.states("last_state"));

    let mut cpu = Cpu::with_level(2, level).unwrap();
    let mut state = buffer(&initial);
    let mut out = nans(total * dim);
    let [u_, delta_, b_, c_, a_] = [&u, &delta, &b, &c, &a].map(|x| buffer(x));
    let (z_, bias_, d_) =
        (z.as_ref().map(|x| buffer(x)), bias.as_ref().map(|x| buffer(x)), d.as_ref().map(|x| buffer(x)));
    let op = SelectiveScan {
        u: View::dense(&u_, total, dim),
        delta: View::dense(&delta_, total, dim),
        delta_bias: bias_.as_ref(),
        a: &a_,
        b: View::dense(&b_, total, d_state),
        c: View::dense(&c_, total, d_state),
        d: d_.as_ref(),
        z: z_.as_ref().map(|z| View::dense(z, total, dim)),
        state: Some(StateView { buffer: &mut state, offset: 0, slot_stride: d_state * dim }),
        out: ViewMut::dense(&mut out, total, dim),
    };
    let plan = cpu.plan(&batch).unwrap();
    cpu.selective_scan(&plan, op).unwrap();

    for (s, range) in cu_seqlens.windows(2).enumerate() {
        let part = |x: &[f32], width: usize| wide(&x[range[0] * width..range[1] * width]);
        let mut h = wide(&initial[s * d_state * dim..(s + 1) * d_state * dim]);
        let z = z.as_ref().map(|z| part(z, dim));
        let (bias, d) = (bias.as_ref().map(|x| wide(x)), d.as_ref().map(|x| wide(x)));
        let inputs = reference::Inputs {
            u: &part(&u, dim),
            delta: &part(&delta, dim),
            delta_bias: bias.as_deref(),
            a: &wide(&a),
            b: &part(&b, d_state),
            c: &part(&c, d_state),
            d: d.as_deref(),
            z: z.as_deref(),
            d_inner: dim,
            d_state,
        };
        let y = reference::selective_scan(inputs, &mut h);
        // The file holds float64 results rounded to float32.
        let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
        assert!(relative_l2(&narrow(&y), &expected_y[range[0] * dim..range[1] * dim]) < 1e-7);
        assert!(relative_l2(&narrow(&h), &expected_state[s * d_state * dim..(s + 1) * d_state * dim]) < 1e-7);
    }
    (relative_l2(&*out, &expected_y), relative_l2(&*state, &expected_state))
}
