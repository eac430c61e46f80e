//! The flat buffers: values, gradients and moments of all parameters, in the order of [`Layout`].

use super::backend::TrainBackend;
use super::layout::Layout;
use crate::backend::{View, ViewMut};
use crate::error::Result;
use crate::ops::adamw::{AdamW, Rates};

/// All parameters and what belongs to them.
pub(super) struct Parameters<B: TrainBackend> {
    /// f32.
    pub values: Vec<B::Buffer>,
    /// The matrices in the activations' type, trained ones first; empty where that is f32. Trained ones are rounded by
    /// chance ([`TrainBackend::round`]), so that small steps count; frozen ones to the nearest, as at inference.
    copies: Vec<B::Buffer>,
    /// Of the trained ones.
    pub gradients: Vec<B::Buffer>,
    first_moments: Vec<B::Buffer>,
    second_moments: Vec<B::Buffer>,
    /// Gradients of what is no matrix, of one batch: kernels overwrite them. Trained ones first.
    pub batch_gradients: Vec<B::Buffer>,
    /// A [d_state, d_inner] of each layer.
    pub a: Vec<B::Buffer>,
    norm: B::Buffer,
    lens: Vec<usize>,
    trained: usize,
    trained_matrices: usize,
}

impl<B: TrainBackend> Parameters<B> {
    pub fn new(backend: &mut B, layout: &Layout) -> Result<Self> {
        let lens = layout.lens();
        let trained = layout.trained;
        let (matrices, others): (Vec<usize>, Vec<usize>) =
            (0..lens.len()).partition(|index| layout.is_matrix(*index));
        let of = |indices: &[usize]| indices.iter().map(|index| lens[*index]).collect::<Vec<_>>();
        let a: Vec<usize> = layout.layers.iter().map(|layer| lens[layer.a_log]).collect();
        Ok(Self {
            values: backend.flat(&lens, "parameters")?,
            copies: match backend.is_f32() {
                true => Vec::new(),
                false => backend.flat_copies(&of(&matrices), "16-bit parameters")?,
            },
            gradients: backend.flat(&lens[..trained], "gradients")?,
            first_moments: backend.flat(&lens[..trained], "first moments")?,
            second_moments: backend.flat(&lens[..trained], "second moments")?,
            batch_gradients: backend.flat(&of(&others), "gradients of vectors")?,
            a: backend.flat(&a, "A")?,
            norm: backend.alloc(1, "a norm")?,
            trained,
            lens,
            trained_matrices: matrices.iter().filter(|index| **index < trained).count(),
        })
    }

    /// Whether a parameter has a gradient.
    pub fn is_trained(&self, index: usize) -> bool {
        index < self.trained
    }

    /// A matrix in the type that it is multiplied in.
    pub fn matrix(&self, index: usize) -> &B::Buffer {
        match self.copies.is_empty() {
            true => &self.values[index],
            false => &self.copies[self.copy(index)],
        }
    }

    /// Elements of a parameter.
    pub fn len(&self, index: usize) -> usize {
        self.lens[index]
    }

    fn copy(&self, index: usize) -> usize {
        if index < self.trained { index } else { self.trained_matrices + index - self.trained }
    }

    /// Where the gradient of a parameter that is no matrix lies in `batch_gradients`.
    pub fn batch_gradient(&self, index: usize) -> usize {
        let matrices = self.trained_matrices;
        if index < self.trained {
            return index - matrices;
        }
        // Of the frozen ones matrices come first, too.
        let frozen_matrices = self.values.len() - self.batch_gradients.len() - matrices;
        index - matrices - frozen_matrices
    }

    /// Adds a batch's gradients of what is no matrix to the others.
    pub fn add_batch_gradients(&mut self, backend: &mut B) -> Result<()> {
        let others = &mut self.gradients[self.trained_matrices..];
        let count = others.len();
        backend.add(others, &self.batch_gradients[..count])
    }

    pub fn zero_gradients(&mut self, backend: &mut B) -> Result<()> {
        backend.zero(&mut self.gradients)
    }

    /// Clips and steps; returns the norm before clipping.
    pub fn update(&mut self, backend: &mut B, layout: &Layout, clip: f32, rates: Rates) -> Result<f32> {
        backend.norm_of(&self.gradients, &mut self.norm)?;
        let copies = if self.copies.is_empty() { 0 } else { self.trained_matrices };
        backend.adamw(AdamW {
            params: &mut self.values[..self.trained],
            copies: &mut self.copies[..copies],
            grads: &self.gradients,
            m: &mut self.first_moments,
            v: &mut self.second_moments,
            norm: &self.norm,
            clip,
            decayed: layout.decayed,
            rates,
        })?;
        let mut norm = [0.0];
        backend.read(&self.norm, 0, &mut norm)?;
        Ok(norm[0])
    }

    /// Computes what is derived from the values: A.
    pub fn prepare(&mut self, backend: &mut B, layout: &Layout) -> Result<()> {
        for (a, layer) in self.a.iter_mut().zip(&layout.layers) {
            backend.negative_exp(&self.values[layer.a_log], a)?;
        }
        Ok(())
    }

    pub fn read(&self, backend: &mut B, index: usize) -> Result<Vec<f32>> {
        self.read_of(backend, &self.values, index)
    }

    pub fn read_gradient(&self, backend: &mut B, index: usize) -> Result<Vec<f32>> {
        self.read_of(backend, &self.gradients, index)
    }

    pub fn read_moments(&self, backend: &mut B, index: usize) -> Result<[Vec<f32>; 2]> {
        let first = self.read_of(backend, &self.first_moments, index)?;
        Ok([first, self.read_of(backend, &self.second_moments, index)?])
    }

    fn read_of(&self, backend: &mut B, group: &[B::Buffer], index: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.lens[index]];
        backend.read(&group[index], 0, &mut values)?;
        Ok(values)
    }

    pub fn write_gradient(&mut self, backend: &mut B, index: usize, values: &[f32]) -> Result<()> {
        backend.write(&mut self.gradients[index], 0, values)
    }

    pub fn write_moments(&mut self, backend: &mut B, index: usize, [m, v]: [&[f32]; 2]) -> Result<()> {
        backend.write(&mut self.first_moments[index], 0, m)?;
        backend.write(&mut self.second_moments[index], 0, v)
    }

    /// Writes values in the buffers' order; [`Parameters::prepare`] has to follow.
    pub fn write(&mut self, backend: &mut B, index: usize, values: &[f32]) -> Result<()> {
        backend.write(&mut self.values[index], 0, values)?;
        let is_matrix = !self.copies.is_empty() && self.is_matrix(index);
        if !is_matrix {
            return Ok(());
        }
        let (copy, is_trained) = (self.copy(index), self.is_trained(index));
        let (from, to) = (&self.values[index], &mut self.copies[copy]);
        if is_trained {
            return backend.round(from, to);
        }
        backend.copy(View::dense(from, 1, values.len()), ViewMut::dense(to, 1, values.len()), false)
    }

    fn is_matrix(&self, index: usize) -> bool {
        let frozen = self.copies.len() - self.trained_matrices;
        index < self.trained_matrices || (self.trained..self.trained + frozen).contains(&index)
    }
}
