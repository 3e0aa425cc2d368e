//! Up to [`ROWS_MAX`] rows of activations times one group of packed weights.
//!
//! With one row, the tiles of a group are read once, front to back, block by block, with software
//! prefetch: the speed of memory is the limit. With more, each tile's weights are
//! unpacked once for several rows, whose sums stay in registers.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes, PAIRS, kernel};
use super::pack::{BLOCK, Format, GROUP_ROWS, GROUP_TILES, TILE};
use super::quants::{self, Least, Quads, Quant, VECTORS};
use super::rows::{CpuRows, Form, Line};
use crate::backend::Isa;
use std::hint::black_box;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use trireme_shared::model::ActivationFormat::{Bf16 as InBf16, Int8, Int16};

/// Rows of one call: their bytes stay in the caches while a prefill walks over the weights.
pub(super) const ROWS_MAX: usize = 64;

/// Bytes ahead of the weights in use to ask for: far enough for the latency of memory at full
/// speed, near enough to stay in the second-level cache. Found by measurement (5 and 10 KiB are alike,
/// 3 KiB is slower).
const AHEAD: usize = 5 << 10;

/// Where one call's sums go: of each row as many values are written as the group's tiles have, `pitch`
/// after those of the row before.
#[derive(Clone, Copy)]
pub(super) struct Sums<T> {
    pub(super) at: *mut T,
    pub(super) pitch: usize,
    /// These are a [`GroupSums`]: nobody else's values lie between the rows.
    pub(super) is_room: bool,
}

impl<T> Sums<T> {
    /// # Safety
    /// There is such a row.
    pub(super) unsafe fn row(self, row: usize) -> *mut T {
        self.at.add(row * self.pitch)
    }

    /// The same rows from a later column on.
    ///
    /// # Safety
    /// They have it.
    pub(super) unsafe fn at_column(self, column: usize) -> Self {
        Self {
            at: self.at.add(column),
            ..self
        }
    }

    /// The same columns from a later row on.
    ///
    /// # Safety
    /// There is such a row.
    pub(super) unsafe fn at_row(self, row: usize) -> Self {
        Self {
            at: self.at.add(row * self.pitch),
            ..self
        }
    }
}

/// Room for one call's sums, `rows x GROUP_ROWS`.
#[repr(align(64))]
pub(super) struct GroupSums<T>([MaybeUninit<T>; ROWS_MAX * GROUP_ROWS]);

impl<T> GroupSums<T> {
    pub(super) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; ROWS_MAX * GROUP_ROWS])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }

    pub(super) fn sums(&mut self) -> Sums<T> {
        Sums {
            at: self.as_mut_ptr(),
            pitch: GROUP_ROWS,
            is_room: true,
        }
    }

    /// The first `columns` sums of a row.
    ///
    /// # Safety
    /// A call wrote them.
    pub(super) unsafe fn row(&mut self, row: usize, columns: usize) -> &mut [T] {
        let row = &mut self.0[row * GROUP_ROWS..][..columns];
        // SAFETY: initialised by this function's contract; `MaybeUninit<T>` is laid out as `T`.
        unsafe { &mut *(&raw mut *row as *mut [T]) }
    }
}

/// One call's inputs: `rows` rows from the pointers on.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub(super) rows: usize,
    /// Values of a row, and blocks of a quantised one.
    pub(super) width: usize,
    pub(super) row_blocks: usize,
    data: *const f32,
    /// The first row's quads, or its bf16; the other rows' follow, `2 * width` bytes apart.
    pub(super) bytes: *const i8,
    /// Instead of quads, where the form says so: the first row's lines; the other rows' follow,
    /// `pitch` apart. Or the first strip.
    pub(super) lines: *const Line,
    pub(super) pitch: usize,
    pub(super) form: Form,
    /// Where in quads the first block begins.
    first_column: usize,
    pub(super) scales: *const f32,
    totals: *const [i32; 2],
    pub(super) scaled_totals: *const f32,
    pub(super) half_totals: *const [f32; 2],
}

