//! Who is served when, and what happens to the others when something goes wrong: seen step by step.

mod common;

use std::sync::{MutexGuard, mpsc};
use std::time::Duration;

use common::watched::{POISON, Step, Window, watched};
use mamba::engine::{
    Cancel, EmbedOptions, Event, GenerateOptions, Input, LoadOptions, Output, PrefixCacheStats, Priority,
    Standing, Task,
};
use mamba::{Error, Mamba};

type Answer = mpsc::Receiver<Event>;

fn one_at_a_time() -> LoadOptions {
    LoadOptions { max_batch: 1, ..LoadOptions::default() }
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_eos: true, stream: true, ..GenerateOptions::default() }
}

fn prompt(ids: Vec<u32>, max_tokens: usize) -> Task {
    Task::Generate { prompt: Input::Ids(ids), options: options(max_tokens) }
}

fn start(model: &Mamba, standing: Standing, task: Task, cancel: Cancel) -> Answer {
    let (sender, events) = mpsc::channel();
    model.submit_as(standing, task, cancel, move |event| drop(sender.send(event))).unwrap();
    events
}

fn ask(model: &Mamba, task: Task) -> Answer {
    start(model, Standing::default(), task, Cancel::default())
}

/// The streamed tokens, and how it ended.
fn receive(answer: &Answer) -> (Vec<u32>, Result<Output, Error>) {
    let mut tokens = Vec::new();
    loop {
        match answer.recv_timeout(Duration::from_secs(60)).expect("an answer") {
            Event::Token(token) => tokens.push(token.token),
            Event::Done(output) => return (tokens, Ok(output)),
            Event::Failed(error) => return (tokens, Err(error)),
        }
    }
}

fn code(answer: &Answer) -> &'static str {
    receive(answer).1.expect_err("a failure").code()
}

/// Prompts are of two tokens, of which the second says whose they are: in the order of service.
fn served(window: &Window) -> Vec<u32> {
    window.steps().iter().flatten().filter(|ids| ids.len() == 2).map(|ids| ids[1]).collect()
}

/// Holds the engine up in a step of its own; what is asked for meanwhile waits.
fn block<'a>(model: &Mamba, window: &'a Window) -> (MutexGuard<'a, ()>, Answer) {
    let (held, before) = (window.hold(), window.steps().len());
    let answer = ask(model, prompt(vec![1, 9], 1));
    window.wait_for(before + 1);
    (held, answer)
}

fn user(name: &str) -> Standing {
    Standing { user: Some(name.into()), ..Standing::default() }
}

fn priority(priority: Priority) -> Standing {
    Standing { priority, ..Standing::default() }
}

#[test]
fn users_take_turns_and_so_do_requests_of_nobody() {
    let (model, window) = watched(&one_at_a_time());
    let (held, first) = block(&model, &window);
    let mut answers: Vec<Answer> = Vec::new();
    for (i, who) in ["a", "a", "a", "a", "b", "b"].into_iter().enumerate() {
        answers.push(start(&model, user(who), prompt(vec![1, 10 + i as u32], 1), Cancel::default()));
    }
    answers.extend([20, 21].map(|id| ask(&model, prompt(vec![1, id], 1))));
    drop(held);
    [first].iter().chain(&answers).for_each(|answer| drop(receive(answer).1.unwrap()));
    assert_eq!(served(&window), [9, 10, 14, 20, 21, 11, 15, 12, 13]);
}

#[test]
fn the_urgent_are_served_first_and_the_others_do_not_starve() {
    let (model, window) = watched(&one_at_a_time());
    let (held, first) = block(&model, &window);
    let mut answers = vec![first];
    for (id, of) in [(3, Priority::Low), (2, Priority::Normal), (1, Priority::High)] {
        for _ in 0..20 {
            answers.push(start(&model, priority(of), prompt(vec![1, id], 1), Cancel::default()));
        }
    }
    drop(held);
    answers.iter().for_each(|answer| drop(receive(answer).1.unwrap()));
    let served = served(&window);
    assert_eq!(served[1..23], [1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 3, 1]);
    assert_eq!(served.len(), 61);
}

