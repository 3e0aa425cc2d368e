//! Weights in the order the kernels read them.
//!
//! Sixteen output rows make a **tile**, so that one vector lane belongs to one output. Up to four
//! tiles make a **group**, the unit of work of a thread. Within a group memory runs by column (a
//! block of 32 for quantised types, a single column for float types) and within that by tile: one
//! row of activations walks a group's memory from one end to the other. Rows past the last are
//! zero.
//!
//! Floats that a deployment wants in blocks become them here, 32 columns at a time: nobody holds the matrix twice.
//!
//! A tile's block of a quantised format is as `quants` says; of a float format it is one column's 16
//! values. Scales and minima are f16: those of the super-block types, which are products of two
//! numbers in the file, are rounded to that (by 2^-11 of themselves at most, or by 2^-25 where that
//! is more; a step of the quants is 2^-6 and more).

use super::memory::{self, Arena};
use super::pool::Pool;
use super::quants::{
    Bytes, Fives, Fours, HALVES_BYTES, Least, Levels, Nibbles, Product, Quant, Shape, Sixes,
    Threes, Twos,
};
use crate::backend::{BackendError, WeightView};
use half::{bf16, f16};
use trireme_shared::model::DType;
use trireme_shared::model::blocks::{self, LEVELS, PIECE, Piece};

/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Most tiles of a group.
pub(super) const GROUP_TILES: usize = 4;
/// Most rows of a group.
pub(super) const GROUP_ROWS: usize = TILE * GROUP_TILES;
/// Columns of a quantised block.
pub(super) const BLOCK: usize = 32;

const _: () = assert!(BLOCK == PIECE);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Twos,
    Threes,
    Fours,
    Nibbles,
    Levels,
    Fives,
    Sixes,
    Bytes,
    F16,
    Bf16,
    F32,
}

impl Format {
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::Q2_K => Self::Twos,
            DType::Q3_K => Self::Threes,
            DType::Q4_0 => Self::Fours,
            DType::Q4_1 | DType::Q4_K => Self::Nibbles,
            DType::IQ4_NL | DType::IQ4_XS => Self::Levels,
            DType::Q5_0 | DType::Q5_1 | DType::Q5_K => Self::Fives,
            DType::Q6_K => Self::Sixes,
            DType::Q8_0 => Self::Bytes,
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            DType::F32 => Self::F32,
        }
    }

    /// Of a quantised format.
    const fn shape(self) -> Option<Shape> {
        Some(match self {
            Self::Twos => Twos::SHAPE,
            Self::Threes => Threes::SHAPE,
            Self::Fours => Fours::SHAPE,
            Self::Nibbles => Nibbles::SHAPE,
            Self::Levels => Levels::SHAPE,
            Self::Fives => Fives::SHAPE,
            Self::Sixes => Sixes::SHAPE,
            Self::Bytes => Bytes::SHAPE,
            Self::F16 | Self::Bf16 | Self::F32 => return None,
        })
    }

    /// Takes activations in bytes.
    pub(super) fn is_quantised(self) -> bool {
        self.shape().is_some()
    }

    pub(super) fn block_columns(self) -> usize {
        if self.is_quantised() { BLOCK } else { 1 }
    }

    pub(super) const fn tile_bytes(self) -> usize {
        match (self, self.shape()) {
            (_, Some(shape)) => shape.tile_bytes(),
            (Self::F32, None) => 4 * TILE,
            (_, None) => 2 * TILE,
        }
    }
}

