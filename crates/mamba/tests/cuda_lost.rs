//! What a lost GPU ends, and what it does not. A program of its own, since the driver lets a process whose kernel failed use
//! the GPU no more.

mod common;

use common::Truth;
use common::cuda::{ask, generated, greedy, load};
use common::model::Runner;
use mamba::DType;
use mamba::backend::Batch;
use mamba::cuda::Cuda;
use mamba::engine::{Device, Input, Task};

#[test]
fn requests_end_with_a_typed_error_and_the_cpu_goes_on() {
    let prompt = || Input::Ids(Truth::novels().ids("prompt1.ids"));
    let other = load(Device::Cuda, DType::F32);
    let task = || Task::Generate { prompt: prompt(), options: greedy(8) };
    assert_eq!(generated(ask(&other, task())), Truth::novels().ids("prompt1.greedy")[..8]);

    let mut lost = Runner::new(Cuda::new(DType::F32).unwrap(), DType::F32);
    let mut batch = Batch::new();
    batch.push(&[1 << 30], 0, true); // a row of the embedding that is not there; the engine would refuse the id
    let run = lost.model.forward(&mut lost.backend, &batch, &mut lost.slots, &mut lost.workspace);
    let error = run.and_then(|_| lost.slots.read(&mut lost.backend, 0)).err().unwrap();
    assert_eq!(error.code(), "DEVICE_LOST", "{error}");
    println!("{error}");
    let again = lost.slots.read(&mut lost.backend, 0).err().unwrap();
    assert_eq!(again.code(), "DEVICE_LOST", "{again}");
    drop(lost);

    for _ in 0..2 {
        let error = ask(&other, task()).err().unwrap();
        assert_eq!(error.code(), "DEVICE_LOST", "{error}");
    }
    assert_eq!(Cuda::new(DType::F32).err().unwrap().code(), "DEVICE_LOST");
    drop(other);
    // `auto` takes what is left.
    let cpu = load(Device::Auto, DType::F32);
    assert_eq!(cpu.info().device, "cpu");
    assert_eq!(generated(ask(&cpu, task())), Truth::novels().ids("prompt1.greedy")[..8]);
}
