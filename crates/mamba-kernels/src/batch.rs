//! A packed batch on the device, and other small lists of integers that a launch needs.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::buffer::Ints;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::selective_scan::Cut;

/// Buffers of integers that nobody uses now. One that is given back may be overwritten at once: the stream runs the
/// copy after the kernels that read it.
pub(crate) type Spare = Arc<Mutex<Vec<Ints>>>;

/// A list of integers on the device; its memory is used again when it is dropped.
pub(crate) struct List {
    ints: Option<Ints>,
    spare: Spare,
}

impl Deref for List {
    type Target = Ints;

    fn deref(&self) -> &Ints {
        self.ints.as_ref().expect("taken in drop alone")
    }
}

impl Drop for List {
    fn drop(&mut self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.extend(self.ints.take());
    }
}

impl Device {
    /// Uploads integers. Allocates only while lists grow.
    pub(crate) fn list(&self, values: &[i32]) -> Result<List> {
        let spare = self.spare();
        let fitting = {
            let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
            let at = spare.iter().position(|ints| ints.len() >= values.len());
            at.map(|at| spare.swap_remove(at))
        };
        let mut ints = match fitting {
            Some(ints) => ints,
            None => self.ints(values.len().next_power_of_two().max(4096))?,
        };
        self.write_ints(&mut ints, values)?;
        Ok(List { ints: Some(ints), spare: spare.clone() })
    }

    /// Puts a packed batch on the device: `ids` of all sequences end to end, sequence `i` being
    /// `cu_seqlens[i] .. cu_seqlens[i + 1]`, its state in slot `slots[i]`, begun at zero where `fresh[i]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for 2³¹ tokens or more; [`Error::OutOfMemory`], [`Error::Lost`].
    ///
    /// # Panics
    /// If lengths do not fit one another, or two sequences share a slot.
    pub fn batch(&self, ids: &[u32], cu_seqlens: &[usize], slots: &[usize], fresh: &[bool]) -> Result<Batch> {
        assert!(cu_seqlens.first() == Some(&0) && cu_seqlens.last() == Some(&ids.len()), "{cu_seqlens:?}");
        assert!(cu_seqlens.is_sorted(), "{cu_seqlens:?}");
        assert!(slots.len() + 1 == cu_seqlens.len() && fresh.len() == slots.len(), "{slots:?} {fresh:?}");
        let mut distinct = slots.to_vec();
        distinct.sort_unstable();
        assert!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "a slot is used twice: {slots:?}");
        Error::check(
            "the number of tokens of a batch",
            ids.len(),
            0..=i32::MAX as usize,
            "below 2147483648",
        )?;
        let mut values: Vec<i32> = Vec::with_capacity(ids.len() + 3 * cu_seqlens.len());
        values.extend(cu_seqlens.iter().map(|n| *n as i32));
        values.extend(slots.iter().map(|slot| *slot as i32));
        values.extend(fresh.iter().map(|fresh| i32::from(*fresh)));
        values.extend(ids.iter().map(|id| *id as i32));
        Ok(Batch {
            cu_seqlens: cu_seqlens.to_vec(),
            slots: slots.to_vec(),
            fresh: fresh.to_vec(),
            last_slot: distinct.last().copied().unwrap_or(0),
            largest_id: ids.iter().copied().enumerate().max_by_key(|(_, id)| *id),
            places: places(cu_seqlens.len(), slots.len()),
            adapters: None,
            list: Held::List(self.list(&values)?),
            cut: RefCell::default(),
        })
    }
}

/// Whose memory a batch lies in.
enum Held {
    List(List),
    Table(Arc<Ints>),
}

/// Where cu_seqlens, slots, fresh and ids begin, one after the other.
fn places(cu_seqlens: usize, sequences: usize) -> [usize; 4] {
    [0, cu_seqlens, cu_seqlens + sequences, cu_seqlens + 2 * sequences]
}

/// A packed batch on the device.
pub struct Batch {
    pub(crate) cu_seqlens: Vec<usize>,
    pub(crate) slots: Vec<usize>,
    pub(crate) fresh: Vec<bool>,
    pub(crate) last_slot: usize,
    /// The largest id and where it is among them. `None` where there is none, or in a table, into which only the device
    /// writes.
    largest_id: Option<(usize, u32)>,
    /// cu_seqlens, slots, fresh, ids.
    list: Held,
    /// Where each of the four begins in it.
    places: [usize; 4],
    /// Where each row's adapter begins in it, in a table.
    adapters: Option<usize>,
    /// How the last scan was cut: the same for every layer of a model.
    pub(crate) cut: RefCell<Option<Arc<Cut>>>,
}

impl Batch {
    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.slots.len()
    }

    /// Number of tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.cu_seqlens[self.sequences()]
    }

    /// Whether every sequence has one token: a decode step.
    #[must_use]
    pub fn is_step(&self) -> bool {
        self.cu_seqlens.windows(2).all(|pair| pair[1] - pair[0] == 1)
    }

    /// The first `rows` of a table of `table_rows` sequences of one token each, which lies as a batch does, adapters behind
    /// it; its slots are `last_slot` at most.
    pub(crate) fn in_table(table: &Arc<Ints>, table_rows: usize, rows: usize, last_slot: usize) -> Self {
        Self {
            cu_seqlens: (0..=rows).collect(),
            slots: vec![last_slot; rows],
            fresh: vec![false; rows],
            last_slot,
            largest_id: None,
            list: Held::Table(table.clone()),
            places: places(table_rows + 1, table_rows),
            adapters: Some(4 * table_rows + 1),
            cut: RefCell::default(),
        }
    }

    fn pointer(&self, at: usize) -> u64 {
        let ints: &Ints = match &self.list {
            Held::List(list) => list,
            Held::Table(table) => table,
        };
        ints.pointer(at)
    }

    fn place(&self, list: usize) -> u64 {
        self.pointer(self.places[list])
    }

    pub(crate) fn cu_seqlens(&self) -> u64 {
        self.place(0)
    }

    pub(crate) fn slots(&self) -> u64 {
        self.place(1)
    }

    pub(crate) fn fresh(&self) -> u64 {
        self.place(2)
    }

    /// Each row's adapter, −1 where it has none.
    pub(crate) fn adapters(&self) -> u64 {
        self.pointer(self.adapters.expect("adapters are a decode table's"))
    }

    /// The ids, for a table of so many rows.
    pub(crate) fn ids(&self, rows: usize) -> Result<u64> {
        match self.largest_id {
            Some((position, id)) if id as usize >= rows => Err(Error::TokenOutOfRange { id, position, rows }),
            _ => Ok(self.place(3)),
        }
    }
}
