//! What each operation of a layer takes of a batch of prompts: where prefill's time goes.

use std::time::Instant;

use mamba::DType;
use mamba::backend::{Backend, Batch, StateView, View, ViewMut};
use mamba::checkpoint::Tensor;
use mamba::config::NormKind;
use mamba::cuda::Cuda;
use mamba::ops::causal_conv1d::CausalConv1d;
use mamba::ops::norm::AddNorm;
use mamba::ops::selective_scan::SelectiveScan;
use serde_json::json;

use crate::weights::config;

/// Runs of each operation in a row, and how often.
const RUNS: usize = 20;
const ROUNDS: usize = 5;

pub fn run(shape: &str, dtype: DType, tokens: usize, sequences: usize) {
    let config = config(shape);
    let (d_model, d_inner, d_state) = (config.d_model, config.d_inner, config.d_state);
    let (d_conv, dt_rank) = (config.d_conv, config.dt_rank);
    let narrow = dt_rank + 2 * d_state;
    let mut cuda = Cuda::new(dtype).expect("a GPU");
    let numbers = |n: usize, scale: f32| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 2003) as f32 / 1001.5 - 1.0) * scale).collect()
    };
    let mut weight = |outputs: usize, inputs: usize| {
        let values = numbers(outputs * inputs, 1.0 / (inputs as f32).sqrt());
        cuda.weight(&Tensor::from_memory("w", vec![outputs, inputs], values), dtype).expect("a weight")
    };
    let in_proj = weight(2 * d_inner, d_model);
    let (x_proj, dt_proj) = (weight(narrow, d_inner), weight(d_inner, dt_rank));
    let out_proj = weight(d_model, d_inner);
    let mut vector = |values: Vec<f32>| {
        let mut buffer = cuda.alloc(values.len(), "a vector").expect("memory");
        cuda.write(&mut buffer, 0, &values).expect("a copy");
        buffer
    };
    let (norm, conv_weight) = (vector(vec![1.0; d_model]), vector(numbers(d_conv * d_inner, 0.5)));
    let (delta_bias, d) = (vector(vec![-4.6; d_inner]), vector(vec![1.0; d_inner]));
    let a = vector((0..d_state * d_inner).map(|i| -((i / d_inner + 1) as f32)).collect());
    let state_len = (d_conv - 1 + d_state) * d_inner;
    let mut states = vector(vec![0.0; sequences * state_len]);
    let mut residual = vector(numbers(tokens * d_model, 1.0));
    let mut activations = |cols: usize| {
        let mut buffer = cuda.activations(tokens * cols).expect("memory");
        cuda.write(&mut buffer, 0, &numbers(tokens * cols, 1.0)).expect("a copy");
        buffer
    };
    let (mut hidden, mut xz, mut u) = (activations(d_model), activations(2 * d_inner), activations(d_inner));
    let (mut dt_b_c, mut delta, mut y) = (activations(narrow), activations(d_inner), activations(d_inner));
    let mut mixed = activations(d_model);
    let mut batch = Batch::new();
    for slot in 0..sequences {
        batch.push(&vec![1; tokens / sequences], slot, false);
    }
    let plan = cuda.plan(&batch).expect("a plan");

    let mut total = 0.0;
    let mut time =
        |what: &str, bytes: usize, flops: usize, cuda: &mut Cuda, run: &mut dyn FnMut(&mut Cuda)| {
            run(cuda);
            let mut rounds: Vec<f64> = (0..ROUNDS)
                .map(|_| {
                    cuda.device().synchronize().expect("the device");
                    let began = Instant::now();
                    (0..RUNS).for_each(|_| run(cuda));
                    cuda.device().synchronize().expect("the device");
                    began.elapsed().as_secs_f64() / RUNS as f64
                })
                .collect();
            rounds.sort_by(f64::total_cmp);
            let seconds = rounds[ROUNDS / 2];
            total += seconds;
            println!(
                "{}",
                json!({ "what": format!("op {what}"), "shape": shape, "dtype": dtype.name(), "tokens": tokens,
                "sequences": sequences, "us": seconds * 1e6, "tb_s": bytes as f64 / seconds * 1e-12,
                "tflops": flops as f64 / seconds * 1e-12 })
            );
        };
    let products = |outputs: usize, inputs: usize| 2 * tokens * outputs * inputs;
    time("norm", tokens * d_model * 12, 0, &mut cuda, &mut |cuda| {
        cuda.add_norm(AddNorm {
            kind: NormKind::Rms,
            eps: 1e-5,
            weight: &norm,
            bias: None,
            delta: Some(View::dense(&mixed, tokens, d_model)),
            residual: ViewMut::dense(&mut residual, tokens, d_model),
            out: ViewMut::dense(&mut hidden, tokens, d_model),
        })
        .expect("a norm");
    });
    time("in_proj", 0, products(2 * d_inner, d_model), &mut cuda, &mut |cuda| {
        let (x, out) = (View::dense(&hidden, tokens, d_model), ViewMut::dense(&mut xz, tokens, 2 * d_inner));
        cuda.linear(x, &in_proj, None, out).expect("a product");
    });
    time("conv", tokens * d_inner * 4, 0, &mut cuda, &mut |cuda| {
        let op = CausalConv1d {
            x: View::dense(&xz, tokens, 2 * d_inner).columns(0, d_inner),
            weight: &conv_weight,
            bias: Some(&d),
            d_conv,
            state: Some(StateView { buffer: &mut states, offset: 0, slot_stride: state_len }),
            out: ViewMut::dense(&mut u, tokens, d_inner),
        };
        cuda.causal_conv1d(&plan, op).expect("a convolution");
    });
    time("x_proj", tokens * (d_inner + narrow) * 2, products(narrow, d_inner), &mut cuda, &mut |cuda| {
        let (x, out) = (View::dense(&u, tokens, d_inner), ViewMut::dense(&mut dt_b_c, tokens, narrow));
        cuda.linear(x, &x_proj, None, out).expect("a product");
    });
    time("dt_proj", tokens * (d_inner + dt_rank) * 2, products(d_inner, dt_rank), &mut cuda, &mut |cuda| {
        let x = View::dense(&dt_b_c, tokens, narrow).columns(0, dt_rank);
        cuda.linear(x, &dt_proj, None, ViewMut::dense(&mut delta, tokens, d_inner)).expect("a product");
    });
    time("scan", tokens * d_inner * 8, 0, &mut cuda, &mut |cuda| {
        let dt_b_c = View::dense(&dt_b_c, tokens, narrow);
        let op = SelectiveScan {
            u: View::dense(&u, tokens, d_inner),
            delta: View::dense(&delta, tokens, d_inner),
            delta_bias: Some(&delta_bias),
            a: &a,
            b: dt_b_c.columns(dt_rank, d_state),
            c: dt_b_c.columns(dt_rank + d_state, d_state),
            d: Some(&d),
            z: Some(View::dense(&xz, tokens, 2 * d_inner).columns(d_inner, d_inner)),
            state: Some(StateView {
                buffer: &mut states,
                offset: (d_conv - 1) * d_inner,
                slot_stride: state_len,
            }),
            out: ViewMut::dense(&mut y, tokens, d_inner),
        };
        cuda.selective_scan(&plan, op).expect("a scan");
    });
    time("out_proj", 0, products(d_model, d_inner), &mut cuda, &mut |cuda| {
        let (x, out) = (View::dense(&y, tokens, d_inner), ViewMut::dense(&mut mixed, tokens, d_model));
        cuda.linear(x, &out_proj, None, out).expect("a product");
    });
    let all = total * config.n_layer as f64 * 1e3;
    println!(
        "{}",
        json!({ "what": "ops, all layers", "shape": shape, "dtype": dtype.name(), "tokens": tokens,
            "sequences": sequences, "ms": all })
    );
}
