//! Checkpoints that are right in every format, and files that are wrong in every way.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;

const CONFIG: &str = r#"{"d_model": 6, "n_layer": 2, "vocab_size": 11, "pad_vocab_size_multiple": 4,
    "ssm_cfg": {"d_state": 3, "d_conv": 4, "dt_rank": 2}}"#;

fn small() -> Checkpoint {
    Checkpoint::random(Config::from_json(CONFIG).unwrap(), 1)
}

fn open(folder: &Path) -> Result<Checkpoint> {
    let read = Checkpoint::open(folder, &OpenOptions { mmap: false });
    let mapped = Checkpoint::open(folder, &OpenOptions { mmap: true });
    assert_eq!(read.as_ref().err().map(Error::code), mapped.as_ref().err().map(Error::code));
    mapped
}

fn saved(dtype: DType) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    save(&small(), folder.path(), dtype, 2, &mut |_, _| Ok(())).unwrap();
    let path = folder.path().join("model.safetensors");
    (folder, path)
}

fn assert_same(a: &Checkpoint, b: &Checkpoint, tolerance: f32) {
    for tensor in a.tensors() {
        let (a, b) = (tensor.to_vec().unwrap(), b.tensor(&tensor.name).unwrap().to_vec().unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= tolerance * a.abs(), "{}: {a} and {b}", tensor.name);
        }
    }
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mamba-novels-7m")
}

#[test]
fn the_reference_checkpoint() {
    let checkpoint = open(&models()).unwrap();
    assert_eq!(checkpoint.config().parameter_count(), 7_353_600);
    assert_eq!(checkpoint.dtype(), DType::BF16);
    assert!(checkpoint.tokenizer_path().is_some());
    checkpoint.validate(&mut |_| Ok(())).unwrap();
    let file = Checkpoint::open(&models().join("model.safetensors"), &OpenOptions::default()).unwrap();
    assert_eq!(file.fingerprint().unwrap(), checkpoint.fingerprint().unwrap());
}

#[test]
fn saved_checkpoints_come_back_and_keep_their_fingerprint() {
    let original = small();
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::BF16, 0.004), (DType::F16, 0.0005)] {
        let (folder, _) = saved(dtype);
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(checkpoint.dtype(), dtype);
        assert_same(&original, &checkpoint, tolerance);
        if dtype != DType::F16 {
            // f16 rounds before bf16 does.
            assert_eq!(checkpoint.fingerprint().unwrap(), original.fingerprint().unwrap());
        }
    }
    let other = Checkpoint::random(original.config().clone(), 2);
    assert_ne!(other.fingerprint().unwrap(), original.fingerprint().unwrap());
}

/// d_model 96 is no multiple of q4_K's block; 256 is.
fn wide() -> Checkpoint {
    let config = r#"{"d_model": 256, "n_layer": 1, "vocab_size": 40, "ssm_cfg": {"dt_rank": 12}}"#;
    Checkpoint::random(Config::from_json(config).unwrap(), 3)
}

#[test]
fn quantized_checkpoints_hold_the_blocks_that_a_load_would_make() {
    let original = wide();
    for dtype in [DType::Q8_0, DType::Q4K] {
        let folder = tempfile::tempdir().unwrap();
        let mut last = (0, 0);
        save(&original, folder.path(), dtype, 3, &mut |done, total| {
            last = (done, total);
            Ok(())
        })
        .unwrap();
        let len = std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
        assert!(last.0 == last.1 && last.1 < len && len < last.1 + 4096, "{last:?} of {len}");
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(checkpoint.dtype(), dtype);
        for (a, b) in original.tensors().zip(checkpoint.tensors()) {
            assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
            let [rows, cols] = a.shape[..] else {
                assert_eq!(a.to_vec().unwrap(), b.to_vec().unwrap());
                continue;
            };
            if a.name.ends_with("A_log") {
                assert_eq!(a.to_vec().unwrap(), b.to_vec().unwrap());
                continue;
            }
            // dt_proj's rows of 12 are no block of q4_K.
            let format = dtype.of_width(cols).format().unwrap();
            assert_eq!(b.stored(), Stored::Quantized(format), "{}", b.name);
            let blocks = |tensor: &Tensor| {
                let mut bytes = vec![0; rows * format.row_bytes(cols)];
                tensor.read_blocks(format, 0, rows, &mut bytes).unwrap();
                bytes
            };
            assert_eq!(blocks(a), blocks(b), "{}", a.name);
            // Any part of it is the same part of the whole.
            let whole = b.to_vec().unwrap();
            for (start, len) in [(0, 1), (cols - 1, 3.min(cols)), (7, 2 * cols), (rows * cols - 1, 1)] {
                let mut part = vec![f32::NAN; len];
                b.read_f32(start, &mut part).unwrap();
                assert_eq!(part, whole[start..start + len], "{} from {start}", b.name);
            }
        }
    }
}

