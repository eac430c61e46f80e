//! The engine through its public API: what it answers, and that company, chunks, slots and threads change
//! nothing about the answers.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::config::Config;
use mamba::engine::{
    Cancel, EmbedOptions, Event, FinishReason, GenerateOptions, Input, LoadOptions, Output, Pooling, Session,
    Task, TokenEvent,
};
use mamba::generate::SamplerOptions;
use mamba::{DType, Error, Mamba};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mamba-novels-7m")
}

fn load(options: &LoadOptions) -> Mamba {
    Mamba::load(&folder(), options, &Cancel::default(), &mut |_| {}).unwrap()
}

fn model() -> Mamba {
    load(&LoadOptions { threads: Some(2), dtype: Some(DType::F32), ..LoadOptions::default() })
}

/// Submits and waits; the streamed tokens and the result.
fn ask(model: &Mamba, task: Task) -> (Vec<TokenEvent>, Result<Output, Error>) {
    receive(&start(model, task, Cancel::default()).unwrap())
}

fn start(model: &Mamba, task: Task, cancel: Cancel) -> Result<mpsc::Receiver<Event>, Error> {
    let (sender, events) = mpsc::channel();
    model.submit(task, cancel, move |event| drop(sender.send(event)))?;
    Ok(events)
}

fn receive(events: &mpsc::Receiver<Event>) -> (Vec<TokenEvent>, Result<Output, Error>) {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(300)).expect("an answer") {
            Event::Token(token) => tokens.push(token),
            Event::Done(output) => return (tokens, Ok(output)),
            Event::Failed(error) => return (tokens, Err(error)),
        }
    }
}

fn text(text: &str) -> Input {
    Input::Text(text.into())
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() }
}

fn sampled(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampler = SamplerOptions { temperature: 0.9, top_k: 50, ..SamplerOptions::default() };
    GenerateOptions { sampler, seed: Some(seed), ..options(max_tokens) }
}

fn generate(model: &Mamba, prompt: &str, options: GenerateOptions) -> (String, Vec<u32>) {
    match ask(model, Task::Generate { prompt: text(prompt), options }).1.unwrap() {
        Output::Generated { text, tokens, .. } => (text, tokens),
        other => panic!("{other:?}"),
    }
}

fn go_on(model: &Mamba, session: &Session, options: GenerateOptions) -> Vec<u32> {
    match ask(model, Task::Continue { session: session.clone(), options }).1.unwrap() {
        Output::Generated { tokens, .. } => tokens,
        other => panic!("{other:?}"),
    }
}

fn append(model: &Mamba, session: &Session, input: &str) -> usize {
    match ask(model, Task::Append { session: session.clone(), input: text(input) }).1.unwrap() {
        Output::Appended { tokens } => tokens,
        other => panic!("{other:?}"),
    }
}

fn embed(model: &Mamba, inputs: Vec<Input>, options: EmbedOptions) -> (usize, Vec<f32>) {
    match ask(model, Task::Embed { inputs, options }).1.unwrap() {
        Output::Embeddings { dimensions, data, .. } => (dimensions, data),
        other => panic!("{other:?}"),
    }
}

const PROMPTS: [&str; 5] = [
    "It was",
    "\u{201c}My dear Watson,\u{201d} said Holmes, \u{201c}you see, but you do not observe.\u{201d}\n",
    "The ship left the harbour at dawn, and",
    "She opened the letter with trembling hands. It said that her brother, whom she had not seen for many years, ",
    "A",
];

#[test]
fn streams_end_with_a_result_that_is_their_sum() {
    let model = model();
    let options = GenerateOptions { stream: true, ..options(40) };
    let (events, output) = ask(&model, Task::Generate { prompt: text(PROMPTS[1]), options });
    let Output::Generated { text, tokens, logprobs, finish_reason, usage } = output.unwrap() else {
        panic!()
    };
    assert_eq!(events.iter().map(|e| e.text.as_str()).collect::<String>(), text);
    assert_eq!(events.iter().map(|e| e.token).collect::<Vec<_>>(), tokens);
    assert_eq!((tokens.len(), logprobs.len(), usage.completion_tokens), (40, 40, 40));
    assert_eq!(finish_reason, FinishReason::Length);
    assert_eq!(model.tokenizer().unwrap().decode(&tokens, true).unwrap(), text);
}

