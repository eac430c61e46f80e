//! Training runs as a whole: on real text, resumed, cut off, with bad input. The text is the beginning of Forster's
//! "A Room with a View", which the model was not trained on.

use std::fs;
use std::path::{Path, PathBuf};

use mamba::checkpoint::{Checkpoint, OpenOptions};
use mamba::engine::Cancel;
use mamba::train::adapter::{Adapter, AdapterKind, merge};
use mamba::train::run::{Progress, RunConfig, RunEvent, RunResult, run};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mamba-novels-7m");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../__test__/fixtures/room-with-a-view.txt");

fn merged(mut base: Value, changes: Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        base[field] = value.clone();
    }
    base
}

/// A small new model on the text; quick.
fn small(out: &Path, changes: Value) -> RunConfig {
    let base = json!({
        "out": out,
        "config": { "d_model": 32, "n_layer": 2 },
        "tokenizer": { "kind": "characters" },
        "data": { "files": [TEXT] },
        "batch": { "size": 4, "length": 64, "order": "windows" },
        "optimizer": { "lr": 1e-2 },
        "steps": 12,
        "checkpoint": { "every": 4, "keep": 2 },
        "threads": 1,
    });
    RunConfig::from_json(&merged(base, changes).to_string()).unwrap()
}

/// The default model goes on learning from the text.
fn fine_tune(out: &Path, changes: Value) -> RunConfig {
    let base = json!({
        "out": out,
        "model": MODEL,
        "data": { "files": [TEXT] },
        "batch": { "size": 2, "length": 128 },
        "validation": { "fraction": 0.1, "every": 0, "batches": 8 },
        "steps": 20,
        "threads": 2,
    });
    RunConfig::from_json(&merged(base, changes).to_string()).unwrap()
}

fn go(config: &RunConfig) -> mamba::Result<(RunResult, Vec<Progress>)> {
    let mut steps = Vec::new();
    let result = run(config, &Cancel::default(), &mut |event| {
        if let RunEvent::Progress(progress) = event {
            steps.push(progress);
        }
    })?;
    Ok((result, steps))
}

/// What a run leaves that must not depend on how it came there.
fn outcome(out: &Path, last: u64) -> (Vec<u8>, Vec<Option<f64>>, Vec<u8>) {
    let state = fs::read(out.join(format!("checkpoints/step-{last:08}/state.safetensors"))).unwrap();
    let lines = fs::read_to_string(out.join("progress.jsonl")).unwrap();
    let losses = lines.lines().map(|line| serde_json::from_str::<Progress>(line).unwrap().loss).collect();
    (state, losses, fs::read(out.join("model/model.safetensors")).unwrap())
}

/// Aborts a run after a step.
fn abort_after(config: &RunConfig, step: u64) {
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let error = run(config, &cancel, &mut |event| {
        if matches!(event, RunEvent::Progress(progress) if progress.step == step) {
            stop.cancel();
        }
    });
    assert_eq!(error.unwrap_err().code(), "ABORTED");
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    for changes in [
        json!({}),
        json!({ "batch": { "size": 3, "length": 40, "order": "documents", "accumulate": 2 } }),
        json!({ "batch": { "size": 3, "length": 40, "order": "carried" }, "validation": { "fraction": 0.1, "every": 2 } }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        go(&small(&whole, changes.clone())).unwrap();
        let expected = outcome(&whole, 12);
        assert_eq!(expected.1.len(), 12);

        let parts = folder.path().join("parts");
        let config = small(&parts, merged(changes.clone(), json!({ "resume": true })));
        abort_after(&config, 3);
        abort_after(&config, 7);
        // Another number of threads changes nothing.
        let (_, steps) =
            go(&small(&parts, merged(changes, json!({ "resume": true, "threads": 2 })))).unwrap();
        assert_eq!(steps.first().unwrap().step, 8);
        assert!(outcome(&parts, 12) == expected);
    }
}

#[test]
fn checkpoints_rotate_and_a_finished_run_is_not_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path(), json!({ "resume": true }));
    let (result, steps) = go(&config).unwrap();
    assert_eq!(steps.len(), 12);
    let mut names: Vec<_> = fs::read_dir(folder.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000008", "step-00000012"]);
    assert!(fs::read_to_string(&result.curve).unwrap().contains("training loss"));
    let (again, steps) = go(&config).unwrap();
    assert!(steps.is_empty());
    assert_eq!(again.last.loss, result.last.loss);
    // Not by accident either.
    let error = go(&small(folder.path(), json!({}))).unwrap_err();
    assert_eq!(error.code(), "RUN_INVALID");
}

