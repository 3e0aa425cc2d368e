//! Paged KV memory and attention over it.
//!
//! Of each layer, page and head, keys lie transposed (`head_dim x 16 tokens`), so that one vector
//! holds the scores of a page's sixteen tokens, and values as `16 tokens x head_dim` (padded to
//! sixteen). They are f16, or whole numbers of a byte with a scale for each token's key and one for
//! its value: sixteen f32 behind the keys and behind the values. Those scale a vector of scores and
//! one of chances, once a page, and not the numbers one by one. For `attention_tiles` they lie as it says,
//! in bf16.
//!
//! Softmax is online (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"): pages
//! are read once, [`BLOCK_PAGES`] after another, for up to [`TILE_QUERIES`] queries. Blocks begin at
//! fixed positions, so a query's result does not depend on what stands beside it.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_range_loop,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say; loops over \
              registers are counted, so that they unroll"
)]

use super::attention_tiles;
use super::lanes::{LANES, Lanes, kernel};
use super::memory::Mapping;
use super::pointwise::capped;
use crate::backend::{BackendError, KvShape, Step};
use std::mem::MaybeUninit;
use trireme_shared::limits::{HEAD_DIM_MAX, PAGE_TOKENS};
use trireme_shared::model::{KvFormat, Rope, RopeStyle};

const _: () = assert!(PAGE_TOKENS == LANES);

/// Queries of one tile: whole groups of six and of eight (`group_queries`).
pub(super) const TILE_QUERIES: usize = 24;

/// Pages that are met at once: what a query's largest score and its sums are carried over for.
const BLOCK_PAGES: usize = 2;
const BLOCK_TOKENS: usize = BLOCK_PAGES * PAGE_TOKENS;

/// The score of a token a query may not see: below any other, and finite.
pub(super) const UNSEEN: f32 = -1e30;

/// How pages hold keys and values.
trait Numbers {
    type Element: Copy + Default;
    /// Whether a token's key and value have a scale each.
    const HAS_SCALES: bool;

    unsafe fn load<V: Lanes>(from: *const Self::Element) -> V;
    /// What the `padded` numbers of a key or a value are divided by.
    unsafe fn scale<V: Lanes>(numbers: *const f32, padded: usize) -> f32;
    unsafe fn store<V: Lanes>(numbers: V, to: *mut Self::Element);
}

struct Halves;

impl Numbers for Halves {
    type Element = u16;
    const HAS_SCALES: bool = false;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const u16) -> V {
        V::load_f16(from)
    }
    #[inline(always)]
    unsafe fn scale<V: Lanes>(_: *const f32, _: usize) -> f32 {
        1.0
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(numbers: V, to: *mut u16) {
        numbers.store_f16(to)
    }
}

struct Bytes;

impl Numbers for Bytes {
    type Element = i8;
    const HAS_SCALES: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const i8) -> V {
        V::load_i8(from)
    }
    #[inline(always)]
    unsafe fn scale<V: Lanes>(numbers: *const f32, padded: usize) -> f32 {
        let mut most = V::zero();
        for first in (0..padded).step_by(LANES) {
            most = most.max(V::load(numbers.add(first)).abs());
        }
        most.largest() / 127.0
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(numbers: V, to: *mut i8) {
        numbers.store_i8(to)
    }
}

/// What keys and values are in a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    Halves,
    Bytes,
    /// As `attention_tiles` takes them, and nothing else.
    Tiles,
}

/// One head of a page: keys at its start, then what lies so many bytes further.
#[derive(Clone, Copy)]
struct HeadLayout {
    form: Form,
    dim: usize,
    /// `dim` rounded up to whole vectors.
    padded: usize,
    key_scales: usize,
    values: usize,
    value_scales: usize,
    bytes: usize,
}

