//! A rank's part of one tensor, as it lies in a file: what the loader hands to a backend to pack.

use half::{bf16, f16};
use trireme_shared::model::DType;

/// `rows` rows of `columns` elements. Row `i` is at `bytes[i * stride..][..row_bytes()]`: rows of
/// a whole tensor follow each other, those of a column span have gaps.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    pub dtype: DType,
    pub rows: usize,
    /// A multiple of the type's block.
    pub columns: usize,
    /// From the first byte of row 0 to at least the last byte of the last row.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl<'a> WeightView<'a> {
    pub fn row_bytes(&self) -> usize {
        self.columns / self.dtype.block_elements() * self.dtype.block_bytes()
    }

    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.row_bytes()]
    }

    /// Row `row` as f32: the meaning of each format, in the plainest words.
    pub fn row_f32(&self, row: usize) -> Vec<f32> {
        let half_at = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let bytes = self.row(row);
        let blocks = bytes.chunks_exact(self.dtype.block_bytes());
        match self.dtype {
            DType::F32 => blocks
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            DType::F16 => blocks.map(|b| half_at(b, 0)).collect(),
            DType::BF16 => blocks
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            DType::Q8_0 => blocks
                .flat_map(|b| {
                    let scale = half_at(b, 0);
                    b[2..34].iter().map(move |&q| scale * f32::from(q as i8))
                })
                .collect(),
            DType::Q4_0 => blocks
                .flat_map(|b| {
                    let scale = half_at(b, 0);
                    let low = b[2..18].iter().map(|q| q & 15);
                    let high = b[2..18].iter().map(|q| q >> 4);
                    low.chain(high).map(move |q| scale * (f32::from(q) - 8.0))
                })
                .collect(),
            DType::Q4_1 => blocks
                .flat_map(|b| {
                    let (scale, least) = (half_at(b, 0), half_at(b, 2));
                    let low = b[4..20].iter().map(|q| q & 15);
                    let high = b[4..20].iter().map(|q| q >> 4);
                    low.chain(high).map(move |q| scale * f32::from(q) + least)
                })
                .collect(),
        }
    }
}
