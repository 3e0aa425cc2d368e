//! Many rows of activations times one group of packed weights, by a unit that multiplies whole
//! tiles of bytes (AMX).
//!
//! Eight rows make a **strip**: their coarse and fine bytes lie a row's width apart, so that one
//! tile holds sixteen lines of 32 bytes, and its product with a tile of weights holds a block's
//! coarse and fine sums. A strip meets two tiles of weights at once, whose scaled sums fill half
//! the vector registers; meanwhile the unit multiplies the next block.
//!
//! Integer products are exact, and what follows them is done in `matmul`'s order: every sum is, to
//! the last bit, the one that `matmul`'s kernels get with the same lanes.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes};
use super::matmul::{GroupSums, Inputs, ROWS_MAX, Weights};
use super::pack::{BLOCK, Format, GROUP_ROWS, TILE};
use super::quants::{self, Least, Product, Quant, VECTORS};
use super::rows::STRIP_ROWS;
use std::mem::MaybeUninit;

/// Weight bytes of a tile's block as signed bytes.
const QUANT_BYTES: usize = TILE * BLOCK;

/// Blocks unpacked at once: with two tiles 30 KiB, which stay in the first-level cache while all
/// strips pass.
const PANEL_BLOCKS: usize = 24;

/// Weight tiles a strip meets at once.
const PANEL_TILES: usize = 2;

const _: () = assert!(ROWS_MAX.is_multiple_of(STRIP_ROWS));

/// Sums of one block: of each row of a strip sixteen coarse, then sixteen fine.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Products([i32; 2 * STRIP_ROWS * TILE]);

/// A unit that multiplies tiles.
pub(super) trait Tiles {
    /// `out[t][l][n]` = the sum over k of `lines[l * stride + k] * weights[t][k / 4][n][k % 4]`, for
    /// 16 lines l, 16 columns n, 32 values k, and `W` (1 or 2) tiles t.
    ///
    /// # Safety
    /// The pointers cover that; `weights` and `out` are aligned to 64 bytes, and a tile's weights
    /// begin `size_of::<Unpacked>()` after the last one's.
    unsafe fn products<const W: usize>(
        lines: *const i8,
        stride: usize,
        weights: *const Unpacked,
        out: *mut Products,
    );
}

/// One block of a tile of weights, as the unit takes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Unpacked {
    /// `[k / 4][column][k % 4]`
    pub(super) quants: [i8; QUANT_BYTES],
    scales: [f32; TILE],
    /// What a block's quant zero stands for; zeroes where that is nothing.
    minima: [f32; TILE],
}

type Panel = [MaybeUninit<Unpacked>; PANEL_BLOCKS * PANEL_TILES];

/// One block of a tile, of a format with one part.
#[inline(always)]
unsafe fn unpack<V: Lanes, Q: Quant>(from: *const u8, to: *mut Unpacked) {
    const { assert!(size_of::<V::Bytes>() == 64 && Q::SHAPE.parts == 1) };
    let vectors = (&raw mut (*to).quants).cast::<V::Bytes>();
    for vector in 0..VECTORS {
        let weights = quants::weights::<V, Q>(from, vector);
        vectors.add(vector).write_unaligned(weights);
    }
    if matches!(Q::SHAPE.product, Product::Eight | Product::Level) {
        for quant in &mut (*to).quants {
            // Stored as value + 128.
            *quant ^= i8::MIN;
        }
    }
    let (scale, least) = quants::scale_and_least::<V, Q>(from, 0);
    scale.store((&raw mut (*to).scales).cast());
    least.store((&raw mut (*to).minima).cast());
}

/// Where the sums go.
#[derive(Clone, Copy)]
enum Out {
    /// Each sum over all blocks.
    Narrow(*mut f32),
    /// f32 sums over each so many blocks, added up in f64; `carry` holds a segment's sum from one
    /// panel to the next.
    Wide {
        to: *mut f64,
        carry: *mut f32,
        segment: usize,
    },
}

/// As `matmul::group_matmul`, of a format that has tiles. All rows of the last strip must exist in
/// `x`'s and in `out`'s memory, whatever they hold.
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes, T: Tiles>(
    format: Format,
    w: Weights,
    x: Inputs,
    out: *mut f32,
) {
    by_format::<V, T>(format, w, x, Out::Narrow(out));
}

