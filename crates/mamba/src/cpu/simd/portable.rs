//! Arrays, of which the compiler makes what the target has.

#![allow(clippy::undocumented_unsafe_blocks)]

use super::Simd;

/// Eight floats in an array; the compiler makes of it what the target has.
#[derive(Clone, Copy)]
pub struct Portable;

/// Rounds to nearest even by adding and subtracting 1.5 · 2²³ (|x| < 2²²).
const ROUND: f32 = 12_582_912.0;

macro_rules! lanes {
    ($i:ident => $e:expr) => {
        std::array::from_fn(|$i| $e)
    };
}

impl Simd for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 3;
    const TILE_VECTORS: usize = 1;
    const HAS_DOT_BYTES: bool = false;
    type F = [f32; 8];
    type I = [i32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::F {
        lanes!(i => if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self::F; 2] {
        let wide = |i: usize| f32::from_bits(u32::from(unsafe { *from.add(i) }) << 16);
        [lanes!(i => wide(2 * i)), lanes!(i => wide(2 * i + 1))]
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        lanes!(i => half::f16::from_bits(unsafe { *from.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, x: Self::F, n: usize) {
        for (i, x) in x.into_iter().take(n).enumerate() {
            unsafe { *to.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // x86-64 without FMA would call a function per lane.
        #[cfg(target_arch = "aarch64")]
        return lanes!(i => a[i].mul_add(b[i], c[i]));
        #[cfg(not(target_arch = "aarch64"))]
        lanes!(i => a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn mul_sub(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { Self::mul_add(a, b, lanes!(i => -c[i])) }
    }
    #[inline(always)]
    unsafe fn reciprocal(x: Self::F) -> Self::F {
        lanes!(i => 1.0 / x[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        lanes!(i => (x[i] + ROUND) - ROUND)
    }
    #[inline(always)]
    unsafe fn scale(x: Self::F, n: Self::F) -> Self::F {
        lanes!(i => x[i] * f32::from_bits((((n[i] + ROUND).to_bits()).wrapping_add(127)) << 23))
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_later(_: *const u8) {}
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F {
        lanes!(i => f32::from(unsafe { *from.add(i) }))
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { *to.add(i) = x as i16 };
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: [Self::F; 2]) {
        for (i, x) in x.into_iter().flatten().enumerate() {
            unsafe { *to.add(i) = (x.to_bits() >> 16) as u16 };
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::I {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> Self::I {
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u8, x: Self::I) {
        unsafe { to.cast::<Self::I>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn splat_word(x: i32) -> Self::I {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn even_bytes(x: Self::I) -> Self::I {
        lanes!(i => x[i] & 0x00ff_00ff)
    }
    #[inline(always)]
    unsafe fn odd_bytes(x: Self::I) -> Self::I {
        lanes!(i => x[i] >> 8 & 0x00ff_00ff)
    }
    #[inline(always)]
    unsafe fn nibbles(x: Self::I) -> [Self::I; 2] {
        [lanes!(i => x[i] & 0x0f0f_0f0f), lanes!(i => x[i] >> 4 & 0x0f0f_0f0f)]
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        lanes!(i => sum[i] + i32::from(w[i] as i16) * i32::from(x[i] as i16) + (w[i] >> 16) * (x[i] >> 16))
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        lanes!(i => x[i] as f32)
    }
}