impl Inputs {
    /// Rows `first..first + rows` of `x`.
    pub(super) fn new(x: &CpuRows, first: usize, rows: usize) -> Self {
        assert!(rows <= ROWS_MAX && first + rows <= x.rows);
        let (at, block) = (first * x.width, first * (x.width / BLOCK));
        let mut inputs = Self {
            rows,
            width: x.width,
            row_blocks: x.width / BLOCK,
            data: x.data[at..].as_ptr(),
            bytes: std::ptr::null(),
            lines: std::ptr::null(),
            pitch: x.pitch(),
            form: x.form,
            first_column: 0,
            scales: std::ptr::null(),
            totals: std::ptr::null(),
            scaled_totals: std::ptr::null(),
            half_totals: std::ptr::null(),
        };
        if x.is_quantised {
            match x.form.in_lines {
                true if x.form.is_in_strips() => inputs.lines = x.strips(first).as_ptr(),
                true => inputs.lines = x.lines[first * x.pitch()..].as_ptr(),
                false => inputs.bytes = x.bytes[2 * block..].as_ptr().cast(),
            }
            if x.form.activations != InBf16 {
                inputs.scales = x.scales[block..].as_ptr();
                inputs.totals = x.totals[block..].as_ptr();
                inputs.scaled_totals = x.scaled_totals[block..].as_ptr();
                inputs.half_totals = x.half_totals[block..].as_ptr();
            }
        }
        inputs
    }

    /// The same rows from a later block on, which they have.
    #[inline(always)]
    unsafe fn at_block(self, format: Format, block: usize) -> Self {
        if !format.is_quantised() {
            return Self {
                data: self.data.add(block),
                ..self
            };
        }
        Self {
            first_column: self.first_column + block * BLOCK,
            // Null of rows in bf16.
            scales: self.scales.wrapping_add(block),
            totals: self.totals.wrapping_add(block),
            scaled_totals: self.scaled_totals.wrapping_add(block),
            half_totals: self.half_totals.wrapping_add(block),
            ..self
        }
    }
}

/// One group's weights.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub(super) start: *const u8,
    pub(super) tiles: usize,
    pub(super) blocks: usize,
}

#[derive(Clone, Copy)]
enum Out {
    Put(Sums<f32>),
    AddTo(Sums<f64>),
}

impl Out {
    /// Of `M` rows from `row` on and `W` tiles from `tile` on.
    #[inline(always)]
    unsafe fn put<V: Lanes, const M: usize, const W: usize>(
        self,
        row: usize,
        tile: usize,
        sums: [[V; W]; M],
    ) {
        for m in 0..M {
            for t in 0..W {
                let place = |pitch: usize| (row + m) * pitch + (tile + t) * TILE;
                match self {
                    Self::Put(to) => sums[m][t].store(to.at.add(place(to.pitch))),
                    Self::AddTo(to) => sums[m][t].add_to_f64(to.at.add(place(to.pitch))),
                }
            }
        }
    }
}

/// One function each, so that the compiler sees one kernel at a time.
macro_rules! kernels {
    ($($format:ident, $activations:pat => $name:ident: $kernel:ty;)*) => {
        $(kernel! {
            fn $name(w: Weights, x: Inputs, out: Out) = by_rows<$kernel>
        })*

        unsafe fn by_format(isa: Isa, format: Format, w: Weights, x: Inputs, out: Out) {
            match (format, x.form.activations) {
                $((Format::$format, $activations) => $name(isa, w, x, out),)*
            }
        }
    };
}

