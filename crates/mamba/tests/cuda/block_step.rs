//! A layer's decode step in one piece, and the head, against the operations one by one in f32 on the CPU, in the
//! reference model.

use mamba::DType;
use mamba::backend::{Backend, Batch, BlockStep, HeadStep, StateView, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::cpu::Cpu;
use mamba::cuda::Cuda;
use mamba_kernels::Buffer;
use mamba_kernels::block_step::{MAX_ROWS, MOST};

use crate::common::model::{Runner, texts};
use crate::common::{Rng, Truth, relative_l2, wide};

const D_MODEL: usize = 64;
const D_INNER: usize = 128;
const D_STATE: usize = 16;
const D_CONV: usize = 4;
const DT_RANK: usize = 8;

/// A step of `rows` sequences with random weights; whether it was taken.
fn step<B: Backend>(backend: &mut B, rows: usize, dtype: DType, d_inner: usize) -> bool {
    let mut rng = Rng(3);
    let mut weight = |backend: &mut B, outputs: usize, inputs: usize| {
        let tensor = Tensor::from_memory("w", vec![outputs, inputs], rng.floats(outputs * inputs, 0.1));
        backend.weight(&tensor, dtype).unwrap()
    };
    let in_proj = weight(backend, 2 * d_inner, D_MODEL);
    let x_proj = weight(backend, DT_RANK + 2 * D_STATE, d_inner);
    let dt_proj = weight(backend, d_inner, DT_RANK);
    let out_proj = weight(backend, D_MODEL, d_inner);
    let mut zeros = |len: usize| backend.alloc(len, "test").unwrap();
    let [norm, conv_weight, delta_bias, a, d] =
        [D_MODEL, D_CONV * d_inner, d_inner, D_STATE * d_inner, d_inner].map(&mut zeros);
    let slot_stride = (D_CONV - 1 + D_STATE) * d_inner;
    let (mut state, mut residual) = (zeros(rows * slot_stride), zeros(rows * D_MODEL));
    let mut activations = |cols: usize| backend.activations(rows * cols).unwrap();
    let (mut u, mut xz, mut y) = (activations(d_inner), activations(2 * d_inner), activations(d_inner));
    let mut hidden = activations(D_MODEL);
    let mut batch = Batch::new();
    (0..rows).for_each(|row| batch.push(&[0], row, true));
    let plan = backend.plan(&batch).unwrap();
    let op = BlockStep {
        norm: &norm,
        eps: 1e-5,
        in_proj: &in_proj,
        conv_weight: &conv_weight,
        conv_bias: None,
        x_proj: &x_proj,
        dt_proj: &dt_proj,
        delta_bias: &delta_bias,
        a: &a,
        d: &d,
        out_proj: &out_proj,
        state: StateView { buffer: &mut state, offset: 0, slot_stride },
        d_conv: D_CONV,
        follows: false,
        residual: ViewMut::dense(&mut residual, rows, D_MODEL),
        hidden: ViewMut::dense(&mut hidden, rows, D_MODEL),
        u: ViewMut::dense(&mut u, rows, d_inner),
        xz: ViewMut::dense(&mut xz, rows, 2 * d_inner),
        y: ViewMut::dense(&mut y, rows, d_inner),
    };
    backend.block_step(&plan, op).unwrap()
}

#[test]
fn a_block_step_is_taken_where_it_is_supported() {
    for dtype in [DType::BF16, DType::F16] {
        let mut cuda = Cuda::new(dtype).unwrap();
        for rows in [1, 8, 9, MAX_ROWS, MAX_ROWS + 1, 64, 65, 128, 129, MOST / D_INNER] {
            assert!(step(&mut cuda, rows, dtype, D_INNER), "{rows} rows, {}", dtype.name());
        }
        assert!(!step(&mut cuda, MOST / D_INNER + 1, dtype, D_INNER));
        assert!(!step(&mut cuda, 1, dtype, D_INNER - 8), "channels that are no multiple of 32");
        assert!(!step(&mut Cuda::new(dtype).unwrap().deterministic(true), 1, dtype, D_INNER));
    }
    assert!(!step(&mut Cuda::new(DType::F32).unwrap(), 1, DType::F32, D_INNER));
    assert!(!step(&mut Cpu::new(1).unwrap(), 1, DType::F32, D_INNER));
}

/// Hidden states of a text, token by token, and of many sequences at once: as near to the CPU's in f32 as the kernels of
/// whole sequences are.
#[test]
fn a_block_step_is_as_exact_as_its_parts() {
    let ids = Truth::novels().ids("prompt1.ids");
    let ids = &ids[..ids.len().min(40)];
    let hidden = |runner: &mut Runner<Cuda>| {
        ids.iter().enumerate().flat_map(|(i, id)| runner.run(&[*id], i == 0).0).collect::<Vec<f32>>()
    };
    let exact = wide(&Runner::new(Cpu::new(2).unwrap(), DType::F32).run(ids, true).0);
    // The text's first tokens, 8 of them in each of so many sequences, all of which begin with another one.
    let many = |runner: &mut Runner<Cuda>, count: usize| {
        let step = |i: usize| {
            let mut batch = Batch::new();
            (0..count).for_each(|s| batch.push(&[ids[(s + i) % ids.len()]], s, i == 0));
            runner.step(&batch)
        };
        (0..8).flat_map(step).collect::<Vec<f32>>()
    };
    let exact_many = |count: usize| {
        let mut runner = Runner::new(Cpu::new(2).unwrap(), DType::F32);
        let of_sequence = |s: usize| {
            let ids: Vec<u32> = (s..s + 8).map(|i| ids[i % ids.len()]).collect();
            runner.run(&ids, true).0
        };
        let sequences: Vec<Vec<f32>> = (0..count).map(of_sequence).collect();
        let width = sequences[0].len() / 8;
        (0..8)
            .flat_map(|i| sequences.iter().flat_map(move |s| s[i * width..][..width].to_vec()))
            .collect::<Vec<f32>>()
    };
    for dtype in [DType::BF16, DType::F16] {
        let [mut whole, mut parts] =
            [false, true].map(|parts| Runner::new(Cuda::new(dtype).unwrap().deterministic(parts), dtype));
        let check = |what: String, whole: &[f32], parts: &[f32], exact: &[f64]| {
            let [whole, parts] = [whole, parts].map(|hidden| relative_l2(hidden, exact));
            println!("{what}: relative error {whole:.2e}, of the operations one by one {parts:.2e}");
            assert!(whole <= 1.2 * parts, "{what}: {whole} {parts}");
        };
        check(dtype.name().into(), &hidden(&mut whole), &hidden(&mut parts), &exact);
        for count in [12, 64, 100] {
            let what = format!("{}, {count} sequences", dtype.name());
            check(what, &many(&mut whole, count), &many(&mut parts, count), &wide(&exact_many(count)));
        }
    }
}

/// Logits that the head's kernel makes of the residual, and those of the norm and the product.
#[test]
fn a_head_step_is_as_exact_as_its_parts() {
    let ids = Truth::novels().ids("prompt1.ids");
    let token = ids[0];
    let exact = wide(&Runner::new(Cpu::new(2).unwrap(), DType::F32).run(&[token], true).1);
    for dtype in [DType::BF16, DType::F16] {
        let mut runner = Runner::new(Cuda::new(dtype).unwrap(), dtype);
        let parts = relative_l2(&runner.run(&[token], true).1, &exact);
        let mut batch = Batch::new();
        batch.push(&[token], 0, true);
        let plan = runner.backend.plan(&batch).unwrap();
        let mut logits = vec![f32::NAN; runner.model.padded_vocab_size()];
        let Runner { backend, model, slots, workspace } = &mut runner;
        let choose = &mut |backend: &mut Cuda, view: ViewMut<Buffer>, first: usize| {
            assert_eq!((first, view.rows), (0, 1));
            backend.read(view.buffer, view.offset, &mut logits)
        };
        model.decode(backend, &plan, 1, false, slots, workspace, choose).unwrap();
        let whole = relative_l2(&logits, &exact);
        println!("{}: relative error {whole:.2e}, of the operations one by one {parts:.2e}", dtype.name());
        assert!(whole <= 1.2 * parts, "{whole} {parts}");
    }
}

#[test]
fn a_head_step_is_taken_where_it_is_supported() {
    let taken = |dtype: DType, rows: usize| {
        let mut cuda = Cuda::new(dtype).unwrap();
        let weight = Tensor::from_memory("w", vec![40, D_MODEL], vec![0.0; 40 * D_MODEL]);
        let weight = cuda.weight(&weight, dtype).unwrap();
        assert!(step(&mut cuda, 1, dtype, D_INNER) || dtype == DType::F32, "a head follows a layer");
        let [norm, residual] = [D_MODEL, rows * D_MODEL].map(|len| cuda.alloc(len, "test").unwrap());
        let mut logits = cuda.alloc(rows * 40, "test").unwrap();
        let op = HeadStep {
            residual: View::dense(&residual, rows, D_MODEL),
            norm: &norm,
            eps: 1e-5,
            weight: &weight,
            logits: ViewMut::dense(&mut logits, rows, 40),
        };
        cuda.head_step(op).unwrap()
    };
    assert!(taken(DType::F16, 1) && taken(DType::BF16, MAX_ROWS));
    assert!(!taken(DType::F16, MAX_ROWS + 1) && !taken(DType::F32, 1));
}

/// A sequence has the same bits in any company that the kernels take.
#[test]
fn block_steps_do_not_depend_on_the_company() {
    let ids: Vec<u32> = texts(&Truth::novels()).concat();
    for dtype in [DType::BF16, DType::F16] {
        let mut runner = Runner::new(Cuda::new(dtype).unwrap(), dtype);
        let alone: Vec<(Vec<f32>, Vec<f32>)> =
            ids[..8].iter().map(|id| (runner.run(&[*id], true).0, runner.state(0))).collect();
        let mut batch = Batch::new();
        (0..8).for_each(|i| batch.push(&ids[i..=i], 7 - i, true));
        let together = runner.step(&batch);
        for (i, (hidden, state)) in alone.iter().enumerate() {
            assert!(together[i * hidden.len()..][..hidden.len()] == hidden[..], "{}", dtype.name());
            assert!(runner.state(7 - i) == *state, "state, {}", dtype.name());
        }
        // The kernels for many.
        let mut many = |count: usize| {
            let mut batch = Batch::new();
            (0..count).for_each(|i| batch.push(&ids[i..=i], i, true));
            (runner.step(&batch), runner.state(8))
        };
        let (fewest, state) = many(9);
        for count in [64, 100] {
            let (all, state_in_all) = many(count);
            assert!(all[..fewest.len()] == fewest && state_in_all == state, "{count}, {}", dtype.name());
        }
    }
}