/// What a run of examples or of an adapter leaves: state, losses.
fn trace(out: &Path, last: u64) -> (Vec<u8>, Vec<Option<f64>>) {
    let state = fs::read(out.join(format!("checkpoints/step-{last:08}/state.safetensors"))).unwrap();
    let lines = fs::read_to_string(out.join("progress.jsonl")).unwrap();
    (state, lines.lines().map(|line| serde_json::from_str::<Progress>(line).unwrap().loss).collect())
}

#[test]
fn runs_of_examples_and_of_adapters_resume_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("examples.jsonl");
    let lines = |change: &str| -> String {
        (0..12)
            .map(|i| {
                let (text, label) = (format!("a {} text about {i}", ["short", "long"][i % 2]), i % 2);
                let other = format!("{i} is what {change} is about");
                json!({ "text": text, "label": label.to_string(), "anchor": text, "positive": other })
                    .to_string()
                    + "\n"
            })
            .collect()
    };
    fs::write(&file, lines("it")).unwrap();
    let novels = json!({
        "model": MODEL, "config": null, "tokenizer": null, "batch": { "size": 1, "length": 32 },
    });
    let examples = json!({ "data": { "files": [file] }, "batch": { "size": 4, "length": 32 } });
    let with = |base: &Value, changes: Value| merged(base.clone(), changes);
    for (i, changes) in [
        with(
            &examples,
            json!({ "objective": { "kind": "classify" }, "validation": { "fraction": 0.2, "every": 2 } }),
        ),
        with(&examples, json!({ "objective": { "kind": "contrastive", "temperature": 0.1 } })),
        with(
            &novels,
            json!({ "adapter": { "kind": "lora", "rank": 2, "alpha": 4.0, "targets": ["x_proj"] } }),
        ),
        with(&novels, json!({ "adapter": { "kind": "state" }, "recompute": true })),
    ]
    .into_iter()
    .enumerate()
    {
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(format!("{name}{i}")));
        go(&small(&whole, changes.clone())).unwrap();
        let config = small(&parts, merged(changes, json!({ "resume": true })));
        abort_after(&config, 3);
        abort_after(&config, 7);
        assert_eq!(go(&config).unwrap().1.first().unwrap().step, 8);
        assert!(trace(&parts, 12) == trace(&whole, 12), "{i}");
    }
    // A tokenizer is made of the texts that examples have.
    let vocab =
        |i: usize| mamba::text::Tokenizer::from_file(&folder.path().join(format!("whole{i}/tokenizer.json")));
    assert_eq!(vocab(1).unwrap().encode("x").unwrap().len(), 1);
    let alone: String =
        lines("it").lines().map(|line| line.replacen("\"text\":", "\"about\":", 1) + "\n").collect();
    let pairs = folder.path().join("pairs.jsonl");
    fs::write(&pairs, alone).unwrap();
    let contrastive = json!({ "kind": "contrastive", "temperature": 0.1 });
    let changes = json!({ "data": { "files": [pairs] }, "objective": contrastive, "steps": 1 });
    go(&small(&folder.path().join("pairs"), with(&examples, changes))).unwrap();
    // Examples are read anew; others are another run's.
    fs::write(&file, lines("this")).unwrap();
    let changes = with(
        &examples,
        json!({ "objective": { "kind": "contrastive", "temperature": 0.1 }, "resume": true }),
    );
    let error = go(&small(&folder.path().join("parts1"), changes)).unwrap_err();
    assert_eq!(error.code(), "RUN_MISMATCH");
    assert!(error.to_string().contains("`data`"), "{error}");
}

