//! The prefix cache through the engine: what is not computed again, and that no answer is another for it.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::watched::{Window, watched, watched_with};
use mamba::engine::{Cancel, EmbedOptions, Event, GenerateOptions, Input, LoadOptions, Output, Task};
use mamba::generate::SamplerOptions;
use mamba::{Error, Mamba};

fn with_cache(bytes: u64) -> LoadOptions {
    LoadOptions { prefix_cache: bytes, ..LoadOptions::default() }
}

fn ask(model: &Mamba, task: Task) -> Result<Output, Error> {
    let (sender, events) = mpsc::channel();
    model.submit(task, Cancel::default(), move |event| drop(sender.send(event)))?;
    match events.recv_timeout(Duration::from_secs(60)).expect("an answer") {
        Event::Done(output) => Ok(output),
        Event::Failed(error) => Err(error),
        Event::Token(_) => panic!("nothing streams here"),
    }
}

/// Tokens 0 to 69, of which the first `shared` are the same for all.
fn prompt(shared: usize, length: usize, own: u32) -> Vec<u32> {
    let id = |i: usize| if i < shared { (i * 7 % 50) as u32 } else { 50 + (own + i as u32 * own) % 20 };
    (0..length).map(id).collect()
}

/// The tokens, the log-probabilities' bits, and how many tokens of the prompt were cached.
fn generate(model: &Mamba, prompt: &[u32]) -> (Vec<u32>, Vec<u32>, usize) {
    let sampler = SamplerOptions { temperature: 1.0, ..SamplerOptions::default() };
    let options = GenerateOptions {
        max_tokens: 12,
        sampler,
        seed: Some(5),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    match ask(model, Task::Generate { prompt: Input::Ids(prompt.to_vec()), options }).unwrap() {
        Output::Generated { tokens, logprobs, usage, .. } => {
            assert_eq!(usage.prompt_tokens, prompt.len());
            (tokens, logprobs.iter().map(|x| x.to_bits()).collect(), usage.cached_tokens)
        }
        other => panic!("{other:?}"),
    }
}

fn cache(model: &Mamba, prefix: &[u32]) -> usize {
    match ask(model, Task::CachePrefix { input: Input::Ids(prefix.to_vec()) }).unwrap() {
        Output::Cached { tokens } => tokens,
        other => panic!("{other:?}"),
    }
}

/// Tokens of prompts that were computed since step `begin`.
fn computed(window: &Window, begin: usize) -> usize {
    window.steps()[begin..].iter().flatten().map(Vec::len).filter(|tokens| *tokens > 1).sum()
}

#[test]
fn what_two_prompts_share_is_computed_no_third_time_and_nothing_else_changes() {
    let (plain, _) = watched(&LoadOptions::default());
    // Chunks that end elsewhere, a few at a time; states on the host, and on the "device".
    for (own_memory, prefill_chunk, max_batch) in [(false, 512, 32), (true, 512, 32), (true, 13, 2)] {
        let options = LoadOptions { prefill_chunk: Some(prefill_chunk), max_batch, ..with_cache(1 << 20) };
        let (model, window) = watched_with(&options, own_memory);
        for (i, expected) in [0, 0, 100, 100, 100].into_iter().enumerate() {
            let ids = prompt(100, 130, 1 + i as u32);
            let (begin, (tokens, logprobs, cached)) = (window.steps().len(), generate(&model, &ids));
            assert_eq!(cached, expected, "prompt {i}");
            assert_eq!(computed(&window, begin), 130 - expected, "prompt {i}");
            let (plain_tokens, plain_logprobs, none) = generate(&plain, &ids);
            assert_eq!((tokens, logprobs, none), (plain_tokens, plain_logprobs, 0), "prompt {i}");
        }
        // The same prompt again: once more to learn that it comes again, then but its last token.
        let again = prompt(100, 130, 3);
        assert_eq!([(); 3].map(|()| generate(&model, &again).2), [100, 129, 129]);
        let stats = model.stats().prefix_cache;
        assert_eq!((stats.lookups, stats.hits, stats.states), (8, 6, 2));
        assert_eq!(stats.cached_tokens, 3 * 100 + 100 + 129 + 129);
        assert!(stats.bytes > 2 * model.info().state_bytes && stats.bytes <= 1 << 20, "{stats:?}");
    }
}

#[test]
fn appends_and_last_logits_use_it_and_what_needs_every_token_does_not() {
    let (plain, _) = watched(&LoadOptions::default());
    let (model, window) = watched(&with_cache(1 << 20));
    assert_eq!(cache(&model, &prompt(80, 80, 0)), 80);
    assert_eq!(cache(&model, &prompt(80, 80, 0)), 80);
    assert_eq!(computed(&window, 0), 80, "not twice");
    let ids = prompt(80, 100, 1);
    let append = |model: &Mamba| {
        let session = model.session();
        let task = Task::Append { session: session.clone(), input: Input::Ids(ids.clone()) };
        assert_eq!(ask(model, task).unwrap(), Output::Appended { tokens: 100 });
        session.to_bytes().unwrap()
    };
    let forward =
        |model: &Mamba, all| ask(model, Task::Forward { input: Input::Ids(ids.clone()), all }).unwrap();
    let score = |model: &Mamba| ask(model, Task::Score { input: Input::Ids(ids.clone()) }).unwrap();
    let embed = |model: &Mamba| {
        let inputs = vec![Input::Ids(ids.clone())];
        ask(model, Task::Embed { inputs, options: EmbedOptions::default() }).unwrap()
    };
    let state = |bytes: Vec<u8>| {
        bytes[bytes.len() - 32 - model.info().state_bytes as usize..bytes.len() - 32].to_vec()
    };

    let begin = window.steps().len();
    assert!(state(append(&model)) == state(append(&plain)));
    assert_eq!(computed(&window, begin), 100 - 1 - 80, "all but the pending token and what is cached");
    let begin = window.steps().len();
    assert_eq!(forward(&model, false), forward(&plain, false));
    assert!(computed(&window, begin) <= 20);
    let begin = window.steps().len();
    assert_eq!(forward(&model, true), forward(&plain, true));
    assert_eq!(score(&model), score(&plain));
    assert_eq!(embed(&model), embed(&plain));
    assert_eq!(computed(&window, begin), 100 + 99 + 100);
}

#[test]
fn many_at_once_and_a_budget_that_holds_few_states() {
    let (plain, _) = watched(&LoadOptions::default());
    let state = plain.info().state_bytes;
    for own_memory in [false, true] {
        let options = LoadOptions { max_batch: 4, prefill_chunk: Some(40), ..with_cache(3 * state) };
        let (model, _) = watched_with(&options, own_memory);
        let prompts: Vec<Vec<u32>> = (0..60).map(|i| prompt(40 + 20 * (i % 5), 150, i as u32 % 7)).collect();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = prompts.iter().map(|ids| scope.spawn(|| generate(&model, ids))).collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for (i, (ids, (tokens, logprobs, _))) in prompts.iter().zip(&answers).enumerate() {
            let expected = generate(&plain, ids);
            assert_eq!((tokens, logprobs), (&expected.0, &expected.1), "prompt {i}");
        }
        assert!(answers.iter().any(|(_, _, cached)| *cached > 0));
    }
}

#[test]
fn without_one_it_is_refused_and_too_small_a_one_too() {
    let (plain, _) = watched(&LoadOptions::default());
    let error = ask(&plain, Task::CachePrefix { input: Input::Ids(vec![1]) }).unwrap_err();
    assert_eq!(error.code(), "OPTION_INVALID", "{error}");
    let (model, _) = watched(&with_cache(1 << 20));
    let error = ask(&model, Task::CachePrefix { input: Input::Ids(Vec::new()) }).unwrap_err();
    assert_eq!(error.code(), "EMPTY_PROMPT", "{error}");
    let config =
        mamba::config::Config::from_json(r#"{"d_model": 16, "n_layer": 2, "vocab_size": 72}"#).unwrap();
    let checkpoint = mamba::checkpoint::Checkpoint::random(config, 7);
    let device = mamba::engine::Device::Cpu;
    let options = LoadOptions { device, ..with_cache(plain.info().state_bytes - 1) };
    let refused = Mamba::from_checkpoint(&checkpoint, None, &options, &Cancel::default(), &mut |_| {});
    let error = refused.err().unwrap();
    assert_eq!(error.code(), "OPTION_INVALID", "{error}");
}
