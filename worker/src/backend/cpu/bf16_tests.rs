//! What tiles of bf16 add up, against the kernels for lanes.

use super::*;
use crate::backend::Isa;
use crate::backend::cpu::amx::{self, TileConfig};
use crate::backend::cpu::lanes::Portable;
use crate::backend::cpu::matmul::{self, GroupSums, Inputs, Weights};
use crate::backend::cpu::memory::Arena;
use crate::backend::cpu::pack::Format;
use crate::backend::cpu::pack::{GROUP_ROWS, Packed};
use crate::backend::cpu::pool::Pool;
use crate::backend::cpu::rows::{CpuRows, Form};
use crate::backend::cpu::tests::{OF_EACH_FORMAT, file_bytes, uniform, view};
use half::bf16;
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{ActivationFormat, DType};

/// What the instructions are defined to do (Intel SDM volume 2, `TDPBF16PS`), in plain loops.
#[derive(Default)]
struct Written {
    weights: [Option<WeightTile>; 2],
    rows: [Vec<Line>; 2],
    sums: [[[f32; 16]; 16]; 4],
}

fn written_unpacker(format: Format) -> Unpack {
    match format {
        Format::Twos => unpack::<Portable, quants::Twos>,
        Format::Threes => unpack::<Portable, quants::Threes>,
        Format::Fours => unpack::<Portable, quants::Fours>,
        Format::Nibbles => unpack::<Portable, quants::Nibbles>,
        Format::Levels => unpack::<Portable, quants::Levels>,
        Format::Fives => unpack::<Portable, quants::Fives>,
        Format::Sixes => unpack::<Portable, quants::Sixes>,
        Format::Bytes => unpack::<Portable, quants::Bytes>,
        Format::F16 | Format::Bf16 | Format::F32 => unreachable!(),
    }
}

impl Unit for Written {
    unsafe fn zero(&mut self) {
        self.sums = Default::default();
    }
    unsafe fn take_weights(&mut self, slot: usize, from: *const WeightTile) {
        self.weights[slot] = Some(*from);
    }
    unsafe fn take_rows(&mut self, at: usize, from: *const Line) {
        self.rows[at] = std::slice::from_raw_parts(from, 16).to_vec();
    }
    unsafe fn take_passing_rows(&mut self, at: usize, from: *const Line) {
        self.take_rows(at, from);
    }
    unsafe fn multiply(&mut self, slot: usize, at: usize) {
        let float = |bits: u16| bf16::from_bits(bits).to_f32();
        let (weights, rows) = (self.weights[slot].unwrap().0, &self.rows[at]);
        for (output, weights) in weights.iter().enumerate() {
            for row in 0..16 {
                let mut chains = [0f32; 2];
                for (pair, weights) in weights.iter().enumerate() {
                    for side in 0..2 {
                        let value = float(rows[pair].0[2 * row + side]);
                        chains[side] = float(weights[side]).mul_add(value, chains[side]);
                    }
                }
                self.sums[2 * slot + at][output][row] += chains[0] + chains[1];
            }
        }
    }
    unsafe fn load(&mut self, slot: usize, at: usize, from: *const Sums16) {
        self.sums[2 * slot + at] = (*from).0;
    }
    unsafe fn store(&mut self, slot: usize, at: usize, to: *mut Sums16) {
        (*to).0 = self.sums[2 * slot + at];
    }
}

fn rounded_rows(isa: Isa, in_lines: bool, values: &[f32], columns: usize) -> CpuRows {
    let mut x = CpuRows::default();
    let count = values.len() / columns;
    x.reshape(count, columns);
    x.data.copy_from_slice(values);
    x.reserve_quants(Form {
        activations: ActivationFormat::Bf16,
        in_lines,
    });
    let to = x.quants_mut();
    for (row, values) in values.chunks(columns).enumerate() {
        unsafe { rows::quantise(isa, values.as_ptr(), to, row, 0, columns / BLOCK) };
    }
    x.is_quantised = true;
    x
}

/// Sums of a matrix's group, row by row.
type Answer<T> = Vec<Vec<T>>;

