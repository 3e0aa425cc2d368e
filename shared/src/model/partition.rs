//! The arithmetic of splitting a model over ranks. Pure.
//!
//! Keeps true: the spans of one dimension follow each other, cover it exactly, and none is empty.
//! The planner calls it with the fleet's speeds; the loader reads by the shares it made.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wincode::{SchemaRead, SchemaWrite};

use super::ModelConfig;
use crate::ids::{Rank, Stage};
use crate::limits;

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
    ToSchema,
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
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, SchemaRead, SchemaWrite,
)]
pub struct RankShare {
    pub stage: Stage,
    pub rank: Rank,
    pub stages: u16,
    pub ranks: u16,
    pub layers: Span,
    pub kv_heads: Span,
    /// FFN columns; cut where the weights can be (`Manifest::column_unit`), of a mixture between
    /// experts.
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

/// Columns of the FFN that stay together wherever the model is split, where it has enough of them:
/// sums within a segment then come out the same on every split. A multiple of every 32-column block.
pub const FFN_SEGMENT: u32 = 128;

/// The unit of FFN splits, in columns: a segment where as many ranks as there are KV heads can have
/// one each, else where a block may be cut. Of a mixture, an expert. The same for every split of a
/// model.
fn ffn_unit(config: &ModelConfig, column_unit: u32) -> u32 {
    if let Some(expert) = config.expert_ffn() {
        return expert.max(1);
    }
    let block = column_unit.max(1);
    if FFN_SEGMENT.is_multiple_of(block) && config.ffn / FFN_SEGMENT >= config.kv_heads {
        FFN_SEGMENT
    } else {
        block
    }
}

/// Why a model cannot be split as asked; the text shows what can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SplitError(pub String);

/// What one layer's two phases and the output matrix cost, in any one unit (bytes, or weights).
/// Only their ratios matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    pub attention: u64,
    pub ffn: u64,
    pub output: u64,
}

impl Costs {
    /// Counts weights: right where every tensor is stored alike.
    pub fn of_weights(config: &ModelConfig) -> Self {
        let hidden = u64::from(config.hidden);
        let heads = 2 * (u64::from(config.heads) + u64::from(config.kv_heads));
        Self {
            attention: hidden * heads * u64::from(config.head_dim),
            ffn: 3 * hidden * u64::from(config.ffn),
            output: hidden * u64::from(config.vocab),
        }
    }
}

/// Splits `total` units into `weights.len()` contiguous spans in proportion to the weights, each a
/// multiple of `unit` (but for the last) and none empty. Largest remainder; ties to the lower index.
pub fn split(total: u32, unit: u32, weights: &[u64]) -> Result<Vec<Span>, SplitError> {
    if unit == 0 || weights.is_empty() {
        return Err(SplitError("nothing to split by".into()));
    }
    let blocks = total.div_ceil(unit);
    if weights.len() > blocks as usize {
        return Err(SplitError(format!(
            "{total} in units of {unit} cannot be split over {} ranks; 1 to {blocks} are possible",
            weights.len()
        )));
    }
    let counts = apportion(blocks, weights);
    let mut start = 0;
    let spans = counts.iter().scan(0u32, |block, count| {
        *block += count;
        let end = block.saturating_mul(unit).min(total);
        let span = Span::new(start, end);
        start = end;
        Some(span)
    });
    Ok(spans.collect())
}

/// Whole numbers, each at least 1, that sum to `blocks` (at least `weights.len()`), nearest to the
/// weights' proportions: Hamilton's method, then one each for those left with nothing, taken from
/// whoever is furthest above its due.
fn apportion(blocks: u32, weights: &[u64]) -> Vec<u32> {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let (weights, sum): (Vec<u128>, u128) = if sum == 0 {
        (vec![1; weights.len()], weights.len() as u128)
    } else {
        (weights.iter().map(|w| u128::from(*w)).collect(), sum)
    };
    let due: Vec<u128> = weights.iter().map(|w| w * u128::from(blocks)).collect();
    let mut counts: Vec<u32> = due.iter().map(|d| (d / sum) as u32).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(due[i] % sum), i));
    let left = blocks - counts.iter().sum::<u32>();
    for &i in order.iter().take(left as usize) {
        counts[i] += 1;
    }
    while let Some(empty) = counts.iter().position(|c| *c == 0) {
        let above = |i: usize| (u128::from(counts[i]) * sum) as i128 - due[i] as i128;
        let giver = (0..counts.len())
            .filter(|&i| counts[i] > 1)
            .max_by_key(|&i| (above(i), std::cmp::Reverse(i)));
        let Some(giver) = giver else { break };
        counts[giver] -= 1;
        counts[empty] += 1;
    }
    counts
}

/// Shares of every rank, stage-major. `weights[stage][rank]` is the relative speed of each.
/// `column_unit` is where the matrices that are split by columns may be cut (`Manifest::column_unit`).
///
/// Balances by counts of weights; `Manifest::shares` does it by stored bytes and is the better one
/// where a manifest is at hand.
pub fn shares(
    config: &ModelConfig,
    weights: &[Vec<u64>],
    column_unit: u32,
) -> Result<Vec<RankShare>, SplitError> {
    shares_by_cost(config, weights, column_unit, Costs::of_weights(config))
}

