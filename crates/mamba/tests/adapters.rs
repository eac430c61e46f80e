//! Adapters chosen by request: what they give is what the merged model gives, whatever runs beside them.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::engine::{
    Cancel, EmbedOptions, Event, GenerateOptions, Input, LoadOptions, Output, Pooling, Standing, Task,
};
use mamba::train::adapter::{Adapter, AdapterKind};
use mamba::train::run::{RunConfig, run};
use mamba::{DType, Mamba};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mamba-novels-7m");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../__test__/fixtures/room-with-a-view.txt");

/// Trains an adapter a few steps, far enough that it changes what is generated.
fn trained(out: &Path, adapter: Value) -> PathBuf {
    let config = json!({
        "out": out,
        "model": MODEL,
        "data": { "files": [TEXT] },
        "batch": { "size": 1, "length": 64 },
        "adapter": adapter,
        "optimizer": { "lr": 2e-2, "weightDecay": 0.0 },
        "schedule": { "decay": "constant" },
        "steps": 4,
        "threads": 2,
    });
    let config = RunConfig::from_json(&config.to_string()).unwrap();
    run(&config, &Cancel::default(), &mut |_| {}).unwrap().adapter.unwrap()
}

fn load(checkpoint: &Checkpoint, adapters: &[(&str, &Path)]) -> mamba::Result<Mamba> {
    let adapters = adapters.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf())).collect();
    let options = LoadOptions {
        dtype: Some(DType::F32),
        threads: Some(2),
        max_batch: 8,
        prefix_cache: 64 << 20,
        adapters,
        ..LoadOptions::default()
    };
    Mamba::from_checkpoint(checkpoint, None, &options, &Cancel::default(), &mut |_| {})
}

/// Starts a task; the channel brings its end.
fn start(
    model: &Mamba,
    adapter: Option<&str>,
    task: Task,
) -> mamba::Result<mpsc::Receiver<mamba::Result<Output>>> {
    let (sender, receiver) = mpsc::channel();
    let standing = Standing { adapter: adapter.map(str::to_owned), ..Standing::default() };
    model.submit_as(standing, task, Cancel::default(), move |event| {
        let _ = match event {
            Event::Token(_) => Ok(()),
            Event::Done(output) => sender.send(Ok(output)),
            Event::Failed(error) => sender.send(Err(error)),
        };
    })?;
    Ok(receiver)
}

fn logits(model: &Mamba, adapter: Option<&str>, ids: &[u32]) -> Vec<f32> {
    let task = Task::Forward { input: Input::Ids(ids.to_vec()), all: true };
    match start(model, adapter, task).unwrap().recv().unwrap().unwrap() {
        Output::Logits { data, .. } => data,
        other => panic!("{other:?}"),
    }
}

fn generate(ids: &[u32]) -> Task {
    let options = GenerateOptions { max_tokens: 24, ignore_eos: true, ..GenerateOptions::default() };
    Task::Generate { prompt: Input::Ids(ids.to_vec()), options }
}

fn tokens(receiver: &mpsc::Receiver<mamba::Result<Output>>) -> Vec<u32> {
    match receiver.recv().unwrap().unwrap() {
        Output::Generated { tokens, .. } => tokens,
        other => panic!("{other:?}"),
    }
}

fn ids(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (seed * 977 + i * 131) % 8192).collect()
}

