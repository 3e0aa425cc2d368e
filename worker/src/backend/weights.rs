//! A rank's part of one tensor, as it lies in a file: what the loader hands to a backend to pack.

use trireme_shared::model::{DType, blocks};

/// `rows` rows of `columns` elements. Row `i` is at `bytes[i * stride..][..row_bytes()]`: rows of
/// a whole tensor follow each other, those of a column span have gaps.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    pub dtype: DType,
    /// What a matrix becomes as it is packed: `dtype`, or of floats a quantised type.
    pub packed: DType,
    pub rows: usize,
    /// A multiple of where both types may be cut (`DType::cut_elements`), as is `skip`.
    pub columns: usize,
    /// Columns of each row's first block that belong to another part: less than a block.
    pub skip: usize,
    /// From the first byte of row 0 to at least the last byte of the last row.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl<'a> WeightView<'a> {
    /// Bytes of the whole blocks that a row's columns lie in.
    pub fn row_bytes(&self) -> usize {
        let columns = self.skip + self.columns;
        columns.div_ceil(self.dtype.block_elements()) * self.dtype.block_bytes()
    }

    /// The whole blocks of row `row`.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.row_bytes()]
    }

    /// Row `row` as f32.
    pub fn row_f32(&self, row: usize) -> Vec<f32> {
        let mut values = blocks::decode(self.dtype, self.row(row));
        values.truncate(self.skip + self.columns);
        values.split_off(self.skip)
    }
}
