//! [`Lanes`] in one 512-bit register, byte products by VNNI.

use super::super::rows::{COARSE, Line};
use super::{LANES, LINE_ORDER, Lanes, PAIRS, Sums16, WeightTile};
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

/// Numbers that are stored to be read one by one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Aligned([f32; LANES]);

impl Aligned {
    #[inline(always)]
    unsafe fn of(lanes: Avx512) -> Self {
        let mut numbers = Self([0.0; LANES]);
        lanes.store(numbers.0.as_mut_ptr());
        numbers
    }
}

/// What it refers to, read from memory at each use: a load puts a number or a quarter into all lanes at no
/// cost in shuffles, which a compiler would make of it where it knows the register.
#[inline(always)]
fn in_memory<T>(value: &T) -> &T {
    std::hint::black_box(value)
}

/// A block for each of sixteen rows, whose number is a constant: rolled up, the loop would be too long for the
/// processor to look beyond it.
macro_rules! each_row {
    ($row:ident => $body:block) => {
        each_row!(@ $row $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $row:ident $body:block $($number:literal)*) => {
        $({
            const $row: usize = $number;
            $body
        })*
    };
}

/// Of each lane `first` and then `second`, rounded to bf16.
#[inline(always)]
unsafe fn pairs(first: Avx512, second: Avx512) -> __m512i {
    let half = _mm512_set1_epi32(0x8000);
    let first = _mm512_add_epi32(_mm512_castps_si512(first.0), half);
    let second = _mm512_add_epi32(_mm512_castps_si512(second.0), half);
    let upper = _mm512_set1_epi32(-1 << 16);
    // (second & upper) | first >> 16
    _mm512_ternarylogic_epi32::<0xea>(second, upper, _mm512_srli_epi32::<16>(first))
}

/// The lowest byte of each lane as a number.
#[inline(always)]
unsafe fn lowest_byte(lanes: __m512i) -> Avx512 {
    let byte = _mm512_and_si512(lanes, _mm512_set1_epi32(0xff));
    Avx512(_mm512_cvtepi32_ps(byte))
}

/// `first`, and in the last two of each four lanes `later`, unless that is the same.
#[inline(always)]
unsafe fn either(first: f32, later: f32, is_same: bool) -> Avx512 {
    let first = _mm512_set1_ps(first);
    match is_same {
        true => Avx512(first),
        false => Avx512(_mm512_mask_mov_ps(first, 0xcccc, _mm512_set1_ps(later))),
    }
}

#[inline(always)]
unsafe fn aligned(row: &[f32; LANES]) -> __m512i {
    _mm512_load_si512(row.as_ptr().cast())
}

/// Four vectors of a quad of each of sixteen rows: vector `j` has, one behind the other, all four quads of
/// each of the rows `j`, `4 + j`, `8 + j` and `12 + j`.
#[inline(always)]
unsafe fn by_rows([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (later_low, later_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low, later_low),
        _mm512_unpackhi_epi64(low, later_low),
        _mm512_unpacklo_epi64(high, later_high),
        _mm512_unpackhi_epi64(high, later_high),
    ]
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
    unsafe fn add_up(from: *const f32, pitch: usize, count: usize, begins: bool, to: *mut f64) {
        let mut sums = match begins {
            true => [_mm512_setzero_pd(); 2],
            false => [_mm512_loadu_pd(to), _mm512_loadu_pd(to.add(8))],
        };
        for at in 0..count {
            let from = from.add(at * pitch);
            // Two loads cost less than to take a vector apart.
            sums[0] = _mm512_add_pd(sums[0], _mm512_cvtps_pd(_mm256_loadu_ps(from)));
            sums[1] = _mm512_add_pd(sums[1], _mm512_cvtps_pd(_mm256_loadu_ps(from.add(8))));
        }
        _mm512_storeu_pd(to, sums[0]);
        _mm512_storeu_pd(to.add(8), sums[1]);
    }
    #[inline(always)]
    unsafe fn inverse_near(self) -> Self {
        Self(_mm512_rcp14_ps(self.0))
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
    unsafe fn to_bf16(self) -> Self {
        let bits = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x8000));
        let upper = _mm512_and_si512(bits, _mm512_set1_epi32(-1 << 16));
        Self(_mm512_castsi512_ps(upper))
    }
    #[inline(always)]
    unsafe fn zero_below(self, least: f32) -> Self {
        let size = _mm512_abs_ps(self.0);
        let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(size, _mm512_set1_ps(least));
        Self(_mm512_maskz_mov_ps(keep, self.0))
    }
    #[inline(always)]
    unsafe fn between(position: Self, start: Self, end: Self, inside: Self, outside: Self) -> Self {
        let begun = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(position.0, start.0);
        let inner = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(begun, position.0, end.0);
        Self(_mm512_mask_mov_ps(outside.0, inner, inside.0))
    }
    #[inline(always)]
    unsafe fn column(bytes: __m512i, at: u32) -> Self {
        lowest_byte(_mm512_srl_epi32(bytes, _mm_cvtsi32_si128(8 * at as i32)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let upper = _mm512_srli_epi32::<16>(_mm512_castps_si512(self.0));
        _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(upper));
    }
    #[inline(always)]
    unsafe fn store_pairs(first: Self, second: Self, to: *mut Line) {
        _mm512_store_si512(to.cast(), pairs(first, second));
    }
    #[inline(always)]
    unsafe fn store_rounded_pairs(first: Self, second: Self, to: *mut Line) {
        let (first, second) = (_mm512_castps_si512(first.0), _mm512_castps_si512(second.0));
        let both = _mm512_or_si512(_mm512_srli_epi32::<16>(first), second);
        _mm512_store_si512(to.cast(), both);
    }
    #[inline(always)]
    unsafe fn store_row(first: Self, second: Self, to: *mut Line) {
        const FIRSTS: [u32; 16] = {
            let mut firsts = [0; 16];
            let mut at = 0;
            while at < 16 {
                firsts[at] = PAIRS[at] as u32;
                at += 1;
            }
            firsts
        };
        let firsts = _mm512_loadu_si512(FIRSTS.as_ptr().cast());
        let seconds = _mm512_add_epi32(firsts, _mm512_set1_epi32(2));
        let (a, b) = (_mm512_castps_si512(first.0), _mm512_castps_si512(second.0));
        let firsts = _mm512_castsi512_ps(_mm512_permutex2var_epi32(a, firsts, b));
        let seconds = _mm512_castsi512_ps(_mm512_permutex2var_epi32(a, seconds, b));
        _mm512_store_si512(to.cast(), pairs(Self(firsts), Self(seconds)));
    }
    #[inline(always)]
    unsafe fn store_nibbles(
        from: *const u8,
        levels: &[f32; 16],
        scale: Self,
        least: Self,
        to: *mut WeightTile,
    ) {
        let quads = by_rows([
            Self::bytes(from),
            Self::bytes(from.add(64)),
            Self::bytes(from.add(128)),
            Self::bytes(from.add(192)),
        ]);
        let numbers = [Aligned::of(scale), Aligned::of(least)];
        let (quads, numbers) = (in_memory(&quads), in_memory(&numbers));
        let levels = Self::load(levels.as_ptr());
        // Nibble n of a row's words to bits 1 to 4: the place of its float's upper half is odd.
        let by = _mm512_setr_epi32(-1, -1, -1, -1, 3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11);
        let (bits, odd) = (_mm512_set1_epi16(30), _mm512_set1_epi16(1));
        each_row!(ROW => {
            let [scale, least] = numbers;
            let (scale, least) = (scale.0[ROW], least.0[ROW]);
            let table = levels.fma(Self::splat(scale), Self::splat(least));
            let table = _mm512_castps_si512(table.0);
            let table = _mm512_add_epi32(table, _mm512_set1_epi32(0x8000));
            let nibbles = (&raw const quads[ROW % 4]).cast::<__m128i>().add(ROW / 4);
            let nibbles = _mm512_broadcast_i32x4(nibbles.read());
            let places = _mm512_rorv_epi32(nibbles, by);
            // (places & bits) | odd
            let places = _mm512_ternarylogic_epi32::<0xea>(places, bits, odd);
            let weights = _mm512_permutexvar_epi16(places, table);
            _mm512_store_si512((&raw mut (*to).0[ROW]).cast(), weights);
        });
    }
    #[inline(always)]
    unsafe fn store_bytes(vectors: [__m512i; 8], parts: &[[Self; 2]], to: *mut WeightTile) {
        let [a, b, c, d, e, f, g, h] = vectors;
        let (even, odd) = (by_rows([a, c, e, g]), by_rows([b, d, f, h]));
        let last = &parts[parts.len() - 1];
        let first = [Aligned::of(parts[0][0]), Aligned::of(parts[0][1])];
        let later = [Aligned::of(last[0]), Aligned::of(last[1])];
        let (first, later) = (in_memory(&first), in_memory(&later));
        let is_whole = parts.len() == 1;
        // Two vectors of a row, and again: the first bytes' pairs, then the second ones'.
        let by = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8);
        each_row!(ROW => {
            // A row's quads of even and then of odd vectors, twice.
            const TWO: i64 = ROW as i64 / 4 * 2;
            let ends = _mm512_setr_epi64(TWO, TWO + 1, TWO + 8, TWO + 9, TWO, TWO + 1, TWO + 8, TWO + 9);
            let quads = _mm512_permutex2var_epi64(even[ROW % 4], ends, odd[ROW % 4]);
            let shifted = _mm512_srlv_epi32(quads, by);
            let scale = either(first[0].0[ROW], later[0].0[ROW], is_whole);
            let least = either(first[1].0[ROW], later[1].0[ROW], is_whole);
            let first = lowest_byte(shifted).fma(scale, least);
            let second = lowest_byte(_mm512_srli_epi32::<16>(shifted)).fma(scale, least);
            _mm512_store_si512((&raw mut (*to).0[ROW]).cast(), pairs(first, second));
        });
    }
    #[allow(clippy::needless_range_loop, reason = "of registers, counted")]
    #[inline(always)]
    unsafe fn transpose(from: *const Sums16, to: *mut Sums16) {
        let rows = &(*from).0;
        // Fours of columns of four rows each, and then fours of fours.
        let mut quads = [[_mm512_setzero_si512(); 4]; 4];
        for (group, quads) in quads.iter_mut().enumerate() {
            let at = 4 * group;
            let (a, b) = (aligned(&rows[at]), aligned(&rows[at + 1]));
            let (c, d) = (aligned(&rows[at + 2]), aligned(&rows[at + 3]));
            *quads = by_rows([a, b, c, d]);
        }
        for column in 0..4 {
            let (a, b) = (quads[0][column], quads[1][column]);
            let (c, d) = (quads[2][column], quads[3][column]);
            let (low, high) = (
                _mm512_shuffle_i32x4::<0x88>(a, b),
                _mm512_shuffle_i32x4::<0x88>(c, d),
            );
            let (odd_low, odd_high) = (
                _mm512_shuffle_i32x4::<0xdd>(a, b),
                _mm512_shuffle_i32x4::<0xdd>(c, d),
            );
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(low, high),
                _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high),
                _mm512_shuffle_i32x4::<0xdd>(low, high),
                _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high),
            ];
            for (four, columns) in columns.into_iter().enumerate() {
                _mm512_store_si512((&raw mut (*to).0[4 * four + column]).cast(), columns);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast())
    }
}
