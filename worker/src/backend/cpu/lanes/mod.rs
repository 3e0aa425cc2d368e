//! Sixteen f32 lanes, the unit every CPU kernel is written in.
//!
//! Kernels are generic over [`Lanes`] and are compiled once per instruction set by [`kernel!`],
//! whose wrappers carry the `target_feature` attributes; every method here is inlined into one of
//! those wrappers. An implementation's methods may be called only where its instructions exist,
//! which the wrappers' callers guarantee by choosing with a detected [`crate::backend::Isa`].
//!
//! Sixteen is also the rows of a weight tile and the tokens of a KV page, so one vector holds one
//! column of either.

#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every method is one intrinsic or two; the trait states the conditions once"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the module's header states the condition of all of them"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

use super::rows::Line;
use half::bf16;

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Columns of a block in the order in which tiles meet them: of four, the even ones before the odd
/// ones.
pub(super) const LINE_ORDER: [usize; 32] = {
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = at / 4 * 4 + [0, 2, 1, 3][at % 4];
        at += 1;
    }
    order
};

/// Pairs of a block's columns in the order in which tiles of bf16 add them up; the second of a pair is two
/// columns behind the first. (Of four-bit weights in the packed order, a pair's two are sixteen bits
/// apart, and four pairs take one shift.)
pub(super) const PAIRS: [usize; 16] = {
    let mut pairs = [0; 16];
    let mut at = 0;
    while at < 16 {
        let (byte, half, quads) = (at / 8, at / 4 % 2, at % 4);
        pairs[at] = 8 * quads + 4 * half + byte;
        at += 1;
    }
    pairs
};

/// A tile of weights in bf16: of each of sixteen rows [`PAIRS`] of a block's columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct WeightTile(pub(super) [[[u16; 2]; 16]; LANES]);

/// Sixteen rows of sixteen sums.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums16(pub(super) [[f32; LANES]; LANES]);

