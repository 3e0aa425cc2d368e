//! Activations: rows of f32 and, beside them, the same rows in the form in which quantised weights
//! meet them.
//!
//! A block of 32 values x is stored as q = round(x / d), d the power of two next above max|x| / 32,384, in
//! two signed bytes:
//! q = 254 * coarse + fine, both within -127..=127, so that the kernels' byte products apply to
//! each (or in one word, where the kernels multiply words: AVX2 and plain code). With q go d, the sums of the coarse
//! and of the fine bytes, and d times the sum of q (which a weight's minimum multiplies), of the
//! block and of each half of it.
//!
//! For tiles they stand in **lines** instead: of each block 32 bf16 of coarse numbers, d times the
//! multiple of 256 next to q, and 32 of fine ones, the rest. All are exact, for d is a power of two.
//!
//! One byte a value (`ActivationFormat::Int8`; llama.cpp has that) halves the products, but its
//! rounding moves logprobs by 0.04 on SmolLM2 and turns tokens whose lead is 0.25; with two it is
//! 0.0005. All five matrices of a layer and the output contribute alike, so none can be spared. It
//! is the same form with d = max|x| / 127 (a power of two would cost up to one of its seven bits),
//! coarse bytes that are zero, and lines of q itself, no coarse ones.
//!
//! As bf16 (`ActivationFormat::Bf16`) they have no scales and no sums. For lanes they lie in the bytes'
//! place, column by column. For tiles sixteen rows make a **strip**, whose blocks follow each other: of a
//! block sixteen lines, one a pair of columns ([`PAIRS`]), each with the pair of every row.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes, Sums16, kernel};
use super::pack::BLOCK;
use std::mem::MaybeUninit;
use trireme_shared::model::ActivationFormat;

/// What one step of the coarse byte is worth.
pub(super) const COARSE: f32 = 254.0;
/// The largest magnitude of a quantised value. One more, and the coarse byte would round to 128.
const QUANT_MAX: f32 = COARSE * 127.0 + 126.0;
/// The same of one byte.
const BYTE_MAX: f32 = 127.0;

/// What one step of the coarse number of a line is worth.
const COARSE_LINE: f32 = 256.0;

/// Blocks whose values are all below some 1e-26 count as zero: tiles take no smaller floats.
const SCALE_MIN: f32 = 1.0 / (1u128 << 100) as f32;

/// A tile takes so many rows at once, whatever is past the last.
pub(super) const STRIP_ROWS: usize = 16;

/// One block's coarse or fine bytes, aligned so that they never lie across two cache lines.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(32))]
pub(super) struct BlockBytes(pub(super) [i8; BLOCK]);

/// 32 bf16: one block's coarse or fine numbers in the order of `lanes::LINE_ORDER`, or a pair of columns of
/// sixteen rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; BLOCK]);

/// How rows are quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Form {
    pub(super) activations: ActivationFormat,
    /// In lines, as tiles take them, and not as lanes do.
    pub(super) in_lines: bool,
}

impl Form {
    /// Lines of a block of a row.
    pub(super) fn lines(self) -> usize {
        match self.activations {
            ActivationFormat::Int16 => 2,
            ActivationFormat::Int8 | ActivationFormat::Bf16 => 1,
        }
    }

    /// Rows come in strips.
    pub(super) fn is_in_strips(self) -> bool {
        self.in_lines && self.activations == ActivationFormat::Bf16
    }
}

/// `rows x width` values; see the module's header.
#[derive(Default)]
pub struct CpuRows {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
    /// Valid where `is_quantised`, as all below: of each row its coarse, then its fine bytes, or its
    /// words (`Lanes::store_quads`). The buffers may be longer than the rows are.
    pub(super) bytes: Vec<BlockBytes>,
    /// Of each row, block by block, its coarse and its fine line; or strips. A tile's rows past the last are
    /// there, whatever they hold.
    pub(super) lines: Vec<Line>,
    pub(super) scales: Vec<f32>,
    pub(super) form: Form,
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
    pub(super) fn reserve_quants(&mut self, form: Form) {
        self.form = form;
        assert_eq!(self.width % BLOCK, 0, "rows of {} columns", self.width);
        let blocks = self.rows * (self.width / BLOCK);
        if form.activations != ActivationFormat::Bf16 && self.scales.len() < blocks {
            self.scales.resize(blocks, 0.0);
            self.totals.resize(blocks, [0; 2]);
            self.scaled_totals.resize(blocks, 0.0);
            self.half_totals.resize(blocks, [0.0; 2]);
        }
        if form.in_lines {
            let lines = match form.is_in_strips() {
                true => self.rows.next_multiple_of(STRIP_ROWS) * (self.width / BLOCK),
                false => (self.rows + STRIP_ROWS - 1) * self.pitch(),
            };
            if self.lines.len() < lines {
                self.lines.resize(lines, Line([0; BLOCK]));
            }
        } else if self.bytes.len() < 2 * blocks {
            self.bytes.resize(2 * blocks, BlockBytes([0; BLOCK]));
        }
    }

