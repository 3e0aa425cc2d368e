//! Many rows of activations times one group of packed weights, by a unit that multiplies whole
//! tiles of bf16 (AMX).
//!
//! The bf16 are whole numbers times a power of two, and so are the unit's f32 sums over a block: both
//! are exact. What follows them is done in `matmul`'s order, so every sum is, to the last bit, the one
//! that `matmul`'s kernels get with the same lanes.
//!
//! Sixteen rows make a **strip**. A group's tiles are unpacked block by block, and the unit holds them
//! while all strips pass. It adds up what coarse and fine lines make, where whole numbers stay below
//! 2^24; between its products, some rows of the strip before are scaled. A product is stored only after
//! those: until it is there, its stores would fill the core's queues. Processors with AMX do one
//! multiplication of 512-bit floats a cycle, not two, while tiles are at work: hence scales of
//! activations that are in the lines already.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes};
use super::matmul::{GroupSums, Inputs, ROWS_MAX, Weights};
use super::pack::{BLOCK, Format, GROUP_ROWS, GROUP_TILES, TILE};
use super::quants::{self, Least, Product, Quant, VECTORS};
use super::rows::{Line, STRIP_ROWS};
use half::bf16;
use std::mem::MaybeUninit;
use trireme_shared::model::ActivationFormat;
use trireme_shared::model::blocks::LEVELS;

const _: () = assert!(ROWS_MAX.is_multiple_of(STRIP_ROWS) && TILE == LANES);

/// Sums of sixteen rows and as many outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Products([f32; STRIP_ROWS * TILE]);

/// What of activations a product is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Coarse,
    Fine,
    Both,
}

/// A unit that multiplies tiles. Pointers cover what is said; weights and products are aligned to
/// 64 bytes.
pub(super) trait Tiles {
    /// Slot `slot` (below [`GROUP_TILES`]) holds these weights from now on.
    unsafe fn hold(&mut self, slot: usize, weights: *const Unpacked);
    /// One line of each of sixteen rows, `pitch` lines apart, is the coarse or the fine one of what
    /// follows.
    unsafe fn take(&mut self, part: Part, lines: *const Line, pitch: usize);
    /// `made[row][n]` = the sum over k of `line[row][k] * weights[k / 2][n][k % 2]`, of the part's line or
    /// of both lines together, which the unit keeps as `made` (0 or 1).
    unsafe fn multiply(&mut self, slot: usize, part: Part, made: usize);
    unsafe fn store(&mut self, made: usize, to: *mut Products);
}

/// One part of a block of a tile of weights, as the unit takes it: the block's other part is zeroes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Unpacked {
    /// bf16, `[k / 2][output][k % 2]`, where k counts in `LINE_ORDER`.
    pub(super) quants: [u16; TILE * BLOCK],
    scales: [f32; TILE],
    /// What quant zero stands for; zeroes where that is nothing.
    minima: [f32; TILE],
}

/// Quants below 32 as bf16.
const SMALL: [u16; 32] = {
    let mut table = [0; 32];
    let mut at = 0;
    while at < 32 {
        table[at] = bf16::from_f32_const(at as f32).to_bits();
        at += 1;
    }
    table
};

/// What quants stand for in [`LEVELS`].
const LEVEL: [u16; 32] = {
    let mut table = [0; 32];
    let mut at = 0;
    while at < 16 {
        table[at] = bf16::from_f32_const(LEVELS[at] as f32).to_bits();
        at += 1;
    }
    table
};

#[inline(always)]
unsafe fn unpack<V: Lanes, Q: Quant>(from: *const u8, part: usize, to: *mut Unpacked) {
    let shape = const { Q::SHAPE };
    let part_vectors = const { VECTORS / Q::SHAPE.parts };
    let lines = (&raw mut (*to).quants).cast::<u16>();
    for vector in 0..VECTORS {
        // Two columns of all outputs, then two more.
        let line = lines.add(vector * 4 * TILE);
        if vector / part_vectors != part {
            for half in 0..4 {
                V::zero().store(line.add(half * TILE).cast());
            }
            continue;
        }
        let quants = quants::quants::<V, Q>(from, vector);
        match shape.product {
            Product::Level => V::store_table(quants, &LEVEL, line),
            Product::Eight => V::store_whole(quants, 128, line),
            Product::Four | Product::Seven if shape.low + shape.high <= 5 => {
                V::store_table(quants, &SMALL, line);
            }
            Product::Four | Product::Seven => V::store_whole(quants, 0, line),
        }
    }
    let (scale, least) = quants::scale_and_least::<V, Q>(from, part);
    scale.store((&raw mut (*to).scales).cast());
    least.store((&raw mut (*to).minima).cast());
}

