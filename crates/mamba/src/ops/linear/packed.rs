//! Weights as the CPU computes with them: cut into panels of 32 outputs, in their own type.

use crate::checkpoint::Tensor;
use crate::cpu::SharedMut;
use crate::cpu::memory::{Aligned, Element};
use crate::cpu::threads::Threads;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quantize::{Format, GROUP, unpack_scales};

/// Outputs in a panel.
pub(super) const PANEL: usize = 32;

/// The panels. Where one input's 32 weights lie:
/// - f32, f16: `[panel][input][output]`
/// - bf16: `[panel][input / 2][output][input % 2]`, inputs padded with zeros to a multiple of 32: the pairs that
///   the tile unit multiplies, and that widen with one shift and one mask
/// - q8_0, q4_K: `[panel]`, then as [`q8_0`] and [`q4_k`] say; inputs padded with zeros to whole blocks
#[derive(Debug)]
pub(super) enum Panels {
    F32(Aligned<f32>),
    BF16(Aligned<u16>),
    F16(Aligned<u16>),
    Q8_0(Aligned<u8>),
    Q4K(Aligned<u8>),
}

/// A group of 32 inputs of a q8_0 panel: 32 scales (f16, `[output]`), then the weights, `[input / 4][output]`, a word
/// of four bytes each, unsigned: 128 more than they are. A word's bytes are inputs 0, 2, 1, 3, so that its even bytes,
/// widened to 16 bits, are the pair of inputs 0 and 1, its odd bytes that of 2 and 3.
pub(super) mod q8_0 {
    use super::{GROUP, PANEL};

    /// Where the weights begin.
    pub const WEIGHTS: usize = 2 * PANEL;
    /// What a weight of zero is.
    pub const ZERO: u8 = 128;
    /// Bytes of a group.
    pub const GROUP_BYTES: usize = WEIGHTS + GROUP * PANEL;

    /// Where the weight of input `i` of the group lies.
    pub fn weight(i: usize, output: usize) -> usize {
        WEIGHTS + (i / 4 * PANEL + output) * 4 + super::byte(i)
    }
}

/// A block of 256 inputs of a q4_K panel: 32 `d`, 32 `d_min` (f16), then eight groups: 32 scales, 32 mins (a byte
/// each, so 4.625 bits a weight instead of 4.5), the weights, `[input / 8][output]`, a word of four bytes each: their
/// lower halves are inputs 0, 2, 1, 3 as in q8_0, the upper ones 4, 6, 5, 7.
pub(super) mod q4_k {
    use super::{GROUP, PANEL};

    /// Groups of a block.
    pub const GROUPS: usize = 8;
    /// Where the first group begins.
    pub const FIRST: usize = 4 * PANEL;
    /// Where the weights begin in a group.
    pub const WEIGHTS: usize = 2 * PANEL;
    /// Bytes of a group.
    pub const GROUP_BYTES: usize = WEIGHTS + GROUP * PANEL / 2;
    /// Bytes of a block.
    pub const BLOCK_BYTES: usize = FIRST + GROUPS * GROUP_BYTES;

    /// Byte and shift of the weight of input `i` of the group.
    pub fn weight(i: usize, output: usize) -> (usize, usize) {
        (WEIGHTS + (i / 8 * PANEL + output) * 4 + super::byte(i), i % 8 / 4 * 4)
    }
}

/// The byte of a word that input `i` of its group becomes.
fn byte(i: usize) -> usize {
    [0, 2, 1, 3][i % 4]
}

/// A packed weight [outputs, inputs].
#[derive(Debug)]
pub struct Packed {
    pub(super) panels: Panels,
    inputs: usize,
    outputs: usize,
    /// Inputs that a panel has room for.
    pub(super) padded_inputs: usize,
}

