#!/usr/bin/env bash
# What scripts/gpu/pack.mjs packed, run on the machine with the GPU: ./run.sh [test filter] checks, ./run.sh memcheck
# [test filter] checks under compute-sanitizer, ./run.sh bench times the 130m model, ./run.sh generation FILE measures
# what crates/mamba/examples/generation does, a JSON object a line, ./run.sh quantized FILE times decoding and prompts with
# quantized weights beside f16, ./run.sh training FOLDER times training steps and, by the
# profiler, their kernels, ./run.sh novels FOLDER [SEEDS [PRECISION]] trains the default model again by its own recipe, in
# bf16, leaves models and logs in FOLDER, and evaluates them and the official one on the same tokens. A seed is a number,
# or "official": the official run's first parameters and batches, drawn again by PyTorch.
# cuBLAS is looked for in LD_LIBRARY_PATH, then where the CUDA toolkit or pip put it.
set -uo pipefail
cd "$(dirname "$0")"
export RUST_BACKTRACE=0 NODE_MAMBA_CRATE=$PWD/crates/mamba
if ! ldconfig -p | grep -q 'libcublas\.so\.13'; then
  cublas=$(find /usr /opt /root /home -name libcublas.so.13 2> /dev/null | head -n 1)
  [ -n "$cublas" ] || { echo 'libcublas.so.13 was not found'; exit 1; }
  export LD_LIBRARY_PATH=${cublas%/*}:${LD_LIBRARY_PATH:-}
fi
if [ "${1:-}" = bench ]; then
  for dtype in bf16 f16 f32; do
    printf 'prefill 2048\nprefill 2048\nprefill 2048\ndecode 1 256\ndecode 1 256\ndecode 64 128\n' \
      | ./speed 130m "$dtype" 8 --device cuda --stdin || status=$?
  done
  exit "${status:-0}"
elif [ "${1:-}" = generation ]; then
  status=0
  {
    ./generation machine
    for shape in 130m 370m 1.4b 2.8b; do ./generation throughput $shape f16 || status=$?; done
    ./generation throughput 7b f16 1,8,64 || status=$?
    for shape in 130m 1.4b; do ./generation load $shape f16 8 || status=$?; done
    ./generation same 130m || status=$?
    for shape in 130m 370m; do ./generation embed $shape bf16 || status=$?; done
  } > >(tee "$2")
  exit $status
elif [ "${1:-}" = quantized ]; then
  status=0
  {
    echo "{\"what\":\"run\",\"commit\":\"$(cat commit)\",\"date\":\"$(date -I)\"}"
    ./generation machine
    for shape in 130m 1.4b; do
      for dtype in f16 q8_0 q4_k; do ./generation throughput $shape $dtype 1,8,16,64 || status=$?; done
    done
  } > >(tee "$2")
  exit $status
elif [ "${1:-}" = training ]; then
  mkdir -p "$2"
  status=0
  time_steps() { ./train_speed "$@" --device cuda || status=$?; }
  {
    ./generation machine
    time_steps 130m bf16 8 2048 20
    time_steps 130m bf16 32 2048 10
    time_steps 370m bf16 8 2048 10
    time_steps 130m bf16 1 131072 5
  } > >(tee "$2/steps.jsonl")
  PATH=$PATH:/usr/local/cuda/bin ncu --clock-control none --metrics gpu__time_duration.sum --csv --page raw \
    ./train_speed 130m bf16 8 2048 2 --device cuda > "$2/kernels.csv" || status=$?
  exit $status
elif [ "${1:-}" = novels ]; then
  status=0
  evaluate() { ./train_novels evaluate "$1" val.tokens corpus.tokens --precision "$precision" || status=$?; }
  precision=${4:-bf16}
  evaluate models/mamba-novels-7m
  for seed in ${3:-official}; do
    out=$2/$precision-$seed
    draws=(--seed "$seed")
    if [ "$seed" = official ]; then
      python3 official_start.py corpus.tokens start || status=$?
      draws=(--start start)
    fi
    ./train_novels run corpus.tokens val.tokens "$out" --precision "$precision" "${draws[@]}" || status=$?
    evaluate "$out" | tee "$out/evaluation.json"
  done
  exit $status
elif [ "${1:-}" = memcheck ]; then
  # A kernel is looked for in one module after the other, which is no error.
  PATH=$PATH:/usr/local/cuda/bin compute-sanitizer --report-api-errors no --error-exitcode 1 \
    ./cuda --test-threads=1 --skip too_little_memory "${@:2}"
else
  # One at a time: one fills the memory.
  ./cuda --test-threads=1 --nocapture "$@"
  status=$?
  ./cuda_lost --nocapture "$@" || status=$?
  exit $status
fi
