//! Weights on their way from a checkpoint to the card, in the card's types.

use mamba_kernels::Float;

use crate::checkpoint::{Stored, Tensor};
use crate::error::{Error, Result};

/// Threads that fill a piece: one alone, which takes the pages of a mapped file as it goes, is slower than the bus.
const THREADS: usize = 4;
/// Elements that a thread converts at a time, of a tensor stored in another type: they stay in its cache.
const SLAB: usize = 1 << 14;

/// Writes a tensor's values, from byte `at` of them on, as `float`. Stored so already, they are copied as they are.
pub(super) fn fill(tensor: &Tensor, float: Float, at: usize, piece: &mut [u8]) -> Result<()> {
    let share = piece.len().div_ceil(THREADS).next_multiple_of(4);
    std::thread::scope(|scope| {
        let parts: Vec<_> = piece
            .chunks_mut(share)
            .enumerate()
            .map(|(i, part)| scope.spawn(move || fill_part(tensor, float, at + i * share, part)))
            .collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|panic| Error::panic(&*panic))?)
    })
}

fn fill_part(tensor: &Tensor, float: Float, at: usize, part: &mut [u8]) -> Result<()> {
    let as_stored = matches!(
        (tensor.stored(), float),
        (Stored::F32, Float::F32) | (Stored::BF16, Float::BF16) | (Stored::F16, Float::F16)
    );
    if as_stored && cfg!(target_endian = "little") && tensor.read_stored(at, part)? {
        return Ok(());
    }
    let size = float.bytes();
    let mut values = vec![0.0; SLAB.min(part.len() / size)];
    for (i, bytes) in part.chunks_mut(SLAB * size).enumerate() {
        let values = &mut values[..bytes.len() / size];
        tensor.read_f32(at / size + i * SLAB, values)?;
        match float {
            Float::F32 => write(bytes, values, f32::to_ne_bytes),
            Float::BF16 => write(bytes, values, |x| half::bf16::from_f32(x).to_ne_bytes()),
            Float::F16 => write(bytes, values, |x| half::f16::from_f32(x).to_ne_bytes()),
        }
    }
    Ok(())
}

fn write<const N: usize>(bytes: &mut [u8], values: &[f32], convert: impl Fn(f32) -> [u8; N]) {
    let (elements, _) = bytes.as_chunks_mut::<N>();
    elements.iter_mut().zip(values).for_each(|(bytes, x)| *bytes = convert(*x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_what_its_elements_are_one_by_one() {
        let values: Vec<f32> = (0..100_003).map(|i| (i as f32 - 5e4) * 0.37).collect();
        let tensor = Tensor::from_memory("x", vec![values.len()], values.clone());
        for (float, size) in [(Float::F32, 4), (Float::BF16, 2), (Float::F16, 2)] {
            let mut whole = vec![0xaa; values.len() * size];
            // In pieces of different lengths, as they come from the device.
            let (first, rest) = whole.split_at_mut(256 * 77);
            fill(&tensor, float, 0, first).unwrap();
            fill(&tensor, float, 256 * 77, rest).unwrap();
            for (bytes, x) in whole.chunks(size).zip(&values) {
                let expected = match float {
                    Float::F32 => x.to_le_bytes().to_vec(),
                    Float::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
                    Float::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
                };
                assert_eq!(bytes, expected);
            }
        }
    }
}