/// Its vector does not wait for the end of what runs beside it.
#[test]
fn a_text_is_answered_while_others_generate() {
    let (model, window) = watched(&LoadOptions::default());
    let (held, first) = block(&model, &window);
    let cancel = Cancel::default();
    let endless = start(&model, Standing::default(), prompt(vec![1, 2], 1 << 30), cancel.clone());
    let text = Task::Embed { inputs: vec![Input::Ids(vec![1, 3, 4])], options: EmbedOptions::default() };
    let text = ask(&model, text);
    drop(held);
    [first, text].iter().for_each(|answer| drop(receive(answer).1.unwrap()));
    cancel.cancel();
    assert_eq!(code(&endless), "ABORTED");
}

/// A text to embed in many parts takes turns like a single request.
#[test]
fn many_texts_of_one_request_are_one_turn() {
    let (model, window) = watched(&one_at_a_time());
    let (held, first) = block(&model, &window);
    let inputs = vec![Input::Ids(vec![1, 5]); 50];
    let texts = ask(&model, Task::Embed { inputs, options: EmbedOptions::default() });
    let words = [20, 21].map(|id| ask(&model, prompt(vec![1, id], 1)));
    drop(held);
    words.iter().chain([&first, &texts]).for_each(|answer| drop(receive(answer).1.unwrap()));
    assert_eq!(served(&window)[..5], [9, 5, 20, 21, 5]);
}

/// Of very many that wait not all are looked at in every turn; what is cancelled among them is answered all the same.
#[test]
fn among_many_that_wait_one_is_cancelled() {
    let (model, window) = watched(&one_at_a_time());
    let (held, first) = block(&model, &window);
    let many = 30_000;
    let inputs = vec![Input::Ids(vec![1, 5]); many];
    let (all, stop) = (Cancel::default(), Cancel::default());
    let task = Task::Embed { inputs, options: EmbedOptions::default() };
    let texts = start(&model, Standing::default(), task, all.clone());
    let low = priority(Priority::Low);
    let word = start(&model, low, prompt(vec![1, 20], 1), stop.clone());
    stop.cancel();
    drop(held);
    assert_eq!(code(&word), "ABORTED");
    assert!(window.steps().len() < many, "in time");
    all.cancel();
    assert_eq!(code(&texts), "ABORTED");
    receive(&first).1.unwrap();
}

/// A text that is longer than many steps leaves no room for more texts, but it holds up nothing else.
#[test]
fn a_long_text_holds_up_no_generation() {
    let load = LoadOptions { prefill_chunk: Some(16), max_batch: 4, ..LoadOptions::default() };
    let (model, window) = watched(&load);
    let (held, first) = block(&model, &window);
    let inputs = [vec![5; 4000], vec![6; 100], vec![6; 100]].map(Input::Ids).to_vec();
    let texts = ask(&model, Task::Embed { inputs, options: EmbedOptions::default() });
    let word = ask(&model, prompt(vec![1, 20], 3));
    drop(held);
    [&first, &word].into_iter().for_each(|answer| drop(receive(answer).1.unwrap()));
    receive(&texts).1.unwrap();
    let steps = window.steps();
    let of_word = steps.iter().position(|step| step.contains(&vec![1, 20])).unwrap();
    assert!(of_word < 20, "its prompt is computed in step {of_word} of {}", steps.len());
}

/// How many tokens of a step are of prompts that begin with `id`.
fn share_of(step: &Step, id: u32) -> usize {
    step.iter().filter(|ids| ids[0] == id).map(Vec::len).sum()
}

