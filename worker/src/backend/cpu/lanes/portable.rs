//! [`Lanes`] in plain Rust: loops over arrays that the compiler vectorises for its target.

use super::{LANES, Lanes, round_half};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(in super::super) struct Portable([f32; LANES]);

/// Of each row the products of its even and of its odd columns.
type Sums = [i32; 2 * LANES];

/// Four words, as they lie in memory.
#[inline(always)]
fn words_of(quad: [i32; 2]) -> [u8; 8] {
    let [a, b] = quad.map(i32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// The same of four bytes.
#[inline(always)]
fn bytes_of(quad: i32) -> [u8; 8] {
    let words = quad
        .to_ne_bytes()
        .map(|byte| i16::from(byte as i8).to_ne_bytes());
    let [a, b, c, d] = words;
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
}

/// Two products of words and their sum, side by side: an instruction of its own on most machines
/// (`pmaddwd`; `smull` and `smlal2`), which compilers find in this form, and only where it is not
/// taken apart first: hence functions that are called.
#[inline(always)]
fn add_products(acc: &mut Sums, words: &[i16; 64], quad: [u8; 8]) {
    // SAFETY: plain bytes of the same size. Put there one by one, they could not be read together
    // before all are written.
    let quads: [i16; 64] = unsafe { std::mem::transmute([quad; 16]) };
    for (at, sum) in acc.iter_mut().enumerate() {
        let product = |at: usize| i32::from(words[at]) * i32::from(quads[at]);
        *sum += product(2 * at) + product(2 * at + 1);
    }
}

#[inline(never)]
fn add_whole(acc: &mut Sums, weights: &[u8; 64], quad: [u8; 8]) {
    let mut words = [0; 64];
    for (word, weight) in words.iter_mut().zip(weights) {
        *word = i16::from(*weight);
    }
    add_products(acc, &words, quad);
}

#[inline(never)]
fn add_signed(acc: &mut Sums, weights: &[u8; 64], quad: [u8; 8]) {
    let mut words = [0; 64];
    for (word, weight) in words.iter_mut().zip(weights) {
        *word = i16::from((*weight ^ 0x80) as i8);
    }
    add_products(acc, &words, quad);
}

#[inline(never)]
fn picked(bytes: &[u8; 64], from: u32, mask: u8) -> [u8; 64] {
    let mut picked = [0; 64];
    for at in 0..64 {
        picked[at] = (bytes[at] >> from) & mask;
    }
    picked
}

macro_rules! lanewise {
    ($a:expr, $b:expr, $op:expr) => {{
        let mut out = $a.0;
        for lane in 0..LANES {
            out[lane] = $op(out[lane], $b.0[lane]);
        }
        Portable(out)
    }};
}

impl Lanes for Portable {
    const ROWS: usize = 4;
    type Acc = Sums;
    type ByteAcc = Sums;
    type Bytes = [u8; 64];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(from.cast::<[f32; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; LANES]>().write_unaligned(self.0)
    }
    #[inline(always)]
    unsafe fn load_f64(from: *const f64) -> Self {
        let numbers = from.cast::<[f64; LANES]>().read_unaligned();
        Self(numbers.map(|number| number as f32))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let whole = from.cast::<[i8; LANES]>().read_unaligned();
        Self(whole.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        Self(bits.map(|b| f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        Self(bits.map(|b| bf16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = self.0.map(|v| f16::from_f32(v).to_bits());
        to.cast::<[u16; LANES]>().write_unaligned(bits)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        // Two roundings: a fused one is a library call where the target has no instruction for it.
        let mut out = addend.0;
        for (lane, sum) in out.iter_mut().enumerate() {
            *sum += self.0[lane] * factor.0[lane];
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        lanewise!(self, n, |a: f32, n: f32| a * f32::from_bits(
            ((n as i32 + 127) as u32) << 23
        ))
    }
    #[inline(always)]
    unsafe fn add_to_f64(self, to: *mut f64) {
        for lane in 0..LANES {
            *to.add(lane) += f64::from(self.0[lane]);
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let bytes = self.0.map(|v| v.round_ties_even() as i8);
        to.cast::<[i8; LANES]>().write_unaligned(bytes);
    }
    #[inline(always)]
    unsafe fn store_quads(q: Self, _: Self, _: Self, row: *mut i8, _: usize, column: usize) {
        let words = q.0.map(|v| v as i16);
        row.add(2 * column)
            .cast::<[i16; LANES]>()
            .write_unaligned(words);
    }
    #[inline(always)]
    unsafe fn quad(row: *const i8, _: usize, column: usize) -> [i32; 2] {
        row.add(2 * column).cast::<[i32; 2]>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn acc() -> Sums {
        [0; 2 * LANES]
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        from.cast::<[u8; 64]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn pick(bytes: [u8; 64], from: u32, width: u32) -> [u8; 64] {
        let mask = ((1u16 << width) - 1) as u8;
        picked(&bytes, from, mask)
    }
    #[inline(always)]
    unsafe fn join(mut low: [u8; 64], high: [u8; 64], by: u32) -> [u8; 64] {
        for (low, high) in low.iter_mut().zip(high) {
            *low |= high << by;
        }
        low
    }
    #[inline(always)]
    unsafe fn look_up(indices: [u8; 64], table: &[u8; 16]) -> [u8; 64] {
        indices.map(|i| table[usize::from(i & 15)])
    }
    #[inline(always)]
    unsafe fn dot7(mut acc: Sums, weights: [u8; 64], quad: [i32; 2]) -> Sums {
        add_whole(&mut acc, &weights, words_of(quad));
        acc
    }
    #[inline(always)]
    unsafe fn acc7_f32(acc: Sums) -> Self {
        Self(std::array::from_fn(|lane| {
            (acc[2 * lane] + acc[2 * lane + 1]) as f32
        }))
    }
    #[inline(always)]
    unsafe fn dot8(mut acc: Sums, weights: [u8; 64], quad: [i32; 2]) -> Sums {
        add_signed(&mut acc, &weights, words_of(quad));
        acc
    }
    #[inline(always)]
    unsafe fn acc8_f32(acc: Sums, _: [i32; 2]) -> Self {
        Self::acc7_f32(acc)
    }

    #[inline(always)]
    unsafe fn byte_acc() -> Sums {
        Self::acc()
    }
    #[inline(always)]
    unsafe fn byte_dot4(acc: Sums, weights: [u8; 64], quad: i32) -> Sums {
        Self::byte_dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn byte_acc4_f32(acc: Sums) -> Self {
        Self::acc7_f32(acc)
    }
    #[inline(always)]
    unsafe fn byte_dot7(mut acc: Sums, weights: [u8; 64], quad: i32) -> Sums {
        add_whole(&mut acc, &weights, bytes_of(quad));
        acc
    }
    #[inline(always)]
    unsafe fn byte_acc7_f32(acc: Sums) -> Self {
        Self::acc7_f32(acc)
    }
    #[inline(always)]
    unsafe fn byte_dot8(mut acc: Sums, weights: [u8; 64], quad: i32) -> Sums {
        add_signed(&mut acc, &weights, bytes_of(quad));
        acc
    }
    #[inline(always)]
    unsafe fn byte_acc8_f32(acc: Sums, _: i32) -> Self {
        Self::acc7_f32(acc)
    }

    #[inline(always)]
    unsafe fn to_bf16(self) -> Self {
        Self(self.0.map(|v| f32::from_bits(round_half(v.to_bits()))))
    }
    #[inline(always)]
    unsafe fn zero_below(self, least: f32) -> Self {
        Self(self.0.map(|v| if v.abs() < least { 0.0 } else { v }))
    }
    #[inline(always)]
    unsafe fn between(position: Self, start: Self, end: Self, inside: Self, outside: Self) -> Self {
        let mut out = outside.0;
        for (lane, out) in out.iter_mut().enumerate() {
            if (start.0[lane]..end.0[lane]).contains(&position.0[lane]) {
                *out = inside.0[lane];
            }
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn column(bytes: [u8; 64], at: u32) -> Self {
        let mut column = [0f32; LANES];
        for (lane, value) in column.iter_mut().enumerate() {
            *value = f32::from(bytes[4 * lane + at as usize]);
        }
        Self(column)
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
}
