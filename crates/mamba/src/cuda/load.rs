//! Weights on their way from a checkpoint to the card, in the card's types.

use mamba_kernels::{Float, quantized};

use crate::checkpoint::{Stored, Tensor};
use crate::error::{Error, Result};
use crate::quantize::{Format, unpack_scales};

/// Threads that fill a piece: one alone, which takes the pages of a mapped file as it goes, is slower than the bus.
const THREADS: usize = 4;
/// Elements that a thread converts at a time, of a tensor stored in another type: they stay in its cache.
const SLAB: usize = 1 << 14;
/// Rows of blocks that a thread packs at a time.
const ROWS: usize = 32;

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

/// A format by the kernels' name.
pub(super) fn format(format: Format) -> quantized::Format {
    match format {
        Format::Q8_0 => quantized::Format::Q8_0,
        Format::Q4K => quantized::Format::Q4K,
    }
}

/// Writes rows of a matrix, from row `first` on, as the kernels read blocks: those that are stored, or the values
/// quantized, on as many threads as there are processors (the search for q4_K's scales takes its time).
pub(super) fn fill_rows(tensor: &Tensor, blocks: Format, first: usize, piece: &mut [u8]) -> Result<()> {
    let row_bytes = format(blocks).row_bytes(tensor.shape[1]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (piece.len() / row_bytes).div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> = piece
            .chunks_mut(share * row_bytes)
            .enumerate()
            .map(|(i, part)| scope.spawn(move || pack_rows(tensor, blocks, first + i * share, part)))
            .collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|panic| Error::panic(&*panic))?)
    })
}

fn pack_rows(tensor: &Tensor, blocks: Format, first: usize, part: &mut [u8]) -> Result<()> {
    let inputs = tensor.shape[1];
    let (stored_bytes, row_bytes) = (blocks.row_bytes(inputs), format(blocks).row_bytes(inputs));
    let mut stored = vec![0; ROWS * stored_bytes];
    for (i, rows) in part.chunks_mut(ROWS * row_bytes).enumerate() {
        let count = rows.len() / row_bytes;
        let stored = &mut stored[..count * stored_bytes];
        tensor.read_blocks(blocks, first + i * ROWS, count, stored)?;
        rows.fill(0);
        for (row, stored) in rows.chunks_exact_mut(row_bytes).zip(stored.chunks_exact(stored_bytes)) {
            pack_row(blocks, inputs, stored, row);
        }
    }
    Ok(())
}

/// A row's blocks into a row of zeros.
fn pack_row(blocks: Format, inputs: usize, stored: &[u8], row: &mut [u8]) {
    for (i, block) in stored.chunks_exact(blocks.block_bytes()).enumerate() {
        match blocks {
            Format::Q8_0 => {
                let weights = std::array::from_fn(|k| block[2 + k].cast_signed());
                quantized::pack_q8_0(inputs, row, i, [block[0], block[1]], &weights);
            }
            Format::Q4K => {
                let d = [block[0], block[1], block[2], block[3]];
                // Of two neighbouring groups the first is in the lower four bits.
                let weights =
                    std::array::from_fn(|k| block[16 + k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15);
                quantized::pack_q4_k(inputs, row, i, d, &unpack_scales(block), &weights);
            }
        }
    }
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

    /// The weights of a packed row, taken from where a lane of the kernels takes them (`cuda/quantized/`).
    fn as_a_kernel_reads(blocks: Format, inputs: usize, row: &[u8]) -> Vec<f32> {
        let f16 = |at: usize| half::f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
        let groups = if blocks == Format::Q8_0 { 2 } else { 4 };
        let weight_bytes =
            inputs.next_multiple_of(if blocks == Format::Q8_0 { 64 } else { 256 }) * 2 / groups;
        let value = |i: usize| {
            let (group, lane, k) = (i / 32, i / 8 % 4, i % 8);
            let (chunk, h) = (group / groups, group % groups);
            let from = chunk * 64 + lane * 16 + h * (16 / groups);
            if blocks == Format::Q8_0 {
                return f16(weight_bytes + 2 * group) * (f32::from(row[from + k]) - 128.0);
            }
            let word = u32::from_le_bytes(std::array::from_fn(|byte| row[from + byte]));
            let pair = word >> (4 * (k / 2)) & 0x000f_000f;
            let q = (pair >> (16 * (k % 2)) & 15) as f32;
            let (scale, min) = (weight_bytes + 8 * chunk + 2 * h, weight_bytes + 8 * chunk + 2 * h + 1);
            let d = weight_bytes + weight_bytes / 8 + chunk / 2 * 4;
            f16(d) * f32::from(row[scale]) * q - f16(d + 2) * f32::from(row[min])
        };
        (0..inputs).map(value).collect()
    }

    #[test]
    fn packed_rows_are_what_their_blocks_are() {
        for blocks in [Format::Q8_0, Format::Q4K] {
            for inputs in [1, 31, 48, 64, 300, 512, 1030] {
                let values: Vec<f32> =
                    (0..70 * inputs).map(|i| ((i * 7919 % 1009) as f32 - 480.0) * 0.01).collect();
                let tensor = Tensor::from_memory("x", vec![70, inputs], values);
                let row_bytes = format(blocks).row_bytes(inputs);
                let mut packed = vec![0xaa; 70 * row_bytes];
                let (first, rest) = packed.split_at_mut(9 * row_bytes);
                fill_rows(&tensor, blocks, 0, first).unwrap();
                fill_rows(&tensor, blocks, 9, rest).unwrap();
                for (i, row) in packed.chunks(row_bytes).enumerate() {
                    let mut stored = vec![0; blocks.row_bytes(inputs)];
                    tensor.read_blocks(blocks, i, 1, &mut stored).unwrap();
                    let mut expected = vec![f32::NAN; inputs];
                    blocks.dequantize(&stored, &mut expected);
                    assert_eq!(
                        as_a_kernel_reads(blocks, inputs, row),
                        expected,
                        "{blocks:?}, row {i} of {inputs}"
                    );
                }
            }
        }
    }
}
