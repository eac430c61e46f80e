//! Weights as the CPU computes with them: cut into panels of 32 outputs, in their own type.

use crate::checkpoint::Tensor;
use crate::cpu::SharedMut;
use crate::cpu::memory::{Aligned, Element};
use crate::cpu::threads::Threads;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Outputs in a panel.
pub(super) const PANEL: usize = 32;

/// The panels. Where one input's 32 weights lie:
/// - f32, f16: `[panel][input][output]`
/// - bf16: `[panel][input / 2][output][input % 2]`, inputs padded with zeros to a multiple of 32: the pairs that
///   the tile unit multiplies, and that widen with one shift and one mask
#[derive(Debug)]
pub(super) enum Panels {
    F32(Aligned<f32>),
    BF16(Aligned<u16>),
    F16(Aligned<u16>),
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
        let padded_inputs = match dtype {
            DType::BF16 => inputs.next_multiple_of(32),
            _ => inputs,
        };
        let elements = outputs.div_ceil(PANEL) * PANEL * padded_inputs;
        let plain = |input: usize, output: usize| input * PANEL + output;
        let panels = match dtype {
            DType::F32 => {
                let mut panels = Aligned::zeros(elements, &tensor.name)?;
                pack(tensor, padded_inputs, &mut panels, threads, plain, |x| x)?;
                Panels::F32(panels)
            }
            DType::BF16 => {
                let mut panels = Aligned::zeros(elements, &tensor.name)?;
                pack(tensor, padded_inputs, &mut panels, threads, paired, |x| {
                    half::bf16::from_f32(x).to_bits()
                })?;
                Panels::BF16(panels)
            }
            DType::F16 => {
                let mut panels = Aligned::zeros(elements, &tensor.name)?;
                pack(tensor, padded_inputs, &mut panels, threads, plain, |x| {
                    half::f16::from_f32(x).to_bits()
                })?;
                Panels::F16(panels)
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
        }) as u64
    }

    /// Row `row` of the weight, widened (the embedding of token `row`).
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.outputs && out.len() == self.inputs, "row {row} of {}", self.outputs);
        let (panel, output) = (row / PANEL * PANEL * self.padded_inputs, row % PANEL);
        let out = out.iter_mut().enumerate();
        match &self.panels {
            Panels::F32(p) => out.for_each(|(i, x)| *x = p[panel + i * PANEL + output]),
            Panels::BF16(p) => {
                out.for_each(|(i, x)| *x = half::bf16::from_bits(p[panel + paired(i, output)]).to_f32());
            }
            Panels::F16(p) => {
                out.for_each(|(i, x)| *x = half::f16::from_bits(p[panel + i * PANEL + output]).to_f32());
            }
        }
    }
}

/// Where a bf16 weight lies in its panel.
fn paired(input: usize, output: usize) -> usize {
    input / 2 * 2 * PANEL + output * 2 + input % 2
}

fn pack<T: Element>(
    tensor: &Tensor,
    padded_inputs: usize,
    panels: &mut [T],
    threads: &mut Threads,
    place: impl Fn(usize, usize) -> usize + Sync,
    convert: impl Fn(f32) -> T + Sync,
) -> Result<()> {
    let (outputs, inputs) = (tensor.shape[0], tensor.shape[1]);
    let panel_len = PANEL * padded_inputs;
    let panels = SharedMut::new(panels);
    let failure = std::sync::Mutex::new(None);
    threads.run(outputs.div_ceil(PANEL), &|p| {
        let rows = PANEL.min(outputs - p * PANEL);
        let mut slab = vec![0.0; rows * inputs];
        if let Err(error) = tensor.read_f32(p * PANEL * inputs, &mut slab) {
            failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            return;
        }
        // SAFETY: each task writes its own panel.
        let panel = unsafe { panels.slice(p * panel_len, panel_len) };
        for (output, row) in slab.chunks_exact(inputs).enumerate() {
            for (input, x) in row.iter().enumerate() {
                panel[place(input, output)] = convert(*x);
            }
        }
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}
