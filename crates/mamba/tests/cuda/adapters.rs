//! Adapters where the device decodes: each row gets its own, in steps that are recorded.

use mamba::backend::{Backend, Batch, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cuda::{Cuda, Weight};
use mamba::decoder::{Choice, Decoder, Entry};
use mamba::engine::{Cancel, Device, Event, GenerateOptions, Input, Task};
use mamba::generate::SamplerOptions;
use mamba::model::Adapters;
use mamba::{DType, Error, Mamba};
use mamba_kernels::{decode, low_rank};

use crate::DTYPES;
use crate::common::adapters::{adapters, in_turn};
use crate::common::cuda::{self, generated, greedy, load_whole};
use crate::common::model::{Runner, checkpoint};
use crate::common::ops::{Strided, rounded};
use crate::common::requests::{events, request, start_with};
use crate::common::{Rng, relative_l2, wide};
use crate::launchers::{rows, rows_mut};
use crate::sampling::row_of;

/// What requests give that are asked together, with each adapter in turn.
fn tokens(model: &Mamba, requests: std::ops::Range<u64>) -> Vec<String> {
    cuda::tokens(requests.map(|i| start_with(model, in_turn(i), request(i), Cancel::default())))
}

#[test]
fn every_kind_of_request_gets_the_cpus_tokens_with_its_adapter() {
    let adapters = adapters(checkpoint().config());
    let [cpu, cuda] =
        [Device::Cpu, Device::Cuda].map(|device| load_whole(device, DType::F32, &adapters.named));
    let (expected, answers) = (tokens(&cpu, 0..200), tokens(&cuda, 0..200));
    for (i, (expected, answer)) in (0..).zip(expected.iter().zip(&answers)) {
        assert_eq!(answer, expected, "request {i} with {:?}: {:?}", in_turn(i), request(i));
    }
    // Alone, behind steps with and without adapters.
    for i in 0..30 {
        assert_eq!(tokens(&cuda, i..i + 1)[0], expected[i as usize], "request {i} alone");
    }
}

/// Beside weights in blocks, too, adapters are in the type of activations.
#[test]
fn the_same_requests_twice_get_the_same_tokens_in_every_type() {
    let adapters = adapters(checkpoint().config());
    for dtype in DType::ALL {
        let cuda = load_whole(Device::Cuda, dtype, &adapters.named);
        let alone = || (0..15).map(|i| tokens(&cuda, i..i + 1)).collect::<Vec<_>>();
        assert!(alone() == alone(), "{}", dtype.name());
        // Each adapter says something of its own.
        let prompt = Input::Ids((5..25).collect());
        let said = (0..5).map(|i| {
            let task = Task::Generate { prompt: prompt.clone(), options: greedy(32) };
            match events(&start_with(&cuda, in_turn(i), task, Cancel::default())).pop() {
                Some(Event::Done(output)) => generated(Ok(output)),
                other => panic!("{other:?}"),
            }
        });
        let said: Vec<_> = said.collect();
        for (i, one) in said.iter().enumerate() {
            assert!(!said[..i].contains(one), "{}: {:?} changes nothing", dtype.name(), in_turn(i as u64));
        }
    }
}

#[test]
fn a_cancelled_request_leaves_the_others_their_adapters() {
    let adapters = adapters(checkpoint().config());
    let cuda = load_whole(Device::Cuda, DType::F32, &adapters.named);
    let options = GenerateOptions { max_tokens: 200, ignore_eos: true, ..GenerateOptions::default() };
    let task = || Task::Generate { prompt: Input::Text("The ship".into()), options: options.clone() };
    let start = |i: u64, cancel: &Cancel| start_with(&cuda, in_turn(i), task(), cancel.clone());
    let one = |i| match events(&start(i, &Cancel::default())).pop() {
        Some(Event::Done(output)) => generated(Ok(output)),
        other => panic!("{other:?}"),
    };
    let expected: Vec<_> = (0..5).map(one).collect();
    let cancels: Vec<_> = (0..10).map(|_| Cancel::default()).collect();
    let all: Vec<_> = (0..).zip(&cancels).map(|(i, cancel)| start(i, cancel)).collect();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let leaving = [1, 3, 8];
    leaving.iter().for_each(|i| cancels[*i].cancel());
    for (i, one) in all.iter().enumerate() {
        match events(one).pop() {
            Some(Event::Done(output)) => assert_eq!(generated(Ok(output)), expected[i % 5], "{i}"),
            Some(Event::Failed(Error::Aborted)) => assert!(leaving.contains(&i)),
            other => panic!("{other:?}"),
        }
    }
}

/// How the steps behind the first are computed.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    /// By launches, each anew.
    Launched,
    /// Replayed, from the second on.
    Replayed,
}