/// Where the sums go, `GROUP_ROWS` a row.
#[derive(Clone, Copy)]
struct Out {
    /// Zeroes at first. Over all blocks, or over those of a segment so far.
    sums: *mut f32,
    /// If not null, sums of segments are added up here.
    wide: *mut f64,
    /// Blocks of a segment.
    segment: usize,
}

/// As `matmul::group_matmul`, of a quantised format, `x` in lines. The last strip's rows exist in
/// `x`, whatever they hold.
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes, T: Tiles>(
    unit: &mut T,
    format: Format,
    w: Weights,
    x: Inputs,
    out: *mut f32,
) {
    std::ptr::write_bytes(out, 0, x.rows * GROUP_ROWS);
    let out = Out {
        sums: out,
        wide: std::ptr::null_mut(),
        segment: w.blocks,
    };
    by_format::<V, T>(unit, format, w, x, out);
}

/// As `matmul::group_matmul_wide`, on the same terms.
#[inline(always)]
pub(super) unsafe fn multiply_wide<V: Lanes, T: Tiles>(
    unit: &mut T,
    format: Format,
    w: Weights,
    x: Inputs,
    segment: usize,
    out: *mut f64,
) {
    let mut sums = GroupSums::<f32>::new();
    let sums = sums.as_mut_ptr();
    std::ptr::write_bytes(sums, 0, x.rows * GROUP_ROWS);
    std::ptr::write_bytes(out, 0, x.rows * GROUP_ROWS);
    let out = Out {
        sums,
        wide: out,
        segment,
    };
    by_format::<V, T>(unit, format, w, x, out);
}

#[inline(always)]
unsafe fn by_format<V: Lanes, T: Tiles>(
    unit: &mut T,
    format: Format,
    w: Weights,
    x: Inputs,
    out: Out,
) {
    match format {
        Format::Twos => by_lines::<V, T, quants::Twos>(unit, w, x, out),
        Format::Threes => by_lines::<V, T, quants::Threes>(unit, w, x, out),
        Format::Fours => by_lines::<V, T, quants::Fours>(unit, w, x, out),
        Format::Nibbles => by_lines::<V, T, quants::Nibbles>(unit, w, x, out),
        Format::Levels => by_lines::<V, T, quants::Levels>(unit, w, x, out),
        Format::Fives => by_lines::<V, T, quants::Fives>(unit, w, x, out),
        Format::Sixes => by_lines::<V, T, quants::Sixes>(unit, w, x, out),
        Format::Bytes => by_lines::<V, T, quants::Bytes>(unit, w, x, out),
        Format::F16 | Format::Bf16 | Format::F32 => unreachable!("floats do not go by tiles"),
    }
}

#[inline(always)]
unsafe fn by_lines<V: Lanes, T: Tiles, Q: Quant>(unit: &mut T, w: Weights, x: Inputs, out: Out) {
    match x.form.activations {
        ActivationFormat::Int16 => by_width::<V, T, Q, Whole>(unit, w, x, out),
        ActivationFormat::Int8 => by_width::<V, T, Q, Byte>(unit, w, x, out),
        ActivationFormat::Bf16 => unreachable!("strips go by `bf16`"),
    }
}

#[inline(always)]
unsafe fn by_width<V: Lanes, T: Tiles, Q: Quant, L: Lines>(
    unit: &mut T,
    w: Weights,
    x: Inputs,
    out: Out,
) {
    let walk = |tile| Walk { w, x, tile, out };
    if w.tiles == GROUP_TILES {
        walk(0).run::<V, T, Q, L, GROUP_TILES>(unit);
    } else {
        for tile in 0..w.tiles {
            walk(tile).run::<V, T, Q, L, 1>(unit);
        }
    }
}

/// What lines hold.
trait Lines {
    /// Coarse and fine ones, and not fine ones alone.
    const IS_WHOLE: bool;