/// By a unit: a group's tiles two by two, into rows of a group.
fn by_pairs<T: Copy>(
    packed: &Packed,
    group: usize,
    x: &CpuRows,
    segment: Option<usize>,
    unpacker: fn(Format) -> Unpack,
    mut run: impl FnMut(Pair<'_>, Sums<T>, usize),
    zero: T,
) -> Answer<T> {
    let (tiles, bytes) = (packed.group_tiles(group), packed.format.tile_bytes());
    let mut out = vec![zero; x.rows * GROUP_ROWS];
    let columns = packed.group_rows(group).len();
    for tile in (0..tiles).step_by(2) {
        let slots: Vec<Slot> = (tile..tiles.min(tile + 2))
            .map(|tile| Slot {
                start: packed.group(group).wrapping_add(tile * bytes),
                pitch: tiles * bytes,
                bytes,
                unpack: unpacker(packed.format),
                next: packed.group(group),
            })
            .collect();
        let pair = Pair {
            slots: &slots,
            blocks: packed.blocks,
            segment,
            strips: x.strips(0).as_ptr(),
            rows: x.rows,
        };
        let to = Sums {
            at: out[tile * TILE..].as_mut_ptr(),
            pitch: GROUP_ROWS,
            is_room: false,
        };
        run(pair, to, columns - tile * TILE);
    }
    out.chunks(GROUP_ROWS)
        .map(|row| row[..columns].to_vec())
        .collect()
}

fn weights(packed: &Packed, group: usize) -> Weights {
    Weights {
        start: packed.group(group),
        tiles: packed.group_tiles(group),
        blocks: packed.blocks,
    }
}

fn by_lanes(isa: Isa, packed: &Packed, group: usize, x: &CpuRows) -> Answer<f32> {
    let w = weights(packed, group);
    let columns = packed.group_rows(group).len();
    let mut out = GroupSums::new();
    unsafe {
        matmul::group_matmul(isa, packed.format, w, Inputs::new(x, 0, x.rows), out.sums());
        (0..x.rows)
            .map(|row| out.row(row, columns).to_vec())
            .collect()
    }
}

fn by_lanes_wide(
    isa: Isa,
    packed: &Packed,
    group: usize,
    x: &CpuRows,
    segment: usize,
) -> Answer<f64> {
    let w = weights(packed, group);
    let columns = packed.group_rows(group).len();
    let (mut out, inputs) = (GroupSums::new(), Inputs::new(x, 0, x.rows));
    unsafe {
        matmul::group_matmul_wide(isa, packed.format, w, inputs, segment, out.sums());
        (0..x.rows)
            .map(|row| out.row(row, columns).to_vec())
            .collect()
    }
}

/// Every group of a matrix, for numbers of rows that fill strips and that do not.
fn compare(dtype: DType, outputs: usize, columns: usize, segments: &[usize]) {
    let mut random = SplitMix(columns as u64);
    let bytes = file_bytes(&mut random, dtype, outputs * columns);
    let (mut arena, mut pool) = (Arena::default(), Pool::new(1).unwrap());
    let packed = Packed::new(
        &view(dtype, outputs, columns, &bytes),
        &mut arena,
        &mut pool,
    );
    let packed = packed.unwrap();
    let tiles = TileConfig::load();
    let mut room = Room::boxed();
    let isas: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.available()).collect();
    for rows in [1, 2, 15, 16, 17, 33, 64] {
        let values = uniform(&mut random, rows * columns);
        let strips = rounded_rows(Isa::Portable, true, &values, columns);
        let lanes = rounded_rows(Isa::Portable, false, &values, columns);
        for group in 0..packed.groups() {
            let what = format!("{dtype:?} {rows} x {columns} -> {outputs}, group {group}");
            let want = by_lanes(Isa::Portable, &packed, group, &lanes);
            for &isa in &isas {
                let lanes = rounded_rows(isa, false, &values, columns);
                assert!(
                    by_lanes(isa, &packed, group, &lanes) == want,
                    "{isa:?}: {what}"
                );
            }
            let unit = written_unpacker;
            let run = |pair: Pair<'_>, to, columns| unsafe {
                let to = To::Put(to, columns);
                multiply::<Portable, _>(&mut Written::default(), pair, &mut room, to);
            };
            let got = by_pairs(&packed, group, &strips, None, unit, run, 0.0);
            assert!(got == want, "{what}");
            if let Some(tiles) = &tiles {
                let run = |pair: Pair<'_>, to, columns| unsafe {
                    amx::multiply_bf16(tiles, pair, &mut room, To::Put(to, columns));
                };
                let got = by_pairs(&packed, group, &strips, None, amx::unpacker, run, 0.0);
                assert!(got == want, "AMX: {what}");
            }
            for &segment in segments {
                let what = format!("{what}, segments of {segment}");
                let want = by_lanes_wide(Isa::Portable, &packed, group, &lanes, segment);
                let run = |pair: Pair<'_>, to, columns| unsafe {
                    let to = To::Wide(to, columns);
                    multiply::<Portable, _>(&mut Written::default(), pair, &mut room, to);
                };
                let got = by_pairs(&packed, group, &strips, Some(segment), unit, run, 0.0);
                assert!(got == want, "{what}");
                let run = |pair: Pair<'_>, to, columns| unsafe {
                    let to = To::Add(to, columns);
                    multiply::<Portable, _>(&mut Written::default(), pair, &mut room, to);
                };
                let got = by_pairs(&packed, group, &strips, Some(segment), unit, run, 1.0f32);
                let sums = want
                    .iter()
                    .map(|row| row.iter().map(|sum| 1.0 + *sum as f32));
                let sums: Answer<f32> = sums.map(Iterator::collect).collect();
                assert!(got == sums, "added: {what}");
                if let Some(tiles) = &tiles {
                    let run = |pair: Pair<'_>, to, columns| unsafe {
                        amx::multiply_bf16(tiles, pair, &mut room, To::Wide(to, columns));
                    };
                    let unit = amx::unpacker;
                    let got = by_pairs(&packed, group, &strips, Some(segment), unit, run, 0.0);
                    assert!(got == want, "AMX: {what}");
                }
            }
        }
    }
}

#[test]
fn tiles_of_bf16_get_the_very_sums_that_lanes_get() {
    for dtype in OF_EACH_FORMAT {
        if dtype.block_elements() == BLOCK {
            // One tile; groups of two and one; of four and one; chunks that end in the midst of segments,
            // and segments of several chunks.
            compare(dtype, 3, 32, &[1]);
            compare(dtype, 41, 96, &[1, 2, 5]);
            compare(dtype, 1_552, 64, &[2]);
            compare(dtype, 20, 32 * 51, &[4, 7, 19, 40, 60]);
        } else {
            compare(dtype, 20, 768, &[4, 7, 40]);
        }
    }
}
