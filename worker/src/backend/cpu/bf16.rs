//! Many rows of activations in bf16 times weights that are rounded to bf16, by a unit that multiplies
//! tiles of them and adds up (AMX).
//!
//! The unit adds up 32 columns at a time to what it holds: the order, and so every sum, is that of
//! `matmul`'s kernels for these activations, to the last bit. Where those multiply a number at a time,
//! it multiplies 8,192 in the time of some 30 instructions on vectors.
//!
//! Two tiles of weights (a **pair**: neighbours, or a gate and its up projection) meet two strips at a
//! time, so that each load serves two products. Weights are unpacked while the first strips pass, as many
//! blocks as stay in the first-level cache, and the other strips find them there. Sums lie output by
//! output: weights take the place of rows, because sixteen of their rows are unpacked by sixteen lookups.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use super::lanes::{LANES, Lanes, PAIRS, Sums16, WeightTile};
use super::matmul::Sums;
use super::pack::{BLOCK, TILE};
use super::pointwise::{self, Near};
use super::quants::{self, Product, Quant};
use super::rows::{self, Line, QuantsMut, STRIP_ROWS};
use std::mem::MaybeUninit;
use trireme_shared::model::Activation;
use trireme_shared::model::blocks::LEVELS;

const _: () = assert!(TILE == LANES && STRIP_ROWS == LANES);

/// Strips of one call: their sums stay in the second-level cache.
pub(super) const STRIPS_MAX: usize = 16;

/// Blocks of a pair of tiles that are unpacked at once: they stay in the first-level cache, beside the
/// strips that pass.
const CHUNK: usize = 18;

/// The same where sums of segments stay there, too.
const CHUNK_OF_SEGMENTS: usize = 12;

/// Blocks ahead of the one in use to ask for. Two tiles of one take some 60 ns.
const AHEAD: usize = 12;

/// A unit that multiplies tiles and adds up. Pointers are aligned to 64 bytes.
///
/// It holds two tiles of weights, those of two strips (sixteen lines each), and four sums.
pub(super) trait Unit {
    /// All four sums become zero.
    unsafe fn zero(&mut self);
    unsafe fn take_weights(&mut self, slot: usize, from: *const WeightTile);
    unsafe fn take_rows(&mut self, at: usize, from: *const Line);
    /// The same where they are not needed again soon, and are to leave weights to the first-level cache.
    unsafe fn take_passing_rows(&mut self, at: usize, from: *const Line);
    /// Adds 32 columns' products to the sums of slot `slot` and strip `at`.
    unsafe fn multiply(&mut self, slot: usize, at: usize);
    unsafe fn load(&mut self, slot: usize, at: usize, from: *const Sums16);
    unsafe fn store(&mut self, slot: usize, at: usize, to: *mut Sums16);
}

/// Writes one block of a tile of some format's weights, rounded.
pub(super) type Unpack = unsafe fn(from: *const u8, to: *mut WeightTile);

/// What quants below 16 stand for: themselves, or a level.
const COUNTS: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

const FLOAT_LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut at = 0;
    while at < 16 {
        levels[at] = LEVELS[at] as f32;
        at += 1;
    }
    levels
};

/// [`Unpack`] of one format.
#[inline(always)]
pub(super) unsafe fn unpack<V: Lanes, Q: Quant>(from: *const u8, to: *mut WeightTile) {
    let shape = const { Q::SHAPE };
    if shape.low == 4 && shape.high == 0 {
        let (scale, least) = quants::scale_and_least::<V, Q>(from, 0);
        let levels = match shape.product {
            Product::Level => &FLOAT_LEVELS,
            _ => &COUNTS,
        };
        V::store_nibbles(from, levels, scale, least, to);
        return;
    }
    let vectors = [
        quants::weights::<V, Q>(from, 0),
        quants::weights::<V, Q>(from, 1),
        quants::weights::<V, Q>(from, 2),
        quants::weights::<V, Q>(from, 3),
        quants::weights::<V, Q>(from, 4),
        quants::weights::<V, Q>(from, 5),
        quants::weights::<V, Q>(from, 6),
        quants::weights::<V, Q>(from, 7),
    ];
    let (scale, least) = quants::scale_and_offset::<V, Q>(from, 0);
    if shape.parts == 1 {
        V::store_bytes(vectors, &[[scale, least]], to);
    } else {
        let (later_scale, later_least) = quants::scale_and_offset::<V, Q>(from, 1);
        let parts = [[scale, least], [later_scale, later_least]];
        V::store_bytes(vectors, &parts, to);
    }
}