impl Packed {
    /// Packs a tensor [out, in], 32 rows at a time, so that loading needs no second copy of it.
    ///
    /// # Errors
    /// `TENSOR_SHAPE` unless there are two dimensions, `OUT_OF_MEMORY`, whatever reading the tensor gives.
    pub fn new(tensor: &Tensor, dtype: DType, threads: &mut Threads) -> Result<Self> {
        let [outputs, inputs] = tensor.shape[..] else {
            return Err(Error::TensorShape {
                name: tensor.name.clone(),
                expected: vec![0, 0],
                actual: tensor.shape.clone(),
            });
        };
        let padded_inputs = inputs.next_multiple_of(match dtype {
            DType::F32 | DType::F16 => 1,
            DType::BF16 => 32,
            DType::Q8_0 => Format::Q8_0.block(),
            DType::Q4K => Format::Q4K.block(),
        });
        let plain = |input: usize, output: usize| input * PANEL + output;
        let len = PANEL * padded_inputs;
        let panels = match dtype {
            DType::F32 => Panels::F32(pack_floats(tensor, len, threads, plain, |x| x)?),
            DType::BF16 => Panels::BF16(pack_floats(tensor, len, threads, paired, |x| {
                half::bf16::from_f32(x).to_bits()
            })?),
            DType::F16 => {
                Panels::F16(pack_floats(tensor, len, threads, plain, |x| half::f16::from_f32(x).to_bits())?)
            }
            DType::Q8_0 => {
                let bytes = padded_inputs / GROUP * q8_0::GROUP_BYTES;
                Panels::Q8_0(pack_blocks(tensor, Format::Q8_0, bytes, threads, pack_q8_0)?)
            }
            DType::Q4K => {
                let bytes = padded_inputs / Format::Q4K.block() * q4_k::BLOCK_BYTES;
                Panels::Q4K(pack_blocks(tensor, Format::Q4K, bytes, threads, pack_q4_k)?)
            }
        };
        Ok(Self { panels, inputs, outputs, padded_inputs })
    }

    /// Rows of the weight.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (match &self.panels {
            Panels::F32(p) => p.len() * 4,
            Panels::BF16(p) | Panels::F16(p) => p.len() * 2,
            Panels::Q8_0(p) | Panels::Q4K(p) => p.len(),
        }) as u64
    }

    /// Row `row` of the weight, widened (the embedding of token `row`).
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.outputs && out.len() == self.inputs, "row {row} of {}", self.outputs);
        let (panel, output) = (row / PANEL, row % PANEL);
        let first = panel * PANEL * self.padded_inputs;
        let f16 =
            |bytes: &[u8]| half::f16::from_le_bytes([bytes[2 * output], bytes[2 * output + 1]]).to_f32();
        match &self.panels {
            Panels::F32(p) => {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = p[first + i * PANEL + output]);
            }
            Panels::BF16(p) => out.iter_mut().enumerate().for_each(|(i, x)| {
                *x = half::bf16::from_bits(p[first + paired(i, output)]).to_f32();
            }),
            Panels::F16(p) => out.iter_mut().enumerate().for_each(|(i, x)| {
                *x = half::f16::from_bits(p[first + i * PANEL + output]).to_f32();
            }),
            Panels::Q8_0(p) => {
                let groups = p[first / GROUP * q8_0::GROUP_BYTES / PANEL..].chunks_exact(q8_0::GROUP_BYTES);
                for (out, group) in out.chunks_mut(GROUP).zip(groups) {
                    let d = f16(group);
                    for (i, x) in out.iter_mut().enumerate() {
                        *x = d * (f32::from(group[q8_0::weight(i, output)]) - f32::from(q8_0::ZERO));
                    }
                }
            }
            Panels::Q4K(p) => {
                let from = first / (GROUP * q4_k::GROUPS) * q4_k::BLOCK_BYTES / PANEL;
                let blocks = p[from..].chunks_exact(q4_k::BLOCK_BYTES);
                for (out, block) in out.chunks_mut(GROUP * q4_k::GROUPS).zip(blocks) {
                    let (d, d_min) = (f16(block), f16(&block[2 * PANEL..]));
                    let groups = block[q4_k::FIRST..].chunks_exact(q4_k::GROUP_BYTES);
                    for (out, group) in out.chunks_mut(GROUP).zip(groups) {
                        let scale = d * f32::from(group[output]);
                        let min = d_min * f32::from(group[PANEL + output]);
                        for (i, x) in out.iter_mut().enumerate() {
                            let (byte, shift) = q4_k::weight(i, output);
                            *x = scale * f32::from(group[byte] >> shift & 15) - min;
                        }
                    }
                }
            }
        }
    }
}

