//! A backend that computes nothing and counts: the model and the engine run on it, so they know nothing of
//! the CPU.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};

use mamba::backend::{Backend, Batch, BlockStep, HeadStep, View, ViewMut};
use mamba::checkpoint::{Checkpoint, Tensor};
use mamba::config::Config;
use mamba::engine::{Cancel, EmbedOptions, Event, GenerateOptions, Input, LoadOptions, Output, Task};
use mamba::model::{Adapters, Model, Slots, Workspace};
use mamba::ops::causal_conv1d::CausalConv1d;
use mamba::ops::norm::AddNorm;
use mamba::ops::pool::Pool;
use mamba::ops::selective_scan::SelectiveScan;
use mamba::{DType, Mamba, Result};

type Counts = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// Of each layer taken: where its state lies, and whether it follows another.
type Taken = Arc<Mutex<Vec<(usize, bool)>>>;

/// Counts calls. With `whole` it takes layers of one token a sequence whole, and says where their states lie.
struct Counting {
    counts: Counts,
    whole: Option<Taken>,
}

impl Counting {
    fn count(&self, what: &'static str) -> Result<()> {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
        Ok(())
    }
}

/// Not even memory: a length.
struct Length(usize);

impl Backend for Counting {
    type Buffer = Length;
    type Weight = Length;
    type Plan = usize;
    type LowRanks = ();

    fn name(&self) -> &'static str {
        "counting"
    }

    fn alloc(&mut self, len: usize, _: &str) -> Result<Length> {
        self.count("alloc")?;
        Ok(Length(len))
    }

    fn write(&mut self, buffer: &mut Length, offset: usize, values: &[f32]) -> Result<()> {
        assert!(offset + values.len() <= buffer.0);
        self.count("write")
    }

    fn read(&mut self, buffer: &Length, offset: usize, values: &mut [f32]) -> Result<()> {
        assert!(offset + values.len() <= buffer.0);
        values.fill(0.5);
        self.count("read")
    }

    fn weight(&mut self, tensor: &Tensor, _: DType) -> Result<Length> {
        self.count("weight")?;
        Ok(Length(tensor.elements()))
    }

    fn weight_bytes(&self, weight: &Length) -> u64 {
        weight.0 as u64
    }

    fn plan(&mut self, batch: &Batch) -> Result<usize> {
        self.count("plan")?;
        Ok(batch.tokens())
    }

    fn embedding(&mut self, plan: &usize, _: &Length, out: ViewMut<Length>) -> Result<()> {
        assert_eq!(*plan, out.rows);
        self.count("embedding")
    }

    fn linear(
        &mut self,
        x: View<Length>,
        weight: &Length,
        _: Option<&Length>,
        out: ViewMut<Length>,
    ) -> Result<()> {
        assert_eq!((x.rows, x.cols * out.cols), (out.rows, weight.0));
        self.count("linear")
    }

    fn add_norm(&mut self, _: AddNorm<Length>) -> Result<()> {
        self.count("add_norm")
    }

    fn causal_conv1d(&mut self, _: &usize, _: CausalConv1d<Length>) -> Result<()> {
        self.count("causal_conv1d")
    }

    fn selective_scan(&mut self, _: &usize, _: SelectiveScan<Length>) -> Result<()> {
        self.count("selective_scan")
    }

    fn block_step(&mut self, tokens: &usize, op: BlockStep<Self>) -> Result<bool> {
        let Some(states) = self.whole.as_ref().filter(|_| *tokens == 1) else { return Ok(false) };
        states.lock().unwrap().push((op.state.offset, op.follows));
        assert_eq!(
            (op.residual.rows, op.xz.cols, op.in_proj.0),
            (1, 2 * op.u.cols, op.xz.cols * op.residual.cols)
        );
        self.count("block_step")?;
        Ok(true)
    }

    fn head_step(&mut self, op: HeadStep<Self>) -> Result<bool> {
        assert_eq!(op.weight.0, op.residual.cols * op.logits.cols);
        self.count("head_step")?;
        Ok(self.whole.is_some())
    }

    fn low_ranks(&mut self, _: &[Option<[&Length; 2]>]) -> Result<Option<()>> {
        Ok(Some(()))
    }

    fn add_low_rank(&mut self, tokens: &usize, (): &(), x: View<Length>, out: ViewMut<Length>) -> Result<()> {
        assert_eq!([x.rows, out.rows], [*tokens; 2]);
        self.count("add_low_rank")
    }

    fn accumulate(&mut self, _: View<Length>, _: ViewMut<Length>) -> Result<()> {
        self.count("accumulate")
    }

    fn pool(&mut self, _: &usize, _: Pool<Length>) -> Result<()> {
        self.count("pool")
    }

    fn gather(&mut self, _: View<Length>, rows: &[u32], out: ViewMut<Length>) -> Result<()> {
        assert_eq!(rows.len(), out.rows);
        self.count("gather")
    }

    fn token_logprobs(&mut self, _: View<Length>, _: &[u32], out: &mut [f32]) -> Result<()> {
        out.fill(-1.0);
        self.count("token_logprobs")
    }
}