#[test]
fn a_step_is_divided_between_users_and_by_priority() {
    let load = LoadOptions { prefill_chunk: Some(120), max_batch: 8, ..LoadOptions::default() };
    let (model, window) = watched(&load);
    let (held, first) = block(&model, &window);
    let mut answers = vec![first];
    for _ in 0..3 {
        answers.push(start(&model, user("a"), prompt(vec![5; 1000], 1), Cancel::default()));
    }
    answers.push(start(&model, user("b"), prompt(vec![6; 1000], 1), Cancel::default()));
    drop(held);
    answers.iter().for_each(|answer| drop(receive(answer).1.unwrap()));
    let step = window.steps()[1].clone();
    assert_eq!((share_of(&step, 5), share_of(&step, 6)), (60, 60));

    let begin = window.steps().len();
    let (held, first) = block(&model, &window);
    let mut answers = vec![first];
    answers.push(start(&model, priority(Priority::High), prompt(vec![5; 1000], 1), Cancel::default()));
    answers.push(start(&model, priority(Priority::Normal), prompt(vec![6; 1000], 1), Cancel::default()));
    drop(held);
    answers.iter().for_each(|answer| drop(receive(answer).1.unwrap()));
    let step = window.steps()[begin + 1].clone();
    assert_eq!((share_of(&step, 5), share_of(&step, 6)), (96, 24));
}

/// Counted in tokens: each takes a millisecond at least, so a step of 50 ms has no more than 50 of them. Twice as
/// many are let pass, for a machine whose sleeps are not exact; without the limit a step has 512.
#[test]
fn a_long_prompt_does_not_hold_up_a_stream() {
    let load = LoadOptions { max_stall: Duration::from_millis(50), ..LoadOptions::default() };
    let (model, window) = watched(&load);
    *window.slowness.lock().unwrap() = Duration::from_millis(1);
    let stop = Cancel::default();
    let stream = start(&model, Standing::default(), prompt(vec![1, 2], 1_000_000), stop.clone());
    (0..5).for_each(|_| drop(stream.recv().unwrap()));
    receive(&ask(&model, prompt(vec![5; 1500], 1))).1.unwrap();
    stop.cancel();
    let steps = window.steps();
    let with_prompt = steps.iter().filter(|step| share_of(step, 5) > 0);
    let sizes: Vec<usize> = with_prompt.map(|step| step.iter().map(Vec::len).sum()).collect();
    assert!(sizes.iter().all(|tokens| *tokens <= 100), "{sizes:?}");
    assert!(sizes.len() < 1500 / 16, "it grows from the 16 tokens that it begins with: {sizes:?}");

    // Nobody waits for each token of a completion: then a step takes all that it can.
    let whole = Task::Generate {
        prompt: Input::Ids(vec![1, 2]),
        options: GenerateOptions { stream: false, ..options(1000) },
    };
    let (model, window) = watched(&load);
    let stop = Cancel::default();
    let completion = start(&model, Standing::default(), whole, stop.clone());
    receive(&ask(&model, prompt(vec![5; 1500], 1))).1.unwrap();
    stop.cancel();
    drop(receive(&completion));
    let largest = window.steps().iter().map(|step| share_of(step, 5)).max();
    assert!(largest >= Some(511), "{largest:?}");
}

#[test]
fn cancelling_frees_the_slot_within_one_step() {
    let (model, window) = watched(&one_at_a_time());
    let cancel = Cancel::default();
    let (sender, events) = mpsc::channel();
    let (abort, mut seen) = (cancel.clone(), 0);
    let held = window.hold();
    model
        .submit(prompt(vec![1, 2], 1_000_000), cancel, move |event| {
            seen += 1;
            if seen == 5 {
                abort.cancel();
            }
            sender.send(event).unwrap();
        })
        .unwrap();
    let next = ask(&model, prompt(vec![7, 8], 1));
    drop(held);
    let (tokens, end) = receive(&events);
    assert_eq!((tokens.len(), end.unwrap_err().code()), (5, "ABORTED"));
    receive(&next).1.unwrap();
    let steps = window.steps();
    assert_eq!(steps.len(), 6, "five of the first, then the next one's: {steps:?}");
    assert_eq!(steps[5], [vec![7, 8]]);
}