/// Sixteen outputs' weights.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// The first block; the next ones follow `pitch` bytes apart each.
    pub(super) start: *const u8,
    pub(super) pitch: usize,
    /// Of a block.
    pub(super) bytes: usize,
    pub(super) unpack: Unpack,
    /// The first block of the tile that comes next in this one's place: to be asked for in time.
    pub(super) next: *const u8,
}

impl Slot {
    /// Asks for the block that comes [`AHEAD`] blocks later.
    #[inline(always)]
    unsafe fn prefetch<V: Lanes>(&self, block: usize, blocks: usize) {
        let at = match block + AHEAD {
            at if at < blocks => self.start.wrapping_add(at * self.pitch),
            at => self.next.wrapping_add((at - blocks) * self.pitch),
        };
        for line in 0..self.bytes.div_ceil(64) {
            V::prefetch(at.wrapping_add(line * 64));
        }
    }
}

/// What is multiplied.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    /// One or two.
    pub(super) slots: &'a [Slot],
    /// Of each slot and each strip.
    pub(super) blocks: usize,
    /// Blocks whose sum is added up apart, in f64; none if all are one.
    pub(super) segment: Option<usize>,
    /// The first strip; `rows` says how many.
    pub(super) strips: *const Line,
    pub(super) rows: usize,
}

/// Where a pair's sums go.
#[derive(Clone, Copy)]
pub(super) enum To {
    /// Of the outputs there are. In what is of segments, f32 are rounded from f64.
    Put(Sums<f32>, usize),
    /// The same is added to what is there.
    Add(Sums<f32>, usize),
    /// Sums of segments.
    Wide(Sums<f64>, usize),
    /// Gates and what they let through: one slot's sums, bent by the activation, times the other's.
    Gated(Activation, GatedTo),
}

impl To {
    /// The same from a later output on, of those that are put by columns.
    pub(super) unsafe fn at_output(self, first: usize) -> Self {
        match self {
            Self::Put(to, columns) => Self::Put(to.at_column(first), columns - first),
            Self::Add(to, columns) => Self::Add(to.at_column(first), columns - first),
            Self::Wide(to, columns) => Self::Wide(to.at_column(first), columns - first),
            Self::Gated(..) => self,
        }
    }
}

/// Sixteen gated outputs.
#[derive(Clone, Copy)]
pub(super) struct GatedTo {
    /// Rows of them, of which so many columns exist.
    pub(super) values: Option<(Sums<f32>, usize)>,
    /// Strips, the row where the first begins, and the first output.
    pub(super) quants: Option<(QuantsMut, usize, usize)>,
}

/// What a thread needs beside its registers: of each slot a chunk's weights, of each strip and slot sums.
#[repr(align(64))]
pub(super) struct Room {
    weights: [[MaybeUninit<WeightTile>; CHUNK]; 2],
    sums: [[MaybeUninit<Sums16>; 2]; STRIPS_MAX],
    wide: [[MaybeUninit<[[f64; LANES]; LANES]>; 2]; STRIPS_MAX],
    /// Of each segment that ends in a chunk the sums of two slots and two strips.
    parts: [[[MaybeUninit<Sums16>; 2]; 2]; CHUNK],
}

/// Numbers from a segment's sums to the next one's.
const PART_PITCH: usize = 4 * LANES * LANES;

impl Room {
    pub(super) fn boxed() -> Box<Self> {
        // SAFETY: of all of its parts nothing is initialised.
        unsafe { Box::new_uninit().assume_init() }
    }

    fn weights(&mut self, slot: usize, block: usize) -> *mut WeightTile {
        self.weights[slot][block].as_mut_ptr()
    }

    fn sums(&mut self, strip: usize, slot: usize) -> *mut Sums16 {
        self.sums[strip][slot].as_mut_ptr()
    }

    fn part(&mut self, segment: usize, slot: usize, at: usize) -> *mut Sums16 {
        self.parts[segment][slot][at].as_mut_ptr()
    }

    fn wide(&mut self, strip: usize, slot: usize) -> *mut [f64; LANES] {
        self.wide[strip][slot].as_mut_ptr().cast()
    }
}

