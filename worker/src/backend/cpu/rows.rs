//! Activations: rows of f32 and, beside them, the same rows as two bytes a value for quantised
//! weights.
//!
//! A block of 32 values x is stored as q = round(x / d), d = max|x| / 32,384, in two signed bytes:
//! q = 254 * coarse + fine, both within -127..=127, so that the kernels' byte products apply to
//! each (or in one word, where the kernels multiply words: AVX2 and plain code). With q go d, the sums of the coarse
//! and of the fine bytes, and d times the sum of q (which a weight's minimum multiplies), of the
//! block and of each half of it.
//!
//! One byte a value (`ActivationFormat::Int8`; llama.cpp has that) halves the products, but its
//! rounding moves logprobs by 0.04 on SmolLM2 and turns tokens whose lead is 0.25; with two it is
//! 0.0005. All five matrices of a layer and the output contribute alike, so none can be spared. It
//! is the same form with d = max|x| / 127 and coarse bytes that are zero: kernels that do not know
//! (tiles) get the same sums from it as those that leave these out.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes, kernel};
use super::pack::BLOCK;
use trireme_shared::model::ActivationFormat;

/// What one step of the coarse byte is worth.
pub(super) const COARSE: f32 = 254.0;
/// The largest magnitude of a quantised value. One more, and the coarse byte would round to 128.
const QUANT_MAX: f32 = COARSE * 127.0 + 126.0;
/// The same of one byte.
const BYTE_MAX: f32 = 127.0;

/// Quantised rows are kept in so many, whatever is past the last: a tile takes all of them.
pub(super) const STRIP_ROWS: usize = 8;

/// One block's coarse or fine bytes, aligned so that they never lie across two cache lines.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(32))]
pub(super) struct BlockBytes(pub(super) [i8; BLOCK]);

/// `rows x width` values; see the module's header.
#[derive(Default)]
pub struct CpuRows {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
    /// Valid where `is_quantised`, as all below: of each row its coarse, then its fine bytes, or its
    /// words (`Lanes::store_quads`). The buffers may be longer than the rows are.
    pub(super) bytes: Vec<BlockBytes>,
    pub(super) scales: Vec<f32>,
    pub(super) format: ActivationFormat,
    /// Sums of a block's coarse and fine bytes.
    pub(super) totals: Vec<[i32; 2]>,
    pub(super) scaled_totals: Vec<f32>,
    /// The same of each half block.
    pub(super) half_totals: Vec<[f32; 2]>,
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
    pub(super) fn reserve_quants(&mut self, format: ActivationFormat) {
        self.format = format;
        assert_eq!(self.width % BLOCK, 0, "rows of {} columns", self.width);
        let blocks = self.rows.next_multiple_of(STRIP_ROWS) * (self.width / BLOCK);
        if self.scales.len() < blocks {
            self.bytes.resize(2 * blocks, BlockBytes([0; BLOCK]));
            self.scales.resize(blocks, 0.0);
            self.totals.resize(blocks, [0; 2]);
            self.scaled_totals.resize(blocks, 0.0);
            self.half_totals.resize(blocks, [0.0; 2]);
        }
    }