#[test]
fn a_save_that_is_ended_leaves_what_was_there() {
    let (folder, path) = saved(DType::F32);
    let before = std::fs::read(&path).unwrap();
    let aborted = save(&small(), folder.path(), DType::Q8_0, 1, &mut |_, _| Err(Error::Aborted));
    assert_eq!(aborted.unwrap_err().code(), "ABORTED");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn damaged_quantization() {
    // One tensor of 2 rows of 33 weights, 68 bytes each in q8_0.
    let file = |bytes: &str, quantization: &str| {
        let quantization = quantization.replace('"', "\\\"");
        let header = format!(
            r#"{{"__metadata__":{{"quantization":"{quantization}"}},"a":{{"dtype":"U8","shape":{bytes},"data_offsets":[0,136]}}}}"#
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, raw(&header, 136)).unwrap();
        safetensors::read(&path, false).map(|found| match &found[0] {
            Found::Tensor(tensor) => format!("{:?} {:?}", tensor.shape, tensor.stored()),
            Found::Unreadable { dtype, .. } => dtype.clone(),
        })
    };
    let right = r#"{"a":{"format":"q8_0","shape":[2,33]}}"#;
    assert_eq!(file("[2,68]", right).unwrap(), "[2, 33] Quantized(Q8_0)");
    assert_eq!(file("[2,68]", "{}").unwrap(), "U8");
    for (bytes, quantization, says) in [
        ("[2,68]", "", "malformed"),
        ("[2,68]", r#"{"a":{"format":"q5_1","shape":[2,33]}}"#, "`q5_1`, expected `q8_0` or `q4_k`"),
        ("[2,68]", r#"{"a":{"format":"q8_0","shape":[2]}}"#, "malformed"),
        (
            "[2,68]",
            r#"{"a":{"format":"q8_0","shape":[2,65]}}"#,
            "[2, 68] bytes, expected [2, 102] for [2, 65]",
        ),
        ("[2,68]", r#"{"a":{"format":"q8_0","shape":[3,33]}}"#, "expected [3, 68]"),
        ("[2,68]", r#"{"a":{"format":"q4_k","shape":[2,33]}}"#, "expected [2, 144]"),
        ("[136]", right, "[136] bytes, expected [2, 68]"),
        ("[2,68]", r#"{"a":{"format":"q8_0","shape":[2,18446744073709551615]}}"#, "expected [2, 0]"),
    ] {
        let error = file(bytes, quantization).unwrap_err();
        assert_eq!(error.code(), "CHECKPOINT_INVALID");
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Writes tensors under other names, with other rows of padding, in shards.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, values)| {
            (name.clone(), shape.clone(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (
            name,
            ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(path, ::safetensors::serialize(views, None).unwrap()).unwrap();
}

fn values(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    checkpoint.tensors().map(|t| (t.name.clone(), t.shape.clone(), t.to_vec().unwrap())).collect()
}

#[test]
fn hugging_face_names_shards_and_extra_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let original = small();
    let mut tensors = values(&original);
    for (name, _, _) in &mut tensors {
        *name = name.replace("backbone.embedding.", "backbone.embeddings.");
    }
    tensors.push(("lm_head.weight".into(), vec![1], vec![0.0])); // tied: not looked at
    let (first, second) = tensors.split_at(9);
    write_safetensors(&folder.path().join("model-00001-of-00002.safetensors"), first);
    write_safetensors(&folder.path().join("model-00002-of-00002.safetensors"), second);
    let map: serde_json::Map<_, _> = first
        .iter()
        .map(|(name, ..)| (name.clone(), "model-00001-of-00002.safetensors".into()))
        .chain(second.iter().map(|(name, ..)| (name.clone(), "model-00002-of-00002.safetensors".into())))
        .collect();
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"model_type": "mamba", "hidden_size": 6, "num_hidden_layers": 2, "vocab_size": 11, "state_size": 3,
            "conv_kernel": 4, "expand": 2, "time_step_rank": 2, "eos_token_id": 5}"#,
    )
    .unwrap();
    let checkpoint = open(folder.path()).unwrap();
    assert_same(&original, &checkpoint, 0.0);
    assert_eq!(checkpoint.config().eos_token_ids, [5]);
    // The file's 12 rows stand, whatever the configuration's 11.
    assert_eq!(checkpoint.config().padded_vocab_size, 12);
    assert_eq!(checkpoint.fingerprint().unwrap(), original.fingerprint().unwrap());

    let index_of = |shard: &str| {
        std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#)).unwrap();
        open(folder.path()).unwrap_err()
    };
    assert_eq!(index_of("../secret.safetensors").code(), "CHECKPOINT_INVALID");
    assert_eq!(index_of("/etc/passwd").code(), "CHECKPOINT_INVALID");
    assert_eq!(index_of("gone.safetensors").code(), "FILE_NOT_FOUND");
    for text in ["", "[]", "{}", r#"{"weight_map": 3}"#] {
        std::fs::write(&index, text).unwrap();
        assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID", "{text}");
    }
}

/// What `torch.save` writes for a state dict, protocol 2, one storage a tensor.
fn pickle_of(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let int = |out: &mut Vec<u8>, n: usize| {
        out.push(b'J');
        out.extend((n as i32).to_le_bytes());
    };
    let mut out = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(".to_vec();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        int(&mut out, values.len());
        out.extend(b"tQK\x00(");
        shape.iter().for_each(|n| int(&mut out, *n));
        out.extend(b"t(");
        (0..shape.len()).for_each(|d| int(&mut out, shape[d + 1..].iter().product()));
        out.extend(b"t\x89h\x00)RtR");
    }
    out.extend(b"u.");
    out
}

fn write_bin(path: &Path, pickle: &[u8], storages: &[Vec<f32>], method: zip::CompressionMethod) {
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    archive.start_file("archive/data.pkl", options).unwrap();
    archive.write_all(pickle).unwrap();
    for (i, values) in storages.iter().enumerate() {
        archive.start_file(format!("archive/data/{i}"), options).unwrap();
        archive.write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    }
    archive.finish().unwrap();
}

fn bin_folder(pickle: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let storages: Vec<_> = values(&small()).into_iter().map(|(_, _, values)| values).collect();
    write_bin(&path, pickle, &storages, zip::CompressionMethod::Stored);
    (folder, path)
}

#[test]
fn pytorch_files() {
    let original = small();
    let (folder, _) = bin_folder(&pickle_of(&values(&original)));
    let checkpoint = open(folder.path()).unwrap();
    assert_same(&original, &checkpoint, 0.0);
    assert_eq!(checkpoint.fingerprint().unwrap(), original.fingerprint().unwrap());
}

/// Files that torch itself wrote (tests/data/make_torch_fixtures.py), beside what torch reads in them.
#[test]
fn what_torch_writes() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"d_model": 8, "n_layer": 1, "vocab_size": 16}"#)
        .unwrap();
    let opened = |name: &str| {
        std::fs::copy(data.join(name), folder.path().join("pytorch_model.bin")).unwrap();
        open(folder.path())
    };
    for name in ["torch-state-dict", "torch-nested-protocol4"] {
        let checkpoint = opened(&format!("{name}.bin")).unwrap();
        let summary = std::fs::read_to_string(data.join(format!("{name}.json"))).unwrap();
        let summary: HashMap<String, [f64; 3]> = serde_json::from_str(&summary).unwrap();
        assert_eq!(summary.len(), checkpoint.tensors().count());
        for (tensor, [first, last, sum]) in summary {
            let values = checkpoint.tensor(&tensor).unwrap().to_vec().unwrap();
            let total: f64 = values.iter().map(|x| f64::from(*x)).sum();
            assert_eq!((values[0], values[values.len() - 1]), (first as f32, last as f32), "{tensor}");
            assert!((total - sum).abs() < 1e-5 * sum.abs().max(1.0), "{tensor}: {total} for {sum}");
        }
    }
    for (name, reason) in [("torch-transposed.bin", "contiguous"), ("torch-legacy.bin", "before 1.6")] {
        let error = opened(name).unwrap_err();
        assert!(error.code() == "CHECKPOINT_INVALID" && error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn pickles_are_never_executed() {
    let attacks: [(&[u8], &str); 5] = [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "os.system"),
        (b"\x80\x02cposix\nsystem\nq\x00.", "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch.storage.evil\nStorage\n.", "torch.storage.evil.Storage"),
    ];
    for (pickle, name) in attacks {
        let (folder, _) = bin_folder(pickle);
        match open(folder.path()).unwrap_err() {
            Error::PickleUnsafe { global, .. } => assert_eq!(global, name),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn damaged_pickles() {
    let whole = pickle_of(&values(&small()));
    for end in 0..whole.len() {
        assert!(pickle::read(&whole[..end]).is_err(), "cut at {end}");
    }
    // Each level names the last twice: 2^60 values if they were copied.
    let mut bomb = b"\x80\x02)q\x00".to_vec();
    for _ in 0..60 {
        bomb.extend(b"h\x00h\x00\x86q\x00");
    }
    bomb.push(b'.');
    assert!(pickle::read(&bomb).is_ok());
    // A million levels: recursion would overflow the stack.
    let mut deep = b"\x80\x02)".to_vec();
    deep.extend(std::iter::repeat_n(0x85, 1_000_000));
    deep.push(b'.');
    assert!(pickle::read(&deep).is_ok());
    let mut endless = b"\x80\x02(".to_vec();
    endless.extend(std::iter::repeat_n(b'N', 5_000_000));
    endless.extend(b"t.");
    assert!(pickle::read(&endless).is_err());
    let (folder, path) = bin_folder(&bomb);
    assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID");
    let storages = vec![vec![0.0; 100]; 1];
    write_bin(&path, &whole, &storages, zip::CompressionMethod::Stored); // storages are missing
    assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID");
    std::fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap(); // before 1.6
    assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID");
}

/// A safetensors file of any header and data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn damaged_safetensors() {
    let (folder, path) = saved(DType::F32);
    let whole = std::fs::read(&path).unwrap();
    for end in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID", "cut at {end}");
    }
    let tensor = |offsets: &str, shape: &str, dtype: &str| {
        format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}},
            "b":{{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}}}"#
        )
    };
    let cases = [
        ("terabytes of header", [&(1u64 << 42).to_le_bytes()[..], b"{}"].concat()),
        ("a header of 2^64 bytes", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("terabytes of tensor", raw(&tensor("[0,4398046511104]", "[1099511627776]", "F32"), 16)),
        ("overlapping", raw(&tensor("[0,12]", "[3]", "F32"), 16)),
        ("a gap", raw(&tensor("[0,4]", "[1]", "F32"), 16)),
        ("backwards", raw(&tensor("[8,0]", "[2]", "F32"), 16)),
        ("an overflowing shape", raw(&tensor("[0,8]", "[4294967296,4294967296,4]", "F32"), 16)),
        ("an unknown dtype", raw(&tensor("[0,8]", "[2]", "F33"), 16)),
        ("not JSON", raw("{{{", 16)),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("trailing bytes", [&whole[..], b"x"].concat()),
    ];
    for (what, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID", "{what}");
    }
}

#[test]
fn tensors_that_do_not_fit_the_configuration() {
    let (folder, path) = saved(DType::F32);
    let tensors = values(&small());

    write_safetensors(&path, &tensors[1..]);
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::TensorMissing { name, .. } if *name == tensors[0].0), "{error}");

    let mut wrong = tensors.clone();
    wrong[2].1.reverse();
    write_safetensors(&path, &wrong);
    let error = open(folder.path()).unwrap_err();
    let expected = (&tensors[2].0, &tensors[2].1, &wrong[2].1);
    assert!(
        matches!(&error, Error::TensorShape { name, expected: e, actual } if (name, e, actual) == expected),
        "{error}"
    );

    let mut twice = tensors.clone();
    twice.push(("embeddings.weight".into(), vec![1], vec![0.0]));
    write_safetensors(&path, &twice);
    assert_eq!(open(folder.path()).unwrap_err().code(), "CHECKPOINT_INVALID");

    let header = r#"{"backbone.embedding.weight":{"dtype":"I64","shape":[12,6],"data_offsets":[0,576]}}"#;
    std::fs::write(&path, raw(header, 576)).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::TensorDtype { dtype, .. } if dtype == "I64"), "{error}");

    // A tensor that would change the results if the configuration called for it.
    let mut more = tensors.clone();
    more.push(("backbone.layers.1.mixer.in_proj.bias".into(), vec![24], vec![0.5; 24]));
    write_safetensors(&path, &more);
    let error = open(folder.path()).unwrap_err();
    assert!(error.code() == "CHECKPOINT_INVALID" && error.to_string().contains("in_proj.bias"), "{error}");

    let mut nan = tensors;
    nan[4].2[5] = f32::NAN;
    write_safetensors(&path, &nan);
    let error = open(folder.path()).unwrap().validate(&mut |_| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::TensorNotFinite { name, index: 5, .. } if *name == nan[4].0), "{error}");
}

