//! Vectors: AVX-512, AVX2 and a portable array, one trait over them, chosen at run time.
//!
//! A kernel is written once, as [`Kernel::run`] generic over [`Simd`], and compiled once per instruction
//! set; [`Level::run`] picks. Baseline binaries stay x86-64 and find AVX-512 where it is.

// Every method of the trait below is unsafe for one reason: the processor must have the instruction set, and
// pointers must be valid for the lanes named. Repeating it at each intrinsic would say nothing more.
#![allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use self::portable::Portable;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the target has (SSE2, NEON).
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// The same and AVX-VNNI: dot products of integers.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same and AVX-512 VNNI.
    Avx512Vnni,
    /// The same, and products on the tile unit ([`crate::ops::linear`]).
    Amx,
}

impl Level {
    /// All of them, the best last.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Vnni, Self::Amx];

    /// The best level of this processor, or the best one up to what `NODE_MAMBA_CPU` names (see
    /// [`Level::name`]).
    #[must_use]
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let limit = forced().unwrap_or(Self::Amx);
            Self::available().into_iter().filter(|level| *level <= limit).max().unwrap_or(Self::Portable)
        })
    }

    /// Why [`Level::detect`] is not a better one, in words for whoever might change that.
    #[must_use]
    pub fn notes() -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(name) = std::env::var(FORCE).ok().filter(|_| forced().is_none()) {
            let names = Self::ALL.map(Self::name).join(", ");
            notes.push(format!("{FORCE} is `{name}`, which is none of {names}: it is ignored"));
        }
        if let Some(level) = forced().filter(|level| *level < Self::Amx) {
            notes.push(format!("{FORCE} keeps the kernels from using more than {}", level.name()));
        }
        #[cfg(target_arch = "x86_64")]
        {
            use crate::ops::linear::amx;
            if !Self::Avx2.is_available() {
                notes.push("this processor has no AVX2, FMA and F16C: the portable kernels are used, several times slower".into());
            }
            if amx::is_in_processor() && !amx::is_available() {
                notes.push("this processor has a tile unit (AMX), but the operating system does not let this process use it".into());
            }
        }
        notes
    }

    /// All levels that this processor has.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Self::AvxVnni => Self::Avx2.is_available() && has!("avxvnni"),
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
            }
            Self::Avx512Vnni => Self::Avx512.is_available() && has!("avx512vnni"),
            Self::Amx => Self::Avx512Vnni.is_available() && crate::ops::linear::amx::is_available(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// `portable`, `avx2`, `avx_vnni`, `avx512`, `avx512_vnni`, `amx`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx_vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512_vnni",
            Self::Amx => "amx",
        }
    }

    /// [`Simd::TILE_ROWS`] of the level.
    #[must_use]
    pub fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => x86::Avx2::<false>::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Amx => x86::Avx512::<false>::TILE_ROWS,
            _ => Portable::TILE_ROWS,
        }
    }

    /// [`Simd::HAS_DOT_BYTES`] of the level.
    #[must_use]
    pub fn has_dot_bytes(self) -> bool {
        matches!(self, Self::AvxVnni | Self::Avx512Vnni | Self::Amx)
    }

    /// Runs the kernel in the version for this level.
    ///
    /// # Safety
    /// The processor must have the level; the kernel's own conditions must hold.
    #[inline]
    pub unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni if K::HAS_DOT_BYTES => unsafe { x86::run_avx_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::Amx if K::HAS_DOT_BYTES => unsafe { x86::run_avx512_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Amx => unsafe { x86::run_avx512(kernel) },
            _ => unsafe { kernel.run::<Portable>() },
        }
    }
}

const FORCE: &str = "NODE_MAMBA_CPU";

/// What the environment asks for.
fn forced() -> Option<Level> {
    let name = std::env::var(FORCE).ok()?;
    Level::ALL.into_iter().find(|level| level.name() == name)
}

/// Something to compute with any vector type. `run` and all that it calls must be `#[inline(always)]`, so
/// that it is compiled with the instruction set switched on.
pub trait Kernel {
    /// Whether it calls [`Simd::dot_bytes`]; otherwise it is not compiled for VNNI.
    const HAS_DOT_BYTES: bool = false;