kernels! {
    Twos, Int16 => twos_words: Blocks<quants::Twos, quants::Words>;
    Threes, Int16 => threes_words: Blocks<quants::Threes, quants::Words>;
    Fours, Int16 => fours_words: Blocks<quants::Fours, quants::Words>;
    Nibbles, Int16 => nibbles_words: Blocks<quants::Nibbles, quants::Words>;
    Levels, Int16 => levels_words: Blocks<quants::Levels, quants::Words>;
    Fives, Int16 => fives_words: Blocks<quants::Fives, quants::Words>;
    Sixes, Int16 => sixes_words: Blocks<quants::Sixes, quants::Words>;
    Bytes, Int16 => bytes_words: Blocks<quants::Bytes, quants::Words>;
    Twos, Int8 => twos_fine: Blocks<quants::Twos, quants::Fine>;
    Threes, Int8 => threes_fine: Blocks<quants::Threes, quants::Fine>;
    Fours, Int8 => fours_fine: Blocks<quants::Fours, quants::Fine>;
    Nibbles, Int8 => nibbles_fine: Blocks<quants::Nibbles, quants::Fine>;
    Levels, Int8 => levels_fine: Blocks<quants::Levels, quants::Fine>;
    Fives, Int8 => fives_fine: Blocks<quants::Fives, quants::Fine>;
    Sixes, Int8 => sixes_fine: Blocks<quants::Sixes, quants::Fine>;
    Bytes, Int8 => bytes_fine: Blocks<quants::Bytes, quants::Fine>;
    Twos, InBf16 => twos_rounded: Rounded<quants::Twos>;
    Threes, InBf16 => threes_rounded: Rounded<quants::Threes>;
    Fours, InBf16 => fours_rounded: Rounded<quants::Fours>;
    Nibbles, InBf16 => nibbles_rounded: Rounded<quants::Nibbles>;
    Levels, InBf16 => levels_rounded: Rounded<quants::Levels>;
    Fives, InBf16 => fives_rounded: Rounded<quants::Fives>;
    Sixes, InBf16 => sixes_rounded: Rounded<quants::Sixes>;
    Bytes, InBf16 => bytes_rounded: Rounded<quants::Bytes>;
    F16, _ => f16: F16;
    Bf16, _ => bf16: Bf16;
    F32, _ => f32: F32;
}

/// Sums for every row of `x` and every output of the group. Quantised formats need the
/// quantised form of `x`; `blocks` match its width.
///
/// # Safety
/// The machine has `isa`, `w` and `x` are as they say, and `out` has room for the group's sums.
pub(super) unsafe fn group_matmul(isa: Isa, format: Format, w: Weights, x: Inputs, out: Sums<f32>) {
    by_format(isa, format, w, x, Out::Put(out));
}

/// The sums of [`group_matmul`] in f64: f32 within each segment of `segment` blocks, then f64 over
/// segments.
///
/// The order of f32 additions depends on where segments begin and on nothing else, and the f64
/// sums over them round far below what f32 shows. So ranks that hold whole segments add up to
/// what one rank holding all of them gets.
///
/// # Safety
/// As [`group_matmul`]'s.
pub(super) unsafe fn group_matmul_wide(
    isa: Isa,
    format: Format,
    w: Weights,
    x: Inputs,
    segment: usize,
    out: Sums<f64>,
) {
    for row in 0..x.rows {
        out.row(row).write_bytes(0, w.tiles * TILE);
    }
    for block in (0..w.blocks).step_by(segment) {
        let part = Weights {
            start: w.start.add(block * w.tiles * format.tile_bytes()),
            blocks: segment.min(w.blocks - block),
            ..w
        };
        by_format(
            isa,
            format,
            part,
            x.at_block(format, block),
            Out::AddTo(out),
        );
    }
}

#[inline(always)]
unsafe fn by_rows<V: Lanes, K: Kernel>(w: Weights, x: Inputs, out: Out) {
    let mut row = 0;
    while row < x.rows {
        let left = x.rows - row;
        row += match left {
            8.. if V::ROWS == 8 => by_tiles::<V, K, 8>(w, x, row, out),
            6.. if V::ROWS == 6 => by_tiles::<V, K, 6>(w, x, row, out),
            4.. => by_tiles::<V, K, 4>(w, x, row, out),
            2.. => by_tiles::<V, K, 2>(w, x, row, out),
            _ if w.tiles == GROUP_TILES => {
                out.put(row, 0, K::run::<V, 1, GROUP_TILES>(w, 0, x, row));
                1
            }
            _ => by_tiles::<V, K, 1>(w, x, row, out),
        };
    }
}

