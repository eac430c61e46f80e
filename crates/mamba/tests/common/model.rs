//! The reference model on any backend, against the official implementation's numbers.

use mamba::DType;
use mamba::backend::{Backend, Batch, View};
use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::model::{Model, Slots, Workspace};

use super::{Truth, here, relative_l2, wide};

/// The default model.
pub fn checkpoint() -> Checkpoint {
    Checkpoint::open(&here("../../models/mamba-novels-7m"), &OpenOptions::default()).unwrap()
}

/// A model with what it needs to run.
pub struct Runner<B: Backend> {
    pub backend: B,
    pub model: Model<B>,
    pub slots: Slots<B>,
    pub workspace: Workspace<B>,
}

impl<B: Backend> Runner<B> {
    pub fn new(mut backend: B, dtype: DType) -> Self {
        let model = Model::load(&mut backend, &checkpoint(), dtype, &mut |_| Ok(())).unwrap();
        let slots = Slots::new(&mut backend, model.spec(), 100).unwrap();
        let workspace = Workspace::new(&mut backend, model.config(), 1024, 1024).unwrap();
        Self { backend, model, slots, workspace }
    }

    /// Runs one packed batch; returns its hidden states.
    pub fn step(&mut self, batch: &Batch) -> Vec<f32> {
        self.model.forward(&mut self.backend, batch, &mut self.slots, &mut self.workspace).unwrap();
        let mut hidden = vec![0.0; batch.tokens() * self.model.config().d_model];
        self.backend.read(&self.workspace.hidden, 0, &mut hidden).unwrap();
        hidden
    }

    /// One sequence in slot 0; returns hidden states and logits of all its tokens.
    pub fn run(&mut self, ids: &[u32], fresh: bool) -> (Vec<f32>, Vec<f32>) {
        let mut batch = Batch::new();
        batch.push(ids, 0, fresh);
        let hidden = self.step(&batch);
        (hidden, self.logits(&(0..ids.len() as u32).collect::<Vec<_>>()))
    }

    pub fn logits(&mut self, rows: &[u32]) -> Vec<f32> {
        self.model.logits(&mut self.backend, rows, &mut self.workspace).unwrap();
        let mut logits = vec![0.0; rows.len() * self.model.padded_vocab_size()];
        self.backend.read(&self.workspace.logits, 0, &mut logits).unwrap();
        logits
    }

    pub fn state(&mut self, slot: usize) -> Vec<f32> {
        self.slots.read(&mut self.backend, slot).unwrap()
    }

    /// Negative log-likelihood of each token of the eight validation windows.
    pub fn validation(&mut self, truth: &Truth) -> Vec<f32> {
        let ids = truth.ids("val.ids");
        let mut nll = Vec::new();
        for window in 0..8 {
            let ids = &ids[window * 1024..window * 1024 + 1025];
            self.run(&ids[..1024], true);
            let logits = View::dense(&self.workspace.logits, 1024, self.model.padded_vocab_size());
            let mut logprobs = vec![f32::NAN; 1024];
            self.backend.token_logprobs(logits, &ids[1..], &mut logprobs).unwrap();
            nll.extend(logprobs.iter().map(|x| -x));
        }
        nll
    }

    /// The worst relative error of logits and hidden states of the three prompts.
    pub fn logits_and_hidden_states(&mut self, truth: &Truth) -> f64 {
        let mut worst = 0.0f64;
        for prompt in 0..3 {
            let (hidden, logits) = self.run(&truth.ids(&format!("prompt{prompt}.ids")), true);
            let last = &logits[logits.len() - self.model.padded_vocab_size()..];
            let mut compare = |ours: &[f32], name: &str| {
                let official = wide(&truth.floats(&format!("prompt{prompt}.{name}")));
                let error = relative_l2(ours, &official);
                assert!(!error.is_nan(), "{name} of prompt {prompt}");
                worst = worst.max(error);
            };
            compare(last, "logits_last");
            if truth.has(&format!("prompt{prompt}.logits")) {
                compare(&logits, "logits");
                compare(&hidden, "hidden");
            }
        }
        worst
    }

    /// The worst relative error of a state of a layer after prompt 1.
    pub fn states_of_every_layer(&mut self, truth: &Truth) -> f64 {
        self.run(&truth.ids("prompt1.ids"), true);
        let state = self.state(0);
        let mut offset = 0;
        let mut worst = 0.0f64;
        for entry in self.model.spec().entries.clone() {
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
            assert!(!error.is_nan(), "{} of layer {}", entry.name, entry.layer);
            worst = worst.max(error);
        }
        assert_eq!(offset, state.len());
        worst
    }

    /// The tokens of greatest logits after the prompts, 64 each, are the official ones.
    pub fn greedy_continuations(&mut self, truth: &Truth) {
        for prompt in 0..3 {
            let expected = truth.ids(&format!("prompt{prompt}.greedy"));
            let (_, logits) = self.run(&truth.ids(&format!("prompt{prompt}.ids")), true);
            let vocab = self.model.padded_vocab_size();
            let mut generated = vec![argmax(&logits[logits.len() - vocab..])];
            while generated.len() < 64 {
                let (_, logits) = self.run(&generated[generated.len() - 1..], false);
                generated.push(argmax(&logits));
            }
            assert_eq!(generated, expected, "prompt {prompt}");
        }
    }

    /// Prompt 2 in chunks of each size, tokens one by one among them: `compare(what, whole, in chunks)` for the hidden
    /// states and for the state.
    pub fn chunked(&mut self, truth: &Truth, mut compare: impl FnMut(&str, &[f32], &[f32])) {
        let ids = truth.ids("prompt2.ids");
        let (whole, _) = self.run(&ids, true);
        let state = self.state(0);
        for chunk in [1, 7, 64, 100] {
            let mut hidden = Vec::new();
            for (i, ids) in ids.chunks(chunk).enumerate() {
                hidden.extend(self.run(ids, i == 0).0);
            }
            compare(&format!("hidden states in chunks of {chunk}"), &whole, &hidden);
            compare(&format!("state in chunks of {chunk}"), &state, &self.state(0));
        }
    }
}

/// Texts of several lengths, an empty one among them.
pub fn texts(truth: &Truth) -> Vec<Vec<u32>> {
    [(0, 3), (10, 0), (20, 1), (30, 150), (200, 40)]
        .iter()
        .map(|(from, len)| truth.ids("val.ids")[*from..from + len].to_vec())
        .collect()
}

/// Hidden states of the texts one after the other, and the state after each.
pub fn alone<B: Backend>(runner: &mut Runner<B>, texts: &[Vec<u32>]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (mut hidden, mut states) = (Vec::new(), Vec::new());
    for ids in texts {
        hidden.extend(runner.run(ids, true).0);
        states.push(runner.state(0));
    }
    (hidden, states)
}

/// The same in one packed batch, in slots from the last to the first.
pub fn packed<B: Backend>(runner: &mut Runner<B>, texts: &[Vec<u32>]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut batch = Batch::new();
    for (i, ids) in texts.iter().enumerate() {
        batch.push(ids, 7 - i, true);
    }
    (runner.step(&batch), (0..texts.len()).map(|i| runner.state(7 - i)).collect())
}

pub fn mean(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    best as u32
}
