//! States that sequences carry from batch to batch, and their gradients; allocated when first needed. Slot `i` is that of
//! sequence `i`: per layer conv_state [d_conv − 1, d_inner], then ssm_state [d_state, d_inner].

use super::backend::TrainBackend;
use crate::backend::{StateView, View, ViewMut};
use crate::config::Config;
use crate::error::Result;

pub(super) struct States<B: TrainBackend> {
    conv: usize,
    layer: usize,
    elements: usize,
    slots: usize,
    buffers: Option<Buffers<B>>,
}

/// Each [slots, elements].
pub(super) struct Buffers<B: TrainBackend> {
    /// What sequences go on from; after a forward, what they ended with.
    pub last: B::Buffer,
    /// What the pending batch began with.
    pub initial: B::Buffer,
    /// What the backward computes on, again from the initial ones.
    pub again: B::Buffer,
    /// Gradient of the last states.
    pub last_grad: B::Buffer,
    /// Gradient of the initial ones.
    pub initial_grad: B::Buffer,
}

impl<B: TrainBackend> States<B> {
    pub fn new(config: &Config) -> Self {
        let conv = (config.d_conv - 1) * config.d_inner;
        let layer = conv + config.d_state * config.d_inner;
        Self { conv, layer, elements: config.n_layer * layer, slots: 0, buffers: None }
    }

    /// What room for so many sequences takes.
    pub fn bytes(&self, slots: usize) -> u64 {
        // Of each, `Buffers` has five.
        5 * 4 * self.elements as u64 * slots as u64
    }

    /// Of one sequence's whole state.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Makes room for so many sequences; what is there stays.
    pub fn reserve(&mut self, backend: &mut B, slots: usize) -> Result<()> {
        if slots <= self.slots {
            return Ok(());
        }
        let kept = self.read(backend)?;
        // Never both the old ones and the new ones at a time.
        (self.buffers, self.slots) = (None, 0);
        let mut buffer = || backend.alloc(slots * self.elements, "states of sequences");
        let buffers = Buffers {
            last: buffer()?,
            initial: buffer()?,
            again: buffer()?,
            last_grad: buffer()?,
            initial_grad: buffer()?,
        };
        (self.buffers, self.slots) = (Some(buffers), slots);
        self.write(backend, &kept)
    }

    /// All of them, if any sequence's state is kept.
    pub fn buffers(&mut self) -> Option<&mut Buffers<B>> {
        self.buffers.as_mut()
    }

    /// What sequences go on from.
    pub fn read(&self, backend: &mut B) -> Result<Vec<Vec<f32>>> {
        let Some(buffers) = &self.buffers else { return Ok(Vec::new()) };
        let mut states = vec![vec![0.0; self.elements]; self.slots];
        for (slot, state) in states.iter_mut().enumerate() {
            backend.read(&buffers.last, slot * self.elements, state)?;
        }
        Ok(states)
    }

    /// Sets what sequences go on from; room for them has to be there.
    pub fn write(&mut self, backend: &mut B, states: &[Vec<f32>]) -> Result<()> {
        if let Some(buffers) = &mut self.buffers {
            for (slot, state) in states.iter().enumerate() {
                backend.write(&mut buffers.last, slot * self.elements, state)?;
            }
        }
        Ok(())
    }

    /// Where a batch has left a state that is not finite, what its sequence began with; zeros where that was not `kept`
    /// from before (or is no better), and in slots of no sequence.
    pub fn mend(&mut self, backend: &mut B, kept: impl Fn(usize) -> bool) -> Result<()> {
        let Some(buffers) = &mut self.buffers else { return Ok(()) };
        let finite = |state: &[f32]| state.iter().all(|x| x.is_finite());
        let mut state = vec![0.0; self.elements];
        for slot in 0..self.slots {
            let at = slot * self.elements;
            backend.read(&buffers.last, at, &mut state)?;
            if finite(&state) {
                continue;
            }
            backend.read(&buffers.initial, at, &mut state)?;
            if !kept(slot) || !finite(&state) {
                state.fill(0.0);
            }
            backend.write(&mut buffers.last, at, &state)?;
        }
        Ok(())
    }

    /// The tensors' places in a slot.
    pub fn places(&self) -> Places {
        Places { conv: self.conv, layer: self.layer, elements: self.elements, slots: self.slots }
    }
}

/// Where a layer's tensors lie.
#[derive(Clone, Copy)]
pub(super) struct Places {
    conv: usize,
    layer: usize,
    pub elements: usize,
    pub slots: usize,
}

impl Places {
    /// conv_state of a layer.
    pub fn conv<'a, T>(&self, buffer: &'a mut T, layer: usize) -> StateView<'a, T> {
        StateView { buffer, offset: layer * self.layer, slot_stride: self.elements }
    }

    /// ssm_state of a layer.
    pub fn ssm<'a, T>(&self, buffer: &'a mut T, layer: usize) -> StateView<'a, T> {
        StateView { buffer, offset: layer * self.layer + self.conv, slot_stride: self.elements }
    }

    /// All slots.
    pub fn all<'a, T>(&self, buffer: &'a T) -> View<'a, T> {
        View::dense(buffer, self.slots, self.elements)
    }

    /// All slots, to be written.
    pub fn all_mut<'a, T>(&self, buffer: &'a mut T) -> ViewMut<'a, T> {
        ViewMut::dense(buffer, self.slots, self.elements)
    }

    /// One slot.
    pub fn slot<'a, T>(&self, buffer: &'a T, slot: usize) -> View<'a, T> {
        View { offset: slot * self.elements, ..View::dense(buffer, 1, self.elements) }
    }

    /// One slot, to be written.
    pub fn slot_mut<'a, T>(&self, buffer: &'a mut T, slot: usize) -> ViewMut<'a, T> {
        ViewMut { offset: slot * self.elements, ..ViewMut::dense(buffer, 1, self.elements) }
    }
}
