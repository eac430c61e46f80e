//! q8_0: `d` (f16), then 32 signed bytes.

use super::{GROUP, read_f16, write_f16};

pub(super) const BYTES: usize = 2 + GROUP;

pub(super) fn quantize(x: &[f32; GROUP], bytes: &mut [u8]) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let d = write_f16(bytes, 0, largest / 127.0);
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    for (x, q) in x.iter().zip(&mut bytes[2..]) {
        *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    let d = read_f16(bytes, 0);
    for (x, q) in out.iter_mut().zip(&bytes[2..]) {
        *x = d * f32::from(*q as i8);
    }
}