/// Multiplies a pair with up to [`STRIPS_MAX`] strips. All rows of the last strip exist in memory.
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes, U: Unit>(
    unit: &mut U,
    pair: Pair<'_>,
    room: &mut Room,
    to: To,
) {
    let strips = pair.rows.div_ceil(STRIP_ROWS);
    debug_assert!(strips <= STRIPS_MAX && matches!(pair.slots.len(), 1 | 2));
    let segment = pair.segment.unwrap_or(pair.blocks);
    let most = match pair.segment {
        Some(_) => CHUNK_OF_SEGMENTS,
        None => CHUNK,
    };
    let chunk = match most / segment {
        0 => most,
        whole => whole * segment,
    };
    for first in (0..pair.blocks).step_by(chunk) {
        let end = (first + chunk).min(pair.blocks);
        for strip in (0..strips).step_by(2) {
            let part = Part {
                pair,
                segment,
                first,
                end,
                strip,
            };
            match (pair.slots.len(), strips - strip) {
                (2, 1) => part.run::<V, U, 2, 1>(unit, room),
                (2, _) => part.run::<V, U, 2, 2>(unit, room),
                (_, 1) => part.run::<V, U, 1, 1>(unit, room),
                (_, _) => part.run::<V, U, 1, 2>(unit, room),
            }
        }
    }
    for strip in 0..strips {
        put::<V>(pair, room, strip, to);
    }
}

/// A chunk of a pair's blocks, and one or two strips from one on.
#[derive(Clone, Copy)]
struct Part<'a> {
    pair: Pair<'a>,
    segment: usize,
    first: usize,
    end: usize,
    strip: usize,
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes, U: Unit, const SLOTS: usize, const STRIPS: usize>(
        self,
        unit: &mut U,
        room: &mut Room,
    ) {
        let Self { pair, segment, .. } = self;
        let strip_lines = pair.blocks * STRIP_ROWS;
        let lines = pair.strips.add(self.strip * strip_lines);
        if self.first.is_multiple_of(segment) {
            unit.zero();
        } else {
            for slot in 0..SLOTS {
                for at in 0..STRIPS {
                    unit.load(slot, at, room.sums(self.strip + at, slot));
                }
            }
        }
        let unpacks = self.strip == 0;
        if unpacks {
            for slot in 0..SLOTS {
                self.unpack::<V>(slot, self.first, room);
            }
        }
        // Of how many segments sums wait for the chunk's end.
        let mut parts = 0;
        for block in self.first..self.end {
            for at in 0..STRIPS {
                let lines = lines.add(at * strip_lines + block * STRIP_ROWS);
                match pair.rows <= 2 * STRIP_ROWS {
                    true => unit.take_rows(at, lines),
                    false => unit.take_passing_rows(at, lines),
                }
                for slot in 0..SLOTS {
                    if at == 0 {
                        unit.take_weights(slot, self.weights(slot, block, room));
                    }
                    unit.multiply(slot, at);
                    // A block ahead: what was just written is taken as a tile late.
                    if at + 1 == STRIPS && unpacks && block + 1 < self.end {
                        self.unpack::<V>(slot, block + 1, room);
                    }
                }
            }
            let end = block + 1;
            let ends_segment = end == pair.blocks || end.is_multiple_of(segment);
            if !(ends_segment || end == self.end) {
                continue;
            }
            let ends_part = ends_segment && pair.segment.is_some();
            for slot in 0..SLOTS {
                for at in 0..STRIPS {
                    let to = match ends_part {
                        true => room.part(parts, slot, at),
                        false => room.sums(self.strip + at, slot),
                    };
                    unit.store(slot, at, to);
                }
            }
            parts += usize::from(ends_part);
            if ends_segment && end < self.end {
                unit.zero();
            }
        }
        if parts == 0 {
            return;
        }
        let begins = self.first < segment;
        for slot in 0..SLOTS {
            for at in 0..STRIPS {
                let (from, to) = (room.part(0, slot, at), room.wide(self.strip + at, slot));
                for output in 0..TILE {
                    let from = (*from).0[output].as_ptr();
                    V::add_up(from, PART_PITCH, parts, begins, to.add(output).cast());
                }
            }
        }
    }

    /// Where a block's weights are kept.
    fn weights(&self, slot: usize, block: usize, room: &mut Room) -> *mut WeightTile {
        match self.pair.rows <= STRIP_ROWS {
            // Nobody finds them there later: in lines that are in the cache already.
            true => room.weights(slot, block % 2),
            false => room.weights(slot, block - self.first),
        }
    }

    #[inline(always)]
    unsafe fn unpack<V: Lanes>(&self, slot: usize, block: usize, room: &mut Room) {
        let from = &self.pair.slots[slot];
        from.prefetch::<V>(block, self.pair.blocks);
        let at = from.start.add(block * from.pitch);
        (from.unpack)(at, self.weights(slot, block, room));
    }
}

