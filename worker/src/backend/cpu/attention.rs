//! Paged KV memory and attention over it.
//!
//! Of each layer, page and head, keys lie transposed (`head_dim x 16 tokens`), so that one vector
//! holds the scores of a page's sixteen tokens, and values as `16 tokens x head_dim` (padded to
//! sixteen). Softmax is online (Milakov and Gimelshein 2018, "Online normalizer calculation for
//! softmax"): a page is read once, for up to eight queries.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::lanes::{LANES, Lanes, kernel};
use super::memory::Mapping;
use super::pointwise::capped;
use crate::backend::{BackendError, KvShape, Step};
use std::mem::MaybeUninit;
use trireme_shared::limits::{HEAD_DIM_MAX, PAGE_TOKENS};
use trireme_shared::model::{Rope, RopeStyle};

const _: () = assert!(PAGE_TOKENS == LANES);

/// Queries of one tile.
pub(super) const TILE_QUERIES: usize = 8;

/// The score of a token a query may not see: below any other, and finite.
const UNSEEN: f32 = -1e30;

/// A rank's KV pages, f16. Untouched pages take no memory.
pub struct CpuKv {
    memory: Mapping,
    pub(super) shape: KvShape,
    /// `head_dim` rounded up to whole vectors.
    padded: usize,
}

impl CpuKv {
    pub(super) fn new(shape: KvShape) -> Result<Self, BackendError> {
        if shape.head_dim > HEAD_DIM_MAX {
            return Err(BackendError::Unsupported(format!(
                "attention heads of {} dimensions; at most {HEAD_DIM_MAX} are supported",
                shape.head_dim
            )));
        }
        let padded = shape.head_dim.next_multiple_of(LANES);
        let head_bytes = (shape.head_dim + padded) * PAGE_TOKENS * 2;
        let bytes = [shape.layers, shape.pages, shape.heads]
            .iter()
            .try_fold(head_bytes, |product, &n| product.checked_mul(n))
            .unwrap_or(usize::MAX);
        let memory = Mapping::new(bytes, false).map_err(|source| BackendError::Memory {
            what: "the KV cache",
            bytes,
            source,
        })?;
        Ok(Self {
            memory,
            shape,
            padded,
        })
    }

    /// f16 elements of one head of a page: keys, then values.
    fn head_elements(&self) -> usize {
        (self.shape.head_dim + self.padded) * PAGE_TOKENS
    }

    /// Keys of `head` in page 0 of `layer`.
    fn head(&self, layer: usize, head: usize) -> *mut u16 {
        assert!(layer < self.shape.layers && head < self.shape.heads);
        let index = layer * self.shape.pages * self.shape.heads + head;
        // SAFETY: inside the mapping by the assertion and its size.
        unsafe {
            self.memory
                .start()
                .cast::<u16>()
                .add(index * self.head_elements())
        }
    }

    /// f16 elements from a page to the next.
    fn page_stride(&self) -> usize {
        self.shape.heads * self.head_elements()
    }
}

/// Rotates one head in place; `cosines` and `sines` are of its position.
pub(super) fn rotate(rope: Rope, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = rope.dims as usize / 2;
    match rope.style {
        RopeStyle::Interleaved => {
            let pairs = head[..2 * half].chunks_exact_mut(2);
            for ((pair, c), s) in pairs.zip(cosines).zip(sines) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
        RopeStyle::Halves => {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
            }
        }
    }
}

/// Where one row's keys and values go.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    keys: *mut u16,
    values: *mut u16,
    dim: usize,
    padded: usize,
}

impl Slot {
    /// The place of `row`'s token for `head`. The model has checked the step's pages.
    pub(super) fn of(kv: &CpuKv, step: &Step<'_>, layer: usize, head: usize, row: usize) -> Self {
        let after = step.sequences.partition_point(|s| s.first as usize <= row);
        let sequence = &step.sequences[after - 1];
        let position = sequence.context as usize + row - sequence.first as usize;
        let page = sequence.pages[position / PAGE_TOKENS] as usize;
        assert!(page < kv.shape.pages);
        let (token, dim) = (position % PAGE_TOKENS, kv.shape.head_dim);
        // SAFETY: page, head and token are inside the cache.
        unsafe {
            let base = kv.head(layer, head).add(page * kv.page_stride());
            Self {
                keys: base.add(token),
                values: base.add(dim * PAGE_TOKENS + token * kv.padded),
                dim,
                padded: kv.padded,
            }
        }
    }
}