impl HeadLayout {
    fn new(form: Form, dim: usize) -> Self {
        let (element, scales) = match form {
            Form::Halves | Form::Tiles => (size_of::<u16>(), 0),
            Form::Bytes => (size_of::<i8>(), PAGE_TOKENS * size_of::<f32>()),
        };
        let padded = dim.next_multiple_of(LANES);
        let key_scales = dim * PAGE_TOKENS * element;
        let values = key_scales + scales;
        let value_scales = values + padded * PAGE_TOKENS * element;
        Self {
            form,
            dim,
            padded,
            key_scales,
            values,
            value_scales,
            bytes: value_scales + scales,
        }
    }
}

/// Bytes of one head of a page.
#[cfg(test)]
pub(super) fn head_bytes(form: Form, dim: usize) -> usize {
    HeadLayout::new(form, dim).bytes
}

/// A rank's KV pages. Untouched pages take no memory, but for the rest of a huge one.
pub struct CpuKv {
    memory: Mapping,
    pub(super) shape: KvShape,
    layout: HeadLayout,
}

impl CpuKv {
    /// `has_tiles`: activations are in bf16, and this thread's processor has a unit for tiles of them.
    pub(super) fn new(shape: KvShape, has_tiles: bool) -> Result<Self, BackendError> {
        if shape.head_dim > HEAD_DIM_MAX {
            return Err(BackendError::Unsupported(format!(
                "attention heads of {} dimensions; at most {HEAD_DIM_MAX} are supported",
                shape.head_dim
            )));
        }
        let form = match shape.format {
            KvFormat::F16 if has_tiles && attention_tiles::takes(shape.head_dim) => Form::Tiles,
            KvFormat::F16 => Form::Halves,
            KvFormat::Int8 => Form::Bytes,
        };
        let layout = HeadLayout::new(form, shape.head_dim);
        let bytes = [shape.layers, shape.pages, shape.heads]
            .iter()
            .try_fold(layout.bytes, |product, &n| product.checked_mul(n))
            .unwrap_or(usize::MAX);
        let memory = Mapping::new(bytes).map_err(|source| BackendError::Memory {
            what: "the KV cache",
            bytes,
            source,
        })?;
        Ok(Self {
            memory,
            shape,
            layout,
        })
    }

    pub(super) fn form(&self) -> Form {
        self.layout.form
    }

    /// `head` in page 0 of `layer`.
    fn head(&self, layer: usize, head: usize) -> *mut u8 {
        assert!(layer < self.shape.layers && head < self.shape.heads);
        let index = layer * self.shape.heads + head;
        // SAFETY: inside the mapping by the assertion and its size.
        unsafe { self.memory.start().add(index * self.layout.bytes) }
    }

