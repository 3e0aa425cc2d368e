//! Weights in the order the kernels read them.
//!
//! Sixteen output rows make a **tile**, so that one vector lane belongs to one output. Up to four
//! tiles make a **group**, the unit of work of a thread. Within a group memory runs by column (a
//! block of 32 for quantised types, a single column for float types) and within that by tile: one
//! row of activations walks a group's memory from one end to the other. Rows past the last are
//! zero.
//!
//! | format | one tile's bytes for one block |
//! |---|---|
//! | `Nibbles` (Q4_0, Q4_1) | 4 x 64: byte `v*64 + row*4 + j` holds column `8v+j` low, `8v+4+j` high; 16 f16 scales; 16 f16 minima |
//! | `Bytes` (Q8_0) | 8 x 64: byte `v*64 + row*4 + j` holds column `4v+j`, plus 128; 16 f16 scales |
//! | `F16`, `Bf16`, `F32` | 16 values (a block is one column) |

use super::memory::{Arena, Piece};
use super::pool::Pool;
use crate::backend::{BackendError, WeightView};
use half::{bf16, f16};
use trireme_shared::model::DType;

/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Most tiles of a group.
pub(super) const GROUP_TILES: usize = 4;
/// Most rows of a group.
pub(super) const GROUP_ROWS: usize = TILE * GROUP_TILES;
/// Columns of a quantised block.
pub(super) const BLOCK: usize = 32;

pub(super) const NIBBLE_TILE_BYTES: usize = 256 + 32 + 32;
pub(super) const BYTE_TILE_BYTES: usize = 512 + 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Nibbles,
    Bytes,
    F16,
    Bf16,
    F32,
}

impl Format {
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::Q4_0 | DType::Q4_1 => Self::Nibbles,
            DType::Q8_0 => Self::Bytes,
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            DType::F32 => Self::F32,
        }
    }

    /// Takes activations in bytes.
    pub(super) fn is_quantised(self) -> bool {
        matches!(self, Self::Nibbles | Self::Bytes)
    }

    pub(super) fn block_columns(self) -> usize {
        if self.is_quantised() { BLOCK } else { 1 }
    }

    pub(super) fn tile_bytes(self) -> usize {
        match self {
            Self::Nibbles => NIBBLE_TILE_BYTES,
            Self::Bytes => BYTE_TILE_BYTES,
            Self::F16 | Self::Bf16 => 2 * TILE,
            Self::F32 => 4 * TILE,
        }
    }
}

/// A packed matrix.
pub struct Packed {
    piece: Piece,
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// Tiles of every group but perhaps the last.
    width: usize,
    /// Bytes from the piece's start to group 0, and from one group to the next.
    first: usize,
    stride: usize,
}

// SAFETY: a packed matrix is written while it is built and only read afterwards.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

/// Where a matrix will lie.
struct Layout {
    format: Format,
    blocks: usize,
    width: usize,
    groups: usize,
}

impl Layout {
    fn of(view: &WeightView<'_>) -> Result<Self, BackendError> {
        let format = Format::of(view.dtype);
        if !view.columns.is_multiple_of(format.block_columns()) {
            return Err(BackendError::Unsupported(format!(
                "a {:?} matrix was cut at column {}, which is not a multiple of {BLOCK}: \
                 choose a split with fewer ranks",
                view.dtype, view.columns
            )));
        }
        let tiles = view.rows.div_ceil(TILE);
        // Small matrices get narrow groups, so that a few threads share them evenly.
        let width = if tiles >= 96 { GROUP_TILES } else { 2 };
        Ok(Self {
            format,
            blocks: view.columns / format.block_columns(),
            width,
            groups: tiles.div_ceil(width),
        })
    }

    fn group_bytes(&self) -> usize {
        self.width * self.blocks * self.format.tile_bytes()
    }
}

fn take(arena: &mut Arena, bytes: usize) -> Result<Piece, BackendError> {
    arena.take(bytes).map_err(|source| BackendError::Memory {
        what: "weights",
        bytes,
        source,
    })
}

impl Packed {
    /// Packs one matrix.
    pub(super) fn new(
        view: &WeightView<'_>,
        arena: &mut Arena,
        pool: &mut Pool,
    ) -> Result<Self, BackendError> {
        let layout = Layout::of(view)?;
        let piece = take(arena, layout.groups * layout.group_bytes())?;
        let stride = layout.group_bytes();
        Ok(Self::fill(view, &layout, piece, 0, stride, pool))
    }

    /// Packs two matrices of equal shape, their groups taking turns where the formats agree.
    pub(super) fn pair(
        a: &WeightView<'_>,
        b: &WeightView<'_>,
        arena: &mut Arena,
        pool: &mut Pool,
    ) -> Result<(Self, Self), BackendError> {
        let (la, lb) = (Layout::of(a)?, Layout::of(b)?);
        if la.format != lb.format {
            return Ok((Self::new(a, arena, pool)?, Self::new(b, arena, pool)?));
        }
        let bytes = la.group_bytes();
        let piece = take(arena, 2 * la.groups * bytes)?;
        Ok((
            Self::fill(a, &la, piece.clone(), 0, 2 * bytes, pool),
            Self::fill(b, &lb, piece, bytes, 2 * bytes, pool),
        ))
    }

