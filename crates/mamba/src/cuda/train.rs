//! The GPU as a [`TrainBackend`].

use mamba_kernels as kernels;
use mamba_kernels::optimizer::Step;
use mamba_kernels::{Buffer, Float};

use super::{Cuda, convert, failed, rows, rows_mut, states};
use crate::backend::{View, ViewMut};
use crate::config::NormKind;
use crate::error::{Error, Result};
use crate::ops::adamw::AdamW;
use crate::ops::causal_conv1d::ConvBackward;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::linear::MatMul;
use crate::ops::norm::{NormBackward, NormForward};
use crate::ops::selective_scan::{ScanBackward, SelectiveScan};
use crate::train::TrainBackend;

impl TrainBackend for Cuda {
    fn is_f32(&self) -> bool {
        self.float == Float::F32
    }

    fn logits_elements(&self) -> usize {
        1 << 28
    }

    fn flat(&mut self, lens: &[usize], what: &str) -> Result<Vec<Buffer>> {
        self.device.flat(lens, Float::F32).map_err(|error| convert(error, what))
    }

    fn flat_copies(&mut self, lens: &[usize], what: &str) -> Result<Vec<Buffer>> {
        if self.float == Float::F16 {
            // Its range is too small for gradients.
            return Err(Error::option("precision", "`f16`", "`bf16` or `f32`"));
        }
        self.device.flat(lens, self.float).map_err(|error| convert(error, what))
    }

    fn zero(&mut self, flat: &mut [Buffer]) -> Result<()> {
        self.device.zero(flat).map_err(failed)
    }

    fn add(&mut self, to: &mut [Buffer], from: &[Buffer]) -> Result<()> {
        kernels::elementwise::add(&self.device, to, from).map_err(failed)
    }

    fn copy(&mut self, from: View<Buffer>, to: ViewMut<Buffer>, add: bool) -> Result<()> {
        kernels::elementwise::convert(&self.device, rows(from), rows_mut(to), add).map_err(failed)
    }

    fn round(&mut self, values: &Buffer, copy: &mut Buffer) -> Result<()> {
        kernels::optimizer::rounded_copy(&self.device, values, copy).map_err(failed)
    }

    fn zero_view(&mut self, to: ViewMut<Buffer>) -> Result<()> {
        self.device.zero_rows(rows_mut(to)).map_err(failed)
    }

    fn negative_exp(&mut self, a_log: &Buffer, a: &mut Buffer) -> Result<()> {
        kernels::elementwise::negative_exp(&self.device, a_log, a).map_err(failed)
    }

    fn multiply(&mut self, x: &Buffer, out: &mut Buffer) -> Result<()> {
        kernels::elementwise::multiply(&self.device, x, out).map_err(failed)
    }

    fn matmul(&mut self, op: MatMul<Buffer>) -> Result<()> {
        let op = kernels::matmul::MatMul {
            a: rows(op.a.view),
            a_transposed: op.a.transposed,
            b: rows(op.b.view),
            b_transposed: op.b.transposed,
            scale: op.scale,
            add: op.add,
            out: rows_mut(op.out),
        };
        kernels::matmul::matmul(&self.device, op).map_err(failed)
    }

    fn add_bias(&mut self, bias: &Buffer, x: ViewMut<Buffer>) -> Result<()> {
        let bias = rows(View::dense(bias, 1, x.cols));
        kernels::elementwise::convert(&self.device, bias, rows_mut(x), true).map_err(failed)
    }

    fn sum_rows(&mut self, x: View<Buffer>, out: &mut Buffer) -> Result<()> {
        kernels::elementwise::sum_rows(&self.device, rows(x), out).map_err(failed)
    }

    fn lookup(&mut self, plan: &kernels::Batch, table: View<Buffer>, out: ViewMut<Buffer>) -> Result<()> {
        kernels::embedding::lookup(&self.device, plan, rows(table), rows_mut(out)).map_err(failed)
    }

    fn lookup_backward(
        &mut self,
        ids: &[u32],
        out_grad: View<Buffer>,
        table_grad: ViewMut<Buffer>,
    ) -> Result<()> {
        let (out_grad, table_grad) = (rows(out_grad), rows_mut(table_grad));
        kernels::embedding::backward(&self.device, ids, out_grad, table_grad).map_err(failed)
    }

    fn norm_forward(&mut self, op: NormForward<Buffer>) -> Result<()> {
        let op = kernels::norm::ForwardKeeping {
            layer: op.kind == NormKind::Layer,
            eps: op.eps,
            weight: op.weight,
            bias: op.bias,
            residual: rows(op.residual),
            delta: op.delta.map(|(delta, sum)| (rows(delta), rows_mut(sum))),
            out: rows_mut(op.out),
        };
        kernels::norm::forward_keeping(&self.device, op).map_err(failed)
    }