fn ask(model: &Mamba, task: Task) -> Output {
    let (sender, events) = mpsc::channel();
    model.submit(task, Cancel::default(), move |event| sender.send(event).unwrap()).unwrap();
    match events.recv().unwrap() {
        Event::Done(output) => output,
        other => panic!("{other:?}"),
    }
}

#[test]
fn model_and_engine_run_on_any_backend_and_allocate_nothing_within_a_step() {
    let config = Config::from_json(r#"{"d_model": 8, "n_layer": 3, "vocab_size": 16}"#).unwrap();
    let counts = Counts::default();
    let model = Mamba::with_backend(
        Counting { counts: counts.clone(), whole: None },
        1,
        &Checkpoint::random(config, 1),
        None,
        &LoadOptions { prefill_chunk: Some(10), max_batch: 4, ..LoadOptions::default() },
        &Cancel::default(),
        &mut |_| {},
    )
    .unwrap();
    let loaded = counts.lock().unwrap().clone();
    assert_eq!(loaded["weight"], 1 + 3 * 4);
    let session = model.session();

    // 25 tokens are three chunks; the last chunk's last row gives the first of four tokens.
    let options = GenerateOptions { max_tokens: 4, ..GenerateOptions::default() };
    let output = ask(&model, Task::Generate { prompt: Input::Ids(vec![1; 25]), options: options.clone() });
    let Output::Generated { tokens, .. } = output else { panic!() };
    assert_eq!(tokens, [0; 4], "of equal logits the first");
    let steps = 3 + 3;
    let after = counts.lock().unwrap().clone();
    let expected = [
        ("embedding", steps),
        ("add_norm", steps * (3 + 1)),
        ("causal_conv1d", steps * 3),
        ("selective_scan", steps * 3),
        ("linear", steps * 3 * 4 + 4),
        ("gather", 4),
    ];
    for (what, count) in expected {
        assert_eq!(after[what], count, "{what}");
    }
    assert_eq!(after["alloc"], loaded["alloc"], "nothing is allocated within a step");

    ask(&model, Task::Append { session: session.clone(), input: Input::Ids(vec![2; 12]) });
    ask(&model, Task::Continue { session: session.clone(), options });
    assert_eq!(session.tokens(), 16);
    assert_eq!(session.to_bytes().unwrap().len(), session.byte_length());
    let embed = Task::Embed { inputs: vec![Input::Ids(vec![3; 5]); 40], options: EmbedOptions::default() };
    assert!(matches!(ask(&model, embed), Output::Embeddings { dimensions: 8, .. }));
    assert!(matches!(ask(&model, Task::Score { input: Input::Ids(vec![1; 30]) }), Output::Scores { .. }));
    assert_eq!(counts.lock().unwrap()["alloc"], loaded["alloc"]);
}

/// Where the backend takes layers whole, nothing else is called, and every layer gets its own states.
#[test]
fn a_backend_may_take_a_whole_layer_of_a_step() {
    let config = Config::from_json(r#"{"d_model": 8, "n_layer": 3, "vocab_size": 16}"#).unwrap();
    let (counts, states) = (Counts::default(), Arc::default());
    let mut backend = Counting { counts: counts.clone(), whole: Some(Arc::clone(&states)) };
    let checkpoint = Checkpoint::random(config, 1);
    let model = Model::load(&mut backend, &checkpoint, DType::F32, &mut |_| Ok(())).unwrap();
    let mut slots = Slots::new(&mut backend, model.spec(), 2).unwrap();
    let mut workspace = Workspace::new(&mut backend, model.config(), 16, 16).unwrap();
    let of_layer = model.spec().elements() / 3;
    let layers = [(0, false), (of_layer, true), (2 * of_layer, true)];
    let called = |counts: &Counts| {
        let counts = std::mem::take(&mut *counts.lock().unwrap());
        counts.into_iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    };
    called(&counts);

    let mut batch = Batch::new();
    batch.push(&[1], 0, true);
    model.forward(&mut backend, &batch, &mut slots, &mut workspace).unwrap();
    assert_eq!(called(&counts), "add_norm 1, block_step 3, embedding 1, plan 1");
    assert_eq!(std::mem::take(&mut *states.lock().unwrap()), layers);

    let mut rows = 0;
    let choose = &mut |_: &mut Counting, logits: ViewMut<Length>, _: usize| {
        rows += logits.rows;
        Ok(())
    };
    model.decode(&mut backend, &1, 1, false, &mut slots, &mut workspace, choose).unwrap();
    assert_eq!(called(&counts), "block_step 3, embedding 1, head_step 1");
    assert_eq!((rows, &*states.lock().unwrap()), (1, &layers.to_vec()));

    batch.push(&[1, 2], 1, true);
    model.forward(&mut backend, &batch, &mut slots, &mut workspace).unwrap();
    let composed = "add_norm 4, causal_conv1d 3, embedding 1, linear 12, plan 1, selective_scan 3";
    assert_eq!(called(&counts), composed);
}

/// Adapters add to the products of a step that has some, and to no other's, whatever step was before.
#[test]
fn what_adapters_add_to_is_composed() {
    let config = Config::from_json(r#"{"d_model": 8, "n_layer": 3, "vocab_size": 16}"#).unwrap();
    let counts = Counts::default();
    let mut backend = Counting { counts: counts.clone(), whole: Some(Arc::default()) };
    let checkpoint = Checkpoint::random(config, 1);
    let model = Model::load(&mut backend, &checkpoint, DType::F32, &mut |_| Ok(())).unwrap();
    let mut slots = Slots::new(&mut backend, model.spec(), 2).unwrap();
    let mut workspace = Workspace::new(&mut backend, model.config(), 16, 16).unwrap();
    let adapters = common::adapters::adapters(model.config()).open(model.config());
    workspace.adapters = Some(Adapters::load(&mut backend, model.config(), &adapters, 16).unwrap());
    let (lora, state) = (0, 1);
    let called = || {
        let counts = std::mem::take(&mut *counts.lock().unwrap());
        counts.into_iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    };
    called();

    let plain = "block_step 3, embedding 1, head_step 1";
    let recorded = "add_low_rank 12, add_norm 4, causal_conv1d 3, embedding 1, linear 13, selective_scan 3";
    let grouped =
        "accumulate 12, add_norm 4, causal_conv1d 3, embedding 1, linear 36, plan 1, selective_scan 3";
    let whole = "add_norm 1, block_step 3, embedding 1, plan 1";
    let mut batch = Batch::new();
    batch.push(&[1], 0, true);
    // Each behind each.
    for (adapter, expected) in [(Some(lora), grouped), (Some(state), whole), (None, whole)] {
        for adapted in [true, false] {
            workspace.adapters.as_mut().unwrap().assign([(1, adapter)].into_iter());
            model.forward(&mut backend, &batch, &mut slots, &mut workspace).unwrap();
            assert_eq!(called(), expected, "{adapter:?}");
            for adapted in [adapted, !adapted, adapted] {
                let choose = &mut |_: &mut Counting, _: ViewMut<Length>, _: usize| Ok(());
                model.decode(&mut backend, &1, 1, adapted, &mut slots, &mut workspace, choose).unwrap();
                assert_eq!(called(), if adapted { recorded } else { plain });
            }
        }
    }
}
