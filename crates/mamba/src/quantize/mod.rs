//! Weights of 8 and 4 bits, in blocks along a row that share a scale. The formats are those of GGUF, bit for bit:
//! what [`Format::quantize`] writes, other programs read.
//!
//! | format | block | bytes | a weight is |
//! |---|---|---|---|
//! | q8_0 | 32 | 34 | `d · q`, q in −127 … 127 |
//! | q4_K | 256 | 144 | `d · scale · q − d_min · min`, q in 0 … 15; scale and min of 6 bits for each 32 weights |
//!
//! A row whose length is no multiple of the block is padded with zeros.

mod q4_k;
mod q8_0;

pub use q4_k::unpack_scales;

/// Weights that share a scale in both formats, and that kernels take at a time.
pub const GROUP: usize = 32;

/// How the weights of a block are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight.
    Q4K,
}

impl Format {
    /// Weights of a block.
    #[must_use]
    pub fn block(self) -> usize {
        match self {
            Self::Q8_0 => GROUP,
            Self::Q4K => q4_k::BLOCK,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => q8_0::BYTES,
            Self::Q4K => q4_k::BYTES,
        }
    }

    /// Bytes of a row of `len` weights.
    #[must_use]
    pub fn row_bytes(self, len: usize) -> usize {
        len.div_ceil(self.block()) * self.block_bytes()
    }

    /// Quantizes a row; `bytes` has [`Format::row_bytes`] of it. Weights beyond what f16 scales can express
    /// (some 8 million) are cut there; NaN becomes what it may.
    ///
    /// # Panics
    /// If `bytes` has another length.
    pub fn quantize(self, row: &[f32], bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.row_bytes(row.len()));
        let blocks = row.chunks(self.block()).zip(bytes.chunks_exact_mut(self.block_bytes()));
        match self {
            Self::Q8_0 => blocks.for_each(|(x, out)| q8_0::quantize(&padded(x), out)),
            Self::Q4K => blocks.for_each(|(x, out)| q4_k::quantize(&padded(x), out)),
        }
    }

    /// The weights of a row, without its padding.
    ///
    /// # Panics
    /// If `bytes` has another length than [`Format::row_bytes`] of the row.
    pub fn dequantize(self, bytes: &[u8], row: &mut [f32]) {
        assert_eq!(bytes.len(), self.row_bytes(row.len()));
        for (out, bytes) in row.chunks_mut(self.block()).zip(bytes.chunks_exact(self.block_bytes())) {
            match self {
                Self::Q8_0 => q8_0::dequantize(bytes, out),
                Self::Q4K => q4_k::dequantize(bytes, out),
            }
        }
    }
}

fn padded<const N: usize>(x: &[f32]) -> [f32; N] {
    let mut block = [0.0; N];
    block[..x.len()].copy_from_slice(x);
    block
}

fn read_f16(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Writes x as f16, at most the largest finite one, and returns what it was rounded to.
fn write_f16(bytes: &mut [u8], at: usize, x: f32) -> f32 {
    let rounded = half::f16::from_f32(x.min(half::f16::MAX.to_f32()));
    bytes[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::philox::uniform;

    fn weights(n: usize, seed: u64) -> Vec<f32> {
        // Nearly normal, as trained weights are.
        (0..n as u64).map(|i| (0..6).map(|k| uniform(seed + k, i) - 0.5).sum::<f64>() as f32 * 0.05).collect()
    }

    fn error(format: Format, row: &[f32]) -> f64 {
        let mut bytes = vec![0xa5; format.row_bytes(row.len())];
        format.quantize(row, &mut bytes);
        let mut back = vec![f32::NAN; row.len()];
        format.dequantize(&bytes, &mut back);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = row.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
        (off / row.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
    }

    #[test]
    fn errors_are_those_of_the_bits() {
        let row = weights(4096, 1);
        // A uniform quantizer of the step amax / 127 makes 0.29 steps of error.
        assert!(error(Format::Q8_0, &row) < 0.006, "{}", error(Format::Q8_0, &row));
        assert!(error(Format::Q4K, &row) < 0.075, "{}", error(Format::Q4K, &row));
    }

    #[test]
    fn quantizing_what_was_quantized_changes_nothing_in_q8_0() {
        let row = weights(300, 2);
        let mut bytes = vec![0; Format::Q8_0.row_bytes(300)];
        Format::Q8_0.quantize(&row, &mut bytes);
        let mut back = vec![0.0; 300];
        Format::Q8_0.dequantize(&bytes, &mut back);
        let mut again = vec![0; bytes.len()];
        Format::Q8_0.quantize(&back, &mut again);
        assert_eq!(bytes, again);
    }

    #[test]
    fn extremes_stay_finite_and_in_place() {
        for format in [Format::Q8_0, Format::Q4K] {
            for x in [0.0, 1e-30, -1e-7, 3.5, -3.5, 1e30] {
                for row in [vec![x; 300], (0..300).map(|i| if i == 7 { x } else { 0.0 }).collect()] {
                    let mut bytes = vec![0; format.row_bytes(300)];
                    format.quantize(&row, &mut bytes);
                    let mut back = vec![f32::NAN; 300];
                    format.dequantize(&bytes, &mut back);
                    // The smallest scale of f16 is 6e-8.
                    let limit = if x.abs() > 1e6 { f32::MAX } else { x.abs() * 0.1 + 5e-5 };
                    for (a, b) in row.iter().zip(&back) {
                        assert!(b.is_finite() && (a - b).abs() <= limit, "{a} {b}");
                    }
                }
            }
        }
    }
}
