//! [`Lanes`] in two 256-bit registers.
//!
//! Activations are words, and so are weights when they meet: `madd` sums two products of words
//! into 32 bits, as many a second as two `maddubs` of bytes would need for both bytes of an
//! activation, in half as many sums, so that four rows' stay in registers. In each quad the even columns stand
//! before the odd ones, because a weight's bytes become words by a mask and a shift.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(__m256, __m256);

/// Rows 0..8 and rows 8..16.
type Pair = (__m256i, __m256i);

#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline(always)]
unsafe fn max8(v: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[inline(always)]
unsafe fn widen_i8(from: *const i8) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))
}

/// Eight numbers.
#[inline(always)]
unsafe fn round_f64(from: *const f64) -> __m256 {
    let low = _mm256_cvtpd_ps(_mm256_loadu_pd(from));
    let high = _mm256_cvtpd_ps(_mm256_loadu_pd(from.add(4)));
    _mm256_set_m128(high, low)
}

#[inline(always)]
unsafe fn widen_bf16(from: *const u16) -> __m256 {
    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

#[inline(always)]
unsafe fn scale8(v: __m256, n: __m256) -> __m256 {
    let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent))
}

/// Adds the products of even and of odd columns.
#[inline(always)]
unsafe fn dot_words(acc: __m256i, words: [__m256i; 2], quad: [i32; 2]) -> __m256i {
    let even = _mm256_madd_epi16(words[0], _mm256_set1_epi32(quad[0]));
    let odd = _mm256_madd_epi16(words[1], _mm256_set1_epi32(quad[1]));
    _mm256_add_epi32(_mm256_add_epi32(acc, even), odd)
}

/// Adds words that stand side by side.
#[inline(always)]
unsafe fn add_pairs(words: __m256i) -> __m256i {
    _mm256_madd_epi16(words, _mm256_set1_epi16(1))
}

/// `inside` where `at` lies in `start..end`.
#[inline(always)]
unsafe fn either(
    at: __m256,
    start: __m256,
    end: __m256,
    inside: __m256,
    outside: __m256,
) -> __m256 {
    let begun = _mm256_cmp_ps::<_CMP_GE_OQ>(at, start);
    let inner = _mm256_and_ps(begun, _mm256_cmp_ps::<_CMP_LT_OQ>(at, end));
    _mm256_blendv_ps(outside, inside, inner)
}

/// The nearest floats whose lower halves are zero.
#[inline(always)]
unsafe fn round_half(v: __m256) -> __m256 {
    let bits = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(0x8000));
    _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-1 << 16)))
}