    /// Whether what both make is two sums: the unit may add them up where weights are below 16, which
    /// with whole numbers of fifteen bits, in 32 columns, stays below 2^24.
    fn are_apart<Q: Quant>() -> bool {
        Self::IS_WHOLE && Q::SHAPE.product != Product::Four
    }
}

struct Whole;

impl Lines for Whole {
    const IS_WHOLE: bool = true;
}

struct Byte;

impl Lines for Byte {
    const IS_WHOLE: bool = false;
}

/// A strip, and the part of a row of weights that it meets: counted over blocks.
#[derive(Clone, Copy)]
struct Place {
    strip: usize,
    part: usize,
}

/// The block of a part, and which of the block's it is.
#[inline(always)]
fn block_of<Q: Quant>(part: usize) -> (usize, usize) {
    (part / Q::SHAPE.parts, part % Q::SHAPE.parts)
}

/// `W` tiles of a group from `tile` on, and all rows of `x`.
#[derive(Clone, Copy)]
struct Walk {
    w: Weights,
    x: Inputs,
    tile: usize,
    out: Out,
}

impl Walk {
    #[inline(always)]
    unsafe fn run<V: Lanes, T: Tiles, Q: Quant, L: Lines, const W: usize>(self, unit: &mut T) {
        let strips = self.x.rows.div_ceil(STRIP_ROWS);
        let parts = self.w.blocks * Q::SHAPE.parts;
        // What is scaled, and what the unit holds.
        let mut weights = MaybeUninit::<[[Unpacked; W]; 2]>::uninit();
        let weights = weights.as_mut_ptr().cast::<[Unpacked; W]>();
        let weights = |part: usize| weights.add(part % 2).cast::<Unpacked>();
        // What is scaled, and what is made meanwhile.
        let mut products = MaybeUninit::<[[[Products; 2]; W]; 2]>::uninit();
        let products = products.as_mut_ptr().cast::<[[Products; 2]; W]>();
        let products = |turn: usize| products.add(turn % 2).cast::<[Products; 2]>();

        let mut place = Place { strip: 0, part: 0 };
        self.take::<T, Q, L>(unit, place);
        let (mut scaled, mut turn) = (None::<Place>, 0);
        loop {
            if place.strip == 0 {
                self.unpack::<V, T, Q, W>(unit, place.part, weights(place.part));
            }
            let next = match place.strip + 1 {
                strip if strip < strips => Some(Place { strip, ..place }),
                _ if place.part + 1 < parts => Some(Place {
                    strip: 0,
                    part: place.part + 1,
                }),
                _ => None,
            };
            let to = products(turn);
            match scaled {
                None => {
                    let none = self.scaling::<V, W>(place, weights(0), to);
                    self.step::<V, T, Q, L, W, true, false>(unit, next, to, &none);
                }
                Some(old) => {
                    let old = self.scaling::<V, W>(old, weights(old.part), products(turn + 1));
                    self.step::<V, T, Q, L, W, true, true>(unit, next, to, &old);
                }
            }
            scaled = Some(place);
            turn += 1;
            match next {
                Some(next) => place = next,
                None => break,
            }
        }
        let last = self.scaling::<V, W>(place, weights(place.part), products(turn + 1));
        self.step::<V, T, Q, L, W, false, true>(unit, None, products(turn), &last);
    }

    #[inline(always)]
    unsafe fn scaling<V: Lanes, const W: usize>(
        self,
        place: Place,
        weights: *const Unpacked,
        products: *const [Products; 2],
    ) -> Scaling<V, W> {
        let mut scaling = Scaling {
            place,
            scales: [V::zero(); W],
            minima: [V::zero(); W],
            products,
        };
        for t in 0..W {
            let weights = weights.add(t);
            scaling.scales[t] = V::load((&raw const (*weights).scales).cast());
            scaling.minima[t] = V::load((&raw const (*weights).minima).cast());
        }
        scaling
    }

    /// A strip's lines, which the products after it are of.
    #[inline(always)]
    unsafe fn take<T: Tiles, Q: Quant, L: Lines>(self, unit: &mut T, place: Place) {
        let (x, (block, _)) = (self.x, block_of::<Q>(place.part));
        let row = x.lines.add(place.strip * STRIP_ROWS * x.pitch);
        if L::IS_WHOLE {
            unit.take(Part::Coarse, row.add(2 * block), x.pitch);
            unit.take(Part::Fine, row.add(2 * block + 1), x.pitch);
        } else {
            unit.take(Part::Fine, row.add(block), x.pitch);
        }
    }

