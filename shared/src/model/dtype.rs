//! How the numbers of a tensor are stored in a file.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// A storage type. Quantised types hold `block_elements` consecutive elements of a row in
/// `block_bytes` bytes; layouts are ggml's (`ggml-common.h` of llama.cpp documents each).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite,
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
}

impl DType {
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
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
}