    fn fill(
        view: &WeightView<'_>,
        layout: &Layout,
        piece: Piece,
        first: usize,
        stride: usize,
        pool: &mut Pool,
    ) -> Self {
        let packed = Self {
            piece,
            format: layout.format,
            rows: view.rows,
            columns: view.columns,
            blocks: layout.blocks,
            width: layout.width,
            first,
            stride,
        };
        let block_bytes =
            packed.format.block_columns() / view.dtype.block_elements() * view.dtype.block_bytes();
        let tile_bytes = packed.format.tile_bytes();
        pool.run(packed.groups(), &|groups| {
            for group in groups {
                let tiles = packed.group_tiles(group);
                let bytes = tiles * packed.blocks * tile_bytes;
                // SAFETY: a group's bytes lie in the piece and belong to one task of this region.
                let out = unsafe { std::slice::from_raw_parts_mut(packed.group(group), bytes) };
                for tile in 0..tiles {
                    let first_row = (group * packed.width + tile) * TILE;
                    for lane in 0..TILE.min(packed.rows - first_row) {
                        let row = view.row(first_row + lane);
                        for (block, from) in row.chunks_exact(block_bytes).enumerate() {
                            let at = (block * tiles + tile) * tile_bytes;
                            pack_block(view.dtype, from, lane, &mut out[at..at + tile_bytes]);
                        }
                    }
                }
            }
        });
        packed
    }

    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(self.width * TILE)
    }

    pub(super) fn group_tiles(&self, group: usize) -> usize {
        (self.rows.div_ceil(TILE) - group * self.width).min(self.width)
    }

    /// Output rows of a group.
    pub(super) fn group_rows(&self, group: usize) -> std::ops::Range<usize> {
        let first = group * self.width * TILE;
        first..(first + self.width * TILE).min(self.rows)
    }

    /// First byte of a group; `group_tiles * blocks * tile_bytes` follow.
    pub(super) fn group(&self, group: usize) -> *mut u8 {
        debug_assert!(group < self.groups());
        // SAFETY: `fill` was given a piece that holds every group at this stride.
        unsafe { self.piece.start().add(self.first + group * self.stride) }
    }

    /// Writes row `row`, which is f32, into `out`, `columns` long.
    pub(super) fn unpack_row(&self, row: usize, out: &mut [f64]) {
        assert!(row < self.rows && out.len() == self.columns);
        let (group, within) = (row / (self.width * TILE), row % (self.width * TILE));
        let (tile, lane) = (within / TILE, within % TILE);
        let (tiles, tile_bytes) = (self.group_tiles(group), self.format.tile_bytes());
        let bytes = tiles * self.blocks * tile_bytes;
        // SAFETY: a group's bytes lie in the piece and are not written any more.
        let from = unsafe { std::slice::from_raw_parts(self.group(group), bytes) };
        for (block, out) in out
            .chunks_exact_mut(self.format.block_columns())
            .enumerate()
        {
            let tile_at = (block * tiles + tile) * tile_bytes;
            unpack_block(self.format, &from[tile_at..tile_at + tile_bytes], lane, out);
        }
    }
}

fn put_half(out: &mut [u8], at: usize, value: f16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn get_half(from: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([from[at], from[at + 1]])
}

/// Puts one block of one row, as the file has it, into a zeroed lane of a tile.
fn pack_block(dtype: DType, from: &[u8], lane: usize, tile: &mut [u8]) {
    match dtype {
        DType::Q4_0 | DType::Q4_1 => {
            let scale = get_half(from, 0);
            let (least, quants) = if dtype == DType::Q4_0 {
                // d (q - 8) = d q - 8 d, and times 8 is exact.
                (f16::from_f32(scale.to_f32() * -8.0), &from[2..18])
            } else {
                (get_half(from, 2), &from[4..20])
            };
            put_half(tile, 256 + 2 * lane, scale);
            put_half(tile, 288 + 2 * lane, least);
            for v in 0..4 {
                for j in 0..4 {
                    // Columns 0..16 of the file's block are low nibbles, 16..32 high ones.
                    let pick = |column: usize| (quants[column % 16] >> (column / 16 * 4)) & 15;
                    tile[v * 64 + lane * 4 + j] = pick(8 * v + j) | pick(8 * v + 4 + j) << 4;
                }
            }
        }
        DType::Q8_0 => {
            put_half(tile, 512 + 2 * lane, get_half(from, 0));
            for (column, &q) in from[2..34].iter().enumerate() {
                tile[column / 4 * 64 + lane * 4 + column % 4] = q ^ 0x80;
            }
        }
        DType::F16 | DType::BF16 => tile[2 * lane..2 * lane + 2].copy_from_slice(from),
        DType::F32 => tile[4 * lane..4 * lane + 4].copy_from_slice(from),
    }
}

/// The reverse: f32 values.
fn unpack_block(format: Format, tile: &[u8], lane: usize, out: &mut [f64]) {
    match format {
        Format::Nibbles => {
            let scale = get_half(tile, 256 + 2 * lane).to_f32();
            let least = get_half(tile, 288 + 2 * lane).to_f32();
            for (column, out) in out.iter_mut().enumerate() {
                let (v, high, j) = (column / 8, column / 4 % 2, column % 4);
                let q = (tile[v * 64 + lane * 4 + j] >> (4 * high)) & 15;
                *out = f64::from(scale * f32::from(q) + least);
            }
        }
        Format::Bytes => {
            let scale = get_half(tile, 512 + 2 * lane).to_f32();
            for (column, out) in out.iter_mut().enumerate() {
                let q = tile[column / 4 * 64 + lane * 4 + column % 4] ^ 0x80;
                *out = f64::from(scale * f32::from(q as i8));
            }
        }
        Format::F16 => out[0] = get_half(tile, 2 * lane).to_f64(),
        Format::Bf16 => out[0] = bf16::from_le_bytes([tile[2 * lane], tile[2 * lane + 1]]).to_f64(),
        Format::F32 => {
            let b = &tile[4 * lane..4 * lane + 4];
            out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into();
        }
    }
}
