//! Vectors of f32: AVX-512, AVX2 and a portable array, one trait over them, chosen at run time.
//!
//! A kernel is written once, as [`Kernel::run`] generic over [`Simd`], and compiled once per instruction
//! set; [`Level::run`] picks. Baseline binaries stay x86-64 and find AVX-512 where it is.

// Every method of the trait below is unsafe for one reason: the processor must have the instruction set, and
// pointers must be valid for the lanes named. Repeating it at each intrinsic would say nothing more.
#![allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

use std::sync::OnceLock;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the target has (SSE2, NEON).
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same, and products with bf16 weights on the tile unit ([`crate::ops::linear`]).
    Amx,
}

impl Level {
    /// The best level of this processor, or a lower one that `NODE_MAMBA_CPU` (`portable`, `avx2`, `avx512`,
    /// `amx`) asks for.
    #[must_use]
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let wanted = match std::env::var("NODE_MAMBA_CPU").as_deref() {
                Ok("portable") => Self::Portable,
                Ok("avx2") => Self::Avx2,
                Ok("avx512") => Self::Avx512,
                _ => Self::Amx,
            };
            Self::available().into_iter().filter(|level| *level <= wanted).max().unwrap_or(Self::Portable)
        })
    }

    /// All levels that this processor has.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                levels.push(Self::Avx2);
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    levels.push(Self::Avx512);
                    if crate::ops::linear::amx::is_available() {
                        levels.push(Self::Amx);
                    }
                }
            }
        }
        levels
    }

    /// `portable`, `avx2`, `avx512`, `amx`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// [`Simd::TILE_ROWS`] of the level.
    #[must_use]
    pub fn tile_rows(self) -> usize {
        match self {
            Self::Portable => Portable::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => x86::Avx512::TILE_ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::TILE_ROWS,
        }
    }

    /// Runs the kernel in the version for this level.
    ///
    /// # Safety
    /// The processor must have the level; the kernel's own conditions must hold.
    #[inline]
    pub unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Portable => unsafe { kernel.run::<Portable>() },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => unsafe { x86::run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unsafe { kernel.run::<Portable>() },
        }
    }
}

/// Something to compute with any vector type. `run` and all that it calls must be `#[inline(always)]`, so
/// that it is compiled with the instruction set switched on.
pub trait Kernel {
    /// Computes.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions.
    unsafe fn run<S: Simd>(self);
}

/// A vector of f32 and what kernels do with it.
pub trait Simd: Copy {
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of the register tile of a matrix product (vectors side by side: [`Self::TILE_VECTORS`]).
    const TILE_ROWS: usize;
    /// Vectors side by side in that tile.
    const TILE_VECTORS: usize;
    /// The vector.
    type F: Copy;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// LANES floats.
    unsafe fn load(from: *const f32) -> Self::F;
    /// The first `n` lanes (at most LANES); the others are zero.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::F;
    /// Widens LANES pairs of bf16 (the upper half of an f32): the first of each, then the second of each.
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self::F; 2];
    /// Widens IEEE half precision.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// LANES floats.
    unsafe fn store(to: *mut f32, x: Self::F);
    /// The first `n` lanes (at most LANES).
    unsafe fn store_first(to: *mut f32, x: Self::F, n: usize);
    /// a + b.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, with one rounding where the instruction set has it.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer.
    unsafe fn round(x: Self::F) -> Self::F;
    /// x · 2ⁿ for an integral n in −126 … 127.
    unsafe fn scale(x: Self::F, n: Self::F) -> Self::F;
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(x: Self::F) -> f32;
    /// Asks for a cache line ahead of its use.
    unsafe fn prefetch(at: *const u8);
}

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
    type F = [f32; 8];

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
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
        unsafe { kernel.run::<Avx512>() }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2;

    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane)
        }
    }

    impl Simd for Avx2 {
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;
        const TILE_VECTORS: usize = 2;
        type F = __m256;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(from, mask8(n)) }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const u16) -> [__m256; 2] {
            unsafe {
                let pairs = _mm256_loadu_si256(from.cast());
                let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second)]
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m256) {
            unsafe { _mm256_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, x: __m256, n: usize) {
            unsafe { _mm256_maskstore_ps(to, mask8(n), x) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn round(x: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        #[inline(always)]
        unsafe fn scale(x: __m256, n: __m256) -> __m256 {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            }
        }
        #[inline(always)]
        unsafe fn sum(x: __m256) -> f32 {
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512;

    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        if n >= 16 { !0 } else { (1 << n) - 1 }
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        const TILE_ROWS: usize = 12;
        const TILE_VECTORS: usize = 2;
        type F = __m512;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(mask16(n), from) }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const u16) -> [__m512; 2] {
            unsafe {
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m512) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, x: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(to, mask16(n), x) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn round(x: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        #[inline(always)]
        unsafe fn scale(x: __m512, n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(x, n) }
        }
        #[inline(always)]
        unsafe fn sum(x: __m512) -> f32 {
            unsafe {
                let low = _mm512_castps512_ps256(x);
                let high = _mm512_extractf32x8_ps::<1>(x);
                Avx2::sum(_mm256_add_ps(low, high))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}