/// Tokens that the decoder chooses for four sequences with the same prompt, and their log-probabilities' bits.
fn decoded(dtype: DType, of_rows: [Option<usize>; 4], steps: Steps) -> [Vec<(u32, u32)>; 4] {
    let Runner { mut backend, model, mut slots, mut workspace } =
        Runner::new(Cuda::new(dtype).unwrap(), dtype);
    let cuda = &mut backend;
    let opened = adapters(model.config()).open(model.config());
    workspace.adapters = Some(Adapters::load(cuda, model.config(), &opened, 1024).unwrap());
    let adapted = of_rows.iter().any(Option::is_some);
    // Four sequences in eight slots, the last of which is the spare one.
    let mut decoder = cuda.decoder(4, model.config().vocab_size, 7).unwrap().unwrap();
    let options = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let mut batch = Batch::new();
    for (at, adapter) in of_rows.into_iter().enumerate() {
        batch.push(&[11, 500, 42, 7], 2 * at % 7, true);
        let entry = Entry {
            slot: 2 * at % 7,
            options: &options,
            window: &[],
            position: 4,
            left: 100,
            stop: &[],
            hold: false,
            adapter,
        };
        decoder.enter(cuda, at, &entry).unwrap();
    }
    let sequences = of_rows.iter().map(|adapter| (4, *adapter));
    workspace.adapters.as_mut().unwrap().assign(sequences);
    model.forward(cuda, &batch, &mut slots, &mut workspace).unwrap();
    model.logits(cuda, &[3, 7, 11, 15], &mut workspace).unwrap();
    let vocab = model.padded_vocab_size();
    decoder.choose_for(cuda, ViewMut::dense(&mut workspace.logits, 4, vocab), &[0, 1, 2, 3]).unwrap();

    let mut all = [const { Vec::new() }; 4];
    let plan = decoder.plan(cuda, 4).unwrap();
    for step in 0..20 {
        decoder.mark(cuda).unwrap();
        decoder.wait(cuda).unwrap();
        for (at, tokens) in all.iter_mut().enumerate() {
            let Choice { token, logprob } = decoder.chosen(2 * at % 7, step);
            tokens.push((token.unwrap(), logprob.to_bits()));
        }
        assert!(!decoder.replay(cuda, 4, !adapted).unwrap(), "what is recorded is another step");
        if decoder.replay(cuda, 4, adapted).unwrap() {
            assert!(steps == Steps::Replayed && step > 0);
            continue;
        }
        assert!(steps == Steps::Launched || step == 0);
        let mut run = |cuda: &mut Cuda, decoder: &mut dyn Decoder<Cuda>| {
            model
                .decode(cuda, &plan, 4, adapted, &mut slots, &mut workspace, &mut |cuda, logits, first| {
                    decoder.choose(cuda, logits, first)
                })
                .unwrap();
        };
        run(cuda, &mut *decoder);
        if steps == Steps::Replayed {
            assert!(decoder.begin_recording(cuda).unwrap());
            run(cuda, &mut *decoder);
            decoder.end_recording(cuda, 4, adapted).unwrap();
        }
    }
    all
}

#[test]
fn a_recorded_step_is_the_one_that_was_run() {
    let of_rows = [Some(0), None, Some(3), Some(0)];
    for dtype in DType::ALL {
        let name = dtype.name();
        let launched = decoded(dtype, of_rows, Steps::Launched);
        assert!(launched == decoded(dtype, of_rows, Steps::Replayed), "{name}");
        let [first, none, second, again] =
            launched.each_ref().map(|row| row.iter().map(|(token, _)| *token).collect::<Vec<_>>());
        assert_eq!(first, again, "{name}");
        assert!(first != none && second != none && first != second, "{name}");
        // In f32 layers are composed in any case, so the row without an adapter has the bits of a step without adapters.
        if dtype == DType::F32 {
            assert!(launched[1] == decoded(dtype, [None; 4], Steps::Replayed)[1]);
        }
    }
}

/// The kernels against f64, by a table as the engine has it.
#[test]
fn low_ranks_are_added_row_by_row() {
    for dtype in DTYPES {
        let (cuda, rng) = (&mut Cuda::new(dtype).unwrap(), &mut Rng(51));
        for round in 0..60 {
            let count = rng.size(1, 40);
            let (inputs, outputs) = (rng.pick(&[1, 5, 16, 48, 255, 512, 1536]), rng.pick(&[7, 48, 130, 512]));
            low_ranks(cuda, rng, dtype, (count, inputs, outputs), round % 2 == 0);
        }
    }
}

