//! The CUDA backend, on a machine with a GPU (`scripts/gpu/pack.mjs`): every operation against its definition, the reference
//! model against the official numbers, sessions that move between devices, and what goes wrong.

mod adapters;
mod block_step;
#[path = "../common/mod.rs"]
mod common;
mod decode;
mod gradients;
mod launchers;
mod quantized;
mod sampling;
mod training;

use std::sync::mpsc;

use common::cuda::{ask, generated, greedy, load};
use common::model::{Runner, alone, mean, packed, texts};
use common::ops::{self, Bounds, OFFICIAL_SCANS, official_scan};
use common::{Rng, Truth, relative_l2, wide};
use mamba::backend::{Backend, Batch, ViewMut};
use mamba::cpu::Cpu;
use mamba::cuda::Cuda;
use mamba::engine::{Cancel, Device, EmbedOptions, Event, Input, LoadOptions, Output, Task};
use mamba::ops::pool::{Pool, PoolKind};
use mamba::{DType, Error, Mamba};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// cuBLAS adds a row's products one after the other in f32, and the exponential unit is off by 2 units in the last place.
fn bounds(dtype: DType) -> Bounds {
    Bounds { dtype, sum: 2e-6 }
}

/// Runs a test in every type, with and without what depends on the number of rows.
fn in_every_dtype(test: impl Fn(&mut Cuda, &mut Rng, DType)) {
    for dtype in DTYPES {
        for deterministic in [false, true] {
            println!("{} deterministic {deterministic}", dtype.name());
            let mut cuda = Cuda::new(dtype).unwrap().deterministic(deterministic);
            test(&mut cuda, &mut Rng(7), dtype);
        }
    }
}

fn runner(dtype: DType) -> Runner<Cuda> {
    Runner::new(Cuda::new(dtype).unwrap(), dtype)
}

fn deterministic(dtype: DType) -> Runner<Cuda> {
    Runner::new(Cuda::new(dtype).unwrap().deterministic(true), dtype)
}

#[test]
fn linear() {
    in_every_dtype(|cuda, rng, dtype| ops::linear_matches(cuda, rng, bounds(dtype)));
}

#[test]
fn causal_conv1d() {
    in_every_dtype(|cuda, rng, dtype| ops::causal_conv1d_matches(cuda, rng, bounds(dtype)));
}

#[test]
fn selective_scan() {
    in_every_dtype(|cuda, rng, dtype| ops::selective_scan_matches(cuda, rng, bounds(dtype)));
}

#[test]
fn selective_scan_without_a_state_begins_at_zero() {
    in_every_dtype(|cuda, rng, _| ops::selective_scan_without_a_state_begins_at_zero(cuda, rng));
}

#[test]
fn add_norm() {
    in_every_dtype(|cuda, rng, dtype| ops::add_norm_matches(cuda, rng, bounds(dtype)));
}

#[test]
fn pool() {
    in_every_dtype(|cuda, rng, _| ops::pool_matches(cuda, rng));
}

#[test]
fn token_logprobs() {
    in_every_dtype(|cuda, rng, _| ops::token_logprobs_match(cuda, rng));
}

#[test]
fn embedding_and_gather() {
    in_every_dtype(ops::embedding_and_gather_copy_rows);
}

#[test]
fn official_selective_scan() {
    let mut cuda = Cuda::new(DType::F32).unwrap();
    let mut worst = 0.0f64;
    for name in OFFICIAL_SCANS {
        let (y, state) = official_scan(&mut cuda, &Truth::scan(name)).unwrap();
        worst = worst.max(y).max(state);
        assert!(y < 1e-6 && state < 1e-6, "{name}: y {y:.2e}, last_state {state:.2e}");
    }
    println!("worst relative error {worst:.2e}");
}

#[test]
fn logits_hidden_states_and_states() {
    let truth = Truth::novels();
    for mut runner in [runner(DType::F32), deterministic(DType::F32)] {
        let (outputs, states) =
            (runner.logits_and_hidden_states(&truth), runner.states_of_every_layer(&truth));
        println!("worst relative error of logits and hidden states {outputs:.2e}, of states {states:.2e}");
        assert!(outputs < 1e-5 && states < 1e-5, "{outputs} {states}");
    }
}

#[test]
fn greedy_continuations() {
    runner(DType::F32).greedy_continuations(&Truth::novels());
    deterministic(DType::F32).greedy_continuations(&Truth::novels());
}

#[test]
fn validation_loss() {
    let truth = Truth::novels();
    let expected = truth.floats("val.nll");
    for dtype in DTYPES {
        let nll = runner(dtype).validation(&truth);
        let worst = nll.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (ours, official) = (mean(&nll), mean(&expected));
        println!("{}: mean nll {ours:.7}, official {official:.7}, worst token {worst:.2e}", dtype.name());
        match dtype {
            DType::F32 => assert!((ours - official).abs() < 2e-5 && worst < 1e-3),
            _ => assert!((ours / official - 1.0).abs() < 0.002),
        }
    }
}