#[test]
fn every_kind_of_data_trains_a_model_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let ids: Vec<u8> = (0..2000u32).flat_map(|i| (i * i % 251).to_le_bytes()).collect();
    let short: Vec<u8> = ids.chunks(4).flat_map(|id| [id[0], id[1]]).collect();
    let sound = folder.path().join("sound.wav");
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: 8000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(&sound, spec).unwrap();
    (0..4000)
        .for_each(|i| writer.write_sample((f64::from(i) / 20.0).sin().mul_add(9e3, 0.0) as i16).unwrap());
    writer.finalize().unwrap();
    let sequence = "ACGTTGCANNNNACGGTCA\n".repeat(60);
    let fasta = file("chr.fa", format!(">one\n{sequence}>two\n{sequence}").as_bytes());
    let text = fs::read_to_string(TEXT).unwrap();
    let lines: String =
        text.lines().take(200).map(|line| json!({ "body": line }).to_string() + "\n").collect();
    let lines = file("lines.jsonl", lines.as_bytes());
    let raw = json!({ "d_model": 32, "n_layer": 2, "vocab_size": 251 });
    for (name, changes, vocab) in [
        ("text", json!({ "tokenizer": { "kind": "bpe", "vocabSize": 400 } }), 400),
        ("bytes", json!({ "tokenizer": { "kind": "bytes" } }), 257),
        (
            "jsonl",
            json!({ "data": { "files": [lines], "field": "body" }, "tokenizer": { "kind": "bytes" } }),
            257,
        ),
        (
            "fasta",
            json!({
                "data": { "files": [fasta], "fasta": { "splitAtN": true, "reverseComplement": true } },
                "tokenizer": null,
            }),
            // <|endoftext|>, <unk>, and the letters that are left.
            6,
        ),
        ("wav", json!({ "data": { "files": [sound] }, "tokenizer": null }), 256),
        (
            "tokens16",
            json!({
                "data": { "files": [file("ids16", &short)], "format": "tokens16" },
                "tokenizer": null,
                "config": raw,
            }),
            251,
        ),
        (
            "tokens32",
            json!({
                "data": { "files": [file("ids32", &ids)], "format": "tokens32" },
                "tokenizer": null,
                "config": raw,
            }),
            251,
        ),
    ] {
        let changes = merged(changes, json!({ "steps": 30, "batch": { "size": 4, "length": 32 } }));
        let (result, steps) = go(&small(&folder.path().join(name), changes)).unwrap();
        let losses: Vec<f64> = steps.iter().map(|step| step.loss.unwrap()).collect();
        // Of the padded vocabulary.
        let chance = f64::from(u32::next_multiple_of(vocab, 8)).ln();
        assert!(
            (losses[0] - chance).abs() < 0.25 && losses[29] < losses[0] - 0.2,
            "{name}: {chance} {losses:?}"
        );
        let model = Checkpoint::open(&result.model.unwrap(), &OpenOptions::default()).unwrap();
        assert_eq!(model.config().vocab_size, vocab as usize, "{name}");
    }
}

/// At such a rate the first update is the last.
#[test]
fn skipped_steps_push_no_checkpoint_out() {
    let folder = tempfile::tempdir().unwrap();
    let changes =
        json!({ "optimizer": { "lr": 1e30 }, "steps": 30, "checkpoint": { "every": 1, "keep": 2 } });
    let error = go(&small(folder.path(), changes)).unwrap_err();
    assert_eq!(error.code(), "TRAINING_DIVERGED");
    let names: Vec<_> = fs::read_dir(folder.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000001"]);
}

#[test]
fn a_crash_in_the_middle_of_a_checkpoint_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path(), json!({ "resume": true }));
    abort_after(&config, 5);
    // What is there when the process ends while it writes.
    let half = folder.path().join("checkpoints/.step-00000008.tmp");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("state.safetensors"), [0; 100]).unwrap();
    let lines = fs::read_to_string(folder.path().join("progress.jsonl")).unwrap();
    fs::write(folder.path().join("progress.jsonl"), format!("{lines}{{\"step\":6,\"st")).unwrap();
    let (_, steps) = go(&config).unwrap();
    assert_eq!(steps.first().unwrap().step, 6);
    assert!(!half.exists());
    let whole = tempfile::tempdir().unwrap();
    go(&small(whole.path(), json!({}))).unwrap();
    assert!(outcome(folder.path(), 12) == outcome(whole.path(), 12));
}

