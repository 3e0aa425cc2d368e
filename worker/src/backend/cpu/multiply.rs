//! Which kernel multiplies: tiles where there are enough rows for them to win, lanes elsewhere.
//! Both get the same sums to the last bit, so the choice is only one of speed.

use super::amx::{self, TileConfig};
use super::matmul::{self, GroupSums, Inputs, ROWS_MAX, Sums, Weights};
use super::pack::{BLOCK, Format, GROUP_ROWS, GROUP_TILES, Packed, TILE};
use super::rows::{CpuRows, Form};
use crate::backend::Isa;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use trireme_shared::model::ActivationFormat;

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

impl Kernels {
    /// `x[rows] * group^T` into `out`, at most [`ROWS_MAX`] rows; all of the group's outputs.
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
        let (weights, inputs) = operands(w, group, x, rows);
        let columns = w.group_rows(group).len();
        let is_direct = self.is_direct(columns, out.pitch);
        // SAFETY: `operands` checked rows and shapes; the group's bytes are packed; there is room for the
        // sums; whoever made the `Multiplier` checked the instruction set.
        unsafe {
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
        let (weights, inputs) = operands(w, group, x, rows);
        assert!(segment > 0);
        let columns = w.group_rows(group).len();
        let is_direct = self.is_direct(columns, out.pitch);
        // SAFETY: as in `multiply`; segments stay within the group's blocks.
        unsafe {
            let to = if is_direct { out } else { self.wide.sums() };
            match &self.tiles {
                Some(tiles) if w.format.is_quantised() => {
                    amx::group_matmul_wide(tiles, w.format, weights, inputs, segment, to.at);
                }
                _ => matmul::group_matmul_wide(self.isa, w.format, weights, inputs, segment, to),
            }
            if !is_direct {
                copy_rows(to, inputs.rows, columns, out);
            }
        }
    }

    /// Whether sums of so many columns can be written where they belong: tiles add up in memory and take
    /// nothing but a [`GroupSums`] (or what is laid out as one: a matrix of one group), and the last tile
    /// of a group may be wider than the group.
    fn is_direct(&self, columns: usize, pitch: usize) -> bool {
        pitch == GROUP_ROWS || (self.tiles.is_none() && columns.is_multiple_of(TILE))
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