#[test]
fn the_same_call_twice_gives_the_same_bits() {
    let truth = Truth::novels();
    let ids = &truth.ids("val.ids")[..1000];
    for dtype in DTYPES {
        let mut runner = runner(dtype);
        let first = (runner.run(ids, true), runner.state(0));
        assert!(first == (runner.run(ids, true), runner.state(0)), "{}", dtype.name());
    }
}

/// f32 agrees to 1e-5 whatever the company, and to the bit where it is asked to.
#[test]
fn packed_chunked_and_stepped_agree() {
    let truth = Truth::novels();
    let texts = texts(&truth);
    let mut f32 = runner(DType::F32);
    let worst = std::cell::Cell::new(0.0f64);
    let close = |what: &str, a: &[f32], b: &[f32]| {
        let error = relative_l2(b, &wide(a));
        worst.set(worst.get().max(error));
        assert!(error < 1e-5, "{what}: {error}");
    };
    f32.chunked(&truth, close);
    let (alone_, packed_) = (alone(&mut f32, &texts), packed(&mut f32, &texts));
    close("packed hidden states", &alone_.0, &packed_.0);
    alone_.1.iter().zip(&packed_.1).for_each(|(a, b)| close("a packed sequence's state", a, b));
    println!("f32, in any company: {:.2e}", worst.get());

    for dtype in DTYPES {
        let mut exact = deterministic(dtype);
        exact.chunked(&truth, |what, a, b| assert!(a == b, "{what}, {}", dtype.name()));
        assert!(alone(&mut exact, &texts) == packed(&mut exact, &texts), "packed, {}", dtype.name());
    }
}

/// A session that is begun on one device and goes on on the other says what one on the CPU alone says.
#[test]
fn sessions_move_between_devices() {
    let (cpu, cuda) = (load(Device::Cpu, DType::F32), load(Device::Cuda, DType::F32));
    assert_eq!((&*cpu.info().device, &*cuda.info().device), ("cpu", "cuda"));
    let prompt = Truth::novels().ids("prompt1.ids");
    let task = Task::Generate { prompt: Input::Ids(prompt.clone()), options: greedy(48) };
    let expected = generated(ask(&cpu, task));
    for order in [[&cpu, &cuda, &cpu], [&cuda, &cpu, &cuda]] {
        let mut session = order[0].session();
        ask(order[0], Task::Append { session: session.clone(), input: Input::Ids(prompt.clone()) }).unwrap();
        let mut tokens = Vec::new();
        for model in order {
            session = model.restore(&session.to_bytes().unwrap()).unwrap();
            tokens.extend(generated(ask(
                model,
                Task::Continue { session: session.clone(), options: greedy(16) },
            )));
        }
        assert_eq!(tokens, expected);
    }
}

/// Sums over a sequence's hidden states, whole and in two batches.
#[test]
fn pooled_sums_have_the_same_bits_in_any_batches() {
    for dtype in DTYPES {
        let mut cuda = Cuda::new(dtype).unwrap().deterministic(true);
        let (length, cut, d_model) = (300, 123, 100);
        let hidden = ops::Strided::random(&mut cuda, &mut Rng(5), length, d_model, 1.0);
        let mut pooled = |parts: &[(usize, usize)]| {
            let mut row = ops::buffer(&mut cuda, &vec![f32::NAN; d_model]);
            for (from, to) in parts {
                let mut batch = Batch::new();
                batch.push(&vec![0; to - from], 0, *from == 0);
                let plan = cuda.plan(&batch).unwrap();
                let mut view = hidden.view();
                view.offset += from * view.stride;
                view.rows = to - from;
                let out = ViewMut::dense(&mut row, 1, d_model);
                cuda.pool(&plan, Pool { kinds: &[Some(PoolKind::Sum)], hidden: view, out }).unwrap();
            }
            ops::read(&mut cuda, &row, d_model)
        };
        let whole = pooled(&[(0, length)]);
        assert!(whole.iter().all(|x| x.is_finite()));
        assert_eq!(whole, pooled(&[(0, cut), (cut, length)]), "{}", dtype.name());
    }
}