#[test]
fn a_consumer_that_stops_reading_gives_its_slot_to_others() {
    let (model, window) = watched(&one_at_a_time());
    let (whole, _) = receive(&ask(&model, prompt(vec![1, 2], 40)));
    let session = model.session();
    receive(&ask(&model, Task::Append { session: session.clone(), input: Input::Ids(vec![1, 2]) }))
        .1
        .unwrap();
    let begin = window.steps().len();
    let control = Cancel::default();
    let (sender, events) = mpsc::channel();
    let (rest, mut seen) = (control.clone(), 0);
    let task = Task::Continue { session: session.clone(), options: options(40) };
    let slow = move |event| {
        seen += 1;
        if seen == 10 {
            rest.pause(true);
        }
        sender.send(event).unwrap();
    };
    model.submit(task, control.clone(), slow).unwrap();
    // With one slot in all, the other one's text comes only if the first has given it up.
    assert_eq!(receive(&ask(&model, prompt(vec![7, 8], 3))).0.len(), 3);
    assert_eq!(window.steps().len() - begin, 10 + 3);
    assert_eq!(events.try_iter().count(), 10);
    control.pause(false);
    let (others, end) = receive(&events);
    assert_eq!(others, whole[10..], "it goes on where it was");
    end.unwrap();
    assert_eq!(session.tokens(), 2 + 40);
}

#[test]
fn one_that_rests_can_be_cancelled_and_its_session_keeps_what_came() {
    let (model, _) = watched(&one_at_a_time());
    let session = model.session();
    receive(&ask(&model, Task::Append { session: session.clone(), input: Input::Ids(vec![1, 2]) }))
        .1
        .unwrap();
    let control = Cancel::default();
    let (sender, events) = mpsc::channel();
    let (rest, mut seen) = (control.clone(), 0);
    let task = Task::Continue { session: session.clone(), options: options(40) };
    let slow = move |event| {
        seen += 1;
        if seen == 10 {
            rest.pause(true);
        }
        sender.send(event).unwrap();
    };
    model.submit(task, control.clone(), slow).unwrap();
    receive(&ask(&model, prompt(vec![7, 8], 3))).1.unwrap();
    control.cancel();
    let (tokens, end) = receive(&events);
    assert_eq!((tokens.len(), end.unwrap_err().code()), (10, "ABORTED"));
    assert_eq!(session.tokens(), 2 + 10);
    let (rest, _) = receive(&ask(&model, Task::Continue { session, options: options(5) }));
    let (whole, _) = receive(&ask(&model, prompt(vec![1, 2], 15)));
    assert_eq!([tokens, rest].concat(), whole);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let (model, window) = watched(&LoadOptions::default());
    let (expected, _) = receive(&ask(&model, prompt(vec![1, 2, 3], 20)));
    let (held, first) = block(&model, &window);
    let (good, bad) = (ask(&model, prompt(vec![1, 2, 3], 20)), ask(&model, prompt(vec![1, POISON], 20)));
    let score = ask(&model, Task::Score { input: Input::Ids(vec![1, POISON, 2]) });
    let inputs = vec![Input::Ids(vec![1, 2]), Input::Ids(vec![POISON, 2])];
    let vectors = ask(&model, Task::Embed { inputs, options: EmbedOptions::default() });
    drop(held);
    assert_eq!(code(&bad), "LOGITS_NOT_FINITE");
    assert_eq!(code(&score), "LOGITS_NOT_FINITE");
    assert_eq!(code(&vectors), "VECTOR_NOT_FINITE");
    assert_eq!(receive(&good).0, expected);
    receive(&first).1.unwrap();
    // Nor does the slot remember.
    assert_eq!(receive(&ask(&model, prompt(vec![1, 2, 3], 20))).0, expected);
}

#[test]
fn a_lost_device_ends_everything_under_way() {
    let (model, window) = watched(&LoadOptions { max_batch: 2, ..LoadOptions::default() });
    let held = window.hold();
    let session = model.session();
    let append = ask(&model, Task::Append { session: session.clone(), input: Input::Ids(vec![1, 2, 3]) });
    let answers: Vec<Answer> = (0..10).map(|i| ask(&model, prompt(vec![1, i], 50))).collect();
    *window.fault.lock().unwrap() =
        Some(Error::DeviceLost { device: "watched".into(), reason: "on purpose".into() });
    window.wait_for(1);
    drop(held);
    for answer in answers.iter().chain([&append]) {
        assert_eq!(code(answer), "DEVICE_LOST");
    }
    assert_eq!(window.steps().len(), 1, "nobody else was tried");
    assert_eq!(session.tokens(), 0, "as it was");
    // The engine lives, should the device come back; and so does a model that is loaded anew.
    receive(&ask(&model, Task::Append { session, input: Input::Ids(vec![1, 2, 3]) })).1.unwrap();
}