/// As `matmul::group_matmul_wide`, on the same terms.
#[inline(always)]
pub(super) unsafe fn multiply_wide<V: Lanes, T: Tiles>(
    format: Format,
    w: Weights,
    x: Inputs,
    segment: usize,
    out: *mut f64,
) {
    let rows = x.rows.next_multiple_of(STRIP_ROWS);
    std::ptr::write_bytes(out, 0, rows * GROUP_ROWS);
    let mut carry = GroupSums::<f32>::new();
    let out = Out::Wide {
        to: out,
        carry: carry.as_mut_ptr(),
        segment,
    };
    by_format::<V, T>(format, w, x, out);
}

#[inline(always)]
unsafe fn by_format<V: Lanes, T: Tiles>(format: Format, w: Weights, x: Inputs, out: Out) {
    match format {
        Format::Nibbles => by_panel::<V, T, quants::Nibbles>(w, x, out),
        Format::Levels => by_panel::<V, T, quants::Levels>(w, x, out),
        Format::Fives => by_panel::<V, T, quants::Fives>(w, x, out),
        Format::Bytes => by_panel::<V, T, quants::Bytes>(w, x, out),
        _ => unreachable!("`Format::has_tiles` was asked"),
    }
}

#[inline(always)]
unsafe fn by_panel<V: Lanes, T: Tiles, Q: Quant>(w: Weights, x: Inputs, out: Out) {
    let mut panel: Panel = [const { MaybeUninit::uninit() }; PANEL_BLOCKS * PANEL_TILES];
    let panel = panel.as_mut_ptr().cast::<Unpacked>();
    for tile in (0..w.tiles).step_by(PANEL_TILES) {
        for first in (0..w.blocks).step_by(PANEL_BLOCKS) {
            let blocks = first..(first + PANEL_BLOCKS).min(w.blocks);
            let width = PANEL_TILES.min(w.tiles - tile);
            for (at, block) in blocks.clone().enumerate() {
                for t in 0..width {
                    let from = w
                        .start
                        .add((block * w.tiles + tile + t) * Q::SHAPE.tile_bytes());
                    unpack::<V, Q>(from, panel.add(at * width + t));
                }
            }
            for row in (0..x.rows).step_by(STRIP_ROWS) {
                let place = Place {
                    row,
                    tile,
                    first: blocks.start,
                    end: blocks.end,
                    last: blocks.end == w.blocks,
                };
                match width {
                    2 => strip::<V, T, Q, 2>(panel, x, place, out),
                    _ => strip::<V, T, Q, 1>(panel, x, place, out),
                }
            }
        }
    }
}

/// What a strip passes: blocks `first..end`, the last of all or not.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    tile: usize,
    first: usize,
    end: usize,
    last: bool,
}