    pub(super) fn quants_mut(&mut self) -> QuantsMut {
        QuantsMut {
            format: self.format,
            row_blocks: self.width / BLOCK,
            bytes: self.bytes.as_mut_ptr().cast(),
            scales: self.scales.as_mut_ptr(),
            totals: self.totals.as_mut_ptr(),
            scaled_totals: self.scaled_totals.as_mut_ptr(),
            half_totals: self.half_totals.as_mut_ptr(),
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
    format: ActivationFormat,
    row_blocks: usize,
    bytes: *mut i8,
    scales: *mut f32,
    totals: *mut [i32; 2],
    scaled_totals: *mut f32,
    half_totals: *mut [f32; 2],
}

impl QuantsMut {
    /// Row `row` becomes row `from` of `x`.
    ///
    /// # Safety
    /// Room was made for the row, no other thread touches it meanwhile, and `x` is quantised and as
    /// wide.
    pub(super) unsafe fn copy_row(self, row: usize, x: &CpuRows, from: usize) {
        let blocks = self.row_blocks;
        let (from, to) = (from * blocks, row * blocks);
        let bytes = x.bytes[2 * from..][..2 * blocks].as_ptr().cast::<i8>();
        bytes.copy_to_nonoverlapping(self.bytes.add(2 * to * BLOCK), 2 * blocks * BLOCK);
        let scales = x.scales[from..][..blocks].as_ptr();
        scales.copy_to_nonoverlapping(self.scales.add(to), blocks);
        let totals = x.totals[from..][..blocks].as_ptr();
        totals.copy_to_nonoverlapping(self.totals.add(to), blocks);
        let scaled = x.scaled_totals[from..][..blocks].as_ptr();
        scaled.copy_to_nonoverlapping(self.scaled_totals.add(to), blocks);
        let halves = x.half_totals[from..][..blocks].as_ptr();
        halves.copy_to_nonoverlapping(self.half_totals.add(to), blocks);
    }
}

// SAFETY: each thread writes blocks of its own (`quantise`'s contract).
unsafe impl Send for QuantsMut {}
// SAFETY: as above.
unsafe impl Sync for QuantsMut {}

kernel! {
    /// Quantises `blocks` blocks from `from` into blocks `first..first + blocks` of row `row` of
    /// `to`, which no other thread touches meanwhile.
    pub(super) fn quantise(
        from: *const f32, to: QuantsMut, row: usize, first: usize, blocks: usize,
    ) = quantise_blocks
}

#[inline(always)]
unsafe fn quantise_blocks<V: Lanes>(
    from: *const f32,
    to: QuantsMut,
    row: usize,
    first: usize,
    blocks: usize,
) {
    let width = to.row_blocks * BLOCK;
    let quads = to.bytes.add(2 * row * width);
    let quant_max = match to.format {
        ActivationFormat::Int16 => QUANT_MAX,
        ActivationFormat::Int8 => BYTE_MAX,
    };
    for block in 0..blocks {
        let x = from.add(block * BLOCK);
        let (a, b) = (V::load(x), V::load(x.add(LANES)));
        let scale = a.abs().max(b.abs()).largest() / quant_max;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        // A block of denormals: 1 / scale overflows, and the block counts as zero.
        let inverse = V::splat(if inverse.is_finite() { inverse } else { 0.0 });
        let at = row * to.row_blocks + first + block;
        // Sums of whole numbers far below 2^24: exact in f32, in whichever order.
        let (mut coarse_sum, mut half_sums) = (V::zero(), [0.0; 2]);
        for (half, x) in [a, b].into_iter().enumerate() {
            let column = (first + block) * BLOCK + half * LANES;
            let q = x.mul(inverse).round();
            match to.format {
                ActivationFormat::Int16 => {
                    let coarse = q.mul(V::splat(1.0 / COARSE)).round();
                    let fine = coarse.fma(V::splat(-COARSE), q);
                    V::store_quads(q, coarse, fine, quads, width, column);
                    coarse_sum = coarse_sum.add(coarse);
                }
                ActivationFormat::Int8 => {
                    V::zero().store_i8(quads.add(column));
                    q.store_i8(quads.add(width + column));
                }
            }
            half_sums[half] = q.sum();
        }
        let (coarse, whole) = (coarse_sum.sum(), half_sums[0] + half_sums[1]);
        *to.scales.add(at) = scale;
        *to.totals.add(at) = [coarse as i32, (whole - COARSE * coarse) as i32];
        *to.scaled_totals.add(at) = scale * whole;
        *to.half_totals.add(at) = half_sums.map(|sum| scale * sum);
    }
}