#[test]
fn missing_files() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(open(&folder.path().join("nowhere")).unwrap_err().code(), "FILE_NOT_FOUND");
    assert_eq!(open(folder.path()).unwrap_err().code(), "FILE_NOT_FOUND"); // no weights
    std::fs::write(folder.path().join("model.safetensors"), raw("{}", 0)).unwrap();
    assert_eq!(open(folder.path()).unwrap_err().code(), "FILE_NOT_FOUND"); // no config.json
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_eq!(open(folder.path()).unwrap_err().code(), "CONFIG_INVALID");
    std::fs::write(folder.path().join("weights.gguf"), "GGUF").unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    assert_eq!(open(&folder.path().join("weights.gguf")).unwrap_err().code(), "CHECKPOINT_INVALID");
}

#[test]
fn a_mapped_file_gives_its_pages_back_and_is_read_right_again() {
    let (folder, _) = saved(DType::F32);
    let checkpoint = open(folder.path()).unwrap();
    let original = small();
    assert_same(&original, &checkpoint, 0.0);
    assert_same(&original, &checkpoint, 0.0);
}

/// Random damage ends in a checkpoint or in a typed error, never in a panic.
#[test]
fn random_damage() {
    let (safetensors_folder, safetensors_path) = saved(DType::BF16);
    let (bin_folder, bin_path) = bin_folder(&pickle_of(&values(&small())));
    let config_path = safetensors_folder.path().join("config.json");
    let mut random = 1u64;
    let mut next = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n
    };
    for (path, folder, header) in [
        (&safetensors_path, safetensors_folder.path(), 2_000),
        (&bin_path, bin_folder.path(), usize::MAX),
        (&config_path, safetensors_folder.path(), usize::MAX),
    ] {
        let whole = std::fs::read(path).unwrap();
        for _ in 0..1_500 {
            let mut bytes = whole.clone();
            for _ in 0..=next(4) {
                let at = next(bytes.len().min(header));
                bytes[at] = next(256) as u8;
            }
            std::fs::write(path, bytes).unwrap();
            // Without the map: the fuzz rewrites the file.
            if let Ok(checkpoint) = Checkpoint::open(folder, &OpenOptions { mmap: false }) {
                checkpoint.fingerprint().unwrap();
            }
        }
        std::fs::write(path, whole).unwrap();
    }
}