    /// Bytes from a page to the next: all layers of a page lie together, so that the pages in use fill
    /// huge pages of memory from the first on.
    fn page_stride(&self) -> usize {
        self.shape.layers * self.shape.heads * self.layout.bytes
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
    /// The head in its page.
    head: *mut u8,
    /// In the page.
    token: usize,
    layout: HeadLayout,
}

impl Slot {
    /// The place of `row`'s token for `head`. The model has checked the step's pages.
    pub(super) fn of(kv: &CpuKv, step: &Step<'_>, layer: usize, head: usize, row: usize) -> Self {
        let after = step.sequences.partition_point(|s| s.first as usize <= row);
        let sequence = &step.sequences[after - 1];
        let position = sequence.context as usize + row - sequence.first as usize;
        let page = sequence.pages[position / PAGE_TOKENS] as usize;
        assert!(page < kv.shape.pages);
        Self {
            // SAFETY: page and head are inside the cache.
            head: unsafe { kv.head(layer, head).add(page * kv.page_stride()) },
            token: position % PAGE_TOKENS,
            layout: kv.layout,
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
    match slot.layout.form {
        Form::Halves => append_numbers::<V, Halves>(slot, key, value),
        Form::Bytes => append_numbers::<V, Bytes>(slot, key, value),
        Form::Tiles => append_tiles::<V>(slot, key, value),
    }
}

#[inline(always)]
unsafe fn append_tiles<V: Lanes>(slot: Slot, key: *const f32, value: *const f32) {
    let (layout, token) = (slot.layout, slot.token);
    let keys = slot.head.cast::<u16>().add(token * layout.dim);
    let values = slot.head.add(layout.values).cast::<u16>().add(token);
    for first in (0..layout.dim).step_by(LANES) {
        let numbers = V::load(key.add(first)).to_bf16();
        numbers.store_bf16(keys.add(first));
        let mut row = [0u16; LANES];
        let numbers = V::load(value.add(first)).to_bf16();
        numbers.store_bf16(row.as_mut_ptr());
        for (lane, number) in row.into_iter().enumerate() {
            *values.add((first + lane) * PAGE_TOKENS) = number;
        }
    }
}

#[inline(always)]
unsafe fn append_numbers<V: Lanes, N: Numbers>(slot: Slot, key: *const f32, value: *const f32) {
    let Slot {
        head,
        token,
        layout,
    } = slot;
    let padded = layout.padded;
    let scales = [N::scale::<V>(key, padded), N::scale::<V>(value, padded)];
    // Below what has an inverse there is nothing.
    let inverses = scales.map(|scale| match scale < f32::MIN_POSITIVE {
        true => 0.0,
        false => 1.0 / scale,
    });
    let (of_key, of_value) = (V::splat(inverses[0]), V::splat(inverses[1]));
    let keys = head.cast::<N::Element>().add(token);
    let values = head.add(layout.values).cast::<N::Element>();
    for first in (0..padded).step_by(LANES) {
        let numbers = V::load(value.add(first)).mul(of_value);
        N::store(numbers, values.add(token * padded + first));
        let mut column = [N::Element::default(); LANES];
        N::store(V::load(key.add(first)).mul(of_key), column.as_mut_ptr());
        for lane in 0..LANES.min(layout.dim - first) {
            *keys.add((first + lane) * PAGE_TOKENS) = column[lane];
        }
    }
    if N::HAS_SCALES {
        let at = [layout.key_scales, layout.value_scales];
        for (at, scale) in at.into_iter().zip(scales) {
            *head.add(at).cast::<f32>().add(token) = scale;
        }
    }
}

/// A sequence's pages of one KV head, and how queries meet them.
#[derive(Clone, Copy)]
pub(super) struct HeadPages {
    /// What a query times a key is multiplied by; more than zero.
    pub(super) scale: f32,
    pub(super) score_cap: Option<f32>,
    pages: *const u32,
    /// The head in page 0.
    head: *const u8,
    page_stride: usize,
    layout: HeadLayout,
}

impl HeadPages {
    /// The model has checked the pages.
    pub(super) fn new(
        kv: &CpuKv,
        step: &Step<'_>,
        layer: usize,
        head: usize,
        pages: &[u32],
    ) -> Self {
        debug_assert!(step.scale > 0.0);
        Self {
            scale: step.scale,
            score_cap: step.score_cap,
            pages: pages.as_ptr(),
            head: kv.head(layer, head),
            page_stride: kv.page_stride(),
            layout: kv.layout,
        }
    }

    pub(super) fn dim(&self) -> usize {
        self.layout.dim
    }

    /// The head in the sequence's page `number`, which exists.
    #[inline(always)]
    pub(super) unsafe fn page(&self, number: usize) -> *const u8 {
        self.head
            .add(*self.pages.add(number) as usize * self.page_stride)
    }

    /// Where in it the values are.
    #[inline(always)]
    pub(super) fn values_of(&self, head: *const u8) -> *const u8 {
        head.wrapping_add(self.layout.values)
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
    pages: HeadPages,
}

impl Tile {
    /// An empty tile.
    pub(super) fn new(pages: HeadPages) -> Self {
        Self {
            count: 0,
            queries: [std::ptr::null(); TILE_QUERIES],
            outputs: [std::ptr::null_mut(); TILE_QUERIES],
            starts: [0; TILE_QUERIES],
            limits: [0; TILE_QUERIES],
            pages,
        }
    }
}

kernel! {
    /// Fills the tile's outputs.
    pub(super) fn attend(tile: &Tile) = attend_lanes
}

#[inline(always)]
unsafe fn attend_lanes<V: Lanes>(tile: &Tile) {
    match tile.pages.layout.form {
        Form::Halves => attend_tile::<V, Halves>(tile),
        Form::Bytes => attend_tile::<V, Bytes>(tile),
        Form::Tiles => unreachable!("pages of tiles are met by tiles"),
    }
}

#[inline(always)]
unsafe fn attend_tile<V: Lanes, N: Numbers>(tile: &Tile) {
    let (layout, count) = (tile.pages.layout, tile.count);
    let mut sums = MaybeUninit::<[f32; TILE_QUERIES * HEAD_DIM_MAX]>::uninit();
    let mut progress = Progress {
        tops: [UNSEEN; TILE_QUERIES],
        weights: [0.0; TILE_QUERIES],
        sums: sums.as_mut_ptr().cast(),
    };
    for at in (0..count * layout.padded).step_by(LANES) {
        V::zero().store(progress.sums.add(at));
    }
    // Queries stand in order of position, so no window begins before the first one's, and none ends
    // after the last one's.
    let (begin, end) = (tile.starts[0], tile.limits[count - 1]);
    let pages = begin / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS);
    let heads = |block: usize| {
        std::array::from_fn(|at| {
            // Of a page that nobody sees, the nearest stands for it.
            let page = (block * BLOCK_PAGES + at).clamp(pages.start, pages.end - 1);
            tile.pages.page(page)
        })
    };
    let blocks = begin / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
    let mut next = heads(blocks.start);
    for number in blocks {
        let block = Block {
            start: number * BLOCK_TOKENS,
            heads: next,
            next: heads(number + 1),
        };
        next = block.next;
        meet_block::<V, N>(tile, &block, &mut progress);
    }
    for query in 0..count {
        let sum = progress.sums.add(query * layout.padded);
        let inverse = V::splat(1.0 / progress.weights[query]);
        for at in (0..layout.padded).step_by(LANES) {
            V::load(sum.add(at)).mul(inverse).store(sum.add(at));
        }
        std::ptr::copy_nonoverlapping(sum, tile.outputs[query], layout.dim);
    }
}

/// What is known of each query of a tile after some blocks.
struct Progress {
    /// The largest score, which all chances so far are relative to.
    tops: [f32; TILE_QUERIES],
    /// Sum of chances.
    weights: [f32; TILE_QUERIES],
    /// Sums of values by chances, `padded` each.
    sums: *mut f32,
}

/// Of `left` queries, how many are taken at once: as many as registers hold sums for.
#[inline(always)]
fn group_queries<V: Lanes>(left: usize) -> usize {
    match left {
        8.. if V::ROWS == 8 => 8,
        6.. if V::ROWS == 6 => 6,
        4.. => 4,
        few => few,
    }
}

/// One head of the pages of a block.
struct Block {
    /// Position of its first token.
    start: usize,
    heads: [*const u8; BLOCK_PAGES],
    /// Those of the block that is read after it.
    next: [*const u8; BLOCK_PAGES],
}

/// All queries of a tile that see tokens of a block.
#[inline(always)]
unsafe fn meet_block<V: Lanes, N: Numbers>(tile: &Tile, block: &Block, progress: &mut Progress) {
    let mut first = 0;
    while first < tile.count {
        let count = group_queries::<V>(tile.count - first);
        let is_seen = block.start < tile.limits[first + count - 1]
            && tile.starts[first] < block.start + BLOCK_TOKENS;
        if is_seen {
            match count {
                8 if V::ROWS == 8 => meet::<V, N, 8>(tile, first, block, progress),
                6 if V::ROWS == 6 => meet::<V, N, 6>(tile, first, block, progress),
                4 => meet::<V, N, 4>(tile, first, block, progress),
                3 => meet::<V, N, 3>(tile, first, block, progress),
                2 => meet::<V, N, 2>(tile, first, block, progress),
                _ => meet::<V, N, 1>(tile, first, block, progress),
            }
        }
        first += count;
    }
}

/// Scores of queries `first..first + Q` with the sixteen tokens of a page, before any scale. As keys
/// are read, the places at the same distances from `ahead` are asked for.
#[inline(always)]
unsafe fn scores<V: Lanes, N: Numbers, const Q: usize>(
    tile: &Tile,
    first: usize,
    keys: *const N::Element,
    ahead: *const N::Element,
) -> [V; Q] {
    // Two sums a query, of even and of odd columns, so that a few queries alone do not wait for each
    // addition; one after the other, where registers are too few for both.
    let mut sums = [[V::zero(); 2]; Q];
    let dim = tile.pages.layout.dim;
    let key = |d: usize| N::load::<V>(keys.add(d * PAGE_TOKENS));
    let ask_ahead = |d: usize| V::prefetch(ahead.wrapping_add(d * PAGE_TOKENS).cast());
    let query = |q: usize, d: usize| V::splat(*tile.queries[first + q].add(d));
    if V::ROWS < 8 && Q >= 4 {
        for parity in 0..2 {
            let mut mine = [V::zero(); Q];
            for d in (parity..dim).step_by(2) {
                ask_ahead(d);
                let key = key(d);
                for q in 0..Q {
                    mine[q] = key.fma(query(q, d), mine[q]);
                }
            }
            for q in 0..Q {
                sums[q][parity] = mine[q];
            }
        }
    } else {
        for d in (0..dim - dim % 2).step_by(2) {
            ask_ahead(d);
            let (even, odd) = (key(d), key(d + 1));
            for q in 0..Q {
                sums[q][0] = even.fma(query(q, d), sums[q][0]);
                sums[q][1] = odd.fma(query(q, d + 1), sums[q][1]);
            }
        }
        if dim % 2 == 1 {
            let last = key(dim - 1);
            for q in 0..Q {
                sums[q][0] = last.fma(query(q, dim - 1), sums[q][0]);
            }
        }
    }
    let mut scores = [V::zero(); Q];
    for q in 0..Q {
        scores[q] = sums[q][0].add(sums[q][1]);
    }
    scores
}

/// Queries `first..first + Q` and a block.
#[inline(always)]
unsafe fn meet<V: Lanes, N: Numbers, const Q: usize>(
    tile: &Tile,
    first: usize,
    block: &Block,
    progress: &mut Progress,
) {
    let layout = tile.pages.layout;
    let padded = layout.padded;
    let scale = V::splat(tile.pages.scale);
    let cap = tile
        .pages
        .score_cap
        .map(|c| (V::splat(c), V::splat(2.0 / c)));
    // Tokens of the block, from its start on: those that each sees, and those that any does.
    let in_block = |position: usize| position.saturating_sub(block.start).min(BLOCK_TOKENS);
    let (mut starts, mut ends) = ([0; Q], [0; Q]);
    for q in 0..Q {
        starts[q] = in_block(tile.starts[first + q]);
        ends[q] = in_block(tile.limits[first + q]);
    }
    let pages = starts[0] / PAGE_TOKENS..ends[Q - 1].div_ceil(PAGE_TOKENS);

    // Scores, then what each token's value is multiplied by: its chance, and its scale where there is
    // one. Only those pages are written.
    let mut factors = MaybeUninit::<[[f32; BLOCK_TOKENS]; Q]>::uninit();
    let factors = factors.as_mut_ptr().cast::<f32>();
    // Puts a number in place of those of a page that a query does not see; whether there are any.
    let hide = |q: usize, page: usize, number: f32| {
        let (seen, tokens) = (
            starts[q]..ends[q],
            page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS,
        );
        if seen.start <= tokens.start && tokens.end <= seen.end {
            return false;
        }
        for token in tokens.filter(|token| !seen.contains(token)) {
            *factors.add(q * BLOCK_TOKENS + token) = number;
        }
        true
    };
    let mut tops = [V::splat(UNSEEN); Q];
    for page in pages.clone() {
        let head = block.heads[page];
        // What lies where the hardware cannot know is asked for line by line, a block ahead: keys as keys
        // are read, values as values are. More at once than a core can wait for would hold up what comes
        // after, and less ahead is late where others read memory too.
        let ahead = block.next[page].cast();
        let scores = scores::<V, N, Q>(tile, first, head.cast(), ahead);
        for q in 0..Q {
            let mut score = scores[q];
            if N::HAS_SCALES {
                score = score.mul(V::load(head.add(layout.key_scales).cast()));
            }
            score = score.mul(scale);
            if let Some((cap, inverse)) = cap {
                score = capped(score, cap, inverse);
            }
            let to = factors.add(q * BLOCK_TOKENS + page * PAGE_TOKENS);
            score.store(to);
            if hide(q, page, UNSEEN) {
                score = V::load(to);
            }
            tops[q] = tops[q].max(score);
        }
    }

    let mut shrinks = [1f32; Q];
    for q in 0..Q {
        let at = first + q;
        if starts[q] < ends[q] {
            let top = tops[q].largest();
            if top > progress.tops[at] {
                shrinks[q] = match progress.weights[at] {
                    0.0 => 0.0,
                    _ => (progress.tops[at] - top).exp(),
                };
                progress.tops[at] = top;
            }
            let top = V::splat(progress.tops[at]);
            let mut weight = V::zero();
            // Only pages that it sees itself, so that its sum does not depend on the tile's others.
            for page in starts[q] / PAGE_TOKENS..ends[q].div_ceil(PAGE_TOKENS) {
                let scores = factors.add(q * BLOCK_TOKENS + page * PAGE_TOKENS);
                let chance = V::load(scores).sub(top).exp();
                weight = weight.add(chance);
                let mut factor = chance;
                if N::HAS_SCALES {
                    let scales = block.heads[page].add(layout.value_scales).cast();
                    factor = factor.mul(V::load(scales));
                }
                factor.store(scores);
            }
            progress.weights[at] = progress.weights[at] * shrinks[q] + weight.sum();
        }
        for page in pages.clone() {
            // Exactly nothing, for the same reason.
            hide(q, page, 0.0);
        }
    }

    let sums = progress.sums.add(first * padded);
    for at in (0..padded).step_by(LANES) {
        let mut out = [V::zero(); Q];
        for q in 0..Q {
            out[q] = V::load(sums.add(q * padded + at)).mul(V::splat(shrinks[q]));
        }
        for page in pages.clone() {
            let start = page * PAGE_TOKENS;
            let values = block.heads[page].add(layout.values).cast::<N::Element>();
            let ahead = block.next[page].add(layout.values).cast::<N::Element>();
            let factors = factors.add(start);
            // Tokens beyond what is seen may hold anything, so they are not even multiplied by zero.
            for token in 0..PAGE_TOKENS.min(ends[Q - 1] - start) {
                let place = token * padded + at;
                V::prefetch(ahead.add(place).cast());
                let value = N::load::<V>(values.add(place));
                for q in 0..Q {
                    let factor = V::splat(*factors.add(q * BLOCK_TOKENS + token));
                    out[q] = value.fma(factor, out[q]);
                }
            }
        }
        for q in 0..Q {
            out[q].store(sums.add(q * padded + at));
        }
    }
}