    fn norm_backward(&mut self, op: NormBackward<Buffer>) -> Result<()> {
        let op = kernels::norm::Backward {
            layer: op.kind == NormKind::Layer,
            eps: op.eps,
            weight: op.weight,
            residual: rows(op.sum),
            out_grad: rows(op.out_grad),
            residual_grad: rows_mut(op.residual_grad),
            last: op.last,
            delta_grad: op.delta_grad.map(rows_mut),
            weight_grad: op.weight_grad,
            bias_grad: op.bias_grad,
        };
        kernels::norm::backward(&self.device, op).map_err(failed)
    }

    fn conv_backward(&mut self, plan: &kernels::Batch, op: ConvBackward<Buffer>) -> Result<()> {
        let op = kernels::causal_conv1d::Backward {
            x: rows(op.x),
            weight: op.weight,
            bias: op.bias,
            d_conv: op.d_conv,
            initial_state: op.initial_state.map(states),
            out_grad: rows(op.out_grad),
            last_state_grad: op.last_state_grad.map(states),
            x_grad: rows_mut(op.x_grad),
            weight_grad: op.weight_grad,
            bias_grad: op.bias_grad,
            initial_state_grad: op.initial_state_grad.map(states),
        };
        kernels::causal_conv1d::backward(&self.device, plan, op).map_err(failed)
    }

    fn scan_forward(
        &mut self,
        plan: &kernels::Batch,
        op: SelectiveScan<Buffer>,
        boundary: &mut Buffer,
    ) -> Result<()> {
        let op = kernels::selective_scan::Forward {
            u: rows(op.u),
            delta: rows(op.delta),
            delta_bias: op.delta_bias,
            a: op.a,
            b: rows(op.b),
            c: rows(op.c),
            d: op.d,
            z: op.z.map(rows),
            state: op.state.map(states),
            out: rows_mut(op.out),
            boundary: Some(boundary),
            whole: self.deterministic,
        };
        kernels::selective_scan::forward(&self.device, plan, op).map_err(failed)
    }

    fn scan_backward(&mut self, plan: &kernels::Batch, op: ScanBackward<Buffer>) -> Result<()> {
        let op = kernels::selective_scan::Backward {
            u: rows(op.u),
            delta: rows(op.delta),
            delta_bias: Some(op.delta_bias),
            a: op.a,
            b: rows(op.b),
            c: rows(op.c),
            d: Some(op.d),
            z: Some(rows(op.z)),
            boundary: op.boundary,
            out_grad: rows(op.out_grad),
            last_state_grad: op.last_state_grad.map(states),
            u_grad: rows_mut(op.u_grad),
            delta_grad: rows_mut(op.delta_grad),
            z_grad: Some(rows_mut(op.z_grad)),
            b_grad: rows_mut(op.b_grad),
            c_grad: rows_mut(op.c_grad),
            a_grad: op.a_grad,
            d_grad: Some(op.d_grad),
            delta_bias_grad: Some(op.delta_bias_grad),
            initial_state_grad: op.initial_state_grad.map(states),
        };
        kernels::selective_scan::backward(&self.device, plan, op).map_err(failed)
    }

    fn cross_entropy(&mut self, op: CrossEntropy<Buffer>) -> Result<()> {
        let CrossEntropy { logits, targets, z_loss, scale, losses } = op;
        let logits = rows_mut(logits);
        match scale {
            Some(scale) => {
                kernels::cross_entropy::forward_backward(&self.device, logits, targets, scale, z_loss, losses)
            }
            None => kernels::cross_entropy::forward(&self.device, logits.view(), targets, losses),
        }
        .map_err(failed)
    }

    fn norm_of(&mut self, grads: &[Buffer], norm: &mut Buffer) -> Result<()> {
        kernels::optimizer::norm(&self.device, grads, norm).map_err(failed)
    }

    fn adamw(&mut self, op: AdamW<Buffer>) -> Result<()> {
        let AdamW { params, copies, grads, m, v, norm, clip, decayed, rates } = op;
        let factors = rates.factors();
        let step = Step {
            params,
            copies,
            gradients: grads,
            m,
            v,
            norm,
            decayed,
            clip,
            step_size: factors.step_size,
            root_scale: factors.root_scale,
            keep: factors.keep,
            betas: [rates.beta1, rates.beta2],
            eps: rates.eps as f32,
        };
        kernels::optimizer::adamw(&self.device, step).map_err(failed)
    }

    fn memory_in_use(&self) -> Option<u64> {
        let (free, all) = self.device.memory().ok()?;
        Some((all - free) as u64)
    }
}