    /// Lines from a row to the next: an odd number, so that the same block of sixteen rows does not
    /// lie in one set of a cache.
    pub(super) fn pitch(&self) -> usize {
        (self.width / BLOCK * self.form.lines()) | 1
    }

    /// Strips from the one on that begins with row `first`.
    pub(super) fn strips(&self, first: usize) -> &[Line] {
        assert!(
            first.is_multiple_of(STRIP_ROWS),
            "no strip begins at {first}"
        );
        &self.lines[first * (self.width / BLOCK)..]
    }

    pub(super) fn quants_mut(&mut self) -> QuantsMut {
        QuantsMut {
            form: self.form,
            row_blocks: self.width / BLOCK,
            pitch: self.pitch(),
            bytes: self.bytes.as_mut_ptr().cast(),
            lines: self.lines.as_mut_ptr(),
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
    form: Form,
    row_blocks: usize,
    pitch: usize,
    bytes: *mut i8,
    lines: *mut Line,
    scales: *mut f32,
    totals: *mut [i32; 2],
    scaled_totals: *mut f32,
    half_totals: *mut [f32; 2],
}

// SAFETY: each thread writes blocks of its own (`quantise`'s contract).
unsafe impl Send for QuantsMut {}
// SAFETY: as above.
unsafe impl Sync for QuantsMut {}

impl QuantsMut {
    /// Where a row's pair of the first two columns of a block goes; the other pairs' places are a line apart each.
    #[inline(always)]
    unsafe fn pairs(&self, row: usize, block: usize) -> *mut u32 {
        let strip = row / STRIP_ROWS * self.row_blocks + block;
        self.lines
            .add(strip * STRIP_ROWS)
            .cast::<u32>()
            .add(row % STRIP_ROWS)
    }

    /// The lines of a block of the strip that begins with `row`.
    ///
    /// # Safety
    /// Rows are in strips, and there is such a block.
    pub(super) unsafe fn strip(&self, row: usize, block: usize) -> *mut Line {
        self.pairs(row, block).cast()
    }
}

/// What of a value counts where activations are bf16, before it is rounded. Values below 2^-80 are zero:
/// products with weights, which are no smaller than an f16, then stay far above what tiles take for zero.
#[inline(always)]
pub(super) unsafe fn counted<V: Lanes>(value: V) -> V {
    const MIN: f32 = 1.0 / (1u128 << 80) as f32;
    value.zero_below(MIN)
}

kernel! {
    /// Quantises `blocks` blocks from `from` into blocks `first..first + blocks` of row `row` of
    /// `to`, which no other thread touches meanwhile.
    pub(super) fn quantise(
        from: *const f32, to: QuantsMut, row: usize, first: usize, blocks: usize,
    ) = quantise_blocks
}

kernel! {
    /// Quantises all blocks of up to sixteen rows, which are those of one strip from row `row` of `to` on. No
    /// other thread touches the strip meanwhile: its rows share cache lines.
    pub(super) fn quantise_strip(
        from: *const f32, to: QuantsMut, row: usize, rows: usize,
    ) = quantise_strip_lanes
}

#[inline(always)]
unsafe fn quantise_strip_lanes<V: Lanes>(from: *const f32, to: QuantsMut, row: usize, rows: usize) {
    // So many are turned around at once; fewer are put one by one.
    const TURNED_MIN: usize = 4;
    let width = to.row_blocks * BLOCK;
    if rows < TURNED_MIN {
        for at in 0..rows {
            quantise_blocks::<V>(from.add(at * width), to, row + at, 0, to.row_blocks);
        }
        return;
    }
    let mut turned = MaybeUninit::<[Line; STRIP_ROWS]>::uninit();
    let turned = turned.as_mut_ptr().cast::<Line>();
    for block in 0..to.row_blocks {
        for at in 0..STRIP_ROWS {
            // Rows that are not there count as the last one.
            let from = from.add(at.min(rows - 1) * width + block * BLOCK);
            let (first, second) = (V::load(from), V::load(from.add(LANES)));
            V::store_row(counted(first), counted(second), turned.add(at));
        }
        // A pair is as long as an f32, and moved as one.
        V::transpose(turned.cast::<Sums16>(), to.strip(row, block).cast());
    }
}

#[inline(always)]
unsafe fn quantise_blocks<V: Lanes>(
    from: *const f32,
    to: QuantsMut,
    row: usize,
    first: usize,
    blocks: usize,
) {
    if to.form.activations == ActivationFormat::Bf16 {
        return round_blocks::<V>(from, to, row, first, blocks);
    }
    let is_two_bytes = to.form.activations == ActivationFormat::Int16;
    let width = to.row_blocks * BLOCK;
    let quads = to.bytes.add(2 * row * width);
    for block in 0..blocks {
        let x = from.add(block * BLOCK);
        let (a, b) = (V::load(x), V::load(x.add(LANES)));
        let most = a.abs().max(b.abs()).largest();
        let mut scale = match is_two_bytes {
            true => next_power_of_two(most / QUANT_MAX),
            false => most / BYTE_MAX,
        };
        if scale < SCALE_MIN {
            scale = 0.0;
        }
        let inverse = V::splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
        let q = [a.mul(inverse).round(), b.mul(inverse).round()];
        let at = row * to.row_blocks + first + block;
        // Sums of whole numbers far below 2^24: exact in f32, in whichever order.
        let half_sums = [q[0].sum(), q[1].sum()];
        let whole = half_sums[0] + half_sums[1];
        if to.form.in_lines {
            let line = to
                .lines
                .add(row * to.pitch + (first + block) * to.form.lines());
            match is_two_bytes {
                true => store_lines(q, scale, line.cast()),
                false => V::store_line(q[0], q[1], line.cast()),
            }
        } else {
            let column = (first + block) * BLOCK;
            let coarse = store_quads(q, is_two_bytes, quads, width, column);
            *to.totals.add(at) = [coarse as i32, (whole - COARSE * coarse) as i32];
        }
        *to.scales.add(at) = scale;
        *to.scaled_totals.add(at) = scale * whole;
        *to.half_totals.add(at) = half_sums.map(|sum| scale * sum);
    }
}

/// The same of activations in bf16.
#[inline(always)]
unsafe fn round_blocks<V: Lanes>(
    from: *const f32,
    to: QuantsMut,
    row: usize,
    first: usize,
    blocks: usize,
) {
    let columns = to.bytes.cast::<u16>().add(row * to.row_blocks * BLOCK);
    for block in 0..blocks {
        let x = from.add(block * BLOCK);
        let (a, b) = (counted(V::load(x)), counted(V::load(x.add(LANES))));
        if to.form.in_lines {
            let (mut line, to) = (Line([0; BLOCK]), to.pairs(row, first + block));
            V::store_row(a, b, &mut line);
            for (at, pair) in line.0.chunks_exact(2).enumerate() {
                let to = to.cast::<[u16; 2]>().add(at * STRIP_ROWS);
                to.write([pair[0], pair[1]]);
            }
        } else {
            let columns = columns.add((first + block) * BLOCK);
            a.to_bf16().store_bf16(columns);
            b.to_bf16().store_bf16(columns.add(LANES));
        }
    }
}

/// A block from `column` on of the row at `quads`; the sum of its coarse bytes.
#[inline(always)]
unsafe fn store_quads<V: Lanes>(
    q: [V; 2],
    is_two_bytes: bool,
    quads: *mut i8,
    width: usize,
    column: usize,
) -> f32 {
    let mut coarse_sum = V::zero();
    for (half, q) in q.into_iter().enumerate() {
        let column = column + half * LANES;
        match is_two_bytes {
            true => {
                let coarse = q.mul(V::splat(1.0 / COARSE)).round();
                let fine = coarse.fma(V::splat(-COARSE), q);
                V::store_quads(q, coarse, fine, quads, width, column);
                coarse_sum = coarse_sum.add(coarse);
            }
            false => {
                V::zero().store_i8(quads.add(column));
                q.store_i8(quads.add(width + column));
            }
        }
    }
    coarse_sum.sum()
}

/// A block's two lines from `to` on.
#[inline(always)]
unsafe fn store_lines<V: Lanes>(q: [V; 2], scale: f32, to: *mut u16) {
    let (coarsest, step) = (V::splat(1.0 / COARSE_LINE), V::splat(COARSE_LINE));
    let scale = V::splat(scale);
    let first = q[0].mul(coarsest).round().mul(step);
    let second = q[1].mul(coarsest).round().mul(step);
    V::store_line(first.mul(scale), second.mul(scale), to);
    let (first, second) = (q[0].sub(first), q[1].sub(second));
    V::store_line(first.mul(scale), second.mul(scale), to.add(BLOCK));
}

/// The least power of two that is no less than `x`, which is zero or more; of no number infinity, so that
/// it does not pass for nothing.
#[inline(always)]
pub(super) fn next_power_of_two(x: f32) -> f32 {
    const FRACTION: u32 = (1 << 23) - 1;
    let bits = (x.to_bits() + FRACTION) & !FRACTION;
    f32::from_bits(bits.min(f32::INFINITY.to_bits()))
}
