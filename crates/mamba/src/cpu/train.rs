//! The CPU as a [`TrainBackend`]: everything f32, and the same bits whatever the number of threads.

use super::memory::Aligned;
use super::{ConstMatrix, Cpu, MutMatrix, Plan, Shareable};
use crate::backend::{View, ViewMut};
use crate::error::Result;
use crate::ops;
use crate::ops::adamw::AdamW;
use crate::ops::causal_conv1d::ConvBackward;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::linear::MatMul;
use crate::ops::norm::{NormBackward, NormForward};
use crate::ops::selective_scan::{ScanBackward, SelectiveScan};
use crate::train::TrainBackend;

/// Rows of a task of the simple operations.
const ROWS: usize = 64;

impl TrainBackend for Cpu {
    fn is_f32(&self) -> bool {
        true
    }

    fn logits_elements(&self) -> usize {
        8 << 20
    }

    fn flat(&mut self, lens: &[usize], what: &str) -> Result<Vec<Aligned<f32>>> {
        lens.iter().map(|len| Aligned::zeros(*len, what)).collect()
    }

    fn flat_copies(&mut self, lens: &[usize], what: &str) -> Result<Vec<Aligned<f32>>> {
        self.flat(lens, what)
    }

    fn zero(&mut self, flat: &mut [Aligned<f32>]) -> Result<()> {
        flat.iter_mut().for_each(|buffer| buffer.fill(0.0));
        Ok(())
    }