/// A packed matrix.
pub struct Packed {
    piece: memory::Piece,
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
        let format = Format::of(view.packed);
        let uneven = |columns: &&usize| !columns.is_multiple_of(format.block_columns());
        if let Some(columns) = [view.skip, view.columns].iter().find(uneven) {
            return Err(BackendError::Unsupported(format!(
                "a {:?} matrix was cut at column {columns}, which is not a multiple of {BLOCK}: \
                 choose a split with fewer ranks",
                view.packed
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

fn take(arena: &mut Arena, bytes: usize) -> Result<memory::Piece, BackendError> {
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
        piece: memory::Piece,
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
        let (shape, tile_bytes) = (packed.format.shape(), packed.format.tile_bytes());
        let block_columns = packed.format.block_columns();
        pool.run(packed.groups(), &|groups| {
            for group in groups {
                let tiles = packed.group_tiles(group);
                let bytes = tiles * packed.blocks * tile_bytes;
                // SAFETY: a group's bytes lie in the piece and belong to one task of this region.
                let out = unsafe { std::slice::from_raw_parts_mut(packed.group(group), bytes) };
                for tile in 0..tiles {
                    let first_row = (group * packed.width + tile) * TILE;
                    for lane in 0..TILE.min(packed.rows - first_row) {
                        let row = Row {
                            dtype: view.dtype,
                            packed: view.packed,
                            shape: shape.as_ref(),
                            bytes: view.row(first_row + lane),
                        };
                        for block in 0..packed.blocks {
                            let at = (block * tiles + tile) * tile_bytes;
                            let column = view.skip + block * block_columns;
                            row.pack_block(column, lane, &mut out[at..at + tile_bytes]);
                        }
                    }
                }
            }
        });
        packed
    }

    /// Of all groups.
    pub(super) fn bytes(&self) -> usize {
        self.rows.div_ceil(TILE) * self.blocks * self.format.tile_bytes()
    }

    /// Blocks of a row's segment of `columns` columns.
    pub(super) fn segment_blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.format.block_columns()).max(1)
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

/// A file's row, to be packed.
struct Row<'a> {
    dtype: DType,
    packed: DType,
    /// Of a quantised format.
    shape: Option<&'a Shape>,
    bytes: &'a [u8],
}

impl Row<'_> {
    /// Puts the block that begins at `column` into a zeroed lane of a tile.
    fn pack_block(&self, column: usize, lane: usize, tile: &mut [u8]) {
        let (elements, bytes) = (self.dtype.block_elements(), self.dtype.block_bytes());
        let from = &self.bytes[column / elements * bytes..];
        let Some(shape) = self.shape else {
            return tile[bytes * lane..][..bytes].copy_from_slice(&from[..bytes]);
        };
        let piece = if self.dtype == self.packed {
            Piece::of(self.dtype, &from[..bytes], column % elements / PIECE)
        } else {
            Piece::nearest(self.packed, &blocks::floats(self.dtype, from))
        };
        pack_piece(&piece, shape, lane, tile);
    }
}

fn pack_piece(piece: &Piece, shape: &Shape, lane: usize, tile: &mut [u8]) {
    let (vectors, _) = piece.quants.as_chunks::<4>();
    for (vector, quants) in vectors.iter().enumerate() {
        shape.put(tile, lane, vector, *quants);
    }
    for part in 0..shape.parts {
        let at = part * HALVES_BYTES + 2 * lane;
        let scale = f16::from_f32(piece.scales[part]);
        put_half(tile, shape.scales_at() + at, scale);
        if shape.least == Least::Stored {
            // scale (q - zero) = scale q - zero scale, and the file's zeroes are powers of two.
            let zero = f32::from(piece.zero) * scale.to_f32();
            let least = f16::from_f32(piece.leasts[part] - zero);
            put_half(tile, shape.minima_at() + at, least);
        }
    }
}

/// The reverse: f32 values.
fn unpack_block(format: Format, tile: &[u8], lane: usize, out: &mut [f64]) {
    let Some(shape) = format.shape() else {
        out[0] = match format {
            Format::F16 => get_half(tile, 2 * lane).to_f64(),
            Format::Bf16 => bf16::from_le_bytes([tile[2 * lane], tile[2 * lane + 1]]).to_f64(),
            _ => {
                let b = &tile[4 * lane..4 * lane + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()
            }
        };
        return;
    };
    for (column, out) in out.iter_mut().enumerate() {
        let at = column / (BLOCK / shape.parts) * HALVES_BYTES + 2 * lane;
        let scale = get_half(tile, shape.scales_at() + at).to_f32();
        let quant = shape.get(tile, lane, column);
        let value = match shape.product {
            Product::Four | Product::Seven => scale * f32::from(quant),
            Product::Eight => scale * f32::from((quant ^ 0x80) as i8),
            Product::Level => scale * f32::from(LEVELS[usize::from(quant)]),
        };
        let least = match shape.least {
            Least::Stored => get_half(tile, shape.minima_at() + at).to_f32(),
            Least::Scales(count) => scale * count,
            Least::Zero => 0.0,
        };
        *out = f64::from(value + least);
    }
}