/// A finished strip's sums to where they belong.
#[inline(always)]
unsafe fn put<V: Lanes>(pair: Pair<'_>, room: &mut Room, strip: usize, to: To) {
    let row = strip * STRIP_ROWS;
    let rows = STRIP_ROWS.min(pair.rows - row);
    for slot in 0..pair.slots.len() {
        let first = slot * TILE;
        match to {
            To::Put(to, columns) => {
                let turned = turned::<V>(sums_in_f32::<V>(pair, room, strip, slot));
                put_rows::<V, false>(&turned.0[..rows], to, row, first, columns);
            }
            To::Add(to, columns) => {
                let turned = turned::<V>(sums_in_f32::<V>(pair, room, strip, slot));
                put_rows::<V, true>(&turned.0[..rows], to, row, first, columns);
            }
            To::Wide(to, columns) => {
                let wide = room.wide(strip, slot);
                for output in 0..TILE.min(columns.saturating_sub(first)) {
                    let sums = &*wide.add(output);
                    for (at, sum) in sums[..rows].iter().enumerate() {
                        *to.row(row + at).add(first + output) = *sum;
                    }
                }
            }
            // Both slots at once.
            To::Gated(activation, to) => {
                put_gated::<V>(activation, room, strip, rows, to);
                return;
            }
        }
    }
}

/// A slot's sums, rounded where they are of segments.
#[inline(always)]
unsafe fn sums_in_f32<V: Lanes>(
    pair: Pair<'_>,
    room: &mut Room,
    strip: usize,
    slot: usize,
) -> *const Sums16 {
    let (wide, sums) = (room.wide(strip, slot), room.sums(strip, slot));
    if pair.segment.is_some() {
        for (output, sums) in (*sums).0.iter_mut().enumerate() {
            V::load_f64(wide.add(output).cast()).store(sums.as_mut_ptr());
        }
    }
    sums
}

/// Rows of outputs, of outputs' rows.
#[inline(always)]
unsafe fn turned<V: Lanes>(sums: *const Sums16) -> Sums16 {
    let mut turned = MaybeUninit::uninit();
    V::transpose(sums, turned.as_mut_ptr());
    turned.assume_init()
}

/// Rows of sixteen outputs from `first` on, of which `columns` exist.
#[inline(always)]
unsafe fn put_rows<V: Lanes, const ADDS: bool>(
    turned: &[[f32; LANES]],
    to: Sums<f32>,
    row: usize,
    first: usize,
    columns: usize,
) {
    let count = columns.saturating_sub(first).min(TILE);
    for (at, sums) in turned.iter().enumerate() {
        let to = to.row(row + at).add(first);
        if count == TILE {
            let sums = V::load(sums.as_ptr());
            match ADDS {
                true => V::load(to).add(sums).store(to),
                false => sums.store(to),
            }
        } else {
            for (at, sum) in sums[..count].iter().enumerate() {
                match ADDS {
                    true => *to.add(at) += *sum,
                    false => *to.add(at) = *sum,
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn put_gated<V: Lanes>(
    activation: Activation,
    room: &mut Room,
    strip: usize,
    rows: usize,
    to: GatedTo,
) {
    let (gates, ups) = (room.sums(strip, 0), room.sums(strip, 1));
    for (gate, up) in (*gates).0.iter_mut().zip(&(*ups).0) {
        let (gates, ups) = (V::load(gate.as_ptr()), V::load(up.as_ptr()));
        pointwise::gated::<V, Near>(activation, gates, ups).store(gate.as_mut_ptr());
    }
    let row = strip * STRIP_ROWS;
    if let Some((values, columns)) = to.values {
        let turned = turned::<V>(gates);
        put_rows::<V, false>(&turned.0[..rows], values, row, 0, columns);
    }
    if let Some((quants, first_row, output)) = to.quants {
        let lines = quants.strip(first_row + row, output / BLOCK);
        // Of the block's pairs those whose columns these outputs are.
        let first = output % BLOCK;
        for (at, column) in PAIRS.into_iter().enumerate() {
            if (first..first + TILE).contains(&column) {
                let values = &(*gates).0;
                let one = V::load(values[column - first].as_ptr());
                let other = V::load(values[column - first + 2].as_ptr());
                V::store_pairs(rows::counted(one), rows::counted(other), lines.add(at));
            }
        }
    }
}

#[cfg(test)]
#[path = "bf16_tests.rs"]
mod tests;
