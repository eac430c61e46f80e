//! What the integration tests share.
#![allow(dead_code)]

pub mod adapters;
pub mod ahead;
pub mod cuda;
pub mod model;
pub mod ops;
pub mod requests;
pub mod sampling;
pub mod training;
pub mod watched;

use std::path::{Path, PathBuf};

use mamba::cpu::memory::Aligned;
use safetensors::SafeTensors;

/// A small generator of repeatable numbers (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.size(0, of.len() - 1)]
    }

    /// Uniform in −scale … scale.
    pub fn float(&mut self, scale: f32) -> f32 {
        ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    }

    pub fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.float(scale)).collect()
    }
}

/// A buffer of these values.
pub fn buffer(values: &[f32]) -> Aligned<f32> {
    let mut buffer = Aligned::zeros(values.len(), "test").unwrap();
    buffer.copy_from_slice(values);
    buffer
}

/// NaN everywhere, so that an element that is not written is seen.
pub fn nans(len: usize) -> Aligned<f32> {
    let mut buffer = Aligned::zeros(len, "test").unwrap();
    buffer.fill(f32::NAN);
    buffer
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// ‖actual − expected‖ / ‖expected‖; NaN where actual has one.
pub fn relative_l2<'a>(actual: impl IntoIterator<Item = &'a f32>, expected: &[f64]) -> f64 {
    let mut count = 0;
    let mut error = 0.0;
    for (a, e) in actual.into_iter().zip(expected) {
        error += (f64::from(*a) - e).powi(2);
        count += 1;
    }
    assert_eq!(count, expected.len());
    let norm = expected.iter().map(|e| e * e).sum::<f64>();
    if norm == 0.0 { error.sqrt() } else { (error / norm).sqrt() }
}

/// A file of this crate. `NODE_MAMBA_CRATE` says where the crate lies on a machine that runs the tests but did not build
/// them.
pub fn here(path: &str) -> PathBuf {
    let crate_ = std::env::var_os("NODE_MAMBA_CRATE").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&crate_).join(path)
}

/// A reference file's tensors (`tests/reference/README.md`).
pub struct Truth(pub Vec<u8>);

impl Truth {
    pub fn novels() -> Self {
        Self(std::fs::read(here("tests/reference/novels-7m.safetensors")).unwrap())
    }

    /// A case of the selective scan.
    pub fn scan(name: &str) -> Self {
        Self(std::fs::read(here(&format!("tests/reference/selective-scan/{name}.safetensors"))).unwrap())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name, f32::from_le_bytes)
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name, u32::from_le_bytes)
    }

    fn bytes<T>(&self, name: &str, read: impl Fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| read(*bytes)).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    /// Where the sequences of a scan's case begin among its tokens.
    pub fn cu_seqlens(&self) -> Vec<usize> {
        match self.has("cu_seqlens") {
            true => self.ids("cu_seqlens").iter().map(|n| *n as usize).collect(),
            false => (0..=self.shape("u")[0]).map(|i| i * self.shape("u")[2]).collect(),
        }
    }

    /// A tensor [batch, channels, length] of a scan's case as (token, channel).
    pub fn tokens(&self, name: &str) -> Vec<f32> {
        let [batch, channels, length] = self.shape(name)[..] else { panic!("{name}") };
        let values = self.floats(name);
        (0..batch * length)
            .flat_map(|t| (0..channels).map(move |c| (t / length * channels + c) * length + t % length))
            .map(|at| values[at])
            .collect()
    }

    /// A tensor [.., d_inner, d_state] of a scan's case with its last two dimensions exchanged.
    pub fn states(&self, name: &str) -> Vec<f32> {
        let [.., dim, d_state] = self.shape(name)[..] else { panic!("{name}") };
        let values = self.floats(name);
        (0..values.len())
            .map(|i| values[(i / (d_state * dim) * dim + i % dim) * d_state + i / dim % d_state])
            .collect()
    }
}