/// Where a bf16 weight lies in its panel.
fn paired(input: usize, output: usize) -> usize {
    input / 2 * 2 * PANEL + output * 2 + input % 2
}

/// Panels of `panel_len` elements each, of the tensor's values, `convert`ed.
fn pack_floats<T: Element>(
    tensor: &Tensor,
    panel_len: usize,
    threads: &mut Threads,
    place: impl Fn(usize, usize) -> usize + Sync,
    convert: impl Fn(f32) -> T + Sync,
) -> Result<Aligned<T>> {
    let inputs = tensor.shape[1];
    pack(tensor, panel_len, threads, |first, rows, panel| {
        let mut slab = vec![0.0; rows * inputs];
        tensor.read_f32(first * inputs, &mut slab)?;
        for (output, row) in slab.chunks_exact(inputs).enumerate() {
            for (input, x) in row.iter().enumerate() {
                panel[place(input, output)] = convert(*x);
            }
        }
        Ok(())
    })
}

/// Panels of `panel_len` bytes each, of the tensor's blocks; `place` puts a row's blocks into a panel.
fn pack_blocks(
    tensor: &Tensor,
    format: Format,
    panel_len: usize,
    threads: &mut Threads,
    place: fn(blocks: &[u8], panel: &mut [u8], output: usize),
) -> Result<Aligned<u8>> {
    let row_bytes = format.row_bytes(tensor.shape[1]);
    pack(tensor, panel_len, threads, |first, rows, panel| {
        let mut slab = vec![0; rows * row_bytes];
        tensor.read_blocks(format, first, rows, &mut slab)?;
        slab.chunks_exact(row_bytes).enumerate().for_each(|(output, blocks)| place(blocks, panel, output));
        Ok(())
    })
}

fn pack_q8_0(blocks: &[u8], panel: &mut [u8], output: usize) {
    let blocks = blocks.chunks_exact(Format::Q8_0.block_bytes());
    for (block, group) in blocks.zip(panel.chunks_exact_mut(q8_0::GROUP_BYTES)) {
        group[2 * output..][..2].copy_from_slice(&block[..2]);
        for (i, q) in block[2..].iter().enumerate() {
            group[q8_0::weight(i, output)] = q.wrapping_add(q8_0::ZERO);
        }
    }
}

fn pack_q4_k(blocks: &[u8], panel: &mut [u8], output: usize) {
    let blocks = blocks.chunks_exact(Format::Q4K.block_bytes());
    for (block, panel) in blocks.zip(panel.chunks_exact_mut(q4_k::BLOCK_BYTES)) {
        panel[2 * output..][..2].copy_from_slice(&block[..2]);
        panel[2 * PANEL + 2 * output..][..2].copy_from_slice(&block[2..4]);
        let groups = panel[q4_k::FIRST..].chunks_exact_mut(q4_k::GROUP_BYTES);
        for (g, (group, (scale, min))) in groups.zip(unpack_scales(block)).enumerate() {
            (group[output], group[PANEL + output]) = (scale, min);
            let shared = &block[block.len() - 128 + g / 2 * GROUP..][..GROUP];
            for (i, q) in shared.iter().enumerate() {
                let (byte, shift) = q4_k::weight(i, output);
                group[byte] |= (q >> (4 * (g % 2)) & 15) << shift;
            }
        }
    }
}

/// Panels of `panel_len` elements each, in parallel: `fill(first row, rows, panel)` writes one.
fn pack<T: Element>(
    tensor: &Tensor,
    panel_len: usize,
    threads: &mut Threads,
    fill: impl Fn(usize, usize, &mut [T]) -> Result<()> + Sync,
) -> Result<Aligned<T>> {
    let outputs = tensor.shape[0];
    let count = outputs.div_ceil(PANEL);
    let mut panels = Aligned::zeros(count * panel_len, &tensor.name)?;
    let failure = std::sync::Mutex::new(None);
    let shared = SharedMut::new(&mut panels);
    threads.run(count, &|p| {
        // SAFETY: each task writes its own panel.
        let panel = unsafe { shared.slice(p * panel_len, panel_len) };
        if let Err(error) = fill(p * PANEL, PANEL.min(outputs - p * PANEL), panel) {
            failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
        }
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(panels), Err)
}