#[test]
fn company_slots_chunks_and_threads_change_nothing() {
    let alone = model();
    let expected: Vec<_> = (0..64)
        .map(|i| {
            generate(&alone, PROMPTS[i % 5], if i % 2 == 0 { options(24) } else { sampled(24, i as u64) })
        })
        .collect();
    assert_ne!(expected[1], expected[6], "seeds matter");
    for (threads, max_batch, prefill_chunk) in [(2, 32, 512), (1, 3, 7), (3, 64, 64)] {
        let options_ = LoadOptions {
            threads: Some(threads),
            dtype: Some(DType::F32),
            max_batch,
            prefill_chunk: Some(prefill_chunk),
            deterministic: true,
            ..LoadOptions::default()
        };
        let together = load(&options_);
        let answers: Vec<_> = (0..64)
            .map(|i| {
                let options = if i % 2 == 0 { options(24) } else { sampled(24, i as u64) };
                start(&together, Task::Generate { prompt: text(PROMPTS[i % 5]), options }, Cancel::default())
                    .unwrap()
            })
            .collect();
        for (answer, expected) in answers.iter().zip(&expected) {
            let Output::Generated { text, tokens, .. } = receive(answer).1.unwrap() else { panic!() };
            assert_eq!((&text, &tokens), (&expected.0, &expected.1));
        }
    }
}

/// bf16 products take another path for many rows where the processor has a tile unit. With `deterministic` they
/// do not; without, greedy texts may part only where the two best tokens are as good as equal.
#[test]
fn bf16_in_company() {
    let bf16 = LoadOptions { threads: Some(2), dtype: Some(DType::BF16), ..LoadOptions::default() };
    for deterministic in [true, false] {
        let model = load(&LoadOptions { deterministic, ..bf16.clone() });
        let sampler = SamplerOptions { logprobs: 2, ..SamplerOptions::default() };
        let options = GenerateOptions { stream: true, sampler, ..options(48) };
        let task = |i: usize| Task::Generate { prompt: text(PROMPTS[i % 5]), options: options.clone() };
        let alone: Vec<_> = (0..5).map(|i| ask(&model, task(i)).0).collect();
        let together: Vec<_> = (0..40).map(|i| start(&model, task(i), Cancel::default()).unwrap()).collect();
        for (i, events) in together.iter().enumerate() {
            let (tokens, alone) = (receive(events).0, &alone[i % 5]);
            if deterministic {
                assert_eq!(&tokens, alone);
            } else if let Some(at) = (0..48).find(|at| tokens[*at].token != alone[*at].token) {
                let gap = alone[at].top[0].1 - alone[at].top[1].1;
                println!("text {i} parts at token {at}, where the two best logits lie {gap:e} apart");
                assert!(gap < 1e-4);
            }
        }
    }
}

#[test]
fn stop_strings_and_stop_tokens() {
    let model = model();
    let (whole, tokens) = generate(&model, PROMPTS[2], options(60));
    // A piece from the middle that spans tokens.
    let (from, _) = whole.char_indices().nth(20).unwrap();
    let (to, _) = whole.char_indices().nth(33).unwrap();
    let stop = &whole[from..to];
    let expected = &whole[..whole.find(stop).unwrap()];
    let options_ = GenerateOptions { stop: vec![stop.into()], stream: true, ..options(60) };
    let (events, output) = ask(&model, Task::Generate { prompt: text(PROMPTS[2]), options: options_ });
    let Output::Generated { text: stopped, finish_reason, .. } = output.unwrap() else { panic!() };
    assert_eq!((stopped.as_str(), finish_reason), (expected, FinishReason::Stop));
    assert_eq!(events.iter().map(|e| e.text.as_str()).collect::<String>(), expected);

    let stop_at = tokens[10];
    let first = tokens.iter().position(|t| *t == stop_at).unwrap();
    let options_ = GenerateOptions { stop_tokens: vec![stop_at], ..options(60) };
    let (_, stopped) = generate(&model, PROMPTS[2], options_);
    assert_eq!(stopped, tokens[..=first]);
}

