//! How the numbers of a tensor are stored in a file.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// A storage type. Quantised types hold `block_elements` consecutive elements of a row in
/// `block_bytes` bytes; layouts are ggml's (`ggml-common.h` of llama.cpp documents each).
///
/// In the types whose names end in `_K` and in `IQ4_XS` a block is 256 elements (a super-block) that
/// share one or two f16 scales, with small whole numbers that scale 16 or 32 elements further.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
)]
#[allow(
    non_camel_case_types,
    reason = "the names are ggml's, as people know them"
)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// f16 scale, 16 bytes of nibbles (low nibbles first half); value = d * (q - 8).
    Q4_0,
    /// f16 scale, f16 minimum, 16 bytes of nibbles; value = d * q + m.
    Q4_1,
    /// f16 scale, 32 signed bytes; value = d * q.
    Q8_0,
    /// f16 scale, 32 fifth bits, 16 bytes of nibbles as above; value = d * (q - 16).
    Q5_0,
    /// f16 scale, f16 minimum, 32 fifth bits, 16 bytes of nibbles; value = d * q + m.
    Q5_1,
    /// 2 bits; of each 16 a scale and a minimum of 4 bits.
    Q2_K,
    /// 3 bits; of each 16 a signed scale of 6 bits.
    Q3_K,
    /// 4 bits; of each 32 a scale and a minimum of 6 bits.
    Q4_K,
    /// 5 bits; of each 32 a scale and a minimum of 6 bits.
    Q5_K,
    /// 6 bits; of each 16 a signed scale of 8 bits.
    Q6_K,
    /// f16 scale, 16 bytes of nibbles that name one of sixteen levels ([`super::blocks::LEVELS`]).
    IQ4_NL,
    /// Nibbles as in `IQ4_NL`; of each 32 a signed scale of 6 bits.
    IQ4_XS,
}

impl DType {
    /// Every type, in the order of ggml's numbers.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::BF16,
    ];

    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// Values as they are, each on its own.
    pub const fn is_float(self) -> bool {
        self.block_elements() == 1
    }

    /// Where a row may be cut: at multiples of so many columns. Super-blocks may be cut too; who
    /// holds a part of one reads the whole.
    pub const fn cut_elements(self) -> usize {
        match self.block_elements() {
            1 => 1,
            _ => super::blocks::PIECE,
        }
    }

    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_NL => 18,
            Self::IQ4_XS => 136,
        }
    }

    /// Eighths of its bytes in the file by which a tensor may be larger in a worker's memory, where
    /// scales are wider. (A test of the CPU backend's packing holds it to this.)
    pub const fn growth_eighths(self) -> u64 {
        match self {
            Self::Q2_K => 5,
            Self::Q3_K => 2,
            _ => 1,
        }
    }

    /// Bytes of `elements` consecutive elements; `None` where they do not fill whole blocks or the
    /// product overflows.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// What `columns` columns of `rows` rows weigh: their part of whole blocks, rounded up in each
    /// row. `None` where that overflows.
    pub fn share_bytes(self, rows: u64, columns: u64) -> Option<u64> {
        let row = columns.checked_mul(self.block_bytes() as u64)?;
        row.div_ceil(self.block_elements() as u64).checked_mul(rows)
    }
}
