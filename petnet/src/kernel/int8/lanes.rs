//! Instructions of the depthwise kernel for vectors of 64, 32 or 16 bytes: one byte for each channel, with four vectors of
//! 32-bit sums for as many channels.
#![allow(
    unsafe_code,
    reason = "the instructions have no safe form; tests compare with the definition"
)]

use std::arch::x86_64::*;

/// The instructions for one width of vectors. Four vectors of 32-bit values have the order of [`super::packed_index`].
///
/// # Safety
/// The functions may be called where [`super::supported`] is true; pointers point to as many values as there are channels,
/// of [`Lanes16`] to as many as the mask has bits.
pub(super) trait Lanes {
    type Bytes: Copy;
    const CHANNELS: usize;
    unsafe fn zero() -> Self::Bytes;
    /// Loads bytes. [`Lanes16`], for the last channels of a map, loads those of the mask; the others are zero.
    unsafe fn load(from: *const u8, mask: u64) -> Self::Bytes;
    unsafe fn weights(from: *const i8) -> Self::Bytes;
    /// Transposes the bytes of four pixels to vectors that hold the four pixels of each channel in one 32-bit lane.
    unsafe fn transpose(pixels: [Self::Bytes; 4]) -> [Self::Bytes; 4];
    /// Adds to each sum the products of four unsigned and four signed bytes.
    unsafe fn dot(sums: Self::Bytes, values: Self::Bytes, weights: Self::Bytes) -> Self::Bytes;
    /// Sums to the bytes of the output. A residual comes with its scale.
    unsafe fn requantize(
        sums: [Self::Bytes; 4],
        scale: *const f32,
        offset: *const f32,
        residual: Option<(Self::Bytes, f32)>,
    ) -> Self::Bytes;
    /// Writes bytes, as [`Lanes::load`] reads them.
    unsafe fn store(to: *mut u8, bytes: Self::Bytes, mask: u64);
}

/// Implements [`Lanes`] with the intrinsics of one width.
macro_rules! lanes {
    ($name:ident, $bytes:ty, $channels:literal, $zero:ident,
     |$from:ident, $load_mask:ident| $load:expr, |$to:ident, $stored:ident, $store_mask:ident| $store:expr,
     |$four:ident| $broadcast:expr, $words:ident, [$low8:ident $high8:ident $low16:ident $high16:ident], $dot:ident,
     [$loadf:ident $fma:ident $round:ident $splat:ident], [$packs:ident $packus:ident $shuffle:ident]) => {
        pub(super) struct $name;

        impl Lanes for $name {
            type Bytes = $bytes;
            const CHANNELS: usize = $channels;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn zero() -> $bytes {
                $zero()
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn load($from: *const u8, $load_mask: u64) -> $bytes {
                // SAFETY: the caller ensures it.
                unsafe { $load }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn weights(from: *const i8) -> $bytes {
                // SAFETY: the caller ensures as many bytes; unaligned reads need no alignment.
                unsafe { from.cast::<$bytes>().read_unaligned() }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn transpose([a, b, c, d]: [$bytes; 4]) -> [$bytes; 4] {
                let (low, high) = ([$low8(a, b), $low8(c, d)], [$high8(a, b), $high8(c, d)]);
                let [low_low, low_high] = [$low16(low[0], low[1]), $high16(low[0], low[1])];
                [low_low, low_high, $low16(high[0], high[1]), $high16(high[0], high[1])]
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn dot(sums: $bytes, values: $bytes, weights: $bytes) -> $bytes {
                $dot(sums, values, weights)
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn requantize(
                sums: [$bytes; 4],
                scale: *const f32,
                offset: *const f32,
                residual: Option<(Self::Bytes, f32)>,
            ) -> $bytes {
                let mut rounded = sums;
                for vector in 0..4 {
                    let at = vector * $channels / 4;
                    // SAFETY: there is a scale and an offset for each channel.
                    let (scale, offset) =
                        unsafe { ($loadf(scale.add(at)), $loadf(offset.add(at))) };
                    let mut value = $fma($words(sums[vector]), scale, offset);
                    if let Some((bytes, factor)) = residual {
                        // Widens four bytes of each 128-bit lane to 32 bits.
                        let $four = _mm_or_si128(
                            _mm_setr_epi8(
                                0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1,
                            ),
                            _mm_set1_epi32(4 * vector as i32),
                        );
                        let added = $words($shuffle(bytes, $broadcast));
                        value = $fma(added, $splat(factor), value);
                    }
                    rounded[vector] = $round(value);
                }
                let [a, b, c, d] = rounded;
                $packus($packs(a, b), $packs(c, d))
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn store($to: *mut u8, $stored: $bytes, $store_mask: u64) {
                // SAFETY: the caller ensures it.
                unsafe { $store }
            }
        }
    };
}

lanes!(
    Lanes64, __m512i, 64, _mm512_setzero_si512,
    |from, _mask| _mm512_loadu_si512(from.cast()),
    |to, bytes, _mask| _mm512_storeu_si512(to.cast(), bytes),
    |four| _mm512_broadcast_i32x4(four), _mm512_cvtepi32_ps,
    [_mm512_unpacklo_epi8 _mm512_unpackhi_epi8 _mm512_unpacklo_epi16 _mm512_unpackhi_epi16],
    _mm512_dpbusd_epi32,
    [_mm512_loadu_ps _mm512_fmadd_ps _mm512_cvtps_epi32 _mm512_set1_ps],
    [_mm512_packs_epi32 _mm512_packus_epi16 _mm512_shuffle_epi8]
);

lanes!(
    Lanes32, __m256i, 32, _mm256_setzero_si256,
    |from, _mask| _mm256_loadu_si256(from.cast()),
    |to, bytes, _mask| _mm256_storeu_si256(to.cast(), bytes),
    |four| _mm256_broadcastsi128_si256(four), _mm256_cvtepi32_ps,
    [_mm256_unpacklo_epi8 _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16],
    _mm256_dpbusd_epi32,
    [_mm256_loadu_ps _mm256_fmadd_ps _mm256_cvtps_epi32 _mm256_set1_ps],
    [_mm256_packs_epi32 _mm256_packus_epi16 _mm256_shuffle_epi8]
);

lanes!(
    Lanes16, __m128i, 16, _mm_setzero_si128,
    |from, mask| _mm_maskz_loadu_epi8(mask as u16, from.cast()),
    |to, bytes, mask| match mask as u16 {
        u16::MAX => _mm_storeu_si128(to.cast(), bytes),
        mask => _mm_mask_storeu_epi8(to.cast(), mask, bytes),
    },
    |four| four, _mm_cvtepi32_ps,
    [_mm_unpacklo_epi8 _mm_unpackhi_epi8 _mm_unpacklo_epi16 _mm_unpackhi_epi16],
    _mm_dpbusd_epi32,
    [_mm_loadu_ps _mm_fmadd_ps _mm_cvtps_epi32 _mm_set1_ps],
    [_mm_packs_epi32 _mm_packus_epi16 _mm_shuffle_epi8]
);