/// A vector of sixteen f32, and sums of products of whole numbers for sixteen weight rows.
///
/// Weight bytes come as 64 bytes: four consecutive columns of row 0, then of row 1, and so on. A
/// `quad` is the activations of those columns, in whichever form `store_quads` put them there.
pub(super) trait Lanes: Copy {
    /// Activation rows worth keeping in registers at once.
    const ROWS: usize;
    /// Sums over a block of at most 32 columns. All of its products come from one of `dot7` and
    /// `dot8`, and `acc7_f32` or `acc8_f32` ends it.
    type Acc: Copy;
    /// The same of activations of one byte.
    type ByteAcc: Copy;
    /// 64 weight bytes.
    type Bytes: Copy;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to nearest even.
    unsafe fn load_f64(from: *const f64) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Rounds to nearest even.
    unsafe fn store_f16(self, to: *mut u16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    unsafe fn round(self) -> Self;
    /// `self * factor + addend`
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// `self * 2^n` for whole `n` in -126..=127.
    unsafe fn scale2(self, n: Self) -> Self;
    /// `to[lane] += self[lane]` in f64, for sixteen lanes.
    unsafe fn add_to_f64(self, to: *mut f64);
    /// The same of `count` vectors that are `pitch` numbers apart, one after the other; to nothing, if that
    /// `begins` the sum.
    #[inline(always)]
    unsafe fn add_up(from: *const f32, pitch: usize, count: usize, begins: bool, to: *mut f64) {
        if begins {
            to.cast::<[f64; LANES]>().write_unaligned([0.0; LANES]);
        }
        for at in 0..count {
            Self::load(from.add(at * pitch)).add_to_f64(to);
        }
    }
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;
    /// Rounds to nearest even and stores as bytes; values lie in -127..=127.
    unsafe fn store_i8(self, to: *mut i8);
    /// Stores the whole numbers q = 254 * coarse + fine of sixteen columns from `column` on, a
    /// multiple of four, in the row's `2 * width` bytes: as bytes, coarse ones and `width` further
    /// fine ones, or as words, as suits the products.
    unsafe fn store_quads(
        q: Self,
        coarse: Self,
        fine: Self,
        row: *mut i8,
        width: usize,
        column: usize,
    );
    /// The quad from `column` on, a multiple of four.
    unsafe fn quad(row: *const i8, width: usize, column: usize) -> [i32; 2];

    unsafe fn acc() -> Self::Acc;
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// Of each byte the `width` bits from bit `from` on.
    unsafe fn pick(bytes: Self::Bytes, from: u32, width: u32) -> Self::Bytes;
    /// `low + (high << by)` of each byte, whose bits do not meet and stay below the eighth.
    unsafe fn join(low: Self::Bytes, high: Self::Bytes, by: u32) -> Self::Bytes;
    /// `table[index]` of each byte, all below 16.
    unsafe fn look_up(indices: Self::Bytes, table: &[u8; 16]) -> Self::Bytes;

    /// Of weights below 128.
    unsafe fn dot7(acc: Self::Acc, weights: Self::Bytes, quad: [i32; 2]) -> Self::Acc;
    /// Rounded once.
    unsafe fn acc7_f32(acc: Self::Acc) -> Self;
    /// Weights are stored as value + 128.
    unsafe fn dot8(acc: Self::Acc, weights: Self::Bytes, quad: [i32; 2]) -> Self::Acc;
    /// Rounded once; `totals` are the sums of the block's coarse and of its fine bytes.
    unsafe fn acc8_f32(acc: Self::Acc, totals: [i32; 2]) -> Self;

    unsafe fn byte_acc() -> Self::ByteAcc;
    /// Of weights below 16 and activations in -127..=127, as those below.
    unsafe fn byte_dot4(acc: Self::ByteAcc, weights: Self::Bytes, quad: i32) -> Self::ByteAcc;
    unsafe fn byte_acc4_f32(acc: Self::ByteAcc) -> Self;
    /// Of weights below 128.
    unsafe fn byte_dot7(acc: Self::ByteAcc, weights: Self::Bytes, quad: i32) -> Self::ByteAcc;
    unsafe fn byte_acc7_f32(acc: Self::ByteAcc) -> Self;
    /// Weights are stored as value + 128.
    unsafe fn byte_dot8(acc: Self::ByteAcc, weights: Self::Bytes, quad: i32) -> Self::ByteAcc;
    unsafe fn byte_acc8_f32(acc: Self::ByteAcc, total: i32) -> Self;

    /// 32 columns of a row, whole numbers of at most eight bits (times a power of two), as bf16 in
    /// [`LINE_ORDER`].
    #[inline(always)]
    unsafe fn store_line(first: Self, second: Self, to: *mut u16) {
        let mut columns = [0f32; 2 * LANES];
        first.store(columns.as_mut_ptr());
        second.store(columns.as_mut_ptr().add(LANES));
        for (at, column) in LINE_ORDER.into_iter().enumerate() {
            *to.add(at) = bf16::from_f32(columns[column]).to_bits();
        }
    }
    /// `table[byte]` of four columns of sixteen weight rows, whose bytes are below 32: the even
    /// columns, two of each row, then the odd ones.
    #[inline(always)]
    unsafe fn store_table(bytes: Self::Bytes, table: &[u16; 32], to: *mut u16) {
        const { assert!(size_of::<Self::Bytes>() == 64) };
        let bytes = (&raw const bytes).cast::<u8>();
        for at in 0..64 {
            let (row, column) = (at / 4, at % 4);
            let place = column % 2 * 32 + row * 2 + column / 2;
            *to.add(place) = table[usize::from(*bytes.add(at) & 31)];
        }
    }
    /// The same of `byte - less`, for any byte.
    #[inline(always)]
    unsafe fn store_whole(bytes: Self::Bytes, less: i16, to: *mut u16) {
        const { assert!(size_of::<Self::Bytes>() == 64) };
        let bytes = (&raw const bytes).cast::<u8>();
        for at in 0..64 {
            let (row, column) = (at / 4, at % 4);
            let place = column % 2 * 32 + row * 2 + column / 2;
            *to.add(place) = bf16::from_f32(f32::from(i16::from(*bytes.add(at)) - less)).to_bits();
        }
    }

    /// To the nearest of those that a bf16 holds, of two as near the one further from zero.
    unsafe fn to_bf16(self) -> Self;
    /// Zeroes where the magnitude is below `least`; what is no number stays.
    unsafe fn zero_below(self, least: f32) -> Self;
    /// `inside` where `position` is no less than `start` and less than `end`, else `outside`.
    unsafe fn between(position: Self, start: Self, end: Self, inside: Self, outside: Self) -> Self;
    /// Byte `at` of each row's four, as a number.
    unsafe fn column(bytes: Self::Bytes, at: u32) -> Self;

    /// Of values that bf16 hold.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let mut values = [0f32; LANES];
        self.store(values.as_mut_ptr());
        for (at, value) in values.into_iter().enumerate() {
            *to.add(at) = (value.to_bits() >> 16) as u16;
        }
    }
    /// A pair of each lane, of any values: `first` and then `second`, rounded by `to_bf16`.
    #[inline(always)]
    unsafe fn store_pairs(first: Self, second: Self, to: *mut Line) {
        let mut bits = [[0u16; LANES]; 2];
        first.to_bf16().store_bf16(bits[0].as_mut_ptr());
        second.to_bf16().store_bf16(bits[1].as_mut_ptr());
        let pairs = (*to).0.chunks_exact_mut(2);
        for ((pair, first), second) in pairs.zip(bits[0]).zip(bits[1]) {
            pair.copy_from_slice(&[first, second]);
        }
    }
    /// The same of values that bf16 hold.
    #[inline(always)]
    unsafe fn store_rounded_pairs(first: Self, second: Self, to: *mut Line) {
        Self::store_pairs(first, second, to);
    }
    /// [`PAIRS`] of 32 columns of a row, rounded by `to_bf16`.
    #[inline(always)]
    unsafe fn store_row(first: Self, second: Self, to: *mut Line) {
        let mut columns = [0u16; 2 * LANES];
        first.to_bf16().store_bf16(columns.as_mut_ptr());
        second.to_bf16().store_bf16(columns.as_mut_ptr().add(LANES));
        for (pair, column) in (*to).0.chunks_exact_mut(2).zip(PAIRS) {
            pair.copy_from_slice(&[columns[column], columns[column + 2]]);
        }
    }
    /// `levels[nibble] * scale + least`, rounded by `to_bf16`, of the 32 columns of sixteen rows whose nibbles
    /// lie in the four vectors from `from` on as `quants` says.
    #[inline(always)]
    unsafe fn store_nibbles(
        from: *const u8,
        levels: &[f32; 16],
        scale: Self,
        least: Self,
        to: *mut WeightTile,
    ) {
        let shift = |vector: usize| (vector % 2 * 4) as u8;
        store_tile([[scale, least]; 2], to, |row, column| {
            let (vector, byte) = (column / 4, column % 4);
            let at = vector / 2 * 64 + row * 4 + byte;
            levels[usize::from((*from.add(at) >> shift(vector)) & 15)]
        });
    }
    /// `byte * scale + least`, rounded by `to_bf16`, of eight vectors. Scales and leasts are of all columns,
    /// or of the first half and of the second.
    #[inline(always)]
    unsafe fn store_bytes(vectors: [Self::Bytes; 8], parts: &[[Self; 2]], to: *mut WeightTile) {
        const { assert!(size_of::<Self::Bytes>() == 64) };
        let bytes = vectors.as_ptr().cast::<u8>();
        store_tile([parts[0], parts[parts.len() - 1]], to, |row, column| {
            f32::from(*bytes.add(column / 4 * 64 + row * 4 + column % 4))
        });
    }
    /// `to[n][m] = from[m][n]`
    #[inline(always)]
    unsafe fn transpose(from: *const Sums16, to: *mut Sums16) {
        for m in 0..LANES {
            for n in 0..LANES {
                (*to).0[n][m] = (*from).0[m][n];
            }
        }
    }