kernel! {
    /// Writes a key and a value (`padded` values each, zero past the dimension) into a slot that
    /// no other thread writes.
    pub(super) fn append(slot: Slot, key: *const f32, value: *const f32) = append_lanes
}

#[inline(always)]
unsafe fn append_lanes<V: Lanes>(slot: Slot, key: *const f32, value: *const f32) {
    for first in (0..slot.padded).step_by(LANES) {
        V::load(value.add(first)).store_f16(slot.values.add(first));
        let mut halves = [0u16; LANES];
        V::load(key.add(first)).store_f16(halves.as_mut_ptr());
        for lane in 0..LANES.min(slot.dim - first) {
            *slot.keys.add((first + lane) * PAGE_TOKENS) = halves[lane];
        }
    }
}

/// Up to [`TILE_QUERIES`] queries of one sequence and KV head, in order of position.
pub(super) struct Tile {
    pub(super) count: usize,
    /// `head_dim` values each.
    pub(super) queries: [*const f32; TILE_QUERIES],
    pub(super) outputs: [*mut f32; TILE_QUERIES],
    /// Each query sees the tokens from its start to before its limit; at least one.
    pub(super) starts: [usize; TILE_QUERIES],
    pub(super) limits: [usize; TILE_QUERIES],
    scale: f32,
    score_cap: Option<f32>,
    pages: *const u32,
    keys: *const u16,
    page_stride: usize,
    dim: usize,
    padded: usize,
}

impl Tile {
    /// An empty tile over a sequence's pages, which the model has checked.
    pub(super) fn new(
        kv: &CpuKv,
        step: &Step<'_>,
        layer: usize,
        head: usize,
        pages: &[u32],
    ) -> Self {
        Self {
            count: 0,
            queries: [std::ptr::null(); TILE_QUERIES],
            outputs: [std::ptr::null_mut(); TILE_QUERIES],
            starts: [0; TILE_QUERIES],
            limits: [0; TILE_QUERIES],
            scale: step.scale,
            score_cap: step.score_cap,
            pages: pages.as_ptr(),
            keys: kv.head(layer, head),
            page_stride: kv.page_stride(),
            dim: kv.shape.head_dim,
            padded: kv.padded,
        }
    }
}

kernel! {
    /// Fills the tile's outputs.
    pub(super) fn attend(tile: &Tile) = attend_lanes
}

#[inline(always)]
unsafe fn attend_lanes<V: Lanes>(tile: &Tile) {
    let mut first = 0;
    while first < tile.count {
        let left = tile.count - first;
        first += if left >= 8 && V::ROWS >= 8 {
            attend_queries::<V, 8>(tile, first)
        } else if left >= 4 {
            attend_queries::<V, 4>(tile, first)
        } else {
            match left {
                3 => attend_queries::<V, 3>(tile, first),
                2 => attend_queries::<V, 2>(tile, first),
                _ => attend_queries::<V, 1>(tile, first),
            }
        };
    }
}