/// `M` rows from `row`, one tile after another.
#[inline(always)]
unsafe fn by_tiles<V: Lanes, K: Kernel, const M: usize>(
    w: Weights,
    x: Inputs,
    row: usize,
    out: Out,
) -> usize {
    for tile in 0..w.tiles {
        out.put(row, tile, K::run::<V, M, 1>(w, tile, x, row));
    }
    M
}

/// `M` rows from `row` times tiles `tile..tile + W`.
///
/// Asks for what comes next: alone (M = 1), a little further along the same walk; otherwise the
/// same place of the next group, since this one is walked tile by tile and then again for other rows.
trait Kernel {
    unsafe fn run<V: Lanes, const M: usize, const W: usize>(
        w: Weights,
        tile: usize,
        x: Inputs,
        row: usize,
    ) -> [[V; W]; M];
}

#[inline(always)]
unsafe fn prefetch<V: Lanes, const M: usize>(at: *const u8, bytes: usize, group_bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        if M == 1 {
            V::prefetch(at.wrapping_add(AHEAD + line * 64));
        } else {
            V::prefetch(at.wrapping_add(group_bytes + line * 64));
        }
    }
}

/// Of a quantised format.
struct Blocks<Q, A>(PhantomData<(Q, A)>);

impl<Q: Quant, A: Quads> Kernel for Blocks<Q, A> {
    #[inline(always)]
    unsafe fn run<V: Lanes, const M: usize, const W: usize>(
        w: Weights,
        tile: usize,
        x: Inputs,
        row: usize,
    ) -> [[V; W]; M] {
        let shape = const { Q::SHAPE };
        let tile_bytes = const { Q::SHAPE.tile_bytes() };
        let mut part_pairs = const { VECTORS / 2 / Q::SHAPE.parts };
        if A::IS_ONE_BYTE && V::ROWS < 8 {
            // Of a count it knows the compiler makes one stretch, unpacks a whole block at its
            // start, and has no registers for that: each row reads it back from the stack. With two
            // bytes it does not.
            part_pairs = black_box(part_pairs);
        }
        let first = row * x.row_blocks;
        let mut sums = [[V::zero(); W]; M];
        for block in 0..w.blocks {
            let base = w.start.add((block * w.tiles + tile) * tile_bytes);
            // Tile by tile, as they lie in memory: the hardware asks ahead along one line of addresses,
            // and hardly along four.
            for t in 0..W {
                let from = base.add(t * tile_bytes);
                prefetch::<V, M>(from, tile_bytes, w.tiles * w.blocks * tile_bytes);
                for part in 0..shape.parts {
                    let mut accs = [A::acc::<V>(); M];
                    // Two vectors a round: those of nibbles lie in the same bytes.
                    for pair in part * part_pairs..(part + 1) * part_pairs {
                        for vector in [2 * pair, 2 * pair + 1] {
                            let column = x.first_column + block * BLOCK + vector * 4;
                            let weights = quants::weights::<V, Q>(from, vector);
                            for m in 0..M {
                                let at = x.bytes.add(2 * (row + m) * x.width);
                                let quad = A::quad::<V>(at, x.width, column);
                                accs[m] = A::dot::<V, Q>(accs[m], weights, quad);
                            }
                        }
                    }
                    let (scale, least) = quants::scale_and_least::<V, Q>(from, part);
                    for m in 0..M {
                        let at = first + m * x.row_blocks + block;
                        let factor = scale.mul(V::splat(*x.scales.add(at)));
                        // Whole numbers; below 2^24, and so exact, where weights have four bits.
                        let products = A::sums::<V, Q>(accs[m], *x.totals.add(at));
                        sums[m][t] = products.fma(factor, sums[m][t]);
                        if shape.least != Least::Zero {
                            let total = match shape.parts {
                                1 => *x.scaled_totals.add(at),
                                _ => (*x.half_totals.add(at))[part],
                            };
                            sums[m][t] = least.fma(V::splat(total), sums[m][t]);
                        }
                    }
                }
            }
        }
        sums
    }
}

