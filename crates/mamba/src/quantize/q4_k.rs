//! q4_K: `d`, `d_min` (f16), eight scales and eight mins of 6 bits in 12 bytes, then 128 bytes: the weights of two
//! neighbouring groups of 32 share 32 bytes, the first in the lower four bits.

use super::{GROUP, read_f16, write_f16};

pub(super) const BLOCK: usize = 256;
pub(super) const BYTES: usize = 144;
const GROUPS: usize = BLOCK / GROUP;
const SCALES: usize = 4;
const QUANTS: usize = SCALES + 12;

/// Levels of a weight, and of a scale.
const LEVELS: f32 = 15.0;
const SCALE_LEVELS: f32 = 63.0;

/// The eight (scale, min) of a block.
#[must_use]
pub fn unpack_scales(block: &[u8]) -> [(u8, u8); 8] {
    let packed = &block[SCALES..QUANTS];
    std::array::from_fn(|j| {
        if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            let high = |byte: u8| byte >> 6 << 4;
            (packed[j + 4] & 15 | high(packed[j - 4]), packed[j + 4] >> 4 | high(packed[j]))
        }
    })
}

fn pack_scales(scales: &[(u8, u8); GROUPS], block: &mut [u8]) {
    let packed = &mut block[SCALES..QUANTS];
    for j in 0..4 {
        let ((scale, min), (scale4, min4)) = (scales[j], scales[j + 4]);
        packed[j] = scale | scale4 >> 4 << 6;
        packed[j + 4] = min | min4 >> 4 << 6;
        packed[j + 8] = scale4 & 15 | min4 << 4;
    }
}

pub(super) fn quantize(x: &[f32; BLOCK], bytes: &mut [u8]) {
    let (groups, _) = x.as_chunks::<GROUP>();
    let mut fits = [(0.0f32, 0.0f32); GROUPS];
    for (fit, group) in fits.iter_mut().zip(groups) {
        *fit = best_fit(group);
    }
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let d = write_f16(bytes, 0, largest(|fit| fit.0) / SCALE_LEVELS);
    let d_min = write_f16(bytes, 2, largest(|fit| fit.1) / SCALE_LEVELS);
    let level = |x: f32, d: f32| if d == 0.0 { 0 } else { (x / d).round().min(SCALE_LEVELS) as u8 };
    let scales = fits.map(|(scale, min)| (level(scale, d), level(min, d_min)));
    pack_scales(&scales, bytes);
    bytes[QUANTS..].fill(0);
    for (g, (group, (scale, min))) in groups.iter().zip(scales).enumerate() {
        let q = levels(group, d * f32::from(scale), d_min * f32::from(min));
        let shared = &mut bytes[QUANTS + g / 2 * GROUP..][..GROUP];
        for (byte, q) in shared.iter_mut().zip(q) {
            *byte |= (q as u8) << (4 * (g % 2));
        }
    }
}

/// The levels of 0 … 15 nearest to x in `scale · q − min`.
fn levels(x: &[f32; GROUP], scale: f32, min: f32) -> [f32; GROUP] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    x.map(|x| ((x + min) * inverse).round_ties_even().clamp(0.0, LEVELS))
}

/// The scale and min (both ≥ 0) of `x ≈ scale · q − min`, where large weights count for more. From a handful of
/// ranges somewhat narrower and wider than the weights' own, each rounded to levels and then fitted by least
/// squares, the one with the least error.
fn best_fit(x: &[f32; GROUP]) -> (f32, f32) {
    let lowest = x.iter().fold(0.0f32, |a, b| a.min(*b));
    let range = x.iter().fold(lowest, |a, b| a.max(*b)) - lowest;
    if range <= 0.0 {
        return (0.0, -lowest);
    }
    let spread = (x.iter().map(|x| x * x).sum::<f32>() / GROUP as f32).sqrt();
    let weight = x.map(|x| spread + x.abs());
    let mut best = (range / LEVELS, -lowest);
    let mut least = f32::INFINITY;
    for step in -10..=10 {
        let scale = range / (LEVELS + 0.1 * step as f32);
        let q = levels(x, scale, -lowest);
        let (scale, min) = least_squares(x, &weight, &q).unwrap_or((scale, -lowest));
        let q = levels(x, scale, min);
        let mut error = 0.0;
        for i in 0..GROUP {
            let off = scale * q[i] - min - x[i];
            error += weight[i] * off * off;
        }
        if error < least {
            (least, best) = (error, (scale, min));
        }
    }
    best
}

/// The scale and min that fit given levels best; `None` where the levels are all alike.
fn least_squares(x: &[f32; GROUP], weight: &[f32; GROUP], q: &[f32; GROUP]) -> Option<(f32, f32)> {
    let (mut w, mut wq, mut wqq, mut wx, mut wqx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for i in 0..GROUP {
        w += weight[i];
        wq += weight[i] * q[i];
        wqq += weight[i] * q[i] * q[i];
        wx += weight[i] * x[i];
        wqx += weight[i] * q[i] * x[i];
    }
    let determinant = w * wqq - wq * wq;
    if determinant <= 0.0 {
        return None;
    }
    let scale = (w * wqx - wx * wq) / determinant;
    let min = (wq * wqx - wqq * wx) / determinant;
    // A min below zero cannot be written: then through the origin.
    let (scale, min) = if min >= 0.0 { (scale, min) } else { (wqx / wqq, 0.0) };
    (scale > 0.0).then_some((scale, min))
}

pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    let (d, d_min) = (read_f16(bytes, 0), read_f16(bytes, 2));
    for (g, ((scale, min), out)) in unpack_scales(bytes).into_iter().zip(out.chunks_mut(GROUP)).enumerate() {
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let shared = &bytes[QUANTS + g / 2 * GROUP..];
        for (x, byte) in out.iter_mut().zip(shared) {
            *x = scale * f32::from(byte >> (4 * (g % 2)) & 15) - min;
        }
    }
}
