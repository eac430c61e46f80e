//! Compiles every `cuda/<op>/*.cu` with nvcc into a fatbin (machine code for several architectures, and PTX for later
//! ones), and turns the structs and constants of every `params.h` into Rust, so that a kernel and its launcher cannot
//! disagree about a parameter.
//!
//! nvcc is found by `NVCC`, `CUDA_HOME`, or in `.cache/cuda-toolkit` at the root of the repository.
//! `NODE_MAMBA_CUDA_ARCHS` (such as `90` or `80,90`) limits the architectures. Fatbins are kept in `.cache/cuda-kernels`
//! by the hash of all that goes into them.

use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Of the cards that node-mamba supports, one of each generation: code for 8.0 also runs on 8.6 and 8.9.
const ARCHS: &str = "80,90,100,120";
const FLAGS: [&str; 4] = ["-fatbin", "-O3", "-std=c++17", "-Werror=all-warnings"];

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    for variable in ["NVCC", "CUDA_HOME", "NODE_MAMBA_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut sources = Vec::new();
    let mut headers = Vec::new();
    for folder in sorted(Path::new("cuda"))?.into_iter().filter(|path| path.is_dir()) {
        // Stand-alone programs that check and time the kernels.
        if folder.ends_with("check") {
            continue;
        }
        for file in sorted(&folder)? {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("cu") => sources.push(file),
                Some("h") => headers.push(file),
                _ => {}
            }
        }
    }

    let mut parameters = String::new();
    for header in &headers {
        let text = fs::read_to_string(header)?;
        parameters.push_str(&translate(&text).map_err(|error| format!("{}: {error}", header.display()))?);
    }
    fs::write(out.join("params.rs"), parameters)?;

    let compiler = Compiler::find(&root)?;
    let fatbins = Mutex::new(vec![None; sources.len()]);
    let failure = Mutex::new(None);
    let next = Mutex::new(0..sources.len());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(i) = next.lock().unwrap().next() {
                    match compiler.compile(&sources[i]) {
                        Ok(fatbin) => fatbins.lock().unwrap()[i] = Some(fatbin),
                        Err(error) => *failure.lock().unwrap() = Some(error),
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap() {
        return Err(error);
    }
    let fatbins: Vec<PathBuf> = fatbins.into_inner().unwrap().into_iter().flatten().collect();
    let mut table = String::from("pub(crate) static FATBINS: &[&[u8]] = &[\n");
    for fatbin in fatbins {
        writeln!(table, "    include_bytes!({:?}),", fatbin)?;
    }
    table.push_str("];\n");
    fs::write(out.join("fatbins.rs"), table)?;
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

struct Compiler {
    nvcc: PathBuf,
    version: String,
    flags: Vec<String>,
    cache: PathBuf,
}

impl Compiler {
    fn find(root: &Path) -> Result<Self> {
        let toolkit = root.join(".cache/cuda-toolkit/nvidia/cu13");
        let nvcc = match (env::var_os("NVCC"), env::var_os("CUDA_HOME")) {
            (Some(nvcc), _) => PathBuf::from(nvcc),
            (None, Some(home)) => PathBuf::from(home).join("bin/nvcc"),
            (None, None) => toolkit.join("bin/nvcc"),
        };
        let missing = |error: &dyn std::fmt::Display| {
            format!(
                "mamba-kernels needs nvcc of CUDA 13.0 to compile its kernels, but {} does not run ({error}).\n\
                 Set NVCC or CUDA_HOME, or fetch it into .cache/cuda-toolkit (node scripts/cuda-toolkit.mjs).",
                nvcc.display()
            )
        };
        let version = Command::new(&nvcc).arg("--version").output().map_err(|error| missing(&error))?;
        if !version.status.success() {
            return Err(missing(&version.status).into());
        }
        let mut flags: Vec<String> = FLAGS.map(String::from).into();
        let archs = env::var("NODE_MAMBA_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
        let mut lowest = u32::MAX;
        for arch in archs.split(',') {
            let number: u32 = arch.trim().parse().map_err(|_| {
                format!("NODE_MAMBA_CUDA_ARCHS is `{archs}`, expected numbers such as `{ARCHS}`")
            })?;
            flags.push(format!("-gencode=arch=compute_{number},code=sm_{number}"));
            lowest = lowest.min(number);
        }
        // The driver compiles PTX for any card from its own number on, so the lowest serves all that are not listed.
        flags.push(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}"));
        let cache = root.join(".cache/cuda-kernels");
        fs::create_dir_all(&cache)?;
        Ok(Self { nvcc, version: String::from_utf8_lossy(&version.stdout).into(), flags, cache })
    }

    fn compile(&self, source: &Path) -> Result<PathBuf> {
        let mut hash = DefaultHasher::new();
        (&self.version, &self.flags).hash(&mut hash);
        fs::read(source)?.hash(&mut hash);
        // Headers include one another, also across folders.
        for folder in sorted(Path::new("cuda"))?.into_iter().filter(|path| path.is_dir()) {
            for file in sorted(&folder)? {
                if file.extension().is_some_and(|extension| extension == "h" || extension == "cuh") {
                    fs::read(file)?.hash(&mut hash);
                }
            }
        }
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let fatbin = self.cache.join(format!("{name}-{:016x}.fatbin", hash.finish()));
        if !fatbin.exists() {
            // Under another name first: a build that is stopped leaves no half a file.
            let unfinished = fatbin.with_extension(format!("{}.tmp", std::process::id()));
            let output =
                Command::new(&self.nvcc).args(&self.flags).arg("-o").arg(&unfinished).arg(source).output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
                return Err(format!("nvcc {}: {}\n{said}", source.display(), output.status).into());
            }
            fs::rename(unfinished, &fatbin)?;
        }
        Ok(fatbin)
    }
}

/// The structs and integer constants of a header as Rust. It understands what `params.h` may hold: structs of
/// pointers, int, unsigned, long long, float, and nothing else; anything new is an error.
fn translate(header: &str) -> Result<String> {
    let text: String = header.lines().fold(String::new(), |text, line| {
        let line = line.split("//").next().unwrap_or_default().trim();
        if line.starts_with('#') { text } else { text + line + " " }
    });
    let mut rust = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("constexpr int ") {
        let declaration = &rest[at + "constexpr int ".len()..];
        let end = declaration.find(';').ok_or("a constant without an end")?;
        // Functions are repeated by hand.
        if let Some((name, value)) = declaration[..end].split_once('=')
            && !declaration[..end].contains('(')
        {
            writeln!(rust, "pub(crate) const {}: i32 = {};", shout(name.trim()), value.trim())?;
        }
        rest = &declaration[end..];
    }
    rest = &text;
    while let Some(at) = rest.find("struct ") {
        let declaration = &rest[at + "struct ".len()..];
        let (name, body) = declaration.split_once('{').ok_or("a struct without a body")?;
        let (body, after) = body.split_once('}').ok_or("a struct without an end")?;
        writeln!(rust, "#[repr(C)]\n#[derive(Clone, Copy, Debug, Default)]")?;
        writeln!(rust, "pub(crate) struct {} {{", name.trim())?;
        for field in body.split(';').map(str::trim).filter(|field| !field.is_empty()) {
            translate_field(field, &mut rust)?;
        }
        rust.push_str("}\n");
        rest = after;
    }
    Ok(rust)
}

/// `const float *a, *b` or `long long x_stride, y_stride`.
fn translate_field(field: &str, rust: &mut String) -> Result<()> {
    let field = field.trim_start_matches("const ");
    let (kind, names) = ["unsigned long long", "long long", "unsigned", "int", "float", "void"]
        .into_iter()
        .find_map(|kind| Some((kind, field.strip_prefix(kind).filter(|rest| !rest.starts_with('_'))?)))
        .or_else(|| field.split_once(' ').filter(|(_, rest)| rest.trim().starts_with('*')))
        .ok_or_else(|| format!("cannot translate the field `{field}`"))?;
    for name in names.split(',').map(str::trim) {
        let (name, kind) = match name.strip_prefix('*') {
            Some(name) => (name, "u64"),
            None => match kind {
                "unsigned long long" => (name, "u64"),
                "long long" => (name, "i64"),
                "unsigned" => (name, "u32"),
                "int" => (name, "i32"),
                "float" => (name, "f32"),
                _ => return Err(format!("cannot translate the field `{field}`").into()),
            },
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("cannot translate the field `{field}`").into());
        }
        writeln!(rust, "    pub {name}: {kind},")?;
    }
    Ok(())
}

/// kScanBackwardShared as SCAN_BACKWARD_SHARED.
fn shout(name: &str) -> String {
    let mut shouted = String::new();
    for (i, c) in name.strip_prefix('k').unwrap_or(name).chars().enumerate() {
        if i > 0 && c.is_ascii_uppercase() {
            shouted.push('_');
        }
        shouted.extend(c.to_uppercase());
    }
    shouted
}
