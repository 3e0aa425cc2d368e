//! [`Lanes`] in one 512-bit register, byte products by VNNI.

use super::super::rows::COARSE;
use super::{LINE_ORDER, Lanes};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(__m512);

/// The quad of a row that holds bytes.
#[inline(always)]
unsafe fn quad_of_bytes(row: *const i8, width: usize, column: usize) -> [i32; 2] {
    let coarse = row.add(column).cast::<i32>();
    let fine = row.add(width + column).cast::<i32>();
    [coarse.read_unaligned(), fine.read_unaligned()]
}

/// `254 * coarse + fine`: rounded once, where the two are below 2^24.
#[inline(always)]
unsafe fn joined(coarse: Avx512, fine: Avx512) -> Avx512 {
    coarse.fma(Avx512::splat(COARSE), fine)
}

impl Lanes for Avx512 {
    const ROWS: usize = 8;
    /// Of coarse and of fine bytes.
    type Acc = [__m512i; 2];
    type ByteAcc = __m512i;
    type Bytes = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(_mm512_setzero_ps())
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0)
    }
    #[inline(always)]
    unsafe fn load_f64(from: *const f64) -> Self {
        let low = _mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(from)));
        let high = _mm512_cvtpd_ps(_mm512_loadu_pd(from.add(8)));
        let (low, high) = (_mm512_castps_pd(low), _mm256_castps_pd(high));
        Self(_mm512_castpd_ps(_mm512_insertf64x4::<1>(low, high)))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
        Self(_mm512_cvtepi32_ps(wide))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        _mm256_storeu_si256(
            to.cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0),
        )
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(self.0))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        Self(_mm512_scalef_ps(self.0, n.0))
    }
    #[inline(always)]
    unsafe fn add_to_f64(self, to: *mut f64) {
        let halves = [
            _mm512_castps512_ps256(self.0),
            _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))),
        ];
        for (half, to) in halves.into_iter().zip([to, to.add(8)]) {
            let sum = _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(half));
            _mm512_storeu_pd(to, sum);
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        _mm512_reduce_add_ps(self.0)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        _mm512_reduce_max_ps(self.0)
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let whole = _mm512_cvtps_epi32(self.0);
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(whole));
    }
    #[inline(always)]
    unsafe fn store_quads(
        _: Self,
        coarse: Self,
        fine: Self,
        row: *mut i8,
        width: usize,
        column: usize,
    ) {
        coarse.store_i8(row.add(column));
        fine.store_i8(row.add(width + column));
    }
    #[inline(always)]
    unsafe fn quad(row: *const i8, width: usize, column: usize) -> [i32; 2] {
        quad_of_bytes(row, width, column)
    }

    #[inline(always)]
    unsafe fn acc() -> [__m512i; 2] {
        [_mm512_setzero_si512(); 2]
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn pick(bytes: __m512i, from: u32, width: u32) -> __m512i {
        let mask = _mm512_set1_epi8(((1u16 << width) - 1) as i8);
        let shifted = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(from as i32));
        _mm512_and_si512(shifted, mask)
    }
    #[inline(always)]
    unsafe fn join(low: __m512i, high: __m512i, by: u32) -> __m512i {
        _mm512_or_si512(low, _mm512_sll_epi16(high, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    unsafe fn look_up(indices: __m512i, table: &[u8; 16]) -> __m512i {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        _mm512_shuffle_epi8(table, indices)
    }
    #[inline(always)]
    unsafe fn dot7(acc: [__m512i; 2], weights: __m512i, quad: [i32; 2]) -> [__m512i; 2] {
        [
            _mm512_dpbusd_epi32(acc[0], weights, _mm512_set1_epi32(quad[0])),
            _mm512_dpbusd_epi32(acc[1], weights, _mm512_set1_epi32(quad[1])),
        ]
    }
    #[inline(always)]
    unsafe fn acc7_f32(acc: [__m512i; 2]) -> Self {
        joined(
            Self(_mm512_cvtepi32_ps(acc[0])),
            Self(_mm512_cvtepi32_ps(acc[1])),
        )
    }
    #[inline(always)]
    unsafe fn dot8(acc: [__m512i; 2], weights: __m512i, quad: [i32; 2]) -> [__m512i; 2] {
        Self::dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn acc8_f32(acc: [__m512i; 2], totals: [i32; 2]) -> Self {
        // The instruction takes unsigned weights, so 128 times the activations came in too.
        let excess = |total: i32| _mm512_set1_epi32(128 * total);
        Self::acc7_f32([
            _mm512_sub_epi32(acc[0], excess(totals[0])),
            _mm512_sub_epi32(acc[1], excess(totals[1])),
        ])
    }

    #[inline(always)]
    unsafe fn byte_acc() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn byte_dot4(acc: __m512i, weights: __m512i, quad: i32) -> __m512i {
        Self::byte_dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn byte_acc4_f32(acc: __m512i) -> Self {
        Self::byte_acc7_f32(acc)
    }
    #[inline(always)]
    unsafe fn byte_dot7(acc: __m512i, weights: __m512i, quad: i32) -> __m512i {
        _mm512_dpbusd_epi32(acc, weights, _mm512_set1_epi32(quad))
    }
    #[inline(always)]
    unsafe fn byte_acc7_f32(acc: __m512i) -> Self {
        Self(_mm512_cvtepi32_ps(acc))
    }
    #[inline(always)]
    unsafe fn byte_dot8(acc: __m512i, weights: __m512i, quad: i32) -> __m512i {
        Self::byte_dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn byte_acc8_f32(acc: __m512i, total: i32) -> Self {
        // As in `acc8_f32`.
        Self::byte_acc7_f32(_mm512_sub_epi32(acc, _mm512_set1_epi32(128 * total)))
    }

    #[inline(always)]
    unsafe fn store_line(first: Self, second: Self, to: *mut u16) {
        // Upper halves of both vectors' floats.
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut at = 0;
            while at < 32 {
                order[at] = 2 * LINE_ORDER[at] as u16 + 1;
                at += 1;
            }
            order
        };
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let (first, second) = (_mm512_castps_si512(first.0), _mm512_castps_si512(second.0));
        _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(first, order, second));
    }
    #[inline(always)]
    unsafe fn store_table(bytes: __m512i, table: &[u16; 32], to: *mut u16) {
        // The instruction takes the lowest five bits of each word.
        let table = _mm512_loadu_si512(table.as_ptr().cast());
        let even = _mm512_permutexvar_epi16(bytes, table);
        let odd = _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(bytes), table);
        _mm512_storeu_si512(to.cast(), even);
        _mm512_storeu_si512(to.add(32).cast(), odd);
    }
    #[inline(always)]
    unsafe fn store_whole(bytes: __m512i, less: i16, to: *mut u16) {
        let even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
        let odd = _mm512_srli_epi16::<8>(bytes);
        for (at, words) in [even, odd].into_iter().enumerate() {
            let words = _mm512_sub_epi16(words, _mm512_set1_epi16(less));
            let low = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(words));
            let low = _mm512_castps_si512(_mm512_cvtepi32_ps(low));
            let high = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(words));
            let high = _mm512_castps_si512(high);
            let high = _mm512_and_si512(high, _mm512_set1_epi32(-1 << 16));
            let both = _mm512_or_si512(_mm512_srli_epi32::<16>(low), high);
            _mm512_storeu_si512(to.add(32 * at).cast(), both);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast())
    }
}