#[inline(always)]
unsafe fn attend_queries<V: Lanes, const Q: usize>(tile: &Tile, first: usize) -> usize {
    let (dim, padded) = (tile.dim, tile.padded);
    let scale = V::splat(tile.scale);
    let cap = tile.score_cap.map(|c| (V::splat(c), V::splat(2.0 / c)));
    let mut sums = MaybeUninit::<[[f32; HEAD_DIM_MAX]; Q]>::uninit();
    let sums = sums.as_mut_ptr().cast::<f32>();
    let mut tops = [UNSEEN; Q];
    let mut weights = [0f32; Q];
    let mut chances = [[0f32; LANES]; Q];
    for q in 0..Q {
        for at in (0..padded).step_by(LANES) {
            V::zero().store(sums.add(q * HEAD_DIM_MAX + at));
        }
    }
    let seen = tile.limits[first + Q - 1];
    // Queries stand in order of position, so no other's window begins before the first one's.
    for page in tile.starts[first] / PAGE_TOKENS..seen.div_ceil(PAGE_TOKENS) {
        let start = page * PAGE_TOKENS;
        let keys = tile
            .keys
            .add(*tile.pages.add(page) as usize * tile.page_stride);
        let values = keys.add(dim * PAGE_TOKENS);

        // Two sums a query, so that a few queries alone do not wait for each addition.
        let mut scores = [[V::zero(); 2]; Q];
        let mut d = 0;
        while d + 2 <= dim {
            let even = V::load_f16(keys.add(d * PAGE_TOKENS));
            let odd = V::load_f16(keys.add((d + 1) * PAGE_TOKENS));
            for q in 0..Q {
                let query = tile.queries[first + q].add(d);
                scores[q][0] = even.fma(V::splat(*query), scores[q][0]);
                scores[q][1] = odd.fma(V::splat(*query.add(1)), scores[q][1]);
            }
            d += 2;
        }
        if d < dim {
            let last = V::load_f16(keys.add(d * PAGE_TOKENS));
            for q in 0..Q {
                let value = V::splat(*tile.queries[first + q].add(d));
                scores[q][0] = last.fma(value, scores[q][0]);
            }
        }

        for q in 0..Q {
            let mut score = scores[q][0].add(scores[q][1]).mul(scale);
            if let Some((cap, inverse)) = cap {
                score = capped(score, cap, inverse);
            }
            let visible = tile.limits[first + q].saturating_sub(start).min(LANES);
            let hidden = tile.starts[first + q].saturating_sub(start).min(LANES);
            if hidden == LANES {
                // Before this query's window: seen by others of the tile only.
                chances[q].fill(0.0);
                continue;
            }
            if visible < LANES || hidden > 0 {
                score.store(chances[q].as_mut_ptr());
                chances[q][..hidden].fill(UNSEEN);
                chances[q][visible..].fill(UNSEEN);
                score = V::load(chances[q].as_ptr());
            }
            let top = score.largest();
            if top > tops[q] {
                let shrink = (tops[q] - top).exp();
                tops[q] = top;
                weights[q] *= shrink;
                for at in (0..padded).step_by(LANES) {
                    let sum = sums.add(q * HEAD_DIM_MAX + at);
                    V::load(sum).mul(V::splat(shrink)).store(sum);
                }
            }
            let chance = score.sub(V::splat(tops[q])).exp();
            weights[q] += chance.sum();
            chance.store(chances[q].as_mut_ptr());
            // Exactly nothing, so that a query's result does not depend on its tile's others.
            chances[q][..hidden].fill(0.0);
            chances[q][visible..].fill(0.0);
        }

        // Tokens beyond `seen` may hold anything, so they are not even multiplied by zero.
        let tokens = PAGE_TOKENS.min(seen - start);
        for at in (0..padded).step_by(LANES) {
            let mut out = [V::zero(); Q];
            for q in 0..Q {
                out[q] = V::load(sums.add(q * HEAD_DIM_MAX + at));
            }
            for token in 0..tokens {
                let value = V::load_f16(values.add(token * padded + at));
                for q in 0..Q {
                    out[q] = value.fma(V::splat(chances[q][token]), out[q]);
                }
            }
            for q in 0..Q {
                out[q].store(sums.add(q * HEAD_DIM_MAX + at));
            }
        }
    }
    for q in 0..Q {
        let (sum, out) = (sums.add(q * HEAD_DIM_MAX), tile.outputs[first + q]);
        let inverse = V::splat(1.0 / weights[q]);
        for at in (0..padded).step_by(LANES) {
            V::load(sum.add(at)).mul(inverse).store(sum.add(at));
        }
        std::ptr::copy_nonoverlapping(sum, out, dim);
    }
    Q
}