#[test]
fn sessions_go_on_as_one_text() {
    let model = model();
    let session = model.session();
    let mut length = append(&model, &session, "The ship left the harbour");
    length += append(&model, &session, " at dawn, and");
    assert_eq!(session.tokens(), length as u64);
    let ids: Vec<u32> = ["The ship left the harbour", " at dawn, and"]
        .iter()
        .flat_map(|text| model.tokenizer().unwrap().encode(text).unwrap())
        .collect();
    let whole = match ask(&model, Task::Generate { prompt: Input::Ids(ids), options: options(40) }).1.unwrap()
    {
        Output::Generated { tokens, .. } => tokens,
        other => panic!("{other:?}"),
    };
    // In two calls, through a fork, and through bytes: the same tokens.
    let mut tokens = go_on(&model, &session, options(15));
    let fork = session.fork().unwrap();
    let bytes = session.to_bytes().unwrap();
    assert_eq!(bytes.len(), session.byte_length());
    tokens.extend(go_on(&model, &session, options(25)));
    assert_eq!(tokens, whole);
    append(&model, &session, " and something quite different");
    assert_eq!(go_on(&model, &fork, options(25)), whole[15..]);
    let restored = model.restore(&bytes).unwrap();
    assert_eq!(restored.tokens(), (length + 15) as u64);
    assert_eq!(go_on(&model, &restored, options(25)), whole[15..]);
    // Another handle of the same model, in another dtype: restores too.
    let other = load(&LoadOptions { threads: Some(1), dtype: Some(DType::BF16), ..LoadOptions::default() });
    assert_eq!(go_on(&other, &other.restore(&bytes).unwrap(), options(25)), whole[15..]);
}

#[test]
fn a_session_without_a_seed_keeps_its_own() {
    let model = model();
    let session = model.session();
    append(&model, &session, "It was");
    let unseeded = GenerateOptions { seed: None, ..sampled(20, 0) };
    let bytes = session.to_bytes().unwrap();
    let first = go_on(&model, &session, unseeded.clone());
    assert_eq!(go_on(&model, &model.restore(&bytes).unwrap(), unseeded.clone()), first);
    assert_eq!(session.tokens(), 2 + 20);
}

#[test]
fn a_session_does_not_grow() {
    let model = model();
    let session = model.session();
    let empty = session.byte_length();
    append(&model, &session, "It was");
    assert_eq!(session.to_bytes().unwrap().len(), empty);
    append(&model, &session, &"word ".repeat(20_000));
    assert_eq!(session.byte_length(), empty);
    assert_eq!(session.to_bytes().unwrap().len(), empty);
}

#[test]
fn sessions_are_guarded() {
    let model = model();
    let session = model.session();
    let empty = Task::Continue { session: session.clone(), options: options(1) };
    assert_eq!(start(&model, empty, Cancel::default()).unwrap_err().code(), "EMPTY_PROMPT");
    append(&model, &session, "It was");
    let running =
        start(&model, Task::Continue { session: session.clone(), options: options(200) }, Cancel::default())
            .unwrap();
    let second = Task::Append { session: session.clone(), input: text("x") };
    assert_eq!(start(&model, second, Cancel::default()).unwrap_err().code(), "SESSION_BUSY");
    assert_eq!(session.fork().unwrap_err().code(), "SESSION_BUSY");
    receive(&running).1.unwrap();
    session.fork().unwrap();

    let other = Checkpoint::random(
        Config::from_json(r#"{"d_model": 16, "n_layer": 1, "vocab_size": 8192}"#).unwrap(),
        1,
    );
    let other =
        Mamba::from_checkpoint(&other, None, &LoadOptions::default(), &Cancel::default(), &mut |_| {})
            .unwrap();
    assert_eq!(other.restore(&session.to_bytes().unwrap()).unwrap_err().code(), "SESSION_MISMATCH");
    let foreign = Task::Append { session, input: Input::Ids(vec![1]) };
    assert_eq!(start(&other, foreign, Cancel::default()).unwrap_err().code(), "SESSION_MISMATCH");
}

#[test]
fn cancelling_ends_a_request_and_nothing_else() {
    let model = model();
    let (expected, _) = generate(&model, PROMPTS[0], options(30));
    let cancel = Cancel::default();
    let session = model.session();
    append(&model, &session, "It was");
    let stream = GenerateOptions { stream: true, ..options(1_000_000) };
    let endless =
        start(&model, Task::Continue { session: session.clone(), options: stream.clone() }, cancel.clone())
            .unwrap();
    let neighbour =
        start(&model, Task::Generate { prompt: text(PROMPTS[0]), options: options(30) }, Cancel::default())
            .unwrap();
    let mut seen = 0;
    while seen < 5 {
        assert!(matches!(endless.recv().unwrap(), Event::Token(_)));
        seen += 1;
    }
    cancel.cancel();
    let (rest, result) = receive(&endless);
    assert_eq!(result.unwrap_err().code(), "ABORTED");
    let Output::Generated { text: undisturbed, .. } = receive(&neighbour).1.unwrap() else { panic!() };
    assert_eq!(undisturbed, expected);
    // The session keeps what was generated.
    assert_eq!(session.tokens(), 2 + 5 + rest.len() as u64);
    // One that was cancelled before it began changes nothing.
    let before = session.to_bytes().unwrap();
    let late = Cancel::default();
    let busy: Vec<_> = (0..40)
        .map(|_| {
            start(&model, Task::Generate { prompt: text("A"), options: options(20) }, Cancel::default())
                .unwrap()
        })
        .collect();
    let waiting =
        start(&model, Task::Append { session: session.clone(), input: text("x") }, late.clone()).unwrap();
    late.cancel();
    let answer = receive(&waiting).1;
    busy.iter().for_each(|events| drop(receive(events).1.unwrap()));
    match answer {
        Err(error) => {
            assert_eq!(error.code(), "ABORTED");
            assert_eq!(session.to_bytes().unwrap(), before);
        }
        Ok(_) => assert_ne!(session.to_bytes().unwrap(), before),
    }
    let never = Cancel::default();
    never.cancel();
    assert_eq!(start(&model, Task::Score { input: text("It was") }, never).unwrap_err().code(), "ABORTED");
}

/// Whoever hears that a request ended may use its session at once, wherever it ended.
#[test]
fn a_session_is_free_when_its_failure_is_heard() {
    let model = model();
    let long = text(&"a long text that takes a while to tokenize ".repeat(20_000));
    let first = start(
        &model,
        Task::Embed { inputs: vec![long], options: EmbedOptions::default() },
        Cancel::default(),
    );
    let session = model.session();
    let cancel = Cancel::default();
    let (sender, heard) = mpsc::channel();
    let fork_of = session.clone();
    let task = Task::Append { session, input: text("x") };
    model
        .submit(task, cancel.clone(), move |event| {
            let Event::Failed(error) = event else { panic!("{event:?}") };
            sender.send((error.code(), fork_of.fork().map(drop).map_err(|error| error.code()))).unwrap();
        })
        .unwrap();
    cancel.cancel();
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), ("ABORTED", Ok(())));
    model.dispose(|| {});
    assert_eq!(receive(&first.unwrap()).1.unwrap_err().code(), "MODEL_DISPOSED");
}

