//! Activations: rows of f32 and, beside them, the same rows as int8 for quantised weights.
//!
//! A block of 32 values x is stored as q = round(x / d), d = max|x| / 127, with d, the sum of q,
//! and d times that sum (which a weight's minimum multiplies).

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes, kernel};
use super::pack::BLOCK;

/// `rows x width` values; see the module's header.
#[derive(Default)]
pub struct CpuRows {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
    /// Valid where `is_quantised`.
    pub(super) quants: Vec<i8>,
    pub(super) scales: Vec<f32>,
    pub(super) totals: Vec<i32>,
    pub(super) scaled_totals: Vec<f32>,
    pub(super) is_quantised: bool,
}

impl CpuRows {
    /// Takes a new shape; the values are whatever was there.
    pub(super) fn reshape(&mut self, rows: usize, width: usize) {
        self.rows = rows;
        self.width = width;
        self.data.resize(rows * width, 0.0);
        self.is_quantised = false;
    }

    /// Makes room for the quantised form. The width is a multiple of 32.
    pub(super) fn reserve_quants(&mut self) {
        assert_eq!(self.width % BLOCK, 0, "rows of {} columns", self.width);
        let blocks = self.rows * self.width / BLOCK;
        self.quants.resize(self.rows * self.width, 0);
        self.scales.resize(blocks, 0.0);
        self.totals.resize(blocks, 0);
        self.scaled_totals.resize(blocks, 0.0);
    }

    pub(super) fn quants_mut(&mut self) -> QuantsMut {
        QuantsMut {
            quants: self.quants.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            totals: self.totals.as_mut_ptr(),
            scaled_totals: self.scaled_totals.as_mut_ptr(),
        }
    }
}

/// `rows x width` sums in f64, one rank's part of what all ranks add up.
#[derive(Default)]
pub struct CpuPartial {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f64>,
}

impl CpuPartial {
    /// Takes a new shape; the values are whatever was there.
    pub(super) fn reshape(&mut self, rows: usize, width: usize) {
        self.rows = rows;
        self.width = width;
        self.data.resize(rows * width, 0.0);
    }
}

/// Where quantised blocks go, for several threads at once.
#[derive(Clone, Copy)]
pub(super) struct QuantsMut {
    quants: *mut i8,
    scales: *mut f32,
    totals: *mut i32,
    scaled_totals: *mut f32,
}

// SAFETY: each thread writes blocks of its own (`quantise`'s contract).
unsafe impl Send for QuantsMut {}
// SAFETY: as above.
unsafe impl Sync for QuantsMut {}

kernel! {
    /// Quantises `blocks` blocks from `from` into blocks `first..first + blocks` of `to`, which no
    /// other thread touches meanwhile.
    pub(super) fn quantise(from: *const f32, to: QuantsMut, first: usize, blocks: usize)
        = quantise_blocks
}

#[inline(always)]
unsafe fn quantise_blocks<V: Lanes>(from: *const f32, to: QuantsMut, first: usize, blocks: usize) {
    for block in 0..blocks {
        let x = from.add(block * BLOCK);
        let (a, b) = (V::load(x), V::load(x.add(LANES)));
        let scale = a.abs().max(b.abs()).largest() / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        // A block of denormals: 1 / scale overflows, and the block counts as zero.
        let inverse = V::splat(if inverse.is_finite() { inverse } else { 0.0 });
        let at = first + block;
        let q = to.quants.add(at * BLOCK);
        let total = a.mul(inverse).store_i8(q) + b.mul(inverse).store_i8(q.add(LANES));
        *to.scales.add(at) = scale;
        *to.totals.add(at) = total;
        *to.scaled_totals.add(at) = scale * total as f32;
    }
}

kernel! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` over `columns` values.
    pub(super) fn norm_row(
        x: *const f32, weight: *const f32, columns: usize, eps: f32, out: *mut f32,
    ) = norm_row_lanes
}

#[inline(always)]
unsafe fn norm_row_lanes<V: Lanes>(
    x: *const f32,
    weight: *const f32,
    columns: usize,
    eps: f32,
    out: *mut f32,
) {
    let whole = columns / LANES * LANES;
    let mut sums = V::zero();
    for at in (0..whole).step_by(LANES) {
        let v = V::load(x.add(at));
        sums = v.fma(v, sums);
    }
    let mut sum = sums.sum();
    for at in whole..columns {
        sum += *x.add(at) * *x.add(at);
    }
    let factor = 1.0 / (sum / columns as f32 + eps).sqrt();
    for at in (0..whole).step_by(LANES) {
        let v = V::load(x.add(at)).mul(V::splat(factor));
        v.mul(V::load(weight.add(at))).store(out.add(at));
    }
    for at in whole..columns {
        *out.add(at) = *x.add(at) * factor * *weight.add(at);
    }
}

kernel! {
    /// `gate = silu(gate) * up` over `count` values, a multiple of 16; silu(x) = x / (1 + e^-x).
    pub(super) fn silu_mul(gate: *mut f32, up: *const f32, count: usize) = silu_mul_lanes
}

#[inline(always)]
unsafe fn silu_mul_lanes<V: Lanes>(gate: *mut f32, up: *const f32, count: usize) {
    for at in (0..count).step_by(LANES) {
        let g = V::load(gate.add(at));
        let below = V::zero().sub(g).exp().add(V::splat(1.0));
        g.div(below).mul(V::load(up.add(at))).store(gate.add(at));
    }
}