    /// The unit holds a part of each of the tiles.
    #[inline(always)]
    unsafe fn unpack<V: Lanes, T: Tiles, Q: Quant, const W: usize>(
        self,
        unit: &mut T,
        part: usize,
        to: *mut Unpacked,
    ) {
        let (block, part) = block_of::<Q>(part);
        let tile_bytes = const { Q::SHAPE.tile_bytes() };
        let first = block * self.w.tiles + self.tile;
        for t in 0..W {
            let from = self.w.start.add((first + t) * tile_bytes);
            unpack::<V, Q>(from, part, to.add(t));
        }
        for t in 0..W {
            unit.hold(t, to.add(t));
        }
    }

    /// Multiplies the strip that was taken into `to`, and between its products scales, row by row, those
    /// of the place before. Takes the strip that comes next as soon as it can: its lines may lie in
    /// the second-level cache.
    #[inline(always)]
    unsafe fn step<
        V: Lanes,
        T: Tiles,
        Q: Quant,
        L: Lines,
        const W: usize,
        const MULTIPLIES: bool,
        const SCALES: bool,
    >(
        self,
        unit: &mut T,
        next: Option<Place>,
        to: *mut [Products; 2],
        before: &Scaling<V, W>,
    ) {
        let end = before.place.part + 1;
        let ends_segment = end == self.w.blocks * Q::SHAPE.parts
            || end.is_multiple_of(self.out.segment * Q::SHAPE.parts);
        let wide = match ends_segment {
            true => self.out.wide,
            false => std::ptr::null_mut(),
        };
        let first = before.place.strip * STRIP_ROWS;
        let rows = STRIP_ROWS.min(self.x.rows - first);
        let share = rows.div_ceil(W);
        let are_apart = L::are_apart::<Q>();
        for t in 0..W {
            let made = if are_apart { 0 } else { t % 2 };
            if MULTIPLIES {
                if are_apart {
                    unit.multiply(t, Part::Coarse, 0);
                    unit.multiply(t, Part::Fine, 1);
                } else if L::IS_WHOLE {
                    unit.multiply(t, Part::Both, made);
                } else {
                    unit.multiply(t, Part::Fine, made);
                }
                if let (true, Some(next)) = (t + 1 == W, next) {
                    self.take::<T, Q, L>(unit, next);
                }
            }
            if SCALES {
                for row in t * share..((t + 1) * share).min(rows) {
                    self.scale_row::<V, Q, L, W>(before, row, wide);
                }
            }
            if MULTIPLIES {
                let to = to.add(t).cast::<Products>();
                unit.store(made, to);
                if are_apart {
                    unit.store(1, to.add(1));
                }
            }
        }
    }

    /// Adds up row `row` of a strip; its segment ends there if `wide` is not null.
    #[inline(always)]
    unsafe fn scale_row<V: Lanes, Q: Quant, L: Lines, const W: usize>(
        self,
        scaling: &Scaling<V, W>,
        row: usize,
        wide: *mut f64,
    ) {
        let Self { x, out, .. } = self;
        let at_row = scaling.place.strip * STRIP_ROWS + row;
        let to = at_row * GROUP_ROWS + self.tile * TILE;
        let (block, part) = block_of::<Q>(scaling.place.part);
        let at = at_row * x.row_blocks + block;
        for t in 0..W {
            let made = scaling.products.add(t).cast::<f32>().add(row * TILE);
            let mut product = V::load(made);
            if L::are_apart::<Q>() {
                // Rounded once, as both are exact.
                product = product.add(V::load(made.add(STRIP_ROWS * TILE)));
            }
            let mut scale = scaling.scales[t];
            if !L::IS_WHOLE {
                scale = scale.mul(V::splat(*x.scales.add(at)));
            }
            let sums = out.sums.add(to + t * TILE);
            let mut sum = product.fma(scale, V::load(sums));
            if Q::SHAPE.least != Least::Zero {
                let total = match Q::SHAPE.parts {
                    1 => *x.scaled_totals.add(at),
                    _ => (*x.half_totals.add(at))[part],
                };
                sum = scaling.minima[t].fma(V::splat(total), sum);
            }
            if !wide.is_null() {
                sum.add_to_f64(wide.add(to + t * TILE));
                sum = V::zero();
            }
            sum.store(sums);
        }
    }
}