    fn add(&mut self, to: &mut [Aligned<f32>], from: &[Aligned<f32>]) -> Result<()> {
        for (to, from) in to.iter_mut().zip(from) {
            to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to += from);
        }
        Ok(())
    }

    fn copy(&mut self, from: View<Aligned<f32>>, to: ViewMut<Aligned<f32>>, add: bool) -> Result<()> {
        let (rows, cols) = (from.rows, from.cols);
        assert_eq!((to.rows, to.cols), (rows, cols), "shapes of a copy");
        let from = Shareable(ConstMatrix::new(&from, rows, cols));
        let to = Shareable(MutMatrix::new(to, rows, cols));
        self.threads.run(rows.div_ceil(ROWS), &|task| {
            let (from, to) = (&from, &to);
            for row in task * ROWS..rows.min((task + 1) * ROWS) {
                // SAFETY: tasks have disjoint rows, in range by the checks of the matrices.
                let (from, to) = unsafe {
                    let from = std::slice::from_raw_parts(from.0.at(row, 0), cols);
                    (from, std::slice::from_raw_parts_mut(to.0.at(row, 0), cols))
                };
                match add {
                    true => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
                    false => to.copy_from_slice(from),
                }
            }
        });
        Ok(())
    }

    fn round(&mut self, values: &Aligned<f32>, copy: &mut Aligned<f32>) -> Result<()> {
        copy.copy_from_slice(values);
        Ok(())
    }

    fn zero_view(&mut self, to: ViewMut<Aligned<f32>>) -> Result<()> {
        let (rows, cols) = (to.rows, to.cols);
        let to = MutMatrix::new(to, rows, cols);
        for row in 0..rows {
            // SAFETY: in range by the check of the matrix.
            unsafe { std::slice::from_raw_parts_mut(to.at(row, 0), cols) }.fill(0.0);
        }
        Ok(())
    }

    fn negative_exp(&mut self, a_log: &Aligned<f32>, a: &mut Aligned<f32>) -> Result<()> {
        a.iter_mut().zip(a_log.iter()).for_each(|(a, a_log)| *a = -a_log.exp());
        Ok(())
    }

    fn multiply(&mut self, x: &Aligned<f32>, out: &mut Aligned<f32>) -> Result<()> {
        out.iter_mut().zip(x.iter()).for_each(|(out, x)| *out *= x);
        Ok(())
    }

    fn matmul(&mut self, op: MatMul<Aligned<f32>>) -> Result<()> {
        ops::linear::matmul::matmul(&mut self.threads, self.level, &mut self.matmul, op)
    }

    fn add_bias(&mut self, bias: &Aligned<f32>, x: ViewMut<Aligned<f32>>) -> Result<()> {
        let (rows, cols) = (x.rows, x.cols);
        let x = MutMatrix::new(x, rows, cols);
        for row in 0..rows {
            // SAFETY: in range by the check of the matrix.
            let x = unsafe { std::slice::from_raw_parts_mut(x.at(row, 0), cols) };
            x.iter_mut().zip(bias.iter()).for_each(|(x, bias)| *x += bias);
        }
        Ok(())
    }

    fn sum_rows(&mut self, x: View<Aligned<f32>>, out: &mut Aligned<f32>) -> Result<()> {
        let (rows, cols) = (x.rows, x.cols);
        let x = ConstMatrix::new(&x, rows, cols);
        let out = &mut out[..cols];
        out.fill(0.0);
        for row in 0..rows {
            // SAFETY: in range by the check of the matrix.
            let x = unsafe { std::slice::from_raw_parts(x.at(row, 0), cols) };
            out.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }

    fn lookup(&mut self, plan: &Plan, table: View<Aligned<f32>>, out: ViewMut<Aligned<f32>>) -> Result<()> {
        let (ids, cols) = (&plan.0.ids, table.cols);
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "an id beyond the {} rows", table.rows);
        let table = ConstMatrix::new(&table, table.rows, cols);
        let out = MutMatrix::new(out, ids.len(), cols);
        for (t, id) in ids.iter().enumerate() {
            // SAFETY: both rows are in range by the checks above.
            unsafe { std::ptr::copy_nonoverlapping(table.at(*id as usize, 0), out.at(t, 0), cols) };
        }
        Ok(())
    }

    fn lookup_backward(
        &mut self,
        ids: &[u32],
        out_grad: View<Aligned<f32>>,
        table_grad: ViewMut<Aligned<f32>>,
    ) -> Result<()> {
        let (rows, cols) = (table_grad.rows, table_grad.cols);
        assert!(ids.iter().all(|id| (*id as usize) < rows), "an id beyond the {rows} rows");
        let out_grad = ConstMatrix::new(&out_grad, ids.len(), cols);
        let table_grad = MutMatrix::new(table_grad, rows, cols);
        for (t, id) in ids.iter().enumerate() {
            // SAFETY: both rows are in range by the checks above.
            let (from, to) = unsafe {
                let from = std::slice::from_raw_parts(out_grad.at(t, 0), cols);
                (from, std::slice::from_raw_parts_mut(table_grad.at(*id as usize, 0), cols))
            };
            to.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }

    fn norm_forward(&mut self, op: NormForward<Aligned<f32>>) -> Result<()> {
        ops::norm::cpu_train::forward(&mut self.threads, self.level, op);
        Ok(())
    }

    fn norm_backward(&mut self, op: NormBackward<Aligned<f32>>) -> Result<()> {
        ops::norm::cpu_train::backward(&mut self.threads, self.level, op)
    }

    fn conv_backward(&mut self, plan: &Plan, op: ConvBackward<Aligned<f32>>) -> Result<()> {
        ops::causal_conv1d::cpu_backward::backward(&mut self.threads, self.level, &plan.0, op);
        Ok(())
    }

    fn scan_forward(
        &mut self,
        plan: &Plan,
        op: SelectiveScan<Aligned<f32>>,
        boundary: &mut Aligned<f32>,
    ) -> Result<()> {
        let (threads, level) = (&mut self.threads, self.level);
        ops::selective_scan::cpu::selective_scan(threads, level, &plan.0, op, Some(boundary))
    }

    fn scan_backward(&mut self, plan: &Plan, op: ScanBackward<Aligned<f32>>) -> Result<()> {
        ops::selective_scan::cpu_backward::backward(&mut self.threads, self.level, &plan.0, op)
    }

    fn cross_entropy(&mut self, op: CrossEntropy<Aligned<f32>>) -> Result<()> {
        ops::cross_entropy::cpu::cross_entropy(&mut self.threads, self.level, op);
        Ok(())
    }

    fn norm_of(&mut self, grads: &[Aligned<f32>], norm: &mut Aligned<f32>) -> Result<()> {
        norm[0] = ops::adamw::cpu::norm_of(&mut self.threads, grads);
        Ok(())
    }

    fn adamw(&mut self, op: AdamW<Aligned<f32>>) -> Result<()> {
        ops::adamw::cpu::adamw(&mut self.threads, self.level, op);
        Ok(())
    }

    fn memory_in_use(&self) -> Option<u64> {
        None
    }
}