    /// Computes.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions.
    unsafe fn run<S: Simd>(self);
}

/// A vector and what kernels do with it.
pub trait Simd: Copy {
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of the register tile of a matrix product (vectors side by side: [`Self::TILE_VECTORS`]).
    const TILE_ROWS: usize;
    /// Vectors side by side in that tile.
    const TILE_VECTORS: usize;
    /// Whether there is [`Self::dot_bytes`].
    const HAS_DOT_BYTES: bool;
    /// LANES floats.
    type F: Copy;
    /// LANES words of 32 bits: an integer, or two 16-bit integers (a pair), or four bytes.
    type I: Copy;

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
    /// a · b − c, likewise.
    unsafe fn mul_sub(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// 1 / x to within 2e-7, for |x| in 1e-37 … 1e37.
    unsafe fn reciprocal(x: Self::F) -> Self::F;
    /// The greater; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer.
    unsafe fn round(x: Self::F) -> Self::F;
    /// x · 2ⁿ for an integral n in −126 … 127.
    unsafe fn scale(x: Self::F, n: Self::F) -> Self::F;
    /// x · 2ⁿ for any integral n and an x in 0.5 … 2: tiny or zero below −126, huge or infinite above 127.
    #[inline(always)]
    unsafe fn scale_any(x: Self::F, n: Self::F) -> Self::F {
        unsafe { Self::scale(x, Self::max(Self::splat(-126.0), Self::min(Self::splat(127.0), n))) }
    }
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(x: Self::F) -> f32;
    /// The greatest lane; NaN may be passed over.
    unsafe fn largest(x: Self::F) -> f32;
    /// Asks for a cache line ahead of its use.
    unsafe fn prefetch(at: *const u8);
    /// The same, only as near as the second-level cache: for what will not be used soon.
    unsafe fn prefetch_later(at: *const u8);

    /// LANES bytes, widened.
    unsafe fn load_u8(from: *const u8) -> Self::F;
    /// Rounds to the nearest integer; |x| must be below 2¹⁵.
    unsafe fn store_i16(to: *mut i16, x: Self::F);
    /// Rounds to the nearest integer; |x| must be below 2⁷. Each four come in the order 0, 2, 1, 3. Only with
    /// [`Self::dot_bytes`].
    #[inline(always)]
    unsafe fn store_bytes(_to: *mut i8, _: Self::F) {
        unreachable!("without HAS_DOT_BYTES")
    }
    /// The upper halves of two vectors, as bf16 (exact where x is one).
    unsafe fn store_bf16(to: *mut u16, x: [Self::F; 2]);
    /// All zero.
    unsafe fn zero() -> Self::I;
    /// LANES words.
    unsafe fn load_words(from: *const u8) -> Self::I;
    /// LANES words.
    unsafe fn store_words(to: *mut u8, x: Self::I);
    /// All words `x`.
    unsafe fn splat_word(x: i32) -> Self::I;
    /// Pairs of the unsigned bytes 0 and 2 of each word.
    unsafe fn even_bytes(x: Self::I) -> Self::I;
    /// Pairs of the unsigned bytes 1 and 3 of each word.
    unsafe fn odd_bytes(x: Self::I) -> Self::I;
    /// The lower four bits of each byte, then the upper ones.
    unsafe fn nibbles(x: Self::I) -> [Self::I; 2];
    /// `sum + w₀ · x₀ + w₁ · x₁` of signed pairs.
    unsafe fn dot_pairs(sum: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// `sum + Σ wᵢ · xᵢ` of four unsigned and four signed bytes; only with VNNI.
    #[inline(always)]
    unsafe fn dot_bytes(_: Self::I, _: Self::I, _: Self::I) -> Self::I {
        unreachable!("without HAS_DOT_BYTES")
    }
    /// Integers as floats.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// Unsigned bytes minus `zero` as pairs of bf16: bytes 0 and 2, then 1 and 3. Only with AVX-512, which every
    /// processor with a tile unit has.
    #[inline(always)]
    unsafe fn bytes_to_bf16(_: Self::I, _zero: u8) -> [Self::I; 2] {
        unreachable!("the tile unit comes with AVX-512")
    }
}
