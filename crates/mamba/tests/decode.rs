//! Decoding where the backend chooses tokens (tests/common/ahead.rs): every answer is the one that the host's choosing
//! gives, to the bit.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::adapters::{Adapters, adapters, in_turn};
use common::ahead::{Ahead, Window};
use common::requests::{events, request, said, start, start_with};
use mamba::checkpoint::{Checkpoint, OpenOptions, Tensor};
use mamba::config::Config;
use mamba::cpu::Cpu;
use mamba::engine::{
    Cancel, Device, Event, FinishReason, GenerateOptions, Input, LoadOptions, Output, Session, Standing, Task,
};
use mamba::generate::SamplerOptions;
use mamba::text::Tokenizer;
use mamba::train::adapter::Adapter;
use mamba::{DType, Error, Mamba};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mamba-novels-7m")
}

fn options(max_batch: usize) -> LoadOptions {
    LoadOptions {
        device: Device::Cpu,
        dtype: Some(DType::F32),
        threads: Some(2),
        max_batch,
        prefill_chunk: Some(16),
        ..LoadOptions::default()
    }
}

fn host(max_batch: usize) -> Mamba {
    host_with(&options(max_batch))
}

fn host_with(options: &LoadOptions) -> Mamba {
    Mamba::load(&folder(), options, &Cancel::default(), &mut |_| {}).unwrap()
}

fn ahead(max_batch: usize) -> Mamba {
    ahead_with(&options(max_batch), Arc::default())
}

fn ahead_with(options: &LoadOptions, window: Arc<Window>) -> Mamba {
    let checkpoint = checkpoint();
    let tokenizer = Tokenizer::from_file(checkpoint.tokenizer_path().unwrap()).unwrap();
    let backend = Ahead::new(Cpu::new(2).unwrap(), window);
    Mamba::with_backend(backend, 2, &checkpoint, Some(tokenizer), options, &Cancel::default(), &mut |_| {})
        .unwrap()
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&folder(), &OpenOptions { mmap: true }).unwrap()
}

/// With adapters.
fn adapted(max_batch: usize, adapters: &Adapters) -> LoadOptions {
    LoadOptions { adapters: adapters.named.clone(), ..options(max_batch) }
}

#[test]
fn every_answer_is_what_the_host_would_choose() {
    let (host, ahead) = (host(16), ahead(5));
    let ask_all = |model: &Mamba| -> Vec<String> {
        let all: Vec<_> = (0..120).map(|i| start(model, request(i), Cancel::default())).collect();
        all.iter().map(|one| said(events(one))).collect()
    };
    let (expected, answers) = (ask_all(&host), ask_all(&ahead));
    for (i, (expected, answer)) in expected.iter().zip(&answers).enumerate() {
        assert_eq!(answer, expected, "request {i}: {:?}", request(i as u64));
    }
    let stopped = expected.iter().filter(|answer| answer.contains("Stop")).count();
    assert!(stopped > 20, "{stopped} were stopped");
}

fn append(model: &Mamba, session: &Session, text: &str) {
    let task = Task::Append { session: session.clone(), input: Input::Text(text.into()) };
    assert!(matches!(events(&start(model, task, Cancel::default())).pop(), Some(Event::Done(_))));
}

fn go_on(model: &Mamba, session: &Session, options: &GenerateOptions) -> (String, FinishReason) {
    let task = Task::Continue { session: session.clone(), options: options.clone() };
    match events(&start(model, task, Cancel::default())).pop() {
        Some(Event::Done(Output::Generated { text, finish_reason, .. })) => (text, finish_reason),
        other => panic!("{other:?}"),
    }
}

