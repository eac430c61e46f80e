//! Compiles every `cuda/<op>/*.cu` with nvcc into a fatbin (machine code for several architectures, and PTX for later
//! ones), and turns the structs, constants and functions of every `params.h` into Rust, so that a kernel and its launcher
//! cannot disagree about a parameter or a grid.
//!
//! nvcc is found by `NVCC`, `CUDA_HOME`, or in `.cache/cuda-toolkit` at the root of the repository.
//! A file named `*.sm_90a.cu` gets the instructions that only compute capability 9.0 has, and there alone any code.
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
        let operation = source.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{operation}-{stem}");
        let fatbin = self.cache.join(format!("{name}-{:016x}.fatbin", hash.finish()));
        if !fatbin.exists() {
            let flags = self.flags.iter().map(|flag| match stem.ends_with(".sm_90a") {
                true => flag.replace("arch=compute_90,code=sm_90", "arch=compute_90a,code=sm_90a"),
                false => flag.clone(),
            });
            // Under another name first: a build that is stopped leaves no half a file.
            let unfinished = fatbin.with_extension(format!("{}.tmp", std::process::id()));
            let output =
                Command::new(&self.nvcc).args(flags).arg("-o").arg(&unfinished).arg(source).output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
                return Err(format!("nvcc {}: {}\n{said}", source.display(), output.status).into());
            }
            fs::rename(unfinished, &fatbin)?;
        }
        Ok(fatbin)
    }
}

/// The structs, integer constants and functions of a header as Rust. It understands what `params.h` may hold: structs of
/// pointers, int, unsigned, long long, float, and structs by their names; constants and functions of non-negative ints,
/// made of `const int` and `return`, arithmetic and `?:`. Anything else is an error, here or when the result is compiled.
fn translate(header: &str) -> Result<String> {
    let text: String = header.lines().fold(String::new(), |text, line| {
        let line = line.split("//").next().unwrap_or_default().trim();
        if line.starts_with('#') { text } else { text + line + " " }
    });
    let mut rust = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("constexpr int ") {
        rest = &rest[at + "constexpr int ".len()..];
        let name_end = rest.find(['=', '(']).ok_or("a constant without a value")?;
        let name = rest[..name_end].trim();
        if rest[name_end..].starts_with('=') {
            let value = rest[name_end + 1..].split(';').next().unwrap_or_default();
            writeln!(rust, "pub(crate) const {}: usize = {};", name_in_rust(name), expression(value)?)?;
        } else {
            let (parameters, body) = rest[name_end + 1..].split_once(')').ok_or("a function's parameters")?;
            let body = body.split_once('{').and_then(|(_, body)| body.split_once('}')).ok_or("a body")?.0;
            let parameters: Vec<String> = parameters
                .split(',')
                .map(|parameter| Ok(format!("{}: usize", strip(parameter.trim(), "int ")?)))
                .collect::<Result<_>>()?;
            writeln!(rust, "pub(crate) fn {name}({}) -> usize {{", parameters.join(", "))?;
            for statement in body.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
                if let Ok(value) = strip(statement, "return ") {
                    writeln!(rust, "    {}", expression(value)?)?;
                } else {
                    let (local, value) =
                        strip(statement, "const int ")?.split_once('=').ok_or("a local without a value")?;
                    writeln!(rust, "    let {} = {};", local.trim(), expression(value)?)?;
                }
            }
            rust.push_str("}\n");
        }
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

/// `const float *a, *b`, `long long x_stride, y_stride` or `StepConvolution to`.
fn translate_field(field: &str, rust: &mut String) -> Result<()> {
    let field = field.trim_start_matches("const ");
    let (kind, names) = ["unsigned long long", "long long", "unsigned", "int", "float", "void"]
        .into_iter()
        .find_map(|kind| Some((kind, field.strip_prefix(kind).filter(|rest| !rest.starts_with('_'))?)))
        .or_else(|| field.split_once(' '))
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
                other if other.starts_with(char::is_uppercase) => (name, other),
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

fn strip<'a>(text: &'a str, prefix: &str) -> Result<&'a str> {
    text.strip_prefix(prefix).ok_or_else(|| format!("expected `{prefix}` before `{text}`").into())
}

/// Arithmetic with constants' names as in Rust, and `a ? b : c` as `if a { b } else { c }`.
fn expression(text: &str) -> Result<String> {
    // Where `?` and the `:` that belongs to it stand outside of parentheses.
    let (mut depth, mut question, mut nested, mut colon) = (0, None, 0, None);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '?' if depth == 0 && question.is_none() => question = Some(i),
            '?' if depth == 0 => nested += 1,
            ':' if depth == 0 && nested > 0 => nested -= 1,
            ':' if depth == 0 && colon.is_none() => colon = Some(i),
            _ => {}
        }
    }
    if let (Some(question), Some(colon)) = (question, colon) {
        let [a, b, c] = [&text[..question], &text[question + 1..colon], &text[colon + 1..]].map(expression);
        return Ok(format!("if {} {{ {} }} else {{ {} }}", a?, b?, c?));
    }
    let mut rust = String::new();
    let mut rest = text.trim();
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        if word > 0 {
            rust.push_str(&name_in_rust(&rest[..word]));
            rest = &rest[word..];
        } else if c == '(' {
            let mut depth = 0;
            let close = rest.char_indices().find(|(_, c)| {
                depth += i32::from(*c == '(') - i32::from(*c == ')');
                depth == 0
            });
            let (close, _) = close.ok_or_else(|| format!("a parenthesis is open in `{text}`"))?;
            write!(rust, "({})", expression(&rest[1..close])?)?;
            rest = &rest[close + 1..];
        } else {
            rust.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    Ok(rust)
}

/// kScanBackwardShared as SCAN_BACKWARD_SHARED; other names as they are.
fn name_in_rust(name: &str) -> String {
    let Some(constant) = name.strip_prefix('k').filter(|rest| rest.starts_with(|c: char| c.is_uppercase()))
    else {
        return name.into();
    };
    let mut shouted = String::new();
    for (i, c) in constant.chars().enumerate() {
        if i > 0 && c.is_ascii_uppercase() {
            shouted.push('_');
        }
        shouted.extend(c.to_uppercase());
    }
    shouted
}
