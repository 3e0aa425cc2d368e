//! [`Lanes`] in plain Rust: loops over arrays that the compiler vectorises for its target.

use super::{LANES, Lanes, joined, quad_of_bytes};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(in super::super) struct Portable([f32; LANES]);

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
    /// Of coarse and of fine bytes.
    type Acc = [[i32; LANES]; 2];
    type ByteAcc = [i32; LANES];
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
    unsafe fn load_i32(from: *const i32) -> Self {
        let whole = from.cast::<[i32; LANES]>().read_unaligned();
        Self(whole.map(|v| v as f32))
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
    unsafe fn acc() -> [[i32; LANES]; 2] {
        [[0; LANES]; 2]
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        from.cast::<[u8; 64]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn pick(bytes: [u8; 64], from: u32, width: u32) -> [u8; 64] {
        let mask = ((1u16 << width) - 1) as u8;
        bytes.map(|b| (b >> from) & mask)
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
    unsafe fn dot7(
        mut acc: [[i32; LANES]; 2],
        weights: [u8; 64],
        quad: [i32; 2],
    ) -> [[i32; LANES]; 2] {
        for (acc, quad) in acc.iter_mut().zip(quad) {
            *acc = Self::byte_dot7(*acc, weights, quad);
        }
        acc
    }
    #[inline(always)]
    unsafe fn acc7_f32(acc: [[i32; LANES]; 2]) -> Self {
        joined(Self::byte_acc7_f32(acc[0]), Self::byte_acc7_f32(acc[1]))
    }
    #[inline(always)]
    unsafe fn dot8(acc: [[i32; LANES]; 2], weights: [u8; 64], quad: [i32; 2]) -> [[i32; LANES]; 2] {
        Self::dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn acc8_f32(mut acc: [[i32; LANES]; 2], totals: [i32; 2]) -> Self {
        for (acc, total) in acc.iter_mut().zip(totals) {
            acc.iter_mut().for_each(|v| *v -= 128 * total);
        }
        Self::acc7_f32(acc)
    }

    #[inline(always)]
    unsafe fn byte_acc() -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn byte_dot4(acc: [i32; LANES], weights: [u8; 64], quad: i32) -> [i32; LANES] {
        Self::byte_dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn byte_acc4_f32(acc: [i32; LANES]) -> Self {
        Self::byte_acc7_f32(acc)
    }
    #[inline(always)]
    unsafe fn byte_dot7(mut acc: [i32; LANES], weights: [u8; 64], quad: i32) -> [i32; LANES] {
        let a = quad.to_ne_bytes().map(|b| i32::from(b as i8));
        for (row, sum) in acc.iter_mut().enumerate() {
            for (column, a) in a.iter().enumerate() {
                *sum += i32::from(weights[row * 4 + column]) * a;
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn byte_acc7_f32(acc: [i32; LANES]) -> Self {
        Self(acc.map(|v| v as f32))
    }
    #[inline(always)]
    unsafe fn byte_dot8(acc: [i32; LANES], weights: [u8; 64], quad: i32) -> [i32; LANES] {
        Self::byte_dot7(acc, weights, quad)
    }
    #[inline(always)]
    unsafe fn byte_acc8_f32(acc: [i32; LANES], total: i32) -> Self {
        Self::byte_acc7_f32(acc.map(|v| v - 128 * total))
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_at: *const u8) {}
}