/// A stop string is seen a step late, yet the session's state is that of its text; alone, and beside others that run ahead.
#[test]
fn sessions_with_stop_strings_hold() {
    let (host, ahead) = (host(8), ahead(8));
    let company = |model: &Mamba| {
        let options = GenerateOptions { max_tokens: 150, ignore_eos: true, ..GenerateOptions::default() };
        let task = Task::Generate { prompt: Input::Text("The sea".into()), options };
        (start(model, task.clone(), Cancel::default()), start(model, task, Cancel::default()))
    };
    for accompanied in [false, true] {
        let sessions = [&host, &ahead].map(|model| {
            let others = accompanied.then(|| company(model));
            let session = model.session();
            append(model, &session, "It was a dark night, and");
            let options = GenerateOptions {
                max_tokens: 60,
                ignore_eos: true,
                stop: vec![" the".into(), ",".into()],
                ..GenerateOptions::default()
            };
            let parts: Vec<_> = (0..6).map(|_| go_on(model, &session, &options)).collect();
            assert!(parts.iter().any(|(_, reason)| *reason == FinishReason::Stop), "{parts:?}");
            if let Some((first, second)) = others {
                assert_eq!(said(events(&first)), said(events(&second)));
            }
            // The state is what lies before the hash at the end.
            let bytes = session.to_bytes().unwrap();
            let end = bytes.len() - 32;
            let state = bytes[end - model.info().state_bytes as usize..end].to_vec();
            (parts, session.tokens(), state)
        });
        assert!(sessions[0] == sessions[1], "accompanied {accompanied}");
    }
}

/// What a session has generated when it is cancelled stays in it, and its state is that of its tokens.
#[test]
fn a_cancelled_session_goes_on_where_it_was() {
    let ahead = ahead(4);
    let greedy = GenerateOptions { max_tokens: 400, ignore_eos: true, ..GenerateOptions::default() };
    let task = |prompt: &str| Task::Generate { prompt: Input::Text(prompt.into()), options: greedy.clone() };
    let Some(Event::Done(Output::Generated { tokens: whole, .. })) =
        events(&start(&ahead, task("The ship"), Cancel::default())).pop()
    else {
        panic!("no text")
    };
    let session = ahead.session();
    append(&ahead, &session, "The ship");
    let before = session.tokens();
    let cancel = Cancel::default();
    let options = GenerateOptions { stream: true, ..greedy.clone() };
    let receiver = start(&ahead, Task::Continue { session: session.clone(), options }, cancel.clone());
    for _ in 0..5 {
        assert!(matches!(receiver.recv_timeout(Duration::from_secs(60)), Ok(Event::Token(_))));
    }
    cancel.cancel();
    let last = events(&receiver).pop();
    assert!(matches!(last, Some(Event::Failed(Error::Aborted))), "{last:?}");
    let generated = (session.tokens() - before) as usize;
    assert!((5..400).contains(&generated), "{generated}");
    let more = GenerateOptions { max_tokens: 20, ..greedy };
    let task = Task::Continue { session, options: more };
    match events(&start(&ahead, task, Cancel::default())).pop() {
        Some(Event::Done(Output::Generated { tokens, .. })) => {
            assert_eq!(tokens, whole[generated..generated + 20]);
        }
        other => panic!("{other:?}"),
    }
}

/// Counted in the tokens that the device computes meanwhile for the one that is left.
#[test]
fn cancelling_frees_the_row_within_one_step() {
    let ahead = ahead(1);
    let options =
        GenerateOptions { max_tokens: 1 << 20, ignore_eos: true, stream: true, ..Default::default() };
    let cancel = Cancel::default();
    let (sender, receiver) = mpsc::channel();
    let (abort, mut seen) = (cancel.clone(), 0);
    let task = Task::Generate { prompt: Input::Ids(vec![5, 6]), options };
    ahead
        .submit(task, cancel, move |event| {
            seen += 1;
            if seen == 5 {
                abort.cancel();
            }
            sender.send(event).unwrap();
        })
        .unwrap();
    // With one slot in all, it is served when the other one has left.
    let next = start(&ahead, Task::Score { input: Input::Ids(vec![1, 2]) }, Cancel::default());
    assert!(matches!(events(&next).pop(), Some(Event::Done(_))));
    let all = events(&receiver);
    // The step that was queued already may still bring a token.
    assert!((6..=7).contains(&all.len()), "{} events", all.len());
    assert!(matches!(all.last(), Some(Event::Failed(Error::Aborted))));
}

#[test]
fn a_panicking_callback_ends_what_was_running_and_no_more() {
    let ahead = ahead(4);
    let (sender, failed) = mpsc::channel();
    let options = GenerateOptions { max_tokens: 50, ignore_eos: true, stream: true, ..Default::default() };
    let task = Task::Generate { prompt: Input::Text("A".into()), options: options.clone() };
    let other = start(&ahead, Task::Generate { prompt: Input::Text("B".into()), options }, Cancel::default());
    ahead
        .submit(task, Cancel::default(), move |event| match event {
            Event::Token(_) => panic!("a callback's panic"),
            last => drop(sender.send(last)),
        })
        .unwrap();
    let last = failed.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(last, Event::Failed(Error::Internal { .. })), "{last:?}");
    events(&other);
    let again = said(events(&start(&ahead, request(3), Cancel::default())));
    assert_eq!(again, said(events(&start(&host(4), request(3), Cancel::default()))));
}