#[test]
fn each_request_has_its_own_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let lora = |targets: Value| json!({ "kind": "lora", "rank": 3, "alpha": 6.0, "targets": targets });
    let all = trained(&folder.path().join("all"), lora(json!(["in_proj", "x_proj", "dt_proj", "out_proj"])));
    let some = trained(&folder.path().join("some"), lora(json!(["x_proj"])));
    let state = trained(&folder.path().join("state"), json!({ "kind": "state" }));
    let base = Checkpoint::open(Path::new(MODEL), &OpenOptions::default()).unwrap();
    let model = load(&base, &[("all", &all), ("some", &some), ("state", &state)]).unwrap();
    assert_eq!(model.adapters(), ["all", "some", "state"]);

    let prompt = ids(1, 40);
    let plain = logits(&model, None, &prompt);
    assert_eq!(plain, logits(&load(&base, &[]).unwrap(), None, &prompt));
    let largest = |values: &[f32]| values.iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = |a: &[f32], b: &[f32]| {
        largest(&std::iter::zip(a, b).map(|(a, b)| a - b).collect::<Vec<_>>()) / largest(a)
    };
    for (name, path) in [("all", &all), ("some", &some)] {
        let merged = Adapter::open(path, base.config()).unwrap().merged(&base).unwrap();
        let expected = logits(&load(&merged, &[]).unwrap(), None, &prompt);
        let got = logits(&model, Some(name), &prompt);
        assert!(difference(&expected, &plain) > 1e-2, "{name} changes nothing");
        assert!(difference(&expected, &got) < 1e-5, "{name}: {}", difference(&expected, &got));
    }

    // The learned state is what a session that begins from it gives.
    let AdapterKind::State(values) = Adapter::open(&state, base.config()).unwrap().kind else { panic!() };
    assert!(largest(&values) > 1e-3);
    assert!(difference(&plain, &logits(&model, Some("state"), &prompt)) > 1e-2);

    // The mean over a text's tokens does not remember the text that had its slot before: of the first token, the mean is
    // the last hidden state.
    let vector = |pooling, ids: Vec<u32>| {
        let options = EmbedOptions { pooling, ..EmbedOptions::default() };
        let task = Task::Embed { inputs: vec![Input::Ids(ids)], options };
        match start(&model, Some("state"), task).unwrap().recv().unwrap().unwrap() {
            Output::Embeddings { data, .. } => data,
            other => panic!("{other:?}"),
        }
    };
    vector(Pooling::Mean, ids(3, 20));
    let (mean, last) = (vector(Pooling::Mean, vec![7]), vector(Pooling::Last, vec![7]));
    assert!(difference(&last, &mean) < 1e-6, "{}", difference(&last, &mean));

    // Together, in one batch, each gives what it gives alone. Prompts share a beginning, which the prefix cache has
    // of the model without adapters only.
    let chosen =
        [None, Some("all"), Some("some"), Some("state"), Some("all"), None, Some("some"), Some("state")];
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| [ids(1, 30), ids(i, 5 + i)].concat()).collect();
    let alone: Vec<_> = std::iter::zip(chosen, &prompts)
        .map(|(adapter, prompt)| tokens(&start(&model, adapter, generate(prompt)).unwrap()))
        .collect();
    let together: Vec<_> = std::iter::zip(chosen, &prompts)
        .map(|(adapter, prompt)| start(&model, adapter, generate(prompt)).unwrap())
        .collect();
    for (expected, receiver) in alone.iter().zip(&together) {
        assert_eq!(&tokens(receiver), expected);
    }
    let same_prompt: Vec<_> = [None, Some("all"), Some("some"), Some("state")]
        .map(|adapter| tokens(&start(&model, adapter, generate(&prompts[0])).unwrap()))
        .to_vec();
    for (i, one) in same_prompt.iter().enumerate() {
        assert!(same_prompt[..i].iter().all(|other| other != one), "{i} is another's");
    }
}

#[test]
fn unknown_adapters_and_those_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = trained(&folder.path().join("run"), json!({ "kind": "state" }));
    let base = Checkpoint::open(Path::new(MODEL), &OpenOptions::default()).unwrap();
    let model = load(&base, &[("one", &path)]).unwrap();
    let error = start(&model, Some("two"), generate(&[1])).unwrap_err();
    assert_eq!(error.code(), "OPTION_INVALID");
    assert!(error.to_string().contains("`two`, expected one of `one`"), "{error}");
    let task = Task::CachePrefix { input: Input::Ids(ids(0, 20)) };
    assert_eq!(start(&model, Some("one"), task).unwrap_err().code(), "OPTION_INVALID");

    let error = load(&base, &[("x", folder.path())]).err().unwrap();
    assert_eq!(error.code(), "FILE_NOT_FOUND");
    let config = mamba::config::Config::from_json(r#"{"d_model":64,"n_layer":2,"vocab_size":100}"#).unwrap();
    let error = load(&Checkpoint::random(config, 1), &[("one", &path)]).err().unwrap();
    assert_eq!(error.code(), "ADAPTER_MISMATCH");
}
