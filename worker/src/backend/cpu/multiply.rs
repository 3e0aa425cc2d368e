//! Which kernel multiplies: tiles where there are enough rows for them to win, lanes elsewhere.
//! Both get the same sums to the last bit, so the choice is only one of speed.

use super::amx::{self, TileConfig};
use super::bf16::{GatedTo, Pair, Room, STRIPS_MAX, Slot, To};
use super::matmul::{self, GroupSums, Inputs, ROWS_MAX, Sums, Weights};
use super::pack::{BLOCK, Format, GROUP_TILES, Packed, TILE};
use super::pointwise;
use super::rows::{CpuRows, Form, QuantsMut, STRIP_ROWS};
use crate::backend::Isa;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use trireme_shared::model::{Activation, ActivationFormat};

/// Chosen once for a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Multiplier {
    isa: Isa,
    pub(super) activations: ActivationFormat,
    /// Products of at least so many rows go by tiles.
    pub(super) tile_rows_min: usize,
}

impl Multiplier {
    /// The machine has `isa`.
    pub(super) fn new(isa: Isa, activations: ActivationFormat) -> Self {
        if activations == ActivationFormat::Bf16 && isa != Isa::Amx {
            tracing::warn!(
                kernels = isa.name(),
                "activations in bf16 are multiplied one by one without AMX: deploy with int8 or int16 where \
                 workers have none"
            );
        }
        let tile_rows_min = match isa {
            // Whole chunks at the least: who asks for tiles gets them.
            Isa::Amx => tiles_win_from(activations).unwrap_or(ROWS_MAX),
            _ => usize::MAX,
        };
        Self {
            isa,
            activations,
            tile_rows_min,
        }
    }

    /// Whether any number of rows comes in strips.
    pub(super) fn has_strips(self) -> bool {
        self.form(1).is_in_strips()
    }

    /// Rows that are multiplied apart begin at multiples of it.
    pub(super) fn row_align(self) -> usize {
        match self.has_strips() {
            true => STRIP_ROWS,
            false => 1,
        }
    }

    /// Rows of one call.
    pub(super) fn rows_max(x: &CpuRows) -> usize {
        match x.is_quantised && x.form.is_in_strips() {
            true => STRIPS_MAX * STRIP_ROWS,
            false => ROWS_MAX,
        }
    }

    /// In which so many rows are to be quantised.
    pub(super) fn form(self, rows: usize) -> Form {
        Form {
            activations: self.activations,
            in_lines: rows >= self.tile_rows_min,
        }
    }

    /// For this thread, to multiply these rows; to be dropped when it turns to other work.
    pub(super) fn start(self, x: &CpuRows) -> Kernels {
        let tiles = match x.is_quantised && x.form.in_lines {
            true => TileConfig::load(),
            false => None,
        };
        Kernels {
            isa: self.isa,
            tiles,
            narrow: GroupSums::new(),
            wide: GroupSums::new(),
        }
    }
}

/// One thread's kernels, and room for sums that cannot go where they belong at once.
pub(super) struct Kernels {
    isa: Isa,
    tiles: Option<TileConfig>,
    narrow: GroupSums<f32>,
    wide: GroupSums<f64>,
}

thread_local! {
    /// Kept from call to call. On a stack it would be part of what a new frame may be filled with.
    static ROOM: RefCell<Box<Room>> = RefCell::new(Room::boxed());
}

impl Kernels {
    /// `x[rows] * group^T` into `out`; all of the group's outputs.
    ///
    /// # Safety
    /// `out` has room for so many columns of each row, or is a [`GroupSums`], of which whole tiles are
    /// written. Nobody else touches them meanwhile.
    pub(super) unsafe fn multiply(
        &mut self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        out: Sums<f32>,
    ) {
        let columns = w.group_rows(group).len();
        if self.takes_strips(w, x) {
            // SAFETY: by this function's contract.
            unsafe { self.pairs(w, group, x, rows, None, To::Put(out, columns)) }
            return;
        }
        let is_direct = out.is_room || self.is_direct(columns);
        for (at, rows) in chunks(rows) {
            let (weights, inputs) = operands(w, group, x, rows);
            // SAFETY: `operands` checked rows and shapes; the group's bytes are packed; there is room for
            // the sums; whoever made the `Multiplier` checked the instruction set.
            unsafe {
                let out = out.at_row(at);
                let to = if is_direct { out } else { self.narrow.sums() };
                match &self.tiles {
                    Some(tiles) if w.format.is_quantised() => {
                        amx::group_matmul(tiles, w.format, weights, inputs, to.at);
                    }
                    _ => matmul::group_matmul(self.isa, w.format, weights, inputs, to),
                }
                if !is_direct {
                    copy_rows(to, inputs.rows, columns, out);
                }
            }
        }
    }