/// A defect of the engine's or the backend's, in the very turn in which a sequence goes from the batch to the decoder's
/// table: everyone is answered, and no slot is lost.
#[test]
fn a_panic_on_the_way_to_the_table_loses_no_slot() {
    let window = Arc::new(Window::default());
    let ahead = ahead_with(&options(2), window.clone());
    let ids = |n: u32| Input::Ids((1..=n).collect());
    let options = GenerateOptions { max_tokens: 5, ignore_eos: true, ..Default::default() };
    for round in 0..3 {
        // A session's state is read, and so the panic comes, in the step in which the other's prompt ends.
        let session = ahead.session();
        let held = ahead.session();
        let ((here, arrived), (go, gone)) = (mpsc::channel(), mpsc::channel::<()>());
        let (set, wait) = (window.clone(), Mutex::new(gone));
        let hold = move |_| {
            here.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
            set.defect.store(true, Ordering::Relaxed);
        };
        ahead.submit(Task::Append { session: held, input: ids(2) }, Cancel::default(), hold).unwrap();
        // Both arrive while the engine's thread is in that callback.
        arrived.recv().unwrap();
        let append = Task::Append { session: session.clone(), input: ids(4) };
        let append = start(&ahead, append, Cancel::default());
        let text = Task::Generate { prompt: ids(3), options: options.clone() };
        let text = start(&ahead, text, Cancel::default());
        go.send(()).unwrap();
        for answer in [append, text] {
            let last = events(&answer).pop();
            assert!(matches!(last, Some(Event::Failed(Error::Internal { .. }))), "{round}: {last:?}");
        }
        assert_eq!(session.tokens(), 0, "as it was");
    }
    // Two at a time, as before.
    let both = [3, 4].map(|i| start(&ahead, request(i), Cancel::default()));
    let expected = host(2);
    for (i, answer) in [3, 4].into_iter().zip(&both) {
        assert_eq!(said(events(answer)), said(events(&start(&expected, request(i), Cancel::default()))));
    }
}

/// Token 71's embedding is NaN, so what has read it has no finite logits.
#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let config = r#"{"d_model": 16, "n_layer": 2, "vocab_size": 72, "tie_embeddings": false}"#;
    let good = Checkpoint::random(Config::from_json(config).unwrap(), 7);
    let tensors = good.tensors().map(|tensor| {
        let mut values = tensor.to_vec().unwrap();
        if tensor.name == "backbone.embedding.weight" {
            values[71 * 16..].fill(f32::NAN);
        }
        Tensor::from_memory(&tensor.name, tensor.shape.clone(), values)
    });
    let poisoned = Checkpoint::from_memory(good.config().clone(), tensors.collect()).unwrap();
    let load = |checkpoint: &Checkpoint| {
        let backend = Ahead::new(Cpu::new(1).unwrap(), Arc::default());
        let cancel = Cancel::default();
        Mamba::with_backend(backend, 1, checkpoint, None, &options(4), &cancel, &mut |_| {}).unwrap()
    };
    let (good, poisoned) = (load(&good), load(&poisoned));
    let task = |ids: &[u32]| {
        // Nobody chooses it.
        let sampler = SamplerOptions { logit_bias: vec![(71, -1e6)], ..SamplerOptions::default() };
        let options = GenerateOptions { max_tokens: 20, ignore_eos: true, sampler, ..Default::default() };
        Task::Generate { prompt: Input::Ids(ids.to_vec()), options }
    };
    let ask = |model: &Mamba, ids: &[u32]| start(model, task(ids), Cancel::default());
    let expected = said(events(&ask(&good, &[1, 2, 3])));
    for _ in 0..2 {
        let [first, bad, second] = [[1, 2, 3], [1, 71, 3], [1, 2, 3]].map(|ids| ask(&poisoned, &ids));
        let end = events(&bad).pop();
        assert!(matches!(end, Some(Event::Failed(Error::LogitsNotFinite { .. }))), "{end:?}");
        assert_eq!([said(events(&first)), said(events(&second))], [&expected; 2].map(String::clone));
    }
}