    /// Asks for the cache line of `at`; any address is allowed. Into the second-level cache, which can wait
    /// for more lines of memory at once than the first can.
    unsafe fn prefetch(at: *const u8);

    /// 1 / x of x from 1 to 2^126, relative error below 1e-4.
    #[inline(always)]
    unsafe fn inverse_near(self) -> Self {
        Self::splat(1.0).div(self)
    }

    /// e^x, relative error below 2e-7, clamped to e^-87 and e^88.
    ///
    /// Splits x = n ln2 + r (ln2 in two parts, so that r is exact) and sums the Taylor series of
    /// e^r to the sixth power: |r| <= ln2 / 2 makes the rest smaller than an f32 can show.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 720.0);
        p = p.fma(r, Self::splat(1.0 / 120.0));
        p = p.fma(r, Self::splat(1.0 / 24.0));
        p = p.fma(r, Self::splat(1.0 / 6.0));
        p = p.fma(r, Self::splat(0.5));
        p = p.fma(r, Self::splat(1.0));
        p = p.fma(r, Self::splat(1.0));
        p.scale2(n)
    }

    /// 2^x of x below 127, relative error below 6e-5 (a bf16's is 2e-3), exactly 1 of 0; from below 2^-126 on
    /// it gives that.
    ///
    /// The Taylor series of 2^r to the fourth power, |r| <= 1/2.
    #[inline(always)]
    unsafe fn exp2_near(self) -> Self {
        const LN2: f32 = std::f32::consts::LN_2;
        let x = self.max(Self::splat(-126.0));
        let n = x.round();
        let r = x.sub(n);
        let mut p = Self::splat(LN2 * LN2 * LN2 * LN2 / 24.0);
        p = p.fma(r, Self::splat(LN2 * LN2 * LN2 / 6.0));
        p = p.fma(r, Self::splat(LN2 * LN2 / 2.0));
        p = p.fma(r, Self::splat(LN2));
        p = p.fma(r, Self::splat(1.0));
        p.scale2(n)
    }
}

