//! The arithmetic of splitting a model over ranks. Pure.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::ids::{Rank, Stage};

/// A half-open range `start..end` of units named by the field that holds it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    SchemaRead,
    SchemaWrite,
)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub const fn new(start: u32, end: u32) -> Self {
        Self { start, end }
    }
    pub const fn len(self) -> u32 {
        self.end - self.start
    }
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What one rank holds of the model.
///
/// Query heads are `kv_heads` times the group size, so they are not stored. The embedding (first
/// stage) and output (last stage) matrices are split by vocabulary rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct RankShare {
    pub stage: Stage,
    pub rank: Rank,
    pub stages: u16,
    pub ranks: u16,
    pub layers: Span,
    pub kv_heads: Span,
    /// FFN columns; a multiple of the weights' quantisation block except at the end.
    pub ffn: Span,
    pub vocab: Span,
}

impl RankShare {
    pub fn is_first_stage(&self) -> bool {
        self.stage.0 == 0
    }
    pub fn is_last_stage(&self) -> bool {
        self.stage.0 + 1 == self.stages
    }
}

/// Why a model cannot be split as asked; the text shows what can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SplitError(pub String);

/// Splits `total` units into `weights.len()` contiguous spans in proportion to the weights, each a
/// multiple of `unit` (but for the last) and none empty. Largest remainder; ties to the lower index.
pub fn split(_total: u32, _unit: u32, _weights: &[u64]) -> Result<Vec<Span>, SplitError> {
    Err(SplitError("not built yet".into()))
}

/// Shares of every rank, stage-major. `weights[stage][rank]` is the relative speed of each.
/// `ffn_unit` is the quantisation block of the down projection, in columns.
pub fn shares(
    _config: &super::ModelConfig,
    _weights: &[Vec<u64>],
    _ffn_unit: u32,
) -> Result<Vec<RankShare>, SplitError> {
    Err(SplitError("not built yet".into()))
}
