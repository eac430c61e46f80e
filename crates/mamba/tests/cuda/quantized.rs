//! Weights of 8 and 4 bits: products and rows of them against what their blocks mean, and the reference model against the
//! CPU's.

use mamba::DType;
use mamba::backend::{Backend, Batch, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::cuda::Cuda;
use mamba::engine::{Cancel, Device, Event, Input, Task};
use mamba::ops::linear;
use mamba_kernels::quantized::OWN_ROWS;

use crate::common::cuda::{ask, generated, greedy, load};
use crate::common::model::{Runner, alone, mean, packed, texts};
use crate::common::ops::{self, Bounds, Strided, buffer, read, rounded_weights};
use crate::common::requests::{events, start};
use crate::common::{Rng, Truth, relative_l2, wide};
use crate::{deterministic, runner};

const DTYPES: [DType; 2] = [DType::Q8_0, DType::Q4K];
/// Activations are f16.
const BOUNDS: Bounds = Bounds { dtype: DType::F16, sum: 2e-6 };

#[test]
fn linear() {
    for dtype in DTYPES {
        for deterministic in [false, true] {
            println!("{} deterministic {deterministic}", dtype.name());
            let mut cuda = Cuda::new(dtype).unwrap().deterministic(deterministic);
            let mut rng = Rng(41);
            for round in 0..120 {
                let rows = rng.pick(&[0, 1, 2, 3, 5, 8, 9, 12, 16, 17, 31, 64, 100]);
                let inputs = rng.pick(&[1, 3, 16, 48, 64, 255, 256, 257, 300, 777, 5120]);
                let outputs = rng.pick(&[1, 5, 15, 16, 17, 80, 130]);
                one_product(
                    &mut cuda,
                    &mut rng,
                    dtype,
                    deterministic,
                    [rows, inputs, outputs],
                    round % 2 == 0,
                );
            }
            // Several parts of the weight.
            one_product(&mut cuda, &mut rng, dtype, deterministic, [20, 4097, 4100], true);
        }
    }
}

fn one_product(
    cuda: &mut Cuda,
    rng: &mut Rng,
    dtype: DType,
    deterministic: bool,
    [rows, inputs, outputs]: [usize; 3],
    wide_out: bool,
) {
    let weights = rng.floats(outputs * inputs, 0.5);
    let tensor = Tensor::from_memory("w", vec![outputs, inputs], weights.clone());
    let weight = cuda.weight(&tensor, dtype).unwrap();
    let mut held = rounded_weights(&weights, inputs, dtype);
    if rows > OWN_ROWS && !deterministic {
        held = rounded_weights(&held, inputs, DType::F16); // as cuBLAS gets them
    }
    let bias = (rng.size(0, 1) == 0).then(|| rng.floats(outputs, 1.0));
    let bias_buffer = bias.as_ref().map(|bias| buffer(cuda, bias));
    let x = Strided::random(cuda, rng, rows, inputs, 1.0);
    let mut out = match wide_out {
        true => Strided::unwritten_f32(cuda, rng, rows, outputs),
        false => Strided::unwritten(cuda, rng, rows, outputs),
    };
    cuda.linear(x.view(), &weight, bias_buffer.as_ref(), out.view_mut()).unwrap();
    out.fetch(cuda);
    let bias = bias.map(|bias| match wide_out || rows <= OWN_ROWS || deterministic {
        true => wide(&bias),
        false => wide(&ops::rounded(&wide(&bias), DType::F16)),
    });
    let exact = linear::reference::linear(&wide(&x.all()), &wide(&held), bias.as_deref(), inputs);
    let error = relative_l2(&out.all(), &exact);
    let bound = if wide_out { BOUNDS.sum } else { BOUNDS.activation(&exact) };
    assert!(error <= bound, "{} {rows} x {inputs} x {outputs}: {error}, at most {bound}", dtype.name());
    assert!(out.gaps_are_nan());
}

#[test]
fn linear_gives_a_row_the_same_bits_in_any_company() {
    for dtype in DTYPES {
        let mut cuda = Cuda::new(dtype).unwrap().deterministic(true);
        let (rows, inputs, outputs) = (100, 300, 70);
        let rng = &mut Rng(42);
        let tensor = Tensor::from_memory("w", vec![outputs, inputs], rng.floats(outputs * inputs, 0.5));
        let weight = cuda.weight(&tensor, dtype).unwrap();
        let x = Strided::random(&mut cuda, rng, rows, inputs, 1.0);
        let mut product = |from: usize, rows: usize| {
            let mut out = buffer(&mut cuda, &vec![f32::NAN; rows * outputs]);
            let x = x.view();
            let x = View { offset: x.offset + from * x.stride, rows, ..x };
            cuda.linear(x, &weight, None, ViewMut::dense(&mut out, rows, outputs)).unwrap();
            read(&mut cuda, &out, rows * outputs)
        };
        let all = product(0, rows);
        for (from, count) in [(0, 1), (99, 1), (3, 8), (50, 9), (20, 17)] {
            assert!(product(from, count) == all[from * outputs..][..count * outputs], "{from}, {count}");
        }
    }
}

#[test]
fn embedding() {
    for dtype in DTYPES {
        let mut cuda = Cuda::new(dtype).unwrap();
        let rng = &mut Rng(43);
        for d_model in [1, 33, 256, 2050] {
            let vocab = 70;
            let table = rng.floats(vocab * d_model, 1.0);
            let held = rounded_weights(&table, d_model, dtype);
            let weight = cuda.weight(&Tensor::from_memory("e", vec![vocab, d_model], table), dtype).unwrap();
            let ids: Vec<u32> = (0..50).map(|_| rng.size(0, vocab - 1) as u32).chain([0, 69]).collect();
            let mut batch = Batch::new();
            batch.push(&ids, 0, true);
            let plan = cuda.plan(&batch).unwrap();
            let mut out = buffer(&mut cuda, &vec![f32::NAN; ids.len() * d_model]);
            cuda.embedding(&plan, &weight, ViewMut::dense(&mut out, ids.len(), d_model)).unwrap();
            let out = read(&mut cuda, &out, ids.len() * d_model);
            for (out, id) in out.chunks(d_model).zip(&ids) {
                assert_eq!(out, &held[*id as usize * d_model..][..d_model], "{}", dtype.name());
            }
        }
    }
}

#[test]
fn too_wide_a_matrix_is_refused() {
    let mut cuda = Cuda::new(DType::Q8_0).unwrap();
    let error = cuda.weight(&Tensor::from_memory("w", vec![1, 32769], vec![0.0; 32769]), DType::Q8_0);
    assert_eq!(error.err().unwrap().code(), "CONFIG_INVALID");
    assert!(cuda.weight(&Tensor::from_memory("w", vec![1, 32768], vec![0.0; 32768]), DType::Q8_0).is_ok());
}

/// With the same weights, what differs is the activations' type.
#[test]
fn validation_loss_is_the_cpus() {
    let truth = Truth::novels();
    for dtype in DTYPES {
        let cpu = mean(&Runner::new(Cpu::new(4).unwrap(), dtype).validation(&truth));
        for mut runner in [runner(dtype), deterministic(dtype)] {
            let cuda = mean(&runner.validation(&truth));
            println!("{}: mean nll {cuda:.7}, on the CPU {cpu:.7}", dtype.name());
            assert!((cuda / cpu - 1.0).abs() < 0.002);
        }
    }
}

#[test]
fn packed_chunked_and_stepped_agree() {
    let truth = Truth::novels();
    let texts = texts(&truth);
    for dtype in DTYPES {
        let mut exact = deterministic(dtype);
        exact.chunked(&truth, |what, a, b| assert!(a == b, "{what}, {}", dtype.name()));
        assert!(alone(&mut exact, &texts) == packed(&mut exact, &texts), "packed, {}", dtype.name());
    }
}

/// One sequence, then 40 at once: the steps of the latter are cuBLAS's. Among these tokens the CPU's two best logits are
/// 0.17 apart at least, more than f16 activations make of it.
#[test]
fn greedy_texts_begin_as_the_cpus() {
    let ids = Truth::novels().ids("prompt1.ids");
    let task = || Task::Generate { prompt: Input::Ids(ids.clone()), options: greedy(14) };
    for dtype in DTYPES {
        let expected = generated(ask(&load(Device::Cpu, dtype), task()));
        let cuda = load(Device::Cuda, dtype);
        assert_eq!(generated(ask(&cuda, task())), expected, "{}", dtype.name());
        let all: Vec<_> = (0..40).map(|_| start(&cuda, task(), Cancel::default())).collect();
        for one in &all {
            let Some(Event::Done(output)) = events(one).pop() else { panic!("{}", dtype.name()) };
            assert_eq!(generated(Ok(output)), expected, "{}", dtype.name());
        }
    }
}