impl Lanes for Avx2 {
    const ROWS: usize = 6;
    type Acc = Pair;
    /// Of weights below 16, words: a block adds up to 8 x 2 x 15 x 127 at most. Of others, whole sums.
    type ByteAcc = Pair;
    type Bytes = Pair;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(_mm256_setzero_ps(), _mm256_setzero_ps())
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1)
    }
    #[inline(always)]
    unsafe fn load_f64(from: *const f64) -> Self {
        Self(round_f64(from), round_f64(from.add(8)))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Self(widen_i8(from), widen_i8(from.add(8)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Self(
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
        )
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        Self(widen_bf16(from), widen_bf16(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<NEAREST>(self.0));
        _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<NEAREST>(self.1))
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Self(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        Self(_mm256_sub_ps(self.0, o.0), _mm256_sub_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        Self(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        Self(_mm256_div_ps(self.0, o.0), _mm256_div_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        Self(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        Self(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        let sign = _mm256_set1_ps(-0.0);
        Self(
            _mm256_andnot_ps(sign, self.0),
            _mm256_andnot_ps(sign, self.1),
        )
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(
            _mm256_round_ps::<NEAREST>(self.0),
            _mm256_round_ps::<NEAREST>(self.1),
        )
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(
            _mm256_fmadd_ps(self.0, b.0, c.0),
            _mm256_fmadd_ps(self.1, b.1, c.1),
        )
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        Self(scale8(self.0, n.0), scale8(self.1, n.1))
    }
    #[inline(always)]
    unsafe fn add_to_f64(self, to: *mut f64) {
        for (eight, to) in [self.0, self.1].into_iter().zip([to, to.add(8)]) {
            let halves = [
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            ];
            for (half, to) in halves.into_iter().zip([to, to.add(4)]) {
                let sum = _mm256_add_pd(_mm256_loadu_pd(to), _mm256_cvtps_pd(half));
                _mm256_storeu_pd(to, sum);
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum8(_mm256_add_ps(self.0, self.1))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        max8(_mm256_max_ps(self.0, self.1))
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let (a, b) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
        let (low, high) = (
            _mm256_castsi256_si128(words),
            _mm256_extracti128_si256::<1>(words),
        );
        _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
    }
    #[inline(always)]
    unsafe fn store_quads(q: Self, _: Self, _: Self, row: *mut i8, _: usize, column: usize) {
        let (a, b) = (_mm256_cvtps_epi32(q.0), _mm256_cvtps_epi32(q.1));
        // Packing leaves four columns of `a` and four of `b` in each half of the register.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
        let swap = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
        let words = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(swap));
        _mm256_storeu_si256(row.add(2 * column).cast(), words);
    }
    #[inline(always)]
    unsafe fn quad(row: *const i8, _: usize, column: usize) -> [i32; 2] {
        let at = row.add(2 * column).cast::<i32>();
        [at.read_unaligned(), at.add(1).read_unaligned()]
    }

    #[inline(always)]
    unsafe fn acc() -> Pair {
        (_mm256_setzero_si256(), _mm256_setzero_si256())
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Pair {
        (
            _mm256_loadu_si256(from.cast()),
            _mm256_loadu_si256(from.add(32).cast()),
        )
    }
    #[inline(always)]
    unsafe fn pick(bytes: Pair, from: u32, width: u32) -> Pair {
        let mask = _mm256_set1_epi8(((1u16 << width) - 1) as i8);
        let from = _mm_cvtsi32_si128(from as i32);
        (
            _mm256_and_si256(_mm256_srl_epi16(bytes.0, from), mask),
            _mm256_and_si256(_mm256_srl_epi16(bytes.1, from), mask),
        )
    }
    #[inline(always)]
    unsafe fn join(low: Pair, high: Pair, by: u32) -> Pair {
        let by = _mm_cvtsi32_si128(by as i32);
        (
            _mm256_or_si256(low.0, _mm256_sll_epi16(high.0, by)),
            _mm256_or_si256(low.1, _mm256_sll_epi16(high.1, by)),
        )
    }
    #[inline(always)]
    unsafe fn look_up(indices: Pair, table: &[u8; 16]) -> Pair {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        (
            _mm256_shuffle_epi8(table, indices.0),
            _mm256_shuffle_epi8(table, indices.1),
        )
    }
    #[inline(always)]
    unsafe fn dot7(acc: Pair, weights: Pair, quad: [i32; 2]) -> Pair {
        let low = _mm256_set1_epi16(0xff);
        let words = |bytes| [_mm256_and_si256(bytes, low), _mm256_srli_epi16::<8>(bytes)];
        (
            dot_words(acc.0, words(weights.0), quad),
            dot_words(acc.1, words(weights.1), quad),
        )
    }
    #[inline(always)]
    unsafe fn acc7_f32(acc: Pair) -> Self {
        Self(_mm256_cvtepi32_ps(acc.0), _mm256_cvtepi32_ps(acc.1))
    }
    #[inline(always)]
    unsafe fn dot8(acc: Pair, weights: Pair, quad: [i32; 2]) -> Pair {
        let flip = _mm256_set1_epi8(-128);
        let words = |bytes| {
            let signed = _mm256_xor_si256(bytes, flip);
            [
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(signed)),
                _mm256_srai_epi16::<8>(signed),
            ]
        };
        (
            dot_words(acc.0, words(weights.0), quad),
            dot_words(acc.1, words(weights.1), quad),
        )
    }
    #[inline(always)]
    unsafe fn acc8_f32(acc: Pair, _: [i32; 2]) -> Self {
        Self::acc7_f32(acc)
    }

    #[inline(always)]
    unsafe fn byte_acc() -> Pair {
        Self::acc()
    }
    #[inline(always)]
    unsafe fn byte_dot4(acc: Pair, weights: Pair, quad: i32) -> Pair {
        let quad = _mm256_set1_epi32(quad);
        (
            _mm256_add_epi16(acc.0, _mm256_maddubs_epi16(weights.0, quad)),
            _mm256_add_epi16(acc.1, _mm256_maddubs_epi16(weights.1, quad)),
        )
    }
    #[inline(always)]
    unsafe fn byte_acc4_f32(acc: Pair) -> Self {
        Self::acc7_f32((add_pairs(acc.0), add_pairs(acc.1)))
    }
    #[inline(always)]
    unsafe fn byte_dot7(acc: Pair, weights: Pair, quad: i32) -> Pair {
        // Two products are below 2^15: nothing saturates.
        let quad = _mm256_set1_epi32(quad);
        let sums = |weights| add_pairs(_mm256_maddubs_epi16(weights, quad));
        (
            _mm256_add_epi32(acc.0, sums(weights.0)),
            _mm256_add_epi32(acc.1, sums(weights.1)),
        )
    }
    #[inline(always)]
    unsafe fn byte_acc7_f32(acc: Pair) -> Self {
        Self::acc7_f32(acc)
    }
    #[inline(always)]
    unsafe fn byte_dot8(acc: Pair, weights: Pair, quad: i32) -> Pair {
        // The instruction takes one side without signs: they go to the other.
        let (flip, quad) = (_mm256_set1_epi8(-128), _mm256_set1_epi32(quad));
        let sums = |weights| {
            let signed = _mm256_xor_si256(weights, flip);
            let quad = _mm256_sign_epi8(quad, signed);
            add_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(signed), quad))
        };
        (
            _mm256_add_epi32(acc.0, sums(weights.0)),
            _mm256_add_epi32(acc.1, sums(weights.1)),
        )
    }
    #[inline(always)]
    unsafe fn byte_acc8_f32(acc: Pair, _: i32) -> Self {
        Self::acc7_f32(acc)
    }

    #[inline(always)]
    unsafe fn to_bf16(self) -> Self {
        Self(round_half(self.0), round_half(self.1))
    }
    #[inline(always)]
    unsafe fn zero_below(self, least: f32) -> Self {
        let (least, sizes) = (_mm256_set1_ps(least), self.abs());
        let first = _mm256_cmp_ps::<_CMP_LT_OQ>(sizes.0, least);
        let second = _mm256_cmp_ps::<_CMP_LT_OQ>(sizes.1, least);
        Self(
            _mm256_andnot_ps(first, self.0),
            _mm256_andnot_ps(second, self.1),
        )
    }
    #[inline(always)]
    unsafe fn between(position: Self, start: Self, end: Self, inside: Self, outside: Self) -> Self {
        let first = either(position.0, start.0, end.0, inside.0, outside.0);
        Self(
            first,
            either(position.1, start.1, end.1, inside.1, outside.1),
        )
    }
    #[inline(always)]
    unsafe fn column(bytes: Pair, at: u32) -> Self {
        let (by, byte) = (_mm_cvtsi32_si128(8 * at as i32), _mm256_set1_epi32(0xff));
        let first = _mm256_and_si256(_mm256_srl_epi32(bytes.0, by), byte);
        let second = _mm256_and_si256(_mm256_srl_epi32(bytes.1, by), byte);
        Self(_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second))
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast())
    }
}