/// A tile of `quant(row, column) * scale + least`.
#[inline(always)]
unsafe fn store_tile<V: Lanes>(
    parts: [[V; 2]; 2],
    to: *mut WeightTile,
    quant: impl Fn(usize, usize) -> f32,
) {
    let mut numbers = [[[0f32; LANES]; 2]; 2];
    for (numbers, part) in numbers.iter_mut().zip(parts) {
        part[0].store(numbers[0].as_mut_ptr());
        part[1].store(numbers[1].as_mut_ptr());
    }
    for row in 0..LANES {
        for (at, first) in PAIRS.into_iter().enumerate() {
            for (side, column) in [first, first + 2].into_iter().enumerate() {
                let [scale, least] = &numbers[column / 16];
                // The product is exact.
                let weight = quant(row, column) * scale[row] + least[row];
                (*to).0[row][at][side] = (round_half(weight.to_bits()) >> 16) as u16;
            }
        }
    }
}

/// The bits of the nearest float whose lower half is zero.
#[inline(always)]
fn round_half(bits: u32) -> u32 {
    bits.wrapping_add(0x8000) & 0xffff_0000
}

/// Compiles a function generic over [`Lanes`] (and over what is named behind it) once per instruction
/// set and dispatches on an `Isa`.
///
/// The generated function is unsafe: `isa` must be one this machine has, and the pointers must be
/// as the generic function says.
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $generic:ident$(<$of:ty>)?) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::backend::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                $generic::<$crate::backend::cpu::lanes::Avx512$(, $of)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                $generic::<$crate::backend::cpu::lanes::Avx2$(, $of)?>($($arg),*)
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                $crate::backend::Isa::Avx512Vnni | $crate::backend::Isa::Amx => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::backend::Isa::Avx2 => avx2($($arg),*),
                _ => $generic::<$crate::backend::cpu::lanes::Portable$(, $of)?>($($arg),*),
            }
        }
    };
}
pub(super) use kernel;
