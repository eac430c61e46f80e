//! How products are cut: rows into register tiles, outputs and rows into tasks.

use super::packed::PANEL;
use crate::cpu::simd::Simd;
use crate::cpu::threads::Threads;

/// Something to do for register tiles of rows.
pub(super) trait Tiled {
    /// Rows `row .. row + ROWS`.
    ///
    /// # Safety
    /// The processor must have `S`, the rows must be there.
    unsafe fn tile<S: Simd, const ROWS: usize>(&self, row: usize);
}

/// Does all `rows`: in tiles of [`Simd::TILE_ROWS`], then smaller ones where those no longer fit.
///
/// # Safety
/// As [`Tiled::tile`].
#[inline(always)]
pub(super) unsafe fn over_rows<S: Simd>(rows: usize, tiled: &impl Tiled) {
    // SAFETY: the caller's conditions; rows stay in range.
    unsafe {
        let mut row = 0;
        while rows - row >= S::TILE_ROWS {
            match S::TILE_ROWS {
                12 => tiled.tile::<S, 12>(row),
                6 => tiled.tile::<S, 6>(row),
                _ => tiled.tile::<S, 3>(row),
            }
            row += S::TILE_ROWS;
        }
        while row < rows {
            let left = rows - row;
            row += if left >= 8 {
                tiled.tile::<S, 8>(row);
                8
            } else if left >= 4 {
                tiled.tile::<S, 4>(row);
                4
            } else if left >= 2 {
                tiled.tile::<S, 2>(row);
                2
            } else {
                tiled.tile::<S, 1>(row);
                1
            };
        }
    }
}

/// A part of a product, for one thread.
pub(super) struct Part {
    pub row: usize,
    pub rows: usize,
    /// The first panel.
    pub panel: usize,
    /// The first output, and how many.
    pub output: usize,
    pub outputs: usize,
}

/// Cuts a product by outputs and, where there are few, by rows (in multiples of `tile`, `least` at least): into enough
/// parts that uneven threads end together, each big enough to be worth handing out, and of a multiple of `streams`
/// panels where there are enough.
pub(super) fn in_parts(
    threads: &mut Threads,
    rows: usize,
    outputs: usize,
    tile: usize,
    least: usize,
    streams: usize,
    job: &(dyn Fn(Part) + Sync),
) {
    let wanted = if threads.count() == 1 { 1 } else { 4 * threads.count() };
    let panels = outputs.div_ceil(PANEL);
    let streams = if panels >= streams * threads.count() { streams } else { 1 };
    let group = panels.div_ceil(wanted).next_multiple_of(streams);
    let groups = panels.div_ceil(group);
    let row_blocks = wanted.div_ceil(groups).min(rows.div_ceil(least)).max(1);
    let row_block = rows.div_ceil(row_blocks).next_multiple_of(tile);
    threads.run(groups * rows.div_ceil(row_block), &|task| {
        let (row, panel) = (task / groups * row_block, task % groups * group);
        let output = panel * PANEL;
        let outputs = (group * PANEL).min(outputs - output);
        job(Part { row, rows: row_block.min(rows - row), panel, output, outputs });
    });
}
