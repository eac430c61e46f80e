//! Products of matrices that change from call to call, for training: both factors are packed each time, from either
//! orientation, and multiplied as [`super::float`] does. Sums run input by input within blocks of [`BLOCK`], then block by
//! block, whatever the number of threads.

use super::packed::PANEL;
use super::tiles::{Tiled, in_parts, over_rows};
use super::{Factor, MatMul};
use crate::cpu::memory::{self, Aligned};
use crate::cpu::simd::{Kernel, Level, Simd};
use crate::cpu::threads::Threads;
use crate::cpu::{ConstMatrix, MutMatrix, Shareable, SharedMut};
use crate::error::Result;

/// Inputs summed in registers before they are added to the output: 256 · 32 · 4 bytes of a panel fit the first-level
/// cache.
const BLOCK: usize = 256;

/// Room for packed factors, kept from call to call.
#[derive(Default)]
pub(crate) struct Scratch {
    tiles: memory::Scratch<f32>,
    panels: memory::Scratch<f32>,
}

/// Some rows and columns of a product.
struct Product {
    /// `[row / tile][k][row % tile]`
    tiles: *const f32,
    /// `[col / 32][k][col % 32]`
    panels: *const f32,
    k: usize,
    rows: usize,
    cols: usize,
    scale: f32,
    add: bool,
    out: *mut f32,
    stride: usize,
}

/// See [`MatMul`].
///
/// # Errors
/// `OUT_OF_MEMORY` for scratch.
pub(crate) fn matmul(
    threads: &mut Threads,
    level: Level,
    scratch: &mut Scratch,
    op: MatMul<Aligned<f32>>,
) -> Result<()> {
    let MatMul { a, b, scale, add, out } = op;
    let (rows, k, cols) = (a.rows(), a.cols(), b.cols());
    assert_eq!((b.rows(), out.rows, out.cols), (k, rows, cols), "shapes of a product");
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let tile = level.tile_rows();
    let tiles =
        pack(threads, scratch.tiles.reserve(rows.next_multiple_of(tile) * k)?, a, rows, k, tile, false);
    let panels =
        pack(threads, scratch.panels.reserve(cols.next_multiple_of(PANEL) * k)?, b, cols, k, PANEL, true);
    let out = Shareable(MutMatrix::new(out, rows, cols));
    in_parts(threads, rows, cols, tile, 4 * tile, 1, &|part| {
        let out = &out;
        // SAFETY: the level was detected; the pointers cover the part's rows and columns; parts are disjoint.
        unsafe {
            level.run(Product {
                tiles: tiles[part.row * k..].as_ptr(),
                panels: panels[part.output * k..].as_ptr(),
                k,
                rows: part.rows,
                cols: part.outputs,
                scale,
                add,
                out: out.0.at(part.row, part.output),
                stride: out.0.stride(),
            });
        }
    });
    Ok(())
}

/// A factor in groups of `width` rows (or columns, where `by_columns`): `[group][k][index in the group]`. What is missing
/// in the last group is left as it is; nobody looks at its results.
fn pack<'a>(
    threads: &mut Threads,
    packed: &'a mut [f32],
    factor: Factor<Aligned<f32>>,
    count: usize,
    k: usize,
    width: usize,
    by_columns: bool,
) -> &'a [f32] {
    let view = factor.view;
    // Whether the elements of a group lie next to each other in memory.
    let side_by_side = by_columns != factor.transposed;
    let (rows, cols) = if side_by_side { (k, count) } else { (count, k) };
    let matrix = Shareable(ConstMatrix::new(&view, rows, cols));
    let shared = SharedMut::new(packed);
    threads.run(count.div_ceil(width), &|group| {
        let matrix = &matrix;
        let n = width.min(count - group * width);
        // SAFETY: each task writes its own group; rows and columns are the view's.
        unsafe {
            let packed = shared.slice(group * width * k, width * k);
            if side_by_side {
                for (i, packed) in packed.chunks_exact_mut(width).enumerate() {
                    packed[..n].copy_from_slice(std::slice::from_raw_parts(matrix.0.at(i, group * width), n));
                }
            } else {
                for r in 0..n {
                    let row = std::slice::from_raw_parts(matrix.0.at(group * width + r, 0), k);
                    for (packed, x) in packed.chunks_exact_mut(width).zip(row) {
                        packed[r] = *x;
                    }
                }
            }
        }
    });
    packed
}

impl Kernel for Product {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` made the pointers.
        unsafe {
            for from in (0..self.k.max(1)).step_by(BLOCK) {
                for panel in 0..self.cols.div_ceil(PANEL) {
                    over_rows::<S>(self.rows, &Block { product: &self, panel, from });
                }
            }
        }
    }
}

/// One block of one panel.
struct Block<'a> {
    product: &'a Product,
    panel: usize,
    from: usize,
}

impl Tiled for Block<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(&self, row: usize) {
        // SAFETY: passed on.
        unsafe {
            match S::TILE_VECTORS {
                1 => self.tile_of::<S, ROWS, 1>(row),
                _ => self.tile_of::<S, ROWS, 2>(row),
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    unsafe fn tile_of<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, row: usize) {
        let Product { tiles, panels, k, cols, scale, add, out, stride, .. } = *self.product;
        let inputs = BLOCK.min(k - self.from);
        // SAFETY: `row + ROWS` rows lie in one tile; columns beyond the last are masked on their way out.
        unsafe {
            let tile = row / S::TILE_ROWS * S::TILE_ROWS;
            let x = tiles.add(tile * k + self.from * S::TILE_ROWS + row - tile);
            let w = panels.add((self.panel * k + self.from) * PANEL);
            for half in (0..PANEL).step_by(VECTORS * S::LANES) {
                let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
                for i in 0..inputs {
                    let mut weights = [S::splat(0.0); VECTORS];
                    for (v, weight) in weights.iter_mut().enumerate() {
                        *weight = S::load(w.add(i * PANEL + half + v * S::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = S::splat(*x.add(i * S::TILE_ROWS + r));
                        for (weight, sum) in weights.iter().zip(sums) {
                            *sum = S::mul_add(x, *weight, *sum);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        let col = self.panel * PANEL + half + v * S::LANES;
                        if col >= cols {
                            continue;
                        }
                        let n = S::LANES.min(cols - col);
                        let out = out.add((row + r) * stride + col);
                        let product = S::mul(S::splat(scale), *sum);
                        let keep = add || self.from > 0;
                        let sum = if keep { S::add(S::load_first(out, n), product) } else { product };
                        S::store_first(out, sum, n);
                    }
                }
            }
        }
    }
}