    /// The same, in f64 over segments of so many blocks.
    ///
    /// # Safety
    /// As [`Kernels::multiply`]'s.
    pub(super) unsafe fn multiply_wide(
        &mut self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        segment: usize,
        out: Sums<f64>,
    ) {
        assert!(segment > 0);
        let columns = w.group_rows(group).len();
        if self.takes_strips(w, x) {
            // SAFETY: by this function's contract.
            unsafe { self.pairs(w, group, x, rows, Some(segment), To::Wide(out, columns)) }
            return;
        }
        let is_direct = out.is_room || self.is_direct(columns);
        for (at, rows) in chunks(rows) {
            let (weights, inputs) = operands(w, group, x, rows);
            // SAFETY: as in `multiply`; segments stay within the group's blocks.
            unsafe {
                let out = out.at_row(at);
                let to = if is_direct { out } else { self.wide.sums() };
                match &self.tiles {
                    Some(tiles) if w.format.is_quantised() => {
                        amx::group_matmul_wide(tiles, w.format, weights, inputs, segment, to.at);
                    }
                    _ => {
                        matmul::group_matmul_wide(self.isa, w.format, weights, inputs, segment, to)
                    }
                }
                if !is_direct {
                    copy_rows(to, inputs.rows, columns, out);
                }
            }
        }
    }

    /// Adds what `multiply_wide` gives, rounded to f32, to what is there.
    ///
    /// # Safety
    /// `to` has room for the group's columns of each row, and nobody else touches them meanwhile.
    pub(super) unsafe fn add(
        &mut self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        segment: usize,
        to: Sums<f32>,
    ) {
        let columns = w.group_rows(group).len();
        if self.takes_strips(w, x) {
            // SAFETY: by this function's contract.
            unsafe { self.pairs(w, group, x, rows, Some(segment), To::Add(to, columns)) }
            return;
        }
        for (at, rows) in chunks(rows) {
            let (mut sums, count) = (GroupSums::new(), rows.len());
            // SAFETY: the buffer has room for a group; otherwise as above; the instruction set is checked.
            unsafe {
                let (sums, to) = (sums.sums(), to.at_row(at));
                self.multiply_wide(w, group, x, rows, segment, sums);
                for row in 0..count {
                    pointwise::add_rounded(self.isa, to.row(row), sums.row(row), columns);
                }
            }
        }
    }

    /// `activation(x * gate^T) * (x * up^T)` of one group by strips, where both matrices take them: into
    /// values and strips that have room for all columns of these rows. Says whether that was done.
    ///
    /// # Safety
    /// Nobody else touches this group's columns in these rows meanwhile.
    pub(super) unsafe fn gate_by_strips(
        &mut self,
        [gate, up]: [&Packed; 2],
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        activation: Activation,
        (values, quants): (Option<Sums<f32>>, Option<QuantsMut>),
    ) -> bool {
        if !(self.takes_strips(gate, x) && self.takes_strips(up, x)) {
            return false;
        }
        let outputs = gate.group_rows(group);
        for tile in 0..gate.group_tiles(group) {
            let first = tile * TILE;
            // SAFETY: the tile's first output is one of the group's, and so by this function's contract.
            let values = values.map(|to| (unsafe { to.at_column(first) }, outputs.len() - first));
            let to = GatedTo {
                values,
                quants: quants.map(|to| (to, rows.start, outputs.start + first)),
            };
            let slots = [gate, up].map(|w| slot(w, group, tile, 1));
            // SAFETY: as above.
            unsafe {
                self.pair(
                    &slots,
                    gate,
                    x,
                    rows.clone(),
                    None,
                    To::Gated(activation, to),
                )
            }
        }
        true
    }

    /// A group's tiles, two by two.
    ///
    /// # Safety
    /// `to` has room for the group's sums of these rows.
    unsafe fn pairs(
        &mut self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        segment: Option<usize>,
        to: To,
    ) {
        let tiles = w.group_tiles(group);
        for tile in (0..tiles).step_by(2) {
            let slots = [tile, (tile + 1).min(tiles - 1)].map(|tile| slot(w, group, tile, 2));
            let slots = &slots[..2.min(tiles - tile)];
            // SAFETY: by this function's contract.
            unsafe {
                self.pair(
                    slots,
                    w,
                    x,
                    rows.clone(),
                    segment,
                    to.at_output(tile * TILE),
                )
            }
        }
    }

    /// # Safety
    /// `to` has room for these outputs' sums of these rows.
    unsafe fn pair(
        &mut self,
        slots: &[Slot],
        w: &Packed,
        x: &CpuRows,
        rows: Range<usize>,
        segment: Option<usize>,
        to: To,
    ) {
        assert!(
            x.width == w.columns && rows.len() <= STRIPS_MAX * STRIP_ROWS && rows.end <= x.rows
        );
        let pair = Pair {
            slots,
            blocks: w.blocks,
            segment,
            strips: x.strips(rows.start).as_ptr(),
            rows: rows.len(),
        };
        let Some(tiles) = &self.tiles else {
            unreachable!("rows are in strips only where there are tiles");
        };
        // SAFETY: rows and shapes were just checked, strips are whole; otherwise by this function's
        // contract. There are tiles only where the instruction set is.
        ROOM.with_borrow_mut(|room| unsafe { amx::multiply_bf16(tiles, pair, room, to) });
    }

