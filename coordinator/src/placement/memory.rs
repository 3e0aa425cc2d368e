//! Whether ranks fit their workers' memory, and how many KV pages all of them can hold.

use super::PlanError;
use super::choose::Seat;
use trireme_shared::limits;
use trireme_shared::model::{KvFormat, Manifest, ModelConfig, RankShare};
use trireme_shared::plan::RankPlacement;

/// KV pages of every rank of a replica, and the longest sequence they allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    pub pages: u32,
    /// Tokens.
    pub context: u32,
}

/// Bytes of one KV page on one rank: keys and values of its layers and heads.
pub(super) fn page_bytes(config: &ModelConfig, kv: KvFormat, share: &RankShare) -> u64 {
    kv.page_bytes(config.head_dim, share.layers.len(), share.kv_heads.len())
}

/// Enough for `KV_CONTEXTS_TARGET` full contexts, at most a quarter of the memory of the rank that
/// has least to spare, and the context cut to what that holds.
pub(super) fn kv_pages(
    manifest: &Manifest,
    kv: KvFormat,
    ranks: &[RankPlacement],
    seats: &[Seat<'_>],
) -> Result<Pages, PlanError> {
    let config = &manifest.config;
    let full = u64::from(config.context.max(1)).div_ceil(limits::PAGE_TOKENS as u64);
    let wanted = full.saturating_mul(limits::KV_CONTEXTS_TARGET);
    let least = limits::KV_PAGES_MIN.min(full);
    let mut pages = wanted;
    for (rank, seat) in ranks.iter().zip(seats) {
        let page = page_bytes(config, kv, &rank.share).max(1);
        let fixed =
            weights_in_memory(manifest, &rank.share).saturating_add(limits::RANK_WORKING_BYTES);
        let left = seat.memory_bytes.saturating_sub(fixed);
        let quarter = seat.memory_bytes / limits::KV_MEMORY_DIVISOR;
        let fit = left.min(quarter) / page;
        if fit < least {
            let least = least.saturating_mul(page);
            let for_weights = fixed.saturating_add(least);
            let for_quarter = least.saturating_mul(limits::KV_MEMORY_DIVISOR);
            return Err(PlanError::Memory {
                worker: seat.worker,
                needed_bytes: for_weights.max(for_quarter),
                offered_bytes: seat.memory_bytes,
            });
        }
        pages = pages.min(fit);
    }
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    let held = pages.saturating_mul(limits::PAGE_TOKENS as u32);
    Ok(Pages {
        pages,
        context: held.min(config.context.max(1)),
    })
}

/// Packed weights keep wider scales than the file does, by how much depends on how they are stored.
fn weights_in_memory(manifest: &Manifest, share: &RankShare) -> u64 {
    let grown = manifest
        .share_parts(share)
        .map(|(dtype, bytes)| bytes.saturating_mul(8 + dtype.growth_eighths()));
    grown.fold(0, u64::saturating_add) / 8
}

/// Bytes in words: `1.5 GB`, `640 MB`.
pub(super) fn words(bytes: u64) -> String {
    const MB: u64 = 1_000_000;
    const GB: u64 = 1_000 * MB;
    if bytes >= GB {
        format!("{}.{} GB", bytes / GB, bytes % GB / (GB / 10))
    } else {
        format!("{} MB", bytes.div_ceil(MB))
    }
}
