//! Element types of weights and states.

use crate::error::{Error, Result};
use crate::quantize::Format;

/// The type that weights are kept in, and on a GPU also activations. States and accumulators are f32 on every path, on the
/// CPU activations too (products with quantized weights take them with 8 bits: [`crate::ops::linear`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// The upper 16 bits of an f32.
    BF16,
    /// IEEE half precision.
    F16,
    /// 8 bits, and a scale for each 32 weights of a row ([`crate::quantize`]).
    Q8_0,
    /// 4 bits, and a scale and a minimum for each 32 weights of a row, in blocks of 256.
    Q4K,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::BF16, Self::F16, Self::Q8_0, Self::Q4K];

    /// Bytes of `elements` weights of a matrix, without padding.
    #[must_use]
    pub fn bytes(self, elements: u64) -> u64 {
        match self.format() {
            Some(format) => elements.div_ceil(format.block() as u64) * format.block_bytes() as u64,
            None if self == Self::F32 => 4 * elements,
            None => 2 * elements,
        }
    }

    /// How blocks are written, of a quantized type.
    #[must_use]
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Q8_0 => Some(Format::Q8_0),
            Self::Q4K => Some(Format::Q4K),
            Self::F32 | Self::BF16 | Self::F16 => None,
        }
    }

    /// The type that a matrix of so many inputs is kept in: q8_0 where rows are no multiple of q4_K's block.
    #[must_use]
    pub fn of_width(self, inputs: usize) -> Self {
        if self == Self::Q4K && !inputs.is_multiple_of(Format::Q4K.block()) { Self::Q8_0 } else { self }
    }

    /// The name used in the public API: `f32`, `bf16`, `f16`, `q8_0`, `q4_k`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// Reads the public API's name.
    ///
    /// # Errors
    /// `OPTION_INVALID` for any other name.
    pub fn parse(name: &str) -> Result<Self> {
        let expected = "`f32`, `bf16`, `f16`, `q8_0` or `q4_k`";
        let dtype = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        dtype.ok_or_else(|| Error::option("dtype", format!("`{name}`"), expected))
    }
}