#[test]
fn a_resumed_run_keeps_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    abort_after(&small(folder.path(), json!({})), 2);
    for (changes, field) in [
        (json!({ "optimizer": { "lr": 1e-3 } }), "optimizer.lr"),
        (json!({ "steps": 13 }), "steps"),
        (json!({ "config": { "d_model": 32, "n_layer": 3 } }), "config.n_layer"),
        (json!({ "seed": 1 }), "seed"),
    ] {
        let error = go(&small(folder.path(), merged(changes, json!({ "resume": true })))).unwrap_err();
        assert_eq!(error.code(), "RUN_MISMATCH");
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
    }
    let state = folder.path().join("checkpoints/step-00000002/state.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    let error = go(&small(folder.path(), json!({ "resume": true }))).unwrap_err();
    assert_eq!(error.code(), "CHECKPOINT_INVALID");
    fs::write(folder.path().join("run.json"), "{\"format\":\"node-mamba-run/9\"}").unwrap();
    let error = go(&small(folder.path(), json!({ "resume": true }))).unwrap_err();
    assert_eq!(error.code(), "RUN_INVALID");
    assert!(error.to_string().contains("node-mamba-run/9"), "{error}");
}

#[test]
fn the_result_is_a_model_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let (result, _) = go(&small(folder.path(), json!({}))).unwrap();
    let open =
        |path: &Option<PathBuf>| Checkpoint::open(path.as_ref().unwrap(), &OpenOptions::default()).unwrap();
    let (official, hugging_face) = (open(&result.model), open(&result.hugging_face));
    let config = fs::read_to_string(result.hugging_face.as_ref().unwrap().join("config.json")).unwrap();
    assert!(config.contains("MambaForCausalLM"));
    assert!(official.tokenizer_path().is_some() && hugging_face.tokenizer_path().is_some());
    assert_eq!(official.fingerprint().unwrap(), hugging_face.fingerprint().unwrap());
    for tensor in official.tensors() {
        let other = hugging_face.tensor(&tensor.name).unwrap();
        assert_eq!(tensor.to_vec().unwrap(), other.to_vec().unwrap(), "{}", tensor.name);
    }
}

/// Losses on the held-out end of the text, before and after.
fn held_out(changes: Value) -> (f64, f64, RunResult, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    // One step that changes nothing.
    let still = merged(changes.clone(), json!({ "steps": 1, "optimizer": { "lr": 0.0 } }));
    let before = go(&fine_tune(&folder.path().join("before"), still)).unwrap().0;
    let after = go(&fine_tune(&folder.path().join("after"), changes)).unwrap().0;
    (before.last.validation_loss.unwrap(), after.last.validation_loss.unwrap(), after, folder)
}

#[test]
fn fine_tuning_lowers_the_loss() {
    let (before, after, ..) = held_out(json!({ "optimizer": { "lr": 5e-4 } }));
    println!("full: {before:.4} → {after:.4}");
    assert!(after < before - 0.2, "{before} → {after}");
}