    /// Whether `w` meets these rows strip by strip.
    fn takes_strips(&self, w: &Packed, x: &CpuRows) -> bool {
        w.format.is_quantised() && x.is_quantised && x.form.is_in_strips()
    }

    /// Whether sums of so many columns can be written among other groups': tiles add up in memory and take
    /// nothing but a [`GroupSums`], and the last tile of a group may be wider than the group.
    fn is_direct(&self, columns: usize) -> bool {
        self.tiles.is_none() && columns.is_multiple_of(TILE)
    }
}

/// Of at most [`ROWS_MAX`] rows each, and how many are before it.
fn chunks(rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let firsts = rows.clone().step_by(ROWS_MAX);
    firsts.map(move |first| (first - rows.start, first..(first + ROWS_MAX).min(rows.end)))
}

/// A tile of a group, after which the one `step` further follows, or the next group's.
fn slot(w: &Packed, group: usize, tile: usize, step: usize) -> Slot {
    let bytes = w.format.tile_bytes();
    let (tiles, next) = (w.group_tiles(group), tile + step);
    let (next_group, next) = match next < tiles {
        true => (group, next),
        false => ((group + 1).min(w.groups() - 1), next - tiles),
    };
    Slot {
        start: w.group(group).wrapping_add(tile * bytes),
        next: w.group(next_group).wrapping_add(next * bytes),
        pitch: w.group_tiles(group) * bytes,
        bytes,
        unpack: amx::unpacker(w.format),
    }
}

/// # Safety
/// There are such rows in both.
unsafe fn copy_rows<T: Copy>(from: Sums<T>, rows: usize, columns: usize, to: Sums<T>) {
    for row in 0..rows {
        // SAFETY: by this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(from.row(row), to.row(row), columns) }
    }
}

/// One group's weights and the rows they meet, their shapes checked.
fn operands(w: &Packed, group: usize, x: &CpuRows, rows: Range<usize>) -> (Weights, Inputs) {
    assert_eq!(x.width, w.columns);
    assert!(x.is_quantised || !w.format.is_quantised());
    let weights = Weights {
        start: w.group(group),
        tiles: w.group_tiles(group),
        blocks: w.blocks,
    };
    (weights, Inputs::new(x, rows.start, rows.len()))
}

/// From how many rows on tiles are faster than lanes on this machine, if they ever are. Measured
/// once, in a millisecond or two, on a group of a small model's shape. The machine has
/// `Isa::Amx`.
pub(super) fn tiles_win_from(activations: ActivationFormat) -> Option<usize> {
    static ROWS: [OnceLock<Option<usize>>; 2] = [const { OnceLock::new() }; 2];
    let rows = match activations {
        ActivationFormat::Int16 => &ROWS[0],
        ActivationFormat::Int8 => &ROWS[1],
        // Lanes multiply them one by one.
        ActivationFormat::Bf16 => return Some(1),
    };
    *rows.get_or_init(|| {
        const COLUMNS: usize = 576;
        const TILES: usize = GROUP_TILES;
        const REPEATS: usize = 20;
        const BLOCKS: usize = COLUMNS / BLOCK;
        // Zeroes take as long as anything.
        let weights = vec![0u8; Format::Nibbles.tile_bytes() * TILES * BLOCKS];
        let w = Weights {
            start: weights.as_ptr(),
            tiles: TILES,
            blocks: BLOCKS,
        };
        let rows_of = |in_lines: bool| {
            let mut x = CpuRows::default();
            x.reshape(ROWS_MAX, COLUMNS);
            x.reserve_quants(Form {
                activations,
                in_lines,
            });
            x.is_quantised = true;
            x
        };
        let (lines, quads) = (rows_of(true), rows_of(false));
        let mut out = GroupSums::new();
        let mut time = |tiles: bool, rows: usize| -> Duration {
            let tiles = if tiles { TileConfig::load() } else { None };
            let (format, isa) = (Format::Nibbles, Isa::Amx);
            let inputs = Inputs::new(if tiles.is_some() { &lines } else { &quads }, 0, rows);
            let begun = Instant::now();
            // SAFETY: weights and rows are of one width, `out` holds the largest result, and this is
            // only called where the machine has AMX.
            unsafe {
                match tiles {
                    Some(tiles) => amx::group_matmul(&tiles, format, w, inputs, out.as_mut_ptr()),
                    None => matmul::group_matmul(isa, format, w, inputs, out.sums()),
                }
            }
            begun.elapsed()
        };
        // In turn, so that a busy moment hits both.
        let mut win = |rows: usize| {
            let mut fastest = [Duration::MAX; 2];
            for _ in 0..REPEATS {
                for (tiles, fastest) in [false, true].into_iter().zip(&mut fastest) {
                    *fastest = time(tiles, rows).min(*fastest);
                }
            }
            fastest[1] < fastest[0]
        };
        let rows = [2, 4, 6, 8, 16, 32, ROWS_MAX]
            .into_iter()
            .find(|&rows| win(rows));
        tracing::debug!(
            ?rows,
            activations = activations.name(),
            "products of at least so many rows are faster by AMX tiles"
        );
        rows
    })
}