/// What decodes on the device gives memory back, too, when it ends.
#[test]
fn without_memory_for_a_state_a_request_waits_for_those_that_decode() {
    let window = Arc::new(Window::default());
    let ahead = ahead_with(&options(4), window.clone());
    let session = ahead.session();
    append(&ahead, &session, "The ship");
    let options =
        GenerateOptions { max_tokens: 1 << 20, ignore_eos: true, stream: true, ..Default::default() };
    let stop = Cancel::default();
    let task = Task::Generate { prompt: Input::Ids(vec![5, 6]), options: options.clone() };
    let running = start(&ahead, task, stop.clone());
    let tokens = |count: usize| {
        for _ in 0..count {
            assert!(matches!(running.recv_timeout(Duration::from_secs(60)), Ok(Event::Token(_))));
        }
    };
    tokens(3);
    window.full.store(true, Ordering::Relaxed);
    let options = GenerateOptions { max_tokens: 3, ..options };
    let waiting = start(&ahead, Task::Continue { session, options }, Cancel::default());
    tokens(10);
    assert!(matches!(waiting.try_recv(), Err(mpsc::TryRecvError::Empty)), "it waits");
    window.full.store(false, Ordering::Relaxed);
    let all = events(&waiting);
    assert!(matches!(all.last(), Some(Event::Done(_))), "{all:?}");
    stop.cancel();
    events(&running);
}

/// A callback that panics at the end, too, takes nobody along.
#[test]
fn a_callback_that_always_panics_ends_no_engine() {
    let ahead = ahead(4);
    for _ in 0..6 {
        let options = GenerateOptions { max_tokens: 9, ignore_eos: true, stream: true, ..Default::default() };
        let task = Task::Generate { prompt: Input::Text("A".into()), options };
        ahead.submit(task, Cancel::default(), |_| panic!("a callback's panic")).unwrap();
    }
    while ahead.stats().requests_in_flight > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let again = said(events(&start(&ahead, request(3), Cancel::default())));
    assert_eq!(again, said(events(&start(&host(4), request(3), Cancel::default()))));
}

/// One that rests has no row and no slot; it goes on where it was, again and again.
#[test]
fn one_that_rests_goes_on_where_it_was() {
    let ahead = ahead(1);
    let options = GenerateOptions { max_tokens: 60, ignore_eos: true, stream: true, ..Default::default() };
    let task = Task::Generate { prompt: Input::Text("The ship".into()), options };
    let whole = said(events(&start(&ahead, task.clone(), Cancel::default())));
    let control = Cancel::default();
    let (sender, receiver) = mpsc::channel();
    let (rest, mut seen) = (control.clone(), 0);
    let slow = move |event| {
        seen += 1;
        if seen % 7 == 0 {
            rest.pause(true);
        }
        drop(sender.send(event));
    };
    ahead.submit(task, control.clone(), slow).unwrap();
    let mut all = Vec::new();
    while !matches!(all.last(), Some(Event::Done(_) | Event::Failed(_))) {
        // With one slot in all, it is answered only if the other one rests, or has ended.
        events(&start(&ahead, request(5), Cancel::default()));
        all.extend(receiver.try_iter());
        control.pause(false);
    }
    assert_eq!(said(all), whole);
}

/// Several adapters and none together, in rows that come, go and move.
#[test]
fn each_row_has_its_own_adapter() {
    let adapters = adapters(checkpoint().config());
    let (host, ahead) =
        (host_with(&adapted(16, &adapters)), ahead_with(&adapted(5, &adapters), Arc::default()));
    let ask_all = |model: &Mamba| -> Vec<String> {
        let all = (0..120).map(|i| start_with(model, in_turn(i), request(i), Cancel::default()));
        all.collect::<Vec<_>>().iter().map(|one| said(events(one))).collect()
    };
    let (expected, answers) = (ask_all(&host), ask_all(&ahead));
    for (i, (expected, answer)) in (0..).zip(expected.iter().zip(&answers)) {
        assert_eq!(answer, expected, "request {i} with {:?}: {:?}", in_turn(i), request(i));
    }
    for i in 0..20 {
        let alone = said(events(&start_with(&ahead, in_turn(i), request(i), Cancel::default())));
        assert_eq!(alone, expected[i as usize], "request {i} alone");
    }
}

fn greedy(max_tokens: usize) -> Task {
    let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    Task::Generate { prompt: Input::Text("It was a dark night, and".into()), options }
}

