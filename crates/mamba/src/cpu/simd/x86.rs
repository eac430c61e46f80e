//! AVX2 and AVX-512, with and without the dot products of VNNI.

#![allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx2<false>>() }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_avx_vnni<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx2<true>>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx512<false>>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512_vnni<K: Kernel>(kernel: K) {
    unsafe { kernel.run::<Avx512<true>>() }
}

/// 8 lanes; `VNNI`: with AVX-VNNI.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>;

#[inline(always)]
unsafe fn mask8(n: usize) -> __m256i {
    unsafe {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane)
    }
}

/// Of each four bytes the second and the third.
#[inline(always)]
unsafe fn middle_swapped() -> __m128i {
    unsafe { _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15) }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;
    const HAS_DOT_BYTES: bool = VNNI;
    type F = __m256;
    type I = __m256i;

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
        // A masked store takes some processors (Zen) twelve cycles.
        unsafe {
            match n {
                8 => _mm256_storeu_ps(to, x),
                _ => _mm256_maskstore_ps(to, mask8(n), x),
            }
        }
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
    unsafe fn mul_sub(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmsub_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn reciprocal(x: __m256) -> __m256 {
        unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), x) }
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
    unsafe fn largest(x: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_later(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, x: __m256) {
        unsafe {
            let words = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), _mm_packs_epi32(low, high));
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, x: __m256) {
        unsafe {
            let words = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let pairs = _mm_packs_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_shuffle_epi8(_mm_packs_epi16(pairs, pairs), middle_swapped()));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: [__m256; 2]) {
        unsafe {
            let upper = x.map(|x| _mm256_srli_epi32::<16>(_mm256_castps_si256(x)));
            // Packing keeps to halves of 128 bits.
            let packed = _mm256_packus_epi32(upper[0], upper[1]);
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u8, x: __m256i) {
        unsafe { _mm256_storeu_si256(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn splat_word(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn even_bytes(x: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(x, _mm256_set1_epi16(0xff)) }
    }
    #[inline(always)]
    unsafe fn odd_bytes(x: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi16::<8>(x) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: __m256i) -> [__m256i; 2] {
        unsafe { [x, _mm256_srli_epi16::<4>(x)].map(|x| _mm256_and_si256(x, _mm256_set1_epi8(15))) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
}

/// 16 lanes; `VNNI`: with AVX-512 VNNI.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool>;

#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;
    const HAS_DOT_BYTES: bool = VNNI;
    type F = __m512;
    type I = __m512i;

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
    unsafe fn mul_sub(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmsub_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn reciprocal(x: __m512) -> __m512 {
        unsafe {
            // 14 bits, then a step of Newton's.
            let y = _mm512_rcp14_ps(x);
            _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(1.0)), y)
        }
    }
    #[inline(always)]
    unsafe fn scale_any(x: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(x, n) }
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
            Avx2::<false>::sum(_mm256_add_ps(low, high))
        }
    }
    #[inline(always)]
    unsafe fn largest(x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_later(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, x: __m512) {
        unsafe {
            let words = _mm512_cvtps_epi32(x);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, x: __m512) {
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(bytes, middle_swapped()));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: [__m512; 2]) {
        unsafe {
            let upper = x.map(|x| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(x))));
            _mm512_storeu_si512(
                to.cast(),
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper[0]), upper[1]),
            );
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u8, x: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn splat_word(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn even_bytes(x: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(x, _mm512_set1_epi16(0xff)) }
    }
    #[inline(always)]
    unsafe fn odd_bytes(x: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<8>(x) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: __m512i) -> [__m512i; 2] {
        unsafe { [x, _mm512_srli_epi16::<4>(x)].map(|x| _mm512_and_si512(x, _mm512_set1_epi8(15))) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn bytes_to_bf16(x: __m512i, zero: u8) -> [__m512i; 2] {
        unsafe {
            // A byte below the bits of 2²³ is a float that much greater.
            let (byte, magic) = (_mm512_set1_epi32(0xff), _mm512_set1_epi32(0x4b00_0000));
            let less = _mm512_set1_ps(8_388_608.0 + f32::from(zero));
            let float = |shifted: __m512i| {
                let sum = _mm512_or_si512(_mm512_and_si512(shifted, byte), magic);
                _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(sum), less))
            };
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let pair = |first: __m512i, second: __m512i| {
                _mm512_or_si512(_mm512_srli_epi32::<16>(first), _mm512_and_si512(second, upper))
            };
            [
                pair(float(x), float(_mm512_srli_epi32::<16>(x))),
                pair(float(_mm512_srli_epi32::<8>(x)), float(_mm512_srli_epi32::<24>(x))),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Used on the tile unit only, and right without one.
    #[test]
    fn bytes_become_pairs_of_bf16() {
        if !std::arch::is_x86_feature_detected!("avx512bw") {
            return;
        }
        let bytes: [u8; 256] = std::array::from_fn(|i| i as u8);
        for zero in [0, 128] {
            for words in bytes.chunks_exact(64) {
                let mut pairs = [[half::bf16::ZERO; 32]; 2];
                // SAFETY: the processor has AVX-512; 64 bytes are read and written.
                unsafe {
                    let [even, odd] =
                        Avx512::<false>::bytes_to_bf16(Avx512::<false>::load_words(words.as_ptr()), zero);
                    Avx512::<false>::store_words(pairs[0].as_mut_ptr().cast(), even);
                    Avx512::<false>::store_words(pairs[1].as_mut_ptr().cast(), odd);
                }
                for (i, byte) in words.iter().enumerate() {
                    let expected = f32::from(*byte) - f32::from(zero);
                    assert_eq!(pairs[i % 2][i / 4 * 2 + i % 4 / 2].to_f32(), expected);
                }
            }
        }
    }
}