fn low_ranks(
    cuda: &mut Cuda,
    rng: &mut Rng,
    dtype: DType,
    (count, inputs, outputs): (usize, usize, usize),
    wide_out: bool,
) {
    let what = format!("{} {count} x {inputs} x {outputs}", dtype.name());
    let ranks = [Some(rng.pick(&[1, 3, 8])), None, Some(16), Some(rng.pick(&[4, 24, 70]))];
    let factors = ranks.map(|rank: Option<usize>| {
        rank.map(|rank| {
            [[rank, inputs], [outputs, rank]].map(|shape| {
                let values = rounded(&wide(&rng.floats(shape[0] * shape[1], 0.5)), dtype);
                let weight =
                    cuda.weight(&Tensor::from_memory("w", shape.to_vec(), values.clone()), DType::F32);
                let Weight::Floats(weight) = weight.unwrap() else { panic!("in blocks") };
                (weight, values)
            })
        })
    });
    let weights: Vec<_> =
        factors.iter().map(|both| both.as_ref().map(|both| both.each_ref().map(|x| &x.0))).collect();
    let added = low_rank::LowRanks::new(cuda.device(), &weights).unwrap();

    // Rows are entered anew, and the last one moves to the first one's place.
    let mut table = decode::Decoder::new(cuda.device(), count + 1, 16, count + 1).unwrap();
    let mut of_rows: Vec<Option<usize>> =
        (0..=count).map(|_| rng.pick(&[None, Some(0), Some(1), Some(2), Some(3)])).collect();
    let options = SamplerOptions::default();
    let row = row_of(&options, &[], 0);
    for (slot, adapter) in of_rows.iter().enumerate() {
        for adapter in [Some(0), *adapter] {
            let entry = decode::Entry { slot, row, window_size: 0, left: 1, stop: &[], hold: false, adapter };
            table.enter(cuda.device(), slot, &entry).unwrap();
        }
    }
    table.relocate(cuda.device(), count, 0).unwrap();
    of_rows.swap_remove(0);

    let x = Strided::random(cuda, rng, count, inputs, 1.0);
    let before = rounded(&wide(&rng.floats(count * outputs, 1.0)), dtype);
    let run = |cuda: &mut Cuda, table: &decode::Decoder, layout: u64| {
        let rng = &mut Rng(layout);
        let mut out = match wide_out {
            true => Strided::unwritten_f32(cuda, rng, count, outputs),
            false => Strided::unwritten(cuda, rng, count, outputs),
        };
        out.put(cuda, &before);
        let batch = table.batch(count);
        low_rank::add(cuda.device(), &batch, &added, rows(x.view()), rows_mut(out.view_mut())).unwrap();
        out.fetch(cuda);
        assert!(out.gaps_are_nan(), "{what}");
        out.all()
    };
    let layout = rng.next();
    let out = run(cuda, &table, layout);
    assert!(out == run(cuda, &table, layout), "{what}: not the same again");
    let exact_x = wide(&x.all());
    for (r, adapter) in of_rows.iter().enumerate() {
        let at = r * outputs..(r + 1) * outputs;
        let Some([(_, a), (_, b)]) = adapter.and_then(|adapter| factors[adapter].as_ref()) else {
            assert_eq!(out[at.clone()], before[at], "{what}: row {r} has no adapter here");
            continue;
        };
        let dot = |a: &[f32], x: &[f64]| a.iter().zip(x).map(|(a, x)| f64::from(*a) * x).sum::<f64>();
        let low: Vec<f64> = a.chunks(inputs).map(|a| dot(a, &exact_x[r * inputs..][..inputs])).collect();
        let exact =
            b.chunks(low.len()).zip(&before[at.clone()]).map(|(b, before)| f64::from(*before) + dot(b, &low));
        let exact: Vec<f64> = exact.collect();
        let bound = match dtype {
            DType::BF16 | DType::F16 if !wide_out => {
                1.1 * relative_l2(&rounded(&exact, dtype), &exact) + 2e-6
            }
            _ => 2e-6,
        };
        let error = relative_l2(&out[at], &exact);
        assert!(error <= bound, "{what}: row {r} is off by {error:.2e}, at most {bound:.2e}");
    }
    // Without its table's adapters nothing is added.
    table.clear(cuda.device()).unwrap();
    assert!(run(cuda, &table, layout) == before, "{what}: cleared");
}