#[test]
fn an_adapter_says_what_the_merged_model_says() {
    let base = checkpoint();
    let adapters = adapters(base.config());
    let ahead = ahead_with(&adapted(8, &adapters), Arc::default());
    let tokens = |one: &mpsc::Receiver<Event>| match events(one).pop() {
        Some(Event::Done(Output::Generated { tokens, .. })) => tokens,
        other => panic!("{other:?}"),
    };
    let names = [Some("all"), None, Some("some"), Some("wide")];
    let together = names.map(|name| start_with(&ahead, name, greedy(40), Cancel::default()));
    let answers = together.each_ref().map(tokens);
    for (i, (name, answer)) in names.iter().zip(&answers).enumerate() {
        let merged = match name {
            Some(name) => {
                let adapter = Adapter::open(adapters.folder(name), base.config()).unwrap();
                adapter.merged(&base).unwrap()
            }
            None => checkpoint(),
        };
        let tokenizer = Tokenizer::from_file(base.tokenizer_path().unwrap()).unwrap();
        let cancel = Cancel::default();
        let merged =
            Mamba::from_checkpoint(&merged, Some(tokenizer), &options(1), &cancel, &mut |_| {}).unwrap();
        assert_eq!(*answer, tokens(&start(&merged, greedy(40), cancel)), "{name:?}");
        assert!(!answers[..i].contains(answer), "{name:?} changes nothing");
    }
}

/// The step without adapters stays what it is, before and after steps with them.
#[test]
fn steps_with_and_without_adapters_are_recorded_apart() {
    let adapters = adapters(checkpoint().config());
    let window = Arc::new(Window::default());
    let ahead = ahead_with(&adapted(2, &adapters), window.clone());
    let order = [None, Some("all"), None, Some("state"), Some("wide"), None, Some("all")];
    let answers = order.map(|name| said(events(&start_with(&ahead, name, greedy(6), Cancel::default()))));
    assert!(answers[2] == answers[0] && answers[5] == answers[0] && answers[6] == answers[1]);
    let recorded = window.recorded.lock().unwrap();
    assert_eq!(recorded.keys().copied().collect::<Vec<_>>(), [(1, false), (1, true)]);
    let (plain, with) = (&recorded[&(1, false)], &recorded[&(1, true)]);
    // A learned state changes no step. Of the six tokens, the first comes with the prompt.
    assert!(plain.replays >= 4 * 5 - 1 && with.replays >= 3 * 5 - 1, "{} {}", plain.replays, with.replays);
    let (added, rest): (Vec<&str>, _) = with.calls.iter().partition(|call| **call == "add_low_rank");
    // One of them has matrices beside each of the model's.
    assert_eq!(added.len(), 4 * checkpoint().config().n_layer);
    assert_eq!(rest, plain.calls);
}

/// The last row moves to where the one was that left, with its adapter.
#[test]
fn a_cancelled_row_leaves_the_others_their_adapters() {
    let adapters = adapters(checkpoint().config());
    let host = host_with(&adapted(8, &adapters));
    let ahead = ahead_with(&adapted(8, &adapters), Arc::default());
    let names = [None, Some("all"), Some("some"), Some("all"), None, Some("wide")];
    for leaving in [1, 3, 4, 5] {
        let cancels: Vec<_> = names.iter().map(|_| Cancel::default()).collect();
        let mut all = Vec::new();
        for (i, (name, cancel)) in names.iter().zip(&cancels).enumerate() {
            if i != leaving {
                all.push((name, start_with(&ahead, *name, greedy(60), cancel.clone())));
                continue;
            }
            let Task::Generate { prompt, options } = greedy(1 << 20) else { unreachable!() };
            let task = Task::Generate { prompt, options: GenerateOptions { stream: true, ..options } };
            let standing = Standing { adapter: name.map(str::to_owned), ..Standing::default() };
            let (abort, mut seen) = (cancel.clone(), 0);
            let leave = move |_| {
                seen += 1;
                if seen == 7 {
                    abort.cancel();
                }
            };
            ahead.submit_as(standing, task, cancel.clone(), leave).unwrap();
        }
        for (name, one) in all {
            let expected = said(events(&start_with(&host, *name, greedy(60), Cancel::default())));
            assert_eq!(said(events(&one)), expected, "{name:?}, beside request {leaving}, which left");
        }
    }
}
