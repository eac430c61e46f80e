//! Decoding on the device, in graphs: what is chosen there is what the CPU chooses, whatever the options and the company.

use mamba::engine::{Cancel, Device, EmbedOptions, Event, GenerateOptions, Input, Output, Task};
use mamba::{DType, Error, Mamba};

use crate::common::Truth;
use crate::common::cuda::{self, ask, generated, greedy, load_whole};
use crate::common::requests::{events, request, start};

fn load(device: Device, dtype: DType) -> Mamba {
    load_whole(device, dtype, &[])
}

fn tokens(model: &Mamba, requests: std::ops::Range<u64>) -> Vec<String> {
    cuda::tokens(requests.map(|i| start(model, request(i), Cancel::default())))
}

#[test]
fn every_kind_of_request_gets_the_cpus_tokens() {
    let (cpu, cuda) = (load(Device::Cpu, DType::F32), load(Device::Cuda, DType::F32));
    let (expected, answers) = (tokens(&cpu, 0..200), tokens(&cuda, 0..200));
    for (i, (expected, answer)) in expected.iter().zip(&answers).enumerate() {
        assert_eq!(answer, expected, "request {i}: {:?}", request(i as u64));
    }
    // Alone, in other buckets.
    for i in 0..20 {
        assert_eq!(tokens(&cuda, i..i + 1)[0], expected[i as usize], "request {i} alone");
    }
}

#[test]
fn the_same_requests_twice_get_the_same_tokens_in_every_type() {
    for dtype in DType::ALL {
        let cuda = load(Device::Cuda, dtype);
        let alone: Vec<_> = (0..12).map(|i| tokens(&cuda, i..i + 1)).collect();
        assert!(alone == (0..12).map(|i| tokens(&cuda, i..i + 1)).collect::<Vec<_>>(), "{}", dtype.name());
    }
}

/// A long prompt makes room for its scan behind the launchers' backs; steps that were recorded before go on with theirs.
#[test]
fn recorded_steps_outlive_a_larger_batch() {
    let ids = Truth::novels().ids("val.ids");
    for dtype in DType::ALL {
        let cuda = load(Device::Cuda, dtype);
        let options = greedy(24);
        let task =
            |prompt: &[u32]| Task::Generate { prompt: Input::Ids(prompt.to_vec()), options: options.clone() };
        let before = generated(ask(&cuda, task(&ids[..20])));
        let texts: Vec<Input> = (0..8).map(|_| Input::Ids(ids[..1000].to_vec())).collect();
        ask(&cuda, task(&ids[..8000])).unwrap();
        ask(&cuda, Task::Embed { inputs: texts, options: EmbedOptions::default() }).unwrap();
        assert_eq!(generated(ask(&cuda, task(&ids[..20]))), before, "{}", dtype.name());
    }
}

/// A stop string is seen when the next step is queued already; the session does not notice.
#[test]
fn sessions_hold_at_stop_strings() {
    let (cpu, cuda) = (load(Device::Cpu, DType::F32), load(Device::Cuda, DType::F32));
    let options = GenerateOptions {
        max_tokens: 40,
        ignore_eos: true,
        stop: vec![" the".into(), ",".into()],
        ..GenerateOptions::default()
    };
    let said = [&cpu, &cuda].map(|model| {
        let session = model.session();
        let input = Input::Text("It was a dark night, and".into());
        ask(model, Task::Append { session: session.clone(), input }).unwrap();
        (0..6)
            .map(|_| {
                generated(ask(model, Task::Continue { session: session.clone(), options: options.clone() }))
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(said[0], said[1]);
}

#[test]
fn a_cancelled_request_leaves_the_others_alone() {
    let cuda = load(Device::Cuda, DType::F32);
    let options = GenerateOptions { max_tokens: 200, ignore_eos: true, ..GenerateOptions::default() };
    let task = || Task::Generate { prompt: Input::Text("The ship".into()), options: options.clone() };
    let expected = generated(ask(&cuda, task()));
    let cancels: Vec<_> = (0..6).map(|_| Cancel::default()).collect();
    let all: Vec<_> = cancels.iter().map(|cancel| start(&cuda, task(), cancel.clone())).collect();
    std::thread::sleep(std::time::Duration::from_millis(20));
    cancels[1].cancel();
    cancels[4].cancel();
    for (i, one) in all.iter().enumerate() {
        match events(one).pop() {
            Some(Event::Done(Output::Generated { tokens, .. })) => assert_eq!(tokens, expected, "{i}"),
            Some(Event::Failed(Error::Aborted)) => assert!(i == 1 || i == 4),
            other => panic!("{other:?}"),
        }
    }
}
