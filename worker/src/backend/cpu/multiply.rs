//! Which kernel multiplies: tiles where there are enough rows for them to win, lanes elsewhere.
//! Both get the same sums to the last bit, so the choice is only one of speed.

use super::amx::{self, TileConfig};
use super::matmul::{self, GroupSums, Inputs, ROWS_MAX, Weights};
use super::pack::{BLOCK, Format, GROUP_TILES, Packed};
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
        }
    }
}

/// One thread's kernels.
pub(super) struct Kernels {
    isa: Isa,
    tiles: Option<TileConfig>,
}

impl Kernels {
    /// `x[rows] * group^T` into `out`, at most [`ROWS_MAX`] rows.
    pub(super) fn multiply(
        &self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        out: &mut GroupSums<f32>,
    ) {
        let (weights, inputs) = operands(w, group, x, rows);
        // SAFETY: `operands` checked rows and shapes; the group's bytes are packed; `out` holds the
        // largest result; whoever made the `Multiplier` checked the instruction set.
        unsafe { self.group(w.format, weights, inputs, out.as_mut_ptr()) }
    }

    /// The same, in f64 over segments of so many blocks.
    pub(super) fn multiply_wide(
        &self,
        w: &Packed,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        segment: usize,
        out: &mut GroupSums<f64>,
    ) {
        let (weights, inputs) = operands(w, group, x, rows);
        assert!(segment > 0);
        let out = out.as_mut_ptr();
        // SAFETY: as in `multiply`; segments stay within the group's blocks.
        unsafe {
            match &self.tiles {
                Some(tiles) if w.format.is_quantised() => {
                    amx::group_matmul_wide(tiles, w.format, weights, inputs, segment, out);
                }
                _ => matmul::group_matmul_wide(self.isa, w.format, weights, inputs, segment, out),
            }
        }
    }

    /// # Safety
    /// As `matmul::group_matmul`'s.
    unsafe fn group(&self, format: Format, w: Weights, x: Inputs, out: *mut f32) {
        // SAFETY: by this function's contract. Strips are whole: `CpuRows` has rows past the last.
        unsafe {
            match &self.tiles {
                Some(tiles) if format.is_quantised() => {
                    amx::group_matmul(tiles, format, w, x, out);
                }
                _ => matmul::group_matmul(self.isa, format, w, x, out),
            }
        }
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
            let kernels = Kernels {
                isa: Isa::Amx,
                tiles: if tiles { TileConfig::load() } else { None },
            };
            let inputs = Inputs::new(if tiles { &lines } else { &quads }, 0, rows);
            let begun = Instant::now();
            // SAFETY: weights and rows are of one width, `out` holds the largest result, and this is
            // only called where the machine has AMX.
            unsafe { kernels.group(Format::Nibbles, w, inputs, out.as_mut_ptr()) };
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
