//! Element types of weights and states.

use crate::error::{Error, Result};

/// The type that weights are kept in. Activations, states and accumulators are f32 on every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// The upper 16 bits of an f32.
    BF16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }

    /// The name used in the public API: `f32`, `bf16`, `f16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Reads the public API's name.
    ///
    /// # Errors
    /// `OPTION_INVALID` for any other name.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::BF16),
            "f16" => Ok(Self::F16),
            other => Err(Error::option("dtype", format!("`{other}`"), "`f32`, `bf16` or `f16`")),
        }
    }
}