/// A callback that panics is a defect of its owner's; the engine answers everyone else and still ends.
#[test]
fn a_panicking_callback_does_not_end_the_engine() {
    let model = model();
    let cancel = Cancel::default();
    let options_ = GenerateOptions { stream: true, ..options(1_000_000) };
    let task = Task::Generate { prompt: text("It was"), options: options_ };
    let abort = cancel.clone();
    model
        .submit(task, cancel, move |event| match event {
            Event::Token(_) => abort.cancel(),
            _ => panic!("on purpose"),
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(generate(&model, PROMPTS[0], options(5)).1.len(), 5);
    let (sender, disposed) = mpsc::channel();
    model.dispose(move || sender.send(()).unwrap());
    disposed.recv_timeout(Duration::from_secs(60)).unwrap();
}

/// Thousands of texts wait to be embedded; a word asked for meanwhile does not wait for them all.
#[test]
fn many_texts_do_not_starve_a_generation() {
    let model = load(&LoadOptions { max_batch: 4, threads: Some(2), ..LoadOptions::default() });
    let inputs = vec![Input::Ids(vec![7; 64]); 600];
    let texts =
        start(&model, Task::Embed { inputs, options: EmbedOptions::default() }, Cancel::default()).unwrap();
    generate(&model, "It was", options(1));
    assert!(matches!(texts.try_recv(), Err(mpsc::TryRecvError::Empty)), "the texts were done first");
    receive(&texts).1.unwrap();
}

#[test]
fn scores_and_logits_agree() {
    let model = model();
    let long = PROMPTS.join(" ").repeat(12);
    let Output::Scores { ids, logprobs } = ask(&model, Task::Score { input: text(&long) }).1.unwrap() else {
        panic!()
    };
    assert!(ids.len() > 600 && logprobs.len() == ids.len() - 1, "longer than a chunk");
    let all = Task::Forward { input: Input::Ids(ids.clone()), all: true };
    let Output::Logits { rows, data } = ask(&model, all).1.unwrap() else { panic!() };
    assert_eq!(rows, ids.len());
    let vocab = model.info().vocab_size;
    for (row, logprob) in logprobs.iter().enumerate() {
        let logits: Vec<f64> = data[row * vocab..(row + 1) * vocab].iter().map(|x| f64::from(*x)).collect();
        let exact = mamba::ops::logprobs::reference::token_logprob(&logits, ids[row + 1] as usize);
        assert!((f64::from(*logprob) - exact).abs() < 1e-4, "{row}");
    }
    let last = Task::Forward { input: Input::Ids(ids), all: false };
    let Output::Logits { rows: 1, data: last } = ask(&model, last).1.unwrap() else { panic!() };
    assert_eq!(last, data[data.len() - vocab..]);
}

#[test]
fn embeddings_keep_their_order_and_are_those_of_each_text_alone() {
    let model = model();
    let texts: Vec<String> = (0..70).map(|i| PROMPTS[i % 5].repeat(i % 17 + 1)).collect();
    for pooling in [Pooling::Mean, Pooling::Last] {
        let options = EmbedOptions { pooling, ..EmbedOptions::default() };
        let inputs = texts.iter().map(|t| text(t)).collect();
        let (d, together) = embed(&model, inputs, options.clone());
        assert_eq!((d, together.len()), (256, 256 * 70));
        for (i, t) in texts.iter().enumerate() {
            let (_, alone) = embed(&model, vec![text(t)], options.clone());
            assert_eq!(alone, together[i * d..(i + 1) * d], "text {i}");
            let norm = alone.iter().map(|x| x * x).sum::<f32>();
            assert!((norm - 1.0).abs() < 1e-5);
        }
    }
    let whole = EmbedOptions { normalize: false, ..EmbedOptions::default() };
    let (_, long) = embed(&model, vec![text(PROMPTS[3])], whole.clone());
    let (d, short) = embed(&model, vec![text(PROMPTS[3])], EmbedOptions { dimensions: Some(10), ..whole });
    assert_eq!((d, &short[..]), (10, &long[..10]));
    let (_, none) = embed(&model, Vec::new(), EmbedOptions::default());
    assert!(none.is_empty());
}

#[test]
fn what_can_be_refused_at_once_is() {
    let model = load(&LoadOptions { queue_limit: 2, threads: Some(1), ..LoadOptions::default() });
    let code = |task| start(&model, task, Cancel::default()).unwrap_err().code();
    let ids = |ids: &[u32]| Input::Ids(ids.to_vec());
    assert_eq!(code(Task::Generate { prompt: ids(&[]), options: options(1) }), "EMPTY_PROMPT");
    assert_eq!(code(Task::Generate { prompt: ids(&[1, 8192]), options: options(1) }), "TOKEN_OUT_OF_RANGE");
    assert_eq!(code(Task::Generate { prompt: ids(&[1]), options: options(0) }), "OPTION_INVALID");
    let nan = SamplerOptions { temperature: f32::NAN, ..SamplerOptions::default() };
    let nan = GenerateOptions { sampler: nan, ..options(1) };
    assert_eq!(code(Task::Generate { prompt: ids(&[1]), options: nan }), "OPTION_INVALID");
    assert_eq!(code(Task::Score { input: ids(&[1]) }), "EMPTY_PROMPT");
    let many = EmbedOptions { dimensions: Some(257), ..EmbedOptions::default() };
    assert_eq!(code(Task::Embed { inputs: vec![ids(&[1])], options: many }), "OPTION_INVALID");
    // Text that turns out to be empty is known only after tokenization.
    let empty = ask(&model, Task::Generate { prompt: text(""), options: options(1) }).1.unwrap_err();
    assert_eq!(empty.code(), "EMPTY_PROMPT");
    let empty =
        ask(&model, Task::Embed { inputs: vec![text("a"), text("")], options: EmbedOptions::default() });
    assert_eq!(empty.1.unwrap_err().code(), "EMPTY_PROMPT");

    let running: Vec<_> = (0..2)
        .map(|_| {
            let task = Task::Generate { prompt: ids(&[1]), options: options(200) };
            start(&model, task, Cancel::default()).unwrap()
        })
        .collect();
    assert_eq!(code(Task::Score { input: ids(&[1, 2]) }), "QUEUE_FULL");
    running.iter().for_each(|events| drop(receive(events).1.unwrap()));
    ask(&model, Task::Score { input: ids(&[1, 2]) }).1.unwrap();

    for bad in [
        LoadOptions { threads: Some(0), ..LoadOptions::default() },
        LoadOptions { max_batch: 0, ..LoadOptions::default() },
        LoadOptions { prefill_chunk: Some(0), ..LoadOptions::default() },
        LoadOptions { queue_limit: 0, ..LoadOptions::default() },
    ] {
        let error = Mamba::load(&folder(), &bad, &Cancel::default(), &mut |_| {}).err().unwrap();
        assert_eq!(error.code(), "OPTION_INVALID", "{error}");
    }
}

#[test]
fn ids_work_without_a_tokenizer_and_text_does_not() {
    let checkpoint = Checkpoint::open(&folder(), &OpenOptions::default()).unwrap();
    let model =
        Mamba::from_checkpoint(&checkpoint, None, &LoadOptions::default(), &Cancel::default(), &mut |_| {})
            .unwrap();
    let output =
        ask(&model, Task::Generate { prompt: Input::Ids(vec![5, 6]), options: options(5) }).1.unwrap();
    assert!(matches!(output, Output::Generated { text, tokens, .. } if text.is_empty() && tokens.len() == 5));
    let refused = start(&model, Task::Score { input: text("It was") }, Cancel::default()).unwrap_err();
    assert_eq!(refused.code(), "TOKENIZER_MISSING");
}

#[test]
fn disposal_answers_everyone_and_frees() {
    let model = model();
    let session = model.session();
    let endless: Vec<_> = (0..40)
        .map(|_| {
            let task = Task::Generate { prompt: text("It was"), options: options(1_000_000) };
            start(&model, task, Cancel::default()).unwrap()
        })
        .collect();
    let (sender, disposed) = mpsc::channel();
    for _ in 0..2 {
        let sender = sender.clone();
        model.dispose(move || sender.send(()).unwrap());
    }
    for _ in 0..2 {
        disposed.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    for events in &endless {
        assert_eq!(receive(events).1.unwrap_err().code(), "MODEL_DISPOSED");
    }
    let late = start(&model, Task::Append { session, input: text("x") }, Cancel::default()).unwrap_err();
    assert_eq!(late.code(), "MODEL_DISPOSED");
    model.dispose(|| {});
}

#[test]
fn loading_reports_progress_and_can_be_cancelled() {
    let mut stages = Vec::new();
    let options = LoadOptions { validate: true, ..LoadOptions::default() };
    Mamba::load(&folder(), &options, &Cancel::default(), &mut |p| {
        assert!(p.loaded_bytes <= p.total_bytes);
        stages.push((p.stage, p.loaded_bytes, p.total_bytes));
    })
    .unwrap();
    assert!(stages.len() > 50 && stages.iter().any(|s| s.0 == "validate"));
    let last = stages[stages.len() - 1];
    assert_eq!((last.0, last.1), ("weights", last.2));
    let cancel = Cancel::default();
    let error = Mamba::load(&folder(), &options, &cancel, &mut |p| {
        if p.loaded_bytes > 0 {
            cancel.cancel();
        }
    });
    assert_eq!(error.err().unwrap().code(), "ABORTED");
}

#[test]
fn unusual_shapes_run() {
    for config in [
        r#"{"d_model": 10, "n_layer": 2, "vocab_size": 19, "rms_norm": false, "tie_embeddings": false,
            "ssm_cfg": {"d_state": 3, "d_conv": 1, "expand": 1.5, "dt_rank": 3, "conv_bias": false, "bias": true}}"#,
        r#"{"d_model": 7, "n_layer": 1, "vocab_size": 5, "pad_vocab_size_multiple": 1,
            "ssm_cfg": {"d_state": 256, "d_conv": 16}}"#,
    ] {
        let checkpoint = Checkpoint::random(Config::from_json(config).unwrap(), 3);
        let mut results = Vec::new();
        for (max_batch, prefill_chunk) in [(1, 1), (4, 100)] {
            let options_ =
                LoadOptions { max_batch, prefill_chunk: Some(prefill_chunk), ..LoadOptions::default() };
            let model = Mamba::from_checkpoint(&checkpoint, None, &options_, &Cancel::default(), &mut |_| {})
                .unwrap();
            let ids: Vec<u32> = (0..50).map(|i| i % 5).collect();
            let output =
                ask(&model, Task::Generate { prompt: Input::Ids(ids), options: options(20) }).1.unwrap();
            let Output::Generated { tokens, logprobs, .. } = output else { panic!() };
            assert!(logprobs.iter().all(|x| x.is_finite()));
            results.push((tokens, logprobs));
        }
        assert_eq!(results[0], results[1]);
    }
}