/// Products of a strip, and what they are multiplied by.
struct Scaling<V, const W: usize> {
    place: Place,
    scales: [V; W],
    minima: [V; W],
    products: *const [Products; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Isa;
    use crate::backend::cpu::amx::{self, TileConfig};
    use crate::backend::cpu::lanes::{LINE_ORDER, Portable};
    use crate::backend::cpu::matmul::{group_matmul, group_matmul_wide};
    use crate::backend::cpu::memory::Arena;
    use crate::backend::cpu::pack::Packed;
    use crate::backend::cpu::pool::Pool;
    use crate::backend::cpu::rows::{self, CpuRows, Form};
    use crate::backend::cpu::tests::{OF_EACH_FORMAT, file_bytes, uniform, view};
    use trireme_shared::model::DType;
    use trireme_shared::model::random::SplitMix;

    /// What the instructions are defined to do (Intel SDM volume 2, `TDPBF16PS`), in plain loops.
    struct Written {
        slots: [*const Unpacked; GROUP_TILES],
        made: [Products; 2],
        lines: [*const Line; 2],
        pitch: usize,
    }

    impl Written {
        fn new() -> Self {
            Self {
                slots: [std::ptr::null(); GROUP_TILES],
                made: [Products([0.0; STRIP_ROWS * TILE]); 2],
                lines: [std::ptr::null(); 2],
                pitch: 0,
            }
        }
    }

    impl Tiles for Written {
        unsafe fn hold(&mut self, slot: usize, weights: *const Unpacked) {
            self.slots[slot] = weights;
        }
        unsafe fn take(&mut self, part: Part, lines: *const Line, pitch: usize) {
            self.lines[usize::from(part == Part::Fine)] = lines;
            self.pitch = pitch;
        }
        unsafe fn store(&mut self, made: usize, to: *mut Products) {
            *to = self.made[made];
        }
        unsafe fn multiply(&mut self, slot: usize, part: Part, made: usize) {
            let weights = &(*self.slots[slot]).quants;
            let float = |bits| bf16::from_bits(bits).to_f32();
            let parts: &[usize] = match part {
                Part::Coarse => &[0],
                Part::Fine => &[1],
                Part::Both => &[0, 1],
            };
            for row in 0..STRIP_ROWS {
                for n in 0..TILE {
                    let mut sum = 0f32;
                    for &part in parts {
                        let line = &(*self.lines[part].add(row * self.pitch)).0;
                        for k in 0..BLOCK {
                            let weight = weights[k / 2 * 2 * TILE + n * 2 + k % 2];
                            sum += float(line[k]) * float(weight);
                        }
                    }
                    self.made[made].0[row * TILE + n] = sum;
                }
            }
        }
    }

    fn quantised(isa: Isa, form: Form, values: &[f32], columns: usize) -> CpuRows {
        let mut x = CpuRows::default();
        let rows = values.len() / columns;
        x.reshape(rows, columns);
        x.data.copy_from_slice(values);
        x.reserve_quants(form);
        let to = x.quants_mut();
        for row in 0..rows {
            let from = x.data[row * columns..].as_ptr();
            unsafe { rows::quantise(isa, from, to, row, 0, columns / BLOCK) };
        }
        x.is_quantised = true;
        x
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
        let counts = (1..=40).chain([63, ROWS_MAX]);
        let inputs = formats.flat_map(|f| counts.clone().map(move |rows| (f, rows)));
        for (activations, rows) in inputs {
            // Two rows before those that are met: a strip may begin at any.
            let values = uniform(&mut random, (2 + rows) * columns);
            let form = |in_lines| Form {
                activations,
                in_lines,
            };
            let in_words = quantised(Isa::Portable, form(false), &values, columns);
            let in_lines = quantised(Isa::Portable, form(true), &values, columns);
            let in_bytes = tiles
                .as_ref()
                .map(|_| quantised(Isa::Avx512Vnni, form(false), &values, columns));
            for group in 0..packed.groups() {
                let what = format!(
                    "{dtype:?} {activations:?} {rows} x {columns} -> {outputs}, group {group}"
                );
                let w = Weights {
                    start: packed.group(group),
                    tiles: packed.group_tiles(group),
                    blocks: packed.blocks,
                };
                let words = Inputs::new(&in_words, 2, rows);
                let lines = Inputs::new(&in_lines, 2, rows);
                let format = packed.format;
                let (to, reference) = (got.as_mut_ptr(), want.sums());
                unsafe {
                    group_matmul(Isa::Portable, format, w, words, reference);
                    multiply::<Portable, _>(&mut Written::new(), format, w, lines, to);
                }
                assert!(
                    bits(&mut got, lines, w) == bits(&mut want, lines, w),
                    "{what}"
                );
                if let (Some(tiles), Some(bytes)) = (&tiles, &in_bytes) {
                    let bytes = Inputs::new(bytes, 2, rows);
                    unsafe {
                        group_matmul(Isa::Avx512Vnni, format, w, bytes, reference);
                        amx::group_matmul(tiles, format, w, lines, to);
                    }
                    assert!(
                        bits(&mut got, lines, w) == bits(&mut want, lines, w),
                        "AMX: {what}"
                    );
                }
                let (to, reference) = (got_wide.as_mut_ptr(), want_wide.sums());
                for &segment in segments {
                    let what = format!("{what}, segments of {segment}");
                    let unit = &mut Written::new();
                    unsafe {
                        group_matmul_wide(Isa::Portable, format, w, words, segment, reference);
                        multiply_wide::<Portable, _>(unit, format, w, lines, segment, to);
                    }
                    let (got, want) = (&mut got_wide, &mut want_wide);
                    assert!(bits(got, lines, w) == bits(want, lines, w), "{what}");
                    if let (Some(tiles), Some(bytes)) = (&tiles, &in_bytes) {
                        let bytes = Inputs::new(bytes, 2, rows);
                        unsafe {
                            group_matmul_wide(
                                Isa::Avx512Vnni,
                                format,
                                w,
                                bytes,
                                segment,
                                reference,
                            );
                            amx::group_matmul_wide(tiles, format, w, lines, segment, to);
                        }
                        assert!(bits(got, lines, w) == bits(want, lines, w), "AMX: {what}");
                    }
                }
            }
        }
    }

    #[test]
    fn lines_are_the_same_on_every_instruction_set() {
        let mut random = SplitMix(7);
        let values = uniform(&mut random, 5 * 96);
        for activations in [ActivationFormat::Int16, ActivationFormat::Int8] {
            let form = Form {
                activations,
                in_lines: true,
            };
            let want = quantised(Isa::Portable, form, &values, 96);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let got = quantised(isa, form, &values, 96);
                assert_eq!(got.lines, want.lines, "{isa:?} {activations:?}");
            }
            // What they hold is the value, in steps of the scale.
            let float = |bits| bf16::from_bits(bits).to_f32();
            for (at, value) in values.iter().enumerate() {
                let (row, column) = (at / 96, at % 96);
                let (block, place) = (column / BLOCK, column % BLOCK);
                let place = LINE_ORDER.iter().position(|&c| c == place).unwrap();
                let line = row * want.pitch() + block * form.lines();
                let parts = &want.lines[line..line + form.lines()];
                let got: f32 = parts.iter().map(|line| float(line.0[place])).sum();
                let scale = want.scales[row * 3 + block];
                let mut want = (value * (1.0 / scale)).round_ties_even();
                if activations == ActivationFormat::Int16 {
                    want *= scale;
                }
                assert_eq!(got, want, "{at}");
            }
        }
    }

    #[test]
    fn tiles_get_the_very_sums_that_lanes_get() {
        for dtype in OF_EACH_FORMAT {
            let block = dtype.block_elements();
            if block == BLOCK {
                // One tile; groups of two and one; of four and three; segments that end in the midst of
                // what the unit holds and some that are longer.
                compare(dtype, 3, 32, &[1]);
                compare(dtype, 41, 96, &[1, 2, 5]);
                compare(dtype, 1_584, 64, &[2]);
                compare(dtype, 20, 32 * 51, &[4, 6, 7, 40, 60]);
            } else {
                compare(dtype, 20, 768, &[4, 6, 7, 40]);
            }
        }
    }
}