/// Everything that the engine does, many requests at once.
#[test]
fn engine_answers_as_on_the_cpu() {
    let (cpu, cuda) = (load(Device::Cpu, DType::F32), load(Device::Cuda, DType::F32));
    let texts: Vec<_> = texts(&Truth::novels()).into_iter().filter(|ids| ids.len() > 1).collect();
    let embed = |model: &Mamba| {
        let inputs = texts.iter().cloned().map(Input::Ids).collect();
        let Ok(Output::Embeddings { data, .. }) =
            ask(model, Task::Embed { inputs, options: EmbedOptions::default() })
        else {
            panic!("no embeddings")
        };
        data
    };
    assert!(relative_l2(&embed(&cuda), &wide(&embed(&cpu))) < 1e-5);
    let score = |model: &Mamba| {
        let Ok(Output::Scores { logprobs, .. }) =
            ask(model, Task::Score { input: Input::Ids(texts[1].clone()) })
        else {
            panic!("no scores")
        };
        logprobs
    };
    assert!(relative_l2(&score(&cuda), &wide(&score(&cpu))) < 1e-5);
    // Forty at once: prefill and decode share steps.
    let ids = Truth::novels().ids("val.ids");
    let run = |model: &Mamba| -> Vec<Vec<u32>> {
        let (sender, events) = mpsc::channel();
        for i in 0..40 {
            let prompt = Input::Ids(ids[i * 50..i * 50 + 5 + 17 * i].to_vec());
            let sender = sender.clone();
            let task = Task::Generate { prompt, options: greedy(12) };
            model
                .submit(task, Cancel::default(), move |event| match event {
                    Event::Token(_) => {}
                    Event::Done(output) => sender.send((i, generated(Ok(output)))).unwrap(),
                    Event::Failed(error) => panic!("{error}"),
                })
                .unwrap();
        }
        let mut all: Vec<_> = (0..40).map(|_| events.recv().unwrap()).collect();
        all.sort();
        all.into_iter().map(|(_, tokens)| tokens).collect()
    };
    assert_eq!(run(&cuda), run(&cpu));
}

/// Until a GPU has run them, the others are the CPU's.
#[test]
fn auto_takes_the_gpu() {
    for dtype in DTYPES.into_iter().chain([DType::Q8_0, DType::Q4K]) {
        assert_eq!(load(Device::Auto, dtype).info().device, "cuda");
    }
}

#[test]
fn an_id_beyond_the_embedding_is_an_error() {
    for dtype in DType::ALL {
        let mut runner = runner(dtype);
        let vocab = runner.model.padded_vocab_size();
        let mut batch = Batch::new();
        batch.push(&[0, vocab as u32 - 1], 0, true);
        runner.step(&batch);
        batch.push(&[1, vocab as u32], 1, true);
        let Runner { backend, model, slots, workspace } = &mut runner;
        let error = model.forward(backend, &batch, slots, workspace).err().unwrap();
        assert!(
            matches!(error, Error::TokenOutOfRange { id, position: 3, vocab_size } if id == vocab as i64 && vocab_size == vocab),
            "{error:?}"
        );
    }
}

/// Free memory, once that of models which tests before have dropped is free: engines end in their own time.
fn settled_memory(cuda: &Cuda) -> usize {
    let free = || cuda.device().memory().unwrap().0;
    let mut last = free();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        match free() {
            now if now == last => return now,
            now => last = now,
        }
    }
}

#[test]
fn too_little_memory_is_an_error_that_says_how_much() {
    let mut cuda = Cuda::new(DType::F32).unwrap();
    let free = settled_memory(&cuda);
    let error = cuda.alloc(free / 4 + (1 << 28), "states").err().unwrap();
    let Error::OutOfMemory { bytes, free: Some(left), what } = &error else { panic!("{error:?}") };
    assert_eq!((*bytes, &**what), (4 * (free as u64 / 4 + (1 << 28)), "states"));
    // Before it refuses, a driver gives back what it kept of memory that was freed earlier.
    let now = cuda.device().memory().unwrap().0;
    assert!((free as u64..=now.max(free) as u64).contains(left), "{left}, before {free}, now {now}");
    // Nothing is broken.
    ops::pool_matches(&mut cuda, &mut Rng(3));

    let options = LoadOptions {
        device: Device::Cuda,
        max_batch: 4096,
        prefill_chunk: Some(1 << 16),
        ..LoadOptions::default()
    };
    let config =
        mamba::config::Config::from_json(r#"{"d_model": 1024, "n_layer": 2, "vocab_size": 256}"#).unwrap();
    let large = mamba::checkpoint::Checkpoint::random(config, 1);
    let hog = cuda.alloc((left / 4 - (1 << 29)) as usize, "hog").unwrap();
    let error =
        Mamba::from_checkpoint(&large, None, &options, &Cancel::default(), &mut |_| {}).err().unwrap();
    assert_eq!(error.code(), "OUT_OF_MEMORY", "{error}");
    drop(hog);
}

/// One engine's work does not wait for another's thread: a CPU and a GPU backend in one process.
#[test]
fn a_model_moves_to_the_thread_that_runs_it() {
    let mut runner = runner(DType::BF16);
    let ids = Truth::novels().ids("prompt1.ids");
    let here = runner.run(&ids, true);
    let there = std::thread::spawn(move || runner.run(&ids, true)).join().unwrap();
    assert!(here == there);
    drop(Cpu::new(1).unwrap());
}