#[test]
fn statistics_count_what_happens() {
    let (model, window) = watched(&LoadOptions { max_batch: 2, queue_limit: 3, ..LoadOptions::default() });
    let fresh = model.stats();
    assert_eq!((fresh.slots, fresh.requests_total, fresh.inter_token.count), (2, 0, 0));
    assert_eq!(fresh.state_bytes, 2 * model.info().state_bytes);
    assert_eq!((fresh.weight_bytes, fresh.device_memory), (model.info().weight_bytes, None));
    let (held, first) = block(&model, &window);
    let others = [30, 40].map(|tokens| ask(&model, prompt(vec![1; 25], tokens)));
    let refused = model.submit(prompt(vec![1], 1), Cancel::default(), |_| {});
    assert_eq!(refused.unwrap_err().code(), "QUEUE_FULL");
    assert_eq!(model.stats().requests_in_flight, 3);
    drop(held);
    for answer in [&first, &others[0], &others[1]] {
        receive(answer).1.unwrap();
    }
    let mut stats = model.stats();
    while stats.running > 0 {
        // The engine notes it after the answer.
        std::thread::sleep(Duration::from_millis(1));
        stats = model.stats();
    }
    assert_eq!((stats.requests_in_flight, stats.waiting, stats.resting), (0, 0, 0));
    assert_eq!((stats.requests_total, stats.requests_refused), (4, 1));
    assert_eq!((stats.prompt_tokens_total, stats.generated_tokens_total), (2 + 25 + 25, 1 + 30 + 40));
    assert_eq!((stats.time_to_first_token.count, stats.inter_token.count), (3, 71 - 3));
    assert!(stats.mean_batch > 1.0 && stats.mean_batch < 2.0, "{stats:?}");
    assert!(stats.generated_tokens_per_second > stats.prompt_tokens_per_second, "{stats:?}");
    let first_token = stats.time_to_first_token;
    assert!(first_token.p50 > 0.0 && first_token.p50 <= first_token.p99, "{stats:?}");
    assert_eq!(stats.prefix_cache, PrefixCacheStats::default());
}

#[test]
fn without_memory_for_a_state_a_request_waits_or_is_refused() {
    let (model, window) = watched(&LoadOptions::default());
    let session = model.session();
    receive(&ask(&model, Task::Append { session: session.clone(), input: Input::Ids(vec![1, 2, 3]) }))
        .1
        .unwrap();
    let go_on = || Task::Continue { session: session.clone(), options: options(3) };

    let held = window.hold();
    let before = window.steps().len();
    let running = ask(&model, prompt(vec![1, 2], 10));
    window.wait_for(before + 1);
    *window.full.lock().unwrap() = true;
    let waiting = ask(&model, go_on());
    drop(held);
    receive(&running).1.unwrap();
    // Nothing runs now that could give memory back.
    assert_eq!(code(&waiting), "OUT_OF_MEMORY");
    assert_eq!(code(&ask(&model, go_on())), "OUT_OF_MEMORY");
    assert_eq!(session.tokens(), 3);

    *window.full.lock().unwrap() = false;
    let held = window.hold();
    let stop = Cancel::default();
    let before = window.steps().len();
    let running = start(&model, Standing::default(), prompt(vec![1, 2], 1_000_000), stop.clone());
    window.wait_for(before + 1);
    *window.full.lock().unwrap() = true;
    let waiting = ask(&model, go_on());
    drop(held);
    (0..20).for_each(|_| drop(running.recv().unwrap()));
    assert!(matches!(waiting.try_recv(), Err(mpsc::TryRecvError::Empty)), "it waits");
    *window.full.lock().unwrap() = false;
    assert_eq!(receive(&waiting).0.len(), 3);
    stop.cancel();
    assert_eq!(code(&running), "ABORTED");
}