/// [`shares`] with given costs.
///
/// Within a stage, KV heads, FFN columns and vocabulary rows are each split by weight on their own:
/// each phase ends in a barrier, so a rank that is slow in one cannot catch up in the other. Layers
/// go to stages so that the slowest stage is as fast as it can be, the last one also computing the
/// logits. (The embedding lookup of the first stage reads one row a token: nothing.)
pub fn shares_by_cost(
    config: &ModelConfig,
    weights: &[Vec<u64>],
    column_unit: u32,
    costs: Costs,
) -> Result<Vec<RankShare>, SplitError> {
    let ranks = weights.first().map_or(0, Vec::len);
    if ranks == 0 || weights.iter().any(|stage| stage.len() != ranks) {
        return Err(SplitError(
            "every stage needs the same number of ranks, at least one".into(),
        ));
    }
    check_possible(config, column_unit, ranks, weights.len())?;

    let mut parts = Vec::with_capacity(weights.len());
    let mut layer_times = Vec::with_capacity(weights.len());
    let mut fixed_times = vec![0.0; weights.len()];
    for (stage, speeds) in weights.iter().enumerate() {
        let kv_heads = split(config.kv_heads, 1, speeds)?;
        let ffn = split(config.ffn, ffn_unit(config, column_unit), speeds)?;
        let vocab = split(config.vocab, VOCAB_UNIT, speeds)?;
        layer_times.push(
            phase_time(costs.attention, &kv_heads, speeds) + phase_time(costs.ffn, &ffn, speeds),
        );
        if stage + 1 == weights.len() {
            fixed_times[stage] = phase_time(costs.output, &vocab, speeds);
        }
        parts.push((kv_heads, ffn, vocab));
    }
    let layers = layers_of_stages(config.layers, &layer_times, &fixed_times);

    let mut shares = Vec::with_capacity(ranks * weights.len());
    let mut first = 0;
    for (stage, (kv_heads, ffn, vocab)) in parts.into_iter().enumerate() {
        let span = Span::new(first, first + layers[stage]);
        first = span.end;
        for rank in 0..ranks {
            shares.push(RankShare {
                stage: Stage(stage as u16),
                rank: Rank(rank as u16),
                stages: weights.len() as u16,
                ranks: ranks as u16,
                layers: span,
                kv_heads: kv_heads[rank],
                ffn: ffn[rank],
                vocab: vocab[rank],
            });
        }
    }
    Ok(shares)
}

/// Vocabulary rows are dealt in sixteens, the rows the CPU kernels interleave.
pub const VOCAB_UNIT: u32 = 16;

/// The largest tensor- and pipeline-parallel degrees this model can be split into; every smaller
/// one is possible too.
pub fn largest_split(config: &ModelConfig, column_unit: u32) -> (u16, u16) {
    let heads_divide = (config.group() * config.head_dim).is_multiple_of(column_unit.max(1));
    let ranks = if heads_divide {
        config
            .kv_heads
            .min(config.ffn.div_ceil(ffn_unit(config, column_unit)))
            .min(config.vocab.div_ceil(VOCAB_UNIT))
            .min(limits::TENSOR_PARALLEL_MAX as u32)
    } else {
        1
    };
    let stages = config.layers.min(limits::PIPELINE_PARALLEL_MAX as u32);
    (ranks.max(1) as u16, stages as u16)
}

fn check_possible(
    config: &ModelConfig,
    column_unit: u32,
    ranks: usize,
    stages: usize,
) -> Result<(), SplitError> {
    let (ranks_max, stages_max) = largest_split(config, column_unit);
    if ranks <= usize::from(ranks_max) && stages <= usize::from(stages_max) {
        return Ok(());
    }
    Err(SplitError(format!(
        "this model cannot be split tp {ranks} x pp {stages}: tp can be 1 to {ranks_max} ({} KV \
         heads), pp 1 to {stages_max} ({} layers)",
        config.kv_heads, config.layers
    )))
}

/// How long a phase takes whose `cost` is spread as `spans`: until its slowest rank is done.
fn phase_time(cost: u64, spans: &[Span], speeds: &[u64]) -> f64 {
    let total: u32 = spans.iter().map(|s| s.len()).sum();
    let slowest = spans
        .iter()
        .zip(speeds)
        .map(|(span, speed)| f64::from(span.len()) / (*speed).max(1) as f64)
        .fold(0.0, f64::max);
    cost as f64 * slowest / f64::from(total.max(1))
}

/// Gives each layer to the stage that then is done first. That minimises the slowest stage, since
/// every layer of a stage costs the same. Each stage gets at least one; ties to the lower index.
fn layers_of_stages(layers: u32, layer_times: &[f64], fixed_times: &[f64]) -> Vec<u32> {
    let mut counts = vec![1u32; layer_times.len()];
    for _ in counts.len() as u32..layers {
        let time = |i: usize| fixed_times[i] + layer_times[i] * f64::from(counts[i] + 1);
        let next = (0..counts.len()).min_by(|&a, &b| time(a).total_cmp(&time(b)));
        counts[next.unwrap_or(0)] += 1;
    }
    counts
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