/// Of a quantised format and activations in bf16: as tiles of bf16 add up, to the last bit (Intel SDM
/// volume 2, `TDPBF16PS`). Of a block the products of each pair's first columns make one chain of sums
/// that are rounded once each, those of the second columns another; then the two are added, and their
/// sum to the blocks' before.
struct Rounded<Q>(PhantomData<Q>);

impl<Q: Quant> Kernel for Rounded<Q> {
    #[inline(always)]
    unsafe fn run<V: Lanes, const M: usize, const W: usize>(
        w: Weights,
        tile: usize,
        x: Inputs,
        row: usize,
    ) -> [[V; W]; M] {
        let tile_bytes = const { Q::SHAPE.tile_bytes() };
        let columns = x.bytes.cast::<u16>().add(row * x.width + x.first_column);
        let mut sums = [[V::zero(); W]; M];
        for block in 0..w.blocks {
            let base = w.start.add((block * w.tiles + tile) * tile_bytes);
            for t in 0..W {
                let from = base.add(t * tile_bytes);
                prefetch::<V, M>(from, tile_bytes, w.tiles * w.blocks * tile_bytes);
                let mut chains = [[V::zero(); 2]; M];
                // Not unrolled: it is long.
                for pair in 0..black_box(PAIRS.len()) {
                    let column = PAIRS[pair];
                    let bytes = quants::weights::<V, Q>(from, column / 4);
                    let part = column / 4 * Q::SHAPE.parts / VECTORS;
                    let (scale, least) = quants::scale_and_offset::<V, Q>(from, part);
                    for side in 0..2 {
                        let at = (column % 4 + 2 * side) as u32;
                        let weights = V::column(bytes, at).fma(scale, least).to_bf16();
                        for m in 0..M {
                            let value = columns.add(m * x.width + block * BLOCK + column);
                            let value = V::splat(bf16_value(*value.add(2 * side)));
                            chains[m][side] = weights.fma(value, chains[m][side]);
                        }
                    }
                }
                for m in 0..M {
                    sums[m][t] = sums[m][t].add(chains[m][0].add(chains[m][1]));
                }
            }
        }
        sums
    }
}

#[inline(always)]
fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

macro_rules! float_kernel {
    ($name:ident, $element:ty, $load:ident) => {
        struct $name;

        impl Kernel for $name {
            #[inline(always)]
            unsafe fn run<V: Lanes, const M: usize, const W: usize>(
                w: Weights,
                tile: usize,
                x: Inputs,
                row: usize,
            ) -> [[V; W]; M] {
                const TILE_BYTES: usize = LANES * size_of::<$element>();
                let start = w.start.cast::<$element>().add(tile * LANES);
                let data = x.data.add(row * x.width);
                let mut sums = [[V::zero(); W]; M];
                for column in 0..w.blocks {
                    let base = start.add(column * w.tiles * LANES);
                    prefetch::<V, M>(base.cast(), W * TILE_BYTES, w.tiles * w.blocks * TILE_BYTES);
                    for t in 0..W {
                        let weights = V::$load(base.add(t * LANES));
                        for m in 0..M {
                            let value = V::splat(*data.add(m * x.width + column));
                            sums[m][t] = weights.fma(value, sums[m][t]);
                        }
                    }
                }
                sums
            }
        }
    };
}

float_kernel!(F16, u16, load_f16);
float_kernel!(Bf16, u16, load_bf16);
float_kernel!(F32, f32, load);