#[test]
fn lora_touches_its_matrices_only_and_merged_equals_unmerged() {
    let adapter = json!({ "kind": "lora", "rank": 4, "alpha": 8.0, "targets": ["in_proj", "out_proj"] });
    let (before, after, result, folder) =
        held_out(json!({ "adapter": adapter, "optimizer": { "lr": 3e-3, "weightDecay": 0.0 } }));
    println!("LoRA: {before:.4} → {after:.4}");
    assert!(after < before - 0.1, "{before} → {after}");
    assert_eq!(result.model, None);

    let base = Checkpoint::open(Path::new(MODEL), &OpenOptions::default()).unwrap();
    let path = result.adapter.unwrap();
    let adapter = Adapter::open(&path, base.config()).unwrap();
    let AdapterKind::Lora { rank, scale, layers } = &adapter.kind else { panic!("{adapter:?}") };
    assert_eq!((*rank, *scale, layers.len()), (4, 2.0, 12));
    for layer in layers {
        // in_proj, x_proj, dt_proj, out_proj.
        assert_eq!(layer.each_ref().map(Option::is_some), [true, false, false, true]);
    }

    // PEFT's own names, shapes and settings.
    let bytes = fs::read(path.join("adapter_model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let tensors: Vec<_> =
        header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__").collect();
    assert_eq!(tensors.len(), 12 * 2 * 2);
    for (name, shape) in [
        ("in_proj.lora_A", [4, 256]),
        ("in_proj.lora_B", [1024, 4]),
        ("out_proj.lora_A", [4, 512]),
        ("out_proj.lora_B", [256, 4]),
    ] {
        let tensor = &header[format!("base_model.model.backbone.layers.11.mixer.{name}.weight")];
        assert_eq!((&tensor["dtype"], &tensor["shape"]), (&json!("F32"), &json!(shape)), "{name}");
    }
    let settings: Value =
        serde_json::from_str(&fs::read_to_string(path.join("adapter_config.json")).unwrap()).unwrap();
    for (name, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(4)),
        ("lora_alpha", json!(8.0)),
        ("target_modules", json!(["in_proj", "out_proj"])),
        ("bias", json!("none")),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }

    let out = folder.path().join("merged");
    merge(Path::new(MODEL), &path, &out, None, 1).unwrap();
    let merged = Checkpoint::open(&out, &OpenOptions::default()).unwrap();
    for tensor in base.tensors() {
        let (old, new) = (tensor.to_vec().unwrap(), merged.tensor(&tensor.name).unwrap().to_vec().unwrap());
        let target = tensor.name.contains("in_proj") || tensor.name.contains("out_proj");
        assert_eq!(old != new, target, "{}", tensor.name);
    }
    // A run on the merged model sees the loss that the adapter had.
    let still = json!({ "model": out, "steps": 1, "optimizer": { "lr": 0.0 } });
    let seen = go(&fine_tune(&folder.path().join("seen"), still)).unwrap().0.last.validation_loss.unwrap();
    assert!((seen - after).abs() < 1e-5 * after, "{seen} and {after}");
}

#[test]
fn state_tuning_learns_an_initial_state() {
    let (before, after, result, _folder) =
        held_out(json!({ "adapter": { "kind": "state" }, "optimizer": { "lr": 2e-3, "weightDecay": 0.0 } }));
    println!("state: {before:.4} → {after:.4}");
    assert!(after < before - 0.05, "{before} → {after}");
    let base = Checkpoint::open(Path::new(MODEL), &OpenOptions::default()).unwrap();
    let adapter = Adapter::open(&result.adapter.unwrap(), base.config()).unwrap();
    let AdapterKind::State(state) = &adapter.kind else { panic!("{adapter:?}") };
    assert_eq!(state.len(), 12 * 512 * (3 + 16));
    assert_eq!(adapter.merged(&base).unwrap_err().code(), "ADAPTER_INVALID");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let changes =
        json!({ "adapter": { "kind": "lora", "rank": 2, "alpha": 2.0, "targets": ["x_proj"] }, "steps": 1 });
    let path = go(&fine_tune(&folder.path().join("run"), changes)).unwrap().0.adapter.unwrap();
    let config = |json: &str| mamba::config::Config::from_json(json).unwrap();
    let base = Checkpoint::open(Path::new(MODEL), &OpenOptions::default()).unwrap();
    let open = |config: &mamba::config::Config| Adapter::open(&path, config).unwrap_err();
    let error = open(&config(r#"{"d_model":128,"n_layer":12}"#));
    assert_eq!(error.code(), "ADAPTER_MISMATCH");
    assert!(error.to_string().contains("x_proj"), "{error}");
    let error = open(&config(r#"{"d_model":256,"n_layer":11}"#));
    assert_eq!(error.code(), "ADAPTER_MISMATCH");

    let file = path.join("adapter_config.json");
    let good = fs::read_to_string(&file).unwrap();
    for bad in [
        "{",
        "{}",
        "{\"peft_type\":\"IA3\"}",
        &good.replace("\"r\": 2", "\"r\": 0"),
        &good.replace("\"none\"", "\"all\""),
    ] {
        fs::write(&file, bad).unwrap();
        let error = open(base.config());
        assert_eq!(error.code(), "ADAPTER_INVALID", "{bad}");
    }
    fs::write(&file, good).unwrap();
    let weights = path.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(open(base.config()).code(), "ADAPTER_INVALID");
    fs::remove_file(&weights).unwrap();
    assert_eq!(open(base.config()).code(), "FILE_NOT_FOUND");
}

#[test]
fn bad_data_is_refused_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    for (i, (changes, code)) in [
        (json!({ "data": { "files": [] } }), "DATA_EMPTY"),
        (json!({ "data": { "files": [file("empty.txt", "")] } }), "DATA_EMPTY"),
        (json!({ "data": { "files": [file("short.txt", "a short text")] } }), "DATA_EMPTY"),
        (json!({ "data": { "files": [folder.path().join("none.txt")] } }), "FILE_NOT_FOUND"),
        (json!({ "data": { "files": [file("ids.jsonl", "{\"text\":[1,2,99999]}")] } }), "TOKEN_OUT_OF_RANGE"),
        (json!({ "data": { "files": [file("bad.jsonl", "[]")] } }), "DATA_INVALID"),
        (json!({ "tokenizer": { "kind": "file", "path": file("t.json", "{}") } }), "TOKENIZER_INVALID"),
        (json!({ "config": { "d_model": 32, "n_layer": 2, "vocab_size": 10 } }), "TOKENIZER_MISMATCH"),
        (json!({ "config": { "d_model": 32, "n_layer": -2 } }), "CONFIG_INVALID"),
        (json!({ "device": "tpu" }), "OPTION_INVALID"),
        (json!({ "precision": "bf16" }), "OPTION_INVALID"),
    ]
    .into_iter()
    .enumerate()
    {
        // Where the tokenizer would be made of the very data that are bad.
        let novels = json!({ "tokenizer": { "kind": "file", "path": format!("{MODEL}/tokenizer.json") } });
        let config = small(&folder.path().join(format!("run{i}")), merged(novels, changes.clone()));
        let error = go(&config).unwrap_err();
        assert_eq!(error.code(), code, "{changes}: {error}");
    }
}

#[test]
fn a_token_file_cut_short_under_a_run_is_an_error_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path(), json!({ "resume": true }));
    let tokens = folder.path().join("data.tokens");
    let mut whole = Vec::new();
    let error = run(&config, &Cancel::default(), &mut |event| {
        if matches!(&event, RunEvent::Saved { step: 8, .. }) {
            whole = fs::read(&tokens).unwrap();
            fs::OpenOptions::new().write(true).open(&tokens).unwrap().set_len(100).unwrap();
        }
    })
    .unwrap_err();
    assert_eq!(error.code(), "DATA_INVALID");
    assert!(error.to_string().contains("data.tokens"), "{error}");
    assert_eq!(go(&config).unwrap_err().code(), "DATA_INVALID");
    fs::write(&tokens, whole).unwrap();
    assert_eq!(go(&config).unwrap().1.first().unwrap().step, 9);
}

#[test]
fn a_batch_that_does_not_fit_says_what_does() {
    let folder = tempfile::tempdir().unwrap();
    // Some kB for each of 2^30 tokens: more than any machine has.
    let batch = json!({ "size": 1 << 24, "length": 64, "order": "windows" });
    let error = go(&small(folder.path(), json!({ "batch": batch }))).unwrap_err();
    assert_eq!(error.code(), "OUT_OF_MEMORY", "{error}");
    let text = error.to_string();
    let size: u64 = text.split("; ").find_map(|part| part.split(" fits").next()?.parse().ok()).unwrap();
    assert!((64..1 << 20).contains(&size), "{error}");
}

/// Of examples a batch is computed in pieces, so it is these that have to fit.
#[test]
fn examples_that_do_not_fit_say_how_many_tokens_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("labels.jsonl");
    let line = |i: usize| format!("{{\"text\":\"text {i}\",\"label\":\"{}\"}}\n", i % 2);
    fs::write(&file, (0..8).map(line).collect::<String>()).unwrap();
    let config = |out: &str, tokens: u64| {
        let changes = json!({
            "data": { "files": [file] },
            "objective": { "kind": "classify" },
            "batch": { "size": 4, "length": 64, "tokens": tokens },
            "steps": 1,
        });
        small(&folder.path().join(out), changes)
    };
    let error = go(&config("all", 1 << 30)).unwrap_err();
    assert_eq!(error.code(), "OUT_OF_MEMORY", "{error}");
    let text = error.to_string();
    assert!(text.contains("`batch.tokens` is 1073741824; ") && !text.contains("batch.size"), "{text}");
    let fits: u64 = text.split("; ").find_map(|part| part.split(" fits").next()?.parse().ok()).unwrap();
    // Half of it, should others have taken memory meanwhile.
    go(&config("half", fits / 2)).unwrap();
    let rows = json!({ "batch": { "size": 4, "length": 64, "tokens": 64 } });
    let of_a_language_model = serde_json::to_value(small(folder.path(), json!({}))).unwrap();
    let error = RunConfig::from_json(&merged(of_a_language_model, rows).to_string()).unwrap_err();
    assert!(error.to_string().contains("`batch.tokens`"), "{error}");
}

/// Rows that are carried take little to compute and much to keep.
#[cfg(target_os = "linux")]
#[test]
fn carried_states_have_to_fit_too() {
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available = 1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
    // Each row may have two sequences in a batch, each of these five states and a copy: half as much again as there is.
    // All else, the scan's own states for the most part, is less than a third of it.
    let state = 4 * 8 * 512 * (3 + 256);
    let rows = available / 2 * 3 / (2 * 6 * state);
    let folder = tempfile::tempdir().unwrap();
    let changes = json!({
        "config": { "d_model": 256, "n_layer": 8, "ssm_cfg": { "d_state": 256 } },
        "batch": { "size": rows, "length": 1, "order": "carried" },
    });
    let cancel = Cancel::default();
    let error = run(&small(folder.path(), changes), &cancel, &mut |_| cancel.cancel()).unwrap_err();
    assert_eq!(error.code(), "OUT_OF_MEMORY", "{error}");
    assert!(error.to_string().contains(&format!("`batch.size` is {rows}; ")), "{error}");
}

#[test]
fn what_is_missing_in_a_folder_is_named_and_nothing_is_begun_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path(), json!({ "resume": true }));
    abort_after(&config, 5);
    let all = |path: &Path| {
        let mut files = Vec::new();
        let mut folders = vec![path.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path)
                } else {
                    files.push((path.clone(), fs::read(path).unwrap()))
                }
            }
        }
        files.sort();
        files
    };
    let before = all(folder.path());
    for name in ["run.json", "tokenizer.json", "data.tokens"] {
        let (path, aside) = (folder.path().join(name), folder.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let error = go(&config).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.code(), if name == "run.json" { "RUN_INVALID" } else { "FILE_NOT_FOUND" });
        if name == "run.json" {
            assert!(error.to_string().contains("step-00000005"), "{error}");
            assert_eq!(go(&small(folder.path(), json!({}))).unwrap_err().code(), "RUN_INVALID");
        }
        fs::rename(&aside, &path).unwrap();
        assert!(all(folder.path()) == before, "{name}");
    }
    assert_eq!(go(&config).unwrap().1.first().unwrap().step, 6);
}

/// Mounting a small file system takes root.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0.path()).status();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(folder.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_leaves_the_last_good_checkpoint: mounting a tmpfs takes root");
        return;
    }
    let disk = Mounted(folder);
    let filler = disk.0.path().join("filler");
    let config = small(disk.0.path(), json!({ "resume": true }));
    let error = run(&config, &Cancel::default(), &mut |event| {
        if matches!(&event, RunEvent::Saved { step: 4, .. }) {
            // As much as there is room for, but for some pages.
            let mut size = 2 << 20;
            while size > 8192 && fs::write(&filler, vec![0; size]).is_err() {
                size -= 8192;
            }
        }
    })
    .unwrap_err();
    assert_eq!(error.code(), "DISK_FULL", "{error}");
    let checkpoints: Vec<_> = fs::read_dir(disk.0.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(checkpoints, ["step-00000004"]);
    fs::remove_file(&filler).unwrap();
    let (_, steps) = go(&config).unwrap();
    assert_eq!(steps.first().unwrap().step, 5);
}