#[inline(always)]
unsafe fn strip<V: Lanes, T: Tiles, Q: Quant, const W: usize>(
    panel: *const Unpacked,
    x: Inputs,
    place: Place,
    out: Out,
) {
    let Place { row, tile, .. } = place;
    let corner = row * GROUP_ROWS + tile * TILE;
    let (carry, segment) = match out {
        Out::Narrow(to) => (to.add(corner), usize::MAX),
        Out::Wide { carry, segment, .. } => (carry.add(corner), segment),
    };
    let lines = x.bytes.add(2 * row * x.width);
    let scales = x.scales.add(row * x.row_blocks);
    let scaled_totals = x.scaled_totals.add(row * x.row_blocks);

    let begun = place.first % segment;
    let mut left = segment - begun;
    let mut sums = [[V::zero(); W]; STRIP_ROWS];
    if begun > 0 {
        for m in 0..STRIP_ROWS {
            for t in 0..W {
                sums[m][t] = V::load(carry.add(m * GROUP_ROWS + t * LANES));
            }
        }
    }
    let mut products = [const { [const { MaybeUninit::<Products>::uninit() }; W] }; 2];
    let products = products.as_mut_ptr().cast::<Products>();
    T::products::<W>(lines.add(place.first * BLOCK), x.width, panel, products);
    for block in place.first..place.end {
        let at = block - place.first;
        if block + 1 < place.end {
            T::products::<W>(
                lines.add((block + 1) * BLOCK),
                x.width,
                panel.add((at + 1) * W),
                products.add((at + 1) % 2 * W),
            );
        }
        for t in 0..W {
            let unpacked = panel.add(at * W + t);
            let scale = V::load((&raw const (*unpacked).scales).cast());
            let least = V::load((&raw const (*unpacked).minima).cast());
            let whole = products.add(at % 2 * W + t).cast::<i32>();
            for m in 0..STRIP_ROWS {
                let factor = scale.mul(V::splat(*scales.add(m * x.row_blocks + block)));
                let (coarse, fine) = (2 * m * TILE, (2 * m + 1) * TILE);
                let products = V::load_sums(whole.add(coarse), whole.add(fine));
                sums[m][t] = products.fma(factor, sums[m][t]);
                if Q::SHAPE.least != Least::Zero {
                    let total = V::splat(*scaled_totals.add(m * x.row_blocks + block));
                    sums[m][t] = least.fma(total, sums[m][t]);
                }
            }
        }
        if let Out::Wide { to, .. } = out {
            left -= 1;
            if left == 0 || (place.last && block + 1 == place.end) {
                for m in 0..STRIP_ROWS {
                    for t in 0..W {
                        sums[m][t].add_to_f64(to.add(corner + m * GROUP_ROWS + t * LANES));
                        sums[m][t] = V::zero();
                    }
                }
                left = segment;
            }
        }
    }
    for m in 0..STRIP_ROWS {
        for t in 0..W {
            sums[m][t].store(carry.add(m * GROUP_ROWS + t * LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Isa;
    use crate::backend::cpu::amx::{self, TileConfig};
    use crate::backend::cpu::lanes::Portable;
    use crate::backend::cpu::matmul::{group_matmul, group_matmul_wide};
    use crate::backend::cpu::memory::Arena;
    use crate::backend::cpu::pack::Packed;
    use crate::backend::cpu::pool::Pool;
    use crate::backend::cpu::rows::{self, COARSE, CpuRows};
    use crate::backend::cpu::tests::{file_bytes, uniform, view};
    use trireme_shared::model::random::SplitMix;
    use trireme_shared::model::{ActivationFormat, DType};

    /// What the instructions are defined to do (Intel SDM volume 2, `TDPBSSD`), in plain loops.
    struct Written;

    impl Tiles for Written {
        unsafe fn products<const W: usize>(
            lines: *const i8,
            stride: usize,
            weights: *const Unpacked,
            out: *mut Products,
        ) {
            for t in 0..W {
                let (weights, out) = (&(*weights.add(t)).quants, out.add(t).cast::<i32>());
                for line in 0..16 {
                    for n in 0..TILE {
                        let sum = (0..BLOCK).map(|k| {
                            let a = i32::from(*lines.add(line * stride + k));
                            a * i32::from(weights[k / 4 * 64 + n * 4 + k % 4])
                        });
                        *out.add(line * TILE + n) = sum.sum();
                    }
                }
            }
        }
    }

    fn quantised(format: ActivationFormat, values: &[f32], rows: usize, columns: usize) -> CpuRows {
        let mut x = CpuRows::default();
        x.reshape(rows, columns);
        x.data.copy_from_slice(values);
        x.reserve_quants(format);
        let to = x.quants_mut();
        for row in 0..rows {
            let from = x.data[row * columns..].as_ptr();
            unsafe { rows::quantise(Isa::Portable, from, to, row, 0, columns / BLOCK) };
        }
        x.is_quantised = true;
        x
    }

    /// Words, as the portable lanes leave them, into what tiles take: coarse bytes, then fine ones.
    fn words_to_bytes(x: &mut CpuRows) {
        if x.format == ActivationFormat::Int8 {
            return;
        }
        for row in x.bytes.chunks_exact_mut(2 * x.width / BLOCK) {
            let bytes: Vec<u8> = row.iter().flat_map(|b| b.0.map(|b| b as u8)).collect();
            let words = bytes
                .chunks_exact(2)
                .map(|w| i16::from_le_bytes([w[0], w[1]]));
            for (column, word) in words.enumerate() {
                let coarse = (f32::from(word) * (1.0 / COARSE)).round_ties_even();
                let fine = f32::from(word) - COARSE * coarse;
                row[column / BLOCK].0[column % BLOCK] = coarse as i8;
                row[(x.width + column) / BLOCK].0[column % BLOCK] = fine as i8;
            }
        }
    }

    fn bits<T: Copy>(sums: &mut GroupSums<T>, x: Inputs, w: Weights) -> Vec<T> {
        let rows = 0..x.rows;
        rows.flat_map(|row| unsafe { sums.row(row, w.tiles * TILE) }.to_vec())
            .collect()
    }

    /// Every group of a matrix, every number of rows in a chunk: narrow, and wide over `segments`.
    fn compare(dtype: DType, outputs: usize, columns: usize, segments: &[usize]) {
        let mut random = SplitMix(columns as u64);
        let bytes = file_bytes(&mut random, dtype, outputs * columns);
        let (mut arena, mut pool) = (Arena::default(), Pool::new(1).unwrap());
        let view = view(dtype, outputs, columns, &bytes);
        let packed = Packed::new(&view, &mut arena, &mut pool).unwrap();
        let tiles = TileConfig::load();
        let (mut got, mut want) = (GroupSums::<f32>::new(), GroupSums::<f32>::new());
        let (mut got_wide, mut want_wide) = (GroupSums::<f64>::new(), GroupSums::<f64>::new());
        let formats = [ActivationFormat::Int16, ActivationFormat::Int8].into_iter();
        let inputs = formats.flat_map(|f| (1..=40).chain([63, ROWS_MAX]).map(move |r| (f, r)));
        for (activations, rows) in inputs {
            let values = uniform(&mut random, rows * columns);
            let in_words = quantised(activations, &values, rows, columns);
            let mut in_bytes = quantised(activations, &values, rows, columns);
            words_to_bytes(&mut in_bytes);
            for group in 0..packed.groups() {
                let what = format!(
                    "{dtype:?} {activations:?} {rows} x {columns} -> {outputs}, group {group}"
                );
                let w = Weights {
                    start: packed.group(group),
                    tiles: packed.group_tiles(group),
                    blocks: packed.blocks,
                };
                let words = Inputs::new(&in_words, 0, rows);
                let x = Inputs::new(&in_bytes, 0, rows);
                let format = packed.format;
                let (to, reference) = (got.as_mut_ptr(), want.as_mut_ptr());
                unsafe {
                    group_matmul(Isa::Portable, format, w, words, reference);
                    multiply::<Portable, Written>(format, w, x, to);
                }
                assert!(bits(&mut got, x, w) == bits(&mut want, x, w), "{what}");
                if let Some(tiles) = &tiles {
                    unsafe {
                        group_matmul(Isa::Avx512Vnni, format, w, x, reference);
                        amx::group_matmul(tiles, format, w, x, to);
                    }
                    assert!(bits(&mut got, x, w) == bits(&mut want, x, w), "AMX: {what}");
                }
                let (to, reference) = (got_wide.as_mut_ptr(), want_wide.as_mut_ptr());
                for &segment in segments {
                    let what = format!("{what}, segments of {segment}");
                    unsafe {
                        group_matmul_wide(Isa::Portable, format, w, words, segment, reference);
                        multiply_wide::<Portable, Written>(format, w, x, segment, to);
                    }
                    let (got, want) = (&mut got_wide, &mut want_wide);
                    assert!(bits(got, x, w) == bits(want, x, w), "{what}");
                    if let Some(tiles) = &tiles {
                        unsafe {
                            group_matmul_wide(Isa::Avx512Vnni, format, w, x, segment, reference);
                            amx::group_matmul_wide(tiles, format, w, x, segment, to);
                        }
                        assert!(bits(got, x, w) == bits(want, x, w), "AMX: {what}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_get_the_very_sums_that_lanes_get() {
        for dtype in [
            DType::Q4_0,
            DType::Q4_1,
            DType::Q5_0,
            DType::Q5_1,
            DType::Q8_0,
            DType::IQ4_NL,
        ] {
            // One tile; groups of two and one; of four and three; more than two panels of blocks,
            // segments that end in the midst of one and some that are longer.
            compare(dtype, 3, 32, &[1]);
            compare(dtype, 41, 96, &[1, 2, 5]);
            compare(dtype, 1_584, 64, &[2]);
            compare(dtype, 20, 32 * (2 * PANEL_BLOCKS + 3), &[4, 6, 7, 40, 60]);
        }
    }
}
